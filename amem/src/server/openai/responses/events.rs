//! What becomes of a response, as server-sent events.

use std::convert::Infallible;

use amem_core::Finish;
use axum::response::sse::{Event as Sent, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::StreamExt;
use futures_util::stream::iter;
use serde::Serialize;
use utoipa::ToSchema;

use super::object::{ContentPart, Item, ResponseObject, status};
use crate::http::{ApiError, Result};
use crate::server::choice::Shown;
use crate::server::openai::response::{Logprobs, TokenObject};
use crate::server::turn::{Answered, Progress, Running};
use crate::server::until_error::until_error;
use crate::server::{Server, ids};

/// Something that becomes of a response.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server::openai) struct ResponseEvent {
    #[serde(flatten)]
    event: Event,
    /// Which of the response's events it is, from 0.
    sequence_number: usize,
}

/// What becomes of a response.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ResponseEventKind)]
#[serde(tag = "type")]
enum Event {
    /// It was begun.
    #[serde(rename = "response.created")]
    Created { response: Box<ResponseObject> },
    /// It is answered.
    #[serde(rename = "response.in_progress")]
    InProgress { response: Box<ResponseObject> },
    /// An item begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded { output_index: usize, item: Item },
    /// A part of a message begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded { item_id: String, output_index: usize, content_index: usize, part: ContentPart },
    /// New text.
    #[serde(rename = "response.output_text.delta")]
    TextDelta { item_id: String, output_index: usize, content_index: usize, delta: String, logprobs: Vec<TokenObject> },
    /// All of a text.
    #[serde(rename = "response.output_text.done")]
    TextDone { item_id: String, output_index: usize, content_index: usize, text: String, logprobs: Vec<TokenObject> },
    /// All of a part.
    #[serde(rename = "response.content_part.done")]
    PartDone { item_id: String, output_index: usize, content_index: usize, part: ContentPart },
    /// Arguments of a call: all of them at once, for they are read when they are complete.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta { item_id: String, output_index: usize, delta: String },
    /// All of a call's arguments.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone { item_id: String, output_index: usize, name: String, arguments: String },
    /// All of an item.
    #[serde(rename = "response.output_item.done")]
    ItemDone { output_index: usize, item: Item },
    /// All of it.
    #[serde(rename = "response.completed")]
    Completed { response: Box<ResponseObject> },
    /// All of it, which the number of tokens cut off.
    #[serde(rename = "response.incomplete")]
    Incomplete { response: Box<ResponseObject> },
    /// It failed. Nothing comes after it.
    #[serde(rename = "error")]
    Error { code: Option<String>, message: String, param: Option<String> },
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Event::Created { .. } => "response.created",
            Event::InProgress { .. } => "response.in_progress",
            Event::ItemAdded { .. } => "response.output_item.added",
            Event::PartAdded { .. } => "response.content_part.added",
            Event::TextDelta { .. } => "response.output_text.delta",
            Event::TextDone { .. } => "response.output_text.done",
            Event::PartDone { .. } => "response.content_part.done",
            Event::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Event::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Event::ItemDone { .. } => "response.output_item.done",
            Event::Completed { .. } => "response.completed",
            Event::Incomplete { .. } => "response.incomplete",
            Event::Error { .. } => "error",
        }
    }

    fn error(error: &ApiError) -> Self {
        let body = error.body();
        let text = |key: &str| body["error"][key].as_str().map(str::to_owned);
        Event::Error { code: text("code"), message: error.message().to_owned(), param: text("param") }
    }
}

/// The events of a response whose answer is being generated. When the client goes away, so does the work.
pub(super) fn stream(server: Server, begun: ResponseObject, logprobs: bool, running: Running) -> Response {
    let first = vec![
        Event::Created { response: Box::new(begun.clone()) },
        Event::InProgress { response: Box::new(begun.clone()) },
    ];
    let mut teller = Teller { server, begun, logprobs, output: Vec::new(), message: None };
    let told = running.into_stream().map(move |progress| progress.and_then(|progress| teller.tell(progress)));
    let events = until_error(told).flat_map(|events| iter(events.unwrap_or_else(|error| vec![Event::error(&error)])));
    let sent = iter(first).chain(events).enumerate().map(|(sequence_number, event)| {
        let name = event.name();
        // Types of this module always have a JSON form.
        let json = serde_json::to_string(&ResponseEvent { event, sequence_number }).unwrap_or_default();
        Ok::<_, Infallible>(Sent::default().event(name).data(json))
    });
    Sse::new(sent).keep_alive(KeepAlive::default()).into_response()
}

