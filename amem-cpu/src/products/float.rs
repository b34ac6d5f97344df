//! Products in f32: one source for all instruction sets, and the same bits from all of them.

use pulp::{Arch, Simd, WithSimd};

use crate::number::Element;

#[cfg(target_arch = "aarch64")]
use crate::unroll::each_row;

use super::{
    Columns, MOST_ROWS, Matrix, PANEL, Weights, load_columns, load_panel, store_columns, store_panel, with_rows,
};
use crate::{Cpu, Tensor};

/// Inputs of a panel that are multiplied at a time: 32 KiB of it.
pub(super) const BLOCK: usize = 256;

impl Matrix {
    /// The part of a panel for some inputs, as f32: unpacked into `space` where it must be.
    #[inline(always)]
    fn block<'a, S: Simd>(
        &'a self,
        simd: S,
        panel: usize,
        inputs: std::ops::Range<usize>,
        space: &'a mut [f32],
    ) -> &'a [f32] {
        let start = panel * self.inputs * PANEL;
        let at = start + inputs.start * PANEL..start + inputs.end * PANEL;
        match &self.weights {
            Weights::F32(w) => &w[at],
            Weights::F16(w) => Element::widen(simd, &w[at], space),
            Weights::Bf16(w) => Element::widen(simd, &w[at], space),
            // Other kinds have products of their own.
            _ => &[],
        }
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
            if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
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

impl Cpu {
    /// The rows of `x` in tiles.
    pub(super) fn tiles(&self, x: &Tensor) -> Vec<Tile> {
        let most = if tile_rows(self.arch) == 8 { MOST_ROWS } else { MOST_ROWS / 2 };
        self.in_tiles(x, most, |rows, _| Tile::of(rows.chunks_exact(x.columns), x.columns))
    }

    /// All rows times some panels.
    pub(super) fn float_columns(&self, weights: &Weights, tiles: &[Tile], columns: &mut Columns<'_>) {
        #[cfg(target_arch = "x86_64")]
        if let (Weights::F16(w), Some(isa), [tile]) = (weights, self.isa.f16, tiles)
            && tile.rows <= FEW_ROWS
        {
            return isa.few_rows(w, tile, columns);
        }
        let _ = weights;
        self.arch.dispatch(PanelProducts { tiles, columns });
    }
}

/// All rows times some panels.
struct PanelProducts<'a, 'b> {
    tiles: &'a [Tile],
    columns: &'a mut Columns<'b>,
}

impl WithSimd for PanelProducts<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if let [tile] = self.tiles
            && tile.rows <= FEW_ROWS
        {
            return match &self.columns.matrix.weights {
                Weights::F16(w) => few_rows(simd, w, tile, self.columns),
                Weights::Bf16(w) => few_rows(simd, w, tile, self.columns),
                Weights::F32(w) => few_rows(simd, w, tile, self.columns),
                _ => {}
            };
        }
        let Columns { matrix, panel: first, rows, .. } = self.columns;
        let mut space = [0f32; BLOCK * PANEL];
        let width = rows.first().map_or(0, |row| row.len());
        for start in (0..matrix.inputs).step_by(BLOCK) {
            let end = matrix.inputs.min(start + BLOCK);
            for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
                let block = matrix.block(simd, panel, start..end, &mut space);
                let mut rest = &mut rows[..];
                for tile in self.tiles {
                    let (rows, others) = rest.split_at_mut(tile.rows);
                    rest = others;
                    let x = &tile.data[start * tile.rows..end * tile.rows];
                    with_rows!(tile.rows, |ROWS| multiply::<S, ROWS>(simd, x, block, (rows, column), start > 0));
                }
            }
        }
    }
}

/// So few rows that unpacking weights on the way to the product costs less than going through memory with them.
const FEW_ROWS: usize = 4;

