//! Which half-life serves a tier best: each is judged by where it ranked what was then used.

use std::collections::HashMap;

use super::saved::{Saved, Saving};
use super::{Access, MAX_BYTES, within};
use crate::ChunkId;

/// Half-lives to choose from, in uses of any chunk.
pub(super) const HALF_LIVES: [f64; KINDS] = [15.0, 50.0, 150.0, 500.0, 1_500.0, 5_000.0, 15_000.0, 50_000.0];
pub(super) const KINDS: usize = 8;
/// The one to begin with.
const FIRST_CHOICE: usize = 3;
/// What stands against a half-life from the beginning, for each place that it is away from the first choice: the cost of
/// this many uses. It is what tells noise from a reason to change while few chunks were used.
const PRIOR: f64 = 0.25;
/// Uses in which what the half-lives would have cost fades to a third.
const MEMORY: f64 = 4_000.0;
/// A half-life with this much less cost than the present one takes its place.
const MARGIN: f64 = 0.002;
/// How sharply a use turns from hit to miss around the real budget: the exponent in [`missed`]. It starts here and grows by
/// 1 every [`USES_PER_STEEPNESS`] uses.
const FIRST_STEEPNESS: f64 = 2.0;
const USES_PER_STEEPNESS: f64 = 400.0;
/// Chunks in the sample at most. Beyond that, half as many are followed.
const MAX_CHUNKS: usize = 1024;

/// The half-life by which a tier goes, and how others would do.
pub(super) struct HalfLife {
    chosen: usize,
    /// For each half-life, what the misses would have cost lately.
    work: [f64; KINDS],
    /// What the uses would have cost without a tier, and how many they are, both fading as the work does.
    all: f64,
    uses: f64,
    /// Of all chunks that are known, one in `2^halvings` is followed, and stands for the others.
    halvings: u32,
    sample: Sample,
}

/// The chunks that are followed. They may be in the tier or have left it.
#[derive(Default)]
struct Sample {
    places: HashMap<ChunkId, usize>,
    chunks: Vec<ChunkId>,
    bytes: Vec<u64>,
    /// One list for each half-life.
    ranks: [Vec<f64>; KINDS],
}

impl Default for HalfLife {
    fn default() -> Self {
        let sample = Sample::default();
        Self { chosen: FIRST_CHOICE, work: [0.0; KINDS], all: 0.0, uses: 0.0, halvings: 0, sample }
    }
}

impl HalfLife {
    /// The place in [`HALF_LIVES`] of the present one.
    pub(super) fn chosen(&self) -> usize {
        self.chosen
    }

    /// Counts a use of a chunk that has these ranks from now on, one for each half-life. Says whether another half-life
    /// was chosen.
    pub(super) fn count(&mut self, access: &Access, ranks: &[f64; KINDS], budget: u64) -> bool {
        if !is_followed(&access.chunk, self.halvings) {
            return false;
        }
        let cost = within(f64::from(access.cost), 0.0, 1e12);
        let fade = |sum: &mut f64, more: f64| *sum = *sum * (1.0 - 1.0 / MEMORY) + more;
        fade(&mut self.all, cost);
        fade(&mut self.uses, 1.0);
        let budget = budget.checked_shr(self.halvings).unwrap_or_default().max(1) as f64;
        let steepness = FIRST_STEEPNESS + self.uses / USES_PER_STEEPNESS;
        let place = self.sample.places.get(&access.chunk);
        for (kind, work) in self.work.iter_mut().enumerate() {
            // A chunk that is not known is a miss whatever the half-life, and says nothing.
            let needed = place.map_or(0.0, |place| self.sample.needed(*place, kind) as f64 / budget);
            fade(work, missed(needed, steepness) * cost);
        }
        self.follow(access.chunk, access.bytes.min(MAX_BYTES), ranks);
        while self.sample.chunks.len() > MAX_CHUNKS {
            self.halvings += 1;
            self.sample.retain(|chunk| is_followed(chunk, self.halvings));
        }
        let each = PRIOR * self.all / self.uses;
        let work = |kind: usize| self.work[kind] + each * kind.abs_diff(FIRST_CHOICE) as f64;
        let best = (0..KINDS).min_by(|a, b| work(*a).total_cmp(&work(*b))).unwrap_or(self.chosen);
        let is_better = work(best) < (1.0 - MARGIN) * work(self.chosen);
        if is_better {
            self.chosen = best;
        }
        is_better
    }

    /// A chunk with these ranks is known from now on, if it is one of those that are followed.
    pub(super) fn follow(&mut self, chunk: ChunkId, bytes: u64, ranks: &[f64; KINDS]) {
        if is_followed(&chunk, self.halvings) {
            self.sample.set(chunk, bytes, ranks);
        }
    }

    /// A chunk is not known any more.
    pub(super) fn forget(&mut self, chunk: &ChunkId) {
        self.sample.remove(chunk);
    }

