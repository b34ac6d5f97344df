//! The interpreter against definitions, planted faults, and texts that are no PTX.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod faults;
mod harness;
mod instructions;
mod matrices;
mod memory;
mod robustness;
mod scheduling;
mod texts;
