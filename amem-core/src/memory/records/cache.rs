//! The cache of namespaces' records, and its bound.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Records, SyncState};
use crate::memory::outdated::Outdated;
use crate::{Ledger, Namespace, Recaller, Result, Revision, SavedIndex};

/// The active records of the namespaces that were asked about last.
pub(in crate::memory) struct RecordCache {
    /// Records that are known, about: the namespaces in use may have more.
    limit: usize,
    /// Records that are known.
    held: AtomicUsize,
    namespaces: Mutex<HashMap<Namespace, Arc<Records>>>,
    clock: AtomicU64,
    /// Told which records no longer count or say something else, where somebody keeps their KV.
    outdated: Option<Arc<Outdated>>,
}

/// A namespace's records after they were brought up to date.
pub(in crate::memory) struct Refreshed {
    pub(in crate::memory) records: Arc<Records>,
    /// How long to wait before the index is [saved](RecordCache::save); `None` if it is not worth it.
    pub(in crate::memory) save_delay: Option<Duration>,
}

impl RecordCache {
    pub(in crate::memory) fn new(limit: usize, outdated: Option<Arc<Outdated>>) -> Self {
        let (held, namespaces, clock) = (AtomicUsize::new(0), Mutex::default(), AtomicU64::new(0));
        Self { limit, held, namespaces, clock, outdated }
    }

    fn namespaces(&self) -> MutexGuard<'_, HashMap<Namespace, Arc<Records>>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether records of a namespace are held.
    pub(in crate::memory) fn holds(&self, namespace: &Namespace) -> bool {
        self.namespaces().contains_key(namespace)
    }

    /// A namespace's records, brought up to what this or any other process has written to the ledger. The namespace stays in
    /// the cache for as long as the records are held.
    pub(in crate::memory) async fn refresh(
        &self,
        ledger: &dyn Ledger,
        recaller: &dyn Recaller,
        namespace: &Namespace,
    ) -> Result<Refreshed> {
        let records = {
            let mut namespaces = self.namespaces();
            let records = Arc::clone(namespaces.entry(namespace.clone()).or_default());
            records.used.store(self.clock.fetch_add(1, Relaxed), Relaxed);
            records
        };
        let save_delay = {
            let mut sync = records.sync.lock().await;
            self.refresh_locked(ledger, recaller, namespace, &records, &mut sync).await?;
            records.save_delay(recaller, &sync)
        };
        self.remove_empty(namespace, &records);
        if self.held.load(Relaxed) > self.limit {
            self.shrink(recaller).await;
        }
        Ok(Refreshed { records, save_delay })
    }

    /// Brings records up to date, whose `sync` the caller has locked, and counts how many are held.
    async fn refresh_locked(
        &self,
        ledger: &dyn Ledger,
        recaller: &dyn Recaller,
        namespace: &Namespace,
        records: &Records,
        sync: &mut SyncState,
    ) -> Result<()> {
        let refreshed = records.apply_changes(ledger, recaller, namespace, sync).await;
        // Also after a failure: what was saved may have been read before it.
        let held = records.entries().len();
        self.held.fetch_add(held.wrapping_sub(sync.counted), Relaxed);
        sync.counted = held;
        let left = refreshed?;
        if let Some(outdated) = &self.outdated {
            outdated.add(left);
        }
        Ok(())
    }

    /// How long to wait before a namespace's index is saved, of which something was forgotten; `None` if it is not held
    /// here.
    pub(in crate::memory) fn pause(&self, namespace: &Namespace) -> Option<Duration> {
        self.namespaces().get(namespace).map(|records| records.pause())
    }

