//! The active records, and the recaller's index, kept in step with the ledger.
//!
//! It is a cache with a bound. Whole namespaces leave it, those that were asked about longest ago first, and come back
//! from the ledger when they are asked about again.
//!
//! Of each active record its name and its dates are known. The record itself is read when it is first needed, and its
//! tokens and chunk id are computed once: of a hundred thousand memories, a question needs eight. The names and the index
//! of a large namespace are saved in the ledger now and then ([`Ledger::save_index`]), so that a process that opens it
//! reads only what changed since.

mod cache;
mod entries;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) use cache::{RecordCache, Refreshed};
use entries::Entries;
pub(super) use entries::{Content, Entry};

use crate::{Changes, Ledger, Namespace, Recaller, Record, RecordId, Result, Revision, SavedIndex, State, Timestamp};

/// An index is saved again when this part of the records has changed since it was saved last.
const CHANGED_PART: usize = 8;
/// How long after the last time an index that is gone, because something was forgotten, is saved again. A thousand things
/// that are forgotten one after the other must not write a thousand indexes.
const SAVE_PAUSE: Duration = Duration::from_secs(60);

/// The active records of one namespace.
#[derive(Default)]
pub(crate) struct Records {
    /// How far the ledger was read. Locked while the records are brought up to date, or leave, so that changes are
    /// applied in order, to the index too.
    sync: async_lock::Mutex<SyncState>,
    entries: Mutex<Entries>,
    /// When the index was last saved, or what was saved was read.
    saved: Mutex<Option<Instant>>,
    used: AtomicU64,
}

/// How far the ledger was read, and how much of that was saved.
#[derive(Default)]
struct SyncState {
    revision: Revision,
    /// Changes since the index was saved.
    unsaved: usize,
    /// The ledger dropped the saved index, because something was forgotten since.
    saved_index_dropped: bool,
    /// Records that count among those that the cache holds.
    counted: usize,
    /// The index is being changed, or was when that failed.
    is_half_done: bool,
}

impl SyncState {
    /// Whether as much has changed as makes it worth saving the index, where that is so from `least` records on.
    fn has_changed(&self, records: usize, least: usize) -> bool {
        records >= least && self.unsaved >= least.max(records / CHANGED_PART)
    }

    /// Whether the index is worth saving, at once or after a pause.
    fn is_worth_saving(&self, records: usize, least: usize) -> bool {
        self.has_changed(records, least) || self.saved_index_dropped && records >= least
    }
}

impl Records {
    /// Reads what changed in the ledger. Returns the entries from before that no longer stand as they were.
    async fn apply_changes(
        &self,
        ledger: &dyn Ledger,
        recaller: &dyn Recaller,
        namespace: &Namespace,
        sync: &mut SyncState,
    ) -> Result<Vec<Arc<Entry>>> {
        if sync.revision == Revision(0) {
            let is_restored = self.restore(ledger, recaller, namespace, sync).await?;
            // What was indexed before that failed may be forgotten by now, and no change tells of it.
            if !is_restored && sync.is_half_done {
                recaller.clear(namespace).await?;
            }
        }
        let now = Timestamp::now();
        let Changes { deleted, records: changed, revision } = ledger.changes(namespace, sync.revision, now).await?;
        let changes = changed.len();
        let (active, gone): (Vec<Record>, Vec<Record>) = changed.into_iter().partition(|r| r.state == State::Active);
        let is_forgotten = |record: &Record| matches!(record.state, State::Forgotten { .. });
        let forgot_any = deleted || gone.iter().any(is_forgotten);
        let mut gone: Vec<RecordId> = gone.iter().map(|record| record.id).collect();
        gone.extend(self.entries().expired(now));
        // What says the same stays in the index as it is.
        let is_indexed = |record: &Record| {
            let entries = self.entries();
            let is_there = entries.by_id.get(&record.id).is_some_and(|known| known.is_indexed && known.counts(now));
            !deleted && is_there && entries.saying(record).is_some()
        };
        let (indexed, active): (Vec<Record>, Vec<Record>) = active.into_iter().partition(is_indexed);
        // The index first: should it fail, the same changes are read again. What it then says of these is not known.
        sync.is_half_done = true;
        self.entries().set_unindexed(gone.iter().copied().chain(active.iter().map(|record| record.id)));
        if deleted {
            recaller.clear(namespace).await?;
            gone.extend(self.entries().by_id.keys());
        } else if !gone.is_empty() {
            recaller.remove(namespace, &gone).await?;
        }
        if !active.is_empty() {
            recaller.index(&active).await?;
        }
        let mut entries = self.entries();
        let changed = active.iter().filter(|record| entries.saying(record).is_none()).map(|record| record.id);
        let left: BTreeSet<RecordId> = gone.iter().copied().chain(changed).collect();
        let left = left.iter().filter_map(|id| entries.by_id.get(id)?.entry.clone()).collect();
        gone.into_iter().for_each(|id| entries.remove(id));
        indexed.into_iter().chain(active).for_each(|record| entries.insert(record));
        (sync.revision, sync.is_half_done) = (revision, false);
        sync.unsaved += changes;
        sync.saved_index_dropped |= forgot_any;
        Ok(left)
    }

