//! One store under a budget.
//!
//! Everything that changes what the store holds locks the tier; reading does not. The entries may list a chunk that the
//! store has lost (an operation was given up half-way, another process deleted it), until [`Level::check`] sets them
//! right. They never omit one that was put through here, so the budget holds.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, MutexGuard, PoisonError};

use super::clock::Clock;
use super::leases::Leases;
use super::reads::{Rate, Reads};
use crate::residency::{ResidencyPolicy, Room, Value};
use crate::{Access, ChunkId, Encoding, Error, KvChunk, KvStore, Result, StoredChunk, TierStats};

/// A tier that is slower than prefill is tried once in so many times, for it may have become faster.
pub(super) const RETRY: u64 = 32;

/// One of the stores of a [`Tiered`](crate::Tiered).
pub struct Tier {
    store: Arc<dyn KvStore>,
    budget: u64,
    policy: Box<dyn ResidencyPolicy>,
    read_cost: f32,
    encoding: Option<Encoding>,
    write: WriteMode,
    saved: Vec<u8>,
    shared: bool,
}

/// When a chunk that is put reaches a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteMode {
    /// Before the put returns.
    #[default]
    Through,
    /// In the background, unless too much waits there already. [`KvStore::sync`] waits for it, and what a process that is
    /// killed had not written yet is computed again.
    Back,
}

impl Tier {
    /// A tier that keeps at most `budget` bytes of KV in `store`, under the [`Value`] policy.
    pub fn new(store: Arc<dyn KvStore>, budget: u64) -> Self {
        let (policy, write) = (Box::<Value>::default(), WriteMode::default());
        Self { store, budget, policy, read_cost: 0.1, encoding: None, write, saved: Vec::new(), shared: false }
    }

    /// A tier whose `store` other machines put into and delete from as well, and that keeps itself within bounds. It is not
    /// listed when it is opened, and nothing is let go from it: it is asked for whatever the faster tiers do not have.
    pub fn shared(store: Arc<dyn KvStore>) -> Self {
        Self { shared: true, ..Self::new(store, u64::MAX) }
    }

    /// With another policy.
    #[must_use]
    pub fn policy(self, policy: Box<dyn ResidencyPolicy>) -> Self {
        Self { policy, ..self }
    }

    /// With what the policy had learned before: this tier's part of what
    /// [`Tiered::save_residency`](crate::Tiered::save_residency) gave.
    #[must_use]
    pub fn residency(self, saved: Vec<u8>) -> Self {
        Self { saved, ..self }
    }

    /// With this read cost: the time to read a token from this tier, as a share of the time to prefill it. It is used
    /// until both have been measured; 0.1 unless said otherwise. It is what a faster tier saves by holding a chunk that
    /// this one has too.
    ///
    /// Measured is what the store takes to find chunks and what [`KvChunk::layer`] and [`KvChunk::layer_in`] take with their
    /// layers, where those stay in a file until they are read. So what the system has read ahead, or has in its page cache
    /// still, counts as fast as it came from there; and a store whose chunks are only used where they lie, as on a GPU, keeps
    /// the cost that is given here.
    #[must_use]
    pub fn read_cost(self, cost: f32) -> Self {
        Self { read_cost: cost, ..self }
    }

    /// With chunks written in this encoding, where that makes them smaller. Those whose bytes are encrypted
    /// ([`KvChunk::is_sealed`]) are written as they are: encrypt below the tier, and its encoding counts.
    #[must_use]
    pub fn encoding(self, encoding: Encoding) -> Self {
        Self { encoding: Some(encoding), ..self }
    }

    /// Written at this time.
    #[must_use]
    pub fn write(self, write: WriteMode) -> Self {
        Self { write, ..self }
    }
}

/// What became of a chunk that was offered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    /// Everything else is worth more, or it was deleted meanwhile.
    LetGo,
    TooLarge,
}

/// A tier at work.
pub(super) struct Level {
    store: Arc<dyn KvStore>,
    budget: u64,
    given_read_cost: f32,
    encoding: Option<Encoding>,
    pub(super) write: WriteMode,
    /// Whether other machines delete from it as well.
    pub(super) shared: bool,
    /// Locked by whatever changes what the store holds; first come, first served.
    changes: async_lock::Mutex<()>,
    entries: std::sync::Mutex<Entries>,
    /// How often the policy was told something.
    told: AtomicU64,
    reads: Arc<Reads>,
    /// How often it was slower than prefill and might have been read all the same.
    turns: AtomicU64,
    clock: Arc<Clock>,
    leases: Arc<Leases>,
    /// The last read failed: what fails again is told less loudly.
    fails: AtomicBool,
}

