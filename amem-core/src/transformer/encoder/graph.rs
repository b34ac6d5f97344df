//! An encoder's weights on a backend, and its forward pass: many texts side by side, each of whose tokens sees its whole
//! text.

use std::sync::{Mutex, PoisonError};

use super::{EncoderConfig, EncoderFamily, Pooling};
use crate::transformer::backend::{Attention, Backend, BlockTable, Qkv, Row, Span};
use crate::transformer::device_weights::{Activation, AttentionWeights, LayerNorm, Linear, MlpWeights};
use crate::transformer::pass::PassScope;
use crate::transformer::tensors::Tensors;
use crate::transformer::{WeightRole, WeightTensor};
use crate::{Dtype, Error, Result, Token};

/// What may stand before the names of an encoder's tensors.
const PREFIXES: [&str; 5] = ["", "bert.", "roberta.", "nomic_bert.", "model."];
const WORDS: &str = "embeddings.word_embeddings.weight";
const TYPES: &str = "embeddings.token_type_embeddings.weight";

/// What an [`Encoder`](super::Encoder) needs of an encoder, on whatever backend.
pub(super) trait Encode: Send + Sync {
    /// The vectors of some texts, which go through the layers together. A text without tokens has a zero vector.
    fn encode(&self, texts: &[Vec<Token>]) -> Result<Vec<Vec<f32>>>;
}

/// An encoder on a backend.
pub(super) struct Graph<B: Backend> {
    backend: B,
    config: EncoderConfig,
    pooling: Pooling,
    words: B::Matrix,
    /// `[positions][hidden]`, with the embedding of the first token type added; `None` where heads are rotated.
    positions: Option<B::Matrix>,
    /// The embedding of the first token type, `[1][hidden]`, where it is not added to positions.
    token_type: Option<B::Matrix>,
    embedding_norm: LayerNorm<B>,
    layers: Vec<Layer<B>>,
    /// Keys and values of the layer that is computed: each layer writes over those of the one before.
    cache: Mutex<B::Cache>,
    /// The cache's blocks.
    table: Vec<u32>,
}

struct Layer<B: Backend> {
    attention: AttentionWeights<B>,
    /// Norm of the sum of what attention takes and gives.
    attention_norm: LayerNorm<B>,
    feed_forward: FeedForward<B>,
    /// Norm of the sum of what the feed-forward block takes and gives.
    feed_forward_norm: LayerNorm<B>,
}

enum FeedForward<B: Backend> {
    /// GELU between two products.
    Plain([Linear<B>; 2]),
    Gated(MlpWeights<B>),
}

