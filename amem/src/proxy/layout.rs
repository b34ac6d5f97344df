//! Where memories stand in a request, so that an upstream's prefix cache holds as much of it as can be.
//!
//! ```text
//! tools, the client's system    as they came
//! the snapshot                  the same bytes from turn to turn
//! the history                   as it came, but for the blocks that were put into it when its turns were the last
//! the question                  behind the memories that were recalled for it and are not in the snapshot
//! ```

use serde_json::{Value, json};

use super::raw::{Kept, RawObject};
use super::upstream::Kind;
use crate::http::{ApiError, Result};
use crate::memories::estimated_tokens;

/// Breakpoints that Anthropic takes in a request.
const BREAKPOINTS: usize = 4;

/// A chat API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `/v1/chat/completions`.
    OpenAi,
    /// `/v1/messages`.
    Anthropic,
}

/// A conversation as a client sent it, and the place of each of its parts.
pub(super) struct Conversation {
    format: Format,
    body: RawObject,
    messages: Vec<Kept>,
}

/// The user's last message that says something.
pub(super) struct Question {
    /// Its place among the messages.
    pub(super) index: usize,
    pub(super) text: String,
    /// Nothing stands behind it: it was not asked before.
    pub(super) is_last: bool,
}

impl Conversation {
    /// A request's.
    ///
    /// # Errors
    /// 422 for a request without messages.
    pub(super) fn read(format: Format, body: RawObject) -> Result<Self> {
        let messages = body.get::<Vec<Kept>>("messages")?;
        let messages = messages.ok_or_else(|| ApiError::unprocessable("messages is missing").param("messages"))?;
        Ok(Self { format, body, messages })
    }

    /// The fields beside the messages.
    pub(super) fn body(&mut self) -> &mut RawObject {
        &mut self.body
    }

    /// How many messages OpenAI's clients begin with that instruct the model.
    fn leading(&self) -> usize {
        match self.format {
            Format::OpenAi => self.messages.iter().take_while(|message| is_system(message.value())).count(),
            Format::Anthropic => 0,
        }
    }

    /// What tells this conversation from others: the client's system and the user's first message.
    pub(super) fn beginning(&self) -> Vec<u8> {
        let mut bytes = self.body.raw("system").map_or_else(Vec::new, |system| uncached(system.get()));
        let first = self.messages.iter().position(|message| role(message.value()) == "user");
        let until = first.map_or(self.messages.len(), |index| index + 1);
        self.messages[..until].iter().for_each(|message| bytes.extend(canonical(message.value())));
        bytes
    }

    /// What tells each message, with all before it, from others.
    pub(super) fn turns(&self) -> Vec<[u8; 32]> {
        let mut hash = [0; 32];
        let turn = |message: &Kept| {
            let mut hasher = blake3::Hasher::new();
            hash = *hasher.update(&hash).update(&canonical(message.value())).finalize().as_bytes();
            hash
        };
        self.messages.iter().map(turn).collect()
    }

    /// What is asked; `None` if the user has said nothing in words.
    pub(super) fn question(&self) -> Option<Question> {
        let asked = |(index, message): (usize, &Kept)| {
            let text = (role(message.value()) == "user").then(|| text(message.value()))?;
            let is_last = index + 1 == self.messages.len();
            (!text.trim().is_empty()).then_some(Question { index, text, is_last })
        };
        self.messages.iter().enumerate().rev().find_map(asked)
    }

    /// Puts memories into a message, before what it says.
    pub(super) fn put_before(&mut self, index: usize, memories: &str) -> Result<()> {
        let Some(message) = self.messages.get_mut(index) else { return Ok(()) };
        message.change(|message| match message.get_mut("content") {
            Some(Value::String(text)) => *text = format!("{memories}\n\n{text}"),
            Some(Value::Array(parts)) => {
                // Results of tools stand first, as Anthropic wants it.
                let place = parts.iter().position(is_text).unwrap_or(parts.len());
                parts.insert(place, json!({ "type": "text", "text": memories }));
            }
            _ => {}
        })
    }

    /// Puts the snapshot behind the client's system.
    pub(super) fn put_snapshot(&mut self, snapshot: &str, kind: Kind, min_cacheable_tokens: u64) -> Result<()> {
        match self.format {
            Format::OpenAi => self.put_system_message(snapshot, kind),
            Format::Anthropic => self.put_system_block(snapshot, kind, min_cacheable_tokens),
        }
    }

