//! What the targets share: the demo model's files, with one of them in the fuzzer's hands, the configuration that fuzzed
//! weights are read for, an encoder, residency policies, recallers and segment files.

pub mod segments;

use std::collections::BTreeMap;
use std::sync::Arc;

use amem_core::recall::{Dense, Embedder, Hybrid, Lexical};
use amem_core::residency::{FairShare, Gdsf, Lfu, Lru, S3Fifo, SecondUse, Value};
use amem_core::transformer::{Config, WeightFeedForward, WeightLayer, WeightTensor};
use amem_core::{Recaller, ResidencyPolicy};
use async_trait::async_trait;
use safetensors::tensor::{Dtype, TensorView, serialize};

/// The demo model's files, this one replaced by (or added as) `bytes`.
pub fn demo_with(name: &str, bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> =
        amem_demo::files().into_iter().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
    files.insert(name.to_owned(), bytes.to_vec());
    files
}

/// The tensors that every layer has.
pub fn tensors<'a>(layer: &WeightLayer<'a>) -> Vec<WeightTensor<'a>> {
    let blocks = match &layer.feed_forward {
        WeightFeedForward::Mlp(mlp) => std::slice::from_ref(mlp),
        WeightFeedForward::Experts { experts, .. } => experts.as_slice(),
    };
    let blocks = blocks.iter().flat_map(|mlp| [mlp.gate, mlp.up, mlp.down]);
    [layer.q, layer.k, layer.v, layer.o].into_iter().chain(blocks).chain(layer.attention_norm).collect()
}

/// The configuration of the smallest model that has every kind of tensor: a few hundred numbers.
pub fn tiny_config() -> Config {
    let text = br#"{ "model_type": "qwen3", "attention_bias": true, "hidden_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 4, "vocab_size": 8,
        "max_position_embeddings": 16, "tie_word_embeddings": false }"#;
    Config::parse(&[("config.json", text.as_slice())]).expect("these settings make sense")
}

/// Every tensor that [`tiny_config`] asks for, and its shape.
pub fn tiny_tensors() -> Vec<(&'static str, Vec<usize>)> {
    vec![
        ("model.embed_tokens.weight", vec![8, 4]),
        ("lm_head.weight", vec![8, 4]),
        ("model.norm.weight", vec![4]),
        ("model.layers.0.input_layernorm.weight", vec![4]),
        ("model.layers.0.post_attention_layernorm.weight", vec![4]),
        ("model.layers.0.self_attn.q_proj.weight", vec![4, 4]),
        ("model.layers.0.self_attn.q_proj.bias", vec![4]),
        ("model.layers.0.self_attn.k_proj.weight", vec![2, 4]),
        ("model.layers.0.self_attn.k_proj.bias", vec![2]),
        ("model.layers.0.self_attn.v_proj.weight", vec![2, 4]),
        ("model.layers.0.self_attn.v_proj.bias", vec![2]),
        ("model.layers.0.self_attn.o_proj.weight", vec![4, 4]),
        ("model.layers.0.self_attn.o_proj.bias", vec![4]),
        ("model.layers.0.self_attn.q_norm.weight", vec![2]),
        ("model.layers.0.self_attn.k_norm.weight", vec![2]),
        ("model.layers.0.mlp.gate_proj.weight", vec![4, 4]),
        ("model.layers.0.mlp.up_proj.weight", vec![4, 4]),
        ("model.layers.0.mlp.down_proj.weight", vec![4, 4]),
    ]
}

/// The settings of the smallest encoder, of four numbers and one layer.
pub const ENCODER_CONFIG: &str = r#"{"model_type":"bert","hidden_size":4,"num_hidden_layers":1,"num_attention_heads":2,
    "intermediate_size":6,"vocab_size":8,"max_position_embeddings":6,"type_vocab_size":2,"hidden_act":"gelu",
    "layer_norm_eps":1e-12}"#;

/// Its modules.
pub const ENCODER_MODULES: &str = r#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
    {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"},
    {"idx":2,"name":"2","path":"2_Normalize","type":"sentence_transformers.models.Normalize"}]"#;

