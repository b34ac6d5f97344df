//! What a model is made of: the numbers of its `config.json`, checked.
//!
//! All families share one graph. What they differ in are settings that know nothing of each other: where norms stand,
//! what rotates queries and keys and how far a row sees in a layer, what is multiplied by a constant, experts. Which
//! family has which is said here; for GGUF files also in `gguf/architecture.rs`. What the graph cannot express is refused
//! with its reason, rather than computed wrongly.

use super::device_weights::Activation;
use super::rope::RopeSpec;
use super::settings::{Settings, bad_model, shown};
use super::{Attention, ModelSource, Rope};
use crate::{Error, KvShape, Result, Token};

const FILE: &str = "config.json";
/// No model comes near these. They keep every product of two sizes far below overflow.
const MAX_LAYERS: usize = 1 << 10;
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_VOCABULARY: usize = 1 << 22;
const MAX_CONTEXT: usize = 1 << 28;
const MAX_EXPERTS: usize = 1 << 12;

/// The families of models that are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2, 3 and their like.
    Llama,
    /// Mistral: Llama with a window on attention.
    Mistral,
    /// Mixtral: Mistral with experts.
    Mixtral,
    /// Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.
    Qwen2,
    /// Qwen3: Llama with norms on the heads of queries and keys.
    Qwen3,
    /// Qwen3 with experts.
    Qwen3Moe,
    /// Gemma 2: norms around both blocks, capped scores and logits, a window on every other layer.
    Gemma2,
    /// Gemma 3, text only: norms around both blocks and on heads, most layers with a window and a rotation of their own.
    Gemma3,
    /// Phi-3 and Phi-4-mini: fused tensors, longrope, part of each head rotated.
    Phi3,
    /// SmolLM3: Llama without rotation in some layers.
    SmolLm3,
    /// OLMo 2: norms behind both blocks, and on whole rows of queries and keys.
    Olmo2,
    /// Granite 3: Llama with multipliers.
    Granite,
}

/// The families by the names that `model_type` has for them. `gemma3` is Gemma 3 with a part for images, which is left
/// out.
const FAMILIES: [(&str, Family); 13] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("mixtral", Family::Mixtral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("qwen3_moe", Family::Qwen3Moe),
    ("gemma2", Family::Gemma2),
    ("gemma3_text", Family::Gemma3),
    (GEMMA3_WITH_IMAGES, Family::Gemma3),
    ("phi3", Family::Phi3),
    ("smollm3", Family::SmolLm3),
    ("olmo2", Family::Olmo2),
    ("granite", Family::Granite),
];
const GEMMA3_WITH_IMAGES: &str = "gemma3";

/// Where the norms of a layer stand. Fingerprints hold the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norms {
    /// Before attention and before the feed-forward block.
    Before = 0,
    /// On what attention and the feed-forward block give.
    After = 1,
    /// Both.
    Around = 2,
}

/// What queries and keys are normed by before they are rotated. Fingerprints hold the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorm {
    None = 0,
    /// Each head by itself.
    Heads = 1,
    /// All heads of a row together.
    Rows = 2,
}

/// What layers may differ in where their rows attend.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerKind {
    /// How queries and keys are rotated to their positions.
    pub(super) rope: Rope,
    /// How many tokens a token sees, itself included; all before it if `None`.
    pub(super) window: Option<usize>,
}

/// Feed-forward blocks of which a router chooses some for each row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Experts {
    pub(super) count: usize,
    /// How many of them each row goes through.
    pub(super) top_k: usize,
    /// Whether the weights of those that were chosen are made to sum up to 1.
    pub(super) norm_top_k: bool,
    /// Numbers between the gate and the down projection of one.
    pub(super) intermediate: usize,
    /// Which layers have them. The others have one feed-forward block.
    pub(super) layers: Vec<bool>,
    /// What a layer's part with them is called.
    pub(super) block: &'static str,
    /// What an expert's gate, its matrix up and its matrix down are called.
    pub(super) matrices: [&'static str; 3],
}

