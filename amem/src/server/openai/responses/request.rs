//! What a client of `/v1/responses` sends, as a turn.

use std::collections::BTreeMap;

use amem_core::{Ask, Generation, Namespace, Tool, ToolCall};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::object::Echo;
use crate::http::{ApiError, Result};
use crate::server::Server;
use crate::server::conversation::{Conversation, MAX_MESSAGES};
use crate::server::openai::form::tool_choice;
use crate::server::openai::sampling::{SamplingParams, refuse_others};
use crate::server::openai::{MAX_TOOLS, check_name, invalid, unsupported, whole};
use crate::server::structured::{Format, Tools};
use crate::server::turn::Turn;

/// The likeliest tokens that can come with each token.
const MAX_TOP_LOGPROBS: usize = 20;
/// What a client may note: entries, and bytes of their names and texts.
const MAX_METADATA: usize = 16;
const MAX_METADATA_BYTES: (usize, usize) = (256, 2048);
/// What asks for log probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";
/// What asks for thoughts, of which there are none.
const REASONING: &str = "reasoning.encrypted_content";

/// What OpenAI's API has, and this one does not: to ignore it would be to answer something else.
const UNSUPPORTED: [&str; 8] = [
    "background",
    "context_management",
    "conversation",
    "max_tool_calls",
    "moderation",
    "previous_response_id",
    "prompt",
    "reasoning",
];

/// A conversation to go on with.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::server::openai) struct ResponsesRequest {
    /// Any name: the one model here answers, and the answer says which it is.
    #[expect(dead_code, reason = "clients must send it")]
    model: Option<String>,
    /// A question, or the conversation so far: it ends with a question, or with results of functions.
    input: Input,
    /// What the model is told before the conversation.
    instructions: Option<String>,
    /// Whose memory it is asked of.
    pub(super) user: Option<String>,
    /// The session that it is asked in.
    session: Option<String>,
    /// Whether KV of memories that is held is used; true unless said otherwise.
    residency: Option<bool>,
    /// Memories that are recalled at most.
    #[schema(minimum = 0)]
    k: Option<i64>,
    /// Tokens that the user's session holds at most, if this opens it.
    #[schema(minimum = 1)]
    budget_tokens: Option<i64>,
    /// Tokens of the answer at most.
    #[schema(minimum = 1)]
    max_output_tokens: Option<i64>,
    /// How tokens are drawn.
    #[serde(flatten)]
    sampling: SamplingParams,
    /// The likeliest tokens that come with each token: `include` asks for them.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    /// More that is to be told: `message.output_text.logprobs`.
    include: Option<Vec<String>>,
    /// The form of the text.
    text: Option<TextParams>,
    /// The functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Map<String, Value>>>,
    /// Which of them: `none`, `auto`, `required`, or one by its name.
    #[schema(value_type = Option<Object>)]
    tool_choice: Option<Value>,
    /// Whether one answer may call several functions; true unless said otherwise.
    parallel_tool_calls: Option<bool>,
    /// Whether the answer is sent as it is generated.
    stream: Option<bool>,
    /// Whether the response is to be stored: it is not, and says so.
    #[expect(dead_code, reason = "a response says that it is not stored")]
    store: Option<bool>,
    /// `disabled`: a conversation that is too long is an error.
    truncation: Option<String>,
    /// What the client notes: it comes back with the response.
    metadata: Option<BTreeMap<String, String>>,
    /// What is not said here: it changes nothing, or is refused.
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// A question or a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum Input {
    /// A question.
    Text(String),
    /// A conversation.
    Items(Vec<InputItem>),
}

/// A part of a conversation: a message, a call of a function, or its result. What a model thought is passed over.
#[derive(Debug, Deserialize, ToSchema)]
struct InputItem {
    /// `message`, which it is unless said otherwise, `function_call`, `function_call_output` or `reasoning`.
    r#type: Option<String>,
    /// Who wrote a message: `system`, `developer`, `user` or `assistant`.
    role: Option<String>,
    /// What a message says.
    content: Option<Content>,
    /// What a call's result refers to.
    call_id: Option<String>,
    /// The function that is called.
    name: Option<String>,
    /// Its arguments: a JSON object, written as a string.
    arguments: Option<String>,
    /// What came of a call.
    output: Option<Content>,
}

