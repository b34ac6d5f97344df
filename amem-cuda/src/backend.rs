//! The [`Backend`]: what each of its methods submits to the GPU.

use std::ops::Range;
use std::sync::Arc;

use amem_core::transformer::{
    Attention, AttentionWeights, Backend, BlockTable, ExpertWeights, LayerNorm, MlpWeights, Numerics, Placement, Qkv,
    Rope, Row, WeightRole, WeightTensor,
};
use amem_core::{Dtype, Error, Exactness, KvShape, Result, Token};

use crate::angles::{Angles, Table};
use crate::attention::Plan;
use crate::cache::Cache;
use crate::driver::{Buffer, Counters, Device, Launch};
use crate::error::CudaError;
use crate::experts::Tables;
use crate::plan::BLOCK_TOKENS;
use crate::precision::Precision;
use crate::tensor::{Matrix, Tensor, Vector};

/// Elements that a block of an elementwise kernel takes.
const PART: usize = 1024;

/// The largest cap of scores, which are off by at most 5e-7 of it.
const LARGEST_CAP: f32 = 1000.0;

/// Which GPU to compute on, and in what.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct CudaOptions {
    /// The GPU's number, from 0, in the driver's order.
    pub ordinal: usize,
    /// The number type that is computed in.
    pub precision: Precision,
    /// Whether each weight matrix, KV cache and stored chunk has memory of the driver to itself. Then tools that look for
    /// accesses out of bounds, such as compute-sanitizer, know where each of them ends. It takes more memory: the driver gives
    /// whole pages of 2 MiB.
    pub separate_buffers: bool,
}

impl CudaOptions {
    /// On this GPU.
    #[must_use]
    pub fn ordinal(self, ordinal: usize) -> Self {
        Self { ordinal, ..self }
    }

    /// In this number type.
    #[must_use]
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// With memory of its own for all that stays, or not.
    #[must_use]
    pub fn separate_buffers(self, separate_buffers: bool) -> Self {
        Self { separate_buffers, ..self }
    }
}

/// A GPU to compute on. Clones share it, and so may several models.
#[derive(Clone)]
pub struct CudaBackend {
    device: Arc<Device>,
    precision: Precision,
    angles: Arc<Angles>,
    tables: Arc<Tables>,
}

impl CudaBackend {
    /// Opens a GPU.
    ///
    /// # Errors
    /// What is missing: a driver, a GPU, cuBLASLt, a newer version of one of them.
    pub fn open(options: CudaOptions) -> Result<Self, CudaError> {
        let device = Device::open(options.ordinal, options.separate_buffers)?;
        Ok(Self { device, precision: options.precision, angles: Arc::default(), tables: Arc::default() })
    }

