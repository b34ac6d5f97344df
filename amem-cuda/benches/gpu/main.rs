//! What the GPU does in what time, and how near that is to what it could do.
//!
//! `cargo bench -p amem-cuda --bench gpu` prints two tables: the kernels, each as soon as it is measured, and the whole path
//! of a model of random weights with the shape of a 7 B one. The binary needs nothing but a driver and cuBLASLt, so it can
//! be carried to a machine with a GPU (`cargo bench -p amem-cuda --bench gpu --no-run`). `peers.py` beside it times
//! PyTorch's kernels for the same work on the same machine. It fails if it cannot measure something.
//!
//! `--quick` takes small sizes: to see that it runs, on whatever there is. `--kernels` and `--model` take one table alone.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod kernels;
mod model;
mod timing;

use std::error::Error;
use std::process::ExitCode;

use amem_cuda::{CudaBackend, CudaOptions, Precision};

/// What is measured.
#[derive(Clone, Copy, Debug)]
struct Arguments {
    quick: bool,
    kernels: bool,
    model: bool,
}

fn main() -> ExitCode {
    let has = |name: &str| std::env::args().any(|argument| argument == name);
    let (kernels, model) = (has("--kernels"), has("--model"));
    let arguments = Arguments { quick: has("--quick"), kernels: kernels || !model, model: model || !kernels };
    measure(arguments).unwrap_or_else(|error| {
        println!("Nothing is measured: {error}.");
        ExitCode::FAILURE
    })
}

fn measure(arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let gpu = CudaBackend::open(CudaOptions::default().precision(Precision::Bf16))?;
    let ceilings = kernels::ceilings(&gpu, arguments.quick)?;
    println!("{ceilings}\n");
    let failed = if arguments.kernels { kernels::table(&gpu, &ceilings, arguments.quick) } else { 0 };
    if arguments.model {
        model::table(gpu, arguments.quick);
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
