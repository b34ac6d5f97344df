//! Numbers as a KV cache holds them, and what is done with many of them at once.
//!
//! All of it is written as plain arithmetic that compilers make vector instructions of. Where a processor has an
//! instruction for a whole step, that is used instead; it gives the same bits.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::any::Any;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512;

use amem_core::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use bytemuck::Pod;
use half::{bf16, f16};
use pulp::Simd;

use crate::cache::{Head, LANES};
use crate::lines::Lines;
use crate::vectors::ROW_PART;

/// A number as it stands in a cache.
pub(crate) trait Element: Pod + Default + Send + Sync {
    /// Rounds numbers.
    fn narrow<S: Simd>(simd: S, from: &[f32], to: &mut [Self]);

    /// The numbers as f32: as they lie, or put into `space`.
    fn widen<'a, S: Simd>(simd: S, from: &'a [Self], space: &'a mut [f32]) -> &'a [f32];

    /// Lays rows across.
    fn transpose<S: Simd>(simd: S, rows: [[Self; ROW_PART]; LANES]) -> [[Self; LANES]; ROW_PART];

    /// A head's blocks, if these are its numbers.
    fn blocks(head: &mut Head) -> Option<&mut Vec<Lines<Self>>>;
}

impl Element for f32 {
    #[inline(always)]
    fn narrow<S: Simd>(_: S, from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn widen<'a, S: Simd>(_: S, from: &'a [Self], _: &'a mut [f32]) -> &'a [f32] {
        from
    }

    #[inline(always)]
    fn transpose<S: Simd>(_: S, rows: [[Self; ROW_PART]; LANES]) -> [[Self; LANES]; ROW_PART] {
        transpose_by_interleaving(rows, |first, second, to| {
            let [first, second] = [first, second].map(bytemuck::cast_slice::<f32, u32>);
            let pairs = bytemuck::cast_slice_mut::<f32, u8>(to).as_chunks_mut::<8>().0;
            for ((pair, &a), &b) in pairs.iter_mut().zip(first).zip(second) {
                let (a, b) = if cfg!(target_endian = "little") { (a, b) } else { (b, a) };
                *pair = (u64::from(a) | u64::from(b) << 32).to_ne_bytes();
            }
        })
    }

    #[inline(always)]
    fn blocks(head: &mut Head) -> Option<&mut Vec<Lines<Self>>> {
        if let Head::F32(blocks) = head { Some(blocks) } else { None }
    }
}

impl Element for f16 {
    #[inline(always)]
    fn narrow<S: Simd>(simd: S, from: &[f32], to: &mut [Self]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = v4(simd) {
            let (from, from_rest) = from.as_chunks::<16>();
            let (to, to_rest) = to.as_chunks_mut::<16>();
            for (from, to) in from.iter().zip(to) {
                *to = bytemuck::cast(
                    simd.avx512f._mm512_cvtps_ph::<NEAREST>(saturate_for_f16(simd, bytemuck::cast(*from))),
                );
            }
            return narrow_each(from_rest, to_rest);
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(simd) = neon(simd) {
            let (from, from_rest) = from.as_chunks::<4>();
            let (to, to_rest) = to.as_chunks_mut::<4>();
            from.iter().zip(to).for_each(|(from, to)| *to = crate::neon::narrow(simd, *from));
            return narrow_each(from_rest, to_rest);
        }
        let _ = simd;
        narrow_each(from, to);
    }

    #[inline(always)]
    fn widen<'a, S: Simd>(simd: S, from: &'a [Self], space: &'a mut [f32]) -> &'a [f32] {
        let space = &mut space[..from.len()];
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = v4(simd) {
            let (from, from_rest) = from.as_chunks::<16>();
            let (to, to_rest) = space.as_chunks_mut::<16>();
            for (from, to) in from.iter().zip(to) {
                *to = bytemuck::cast(simd.avx512f._mm512_cvtph_ps(bytemuck::cast(*from)));
            }
            widen_each(from_rest, to_rest);
            return space;
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(simd) = neon(simd) {
            let (from, from_rest) = from.as_chunks::<4>();
            let (to, to_rest) = space.as_chunks_mut::<4>();
            from.iter().zip(to).for_each(|(from, to)| *to = bytemuck::cast(crate::neon::widen(simd, *from)));
            widen_each(from_rest, to_rest);
            return space;
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = crate::isa::Avx2F16c::of(simd) {
            avx2.widen(from, space);
            return space;
        }
        let _ = simd;
        widen_each(from, space);
        space
    }

    #[inline(always)]
    fn transpose<S: Simd>(simd: S, rows: [[Self; ROW_PART]; LANES]) -> [[Self; LANES]; ROW_PART] {
        transpose_16_bits(simd, rows)
    }

    #[inline(always)]
    fn blocks(head: &mut Head) -> Option<&mut Vec<Lines<Self>>> {
        if let Head::F16(blocks) = head { Some(blocks) } else { None }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn narrow<S: Simd>(_: S, from: &[f32], to: &mut [Self]) {
        from.iter().zip(to).for_each(|(&x, y)| *y = bf16::from_bits(f32_to_bf16(x)));
    }

    #[inline(always)]
    fn widen<'a, S: Simd>(_: S, from: &'a [Self], space: &'a mut [f32]) -> &'a [f32] {
        let space = &mut space[..from.len()];
        from.iter().zip(&mut *space).for_each(|(x, y)| *y = bf16_to_f32(x.to_bits()));
        space
    }

    #[inline(always)]
    fn transpose<S: Simd>(simd: S, rows: [[Self; ROW_PART]; LANES]) -> [[Self; LANES]; ROW_PART] {
        transpose_16_bits(simd, rows)
    }

    #[inline(always)]
    fn blocks(head: &mut Head) -> Option<&mut Vec<Lines<Self>>> {
        if let Head::Bf16(blocks) = head { Some(blocks) } else { None }
    }
}

/// Rounding to the nearest, ties to even.
#[cfg(target_arch = "x86_64")]
const NEAREST: i32 = 0;

/// Clamps to ±65504 and gives a NaN the payload that [`f32_to_f16`] gives it, so that the conversion in hardware equals
/// that function.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn saturate_for_f16(simd: pulp::x86::V4, x: __m512) -> __m512 {
    const UNORDERED: i32 = 3;
    let (f, dq) = (simd.avx512f, simd.avx512dq);
    let [largest, least, sign, nan] = [65504.0, -65504.0, -0.0, f32::NAN].map(|x| f._mm512_set1_ps(x));
    // Of two that cannot be compared these give the second.
    let limited = f._mm512_max_ps(least, f._mm512_min_ps(largest, x));
    let is_nan = f._mm512_cmp_ps_mask::<UNORDERED>(x, x);
    f._mm512_mask_blend_ps(is_nan, limited, dq._mm512_or_ps(dq._mm512_and_ps(x, sign), nan))
}

#[inline(always)]
fn narrow_each(from: &[f32], to: &mut [f16]) {
    from.iter().zip(to).for_each(|(&x, y)| *y = f16::from_bits(f32_to_f16(x)));
}

#[inline(always)]
fn widen_each(from: &[f16], to: &mut [f32]) {
    from.iter().zip(to).for_each(|(x, y)| *y = f16_to_f32(x.to_bits()));
}

/// [`Element::transpose`] for numbers of 16 bits.
#[inline(always)]
fn transpose_16_bits<S: Simd, T: Element>(simd: S, rows: [[T; ROW_PART]; LANES]) -> [[T; LANES]; ROW_PART] {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = crate::vectors::v3(simd) {
        return crate::vectors::transpose(simd, rows);
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(simd) = neon(simd) {
        return crate::neon::transpose(simd, rows);
    }
    let _ = simd;
    transpose_by_interleaving(rows, |first, second, to| {
        let [first, second] = [first, second].map(bytemuck::cast_slice::<T, u16>);
        let pairs = bytemuck::cast_slice_mut::<T, u8>(to).as_chunks_mut::<4>().0;
        for ((pair, &a), &b) in pairs.iter_mut().zip(first).zip(second) {
            let (a, b) = if cfg!(target_endian = "little") { (a, b) } else { (b, a) };
            *pair = (u32::from(a) | u32::from(b) << 16).to_ne_bytes();
        }
    })
}

/// Transposes in four rounds, each of which puts the numbers of the second half between those of the first. `mix` does one of
/// them as arithmetic on pairs, which compilers make vector instructions of; of strided copies they make none.
#[inline(always)]
fn transpose_by_interleaving<T: Element>(
    rows: [[T; ROW_PART]; LANES],
    mix: impl Fn(&[T], &[T], &mut [T]),
) -> [[T; LANES]; ROW_PART] {
    const { assert!(LANES == 1 << 4) };
    let [mut even, mut odd] = [[[T::default(); LANES]; ROW_PART]; 2];
    let round = |from: &[T], to: &mut [[T; LANES]; ROW_PART]| {
        let (first, second) = from.split_at(from.len() / 2);
        mix(first, second, to.as_flattened_mut());
    };
    round(rows.as_flattened(), &mut odd);
    round(odd.as_flattened(), &mut even);
    round(even.as_flattened(), &mut odd);
    round(odd.as_flattened(), &mut even);
    even
}

/// The instructions of AVX-512, if these are they. What it comes to is known when the code is compiled.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn v4<S: Simd>(simd: S) -> Option<pulp::x86::V4> {
    (&simd as &dyn Any).downcast_ref().copied()
}

/// The instructions of NEON, if these are they. What it comes to is known when the code is compiled.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn neon<S: Simd>(simd: S) -> Option<pulp::aarch64::Neon> {
    (&simd as &dyn Any).downcast_ref().copied()
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, WithSimd};

    use super::*;

    /// Numbers as f16, and back.
    struct Both<'a>(&'a [f32]);

