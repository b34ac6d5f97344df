//! Work that no question waits for: deleting KV of texts that no longer count, saving indexes. One job at a time, on the
//! `blocking` crate's threads.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;
use futures_lite::future::block_on;

/// Jobs that wait at most.
const MOST: usize = 1024;

/// Does jobs, each of which has a key. Of each key one waits at most: a job looks at what is to be done when it begins, so
/// it does what a second one would do. When this is dropped, it waits until its jobs are done.
pub(super) struct Background<K> {
    queue: Arc<Mutex<Queue<K>>>,
}

struct Queue<K> {
    /// Without a key: somebody wants to know when everything before is done.
    jobs: VecDeque<(Option<K>, Job)>,
    has_worker: bool,
}

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<K> Default for Background<K> {
    fn default() -> Self {
        Self { queue: Arc::new(Mutex::new(Queue { jobs: VecDeque::new(), has_worker: false })) }
    }
}

impl<K: PartialEq + Send + 'static> Background<K> {
    /// Has a job done, unless one of this key waits already. If too many wait, it is not done: what it is to do stays to be
    /// done, and is asked for again.
    pub(super) fn push(&self, key: K, job: impl Future<Output = ()> + Send + 'static) {
        let mut queue = lock(&self.queue);
        let key = Some(key);
        if queue.jobs.len() >= MOST || queue.jobs.iter().any(|(waiting, _)| *waiting == key) {
            return;
        }
        queue.jobs.push_back((key, Box::pin(job)));
        if !std::mem::replace(&mut queue.has_worker, true) {
            let queue = Arc::clone(&self.queue);
            let work = move || {
                while let Some(job) = next(&queue) {
                    // A ledger or a store that panics costs its job, and no other.
                    if catch_unwind(AssertUnwindSafe(|| block_on(job))).is_err() {
                        log::error!("a ledger or a store panicked in the background");
                    }
                }
            };
            blocking::unblock(work).detach();
        }
    }
}

impl<K> Background<K> {
    /// Waits until all that was pushed before is done.
    pub(super) async fn finish(&self) {
        let Some(done) = self.signal() else { return };
        // Only a process that ends drops the sender.
        let _ = done.await;
    }

    /// Hears when all that was pushed before is done; `None` if it is.
    fn signal(&self) -> Option<oneshot::Receiver<()>> {
        let mut queue = lock(&self.queue);
        if !queue.has_worker {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let tell = async move {
            let _ = sender.send(());
        };
        queue.jobs.push_back((None, Box::pin(tell)));
        Some(receiver)
    }
}

impl<K> Drop for Background<K> {
    fn drop(&mut self) {
        // Whoever opens the same files next finds them free, and all done.
        block_on(self.finish());
    }
}

fn lock<K>(queue: &Mutex<Queue<K>>) -> MutexGuard<'_, Queue<K>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next job; without one, the worker ends.
fn next<K>(queue: &Mutex<Queue<K>>) -> Option<Job> {
    let mut queue = lock(queue);
    let job = queue.jobs.pop_front();
    queue.has_worker = job.is_some();
    job.map(|(_, job)| job)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A job that waits until something is sent, and then notes its name.
    fn job(
        done: &Arc<Mutex<Vec<&'static str>>>,
        name: &'static str,
    ) -> (mpsc::Sender<()>, impl Future<Output = ()> + use<>) {
        let (go, wait) = mpsc::channel();
        let done = Arc::clone(done);
        (go, async move {
            let _ = wait.recv();
            done.lock().unwrap().push(name);
        })
    }

    #[test]
    fn jobs_are_done_in_order_and_one_of_each_key_waits() {
        let (background, done) = (Background::default(), Arc::new(Mutex::new(Vec::new())));
        let (first, work) = job(&done, "first");
        background.push(1, work);
        // Until it has begun, it is the one of its key that waits.
        while !lock(&background.queue).jobs.is_empty() {
            std::thread::yield_now();
        }
        for (key, name) in [(1, "second"), (1, "too much"), (2, "third")] {
            background.push(key, job(&done, name).1);
        }
        drop(first);
        block_on(background.finish());
        assert_eq!(*done.lock().unwrap(), ["first", "second", "third"]);
    }

    #[test]
    fn a_job_that_panics_costs_no_other() {
        let (background, done) = (Background::default(), Arc::new(Mutex::new(Vec::new())));
        background.push(1, async { panic!("a store broke") });
        background.push(2, job(&done, "next").1);
        drop(background);
        assert_eq!(*done.lock().unwrap(), ["next"], "who drops it waits");
    }

    #[test]
    fn what_waits_has_a_bound() {
        let (background, done) = (Background::default(), Arc::new(Mutex::new(Vec::new())));
        let (go, work) = job(&done, "first");
        background.push(usize::MAX, work);
        while !lock(&background.queue).jobs.is_empty() {
            std::thread::yield_now();
        }
        for key in 0..MOST + 10 {
            background.push(key, job(&done, "later").1);
        }
        drop(go);
        block_on(background.finish());
        assert_eq!(done.lock().unwrap().len(), MOST + 1);
    }
}
