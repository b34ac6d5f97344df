//! Writes that nobody waits for: links in the ledger that take too long, and puts into the store whose caller is gone.
//!
//! Another process may hold the ledger for as long as its transaction takes. What a question writes there, links of the KV
//! that was computed for it, serves later ones, so its answer waits for `TIMEOUT` at most. Then the write goes on by itself,
//! and is done when the ledger is free. If it fails, or if too much waits already, later questions compute the KV again.
//!
//! KV that is put into the store is taken out again if its text was forgotten meanwhile. So a put whose caller gives up
//! waiting is finished here all the same: KV that was put and not checked would stay.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use blocking::unblock;
use futures_lite::future::{block_on, or, poll_once};

/// How long a question waits for a write. On a ledger that nobody holds, it is done by then.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Detached writes at once at most: each takes a thread here and perhaps one in the ledger.
const MAX_WRITES: usize = 16;
/// Bytes of KV that detached writes hold at most.
const MAX_BYTES: usize = 256 << 20;

/// A write that was begun, or is about to be.
pub(super) type Write<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Writes that go on without a caller.
#[derive(Default)]
pub(super) struct LateLinks {
    detached: Mutex<Detached>,
}

#[derive(Default)]
struct Detached {
    writes: usize,
    bytes: usize,
}

impl LateLinks {
    fn detached(&self) -> MutexGuard<'_, Detached> {
        self.detached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a write is detached: the ledger was held for long and has not been free since, or a put lost its caller.
    pub(super) fn is_any(&self) -> bool {
        self.detached().writes > 0
    }

    /// Waits for a write. If it takes longer than the timeout, or other writes are waiting, gives it back unfinished.
    pub(super) async fn within_timeout<T>(&self, mut write: Write<T>) -> Result<T, Write<T>> {
        if self.is_any() {
            return Err(write);
        }
        // What is done at once needs no timer.
        if let Some(done) = poll_once(&mut write).await {
            return Ok(done);
        }
        let timer = Arc::new(Timer::default());
        let _stop = Stop(&timer);
        let waiting = unblock({
            let timer = Arc::clone(&timer);
            move || timer.wait()
        });
        let done = async { Some((&mut write).await) };
        let late = async {
            waiting.await;
            None
        };
        or(done, late).await.ok_or(write)
    }

    /// Does work that holds so many bytes. If this is dropped before it is done, it goes on detached.
    pub(super) fn detach_on_drop(
        self: &Arc<Self>,
        bytes: usize,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send {
        DetachOnDrop { late: Arc::clone(self), bytes, work: Some(Box::pin(work)) }
    }

    /// Lets a write that holds so many bytes go on by itself, on another thread. False if too much does already: then it
    /// is given up.
    pub(super) fn spawn_detached(
        self: &Arc<Self>,
        bytes: usize,
        write: impl Future<Output = ()> + Send + 'static,
    ) -> bool {
        {
            let mut detached = self.detached();
            if detached.writes >= MAX_WRITES || bytes > MAX_BYTES.saturating_sub(detached.bytes) {
                return false;
            }
            detached.writes += 1;
            detached.bytes += bytes;
        }
        let this = Arc::clone(self);
        let work = move || {
            // A ledger or a store that panics must not be waited for by every later question.
            if catch_unwind(AssertUnwindSafe(|| block_on(write))).is_err() {
                log::error!("a ledger or a store panicked in a write that nobody waited for");
            }
            let mut detached = this.detached();
            detached.writes -= 1;
            detached.bytes -= bytes;
        };
        unblock(work).detach();
        true
    }
}

/// Work that must not be left half-way: if whoever waits for it is gone, it goes on detached.
struct DetachOnDrop {
    late: Arc<LateLinks>,
    /// What it holds.
    bytes: usize,
    /// `None` once it is done, or has panicked.
    work: Option<Write<()>>,
}

impl Future for DetachOnDrop {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<()> {
        let Some(mut work) = self.work.take() else { return Poll::Ready(()) };
        let polled = work.as_mut().poll(task);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl Drop for DetachOnDrop {
    fn drop(&mut self) {
        if let Some(work) = self.work.take()
            && !self.late.spawn_detached(self.bytes, work)
        {
            log::warn!(
                "KV that is being kept may stay although its text is forgotten: much waits for the ledger already"
            );
        }
    }
}

/// Waits for the timeout, or until it is stopped.
#[derive(Default)]
struct Timer {
    is_stopped: Mutex<bool>,
    stopped: Condvar,
}

impl Timer {
    fn is_stopped(&self) -> MutexGuard<'_, bool> {
        self.is_stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        drop(self.stopped.wait_timeout_while(self.is_stopped(), TIMEOUT, |is_stopped| !*is_stopped));
    }
}

/// Stops a timer when it is dropped, so that its thread is free.
struct Stop<'t>(&'t Timer);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        *self.0.is_stopped() = true;
        self.0.stopped.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use futures_channel::oneshot;

