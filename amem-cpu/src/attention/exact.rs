//! Softmax attention over contexts' slots.
//!
//! Queries that share a key head go through together, in tiles of at most eight: their scores against blocks of keys,
//! softmax over what each query sees, then the sum of the values. A block is widened to f32 once for all tiles of a task.
//! A query's scores are gathered in the order of the slots that it sees before they are summed, so the answer depends on
//! what it sees and not on where that lies, nor on its tile.

use std::ops::Range;

use amem_core::transformer::{Attention, Row, Span};
use pulp::{Simd, WithSimd};

use crate::activation::tanh;
use crate::cache::{BLOCK_TOKENS, Cache, Head, LANES};
use crate::elementwise::softmax;
use crate::lines::Lines;
use crate::number::Element;
use crate::products::Tile;
#[cfg(target_arch = "aarch64")]
use crate::unroll::{MOST_ROWS, each_row};
use crate::{Cpu, Plan, Tensor};

/// Tiles of a task. More of them share the work of widening a block, and leave fewer tasks for threads to share.
const TILES: usize = 4;

/// A query: its row and its head.
#[derive(Clone, Copy)]
struct Query {
    row: usize,
    head: usize,
}

/// Some queries on one key head of one context.
struct Task<'a> {
    keys: &'a Head,
    table: &'a [u32],
    head_dim: usize,
    queries: Vec<Query>,
}

impl Cpu {
    /// See [`Backend::attend`](amem_core::transformer::Backend::attend).
    pub(super) fn exact_attention(&self, cache: &Cache, attention: Attention, plan: &Plan, queries: &Tensor) -> Tensor {
        let head_dim = cache.shape.head_dim;
        // Where nothing has to be widened, small tasks are as good.
        let tiles = if matches!(cache.head(attention.layer, 0), Head::F32(_)) { 1 } else { TILES };
        let most = tiles * if self.isa.vector_registers() >= 32 { 8 } else { 4 };
        let tasks = self.tasks(cache, attention.layer, plan, 0..plan.rows.len(), queries, most);
        let work = work(&plan.rows, queries);
        let mut sums: Vec<Vec<f32>> = tasks.iter().map(|task| vec![0f32; task.queries.len() * head_dim]).collect();
        self.each(tasks.iter().zip(&mut sums).collect(), work, |(task, sums)| {
            self.arch.dispatch(Attend { task, attention, rows: &plan.rows, queries, result: Wanted::Sums(sums) });
        });
        let mut attended = self.tensor(queries.rows(), queries.columns);
        for (task, sums) in tasks.iter().zip(&sums) {
            for (query, sum) in task.queries.iter().zip(sums.chunks_exact(head_dim)) {
                attended.data[query.row * queries.columns + query.head * head_dim..][..head_dim].copy_from_slice(sum);
            }
        }
        attended
    }

    /// See [`Backend::attention_mass`](amem_core::transformer::Backend::attention_mass).
    pub(super) fn exact_mass(
        &self,
        cache: &Cache,
        attention: Attention,
        plan: &Plan,
        rows: Range<usize>,
        queries: &Tensor,
        mass: &mut Tensor,
    ) {
        let asking = plan.rows.get(rows.clone()).unwrap_or_default();
        // Whatever the instructions and threads, for weights are added up task by task.
        const QUERIES: usize = 32;
        let tasks = self.tasks(cache, attention.layer, plan, rows, queries, QUERIES);
        // A sum for each run of tasks: enough to keep threads busy, and not one for every token of a long question.
        const SUMS: usize = 64;
        let runs: Vec<&[Task<'_>]> = tasks.chunks(tasks.len().div_ceil(SUMS).max(1)).collect();
        let mut masses = vec![vec![0f32; mass.data.len()]; runs.len()];
        self.each(runs.into_iter().zip(&mut masses).collect(), work(asking, queries), |(run, mass)| {
            for task in run {
                self.arch.dispatch(Attend { task, attention, rows: &plan.rows, queries, result: Wanted::Mass(mass) });
            }
        });
        for part in &masses {
            mass.data.iter_mut().zip(part).for_each(|(total, mass)| *total += mass);
        }
    }

    fn tasks<'a>(
        &self,
        cache: &'a Cache,
        layer: usize,
        plan: &'a Plan,
        rows: Range<usize>,
        queries: &Tensor,
        most: usize,
    ) -> Vec<Task<'a>> {
        let shape = cache.shape;
        let group = queries.columns / shape.row().max(1);
        let mut tasks = Vec::new();
        let mut first = rows.start;
        for rows in plan.rows.get(rows).unwrap_or_default().chunk_by(|a, b| a.context == b.context) {
            let table = rows.first().and_then(|row| plan.tables.get(row.context)).map(Vec::as_slice);
            for kv_head in 0..shape.kv_heads {
                let (keys, table) = (cache.head(layer, kv_head), table.unwrap_or_default());
                let heads = kv_head * group..(kv_head + 1) * group;
                let all =
                    (first..first + rows.len()).flat_map(|row| heads.clone().map(move |head| Query { row, head }));
                let all: Vec<_> = all.collect();
                let task =
                    |queries: &[Query]| Task { keys, table, head_dim: shape.head_dim, queries: queries.to_vec() };
                tasks.extend(all.chunks(most).map(task));
            }
            first += rows.len();
        }
        tasks
    }
}

