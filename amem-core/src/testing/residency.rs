//! What every [`ResidencyPolicy`] must do, whatever it prefers.

use std::collections::{BTreeSet, HashMap};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::residency::Room;
use crate::{Access, ChunkId, ResidencyPolicy};

/// Checks a policy, of which `make` gives a new one on each call.
///
/// ```
/// amem_core::testing::residency_policy(|| Box::new(amem_core::residency::Lru::default()));
/// ```
///
/// # Panics
/// When the policy breaks a promise of the trait; the message says which.
pub fn residency_policy(make: impl Fn() -> Box<dyn ResidencyPolicy>) {
    an_empty_tier_has_no_victim(make().as_mut());
    calls_about_unknown_chunks_do_no_harm(make().as_mut());
    numbers_that_make_no_sense_do_no_harm(make().as_mut());
    every_chunk_leaves_exactly_once(make().as_mut());
    for seed in 0..20 {
        victims_are_always_in_the_tier(make().as_mut(), seed);
    }
    a_leased_chunk_is_no_victim(make().as_mut());
    equal_histories_have_equal_victims(&make);
    what_is_restored_goes_on_as_what_was_saved(&make);
    saved_bytes_that_make_no_sense_do_no_harm(&make);
}

fn access(chunk: u16, time: f64) -> Access {
    // A few owners, with many chunks each.
    let mut id = [0; 32];
    id[0] = (chunk % 5) as u8;
    id[8..10].copy_from_slice(&chunk.to_le_bytes());
    let bytes = 1000 + u64::from(chunk % 7) * 500;
    Access { chunk: ChunkId(id), relevance: 0.5, bytes, cost: 10.0 + f32::from(chunk % 5), time }
}

fn an_empty_tier_has_no_victim(policy: &mut dyn ResidencyPolicy) {
    assert_eq!(policy.victim(&Room::new(1, 0.0)), None, "a new policy names a victim");
    policy.insert(access(1, 1.0));
    policy.remove(&access(1, 1.0).chunk);
    assert_eq!(policy.victim(&Room::new(1, 2.0)), None, "a policy names a victim after the last chunk has left");
}

fn calls_about_unknown_chunks_do_no_harm(policy: &mut dyn ResidencyPolicy) {
    policy.remove(&access(1, 0.0).chunk);
    policy.insert(access(2, 1.0));
    policy.insert(access(2, 2.0));
    policy.remove(&access(1, 0.0).chunk);
    assert_eq!(
        policy.victim(&Room::new(1, 3.0)),
        Some(access(2, 0.0).chunk),
        "the one chunk of the tier is not the victim"
    );
    policy.remove(&access(2, 0.0).chunk);
    assert_eq!(
        policy.victim(&Room::new(1, 4.0)),
        None,
        "a chunk that was inserted twice is there after it was removed"
    );
}

fn numbers_that_make_no_sense_do_no_harm(policy: &mut dyn ResidencyPolicy) {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0, f32::MAX];
    for (chunk, number) in (0..).zip(odd) {
        let odd = Access { relevance: number, cost: number, bytes: 0, ..access(chunk, 0.0) };
        policy.insert(odd);
        policy.touch(odd);
    }
    leave_one_by_one(policy, odd.len());
}

fn every_chunk_leaves_exactly_once(policy: &mut dyn ResidencyPolicy) {
    (0..500).for_each(|chunk| policy.insert(access(chunk, f64::from(chunk))));
    (0..500).step_by(3).for_each(|chunk| policy.touch(access(chunk, 500.0)));
    leave_one_by_one(policy, 500);
}

fn leave_one_by_one(policy: &mut dyn ResidencyPolicy, chunks: usize) {
    let mut left = std::collections::HashSet::new();
    while let Some(victim) = policy.victim(&Room::new(1, 1000.0)) {
        policy.remove(&victim);
        assert!(left.insert(victim), "{victim:?} leaves a second time");
    }
    assert_eq!(left.len(), chunks, "chunks that left");
}

