//! Encoders in GGUF, in the words of the files that sentence-transformers writes.
//!
//! A file says how tokens become one vector, but not whether vectors are made one long: they are, as llama.cpp does it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::header::{Header, Metadata};
use super::{CONFIG, tokenizer};
use crate::Result;
use crate::transformer::config::unsupported;
use crate::transformer::settings::{bad_model, shown};

/// A family of encoders, as GGUF names it.
pub(super) struct Encoder {
    /// `general.architecture`, with which the keys of its settings begin.
    pub(super) name: &'static str,
    /// What `config.json` calls it.
    model_type: &'static str,
}

pub(super) static ENCODERS: [Encoder; 2] =
    [Encoder { name: "bert", model_type: "bert" }, Encoder { name: "nomic-bert", model_type: "nomic_bert" }];

/// Whole numbers: `config.json`'s key, and GGUF's after the architecture's name.
const WHOLE: [(&str, &str); 5] = [
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
];

/// Other numbers.
const REAL: [(&str, &str); 2] = [("layer_norm_eps", "attention.layer_norm_epsilon"), ("rope_theta", "rope.freq_base")];

/// Settings that change what is computed, and with which value, beside 0, they do not.
const NEUTRAL: [(&str, f64); 6] = [
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.sliding_window", 0.0),
    ("expert_count", 0.0),
    ("rope.scaling.factor", 1.0),
    ("rope.scale_linear", 1.0),
];

/// Tensors outside of layers: the file's of Hugging Face and GGUF's.
const MODEL: [(&str, &str); 5] = [
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("emb_ln", "token_embd_norm"),
];

/// What stands before a layer's number.
const LAYERS: [&str; 2] = ["encoder.layer.", "encoder.layers."];

/// Tensors of a layer, BERT's and then nomic-embed-text's.
const LAYER: [(&str, &str); 15] = [
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("intermediate.dense", "ffn_up"),
    ("output.dense", "ffn_down"),
    ("output.LayerNorm", "layer_output_norm"),
    ("attn.Wqkv", "attn_qkv"),
    ("attn.out_proj", "attn_output"),
    ("norm1", "attn_output_norm"),
    ("mlp.fc11", "ffn_up"),
    ("mlp.fc12", "ffn_gate"),
    ("mlp.fc2", "ffn_down"),
    ("norm2", "layer_output_norm"),
];

/// How llama.cpp numbers the ways to make one vector.
const POOLINGS: [&str; 5] = ["none", "mean", "cls", "last", "rank"];
const MAX_COUNT: usize = u32::MAX as usize;

impl Encoder {
    /// GGUF's name for a tensor. What the tables do not know keeps its name.
    pub(super) fn tensor_name(&self, name: &str) -> String {
        let known = |(stem, kind): (&str, &str)| {
            if let Some((_, theirs)) = MODEL.iter().find(|(ours, _)| *ours == stem) {
                return Some(format!("{theirs}.{kind}"));
            }
            let layer = LAYERS.iter().find_map(|prefix| stem.strip_prefix(prefix));
            let (layer, part) = layer?.split_once('.')?;
            let (_, theirs) = LAYER.iter().find(|(ours, _)| *ours == part)?;
            Some(format!("blk.{layer}.{theirs}.{kind}"))
        };
        name.rsplit_once('.').and_then(known).unwrap_or_else(|| name.to_owned())
    }

    /// What is wrong with `config.json`, with the names that GGUF has for its settings.
    pub(super) fn reword(&self, reason: String) -> String {
        let names = WHOLE.iter().chain(&REAL);
        names.fold(reason, |reason, (ours, theirs)| reason.replace(ours, &format!("{}.{theirs}", self.name)))
    }

    /// All files of an encoder's directory but its weights.
    pub(super) fn files(
        &self,
        metadata: &Metadata<'_>,
        headers: &[Header<'_>],
    ) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        let shape = |tensor: &str| headers.iter().find_map(|header| Some(header.tensors.get(tensor)?.shape.as_slice()));
        let Some([vocabulary, _]) = shape("token_embd.weight") else {
            return Err(bad_model(metadata.file, "tensor token_embd.weight is missing, or is no matrix"));
        };
        let types = shape("token_types.weight").map_or(0, |shape| shape.first().copied().unwrap_or(0));
        let config = self.config(metadata, *vocabulary, types)?;
        tokenizer::check_count(metadata, *vocabulary)?;
        let mut files = BTreeMap::from([
            (CONFIG, Value::Object(config).to_string().into_bytes()),
            ("tokenizer.json", tokenizer::word_pieces(metadata)?),
        ]);
        if let Some(pooling) = self.pooling(metadata)? {
            let module = |kind: &str, path: &str| json!({ "type": format!("sentence_transformers.models.{kind}"), "path": path });
            let modules = json!([module("Transformer", ""), module("Pooling", "1_Pooling"), module("Normalize", "")]);
            files.insert("modules.json", modules.to_string().into_bytes());
            files.insert("1_Pooling/config.json", json!({ "pooling_mode": pooling }).to_string().into_bytes());
        }
        Ok(files)
    }

    /// The settings of `config.json`.
    fn config(&self, metadata: &Metadata<'_>, vocabulary: usize, types: usize) -> Result<Map<String, Value>> {
        let key = |name: &str| format!("{}.{name}", self.name);
        let refused = |name: &str, value: &dyn std::fmt::Display| {
            let what = format!("{} {value} in {}", key(name), metadata.file);
            unsupported(what, "encoders like BERT and nomic-embed-text without it are")
        };
        for (name, neutral) in NEUTRAL {
            if let Some(value) = metadata.real(&key(name))?.filter(|value| ![0.0, neutral].contains(value)) {
                return refused(name, &value);
            }
        }
        if metadata.flag(&key("attention.causal"))? == Some(true) {
            return refused("attention.causal", &true);
        }
        if let Some(kind) = metadata.text(&key("rope.scaling.type"))?.filter(|kind| *kind != "none") {
            return refused("rope.scaling.type", &shown(kind));
        }
        let mut settings = Map::new();
        let mut set = |name: &str, value: Value| drop(settings.insert(name.to_owned(), value));
        set("model_type", json!(self.model_type));
        for (ours, theirs) in WHOLE {
            if let Some(number) = metadata.whole(&key(theirs), 0..=MAX_COUNT)? {
                set(ours, json!(number));
            }
        }
        // What llama.cpp takes where a file does not say.
        set("rope_theta", json!(10_000));
        for (ours, theirs) in REAL {
            if let Some(number) = metadata.real(&key(theirs))? {
                set(ours, json!(number));
            }
        }
        set("vocab_size", json!(vocabulary));
        set("type_vocab_size", json!(types));
        Ok(settings)
    }

    /// How tokens become one vector, if the file says so.
    fn pooling(&self, metadata: &Metadata<'_>) -> Result<Option<&'static str>> {
        let key = format!("{}.pooling_type", self.name);
        let Some(number) = metadata.whole(&key, 0..=MAX_COUNT)? else { return Ok(None) };
        match POOLINGS.get(number).copied() {
            Some("none") => Ok(None),
            Some(known @ ("mean" | "cls")) => Ok(Some(known)),
            other => {
                let what = format!("{key} {number} ({}) in {}", other.unwrap_or("unknown"), metadata.file);
                unsupported(what, "1 (mean) and 2 (cls) are")
            }
        }
    }
}
