//! Products of bf16 with bf16, for machines that multiply small matrices of them: NEON with BF16.
//!
//! `bfmmla` multiplies two rows with two outputs, four inputs of each, and adds the products to four sums in f32. Activations are
//! rounded to bf16, to the nearest and ties to even. Eight outputs of up to twelve rows are computed at a time: 24 vectors of
//! sums, for which ten vectors are loaded with each four inputs.

use std::arch::aarch64::*;
use std::arch::asm;

use amem_core::{Result, f32_to_bf16};
use bytemuck::{Pod, Zeroable};
use pulp::{Simd, WithSimd};

use super::{Columns, PANEL, load_panel, store_panel};
use crate::isa::NeonBf16;
use crate::pages::Pages;
use crate::unroll::MOST_ROWS;
use crate::{Cpu, Tensor};

/// Inputs of a panel that are multiplied at a time, in fours: 32 KiB of it.
const BLOCK_FOURS: usize = 128;

/// Outputs that are computed at a time: four vectors of two.
const STRIP: usize = 8;
/// How many times so many a panel has.
const STRIPS: usize = PANEL / STRIP;

/// Four inputs' weights for each output of a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Weights([[u16; 4]; PANEL]);

impl Weights {
    /// The weights of one output.
    pub(super) fn of(&self, output: usize) -> [f32; 4] {
        self.0[output].map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
}

/// Inputs whose weights lie side by side, for each output.
pub(super) const INTERLEAVED: usize = 4;

/// Some rows of `x`: `[inputs / 4][rows / 2]` times four bf16 of one row and four of the next, which are zeros behind the last.
pub(super) struct RoundedTile {
    rows: usize,
    data: Vec<[[u16; 4]; 2]>,
}

impl Cpu {
    pub(super) fn pack_bf16(&self, (outputs, inputs): (usize, usize), bytes: &[u8]) -> Result<Pages<Weights>> {
        let fours = inputs.div_ceil(INTERLEAVED);
        self.packed(outputs, fours, 1, bytes, |rows: &[[u8; 2]], panel: &mut [Weights]| {
            const PART: usize = 32;
            for start in (0..fours).step_by(PART) {
                let end = fours.min(start + PART);
                for (output, row) in rows.chunks_exact(inputs).enumerate() {
                    let row = &row[INTERLEAVED * start..inputs.min(INTERLEAVED * end)];
                    for (to, four) in panel[start..end].iter_mut().zip(row.chunks(INTERLEAVED)) {
                        to.0[output].iter_mut().zip(four).for_each(|(to, x)| *to = u16::from_le_bytes(*x));
                    }
                }
            }
        })
    }

    /// The rows of `x` in tiles, rounded.
    pub(super) fn bf16_tiles(&self, x: &Tensor) -> Vec<RoundedTile> {
        self.in_tiles(x, MOST_ROWS, |own, rows| {
            let mut tile = RoundedTile { rows, data: Vec::new() };
            self.arch.dispatch(Round { x: own, inputs: x.columns, tile: &mut tile });
            tile
        })
    }
}

/// Fills a tile.
struct Round<'a> {
    x: &'a [f32],
    inputs: usize,
    tile: &'a mut RoundedTile,
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, inputs, tile: RoundedTile { rows, data } } = self;
        let (fours, pairs) = (inputs.div_ceil(INTERLEAVED), rows.div_ceil(2));
        *data = vec![[[0; 4]; 2]; fours * pairs];
        let mut rounded = vec![[0u16; 4]; fours];
        for (index, row) in x.chunks_exact(inputs).enumerate() {
            let to = rounded.as_flattened_mut().iter_mut();
            to.zip(row).for_each(|(to, x)| *to = f32_to_bf16(*x));
            let places = data[index / 2..].iter_mut().step_by(pairs);
            places.zip(&rounded).for_each(|(to, four)| to[index % 2] = *four);
        }
    }
}

impl NeonBf16 {
    /// All rows times some panels.
    pub(super) fn columns(self, w: &Pages<Weights>, tiles: &[RoundedTile], columns: &mut Columns<'_>) {
        // SAFETY: `self` is made only where the machine has NEON and BF16.
        #[allow(unsafe_code)]
        unsafe {
            multiply_columns(w, tiles, columns);
        }
    }
}

