//! The store of KV, in step with the ledger, which knows which chunks hold a record's text ([`Ledger::link`]), so that
//! forgetting finds them. A chunk whose link cannot be written down is not kept.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backoff::Backoff;
use super::disk_space::DiskSpace;
use super::late_links::LateLinks;
use super::records::Entry;
use crate::{ChunkId, Error, KvChunk, KvStore, Ledger, Namespace, RecordId, Result, Timestamp};

/// Puts chunks into a store, and deletes them.
pub(super) struct LinkedStore {
    kv: Arc<dyn KvStore>,
    ledger: Arc<dyn Ledger>,
    /// Chunks whose KV turned out to be damaged, until they are put into the store anew: it may not be able to delete them.
    damaged: Mutex<HashSet<ChunkId>>,
    disk_space: Arc<DiskSpace>,
    /// The store refused to delete, or the ledger to confirm deletions: both are another process's to write.
    refused: Backoff,
    late: Arc<LateLinks>,
}

/// KV that was computed just now.
pub(super) struct NewKv {
    pub(super) namespace: Namespace,
    pub(super) chunks: Vec<KvChunk>,
    /// The records whose texts the chunks hold.
    pub(super) links: Vec<(Arc<Entry>, ChunkId)>,
}

impl NewKv {
    fn bytes(&self) -> usize {
        self.chunks.iter().map(KvChunk::size).sum()
    }
}

impl LinkedStore {
    pub(super) fn new(kv: Arc<dyn KvStore>, ledger: Arc<dyn Ledger>, disk_space: Arc<DiskSpace>) -> Self {
        Self { kv, ledger, damaged: Mutex::default(), disk_space, refused: Backoff::default(), late: Arc::default() }
    }

    pub(super) fn kv(&self) -> &Arc<dyn KvStore> {
        &self.kv
    }

