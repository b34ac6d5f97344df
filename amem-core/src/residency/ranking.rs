//! Chunks ordered by a score, for the policies whose victim is the lowest.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use crate::ChunkId;

/// Chunks by score, lowest first; of equal scores, the one that was set longest ago. Each call takes O(log n).
#[derive(Default)]
pub(super) struct Ranking {
    places: HashMap<ChunkId, Place>,
    order: BTreeSet<(Place, ChunkId)>,
    calls: u64,
}

impl Ranking {
    /// Gives a chunk a score, as the most recent of its equals.
    pub(super) fn set(&mut self, chunk: ChunkId, score: f64) {
        self.calls += 1;
        let place = Place { score, set: self.calls };
        if let Some(old) = self.places.insert(chunk, place) {
            self.order.remove(&(old, chunk));
        }
        self.order.insert((place, chunk));
    }

    pub(super) fn score(&self, chunk: &ChunkId) -> Option<f64> {
        self.places.get(chunk).map(|place| place.score)
    }

    pub(super) fn remove(&mut self, chunk: &ChunkId) {
        if let Some(place) = self.places.remove(chunk) {
            self.order.remove(&(place, *chunk));
        }
    }

    /// The chunk with the lowest score, and that score.
    pub(super) fn lowest(&self) -> Option<(ChunkId, f64)> {
        self.order.first().map(|(place, chunk)| (*chunk, place.score))
    }
}

#[derive(Clone, Copy)]
struct Place {
    score: f64,
    /// The number of the call that set it.
    set: u64,
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(self.set.cmp(&other.set))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Place {}
