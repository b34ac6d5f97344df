use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Seeds of the goals. The policy's constants were not chosen by these.
const SEEDS: std::ops::Range<u64> = 0..10;
/// The goals' budget: ten times the least memory.
const BUDGET: u64 = 10 * 256;

/// Uses and the budget for them.
type Replay = (Vec<Use>, u64);

/// The work of the baselines and of [`Value`], in the order of [`POLICIES`], summed over replays.
fn works(replays: &[Replay]) -> Vec<f64> {
    let work = |make: MakePolicy| replays.iter().map(|(uses, budget)| replay(uses, *budget, make()).work).sum();
    POLICIES.iter().map(|(_, make)| work(*make)).collect()
}

fn seeds(pattern: Pattern, questions: usize, seeds: std::ops::Range<u64>, budget: u64) -> Vec<Replay> {
    seeds.map(|seed| (small(pattern, questions, seed), budget)).collect()
}

/// Uses under a budget of this share of what all chunks occupy.
fn with_share(uses: &[Use], share: f64) -> Replay {
    let sizes: HashMap<u32, u64> = uses.iter().map(|u| (u.chunk, u64::from(u.tokens))).collect();
    (uses.to_vec(), (share * sizes.values().sum::<u64>() as f64) as u64)
}

#[test]
fn value_is_near_the_clairvoyant_on_the_patterns_of_a_few_memories() {
    for (pattern, goal) in [(Pattern::Mixed, 1.22), (Pattern::Zipf, 1.20)] {
        let ratio = |seed| {
            let uses = small(pattern, 200, seed);
            replay(&uses, BUDGET, Box::<Value>::default()).work / clairvoyant(&uses, BUDGET, Fill::Always)
        };
        let mean = SEEDS.map(ratio).sum::<f64>() / SEEDS.count() as f64;
        assert!(mean <= goal, "{pattern:?}: {mean:.3} times the clairvoyant's work, more than {goal}");
    }
}

#[test]
fn value_has_less_to_prefill_than_every_baseline() {
    let mut traces: Vec<(&str, Vec<Replay>)> = Vec::new();
    for (name, pattern, questions) in Pattern::ALL.into_iter().filter(|(_, pattern, _)| *pattern != Pattern::Uniform) {
        traces.push((name, seeds(pattern, questions, SEEDS, BUDGET)));
    }
    traces.extend([0.05, 0.2].map(|share| ("agents", vec![with_share(&agents(1, 3000), share)])));
    for (name, replays) in &traces {
        let works = works(replays);
        for ((other, _), work) in POLICIES.iter().zip(&works[..POLICIES.len() - 1]) {
            let value = works[POLICIES.len() - 1];
            assert!(value < *work, "{name}: {value:.0} tokens to prefill, {other} has {work:.0}");
        }
    }
}

/// With memory for most of what is asked for, there is less to be had.
#[test]
fn with_more_memory_value_is_close_to_the_best_baseline() {
    for (name, pattern, questions) in Pattern::ALL.into_iter().filter(|(_, pattern, _)| *pattern != Pattern::Uniform) {
        for budget in [2 * BUDGET, 4 * BUDGET] {
            let works = works(&seeds(pattern, questions, SEEDS, budget));
            let value = works[POLICIES.len() - 1];
            for ((other, _), work) in POLICIES.iter().zip(&works) {
                assert!(value < 1.01 * work, "{name}, {budget}: {value:.0} tokens to prefill, {other} has {work:.0}");
            }
        }
    }
}

/// Questions of which all but a few are about eight memories; at every fifth, one of these makes way for another.
fn moving(seed: u64) -> Vec<Use> {
    const SET: usize = 8;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut memories: Vec<u32> = (0..60).collect();
    let ask = |question: u32| {
        if question.is_multiple_of(5) {
            memories.swap(rng.random_range(0..SET), rng.random_range(SET..60));
        }
        let rank = if rng.random_bool(0.95) { rng.random_range(0..SET) } else { rng.random_range(0..60) };
        Use { chunk: memories[rank], tokens: 300, cost: 300.0, relevance: 1.0, time: f64::from(question) }
    };
    (0..300).map(ask).collect()
}

/// LRU is right where interests move on fast. The policy has to find that out in less than the 300 questions that there are.
#[test]
fn a_working_set_that_moves_on_is_followed_almost_as_by_lru() {
    let works = works(&SEEDS.map(|seed| (moving(seed), 16 * 300)).collect::<Vec<Replay>>());
    let (lru, value) = (works[0], works[POLICIES.len() - 1]);
    assert!(value < 1.03 * lru, "{value:.0} tokens to prefill, LRU has {lru:.0}");
}

/// Conversations in which a chunk's next use is soon or never: there GDSF is better by some percent.
#[test]
fn on_conversations_value_is_close_to_the_best_baseline() {
    let uses = trace(&conversations()).unwrap();
    for share in [0.05, 0.2] {
        let works = works(&[with_share(&uses, share)]);
        let value = works[POLICIES.len() - 1];
        for ((other, _), work) in POLICIES.iter().zip(&works) {
            assert!(value < 1.05 * work, "{share}: {value:.0} tokens to prefill, {other} has {work:.0}");
        }
    }
}