    pub(super) fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.ledger
    }

    fn damaged(&self) -> MutexGuard<'_, HashSet<ChunkId>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes a chunk whose KV was lost between being found and being used, so that it is computed again.
    pub(super) async fn drop_damaged(&self, chunk: ChunkId, reason: &str) {
        /// Those of a store that is read-only here stay.
        const MOST: usize = 4096;
        log::warn!("chunk {chunk} is computed anew: {reason}");
        {
            let mut damaged = self.damaged();
            if damaged.len() >= MOST {
                damaged.clear();
            }
            damaged.insert(chunk);
        }
        if let Err(error) = self.erase(&[chunk]).await {
            log::warn!("a damaged chunk could not be deleted: {error}");
        }
    }

    /// Takes those away that turned out to be damaged.
    pub(super) fn leave_out_damaged(&self, found: &mut [Option<KvChunk>]) {
        let damaged = self.damaged();
        for found in found {
            if found.as_ref().is_some_and(|chunk| damaged.contains(&chunk.id())) {
                *found = None;
            }
        }
    }

    /// Notes whose text chunks hold, and puts them into the store. A put that is begun is finished, even if this is dropped.
    pub(super) async fn keep_linked(self: &Arc<Self>, new: NewKv) {
        if self.link(&new).await {
            self.put_to_completion(Arc::new(new)).await;
        }
    }

    /// As [`keep_linked`](Self::keep_linked), for a question: where others hold the ledger for long, this goes on after
    /// the call has returned.
    pub(super) async fn keep_linked_soon(self: &Arc<Self>, new: NewKv) {
        let (this, new) = (Arc::clone(self), Arc::new(new));
        let linking = {
            let (this, new) = (Arc::clone(&this), Arc::clone(&new));
            Box::pin(async move { this.link(&new).await })
        };
        match self.late.within_timeout(linking).await {
            Ok(true) => self.put_to_completion(new).await,
            Ok(false) => {}
            Err(linking) => {
                let (count, bytes) = (new.chunks.len(), new.bytes());
                let keep = async move {
                    if linking.await {
                        this.put_linked(&new).await;
                    }
                };
                if !self.late.spawn_detached(bytes, keep) {
                    log::warn!("{count} chunks are not kept, for much waits for the ledger already");
                }
            }
        }
    }

    /// As [`put_linked`](Self::put_linked), even if what is returned is dropped before it is done.
    fn put_to_completion(self: &Arc<Self>, new: Arc<NewKv>) -> impl Future<Output = ()> + Send {
        let (this, bytes) = (Arc::clone(self), new.bytes());
        self.late.detach_on_drop(bytes, async move { this.put_linked(&new).await })
    }

    /// Notes whose text chunks hold. They are linked before they are kept: whoever forgets a record in between must find
    /// its KV.
    async fn link(&self, new: &NewKv) -> bool {
        let links: Vec<(RecordId, ChunkId)> =
            new.links.iter().map(|(entry, chunk)| (entry.record.id, *chunk)).collect();
        let linked = self.ledger.link(&new.namespace, &links, Timestamp::now()).await;
        if let Err(error) = &linked {
            log::warn!("{} chunks are not kept, for the ledger could not note them: {error}", new.chunks.len());
        }
        linked.is_ok()
    }

    /// Puts chunks that were linked into the store, and takes those out again whose texts were forgotten or changed in the
    /// meantime: whoever did that may have deleted them before they came.
    async fn put_linked(&self, new: &NewKv) {
        self.keep(&new.chunks).await;
        let chunks: Vec<ChunkId> = new.links.iter().map(|(_, chunk)| *chunk).collect();
        let unlinked = match self.unlinked(&chunks).await {
            Ok(unlinked) => unlinked,
            // They are computed again, which is better than KV that nobody deletes.
            Err(error) => {
                log::warn!("{} new chunks are not kept, for the ledger cannot be asked: {error}", chunks.len());
                chunks
            }
        };
        if let Err(error) = self.erase(&unlinked).await {
            log::warn!("KV of texts that may have changed could not be deleted: {error}");
        }
    }

    /// Those of these chunks that hold no active record's text any more.
    async fn unlinked(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let linked = self.ledger.are_linked(chunks, Timestamp::now()).await?;
        Ok(chunks.iter().zip(linked).filter(|(_, linked)| !linked).map(|(chunk, _)| *chunk).collect())
    }

    /// Deletes those of these chunks that hold no active record's text any more.
    ///
    /// # Errors
    /// When the ledger cannot be asked, or the store cannot delete.
    pub(super) async fn erase_unlinked(&self, chunks: &[ChunkId]) -> Result<()> {
        let unlinked = self.unlinked(chunks).await?;
        self.erase(&unlinked).await.map(drop)
    }

    /// Puts chunks into the store. If it cannot keep them, they are computed again next time.
    pub(super) async fn keep(&self, chunks: &[KvChunk]) {
        match self.kv.put(chunks).await {
            Ok(()) => {
                let mut damaged = self.damaged();
                chunks.iter().for_each(|chunk| _ = damaged.remove(&chunk.id()));
            }
            Err(error) => log::warn!("{} chunks could not be kept: {error}", chunks.len()),
        }
    }

    /// Whether this store refused lately to delete, for another process writes to it, or the ledger to note deletions.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.is_on()
    }

    /// Deletes the KV of texts that no longer count, whoever changed or forgot them.
    pub(super) async fn delete_pending(&self) -> Result<()> {
        let now = Timestamp::now();
        let pending = self.ledger.pending_deletions(now).await?;
        let chunks: Vec<ChunkId> = pending.iter().map(|deletion| deletion.chunk).collect();
        if !self.erase(&chunks).await? {
            return Ok(());
        }
        match self.disk_space.write("note what was deleted", || self.ledger.confirm_deleted(&pending, now)).await {
            // What was asked for is done. It is noted by a later call.
            Err(full @ Error::Full { .. }) => {
                log::warn!("{} deletions cannot be noted yet: {full}", pending.len());
                Ok(())
            }
            Err(Error::ReadOnly { .. }) => {
                self.refused.begin();
                Ok(())
            }
            confirmed => confirmed,
        }
    }

    /// Deletes chunks. False if there were none, or if the store or a tier of it is read-only here, whose writer deletes them
    /// with its next call. Until then nobody finds them, for a chunk's name is a hash of its text.
    pub(super) async fn erase(&self, chunks: &[ChunkId]) -> Result<bool> {
        if chunks.is_empty() {
            return Ok(false);
        }
        match self.kv.delete(chunks).await {
            Ok(()) => Ok(true),
            Err(Error::ReadOnly { what, reason }) => {
                self.refused.begin();
                log::info!("{} chunks of forgotten texts wait in {what}: {reason}", chunks.len());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
