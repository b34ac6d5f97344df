//! The product with 256-bit vectors: AVX-VNNI, whose `vpdpbusd` adds the products of four inputs to an i32, and AVX2, where
//! two instructions add them in two steps.
//!
//! The first of these steps has room for 16 bits. Codes of up to 6 bits fit. Those of 8 bits are taken as signed numbers: their
//! magnitudes times bytes that have taken their sign are at most 2 · 128 · 127. Of codes of 4 bits there is room for the products
//! of a whole group of 32 inputs, at most 16 · 15 · 127, and the second step is taken once for a group.

use std::arch::x86_64::*;

use super::super::{Columns, PANEL, load_columns, store_columns};
use super::{ByteTile, Codes, GROUP_OF_4_BITS, Groups, Layout, Quantized, RowGroup, Scales};
use crate::unroll::with_rows;
use crate::widening::prefetch;

/// How codes are multiplied.
#[derive(Clone, Copy)]
enum Kind {
    /// As unsigned bytes. What that is too much is taken off a group's sum.
    Unsigned,
    /// As signed bytes.
    Signed,
    /// Two of a byte, one after the other.
    FourBits,
}

const UNSIGNED: u8 = Kind::Unsigned as u8;
const SIGNED: u8 = Kind::Signed as u8;
const FOUR_BITS: u8 = Kind::FourBits as u8;

impl Kind {
    fn of(layout: Layout, signed: bool) -> Self {
        match layout {
            Layout { four_bits: true, .. } => Self::FourBits,
            Layout::INT8 if signed => Self::Signed,
            _ => Self::Unsigned,
        }
    }
}

/// Inputs of a panel that are multiplied at a time: 16 KiB of codes of 8 bits, which leave room for rows in the smallest L1
/// caches.
const BLOCK_INPUTS: usize = 512;

const _: () = assert!(GROUP_OF_4_BITS == Layout::INT8.group, "groups of signed codes are as long");

const _: () = assert!(GROUP_OF_4_BITS / 2 * 15 * 127 <= i16::MAX as usize, "products of a group fit 16 bits");

