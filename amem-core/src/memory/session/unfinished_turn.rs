//! A turn that the engine computes, and the epoch that comes back from it.

use std::collections::HashMap;
use std::sync::Arc;

use futures_channel::oneshot;

use super::epoch::{Epoch, LaidOut, PlacedTurn};
use super::turns::Turn;
use crate::memory::cost::Bill;
use crate::memory::records::Entry;
use crate::{Completion, Context, Error, Finish, RecordId, Result, Token};

/// What a turn leaves behind.
pub(super) struct TurnEnd {
    pub(super) epoch: Epoch,
    /// Whether it was answered. Otherwise the epoch is as it was before.
    pub(super) answered: bool,
    /// Whether a stop text ended the answer: its tokens have that text at their end, and its text has not.
    pub(super) stopped: bool,
}

/// A turn that the engine computes, and its epoch but for the context, which the engine has.
pub(super) struct UnfinishedTurn {
    /// The turn, whose answer is not there yet.
    pub(super) turn: Turn,
    /// Where it stands. Its pieces are with the engine.
    pub(super) laid_out: LaidOut,
    /// The memories that come with it.
    pub(super) memories: Vec<RecordId>,
    /// All memories in the context, those that come with it included.
    pub(super) resident: HashMap<RecordId, Arc<Entry>>,
    pub(super) opening: Vec<Token>,
    /// What was pending before it.
    pub(super) pending: Vec<Token>,
    /// Whether what was said stays in the context.
    pub(super) conversation: bool,
    pub(super) bill: Option<Bill>,
    pub(super) give_back: oneshot::Sender<TurnEnd>,
}

impl UnfinishedTurn {
    /// Gives the epoch back: with the turn, or without turns where what was said does not stay, or as it was before if the
    /// turn was not answered. None is given back if the engine has no context for it, or a broken one.
    pub(super) fn finish(self, context: Option<Box<dyn Context>>, completion: Result<&Completion, &Error>) {
        let Self { turn, laid_out, memories, mut resident, opening, mut pending, conversation, bill, give_back } = self;
        bill.into_iter().for_each(|bill| bill.record(completion));
        let Some(mut context) = context else { return };
        let mut turns = laid_out.turns;
        let answer = completion.ok().and_then(|completion| completion.choices.first());
        // A turn that was given up before its question was computed never was.
        let answer = answer.filter(|_| context.tokens().len() >= laid_out.end);
        match answer {
            Some(choice) if conversation => {
                let turn = Arc::new(Turn { answer: choice.tokens.clone(), text: choice.text.clone(), ..turn });
                // Those that came before the first turn stay when it is taken back.
                let memories = if laid_out.standing > 0 { memories } else { Vec::new() };
                turns.push(PlacedTurn { turn, start: laid_out.start, memories });
                pending.clone_from(&choice.unwritten);
            }
            Some(_) => {
                context.truncate(laid_out.stays);
                turns.clear();
                pending.clear();
            }
            None => {
                context.truncate(laid_out.len);
                memories.iter().for_each(|id| drop(resident.remove(id)));
                turns.truncate(laid_out.standing);
            }
        }
        // What was cut off stays reserved otherwise.
        context.release();
        // A context that broke is of no use, and a session that is gone needs none.
        if context.is_usable() {
            let epoch = Epoch { context, resident, opening, turns, pending };
            let stopped = answer.is_some_and(|choice| matches!(choice.finish, Finish::StopText(_)));
            let _ = give_back.send(TurnEnd { epoch, answered: answer.is_some(), stopped });
        }
    }
}
