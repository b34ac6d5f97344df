//! Streams and events: what is queued, and when it runs.

use crate::machine::{Machine, Pace, new_handle};
use crate::memory::shared_label;
use crate::operation::{Copy, Operation, Side, Work};
use crate::order::{Actor, Clock};
use crate::status::{Result, Status, refuse};
use std::collections::VecDeque;

/// The stream that a null handle names.
pub(crate) const LEGACY: Actor = 0;

/// Handles that CUDA gives a meaning.
const LEGACY_HANDLES: [u64; 2] = [0, 1];
const PER_THREAD_HANDLE: u64 = 2;

/// When so many operations are queued, some of them run.
const LONG_QUEUE: usize = 512;

/// A stream: operations that run one after another.
pub(crate) struct Stream {
    pub(crate) name: String,
    /// Whether the null stream waits for it and it waits for the null stream.
    pub(crate) blocking: bool,
    pub(crate) priority: i32,
    pub(crate) queue: VecDeque<Operation>,
    /// What the stream's next operation comes after.
    pub(crate) clock: Clock,
    /// The number of the last operation that was queued, and of the last that ran.
    pub(crate) issued: u64,
    pub(crate) completed: u64,
    /// Set while its operations become nodes of a graph.
    pub(crate) capture: Option<Capturing>,
}

/// A stream's part in a capture.
#[derive(Clone, Debug)]
pub(crate) struct Capturing {
    pub(crate) capture: u64,
    /// The nodes that the next one comes after.
    pub(crate) tail: Vec<usize>,
}

/// An event.
pub(crate) struct Event {
    pub(crate) timing: bool,
    pub(crate) state: EventState,
}

/// What an event was last recorded in.
pub(crate) enum EventState {
    Unrecorded,
    Recorded { clock: Clock, actor: Actor, tick: u64, time: Option<u64> },
    Captured { capture: u64, tail: Vec<usize> },
}

impl Stream {
    fn new(name: String, blocking: bool, priority: i32) -> Stream {
        Stream {
            name,
            blocking,
            priority,
            queue: VecDeque::new(),
            clock: Clock::default(),
            issued: 0,
            completed: 0,
            capture: None,
        }
    }

    pub(crate) fn legacy() -> Stream {
        Stream::new("the null stream".to_string(), true, 0)
    }
}

impl Machine {
    /// The stream that a handle names.
    pub(crate) fn stream(&mut self, handle: u64) -> Result<Actor> {
        if LEGACY_HANDLES.contains(&handle) {
            return Ok(LEGACY);
        }
        if handle == PER_THREAD_HANDLE {
            let thread = std::thread::current().id();
            if let Some(&actor) = self.thread_streams.get(&thread) {
                return Ok(actor);
            }
            let actor = self.add_stream(format!("the stream of {thread:?}"), true, 0);
            self.thread_streams.insert(thread, actor);
            return Ok(actor);
        }
        match self.stream_handles.get(&handle) {
            Some(&actor) => Ok(actor),
            None => refuse(Status::INVALID_HANDLE, format!("there is no stream {handle:#x}, or it is destroyed")),
        }
    }

    pub(crate) fn add_stream(&mut self, name: String, blocking: bool, priority: i32) -> Actor {
        self.streams.push(Stream::new(name, blocking, priority));
        self.streams.len() - 1
    }

    pub(crate) fn create_stream(&mut self, blocking: bool, priority: i32) -> u64 {
        let actor = self.add_stream(String::new(), blocking, priority);
        if let Some(stream) = self.streams.get_mut(actor) {
            stream.name = format!("stream {actor}");
        }
        let handle = new_handle();
        self.stream_handles.insert(handle, actor);
        self.counts.created += 1;
        handle
    }

    /// Destroys a stream's handle. What is queued still runs.
    pub(crate) fn destroy_stream(&mut self, handle: u64) -> Result<()> {
        let actor = self.stream(handle)?;
        if actor == LEGACY || handle == PER_THREAD_HANDLE {
            return refuse(Status::INVALID_HANDLE, "this stream cannot be destroyed");
        }
        if self.capture_of(actor).is_some() {
            self.invalidate_capture(actor, "its stream was destroyed");
        }
        self.stream_handles.remove(&handle);
        Ok(())
    }

