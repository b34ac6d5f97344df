//! amem's [`Backend`] for CPUs.
//!
//! Kernels are chosen when a [`Cpu`] is made, by the [`Instructions`] that the machine has and by the [`Arithmetic`] that
//! is asked for. Those of [`Arithmetic::Exact`] have one source, which [`pulp`] compiles for each instruction set: lanes
//! run across outputs or have a fixed tree of sums, so AVX-512, AVX2, NEON and plain scalar code give the same bits.
//! [`Arithmetic::Fast`] has kernels of its own for what a machine does better. In both, the order in which an output is
//! added up does not depend on the number of threads, even where several share it (attention over a long context).
#![deny(unsafe_code)]

mod activation;
mod attention;
mod buffers;
mod cache;
mod elementwise;
mod experts;
mod isa;
mod lines;
mod load_kv;
#[cfg(target_arch = "aarch64")]
mod neon;
mod number;
mod options;
mod pages;
mod products;
mod rotation;
mod threads;
mod unroll;
mod vectors;
mod widening;

use std::ops::Range;

use activation::Map;
use amem_core::transformer::{
    Activation, Attention, AttentionWeights, Backend, BlockTable, LayerNorm, MlpWeights, Numerics, Placement, Qkv,
    Rope, Row, WeightTensor,
};
use amem_core::{Dtype, Error, Exactness, KvShape, Result, Token};
use buffers::{Buffers, Numbers};
use cache::{BLOCK_TOKENS, Slots};
use elementwise::{Add, AddRowDistance, Norm, Normalize};
use isa::Isa;
use pages::Regions;
use pulp::Arch;
use rotation::{Angles, Rotate};
use threads::Threads;

pub use cache::Cache;
pub use isa::Instructions;
pub use options::{Arithmetic, CpuOptions, WeightFormat};
pub use products::Matrix;

/// Activations, `[rows][columns]`.
#[derive(Clone, Debug)]
pub struct Tensor {
    columns: usize,
    data: Numbers,
}

impl Tensor {
    fn rows(&self) -> usize {
        self.data.len().checked_div(self.columns).unwrap_or(0)
    }
}

/// The rows of a pass, the blocks that their contexts lie in, and the angles of their positions.
pub struct Plan {
    rows: Vec<Row>,
    tables: Vec<Vec<u32>>,
    slots: Slots,
    angles: Angles,
}

/// The CPU and the threads that compute on it. Clones share the threads, and so may several models. While one of them waits
/// for the rest of its pass, its thread may take up another's: give a model that must answer at once a `Cpu` of its own.
#[derive(Clone)]
pub struct Cpu {
    arch: Arch,
    isa: Isa,
    arithmetic: Arithmetic,
    weights: WeightFormat,
    threads: Threads,
    buffers: Buffers,
    pages: Regions,
}

impl Cpu {
    /// A backend with a thread for each logical CPU that the process may use, and the best instructions that the machine
    /// has.
    ///
    /// # Errors
    /// [`Error::Model`] when threads cannot be started.
    pub fn new() -> Result<Self> {
        Self::open(CpuOptions::default())
    }

    /// A backend with this many threads, at least one.
    ///
    /// # Errors
    /// [`Error::Model`] when they cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        Self::open(CpuOptions::default().threads(threads))
    }

    /// A backend with these options.
    ///
    /// # Errors
    /// [`Error::BadValue`] for instructions that the machine lacks, and for weights of few bits in exact arithmetic;
    /// [`Error::Model`] when threads cannot be started.
    pub fn open(options: CpuOptions) -> Result<Self> {
        let CpuOptions { threads, arithmetic, weights, instructions } = options;
        let instructions = instructions.unwrap_or_else(Instructions::detected);
        let isa = Isa::of(instructions).ok_or_else(|| Error::BadValue {
            what: "instructions",
            value: format!("{instructions:?}"),
            expected: "a set that this machine has",
        })?;
        if arithmetic == Arithmetic::Exact && weights != WeightFormat::AsStored {
            let value = format!("{weights:?}");
            return Err(Error::BadValue { what: "weights", value, expected: "AsStored, in exact arithmetic" });
        }
        Ok(Self {
            arch: isa.arch,
            isa,
            arithmetic,
            weights,
            threads: Threads::start(threads)?,
            buffers: Buffers::default(),
            pages: Regions::default(),
        })
    }

    /// The instructions that it uses.
    pub fn instructions(&self) -> Instructions {
        self.isa.instructions
    }

    fn is_fast(&self) -> bool {
        self.arithmetic == Arithmetic::Fast
    }

    /// A tensor of so many rows, whatever their numbers are.
    fn tensor(&self, rows: usize, columns: usize) -> Tensor {
        Tensor { columns, data: self.buffers.take(rows * columns) }
    }

    /// Numbers of the host as a tensor.
    fn tensor_of(&self, columns: usize, numbers: &[f32]) -> Tensor {
        let mut data = self.buffers.take(numbers.len());
        data.copy_from_slice(numbers);
        Tensor { columns, data }
    }

    /// Does `task` for each part, on several threads if the work (in multiplications) is worth waking them for.
    fn each<T: Send>(&self, parts: Vec<T>, work: usize, task: impl Fn(T) + Send + Sync) {
        self.threads.each(parts, work, task);
    }
}

