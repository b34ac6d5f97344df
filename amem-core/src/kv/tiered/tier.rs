//! One store under a budget.
//!
//! Everything that changes what the store holds locks the tier; reading does not. The books may say that a
//! chunk is held which is not (an operation was given up half-way, another process deleted it): never the reverse for
//! what was put through here, so the budget holds. [`Level::check`] sets the books right.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use async_lock::Mutex;

use crate::residency::{ResidencyPolicy, Value};
use crate::{Access, ChunkId, KvChunk, KvStore, Result};

/// One of the stores of a [`Tiered`](crate::Tiered).
pub struct Tier {
    store: Arc<dyn KvStore>,
    budget: u64,
    policy: Box<dyn ResidencyPolicy>,
    load: f32,
}

impl Tier {
    /// A tier that keeps at most `budget` bytes of KV in `store`, under the [`Value`] policy.
    pub fn new(store: Arc<dyn KvStore>, budget: u64) -> Self {
        Self { store, budget, policy: Box::<Value>::default(), load: 0.1 }
    }

    /// With another policy.
    #[must_use]
    pub fn policy(self, policy: Box<dyn ResidencyPolicy>) -> Self {
        Self { policy, ..self }
    }

    /// With the work of fetching a token from this tier as a share of prefilling it (0.1 unless said): what a faster
    /// tier saves by holding a chunk that this one has too.
    #[must_use]
    pub fn load(self, load: f32) -> Self {
        Self { load, ..self }
    }
}

/// What became of a chunk that was offered.
pub(super) enum Kept {
    Yes,
    /// Everything else is worth more.
    LetGo,
    TooLarge,
}

/// A tier at work.
pub(super) struct Level {
    store: Arc<dyn KvStore>,
    budget: u64,
    load: f32,
    /// Locked by whatever changes what the store holds; first come, first served.
    changes: Mutex<()>,
    books: std::sync::Mutex<Books>,
}

struct Books {
    policy: Box<dyn ResidencyPolicy>,
    /// With their bytes.
    held: HashMap<ChunkId, u64>,
    /// The sum of these.
    bytes: u64,
}

impl Level {
    pub(super) fn new(tier: Tier) -> Self {
        let Tier { store, budget, policy, load } = tier;
        let books = std::sync::Mutex::new(Books { policy, held: HashMap::new(), bytes: 0 });
        Self { store, budget, load, changes: Mutex::new(()), books }
    }

    pub(super) fn store(&self) -> &dyn KvStore {
        self.store.as_ref()
    }

    pub(super) fn load(&self) -> f32 {
        self.load
    }

    pub(super) fn holds(&self, id: &ChunkId) -> bool {
        self.books().held.contains_key(id)
    }

    pub(super) fn held(&self) -> Vec<ChunkId> {
        self.books().held.keys().copied().collect()
    }

    /// Counts a use, if the chunk is held.
    pub(super) fn touch(&self, access: Access) -> bool {
        let mut books = self.books();
        let held = books.held.contains_key(&access.chunk);
        if held {
            books.policy.touch(access);
        }
        held
    }

    /// Counts a use of a chunk that was found in the store, which may be news to the books.
    pub(super) async fn used(&self, access: Access) -> Result<()> {
        if self.touch(access) {
            return Ok(());
        }
        let _changes = self.changes.lock().await;
        // It may have left since it was found.
        if !self.touch(access) && self.store.contains(&access.chunk).await {
            self.enter(access).await?;
        }
        Ok(())
    }

    /// Enters a chunk that the store holds already into the books.
    pub(super) async fn adopt(&self, access: Access) -> Result<()> {
        let _changes = self.changes.lock().await;
        self.enter(access).await.map(drop)
    }

    /// Keeps a chunk, or brings what is held already up to date.
    pub(super) async fn keep(&self, chunk: &KvChunk, access: Access) -> Result<Kept> {
        let _changes = self.changes.lock().await;
        self.place(chunk, access).await
    }

    /// Keeps a chunk that a slower tier had, if it is not held and nothing was deleted meanwhile.
    pub(super) async fn bring(&self, chunk: &KvChunk, access: Access, current: impl Fn() -> bool) -> Result<()> {
        let _changes = self.changes.lock().await;
        if self.touch(access) || !current() {
            return Ok(());
        }
        self.place(chunk, access).await.map(drop)
    }

    pub(super) async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let _changes = self.changes.lock().await;
        self.store.delete(ids).await?;
        let mut books = self.books();
        ids.iter().for_each(|id| books.strike(id));
        Ok(())
    }

    /// Strikes a chunk off the books that the store has turned out not to hold.
    pub(super) async fn check(&self, id: &ChunkId) {
        if self.holds(id) {
            let _changes = self.changes.lock().await;
            if !self.store.contains(id).await {
                self.books().strike(id);
            }
        }
    }

    /// Makes room for a chunk and puts it there. The tier is locked.
    async fn place(&self, chunk: &KvChunk, access: Access) -> Result<Kept> {
        if !self.touch(access) {
            match self.enter(access).await? {
                Kept::Yes => {}
                other => return Ok(other),
            }
        }
        let put = self.store.put(std::slice::from_ref(chunk)).await;
        if put.is_err() && !self.store.contains(&access.chunk).await {
            self.books().strike(&access.chunk);
        }
        put.map(|()| Kept::Yes)
    }

    /// Enters a chunk into the books and lets victims leave until the budget holds; the chunk itself may be one. The tier
    /// is locked.
    async fn enter(&self, access: Access) -> Result<Kept> {
        if access.bytes > self.budget {
            self.store.evict(&[access.chunk]).await?;
            return Ok(Kept::TooLarge);
        }
        self.books().enter(access);
        loop {
            let Some(victim) = self.books().victim(self.budget, access.time) else { break };
            if let Err(error) = self.store.evict(&[victim]).await {
                // Without its victim's room the chunk cannot stay.
                self.books().strike(&access.chunk);
                return Err(error);
            }
            self.books().strike(&victim);
        }
        Ok(if self.holds(&access.chunk) { Kept::Yes } else { Kept::LetGo })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn enter(&mut self, access: Access) {
        self.bytes += access.bytes;
        self.bytes -= self.held.insert(access.chunk, access.bytes).unwrap_or(0);
        self.policy.insert(access);
    }

    fn strike(&mut self, id: &ChunkId) {
        if let Some(bytes) = self.held.remove(id) {
            self.bytes -= bytes;
            self.policy.remove(id);
        }
    }

    /// Who must leave for the budget to hold.
    fn victim(&mut self, budget: u64, time: f64) -> Option<ChunkId> {
        if self.bytes <= budget {
            return None;
        }
        // A policy that names a chunk which is not held has lost its way: any chunk will do.
        self.policy.victim(time).filter(|id| self.held.contains_key(id)).or_else(|| self.held.keys().next().copied())
    }
}
