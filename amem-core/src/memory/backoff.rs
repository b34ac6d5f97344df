//! What failed and is not worth trying again at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whether something failed lately.
#[derive(Debug, Default)]
pub(super) struct Backoff(Mutex<Option<Failure>>);

#[derive(Debug)]
struct Failure {
    at: Instant,
    /// For how long after it nothing is tried.
    pause: Duration,
}

impl Backoff {
    const SHORTEST: Duration = Duration::from_secs(60);
    const LONGEST: Duration = Duration::from_secs(3600);

    /// It has failed now: for a minute it is too early to try again.
    pub(super) fn begin(&self) {
        *self.last() = Some(Failure { at: Instant::now(), pause: Self::SHORTEST });
    }

    /// It has failed now: for a minute it is too early to try again, and for twice as long as the last time, an hour at
    /// most, if it has not [succeeded](Self::end) since, nor was tried for as long again.
    pub(super) fn begin_longer(&self) {
        let mut last = self.last();
        let recent = last.as_ref().filter(|last| last.at.elapsed() < last.pause.saturating_mul(2));
        let pause = recent.map_or(Self::SHORTEST, |last| last.pause.saturating_mul(2).min(Self::LONGEST));
        *last = Some(Failure { at: Instant::now(), pause });
    }

    /// It has succeeded.
    pub(super) fn end(&self) {
        *self.last() = None;
    }

    /// Whether it is too early to try again.
    pub(super) fn is_on(&self) -> bool {
        self.last().as_ref().is_some_and(|last| last.at.elapsed() < last.pause)
    }

    fn last(&self) -> MutexGuard<'_, Option<Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_an_hour_until_something_succeeds() {
        let backoff = Backoff::default();
        let minutes = || backoff.last().as_ref().map(|last| last.pause.as_secs() / 60);
        assert!(!backoff.is_on());
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            backoff.begin_longer();
            assert!(backoff.is_on());
            assert_eq!(minutes(), Some(expected));
        }
        backoff.end();
        assert!(!backoff.is_on());
        backoff.begin_longer();
        assert_eq!(minutes(), Some(1));
    }

    #[test]
    fn a_failure_that_is_long_over_counts_no_more() {
        let backoff = Backoff::default();
        (0..4).for_each(|_| backoff.begin_longer());
        let long_ago = |pause| Failure { at: Instant::now().checked_sub(Duration::from_millis(30)).unwrap(), pause };
        *backoff.last() = Some(long_ago(Duration::from_millis(20)));
        backoff.begin_longer();
        assert_eq!(backoff.last().as_ref().unwrap().pause, Duration::from_millis(40), "it was tried again soon after");
        *backoff.last() = Some(long_ago(Duration::from_millis(10)));
        backoff.begin_longer();
        assert_eq!(backoff.last().as_ref().unwrap().pause, Backoff::SHORTEST);
    }

    #[test]
    fn it_ends_when_its_time_is_over() {
        let backoff = Backoff::default();
        backoff.begin();
        assert!(backoff.is_on());
        backoff.last().as_mut().unwrap().pause = Duration::ZERO;
        assert!(!backoff.is_on());
    }
}
