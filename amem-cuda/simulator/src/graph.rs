//! Captures and graphs.
//!
//! A captured stream's operations become nodes of a graph. A graph is launched by queueing its nodes: those of the
//! stream where the capture began go to the stream of the launch, and those of each other stream of the capture go to a
//! stream of their own, which the executable graph keeps.

use crate::machine::{Machine, new_handle};
use crate::operation::Work;
use crate::order::{Actor, Clock};
use crate::status::{Result, Status, refuse};
use crate::stream::{Capturing, LEGACY};
use std::sync::Arc;
use std::thread::ThreadId;

/// `CU_STREAM_CAPTURE_MODE_...`
const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

/// An operation of a graph.
#[derive(Clone)]
pub(crate) struct Node {
    work: Work,
    /// Nodes that it comes after.
    after: Vec<usize>,
    /// The captured stream that it came from; 0 is where the capture began.
    branch: usize,
}

/// A capture that is going on.
pub(crate) struct Capture {
    origin: Actor,
    thread: ThreadId,
    mode: u32,
    nodes: Vec<Node>,
    branches: Vec<Actor>,
    /// Why the capture cannot become a graph.
    invalid: Option<String>,
}

/// A graph that can be launched.
pub(crate) struct Executable {
    nodes: Arc<[Node]>,
    /// The streams of the branches but the first.
    branches: Vec<Actor>,
    /// The end of its last launch. Launches of one executable graph come one after another.
    last: Clock,
}

impl Machine {
    pub(crate) fn capture_of(&self, actor: Actor) -> Option<&Capturing> {
        self.streams.get(actor).and_then(|stream| stream.capture.as_ref())
    }

    /// 0 when a stream is not captured, 1 when it is, 2 when the capture has failed.
    pub(crate) fn capture_status(&self, actor: Actor) -> u32 {
        match self.capture_of(actor).and_then(|capturing| self.captures.get(&capturing.capture)) {
            None => 0,
            Some(Capture { invalid: None, .. }) => 1,
            Some(_) => 2,
        }
    }

    pub(crate) fn begin_capture(&mut self, actor: Actor, mode: u32) -> Result<()> {
        if actor == LEGACY {
            return refuse(Status::STREAM_CAPTURE_UNSUPPORTED, "the null stream cannot be captured");
        }
        if ![GLOBAL, THREAD_LOCAL, RELAXED].contains(&mode) {
            return refuse(Status::INVALID_VALUE, format!("there is no capture mode {mode}"));
        }
        if self.capture_of(actor).is_some() {
            return refuse(Status::INVALID_VALUE, "the stream is captured already");
        }
        let id = new_handle();
        let thread = std::thread::current().id();
        let capture = Capture { origin: actor, thread, mode, nodes: Vec::new(), branches: vec![actor], invalid: None };
        self.captures.insert(id, capture);
        if let Some(stream) = self.streams.get_mut(actor) {
            stream.capture = Some(Capturing { capture: id, tail: Vec::new() });
        }
        Ok(())
    }

    /// Ends a capture and returns the graph.
    pub(crate) fn end_capture(&mut self, actor: Actor) -> Result<u64> {
        let Some(Capturing { capture: id, tail }) = self.capture_of(actor).cloned() else {
            return refuse(Status::INVALID_VALUE, "the stream is not captured");
        };
        let Some(capture) = self.captures.get(&id) else {
            return refuse(Status::UNKNOWN, "the capture is gone");
        };
        if capture.mode != RELAXED && capture.thread != std::thread::current().id() {
            return refuse(Status::STREAM_CAPTURE_WRONG_THREAD, "another thread began the capture");
        }
        if capture.origin != actor {
            let reason = "the capture ends in another stream than it began in";
            self.invalidate_capture(actor, reason);
            return refuse(Status::STREAM_CAPTURE_UNMATCHED, reason);
        }
        let unjoined = self.unjoined(id, &tail);
        for stream in &mut self.streams {
            stream.capture.take_if(|capturing| capturing.capture == id);
        }
        let Some(capture) = self.captures.remove(&id) else {
            return refuse(Status::UNKNOWN, "the capture is gone");
        };
        if let Some(reason) = capture.invalid {
            return refuse(Status::STREAM_CAPTURE_INVALIDATED, format!("the capture failed before: {reason}"));
        }
        if let Some(name) = unjoined {
            let reason = format!("the captured stream does not wait for what was captured in {name}");
            return refuse(Status::STREAM_CAPTURE_UNJOINED, reason);
        }
        let graph = new_handle();
        self.graphs.insert(graph, capture.nodes.into());
        self.counts.created += 1;
        Ok(graph)
    }

