//! What a call cost, counted where the work is done.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// What a call cost and what it was spared, counted where the work is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens that stood in the context already.
    pub resident: usize,
    /// Tokens of memories that this call put into the context, whether their KV was held or not.
    pub cached: usize,
    /// Of the cached tokens, those whose KV was not held and had to be computed for this call. They count as prefilled too.
    pub missed: usize,
    /// Resident and cached tokens whose rows were computed again.
    pub repaired: usize,
    /// Tokens that had no KV and were computed: the question, the template around it, memories that were not held.
    pub prefilled: usize,
    /// Tokens that were generated.
    pub generated: usize,
    /// Rows times layers that were computed to choose what to repair.
    pub work_choosing: u64,
    /// Rows times layers that were computed to repair.
    pub work_repairing: u64,
    /// Rows times layers that were computed for prefilled tokens.
    pub work_prefilling: u64,
}

impl Usage {
    /// Tokens whose KV was held and used as it was.
    pub fn reused(&self) -> usize {
        (self.resident + self.cached).saturating_sub(self.missed + self.repaired)
    }

    /// Rows times layers computed before the first token of the answer.
    pub fn work(&self) -> u64 {
        self.work_choosing + self.work_repairing + self.work_prefilling
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reused, repaired) = (self.reused(), self.repaired);
        write!(f, "{reused} tokens reused, {repaired} repaired, {} prefilled", self.prefilled)?;
        if self.generated > 0 { write!(f, ", {} generated", self.generated) } else { Ok(()) }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.resident += other.resident;
        self.cached += other.cached;
        self.missed += other.missed;
        self.repaired += other.repaired;
        self.prefilled += other.prefilled;
        self.generated += other.generated;
        self.work_choosing += other.work_choosing;
        self.work_repairing += other.work_repairing;
        self.work_prefilling += other.work_prefilling;
    }
}

impl Add for Usage {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}
