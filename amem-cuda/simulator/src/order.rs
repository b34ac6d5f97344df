//! What happens before what.
//!
//! Every stream counts its operations. A [`Clock`] holds, for every stream, how many of its operations are known to
//! have ended before a certain moment: an operation's clock is the set of operations that it has to wait for. A stream
//! takes over an event's clock when it waits for the event, and the host does when it waits itself. An access conflicts
//! with an earlier one that is not in its operation's clock, in whichever order the two happened to run.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The index of a stream.
pub(crate) type Actor = usize;

/// For every stream, how many of its operations have ended before.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Clock(Vec<u64>);

impl Clock {
    pub(crate) fn get(&self, actor: Actor) -> u64 {
        self.0.get(actor).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, actor: Actor, ticks: u64) {
        if self.0.len() <= actor {
            self.0.resize(actor + 1, 0);
        }
        self.0[actor] = ticks;
    }

    /// Adds everything that `other` knows.
    pub(crate) fn join(&mut self, other: &Clock) {
        for (actor, &ticks) in other.0.iter().enumerate() {
            if ticks > self.get(actor) {
                self.set(actor, ticks);
            }
        }
    }

    /// The streams that it names, with their numbers of operations.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Actor, u64)> + '_ {
        self.0.iter().copied().enumerate()
    }
}

/// One operation, as the one who accessed some memory.
#[derive(Clone, Debug)]
pub(crate) struct Epoch {
    pub(crate) actor: Actor,
    pub(crate) tick: u64,
    /// What the operation was, for messages.
    pub(crate) label: Arc<str>,
}

impl Epoch {
    fn same(&self, other: &Epoch) -> bool {
        self.actor == other.actor && self.tick == other.tick
    }

    fn before(&self, clock: &Clock) -> bool {
        self.tick <= clock.get(self.actor)
    }
}

/// Two accesses that nothing orders.
#[derive(Debug)]
pub(crate) struct Conflict {
    /// The bytes that both touch.
    pub(crate) range: Range<u64>,
    pub(crate) earlier: Epoch,
    pub(crate) earlier_wrote: bool,
}

#[derive(Clone, Debug)]
struct Segment {
    end: u64,
    write: Option<Epoch>,
    /// The last read of every stream since the write.
    reads: Vec<Epoch>,
}

impl Segment {
    fn same(&self, other: &Segment) -> bool {
        let writes = match (&self.write, &other.write) {
            (Some(a), Some(b)) => a.same(b),
            (None, None) => true,
            _ => false,
        };
        writes && self.reads.len() == other.reads.len() && self.reads.iter().zip(&other.reads).all(|(a, b)| a.same(b))
    }

    fn conflict(&self, write: bool, clock: &Clock) -> Option<(&Epoch, bool)> {
        if let Some(earlier) = self.write.as_ref().filter(|earlier| !earlier.before(clock)) {
            return Some((earlier, true));
        }
        let read = self.reads.iter().find(|earlier| write && !earlier.before(clock));
        read.map(|earlier| (earlier, false))
    }
}

/// Who accessed which bytes last.
#[derive(Debug, Default)]
pub(crate) struct History {
    segments: BTreeMap<u64, Segment>,
}

impl History {
    /// Notes an access by an operation whose clock is `clock`, which includes the operation itself.
    pub(crate) fn access(&mut self, range: Range<u64>, write: bool, by: &Epoch, clock: &Clock) -> Result<(), Conflict> {
        if range.is_empty() {
            return Ok(());
        }
        self.check(range.clone(), write, clock)?;
        self.split(range.start);
        self.split(range.end);
        let mut at = range.start;
        while at < range.end {
            let known = self.segments.range(at..range.end).next().map(|(&start, _)| start);
            match known {
                Some(start) if start == at => {
                    if let Some(segment) = self.segments.get_mut(&at) {
                        if write {
                            segment.write = Some(by.clone());
                            segment.reads.clear();
                        } else {
                            segment.reads.retain(|earlier| earlier.actor != by.actor);
                            segment.reads.push(by.clone());
                        }
                        at = segment.end;
                    }
                }
                next => {
                    let end = next.unwrap_or(range.end);
                    let (writer, reads) = if write { (Some(by.clone()), vec![]) } else { (None, vec![by.clone()]) };
                    self.segments.insert(at, Segment { end, write: writer, reads });
                    at = end;
                }
            }
        }
        self.merge(range);
        Ok(())
    }

    /// Whether an access would conflict with an earlier one.
    pub(crate) fn check(&self, range: Range<u64>, write: bool, clock: &Clock) -> Result<(), Conflict> {
        let first = self.segments.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        for (&start, segment) in self.segments.range(first..range.end) {
            if segment.end <= range.start {
                continue;
            }
            if let Some((earlier, earlier_wrote)) = segment.conflict(write, clock) {
                let shared = start.max(range.start)..segment.end.min(range.end);
                return Err(Conflict { range: shared, earlier: earlier.clone(), earlier_wrote });
            }
        }
        Ok(())
    }

    /// Forgets what happened to memory that is gone.
    pub(crate) fn forget(&mut self, range: Range<u64>) {
        self.split(range.start);
        self.split(range.end);
        let starts: Vec<u64> = self.segments.range(range).map(|(&start, _)| start).collect();
        for start in starts {
            self.segments.remove(&start);
        }
    }

