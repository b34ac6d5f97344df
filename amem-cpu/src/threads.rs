//! The threads that compute.

use std::num::NonZero;
use std::sync::Arc;

use amem_core::{Error, Result};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads that wait for work. Clones are the same threads.
#[derive(Clone)]
pub(crate) struct Threads(Arc<ThreadPool>);

impl Threads {
    /// So many threads, at least one; one for each core if `None`.
    pub(crate) fn start(threads: Option<usize>) -> Result<Self> {
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get));
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|index| format!("amem-cpu-{index}"))
            .build()
            .map_err(|error| Error::Model(error.into()))?;
        Ok(Self(Arc::new(pool)))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `work` on one of the threads. What it spreads from there reaches the others in a few microseconds; from outside
    /// it takes ten times as long.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }

    /// Does `task` for each part, on several threads if the work (in multiplications) is worth waking them for.
    pub(crate) fn each<T: Send>(&self, parts: Vec<T>, work: usize, task: impl Fn(T) + Send + Sync) {
        const WORTH_A_THREAD: usize = 100_000;
        if self.count() == 1 || parts.len() == 1 || work < WORTH_A_THREAD {
            parts.into_iter().for_each(task);
        } else {
            self.0.install(|| parts.into_par_iter().with_max_len(1).for_each(task));
        }
    }
}
