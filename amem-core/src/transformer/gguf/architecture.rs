//! What the families of models call their settings and tensors in GGUF.
//!
//! A family of language models is a row of a table: most of those that the forward pass knows need no more than their names
//! here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::encoder::{ENCODERS, Encoder};
use super::header::{Header, Metadata};
use super::rope_factors::RopeFactors;
use super::{CONFIG, GgufBytes, tokenizer};
use crate::Result;
use crate::transformer::Config;
use crate::transformer::config::unsupported;
use crate::transformer::settings::{bad_model, shown};

/// A family of models, as GGUF names it.
#[derive(Clone, Copy)]
pub(super) enum Architecture {
    Decoder(&'static Decoder),
    /// Encoders have names and settings of their own.
    Encoder(&'static Encoder),
}

/// A family of language models.
pub(super) struct Decoder {
    /// `general.architecture`, with which the keys of its settings begin.
    name: &'static str,
    /// What `config.json` calls it.
    model_type: &'static str,
    /// Whether rows of queries and keys stand in the order of llama.cpp's own RoPE.
    interleaved: bool,
    /// Whether `config.json` can say that it has biases.
    says_biases: bool,
    /// Whether RoPE may leave the end of each head as it is.
    partial_rotary: bool,
    /// Whether it has factors for long contexts, and `rope.scaling.attn_factor` with them.
    longrope: bool,
    /// Whether `rope.scaling.finetuned` says if heads are rotated at all.
    finetuned_is_rope: bool,
    /// Whether control tokens take the white space behind them away, as those of Phi-3's own tokenizer do.
    strips_behind_control: bool,
    experts: Experts,
    window: Window,
    /// Settings that only this one has.
    settings: &'static [(&'static str, &'static str)],
    /// Tensors of a layer that only this one has, or that have another name in it.
    tensors: &'static [(&'static str, &'static str)],
    /// What llama.cpp knows of the family, and no file says: keys of `config.json` and their values.
    defaults: fn(&Sizes) -> Vec<(&'static str, Value)>,
}

/// What experts make of a model.
enum Experts {
    None,
    /// With experts it is a Mixtral, whose layers all have them.
    Mixtral,
    /// Some layers have them. Which ones is told by their tensors.
    PerLayer,
}

/// What a window on attention makes of a model.
enum Window {
    /// It is refused.
    Refused,
    /// Nothing: `sliding_window` says all that there is to say.
    Plain,
    /// With a window it is a Mistral, unless it is a Mixtral.
    Mistral,
    /// Every sixth layer has none, or every so many as the file says.
    Pattern,
}

/// Sizes of a model. What a file does not say is 0.
struct Sizes {
    hidden: u64,
    heads: u64,
    layers: u64,
    head_dim: u64,
}

/// What most of them are.
const PLAIN: Decoder = Decoder {
    name: "llama",
    model_type: "llama",
    interleaved: false,
    says_biases: true,
    partial_rotary: false,
    longrope: false,
    finetuned_is_rope: false,
    strips_behind_control: false,
    experts: Experts::None,
    window: Window::Refused,
    settings: &[],
    tensors: &[],
    defaults: |_| Vec::new(),
};

static DECODERS: [Decoder; 10] = [
    // Mistral's and Mixtral's models are of it too.
    Decoder {
        interleaved: true,
        experts: Experts::Mixtral,
        window: Window::Mistral,
        settings: &EXPERTS,
        tensors: &MIXTRAL,
        ..PLAIN
    },
    Decoder { name: "qwen2", model_type: "qwen2", says_biases: false, ..PLAIN },
    Decoder { name: "qwen3", model_type: "qwen3", ..PLAIN },
    Decoder {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        experts: Experts::PerLayer,
        settings: &EXPERTS,
        tensors: &[("mlp.gate", "ffn_gate_inp")],
        ..PLAIN
    },
    Decoder {
        name: "gemma2",
        model_type: "gemma2",
        window: Window::Plain,
        settings: &[SCORE_CAP, LOGIT_CAP],
        tensors: &NORMED_BEHIND,
        defaults: |sizes| vec![gemma_query_scale(sizes, 46)],
        ..PLAIN
    },
    Decoder {
        name: "gemma3",
        model_type: "gemma3_text",
        window: Window::Pattern,
        settings: &[LOGIT_CAP, ("rope_local_base_freq", "rope.freq_base_swa")],
        tensors: &NORMED_BEHIND,
        defaults: |sizes| vec![gemma_query_scale(sizes, 62)],
        ..PLAIN
    },
    Decoder {
        name: "phi3",
        model_type: "phi3",
        says_biases: false,
        partial_rotary: true,
        longrope: true,
        strips_behind_control: true,
        window: Window::Plain,
        tensors: &[("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")],
        ..PLAIN
    },
    Decoder { name: "smollm3", model_type: "smollm3", interleaved: true, ..PLAIN },
    Decoder { name: "olmo2", model_type: "olmo2", tensors: &NORMED_BEHIND, ..PLAIN },
    Decoder {
        name: "granite",
        model_type: "granite",
        interleaved: true,
        finetuned_is_rope: true,
        settings: &MULTIPLIERS,
        defaults: |sizes| vec![("attention_multiplier", json!((sizes.per_head().max(1) as f64).powf(-0.5)))],
        ..PLAIN
    },
];

/// The number by which Gemma scales scores: another one in the largest of a family, of 27 billion parameters, which has so
/// many layers.
fn gemma_query_scale(sizes: &Sizes, layers_of_largest: u64) -> (&'static str, Value) {
    let scale = if sizes.layers == layers_of_largest { sizes.per_head() } else { sizes.head_dim };
    ("query_pre_attn_scalar", json!(scale))
}

impl Sizes {
    fn of(settings: &Map<String, Value>) -> Self {
        let [hidden, heads, layers, head_dim] = ["hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim"]
            .map(|key| number(settings, key).unwrap_or(0));
        Self { hidden, heads, layers, head_dim }
    }

    /// Numbers of the hidden state for each head, which need not be `head_dim`.
    fn per_head(&self) -> u64 {
        self.hidden.checked_div(self.heads).unwrap_or(0)
    }
}

/// A setting that is a whole number.
fn number(settings: &Map<String, Value>, key: &str) -> Option<u64> {
    settings.get(key).and_then(Value::as_u64)
}

const SCORE_CAP: (&str, &str) = ("attn_logit_softcapping", "attn_logit_softcapping");
const LOGIT_CAP: (&str, &str) = ("final_logit_softcapping", "final_logit_softcapping");
const EXPERTS: [(&str, &str); 3] = [
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
];
const MULTIPLIERS: [(&str, &str); 4] = [
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
];
const MIXTRAL: [(&str, &str); 1] = [("block_sparse_moe.gate", "ffn_gate_inp")];
/// What Llama calls the norm behind attention is the one before the feed-forward block. These have both.
const NORMED_BEHIND: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Matrices of experts. In GGUF those of all experts of a layer are one tensor.
const EXPERT: [(&str, &str); 6] = [
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];

/// Whole numbers: `config.json`'s key, and GGUF's after the architecture's name.
const WHOLE: [(&str, &str); 8] = [
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("sliding_window", "attention.sliding_window"),
];

/// Other numbers.
const REAL: [(&str, &str); 2] =
    [("rms_norm_eps", "attention.layer_norm_rms_epsilon"), ("rope_theta", "rope.freq_base")];

/// Settings that change what is computed, and with which value they do not. What has another is refused.
const NEUTRAL: [(&str, f64); 15] = [
    ("expert_shared_count", 0.0),
    ("expert_weights_scale", 0.0),
    ("expert_count", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.scale", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_ext_factor", 1.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
    ("rope.scale_linear", 1.0),
];

/// Tensors outside of layers: Hugging Face's name and GGUF's.
const MODEL: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Tensors of a layer.
const LAYER: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// More than any model has of anything that is counted here.
const MAX_LAYERS: u64 = 1 << 10;
const MAX_COUNT: usize = u32::MAX as usize;

impl Architecture {
    /// The architecture that a file states.
    pub(super) fn of(metadata: &Metadata<'_>) -> Result<Self> {
        let name = metadata.word("general.architecture")?;
        if let Some(decoder) = DECODERS.iter().find(|known| known.name == name) {
            return Ok(Self::Decoder(decoder));
        }
        if let Some(encoder) = ENCODERS.iter().find(|known| known.name == name) {
            return Ok(Self::Encoder(encoder));
        }
        unsupported(
            format!("{}: architecture {}", metadata.file, shown(name)),
            "llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3, smollm3, olmo2 and granite are, and as encoders bert \
             and nomic-bert",
        )
    }

    /// Its name, as `general.architecture` has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Decoder(decoder) => decoder.name,
            Self::Encoder(encoder) => encoder.name,
        }
    }

    /// The files of a Hugging Face directory that say the same: `config.json`, and all others of an encoder but its weights.
    pub(super) fn files(
        self,
        metadata: &Metadata<'_>,
        headers: &[Header<'_>],
        parts: &[(String, GgufBytes)],
    ) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        match self {
            Self::Decoder(decoder) => {
                let mut settings = decoder.settings(metadata, headers, RopeFactors::read(headers, parts)?)?;
                settings.insert("eos_token_id".to_owned(), Value::from(tokenizer::stops(metadata)?));
                Ok(BTreeMap::from([(CONFIG, serde_json::to_vec(&settings).unwrap_or_default())]))
            }
            Self::Encoder(encoder) => encoder.files(metadata, headers),
        }
    }

    /// Whether a tensor holds weights, and not what `config.json` says.
    pub(super) fn is_weight(self, tensor: &str) -> bool {
        matches!(self, Self::Encoder(_)) || !RopeFactors::are_in(tensor)
    }

    /// GGUF's name for a tensor of Hugging Face's, and which of several matrices in it. What the tables do not know keeps
    /// its name.
    pub(super) fn tensor_name(self, name: &str) -> (String, Option<usize>) {
        match self {
            Self::Decoder(decoder) => decoder.tensor_name(name),
            Self::Encoder(encoder) => (encoder.tensor_name(name), None),
        }
    }

    /// What is wrong with `config.json`, with the names that GGUF has for its settings.
    pub(super) fn reword(self, reason: String) -> String {
        match self {
            Self::Decoder(decoder) => decoder.reword(reason),
            Self::Encoder(encoder) => encoder.reword(reason),
        }
    }

    /// Whether control tokens take the white space behind them away.
    pub(super) fn strips_behind_control(self) -> bool {
        matches!(self, Self::Decoder(Decoder { strips_behind_control: true, .. }))
    }
}

impl Decoder {
    /// The settings of `config.json`.
    fn settings(
        &self,
        metadata: &Metadata<'_>,
        headers: &[Header<'_>],
        rope_factors: RopeFactors,
    ) -> Result<Map<String, Value>> {
        let key = |name: &str| format!("{}.{name}", self.name);
        for (name, neutral) in NEUTRAL.into_iter().filter(|(name, _)| !self.knows(name)) {
            if let Some(value) = metadata.real(&key(name))?.filter(|value| *value != neutral) {
                let what = format!("{} {value} in {}", key(name), metadata.file);
                return unsupported(what, "models of this architecture without it are");
            }
        }
        let mut settings = Map::new();
        settings.insert("model_type".to_owned(), json!(self.model_type));
        for (ours, theirs) in WHOLE {
            if let Some(number) = metadata.whole(&key(theirs), 0..=MAX_COUNT)? {
                settings.insert(ours.to_owned(), json!(number));
            }
        }
        for (ours, theirs) in REAL.iter().chain(self.settings) {
            if let Some(number) = metadata.real(&key(theirs))? {
                let whole = number.fract() == 0.0 && (0.0..=MAX_COUNT as f64).contains(&number);
                let number = if whole { json!(number as u64) } else { json!(number) };
                settings.insert((*ours).to_owned(), number);
            }
        }
        let shapes: BTreeMap<&str, &[usize]> = headers
            .iter()
            .flat_map(|header| &header.tensors)
            .map(|(name, entry)| (*name, entry.shape.as_slice()))
            .collect();
        let Some([vocabulary, _]) = shapes.get("token_embd.weight") else {
            return Err(bad_model(metadata.file, "tensor token_embd.weight is missing, or is no matrix"));
        };
        settings.insert("vocab_size".to_owned(), json!(vocabulary));
        let has = |tensor: &str| shapes.contains_key(tensor);
        settings.insert("tie_word_embeddings".to_owned(), json!(!has("output.weight")));
        if self.says_biases {
            settings.insert("attention_bias".to_owned(), json!(has("blk.0.attn_q.bias")));
            settings.insert("mlp_bias".to_owned(), json!(has("blk.0.ffn_gate.bias")));
        }
        self.translate_heads(metadata, &mut settings)?;
        self.translate_experts(&has, &mut settings);
        self.translate_window(metadata, &mut settings)?;
        for (key, value) in (self.defaults)(&Sizes::of(&settings)).into_iter().chain([("rope_theta", json!(10_000))]) {
            settings.entry(key).or_insert(value);
        }
        if let Some(scaling) = self.rope_scaling(metadata, rope_factors)? {
            settings.insert("rope_scaling".to_owned(), scaling);
        }
        if let Some(dtype) = match metadata.whole("general.file_type", 0..=MAX_COUNT)? {
            Some(0) => Some("float32"),
            Some(1) => Some("float16"),
            Some(32) => Some("bfloat16"),
            _ => None,
        } {
            settings.insert("torch_dtype".to_owned(), json!(dtype));
        }
        Ok(settings)
    }

    /// Whether it is the forward pass's business what this setting is.
    fn knows(&self, name: &str) -> bool {
        let longrope = self.longrope && name == "rope.scaling.attn_factor";
        longrope || self.settings.iter().any(|(_, theirs)| *theirs == name)
    }

    /// Keys are as long as values, and all numbers of a head are rotated, unless the family may rotate part of them.
    fn translate_heads(&self, metadata: &Metadata<'_>, settings: &mut Map<String, Value>) -> Result<()> {
        let whole = |name: &str| metadata.whole(&format!("{}.{name}", self.name), 0..=MAX_COUNT);
        let derived = number(settings, "hidden_size").zip(number(settings, "num_attention_heads"));
        let derived = derived.and_then(|(hidden, heads)| hidden.checked_div(heads));
        let head_dim = number(settings, "head_dim").or(derived).unwrap_or(0);
        for name in ["attention.value_length", "rope.dimension_count"] {
            let Some(found) = whole(name)?.map(|found| found as u64).filter(|found| *found != head_dim) else {
                continue;
            };
            if self.partial_rotary && name == "rope.dimension_count" && (1..head_dim).contains(&found) {
                // Half a number more than it is, so that no rounding makes it less.
                settings.insert("partial_rotary_factor".to_owned(), json!((found as f64 + 0.5) / head_dim as f64));
                continue;
            }
            let what = format!("{}.{name} {found} in {}", self.name, metadata.file);
            return unsupported(what, "heads whose keys and values are as long as what is rotated of them are");
        }
        Ok(())
    }

    fn translate_experts(&self, has: &dyn Fn(&str) -> bool, settings: &mut Map<String, Value>) {
        if number(settings, "num_local_experts").unwrap_or(0) == 0 {
            settings.remove("num_local_experts");
            return;
        }
        match self.experts {
            Experts::None => {}
            Experts::Mixtral => {
                settings.insert("model_type".to_owned(), json!("mixtral"));
            }
            Experts::PerLayer => {
                let layers = number(settings, "num_hidden_layers").unwrap_or(0).min(MAX_LAYERS);
                let dense = (0..layers).filter(|layer| !has(&format!("blk.{layer}.ffn_gate_inp.weight")));
                settings.insert("mlp_only_layers".to_owned(), dense.collect());
                settings.insert("norm_topk_prob".to_owned(), json!(true));
            }
        }
    }

    fn translate_window(&self, metadata: &Metadata<'_>, settings: &mut Map<String, Value>) -> Result<()> {
        let key = |name: &str| format!("{}.attention.{name}", self.name);
        let has_window = number(settings, "sliding_window").unwrap_or(0) > 0;
        if !has_window {
            settings.remove("sliding_window");
        }
        match self.window {
            Window::Pattern => {
                // A pattern of one layer has no window.
                let every = if has_window {
                    metadata.whole(&key("sliding_window_pattern"), 1..=MAX_COUNT)?.unwrap_or(6)
                } else {
                    1
                };
                settings.insert("sliding_window_pattern".to_owned(), json!(every));
            }
            Window::Mistral if has_window && settings.get("model_type") == Some(&json!("llama")) => {
                settings.insert("model_type".to_owned(), json!("mistral"));
            }
            Window::Refused if has_window => {
                let what = format!("{} in {}", key("sliding_window"), metadata.file);
                return unsupported(what, "one attention span for all layers is");
            }
            Window::Refused | Window::Plain | Window::Mistral => {}
        }
        Ok(())
    }

    fn rope_scaling(&self, metadata: &Metadata<'_>, factors: RopeFactors) -> Result<Option<Value>> {
        let key = |name: &str| format!("{}.rope.scaling.{name}", self.name);
        if metadata.flag(&key("finetuned"))? == Some(false) && self.finetuned_is_rope {
            return unsupported(format!("{} false in {}", key("finetuned"), metadata.file), "rotated heads are");
        }
        let factor = metadata.real(&key("factor"))?.filter(|factor| *factor != 0.0 && *factor != 1.0);
        let kind = match metadata.text(&key("type"))? {
            Some("none") => None,
            // llama.cpp's default, where there is a factor.
            None if factor.is_some() => Some("linear"),
            kind => kind,
        };
        let original = metadata.whole(&key("original_context_length"), 0..=MAX_COUNT)?;
        // Converters have one key for YaRN's `attention_factor` and its `attn_factor`. Only the latter is less than 1.
        let attn_factor = metadata.real(&key("yarn_attn_factor"))?.filter(|number| *number != 1.0);
        if let Some(number) = attn_factor.filter(|number| *number > 1.0 || kind != Some("yarn")) {
            let what = format!("{} {number} in {}", key("yarn_attn_factor"), metadata.file);
            return unsupported(what, "less than 1 is, with YaRN");
        }
        let mut scaling = Map::new();
        match (kind, factors) {
            (None, RopeFactors { all: None, long: None, short: None }) => return Ok(None),
            (None, RopeFactors { all: Some(factors), long: None, short: None }) => {
                return Ok(Some(json!({ "rope_type": "factors", "factors": factors })));
            }
            (None | Some("longrope"), RopeFactors { all: None, long: Some(long), short: Some(short) }) => {
                scaling.insert("rope_type".to_owned(), json!("longrope"));
                scaling.insert("long_factor".to_owned(), json!(long));
                scaling.insert("short_factor".to_owned(), json!(short));
                if let Some(factor) = metadata.real(&key("attn_factor"))? {
                    scaling.insert("attention_factor".to_owned(), json!(factor));
                }
            }
            (Some(kind), RopeFactors { all: None, long: None, short: None }) => {
                scaling.insert("rope_type".to_owned(), json!(shown(kind)));
                for (ours, theirs) in
                    [("factor", "factor"), ("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")]
                {
                    if let Some(number) = metadata.real(&key(theirs))? {
                        scaling.insert(ours.to_owned(), json!(number));
                    }
                }
            }
            _ => {
                let what = format!("RoPE's factors in {}", metadata.file);
                return unsupported(
                    what,
                    "rope_freqs, both of rope_factors_long and rope_factors_short, or a type are",
                );
            }
        }
        if let Some(original) = original {
            scaling.insert("original_max_position_embeddings".to_owned(), json!(original));
        }
        if let Some(attn_factor) = attn_factor {
            scaling.insert("attn_factor".to_owned(), json!(attn_factor));
        }
        Ok(Some(Value::Object(scaling)))
    }

    fn tensor_name(&self, name: &str) -> (String, Option<usize>) {
        let known = |(stem, kind): (&str, &str)| {
            if let Some((_, theirs)) = MODEL.iter().find(|(ours, _)| *ours == stem) {
                return Some((format!("{theirs}.{kind}"), None));
            }
            let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
            let of_expert = part.split_once(".experts.").and_then(|(_, rest)| rest.split_once('.'));
            if let Some((expert, part)) = of_expert {
                let (_, theirs) = EXPERT.iter().find(|(ours, _)| *ours == part)?;
                return Some((format!("blk.{layer}.{theirs}.{kind}"), Some(expert.parse().ok()?)));
            }
            let (_, theirs) = self.tensors.iter().chain(&LAYER).find(|(ours, _)| *ours == part)?;
            Some((format!("blk.{layer}.{theirs}.{kind}"), None))
        };
        name.rsplit_once('.').and_then(known).unwrap_or_else(|| (name.to_owned(), None))
    }

    /// The heads of a tensor whose rows are in the order of llama.cpp's own RoPE.
    pub(super) fn interleaved_heads(&self, name: &str, config: &Config) -> Option<usize> {
        let part = name.strip_prefix("blk.")?.split_once('.')?.1;
        match part {
            _ if !self.interleaved => None,
            "attn_q.weight" | "attn_q.bias" => Some(config.heads),
            "attn_k.weight" | "attn_k.bias" => Some(config.kv_heads),
            _ => None,
        }
    }

    fn reword(&self, reason: String) -> String {
        let scaling = [("original_max_position_embeddings", "rope.scaling.original_context_length")];
        let names = scaling.iter().chain(&WHOLE).chain(&REAL).chain(self.settings);
        names.fold(reason, |reason, (ours, theirs)| reason.replace(ours, &format!("{}.{theirs}", self.name)))
    }
}
