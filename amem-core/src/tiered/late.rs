//! What was written to shared tiers later than the calls that brought it had returned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{ChunkId, Result, Wanted};

/// Chunks of a tier that wait to be asked about at most, while nobody can be asked. Beyond that, those with the first ids
/// are forgotten.
const MOST: usize = 1 << 16;

/// Chunks that were written late, by the places of their tiers, and who knows whether they are wanted.
#[derive(Default)]
pub(super) struct LateWrites {
    asked: Mutex<Vec<Arc<dyn Wanted>>>,
    written: Mutex<BTreeMap<usize, BTreeSet<ChunkId>>>,
}

impl LateWrites {
    fn asked(&self) -> MutexGuard<'_, Vec<Arc<dyn Wanted>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, BTreeMap<usize, BTreeSet<ChunkId>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks this one too from now on.
    pub(super) fn ask(&self, wanted: Arc<dyn Wanted>) {
        self.asked().push(wanted);
    }

    /// Notes that chunks were written to a tier, or may have been. Nothing if there is nobody to be asked.
    pub(super) fn note(&self, at: usize, chunks: impl IntoIterator<Item = ChunkId>) {
        if self.asked().is_empty() {
            return;
        }
        let mut written = self.written();
        let written = written.entry(at).or_default();
        written.extend(chunks);
        while written.len() > MOST {
            written.pop_first();
        }
    }

    /// What was noted, and is not any more.
    pub(super) fn take(&self) -> BTreeMap<usize, Vec<ChunkId>> {
        let written = std::mem::take(&mut *self.written());
        written.into_iter().map(|(at, chunks)| (at, chunks.into_iter().collect())).collect()
    }

    /// Those of these chunks that nobody wants.
    pub(super) async fn unwanted(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>> {
        let asked = self.asked().clone();
        let mut unwanted = chunks.to_vec();
        for wanted in asked {
            let mut are_wanted = wanted.are_wanted(&unwanted).await?.into_iter();
            // A chunk of which it said nothing stays.
            unwanted.retain(|_| !are_wanted.next().unwrap_or(true));
        }
        Ok(unwanted)
    }
}
