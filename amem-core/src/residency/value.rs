//! The value model: a chunk is worth the work that it will probably save, per byte that it occupies.
//!
//! ```text
//! value(now) = Σ over uses u: relevance(u) · 2^(-(now - u) / half-life)  ·  cost / bytes
//! ```
//!
//! The sum stands for how often the chunk will be used: each use adds its relevance and fades. So relevance, recency
//! and reuse weigh against size, and a scan that reads much once drives out little, itself first. Time is counted in
//! uses of any chunk, so that a quiet night ages nothing. The first use of a chunk counts for less ([`FIRST_USE`]):
//! most chunks that were used once are not used again.
//!
//! *Ranks are never recomputed* as time passes. All values fade by the same factor, so a chunk's rank, the logarithm of
//! its value plus `now / half-life`, changes only when it is used (as in LRFU: Lee et al., "LRFU: A Spectrum of
//! Policies that Subsumes the Least Recently Used and Least Frequently Used Policies", 2001; cost and size weigh in as
//! in GDSF).
//!
//! *The half-life is learned.* Too short is LRU, too long is LFU, and which is right depends on the users and on the
//! budget. Each of a few half-lives ranks all chunks that are known, held or not. When one is used, the bytes of those
//! that rank above it tell how large a tier by that half-life would have had to be to hold it (the stack distance of
//! Mattson et al., "Evaluation Techniques for Storage Hierarchies", 1970). The tier goes by the half-life that would have
//! had the least to prefill lately. At the beginning there are too few misses to tell half-lives apart; so what needs a
//! little less or more than the budget counts as a part of a miss, the less the more uses were seen, and a little stands
//! against half-lives that are far from the first. Where many chunks are known, a sample stands for all, under a budget as
//! much smaller (Waldspurger et al., "Cache Modeling and Optimization using Miniature Simulations", 2017).
//!
//! *Victims are chosen by what is lost.* Where one large chunk or two small ones would make room, the choice with the
//! least value leaves: in a tier of a few chunks, half of one lies fallow otherwise. For this choice, chunks of low ranks
//! are held to be more alike than their histories say ([`LEAST_WORTH`]).
//!
//! *Chunks that left are remembered* for a while: one that comes back has its history. Without that, a small tier would
//! see short gaps only, and take them for the truth.

use std::collections::{HashMap, VecDeque};

use super::half_life::{HALF_LIVES, HalfLife, KINDS};
use super::ranking::Ranking;
use super::saved::{Saved, Saving};
use super::{Access, MAX_BYTES, ResidencyPolicy, Room, within};
use crate::ChunkId;

/// What the first use of a chunk counts for, as a share of another's.
const FIRST_USE: f64 = 0.5;
/// Least relevance that a use counts for. It was a use, after all.
const LEAST_RELEVANCE: f64 = 0.01;
/// The chunks of lowest rank among which victims are chosen.
const WINDOW: usize = 8;
/// The value of a byte that becomes free beyond what is needed, as a share of one of the lowest rank: something will
/// fill it in time.
const SPARE_BYTE: f64 = 0.1;
/// What a chunk that is known is worth whatever its history, as a share of the mean: a short half-life says that a chunk
/// that was used a little earlier than another is worth far less, where in fact neither is likely to be used.
const LEAST_WORTH: f64 = 0.5;
/// Chunks that left and are still known, about two hundred bytes each: some, and more for each that is held, up to a
/// limit.
const REMEMBERED: usize = 256;
const REMEMBERED_PER_CHUNK: usize = 4;
const MOST_REMEMBERED: usize = 1 << 15;
const MARK: &[u8; 8] = b"amemval3";

/// The default: relevance, recency and reuse against size.
///
/// A chunk is worth `Σ relevance · 2^(-age / half-life) · cost / bytes`, the sum being over its uses: the work that it
/// will probably save, per byte. The half-life is learned; there is nothing to set.
pub struct Value {
    /// Chunks of the tier, by rank: the logarithm (base 2) of the value at use number 0, as if it had faded since.
    ranking: Ranking,
    /// Of the chunks in the tier and of those that left.
    histories: HashMap<ChunkId, History>,
    /// Chunks in the order in which they left, each with its last use then. Some have come back, or left again later.
    left: VecDeque<(ChunkId, u64)>,
    uses: u64,
    /// Bytes of the chunks in the tier.
    bytes: u64,
    /// Bytes that the tier may hold: without limit until it was full.
    budget: u64,
    /// For each half-life, the sum of the weights of all uses, faded as they do.
    weights: [f64; KINDS],
    half_life: HalfLife,
}

