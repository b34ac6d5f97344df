//! Which chunks should stay when memory is short? Replays accesses against every residency policy of the crate and a
//! clairvoyant one, and prints how many tokens each would have to prefill.
//!
//! ```text
//! cargo run --release --example residency -- [--trace FILE]
//! ```
//!
//! It replays `mixed`, a synthetic week of an agent's life: many users, each asking mostly about a few favourite
//! memories that change over time; now and then a scan reads much once. `unsaid` is the same from an application that
//! tells nothing about relevance, which only Value listens to. A trace is a file of JSON lines as published with
//! Mooncake (<https://github.com/kvcache-ai/Mooncake>): `timestamp` in milliseconds, `input_length` in tokens, and
//! `hash_ids`, one for each block of 512 tokens.
//!
//! A figure is the work of the misses in tokens of prefill, relative to the clairvoyant's: least is best, and hardly
//! anything is below 1. "none" keeps nothing. The clairvoyant knows the future and lets go of the chunk with the least
//! cost per byte per request until its next use; with sizes that differ, that is close to the best, not the best.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::error::Error;

use amem_core::ChunkId;
use amem_core::residency::{Access, Gdsf, Lfu, Lru, ResidencyPolicy, S3Fifo, Value};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Bytes of one token's KV, in a model of about half a billion parameters.
const TOKEN_BYTES: u64 = 12 << 10;
/// Tokens in a block of the trace.
const BLOCK: u32 = 512;
/// Budgets, as shares of the bytes that all chunks occupy together.
const BUDGETS: [f64; 4] = [0.01, 0.05, 0.2, 0.5];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut patterns = vec![("mixed", mixed(1)), ("unsaid", unsaid(mixed(1)))];
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => {}
        (Some("--trace"), Some(file)) => patterns.push(("trace", trace(&std::fs::read_to_string(file)?)?)),
        _ => return Err("usage: residency [--trace FILE]".into()),
    }
    for (name, uses) in &patterns {
        compare(name, uses);
    }
    Ok(())
}

/// One use of a chunk.
#[derive(Clone, Copy)]
struct Use {
    chunk: u32,
    bytes: u64,
    cost: f32,
    relevance: f32,
    /// Seconds.
    time: f64,
}

impl Use {
    fn access(&self) -> Access {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&self.chunk.to_le_bytes());
        let Self { bytes, relevance, cost, time, .. } = *self;
        Access { chunk: ChunkId(id), relevance, bytes, cost, time }
    }
}

fn compare(name: &str, uses: &[Use]) {
    let footprint: u64 = uses.iter().map(|u| (u.chunk, u.bytes)).collect::<HashMap<_, _>>().values().sum();
    let total: f64 = uses.iter().map(|u| f64::from(u.cost)).sum();
    println!("\n{name}: {} uses of {:.1} GB", uses.len(), footprint as f64 / 1e9);
    print!("{:>7} {:>13}", "budget", "clairvoyant");
    const NAMES: [&str; 6] = ["none", "LRU", "LFU", "GDSF", "S3-FIFO", "Value"];
    NAMES.iter().for_each(|name| print!(" {name:>8}"));
    println!();
    for share in BUDGETS {
        let budget = (share * footprint as f64) as u64;
        let best = clairvoyant(uses, budget);
        print!("{:>6.0}% {best:>13.0}", 100.0 * share);
        print!(" {:>8.3}", total / best);
        let policies: [Box<dyn ResidencyPolicy>; 5] = [
            Box::<Lru>::default(),
            Box::<Lfu>::default(),
            Box::<Gdsf>::default(),
            Box::<S3Fifo>::default(),
            Box::<Value>::default(),
        ];
        for policy in policies {
            print!(" {:>8.3}", replay(uses, budget, policy) / best);
        }
        println!();
    }
}

/// What the misses cost under a policy, in tokens.
fn replay(uses: &[Use], budget: u64, mut policy: Box<dyn ResidencyPolicy>) -> f64 {
    let mut held: HashMap<ChunkId, u64> = HashMap::new();
    let (mut bytes, mut work) = (0, 0.0);
    for access in uses.iter().map(Use::access) {
        if held.contains_key(&access.chunk) {
            policy.touch(access);
            continue;
        }
        work += f64::from(access.cost);
        if access.bytes > budget {
            continue;
        }
        held.insert(access.chunk, access.bytes);
        bytes += access.bytes;
        policy.insert(access);
        while bytes > budget {
            let Some(victim) = policy.victim(access.time) else { break };
            policy.remove(&victim);
            bytes -= held.remove(&victim).unwrap_or_default();
        }
    }
    work
}

