//! A model's tensors, found, checked and named by what they do.
//!
//! [`Weights::open`] walks everything that the forward pass will touch, so a checkpoint that is incomplete or of the
//! wrong shape fails at once and by name. Values are not looked at: a NaN in a weight comes out in the logits.

use super::config::{Experts, LayerKind, Norms, QkNorm};
use super::settings::bad_model;
use super::tensors::{SINGLE, Tensors};
use super::{Config, ModelSource, Rope, WeightType};
use crate::{Dtype, Fingerprint, Result};

/// What a tensor is for. Together with its layer, and with its expert if it is one's, it names a tensor within a model,
/// whatever its file calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightRole {
    /// From tokens to hidden states, `[vocabulary][hidden]`.
    Embedding,
    /// From hidden states to logits, `[vocabulary][hidden]`.
    LmHead,
    /// Both of these in one matrix.
    TiedEmbedding,
    /// A projection of attention: queries.
    Query,
    /// A projection of attention: keys.
    Key,
    /// A projection of attention: values.
    Value,
    /// A projection of attention: back to hidden states.
    AttentionOutput,
    /// From hidden states to the scores of experts, `[experts][hidden]`.
    Router,
    /// The feed-forward block's gate.
    Gate,
    /// What the gate is multiplied with.
    Up,
    /// The feed-forward block's way back to hidden states.
    Down,
    /// The weights of a norm, or a bias: a vector.
    Vector,
}

/// A matrix as it lies in its file, `[rows][columns]`; a vector has one row. Its bytes may be unaligned.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct WeightTensor<'a> {
    /// What it is for.
    pub role: WeightRole,
    /// The layer that it belongs to, if it belongs to one.
    pub layer: Option<usize>,
    /// The expert that it belongs to, if it belongs to one.
    pub expert: Option<usize>,
    /// How its numbers are written, little-endian.
    pub dtype: WeightType,
    /// Outputs of a projection, tokens of an embedding, 1 for a vector.
    pub rows: usize,
    /// Inputs of a projection, numbers of a vector.
    pub columns: usize,
    /// `rows * columns` numbers, row after row: [`WeightType::matrix_bytes`].
    pub bytes: &'a [u8],
}

impl<'a> WeightTensor<'a> {
    /// A tensor outside of any layer.
    pub fn new(role: WeightRole, dtype: impl Into<WeightType>, rows: usize, columns: usize, bytes: &'a [u8]) -> Self {
        Self { role, layer: None, expert: None, dtype: dtype.into(), rows, columns, bytes }
    }

    /// Whether it has as many bytes as its shape needs, and not none.
    pub fn is_complete(&self) -> bool {
        !self.bytes.is_empty() && self.dtype.matrix_bytes(self.rows, self.columns) == Some(self.bytes.len())
    }

    /// Some of its rows.
    pub(super) fn cut(self, rows: std::ops::Range<usize>) -> Option<Self> {
        let row = self.dtype.matrix_bytes(1, self.columns)?;
        let bytes = self.bytes.get(rows.start.checked_mul(row)?..rows.end.checked_mul(row)?)?;
        Some(Self { rows: rows.len(), bytes, ..self })
    }

    /// Its bytes with the rows in another order: of each run of `order`'s length, first the one that `order` begins with.
    pub(super) fn in_order(&self, order: &[usize]) -> Vec<u8> {
        let row = self.bytes.len() / self.rows.max(1);
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for run in self.bytes.chunks_exact((row * order.len()).max(1)) {
            order.iter().for_each(|&index| bytes.extend_from_slice(&run[index * row..(index + 1) * row]));
        }
        bytes
    }

    /// Its numbers, widened without loss: `[rows][columns]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.bytes.len() / self.dtype.block_bytes() * self.dtype.block()];
        self.dtype.decode(self.bytes, &mut numbers);
        numbers
    }
}

