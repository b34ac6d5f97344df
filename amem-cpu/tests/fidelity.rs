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
        // Where experts compete, a rounded row may go through another one: some rows are far off then, and the others are not.
        let of_bytes = match &*case {
            "mixtral" => (0.99, 0.9985),
            "qwen3-moe" | "qwen3-moe-normalised" => (0.99, 0.999),
            _ => (0.9985, 0.999),
        };
        for (weights, (of_all, of_most)) in [(WeightFormat::AsStored, (0.999, 0.999)), (WeightFormat::Int8, of_bytes)] {
            let model = common::golden_for(&case, cpu(weights), Dtype::F32, tokens.len()).unwrap();
            let found = model.score(&tokens).unwrap();
            let width = logits.len() / tokens.len();
            let rows = found.chunks_exact(width).zip(logits.chunks_exact(width));
            let mut of_rows: Vec<f64> = rows.map(|(found, logits)| cosine(found, logits)).collect();
            of_rows.sort_by(f64::total_cmp);
            let (all, median) = (cosine(&found, &logits), of_rows[of_rows.len() / 2]);
            println!("{case} {weights:?}: {all:.6} over all rows, {median:.6} of the median row");
            // NaN is in neither.
            if !(of_all..2.0).contains(&all) || !(of_most..2.0).contains(&median) {
                failures.push(format!("{case} {weights:?}: the cosine is {all}, that of the median row {median}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
