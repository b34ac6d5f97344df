//! Any scores under any settings give a token that is possible, or an error.
#![no_main]

use std::collections::BTreeMap;

use amem_core::{Sampler, Sampling, Token, TokenLogprob};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Case {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    logit_bias: BTreeMap<Token, f32>,
    seed: u64,
    logits: Vec<f32>,
    seen: Vec<Token>,
}

fuzz_target!(|case: Case| {
    let Case {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        seed,
        logits,
        seen,
    } = case;
    let mut sampling = Sampling::default();
    (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) = (temperature, top_k, top_p, min_p);
    (sampling.repetition_penalty, sampling.seed) = (repetition_penalty, seed);
    (sampling.frequency_penalty, sampling.presence_penalty) = (frequency_penalty, presence_penalty);
    sampling.logit_bias = logit_bias;
    let Ok(mut sampler) = Sampler::new(&sampling) else { return };
    for _ in 0..4 {
        let Ok(token) = sampler.pick(&logits, &seen) else { return };
        let score = logits[token as usize];
        let logprob = TokenLogprob::of(&logits, token, 3);
        assert!(logprob.logprob <= 0.0 && logprob.top.len() == logits.len().min(3), "{logprob:?}");
        assert!(!score.is_nan() && score > f32::NEG_INFINITY, "token {token} has the score {score}");
    }
});
