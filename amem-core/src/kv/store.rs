//! Where KV is stored.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{ChunkId, KvChunk, OwnerId, Result};

/// A place that keeps chunks of KV under their ids: RAM, a disk, a remote server, or several of them stacked
/// ([`Tiered`](crate::Tiered)).
///
/// What it holds is a cache: a chunk can always be rebuilt from its text, so a store may lose one and must never give
/// a wrong one. It may lose one after it was given, too: a layer that is not what was written when it is read
/// is [`DamagedKv`](crate::Error::DamagedKv), and never other KV. It is checked by `testing::kv_store` (feature
/// `testing`).
///
/// A store that writes chunks somewhere keeps their id, prefix, shape, tokens, model, sensitivity and encoding
/// ([`Encoding::code`](crate::Encoding::code)), and the bytes of [`KvChunk::to_bytes`]. It makes them again with
/// [`KvChunk::new`] over a [`HostKv`](crate::HostKv), [`with_model`](KvChunk::with_model) and
/// [`with_sensitivity`](KvChunk::with_sensitivity): the default repair takes all rows of a chunk without one for equally
/// sensitive.
///
/// Calls may overlap. Of a `put` and a `delete` of one chunk at the same time either may be the last, and a call whose
/// future was dropped may go on. They come from threads of no asynchronous runtime too, from [`Tiered`](crate::Tiered) and
/// from what a memory does in the background: a store that needs a runtime brings its own.
///
/// What has a default works without: a store on a disk should have [`sync`](Self::sync), one that waits for a network
/// [`prefetch`](Self::prefetch), and one that shares a disk with a ledger [`give_up`](Self::give_up).
#[async_trait]
pub trait KvStore: Send + Sync {
    /// The chunks of these ids, or `None`, in the order of the ids. A damaged chunk is a miss, and so is one that cannot be
    /// read while others can. KV is checked now, or layer by layer when it is read: whoever gets
    /// [`DamagedKv`](crate::Error::DamagedKv) then takes the chunk for a miss.
    ///
    /// # Errors
    /// When the store itself fails, so that nothing could be read; a caller treats that as a miss too, and says so.
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>>;

    /// The chunk of this id: [`get_many`](Self::get_many) of one.
    ///
    /// # Errors
    /// As [`get_many`](Self::get_many).
    async fn get(&self, id: &ChunkId) -> Result<Option<KvChunk>> {
        Ok(self.get_many(&[*id]).await?.pop().flatten())
    }

    /// Says that chunks will be asked for soon, so that a slow store can begin to read ahead. Returns at once; a hint
    /// that changes no answer.
    fn prefetch(&self, ids: &[ChunkId]) {
        let _ = ids;
    }

    /// Keeps chunks. One that is held already is left as it is, unless the new one brings a sensitivity that the held
    /// one lacks. When this returns, chunks in a store that outlives its process survive the process being killed;
    /// see [`sync`](Self::sync) for more.
    ///
    /// # Errors
    /// [`Error::Full`](crate::Error::Full), [`Error::ReadOnly`](crate::Error::ReadOnly), or
    /// [`Error::Store`](crate::Error::Store) when the store fails. Chunks before the one that failed are kept.
    async fn put(&self, chunks: &[KvChunk]) -> Result<()>;

    /// Erases chunks, because their texts were forgotten; to make room there is [`evict`](Self::evict). Chunks that are not
    /// there are no error. Their bytes cannot be read from the store's files
    /// once this returns. Chunks that were handed out stay readable.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) when the store fails, [`Error::ReadOnly`](crate::Error::ReadOnly) when another
    /// process writes to it; deleting again finishes the work.
    async fn delete(&self, ids: &[ChunkId]) -> Result<()>;

    /// Lets go of chunks to make room. They become misses, and their room comes back in time; until then their bytes may
    /// stay on disk, and they may be found again after the store is reopened. What must not be found again has to be
    /// [deleted](Self::delete), after it was evicted too.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) when the store fails.
    async fn evict(&self, ids: &[ChunkId]) -> Result<()> {
        self.delete(ids).await
    }

    /// Removes the bytes of what is not held any more, of chunks that were [evicted](Self::evict) above all, from the
    /// store's files now rather than in time. A store that keeps nothing of what it let go does nothing.
    ///
    /// # Errors
    /// As [`delete`](Self::delete); purging again finishes the work.
    async fn purge(&self) -> Result<()> {
        Ok(())
    }

    /// Whether a `get` of each would probably find its chunk, in the order of the ids. Reads no KV.
    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool>;

    /// Whether a `get` would probably find the chunk: [`contains_many`](Self::contains_many) of one.
    async fn contains(&self, id: &ChunkId) -> bool {
        self.contains_many(&[*id]).await.first().is_some_and(|contained| *contained)
    }

    /// What is held.
    async fn stats(&self) -> StoreStats;

    /// What is held in each of the places that the store consists of, fastest first. The default knows one place, and
    /// neither its tokens nor its budget.
    async fn tiers(&self) -> Vec<TierStats> {
        let StoreStats { chunks, bytes, .. } = self.stats().await;
        vec![TierStats { chunks, bytes, tokens: None, budget: None }]
    }

    /// The chunks that are held, in the order of their ids: at most `limit`, of those whose ids come after `after`. A
    /// page with fewer is the last. Counts as no hit.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) when the store fails.
    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>>;

