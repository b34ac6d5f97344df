//! Products of bf16 with bf16, for machines that multiply them in pairs: AVX-512 BF16.
//!
//! `vdpbf16ps` adds the products of two inputs to an f32 at a time. Activations are rounded to bf16, to the nearest and ties to
//! even. The floor: a core of Zen 5 issues two of them per cycle, 64 multiplications and additions each.

use std::arch::x86_64::{__m512bh, _mm512_dpbf16_ps, _mm512_set1_epi32, _mm512_setzero_ps};

use amem_core::{Result, f32_to_bf16};
use bytemuck::{Pod, Zeroable};
use pulp::{Simd, WithSimd};

use super::transpose::Pairs;
use super::{Columns, PANEL, load_panel, store_panel};
use crate::isa::Avx512Bf16;
use crate::pages::Pages;
use crate::unroll::{MOST_ROWS, with_rows};
use crate::{Cpu, Tensor};

/// Pairs of inputs of a panel that are multiplied at a time: 32 KiB of it.
const BLOCK_PAIRS: usize = 256;

/// Two inputs' weights for each output of a panel: the first in the lower half.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Weights([u32; PANEL]);

impl Weights {
    /// The weights of one output.
    pub(super) fn of(&self, output: usize) -> [f32; 2] {
        [self.0[output] << 16, self.0[output] & 0xffff_0000].map(f32::from_bits)
    }
}

/// Inputs whose weights lie side by side, for each output.
pub(super) const INTERLEAVED: usize = 2;

/// Some rows of `x`: `[inputs / 2][rows]` pairs of bf16, the first in the lower half.
pub(super) struct RoundedTile {
    rows: usize,
    data: Vec<u32>,
}

impl Cpu {
    pub(super) fn pack_bf16(&self, (outputs, inputs): (usize, usize), bytes: &[u8]) -> Result<Pages<Weights>> {
        let pairs = inputs.div_ceil(2);
        self.packed(outputs, pairs, 1, bytes, |rows: &[[u8; 2]], panel: &mut [Weights]| {
            if inputs % 2 == 0 {
                let (rows, panel) = (bytemuck::cast_slice(rows), bytemuck::cast_slice_mut(panel));
                return self.arch.dispatch(Pairs { rows, inputs: pairs, panel });
            }
            for (output, row) in rows.chunks_exact(inputs).enumerate() {
                for (to, pair) in panel.iter_mut().zip(row.chunks(2)) {
                    let [low, high] = [pair.first(), pair.get(1)].map(|x| x.copied().unwrap_or_default());
                    to.0[output] = u32::from(u16::from_le_bytes(low)) | u32::from(u16::from_le_bytes(high)) << 16;
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
        *data = vec![0; inputs.div_ceil(2) * *rows];
        let mut rounded = vec![0u32; inputs.div_ceil(2)];
        for (index, row) in x.chunks_exact(inputs).enumerate() {
            let (pairs, last) = row.as_chunks::<2>();
            for (to, [low, high]) in rounded.iter_mut().zip(pairs) {
                *to = u32::from(f32_to_bf16(*low)) | u32::from(f32_to_bf16(*high)) << 16;
            }
            if let ([last], Some(to)) = (last, rounded.last_mut()) {
                *to = u32::from(f32_to_bf16(*last));
            }
            if *rows == 1 {
                return data.copy_from_slice(&rounded);
            }
            data[index..].iter_mut().step_by(*rows).zip(&rounded).for_each(|(to, pair)| *to = *pair);
        }
    }
}

impl Avx512Bf16 {
    /// All rows times some panels.
    pub(super) fn columns(self, w: &Pages<Weights>, tiles: &[RoundedTile], columns: &mut Columns<'_>) {
        // SAFETY: `self` is made only where the machine has AVX-512 F, BW, CD, DQ, VL and BF16.
        #[allow(unsafe_code)]
        unsafe {
            multiply_columns(w, tiles, columns);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
fn multiply_columns(w: &Pages<Weights>, tiles: &[RoundedTile], columns: &mut Columns<'_>) {
    let Columns { matrix, panel: first, rows, .. } = columns;
    let pairs = matrix.inputs.div_ceil(2);
    let width = rows.first().map_or(0, |row| row.len());
    for start in (0..pairs).step_by(BLOCK_PAIRS) {
        let end = pairs.min(start + BLOCK_PAIRS);
        for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
            let block = &w[panel * pairs + start..panel * pairs + end];
            let mut rest = &mut rows[..];
            for tile in tiles {
                let (rows, others) = rest.split_at_mut(tile.rows);
                rest = others;
                let x = &tile.data[start * tile.rows..end * tile.rows];
                with_rows!(tile.rows, |ROWS| multiply::<ROWS>(x, block, (rows, column), start > 0));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
fn multiply<const ROWS: usize>(x: &[u32], block: &[Weights], (rows, column): (&mut [&mut [f32]], usize), begun: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    if begun {
        sums.iter_mut().zip(&*rows).for_each(|(sums, row)| *sums = bytemuck::cast(load_panel(row, column)));
    }
    for (x, w) in x.as_chunks::<ROWS>().0.iter().zip(block) {
        let [low, high]: [__m512bh; 2] = bytemuck::cast(w.0);
        for (sums, &x) in sums.iter_mut().zip(x) {
            let x: __m512bh = bytemuck::cast(_mm512_set1_epi32(x as i32));
            sums[0] = _mm512_dpbf16_ps(sums[0], low, x);
            sums[1] = _mm512_dpbf16_ps(sums[1], high, x);
        }
    }
    sums.iter().zip(rows).for_each(|(sums, row)| store_panel(&bytemuck::cast(*sums), row, column));
}
