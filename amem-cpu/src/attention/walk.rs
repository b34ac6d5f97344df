//! The way through some parts of a context: which tiles see what of each block.

use std::cell::Cell;
use std::ops::{Deref, Range};

use amem_core::transformer::{Attention, Row};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};

use super::fast::{Chunk, PART, Results, begin, finish, merge};
use super::ready::{CacheReader, Plain};
use super::tile::{HEIGHTS, Kernels, NOTHING, Step, Values, Work, query_factor};
use crate::Tensor;
use crate::cache::{BLOCK_TOKENS, Head, LANES};
use crate::elementwise::total_of;
use crate::lines::Lines;
use crate::products::tile_heights;
use crate::unroll::MOST_ROWS;

/// Blocks of a part.
const PART_BLOCKS: usize = PART / BLOCK_TOKENS;

/// What is done with one chunk.
pub(super) struct Walk<'a> {
    pub(super) chunk: &'a Chunk<'a>,
    pub(super) queries: &'a Tensor,
    pub(super) attention: Attention,
    pub(super) parts: Range<usize>,
    pub(super) output: Results<'a>,
}

pub(super) struct Portable<'a>(pub(super) Walk<'a>);

impl WithSimd for Portable<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.0.chunk.head {
            Head::F32(blocks) => self.0.run(Plain::<S, f32>::new(simd), blocks),
            Head::F16(blocks) => self.0.run(Plain::<S, f16>::new(simd), blocks),
            Head::Bf16(blocks) => self.0.run(Plain::<S, bf16>::new(simd), blocks),
        }
    }
}

/// Queries that go through the registers together.
struct QueryTile {
    height: usize,
    /// The first query, and how many there are: at most the height.
    first: usize,
    count: usize,
    /// What any of them sees of shared slots, and of their own.
    shared: Range<u32>,
    own: Range<u32>,
    /// What all of them see.
    common: Range<u32>,
}

/// Memory of a thread, which it uses again.
#[derive(Default)]
struct Space {
    numbers: Vec<f32>,
    tiles: Vec<QueryTile>,
}

impl Space {
    /// More than this is given back: no head that is known needs as much.
    const KEPT: usize = 1 << 20;

    /// This thread's memory, as it was left.
    fn take() -> Self {
        SPACE.take()
    }

    fn give_back(self) {
        if self.numbers.capacity() <= Self::KEPT {
            SPACE.set(self);
        }
    }
}

thread_local! {
    static SPACE: Cell<Space> = Cell::default();
}

/// Takes so many numbers off the front, in whole cache lines.
fn take<'s>(space: &mut &'s mut [f32], count: usize) -> &'s mut [f32] {
    let (taken, rest) = std::mem::take(space).split_at_mut(count.next_multiple_of(LANES));
    *space = rest;
    &mut taken[..count]
}

/// What is known of a tile's queries so far.
struct State<'s> {
    queries: &'s mut [f32],
    tops: &'s mut [f32],
    totals: &'s mut [f32],
    sums: &'s mut [f32],
}

