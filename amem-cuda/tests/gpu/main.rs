//! The backend as it is, on a simulated driver that runs its kernels on the CPU; or on a GPU, with `AMEM_CUDA_DEVICE=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../amem-cpu/tests/common/mod.rs"]
mod common;

mod answers;
mod compare;
mod conformance;
mod counters;
mod failures;
mod families;
mod memory;
mod store;
mod sweep;

use amem_cuda::{CudaBackend, CudaOptions, Precision};

/// The GPU that most tests compute on. Buffers have memory to themselves, so that the simulator sees where each ends.
fn open(precision: Precision) -> CudaBackend {
    CudaBackend::open(CudaOptions::default().precision(precision).separate_buffers(true)).unwrap()
}

/// The GPU as programs open it.
fn open_as_it_is(precision: Precision) -> CudaBackend {
    CudaBackend::open(CudaOptions::default().precision(precision)).unwrap()
}
