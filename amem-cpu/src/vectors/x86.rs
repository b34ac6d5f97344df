//! What AVX2 and F16C do with the numbers of a cache, and stores that pass the caches by.

use std::any::Any;
use std::arch::x86_64::*;

use bytemuck::Pod;
use half::f16;
use pulp::Simd;
use pulp::x86::V3;

use super::{AnySimd, ROW_PART, Streaming, Vectors};
use crate::cache::LANES;
use crate::isa::Avx2F16c;
use crate::load_kv::Load;
use crate::number::{Element, v4};

/// The instructions of AVX2, if these have them. What it comes to is known when the code is compiled.
#[inline(always)]
pub(crate) fn v3<S: Simd>(simd: S) -> Option<V3> {
    (&simd as &dyn Any).downcast_ref().copied().or_else(|| v4(simd).map(|simd| *simd))
}

/// Vectors that are put between each other, in pairs, by two instructions.
macro_rules! mix_each {
    ($simd:ident, $v:ident, $low:ident, $high:ident, [$(($a:literal, $b:literal)),*]) => {
        [$($simd.avx2.$low($v[$a], $v[$b]), $simd.avx2.$high($v[$a], $v[$b])),*]
    };
}

/// Transposes rows of numbers of 16 bits. Row `n` and row `n + 8` share a vector, and go through three rounds in which pairs of
/// vectors are put between each other: numbers, twos and fours.
#[inline(always)]
pub(crate) fn transpose<T: Pod>(simd: V3, rows: [[T; ROW_PART]; LANES]) -> [[T; LANES]; ROW_PART] {
    let mut v = [simd.avx._mm256_setzero_si256(); ROW_PART];
    for (row, v) in v.iter_mut().enumerate() {
        *v = simd.avx._mm256_set_m128i(bytemuck::cast(rows[row + 8]), bytemuck::cast(rows[row]));
    }
    let v = mix_each!(simd, v, _mm256_unpacklo_epi16, _mm256_unpackhi_epi16, [(0, 1), (2, 3), (4, 5), (6, 7)]);
    let v = mix_each!(simd, v, _mm256_unpacklo_epi32, _mm256_unpackhi_epi32, [(0, 2), (1, 3), (4, 6), (5, 7)]);
    let v = mix_each!(simd, v, _mm256_unpacklo_epi64, _mm256_unpackhi_epi64, [(0, 4), (1, 5), (2, 6), (3, 7)]);
    let mut columns = [[T::zeroed(); LANES]; ROW_PART];
    for (to, v) in columns.iter_mut().zip(v) {
        *to = bytemuck::cast(v);
    }
    columns
}

/// Copies numbers past the caches, if there are whole vectors where they go to.
#[inline(always)]
pub(super) fn put<T: Pod>(_: V3, from: &[T], to: &mut [T], _: Streaming<'_>) {
    let Ok(vectors) = bytemuck::try_cast_slice_mut::<T, __m256i>(to) else { return to.copy_from_slice(from) };
    let from: &[[u8; size_of::<__m256i>()]] = bytemuck::cast_slice::<T, u8>(from).as_chunks().0;
    for (to, from) in vectors.iter_mut().zip(from) {
        // SAFETY: there is a `V3` only where the machine has AVX, and the place is aligned as its type is. Such a store may be
        // seen late by other threads: they must not read the place before the `Fence` that `Streaming` borrows is dropped.
        // Only `Load::put` makes one, and drops it before its task ends and others learn of that.
        #[allow(unsafe_code, reason = "no safe function passes the caches by")]
        unsafe {
            _mm256_stream_si256(to, bytemuck::cast(*from));
        }
    }
}

/// Waits until others can see what was written past the caches.
#[inline(always)]
pub(super) fn fence() {
    // SAFETY: every x86-64 has SSE.
    #[allow(unsafe_code, reason = "no safe function waits for it")]
    unsafe {
        _mm_sfence();
    }
}

/// AVX2 with F16C, for f16.
#[derive(Clone, Copy)]
struct F16c(Avx2F16c);

