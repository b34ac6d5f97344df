//! What the families of models call their settings and tensors in GGUF.
//!
//! An architecture is a table: most families that the forward pass knows need no more than their names here. What only
//! one of them has beside it is told by its name.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::encoder;
use super::header::{Header, Metadata};
use crate::Result;
use crate::transformer::Config;
use crate::transformer::config::unsupported;
use crate::transformer::settings::{bad_model, shown};

/// A family of models, as GGUF names it.
pub(super) struct Architecture {
    /// `general.architecture`, with which the keys of its settings begin.
    pub(super) name: &'static str,
    /// What `config.json` calls it.
    pub(super) model_type: &'static str,
    /// Whether it is a family of encoders, which have names and settings of their own.
    pub(super) encoder: bool,
    /// Whether rows of queries and keys stand in the order of llama.cpp's own RoPE.
    interleaved: bool,
    /// Whether `config.json` can say that it has biases.
    says_biases: bool,
    /// Settings that only this one has.
    settings: &'static [(&'static str, &'static str)],
    /// Tensors of a layer that only this one has, or that have another name in it.
    tensors: &'static [(&'static str, &'static str)],
}

/// What most of them are.
const PLAIN: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    encoder: false,
    interleaved: false,
    says_biases: true,
    settings: &[],
    tensors: &[],
};

