//! Work that nobody waits for: copying up, writing back. In order, one job at a time, on the `blocking` crate's threads.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;
use futures_lite::future::block_on;

use super::Stack;
use super::deletions::Watch;
use crate::{ChunkId, KvChunk};

/// Bytes of KV that wait at most. They are shared with whoever got or put them.
const MAX_BYTES: usize = 256 << 20;
/// Jobs that wait at most.
pub(super) const MAX_JOBS: usize = 4096;

/// Something to do with the tiers.
pub(super) enum Job {
    /// Chunks, and where they were found, to be copied into the tiers above.
    CopyUp { found: Vec<(usize, KvChunk)>, watch: Watch },
    /// Chunks to be written to a tier.
    Write { at: usize, chunks: Vec<KvChunk>, watch: Watch },
    /// Chunks, and where they were seen, to be read from there and copied into the tiers above.
    ReadUp { ids: Vec<(usize, ChunkId)>, bytes: usize, watch: Watch },
    /// Somebody wants to know when everything before is done.
    Signal(oneshot::Sender<()>),
    /// Tiers that did not have chunks which they were taken to hold.
    Check { stale: Vec<(usize, ChunkId)> },
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Job::CopyUp { found, .. } => found.iter().map(|(_, chunk)| chunk.size()).sum(),
            Job::Write { chunks, .. } => chunks.iter().map(KvChunk::size).sum(),
            Job::ReadUp { bytes, .. } => *bytes,
            Job::Check { .. } | Job::Signal(_) => 0,
        }
    }
}

/// The jobs that wait.
#[derive(Default)]
pub(super) struct Background {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    bytes: usize,
    has_worker: bool,
}

impl Background {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job, or gives it back if too much waits already.
    pub(super) fn push(self: &Arc<Self>, stack: &Arc<Stack>, job: Job) -> Result<(), Job> {
        let mut queue = self.queue();
        let fits = queue.jobs.len() < MAX_JOBS && job.bytes() <= MAX_BYTES - queue.bytes;
        if !fits && !matches!(job, Job::Signal(_)) {
            return Err(job);
        }
        queue.bytes += job.bytes();
        queue.jobs.push_back(job);
        if !std::mem::replace(&mut queue.has_worker, true) {
            let (this, stack) = (Arc::clone(self), Arc::clone(stack));
            let work = move || {
                while let Some(job) = this.next() {
                    // A store that panics costs its job, and nobody who waits for another.
                    if catch_unwind(AssertUnwindSafe(|| block_on(stack.run(job)))).is_err() {
                        log::error!("a store panicked while chunks were copied between tiers");
                    }
                }
            };
            blocking::unblock(work).detach();
        }
        Ok(())
    }

    /// Waits until all that was pushed before is done.
    pub(super) async fn finish(self: &Arc<Self>, stack: &Arc<Stack>) {
        let (sender, receiver) = oneshot::channel();
        drop(self.push(stack, Job::Signal(sender)));
        // Only a process that ends drops the sender.
        let _ = receiver.await;
    }

    /// The next job; without one, the worker ends.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue();
        let job = queue.jobs.pop_front();
        queue.bytes -= job.as_ref().map_or(0, Job::bytes);
        queue.has_worker = job.is_some();
        job
    }
}
