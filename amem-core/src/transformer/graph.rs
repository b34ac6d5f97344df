//! A model's weights on a backend, and how they hang together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backend::Backend;
use super::config::Config;
use super::paged::BlockPool;
use super::rope::Rope;
use super::weights::{WeightLayer, WeightTensor, Weights};
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
    /// Norm of each head of the queries, `[head_dim]`.
    pub query_norm: Option<B::Vector>,
    /// Norm of each head of the keys, `[head_dim]`.
    pub key_norm: Option<B::Vector>,
    /// `[hidden][heads * head_dim]`.
    pub output: Linear<B>,
    /// What is added to the mean square in the norms of heads.
    pub norm_eps: f32,
}

/// A gated feed-forward block.
pub struct MlpWeights<B: Backend> {
    /// `[intermediate][hidden]`.
    pub gate: Linear<B>,
    /// `[intermediate][hidden]`.
    pub up: Linear<B>,
    /// `[hidden][intermediate]`.
    pub down: Linear<B>,
}

/// One transformer layer.
pub(super) struct Layer<B: Backend> {
    pub(super) input_norm: B::Vector,
    pub(super) attention: AttentionWeights<B>,
    pub(super) post_norm: B::Vector,
    pub(super) mlp: MlpWeights<B>,
}

/// A model on a backend: its weights and its KV cache.
pub(super) struct Graph<B: Backend> {
    pub(super) backend: B,
    pub(super) shape: KvShape,
    /// The number type of the KV cache.
    pub(super) dtype: Dtype,
    /// How far a row sees back, itself included; no limit if `None`.
    pub(super) window: Option<u32>,
    pub(super) rope: Rope,
    pub(super) norm_eps: f32,
    pub(super) embedding: B::Matrix,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) final_norm: B::Vector,
    /// `None` where the embedding serves as the output matrix too.
    pub(super) lm_head: Option<B::Matrix>,
    /// The KV of all contexts. One pass writes at a time.
    cache: Mutex<B::Cache>,
    /// A small cache that is used again for memories that are computed, and its blocks.
    scratch: Mutex<Option<(usize, B::Cache)>>,
    pub(super) pool: Arc<BlockPool>,
}

/// A pass that has begun.
pub(super) struct PassScope<'g, B: Backend>(Option<&'g B>);

impl<B: Backend> PassScope<'_, B> {
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

impl<B: Backend> Graph<B> {
    /// Uploads the weights and makes a KV cache of at most `cache_bytes`, or of one full context if that is more.
    pub(super) fn load(
        backend: B,
        config: &Config,
        weights: &Weights<'_>,
        dtype: Dtype,
        context: usize,
        cache_bytes: u64,
    ) -> Result<Self> {
        let vector = |tensor: &WeightTensor<'_>| backend.vector(&tensor.to_f32());
        let linear = |weight: &WeightTensor<'_>, bias: &Option<WeightTensor<'_>>| -> Result<Linear<B>> {
            Ok(Linear { weight: backend.matrix(weight)?, bias: bias.as_ref().map(vector).transpose()? })
        };
        let layer = |layer: &WeightLayer<'_>| -> Result<Layer<B>> {
            let attention = AttentionWeights {
                query: linear(&layer.q, &layer.q_bias)?,
                key: linear(&layer.k, &layer.k_bias)?,
                value: linear(&layer.v, &layer.v_bias)?,
                query_norm: layer.q_norm.as_ref().map(vector).transpose()?,
                key_norm: layer.k_norm.as_ref().map(vector).transpose()?,
                output: linear(&layer.o, &layer.o_bias)?,
                norm_eps: config.norm_eps,
            };
            let mlp = MlpWeights {
                gate: linear(&layer.gate, &None)?,
                up: linear(&layer.up, &None)?,
                down: linear(&layer.down, &None)?,
            };
            let (input_norm, post_norm) = (vector(&layer.input_norm)?, vector(&layer.post_norm)?);
            Ok(Layer { input_norm, attention, post_norm, mlp })
        };
        let layers = weights.layers.iter().map(layer).collect::<Result<_>>()?;
        let shape = config.kv_shape();
        let block_tokens = backend.block_tokens().max(1);
        let block_bytes = (block_tokens * shape.token_numbers() * dtype.size()) as u64;
        let blocks = (cache_bytes / block_bytes.max(1)).max(context.div_ceil(block_tokens) as u64).min(1 << 31);
        let cache = backend.cache(&shape, dtype, blocks as usize)?;
        Ok(Self {
            shape,
            dtype,
            window: config.window.map(|window| window as u32),
            rope: config.rope.clone(),
            norm_eps: config.norm_eps,
            embedding: backend.matrix(&weights.embedding)?,
            layers,
            final_norm: vector(&weights.norm)?,
            lm_head: weights.lm_head.as_ref().map(|tensor| backend.matrix(tensor)).transpose()?,
            cache: Mutex::new(cache),
            scratch: Mutex::new(None),
            pool: BlockPool::new(blocks as usize, block_tokens, block_bytes),
            backend,
        })
    }

    /// Begins a pass. It ends with [`PassScope::end`], and also when what is returned is dropped.
    pub(super) fn begin_pass(&self) -> Result<PassScope<'_, B>> {
        let scope = PassScope(Some(&self.backend));
        self.backend.begin_pass()?;
        Ok(scope)
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

    /// The first slot that a row sees, if it could see all from `start` on.
    pub(super) fn first_seen(&self, start: u32, own: u32) -> u32 {
        start.max(self.window.map_or(0, |window| (own + 1).saturating_sub(window)))
    }
}
