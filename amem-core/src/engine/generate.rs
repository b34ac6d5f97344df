//! From logits to text, token by token.

use crate::{
    Chat, Constraint, ConstraintSource, Context, Detokenizer, Error, Model, Result, Sampler, Sampling, Token,
    TokenLogprob, TokenMask,
};

/// How an answer is generated.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// Tokens at most.
    pub max_tokens: usize,
    /// Tokens before the model may end the answer by itself.
    pub min_tokens: usize,
    /// How tokens are drawn; `None` for what the model's makers recommend.
    pub sampling: Option<Sampling>,
    /// Texts that end the answer where they appear; they are not part of it. At most 64, of 1,024 bytes each.
    pub stop: Vec<String>,
    /// How many answers are drawn from one prompt, each with a seed of its own. At most 128.
    pub n: usize,
    /// Whether each token comes with its log probability, and with how many of the likeliest tokens, at most 20.
    pub logprobs: Option<usize>,
    /// What the answer may say.
    pub constraint: Option<ConstraintSource>,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            min_tokens: 0,
            sampling: None,
            stop: Vec::new(),
            n: 1,
            logprobs: None,
            constraint: None,
        }
    }
}

impl Generation {
    /// With so many tokens at most.
    #[must_use]
    pub fn max_tokens(self, tokens: usize) -> Self {
        Self { max_tokens: tokens, ..self }
    }

    /// With tokens drawn like this.
    #[must_use]
    pub fn sampling(self, sampling: Sampling) -> Self {
        Self { sampling: Some(sampling), ..self }
    }

    /// With so many tokens before the model may end the answer by itself.
    #[must_use]
    pub fn min_tokens(self, tokens: usize) -> Self {
        Self { min_tokens: tokens, ..self }
    }

    /// With so many answers from one prompt.
    #[must_use]
    pub fn n(self, answers: usize) -> Self {
        Self { n: answers, ..self }
    }

    /// With each token's log probability, and so many of the likeliest tokens.
    #[must_use]
    pub fn logprobs(self, top: usize) -> Self {
        Self { logprobs: Some(top), ..self }
    }

    /// Saying only what this allows.
    #[must_use]
    pub fn constraint(self, source: ConstraintSource) -> Self {
        Self { constraint: Some(source), ..self }
    }

    /// Ended by any of these texts.
    #[must_use]
    pub fn stop<T: Into<String>>(self, texts: impl IntoIterator<Item = T>) -> Self {
        Self { stop: texts.into_iter().map(Into::into).collect(), ..self }
    }

    /// Whether every number makes sense.
    ///
    /// # Errors
    /// [`Error::BadValue`] for the first that does not.
    pub fn check(&self) -> Result<()> {
        let demand = |holds: bool, what, value: usize, expected| {
            if holds { Ok(()) } else { Err(Error::BadValue { what, value: value.to_string(), expected }) }
        };
        demand((1..=128).contains(&self.n), "n", self.n, "from 1 to 128")?;
        demand(self.logprobs.is_none_or(|top| top <= 20), "logprobs", self.logprobs.unwrap_or(0), "at most 20")?;
        demand(self.stop.len() <= 64, "stop texts", self.stop.len(), "at most 64")?;
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        demand(longest <= 1024, "bytes of a stop text", longest, "at most 1,024")?;
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
    /// What the answer may say ended here.
    Constraint,
    /// The answer or the context was as long as it may be.
    Length,
    /// Nobody listened any more.
    Cancelled,
}

impl Finish {
    /// The reason in the words of OpenAI's API: `stop` or `length`, and `cancelled` for what nobody waited for.
    pub fn name(&self) -> &'static str {
        match self {
            Finish::EndToken(_) | Finish::StopText(_) | Finish::Constraint => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "cancelled",
        }
    }
}

/// What came of one more token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drawn {
    /// The token to put into the context next. `None` when the answer has ended with a token that is no part of it.
    pub(super) token: Option<Token>,
    /// What is new and safe to show.
    pub(super) text: String,
    /// How likely the token was, where that is asked for.
    pub(super) logprob: Option<TokenLogprob>,
    /// Why the answer ended, if it has.
    pub(super) finish: Option<Finish>,
}

/// Draws an answer, a token at a time, from logits that somebody else computes.
pub(super) struct Generator {
    max_tokens: usize,
    min_tokens: usize,
    logprobs: Option<usize>,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    constraint: Option<Box<dyn Constraint>>,
    tokens: Vec<Token>,
}

