//! Weights and the product with them.
//!
//! A matrix is packed into panels of [`PANEL`] outputs, input by input, in the type that the file has. A product takes
//! a panel at a time: a block of it is unpacked to f32 where it must be, stays in cache, and meets the rows of `x` in
//! tiles. Each output adds its products up in the order of the inputs, whatever the tile, so rows do not notice their
//! neighbours.

use amem_core::{Dtype, Error, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

use crate::{Cpu, Tensor};

/// Outputs in a panel.
const PANEL: usize = 32;
/// Inputs of a panel that are multiplied at a time: 32 KiB of it.
const BLOCK: usize = 256;

/// A weight matrix, packed: `[panels][inputs][PANEL]`, the last panel filled up with zeros.
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    weights: Weights,
}

enum Weights {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Matrix {
    pub(crate) fn pack(dtype: Dtype, outputs: usize, inputs: usize, bytes: &[u8]) -> Result<Self> {
        let size = dtype.size();
        let expected = outputs.checked_mul(inputs).and_then(|n| n.checked_mul(size));
        if expected != Some(bytes.len()) || outputs == 0 || inputs == 0 {
            let reason = format!("a matrix of {outputs} × {inputs} numbers does not have {} bytes", bytes.len());
            return Err(Error::BadValue { what: "weights", value: reason, expected: "one number for each entry" });
        }
        let weights = match dtype {
            Dtype::F32 => Weights::F32(panels(outputs, inputs, bytes, f32::from_le_bytes)),
            Dtype::F16 => Weights::F16(panels(outputs, inputs, bytes, f16::from_le_bytes)),
            Dtype::Bf16 => Weights::Bf16(panels(outputs, inputs, bytes, bf16::from_le_bytes)),
            other => {
                let value = format!("{other:?}");
                return Err(Error::BadValue { what: "weights", value, expected: "in F32, F16 or BF16" });
            }
        };
        Ok(Self { outputs, inputs, weights })
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Appends one row, as an embedding table is read. A row that is not there reads as zeros.
    pub(crate) fn read_row(&self, index: usize, row: &mut Vec<f32>) {
        let start = index / PANEL * PANEL * self.inputs + index % PANEL;
        let places = (0..self.inputs).map(|input| start + input * PANEL);
        match &self.weights {
            Weights::F32(w) => row.extend(places.map(|at| w.get(at).copied().unwrap_or_default())),
            Weights::F16(w) => row.extend(places.map(|at| w.get(at).copied().unwrap_or_default().to_f32())),
            Weights::Bf16(w) => row.extend(places.map(|at| w.get(at).copied().unwrap_or_default().to_f32())),
        }
    }

    /// The part of a panel for some inputs, as f32: unpacked into `space` where it must be.
    #[inline(always)]
    fn block<'a>(&'a self, panel: usize, inputs: std::ops::Range<usize>, space: &'a mut [f32]) -> &'a [f32] {
        let start = panel * self.inputs * PANEL;
        let at = start + inputs.start * PANEL..start + inputs.end * PANEL;
        let space = &mut space[..at.len()];
        match &self.weights {
            Weights::F32(w) => return &w[at],
            Weights::F16(w) => w[at].convert_to_f32_slice(space),
            Weights::Bf16(w) => {
                for (x, w) in space.iter_mut().zip(&w[at]) {
                    *x = f32::from_bits(u32::from(w.to_bits()) << 16);
                }
            }
        }
        space
    }
}

fn panels<T: Copy + Default, const SIZE: usize>(
    outputs: usize,
    inputs: usize,
    bytes: &[u8],
    read: impl Fn([u8; SIZE]) -> T,
) -> Vec<T> {
    let mut packed = vec![T::default(); outputs.div_ceil(PANEL) * PANEL * inputs];
    let (numbers, _) = bytes.as_chunks::<SIZE>();
    for (output, row) in numbers.chunks_exact(inputs).enumerate() {
        let start = output / PANEL * PANEL * inputs + output % PANEL;
        for (input, &number) in row.iter().enumerate() {
            packed[start + input * PANEL] = read(number);
        }
    }
    packed
}

impl Cpu {
    /// `x · wᵀ + bias`.
    pub(crate) fn multiply(&self, x: &Tensor, w: &Matrix, bias: Option<&[f32]>) -> Tensor {
        let rows = x.rows();
        if rows == 0 {
            return Tensor { columns: w.outputs, data: Vec::new() };
        }
        let tiles = tiles(self.arch, x, w.inputs);
        let mut products = vec![0f32; rows * w.outputs.div_ceil(PANEL) * PANEL];
        let parts = products.chunks_exact_mut(rows * PANEL).enumerate().collect();
        self.each(parts, rows * w.inputs * w.outputs, |(panel, products)| {
            self.arch.dispatch(PanelProduct { tiles: &tiles, w, panel, products });
        });
        let mut data = vec![0f32; rows * w.outputs];
        for (panel, products) in products.chunks_exact(rows * PANEL).enumerate() {
            let first = panel * PANEL;
            let width = PANEL.min(w.outputs - first);
            for (row, products) in products.chunks_exact(PANEL).enumerate() {
                let y = &mut data[row * w.outputs + first..][..width];
                y.copy_from_slice(&products[..width]);
                if let Some(bias) = bias {
                    y.iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b);
                }
            }
        }
        Tensor { columns: w.outputs, data }
    }
}

/// Some rows of `x`, input by input: `[inputs][rows]`.
pub(crate) struct Tile {
    pub(crate) rows: usize,
    pub(crate) data: Vec<f32>,
}

impl Tile {
    /// A tile of rows that are all `inputs` long.
    pub(crate) fn of<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, inputs: usize) -> Self {
        let count = rows.len();
        let mut data = vec![0f32; count * inputs];
        for (index, row) in rows.enumerate() {
            for (to, &x) in data[index..].iter_mut().step_by(count).zip(row) {
                *to = x;
            }
        }
        Self { rows: count, data }
    }
}