    /// Saves in the ledger the names of a namespace's records and the index, brought up to date, if they are held here and
    /// worth it. Questions wait while a copy of them is made, and not while the ledger writes it.
    ///
    /// # Errors
    /// When the recaller or the ledger fails; what was to be saved is saved when as much has changed again.
    pub(in crate::memory) async fn save(
        &self,
        ledger: &dyn Ledger,
        recaller: &dyn Recaller,
        namespace: &Namespace,
    ) -> Result<()> {
        let held = self.namespaces().get(namespace).cloned();
        let (Some(records), Some(name)) = (held, recaller.index_name()) else { return Ok(()) };
        let index = {
            let mut sync = records.sync.lock().await;
            // They may have left the cache just now.
            if sync.revision == Revision(0) {
                return Ok(());
            }
            self.refresh_locked(ledger, recaller, namespace, &records, &mut sync).await?;
            if records.save_delay(recaller, &sync).is_none() {
                return Ok(());
            }
            (sync.unsaved, sync.saved_index_dropped) = (0, false);
            *records.saved() = Some(Instant::now());
            let Some(index) = recaller.save(namespace).await? else { return Ok(()) };
            SavedIndex { revision: sync.revision, bytes: records.entries().save(&index) }
        };
        ledger.save_index(namespace, &name, &index).await.map(drop)
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
            let mut sync = records.sync.lock().await;
            // Whoever has asked for it since shares the records, and waits for the lock: they then read the ledger from
            // its start, and index all of it.
            if Arc::strong_count(&records) > 2 {
                continue;
            }
            // Before the index is cleared: should that fail or be given up half-way, all of it is indexed anew.
            drop(std::mem::take(&mut *records.entries()));
            self.held.fetch_sub(sync.counted, Relaxed);
            *sync = SyncState { is_half_done: true, ..SyncState::default() };
            *records.saved() = None;
            match recaller.clear(&name).await {
                Ok(()) => {
                    sync.is_half_done = false;
                    drop(sync);
                    self.remove_empty(&name, &records);
                }
                Err(error) => log::warn!("the index of namespace {name} could not be cleared: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use futures_lite::future::block_on;

    use super::*;
    use crate::recall::{Dense, Hybrid, Lexical, RecallQuery};
    use crate::{Change, NewRecord, RamLedger, Record, RecordId, Timestamp};

    fn name(name: &str) -> Namespace {
        Namespace::new(name).unwrap()
    }

    fn remember(ledger: &RamLedger, owner: &str, count: usize) {
        let texts: Vec<NewRecord> = (0..count).map(|n| NewRecord::new(format!("note {n} of {owner}"))).collect();
        block_on(ledger.add(&name(owner), &texts, Timestamp::now())).unwrap();
    }

    #[test]
    fn namespaces_leave_when_others_need_their_room_and_come_back() {
        let (ledger, recaller, cache) = (RamLedger::new(), Lexical::default(), RecordCache::new(10, None));
        for owner in ["a", "b", "c"] {
            remember(&ledger, owner, 5);
        }
        let ask = |owner: &str| {
            let Refreshed { records, .. } = block_on(cache.refresh(&ledger, &recaller, &name(owner))).unwrap();
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

    /// Embeds a text by its length.
    struct Lengths;

    #[async_trait::async_trait]
    impl crate::recall::Embedder for Lengths {
        async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
            Ok(texts.iter().map(|text| vec![1.0, text.len() as f32]).collect())
        }

        fn name(&self) -> Option<&str> {
            Some("lengths")
        }
    }

    #[test]
    fn an_index_is_saved_from_as_many_records_on_as_its_recaller_says() {
        let (lexical, dense) = (Arc::new(Lexical::default()), Arc::new(Dense::new(Lengths, 2)));
        let both = Hybrid::new(vec![lexical.clone(), dense.clone()]);
        assert_eq!([lexical.worth_saving(), dense.worth_saving(), both.worth_saving()], [1000, 16, 16]);
        let worth =
            |unsaved, records, least| SyncState { unsaved, ..SyncState::default() }.is_worth_saving(records, least);
        assert!(!worth(15, 15, 16) && worth(16, 16, 16) && !worth(999, 999, 1000) && worth(1000, 1000, 1000));
        // Of many records, many have to change.
        assert!(!worth(124, 1000, 16) && worth(125, 1000, 16));
    }

    #[test]
    fn a_namespace_that_was_only_asked_about_leaves_nothing_behind() {
        let (ledger, recaller, cache) = (RamLedger::new(), Lexical::default(), RecordCache::new(10, None));
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
        let cache = Arc::new(RecordCache::new(6, None));
        remember(&ledger, "a", 5);
        remember(&ledger, "b", 5);
        block_on(cache.refresh(&*ledger, &*recaller, &name("a"))).unwrap();
        let (sender, asked) = std::sync::mpsc::channel();
        let (shared, others) = (Arc::clone(&cache), (Arc::clone(&ledger), Arc::clone(&recaller)));
        *recaller.meanwhile.lock().unwrap() = Some(Box::new(move || {
            let (begun, waits) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                begun.send(()).unwrap();
                let refreshed = block_on(shared.refresh(&*others.0, &*others.1, &name("a"))).unwrap();
                sender.send(refreshed.records).unwrap();
            });
            waits.recv().unwrap();
        }));
        block_on(cache.refresh(&*ledger, &*recaller, &name("b"))).unwrap();
        let records = asked.recv().unwrap();
        let found = block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap();
        assert_eq!((records.active(Timestamp::now()).len(), found.len()), (5, 5));
    }

    /// An index that fails half-way when it is first cleared of something.
    struct Stuck {
        index: Lexical,
        has_failed: AtomicBool,
    }

    #[async_trait::async_trait]
    impl Recaller for Stuck {
        async fn index(&self, records: &[Record]) -> Result<()> {
            self.index.index(records).await
        }

        async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
            self.index.remove(namespace, ids).await
        }

        async fn clear(&self, namespace: &Namespace) -> Result<()> {
            let found = self.index.recall(namespace, &RecallQuery::new("note", 1)).await?;
            self.index.clear(namespace).await?;
            if found.is_empty() || self.has_failed.swap(true, Relaxed) {
                return Ok(());
            }
            Err(crate::Error::Recall("the other half is down".into()))
        }

        async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<crate::Recalled>> {
            self.index.recall(namespace, query).await
        }
    }

    #[test]
    fn a_namespace_whose_index_was_cleared_in_part_is_indexed_again() {
        let recaller = Stuck { index: Lexical::default(), has_failed: AtomicBool::new(false) };
        let (ledger, cache) = (RamLedger::new(), RecordCache::new(6, None));
        for owner in ["a", "b", "a"] {
            remember(&ledger, owner, 5);
            block_on(cache.refresh(&ledger, &recaller, &name(owner))).unwrap();
        }
        assert!(recaller.has_failed.load(Relaxed));
        let found = block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap();
        assert_eq!(found.len(), 5);
    }

    /// Embeds texts by their lengths, except when it is down.
    struct Failing(Arc<AtomicBool>);

    #[async_trait::async_trait]
    impl crate::recall::Embedder for Failing {
        async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
            if self.0.load(Relaxed) {
                Err(crate::Error::Recall("it is down".into()))
            } else {
                Lengths.embed(texts).await
            }
        }
    }

