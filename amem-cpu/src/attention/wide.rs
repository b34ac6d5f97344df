//! Tiles in f32: products are added to sums one by one, with whatever vectors there are.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;
use pulp::{NullaryFnOnce, Simd};

use super::tile::{Kernels, Scores, Values, group};
use crate::cache::{BLOCK_TOKENS, LANES};
use crate::unroll::{MOST_ROWS, each_row};
use crate::widening::{Loads, Vector, Wider, prefetch};

/// f32 arithmetic on numbers of `N`, which `L` loads. Where they stand in a cache, what is ahead is fetched.
#[derive(Clone, Copy)]
pub(super) struct Wide<L, N, const CACHED: bool> {
    loads: L,
    numbers: PhantomData<N>,
}

impl<L: Loads<N>, N, const CACHED: bool> Wide<L, N, CACHED> {
    pub(super) fn new(loads: L) -> Self {
        Self { loads, numbers: PhantomData }
    }
}

impl<L: Loads<N>, N: Pod, const CACHED: bool> Kernels for Wide<L, N, CACHED> {
    type Simd = L::Simd;
    type Number = N;

    #[inline(always)]
    fn simd(self) -> L::Simd {
        self.loads.simd()
    }

    #[inline(always)]
    fn vectorize<F: NullaryFnOnce>(self, f: F) -> F::Output {
        self.loads.vectorize(f)
    }

    #[inline(always)]
    fn scores<const M: usize>(
        self,
        queries: &[f32],
        keys: &[N],
        ahead: &[N],
        head_dim: usize,
        groups: Range<usize>,
        scores: &mut Scores<M>,
    ) {
        let lanes = L::Simd::F32_LANES;
        let mut lane = groups.start * LANES;
        while has_room_for_two::<L::Simd>(M) && lane + 2 * lanes <= groups.end * LANES {
            score::<L, N, M, 2, CACHED>(self.loads, queries, [keys, ahead], head_dim, lane, scores);
            lane += 2 * lanes;
        }
        while lane < groups.end * LANES {
            score::<L, N, M, 1, CACHED>(self.loads, queries, [keys, ahead], head_dim, lane, scores);
            lane += lanes;
        }
    }

    #[inline(always)]
    fn total<const M: usize>(self, groups: Range<usize>, weights: &mut Scores<M>, totals: &mut [[f32; LANES]; M]) {
        let simd = self.simd();
        for (weights, totals) in weights.iter().zip(totals) {
            let (totals, _) = L::Simd::as_mut_simd_f32s(totals);
            for weights in weights[groups.start * LANES..groups.end * LANES].chunks_exact(LANES) {
                for (total, &weight) in totals.iter_mut().zip(L::Simd::as_simd_f32s(weights).0) {
                    *total = simd.add_f32s(*total, weight);
                }
            }
        }
    }

    #[inline(always)]
    fn add<const M: usize>(
        self,
        weights: &Scores<M>,
        values: Values<'_, N>,
        slots: Range<usize>,
        factors: &[f32; M],
        sums: &mut [f32],
    ) {
        let (width, lanes) = (sums.len() / M, L::Simd::F32_LANES);
        let mut column = 0;
        while has_room_for_two::<L::Simd>(M) && column + 2 * lanes <= width {
            add::<L, N, M, 2, CACHED>(self.loads, weights, values, slots.clone(), factors, column, sums);
            column += 2 * lanes;
        }
        while column < width {
            add::<L, N, M, 1, CACHED>(self.loads, weights, values, slots.clone(), factors, column, sums);
            column += lanes;
        }
    }
}

/// Whether the registers hold two vectors of sums for each of so many queries, and what they are made of.
#[inline(always)]
fn has_room_for_two<S: Simd>(queries: usize) -> bool {
    2 * queries + 4 <= S::REGISTER_COUNT
}

