//! The value model: a chunk is worth the work that it will probably save, per byte that it occupies.
//!
//! ```text
//! value(now) = Σ over uses u: relevance(u) · 2^(-(now - u) / half-life)  ·  cost / bytes
//! ```
//!
//! The sum stands for how often the chunk will be used: each use adds its relevance and fades. So relevance, recency
//! and reuse weigh against size, and a scan that reads much once drives out little, itself first.
//!
//! *Ranks are never recomputed.* All values fade by the same factor, so instead of shrinking old ones, new uses weigh
//! more: the logarithm of a use's weight is the clock's reading, `now / half-life`, and a chunk's rank
//! changes only when it is used (as in LRFU: Lee et al., "LRFU: A Spectrum of Policies that Subsumes the Least
//! Recently Used and Least Frequently Used Policies", 2001; cost and size weigh in as in GDSF).
//!
//! *The half-life is learned.* Too short is LRU, too long is LFU, and which is right depends on the users. It is
//! [`HALF_LIFE`] times the mean gap between two uses of one chunk, measured in uses of any chunk, so that a quiet
//! night ages nothing. The clock then runs slower or faster, and what was ranked stays ranked.
//!
//! *Chunks that left are remembered* for a while, about a hundred bytes each: one that comes back has its history, and
//! its gap counts. Without that, a small tier would see short gaps only, and take them for the truth.

use std::collections::{HashMap, VecDeque};

use super::ranking::Ranking;
use super::saved::{Saved, Saving};
use super::{Access, ResidencyPolicy, within};
use crate::ChunkId;

/// Mean gaps in which a use loses half its weight.
const HALF_LIFE: f64 = 3.0;
/// The mean gap, in uses, before any was seen.
const FIRST_GAP: f64 = 1000.0;
/// How much one gap moves the mean.
const LEARNING: f64 = 1e-3;
/// Chunks that left and are still known.
const REMEMBERED: usize = 1 << 15;
/// Least relevance that a use counts for. It was a use, after all.
const LEAST_RELEVANCE: f64 = 0.01;
const MARK: &[u8; 8] = b"amemval1";

/// The default: relevance, recency and reuse against size.
///
/// A chunk is worth `Σ relevance · 2^(-age / half-life) · cost / bytes`, the sum being over its uses: the work that it
/// will probably save, per byte. The half-life is learned from the gaps between uses; there is nothing to set.
pub struct Value {
    /// By the logarithm (base 2) of the value, in which the clock's reading is not taken off.
    ranking: Ranking,
    held: HashMap<ChunkId, History>,
    left: HashMap<ChunkId, History>,
    /// Chunks in the order in which they left. Some have come back, or left again later.
    leaving: VecDeque<(ChunkId, u64)>,
    uses: u64,
    mean_gap: f64,
    /// Half-lives that have passed.
    clock: f64,
}

#[derive(Clone, Copy)]
struct History {
    /// Logarithm of the sum of the uses' weights.
    weight: f64,
    /// Number of its last use, counted over all chunks.
    last_use: u64,
}

impl History {
    fn save(saving: &mut Saving, (chunk, history): (&ChunkId, &Self)) {
        saving.id(chunk);
        saving.float(history.weight);
        saving.int(history.last_use);
    }

    fn restore(saved: &mut Saved<'_>) -> Option<(ChunkId, Self)> {
        Some((saved.id()?, Self { weight: saved.float()?, last_use: saved.int()? }))
    }
}

impl Default for Value {
    fn default() -> Self {
        Self {
            ranking: Ranking::default(),
            held: HashMap::new(),
            left: HashMap::new(),
            leaving: VecDeque::new(),
            uses: 0,
            mean_gap: FIRST_GAP,
            clock: 0.0,
        }
    }
}

impl Value {
    /// Counts a use of a chunk with this history and ranks it.
    fn count(&mut self, access: &Access, history: Option<History>) {
        self.uses += 1;
        if let Some(history) = history {
            let gap = (self.uses - history.last_use) as f64;
            self.mean_gap += LEARNING * (gap - self.mean_gap);
        }
        self.clock += 1.0 / (HALF_LIFE * self.mean_gap);
        let relevance = within(f64::from(access.relevance), LEAST_RELEVANCE, 1.0);
        let this = self.clock + relevance.log2();
        let weight = history.map_or(this, |history| log2_sum(history.weight, this));
        self.held.insert(access.chunk, History { weight, last_use: self.uses });
        self.ranking.set(access.chunk, weight + access.density().log2());
    }
}

/// `log2(2^a + 2^b)` without leaving the range of a float.
fn log2_sum(a: f64, b: f64) -> f64 {
    let (high, low) = (a.max(b), a.min(b));
    high + (low - high).exp2().ln_1p() / std::f64::consts::LN_2
}

impl ResidencyPolicy for Value {
    fn insert(&mut self, access: Access) {
        let history = self.left.remove(&access.chunk).or(self.held.get(&access.chunk).copied());
        self.count(&access, history);
    }

    fn touch(&mut self, access: Access) {
        let history = self.held.get(&access.chunk).copied();
        self.count(&access, history);
    }

