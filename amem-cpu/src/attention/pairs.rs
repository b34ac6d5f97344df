//! Tiles in bf16: an instruction of AVX-512 multiplies pairs of numbers and adds both products to a sum in f32.
//!
//! Queries and weights are rounded to bf16 as keys and values are already. The totals are those of the rounded weights,
//! so that what comes out is a mean of the values still.

use std::arch::x86_64::{__m512, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps};
use std::ops::Range;

use half::bf16;
use pulp::NullaryFnOnce;
use pulp::x86::V4;

use super::tile::{Kernels, Scores, Values, group};
use crate::cache::{BLOCK_TOKENS, LANES};
use crate::isa::Avx512Bf16;
use crate::unroll::{MOST_ROWS, each_row};
use crate::widening::prefetch;

impl Avx512Bf16 {
    /// `sum + a₀·b₀ + a₁·b₁` in each lane.
    #[inline(always)]
    fn multiply(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        let [a, b]: [__m512bh; 2] = [a, b].map(bytemuck::cast);
        // SAFETY: there is an `Avx512Bf16` only where the processor has AVX512-BF16 and AVX512F.
        unsafe { _mm512_dpbf16_ps(sum, a, b) }
    }

    /// Rounds two vectors.
    #[inline(always)]
    fn round(self, first: __m512, second: __m512) -> __m512i {
        // SAFETY: there is an `Avx512Bf16` only where the processor has AVX512-BF16 and AVX512F.
        bytemuck::cast(unsafe { _mm512_cvtne2ps_pbh(second, first) })
    }
}

/// Products of pairs. The numbers are paired already, or `APART` as they stand in a cache; then what is ahead is fetched.
#[derive(Clone, Copy)]
pub(super) struct Pairs<const APART: bool> {
    simd: V4,
    bf16: Avx512Bf16,
}

impl<const APART: bool> Pairs<APART> {
    /// Numbers that are paired: heads' dimensions have to be a multiple of this.
    pub(super) const WIDTH: usize = 2 * LANES;

    pub(super) fn new(simd: V4, bf16: Avx512Bf16) -> Self {
        Self { simd, bf16 }
    }

    /// 32 numbers of keys: of one dimension, and of the next.
    #[inline(always)]
    fn key(self, numbers: &[bf16; 32]) -> __m512i {
        let numbers = bytemuck::cast(*numbers);
        if APART { mixed(self.simd, numbers) } else { numbers }
    }
}

/// The numbers of the second half of a vector between those of the first.
#[inline(always)]
pub(super) fn mixed(simd: V4, numbers: __m512i) -> __m512i {
    const PLACES: [u16; 32] = places(0, 16);
    simd.avx512bw._mm512_permutexvar_epi16(bytemuck::cast(PLACES), numbers)
}

/// The numbers of two vectors in turn.
#[inline(always)]
pub(super) fn in_turn(simd: V4, first: __m512i, second: __m512i) -> [__m512i; 2] {
    const PLACES: [[u16; 32]; 2] = [places(0, 32), places(16, 48)];
    PLACES.map(|places| simd.avx512bw._mm512_permutex2var_epi16(first, bytemuck::cast(places), second))
}

/// From where numbers come in turn: from one place on, and from another.
const fn places(first: u16, second: u16) -> [u16; 32] {
    let mut places = [0; 32];
    let mut at = 0;
    while at < 32 {
        places[at] = if at % 2 == 0 { first } else { second } + at as u16 / 2;
        at += 1;
    }
    places
}

/// A pair of numbers for all lanes. It stands where an f32 has room for it.
#[inline(always)]
fn splat(simd: V4, pair: f32) -> __m512i {
    simd.avx512f._mm512_set1_epi32(pair.to_bits().cast_signed())
}

/// Two numbers, rounded, in the room of one f32.
pub(super) fn pair(first: f32, second: f32) -> f32 {
    let [first, second] = [first, second].map(|x| u32::from(amem_core::f32_to_bf16(x)));
    f32::from_bits(first | second << 16)
}

impl<const APART: bool> Kernels for Pairs<APART> {
    type Simd = V4;
    type Number = bf16;

    #[inline(always)]
    fn simd(self) -> V4 {
        self.simd
    }

    #[inline(always)]
    fn vectorize<F: NullaryFnOnce>(self, f: F) -> F::Output {
        self.bf16.vectorize(f)
    }

    #[inline(always)]
    fn scores<const M: usize>(
        self,
        queries: &[f32],
        keys: &[bf16],
        ahead: &[bf16],
        head_dim: usize,
        groups: Range<usize>,
        scores: &mut Scores<M>,
    ) {
        let mut group = groups.start;
        while group + 2 <= groups.end {
            self.score::<M, 2>(queries, [keys, ahead], head_dim, group, scores);
            group += 2;
        }
        if group < groups.end {
            self.score::<M, 1>(queries, [keys, ahead], head_dim, group, scores);
        }
    }

    #[inline(always)]
    fn total<const M: usize>(self, groups: Range<usize>, weights: &mut Scores<M>, totals: &mut [[f32; LANES]; M]) {
        const ONES: u32 = 0x3f80_3f80;
        let ones = splat(self.simd, f32::from_bits(ONES));
        let nothing = self.simd.avx512f._mm512_setzero_ps();
        for (weights, totals) in weights.iter_mut().zip(totals) {
            let mut total: __m512 = bytemuck::cast(*totals);
            let Some(vectors) = weights.as_chunks_mut::<LANES>().0.first_chunk_mut::<4>() else { continue };
            for half in 0..2 {
                let of = |group: usize| if groups.contains(&group) { bytemuck::cast(vectors[group]) } else { nothing };
                let rounded = self.bf16.round(of(2 * half), of(2 * half + 1));
                total = self.bf16.multiply(total, rounded, ones);
                vectors[half] = bytemuck::cast(rounded);
            }
            *totals = bytemuck::cast(total);
        }
    }

