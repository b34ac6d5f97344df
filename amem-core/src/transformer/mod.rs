//! The engine: model directories, one forward pass, and blend. [`Transformer`] is the [`Model`] that they make.

mod backend;
mod blend;
mod config;
#[cfg(test)]
mod fixtures;
mod forward;
mod prefill;
mod rope;
mod select;
mod settings;
mod source;
mod text;
mod weights;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

pub use backend::{Backend, Row, Span};
pub use config::{Config, Family};
pub use rope::Rope;
pub use source::ModelSource;
pub use text::HfChat;
pub use weights::{Layer, Tensor, Weights};

use crate::{
    Chat, Context, Dtype, Encoding, Error, HostKv, KvChunk, Model, ModelInfo, Namespace, PrefixId, Result, Sampling,
    Token, Usage,
};
use blend::Blend;
use forward::Graph;

/// How a model is loaded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// A name for people; the directory's name, say.
    pub name: String,
    /// How stored KV is written.
    pub kv: Dtype,
    /// Tokens that one context holds at most, if fewer than the model was made for.
    pub context: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { name: "model".to_owned(), kv: Dtype::F16, context: None }
    }
}

/// A model of the Llama, Mistral, Qwen2 or Qwen3 families on a [`Backend`].
pub struct Transformer<B: Backend> {
    graph: Arc<Graph<B>>,
    info: Arc<ModelInfo>,
    chat: Box<dyn Chat>,
    sampling: Sampling,
    /// The prefixes that memories were last computed behind.
    prefixes: Mutex<VecDeque<Arc<Prefix>>>,
}

/// What memories are computed behind.
struct Prefix {
    tokens: Vec<Token>,
    /// `None` for no tokens at all.
    chunk: Option<KvChunk>,
    /// Unrelated notes, computed behind the prefix: what else could stand before a memory.
    distractors: Vec<KvChunk>,
    /// What is far and what is near in each layer's keys and values.
    scales: Vec<[f32; 2]>,
}

impl<B: Backend> Transformer<B> {
    /// Loads a Hugging Face model directory: `config.json`, `model.safetensors` or its shards, `tokenizer.json`, the
    /// chat template, `generation_config.json`.
    ///
    /// # Errors
    /// [`Error::BadModel`] and [`Error::UnsupportedModel`], which name the file or the part; what the backend met.
    pub fn load(source: &dyn ModelSource, backend: B, options: Options) -> Result<Self> {
        let chat = HfChat::open(source, &Config::parse(source)?)?;
        let sampling = chat.sampling().clone();
        Self::with_chat(source, backend, options, Box::new(chat), sampling)
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
        let config = Config::parse(source)?;
        let weights = Weights::open(source, &config)?;
        let graph = Graph::load(backend, &config, &weights, options.kv)?;
        let info = ModelInfo {
            name: options.name,
            fingerprint: weights.fingerprint(&config),
            shape: graph.shape,
            context: options.context.unwrap_or(config.context).min(config.context),
            vocabulary: config.vocabulary,
        };
        Ok(Self { graph: Arc::new(graph), info: Arc::new(info), chat, sampling, prefixes: Mutex::default() })
    }

    /// The logits after each token of a text, `[tokens][vocabulary]`: for evaluation and teacher forcing.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::BadValue`] for a token that is not in the vocabulary; what the backend met.
    pub fn score(&self, tokens: &[Token]) -> Result<Vec<f32>> {
        blend::score(&self.graph, &self.info, tokens)
    }

    fn chunk(&self, namespace: &Namespace, prefix: &PrefixId, tokens: &Arc<[Token]>, kv: Vec<u8>) -> Result<KvChunk> {
        let id = self.info.chunk_id(namespace, prefix, tokens);
        let data = HostKv::new(Encoding::Plain(self.graph.dtype), self.info.shape.layers, kv);
        let chunk = KvChunk::new(id, *prefix, self.info.shape, Arc::clone(tokens), Arc::new(data))?;
        Ok(chunk.with_model(self.info.fingerprint))
    }

