//! The hyperbolic tangent and what is made of it. Written as what [`crate::elementwise`] holds.

use crate::elementwise::exp;

/// `tanh(x)` to within 3 units in the last place.
///
/// Near zero a polynomial of x (Cephes' tanhf), which keeps the digits that 1 − 2/(e^2x + 1) loses there.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_908_9e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328_2e-1] {
        p = square.mul_add(p, c);
    }
    let near = (p * square).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 { near } else { far.copysign(x) }
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

    #[test]
    fn the_hyperbolic_tangent_of_what_is_far_out_is_one() {
        for x in [50.0, 1e10, f32::INFINITY] {
            assert_eq!((tanh(x), tanh(-x)), (1.0, -1.0), "{x}");
        }
        assert_eq!(tanh(0.0), 0.0);
    }
}
