//! Any bytes pass for what residency policies have saved as far as they are sound, and a policy that loaded them decides as
//! one that loads what it saves.
#![no_main]

use std::collections::BTreeSet;
use std::sync::Arc;

use amem_core::residency::{Access, ResidencyPolicy, Room};
use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, KvStore, PrefixId, RamStore, Tier, Tiered};
use amem_fuzz::policy;
use futures_lite::future::block_on;
use libfuzzer_sys::fuzz_target;

// Which policy, in one byte; what is done with it, in eight; what it is to load.
fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let Some((steps, saved)) = rest.split_first_chunk::<8>() else { return };
    match policy(*kind).zip(policy(*kind)) {
        Some((one, other)) => check(one, other, saved, steps),
        None => check_file(saved),
    }
});

fn check(mut one: Box<dyn ResidencyPolicy>, mut other: Box<dyn ResidencyPolicy>, saved: &[u8], steps: &[u8]) {
    let restored = one.restore(saved);
    let mut held: BTreeSet<ChunkId> = restored.iter().copied().collect();
    assert_eq!(held.len(), restored.len(), "each chunk is named once");
    assert!(32 * held.len() <= saved.len());
    let again = one.save();
    assert_eq!(other.restore(&again).into_iter().collect::<BTreeSet<_>>(), held);
    assert_eq!(other.save(), again);
    for step in steps {
        let old = held.iter().nth(usize::from(step >> 2) % held.len().max(1)).copied();
        let chunk = old.filter(|_| step % 4 > 0).unwrap_or(ChunkId([step >> 5; 32]));
        let (relevance, bytes) = (f32::from(*step) / 255.0, u64::from(*step));
        let access = Access { chunk, relevance, bytes, cost: relevance, time: 0.0 };
        let is_held = held.contains(&chunk);
        match step % 4 {
            0 if !is_held => {
                assert_eq!(one.wants(&chunk), other.wants(&chunk));
                let admits = one.admits(&access);
                assert_eq!(admits, other.admits(&access));
                if admits {
                    for policy in [&mut one, &mut other] {
                        policy.insert(access);
                    }
                    held.insert(chunk);
                }
            }
            0 | 1 if is_held => _ = [&mut one, &mut other].map(|policy| policy.touch(access)),
            2 if is_held => {
                for policy in [&mut one, &mut other] {
                    policy.remove(&chunk);
                }
                held.remove(&chunk);
            }
            _ => {
                let leased = |leased: &ChunkId| *leased == chunk;
                let room = Room::new(bytes, 0.0).except(&leased);
                let victim = one.victim(&room);
                assert_eq!(victim, other.victim(&room));
                let may_leave = |held: &ChunkId| *held != chunk;
                match victim {
                    Some(victim) => assert!(held.contains(&victim) && may_leave(&victim)),
                    None => assert!(!held.iter().any(may_leave)),
                }
            }
        }
    }
    while let Some(victim) = one.victim(&Room::new(1, 0.0)) {
        assert_eq!(other.victim(&Room::new(1, 0.0)), Some(victim));
        for policy in [&mut one, &mut other] {
            policy.remove(&victim);
        }
        assert!(held.remove(&victim), "a victim is in the tier");
    }
    assert!(held.is_empty(), "each chunk can leave");
}

fn check_file(bytes: &[u8]) {
    let Some(saved) = amem_store::fuzzing::residency(bytes) else { return };
    assert_eq!(amem_store::fuzzing::residency_file(&saved).as_deref(), Some(bytes));
    let (shape, encoding) = (KvShape { layers: 1, kv_heads: 1, head_dim: 2 }, Encoding::Plain(Dtype::F16));
    let chunk = |name: u8| {
        let data = Arc::new(HostKv::new(encoding, 1, vec![name; encoding.bytes(&shape, 1)]));
        KvChunk::new(ChunkId([name; 32]), PrefixId([0; 32]), shape, [0].into(), data).expect("it is a chunk")
    };
    block_on(async {
        let store = Arc::new(RamStore::default());
        store.put(&[chunk(0), chunk(1)]).await.expect("RAM takes it");
        let tier = |saved| Tier::new(store.clone(), 3 * encoding.bytes(&shape, 1) as u64).residency(saved);
        let first = saved.into_iter().next().unwrap_or_default();
        let tiers = Tiered::open(vec![tier(first)]).await.expect("whatever was saved, it opens");
        tiers.put(&[chunk(2), chunk(3)]).await.expect("there is room for one and for another that leaves");
        assert!(store.stats().await.chunks <= 3);
        assert!(tiers.get(&chunk(3).id()).await.is_ok());
        tiers.save_residency();
    });
}
