//! How tokens are drawn.

use std::collections::BTreeMap;

use crate::{Error, Result, Token};

/// How the next token is drawn. The default is greedy: always the token with the highest score.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// What scores are divided by: below 1 sharpens, above 1 flattens. 0 is greedy.
    pub temperature: f32,
    /// Only so many of the likeliest tokens can be drawn. 0 is all of them.
    pub top_k: usize,
    /// Only the fewest likeliest tokens can be drawn that have this share of the probability. 1 is all of them.
    pub top_p: f32,
    /// Only tokens can be drawn that are at least this share as likely as the likeliest. 0 is all of them.
    pub min_p: f32,
    /// What the scores of tokens that stand already, in the prompt or the answer, are divided by (multiplied if
    /// negative). 1 does nothing.
    pub repetition_penalty: f32,
    /// What is taken off the score of a token for each time that it was drawn in this answer, as in OpenAI's API.
    pub frequency_penalty: f32,
    /// What is taken off the score of a token that was drawn in this answer, however often, as in OpenAI's API.
    pub presence_penalty: f32,
    /// What is added to the scores of these tokens. At most 1,024 of them.
    pub logit_bias: BTreeMap<Token, f32>,
    /// The same seed draws the same tokens from the same scores. Whoever wants another answer each time sets another seed
    /// for each request, as the servers of `amem` do; the default is always 0.
    pub seed: u64,
}

/// Tokens that can have a bias at most.
const MAX_BIASES: usize = 1024;

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// With scores divided by this; 0 is greedy.
    #[must_use]
    pub fn temperature(self, temperature: f32) -> Self {
        Self { temperature, ..self }
    }

    /// Only so many of the likeliest tokens.
    #[must_use]
    pub fn top_k(self, tokens: usize) -> Self {
        Self { top_k: tokens, ..self }
    }

    /// Only the fewest likeliest tokens with this share of the probability.
    #[must_use]
    pub fn top_p(self, share: f32) -> Self {
        Self { top_p: share, ..self }
    }

    /// Only tokens at least this share as likely as the likeliest.
    #[must_use]
    pub fn min_p(self, share: f32) -> Self {
        Self { min_p: share, ..self }
    }

    /// With the scores of tokens that stand already divided by this.
    #[must_use]
    pub fn repetition_penalty(self, penalty: f32) -> Self {
        Self { repetition_penalty: penalty, ..self }
    }

    /// With this taken off the score of a token for each time that it was drawn.
    #[must_use]
    pub fn frequency_penalty(self, penalty: f32) -> Self {
        Self { frequency_penalty: penalty, ..self }
    }

    /// With this taken off the score of a token that was drawn.
    #[must_use]
    pub fn presence_penalty(self, penalty: f32) -> Self {
        Self { presence_penalty: penalty, ..self }
    }

    /// With these numbers added to the scores of these tokens.
    #[must_use]
    pub fn logit_bias(self, biases: BTreeMap<Token, f32>) -> Self {
        Self { logit_bias: biases, ..self }
    }

    /// With draws that this seed decides.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Whether every number makes sense.
    ///
    /// # Errors
    /// [`Error::BadValue`] for the first that does not.
    pub fn check(&self) -> Result<()> {
        let demand = |holds: bool, what, value: f32, expected| {
            if holds { Ok(()) } else { Err(Error::BadValue { what, value: value.to_string(), expected }) }
        };
        let finite = |value: f32| value.is_finite() && value >= 0.0;
        demand(finite(self.temperature), "temperature", self.temperature, "0 or more")?;
        demand(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")?;
        demand((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "from 0 to 1")?;
        let penalty = self.repetition_penalty;
        demand(finite(penalty) && penalty > 0.0, "repetition_penalty", penalty, "above 0")?;
        for (what, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            demand((-2.0..=2.0).contains(&penalty), what, penalty, "from -2 to 2")?;
        }
        if self.logit_bias.len() > MAX_BIASES {
            let value = format!("{} tokens", self.logit_bias.len());
            return Err(Error::BadValue { what: "logit_bias", value, expected: "for at most 1,024 tokens" });
        }
        let biases = self.logit_bias.values();
        biases
            .into_iter()
            .try_for_each(|&bias| demand((-100.0..=100.0).contains(&bias), "logit_bias", bias, "from -100 to 100"))
    }
}