    impl WithSimd for Both<'_> {
        type Output = (Vec<u16>, Vec<u32>);

        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let mut narrow = vec![f16::ZERO; self.0.len()];
            f16::narrow(simd, self.0, &mut narrow);
            let mut space = vec![0.0; narrow.len()];
            let wide = f16::widen(simd, &narrow, &mut space);
            (narrow.iter().map(|x| x.to_bits()).collect(), wide.iter().map(|x| x.to_bits()).collect())
        }
    }

    /// Rows, and what they are when they are transposed.
    struct Transposed<T>([[T; ROW_PART]; LANES]);

    impl<T: Element> WithSimd for Transposed<T> {
        type Output = [[T; LANES]; ROW_PART];

        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            T::transpose(simd, self.0)
        }
    }

    #[test]
    fn numbers_of_every_kind_are_rounded_alike_by_all_instructions() {
        // Every f16, what lies between it and the next, and what lies just beside that; and then numbers that no f16 is near.
        let near = (0..=u16::MAX).flat_map(|bits| {
            let (this, next) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits.wrapping_add(1)).to_f32());
            let between = this + (next - this) / 2.0;
            [this, between, between.next_up(), between.next_down()]
        });
        let far = [f32::MAX, f32::MIN, 1e-30, f32::MIN_POSITIVE / 4.0, 70000.0, -65520.0, f32::INFINITY, -f32::NAN];
        let signalling = [0x7f80_0001, 0xff80_0001, 0x7fff_ffff].map(f32::from_bits);
        let numbers: Vec<f32> = near.chain(far).chain(signalling).chain([0.5; 5]).collect();
        let expected = |x: &f32| match x.is_nan() {
            true => f16::from_bits(0x7e00 | if x.is_sign_negative() { 0x8000 } else { 0 }),
            false => f16::from_f32_const(x.clamp(-65504.0, 65504.0)),
        };
        let expected: Vec<f16> = numbers.iter().map(expected).collect();
        for arch in [Arch::Scalar, Arch::new()] {
            let (narrow, wide) = arch.dispatch(Both(&numbers));
            for (((x, expected), narrow), wide) in numbers.iter().zip(&expected).zip(narrow).zip(wide) {
                assert_eq!(narrow, expected.to_bits(), "{x:e} with {arch:?}");
                assert_eq!(wide, expected.to_f32_const().to_bits(), "{x:e} with {arch:?}");
            }
        }
    }

    #[test]
    fn rows_are_transposed_by_all_instructions() {
        fn check<T: Element + PartialEq + std::fmt::Debug>(number: impl Fn(usize) -> T) {
            let rows = std::array::from_fn(|row| std::array::from_fn(|column| number(row * ROW_PART + column)));
            let expected = std::array::from_fn(|row| std::array::from_fn(|column| number(column * ROW_PART + row)));
            for arch in [Arch::Scalar, Arch::new()] {
                assert_eq!(arch.dispatch(Transposed(rows)), expected, "{arch:?}");
            }
        }
        check(|number| number as f32);
        check(|number| f16::from_bits(number as u16 * 64));
        check(|number| bf16::from_bits(number as u16 * 64));
    }
}