    fn put_system_message(&mut self, snapshot: &str, kind: Kind) -> Result<()> {
        let leading = self.leading();
        let last = leading.checked_sub(1).and_then(|last| self.messages.get_mut(last));
        match last {
            // Templates of open models often take one system message, and only as the first.
            Some(system) if kind != Kind::Openai => system.change(|system| match system.get_mut("content") {
                Some(Value::Array(parts)) => parts.push(json!({ "type": "text", "text": snapshot })),
                Some(Value::String(text)) => *text = format!("{text}\n\n{snapshot}"),
                _ => {}
            }),
            last => {
                let role = last.map_or("system", |system| role(system.value())).to_owned();
                self.messages.insert(leading, Kept::new(json!({ "role": role, "content": snapshot }))?);
                Ok(())
            }
        }
    }

    fn put_system_block(&mut self, snapshot: &str, kind: Kind, min_cacheable_tokens: u64) -> Result<()> {
        let mut blocks = match self.body.get::<Value>("system")? {
            None => Vec::new(),
            Some(Value::String(text)) if text.is_empty() => Vec::new(),
            Some(Value::String(text)) => vec![json!({ "type": "text", "text": text })],
            Some(Value::Array(blocks)) => blocks,
            Some(_) => return Err(ApiError::unprocessable("system is neither text nor blocks").param("system")),
        };
        let mut block = json!({ "type": "text", "text": snapshot });
        let bytes = |name| self.body.raw(name).map_or(0, |raw| raw.get().len());
        let prefix = estimated_tokens(bytes("tools") + bytes("system") + snapshot.len());
        if kind == Kind::Anthropic
            && prefix >= min_cacheable_tokens
            && let Some(breakpoint) = self.breakpoint()?
        {
            block["cache_control"] = breakpoint;
        }
        blocks.push(block);
        self.body.set("system", &blocks)
    }

    /// A breakpoint for the end of the system, if the client leaves one.
    fn breakpoint(&self) -> Result<Option<Value>> {
        let (mut before, mut behind) = (Vec::new(), Vec::new());
        for field in ["tools", "system"] {
            self.body.get::<Value>(field)?.iter().for_each(|value| breakpoints(value, &mut before));
        }
        self.messages.iter().for_each(|message| breakpoints(message.value(), &mut behind));
        behind.extend(self.body.get::<Value>("cache_control")?);
        if before.len() + behind.len() >= BREAKPOINTS {
            return Ok(None);
        }
        // What is kept for an hour may not stand behind what is kept for less.
        let an_hour = behind.iter().any(|breakpoint| breakpoint["ttl"] == "1h");
        Ok(Some(if an_hour { json!({ "type": "ephemeral", "ttl": "1h" }) } else { json!({ "type": "ephemeral" }) }))
    }

    /// The request.
    ///
    /// # Errors
    /// 500 if it cannot be written.
    pub(super) fn into_bytes(mut self) -> Result<Vec<u8>> {
        self.body.set("messages", &self.messages)?;
        serde_json::to_vec(&self.body).map_err(|error| ApiError::internal(&error))
    }
}

fn role(message: &Value) -> &str {
    message["role"].as_str().unwrap_or_default()
}

fn is_system(message: &Value) -> bool {
    matches!(role(message), "system" | "developer")
}

fn is_text(part: &Value) -> bool {
    part["type"] == "text"
}

