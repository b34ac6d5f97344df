//! How weights become codes: plain numbers are rounded, and the blocks of GGUF files are taken as they are.

use amem_core::transformer::{WeightTensor, WeightType};
use amem_core::{Result, f16_to_f32};
use pulp::{Simd, WithSimd};

use super::quantized::{GROUP_OF_4_BITS, Group, Layout, Quantized};
use crate::Cpu;

/// Rows that one task looks through for the largest scale.
const ROWS: usize = 64;

impl Layout {
    /// How the blocks of a type are kept. Their codes stay what they are; scales are those of the file, or, where a file has
    /// them in two parts, the product of these as f16.
    pub(super) fn of(weights: WeightType) -> Option<Self> {
        let layout = |group, four_bits, offset, mins| Some(Self { group, four_bits, offset, mins });
        match weights {
            WeightType::Q8_0 => Some(Self::INT8),
            WeightType::Q4_0 => Some(Self::INT4),
            WeightType::Q4_1 | WeightType::Q4K => layout(GROUP_OF_4_BITS, true, 0, true),
            WeightType::Q5_0 => layout(32, false, 16, false),
            WeightType::Q5_1 | WeightType::Q5K => layout(32, false, 0, true),
            WeightType::Q6K => layout(16, false, 32, false),
            _ => None,
        }
    }
}

impl Cpu {
    /// Rounds a matrix to codes.
    pub(super) fn quantize(&self, layout: Layout, tensor: &WeightTensor<'_>) -> Result<Quantized> {
        let (outputs, inputs) = (tensor.rows, tensor.columns);
        let row_bytes = tensor.bytes.len() / outputs;
        let row = |output: usize, numbers: &mut Vec<f32>| {
            numbers.resize(inputs, 0.0);
            tensor.dtype.decode(&tensor.bytes[output * row_bytes..(output + 1) * row_bytes], numbers);
        };
        // The largest magnitude of each output, which bounds its scales.
        let mut tops = vec![0f32; outputs];
        self.each(
            tops.chunks_mut(ROWS).enumerate().collect(),
            outputs * inputs,
            |(part, tops): (usize, &mut [f32])| {
                let mut numbers = Vec::new();
                for (output, top) in (part * ROWS..).zip(tops) {
                    row(output, &mut numbers);
                    *top = self.arch.dispatch(Largest(&numbers));
                }
            },
        );
        let levels = if layout.four_bits { 7.0 } else { 127.0 };
        let largest = tops.into_iter().fold(0.0, f32::max) / levels;
        Quantized::pack(self, layout, (outputs, inputs), largest, |output, groups| {
            let mut numbers = Vec::new();
            row(output, &mut numbers);
            self.arch.dispatch(RoundRow { numbers: &numbers, layout, groups });
        })
    }

    /// Takes over the blocks of a GGUF file.
    pub(super) fn take_blocks(&self, layout: Layout, tensor: &WeightTensor<'_>) -> Result<Quantized> {
        let &WeightTensor { dtype, rows: outputs, columns: inputs, bytes, .. } = tensor;
        let row_bytes = bytes.len() / outputs;
        let mut tops = vec![0f32; outputs.div_ceil(ROWS)];
        let parts = tops.iter_mut().zip(bytes.chunks(ROWS * row_bytes)).collect();
        self.each(parts, outputs * inputs, |(top, bytes): (&mut f32, &[u8])| {
            let blocks = bytes.chunks_exact(dtype.block_bytes());
            *top = blocks.map(|block| largest_scale(dtype, block)).fold(0.0, f32::max);
        });
        let largest = tops.into_iter().fold(0.0, f32::max);
        Quantized::pack(self, layout, (outputs, inputs), largest, |output, groups| {
            let row = &bytes[output * row_bytes..(output + 1) * row_bytes];
            let groups = groups.chunks_exact_mut(dtype.block() / layout.group);
            row.chunks_exact(dtype.block_bytes()).zip(groups).for_each(|(block, groups)| take(dtype, block, groups));
        })
    }
}

/// The f16 at a place of a block.
fn half_at(block: &[u8], at: usize) -> f32 {
    block.get(at..).and_then(<[u8]>::first_chunk).map_or(0.0, |bytes| f16_to_f32(u16::from_le_bytes(*bytes)))
}

/// No scale of a block is larger.
fn largest_scale(dtype: WeightType, block: &[u8]) -> f32 {
    match dtype {
        WeightType::Q4_1 | WeightType::Q5_1 => half_at(block, 0).abs().max(half_at(block, 2).abs()),
        WeightType::Q4K | WeightType::Q5K => 63.0 * half_at(block, 0).abs().max(half_at(block, 2).abs()),
        WeightType::Q6K => 128.0 * half_at(block, 208).abs(),
        _ => half_at(block, 0).abs(),
    }
}

