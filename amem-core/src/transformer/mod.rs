//! Transformer models: model directories, one forward pass, and blend. [`Transformer`] is the [`Model`] that they make.

mod advance;
mod backend;
mod config;
mod context;
mod device_weights;
mod encoder;
mod experts;
#[cfg(test)]
mod fixtures;
mod gguf;
mod kv_cache;
mod loaded_model;
mod paged;
mod pass;
mod pass_cache;
mod prefill;
mod rope;
mod select;
mod settings;
mod source;
mod tensors;
mod text;
mod weight_type;
mod weights;

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread::{Scope, ScopedJoinHandle};

pub use backend::{Attention, Backend, BlockTable, Numerics, Placement, Qkv, Row, Span};
pub use config::{Config, Family};
pub use device_weights::{Activation, AttentionWeights, ExpertWeights, LayerNorm, Linear, MlpWeights};
pub use encoder::{Encoded, Encoder, EncoderConfig, EncoderFamily, EncoderOptions, Pooling, Purpose};
pub use gguf::{Gguf, GgufBytes};
pub use rope::Rope;
pub use source::ModelSource;
pub use text::HfChat;
pub use weight_type::WeightType;
pub use weights::{WeightFeedForward, WeightLayer, WeightMlp, WeightRole, WeightTensor, Weights};

use crate::model::advance_until_done;
use crate::{
    AppendOptions, Chat, Context, Dtype, Error, KvChunk, Model, ModelInfo, Piece, PrefillText, Prefilling, Progress,
    Repair, Result, Sampling, Step, Token, Usage,
};
use advance::Member;
use context::PagedContext;
use device_weights::DeviceWeights;
use kv_cache::KvCache;
use loaded_model::LoadedModel;

/// How a model is loaded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// A name for people; the directory's name, say.
    pub name: String,
    /// The number type of contexts' KV. What is stored for a model has this type too, unless a tier says otherwise, and
    /// so comes back without loss.
    pub kv: Dtype,
    /// Bytes of KV that all contexts together may take; but at least one full context, and a block beside it, whatever this
    /// says: 16 GiB for Llama 3.1 8B with its 128k tokens in f16. Set [`context`](Self::context) to take less.
    pub kv_cache_bytes: u64,
    /// Tokens that one context holds at most, if fewer than the model was made for. A model with LongRoPE (Phi-3 and
    /// Phi-4 of 128k) rotates as it did before its context was extended, if this is not more than what it held then.
    pub context: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { name: "model".to_owned(), kv: Dtype::F16, kv_cache_bytes: 4 << 30, context: None }
    }
}

impl Options {
    /// With this name.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// With KV of this number type.
    #[must_use]
    pub fn kv(self, dtype: Dtype) -> Self {
        Self { kv: dtype, ..self }
    }

    /// With so many bytes for the KV of all contexts.
    #[must_use]
    pub fn kv_cache_bytes(self, bytes: u64) -> Self {
        Self { kv_cache_bytes: bytes, ..self }
    }

    /// With so many tokens in one context at most.
    #[must_use]
    pub fn context(self, tokens: usize) -> Self {
        Self { context: Some(tokens), ..self }
    }
}

/// A model of one of the [families](Family) on a [`Backend`].
pub struct Transformer<B: Backend> {
    model: Arc<LoadedModel<B>>,
    info: Arc<ModelInfo>,
    chat: Box<dyn Chat>,
    sampling: Sampling,
    /// The prefixes that memories were last computed behind.
    prefixes: Mutex<VecDeque<Arc<prefill::Prefix>>>,
}

/// Starts work on a thread of its own.
fn beside<'scope, 'env, T: Send + 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<T>>> {
    let thread = std::thread::Builder::new().name("amem-load".to_owned());
    thread
        .spawn_scoped(scope, work)
        .map_err(|error| Error::Model(format!("no thread to load a model on: {error}").into()))
}