    /// Takes over what was saved of the records and the index, if anything was, and is sound; or says that it was not.
    async fn restore(
        &self,
        ledger: &dyn Ledger,
        recaller: &dyn Recaller,
        namespace: &Namespace,
        sync: &mut SyncState,
    ) -> Result<bool> {
        let Some(name) = recaller.index_name() else { return Ok(false) };
        let Some(SavedIndex { revision, bytes }) = ledger.saved_index(namespace, &name).await? else {
            return Ok(false);
        };
        let restored = match Entries::restore(&bytes) {
            Some((entries, index)) => recaller.restore(namespace, index).await?.then_some(entries),
            None => None,
        };
        let is_restored = restored.is_some();
        match restored {
            Some(entries) => {
                *self.entries() = entries;
                *self.saved() = Some(Instant::now());
                *sync = SyncState { revision, counted: sync.counted, ..SyncState::default() };
            }
            None => log::warn!("the saved index of namespace {namespace} makes no sense: it is built anew"),
        }
        Ok(is_restored)
    }

    /// How long to wait before the index is saved; `None` if it cannot be, or is not worth it.
    fn save_delay(&self, recaller: &dyn Recaller, sync: &SyncState) -> Option<Duration> {
        let (known, least) = (self.entries().len(), recaller.worth_saving());
        recaller.index_name().filter(|_| sync.is_worth_saving(known, least))?;
        Some(if sync.has_changed(known, least) { Duration::ZERO } else { self.pause() })
    }

    /// How long an index that is gone still waits until it is saved again.
    fn pause(&self) -> Duration {
        self.saved().map_or(Duration::ZERO, |saved| SAVE_PAUSE.saturating_sub(saved.elapsed()))
    }

    fn saved(&self) -> MutexGuard<'_, Option<Instant>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a record counts at this moment, read or not.
    pub(crate) fn counts(&self, id: RecordId, now: Timestamp) -> bool {
        self.entries().by_id.get(&id).is_some_and(|known| known.counts(now))
    }

    /// A record that was [loaded](Self::load), if it counts at this moment.
    pub(crate) fn get(&self, id: RecordId, now: Timestamp) -> Option<Arc<Entry>> {
        self.entries().by_id.get(&id).filter(|known| known.counts(now))?.entry.clone()
    }

    /// Reads those of these records that are known and were not read yet.
    pub(crate) async fn load(&self, ledger: &dyn Ledger, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
        const AT_A_TIME: usize = 4096;
        let missing: Vec<RecordId> = {
            let entries = self.entries();
            let is_missing = |id: &&RecordId| entries.by_id.get(id).is_some_and(|known| known.entry.is_none());
            ids.iter().filter(is_missing).copied().collect()
        };
        for ids in missing.chunks(AT_A_TIME) {
            let records = ledger.get_many(namespace, ids, Timestamp::now()).await?;
            let mut entries = self.entries();
            // One that no longer counts leaves with the next changes.
            for record in records.into_iter().flatten().filter(|record| record.state == State::Active) {
                if let Some(known) = entries.by_id.get_mut(&record.id) {
                    known.entry.get_or_insert_with(|| Arc::new(Entry::new(record)));
                }
            }
        }
        Ok(())
    }

    /// All records that count at this moment, oldest first, and when each last changed.
    pub(crate) fn active(&self, now: Timestamp) -> Vec<(RecordId, Timestamp)> {
        let entries = self.entries();
        let active = entries.by_id.iter().filter(|(_, known)| known.counts(now));
        active.map(|(id, known)| (*id, known.updated_at)).collect()
    }
}
