//! Text from tokens as they come, one at a time.

use crate::{Chat, Result, Token};

/// Tokens that stay when others are let go, or twice as many, and so on, where these have hardly any text.
const KEPT: usize = 4;
/// Bytes that a character may still lack its last one behind: each of them may show as a U+FFFD of its own.
const HELD_BACK: usize = 3;

/// Turns a stream of tokens into a stream of text: all that was given out, one after another, is what
/// [`Chat::decode`] makes of all tokens at once.
///
/// What may be an incomplete character is held back, because a token may hold part of one: up to three U+FFFD at the
/// end of the text, for that is what the bytes of a character decode to while the last is missing. So text comes late by
/// three characters at most, even from a model that writes no characters at all.
///
/// Each decode includes some tokens whose text was given out, because some tokenizers strip the space in front of a text's
/// first token. How many there are does not grow with the text. The promise holds for tokenizers that never take back a
/// complete character.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    /// The last tokens.
    window: Vec<Token>,
    /// Bytes of the window's text that were given out.
    given: usize,
    /// Tokens that stay when those in front of them are let go, or up to three more. When the window has three times as
    /// many, that is tried.
    kept: usize,
}

impl Default for Detokenizer {
    fn default() -> Self {
        Self { window: Vec::new(), given: 0, kept: KEPT }
    }
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
        let text = chat.decode(&self.window).inspect_err(|_| _ = self.window.pop())?;
        let new = text.get(self.given..settled(&text)).unwrap_or_default().to_owned();
        self.given += new.len();
        if new.is_empty() && chat.token_bytes(token).is_none() {
            // It is left out of every text.
            self.window.pop();
        }
        if self.window.len() >= 3 * self.kept {
            self.let_go(chat, &text)?;
        }
        Ok(new)
    }

    /// What is still held back, when no more tokens come.
    ///
    /// # Errors
    /// As [`Chat::decode`].
    pub fn finish(self, chat: &dyn Chat) -> Result<String> {
        Ok(chat.decode(&self.window)?.get(self.given..).unwrap_or_default().to_owned())
    }

    /// Lets go of the tokens in front, where those behind them decode to the end of what all of them decode to.
    fn let_go(&mut self, chat: &dyn Chat, text: &str) -> Result<()> {
        // A character has four bytes at most, so one of four tokens in a row begins one, if bytes are what they are.
        for kept in self.kept..=self.kept + HELD_BACK {
            let front = self.window.len() - kept;
            let rest = chat.decode(&self.window[front..])?;
            let gone = text.len().saturating_sub(rest.len());
            // A cut in the middle of what is held back would leave no more than that many characters.
            if text.ends_with(&rest) && gone <= self.given && rest.chars().count() > HELD_BACK {
                self.window.drain(..front);
                self.given -= gone;
                return Ok(());
            }
        }
        self.kept *= 2;
        Ok(())
    }
}

/// Bytes of a text that no later token changes.
fn settled(text: &str) -> usize {
    let held_back = text.chars().rev().take(HELD_BACK).take_while(|last| *last == char::REPLACEMENT_CHARACTER);
    text.len() - held_back.map(char::len_utf8).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use proptest::prelude::*;

    use super::*;
    use crate::Layout;
    use crate::engine::fixtures::Bytes;

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

    /// As [`Bytes`], with special tokens from 256 on. Counts the tokens that it decodes.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Chat for Counting {
        fn layout(&self, _: &str) -> Result<Layout> {
            unreachable!()
        }

        fn encode(&self, text: &str) -> Result<Vec<Token>> {
            Bytes.encode(text)
        }

        fn decode(&self, tokens: &[Token]) -> Result<String> {
            self.0.fetch_add(tokens.len(), Relaxed);
            Bytes.decode(&tokens.iter().filter(|token| **token < 256).copied().collect::<Vec<_>>())
        }

        fn token_bytes(&self, token: Token) -> Option<Vec<u8>> {
            Bytes.token_bytes(token)
        }

        fn stops(&self) -> &[Token] {
            &[]
        }
    }

    #[test]
    fn each_token_costs_the_same_however_many_came_before() {
        const TOKENS: usize = 4096;
        let kinds: [&[Token]; 9] = [
            &[0x80],
            &[0xFF],
            &[0xE2, 0x82],
            &[0xF0, 0x9F, 0xA6],
            &[0xF0, 0x9F, 0xA6, 0x80],
            &[0xEF, 0xBF, 0xBD],
            &[0x61],
            &[256],
            &[0xE2, 256],
        ];
        for kind in kinds {
            let (chat, mut stream) = (Counting::default(), Detokenizer::new());
            kind.iter().cycle().take(TOKENS).for_each(|token| _ = stream.push(&chat, *token).unwrap());
            let each = chat.0.into_inner() / TOKENS;
            // Where every token is decoded with all before it, this is half of all of them.
            assert!(each <= 32, "{kind:x?}: {each} tokens are decoded for each");
        }
    }

    /// Tokens of which many are bytes of characters that lack others.
    fn broken() -> impl Strategy<Value = Vec<Token>> {
        let byte =
            prop_oneof![0u32..256, 0x80u32..0xC0, 0xE0u32..0xF8, Just(0xEF), Just(0xBF), Just(0xBD), 0x20u32..0x23];
        prop::collection::vec(byte, 0..160)
    }

    proptest! {
        #[test]
        fn the_stream_is_the_text(tokens in prop::collection::vec(0u32..256, 0..40)) {
            prop_assert_eq!(stream(&tokens).concat(), Bytes.decode(&tokens).unwrap());
        }

        #[test]
        fn text_that_is_no_text_is_late_by_three_characters_at_most(tokens in broken()) {
            let (mut given, mut stream) = (String::new(), Detokenizer::new());
            for (at, token) in tokens.iter().enumerate() {
                given += &stream.push(&Bytes, *token).unwrap();
                let whole = Bytes.decode(&tokens[..=at]).unwrap();
                prop_assert!(whole.starts_with(&given) && whole[given.len()..].chars().count() <= 3);
            }
            prop_assert_eq!(given + &stream.finish(&Bytes).unwrap(), Bytes.decode(&tokens).unwrap());
        }

        #[test]
        fn any_text_survives(text in ".*") {
            prop_assert_eq!(stream(&Bytes.encode(&text).unwrap()).concat(), text);
        }
    }
}
