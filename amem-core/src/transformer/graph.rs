//! A model's weights on a backend, and how they hang together.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backend::{Attention, Backend, BlockTable, Placement, Row};
use super::config::{Config, LayerKind};
use super::paged::BlockPool;
use super::rope::Rope;
use super::weights::{WeightFeedForward, WeightLayer, WeightMlp, WeightTensor, Weights};
use crate::model::STEP_ROWS;
use crate::{Dtype, KvShape, Result};

/// A product with a weight matrix.
pub struct Linear<B: Backend> {
    /// `[outputs][inputs]`.
    pub weight: B::Matrix,
    /// `[outputs]`.
    pub bias: Option<B::Vector>,
}

/// What a layer's attention is made of.
pub struct AttentionWeights<B: Backend> {
    /// `[heads * head_dim][hidden]`.
    pub query: Linear<B>,
    /// `[kv_heads * head_dim][hidden]`.
    pub key: Linear<B>,
    /// `[kv_heads * head_dim][hidden]`.
    pub value: Linear<B>,
    /// Norm of each head of the queries, `[head_dim]`, or of all of them together, `[heads * head_dim]`.
    pub query_norm: Option<B::Vector>,
    /// Norm of each head of the keys, `[head_dim]`, or of all of them together, `[kv_heads * head_dim]`.
    pub key_norm: Option<B::Vector>,
    /// `[hidden][heads * head_dim]`.
    pub output: Linear<B>,
    /// What is added to the mean square in these norms.
    pub norm_eps: f32,
}

/// The function of the gate in a feed-forward block. Fingerprints hold the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu = 0,
    /// `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: GELU in its approximation with tanh.
    GeluTanh = 1,
}

/// A gated feed-forward block.
pub struct MlpWeights<B: Backend> {
    /// The function of the gate.
    pub activation: Activation,
    /// `[intermediate][hidden]`.
    pub gate: Linear<B>,
    /// `[intermediate][hidden]`.
    pub up: Linear<B>,
    /// `[hidden][intermediate]`.
    pub down: Linear<B>,
}

/// The feed-forward blocks of a layer in which each row goes through some of them: a mixture of experts.
pub struct ExpertWeights<B: Backend> {
    /// `[experts][hidden]`. A row's products with it are the scores that it gives the experts.
    pub router: B::Matrix,
    /// The experts, all of the same shape.
    pub experts: Vec<MlpWeights<B>>,
    /// How many of them a row goes through: at least one, and no more than there are.
    pub top_k: usize,
    /// Whether routing weights are the softmax over the chosen experts' logits, not over all (`norm_topk_prob`).
    pub norm_top_k: bool,
}

/// The weights of a layer norm.
pub struct LayerNorm<B: Backend> {
    /// What the normed numbers are multiplied by, `[columns]`.
    pub weight: B::Vector,
    /// What is added to them then, `[columns]`.
    pub bias: B::Vector,
    /// What is added to the variance.
    pub eps: f32,
    /// Weights and biases on the host, for backends without a kernel.
    on_host: [Vec<f32>; 2],
}

impl<B: Backend> LayerNorm<B> {
    /// Uploads as many weights as biases.
    ///
    /// # Errors
    /// [`Error::Full`](crate::Error::Full) when the backend has no memory for them.
    pub fn new(backend: &B, weight: Vec<f32>, bias: Vec<f32>, eps: f32) -> Result<Self> {
        Ok(Self { weight: backend.vector(&weight)?, bias: backend.vector(&bias)?, eps, on_host: [weight, bias] })
    }

    /// Norms a row on the host, in f64.
    pub(super) fn apply(&self, row: &mut [f32]) {
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
        let square = |x: &f32| (f64::from(*x) - mean) * (f64::from(*x) - mean);
        let variance = row.iter().map(square).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
        let [weight, bias] = &self.on_host;
        for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
            *x = ((f64::from(*x) - mean) * scale * f64::from(*weight) + f64::from(*bias)) as f32;
        }
    }
}

/// What stands behind attention in a layer.
pub(super) enum FeedForward<B: Backend> {
    Mlp(MlpWeights<B>),
    Experts(ExpertWeights<B>),
}

/// One transformer layer.
pub(super) struct Layer<B: Backend> {
    /// Its kind: an index into the graph's.
    pub(super) kind: usize,
    /// Norm of what attention takes.
    pub(super) attention_norm: Option<B::Vector>,
    pub(super) attention: AttentionWeights<B>,
    /// Norm of what attention gives.
    pub(super) attention_output_norm: Option<B::Vector>,
    /// Norm of what the feed-forward block takes.
    pub(super) mlp_norm: Option<B::Vector>,
    pub(super) feed_forward: FeedForward<B>,
    /// Norm of what the feed-forward block gives.
    pub(super) mlp_output_norm: Option<B::Vector>,
}

