//! Texts as OpenAI's APIs take them: as text or as tokens, one or many.

use amem_core::{Model, Token};
use serde::Deserialize;
use utoipa::ToSchema;

use super::invalid;
use crate::http::Result;

/// A text or several, as text or as tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Prompt {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// The tokens of a text.
    Tokens(Vec<u32>),
    /// The tokens of texts.
    TokenLists(Vec<Vec<u32>>),
}

/// One text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Prompted {
    /// Its tokens: one at least, all of them in the vocabulary.
    pub(super) tokens: Vec<Token>,
    /// What was sent, if that was text.
    pub(super) text: Option<String>,
}

/// The texts of a parameter.
///
/// # Errors
/// 400 for no text, for more than so many, for one without tokens and for tokens that the model does not have.
pub(super) fn prompts(param: &'static str, prompt: Prompt, model: &dyn Model, most: usize) -> Result<Vec<Prompted>> {
    let count = match &prompt {
        Prompt::Text(_) | Prompt::Tokens(_) => 1,
        Prompt::Texts(texts) => texts.len(),
        Prompt::TokenLists(lists) => lists.len(),
    };
    if !(1..=most).contains(&count) {
        return Err(invalid(param, format!("there must be from 1 to {most} texts, and there are {count}")));
    }
    let of_text = |text: String| {
        let tokens = model.chat().encode(&text)?;
        Ok(Prompted { tokens, text: Some(text) })
    };
    let of_tokens = |tokens| Ok(Prompted { tokens, text: None });
    let prompts: Vec<Prompted> = match prompt {
        Prompt::Text(text) => vec![of_text(text)?],
        Prompt::Texts(texts) => texts.into_iter().map(of_text).collect::<Result<_>>()?,
        Prompt::Tokens(tokens) => vec![of_tokens(tokens)?],
        Prompt::TokenLists(lists) => lists.into_iter().map(of_tokens).collect::<Result<_>>()?,
    };
    let vocabulary = model.info().vocabulary;
    for prompt in &prompts {
        if prompt.tokens.is_empty() {
            return Err(invalid(param, "a text is empty"));
        }
        if let Some(token) = prompt.tokens.iter().find(|token| **token as usize >= vocabulary) {
            return Err(invalid(param, format!("{token} is no token: there are {vocabulary}")));
        }
    }
    Ok(prompts)
}