    /// All chunks that are held, in the order of their ids, page by page. What is put or deleted meanwhile may be among
    /// them or not.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) when the store fails.
    async fn list(&self) -> Result<Vec<StoredChunk>> {
        const PAGE: usize = 4096;
        let mut all: Vec<StoredChunk> = Vec::new();
        loop {
            let page = self.page(all.last().map(|held| held.id), PAGE).await?;
            let last = page.len() < PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// The chunks of one owner that are held, in the order of their ids, found page by page.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) when the store fails.
    async fn owned(&self, owner: OwnerId) -> Result<Vec<StoredChunk>> {
        const PAGE: usize = 4096;
        let mut owned: Vec<StoredChunk> = Vec::new();
        let mut after = before_all_of(owner);
        loop {
            let page = self.page(after, PAGE).await?;
            after = page.last().map(|held| held.id);
            let found = page.len();
            owned.extend(page.into_iter().take_while(|held| held.id.owner() == owner));
            if found < PAGE || after.is_some_and(|last| last.owner() > owner) {
                return Ok(owned);
            }
        }
    }

    /// Gives up KV for good to free about so many bytes of the disk that it lies on, what is worth least first, and says
    /// how many bytes that freed: for what cannot be rebuilt and finds the disk full. 0 where there is nothing to give up,
    /// or where it lies on no disk.
    ///
    /// # Errors
    /// As [`delete`](Self::delete).
    async fn give_up(&self, bytes: u64) -> Result<u64> {
        let _ = bytes;
        Ok(0)
    }

    /// Keeps chunks from making room for others, for so long, or until what is returned is dropped: a request that is
    /// about to use them, or an application that always does. Chunks that are not there yet count, too. A store that makes
    /// no room by itself does nothing.
    #[doc(alias = "pin")]
    fn lease(&self, ids: &[ChunkId], time: Duration) -> Lease {
        let _ = (ids, time);
        Lease::default()
    }

    /// For stores that write in the background to a place from which other machines delete too. After such a write the store
    /// asks `wanted` whether each chunk is still needed, and deletes it if not: its text may have been forgotten on another
    /// machine before the chunk was written. Other stores do nothing. `wanted` lives as long as the store.
    fn ask_of_late_writes(&self, wanted: Arc<dyn Wanted>) {
        let _ = wanted;
    }

    /// Makes what was put survive a power cut. A no-op where nothing outlives the process.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) when the store fails.
    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// Tells the store what it took to compute this many tokens' KV. A hint, by which a stack of stores learns whether a
    /// slow one is worth reading.
    fn note_prefill(&self, tokens: usize, time: Duration) {
        let _ = (tokens, time);
    }

    /// Tells the store how much chunks matter, before or after they are fetched. A hint: nothing depends on it but
    /// what stays close at hand.
    fn note_relevance(&self, relevance: &[(ChunkId, f32)]) {
        let _ = relevance;
    }
}

/// Knows which chunks are wanted; see [`KvStore::ask_of_late_writes`].
#[async_trait]
pub trait Wanted: Send + Sync {
    /// Whether each of these chunks is still wanted, in the order of the ids.
    ///
    /// # Errors
    /// When that cannot be said now: the store asks again later.
    async fn are_wanted(&self, chunks: &[ChunkId]) -> Result<Vec<bool>>;
}

/// The last id before those of an owner; `None` where its ids are the first.
fn before_all_of(owner: OwnerId) -> Option<ChunkId> {
    let before = u64::from_be_bytes(owner.0).checked_sub(1)?;
    let mut id = [u8::MAX; 32];
    id[..8].copy_from_slice(&before.to_be_bytes());
    Some(ChunkId(id))
}

/// Chunks that stay where they are until this is dropped, or its time is over; see [`KvStore::lease`].
#[derive(Default)]
#[must_use = "it ends when it is dropped"]
pub struct Lease {
    ends: Vec<Box<dyn Send + Sync>>,
}

impl Lease {
    /// A lease that ends by dropping this.
    pub fn new(end: impl Send + Sync + 'static) -> Self {
        Self { ends: vec![Box::new(end)] }
    }

    /// Both leases as one.
    pub fn and(mut self, other: Self) -> Self {
        self.ends.extend(other.ends);
        self
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

/// A chunk that a store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredChunk {
    /// Its name.
    pub id: ChunkId,
    /// How many tokens it has; about how many, where the store cannot tell without reading the chunk.
    pub tokens: usize,
    /// Bytes that it occupies.
    pub bytes: u64,
}

impl StoredChunk {
    /// The entry for this chunk.
    pub fn of(chunk: &KvChunk) -> Self {
        Self { id: chunk.id(), tokens: chunk.tokens().len(), bytes: chunk.size() as u64 }
    }
}

/// What is held in one of the places that a store consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Chunks held.
    pub chunks: usize,
    /// Bytes of KV that they occupy.
    pub bytes: u64,
    /// Tokens that they are the KV of, where that is known.
    pub tokens: Option<u64>,
    /// Bytes of KV that it may hold, where it has a budget.
    pub budget: Option<u64>,
}

/// What a store holds and what it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Chunks held.
    pub chunks: usize,
    /// Bytes they occupy, bookkeeping included.
    pub bytes: u64,
    /// `get`s that found their chunk.
    pub hits: u64,
    /// `get`s that did not.
    pub misses: u64,
    /// Chunks found damaged, and so treated as misses.
    pub damaged: u64,
}