/// Replays random calls next to a plain map that knows what is held.
fn victims_are_always_in_the_tier(policy: &mut dyn ResidencyPolicy, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut held = HashMap::new();
    for step in 0..2000 {
        let access = access(rng.random_range(0..200), f64::from(step));
        match rng.random_range(0..10) {
            0 => {
                policy.remove(&access.chunk);
                held.remove(&access.chunk);
            }
            1..=3 => match policy.victim(&Room::new(1, access.time)) {
                Some(victim) => {
                    assert!(held.contains_key(&victim), "seed {seed}, step {step}: {victim:?} is not in the tier");
                    // A tier may find that it has room after all, and let the victim stay.
                    if rng.random_ratio(2, 3) {
                        policy.remove(&victim);
                        held.remove(&victim);
                    }
                }
                None => assert!(held.is_empty(), "seed {seed}, step {step}: no victim though chunks are held"),
            },
            _ if held.insert(access.chunk, ()).is_some() => policy.touch(access),
            _ => policy.insert(access),
        }
    }
}

/// Chunks whose number is divisible by three are leased at first; then all of them, then none.
fn a_leased_chunk_is_no_victim(policy: &mut dyn ResidencyPolicy) {
    const CHUNKS: usize = 120;
    (0..CHUNKS as u16).for_each(|chunk| policy.insert(access(chunk, f64::from(chunk))));
    (0..CHUNKS as u16).step_by(2).for_each(|chunk| policy.touch(access(chunk, 200.0)));
    let is_leased = |chunk: &ChunkId| chunk.0[8].is_multiple_of(3);
    let mut left = 0;
    while let Some(victim) = policy.victim(&Room::new(1500, 300.0).except(&is_leased)) {
        assert!(!is_leased(&victim), "{victim:?} is leased and named as a victim");
        policy.remove(&victim);
        left += 1;
    }
    assert_eq!(left, CHUNKS - CHUNKS / 3, "chunks that left while others were leased");
    assert_eq!(policy.victim(&Room::new(1, 301.0).except(&|_| true)), None, "a victim though all chunks are leased");
    leave_one_by_one(policy, CHUNKS / 3);
}

/// A replay gives the same victims: no policy may depend on the order of a hash map.
fn equal_histories_have_equal_victims(make: &impl Fn() -> Box<dyn ResidencyPolicy>) {
    let history = || {
        let (mut policy, mut victims, mut let_in) = (make(), Vec::new(), Vec::new());
        for chunk in 0..300 {
            let_in.push(policy.admits(&access(chunk, f64::from(chunk))));
            let_in.push(policy.wants(&access(chunk, 0.0).chunk));
            policy.insert(access(chunk, f64::from(chunk)));
            if chunk >= 50 {
                let victim = policy.victim(&Room::new(1, f64::from(chunk)));
                victim.iter().for_each(|victim| policy.remove(victim));
                victims.push(victim);
            }
        }
        (victims, let_in)
    };
    let [(victims, let_in), (victims_again, let_in_again)] = [history(), history()];
    assert_eq!(victims, victims_again, "two policies with the same history name different victims");
    assert_eq!(let_in, let_in_again, "two policies with the same history let in or want different chunks");
}

/// A policy that saves nothing restores nothing; one that does takes up where it was.
fn what_is_restored_goes_on_as_what_was_saved(make: &impl Fn() -> Box<dyn ResidencyPolicy>) {
    let mut policy = make();
    for step in 0..400 {
        let access = access(step * 7 % 150, f64::from(step));
        policy.admits(&access);
        if step >= 150 {
            policy.touch(access)
        } else {
            policy.insert(access)
        }
        if step % 5 == 4
            && let Some(victim) = policy.victim(&Room::new(1, access.time))
        {
            policy.remove(&victim);
        }
    }
    let (saved, mut restored) = (policy.save(), make());
    let mut held = restored.restore(&saved);
    if saved.is_empty() {
        assert!(held.is_empty(), "chunks are restored from nothing");
        return;
    }
    same_chunks_leave(policy.as_mut(), restored.as_mut(), &mut held);
    for seed in 0..5 {
        same_calls_have_same_answers(make, seed, 300, 3000);
    }
    // Far more chunks come and go than are held: however much a policy remembers of them, it can restore what it saved.
    same_calls_have_same_answers(make, 5, 5000, 5000);
}