/// What the misses cost one who knows the future.
fn clairvoyant(uses: &[Use], budget: u64) -> f64 {
    let mut next = vec![usize::MAX; uses.len()];
    let mut seen = HashMap::new();
    for (at, u) in uses.iter().enumerate().rev() {
        next[at] = seen.insert(u.chunk, at).unwrap_or(usize::MAX);
    }
    // Chunks of about equal cost per byte (to an eighth of a doubling) compare by their next use alone.
    let class = |u: &Use| (8.0 * (f64::from(u.cost) / u.bytes as f64).log2()).round() as i64;
    let mut classes: BTreeMap<i64, BTreeSet<(usize, u32)>> = BTreeMap::new();
    let mut held: HashMap<u32, (i64, usize, u64)> = HashMap::new();
    let (mut bytes, mut work) = (0, 0.0);
    for (at, u) in uses.iter().enumerate() {
        match held.remove(&u.chunk) {
            Some((class, _, size)) => {
                classes.entry(class).or_default().remove(&(at, u.chunk));
                bytes -= size;
            }
            None => work += f64::from(u.cost),
        }
        bytes += u.bytes;
        classes.entry(class(u)).or_default().insert((next[at], u.chunk));
        held.insert(u.chunk, (class(u), next[at], u.bytes));
        while bytes > budget {
            let worth = |(class, next): (i64, usize)| (class as f64 / 8.0).exp2() / (next - at) as f64;
            let furthest = classes.iter().filter_map(|(class, set)| Some((*class, *set.last()?)));
            let Some((class, last)) = furthest.min_by(|a, b| worth((a.0, a.1.0)).total_cmp(&worth((b.0, b.1.0))))
            else {
                break;
            };
            classes.entry(class).or_default().remove(&last);
            bytes -= held.remove(&last.1).map_or(0, |(_, _, size)| size);
        }
    }
    work
}

/// A trace in Mooncake's format. Every block is a chunk that costs its tokens.
fn trace(text: &str) -> Result<Vec<Use>, Box<dyn Error>> {
    let mut uses = Vec::new();
    for line in text.lines() {
        let request: serde_json::Value = serde_json::from_str(line)?;
        let number = |key: &str| request[key].as_u64().ok_or(format!("{key} is missing: {line:.80}"));
        let (time, mut tokens) = (number("timestamp")? as f64 / 1e3, u32::try_from(number("input_length")?)?);
        for id in request["hash_ids"].as_array().ok_or("hash_ids is missing")? {
            let chunk = u32::try_from(id.as_u64().ok_or("an id is not a number")?)?;
            let block = tokens.clamp(1, BLOCK);
            tokens = tokens.saturating_sub(BLOCK);
            let bytes = u64::from(block) * TOKEN_BYTES;
            uses.push(Use { chunk, bytes, cost: block as f32, relevance: 1.0, time });
        }
    }
    Ok(uses)
}

/// Many users with favourites that change, bursts and scans; see the top of the file.
fn mixed(seed: u64) -> Vec<Use> {
    const USERS: usize = 40;
    const QUESTIONS: usize = 20_000;
    const RECALLED: usize = 8;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut chunks: Vec<(u64, f32)> = Vec::new();
    let mut users: Vec<Vec<u32>> = (0..USERS)
        .map(|_| {
            let memories = rng.random_range(100..1500);
            (0..memories).map(|_| new_chunk(&mut chunks, &mut rng)).collect()
        })
        .collect();
    let mut uses = Vec::new();
    let mut time = 0.0;
    for question in 0..QUESTIONS {
        time += rng.random_range(0.0..60.0);
        let mut push = |chunk: u32, relevance: f32| {
            let (bytes, cost) = chunks[chunk as usize];
            uses.push(Use { chunk, bytes, cost, relevance, time });
        };
        let user = zipf(USERS, &mut rng);
        if question % 150 == 149 {
            // A scan: an import, an audit, a summary of everything. Nothing in it is asked for again soon.
            let memories = &users[user];
            let start = rng.random_range(0..memories.len());
            (0..200.min(memories.len())).for_each(|i| push(memories[(start + i) % memories.len()], 0.2));
        } else {
            let memories = &users[user];
            let asked: HashSet<usize> = (0..RECALLED).map(|_| zipf(memories.len(), &mut rng)).collect();
            let mut asked: Vec<usize> = asked.into_iter().collect();
            asked.sort_unstable();
            asked.into_iter().for_each(|rank| push(memories[rank], rng.random_range(0.3..1.0)));
        }
        // Interests drift: some memories become favourites, the rest move down, and new ones come in.
        if rng.random_ratio(1, 10) {
            let memories = &mut users[user];
            let end = 20.min(memories.len());
            let risen = rng.random_range(0..memories.len());
            let chunk = memories.remove(risen);
            memories.insert(rng.random_range(0..end), chunk);
        }
        if rng.random_ratio(1, 4) {
            let chunk = new_chunk(&mut chunks, &mut rng);
            let place = rng.random_range(0..users[user].len());
            users[user].insert(place, chunk);
        }
    }
    uses
}

/// A chunk of 16 to 2,048 tokens, short ones being as common in each doubling as long ones. Attention makes a token of
/// a long chunk dearer, and every third chunk has a copy in a slower tier, which makes its miss cheap.
fn new_chunk(chunks: &mut Vec<(u64, f32)>, rng: &mut ChaCha8Rng) -> u32 {
    let tokens = rng.random_range(4.0_f64..11.0).exp2();
    let cost = tokens * (1.0 + tokens / 8192.0) * if rng.random_ratio(1, 3) { 0.2 } else { 1.0 };
    chunks.push((tokens as u64 * TOKEN_BYTES, cost as f32));
    chunks.len() as u32 - 1
}

/// A rank below `n`, the first being the most likely: about proportional to `1 / (rank + 1)`.
fn zipf(n: usize, rng: &mut ChaCha8Rng) -> usize {
    ((n as f64 + 1.0).powf(rng.random_range(0.0..1.0)) as usize - 1).min(n - 1)
}

/// The same uses by an application that says nothing about relevance.
fn unsaid(mut uses: Vec<Use>) -> Vec<Use> {
    uses.iter_mut().for_each(|u| u.relevance = 1.0);
    uses
}
