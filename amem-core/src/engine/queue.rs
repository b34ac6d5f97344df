//! What waits for the scheduler: jobs of many namespaces, each in its own line, taken in turn.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::EngineStats;
use super::request::Job;
use crate::{Error, Namespace, Result};

/// A bounded queue that callers fill and one scheduler empties.
pub(super) struct Queue {
    limit: usize,
    state: Mutex<State>,
    /// Told when a job comes or the queue is closed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: HashMap<Namespace, VecDeque<Job>>,
    /// Whose line is served next: each namespace with a line once.
    turns: VecDeque<Namespace>,
    waiting: usize,
    closed: bool,
    stats: EngineStats,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job at the end of its owner's line.
    pub(super) fn push(&self, owner: &Namespace, job: Job) -> Result<()> {
        let mut state = self.state();
        if state.closed {
            return Err(Error::Cancelled);
        }
        // Those whose callers are gone take no room from others.
        let abandoned = if state.waiting < self.limit { Vec::new() } else { state.take_abandoned() };
        let waiting = state.waiting;
        let refused = if waiting < self.limit {
            state.push_back(owner, job);
            None
        } else {
            Some(job)
        };
        drop(state);
        // Without the lock, for they give back what they hold.
        drop(abandoned);
        if let Some(job) = refused {
            job.refuse(Error::Overloaded { waiting });
            return Err(Error::Overloaded { waiting });
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Puts a job back that could not begin: it is the next to be taken.
    pub(super) fn put_back(&self, owner: &Namespace, job: Job) {
        self.state().push_front(owner, job);
    }

    /// The next job, from the line of the namespace that was served longest ago.
    pub(super) fn try_pop(&self) -> Option<(Namespace, Job)> {
        self.state().pop()
    }

    /// As [`try_pop`](Self::try_pop), and waits until there is one. `None` says that the queue is closed.
    pub(super) fn wait_pop(&self) -> Option<(Namespace, Job)> {
        let mut state = self.state();
        while !state.closed {
            if let Some(found) = state.pop() {
                return Some(found);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Ends the queue: nothing more is taken from it, and what waits is dropped, which tells its callers.
    pub(super) fn close(&self) {
        let dropped = {
            let mut state = self.state();
            state.closed = true;
            state.turns.clear();
            state.waiting = 0;
            std::mem::take(&mut state.lines)
        };
        drop(dropped);
        self.changed.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    pub(super) fn stats(&self) -> EngineStats {
        let state = self.state();
        EngineStats { waiting: state.waiting, ..state.stats }
    }

    pub(super) fn note(&self, note: impl FnOnce(&mut EngineStats)) {
        note(&mut self.state().stats);
    }
}

impl State {
    /// Puts a job at the end of its owner's line.
    fn push_back(&mut self, owner: &Namespace, job: Job) {
        if !self.lines.contains_key(owner) {
            self.turns.push_back(owner.clone());
        }
        self.lines.entry(owner.clone()).or_default().push_back(job);
        self.waiting += 1;
    }

    /// Puts a job at the beginning of its owner's line, which is served next.
    fn push_front(&mut self, owner: &Namespace, job: Job) {
        self.turns.retain(|namespace| namespace != owner);
        self.turns.push_front(owner.clone());
        self.lines.entry(owner.clone()).or_default().push_front(job);
        self.waiting += 1;
    }

    /// The next job. None is taken from a closed queue.
    fn pop(&mut self) -> Option<(Namespace, Job)> {
        if self.closed {
            return None;
        }
        let owner = self.turns.pop_front()?;
        let line = self.lines.get_mut(&owner)?;
        let job = line.pop_front()?;
        if line.is_empty() {
            self.lines.remove(&owner);
        } else {
            self.turns.push_back(owner.clone());
        }
        self.waiting -= 1;
        Some((owner, job))
    }

    /// Those jobs whose callers are gone.
    fn take_abandoned(&mut self) -> Vec<Job> {
        let mut abandoned = Vec::new();
        for line in self.lines.values_mut() {
            let (gone, waiting): (VecDeque<Job>, _) = std::mem::take(line).into_iter().partition(Job::is_abandoned);
            abandoned.extend(gone);
            *line = waiting;
        }
        self.lines.retain(|_, line| !line.is_empty());
        let lines = &self.lines;
        self.turns.retain(|owner| lines.contains_key(owner));
        self.waiting -= abandoned.len();
        abandoned
    }
}

#[cfg(test)]
mod tests {
    use futures_channel::oneshot;

    use super::*;
    use crate::engine::request::{Answering, PrefillJob};

    type Listener = oneshot::Receiver<Result<crate::Prefilled>>;

    fn job() -> (Job, Listener) {
        let (sender, receiver) = oneshot::channel();
        (Job::Prefill(PrefillJob::new([].into(), Vec::new(), false, sender)), receiver)
    }

    fn name(name: &str) -> Namespace {
        Namespace::new(name).unwrap()
    }

    #[test]
    fn namespaces_take_turns_however_many_jobs_each_has() {
        let queue = Queue::new(10);
        let mut listeners = Vec::new();
        for owner in ["a", "a", "a", "b", "a", "c", "b"] {
            let (job, listener) = job();
            queue.push(&name(owner), job).unwrap();
            listeners.push(listener);
        }
        let order: Vec<String> = std::iter::from_fn(|| Some(queue.try_pop()?.0.to_string())).collect();
        assert_eq!(order.concat(), "abcabaa");
    }

    #[test]
    fn a_full_queue_refuses_until_somebody_is_served_or_gone() {
        let queue = Queue::new(2);
        let (first, kept) = job();
        let (second, gone) = job();
        queue.push(&name("a"), first).unwrap();
        queue.push(&name("b"), second).unwrap();
        let (third, _kept) = job();
        assert!(matches!(queue.push(&name("a"), third), Err(Error::Overloaded { waiting: 2 })));
        drop(gone);
        let (third, _kept_too) = job();
        queue.push(&name("a"), third).unwrap();
        assert_eq!(queue.stats().waiting, 2);
        drop(kept);
    }

    #[test]
    fn questions_that_would_give_something_back_take_no_room_either_once_their_callers_are_gone() {
        let queue = Queue::new(1);
        let (told, heard) = std::sync::mpsc::channel();
        let (events, gone) = futures_channel::mpsc::unbounded();
        let request = crate::Request::new(name("a"), Vec::new())
            .finally(Box::new(move |_, ended| told.send(matches!(ended, Err(Error::Cancelled))).unwrap()));
        queue.push(&name("a"), Job::Answer(Box::new(Answering { request, events }))).unwrap();
        drop(gone);
        let (next, _listener) = job();
        queue.push(&name("b"), next).unwrap();
        assert_eq!(heard.try_recv(), Ok(true), "and they are told");
        assert_eq!(queue.stats().waiting, 1);
    }

    #[test]
    fn who_is_refused_hears_why() {
        let queue = Queue::new(1);
        let (first, _listener) = job();
        queue.push(&name("a"), first).unwrap();
        let (second, mut refused) = job();
        assert!(matches!(queue.push(&name("a"), second), Err(Error::Overloaded { waiting: 1 })));
        assert!(matches!(refused.try_recv(), Ok(Some(Err(Error::Overloaded { waiting: 1 })))));
    }

    #[test]
    fn what_is_put_back_comes_next() {
        let queue = Queue::new(9);
        let mut listeners = Vec::new();
        for owner in ["a", "b", "a"] {
            let (job, listener) = job();
            queue.push(&name(owner), job).unwrap();
            listeners.push(listener);
        }
        let (owner, job) = queue.try_pop().unwrap();
        queue.put_back(&owner, job);
        assert_eq!(queue.try_pop().unwrap().0, owner);
    }

    #[test]
    fn closing_tells_those_who_wait() {
        let queue = Queue::new(9);
        let (job, mut listener) = job();
        queue.push(&name("a"), job).unwrap();
        queue.close();
        assert!(listener.try_recv().is_err(), "the job was dropped");
        assert!(queue.wait_pop().is_none(), "and the scheduler does not wait for another");
        let (job, _listener) = self::job();
        assert!(matches!(queue.push(&name("a"), job), Err(Error::Cancelled)));
    }
}
