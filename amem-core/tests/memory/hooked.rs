//! A ledger and a store in RAM that do what a test wants at the beginning of a call.

use std::sync::Arc;

use amem_core::{
    Added, Change, Changes, ChunkId, KvChunk, KvStore, Ledger, Listing, Namespace, NewRecord, Page, PendingDeletion,
    RamLedger, RamStore, Record, RecordId, Result, Revision, SavedIndex, StoreStats, StoredChunk, Timestamp,
    UsageEvent, UsageQuery, UsageTotal, Version,
};
use async_trait::async_trait;

/// Called with the name of each call before it does anything. Its error is the call's.
pub(crate) type Hook = dyn Fn(&'static str) -> Result<()> + Send + Sync;

pub(crate) struct HookedLedger {
    pub(crate) inner: RamLedger,
    hook: Box<Hook>,
}

impl HookedLedger {
    pub(crate) fn new(hook: impl Fn(&'static str) -> Result<()> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { inner: RamLedger::new(), hook: Box::new(hook) })
    }
}

#[async_trait]
impl Ledger for HookedLedger {
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> Result<Vec<Added>> {
        (self.hook)("add")?;
        self.inner.add(namespace, new, now).await
    }

    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record> {
        self.inner.get(namespace, id, now).await
    }

    async fn page(&self, namespace: &Namespace, listing: &Listing) -> Result<Page> {
        self.inner.page(namespace, listing).await
    }

    async fn count(&self, namespace: &Namespace, now: Timestamp) -> Result<usize> {
        self.inner.count(namespace, now).await
    }

    async fn change(&self, namespace: &Namespace, id: RecordId, change: &Change, now: Timestamp) -> Result<Record> {
        (self.hook)("change")?;
        self.inner.change(namespace, id, change, now).await
    }

    async fn forget_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Result<Vec<Record>> {
        (self.hook)("forget_many")?;
        self.inner.forget_many(namespace, ids, now).await
    }

    async fn delete_namespace(&self, namespace: &Namespace) -> Result<usize> {
        (self.hook)("delete_namespace")?;
        self.inner.delete_namespace(namespace).await
    }

    async fn history(&self, namespace: &Namespace, id: RecordId) -> Result<Vec<Version>> {
        self.inner.history(namespace, id).await
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.inner.namespaces().await
    }

    async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> Result<Changes> {
        self.inner.changes(namespace, since, now).await
    }

    async fn link(&self, namespace: &Namespace, links: &[(RecordId, ChunkId)], now: Timestamp) -> Result<()> {
        (self.hook)("link")?;
        self.inner.link(namespace, links, now).await
    }

    async fn pending_deletions(&self, now: Timestamp) -> Result<Vec<PendingDeletion>> {
        (self.hook)("pending_deletions")?;
        self.inner.pending_deletions(now).await
    }

    async fn confirm_deleted(&self, deletions: &[PendingDeletion], now: Timestamp) -> Result<()> {
        (self.hook)("confirm_deleted")?;
        self.inner.confirm_deleted(deletions, now).await
    }

    async fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> Result<Vec<bool>> {
        self.inner.are_linked(chunks, now).await
    }

    async fn record_usage(&self, events: &[UsageEvent]) -> Result<()> {
        (self.hook)("record_usage")?;
        self.inner.record_usage(events).await
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>> {
        self.inner.usage(query).await
    }

    async fn save_index(&self, namespace: &Namespace, name: &str, index: &SavedIndex) -> Result<bool> {
        (self.hook)("save_index")?;
        self.inner.save_index(namespace, name, index).await
    }
}

pub(crate) struct HookedStore {
    pub(crate) inner: RamStore,
    hook: Box<Hook>,
}

impl HookedStore {
    pub(crate) fn new(hook: impl Fn(&'static str) -> Result<()> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { inner: RamStore::default(), hook: Box::new(hook) })
    }
}

#[async_trait]
impl KvStore for HookedStore {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        self.inner.get_many(ids).await
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        (self.hook)("put")?;
        self.inner.put(chunks).await
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        (self.hook)("delete")?;
        self.inner.delete(ids).await
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        self.inner.contains_many(ids).await
    }

    async fn stats(&self) -> StoreStats {
        self.inner.stats().await
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        self.inner.page(after, limit).await
    }

    /// Gives up one chunk.
    async fn give_up(&self, _: u64) -> Result<u64> {
        let Some(first) = self.inner.page(None, 1).await?.pop() else { return Ok(0) };
        (self.hook)("give_up")?;
        self.inner.delete(&[first.id]).await?;
        Ok(first.bytes)
    }
}
