//! The CUDA driver and cuBLASLt behind safe types. No other module of this crate calls them.
//!
//! All work goes to one stream, in the order in which it was submitted; copies of cached KV come in on a second one.
//! Memory comes from a pool and goes back to it when its [`Buffer`] is dropped: what is submitted later may overwrite it,
//! what was submitted before has run by then. So a buffer may only be used by work of the compute stream, or by work
//! that is ordered against it by events ([`staging`]).

mod device;
mod graphs;
mod kernels;
mod matmul;
mod memory;
mod queue;
mod staging;

pub use device::Counters;
pub(crate) use device::Device;
pub(crate) use kernels::Launch;
pub(crate) use matmul::Product;
pub(crate) use memory::Buffer;
pub(crate) use staging::Staging;