/// What a message says in words.
fn text(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter(|part| is_text(part)).filter_map(|part| part["text"].as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// A message without its breakpoints, which clients move from turn to turn.
fn canonical(message: &Value) -> Vec<u8> {
    fn strip(value: &mut Value) {
        match value {
            Value::Array(values) => values.iter_mut().for_each(strip),
            Value::Object(fields) => {
                fields.shift_remove("cache_control");
                fields.values_mut().for_each(strip);
            }
            _ => {}
        }
    }
    let mut message = message.clone();
    strip(&mut message);
    // A string cannot fail to be written.
    serde_json::to_vec(&message).unwrap_or_default()
}

fn uncached(json: &str) -> Vec<u8> {
    serde_json::from_str(json).map_or_else(|_| json.as_bytes().to_vec(), |value: Value| canonical(&value))
}

/// The breakpoints in a part of a request.
fn breakpoints(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| breakpoints(value, found)),
        Value::Object(fields) => {
            found.extend(fields.get("cache_control").filter(|control| control.is_object()).cloned());
            fields.values().for_each(|value| breakpoints(value, found));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, body: &Value) -> Conversation {
        Conversation::read(format, serde_json::from_value(body.clone()).unwrap()).unwrap()
    }

    fn written(conversation: Conversation) -> Value {
        serde_json::from_slice(&conversation.into_bytes().unwrap()).unwrap()
    }

    fn with_snapshot(format: Format, kind: Kind, body: &Value) -> Value {
        let mut conversation = read(format, body);
        conversation.put_snapshot("NOTES", kind, 0).unwrap();
        written(conversation)
    }

    #[test]
    fn the_snapshot_stands_behind_the_clients_system() {
        let body = json!({ "messages": [{ "role": "developer", "content": "Be kind." }, { "role": "user", "content": "Hi" }] });
        let messages = |kind| with_snapshot(Format::OpenAi, kind, &body)["messages"].clone();
        let separate = json!([
            { "role": "developer", "content": "Be kind." },
            { "role": "developer", "content": "NOTES" },
            { "role": "user", "content": "Hi" },
        ]);
        assert_eq!(messages(Kind::Openai), separate);
        assert_eq!(messages(Kind::Vllm)[0], json!({ "role": "developer", "content": "Be kind.\n\nNOTES" }));
        let none = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
        let first = &with_snapshot(Format::OpenAi, Kind::Ollama, &none)["messages"][0];
        assert_eq!(first, &json!({ "role": "system", "content": "NOTES" }));
    }

    #[test]
    fn memories_stand_before_what_the_user_says_and_behind_results_of_tools() {
        let result = json!({ "type": "tool_result", "tool_use_id": "t", "content": "4" });
        let body = json!({ "messages": [
            { "role": "user", "content": "First?" },
            { "role": "user", "content": [result, { "type": "text", "text": "And?" }] },
        ] });
        let mut conversation = read(Format::Anthropic, &body);
        assert_eq!(conversation.question().unwrap().index, 1);
        conversation.put_before(0, "A").unwrap();
        conversation.put_before(1, "B").unwrap();
        let messages = &written(conversation)["messages"];
        assert_eq!(messages[0]["content"], "A\n\nFirst?");
        assert_eq!(
            messages[1]["content"],
            json!([result, { "type": "text", "text": "B" }, { "type": "text", "text": "And?" }])
        );
    }

    #[test]
    fn a_tools_result_is_no_question() {
        let body = json!({ "messages": [
            { "role": "user", "content": "What is it?" },
            { "role": "assistant", "content": [{ "type": "tool_use", "id": "t", "name": "f", "input": {} }] },
            { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": "4" }] },
        ] });
        let question = read(Format::Anthropic, &body).question().unwrap();
        assert_eq!((question.index, question.is_last, question.text.as_str()), (0, false, "What is it?"));
    }

    #[test]
    fn a_breakpoint_is_set_if_the_prefix_is_long_enough_and_the_client_leaves_one() {
        let control = json!({ "type": "ephemeral" });
        let marked = |text: &str| json!({ "type": "text", "text": text, "cache_control": control });
        let with = |own: usize, least: u64| {
            let system: Vec<Value> = (0..own).map(|n| marked(&n.to_string())).collect();
            let mut conversation = read(Format::Anthropic, &json!({ "system": system, "messages": [] }));
            conversation.put_snapshot(&"x".repeat(400), Kind::Anthropic, least).unwrap();
            written(conversation)["system"][own].get("cache_control").cloned()
        };
        assert_eq!(with(0, 100), Some(control.clone()));
        assert_eq!(with(0, 102), None);
        assert_eq!(with(3, 100), Some(control.clone()));
        assert_eq!(with(4, 100), None);
        let other = with_snapshot(Format::Anthropic, Kind::Vllm, &json!({ "system": "Be kind.", "messages": [] }));
        assert_eq!(
            other["system"],
            json!([{ "type": "text", "text": "Be kind." }, { "type": "text", "text": "NOTES" }])
        );
    }

    #[test]
    fn a_breakpoint_before_one_of_an_hour_is_of_an_hour() {
        let hour = json!({ "type": "ephemeral", "ttl": "1h" });
        let block = json!([{ "type": "text", "text": "Hi", "cache_control": hour }]);
        let body = json!({ "messages": [{ "role": "user", "content": block }] });
        let system = &with_snapshot(Format::Anthropic, Kind::Anthropic, &body)["system"];
        assert_eq!(system[0]["cache_control"], hour);
    }

    #[test]
    fn a_turn_is_known_again_when_its_breakpoint_has_moved() {
        let marked = json!([{ "type": "text", "text": "Hi", "cache_control": { "type": "ephemeral" } }]);
        let body = |content: &Value| json!({ "system": "S", "messages": [{ "role": "user", "content": content }] });
        let known = |content: &Value| {
            let conversation = read(Format::Anthropic, &body(content));
            (conversation.turns(), conversation.beginning())
        };
        assert_eq!(known(&marked), known(&json!([{ "type": "text", "text": "Hi" }])));
        assert_ne!(known(&marked), known(&json!([{ "type": "text", "text": "Ho" }])));
    }
}
