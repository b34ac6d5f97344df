//! Tiles in f32: products are added to sums one by one, with whatever vectors there are.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;
use half::{bf16, f16};
use pulp::{NullaryFnOnce, Simd};

use super::tile::{Kernels, Scores, TALLEST, Values, fetch, group};
use crate::cache::{BLOCK_TOKENS, LANES};
use crate::unroll::each_row;

/// Numbers that are f32 once they are loaded: those of 16 bits with AVX-512 and with NEON.
pub(super) trait Wider: Pod {
    /// A vector of numbers.
    fn load<S: Simd>(simd: S, numbers: &[Self]) -> S::f32s;
}

impl Wider for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, numbers: &[Self]) -> S::f32s {
        S::as_simd_f32s(numbers).0.first().copied().unwrap_or(simd.splat_f32s(0.0))
    }
}

/// f32 arithmetic with the vectors of `S` on numbers of `N`. Where they stand in a cache, what is ahead is fetched.
#[derive(Clone, Copy)]
pub(super) struct Wide<S, N, const CACHED: bool> {
    simd: S,
    numbers: PhantomData<N>,
}

impl<S: Simd, N, const CACHED: bool> Wide<S, N, CACHED> {
    pub(super) fn new(simd: S) -> Self {
        Self { simd, numbers: PhantomData }
    }
}

impl<S: Simd, N: Wider, const CACHED: bool> Kernels for Wide<S, N, CACHED> {
    type Simd = S;
    type Number = N;

    #[inline(always)]
    fn simd(self) -> S {
        self.simd
    }

    #[inline(always)]
    fn vectorize<F: NullaryFnOnce>(self, f: F) -> F::Output {
        self.simd.vectorize(f)
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
        let lanes = S::F32_LANES;
        let mut lane = groups.start * LANES;
        while lane + 2 * lanes <= groups.end * LANES {
            score::<S, N, M, 2, CACHED>(self.simd, queries, [keys, ahead], head_dim, lane, scores);
            lane += 2 * lanes;
        }
        if lane < groups.end * LANES {
            score::<S, N, M, 1, CACHED>(self.simd, queries, [keys, ahead], head_dim, lane, scores);
        }
    }