/// Tells an answer as events.
struct Teller {
    server: Server,
    begun: ResponseObject,
    logprobs: bool,
    /// Items that are complete.
    output: Vec<Item>,
    /// The message that is being told.
    message: Option<Message>,
}

struct Message {
    id: String,
    text: String,
    logprobs: Vec<TokenObject>,
}

impl Teller {
    fn tell(&mut self, progress: Progress) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        match progress {
            Progress::Text { shown, .. } => self.text(shown, &mut events)?,
            Progress::Call { call, .. } => {
                self.end_message("completed", &mut events);
                self.call(&call, &mut events)?;
            }
            Progress::Done(answered) => self.end(*answered, &mut events)?,
        }
        Ok(events)
    }

    /// The message that is being told, which may begin with this.
    fn message(&mut self, events: &mut Vec<Event>) -> Result<&mut Message> {
        let message = match self.message.take() {
            Some(message) => message,
            None => {
                let (id, output_index) = (format!("msg_{}", ids::unique()?), self.output.len());
                let (part, item_id) = (ContentPart::new(String::new(), Vec::new()), id.clone());
                let item = Item::message(id.clone(), "in_progress", Vec::new());
                events.push(Event::ItemAdded { output_index, item });
                events.push(Event::PartAdded { item_id, output_index, content_index: 0, part });
                Message { id, text: String::new(), logprobs: Vec::new() }
            }
        };
        Ok(self.message.insert(message))
    }

    fn text(&mut self, shown: Shown, events: &mut Vec<Event>) -> Result<()> {
        let logprobs = if self.logprobs {
            Logprobs::new(self.server.memory().model().chat(), &shown.logprobs).into_content()
        } else {
            Vec::new()
        };
        let output_index = self.output.len();
        let message = self.message(events)?;
        message.text.push_str(&shown.text);
        message.logprobs.extend(logprobs.iter().cloned());
        let (item_id, delta) = (message.id.clone(), shown.text);
        events.push(Event::TextDelta { item_id, output_index, content_index: 0, delta, logprobs });
        Ok(())
    }

    fn end_message(&mut self, status: &'static str, events: &mut Vec<Event>) {
        let Some(Message { id, text, logprobs }) = self.message.take() else { return };
        let (output_index, content_index) = (self.output.len(), 0);
        let part = ContentPart::new(text.clone(), logprobs.clone());
        let item = Item::message(id.clone(), status, vec![part.clone()]);
        let item_id = id.clone();
        events.push(Event::TextDone { item_id, output_index, content_index, text, logprobs });
        events.push(Event::PartDone { item_id: id, output_index, content_index, part });
        events.push(Event::ItemDone { output_index, item: item.clone() });
        self.output.push(item);
    }

    fn call(&mut self, call: &amem_core::ToolCall, events: &mut Vec<Event>) -> Result<()> {
        let (id, output_index) = (format!("fc_{}", ids::unique()?), self.output.len());
        let (name, arguments) = (call.name.clone(), call.arguments.clone());
        let item = Item::call(id.clone(), call, true);
        let item_id = || id.clone();
        events.push(Event::ItemAdded { output_index, item: Item::call(id.clone(), call, false) });
        events.push(Event::ArgumentsDelta { item_id: item_id(), output_index, delta: arguments.clone() });
        events.push(Event::ArgumentsDone { item_id: item_id(), output_index, name, arguments });
        events.push(Event::ItemDone { output_index, item: item.clone() });
        self.output.push(item);
        Ok(())
    }

    fn end(&mut self, answered: Answered, events: &mut Vec<Event>) -> Result<()> {
        let finish = answered.choices.first().map_or(Finish::Cancelled, |choice| choice.finish.clone());
        if self.output.is_empty() {
            // A model that says nothing says an empty text.
            self.message(events)?;
        }
        self.end_message(status(&finish), events);
        let response = self.begun.clone().ended(std::mem::take(&mut self.output), &finish, answered);
        let (is_incomplete, response) = (response.is_incomplete(), Box::new(response));
        events.push(if is_incomplete { Event::Incomplete { response } } else { Event::Completed { response } });
        Ok(())
    }
}
