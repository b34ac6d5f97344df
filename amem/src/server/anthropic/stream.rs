//! An answer as Anthropic's clients read it while it is generated.

use std::convert::Infallible;
use std::time::Duration;

use amem_core::ToolCall;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;

use super::response::{MessageResponse, MessageUsage, OutputBlock, StopReason, stopped};
use crate::http::Result;
use crate::server::turn::{Answered, Progress, Report, Running};
use crate::server::until_error::until_error;

/// After so long without an event there is a `ping`.
const PING: Duration = Duration::from_secs(10);

/// An event of a stream; its name is its type.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StreamEvent {
    MessageStart { message: Box<MessageResponse> },
    Ping,
    ContentBlockStart { index: usize, content_block: OutputBlock },
    ContentBlockDelta { index: usize, delta: BlockDelta },
    ContentBlockStop { index: usize },
    MessageDelta { delta: MessageEnd, usage: MessageUsage, amem: Box<Report> },
    MessageStop,
}

/// What is new in a block.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum BlockDelta {
    TextDelta { text: String },
    InputJsonDelta { partial_json: String },
}

/// How a message ended.
#[derive(Debug, Serialize)]
struct MessageEnd {
    stop_reason: StopReason,
    stop_sequence: Option<String>,
}

impl StreamEvent {
    fn name(&self) -> &'static str {
        match self {
            StreamEvent::MessageStart { .. } => "message_start",
            StreamEvent::Ping => "ping",
            StreamEvent::ContentBlockStart { .. } => "content_block_start",
            StreamEvent::ContentBlockDelta { .. } => "content_block_delta",
            StreamEvent::ContentBlockStop { .. } => "content_block_stop",
            StreamEvent::MessageDelta { .. } => "message_delta",
            StreamEvent::MessageStop => "message_stop",
        }
    }

    fn sent(&self) -> Event {
        named(self.name(), &serde_json::to_value(self).unwrap_or_default())
    }
}

/// An event of this name.
fn named(name: &str, data: &serde_json::Value) -> Event {
    Event::default().event(name).data(data.to_string())
}

/// The events of an answer. Whoever stops to read them ends the work.
pub(super) fn events(
    running: Running,
    begun: MessageResponse,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + Send> {
    let start = StreamEvent::MessageStart { message: Box::new(begun) };
    let mut blocks = Blocks::default();
    let events = until_error(running.into_stream()).flat_map(move |progress| stream::iter(blocks.events(progress)));
    let events = stream::iter([start.sent(), StreamEvent::Ping.sent()]).chain(events);
    let ping = KeepAlive::new().interval(PING).event(StreamEvent::Ping.sent());
    Sse::new(events.map(Ok)).keep_alive(ping)
}

/// The blocks of a message, written one after the other.
#[derive(Default)]
struct Blocks {
    /// Blocks that were begun.
    begun: usize,
    /// Whether the last of them is a text that goes on.
    in_text: bool,
}

impl Blocks {
    fn events(&mut self, progress: Result<Progress>) -> Vec<Event> {
        let mut events = Vec::new();
        match progress {
            Ok(Progress::Text { shown, .. }) => self.text(shown.text, &mut events),
            Ok(Progress::Call { call, .. }) => self.call(call, &mut events),
            Ok(Progress::Done(answered)) => self.end(*answered, &mut events),
            Err(error) => return vec![named("error", &error.body())],
        }
        events.iter().map(StreamEvent::sent).collect()
    }

    fn text(&mut self, text: String, events: &mut Vec<StreamEvent>) {
        if text.is_empty() {
            return;
        }
        if !self.in_text {
            self.begin(OutputBlock::Text { text: String::new() }, events);
            self.in_text = true;
        }
        self.delta(BlockDelta::TextDelta { text }, events);
    }

    fn call(&mut self, mut call: ToolCall, events: &mut Vec<StreamEvent>) {
        self.close_text(events);
        // A block begins with an empty input, and its deltas are the input's JSON.
        let partial_json = std::mem::replace(&mut call.arguments, "{}".to_owned());
        self.begin(OutputBlock::call(call), events);
        self.delta(BlockDelta::InputJsonDelta { partial_json }, events);
        events.push(StreamEvent::ContentBlockStop { index: self.begun - 1 });
    }

    fn begin(&mut self, content_block: OutputBlock, events: &mut Vec<StreamEvent>) {
        events.push(StreamEvent::ContentBlockStart { index: self.begun, content_block });
        self.begun += 1;
    }

    fn delta(&self, delta: BlockDelta, events: &mut Vec<StreamEvent>) {
        events.push(StreamEvent::ContentBlockDelta { index: self.begun.saturating_sub(1), delta });
    }

    fn close_text(&mut self, events: &mut Vec<StreamEvent>) {
        if std::mem::take(&mut self.in_text) {
            events.push(StreamEvent::ContentBlockStop { index: self.begun - 1 });
        }
    }

    fn end(&mut self, answered: Answered, events: &mut Vec<StreamEvent>) {
        self.close_text(events);
        let usage = MessageUsage::of(&answered);
        let (stop_reason, stop_sequence) = answered.choices.first().map_or((StopReason::EndTurn, None), stopped);
        let delta = MessageEnd { stop_reason, stop_sequence };
        events.push(StreamEvent::MessageDelta { delta, usage, amem: Box::new(answered.report) });
        events.push(StreamEvent::MessageStop);
    }
}