    /// A stream of the capture whose last nodes do not come before the end.
    fn unjoined(&self, id: u64, tail: &[usize]) -> Option<String> {
        let capture = self.captures.get(&id)?;
        let mut before = vec![false; capture.nodes.len()];
        let mut open = tail.to_vec();
        while let Some(index) = open.pop() {
            if let (Some(seen), Some(node)) = (before.get_mut(index), capture.nodes.get(index))
                && !*seen
            {
                *seen = true;
                open.extend(&node.after);
            }
        }
        let missing = |index: &usize| before.get(*index) == Some(&false);
        let other = self.streams.iter().find(|stream| {
            let part = stream.capture.as_ref().filter(|capturing| capturing.capture == id);
            part.is_some_and(|capturing| capturing.tail.iter().any(missing))
        });
        other.map(|stream| stream.name.clone())
    }

    /// Adds a node.
    pub(crate) fn capture_node(&mut self, actor: Actor, work: Work) -> Result<()> {
        let Some(capturing) = self.streams.get_mut(actor).and_then(|stream| stream.capture.as_mut()) else {
            return refuse(Status::UNKNOWN, "the stream is not captured");
        };
        let Some(capture) = self.captures.get_mut(&capturing.capture) else {
            return refuse(Status::UNKNOWN, "the capture is gone");
        };
        if let Some(reason) = &capture.invalid {
            return refuse(Status::STREAM_CAPTURE_INVALIDATED, format!("the capture failed before: {reason}"));
        }
        let branch = capture.branches.iter().position(|&other| other == actor).unwrap_or_else(|| {
            capture.branches.push(actor);
            capture.branches.len() - 1
        });
        let after = std::mem::replace(&mut capturing.tail, vec![capture.nodes.len()]);
        capture.nodes.push(Node { work, after, branch });
        Ok(())
    }

    /// A stream waits for an event of a capture, and so becomes part of it.
    pub(crate) fn join_capture(&mut self, actor: Actor, capture: u64, tail: Vec<usize>) -> Result<()> {
        if !self.captures.contains_key(&capture) {
            let reason = "the event was last recorded in a capture that has ended";
            return refuse(Status::CAPTURED_EVENT, reason);
        }
        if actor == LEGACY {
            return refuse(Status::STREAM_CAPTURE_UNSUPPORTED, "the null stream cannot be captured");
        }
        let Some(stream) = self.streams.get_mut(actor) else {
            return Ok(());
        };
        match &mut stream.capture {
            Some(capturing) if capturing.capture == capture => {
                capturing.tail.extend(tail);
                capturing.tail.sort_unstable();
                capturing.tail.dedup();
                Ok(())
            }
            Some(_) => {
                let reason = "a captured stream waits for an event of another capture";
                self.invalidate_capture(actor, reason);
                refuse(Status::STREAM_CAPTURE_MERGE, reason)
            }
            none => {
                *none = Some(Capturing { capture, tail });
                Ok(())
            }
        }
    }

    /// Makes the capture that a stream takes part in useless.
    pub(crate) fn invalidate_capture(&mut self, actor: Actor, reason: &str) {
        let id = self.capture_of(actor).map(|capturing| capturing.capture);
        if let Some(capture) = id.and_then(|id| self.captures.get_mut(&id)) {
            capture.invalid.get_or_insert_with(|| reason.to_string());
        }
    }

    /// Fails for what a graph cannot hold.
    pub(crate) fn refuse_in_capture(&mut self, actor: Actor, reason: &str) -> Result<()> {
        if self.capture_of(actor).is_none() {
            return Ok(());
        }
        self.invalidate_capture(actor, reason);
        refuse(Status::STREAM_CAPTURE_UNSUPPORTED, reason)
    }

    /// Fails for a call that waits for a stream that is captured, and for one that a capture forbids.
    pub(crate) fn check_waiting(&mut self, actor: Actor) -> Result<()> {
        self.refuse_in_capture(actor, "the host waits for a stream that is captured")?;
        self.check_legacy(actor)
    }

