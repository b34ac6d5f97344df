//! How close are the CPU's kernels to what the machine can do?
//!
//! - `linear`: a matrix of 4096 × 4096. One row is bound by reading the matrix from RAM (bytes over bandwidth), many
//!   rows by arithmetic (two operations for each number of the matrix and row, over the peak). The lanes of one row are
//!   given in bytes, and `read`, all cores in a plain loop over a buffer as large as the f32 matrix, is about the floor.
//!   The others are given in elements, which are floating-point operations: Gelem/s is GFLOP/s.
//! - `attention`: with the heads of some models. A prefill is bound by arithmetic: its lanes are given in floating-point
//!   operations, and `multiply-add`, all cores with f32 that stay in registers, is the peak. A decoded token is bound by
//!   reading keys and values, of so many layers here that they come from RAM: its lanes are given in bytes, and `read` is
//!   about the floor.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::hint::black_box;
use std::thread;

use amem_benches::{Race, random_numbers};
use amem_core::transformer::{Attention, Backend, Rope, Row, Span, WeightRole, WeightTensor};
use amem_core::{Dtype, KvShape, Result};
use amem_cpu::{Cache, Cpu, Matrix, Plan, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pulp::{Arch, Simd, WithSimd};

const WIDTH: usize = 4096;
const KINDS: [(&str, Dtype, usize); 3] = [("f32", Dtype::F32, 4), ("bf16", Dtype::Bf16, 2), ("f16", Dtype::F16, 2)];

/// Models, their query heads, key heads and the numbers in a head.
const MODELS: [(&str, usize, usize, usize); 3] =
    [("Qwen2.5-0.5B", 14, 2, 64), ("SmolLM2-135M", 9, 3, 64), ("Qwen2.5-7B", 28, 4, 128)];

fn linear(criterion: &mut Criterion) {
    let backend = Cpu::new().expect("threads can be started");
    let numbers = random_numbers(WIDTH * WIDTH, 1);
    let matrices = KINDS.map(|(name, kind, size)| (name, size, matrix(&backend, kind, WIDTH, WIDTH, &numbers)));

    let x = activations(&backend, 1, WIDTH);
    let mut race = Race::new(criterion, "linear/1 row");
    race.throughput(Throughput::Bytes(4 * numbers.len() as u64));
    race.lane("read", || read(&numbers));
    for (name, size, matrix) in &matrices {
        race.throughput(Throughput::Bytes((size * numbers.len()) as u64));
        race.lane(name, || backend.linear(&x, matrix, None).expect("the shapes agree"));
    }
    race.finish();

    for rows in [8, 256] {
        let x = activations(&backend, rows, WIDTH);
        let mut race = Race::new(criterion, &format!("linear/{rows} rows"));
        race.throughput(Throughput::Elements((2 * rows * numbers.len()) as u64));
        for (name, _, matrix) in &matrices {
            race.lane(name, || backend.linear(&x, matrix, None).expect("the shapes agree"));
        }
        race.finish();
    }
}

fn attention(criterion: &mut Criterion) {
    let backend = Cpu::new().expect("threads can be started");
    for (model, heads, kv_heads, head_dim) in MODELS {
        let shape = KvShape { layers: 1, kv_heads, head_dim };
        for slots in [512, 2048] {
            let rows: Vec<Row> = (0..slots).map(row).collect();
            let plan = plan(&backend, shape, &rows);
            let queries = activations(&backend, slots, heads * head_dim);
            // A multiplication and an addition for each number of a key, and as many for its value.
            let operations = 4 * heads * head_dim * slots * (slots + 1) / 2;
            let mut race = Race::new(criterion, &format!("attention/{model}/prefill of {slots}"));
            race.throughput(Throughput::Elements(operations as u64));
            race.lane("multiply-add", || multiply_add(operations));
            for (name, dtype, _) in KINDS {
                let cache = filled(&backend, shape, dtype, slots);
                race.lane(name, || {
                    backend.attend(&cache, Attention::new(0, head_dim), &plan, &queries).expect("the shapes agree")
                });
            }
            race.finish();
        }

        const SLOTS: usize = 4096;
        const BYTES: usize = 128 << 20;
        let plan = plan(&backend, shape, &[row(SLOTS - 1)]);
        let query = activations(&backend, 1, heads * head_dim);
        let mut race = Race::new(criterion, &format!("attention/{model}/decode behind {SLOTS}"));
        race.throughput(Throughput::Bytes(BYTES as u64));
        let numbers = random_numbers(BYTES / size_of::<f32>(), 1);
        race.lane("read", || read(&numbers));
        drop(numbers);
        for (name, dtype, size) in KINDS {
            let layers = BYTES / (2 * size * shape.row() * SLOTS);
            let cache = filled(&backend, KvShape { layers, ..shape }, dtype, SLOTS);
            race.throughput(Throughput::Bytes((layers * 2 * size * shape.row() * SLOTS) as u64));
            race.lane(name, || {
                let attend = |layer| backend.attend(&cache, Attention::new(layer, head_dim), &plan, &query);
                (0..layers).map(attend).collect::<Result<Vec<_>>>().expect("the shapes agree")
            });
        }
        race.finish();
    }
}

fn matrix(backend: &Cpu, dtype: Dtype, outputs: usize, inputs: usize, numbers: &[f32]) -> Matrix {
    let mut bytes = Vec::new();
    dtype.encode(numbers, &mut bytes);
    backend
        .matrix(&WeightTensor::new(WeightRole::Up, dtype, outputs, inputs, &bytes))
        .expect("there are as many numbers as the shape needs")
}

/// Random activations, `[rows][columns]`.
fn activations(backend: &Cpu, rows: usize, columns: usize) -> Tensor {
    backend.upload(columns, &random_numbers(rows * columns, 2)).expect("there is memory for activations")
}

fn plan(backend: &Cpu, shape: KvShape, rows: &[Row]) -> Plan {
    let slots = rows.last().map_or(0, |row| row.slot as usize + 1);
    let table: Vec<u32> = (0..slots.div_ceil(backend.block_tokens()) as u32).collect();
    backend.plan(&Rope::plain(500_000.0, shape.head_dim), rows, &[&table]).expect("positions have angles")
}

/// A cache with keys and values in all slots of all layers.
fn filled(backend: &Cpu, shape: KvShape, dtype: Dtype, slots: usize) -> Cache {
    let rows: Vec<Row> = (0..slots).map(row).collect();
    let (plan, numbers) = (plan(backend, shape, &rows), activations(backend, slots, shape.row()));
    let blocks = slots.div_ceil(backend.block_tokens());
    let mut cache = backend.cache(&shape, dtype, blocks).expect("there is memory for a cache");
    for layer in 0..shape.layers {
        backend.write_kv(&mut cache, layer, &plan, &numbers, &numbers).expect("the shapes agree");
    }
    cache
}

fn row(slot: usize) -> Row {
    let slot = slot as u32;
    Row { token: 0, context: 0, slot, position: slot, sees: Span { shared: 0..0, own: 0..slot + 1 } }
}

/// Does so many floating-point operations on all cores, with numbers that stay in registers.
fn multiply_add(operations: usize) -> f32 {
    struct Sums(usize);
    impl WithSimd for Sums {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            // As many sums as hide how long one addition takes.
            let mut sums = [simd.splat_f32s(0.0); 12];
            let [factor, term] = [0.5, 0.25].map(|x| simd.splat_f32s(black_box(x)));
            for _ in 0..self.0 / (2 * sums.len() * S::F32_LANES) {
                for sum in &mut sums {
                    *sum = simd.mul_add_f32s(*sum, factor, term);
                }
            }
            sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum()
        }
    }
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let sums = (0..threads).map(|_| scope.spawn(|| Arch::new().dispatch(Sums(operations / threads))));
        let sums: Vec<_> = sums.collect();
        sums.into_iter().map(|sum| sum.join().expect("adding does not panic")).sum()
    })
}

/// Reads a buffer once, on all cores.
fn read(numbers: &[f32]) -> f32 {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let sum = |part: &[f32]| {
        let mut lanes = [0f32; 32];
        part.as_chunks::<32>().0.iter().for_each(|chunk| lanes.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x));
        lanes.iter().sum::<f32>()
    };
    thread::scope(|scope| {
        let parts = numbers.chunks(numbers.len().div_ceil(threads));
        let sums: Vec<_> = parts.map(|part| scope.spawn(move || sum(part))).collect();
        sums.into_iter().map(|sum| sum.join().expect("adding does not panic")).sum()
    })
}

criterion_group!(benches, linear, attention);
criterion_main!(benches);
