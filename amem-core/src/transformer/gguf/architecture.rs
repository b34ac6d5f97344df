//! What the families of models call their settings and tensors in GGUF.
//!
//! An architecture is a table: a family that the forward pass knows needs no more than its names here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::header::{Header, Metadata};
use crate::Result;
use crate::transformer::Config;
use crate::transformer::config::unsupported;
use crate::transformer::settings::bad_model;

/// A family of models, as GGUF names it.
pub(super) struct Architecture {
    /// `general.architecture`, with which the keys of its settings begin.
    pub(super) name: &'static str,
    /// What `config.json` calls it.
    model_type: &'static str,
    /// Whether rows of queries and keys stand in the order of llama.cpp's own RoPE.
    interleaved: bool,
}

const ARCHITECTURES: [Architecture; 3] = [
    Architecture { name: "llama", model_type: "llama", interleaved: true },
    Architecture { name: "qwen2", model_type: "qwen2", interleaved: false },
    Architecture { name: "qwen3", model_type: "qwen3", interleaved: false },
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
const NEUTRAL: [(&str, f64); 14] = [
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
    ("rope.scaling.yarn_attn_factor", 1.0),
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
const MAX_COUNT: usize = u32::MAX as usize;

impl Architecture {
    /// The architecture that a file states.
    pub(super) fn of(metadata: &Metadata<'_>) -> Result<&'static Self> {
        let name = metadata.word("general.architecture")?;
        match ARCHITECTURES.iter().find(|known| known.name == name) {
            Some(known) => Ok(known),
            None => {
                let name: String = name.chars().take(60).collect();
                unsupported(format!("{}: architecture {name}", metadata.file), "llama, qwen2 and qwen3 are")
            }
        }
    }

    /// The settings of `config.json`.
    pub(super) fn settings(
        &self,
        metadata: &Metadata<'_>,
        headers: &[Header<'_>],
        rope_factors: Option<Vec<f32>>,
    ) -> Result<Map<String, Value>> {
        let key = |name: &str| format!("{}.{name}", self.name);
        for (name, neutral) in NEUTRAL {
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
        for (ours, theirs) in REAL {
            if let Some(number) = metadata.real(&key(theirs))? {
                settings.insert(ours.to_owned(), json!(number));
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
        settings.insert("tie_word_embeddings".to_owned(), json!(!shapes.contains_key("output.weight")));
        if self.model_type != "qwen2" {
            settings.insert("attention_bias".to_owned(), json!(shapes.contains_key("blk.0.attn_q.bias")));
        }
        self.check_heads(metadata, &settings)?;
        self.check_window(metadata, &mut settings)?;
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

    /// Whole heads are rotated, and keys are as long as values.
    fn check_heads(&self, metadata: &Metadata<'_>, settings: &Map<String, Value>) -> Result<()> {
        let whole = |name: &str| metadata.whole(&format!("{}.{name}", self.name), 0..=MAX_COUNT);
        let number = |key: &str| settings.get(key).and_then(Value::as_u64);
        let derived = number("hidden_size").zip(number("num_attention_heads")).and_then(|(h, n)| h.checked_div(n));
        let head_dim = number("head_dim").or(derived);
        for name in ["attention.value_length", "rope.dimension_count"] {
            let found = whole(name)?.map(|found| found as u64).filter(|found| Some(*found) != head_dim);
            if let Some(found) = found {
                let what = format!("{}.{name} {found} in {}", self.name, metadata.file);
                return unsupported(what, "heads whose keys and values are as long as what is rotated of them are");
            }
        }
        Ok(())
    }

    /// Mistral's models are of the architecture `llama`, and have a window.
    fn check_window(&self, metadata: &Metadata<'_>, settings: &mut Map<String, Value>) -> Result<()> {
        match settings.get("sliding_window").and_then(Value::as_u64) {
            None => {}
            Some(0) => {
                settings.remove("sliding_window");
            }
            Some(_) if self.model_type == "llama" => {
                settings.insert("model_type".to_owned(), json!("mistral"));
            }
            Some(_) => {
                let what = format!("{}.attention.sliding_window in {}", self.name, metadata.file);
                return unsupported(what, "one attention span for all layers is");
            }
        }
        Ok(())
    }

    fn rope_scaling(&self, metadata: &Metadata<'_>, factors: Option<Vec<f32>>) -> Result<Option<Value>> {
        let key = |name: &str| format!("{}.rope.scaling.{name}", self.name);
        let kind = metadata.text(&key("type"))?.filter(|kind| *kind != "none");
        match (kind, factors) {
            (None, None) => Ok(None),
            (None, Some(factors)) => Ok(Some(json!({ "rope_type": "factors", "factors": factors }))),
            (Some(kind), None) => {
                let mut scaling = Map::new();
                scaling.insert("rope_type".to_owned(), json!(kind.chars().take(60).collect::<String>()));
                for (ours, theirs) in
                    [("factor", "factor"), ("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")]
                {
                    if let Some(number) = metadata.real(&key(theirs))? {
                        scaling.insert(ours.to_owned(), json!(number));
                    }
                }
                if let Some(original) = metadata.whole(&key("original_context_length"), 0..=MAX_COUNT)? {
                    scaling.insert("original_max_position_embeddings".to_owned(), json!(original));
                }
                Ok(Some(Value::Object(scaling)))
            }
            (Some(_), Some(_)) => {
                let what = format!("{} together with rope_freqs.weight in {}", key("type"), metadata.file);
                unsupported(what, "one of the two is")
            }
        }
    }

    /// GGUF's name for a tensor of Hugging Face's. What the table does not know keeps its name.
    pub(super) fn tensor_name(&self, name: &str) -> String {
        let Some((stem, kind)) = name.rsplit_once('.') else { return name.to_owned() };
        if let Some((_, theirs)) = MODEL.iter().find(|(ours, _)| *ours == stem) {
            return format!("{theirs}.{kind}");
        }
        let layer = stem.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        match layer.and_then(|(layer, part)| Some((layer, LAYER.iter().find(|(ours, _)| *ours == part)?.1))) {
            Some((layer, theirs)) => format!("blk.{layer}.{theirs}.{kind}"),
            None => name.to_owned(),
        }
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
        let scaling = [("original_max_position_embeddings", "rope.scaling.original_context_length")];
        let names = scaling.iter().chain(&WHOLE).chain(&REAL);
        names.fold(reason, |reason, (ours, theirs)| reason.replace(ours, &format!("{}.{theirs}", self.name)))
    }
}
