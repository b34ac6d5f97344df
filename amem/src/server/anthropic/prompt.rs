//! From a conversation in Anthropic's blocks to one in messages.

use amem_core::{Message, Tool, ToolCall};

use super::request::{Block, Content, InputMessage, InputRole, ResultBlock, SystemBlock, ToolChoice, ToolParam};
use crate::http::{ApiError, Result};
use crate::server::conversation::{Conversation, MAX_MESSAGES};
use crate::server::structured::{self, Tools};

/// The messages of a conversation, the client's system message first.
///
/// Messages of one role that follow each other become one. Within a message of the model's, its texts stand before its
/// calls. The result of a call that failed begins with `Error: `, since chat templates have no other word for it. What a
/// model thought aloud is left out: it is no part of what was said, and was mostly another model's.
///
/// # Errors
/// 400 for a conversation that has too many messages or does not end with a user's, and for a block that is not supported,
/// or not where it stands.
pub(super) fn messages(system: Option<Content<SystemBlock>>, said: Vec<InputMessage>) -> Result<Vec<Message>> {
    if said.len() > MAX_MESSAGES {
        let message = format!("messages: there can be {MAX_MESSAGES} at most");
        return Err(ApiError::bad_request(message).param("messages"));
    }
    if said.last().is_some_and(|message| message.role == InputRole::Assistant) {
        let message = "the conversation ends with an assistant message, which this server cannot go on with: \
            end it with a user message";
        return Err(ApiError::unsupported("messages", message));
    }
    let mut told = Conversation::default();
    if let Some(system) = system {
        let blocks = system.blocks(|text| SystemBlock::Text { text });
        let texts = blocks.into_iter().map(|SystemBlock::Text { text }| text);
        told.system(texts.collect::<Vec<_>>().join(BETWEEN_BLOCKS));
    }
    let mut said = said.into_iter().enumerate().peekable();
    while let Some((index, message)) = said.next() {
        let role = message.role;
        let mut turn = Said::default();
        turn.add(message, index, &mut told)?;
        while let Some((index, message)) = said.next_if(|(_, next)| next.role == role) {
            turn.add(message, index, &mut told)?;
        }
        let text = turn.texts.join(BETWEEN_MESSAGES);
        match role {
            InputRole::System => told.system(text),
            InputRole::Assistant => told.assistant(&text, turn.calls)?,
            InputRole::User if text.is_empty() && turn.has_results => {}
            InputRole::User => told.user(text),
        }
    }
    Ok(told.into_messages())
}

/// What is put between the texts of one message, and between messages that become one.
const BETWEEN_BLOCKS: &str = "\n";
const BETWEEN_MESSAGES: &str = "\n\n";

/// Messages of one role that follow each other.
#[derive(Default)]
struct Said {
    /// The text of each.
    texts: Vec<String>,
    calls: Vec<ToolCall>,
    has_results: bool,
}

