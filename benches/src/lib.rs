//! What the benches share: a model with random weights, notes to remember, and [`Race`], which says how many times
//! faster one way of doing a thing was than another in the same run.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

pub mod encoder;
mod model;
mod notes;
pub mod peak;
mod prompt;
mod race;
pub mod residency;

pub use model::{model, random_model, random_numbers};
pub use notes::{QUESTION, note, notes};
pub use prompt::Prompt;
pub use race::Race;
