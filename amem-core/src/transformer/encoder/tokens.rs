//! A text's tokens, as an encoder takes them: with `[CLS]` and `[SEP]` around them, and cut to what it holds.

use tokenizers::{PostProcessor, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::transformer::ModelSource;
use crate::transformer::settings::bad_model;
use crate::transformer::text::tokens::{FILE, bad_tokenizer, guarded, read_tokenizer};
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
        let ids = guarded(|| self.tokenizer.encode_fast(text, true))?.get_ids().to_vec();
        match ids.iter().find(|id| **id as usize >= self.vocabulary) {
            Some(id) => Err(bad_model(FILE, format!("it has a token {id} and the model has {}", self.vocabulary))),
            None => Ok(ids),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Error;
    use crate::transformer::fixtures::demo;

    #[test]
    fn a_normalizer_whose_table_cannot_be_read_is_an_error() {
        let mut files = demo();
        let mut tokenizer: serde_json::Value = serde_json::from_slice(&files["tokenizer.json"]).unwrap();
        // An empty table, which only an encoded text comes upon, and one that is said to have 4 GiB.
        for charsmap in ["AAAAAA==", "/////w=="] {
            tokenizer["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": charsmap });
            files.insert("tokenizer.json".into(), tokenizer.to_string().into_bytes());
            let encoded = Tokens::open(&files, 1536, 64, false).and_then(|tokens| tokens.of("a"));
            assert!(matches!(encoded, Err(Error::BadModel { .. })), "{charsmap}: {encoded:?}");
        }
    }
}
