//! Products with weights of 8 and 4 bits.
//!
//! Weights lie in groups of inputs that share a scale, and each number is a code: `scale · (code − offset) − min`. Activations
//! are rounded to signed bytes with a scale for each row and group. A group's products are added up as integers, without
//! rounding, and then the groups as f32 in their order: all instruction sets give the same bits.
//!
//! The floor: `vpdpbusd` multiplies and adds 64 pairs of bytes, and a core of Zen 5 issues two per cycle. A group costs a
//! conversion, a multiplication and a multiply-add for each vector of sums beside it: with 32 inputs in a group, a fifth of
//! the time.

use amem_core::Result;
use bytemuck::{Pod, Zeroable};
use half::f16;
use half::slice::HalfFloatSliceExt;
use pulp::{Simd, WithSimd};

use super::{Columns, PANEL, load_panel, store_panel, tile_heights, with_rows};
use crate::pages::Pages;
use crate::{Cpu, Tensor};

/// Inputs of a panel that are multiplied at a time: 32 KiB of codes of 8 bits.
const BLOCK: usize = 1024;
/// Rows of a tile at most: with more, the sums of a group and those of all groups do not fit the registers together.
const BYTE_ROWS: usize = 8;

/// How a kind of quantised weights is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Inputs that share a scale, a multiple of 8.
    pub(super) group: usize,
    /// Whether a byte holds two codes.
    pub(super) four_bits: bool,
    /// What is subtracted from a code.
    pub(super) offset: u8,
    /// Whether groups have a minimum, too.
    pub(super) mins: bool,
}

impl Layout {
    pub(super) const INT8: Self = Self { group: 32, four_bits: false, offset: 128, mins: false };
    pub(super) const INT4: Self = Self { group: 32, four_bits: true, offset: 8, mins: false };

    /// Codes of a group for one output, in units of four bytes.
    fn units(self) -> usize {
        self.group / if self.four_bits { 8 } else { 4 }
    }
}

/// Four bytes for each output of a panel: codes of four inputs one after the other, or of eight, the first four in the lower
/// halves of the bytes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Codes([[u8; 4]; PANEL]);

/// A scale (or a minimum) for each output of a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Scales([f16; PANEL]);

/// A group of one output, while weights are packed.
pub(super) struct Group<'a> {
    /// `offset` where there are no weights.
    pub(super) codes: &'a mut [u8],
    pub(super) scale: f32,
    pub(super) min: f32,
}

/// A matrix of codes.
pub(super) struct Quantized {
    layout: Layout,
    /// Groups of an output.
    groups: usize,
    /// `[panels][groups][units]`.
    codes: Pages<Codes>,
    /// `[panels][groups]`, in units of `unit`.
    scales: Pages<Scales>,
    mins: Option<Pages<Scales>>,
    /// A power of two that keeps scales where f16 is exact.
    unit: f32,
}