fn layer_norm(norm: &LayerNorm<Cpu>) -> Norm<'_> {
    Norm::Layer { weight: &norm.weight, bias: &norm.bias, eps: norm.eps }
}

impl Cpu {
    fn norm(&self, x: &Tensor, norm: Norm<'_>) -> Tensor {
        let mut y = self.tensor(x.rows(), x.columns);
        let part = whole_rows(x.columns);
        let parts = y.data.chunks_mut(part).zip(x.data.chunks(part)).collect();
        self.each(parts, norm.cost() * x.data.len(), |(y, x)| self.arch.dispatch(Normalize { norm, x, y }));
        y
    }

    /// Adds `y` to `x`, and takes the norm of the sum.
    fn add_norm(&self, x: &mut Tensor, y: &Tensor, norm: Norm<'_>) -> Tensor {
        let mut normed = self.tensor(x.rows(), x.columns);
        let part = whole_rows(x.columns);
        let parts = normed.data.chunks_mut(part).zip(x.data.chunks_mut(part)).zip(y.data.chunks(part)).collect();
        self.each(parts, (norm.cost() + 1) * y.data.len(), |((normed, x), y)| {
            self.arch.dispatch(Add { x, y });
            self.arch.dispatch(Normalize { norm, x, y: normed });
        });
        normed
    }

    fn mlp_of_rows(&self, x: &Tensor, w: &MlpWeights<Self>) -> Result<Tensor> {
        let weights = [&w.gate, &w.up].map(|w| (&w.weight, w.bias.as_deref()));
        let gated = self.multiply_gated(x, w.activation, weights)?;
        self.linear(&gated, &w.down.weight, w.down.bias.as_ref())
    }
}