/// The tensors of a feed-forward block.
#[derive(Clone, Copy, Debug)]
pub struct WeightMlp<'a> {
    /// The gate, `[intermediate][hidden]`.
    pub gate: WeightTensor<'a>,
    /// What is gated, `[intermediate][hidden]`.
    pub up: WeightTensor<'a>,
    /// Back to the hidden state, `[hidden][intermediate]`.
    pub down: WeightTensor<'a>,
    /// Added to the gate, `[intermediate]`.
    pub gate_bias: Option<WeightTensor<'a>>,
    /// Added to what is gated, `[intermediate]`.
    pub up_bias: Option<WeightTensor<'a>>,
    /// Added to what comes out, `[hidden]`.
    pub down_bias: Option<WeightTensor<'a>>,
}

/// What stands behind attention in a layer.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each layer")]
pub enum WeightFeedForward<'a> {
    /// One block for all rows.
    Mlp(WeightMlp<'a>),
    /// Blocks of which each row goes through some.
    Experts {
        /// What chooses, `[experts][hidden]`.
        router: WeightTensor<'a>,
        /// The blocks.
        experts: Vec<WeightMlp<'a>>,
    },
}

/// The tensors of one layer. In their shapes, `q` is `heads * head_dim` and `kv` is `kv_heads * head_dim`.
#[derive(Clone, Debug)]
pub struct WeightLayer<'a> {
    /// Norm of what attention takes, `[hidden]`.
    pub attention_norm: Option<WeightTensor<'a>>,
    /// Queries, `[q][hidden]`.
    pub q: WeightTensor<'a>,
    /// Keys, `[kv][hidden]`.
    pub k: WeightTensor<'a>,
    /// Values, `[kv][hidden]`.
    pub v: WeightTensor<'a>,
    /// Output of attention, `[hidden][q]`.
    pub o: WeightTensor<'a>,
    /// Added to queries, `[q]`.
    pub q_bias: Option<WeightTensor<'a>>,
    /// Added to keys, `[kv]`.
    pub k_bias: Option<WeightTensor<'a>>,
    /// Added to values, `[kv]`.
    pub v_bias: Option<WeightTensor<'a>>,
    /// Added to the output of attention, `[hidden]`.
    pub o_bias: Option<WeightTensor<'a>>,
    /// Norm of each head of the queries, `[head_dim]`, or of all of them together, `[q]`.
    pub q_norm: Option<WeightTensor<'a>>,
    /// Norm of each head of the keys, `[head_dim]`, or of all of them together, `[kv]`.
    pub k_norm: Option<WeightTensor<'a>>,
    /// Norm of what attention gives, `[hidden]`.
    pub attention_output_norm: Option<WeightTensor<'a>>,
    /// Norm of what the feed-forward part takes, `[hidden]`.
    pub mlp_norm: Option<WeightTensor<'a>>,
    /// The feed-forward part.
    pub feed_forward: WeightFeedForward<'a>,
    /// Norm of what the feed-forward part gives, `[hidden]`.
    pub mlp_output_norm: Option<WeightTensor<'a>>,
}

/// All tensors of a model, borrowed from its files.
pub struct Weights<'a> {
    /// The embedding, `[vocabulary][hidden]`.
    pub embedding: WeightTensor<'a>,
    /// The layers, first to last.
    pub layers: Vec<WeightLayer<'a>>,
    /// Norm after the last layer, `[hidden]`.
    pub norm: WeightTensor<'a>,
    /// From the hidden state to logits, `[vocabulary][hidden]`. `None`: the embedding does this too.
    pub lm_head: Option<WeightTensor<'a>>,
    tensors: Tensors<'a>,
}