impl Quantized {
    /// A matrix whose groups are made by `fill`, which is given an output, the first of its inputs and the group. It is called
    /// twice for each, for scales are known only when all of them are.
    pub(super) fn pack(
        cpu: &Cpu,
        layout: Layout,
        (outputs, inputs): (usize, usize),
        largest: f32,
        fill: impl Fn(usize, &mut [Group<'_>]) + Send + Sync,
    ) -> Result<Self> {
        let (panels, groups, units) = (outputs.div_ceil(PANEL), inputs.div_ceil(layout.group), layout.units());
        let of_groups = panels.saturating_mul(groups);
        let mut codes: Pages<Codes> = Pages::zeros(of_groups.saturating_mul(units))?;
        let mut scales: Pages<Scales> = Pages::zeros(of_groups)?;
        let mut mins: Option<Pages<Scales>> = if layout.mins { Some(Pages::zeros(of_groups)?) } else { None };
        // The largest scale comes to between 2^10 and 2^11: f16 has 24 powers of two below that without loss.
        let exponent = if largest > 0.0 && largest.is_finite() { largest.log2().floor() as i32 - 10 } else { 0 };
        let unit = 2f32.powi(exponent.clamp(-100, 100));
        let no_mins: Vec<&mut [Scales]> = (0..panels).map(|_| Default::default()).collect();
        let of_mins = match &mut mins {
            Some(mins) => mins.chunks_exact_mut(groups).collect(),
            None => no_mins,
        };
        let parts = codes.chunks_exact_mut(groups * units).zip(scales.chunks_exact_mut(groups)).zip(of_mins);
        cpu.each(parts.enumerate().collect(), outputs * inputs, |(panel, ((codes, scales), mins))| {
            let mut bytes = vec![0; groups * layout.group];
            for lane in 0..PANEL.min(outputs - panel * PANEL) {
                bytes.fill(layout.offset);
                let mut row: Vec<Group<'_>> =
                    bytes.chunks_exact_mut(layout.group).map(|codes| Group { codes, scale: 0.0, min: 0.0 }).collect();
                fill(panel * PANEL + lane, &mut row);
                for (index, group) in row.iter().enumerate() {
                    scales[index].0[lane] = f16::from_f32(group.scale / unit);
                    if let Some(mins) = mins.get_mut(index) {
                        mins.0[lane] = f16::from_f32(group.min / unit);
                    }
                    let units = &mut codes[index * units..(index + 1) * units];
                    if layout.four_bits {
                        for (unit, codes) in units.iter_mut().zip(group.codes.as_chunks::<8>().0) {
                            unit.0[lane] = std::array::from_fn(|at| codes[at] | codes[at + 4] << 4);
                        }
                    } else {
                        for (unit, codes) in units.iter_mut().zip(group.codes.as_chunks::<4>().0) {
                            unit.0[lane] = *codes;
                        }
                    }
                }
            }
        });
        Ok(Self { layout, groups, codes, scales, mins, unit })
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// The numbers of one output.
    pub(super) fn row(&self, output: usize) -> impl Iterator<Item = f32> {
        let (panel, lane) = (output / PANEL, output % PANEL);
        let offset = f32::from(self.layout.offset);
        (0..self.groups * self.layout.group).map(move |input| {
            let group = panel * self.groups + input / self.layout.group;
            let at = input % self.layout.group;
            let code = |unit: usize, byte: usize| {
                self.codes.get(group * self.layout.units() + unit).map_or(0, |codes| codes.0[lane][byte])
            };
            let code = match self.layout.four_bits {
                true => code(at / 8, at % 4) >> (at % 8 / 4 * 4) & 15,
                false => code(at / 4, at % 4),
            };
            let of =
                |scales: &Pages<Scales>| scales.get(group).map_or(0.0, |scales| scales.0[lane].to_f32() * self.unit);
            of(&self.scales) * (f32::from(code) - offset) - self.mins.as_ref().map_or(0.0, of)
        })
    }

    /// The groups of a panel, from one on.
    fn groups(&self, panel: usize, groups: std::ops::Range<usize>) -> Groups<'_> {
        let at = panel * self.groups + groups.start..panel * self.groups + groups.end;
        let units = self.layout.units();
        Groups {
            layout: self.layout,
            codes: &self.codes[at.start * units..at.end * units],
            scales: &self.scales[at.clone()],
            mins: self.mins.as_ref().map(|mins| &mins[at]),
            unit: self.unit,
        }
    }
}

/// Some groups of a panel.
struct Groups<'a> {
    layout: Layout,
    codes: &'a [Codes],
    scales: &'a [Scales],
    mins: Option<&'a [Scales]>,
    unit: f32,
}

/// Some rows of `x` in signed bytes.
pub(super) struct ByteTile {
    rows: usize,
    /// `[inputs / 4][rows]`.
    bytes: Vec<[i8; 4]>,
    /// `[groups][rows]`.
    groups: Vec<RowGroup>,
}

/// A group of a row.
#[derive(Clone, Copy, Default)]
struct RowGroup {
    scale: f32,
    /// The sum of its bytes.
    sum: i32,
}

impl Cpu {
    /// The rows of `x` in tiles, rounded to bytes in groups of so many inputs.
    pub(super) fn byte_tiles(&self, x: &Tensor, group: usize) -> Vec<ByteTile> {
        let mut rest = &x.data[..];
        let mut tiles: Vec<(&[f32], ByteTile)> = tile_heights(x.rows(), BYTE_ROWS)
            .map(|rows| {
                let (own, others) = rest.split_at(rows * x.columns);
                rest = others;
                (own, ByteTile { rows, bytes: Vec::new(), groups: Vec::new() })
            })
            .collect();
        self.each(tiles.iter_mut().collect(), 2 * x.data.len(), |(rows, tile)| {
            self.arch.dispatch(Round { x: rows, inputs: x.columns, group, tile });
        });
        tiles.into_iter().map(|(_, tile)| tile).collect()
    }