    #[inline(always)]
    fn total<const M: usize>(self, groups: Range<usize>, weights: &mut Scores<M>, totals: &mut [[f32; LANES]; M]) {
        let simd = self.simd;
        for (weights, totals) in weights.iter().zip(totals) {
            let (totals, _) = S::as_mut_simd_f32s(totals);
            for weights in weights[groups.start * LANES..groups.end * LANES].chunks_exact(LANES) {
                for (total, &weight) in totals.iter_mut().zip(S::as_simd_f32s(weights).0) {
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
        let (width, lanes) = (sums.len() / M, S::F32_LANES);
        let mut column = 0;
        while column + 2 * lanes <= width {
            add::<S, N, M, 2, CACHED>(self.simd, weights, values, slots.clone(), factors, column, sums);
            column += 2 * lanes;
        }
        if column < width {
            add::<S, N, M, 1, CACHED>(self.simd, weights, values, slots, factors, column, sums);
        }
    }
}

/// The scores of `V` vectors of keys, the first of which begins at `lane`. Keys are `[groups][head_dim][LANES]`, queries
/// `[head_dim][M]`.
#[inline(always)]
fn score<S: Simd, N: Wider, const M: usize, const V: usize, const CACHED: bool>(
    simd: S,
    queries: &[f32],
    [keys, ahead]: [&[N]; 2],
    head_dim: usize,
    lane: usize,
    scores: &mut Scores<M>,
) {
    let lanes = S::F32_LANES;
    let (queries, _) = queries.as_chunks::<M>();
    // The keys of the first vector and of the last, which may be one. What follows has no other way out than its end: where
    // there is one, compilers keep the sums in memory.
    let places = [lane, lane + (V - 1) * lanes];
    let [first, last] = places.map(|lane| group::<N, LANES>(keys, lane / LANES, head_dim));
    let ahead = places.map(|lane| group::<N, LANES>(ahead, lane / LANES, head_dim));
    let mut sums = [[simd.splat_f32s(0.0); 2]; TALLEST];
    for (at, ((queries, first), last)) in queries.iter().zip(first).zip(last).enumerate() {
        if CACHED {
            ahead.iter().filter_map(|ahead| ahead.get(at)).for_each(fetch);
        }
        let first = N::load(simd, part::<S, N>(first, places[0]));
        let last = if V == 2 { N::load(simd, part::<S, N>(last, places[1])) } else { first };
        #[cfg(target_arch = "aarch64")]
        if crate::neon::add_products::<S, M, V>(simd, queries, [first, last], &mut sums) {
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
        put::<S>(&mut scores[ROW], lane, sums[ROW][0]);
        if V == 2 {
            put::<S>(&mut scores[ROW], lane + lanes, sums[ROW][1]);
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
fn add<S: Simd, N: Wider, const M: usize, const V: usize, const CACHED: bool>(
    simd: S,
    weights: &Scores<M>,
    values: Values<'_, N>,
    slots: Range<usize>,
    factors: &[f32; M],
    column: usize,
    sums: &mut [f32],
) {
    let (lanes, width) = (S::F32_LANES, sums.len() / M);
    let mut registers = [[simd.splat_f32s(0.0); 2]; TALLEST];
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
            add_slots::<S, N, M, V, CACHED>(simd, weights, values, slots.start..first, column, &mut registers);
            add_pairs::<S, N, M, V, CACHED>((simd, neon), weights, values, pairs, column, &mut registers);
            last..slots.end
        }
        None => slots,
    };
    add_slots::<S, N, M, V, CACHED>(simd, weights, values, slots, column, &mut registers);
    each_row!(ROW < M, {
        put::<S>(sums, ROW * width + column, registers[ROW][0]);
        if V == 2 {
            put::<S>(sums, ROW * width + column + lanes, registers[ROW][1]);
        }
    });
}

/// Adds the weighted values of some slots.
#[inline(always)]
fn add_slots<S: Simd, N: Wider, const M: usize, const V: usize, const CACHED: bool>(
    simd: S,
    weights: &Scores<M>,
    Values { numbers, ahead, stride }: Values<'_, N>,
    slots: Range<usize>,
    column: usize,
    registers: &mut [[S::f32s; 2]; TALLEST],
) {
    let lanes = S::F32_LANES;
    let start = slots.start * stride + column;
    let [values, ahead] = [numbers, ahead].map(|numbers| numbers.get(start..).unwrap_or_default());
    for ((at, slot), values) in slots.enumerate().zip(values.chunks(stride.max(1))) {
        if CACHED {
            [0, (V - 1) * lanes].iter().filter_map(|other| ahead.get(at * stride + other)).for_each(fetch);
        }
        let first = N::load(simd, values);
        let last = if V == 2 { N::load(simd, values.get(lanes..).unwrap_or_default()) } else { first };
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
fn add_pairs<S: Simd, N: Wider, const M: usize, const V: usize, const CACHED: bool>(
    (simd, neon): (S, pulp::aarch64::Neon),
    weights: &Scores<M>,
    Values { numbers, ahead, stride }: Values<'_, N>,
    pairs: Range<usize>,
    column: usize,
    registers: &mut [[S::f32s; 2]; TALLEST],
) {
    let lanes = S::F32_LANES;
    let start = 2 * pairs.start * stride + column;
    let [values, ahead] = [numbers, ahead].map(|numbers| numbers.get(start..).unwrap_or_default());
    for ((at, pair), values) in pairs.enumerate().zip(values.chunks((2 * stride).max(1))) {
        if CACHED {
            let slots = [2 * at, 2 * at + 1].map(|slot| slot * stride);
            slots.iter().filter_map(|start| ahead.get(*start)).for_each(fetch);
        }
        let slots = [values, values.get(stride..).unwrap_or_default()];
        let values = slots.map(|values| {
            let first = N::load(simd, values);
            [first, if V == 2 { N::load(simd, values.get(lanes..).unwrap_or_default()) } else { first }]
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

impl Wider for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, numbers: &[Self]) -> S::f32s {
        #[cfg(target_arch = "x86_64")]
        if let (Some(v4), Some(numbers)) = (crate::number::v4(simd), numbers.first_chunk::<16>()) {
            return bytemuck::cast(v4.avx512f._mm512_cvtph_ps(bytemuck::cast(*numbers)));
        }
        #[cfg(target_arch = "aarch64")]
        if let (Some(neon), Some(numbers)) = (crate::number::neon(simd), numbers.first_chunk::<4>()) {
            return bytemuck::cast(crate::neon::widen(neon, *numbers));
        }
        let _ = numbers;
        simd.splat_f32s(f32::NAN)
    }
}

impl Wider for bf16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, numbers: &[Self]) -> S::f32s {
        #[cfg(target_arch = "x86_64")]
        if let (Some(v4), Some(numbers)) = (crate::number::v4(simd), numbers.first_chunk::<16>()) {
            let wide = v4.avx512f._mm512_cvtepu16_epi32(bytemuck::cast(*numbers));
            return bytemuck::cast(v4.avx512f._mm512_slli_epi32::<16>(wide));
        }
        #[cfg(target_arch = "aarch64")]
        if let (Some(neon), Some(numbers)) = (crate::number::neon(simd), numbers.first_chunk::<4>()) {
            return bytemuck::cast(crate::neon::widen_bf16(neon, *numbers));
        }
        let _ = numbers;
        simd.splat_f32s(f32::NAN)
    }
}
