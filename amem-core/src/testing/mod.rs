//! Conformance suites that every implementation of a trait must pass.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking, as tests do")]

mod recaller;
mod residency;

pub use recaller::recaller;
pub use residency::residency_policy;
