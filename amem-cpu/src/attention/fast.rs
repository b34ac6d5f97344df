//! Attention that never holds the scores of a whole row: block by block, with weights that are relative to the highest
//! score so far (flash attention).
//!
//! A context's slots are cut into parts of [`PART`], wherever a row's own slots lie. A row's sums over each part begin
//! with nothing, and are put together in the order of the parts. So it makes no difference whether one thread goes
//! through all parts of a row or each is another's, and none beside which rows it is computed.

use std::ops::Range;

use amem_core::transformer::{Attention, Row};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use pulp::Arch;

use super::tile::{NOTHING, factor};
use super::walk::{Portable, Walk};
use crate::buffers::Numbers;
use crate::cache::{Cache, Head};
use crate::unroll::MOST_ROWS;
use crate::{Cpu, Plan, Tensor};

/// Slots of a part.
pub(super) const PART: usize = 256;

/// Queries that share the work of making a block ready: as many as that, or fewer where threads would have nothing to do.
const QUERIES: [usize; 3] = [192, 96, 48];

/// Rows on one key head of one context.
pub(super) struct Chunk<'a> {
    pub(super) head: &'a Head,
    pub(super) table: &'a [u32],
    pub(super) kv_head: usize,
    pub(super) head_dim: usize,
    /// Query heads on the key head.
    pub(super) group: usize,
    pub(super) rows: &'a [Row],
    /// The index of the first of them.
    pub(super) first: usize,
}

impl Chunk<'_> {
    pub(super) fn queries(&self) -> usize {
        self.rows.len() * self.group
    }

    /// A query: those of a row stand together.
    pub(super) fn query<'q>(&self, queries: &'q Tensor, index: usize) -> &'q [f32] {
        let (row, head) = (self.first + index / self.group, self.kv_head * self.group + index % self.group);
        &queries.data[row * queries.columns + head * self.head_dim..][..self.head_dim]
    }

    /// The parts that a row sees any of.
    fn parts(&self) -> Range<usize> {
        let seen =
            || self.rows.iter().flat_map(|row| [&row.sees.shared, &row.sees.own]).filter(|range| !range.is_empty());
        let start = seen().map(|range| range.start as usize).min().unwrap_or(0);
        let end = seen().map(|range| range.end as usize).max().unwrap_or(start);
        start / PART..end.div_ceil(PART)
    }
}