    /// Gives a stream something to do, now or, while it is captured, whenever the graph is launched.
    pub(crate) fn submit(&mut self, actor: Actor, work: Work) -> Result<()> {
        self.check_legacy(actor)?;
        if self.capture_of(actor).is_some() {
            return self.capture_node(actor, work);
        }
        self.enqueue(actor, work, &Clock::default());
        self.make_progress()
    }

    /// Queues an operation that also comes after `after`.
    pub(crate) fn enqueue(&mut self, actor: Actor, work: Work, after: &Clock) {
        self.synchronise_with_legacy(actor);
        let source = self.prepare_host_memory(&work);
        let label = shared_label(work.label());
        let Some(stream) = self.streams.get_mut(actor) else {
            return;
        };
        stream.clock.join(&self.host_clock);
        stream.clock.join(after);
        stream.issued += 1;
        stream.clock.set(actor, stream.issued);
        let (tick, clock) = (stream.issued, stream.clock.clone());
        stream.queue.push_back(Operation { work, label, tick, clock, source });
        self.queued += 1;
    }

    /// The null stream waits for all blocking streams, and they wait for it.
    fn synchronise_with_legacy(&mut self, actor: Actor) {
        let mut known = Clock::default();
        for (other, stream) in self.streams.iter().enumerate() {
            if other != actor && stream.blocking && (actor == LEGACY || other == LEGACY) {
                known.join(&stream.clock);
            }
        }
        if let Some(stream) = self.streams.get_mut(actor).filter(|stream| stream.blocking) {
            stream.clock.join(&known);
        }
    }

    /// Remembers what a copy finds in page-locked memory, so that a change before the copy runs is noticed, and
    /// overwrites what it will write to, so that reading it too early is noticed.
    fn prepare_host_memory(&self, work: &Work) -> Option<Vec<u8>> {
        let Work::Copy(Copy { from, to, width, rows }) = work else {
            return None;
        };
        let used = |range: &crate::ffi::host::HostRange| {
            let range = range.address()..range.address() + range.len() as u64;
            let mut queued = self.streams.iter().flat_map(|stream| &stream.queue);
            // Nobody knows what a function of the program touches.
            queued.any(|op| op.work.touches_host(&range) || matches!(op.work, Work::Call(_)))
        };
        if let Side::Host { range, pitch } = to
            && !used(range)
        {
            let unwritten = vec![crate::host::UNWRITTEN; *width];
            for row in 0..*rows {
                range.write(row * pitch, &unwritten);
            }
        }
        match from {
            // An operation that is queued may write to it first.
            Side::Host { range, .. } if !used(range) => {
                let mut source = vec![0; range.len()];
                range.read(0, &mut source);
                Some(source)
            }
            _ => None,
        }
    }

    fn ended(&self, clock: &Clock) -> bool {
        clock.iter().all(|(actor, tick)| self.streams.get(actor).is_none_or(|stream| stream.completed >= tick))
    }

    /// Whether a stream's first operation may run: all that it comes after has.
    fn runnable(&self, actor: Actor) -> bool {
        let Some(operation) = self.streams.get(actor).and_then(|stream| stream.queue.front()) else {
            return false;
        };
        let others = operation.clock.iter().filter(|&(other, _)| other != actor);
        others.into_iter().all(|(other, tick)| self.streams.get(other).is_none_or(|stream| stream.completed >= tick))
    }

    /// Runs the first operation of a stream.
    fn step(&mut self, actor: Actor) -> Result<()> {
        let Some(operation) = self.streams.get_mut(actor).and_then(|stream| stream.queue.pop_front()) else {
            return Ok(());
        };
        self.queued -= 1;
        self.time += 1000;
        if self.settings.trace {
            let name = self.streams.get(actor).map_or("", |stream| stream.name.as_str());
            eprintln!("simulated CUDA: runs {} in {name}", operation.label);
        }
        if let Err(message) = self.execute(actor, &operation) {
            let name = self.streams.get(actor).map_or_else(String::new, |stream| stream.name.clone());
            return Err(self.fault(format!("{} in {name}: {message}", operation.label)));
        }
        if let Some(stream) = self.streams.get_mut(actor) {
            stream.completed = operation.tick;
        }
        Ok(())
    }

