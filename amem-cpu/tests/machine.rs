//! Which instructions a CPU has and how many threads compute decides how long a model takes, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use amem_core::transformer::Transformer;
use amem_core::{Budget, Dtype, Model, Piece, Repair};
use amem_cpu::Cpu;
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
fn all_instruction_sets_and_any_number_of_threads_give_the_same_bits() {
    let portable = || Cpu::portable(1).unwrap();
    let with_threads = |threads| Cpu::with_threads(threads).unwrap();
    for case in ["llama3", "llama-bf16", "qwen3-tied-f16", "mistral-sliding", "llama-yarn"] {
        let on = |cpu| everything(&common::golden(case, cpu, Dtype::Bf16));
        let expected = on(portable());
        for threads in [1, 2, 3] {
            assert!(on(with_threads(threads)) == expected, "{case} with {threads} threads");
        }
    }
    // Only the demo model has enough to do for several threads.
    let on = |cpu| everything(&common::demo(cpu, Dtype::F16));
    let expected = on(portable());
    for threads in [1, 2, 3] {
        assert!(on(with_threads(threads)) == expected, "the demo model with {threads} threads");
    }
}
