//! One answer as it is generated: its text as soon as it is known to be text, and the tools that it calls.

use amem_core::{Chat, Finish, TokenLogprob, ToolCall};

use super::ids;
use crate::http::Result;

/// An answer that is complete.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// What the model said, without calls.
    pub(crate) text: String,
    /// The tools that it called. An id is 24 hexadecimal digits, before which a format puts what it knows calls by.
    pub(crate) tool_calls: Vec<ToolCall>,
    /// How likely each token of the text was, if that was asked for.
    pub(crate) logprobs: Vec<TokenLogprob>,
    /// Why it ended.
    pub(crate) finish: Finish,
}

/// Text that can be shown, and how likely its tokens were.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// The text. May be empty where there are log probabilities.
    pub(crate) text: String,
    /// Those of the tokens that it came with, if that was asked for.
    pub(crate) logprobs: Vec<TokenLogprob>,
}

impl Shown {
    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.is_empty()
    }
}

/// Which tools an answer may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// None: an answer is all text.
    None,
    /// One at most. What the model calls beyond that is left out.
    One,
    /// Any.
    Any,
}

/// Takes an answer as it is generated, and gives what can be shown of it.
///
/// All that was shown, one after another, is the answer's text: without white space around it, and without calls.
#[derive(Debug)]
pub(super) struct Listener {
    calls: Calls,
    /// All that was generated, without white space at its start.
    all: String,
    /// Bytes of it that were shown.
    shown: usize,
    /// Log probabilities of all tokens, and how many of them were shown.
    logprobs: Vec<TokenLogprob>,
    shown_logprobs: usize,
}

impl Listener {
    pub(super) fn new(calls: Calls) -> Self {
        Self { calls, all: String::new(), shown: 0, logprobs: Vec::new(), shown_logprobs: 0 }
    }

    /// Takes what is new of it.
    pub(super) fn push(&mut self, chat: &dyn Chat, text: &str, logprob: Option<TokenLogprob>) -> Shown {
        self.all.push_str(if self.all.is_empty() { text.trim_start() } else { text });
        self.logprobs.extend(logprob);
        let text = match self.calls {
            Calls::None => self.all.len(),
            Calls::One | Calls::Any => chat.text_before_calls(&self.all),
        };
        // White space at an answer's end, or before a call, is none of its text.
        let safe = self.all.get(..text).unwrap_or_default().trim_end().len();
        let shown = self.shown.min(safe)..safe;
        self.shown = self.shown.max(safe);
        let text = self.all.get(shown).unwrap_or_default().to_owned();
        // A token's probability comes with its text, where that is not kept back.
        if safe < self.all.trim_end().len() {
            return Shown { text, logprobs: Vec::new() };
        }
        let logprobs = self.logprobs[self.shown_logprobs..].to_vec();
        self.shown_logprobs = self.logprobs.len();
        Shown { text, logprobs }
    }

    /// What is left to show at its end, and all of it.
    ///
    /// # Errors
    /// 500 when the system gives no random bytes for the ids of calls.
    pub(super) fn finish(mut self, chat: &dyn Chat, finish: Finish) -> Result<(Shown, Choice)> {
        let (text, mut tool_calls) = match self.calls {
            Calls::None => (self.all.trim_end().to_owned(), Vec::new()),
            Calls::One | Calls::Any => chat.tool_calls(self.all.trim_end()),
        };
        if self.calls == Calls::One {
            tool_calls.truncate(1);
        }
        for call in &mut tool_calls {
            call.id = ids::unique()?;
        }
        if !tool_calls.is_empty() {
            // The tokens of calls are no tokens of the text.
            self.logprobs.truncate(self.shown_logprobs);
        }
        let logprobs = self.logprobs[self.shown_logprobs..].to_vec();
        let shown = Shown { text: text.get(self.shown..).unwrap_or_default().to_owned(), logprobs };
        Ok((shown, Choice { text, tool_calls, logprobs: self.logprobs, finish }))
    }
}

#[cfg(test)]
mod tests {
    use amem_core::{Layout, Token};
    use proptest::prelude::*;

    use super::*;