    /// Fails for a call that may wait for the device, while a capture of this thread, or a global one, goes on.
    pub(crate) fn check_safe_in_capture(&mut self, function: &str) -> Result<()> {
        let thread = std::thread::current().id();
        let forbids =
            |capture: &&mut Capture| capture.mode == GLOBAL || capture.mode == THREAD_LOCAL && capture.thread == thread;
        let Some(capture) = self.captures.values_mut().find(forbids) else {
            return Ok(());
        };
        let reason = format!("{function} is not permitted while a stream is captured");
        capture.invalid.get_or_insert_with(|| reason.clone());
        refuse(Status::STREAM_CAPTURE_UNSUPPORTED, reason)
    }

    /// Fails while any capture goes on.
    pub(crate) fn check_no_capture(&mut self) -> Result<()> {
        let Some(capture) = self.captures.values_mut().next() else {
            return Ok(());
        };
        let reason = "the context cannot be synchronised while a stream is captured".to_string();
        capture.invalid.get_or_insert_with(|| reason.clone());
        refuse(Status::STREAM_CAPTURE_UNSUPPORTED, reason)
    }

    /// Fails for use of the null stream while a stream is captured that the null stream would wait for.
    pub(crate) fn check_legacy(&mut self, actor: Actor) -> Result<()> {
        let captured = |stream: &crate::stream::Stream| stream.blocking && stream.capture.is_some();
        if actor != LEGACY || !self.streams.iter().any(captured) {
            return Ok(());
        }
        refuse(Status::STREAM_CAPTURE_IMPLICIT, "the null stream would wait for a stream that is captured")
    }

    pub(crate) fn instantiate(&mut self, graph: u64) -> Result<u64> {
        let Some(nodes) = self.graphs.get(&graph).map(Arc::clone) else {
            return refuse(Status::INVALID_VALUE, format!("there is no graph {graph:#x}, or it is destroyed"));
        };
        let handle = new_handle();
        let count = nodes.iter().map(|node| node.branch).max().unwrap_or(0);
        let branches = (1..=count)
            .map(|branch| self.add_stream(format!("branch {branch} of graph {handle:#x}"), false, 0))
            .collect();
        self.executables.insert(handle, Executable { nodes, branches, last: Clock::default() });
        self.counts.created += 1;
        Ok(handle)
    }

    pub(crate) fn destroy_graph(&mut self, graph: u64) -> Result<()> {
        match self.graphs.remove(&graph) {
            Some(_) => Ok(()),
            None => refuse(Status::INVALID_VALUE, "there is no such graph"),
        }
    }

    /// What is queued of it still runs.
    pub(crate) fn destroy_executable(&mut self, executable: u64) -> Result<()> {
        match self.executables.remove(&executable) {
            Some(_) => Ok(()),
            None => no_executable(executable),
        }
    }

    pub(crate) fn check_executable(&self, executable: u64) -> Result<()> {
        match self.executables.contains_key(&executable) {
            true => Ok(()),
            false => no_executable(executable),
        }
    }

    /// Queues a graph's nodes.
    pub(crate) fn launch_graph(&mut self, handle: u64, actor: Actor) -> Result<()> {
        self.refuse_in_capture(actor, "the simulator has no graphs within graphs")?;
        self.check_legacy(actor)?;
        let Some(executable) = self.executables.get(&handle) else {
            return no_executable(handle);
        };
        let (nodes, branches) = (Arc::clone(&executable.nodes), executable.branches.clone());
        let mut start = executable.last.clone();
        if let Some(stream) = self.streams.get(actor) {
            start.join(&stream.clock);
        }
        let mut ends: Vec<Clock> = Vec::with_capacity(nodes.len());
        for node in nodes.iter() {
            let mut after = start.clone();
            for end in node.after.iter().filter_map(|&index| ends.get(index)) {
                after.join(end);
            }
            let target = node.branch.checked_sub(1).and_then(|branch| branches.get(branch).copied()).unwrap_or(actor);
            self.enqueue(target, node.work.clone(), &after);
            ends.push(self.streams.get(target).map(|stream| stream.clock.clone()).unwrap_or_default());
        }
        if let Some(stream) = self.streams.get_mut(actor) {
            stream.clock.join(&start);
            for end in &ends {
                stream.clock.join(end);
            }
            let last = stream.clock.clone();
            self.executables.entry(handle).and_modify(|executable| executable.last = last);
        }
        self.counts.graph_launches += 1;
        self.counts.graph_operations += nodes.len() as u64;
        self.make_progress()
    }
}

fn no_executable<T>(handle: u64) -> Result<T> {
    refuse(Status::INVALID_VALUE, format!("there is no executable graph {handle:#x}, or it is destroyed"))
}
