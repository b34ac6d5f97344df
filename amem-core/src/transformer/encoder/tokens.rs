//! A text's tokens, as an encoder takes them: with `[CLS]` and `[SEP]` around them, and cut to what it holds.

use tokenizers::{PostProcessor, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::transformer::ModelSource;
use crate::transformer::settings::bad_model;
use crate::transformer::text::tokens::{FILE, bad_tokenizer, read_tokenizer};
use crate::{Result, Token};

/// `tokenizer.json`.
pub(super) struct Tokens {
    tokenizer: Tokenizer,
    lower_case: bool,
    vocabulary: usize,
}

impl Tokens {
    /// Reads it for an encoder with so many tokens, of which a text has at most `most`, special ones included.
    pub(super) fn open(source: &dyn ModelSource, vocabulary: usize, most: usize, lower_case: bool) -> Result<Self> {
        let (mut tokenizer, _) = read_tokenizer(source)?;
        let special = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if most <= special {
            let reason = format!("it adds {special} tokens to each text, which may have {most} in all");
            return Err(bad_model(FILE, reason));
        }
        let truncation = TruncationParams {
            max_length: most,
            strategy: TruncationStrategy::LongestFirst,
            direction: TruncationDirection::Right,
            stride: 0,
        };
        tokenizer.with_truncation(Some(truncation)).map_err(bad_tokenizer)?.with_padding(None);
        Ok(Self { tokenizer, lower_case, vocabulary })
    }

    /// The tokens of a text.
    pub(super) fn of(&self, text: &str) -> Result<Vec<Token>> {
        let lower = self.lower_case.then(|| text.to_lowercase());
        let text = lower.as_deref().unwrap_or(text);
        let ids = self.tokenizer.encode_fast(text, true).map_err(bad_tokenizer)?.get_ids().to_vec();
        match ids.iter().find(|id| **id as usize >= self.vocabulary) {
            Some(id) => Err(bad_model(FILE, format!("it has a token {id} and the model has {}", self.vocabulary))),
            None => Ok(ids),
        }
    }
}
