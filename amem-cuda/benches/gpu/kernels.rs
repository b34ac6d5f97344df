//! Each kernel against its floor.

use std::fmt;
use std::sync::Arc;

use amem_core::transformer::{
    Activation, Attention, Backend, ExpertWeights, LayerNorm, Linear, MlpWeights, Placement, Rope, Row, Span,
    WeightRole, WeightTensor,
};
use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, KvStore, PrefixId};
use amem_cuda::{CudaBackend, Matrix, Tensor};
use futures_lite::future::block_on;

use crate::timing::seconds;

const DTYPE: Dtype = Dtype::Bf16;
const SHAPE: KvShape = KvShape { layers: 1, kv_heads: 8, head_dim: 128 };
const HEADS: usize = 32;
const HIDDEN: usize = 4096;

/// What this GPU reaches at best, measured.
pub(crate) struct Ceilings {
    /// Bytes per second, read and written, of a copy within its memory.
    copy: f64,
    /// Floating-point operations per second of a large product in bf16.
    product: f64,
    /// Bytes per second from pinned memory of the host.
    link: f64,
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copy, product, link } = self;
        write!(f, "Ceilings, measured here: copies {:.2} TB/s, products {:.0} TFLOP/s", copy / 1e12, product / 1e12)?;
        write!(f, ", from the host's memory {:.1} GB/s.", link / 1e9)
    }
}

