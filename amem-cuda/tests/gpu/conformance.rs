//! The suites of amem-core.

use amem_core::Dtype;
use amem_core::testing::{self, Profile};
use amem_core::transformer::{
    Activation, Backend, Encoder, EncoderOptions, ExpertWeights, Linear, MlpWeights, Purpose, WeightRole, WeightTensor,
};
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

/// cuBLASLt may split a sum, and round its parts to the type of the result if nobody forbids it.
#[test]
fn sums_of_products_of_many_rows_are_rounded_once() {
    in_simulator("conformance::sums_of_products_of_many_rows_are_rounded_once", &[], || {
        let gpu = open(Precision::Bf16);
        // The halves of the sum are 257 and -256. In bf16 257 is 256.
        let mut weights = vec![0f32; 8 * 1024];
        for row in weights.chunks_mut(1024) {
            row[..257].fill(1.0);
            row[512..768].fill(-1.0);
        }
        let mut bytes = Vec::new();
        Dtype::Bf16.encode(&weights, &mut bytes);
        let weights = gpu.matrix(&WeightTensor::new(WeightRole::Gate, Dtype::Bf16, 8, 1024, &bytes)).unwrap();
        let x = gpu.upload(1024, &vec![1.0; 9 * 1024]).unwrap();
        assert_eq!(gpu.read(&gpu.linear(&x, &weights, None).unwrap()).unwrap(), [1.0; 9 * 8]);
    });
}

/// Or a prefill would break down where decoding goes on.
#[test]
fn what_is_too_large_for_f16_is_its_largest_number_however_many_rows_there_are() {
    in_simulator(
        "conformance::what_is_too_large_for_f16_is_its_largest_number_however_many_rows_there_are",
        &[],
        || {
            let gpu = open(Precision::F16);
            let mut bytes = Vec::new();
            let rows = [100.0f32, -100.0, 64.0, 0.0].map(|weight| [weight; 16]);
            Dtype::F16.encode(rows.as_flattened(), &mut bytes);
            let weights = gpu.matrix(&WeightTensor::new(WeightRole::Gate, Dtype::F16, 4, 16, &bytes)).unwrap();
            let bias = gpu.vector(&[1.0, 1.0, 31.0, -65504.0]).unwrap();
            for rows in [1, 8, 9, 20] {
                let x = gpu.upload(16, &vec![63.0; rows * 16]).unwrap();
                let product = |bias| gpu.read(&gpu.linear(&x, &weights, bias).unwrap()).unwrap();
                assert_eq!(product(None), [65504.0, -65504.0, 64512.0, 0.0].repeat(rows), "{rows} rows");
                assert_eq!(product(Some(&bias)), [65504.0, -65504.0, 64544.0, -65504.0].repeat(rows), "{rows} rows");
            }
        },
    );
}

/// The GPU has a table of where experts lie. One that begins with the same expert need not be the same: weights that were
/// dropped make room for others.
#[test]
fn experts_that_lie_elsewhere_than_before_are_found() {
    in_simulator("conformance::experts_that_lie_elsewhere_than_before_are_found", &[], || {
        let gpu = open(Precision::F16);
        let (hidden, intermediate) = (64, 40);
        let noise = |seed: usize, len| (0..len).map(move |at| ((at * 37 + seed * 101) % 89) as f32 / 89.0 - 0.5);
        let matrix = |role, seed, rows, columns| {
            let mut bytes = Vec::new();
            Dtype::F16.encode(&noise(seed, rows * columns).collect::<Vec<f32>>(), &mut bytes);
            gpu.matrix(&WeightTensor::new(role, Dtype::F16, rows, columns, &bytes)).unwrap()
        };
        let linear = |role, seed, rows, columns| Linear { weight: matrix(role, seed, rows, columns), bias: None };
        let expert = |index: usize| MlpWeights {
            activation: Activation::Silu,
            gate: linear(WeightRole::Gate, 3 * index, intermediate, hidden),
            up: linear(WeightRole::Up, 3 * index + 1, intermediate, hidden),
            down: linear(WeightRole::Down, 3 * index + 2, hidden, intermediate),
        };
        let weights = |order: [usize; 4]| ExpertWeights {
            router: matrix(WeightRole::Router, 50, 4, hidden),
            experts: order.map(expert).into(),
            top_k: 4,
            norm_top_k: true,
        };
        let x = gpu.upload(hidden, &noise(60, hidden).collect::<Vec<f32>>()).unwrap();
        let of = |w: &ExpertWeights<_>| gpu.read(&gpu.experts(&x, w).unwrap()).unwrap();

        let mut turned = weights([0, 1, 2, 3]);
        let before = of(&turned);
        turned.experts[1..].reverse();
        assert_eq!(of(&turned), of(&weights([0, 3, 2, 1])));
        assert_ne!(of(&turned), before);
    });
}