/// How it pools.
pub const ENCODER_POOLING: &str = r#"{"word_embedding_dimension":4,"pooling_mode_mean_tokens":true,
    "pooling_mode_cls_token":false}"#;

/// Its files.
pub fn tiny_encoder() -> BTreeMap<String, Vec<u8>> {
    let tokenizer = r#"{"version":"1.0","pre_tokenizer":{"type":"Whitespace"},
        "model":{"type":"WordLevel","vocab":{"u":0,"a":1,"b":2},"unk_token":"u"}}"#;
    let layer = |name: &str| format!("encoder.layer.0.{name}");
    let tensors: Vec<(String, Vec<usize>)> = [
        ("embeddings.word_embeddings.weight".to_owned(), vec![8, 4]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![6, 4]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, 4]),
        (layer("intermediate.dense.weight"), vec![6, 4]),
        (layer("intermediate.dense.bias"), vec![6]),
        (layer("output.dense.weight"), vec![4, 6]),
        (layer("output.dense.bias"), vec![4]),
    ]
    .into_iter()
    .chain(["query", "key", "value"].iter().flat_map(|part| {
        let name = layer(&format!("attention.self.{part}"));
        [(format!("{name}.weight"), vec![4, 4]), (format!("{name}.bias"), vec![4])]
    }))
    .chain([(layer("attention.output.dense.weight"), vec![4, 4]), (layer("attention.output.dense.bias"), vec![4])])
    .chain(
        ["embeddings.LayerNorm".to_owned(), layer("attention.output.LayerNorm"), layer("output.LayerNorm")]
            .iter()
            .flat_map(|name| [(format!("{name}.weight"), vec![4]), (format!("{name}.bias"), vec![4])]),
    )
    .collect();
    let numbers: Vec<u8> = (0..32).flat_map(|index: i16| (f32::from(index % 7 - 3) / 4.0).to_le_bytes()).collect();
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = &numbers[..4 * shape.iter().product::<usize>()];
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("there are as many bytes as the shape needs"))
    });
    let weights = serialize(views, None).expect("the tensors can be written");
    [
        ("config.json", ENCODER_CONFIG.as_bytes().to_vec()),
        ("modules.json", ENCODER_MODULES.as_bytes().to_vec()),
        ("1_Pooling/config.json", ENCODER_POOLING.as_bytes().to_vec()),
        ("tokenizer.json", tokenizer.as_bytes().to_vec()),
        ("model.safetensors", weights),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

/// A new residency policy, of the sort that this byte stands for.
pub fn policy(kind: u8) -> Option<Box<dyn ResidencyPolicy>> {
    Some(match kind {
        b'l' => Box::<Lru>::default(),
        b'f' => Box::<Lfu>::default(),
        b'g' => Box::<Gdsf>::default(),
        b's' => Box::<S3Fifo>::default(),
        b'v' => Box::<Value>::default(),
        b'2' => Box::new(SecondUse::new(Value::default())),
        b'e' => Box::<FairShare>::default(),
        b'E' => Box::new(FairShare::new(|| Box::new(SecondUse::new(S3Fifo::default())))),
        _ => return None,
    })
}

/// A new recaller, of the sort that this byte stands for, which can be saved.
pub fn recaller(kind: u8) -> Arc<dyn Recaller> {
    match kind % 4 {
        0 | 1 => Arc::new(Lexical::default()),
        2 => Arc::new(Dense::new(Letters, 4)),
        _ => Arc::new(Hybrid::new(vec![Arc::new(Lexical::default()), Arc::new(Dense::new(Letters, 4))])),
    }
}

/// Counts letters: crude, but equal texts point the same way.
struct Letters;

#[async_trait]
impl Embedder for Letters {
    async fn embed(&self, texts: &[&str]) -> amem_core::Result<Vec<Vec<f32>>> {
        let embed = |text: &&str| {
            let mut vector = vec![0.0; 4];
            text.bytes().for_each(|byte| vector[usize::from(byte % 4)] += 1.0);
            vector
        };
        Ok(texts.iter().map(embed).collect())
    }

    fn name(&self) -> Option<&str> {
        Some("letters")
    }
}