impl<'a> Weights<'a> {
    /// Finds the tensors of the model that `config` describes, in `model.safetensors` or in the shards that
    /// `model.safetensors.index.json` lists, or in a GGUF file.
    ///
    /// # Errors
    /// [`Error::BadModel`](crate::Error::BadModel) when a file or tensor is missing, damaged or of another shape than
    /// the configuration says; [`Error::UnsupportedModel`](crate::Error::UnsupportedModel) for numbers that are no
    /// F32, F16 or BF16, or in a GGUF file of no [`WeightType`], and for tensors of a GGUF file that nothing computes with.
    pub fn open(source: &'a dyn ModelSource, config: &Config) -> Result<Self> {
        let mut tensors = Tensors::open(source)?;
        tensors.take_prefix(&PREFIXES, EMBEDDING);
        let (vocabulary, hidden) = (config.vocabulary, config.hidden);
        let embedding = if config.tied { WeightRole::TiedEmbedding } else { WeightRole::Embedding };
        let weights = Self {
            embedding: tensors.of_text(EMBEDDING, embedding, &[vocabulary, hidden])?,
            layers: (0..config.layers)
                .map(|layer| OfLayer { tensors: &tensors, layer }.weights(config))
                .collect::<Result<_>>()?,
            norm: tensors.of_text("norm.weight", WeightRole::Vector, &[hidden])?,
            lm_head: optional(!config.tied, || {
                tensors.tensor("lm_head.weight", WeightRole::LmHead, &[vocabulary, hidden])
            })?,
            tensors,
        };
        weights.tensors.refuse_unused()?;
        Ok(weights)
    }

    /// Takes note that a tensor's bytes have been taken over.
    pub(super) fn release(&self, bytes: &[u8]) {
        self.tensors.release(bytes);
    }

    /// What the model's KV depends on: what it is computed with (the [numerics](super::Numerics)' name and the KV cache's
    /// number type), the numbers of the configuration and every tensor, in the order of their names, however they are
    /// spread over files. Reads all weights once, on the threads of the rayon pool that it is called on: of a core it takes
    /// about 0.3 s per GB.
    pub fn fingerprint(&self, config: &Config, numerics: &str, dtype: Dtype) -> Fingerprint {
        let mut hash = blake3::Hasher::new_derive_key("amem 2026-11 model v2");
        hash.update(&(numerics.len() as u64).to_le_bytes());
        hash.update(numerics.as_bytes());
        hash.update(&[dtype.code()]);
        let c = config;
        let first = c.kinds.first().cloned().unwrap_or(LayerKind { rope: Rope::none(c.head_dim), window: None });
        let window = first.window.unwrap_or(0);
        for size in [c.hidden, c.layers, c.heads, c.kv_heads, c.head_dim, c.intermediate, window] {
            hash.update(&(size as u64).to_le_bytes());
        }
        hash.update(&[c.qkv_bias.into(), c.o_bias.into(), c.qk_norm as u8]);
        for number in [&[c.norm_eps, first.rope.attention_factor], first.rope.inverse_frequencies.as_slice()].concat() {
            hash.update(&number.to_le_bytes());
        }
        let further = c.further_settings();
        if !further.is_empty() {
            // No tensor's name is as long as this says.
            hash.update(&u64::MAX.to_le_bytes());
            hash.update(&(further.len() as u64).to_le_bytes());
            hash.update(&further);
        }
        self.tensors.hash(&mut hash);
        Fingerprint(*hash.finalize().as_bytes())
    }
}

/// What stands before the names of a text model's tensors: it may be a part of a model that knows images too.
const PREFIXES: [&str; 3] = ["model.", "language_model.model.", "model.language_model."];
const EMBEDDING: &str = "embed_tokens.weight";

/// The tensors of one layer.
struct OfLayer<'t, 'a> {
    tensors: &'t Tensors<'a>,
    layer: usize,
}