    use super::*;

    fn late() -> Arc<LateLinks> {
        Arc::default()
    }

    /// A write that is done when it is told to be.
    fn held() -> (oneshot::Sender<u8>, Write<u8>) {
        let (sender, receiver) = oneshot::channel();
        (sender, Box::pin(async { receiver.await.unwrap_or(0) }))
    }

    #[test]
    fn a_write_that_is_done_in_time_is_waited_for() {
        assert_eq!(block_on(late().within_timeout(Box::pin(async { 7 }))).ok(), Some(7));
        let (sender, write) = held();
        let writer = std::thread::spawn(|| sender.send(8));
        assert_eq!(block_on(late().within_timeout(write)).ok(), Some(8));
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn a_write_that_takes_long_goes_on_by_itself_and_no_later_one_is_waited_for_meanwhile() {
        let late = late();
        let (sender, write) = held();
        let Err(write) = block_on(late.within_timeout(write)) else { panic!("it is not done") };
        let (told, done) = std::sync::mpsc::channel();
        assert!(late.spawn_detached(3, async move { told.send(write.await).unwrap() }));
        assert!(late.is_any());
        // One that would be done at once is not even begun, or each would take a thread of a ledger that is held.
        assert!(block_on(late.within_timeout(Box::pin(async { 7 }))).is_err());
        sender.send(9).unwrap();
        assert_eq!(done.recv().unwrap(), 9);
        while late.is_any() {
            std::thread::yield_now();
        }
        assert_eq!(block_on(late.within_timeout(Box::pin(async { 7 }))).ok(), Some(7));
    }

    #[test]
    fn only_so_many_writes_and_bytes_go_on_at_once() {
        let late = late();
        assert!(!late.spawn_detached(MAX_BYTES + 1, async {}));
        let mut senders = Vec::new();
        for _ in 0..MAX_WRITES {
            let (sender, write) = held();
            senders.push(sender);
            assert!(late.spawn_detached(MAX_BYTES / MAX_WRITES, async { _ = write.await }));
        }
        assert!(!late.spawn_detached(0, async {}));
        drop(senders);
        while late.is_any() {
            std::thread::yield_now();
        }
        assert!(late.spawn_detached(MAX_BYTES, async {}));
    }

    #[test]
    fn a_write_that_panics_is_not_waited_for_for_ever() {
        let late = late();
        assert!(late.spawn_detached(0, async { panic!("the ledger is broken") }));
        while late.is_any() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn work_that_nobody_waits_for_any_more_is_done_all_the_same() {
        let late = late();
        let (go_on, gate) = futures_channel::oneshot::channel::<()>();
        let (told, is_done) = std::sync::mpsc::channel();
        let work = async move {
            _ = gate.await;
            told.send(()).unwrap();
        };
        let mut waiting = Box::pin(late.detach_on_drop(0, work));
        assert!(block_on(poll_once(&mut waiting)).is_none());
        drop(waiting);
        go_on.send(()).unwrap();
        is_done.recv_timeout(Duration::from_secs(60)).expect("it goes on by itself");
    }
}