/// A model on a backend: its weights and its KV cache.
pub(super) struct Graph<B: Backend> {
    pub(super) backend: B,
    pub(super) shape: KvShape,
    /// The number type of the KV cache.
    pub(super) dtype: Dtype,
    /// The kinds of layers: how they rotate, and how far a row sees back in them.
    pub(super) kinds: Vec<LayerKind>,
    /// How the first layer attends; the others do alike.
    pub(super) attention: Attention,
    pub(super) norm_eps: f32,
    /// What the embedding of a token is multiplied by.
    pub(super) embedding_scale: f32,
    /// What attention and feed-forward blocks give is multiplied by.
    pub(super) residual_scale: f32,
    /// What logits are multiplied by.
    pub(super) logit_scale: f32,
    pub(super) logit_soft_cap: Option<f32>,
    pub(super) embedding: B::Matrix,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) final_norm: B::Vector,
    /// `None` where the embedding serves as the output matrix too.
    pub(super) lm_head: Option<B::Matrix>,
    /// The KV of all contexts. One pass writes at a time.
    cache: Mutex<B::Cache>,
    /// The last prefill's KV cache and its number of blocks, kept for the next one.
    scratch: Mutex<Option<(usize, B::Cache)>>,
    pub(super) pool: Arc<BlockPool>,
}

/// A pass that has begun.
pub(super) struct PassScope<'g, B: Backend>(Option<&'g B>);

impl<'g, B: Backend> PassScope<'g, B> {
    /// Begins a pass. It ends with [`end`](Self::end), and also when what is returned is dropped.
    pub(super) fn begin(backend: &'g B) -> Result<Self> {
        let scope = Self(Some(backend));
        backend.begin_pass()?;
        Ok(scope)
    }

    /// Ends the pass. Until it has ended nobody knows whether what it wrote is there.
    pub(super) fn end(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), B::end_pass)
    }
}

impl<B: Backend> Drop for PassScope<'_, B> {
    fn drop(&mut self) {
        // The pass has failed before, which its caller is told.
        if let Some(Err(error)) = self.0.map(B::end_pass) {
            log::warn!("a failed pass does not end: {error}");
        }
    }
}

/// A KV cache for one call.
pub(super) struct Scratch<'g, B: Backend> {
    graph: &'g Graph<B>,
    blocks: usize,
    pub(super) cache: B::Cache,
}

/// Slots of a scratch cache that is kept for the next call: room for a batch of memories and what they are computed
/// behind.
const KEPT_SCRATCH: usize = 2 * STEP_ROWS;

impl<B: Backend> Scratch<'_, B> {
    /// Keeps the cache for the next call, unless it is a large one.
    pub(super) fn keep(self) {
        let Self { graph, blocks, cache } = self;
        if blocks * graph.backend.block_tokens() <= KEPT_SCRATCH {
            *graph.scratch.lock().unwrap_or_else(PoisonError::into_inner) = Some((blocks, cache));
        }
    }
}

/// A model's weights on a backend, and room for its KV.
pub(super) struct Uploaded<B: Backend> {
    attention: Attention,
    embedding: B::Matrix,
    lm_head: Option<B::Matrix>,
    layers: Vec<Layer<B>>,
    final_norm: B::Vector,
    cache: B::Cache,
    /// Of the cache.
    blocks: usize,
}

impl<B: Backend> Uploaded<B> {
    /// Uploads the weights and makes a KV cache of at most `cache_bytes`, or of one full context if that is more.
    pub(super) fn load(
        backend: &B,
        config: &Config,
        weights: &Weights<'_>,
        dtype: Dtype,
        context: usize,
        cache_bytes: u64,
    ) -> Result<Self> {
        let attention =
            Attention::new(0, config.head_dim).scale(config.attention_scale).soft_cap(config.attention_soft_cap);
        backend.check_attention(&attention)?;
        let loader = Loader { backend, config, weights };
        // A matrix lies in memory twice while it is packed: once as in its file. The largest go first, when nothing else is
        // there.
        let embedding = loader.matrix(&weights.embedding)?;
        let lm_head = weights.lm_head.as_ref().map(|tensor| loader.matrix(tensor)).transpose()?;
        let layers = weights.layers.iter().enumerate();
        let layers = layers.map(|(index, layer)| loader.layer(index, layer)).collect::<Result<_>>()?;
        let final_norm = loader.norm(&weights.norm)?;
        let shape = config.kv_shape();
        let block_tokens = backend.block_tokens().max(1);
        let fit = cache_bytes / block_bytes(&shape, dtype, block_tokens).max(1);
        // One more than a context has: a fork of another one writes to a copy of the block in which that one ends.
        let blocks = fit.max(context.div_ceil(block_tokens) as u64 + 1).min(1 << 31) as usize;
        let cache = backend.cache(&shape, dtype, blocks)?;
        Ok(Self { attention, embedding, lm_head, layers, final_norm, cache, blocks })
    }
}

