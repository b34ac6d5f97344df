//! What an encoder is made of: the numbers of its `config.json`, checked.

use crate::transformer::config::unsupported;
use crate::transformer::rope::RopeSpec;
use crate::transformer::settings::{Settings, bad_model, shown};
use crate::transformer::{ModelSource, Rope};
use crate::{KvShape, Result};

const FILE: &str = "config.json";
/// No encoder comes near these. They keep every product of two sizes far below overflow.
const MAX_LAYERS: usize = 1 << 8;
const MAX_WIDTH: usize = 1 << 16;
const MAX_HEADS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_VOCABULARY: usize = 1 << 22;
const MAX_POSITIONS: usize = 1 << 16;
const MAX_TYPES: usize = 1 << 10;

/// The families of encoders that are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncoderFamily {
    /// BERT: all-MiniLM, bge, e5, gte. Learned positions, GELU, norms behind both blocks.
    Bert,
    /// RoBERTa and XLM-RoBERTa: multilingual-e5, bge-m3. BERT whose positions begin behind the padding token's.
    Roberta,
    /// nomic-embed-text: BERT with RoPE and a gated feed-forward block.
    NomicBert,
}

/// The families by the names that `model_type` has for them.
const FAMILIES: [(&str, EncoderFamily); 5] = [
    ("bert", EncoderFamily::Bert),
    ("roberta", EncoderFamily::Roberta),
    ("xlm-roberta", EncoderFamily::Roberta),
    ("camembert", EncoderFamily::Roberta),
    ("nomic_bert", EncoderFamily::NomicBert),
];

/// The shape of an encoder and the numbers that its forward pass needs: what `config.json` says, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// The family, from `model_type`.
    pub(super) family: EncoderFamily,
    /// Numbers in the hidden state of a token.
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// Numbers within a feed-forward block.
    pub(super) intermediate: usize,
    /// Rows of the embedding.
    pub(super) vocabulary: usize,
    /// Rows of the embedding of positions, or positions that RoPE was trained for.
    pub(super) positions: usize,
    /// The position of a text's first token.
    pub(super) first_position: usize,
    /// Rows of the embedding of token types; a text is of the first type.
    pub(super) types: usize,
    /// What is added to the variance in every norm.
    pub(super) norm_eps: f32,
    /// How queries and keys are rotated; not at all where positions are embedded.
    pub(super) rope: Rope,
    /// Whether the projections of attention have biases.
    pub(super) attention_bias: bool,
    /// Whether the projections into and out of a feed-forward block have biases.
    pub(super) mlp_bias: [bool; 2],
}

