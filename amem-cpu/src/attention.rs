//! Softmax attention over a context's slots.
//!
//! Queries go through in small tiles that share a key head: a tile's scores against blocks of keys, softmax over what
//! each query sees, then the sum of the values. A query's scores are gathered in the order of the slots that it sees
//! before they are summed, so the answer depends on what it sees and not on where that lies, nor on its tile.

use std::ops::Range;

use amem_core::transformer::{Row, Span};
use pulp::{Simd, WithSimd};

use crate::cache::{BLOCK, Cache, Head};
use crate::elementwise::softmax;
use crate::matrix::{Tile, multiply_tile, tile_rows, tile_sizes};
use crate::{Cpu, Tensor};

/// A query: its row and its head.
#[derive(Clone, Copy)]
struct Query {
    row: usize,
    head: usize,
}

/// Some queries on one key head of one context.
struct Task<'a> {
    keys: &'a Head,
    head_dim: usize,
    queries: Vec<Query>,
}

impl Cpu {
    /// See [`Backend::attend`](amem_core::transformer::Backend::attend).
    pub(crate) fn attention(&self, caches: &[&mut Cache], layer: usize, rows: &[Row], queries: &Tensor) -> Tensor {
        let tasks = self.tasks(caches, layer, rows, queries);
        let head_dim = caches.first().map_or(1, |cache| cache.shape.head_dim);
        let work = work(rows, queries);
        let mut sums: Vec<Vec<f32>> = tasks.iter().map(|task| vec![0f32; task.queries.len() * head_dim]).collect();
        self.each(tasks.iter().zip(&mut sums).collect(), work, |(task, sums)| {
            self.arch.dispatch(Attend { task, rows, queries, result: Output::Sums(sums) });
        });
        let mut data = vec![0f32; queries.data.len()];
        for (task, sums) in tasks.iter().zip(&sums) {
            for (query, sum) in task.queries.iter().zip(sums.chunks_exact(head_dim)) {
                data[query.row * queries.columns + query.head * head_dim..][..head_dim].copy_from_slice(sum);
            }
        }
        Tensor { columns: queries.columns, data }
    }

    /// See [`Backend::attention_mass`](amem_core::transformer::Backend::attention_mass).
    pub(crate) fn mass(
        &self,
        caches: &[&mut Cache],
        layer: usize,
        rows: &[Row],
        queries: &Tensor,
        slots: usize,
    ) -> Vec<f32> {
        let tasks = self.tasks(caches, layer, rows, queries);
        // A sum for each run of tasks: enough to keep threads busy, and not one for every token of a long question.
        const SUMS: usize = 64;
        let runs: Vec<&[Task<'_>]> = tasks.chunks(tasks.len().div_ceil(SUMS).max(1)).collect();
        let mut masses = vec![vec![0f32; slots]; runs.len()];
        self.each(runs.into_iter().zip(&mut masses).collect(), work(rows, queries), |(run, mass)| {
            for task in run {
                self.arch.dispatch(Attend { task, rows, queries, result: Output::Mass(mass) });
            }
        });
        let mut total = vec![0f32; slots];
        for mass in &masses {
            total.iter_mut().zip(mass).for_each(|(total, mass)| *total += mass);
        }
        total
    }

    fn tasks<'a>(&self, caches: &'a [&mut Cache], layer: usize, rows: &[Row], queries: &Tensor) -> Vec<Task<'a>> {
        let most = tile_rows(self.arch);
        let mut tasks = Vec::new();
        let mut first = 0;
        for rows in rows.chunk_by(|a, b| a.context == b.context) {
            let Some(cache) = rows.first().and_then(|row| caches.get(row.context)) else { continue };
            let shape = cache.shape;
            let group = queries.columns / shape.row();
            for kv_head in 0..shape.kv_heads {
                let keys = cache.head(layer, kv_head);
                let heads = kv_head * group..(kv_head + 1) * group;
                let all =
                    (first..first + rows.len()).flat_map(|row| heads.clone().map(move |head| Query { row, head }));
                let all: Vec<_> = all.collect();
                let mut rest = all.as_slice();
                for size in tile_sizes(all.len(), most) {
                    let (queries, others) = rest.split_at(size);
                    rest = others;
                    tasks.push(Task { keys, head_dim: shape.head_dim, queries: queries.to_vec() });
                }
            }
            first += rows.len();
        }
        tasks
    }
}

/// About how many multiplications the attention of these rows takes.
fn work(rows: &[Row], queries: &Tensor) -> usize {
    rows.iter().map(|row| (row.sees.head.len() + row.sees.body.len()) * queries.columns).sum()
}