/// The shape of a model and the numbers that its forward pass needs: what `config.json` says, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The family, from `model_type`.
    pub(super) family: Family,
    /// Numbers in the hidden state of a token.
    pub(super) hidden: usize,
    /// Transformer layers.
    pub(super) layers: usize,
    /// Query heads of a layer, a multiple of `kv_heads`.
    pub(super) heads: usize,
    /// Key (and value) heads of a layer.
    pub(super) kv_heads: usize,
    /// Numbers in one head, even. `heads * head_dim` need not be `hidden`.
    pub(super) head_dim: usize,
    /// Numbers of a head that are rotated, from its beginning; even. The others stay as they are.
    pub(super) rotated: usize,
    /// Numbers between the gate and the down projection of a layer without experts.
    pub(super) intermediate: usize,
    /// Rows of the embedding.
    pub(super) vocabulary: usize,
    /// Tokens that a context may hold: `max_position_embeddings`, whatever the rope scaling.
    pub(super) context: usize,
    /// What is added to the mean square in every norm.
    pub(super) norm_eps: f32,
    /// The kinds of layers that there are.
    pub(super) kinds: Vec<LayerKind>,
    /// For each layer, its kind: an index into `kinds`.
    pub(super) kind_of: Vec<usize>,
    /// What the products of queries and keys are multiplied by.
    pub(super) attention_scale: f32,
    /// The cap of scores. See [`Attention::soft_cap`].
    pub(super) attention_soft_cap: Option<f32>,
    /// What the embedding of a token is multiplied by.
    pub(super) embedding_scale: f32,
    /// What attention and feed-forward blocks give is multiplied by before it is added to the hidden state.
    pub(super) residual_scale: f32,
    /// What logits are multiplied by.
    pub(super) logit_scale: f32,
    /// The cap of logits: `c · tanh(logit / c)`.
    pub(super) logit_soft_cap: Option<f32>,
    /// The activation of feed-forward blocks.
    pub(super) activation: Activation,
    /// Where the norms of a layer stand.
    pub(super) norms: Norms,
    /// What is added to the weights of all norms.
    pub(super) norm_offset: f32,
    /// Whether the embedding is the head too.
    pub(super) tied: bool,
    /// Whether the projections of queries, keys and values are one tensor, and gates and matrices up another.
    pub(super) fused: bool,
    /// Whether queries, keys and values have biases.
    pub(super) qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub(super) o_bias: bool,
    /// Whether the projections of feed-forward blocks have biases.
    pub(super) mlp_bias: bool,
    /// Whether and how queries and keys are normed before rotation.
    pub(super) qk_norm: QkNorm,
    /// Experts, where a model has any.
    pub(super) experts: Option<Experts>,
    /// The tokens that end a text: `eos_token_id`.
    pub(super) stops: Vec<Token>,
}

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] for a model that this engine would compute wrongly, [`Error::BadModel`] for a file
    /// that is missing, is no JSON, or holds numbers that make no sense.
    pub fn parse(source: &dyn ModelSource) -> Result<Self> {
        Self::parse_for(source, None)
    }

    /// Reads `config.json` for contexts of so many tokens at most, if fewer than the model was made for: some rope
    /// scalings depend on it.
    pub(super) fn parse_for(source: &dyn ModelSource, tokens: Option<usize>) -> Result<Self> {
        Self::read(source, tokens).map_err(|error| match source.gguf() {
            Some(gguf) => gguf.blame(error),
            None => error,
        })
    }

    fn read(source: &dyn ModelSource, tokens: Option<usize>) -> Result<Self> {
        let whole = Settings::read(source, FILE)?.ok_or_else(|| bad_model(FILE, "it is missing"))?;
        let (family, with_images) = family(&whole)?;
        let text = if with_images { whole.object("text_config")? } else { None };
        let file = text.as_ref().unwrap_or(&whole);
        if [&whole, file].iter().any(|settings| settings.get("quantization_config").is_some()) {
            return unsupported("a checkpoint with quantization_config", "checkpoints in F32, F16 and BF16 are");
        }
        refuse_what_the_graph_lacks(file, family)?;

        let gemma3 = |value: usize| (family == Family::Gemma3).then_some(value);
        let sized = |key: &str, most: usize, default: Option<usize>| match default {
            Some(default) => Ok(file.whole(key, 1..=most)?.unwrap_or(default)),
            None => file.count(key, 1..=most),
        };
        let hidden = sized("hidden_size", MAX_WIDTH, gemma3(2304))?;
        let layers = sized("num_hidden_layers", MAX_LAYERS, gemma3(26))?;
        let heads = sized("num_attention_heads", MAX_HEADS, gemma3(8))?;
        let kv_heads = file.whole("num_key_value_heads", 1..=heads)?.or(gemma3(4)).unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("num_attention_heads is {heads}: it must be a multiple of the {kv_heads} key heads");
            return Err(bad_model(FILE, reason));
        }
        let head_dim = head_dim(file, family, hidden, heads)?;
        let rotated = rotated(file, family, head_dim)?;
        let context = sized("max_position_embeddings", MAX_CONTEXT, gemma3(1 << 17))?;
        let rope = RopeSpec {
            head_dim,
            rotated,
            theta: match family {
                Family::Gemma3 | Family::Mixtral => 1e6,
                Family::SmolLm3 => 2e6,
                _ => 10_000.0,
            },
            positions: context,
            context: tokens.unwrap_or(context).min(context),
        };
        let (kinds, kind_of) = kinds(file, family, layers, &rope)?;
        let attention_bias = attention_bias(file, family)?;
        let multiplier = |key: &str| {
            let wanted = family == Family::Granite;
            Ok::<f32, Error>(if wanted { file.real(key, 1e-9..=1e9)?.unwrap_or(1.0) as f32 } else { 1.0 })
        };
        let cap = |key: &str, default: Option<f64>| {
            let found = match family {
                Family::Gemma2 | Family::Gemma3 if file.has(key) => file.real(key, 1e-3..=1e6)?,
                Family::Gemma2 => default,
                _ => None,
            };
            Ok::<Option<f32>, Error>(found.map(|cap| cap as f32))
        };
        let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
        let tied = match whole.get("tie_word_embeddings") {
            None if gemma || family == Family::SmolLm3 => true,
            _ => whole.flag("tie_word_embeddings")?,
        };
        let stops = if whole.get("eos_token_id").is_some() { &whole } else { file };
        Ok(Self {
            family,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            rotated,
            intermediate: sized("intermediate_size", MAX_WIDTH, gemma3(9216))?,
            vocabulary: sized("vocab_size", MAX_VOCABULARY, gemma3(262_208))?,
            context,
            norm_eps: file.real("rms_norm_eps", 1e-12..=0.1)?.unwrap_or(default_norm_eps(family)) as f32,
            kinds,
            kind_of,
            attention_scale: attention_scale(file, family, head_dim)?,
            attention_soft_cap: cap("attn_logit_softcapping", Some(50.0))?,
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { multiplier("embedding_multiplier")? },
            residual_scale: multiplier("residual_multiplier")?,
            logit_scale: 1.0 / multiplier("logits_scaling")?,
            logit_soft_cap: cap("final_logit_softcapping", Some(30.0))?,
            activation: activation(file, family)?,
            norms: match family {
                Family::Gemma2 | Family::Gemma3 => Norms::Around,
                Family::Olmo2 => Norms::After,
                _ => Norms::Before,
            },
            // GGUF files hold the sum.
            norm_offset: if gemma && source.gguf().is_none() { 1.0 } else { 0.0 },
            tied,
            fused: family == Family::Phi3,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias,
            mlp_bias: file.flag("mlp_bias")?,
            qk_norm: match family {
                Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3 => QkNorm::Heads,
                Family::Olmo2 => QkNorm::Rows,
                _ => QkNorm::None,
            },
            experts: experts(file, family, layers)?,
            stops: stops.tokens("eos_token_id")?,
        })
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Numbers in a hidden state.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// How queries and keys are rotated in a layer.
    pub fn rope(&self, layer: usize) -> Option<&Rope> {
        self.kind_of.get(layer).and_then(|kind| self.kinds.get(*kind)).map(|kind| &kind.rope)
    }

    /// How a layer attends.
    pub(super) fn attention(&self, layer: usize) -> Attention {
        Attention::new(layer, self.head_dim).scale(self.attention_scale).soft_cap(self.attention_soft_cap)
    }

    /// The shape of this model's KV.
    pub fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    /// The settings in which a model differs from a plain Llama, beyond those that every fingerprint holds. Each has a
    /// number, which never changes what it stands for.
    pub(super) fn further_settings(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut add = |number: u8, differs: bool, values: &[u8]| {
            if differs {
                bytes.push(number);
                bytes.extend((values.len() as u64).to_le_bytes());
                bytes.extend(values);
            }
        };
        let number = |x: f32| x.to_le_bytes();
        let size = |size: usize| (size as u64).to_le_bytes();
        let mut kinds = Vec::new();
        for LayerKind { rope, window } in &self.kinds {
            kinds.extend(size(window.unwrap_or(0)));
            kinds.extend(number(rope.attention_factor));
            rope.inverse_frequencies.iter().for_each(|frequency| kinds.extend(number(*frequency)));
        }
        self.kind_of.iter().for_each(|kind| kinds.extend(size(*kind)));
        add(1, self.kinds.len() > 1, &kinds);
        add(2, self.rotated != self.head_dim, &size(self.rotated));
        add(3, self.attention_scale != 1.0 / (self.head_dim as f32).sqrt(), &number(self.attention_scale));
        add(4, self.attention_soft_cap.is_some(), &number(self.attention_soft_cap.unwrap_or(0.0)));
        add(5, self.embedding_scale != 1.0, &number(self.embedding_scale));
        add(6, self.residual_scale != 1.0, &number(self.residual_scale));
        add(7, self.activation != Activation::Silu, &[self.activation as u8]);
        add(8, self.norms != Norms::Before, &[self.norms as u8]);
        add(9, self.norm_offset != 0.0, &number(self.norm_offset));
        add(10, self.mlp_bias, &[]);
        if let Some(experts) = &self.experts {
            let Experts { count, top_k, norm_top_k, intermediate, layers, .. } = experts;
            let mut values = [size(*count), size(*top_k), size(*intermediate)].concat();
            values.push(u8::from(*norm_top_k));
            values.extend(layers.iter().map(|sparse| u8::from(*sparse)));
            add(11, true, &values);
        }
        // What logits are made by changes no KV.
        bytes
    }

    /// The experts of a layer, if it has any.
    pub(super) fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers.get(layer).copied().unwrap_or(false))
    }
}

