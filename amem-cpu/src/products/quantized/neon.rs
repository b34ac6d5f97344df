//! The product with NEON. Codes are signed bytes, as activations are.
//!
//! - With I8MM, `smmla` multiplies two rows with two outputs, eight inputs of each: 32 products. Four of them belong to a group of
//!   32 inputs, beside a conversion, a multiplication and a multiply-add.
//! - With dot products, `sdot` adds the products of four inputs to each of four sums, and takes one row's four inputs out of a
//!   vector of four rows': 16 products.
//! - Without these, `smull` and `smlal` make products of 16 bits, of which two of bytes and many of codes of 4 bits have room, and
//!   `sadalp` adds them to sums of 32 bits.
//!
//! Eight outputs of up to four rows are computed at a time: their sums of a group and of all groups are sixteen vectors, half of
//! the registers, and none of them goes through memory.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::super::{Columns, PANEL, load_panel, store_panel};
use super::{BLOCK_INPUTS, ByteTile, Codes, Groups, Quantized, RowGroup, SIGNED, Scales};
use crate::unroll::{MOST_ROWS, each_row};

/// Outputs that are computed at a time.
const STRIP: usize = 8;
/// How many times so many a panel has.
const STRIPS: usize = PANEL / STRIP;

/// Rounded activations of a tile for some groups.
struct Part<'a> {
    bytes: &'a [[i8; 4]],
    groups: &'a [RowGroup],
    /// How many rows they have room for.
    padded: usize,
    /// Whether the sums go on from earlier groups.
    begun: bool,
}

/// Calls `multiply` for each panel, tile and block of inputs.
#[inline(always)]
fn each_tile(
    w: &Quantized,
    tiles: &[ByteTile],
    columns: &mut Columns<'_>,
    multiply: impl Fn(&Groups<'_>, &Part<'_>, &mut [&mut [f32]], usize),
) {
    let Columns { panel: first, rows, .. } = columns;
    let width = rows.first().map_or(0, |row| row.len());
    let block = (BLOCK_INPUTS / w.layout.group).max(1);
    for start in (0..w.groups).step_by(block) {
        let range = start..w.groups.min(start + block);
        for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
            let groups = w.groups(panel, range.clone());
            let mut rest = &mut rows[..];
            for tile in tiles {
                let (rows, others) = rest.split_at_mut(tile.rows);
                rest = others;
                multiply(&groups, &tile.part(w.layout.group, range.clone()), rows, column);
            }
        }
    }
}

impl ByteTile {
    fn part(&self, group: usize, groups: Range<usize>) -> Part<'_> {
        let fours = group / 4 * self.padded;
        Part {
            bytes: &self.bytes[groups.start * fours..groups.end * fours],
            groups: &self.groups[groups.start * self.padded..groups.end * self.padded],
            padded: self.padded,
            begun: groups.start > 0,
        }
    }
}

/// Scales or minima of a strip.
#[inline]
#[target_feature(enable = "neon")]
fn wide(scales: &Scales, strip: usize, unit: f32) -> [float32x4_t; 2] {
    let strips: [[u16; STRIP]; STRIPS] = bytemuck::cast(scales.0);
    let halves: uint16x8_t = bytemuck::cast(strips[strip % STRIPS]);
    let halves = vreinterpretq_f16_u16(halves);
    [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)].map(|scales| vmulq_n_f32(scales, unit))
}

/// Some outputs of a row.
#[inline(always)]
fn strip_of(panel: &[f32; PANEL], strip: usize) -> [float32x4_t; 2] {
    let strips: &[[f32; STRIP]; STRIPS] = bytemuck::cast_ref(panel);
    bytemuck::cast(strips[strip % STRIPS])
}

/// Puts them back.
#[inline(always)]
fn put_strip(panel: &mut [f32; PANEL], strip: usize, totals: [float32x4_t; 2]) {
    let strips: &mut [[f32; STRIP]; STRIPS] = bytemuck::cast_mut(panel);
    strips[strip % STRIPS] = bytemuck::cast(totals);
}

/// What a group's sums begin with for each of a row's products, which are those of codes with their offset.
#[inline(always)]
fn offset_of(w: &Groups<'_>) -> i32 {
    if w.layout.offset == SIGNED { 0 } else { -i32::from(w.layout.offset) }
}

