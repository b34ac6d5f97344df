//! A circuit breaker: who has found the server dead does not ask it again with every call.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a call went, as far as the server is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It answered.
    Answered,
    /// It answered with nothing but errors.
    Failed,
    /// It answered nothing by the deadline.
    Silent,
}

/// What a call may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Ask the server.
    Closed,
    /// Give up at once; the server is not asked before this much time has passed.
    Open(Duration),
    /// Give up at once, and have somebody find out whether the server is back, who then says so.
    Probe(Duration),
}

/// Closed while the server answers; open after some failures in a row or a silence; then probed after a pause, which
/// doubles each time that the probe fails.
#[derive(Debug)]
pub(super) struct Breaker {
    limit: u32,
    pauses: (Duration, Duration),
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, pause: Duration, probing: bool },
}

impl Breaker {
    /// One that opens after this many failures in a row, and pauses from the first to the second duration.
    pub(super) fn new(limit: u32, pauses: (Duration, Duration)) -> Self {
        Self { limit: limit.max(1), pauses, state: Mutex::new(State::Closed { failures: 0 }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn gate(&self, now: Instant) -> Gate {
        match &mut *self.state() {
            State::Closed { .. } => Gate::Closed,
            State::Open { until, .. } if now < *until => Gate::Open(*until - now),
            State::Open { probing: true, pause, .. } => Gate::Open(*pause),
            State::Open { probing, pause, .. } => {
                *probing = true;
                Gate::Probe(*pause)
            }
        }
    }

    /// A call that went through has ended. Says whether the breaker opened.
    pub(super) fn ended(&self, outcome: Outcome, now: Instant) -> bool {
        let mut state = self.state();
        // A call that was under way when the breaker opened says nothing new: the probe decides.
        let State::Closed { failures } = &mut *state else { return false };
        match outcome {
            Outcome::Answered => *failures = 0,
            Outcome::Failed => *failures = failures.saturating_add(1),
            Outcome::Silent => *failures = self.limit,
        }
        let opens = *failures >= self.limit;
        if opens {
            *state = State::Open { until: now + self.pauses.0, pause: self.pauses.0, probing: false };
        }
        opens
    }

    /// A probe has ended.
    pub(super) fn probed(&self, outcome: Outcome, now: Instant) {
        let mut state = self.state();
        let State::Open { pause, .. } = *state else { return };
        *state = match outcome {
            Outcome::Answered => State::Closed { failures: 0 },
            Outcome::Failed | Outcome::Silent => {
                let pause = pause.saturating_mul(2).min(self.pauses.1);
                State::Open { until: now + pause, pause, probing: false }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(3, (SECOND, 3 * SECOND)), Instant::now())
    }

    #[test]
    fn it_opens_after_failures_in_a_row() {
        let (breaker, now) = breaker();
        for outcome in [Outcome::Failed, Outcome::Failed, Outcome::Answered, Outcome::Failed, Outcome::Failed] {
            assert!(!breaker.ended(outcome, now));
            assert_eq!(breaker.gate(now), Gate::Closed);
        }
        assert!(breaker.ended(Outcome::Failed, now));
        assert_eq!(breaker.gate(now), Gate::Open(SECOND));
    }

    #[test]
    fn it_opens_at_once_when_nothing_answers() {
        let (breaker, now) = breaker();
        assert!(breaker.ended(Outcome::Silent, now));
        assert_eq!(breaker.gate(now + SECOND / 4), Gate::Open(SECOND * 3 / 4));
        assert!(!breaker.ended(Outcome::Answered, now), "a call from before it opened does not close it");
        assert_eq!(breaker.gate(now), Gate::Open(SECOND));
    }

    #[test]
    fn one_probe_after_the_pause_decides() {
        let (breaker, mut now) = breaker();
        breaker.ended(Outcome::Silent, now);
        for pause in [SECOND, 2 * SECOND, 3 * SECOND, 3 * SECOND] {
            assert!(matches!(breaker.gate(now + pause - SECOND / 9), Gate::Open(_)), "not before {pause:?}");
            now += pause;
            assert_eq!(breaker.gate(now), Gate::Probe(pause));
            assert_eq!(breaker.gate(now), Gate::Open(pause), "there is one probe at a time");
            breaker.probed(Outcome::Failed, now);
        }
        now += 3 * SECOND;
        assert!(matches!(breaker.gate(now), Gate::Probe(_)));
        breaker.probed(Outcome::Answered, now);
        assert_eq!(breaker.gate(now), Gate::Closed);
        assert!(breaker.ended(Outcome::Silent, now), "it opens again, with the first pause");
        assert_eq!(breaker.gate(now), Gate::Open(SECOND));
    }
}