impl<'a> OfLayer<'_, 'a> {
    fn weights(&self, config: &Config) -> Result<WeightLayer<'a>> {
        let hidden = config.hidden;
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (before, after) = (config.norms != Norms::After, config.norms != Norms::Before);
        let attention_norm = optional(before, || self.norm("input_layernorm", hidden))?;
        let [q_proj, k_proj, v_proj] = match config.fused {
            true => self.fused(
                "self_attn.qkv_proj",
                [(WeightRole::Query, q), (WeightRole::Key, kv), (WeightRole::Value, kv)],
                hidden,
            )?,
            false => [
                self.matrix("self_attn.q_proj", WeightRole::Query, q, hidden)?,
                self.matrix("self_attn.k_proj", WeightRole::Key, kv, hidden)?,
                self.matrix("self_attn.v_proj", WeightRole::Value, kv, hidden)?,
            ],
        };
        let normed = match config.qk_norm {
            QkNorm::None => None,
            QkNorm::Heads => Some((config.head_dim, config.head_dim)),
            QkNorm::Rows => Some((q, kv)),
        };
        // What Llama calls the norm behind attention is the one before the feed-forward part.
        let mlp_norm = if after { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        Ok(WeightLayer {
            attention_norm,
            q: q_proj,
            k: k_proj,
            v: v_proj,
            o: self.matrix("self_attn.o_proj", WeightRole::AttentionOutput, hidden, q)?,
            q_bias: optional(config.qkv_bias, || self.bias("self_attn.q_proj", q))?,
            k_bias: optional(config.qkv_bias, || self.bias("self_attn.k_proj", kv))?,
            v_bias: optional(config.qkv_bias, || self.bias("self_attn.v_proj", kv))?,
            o_bias: optional(config.o_bias, || self.bias("self_attn.o_proj", hidden))?,
            q_norm: normed.map(|(q, _)| self.norm("self_attn.q_norm", q)).transpose()?,
            k_norm: normed.map(|(_, kv)| self.norm("self_attn.k_norm", kv)).transpose()?,
            attention_output_norm: optional(after, || self.norm("post_attention_layernorm", hidden))?,
            mlp_norm: optional(before, || self.norm(mlp_norm, hidden))?,
            feed_forward: match config.experts_of(self.layer) {
                Some(experts) => self.experts(config, experts)?,
                None => WeightFeedForward::Mlp(self.mlp(config)?),
            },
            mlp_output_norm: optional(after, || self.norm("post_feedforward_layernorm", hidden))?,
        })
    }

    fn tensor(&self, name: &str, role: WeightRole, shape: &[usize]) -> Result<WeightTensor<'a>> {
        let tensor = self.tensors.of_text(&format!("layers.{}.{name}", self.layer), role, shape)?;
        Ok(WeightTensor { layer: Some(self.layer), ..tensor })
    }

    fn matrix(&self, name: &str, role: WeightRole, rows: usize, columns: usize) -> Result<WeightTensor<'a>> {
        self.tensor(&format!("{name}.weight"), role, &[rows, columns])
    }

    fn norm(&self, name: &str, len: usize) -> Result<WeightTensor<'a>> {
        self.tensor(&format!("{name}.weight"), WeightRole::Vector, &[len])
    }

    fn bias(&self, name: &str, len: usize) -> Result<WeightTensor<'a>> {
        self.tensor(&format!("{name}.bias"), WeightRole::Vector, &[len])
    }

    /// Several matrices that stand in one tensor, row after row.
    fn fused<const N: usize>(
        &self,
        name: &str,
        parts: [(WeightRole, usize); N],
        columns: usize,
    ) -> Result<[WeightTensor<'a>; N]> {
        let whole = self.matrix(name, WeightRole::Vector, parts.iter().map(|(_, rows)| rows).sum(), columns)?;
        let mut first = 0;
        let cut = parts.map(|(role, rows)| {
            let part = whole.cut(first..first + rows).map(|part| WeightTensor { role, ..part });
            first += rows;
            part.unwrap_or(WeightTensor { role, rows: 0, bytes: &[], ..whole })
        });
        match cut.iter().all(WeightTensor::is_complete) {
            true => Ok(cut),
            false => Err(bad_model(SINGLE, format!("tensor {name} of layer {} cannot be cut", self.layer))),
        }
    }

    fn mlp(&self, config: &Config) -> Result<WeightMlp<'a>> {
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        if config.fused {
            let parts = [(WeightRole::Gate, intermediate), (WeightRole::Up, intermediate)];
            let [gate, up] = self.fused("mlp.gate_up_proj", parts, hidden)?;
            let down = self.matrix("mlp.down_proj", WeightRole::Down, hidden, intermediate)?;
            return Ok(WeightMlp { gate, up, down, gate_bias: None, up_bias: None, down_bias: None });
        }
        let names = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
        let bias = |name, len| optional(config.mlp_bias, || self.bias(name, len));
        Ok(WeightMlp {
            gate_bias: bias(names[0], intermediate)?,
            up_bias: bias(names[1], intermediate)?,
            down_bias: bias(names[2], hidden)?,
            ..self.gated(names, hidden, intermediate)?
        })
    }

    /// A feed-forward block without biases, by the names of its gate, of what is gated, and of the way back.
    fn gated(&self, names: [&str; 3], hidden: usize, intermediate: usize) -> Result<WeightMlp<'a>> {
        let [gate, up, down] = names;
        Ok(WeightMlp {
            gate: self.matrix(gate, WeightRole::Gate, intermediate, hidden)?,
            up: self.matrix(up, WeightRole::Up, intermediate, hidden)?,
            down: self.matrix(down, WeightRole::Down, hidden, intermediate)?,
            gate_bias: None,
            up_bias: None,
            down_bias: None,
        })
    }

    fn experts(&self, config: &Config, experts: &Experts) -> Result<WeightFeedForward<'a>> {
        let block = experts.block;
        let expert = |index: usize| {
            let names = experts.matrices.map(|name| format!("{block}.experts.{index}.{name}"));
            let mlp = self.gated(names.each_ref().map(String::as_str), config.hidden, experts.intermediate)?;
            let of_expert = |tensor| WeightTensor { expert: Some(index), ..tensor };
            Ok(WeightMlp { gate: of_expert(mlp.gate), up: of_expert(mlp.up), down: of_expert(mlp.down), ..mlp })
        };
        Ok(WeightFeedForward::Experts {
            router: self.matrix(&format!("{block}.gate"), WeightRole::Router, experts.count, config.hidden)?,
            experts: (0..experts.count).map(expert).collect::<Result<_>>()?,
        })
    }
}

