//! The active records in RAM, and the recaller's index kept in step with the ledger.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Ledger, Namespace, Recaller, Record, RecordId, Result, Revision, State, Timestamp};

/// The active records of each namespace.
#[derive(Default)]
pub(super) struct RecordCache {
    records: Mutex<HashMap<Namespace, Arc<Records>>>,
}

#[derive(Default)]
struct Records {
    /// How far the ledger was read. Locked while the records are brought up to date, so that changes are applied in order.
    read: async_lock::Mutex<Revision>,
    records: Mutex<BTreeMap<RecordId, Record>>,
}

impl RecordCache {
    fn of(&self, namespace: &Namespace) -> Arc<Records> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(records.entry(namespace.clone()).or_default())
    }

    /// Reads what is new in the ledger. Returns the records that turn out to have been forgotten, as they were.
    pub(super) async fn refresh(
        &self,
        ledger: &dyn Ledger,
        recaller: &dyn Recaller,
        namespace: &Namespace,
    ) -> Result<Vec<Record>> {
        let cached = self.of(namespace);
        let mut read = cached.read.lock().await;
        let now = Timestamp::now();
        let (changed, revision) = ledger.changes(namespace, *read, now).await?;
        let (active, gone): (Vec<Record>, Vec<Record>) = changed.into_iter().partition(|r| r.state == State::Active);
        let is_forgotten = |record: &&Record| matches!(record.state, State::Forgotten { .. });
        let forgotten: Vec<RecordId> = gone.iter().filter(is_forgotten).map(|record| record.id).collect();
        let mut gone: Vec<RecordId> = gone.iter().map(|record| record.id).collect();
        gone.extend(cached.expired(now));
        // The index first: should it fail, the same changes are read again.
        if !gone.is_empty() {
            recaller.remove(namespace, &gone).await?;
        }
        if !active.is_empty() {
            recaller.index(&active).await?;
        }
        let mut records = cached.records();
        let forgotten = forgotten.iter().filter_map(|id| records.get(id).cloned()).collect();
        gone.iter().for_each(|id| drop(records.remove(id)));
        records.extend(active.into_iter().map(|record| (record.id, record)));
        *read = revision;
        Ok(forgotten)
    }

    /// A record, if it counts at this moment.
    pub(super) fn record(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Option<Record> {
        let cached = self.of(namespace);
        let record = cached.records().get(&id).cloned();
        record.filter(|record| counts(record, now))
    }

    /// All records that count at this moment, oldest first.
    pub(super) fn active(&self, namespace: &Namespace, now: Timestamp) -> Vec<Record> {
        let cached = self.of(namespace);
        let records = cached.records();
        records.values().filter(|record| counts(record, now)).cloned().collect()
    }
}

impl Records {
    fn records(&self) -> std::sync::MutexGuard<'_, BTreeMap<RecordId, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expired(&self, now: Timestamp) -> Vec<RecordId> {
        self.records().values().filter(|record| !counts(record, now)).map(|record| record.id).collect()
    }
}

/// Whether an active record still counts at this moment.
fn counts(record: &Record, now: Timestamp) -> bool {
    record.expires_at.is_none_or(|expiry| expiry > now)
}