/// What a message says: a text, or parts.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ResponseContent)]
#[serde(untagged)]
enum Content {
    /// A text.
    Text(String),
    /// Parts, which must be texts.
    Parts(Vec<InputPart>),
}

/// A part of a message.
#[derive(Debug, Deserialize, ToSchema)]
struct InputPart {
    /// `input_text`, `output_text` or `refusal`.
    r#type: String,
    /// The text.
    text: Option<String>,
    /// What a model refused to answer, for the type `refusal`.
    refusal: Option<String>,
}

/// What a text is to be like.
#[derive(Debug, Deserialize, ToSchema)]
struct TextParams {
    /// Its form.
    format: Option<TextFormat>,
    /// How much is said: not supported, but for `medium`.
    verbosity: Option<String>,
}

/// The form of a text.
#[derive(Debug, Deserialize, ToSchema)]
struct TextFormat {
    /// `text`, `json_object` or `json_schema`.
    r#type: String,
    /// The schema's name.
    name: Option<String>,
    /// What the schema is for.
    description: Option<String>,
    /// The schema, for `json_schema`.
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
    /// Whether all of it must hold.
    strict: Option<bool>,
}

/// A request that makes sense.
pub(super) struct Asked {
    /// What is asked.
    pub(super) turn: Turn,
    /// What the response repeats.
    pub(super) echo: Echo,
    /// Whether tokens come with their log probabilities.
    pub(super) logprobs: bool,
    /// Whether the answer is sent as it is generated.
    pub(super) streams: bool,
}

