//! A CUDA driver library and a cuBLASLt that compute on a CPU, for tests: what a backend does with a GPU is done here by
//! an interpreter of PTX.
//!
//! The crate is two things. Built as a shared library, it is what a program loads as `libcuda.so` and `libcublasLt.so`.
//! Linked into a test, it runs the test's body in a process that finds that library: see [`in_simulator`].
//!
//! # What it checks
//! Asynchronous operations are queued, and run in a random order that the program allows, which the seed chooses. Some
//! seeds run nothing before something waits for it, others run everything at once. A mistake is a *fault*: it is printed,
//! and every later call fails with `CUDA_ERROR_LAUNCH_FAILED`, as after a fault of a real device.
//! - Two operations that touch the same bytes, one of them writing, with no event, stream or wait that orders them. This
//!   is found whichever of the two happens to run first.
//! - Page-locked memory that changes between the call of a copy and the copy. What a copy will write to reads as `0xCD`
//!   until the copy has run.
//! - Memory that is freed while something that was not waited for uses it, and use of memory after it is freed.
//! - Everything that the PTX interpreter finds in kernels, and memory that is copied to the host and was never written.
//!
//! Where CUDA's documentation leaves a choice, the simulator takes the one that helps a program least: a copy from
//! pageable memory does not make the host wait, pointers have to be aligned as a preference of cuBLASLt promises, and
//! nothing that is destroyed has a valid handle again.
//!
//! # What it does not do
//! It says nothing about time. It has no textures, no managed memory, no graphs within graphs, no allocations in graphs,
//! and no mapped host memory. All threads of the host count as one: a wait in one thread orders what another queues later.

// The functions that C calls and the pointers that it passes are the only unsafe part.
#![deny(unsafe_code)]

mod blas;
mod context;
mod counts;
mod device;
mod execute;
#[allow(unsafe_code)]
mod ffi;
mod graph;
mod host;
mod machine;
mod memory;
mod module;
mod operation;
mod order;
mod random;
mod settings;
mod status;
mod stream;
mod testing;

pub use counts::Counts;
pub use testing::{
    counts, fail_call, in_simulator, is_simulated, last_fault, library_path, pending_failures, reset, reset_counts,
    take_fault,
};
