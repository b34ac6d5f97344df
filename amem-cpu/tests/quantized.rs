//! Weights of few bits: what they come to, and that all instructions multiply with them alike.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use amem_core::transformer::{Backend, WeightRole, WeightTensor, WeightType};
use amem_cpu::{Cpu, CpuOptions, Instructions, WeightFormat};
use half::f16;

fn cpu(instructions: Instructions, weights: WeightFormat) -> Cpu {
    Cpu::open(CpuOptions::default().threads(2).instructions(instructions).weights(weights)).unwrap()
}

/// SplitMix64, Sebastiano Vigna's mixer of a counter.
fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Random blocks of a type. Their scales are between a thousandth and a hundredth.
fn blocks(dtype: WeightType, rows: usize, columns: usize) -> Vec<u8> {
    let mut next = noise(7);
    let mut bytes = Vec::new();
    while bytes.len() < dtype.matrix_bytes(rows, columns).unwrap() {
        let start = bytes.len();
        bytes.extend((0..dtype.block_bytes()).map(|_| next() as u8));
        let scales: &[usize] = match dtype {
            WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
            WeightType::Q6K => &[208],
            _ => &[0],
        };
        for at in scales {
            let scale = f16::from_f32(0.001 + 0.009 * (next() % 1000) as f32 / 1000.0);
            bytes[start + at..start + at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

const BLOCKS: [WeightType; 8] = [
    WeightType::Q8_0,
    WeightType::Q4_0,
    WeightType::Q4_1,
    WeightType::Q5_0,
    WeightType::Q5_1,
    WeightType::Q4K,
    WeightType::Q5K,
    WeightType::Q6K,
];

/// Activations that bytes hold without rounding: whole numbers, of which each group of 16 has one of 127.
fn whole(rows: usize, columns: usize) -> Vec<f32> {
    let mut next = noise(3);
    (0..rows * columns).map(|at| if at % 16 == 5 { 127.0 } else { (next() % 255) as f32 - 127.0 }).collect()
}

/// The rows of a matrix as the backend reads them.
fn rows_of(cpu: &Cpu, w: &<Cpu as Backend>::Matrix, rows: usize) -> Vec<f32> {
    let tokens: Vec<u32> = (0..rows as u32).collect();
    cpu.read(&cpu.embed(w, &tokens).unwrap()).unwrap()
}

#[test]
fn blocks_are_read_as_the_numbers_that_they_stand_for() {
    for dtype in BLOCKS {
        let (rows, columns) = (35, 512);
        let bytes = blocks(dtype, rows, columns);
        let tensor = WeightTensor::new(WeightRole::Up, dtype, rows, columns, &bytes);
        let cpu = cpu(Instructions::detected(), WeightFormat::AsStored);
        let found = rows_of(&cpu, &cpu.matrix(&tensor).unwrap(), rows);
        for (at, (found, expected)) in found.iter().zip(tensor.to_f32()).enumerate() {
            // Scales in one part are kept as they are; products of two parts are rounded to f16, of which the code takes
            // at most 32 and the minimum 1.
            let tolerance = match dtype {
                WeightType::Q8_0 | WeightType::Q4_0 | WeightType::Q5_0 => 0.0,
                WeightType::Q4_1 | WeightType::Q5_1 => 1e-7,
                WeightType::Q4K | WeightType::Q5K => 0.01 * 63.0 * 32.0 / 2048.0,
                _ => 0.01 * 128.0 * 32.0 / 2048.0,
            };
            assert!((found - expected).abs() <= tolerance, "{dtype} number {at} is {found} instead of {expected}");
        }
    }
}

#[test]
fn products_are_those_of_plain_loops_with_the_same_numbers_and_the_same_bits_from_all_instructions() {
    let formats = BLOCKS.map(|dtype| (dtype, WeightFormat::AsStored));
    let made = [WeightFormat::Int8, WeightFormat::Int4].map(|format| (WeightType::F32, format));
    for (dtype, format) in formats.into_iter().chain(made) {
        for (outputs, inputs) in [(1, 256), (31, 512), (33, 1280), (100, 2304)] {
            let bytes = match dtype {
                WeightType::F32 => {
                    let mut next = noise(9);
                    (0..outputs * inputs).flat_map(|_| ((next() % 2001) as f32 / 1e4 - 0.1).to_le_bytes()).collect()
                }
                _ => blocks(dtype, outputs, inputs),
            };
            let tensor = WeightTensor::new(WeightRole::Up, dtype, outputs, inputs, &bytes);
            for rows in [1, 2, 7, 12, 13, 30] {
                let x = whole(rows, inputs);
                let mut products: Vec<Vec<u32>> = Vec::new();
                for instructions in Instructions::ALL.into_iter().filter(|set| set.is_available()) {
                    let cpu = cpu(instructions, format);
                    let w = cpu.matrix(&tensor).unwrap();
                    let product = cpu.linear(&cpu.upload(inputs, &x).unwrap(), &w, None).unwrap();
                    let (product, numbers) = (cpu.read(&product).unwrap(), rows_of(&cpu, &w, outputs));
                    for (row, x) in x.chunks_exact(inputs).enumerate() {
                        for (output, w) in numbers.chunks_exact(inputs).enumerate() {
                            let terms = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                            let (expected, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                            let found = f64::from(product[row * outputs + output]);
                            // Only sums of groups are rounded.
                            let near = (found - expected).abs() <= 1e-6 * size;
                            assert!(
                                near,
                                "{dtype} {format:?} {outputs}×{inputs}, {instructions:?}: {found} for {expected}"
                            );
                        }
                    }
                    products.push(product.iter().map(|x| x.to_bits()).collect());
                }
                assert!(products.windows(2).all(|both| both[0] == both[1]), "{dtype} {format:?} {outputs}×{inputs}");
            }
        }
    }
}

/// A block's scale and its codes, without their offset.
fn numbers_of(dtype: WeightType, block: &[u8]) -> (f32, Vec<i32>) {
    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
    let halves = |bytes: &[u8], at: usize| i32::from(bytes[at % 16] >> (at / 16 * 4) & 15);
    let code = |at: usize| match dtype {
        WeightType::Q8_0 => i32::from(block[2 + at].cast_signed()),
        WeightType::Q4_0 => halves(&block[2..], at) - 8,
        _ => halves(&block[6..], at) + i32::from(block[2 + at / 8] >> (at % 8) & 1) * 16 - 16,
    };
    (scale, (0..32).map(code).collect())
}

/// Integers of a group, and then groups as f32 in their order: machines of all architectures have these bits.
#[test]
fn sums_of_groups_are_added_up_in_their_order_to_the_bit() {
    for dtype in [WeightType::Q8_0, WeightType::Q4_0, WeightType::Q5_0] {
        for (outputs, inputs) in [(33, 2304), (40, 96)] {
            let bytes = blocks(dtype, outputs, inputs);
            let tensor = WeightTensor::new(WeightRole::Up, dtype, outputs, inputs, &bytes);
            let blocks: Vec<(f32, Vec<i32>)> =
                bytes.chunks_exact(dtype.block_bytes()).map(|block| numbers_of(dtype, block)).collect();
            for rows in [1, 2, 3, 4, 9] {
                // Whole numbers up to 127, which is the largest of each group: their scale is one.
                let x = whole(rows, inputs);
                let product = |x: &[f32], w: &[(f32, Vec<i32>)]| {
                    x.chunks_exact(32).zip(w).fold(0f32, |total, (x, (scale, codes))| {
                        let sum: i32 = x.iter().zip(codes).map(|(x, code)| *x as i32 * code).sum();
                        (sum as f32).mul_add(*scale, total)
                    })
                };
                let of_row = |x| blocks.chunks_exact(inputs / 32).map(move |w| product(x, w).to_bits());
                let expected: Vec<u32> = x.chunks_exact(inputs).flat_map(of_row).collect();
                for instructions in Instructions::ALL.into_iter().filter(|set| set.is_available()) {
                    let cpu = cpu(instructions, WeightFormat::AsStored);
                    let w = cpu.matrix(&tensor).unwrap();
                    let found = cpu.read(&cpu.linear(&cpu.upload(inputs, &x).unwrap(), &w, None).unwrap()).unwrap();
                    let found: Vec<u32> = found.into_iter().map(f32::to_bits).collect();
                    assert!(found == expected, "{dtype} {outputs}×{inputs}, {rows} rows with {instructions:?}");
                }
            }
        }
    }
}

#[test]
fn a_weight_that_is_no_number_shows_in_what_is_multiplied_with_it() {
    let (outputs, inputs) = (33, 96);
    for format in [WeightFormat::Int8, WeightFormat::Int4] {
        for strange in [f32::NAN, f32::INFINITY] {
            let number = |at: usize| if at == 5 * inputs + 40 { strange } else { (at % 89) as f32 / 100.0 - 0.4 };
            let bytes: Vec<u8> = (0..outputs * inputs).flat_map(|at| number(at).to_le_bytes()).collect();
            let tensor = WeightTensor::new(WeightRole::Up, WeightType::F32, outputs, inputs, &bytes);
            for instructions in Instructions::ALL.into_iter().filter(|set| set.is_available()) {
                let cpu = cpu(instructions, format);
                let w = cpu.matrix(&tensor).unwrap();
                let product = cpu.linear(&cpu.upload(inputs, &whole(3, inputs)).unwrap(), &w, None).unwrap();
                for (at, found) in cpu.read(&product).unwrap().into_iter().enumerate() {
                    let output = at % outputs;
                    assert_eq!(found.is_finite(), output != 5, "{found} of {output}, {format:?}, {instructions:?}");
                }
            }
        }
    }
}

/// The largest products side by side: where instructions add them in few bits, all of a group have to fit.
#[test]
fn no_sum_of_a_group_is_too_large() {
    let (outputs, inputs) = (33, 256);
    for dtype in BLOCKS {
        for codes in [0x00, 0xff, 0x80, 0x7f] {
            let mut bytes = blocks(dtype, outputs, inputs);
            // All but the scales.
            let (start, end) = match dtype {
                WeightType::Q6K => (0, 208),
                WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => (4, dtype.block_bytes()),
                _ => (2, dtype.block_bytes()),
            };
            bytes.chunks_exact_mut(dtype.block_bytes()).for_each(|block| block[start..end].fill(codes));
            let tensor = WeightTensor::new(WeightRole::Up, dtype, outputs, inputs, &bytes);
            for rows in [1, 3, 6] {
                let sign = |row: usize| if row.is_multiple_of(2) { 127.0 } else { -127.0 };
                let x: Vec<f32> = (0..rows * inputs).map(|at| sign(at / inputs)).collect();
                for instructions in Instructions::ALL.into_iter().filter(|set| set.is_available()) {
                    let cpu = cpu(instructions, WeightFormat::AsStored);
                    let w = cpu.matrix(&tensor).unwrap();
                    let found = cpu.read(&cpu.linear(&cpu.upload(inputs, &x).unwrap(), &w, None).unwrap()).unwrap();
                    let numbers = rows_of(&cpu, &w, outputs);
                    let sums: Vec<f64> =
                        numbers.chunks_exact(inputs).map(|row| row.iter().map(|x| f64::from(*x)).sum()).collect();
                    let sizes = numbers.chunks_exact(inputs).map(|row| row.iter().map(|x| f64::from(x.abs())).sum());
                    let sizes: Vec<f64> = sizes.collect();
                    for (at, found) in found.into_iter().enumerate() {
                        let (row, output) = (at / outputs, at % outputs);
                        let expected = f64::from(sign(row)) * sums[output];
                        let near = (f64::from(found) - expected).abs() <= 1e-5 * 127.0 * sizes[output];
                        assert!(near, "{dtype}, {codes:#x}, {rows} rows, {instructions:?}: {found} for {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn inputs_that_fill_no_group_and_activations_of_any_size_are_rounded_to_a_hundredth() {
    for (format, tolerance) in [(WeightFormat::Int8, 0.01), (WeightFormat::Int4, 0.1)] {
        for (outputs, inputs) in [(3, 1), (33, 100), (64, 129), (5, 260)] {
            let mut next = noise(11);
            let mut numbers = |count: usize| (0..count).map(|_| (next() % 2001) as f32 / 1e3 - 1.0).collect::<Vec<_>>();
            let (w, x) = (numbers(outputs * inputs), numbers(3 * inputs));
            let bytes: Vec<u8> = w.iter().flat_map(|x| x.to_le_bytes()).collect();
            let cpu = cpu(Instructions::detected(), format);
            let tensor = WeightTensor::new(WeightRole::Up, WeightType::F32, outputs, inputs, &bytes);
            let matrix = cpu.matrix(&tensor).unwrap();
            for factor in [1e-20f32, 1.0, 1e20] {
                let scaled: Vec<f32> = x.iter().map(|x| x * factor).collect();
                let product = cpu.linear(&cpu.upload(inputs, &scaled).unwrap(), &matrix, None).unwrap();
                for (index, found) in cpu.read(&product).unwrap().iter().enumerate() {
                    let (row, output) = (index / outputs, index % outputs);
                    let terms = x[row * inputs..][..inputs].iter().zip(&w[output * inputs..][..inputs]);
                    let expected: f32 = terms.map(|(x, w)| x * w).sum();
                    // The errors of a sum grow with the root of its length.
                    let off = (found / factor - expected).abs() / (inputs as f32).sqrt();
                    assert!(off <= tolerance, "{format:?} {outputs}×{inputs}: {found} for {expected} times {factor}");
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_comes_out_as_none() {
    for format in [WeightFormat::Int8, WeightFormat::Int4] {
        let bytes: Vec<u8> = [0.5f32; 64].iter().flat_map(|x| x.to_le_bytes()).collect();
        let cpu = cpu(Instructions::detected(), format);
        let w = cpu.matrix(&WeightTensor::new(WeightRole::Up, WeightType::F32, 2, 32, &bytes)).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0; 64];
            x[40] = bad;
            let product = cpu.read(&cpu.linear(&cpu.upload(32, &x).unwrap(), &w, None).unwrap()).unwrap();
            assert!(product[..2].iter().all(|x| x.is_finite()), "{product:?}");
            assert!(product[2..].iter().all(|x| !x.is_finite()), "{product:?}");
        }
    }
}
