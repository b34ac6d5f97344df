//! What NEON does with f16 and with numbers of vectors, as far as `pulp` does not have it.

use std::arch::aarch64::{
    float32x4_t, uint16x8_t, uint32x4_t, uint64x2_t, vcvt_f16_f32, vcvt_f32_f16, vreinterpret_f16_u16,
    vreinterpret_u16_f16,
};
use std::arch::asm;

use bytemuck::Pod;
use half::{bf16, f16};
use pulp::Simd;
use pulp::aarch64::Neon;

use crate::cache::LANES;
use crate::number::neon;
use crate::unroll::{MOST_ROWS, each_row};
use crate::vectors::ROW_PART;

/// Four numbers as f32.
#[inline(always)]
#[allow(unsafe_code, reason = "an instruction is called that was found to be there")]
pub(crate) fn widen(_: Neon, numbers: [f16; 4]) -> float32x4_t {
    // SAFETY: there is a `Neon` only where the machine has NEON.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(bytemuck::cast(numbers))) }
}

/// Four numbers as f32.
#[inline(always)]
pub(crate) fn widen_bf16(simd: Neon, numbers: [bf16; 4]) -> float32x4_t {
    bytemuck::cast(simd.neon.vshll_n_u16::<16>(bytemuck::cast(numbers)))
}

/// Four numbers as [`f32_to_f16`](amem_core::f32_to_f16) makes them: none becomes an infinity, and those that are not a number
/// keep no more than their sign.
#[inline(always)]
#[allow(unsafe_code, reason = "an instruction is called that was found to be there")]
pub(crate) fn narrow(simd: Neon, numbers: [f32; 4]) -> [f16; 4] {
    let (v, x): (_, float32x4_t) = (simd.neon, bytemuck::cast(numbers));
    let [largest, least, sign, nan] = [65504.0, -65504.0, -0.0, f32::NAN].map(|x| v.vdupq_n_f32(x));
    let limited = v.vmaxnmq_f32(v.vminnmq_f32(x, largest), least);
    let signed_nan = v.vbslq_f32(bytemuck::cast(sign), x, nan);
    let tame = v.vbslq_f32(v.vceqq_f32(x, x), limited, signed_nan);
    // SAFETY: there is a `Neon` only where the machine has NEON.
    bytemuck::cast(unsafe { vreinterpret_u16_f16(vcvt_f16_f32(tame)) })
}

/// Has the processor fetch a cache line that is wanted soon.
#[inline(always)]
#[allow(unsafe_code, reason = "no safe function fetches ahead")]
pub(crate) fn prefetch<T>(number: &T) {
    // SAFETY: the instruction is part of every aarch64, and changes nothing that a program could notice.
    unsafe {
        asm!("prfm pldl1keep, [{}]", in(reg) std::ptr::from_ref(number), options(readonly, nostack, preserves_flags));
    }
}

/// Adds to the sums of each row its number times each of some vectors, if these are the instructions: `false` where they are not.
///
/// A number is taken out of a vector of four rows' by the instruction that multiplies with it. As a vector of its own, which is
/// what a splat is, it would take another instruction's place.
#[inline(always)]
pub(crate) fn add_products<S: Simd, const ROWS: usize, const VECTORS: usize, const WIDTH: usize>(
    simd: S,
    x: &[f32; ROWS],
    b: [S::f32s; WIDTH],
    sums: &mut [[S::f32s; WIDTH]; MOST_ROWS],
) -> bool {
    let Some(simd) = neon(simd) else { return false };
    let fours = x.as_chunks::<4>().0;
    let four =
        |index: usize| -> float32x4_t { fours.get(index).map_or(simd.neon.vdupq_n_f32(0.0), |x| bytemuck::cast(*x)) };
    let fours: [float32x4_t; MOST_ROWS / 4] = [four(0), four(1), four(2)];
    each_row!(ROW < ROWS, {
        const LANE: i32 = (ROW % 4) as i32;
        each_row!(VECTOR < VECTORS, {
            let (before, b) = (bytemuck::cast(sums[ROW][VECTOR]), bytemuck::cast(b[VECTOR]));
            sums[ROW][VECTOR] = bytemuck::cast(if ROW / 4 * 4 + 4 <= ROWS {
                simd.neon.vfmaq_laneq_f32::<LANE>(before, b, fours[ROW / 4])
            } else {
                simd.neon.vfmaq_n_f32(before, b, x[ROW])
            });
        });
    });
    true
}

/// Transposes rows of numbers of 16 bits, eight rows at a time: in three rounds pairs of vectors are put between each other,
/// numbers, twos and fours.
#[inline(always)]
pub(crate) fn transpose<T: Pod>(simd: Neon, rows: [[T; ROW_PART]; LANES]) -> [[T; LANES]; ROW_PART] {
    let v = simd.neon;
    let numbers = |a, b| [v.vzip1q_u16(a, b), v.vzip2q_u16(a, b)].map(bytemuck::cast::<_, uint32x4_t>);
    let twos = |a, b| [v.vzip1q_u32(a, b), v.vzip2q_u32(a, b)].map(bytemuck::cast::<_, uint64x2_t>);
    let fours = |a, b| [v.vzip1q_u64(a, b), v.vzip2q_u64(a, b)];
    let eight = |first: usize| -> [uint64x2_t; ROW_PART] {
        let row = |row: usize| bytemuck::cast::<_, uint16x8_t>(rows[first + row]);
        let [[a, e], [b, f]] = [numbers(row(0), row(1)), numbers(row(2), row(3))];
        let [[c, g], [d, h]] = [numbers(row(4), row(5)), numbers(row(6), row(7))];
        let [[a, c, e, g], [b, d, f, h]] = [[a, b, e, f], [c, d, g, h]].map(|[a, b, e, f]| {
            let ([a, c], [e, g]) = (twos(a, b), twos(e, f));
            [a, c, e, g]
        });
        let [[a, b], [c, d], [e, f], [g, h]] = [fours(a, b), fours(c, d), fours(e, f), fours(g, h)];
        [a, b, c, d, e, f, g, h]
    };
    let [first, second] = [eight(0), eight(8)];
    std::array::from_fn(|row| bytemuck::cast([first[row], second[row]]))
}