impl ResponsesRequest {
    /// What is asked by it.
    pub(super) async fn read(self, server: &Server, namespace: Namespace) -> Result<Asked> {
        self.refuse_unsupported()?;
        let options = server.options();
        let (format, text) = self.format()?;
        let tools = self.tools()?;
        let choice = tool_choice(named_within(self.tool_choice.as_ref()).as_ref(), &tools)?;
        let tools = Tools::new(tools, choice, |index| format!("tools[{index}].strict"))?;
        let max_output_tokens =
            self.max_output_tokens.map(|tokens| whole("max_output_tokens", tokens, 1, usize::MAX)).transpose()?;
        let sampling = self.sampling.sampling(&**server.memory().model())?;
        let (temperature, top_p) = (sampling.temperature, sampling.top_p);
        let mut generation = Generation::default()
            .max_tokens(max_output_tokens.unwrap_or(options.max_tokens))
            .min_tokens(self.sampling.min_tokens()?)
            .sampling(sampling)
            .stop(self.sampling.stop()?);
        generation.logprobs = self.logprobs()?;
        generation.constraint = server.constraint("text.format", &format, &tools).await?;
        let logprobs = generation.logprobs;
        let k = self.k.map_or(Ok(options.k), |k| whole("k", k, 0, options.max_texts))?;
        let budget_tokens =
            self.budget_tokens.map(|tokens| whole("budget_tokens", tokens, 1, usize::MAX)).transpose()?;
        let parallel_tool_calls = self.parallel_tool_calls.unwrap_or(true);
        let echo = Echo {
            instructions: self.instructions.clone(),
            max_output_tokens,
            metadata: self.metadata.unwrap_or_default(),
            parallel_tool_calls,
            temperature,
            top_p,
            top_logprobs: logprobs.unwrap_or(0),
            text,
            tool_choice: self.tool_choice.filter(|choice| !choice.is_null()).unwrap_or_else(|| json!("auto")),
            tools: self.tools.unwrap_or_default().into_iter().map(Value::Object).collect(),
            reasoning: json!({ "effort": null, "summary": null }),
            user: self.user,
        };
        let messages = conversation(self.instructions, self.input)?;
        let ask = Ask::messages(messages).tools(tools.told).k(k).generation(generation);
        let turn = Turn {
            session: self.session,
            budget_tokens,
            residency: self.residency.unwrap_or(true),
            parallel_calls: parallel_tool_calls,
            ..Turn::new(namespace, ask)
        };
        Ok(Asked { turn, echo, logprobs: logprobs.is_some(), streams: self.stream.unwrap_or(false) })
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let asks_for_nothing = |name: &str, value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            // Not to reason is what is done.
            Value::Object(settings) if name == "reasoning" => {
                settings.values().all(|setting| setting.is_null() || setting == "none")
            }
            _ => false,
        };
        let asked_for = UNSUPPORTED.into_iter().find(|name| {
            let value = self.rest.get(*name);
            value.is_some_and(|value| !asks_for_nothing(name, value))
        });
        match asked_for {
            Some("previous_response_id") => {
                let message = "no response is stored: send the items of the conversation";
                return Err(unsupported("previous_response_id", message));
            }
            Some(name) => return Err(unsupported(name, "this is not supported")),
            None => refuse_others(&self.rest)?,
        }
        if self.sampling.n()? != 1 {
            return Err(unsupported("n", "a response is one answer"));
        }
        if self.truncation.as_deref().is_some_and(|way| way != "disabled") {
            return Err(unsupported("truncation", "nothing of a conversation is left out: it must be disabled"));
        }
        let bytes =
            |(name, text): (&String, &String)| name.len() <= MAX_METADATA_BYTES.0 && text.len() <= MAX_METADATA_BYTES.1;
        if self.metadata.as_ref().is_some_and(|notes| notes.len() > MAX_METADATA || !notes.iter().all(bytes)) {
            return Err(invalid("metadata", format!("there can be {MAX_METADATA} short entries at most")));
        }
        Ok(())
    }

    fn logprobs(&self) -> Result<Option<usize>> {
        let include = self.include.as_deref().unwrap_or_default();
        if let Some(other) = include.iter().find(|what| *what != LOGPROBS && *what != REASONING) {
            return Err(unsupported("include", format!("there is no {other:?}: it is {LOGPROBS}")));
        }
        let top = self.top_logprobs.map(|top| whole("top_logprobs", top, 0, MAX_TOP_LOGPROBS)).transpose()?;
        let top = top.unwrap_or(0);
        match include.iter().any(|what| what == LOGPROBS) {
            true => Ok(Some(top)),
            false if top == 0 => Ok(None),
            false => Err(invalid("top_logprobs", format!("it needs {LOGPROBS} in include"))),
        }
    }

    /// The form of the text, and how a response repeats it.
    fn format(&self) -> Result<(Format, Value)> {
        let at = "text.format";
        let plain = (Format::Text, json!({ "format": { "type": "text" } }));
        let Some(TextParams { format, verbosity }) = &self.text else { return Ok(plain) };
        if verbosity.as_deref().is_some_and(|verbosity| verbosity != "medium") {
            return Err(unsupported("text.verbosity", "this is not supported"));
        }
        let Some(TextFormat { r#type, name, description, schema, strict }) = format else { return Ok(plain) };
        match r#type.as_str() {
            "text" => Ok(plain),
            "json_object" => Ok((Format::JsonObject, json!({ "format": { "type": "json_object" } }))),
            "json_schema" => {
                let needed = |field: &str| invalid(format!("{at}.{field}"), "it is missing");
                let name = name.as_ref().ok_or_else(|| needed("name"))?;
                let schema = schema.clone().ok_or_else(|| needed("schema"))?;
                let strict = strict.unwrap_or(false);
                let repeated = json!({
                    "type": "json_schema", "name": name, "description": description, "schema": schema, "strict": strict,
                });
                Ok((Format::JsonSchema { schema, strict }, json!({ "format": repeated })))
            }
            other => {
                let message = format!("there is no {other:?}: it is text, json_object or json_schema");
                Err(invalid(format!("{at}.type"), message))
            }
        }
    }

    /// The functions, each with whether all of its schema must hold.
    fn tools(&self) -> Result<Vec<(Tool, bool)>> {
        let tools = self.tools.as_deref().unwrap_or_default();
        if tools.len() > MAX_TOOLS {
            return Err(invalid("tools", format!("there can be {MAX_TOOLS} at most")));
        }
        tools.iter().enumerate().map(|(index, tool)| read_tool(index, tool)).collect()
    }
}

