//! A model of about two thousand random weights: large enough that what goes wrong shows in its logits.

use std::collections::BTreeMap;
use std::sync::Arc;

use amem_core::testing::Reference;
use amem_core::transformer::{Options, Transformer};
use amem_core::{Chat, Dtype, Layout, Result, Sampling, Token};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype as StoredDtype, TensorView};

const HIDDEN: usize = 8;
const VOCABULARY: usize = 64;
const CONFIG: &str = r#"{
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 12, "vocab_size": 64,
    "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true
}"#;

#[allow(dead_code, reason = "not every test binary uses it")]
pub(crate) fn model() -> Transformer<Reference> {
    model_with_context(64)
}

/// As [`model`], with contexts of so many tokens.
pub(crate) fn model_with_context(tokens: usize) -> Transformer<Reference> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut noise = |numbers: usize| -> Vec<u8> {
        (0..numbers).flat_map(|_| rng.random_range(-1.0f32..1.0).to_le_bytes()).collect()
    };
    let mut weights = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..2 {
        let of_layer = [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![8, HIDDEN]),
            ("self_attn.k_proj", vec![4, HIDDEN]),
            ("self_attn.v_proj", vec![4, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, 8]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![12, HIDDEN]),
            ("mlp.up_proj", vec![12, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, 12]),
        ];
        weights.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    weights.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    let weights: Vec<_> =
        weights.into_iter().map(|(name, shape)| (name, noise(shape.iter().product()), shape)).collect();
    let views = weights
        .iter()
        .map(|(name, bytes, shape)| (name, TensorView::new(StoredDtype::F32, shape.clone(), bytes).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    let files = BTreeMap::from([
        ("config.json".to_owned(), CONFIG.replace("CONTEXT", &tokens.to_string()).into_bytes()),
        ("model.safetensors".to_owned(), file),
    ]);
    let mut options = Options::default();
    (options.kv, options.kv_cache_bytes) = (Dtype::F16, 1 << 20);
    Transformer::with_chat(&files, Reference, options, Box::new(Bytes), Sampling::default()).unwrap()
}

/// A token for each byte.
struct Bytes;

impl Chat for Bytes {
    fn layout(&self, _: &str) -> Result<Layout> {
        let some = |token: Token| -> Arc<[Token]> { Arc::from([token]) };
        let mut layout = Layout::default();
        layout.prefix = some(1);
        layout.memory_open = some(2);
        layout.memory_close = some(3);
        layout.to_question = some(4);
        layout.to_answer = some(5);
        layout.next_question = some(4);
        layout.late_memories = some(6);
        layout.late_question = some(7);
        Ok(layout)
    }

    fn encode(&self, text: &str) -> Result<Vec<Token>> {
        Ok(text.bytes().map(|byte| u32::from(byte) % 56 + 8).collect())
    }

    fn decode(&self, tokens: &[Token]) -> Result<String> {
        Ok(tokens.iter().map(|token| format!("{token} ")).collect())
    }

    fn token_bytes(&self, token: Token) -> Option<Vec<u8>> {
        Some(format!("{token} ").into_bytes())
    }

    fn stops(&self) -> &[Token] {
        &[]
    }
}
