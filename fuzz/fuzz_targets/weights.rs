//! Any `model.safetensors` is read or refused, and what was read has the shapes that the configuration asks for.
#![no_main]

use std::sync::LazyLock;

use amem_core::Dtype;
use amem_core::transformer::{Config, Weights};
use amem_fuzz::{tensors, tiny_config};
use libfuzzer_sys::fuzz_target;

static CONFIG: LazyLock<Config> = LazyLock::new(tiny_config);

fuzz_target!(|bytes: &[u8]| {
    let files = [("model.safetensors", bytes)];
    let Ok(weights) = Weights::open(&files, &CONFIG) else { return };
    assert_eq!(weights.embedding.to_f32().len(), CONFIG.vocabulary() * CONFIG.hidden());
    for layer in &weights.layers {
        for tensor in tensors(layer) {
            assert_eq!(tensor.to_f32().len(), tensor.rows * tensor.columns);
        }
    }
    weights.fingerprint(&CONFIG, "exact f32", Dtype::F16);
});
