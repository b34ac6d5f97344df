//! Chunks ordered by a score, for the policies whose victim is the lowest.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use super::Room;
use super::saved::{Saved, Saving};
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

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn remove(&mut self, chunk: &ChunkId) {
        if let Some(place) = self.places.remove(chunk) {
            self.order.remove(&(place, *chunk));
        }
    }

    pub(super) fn save(&self, saving: &mut Saving) {
        saving.list(self.order.iter(), |saving, (place, chunk)| {
            saving.id(chunk);
            saving.float(place.score);
        });
    }

    /// The ranking that was saved, the order of equals included.
    pub(super) fn restore(saved: &mut Saved<'_>) -> Option<Self> {
        let mut ranking = Self::default();
        let scores = saved.list(|saved| Some((saved.id()?, saved.float()?)))?;
        scores.into_iter().for_each(|(chunk, score)| ranking.set(chunk, score));
        Some(ranking)
    }

    pub(super) fn chunks(&self) -> Vec<ChunkId> {
        self.order.iter().map(|(_, chunk)| *chunk).collect()
    }

    /// The chunk with the lowest score of those that may leave, and that score.
    pub(super) fn lowest(&self, room: &Room<'_>) -> Option<(ChunkId, f64)> {
        self.ascending().find(|(chunk, _)| room.may_leave(chunk))
    }

    /// Chunks with their scores, lowest first.
    pub(super) fn ascending(&self) -> impl Iterator<Item = (ChunkId, f64)> {
        self.order.iter().map(|(place, chunk)| (*chunk, place.score))
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
