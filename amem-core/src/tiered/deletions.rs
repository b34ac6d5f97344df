//! What was deleted while something else was under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ChunkId;

/// Recent deletions, kept for as long as anybody watches.
#[derive(Default)]
pub(super) struct Deletions(Mutex<State>);

#[derive(Default)]
struct State {
    count: u64,
    /// The number of each chunk's last deletion.
    recent: HashMap<ChunkId, u64>,
    watches: usize,
}

/// Tells which chunks were deleted after it was made. Clones tell the same.
#[derive(Clone)]
pub(super) struct Watch(Arc<Watching>);

struct Watching {
    deletions: Arc<Deletions>,
    since: u64,
}

impl Deletions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watch(this: &Arc<Self>) -> Watch {
        let mut state = this.state();
        state.watches += 1;
        Watch(Arc::new(Watching { deletions: Arc::clone(this), since: state.count }))
    }

    pub(super) fn note(&self, ids: &[ChunkId]) {
        let mut state = self.state();
        state.count += 1;
        if state.watches > 0 {
            let count = state.count;
            state.recent.extend(ids.iter().map(|id| (*id, count)));
        }
    }
}

impl Watch {
    /// Whether a chunk was not deleted since.
    pub(super) fn is_current(&self, id: &ChunkId) -> bool {
        self.0.deletions.state().recent.get(id).is_none_or(|at| *at <= self.0.since)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut state = self.deletions.state();
        state.watches -= 1;
        if state.watches == 0 {
            state.recent.clear();
        }
    }
}