struct Entries {
    policy: Box<dyn ResidencyPolicy>,
    held: HashMap<ChunkId, StoredChunk>,
    /// The sum of their bytes.
    bytes: u64,
}

impl Level {
    /// The tier, with what its store holds already: the policy's memory of it where it has one, and whatever is over the
    /// budget let go.
    pub(super) async fn open(
        tier: Tier,
        clock: Arc<Clock>,
        leases: Arc<Leases>,
        access: impl Fn(StoredChunk) -> Access,
    ) -> Result<Self> {
        let Tier { store, budget, mut policy, read_cost, encoding, write, saved, shared } = tier;
        let remembered: HashSet<ChunkId> = policy.restore(&saved).into_iter().collect();
        let listed = if shared { Vec::new() } else { store.list().await? };
        let held: HashMap<ChunkId, StoredChunk> = listed.into_iter().map(|chunk| (chunk.id, chunk)).collect();
        remembered.iter().filter(|id| !held.contains_key(id)).for_each(|id| policy.remove(id));
        let mut news: Vec<&StoredChunk> = held.values().filter(|chunk| !remembered.contains(&chunk.id)).collect();
        news.sort_unstable_by_key(|chunk| chunk.id);
        news.into_iter().for_each(|chunk| policy.insert(access(*chunk)));
        let bytes = held.values().map(|chunk| chunk.bytes).sum();
        let level = Self {
            store,
            budget,
            given_read_cost: read_cost,
            encoding,
            write,
            shared,
            changes: async_lock::Mutex::new(()),
            entries: std::sync::Mutex::new(Entries { policy, held, bytes }),
            told: AtomicU64::new(0),
            reads: Reads::new(Arc::clone(&clock)),
            turns: AtomicU64::new(0),
            clock,
            leases,
            fails: AtomicBool::new(false),
        };
        match level.make_room(&[]).await {
            // Whoever writes that store keeps it within bounds.
            Ok(()) | Err(Error::ReadOnly { .. }) => Ok(level),
            Err(error) => Err(error),
        }
    }

    pub(super) fn store(&self) -> &dyn KvStore {
        self.store.as_ref()
    }

    /// Whether a chunk, as this tier writes it, is not larger than the budget.
    pub(super) fn fits(&self, chunk: &KvChunk) -> bool {
        let bytes = |encoding: Encoding| encoding.bytes(chunk.shape(), chunk.tokens().len());
        self.smaller_encoding(chunk).map_or(chunk.size(), bytes) as u64 <= self.budget
    }

    /// The encoding that this tier writes a chunk in, if not as it is.
    fn smaller_encoding(&self, chunk: &KvChunk) -> Option<Encoding> {
        let is_smaller = |encoding: &Encoding| encoding.bytes(chunk.shape(), chunk.tokens().len()) < chunk.size();
        self.encoding.filter(|encoding| !chunk.is_sealed() && is_smaller(encoding))
    }

    pub(super) fn holds(&self, id: &ChunkId) -> bool {
        self.entries().held.contains_key(id)
    }

    /// Bytes of those of these chunks that are held.
    pub(super) fn bytes_of(&self, ids: &[ChunkId]) -> u64 {
        let entries = self.entries();
        ids.iter().filter_map(|id| entries.held.get(id)).map(|chunk| chunk.bytes).sum()
    }

    /// What is held. Of a shared tier, what was put or found here.
    pub(super) fn stats(&self) -> TierStats {
        let entries = self.entries();
        let tokens = entries.held.values().map(|chunk| chunk.tokens as u64).sum();
        let budget = (self.budget < u64::MAX).then_some(self.budget);
        TierStats { chunks: entries.held.len(), bytes: entries.bytes, tokens: Some(tokens), budget }
    }

    pub(super) fn held(&self) -> Vec<ChunkId> {
        self.entries().held.keys().copied().collect()
    }

    pub(super) fn save(&self) -> Vec<u8> {
        self.entries().policy.save()
    }

    /// How often the policy was told of a use, or of a chunk that came or left, about.
    pub(super) fn told(&self) -> u64 {
        self.told.load(Relaxed)
    }

    /// The time to read a token from here, as a share of the time to prefill it.
    pub(super) fn read_cost(&self, prefill: &Rate) -> f32 {
        match (self.reads.measured(), prefill.measured()) {
            (Some(read), Some(prefill)) => (read / prefill.max(1e-12)) as f32,
            _ => self.given_read_cost,
        }
    }

