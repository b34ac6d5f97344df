//! Products that are longer, and feed-forward blocks of more rows, than what is computed at a time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use amem_core::Dtype;
use amem_core::transformer::{Activation, Backend, Linear, MlpWeights, WeightRole, WeightTensor};
use amem_cpu::{Cpu, CpuOptions, Instructions};

#[test]
fn sums_go_on_from_one_block_of_inputs_to_the_next() {
    // Small whole numbers: every type holds them and their sums, so nothing is rounded.
    let (outputs, inputs) = (41, 1031);
    let number = |at: usize| (at * 7 % 13) as f32 - 6.0;
    let w: Vec<f32> = (0..outputs * inputs).map(|at| number(at + at / 97)).collect();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let mut bytes = Vec::new();
        dtype.encode(&w, &mut bytes);
        let tensor = WeightTensor::new(WeightRole::Up, dtype, outputs, inputs, &bytes);
        for instructions in Instructions::ALL.into_iter().filter(|set| set.is_available()) {
            let cpu = Cpu::open(CpuOptions::default().threads(2).instructions(instructions)).unwrap();
            let matrix = cpu.matrix(&tensor).unwrap();
            // Every height that a tile may have, and several tiles.
            for rows in (1..=13).chain([25]) {
                let x: Vec<f32> = (0..rows * inputs).map(|at| number(at + at / 31)).collect();
                let product = cpu.linear(&cpu.upload(inputs, &x).unwrap(), &matrix, None).unwrap();
                let expected = x
                    .chunks_exact(inputs)
                    .flat_map(|x| w.chunks_exact(inputs).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>()));
                let (found, expected) = (cpu.read(&product).unwrap(), expected.collect::<Vec<f32>>());
                assert!(found == expected, "{dtype:?}, {rows} rows with {instructions:?}");
            }
        }
    }
}

#[test]
fn rows_of_a_feed_forward_block_do_not_depend_on_how_many_there_are() {
    let (hidden, intermediate, rows) = (24, 40, 700);
    let numbers = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|at| ((at * 31 + seed) % 101) as f32 / 50.0 - 1.0).collect()
    };
    let cpu = Cpu::open(CpuOptions::default().threads(2)).unwrap();
    let linear = |role, outputs: usize, inputs: usize, seed| {
        let mut bytes = Vec::new();
        Dtype::F32.encode(&numbers(outputs * inputs, seed), &mut bytes);
        let weight = cpu.matrix(&WeightTensor::new(role, Dtype::F32, outputs, inputs, &bytes)).unwrap();
        Linear { weight, bias: Some(cpu.vector(&numbers(outputs, seed + 1)).unwrap()) }
    };
    let mlp = MlpWeights {
        activation: Activation::Silu,
        gate: linear(WeightRole::Gate, intermediate, hidden, 3),
        up: linear(WeightRole::Up, intermediate, hidden, 5),
        down: linear(WeightRole::Down, hidden, intermediate, 7),
    };
    let x = numbers(rows * hidden, 11);
    let block = |x: &[f32]| cpu.read(&cpu.mlp(&cpu.upload(hidden, x).unwrap(), &mlp).unwrap()).unwrap();
    let apart: Vec<f32> = x.chunks(77 * hidden).flat_map(block).collect();
    assert!(block(&x) == apart);
}