/// What a thread came to.
fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl<B: Backend> Transformer<B> {
    /// Loads a Hugging Face model directory: `config.json`, `model.safetensors` or its shards, `tokenizer.json`, the
    /// chat template, `generation_config.json`. Or a [GGUF file](Gguf), which has all of this.
    ///
    /// # Errors
    /// [`Error::BadModel`] and [`Error::UnsupportedModel`], which name the file or the part; [`Error::Full`] when the
    /// backend has no memory for the weights.
    pub fn load(source: &dyn ModelSource, backend: B, options: Options) -> Result<Self> {
        let config = Config::parse_for(source, options.context)?;
        Self::assemble(source, &config, backend, options, || {
            let chat = HfChat::open(source, &config)?;
            let sampling = chat.sampling().clone();
            Ok((Box::new(chat), sampling))
        })
    }

    /// Loads a model's configuration and weights, for a tokenizer and chat template of one's own.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn with_chat(
        source: &dyn ModelSource,
        backend: B,
        options: Options,
        chat: Box<dyn Chat>,
        sampling: Sampling,
    ) -> Result<Self> {
        let config = Config::parse_for(source, options.context)?;
        Self::assemble(source, &config, backend, options, || Ok((chat, sampling)))
    }

    /// Reads what `chat` reads, packs the weights and hashes them, all at the same time. The first is work for one thread;
    /// the others share the backend's.
    fn assemble(
        source: &dyn ModelSource,
        config: &Config,
        backend: B,
        options: Options,
        chat: impl FnOnce() -> Result<(Box<dyn Chat>, Sampling)> + Send,
    ) -> Result<Self> {
        let weights = Weights::open(source, config)?;
        let (numerics, dtype) = (backend.numerics(), options.kv);
        let context = options.context.unwrap_or(config.context).min(config.context);
        let upload = || {
            backend.check_attention(&config.attention(0))?;
            let weights = DeviceWeights::load(&backend, config, &weights)?;
            Ok((weights, KvCache::new(&backend, config.kv_shape(), dtype, context, options.kv_cache_bytes)?))
        };
        let (chat, fingerprint, (weights, kv)) = std::thread::scope(|scope| {
            let chat = beside(scope, chat)?;
            let fingerprint = beside(scope, || Ok(backend.run(|| weights.fingerprint(config, &numerics.name, dtype))))?;
            let uploaded = upload();
            Ok::<_, Error>((joined(chat)?, joined(fingerprint)?, uploaded?))
        })?;
        let model = LoadedModel { backend, config: config.clone(), weights, kv };
        let (chat, sampling) = chat;
        let info = ModelInfo::new(options.name, fingerprint, model.kv.shape, context, config.vocabulary);
        let info = ModelInfo { exactness: numerics.exactness, dtype, ..info };
        Ok(Self { model: Arc::new(model), info: Arc::new(info), chat, sampling, prefixes: Mutex::default() })
    }

    /// The logits after each token of a text, `[tokens][vocabulary]`: for evaluation and teacher forcing.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::BadValue`] for a token that is not in the vocabulary, [`Error::KvCacheFull`] when the
    /// KV cache has no room, [`Error::Model`] when the backend fails.
    pub fn score(&self, tokens: &[Token]) -> Result<Vec<f32>> {
        let mut context = self.open(tokens.len())?;
        let options = AppendOptions::new(Repair::None).logits(tokens.len());
        context.append(&[Piece::Fresh(tokens.into())], &options)?;
        advance_until_done(self, &mut *context)?;
        Ok(context.logits().to_vec())
    }
}

impl<B: Backend> Model for Transformer<B> {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn chat(&self) -> &dyn Chat {
        &*self.chat
    }

    fn sampling(&self) -> Sampling {
        self.sampling.clone()
    }

    fn prefill(&self, prefix: &[Token], texts: &[PrefillText], measure: bool) -> Result<(Vec<KvChunk>, Usage)> {
        self.begin_prefill_behind(prefix, texts.to_vec(), measure)?.finish()
    }

    fn begin_prefill<'m>(
        &'m self,
        prefix: &[Token],
        texts: Vec<PrefillText>,
        measure: bool,
    ) -> Result<Box<dyn Prefilling + 'm>> {
        Ok(Box::new(self.begin_prefill_behind(prefix, texts, measure)?))
    }

    fn open(&self, tokens: usize) -> Result<Box<dyn Context>> {
        Ok(Box::new(PagedContext::new(Arc::clone(&self.model), Arc::clone(&self.info), tokens)?))
    }

    fn advance(&self, steps: &mut [Step<'_>]) -> Vec<Result<Progress>> {
        let mut results: Vec<Option<Result<Progress>>> = steps.iter().map(|_| None).collect();
        let (mut members, mut at) = (Vec::new(), Vec::new());
        for (index, step) in steps.iter_mut().enumerate() {
            let context: &mut dyn Any = &mut *step.context;
            match context.downcast_mut::<PagedContext<B>>() {
                Some(context) if Arc::ptr_eq(&context.model, &self.model) => {
                    members.push(Member::new(context, step.max_rows));
                    at.push(index);
                }
                _ => {
                    let (value, expected) = ("another model's".to_owned(), "one that this model opened");
                    results[index] = Some(Err(Error::BadValue { what: "context", value, expected }));
                }
            }
        }
        let advanced = if at.is_empty() {
            Vec::new()
        } else {
            // Locked here and not on a thread of the backend: one that waits for others in a pass may be given this pass to
            // run meanwhile, and would wait for itself.
            let mut locked = self.model.kv.lock();
            let (model, cache) = (&*self.model, &mut *locked);
            model.backend.run(move || advance::advance(model, cache, members))
        };
        for (index, result) in at.into_iter().zip(advanced) {
            results[index] = Some(result);
        }
        results.into_iter().map(|result| result.unwrap_or(Ok(Progress::Pending))).collect()
    }
}
