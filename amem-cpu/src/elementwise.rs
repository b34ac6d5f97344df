//! Norms, SiLU and the exponential. Written so that a compiler vectorises them; inlined into the code that
//! [`pulp::Arch::dispatch`] compiles for each instruction set.
//!
//! What is dispatched is a struct and not a closure: nothing makes the compiler inline a closure, and one that is not
//! inlined is compiled for no instruction set in particular.

use pulp::{Simd, WithSimd};

/// Partial sums of a reduction. A fixed number, whatever the machine's vectors hold, so that sums have the same bits
/// everywhere.
const PARTIAL_SUMS: usize = 16;

/// `e^x` to within 2 units in the last place for x in [-87, 88], the nearest end of that range elsewhere.
///
/// x = n·ln 2 + r with |r| ≤ ½ ln 2; a polynomial for e^r (Taylor's to the seventh power), then n into the exponent.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it leaves the rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// Sums `f` of each element, in [`PARTIAL_SUMS`] partial sums.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; PARTIAL_SUMS];
    let chunks = x.chunks_exact(PARTIAL_SUMS);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum = f(*sum, x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum = f(*sum, x);
    }
    total_of(sums)
}

/// Partial sums added up, in an order that is the same everywhere.
#[inline(always)]
pub(crate) fn total_of<const N: usize>(mut sums: [f32; N]) -> f32 {
    const { assert!(N.is_power_of_two()) };
    let mut width = N / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// A norm of runs of numbers that are as long as its weights.
#[derive(Clone, Copy)]
pub(crate) enum Norm<'a> {
    /// By the root mean square.
    Rms { weight: &'a [f32], eps: f32 },
    /// By mean and variance, with as many biases.
    Layer { weight: &'a [f32], bias: &'a [f32], eps: f32 },
}

impl Norm<'_> {
    /// About how many multiplications it takes for each number.
    pub(crate) fn cost(self) -> usize {
        match self {
            Self::Rms { .. } => 2,
            Self::Layer { .. } => 4,
        }
    }
}

/// Puts the norm of each run of `x` into `y`.
pub(crate) struct Normalize<'a> {
    pub(crate) norm: Norm<'a>,
    pub(crate) x: &'a [f32],
    pub(crate) y: &'a mut [f32],
}

impl WithSimd for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (Norm::Rms { weight, .. } | Norm::Layer { weight, .. }) = self.norm;
        let length = weight.len().max(1);
        for (x, y) in self.x.chunks_exact(length).zip(self.y.chunks_exact_mut(length)) {
            match self.norm {
                Norm::Rms { weight, eps } => rms_norm(x, y, weight, eps),
                Norm::Layer { weight, bias, eps } => layer_norm(x, y, weight, bias, eps),
            }
        }
    }
}

#[inline(always)]
fn rms_norm(x: &[f32], y: &mut [f32], weight: &[f32], eps: f32) {
    let square = sum(x, |sum, x| x.mul_add(x, sum));
    let scale = 1.0 / (square / x.len() as f32 + eps).sqrt();
    for ((x, y), &w) in x.iter().zip(y).zip(weight) {
        *y = *x * scale * w;
    }
}

#[inline(always)]
fn layer_norm(x: &[f32], y: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let mean = sum(x, |sum, x| sum + x) / x.len() as f32;
    // The mean first: a difference of large squares would lose the digits of a small variance.
    let square = sum(x, |sum, x| (x - mean).mul_add(x - mean, sum));
    let scale = 1.0 / (square / x.len() as f32 + eps).sqrt();
    for (((x, y), &w), &b) in x.iter().zip(y).zip(weight).zip(bias) {
        *y = ((x - mean) * scale).mul_add(w, b);
    }
}

/// `x += y`.
pub(crate) struct Add<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) y: &'a [f32],
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            *x += y;
        }
    }
}

/// Adds the squared distance of each row of `x` from that of `y`, times `factor`, to its sum.
pub(crate) struct AddRowDistance<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) y: &'a [f32],
    pub(crate) factor: f32,
    pub(crate) sums: &'a mut [f32],
}

impl WithSimd for AddRowDistance<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let columns = (self.x.len() / self.sums.len().max(1)).max(1);
        let rows = self.x.chunks_exact(columns).zip(self.y.chunks_exact(columns));
        for (total, (x, y)) in self.sums.iter_mut().zip(rows) {
            let mut sums = [0f32; PARTIAL_SUMS];
            let ((x, last_x), (y, last_y)) = (x.as_chunks::<PARTIAL_SUMS>(), y.as_chunks::<PARTIAL_SUMS>());
            for (x, y) in x.iter().zip(y) {
                for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                    *sum = (x - y).mul_add(x - y, *sum);
                }
            }
            for ((sum, x), y) in sums.iter_mut().zip(last_x).zip(last_y) {
                *sum = (x - y).mul_add(x - y, *sum);
            }
            *total += self.factor * total_of(sums);
        }
    }
}

/// Softmax in place. Leaves an empty slice alone.
#[inline(always)]
pub(crate) fn softmax(x: &mut [f32]) {
    let mut tops = [f32::NEG_INFINITY; PARTIAL_SUMS];
    let chunks = x.chunks_exact(PARTIAL_SUMS);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (top, &x) in tops.iter_mut().zip(chunk) {
            *top = if x > *top { x } else { *top };
        }
    }
    let top = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, &x| if x > top { x } else { top });
    for x in x.iter_mut() {
        *x = exp(*x - top);
    }
    let scale = 1.0 / sum(x, |sum, x| sum + x);
    for x in x.iter_mut() {
        *x *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_exponential_is_accurate(x in -86.0f32..88.0) {
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            prop_assert!((ours / exact - 1.0).abs() < 2.5e-7, "e^{x} = {ours}, should be {exact}");
        }

        #[test]
        fn softmax_sums_to_one_and_keeps_the_order(mut x in prop::collection::vec(-30.0f32..30.0, 1..200)) {
            let before = x.clone();
            softmax(&mut x);
            prop_assert!((x.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            for (i, j) in (0..x.len()).zip(1..x.len()) {
                prop_assert!(before[i] > before[j] || x[i] <= x[j]);
            }
        }
    }

    #[test]
    fn the_exponential_saturates_instead_of_overflowing() {
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }
}
