//! Metering: what was done for whom, written to the ledger.
//!
//! An event is durable before its answer is told to be complete, or its call returns. One that cannot be written waits
//! here and is written with the next; events have ids, so none counts twice. What waits when the process is killed is lost,
//! and was not told to be done, with one exception: a full disk, on which KV makes no room, fails no call that is done.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk_space::DiskSpace;
use crate::{Amounts, Error, Ledger, Namespace, Result, Timestamp, UsageEvent};

/// Events that may wait. Beyond that nothing more is done that would have to be counted, and what was done already is added
/// to an event that waits. It is also how many are written at a time.
const WAITING: usize = 1024;

/// Events that wait to be written, oldest first.
#[derive(Default)]
struct Waiting {
    events: Vec<UsageEvent>,
    /// The first of them, which the ledger was given before and may have recorded: they stay as they are.
    given: usize,
}

impl Waiting {
    fn add(&mut self, event: UsageEvent) {
        if self.events.len() >= WAITING {
            let same = self.events[self.given..].iter_mut().rfind(|waiting| waiting.namespace == event.namespace);
            if let Some(waiting) = same {
                waiting.amounts += event.amounts;
                return;
            }
        }
        self.events.push(event);
    }

    /// The next ones to write.
    fn give(&mut self) -> Vec<UsageEvent> {
        let next = &self.events[..self.events.len().min(WAITING)];
        self.given = self.given.max(next.len());
        next.to_vec()
    }

    fn remove(&mut self, written: usize) {
        self.events.drain(..written);
        self.given -= written;
    }
}

/// Counts usage, if it is to be counted.
pub(super) struct Meter {
    /// `None` where nothing is counted.
    ledger: Option<Arc<dyn Ledger>>,
    disk_space: Arc<DiskSpace>,
    waiting: Mutex<Waiting>,
    /// Held while events are written, so that whoever waits for it finds them written.
    writing: async_lock::Mutex<()>,
    /// A writer thread is started and has not begun: it will write later events too.
    has_writer: AtomicBool,
}

impl Meter {
    pub(super) fn new(ledger: Option<Arc<dyn Ledger>>, disk_space: Arc<DiskSpace>) -> Self {
        let (waiting, writing, has_writer) = (Mutex::default(), async_lock::Mutex::new(()), AtomicBool::new(false));
        Self { ledger, disk_space, waiting, writing, has_writer }
    }

    pub(super) fn is_on(&self) -> bool {
        self.ledger.is_some()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the waiting events if there are too many. Fails if they cannot be written: then nothing more that is billed
    /// may be done.
    pub(super) async fn check(&self) -> Result<()> {
        if self.waiting().events.len() < WAITING { Ok(()) } else { self.write().await }
    }

    /// Notes an event, without writing it yet.
    pub(super) fn note(&self, namespace: &Namespace, amounts: Amounts) {
        if self.is_on() && amounts != Amounts::default() {
            let event = UsageEvent::new(namespace.clone(), Timestamp::now(), amounts);
            self.waiting().add(event);
        }
    }

    /// As [`note`](Self::note), for an event at whose end nobody may be there to have it written.
    pub(super) fn note_and_write(self: &Arc<Self>, namespace: &Namespace, amounts: Amounts) {
        self.note(namespace, amounts);
        if self.is_on() && !self.has_writer.swap(true, Relaxed) {
            let meter = Arc::clone(self);
            let write = async move {
                let _writing = meter.writing.lock().await;
                // What is noted from here on may be too late for this one.
                meter.has_writer.store(false, Relaxed);
                if let Err(error) = meter.write_waiting().await {
                    log::warn!("usage could not be written and waits: {error}");
                }
            };
            blocking::unblock(move || futures_lite::future::block_on(write)).detach();
        }
    }

    /// Writes what waits, what was noted before this was called included.
    pub(super) async fn write(&self) -> Result<()> {
        let _writing = self.writing.lock().await;
        self.write_waiting().await
    }

    /// As [`write`](Self::write), for whoever holds `writing`.
    async fn write_waiting(&self) -> Result<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        // What is noted meanwhile is written by whoever noted it.
        let mut left = self.waiting().events.len();
        while left > 0 {
            let events = self.waiting().give();
            let written = self.disk_space.write("write down what was used", || ledger.record_usage(&events)).await;
            written.map_err(|error| match error {
                Error::Full { .. } | Error::ReadOnly { .. } | Error::Ledger(_) => error,
                other => Error::Ledger(other.into()),
            })?;
            self.waiting().remove(events.len());
            left = left.saturating_sub(events.len());
        }
        Ok(())
    }

    /// As [`write`](Self::write). On a full disk the events wait, and that is no error: what they count is done.
    pub(super) async fn write_or_wait(&self) -> Result<()> {
        match self.write().await {
            Err(full @ Error::Full { .. }) => {
                log::warn!("{} events of usage wait until the disk has room: {full}", self.waiting().events.len());
                Ok(())
            }
            written => written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(namespace: &str) -> UsageEvent {
        let amounts = Amounts { generated_tokens: 1, ..Amounts::default() };
        UsageEvent::new(Namespace::new(namespace).unwrap(), Timestamp(0), amounts)
    }

    #[test]
    fn as_many_events_wait_as_may_and_one_for_each_namespace_beyond() {
        let mut waiting = Waiting::default();
        (0..WAITING).for_each(|_| waiting.add(event("a")));
        let given = waiting.give();
        for _ in 0..3000 {
            waiting.add(event("a"));
            waiting.add(event("b"));
        }
        assert_eq!(waiting.events.len(), WAITING + 2);
        assert_eq!(waiting.events[..WAITING], given[..], "what the ledger may have recorded stays as it is");
        waiting.remove(given.len());
        let counted: Vec<(&str, u64)> =
            waiting.events.iter().map(|event| (event.namespace.as_str(), event.amounts.generated_tokens)).collect();
        assert_eq!(counted, [("a", 3000), ("b", 3000)]);
        assert_eq!(waiting.give().len(), 2);
    }
}
