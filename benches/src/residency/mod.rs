//! Replays uses of chunks against residency policies, and against the best that can be had.

mod clairvoyant;
mod patterns;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use amem_core::residency::{Gdsf, Lfu, Lru, Room, S3Fifo, Value};
use amem_core::{Access, ChunkId, ResidencyPolicy};
pub use clairvoyant::{Fill, by_odds, clairvoyant};
pub use patterns::{Pattern, agents, small, trace};

/// One use of a chunk.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// The chunk's number.
    pub chunk: u32,
    /// Its tokens.
    pub tokens: u32,
    /// What a miss costs, in tokens of prefill.
    pub cost: f32,
    /// How much it matters to what is asked.
    pub relevance: f32,
    /// Seconds.
    pub time: f64,
}

impl Use {
    fn access(&self) -> Access {
        // Ids are hashes: a multiplication spreads the numbers well enough.
        let word = u64::from(self.chunk).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let chunk = ChunkId(std::array::from_fn(|byte| word[byte % 8]));
        Access { chunk, relevance: self.relevance, bytes: u64::from(self.tokens), cost: self.cost, time: self.time }
    }
}

/// Makes a policy.
pub type MakePolicy = fn() -> Box<dyn ResidencyPolicy>;

/// The policies that compete: the baselines, and [`Value`] last.
pub const POLICIES: [(&str, MakePolicy); 5] = [
    ("LRU", || Box::<Lru>::default()),
    ("LFU", || Box::<Lfu>::default()),
    ("GDSF", || Box::<Gdsf>::default()),
    ("S3-FIFO", || Box::<S3Fifo>::default()),
    ("Value", || Box::<Value>::default()),
];

/// What a replay came to. Tokens stand for bytes, too: a token's KV is of one size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replayed {
    /// Uses that found their chunk.
    pub hits: usize,
    /// All uses.
    pub uses: usize,
    /// What the misses cost, in tokens of prefill.
    pub work: f64,
    /// Tokens that came into the tier and stayed for another use at least.
    pub inserted: u64,
    /// Tokens that left it for others.
    pub evicted: u64,
    /// Time that all of it took.
    pub time: Duration,
}

/// Replays uses in a tier with a budget of so many tokens.
pub fn replay(uses: &[Use], budget: u64, mut policy: Box<dyn ResidencyPolicy>) -> Replayed {
    let mut held: HashMap<ChunkId, u64> = HashMap::new();
    let mut replayed = Replayed { uses: uses.len(), ..Replayed::default() };
    let mut tokens = 0;
    let started = Instant::now();
    for access in uses.iter().map(Use::access) {
        if held.contains_key(&access.chunk) {
            replayed.hits += 1;
            policy.touch(access);
            continue;
        }
        replayed.work += f64::from(access.cost);
        if access.bytes > budget || !policy.admits(&access) {
            continue;
        }
        held.insert(access.chunk, access.bytes);
        tokens += access.bytes;
        policy.insert(access);
        let mut evicted = 0;
        while tokens > budget {
            let Some(victim) = policy.victim(&Room::new(tokens - budget, access.time)) else { break };
            policy.remove(&victim);
            let size = held.remove(&victim).unwrap_or_default();
            tokens -= size;
            evicted += size;
        }
        // What was let go at once was never written.
        let passed_by = if held.contains_key(&access.chunk) { 0 } else { access.bytes };
        replayed.inserted += access.bytes - passed_by;
        replayed.evicted += evicted - passed_by;
    }
    replayed.time = started.elapsed();
    replayed
}