/// What is known of a chunk.
#[derive(Clone, Copy)]
struct History {
    /// For each half-life, the sum of the uses' weights as it was at the last use.
    weights: [f64; KINDS],
    /// Number of the last use, counted over all chunks.
    last_use: u64,
    density: f64,
    /// Bytes that it occupies in the tier, or did when it left.
    bytes: u64,
    is_held: bool,
}

impl History {
    /// The ranks of a chunk with this history, one for each half-life.
    fn ranks(&self) -> [f64; KINDS] {
        let rank = |kind: usize| self.weights[kind].log2() + self.last_use as f64 / HALF_LIVES[kind];
        std::array::from_fn(|kind| rank(kind) + self.density.log2())
    }

    fn save(&self, saving: &mut Saving) {
        self.weights.iter().for_each(|weight| saving.float(*weight));
        saving.int(self.last_use);
        saving.float(self.density);
        saving.int(self.bytes);
    }

    fn restore(saved: &mut Saved<'_>, uses: u64, is_held: bool) -> Option<Self> {
        let mut weights = [0.0; KINDS];
        for weight in &mut weights {
            *weight = saved.float().filter(|weight| *weight > 0.0)?;
        }
        let last_use = saved.int().filter(|last_use| *last_use <= uses)?;
        let density = saved.float().filter(|density| *density > 0.0)?;
        let bytes = saved.int().filter(|bytes| *bytes <= MAX_BYTES)?;
        Some(Self { weights, last_use, density, bytes, is_held })
    }
}

impl Default for Value {
    fn default() -> Self {
        Self {
            ranking: Ranking::default(),
            histories: HashMap::new(),
            left: VecDeque::new(),
            uses: 0,
            bytes: 0,
            budget: u64::MAX,
            weights: [0.0; KINDS],
            half_life: HalfLife::default(),
        }
    }
}

impl Value {
    /// Counts a use of a chunk that is in the tier from now on.
    fn count(&mut self, access: &Access) {
        self.uses += 1;
        let relevance = within(f64::from(access.relevance), LEAST_RELEVANCE, 1.0);
        let before = self.histories.get(&access.chunk);
        let counts_for = if before.is_some() { relevance } else { relevance * FIRST_USE };
        // Sums of geometric series: they stay small whatever comes.
        let add = |sum: f64, age: u64, kind: usize| sum * (-(age as f64) / HALF_LIVES[kind]).exp2() + counts_for;
        let weight = |kind: usize| match before {
            Some(history) => add(history.weights[kind], self.uses - history.last_use, kind),
            None => counts_for,
        };
        let (bytes, density) = (access.bytes.min(MAX_BYTES), access.density());
        self.bytes -= before.filter(|history| history.is_held).map_or(0, |history| history.bytes);
        self.bytes += bytes;
        let weights = std::array::from_fn(weight);
        self.weights = std::array::from_fn(|kind| add(self.weights[kind], 1, kind));
        let history = History { weights, last_use: self.uses, density, bytes, is_held: true };
        self.histories.insert(access.chunk, history);
        let ranks = history.ranks();
        self.ranking.set(access.chunk, ranks[self.half_life.chosen()]);
        if self.half_life.count(access, &ranks, self.budget) {
            self.rank_anew();
        }
    }

    /// Forgets the chunks that left first, where too many are known.
    fn forget(&mut self) {
        let held = self.ranking.len();
        while self.histories.len() - held > most_remembered(held) {
            let Some(leaving) = self.left.pop_front() else { break };
            if has_left(&self.histories, &leaving) {
                self.histories.remove(&leaving.0);
                self.half_life.forget(&leaving.0);
            }
        }
        if self.left.len() > 2 * (self.histories.len() - held) + 16 {
            self.left.retain(|leaving| has_left(&self.histories, leaving));
        }
    }

    /// Ranks all chunks by another half-life.
    fn rank_anew(&mut self) {
        let chosen = self.half_life.chosen();
        for chunk in self.ranking.chunks() {
            if let Some(history) = self.histories.get(&chunk) {
                self.ranking.set(chunk, history.ranks()[chosen]);
            }
        }
    }
}

/// Chunks that left and are still known at most, where so many are held.
fn most_remembered(held: usize) -> usize {
    REMEMBERED.saturating_add(REMEMBERED_PER_CHUNK.saturating_mul(held)).min(MOST_REMEMBERED)
}

