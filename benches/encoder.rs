//! How fast are texts embedded?
//!
//! An encoder in the shape of all-MiniLM-L6-v2 with random weights in f32: questions one by one, memories of a sentence and
//! pages that fill it. The floor is `products`: those of its matrices, with as many rows, and nothing else.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::hint::black_box;

use amem_benches::encoder::{HIDDEN, INTERMEDIATE, LAYERS, random_encoder, words};
use amem_benches::{Race, random_numbers};
use amem_core::Dtype;
use amem_core::transformer::{Backend, Purpose, WeightRole, WeightTensor};
use amem_cpu::{Cpu, CpuOptions, Matrix, Tensor, WeightFormat};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::future::block_on;

/// Rows of one product: as many as go through an encoder in one pass.
const ROWS: usize = 1024;

fn encode(criterion: &mut Criterion) {
    let cpu = |weights| Cpu::open(CpuOptions::default().weights(weights)).expect("threads can be started");
    let (f32, int8) = (random_encoder(cpu(WeightFormat::AsStored)), random_encoder(cpu(WeightFormat::Int8)));
    let backend = cpu(WeightFormat::AsStored);
    let matrices = matrices(&backend);
    for (name, texts, tokens) in [("1 question", 1, 12), ("200 sentences", 200, 24), ("16 pages", 16, 256)] {
        let texts: Vec<String> = (0..texts).map(|text| words(tokens, text)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let rows = texts.len() * tokens;
        let mut race = Race::new(criterion, &format!("encode/{name}"));
        race.throughput(Throughput::Elements(rows as u64));
        let passes = activations(&backend, rows);
        race.lane("products", || products(&backend, &matrices, &passes));
        for (lane, encoder) in [("f32", &f32), ("int8", &int8)] {
            race.lane(lane, || block_on(encoder.encode(&texts, Purpose::Plain)).expect("texts can be embedded"));
        }
        race.finish();
    }
}

/// The matrices of a layer.
fn matrices(backend: &Cpu) -> Vec<Matrix> {
    let attention = [(HIDDEN, HIDDEN); 4];
    let feed_forward = [(INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)];
    let matrix = |(outputs, inputs): (usize, usize)| {
        let bytes: Vec<u8> = random_numbers(outputs * inputs, 1).into_iter().flat_map(f32::to_le_bytes).collect();
        let tensor = WeightTensor::new(WeightRole::Up, Dtype::F32, outputs, inputs, &bytes);
        backend.matrix(&tensor).expect("there are as many numbers as the shape needs")
    };
    attention.into_iter().chain(feed_forward).map(matrix).collect()
}

/// Activations for products of as many rows as there are.
fn activations(backend: &Cpu, rows: usize) -> Vec<[Tensor; 2]> {
    let numbers = random_numbers(ROWS * INTERMEDIATE, 2);
    let of_pass = |first: usize| {
        [HIDDEN, INTERMEDIATE].map(|columns| {
            let numbers = &numbers[..ROWS.min(rows - first) * columns];
            backend.upload(columns, numbers).expect("there is memory for activations")
        })
    };
    (0..rows).step_by(ROWS).map(of_pass).collect()
}

/// The products of all layers.
fn products(backend: &Cpu, matrices: &[Matrix], passes: &[[Tensor; 2]]) {
    for [narrow, wide] in passes {
        for _ in 0..LAYERS {
            for (index, matrix) in matrices.iter().enumerate() {
                let x = if index + 1 == matrices.len() { wide } else { narrow };
                black_box(backend.linear(x, matrix, None).expect("the shapes agree"));
            }
        }
    }
}

criterion_group!(benches, encode);
criterion_main!(benches);
