//! From logits to text, token by token.

use crate::{Chat, Detokenizer, Error, Result, Sampler, Sampling, Token};

/// How an answer is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How tokens are drawn; `None` for what the model's makers recommend.
    pub sampling: Option<Sampling>,
    /// Texts that end the answer where they appear; they are not part of it.
    pub stop: Vec<String>,
    /// How many answers are drawn from one prompt, each with a seed of its own.
    pub n: usize,
}

impl Default for Generation {
    fn default() -> Self {
        Self { max_tokens: 256, sampling: None, stop: Vec::new(), n: 1 }
    }
}

/// Answers that one prompt may have at most.
const MAX_N: usize = 128;

impl Generation {
    /// Whether every number makes sense.
    ///
    /// # Errors
    /// [`Error::BadValue`] for the first that does not.
    pub fn check(&self, _: usize) -> Result<()> {
        if !(1..=MAX_N).contains(&self.n) {
            return Err(Error::BadValue { what: "n", value: self.n.to_string(), expected: "from 1 to 128" });
        }
        self.sampling.as_ref().map_or(Ok(()), Sampling::check)
    }
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The model was done: it drew this token, which ends an answer.
    EndToken(Token),
    /// This stop text appeared.
    StopText(String),
    /// The answer or the context was as long as it may be.
    Length,
    /// Nobody listened any more.
    Cancelled,
}

/// What came of one more token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drawn {
    /// The token to put into the context next. `None` when the answer has ended with a token that is no part of it.
    pub(super) token: Option<Token>,
    /// What is new and safe to show.
    pub(super) text: String,
    /// Why the answer ended, if it has.
    pub(super) finish: Option<Finish>,
}

/// Draws an answer, a token at a time, from logits that somebody else computes.
pub(super) struct Generator {
    max_tokens: usize,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    tokens: Vec<Token>,
}

impl Generator {
    /// A generator at the start of an answer.
    pub(super) fn new(generation: &Generation, sampling: &Sampling) -> Result<Self> {
        Ok(Self {
            max_tokens: generation.max_tokens,
            sampler: Sampler::new(sampling)?,
            detokenizer: Detokenizer::default(),
            stops: StopMatcher::new(&generation.stop),
            tokens: Vec::new(),
        })
    }

    /// Draws the token that follows `seen`.
    pub(super) fn next(&mut self, chat: &dyn Chat, logits: &[f32], seen: &[Token]) -> Result<Drawn> {
        let done = |token, text, finish| Ok(Drawn { token, text, finish: Some(finish) });
        if self.tokens.len() >= self.max_tokens {
            let text = self.finish(chat)?;
            return done(None, text, Finish::Length);
        }
        let token = self.sampler.pick(logits, seen)?;
        if chat.stops().contains(&token) {
            let text = self.finish(chat)?;
            return done(None, text, Finish::EndToken(token));
        }
        self.tokens.push(token);
        let (mut text, stopped) = self.stops.push(&self.detokenizer.push(chat, token)?);
        if let Some(stop) = stopped {
            return done(Some(token), text, Finish::StopText(stop));
        }
        if self.tokens.len() >= self.max_tokens {
            text.push_str(&self.finish(chat)?);
            return done(Some(token), text, Finish::Length);
        }
        Ok(Drawn { token: Some(token), text, finish: None })
    }

    /// What was kept back, when no more tokens come.
    pub(super) fn finish(&mut self, chat: &dyn Chat) -> Result<String> {
        let rest = std::mem::take(&mut self.detokenizer).finish(chat)?;
        Ok(self.stops.push(&rest).0 + &self.stops.finish())
    }

    /// What was drawn, the token that ended it not included.
    pub(super) fn into_tokens(self) -> Vec<Token> {
        self.tokens
    }
}

/// Text that may turn out to be the beginning of a stop text, and so is kept back.
struct StopMatcher {
    stops: Vec<String>,
    text: String,
    /// The stop text that has appeared.
    stopped: Option<String>,
}

impl StopMatcher {
    fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, text: String::new(), stopped: None }
    }

    /// Takes new text; returns what is safe to show, and the stop text that has appeared, if one has.
    fn push(&mut self, new: &str) -> (String, Option<String>) {
        if self.stopped.is_some() {
            return (String::new(), self.stopped.clone());
        }
        self.text.push_str(new);
        let found = self.stops.iter().filter_map(|stop| Some((self.text.find(stop.as_str())?, stop)));
        if let Some((end, stop)) = found.min_by_key(|(end, _)| *end) {
            self.stopped = Some(stop.clone());
            self.text.truncate(end);
            return (std::mem::take(&mut self.text), self.stopped.clone());
        }
        let keeps = |start: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.text[*start..]));
        let starts = self.text.char_indices().map(|(start, _)| start);
        let safe = starts.filter(keeps).min().unwrap_or(self.text.len());
        let rest = self.text.split_off(safe);
        (std::mem::replace(&mut self.text, rest), None)
    }

    /// What was kept back and turned out to be the answer's end.
    fn finish(&mut self) -> String {
        std::mem::take(&mut self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_is_shown_up_to_the_first_stop_text_however_it_arrives(
            parts in prop::collection::vec("[abc]{0,3}", 0..20),
            stops in prop::collection::vec("[abc]{1,3}", 0..3),
        ) {
            let whole: String = parts.concat();
            let end = stops.iter().filter_map(|stop| whole.find(stop.as_str())).min();
            let mut held = StopMatcher::new(&stops);
            let mut shown = String::new();
            for part in &parts {
                shown += &held.push(part).0;
            }
            shown += &held.finish();
            // A stop text that ends later may start earlier, so the first to be complete wins.
            match end {
                None => prop_assert_eq!(shown, whole),
                Some(_) => {
                    prop_assert!(whole.starts_with(&shown));
                    prop_assert!(stops.iter().any(|stop| whole[shown.len()..].starts_with(stop.as_str())));
                    prop_assert!(stops.iter().all(|stop| !shown.contains(stop.as_str())));
                }
            }
        }
    }
}
