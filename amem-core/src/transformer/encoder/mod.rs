//! Encoders of the BERT family: texts as vectors, for recall by meaning. They are computed by the kernels of the same
//! [`Backend`] as language models, and take texts as sentence-transformers does.
//!
//! Texts stand side by side in one pass, as in packed prefill, so none is filled up to the length of another. A token sees
//! the whole of its text. Of keys and values one layer is held, which each layer writes over.

mod config;
mod graph;
mod modules;
mod tokens;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use self::config::{EncoderConfig, EncoderFamily};
use self::graph::{Encode, Graph};
pub use self::modules::Pooling;
use self::modules::{Modules, Prompts, checked_prompt};
use self::tokens::Tokens;
use super::prefill::fitting;
use super::tensors::Tensors;
use super::text::tokens::FILE as TOKENIZER;
use super::{Backend, ModelSource};
use crate::model::STEP_ROWS;
use crate::recall::Embedder;
use crate::{Dtype, Fingerprint, Result, Token};

/// Texts whose tokens are counted and held at a time.
const BATCH: usize = 256;

/// How an encoder is loaded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EncoderOptions {
    /// The number type that keys and values are held in while a layer is computed. A GPU wants its own type here.
    pub kv: Dtype,
    /// How tokens become one vector, if not as the model's files say.
    pub pooling: Option<Pooling>,
    /// What stands before a question, if not what the model's files say.
    pub query_prompt: Option<String>,
    /// What stands before a text that is to be found, if not what the model's files say.
    pub passage_prompt: Option<String>,
    /// Tokens of a text at most, if fewer than the model's files say. What is longer is cut.
    pub max_tokens: Option<usize>,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        Self { kv: Dtype::F32, pooling: None, query_prompt: None, passage_prompt: None, max_tokens: None }
    }
}

impl EncoderOptions {
    /// With keys and values of this number type.
    #[must_use]
    pub fn kv(self, dtype: Dtype) -> Self {
        Self { kv: dtype, ..self }
    }

    /// With this pooling.
    #[must_use]
    pub fn pooling(self, pooling: Pooling) -> Self {
        Self { pooling: Some(pooling), ..self }
    }

    /// With this before questions: `query: ` for e5, say.
    #[must_use]
    pub fn query_prompt(self, prompt: impl Into<String>) -> Self {
        Self { query_prompt: Some(prompt.into()), ..self }
    }

    /// With this before texts that are to be found: `passage: ` for e5, say.
    #[must_use]
    pub fn passage_prompt(self, prompt: impl Into<String>) -> Self {
        Self { passage_prompt: Some(prompt.into()), ..self }
    }

    /// With so many tokens of a text at most.
    #[must_use]
    pub fn max_tokens(self, tokens: usize) -> Self {
        Self { max_tokens: Some(tokens), ..self }
    }
}

/// What a text is to an encoder that was trained with prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// Neither: nothing is put before it.
    #[default]
    Plain,
    /// A question, for which passages are to be found.
    Query,
    /// A text that is to be found.
    Passage,
}

/// A text's vector.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Encoded {
    /// The vector, of [`Encoder::dimensions`] numbers.
    pub vector: Vec<f32>,
    /// Tokens that it was computed from, special ones included.
    pub tokens: usize,
}

/// An encoder of one of the [families](EncoderFamily) on a [`Backend`]. Cheap to clone; clones are the same encoder, which
/// any number of callers may use at once: their texts go through it pass by pass, in turn.
///
/// As an [`Embedder`] it puts the prompts of its files, or of its options, before questions and passages.
#[derive(Clone)]
pub struct Encoder {
    inner: Arc<Inner>,
}

struct Inner {
    graph: Box<dyn Encode>,
    tokens: Tokens,
    prompts: Prompts,
    normalized: bool,
    dimensions: usize,
    max_tokens: usize,
    name: String,
    /// Whose pass is next. Waited for here and not for the graph's cache, so that who waits holds no thread, and none
    /// waits for ever behind one with many texts.
    turn: async_lock::Mutex<()>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Encoder").field(&self.inner.name).finish()
    }
}

impl Encoder {
    /// Loads a directory as sentence-transformers writes it: `config.json`, `model.safetensors` or its shards,
    /// `tokenizer.json`, `modules.json` and the pooling's `config.json`, `sentence_bert_config.json`,
    /// `config_sentence_transformers.json`. Or a GGUF file of the architectures `bert` and `nomic-bert`, as llama.cpp's
    /// converter writes it; its vectors are one long, and it has no prompts.
    ///
    /// # Errors
    /// [`Error::BadModel`](crate::Error::BadModel) and [`Error::UnsupportedModel`](crate::Error::UnsupportedModel), which
    /// name the file or the part; [`Error::Full`](crate::Error::Full) when the backend has no memory for the weights.
    pub fn load<B: Backend>(source: &dyn ModelSource, backend: B, options: EncoderOptions) -> Result<Self> {
        Self::read(source, backend, options).map_err(|error| match source.gguf() {
            Some(gguf) => gguf.blame(error),
            None => error,
        })
    }

