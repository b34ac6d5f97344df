//! What a tile of queries makes of one block of keys and values.
//!
//! The scores of a tile are sums that stay in registers while the keys go by; weights meet values in the same way. What
//! comes of a query is the same whatever stands beside it in its tile: its sums add up number by number and slot by
//! slot, and what it does not see has a weight of zero.

use std::ops::Range;

use amem_core::transformer::Attention;
use bytemuck::Pod;
use pulp::{NullaryFnOnce, Simd};

use crate::cache::{BLOCK_TOKENS, LANES};
use crate::unroll::MOST_ROWS;

/// The scores of a tile of queries against a block of keys, and then its weights.
pub(super) type Scores<const M: usize> = [[f32; BLOCK_TOKENS]; M];

/// The top score of a query that has seen nothing yet. No score is as low, and some scores are subtracted from it.
pub(super) const NOTHING: f32 = -1e30;

/// The score of a slot that a query does not see: far below [`NOTHING`], so that its weight is zero in any case.
const UNSEEN: f32 = f32::MIN;

/// By how many powers of two a score may exceed the one that weights are relative to. Sums are scaled anew only where
/// one goes further, and stay far from the largest f32.
const SLACK: f32 = 8.0;

/// The heights of tiles that are compiled.
pub(super) const HEIGHTS: [usize; 8] = [1, 2, 3, 4, 6, 7, 8, MOST_ROWS];

/// The keys of a group, and those behind it, in vectors of `W` numbers.
#[inline(always)]
pub(super) fn group<N, const W: usize>(keys: &[N], group: usize, head_dim: usize) -> &[[N; W]] {
    keys.get(group * head_dim * LANES..).unwrap_or_default().as_chunks().0
}

/// Instructions that compute with tiles, and the numbers that they take.
///
/// All methods are inlined into what [`vectorize`](Self::vectorize) calls: it is compiled for the instructions.
pub(super) trait Kernels: Copy {
    /// Vectors for what is done with scores.
    type Simd: Simd;
    /// Keys and values as they meet a tile.
    type Number: Pod;

    fn simd(self) -> Self::Simd;

    fn vectorize<F: NullaryFnOnce>(self, f: F) -> F::Output;

    /// The scores of some groups of [`LANES`] keys. `ahead` is like the keys, and is wanted next.
    fn scores<const M: usize>(
        self,
        queries: &[f32],
        keys: &[Self::Number],
        ahead: &[Self::Number],
        head_dim: usize,
        groups: Range<usize>,
        scores: &mut Scores<M>,
    );

    /// Adds the weights of some groups to the totals, and brings them into the form that [`add`](Self::add) takes.
    fn total<const M: usize>(self, groups: Range<usize>, weights: &mut Scores<M>, totals: &mut [[f32; LANES]; M]);

    /// Multiplies the sums, `[M][width]`, by their factors and adds the weighted values of some slots, `[slots][stride]`.
    /// What is ahead of the values is wanted next.
    fn add<const M: usize>(
        self,
        weights: &Scores<M>,
        values: Values<'_, Self::Number>,
        slots: Range<usize>,
        factors: &[f32; M],
        sums: &mut [f32],
    );
}

/// A block's values, and how far apart those of two slots are.
#[derive(Clone, Copy)]
pub(super) struct Values<'a, N> {
    pub(super) numbers: &'a [N],
    /// The next block's, if they are to be read where they stand.
    pub(super) ahead: &'a [N],
    pub(super) stride: usize,
}

/// What queries are multiplied by: scale · log2(e), so that the softmax is made of powers of two; with a soft cap scale / cap,
/// so that scores are what tanh is taken of.
pub(super) fn query_factor(attention: &Attention) -> f32 {
    attention.soft_cap.map_or(attention.scale * std::f32::consts::LOG2_E, |cap| attention.scale / cap)
}

/// A tile and a block.
pub(super) struct Step<'a, K: Kernels> {
    pub(super) kernels: K,
    /// As the kernels take them.
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [K::Number],
    /// The next block's, if they are to be read where they stand.
    pub(super) ahead: &'a [K::Number],
    pub(super) head_dim: usize,
    /// The slots that any query sees, which are some.
    pub(super) seen: u64,
    /// What each of them sees, unless all see all.
    pub(super) masks: Option<&'a [u64]>,
    pub(super) cap: Option<f32>,
    /// For each query, the score that its weights are relative to.
    pub(super) tops: &'a mut [f32],
    /// Room for scores, and for weights.
    pub(super) scores: &'a mut [[f32; BLOCK_TOKENS]],
    pub(super) work: Work<'a, K::Number>,
}

