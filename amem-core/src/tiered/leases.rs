//! Chunks that may not make room for others for a while: a request is about to use them, or an application always does.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ChunkId;

/// A lease that nobody ends, ends after this time at the latest.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);
/// Chunks in all leases together at most. More are not leased: a tier is not for keeping what cannot leave.
pub(super) const MOST_CHUNKS: usize = 1 << 16;

/// The leases of a stack of tiers.
#[derive(Default)]
pub(super) struct Leases(Mutex<State>);

#[derive(Default)]
pub(super) struct State {
    leases: BTreeMap<LeaseKey, Arc<[ChunkId]>>,
    /// How many leases each chunk is in.
    counts: HashMap<ChunkId, usize>,
    /// Chunks in all leases together.
    chunks: usize,
    /// The last number given to a lease.
    number: u64,
}

/// When a lease ends, by the tiers' clock, and its number.
type LeaseKey = (Duration, u64);

/// Ends a lease when it is dropped.
pub(super) struct End {
    leases: Arc<Leases>,
    key: LeaseKey,
}

impl Leases {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leases that have not ended by now. While this is held, none begins or ends.
    pub(super) fn current(&self, now: Duration) -> MutexGuard<'_, State> {
        let mut state = self.state();
        while let Some(key) = state.leases.keys().next().copied().filter(|(ends, _)| *ends <= now) {
            state.end(&key);
        }
        state
    }

    /// Leases chunks from now on, for a time. Gives `None` when too many are leased.
    pub(super) fn begin(this: &Arc<Self>, chunks: &[ChunkId], now: Duration, time: Duration) -> Option<End> {
        let mut state = this.current(now);
        if chunks.len() > MOST_CHUNKS - state.chunks {
            return None;
        }
        state.number += 1;
        state.chunks += chunks.len();
        let key = (now + time.min(LONGEST), state.number);
        chunks.iter().for_each(|chunk| *state.counts.entry(*chunk).or_default() += 1);
        state.leases.insert(key, chunks.into());
        Some(End { leases: Arc::clone(this), key })
    }
}

impl State {
    pub(super) fn is_leased(&self, chunk: &ChunkId) -> bool {
        self.counts.contains_key(chunk)
    }

    fn end(&mut self, key: &LeaseKey) {
        let Some(chunks) = self.leases.remove(key) else { return };
        self.chunks -= chunks.len();
        for chunk in chunks.iter() {
            if let Some(count) = self.counts.get_mut(chunk) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(chunk);
                }
            }
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.leases.state().end(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_when_it_is_dropped_or_its_time_is_over() {
        let (leases, chunk) = (Arc::new(Leases::default()), ChunkId([1; 32]));
        let lease = |time| Leases::begin(&leases, &[chunk], Duration::ZERO, Duration::from_secs(time)).unwrap();
        let is_leased = |now| leases.current(Duration::from_secs(now)).is_leased(&chunk);
        let (one, other) = (lease(10), lease(20));
        drop(one);
        assert!(is_leased(19) && !is_leased(20));
        drop(other);
        // One that is lost ends as well.
        std::mem::forget(lease(u64::MAX));
        assert!(is_leased(LONGEST.as_secs() - 1) && !is_leased(LONGEST.as_secs()));
        let state = leases.current(LONGEST);
        assert!(state.leases.is_empty() && state.counts.is_empty() && state.chunks == 0);
    }

    #[test]
    fn no_more_chunks_are_leased_than_the_limit() {
        let leases = Arc::new(Leases::default());
        let begin = |chunks: usize| {
            Leases::begin(&leases, &vec![ChunkId([1; 32]); chunks], Duration::ZERO, Duration::from_secs(1))
        };
        let lease = begin(MOST_CHUNKS - 1);
        assert!(lease.is_some() && begin(2).is_none() && begin(1).is_some());
        drop(lease);
        assert!(begin(MOST_CHUNKS).is_some());
    }
}
