//! How a conversation with memories is written down for a model.

use std::sync::Arc;

use crate::{Result, Token};

/// A model's tokenizer and chat template, as much of them as a conversation with memories needs.
pub trait Chat: Send + Sync {
    /// The tokens that stand between the texts of a conversation under this system line.
    ///
    /// # Errors
    /// When the chat template cannot express it.
    fn layout(&self, system: &str) -> Result<Layout>;

    /// The tokens of a text that a user wrote. No part of it becomes a special token, whatever it says.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it.
    fn encode(&self, text: &str) -> Result<Vec<Token>>;

    /// The text of tokens, special ones left out. Bytes that are no UTF-8 yet read as U+FFFD.
    ///
    /// # Errors
    /// When a token is not in the vocabulary.
    fn decode(&self, tokens: &[Token]) -> Result<String>;

    /// The tokens that end an answer.
    fn stops(&self) -> &[Token];
}

/// The tokens around the texts of a conversation:
///
/// ```text
/// prefix  (memory_open TEXT memory_close)*  to_question  QUESTION  to_answer  ANSWER
///     next_question  QUESTION  to_answer  ANSWER
///     late_memories  (memory_open TEXT memory_close)*  late_question  QUESTION  to_answer  ANSWER
/// ```
///
/// What stands before the first memory, `prefix`, is what every memory's KV is computed behind. Each list is tokenised
/// by itself, and so is each text, so that cached and fresh prompts have the same tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// From the start to the first memory: the template's head and the system line.
    pub prefix: Arc<[Token]>,
    /// Before each memory's text.
    pub memory_open: Arc<[Token]>,
    /// After each memory's text.
    pub memory_close: Arc<[Token]>,
    /// From the last memory to the first question.
    pub to_question: Arc<[Token]>,
    /// From a question to the answer that the model is to give.
    pub to_answer: Arc<[Token]>,
    /// From an answer (its end token not included) to the next question, when no memories come with that.
    pub next_question: Arc<[Token]>,
    /// From an answer to the memories that come with the next question.
    pub late_memories: Arc<[Token]>,
    /// From those memories to that question.
    pub late_question: Arc<[Token]>,
}

impl Layout {
    /// The tokens of one memory, whose text has these tokens.
    pub fn memory(&self, text: &[Token]) -> Arc<[Token]> {
        [&self.memory_open, text, &self.memory_close].concat().into()
    }
}
