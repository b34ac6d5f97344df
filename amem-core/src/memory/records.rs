//! The active records in RAM: their tokens and chunk ids, computed once, and the recaller's index kept in step with the
//! ledger.
//!
//! It is a cache with a bound. Whole namespaces leave it, those that were asked about longest ago first, and come back
//! from the ledger when they are asked about again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
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
    /// Records in RAM.
    held: AtomicUsize,
    namespaces: Mutex<HashMap<Namespace, Arc<Records>>>,
    clock: AtomicU64,
}

/// The active records of one namespace.
#[derive(Default)]
pub(crate) struct Records {
    /// How far the ledger was read. Locked while the records are brought up to date, or leave, so that changes are
    /// applied in order, to the index too.
    read: async_lock::Mutex<Revision>,
    entries: Mutex<Entries>,
    used: AtomicU64,
}

#[derive(Default)]
struct Entries {
    by_id: BTreeMap<RecordId, Arc<Entry>>,
    /// Those that will expire, the next one first, so that a question need not look at all.
    expiring: BTreeSet<(Timestamp, RecordId)>,
}

impl Entries {
    fn len(&self) -> usize {
        self.by_id.len()
    }

    fn insert(&mut self, record: Record) {
        self.remove(record.id);
        self.expiring.extend(record.expires_at.map(|at| (at, record.id)));
        self.by_id.insert(record.id, Arc::new(Entry::new(record)));
    }

    fn remove(&mut self, id: RecordId) {
        let removed = self.by_id.remove(&id);
        if let Some(at) = removed.and_then(|entry| entry.record.expires_at) {
            self.expiring.remove(&(at, id));
        }
    }

    /// Those whose time is over.
    fn expired(&self, now: Timestamp) -> impl Iterator<Item = RecordId> {
        self.expiring.iter().take_while(move |(at, _)| *at <= now).map(|(_, id)| *id)
    }
}

impl RecordCache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, held: AtomicUsize::new(0), namespaces: Mutex::default(), clock: AtomicU64::new(0) }
    }

    fn namespaces(&self) -> MutexGuard<'_, HashMap<Namespace, Arc<Records>>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A namespace's records, brought up to what this or any other process has written to the ledger, and those entries
    /// from before whose records were found forgotten. The namespace stays in the cache for as long as the records are held.
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
        let forgotten = {
            let mut read = records.read.lock().await;
            let before = records.entries().len();
            let forgotten = records.refresh(ledger, recaller, namespace, &mut read).await?;
            let after = records.entries().len();
            self.held.fetch_add(after.wrapping_sub(before), Relaxed);
            forgotten
        };
        self.remove_empty(namespace, &records);
        if self.held.load(Relaxed) > self.limit {
            self.shrink(recaller).await;
        }
        Ok((records, forgotten))
    }

    /// Lets go of a namespace without records, if nobody else uses it.
    fn remove_empty(&self, namespace: &Namespace, records: &Arc<Records>) {
        let mut namespaces = self.namespaces();
        let is_theirs = namespaces.get(namespace).is_some_and(|held| Arc::ptr_eq(held, records));
        // One is in the map, one is the caller's.
        if is_theirs && Arc::strong_count(records) == 2 && records.entries().len() == 0 {
            namespaces.remove(namespace);
        }
    }

    /// Lets go of the namespaces that were used longest ago until there is some room again, but for those in use.
    async fn shrink(&self, recaller: &dyn Recaller) {
        let target = self.limit - self.limit / 16;
        let mut by_use: Vec<(u64, Namespace, Arc<Records>)> = {
            let namespaces = self.namespaces();
            let entry = |(name, records): (&Namespace, &Arc<Records>)| {
                (records.used.load(Relaxed), name.clone(), Arc::clone(records))
            };
            namespaces.iter().filter(|(_, records)| Arc::strong_count(records) == 1).map(entry).collect()
        };
        by_use.sort_unstable_by_key(|(used, ..)| *used);
        for (_, name, records) in by_use {
            if self.held.load(Relaxed) <= target {
                break;
            }
            let mut read = records.read.lock().await;
            // Whoever has asked for it since shares the records, and waits for the lock: they then read the ledger from
            // its start, and index all of it.
            if Arc::strong_count(&records) > 2 {
                continue;
            }
            // Before the index is cleared: should that fail or be given up half-way, all of it is indexed anew.
            let gone = std::mem::take(&mut *records.entries()).len();
            self.held.fetch_sub(gone, Relaxed);
            *read = Revision(0);
            if let Err(error) = recaller.clear(&name).await {
                log::warn!("the index of namespace {name} could not be cleared: {error}");
            }
            drop(read);
            self.remove_empty(&name, &records);
        }
    }
}

