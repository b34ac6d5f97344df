//! A lock whose holder may await: one at a time, in the order in which they came. It knows no runtime.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

/// The lock.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    taken: bool,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// The lock is held while this lives.
pub(super) struct Turn {
    turns: Turns,
}

impl Turns {
    /// Waits for one's turn.
    pub(super) async fn take(&self) -> Turn {
        let turn = {
            let mut state = self.state();
            if !state.taken {
                state.taken = true;
                return Turn { turns: self.clone() };
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(sender);
            receiver
        };
        // The sender cannot be gone: whoever holds the turn hands it on, even one who was cancelled while waiting,
        // for then the turn is dropped with the channel.
        match turn.await {
            Ok(turn) => turn,
            Err(oneshot::Canceled) => Turn { turns: self.clone() },
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut state = self.turns.state();
            let next = state.waiting.pop_front();
            state.taken = next.is_some();
            next
        };
        // Outside the lock: if the one that waited is gone, the turn comes back and is dropped, which hands it on.
        if let Some(next) = next {
            drop(next.send(Turn { turns: self.turns.clone() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn a_turn_is_handed_on_past_those_who_gave_up() {
        block_on(async {
            let turns = Turns::default();
            let first = turns.take().await;
            let (mut second, mut third) = (Box::pin(turns.take()), Box::pin(turns.take()));
            let mut fourth = Box::pin(turns.take());
            assert!(poll_once(&mut second).await.is_none());
            assert!(poll_once(&mut third).await.is_none());
            assert!(poll_once(&mut fourth).await.is_none());
            drop(second);
            drop(first);
            // The third was handed the turn, and goes without having looked.
            drop(third);
            drop(poll_once(&mut fourth).await.expect("it is its turn"));
            assert!(poll_once(turns.take()).await.is_some(), "nobody holds the turn");
        });
    }
}
