//! Text from tokens as they come, one at a time.

use crate::{Chat, Result, Token};

/// Turns a stream of tokens into a stream of text: all that was given out, one after another, is what
/// [`Chat::decode`] makes of all tokens at once.
///
/// Text is held back while it ends in an incomplete character, because a token may hold part of one. Each decode includes
/// the tokens that last gave text, because some tokenizers strip the space in front of a text's first token. The promise
/// holds for tokenizers that never take back a complete character.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// The tokens that last gave text, then those whose text is held back.
    window: Vec<Token>,
    /// How many tokens of the window have given their text.
    given: usize,
}

impl Detokenizer {
    /// At the start of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// The text that this token completes; often empty.
    ///
    /// # Errors
    /// As [`Chat::decode`].
    pub fn push(&mut self, chat: &dyn Chat, token: Token) -> Result<String> {
        self.window.push(token);
        let text = self.new_text(chat)?;
        // Bytes of a character that is not complete read as U+FFFD.
        if text.is_empty() || text.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        self.window.drain(..self.given);
        self.given = self.window.len();
        Ok(text)
    }

    /// What is still held back, when no more tokens come.
    ///
    /// # Errors
    /// As [`Chat::decode`].
    pub fn finish(self, chat: &dyn Chat) -> Result<String> {
        self.new_text(chat)
    }

    fn new_text(&self, chat: &dyn Chat) -> Result<String> {
        let before = chat.decode(&self.window[..self.given])?;
        let all = chat.decode(&self.window)?;
        match all.strip_prefix(&before) {
            Some(new) => Ok(new.to_owned()),
            None => chat.decode(&self.window[self.given..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Layout;

    /// Tokens are bytes; the first space of a text is its tokenizer's own, as in sentencepiece.
    struct Bytes;

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

    fn stream(tokens: &[Token]) -> Vec<String> {
        let mut stream = Detokenizer::new();
        let mut texts: Vec<String> = tokens.iter().map(|token| stream.push(&Bytes, *token).unwrap()).collect();
        texts.push(stream.finish(&Bytes).unwrap());
        texts
    }

    #[test]
    fn a_character_comes_out_when_its_last_byte_is_there() {
        assert_eq!(stream(&Bytes.encode("é€").unwrap()), ["", "", "é", "", "", "€", ""]);
    }

    #[test]
    fn the_space_of_a_later_word_is_kept() {
        assert_eq!(stream(&Bytes.encode("a  b").unwrap()).concat(), "a  b");
    }

    #[test]
    fn bytes_that_never_become_a_character_come_out_at_the_end() {
        assert_eq!(stream(&[0x61, 0xE2, 0x82]).concat(), "a\u{FFFD}");
    }

    proptest! {
        #[test]
        fn the_stream_is_the_text(tokens in prop::collection::vec(0u32..256, 0..40)) {
            prop_assert_eq!(stream(&tokens).concat(), Bytes.decode(&tokens).unwrap());
        }

        #[test]
        fn any_text_survives(text in ".*") {
            prop_assert_eq!(stream(&Bytes.encode(&text).unwrap()).concat(), text);
        }
    }
}