fn random(gpu: &CudaBackend, rows: usize, columns: usize) -> Tensor {
    let numbers: Vec<f32> = (0..columns).map(|index| ((index * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
    let row = gpu.upload(columns, &numbers).unwrap();
    gpu.gather(&row, &vec![0; rows]).unwrap()
}

fn matrix(gpu: &CudaBackend, outputs: usize, inputs: usize) -> Matrix {
    let bytes: Vec<u8> = (0..outputs * inputs).flat_map(|index| [(index % 251) as u8, 0x3c]).collect();
    gpu.matrix(&WeightTensor::new(WeightRole::Gate, DTYPE, outputs, inputs, &bytes)).unwrap()
}

/// Rows in the precision that is computed in, as kernels hand them to each other.
fn activations(gpu: &CudaBackend, rows: usize, columns: usize) -> Tensor {
    let ones = gpu.vector(&vec![1.0; columns]).unwrap();
    gpu.rms_norm(&random(gpu, rows, columns), &ones, 1e-5).unwrap()
}

pub(crate) fn ceilings(gpu: &CudaBackend, quick: bool) -> Ceilings {
    let (rows, size) = if quick { (64, 64) } else { (1 << 16, 8192) };
    let x = random(gpu, rows, HIDDEN);
    let none = random(gpu, 0, HIDDEN);
    let copied = seconds(gpu, 10, || {
        let mut y = gpu.gather(&none, &[]).unwrap();
        gpu.concat(&mut y, &x).unwrap();
    });
    let (a, w) = (activations(gpu, size, size), matrix(gpu, size, size));
    let multiplied = seconds(gpu, 5, || drop(gpu.linear(&a, &w, None).unwrap()));
    let numbers = vec![0f32; if quick { 1024 } else { 4 << 20 }];
    let uploaded = seconds(gpu, 2, || drop(gpu.upload(8, &numbers).unwrap()));
    Ceilings {
        copy: 8.0 * (rows * HIDDEN) as f64 / copied,
        product: 2.0 * (size as f64).powi(3) / multiplied,
        link: 4.0 * numbers.len() as f64 / uploaded,
    }
}

/// Contexts that stand in a cache.
struct Standing {
    cache: <CudaBackend as Backend>::Cache,
    tables: Vec<Vec<u32>>,
    rope: Rope,
}

impl Standing {
    fn new(gpu: &CudaBackend, contexts: usize, slots: usize) -> Self {
        let blocks = slots.div_ceil(gpu.block_tokens());
        let tables = (0..contexts).map(|context| {
            // Blocks in no order, as they come to lie.
            let block = |index: usize| ((index * 2_654_435_761) % blocks + context * blocks) as u32;
            (0..blocks).map(block).collect()
        });
        let cache = gpu.cache(&SHAPE, DTYPE, contexts * blocks).unwrap();
        Self { cache, tables: tables.collect(), rope: Rope::plain(1e6, SHAPE.head_dim) }
    }

    fn plan(&self, gpu: &CudaBackend, rows: &[Row]) -> <CudaBackend as Backend>::Plan {
        let tables: Vec<&[u32]> = self.tables.iter().map(Vec::as_slice).collect();
        gpu.plan(&self.rope, rows, &tables).unwrap()
    }
}

fn row(context: usize, slot: usize) -> Row {
    let slot = slot as u32;
    Row { token: 0, context, slot, position: slot, sees: Span { shared: 0..0, own: 0..slot + 1 } }
}

/// Attention without a cap, and with one.
const KINDS: [(&str, Option<f32>); 2] = [("attention", None), ("attention, capped", Some(50.0))];

struct Line {
    name: String,
    seconds: f64,
    floor: f64,
}

fn attention(
    gpu: &CudaBackend,
    ceilings: &Ceilings,
    (name, cap): (&str, Option<f32>),
    (contexts, slots): (usize, usize),
    rows: &[Row],
) -> Line {
    let kind = Attention::new(0, SHAPE.head_dim).soft_cap(cap);
    let standing = Standing::new(gpu, contexts, slots);
    let plan = standing.plan(gpu, rows);
    let queries = activations(gpu, rows.len(), HEADS * SHAPE.head_dim);
    let seconds = seconds(gpu, 20, || drop(gpu.attend(&standing.cache, kind, &plan, &queries).unwrap()));
    let seen: f64 = rows.iter().map(|row| row.sees.own.len() as f64).sum();
    let operations = 4.0 * seen * (HEADS * SHAPE.head_dim) as f64;
    // Keys and values once for each context, queries and results once.
    let longest = |context: usize| rows.iter().filter(|row| row.context == context).map(|row| row.slot + 1).max();
    let read: f64 = (0..contexts).filter_map(longest).map(|slots| f64::from(slots) * (4 * SHAPE.row()) as f64).sum();
    let bytes = read + (rows.len() * HEADS * SHAPE.head_dim * 4) as f64;
    Line { name: name.to_owned(), seconds, floor: (operations / ceilings.product).max(bytes / ceilings.copy) }
}

/// A chunk of so many tokens that lies in the GPU's memory.
fn chunk(gpu: &CudaBackend, tokens: usize) -> KvChunk {
    let encoding = Encoding::Plain(DTYPE);
    let bytes = vec![0x3c; encoding.bytes(&SHAPE, tokens)];
    let tokens: Arc<[u32]> = vec![7; tokens].into();
    let data = Arc::new(HostKv::new(encoding, SHAPE.layers, bytes));
    let chunk = KvChunk::new(ChunkId([1; 32]), PrefixId([2; 32]), SHAPE, tokens, data).unwrap();
    let store = gpu.kv_store();
    block_on(async {
        store.put(std::slice::from_ref(&chunk)).await.unwrap();
        store.get(&chunk.id()).await.unwrap().unwrap()
    })
}

/// What some families and encoders need beside the others.
fn of_some_families(gpu: &CudaBackend, ceilings: &Ceilings, scale: usize) -> Vec<Line> {
    let (rows, columns, each) = (2048 / scale, 2048, 8);
    let numbers = rows * columns;
    let line = |name: String, bytes: usize, seconds: f64| Line { name, seconds, floor: bytes as f64 / ceilings.copy };
    let mut x = activations(gpu, rows, columns);
    let mut lines = Vec::new();
    let time = seconds(gpu, 50, || gpu.scale(&mut x, 1.0).unwrap());
    lines.push(line(format!("scale {rows} rows"), 4 * numbers, time));
    let time = seconds(gpu, 50, || gpu.gelu(&mut x).unwrap());
    lines.push(line(format!("GELU of {rows} rows"), 4 * numbers, time));

    let wide = random(gpu, rows, columns);
    let norm = LayerNorm::new(gpu, vec![1.0; columns], vec![0.0; columns], 1e-5).unwrap();
    let time = seconds(gpu, 50, || drop(gpu.layer_norm(&wide, &norm).unwrap()));
    lines.push(line(format!("layer norm of {rows} rows"), 6 * numbers, time));

    let vocabulary = 256_000 / scale;
    let mut logits = random(gpu, 8, vocabulary);
    let time = seconds(gpu, 50, || gpu.soft_cap(&mut logits, 30.0).unwrap());
    lines.push(line(format!("cap 8 × {vocabulary} logits"), 8 * 8 * vocabulary, time));

    // Each row of what experts made counts once.
    let made = activations(gpu, rows * each, columns);
    let picked: Vec<(usize, f32)> = (0..rows * each).map(|index| (index * 7919 % (rows * each), 0.125)).collect();
    let time = seconds(gpu, 50, || drop(gpu.sum_rows(&made, &picked, each).unwrap()));
    lines.push(line(format!("sums of {each} experts for {rows} rows"), (2 * each + 2) * numbers, time));

    // A layer of Qwen3-30B-A3B. The router is so random that rows choose different experts, as far as there are.
    let (count, intermediate) = (128 / scale.min(8), 768 / scale.min(16));
    let linear = |outputs, inputs| Linear { weight: matrix(gpu, outputs, inputs), bias: None };
    let expert = |_| MlpWeights {
        activation: Activation::Silu,
        gate: linear(intermediate, columns),
        up: linear(intermediate, columns),
        down: linear(columns, intermediate),
    };
    let router: Vec<u8> =
        (0..2 * count * columns).map(|at| if at % 2 == 0 { at * 7919 % 251 } else { 0x3c } as u8).collect();
    let router = WeightTensor::new(WeightRole::Router, DTYPE, count, columns, &router);
    let router = gpu.matrix(&router).unwrap();
    let experts = ExpertWeights { router, experts: (0..count).map(expert).collect(), top_k: each, norm_top_k: true };
    for rows in [1, 8, rows] {
        let numbers: Vec<f32> = (0..rows * columns).map(|at| ((at * at) % 1009) as f32 / 504.5 - 1.0).collect();
        let x = gpu.rms_norm(&gpu.upload(columns, &numbers).unwrap(), &gpu.vector(&vec![1.0; columns]).unwrap(), 1e-5);
        let x = x.unwrap();
        let time = seconds(gpu, 50, || drop(gpu.experts(&x, &experts).unwrap()));
        let scores = gpu.read(&gpu.linear(&x, &experts.router, None).unwrap()).unwrap();
        let mut read: Vec<usize> = scores.chunks(count).flat_map(|scores| best(scores, each)).collect();
        read.sort_unstable();
        read.dedup();
        let bytes = 2 * columns * (count + 3 * intermediate * read.len());
        let operations = 2 * columns * rows * (count + 3 * intermediate * each);
        lines.push(Line {
            name: format!("{} of {count} experts for {rows} rows", read.len()),
            seconds: time,
            floor: (bytes as f64 / ceilings.copy).max(operations as f64 / ceilings.product),
        });
    }
    lines
}

/// The experts with the largest scores.
fn best(scores: &[f32], each: usize) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    ranked.truncate(each);
    ranked
}

pub(crate) fn table(gpu: &CudaBackend, ceilings: &Ceilings, quick: bool) {
    let scale = if quick { 64 } else { 1 };
    let mut lines = Vec::new();
    let long = 8192 / scale;
    let prefill: Vec<Row> = (0..long).map(|slot| row(0, slot)).collect();
    for (kind, cap) in KINDS {
        let name = format!("{kind}, prefill of {long}");
        lines.push(attention(gpu, ceilings, (&name, cap), (1, long), &prefill));
    }
    for (rows, slots) in [(512, 8192), (1200, 8192), (128, 32_768)] {
        let (rows, slots) = (rows / scale.min(16), slots / scale);
        let scattered: Vec<Row> = (0..rows).map(|index| row(0, index * slots / rows)).collect();
        let name = format!("attention, {rows} scattered rows of {slots}");
        lines.push(attention(gpu, ceilings, (&name, None), (1, slots), &scattered));
    }
    for (contexts, slots) in [(1, 32_768), (8, 8192), (64, 2048)] {
        let (contexts, slots) = (contexts.min(if quick { 2 } else { 64 }), slots / scale);
        let rows: Vec<Row> = (0..contexts).map(|context| row(context, slots - 1)).collect();
        for (kind, cap) in KINDS {
            let name = format!("{kind}, decode of {contexts} × {slots}");
            lines.push(attention(gpu, ceilings, (&name, cap), (contexts, slots), &rows));
        }
    }

    let tokens = 16_384 / scale;
    let held = chunk(gpu, tokens);
    let mut standing = Standing::new(gpu, 1, tokens);
    let table = standing.tables[0].clone();
    let placement = Placement { chunk: &held, table: &table, slot: 0, position: 3 };
    let rope = standing.rope.clone();
    let time = seconds(gpu, 20, || gpu.load_kv(&mut standing.cache, &rope, &[0], &[placement]).unwrap());
    let bytes = (2 * held.size()) as f64;
    lines.push(Line {
        name: format!("gather and rotate {tokens} tokens"),
        seconds: time,
        floor: bytes / ceilings.copy,
    });

    let rows: Vec<Row> = (0..2048 / scale).map(|slot| row(0, slot)).collect();
    let plan = standing.plan(gpu, &rows);
    let kv = [(); 2].map(|()| activations(gpu, rows.len(), SHAPE.row()));
    let time = seconds(gpu, 50, || gpu.write_kv(&mut standing.cache, 0, &plan, &kv[0], &kv[1]).unwrap());
    let name = format!("write KV of {} rows", rows.len());
    lines.push(Line { name, seconds: time, floor: (8 * rows.len() * SHAPE.row()) as f64 / ceilings.copy });

    let numbers = rows.len() * HIDDEN;
    let (mut x, y) = (random(gpu, rows.len(), HIDDEN), activations(gpu, rows.len(), HIDDEN));
    let weight = gpu.vector(&vec![1.0; HIDDEN]).unwrap();
    let time = seconds(gpu, 50, || drop(gpu.add_rms_norm(&mut x, &y, &weight, 1e-5).unwrap()));
    let name = format!("add and norm {} rows", rows.len());
    lines.push(Line { name, seconds: time, floor: (12 * numbers) as f64 / ceilings.copy });
    let time = seconds(gpu, 50, || drop(gpu.silu_mul(&y, &y).unwrap()));
    let name = format!("SwiGLU of {} rows", rows.len());
    lines.push(Line { name, seconds: time, floor: (6 * numbers) as f64 / ceilings.copy });

    let time = seconds(gpu, 50, || drop(gpu.gelu_mul(&y, &y).unwrap()));
    let name = format!("GEGLU of {} rows", rows.len());
    lines.push(Line { name, seconds: time, floor: (6 * numbers) as f64 / ceilings.copy });
    lines.extend(of_some_families(gpu, ceilings, scale));

    println!("{:<40} {:>12} {:>12} {:>8}", "kernel", "time, µs", "floor, µs", "reached");
    for Line { name, seconds, floor } in lines {
        println!("{name:<40} {:>12.1} {:>12.1} {:>7.0}%", 1e6 * seconds, 1e6 * floor, 100.0 * floor / seconds);
    }
    println!();
}