impl Backend for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type Cache = Cache;
    type Plan = Plan;

    fn numerics(&self) -> Numerics {
        // With AVX-512, where bf16 is multiplied as it is, attention rounds to it as well.
        let name = match (self.arithmetic, self.weights, self.isa.has_bf16()) {
            (Arithmetic::Exact, ..) => "exact f32",
            (Arithmetic::Fast, WeightFormat::Int8, false) => "fast, int8 weights",
            (Arithmetic::Fast, WeightFormat::Int8, true) => "fast, int8 weights, bf16 products",
            (Arithmetic::Fast, WeightFormat::Int4, false) => "fast, int4 weights",
            (Arithmetic::Fast, WeightFormat::Int4, true) => "fast, int4 weights, bf16 products",
            (Arithmetic::Fast, WeightFormat::AsStored, false) => "fast",
            (Arithmetic::Fast, WeightFormat::AsStored, true) => "fast, bf16 products",
        };
        // Attention adds up what a row sees in parts, by the slots where it lies, and a row may see the same elsewhere.
        let exactness = match self.arithmetic {
            Arithmetic::Exact => Exactness::Bits,
            Arithmetic::Fast if self.isa.has_bf16() => Exactness::Within(1e-2),
            Arithmetic::Fast => Exactness::Within(1e-4),
        };
        Numerics { name: name.to_owned(), exactness }
    }

    fn matrix(&self, tensor: &WeightTensor<'_>) -> Result<Matrix> {
        self.pack(tensor)
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn block_tokens(&self) -> usize {
        BLOCK_TOKENS
    }

    fn cache(&self, shape: &KvShape, dtype: Dtype, _: usize) -> Result<Cache> {
        Cache::new(*shape, dtype)
    }

    fn copy_block(&self, cache: &mut Cache, from: u32, to: u32) -> Result<()> {
        cache.copy_block(from, to);
        Ok(())
    }

    fn plan(&self, rope: &Rope, rows: &[Row], tables: &[BlockTable<'_>]) -> Result<Plan> {
        let positions: Vec<u32> = rows.iter().map(|row| row.position).collect();
        let tables: Vec<Vec<u32>> = tables.iter().map(|table| table.to_vec()).collect();
        let (slots, angles) = (Slots::of(rows, &tables), Angles::new(self, rope, &positions));
        Ok(Plan { rows: rows.to_vec(), tables, slots, angles })
    }

    fn upload(&self, columns: usize, numbers: &[f32]) -> Result<Tensor> {
        Ok(self.tensor_of(columns, numbers))
    }

    fn columns(&self, x: &Tensor) -> usize {
        x.columns
    }

    fn embed(&self, table: &Matrix, tokens: &[Token]) -> Result<Tensor> {
        let mut x = self.tensor(tokens.len(), table.inputs());
        let rows: Vec<_> = x.data.chunks_exact_mut(table.inputs()).zip(tokens).collect();
        self.each(rows, tokens.len() * table.inputs(), |(row, &token)| table.read_row(token as usize, row));
        Ok(x)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vec<f32>, eps: f32) -> Result<Tensor> {
        Ok(self.norm(x, Norm::Rms { weight, eps }))
    }

    fn linear(&self, x: &Tensor, w: &Matrix, bias: Option<&Vec<f32>>) -> Result<Tensor> {
        Ok(self.multiply(x, w, bias.map(Vec::as_slice)))
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        let parts = x.data.chunks_mut(PART).zip(y.data.chunks(PART)).collect();
        self.each(parts, y.data.len(), |(x, y)| self.arch.dispatch(Add { x, y }));
        Ok(())
    }

    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let mut y = gate.clone();
        self.gate(Activation::Silu, &mut y, up)?;
        Ok(y)
    }

    fn gelu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let mut y = gate.clone();
        self.gate(Activation::GeluTanh, &mut y, up)?;
        Ok(y)
    }

    fn layer_norm(&self, x: &Tensor, norm: &LayerNorm<Self>) -> Result<Tensor> {
        Ok(self.norm(x, layer_norm(norm)))
    }

    fn gelu(&self, x: &mut Tensor) -> Result<()> {
        self.map(x, Map::Gelu);
        Ok(())
    }

    fn scale(&self, x: &mut Tensor, factor: f32) -> Result<()> {
        self.map(x, Map::Scale(factor));
        Ok(())
    }

    fn soft_cap(&self, x: &mut Tensor, cap: f32) -> Result<()> {
        self.map(x, Map::SoftCap(cap));
        Ok(())
    }

    fn sum_rows(&self, x: &Tensor, picked: &[(usize, f32)], each: usize) -> Result<Tensor> {
        self.sums(x, picked, each)
    }

    fn rotate(&self, x: &mut Tensor, plan: &Plan) -> Result<()> {
        let (columns, part) = (x.columns, whole_rows(x.columns));
        let rows = part / columns.max(1);
        let parts = x.data.chunks_mut(part).enumerate().map(|(index, x)| (index * rows, x)).collect();
        self.each(parts, 2 * plan.rows.len() * columns, |(first, x)| {
            self.arch.dispatch(Rotate { angles: &plan.angles, first, x, columns });
        });
        Ok(())
    }

    fn gather(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let mut y = self.tensor(rows.len(), x.columns);
        for (to, &row) in y.data.chunks_exact_mut(x.columns.max(1)).zip(rows) {
            match x.data.get(row * x.columns..(row + 1) * x.columns) {
                Some(row) => to.copy_from_slice(row),
                None => to.fill(0.0),
            }
        }
        Ok(y)
    }

    fn concat(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        x.data.append(&y.data);
        Ok(())
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn write_kv(&self, cache: &mut Cache, layer: usize, plan: &Plan, keys: &Tensor, values: &Tensor) -> Result<()> {
        self.write(cache, layer, plan, keys, values);
        Ok(())
    }

    fn load_kv(&self, cache: &mut Cache, rope: &Rope, layers: &[usize], placements: &[Placement<'_>]) -> Result<()> {
        self.load(cache, rope, layers, placements)
    }

    fn attend(&self, cache: &Cache, attention: Attention, plan: &Plan, queries: &Tensor) -> Result<Tensor> {
        Ok(self.attention(cache, attention, plan, queries))
    }

    fn attention_mass(
        &self,
        cache: &Cache,
        attention: Attention,
        plan: &Plan,
        rows: Range<usize>,
        queries: &Tensor,
        mass: &mut Tensor,
    ) -> Result<()> {
        self.mass(cache, attention, plan, rows, queries, mass);
        Ok(())
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.threads.run(work)
    }

    fn key_distance(&self, cache: &Cache, layer: usize, plan: &Plan, keys: &Tensor) -> Result<Tensor> {
        Ok(self.distances(cache, layer, plan, keys))
    }

    fn add_row_distance(&self, x: &Tensor, y: &Tensor, factor: f32, sums: &mut Tensor) -> Result<()> {
        let part = whole_rows(x.columns);
        let rows = part / x.columns.max(1);
        let parts = x.data.chunks(part).zip(y.data.chunks(part)).zip(sums.data.chunks_mut(rows.max(1))).collect();
        self.each(parts, x.data.len(), |((x, y), sums)| self.arch.dispatch(AddRowDistance { x, y, factor, sums }));
        Ok(())
    }

    fn qkv(&self, x: &Tensor, w: &AttentionWeights<Self>, plan: &Plan) -> Result<Qkv<Tensor>> {
        let weights = [&w.query, &w.key, &w.value].map(|w| (&w.weight, w.bias.as_deref()));
        let [mut queries, mut keys, values] = self.multiply_each(x, weights);
        for (x, norm) in [(&mut queries, &w.query_norm), (&mut keys, &w.key_norm)] {
            if let Some(norm) = norm {
                *x = self.rms_norm(x, norm, w.norm_eps)?;
            }
        }
        self.rotate(&mut queries, plan)?;
        Ok(Qkv { queries, keys, values })
    }

    fn add_rms_norm(&self, x: &mut Tensor, y: &Tensor, weight: &Vec<f32>, eps: f32) -> Result<Tensor> {
        Ok(self.add_norm(x, y, Norm::Rms { weight, eps }))
    }

    fn add_layer_norm(&self, x: &mut Tensor, y: &Tensor, norm: &LayerNorm<Self>) -> Result<Tensor> {
        Ok(self.add_norm(x, y, layer_norm(norm)))
    }

    fn mlp(&self, x: &Tensor, w: &MlpWeights<Self>) -> Result<Tensor> {
        if x.rows() <= MLP_ROWS {
            return self.mlp_of_rows(x, w);
        }
        let rows = x.rows().div_ceil(x.rows().div_ceil(MLP_ROWS));
        let mut y = self.tensor(x.rows(), w.down.weight.outputs);
        let blocks =
            x.data.chunks((rows * x.columns).max(1)).zip(y.data.chunks_mut((rows * w.down.weight.outputs).max(1)));
        for (x_block, y_block) in blocks {
            let mut block = self.tensor(x_block.len() / x.columns.max(1), x.columns);
            block.data.copy_from_slice(x_block);
            y_block.copy_from_slice(&self.mlp_of_rows(&block, w)?.data);
        }
        Ok(y)
    }
}

/// Rows that go through a feed-forward block together at most. What lies between its products is several times as wide as a
/// row, and would take more memory than all else of a pass. With half as many, reading the weights again for each block
/// takes measurably longer.
const MLP_ROWS: usize = 512;

/// Numbers that one thread takes at a time where each costs little: what fits a core's nearest cache.
const PART: usize = 1 << 12;

/// What an exponential and a division cost, in multiplications.
const EXPONENTIAL: usize = 16;

/// About [`PART`] numbers, in whole rows.
fn whole_rows(columns: usize) -> usize {
    columns.max(1) * (PART / columns.max(1)).max(1)
}
