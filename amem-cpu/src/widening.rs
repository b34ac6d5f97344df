//! Vectors of f32 that are loaded from numbers of other types.

use amem_core::{bf16_to_f32, f16_to_f32};
use bytemuck::Pod;
use half::{bf16, f16};
use pulp::{NullaryFnOnce, Simd};

/// Vectors, and the instructions by which numbers of `N` become f32 in them.
pub(crate) trait Loads<N>: Copy {
    type Simd: Simd;

    fn simd(self) -> Self::Simd;

    /// A vector of the first numbers.
    fn load(self, numbers: &[N]) -> Vector<Self, N>;

    fn vectorize<F: NullaryFnOnce>(self, f: F) -> F::Output;
}

pub(crate) type Vector<L, N> = <<L as Loads<N>>::Simd as Simd>::f32s;

/// The vectors of `S`, with its own instructions.
#[derive(Clone, Copy)]
pub(crate) struct Native<S>(pub(crate) S);

impl<S: Simd, N: Wider> Loads<N> for Native<S> {
    type Simd = S;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn load(self, numbers: &[N]) -> S::f32s {
        N::load(self.0, numbers)
    }

    #[inline(always)]
    fn vectorize<F: NullaryFnOnce>(self, f: F) -> F::Output {
        self.0.vectorize(f)
    }
}

/// Numbers that are f32 once they are loaded: those of 16 bits by an instruction with AVX-512 and with NEON, and bf16 with
/// AVX2. [`Avx2F16c`](crate::isa::Avx2F16c) does the same for f16.
pub(crate) trait Wider: Pod {
    /// A vector of numbers.
    fn load<S: Simd>(simd: S, numbers: &[Self]) -> S::f32s;
}

impl Wider for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, numbers: &[Self]) -> S::f32s {
        S::as_simd_f32s(numbers).0.first().copied().unwrap_or(simd.splat_f32s(0.0))
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
        one_by_one(simd, numbers.iter().map(|number| f16_to_f32(number.to_bits())))
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
        #[cfg(target_arch = "x86_64")]
        if let (Some(v3), Some(numbers), 8) = (crate::vectors::v3(simd), numbers.first_chunk::<8>(), S::F32_LANES) {
            let wide = v3.avx2._mm256_cvtepu16_epi32(bytemuck::cast(*numbers));
            return bytemuck::cast(v3.avx2._mm256_slli_epi32::<16>(wide));
        }
        #[cfg(target_arch = "aarch64")]
        if let (Some(neon), Some(numbers)) = (crate::number::neon(simd), numbers.first_chunk::<4>()) {
            return bytemuck::cast(crate::neon::widen_bf16(neon, *numbers));
        }
        one_by_one(simd, numbers.iter().map(|number| bf16_to_f32(number.to_bits())))
    }
}

/// A vector of the first numbers, where no instruction widens them; of one number, where vectors have no more.
#[inline(always)]
fn one_by_one<S: Simd>(simd: S, numbers: impl Iterator<Item = f32>) -> S::f32s {
    let mut vector = simd.splat_f32s(0.0);
    let lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut vector));
    lanes.iter_mut().zip(numbers).for_each(|(lane, number)| *lane = number);
    vector
}

/// Has the processor fetch what is wanted soon, and comes from memory in an order that it does not guess, or in bursts.
#[inline(always)]
#[allow(unsafe_code, reason = "no safe function fetches ahead")]
pub(crate) fn prefetch<T>(numbers: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and fetching changes nothing that a program could notice.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(numbers).cast());
    }
    #[cfg(target_arch = "aarch64")]
    crate::neon::prefetch(numbers);
    let _ = numbers;
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "instructions are called that were found to be there")]
mod x86 {
    use std::arch::x86_64::{__m256, _mm256_cvtph_ps};

    use half::f16;
    use pulp::x86::V3;
    use pulp::{NullaryFnOnce, Simd};

    use super::Loads;
    use crate::isa::Avx2F16c;

    /// F16C makes eight f16 f32 as it loads them.
    impl Loads<f16> for Avx2F16c {
        type Simd = V3;

        #[inline(always)]
        fn simd(self) -> V3 {
            Avx2F16c::simd(self)
        }

        #[inline(always)]
        fn load(self, numbers: &[f16]) -> <V3 as Simd>::f32s {
            match numbers.first_chunk::<8>() {
                // SAFETY: there is an `Avx2F16c` only where the machine has F16C.
                Some(numbers) => bytemuck::cast(unsafe { _mm256_cvtph_ps(bytemuck::cast(*numbers)) }),
                None => Avx2F16c::simd(self).splat_f32s(f32::NAN),
            }
        }

        #[inline(always)]
        fn vectorize<F: NullaryFnOnce>(self, f: F) -> F::Output {
            // SAFETY: there is an `Avx2F16c` only where the machine has AVX2, FMA and F16C.
            unsafe { call(f) }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn call<F: NullaryFnOnce>(f: F) -> F::Output {
        f.call()
    }

    impl Avx2F16c {
        /// Numbers as f32.
        pub(crate) fn widen(self, from: &[f16], to: &mut [f32]) {
            // SAFETY: there is an `Avx2F16c` only where the machine has AVX2, FMA and F16C.
            unsafe { widen(from, to) }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen(from: &[f16], to: &mut [f32]) {
        let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
        let wide = |numbers: [f16; 8]| -> __m256 { _mm256_cvtph_ps(bytemuck::cast(numbers)) };
        from.iter().zip(to).for_each(|(from, to)| *to = bytemuck::cast(wide(*from)));
        from_rest.iter().zip(to_rest).for_each(|(from, to)| *to = from.to_f32_const());
    }

    #[cfg(test)]
    mod tests {
        use half::f16;

        use crate::Instructions;
        use crate::isa::Isa;

        #[test]
        fn every_f16_is_widened_to_the_number_that_it_is() {
            let Some(isa) = Isa::of(Instructions::Avx2).and_then(|isa| isa.avx2) else { return };
            let numbers: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).chain([f16::ONE; 3]).collect();
            let mut wide = vec![0f32; numbers.len()];
            isa.widen(&numbers, &mut wide);
            for (number, wide) in numbers.iter().zip(wide) {
                let expected = number.to_f32_const();
                assert!(
                    wide.to_bits() == expected.to_bits() || (wide.is_nan() && expected.is_nan()),
                    "{number}: {wide}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, WithSimd};

    use super::*;

    /// The numbers of a vector that is loaded.
    struct Loaded<'a, N>(&'a [N]);

    impl<N: Wider> WithSimd for Loaded<'_, N> {
        type Output = Vec<f32>;

        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            bytemuck::cast_slice(&[Native(simd).load(self.0)]).to_vec()
        }
    }

    #[test]
    fn numbers_of_every_kind_are_widened_as_they_are_loaded_whatever_the_vectors() {
        fn check<N: Wider>(number: impl Fn(f32) -> N) {
            let numbers: Vec<N> = (1..=16).map(|at| number(at as f32 / 4.0)).collect();
            for arch in [Arch::Scalar, Arch::new()] {
                let loaded = arch.dispatch(Loaded(&numbers));
                assert!(!loaded.is_empty());
                for (at, loaded) in (1..).zip(loaded) {
                    assert_eq!(loaded, at as f32 / 4.0, "{arch:?}");
                }
            }
        }
        check(|number| number);
        check(f16::from_f32);
        check(bf16::from_f32);
    }
}
