//! Admission on second use: what is offered once and never again does not drive out what is used.

use std::collections::{HashSet, VecDeque};

use super::saved::{Saved, Saving};
use super::{Access, ResidencyPolicy, Room};
use crate::ChunkId;

/// Chunks that were offered once and are still known.
const REMEMBERED: usize = 1 << 16;
const MARK: &[u8; 8] = b"second-1";

/// Another policy that lets a chunk in only when it is offered for the second time: for tiers whose writes are dear,
/// such as a disk under a stream of documents that are read once.
///
/// A chunk is offered when it is put. So what was computed once lives in the faster tiers, and a second time only if it has
/// left those before it was used again. A tier without a faster one above it would prefill everything twice.
pub struct SecondUse<P> {
    policy: P,
    offered: HashSet<ChunkId>,
    /// In the order in which they were offered.
    order: VecDeque<ChunkId>,
}

impl<P> SecondUse<P> {
    /// Admission before this policy.
    pub fn new(policy: P) -> Self {
        Self { policy, offered: HashSet::new(), order: VecDeque::new() }
    }

    fn note(&mut self, chunk: ChunkId) {
        if self.offered.insert(chunk) {
            self.order.push_back(chunk);
        }
        while self.order.len() > REMEMBERED {
            let oldest = self.order.pop_front();
            oldest.iter().for_each(|oldest| _ = self.offered.remove(oldest));
        }
    }
}

impl<P: ResidencyPolicy> ResidencyPolicy for SecondUse<P> {
    fn admits(&mut self, access: &Access) -> bool {
        let known = self.offered.contains(&access.chunk);
        self.note(access.chunk);
        known && self.policy.admits(access)
    }

    fn insert(&mut self, access: Access) {
        self.policy.insert(access);
    }

    fn touch(&mut self, access: Access) {
        self.policy.touch(access);
    }

    fn remove(&mut self, chunk: &ChunkId) {
        self.policy.remove(chunk);
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        self.policy.victim(room)
    }

    fn save(&self) -> Vec<u8> {
        let mut saving = Saving::new(MARK);
        saving.list(self.order.iter(), |saving, chunk| saving.id(chunk));
        let mut bytes = saving.done();
        bytes.extend(self.policy.save());
        bytes
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let read = || {
            let mut saved = Saved::new(MARK, saved)?;
            let offered = saved.list(Saved::id)?;
            Some((offered, saved.rest()))
        };
        let Some((offered, policy)) = read() else { return Vec::new() };
        offered.into_iter().for_each(|chunk| self.note(chunk));
        self.policy.restore(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::Lru;

    #[test]
    fn a_chunk_is_let_in_the_second_time() {
        let access = Access { chunk: ChunkId([1; 32]), relevance: 1.0, bytes: 1, cost: 1.0, time: 0.0 };
        let mut policy = SecondUse::new(Lru::default());
        assert!(!policy.admits(&access));
        assert!(policy.admits(&access));
        let mut restored = SecondUse::new(Lru::default());
        restored.restore(&policy.save());
        assert!(restored.admits(&access));
    }
}
