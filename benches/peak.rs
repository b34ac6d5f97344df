//! What can this machine do at most?
//!
//! Operations a second of the instructions that products of matrices are made of, with nothing to wait for: registers
//! alone, and enough sums side by side to hide how long an instruction takes. And bytes a second that are read from RAM,
//! from a buffer that no cache holds. Kernels are to be seen next to these numbers. A multiplication and an addition are
//! two operations.
//!
//! ```text
//! cargo bench -p amem-benches --bench peak -- [--json] [--threads N]
//! ```
//!
//! Each is the best of several short runs, for whatever else runs on the machine can only take from it.

use std::error::Error;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use serde_json::{Map, json};

/// More than caches hold.
const BUFFER: usize = 256 << 20;
/// Runs of each kind, of which the best counts.
const RUNS: usize = 50;
/// Rounds of a kernel in a run, some milliseconds.
const ROUNDS: usize = 1_000_000;

/// Runs so many rounds.
type Kernel = fn(usize);

/// A kind of instruction: its name, the operations of a round, and rounds of it.
struct Kind {
    name: &'static str,
    operations: usize,
    kernel: Kernel,
}

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
    let reading = |threads: usize| {
        let parts: Vec<&[f32]> = numbers.chunks(numbers.len().div_ceil(threads)).collect();
        size_of_val(&*numbers) as f64
            / best(runs, threads, |index| _ = black_box(parts.get(index).map(|part| sum(part))))
    };
    let computing = |kind: &Kind, threads: usize| {
        (kind.operations * ROUNDS * threads) as f64 / best(runs, threads, |_| (kind.kernel)(ROUNDS))
    };
    let kinds = kinds();
    if as_json {
        let operations: Map<_, _> =
            kinds.iter().map(|kind| (kind.name.to_owned(), json!(computing(kind, threads)))).collect();
        println!("{}", json!({ "operations": operations, "read": { "one": reading(1), "all": reading(threads) } }));
        return Ok(());
    }
    for kind in &kinds {
        let (one, all) = (computing(kind, 1) / 1e9, computing(kind, threads) / 1e9);
        println!("{:<5} {one:7.0} GFLOP/s with one thread, {all:7.0} with {threads}", kind.name);
    }
    let (one, all) = (reading(1) / 1e9, reading(threads) / 1e9);
    println!("read  {one:7.1} GB/s with one thread, {all:7.1} with {threads}");
    Ok(())
}

/// Seconds of the fastest of several runs, in each of which all threads do their part at the same time: from when the
/// first began to when the last was done, by their own clocks.
fn best(runs: usize, threads: usize, part: impl Fn(usize) + Sync) -> f64 {
    let start = Barrier::new(threads);
    let work = |index| -> Vec<(Instant, Instant)> {
        let once = |_| {
            start.wait();
            let begun = Instant::now();
            part(index);
            (begun, Instant::now())
        };
        (0..runs).map(once).collect()
    };
    let work = &work;
    let times: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|index| scope.spawn(move || work(index))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let run = |run: usize| -> Option<f64> {
        let begun = times.iter().map(|times| times[run].0).min()?;
        let ended = times.iter().map(|times| times[run].1).max()?;
        Some((ended - begun).as_secs_f64())
    };
    (0..runs).filter_map(run).fold(f64::INFINITY, f64::min)
}

/// Reads numbers once.
fn sum(numbers: &[f32]) -> f32 {
    let mut lanes = [0f32; 64];
    numbers.as_chunks::<64>().0.iter().for_each(|chunk| lanes.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x));
    lanes.iter().sum()
}

/// What this machine has.
fn kinds() -> Vec<Kind> {
    #[cfg(target_arch = "x86_64")]
    return x86::kinds();
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, __m512i, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps,
        _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_set1_epi8, _mm512_set1_ps,
    };
    use std::hint::black_box;

    use super::Kind;

    /// Sums side by side: more than an instruction takes cycles, times those that begin in a cycle.
    const SUMS: usize = 16;

    /// The widest instructions of each type that the machine has.
    pub(super) fn kinds() -> Vec<Kind> {
        let mut kinds = Vec::new();
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has AVX-512 F.
            kinds.push(Kind { name: "f32", operations: 2 * 16 * SUMS, kernel: |rounds| unsafe { f32_avx512(rounds) } });
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has AVX2 and FMA.
            kinds.push(Kind { name: "f32", operations: 2 * 8 * SUMS, kernel: |rounds| unsafe { f32_avx2(rounds) } });
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the machine has AVX-512 F and BF16.
            kinds.push(Kind { name: "bf16", operations: 2 * 32 * SUMS, kernel: |rounds| unsafe { bf16(rounds) } });
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the machine has AVX-512 F and VNNI.
            kinds.push(Kind { name: "int8", operations: 2 * 64 * SUMS, kernel: |rounds| unsafe { int8(rounds) } });
        }
        kinds
    }

    #[target_feature(enable = "avx2,fma")]
    fn f32_avx2(rounds: usize) {
        let x = black_box(_mm256_set1_ps(0.5));
        // Where the compiler knows that sums are equal, it computes one of them.
        let mut sums: [__m256; SUMS] = black_box([x; SUMS]);
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(x, x, *sum));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    fn f32_avx512(rounds: usize) {
        let x = black_box(_mm512_set1_ps(0.5));
        let mut sums: [__m512; SUMS] = black_box([x; SUMS]);
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(x, x, *sum));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16(rounds: usize) {
        let half = _mm512_set1_ps(0.5);
        let x = black_box(_mm512_cvtne2ps_pbh(half, half));
        let mut sums: [__m512; SUMS] = black_box([half; SUMS]);
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, x, x));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8(rounds: usize) {
        let x = black_box(_mm512_set1_epi8(1));
        let mut sums: [__m512i; SUMS] = black_box([x; SUMS]);
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, x, x));
        }
        black_box(sums);
    }
}