/// Strips that are computed together, for so many rows or pairs of rows. All of them where they are one: then the panel is read
/// from front to back.
const fn together(rows: usize) -> usize {
    if rows == 1 { STRIPS } else { 1 }
}

/// A unit's codes of each strip: four inputs of four outputs in a vector, or eight, half of them in the upper halves of bytes.
type Unit = [[int8x16_t; 2]; STRIPS];

/// Kernels for codes of four inputs side by side, and for tiles of so many rows. `$sums` are those of a group of a strip for
/// `ROWS` rows.
macro_rules! kernels {
    ($module:ident, $features:literal, rows: $($rows:literal)*, $sums:item) => {
        pub(super) mod $module {
            use super::*;

            /// Rows of the tallest tile.
            pub(in super::super) const TALLEST: usize = [$($rows),*].len();

            /// All rows times some panels.
            #[target_feature(enable = $features)]
            pub(in super::super) fn multiply_columns(w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
                each_tile(w, tiles, columns, |w, x, rows, column| match (rows.len(), w.layout.four_bits) {
                    $(
                        ($rows, true) => multiply::<$rows, { together($rows) }, true>(w, x, rows, column),
                        ($rows, false) => multiply::<$rows, { together($rows) }, false>(w, x, rows, column),
                    )*
                    (rows, _) => debug_assert_eq!(rows, 0, "no kernel is compiled for tiles of so many rows"),
                });
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn multiply<const ROWS: usize, const TOGETHER: usize, const FOUR_BITS: bool>(
                w: &Groups<'_>,
                x: &Part<'_>,
                rows: &mut [&mut [f32]],
                column: usize,
            ) {
                let Groups { layout, codes, scales, mins, unit } = *w;
                let offset = offset_of(w);
                let codes: &[Unit] = bytemuck::try_cast_slice::<Codes, Unit>(codes).unwrap_or_default();
                let mut panel = [[0f32; PANEL]; ROWS];
                if x.begun {
                    panel.iter_mut().zip(&*rows).for_each(|(to, row)| *to = load_panel(row, column));
                }
                for first in (0..STRIPS).step_by(TOGETHER) {
                    let mut totals: [[[float32x4_t; 2]; ROWS]; TOGETHER] =
                        std::array::from_fn(|at| std::array::from_fn(|row| strip_of(&panel[row], first + at)));
                    let groups = codes.chunks_exact(layout.units()).zip(x.bytes.chunks_exact(layout.group / 4 * x.padded));
                    let groups = groups.zip(x.groups.chunks_exact(x.padded)).zip(scales);
                    for (index, (((codes, bytes), of_rows), scales)) in groups.enumerate() {
                        let Some(of_rows) = of_rows.first_chunk::<ROWS>() else { return };
                        for at in 0..TOGETHER {
                            let starts = of_rows.map(|x| vdupq_n_s32(offset * x.sum));
                            let sums = sums::<ROWS, FOUR_BITS>(codes, first + at, bytes, starts);
                            let scales = wide(scales, first + at, unit);
                            for row in 0..ROWS {
                                for vector in 0..2 {
                                    let scale = vmulq_n_f32(scales[vector], of_rows[row].scale);
                                    let total = &mut totals[at][row][vector];
                                    *total = vfmaq_f32(*total, vcvtq_f32_s32(sums[row][vector]), scale);
                                }
                            }
                            if let Some(mins) = mins {
                                let mins = wide(&mins[index], first + at, unit);
                                for row in 0..ROWS {
                                    let sum = of_rows[row].sum as f32 * of_rows[row].scale;
                                    for vector in 0..2 {
                                        let total = &mut totals[at][row][vector];
                                        *total = vfmsq_f32(*total, mins[vector], vdupq_n_f32(sum));
                                    }
                                }
                            }
                        }
                    }
                    for (at, totals) in totals.into_iter().enumerate() {
                        panel.iter_mut().zip(totals).for_each(|(panel, totals)| put_strip(panel, first + at, totals));
                    }
                }
                panel.iter().zip(rows).for_each(|(panel, row)| store_panel(panel, row, column));
            }

            #[inline]
            #[target_feature(enable = $features)]
            $sums
        }
    };
}

kernels!(
    dot,
    "neon,dotprod",
    rows: 1 2 3 4,
    fn sums<const ROWS: usize, const FOUR_BITS: bool>(
        codes: &[Unit],
        strip: usize,
        x: &[[i8; 4]],
        starts: [int32x4_t; ROWS],
    ) -> [[int32x4_t; 2]; ROWS] {
        let mut sums = [[vdupq_n_s32(0); 2]; MOST_ROWS];
        sums.iter_mut().zip(starts).for_each(|(sums, start)| *sums = [start; 2]);
        // A vector has four inputs of each of four rows. Sixteen inputs at a time, of which all groups have a multiple.
        for (codes, x) in codes.chunks_exact(if FOUR_BITS { 2 } else { 4 }).zip(x.as_chunks::<16>().0) {
            let x: [int8x16_t; 4] = bytemuck::cast(*x);
            if FOUR_BITS {
                for (codes, x) in codes.iter().zip(x.as_chunks::<2>().0) {
                    for vector in 0..2 {
                        let [lower, upper] = halves(codes[strip % STRIPS][vector]);
                        each_row!(ROW < ROWS, {
                            sums[ROW][vector] = dot_row::<ROW>(sums[ROW][vector], lower, x[0]);
                            sums[ROW][vector] = dot_row::<ROW>(sums[ROW][vector], upper, x[1]);
                        });
                    }
                }
            } else {
                for (codes, x) in codes.iter().zip(x) {
                    for vector in 0..2 {
                        each_row!(ROW < ROWS, {
                            sums[ROW][vector] = dot_row::<ROW>(sums[ROW][vector], codes[strip % STRIPS][vector], x);
                        });
                    }
                }
            }
        }
        std::array::from_fn(|row| sums[row])
    }
);

kernels!(
    widening,
    "neon",
    rows: 1 2,
    fn sums<const ROWS: usize, const FOUR_BITS: bool>(
        codes: &[Unit],
        strip: usize,
        x: &[[i8; 4]],
        starts: [int32x4_t; ROWS],
    ) -> [[int32x4_t; 2]; ROWS] {
        // Two inputs' products in each lane, so that an output has two lanes.
        let mut sums = [[[vdupq_n_s32(0); 2]; 2]; ROWS];
        // Eight inputs at a time, of which all groups have a multiple.
        let units = codes.chunks_exact(if FOUR_BITS { 1 } else { 2 });
        for (codes, x) in units.zip(x.chunks_exact(2 * ROWS)) {
            let x: [[int8x16_t; 2]; ROWS] = std::array::from_fn(|row| {
                [x[row], x[ROWS + row]]
                    .map(|four| vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(bytemuck::cast(four)))))
            });
            for vector in 0..2 {
                let [first, second] = if FOUR_BITS {
                    halves(codes[0][strip % STRIPS][vector])
                } else {
                    [codes[0][strip % STRIPS][vector], codes[1][strip % STRIPS][vector]]
                };
                for (sums, x) in sums.iter_mut().zip(x) {
                    // At most 2 · 128 · 127.
                    let low = vmull_s8(vget_low_s8(first), vget_low_s8(x[0]));
                    let low = vmlal_s8(low, vget_low_s8(second), vget_low_s8(x[1]));
                    let high = vmlal_high_s8(vmull_high_s8(first, x[0]), second, x[1]);
                    let [sums_low, sums_high] = &mut sums[vector];
                    *sums_low = vpadalq_s16(*sums_low, low);
                    *sums_high = vpadalq_s16(*sums_high, high);
                }
            }
        }
        std::array::from_fn(|row| sums[row].map(|[low, high]| vaddq_s32(vpaddq_s32(low, high), starts[row])))
    }
);