/// One tile: what its queries see, their scores and what becomes of them.
struct Attend<'a> {
    task: &'a Task<'a>,
    rows: &'a [Row],
    queries: &'a Tensor,
    result: Output<'a>,
}

/// What is asked of the attention weights.
enum Output<'a> {
    /// The weighted sums of the values, `[queries][head_dim]`; zeros before.
    Sums(&'a mut [f32]),
    /// The weights themselves, added up over the queries: `[slots]`.
    Mass(&'a mut [f32]),
}

/// A run of slots, the tile's scores there and the weights that come of them.
struct Segment {
    /// From the start of a block.
    slots: Range<usize>,
    /// Slots up to the end of a block: the length of a query's scores.
    stride: usize,
    /// `[queries][stride]`.
    scores: Vec<f32>,
    /// `[slots][queries]`; zero where a query does not see a slot.
    weights: Vec<f32>,
}

impl Segment {
    /// A segment that covers what several queries see.
    fn over<const QUERIES: usize>(seen: [&Range<u32>; QUERIES]) -> Self {
        let seen = || seen.iter().filter(|range| !range.is_empty());
        let start = seen().map(|range| range.start as usize).min().unwrap_or(0) / BLOCK * BLOCK;
        let end = seen().map(|range| range.end as usize).max().unwrap_or(start);
        let stride = (end - start).next_multiple_of(BLOCK);
        Self {
            slots: start..end,
            stride,
            scores: vec![0.0; QUERIES * stride],
            weights: vec![0.0; QUERIES * (end - start)],
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
        match self.task.queries.len() {
            8 => self.tile::<S, 8>(simd),
            4 => self.tile::<S, 4>(simd),
            2 => self.tile::<S, 2>(simd),
            _ => self.tile::<S, 1>(simd),
        }
    }
}

impl Attend<'_> {
    #[inline(always)]
    fn tile<S: Simd, const QUERIES: usize>(self, simd: S) {
        let head_dim = self.task.head_dim;
        let spans: [&Span; QUERIES] = std::array::from_fn(|index| &self.rows[self.task.queries[index].row].sees);
        let mut segments = [Segment::over(spans.map(|span| &span.head)), Segment::over(spans.map(|span| &span.body))];
        let queries = self.scaled_queries();
        for segment in &mut segments {
            let keys = &self.task.keys.keys[segment.slots.start * head_dim..][..segment.stride * head_dim];
            for (block, keys) in keys.chunks_exact(BLOCK * head_dim).enumerate() {
                let scores = &mut segment.scores[block * BLOCK..];
                multiply_tile::<S, QUERIES, BLOCK>(simd, &queries.data, keys, BLOCK, scores, segment.stride);
            }
        }
        let mut seen = Vec::new();
        for (query, span) in spans.iter().enumerate() {
            weigh::<QUERIES>(&mut segments, query, [&span.head, &span.body], &mut seen);
        }
        match self.result {
            Output::Sums(sums) => {
                for Segment { slots, weights, .. } in &segments {
                    let values = &self.task.keys.values[slots.start * head_dim..slots.end * head_dim];
                    add_values::<S, QUERIES>(simd, weights, values, head_dim, sums);
                }
            }
            Output::Mass(mass) => {
                for Segment { slots, weights, .. } in &segments {
                    for (mass, weights) in mass.iter_mut().skip(slots.start).zip(weights.chunks_exact(QUERIES)) {
                        *mass += weights.iter().sum::<f32>();
                    }
                }
            }
        }
    }

    /// The tile's queries, times 1/√head_dim.
    fn scaled_queries(&self) -> Tile {
        let head_dim = self.task.head_dim;
        let query =
            |query: &Query| &self.queries.data[query.row * self.queries.columns + query.head * head_dim..][..head_dim];
        let mut tile = Tile::of(self.task.queries.iter().map(query), head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        tile.data.iter_mut().for_each(|x| *x *= scale);
        tile
    }
}

/// Turns one query's scores into weights: gathers those that it sees in `seen`, takes the softmax, puts them back.
#[inline(always)]
fn weigh<const QUERIES: usize>(segments: &mut [Segment; 2], query: usize, sees: [&Range<u32>; 2], seen: &mut Vec<f32>) {
    seen.clear();
    for (segment, range) in segments.iter().zip(sees) {
        seen.extend_from_slice(&segment.scores[query * segment.stride..][segment.locate(range)]);
    }
    softmax(seen);
    let mut weights = seen.iter();
    for (segment, range) in segments.iter_mut().zip(sees) {
        let at = segment.locate(range);
        let places = segment.weights.iter_mut().skip(at.start * QUERIES + query).step_by(QUERIES);
        places.take(at.len()).zip(&mut weights).for_each(|(to, &weight)| *to = weight);
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
