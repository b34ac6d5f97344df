//! The kernels under the forward pass.
//!
//! A backend owns its buffers and says nothing of models: the graph, blend and sampling are written once, above it.
//! Work may be queued on a device: only what hands numbers to the host has to wait ([`Backend::read`],
//! [`read_as`](Backend::read_as), [`heaviest`](Backend::heaviest)). What a pass needs to know of its rows (slots,
//! positions, what each row sees) goes up once, as a [plan](Backend::plan), and not with each kernel.
//!
//! Two contracts make cached and fresh KV interchangeable. What a row yields depends on that row and on what it sees, never on
//! which other rows are computed beside it or on how many threads do it; where a number is not finite, it may show in rows beside
//! it too. And what a KV cache holds is what a
//! chunk can hold: keys and values are rounded to the cache's number type before they are rotated, and once more when
//! they are stored. A backend keeps both to the bit, or within the tolerance that its [`Numerics`] state.

use std::ops::Range;

use super::device_weights::{Activation, AttentionWeights, ExpertWeights, LayerNorm, MlpWeights};
use super::rope::Rope;
use super::select;
use super::weights::WeightTensor;
use crate::{Dtype, Exactness, KvChunk, KvShape, Result, Token};

/// One token to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The token.
    pub token: Token,
    /// Whose it is: an index into the pass's block tables.
    pub context: usize,
    /// Where its keys and values go in that context.
    pub slot: u32,
    /// Its position for RoPE. Equals `slot`, unless several texts share one context (packed prefill).
    pub position: u32,
    /// What it attends to.
    pub sees: Span,
}

/// The slots that a row attends to: those of `shared`, then those of `own`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// A beginning that several texts share, in packed prefill; empty otherwise.
    pub shared: Range<u32>,
    /// Slots of the row's own text, the row's own slot among them: up to and with it in a language model, whose attention
    /// is causal, and all of them in an encoder, whose attention is bidirectional.
    pub own: Range<u32>,
}

impl Span {
    /// The last `tokens` slots of what is seen: what is left of it in a window, where attention is causal.
    #[must_use]
    pub fn last(&self, tokens: usize) -> Self {
        let Self { mut shared, mut own } = self.clone();
        let hidden = (shared.len() + own.len()).saturating_sub(tokens);
        shared.start += hidden.min(shared.len()) as u32;
        own.start += hidden.saturating_sub(self.shared.len()) as u32;
        Self { shared, own }
    }
}

/// The blocks that hold a context's slots, in order: slot `s` lies in block `s / block_tokens`.
pub type BlockTable<'a> = &'a [u32];

/// Where a chunk's keys and values go.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'a> {
    /// The chunk.
    pub chunk: &'a KvChunk,
    /// The context's blocks.
    pub table: BlockTable<'a>,
    /// The slot of its first token; the others follow.
    pub slot: u32,
    /// The position of its first token for RoPE.
    pub position: u32,
}

/// The attention of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Attention {
    /// The layer.
    pub layer: usize,
    /// What the products of queries and keys are multiplied by.
    pub scale: f32,
    /// If there is a cap `c`, a score `s` (a product times the scale) becomes `c · tanh(s / c)` before the softmax.
    pub soft_cap: Option<f32>,
}

impl Attention {
    /// Scaled by 1/√head_dim, without a cap.
    pub fn new(layer: usize, head_dim: usize) -> Self {
        Self { layer, scale: 1.0 / (head_dim as f32).sqrt(), soft_cap: None }
    }

