//! The tier of KV in the GPU's memory.

use std::sync::Arc;

use amem_core::{Memory, RamStore, Tier, Tiered, testing};
use amem_cuda::Precision;
use amem_cuda_simulator::in_simulator;
use futures_lite::future::block_on;

use crate::{common, open_as_it_is};

#[test]
fn the_gpus_memory_is_a_store() {
    in_simulator("store::the_gpus_memory_is_a_store", &[], || {
        let gpu = open_as_it_is(Precision::F16);
        testing::kv_store(|| gpu.kv_store());
    });
}

#[test]
fn answers_are_the_same_from_kv_of_every_tier() {
    in_simulator("store::answers_are_the_same_from_kv_of_every_tier", &[], || {
        block_on(async {
            let gpu = open_as_it_is(Precision::F16);
            let model = Arc::new(common::demo(gpu.clone(), Precision::F16.dtype()));
            let mut answers = Vec::new();
            for on_gpu in [false, true] {
                let ram = Arc::new(RamStore::default());
                let mut tiers = vec![Tier::new(ram.clone(), 64 << 20)];
                if on_gpu {
                    tiers.insert(0, Tier::new(Arc::new(gpu.kv_store()), 16 << 20));
                }
                let kv = Arc::new(Tiered::open(tiers).await.unwrap());
                let memory = Memory::builder(model.clone()).kv(kv).build().unwrap();
                memory.remember_all("you", ["Alice lives in Denver.", "Bob is a nurse."]).await.unwrap();
                memory.prefill("you", |_, _| {}).await.unwrap();
                for _ in 0..2 {
                    let answer = memory.ask("you", "Where does Alice live?").await.unwrap();
                    assert_eq!(answer.usage.missed, 0, "the notes' KV is there");
                    answers.push(answer.text);
                }
            }
            assert_eq!(answers, vec!["Alice lives in Denver."; 4]);
        });
    });
}
