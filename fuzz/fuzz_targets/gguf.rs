//! Any GGUF file is opened or refused; what is opened has the shapes that its own settings ask for, and text goes through
//! its tokenizer or fails with an error.
#![no_main]

use amem_core::transformer::{Config, Gguf, HfChat, Weights};
use amem_core::{Chat, Dtype};
use amem_fuzz::tensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::open("fuzzed.gguf", bytes.to_vec()) else { return };
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