    /// With this scale.
    #[must_use]
    pub fn scale(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// With this cap, or without one.
    #[must_use]
    pub fn soft_cap(self, cap: Option<f32>) -> Self {
        Self { soft_cap: cap, ..self }
    }
}

/// What a backend computes with. It is part of a model's fingerprint: KV computed with other numerics is other KV.
#[derive(Clone, Debug, PartialEq)]
pub struct Numerics {
    /// A name for the arithmetic: "exact f32", "bf16", "int8 weights". Two backends of one name give interchangeable
    /// KV.
    pub name: String,
    /// How far results may differ from one pass to another.
    pub exactness: Exactness,
}

/// Queries, keys and values of some rows.
pub struct Qkv<T> {
    /// Rotated, `[rows][heads * head_dim]`.
    pub queries: T,
    /// Before rotation, `[rows][kv_heads * head_dim]`.
    pub keys: T,
    /// `[rows][kv_heads * head_dim]`.
    pub values: T,
}

/// The kernels of one kind of machine. Activations are f32, `[rows][columns]`.
///
/// The caller keeps shapes consistent. What a backend does with others is its own: an error, a panic or numbers that mean
/// nothing; but it stays memory-safe. Each method may fail with [`Error::Model`](crate::Error::Model) when the device
/// fails or runs out of memory for activations; what else can go wrong is said at the method.
///
/// The methods at the end are made of the others. A backend may fuse them; they then have to keep the laws and to come
/// as close to their definition as its numerics allow. The trait is checked by `testing::backend` (feature `testing`),
/// fused methods against their definitions included.
pub trait Backend: Send + Sync + Sized + 'static {
    /// A weight matrix `[outputs][inputs]`, packed as the backend likes it.
    type Matrix: Send + Sync;
    /// A vector of weights.
    type Vector: Send + Sync;
    /// Activations `[rows][columns]`.
    type Tensor: Send;
    /// The paged KV cache of a model: blocks of slots that contexts share.
    type Cache: Send;
    /// What a pass knows of its rows, where the kernels need it.
    type Plan: Send;

    /// What it computes with.
    fn numerics(&self) -> Numerics;

