//! The interpreter against definitions, planted faults, and texts that are no PTX.

mod faults;
mod harness;
mod instructions;
mod matrices;
mod robustness;
mod scheduling;
mod texts;
