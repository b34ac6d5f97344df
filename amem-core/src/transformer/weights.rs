//! A model's tensors, found, checked and named by what they do.
//!
//! [`Weights::open`] walks everything that the forward pass will touch, so a checkpoint that is incomplete or of the
//! wrong shape fails at once and by name. Values are not looked at: a NaN in a weight comes out in the logits.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};

use super::config::unsupported;
use super::settings::{Settings, bad_model};
use super::{Config, ModelSource};
use crate::{Fingerprint, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// How one number of a tensor is written, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// A matrix as it lies in its file, `[rows][columns]`; a vector has one row. Its bytes may be unaligned.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// How its numbers are written.
    pub kind: WeightType,
    /// Outputs of a projection, tokens of an embedding, 1 for a vector.
    pub rows: usize,
    /// Inputs of a projection, numbers of a vector.
    pub columns: usize,
    /// `rows * columns` numbers.
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// Its numbers, widened without loss: `[rows][columns]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let halves = || self.bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self.kind {
            WeightType::F32 => {
                self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            WeightType::F16 => halves().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            WeightType::Bf16 => halves().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        }
    }
}

/// The tensors of one layer. With `q = heads * head_dim` and `kv = kv_heads * head_dim`:
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Norm before attention, `[hidden]`.
    pub input_norm: Tensor<'a>,
    /// Queries, `[q][hidden]`.
    pub q: Tensor<'a>,
    /// Keys, `[kv][hidden]`.
    pub k: Tensor<'a>,
    /// Values, `[kv][hidden]`.
    pub v: Tensor<'a>,
    /// Output of attention, `[hidden][q]`.
    pub o: Tensor<'a>,
    /// Added to queries, `[q]`.
    pub q_bias: Option<Tensor<'a>>,
    /// Added to keys, `[kv]`.
    pub k_bias: Option<Tensor<'a>>,
    /// Added to values, `[kv]`.
    pub v_bias: Option<Tensor<'a>>,
    /// Added to the output of attention, `[hidden]`.
    pub o_bias: Option<Tensor<'a>>,
    /// Norm of each head of the queries, `[head_dim]`.
    pub q_norm: Option<Tensor<'a>>,
    /// Norm of each head of the keys, `[head_dim]`.
    pub k_norm: Option<Tensor<'a>>,
    /// Norm before the feed-forward part, `[hidden]`.
    pub post_norm: Tensor<'a>,
    /// The gate, `[ffn][hidden]`.
    pub gate: Tensor<'a>,
    /// What is gated, `[ffn][hidden]`.
    pub up: Tensor<'a>,
    /// Back to the hidden state, `[hidden][ffn]`.
    pub down: Tensor<'a>,
}

/// All tensors of a model, borrowed from its files.
pub struct Weights<'a> {
    /// The embedding, `[vocabulary][hidden]`.
    pub embedding: Tensor<'a>,
    /// The layers, first to last.
    pub layers: Vec<Layer<'a>>,
    /// Norm after the last layer, `[hidden]`.
    pub norm: Tensor<'a>,
    /// From the hidden state to logits, `[vocabulary][hidden]`. `None`: the embedding does this too.
    pub head: Option<Tensor<'a>>,
    tensors: Tensors<'a>,
}

impl<'a> Weights<'a> {
    /// Finds the tensors of the model that `config` describes, in `model.safetensors` or in the shards that
    /// `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`Error::BadModel`](crate::Error::BadModel) when a file or tensor is missing, damaged or of another shape than
    /// the configuration says; [`Error::UnsupportedModel`](crate::Error::UnsupportedModel) for numbers that are no
    /// F32, F16 or BF16.
    pub fn open(source: &'a dyn ModelSource, config: &Config) -> Result<Self> {
        let tensors = Tensors::open(source)?;
        let (vocabulary, hidden) = (config.vocabulary, config.hidden);
        Ok(Self {
            embedding: tensors.matrix("model.embed_tokens.weight", vocabulary, hidden)?,
            layers: (0..config.layers).map(|layer| tensors.layer(layer, config)).collect::<Result<_>>()?,
            norm: tensors.vector("model.norm.weight", hidden)?,
            head: optional(!config.tied, || tensors.matrix("lm_head.weight", vocabulary, hidden))?,
            tensors,
        })
    }

    /// What the model's KV depends on: the numbers of the configuration and every tensor, in the order of their names,
    /// however they are spread over files. Reads all weights once: about 0.3 s per GB.
    pub fn fingerprint(&self, config: &Config) -> Fingerprint {
        let mut hash = blake3::Hasher::new_derive_key("amem 2026-11 model");
        let c = config;
        for size in [c.hidden, c.layers, c.heads, c.kv_heads, c.head_dim, c.ffn, c.window.unwrap_or(0)] {
            hash.update(&(size as u64).to_le_bytes());
        }
        hash.update(&[c.qkv_bias, c.o_bias, c.qk_norm].map(u8::from));
        for number in [&[c.norm_eps, c.rope.attention_factor], c.rope.inverse_frequencies.as_slice()].concat() {
            hash.update(&number.to_le_bytes());
        }
        for (name, tensor) in &self.tensors.0 {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(format!("{name}{:?}{:?}", tensor.kind, tensor.shape).as_bytes());
            hash.update(tensor.bytes);
        }
        Fingerprint(*hash.finalize().as_bytes())
    }
}

