//! Metering: what was done for whom, written to the ledger.
//!
//! An event is durable before its answer is told to be complete, or its call returns. One that cannot be written waits
//! here and is written with the next; events have ids, so none counts twice. What waits when the process is killed is lost,
//! and was not told to be done, with one exception: a full disk, on which KV makes no room, fails no call that is done.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::room::Room;
use crate::{Amounts, Error, Ledger, Namespace, Result, Timestamp, Usage, UsageEvent};

/// Events that may wait. Beyond that nothing more is done that would have to be counted.
const WAITING: usize = 1024;

/// Counts usage, if it is to be counted.
pub(super) struct Meter {
    /// `None` where nothing is counted.
    ledger: Option<Arc<dyn Ledger>>,
    room: Arc<Room>,
    waiting: Mutex<Vec<UsageEvent>>,
    /// Held while events are written, so that whoever waits for it finds them written.
    writing: async_lock::Mutex<()>,
    /// A thread is about to write, so that no second one need wait for a ledger that is held.
    has_writer: AtomicBool,
}

impl Meter {
    pub(super) fn new(ledger: Option<Arc<dyn Ledger>>, room: Arc<Room>) -> Self {
        let (waiting, writing, has_writer) = (Mutex::default(), async_lock::Mutex::new(()), AtomicBool::new(false));
        Self { ledger, room, waiting, writing, has_writer }
    }

    pub(super) fn is_on(&self) -> bool {
        self.ledger.is_some()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<UsageEvent>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether usage can be counted. If too much waits already, it is written, or this is the error of that.
    pub(super) async fn check(&self) -> Result<()> {
        if self.waiting().len() < WAITING { Ok(()) } else { self.write().await }
    }

    /// Notes an event, without writing it yet.
    pub(super) fn note(&self, namespace: &Namespace, amounts: Amounts) {
        if self.is_on() && amounts != Amounts::default() {
            let event = UsageEvent::new(namespace.clone(), Timestamp::now(), amounts);
            self.waiting().push(event);
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
        let events = self.waiting().clone();
        if events.is_empty() {
            return Ok(());
        }
        let written = self.room.make("write down what was used", || ledger.record_usage(&events)).await;
        written.map_err(|error| match error {
            Error::Full { .. } | Error::ReadOnly { .. } | Error::Ledger(_) => error,
            other => Error::Ledger(other.into()),
        })?;
        // Those that were noted meanwhile stand behind them.
        self.waiting().drain(..events.len());
        Ok(())
    }

    /// As [`write`](Self::write). On a full disk the events wait, and that is no error: what they count is done.
    pub(super) async fn write_or_wait(&self) -> Result<()> {
        match self.write().await {
            Err(full @ Error::Full { .. }) => {
                log::warn!("{} events of usage wait until the disk has room: {full}", self.waiting().len());
                Ok(())
            }
            written => written,
        }
    }
}

/// What an answer used, or a part of it.
pub(super) fn amounts_of(usage: &Usage) -> Amounts {
    Amounts {
        reused_tokens: usage.reused() as u64,
        repaired_tokens: usage.repaired as u64,
        prefilled_tokens: usage.prefilled as u64,
        generated_tokens: usage.generated as u64,
        ..Amounts::default()
    }
}
