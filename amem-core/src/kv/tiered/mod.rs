//! Stores stacked, fastest first: RAM over a disk over a remote server, each under a budget of bytes.
//!
//! What it promises:
//! - A tier's budget holds at every moment: victims leave before the chunk that needs their room comes. It counts the KV
//!   that a store holds; a store on disk may take up to about twice that, and a segment more, until it tidies up.
//! - A `get` is answered by the fastest tier that has the chunk, and brings it up into the tiers above. A tier that
//!   fails is passed over; its error is returned only if no other tier had the chunk.
//! - A `put` goes to the slowest tier first, then up. Its error is that of the slowest tier, returned after the others
//!   have kept what they could: with a disk that is full or read-only, the RAM above it serves on.
//! - A deleted chunk is gone from every tier, even if a `get` was about to bring it up.
//! - A chunk larger than a tier's budget passes that tier by; [`Error::Full`] if it passes all of them by.
//!
//! Nothing is written down when it leaves a tier: the tiers below were offered it when it was put, and a chunk that none
//! of them kept is rebuilt from its text. A policy may let go at once what it has just been offered, if everything that
//! is held is worth more. That is no error: a store of KV may lose a chunk.
//!
//! **What a miss costs** ([`Access::cost`]), in tokens of prefill: the chunk's tokens where no slower tier has it;
//! otherwise that times the [`load`](Tier::load) of the fastest slower tier that does. It is looked up when the chunk is
//! used, so a copy that leaves a slower tier is noticed with the chunk's next use.

mod tier;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
pub use tier::Tier;
use tier::{Kept, Level};

use crate::{Access, ChunkId, Error, KvChunk, KvStore, Result, StoreStats, StoredChunk};

/// Relevances kept for chunks that may be used soon; beyond this many, they are forgotten.
const NOTES: usize = 1 << 16;

