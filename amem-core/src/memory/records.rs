//! The active records in RAM: their tokens and chunk ids, computed once, and the recaller's index kept in step with the
//! ledger.
//!
//! It is a cache with a bound. Whole namespaces leave it, those that were asked about longest ago first, and come back
//! from the ledger when they are asked about again.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::{
    Changes, ChunkId, Ledger, Namespace, Recaller, Record, RecordId, Result, Revision, State, Timestamp, Token,
};

/// A record and what it is to the model.
pub(crate) struct Entry {
    pub(crate) record: Record,
    content: OnceLock<Content>,
}

/// A record's text as the model has it.
#[derive(Clone)]
pub(crate) struct Content {
    /// The template's marks included.
    pub(crate) tokens: Arc<[Token]>,
    pub(crate) chunk: ChunkId,
}

impl Entry {
    pub(crate) fn new(record: Record) -> Self {
        Self { record, content: OnceLock::new() }
    }

    /// The record's tokens and the name of its chunk, computed by `compute` if nobody has yet.
    pub(crate) fn content(&self, compute: impl FnOnce(&Record) -> Result<Content>) -> Result<&Content> {
        if let Some(content) = self.content.get() {
            return Ok(content);
        }
        let content = compute(&self.record)?;
        Ok(self.content.get_or_init(|| content))
    }

    /// Whether the record still counts at this moment.
    fn counts(&self, now: Timestamp) -> bool {
        self.record.expires_at.is_none_or(|expiry| expiry > now)
    }
}

/// The active records of the namespaces that were asked about last.
pub(super) struct RecordCache {
    /// Records in RAM, about: the namespaces in use may hold more.
    limit: usize,
    namespaces: Mutex<HashMap<Namespace, Arc<Records>>>,
    clock: AtomicU64,
}

/// The active records of one namespace.
#[derive(Default)]
pub(crate) struct Records {
    /// How far the ledger was read. Locked while the records are brought up to date, so that changes are applied in
    /// order.
    read: async_lock::Mutex<Revision>,
    entries: Mutex<BTreeMap<RecordId, Arc<Entry>>>,
    used: AtomicU64,
}

impl RecordCache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, namespaces: Mutex::default(), clock: AtomicU64::new(0) }
    }

    fn namespaces(&self) -> MutexGuard<'_, HashMap<Namespace, Arc<Records>>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A namespace's records, brought up to what this or any other process has written to the ledger, and the entries
    /// that turn out to have been forgotten, as they were. The namespace stays in the cache for as long as they are held.
    pub(super) async fn refresh(
        &self,
        ledger: &dyn Ledger,
        recaller: &dyn Recaller,
        namespace: &Namespace,
    ) -> Result<(Arc<Records>, Vec<Arc<Entry>>)> {
        let records = {
            let mut namespaces = self.namespaces();
            let records = Arc::clone(namespaces.entry(namespace.clone()).or_default());
            records.used.store(self.clock.fetch_add(1, Relaxed), Relaxed);
            records
        };
        let forgotten = records.refresh(ledger, recaller, namespace).await?;
        self.shrink(recaller).await?;
        Ok((records, forgotten))
    }

    /// Lets go of namespaces that nobody uses: those without records, and the least recently used ones beyond the limit.
    async fn shrink(&self, recaller: &dyn Recaller) -> Result<()> {
        let dropped = {
            let mut namespaces = self.namespaces();
            let mut held: usize = namespaces.values().map(|records| records.entries().len()).sum();
            let unused = |records: &Arc<Records>| Arc::strong_count(records) == 1;
            let mut idle: Vec<(u64, usize, Namespace)> = namespaces
                .iter()
                .filter(|(_, records)| unused(records))
                .map(|(name, records)| (records.used.load(Relaxed), records.entries().len(), name.clone()))
                .collect();
            idle.sort_unstable();
            let mut dropped = Vec::new();
            for (_, len, name) in idle {
                if len == 0 || held > self.limit {
                    held -= len;
                    dropped.extend(namespaces.remove(&name).map(|records| (name, records)));
                }
            }
            dropped
        };
        for (name, records) in dropped {
            // Whoever asks for the namespace from now on reads the ledger anew, and indexes all of it.
            if !records.entries().is_empty() {
                recaller.clear(&name).await?;
            }
        }
        Ok(())
    }
}