impl Walk<'_> {
    #[inline(always)]
    fn run<R: CacheReader>(self, reader: R, blocks: &[Lines<R::Stored>]) {
        let mut space = Space::take();
        self.run_in(reader, blocks, &mut space);
        space.give_back();
    }

    #[inline(always)]
    fn run_in<R: CacheReader>(self, reader: R, blocks: &[Lines<R::Stored>], space: &mut Space) {
        let Self { chunk, queries, attention, parts, mut output } = self;
        let (head_dim, width) = (chunk.head_dim, chunk.head_dim.next_multiple_of(LANES));
        let Space { numbers, tiles } = space;
        tiles_of::<<R::Ready as Kernels>::Simd>(chunk, tiles);
        let height: usize = tiles.iter().map(|tile| tile.height).sum();
        let of_block = width * BLOCK_TOKENS;
        let results = chunk.queries() * (head_dim + 2);
        let needed = height * (head_dim + width + LANES)
            + 2 * of_block
            + results
            + MOST_ROWS * BLOCK_TOKENS
            + LANES * (5 * tiles.len() + 4);
        if numbers.len() < needed {
            numbers.resize(needed, 0.0);
        }
        // Vectors that cross no border of cache lines.
        let start = numbers.as_ptr().align_offset(size_of::<[f32; LANES]>()).min(LANES);
        let mut rest = &mut numbers[start..];
        let [keys_space, values_space, results] = [of_block, of_block, results].map(|count| take(&mut rest, count));
        let scores = take(&mut rest, MOST_ROWS * BLOCK_TOKENS).as_chunks_mut().0;
        let factor = query_factor(&attention);
        let mut states: Vec<State<'_>> = Vec::with_capacity(tiles.len());
        for tile in &*tiles {
            let tile_queries = take(&mut rest, tile.height * head_dim);
            if tile.count < tile.height {
                tile_queries.fill(0.0);
            }
            for place in 0..tile.count {
                let query = chunk.query(queries, tile.first + place);
                R::put_query(query, factor, place, tile.height, tile_queries);
            }
            let [tops, totals, sums] =
                [tile.height, tile.height * LANES, tile.height * width].map(|count| take(&mut rest, count));
            states.push(State { queries: tile_queries, tops, totals, sums });
        }
        results.chunks_exact_mut(head_dim + 2).for_each(begin);

        for part in parts {
            for (tile, State { tops, totals, sums, .. }) in tiles.iter().zip(&mut states) {
                match &output {
                    Results::Mass { of, .. } => {
                        tops.fill(0.0);
                        totals.fill(0.0);
                        let of = of.chunks_exact(2).skip(tile.first).take(tile.count);
                        for ((top, factor), of) in tops.iter_mut().zip(totals.iter_mut()).zip(of) {
                            *top = of[0];
                            *factor = if of[1] == 0.0 { 0.0 } else { 1.0 / of[1] };
                        }
                    }
                    _ => {
                        tops.fill(NOTHING);
                        totals.fill(0.0);
                        sums.fill(0.0);
                    }
                }
            }
            for index in part * PART_BLOCKS..(part + 1) * PART_BLOCKS {
                let first = index * BLOCK_TOKENS;
                // The slots of the block that any query sees.
                let seen = tiles.iter().fold(0, |seen, tile| seen | tile.seen(first));
                let (Some(block), true) = (block(blocks, chunk.table, index), seen != 0) else { continue };
                let (keys, values) = block.split_at(BLOCK_TOKENS * head_dim);
                let of_block = Block { chunk, tiles, first, width, cap: attention.soft_cap };
                let direct = if tiles.len() <= 2 && width == head_dim { reader.direct(block) } else { None };
                if let Some((kernels, numbers)) = direct {
                    let next = self::block(blocks, chunk.table, index + 1).and_then(|block| reader.direct(block));
                    let ahead = next.map_or(numbers, |(_, numbers)| numbers).split_at(BLOCK_TOKENS * head_dim);
                    let (keys, values) = numbers.split_at(BLOCK_TOKENS * head_dim);
                    let values = Values { numbers: values, ahead: ahead.1, stride: head_dim };
                    of_block.run(kernels, [keys, ahead.0], values, &mut states, scores, &mut output);
                } else {
                    let slots = seen.trailing_zeros() as usize..BLOCK_TOKENS - seen.leading_zeros() as usize;
                    let groups = slots.start / LANES..slots.end.div_ceil(LANES);
                    let keys = reader.ready_keys(keys, head_dim, groups, keys_space);
                    let values = match output {
                        Results::Rows(_) | Results::Parts(_) => {
                            reader.ready_values(values, head_dim, width, slots, values_space)
                        }
                        _ => Values { numbers: &[], ahead: &[], stride: width },
                    };
                    of_block.run(reader.ready(), [keys, &[]], values, &mut states, scores, &mut output);
                }
            }
            match &output {
                Results::Mass { .. } => continue,
                Results::Parts(_) | Results::Weights(_) => results.chunks_exact_mut(head_dim + 2).for_each(begin),
                Results::Rows(_) => {}
            }
            for (tile, State { tops, totals, sums, .. }) in tiles.iter().zip(&mut states) {
                let results = results.chunks_exact_mut(head_dim + 2).skip(tile.first).take(tile.count);
                let of_queries = tops.iter().zip(totals.as_chunks::<LANES>().0).zip(sums.chunks_exact_mut(width));
                for (result, ((&top, &totals), sums)) in results.zip(of_queries) {
                    merge(result, &sums[..head_dim], top, total_of(totals));
                }
            }
            match &mut output {
                Results::Parts(parts) => {
                    let (part, rest) = std::mem::take(parts).split_at_mut(results.len());
                    part.copy_from_slice(results);
                    *parts = rest;
                }
                Results::Weights(weights) => {
                    let (part, rest) = std::mem::take(weights).split_at_mut(2 * chunk.queries());
                    let results = results.chunks_exact(head_dim + 2);
                    part.chunks_exact_mut(2)
                        .zip(results)
                        .for_each(|(part, result)| part.copy_from_slice(&result[head_dim..]));
                    *weights = rest;
                }
                _ => {}
            }
        }
        if let Results::Rows(mut rows) = output {
            for (index, result) in results.chunks_exact(head_dim + 2).enumerate() {
                let head = index % chunk.group * head_dim;
                finish(result, &mut rows[index / chunk.group][head..head + head_dim]);
            }
        }
    }
}