    /// What is computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What was asked of the driver so far.
    pub fn counters(&self) -> Counters {
        self.device.counters()
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn angles(&self, rope: &Rope, position: u32) -> Result<Arc<Table>, CudaError> {
        self.angles.up_to(&self.device, rope, position)
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The module with attention for heads of so many numbers.
    pub(crate) fn attention_module(&self, head_dim: usize) -> Result<&'static str, CudaError> {
        let missing = CudaError::HeadDim { head_dim, dtype: self.precision.name() };
        self.precision.attention(head_dim).ok_or(missing)
    }

    pub(crate) fn elementwise<'b>(&self, name: &'static str, grid: [usize; 3]) -> Result<Launch<'b>, CudaError> {
        Ok(Launch::new(&self.device.kernel(self.precision.elementwise(), name)?, grid))
    }

    fn tensor(&self, rows: usize, columns: usize, dtype: Dtype) -> Result<Tensor, CudaError> {
        Tensor::new(&self.device, rows, columns, dtype)
    }

    /// The same numbers in the type `to`: the precision's, or f32.
    fn converted(&self, x: &Tensor, to: Dtype) -> Result<Tensor, CudaError> {
        let y = self.tensor(x.rows, x.columns, to)?;
        if x.dtype == to {
            self.device.copy((&y.buffer, 0), (&x.buffer, 0), x.bytes())?;
            return Ok(y);
        }
        let name = if to == Dtype::F32 { "widen" } else { "narrow" };
        self.elementwise(name, [x.numbers().div_ceil(PART), 1, 1])?
            .buffer(&x.buffer, x.bytes())?
            .buffer(&y.buffer, y.bytes())?
            .count(x.numbers())
            .submit(&self.device)?;
        Ok(y)
    }

    /// A tensor in the precision that is computed in: as it is, or converted.
    pub(crate) fn narrowed<'a>(&self, x: &'a Tensor) -> Result<Typed<'a>, CudaError> {
        self.typed(x, self.precision.dtype())
    }

    /// A tensor in the precision that is computed in or in f32: as it is, or converted.
    fn typed<'a>(&self, x: &'a Tensor, dtype: Dtype) -> Result<Typed<'a>, CudaError> {
        match x.dtype == dtype {
            true => Ok(Typed::AsItIs(x)),
            false => Ok(Typed::Converted(self.converted(x, dtype)?)),
        }
    }

    /// What a kernel of that name makes of a gate and what it is for.
    fn gated_by(&self, name: &'static str, gate: &Tensor, up: &Tensor) -> Result<Tensor, CudaError> {
        let (gate, up) = (self.narrowed(gate)?, self.narrowed(up)?);
        let y = self.tensor(gate.rows, gate.columns, gate.dtype)?;
        self.elementwise(name, [y.numbers().div_ceil(PART), 1, 1])?
            .buffer(&gate.buffer, y.bytes())?
            .buffer(&up.buffer, y.bytes())?
            .buffer(&y.buffer, y.bytes())?
            .count(y.numbers())
            .submit(&self.device)?;
        Ok(y)
    }

    /// A launch that changes each number of a tensor where it lies.
    pub(crate) fn in_place<'b>(&self, name: &'static str, x: &'b Tensor) -> Result<Launch<'b>, CudaError> {
        let launch = self.elementwise(name, [x.numbers().div_ceil(PART), 1, 1])?;
        Ok(launch.buffer(&x.buffer, x.bytes())?.count(x.numbers()))
    }

    /// Makes a tensor one of the precision that is computed in, if it is not.
    fn narrow(&self, x: &mut Tensor) -> Result<(), CudaError> {
        if x.dtype != self.precision.dtype() {
            *x = self.converted(x, self.precision.dtype())?;
        }
        Ok(())
    }

    /// Makes the residual stream f32, if it is not.
    fn widen(&self, x: &mut Tensor) -> Result<(), CudaError> {
        if x.dtype != Dtype::F32 {
            *x = self.converted(x, Dtype::F32)?;
        }
        Ok(())
    }
}

/// A tensor in the number type that is wanted.
pub(crate) enum Typed<'a> {
    AsItIs(&'a Tensor),
    Converted(Tensor),
}

impl std::ops::Deref for Typed<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Typed::AsItIs(tensor) => tensor,
            Typed::Converted(tensor) => tensor,
        }
    }
}

impl Backend for CudaBackend {
    type Matrix = Matrix;
    type Vector = Vector;
    type Tensor = Tensor;
    type Cache = Cache;
    type Plan = Plan;

    fn numerics(&self) -> Numerics {
        let name = format!("cuda {}", self.precision.name());
        Numerics { name, exactness: Exactness::Within(self.precision.tolerance()) }
    }

    fn matrix(&self, tensor: &WeightTensor<'_>) -> Result<Matrix> {
        let logits = matches!(tensor.role, WeightRole::LmHead | WeightRole::TiedEmbedding | WeightRole::Router);
        Matrix::upload(&self.device, self.precision, tensor, logits)
    }

    fn vector(&self, values: &[f32]) -> Result<Vector> {
        Ok(Vector::upload(&self.device, self.precision, values)?)
    }

    fn block_tokens(&self) -> usize {
        BLOCK_TOKENS
    }

    fn cache(&self, shape: &KvShape, dtype: Dtype, blocks: usize) -> Result<Cache> {
        Cache::new(self, shape, dtype, blocks)
    }

    fn copy_block(&self, cache: &mut Cache, from: u32, to: u32) -> Result<()> {
        cache.copy_block(self, from, to)
    }