/// The lower and the upper halves of bytes.
#[inline]
#[target_feature(enable = "neon")]
fn halves(codes: int8x16_t) -> [int8x16_t; 2] {
    let lower = vandq_s8(codes, vdupq_n_s8(15));
    [lower, vreinterpretq_s8_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s8(codes)))]
}

/// Adds to each sum the products of four codes with four of a row's bytes, which are a vector's `ROW`th four.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_row<const ROW: usize>(mut sums: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction is one of those that this function is compiled for, and it changes nothing but `sums`.
    #[allow(unsafe_code)]
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {codes:v}.16b, {x:v}.4b[{row}]",
            sums = inout(vreg) sums,
            codes = in(vreg) codes,
            x = in(vreg) x,
            row = const ROW,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

pub(super) mod i8mm {
    use super::*;

    /// Rows of the tallest tile: two pairs.
    pub(in super::super) const TALLEST: usize = 4;

    /// Codes of eight inputs of a strip, two outputs in a vector.
    type Eight = [int8x16_t; STRIP / 2];

    /// All rows times some panels.
    #[target_feature(enable = "neon,dotprod,i8mm")]
    pub(in super::super) fn multiply_columns(w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
        each_tile(w, tiles, columns, |w, x, rows, column| match (x.padded, w.layout.four_bits) {
            (2, true) => multiply::<1, { together(1) }, true>(w, x, rows, column),
            (2, false) => multiply::<1, { together(1) }, false>(w, x, rows, column),
            (_, true) => multiply::<2, { together(2) }, true>(w, x, rows, column),
            (_, false) => multiply::<2, { together(2) }, false>(w, x, rows, column),
        });
    }