/// The family, and whether its text part is only one of several.
fn family(file: &Settings<'_>) -> Result<(Family, bool)> {
    let name = file.text("model_type")?.ok_or_else(|| bad_model(FILE, "model_type is missing"))?;
    match FAMILIES.iter().find(|(known, _)| *known == name) {
        Some((_, family)) => Ok((*family, name == GEMMA3_WITH_IMAGES)),
        None => unsupported(
            format!("model_type {}", shown(name)),
            "llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, gemma2, gemma3, gemma3_text, phi3, smollm3, olmo2 and \
             granite are",
        ),
    }
}

fn refuse_what_the_graph_lacks(file: &Settings<'_>, family: Family) -> Result<()> {
    if file.flag("mlp_bias")? && !matches!(family, Family::Llama | Family::Granite | Family::SmolLm3) {
        return unsupported(format!("mlp_bias in {family:?}"), "it is in llama, smollm3 and granite");
    }
    if file.flag("lm_head_bias")? {
        return unsupported("lm_head_bias", "an output matrix without a bias is");
    }
    if file.flag("use_bidirectional_attention")? {
        return unsupported("use_bidirectional_attention", "attention to what stands before is");
    }
    Ok(())
}

/// The activation of feed-forward blocks. What Gemma's files say of `hidden_act` is out of date where they have
/// `hidden_activation`.
fn activation(file: &Settings<'_>, family: Family) -> Result<Activation> {
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let named = match gemma {
        true => file.text("hidden_activation")?.or(Some("gelu_pytorch_tanh")),
        false => file.text("hidden_act")?,
    };
    match named {
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(other) => unsupported(format!("hidden_act {}", shown(other)), "silu and gelu_pytorch_tanh are"),
    }
}

