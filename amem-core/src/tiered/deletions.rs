//! What was deleted while something else was under way.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ChunkId;

/// Recent deletions, kept for as long as somebody watches who has not seen them.
#[derive(Default)]
pub(super) struct Deletions(Mutex<State>);

#[derive(Default)]
struct State {
    count: u64,
    /// The number of each chunk's last deletion.
    recent: HashMap<ChunkId, u64>,
    /// How many watches there are since each count.
    watches: BTreeMap<u64, usize>,
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
        let since = state.count;
        *state.watches.entry(since).or_default() += 1;
        Watch(Arc::new(Watching { deletions: Arc::clone(this), since }))
    }

    pub(super) fn note(&self, ids: &[ChunkId]) {
        let mut state = self.state();
        state.count += 1;
        if !state.watches.is_empty() {
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
        let State { recent, watches, .. } = &mut *state;
        if let Some(count) = watches.get_mut(&self.since) {
            *count -= 1;
            if *count > 0 {
                return;
            }
        }
        watches.remove(&self.since);
        // Deletions that the oldest watch has seen are of no interest to anybody.
        match watches.keys().next() {
            Some(&oldest) if oldest > self.since => recent.retain(|_, at| *at > oldest),
            Some(_) => {}
            None => recent.clear(),
        }
    }
}