    /// Two indexes, of which the second can be made to fail, and the first of them alone.
    fn halves() -> (Hybrid, Arc<Lexical>, Arc<AtomicBool>) {
        let (lexical, is_down) = (Arc::new(Lexical::default()), Arc::new(AtomicBool::new(false)));
        let dense = Dense::new(Failing(Arc::clone(&is_down)), 2);
        (Hybrid::new(vec![lexical.clone(), Arc::new(dense)]), lexical, is_down)
    }

    #[test]
    fn words_that_were_indexed_in_part_are_gone_with_their_namespace() {
        let (ledger, cache, (recaller, lexical, is_down)) = (RamLedger::new(), RecordCache::new(10, None), halves());
        remember(&ledger, "a", 3);
        is_down.store(true, Relaxed);
        assert!(block_on(cache.refresh(&ledger, &recaller, &name("a"))).is_err());
        is_down.store(false, Relaxed);
        block_on(ledger.delete_namespace(&name("a"))).unwrap();
        remember(&ledger, "a", 1);
        block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
        assert_eq!(block_on(lexical.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap().len(), 1);
    }

    #[test]
    fn a_text_that_was_indexed_in_part_and_changed_back_is_found_as_it_is() {
        let (ledger, cache, (recaller, lexical, is_down)) = (RamLedger::new(), RecordCache::new(10, None), halves());
        let added = block_on(ledger.add(&name("a"), &[NewRecord::new("about tea")], Timestamp::now())).unwrap();
        let id = added[0].record.id;
        block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
        block_on(ledger.update(&name("a"), id, "about coffee", Timestamp::now())).unwrap();
        is_down.store(true, Relaxed);
        assert!(block_on(cache.refresh(&ledger, &recaller, &name("a"))).is_err());
        is_down.store(false, Relaxed);
        block_on(ledger.update(&name("a"), id, "about tea", Timestamp::now())).unwrap();
        block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
        let found = |word| block_on(lexical.recall(&name("a"), &RecallQuery::new(word, 9))).unwrap().len();
        assert_eq!((found("tea"), found("coffee")), (1, 0));
    }

    #[test]
    fn what_is_in_use_stays() {
        let (ledger, recaller, cache) = (RamLedger::new(), Lexical::default(), RecordCache::new(1, None));
        remember(&ledger, "a", 5);
        let held = block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap().records;
        remember(&ledger, "b", 5);
        block_on(cache.refresh(&ledger, &recaller, &name("b"))).unwrap();
        assert_eq!(block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap().len(), 5);
        drop(held);
    }

    #[test]
    fn a_deleted_namespace_is_gone_even_if_it_was_filled_again() {
        let (ledger, recaller, outdated) = (RamLedger::new(), Lexical::default(), Arc::<Outdated>::default());
        let cache = RecordCache::new(10, Some(Arc::clone(&outdated)));
        remember(&ledger, "a", 3);
        let held = block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap().records;
        assert_eq!(block_on(ledger.delete_namespace(&name("a"))).unwrap(), 3);
        remember(&ledger, "a", 1);
        block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
        assert_eq!((outdated.take().len(), held.active(Timestamp::now()).len()), (3, 1));
        assert_eq!(block_on(recaller.recall(&name("a"), &RecallQuery::new("note", 9))).unwrap().len(), 1);
    }

    #[test]
    fn what_was_changed_elsewhere_is_noted_as_outdated_and_what_says_the_same_is_not() {
        let outdated: Arc<Outdated> = Arc::default();
        let (ledger, recaller) = (RamLedger::new(), Lexical::default());
        let cache = RecordCache::new(10, Some(Arc::clone(&outdated)));
        let texts = ["stays", "changes", "is replaced"].map(|text| NewRecord::new(text).key(text));
        let added = block_on(ledger.add(&name("a"), &texts, Timestamp::now())).unwrap();
        block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
        block_on(ledger.update(&name("a"), added[1].record.id, "changed", Timestamp::now())).unwrap();
        let new = [NewRecord::new("replaced").key("is replaced")];
        block_on(ledger.add(&name("a"), &new, Timestamp::now())).unwrap();
        let metadata = Change::new().metadata(Default::default());
        block_on(ledger.change(&name("a"), added[0].record.id, &metadata, Timestamp::now())).unwrap();
        block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap();
        let texts: Vec<String> = outdated.take().iter().map(|entry| entry.record.text.clone()).collect();
        assert_eq!(texts, ["changes", "is replaced"]);
    }

    #[test]
    fn a_record_leaves_when_its_time_is_over_and_not_before() {
        let (ledger, recaller, cache) = (RamLedger::new(), Lexical::default(), RecordCache::new(10, None));
        let soon = Timestamp::now().after(std::time::Duration::from_millis(40));
        let notes = [NewRecord::new("a note").expires_at(soon), NewRecord::new("a lasting note")];
        block_on(ledger.add(&name("a"), &notes, Timestamp::now())).unwrap();
        let found = || {
            let records = block_on(cache.refresh(&ledger, &recaller, &name("a"))).unwrap().records;
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
}
