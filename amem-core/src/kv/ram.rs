//! Chunks in this process's memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;

use crate::{ChunkId, KvChunk, KvStore, Result, StoreStats, StoredChunk, TierStats};

/// A store in RAM, or in another memory that lasts as long as the process ([`with_copy`](Self::with_copy)). It has no
/// bound of its own: put it under a budget in [`Tiered`](crate::Tiered).
///
/// It copies what it is given, so that a chunk which a slower store has in a file is read once, and does not
/// hold on to that file.
pub struct RamStore {
    chunks: RwLock<BTreeMap<ChunkId, KvChunk>>,
    copy: Box<Copy>,
    hits: AtomicU64,
    misses: AtomicU64,
}

type Copy = dyn Fn(&KvChunk) -> Result<KvChunk> + Send + Sync;

impl Default for RamStore {
    fn default() -> Self {
        Self::with_copy(|chunk| chunk.encoded_as(chunk.encoding()))
    }
}

impl RamStore {
    /// A store that holds what `copy` makes of a chunk: its KV in the memory of a device, say.
    pub fn with_copy(copy: impl Fn(&KvChunk) -> Result<KvChunk> + Send + Sync + 'static) -> Self {
        Self { chunks: RwLock::default(), copy: Box::new(copy), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }
}

#[async_trait]
impl KvStore for RamStore {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let chunks = self.chunks.read().unwrap_or_else(PoisonError::into_inner);
        let found: Vec<Option<KvChunk>> = ids.iter().map(|id| chunks.get(id).cloned()).collect();
        let hits = found.iter().flatten().count();
        self.hits.fetch_add(hits as u64, Relaxed);
        self.misses.fetch_add((ids.len() - hits) as u64, Relaxed);
        Ok(found)
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        let mut result = Ok(());
        for chunk in chunks.iter().filter(|chunk| self.wants(chunk)) {
            let copy = match (self.copy)(chunk) {
                Ok(copy) => copy,
                // One that a slower store has lost is no reason to go without the others.
                Err(error) => {
                    result = Err(error);
                    continue;
                }
            };
            match self.chunks.write().unwrap_or_else(PoisonError::into_inner).entry(chunk.id()) {
                Entry::Occupied(mut held) if held.get().sensitivity().is_none() => drop(held.insert(copy)),
                Entry::Occupied(_) => {}
                Entry::Vacant(place) => drop(place.insert(copy)),
            }
        }
        result
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let mut chunks = self.chunks.write().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            chunks.remove(id);
        }
        Ok(())
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        let chunks = self.chunks.read().unwrap_or_else(PoisonError::into_inner);
        ids.iter().map(|id| chunks.contains_key(id)).collect()
    }

    async fn stats(&self) -> StoreStats {
        let chunks = self.chunks.read().unwrap_or_else(PoisonError::into_inner);
        StoreStats {
            chunks: chunks.len(),
            bytes: chunks.values().map(|chunk| StoredChunk::of(chunk).bytes).sum(),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            damaged: 0,
        }
    }

    async fn tiers(&self) -> Vec<TierStats> {
        let chunks = self.chunks.read().unwrap_or_else(PoisonError::into_inner);
        let mut tier = TierStats { chunks: chunks.len(), tokens: Some(0), ..TierStats::default() };
        for chunk in chunks.values() {
            tier.bytes += StoredChunk::of(chunk).bytes;
            tier.tokens = tier.tokens.map(|tokens| tokens + chunk.tokens().len() as u64);
        }
        vec![tier]
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        let chunks = self.chunks.read().unwrap_or_else(PoisonError::into_inner);
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        Ok(chunks.range(behind).take(limit).map(|(_, chunk)| StoredChunk::of(chunk)).collect())
    }
}

impl RamStore {
    /// Whether the chunk, or its sensitivity, is new here.
    fn wants(&self, chunk: &KvChunk) -> bool {
        let chunks = self.chunks.read().unwrap_or_else(PoisonError::into_inner);
        chunks.get(&chunk.id()).is_none_or(|held| held.sensitivity().is_none() && chunk.sensitivity().is_some())
    }
}