impl Avx2F16c {
    /// Puts a layer of a chunk into a cache of f16.
    pub(crate) fn load(self, load: Load<'_>) {
        // SAFETY: `self` is made only where the machine has AVX2, FMA and F16C.
        #[allow(unsafe_code)]
        unsafe {
            put_load(self, load);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn put_load(avx2: Avx2F16c, load: Load<'_>) {
    load.put(F16c(avx2));
}

impl F16c {
    #[inline(always)]
    fn widened(self, numbers: [f16; LANES / 2]) -> __m256 {
        // SAFETY: there is an `Avx2F16c` only where the machine has F16C.
        #[allow(unsafe_code, reason = "an instruction is called that was found to be there")]
        unsafe {
            _mm256_cvtph_ps(bytemuck::cast(numbers))
        }
    }

    /// As [`f32_to_f16`](amem_core::f32_to_f16) rounds them: none becomes an infinity, and those that are not a number keep no
    /// more than their sign.
    #[inline(always)]
    fn narrowed(self, first: __m256, second: __m256) -> [f16; LANES] {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        // SAFETY: there is an `Avx2F16c` only where the machine has F16C.
        #[allow(unsafe_code, reason = "an instruction is called that was found to be there")]
        let (first, second) = unsafe { (_mm256_cvtps_ph::<NEAREST>(first), _mm256_cvtps_ph::<NEAREST>(second)) };
        let (avx, v) = (self.0.simd().avx, self.0.simd().avx2);
        let rounded = avx._mm256_set_m128i(second, first);
        // Without their signs, as whole numbers, they are in the order of their sizes: infinity comes after the largest, and
        // what is not a number after that.
        let size = v._mm256_and_si256(rounded, avx._mm256_set1_epi16(i16::MAX));
        let is_nan = v._mm256_cmpgt_epi16(size, avx._mm256_set1_epi16(f16::INFINITY.to_bits().cast_signed()));
        let limited = v._mm256_min_epi16(size, avx._mm256_set1_epi16(f16::MAX.to_bits().cast_signed()));
        let tame = v._mm256_blendv_epi8(limited, avx._mm256_set1_epi16(f16::NAN.to_bits().cast_signed()), is_nan);
        bytemuck::cast(v._mm256_or_si256(tame, v._mm256_xor_si256(rounded, size)))
    }
}

impl Vectors<f16> for F16c {
    #[inline(always)]
    fn transpose(self, rows: [[f16; ROW_PART]; LANES]) -> [[f16; LANES]; ROW_PART] {
        transpose(self.0.simd(), rows)
    }

    #[inline(always)]
    fn rotate(self, [low, high]: [&[f16; LANES]; 2], [cos, sin]: &[[f32; LANES]; 2]) -> [[f16; LANES]; 2] {
        let v = self.0.simd().avx;
        let [low, high]: [[[f16; LANES / 2]; 2]; 2] = [bytemuck::cast(*low), bytemuck::cast(*high)];
        let [cos, sin]: [[__m256; 2]; 2] = [bytemuck::cast(*cos), bytemuck::cast(*sin)];
        let mut rotated = [[v._mm256_setzero_ps(); 2]; 2];
        for half in 0..2 {
            let (low, high) = (self.widened(low[half]), self.widened(high[half]));
            let (cos, sin) = (cos[half], sin[half]);
            rotated[0][half] = v._mm256_sub_ps(v._mm256_mul_ps(low, cos), v._mm256_mul_ps(high, sin));
            rotated[1][half] = v._mm256_add_ps(v._mm256_mul_ps(high, cos), v._mm256_mul_ps(low, sin));
        }
        [self.narrowed(rotated[0][0], rotated[0][1]), self.narrowed(rotated[1][0], rotated[1][1])]
    }

    #[inline(always)]
    fn narrow(self, from: &[f32], to: &mut [f16]) {
        let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<LANES>(), to.as_chunks_mut::<LANES>());
        for (from, to) in from.iter().zip(to) {
            let [first, second] = bytemuck::cast(*from);
            *to = self.narrowed(first, second);
        }
        f16::narrow(self.0.simd(), from_rest, to_rest);
    }

    #[inline(always)]
    fn put(self, from: &[f16], to: &mut [f16], streaming: Option<Streaming<'_>>) {
        AnySimd(self.0.simd()).put(from, to, streaming);
    }
}
