//! Every kernel, executed by an interpreter of PTX and compared with plain loops in f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod attention;
mod check;
mod distance;
mod elementwise;
mod expand;
mod experts;
mod harness;
mod kv;
mod matvec;
mod mutations;
mod select;
