//! Timing of work that a GPU does by itself.

use std::time::Instant;

use amem_core::Result;
use amem_core::transformer::Backend;
use amem_cuda::CudaBackend;

/// Seconds of one `run`, the median of several rounds. A round submits it many times and waits once, so that the time of
/// submitting and waiting is hidden behind the GPU's own where that is longer than a few microseconds.
pub(crate) fn seconds(gpu: &CudaBackend, runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    const ROUNDS: usize = 7;
    let fence = gpu.upload(8, &[0.0; 8])?;
    let wait = || gpu.read(&fence).map(drop);
    run()?;
    wait()?;
    let mut round = || {
        let begun = Instant::now();
        (0..runs).try_for_each(|_| run())?;
        wait()?;
        Ok(begun.elapsed().as_secs_f64() / runs as f64)
    };
    let mut rounds = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<f64>>>()?;
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[ROUNDS / 2])
}

/// Seconds of a `run` that waits by itself, the median of several.
pub(crate) fn waited(mut run: impl FnMut()) -> f64 {
    const ROUNDS: usize = 5;
    run();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed().as_secs_f64()
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}