#[target_feature(enable = "neon,bf16")]
fn multiply_columns(w: &Pages<Weights>, tiles: &[RoundedTile], columns: &mut Columns<'_>) {
    let Columns { matrix, panel: first, rows, .. } = columns;
    let fours = matrix.inputs.div_ceil(INTERLEAVED);
    let width = rows.first().map_or(0, |row| row.len());
    for start in (0..fours).step_by(BLOCK_FOURS) {
        let end = fours.min(start + BLOCK_FOURS);
        for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
            let block = &w[panel * fours + start..panel * fours + end];
            let mut rest = &mut rows[..];
            for tile in tiles {
                let (rows, others) = rest.split_at_mut(tile.rows);
                rest = others;
                let pairs = tile.rows.div_ceil(2);
                let x = &tile.data[start * pairs..end * pairs];
                let (to, begun) = ((rows, column), start > 0);
                match pairs {
                    1 => multiply::<1, STRIPS>(x, block, to, begun),
                    2 => multiply::<2, 1>(x, block, to, begun),
                    3 => multiply::<3, 1>(x, block, to, begun),
                    4 => multiply::<4, 1>(x, block, to, begun),
                    5 => multiply::<5, 1>(x, block, to, begun),
                    _ => multiply::<{ MOST_ROWS / 2 }, 1>(x, block, to, begun),
                }
            }
        }
    }
}

/// `PAIRS` pairs of rows, of the last of which the second may not be there, and so many strips together. All strips for a single
/// pair: then the panel is read from front to back.
///
/// Not inlined: among others the compiler would not keep all sums in registers.
#[inline(never)]
#[target_feature(enable = "neon,bf16")]
fn multiply<const PAIRS: usize, const TOGETHER: usize>(
    x: &[[[u16; 4]; 2]],
    block: &[Weights],
    (rows, column): (&mut [&mut [f32]], usize),
    begun: bool,
) {
    let mut panel = [[[0f32; PANEL]; 2]; PAIRS];
    if begun {
        panel.as_flattened_mut().iter_mut().zip(&*rows).for_each(|(to, row)| *to = load_panel(row, column));
    }
    let block: &[[[uint16x8_t; STRIP / 2]; STRIPS]] = bytemuck::try_cast_slice::<Weights, _>(block).unwrap_or_default();
    for first in (0..STRIPS).step_by(TOGETHER) {
        // Two outputs of one row, then of the other.
        let mut sums: [[[float32x4_t; STRIP / 2]; PAIRS]; TOGETHER] = std::array::from_fn(|at| {
            std::array::from_fn(|pair| std::array::from_fn(|vector| paired(&panel[pair], place(first + at, vector))))
        });
        for (x, w) in x.as_chunks::<PAIRS>().0.iter().zip(block) {
            for (at, sums) in sums.iter_mut().enumerate() {
                let w = w[(first + at) % STRIPS];
                for (sums, x) in sums.iter_mut().zip(x) {
                    let x: uint16x8_t = bytemuck::cast(*x);
                    for (sums, w) in sums.iter_mut().zip(w) {
                        *sums = multiply_pairs(*sums, x, w);
                    }
                }
            }
        }
        for (at, sums) in sums.into_iter().enumerate() {
            for (panel, sums) in panel.iter_mut().zip(sums) {
                for (vector, sums) in sums.into_iter().enumerate() {
                    let (outputs, sums): (_, [[f32; 2]; 2]) = (place(first + at, vector), bytemuck::cast(sums));
                    panel.iter_mut().zip(sums).for_each(|(row, sums)| row[outputs..outputs + 2].copy_from_slice(&sums));
                }
            }
        }
    }
    panel.as_flattened().iter().zip(rows).for_each(|(panel, row)| store_panel(panel, row, column));
}

/// The first output of a strip's vector.
#[inline(always)]
fn place(strip: usize, vector: usize) -> usize {
    strip % STRIPS * STRIP + 2 * vector
}

/// Two outputs of one row, then of the other.
#[inline(always)]
fn paired([first, second]: &[[f32; PANEL]; 2], output: usize) -> float32x4_t {
    bytemuck::cast([first[output], first[output + 1], second[output], second[output + 1]])
}

/// Adds to each of four sums the products of four bf16: those of two rows with those of two outputs.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn multiply_pairs(mut sums: float32x4_t, x: uint16x8_t, w: uint16x8_t) -> float32x4_t {
    // SAFETY: the instruction is one of those that this function is compiled for, and it changes nothing but `sums`.
    #[allow(unsafe_code)]
    unsafe {
        asm!(
            "bfmmla {sums:v}.4s, {x:v}.8h, {w:v}.8h",
            sums = inout(vreg) sums,
            x = in(vreg) x,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
