//! Tokens streamed one by one give the text that they give at once, whatever they are.
#![no_main]

use std::sync::LazyLock;

use amem_core::transformer::{Config, HfChat};
use amem_core::{Chat, Detokenizer, Token};
use libfuzzer_sys::fuzz_target;

static CHAT: LazyLock<HfChat> = LazyLock::new(|| {
    let files = amem_demo::files();
    let config = Config::parse(&files).expect("the demo model is sound");
    HfChat::open(&files, &config).expect("the demo model is sound")
});

fuzz_target!(|tokens: Vec<u16>| {
    // Half of all ids are in the vocabulary, so that both ways are taken.
    let tokens: Vec<Token> = tokens.into_iter().map(|token| Token::from(token % 3072)).collect();
    let mut stream = Detokenizer::new();
    let streamed: Result<Vec<String>, _> = tokens.iter().map(|token| stream.push(&*CHAT, *token)).collect();
    match (CHAT.decode(&tokens), streamed) {
        (Ok(whole), Ok(parts)) => {
            let rest = stream.finish(&*CHAT).expect("what was decoded once can be decoded again");
            assert_eq!(parts.concat() + &rest, whole);
        }
        (whole, parts) => assert_eq!(whole.is_err(), parts.is_err()),
    }
});
