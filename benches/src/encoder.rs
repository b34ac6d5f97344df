//! An encoder of random weights in the shape of all-MiniLM-L6-v2.

use std::collections::BTreeMap;

use amem_core::transformer::{Encoder, EncoderOptions, Pooling};
use amem_cpu::Cpu;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::json;

use crate::random_numbers;

/// Numbers in a hidden state.
pub const HIDDEN: usize = 384;
/// Layers.
pub const LAYERS: usize = 6;
/// Numbers within a feed-forward block.
pub const INTERMEDIATE: usize = 1536;
const HEADS: usize = 12;
const POSITIONS: usize = 512;
const WORDS: usize = 30522;

/// A text of so many tokens. Numbers make different texts.
pub fn words(tokens: usize, number: usize) -> String {
    let words = (0..tokens).map(|index| format!("w{}", (number * 1009 + index * 31) % WORDS));
    words.collect::<Vec<_>>().join(" ")
}

/// The encoder, in f32. Its tokens are words.
pub fn random_encoder(backend: Cpu) -> Encoder {
    let config = json!({ "model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": INTERMEDIATE, "vocab_size": WORDS,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "hidden_act": "gelu" });
    let vocabulary: BTreeMap<String, usize> = (0..WORDS).map(|word| (format!("w{word}"), word)).collect();
    let tokenizer = json!({ "version": "1.0", "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" } });
    let files = BTreeMap::from([
        ("config.json".to_owned(), config.to_string().into_bytes()),
        ("tokenizer.json".to_owned(), tokenizer.to_string().into_bytes()),
        ("model.safetensors".to_owned(), weights()),
    ]);
    let options = EncoderOptions::default().pooling(Pooling::Mean);
    Encoder::load(&files, backend, options).expect("the files are those of an encoder")
}

fn weights() -> Vec<u8> {
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS, HIDDEN]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![POSITIONS, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, HIDDEN]),
    ];
    let mut with_bias = |name: String, outputs: usize, inputs: Option<usize>| {
        let weight = inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]);
        shapes.push((format!("{name}.weight"), weight));
        shapes.push((format!("{name}.bias"), vec![outputs]));
    };
    with_bias("embeddings.LayerNorm".to_owned(), HIDDEN, None);
    for layer in 0..LAYERS {
        for (name, outputs, inputs) in [
            ("attention.self.query", HIDDEN, Some(HIDDEN)),
            ("attention.self.key", HIDDEN, Some(HIDDEN)),
            ("attention.self.value", HIDDEN, Some(HIDDEN)),
            ("attention.output.dense", HIDDEN, Some(HIDDEN)),
            ("attention.output.LayerNorm", HIDDEN, None),
            ("intermediate.dense", INTERMEDIATE, Some(HIDDEN)),
            ("output.dense", HIDDEN, Some(INTERMEDIATE)),
            ("output.LayerNorm", HIDDEN, None),
        ] {
            with_bias(format!("encoder.layer.{layer}.{name}"), outputs, inputs);
        }
    }
    let numbered = shapes.into_iter().zip(0..);
    let filled: Vec<(String, Vec<usize>, Vec<u8>)> =
        numbered.map(|((name, shape), seed)| (name, shape.clone(), fill(&shape, seed))).collect();
    let views = filled.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("there are as many bytes as the shape needs"))
    });
    serialize(views, None).expect("the tensors can be written")
}

/// Matrices whose outputs are about as large as their inputs; norms near one and biases near zero.
fn fill(shape: &[usize], seed: u64) -> Vec<u8> {
    let scale = match shape {
        [_, inputs] => (3.0 / *inputs as f32).sqrt(),
        _ => 0.1,
    };
    let offset = if shape.len() == 1 { 0.5 } else { 0.0 };
    let numbers = random_numbers(shape.iter().product(), seed).into_iter();
    numbers.flat_map(|number| (offset + scale * number).to_le_bytes()).collect()
}
