//! A kernel, and what may be asked of it.

use std::sync::Arc;

use crate::program::{Instruction, Operation, Preset, Register};

/// A parameter of a kernel, and where it lies in the bytes that a launch passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the PTX text.
    pub name: String,
    /// Its first byte.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
    /// Its alignment in bytes.
    pub align: usize,
}

/// A kernel (`.entry`) of a [`Module`](crate::Module).
#[derive(Clone, Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) parameter_bytes: usize,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) static_shared: usize,
    /// Where dynamic shared memory begins.
    pub(crate) dynamic_offset: usize,
    pub(crate) code: Vec<Instruction>,
    pub(crate) texts: Arc<[String]>,
    pub(crate) register_names: Arc<[String]>,
    pub(crate) predicate_names: Arc<[String]>,
    pub(crate) presets: Arc<[(Register, Preset)]>,
    /// Bytes of the narrowest access to shared memory. Accesses are aligned, so each covers whole runs of that many.
    pub(crate) shared_granule: usize,
    /// The same of global memory.
    pub(crate) global_granule: usize,
    pub(crate) step_limit: u64,
}

impl Kernel {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters, in order.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Bytes that a launch passes.
    #[must_use]
    pub fn parameter_bytes(&self) -> usize {
        self.parameter_bytes
    }

    /// The block size that it demands (`.reqntid`), or else the largest that it allows (`.maxntid`).
    #[must_use]
    pub fn max_threads(&self) -> Option<[u32; 3]> {
        self.required_threads.or(self.max_threads)
    }

    /// The block size that it demands (`.reqntid`).
    #[must_use]
    pub fn required_threads(&self) -> Option<[u32; 3]> {
        self.required_threads
    }

    /// Bytes of shared memory that it declares itself.
    #[must_use]
    pub fn static_shared(&self) -> usize {
        self.static_shared
    }

    /// How many instructions it has.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.code.len()
    }

    /// The text of an instruction. Empty past the last one.
    #[must_use]
    pub fn instruction_text(&self, index: usize) -> &str {
        self.texts.get(index).map_or("", String::as_str)
    }

    /// The line of an instruction in the module's text, or 0 past the last one.
    #[must_use]
    pub fn instruction_line(&self, index: usize) -> u32 {
        self.code.get(index).map_or(0, |instruction| instruction.line)
    }

    /// The same kernel with one instruction taken out, to see whether a test notices.
    #[must_use]
    pub fn without(&self, index: usize) -> Self {
        let mut kernel = self.clone();
        if let Some(instruction) = kernel.code.get_mut(index) {
            instruction.guard = None;
            instruction.operation = Operation::Nothing;
        }
        kernel
    }

    /// The same kernel with another limit of the instructions that the warps of one block execute. A block that reaches
    /// it is taken to hang. No limit is larger than 2^30.
    #[must_use]
    pub fn with_step_limit(&self, limit: u64) -> Self {
        Self { step_limit: limit.min(1 << 30), ..self.clone() }
    }
}