    /// All rows times some panels.
    pub(super) fn byte_columns(&self, w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
        #[cfg(target_arch = "x86_64")]
        if self.isa.vnni.is_some() {
            // SAFETY: the proof is made only where the machine has AVX-512 F, BW, CD, DQ, VL and VNNI.
            #[allow(unsafe_code)]
            unsafe {
                vnni::multiply_columns(w, tiles, columns);
            }
            return;
        }
        self.arch.dispatch(Portable { w, tiles, columns });
    }
}

/// Fills a tile.
struct Round<'a> {
    x: &'a [f32],
    inputs: usize,
    group: usize,
    tile: &'a mut ByteTile,
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, inputs, group, tile: ByteTile { rows, bytes, groups } } = self;
        let count = inputs.div_ceil(group);
        *bytes = vec![[0; 4]; count * group / 4 * *rows];
        *groups = vec![RowGroup::default(); count * *rows];
        let mut rounded = vec![0i8; count * group];
        for (index, row) in x.chunks_exact(inputs).enumerate() {
            for (at, (x, to)) in row.chunks(group).zip(rounded.chunks_exact_mut(group)).enumerate() {
                groups[at * *rows + index] = round(x, to);
            }
            let fours = rounded.as_chunks::<4>().0;
            bytes[index..].iter_mut().step_by(*rows).zip(fours).for_each(|(to, four)| *to = *four);
        }
    }
}

/// Rounds a group to bytes. Numbers that are none make its scale none, and so the results.
#[inline(always)]
fn round(x: &[f32], to: &mut [i8]) -> RowGroup {
    let mut largest = [0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        largest.iter_mut().zip(chunk).for_each(|(top, x)| *top = if x.abs() > *top { x.abs() } else { *top });
    }
    let largest = largest.iter().copied().chain(rest.iter().map(|x| x.abs())).fold(0f32, f32::max);
    let sane = x.iter().map(|x| x * 0.0).sum::<f32>();
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut sum = 0;
    for (to, x) in to.iter_mut().zip(x) {
        /// 1.5 · 2^23: adding it leaves the rounded integer in the low bits.
        const ROUND: f32 = 12_582_912.0;
        *to = (x * inverse + ROUND).to_bits() as i8;
        sum += i32::from(*to);
    }
    RowGroup { scale: largest / 127.0 + sane, sum }
}

/// The product without instructions for it.
struct Portable<'a, 'b> {
    w: &'a Quantized,
    tiles: &'a [ByteTile],
    columns: &'a mut Columns<'b>,
}

impl WithSimd for Portable<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { w, tiles, columns } = self;
        let Columns { panel: first, rows, .. } = columns;
        let width = rows.first().map_or(0, |row| row.len());
        for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
            let groups = w.groups(panel, 0..w.groups);
            let mut rest = &mut rows[..];
            for tile in tiles {
                let (rows, others) = rest.split_at_mut(tile.rows);
                rest = others;
                for (index, row) in rows.iter_mut().enumerate() {
                    multiply_row(&groups, tile, index, row, column);
                }
            }
        }
    }
}

#[inline(always)]
fn multiply_row(w: &Groups<'_>, tile: &ByteTile, index: usize, row: &mut [f32], column: usize) {
    let Groups { layout, codes, scales, mins, unit } = *w;
    let mut totals = [0f32; PANEL];
    let (mut wide, mut wide_mins) = ([0f32; PANEL], [0f32; PANEL]);
    for (group, codes) in codes.chunks_exact(layout.units()).enumerate() {
        let x = tile.groups[group * tile.rows + index];
        let mut bytes = tile.bytes[group * layout.group / 4 * tile.rows + index..].iter().step_by(tile.rows);
        let mut sums = [-i32::from(layout.offset) * x.sum; PANEL];
        for codes in codes {
            let halves: &[(u8, u8)] = if layout.four_bits { &[(0, 15), (4, 15)] } else { &[(0, 255)] };
            for (shift, mask) in halves {
                let x = bytes.next().copied().unwrap_or_default().map(i32::from);
                for (sum, codes) in sums.iter_mut().zip(&codes.0) {
                    let code = |at: usize| i32::from(codes[at] >> shift & mask);
                    *sum += code(0) * x[0] + code(1) * x[1] + code(2) * x[2] + code(3) * x[3];
                }
            }
        }
        scales[group].0.convert_to_f32_slice(&mut wide);
        for ((total, sum), scale) in totals.iter_mut().zip(sums).zip(wide) {
            *total = (sum as f32).mul_add(scale * unit * x.scale, *total);
        }
        if let Some(mins) = mins {
            mins[group].0.convert_to_f32_slice(&mut wide_mins);
            let sum = x.sum as f32 * x.scale;
            for (total, min) in totals.iter_mut().zip(wide_mins) {
                *total = (min * unit).mul_add(-sum, *total);
            }
        }
    }
    store_panel(&totals, row, column);
}