/// Several stores as one, each under a budget of bytes that holds at every moment.
///
/// `get` is answered by the fastest tier that has the chunk, and brings it up. `put` offers chunks to every tier, the
/// slowest first; it fails with the slowest tier's error after the faster ones have kept what they could, or with
/// [`Error::Full`] where a chunk is larger than every budget. `delete` removes from every tier.
///
/// ```
/// # use std::sync::Arc;
/// # use amem_core::{KvStore, RamStore, Result, Tier, Tiered};
/// # async fn example(disk: Arc<dyn KvStore>) -> Result<()> {
/// let ram = Tier::new(Arc::new(RamStore::default()), 2 << 30);
/// let store = Tiered::open(vec![ram, Tier::new(disk, 100 << 30)]).await?;
/// # Ok(()) }
/// ```
pub struct Tiered {
    /// Fastest first.
    levels: Vec<Level>,
    opened: Instant,
    notes: Mutex<HashMap<ChunkId, f32>>,
    /// Rises with every deletion, so that a `get` under way can tell that what it has found may be gone.
    deletions: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Tiered {
    /// Stacks stores, fastest first. What they hold already is counted, and whatever is over a budget leaves.
    ///
    /// # Errors
    /// [`Error::BadValue`] for no tiers at all; what a store met when it listed or deleted its chunks.
    pub async fn open(tiers: Vec<Tier>) -> Result<Self> {
        if tiers.is_empty() {
            return Err(Error::BadValue { what: "tiers", value: "0".to_owned(), expected: "1 or more" });
        }
        let tiered = Self {
            levels: tiers.into_iter().map(Level::new).collect(),
            opened: Instant::now(),
            notes: Mutex::default(),
            deletions: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        };
        // Slowest first: what a miss costs depends on the tiers below.
        for (at, level) in tiered.levels.iter().enumerate().rev() {
            for held in level.store().list().await? {
                match level.adopt(tiered.access(at, held)).await {
                    // Whoever writes that store keeps it within bounds.
                    Err(Error::ReadOnly { .. }) => {}
                    result => result?,
                }
            }
        }
        Ok(tiered)
    }

    /// A use of a chunk, as the tier `at` sees it.
    fn access(&self, at: usize, chunk: StoredChunk) -> Access {
        let relevance = self.notes.lock().unwrap_or_else(PoisonError::into_inner).get(&chunk.id).copied();
        let below = self.levels[at + 1..].iter().find(|level| level.holds(&chunk.id));
        Access {
            chunk: chunk.id,
            relevance: relevance.unwrap_or(1.0),
            bytes: chunk.bytes,
            cost: chunk.tokens as f32 * below.map_or(1.0, Level::load),
            time: self.opened.elapsed().as_secs_f64(),
        }
    }

    /// The fastest tier's copy of a chunk, and that tier's place.
    async fn find(&self, id: &ChunkId) -> Result<Option<(usize, KvChunk)>> {
        let mut result = Ok(None);
        for (at, level) in self.levels.iter().enumerate() {
            match level.store().get(id).await {
                Ok(Some(chunk)) => return Ok(Some((at, chunk))),
                Ok(None) => level.check(id).await,
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }
}

#[async_trait]
impl KvStore for Tiered {
    async fn get(&self, id: &ChunkId) -> Result<Option<KvChunk>> {
        let deletions = self.deletions.load(SeqCst);
        let found = self.find(id).await;
        let counter = if matches!(found, Ok(Some(_))) { &self.hits } else { &self.misses };
        counter.fetch_add(1, Relaxed);
        let Some((found_at, chunk)) = found? else { return Ok(None) };
        let current = || self.deletions.load(SeqCst) == deletions;
        for (at, level) in self.levels.iter().enumerate().rev() {
            let access = self.access(at, StoredChunk::of(&chunk));
            // The chunk was found: what goes wrong with the order of the tiers changes nothing about that.
            if at > found_at {
                level.touch(access);
            } else if at == found_at {
                level.used(access).await.ok();
            } else {
                level.bring(&chunk, access, &current).await.ok();
            }
        }
        Ok(Some(chunk))
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        let mut result = Ok(());
        let mut fits = vec![false; chunks.len()];
        for (at, level) in self.levels.iter().enumerate().rev() {
            let slowest = at + 1 == self.levels.len();
            for (chunk, fits) in chunks.iter().zip(&mut fits) {
                match level.keep(chunk, self.access(at, StoredChunk::of(chunk))).await {
                    Ok(Kept::TooLarge) => {}
                    Ok(Kept::Yes | Kept::LetGo) => *fits = true,
                    // What comes after a chunk that failed is not tried in this tier, as in any other store.
                    Err(error) => {
                        result = if slowest { Err(error) } else { result };
                        break;
                    }
                }
            }
        }
        match chunks.iter().zip(fits).find(|(_, fits)| !fits) {
            Some((chunk, _)) if result.is_ok() => {
                let reason = format!("{} bytes are more than any tier's budget, or no tier took them", chunk.size());
                Err(Error::Full { what: "every tier".to_owned(), reason })
            }
            _ => result,
        }
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let mut result = Ok(());
        // Slowest first, counting each tier: a `get` that found a chunk before it was deleted below brings it up
        // either before this tier's turn, which then deletes it, or not at all.
        for level in self.levels.iter().rev() {
            self.deletions.fetch_add(1, SeqCst);
            result = result.and(level.delete(ids).await);
        }
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            notes.remove(id);
        }
        result
    }

    async fn contains(&self, id: &ChunkId) -> bool {
        for level in &self.levels {
            if level.store().contains(id).await {
                return true;
            }
        }
        false
    }

    /// Chunks count once, however many tiers have them; bytes and damage add up over the tiers.
    async fn stats(&self) -> StoreStats {
        let (hits, misses) = (self.hits.load(Relaxed), self.misses.load(Relaxed));
        let mut sum = StoreStats { hits, misses, ..StoreStats::default() };
        for level in &self.levels {
            let stats = level.store().stats().await;
            sum.bytes += stats.bytes;
            sum.damaged += stats.damaged;
        }
        let distinct: HashSet<ChunkId> = self.levels.iter().flat_map(Level::held).collect();
        sum.chunks = distinct.len();
        sum
    }

    async fn list(&self) -> Result<Vec<StoredChunk>> {
        let (mut seen, mut all) = (HashSet::new(), Vec::new());
        for level in self.levels.iter().rev() {
            all.extend(level.store().list().await?.into_iter().filter(|held| seen.insert(held.id)));
        }
        Ok(all)
    }

    async fn sync(&self) -> Result<()> {
        let mut result = Ok(());
        for level in &self.levels {
            result = result.and(level.store().sync().await);
        }
        result
    }

    /// Counts from the next use of each chunk on, in every tier.
    fn note(&self, relevance: &[(ChunkId, f32)]) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() + relevance.len() > NOTES {
            notes.clear();
        }
        notes.extend(relevance.iter().take(NOTES).copied());
        self.levels.iter().for_each(|level| level.store().note(relevance));
    }
}

#[cfg(test)]
mod tests;
