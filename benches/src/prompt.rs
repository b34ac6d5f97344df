//! One prompt with its memories' KV at hand, and without.

use std::sync::Arc;

use amem_core::{Model, Piece, Token};

use crate::{QUESTION, notes};

/// A question behind memories, in two forms.
pub struct Prompt {
    /// Nothing at hand.
    pub fresh: Vec<Piece>,
    /// All but the question at hand.
    pub cached: Vec<Piece>,
    /// Tokens of the whole.
    pub tokens: usize,
}

impl Prompt {
    /// A question behind as many notes as have `memory_tokens` tokens.
    pub fn new(model: &dyn Model, memory_tokens: usize) -> Self {
        let layout = model.chat().layout(amem_demo::SYSTEM).expect("the template has a system line");
        let texts = notes(model, &layout, memory_tokens);
        let prefill = |prefix: &[Token], texts: &[Arc<[Token]>], measure| {
            model
                .prefill(prefix, &model.info().prefill_texts("bench", prefix, texts), measure)
                .expect("the notes fit into a context")
                .0
        };
        let head = prefill(&[], std::slice::from_ref(&layout.prefix), false);
        let chunks = [head, prefill(&layout.prefix, &texts, true)].concat();
        let question = model.chat().encode(QUESTION).expect("a question can be encoded");
        let question = Piece::Fresh([&layout.to_question, question.as_slice(), &layout.to_answer].concat().into());
        let standing: Vec<Token> = chunks.iter().flat_map(|chunk| chunk.tokens().iter().copied()).collect();
        let tokens = standing.len() + question.tokens().len();
        let cached = chunks.into_iter().map(Piece::Cached).chain([question.clone()]).collect();
        Self { fresh: vec![Piece::Fresh(standing.into()), question], cached, tokens }
    }

    /// The same with no more than the last `most` tokens of the question.
    pub fn with_question_of(mut self, most: usize) -> Self {
        let Some(Piece::Fresh(question)) = self.fresh.pop() else { return self };
        let dropped = question.len().saturating_sub(most);
        let question = Piece::Fresh(question[dropped..].into());
        self.cached.pop();
        self.fresh.push(question.clone());
        self.cached.push(question);
        self.tokens -= dropped;
        self
    }
}