/// A tensor as a file declares it.
struct Raw<'a> {
    file: String,
    kind: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

/// Every tensor by name.
struct Tensors<'a>(BTreeMap<String, Raw<'a>>);

impl<'a> Tensors<'a> {
    fn open(source: &'a dyn ModelSource) -> Result<Self> {
        let mut tensors = Self(BTreeMap::new());
        if source.file(SINGLE).is_some() {
            tensors.add(source, SINGLE)?;
            return Ok(tensors);
        }
        let missing = || bad_model(SINGLE, format!("it is missing, and so is {INDEX}"));
        let index = Settings::read(source, INDEX)?.ok_or_else(missing)?;
        let places = shards(&index)?;
        let files: std::collections::BTreeSet<&str> = places.values().map(String::as_str).collect();
        for file in files {
            tensors.add(source, file)?;
        }
        for (name, file) in &places {
            if tensors.0.get(name).is_none_or(|tensor| tensor.file != *file) {
                return Err(bad_model(file, format!("tensor {name} is missing, which {INDEX} says is here")));
            }
        }
        Ok(tensors)
    }

    fn add(&mut self, source: &'a dyn ModelSource, file: &str) -> Result<()> {
        let bytes = source.file(file).ok_or_else(|| bad_model(file, format!("it is missing, and {INDEX} names it")))?;
        // The crate checks that every tensor's bytes lie in the file, do not overlap, and fit its shape and type.
        let parsed = SafeTensors::deserialize(bytes).map_err(|error| bad_model(file, error.to_string()))?;
        for (name, view) in parsed.iter() {
            let shape = view.shape().to_vec();
            let raw = Raw { file: file.to_owned(), kind: view.dtype(), shape, bytes: view.data() };
            if let Some(other) = self.0.insert(name.to_owned(), raw) {
                return Err(bad_model(file, format!("tensor {name} is in {} too", other.file)));
            }
        }
        Ok(())
    }

    fn layer(&self, layer: usize, config: &Config) -> Result<Layer<'a>> {
        let (hidden, ffn) = (config.hidden, config.ffn);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let matrix =
            |name: &str, rows, columns| self.matrix(&format!("model.layers.{layer}.{name}.weight"), rows, columns);
        let norm = |name: &str, len| self.vector(&format!("model.layers.{layer}.{name}.weight"), len);
        let bias = |name: &str, len| self.vector(&format!("model.layers.{layer}.{name}.bias"), len);
        Ok(Layer {
            input_norm: norm("input_layernorm", hidden)?,
            q: matrix("self_attn.q_proj", q, hidden)?,
            k: matrix("self_attn.k_proj", kv, hidden)?,
            v: matrix("self_attn.v_proj", kv, hidden)?,
            o: matrix("self_attn.o_proj", hidden, q)?,
            q_bias: optional(config.qkv_bias, || bias("self_attn.q_proj", q))?,
            k_bias: optional(config.qkv_bias, || bias("self_attn.k_proj", kv))?,
            v_bias: optional(config.qkv_bias, || bias("self_attn.v_proj", kv))?,
            o_bias: optional(config.o_bias, || bias("self_attn.o_proj", hidden))?,
            q_norm: optional(config.qk_norm, || norm("self_attn.q_norm", config.head_dim))?,
            k_norm: optional(config.qk_norm, || norm("self_attn.k_norm", config.head_dim))?,
            post_norm: norm("post_attention_layernorm", hidden)?,
            gate: matrix("mlp.gate_proj", ffn, hidden)?,
            up: matrix("mlp.up_proj", ffn, hidden)?,
            down: matrix("mlp.down_proj", hidden, ffn)?,
        })
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Tensor<'a>> {
        self.tensor(name, &[rows, columns])
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor<'a>> {
        self.tensor(name, &[len])
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>> {
        let raw = self.0.get(name).ok_or_else(|| bad_model(SINGLE, format!("tensor {name} is missing")))?;
        if raw.shape != shape {
            let reason = format!("tensor {name} has shape {:?} and config.json asks for {shape:?}", raw.shape);
            return Err(bad_model(&raw.file, reason));
        }
        let kind = match raw.kind {
            Dtype::F32 => WeightType::F32,
            Dtype::F16 => WeightType::F16,
            Dtype::BF16 => WeightType::Bf16,
            other => return unsupported(format!("tensor {name} in {other:?}"), "F32, F16 and BF16 are"),
        };
        let (rows, columns) = match shape {
            [rows, columns] => (*rows, *columns),
            _ => (1, shape.iter().product()),
        };
        Ok(Tensor { kind, rows, columns, bytes: raw.bytes })
    }
}

/// The file of each tensor, as the index says. Its names become file names, so they are held to plain ones.
fn shards(index: &Settings<'_>) -> Result<BTreeMap<String, String>> {
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| bad_model(INDEX, "it has no weight_map"))?;
    let plain = |file: &str| {
        file.ends_with(".safetensors")
            && file.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    map.iter()
        .map(|(name, file)| match file.as_str() {
            Some(file) if plain(file) => Ok((name.clone(), file.to_owned())),
            _ => Err(index.wrong(name, file, "the plain name of a .safetensors file")),
        })
        .collect()
}

fn optional<T>(wanted: bool, read: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    wanted.then(read).transpose()
}