/// Where no chunk is used more than another there is nothing to learn, and nothing to lose by trying.
#[test]
fn on_uniform_uses_all_policies_are_about_equal() {
    for budget in [BUDGET, 2 * BUDGET, 4 * BUDGET] {
        let works = works(&seeds(Pattern::Uniform, 200, 0..40, budget));
        let value = works[POLICIES.len() - 1];
        for ((other, _), work) in POLICIES.iter().zip(&works) {
            assert!((value / work - 1.0).abs() < 0.02, "{budget}: {value:.0} tokens to prefill, {other} has {work:.0}");
        }
    }
}

#[test]
fn nobody_beats_the_clairvoyant_by_much_and_demand_fill_costs_more() {
    for (_, pattern, questions) in Pattern::ALL {
        let uses = small(pattern, questions, 7);
        let [best, filled] = [Fill::IfWorthIt, Fill::Always].map(|fill| clairvoyant(&uses, BUDGET, fill));
        assert!(best < filled, "{pattern:?}");
        let first_uses: HashMap<u32, u32> = uses.iter().map(|u| (u.chunk, u.tokens)).collect();
        assert!(best >= f64::from(first_uses.values().sum::<u32>()), "{pattern:?}: every chunk is computed once");
        for (name, make) in POLICIES {
            assert!(replay(&uses, BUDGET, make()).work >= 0.99 * best, "{name} on {pattern:?}");
        }
    }
}

#[test]
fn a_trace_that_is_not_one_is_refused() {
    assert_eq!(trace(r#"{"timestamp": 5, "input_length": 600, "hash_ids": [0, 7]}"#).unwrap().len(), 2);
    for line in ["x", "{}", r#"{"timestamp": 5, "input_length": 600, "hash_ids": ["x"]}"#] {
        assert!(trace(line).is_err(), "{line}");
    }
}

/// A small trace in Mooncake's form: conversations about a few shared documents, in which each request repeats the one
/// before and adds to it. Most end soon.
fn conversations() -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut blocks = 0_u32;
    let mut new = |blocks_more: u32| {
        blocks += blocks_more;
        (blocks - blocks_more..blocks).collect::<Vec<u32>>()
    };
    let documents: Vec<Vec<u32>> = (0..100).map(|_| new(rng.random_range(1..20))).collect();
    let (mut lines, mut open) = (String::new(), Vec::<Vec<u32>>::new());
    for request in 0..3000 {
        let mut ids = if !open.is_empty() && rng.random_bool(0.5) {
            open.swap_remove(rng.random_range(0..open.len()))
        } else {
            // The first are the most popular.
            documents[rng.random_range(0..100_usize).min(rng.random_range(0..100))].clone()
        };
        ids.extend(new(rng.random_range(1..12)));
        let tokens = 512 * ids.len() - rng.random_range(0..500);
        lines += &format!("{{\"timestamp\": {}, \"input_length\": {tokens}, \"hash_ids\": {ids:?}}}\n", 300 * request);
        if open.len() < 200 && rng.random_bool(0.5) {
            open.push(ids);
        }
    }
    lines
}

#[test]
fn one_who_knows_the_odds_keeps_the_likely_chunks_and_a_part_of_the_next() {
    let ask = |chunk| Use { chunk, tokens: 10, cost: 10.0, relevance: 1.0, time: 0.0 };
    let uses = [0, 1, 2, 0, 1, 2].map(ask);
    let odds = [0.2, 0.5, 0.3];
    // All are misses once. Then 1 is held, and half of 2.
    assert_eq!(by_odds(&uses, &odds, 15), 30.0 + 10.0 + 0.0 + 5.0);
    // 2 has no odds: it leaves room for 0.
    assert_eq!(by_odds(&uses, &odds[..2], 15), 30.0 + 5.0 + 0.0 + 10.0);
    assert_eq!(by_odds(&uses, &odds, 30), 30.0);
}

#[test]
fn no_policy_without_foresight_beats_one_who_knows_the_odds() {
    // On `uniform` all are too close to the floor for so few seeds.
    for (name, pattern, questions) in Pattern::ALL.into_iter().filter(|(_, pattern, _)| *pattern != Pattern::Uniform) {
        let Some(odds) = pattern.odds() else { continue };
        assert!((odds.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{name}");
        let replays = seeds(pattern, questions, SEEDS, BUDGET);
        let floor: f64 = replays.iter().map(|(uses, budget)| by_odds(uses, &odds, *budget)).sum();
        let best: f64 = replays.iter().map(|(uses, budget)| clairvoyant(uses, *budget, Fill::IfWorthIt)).sum();
        assert!(best < floor, "{name}: the future is worth more than the odds");
        for ((policy, _), work) in POLICIES.iter().zip(works(&replays)) {
            assert!(work > floor, "{name}: {policy} has {work:.0} tokens to prefill, less than {floor:.0}");
        }
    }
}
