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

/// FNV-1a, by Glenn Fowler, Landon Curt Noll and Kiem-Phong Vo.
fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The hashes say nothing of whether the bits are right, of which the golden logits know: they are those of one machine, and what
/// counts is that all others have them too. Whoever changes the order of sums in exact arithmetic writes them anew.
#[test]
fn in_exact_arithmetic_machines_of_all_architectures_give_the_same_bits() {
    let expected = [
        ("llama3", 0x3ac3_2612_51f7_73c0),
        ("llama-bf16", 0x63b4_d235_76bc_77c3),
        ("llama-yarn", 0x6b31_c022_b03d_da3f),
        ("qwen2-sliding", 0x465b_e2ea_f93e_7971),
        ("qwen3", 0x79ba_c0b0_68ce_d46e),
        ("gemma2", 0xcc73_432c_bfcd_3623),
        ("gemma3", 0xc2ca_635f_5bd6_3a2b),
        ("phi3-longrope", 0xbba8_643d_3398_528e),
        ("smollm3", 0x63c5_75f4_6363_2d5d),
        ("olmo2", 0xdf57_f7cd_1545_c08c),
        ("granite", 0x6957_ae14_cb0d_df4f),
        ("mixtral", 0x31bd_642b_73b3_6444),
        ("qwen3-moe", 0x52eb_3540_67e1_e64c),
    ];
    let mut failures = Vec::new();
    for (case, expected) in expected {
        let model = common::golden(case, common::exact(None, 1), Dtype::F16);
        let (kv, sensitivity, logits) = everything(&model);
        let numbers = sensitivity.into_iter().chain(logits).flat_map(u32::to_le_bytes);
        let found = hash(kv.concat().into_iter().chain(numbers));
        if found != expected {
            failures.push(format!("(\"{case}\", {found:#018x}),"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
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