impl Records {
    async fn refresh(
        &self,
        ledger: &dyn Ledger,
        recaller: &dyn Recaller,
        namespace: &Namespace,
    ) -> Result<Vec<Arc<Entry>>> {
        let mut read = self.read.lock().await;
        let now = Timestamp::now();
        let Changes { deleted, records: changed, revision } = ledger.changes(namespace, *read, now).await?;
        let (active, gone): (Vec<Record>, Vec<Record>) = changed.into_iter().partition(|r| r.state == State::Active);
        let is_forgotten = |record: &&Record| matches!(record.state, State::Forgotten { .. });
        let mut forgotten: Vec<RecordId> = gone.iter().filter(is_forgotten).map(|record| record.id).collect();
        let mut gone: Vec<RecordId> = gone.iter().map(|record| record.id).collect();
        gone.extend(self.entries().values().filter(|entry| !entry.counts(now)).map(|entry| entry.record.id));
        // The index first: should it fail, the same changes are read again.
        if deleted {
            recaller.clear(namespace).await?;
            let known: Vec<RecordId> = self.entries().keys().copied().collect();
            forgotten.extend(&known);
            gone.extend(known);
        } else if !gone.is_empty() {
            recaller.remove(namespace, &gone).await?;
        }
        if !active.is_empty() {
            recaller.index(&active).await?;
        }
        let mut entries = self.entries();
        let forgotten = forgotten.iter().filter_map(|id| entries.get(id).cloned()).collect();
        gone.iter().for_each(|id| drop(entries.remove(id)));
        entries.extend(active.into_iter().map(|record| (record.id, Arc::new(Entry::new(record)))));
        *read = revision;
        Ok(forgotten)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<RecordId, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record, if it counts at this moment.
    pub(crate) fn get(&self, id: RecordId, now: Timestamp) -> Option<Arc<Entry>> {
        self.entries().get(&id).filter(|entry| entry.counts(now)).cloned()
    }

    /// All records that count at this moment, oldest first.
    pub(crate) fn active(&self, now: Timestamp) -> Vec<Arc<Entry>> {
        self.entries().values().filter(|entry| entry.counts(now)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::recall::{Lexical, RecallQuery};
    use crate::{NewRecord, RamLedger};

    fn name(name: &str) -> Namespace {
        Namespace::new(name).unwrap()
    }

    fn remember(ledger: &RamLedger, owner: &str, count: usize) {
        let texts: Vec<NewRecord> = (0..count).map(|n| NewRecord::new(format!("note {n} of {owner}"))).collect();
        block_on(ledger.add(&name(owner), &texts, Timestamp::now())).unwrap();
    }

    #[test]
    fn namespaces_leave_when_others_need_their_room_and_come_back() {
        let (ledger, recaller, cache) = (RamLedger::new(), Lexical::default(), RecordCache::new(10));
        for owner in ["a", "b", "c"] {
            remember(&ledger, owner, 5);
        }
        let ask = |owner: &str| {
            let (records, _) = block_on(cache.refresh(&ledger, &recaller, &name(owner))).unwrap();
            let found = block_on(recaller.recall(&name(owner), &RecallQuery::new("note", 9))).unwrap();
            assert_eq!((records.active(Timestamp::now()).len(), found.len()), (5, 5), "{owner}");
        };
        for owner in ["a", "b", "c", "a", "c", "b"] {
            ask(owner);
            assert!(cache.namespaces().len() <= 3, "what is in use counts too");
        }
        ask("b");
        assert_eq!(cache.namespaces().len(), 2, "the one that was asked about longest ago left");
        let found = block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap();
        assert_eq!(found, [], "and its index with it");
    }

    #[test]
    fn a_namespace_that_was_only_asked_about_leaves_nothing_behind() {
        let (ledger, recaller, cache) = (RamLedger::new(), Lexical::default(), RecordCache::new(10));
        for n in 0..100 {
            block_on(cache.refresh(&ledger, &recaller, &name(&format!("nobody {n}")))).unwrap();
        }
        assert!(cache.namespaces().len() <= 1);
    }

    #[test]
    fn what_is_in_use_stays() {
        let (ledger, recaller, cache) = (RamLedger::new(), Lexical::default(), RecordCache::new(1));
        remember(&ledger, "a", 5);
        let (held, _) = block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
        remember(&ledger, "b", 5);
        block_on(cache.refresh(&ledger, &recaller, &name("b"))).unwrap();
        assert_eq!(block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap().len(), 5);
        drop(held);
    }

    #[test]
    fn a_deleted_namespace_is_gone_even_if_it_was_filled_again() {
        let (ledger, recaller, cache) = (RamLedger::new(), Lexical::default(), RecordCache::new(10));
        remember(&ledger, "a", 3);
        let (held, _) = block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
        assert_eq!(block_on(ledger.delete_namespace(&name("a"))).unwrap(), 3);
        remember(&ledger, "a", 1);
        let (_, forgotten) = block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
        assert_eq!((forgotten.len(), held.active(Timestamp::now()).len()), (3, 1));
        assert_eq!(block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap().len(), 1);
    }

    #[test]
    fn a_record_is_tokenised_once() {
        let ledger = RamLedger::new();
        remember(&ledger, "a", 1);
        let record = block_on(ledger.list(&name("a"), crate::Query::All)).unwrap().remove(0);
        let entry = Entry::new(record);
        let mut calls = 0;
        for _ in 0..3 {
            let content = entry.content(|_| {
                calls += 1;
                Ok(Content { tokens: [7].into(), chunk: ChunkId([0; 32]) })
            });
            assert_eq!(&*content.unwrap().tokens, [7]);
        }
        assert_eq!(calls, 1);
    }
}