fn default_norm_eps(family: Family) -> f64 {
    match family {
        Family::Phi3 | Family::Olmo2 | Family::Mixtral => 1e-5,
        _ => 1e-6,
    }
}

fn head_dim(file: &Settings<'_>, family: Family, hidden: usize, heads: usize) -> Result<usize> {
    let dim = match file.whole("head_dim", 2..=MAX_HEAD_DIM)? {
        Some(dim) => dim,
        None if matches!(family, Family::Gemma2 | Family::Gemma3) => 256,
        None if family == Family::Qwen3 => return Err(bad_model(FILE, "head_dim is missing")),
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(bad_model(FILE, format!("hidden_size {hidden} is not a multiple of {heads} heads"))),
    };
    if !dim.is_multiple_of(2) || !(2..=MAX_HEAD_DIM).contains(&dim) {
        return Err(bad_model(
            FILE,
            format!("a head has {dim} numbers: it must be an even number up to {MAX_HEAD_DIM}"),
        ));
    }
    Ok(dim)
}

/// How many numbers of a head are rotated.
fn rotated(file: &Settings<'_>, family: Family, head_dim: usize) -> Result<usize> {
    let mut share = file.real("partial_rotary_factor", 0.0..=1.0)?;
    for key in ["rope_parameters", "rope_scaling"] {
        if let Some(inner) = file.object(key)? {
            share = inner.real("partial_rotary_factor", 0.0..=1.0)?.or(share);
        }
    }
    let Some(share) = share.filter(|share| *share != 1.0) else { return Ok(head_dim) };
    if family != Family::Phi3 {
        return unsupported(format!("partial_rotary_factor in {family:?}"), "it is in phi3");
    }
    match (head_dim as f64 * share) as usize {
        dim if dim >= 2 && dim.is_multiple_of(2) => Ok(dim),
        dim => Err(bad_model(FILE, format!("{dim} numbers of a head are rotated: it must be an even number"))),
    }
}