    fn read<B: Backend>(source: &dyn ModelSource, backend: B, options: EncoderOptions) -> Result<Self> {
        let EncoderOptions { kv, pooling, query_prompt, passage_prompt, max_tokens } = options;
        let config = EncoderConfig::parse(source)?;
        let mut modules = Modules::read(source, config.hidden, pooling)?;
        for (given, prompt) in
            [(query_prompt, &mut modules.prompts.query), (passage_prompt, &mut modules.prompts.passage)]
        {
            if let Some(given) = given {
                *prompt = checked_prompt(&given)?;
            }
        }
        let most = [modules.max_tokens, max_tokens].into_iter().flatten().fold(config.max_tokens(), usize::min);
        let tokens = Tokens::open(source, config.vocabulary, most, modules.lower_case)?;
        let tensors = Tensors::open(source)?;
        let name = name(source, &tensors, &config, &modules, most, &backend.numerics().name, kv);
        let graph = Graph::load(backend, &config, modules.pooling, tensors, kv, most.max(STEP_ROWS))?;
        let inner = Inner {
            graph: Box::new(graph),
            tokens,
            prompts: modules.prompts,
            normalized: modules.normalized,
            dimensions: config.hidden,
            max_tokens: most,
            name,
            turn: async_lock::Mutex::new(()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Numbers in a vector.
    pub fn dimensions(&self) -> usize {
        self.inner.dimensions
    }

    /// Tokens of a text at most, special ones and the prompt's included. What is longer is cut.
    pub fn max_tokens(&self) -> usize {
        self.inner.max_tokens
    }

    /// What stands before a text of this kind.
    pub fn prompt(&self, purpose: Purpose) -> &str {
        match purpose {
            Purpose::Plain => "",
            Purpose::Query => &self.inner.prompts.query,
            Purpose::Passage => &self.inner.prompts.passage,
        }
    }

    /// The vectors of texts, in order. Computing happens on other threads, between other callers' texts. Dropping the
    /// future ends the work after the pass that is being computed.
    ///
    /// # Errors
    /// [`Error::BadModel`](crate::Error::BadModel) when the tokenizer does not fit the model,
    /// [`Error::Model`](crate::Error::Model) when the backend fails or what it computes are no numbers.
    pub async fn encode(&self, texts: &[&str], purpose: Purpose) -> Result<Vec<Encoded>> {
        let mut all = Vec::with_capacity(texts.len());
        for texts in texts.chunks(BATCH) {
            let prompt = self.prompt(purpose);
            let texts: Vec<String> = texts.iter().map(|text| format!("{prompt}{text}")).collect();
            let inner = Arc::clone(&self.inner);
            let tokenise = move || texts.iter().map(|text| inner.tokens.of(text)).collect::<Result<Vec<_>>>();
            let mut waiting = blocking::unblock(tokenise).await?;
            while !waiting.is_empty() {
                let others = waiting.split_off(fitting(waiting.iter().map(Vec::len)));
                let pass = std::mem::replace(&mut waiting, others);
                let turn = self.inner.turn.lock().await;
                let inner = Arc::clone(&self.inner);
                let encoded = blocking::unblock(move || inner.pass(&pass)).await?;
                drop(turn);
                all.extend(encoded);
            }
        }
        Ok(all)
    }

    async fn vectors(&self, texts: &[&str], purpose: Purpose) -> Result<Vec<Vec<f32>>> {
        Ok(self.encode(texts, purpose).await?.into_iter().map(|encoded| encoded.vector).collect())
    }
}

impl Inner {
    fn pass(&self, texts: &[Vec<Token>]) -> Result<Vec<Encoded>> {
        let vectors = self.graph.encode(texts)?;
        let encoded = |(mut vector, text): (Vec<f32>, &Vec<Token>)| {
            if self.normalized {
                normalise(&mut vector);
            }
            Encoded { vector, tokens: text.len() }
        };
        Ok(vectors.into_iter().zip(texts).map(encoded).collect())
    }
}

/// Makes a vector one long, unless it is zero.
fn normalise(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

/// A name for all that vectors depend on: weights, settings, tokenizer, prompts and arithmetic.
fn name(
    source: &dyn ModelSource,
    tensors: &Tensors<'_>,
    config: &EncoderConfig,
    modules: &Modules,
    max_tokens: usize,
    numerics: &str,
    kv: Dtype,
) -> String {
    let Modules { pooling, normalized, lower_case, prompts, .. } = modules;
    let mut hash = blake3::Hasher::new_derive_key("amem 2026-11 encoder v1");
    let settings = config.bytes();
    let tokenizer = source.file(TOKENIZER).unwrap_or_default();
    let texts = [numerics.as_bytes(), &settings, tokenizer, prompts.query.as_bytes(), prompts.passage.as_bytes()];
    for part in texts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(&(max_tokens as u64).to_le_bytes());
    hash.update(&[kv.code(), *pooling as u8, (*normalized).into(), (*lower_case).into()]);
    tensors.hash(&mut hash);
    format!("encoder {}", Fingerprint(*hash.finalize().as_bytes()))
}

#[async_trait]
impl Embedder for Encoder {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        self.vectors(texts, Purpose::Passage).await
    }

    async fn embed_queries(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        self.vectors(texts, Purpose::Query).await
    }

    fn name(&self) -> Option<&str> {
        Some(&self.inner.name)
    }
}
