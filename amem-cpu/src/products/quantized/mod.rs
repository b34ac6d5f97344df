//! Products with weights of 8 and 4 bits.
//!
//! Weights lie in groups of inputs that share a scale, and each number is a code: `scale · (code − offset) − min`. Activations
//! are rounded to signed bytes with a scale for each row and group. A group's products are added up as integers, without
//! rounding, and then the groups as f32 in their order: all instruction sets give the same bits.
//!
//! The floor: `vpdpbusd` multiplies and adds 64 pairs of bytes, and a core of Zen 5 issues two per cycle. A group costs a
//! conversion, a multiplication and a multiply-add for each vector of sums beside it: with 32 inputs in a group, a fifth of
//! the time. With NEON these three stand beside eight `sdot`, or beside four `smmla`.
//!
//! Codes and rounded activations lie as the instructions take them that a matrix was packed for ([`Order`]).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use amem_core::Result;
use bytemuck::{Pod, Zeroable};
use half::f16;
use half::slice::HalfFloatSliceExt;
use pulp::{Simd, WithSimd};

use super::{Columns, PANEL};
use crate::isa::{ByteKind, Bytes};
use crate::pages::Pages;
use crate::{Cpu, Tensor};

/// Inputs of a panel that are multiplied at a time: 32 KiB of codes of 8 bits.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const BLOCK_INPUTS: usize = 1024;

/// How codes and activations lie, for the instructions that multiply them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Inputs that lie side by side, of each output and of each row: 4 or 8.
    inputs: usize,
    /// Whether codes of offset 128 are kept as signed numbers, without the offset.
    signed: bool,
    /// Rows of a tile at most: with more, the sums of a group and those of all groups do not fit the registers together.
    rows: usize,
    /// Tiles have room for a multiple of so many rows. Those that are not there are zeros.
    padded: usize,
}

impl Order {
    fn of(kernels: Bytes) -> Self {
        match kernels.kind() {
            #[cfg(target_arch = "aarch64")]
            ByteKind::Neon => Self { inputs: 4, signed: true, rows: neon::widening::TALLEST, padded: 1 },
            #[cfg(target_arch = "aarch64")]
            ByteKind::NeonDot => Self { inputs: 4, signed: true, rows: neon::dot::TALLEST, padded: 4 },
            #[cfg(target_arch = "aarch64")]
            ByteKind::NeonI8mm => Self { inputs: 8, signed: true, rows: neon::i8mm::TALLEST, padded: 2 },
            #[cfg(target_arch = "x86_64")]
            ByteKind::Avx2 => Self { inputs: 4, signed: false, rows: avx2::two_steps::TALLEST, padded: 1 },
            #[cfg(target_arch = "x86_64")]
            ByteKind::AvxVnni => Self { inputs: 4, signed: false, rows: avx2::vnni::TALLEST, padded: 1 },
            #[cfg(target_arch = "x86_64")]
            ByteKind::Avx512Vnni => Self { inputs: 4, signed: false, rows: avx512::TALLEST, padded: 1 },
            ByteKind::Portable => Self { inputs: 4, signed: false, rows: portable::TALLEST, padded: 1 },
        }
    }

    /// The bits by which codes differ from how they are kept.
    fn flip(self, layout: Layout) -> u8 {
        if self.signed && layout.offset == SIGNED { SIGNED } else { 0 }
    }

    /// Where a code of a group is kept: in which unit, in which four of its bytes and in which of these, and how many bits
    /// of the byte are below it.
    #[inline(always)]
    fn place(self, layout: Layout, lane: usize, at: usize) -> (usize, usize, usize, usize) {
        let (half, byte) = (at % 8 / 4, at % 4);
        match (self.inputs, layout.four_bits) {
            (8, false) => (at / 8 * 2 + lane / 16, lane % 16 * 2 + half, byte, 0),
            (8, true) => (at / 8, lane / 4 * 4 + lane % 2 * 2 + half, byte, lane % 4 / 2 * 4),
            (_, false) => (at / 4, lane, byte, 0),
            (_, true) => (at / 8, lane, byte, half * 4),
        }
    }
}

/// Inputs of a group with codes of 4 bits.
pub(super) const GROUP_OF_4_BITS: usize = 32;

/// The offset of codes that can be kept as signed numbers.
const SIGNED: u8 = 128;

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
    pub(super) const INT4: Self = Self { group: GROUP_OF_4_BITS, four_bits: true, offset: 8, mins: false };

    /// Codes of a group for one output, in units of four bytes.
    fn units(self) -> usize {
        self.group / if self.four_bits { 8 } else { 4 }
    }
}