/// Whether a chunk that left at this use has not come back since.
fn has_left(histories: &HashMap<ChunkId, History>, (chunk, last_use): &(ChunkId, u64)) -> bool {
    histories.get(chunk).is_some_and(|history| !history.is_held && history.last_use == *last_use)
}

impl ResidencyPolicy for Value {
    fn insert(&mut self, access: Access) {
        self.count(&access);
    }

    fn touch(&mut self, access: Access) {
        self.count(&access);
    }

    fn remove(&mut self, chunk: &ChunkId) {
        self.ranking.remove(chunk);
        let Some(history) = self.histories.get_mut(chunk).filter(|history| history.is_held) else { return };
        history.is_held = false;
        self.bytes -= history.bytes;
        self.left.push_back((*chunk, history.last_use));
        self.forget();
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        self.budget = self.bytes.saturating_sub(room.bytes);
        let may_leave = self.ranking.ascending().filter(|(chunk, _)| room.may_leave(chunk)).take(WINDOW);
        let (kind, known) = (self.half_life.chosen(), self.histories.len().max(1) as f64);
        let (now, mean) = (self.uses as f64 / HALF_LIVES[kind], self.weights[kind] / known);
        let mut candidates: Vec<Candidate> = Vec::with_capacity(WINDOW);
        for (chunk, rank) in may_leave {
            let Some(history) = self.histories.get(&chunk) else { continue };
            let value = ((rank - now).exp2() + LEAST_WORTH * mean * history.density).max(f64::MIN_POSITIVE);
            // Only how values compare counts.
            let lowest = candidates.first().map_or(value, |lowest| lowest.value);
            let loss = value / lowest * history.bytes as f64;
            candidates.push(Candidate { chunk, value, bytes: history.bytes, loss });
        }
        first_to_leave(&candidates, room.bytes)
    }

    fn save(&self) -> Vec<u8> {
        let mut saving = Saving::new(MARK);
        saving.int(self.uses);
        saving.int(self.budget);
        self.weights.iter().for_each(|weight| saving.float(*weight));
        self.half_life.save(&mut saving);
        let known = |chunk: &ChunkId| self.histories.get(chunk).map(|history| (*chunk, *history));
        let held: Vec<(ChunkId, History)> = self.ranking.chunks().iter().filter_map(known).collect();
        let left = self.left.iter().filter(|leaving| has_left(&self.histories, leaving));
        let left = left.filter_map(|(chunk, _)| known(chunk)).collect();
        // The lowest rank first, and in the order in which they left, so that ties and forgetting stay as they were.
        for histories in [held, left] {
            saving.list(histories.iter(), |saving, (chunk, history)| {
                saving.id(chunk);
                history.save(saving);
            });
        }
        saving.done()
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let read = || {
            let mut saved = Saved::new(MARK, saved)?;
            let uses = saved.int().filter(|uses| *uses < 1 << 62)?;
            let budget = saved.int()?;
            let mut weights = [0.0; KINDS];
            for weight in &mut weights {
                *weight = saved.float().filter(|weight| *weight >= 0.0)?;
            }
            let half_life = HalfLife::restore(&mut saved)?;
            let mut this = Self { uses, budget, weights, half_life, ..Self::default() };
            let mut histories =
                |is_held| saved.list(|saved| Some((saved.id()?, History::restore(saved, uses, is_held)?)));
            let [held, left] = [histories(true)?, histories(false)?];
            saved.is_done()?;
            (left.len() <= most_remembered(held.len())).then_some(())?;
            for (chunk, history) in held.into_iter().chain(left) {
                let ranks = history.ranks();
                if history.is_held {
                    this.ranking.set(chunk, ranks[this.half_life.chosen()]);
                    this.bytes += history.bytes;
                } else {
                    this.left.push_back((chunk, history.last_use));
                }
                this.half_life.follow(chunk, history.bytes, &ranks);
                // No chunk is there twice.
                this.histories.insert(chunk, history).is_none().then_some(())?;
            }
            this.half_life.is_complete()?;
            Some(this)
        };
        *self = read().unwrap_or_default();
        self.ranking.chunks()
    }
}

/// A chunk that may leave.
struct Candidate {
    chunk: ChunkId,
    /// By byte.
    value: f64,
    bytes: u64,
    /// Its value where a byte of the lowest rank has one of 1.
    loss: f64,
}