    /// Saves all but the chunks that are followed.
    pub(super) fn save(&self, saving: &mut Saving) {
        saving.int(self.chosen as u64);
        saving.int(u64::from(self.halvings));
        self.work.iter().chain([&self.all, &self.uses]).for_each(|sum| saving.float(*sum));
    }

    /// What was saved, once all chunks that are known have been [followed](Self::follow) again and
    /// [fit](Self::is_complete).
    pub(super) fn restore(saved: &mut Saved<'_>) -> Option<Self> {
        let chosen = usize::try_from(saved.int()?).ok().filter(|chosen| *chosen < KINDS)?;
        let halvings = u32::try_from(saved.int()?).ok().filter(|halvings| *halvings < 64)?;
        let mut sum = || saved.float().filter(|sum| *sum >= 0.0);
        let mut work = [0.0; KINDS];
        for work in &mut work {
            *work = sum()?;
        }
        let (all, uses) = (sum()?, sum()?);
        Some(Self { chosen, work, all, uses, halvings, sample: Sample::default() })
    }

    /// Whether no more chunks are followed than ever are. More would have the sample halved until no bit of a hash is
    /// left.
    pub(super) fn is_complete(&self) -> Option<()> {
        (self.sample.chunks.len() <= MAX_CHUNKS).then_some(())
    }
}

impl Sample {
    /// The least budget under which a tier of the sample would hold this chunk, if it went by this half-life: the bytes of
    /// what ranks above it, and its own. Such a tier holds the chunks of the highest ranks, for only a use changes how
    /// two ranks compare.
    fn needed(&self, place: usize, kind: usize) -> u64 {
        let rank = self.ranks[kind][place];
        let above =
            self.ranks[kind].iter().zip(&self.bytes).map(|(other, bytes)| if *other > rank { *bytes } else { 0 });
        above.sum::<u64>() + self.bytes[place]
    }

    fn set(&mut self, chunk: ChunkId, bytes: u64, ranks: &[f64; KINDS]) {
        let place = *self.places.entry(chunk).or_insert(self.chunks.len());
        if place == self.chunks.len() {
            self.chunks.push(chunk);
            self.bytes.push(bytes);
            self.ranks.iter_mut().zip(ranks).for_each(|(all, rank)| all.push(*rank));
        } else {
            self.bytes[place] = bytes;
            self.ranks.iter_mut().zip(ranks).for_each(|(all, rank)| all[place] = *rank);
        }
    }

    fn remove(&mut self, chunk: &ChunkId) {
        let Some(place) = self.places.remove(chunk) else { return };
        self.chunks.swap_remove(place);
        self.bytes.swap_remove(place);
        self.ranks.iter_mut().for_each(|all| _ = all.swap_remove(place));
        if let Some(moved) = self.chunks.get(place) {
            self.places.insert(*moved, place);
        }
    }

    fn retain(&mut self, keeps: impl Fn(&ChunkId) -> bool) {
        let chunks = self.chunks.clone();
        chunks.iter().filter(|chunk| !keeps(chunk)).for_each(|chunk| self.remove(chunk));
    }
}

/// How much of a miss a use is that needs so many times the budget: a half where it needs just that. Hits and misses alone
/// say too little while they are few; what was missed by little would have been held with a little luck.
fn missed(needed: f64, steepness: f64) -> f64 {
    1.0 / (1.0 + needed.powf(-steepness))
}

/// Whether a chunk is one of those in the sample. All bytes of the id decide, for not every id is a hash.
fn is_followed(chunk: &ChunkId, halvings: u32) -> bool {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = chunk.0.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    // The high bits of this hash (FNV-1a) depend on all bytes.
    hash.leading_zeros() >= halvings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_chunk_needs_is_the_least_budget_that_holds_the_highest_ranks_down_to_it() {
        let mut sample = Sample::default();
        for (name, (bytes, rank)) in (0..).zip([(5, 2.0), (70, 4.0), (300, 1.0), (1_000, 3.0)]) {
            sample.set(ChunkId([name; 32]), bytes, &[rank; KINDS]);
        }
        let needed = |sample: &Sample, name: u8| sample.needed(sample.places[&ChunkId([name; 32])], 0);
        assert_eq!([0, 1, 2, 3].map(|name| needed(&sample, name)), [1_075, 70, 1_375, 1_070]);
        sample.remove(&ChunkId([0; 32]));
        sample.set(ChunkId([2; 32]), 200, &[5.0; KINDS]);
        assert_eq!([1, 2, 3].map(|name| needed(&sample, name)), [270, 200, 1_270]);
    }

    #[test]
    fn what_needs_twice_the_budget_counts_for_more_of_a_miss_with_every_use_seen() {
        assert_eq!([0.5, 1.0, 2.0].map(|needed| missed(needed, 2.0)), [0.2, 0.5, 0.8]);
        assert_eq!([0.5, 1.0, 2.0].map(|needed| missed(needed, 4.0)), [1.0 / 17.0, 0.5, 16.0 / 17.0]);
        assert_eq!([0.0, f64::INFINITY].map(|needed| missed(needed, 3.0)), [0.0, 1.0]);
    }
}