    fn plan(&self, rope: &Rope, rows: &[Row], tables: &[BlockTable<'_>]) -> Result<Plan> {
        Plan::new(self, rope, rows, tables)
    }

    fn upload(&self, columns: usize, numbers: &[f32]) -> Result<Tensor> {
        let buffer = self.device.upload(bytemuck::cast_slice(numbers))?;
        let rows = numbers.len().checked_div(columns).unwrap_or(0);
        Ok(Tensor { rows, columns, dtype: Dtype::F32, buffer })
    }

    fn columns(&self, x: &Tensor) -> usize {
        x.columns
    }

    fn embed(&self, table: &Matrix, tokens: &[Token]) -> Result<Tensor> {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= table.outputs) {
            let (value, expected) = (token.to_string(), "in the model's vocabulary");
            return Err(Error::BadValue { what: "token", value, expected });
        }
        let y = self.tensor(tokens.len(), table.inputs, Dtype::F32)?;
        let ids = self.device.upload(bytemuck::cast_slice(tokens))?;
        self.elementwise("embed", [tokens.len(), 1, 1])?
            .buffer(&table.weights, table.weights.bytes())?
            .buffer(&ids, 4 * tokens.len())?
            .buffer(&y.buffer, y.bytes())?
            .count(table.inputs)
            .submit(&self.device)?;
        Ok(y)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vector, eps: f32) -> Result<Tensor> {
        let y = self.tensor(x.rows, x.columns, self.precision.dtype())?;
        let runs = x.numbers().checked_div(weight.len).unwrap_or(0);
        // The residual stream is normed whole; heads come in the precision that is computed in.
        let narrowed;
        let launch = if x.dtype == Dtype::F32 && weight.len == x.columns {
            self.elementwise("rms_norm", [runs, 1, 1])?
                .buffer(&x.buffer, x.bytes())?
                .buffer(&weight.exact, 4 * weight.len)?
                .buffer(&y.buffer, y.bytes())?
                .count(weight.len)
        } else {
            const RUNS: usize = 8;
            narrowed = self.narrowed(x)?;
            self.elementwise("rms_norm_heads", [runs.div_ceil(RUNS), 1, 1])?
                .buffer(&narrowed.buffer, narrowed.bytes())?
                .buffer(&weight.exact, 4 * weight.len)?
                .buffer(&y.buffer, y.bytes())?
                .count(weight.len)
                .count(runs)
        };
        launch.real(eps).submit(&self.device)?;
        Ok(y)
    }