/// One of those candidates that make this much room at the least loss. Compares the lowest ranks, as many as it takes,
/// each chunk alone, and each pair: where a chunk is not many times as large as another, hardly any choice is better.
fn first_to_leave(candidates: &[Candidate], bytes: u64) -> Option<ChunkId> {
    let loss = |freed: u64, lost: f64| lost - SPARE_BYTE * freed as f64;
    let (mut freed, mut lost) = (0, 0.0);
    for candidate in candidates {
        if freed < bytes {
            freed += candidate.bytes;
            lost += candidate.loss;
        }
    }
    let mut best = (candidates.first()?.chunk, if freed < bytes { f64::INFINITY } else { loss(freed, lost) });
    for (at, one) in candidates.iter().enumerate() {
        let alone = loss(one.bytes, one.loss);
        if one.bytes >= bytes && alone < best.1 {
            best = (one.chunk, alone);
        }
        for other in &candidates[..at] {
            let both = loss(one.bytes + other.bytes, one.loss + other.loss);
            if one.bytes + other.bytes >= bytes && both < best.1 {
                best = (other.chunk, both);
            }
        }
    }
    Some(best.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn access(chunk: u8, bytes: u64, relevance: f32, cost: f32) -> Access {
        Access { chunk: ChunkId([chunk; 32]), relevance, bytes, cost, time: 0.0 }
    }

    fn victim_of(accesses: &[Access]) -> Option<u8> {
        let mut policy = Value::default();
        for access in accesses {
            if policy.ranking.score(&access.chunk).is_some() { policy.touch(*access) } else { policy.insert(*access) }
        }
        policy.victim(&Room::new(1, 0.0)).map(|chunk| chunk.0[0])
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
    fn the_victims_are_those_with_the_least_loss() {
        let sized = |chunk: u8, bytes: u64, uses: usize| vec![access(chunk, bytes, 1.0, bytes as f32); uses];
        // Per byte, 1 is worth least. One large chunk is worth more than one small chunk that is large enough.
        let accesses = [sized(1, 1200, 1), sized(2, 300, 2), sized(3, 900, 3)].concat();
        let mut policy = Value::default();
        for access in &accesses {
            if policy.ranking.score(&access.chunk).is_some() { policy.touch(*access) } else { policy.insert(*access) }
        }
        let mut first = |bytes| policy.victim(&Room::new(bytes, 0.0)).map(|chunk| chunk.0[0]);
        assert_eq!((first(300), first(301), first(900)), (Some(2), Some(1), Some(1)));
    }

    /// The bytes of those that leave until there is room, and what is lost with them.
    fn leave(mut candidates: Vec<Candidate>, bytes: u64, choose: impl Fn(&[Candidate], u64) -> ChunkId) -> (u64, f64) {
        let (mut freed, mut lost) = (0, 0.0);
        while freed < bytes && !candidates.is_empty() {
            let chosen = choose(&candidates, bytes - freed);
            let at = candidates.iter().position(|candidate| candidate.chunk == chosen).unwrap();
            let leaving = candidates.remove(at);
            (freed, lost) = (freed + leaving.bytes, lost + leaving.loss);
        }
        (freed, lost)
    }

    proptest! {
        #[test]
        fn no_more_is_lost_than_with_the_lowest_ranks(
            chunks in prop::collection::vec((0.0..4.0_f64, 1_u64..50), 1..WINDOW), bytes in 1_u64..120,
        ) {
            let candidates = || {
                let mut chunks = chunks.clone();
                chunks.sort_by(|a, b| a.0.total_cmp(&b.0));
                let candidate = |(name, (rank, bytes)): (u8, (f64, u64))| {
                    let value = rank.exp2();
                    Candidate { chunk: ChunkId([name; 32]), value, bytes, loss: value * bytes as f64 }
                };
                (0..).zip(chunks).map(candidate).collect()
            };
            let (freed, lost) = leave(candidates(), bytes, |left, bytes| first_to_leave(left, bytes).unwrap());
            let (most, lowest) = leave(candidates(), bytes, |left, _| left[0].chunk);
            let (loss, lowest) = (lost - SPARE_BYTE * freed as f64, lowest - SPARE_BYTE * most as f64);
            prop_assert!(freed >= bytes.min(most) && loss <= lowest + 1e-6);
        }
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
        assert_eq!(policy.victim(&Room::new(1, 0.0)), Some(two.chunk), "two uses against three");
    }
}