impl QueryTile {
    /// The slots of a block, which begins with this one, that lie between what the queries see first and last.
    fn seen(&self, first: usize) -> u64 {
        mask(&self.shared, first) | mask(&self.own, first)
    }

    /// What each query sees of a block, unless all see all of it.
    fn masks(&self, chunk: &Chunk<'_>, first: usize) -> Option<[u64; MOST_ROWS]> {
        if self.common.start as usize <= first && first + BLOCK_TOKENS <= self.common.end as usize {
            return None;
        }
        let mut masks = [0; MOST_ROWS];
        for (index, seen) in (self.first..self.first + self.count).zip(&mut masks) {
            let sees = &chunk.rows[index / chunk.group].sees;
            *seen = mask(&sees.shared, first) | mask(&sees.own, first);
        }
        Some(masks)
    }
}

/// A block of a context, if anything was ever written to it.
fn block<'a, T>(blocks: &'a [Lines<T>], table: &[u32], index: usize) -> Option<&'a [T]> {
    table.get(index).and_then(|id| blocks.get(*id as usize)).map(Deref::deref).filter(|block| !block.is_empty())
}

/// The slots of a block that a range covers.
fn mask(range: &Range<u32>, first: usize) -> u64 {
    let [start, end] = [range.start, range.end].map(|slot| (slot as usize).saturating_sub(first).min(BLOCK_TOKENS));
    if start >= end { 0 } else { !0 >> (BLOCK_TOKENS - (end - start)) << start }
}

/// The queries of a chunk in tiles that fit the registers.
fn tiles_of<S: Simd>(chunk: &Chunk<'_>, tiles: &mut Vec<QueryTile>) {
    // Two vectors of sums for each query, and some registers for what they are made of. Where one vector for each is enough for
    // all, keys and values are loaded once.
    let queries = chunk.queries();
    let tallest = match S::REGISTER_COUNT {
        32.. => MOST_ROWS,
        _ if queries <= 8 => 8,
        _ => 6,
    };
    tiles.clear();
    let mut first = 0;
    for count in tile_heights(queries, tallest) {
        let height = HEIGHTS.into_iter().find(|&height| height >= count).unwrap_or(tallest);
        let rows = &chunk.rows[first / chunk.group..(first + count).div_ceil(chunk.group)];
        let hull = |part: fn(&Row) -> &Range<u32>| {
            let seen = || rows.iter().map(part).filter(|range| !range.is_empty());
            let start = seen().map(|range| range.start).min().unwrap_or(0);
            start..seen().map(|range| range.end).max().unwrap_or(start)
        };
        let (shared, own) = (hull(|row| &row.sees.shared), hull(|row| &row.sees.own));
        let start = rows.iter().map(|row| row.sees.own.start).max().unwrap_or(0);
        let common = start..rows.iter().map(|row| row.sees.own.end).min().unwrap_or(start);
        tiles.push(QueryTile { height, first, count, shared, own, common });
        first += count;
    }
}

/// A block, and the tiles that may see it.
struct Block<'a> {
    chunk: &'a Chunk<'a>,
    tiles: &'a [QueryTile],
    /// The first slot.
    first: usize,
    width: usize,
    cap: Option<f32>,
}