const ARCHITECTURES: [Architecture; 12] = [
    // Mistral's and Mixtral's models are of it too.
    Architecture { interleaved: true, settings: &EXPERTS, tensors: &MIXTRAL, ..PLAIN },
    Architecture { name: "qwen2", model_type: "qwen2", says_biases: false, ..PLAIN },
    Architecture { name: "qwen3", model_type: "qwen3", ..PLAIN },
    Architecture {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        settings: &EXPERTS,
        tensors: &[("mlp.gate", "ffn_gate_inp")],
        ..PLAIN
    },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        settings: &[SCORE_CAP, LOGIT_CAP],
        tensors: &NORMED_BEHIND,
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        settings: &[LOGIT_CAP, ("rope_local_base_freq", "rope.freq_base_swa")],
        tensors: &NORMED_BEHIND,
        ..PLAIN
    },
    Architecture {
        name: "phi3",
        model_type: "phi3",
        says_biases: false,
        tensors: &[("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")],
        ..PLAIN
    },
    Architecture { name: "smollm3", model_type: "smollm3", interleaved: true, ..PLAIN },
    Architecture { name: "olmo2", model_type: "olmo2", tensors: &NORMED_BEHIND, ..PLAIN },
    Architecture { name: "granite", model_type: "granite", interleaved: true, settings: &MULTIPLIERS, ..PLAIN },
    Architecture { name: "bert", model_type: "bert", encoder: true, ..PLAIN },
    Architecture { name: "nomic-bert", model_type: "nomic_bert", encoder: true, ..PLAIN },
];

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
    pub(super) fn of(metadata: &Metadata<'_>) -> Result<&'static Self> {
        let name = metadata.word("general.architecture")?;
        match ARCHITECTURES.iter().find(|known| known.name == name) {
            Some(known) => Ok(known),
            None => unsupported(
                format!("{}: architecture {}", metadata.file, shown(name)),
                "llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3, smollm3, olmo2 and granite are, and as encoders \
                 bert and nomic-bert",
            ),
        }
    }

    /// The settings of `config.json`.
    pub(super) fn settings(
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
        self.check_heads(metadata, &mut settings)?;
        self.check_experts(&has, &mut settings);
        self.check_window(metadata, &mut settings)?;
        self.say_what_files_do_not(&mut settings);
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
        let longrope = self.name == "phi3" && name == "rope.scaling.attn_factor";
        longrope || self.settings.iter().any(|(_, theirs)| *theirs == name)
    }

    /// Keys are as long as values, and all numbers of a head are rotated, but in Phi's.
    fn check_heads(&self, metadata: &Metadata<'_>, settings: &mut Map<String, Value>) -> Result<()> {
        let whole = |name: &str| metadata.whole(&format!("{}.{name}", self.name), 0..=MAX_COUNT);
        let number = |key: &str| settings.get(key).and_then(Value::as_u64);
        let derived = number("hidden_size").zip(number("num_attention_heads")).and_then(|(h, n)| h.checked_div(n));
        let head_dim = number("head_dim").or(derived).unwrap_or(0);
        for name in ["attention.value_length", "rope.dimension_count"] {
            let Some(found) = whole(name)?.map(|found| found as u64).filter(|found| *found != head_dim) else {
                continue;
            };
            if self.name == "phi3" && name == "rope.dimension_count" && (1..head_dim).contains(&found) {
                // Half a number more than it is, so that no rounding makes it less.
                settings.insert("partial_rotary_factor".to_owned(), json!((found as f64 + 0.5) / head_dim as f64));
                continue;
            }
            let what = format!("{}.{name} {found} in {}", self.name, metadata.file);
            return unsupported(what, "heads whose keys and values are as long as what is rotated of them are");
        }
        Ok(())
    }

    /// Models of the architecture `llama` are Mixtral's if they have experts. Which layers have them is told by their
    /// tensors.
    fn check_experts(&self, has: &dyn Fn(&str) -> bool, settings: &mut Map<String, Value>) {
        let experts = settings.get("num_local_experts").and_then(Value::as_u64).filter(|count| *count > 0);
        if experts.is_none() {
            settings.remove("num_local_experts");
        } else if self.name == "llama" {
            settings.insert("model_type".to_owned(), json!("mixtral"));
        } else {
            let layers = settings.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0).min(MAX_LAYERS);
            let dense = (0..layers).filter(|layer| !has(&format!("blk.{layer}.ffn_gate_inp.weight")));
            settings.insert("mlp_only_layers".to_owned(), dense.collect());
            settings.insert("norm_topk_prob".to_owned(), json!(true));
        }
    }

    /// What llama.cpp knows of a family, and no file says.
    fn say_what_files_do_not(&self, settings: &mut Map<String, Value>) {
        let number = |key: &str| settings.get(key).and_then(Value::as_u64);
        let [hidden, heads, layers, head_dim] =
            ["hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim"].map(|key| number(key).unwrap_or(0));
        let per_head = hidden.checked_div(heads).unwrap_or(0);
        let mut say = |key: &str, value: Value| {
            settings.entry(key).or_insert(value);
        };
        say("rope_theta", json!(10_000));
        match self.name {
            // The largest of each, 27 billion parameters, scales scores by another number than the others.
            "gemma2" if layers == 46 => say("query_pre_attn_scalar", json!(per_head)),
            "gemma3" if layers == 62 => say("query_pre_attn_scalar", json!(per_head)),
            "gemma2" | "gemma3" => say("query_pre_attn_scalar", json!(head_dim)),
            "granite" => say("attention_multiplier", json!((per_head.max(1) as f64).powf(-0.5))),
            _ => {}
        }
    }

    /// Mistral's models are of the architecture `llama`, and have a window.
    fn check_window(&self, metadata: &Metadata<'_>, settings: &mut Map<String, Value>) -> Result<()> {
        let window = settings.get("sliding_window").and_then(Value::as_u64).filter(|window| *window > 0);
        if window.is_none() {
            settings.remove("sliding_window");
        }
        match (self.name, window) {
            ("llama", Some(_)) if settings.get("model_type") == Some(&json!("llama")) => {
                settings.insert("model_type".to_owned(), json!("mistral"));
            }
            ("llama" | "gemma2" | "phi3", _) | (_, None) if self.name != "gemma3" => {}
            ("gemma3", None) => {
                settings.insert("sliding_window_pattern".to_owned(), json!(1));
            }
            ("gemma3", Some(_)) => {
                let pattern = metadata.whole("gemma3.attention.sliding_window_pattern", 1..=MAX_COUNT)?;
                settings.insert("sliding_window_pattern".to_owned(), json!(pattern.unwrap_or(6)));
            }
            _ => {
                let what = format!("{}.attention.sliding_window in {}", self.name, metadata.file);
                return unsupported(what, "one attention span for all layers is");
            }
        }
        Ok(())
    }

    fn rope_scaling(&self, metadata: &Metadata<'_>, factors: RopeFactors) -> Result<Option<Value>> {
        let key = |name: &str| format!("{}.rope.scaling.{name}", self.name);
        if metadata.flag(&key("finetuned"))? == Some(false) && self.name == "granite" {
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

    /// GGUF's name for a tensor of Hugging Face's, and which of several matrices in it. What the tables do not know keeps
    /// its name.
    pub(super) fn tensor_name(&self, name: &str) -> (String, Option<usize>) {
        if self.encoder {
            return (encoder::tensor_name(name), None);
        }
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

    /// What is wrong with `config.json`, with the names that GGUF has for its settings.
    pub(super) fn reword(&self, reason: String) -> String {
        if self.encoder {
            return encoder::reword(self.name, reason);
        }
        let scaling = [("original_max_position_embeddings", "rope.scaling.original_context_length")];
        let names = scaling.iter().chain(&WHOLE).chain(&REAL).chain(self.settings);
        names.fold(reason, |reason, (ours, theirs)| reason.replace(ours, &format!("{}.{theirs}", self.name)))
    }

    /// Whether control tokens take the white space behind them away, as those of Phi-3's own tokenizer do.
    pub(super) fn strips_behind_control(&self) -> bool {
        self.name == "phi3"
    }
}

/// Factors that frequencies of RoPE are divided by: of all contexts, or of long and short ones.
#[derive(Default)]
pub(super) struct RopeFactors {
    pub(super) all: Option<Vec<f32>>,
    pub(super) long: Option<Vec<f32>>,
    pub(super) short: Option<Vec<f32>>,
}
