//! Work that no question waits for: deleting KV of texts that no longer count, saving indexes. One job at a time, on the
//! `blocking` crate's threads.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use futures_lite::future::block_on;

/// Jobs that wait at most.
const MOST: usize = 1024;

/// Does jobs, each of which has a key. Of each key one waits at most: a job looks at what is to be done when it begins, so
/// it does what a second one would do. When this is dropped, it waits until its jobs are done.
pub(super) struct Background<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    queue: Mutex<Queue<K>>,
    /// There is something for a worker that waits for a later job's moment.
    changed: Condvar,
}

struct Queue<K> {
    /// Without a key: somebody wants to know when everything before is done.
    jobs: VecDeque<(Option<K>, Job)>,
    /// Jobs that wait for their moments, in the order in which they were pushed.
    later: VecDeque<(Instant, K, Job)>,
    has_worker: bool,
}

impl<K> Queue<K> {
    /// Has those later jobs done now whose moments have come by then; all of them if that is `None`.
    fn make_due(&mut self, by: Option<Instant>) {
        for (at, key, job) in std::mem::take(&mut self.later) {
            match by {
                Some(by) if at > by => self.later.push_back((at, key, job)),
                _ => self.jobs.push_back((Some(key), job)),
            }
        }
    }
}

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<K> Default for Background<K> {
    fn default() -> Self {
        let queue = Queue { jobs: VecDeque::new(), later: VecDeque::new(), has_worker: false };
        Self { shared: Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() }) }
    }
}

impl<K: PartialEq + Send + 'static> Background<K> {
    /// Has a job done, unless one of this key waits already. If too many wait, it is not done: what it is to do stays to be
    /// done, and is asked for again.
    pub(super) fn push(&self, key: K, job: impl Future<Output = ()> + Send + 'static) {
        let mut queue = self.shared.queue();
        // One that is to be done later would do the same.
        queue.later.retain(|(_, waiting, _)| *waiting != key);
        if queue.takes(&key) {
            queue.jobs.push_back((Some(key), Box::pin(job)));
            self.wake(queue);
        }
    }

    /// As [`push`](Self::push), for a job that is done after this time, or as soon as somebody [waits](Self::finish) for
    /// what is to be done. A thread waits with it, one for all such jobs.
    pub(super) fn push_later(&self, key: K, delay: Duration, job: impl Future<Output = ()> + Send + 'static) {
        let mut queue = self.shared.queue();
        if queue.takes(&key) {
            queue.later.push_back((Instant::now() + delay, key, Box::pin(job)));
            self.wake(queue);
        }
    }

    /// Has a worker look at the queue.
    fn wake(&self, mut queue: MutexGuard<'_, Queue<K>>) {
        self.shared.changed.notify_one();
        if !std::mem::replace(&mut queue.has_worker, true) {
            let shared = Arc::clone(&self.shared);
            let work = move || {
                while let Some(job) = shared.next() {
                    // A ledger or a store that panics costs its job, and no other.
                    if catch_unwind(AssertUnwindSafe(|| block_on(job))).is_err() {
                        log::error!("a ledger, a store or a recaller panicked in the background");
                    }
                }
            };
            blocking::unblock(work).detach();
        }
    }
}

impl<K: PartialEq> Queue<K> {
    /// Whether a job of this key is taken: there is room, and none of the key waits.
    fn takes(&self, key: &K) -> bool {
        self.jobs.len() + self.later.len() < MOST
            && self.jobs.iter().all(|(waiting, _)| waiting.as_ref() != Some(key))
            && self.later.iter().all(|(_, waiting, _)| waiting != key)
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
        let mut queue = self.shared.queue();
        if !queue.has_worker {
            return None;
        }
        queue.make_due(None);
        let (sender, receiver) = oneshot::channel();
        let tell = async move {
            let _ = sender.send(());
        };
        queue.jobs.push_back((None, Box::pin(tell)));
        self.shared.changed.notify_one();
        Some(receiver)
    }
}

impl<K> Drop for Background<K> {
    fn drop(&mut self) {
        // Whoever opens the same files next finds them free, and all done.
        block_on(self.finish());
    }
}

impl<K> Shared<K> {
    fn queue(&self) -> MutexGuard<'_, Queue<K>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, when its moment has come; without one, the worker ends.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            queue.make_due(Some(now));
            if let Some((_, job)) = queue.jobs.pop_front() {
                return Some(job);
            }
            let Some(first) = queue.later.iter().map(|(at, ..)| *at).min() else {
                queue.has_worker = false;
                return None;
            };
            let wait = self.changed.wait_timeout(queue, first.saturating_duration_since(now));
            queue = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
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
        while !background.shared.queue().jobs.is_empty() {
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
        while !background.shared.queue().jobs.is_empty() {
            std::thread::yield_now();
        }
        for key in 0..MOST + 10 {
            background.push(key, job(&done, "later").1);
        }
        drop(go);
        block_on(background.finish());
        assert_eq!(done.lock().unwrap().len(), MOST + 1);
    }

    #[test]
    fn a_later_job_is_done_in_its_time() {
        let (background, done) = (Background::default(), Arc::new(Mutex::new(Vec::new())));
        let begun = Instant::now();
        background.push_later(1, Duration::from_millis(30), job(&done, "later").1);
        background.push(2, job(&done, "now").1);
        while done.lock().unwrap().len() < 2 {
            std::thread::yield_now();
        }
        assert_eq!(*done.lock().unwrap(), ["now", "later"]);
        assert!(begun.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn whoever_waits_has_later_jobs_done_at_once_and_one_of_each_key() {
        const AN_HOUR: Duration = Duration::from_secs(3600);
        let (background, done) = (Background::default(), Arc::new(Mutex::new(Vec::new())));
        background.push_later(1, AN_HOUR, job(&done, "first").1);
        background.push_later(1, AN_HOUR, job(&done, "too much").1);
        block_on(background.finish());
        assert_eq!(*done.lock().unwrap(), ["first"]);
        // One that is to be done now takes the place of one that is to be done later.
        background.push_later(1, AN_HOUR, job(&done, "late").1);
        background.push(1, job(&done, "second").1);
        background.push_later(2, AN_HOUR, job(&done, "third").1);
        drop(background);
        assert_eq!(*done.lock().unwrap(), ["first", "second", "third"], "who drops it waits");
    }
}
