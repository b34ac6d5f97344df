//! Ways of doing one thing, timed one after another, and how they compare.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};

/// A criterion group whose lanes are compared with the first one: [`finish`](Self::finish) prints how many times faster
/// each was. A ratio of medians within one run travels from machine to machine; a time does not.
pub struct Race<'a> {
    name: String,
    group: BenchmarkGroup<'a, WallTime>,
    lanes: Vec<Lane>,
}

struct Lane {
    name: String,
    /// Seconds of one call, for each sample.
    samples: Vec<f64>,
}

impl<'a> Race<'a> {
    /// A race of this name, with ten samples for each lane.
    pub fn new(criterion: &'a mut Criterion, name: &str) -> Self {
        let mut group = criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
        Self { name: name.to_owned(), group, lanes: Vec::new() }
    }

    /// What one call of the lanes that follow handles, so that criterion prints a rate too.
    pub fn throughput(&mut self, throughput: Throughput) -> &mut Self {
        self.group.throughput(throughput);
        self
    }

    /// Times `routine`.
    pub fn lane<T>(&mut self, name: &str, mut routine: impl FnMut() -> T) -> &mut Self {
        self.lane_with(name, || (), |()| routine())
    }

    /// Times `routine` on what `setup` makes anew for each call. Neither `setup` nor dropping what comes back is timed.
    pub fn lane_with<S, T>(
        &mut self,
        name: &str,
        mut setup: impl FnMut() -> S,
        mut routine: impl FnMut(S) -> T,
    ) -> &mut Self {
        let mut samples = Vec::new();
        self.group.bench_function(name, |bencher| {
            bencher.iter_custom(|calls| {
                let mut total = Duration::ZERO;
                for _ in 0..calls {
                    let input = setup();
                    let begun = Instant::now();
                    let output = black_box(routine(input));
                    total += begun.elapsed();
                    drop(output);
                }
                samples.push(total.as_secs_f64() / calls as f64);
                total
            });
        });
        self.lanes.push(Lane { name: name.to_owned(), samples });
        self
    }

    /// Prints how the lanes compare with the first.
    pub fn finish(self) {
        self.group.finish();
        let Some((first, others)) = self.lanes.split_first() else { return };
        let Some(base) = first.median() else { return };
        for lane in others {
            if let Some(median) = lane.median() {
                println!("{}: {} is {:.2} times as fast as {}", self.name, lane.name, base / median, first.name);
            }
        }
        println!();
    }
}

impl Lane {
    /// `None` if a filter left the lane out, or there is a single call, which was a test that it works.
    fn median(&self) -> Option<f64> {
        let mut samples = self.samples.clone();
        samples.sort_by(f64::total_cmp);
        (samples.len() > 1).then(|| samples[samples.len() / 2])
    }
}
