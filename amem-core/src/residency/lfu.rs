//! Least frequently used: right when popularity never changes.

use super::ranking::Ranking;
use super::saved::{Saved, Saving};
use super::{Access, ResidencyPolicy, Room};
use crate::ChunkId;

/// The chunk with the fewest uses since it came leaves first; of equals, the one that was used longest ago.
#[derive(Default)]
pub struct Lfu {
    /// By the number of uses.
    ranking: Ranking,
}

impl ResidencyPolicy for Lfu {
    fn insert(&mut self, access: Access) {
        self.ranking.set(access.chunk, 1.0);
    }

    fn touch(&mut self, access: Access) {
        let uses = self.ranking.score(&access.chunk).unwrap_or(0.0);
        self.ranking.set(access.chunk, uses + 1.0);
    }

    fn remove(&mut self, chunk: &ChunkId) {
        self.ranking.remove(chunk);
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        self.ranking.lowest(room).map(|(chunk, _)| chunk)
    }

    fn save(&self) -> Vec<u8> {
        let mut saving = Saving::new(b"amemlfu1");
        self.ranking.save(&mut saving);
        saving.done()
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let read = || Ranking::restore(&mut Saved::new(b"amemlfu1", saved)?);
        self.ranking = read().unwrap_or_default();
        self.ranking.chunks()
    }
}