/// What is wanted.
pub(super) enum Work<'a, N> {
    /// The weights' totals, and with values their weighted sums, `[queries][width]`.
    Add { totals: &'a mut [[f32; LANES]], values: Option<(Values<'a, N>, &'a mut [f32])> },
    /// The weights times a factor for each query, summed over the queries.
    Mass { factors: &'a [f32], mass: &'a mut [f32; BLOCK_TOKENS] },
}

impl<K: Kernels> Step<'_, K> {
    /// Does it with a tile of this height, which is one of [`HEIGHTS`].
    #[inline(always)]
    pub(super) fn run(&mut self, height: usize) {
        match height {
            12 => self.kernels.vectorize(Tall::<_, 12>(self)),
            8 => self.kernels.vectorize(Tall::<_, 8>(self)),
            7 => self.kernels.vectorize(Tall::<_, 7>(self)),
            6 => self.kernels.vectorize(Tall::<_, 6>(self)),
            4 => self.kernels.vectorize(Tall::<_, 4>(self)),
            3 => self.kernels.vectorize(Tall::<_, 3>(self)),
            2 => self.kernels.vectorize(Tall::<_, 2>(self)),
            _ => self.kernels.vectorize(Tall::<_, 1>(self)),
        }
    }
}

struct Tall<'s, 'a, K: Kernels, const M: usize>(&'s mut Step<'a, K>);

impl<K: Kernels, const M: usize> NullaryFnOnce for Tall<'_, '_, K, M> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Step { kernels, queries, keys, ahead, head_dim, seen, masks, cap, tops, scores, work } = self.0;
        let (kernels, simd) = (*kernels, kernels.simd());
        let (Some(tops), Some(scores)) = (tops.first_chunk_mut::<M>(), scores.first_chunk_mut::<M>()) else { return };
        let slots = seen.trailing_zeros() as usize..BLOCK_TOKENS - seen.leading_zeros() as usize;
        let groups = slots.start / LANES..slots.end.div_ceil(LANES);
        kernels.scores::<M>(queries, keys, ahead, *head_dim, groups.clone(), scores);
        if let Some(cap) = *cap {
            for scores in scores.iter_mut() {
                limit(simd, cap, &mut scores[groups.start * LANES..groups.end * LANES]);
            }
        }
        if let Some(masks) = *masks {
            for (scores, &seen) in scores.iter_mut().zip(masks) {
                hide(simd, seen, groups.clone(), scores);
            }
        }
        match work {
            Work::Add { totals, values } => {
                let Some(totals) = totals.first_chunk_mut::<M>() else { return };
                let factors = weigh(simd, groups.clone(), tops, scores);
                for (totals, &factor) in totals.iter_mut().zip(&factors) {
                    if factor != 1.0 {
                        totals.iter_mut().for_each(|total| *total *= factor);
                    }
                }
                kernels.total::<M>(groups, scores, totals);
                if let Some((values, sums)) = values {
                    kernels.add::<M>(scores, *values, slots, &factors, sums);
                }
            }
            Work::Mass { factors, mass } => {
                let all = groups.start * LANES..groups.end * LANES;
                let (mass, _) = S::<K>::as_mut_simd_f32s(&mut mass[all.clone()]);
                for ((scores, &top), &factor) in scores.iter().zip(&*tops).zip(*factors) {
                    let (top, factor) = (simd.splat_f32s(top), simd.splat_f32s(factor));
                    let (scores, _) = S::<K>::as_simd_f32s(&scores[all.clone()]);
                    for (mass, &score) in mass.iter_mut().zip(scores) {
                        let weight = exp2(simd, simd.sub_f32s(score, top));
                        *mass = simd.mul_add_f32s(weight, factor, *mass);
                    }
                }
            }
        }
    }
}

type S<K> = <K as Kernels>::Simd;

/// Scores that are capped, as powers of two.
#[inline(always)]
fn limit<S: Simd>(simd: S, cap: f32, scores: &mut [f32]) {
    let [one, minus_two, cap] = [1.0, -2.0, cap * std::f32::consts::LOG2_E].map(|x| simd.splat_f32s(x));
    let [double, most, least] = [2.0 * std::f32::consts::LOG2_E, 10.0, -10.0].map(|x| simd.splat_f32s(x));
    for score in S::as_mut_simd_f32s(scores).0 {
        // tanh rounds to 1 in f32 from about 9 on; to ±10, exp2 stays in range.
        let x = simd.max_f32s(least, simd.min_f32s(most, *score));
        let e = exp2(simd, simd.mul_f32s(x, double));
        let tanh = simd.add_f32s(one, simd.div_f32s(minus_two, simd.add_f32s(e, one)));
        // The minimum and the maximum above may have dropped a NaN.
        *score = simd.select_f32s(simd.equal_f32s(*score, *score), simd.mul_f32s(cap, tanh), *score);
    }
}

