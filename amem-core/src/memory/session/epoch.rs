//! An epoch: a context and what stands in it.

use std::collections::HashMap;
use std::sync::Arc;

use super::turns::{Turn, lead};
use crate::memory::records::{Entry, Records};
use crate::{Chat, Context, Filter, Layout, Piece, RecordId, Timestamp, Token};

/// A context and what stands in it: the system line, memories, and what was said.
pub(super) struct Epoch {
    pub(super) context: Box<dyn Context>,
    pub(super) resident: HashMap<RecordId, Arc<Entry>>,
    /// What stands between the memories and the first turn.
    pub(super) opening: Vec<Token>,
    pub(super) turns: Vec<PlacedTurn>,
    /// Tokens of the last answer that were drawn but never computed. They come before the next question.
    pub(super) pending: Vec<Token>,
}

/// A turn that stands in a context.
#[derive(Clone)]
pub(super) struct PlacedTurn {
    pub(super) turn: Arc<Turn>,
    /// Length to truncate to, so that the turn and the memories that came with it are gone.
    pub(super) start: usize,
    /// The memories that came with it.
    pub(super) memories: Vec<RecordId>,
}

/// A turn laid out in an epoch's context, before anything of it is computed.
pub(super) struct LaidOut {
    /// What is put behind what stands in the context.
    pub(super) pieces: Vec<Piece>,
    /// The turns that stand before it then.
    pub(super) turns: Vec<PlacedTurn>,
    /// How many of them stand in the context already.
    pub(super) standing: usize,
    /// Where it begins, as [`PlacedTurn::start`].
    pub(super) start: usize,
    /// Tokens of the context as it stands.
    pub(super) len: usize,
    /// Tokens of the context without what is said now: memories stay that are put before the first turn.
    pub(super) stays: usize,
    /// Tokens of the context with all of it.
    pub(super) end: usize,
}

impl Epoch {
    pub(super) fn new(context: Box<dyn Context>, entries: Vec<Arc<Entry>>) -> Self {
        let resident = entries.into_iter().map(|entry| (entry.record.id, entry)).collect();
        Self { context, resident, opening: Vec::new(), turns: Vec::new(), pending: Vec::new() }
    }

    /// Tokens that stand in the context, or have to be put there next.
    pub(super) fn len(&self) -> usize {
        self.context.tokens().len() + self.pending.len()
    }

    /// The epoch with its memories as they are now, if each of them still says what it said, and passes the filter.
    pub(super) fn current(mut self, records: &Records, filter: Option<&Filter>) -> Option<Self> {
        for entry in self.resident.values_mut() {
            let now = records.get(entry.record.id, Timestamp::now())?;
            let passes = filter.is_none_or(|filter| filter.matches(&now.record));
            if !passes || now.record.text != entry.record.text {
                return None;
            }
            *entry = now;
        }
        Some(self)
    }

    /// Takes the context back to where a conversation differs from what stands, and returns how many turns of the
    /// conversation are passed: those that stand, and those before them.
    pub(super) fn keep(&mut self, opening: &[Token], conversation: &[Arc<Turn>]) -> usize {
        let first = self.turns.first().filter(|_| self.opening == opening);
        let first = first.and_then(|first| conversation.iter().position(|turn| Arc::ptr_eq(turn, &first.turn)));
        let told = &conversation[first.unwrap_or(conversation.len())..];
        let kept = self.turns.iter().zip(told).take_while(|(placed, turn)| Arc::ptr_eq(&placed.turn, turn)).count();
        if let Some(cut) = self.turns.get(kept) {
            self.context.truncate(cut.start);
            self.pending.clear();
            for placed in self.turns.drain(kept..) {
                placed.memories.iter().for_each(|id| drop(self.resident.remove(id)));
            }
        }
        if self.turns.is_empty() {
            self.opening = opening.to_vec();
        }
        first.map_or(0, |first| first + kept)
    }

    /// Leaves the text that ended the last answer out of it, as whoever read the answer would tell it. Where that cannot be put
    /// into tokens, the answer stays as it was drawn.
    pub(super) fn leave_out_stop_text(&mut self, chat: &dyn Chat) {
        let Some(PlacedTurn { turn, .. }) = self.turns.last_mut() else { return };
        // The tokens that were drawn before it, if it began with a token. Otherwise some token has to be another one.
        let rest = |drawn: &[Token]| Some(turn.text.strip_prefix(&*chat.decode(drawn).ok()?)?.trim().is_empty());
        let before = (0..=turn.answer.len()).rev().find_map(|count| Some((count, rest(&turn.answer[..count])?)));
        let answer = match before {
            Some((count, true)) => turn.answer[..count].to_vec(),
            _ => match chat.encode(turn.text.trim()) {
                Ok(answer) => answer,
                Err(_) => return,
            },
        };
        let written = &turn.answer[..turn.answer.len().saturating_sub(self.pending.len())];
        let same = written.iter().zip(&answer).take_while(|(drawn, told)| drawn == told).count();
        self.context.truncate(self.context.tokens().len().saturating_sub(written.len() - same));
        // What was cut off stays reserved otherwise.
        self.context.release();
        self.pending = answer[same..].to_vec();
        *turn = Arc::new(turn.with_answer(answer));
    }

