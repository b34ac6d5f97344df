//! A ledger for tests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use amem_core::{
    Added, Change, Changes, ChunkId, Error, Ledger, Listing, Namespace, NewRecord, Page, PendingDeletion, Query,
    RamLedger, Record, RecordId, Revision, SavedIndex, Timestamp, UsageEvent, UsageQuery, UsageTotal, Version,
};
use async_trait::async_trait;
use futures_lite::future::block_on;

/// A ledger that counts the changes of each namespace for itself, as the one in PostgreSQL does. It keeps no links.
#[derive(Default)]
pub(crate) struct CountsEach {
    each: Mutex<BTreeMap<Namespace, Arc<RamLedger>>>,
    saved: Mutex<BTreeMap<(Namespace, String), SavedIndex>>,
    /// Calls of `page`.
    pub(crate) pages: AtomicUsize,
}

impl CountsEach {
    fn of(&self, namespace: &Namespace) -> Arc<RamLedger> {
        self.each.lock().unwrap().entry(namespace.clone()).or_default().clone()
    }
}

type Done<T> = Result<T, Error>;

#[async_trait]
impl Ledger for CountsEach {
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> Done<Vec<Added>> {
        self.of(namespace).add(namespace, new, now).await
    }

    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Done<Record> {
        self.of(namespace).get(namespace, id, now).await
    }

    async fn page(&self, namespace: &Namespace, listing: &Listing) -> Done<Page> {
        self.pages.fetch_add(1, Relaxed);
        self.of(namespace).page(namespace, listing).await
    }

    async fn count(&self, namespace: &Namespace, now: Timestamp) -> Done<usize> {
        self.of(namespace).count(namespace, now).await
    }

    async fn change(&self, namespace: &Namespace, id: RecordId, change: &Change, now: Timestamp) -> Done<Record> {
        self.of(namespace).change(namespace, id, change, now).await
    }

    async fn forget_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Done<Vec<Record>> {
        self.of(namespace).forget_many(namespace, ids, now).await
    }

    async fn delete_namespace(&self, namespace: &Namespace) -> Done<usize> {
        self.of(namespace).delete_namespace(namespace).await
    }

    async fn history(&self, namespace: &Namespace, id: RecordId) -> Done<Vec<Version>> {
        self.of(namespace).history(namespace, id).await
    }

    async fn namespaces(&self) -> Done<Vec<Namespace>> {
        let all = self.each.lock().unwrap().clone();
        let has_records =
            |(name, ledger): &(Namespace, Arc<RamLedger>)| !block_on(ledger.list(name, Query::All)).unwrap().is_empty();
        Ok(all.into_iter().filter(has_records).map(|(name, _)| name).collect())
    }

    async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> Done<Changes> {
        self.of(namespace).changes(namespace, since, now).await
    }

    async fn link(&self, _: &Namespace, _: &[(RecordId, ChunkId)], _: Timestamp) -> Done<()> {
        Ok(())
    }

    async fn pending_deletions(&self, _: Timestamp) -> Done<Vec<PendingDeletion>> {
        Ok(Vec::new())
    }

    async fn confirm_deleted(&self, _: &[PendingDeletion], _: Timestamp) -> Done<()> {
        Ok(())
    }

    async fn are_linked(&self, chunks: &[ChunkId], _: Timestamp) -> Done<Vec<bool>> {
        Ok(vec![false; chunks.len()])
    }

    async fn record_usage(&self, _: &[UsageEvent]) -> Done<()> {
        Ok(())
    }

    async fn usage(&self, _: &UsageQuery) -> Done<Vec<UsageTotal>> {
        Ok(Vec::new())
    }

    async fn save_index(&self, namespace: &Namespace, name: &str, index: &SavedIndex) -> Done<bool> {
        let is_known = index.revision <= self.changes(namespace, Revision(0), Timestamp(0)).await?.revision;
        if is_known {
            self.saved.lock().unwrap().insert((namespace.clone(), name.to_owned()), index.clone());
        }
        Ok(is_known)
    }

    async fn saved_index(&self, namespace: &Namespace, name: &str) -> Done<Option<SavedIndex>> {
        Ok(self.saved.lock().unwrap().get(&(namespace.clone(), name.to_owned())).cloned())
    }
}