    /// Runs some operation that may run.
    fn step_any(&mut self) -> Result<bool> {
        let ready: Vec<Actor> = (0..self.streams.len()).filter(|&actor| self.runnable(actor)).collect();
        match self.random.choose(&ready) {
            Some(actor) => self.step(actor).map(|()| true),
            None => Ok(false),
        }
    }

    /// A stream whose first operation may run and is needed before all in `clock` has ended.
    fn needed(&mut self, clock: &Clock) -> Option<Actor> {
        let mut clock = clock.clone();
        // Every turn goes to something earlier, so it ends; the bound guards against a mistake here.
        for _ in 0..=self.queued {
            let missing: Vec<Actor> = clock
                .iter()
                .filter(|&(actor, tick)| self.streams.get(actor).is_some_and(|stream| stream.completed < tick))
                .map(|(actor, _)| actor)
                .collect();
            let actor = self.random.choose(&missing)?;
            if self.runnable(actor) {
                return Some(actor);
            }
            let first = self.streams.get(actor)?.queue.front()?;
            clock = first.clock.clone();
            clock.set(actor, 0);
        }
        None
    }

    /// What a device does by itself after a call.
    pub(crate) fn make_progress(&mut self) -> Result<()> {
        match self.pace {
            Pace::Lazy => {}
            Pace::Mixed => while self.random.chance(1, 2) && self.step_any()? {},
            Pace::Eager => while self.step_any()? {},
        }
        while self.queued > LONG_QUEUE && self.step_any()? {}
        Ok(())
    }

    /// Runs operations until all in `clock` have ended, and perhaps others.
    pub(crate) fn run_until(&mut self, clock: &Clock) -> Result<()> {
        while !self.ended(clock) {
            let next = match self.pace {
                Pace::Lazy => self.needed(clock),
                _ => None,
            };
            let ran = match next {
                Some(actor) => self.step(actor).map(|()| true)?,
                None => self.step_any()?,
            };
            if !ran {
                return Err(self.fault("a wait that cannot end: the simulator lost an operation".to_string()));
            }
        }
        Ok(())
    }

    /// The host waits until all in `clock` has ended.
    pub(crate) fn host_wait(&mut self, clock: &Clock) -> Result<()> {
        self.counts.wait_calls += 1;
        let news = clock.iter().any(|(actor, tick)| tick > self.host_clock.get(actor));
        self.counts.waits += u64::from(news);
        self.run_until(clock)?;
        self.host_clock.join(clock);
        Ok(())
    }

    pub(crate) fn run_everything(&mut self) -> Result<()> {
        while self.step_any()? {}
        Ok(())
    }

    /// What a stream's work so far is, for whoever waits for it.
    fn stream_clock(&mut self, actor: Actor) -> Clock {
        // The null stream includes what blocking streams do.
        if actor == LEGACY {
            self.synchronise_with_legacy(actor);
        }
        self.streams.get(actor).map(|stream| stream.clock.clone()).unwrap_or_default()
    }

    pub(crate) fn synchronise_stream(&mut self, actor: Actor) -> Result<()> {
        self.check_waiting(actor)?;
        let clock = self.stream_clock(actor);
        self.host_wait(&clock)
    }

    pub(crate) fn synchronise_context(&mut self) -> Result<()> {
        self.check_no_capture()?;
        let mut clock = Clock::default();
        for stream in &self.streams {
            clock.join(&stream.clock);
        }
        self.host_wait(&clock)
    }

    /// Whether a stream has nothing to do. Asking makes it go on, so that a loop that asks ends.
    pub(crate) fn query_stream(&mut self, actor: Actor) -> Result<()> {
        self.check_waiting(actor)?;
        let clock = self.stream_clock(actor);
        self.query(&clock)
    }

    fn query(&mut self, clock: &Clock) -> Result<()> {
        if !self.ended(clock)
            && let Some(actor) = self.needed(clock)
        {
            self.step(actor)?;
        }
        if !self.ended(clock) {
            return Err(Status::NOT_READY.into());
        }
        self.host_clock.join(clock);
        Ok(())
    }

    pub(crate) fn create_event(&mut self, timing: bool) -> u64 {
        let handle = new_handle();
        self.events.insert(handle, Event { timing, state: EventState::Unrecorded });
        self.counts.created += 1;
        handle
    }

    pub(crate) fn destroy_event(&mut self, handle: u64) -> Result<()> {
        match self.events.remove(&handle) {
            Some(_) => Ok(()),
            None => no_event(handle),
        }
    }

