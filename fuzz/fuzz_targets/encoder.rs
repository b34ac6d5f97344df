//! Any settings of an encoder are read or refused: its `config.json` if the bytes begin with `c`, its `modules.json` with
//! `m`, the settings of its pooling with `p`, of its length with `l` and of its prompts with anything else.
#![no_main]

use std::sync::LazyLock;

use amem_core::transformer::{Encoder, EncoderConfig, EncoderOptions, Purpose};
use amem_cpu::Cpu;
use amem_fuzz::tiny_encoder;
use libfuzzer_sys::fuzz_target;

static CPU: LazyLock<Cpu> = LazyLock::new(|| Cpu::with_threads(1).expect("a thread can be started"));

fuzz_target!(|bytes: &[u8]| {
    let Some((&file, bytes)) = bytes.split_first() else { return };
    let name = match file {
        b'c' => "config.json",
        b'm' => "modules.json",
        b'p' => "1_Pooling/config.json",
        b'l' => "sentence_bert_config.json",
        _ => "config_sentence_transformers.json",
    };
    let mut files = tiny_encoder();
    files.insert(name.to_owned(), bytes.to_vec());
    if let Ok(config) = EncoderConfig::parse(&files) {
        assert!(config.hidden() > 0 && config.vocabulary() > 0 && config.max_tokens() > 0);
    }
    let Ok(encoder) = Encoder::load(&files, CPU.clone(), EncoderOptions::default()) else { return };
    let encoded = futures_lite::future::block_on(encoder.encode(&["a b a b a b", ""], Purpose::Query));
    for encoded in encoded.expect("an encoder that was loaded computes") {
        assert!(encoded.vector.len() == encoder.dimensions() && encoded.tokens <= encoder.max_tokens());
        assert!(encoded.vector.iter().all(|number| number.is_finite()));
    }
});