    /// `<` begins a call and `>` ends it; what is between them is its name.
    struct Angles;

    impl Chat for Angles {
        fn layout(&self, _: &str) -> amem_core::Result<Layout> {
            Ok(Layout::default())
        }

        fn encode(&self, _: &str) -> amem_core::Result<Vec<Token>> {
            Ok(Vec::new())
        }

        fn decode(&self, _: &[Token]) -> amem_core::Result<String> {
            Ok(String::new())
        }

        fn token_bytes(&self, _: Token) -> Option<Vec<u8>> {
            None
        }

        fn stops(&self) -> &[Token] {
            &[]
        }

        fn tool_calls(&self, answer: &str) -> (String, Vec<ToolCall>) {
            let (mut text, mut calls) = (String::new(), Vec::new());
            let mut parts = answer.split('<');
            text.push_str(parts.next().unwrap_or_default().trim_end());
            for part in parts {
                let Some((name, after)) = part.split_once('>') else { return (answer.to_owned(), Vec::new()) };
                calls.push(ToolCall::new(format!("call{:05}", calls.len()), name, "{}"));
                text.push_str(after.trim_end());
            }
            (text, calls)
        }

        fn text_before_calls(&self, answer: &str) -> usize {
            answer.find('<').unwrap_or(answer.len())
        }
    }

    fn hear(calls: Calls, parts: &[&str]) -> (Vec<String>, Choice) {
        let mut listener = Listener::new(calls);
        let mut shown: Vec<String> = parts.iter().map(|part| listener.push(&Angles, part, None).text).collect();
        let (rest, choice) = listener.finish(&Angles, Finish::Length).unwrap();
        shown.push(rest.text);
        (shown, choice)
    }

    #[test]
    fn text_is_shown_at_once_and_calls_are_not_shown() {
        let (shown, choice) = hear(Calls::Any, &[" Let", " me", " see.\n<", "lo", "ok>", "<at>", " So."]);
        assert_eq!(shown, ["Let", " me", " see.", "", "", "", "", " So."]);
        assert_eq!(choice.text, "Let me see. So.");
        let names: Vec<&str> = choice.tool_calls.iter().map(|call| &*call.name).collect();
        assert_eq!(names, ["look", "at"]);
        assert!(choice.tool_calls.iter().all(|call| call.id.len() == 24));
        assert_ne!(choice.tool_calls[0].id, choice.tool_calls[1].id);
    }

    #[test]
    fn a_call_that_is_none_is_shown_in_the_end() {
        assert_eq!(hear(Calls::Any, &["a ", "<", "b"]).0, ["a", "", "", " <b"]);
    }

    #[test]
    fn one_call_is_no_more_than_one_and_none_is_text() {
        assert_eq!(hear(Calls::One, &["<a><b>"]).1.tool_calls.len(), 1);
        let (shown, choice) = hear(Calls::None, &["<a>", "<b>"]);
        assert_eq!((shown.concat().as_str(), choice.tool_calls.len()), ("<a><b>", 0));
    }

    #[test]
    fn log_probabilities_come_with_their_text_and_without_those_of_calls() {
        let token = |token| TokenLogprob::of(&[0.0; 4], token, 0);
        let mut listener = Listener::new(Calls::Any);
        let first = listener.push(&Angles, "So. ", Some(token(1)));
        assert_eq!((first.text.as_str(), first.logprobs.len()), ("So.", 1));
        let held = listener.push(&Angles, "<", Some(token(2)));
        assert!(held.is_empty());
        listener.push(&Angles, "a>", Some(token(3)));
        let (rest, choice) = listener.finish(&Angles, Finish::Length).unwrap();
        assert!(rest.is_empty());
        assert_eq!(choice.logprobs.iter().map(|logprob| logprob.token).collect::<Vec<_>>(), [1]);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_the_text(parts in prop::collection::vec("[<> a\\né]{0,3}", 0..12), calls: bool) {
            let calls = if calls { Calls::Any } else { Calls::None };
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let (shown, choice) = hear(calls, &parts);
            prop_assert_eq!(shown.concat(), choice.text);
        }
    }
}
