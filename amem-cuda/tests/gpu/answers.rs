//! The demo model on the GPU.

use std::sync::Arc;

use amem_core::{Dtype, Memory};
use amem_cpu::Cpu;
use amem_cuda::Precision;
use amem_cuda_simulator::in_simulator;
use futures_lite::future::block_on;

use crate::compare::compare;
use crate::{common, open_as_it_is};

fn the_same_tokens(precision: Precision, tolerance: f32) {
    let cpu = common::demo(Cpu::with_threads(2).unwrap(), precision.dtype());
    compare(&format!("{precision:?}"), &cpu, &common::demo(open_as_it_is(precision), precision.dtype()), tolerance);
}

#[test]
fn in_f32_every_repair_gives_the_cpus_tokens() {
    in_simulator("answers::in_f32_every_repair_gives_the_cpus_tokens", &[], || the_same_tokens(Precision::F32, 1e-4));
}

#[test]
fn in_f16_every_repair_gives_the_cpus_tokens() {
    in_simulator("answers::in_f16_every_repair_gives_the_cpus_tokens", &[], || the_same_tokens(Precision::F16, 6e-3));
}

#[test]
fn in_bf16_every_repair_gives_the_cpus_tokens() {
    in_simulator("answers::in_bf16_every_repair_gives_the_cpus_tokens", &[], || the_same_tokens(Precision::Bf16, 4e-2));
}

#[test]
fn a_memory_answers_on_it() {
    in_simulator("answers::a_memory_answers_on_it", &[], || {
        block_on(async {
            let model = common::demo(open_as_it_is(Precision::F16), Dtype::F16);
            let memory = Memory::builder(Arc::new(model)).build().unwrap();
            let notes = ["Alice lives in Denver.", "Alice's sister is Maria. She lives in Paris."];
            memory.remember_all("you", notes).await.unwrap();
            memory.prefill("you", |_, _| {}).await.unwrap();
            let answer = memory.ask("you", "Where does Alice's sister live?").await.unwrap();
            assert_eq!(answer.text, "Alice's sister Maria lives in Paris.");
            assert_eq!(answer.usage.missed, 0, "{:?}", answer.usage);
            assert!(answer.usage.reused() > 0, "{:?}", answer.usage);
        });
    });
}
