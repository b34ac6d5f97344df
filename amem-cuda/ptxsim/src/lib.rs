//! An interpreter of PTX for tests: it runs kernels on a CPU and finds races, unwaited copies, memory that was never
//! written, and accesses out of bounds.
//!
//! [`Module::parse`] reads PTX text, [`run`] executes one of its kernels on a [`Memory`] and returns [`Counts`] or the
//! first [`Fault`]. Warps are interleaved by a seed, so that a test can try several orders. Inside a warp the lanes with
//! the lowest program counter run first, so that diverged lanes meet again by themselves.
//!
//! Blocks run one after another. What is not modelled: time, weak orders of memory (a fence does nothing), races between
//! warps of one block in global memory, lanes that overwrite what another lane of their warp reads, and the order in which
//! tensor cores sum.
#![forbid(unsafe_code)]

mod contents;
mod execute;
mod fault;
mod kernel;
mod memory;
mod parse;
mod program;
mod touches;

pub use execute::{Copies, Counts, Launch, Schedule, run};
pub use fault::{Fault, FaultKind};
pub use kernel::{Kernel, Parameter};
pub use memory::{GlobalAccess, Memory, MemoryError};
pub use parse::{Module, ParseError};

/// Address of a block's first byte of shared memory. Devices keep the bytes below for themselves.
pub(crate) const SHARED_BASE: u64 = 1024;
