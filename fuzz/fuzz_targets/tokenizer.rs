//! Any `tokenizer.json` is read or refused, and text goes through one that is read or fails with an error.
#![no_main]

use std::sync::LazyLock;

use amem_core::Chat;
use amem_core::transformer::{Config, HfChat};
use amem_fuzz::demo_with;
use libfuzzer_sys::fuzz_target;

static CONFIG: LazyLock<Config> =
    LazyLock::new(|| Config::parse(&amem_demo::files()).expect("the demo model is sound"));

fuzz_target!(|bytes: &[u8]| {
    let Ok(chat) = HfChat::open(&demo_with("tokenizer.json", bytes), &CONFIG) else { return };
    if let Ok(tokens) = chat.encode("Who has the <|user|> key? – Anna.") {
        assert!(tokens.iter().all(|token| (*token as usize) < CONFIG.vocabulary()));
        let _ = chat.decode(&tokens);
    }
    let _ = chat.layout(amem_demo::SYSTEM);
});