/// The product with AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn multiply_columns(w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
        let Columns { panel: first, rows, .. } = columns;
        let width = rows.first().map_or(0, |row| row.len());
        let block = (BLOCK / w.layout.group).max(1);
        for start in (0..w.groups).step_by(block) {
            let end = w.groups.min(start + block);
            for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
                let groups = w.groups(panel, start..end);
                let mut rest = &mut rows[..];
                for tile in tiles {
                    let (rows, others) = rest.split_at_mut(tile.rows);
                    rest = others;
                    let x = &tile.bytes[start * w.layout.group / 4 * tile.rows..end * w.layout.group / 4 * tile.rows];
                    let x_groups = &tile.groups[start * tile.rows..end * tile.rows];
                    let (to, begun) = ((rows, column), start > 0);
                    if w.layout.four_bits {
                        with_rows!(tile.rows, |ROWS| multiply::<ROWS, true>(&groups, x, x_groups, to, begun));
                    } else {
                        with_rows!(tile.rows, |ROWS| multiply::<ROWS, false>(&groups, x, x_groups, to, begun));
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni")]
    fn wide(scales: &Scales, unit: __m512) -> [__m512; 2] {
        let halves: [__m256i; 2] = bytemuck::cast(scales.0);
        halves.map(|half| _mm512_mul_ps(_mm512_cvtph_ps(half), unit))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni")]
    fn multiply<const ROWS: usize, const FOUR_BITS: bool>(
        w: &Groups<'_>,
        x: &[[i8; 4]],
        x_groups: &[RowGroup],
        (rows, column): (&mut [&mut [f32]], usize),
        begun: bool,
    ) {
        let Groups { layout, codes, scales, mins, unit } = *w;
        let unit = _mm512_set1_ps(unit);
        let offset = -i32::from(layout.offset);
        let low = _mm512_set1_epi8(15);
        let mut totals = [[_mm512_setzero_ps(); 2]; ROWS];
        if begun {
            totals.iter_mut().zip(&*rows).for_each(|(totals, row)| *totals = bytemuck::cast(load_panel(row, column)));
        }
        let groups = codes.chunks_exact(layout.units()).zip(x.chunks_exact(layout.group / 4 * ROWS));
        for (index, ((codes, x), x_groups)) in groups.zip(x_groups.as_chunks::<ROWS>().0).enumerate() {
            let mut sums: [[__m512i; 2]; ROWS] =
                std::array::from_fn(|row| [_mm512_set1_epi32(offset * x_groups[row].sum); 2]);
            if FOUR_BITS {
                for (codes, x) in codes.iter().zip(x.as_chunks::<ROWS>().0.as_chunks::<2>().0) {
                    let both: [__m512i; 2] = bytemuck::cast(codes.0);
                    let lower = both.map(|codes| _mm512_and_si512(codes, low));
                    let upper = both.map(|codes| _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low));
                    for ((sums, &first), &second) in sums.iter_mut().zip(&x[0]).zip(&x[1]) {
                        let first = _mm512_set1_epi32(i32::from_ne_bytes(bytemuck::cast(first)));
                        let second = _mm512_set1_epi32(i32::from_ne_bytes(bytemuck::cast(second)));
                        for half in 0..2 {
                            sums[half] = _mm512_dpbusd_epi32(sums[half], lower[half], first);
                            sums[half] = _mm512_dpbusd_epi32(sums[half], upper[half], second);
                        }
                    }
                }
            } else {
                for (codes, x) in codes.iter().zip(x.as_chunks::<ROWS>().0) {
                    let both: [__m512i; 2] = bytemuck::cast(codes.0);
                    for (sums, &x) in sums.iter_mut().zip(x) {
                        let x = _mm512_set1_epi32(i32::from_ne_bytes(bytemuck::cast(x)));
                        for half in 0..2 {
                            sums[half] = _mm512_dpbusd_epi32(sums[half], both[half], x);
                        }
                    }
                }
            }
            let scales = wide(&scales[index], unit);
            for ((totals, sums), x) in totals.iter_mut().zip(&sums).zip(x_groups) {
                let of_row = _mm512_set1_ps(x.scale);
                for half in 0..2 {
                    let scale = _mm512_mul_ps(scales[half], of_row);
                    totals[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[half]), scale, totals[half]);
                }
            }
            if let Some(mins) = mins {
                let mins = wide(&mins[index], unit);
                for (totals, x) in totals.iter_mut().zip(x_groups) {
                    let sum = _mm512_set1_ps(x.sum as f32 * x.scale);
                    for half in 0..2 {
                        totals[half] = _mm512_fnmadd_ps(mins[half], sum, totals[half]);
                    }
                }
            }
        }
        totals.iter().zip(rows).for_each(|(totals, row)| store_panel(&bytemuck::cast(*totals), row, column));
    }
}
