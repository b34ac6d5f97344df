//! Which instructions a CPU has and how many threads compute decides how long a model takes, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use amem_core::transformer::Transformer;
use amem_core::{Budget, Dtype, Model, Piece, Repair};
use amem_cpu::{Cpu, CpuOptions, Instructions, WeightFormat};
use common::prompts::{PREFIX, bits, prefill, text};

/// What a model makes of a prompt with memories: their KV and sensitivity, and the logits, to the bit.
fn everything(model: &Transformer<Cpu>) -> (Vec<Vec<u8>>, Vec<u32>, Vec<u32>) {
    let texts = [text(1, 1), text(2, 19), text(3, 40)];
    let (memories, _) = prefill(model, &PREFIX, &texts, true);
    let kv = memories.iter().map(|memory| memory.to_bytes().unwrap()).collect();
    let measured = memories.iter().flat_map(|memory| memory.sensitivity().unwrap().to_vec());
    let sensitivity = measured.map(f32::to_bits).collect();
    let cached = memories.into_iter().rev().map(Piece::Cached);
    let prompt: Vec<Piece> = cached.chain([Piece::Fresh(text(4, 11))]).collect();
    let repair = Repair::Weighted { budget: Budget::Ratio(0.3), layers: 1..2 };
    let (context, _) = model.blend(&prompt, &repair).unwrap();
    (kv, sensitivity, bits(&*context))
}

#[test]
fn in_exact_arithmetic_all_instruction_sets_and_any_number_of_threads_give_the_same_bits() {
    let available = || Instructions::ALL.into_iter().filter(|set| set.is_available());
    let cases = ["llama3", "llama-bf16", "qwen3-tied-f16", "mistral-sliding", "llama-yarn", "gemma2", "qwen3-moe"];
    for case in cases {
        let on = |cpu| everything(&common::golden(case, cpu, Dtype::Bf16));
        let expected = on(common::exact(Some(Instructions::Portable), 1));
        for instructions in available() {
            assert!(on(common::exact(Some(instructions), 2)) == expected, "{case} with {instructions:?}");
        }
    }
    // Only the demo model has enough to do for several threads.
    let on = |cpu| everything(&common::demo(cpu, Dtype::F16));
    let expected = on(common::exact(Some(Instructions::Portable), 1));
    for threads in [1, 2, 3] {
        assert!(on(common::exact(None, threads)) == expected, "the demo model with {threads} threads");
    }
}

#[test]
fn fast_arithmetic_does_not_depend_on_the_number_of_threads() {
    for weights in [WeightFormat::AsStored, WeightFormat::Int8, WeightFormat::Int4] {
        let on = |threads| {
            let options = CpuOptions::default().weights(weights).threads(threads);
            everything(&common::demo(Cpu::open(options).unwrap(), Dtype::F16))
        };
        let expected = on(1);
        for threads in [2, 3] {
            assert!(on(threads) == expected, "{weights:?} with {threads} threads");
        }
    }
}
