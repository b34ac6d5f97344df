//! Chunks in this process's memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;

use crate::{ChunkId, KvChunk, KvStore, Result, StoreStats, StoredChunk};

/// A store in RAM. It has no bound of its own: put it under a budget in [`Tiered`](crate::Tiered).
///
/// It copies what it is given, so that a chunk which a slower store has mapped from a file is read once, and does not
/// hold on to that file.
#[derive(Default)]
pub struct RamStore {
    chunks: RwLock<HashMap<ChunkId, KvChunk>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[async_trait]
impl KvStore for RamStore {
    async fn get(&self, id: &ChunkId) -> Result<Option<KvChunk>> {
        let found = self.chunks.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Relaxed);
        Ok(found)
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        for chunk in chunks {
            if !self.wants(chunk) {
                continue;
            }
            let copy = copy_of(chunk)?;
            match self.chunks.write().unwrap_or_else(PoisonError::into_inner).entry(chunk.id()) {
                Entry::Occupied(mut held) if held.get().sensitivity().is_none() => drop(held.insert(copy)),
                Entry::Occupied(_) => {}
                Entry::Vacant(place) => drop(place.insert(copy)),
            }
        }
        Ok(())
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let mut chunks = self.chunks.write().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            chunks.remove(id);
        }
        Ok(())
    }

    async fn contains(&self, id: &ChunkId) -> bool {
        self.chunks.read().unwrap_or_else(PoisonError::into_inner).contains_key(id)
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

    async fn list(&self) -> Result<Vec<StoredChunk>> {
        Ok(self.chunks.read().unwrap_or_else(PoisonError::into_inner).values().map(StoredChunk::of).collect())
    }
}

impl RamStore {
    /// Whether the chunk, or its sensitivity, is new here.
    fn wants(&self, chunk: &KvChunk) -> bool {
        let chunks = self.chunks.read().unwrap_or_else(PoisonError::into_inner);
        chunks.get(&chunk.id()).is_none_or(|held| held.sensitivity().is_none() && chunk.sensitivity().is_some())
    }
}

fn copy_of(chunk: &KvChunk) -> Result<KvChunk> {
    chunk.encoded_as(chunk.encoding())
}
