//! OpenAI's format for an upstream that speaks Anthropic's: text and tools. What has no counterpart is refused by name, and
//! nothing is left out but messages that say nothing.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::raw::RawObject;
use super::usage::Usage;
use crate::http::{ApiError, Result};

/// Tokens to answer with at most, where the client does not say; Anthropic's API wants a number.
const MAX_TOKENS: u64 = 4096;
/// Bytes of an event of a stream at most.
const EVENT_BYTES: usize = 16 << 20;

/// A request in OpenAI's format, as its client wrote it.
#[derive(Deserialize)]
struct Request {
    model: Value,
    messages: Vec<Message>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    stop: Option<Value>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    n: Option<u64>,
    /// Everything else.
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<Value>,
    refusal: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
    function_call: Option<Value>,
    audio: Option<Value>,
}

#[derive(Deserialize)]
struct ToolCall {
    id: String,
    function: Call,
}

#[derive(Deserialize)]
struct Call {
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
struct Tool {
    r#type: String,
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// How an answer is told to a client of OpenAI's.
#[derive(Clone, Debug)]
pub(super) struct Translation {
    model: String,
    include_usage: bool,
}

fn unsupported(param: &str) -> ApiError {
    ApiError::unsupported(param, format!("{param} has no counterpart at this model's upstream: leave it out"))
}

/// A request as Anthropic's API takes it. The same request is the same bytes.
///
/// # Errors
/// 400 for what has no counterpart, 422 for another shape.
pub(super) fn request(body: &RawObject) -> Result<(RawObject, Translation)> {
    let wrong = |error: serde_json::Error| ApiError::unprocessable(error.to_string());
    let text = serde_json::to_string(body).map_err(wrong)?;
    let request: Request = serde_json::from_str(&text).map_err(wrong)?;
    // Names that an upstream keeps answers or requests by say nothing of the answer.
    let harmless = ["store", "metadata", "prompt_cache_key", "safety_identifier"];
    for (name, value) in &request.others {
        let is_default = match name.as_str() {
            "frequency_penalty" | "presence_penalty" => value.as_f64() == Some(0.0),
            "logprobs" => value == &json!(false),
            "response_format" => value["type"] == "text",
            "service_tier" => value == "auto" || value == "default",
            "logit_bias" => value.as_object().is_some_and(Map::is_empty),
            name => harmless.contains(&name),
        };
        if !value.is_null() && !is_default {
            return Err(unsupported(name));
        }
    }
    if request.n.is_some_and(|n| n != 1) {
        return Err(unsupported("n"));
    }
    if request.temperature.is_some_and(|temperature| temperature > 1.0) {
        return Err(ApiError::bad_request("this model's temperature is at most 1").param("temperature"));
    }
    let mut to = Map::new();
    to.insert("model".into(), request.model.clone());
    let max_tokens = request.max_completion_tokens.or(request.max_tokens).unwrap_or(MAX_TOKENS);
    to.insert("max_tokens".into(), json!(max_tokens));
    if let Some(tools) = request.tools {
        to.insert("tools".into(), tools.into_iter().map(tool).collect::<Result<_>>()?);
    }
    if let Some(choice) = tool_choice(request.tool_choice, request.parallel_tool_calls)? {
        to.insert("tool_choice".into(), choice);
    }
    let (system, messages) = messages(request.messages)?;
    if !system.is_empty() {
        to.insert("system".into(), Value::Array(system));
    }
    to.insert("messages".into(), Value::Array(messages));
    let numbers = [("temperature", request.temperature), ("top_p", request.top_p)];
    to.extend(numbers.into_iter().filter_map(|(name, number)| Some((name.to_owned(), json!(number?)))));
    match request.stop {
        None => {}
        Some(stop @ Value::String(_)) => drop(to.insert("stop_sequences".into(), json!([stop]))),
        Some(stop) => drop(to.insert("stop_sequences".into(), stop)),
    }
    to.extend(request.stream.map(|stream| ("stream".to_owned(), json!(stream))));
    let include_usage = request.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
    let translation = Translation { model: request.model.as_str().unwrap_or_default().to_owned(), include_usage };
    Ok((serde_json::from_value(Value::Object(to)).map_err(wrong)?, translation))
}

fn tool(tool: Tool) -> Result<Value> {
    let Some(Function { name, description, parameters, strict }) = tool.function.filter(|_| tool.r#type == "function")
    else {
        return Err(unsupported("tools"));
    };
    let parameters = parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
    let mut to = json!({ "name": name, "input_schema": parameters });
    if let Some(description) = description {
        to["description"] = json!(description);
    }
    if strict == Some(true) {
        to["strict"] = json!(true);
    }
    Ok(to)
}

fn tool_choice(choice: Option<Value>, parallel: Option<bool>) -> Result<Option<Value>> {
    let mut to = match choice {
        None if parallel == Some(false) => json!({ "type": "auto" }),
        None => return Ok(None),
        Some(choice) => match choice.as_str() {
            Some("auto") => json!({ "type": "auto" }),
            Some("none") => return Ok(Some(json!({ "type": "none" }))),
            Some("required") => json!({ "type": "any" }),
            None if choice["type"] == "function" && choice["function"]["name"].is_string() => {
                json!({ "type": "tool", "name": choice["function"]["name"] })
            }
            _ => return Err(unsupported("tool_choice")),
        },
    };
    if parallel == Some(false) {
        to["disable_parallel_tool_use"] = json!(true);
    }
    Ok(Some(to))
}

/// The system's blocks, and the messages behind it.
fn messages(messages: Vec<Message>) -> Result<(Vec<Value>, Vec<Value>)> {
    // Without the last message the answer before it would be continued.
    let is_blank = |message: &Message| texts(message.content.clone()).is_ok_and(|blocks| blocks.is_empty());
    if messages.last().is_some_and(|last| last.role == "user" && is_blank(last)) {
        return Err(ApiError::bad_request("the last message says nothing").param("messages"));
    }
    let (mut system, mut to): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    let mut results: Vec<Value> = Vec::new();
    let mut in_results = false;
    for message in messages {
        let Message { role, content, refusal, tool_calls, tool_call_id, function_call, audio } = message;
        for (param, value) in [("messages.function_call", function_call), ("messages.audio", audio)] {
            if value.is_some() {
                return Err(unsupported(param));
            }
        }
        let mut blocks = texts(content)?;
        if blocks.is_empty() {
            blocks.extend(refusal.as_deref().and_then(text_block));
        }
        let is_result = role == "tool";
        if in_results && !is_result {
            to.push(json!({ "role": "user", "content": std::mem::take(&mut results) }));
        }
        in_results = is_result;
        match role.as_str() {
            "system" | "developer" if to.is_empty() => system.extend(blocks),
            "user" => to.extend(said("user", blocks)),
            "assistant" => {
                for ToolCall { id, function: Call { name, arguments } } in tool_calls.unwrap_or_default() {
                    let arguments = if arguments.trim().is_empty() { "{}" } else { &arguments };
                    let input: Value = serde_json::from_str(arguments).map_err(|error| {
                        ApiError::bad_request(format!("the arguments of the call {id} are no JSON: {error}"))
                            .param("messages")
                    })?;
                    blocks.push(json!({ "type": "tool_use", "id": id, "name": name, "input": input }));
                }
                to.extend(said("assistant", blocks));
            }
            "tool" => {
                let id = tool_call_id.ok_or_else(|| ApiError::unprocessable("a tool's message has no tool_call_id"))?;
                results.push(json!({ "type": "tool_result", "tool_use_id": id, "content": blocks }));
            }
            // Instructions in the middle of a conversation would count from its start.
            _ => return Err(ApiError::unsupported("messages", format!("a message of {role} cannot stand here"))),
        }
    }
    if !results.is_empty() {
        to.push(json!({ "role": "user", "content": results }));
    }
    Ok((system, to))
}

/// A message; `None` for one without blocks, which Anthropic's API refuses.
fn said(role: &str, blocks: Vec<Value>) -> Option<Value> {
    (!blocks.is_empty()).then(|| json!({ "role": role, "content": blocks }))
}

/// Content as blocks of text.
fn texts(content: Option<Value>) -> Result<Vec<Value>> {
    match content {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(text_block(&text).into_iter().collect()),
        Some(Value::Array(parts)) => {
            let mut blocks = Vec::new();
            for part in &parts {
                // The text of a part has the name of the part's type.
                let kind = part["type"].as_str().filter(|kind| matches!(*kind, "text" | "refusal"));
                let text = kind.and_then(|kind| part[kind].as_str()).ok_or_else(|| unsupported("messages.content"))?;
                let Some(mut block) = text_block(text) else { continue };
                if let Some(control) = part.get("cache_control").filter(|control| !control.is_null()) {
                    block["cache_control"] = control.clone();
                }
                blocks.push(block);
            }
            Ok(blocks)
        }
        Some(_) => Err(ApiError::unprocessable("content is neither text nor parts").param("messages")),
    }
}

/// A text as a block; `None` if there is nothing in it to read, for Anthropic's API refuses such blocks.
fn text_block(text: &str) -> Option<Value> {
    (!text.trim().is_empty()).then(|| json!({ "type": "text", "text": text }))
}

fn finish_reason(stop: &Value) -> Value {
    match stop.as_str() {
        None => Value::Null,
        Some("max_tokens" | "model_context_window_exceeded") => json!("length"),
        Some("tool_use") => json!("tool_calls"),
        Some("refusal") => json!("content_filter"),
        Some(_) => json!("stop"),
    }
}

fn usage(usage: &Usage) -> Value {
    let tokens = usage.tokens().unwrap_or_default();
    json!({
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
        "prompt_tokens_details": { "cached_tokens": tokens.cache_read },
    })
}

impl Translation {
    fn frame(&self, object: &str, id: &Value) -> Value {
        let created = amem_core::Timestamp::now().0 / 1000;
        json!({ "id": id, "object": object, "created": created, "model": self.model })
    }

    /// An answer in OpenAI's format.
    pub(super) fn answer(&self, message: &Value) -> Value {
        let mut used = Usage::default();
        used.read(message);
        let blocks = message["content"].as_array().map_or(&[][..], Vec::as_slice);
        let text: String = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
        let calls: Vec<Value> = blocks.iter().filter(|block| block["type"] == "tool_use").map(call).collect();
        let mut said = json!({ "role": "assistant", "content": text });
        if !calls.is_empty() {
            said["tool_calls"] = json!(calls);
            if text.is_empty() {
                said["content"] = Value::Null;
            }
        }
        let mut answer = self.frame("chat.completion", &message["id"]);
        let finish = finish_reason(&message["stop_reason"]);
        answer["choices"] = json!([{ "index": 0, "message": said, "logprobs": null, "finish_reason": finish }]);
        answer["usage"] = usage(&used);
        answer
    }

    /// A stream in OpenAI's format.
    pub(super) fn stream(self) -> StreamTranslation {
        StreamTranslation {
            to: self,
            buffer: Vec::new(),
            id: Value::Null,
            calls: 0,
            lacks_arguments: false,
            usage: Usage::default(),
            done: false,
        }
    }
}

fn call(block: &Value) -> Value {
    let function = json!({ "name": block["name"], "arguments": block["input"].to_string() });
    json!({ "id": block["id"], "type": "function", "function": function })
}

/// A stream that is told in OpenAI's format as it comes.
pub(super) struct StreamTranslation {
    to: Translation,
    buffer: Vec<u8>,
    id: Value,
    /// Calls of tools that have begun.
    calls: usize,
    /// A call is under way, and nothing was said of its arguments yet.
    lacks_arguments: bool,
    usage: Usage,
    done: bool,
}

impl StreamTranslation {
    /// The bytes that the client is told for these. An event that never ends is an error.
    ///
    /// # Errors
    /// For an event beyond all bounds.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut told = Vec::new();
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let event = line.strip_prefix(b"data:").and_then(|data| serde_json::from_slice::<Value>(data).ok());
            event.iter().for_each(|event| self.event(event, &mut told));
        }
        if self.buffer.len() > EVENT_BYTES {
            return Err(ApiError::bad_gateway("the upstream's stream has an event that does not end"));
        }
        Ok(told)
    }

