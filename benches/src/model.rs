//! A model of ten million random weights: it says nothing, at the speed of one that does.
//!
//! What a forward pass costs depends on shapes alone, so nothing has to be downloaded. The shape is that of a small
//! Llama, large enough for matrices to outweigh the bookkeeping around them, and the tokenizer and the chat template are
//! the demo model's.

use std::collections::BTreeMap;

use amem_core::transformer::{Options, Transformer};
use amem_cpu::Cpu;
use amem_store::ModelDir;
use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

const HIDDEN: usize = 384;
const LAYERS: usize = 6;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const FFN: usize = 1024;
const CONTEXT: usize = 8192;

/// The model of the directory that the environment variable `AMEM_BENCH_MODEL` names; without it, the random one.
pub fn model() -> Transformer<Cpu> {
    let Some(path) = std::env::var_os("AMEM_BENCH_MODEL") else { return random_model() };
    let files = ModelDir::open(path).expect("AMEM_BENCH_MODEL names a model's directory");
    let backend = Cpu::new().expect("threads can be started");
    Transformer::load(&files, backend, Options::default()).expect("AMEM_BENCH_MODEL names a model's directory")
}

/// The random model, in bf16 on all cores. Its contexts hold 8,192 tokens.
pub fn random_model() -> Transformer<Cpu> {
    let files = BTreeMap::from([
        ("config.json".to_owned(), config().to_string().into_bytes()),
        ("model.safetensors".to_owned(), weights()),
        ("tokenizer.json".to_owned(), amem_demo::TOKENIZER.into()),
        ("tokenizer_config.json".to_owned(), amem_demo::TOKENIZER_CONFIG.into()),
    ]);
    let backend = Cpu::new().expect("threads can be started");
    let mut options = Options::default();
    options.name = "random".to_owned();
    Transformer::load(&files, backend, options).expect("the files are those of a model")
}

/// Numbers between -1 and 1, the same for each seed.
pub fn random_numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// The demo model's settings with this shape.
fn config() -> Value {
    let mut config: Value = serde_json::from_str(amem_demo::CONFIG).expect("the demo model's settings are JSON");
    for (key, value) in [
        ("hidden_size", json!(HIDDEN)),
        ("num_hidden_layers", json!(LAYERS)),
        ("num_attention_heads", json!(HEADS)),
        ("num_key_value_heads", json!(KV_HEADS)),
        ("head_dim", json!(HEAD_DIM)),
        ("intermediate_size", json!(FFN)),
        ("max_position_embeddings", json!(CONTEXT)),
        ("torch_dtype", json!("bfloat16")),
    ] {
        config[key] = value;
    }
    config
}

/// `model.safetensors` for [`config`].
fn weights() -> Vec<u8> {
    let vocabulary = config()["vocab_size"].as_u64().expect("the demo model has a vocabulary") as usize;
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let named = |(name, shape): (&str, &[usize])| (format!("model.layers.{layer}.{name}.weight"), shape.to_vec());
        let tensors: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[q, HIDDEN]),
            ("self_attn.k_proj", &[kv, HIDDEN]),
            ("self_attn.v_proj", &[kv, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, q]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("mlp.gate_proj", &[FFN, HIDDEN]),
            ("mlp.up_proj", &[FFN, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, FFN]),
        ];
        shapes.extend(tensors.map(named));
    }
    let numbered = shapes.into_iter().zip(0..);
    let filled: Vec<(String, Vec<usize>, Vec<u8>)> =
        numbered.map(|((name, shape), seed)| (name, shape.clone(), fill(&shape, seed))).collect();
    let views = filled.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).expect("there are as many bytes as the shape needs"))
    });
    serialize(views, None).expect("the tensors can be written")
}

/// Norms of one; matrices whose outputs are about as large as their inputs, so that nothing overflows or dies out.
fn fill(shape: &[usize], seed: u64) -> Vec<u8> {
    let numbers = match shape {
        [outputs, inputs] => {
            let scale = (3.0 / *inputs as f32).sqrt();
            random_numbers(outputs * inputs, seed).into_iter().map(|number| scale * number).collect()
        }
        _ => vec![1.0; shape.iter().product()],
    };
    numbers.into_iter().flat_map(|number| bf16::from_f32(number).to_le_bytes()).collect()
}
