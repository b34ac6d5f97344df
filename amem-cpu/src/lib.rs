//! amem's [`Backend`] for CPUs.
//!
//! One source for every kernel, compiled for each instruction set that [`pulp`] knows and chosen at run time; lanes run
//! across outputs or have a fixed tree of sums, so AVX-512, AVX2, NEON and plain scalar code give the same bits. Every
//! output is computed by one thread in one order, so the number of threads changes nothing either.
#![forbid(unsafe_code)]

mod attention;
mod cache;
mod elementwise;
mod matrix;
mod rotation;

use std::num::NonZero;

use amem_core::transformer::{Backend, Rope, Row};
use amem_core::{Dtype, Error, KvChunk, KvShape, Result, Token};
use pulp::Arch;
use rayon::{ThreadPool, ThreadPoolBuilder};

pub use cache::Cache;
pub use matrix::Matrix;
pub use rotation::Angles;

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

/// The CPU and the threads that compute on it.
pub struct Cpu {
    arch: Arch,
    pool: ThreadPool,
}

impl Cpu {
    /// A backend with a thread for each core, and the best instructions that the machine has.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new() -> Result<Self> {
        Self::with_threads(std::thread::available_parallelism().map_or(1, NonZero::get))
    }

    /// A backend with this many threads, at least one.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        Self::start(Arch::new(), threads)
    }

    /// A backend that uses no SIMD instructions: the reference that the others are checked against.
    ///
    /// # Errors
    /// When its threads cannot be started.
    pub fn portable(threads: usize) -> Result<Self> {
        Self::start(Arch::Scalar, threads)
    }

    fn start(arch: Arch, threads: usize) -> Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|index| format!("amem-cpu-{index}"))
            .build()
            .map_err(|error| Error::Model(error.into()))?;
        Ok(Self { arch, pool })
    }

    /// Does `task` for each part, on several threads if the work (in multiplications) is worth waking them for.
    fn each<T: Send>(&self, parts: Vec<T>, work: usize, task: impl Fn(T) + Send + Sync) {
        use rayon::prelude::*;
        const WORTH_A_THREAD: usize = 100_000;
        if self.pool.current_num_threads() == 1 || parts.len() == 1 || work < WORTH_A_THREAD {
            parts.into_iter().for_each(task);
        } else {
            self.pool.install(|| parts.into_par_iter().for_each(task));
        }
    }
}

impl Backend for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Tensor = Tensor;
    type Cache = Cache;
    type Angles = Angles;

    fn matrix(&self, dtype: Dtype, outputs: usize, inputs: usize, bytes: &[u8]) -> Result<Matrix> {
        Matrix::pack(dtype, outputs, inputs, bytes)
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn cache(&self, shape: &KvShape, dtype: Dtype) -> Result<Cache> {
        Ok(Cache::new(*shape, dtype))
    }

    fn angles(&self, rope: &Rope, positions: &[u32]) -> Result<Angles> {
        Ok(Angles::new(rope, positions))
    }

    fn embed(&self, table: &Matrix, tokens: &[Token]) -> Result<Tensor> {
        let mut data = Vec::with_capacity(tokens.len() * table.inputs());
        tokens.iter().for_each(|&token| table.read_row(token as usize, &mut data));
        Ok(Tensor { columns: table.inputs(), data })
    }

    fn norm(&self, x: &Tensor, weight: &Vec<f32>, eps: f32) -> Result<Tensor> {
        let mut y = x.clone();
        self.arch.dispatch(|| elementwise::norm(&mut y.data, weight, eps));
        Ok(y)
    }

    fn linear(&self, x: &Tensor, w: &Matrix, bias: Option<&Vec<f32>>) -> Result<Tensor> {
        Ok(self.multiply(x, w, bias.map(Vec::as_slice)))
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        self.arch.dispatch(|| elementwise::add(&mut x.data, &y.data));
        Ok(())
    }

    fn gate(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let mut y = gate.clone();
        const PART: usize = 1 << 14;
        let parts = y.data.chunks_mut(PART).zip(up.data.chunks(PART)).collect();
        // An exponential costs about as much as sixteen multiplications.
        self.each(parts, 16 * gate.data.len(), |(y, up)| self.arch.dispatch(|| elementwise::gate(y, up)));
        Ok(y)
    }

    fn rotate(&self, x: &mut Tensor, angles: &Angles) -> Result<()> {
        self.arch.dispatch(|| angles.rotate(&mut x.data, x.columns));
        Ok(())
    }

    fn take(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let row = |&index: &usize| x.data.get(index * x.columns..(index + 1) * x.columns).unwrap_or_default();
        Ok(Tensor { columns: x.columns, data: rows.iter().flat_map(row).copied().collect() })
    }

    fn join(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        x.data.extend_from_slice(&y.data);
        Ok(())
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.clone())
    }

    fn write(
        &self,
        caches: &mut [&mut Cache],
        layer: usize,
        rows: &[Row],
        angles: &Angles,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<()> {
        let width = keys.columns;
        for (index, row) in rows.iter().enumerate() {
            let at = index * width..(index + 1) * width;
            let cache = &mut caches[row.context];
            cache.write(layer, row.slot as usize, angles.row(index), &keys.data[at.clone()], &values.data[at]);
        }
        Ok(())
    }

    fn place(&self, cache: &mut Cache, slot: u32, angles: &Angles, chunk: &KvChunk) -> Result<()> {
        self.place_chunk(cache, slot as usize, angles, chunk)
    }

    fn attend(&self, caches: &[&mut Cache], layer: usize, rows: &[Row], queries: &Tensor) -> Result<Tensor> {
        Ok(self.attention(caches, layer, rows, queries))
    }

    fn attention_mass(
        &self,
        caches: &[&mut Cache],
        layer: usize,
        rows: &[Row],
        queries: &Tensor,
        slots: usize,
    ) -> Result<Vec<f32>> {
        Ok(self.mass(caches, layer, rows, queries, slots))
    }

    fn key_distance(
        &self,
        caches: &[&mut Cache],
        layer: usize,
        rows: &[Row],
        angles: &Angles,
        keys: &Tensor,
    ) -> Result<Vec<f32>> {
        let width = keys.columns;
        let distance = |(index, row): (usize, &Row)| {
            let cache = &caches[row.context];
            cache.distance(layer, row.slot as usize, angles.row(index), &keys.data[index * width..(index + 1) * width])
        };
        Ok(rows.iter().enumerate().map(distance).collect())
    }
}
