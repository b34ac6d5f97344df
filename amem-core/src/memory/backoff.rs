//! What failed and is not worth trying again at once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whether something failed within the last minute.
#[derive(Debug, Default)]
pub(super) struct Backoff(Mutex<Option<Instant>>);

impl Backoff {
    const LONG: Duration = Duration::from_secs(60);

    /// It has failed now.
    pub(super) fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it is too early to try again.
    pub(super) fn is_on(&self) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < Self::LONG)
    }
}
