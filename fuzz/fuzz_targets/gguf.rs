//! Any GGUF file is opened or refused; what is opened has the shapes that its own settings ask for, and text goes through
//! its tokenizer or fails with an error.
#![no_main]

use std::sync::LazyLock;

use amem_core::transformer::{Config, Encoder, EncoderConfig, EncoderOptions, Gguf, HfChat, Purpose, Weights};
use amem_core::{Chat, Dtype};
use amem_cpu::Cpu;
use amem_fuzz::tensors;
use libfuzzer_sys::fuzz_target;

static CPU: LazyLock<Cpu> = LazyLock::new(|| Cpu::with_threads(1).expect("a thread can be started"));

/// An encoder that is loaded computes vectors of its own length, or says that its weights are no numbers.
fn encoder(gguf: &Gguf) {
    let config = EncoderConfig::parse(gguf).expect("what was opened has sound settings");
    let options = EncoderOptions::default().max_tokens(16);
    let Ok(encoder) = Encoder::load(gguf, CPU.clone(), options) else { return };
    assert_eq!(encoder.dimensions(), config.hidden());
    let texts = ["a lives – Ünï 東京 [CLS]", ""];
    if let Ok(encoded) = futures_lite::future::block_on(encoder.encode(&texts, Purpose::Query)) {
        assert!(encoded.iter().all(|encoded| encoded.vector.len() == config.hidden() && encoded.tokens <= 16));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::open("fuzzed.gguf", bytes.to_vec()) else { return };
    if gguf.is_encoder() {
        return encoder(&gguf);
    }
    let config = Config::parse(&gguf).expect("what was opened has sound settings");
    if let Ok(weights) = Weights::open(&gguf, &config) {
        assert_eq!(weights.embedding.to_f32().len(), config.vocabulary() * config.hidden());
        for layer in &weights.layers {
            for tensor in tensors(layer) {
                assert!(tensor.is_complete());
                assert_eq!(tensor.to_f32().len(), tensor.rows * tensor.columns);
            }
        }
        weights.fingerprint(&config, "exact f32", Dtype::F16);
    }
    let Ok(chat) = HfChat::open(&gguf, &config) else { return };
    if let Ok(tokens) = chat.encode("Who has the <|user|> key? – Anna.") {
        assert!(tokens.iter().all(|token| (*token as usize) < config.vocabulary()));
        let _ = chat.decode(&tokens);
    }
});