impl<B: Backend> Graph<B> {
    /// Uploads the weights, and makes room for so many tokens in one pass.
    pub(super) fn load(
        backend: B,
        config: &EncoderConfig,
        pooling: Pooling,
        mut tensors: Tensors<'_>,
        dtype: Dtype,
        rows: usize,
    ) -> Result<Self> {
        backend.check_attention(&Attention::new(0, config.head_dim))?;
        tensors.take_prefix(&PREFIXES, WORDS);
        let loader = Loader { backend: &backend, config, tensors: &tensors };
        let hidden = config.hidden;
        let words = loader.matrix(WORDS, WeightRole::Embedding, config.vocabulary, hidden, None)?;
        let token_type = match config.types {
            0 => None,
            types => {
                let table = tensors.of_text(TYPES, WeightRole::Embedding, &[types, hidden])?;
                table.cut(0..1).map(|row| row.to_f32())
            }
        };
        let upload = |numbers: &[f32], rows: usize| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            backend.matrix(&WeightTensor::new(WeightRole::Embedding, Dtype::F32, rows, hidden, &bytes))
        };
        let (positions, token_type) = match (config.family, token_type) {
            (EncoderFamily::NomicBert, row) => (None, row.map(|row| upload(&row, 1)).transpose()?),
            (_, row) => {
                let name = "embeddings.position_embeddings.weight";
                let table = tensors.of_text(name, WeightRole::Embedding, &[config.positions, hidden])?;
                let mut numbers = table.to_f32();
                if let Some(row) = row {
                    for position in numbers.chunks_exact_mut(hidden) {
                        position.iter_mut().zip(&row).for_each(|(number, more)| *number += more);
                    }
                }
                (Some(upload(&numbers, config.positions)?), None)
            }
        };
        let names = Names::of(config.family);
        let embedding_norm = loader.norm(names.embedding_norm)?;
        let layers = (0..config.layers).map(|layer| loader.layer(layer, &names)).collect::<Result<_>>()?;
        tensors.refuse_unused()?;
        let blocks = rows.div_ceil(backend.block_tokens().max(1));
        let cache = Mutex::new(backend.cache(&config.kv_shape(), dtype, blocks)?);
        let table = (0..blocks as u32).collect();
        let config = config.clone();
        Ok(Self { backend, config, pooling, words, positions, token_type, embedding_norm, layers, cache, table })
    }

    /// The sum of all embeddings of the rows' tokens.
    fn embedded(&self, rows: &[Row]) -> Result<B::Tensor> {
        let tokens: Vec<Token> = rows.iter().map(|row| row.token).collect();
        let mut hidden = self.backend.embed(&self.words, &tokens)?;
        if let Some(positions) = &self.positions {
            let first = self.config.first_position as u32;
            let places: Vec<Token> = rows.iter().map(|row| first + row.position).collect();
            self.backend.add(&mut hidden, &self.backend.embed(positions, &places)?)?;
        }
        if let Some(token_type) = &self.token_type {
            self.backend.add(&mut hidden, &self.backend.embed(token_type, &vec![0; rows.len()])?)?;
        }
        Ok(hidden)
    }

    /// What becomes of the rows: all of them, or those that are wanted of the last layer.
    fn hidden(&self, cache: &mut B::Cache, rows: &[Row], wanted: Option<&[usize]>) -> Result<B::Tensor> {
        let backend = &self.backend;
        let tables: [BlockTable<'_>; 1] = [&self.table];
        let attention = Attention::new(0, self.config.head_dim);
        let plan = backend.plan(&self.config.rope, rows, &tables)?;
        let mut hidden = backend.layer_norm(&self.embedded(rows)?, &self.embedding_norm)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let Qkv { mut queries, keys, values } = backend.qkv(&hidden, &layer.attention, &plan)?;
            backend.write_kv(cache, 0, &plan, &keys, &values)?;
            let attended = match wanted.filter(|_| index + 1 == self.layers.len()) {
                None => backend.attend(cache, attention, &plan, &queries)?,
                Some(wanted) => {
                    queries = backend.gather(&queries, wanted)?;
                    hidden = backend.gather(&hidden, wanted)?;
                    let rows: Vec<Row> = wanted.iter().filter_map(|&row| rows.get(row).cloned()).collect();
                    backend.attend(cache, attention, &backend.plan(&self.config.rope, &rows, &tables)?, &queries)?
                }
            };
            let output = &layer.attention.output;
            let output = backend.linear(&attended, &output.weight, output.bias.as_ref())?;
            hidden = backend.add_layer_norm(&mut hidden, &output, &layer.attention_norm)?;
            let output = layer.feed_forward.apply(backend, &hidden)?;
            hidden = backend.add_layer_norm(&mut hidden, &output, &layer.feed_forward_norm)?;
        }
        Ok(hidden)
    }

    fn pooled(&self, cache: &mut B::Cache, texts: &[Vec<Token>]) -> Result<Vec<Vec<f32>>> {
        let (width, rows) = (self.config.hidden, rows(texts));
        if rows.is_empty() {
            return Ok(vec![vec![0.0; width]; texts.len()]);
        }
        let scope = PassScope::begin(&self.backend)?;
        let first: Vec<usize> = (0..).zip(&rows).filter(|(_, row)| row.position == 0).map(|(row, _)| row).collect();
        let wanted = (self.pooling == Pooling::Cls).then_some(first.as_slice());
        let numbers = self.backend.read(&self.hidden(cache, &rows, wanted)?)?;
        scope.end()?;
        if numbers.iter().any(|number| !number.is_finite()) {
            let reason = "the encoder computes numbers that are not finite: its weights are damaged, or larger than its \
                          number type holds";
            return Err(Error::Model(reason.into()));
        }
        let mut rows = numbers.chunks_exact(width);
        let mut vectors = Vec::with_capacity(texts.len());
        for text in texts {
            let tokens = match self.pooling {
                Pooling::Cls => text.len().min(1),
                Pooling::Mean => text.len(),
            };
            let mut sum = vec![0.0; width];
            for row in rows.by_ref().take(tokens) {
                sum.iter_mut().zip(row).for_each(|(sum, number)| *sum += f64::from(*number));
            }
            vectors.push(sum.into_iter().map(|sum| (sum / tokens.max(1) as f64) as f32).collect());
        }
        Ok(vectors)
    }
}

