//! Greedy-Dual-Size-Frequency (Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
//! Policy", 1998): a chunk's priority is `L + uses · cost / bytes`, and `L` is the priority of the last that left, so
//! that chunks which are no longer used sink below newcomers.

use std::collections::HashMap;

use super::ranking::Ranking;
use super::saved::{Saved, Saving};
use super::{Access, ResidencyPolicy, Room};
use crate::ChunkId;

const MARK: &[u8; 8] = b"amemgds1";

/// Uses, cost and size, aged by a clock that moves when a chunk leaves.
#[derive(Default)]
pub struct Gdsf {
    ranking: Ranking,
    uses: HashMap<ChunkId, u32>,
    /// `L`: what the last victim was worth.
    clock: f64,
}

impl ResidencyPolicy for Gdsf {
    fn insert(&mut self, access: Access) {
        self.uses.insert(access.chunk, 0);
        self.touch(access);
    }

    fn touch(&mut self, access: Access) {
        let uses = self.uses.entry(access.chunk).or_default();
        *uses = uses.saturating_add(1);
        self.ranking.set(access.chunk, self.clock + f64::from(*uses) * access.density());
    }

    fn remove(&mut self, chunk: &ChunkId) {
        self.ranking.remove(chunk);
        self.uses.remove(chunk);
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        let (chunk, priority) = self.ranking.lowest(room)?;
        self.clock = self.clock.max(priority);
        Some(chunk)
    }

    fn save(&self) -> Vec<u8> {
        let mut saving = Saving::new(MARK);
        saving.float(self.clock);
        self.ranking.save(&mut saving);
        for chunk in self.ranking.chunks() {
            saving.int(u64::from(self.uses.get(&chunk).copied().unwrap_or_default()));
        }
        saving.done()
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let read = || {
            let mut saved = Saved::new(MARK, saved)?;
            let (clock, ranking) = (saved.float()?, Ranking::restore(&mut saved)?);
            let use_count = |chunk| Some((chunk, u32::try_from(saved.int()?).ok()?));
            let uses = ranking.chunks().into_iter().map(use_count).collect::<Option<_>>()?;
            Some(Self { ranking, uses, clock })
        };
        *self = read().unwrap_or_default();
        self.ranking.chunks()
    }
}
