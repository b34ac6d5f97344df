//! How close are the CPU's kernels to what the machine can do?
//!
//! - `linear`: a matrix of 4096 × 4096. One row is bound by reading the matrix from RAM (bytes over bandwidth), many
//!   rows by arithmetic (two operations for each number of the matrix and row, over the peak). The lanes of one row are
//!   given in bytes, and `read`, all cores in a plain loop over a buffer as large as the f32 matrix, is about the floor.
//!   The others are given in elements, which are floating-point operations: Gelem/s is GFLOP/s.
//! - `attention`: one layer of 32 query and 8 key heads of 128 numbers, over 4,096 slots. One row, a decoded token, is
//!   bound by reading keys and values; 256 rows, a prefill, by arithmetic.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::thread;

use amem_benches::{Race, random_numbers};
use amem_core::transformer::{Attention, Backend, Rope, Row, Span, WeightRole, WeightTensor};
use amem_core::{Dtype, KvShape};
use amem_cpu::{Cache, Cpu, Matrix, Plan, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const WIDTH: usize = 4096;
const KINDS: [(&str, Dtype, usize); 3] = [("f32", Dtype::F32, 4), ("bf16", Dtype::Bf16, 2), ("f16", Dtype::F16, 2)];

const HEADS: usize = 32;
const SHAPE: KvShape = KvShape { layers: 1, kv_heads: 8, head_dim: 128 };
const SLOTS: usize = 4096;

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
    let caches = [("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::Bf16)];
    let caches = caches.map(|(name, dtype)| (name, dtype, filled(&backend, dtype)));
    for count in [1, 256] {
        let rows: Vec<Row> = (SLOTS - count..SLOTS).map(row).collect();
        let plan = plan(&backend, &rows);
        let queries = activations(&backend, count, HEADS * SHAPE.head_dim);
        let seen: usize = rows.iter().map(|row| row.sees.own.len()).sum();
        let mut race = Race::new(criterion, &format!("attention/{count} rows"));
        // A multiplication and an addition for each number of a key, and as many for its value.
        let operations = 4 * HEADS * SHAPE.head_dim * seen;
        for (name, dtype, cache) in &caches {
            let bytes = 2 * dtype.size() * SHAPE.row() * SLOTS;
            let one = Throughput::Bytes(bytes as u64);
            race.throughput(if count == 1 { one } else { Throughput::Elements(operations as u64) });
            race.lane(name, || {
                backend.attend(cache, Attention::new(0, SHAPE.head_dim), &plan, &queries).expect("the shapes agree")
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

fn plan(backend: &Cpu, rows: &[Row]) -> Plan {
    let table: Vec<u32> = (0..SLOTS.div_ceil(backend.block_tokens()) as u32).collect();
    backend.plan(&Rope::plain(500_000.0, SHAPE.head_dim), rows, &[&table]).expect("positions have angles")
}

/// A cache with keys and values in all slots.
fn filled(backend: &Cpu, dtype: Dtype) -> Cache {
    let rows: Vec<Row> = (0..SLOTS).map(row).collect();
    let numbers = activations(backend, SLOTS, SHAPE.row());
    let blocks = SLOTS.div_ceil(backend.block_tokens());
    let mut cache = backend.cache(&SHAPE, dtype, blocks).expect("there is memory for a cache");
    backend.write_kv(&mut cache, 0, &plan(backend, &rows), &numbers, &numbers).expect("the shapes agree");
    cache
}

fn row(slot: usize) -> Row {
    let slot = slot as u32;
    Row { token: 0, context: 0, slot, position: slot, sees: Span { shared: 0..0, own: 0..slot + 1 } }
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