fn attention_scale(file: &Settings<'_>, family: Family, head_dim: usize) -> Result<f32> {
    let scale = match family {
        Family::Gemma2 | Family::Gemma3 => {
            file.real("query_pre_attn_scalar", 1e-6..=1e9)?.unwrap_or(256.0).powf(-0.5) as f32
        }
        Family::Granite => file.real("attention_multiplier", 1e-9..=1e9)?.unwrap_or(1.0) as f32,
        _ => 1.0 / (head_dim as f32).sqrt(),
    };
    Ok(scale)
}

/// Whether all four projections of attention have biases. Qwen2's three are not a setting.
fn attention_bias(file: &Settings<'_>, family: Family) -> Result<bool> {
    let bias = file.flag("attention_bias")?;
    if bias && matches!(family, Family::Mistral | Family::Mixtral | Family::Qwen2 | Family::Phi3) {
        return unsupported(format!("attention_bias in {family:?}"), "it is in families whose files can say it");
    }
    Ok(bias)
}

fn experts(file: &Settings<'_>, family: Family, layers: usize) -> Result<Option<Experts>> {
    let top_k = |count: usize, default: usize| -> Result<usize> {
        Ok(file.whole("num_experts_per_tok", 1..=count)?.unwrap_or(default.min(count)))
    };
    match family {
        Family::Mixtral => {
            let count = file.whole("num_local_experts", 1..=MAX_EXPERTS)?.unwrap_or(8);
            Ok(Some(Experts {
                count,
                top_k: top_k(count, 2)?,
                norm_top_k: true,
                intermediate: file.count("intermediate_size", 1..=MAX_WIDTH)?,
                layers: vec![true; layers],
                block: "block_sparse_moe",
                matrices: ["w1", "w3", "w2"],
            }))
        }
        Family::Qwen3Moe => {
            let count = match file.whole("num_experts", 1..=MAX_EXPERTS)? {
                Some(count) => count,
                None => file.whole("num_local_experts", 1..=MAX_EXPERTS)?.unwrap_or(128),
            };
            let step = file.whole("decoder_sparse_step", 1..=MAX_LAYERS)?.unwrap_or(1);
            let mut sparse: Vec<bool> = (0..layers).map(|layer| (layer + 1).is_multiple_of(step)).collect();
            for dense in file.list("mlp_only_layers")? {
                let layer = dense.as_u64().and_then(|layer| usize::try_from(layer).ok());
                let layer = layer.and_then(|layer| sparse.get_mut(layer));
                *layer.ok_or_else(|| file.wrong("mlp_only_layers", dense, "one of the layers"))? = false;
            }
            Ok(Some(Experts {
                count,
                top_k: top_k(count, 8)?,
                norm_top_k: file.flag("norm_topk_prob")?,
                intermediate: file.whole("moe_intermediate_size", 1..=MAX_WIDTH)?.unwrap_or(768),
                layers: sparse,
                block: "mlp",
                matrices: ["gate_proj", "up_proj", "down_proj"],
            }))
        }
        _ => Ok(None),
    }
}

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// The kinds of layers, and the kind of each layer.
fn kinds(file: &Settings<'_>, family: Family, layers: usize, spec: &RopeSpec) -> Result<(Vec<LayerKind>, Vec<usize>)> {
    let rotates = rotates(file, family, layers)?;
    let window = window(file, family)?;
    let sliding = sliding(file, family, window.is_some(), &rotates)?;
    let ropes = match family {
        Family::Gemma3 => [Rope::parse(file, spec, Some(FULL))?, Rope::parse(file, spec, Some(SLIDING))?],
        _ => {
            let rope = Rope::parse(file, spec, None)?;
            [rope.clone(), rope]
        }
    };
    let (mut kinds, mut kind_of): (Vec<LayerKind>, Vec<usize>) = (Vec::new(), Vec::new());
    for (sliding, rotates) in sliding.into_iter().zip(rotates) {
        let rope = if rotates { ropes[usize::from(sliding)].clone() } else { Rope::none(spec.head_dim) };
        let kind = LayerKind { rope, window: window.filter(|_| sliding) };
        let known = kinds.iter().position(|known| *known == kind);
        kind_of.push(known.unwrap_or(kinds.len()));
        if known.is_none() {
            kinds.push(kind);
        }
    }
    Ok((kinds, kind_of))
}