    pub(crate) fn record_event(&mut self, handle: u64, actor: Actor) -> Result<()> {
        if !self.events.contains_key(&handle) {
            return no_event(handle);
        }
        self.check_legacy(actor)?;
        self.counts.event_records += 1;
        if let Some(capturing) = self.capture_of(actor) {
            let state = EventState::Captured { capture: capturing.capture, tail: capturing.tail.clone() };
            self.events.entry(handle).and_modify(|event| event.state = state);
            return Ok(());
        }
        self.enqueue(actor, Work::Record { event: handle }, &Clock::default());
        if let (Some(event), Some(stream)) = (self.events.get_mut(&handle), self.streams.get(actor)) {
            let clock = stream.clock.clone();
            event.state = EventState::Recorded { clock, actor, tick: stream.issued, time: None };
        }
        self.make_progress()
    }

    /// An event learns when the stream came to it.
    pub(crate) fn event_reached(&mut self, handle: u64, by: Actor, at: u64) {
        let now = self.time;
        if let Some(Event { state: EventState::Recorded { actor, tick, time, .. }, .. }) = self.events.get_mut(&handle)
            && (*actor, *tick) == (by, at)
        {
            *time = Some(now);
        }
    }

    /// A stream's later operations come after an event.
    pub(crate) fn wait_event(&mut self, actor: Actor, handle: u64) -> Result<()> {
        self.check_legacy(actor)?;
        self.counts.stream_waits += 1;
        match self.events.get(&handle).map(|event| &event.state) {
            None => no_event(handle),
            Some(EventState::Unrecorded) => Ok(()),
            Some(EventState::Recorded { clock, .. }) => {
                if self.capture_of(actor).is_some() {
                    let reason = "a captured stream waits for an event that was recorded outside of the capture";
                    self.invalidate_capture(actor, reason);
                    return refuse(Status::STREAM_CAPTURE_ISOLATION, reason);
                }
                let clock = clock.clone();
                if let Some(stream) = self.streams.get_mut(actor) {
                    stream.clock.join(&clock);
                }
                Ok(())
            }
            Some(EventState::Captured { capture, tail }) => {
                let (capture, tail) = (*capture, tail.clone());
                self.join_capture(actor, capture, tail)
            }
        }
    }

    fn event_clock(&self, handle: u64) -> Result<Option<Clock>> {
        match self.events.get(&handle).map(|event| &event.state) {
            None => no_event(handle),
            Some(EventState::Unrecorded) => Ok(None),
            Some(EventState::Recorded { clock, .. }) => Ok(Some(clock.clone())),
            Some(EventState::Captured { .. }) => {
                refuse(Status::CAPTURED_EVENT, "the event was last recorded in a captured stream")
            }
        }
    }

    pub(crate) fn synchronise_event(&mut self, handle: u64) -> Result<()> {
        match self.event_clock(handle)? {
            Some(clock) => self.host_wait(&clock),
            None => Ok(()),
        }
    }

    pub(crate) fn query_event(&mut self, handle: u64) -> Result<()> {
        match self.event_clock(handle)? {
            Some(clock) => self.query(&clock),
            None => Ok(()),
        }
    }

    /// Milliseconds of simulated time between two events.
    pub(crate) fn elapsed(&self, start: u64, end: u64) -> Result<f32> {
        let mut times = [0; 2];
        for (time, handle) in times.iter_mut().zip([start, end]) {
            match self.events.get(&handle) {
                None => return no_event(handle),
                Some(Event { timing: false, .. }) => {
                    return refuse(Status::INVALID_HANDLE, "the event was created without timing");
                }
                Some(Event { state: EventState::Recorded { time: Some(reached), .. }, .. }) => *time = *reached,
                Some(Event { state: EventState::Recorded { .. }, .. }) => return Err(Status::NOT_READY.into()),
                Some(_) => return refuse(Status::INVALID_HANDLE, "the event was not recorded"),
            }
        }
        let [start, end] = times;
        Ok((end as f64 - start as f64) as f32 / 1e6)
    }
}

fn no_event<T>(handle: u64) -> Result<T> {
    refuse(Status::INVALID_HANDLE, format!("there is no event {handle:#x}, or it is destroyed"))
}
