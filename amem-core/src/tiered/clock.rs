//! The time that a stack of tiers goes by.

use std::time::{Duration, Instant, SystemTime};

/// Seconds since 1970 that never run backwards.
pub(super) struct Clock {
    began: f64,
    since: Instant,
    /// Time that a test lets pass.
    #[cfg(test)]
    skipped: std::sync::Mutex<Duration>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            began: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64(),
            since: Instant::now(),
            #[cfg(test)]
            skipped: std::sync::Mutex::default(),
        }
    }
}

impl Clock {
    /// Seconds since 1970.
    pub(super) fn now(&self) -> f64 {
        self.began + self.elapsed().as_secs_f64()
    }

    /// Time since this clock was made.
    pub(super) fn elapsed(&self) -> Duration {
        #[cfg(test)]
        let skipped = *self.skipped.lock().expect("no test panics while it holds this");
        #[cfg(not(test))]
        let skipped = Duration::ZERO;
        self.since.elapsed() + skipped
    }

    /// Lets time pass at once.
    #[cfg(test)]
    pub(super) fn skip(&self, time: Duration) {
        *self.skipped.lock().expect("no test panics while it holds this") += time;
    }
}