/// The kernels with these features. With `$signed`, codes of offset 128 are signed. `dot` adds to sums the products of codes,
/// which are signed or not, with bytes. `dot_4_bits` does for codes of 4 bits, and what it has added up in a group becomes
/// sums by `sums_of_4_bits`.
macro_rules! kernels {
    ($module:ident, $features:literal, signed: $signed:literal, rows: $($rows:literal)*, $($dot:item)*) => {
        pub(super) mod $module {
            use super::*;

            /// Rows of the tallest tile.
            pub(in super::super) const TALLEST: usize = [$($rows),*].len();

            /// All rows times some panels.
            #[target_feature(enable = $features)]
            pub(in super::super) fn multiply_columns(w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
                let Columns { panel: first, rows, .. } = columns;
                let width = rows.first().map_or(0, |row| row.len());
                let (block, kind) = ((BLOCK_INPUTS / w.layout.group).max(1), Kind::of(w.layout, $signed));
                for start in (0..w.groups).step_by(block) {
                    let range = start..w.groups.min(start + block);
                    for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
                        let groups = w.groups(panel, range.clone());
                        // What comes behind it, as far as it is as long: that of the next panel, or the first panel's next.
                        let ahead = match column + PANEL < width {
                            true => w.groups(panel + 1, range.clone()),
                            false => w.groups(*first, range.end..w.groups.min(range.end + block)),
                        };
                        let mut ahead = Some(ahead.codes).filter(|ahead| ahead.len() == groups.codes.len());
                        let mut rest = &mut rows[..];
                        for tile in tiles {
                            let (rows, others) = rest.split_at_mut(tile.rows);
                            rest = others;
                            let fours = w.layout.group / 4 * tile.rows;
                            let x = &tile.bytes[range.start * fours..range.end * fours];
                            let x = (x, &tile.groups[range.start * tile.rows..range.end * tile.rows]);
                            let column = (column, start > 0);
                            with_rows!(@each tile.rows, ROWS, {
                                match kind {
                                    Kind::Unsigned => multiply::<ROWS, UNSIGNED>(&groups, ahead, x, rows, column),
                                    Kind::Signed => multiply::<ROWS, SIGNED>(&groups, ahead, x, rows, column),
                                    Kind::FourBits => multiply::<ROWS, FOUR_BITS>(&groups, ahead, x, rows, column),
                                }
                            }, $($rows)*);
                            // The first tile has fetched it.
                            ahead = None;
                        }
                    }
                }
            }

            /// Some rows times a panel, whose column they go to, where sums may have begun.
            #[inline]
            #[target_feature(enable = $features)]
            fn multiply<const ROWS: usize, const KIND: u8>(
                w: &Groups<'_>,
                ahead: Option<&[Codes]>,
                x: (&[[i8; 4]], &[RowGroup]),
                rows: &mut [&mut [f32]],
                column: (usize, bool),
            ) {
                // One row leaves registers for a whole panel.
                if ROWS == 1 {
                    return multiply_part::<ROWS, KIND, 4>(w, ahead, 0, x, rows, column);
                }
                for first in [0, 2] {
                    multiply_part::<ROWS, KIND, 2>(w, ahead, first, x, rows, column);
                }
            }

            /// Some rows times so many vectors of a panel.
            #[inline]
            #[target_feature(enable = $features)]
            fn multiply_part<const ROWS: usize, const KIND: u8, const VECTORS: usize>(
                w: &Groups<'_>,
                ahead: Option<&[Codes]>,
                part: usize,
                (x, x_groups): (&[[i8; 4]], &[RowGroup]),
                rows: &mut [&mut [f32]],
                (column, begun): (usize, bool),
            ) {
                let Groups { layout, codes, scales, mins, unit } = *w;
                let offset = -i32::from(layout.offset);
                let (low, zero) = (_mm256_set1_epi8(15), _mm256_setzero_si256());
                let unit = _mm256_set1_ps(unit);
                let mut totals = [[_mm256_setzero_ps(); VECTORS]; ROWS];
                if begun {
                    for (to, row) in totals.iter_mut().zip(&*rows) {
                        for (vector, to) in to.iter_mut().enumerate() {
                            *to = bytemuck::cast(load_columns::<8>(row, column + 8 * (part + vector)));
                        }
                    }
                }
                // Loops are better for a length that compilers know.
                let (units, fours) = match KIND {
                    UNSIGNED => (layout.units(), layout.group / 4),
                    SIGNED => (GROUP_OF_4_BITS / 4, GROUP_OF_4_BITS / 4),
                    _ => (GROUP_OF_4_BITS / 8, GROUP_OF_4_BITS / 4),
                };
                let groups = codes.chunks_exact(units).zip(x.chunks_exact(fours * ROWS));
                for (index, ((codes, x), x_groups)) in groups.zip(x_groups.as_chunks::<ROWS>().0).enumerate() {
                    // Of 4 bits, products take longer than their codes take to come.
                    if KIND != FOUR_BITS
                        && let Some(ahead) = ahead.and_then(|ahead| ahead.get(index * units..(index + 1) * units))
                    {
                        for ahead in ahead {
                            prefetch(&ahead.0[8 * part]);
                            if VECTORS == 4 {
                                prefetch(&ahead.0[8 * (part + 2)]);
                            }
                        }
                    }
                    let mut sums = [[zero; VECTORS]; ROWS];
                    if KIND == UNSIGNED {
                        for (sums, x) in sums.iter_mut().zip(x_groups) {
                            *sums = [_mm256_set1_epi32(offset * x.sum); VECTORS];
                        }
                    }
                    let x = x.as_chunks::<ROWS>().0;
                    if KIND == FOUR_BITS {
                        for (codes, x) in codes.iter().zip(x.as_chunks::<2>().0) {
                            let codes: [__m256i; VECTORS] = vectors(codes, part);
                            let lower = codes.map(|codes| _mm256_and_si256(codes, low));
                            let upper = codes.map(|codes| _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low));
                            for (codes, x) in [lower, upper].into_iter().zip(x) {
                                for (sums, x) in sums.iter_mut().zip(x) {
                                    let x = _mm256_set1_epi32(bytemuck::cast(*x));
                                    for (sum, codes) in sums.iter_mut().zip(codes) {
                                        *sum = dot_4_bits(*sum, codes, x);
                                    }
                                }
                            }
                        }
                        for (sums, x) in sums.iter_mut().zip(x_groups) {
                            let offset = _mm256_set1_epi32(offset * x.sum);
                            for sum in sums {
                                *sum = _mm256_add_epi32(sums_of_4_bits(*sum), offset);
                            }
                        }
                    } else {
                        for (codes, x) in codes.iter().zip(x) {
                            let codes: [__m256i; VECTORS] = vectors(codes, part);
                            for (sums, x) in sums.iter_mut().zip(x) {
                                let x = _mm256_set1_epi32(bytemuck::cast(*x));
                                for (sum, codes) in sums.iter_mut().zip(codes) {
                                    *sum = dot(*sum, codes, x, KIND == SIGNED);
                                }
                            }
                        }
                    }
                    let scales = wide::<VECTORS>(&scales[index], part, unit);
                    let mins = mins.map(|mins| wide::<VECTORS>(&mins[index], part, unit));
                    for ((totals, sums), x) in totals.iter_mut().zip(sums).zip(x_groups) {
                        let of_row = _mm256_set1_ps(x.scale);
                        for vector in 0..VECTORS {
                            let scale = _mm256_mul_ps(scales[vector], of_row);
                            totals[vector] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[vector]), scale, totals[vector]);
                        }
                        if let Some(mins) = mins {
                            let sum = _mm256_set1_ps(x.sum as f32 * x.scale);
                            for vector in 0..VECTORS {
                                totals[vector] = _mm256_fnmadd_ps(mins[vector], sum, totals[vector]);
                            }
                        }
                    }
                }
                for (totals, row) in totals.iter().zip(rows) {
                    for (vector, total) in totals.iter().enumerate() {
                        store_columns::<8>(&bytemuck::cast(*total), row, column + 8 * (part + vector));
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn vectors<const VECTORS: usize>(codes: &Codes, part: usize) -> [__m256i; VECTORS] {
                let vectors = codes.0.as_chunks::<8>().0;
                std::array::from_fn(|at| bytemuck::cast(vectors[part + at]))
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn wide<const VECTORS: usize>(scales: &Scales, part: usize, unit: __m256) -> [__m256; VECTORS] {
                let vectors = scales.0.as_chunks::<8>().0;
                std::array::from_fn(|at| _mm256_mul_ps(_mm256_cvtph_ps(bytemuck::cast(vectors[part + at])), unit))
            }

            $(
                #[inline]
                #[target_feature(enable = $features)]
                $dot
            )*
        }
    };
}

kernels!(
    vnni,
    "avx2,fma,f16c,avxvnni",
    signed: false,
    rows: 1 2 3 4 5 6,
    fn dot(sums: __m256i, codes: __m256i, x: __m256i, _: bool) -> __m256i {
        _mm256_dpbusd_avx_epi32(sums, codes, x)
    }
    fn dot_4_bits(sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(sums, codes, x)
    }
    fn sums_of_4_bits(sums: __m256i) -> __m256i {
        sums
    }
);

kernels!(
    two_steps,
    "avx2,fma,f16c",
    signed: true,
    rows: 1 2 3 4,
    fn dot(sums: __m256i, codes: __m256i, x: __m256i, signed: bool) -> __m256i {
        let (codes, x) = if signed {
            let codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            (_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
        } else {
            (codes, x)
        };
        _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)))
    }
    fn dot_4_bits(sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, x))
    }
    fn sums_of_4_bits(sums: __m256i) -> __m256i {
        _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
    }
);
