//! What a client of `/v1/responses` reads.

use std::collections::BTreeMap;

use amem_core::{Chat, Finish};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::http::Result;
use crate::server::choice::Choice;
use crate::server::openai::response::{Logprobs, TokenObject};
use crate::server::turn::{Answered, Report};
use crate::server::{Server, ids};

/// A response.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(in crate::server::openai) struct ResponseObject {
    /// Its name: no other response has it.
    id: String,
    /// `response`.
    object: &'static str,
    /// When it was begun: seconds since 1970.
    created_at: i64,
    /// `in_progress`, `completed` or `incomplete`.
    status: &'static str,
    /// False: it is answered while the client waits.
    background: bool,
    /// Null: what fails is no response.
    error: Option<Value>,
    /// Why it is incomplete.
    incomplete_details: Option<Incomplete>,
    /// The model that answers.
    model: String,
    /// What was answered.
    output: Vec<Item>,
    /// Null: no response is stored.
    previous_response_id: Option<String>,
    /// False: no response is stored.
    store: bool,
    /// `disabled`: a conversation that is too long is an error.
    truncation: &'static str,
    /// Tokens; null while it is in progress.
    usage: Option<ResponseUsage>,
    /// What the request says.
    #[serde(flatten)]
    echo: Echo,
    /// What was recalled, reused and computed; in a response that is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    amem: Option<Report>,
}

/// What a response repeats of its request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Echo {
    /// What the model was told before the conversation.
    pub(super) instructions: Option<String>,
    /// Tokens at most.
    pub(super) max_output_tokens: Option<usize>,
    /// What the client notes.
    pub(super) metadata: BTreeMap<String, String>,
    /// Whether several tools may be called.
    pub(super) parallel_tool_calls: bool,
    /// How tokens were drawn.
    pub(super) temperature: f32,
    /// How tokens were drawn.
    pub(super) top_p: f32,
    /// The likeliest tokens that come with each.
    pub(super) top_logprobs: usize,
    /// The form of the text.
    pub(super) text: Value,
    /// Which tools may be called.
    pub(super) tool_choice: Value,
    /// The tools.
    pub(super) tools: Vec<Value>,
    /// Nothing: no model here is told to reason.
    pub(super) reasoning: Value,
    /// Whose memory was asked.
    pub(super) user: Option<String>,
}

/// Why a response is incomplete.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct Incomplete {
    /// `max_output_tokens`.
    reason: &'static str,
}

/// Tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct ResponseUsage {
    /// Everything that was fed.
    input_tokens: usize,
    /// What was fed, more closely.
    input_tokens_details: InputTokens,
    /// What was generated.
    output_tokens: usize,
    /// What was generated, more closely.
    output_tokens_details: OutputTokens,
    /// Both.
    total_tokens: usize,
}

/// What was fed.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct InputTokens {
    /// Tokens whose KV was held and used as it was.
    cached_tokens: usize,
    /// Tokens of memories whose KV was computed and kept.
    cache_write_tokens: usize,
}

/// What was generated.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct OutputTokens {
    /// None: what a model thinks is part of its text.
    reasoning_tokens: usize,
}

/// Something that was answered.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Item {
    /// What the model says.
    Message {
        /// Its name.
        id: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
        /// `assistant`.
        role: &'static str,
        /// What it says: one part, or none yet.
        content: Vec<ContentPart>,
    },
    /// A tool that it calls.
    FunctionCall {
        /// Its name.
        id: String,
        /// `in_progress` or `completed`.
        status: &'static str,
        /// What its result is to refer to.
        call_id: String,
        /// The tool.
        name: String,
        /// A JSON object, written as a string.
        arguments: String,
    },
}

/// A part of what the model says.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ContentPart {
    /// `output_text`.
    r#type: &'static str,
    /// The text.
    text: String,
    /// None.
    annotations: Vec<Value>,
    /// How likely its tokens were, if that was asked for.
    logprobs: Vec<TokenObject>,
}

impl ContentPart {
    pub(super) fn new(text: String, logprobs: Vec<TokenObject>) -> Self {
        Self { r#type: "output_text", text, annotations: Vec::new(), logprobs }
    }
}

impl Item {
    /// What the model says.
    pub(super) fn message(id: String, status: &'static str, content: Vec<ContentPart>) -> Self {
        Self::Message { id, status, role: "assistant", content }
    }

    /// A call, whose arguments are complete or still empty.
    pub(super) fn call(id: String, call: &amem_core::ToolCall, is_complete: bool) -> Self {
        let (status, arguments) =
            if is_complete { ("completed", call.arguments.clone()) } else { ("in_progress", String::new()) };
        Self::FunctionCall { id, status, call_id: format!("call_{}", call.id), name: call.name.clone(), arguments }
    }
}

/// How an item or a response ended.
pub(super) fn status(finish: &Finish) -> &'static str {
    if *finish == Finish::Length { "incomplete" } else { "completed" }
}

/// All that an answer is.
pub(super) fn output(chat: &dyn Chat, logprobs: bool, choice: Choice) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    if !choice.text.is_empty() || choice.tool_calls.is_empty() {
        let logprobs = if logprobs { Logprobs::new(chat, &choice.logprobs).into_content() } else { Vec::new() };
        let part = ContentPart::new(choice.text, logprobs);
        items.push(Item::message(format!("msg_{}", ids::unique()?), status(&choice.finish), vec![part]));
    }
    for call in &choice.tool_calls {
        items.push(Item::call(format!("fc_{}", ids::unique()?), call, true));
    }
    Ok(items)
}

impl ResponseObject {
    /// A response that has begun.
    pub(super) fn begun(server: &Server, echo: Echo) -> Result<Self> {
        Ok(Self {
            id: format!("resp_{}", ids::unique()?),
            object: "response",
            created_at: amem_core::Timestamp::now().0 / 1000,
            status: "in_progress",
            background: false,
            error: None,
            incomplete_details: None,
            model: server.memory().model().info().name.clone(),
            output: Vec::new(),
            previous_response_id: None,
            store: false,
            truncation: "disabled",
            usage: None,
            echo,
            amem: None,
        })
    }

    /// The same response at its end.
    pub(super) fn ended(self, output: Vec<Item>, finish: &Finish, answered: Answered) -> Self {
        let tokens = answered.tokens();
        let usage = ResponseUsage {
            input_tokens: tokens.prompt,
            input_tokens_details: InputTokens {
                cached_tokens: tokens.cached,
                cache_write_tokens: answered.usage.missed,
            },
            output_tokens: tokens.completion,
            output_tokens_details: OutputTokens { reasoning_tokens: 0 },
            total_tokens: tokens.prompt + tokens.completion,
        };
        let incomplete_details = (*finish == Finish::Length).then_some(Incomplete { reason: "max_output_tokens" });
        let (usage, amem) = (Some(usage), Some(answered.report));
        Self { status: status(finish), incomplete_details, output, usage, amem, ..self }
    }

    /// Whether it ended before its answer did.
    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete_details.is_some()
    }
}
