//! Any `config.json` is read or refused, and the numbers of one that is read are within bounds.
#![no_main]

use amem_core::transformer::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = Config::parse(&[("config.json", bytes)]) else { return };
    let shape = config.kv_shape();
    for layer in 0..shape.layers {
        let frequencies = &config.rope(layer).expect("each layer has one").inverse_frequencies;
        assert_eq!(frequencies.len(), shape.head_dim / 2);
        assert!(frequencies.iter().all(|frequency| frequency.is_finite()));
    }
    assert!(shape.token_numbers() > 0 && config.vocabulary() > 0 && config.hidden() > 0);
});
