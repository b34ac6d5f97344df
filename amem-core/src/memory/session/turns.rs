//! What was said: turns as tokens, and which of them a client sends again.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use crate::memory::records::{Entry, Records};
use crate::{Chat, Exchange, Layout, RecordId, Reply, Timestamp, Token, ToolCall};

/// A question and its answer, as tokens, and what they may tell of.
#[derive(Clone)]
pub(super) struct Turn {
    /// Whether a user asked. Otherwise tools reported results.
    pub(super) is_question: bool,
    /// What was asked, up to where the answer begins.
    pub(super) prompt: Vec<Token>,
    /// What was answered, as tokens and as text.
    pub(super) answer: Vec<Token>,
    pub(super) text: String,
    /// The calls of tools that a client told of, with the text. In an answer of ours they stand in the text.
    pub(super) calls: Vec<ToolCall>,
    /// The memories that were recalled for it, as they were.
    pub(super) recalled: Vec<Arc<Entry>>,
    /// All that stood in the context, or behind what was said there.
    pub(super) stood: HashSet<RecordId>,
}

impl Turn {
    /// A turn that a client tells of. No memory of ours is behind it.
    fn told(exchange: Exchange) -> Self {
        let Exchange { is_question, prompt, reply } = exchange;
        let told = reply.map(|reply| (reply.tokens, reply.message.text, reply.message.tool_calls));
        let (answer, text, calls) = told.unwrap_or_default();
        Self { is_question, prompt, answer, text, calls, recalled: Vec::new(), stood: HashSet::new() }
    }

    /// A turn that is to be answered, with the memories that are recalled for it and all that stands in its context.
    pub(super) fn unanswered(
        is_question: bool,
        prompt: Vec<Token>,
        recalled: Vec<Arc<Entry>>,
        stood: HashSet<RecordId>,
    ) -> Self {
        let (answer, text, calls) = Default::default();
        Self { is_question, prompt, answer, text, calls, recalled, stood }
    }

    /// The same turn with its answer in other tokens.
    pub(super) fn with_answer(&self, answer: Vec<Token>) -> Self {
        Self { answer, ..self.clone() }
    }

    /// Tokens that it takes behind other turns.
    pub(super) fn len(&self, layout: &Layout) -> usize {
        let lead = if self.is_question { layout.next_question.len() } else { 0 };
        lead + self.prompt.len() + self.answer.len()
    }

    /// Whether it tells of nothing that has changed since: no memory that was recalled for it says something else now,
    /// and none that it could have been told from was forgotten.
    pub(super) fn is_true(&self, records: &Records, forgotten: &HashSet<RecordId>) -> bool {
        self.recalled.iter().all(|entry| is_current(records, entry))
            && self.stood.iter().all(|id| !forgotten.contains(id))
    }

    /// Whether a client tells of this turn.
    fn is(&self, chat: &dyn Chat, exchange: &Exchange) -> bool {
        let answered = |reply: &Reply| {
            if reply.message.tool_calls.is_empty() || !self.calls.is_empty() {
                return reply.is(&self.text, &self.calls);
            }
            let (text, calls) = chat.tool_calls(&self.text);
            reply.is(&text, &calls)
        };
        self.is_question == exchange.is_question
            && self.prompt == exchange.prompt
            && exchange.reply.as_ref().is_some_and(answered)
    }
}

/// Whether a memory still says what it said.
fn is_current(records: &Records, entry: &Entry) -> bool {
    records.get(entry.record.id, Timestamp::now()).is_some_and(|now| now.record.text == entry.record.text)
}

/// What stands before a prompt: the opening before the first one, nothing before the results of tools.
pub(super) fn lead<'t>(layout: &'t Layout, opening: &'t [Token], is_first: bool, is_question: bool) -> &'t [Token] {
    match (is_first, is_question) {
        (true, _) => opening,
        (false, true) => &layout.next_question,
        (false, false) => &[],
    }
}

/// The turns of a conversation that a client tells of: ours where it tells of them, or else its own.
///
/// What is known may begin later than the client's conversation, for old turns leave a session that is full. It may also
/// end otherwise: a client may have changed what was said.
pub(super) fn recognised(chat: &dyn Chat, known: &[Arc<Turn>], told: Vec<Exchange>) -> Vec<Arc<Turn>> {
    let run = |from: usize| known.iter().zip(&told[from..]).take_while(|(turn, told)| turn.is(chat, told)).count();
    let (count, Reverse(from)) = (0..told.len()).map(|from| (run(from), Reverse(from))).max().unwrap_or_default();
    let ours =
        |index: usize| index.checked_sub(from).filter(|index| *index < count).map(|index| Arc::clone(&known[index]));
    let turn = |(index, exchange)| ours(index).unwrap_or_else(|| Arc::new(Turn::told(exchange)));
    told.into_iter().enumerate().map(turn).collect()
}

/// The last of these turns that have room together, from a question on.
pub(super) fn last_that_fit<'t>(turns: &'t [Arc<Turn>], layout: &Layout, room: usize) -> &'t [Arc<Turn>] {
    let mut left = room;
    let fits = |turn: &&Arc<Turn>| {
        let fits = turn.len(layout) <= left;
        left = left.saturating_sub(turn.len(layout));
        fits
    };
    let count = turns.iter().rev().take_while(fits).count();
    let last = &turns[turns.len() - count..];
    let question = last.iter().position(|turn| turn.is_question).unwrap_or(last.len());
    &last[question..]
}