/// In which layers queries and keys are rotated.
fn rotates(file: &Settings<'_>, family: Family, layers: usize) -> Result<Vec<bool>> {
    if family != Family::SmolLm3 {
        return Ok(vec![true; layers]);
    }
    let listed = file.list("no_rope_layers")?;
    if listed.is_empty() {
        let every = file.whole("no_rope_layer_interval", 1..=MAX_LAYERS)?.unwrap_or(4);
        return Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(every)).collect());
    }
    // A layer that is rotated has a 1, whatever the list is called.
    let rotates = |entry: &serde_json::Value| match entry.as_u64() {
        Some(number @ (0 | 1)) => Ok(number == 1),
        _ => Err(file.wrong("no_rope_layers", entry, "0 or 1 for each layer")),
    };
    let rotates = listed.iter().map(rotates).collect::<Result<Vec<bool>>>()?;
    match rotates.len() == layers {
        true => Ok(rotates),
        false => Err(bad_model(FILE, format!("no_rope_layers has {} entries for {layers} layers", rotates.len()))),
    }
}

/// How many tokens a token sees in the layers that have a window.
fn window(file: &Settings<'_>, family: Family) -> Result<Option<usize>> {
    const KEY: &str = "sliding_window";
    let default = match family {
        Family::Gemma2 | Family::Gemma3 | Family::Mistral => Some(4096),
        Family::Mixtral | Family::Phi3 => None,
        // Their files name windows that are not in use.
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe if file.flag("use_sliding_window")? => Some(4096),
        Family::SmolLm3 if file.flag("use_sliding_window")? => None,
        _ => return Ok(None),
    };
    // `null` says that there is none.
    if file.has(KEY) { file.whole(KEY, 1..=MAX_CONTEXT) } else { Ok(default) }
}

/// Which layers have a window, in a model that is `windowed`: it says how wide one is.
fn sliding(file: &Settings<'_>, family: Family, windowed: bool, rotates: &[bool]) -> Result<Vec<bool>> {
    let layers = rotates.len();
    let rule = |layer: usize| -> Result<bool> {
        Ok(windowed
            && match family {
                Family::Gemma2 => layer.is_multiple_of(2),
                Family::Gemma3 => {
                    let every = file.whole("sliding_window_pattern", 1..=MAX_LAYERS)?.unwrap_or(6);
                    !(layer + 1).is_multiple_of(every)
                }
                Family::Qwen2 | Family::Qwen3 => {
                    layer >= file.whole("max_window_layers", 0..=MAX_LAYERS)?.unwrap_or(28)
                }
                Family::SmolLm3 => !rotates[layer],
                _ => true,
            })
    };
    let by_rule = (0..layers).map(rule).collect::<Result<Vec<bool>>>()?;
    let listed = file.list("layer_types")?;
    if listed.is_empty() {
        return Ok(by_rule);
    }
    let kind = |kind: &serde_json::Value| match kind.as_str() {
        Some(SLIDING) => Ok(true),
        Some(FULL) => Ok(false),
        other => unsupported(
            format!("layer_types with {}", shown(other.unwrap_or("what is no name"))),
            "full_attention and sliding_attention are",
        ),
    };
    let listed = listed.iter().map(kind).collect::<Result<Vec<bool>>>()?;
    if listed.len() != layers {
        return Err(bad_model(FILE, format!("layer_types has {} entries for {layers} layers", listed.len())));
    }
    if listed.contains(&true) && !windowed {
        return unsupported("layer_types with windows that nothing else asks for", "full_attention in all layers is");
    }
    let may_differ =
        matches!(family, Family::Gemma2 | Family::Gemma3 | Family::Qwen2 | Family::Qwen3 | Family::SmolLm3);
    if !may_differ && listed != by_rule {
        return unsupported(
            format!("layer_types with different kinds of layers in {family:?}"),
            "one attention span for all layers is",
        );
    }
    Ok(listed)
}

/// [`Error::UnsupportedModel`]; `supported` ends the sentence "it is not supported: …".
pub(super) fn unsupported<T>(what: impl Into<String>, supported: &'static str) -> Result<T> {
    Err(Error::UnsupportedModel { what: what.into(), supported })
}

#[cfg(test)]
mod tests;
