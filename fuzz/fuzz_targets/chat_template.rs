//! Any chat template gives a layout or is refused, and the layout's tokens are in the vocabulary.
#![no_main]

use std::sync::LazyLock;

use amem_core::Chat;
use amem_core::transformer::{Config, HfChat};
use amem_fuzz::demo_with;
use libfuzzer_sys::fuzz_target;

static CONFIG: LazyLock<Config> =
    LazyLock::new(|| Config::parse(&amem_demo::files()).expect("the demo model is sound"));

fuzz_target!(|bytes: &[u8]| {
    let Ok(chat) = HfChat::open(&demo_with("chat_template.jinja", bytes), &CONFIG) else { return };
    for system in ["", amem_demo::SYSTEM, "{{ messages }} <|user|>\n\n"] {
        let Ok(layout) = chat.layout(system) else { continue };
        for tokens in [&layout.prefix, &layout.to_question, &layout.to_answer, &layout.late_memories] {
            assert!(tokens.iter().all(|token| (*token as usize) < CONFIG.vocabulary()));
        }
    }
});
