//! Programs on the simulated device, written as a backend is, on cudarc's safe API.
//!
//! With `AMEM_CUDA_DEVICE=1` those that are right run on a device, to see that the simulator and a driver agree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod driver;
mod graph;
mod order;
mod products;
mod program;
mod random;