/// Where the results of some queries go.
pub(super) enum Results<'a> {
    /// For each row, the sums of its heads: the attention, once all parts are through.
    Rows(Vec<&'a mut [f32]>),
    /// For each part and each query, its sums over the part, its top and its total.
    Parts(&'a mut [f32]),
    /// As [`Parts`](Self::Parts), without the sums.
    Weights(&'a mut [f32]),
    /// For each query its top and total over everything, and the weights of each slot of one part, summed over queries.
    Mass { of: &'a [f32], mass: &'a mut [f32; PART] },
}

impl Cpu {
    /// See [`Backend::attend`](amem_core::transformer::Backend::attend).
    pub(super) fn fast_attention(&self, cache: &Cache, attention: Attention, plan: &Plan, queries: &Tensor) -> Tensor {
        let all = plan.rows.len() * queries.columns / cache.shape.head_dim.max(1);
        let enough = |&queries: &usize| all >= 4 * self.threads.count() * queries;
        let most = QUERIES.into_iter().find(enough).unwrap_or(QUERIES[QUERIES.len() - 1]);
        let (chunks, work) = self.chunks(cache, attention.layer, plan, 0..plan.rows.len(), queries, most);
        let mut attended = self.tensor(queries.rows(), queries.columns);
        let outputs = outputs(&chunks, queries.columns, &mut attended.data);
        if chunks.len() >= 4 * self.threads.count() || chunks.iter().all(|chunk| chunk.parts().len() < 2) {
            self.each(chunks.iter().zip(outputs).collect(), work, |(chunk, rows)| {
                self.walk(chunk, queries, attention, chunk.parts(), Results::Rows(rows));
            });
        } else {
            let width = cache.shape.head_dim + 2;
            let parts = self.each_part(&chunks, width, work, |chunk, parts, sums| {
                self.walk(chunk, queries, attention, parts, Results::Parts(sums));
            });
            for ((chunk, parts), mut rows) in chunks.iter().zip(&parts).zip(outputs) {
                let mut whole = vec![0f32; width];
                for index in 0..chunk.queries() {
                    begin(&mut whole);
                    for part in parts.chunks_exact(chunk.queries() * width) {
                        merge_part(&mut whole, &part[index * width..(index + 1) * width]);
                    }
                    let head = index % chunk.group * chunk.head_dim;
                    finish(&whole, &mut rows[index / chunk.group][head..head + chunk.head_dim]);
                }
            }
        }
        attended
    }

    /// See [`Backend::attention_mass`](amem_core::transformer::Backend::attention_mass). Goes through the keys twice: for
    /// the tops and totals of the weights, and then for the weights.
    pub(super) fn fast_mass(
        &self,
        cache: &Cache,
        attention: Attention,
        plan: &Plan,
        rows: Range<usize>,
        queries: &Tensor,
        mass: &mut Tensor,
    ) {
        // As many on any number of threads, for weights are added up chunk by chunk. Threads share the parts.
        let (chunks, work) = self.chunks(cache, attention.layer, plan, rows, queries, QUERIES[0]);
        let parts = self.each_part(&chunks, 2, work / 2, |chunk, parts, weights| {
            self.walk(chunk, queries, attention, parts, Results::Weights(weights));
        });
        let of_chunk = |(chunk, parts): (&Chunk<'_>, &Numbers)| {
            let mut whole = vec![0f32; 2 * chunk.queries()];
            for (index, whole) in whole.chunks_exact_mut(2).enumerate() {
                begin(whole);
                parts
                    .chunks_exact(2 * chunk.queries())
                    .for_each(|part| merge_part(whole, &part[2 * index..2 * index + 2]));
            }
            whole
        };
        let of: Vec<Vec<f32>> = chunks.iter().zip(&parts).map(of_chunk).collect();
        let masses = mass.data.chunks_mut(PART).enumerate().collect();
        self.each(masses, work / 2, |(part, mass)| {
            let mut sums = [0f32; PART];
            for (chunk, of) in chunks.iter().zip(&of).filter(|(chunk, _)| chunk.parts().contains(&part)) {
                self.walk(chunk, queries, attention, part..part + 1, Results::Mass { of, mass: &mut sums });
            }
            mass.iter_mut().zip(sums).for_each(|(mass, sum)| *mass += sum);
        });
    }

    /// Does something for all parts that chunks see, some at a time. What comes of it are `width` numbers for each query, for
    /// each chunk `[parts][queries][width]`.
    fn each_part(
        &self,
        chunks: &[Chunk<'_>],
        width: usize,
        work: usize,
        task: impl Fn(&Chunk<'_>, Range<usize>, &mut [f32]) + Send + Sync,
    ) -> Vec<Numbers> {
        let numbers = |chunk: &Chunk<'_>| self.buffers.take(chunk.parts().len() * chunk.queries() * width);
        let mut parts: Vec<Numbers> = chunks.iter().map(numbers).collect();
        let mut tasks = Vec::new();
        // A few tasks for each thread, and no more: a thread fetches ahead what its task needs next.
        let all: usize = chunks.iter().map(|chunk| chunk.parts().len()).sum();
        let together = (all / (8 * self.threads.count())).max(1);
        for (chunk, parts) in chunks.iter().zip(&mut parts) {
            let of_chunk = chunk.parts();
            let parts = parts.chunks_mut((together * chunk.queries() * width).max(1));
            for (start, numbers) in of_chunk.clone().step_by(together).zip(parts) {
                tasks.push((chunk, start..of_chunk.end.min(start + together), numbers));
            }
        }
        self.each(tasks, work, |(chunk, parts, numbers)| task(chunk, parts, numbers));
        parts
    }

    /// The queries of some rows, cut into what is computed together, at most so many, and about how many multiplications they
    /// take.
    fn chunks<'a>(
        &self,
        cache: &'a Cache,
        layer: usize,
        plan: &'a Plan,
        rows: Range<usize>,
        queries: &Tensor,
        most: usize,
    ) -> (Vec<Chunk<'a>>, usize) {
        let (shape, mut first) = (cache.shape, rows.start);
        let group = queries.columns / shape.row().max(1);
        let (mut chunks, mut work) = (Vec::new(), 0);
        let rows = plan.rows.get(rows).unwrap_or_default();
        let most = rows_of_chunk(group, most);
        for of_context in rows.chunk_by(|a, b| a.context == b.context) {
            let table = of_context.first().and_then(|row| plan.tables.get(row.context));
            for rows in of_context.chunks(most) {
                for kv_head in 0..shape.kv_heads {
                    let (head, table) = (cache.head(layer, kv_head), table.map(Vec::as_slice).unwrap_or_default());
                    chunks.push(Chunk { head, table, kv_head, head_dim: shape.head_dim, group, rows, first });
                }
                first += rows.len();
            }
        }
        for row in rows {
            work += 2 * (row.sees.shared.len() + row.sees.own.len()) * queries.columns;
        }
        (chunks, work)
    }

    /// Goes through some parts with the best instructions that there are for the cache's numbers.
    fn walk(
        &self,
        chunk: &Chunk<'_>,
        queries: &Tensor,
        attention: Attention,
        parts: Range<usize>,
        output: Results<'_>,
    ) {
        let walk = Walk { chunk, queries, attention, parts, output };
        #[cfg(target_arch = "x86_64")]
        if let Arch::V4(simd) = self.arch {
            return super::walk::walk(simd, self.isa.bf16, walk);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = self.isa.avx2 {
            return super::walk::walk_avx2(avx2, walk);
        }
        #[cfg(target_arch = "aarch64")]
        if let Arch::Neon(simd) = self.arch {
            return super::walk::walk(simd, walk);
        }
        self.arch.dispatch(Portable(walk));
    }
}

/// How many rows are computed together: so many that their queries fill tiles of the largest height as well as can be.
fn rows_of_chunk(group: usize, queries: usize) -> usize {
    let most = (queries / group.max(1)).max(1);
    (1..=most).rev().find(|rows| (rows * group).is_multiple_of(MOST_ROWS)).unwrap_or(most)
}

/// For each chunk, the places of its rows' results.
fn outputs<'d>(chunks: &[Chunk<'_>], columns: usize, data: &'d mut [f32]) -> Vec<Vec<&'d mut [f32]>> {
    let mut rows = data.chunks_exact_mut(columns.max(1));
    let mut outputs = Vec::with_capacity(chunks.len());
    // A chunk for each key head, of the same rows.
    for same in chunks.chunk_by(|a, b| a.first == b.first) {
        let first = outputs.len();
        let (count, width) = same.first().map_or((0, 1), |chunk| (chunk.rows.len(), chunk.group * chunk.head_dim));
        outputs.extend(same.iter().map(|_| Vec::with_capacity(count)));
        for row in rows.by_ref().take(count) {
            for (output, place) in outputs[first..].iter_mut().zip(row.chunks_exact_mut(width.max(1))) {
                output.push(place);
            }
        }
    }
    outputs
}

/// The state of an online softmax over no slots: weighted sums of values, the largest score (`top`), and the sum of weights
/// (`total`).
#[inline(always)]
pub(super) fn begin(whole: &mut [f32]) {
    whole.fill(0.0);
    if let [.., top, _] = whole {
        *top = NOTHING;
    }
}

/// Merges the state of an online softmax over a part, its sums `sums`, largest score `top` and sum of weights `total`, into
/// that of the slots before: the one with the smaller top is scaled down.
#[inline(always)]
pub(super) fn merge(whole: &mut [f32], sums: &[f32], top: f32, total: f32) {
    let Some((whole, [whole_top, whole_total])) = whole.split_last_chunk_mut::<2>() else { return };
    if total == 0.0 {
        return;
    }
    let highest = if top > *whole_top { top } else { *whole_top };
    let [before, now] = [factor(*whole_top, highest), factor(top, highest)];
    for (whole, part) in whole.iter_mut().zip(sums) {
        *whole = *whole * before + part * now;
    }
    *whole_total = *whole_total * before + total * now;
    *whole_top = highest;
}

/// Adds what was merged of one part only.
fn merge_part(whole: &mut [f32], part: &[f32]) {
    if let Some((sums, &[top, total])) = part.split_last_chunk::<2>() {
        merge(whole, sums, top, total);
    }
}

/// The output of attention: the sums over the sum of weights. Zeros for a query that attends to nothing.
#[inline(always)]
pub(super) fn finish(whole: &[f32], mean: &mut [f32]) {
    if let Some((sums, &[_, total])) = whole.split_last_chunk::<2>() {
        let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
        mean.iter_mut().zip(sums).for_each(|(mean, sum)| *mean = sum * factor);
    }
}
