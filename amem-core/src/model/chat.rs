//! How a model is talked to: texts and tokens, and the template around them.

use std::sync::Arc;

use super::conversation::{Conversation, Message, Tool, ToolCall, plain_conversation};
use crate::{Result, Token};

/// A model's tokenizer and chat template, as much of them as a conversation with memories needs.
pub trait Chat: Send + Sync {
    /// The tokens around a conversation's texts, under this system line.
    ///
    /// # Errors
    /// [`Error::BadModel`](crate::Error::BadModel) when the template cannot express it.
    fn layout(&self, system: &str) -> Result<Layout>;

    /// The tokens of a text. No text becomes a special token.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it.
    fn encode(&self, text: &str) -> Result<Vec<Token>>;

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// When a token is not in the vocabulary.
    fn decode(&self, tokens: &[Token]) -> Result<String>;

    /// The bytes that a token stands for, which may be part of a character; `None` for a special token, and for one that
    /// is not in the vocabulary. Grammars go by bytes.
    fn token_bytes(&self, token: Token) -> Option<Vec<u8>>;

    /// The tokens that end an answer.
    fn stops(&self) -> &[Token];

    /// The tokens of a conversation, from the memories on. The same messages with more behind them give the same
    /// exchanges with more behind them, so that what stands in a context already is recognised when it is sent again.
    ///
    /// A conversation may begin with an answer, and may be system messages alone: then these are what is asked.
    ///
    /// A client's system messages and tools stand behind the memories: before them, they would be part of what all
    /// stored KV was computed behind, and make it useless. The default puts system messages above the question that
    /// follows them, and knows no tools.
    ///
    /// # Errors
    /// [`Error::BadValue`](crate::Error::BadValue) for messages that do not end with a question or with results of
    /// tools, and for what the template has no words for; when the tokenizer cannot encode a text.
    fn conversation(&self, layout: &Layout, messages: &[Message], tools: &[Tool]) -> Result<Conversation> {
        plain_conversation(layout, messages, tools, |text| self.encode(text))
    }

    /// The text of an answer without the calls of tools in it, and these calls. The default finds none.
    fn tool_calls(&self, answer: &str) -> (String, Vec<ToolCall>) {
        (answer.to_owned(), Vec::new())
    }

    /// How many bytes of an answer that is still being generated are its text, but for white space at their end, whatever
    /// follows. What is behind them is, or may become, the call of a tool. The default says all of them.
    fn text_before_calls(&self, answer: &str) -> usize {
        answer.len()
    }

    /// How an answer is written that calls a tool, so that a [`Constraint`](crate::Constraint) can demand one. `None`, the
    /// default, where [`tool_calls`](Self::tool_calls) finds none.
    fn call_form(&self) -> Option<&CallForm> {
        None
    }
}

/// An answer that is a call of a tool and nothing else: `open`, a JSON object with the tool's `name` and its arguments,
/// in this order, and `close`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallForm {
    /// What stands before the JSON.
    pub open: String,
    /// The name that the arguments have in the JSON: they are an object.
    pub arguments: String,
    /// What stands behind the JSON.
    pub close: String,
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
/// by itself, and so is each text, so that cached and fresh prompts have the same tokens. Whoever implements [`Chat`] fills
/// in the default, all of whose lists are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
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