    fn remove(&mut self, chunk: &ChunkId) {
        self.ranking.remove(chunk);
        let Some(history) = self.held.remove(chunk) else { return };
        self.left.insert(*chunk, history);
        self.leaving.push_back((*chunk, history.last_use));
        while self.leaving.len() > REMEMBERED {
            let Some((chunk, last_use)) = self.leaving.pop_front() else { break };
            if self.left.get(&chunk).is_some_and(|history| history.last_use == last_use) {
                self.left.remove(&chunk);
            }
        }
    }

    fn victim(&mut self, _: f64) -> Option<ChunkId> {
        self.ranking.lowest().map(|(chunk, _)| chunk)
    }

    fn save(&self) -> Vec<u8> {
        let mut saving = Saving::new(MARK);
        saving.int(self.uses);
        saving.float(self.mean_gap);
        saving.float(self.clock);
        self.ranking.save(&mut saving);
        let held = self.ranking.chunks();
        let histories = held.iter().filter_map(|chunk| Some((chunk, self.held.get(chunk)?)));
        saving.list(histories.collect::<Vec<_>>().into_iter(), History::save);
        // In the order in which they left, so that they are forgotten in that order.
        let left = self.leaving.iter().filter_map(|(chunk, last_use)| {
            let history = self.left.get(chunk).filter(|history| history.last_use == *last_use)?;
            Some((chunk, history))
        });
        saving.list(left.collect::<Vec<_>>().into_iter(), History::save);
        saving.done()
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let read = || {
            let mut saved = Saved::new(MARK, saved)?;
            let (uses, mean_gap, clock) = (saved.int()?, saved.float()?, saved.float()?);
            let ranking = Ranking::restore(&mut saved)?;
            let held: HashMap<_, _> = saved.list(History::restore)?.into_iter().collect();
            let left = saved.list(History::restore)?;
            saved.is_done()?;
            let histories = held.values().chain(left.iter().map(|(_, history)| history));
            let sound = histories.into_iter().all(|history| history.last_use <= uses)
                && uses < 1 << 62
                && mean_gap > 0.0
                && ranking.chunks().iter().all(|chunk| held.contains_key(chunk))
                && left.len() <= REMEMBERED;
            let leaving = left.iter().map(|(chunk, history)| (*chunk, history.last_use)).collect();
            let left = left.into_iter().collect();
            sound.then_some(Self { ranking, held, left, leaving, uses, mean_gap, clock })
        };
        *self = read().unwrap_or_default();
        self.ranking.chunks()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(chunk: u8, bytes: u64, relevance: f32, cost: f32) -> Access {
        Access { chunk: ChunkId([chunk; 32]), relevance, bytes, cost, time: 0.0 }
    }

    fn victim_of(accesses: &[Access]) -> Option<u8> {
        let mut policy = Value::default();
        for access in accesses {
            if policy.held.contains_key(&access.chunk) { policy.touch(*access) } else { policy.insert(*access) }
        }
        policy.victim(0.0).map(|chunk| chunk.0[0])
    }

    #[test]
    fn what_was_used_more_often_stays() {
        let [one, two] = [access(1, 100, 1.0, 10.0), access(2, 100, 1.0, 10.0)];
        assert_eq!(victim_of(&[one, one, two]), Some(2));
    }

    #[test]
    fn of_equals_the_one_used_last_stays() {
        let [one, two] = [access(1, 100, 1.0, 10.0), access(2, 100, 1.0, 10.0)];
        assert_eq!(victim_of(&[one, two, one, two]), Some(1));
    }

    #[test]
    fn what_matters_more_stays() {
        assert_eq!(victim_of(&[access(1, 100, 0.9, 10.0), access(2, 100, 0.3, 10.0)]), Some(2));
    }

    #[test]
    fn what_costs_more_to_rebuild_stays() {
        assert_eq!(victim_of(&[access(1, 100, 1.0, 20.0), access(2, 100, 1.0, 10.0)]), Some(2));
    }

    #[test]
    fn what_is_smaller_stays() {
        assert_eq!(victim_of(&[access(1, 100, 1.0, 10.0), access(2, 200, 1.0, 10.0)]), Some(2));
    }

    #[test]
    fn a_favourite_that_is_not_used_any_more_goes_in_the_end() {
        let old = [access(1, 100, 1.0, 10.0); 10];
        let new = [access(2, 100, 1.0, 10.0), access(3, 100, 1.0, 10.0)].repeat(20_000);
        let uses: Vec<Access> = old.into_iter().chain(new).chain([access(4, 100, 1.0, 10.0)]).collect();
        assert_eq!(victim_of(&uses), Some(1));
    }

    #[test]
    fn a_chunk_that_comes_back_has_its_history() {
        let mut policy = Value::default();
        let [one, two] = [access(1, 100, 1.0, 10.0), access(2, 100, 1.0, 10.0)];
        policy.insert(one);
        policy.touch(one);
        policy.remove(&one.chunk);
        policy.insert(one);
        policy.insert(two);
        policy.touch(two);
        assert_eq!(policy.victim(0.0), Some(two.chunk), "two uses against three");
    }
}
