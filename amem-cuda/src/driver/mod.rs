//! The CUDA driver and cuBLASLt behind safe types. No other module of this crate calls them.
//!
//! All work goes to the compute stream, in the order in which it was submitted; copies of cached KV come in on a second
//! stream. Some of what was submitted may only be written down as yet ([`queue`]).
//!
//! Two rules keep memory from being overwritten or freed while it is used:
//!
//! - A [`Buffer`] that is dropped goes back to its pool at once: what is submitted later may overwrite it, and what was
//!   submitted before has run by then. A lasting one goes back to its slab, or is freed, when the host next waits. So a
//!   buffer may only be used by work of the compute stream, or by work that is ordered against it by events ([`staging`]).
//! - The compute stream may only be touched under the queue's lock: to launch, to record an event or wait for one, to
//!   capture, and to wait for the stream. Another thread may be capturing it. And who orders something behind the stream
//!   has to launch what is written down first, for an event only covers what was launched.

mod device;
mod graphs;
mod kernels;
mod matmul;
mod memory;
mod queue;
mod slabs;
mod staging;

pub use device::Counters;
pub(crate) use device::Device;
pub(crate) use kernels::Launch;
pub(crate) use matmul::Product;
pub(crate) use memory::Buffer;
pub(crate) use staging::Staging;