    fn event(&mut self, event: &Value, told: &mut Vec<u8>) {
        self.usage.read(event);
        match event["type"].as_str().unwrap_or_default() {
            "message_start" => {
                self.id = event["message"]["id"].clone();
                self.delta(json!({ "role": "assistant", "content": "" }), Value::Null, told);
            }
            "content_block_start" if event["content_block"]["type"] == "tool_use" => {
                let block = &event["content_block"];
                let function = json!({ "name": block["name"], "arguments": "" });
                let call = json!({ "index": self.calls, "id": block["id"], "type": "function", "function": function });
                (self.calls, self.lacks_arguments) = (self.calls + 1, true);
                self.delta(json!({ "tool_calls": [call] }), Value::Null, told);
            }
            "content_block_delta" => {
                let delta = &event["delta"];
                if let Some(text) = delta["text"].as_str() {
                    self.delta(json!({ "content": text }), Value::Null, told);
                } else if let Some(part) = delta["partial_json"].as_str().filter(|part| !part.is_empty()) {
                    self.lacks_arguments = false;
                    self.arguments(part, told);
                }
            }
            // A call without arguments is told in parts of which none says anything.
            "content_block_stop" if std::mem::take(&mut self.lacks_arguments) => self.arguments("{}", told),
            "message_delta" if event["delta"]["stop_reason"].is_string() => {
                self.delta(json!({}), finish_reason(&event["delta"]["stop_reason"]), told);
            }
            "message_stop" if !self.done => {
                self.done = true;
                if self.to.include_usage {
                    let mut chunk = self.to.frame("chat.completion.chunk", &self.id);
                    (chunk["choices"], chunk["usage"]) = (json!([]), usage(&self.usage));
                    data(&chunk.to_string(), told);
                }
                data("[DONE]", told);
            }
            "error" => data(&json!({ "error": event["error"] }).to_string(), told),
            _ => {}
        }
    }

