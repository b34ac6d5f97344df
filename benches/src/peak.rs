//! What a machine can do at most: operations of the instructions that products of matrices are made of, and reading.
//!
//! Operations are counted on registers alone, with enough sums side by side to hide how long an instruction takes. A
//! multiplication and an addition are two operations.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// Runs so many rounds.
type Kernel = fn(usize);

/// A kind of instructions, the fastest of the machine for a type of numbers.
pub struct Peak {
    /// The type that is multiplied: `f32`, `bf16` or `int8`.
    pub name: &'static str,
    /// Operations of a round.
    operations: usize,
    kernel: Kernel,
}

impl Peak {
    /// Does about so many operations, in equal parts on so many threads.
    pub fn run(&self, operations: usize, threads: usize) {
        let rounds = operations.div_ceil(self.operations * threads.max(1));
        thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(move || (self.kernel)(rounds))));
    }

    /// Operations a second, the best of several runs on so many threads.
    pub fn measure(&self, runs: usize, threads: usize) -> f64 {
        /// Some milliseconds.
        const ROUNDS: usize = 1_000_000;
        (self.operations * ROUNDS * threads) as f64 / best(runs, threads, |_| (self.kernel)(ROUNDS))
    }
}

/// Bytes that are read in a second from RAM, the best of several runs on so many threads.
pub fn reading(numbers: &[f32], runs: usize, threads: usize) -> f64 {
    let parts: Vec<&[f32]> = numbers.chunks(numbers.len().div_ceil(threads)).collect();
    size_of_val(numbers) as f64 / best(runs, threads, |index| _ = black_box(parts.get(index).map(|part| sum(part))))
}

/// Reads numbers once, on so many threads.
pub fn read(numbers: &[f32], threads: usize) {
    thread::scope(|scope| {
        numbers.chunks(numbers.len().div_ceil(threads)).for_each(|part| _ = scope.spawn(|| black_box(sum(part))));
    });
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

/// The fastest instructions of each type that this machine has: none where they are not known here.
pub fn peaks() -> Vec<Peak> {
    #[cfg(target_arch = "x86_64")]
    return x86::peaks();
    #[cfg(target_arch = "aarch64")]
    return aarch64::peaks();
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

/// A [`Peak`] of an instruction that is repeated on `$sums` vectors side by side. `$step` adds to a vector products of
/// `$numbers` numbers with another.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! peak {
    ($name:literal, $features:tt, $numbers:literal, $sums:literal, $first:expr, |$x:ident, $sum:ident| $step:expr) => {{
        #[target_feature(enable = $features)]
        fn kernel(rounds: usize) {
            let $x = black_box($first);
            // Where the compiler knows that sums are equal, it computes one of them.
            let mut sums = black_box([$x; $sums]);
            for _ in 0..rounds {
                for $sum in &mut sums {
                    *$sum = $step;
                }
            }
            black_box(sums);
        }
        // SAFETY: it is called only where the machine was found to have these features.
        Peak { name: $name, operations: 2 * $numbers * $sums, kernel: |rounds| unsafe { kernel(rounds) } }
    }};
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::Peak;

    pub(super) fn peaks() -> Vec<Peak> {
        let mut peaks = Vec::new();
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let has_avx512 = is_x86_feature_detected!("avx512f");
        // As many sums as registers hold beside what they are made of.
        if has_avx512 {
            peaks.push(peak!("f32", "avx512f", 16, 16, _mm512_set1_ps(0.5), |x, sum| _mm512_fmadd_ps(x, x, *sum)));
        } else if has_avx2 {
            peaks.push(peak!("f32", "avx2,fma", 8, 12, _mm256_set1_ps(0.5), |x, sum| _mm256_fmadd_ps(x, x, *sum)));
        }
        if has_avx512 && is_x86_feature_detected!("avx512bf16") {
            peaks.push(peak!("bf16", "avx512f,avx512bf16", 32, 16, _mm512_set1_ps(0.5), |x, sum| {
                let x = _mm512_cvtne2ps_pbh(x, x);
                _mm512_dpbf16_ps(*sum, x, x)
            }));
        }
        if has_avx512 && is_x86_feature_detected!("avx512vnni") {
            let step = peak!("int8", "avx512f,avx512vnni", 64, 16, _mm512_set1_epi8(1), |x, sum| {
                _mm512_dpbusd_epi32(*sum, x, x)
            });
            peaks.push(step);
        } else if has_avx2 && is_x86_feature_detected!("avxvnni") {
            let step = peak!("int8", "avx2,avxvnni", 32, 12, _mm256_set1_epi8(1), |x, sum| {
                _mm256_dpbusd_avx_epi32(*sum, x, x)
            });
            peaks.push(step);
        } else if has_avx2 {
            // Three instructions, each of which has to wait for the one before.
            peaks.push(peak!("int8", "avx2", 32, 12, _mm256_set1_epi8(1), |x, sum| {
                let pairs = _mm256_maddubs_epi16(x, *sum);
                _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, x))
            }));
        }
        peaks
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::aarch64::*;
    use std::arch::asm;
    use std::arch::is_aarch64_feature_detected as has;
    use std::hint::black_box;

    use super::Peak;

    /// The sum that an instruction of two operands leaves which Rust has no stable name for.
    macro_rules! instruction {
        ($text:literal, $x:ident, $sum:ident) => {{
            let mut sum = *$sum;
            // SAFETY: the instruction reads and writes registers alone, and the function has its feature.
            unsafe { asm!($text, inout(vreg) sum, in(vreg) $x, options(pure, nomem, nostack, preserves_flags)) };
            sum
        }};
    }

    pub(super) fn peaks() -> Vec<Peak> {
        let mut peaks = vec![peak!("f32", "neon", 4, 16, vdupq_n_f32(0.5), |x, sum| vfmaq_f32(*sum, x, x))];
        if has!("bf16") {
            peaks.push(peak!("bf16", "neon,bf16", 16, 16, vdupq_n_f32(0.5), |x, sum| {
                instruction!("bfmmla {0:v}.4s, {1:v}.8h, {1:v}.8h", x, sum)
            }));
        }
        if has!("i8mm") {
            peaks.push(peak!("int8", "neon,i8mm", 32, 16, vdupq_n_s32(1), |x, sum| {
                instruction!("smmla {0:v}.4s, {1:v}.16b, {1:v}.16b", x, sum)
            }));
        } else if has!("dotprod") {
            peaks.push(peak!("int8", "neon,dotprod", 16, 16, vdupq_n_s32(1), |x, sum| {
                instruction!("sdot {0:v}.4s, {1:v}.16b, {1:v}.16b", x, sum)
            }));
        }
        peaks
    }
}
