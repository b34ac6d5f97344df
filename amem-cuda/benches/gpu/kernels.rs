//! Each kernel against its floor.

use std::fmt;
use std::sync::Arc;

use amem_core::transformer::{
    Activation, Attention, Backend, ExpertWeights, LayerNorm, Linear, MlpWeights, Placement, Rope, Row, Span,
    WeightRole, WeightTensor,
};
use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, KvStore, PrefixId, Result};
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
    /// Bytes per second from the host's memory: copied by one thread into pinned memory, and from there to the GPU.
    link: f64,
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copy, product, link } = self;
        write!(f, "Ceilings, measured here: copies {:.2} TB/s, products {:.0} TFLOP/s", copy / 1e12, product / 1e12)?;
        write!(f, ", from the host's memory {:.1} GB/s, one thread's copy into pinned memory included.", link / 1e9)
    }
}

fn random(gpu: &CudaBackend, rows: usize, columns: usize) -> Result<Tensor> {
    let numbers: Vec<f32> = (0..columns).map(|index| ((index * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
    let row = gpu.upload(columns, &numbers)?;
    gpu.gather(&row, &vec![0; rows])
}

fn matrix(gpu: &CudaBackend, outputs: usize, inputs: usize) -> Result<Matrix> {
    let bytes: Vec<u8> = (0..outputs * inputs).flat_map(|index| [(index % 251) as u8, 0x3c]).collect();
    gpu.matrix(&WeightTensor::new(WeightRole::Gate, DTYPE, outputs, inputs, &bytes))
}

/// Rows in the precision that is computed in, as kernels hand them to each other.
fn activations(gpu: &CudaBackend, rows: usize, columns: usize) -> Result<Tensor> {
    let ones = gpu.vector(&vec![1.0; columns])?;
    gpu.rms_norm(&random(gpu, rows, columns)?, &ones, 1e-5)
}

pub(crate) fn ceilings(gpu: &CudaBackend, quick: bool) -> Result<Ceilings> {
    let (rows, size) = if quick { (64, 64) } else { (1 << 16, 8192) };
    let x = random(gpu, rows, HIDDEN)?;
    let none = random(gpu, 0, HIDDEN)?;
    let copied = seconds(gpu, 10, || {
        let mut y = gpu.gather(&none, &[])?;
        gpu.concat(&mut y, &x)
    })?;
    let (a, w) = (activations(gpu, size, size)?, matrix(gpu, size, size)?);
    let multiplied = seconds(gpu, 5, || gpu.linear(&a, &w, None).map(drop))?;
    let numbers = vec![0f32; if quick { 1024 } else { 4 << 20 }];
    let uploaded = seconds(gpu, 2, || gpu.upload(8, &numbers).map(drop))?;
    Ok(Ceilings {
        copy: 8.0 * (rows * HIDDEN) as f64 / copied,
        product: 2.0 * (size as f64).powi(3) / multiplied,
        link: 4.0 * numbers.len() as f64 / uploaded,
    })
}

/// Contexts that stand in a cache.
struct Standing {
    cache: <CudaBackend as Backend>::Cache,
    tables: Vec<Vec<u32>>,
    rope: Rope,
}

impl Standing {
    fn new(gpu: &CudaBackend, contexts: usize, slots: usize) -> Result<Self> {
        let blocks = slots.div_ceil(gpu.block_tokens());
        let tables = (0..contexts).map(|context| {
            // Blocks in no order, as they come to lie.
            let block = |index: usize| ((index * 2_654_435_761) % blocks + context * blocks) as u32;
            (0..blocks).map(block).collect()
        });
        let cache = gpu.cache(&SHAPE, DTYPE, contexts * blocks)?;
        Ok(Self { cache, tables: tables.collect(), rope: Rope::plain(1e6, SHAPE.head_dim) })
    }

    fn plan(&self, gpu: &CudaBackend, rows: &[Row]) -> Result<<CudaBackend as Backend>::Plan> {
        let tables: Vec<&[u32]> = self.tables.iter().map(Vec::as_slice).collect();
        gpu.plan(&self.rope, rows, &tables)
    }
}

fn row(context: usize, slot: usize) -> Row {
    let slot = slot as u32;
    Row { token: 0, context, slot, position: slot, sees: Span { shared: 0..0, own: 0..slot + 1 } }
}

/// Attention without a cap, and with one.
const KINDS: [(&str, Option<f32>); 2] = [("attention", None), ("attention, capped", Some(50.0))];

/// How long a kernel took, and how long it would take at the least.
struct Measured {
    seconds: f64,
    floor: f64,
}

/// The table, each line of which is printed as soon as it is measured.
struct Table<'g> {
    gpu: &'g CudaBackend,
    ceilings: &'g Ceilings,
    /// What sizes are divided by.
    scale: usize,
    failed: usize,
}

impl Table<'_> {
    fn line(&mut self, name: &str, measured: Result<Measured>) {
        match measured {
            Ok(Measured { seconds, floor }) => {
                let reached = 100.0 * floor / seconds;
                println!("{name:<40} {:>12.1} {:>12.1} {reached:>7.0}%", 1e6 * seconds, 1e6 * floor);
            }
            Err(error) => {
                println!("{name:<40} failed: {error}");
                self.failed += 1;
            }
        }
    }

    /// A line of what only reads and writes, so many bytes.
    fn moves(&mut self, name: &str, bytes: usize, seconds: Result<f64>) {
        let floor = bytes as f64 / self.ceilings.copy;
        self.line(name, seconds.map(|seconds| Measured { seconds, floor }));
    }

    fn attention(&mut self, (name, cap): (&str, Option<f32>), (contexts, slots): (usize, usize), rows: &[Row]) {
        let measured = attention(self.gpu, self.ceilings, cap, (contexts, slots), rows);
        self.line(name, measured);
    }

    fn all_attention(&mut self) {
        let (scale, quick) = (self.scale, self.scale > 1);
        let long = 8192 / scale;
        let prefill: Vec<Row> = (0..long).map(|slot| row(0, slot)).collect();
        for (kind, cap) in KINDS {
            self.attention((&format!("{kind}, prefill of {long}"), cap), (1, long), &prefill);
        }
        for (rows, slots) in [(512, 8192), (1200, 8192), (128, 32_768)] {
            let (rows, slots) = (rows / scale.min(16), slots / scale);
            let scattered: Vec<Row> = (0..rows).map(|index| row(0, index * slots / rows)).collect();
            self.attention((&format!("attention, {rows} scattered rows of {slots}"), None), (1, slots), &scattered);
        }
        for (contexts, slots) in [(1, 32_768), (8, 8192), (64, 2048)] {
            let (contexts, slots) = (contexts.min(if quick { 2 } else { 64 }), slots / scale);
            let rows: Vec<Row> = (0..contexts).map(|context| row(context, slots - 1)).collect();
            for (kind, cap) in KINDS {
                self.attention((&format!("{kind}, decode of {contexts} × {slots}"), cap), (contexts, slots), &rows);
            }
        }
    }

    fn of_kv(&mut self) {
        let (gpu, tokens) = (self.gpu, 16_384 / self.scale);
        let bytes = 2 * Encoding::Plain(DTYPE).bytes(&SHAPE, tokens);
        self.moves(&format!("gather and rotate {tokens} tokens"), bytes, load_kv(gpu, tokens));
        let rows = 2048 / self.scale;
        self.moves(&format!("write KV of {rows} rows"), 8 * rows * SHAPE.row(), write_kv(gpu, rows));
    }

    /// What all models have between products.
    fn elementwise(&mut self) {
        let (gpu, rows) = (self.gpu, 2048 / self.scale);
        let numbers = rows * HIDDEN;
        let y = || activations(gpu, rows, HIDDEN);
        let normed = random(gpu, rows, HIDDEN).and_then(|mut x| {
            let (y, weight) = (y()?, gpu.vector(&vec![1.0; HIDDEN])?);
            seconds(gpu, 50, || gpu.add_rms_norm(&mut x, &y, &weight, 1e-5).map(drop))
        });
        self.moves(&format!("add and norm {rows} rows"), 12 * numbers, normed);
        let gated = y().and_then(|y| seconds(gpu, 50, || gpu.silu_mul(&y, &y).map(drop)));
        self.moves(&format!("SwiGLU of {rows} rows"), 6 * numbers, gated);
        let gated = y().and_then(|y| seconds(gpu, 50, || gpu.gelu_mul(&y, &y).map(drop)));
        self.moves(&format!("GEGLU of {rows} rows"), 6 * numbers, gated);
    }

    /// What some families and encoders need beside the others.
    fn of_some_families(&mut self) {
        let (gpu, rows, columns, each) = (self.gpu, 2048 / self.scale, 2048, 8);
        let numbers = rows * columns;
        let x = || activations(gpu, rows, columns);
        let scaled = x().and_then(|mut x| seconds(gpu, 50, || gpu.scale(&mut x, 1.0)));
        self.moves(&format!("scale {rows} rows"), 4 * numbers, scaled);
        let activated = x().and_then(|mut x| seconds(gpu, 50, || gpu.gelu(&mut x)));
        self.moves(&format!("GELU of {rows} rows"), 4 * numbers, activated);
        let normed = random(gpu, rows, columns).and_then(|wide| {
            let norm = LayerNorm::new(gpu, vec![1.0; columns], vec![0.0; columns], 1e-5)?;
            seconds(gpu, 50, || gpu.layer_norm(&wide, &norm).map(drop))
        });
        self.moves(&format!("layer norm of {rows} rows"), 6 * numbers, normed);
        let vocabulary = 256_000 / self.scale;
        let capped =
            random(gpu, 8, vocabulary).and_then(|mut logits| seconds(gpu, 50, || gpu.soft_cap(&mut logits, 30.0)));
        self.moves(&format!("cap 8 × {vocabulary} logits"), 8 * 8 * vocabulary, capped);
        // Each row of what experts made counts once.
        let summed = activations(gpu, rows * each, columns).and_then(|made| {
            let picked: Vec<(usize, f32)> =
                (0..rows * each).map(|index| (index * 7919 % (rows * each), 0.125)).collect();
            seconds(gpu, 50, || gpu.sum_rows(&made, &picked, each).map(drop))
        });
        self.moves(&format!("sums of {each} experts for {rows} rows"), (2 * each + 2) * numbers, summed);
        match Experts::new(gpu, self.scale, columns, each) {
            Ok(experts) => [1, 8, rows].into_iter().for_each(|rows| {
                let (name, measured) = experts.measured(gpu, self.ceilings, rows);
                self.line(&name, measured);
            }),
            Err(error) => self.line("experts", Err(error)),
        }
    }
}

fn attention(
    gpu: &CudaBackend,
    ceilings: &Ceilings,
    cap: Option<f32>,
    (contexts, slots): (usize, usize),
    rows: &[Row],
) -> Result<Measured> {
    let kind = Attention::new(0, SHAPE.head_dim).soft_cap(cap);
    let standing = Standing::new(gpu, contexts, slots)?;
    let plan = standing.plan(gpu, rows)?;
    let queries = activations(gpu, rows.len(), HEADS * SHAPE.head_dim)?;
    let seconds = seconds(gpu, 20, || gpu.attend(&standing.cache, kind, &plan, &queries).map(drop))?;
    let seen: f64 = rows.iter().map(|row| row.sees.own.len() as f64).sum();
    let operations = 4.0 * seen * (HEADS * SHAPE.head_dim) as f64;
    // Keys and values once for each context, queries and results once.
    let longest = |context: usize| rows.iter().filter(|row| row.context == context).map(|row| row.slot + 1).max();
    let read: f64 = (0..contexts).filter_map(longest).map(|slots| f64::from(slots) * (4 * SHAPE.row()) as f64).sum();
    let bytes = read + (rows.len() * HEADS * SHAPE.head_dim * 4) as f64;
    Ok(Measured { seconds, floor: (operations / ceilings.product).max(bytes / ceilings.copy) })
}

/// A chunk of so many tokens that lies in the GPU's memory.
fn chunk(gpu: &CudaBackend, tokens: usize) -> Result<Option<KvChunk>> {
    let encoding = Encoding::Plain(DTYPE);
    let bytes = vec![0x3c; encoding.bytes(&SHAPE, tokens)];
    let tokens: Arc<[u32]> = vec![7; tokens].into();
    let data = Arc::new(HostKv::new(encoding, SHAPE.layers, bytes));
    let chunk = KvChunk::new(ChunkId([1; 32]), PrefixId([2; 32]), SHAPE, tokens, data)?;
    let store = gpu.kv_store();
    block_on(async {
        store.put(std::slice::from_ref(&chunk)).await?;
        store.get(&chunk.id()).await
    })
}

fn load_kv(gpu: &CudaBackend, tokens: usize) -> Result<f64> {
    let held = chunk(gpu, tokens)?.expect("a store has what was just put into it");
    let mut standing = Standing::new(gpu, 1, tokens)?;
    let table = standing.tables[0].clone();
    let placement = Placement { chunk: &held, table: &table, slot: 0, position: 3 };
    let rope = standing.rope.clone();
    seconds(gpu, 20, || gpu.load_kv(&mut standing.cache, &rope, &[0], &[placement]))
}

fn write_kv(gpu: &CudaBackend, rows: usize) -> Result<f64> {
    let mut standing = Standing::new(gpu, 1, rows)?;
    let rows: Vec<Row> = (0..rows).map(|slot| row(0, slot)).collect();
    let plan = standing.plan(gpu, &rows)?;
    let (keys, values) = (activations(gpu, rows.len(), SHAPE.row())?, activations(gpu, rows.len(), SHAPE.row())?);
    seconds(gpu, 50, || gpu.write_kv(&mut standing.cache, 0, &plan, &keys, &values))
}

/// A layer of Qwen3-30B-A3B. The router is so random that rows choose different experts, as far as there are.
struct Experts {
    weights: ExpertWeights<CudaBackend>,
    columns: usize,
    intermediate: usize,
}

impl Experts {
    fn new(gpu: &CudaBackend, scale: usize, columns: usize, each: usize) -> Result<Self> {
        let (count, intermediate) = (128 / scale.min(8), 768 / scale.min(16));
        let linear =
            |outputs, inputs| -> Result<_> { Ok(Linear { weight: matrix(gpu, outputs, inputs)?, bias: None }) };
        let expert = |_| -> Result<_> {
            Ok(MlpWeights {
                activation: Activation::Silu,
                gate: linear(intermediate, columns)?,
                up: linear(intermediate, columns)?,
                down: linear(columns, intermediate)?,
            })
        };
        let router: Vec<u8> =
            (0..2 * count * columns).map(|at| if at % 2 == 0 { at * 7919 % 251 } else { 0x3c } as u8).collect();
        let router = gpu.matrix(&WeightTensor::new(WeightRole::Router, DTYPE, count, columns, &router))?;
        let experts = (0..count).map(expert).collect::<Result<_>>()?;
        let weights = ExpertWeights { router, experts, top_k: each, norm_top_k: true };
        Ok(Self { weights, columns, intermediate })
    }

    /// Rows that go through the layer, and how many experts they chose, as the line's name says.
    fn measured(&self, gpu: &CudaBackend, ceilings: &Ceilings, rows: usize) -> (String, Result<Measured>) {
        let count = self.weights.experts.len();
        let chosen = self.chosen(gpu, rows);
        let name = chosen.as_ref().map_or_else(|_| "some".to_owned(), |(_, chosen)| chosen.to_string());
        let measured = chosen.and_then(|(x, chosen)| {
            let seconds = seconds(gpu, 50, || gpu.experts(&x, &self.weights).map(drop))?;
            let expert = 3 * self.intermediate;
            let bytes = 2 * self.columns * (count + expert * chosen);
            let operations = 2 * self.columns * rows * (count + expert * self.weights.top_k);
            let floor = (bytes as f64 / ceilings.copy).max(operations as f64 / ceilings.product);
            Ok(Measured { seconds, floor })
        });
        (format!("{name} of {count} experts for {rows} rows"), measured)
    }

    /// Different rows, and how many experts they choose.
    fn chosen(&self, gpu: &CudaBackend, rows: usize) -> Result<(Tensor, usize)> {
        let numbers: Vec<f32> = (0..rows * self.columns).map(|at| ((at * at) % 1009) as f32 / 504.5 - 1.0).collect();
        let ones = gpu.vector(&vec![1.0; self.columns])?;
        let x = gpu.rms_norm(&gpu.upload(self.columns, &numbers)?, &ones, 1e-5)?;
        let scores = gpu.read(&gpu.linear(&x, &self.weights.router, None)?)?;
        let of_rows = scores.chunks(self.weights.experts.len());
        let mut chosen: Vec<usize> = of_rows.flat_map(|scores| best(scores, self.weights.top_k)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        Ok((x, chosen.len()))
    }
}

/// The experts with the largest scores.
fn best(scores: &[f32], each: usize) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    ranked.truncate(each);
    ranked
}

/// Prints the table. Returns how many lines of it failed.
pub(crate) fn table(gpu: &CudaBackend, ceilings: &Ceilings, quick: bool) -> usize {
    let mut table = Table { gpu, ceilings, scale: if quick { 64 } else { 1 }, failed: 0 };
    println!("{:<40} {:>12} {:>12} {:>8}", "kernel", "time, µs", "floor, µs", "reached");
    table.all_attention();
    table.of_kv();
    table.elementwise();
    table.of_some_families();
    println!("\nFloors are of the GPU's memory: what fits into its L2 may be read from there, and exceed its floor.\n");
    table.failed
}