    /// The prefix's KV, computed once.
    fn prefix(&self, tokens: &[Token]) -> Result<Arc<Prefix>> {
        const KEPT: usize = 4;
        let mut kept = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prefix) = kept.iter().find(|prefix| prefix.tokens == tokens) {
            return Ok(Arc::clone(prefix));
        }
        let prefix = Arc::new(self.compute_prefix(tokens)?);
        kept.push_front(Arc::clone(&prefix));
        kept.truncate(KEPT);
        Ok(prefix)
    }

    fn compute_prefix(&self, tokens: &[Token]) -> Result<Prefix> {
        // Nothing of this leaves the model, so the namespace is nobody's.
        let nobody = Namespace::new("prefix")?;
        let chunk = match tokens {
            [] => None,
            _ => self.compute(&nobody, &[], &PrefixId::of(&[]), &[tokens.into()], None)?.pop(),
        };
        let layout = self.chat.layout("")?;
        let notes = DISTRACTORS.iter().map(|text| Ok(layout.memory(&self.chat.encode(text)?)));
        let notes = notes.collect::<Result<Vec<_>>>()?;
        let behind: Vec<&KvChunk> = chunk.iter().collect();
        let scales = prefill::compute(&self.graph, &behind, &notes)?.scales();
        let distractors = self.compute(&nobody, &behind, &PrefixId::of(tokens), &notes, None)?;
        Ok(Prefix { tokens: tokens.to_vec(), chunk, distractors, scales })
    }

    /// The chunks of texts behind others; with their sensitivity, if there is a prefix to measure it with.
    fn compute(
        &self,
        namespace: &Namespace,
        behind: &[&KvChunk],
        id: &PrefixId,
        texts: &[Arc<[Token]>],
        measured: Option<&Prefix>,
    ) -> Result<Vec<KvChunk>> {
        let mut chunks = Vec::with_capacity(texts.len());
        for texts in prefill::batches(texts) {
            let computed = prefill::compute(&self.graph, behind, texts)?;
            let sensitivity = match measured {
                None => None,
                Some(prefix) => {
                    let further: Vec<&KvChunk> = behind.iter().copied().chain(&prefix.distractors).collect();
                    let moved = prefill::compute(&self.graph, &further, texts)?;
                    Some(computed.distances(&moved, &prefix.scales))
                }
            };
            let mut first = 0;
            for text in texts {
                let rows = first..first + text.len();
                first = rows.end;
                let kv = computed.bytes(Encoding::Plain(self.graph.dtype), &self.info.shape, rows.clone());
                let chunk = self.chunk(namespace, id, text, kv)?;
                chunks.push(match &sensitivity {
                    Some(all) => chunk.with_sensitivity(all[rows].into())?,
                    None => chunk,
                });
            }
        }
        Ok(chunks)
    }
}

/// Unrelated notes that stand for all that could come before a memory: people who do this and that, one of them spoken
/// of by a pronoun, so that words which lean on what came before find something else to lean on.
const DISTRACTORS: [&str; 2] = ["Anna has a dog named Rex.", "Peter enjoys chess. His friend is Carl."];

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

    fn prefill(
        &self,
        namespace: &Namespace,
        prefix: &[Token],
        texts: &[Arc<[Token]>],
        measure: bool,
    ) -> Result<(Vec<KvChunk>, Usage)> {
        for text in texts {
            blend::check_tokens(text, &self.info)?;
            let (tokens, limit) = (prefix.len() + text.len(), self.info.context);
            if text.is_empty() {
                return Err(Error::Empty { what: "memory" });
            }
            if tokens > limit {
                return Err(Error::TooLong { what: "memory", tokens, limit });
            }
        }
        blend::check_tokens(prefix, &self.info)?;
        let prefix = self.prefix(prefix)?;
        let behind: Vec<&KvChunk> = prefix.chunk.iter().collect();
        let id = PrefixId::of(&prefix.tokens);
        let chunks = self.compute(namespace, &behind, &id, texts, measure.then_some(&*prefix))?;
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        let work = tokens * self.info.shape.layers * if measure { 2 } else { 1 };
        Ok((chunks, Usage { prefilled: tokens, work_prefilling: work as u64, ..Usage::default() }))
    }

    fn open(&self) -> Result<Box<dyn Context>> {
        Ok(Box::new(Blend::new(Arc::clone(&self.graph), Arc::clone(&self.info))?))
    }
}
