//! The transformer engine: how a model's files become numbers, tokens and a layout for conversations.
//!
//! Every file of a model is untrusted: numbers are checked before they are used, lengths before anything is allocated.

mod config;
#[cfg(test)]
mod fixtures;
mod rope;
mod settings;
mod source;
mod text;
mod weights;

pub use config::{Config, Family};
pub use rope::Rope;
pub use source::ModelSource;
pub use text::HfChat;
pub use weights::{Layer, Tensor, WeightType, Weights};