/// The scores of `V` vectors of keys, the first of which begins at `lane`. Keys are `[groups][head_dim][LANES]`, queries
/// `[head_dim][M]`.
#[inline(always)]
fn score<L: Loads<N>, N, const M: usize, const V: usize, const CACHED: bool>(
    loads: L,
    queries: &[f32],
    [keys, ahead]: [&[N]; 2],
    head_dim: usize,
    lane: usize,
    scores: &mut Scores<M>,
) {
    let (simd, lanes) = (loads.simd(), L::Simd::F32_LANES);
    let (queries, _) = queries.as_chunks::<M>();
    // The keys of the first vector and of the last, which may be one. What follows has no other way out than its end: where
    // there is one, compilers keep the sums in memory.
    let places = [lane, lane + (V - 1) * lanes];
    let [first, last] = places.map(|lane| group::<N, LANES>(keys, lane / LANES, head_dim));
    let ahead = places.map(|lane| group::<N, LANES>(ahead, lane / LANES, head_dim));
    let mut sums = [[simd.splat_f32s(0.0); 2]; MOST_ROWS];
    for (at, ((queries, first), last)) in queries.iter().zip(first).zip(last).enumerate() {
        if CACHED {
            ahead.iter().filter_map(|ahead| ahead.get(at)).for_each(prefetch);
        }
        let first = loads.load(part::<L::Simd, N>(first, places[0]));
        let last = if V == 2 { loads.load(part::<L::Simd, N>(last, places[1])) } else { first };
        #[cfg(target_arch = "aarch64")]
        if crate::neon::add_products::<L::Simd, M, V, 2>(simd, queries, [first, last], &mut sums) {
            continue;
        }
        each_row!(ROW < M, {
            let query = simd.splat_f32s(queries[ROW]);
            sums[ROW][0] = simd.mul_add_f32s(query, first, sums[ROW][0]);
            if V == 2 {
                sums[ROW][1] = simd.mul_add_f32s(query, last, sums[ROW][1]);
            }
        });
    }
    each_row!(ROW < M, {
        put::<L::Simd>(&mut scores[ROW], lane, sums[ROW][0]);
        if V == 2 {
            put::<L::Simd>(&mut scores[ROW], lane + lanes, sums[ROW][1]);
        }
    });
}

/// Puts a vector into its place.
#[inline(always)]
fn put<S: Simd>(numbers: &mut [f32], at: usize, vector: S::f32s) {
    let place = numbers.get_mut(at..).and_then(|numbers| S::as_mut_simd_f32s(numbers).0.first_mut());
    if let Some(place) = place {
        *place = vector;
    }
}

/// The numbers from a place on that stands for a lane.
#[inline(always)]
fn part<S: Simd, N>(numbers: &[N; LANES], place: usize) -> &[N] {
    if S::F32_LANES >= LANES { numbers } else { numbers.get(place % LANES..).unwrap_or_default() }
}

/// The weighted sums of `V` vectors of columns.
#[inline(always)]
fn add<L: Loads<N>, N: Copy, const M: usize, const V: usize, const CACHED: bool>(
    loads: L,
    weights: &Scores<M>,
    values: Values<'_, N>,
    slots: Range<usize>,
    factors: &[f32; M],
    column: usize,
    sums: &mut [f32],
) {
    let (simd, lanes, width) = (loads.simd(), L::Simd::F32_LANES, sums.len() / M);
    let mut registers = [[simd.splat_f32s(0.0); 2]; MOST_ROWS];
    each_row!(ROW < M, {
        let (factor, sums) = (simd.splat_f32s(factors[ROW]), sums.get(ROW * width + column..).unwrap_or_default());
        registers[ROW][0] = simd.mul_f32s(f32::load(simd, sums), factor);
        if V == 2 {
            registers[ROW][1] = simd.mul_f32s(f32::load(simd, sums.get(lanes..).unwrap_or_default()), factor);
        }
    });
    #[cfg(target_arch = "aarch64")]
    let slots = match crate::number::neon(simd) {
        Some(neon) => {
            let first = slots.start.next_multiple_of(2).min(slots.end);
            let pairs = first / 2..(first + (slots.end - first)) / 2;
            let last = first.max(2 * pairs.end);
            add_slots::<L, N, M, V, CACHED>(loads, weights, values, slots.start..first, column, &mut registers);
            add_pairs::<L, N, M, V, CACHED>((loads, neon), weights, values, pairs, column, &mut registers);
            last..slots.end
        }
        None => slots,
    };
    add_slots::<L, N, M, V, CACHED>(loads, weights, values, slots, column, &mut registers);
    each_row!(ROW < M, {
        put::<L::Simd>(sums, ROW * width + column, registers[ROW][0]);
        if V == 2 {
            put::<L::Simd>(sums, ROW * width + column + lanes, registers[ROW][1]);
        }
    });
}

