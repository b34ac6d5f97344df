//! Who reads from a file at this moment.
//!
//! The system frees the room of a removed file only when nobody has it open any more. So whoever removes one waits for
//! those who read from it, and those who were about to read ahead let it be: when the removal is done, the room is there.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::disk::DiskFile;

/// How long a removal waits for those who read. A disk that takes longer hangs, and the removal goes on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Those who read from a file.
#[derive(Default)]
pub(crate) struct Readers {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    count: usize,
    removed: bool,
}

/// A file from which somebody reads. A removal waits until this is dropped.
pub(crate) struct Reading {
    /// Dropped first: the file is closed, unless somebody keeps it open, before it no longer counts.
    pub(crate) file: Arc<dyn DiskFile>,
    counted: Counted,
}

struct Counted(Arc<Readers>);

/// A file from which somebody will read ahead, unless it is closed or removed before.
pub(crate) struct ReadLater {
    file: Weak<dyn DiskFile>,
    readers: Arc<Readers>,
}

impl Readers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(this: &Arc<Self>) -> Counted {
        this.state().count += 1;
        Counted(Arc::clone(this))
    }

    /// Reads from a file, which is open.
    pub(crate) fn read(this: &Arc<Self>, file: Arc<dyn DiskFile>) -> Reading {
        Reading { file, counted: Self::count(this) }
    }

    /// Waits until nobody reads from the file, which was removed and which nobody can open any more.
    pub(crate) fn wait(&self) {
        let mut state = self.state();
        state.removed = true;
        drop(self.done.wait_timeout_while(state, PATIENCE, |state| state.count > 0));
    }
}

impl Reading {
    /// As a file from which somebody reads later.
    pub(crate) fn later(&self) -> ReadLater {
        ReadLater { file: Arc::downgrade(&self.file), readers: Arc::clone(&self.counted.0) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.count -= 1;
        if state.count == 0 {
            self.0.done.notify_all();
        }
    }
}

impl ReadLater {
    /// Reads from the file now; `None` if it was closed or removed.
    pub(crate) fn read(&self) -> Option<Reading> {
        let counted = Readers::count(&self.readers);
        let file = self.file.upgrade().filter(|_| !self.is_removed())?;
        Some(Reading { file, counted })
    }

    /// Whether somebody waits for those who read, because the file was removed.
    pub(crate) fn is_removed(&self) -> bool {
        self.readers.state().removed
    }
}