impl EncoderConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`](crate::Error::UnsupportedModel) for an encoder that would be computed wrongly,
    /// [`Error::BadModel`](crate::Error::BadModel) for a file that is missing, is no JSON, or holds numbers that make no
    /// sense.
    pub fn parse(source: &dyn ModelSource) -> Result<Self> {
        let file = Settings::read(source, FILE)?.ok_or_else(|| bad_model(FILE, "it is missing"))?;
        let family = family(&file)?;
        if file.get("quantization_config").is_some() {
            return unsupported("a checkpoint with quantization_config", "checkpoints in F32, F16 and BF16 are");
        }
        // The first nomic_bert was written in the words of GPT-2.
        let old = family == EncoderFamily::NomicBert && file.has("n_embd");
        let key = |new: &'static str, in_old: &'static str| if old { in_old } else { new };
        let hidden = file.count(key("hidden_size", "n_embd"), 1..=MAX_WIDTH)?;
        let heads_key = key("num_attention_heads", "n_head");
        let heads = file.count(heads_key, 1..=MAX_HEADS)?;
        let head_dim = match file.whole("head_dim", 2..=MAX_HEAD_DIM)? {
            Some(head_dim) if !old => head_dim,
            _ if !hidden.is_multiple_of(heads) => {
                let reason = format!("{} numbers cannot be cut into {heads} heads ({heads_key})", hidden);
                return Err(bad_model(FILE, reason));
            }
            _ => hidden / heads,
        };
        if !(2..=MAX_HEAD_DIM).contains(&head_dim) || !head_dim.is_multiple_of(2) || heads * head_dim > MAX_WIDTH {
            let reason = format!("a head has {head_dim} numbers: it must be an even number from 2 to {MAX_HEAD_DIM}");
            return Err(bad_model(FILE, reason));
        }
        let intermediate_key = key("intermediate_size", "n_inner");
        let intermediate = match file.whole(intermediate_key, 1..=MAX_WIDTH)? {
            None if old => 4 * hidden,
            None => file.count(intermediate_key, 1..=MAX_WIDTH)?,
            Some(found) => found,
        };
        let positions = file.count(key("max_position_embeddings", "n_positions"), 1..=MAX_POSITIONS)?;
        let first_position = match family {
            EncoderFamily::Roberta => file.whole("pad_token_id", 0..=MAX_POSITIONS)?.unwrap_or(1) + 1,
            _ => 0,
        };
        if first_position >= positions {
            let reason = format!("there are {positions} positions and the first of a text is {first_position}");
            return Err(bad_model(FILE, reason));
        }
        let norm_eps = file.real(key("layer_norm_eps", "layer_norm_epsilon"), 1e-14..=0.1)?;
        let spec = RopeSpec { head_dim, rotated: head_dim, theta: 1000.0, positions, context: positions };
        let rope = match family {
            EncoderFamily::NomicBert if old => rope_of_old_nomic(&file, head_dim)?,
            EncoderFamily::NomicBert => Rope::parse(&file, &spec, None)?,
            _ => Rope::none(head_dim),
        };
        match (family, old) {
            (EncoderFamily::NomicBert, true) => refuse_other_old_nomics(&file)?,
            (EncoderFamily::NomicBert, false) => only(&file, "hidden_act", &["silu"])?,
            _ => refuse_other_berts(&file)?,
        }
        let unless_said = |key: &str| Ok::<bool, crate::Error>(file.get(key).is_none() || file.flag(key)?);
        let (attention_bias, mlp_bias) = match (family, old) {
            (EncoderFamily::NomicBert, true) => {
                (unless_said("qkv_proj_bias")?, [unless_said("mlp_fc1_bias")?, unless_said("mlp_fc2_bias")?])
            }
            (EncoderFamily::NomicBert, false) => (false, [false; 2]),
            _ => (true, [true; 2]),
        };
        Ok(Self {
            family,
            hidden,
            layers: file.count(key("num_hidden_layers", "n_layer"), 1..=MAX_LAYERS)?,
            heads,
            head_dim,
            intermediate,
            vocabulary: file.count("vocab_size", 1..=MAX_VOCABULARY)?,
            positions,
            first_position,
            types: file.whole("type_vocab_size", 0..=MAX_TYPES)?.unwrap_or(2),
            norm_eps: norm_eps.unwrap_or(1e-12) as f32,
            rope,
            attention_bias,
            mlp_bias,
        })
    }

    /// The family.
    pub fn family(&self) -> EncoderFamily {
        self.family
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Numbers in a hidden state, and so in a vector.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Tokens that a text may have.
    pub fn max_tokens(&self) -> usize {
        self.positions - self.first_position
    }

    /// The shape of the keys and values that all layers use in turn.
    pub(super) fn kv_shape(&self) -> KvShape {
        KvShape { layers: 1, kv_heads: self.heads, head_dim: self.head_dim }
    }

    /// All that vectors depend on, for fingerprints.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let Self { family, hidden, layers, heads, head_dim, intermediate, vocabulary, .. } = self;
        let mut bytes = vec![*family as u8, self.attention_bias.into()];
        bytes.extend(self.mlp_bias.map(u8::from));
        let sizes = [*hidden, *layers, *heads, *head_dim, *intermediate, *vocabulary];
        let sizes = sizes.into_iter().chain([self.positions, self.first_position, self.types]);
        sizes.for_each(|size| bytes.extend((size as u64).to_le_bytes()));
        let numbers = [self.norm_eps, self.rope.attention_factor];
        numbers.iter().chain(&self.rope.inverse_frequencies).for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes
    }
}

fn family(file: &Settings<'_>) -> Result<EncoderFamily> {
    let name = file.text("model_type")?.ok_or_else(|| bad_model(FILE, "model_type is missing"))?;
    match FAMILIES.iter().find(|(known, _)| *known == name) {
        Some((_, family)) => Ok(*family),
        None => unsupported(
            format!("an encoder of model_type {}", shown(name)),
            "bert, roberta, xlm-roberta, camembert and nomic_bert are",
        ),
    }
}

/// Refuses a setting that is not one of these; the first of them goes without saying.
fn only(file: &Settings<'_>, key: &str, known: &[&str]) -> Result<()> {
    match file.text(key)? {
        Some(other) if !known.contains(&other) => unsupported(
            format!("{key} {}", shown(other)),
            "an encoder is computed as BERT and nomic-embed-text are: hidden_act gelu, activation_function swiglu, \
             position_embedding_type absolute",
        ),
        _ => Ok(()),
    }
}

fn refuse_other_berts(file: &Settings<'_>) -> Result<()> {
    only(file, "hidden_act", &["gelu"])?;
    only(file, "position_embedding_type", &["absolute"])?;
    for key in ["is_decoder", "add_cross_attention"] {
        if file.flag(key)? {
            return unsupported(format!("an encoder with {key}"), "attention in both directions within a text is");
        }
    }
    Ok(())
}

fn refuse_other_old_nomics(file: &Settings<'_>) -> Result<()> {
    only(file, "activation_function", &["swiglu"])?;
    for key in ["prenorm", "parallel_block", "use_rms_norm", "causal", "rotary_emb_interleaved"] {
        if file.flag(key)? {
            return unsupported(format!("a nomic_bert with {key}"), "those like nomic-embed-text-v1 and v1.5 are");
        }
    }
    for key in ["rotary_emb_scale_base", "rotary_scaling_factor", "num_experts"] {
        if file.get(key).is_some_and(|value| value.as_f64() != Some(0.0)) {
            return unsupported(format!("a nomic_bert with {key}"), "those like nomic-embed-text-v1 and v1.5 are");
        }
    }
    Ok(())
}

/// RoPE, as the first nomic_bert spells it.
fn rope_of_old_nomic(file: &Settings<'_>, head_dim: usize) -> Result<Rope> {
    match file.real("rotary_emb_fraction", 0.0..=1.0)? {
        Some(1.0) => Ok(Rope::plain(file.real("rotary_emb_base", 1.1..=1e12)?.unwrap_or(10_000.0), head_dim)),
        found => unsupported(
            format!("a nomic_bert with rotary_emb_fraction {}", found.unwrap_or(0.0)),
            "those whose heads are rotated as a whole are",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Error;

    fn bert() -> Value {
        json!({ "model_type": "bert", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 64, "type_vocab_size": 2,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12 })
    }

    /// The settings of nomic-embed-text-v1.5, smaller.
    fn nomic() -> Value {
        json!({ "model_type": "nomic_bert", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 8192,
            "vocab_size": 100, "type_vocab_size": 2, "activation_function": "swiglu", "layer_norm_epsilon": 1e-12,
            "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false,
            "rotary_emb_scale_base": null, "rotary_scaling_factor": null, "qkv_proj_bias": false, "mlp_fc1_bias": false,
            "mlp_fc2_bias": false, "prenorm": false, "causal": false, "use_rms_norm": false, "parallel_block": false })
    }

    fn parse(mut config: Value, changes: Value) -> Result<EncoderConfig> {
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        EncoderConfig::parse(&[("config.json", config.to_string().as_bytes())])
    }

    #[test]
    fn both_spellings_of_nomic_bert_are_one_model() {
        let new = json!({ "model_type": "nomic_bert", "hidden_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 8192,
            "type_vocab_size": 2, "hidden_act": "silu", "layer_norm_eps": 1e-12,
            "rope_parameters": { "rope_theta": 1000.0, "rope_type": "default" } });
        assert_eq!(parse(new, json!({})).unwrap(), parse(nomic(), json!({})).unwrap());
    }

    #[test]
    fn robertas_positions_begin_behind_the_padding_tokens() {
        let roberta = json!({ "model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1 });
        let config = parse(bert(), roberta).unwrap();
        assert_eq!((config.first_position, config.max_tokens()), (2, 512));
        assert_eq!(parse(bert(), json!({})).unwrap().max_tokens(), 64);
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused() {
        let of_bert = [
            json!({ "hidden_act": "relu" }),
            json!({ "hidden_act": "gelu_new" }),
            json!({ "position_embedding_type": "relative_key" }),
            json!({ "is_decoder": true }),
            json!({ "model_type": "distilbert" }),
            json!({ "quantization_config": {} }),
        ];
        let of_nomic = [
            json!({ "activation_function": "gelu" }),
            json!({ "prenorm": true }),
            json!({ "rotary_emb_fraction": 0.5 }),
            json!({ "rotary_emb_fraction": null }),
            json!({ "rotary_emb_interleaved": true }),
            json!({ "rotary_scaling_factor": 2 }),
            json!({ "num_experts": 8 }),
            json!({ "causal": true }),
        ];
        let refused = |config: fn() -> Value, change: Value| {
            let found = parse(config(), change.clone());
            assert!(matches!(found, Err(Error::UnsupportedModel { .. })), "{change}: {found:?}");
        };
        of_bert.into_iter().for_each(|change| refused(bert, change));
        of_nomic.into_iter().for_each(|change| refused(nomic, change));
    }

    #[test]
    fn numbers_that_make_no_sense_are_errors() {
        for change in [
            json!({ "hidden_size": 0 }),
            json!({ "hidden_size": 1_000_000_000_000_u64 }),
            json!({ "num_attention_heads": 5 }),
            json!({ "num_attention_heads": 16 }),
            json!({ "num_hidden_layers": 0 }),
            json!({ "num_hidden_layers": 100_000 }),
            json!({ "vocab_size": -1 }),
            json!({ "max_position_embeddings": 1_000_000_000 }),
            json!({ "layer_norm_eps": "small" }),
            json!({ "layer_norm_eps": -1 }),
            json!({ "model_type": "roberta", "pad_token_id": 63 }),
            json!({ "model_type": null }),
        ] {
            let found = parse(bert(), change.clone());
            assert!(matches!(found, Err(Error::BadModel { .. })), "{change}: {found:?}");
        }
    }

    #[test]
    fn every_setting_is_part_of_the_fingerprint() {
        let all: std::collections::BTreeSet<Vec<u8>> = [
            (bert(), json!({})),
            (bert(), json!({ "model_type": "roberta" })),
            (bert(), json!({ "model_type": "roberta", "pad_token_id": 0 })),
            (bert(), json!({ "hidden_size": 96 })),
            (bert(), json!({ "num_hidden_layers": 3 })),
            (bert(), json!({ "num_attention_heads": 2 })),
            (bert(), json!({ "intermediate_size": 48 })),
            (bert(), json!({ "vocab_size": 101 })),
            (bert(), json!({ "max_position_embeddings": 65 })),
            (bert(), json!({ "type_vocab_size": 1 })),
            (bert(), json!({ "layer_norm_eps": 1e-5 })),
            (nomic(), json!({})),
            (nomic(), json!({ "rotary_emb_base": 10_000 })),
            (nomic(), json!({ "qkv_proj_bias": true })),
            (nomic(), json!({ "mlp_fc1_bias": true })),
            (nomic(), json!({ "mlp_fc2_bias": true })),
        ]
        .into_iter()
        .map(|(config, change)| parse(config, change).unwrap().bytes())
        .collect();
        assert_eq!(all.len(), 16);
    }
}
