//! How close are the CPU's kernels to what the machine can do?
//!
//! - `linear`: a matrix of 4096 × 4096, in each type that weights are kept in. One row is bound by reading the matrix from
//!   RAM (bytes over bandwidth), many rows by arithmetic (two operations for each number of the matrix and row, over the
//!   peak). The lanes of one row are given in bytes, and `read`, all cores in a plain loop over a buffer as large as the
//!   f32 matrix, is about the floor. The others are given in operations, beside the peak of the numbers that the machine
//!   multiplies them as.
//! - `attention`: with the heads of some models. A prefill is bound by arithmetic: its lanes are given in operations, and
//!   the peak of f32 is the floor. A decoded token is bound by
//!   reading keys and values, of so many layers here that they come from RAM: its lanes are given in bytes, and `read` is
//!   about the floor.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::thread;

use amem_benches::peak::{Peak, peaks, read};
use amem_benches::{Race, random_numbers};
use amem_core::transformer::{Attention, Backend, Rope, Row, Span, WeightRole, WeightTensor};
use amem_core::{Dtype, KvShape, Result};
use amem_cpu::{Cache, Cpu, CpuOptions, Matrix, Plan, Tensor, WeightFormat};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const WIDTH: usize = 4096;
const CACHES: [(&str, Dtype, usize); 3] = [("f32", Dtype::F32, 4), ("bf16", Dtype::Bf16, 2), ("f16", Dtype::F16, 2)];

/// A type of weights: what it is made of, the bits of a number, scales included, and as what it is multiplied, where a
/// machine has instructions for that. Others multiply it as f32.
struct Kind {
    name: &'static str,
    dtype: Dtype,
    format: WeightFormat,
    bits: f64,
    as_type: &'static str,
}

const KINDS: [Kind; 5] = [
    Kind { name: "f32", dtype: Dtype::F32, format: WeightFormat::AsStored, bits: 32.0, as_type: "f32" },
    Kind { name: "bf16", dtype: Dtype::Bf16, format: WeightFormat::AsStored, bits: 16.0, as_type: "bf16" },
    Kind { name: "f16", dtype: Dtype::F16, format: WeightFormat::AsStored, bits: 16.0, as_type: "f32" },
    Kind { name: "int8", dtype: Dtype::Bf16, format: WeightFormat::Int8, bits: 8.5, as_type: "int8" },
    Kind { name: "int4", dtype: Dtype::Bf16, format: WeightFormat::Int4, bits: 4.5, as_type: "int8" },
];

/// Models, their query heads, key heads and the numbers in a head.
const MODELS: [(&str, usize, usize, usize); 3] =
    [("Qwen2.5-0.5B", 14, 2, 64), ("SmolLM2-135M", 9, 3, 64), ("Qwen2.5-7B", 28, 4, 128)];

fn linear(criterion: &mut Criterion) {
    let numbers = random_numbers(WIDTH * WIDTH, 1);
    let matrix = |kind: &'static Kind| {
        let backend = Cpu::open(CpuOptions::default().weights(kind.format)).expect("threads can be started");
        let matrix = matrix(&backend, kind.dtype, WIDTH, WIDTH, &numbers);
        (kind, backend, matrix)
    };
    let matrices: Vec<(&Kind, Cpu, Matrix)> = KINDS.iter().map(matrix).collect();
    let threads = threads();

    let mut race = Race::new(criterion, "linear/1 row");
    race.throughput(Throughput::Bytes(4 * numbers.len() as u64));
    race.lane("read", || read(&numbers, threads));
    for (kind, backend, matrix) in &matrices {
        let x = activations(backend, 1, WIDTH);
        race.throughput(Throughput::Bytes((kind.bits / 8.0 * numbers.len() as f64) as u64));
        race.lane(kind.name, || backend.linear(&x, matrix, None).expect("the shapes agree"));
    }
    race.finish();

    let peaks = peaks();
    let has = |name: &str| peaks.iter().any(|peak| peak.name == name);
    for rows in [8, 256] {
        let operations = 2 * rows * numbers.len();
        for peak in &peaks {
            let mut race = Race::new(criterion, &format!("linear/{rows} rows/{}", peak.name));
            race.throughput(Throughput::Elements(operations as u64));
            race.lane("peak", || peak.run(operations, threads));
            let multiplied_as = |kind: &Kind| if has(kind.as_type) { kind.as_type } else { "f32" };
            for (kind, backend, matrix) in matrices.iter().filter(|(kind, ..)| multiplied_as(kind) == peak.name) {
                let x = activations(backend, rows, WIDTH);
                race.lane(kind.name, || backend.linear(&x, matrix, None).expect("the shapes agree"));
            }
            race.finish();
        }
    }
}

fn attention(criterion: &mut Criterion) {
    let backend = Cpu::new().expect("threads can be started");
    let (peaks, threads) = (peaks(), threads());
    let f32_peak: Option<&Peak> = peaks.iter().find(|peak| peak.name == "f32");
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
            if let Some(peak) = f32_peak {
                race.lane("peak", || peak.run(operations, threads));
            }
            for (name, dtype, _) in CACHES {
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
        race.lane("read", || read(&numbers, threads));
        drop(numbers);
        for (name, dtype, size) in CACHES {
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

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

criterion_group!(benches, linear, attention);
criterion_main!(benches);
