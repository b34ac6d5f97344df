//! From a conversation in Anthropic's blocks to one in messages.

use amem_core::{Message, Role, Tool, ToolCall};

use super::request::{Block, Content, InputMessage, InputRole, ResultBlock, SystemBlock, ToolChoice, ToolParam};
use crate::http::{ApiError, Result};

/// What stands between two texts of one message.
const BETWEEN: &str = "\n";

/// The messages of a conversation, the client's system message first.
///
/// Messages of one role that follow each other become one. Within a message of the model's, its texts stand before its
/// calls. The result of a call that failed begins with `Error: `, since chat templates have no other word for it.
///
/// # Errors
/// 400 for a conversation that does not end with a user's message, and for a block that is not supported, or not where
/// it stands.
pub(super) fn messages(system: Option<Content<SystemBlock>>, said: Vec<InputMessage>) -> Result<Vec<Message>> {
    if said.last().is_some_and(|message| message.role == InputRole::Assistant) {
        let message = "the conversation ends with an assistant message, which this server cannot go on with: \
            end it with a user message";
        return Err(ApiError::unsupported("messages", message));
    }
    let mut written = Written::default();
    if let Some(system) = system {
        let blocks = system.blocks(|text| SystemBlock::Text { text });
        blocks.into_iter().for_each(|SystemBlock::Text { text }| written.text(Role::System, &text));
    }
    for (index, InputMessage { role, content }) in said.into_iter().enumerate() {
        let at = format!("messages.{index}.content");
        for (index, block) in content.blocks(|text| Block::Text { text }).into_iter().enumerate() {
            written.block(role, block, &format!("{at}.{index}"))?;
        }
        if role == InputRole::Assistant {
            // An answer without a text or a call is an answer all the same.
            written.message(Role::Assistant);
        }
    }
    Ok(written.messages)
}

/// The messages so far.
#[derive(Default)]
struct Written {
    messages: Vec<Message>,
    /// The ids that the client knows the calls of the latest answer by.
    calls: Vec<String>,
}

impl Written {
    /// The last message if it is of this role, or a new one.
    fn message(&mut self, role: Role) -> &mut Message {
        if self.messages.last().is_none_or(|last| last.role != role) {
            self.messages.push(Message::new(role, ""));
            if role == Role::Assistant {
                self.calls.clear();
            }
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }

    fn text(&mut self, role: Role, text: &str) {
        let message = self.message(role);
        if !message.text.is_empty() {
            message.text.push_str(BETWEEN);
        }
        message.text.push_str(text);
    }

    /// Adds a block that stands at this place of the request.
    fn block(&mut self, role: InputRole, block: Block, at: &str) -> Result<()> {
        match (role, block) {
            (InputRole::User, Block::Text { text }) => self.text(Role::User, &text),
            (InputRole::System, Block::Text { text }) => self.text(Role::System, &text),
            (InputRole::Assistant, Block::Text { text }) => self.text(Role::Assistant, &text),
            (InputRole::Assistant, Block::Thinking {} | Block::RedactedThinking {}) => {}
            (InputRole::Assistant, Block::ToolUse { id, name, input }) => {
                let call = ToolCall::new(call_id(self.calls.len()), name, serde_json::Value::Object(input).to_string());
                self.message(Role::Assistant).tool_calls.push(call);
                self.calls.push(id);
            }
            (InputRole::User, Block::ToolResult { tool_use_id, content, is_error }) => {
                let call = self.calls.iter().position(|id| *id == tool_use_id).ok_or_else(|| {
                    let message = format!("{at}: no tool_use block of the message before has the id {tool_use_id}");
                    ApiError::bad_request(message).param(at)
                })?;
                if self.messages.last().is_none_or(|last| !matches!(last.role, Role::Assistant | Role::Tool)) {
                    let message = format!("{at}: tool_result blocks must stand before anything else that a user says");
                    return Err(ApiError::bad_request(message).param(at));
                }
                let text = result(content, is_error.unwrap_or(false), at)?;
                self.messages.push(Message::tool_result(call_id(call), text));
            }
            (_, Block::Image {}) => return Err(unsupported(at, "image")),
            (_, Block::Document {}) => return Err(unsupported(at, "document")),
            (_, Block::SearchResult {}) => return Err(unsupported(at, "search_result")),
            (_, block) => {
                let kind = match block {
                    Block::ToolUse { .. } => "tool_use",
                    Block::ToolResult { .. } => "tool_result",
                    _ => "thinking",
                };
                let message = format!("{at}: a block of the type {kind} cannot stand in a message of this role");
                return Err(ApiError::bad_request(message).param(at));
            }
        }
        Ok(())
    }
}

/// What the model is told that a call is known by. Clients know it by an id that no other call has; some templates insist
/// on nine letters and digits.
fn call_id(index: usize) -> String {
    format!("call{index:05}")
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
    let text = texts.join(BETWEEN);
    Ok(if is_error { format!("Error: {text}") } else { text })
}

fn unsupported(at: &str, kind: &str) -> ApiError {
    ApiError::unsupported(at, format!("{at}: blocks of the type {kind} are not supported: send text"))
}

/// The tools that the model is told about.
///
/// # Errors
/// 400 for tools that the client does not run itself, and for a choice that the model cannot be held to.
pub(super) fn tools(tools: Vec<ToolParam>, choice: Option<&ToolChoice>) -> Result<Vec<Tool>> {
    let refused = |what: &str| {
        let message = format!("tool_choice: {what} is not supported: use auto or none");
        Err(ApiError::unsupported("tool_choice", message))
    };
    match choice {
        Some(ToolChoice::Any {}) => return refused("any"),
        Some(ToolChoice::Tool {}) => return refused("tool"),
        Some(ToolChoice::Auto { disable_parallel_tool_use: Some(true) }) => {
            return refused("disable_parallel_tool_use");
        }
        Some(ToolChoice::Auto { .. } | ToolChoice::None {}) | None => {}
    }
    let tools = tools.into_iter().enumerate().map(|(index, tool)| {
        let at = format!("tools.{index}");
        if let Some(kind) = tool.kind.as_deref().filter(|kind| *kind != "custom") {
            let message = format!("{at}: tools of the type {kind} are not supported: describe it as a custom tool");
            return Err(ApiError::unsupported(format!("{at}.type"), message));
        }
        if tool.strict == Some(true) {
            return Err(ApiError::unsupported(format!("{at}.strict"), format!("{at}: strict is not supported")));
        }
        let Some(schema) = tool.input_schema else {
            let message = format!("{at}: input_schema is missing: give a JSON Schema of an object");
            return Err(ApiError::bad_request(message).param(format!("{at}.input_schema")));
        };
        let schema = serde_json::Value::Object(schema).to_string();
        Ok(Tool::new(tool.name, tool.description.unwrap_or_default(), schema))
    });
    let tools = tools.collect::<Result<Vec<_>>>()?;
    // A model that must not call tools is not told of any.
    Ok(if matches!(choice, Some(ToolChoice::None {})) { Vec::new() } else { tools })
}