/// Gives what a query does not see a score that is lower than any.
#[inline(always)]
fn hide<S: Simd>(simd: S, seen: u64, groups: Range<usize>, scores: &mut [f32; BLOCK_TOKENS]) {
    for group in groups {
        let (seen, scores) = (seen >> (group * LANES), &mut scores[group * LANES..(group + 1) * LANES]);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = crate::number::v4(simd)
            && let Some(scores) = scores.first_chunk_mut::<16>()
        {
            let unseen = simd.avx512f._mm512_set1_ps(UNSEEN);
            let blended = simd.avx512f._mm512_mask_blend_ps(seen as u16, unseen, bytemuck::cast(*scores));
            *scores = bytemuck::cast(blended);
            continue;
        }
        for (lane, score) in scores.iter_mut().enumerate() {
            *score = if seen >> lane & 1 == 1 { *score } else { UNSEEN };
        }
    }
    let _ = simd;
}

/// Turns scores into weights, relative to the tops. Where a score is far above the top it becomes the top; what was
/// relative to the one before is to be multiplied by the factor that is returned.
#[inline(always)]
fn weigh<S: Simd, const M: usize>(
    simd: S,
    groups: Range<usize>,
    tops: &mut [f32; M],
    scores: &mut Scores<M>,
) -> [f32; M] {
    let mut factors = [1.0; M];
    for ((scores, top), factor) in scores.iter_mut().zip(tops).zip(&mut factors) {
        let (scores, _) = S::as_mut_simd_f32s(&mut scores[groups.start * LANES..groups.end * LANES]);
        let highest = scores.iter().fold(simd.splat_f32s(UNSEEN), |highest, &score| simd.max_f32s(score, highest));
        let above = simd.greater_than_f32s(highest, simd.splat_f32s(*top + SLACK));
        if simd.first_true_m32s(above) < S::F32_LANES {
            let highest = simd.reduce_max_f32s(highest);
            *factor = self::factor(*top, highest);
            *top = highest;
        }
        let top = simd.splat_f32s(*top);
        for score in scores {
            *score = exp2(simd, simd.sub_f32s(*score, top));
        }
    }
    factors
}

/// What weights that are relative to one score are multiplied by to be relative to another.
#[inline(always)]
pub(super) fn factor(from: f32, to: f32) -> f32 {
    // Mostly because there was nothing yet, for which the exponential would take long.
    if from - to < -126.0 { 0.0 } else { (from - to).exp2() }
}

/// `2^x` to within 2·10⁻⁷ of itself, exactly one for zero, and zero below -126 or a little further down.
///
/// x = n + f with |f| ≤ ½; a polynomial for 2^f, then n into the exponent.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const COEFFICIENTS: [f32; 5] = [9.669_691e-3, 5.550_558_5e-2, 0.240_222_83, std::f32::consts::LN_2, 1.0];
    const FIRST: f32 = 1.330_060_7e-3;
    let polynomial = |f: S::f32s| {
        let add = |sum, &c: &f32| simd.mul_add_f32s(sum, f, simd.splat_f32s(c));
        COEFFICIENTS.iter().fold(simd.splat_f32s(FIRST), add)
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = crate::number::v4(simd) {
        const NEAREST: i32 = 0;
        let n = v4.avx512f._mm512_roundscale_ps::<NEAREST>(bytemuck::cast(x));
        let power = polynomial(simd.sub_f32s(x, bytemuck::cast(n)));
        return bytemuck::cast(v4.avx512f._mm512_scalef_ps(bytemuck::cast(power), n));
    }
    /// 1.5 · 2^23: adding it leaves the rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let [least, round, zero] = [-126.0, ROUND, 0.0].map(|x| simd.splat_f32s(x));
    let limited = simd.max_f32s(x, least);
    let shifted = simd.add_f32s(limited, round);
    let power = polynomial(simd.sub_f32s(limited, simd.sub_f32s(shifted, round)));
    let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let scaled = simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(power), n));
    let scaled = simd.select_f32s(simd.less_than_f32s(x, least), zero, scaled);
    // What is not a number stays so, as it does where an instruction scales.
    simd.select_f32s(simd.equal_f32s(x, x), scaled, x)
}
