//! What the targets share: the demo model's files, with one of them in the fuzzer's hands, and the configuration that
//! fuzzed weights are read for.

use std::collections::BTreeMap;

use amem_core::transformer::{Config, WeightFeedForward, WeightLayer, WeightTensor};

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
