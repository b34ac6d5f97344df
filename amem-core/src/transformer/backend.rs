//! The kernels under the forward pass.
//!
//! A backend owns its buffers and says nothing of models: the graph, blend and sampling are written once, above it.
//! Work may be queued on a device; only the methods that return numbers to the host have to wait.
//!
//! Two laws let cached and fresh KV mix without a trace: what a row yields depends on that row alone, never on which
//! other rows are computed beside it or on how many threads do it; and what a context holds is what a chunk can hold:
//! keys and values are rounded to the cache's type before they are rotated and stored.

use std::ops::Range;

use super::rope::Rope;
use crate::{Dtype, KvChunk, KvShape, Result, Token};

/// One token to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The token.
    pub token: Token,
    /// Whose it is: an index into the pass's caches.
    pub context: usize,
    /// Where its keys and values go in that cache.
    pub slot: u32,
    /// Its position for RoPE. The slot's number, except in packed prefill.
    pub position: u32,
    /// What it attends to.
    pub sees: Span,
}

/// The slots that a row attends to: those of `head`, then those of `body`, which ends with the row's own slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// A shared beginning, in packed prefill; empty otherwise.
    pub head: Range<u32>,
    /// The slots up to and with the row's own.
    pub body: Range<u32>,
}

/// The kernels of one kind of machine. Activations are f32, `[rows][columns]`.
///
/// The caller keeps shapes consistent; a backend may answer a mismatch with an error or with numbers that mean
/// nothing, but stays memory-safe.
///
/// It is checked by `testing::backend` (feature `testing`).
pub trait Backend: Send + Sync + 'static {
    /// A weight matrix `[outputs][inputs]`, packed as the backend likes it.
    type Matrix: Send + Sync;
    /// A vector of weights.
    type Vector: Send + Sync;
    /// Activations `[rows][columns]`.
    type Tensor: Send;
    /// The rotated keys and the values of one context.
    type Cache: Send;
    /// The RoPE angles of some positions.
    type Angles: Send;

    /// Packs a matrix of `outputs` rows of `inputs` little-endian numbers.
    ///
    /// # Errors
    /// When the bytes are not that many numbers, or there is no memory for them.
    fn matrix(&self, dtype: Dtype, outputs: usize, inputs: usize, bytes: &[u8]) -> Result<Self::Matrix>;

    /// Uploads a vector.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;

    /// An empty cache that grows as it is written.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn cache(&self, shape: &KvShape, dtype: Dtype) -> Result<Self::Cache>;

    /// The angles of these positions, one row each.
    ///
    /// # Errors
    /// What the device met.
    fn angles(&self, rope: &Rope, positions: &[u32]) -> Result<Self::Angles>;

    /// The rows of `table` for these tokens.
    ///
    /// # Errors
    /// What the device met.
    fn embed(&self, table: &Self::Matrix, tokens: &[Token]) -> Result<Self::Tensor>;

    /// Root-mean-square norm of each run of `weight`'s length: a whole row, or each head of one.
    ///
    /// # Errors
    /// What the device met.
    fn norm(&self, x: &Self::Tensor, weight: &Self::Vector, eps: f32) -> Result<Self::Tensor>;

    /// `x · wᵀ + bias`: `[rows][inputs]` to `[rows][outputs]`.
    ///
    /// # Errors
    /// What the device met.
    fn linear(&self, x: &Self::Tensor, w: &Self::Matrix, bias: Option<&Self::Vector>) -> Result<Self::Tensor>;

    /// `x += y`.
    ///
    /// # Errors
    /// What the device met.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor) -> Result<()>;

    /// `silu(gate) · up`, element by element.
    ///
    /// # Errors
    /// What the device met.
    fn gate(&self, gate: &Self::Tensor, up: &Self::Tensor) -> Result<Self::Tensor>;

    /// Rotates every head of every row of `x` to its position. Pairs are (i, i + head_dim/2), as in Hugging Face's
    /// models.
    ///
    /// # Errors
    /// What the device met.
    fn rotate(&self, x: &mut Self::Tensor, angles: &Self::Angles) -> Result<()>;

    /// Some rows of `x`, in this order.
    ///
    /// # Errors
    /// What the device met.
    fn take(&self, x: &Self::Tensor, rows: &[usize]) -> Result<Self::Tensor>;

    /// Appends the rows of `y` to those of `x`.
    ///
    /// # Errors
    /// What the device met.
    fn join(&self, x: &mut Self::Tensor, y: &Self::Tensor) -> Result<()>;

    /// The numbers of `x`. Waits for the device.
    ///
    /// # Errors
    /// What the device met.
    fn read(&self, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// Puts the rows' keys (before rotation) and values, `[rows][kv_heads * head_dim]` each, into their slots of one
    /// layer: rounded to the cache's type, and the keys then rotated.
    ///
    /// # Errors
    /// What the device met.
    fn write(
        &self,
        caches: &mut [&mut Self::Cache],
        layer: usize,
        rows: &[Row],
        angles: &Self::Angles,
        keys: &Self::Tensor,
        values: &Self::Tensor,
    ) -> Result<()>;

    /// Puts a chunk's keys, rotated by `angles` (one row for each of its tokens), and values into the slots from `slot`
    /// on, in all layers.
    ///
    /// # Errors
    /// What the device met.
    fn place(&self, cache: &mut Self::Cache, slot: u32, angles: &Self::Angles, chunk: &KvChunk) -> Result<()>;

    /// Softmax attention of rotated queries `[rows][heads * head_dim]`, each over the slots that its row sees, scaled
    /// by 1/√head_dim; query heads share key heads in consecutive groups (GQA).
    ///
    /// # Errors
    /// What the device met.
    fn attend(
        &self,
        caches: &[&mut Self::Cache],
        layer: usize,
        rows: &[Row],
        queries: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// For each of the first `slots` slots of context 0, the attention weight that it gets from these rows, summed over
    /// rows and heads. Waits for the device.
    ///
    /// # Errors
    /// What the device met.
    fn attention_mass(
        &self,
        caches: &[&mut Self::Cache],
        layer: usize,
        rows: &[Row],
        queries: &Self::Tensor,
        slots: usize,
    ) -> Result<Vec<f32>>;

    /// For each row, the squared distance between these keys (before rotation) and those that stand in its slot. Waits
    /// for the device.
    ///
    /// # Errors
    /// What the device met.
    fn key_distance(
        &self,
        caches: &[&mut Self::Cache],
        layer: usize,
        rows: &[Row],
        angles: &Self::Angles,
        keys: &Self::Tensor,
    ) -> Result<Vec<f32>>;
}