/// Adds the weighted values of some slots.
#[inline(always)]
fn add_slots<L: Loads<N>, N, const M: usize, const V: usize, const CACHED: bool>(
    loads: L,
    weights: &Scores<M>,
    Values { numbers, ahead, stride }: Values<'_, N>,
    slots: Range<usize>,
    column: usize,
    registers: &mut [[Vector<L, N>; 2]; MOST_ROWS],
) {
    let (simd, lanes) = (loads.simd(), L::Simd::F32_LANES);
    let start = slots.start * stride + column;
    let [values, ahead] = [numbers, ahead].map(|numbers| numbers.get(start..).unwrap_or_default());
    for ((at, slot), values) in slots.enumerate().zip(values.chunks(stride.max(1))) {
        if CACHED {
            [0, (V - 1) * lanes].iter().filter_map(|other| ahead.get(at * stride + other)).for_each(prefetch);
        }
        let first = loads.load(values);
        let last = if V == 2 { loads.load(values.get(lanes..).unwrap_or_default()) } else { first };
        each_row!(ROW < M, {
            let weight = simd.splat_f32s(weights[ROW][slot % BLOCK_TOKENS]);
            registers[ROW][0] = simd.mul_add_f32s(weight, first, registers[ROW][0]);
            if V == 2 {
                registers[ROW][1] = simd.mul_add_f32s(weight, last, registers[ROW][1]);
            }
        });
    }
}

/// Adds the weighted values of some pairs of slots, one slot and then the other. Both weights of a row are loaded at a time, and
/// taken out by the instruction that multiplies with them; each as a vector of its own would take another instruction.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn add_pairs<L: Loads<N>, N, const M: usize, const V: usize, const CACHED: bool>(
    (loads, neon): (L, pulp::aarch64::Neon),
    weights: &Scores<M>,
    Values { numbers, ahead, stride }: Values<'_, N>,
    pairs: Range<usize>,
    column: usize,
    registers: &mut [[Vector<L, N>; 2]; MOST_ROWS],
) {
    let lanes = L::Simd::F32_LANES;
    let start = 2 * pairs.start * stride + column;
    let [values, ahead] = [numbers, ahead].map(|numbers| numbers.get(start..).unwrap_or_default());
    for ((at, pair), values) in pairs.enumerate().zip(values.chunks((2 * stride).max(1))) {
        if CACHED {
            let slots = [2 * at, 2 * at + 1].map(|slot| slot * stride);
            slots.iter().filter_map(|start| ahead.get(*start)).for_each(prefetch);
        }
        let slots = [values, values.get(stride..).unwrap_or_default()];
        let values = slots.map(|values| {
            let first = loads.load(values);
            [first, if V == 2 { loads.load(values.get(lanes..).unwrap_or_default()) } else { first }]
        });
        let weights = weights.as_flattened().get(2 * (pair % (BLOCK_TOKENS / 2))..).unwrap_or_default();
        each_row!(ROW < M, {
            let weights = weights.get(ROW * BLOCK_TOKENS..).and_then(|weights| weights.first_chunk::<2>());
            let weights = bytemuck::cast(*weights.unwrap_or(&[0.0; 2]));
            for (vector, sum) in registers[ROW].iter_mut().take(V).enumerate() {
                let [first, second] = values.map(|values| bytemuck::cast(values[vector]));
                let added = neon.neon.vfmaq_lane_f32::<0>(bytemuck::cast(*sum), first, weights);
                *sum = bytemuck::cast(neon.neon.vfmaq_lane_f32::<1>(added, second, weights));
            }
        });
    }
}
