//! What a model is made of: the numbers of its `config.json`, checked.
//!
//! Four families share one graph and differ in flags: Llama 2 and 3, Mistral, Qwen2 and Qwen3. What the graph cannot
//! express is refused with its reason, rather than computed wrongly.

use super::settings::{Settings, bad_model};
use super::{ModelSource, Rope};
use crate::{Error, KvShape, Result, Token};

const FILE: &str = "config.json";
/// No model comes near these. They keep every product of two sizes far below overflow.
const MAX_LAYERS: usize = 1 << 10;
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_VOCABULARY: usize = 1 << 22;
const MAX_CONTEXT: usize = 1 << 28;

/// The families of models that are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2, 3 and their like.
    Llama,
    /// Mistral: Llama with a window on attention.
    Mistral,
    /// Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.
    Qwen2,
    /// Qwen3: Llama with norms on the heads of queries and keys.
    Qwen3,
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
    /// Numbers between the gate and the down projection of a layer.
    pub(super) intermediate: usize,
    /// Rows of the embedding.
    pub(super) vocabulary: usize,
    /// Tokens that a context may hold: `max_position_embeddings`, whatever the rope scaling.
    pub(super) context: usize,
    /// What is added to the mean square in every norm.
    pub(super) norm_eps: f32,
    /// How queries and keys are rotated to their positions.
    pub(super) rope: Rope,
    /// How many tokens a token sees, itself included; all before it if `None`.
    pub(super) window: Option<usize>,
    /// Whether the embedding is the head too.
    pub(super) tied: bool,
    /// Whether queries, keys and values have biases.
    pub(super) qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub(super) o_bias: bool,
    /// Whether each head of queries and keys is normed before rotation.
    pub(super) qk_norm: bool,
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
        Self::read(source).map_err(|error| match source.gguf() {
            Some(gguf) => gguf.blame(error),
            None => error,
        })
    }

    fn read(source: &dyn ModelSource) -> Result<Self> {
        let file = Settings::read(source, FILE)?.ok_or_else(|| bad_model(FILE, "it is missing"))?;
        let family = family(&file)?;
        refuse_what_the_graph_lacks(&file)?;

        let hidden = file.count("hidden_size", 1..=MAX_WIDTH)?;
        let layers = file.count("num_hidden_layers", 1..=MAX_LAYERS)?;
        let heads = file.count("num_attention_heads", 1..=MAX_HEADS)?;
        let kv_heads = file.whole("num_key_value_heads", 1..=heads)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("num_attention_heads is {heads}: it must be a multiple of the {kv_heads} key heads");
            return Err(bad_model(FILE, reason));
        }
        let head_dim = head_dim(&file, family, hidden, heads)?;
        let context = file.count("max_position_embeddings", 1..=MAX_CONTEXT)?;
        let attention_bias = attention_bias(&file, family)?;
        Ok(Self {
            family,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate: file.count("intermediate_size", 1..=MAX_WIDTH)?,
            vocabulary: file.count("vocab_size", 1..=MAX_VOCABULARY)?,
            context,
            norm_eps: file.real("rms_norm_eps", 1e-12..=0.1)?.unwrap_or(1e-6) as f32,
            rope: Rope::parse(&file, head_dim, context)?,
            window: window(&file, family)?,
            tied: file.flag("tie_word_embeddings")?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias,
            qk_norm: family == Family::Qwen3,
            stops: file.tokens("eos_token_id")?,
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

    /// How queries and keys are rotated.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// The shape of this model's KV.
    pub fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

fn family(file: &Settings<'_>) -> Result<Family> {
    match file.text("model_type")? {
        Some("llama") => Ok(Family::Llama),
        Some("mistral") => Ok(Family::Mistral),
        Some("qwen2") => Ok(Family::Qwen2),
        Some("qwen3") => Ok(Family::Qwen3),
        Some(other) => {
            let what = format!("model_type {}", other.chars().take(60).collect::<String>());
            unsupported(what, "llama, mistral, qwen2 and qwen3 are")
        }
        None => Err(bad_model(FILE, "model_type is missing")),
    }
}

fn refuse_what_the_graph_lacks(file: &Settings<'_>) -> Result<()> {
    if let Some(act) = file.text("hidden_act")?.filter(|act| !matches!(*act, "silu" | "swish")) {
        return unsupported(format!("hidden_act {}", act.chars().take(60).collect::<String>()), "silu is");
    }
    if file.flag("mlp_bias")? {
        return unsupported("mlp_bias", "feed-forward layers without biases are");
    }
    if file.get("quantization_config").is_some() {
        return unsupported("a checkpoint with quantization_config", "checkpoints in F32, F16 and BF16 are");
    }
    if file.real("partial_rotary_factor", 0.0..=1.0)?.is_some_and(|share| share != 1.0) {
        return unsupported("partial_rotary_factor", "rotation of whole heads is");
    }
    Ok(())
}

fn head_dim(file: &Settings<'_>, family: Family, hidden: usize, heads: usize) -> Result<usize> {
    let dim = match file.whole("head_dim", 2..=MAX_HEAD_DIM)? {
        Some(dim) => dim,
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

/// Whether all four projections of attention have biases. Qwen2's three are not a setting.
fn attention_bias(file: &Settings<'_>, family: Family) -> Result<bool> {
    let bias = file.flag("attention_bias")?;
    if bias && matches!(family, Family::Mistral | Family::Qwen2) {
        return unsupported(format!("attention_bias in {family:?}"), "it is in llama and qwen3");
    }
    Ok(bias)
}

/// Only Mistral's window is a setting of the whole model; elsewhere it would differ from layer to layer.
fn window(file: &Settings<'_>, family: Family) -> Result<Option<usize>> {
    if file.flag("use_sliding_window")? {
        return unsupported("use_sliding_window", "one attention span for all layers is");
    }
    let window = match family {
        Family::Mistral => file.whole("sliding_window", 1..=MAX_CONTEXT)?,
        _ => None,
    };
    let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
    match file.list("layer_types")?.iter().find(|layer| layer.as_str() != Some(kind)) {
        Some(_) => unsupported("layer_types with different kinds of layers", "one attention span for all layers is"),
        None => Ok(window),
    }
}

/// [`Error::UnsupportedModel`]; `supported` ends the sentence "it is not supported: …".
pub(super) fn unsupported<T>(what: impl Into<String>, supported: &'static str) -> Result<T> {
    Err(Error::UnsupportedModel { what: what.into(), supported })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::transformer::fixtures::{Files, demo, demo_with};

    fn parse(settings: Value) -> Result<Config> {
        Config::parse(&demo_with(settings))
    }

    #[test]
    fn the_demo_model_is_read() {
        let config = Config::parse(&demo()).unwrap();
        let sizes = [config.hidden, config.layers, config.heads, config.kv_heads, config.head_dim, config.intermediate];
        assert_eq!(sizes, [128, 5, 4, 2, 64, 192]);
        assert_eq!((config.family, config.vocabulary, config.context), (Family::Llama, 1536, 2048));
        assert_eq!((config.norm_eps, config.tied, config.window), (1e-5, true, None));
        assert_eq!((config.qkv_bias, config.o_bias, config.qk_norm), (false, false, false));
        assert_eq!((config.stops.clone(), config.rope.clone()), (vec![6], Rope::plain(10_000.0, 64)));
        assert_eq!(config.kv_shape().token_numbers(), 5 * 2 * 2 * 64);
    }

    #[test]
    fn families_differ_in_flags() {
        let flags = |settings| {
            let config = parse(settings).unwrap();
            (config.qkv_bias, config.o_bias, config.qk_norm, config.window)
        };
        let mistral = json!({ "model_type": "mistral", "sliding_window": 4096, "attention_bias": null });
        assert_eq!(flags(mistral), (false, false, false, Some(4096)));
        assert_eq!(flags(json!({ "model_type": "mistral", "sliding_window": null })), (false, false, false, None));
        let qwen2 = json!({ "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": false });
        assert_eq!(flags(qwen2), (true, false, false, None));
        assert_eq!(flags(json!({ "model_type": "qwen3" })), (false, false, true, None));
        assert_eq!(flags(json!({ "attention_bias": true })), (true, true, false, None));
    }

    #[test]
    fn the_head_size_is_derived_where_the_family_allows_it() {
        assert_eq!(parse(json!({ "head_dim": null })).unwrap().head_dim, 32);
        assert!(parse(json!({ "head_dim": null, "model_type": "qwen3" })).is_err());
        assert!(parse(json!({ "head_dim": null, "hidden_size": 130 })).is_err());
        assert!(parse(json!({ "head_dim": null, "hidden_size": 12 })).is_err());
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused_with_a_reason() {
        let cases = [
            (json!({ "model_type": "gpt_oss" }), "gpt_oss"),
            (json!({ "hidden_act": "gelu" }), "gelu"),
            (json!({ "mlp_bias": true }), "mlp_bias"),
            (json!({ "model_type": "mistral", "attention_bias": true }), "attention_bias"),
            (json!({ "quantization_config": {} }), "quantization_config"),
            (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor"),
            (json!({ "model_type": "qwen2", "use_sliding_window": true }), "use_sliding_window"),
            (json!({ "layer_types": ["full_attention", "sliding_attention"] }), "layer_types"),
        ];
        for (settings, named) in cases {
            let error = parse(settings).expect_err(named);
            assert!(matches!(error, Error::UnsupportedModel { .. }), "{error}");
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn numbers_out_of_bounds_are_refused_by_name() {
        let keys = [
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
        ];
        for key in keys {
            for value in [json!(0), json!(-1), json!(1.5), json!(u64::MAX), json!(1e308), json!("8"), json!([8])] {
                let error = parse(json!({ key: value })).expect_err(key);
                assert!(matches!(error, Error::BadModel { .. }) && error.to_string().contains(key), "{error}");
            }
        }
        assert!(parse(json!({ "num_key_value_heads": 3 })).is_err());
        assert!(parse(json!({ "head_dim": 63 })).is_err());
        assert!(parse(json!({ "rms_norm_eps": 0 })).is_err());
        assert!(parse(json!({ "eos_token_id": [1, -1] })).is_err());
    }

    #[test]
    fn a_file_that_is_no_object_is_refused() {
        for bytes in ["", "[]", "{", "null", "\u{0}", "{\"model_type\":\"llama\"}"] {
            let files = Files::from([("config.json".into(), bytes.into())]);
            assert!(matches!(Config::parse(&files), Err(Error::BadModel { .. })), "{bytes:?}");
        }
        assert!(matches!(Config::parse(&Files::new()), Err(Error::BadModel { .. })));
    }

    proptest! {
        #[test]
        fn no_damage_to_the_file_panics(at in 0usize..575, byte: u8, cut in 0usize..576) {
            let mut files = demo();
            let config = files.get_mut("config.json").unwrap();
            config[at] = byte;
            config.truncate(cut.max(1));
            let _ = Config::parse(&files);
        }
    }
}