impl<B: Backend> Encode for Graph<B> {
    fn encode(&self, texts: &[Vec<Token>]) -> Result<Vec<Vec<f32>>> {
        // Locked here and not on a thread of the backend, which may be given another pass to run while it waits in this one.
        let mut locked = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = &mut *locked;
        self.backend.run(move || self.pooled(cache, texts))
    }
}

/// The rows of texts that stand side by side in one context, each of which sees its own text.
fn rows(texts: &[Vec<Token>]) -> Vec<Row> {
    let mut rows = Vec::new();
    for text in texts {
        let first = rows.len() as u32;
        let own = first..first + text.len() as u32;
        rows.extend((0..).zip(text).map(|(position, &token)| Row {
            token,
            context: 0,
            slot: first + position,
            position,
            sees: Span { shared: 0..0, own: own.clone() },
        }));
    }
    rows
}

impl<B: Backend> FeedForward<B> {
    fn apply(&self, backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
        match self {
            Self::Plain([up, down]) => {
                let mut inner = backend.linear(x, &up.weight, up.bias.as_ref())?;
                backend.gelu(&mut inner)?;
                backend.linear(&inner, &down.weight, down.bias.as_ref())
            }
            Self::Gated(mlp) => backend.mlp(x, mlp),
        }
    }
}

/// What a family calls the parts of a layer.
struct Names {
    embedding_norm: &'static str,
    layers: &'static str,
    /// Queries, keys and values: in one tensor, or in three.
    qkv: Projections,
    attention_output: &'static str,
    attention_norm: &'static str,
    feed_forward: Blocks,
    feed_forward_norm: &'static str,
}