/// About how many multiplications the attention of these rows takes.
fn work(rows: &[Row], queries: &Tensor) -> usize {
    rows.iter().map(|row| (row.sees.shared.len() + row.sees.own.len()) * queries.columns).sum()
}

/// One task: what its queries see, their scores and what becomes of them.
struct Attend<'a> {
    task: &'a Task<'a>,
    attention: Attention,
    rows: &'a [Row],
    queries: &'a Tensor,
    result: Wanted<'a>,
}

/// What is asked of the attention weights.
enum Wanted<'a> {
    /// The weighted sums of the values, `[queries][head_dim]`; zeros before.
    Sums(&'a mut [f32]),
    /// The weights themselves, added up over the queries: `[slots]`.
    Mass(&'a mut [f32]),
}

/// Queries that go through the registers together.
struct QueryTile<'a> {
    spans: Vec<&'a Span>,
    /// Times the scale of their scores.
    queries: Tile,
    /// What they see of shared slots and of their own.
    segments: [Segment; 2],
}

/// A run of slots, the tile's scores there and the weights that come of them.
struct Segment {
    /// From the start of a vector of keys.
    slots: Range<usize>,
    /// Slots up to the end of a vector of keys: the length of a query's scores.
    stride: usize,
    /// `[queries][stride]`.
    scores: Vec<f32>,
    /// `[slots][queries]`; zero where a query does not see a slot.
    weights: Vec<f32>,
}

impl Segment {
    /// A segment that covers what several queries see.
    fn over<'r>(seen: impl Iterator<Item = &'r Range<u32>> + Clone) -> Self {
        let queries = seen.clone().count();
        let seen = seen.filter(|range| !range.is_empty());
        let start = seen.clone().map(|range| range.start as usize).min().unwrap_or(0) / LANES * LANES;
        let end = seen.map(|range| range.end as usize).max().unwrap_or(start);
        let stride = (end - start).next_multiple_of(LANES);
        Self {
            slots: start..end,
            stride,
            scores: vec![0.0; queries * stride],
            weights: vec![0.0; queries * (end - start)],
        }
    }

    /// Where a range of slots lies in this segment.
    fn locate(&self, range: &Range<u32>) -> Range<usize> {
        if range.is_empty() {
            0..0
        } else {
            range.start as usize - self.slots.start..range.end as usize - self.slots.start
        }
    }
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.task.keys {
            Head::F32(blocks) => self.run(simd, blocks),
            Head::F16(blocks) => self.run(simd, blocks),
            Head::Bf16(blocks) => self.run(simd, blocks),
        }
    }
}

