//! A [`Backend`] around another that notes what is asked of it, and fails when a test says so.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use crate::transformer::{Attention, Backend, BlockTable, Numerics, Placement, Rope, Row, WeightTensor};
use crate::{Dtype, Error, KvShape, Result, Token};

/// Another backend, watched. Clones watch the same one.
#[derive(Clone)]
pub struct Probe<B> {
    inner: B,
    calls: Arc<Mutex<Vec<&'static str>>>,
    plans: Arc<Mutex<Vec<Vec<Row>>>>,
    /// What attention gave, where that is watched.
    attended: Arc<Mutex<Vec<Vec<f32>>>>,
    watches_attention: Arc<AtomicBool>,
    /// Calls until one fails; zero for never.
    until_failure: Arc<AtomicUsize>,
}

impl<B> Probe<B> {
    /// Watches a backend.
    pub fn new(inner: B) -> Self {
        Self {
            inner,
            calls: Arc::default(),
            plans: Arc::default(),
            attended: Arc::default(),
            watches_attention: Arc::default(),
            until_failure: Arc::default(),
        }
    }

    /// Notes from now on what [`Backend::attend`] gives, or no more.
    pub fn watch_attention(&self, watch: bool) {
        self.watches_attention.store(watch, SeqCst);
    }

    /// What [`Backend::attend`] gave since this was last asked, in order, while it was watched.
    pub fn take_attended(&self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.attended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the `nth` call from now on fail, counted from 1, and those after it succeed again. Zero: none.
    pub fn fail_at(&self, nth: usize) {
        self.until_failure.store(nth, SeqCst);
    }

    /// The methods that were called since this was last asked, in order. Those that only answer from the host
    /// ([`Backend::numerics`], [`Backend::block_tokens`],
    /// [`Backend::columns`], [`Backend::check_attention`]) are not among them. Methods that are made of others (`qkv`, `mlp`,
    /// `experts`, `layer_norm`, `gelu`, …) are not forwarded: their parts are noted, and the inner backend's own version is
    /// not run.
    pub fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rows of each plan that was made since this was last asked, in order.
    pub fn take_plans(&self) -> Vec<Vec<Row>> {
        std::mem::take(&mut self.plans.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn call<T>(&self, name: &'static str, method: impl FnOnce(&B) -> Result<T>) -> Result<T> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        let last = |left: usize| left.checked_sub(1);
        if self.until_failure.fetch_update(SeqCst, SeqCst, last) == Ok(1) {
            return Err(Error::Model(format!("{name} failed, as a test asked").into()));
        }
        method(&self.inner)
    }
}

impl<B: Backend> Backend for Probe<B> {
    type Matrix = B::Matrix;
    type Vector = B::Vector;
    type Tensor = B::Tensor;
    type Cache = B::Cache;
    type Plan = B::Plan;

    fn numerics(&self) -> Numerics {
        self.inner.numerics()
    }

    fn matrix(&self, tensor: &WeightTensor<'_>) -> Result<B::Matrix> {
        self.call("matrix", |b| b.matrix(tensor))
    }

    fn vector(&self, values: &[f32]) -> Result<B::Vector> {
        self.call("vector", |b| b.vector(values))
    }

    fn block_tokens(&self) -> usize {
        self.inner.block_tokens()
    }

    fn cache(&self, shape: &KvShape, dtype: Dtype, blocks: usize) -> Result<B::Cache> {
        self.call("cache", |b| b.cache(shape, dtype, blocks))
    }

    fn copy_block(&self, cache: &mut B::Cache, from: u32, to: u32) -> Result<()> {
        self.call("copy_block", |b| b.copy_block(cache, from, to))
    }

    fn plan(&self, rope: &Rope, rows: &[Row], tables: &[BlockTable<'_>]) -> Result<B::Plan> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).push(rows.to_vec());
        self.call("plan", |b| b.plan(rope, rows, tables))
    }

    fn upload(&self, columns: usize, numbers: &[f32]) -> Result<B::Tensor> {
        self.call("upload", |b| b.upload(columns, numbers))
    }

    fn columns(&self, x: &B::Tensor) -> usize {
        self.inner.columns(x)
    }

    fn embed(&self, table: &B::Matrix, tokens: &[Token]) -> Result<B::Tensor> {
        self.call("embed", |b| b.embed(table, tokens))
    }

    fn rms_norm(&self, x: &B::Tensor, weight: &B::Vector, eps: f32) -> Result<B::Tensor> {
        self.call("rms_norm", |b| b.rms_norm(x, weight, eps))
    }

    fn linear(&self, x: &B::Tensor, w: &B::Matrix, bias: Option<&B::Vector>) -> Result<B::Tensor> {
        self.call("linear", |b| b.linear(x, w, bias))
    }

    fn add(&self, x: &mut B::Tensor, y: &B::Tensor) -> Result<()> {
        self.call("add", |b| b.add(x, y))
    }

    fn silu_mul(&self, gate: &B::Tensor, up: &B::Tensor) -> Result<B::Tensor> {
        self.call("silu_mul", |b| b.silu_mul(gate, up))
    }

    fn rotate(&self, x: &mut B::Tensor, plan: &B::Plan) -> Result<()> {
        self.call("rotate", |b| b.rotate(x, plan))
    }

    fn gather(&self, x: &B::Tensor, rows: &[usize]) -> Result<B::Tensor> {
        self.call("gather", |b| b.gather(x, rows))
    }

    fn concat(&self, x: &mut B::Tensor, y: &B::Tensor) -> Result<()> {
        self.call("concat", |b| b.concat(x, y))
    }

    fn read(&self, x: &B::Tensor) -> Result<Vec<f32>> {
        self.call("read", |b| b.read(x))
    }

    fn write_kv(
        &self,
        cache: &mut B::Cache,
        layer: usize,
        plan: &B::Plan,
        keys: &B::Tensor,
        values: &B::Tensor,
    ) -> Result<()> {
        self.call("write_kv", |b| b.write_kv(cache, layer, plan, keys, values))
    }

    fn load_kv(&self, cache: &mut B::Cache, rope: &Rope, layers: &[usize], placements: &[Placement<'_>]) -> Result<()> {
        self.call("load_kv", |b| b.load_kv(cache, rope, layers, placements))
    }

    fn check_attention(&self, attention: &Attention) -> Result<()> {
        self.inner.check_attention(attention)
    }

    fn attend(&self, cache: &B::Cache, attention: Attention, plan: &B::Plan, queries: &B::Tensor) -> Result<B::Tensor> {
        let attended = self.call("attend", |b| b.attend(cache, attention, plan, queries))?;
        if self.watches_attention.load(SeqCst) {
            let numbers = self.inner.read(&attended)?;
            self.attended.lock().unwrap_or_else(PoisonError::into_inner).push(numbers);
        }
        Ok(attended)
    }

    fn attention_mass(
        &self,
        cache: &B::Cache,
        attention: Attention,
        plan: &B::Plan,
        rows: Range<usize>,
        queries: &B::Tensor,
        mass: &mut B::Tensor,
    ) -> Result<()> {
        self.call("attention_mass", |b| b.attention_mass(cache, attention, plan, rows, queries, mass))
    }

    fn read_as(&self, x: &B::Tensor, dtype: Dtype) -> Result<Vec<u8>> {
        self.call("read_as", |b| b.read_as(x, dtype))
    }

    fn add_row_distance(&self, x: &B::Tensor, y: &B::Tensor, factor: f32, sums: &mut B::Tensor) -> Result<()> {
        self.call("add_row_distance", |b| b.add_row_distance(x, y, factor, sums))
    }

    fn heaviest(&self, mass: &B::Tensor, slots: &[u32], factors: Option<&[f32]>, count: usize) -> Result<Vec<usize>> {
        self.call("heaviest", |b| b.heaviest(mass, slots, factors, count))
    }

    fn key_distance(&self, cache: &B::Cache, layer: usize, plan: &B::Plan, keys: &B::Tensor) -> Result<B::Tensor> {
        self.call("key_distance", |b| b.key_distance(cache, layer, plan, keys))
    }

    fn gelu_mul(&self, gate: &B::Tensor, up: &B::Tensor) -> Result<B::Tensor> {
        self.call("gelu_mul", |b| b.gelu_mul(gate, up))
    }

    fn scale(&self, x: &mut B::Tensor, factor: f32) -> Result<()> {
        self.call("scale", |b| b.scale(x, factor))
    }

    fn soft_cap(&self, x: &mut B::Tensor, cap: f32) -> Result<()> {
        self.call("soft_cap", |b| b.soft_cap(x, cap))
    }

    fn sum_rows(&self, x: &B::Tensor, picked: &[(usize, f32)], each: usize) -> Result<B::Tensor> {
        self.call("sum_rows", |b| b.sum_rows(x, picked, each))
    }

    fn begin_pass(&self) -> Result<()> {
        self.call("begin_pass", B::begin_pass)
    }

    fn end_pass(&self) -> Result<()> {
        // A pass ends whatever happens.
        let ended = self.inner.end_pass();
        self.call("end_pass", |_| ended)
    }
}