impl Said {
    /// Adds a message, which has this place in the request. Results of tools are told at once: they stand before whatever
    /// else a user says.
    fn add(&mut self, message: InputMessage, index: usize, told: &mut Conversation) -> Result<()> {
        let InputMessage { role, content } = message;
        let mut texts = Vec::new();
        for (block, content) in content.blocks(|text| Block::Text { text }).into_iter().enumerate() {
            let at = format!("messages.{index}.content.{block}");
            match (role, content) {
                (_, Block::Text { text }) => texts.push(text),
                (InputRole::Assistant, Block::Thinking {} | Block::RedactedThinking {}) => {}
                (InputRole::Assistant, Block::ToolUse { id, name, input }) => {
                    self.calls.push(ToolCall::new(id, name, serde_json::Value::Object(input).to_string()));
                }
                (InputRole::User, Block::ToolResult { tool_use_id, content, is_error }) => {
                    if !(self.texts.is_empty() && texts.is_empty()) {
                        let what = "tool_result blocks must stand before everything else that a user says";
                        return Err(bad(&at, what));
                    }
                    let text = result(content, is_error.unwrap_or(false), &at)?;
                    told.tool_result(&tool_use_id, text).map_err(|error| bad(&at, error.message()))?;
                    self.has_results = true;
                }
                (_, Block::Image {}) => return Err(unsupported(&at, "image")),
                (_, Block::Document {}) => return Err(unsupported(&at, "document")),
                (_, Block::SearchResult {}) => return Err(unsupported(&at, "search_result")),
                (_, Block::ToolUse { .. }) => {
                    return Err(bad(&at, "a tool_use block stands in assistant messages only"));
                }
                (_, Block::ToolResult { .. }) => {
                    return Err(bad(&at, "a tool_result block stands in user messages only"));
                }
                (_, Block::Thinking {} | Block::RedactedThinking {}) => {
                    return Err(bad(&at, "a thinking block stands in assistant messages only"));
                }
            }
        }
        if !texts.is_empty() {
            self.texts.push(texts.join(BETWEEN_BLOCKS));
        }
        Ok(())
    }
}

/// A block that cannot stand where it does (400).
fn bad(at: &str, what: &str) -> ApiError {
    ApiError::bad_request(format!("{at}: {what}")).param(at)
}

/// The text of a tool's result.
fn result(content: Option<Content<ResultBlock>>, is_error: bool, at: &str) -> Result<String> {
    let mut texts = Vec::new();
    let blocks = content.map(|content| content.blocks(|text| ResultBlock::Text { text })).unwrap_or_default();
    for (index, block) in blocks.into_iter().enumerate() {
        let at = format!("{at}.content.{index}");
        match block {
            ResultBlock::Text { text } => texts.push(text),
            ResultBlock::Image {} => return Err(unsupported(&at, "image")),
            ResultBlock::Document {} => return Err(unsupported(&at, "document")),
            ResultBlock::SearchResult {} => return Err(unsupported(&at, "search_result")),
            ResultBlock::ToolReference {} => return Err(unsupported(&at, "tool_reference")),
        }
    }
    let text = texts.join(BETWEEN_BLOCKS);
    Ok(if is_error { format!("Error: {text}") } else { text })
}

fn unsupported(at: &str, kind: &str) -> ApiError {
    ApiError::unsupported(at, format!("{at}: blocks of the type {kind} are not supported: send text"))
}

/// The tools of a request.
///
/// # Errors
/// 400 for tools that the client does not run itself, and for `strict` ones where no call is demanded.
pub(super) fn tools(tools: Vec<ToolParam>, choice: Option<&ToolChoice>) -> Result<Tools> {
    let tools = tools.into_iter().enumerate().map(|(index, tool)| {
        let at = format!("tools.{index}");
        if let Some(kind) = tool.kind.as_deref().filter(|kind| *kind != "custom") {
            let message = format!("{at}: tools of the type {kind} are not supported: describe it as a custom tool");
            return Err(ApiError::unsupported(format!("{at}.type"), message));
        }
        let Some(schema) = tool.input_schema else {
            let message = format!("{at}: input_schema is missing: give a JSON Schema of an object");
            return Err(ApiError::bad_request(message).param(format!("{at}.input_schema")));
        };
        let schema = serde_json::Value::Object(schema).to_string();
        let told = Tool::new(tool.name, tool.description.unwrap_or_default(), schema);
        Ok((told, tool.strict.unwrap_or(false)))
    });
    let choice = match choice {
        None | Some(ToolChoice::Auto { .. }) => structured::ToolChoice::Auto,
        Some(ToolChoice::None {}) => structured::ToolChoice::None,
        Some(ToolChoice::Any { .. }) => structured::ToolChoice::Required,
        Some(ToolChoice::Tool { name, .. }) => structured::ToolChoice::Named(name.clone()),
    };
    Tools::new(tools.collect::<Result<_>>()?, choice, |index| format!("tools.{index}.strict"))
}