impl Attend<'_> {
    #[inline(always)]
    fn run<S: Simd, T: Element>(self, simd: S, blocks: &[Lines<T>]) {
        let Self { task, attention, rows, queries, result } = self;
        let head_dim = task.head_dim;
        let mut tiles = tiles((task, attention.scale), rows, queries, if S::REGISTER_COUNT >= 32 { 8 } else { 4 });
        let mut space = vec![0f32; BLOCK_TOKENS * head_dim];
        let block = |slots: usize| task.table.get(slots).and_then(|id| blocks.get(*id as usize));
        for segment in 0..2 {
            for index in covered(&tiles, segment) {
                let Some(keys) = block(index).and_then(|block| block.get(..BLOCK_TOKENS * head_dim)) else { continue };
                let keys = T::widen(simd, keys, &mut space);
                for tile in &mut tiles {
                    tile.score(simd, segment, index, keys, head_dim);
                }
            }
        }
        let mut seen = Vec::new();
        tiles.iter_mut().for_each(|tile| tile.weigh(attention.soft_cap, &mut seen));
        match result {
            Wanted::Sums(sums) => {
                for segment in 0..2 {
                    for index in covered(&tiles, segment) {
                        let values = block(index).and_then(|block| block.get(BLOCK_TOKENS * head_dim..));
                        let Some(values) = values else { continue };
                        let values = T::widen(simd, values, &mut space);
                        let mut sums = &mut *sums;
                        for tile in &tiles {
                            let (own, others) = sums.split_at_mut(tile.spans.len() * head_dim);
                            sums = others;
                            tile.add_values(simd, segment, index, values, head_dim, own);
                        }
                    }
                }
            }
            Wanted::Mass(mass) => {
                // Query by query, so that how many a tile has makes no difference.
                for tile in &tiles {
                    for query in 0..tile.spans.len() {
                        for Segment { slots, weights, .. } in &tile.segments {
                            let weights = weights.iter().skip(query).step_by(tile.spans.len());
                            mass.iter_mut().skip(slots.start).zip(weights).for_each(|(mass, weight)| *mass += weight);
                        }
                    }
                }
            }
        }
    }
}

/// A task's queries, cut into tiles of at most so many.
fn tiles<'a>((task, scale): (&'a Task<'_>, f32), rows: &'a [Row], queries: &Tensor, most: usize) -> Vec<QueryTile<'a>> {
    let mut rest = task.queries.as_slice();
    let tile = |size| {
        let (taken, others) = rest.split_at(size);
        rest = others;
        let spans: Vec<&Span> = taken.iter().map(|query| &rows[query.row].sees).collect();
        let segments =
            [Segment::over(spans.iter().map(|span| &span.shared)), Segment::over(spans.iter().map(|span| &span.own))];
        QueryTile { spans, queries: scaled(taken, queries, task.head_dim, scale), segments }
    };
    tile_sizes(task.queries.len(), most).map(tile).collect()
}

/// Cuts `count` rows into tiles of `most`, then smaller powers of two.
fn tile_sizes(mut count: usize, most: usize) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let size = [most, 4, 2, 1].into_iter().find(|&size| size <= count)?;
        count -= size;
        Some(size)
    })
}

/// Queries, times the scale of their scores.
fn scaled(taken: &[Query], queries: &Tensor, head_dim: usize, scale: f32) -> Tile {
    let query = |query: &Query| &queries.data[query.row * queries.columns + query.head * head_dim..][..head_dim];
    let mut tile = Tile::of(taken.iter().map(query), head_dim);
    tile.data.iter_mut().for_each(|x| *x *= scale);
    tile
}

/// The blocks that a segment of any tile reaches into.
fn covered(tiles: &[QueryTile<'_>], segment: usize) -> Range<usize> {
    let slots = || tiles.iter().map(|tile| &tile.segments[segment].slots).filter(|slots| !slots.is_empty());
    let start = slots().map(|slots| slots.start).min().unwrap_or(0);
    let end = slots().map(|slots| slots.end).max().unwrap_or(start);
    start / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS)
}