    /// A part of the arguments of the call that is under way.
    fn arguments(&self, part: &str, told: &mut Vec<u8>) {
        let Some(index) = self.calls.checked_sub(1) else { return };
        let call = json!({ "index": index, "function": { "arguments": part } });
        self.delta(json!({ "tool_calls": [call] }), Value::Null, told);
    }

    fn delta(&self, delta: Value, finish: Value, told: &mut Vec<u8>) {
        let mut chunk = self.to.frame("chat.completion.chunk", &self.id);
        chunk["choices"] = json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
        data(&chunk.to_string(), told);
    }
}

fn data(text: &str, told: &mut Vec<u8>) {
    for part in ["data: ", text, "\n\n"] {
        told.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(body: &Value) -> Result<Value> {
        let (body, _) = request(&serde_json::from_value(body.clone()).unwrap())?;
        Ok(serde_json::to_value(&body).unwrap())
    }

    fn translation() -> Translation {
        Translation { model: "claude".into(), include_usage: true }
    }

    #[test]
    fn a_conversation_with_tools_is_told_as_anthropic_wants_it() {
        let call =
            |id: &str| json!({ "id": id, "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } });
        let tool = json!({ "type": "function", "function": { "name": "f", "description": "d", "parameters": { "type": "object" } } });
        let sent = translated(&json!({
            "model": "claude", "max_completion_tokens": 9, "stop": "END", "temperature": 0.5, "tools": [tool],
            "tool_choice": "required", "parallel_tool_calls": false, "n": 1, "logprobs": false, "seed": null,
            "messages": [
                { "role": "system", "content": "Be kind." },
                { "role": "user", "content": [{ "type": "text", "text": "Hi" }] },
                { "role": "assistant", "content": null, "tool_calls": [call("a"), call("b")] },
                { "role": "tool", "tool_call_id": "a", "content": "1" },
                { "role": "tool", "tool_call_id": "b", "content": "2" },
                { "role": "user", "content": "And?" },
            ],
        }));
        let text = |text: &str| json!([{ "type": "text", "text": text }]);
        let used = |id: &str| json!({ "type": "tool_use", "id": id, "name": "f", "input": { "x": 1 } });
        let result = |id: &str, said: &str| json!({ "type": "tool_result", "tool_use_id": id, "content": text(said) });
        let expected = json!({
            "model": "claude", "max_tokens": 9, "stop_sequences": ["END"], "temperature": 0.5,
            "tools": [{ "name": "f", "description": "d", "input_schema": { "type": "object" } }],
            "tool_choice": { "type": "any", "disable_parallel_tool_use": true },
            "system": text("Be kind."),
            "messages": [
                { "role": "user", "content": text("Hi") },
                { "role": "assistant", "content": [used("a"), used("b")] },
                { "role": "user", "content": [result("a", "1"), result("b", "2")] },
                { "role": "user", "content": text("And?") },
            ],
        });
        assert_eq!(sent.unwrap(), expected);
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name() {
        let with = |name: &str, value: Value| {
            let mut body = json!({ "model": "claude", "messages": [{ "role": "user", "content": "Hi" }] });
            body[name] = value;
            translated(&body).map_err(|error| error.body()["error"]["param"].clone())
        };
        assert_eq!(with("seed", json!(7)).unwrap_err(), "seed");
        assert_eq!(with("response_format", json!({ "type": "json_object" })).unwrap_err(), "response_format");
        assert_eq!(with("n", json!(2)).unwrap_err(), "n");
        assert_eq!(with("temperature", json!(1.5)).unwrap_err(), "temperature");
        let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }]);
        assert_eq!(with("messages", image).unwrap_err(), "messages.content");
        let called =
            json!([{ "role": "assistant", "content": null, "function_call": { "name": "f", "arguments": "{}" } }]);
        assert_eq!(with("messages", called).unwrap_err(), "messages.function_call");
        let spoken = json!([{ "role": "assistant", "content": "Yes.", "audio": { "id": "x" } }]);
        assert_eq!(with("messages", spoken).unwrap_err(), "messages.audio");
        let late = json!([{ "role": "user", "content": "Hi" }, { "role": "system", "content": "Be rude." }]);
        assert_eq!(with("messages", late).unwrap_err(), "messages");
        let blank = json!([{ "role": "assistant", "content": "Hello!" }, { "role": "user", "content": " " }]);
        assert_eq!(with("messages", blank).unwrap_err(), "messages");
        assert!(with("presence_penalty", json!(0)).is_ok());
    }

    #[test]
    fn what_says_nothing_is_no_message_and_a_refusal_is_what_was_said() {
        let sent = translated(&json!({ "model": "claude", "messages": [
            { "role": "user", "content": "Hi" },
            { "role": "assistant", "content": "" },
            { "role": "user", "content": [{ "type": "text", "text": " \n" }] },
            { "role": "assistant", "content": null, "refusal": "No.", "audio": null, "function_call": null },
            { "role": "assistant", "content": [{ "type": "refusal", "refusal": "Never." }] },
            { "role": "user", "content": "And?" },
        ] }));
        let said = |role: &str, text: &str| json!({ "role": role, "content": [{ "type": "text", "text": text }] });
        let expected =
            [said("user", "Hi"), said("assistant", "No."), said("assistant", "Never."), said("user", "And?")];
        assert_eq!(sent.unwrap()["messages"], json!(expected));
    }

    #[test]
    fn a_text_keeps_its_breakpoint() {
        let part = json!({ "type": "text", "text": "Be kind.", "cache_control": { "type": "ephemeral" } });
        let sent = translated(&json!({ "model": "claude", "messages": [
            { "role": "system", "content": [part] },
            { "role": "user", "content": [{ "type": "text", "text": "Hi", "cache_control": null }, part] },
        ] }));
        let sent = sent.unwrap();
        assert_eq!(sent["system"], json!([part]));
        assert_eq!(sent["messages"][0]["content"], json!([{ "type": "text", "text": "Hi" }, part]));
    }

    #[test]
    fn an_answer_is_told_as_openai_tells_it() {
        let answer = translation().answer(&json!({
            "id": "msg_1", "content": [{ "type": "text", "text": "Let me see." },
                { "type": "tool_use", "id": "a", "name": "f", "input": { "x": 1 } }],
            "stop_reason": "tool_use",
            "usage": { "input_tokens": 30, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 10, "output_tokens": 7 },
        }));
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], "Let me see.");
        let call = json!({ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } });
        assert_eq!(
            (&choice["message"]["tool_calls"], &choice["finish_reason"]),
            (&json!([call]), &json!("tool_calls"))
        );
        assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["total_tokens"]), (&json!(100), &json!(107)));
    }

    #[test]
    fn a_stream_is_told_as_openai_tells_it_wherever_its_bytes_are_cut() {
        let events = [
            json!({ "type": "message_start", "message": { "id": "msg_1", "usage": { "input_tokens": 100, "output_tokens": 1 } } }),
            json!({ "type": "ping" }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "café" } }),
            json!({ "type": "content_block_start", "index": 1, "content_block": { "type": "tool_use", "id": "a", "name": "f" } }),
            json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta", "partial_json": "{}" } }),
            json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" }, "usage": { "output_tokens": 7 } }),
            json!({ "type": "message_stop" }),
        ];
        let stream: String = events.iter().map(|event| format!("event: x\r\ndata: {event}\r\n\r\n")).collect();
        for cut in 0..stream.len() {
            let mut translation = translation().stream();
            let (first, second) = stream.as_bytes().split_at(cut);
            let mut told = translation.read(first).unwrap();
            told.extend(translation.read(second).unwrap());
            let told = String::from_utf8(told).unwrap();
            let mut data: Vec<&str> = told.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
            assert_eq!(data.pop(), Some("[DONE]"));
            let chunks: Vec<Value> = data.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
            let deltas: Vec<&Value> =
                chunks.iter().filter_map(|chunk| chunk["choices"].get(0)).map(|c| &c["delta"]).collect();
            assert_eq!(deltas[1]["content"], "café");
            assert_eq!(deltas[2]["tool_calls"][0]["id"], "a");
            assert_eq!(deltas[3]["tool_calls"][0]["function"]["arguments"], "{}");
            assert_eq!(chunks[4]["choices"][0]["finish_reason"], "tool_calls");
            assert_eq!((&chunks[5]["choices"], &chunks[5]["usage"]["total_tokens"]), (&json!([]), &json!(107)));
        }
    }

    #[test]
    fn the_arguments_of_every_call_in_a_stream_are_json() {
        let start = |index: u64, id: &str| {
            let block = json!({ "type": "tool_use", "id": id, "name": "f", "input": {} });
            json!({ "type": "content_block_start", "index": index, "content_block": block })
        };
        let part = |index: u64, json: &str| {
            let delta = json!({ "type": "input_json_delta", "partial_json": json });
            json!({ "type": "content_block_delta", "index": index, "delta": delta })
        };
        let stop = |index: u64| json!({ "type": "content_block_stop", "index": index });
        let text =
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } });
        let events = [
            vec![text, stop(0), start(1, "a"), part(1, ""), stop(1)],
            vec![start(2, "b"), part(2, ""), part(2, "{\"x\""), part(2, ":1}"), stop(2)],
            vec![start(3, "c"), stop(3)],
        ];
        let stream: String = events.concat().iter().map(|event| format!("data: {event}\n\n")).collect();
        let told = String::from_utf8(translation().stream().read(stream.as_bytes()).unwrap()).unwrap();
        let mut arguments = vec![String::new(); 3];
        for event in told.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
            let call = &serde_json::from_str::<Value>(event).unwrap()["choices"][0]["delta"]["tool_calls"][0];
            let index = call["index"].as_u64().unwrap() as usize;
            arguments[index] += call["function"]["arguments"].as_str().unwrap();
        }
        assert_eq!(arguments, ["{}", "{\"x\":1}", "{}"]);
    }
}