#[inline(always)]
fn few_rows<S: Simd, T: Element>(simd: S, w: &[T], tile: &Tile, columns: &mut Columns<'_>) {
    match tile.rows {
        1 => stream::<S, T, 1>(simd, w, &tile.data, columns),
        2 => stream::<S, T, 2>(simd, w, &tile.data, columns),
        3 => stream::<S, T, 3>(simd, w, &tile.data, columns),
        _ => stream::<S, T, FEW_ROWS>(simd, w, &tile.data, columns),
    }
}

#[inline(always)]
fn stream<S: Simd, T: Element, const ROWS: usize>(simd: S, w: &[T], x: &[f32], columns: &mut Columns<'_>) {
    const HALF: usize = PANEL / 2;
    let Columns { matrix, panel: first, rows, .. } = columns;
    let width = rows.first().map_or(0, |row| row.len());
    for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
        let w = &w[panel * matrix.inputs * PANEL..(panel + 1) * matrix.inputs * PANEL];
        if 2 * ROWS * PANEL <= S::REGISTER_COUNT * S::F32_LANES {
            add_columns::<S, T, ROWS, PANEL>(simd, x, w, rows, (column, 0), false);
            continue;
        }
        // The sums of a whole panel would not leave registers for anything else. What is read a second time is in a cache.
        for (at, (x, w)) in x.chunks(BLOCK * ROWS).zip(w.chunks(BLOCK * PANEL)).enumerate() {
            for half in [0, HALF] {
                add_columns::<S, T, ROWS, HALF>(simd, x, w, rows, (column, half), at > 0);
            }
        }
    }
}

/// Adds the products of some columns of a panel.
#[inline(always)]
fn add_columns<S: Simd, T: Element, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    x: &[f32],
    w: &[T],
    rows: &mut [&mut [f32]],
    (column, first): (usize, usize),
    begun: bool,
) {
    let mut sums = [[0f32; WIDTH]; ROWS];
    if begun {
        sums.iter_mut().zip(&*rows).for_each(|(sums, row)| *sums = load_columns(row, column + first));
    }
    for (x, w) in x.as_chunks::<ROWS>().0.iter().zip(w.as_chunks::<PANEL>().0) {
        let mut space = [0f32; WIDTH];
        let w: &[f32] = T::widen(simd, &w.as_chunks::<WIDTH>().0[first / WIDTH], &mut space);
        for (sums, x) in sums.iter_mut().zip(x) {
            sums.iter_mut().zip(w).for_each(|(sum, w)| *sum = x.mul_add(*w, *sum));
        }
    }
    sums.iter().zip(rows).for_each(|(sums, row)| store_columns(sums, row, column + first));
}

#[inline(always)]
fn multiply<S: Simd, const ROWS: usize>(
    simd: S,
    x: &[f32],
    block: &[f32],
    (rows, column): (&mut [&mut [f32]], usize),
    begun: bool,
) {
    let mut sums = [[0f32; PANEL]; ROWS];
    if begun {
        sums.iter_mut().zip(&*rows).for_each(|(sums, row)| *sums = load_panel(row, column));
    }
    multiply_tile::<S, ROWS, PANEL>(simd, x, block, PANEL, sums.as_flattened_mut(), PANEL);
    sums.iter().zip(rows).for_each(|(sums, row)| store_panel(sums, row, column));
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
    #[cfg(target_arch = "aarch64")]
    if crate::number::neon(simd).is_some() {
        let mut registers = [[simd.splat_f32s(0.0); 2]; MOST_ROWS];
        each_row!(ROW < ROWS, { registers[ROW][..VECTORS].copy_from_slice(&sums[ROW]) });
        for (x, b) in x.iter().zip(b.chunks(b_stride)) {
            let b = S::as_simd_f32s(&b[..width]).0;
            crate::neon::add_products::<S, ROWS, VECTORS>(simd, x, [b[0], b[VECTORS - 1]], &mut registers);
        }
        each_row!(ROW < ROWS, {
            S::as_mut_simd_f32s(&mut y[ROW * y_stride..][..width]).0.copy_from_slice(&registers[ROW][..VECTORS]);
        });
        return;
    }
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
