//! What Anthropic's clients read.

use amem_core::{Finish, ToolCall};
use serde::Serialize;
use utoipa::ToSchema;

use super::request::Object;
use crate::http::Result;
use crate::server::choice::Choice;
use crate::server::ids;
use crate::server::turn::{Answered, Report};

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MessageResponse {
    pub(super) id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    /// The model that answers, whatever the request named.
    model: String,
    pub(super) content: Vec<OutputBlock>,
    pub(super) stop_reason: Option<StopReason>,
    /// The text of `stop_sequences` that ended the answer.
    pub(super) stop_sequence: Option<String>,
    pub(super) usage: MessageUsage,
    /// What was recalled, reused and computed. Not in a stream's `message_start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) amem: Option<Report>,
}

impl MessageResponse {
    /// A message of which nothing is said yet.
    pub(super) fn begun(model: String, usage: MessageUsage) -> Result<Self> {
        let id = format!("msg_{}", ids::unique()?);
        let (kind, role, content) = ("message", "assistant", Vec::new());
        Ok(Self { id, kind, role, model, content, stop_reason: None, stop_sequence: None, usage, amem: None })
    }

    /// The whole message.
    pub(super) fn whole(model: String, answered: Answered) -> Result<Self> {
        let mut message = Self::begun(model, MessageUsage::of(&answered))?;
        let Answered { choices, report, .. } = answered;
        for choice in choices {
            let (reason, sequence) = stopped(&choice);
            (message.stop_reason, message.stop_sequence) = (Some(reason), sequence);
            if !choice.text.is_empty() {
                message.content.push(OutputBlock::Text { text: choice.text });
            }
            message.content.extend(choice.tool_calls.into_iter().map(OutputBlock::call));
        }
        message.amem = Some(report);
        Ok(message)
    }
}

/// A part of an answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum OutputBlock {
    /// A text.
    Text { text: String },
    /// A call of a tool.
    ToolUse { id: String, name: String, input: Object },
}

impl OutputBlock {
    pub(super) fn call(call: ToolCall) -> Self {
        // They were read as an object before.
        let input = serde_json::from_str(&call.arguments).unwrap_or_default();
        OutputBlock::ToolUse { id: format!("toolu_{}", call.id), name: call.name, input }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StopReason {
    /// The model was done.
    EndTurn,
    /// The answer or the context was as long as it may be.
    MaxTokens,
    /// One of `stop_sequences` appeared.
    StopSequence,
    /// The model calls tools.
    ToolUse,
}

/// Why an answer ended, and the text of `stop_sequences` that ended it.
pub(super) fn stopped(choice: &Choice) -> (StopReason, Option<String>) {
    if !choice.tool_calls.is_empty() {
        return (StopReason::ToolUse, None);
    }
    match &choice.finish {
        Finish::StopText(text) => (StopReason::StopSequence, Some(text.clone())),
        Finish::Length => (StopReason::MaxTokens, None),
        _ => (StopReason::EndTurn, None),
    }
}

/// Tokens as Anthropic counts them: the three kinds of input add up to everything that was fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct MessageUsage {
    /// Tokens that were computed and are not kept: the conversation itself, and what was repaired.
    input_tokens: usize,
    /// Tokens of memories, and of the system line before them, that had no KV. They were computed, and are kept.
    cache_creation_input_tokens: usize,
    /// Tokens whose KV was used as it was: of memories, of what stands before them, and in a session of what was said.
    cache_read_input_tokens: usize,
    /// Tokens that were generated.
    output_tokens: usize,
}

impl MessageUsage {
    /// What is known before anything is computed: the conversation's own tokens.
    pub(super) fn begun(input_tokens: usize) -> Self {
        Self { input_tokens, cache_creation_input_tokens: 0, cache_read_input_tokens: 0, output_tokens: 0 }
    }

    pub(super) fn of(answered: &Answered) -> Self {
        let tokens = answered.tokens();
        let created = answered.usage.missed;
        Self {
            input_tokens: tokens.prompt.saturating_sub(tokens.cached + created),
            cache_creation_input_tokens: created,
            cache_read_input_tokens: tokens.cached,
            output_tokens: tokens.completion,
        }
    }
}

/// How many tokens a conversation has.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(super) struct TokenCount {
    /// What the model would be fed if no memory were recalled: the server's own system line, the client's, the tools, and
    /// all messages, with the template's marks around them.
    pub(super) input_tokens: usize,
}
