//! What is replayed.

use std::collections::HashSet;
use std::error::Error;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Use;

/// Tokens in a block of a trace.
const BLOCK: u32 = 512;
/// Memories of the small patterns.
const MEMORIES: usize = 60;
/// Those that are asked for most.
const FAVOURITES: usize = 8;

/// A pattern of a few memories, of 256 to 512 tokens, one of which each question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Four questions in five are about one of eight favourites, all others about any memory.
    Mixed,
    /// Memory `i` is asked for with weight `1 / (i + 1)^1.2`.
    Zipf,
    /// Every memory is asked for as often.
    Uniform,
    /// As [`Mixed`](Self::Mixed), but after 25 questions each, another memory takes the place of a favourite.
    Drift,
    /// As [`Mixed`](Self::Mixed), and after 50 questions each, 20 memories are read that nobody asks for again.
    Scan,
}

impl Pattern {
    /// All of them, each with its name and its number of questions.
    pub const ALL: [(&str, Self, usize); 5] = [
        ("mixed", Self::Mixed, 200),
        ("zipf", Self::Zipf, 200),
        ("uniform", Self::Uniform, 200),
        ("drift", Self::Drift, 1000),
        ("scan", Self::Scan, 1000),
    ];

    /// How likely a question is about each memory; `None` where that changes. Chunks beyond them are not asked for.
    pub fn odds(self) -> Option<Vec<f64>> {
        let odds = |rank: usize| match self {
            Self::Mixed | Self::Scan if rank < FAVOURITES => Some(0.8 / FAVOURITES as f64 + 0.2 / MEMORIES as f64),
            Self::Mixed | Self::Scan => Some(0.2 / MEMORIES as f64),
            Self::Zipf => Some(zipf_weight(rank) / (0..MEMORIES).map(zipf_weight).sum::<f64>()),
            Self::Uniform => Some(1.0 / MEMORIES as f64),
            Self::Drift => None,
        };
        (0..MEMORIES).map(odds).collect()
    }
}

fn zipf_weight(rank: usize) -> f64 {
    1.0 / (rank as f64 + 1.0).powf(1.2)
}

/// So many questions of a pattern.
pub fn small(pattern: Pattern, questions: usize, seed: u64) -> Vec<Use> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut tokens: Vec<u32> = (0..MEMORIES).map(|_| rng.random_range(256..=512)).collect();
    let mut by_rank: Vec<usize> = (0..MEMORIES).collect();
    let weights: Vec<f64> = (0..MEMORIES).map(zipf_weight).collect();
    let all: f64 = weights.iter().sum();
    let mut uses = Vec::new();
    let mut push = |chunk: usize, tokens: u32| {
        uses.push(Use { chunk: chunk as u32, tokens, cost: tokens as f32, relevance: 1.0, time: uses.len() as f64 });
    };
    for question in 1..=questions {
        let rank = match pattern {
            Pattern::Uniform => rng.random_range(0..MEMORIES),
            Pattern::Zipf => {
                let mut left = rng.random_range(0.0..all);
                let passed = weights.iter().take_while(|weight| {
                    left -= **weight;
                    left >= 0.0
                });
                passed.count().min(MEMORIES - 1)
            }
            _ if rng.random_bool(0.8) => rng.random_range(0..FAVOURITES),
            _ => rng.random_range(0..MEMORIES),
        };
        push(by_rank[rank], tokens[by_rank[rank]]);
        if pattern == Pattern::Drift && question.is_multiple_of(25) {
            by_rank.swap(rng.random_range(0..FAVOURITES), rng.random_range(FAVOURITES..MEMORIES));
        }
        if pattern == Pattern::Scan && question.is_multiple_of(50) {
            for _ in 0..20 {
                tokens.push(rng.random_range(256..=512));
                push(tokens.len() - 1, tokens[tokens.len() - 1]);
            }
        }
    }
    uses
}

/// A trace of requests as published with Mooncake (<https://github.com/kvcache-ai/Mooncake>), a line of JSON each:
/// `timestamp` in milliseconds, `input_length` in tokens, and `hash_ids`, one for each block of 512 tokens. Every block is
/// a chunk that costs its tokens.
///
/// # Errors
/// When a line is not such a request.
pub fn trace(text: &str) -> Result<Vec<Use>, Box<dyn Error>> {
    let mut uses = Vec::new();
    for line in text.lines() {
        let request: serde_json::Value = serde_json::from_str(line)?;
        let number = |key: &str| request[key].as_u64().ok_or(format!("{key} is missing: {line:.80}"));
        let (time, mut tokens) = (number("timestamp")? as f64 / 1e3, u32::try_from(number("input_length")?)?);
        for id in request["hash_ids"].as_array().ok_or("hash_ids is missing")? {
            let chunk = u32::try_from(id.as_u64().ok_or("an id is not a number")?)?;
            let block = tokens.clamp(1, BLOCK);
            tokens = tokens.saturating_sub(BLOCK);
            uses.push(Use { chunk, tokens: block, cost: block as f32, relevance: 1.0, time });
        }
    }
    Ok(uses)
}

/// A week of agents: 40 users, each asking mostly about a few favourite memories that change over time; now and then a
/// scan reads much once. Memories have 16 to 2,048 tokens.
pub fn agents(seed: u64, questions: usize) -> Vec<Use> {
    const USERS: usize = 40;
    const RECALLED: usize = 8;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut chunks: Vec<(u32, f32)> = Vec::new();
    let mut users: Vec<Vec<u32>> = (0..USERS)
        .map(|_| {
            let memories = rng.random_range(100..1500);
            (0..memories).map(|_| new_chunk(&mut chunks, &mut rng)).collect()
        })
        .collect();
    let mut uses = Vec::new();
    let mut time = 0.0;
    for question in 0..questions {
        time += rng.random_range(0.0..60.0);
        let mut push = |chunk: u32, relevance: f32| {
            let (tokens, cost) = chunks[chunk as usize];
            uses.push(Use { chunk, tokens, cost, relevance, time });
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
fn new_chunk(chunks: &mut Vec<(u32, f32)>, rng: &mut ChaCha8Rng) -> u32 {
    let tokens = rng.random_range(4.0_f64..11.0).exp2();
    let cost = tokens * (1.0 + tokens / 8192.0) * if rng.random_ratio(1, 3) { 0.2 } else { 1.0 };
    chunks.push((tokens as u32, cost as f32));
    chunks.len() as u32 - 1
}

/// A rank below `n`, the first being the most likely: about proportional to `1 / (rank + 1)`.
fn zipf(n: usize, rng: &mut ChaCha8Rng) -> usize {
    ((n as f64 + 1.0).powf(rng.random_range(0.0..1.0)) as usize - 1).min(n - 1)
}
