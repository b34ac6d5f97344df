//! What checks of kernels have in common.

use amem_core::Dtype;
use amem_ptxsim::{Counts, Kernel, Schedule};

use super::harness::{SCHEDULES, Type, kernel};

pub(crate) const TYPES: [Type; 3] = [Type::F16, Type::Bf16, Type::F32];

/// Fails if the kernel does not do what it should, in this schedule.
pub(crate) type Check = dyn Fn(&Kernel, Schedule) -> Result<(), String>;

/// A kernel and a check of it.
pub(crate) struct Case {
    pub(crate) module: String,
    pub(crate) entry: String,
    pub(crate) check: Box<Check>,
}

impl Case {
    pub(crate) fn new(
        module: &str,
        entry: &str,
        check: impl Fn(&Kernel, Schedule) -> Result<(), String> + 'static,
    ) -> Self {
        Self { module: module.to_owned(), entry: entry.to_owned(), check: Box::new(check) }
    }

    pub(crate) fn of(
        family: &str,
        dtype: Type,
        entry: &str,
        check: impl Fn(&Kernel, Schedule) -> Result<(), String> + 'static,
    ) -> Self {
        Self::new(&format!("{family}_{}", dtype.name()), entry, check)
    }
}

/// Runs the cases of one kernel, each in another schedule than the one before.
pub(crate) fn hold(cases: Vec<Case>, entry: &str) {
    let own: Vec<Case> = cases.into_iter().filter(|case| case.entry == entry).collect();
    assert!(own.len() >= SCHEDULES.len());
    for (case, schedule) in own.iter().zip(SCHEDULES.into_iter().cycle()) {
        let result = (case.check)(kernel(&case.module, &case.entry), schedule);
        assert_eq!(result, Ok(()), "{} of {}", case.entry, case.module);
    }
}

/// Fails unless each number is within `slack` of what is expected, `(number, slack)`, and NaN where NaN is.
pub(crate) fn near(what: &str, found: &[f32], expected: impl Iterator<Item = (f64, f64)>) -> Result<(), String> {
    let mut count = 0;
    for (at, (&found, (number, slack))) in found.iter().zip(expected).enumerate() {
        count += 1;
        let (distance, nan) = ((f64::from(found) - number).abs(), found.is_nan() && number.is_nan());
        // An infinity is at no distance from itself.
        if !(distance <= slack || nan || f64::from(found) == number) {
            return Err(format!("{what}: number {at} is {found:e}, not {number:e} (give or take {slack:e})"));
        }
    }
    if count == found.len() { Ok(()) } else { Err(format!("{what}: {} numbers, not {count}", found.len())) }
}

/// Fails unless all is equal.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &[T], expected: &[T]) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{what}: {} instead of {}", found.len(), expected.len()));
    }
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(at) => Err(format!("{what}: number {at} is {:?}, not {:?}", found[at], expected[at])),
    }
}

/// Fails unless the sectors that were touched are a few percent more than what has to be moved, at most.
pub(crate) fn at_floor(counts: &Counts, floor: usize, excess: f64) -> Result<(), String> {
    let moved = 32 * counts.global_sectors;
    match moved as f64 <= floor as f64 * (1.0 + excess) {
        true => Ok(()),
        false => Err(format!("{moved} bytes moved where {floor} would do")),
    }
}

/// A number, or the largest of its type if there is none so large.
pub(crate) fn cut(dtype: Type, number: f64) -> f64 {
    if dtype == Type::F16 { number.clamp(-65504.0, 65504.0) } else { number }
}

/// What rounding a number to a type and arithmetic in f32 may change: `relative` parts in a number of the size `size`.
pub(crate) fn slack(dtype: Type, number: f64, size: f64, relative: f64) -> f64 {
    // Half the distance of subnormal numbers.
    let least = match dtype {
        Type::F16 => 2f64.powi(-25),
        Type::Bf16 => 2f64.powi(-134),
        Type::F32 => f64::from(f32::MIN_POSITIVE),
    };
    let rounding = if dtype == Type::F32 { 0.0 } else { dtype.rounding() };
    (number.abs() * rounding).max(least) + size.abs() * relative
}

/// What the numerics of a compute type let arithmetic in f32 be off by.
pub(crate) fn relative(dtype: Type) -> f64 {
    if dtype == Type::F32 { 1e-6 } else { 1e-5 }
}

pub(crate) fn core_type(dtype: Type) -> Dtype {
    match dtype {
        Type::F32 => Dtype::F32,
        Type::F16 => Dtype::F16,
        Type::Bf16 => Dtype::Bf16,
    }
}

/// Numbers as a type holds them.
pub(crate) fn rounded(dtype: Type, numbers: &[f32]) -> Vec<f32> {
    let mut numbers = numbers.to_vec();
    core_type(dtype).round(&mut numbers);
    numbers
}

/// (cosine, sine) pairs, `[positions][head_dim / 2]`.
pub(crate) fn angles(positions: usize, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let angle = |i: usize| (i / half) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64);
    // A factor, as YaRN has one.
    (0..positions * half).flat_map(|i| [1.1 * angle(i).cos(), 1.1 * angle(i).sin()]).map(|x| x as f32).collect()
}

/// A head, rotated, and for each number what arithmetic in f32 may change.
pub(crate) fn turned(dtype: Type, head: &[f32], angles: &[f32]) -> Vec<(f64, f64)> {
    let (low, high) = head.split_at(head.len() / 2);
    let turn = |i: usize| {
        let [a, b, cos, sin] = [low[i], high[i], angles[2 * i], angles[2 * i + 1]].map(f64::from);
        let (x, y) = (a * cos - b * sin, b * cos + a * sin);
        let size = a.abs() + b.abs();
        [x, y].map(|x| (cut(dtype, x), slack(dtype, x, size, 2e-7)))
    };
    let pairs: Vec<_> = (0..low.len()).map(turn).collect();
    [0, 1].iter().flat_map(|&side| pairs.iter().map(move |pair| pair[side])).collect()
}
