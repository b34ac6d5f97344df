//! From a context to text, token by token.

use crate::{Context, Detokenizer, Model, Piece, Repair, Result, Sampler, Sampling, Token};

/// How an answer is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How tokens are drawn; `None` for what the model's makers recommend.
    pub sampling: Option<Sampling>,
    /// Texts that end the answer where they appear; they are not part of it.
    pub stop: Vec<String>,
}

impl Default for Generation {
    fn default() -> Self {
        Self { max_tokens: 256, sampling: None, stop: Vec::new() }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The model was done, or a stop text appeared.
    Stop,
    /// The answer or the context was as long as it may be.
    Length,
    /// Nobody listened any more.
    Cancelled,
}

/// What generation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Generated {
    pub(crate) text: String,
    /// What was drawn, the token that ended it not included. All but the last stand in the context.
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Finish,
}

/// Draws an answer from a context that has logits. The new text of every token goes to `emit`, empty or not, which
/// returns whether anybody still listens.
pub(crate) fn generate(
    model: &dyn Model,
    context: &mut dyn Context,
    limit: usize,
    generation: &Generation,
    sampling: &Sampling,
    mut emit: impl FnMut(&str) -> bool,
) -> Result<Generated> {
    let mut sampler = Sampler::new(sampling)?;
    let chat = model.chat();
    let mut detokenizer = Detokenizer::new(chat);
    let mut held = StopMatcher::new(&generation.stop);
    let mut tokens = Vec::new();
    let mut text = String::new();
    let finish = loop {
        if tokens.len() >= generation.max_tokens {
            break Finish::Length;
        }
        let token = sampler.pick(context.logits(), context.tokens())?;
        if chat.stops().contains(&token) {
            break Finish::Stop;
        }
        tokens.push(token);
        let (new, stopped) = held.push(&detokenizer.push(token)?);
        text.push_str(&new);
        if !emit(&new) {
            break Finish::Cancelled;
        }
        if stopped {
            break Finish::Stop;
        }
        if context.tokens().len() >= limit {
            break Finish::Length;
        }
        model.extend(context, &[Piece::Fresh([token].into())], &Repair::None)?;
    };
    if !held.stopped {
        let rest = held.push(&detokenizer.finish()?).0 + &held.finish();
        text.push_str(&rest);
        if !rest.is_empty() && finish != Finish::Cancelled {
            emit(&rest);
        }
    }
    Ok(Generated { text, tokens, finish })
}

/// Text that may turn out to be the beginning of a stop text, and so is kept back.
struct StopMatcher<'a> {
    stops: &'a [String],
    text: String,
    stopped: bool,
}

impl<'a> StopMatcher<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self { stops, text: String::new(), stopped: false }
    }

    /// Takes new text; returns what is safe to show, and whether a stop text has appeared.
    fn push(&mut self, new: &str) -> (String, bool) {
        if self.stopped {
            return (String::new(), true);
        }
        self.text.push_str(new);
        let stops = || self.stops.iter().filter(|stop| !stop.is_empty());
        if let Some(end) = stops().filter_map(|stop| self.text.find(stop.as_str())).min() {
            self.text.truncate(end);
            self.stopped = true;
            return (std::mem::take(&mut self.text), true);
        }
        let keeps = |start: &usize| stops().any(|stop| stop.starts_with(&self.text[*start..]));
        let starts = self.text.char_indices().map(|(start, _)| start);
        let safe = starts.filter(keeps).min().unwrap_or(self.text.len());
        let rest = self.text.split_off(safe);
        (std::mem::replace(&mut self.text, rest), false)
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