fn read_tool(index: usize, tool: &Map<String, Value>) -> Result<(Tool, bool)> {
    let at = |field: &str| format!("tools[{index}].{field}");
    let text = |field: &str| tool.get(field).and_then(Value::as_str);
    match text("type") {
        Some("function") => {}
        other => {
            let message = format!("only functions are called here, and no {:?}", other.unwrap_or_default());
            return Err(unsupported(at("type"), message));
        }
    }
    let name = text("name").unwrap_or_default();
    check_name(at("name"), name)?;
    let parameters = match tool.get("parameters") {
        Some(Value::Object(parameters)) => {
            serde_json::to_string(parameters).map_err(|error| ApiError::internal(&error))?
        }
        None | Some(Value::Null) => r#"{"type": "object", "properties": {}}"#.to_owned(),
        Some(_) => return Err(invalid(at("parameters"), "they must be a JSON Schema of an object")),
    };
    let is_strict = tool.get("strict") == Some(&Value::Bool(true));
    Ok((Tool::new(name, text("description").unwrap_or_default(), parameters), is_strict))
}

/// A choice of a function, as `/v1/chat/completions` writes it.
fn named_within(choice: Option<&Value>) -> Option<Value> {
    let choice = choice?;
    match (choice["type"].as_str(), choice.get("name")) {
        (Some("function"), Some(name)) => Some(json!({ "type": "function", "function": { "name": name } })),
        _ => Some(choice.clone()),
    }
}

/// The messages for the model.
fn conversation(instructions: Option<String>, input: Input) -> Result<Vec<amem_core::Message>> {
    let mut conversation = Conversation::default();
    if let Some(instructions) = instructions.filter(|text| !text.trim().is_empty()) {
        conversation.system(instructions);
    }
    match input {
        Input::Text(text) => conversation.user(text),
        Input::Items(items) => {
            if !(1..=MAX_MESSAGES).contains(&items.len()) {
                return Err(invalid("input", format!("there must be from 1 to {MAX_MESSAGES} items")));
            }
            for (index, item) in items.into_iter().enumerate() {
                item.tell(&mut conversation, index)?;
            }
        }
    }
    Ok(conversation.into_messages())
}

impl InputItem {
    fn tell(self, conversation: &mut Conversation, index: usize) -> Result<()> {
        let at = |field: &str| format!("input[{index}].{field}");
        let missing = |field: &str| invalid(at(field), "it is missing");
        match self.r#type.as_deref().unwrap_or("message") {
            "message" => {
                let text = self.content.ok_or_else(|| missing("content"))?.read(&at("content"))?;
                match self.role.as_deref() {
                    Some("system" | "developer") => conversation.system(text),
                    Some("user") => conversation.user(text),
                    Some("assistant") => conversation.assistant(&text, Vec::new())?,
                    Some(other) => return Err(invalid(at("role"), format!("nobody is called {other:?} here"))),
                    None => return Err(missing("role")),
                }
                Ok(())
            }
            "function_call" => {
                let id = self.call_id.ok_or_else(|| missing("call_id"))?;
                let name = self.name.ok_or_else(|| missing("name"))?;
                let call = ToolCall::new(id, name, self.arguments.ok_or_else(|| missing("arguments"))?);
                conversation.assistant("", vec![call]).map_err(|error| error.param(at("arguments")))
            }
            "function_call_output" => {
                let id = self.call_id.ok_or_else(|| missing("call_id"))?;
                let output = self.output.ok_or_else(|| missing("output"))?.read(&at("output"))?;
                conversation.tool_result(&id, output).map_err(|error| error.param(at("call_id")))
            }
            "reasoning" => Ok(()),
            other => Err(unsupported(at("type"), format!("items of the type {other:?} are not supported"))),
        }
    }
}

impl Content {
    fn read(self, at: &str) -> Result<String> {
        let parts = match self {
            Content::Text(text) => return Ok(text),
            Content::Parts(parts) => parts,
        };
        let mut texts = Vec::new();
        for (index, part) in parts.into_iter().enumerate() {
            let at = format!("{at}[{index}]");
            let (field, text) = match part.r#type.as_str() {
                "input_text" | "output_text" | "text" => ("text", part.text),
                "refusal" => ("refusal", part.refusal),
                other => {
                    let message = format!("parts of the type {other:?} are not supported: only texts are");
                    return Err(unsupported(format!("{at}.type"), message));
                }
            };
            texts.push(text.ok_or_else(|| invalid(format!("{at}.{field}"), "it is missing"))?);
        }
        Ok(texts.join("\n"))
    }
}