    /// Packs a matrix. What it is for stands in [`WeightTensor::role`]. Blocks of a type that the backend has no kernel
    /// for are decoded into one that it has.
    ///
    /// # Errors
    /// [`Error::BadValue`](crate::Error::BadValue) when there are not as many bytes as the shape needs,
    /// [`Error::Full`](crate::Error::Full) when there is no memory for it.
    fn matrix(&self, tensor: &WeightTensor<'_>) -> Result<Self::Matrix>;

    /// Uploads a vector of weights.
    ///
    /// # Errors
    /// [`Error::Full`](crate::Error::Full) when there is no memory for it.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;

    /// Slots in a block of the KV cache.
    fn block_tokens(&self) -> usize;

    /// A KV cache of at most `blocks` blocks. Their memory may be taken when they are first written.
    ///
    /// # Errors
    /// [`Error::Full`](crate::Error::Full) when there is no memory for it.
    fn cache(&self, shape: &KvShape, dtype: Dtype, blocks: usize) -> Result<Self::Cache>;

    /// Copies a block over another, in all layers.
    fn copy_block(&self, cache: &mut Self::Cache, from: u32, to: u32) -> Result<()>;

    /// Prepares a pass: its rows, and the blocks of each context. A context's rows may come in several runs with others'
    /// rows between them.
    fn plan(&self, rope: &Rope, rows: &[Row], tables: &[BlockTable<'_>]) -> Result<Self::Plan>;

    /// Numbers of the host, in rows of `columns`, of which they are a multiple.
    fn upload(&self, columns: usize, numbers: &[f32]) -> Result<Self::Tensor>;

    /// Numbers in a row of `x`.
    fn columns(&self, x: &Self::Tensor) -> usize;

    /// The rows of `table` for these tokens. For a token that it has no row of, an error or zeros.
    fn embed(&self, table: &Self::Matrix, tokens: &[Token]) -> Result<Self::Tensor>;

    /// Root-mean-square norm of each run of `weight`'s length: a whole row, or each head of one.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Vector, eps: f32) -> Result<Self::Tensor>;

    /// `x · wᵀ + bias`: `[rows][inputs]` to `[rows][outputs]`.
    fn linear(&self, x: &Self::Tensor, w: &Self::Matrix, bias: Option<&Self::Vector>) -> Result<Self::Tensor>;

    /// `x += y`.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor) -> Result<()>;

    /// `silu(gate) · up`, element by element.
    fn silu_mul(&self, gate: &Self::Tensor, up: &Self::Tensor) -> Result<Self::Tensor>;

    /// Rotates every head of every row of `x` to the row's position. Pairs are (i, i + head_dim/2), as in Hugging
    /// Face's models.
    fn rotate(&self, x: &mut Self::Tensor, plan: &Self::Plan) -> Result<()>;

    /// Some rows of `x`, in this order.
    fn gather(&self, x: &Self::Tensor, rows: &[usize]) -> Result<Self::Tensor>;

    /// Appends the rows of `y` to those of `x`.
    fn concat(&self, x: &mut Self::Tensor, y: &Self::Tensor) -> Result<()>;

    /// The numbers of `x`. Waits for the device.
    fn read(&self, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// Puts the rows' keys (before rotation) and values, `[rows][kv_heads * head_dim]` each, into their slots of one
    /// layer: rounded to the cache's number type, the keys then rotated, and rounded again as they are stored.
    fn write_kv(
        &self,
        cache: &mut Self::Cache,
        layer: usize,
        plan: &Self::Plan,
        keys: &Self::Tensor,
        values: &Self::Tensor,
    ) -> Result<()>;

    /// Puts some layers of chunks, given in order, into their slots: decoded, rounded and rotated as
    /// [`write_kv`](Self::write_kv) does it. No two chunks share a slot. It is called within a pass, and waits for what has
    /// to be read.
    ///
    /// # Errors
    /// [`Error::DamagedKv`](crate::Error::DamagedKv) for a chunk that cannot be read; slots of other contexts are as
    /// they were, and the pass goes on: the same layers may be loaded again from other data. After any other error it does
    /// not.
    fn load_kv(
        &self,
        cache: &mut Self::Cache,
        rope: &Rope,
        layers: &[usize],
        placements: &[Placement<'_>],
    ) -> Result<()>;

    /// Whether [`attend`](Self::attend) and [`attention_mass`](Self::attention_mass) do this kind of attention, in any
    /// layer. A model that needs another kind is not loaded.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`](crate::Error::UnsupportedModel) for what they refuse too.
    fn check_attention(&self, _: &Attention) -> Result<()> {
        Ok(())
    }

    /// Softmax attention of rotated queries `[rows][heads * head_dim]`, each over the slots that its row sees; query
    /// heads share key heads in consecutive groups (GQA).
    fn attend(
        &self,
        cache: &Self::Cache,
        attention: Attention,
        plan: &Self::Plan,
        queries: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// Adds to `mass`, `[1][slots]`, the attention weight that each slot gets from some of the plan's rows, summed over
    /// rows and heads. The rows are of one context, and what is added depends on them alone.
    fn attention_mass(
        &self,
        cache: &Self::Cache,
        attention: Attention,
        plan: &Self::Plan,
        rows: Range<usize>,
        queries: &Self::Tensor,
        mass: &mut Self::Tensor,
    ) -> Result<()>;

    /// For each row, `[rows][1]`, the squared distance between these keys (before rotation) and those that stand in its
    /// slot, both rotated and rounded as the cache stores them.
    fn key_distance(
        &self,
        cache: &Self::Cache,
        layer: usize,
        plan: &Self::Plan,
        keys: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// The numbers of `x` in a type, little-endian, rounded where it holds less. Waits for the device.
    fn read_as(&self, x: &Self::Tensor, dtype: Dtype) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        dtype.encode(&self.read(x)?, &mut bytes);
        Ok(bytes)
    }

    /// For each row, adds the squared distance between `x` and `y`, `[rows][columns]` each, times `factor` to `sums`,
    /// `[rows][1]`.
    fn add_row_distance(&self, x: &Self::Tensor, y: &Self::Tensor, factor: f32, sums: &mut Self::Tensor) -> Result<()> {
        let (x, y, mut of_rows) = (self.read(x)?, self.read(y)?, self.read(sums)?);
        let columns = (x.len() / of_rows.len().max(1)).max(1);
        for ((sum, x), y) in of_rows.iter_mut().zip(x.chunks_exact(columns)).zip(y.chunks_exact(columns)) {
            *sum += factor * x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f32>();
        }
        *sums = self.upload(1, &of_rows)?;
        Ok(())
    }

    /// The indexes of the `count` heaviest of some slots, in ascending order; fewer if fewer have any weight. A slot's
    /// weight is what it has in `mass`, `[1][slots]`, plus half of what its neighbours on either side have, times its
    /// factor, if there are factors. Of equal weights the earlier slot's comes first. Waits for the device, which sends no
    /// more than the indexes where it can choose by itself.
    fn heaviest(
        &self,
        mass: &Self::Tensor,
        slots: &[u32],
        factors: Option<&[f32]>,
        count: usize,
    ) -> Result<Vec<usize>> {
        let mass = self.read(mass)?;
        let factor = |index: usize| factors.map_or(1.0, |factors| factors.get(index).copied().unwrap_or(0.0));
        let weights = slots.iter().enumerate().map(|(index, &slot)| select::smoothed(&mass, slot) * factor(index));
        Ok(select::heaviest(&weights.collect::<Vec<f32>>(), count))
    }

    /// Runs what calls kernels: on the backend's own threads where that makes the calls cheaper.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// `gelu(gate) · up`, element by element: GELU as [`Activation::GeluTanh`] has it.
    fn gelu_mul(&self, gate: &Self::Tensor, up: &Self::Tensor) -> Result<Self::Tensor> {
        let columns = self.columns(gate);
        let (mut gate, up) = (self.read(gate)?, self.read(up)?);
        gate.iter_mut().zip(&up).for_each(|(gate, up)| *gate = (gelu((*gate).into()) * f64::from(*up)) as f32);
        self.upload(columns, &gate)
    }

    /// `x *= factor`.
    fn scale(&self, x: &mut Self::Tensor, factor: f32) -> Result<()> {
        let mut numbers = self.read(x)?;
        numbers.iter_mut().for_each(|x| *x *= factor);
        *x = self.upload(self.columns(x), &numbers)?;
        Ok(())
    }

    /// `x = cap · tanh(x / cap)`.
    fn soft_cap(&self, x: &mut Self::Tensor, cap: f32) -> Result<()> {
        let (mut numbers, cap) = (self.read(x)?, f64::from(cap));
        numbers.iter_mut().for_each(|x| *x = (cap * (f64::from(*x) / cap).tanh()) as f32);
        *x = self.upload(self.columns(x), &numbers)?;
        Ok(())
    }

    /// Weighted sums of rows of `x`, `[picked.len() / each][columns]`: the `i`th is that of `weight · x[row]` for each
    /// `(row, weight)` of `picked[i * each..(i + 1) * each]`, added up in this order. For a row that `x` has not, an error or
    /// zeros.
    fn sum_rows(&self, x: &Self::Tensor, picked: &[(usize, f32)], each: usize) -> Result<Self::Tensor> {
        let columns = self.columns(x);
        let numbers = self.read(x)?;
        let mut sums = vec![0.0; picked.len() / each.max(1) * columns];
        for (sum, picked) in sums.chunks_exact_mut(columns.max(1)).zip(picked.chunks_exact(each.max(1))) {
            for &(row, weight) in picked {
                let row = numbers.get(row * columns..(row + 1) * columns).unwrap_or_default();
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        self.upload(columns, &sums)
    }

    /// `(x - mean) / √(variance + eps) · weight + bias` of each row.
    fn layer_norm(&self, x: &Self::Tensor, norm: &LayerNorm<Self>) -> Result<Self::Tensor> {
        let columns = self.columns(x);
        let mut numbers = self.read(x)?;
        numbers.chunks_exact_mut(columns.max(1)).for_each(|row| norm.apply(row));
        self.upload(columns, &numbers)
    }

    /// `x = gelu(x)`, element by element: `x · Φ(x)`, where Φ is the distribution function of the normal distribution.
    /// Not its approximation, as [`gelu_mul`](Self::gelu_mul) has it.
    fn gelu(&self, x: &mut Self::Tensor) -> Result<()> {
        let mut numbers = self.read(x)?;
        numbers.iter_mut().for_each(|x| *x = gelu_erf((*x).into()) as f32);
        *x = self.upload(self.columns(x), &numbers)?;
        Ok(())
    }

    /// Called before the first kernel of a pass: a place to take an arena or to begin recording.
    fn begin_pass(&self) -> Result<()> {
        Ok(())
    }

    /// Called after the last kernel of a pass, after a failed one too. What a backend has put off until now may fail
    /// here, and then the pass has failed.
    fn end_pass(&self) -> Result<()> {
        Ok(())
    }

    /// A layer's queries, keys and values of normed rows `[rows][hidden]`.
    fn qkv(&self, x: &Self::Tensor, w: &AttentionWeights<Self>, plan: &Self::Plan) -> Result<Qkv<Self::Tensor>> {
        let project = |linear: &super::device_weights::Linear<Self>, norm: Option<&Self::Vector>| {
            let y = self.linear(x, &linear.weight, linear.bias.as_ref())?;
            norm.map_or(Ok(None), |norm| self.rms_norm(&y, norm, w.norm_eps).map(Some))
                .map(|normed| normed.unwrap_or(y))
        };
        let mut queries = project(&w.query, w.query_norm.as_ref())?;
        let keys = project(&w.key, w.key_norm.as_ref())?;
        let values = project(&w.value, None)?;
        self.rotate(&mut queries, plan)?;
        Ok(Qkv { queries, keys, values })
    }

    /// `x += y`, and the norm of that.
    fn add_rms_norm(
        &self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<Self::Tensor> {
        self.add(x, y)?;
        self.rms_norm(x, weight, eps)
    }

    /// `x += y`, and the [layer norm](Self::layer_norm) of that.
    fn add_layer_norm(&self, x: &mut Self::Tensor, y: &Self::Tensor, norm: &LayerNorm<Self>) -> Result<Self::Tensor> {
        self.add(x, y)?;
        self.layer_norm(x, norm)
    }

    /// A layer's feed-forward block of normed rows `[rows][hidden]`.
    fn mlp(&self, x: &Self::Tensor, w: &MlpWeights<Self>) -> Result<Self::Tensor> {
        let gate = self.linear(x, &w.gate.weight, w.gate.bias.as_ref())?;
        let up = self.linear(x, &w.up.weight, w.up.bias.as_ref())?;
        let gated = match w.activation {
            Activation::Silu => self.silu_mul(&gate, &up)?,
            Activation::GeluTanh => self.gelu_mul(&gate, &up)?,
        };
        self.linear(&gated, &w.down.weight, w.down.bias.as_ref())
    }

    /// What normed rows `[rows][hidden]` yield in a layer with experts. A row goes through the experts that it gives the
    /// largest scores (its products with the router; of equal ones, the first), and what they yield is added up in this
    /// order, each times its share: the softmax of the scores. A backend that can choose by itself does not wait here.
    fn experts(&self, x: &Self::Tensor, w: &ExpertWeights<Self>) -> Result<Self::Tensor> {
        w.apply(self, x)
    }
}

/// GELU in its approximation with tanh.
fn gelu(x: f64) -> f64 {
    const FACTOR: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    0.5 * x * (1.0 + (FACTOR * (x + 0.044715 * x * x * x)).tanh())
}

/// GELU by the error function: `x / 2 · (1 + erf(x / √2))`.
fn gelu_erf(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// The error function to within some units of f64's last place. All terms of its series `2/√π · e^-x² · Σ 2ⁿ x²ⁿ⁺¹ /
/// (1 · 3 · … · (2n + 1))` have one sign, so that nothing cancels.
fn erf(x: f64) -> f64 {
    // From here on f64 holds nothing between it and 1.
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > f64::EPSILON * sum.abs() {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::{Span, erf, gelu_erf};

    /// From a table (Abramowitz and Stegun, Handbook of Mathematical Functions, table 7.1).
    #[test]
    fn the_error_function_is_that_of_the_tables() {
        let table = [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (1.5, 0.966_105_146_5), (2.0, 0.995_322_265_0)];
        for (x, expected) in table {
            assert!((erf(x) - expected).abs() < 1e-10 && (erf(-x) + expected).abs() < 1e-10, "erf {x} = {}", erf(x));
        }
        assert_eq!((erf(0.0), erf(7.0), erf(-7.0)), (0.0, 1.0, -1.0));
        assert!(erf(f64::NAN).is_nan());
        assert_eq!((gelu_erf(0.0), gelu_erf(50.0), gelu_erf(-50.0)), (0.0, 50.0, 0.0));
    }

    #[test]
    fn a_window_leaves_the_last_slots_of_what_is_seen() {
        let span = Span { shared: 2..5, own: 9..13 };
        let left = |tokens| (span.last(tokens).shared, span.last(tokens).own);
        assert_eq!(left(9), (2..5, 9..13));
        assert_eq!(left(7), (2..5, 9..13));
        assert_eq!(left(6), (3..5, 9..13));
        assert_eq!(left(4), (5..5, 9..13));
        assert_eq!(left(3), (5..5, 10..13));
        assert_eq!(left(1), (5..5, 12..13));
    }
}
