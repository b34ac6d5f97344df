//! How a [`Cpu`](crate::Cpu) computes.

use crate::Instructions;

/// What rounding is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Arithmetic {
    /// f32 throughout, in one order: equal bits on every machine, whatever its instructions. (RoPE and the choice of experts
    /// take sines, cosines and exponentials of the platform in f64, and round them to f32: two platforms whose functions differ
    /// in the last place agree but for rare cases.)
    Exact,
    /// The machine's own instructions: products with bf16 weights round activations to bf16 where there are instructions for
    /// it, and attention adds up block by block. Results still do not depend on the number of threads.
    #[default]
    Fast,
}

/// How weight matrices are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightFormat {
    /// As the model's files have them. In exact arithmetic, quantised GGUF blocks become f32: four to eight times their size.
    #[default]
    AsStored,
    /// In 8 bits, with a scale for each 32 inputs of an output; activations are rounded to 8 bits for the products. Blocks of
    /// GGUF are rounded again.
    Int8,
    /// In 4 bits, with a scale for each 32 inputs of an output; embeddings and output matrices in 8 bits. Activations are
    /// rounded to 8 bits for the products.
    Int4,
}

/// How a [`Cpu`](crate::Cpu) computes: fast, on all CPUs, with weights as they are stored, unless said otherwise.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CpuOptions {
    /// How many threads compute; one for each logical CPU that the process may use if `None`.
    pub threads: Option<usize>,
    /// What rounding is allowed.
    pub arithmetic: Arithmetic,
    /// How weights are kept.
    pub weights: WeightFormat,
    /// The instructions to use; the best that the machine has if `None`.
    pub instructions: Option<Instructions>,
}

impl CpuOptions {
    /// With so many threads, at least one.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// With this arithmetic.
    #[must_use]
    pub fn arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// With weights kept like this. Formats of few bits go with [`Arithmetic::Fast`] only.
    #[must_use]
    pub fn weights(self, weights: WeightFormat) -> Self {
        Self { weights, ..self }
    }

    /// With these instructions and no better ones.
    #[must_use]
    pub fn instructions(self, instructions: Instructions) -> Self {
        Self { instructions: Some(instructions), ..self }
    }
}