    /// Whether reading these chunks from here may be worth it: whether the tier is not known to be slower than prefill. If it
    /// is, it is tried all the same once in so many times that it may have one of them.
    pub(super) fn is_worth_reading(&self, prefill: &Rate, ids: &[ChunkId]) -> bool {
        if self.read_cost(prefill) <= 1.0 {
            return true;
        }
        let may_have_one = self.shared || ids.iter().any(|id| self.holds(id));
        may_have_one && self.turns.fetch_add(1, Relaxed).is_multiple_of(RETRY)
    }

    /// Finds chunks, and measures how long that takes, and how long what was not read yet takes to be read later.
    pub(super) async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let started = self.clock.elapsed();
        let read = self.store.get_many(ids).await;
        let failed_before = self.fails.swap(read.is_err(), Relaxed);
        let mut found = read.inspect_err(|error| {
            let level = if failed_before { log::Level::Debug } else { log::Level::Warn };
            log::log!(level, "a tier cannot be read: {error}");
        })?;
        found.resize(ids.len(), None);
        self.reads.note(&mut found, self.clock.elapsed() - started);
        Ok(found)
    }

    /// A chunk as this tier writes it.
    pub(super) async fn encode(&self, chunk: &KvChunk) -> Result<KvChunk> {
        match self.smaller_encoding(chunk) {
            Some(encoding) => {
                let chunk = chunk.clone();
                blocking::unblock(move || chunk.encoded_as(encoding)).await
            }
            None => Ok(chunk.clone()),
        }
    }

    /// Whether a chunk that was used in a faster tier should be offered here.
    pub(super) fn wants(&self, chunk: &ChunkId) -> bool {
        let entries = self.entries();
        !entries.held.contains_key(chunk) && entries.policy.wants(chunk)
    }

    /// Counts a use, if the chunk is held.
    pub(super) fn touch(&self, access: Access) -> bool {
        let mut entries = self.entries();
        let held = entries.held.contains_key(&access.chunk);
        if held {
            self.told.fetch_add(1, Relaxed);
            entries.policy.touch(access);
        }
        held
    }

    /// Enters a chunk that was found in the store, which may be news here.
    pub(super) async fn adopt(&self, chunk: StoredChunk, access: Access) -> Result<()> {
        let _changes = self.changes.lock().await;
        // It may have left since it was found.
        if !self.holds(&chunk.id) && self.store.contains(&chunk.id).await {
            self.told.fetch_add(1, Relaxed);
            self.entries().insert(chunk, access);
            self.make_room(&[chunk.id]).await?;
        }
        Ok(())
    }

    /// Keeps chunks, or brings what is held already up to date: one call to the store for all of them. A chunk for which
    /// `current` does not hold was deleted meanwhile. Says what became of each.
    pub(super) async fn keep(
        &self,
        chunks: &[KvChunk],
        access: impl Fn(StoredChunk) -> Access,
        current: impl Fn(&ChunkId) -> bool,
    ) -> Result<Vec<Kept>> {
        let _changes = self.changes.lock().await;
        let mut new = Vec::new();
        let mut too_large = Vec::new();
        for chunk in chunks {
            let stored = StoredChunk::of(chunk);
            let access = access(stored);
            if !current(&stored.id) || self.touch(access) {
                continue;
            }
            let mut entries = self.entries();
            if stored.bytes > self.budget {
                too_large.push(stored.id);
            } else if entries.policy.admits(&access) {
                entries.insert(stored, access);
                new.push(stored.id);
            }
        }
        if !too_large.is_empty() {
            // An earlier version of it may be there, from when the budget was larger.
            if let Err(error) = self.store.evict(&too_large).await {
                new.iter().for_each(|id| _ = self.entries().remove(id));
                return Err(error);
            }
        }
        if let Err(error) = self.make_room(&new).await {
            // Without its victims' room none of the new ones can stay.
            new.iter().for_each(|id| _ = self.entries().remove(id));
            return Err(error);
        }
        let wanted: Vec<KvChunk> =
            chunks.iter().filter(|chunk| current(&chunk.id()) && self.holds(&chunk.id())).cloned().collect();
        self.told.fetch_add(wanted.len() as u64, Relaxed);
        let put = if wanted.is_empty() { Ok(()) } else { self.store.put(&wanted).await };
        if put.is_err() {
            let ids: Vec<ChunkId> = wanted.iter().map(KvChunk::id).collect();
            let there = self.store.contains_many(&ids).await;
            let lost = ids.iter().zip(there).filter(|(_, there)| !there);
            lost.for_each(|(id, _)| _ = self.entries().remove(id));
        }
        put?;
        let kept = |chunk: &KvChunk| match chunk.id() {
            id if too_large.contains(&id) => Kept::TooLarge,
            id if self.holds(&id) => Kept::Yes,
            _ => Kept::LetGo,
        };
        Ok(chunks.iter().map(kept).collect())
    }

    pub(super) async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let _changes = self.changes.lock().await;
        self.store.delete(ids).await?;
        self.told.fetch_add(ids.len() as u64, Relaxed);
        let mut entries = self.entries();
        ids.iter().for_each(|id| _ = entries.remove(id));
        Ok(())
    }

    /// Removes the bytes of what is not held any more.
    pub(super) async fn purge(&self) -> Result<()> {
        let purged = {
            let _changes = self.changes.lock().await;
            self.store.purge().await
        };
        // On a full disk, chunks that had to be written anew may have gone.
        self.check(&self.held()).await;
        purged
    }

    /// Gives up KV for the room that it takes on a disk.
    pub(super) async fn give_up(&self, bytes: u64) -> Result<u64> {
        let freed = {
            let _changes = self.changes.lock().await;
            self.store.give_up(bytes).await?
        };
        if freed > 0 {
            self.check(&self.held()).await;
        }
        Ok(freed)
    }

    /// Removes the entries of chunks that the store has turned out not to hold.
    pub(super) async fn check(&self, ids: &[ChunkId]) {
        let _changes = self.changes.lock().await;
        let there = self.store.contains_many(ids).await;
        let gone = ids.iter().zip(there).filter(|(_, there)| !there);
        gone.for_each(|(id, _)| _ = self.entries().remove(id));
    }

    /// Lets victims leave until the budget holds, in one call to the store. The tier is locked. The new ones
    /// leave, even if they are leased, where nothing else may.
    async fn make_room(&self, new: &[ChunkId]) -> Result<()> {
        let victims = {
            let leases = self.leases.current(self.clock.elapsed());
            let is_leased = |id: &ChunkId| leases.is_leased(id);
            self.entries().victims(self.budget, self.clock.now(), new, &is_leased)
        };
        let mut leaving = Leaving { level: self, chunks: victims };
        if leaving.chunks.is_empty() {
            return Ok(());
        }
        let ids: Vec<ChunkId> = leaving.chunks.iter().map(|chunk| chunk.id).collect();
        self.store.evict(&ids).await?;
        leaving.chunks.clear();
        Ok(())
    }

    #[cfg(test)]
    pub(super) async fn lock(&self) -> async_lock::MutexGuard<'_, ()> {
        self.changes.lock().await
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chunks that are about to leave. Those that did not, because the store failed or nobody waited, are entered again, so
/// that the entries never fall short of what the store holds.
struct Leaving<'l> {
    level: &'l Level,
    chunks: Vec<StoredChunk>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut entries = self.level.entries();
        for chunk in self.chunks.drain(..) {
            // They were worth least: nothing is known of them beyond that.
            let access = Access { chunk: chunk.id, relevance: 0.0, bytes: chunk.bytes, cost: 0.0, time: 0.0 };
            entries.insert(chunk, access);
        }
    }
}

