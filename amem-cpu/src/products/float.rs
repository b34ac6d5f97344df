//! Products in f32: one source for all instruction sets, and the same bits from all of them.
//!
//! Weights of other types become f32 as they are loaded: a vector of them is multiplied with all rows of a tile at once, so that
//! even for one tile this costs less than going through memory with them.

use bytemuck::Pod;
use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::{Columns, PANEL, Weights, load_panel, store_panel};
use crate::unroll::{MOST_ROWS, each_row, with_rows};
use crate::widening::{Loads, Native, Vector, Wider, prefetch};
use crate::{Cpu, Tensor};

/// Inputs of a panel that are multiplied at a time: at most 32 KiB of it.
const BLOCK_INPUTS: usize = 256;

/// Tiles whose inputs are few enough to be read again for each panel.
const FEW_TILES: usize = 4;

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

impl Cpu {
    /// The rows of `x` in tiles: as many rows in one as a machine has registers for, with two vectors of sums each.
    pub(super) fn tiles(&self, x: &Tensor) -> Vec<Tile> {
        let most = if self.isa.vector_registers() >= 32 { MOST_ROWS } else { MOST_ROWS / 2 };
        self.in_tiles(x, most, |rows, _| Tile::of(rows.chunks_exact(x.columns), x.columns))
    }

    /// All rows times some panels.
    pub(super) fn float_columns(&self, tiles: &[Tile], columns: &mut Columns<'_>) {
        #[cfg(target_arch = "x86_64")]
        if let (Weights::F16(weights), Some(loads)) = (&columns.matrix.weights, self.isa.avx2) {
            return loads.vectorize(PanelProducts { loads, weights, tiles, columns });
        }
        self.arch.dispatch(Products { tiles, columns });
    }
}

/// All rows times some panels, with the instructions that there are.
struct Products<'a, 'b> {
    tiles: &'a [Tile],
    columns: &'a mut Columns<'b>,
}

impl WithSimd for Products<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (loads, Self { tiles, columns }) = (Native(simd), self);
        match &columns.matrix.weights {
            Weights::F32(weights) => PanelProducts { loads, weights, tiles, columns }.call(),
            Weights::F16(weights) => PanelProducts { loads, weights, tiles, columns }.call(),
            Weights::Bf16(weights) => PanelProducts { loads, weights, tiles, columns }.call(),
            // Other kinds have products of their own.
            _ => {}
        }
    }
}

/// All rows times some panels of weights, which `loads` makes f32.
struct PanelProducts<'a, 'b, L, N> {
    loads: L,
    weights: &'a [N],
    tiles: &'a [Tile],
    columns: &'a mut Columns<'b>,
}

impl<L: Loads<N>, N: Pod> NullaryFnOnce for PanelProducts<'_, '_, L, N> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { loads, weights, tiles, columns } = self;
        let Columns { matrix, panel: first, rows, .. } = columns;
        let width = rows.first().map_or(0, |row| row.len());
        // Few rows read weights as they stand in memory. Many take a block of all panels before the next, for then those inputs
        // of all rows stay in a cache.
        let part = if tiles.len() <= FEW_TILES { matrix.inputs } else { BLOCK_INPUTS };
        for from in (0..matrix.inputs).step_by(part.max(1)) {
            let to = matrix.inputs.min(from + part);
            for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
                for start in (from..to).step_by(BLOCK_INPUTS) {
                    let end = to.min(start + BLOCK_INPUTS);
                    let at = |panel: usize, input: usize| (panel * matrix.inputs + input) * PANEL;
                    let block = &weights[at(panel, start)..at(panel, end)];
                    let is_last_panel = column + PANEL >= width;
                    let next = if end < to {
                        at(panel, end)
                    } else if is_last_panel && to < matrix.inputs {
                        at(*first, to)
                    } else {
                        at(panel + 1, from)
                    };
                    let mut ahead = weights.get(next..next + block.len()).unwrap_or(block);
                    let mut rest = &mut rows[..];
                    for tile in tiles {
                        let (rows, others) = rest.split_at_mut(tile.rows);
                        rest = others;
                        let x = &tile.data[start * tile.rows..end * tile.rows];
                        with_rows!(tile.rows, |ROWS| {
                            let mut sums = [[0f32; PANEL]; ROWS];
                            if start > 0 {
                                sums.iter_mut().zip(&*rows).for_each(|(sums, row)| *sums = load_panel(row, column));
                            }
                            add_panel::<L, N, ROWS>(loads, x, [block, ahead], &mut sums);
                            sums.iter().zip(rows).for_each(|(sums, row)| store_panel(sums, row, column));
                        });
                        // The first tile has fetched it.
                        ahead = block;
                    }
                }
            }
        }
    }
}