/// Four bytes for each output of a panel: codes of four inputs one after the other, or of eight, the first four in the lower
/// halves of the bytes.
///
/// Where eight inputs lie side by side ([`Order`]), two units together have eight bytes for each output; and with codes of 4
/// bits a unit has those of four outputs in 16 bytes, of the first two outputs in the lower halves.
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
    /// What it was packed for.
    kernels: Bytes,
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
    /// A matrix whose groups are made by `fill`, which is given an output and the groups of its inputs. No scale and no
    /// minimum of theirs is larger than `largest` by more than a tenth.
    pub(super) fn pack(
        cpu: &Cpu,
        layout: Layout,
        (outputs, inputs): (usize, usize),
        largest: f32,
        fill: impl Fn(usize, &mut [Group<'_>]) + Send + Sync,
    ) -> Result<Self> {
        let kernels = cpu.isa.bytes;
        let order = Order::of(kernels);
        let (panels, groups, units) = (outputs.div_ceil(PANEL), inputs.div_ceil(layout.group), layout.units());
        let of_groups = panels.saturating_mul(groups);
        let mut codes: Pages<Codes> = cpu.pages.zeros(of_groups.saturating_mul(units))?;
        let mut scales: Pages<Scales> = cpu.pages.zeros(of_groups)?;
        let mut mins: Option<Pages<Scales>> = if layout.mins { Some(cpu.pages.zeros(of_groups)?) } else { None };
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
            let mut bytes = vec![0; 2 * groups * layout.group];
            let lanes = PANEL.min(outputs - panel * PANEL);
            for first in (0..lanes).step_by(2) {
                bytes.fill(layout.offset);
                let rows = bytes.chunks_exact_mut((groups * layout.group).max(1));
                for (lane, bytes) in (first..lanes).zip(rows) {
                    let codes = bytes.chunks_exact_mut(layout.group);
                    let mut row: Vec<Group<'_>> = codes.map(|codes| Group { codes, scale: 0.0, min: 0.0 }).collect();
                    fill(panel * PANEL + lane, &mut row);
                    put_scales(scales, lane, row.iter().map(|group| group.scale / unit));
                    put_scales(mins, lane, row.iter().map(|group| group.min / unit));
                }
                put_codes(codes, first, &bytes, (order, layout));
            }
        });
        Ok(Self { layout, kernels, groups, codes, scales, mins, unit })
    }

    /// How many inputs of a row are rounded together, and how they lie then.
    pub(super) fn inputs(&self) -> (usize, Order) {
        (self.layout.group, Order::of(self.kernels))
    }

    /// The numbers of one output.
    pub(super) fn row(&self, output: usize) -> impl Iterator<Item = f32> {
        let (panel, lane) = (output / PANEL, output % PANEL);
        let order = Order::of(self.kernels);
        let (offset, flip) = (f32::from(self.layout.offset), order.flip(self.layout));
        (0..self.groups * self.layout.group).map(move |input| {
            let group = panel * self.groups + input / self.layout.group;
            let (unit, four, byte, shift) = order.place(self.layout, lane, input % self.layout.group);
            let bytes = self.codes.get(group * self.layout.units() + unit).map_or(0, |codes| codes.0[four][byte]);
            let code = if self.layout.four_bits { bytes >> shift & 15 } else { bytes ^ flip };
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

/// Puts the scales of an output's groups in their places.
fn put_scales(places: &mut [Scales], lane: usize, scales: impl Iterator<Item = f32>) {
    if places.is_empty() {
        return;
    }
    let scales: Vec<f32> = scales.collect();
    let mut rounded = vec![f16::ZERO; scales.len()];
    rounded.convert_from_f32_slice(&scales);
    places.iter_mut().zip(rounded).for_each(|(place, scale)| place.0[lane] = scale);
}

/// Puts the codes of two outputs, which lie one behind the other, in their places: the units of a panel.
fn put_codes(units: &mut [Codes], lane: usize, codes: &[u8], (order, layout): (Order, Layout)) {
    let (first, second) = codes.split_at(codes.len() / 2);
    let flip = order.flip(layout);
    if order.inputs == 8 {
        for (lane, codes) in [(lane, first), (lane + 1, second)] {
            let groups = units.chunks_exact_mut(layout.units()).zip(codes.chunks_exact(layout.group));
            for (units, codes) in groups {
                for (at, codes) in (0..).step_by(4).zip(codes.as_chunks::<4>().0) {
                    let (unit, four, _, shift) = order.place(layout, lane, at);
                    let bytes = codes.map(|code| (code ^ flip) << shift);
                    units[unit].0[four].iter_mut().zip(bytes).for_each(|(to, byte)| *to |= byte);
                }
            }
        }
        return;
    }
    // Two outputs have eight bytes, which are stored at once.
    let put = |unit: &mut Codes, first: u32, second: u32| {
        let both = (u64::from(first) | u64::from(second) << 32).to_le_bytes();
        unit.0[lane..lane + 2].as_flattened_mut().copy_from_slice(&both);
    };
    if layout.four_bits {
        let halves = |codes: &[u8; 8]| {
            let codes = u64::from_le_bytes(*codes);
            codes as u32 | (codes >> 28) as u32
        };
        let codes = first.as_chunks::<8>().0.iter().zip(second.as_chunks::<8>().0);
        units.iter_mut().zip(codes).for_each(|(unit, (first, second))| put(unit, halves(first), halves(second)));
    } else {
        let flip = u32::from_le_bytes([flip; 4]);
        let codes = first.as_chunks::<4>().0.iter().zip(second.as_chunks::<4>().0);
        let code = |codes: &[u8; 4]| u32::from_le_bytes(*codes) ^ flip;
        units.iter_mut().zip(codes).for_each(|(unit, (first, second))| put(unit, code(first), code(second)));
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
    /// Rows that there is room for.
    padded: usize,
    /// `[inputs / 4][padded]`, or `[inputs / 8][padded][2]`.
    bytes: Vec<[i8; 4]>,
    /// `[groups][padded]`.
    groups: Vec<RowGroup>,
}

/// A group of a row.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct RowGroup {
    scale: f32,
    /// The sum of its bytes.
    sum: i32,
}

impl Cpu {
    /// The rows of `x` in tiles, rounded to bytes in groups of so many inputs.
    pub(super) fn byte_tiles(&self, x: &Tensor, (group, order): (usize, Order)) -> Vec<ByteTile> {
        self.in_tiles(x, order.rows, |own, rows| {
            let padded = rows.next_multiple_of(order.padded);
            let mut tile = ByteTile { rows, padded, bytes: Vec::new(), groups: Vec::new() };
            self.arch.dispatch(Round { x: own, inputs: x.columns, group, side: order.inputs / 4, tile: &mut tile });
            tile
        })
    }

    /// All rows times some panels.
    pub(super) fn byte_columns(&self, w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
        let multiply: unsafe fn(&Quantized, &[ByteTile], &mut Columns<'_>) = match w.kernels.kind() {
            #[cfg(target_arch = "x86_64")]
            ByteKind::Avx512Vnni => avx512::multiply_columns,
            #[cfg(target_arch = "x86_64")]
            ByteKind::AvxVnni => avx2::vnni::multiply_columns,
            #[cfg(target_arch = "x86_64")]
            ByteKind::Avx2 => avx2::two_steps::multiply_columns,
            #[cfg(target_arch = "aarch64")]
            ByteKind::NeonI8mm => neon::i8mm::multiply_columns,
            #[cfg(target_arch = "aarch64")]
            ByteKind::NeonDot => neon::dot::multiply_columns,
            #[cfg(target_arch = "aarch64")]
            ByteKind::Neon => neon::widening::multiply_columns,
            ByteKind::Portable => portable::multiply_columns,
        };
        // SAFETY: `Isa::of` made `w.kernels`, and only where the machine has what its kernels are compiled for.
        #[allow(unsafe_code, reason = "instructions are called that were found to be there")]
        unsafe {
            multiply(w, tiles, columns);
        }
    }
}

/// Fills a tile.
struct Round<'a> {
    x: &'a [f32],
    inputs: usize,
    group: usize,
    /// How many times four inputs of a row lie side by side.
    side: usize,
    tile: &'a mut ByteTile,
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, inputs, group, side, tile: ByteTile { padded, bytes, groups, .. } } = self;
        let (count, padded) = (inputs.div_ceil(group), *padded);
        *bytes = vec![[0; 4]; count * group / 4 * padded];
        *groups = vec![RowGroup::default(); count * padded];
        let mut rounded = vec![0i8; count * group];
        for (index, row) in x.chunks_exact(inputs).enumerate() {
            for (at, (x, to)) in row.chunks(group).zip(rounded.chunks_exact_mut(group)).enumerate() {
                groups[at * padded + index] = round(x, to);
            }
            let fours = rounded.as_chunks::<4>().0;
            if side == 1 {
                bytes[index..].iter_mut().step_by(padded).zip(fours).for_each(|(to, four)| *to = *four);
            } else {
                let places = bytes[index * side..].chunks_mut(side * padded);
                places.zip(fours.chunks_exact(side)).for_each(|(to, fours)| to[..side].copy_from_slice(fours));
            }
        }
    }
}

/// Rounds a group to bytes. A NaN or an infinity makes its scale NaN, and so the results.
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
