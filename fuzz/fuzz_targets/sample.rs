//! Any scores under any settings give a token that is possible, or an error.
#![no_main]

use amem_core::{Sampler, Sampling, Token};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Case {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    seed: u64,
    logits: Vec<f32>,
    seen: Vec<Token>,
}

fuzz_target!(|case: Case| {
    let Case { temperature, top_k, top_p, min_p, repetition_penalty, seed, logits, seen } = case;
    let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed };
    let Ok(mut sampler) = Sampler::new(&sampling) else { return };
    for _ in 0..4 {
        let Ok(token) = sampler.pick(&logits, &seen) else { return };
        let score = logits[token as usize];
        assert!(!score.is_nan() && score > f32::NEG_INFINITY, "token {token} has the score {score}");
    }
});