/// Adds `x`, `[inputs][ROWS]`, times weights, `[inputs][PANEL]`, and has as many others fetched.
#[inline(always)]
fn add_panel<L: Loads<N>, N: Pod, const ROWS: usize>(
    loads: L,
    x: &[f32],
    weights: [&[N]; 2],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    // As many vectors side by side as leave registers for what they are sums of.
    let fits =
        |vectors: usize| vectors * L::Simd::F32_LANES <= PANEL && (ROWS + 1) * vectors + 2 <= L::Simd::REGISTER_COUNT;
    if fits(8) {
        add_strips::<L, N, ROWS, 8>(loads, x, weights, sums);
    } else if fits(4) {
        add_strips::<L, N, ROWS, 4>(loads, x, weights, sums);
    } else if fits(2) {
        add_strips::<L, N, ROWS, 2>(loads, x, weights, sums);
    } else {
        add_strips::<L, N, ROWS, 1>(loads, x, weights, sums);
    }
}

/// The same, with V vectors at a time.
#[inline(always)]
fn add_strips<L: Loads<N>, N: Pod, const ROWS: usize, const V: usize>(
    loads: L,
    x: &[f32],
    [weights, ahead]: [&[N]; 2],
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let (simd, lanes) = (loads.simd(), L::Simd::F32_LANES);
    for first in (0..PANEL).step_by(V * lanes) {
        let mut registers = [[simd.splat_f32s(0.0); V]; MOST_ROWS];
        each_row!(ROW < ROWS, {
            let sums = &sums[ROW][first..];
            each_row!(VECTOR < V, { registers[ROW][VECTOR] = f32::load(simd, &sums[VECTOR * lanes..]) });
        });
        let ((x, _), (weights, _), (ahead, _)) = (x.as_chunks::<ROWS>(), weights.as_chunks(), ahead.as_chunks());
        for ((x, weights), ahead) in x.iter().zip(weights).zip(ahead) {
            let (weights, ahead): (&[N; PANEL], &[N; PANEL]) = (weights, ahead);
            // Every strip does, so that memory is read while strips are multiplied that are in a cache already.
            prefetch(&ahead[first % PANEL]);
            let weights: [Vector<L, N>; V] =
                std::array::from_fn(|vector| loads.load(&weights[(first + vector * lanes) % PANEL..]));
            #[cfg(target_arch = "aarch64")]
            if crate::neon::add_products::<L::Simd, ROWS, V, V>(simd, x, weights, &mut registers) {
                continue;
            }
            each_row!(ROW < ROWS, {
                let x = simd.splat_f32s(x[ROW]);
                each_row!(VECTOR < V, {
                    registers[ROW][VECTOR] = simd.mul_add_f32s(x, weights[VECTOR], registers[ROW][VECTOR]);
                });
            });
        }
        each_row!(ROW < ROWS, {
            let (vectors, _) = L::Simd::as_mut_simd_f32s(&mut sums[ROW][first..]);
            each_row!(VECTOR < V, { vectors[VECTOR] = registers[ROW][VECTOR] });
        });
    }
}
