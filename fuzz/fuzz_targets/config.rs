//! Any `config.json` is read or refused, and the numbers of one that is read are within bounds.
#![no_main]

use amem_core::Dtype;
use amem_core::transformer::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = Config::parse(&[("config.json", bytes)]) else { return };
    assert!(config.heads.is_multiple_of(config.kv_heads));
    assert_eq!(config.rope.inverse_frequencies.len(), config.head_dim / 2);
    assert!(config.rope.inverse_frequencies.iter().all(|frequency| frequency.is_finite()));
    assert!(config.kv_shape(Dtype::F32).token_bytes() > 0);
});
