//! What can this machine do at most?
//!
//! Operations a second of the instructions that products of matrices are made of, with nothing to wait for, and bytes a
//! second that are read from RAM, from a buffer that no cache holds. Kernels are to be seen next to these numbers.
//!
//! ```text
//! cargo bench -p amem-benches --bench peak -- [--json] [--threads N]
//! ```
//!
//! Each is the best of several short runs, for whatever else runs on the machine can only take from it.

use std::error::Error;
use std::thread;

use amem_benches::peak::{peaks, reading};
use serde_json::{Map, json};

/// More than caches hold.
const BUFFER: usize = 256 << 20;
/// Runs of each kind, of which the best counts.
const RUNS: usize = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut threads, mut as_json, mut runs, mut buffer) =
        (thread::available_parallelism()?.get(), false, RUNS, BUFFER);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => as_json = true,
            "--threads" => threads = arguments.next().ok_or("--threads needs a number")?.parse()?,
            "--test" => (runs, buffer) = (1, 1 << 20),
            // Cargo says that it is a bench; anything else is a filter for other benches.
            _ => {}
        }
    }

    let numbers = vec![1f32; buffer / size_of::<f32>()];
    let peaks = peaks();
    if as_json {
        let operations: Map<_, _> =
            peaks.iter().map(|peak| (peak.name.to_owned(), json!(peak.measure(runs, threads)))).collect();
        let read = json!({ "one": reading(&numbers, runs, 1), "all": reading(&numbers, runs, threads) });
        println!("{}", json!({ "operations": operations, "read": read }));
        return Ok(());
    }
    for peak in &peaks {
        let (one, all) = (peak.measure(runs, 1) / 1e9, peak.measure(runs, threads) / 1e9);
        println!("{:<5} {one:7.0} GFLOP/s with one thread, {all:7.0} with {threads}", peak.name);
    }
    let (one, all) = (reading(&numbers, runs, 1) / 1e9, reading(&numbers, runs, threads) / 1e9);
    println!("read  {one:7.1} GB/s with one thread, {all:7.1} with {threads}");
    Ok(())
}
