//! What fast arithmetic and weights of few bits change, against exact f32: bounds on the logits of every golden model and on
//! the answers of the demo model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::path::Path;

use amem_core::Dtype;
use amem_cpu::{Cpu, CpuOptions, WeightFormat};

fn cpu(weights: WeightFormat) -> Cpu {
    Cpu::open(CpuOptions::default().threads(2).weights(weights)).unwrap()
}

/// The cosine between two lists of logits.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn logits_of_every_family_stay_close_to_those_of_exact_arithmetic() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases");
    let mut failures = Vec::new();
    for case in std::fs::read_dir(cases).unwrap() {
        let case = case.unwrap().file_name().into_string().unwrap();
        let (tokens, logits) = common::expected(&common::case(&case).join("golden.safetensors"));
        // Where experts compete, a rounded row may go through another one.
        let of_bytes = if matches!(&*case, "mixtral" | "qwen3-moe" | "qwen3-moe-normalised") { 0.99 } else { 0.9985 };
        for (weights, least) in [(WeightFormat::AsStored, 0.999), (WeightFormat::Int8, of_bytes)] {
            let model = common::golden_for(&case, cpu(weights), Dtype::F32, tokens.len()).unwrap();
            let found = model.score(&tokens).unwrap();
            let cosine = cosine(&found, &logits);
            println!("{case} {weights:?}: {cosine:.6}");
            if cosine.is_nan() || cosine < least {
                failures.push(format!("{case} {weights:?}: the cosine is {cosine}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