impl Entries {
    fn insert(&mut self, chunk: StoredChunk, access: Access) {
        self.bytes += chunk.bytes;
        self.bytes -= self.held.insert(chunk.id, chunk).map_or(0, |old| old.bytes);
        self.policy.insert(access);
    }

    fn remove(&mut self, id: &ChunkId) -> Option<StoredChunk> {
        let chunk = self.held.remove(id)?;
        self.bytes -= chunk.bytes;
        self.policy.remove(id);
        Some(chunk)
    }

    /// Takes out those that must leave for the budget to hold.
    fn victims(
        &mut self,
        budget: u64,
        time: f64,
        new: &[ChunkId],
        is_leased: &dyn Fn(&ChunkId) -> bool,
    ) -> Vec<StoredChunk> {
        let mut victims = Vec::new();
        let mut new = new.iter().rev();
        while self.bytes > budget {
            let room = Room::new(self.bytes - budget, time).except(is_leased);
            let named = self.policy.victim(&room).filter(|id| self.held.contains_key(id) && !is_leased(id));
            // A policy that names a chunk which may not leave has lost its way: any other will do.
            let id = named.or_else(|| self.held.keys().find(|id| !is_leased(id)).copied());
            let Some(id) = id.or_else(|| new.next().copied()) else { break };
            victims.extend(self.remove(&id));
        }
        victims
    }
}