    fn linear(&self, x: &Tensor, w: &Matrix, bias: Option<&Vector>) -> Result<Tensor> {
        Ok(self.product(x, w, bias)?)
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        self.widen(x)?;
        let y = self.narrowed(y)?;
        self.elementwise("add", [x.numbers().div_ceil(PART), 1, 1])?
            .buffer(&x.buffer, x.bytes())?
            .buffer(&y.buffer, x.numbers() * y.dtype.size())?
            .count(x.numbers())
            .submit(&self.device)?;
        Ok(())
    }

    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        Ok(self.gated_by("silu_mul", gate, up)?)
    }

    fn rotate(&self, x: &mut Tensor, plan: &Plan) -> Result<()> {
        self.narrow(x)?;
        let head_dim = plan.angles.head_dim();
        let launch = self
            .elementwise("rotate", [plan.rows.len(), 1, 1])?
            .buffer(&x.buffer, plan.rows.len() * x.columns * x.dtype.size())?;
        let launch = plan.positions(plan.angles(launch)?)?;
        launch.count(x.columns / head_dim.max(1)).count(head_dim).submit(&self.device)?;
        Ok(())
    }

    fn gather(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        if let Some(row) = rows.iter().find(|row| **row >= x.rows) {
            let value = row.to_string();
            return Err(Error::BadValue { what: "row", value, expected: "one of the tensor's" });
        }
        let y = self.tensor(rows.len(), x.columns, x.dtype)?;
        let ids: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let ids = self.device.upload(bytemuck::cast_slice(&ids))?;
        let words = x.columns * x.dtype.size() / 4;
        Launch::new(&self.device.kernel("rows", "gather_rows")?, [rows.len(), 1, 1])
            .buffer(&x.buffer, x.bytes())?
            .buffer(&ids, 4 * rows.len())?
            .buffer(&y.buffer, y.bytes())?
            .count(words)
            .submit(&self.device)?;
        Ok(y)
    }

    fn concat(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        let y = self.typed(y, x.dtype)?;
        let (held, joined) = (x.bytes(), x.bytes() + y.bytes());
        if x.buffer.bytes() < joined {
            // With room for more: what experts make of rows is appended one by one.
            let buffer = Buffer::new(&self.device, joined.saturating_add(joined / 2))?;
            self.device.copy((&buffer, 0), (&x.buffer, 0), held)?;
            x.buffer = buffer;
        }
        self.device.copy((&x.buffer, held), (&y.buffer, 0), y.bytes())?;
        x.rows += y.rows;
        Ok(())
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        let bytes = self.device.read(&x.buffer, 0, x.bytes())?;
        let mut numbers = vec![0f32; x.numbers()];
        x.dtype.decode(&bytes, &mut numbers);
        Ok(numbers)
    }

    fn write_kv(&self, cache: &mut Cache, layer: usize, plan: &Plan, keys: &Tensor, values: &Tensor) -> Result<()> {
        plan.check(cache)?;
        let (keys, values) = (self.narrowed(keys)?, self.narrowed(values)?);
        let KvShape { kv_heads, head_dim, .. } = cache.shape;
        let bytes = plan.rows.len() * cache.shape.row() * keys.dtype.size();
        let kernel = self.device.kernel(self.precision.kv(), "write_kv")?;
        let launch =
            Launch::new(&kernel, [plan.rows.len(), 1, 1]).buffer(&keys.buffer, bytes)?.buffer(&values.buffer, bytes)?;
        let launch = plan.slots(plan.positions(plan.angles(launch)?)?)?;
        let launch = cache.argument(cache.argument(launch, layer, 0)?, layer, 1)?;
        launch.count(kv_heads).count(head_dim).submit(&self.device)?;
        Ok(())
    }

    fn load_kv(&self, cache: &mut Cache, rope: &Rope, layers: &[usize], placements: &[Placement<'_>]) -> Result<()> {
        cache.load(self, rope, layers, placements)
    }

    fn check_attention(&self, attention: &Attention) -> Result<()> {
        match attention.soft_cap {
            Some(cap) if cap > LARGEST_CAP => Err(Error::UnsupportedModel {
                what: format!("attention whose scores are capped at {cap}, on a GPU"),
                supported: "caps of up to 1,000 are, for scores are off by a share of the cap; the CPU backend has all",
            }),
            _ => Ok(()),
        }
    }

    fn attend(&self, cache: &Cache, attention: Attention, plan: &Plan, queries: &Tensor) -> Result<Tensor> {
        self.attention(cache, attention, plan, queries)
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
        self.attention_mass_of((cache, attention), plan, rows, queries, mass)
    }

    fn key_distance(&self, cache: &Cache, layer: usize, plan: &Plan, keys: &Tensor) -> Result<Tensor> {
        plan.check(cache)?;
        let keys = self.narrowed(keys)?;
        let KvShape { kv_heads, head_dim, .. } = cache.shape;
        let rows = plan.rows.len();
        let distances = self.tensor(rows, 1, Dtype::F32)?;
        let bytes = rows * cache.shape.row() * keys.dtype.size();
        let launch = Launch::new(&self.device.kernel(self.precision.kv(), "key_distance")?, [rows, 1, 1])
            .buffer(&keys.buffer, bytes)?;
        let launch = plan.slots(plan.positions(plan.angles(launch)?)?)?;
        cache
            .argument(launch, layer, 0)?
            .buffer(&distances.buffer, distances.bytes())?
            .count(kv_heads)
            .count(head_dim)
            .submit(&self.device)?;
        Ok(distances)
    }

    fn read_as(&self, x: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
        if x.dtype == dtype && cfg!(target_endian = "little") {
            return Ok(self.device.read(&x.buffer, 0, x.bytes())?);
        }
        let mut bytes = Vec::new();
        dtype.encode(&self.read(x)?, &mut bytes);
        Ok(bytes)
    }

    fn add_row_distance(&self, x: &Tensor, y: &Tensor, factor: f32, sums: &mut Tensor) -> Result<()> {
        const ROWS: usize = 8;
        let (x, y) = (self.narrowed(x)?, self.narrowed(y)?);
        Launch::new(&self.device.kernel(self.precision.distance(), "add_row_distance")?, [x.rows.div_ceil(ROWS), 1, 1])
            .buffer(&x.buffer, x.bytes())?
            .buffer(&y.buffer, x.bytes())?
            .buffer(&sums.buffer, 4 * x.rows)?
            .count(x.rows)
            .count(x.columns)
            .real(factor)
            .submit(&self.device)?;
        Ok(())
    }

    fn heaviest(&self, mass: &Tensor, slots: &[u32], factors: Option<&[f32]>, count: usize) -> Result<Vec<usize>> {
        self.choose(mass, slots, factors, count)
    }

    fn gelu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        Ok(self.gated_by("gelu_mul", gate, up)?)
    }

    fn scale(&self, x: &mut Tensor, factor: f32) -> Result<()> {
        // Where f32 is not what is computed in, it has a kernel of its own.
        let wide = x.dtype == Dtype::F32 && self.precision != Precision::F32;
        let name = if wide { "scale_f32" } else { "scale" };
        Ok(self.in_place(name, x)?.real(factor).submit(&self.device)?)
    }

    fn soft_cap(&self, x: &mut Tensor, cap: f32) -> Result<()> {
        self.widen(x)?;
        Ok(self.in_place("soft_cap", x)?.real(cap).submit(&self.device)?)
    }

    fn sum_rows(&self, x: &Tensor, picked: &[(usize, f32)], each: usize) -> Result<Tensor> {
        if let Some((row, _)) = picked.iter().find(|(row, _)| *row >= x.rows) {
            let value = row.to_string();
            return Err(Error::BadValue { what: "row", value, expected: "one of the tensor's" });
        }
        let x = self.narrowed(x)?;
        let pairs: Vec<[u32; 2]> = picked.iter().map(|(row, weight)| [*row as u32, weight.to_bits()]).collect();
        let pairs = self.device.upload(bytemuck::cast_slice(&pairs))?;
        Ok(self.sum_picked(&x, &pairs, (picked.len().checked_div(each).unwrap_or(0), each))?)
    }

    fn layer_norm(&self, x: &Tensor, norm: &LayerNorm<Self>) -> Result<Tensor> {
        const ROWS: usize = 8;
        let x = self.typed(x, Dtype::F32)?;
        let y = self.tensor(x.rows, x.columns, self.precision.dtype())?;
        self.elementwise("layer_norm", [x.rows.div_ceil(ROWS), 1, 1])?
            .buffer(&x.buffer, x.bytes())?
            .buffer(&norm.weight.exact, 4 * x.columns)?
            .buffer(&norm.bias.exact, 4 * x.columns)?
            .buffer(&y.buffer, y.bytes())?
            .count(x.rows)
            .count(x.columns)
            .real(norm.eps)
            .submit(&self.device)?;
        Ok(y)
    }

    fn gelu(&self, x: &mut Tensor) -> Result<()> {
        self.narrow(x)?;
        Ok(self.in_place("gelu", x)?.submit(&self.device)?)
    }

    fn begin_pass(&self) -> Result<()> {
        self.device.begin_pass();
        Ok(())
    }

    fn end_pass(&self) -> Result<()> {
        Ok(self.device.end_pass()?)
    }

    fn qkv(&self, x: &Tensor, w: &AttentionWeights<Self>, plan: &Plan) -> Result<Qkv<Tensor>> {
        let [queries, keys, values] = self.products(x, [&w.query, &w.key, &w.value])?;
        let normed = |y: Tensor, norm: Option<&Vector>| match norm {
            Some(norm) => self.rms_norm(&y, norm, w.norm_eps),
            None => Ok(y),
        };
        let mut queries = normed(queries, w.query_norm.as_ref())?;
        self.rotate(&mut queries, plan)?;
        Ok(Qkv { queries, keys: normed(keys, w.key_norm.as_ref())?, values })
    }

    fn mlp(&self, x: &Tensor, w: &MlpWeights<Self>) -> Result<Tensor> {
        Ok(self.product(&self.gated(x, w)?, &w.down.weight, w.down.bias.as_ref())?)
    }

    fn experts(&self, x: &Tensor, w: &ExpertWeights<Self>) -> Result<Tensor> {
        match self.chosen_experts(x, w)? {
            Some(y) => Ok(y),
            None => w.apply(self, x),
        }
    }

    fn add_rms_norm(&self, x: &mut Tensor, y: &Tensor, weight: &Vector, eps: f32) -> Result<Tensor> {
        self.widen(x)?;
        let y = self.narrowed(y)?;
        let normed = self.tensor(x.rows, x.columns, self.precision.dtype())?;
        self.elementwise("add_rms_norm", [x.rows, 1, 1])?
            .buffer(&x.buffer, x.bytes())?
            .buffer(&y.buffer, x.numbers() * y.dtype.size())?
            .buffer(&weight.exact, 4 * x.columns)?
            .buffer(&normed.buffer, normed.bytes())?
            .count(x.columns)
            .real(eps)
            .submit(&self.device)?;
        Ok(normed)
    }
}