    /// Lays out a turn behind what stands: the turns before it that do not stand yet, its memories, its prompt.
    pub(super) fn lay_out(
        &self,
        layout: &Layout,
        before: &[Arc<Turn>],
        memories: Vec<Piece>,
        is_question: bool,
        prompt: &[Token],
    ) -> LaidOut {
        let (len, standing) = (self.context.tokens().len(), self.turns.len());
        // Memories stand before the first turn, or else before the question that they come with.
        let late = standing > 0;
        let stays = if late { len } else { len + tokens_of(&memories) };
        let mut turns = self.turns.clone();
        let mut fresh = self.pending.clone();
        for turn in before {
            let start = stays + fresh.len();
            fresh.extend_from_slice(lead(layout, &self.opening, turns.is_empty(), turn.is_question));
            fresh.extend_from_slice(&turn.prompt);
            fresh.extend_from_slice(&turn.answer);
            turns.push(PlacedTurn { turn: Arc::clone(turn), start, memories: Vec::new() });
        }
        let start = stays + fresh.len();
        let mut pieces = Vec::new();
        if late && !memories.is_empty() {
            fresh.extend_from_slice(&layout.late_memories);
            pieces.push(Piece::Fresh(fresh.into()));
            pieces.extend(memories);
            fresh = layout.late_question.to_vec();
        } else {
            pieces.extend(memories);
            // Apart from the question, whose attention chooses what is repaired.
            if before.iter().any(|turn| turn.len(layout) > 0) {
                pieces.push(Piece::Fresh(fresh.into()));
                fresh = Vec::new();
            }
            fresh.extend_from_slice(lead(layout, &self.opening, turns.is_empty(), is_question));
        }
        fresh.extend_from_slice(prompt);
        pieces.push(Piece::Fresh(fresh.into()));
        let end = len + tokens_of(&pieces);
        LaidOut { pieces, turns, standing, start, len, stays, end }
    }
}

