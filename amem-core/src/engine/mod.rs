//! From logits to text: drawing tokens, turning them into text, and knowing when an answer ends.

mod detokenize;
mod generate;
mod sample;

pub use detokenize::Detokenizer;
pub use generate::{Finish, Generation};
pub(crate) use generate::{Generated, generate};
pub use sample::Sampler;
