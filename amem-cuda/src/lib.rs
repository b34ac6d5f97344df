//! amem's [`Backend`](amem_core::transformer::Backend) for NVIDIA GPUs: kernels in hand-written PTX, loaded by the driver,
//! and cuBLASLt for dense products.
//!
//! ```no_run
//! use amem_core::transformer::{Options, Transformer};
//! use amem_cuda::{CudaBackend, CudaOptions, Precision};
//!
//! # fn load(source: &dyn amem_core::transformer::ModelSource) -> amem_core::Result<()> {
//! let gpu = CudaBackend::open(CudaOptions::default().precision(Precision::Bf16))?;
//! let options = Options::default().kv(gpu.precision().dtype()).kv_cache_bytes(20 << 30);
//! let model = Transformer::load(source, gpu, options)?;
//! # Ok(()) }
//! ```
//!
//! It needs a GPU of compute capability 8.0 or later (Ampere), a driver for CUDA 12.0 or later and cuBLASLt 12 or later.
//! Nothing of CUDA is needed to build it, and where something is missing, [`CudaBackend::open`] says what.

mod angles;
mod attention;
mod backend;
mod cache;
mod driver;
mod error;
mod experts;
mod plan;
mod precision;
mod products;
mod ptx;
mod select;
mod store;
mod tensor;

pub use attention::Plan;
pub use backend::{CudaBackend, CudaOptions};
pub use cache::Cache;
pub use driver::Counters;
pub use error::CudaError;
pub use precision::Precision;
pub use tensor::{Matrix, Tensor, Vector};