enum Projections {
    Fused(&'static str),
    Apart([&'static str; 3]),
}

enum Blocks {
    Plain([&'static str; 2]),
    /// The gate, what is gated, and the way back.
    Gated([&'static str; 3]),
}

impl Names {
    fn of(family: EncoderFamily) -> Self {
        match family {
            EncoderFamily::NomicBert => Self {
                embedding_norm: "emb_ln",
                layers: "encoder.layers",
                qkv: Projections::Fused("attn.Wqkv"),
                attention_output: "attn.out_proj",
                attention_norm: "norm1",
                feed_forward: Blocks::Gated(["mlp.fc12", "mlp.fc11", "mlp.fc2"]),
                feed_forward_norm: "norm2",
            },
            _ => Self {
                embedding_norm: "embeddings.LayerNorm",
                layers: "encoder.layer",
                qkv: Projections::Apart(["attention.self.query", "attention.self.key", "attention.self.value"]),
                attention_output: "attention.output.dense",
                attention_norm: "attention.output.LayerNorm",
                feed_forward: Blocks::Plain(["intermediate.dense", "output.dense"]),
                feed_forward_norm: "output.LayerNorm",
            },
        }
    }
}

/// What turns the tensors of files into weights on a backend.
struct Loader<'l, 'w, B> {
    backend: &'l B,
    config: &'l EncoderConfig,
    tensors: &'l Tensors<'w>,
}

impl<B: Backend> Loader<'_, '_, B> {
    fn upload(&self, tensor: &WeightTensor<'_>) -> Result<B::Matrix> {
        let matrix = self.backend.matrix(tensor)?;
        self.tensors.release(tensor.bytes);
        Ok(matrix)
    }

    fn matrix(
        &self,
        name: &str,
        role: WeightRole,
        rows: usize,
        columns: usize,
        layer: Option<usize>,
    ) -> Result<B::Matrix> {
        let tensor = self.tensors.of_text(name, role, &[rows, columns])?;
        self.upload(&WeightTensor { layer, ..tensor })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.tensors.of_text(name, WeightRole::Vector, &[len])?.to_f32())
    }

    fn norm(&self, name: &str) -> Result<LayerNorm<B>> {
        let [weight, bias] = ["weight", "bias"].map(|part| self.vector(&format!("{name}.{part}"), self.config.hidden));
        LayerNorm::new(self.backend, weight?, bias?, self.config.norm_eps)
    }

    fn layer(&self, layer: usize, names: &Names) -> Result<Layer<B>> {
        let EncoderConfig { hidden, heads, head_dim, intermediate, attention_bias, mlp_bias, .. } = *self.config;
        let width = heads * head_dim;
        let named = |name: &str| format!("{}.{layer}.{name}", names.layers);
        let linear = |name: &str, role: WeightRole, outputs: usize, inputs: usize, biased: bool| {
            let name = named(name);
            let weight = self.matrix(&format!("{name}.weight"), role, outputs, inputs, Some(layer))?;
            let bias = biased.then(|| self.vector(&format!("{name}.bias"), outputs)).transpose()?;
            Ok::<_, Error>(Linear { weight, bias: bias.map(|bias| self.backend.vector(&bias)).transpose()? })
        };
        const ROLES: [WeightRole; 3] = [WeightRole::Query, WeightRole::Key, WeightRole::Value];
        let [query, key, value] = match names.qkv {
            Projections::Apart(parts) => {
                let [query, key, value] =
                    [0, 1, 2].map(|part| linear(parts[part], ROLES[part], width, hidden, attention_bias));
                [query?, key?, value?]
            }
            Projections::Fused(name) => {
                let name = named(name);
                let whole = self.tensors.of_text(&format!("{name}.weight"), ROLES[0], &[3 * width, hidden])?;
                let biases = attention_bias.then(|| self.vector(&format!("{name}.bias"), 3 * width)).transpose()?;
                let part = |part: usize| {
                    let rows = part * width..(part + 1) * width;
                    let bias = biases.as_ref().and_then(|biases| biases.get(rows.clone()));
                    let cut = whole.cut(rows).unwrap_or(WeightTensor { bytes: &[], ..whole });
                    let weight = self.upload(&WeightTensor { role: ROLES[part], layer: Some(layer), ..cut })?;
                    Ok::<_, Error>(Linear { weight, bias: bias.map(|bias| self.backend.vector(bias)).transpose()? })
                };
                [part(0)?, part(1)?, part(2)?]
            }
        };
        let feed_forward = match names.feed_forward {
            Blocks::Plain([up, down]) => FeedForward::Plain([
                linear(up, WeightRole::Up, intermediate, hidden, mlp_bias[0])?,
                linear(down, WeightRole::Down, hidden, intermediate, mlp_bias[1])?,
            ]),
            Blocks::Gated([gate, up, down]) => FeedForward::Gated(MlpWeights {
                activation: Activation::Silu,
                gate: linear(gate, WeightRole::Gate, intermediate, hidden, mlp_bias[0])?,
                up: linear(up, WeightRole::Up, intermediate, hidden, mlp_bias[0])?,
                down: linear(down, WeightRole::Down, hidden, intermediate, mlp_bias[1])?,
            }),
        };
        let output = linear(names.attention_output, WeightRole::AttentionOutput, hidden, width, attention_bias)?;
        let norm_eps = self.config.norm_eps;
        Ok(Layer {
            attention: AttentionWeights { query, key, value, query_norm: None, key_norm: None, output, norm_eps },
            attention_norm: self.norm(&named(names.attention_norm))?,
            feed_forward,
            feed_forward_norm: self.norm(&named(names.feed_forward_norm))?,
        })
    }
}