    fn split(&mut self, at: u64) {
        let Some((&start, segment)) = self.segments.range_mut(..at).next_back() else {
            return;
        };
        if start < at && at < segment.end {
            let rest = segment.clone();
            segment.end = at;
            self.segments.insert(at, rest);
        }
    }

    /// Joins neighbours that say the same, so that the map stays small.
    fn merge(&mut self, range: Range<u64>) {
        let first = self.segments.range(..range.start).next_back().map_or(range.start, |(&start, _)| start);
        let starts: Vec<u64> = self.segments.range(first..=range.end).map(|(&start, _)| start).collect();
        let mut kept: Option<u64> = None;
        for start in starts {
            let Some(segment) = self.segments.get(&start).cloned() else {
                continue;
            };
            match kept.and_then(|before| self.segments.get_mut(&before)) {
                Some(before) if before.end == start && before.same(&segment) => {
                    before.end = segment.end;
                    self.segments.remove(&start);
                }
                _ => kept = Some(start),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(ticks: &[u64]) -> Clock {
        Clock(ticks.to_vec())
    }

    fn epoch(actor: Actor, tick: u64) -> Epoch {
        Epoch { actor, tick, label: Arc::from("operation") }
    }

    #[test]
    fn a_read_conflicts_with_a_write_that_is_not_in_its_clock() {
        let mut history = History::default();
        history.access(0..16, true, &epoch(0, 1), &clock(&[1])).unwrap();
        let conflict = history.access(8..32, false, &epoch(1, 1), &clock(&[0, 1])).unwrap_err();
        assert_eq!((conflict.range, conflict.earlier.actor, conflict.earlier_wrote), (8..16, 0, true));
        history.access(8..32, false, &epoch(1, 1), &clock(&[1, 1])).unwrap();
    }

    #[test]
    fn a_write_conflicts_with_a_read_but_two_reads_do_not() {
        let mut history = History::default();
        history.access(0..16, false, &epoch(0, 1), &clock(&[1])).unwrap();
        history.access(0..16, false, &epoch(1, 1), &clock(&[0, 1])).unwrap();
        let conflict = history.access(4..5, true, &epoch(2, 1), &clock(&[1, 0, 1])).unwrap_err();
        assert_eq!((conflict.range, conflict.earlier.actor, conflict.earlier_wrote), (4..5, 1, false));
        history.access(4..5, true, &epoch(2, 1), &clock(&[1, 1, 1])).unwrap();
        history.access(0..4, false, &epoch(3, 1), &clock(&[])).unwrap();
        assert!(history.access(0..5, false, &epoch(3, 1), &clock(&[])).is_err());
    }

    #[test]
    fn accesses_to_separate_bytes_do_not_conflict() {
        let mut history = History::default();
        history.access(0..16, true, &epoch(0, 1), &clock(&[1])).unwrap();
        history.access(16..32, true, &epoch(1, 1), &clock(&[0, 1])).unwrap();
        history.access(16..32, true, &epoch(1, 2), &clock(&[0, 2])).unwrap();
        history.forget(0..16);
        history.access(0..16, true, &epoch(1, 3), &clock(&[0, 3])).unwrap();
    }

    #[test]
    fn a_map_of_equal_neighbours_stays_small() {
        let mut history = History::default();
        for piece in 0..100 {
            history.access(piece * 4..piece * 4 + 4, true, &epoch(0, 1), &clock(&[1])).unwrap();
        }
        assert_eq!(history.segments.len(), 1);
        history.access(100..200, false, &epoch(0, 2), &clock(&[2])).unwrap();
        assert_eq!(history.segments.len(), 3);
        history.access(0..400, true, &epoch(0, 3), &clock(&[3])).unwrap();
        assert_eq!(history.segments.len(), 1);
    }

    #[test]
    fn every_interval_map_agrees_with_a_map_of_single_bytes() {
        let mut random = crate::random::Random::new(7);
        for _ in 0..200 {
            let mut history = History::default();
            let mut bytes = vec![(None::<(Actor, u64)>, Vec::<(Actor, u64)>::new()); 24];
            let mut clocks = vec![Clock::default(); 3];
            for step in 1..40 {
                let actor = (random.next() % 3) as usize;
                if random.chance(1, 3) {
                    let other = clocks[(random.next() % 3) as usize].clone();
                    clocks[actor].join(&other);
                }
                clocks[actor].set(actor, step);
                let start = random.next() % 23;
                let end = (start + 1 + random.next() % 8).min(24);
                let write = random.chance(1, 2);
                let clock = clocks[actor].clone();
                let ordered = |(a, t): &(Actor, u64)| *t <= clock.get(*a);
                let expected = (start..end).all(|byte| {
                    let (writer, readers) = &bytes[byte as usize];
                    writer.iter().all(ordered) && (!write || readers.iter().all(ordered))
                });
                let found = history.access(start..end, write, &epoch(actor, step), &clock);
                assert_eq!(found.is_ok(), expected);
                if expected {
                    for byte in start..end {
                        let (writer, readers) = &mut bytes[byte as usize];
                        if write {
                            *writer = Some((actor, step));
                            readers.clear();
                        } else {
                            readers.push((actor, step));
                        }
                    }
                }
            }
        }
    }
}