impl QueryTile<'_> {
    /// The scores against one block of keys.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, segment: usize, block: usize, keys: &[f32], head_dim: usize) {
        let Segment { slots, stride, scores, .. } = &mut self.segments[segment];
        let first = block * BLOCK_TOKENS;
        for (slot, keys) in (first..).step_by(LANES).zip(keys.chunks_exact(LANES * head_dim)) {
            if slot < slots.start || slot >= slots.start + *stride {
                continue;
            }
            let (x, y) = (&self.queries.data, &mut scores[slot - slots.start..]);
            match self.queries.rows {
                8 => multiply_tile::<S, 8, LANES>(simd, x, keys, LANES, y, *stride),
                4 => multiply_tile::<S, 4, LANES>(simd, x, keys, LANES, y, *stride),
                2 => multiply_tile::<S, 2, LANES>(simd, x, keys, LANES, y, *stride),
                _ => multiply_tile::<S, 1, LANES>(simd, x, keys, LANES, y, *stride),
            }
        }
    }

    /// Turns each query's scores into weights: gathers those that it sees in `seen`, caps them, takes the softmax, puts
    /// them back.
    #[inline(always)]
    fn weigh(&mut self, soft_cap: Option<f32>, seen: &mut Vec<f32>) {
        let queries = self.spans.len();
        for (query, span) in self.spans.iter().enumerate() {
            let sees = [&span.shared, &span.own];
            seen.clear();
            for (segment, range) in self.segments.iter().zip(sees) {
                seen.extend_from_slice(&segment.scores[query * segment.stride..][segment.locate(range)]);
            }
            if let Some(cap) = soft_cap {
                seen.iter_mut().for_each(|score| *score = cap * tanh(*score / cap));
            }
            softmax(seen);
            let mut weights = seen.iter();
            for (segment, range) in self.segments.iter_mut().zip(sees) {
                let at = segment.locate(range);
                let places = segment.weights.iter_mut().skip(at.start * queries + query).step_by(queries);
                places.take(at.len()).zip(&mut weights).for_each(|(to, &weight)| *to = weight);
            }
        }
    }

    /// Adds what one block of values contributes.
    #[inline(always)]
    fn add_values<S: Simd>(
        &self,
        simd: S,
        segment: usize,
        block: usize,
        values: &[f32],
        head_dim: usize,
        sums: &mut [f32],
    ) {
        let Segment { slots, weights, .. } = &self.segments[segment];
        let first = block * BLOCK_TOKENS;
        let (start, end) = (slots.start.max(first), slots.end.min(first + BLOCK_TOKENS));
        if start >= end {
            return;
        }
        let queries = self.spans.len();
        let weights = &weights[(start - slots.start) * queries..(end - slots.start) * queries];
        let values = &values[(start - first) * head_dim..(end - first) * head_dim];
        match queries {
            8 => add_values::<S, 8>(simd, weights, values, head_dim, sums),
            4 => add_values::<S, 4>(simd, weights, values, head_dim, sums),
            2 => add_values::<S, 2>(simd, weights, values, head_dim, sums),
            _ => add_values::<S, 1>(simd, weights, values, head_dim, sums),
        }
    }
}

/// `sums += weightsᵀ · values`, sixteen columns at a time and then those that are left.
#[inline(always)]
fn add_values<S: Simd, const QUERIES: usize>(
    simd: S,
    weights: &[f32],
    values: &[f32],
    head_dim: usize,
    sums: &mut [f32],
) {
    const WIDTH: usize = 16;
    let whole = head_dim / WIDTH * WIDTH;
    for column in (0..whole).step_by(WIDTH) {
        let values = values.get(column..).unwrap_or_default();
        multiply_tile::<S, QUERIES, WIDTH>(simd, weights, values, head_dim, &mut sums[column..], head_dim);
    }
    for (weights, values) in weights.chunks_exact(QUERIES).zip(values.chunks_exact(head_dim)) {
        for (query, &weight) in weights.iter().enumerate() {
            for column in whole..head_dim {
                let sum = &mut sums[query * head_dim + column];
                *sum = weight.mul_add(values[column], *sum);
            }
        }
    }
}

/// `y += xᵀ · b` for `x` `[inputs][ROWS]`, `b` `[inputs][b_stride]` and `y` `[ROWS][y_stride]`, of which the first WIDTH
/// columns count. WIDTH is a multiple of 16. The last row of `b` may end after its WIDTH columns.
#[inline(always)]
fn multiply_tile<S: Simd, const ROWS: usize, const WIDTH: usize>(
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
            crate::neon::add_products::<S, ROWS, VECTORS, 2>(simd, x, [b[0], b[VECTORS - 1]], &mut registers);
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