/// How many rows the accumulators of a machine hold: with two vectors each, they must leave registers to spare.
pub(crate) fn tile_rows(arch: Arch) -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            if S::F32_LANES >= 16 { 8 } else { 4 }
        }
    }
    arch.dispatch(Lanes)
}

/// Cuts `count` rows into tiles of `most`, then smaller powers of two.
pub(crate) fn tile_sizes(mut count: usize, most: usize) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let size = [most, 4, 2, 1].into_iter().find(|&size| size <= count)?;
        count -= size;
        Some(size)
    })
}

fn tiles(arch: Arch, x: &Tensor, inputs: usize) -> Vec<Tile> {
    let mut rest = x.data.as_slice();
    tile_sizes(x.rows(), tile_rows(arch))
        .map(|size| {
            let (rows, others) = rest.split_at(size * inputs);
            rest = others;
            Tile::of(rows.chunks_exact(inputs), inputs)
        })
        .collect()
}

/// All rows times one panel.
struct PanelProduct<'a> {
    tiles: &'a [Tile],
    w: &'a Matrix,
    panel: usize,
    /// `[rows][PANEL]`.
    products: &'a mut [f32],
}

impl WithSimd for PanelProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut space = [0f32; BLOCK * PANEL];
        for start in (0..self.w.inputs).step_by(BLOCK) {
            let end = self.w.inputs.min(start + BLOCK);
            let block = self.w.block(self.panel, start..end, &mut space);
            let mut products = &mut *self.products;
            for tile in self.tiles {
                let (y, others) = products.split_at_mut(tile.rows * PANEL);
                products = others;
                let x = &tile.data[start * tile.rows..end * tile.rows];
                match tile.rows {
                    8 => multiply_tile::<S, 8, PANEL>(simd, x, block, PANEL, y, PANEL),
                    4 => multiply_tile::<S, 4, PANEL>(simd, x, block, PANEL, y, PANEL),
                    2 => multiply_tile::<S, 2, PANEL>(simd, x, block, PANEL, y, PANEL),
                    _ => multiply_tile::<S, 1, PANEL>(simd, x, block, PANEL, y, PANEL),
                }
            }
        }
    }
}

/// `y += xᵀ · b` for `x` `[inputs][ROWS]`, `b` `[inputs][b_stride]` and `y` `[ROWS][y_stride]`, of which the first WIDTH
/// columns count. WIDTH is a multiple of 16. The last row of `b` may end after its WIDTH columns.
#[inline(always)]
pub(crate) fn multiply_tile<S: Simd, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    x: &[f32],
    b: &[f32],
    b_stride: usize,
    y: &mut [f32],
    y_stride: usize,
) {
    // Two vectors side by side hide the latency of the multiplications, where WIDTH has room for two.
    let vectors = if WIDTH >= 2 * S::F32_LANES { 2 } else { 1 };
    let width = vectors * S::F32_LANES;
    for column in (0..WIDTH).step_by(width) {
        let (b, y) = (b.get(column..).unwrap_or_default(), &mut y[column..]);
        match vectors {
            2 => multiply_strip::<S, ROWS, 2>(simd, x, b, b_stride, y, y_stride),
            _ => multiply_strip::<S, ROWS, 1>(simd, x, b, b_stride, y, y_stride),
        }
    }
}

#[inline(always)]
fn multiply_strip<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    x: &[f32],
    b: &[f32],
    b_stride: usize,
    y: &mut [f32],
    y_stride: usize,
) {
    let width = VECTORS * S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    for (row, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(S::as_simd_f32s(&y[row * y_stride..][..width]).0);
    }
    let (x, _) = x.as_chunks::<ROWS>();
    for (x, b) in x.iter().zip(b.chunks(b_stride)) {
        let b = &S::as_simd_f32s(&b[..width]).0[..VECTORS];
        for (sums, &x) in sums.iter_mut().zip(x) {
            let x = simd.splat_f32s(x);
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_f32s(x, b, *sum);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        S::as_mut_simd_f32s(&mut y[row * y_stride..][..width]).0.copy_from_slice(sums);
    }
}
