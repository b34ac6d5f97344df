//! Least recently used: the baseline of every cache.

use super::ranking::Ranking;
use super::saved::{Saved, Saving};
use super::{Access, ResidencyPolicy, Room};
use crate::ChunkId;

/// The chunk that was used longest ago leaves first.
#[derive(Default)]
pub struct Lru {
    /// All scores are equal, so the order is that of the last use.
    ranking: Ranking,
}

impl ResidencyPolicy for Lru {
    fn insert(&mut self, access: Access) {
        self.ranking.set(access.chunk, 0.0);
    }

    fn touch(&mut self, access: Access) {
        self.ranking.set(access.chunk, 0.0);
    }

    fn remove(&mut self, chunk: &ChunkId) {
        self.ranking.remove(chunk);
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        self.ranking.lowest(room).map(|(chunk, _)| chunk)
    }

    fn save(&self) -> Vec<u8> {
        let mut saving = Saving::new(b"amemlru1");
        self.ranking.save(&mut saving);
        saving.done()
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let read = || Ranking::restore(&mut Saved::new(b"amemlru1", saved)?);
        self.ranking = read().unwrap_or_default();
        self.ranking.chunks()
    }
}
