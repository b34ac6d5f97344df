//! An epoch: a context and what stands in it.

use std::collections::HashMap;
use std::sync::Arc;

use super::turns::Turn;
use crate::memory::records::{Entry, Records};
use crate::{Context, Filter, RecordId, Timestamp, Token};

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
    /// Tokens before it, memories that came with it not included.
    pub(super) start: usize,
    /// The memories that came with it.
    pub(super) memories: Vec<RecordId>,
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
}
