//! A tokenizer for tests.

use crate::{Chat, Layout, Result, Token};

/// Tokens are bytes; the first space of a text is its tokenizer's own, as in sentencepiece.
pub(super) struct Bytes;

impl Chat for Bytes {
    fn layout(&self, _: &str) -> Result<Layout> {
        unreachable!()
    }

    fn encode(&self, text: &str) -> Result<Vec<Token>> {
        Ok(format!(" {text}").bytes().map(Token::from).collect())
    }

    fn decode(&self, tokens: &[Token]) -> Result<String> {
        let bytes: Vec<u8> = tokens.iter().map(|token| *token as u8).collect();
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.strip_prefix(' ').unwrap_or(&text).to_owned())
    }

    fn token_bytes(&self, token: Token) -> Option<Vec<u8>> {
        u8::try_from(token).ok().map(|byte| vec![byte])
    }

    fn stops(&self) -> &[Token] {
        &[]
    }
}