impl Block<'_> {
    #[inline(always)]
    fn run<K: Kernels>(
        &self,
        kernels: K,
        [keys, ahead]: [&[K::Number]; 2],
        values: Values<'_, K::Number>,
        states: &mut [State<'_>],
        scores: &mut [[f32; BLOCK_TOKENS]],
        output: &mut Results<'_>,
    ) {
        for (tile, state) in self.tiles.iter().zip(states) {
            let masks = tile.masks(self.chunk, self.first);
            let seen = masks.map_or(!0, |masks| masks.iter().fold(0, |seen, mask| seen | mask));
            if seen == 0 {
                continue;
            }
            let work = match output {
                Results::Mass { mass, .. } => {
                    let at = self.first % PART;
                    let Some(mass) = mass[at..].first_chunk_mut() else { continue };
                    Work::Mass { factors: state.totals, mass }
                }
                Results::Weights(_) => Work::Add { totals: state.totals.as_chunks_mut().0, values: None },
                _ => {
                    let sums = &mut state.sums[..tile.height * self.width];
                    Work::Add { totals: state.totals.as_chunks_mut().0, values: Some((values, sums)) }
                }
            };
            let mut step = Step {
                kernels,
                queries: state.queries,
                keys,
                ahead,
                head_dim: self.chunk.head_dim,
                seen,
                masks: masks.as_ref().map(<[u64; MOST_ROWS]>::as_slice),
                cap: self.cap,
                tops: state.tops,
                scores,
                work,
            };
            step.run(tile.height);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{walk, walk_avx2};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use half::{bf16, f16};
    use pulp::x86::V4;

    use super::super::pairs::Pairs;
    use super::super::ready::{Loaded, Paired};
    use super::{Walk, WalkWith};
    use crate::cache::Head;
    use crate::isa::{Avx2F16c, Avx512Bf16};
    use crate::widening::{Loads, Native};

    /// Goes through some parts with AVX-512, and with products of bf16 where there are.
    pub(in super::super) fn walk(simd: V4, products: Option<Avx512Bf16>, walk: Walk<'_>) {
        match walk.chunk.head {
            Head::F32(blocks) => simd.vectorize(WalkWith { walk, reader: Loaded::<_, f32>::new(Native(simd)), blocks }),
            Head::F16(blocks) => simd.vectorize(WalkWith { walk, reader: Loaded::<_, f16>::new(Native(simd)), blocks }),
            Head::Bf16(blocks) => match products {
                Some(products) if walk.chunk.head_dim.is_multiple_of(Pairs::<true>::WIDTH) => {
                    simd.vectorize(WalkWith { walk, reader: Paired::new(simd, products), blocks });
                }
                _ => simd.vectorize(WalkWith { walk, reader: Loaded::<_, bf16>::new(Native(simd)), blocks }),
            },
        }
    }

    /// Goes through some parts with AVX2 and F16C.
    pub(in super::super) fn walk_avx2(avx2: Avx2F16c, walk: Walk<'_>) {
        let simd = avx2.simd();
        match walk.chunk.head {
            Head::F32(blocks) => simd.vectorize(WalkWith { walk, reader: Loaded::<_, f32>::new(Native(simd)), blocks }),
            Head::F16(blocks) => Loads::<f16>::vectorize(avx2, WalkWith { walk, reader: Loaded::new(avx2), blocks }),
            Head::Bf16(blocks) => {
                simd.vectorize(WalkWith { walk, reader: Loaded::<_, bf16>::new(Native(simd)), blocks })
            }
        }
    }
}

/// Goes through some parts with NEON.
#[cfg(target_arch = "aarch64")]
pub(super) fn walk(simd: pulp::aarch64::Neon, walk: Walk<'_>) {
    use super::ready::Loaded;
    use crate::widening::Native;
    match walk.chunk.head {
        Head::F32(blocks) => simd.vectorize(WalkWith { walk, reader: Loaded::<_, f32>::new(Native(simd)), blocks }),
        Head::F16(blocks) => simd.vectorize(WalkWith { walk, reader: Loaded::<_, f16>::new(Native(simd)), blocks }),
        Head::Bf16(blocks) => simd.vectorize(WalkWith { walk, reader: Loaded::<_, bf16>::new(Native(simd)), blocks }),
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
struct WalkWith<'a, R: CacheReader> {
    walk: Walk<'a>,
    reader: R,
    blocks: &'a [Lines<R::Stored>],
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl<R: CacheReader> pulp::NullaryFnOnce for WalkWith<'_, R> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.walk.run(self.reader, self.blocks);
    }
}