fn tokens_of(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.tokens().len()).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{AppendOptions, Error, Reservation, Result};

    /// A context of tokens without KV.
    struct Tokens(Vec<Token>);

    impl Context for Tokens {
        fn tokens(&self) -> &[Token] {
            &self.0
        }

        fn append(&mut self, pieces: &[Piece], _: &AppendOptions) -> Result<()> {
            pieces.iter().for_each(|piece| self.0.extend_from_slice(piece.tokens()));
            Ok(())
        }

        fn pending(&self) -> usize {
            0
        }

        fn reserve(&mut self, _: Reservation) -> Result<()> {
            Ok(())
        }

        fn release(&mut self) {}

        fn fork(&mut self) -> Result<Box<dyn Context>> {
            Ok(Box::new(Self(self.0.clone())))
        }

        fn truncate(&mut self, len: usize) {
            self.0.truncate(len);
        }

        fn logits(&self) -> &[f32] {
            &[]
        }

        fn bytes(&self) -> u64 {
            0
        }

        fn is_usable(&self) -> bool {
            true
        }
    }

    fn layout() -> Layout {
        let (next_question, late_memories, late_question) = ([50].into(), [60, 61].into(), [70].into());
        Layout { next_question, late_memories, late_question, ..Layout::default() }
    }

    /// A question of one token with an answer of one token.
    fn turn(prompt: Token, answer: Token) -> Arc<Turn> {
        let mut turn = Turn::unanswered(true, vec![prompt], Vec::new(), HashSet::new());
        turn.answer = vec![answer];
        Arc::new(turn)
    }

    /// A context of two tokens, an opening of one, and no turns.
    fn epoch() -> Epoch {
        Epoch { opening: vec![40], ..Epoch::new(Box::new(Tokens(vec![1, 2])), Vec::new()) }
    }

    /// Words are numbers.
    struct Numbers;

    impl Chat for Numbers {
        fn encode(&self, text: &str) -> Result<Vec<Token>> {
            text.split_whitespace().map(|word| word.parse().map_err(|_| Error::Empty { what: "number" })).collect()
        }

        fn decode(&self, tokens: &[Token]) -> Result<String> {
            Ok(tokens.iter().map(Token::to_string).collect::<Vec<_>>().join(" "))
        }

        fn token_bytes(&self, _: Token) -> Option<Vec<u8>> {
            None
        }

        fn stops(&self) -> &[Token] {
            &[]
        }

        fn layout(&self, _: &str) -> Result<Layout> {
            Ok(layout())
        }
    }

    fn piece(tokens: &[Token]) -> Piece {
        Piece::Fresh(tokens.into())
    }

    fn tokens(laid_out: &LaidOut) -> Vec<&[Token]> {
        laid_out.pieces.iter().map(Piece::tokens).collect()
    }

    #[test]
    fn memories_stand_before_the_first_turn_and_stay_without_it() {
        let laid_out = epoch().lay_out(&layout(), &[], vec![piece(&[10, 11])], true, &[20]);
        assert_eq!(tokens(&laid_out), [&[10, 11][..], &[40, 20]]);
        let LaidOut { turns, standing, start, len, stays, end, .. } = laid_out;
        assert_eq!((turns.len(), standing, len, stays, start, end), (0, 0, 2, 4, 4, 6));
    }

    #[test]
    fn turns_that_are_said_again_stand_apart_from_the_question() {
        let before = [turn(20, 21), turn(22, 23)];
        let laid_out = epoch().lay_out(&layout(), &before, vec![piece(&[10, 11])], true, &[24]);
        assert_eq!(tokens(&laid_out), [&[10, 11][..], &[40, 20, 21, 50, 22, 23], &[50, 24]]);
        let starts: Vec<usize> = laid_out.turns.iter().map(|placed| placed.start).collect();
        assert_eq!((starts, laid_out.standing, laid_out.start, laid_out.end), (vec![4, 7], 0, 10, 12));
    }

    #[test]
    fn memories_that_come_late_are_gone_with_their_turn() {
        let first = PlacedTurn { turn: turn(2, 3), start: 1, memories: Vec::new() };
        let epoch = Epoch { turns: vec![first], pending: vec![3], ..epoch() };
        let laid_out = epoch.lay_out(&layout(), &[], vec![piece(&[10])], true, &[20]);
        assert_eq!(tokens(&laid_out), [&[3, 60, 61][..], &[10], &[70, 20]]);
        let LaidOut { turns, standing, start, len, stays, end, .. } = laid_out;
        assert_eq!((turns.len(), standing, len, stays, start, end), (1, 1, 2, 2, 3, 8));
    }

    #[test]
    fn of_an_answer_that_a_stop_text_ended_those_tokens_stay_that_tell_its_text() {
        let told = |drawn: &[Token], unwritten: usize, text: &str| {
            let answered = Turn { text: text.to_owned(), ..turn(20, 0).with_answer(drawn.to_vec()) };
            let (written, pending) = drawn.split_at(drawn.len() - unwritten);
            let context = Box::new(Tokens([&[1, 2, 20], written].concat()));
            let placed = PlacedTurn { turn: Arc::new(answered), start: 2, memories: Vec::new() };
            let turns = vec![placed];
            let mut epoch = Epoch { turns, pending: pending.to_vec(), ..Epoch::new(context, Vec::new()) };
            epoch.leave_out_stop_text(&Numbers);
            (epoch.context.tokens()[3..].to_vec(), epoch.pending, epoch.turns[0].turn.answer.clone())
        };
        // The stop text, 8 9, was drawn as two tokens, the last of which was not computed.
        assert_eq!(told(&[5, 6, 8, 9], 1, "5 6 "), (vec![5, 6], vec![], vec![5, 6]));
        assert_eq!(told(&[5, 6, 8, 9], 3, "5 6 "), (vec![5], vec![6], vec![5, 6]));
        // It began within a token, so that the text ends in another one.
        assert_eq!(told(&[5, 78, 9], 1, "5 7"), (vec![5], vec![7], vec![5, 7]));
        assert_eq!(told(&[8, 9], 2, ""), (vec![], vec![], vec![]));
        assert_eq!(told(&[5, 6, 8], 1, "no number"), (vec![5, 6], vec![8], vec![5, 6, 8]), "it stays as it was");
    }

    #[test]
    fn results_of_tools_follow_what_was_said_without_a_lead() {
        let first = PlacedTurn { turn: turn(2, 3), start: 1, memories: Vec::new() };
        let epoch = Epoch { turns: vec![first], pending: vec![3], ..epoch() };
        assert_eq!(tokens(&epoch.lay_out(&layout(), &[], Vec::new(), false, &[20])), [&[3, 20]]);
        assert_eq!(tokens(&epoch.lay_out(&layout(), &[], Vec::new(), true, &[20])), [&[3, 50, 20]]);
    }
}
