//! Logits against PyTorch and Hugging Face transformers: every family, RoPE scaling and weight type.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::path::Path;

use amem_core::Dtype;
use amem_core::Sampling;
use amem_core::transformer::{Options, Transformer};
use amem_cpu::Cpu;

const TOLERANCE: f32 = 1e-4;

fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_equal_those_of_an_independent_implementation() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases");
    let mut failures = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&cases).unwrap() {
        let case = entry.unwrap().file_name().into_string().unwrap();
        let (tokens, logits) = common::expected(&cases.join(&case).join("golden.safetensors"));
        let model = common::golden(&case, Cpu::with_threads(2).unwrap(), Dtype::F32);
        let error = worst(&model.score(&tokens).unwrap(), &logits);
        println!("{case}: {error:.2e}");
        count += 1;
        if error.is_nan() || error > TOLERANCE {
            failures.push(format!("{case}: off by {error}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(count, 14);
}

#[test]
fn the_demo_models_logits_equal_those_of_an_independent_implementation() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/demo.safetensors");
    let (tokens, logits) = common::expected(&golden);
    let mut options = Options::default();
    options.kv = Dtype::F32;
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model/model");
    let files = common::directory(&model);
    let chat = Box::new(common::Numbers);
    let model = Transformer::with_chat(&files, Cpu::new().unwrap(), options, chat, Sampling::default()).unwrap();
    let all = model.score(&tokens).unwrap();
    let error = worst(&all[all.len() - logits.len()..], &logits);
    println!("demo: {error:.2e}");
    assert!(error <= TOLERANCE, "off by {error}");
}