    #[inline(always)]
    fn add<const M: usize>(
        self,
        weights: &Scores<M>,
        values: Values<'_, bf16>,
        slots: Range<usize>,
        factors: &[f32; M],
        sums: &mut [f32],
    ) {
        let width = sums.len() / M;
        for column in (0..width).step_by(Self::WIDTH) {
            self.add_columns(weights, values, slots.clone(), factors, column, sums);
        }
    }
}

impl<const APART: bool> Pairs<APART> {
    /// The scores of `V` groups of keys, `[groups][head_dim][LANES]`. Queries are pairs, `[head_dim / 2][M]`.
    #[inline(always)]
    fn score<const M: usize, const V: usize>(
        self,
        queries: &[f32],
        [keys, ahead]: [&[bf16]; 2],
        head_dim: usize,
        group: usize,
        scores: &mut Scores<M>,
    ) {
        let queries = queries.as_chunks::<M>().0.get(..head_dim / 2).unwrap_or_default();
        // The keys of the first group and of the last, which may be one. What follows has no other way out than its end: where
        // there is one, compilers keep the sums in memory.
        let places = [group, group + V - 1];
        let [first, last] = places.map(|group| self::group::<bf16, 32>(keys, group, head_dim));
        let ahead = places.map(|group| self::group::<bf16, 32>(ahead, group, head_dim));
        let mut sums = [[self.simd.avx512f._mm512_setzero_ps(); 2]; MOST_ROWS];
        for (at, ((queries, first), last)) in queries.iter().zip(first).zip(last).enumerate() {
            if APART {
                ahead.iter().filter_map(|ahead| ahead.get(at)).for_each(prefetch);
            }
            let (first, last) = (self.key(first), self.key(last));
            each_row!(ROW < M, {
                let query = splat(self.simd, queries[ROW]);
                sums[ROW][0] = self.bf16.multiply(sums[ROW][0], query, first);
                if V == 2 {
                    sums[ROW][1] = self.bf16.multiply(sums[ROW][1], query, last);
                }
            });
        }
        each_row!(ROW < M, {
            put(&mut scores[ROW], group * LANES, sums[ROW][0]);
            if V == 2 {
                put(&mut scores[ROW], (group + 1) * LANES, sums[ROW][1]);
            }
        });
    }

    /// The weighted sums of two vectors of columns. Values are pairs of two slots', `[slots / 2][2 * stride]`, or
    /// `[slots][stride]`.
    #[inline(always)]
    fn add_columns<const M: usize>(
        self,
        weights: &Scores<M>,
        Values { numbers, ahead, stride }: Values<'_, bf16>,
        slots: Range<usize>,
        factors: &[f32; M],
        column: usize,
        sums: &mut [f32],
    ) {
        let (simd, width) = (self.simd, sums.len() / M);
        let mut registers = [[simd.avx512f._mm512_setzero_ps(); 2]; MOST_ROWS];
        each_row!(ROW < M, {
            let factor = simd.avx512f._mm512_set1_ps(factors[ROW]);
            let [first, second] = [0, LANES].map(|at| get(sums, ROW * width + column + at));
            registers[ROW] = [first, second].map(|sums| simd.avx512f._mm512_mul_ps(sums, factor));
        });
        let pairs = slots.start / 2..slots.end.div_ceil(2);
        let start = 2 * pairs.start * stride + if APART { column } else { 2 * column };
        let [values, ahead] = [numbers, ahead].map(|numbers| numbers.get(start..).unwrap_or_default());
        let apart = if APART { stride } else { 32 };
        for ((at, pair), values) in pairs.enumerate().zip(values.chunks((2 * stride).max(1))) {
            if APART {
                [0, stride].iter().filter_map(|other| ahead.get(2 * at * stride + other)).for_each(prefetch);
            }
            let (first, second) = (vector(values), vector(values.get(apart..).unwrap_or_default()));
            let [first, second] = if APART {
                // What stands behind the last slot is none of a query's business.
                let nothing = simd.avx512f._mm512_setzero_si512();
                in_turn(simd, first, if 2 * pair + 1 < slots.end { second } else { nothing })
            } else {
                [first, second]
            };
            each_row!(ROW < M, {
                let weights = splat(simd, weights[ROW][pair % BLOCK_TOKENS]);
                registers[ROW][0] = self.bf16.multiply(registers[ROW][0], weights, first);
                registers[ROW][1] = self.bf16.multiply(registers[ROW][1], weights, second);
            });
        }
        each_row!(ROW < M, {
            put(sums, ROW * width + column, registers[ROW][0]);
            put(sums, ROW * width + column + LANES, registers[ROW][1]);
        });
    }
}

/// A vector of sums; of zeros where there are none.
#[inline(always)]
fn get(sums: &[f32], at: usize) -> __m512 {
    bytemuck::cast(*sums.get(at..).and_then(|sums| sums.first_chunk()).unwrap_or(&[0f32; LANES]))
}

/// Puts a vector into its place.
#[inline(always)]
fn put(numbers: &mut [f32], at: usize, vector: __m512) {
    if let Some(place) = numbers.get_mut(at..).and_then(|numbers| numbers.first_chunk_mut::<LANES>()) {
        *place = bytemuck::cast(vector);
    }
}

/// The first 32 numbers; zeros where there are fewer.
#[inline(always)]
fn vector(numbers: &[bf16]) -> __m512i {
    bytemuck::cast(*numbers.first_chunk().unwrap_or(&[bf16::ZERO; 32]))
}