/// The groups of a block. The formats are those of [`WeightType`].
fn take(dtype: WeightType, block: &[u8], groups: &mut [Group<'_>]) {
    match (dtype, groups) {
        (WeightType::Q8_0, [group]) => {
            group.scale = half_at(block, 0);
            group.codes.iter_mut().zip(&block[2..]).for_each(|(code, byte)| *code = byte ^ 0x80);
        }
        (WeightType::Q4_0, [group]) => {
            group.scale = half_at(block, 0);
            take_halves(&block[2..], 0, group.codes);
        }
        (WeightType::Q4_1, [group]) => {
            (group.scale, group.min) = (half_at(block, 0), -half_at(block, 2));
            take_halves(&block[4..], 0, group.codes);
        }
        (WeightType::Q5_0, [group]) => {
            group.scale = half_at(block, 0);
            take_halves(&block[6..], fifth_at(block, 2), group.codes);
        }
        (WeightType::Q5_1, [group]) => {
            (group.scale, group.min) = (half_at(block, 0), -half_at(block, 2));
            take_halves(&block[8..], fifth_at(block, 4), group.codes);
        }
        (WeightType::Q4K | WeightType::Q5K, groups) => {
            let (scale, min) = (half_at(block, 0), half_at(block, 2));
            let (packed, rest) = (&block[4..16], &block[16..]);
            let (fifth, codes) = if dtype == WeightType::Q5K { rest.split_at(32) } else { (&[0; 32][..], rest) };
            for (index, group) in groups.iter_mut().enumerate() {
                // Eight scales and eight minima of six bits; the upper two bits of the last four are with the first four.
                let (scale_bits, min_bits) = match index {
                    0..4 => (packed[index] & 63, packed[index + 4] & 63),
                    _ => (
                        packed[index + 4] & 15 | packed[index - 4] >> 6 << 4,
                        packed[index + 4] >> 4 | packed[index] >> 6 << 4,
                    ),
                };
                (group.scale, group.min) = (scale * f32::from(scale_bits), min * f32::from(min_bits));
                let shift = index % 2 * 4;
                let bytes = codes[index / 2 * 32..].iter().zip(fifth);
                for (code, (byte, fifth)) in group.codes.iter_mut().zip(bytes) {
                    *code = (byte >> shift & 15) | ((fifth >> index & 1) << 4);
                }
            }
        }
        (WeightType::Q6K, groups) => {
            let scale = half_at(block, 208);
            for (index, group) in groups.iter_mut().enumerate() {
                group.scale = scale * f32::from(block[192 + index] as i8);
                for (at, code) in (index * 16..).zip(group.codes.iter_mut()) {
                    // Each half of the block has 64 bytes with lower four bits and 32 bytes with upper two.
                    let (half, at) = (at / 128, at % 128);
                    let (quarter, byte) = (at / 32, at % 32);
                    let low = block[half * 64 + quarter % 2 * 32 + byte] >> (quarter / 2 * 4) & 15;
                    let high = block[128 + half * 32 + byte] >> (2 * quarter) & 3;
                    *code = low | high << 4;
                }
            }
        }
        _ => {}
    }
}

/// The fifth bits of a block's codes.
fn fifth_at(block: &[u8], at: usize) -> u32 {
    block.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Codes whose lower four bits are in the lower halves of bytes, and those of the second half of them in the upper ones.
fn take_halves(bytes: &[u8], fifth: u32, codes: &mut [u8]) {
    let half = codes.len() / 2;
    let (low, high) = codes.split_at_mut(half);
    if fifth == 0 {
        low.iter_mut().zip(bytes).for_each(|(low, byte)| *low = byte & 15);
        high.iter_mut().zip(bytes).for_each(|(high, byte)| *high = byte >> 4);
        return;
    }
    for (index, ((low, high), byte)) in low.iter_mut().zip(high).zip(bytes).enumerate() {
        *low = (byte & 15) | ((fifth >> index & 1) as u8 * 16);
        *high = (byte >> 4) | ((fifth >> (index + half) & 1) as u8 * 16);
    }
}

/// The largest magnitude.
struct Largest<'a>(&'a [f32]);

impl WithSimd for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f32 {
        let mut tops = [0f32; 32];
        let (chunks, rest) = self.0.as_chunks::<32>();
        for chunk in chunks {
            tops.iter_mut().zip(chunk).for_each(|(top, x)| *top = if x.abs() > *top { x.abs() } else { *top });
        }
        tops.iter().copied().chain(rest.iter().map(|x| x.abs())).fold(0.0, f32::max)
    }
}

/// Rounds a row to codes, group by group.
struct RoundRow<'a, 'g> {
    numbers: &'a [f32],
    layout: Layout,
    groups: &'a mut [Group<'g>],
}

impl WithSimd for RoundRow<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { numbers, layout, groups } = self;
        let offset = f32::from(layout.offset);
        for (numbers, group) in numbers.chunks(layout.group).zip(groups) {
            if layout.four_bits {
                group.scale = scale_of_four_bits(numbers);
            } else {
                let top = numbers.iter().fold(0f32, |top, x| if x.abs() > top { x.abs() } else { top });
                group.scale = top / 127.0;
            }
            let most = if layout.four_bits { 15.0 } else { 255.0 };
            let inverse = if group.scale == 0.0 { 0.0 } else { 1.0 / group.scale };
            for (code, x) in group.codes.iter_mut().zip(numbers) {
                // Half to even; a NaN becomes a code all the same.
                *code = (x * inverse + offset).round_ties_even().clamp(0.0, most) as u8;
            }
            // And it makes the scale NaN, as an infinity does, and so the results.
            group.scale += numbers.iter().map(|x| x * 0.0).sum::<f32>();
        }
    }
}

/// The scale by which a group loses least: of some that spread the sixteen codes differently, from -8 to 7 times the scale,
/// the one with the least squared error.
#[inline(always)]
fn scale_of_four_bits(numbers: &[f32]) -> f32 {
    let top = numbers.iter().fold(0f32, |top, &x| if x.abs() > top.abs() { x } else { top });
    if top == 0.0 || !top.is_finite() {
        return 0.0;
    }
    let (mut best, mut least) = (0.0, f32::INFINITY);
    for spread in [-9.0, -8.5, -8.0, -7.5, -7.0, -6.5, 6.5, 7.0, 7.5] {
        let (scale, inverse) = (top / spread, spread / top);
        let error: f32 = numbers
            .iter()
            .map(|x| {
                let rounded = (x * inverse).round_ties_even().clamp(-8.0, 7.0) * scale;
                (x - rounded) * (x - rounded)
            })
            .sum();
        if error < least {
            (best, least) = (scale, error);
        }
    }
    best
}