fn optional<T>(wanted: bool, read: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    wanted.then(read).transpose()
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;
    use safetensors::tensor::{TensorView, serialize};
    use serde_json::json;

    use super::*;
    use crate::Error;
    use crate::transformer::fixtures::{Files, demo, demo_with};
    use crate::transformer::tensors::INDEX;

    fn open(files: &Files) -> Result<Weights<'_>> {
        Weights::open(files, &Config::parse(files).unwrap())
    }

    fn error(files: &Files) -> String {
        open(files).err().unwrap().to_string()
    }

    /// The demo model in two shards.
    fn sharded() -> Files {
        let mut files = demo();
        let whole = files.remove(SINGLE).unwrap();
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        let mut names = tensors.names();
        names.sort_unstable();
        let mut map = serde_json::Map::new();
        for (shard, names) in ["one.safetensors", "two.safetensors"].into_iter().zip(names.chunks(25)) {
            let part: Vec<(&str, TensorView<'_>)> =
                names.iter().map(|name| (*name, tensors.tensor(name).unwrap())).collect();
            files.insert(shard.into(), serialize(part, None).unwrap());
            map.extend(names.iter().map(|name| ((*name).to_owned(), json!(shard))));
        }
        files.insert(INDEX.into(), json!({ "weight_map": map }).to_string().into_bytes());
        files
    }

    #[test]
    fn the_demo_model_is_complete() {
        let files = demo();
        let weights = open(&files).unwrap();
        assert_eq!(weights.layers.len(), 5);
        assert!(weights.lm_head.is_none());
        let q = weights.layers[4].q;
        assert_eq!((q.dtype, q.rows, q.columns, q.bytes.len()), (WeightType::F16, 256, 128, 256 * 128 * 2));
        assert!(weights.norm.to_f32().iter().all(|number| number.is_finite()));
        assert_eq!((weights.norm.rows, weights.norm.columns), (1, 128));
    }

    #[test]
    fn numbers_of_every_type_widen_without_loss() {
        let tensor = |dtype, bytes| WeightTensor::new(WeightRole::Vector, dtype, 1, 2, bytes);
        assert_eq!(tensor(Dtype::F32, &[0, 0, 192, 63, 0, 0, 0, 192]).to_f32(), [1.5, -2.0]);
        assert_eq!(tensor(Dtype::F16, &[0, 62, 0, 192]).to_f32(), [1.5, -2.0]);
        assert_eq!(tensor(Dtype::Bf16, &[192, 63, 0, 192]).to_f32(), [1.5, -2.0]);
    }

    #[test]
    fn rows_of_a_tensor_are_cut_and_put_in_another_order() {
        let bytes: Vec<u8> = (0u8..24).collect();
        let tensor = WeightTensor::new(WeightRole::Query, Dtype::F16, 4, 3, &bytes);
        let part = tensor.cut(1..3).unwrap();
        assert_eq!((part.rows, part.columns, part.bytes), (2, 3, &bytes[6..18]));
        assert!(tensor.cut(3..5).is_none());
        let swapped = [&bytes[6..12], &bytes[..6], &bytes[18..], &bytes[12..18]].concat();
        assert_eq!(tensor.in_order(&[1, 0]), swapped);
    }

    #[test]
    fn shards_hold_the_same_model() {
        let (whole, parts) = (demo(), sharded());
        let config = Config::parse(&whole).unwrap();
        assert_eq!(
            open(&whole).unwrap().fingerprint(&config, "f32", Dtype::F16),
            open(&parts).unwrap().fingerprint(&config, "f32", Dtype::F16)
        );
    }

    /// Computed apart from this code, from what a fingerprint is made of. Where it changes, no stored chunk is found again.
    #[test]
    fn the_fingerprint_of_a_model_stays_what_it_was() {
        let files = demo();
        let config = Config::parse(&files).unwrap();
        let fingerprint = open(&files).unwrap().fingerprint(&config, "f32", Dtype::F16);
        let hex: String = fingerprint.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "935881ff0addf4a837d4d54eec250db376ea933e528898f1f1f7d60543e217b3");
    }

    #[test]
    fn every_setting_of_a_family_is_part_of_the_fingerprint() {
        let files = demo();
        let config = Config::parse(&files).unwrap();
        let weights = open(&files).unwrap();
        let experts = Experts {
            count: 4,
            top_k: 2,
            norm_top_k: true,
            intermediate: 8,
            layers: vec![true; 5],
            block: "mlp",
            matrices: ["gate_proj", "up_proj", "down_proj"],
        };
        let other = LayerKind { rope: Rope::plain(9.0, 64), window: Some(3) };
        let with = |change: &dyn Fn(&mut Config)| {
            let mut changed = config.clone();
            change(&mut changed);
            weights.fingerprint(&changed, "f32", Dtype::F16)
        };
        let all = [
            with(&|_| {}),
            with(&|c| c.kinds.push(other.clone())),
            with(&|c| (c.kinds, c.kind_of) = (vec![c.kinds[0].clone(), other.clone()], vec![0, 1, 0, 0, 0])),
            with(&|c| (c.kinds, c.kind_of) = (vec![c.kinds[0].clone(), other.clone()], vec![0, 0, 1, 0, 0])),
            with(&|c| c.kinds[0].window = Some(3)),
            with(&|c| c.rotated = 32),
            with(&|c| c.attention_scale = 0.5),
            with(&|c| c.attention_soft_cap = Some(0.5)),
            with(&|c| c.embedding_scale = 0.5),
            with(&|c| c.residual_scale = 0.5),
            with(&|c| c.activation = crate::transformer::Activation::GeluTanh),
            with(&|c| c.norms = Norms::After),
            with(&|c| c.norms = Norms::Around),
            with(&|c| c.norm_offset = 0.5),
            with(&|c| c.mlp_bias = true),
            with(&|c| c.qk_norm = QkNorm::Heads),
            with(&|c| c.qk_norm = QkNorm::Rows),
            with(&|c| c.experts = Some(experts.clone())),
            with(&|c| c.experts = Some(Experts { count: 5, ..experts.clone() })),
            with(&|c| c.experts = Some(Experts { top_k: 1, ..experts.clone() })),
            with(&|c| c.experts = Some(Experts { norm_top_k: false, ..experts.clone() })),
            with(&|c| c.experts = Some(Experts { intermediate: 9, ..experts.clone() })),
            with(&|c| c.experts = Some(Experts { layers: vec![false; 5], ..experts.clone() })),
        ];
        let distinct: std::collections::HashSet<[u8; 32]> = all.iter().map(|fingerprint| fingerprint.0).collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn a_changed_weight_setting_or_arithmetic_is_another_model() {
        let files = demo();
        let config = Config::parse(&files).unwrap();
        let fingerprint = open(&files).unwrap().fingerprint(&config, "f32", Dtype::F16);

        let mut changed = files.clone();
        *changed.get_mut(SINGLE).unwrap().last_mut().unwrap() ^= 1;
        assert_ne!(open(&changed).unwrap().fingerprint(&config, "f32", Dtype::F16), fingerprint);

        let other = Config::parse(&demo_with(json!({ "rope_theta": 20_000 }))).unwrap();
        assert_ne!(open(&files).unwrap().fingerprint(&other, "f32", Dtype::F16), fingerprint);
        assert_ne!(open(&files).unwrap().fingerprint(&config, "int8 weights", Dtype::F16), fingerprint);
        assert_ne!(open(&files).unwrap().fingerprint(&config, "f32", Dtype::F32), fingerprint);
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_was_expected() {
        let cases = [
            (json!({ "num_hidden_layers": 6 }), "tensor model.layers.5.input_layernorm.weight is missing"),
            (json!({ "tie_word_embeddings": false }), "tensor lm_head.weight is missing"),
            (
                json!({ "intermediate_size": 190 }),
                "mlp.gate_proj.weight has shape [192, 128] and the configuration asks for [190, 128]",
            ),
            (json!({ "model_type": "qwen2" }), "tensor model.layers.0.self_attn.q_proj.bias is missing"),
            (json!({ "model_type": "phi3" }), "tensor model.layers.0.self_attn.qkv_proj.weight is missing"),
            (json!({ "model_type": "gemma2" }), "tensor model.layers.0.pre_feedforward_layernorm.weight is missing"),
            (json!({ "model_type": "mixtral" }), "tensor model.layers.0.block_sparse_moe.gate.weight is missing"),
            (json!({ "model_type": "qwen3_moe" }), "tensor model.layers.0.self_attn.q_norm.weight is missing"),
            (json!({ "mlp_bias": true }), "tensor model.layers.0.mlp.gate_proj.bias is missing"),
        ];
        for (settings, expected) in cases {
            let found = error(&demo_with(settings));
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn other_types_are_refused_by_name() {
        let mut files = demo();
        let bytes = [0; 1536 * 128];
        let view = TensorView::new(safetensors::Dtype::F8_E4M3, vec![1536, 128], &bytes).unwrap();
        files.insert(SINGLE.into(), serialize([("model.embed_tokens.weight", view)], None).unwrap());
        let found = open(&files).err().unwrap();
        assert!(matches!(found, Error::UnsupportedModel { .. }));
        assert!(found.to_string().contains("F8_E4M3"), "{found}");
    }

    #[test]
    fn an_index_reaches_only_plain_files_that_hold_what_it_says() {
        for name in ["../one.safetensors", "/one.safetensors", "a\\one.safetensors", "one.bin", ""] {
            let mut files = sharded();
            files.insert(INDEX.into(), json!({ "weight_map": { "a": name } }).to_string().into_bytes());
            assert!(error(&files).contains("plain name"), "{name}");
        }
        let mut files = sharded();
        files.insert(INDEX.into(), json!({ "weight_map": { "a": "one.safetensors" } }).to_string().into_bytes());
        assert!(error(&files).contains("tensor a is missing"));
        let mut files = sharded();
        files.remove("two.safetensors");
        assert!(error(&files).contains("two.safetensors"));
        let mut files = sharded();
        files.insert("two.safetensors".into(), files["one.safetensors"].clone());
        assert!(error(&files).contains("is in one.safetensors too"));
    }

    #[test]
    fn damaged_headers_are_errors() {
        let whole = demo().remove(SINGLE).unwrap();
        let header = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let cases = [
            Vec::new(),
            vec![255; 8],
            whole[..100].to_vec(),
            whole[..whole.len() - 1].to_vec(),
            header("{}"),
            header("[1]"),
            header(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,0]}}"#),
            header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#),
            header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#),
        ];
        for bytes in cases {
            let mut files = demo();
            files.insert(SINGLE.into(), bytes);
            assert!(matches!(open(&files), Err(Error::BadModel { .. })));
        }
    }
}
