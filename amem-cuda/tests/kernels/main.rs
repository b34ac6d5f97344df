//! Every kernel, executed by an interpreter of PTX and compared with plain loops in f64.

mod attention;
mod check;
mod elementwise;
mod expand;
mod harness;
mod kv;
mod select;