/// Empties both policies side by side.
fn same_chunks_leave(policy: &mut dyn ResidencyPolicy, restored: &mut dyn ResidencyPolicy, held: &mut [ChunkId]) {
    let mut left = Vec::new();
    while let Some(victim) = policy.victim(&Room::new(1, 1000.0)) {
        assert_eq!(restored.victim(&Room::new(1, 1000.0)), Some(victim), "a restored policy names another victim");
        policy.remove(&victim);
        restored.remove(&victim);
        left.push(victim);
    }
    assert_eq!(
        restored.victim(&Room::new(1, 1000.0)),
        None,
        "a restored policy holds chunks that the saved one did not"
    );
    left.sort_unstable();
    held.sort_unstable();
    assert_eq!(held, left, "restore names the chunks that were in the tier");
}

/// A policy that is saved and restored after half of so many uses, and the same one without that, in a tier of 60 chunks.
fn same_calls_have_same_answers(make: &impl Fn() -> Box<dyn ResidencyPolicy>, seed: u64, chunks: u16, uses: u16) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut policy, mut restored, mut held) = (make(), make(), BTreeSet::new());
    for step in 0..uses {
        if step == uses / 2 {
            restored = make();
            let there: BTreeSet<ChunkId> = restored.restore(&policy.save()).into_iter().collect();
            assert_eq!(there, held, "of {chunks} chunks that came and went, others are restored than were in the tier");
        }
        // Some chunks are used more often than others.
        let access = access(rng.random_range(0..chunks).min(rng.random_range(0..chunks)), f64::from(step));
        if held.contains(&access.chunk) {
            policy.touch(access);
            restored.touch(access);
            continue;
        }
        let wanted = policy.wants(&access.chunk);
        assert_eq!(restored.wants(&access.chunk), wanted, "seed {seed}: a restored policy wants other chunks");
        let admitted = policy.admits(&access);
        assert_eq!(restored.admits(&access), admitted, "seed {seed}: a restored policy lets in other chunks");
        if admitted {
            policy.insert(access);
            restored.insert(access);
            held.insert(access.chunk);
        }
        if held.len() > 60 {
            let victim = policy.victim(&Room::new(1, access.time));
            assert_eq!(
                restored.victim(&Room::new(1, access.time)),
                victim,
                "seed {seed}: a restored policy names another victim"
            );
            if let Some(victim) = victim {
                policy.remove(&victim);
                restored.remove(&victim);
                held.remove(&victim);
            }
        }
    }
}

fn saved_bytes_that_make_no_sense_do_no_harm(make: &impl Fn() -> Box<dyn ResidencyPolicy>) {
    let mut policy = make();
    (0..20).for_each(|chunk| policy.insert(access(chunk, f64::from(chunk))));
    let saved = policy.save();
    for len in 0..saved.len() {
        let mut restored = make();
        assert_eq!(restored.restore(&saved[..len]), [], "chunks are restored from {len} of {} bytes", saved.len());
        assert_eq!(restored.victim(&Room::new(1, 0.0)), None, "bytes that make no sense restore nothing");
    }
    for at in 0..saved.len() {
        let mut bytes = saved.clone();
        bytes[at] ^= 0xff;
        let mut restored = make();
        let held: std::collections::HashSet<ChunkId> = restored.restore(&bytes).into_iter().collect();
        restored.insert(access(100, 2000.0));
        restored.touch(access(100, 2001.0));
        leave_one_by_one(restored.as_mut(), held.len() + 1);
    }
}
