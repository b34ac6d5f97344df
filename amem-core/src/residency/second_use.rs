//! Admission on second use: what is offered once and never again does not drive out what is used.

use std::collections::{BTreeMap, HashMap};

use super::saved::{Saved, Saving};
use super::{Access, ResidencyPolicy, Room};
use crate::ChunkId;

/// Chunks that were offered once and are still known.
const REMEMBERED: usize = 1 << 16;
const MARK: &[u8; 8] = b"second-1";

/// Another policy that lets a chunk in only the second time: for tiers whose writes are dear, such as a disk under a stream
/// of documents that are read once.
///
/// A chunk is offered when it is put, and again when it is used in a faster tier ([`ResidencyPolicy::wants`]). So what is
/// put and never asked for stays above. A tier without a faster one above it would have everything prefilled twice.
pub struct SecondUse<P> {
    policy: P,
    /// Chunks that were offered and not let in, each with its number in `order`.
    offered: HashMap<ChunkId, u64>,
    /// The same, in the order in which they were offered first.
    order: BTreeMap<u64, ChunkId>,
    /// The last number given.
    offers: u64,
}

impl<P> SecondUse<P> {
    /// Admission before this policy.
    pub fn new(policy: P) -> Self {
        Self { policy, offered: HashMap::new(), order: BTreeMap::new(), offers: 0 }
    }

    fn note(&mut self, chunk: ChunkId) {
        if !self.offered.contains_key(&chunk) {
            self.offers += 1;
            self.offered.insert(chunk, self.offers);
            self.order.insert(self.offers, chunk);
        }
        while self.order.len() > REMEMBERED {
            let oldest = self.order.pop_first();
            oldest.iter().for_each(|(_, oldest)| _ = self.offered.remove(oldest));
        }
    }
}

impl<P: ResidencyPolicy> ResidencyPolicy for SecondUse<P> {
    fn admits(&mut self, access: &Access) -> bool {
        if !self.offered.contains_key(&access.chunk) {
            self.note(access.chunk);
            return false;
        }
        let admitted = self.policy.admits(access);
        // One that is let in and leaves has to come twice again.
        if admitted && let Some(number) = self.offered.remove(&access.chunk) {
            self.order.remove(&number);
        }
        admitted
    }

    fn wants(&self, chunk: &ChunkId) -> bool {
        self.offered.contains_key(chunk)
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
        saving.list(self.order.values(), |saving, chunk| saving.id(chunk));
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
        assert!(!policy.wants(&access.chunk) && !policy.admits(&access) && policy.wants(&access.chunk));
        let mut restored = SecondUse::new(Lru::default());
        restored.restore(&policy.save());
        for mut policy in [policy, restored] {
            assert!(policy.admits(&access));
            assert!(!policy.wants(&access.chunk) && !policy.admits(&access), "and again, once it has left");
        }
    }
}
