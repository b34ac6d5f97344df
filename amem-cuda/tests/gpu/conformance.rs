//! The suites of amem-core.

use amem_core::Dtype;
use amem_core::testing::{self, Profile};
use amem_core::transformer::{Encoder, EncoderOptions, Purpose};
use amem_cuda::Precision;
use amem_cuda_simulator::in_simulator;
use futures_lite::future::block_on;

use crate::{common, open};

/// What may be expected of a precision: some units in its last place, for sums of hundreds of rounded numbers.
fn profile(precision: Precision, head_dims: &[usize]) -> Profile {
    let mut profile = Profile::default();
    profile.head_dims = head_dims.to_vec();
    profile.caches = vec![precision.dtype()];
    profile.alignment = 8;
    let rounding = match precision {
        Precision::Bf16 => 1.0 / 256.0,
        Precision::F16 => 1.0 / 2048.0,
        Precision::F32 => 0.0,
    };
    profile.tolerance = 5e-5 + 8.0 * rounding;
    (profile.embedding, profile.activations) = (rounding, rounding);
    profile
}

fn is_a_backend(precision: Precision, head_dims: &[usize]) {
    testing::backend(&profile(precision, head_dims), || open(precision));
}

#[test]
fn in_f32_it_is_a_backend() {
    in_simulator("conformance::in_f32_it_is_a_backend", &[], || is_a_backend(Precision::F32, &[2, 20, 64]));
}

#[test]
fn in_f16_it_is_a_backend() {
    in_simulator("conformance::in_f16_it_is_a_backend", &[], || is_a_backend(Precision::F16, &[64, 80]));
}

#[test]
fn in_bf16_it_is_a_backend() {
    in_simulator("conformance::in_bf16_it_is_a_backend", &[], || is_a_backend(Precision::Bf16, &[96, 128]));
}

#[test]
#[ignore = "every size of heads in every precision takes a simulator minutes"]
fn it_is_a_backend_for_every_size_of_heads() {
    in_simulator("conformance::it_is_a_backend_for_every_size_of_heads", &[], || {
        is_a_backend(Precision::F32, &[2, 16, 20, 64, 80, 96, 128, 256]);
        is_a_backend(Precision::F16, &[64, 80, 96, 128, 256]);
        is_a_backend(Precision::Bf16, &[64, 80, 96, 128, 256]);
    });
}

/// Attention in both directions, layer norms and GELU.
#[test]
fn encoders_have_the_vectors_of_an_independent_implementation_on_it() {
    in_simulator("conformance::encoders_have_the_vectors_of_an_independent_implementation_on_it", &[], || {
        for case in ["bert", "nomic"] {
            let files = common::encoders::files(case);
            let encoder = Encoder::load(&files, open(Precision::F32), EncoderOptions::default()).unwrap();
            let golden = common::encoders::golden(case);
            let texts: Vec<&str> = golden.iter().map(|golden| golden.text.as_str()).collect();
            let found = block_on(encoder.encode(&texts, Purpose::Plain)).unwrap();
            for (found, golden) in found.iter().zip(&golden) {
                let off = found.vector.iter().zip(&golden.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 2e-5, "{case}, {:?}: off by {off}", golden.text);
            }
        }
    });
}

#[test]
fn every_family_is_a_model_on_it() {
    in_simulator("conformance::every_family_is_a_model_on_it", &[], || {
        for case in ["gemma2", "mistral-sliding", "mixtral", "qwen2-tied-bf16", "qwen3"] {
            testing::model(|| common::golden(case, open(Precision::F32), Dtype::F32));
        }
    });
}
