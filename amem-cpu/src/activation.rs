//! tanh, the error function and what is made of them. Written as what [`crate::elementwise`] holds.

use amem_core::transformer::Activation;
use amem_core::{Error, Result};
use pulp::{Simd, WithSimd};

use crate::elementwise::exp;
use crate::{Cpu, EXPONENTIAL, PART, Tensor};

/// `tanh(x)` to within 3 units in the last place.
///
/// Near zero a polynomial of x (Cephes' tanhf), which keeps the digits that 1 − 2/(e^2x + 1) loses there.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = square.mul_add(p, c);
    }
    let near = (p * square).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 { near } else { far.copysign(x) }
}

/// What makes `activation(y) · up` of `y`.
#[derive(Clone, Copy)]
pub(crate) enum Gated {
    Silu,
    GeluTanh,
}

impl Gated {
    pub(crate) fn by(activation: Activation) -> Result<Self> {
        match activation {
            Activation::Silu => Ok(Self::Silu),
            Activation::GeluTanh => Ok(Self::GeluTanh),
            other => {
                let value = format!("{other:?}");
                Err(Error::BadValue { what: "activation", value, expected: "Silu or GeluTanh" })
            }
        }
    }

    /// For as many numbers as both have.
    pub(crate) fn of<'a>(self, y: &'a mut [f32], up: &'a [f32]) -> GatedNumbers<'a> {
        GatedNumbers { gated: self, y, up }
    }
}

/// `y = activation(y) · up`.
pub(crate) struct GatedNumbers<'a> {
    gated: Gated,
    y: &'a mut [f32],
    up: &'a [f32],
}

impl WithSimd for GatedNumbers<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let numbers = self.y.iter_mut().zip(self.up);
        match self.gated {
            Gated::Silu => numbers.for_each(|(y, up)| *y = silu(*y) * up),
            Gated::GeluTanh => numbers.for_each(|(y, up)| *y = gelu_tanh(*y) * up),
        }
    }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU in its approximation with tanh.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    /// √(2/π).
    const FACTOR: f32 = 0.797_884_6;
    let cube = 0.044_715 * x * x * x;
    0.5 * x * (1.0 + tanh(FACTOR * (x + cube)))
}

/// `x · Φ(x)`, where Φ is the distribution function of the normal distribution, to within 1e-7 of one plus its magnitude.
///
/// With t = |x| / √2, Φ(-|x|) is (1 - erf t) / 2. Near zero erf t is t plus t times a polynomial of t², which keeps the
/// digits of small x. Further out (1 - erf t) is e to the power of t times a polynomial of t, so that nothing cancels
/// for negative x. Both polynomials are the best of their degrees, by weighted least squares over reweighted Chebyshev
/// nodes.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    const BORDER: f32 = 0.93;
    // Beyond it the exponential is as small as it gets.
    let t = (x.abs() * std::f32::consts::FRAC_1_SQRT_2).min(9.2);
    let square = t * t;
    let mut p = -5.954_049e-4;
    for c in [4.986_014e-3, -2.676_178_3e-2, 1.128_168_5e-1, -3.761_248_2e-1, 1.283_791_5e-1] {
        p = square.mul_add(p, c);
    }
    let near = 0.5 - 0.5 * p.mul_add(t, t);
    let mut p = -1.360_499_8e-5;
    for c in [3.460_682_7e-4, -3.734_998_2e-3, 2.395_337_3e-2, -1.064_538_2e-1, -6.350_232_6e-1, -1.128_679_3] {
        p = t.mul_add(p, c);
    }
    let far = 0.5 * exp(p * t);
    let tail = if t < BORDER { near } else { far };
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// What each number becomes.
#[derive(Clone, Copy)]
pub(crate) enum Map {
    Gelu,
    /// `cap · tanh(x / cap)`.
    SoftCap(f32),
    /// The number times a factor.
    Scale(f32),
}

/// Numbers, and what each of them becomes.
struct MappedNumbers<'a> {
    map: Map,
    x: &'a mut [f32],
}

impl WithSimd for MappedNumbers<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let numbers = self.x.iter_mut();
        match self.map {
            Map::Gelu => numbers.for_each(|x| *x = gelu(*x)),
            Map::SoftCap(cap) => numbers.for_each(|x| *x = cap * tanh(*x / cap)),
            Map::Scale(factor) => numbers.for_each(|x| *x *= factor),
        }
    }
}

impl Cpu {
    /// `y = activation(y) · up`.
    pub(crate) fn gate(&self, activation: Activation, y: &mut Tensor, up: &Tensor) -> Result<()> {
        let (gated, work) = (Gated::by(activation)?, EXPONENTIAL * y.data.len());
        let parts = y.data.chunks_mut(PART).zip(up.data.chunks(PART)).collect();
        self.each(parts, work, |(y, up)| self.arch.dispatch(gated.of(y, up)));
        Ok(())
    }

    /// Does this to each number.
    pub(crate) fn map(&self, x: &mut Tensor, map: Map) {
        let each = if matches!(map, Map::Scale(_)) { 1 } else { EXPONENTIAL };
        let work = each * x.data.len();
        let parts = x.data.chunks_mut(PART).collect();
        self.each(parts, work, |x| self.arch.dispatch(MappedNumbers { map, x }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_hyperbolic_tangent_is_accurate(x in prop_oneof![-1.0f32..1.0, -20.0f32..20.0]) {
            let (ours, exact) = (f64::from(tanh(x)), f64::from(x).tanh());
            prop_assert!((ours - exact).abs() <= 3e-7 * exact.abs(), "tanh {x} = {ours}, should be {exact}");
        }
    }

    /// Φ by its Taylor series about zero, in f64, which is exact as far as it is asked for here.
    fn normal_distribution(x: f64) -> f64 {
        let (mut power, mut sum) = (x, x);
        for n in 1..400 {
            let n = f64::from(n);
            power *= -x * x / (2.0 * n);
            sum += power / (2.0 * n + 1.0);
        }
        0.5 + sum / (2.0 * std::f64::consts::PI).sqrt()
    }

    proptest! {
        #[test]
        fn gelu_is_accurate(x in prop_oneof![-1.5f32..1.5, -5.0f32..5.0]) {
            let (ours, exact) = (f64::from(gelu(x)), f64::from(x) * normal_distribution(f64::from(x)));
            prop_assert!((ours - exact).abs() <= 1e-7 * (1.0 + exact.abs()), "gelu {x} = {ours}, should be {exact}");
        }
    }

    #[test]
    fn gelu_keeps_small_numbers_and_is_nothing_or_all_of_large_ones() {
        for x in [1e-3f32, 1e-6, 1e-20] {
            assert!((gelu(x) - x / 2.0).abs() <= x * x && (gelu(-x) + x / 2.0).abs() <= x * x, "{x}");
        }
        for x in [8.0f32, 1e3, 1e30] {
            assert_eq!(gelu(x), x);
            assert!(gelu(-x).abs() < 1e-6, "{x}");
        }
        assert_eq!(gelu(0.0), 0.0);
        assert!(gelu(f32::NAN).is_nan());
    }

    #[test]
    fn the_hyperbolic_tangent_of_what_is_far_out_is_one() {
        for x in [50.0, 1e10, f32::INFINITY] {
            assert_eq!((tanh(x), tanh(-x)), (1.0, -1.0), "{x}");
        }
        assert_eq!(tanh(0.0), 0.0);
    }
}
