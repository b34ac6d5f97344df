//! amem's [`Backend`] for CPUs.
//!
//! Kernels are chosen when a [`Cpu`] is made, by the [`Instructions`] that the machine has and by the [`Arithmetic`] that is
//! asked for. Those of [`Arithmetic::Exact`] have one source, which [`pulp`] compiles for each instruction set: lanes run across
//! outputs or have a fixed tree of sums, so AVX-512, AVX2, NEON and plain scalar code give the same bits.
//! [`Arithmetic::Fast`] has kernels of its own for what a machine does better. In both, every output is computed by one thread
//! in one order, so the number of threads changes nothing.
#![deny(unsafe_code)]

mod activation;
mod attention;
mod cache;
mod elementwise;
mod isa;
mod number;
mod options;
mod pages;
mod products;
mod rotation;
mod threads;

use std::ops::Range;

use amem_core::transformer::{Attention, Backend, BlockTable, Numerics, Placement, Rope, Row, WeightTensor};
use amem_core::{Dtype, Error, Exactness, KvShape, Result, Token};
use cache::{BLOCK_TOKENS, Write};
use elementwise::{Add, AddRowDistance, RmsNorm, SiluMul};
use isa::Isa;
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
    data: Vec<f32>,
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
    angles: Angles,
}

/// The CPU and the threads that compute on it. Clones share the threads, and so may several models.
#[derive(Clone)]
pub struct Cpu {
    arch: Arch,
    isa: Isa,
    arithmetic: Arithmetic,
    weights: WeightFormat,
    threads: Threads,
}

impl Cpu {
    /// A backend with a thread for each core, and the best instructions that the machine has.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new() -> Result<Self> {
        Self::open(CpuOptions::default())
    }

    /// A backend with this many threads, at least one.
    ///
    /// # Errors
    /// When they cannot be started.
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
        Ok(Self { arch: isa.arch, isa, arithmetic, weights, threads: Threads::start(threads)? })
    }

    /// The instructions that it uses.
    pub fn instructions(&self) -> Instructions {
        self.isa.instructions
    }

    fn is_fast(&self) -> bool {
        self.arithmetic == Arithmetic::Fast
    }

    /// Does `task` for each part, on several threads if the work (in multiplications) is worth waking them for.
    fn each<T: Send>(&self, parts: Vec<T>, work: usize, task: impl Fn(T) + Send + Sync) {
        self.threads.each(parts, work, task);
    }
}

impl Backend for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type Cache = Cache;
    type Plan = Plan;

    fn numerics(&self) -> Numerics {
        let name = match (self.arithmetic, self.weights) {
            (Arithmetic::Exact, _) => "exact f32",
            (Arithmetic::Fast, WeightFormat::Int8) => "fast, int8 weights",
            (Arithmetic::Fast, WeightFormat::Int4) => "fast, int4 weights",
            (Arithmetic::Fast, WeightFormat::AsStored) if self.isa.has_bf16() => "fast, bf16 products",
            (Arithmetic::Fast, WeightFormat::AsStored) => "fast",
        };
        Numerics { name: name.to_owned(), exactness: Exactness::Bits }
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
        let tables = tables.iter().map(|table| table.to_vec()).collect();
        Ok(Plan { rows: rows.to_vec(), tables, angles: Angles::new(rope, &positions) })
    }

    fn upload(&self, columns: usize, numbers: &[f32]) -> Result<Tensor> {
        Ok(Tensor { columns, data: numbers.to_vec() })
    }

    fn embed(&self, table: &Matrix, tokens: &[Token]) -> Result<Tensor> {
        let mut data = Vec::with_capacity(tokens.len() * table.inputs());
        tokens.iter().for_each(|&token| table.read_row(token as usize, &mut data));
        Ok(Tensor { columns: table.inputs(), data })
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vec<f32>, eps: f32) -> Result<Tensor> {
        let mut y = x.clone();
        self.arch.dispatch(RmsNorm { x: &mut y.data, weight, eps });
        Ok(y)
    }

    fn linear(&self, x: &Tensor, w: &Matrix, bias: Option<&Vec<f32>>) -> Result<Tensor> {
        Ok(self.multiply(x, w, bias.map(Vec::as_slice)))
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        self.arch.dispatch(Add { x: &mut x.data, y: &y.data });
        Ok(())
    }

    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let mut y = gate.clone();
        const PART: usize = 1 << 14;
        let parts = y.data.chunks_mut(PART).zip(up.data.chunks(PART)).collect();
        // An exponential costs about as much as sixteen multiplications.
        self.each(parts, 16 * gate.data.len(), |(y, up)| self.arch.dispatch(SiluMul { y, up }));
        Ok(y)
    }

    fn rotate(&self, x: &mut Tensor, plan: &Plan) -> Result<()> {
        self.arch.dispatch(Rotate { angles: &plan.angles, x: &mut x.data, columns: x.columns });
        Ok(())
    }

    fn gather(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let row = |&row: &usize| x.data.get(row * x.columns..(row + 1) * x.columns).unwrap_or_default();
        Ok(Tensor { columns: x.columns, data: rows.iter().flat_map(row).copied().collect() })
    }

    fn concat(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        x.data.extend_from_slice(&y.data);
        Ok(())
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.clone())
    }

    fn write_kv(&self, cache: &mut Cache, layer: usize, plan: &Plan, keys: &Tensor, values: &Tensor) -> Result<()> {
        self.arch.dispatch(Write { cache, layer, plan, keys, values });
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
        Ok(Tensor { columns: 1, data: cache.distances(layer, plan, keys) })
    }

    fn add_row_distance(&self, x: &Tensor, y: &Tensor, factor: f32, sums: &mut Tensor) -> Result<()> {
        self.arch.dispatch(AddRowDistance { x: &x.data, y: &y.data, factor, sums: &mut sums.data });
        Ok(())
    }
}
