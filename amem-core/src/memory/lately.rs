//! What is not worth trying again at once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whether something happened within the last minute.
#[derive(Debug, Default)]
pub(super) struct Lately(Mutex<Option<Instant>>);

impl Lately {
    const LONG: Duration = Duration::from_secs(60);

    /// It happens now.
    pub(super) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it happened lately.
    pub(super) fn happened(&self) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < Self::LONG)
    }
}
