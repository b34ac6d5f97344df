//! Which half-life serves a tier best: small shadows of it try each.

use std::collections::HashMap;

use super::ranking::Ranking;
use super::saved::{Saved, Saving};
use super::{Access, MAX_BYTES, within};
use crate::ChunkId;

/// Half-lives to choose from, in uses of any chunk.
pub(super) const HALF_LIVES: [f64; KINDS] = [30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0, 100_000.0];
pub(super) const KINDS: usize = 8;
/// The one to begin with.
const FIRST_CHOICE: usize = 3;
/// Uses in which what the shadows had to do fades to a third.
const MEMORY: f64 = 4_000.0;
/// A half-life with this much less work than the present one takes its place.
const MARGIN: f64 = 0.005;
/// Chunks in a shadow at most. Beyond that, all of them follow half as many.
const MAX_CHUNKS: usize = 512;

/// The half-life by which a tier goes, and how others would do.
pub(super) struct HalfLife {
    chosen: usize,
    shadows: [Shadow; KINDS],
    /// The shadows follow one chunk in `2^halvings`, under as small a share of the budget.
    halvings: u32,
}

/// A tier without KV that goes by one half-life.
#[derive(Default)]
struct Shadow {
    ranking: Ranking,
    sizes: HashMap<ChunkId, u64>,
    bytes: u64,
    /// What its misses cost, lately.
    work: f64,
}

impl Default for HalfLife {
    fn default() -> Self {
        Self { chosen: FIRST_CHOICE, shadows: Default::default(), halvings: 0 }
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
        let budget = budget.checked_shr(self.halvings).unwrap_or_default();
        for (shadow, rank) in self.shadows.iter_mut().zip(ranks) {
            shadow.count(access, *rank, budget);
        }
        while self.shadows.iter().any(|shadow| shadow.sizes.len() > MAX_CHUNKS) {
            self.halvings += 1;
            self.shadows.iter_mut().for_each(|shadow| shadow.follow_fewer(self.halvings));
        }
        let work = |kind: usize| self.shadows[kind].work;
        let best = (0..KINDS).min_by(|a, b| work(*a).total_cmp(&work(*b))).unwrap_or(self.chosen);
        let is_better = work(best) < (1.0 - MARGIN) * work(self.chosen);
        if is_better {
            self.chosen = best;
        }
        is_better
    }

    pub(super) fn save(&self, saving: &mut Saving) {
        saving.int(self.chosen as u64);
        saving.int(u64::from(self.halvings));
        for shadow in &self.shadows {
            saving.float(shadow.work);
            saving.list(shadow.ranking.chunks().iter(), |saving, chunk| {
                saving.id(chunk);
                saving.float(shadow.ranking.score(chunk).unwrap_or_default());
                saving.int(shadow.sizes.get(chunk).copied().unwrap_or_default());
            });
        }
    }

    pub(super) fn restore(saved: &mut Saved<'_>) -> Option<Self> {
        let chosen = usize::try_from(saved.int()?).ok().filter(|chosen| *chosen < KINDS)?;
        let halvings = u32::try_from(saved.int()?).ok().filter(|halvings| *halvings < 64)?;
        let mut shadows: [Shadow; KINDS] = Default::default();
        for shadow in &mut shadows {
            shadow.work = saved.float().filter(|work| *work >= 0.0)?;
            for (chunk, rank, bytes) in saved.list(|saved| Some((saved.id()?, saved.float()?, saved.int()?)))? {
                shadow.hold(chunk, rank, bytes.min(MAX_BYTES));
            }
            // No more are ever saved. More would have the sample halved until no bit of a hash is left.
            (shadow.sizes.len() <= MAX_CHUNKS).then_some(())?;
        }
        Some(Self { chosen, shadows, halvings })
    }
}

impl Shadow {
    fn count(&mut self, access: &Access, rank: f64, budget: u64) {
        self.work *= 1.0 - 1.0 / MEMORY;
        if !self.sizes.contains_key(&access.chunk) {
            self.work += within(f64::from(access.cost), 0.0, 1e12);
        }
        self.hold(access.chunk, rank, access.bytes.min(MAX_BYTES));
        while self.bytes > budget {
            let Some((chunk, _)) = self.ranking.ascending().next() else { break };
            self.remove(&chunk);
        }
    }

    fn hold(&mut self, chunk: ChunkId, rank: f64, bytes: u64) {
        self.ranking.set(chunk, rank);
        self.bytes += bytes;
        self.bytes -= self.sizes.insert(chunk, bytes).unwrap_or_default();
    }

    fn remove(&mut self, chunk: &ChunkId) {
        self.ranking.remove(chunk);
        self.bytes -= self.sizes.remove(chunk).unwrap_or_default();
    }

    fn follow_fewer(&mut self, halvings: u32) {
        self.ranking.chunks().iter().filter(|chunk| !is_followed(chunk, halvings)).for_each(|chunk| self.remove(chunk));
    }
}

/// Whether a chunk is one of those that the shadows follow. All bytes of the id decide, for not every id is a hash.
fn is_followed(chunk: &ChunkId, halvings: u32) -> bool {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = chunk.0.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    // The high bits of this hash (FNV-1a) depend on all bytes.
    hash.leading_zeros() >= halvings
}