impl Generator {
    /// A generator at the start of an answer.
    pub(super) fn new(generation: &Generation, sampling: &Sampling) -> Result<Self> {
        Ok(Self {
            max_tokens: generation.max_tokens,
            min_tokens: generation.min_tokens,
            logprobs: generation.logprobs,
            sampler: Sampler::new(sampling)?,
            detokenizer: Detokenizer::default(),
            stops: StopMatcher::new(&generation.stop),
            constraint: generation.constraint.as_ref().map(ConstraintSource::start).transpose()?,
            tokens: Vec::new(),
        })
    }

    /// Draws the token that follows a context.
    pub(super) fn next(&mut self, model: &dyn Model, context: &dyn Context) -> Result<Drawn> {
        let chat = model.chat();
        if self.tokens.len() >= self.max_tokens {
            return self.end(chat, Finish::Length);
        }
        let Some(token) = self.pick(model, context)? else { return self.end(chat, Finish::Constraint) };
        if chat.stops().contains(&token) {
            return self.end(chat, Finish::EndToken(token));
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token)?;
        }
        let (text, finish) = self.take(chat, token)?;
        let logprob = self.logprobs.map(|top| TokenLogprob::of(context.logits(), token, top));
        Ok(Drawn { token: Some(token), text, logprob, finish })
    }

    /// Takes a token of the answer. Returns what is new and safe to show, and why the answer ends with it, if it does.
    fn take(&mut self, chat: &dyn Chat, token: Token) -> Result<(String, Option<Finish>)> {
        self.tokens.push(token);
        let (mut text, stopped) = self.stops.push(&self.detokenizer.push(chat, token)?);
        let mut finish = stopped.map(Finish::StopText);
        if finish.is_none() && self.tokens.len() >= self.max_tokens {
            let (rest, stopped) = self.flush(chat)?;
            text.push_str(&rest);
            finish = Some(stopped.map_or(Finish::Length, Finish::StopText));
        }
        Ok((text, finish))
    }

    /// The next token, or `None` where a constraint allows no more.
    fn pick(&mut self, model: &dyn Model, context: &dyn Context) -> Result<Option<Token>> {
        let (vocabulary, stops) = (model.info().vocabulary, model.chat().stops());
        let too_short = self.tokens.len() < self.min_tokens;
        let Some(constraint) = &mut self.constraint else {
            let allowed = too_short.then(|| {
                let mut mask = TokenMask::all(vocabulary);
                stops.iter().for_each(|stop| mask.remove(*stop));
                mask
            });
            return model.sample(context, &mut self.sampler, allowed.as_ref()).map(Some);
        };
        let mut mask = TokenMask::new(vocabulary);
        constraint.allow(&mut mask)?;
        let complete = constraint.is_complete();
        if mask.is_empty() {
            let dead = || Error::Model("the constraint allows no token and no end of the answer".into());
            return if complete { Ok(None) } else { Err(dead()) };
        }
        if complete && !too_short {
            stops.iter().for_each(|stop| mask.insert(*stop));
        }
        model.sample(context, &mut self.sampler, Some(&mask)).map(Some)
    }

    fn end(&mut self, chat: &dyn Chat, finish: Finish) -> Result<Drawn> {
        let (text, stopped) = self.flush(chat)?;
        Ok(Drawn { token: None, text, logprob: None, finish: Some(stopped.map_or(finish, Finish::StopText)) })
    }

    /// What was kept back, when no more tokens come, and the stop text that it completes, if it does.
    pub(super) fn flush(&mut self, chat: &dyn Chat) -> Result<(String, Option<String>)> {
        let rest = std::mem::take(&mut self.detokenizer).finish(chat)?;
        let (text, stopped) = self.stops.push(&rest);
        Ok((text + &self.stops.finish(), stopped))
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
    use proptest::prelude::*;

    use super::*;
    use crate::engine::fixtures::Bytes;

    #[test]
    fn a_stop_text_that_only_the_last_token_shows_ends_the_answer_as_any_other() {
        let drawn = |bytes: &[u8]| {
            let generation = Generation::default().max_tokens(2).stop(["\u{FFFD}"]);
            let mut generator = Generator::new(&generation, &Sampling::default()).unwrap();
            let taken = bytes.iter().map(|byte| generator.take(&Bytes, Token::from(*byte)).unwrap());
            taken.collect::<Vec<_>>()
        };
        // The first byte of two is held back, for the other may come.
        let stopped = Some(Finish::StopText("\u{FFFD}".to_owned()));
        assert_eq!(drawn(&[b'a', 0xC3]), [("a".to_owned(), None), (String::new(), stopped)]);
        assert_eq!(drawn(b"ab"), [("a".to_owned(), None), ("b".to_owned(), Some(Finish::Length))]);
    }

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
