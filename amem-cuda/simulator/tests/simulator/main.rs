//! Programs on the simulated device, written as a backend is, on cudarc's safe API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod driver;
mod graph;
mod order;
mod products;
mod program;