    /// `PAIRS` pairs of rows, of the last of which the second may not be there.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn multiply<const PAIRS: usize, const TOGETHER: usize, const FOUR_BITS: bool>(
        w: &Groups<'_>,
        x: &Part<'_>,
        rows: &mut [&mut [f32]],
        column: usize,
    ) {
        let Groups { layout, codes, scales, mins, unit } = *w;
        let offset = vdupq_n_s32(offset_of(w));
        let mut panel = [[[0f32; PANEL]; 2]; PAIRS];
        if x.begun {
            panel.as_flattened_mut().iter_mut().zip(&*rows).for_each(|(to, row)| *to = load_panel(row, column));
        }
        for first in (0..STRIPS).step_by(TOGETHER) {
            let mut totals: [[[float32x4_t; STRIP / 2]; PAIRS]; TOGETHER] =
                std::array::from_fn(|at| std::array::from_fn(|pair| paired(&panel[pair], first + at)));
            let groups = codes.chunks_exact(layout.units()).zip(x.bytes.chunks_exact(layout.group / 4 * x.padded));
            let groups = groups.zip(x.groups.chunks_exact(x.padded)).zip(scales);
            for (index, (((codes, bytes), of_rows), scales)) in groups.enumerate() {
                let Some(of_pairs) = of_rows.as_chunks::<2>().0.first_chunk::<PAIRS>() else { return };
                // Their scales, and the sums of their bytes.
                let of_pairs: [(float32x4_t, int32x4_t); PAIRS] = of_pairs.map(|pair| {
                    let both: [f32; 4] = bytemuck::cast(pair);
                    let both: float32x4_t = bytemuck::cast(both);
                    (vtrn1q_f32(both, both), vreinterpretq_s32_f32(vtrn2q_f32(both, both)))
                });
                for at in 0..TOGETHER {
                    let starts = of_pairs.map(|(_, sum)| vmulq_s32(sum, offset));
                    let sums = sums::<PAIRS, FOUR_BITS>(codes, first + at, bytes, starts);
                    let scales = spread(wide(scales, first + at, unit));
                    for pair in 0..PAIRS {
                        for vector in 0..STRIP / 2 {
                            let scale = vmulq_f32(scales[vector], of_pairs[pair].0);
                            let total = &mut totals[at][pair][vector];
                            *total = vfmaq_f32(*total, vcvtq_f32_s32(sums[pair][vector]), scale);
                        }
                    }
                    if let Some(mins) = mins {
                        let mins = spread(wide(&mins[index], first + at, unit));
                        for (totals, (scale, sum)) in totals[at].iter_mut().zip(of_pairs) {
                            let sum = vmulq_f32(vcvtq_f32_s32(sum), scale);
                            for vector in 0..STRIP / 2 {
                                totals[vector] = vfmsq_f32(totals[vector], mins[vector], sum);
                            }
                        }
                    }
                }
            }
            for (at, totals) in totals.into_iter().enumerate() {
                for (panel, totals) in panel.iter_mut().zip(totals) {
                    let both = [0, 1].map(|half| in_turn(totals[2 * half], totals[2 * half + 1]));
                    for (row, panel) in panel.iter_mut().enumerate() {
                        put_strip(panel, first + at, [both[0][row], both[1][row]]);
                    }
                }
            }
        }
        panel.as_flattened().iter().zip(rows).for_each(|(panel, row)| store_panel(panel, row, column));
    }

    /// Some outputs of two rows: two of one row, then of the other.
    #[inline]
    #[target_feature(enable = "neon")]
    fn paired(rows: &[[f32; PANEL]; 2], strip: usize) -> [float32x4_t; STRIP / 2] {
        let [first, second] = [&rows[0], &rows[1]].map(|row| strip_of(row, strip));
        let [a, b] = [0, 1].map(|half| in_turn(first[half], second[half]));
        [a[0], a[1], b[0], b[1]]
    }

    /// The lower halves of two vectors, and the upper ones.
    #[inline]
    #[target_feature(enable = "neon")]
    fn in_turn(first: float32x4_t, second: float32x4_t) -> [float32x4_t; 2] {
        let [first, second] = [first, second].map(|x| vreinterpretq_f64_f32(x));
        [vzip1q_f64(first, second), vzip2q_f64(first, second)].map(|x| vreinterpretq_f32_f64(x))
    }

    /// Numbers of a strip's outputs for both rows of a pair.
    #[inline]
    #[target_feature(enable = "neon")]
    fn spread([first, second]: [float32x4_t; 2]) -> [float32x4_t; STRIP / 2] {
        let ([a, b], [c, d]) = (in_turn(first, first), in_turn(second, second));
        [a, b, c, d]
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn sums<const PAIRS: usize, const FOUR_BITS: bool>(
        codes: &[Codes],
        strip: usize,
        x: &[[i8; 4]],
        starts: [int32x4_t; PAIRS],
    ) -> [[int32x4_t; STRIP / 2]; PAIRS] {
        let mut sums = starts.map(|start| [start; STRIP / 2]);
        // Eight inputs of two rows in a vector.
        let x = x.as_chunks::<4>().0.as_chunks::<PAIRS>().0;
        if FOUR_BITS {
            let codes: &[Unit] = bytemuck::try_cast_slice::<Codes, Unit>(codes).unwrap_or_default();
            for (codes, x) in codes.as_chunks::<2>().0.iter().zip(x.as_chunks::<2>().0) {
                for (codes, x) in codes.iter().zip(x) {
                    let [first, second] = codes[strip % STRIPS].map(|codes| halves(codes));
                    multiply_eight(&mut sums, [first[0], first[1], second[0], second[1]], x);
                }
            }
        } else {
            let codes: &[[Eight; STRIPS]] = bytemuck::try_cast_slice::<Codes, _>(codes).unwrap_or_default();
            for (codes, x) in codes.as_chunks::<2>().0.iter().zip(x.as_chunks::<2>().0) {
                for (codes, x) in codes.iter().zip(x) {
                    multiply_eight(&mut sums, codes[strip % STRIPS], x);
                }
            }
        }
        sums
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn multiply_eight<const PAIRS: usize>(
        sums: &mut [[int32x4_t; STRIP / 2]; PAIRS],
        codes: Eight,
        x: &[[[i8; 4]; 4]; PAIRS],
    ) {
        for (sums, x) in sums.iter_mut().zip(x) {
            let x: int8x16_t = bytemuck::cast(*x);
            for (sums, codes) in sums.iter_mut().zip(codes) {
                *sums = multiply_pairs(*sums, x, codes);
            }
        }
    }

    /// Adds to each of four sums the products of eight bytes: those of two rows with those of two outputs.
    #[inline]
    #[target_feature(enable = "neon,i8mm")]
    fn multiply_pairs(mut sums: int32x4_t, x: int8x16_t, codes: int8x16_t) -> int32x4_t {
        // SAFETY: the instruction is one of those that this function is compiled for, and it changes nothing but `sums`.
        #[allow(unsafe_code)]
        unsafe {
            asm!(
                "smmla {sums:v}.4s, {x:v}.16b, {codes:v}.16b",
                sums = inout(vreg) sums,
                x = in(vreg) x,
                codes = in(vreg) codes,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}
