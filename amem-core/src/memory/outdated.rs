//! Records that no longer count, whose KV this process may still hold: another process that changed or forgot them
//! deletes KV from its own stores only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::records::Entry;

/// Records that wait at most: for a store that cannot delete, they wait in vain.
const MOST: usize = 1 << 16;

/// Records whose KV is to be deleted.
#[derive(Default)]
pub(super) struct Outdated(Mutex<Vec<Arc<Entry>>>);

impl Outdated {
    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds records, as far as there is room.
    pub(super) fn add(&self, records: Vec<Arc<Entry>>) {
        let mut entries = self.entries();
        let room = MOST.saturating_sub(entries.len());
        if records.len() > room {
            // Nobody finds it, for a chunk's name is a hash of its text.
            let left_out = records.len() - room;
            log::warn!("KV of {left_out} outdated texts stays until it makes room for other KV: too many wait already");
        }
        entries.extend(records.into_iter().take(room));
    }

    /// All of them. Whoever takes them deletes their KV, or adds them again.
    pub(super) fn take(&self) -> Vec<Arc<Entry>> {
        std::mem::take(&mut *self.entries())
    }
}