/// Bytes of a block of the KV cache.
fn block_bytes(shape: &KvShape, dtype: Dtype, block_tokens: usize) -> u64 {
    (block_tokens * shape.token_numbers() * dtype.size()) as u64
}

impl<B: Backend> Graph<B> {
    /// The model that was uploaded to this backend.
    pub(super) fn new(backend: B, config: &Config, dtype: Dtype, uploaded: Uploaded<B>) -> Self {
        let Uploaded { attention, embedding, lm_head, layers, final_norm, cache, blocks } = uploaded;
        let shape = config.kv_shape();
        let block_tokens = backend.block_tokens().max(1);
        Self {
            shape,
            dtype,
            kinds: config.kinds.clone(),
            attention,
            norm_eps: config.norm_eps,
            embedding_scale: config.embedding_scale,
            residual_scale: config.residual_scale,
            logit_scale: config.logit_scale,
            logit_soft_cap: config.logit_soft_cap,
            embedding,
            layers,
            final_norm,
            lm_head,
            cache: Mutex::new(cache),
            scratch: Mutex::new(None),
            pool: BlockPool::new(blocks, block_tokens, block_bytes(&shape, dtype, block_tokens)),
            backend,
        }
    }

    /// Begins a pass. It ends with [`PassScope::end`], and also when what is returned is dropped.
    pub(super) fn begin_pass(&self) -> Result<PassScope<'_, B>> {
        PassScope::begin(&self.backend)
    }

    /// A KV cache of at least so many blocks for what outlives no call, and is nobody's.
    pub(super) fn scratch(&self, blocks: usize) -> Result<Scratch<'_, B>> {
        let kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (blocks, cache) = match kept.filter(|(held, _)| *held >= blocks) {
            Some(kept) => kept,
            None => (blocks, self.backend.cache(&self.shape, self.dtype, blocks)?),
        };
        Ok(Scratch { graph: self, blocks, cache })
    }

    /// The KV cache, for one pass.
    pub(super) fn cache(&self) -> MutexGuard<'_, B::Cache> {
        // A pass that panicked has left rows half written, and the contexts that it broke say so themselves.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A plan of these rows for each kind of layer.
    pub(super) fn plans(&self, rows: &[Row], tables: &[BlockTable<'_>]) -> Result<Vec<B::Plan>> {
        let plan = |kind: &LayerKind| match kind.window {
            None => self.backend.plan(&kind.rope, rows, tables),
            Some(window) => {
                let within = |row: &Row| Row { sees: row.sees.last(window), ..row.clone() };
                self.backend.plan(&kind.rope, &rows.iter().map(within).collect::<Vec<_>>(), tables)
            }
        };
        self.kinds.iter().map(plan).collect()
    }

    /// Puts some layers of chunks into their slots.
    pub(super) fn load_kv(
        &self,
        cache: &mut B::Cache,
        layers: Range<usize>,
        placements: &[Placement<'_>],
    ) -> Result<()> {
        let mut ropes: Vec<(&Rope, Vec<usize>)> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate().take(layers.end).skip(layers.start) {
            let rope = &self.kinds[layer.kind].rope;
            match ropes.iter_mut().find(|(known, _)| *known == rope) {
                Some((_, layers)) => layers.push(index),
                None => ropes.push((rope, vec![index])),
            }
        }
        ropes.iter().try_for_each(|(rope, layers)| self.backend.load_kv(cache, rope, layers, placements))
    }
}

/// What turns the tensors of files into weights on a backend.
struct Loader<'l, 'w, B> {
    backend: &'l B,
    config: &'l Config,
    weights: &'l Weights<'w>,
}

impl<B: Backend> Loader<'_, '_, B> {
    /// A matrix, whose file's pages are not kept beside it.
    fn matrix(&self, tensor: &WeightTensor<'_>) -> Result<B::Matrix> {
        let matrix = self.backend.matrix(tensor)?;
        self.weights.release(tensor.bytes);
        Ok(matrix)
    }

    fn layer(&self, index: usize, layer: &WeightLayer<'_>) -> Result<Layer<B>> {
        let config = self.config;
        let norm = |tensor: &Option<WeightTensor<'_>>| tensor.as_ref().map(|tensor| self.norm(tensor)).transpose();
        // Queries and keys are turned in pairs (i, i + head_dim/2). Where only the first part of a head is rotated, its
        // pairs stand closer together in the file: so the outputs are put into another order, in queries and keys alike,
        // which changes none of their products.
        let order = (config.rotated < config.head_dim).then(|| rotated_first(config.head_dim, config.rotated));
        let in_order = |tensor: &WeightTensor<'_>| order.as_ref().map(|order| tensor.in_order(order));
        let turned = |weight: &WeightTensor<'_>, bias: &Option<WeightTensor<'_>>| -> Result<Linear<B>> {
            let moved = in_order(weight);
            let weight = match &moved {
                Some(bytes) => &WeightTensor { bytes, ..*weight },
                None => weight,
            };
            let bias = bias.as_ref().map(|bias| self.backend.vector(&self.turned(bias, order.as_deref())));
            Ok(Linear { weight: self.matrix(weight)?, bias: bias.transpose()? })
        };
        let head_norm = |tensor: &Option<WeightTensor<'_>>| {
            let numbers = tensor.as_ref().map(|tensor| self.offset(self.turned(tensor, order.as_deref())));
            numbers.map(|numbers| self.backend.vector(&numbers)).transpose()
        };
        Ok(Layer {
            kind: config.kind_of[index],
            attention_norm: norm(&layer.attention_norm)?,
            attention: AttentionWeights {
                query: turned(&layer.q, &layer.q_bias)?,
                key: turned(&layer.k, &layer.k_bias)?,
                value: self.linear(&layer.v, &layer.v_bias)?,
                query_norm: head_norm(&layer.q_norm)?,
                key_norm: head_norm(&layer.k_norm)?,
                output: self.linear(&layer.o, &layer.o_bias)?,
                norm_eps: config.norm_eps,
            },
            attention_output_norm: norm(&layer.attention_output_norm)?,
            mlp_norm: norm(&layer.mlp_norm)?,
            feed_forward: match &layer.feed_forward {
                WeightFeedForward::Mlp(mlp) => FeedForward::Mlp(self.mlp(mlp)?),
                WeightFeedForward::Experts { router, experts } => {
                    let settings = config.experts_of(index);
                    FeedForward::Experts(ExpertWeights {
                        router: self.matrix(router)?,
                        experts: experts.iter().map(|mlp| self.mlp(mlp)).collect::<Result<_>>()?,
                        top_k: settings.map_or(1, |settings| settings.top_k),
                        norm_top_k: settings.is_some_and(|settings| settings.norm_top_k),
                    })
                }
            },
            mlp_output_norm: norm(&layer.mlp_output_norm)?,
        })
    }

    fn norm(&self, tensor: &WeightTensor<'_>) -> Result<B::Vector> {
        self.backend.vector(&self.offset(tensor.to_f32()))
    }

    fn offset(&self, mut weights: Vec<f32>) -> Vec<f32> {
        if self.config.norm_offset != 0.0 {
            weights.iter_mut().for_each(|weight| *weight += self.config.norm_offset);
        }
        weights
    }

    /// A vector, its heads in another order.
    fn turned(&self, tensor: &WeightTensor<'_>, order: Option<&[usize]>) -> Vec<f32> {
        let numbers = tensor.to_f32();
        let Some(order) = order else { return numbers };
        let heads = numbers.chunks_exact(order.len());
        heads.flat_map(|head| order.iter().map(|&index| head[index])).collect()
    }

    fn linear(&self, weight: &WeightTensor<'_>, bias: &Option<WeightTensor<'_>>) -> Result<Linear<B>> {
        let bias = bias.as_ref().map(|bias| self.backend.vector(&bias.to_f32())).transpose()?;
        Ok(Linear { weight: self.matrix(weight)?, bias })
    }

    fn mlp(&self, mlp: &WeightMlp<'_>) -> Result<MlpWeights<B>> {
        Ok(MlpWeights {
            activation: self.config.activation,
            gate: self.linear(&mlp.gate, &mlp.gate_bias)?,
            up: self.linear(&mlp.up, &mlp.up_bias)?,
            down: self.linear(&mlp.down, &mlp.down_bias)?,
        })
    }
}

/// For each number of a head, where it stands in the file: pairs that are (i, i + rotated/2) there come to stand half a
/// head apart, and what is not rotated comes behind them in both halves.
fn rotated_first(head_dim: usize, rotated: usize) -> Vec<usize> {
    let (half, pairs) = (head_dim / 2, rotated / 2);
    let rest = half - pairs;
    let low = (0..pairs).chain(rotated..rotated + rest);
    low.chain(pairs..rotated).chain(rotated + rest..head_dim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_a_part_of_a_head_come_to_stand_half_a_head_apart() {
        // Of ten numbers six are rotated: (0, 3), (1, 4) and (2, 5).
        assert_eq!(rotated_first(10, 6), [0, 1, 2, 6, 7, 3, 4, 5, 8, 9]);
        assert_eq!(rotated_first(8, 2), [0, 2, 3, 4, 1, 5, 6, 7]);
        assert_eq!(rotated_first(6, 6), [0, 1, 2, 3, 4, 5]);
    }
}