impl Records {
    async fn refresh(
        &self,
        ledger: &dyn Ledger,
        recaller: &dyn Recaller,
        namespace: &Namespace,
        read: &mut Revision,
    ) -> Result<Vec<Arc<Entry>>> {
        let now = Timestamp::now();
        let Changes { deleted, records: changed, revision } = ledger.changes(namespace, *read, now).await?;
        let (active, gone): (Vec<Record>, Vec<Record>) = changed.into_iter().partition(|r| r.state == State::Active);
        let is_forgotten = |record: &&Record| matches!(record.state, State::Forgotten { .. });
        let mut forgotten: Vec<RecordId> = gone.iter().filter(is_forgotten).map(|record| record.id).collect();
        let mut gone: Vec<RecordId> = gone.iter().map(|record| record.id).collect();
        gone.extend(self.entries().expired(now));
        // The index first: should it fail, the same changes are read again.
        if deleted {
            recaller.clear(namespace).await?;
            let known: Vec<RecordId> = self.entries().by_id.keys().copied().collect();
            forgotten.extend(&known);
            gone.extend(known);
        } else if !gone.is_empty() {
            recaller.remove(namespace, &gone).await?;
        }
        if !active.is_empty() {
            recaller.index(&active).await?;
        }
        let mut entries = self.entries();
        let forgotten = forgotten.iter().filter_map(|id| entries.by_id.get(id).cloned()).collect();
        gone.into_iter().for_each(|id| entries.remove(id));
        active.into_iter().for_each(|record| entries.insert(record));
        *read = revision;
        Ok(forgotten)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record, if it counts at this moment.
    pub(crate) fn get(&self, id: RecordId, now: Timestamp) -> Option<Arc<Entry>> {
        self.entries().by_id.get(&id).filter(|entry| entry.counts(now)).cloned()
    }

    /// All records that count at this moment, oldest first.
    pub(crate) fn active(&self, now: Timestamp) -> Vec<Arc<Entry>> {
        self.entries().by_id.values().filter(|entry| entry.counts(now)).cloned().collect()
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

    /// An index whose clearing takes a while, during which somebody asks.
    struct Slow {
        index: Lexical,
        meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    }

    #[async_trait::async_trait]
    impl Recaller for Slow {
        async fn index(&self, records: &[Record]) -> Result<()> {
            self.index.index(records).await
        }

        async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
            self.index.remove(namespace, ids).await
        }

        async fn clear(&self, namespace: &Namespace) -> Result<()> {
            let meanwhile = self.meanwhile.lock().unwrap().take();
            meanwhile.into_iter().for_each(|ask| ask());
            self.index.clear(namespace).await
        }

        async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<crate::Recalled>> {
            self.index.recall(namespace, query).await
        }
    }

    #[test]
    fn a_namespace_that_is_asked_about_while_it_leaves_is_indexed_again() {
        let ledger = Arc::new(RamLedger::new());
        let recaller = Arc::new(Slow { index: Lexical::default(), meanwhile: Mutex::default() });
        let cache = Arc::new(RecordCache::new(6));
        remember(&ledger, "a", 5);
        remember(&ledger, "b", 5);
        block_on(cache.refresh(&*ledger, &*recaller, &name("a"))).unwrap();
        let (sender, asked) = std::sync::mpsc::channel();
        let (shared, others) = (Arc::clone(&cache), (Arc::clone(&ledger), Arc::clone(&recaller)));
        *recaller.meanwhile.lock().unwrap() = Some(Box::new(move || {
            let (begun, waits) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                begun.send(()).unwrap();
                let (records, _) = block_on(shared.refresh(&*others.0, &*others.1, &name("a"))).unwrap();
                sender.send(records).unwrap();
            });
            waits.recv().unwrap();
        }));
        block_on(cache.refresh(&*ledger, &*recaller, &name("b"))).unwrap();
        let records = asked.recv().unwrap();
        let found = block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap();
        assert_eq!((records.active(Timestamp::now()).len(), found.len()), (5, 5));
    }

    /// An index that fails to clear half-way.
    struct Stuck(Lexical);

    #[async_trait::async_trait]
    impl Recaller for Stuck {
        async fn index(&self, records: &[Record]) -> Result<()> {
            self.0.index(records).await
        }

        async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
            self.0.remove(namespace, ids).await
        }

        async fn clear(&self, namespace: &Namespace) -> Result<()> {
            self.0.clear(namespace).await?;
            Err(crate::Error::Recall("the other half is down".into()))
        }

        async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<crate::Recalled>> {
            self.0.recall(namespace, query).await
        }
    }

    #[test]
    fn a_namespace_whose_index_was_cleared_in_part_is_indexed_again() {
        let (ledger, recaller, cache) = (RamLedger::new(), Stuck(Lexical::default()), RecordCache::new(6));
        for owner in ["a", "b", "a"] {
            remember(&ledger, owner, 5);
            block_on(cache.refresh(&ledger, &recaller, &name(owner))).unwrap();
        }
        let found = block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap();
        assert_eq!(found.len(), 5);
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
    fn a_record_leaves_when_its_time_is_over_and_not_before() {
        let (ledger, recaller, cache) = (RamLedger::new(), Lexical::default(), RecordCache::new(10));
        let soon = Timestamp::now().after(std::time::Duration::from_millis(40));
        let notes = [NewRecord::new("a note").expires_at(soon), NewRecord::new("a lasting note")];
        block_on(ledger.add(&name("a"), &notes, Timestamp::now())).unwrap();
        let found = || {
            let (records, _) = block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
            let found = block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap().len();
            let entries = records.entries();
            (entries.len(), entries.expiring.len(), found)
        };
        assert_eq!(found(), (2, 1, 2));
        while Timestamp::now() < soon {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(found(), (1, 0, 1));
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
