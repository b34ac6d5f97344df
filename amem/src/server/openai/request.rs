//! What a client of `/v1/chat/completions` sends, as a turn.

use amem_core::{Ask, Generation, Namespace, Tool, ToolCall};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::form::{ResponseFormat, tool_choice};
use super::sampling::{SamplingParams, refuse_others};
use super::{MAX_TOOLS, check_name, invalid, unsupported, whole};
use crate::http::{ApiError, Result};
use crate::server::Server;
use crate::server::conversation::{Conversation, MAX_MESSAGES};
use crate::server::structured::{Format, Tools};
use crate::server::turn::Turn;

/// The likeliest tokens that can come with each token.
const MAX_TOP_LOGPROBS: usize = 20;

/// What the APIs of OpenAI, vLLM and llama.cpp have, and this one does not: to ignore it would be to answer something else.
const UNSUPPORTED: [&str; 27] = [
    "functions",
    "function_call",
    "audio",
    "modalities",
    "reasoning_effort",
    "verbosity",
    "web_search_options",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "grammar",
    "json_schema",
    "structured_outputs",
    "use_beam_search",
    "ignore_eos",
    "stop_token_ids",
    "bad_words",
    "allowed_token_ids",
    "truncate_prompt_tokens",
    "prompt_logprobs",
    "add_generation_prompt",
    "continue_final_message",
    "echo",
    "chat_template",
    "chat_template_kwargs",
    "thinking",
];

/// A conversation to go on with.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ChatRequest {
    /// The conversation so far: it ends with a question, or with results of tools.
    messages: Vec<ChatMessage>,
    /// Any name: the one model here answers, and the answer says which it is.
    #[expect(dead_code, reason = "clients must send it")]
    model: Option<String>,
    /// Whose memory it is asked of.
    pub(super) user: Option<String>,
    /// The session that it is asked in.
    session: Option<String>,
    /// Whether KV of memories is used that is not exact where it stands; true unless said otherwise. Without it, memories
    /// are computed again in their context, as a memory of texts alone would have to.
    residency: Option<bool>,
    /// Memories that are recalled at most.
    #[schema(minimum = 0)]
    k: Option<i64>,
    /// Tokens that the user's session holds at most, if this opens it.
    #[schema(minimum = 1)]
    budget_tokens: Option<i64>,
    /// Tokens of the answer at most.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<i64>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    /// How tokens are drawn.
    #[serde(flatten)]
    sampling: SamplingParams,
    /// Whether each token comes with its log probability.
    logprobs: Option<bool>,
    /// With how many of the likeliest tokens it comes.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    /// Whether the answer is sent as it is generated.
    stream: Option<bool>,
    /// How it is sent.
    stream_options: Option<StreamOptions>,
    /// The tools that the model may call.
    tools: Option<Vec<ToolDefinition>>,
    /// Which of them: `none`, `auto`, `required`, or one by its name.
    #[schema(value_type = Option<Object>)]
    tool_choice: Option<Value>,
    /// Whether one answer may call several tools; true unless said otherwise.
    parallel_tool_calls: Option<bool>,
    /// The form of the answer.
    response_format: Option<ResponseFormat>,
    /// What is not said here: it changes nothing, or is refused.
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// How an answer is sent as it is generated.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// Whether a last chunk counts the tokens.
    pub(super) include_usage: Option<bool>,
}

/// A message. Its author's `name` is not told to the model: chat templates have no words for it.
#[derive(Debug, Deserialize, ToSchema)]
struct ChatMessage {
    /// Who wrote it.
    role: ChatRole,
    /// What it says.
    content: Option<Content>,
    /// What a model refused to answer.
    refusal: Option<String>,
    /// The tools that an answer called.
    tool_calls: Option<Vec<Call>>,
    /// The call whose result this is.
    tool_call_id: Option<String>,
    /// Calls as they once were.
    #[schema(ignore)]
    function_call: Option<Value>,
    /// A spoken answer.
    #[schema(ignore)]
    audio: Option<Value>,
}

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ChatRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    Function,
}

/// What a message says: a text, or parts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum Content {
    /// A text.
    Text(String),
    /// Parts, which must be texts.
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Deserialize, ToSchema)]
struct Part {
    /// `text`.
    r#type: String,
    /// The text.
    text: Option<String>,
    /// What a model refused to answer, for the type `refusal`.
    refusal: Option<String>,
}

/// A call of a tool.
#[derive(Debug, Deserialize, ToSchema)]
struct Call {
    /// What its result refers to.
    id: String,
    /// `function`.
    r#type: Option<String>,
    /// What was called.
    function: Option<CalledFunction>,
}

/// A function that was called.
#[derive(Debug, Deserialize, ToSchema)]
struct CalledFunction {
    /// Its name.
    name: String,
    /// A JSON object, written as a string.
    arguments: String,
}

/// A tool.
#[derive(Debug, Deserialize, ToSchema)]
struct ToolDefinition {
    /// `function`.
    r#type: String,
    /// The function.
    function: Option<FunctionDefinition>,
}

/// A function that can be called.
#[derive(Debug, Deserialize, ToSchema)]
struct FunctionDefinition {
    /// Its name.
    name: String,
    /// What it does.
    description: Option<String>,
    /// Its parameters: a JSON Schema of an object.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Map<String, Value>>,
    /// Whether the model is held to all of the schema: only where `tool_choice` demands a call.
    strict: Option<bool>,
}

/// A request that makes sense.
pub(super) struct Asked {
    /// What is asked.
    pub(super) turn: Turn,
    /// Whether tokens come with their log probabilities.
    pub(super) logprobs: bool,
    /// How the answer is sent as it is generated; `None` for all of it at once.
    pub(super) stream: Option<Streamed>,
}

/// How an answer is sent as it is generated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streamed {
    /// Whether a last chunk counts the tokens.
    pub(super) include_usage: bool,
}

impl ChatRequest {
    /// What is asked by it.
    pub(super) async fn read(self, server: &Server, namespace: Namespace) -> Result<Asked> {
        self.refuse_unsupported()?;
        let options = server.options();
        let tools = self.tools()?;
        let choice = tool_choice(self.tool_choice.as_ref(), &tools)?;
        let tools = Tools::new(tools, choice, |index| format!("tools[{index}].function.strict"))?;
        let format = self.response_format.as_ref().map_or(Ok(Format::Text), ResponseFormat::read)?;
        let mut generation = Generation::default()
            .max_tokens(self.max_tokens(options.max_tokens)?)
            .min_tokens(self.sampling.min_tokens()?)
            .sampling(self.sampling.sampling(&**server.memory().model())?)
            .stop(self.sampling.stop()?)
            .n(self.sampling.n()?);
        generation.logprobs = self.logprobs()?;
        generation.constraint = server.constraint("response_format", &format, &tools).await?;
        let k = self.k.map_or(Ok(options.k), |k| whole("k", k, 0, options.max_texts))?;
        let budget = self.budget_tokens.map(|tokens| whole("budget_tokens", tokens, 1, usize::MAX)).transpose()?;
        let stream = self.stream()?;
        let logprobs = generation.logprobs.is_some();
        let ask = Ask::messages(conversation(self.messages)?).tools(tools.told).k(k).generation(generation);
        let turn = Turn {
            session: self.session,
            budget_tokens: budget,
            residency: self.residency.unwrap_or(true),
            parallel_calls: self.parallel_tool_calls.unwrap_or(true),
            ..Turn::new(namespace, ask)
        };
        Ok(Asked { turn, logprobs, stream })
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let asks_for_nothing = |name: &str, value: &Value| match value {
            Value::Null => true,
            // This one is true unless said otherwise: an answer is a message of its own.
            Value::Bool(wanted) => *wanted == (name == "add_generation_prompt"),
            Value::Array(values) if name == "modalities" => values.iter().all(|value| value == "text"),
            Value::Array(values) => values.is_empty(),
            Value::String(value) if value.is_empty() => true,
            Value::String(value) => matches!((name, &**value), ("reasoning_effort", "none") | ("verbosity", "medium")),
            // Models are asked not to think aloud in any case.
            Value::Object(settings) if name == "chat_template_kwargs" => {
                settings.iter().all(|(name, value)| name == "enable_thinking" && *value == false)
            }
            Value::Object(settings) if name == "thinking" => {
                settings.get("type").is_some_and(|kind| kind == "disabled")
            }
            _ => false,
        };
        let asked_for = UNSUPPORTED.into_iter().find(|name| {
            let value = self.rest.get(*name);
            value.is_some_and(|value| !asks_for_nothing(name, value))
        });
        match asked_for {
            Some(name) => Err(unsupported(name, "this is not supported")),
            None => refuse_others(&self.rest),
        }
    }

    fn max_tokens(&self, default: usize) -> Result<usize> {
        let read = |param, tokens: Option<i64>| tokens.map(|tokens| whole(param, tokens, 1, usize::MAX)).transpose();
        match (read("max_completion_tokens", self.max_completion_tokens)?, read("max_tokens", self.max_tokens)?) {
            (Some(one), Some(other)) if one != other => {
                Err(invalid("max_tokens", "it says something else than max_completion_tokens: give one of the two"))
            }
            (one, other) => Ok(one.or(other).unwrap_or(default)),
        }
    }

    fn logprobs(&self) -> Result<Option<usize>> {
        let top = self.top_logprobs.map(|top| whole("top_logprobs", top, 0, MAX_TOP_LOGPROBS)).transpose()?;
        match (self.logprobs.unwrap_or(false), top) {
            (true, top) => Ok(Some(top.unwrap_or(0))),
            (false, None | Some(0)) => Ok(None),
            (false, Some(_)) => Err(invalid("top_logprobs", "it needs logprobs to be true")),
        }
    }

    fn stream(&self) -> Result<Option<Streamed>> {
        let streams = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !streams {
            return Err(invalid("stream_options", "it needs stream to be true"));
        }
        let include_usage = self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
        Ok(streams.then_some(Streamed { include_usage }))
    }

    /// The tools, each with whether all of its schema must hold.
    fn tools(&self) -> Result<Vec<(Tool, bool)>> {
        let tools = self.tools.as_deref().unwrap_or_default();
        if tools.len() > MAX_TOOLS {
            return Err(invalid("tools", format!("there can be {MAX_TOOLS} at most")));
        }
        tools.iter().enumerate().map(|(index, tool)| tool.read(index)).collect()
    }
}

impl ToolDefinition {
    fn read(&self, index: usize) -> Result<(Tool, bool)> {
        let param = |field: &str| format!("tools[{index}].{field}");
        if self.r#type != "function" {
            return Err(unsupported(param("type"), format!("there are no tools of the type {:?}", self.r#type)));
        }
        let Some(FunctionDefinition { name, description, parameters, strict }) = &self.function else {
            return Err(invalid(param("function"), "it is missing"));
        };
        check_name(param("function.name"), name)?;
        let parameters = match parameters {
            Some(parameters) => serde_json::to_string(parameters).map_err(|error| ApiError::internal(&error))?,
            None => r#"{"type": "object", "properties": {}}"#.to_owned(),
        };
        let tool = Tool::new(name, description.as_deref().unwrap_or_default(), parameters);
        Ok((tool, strict.unwrap_or(false)))
    }
}

/// The messages for the model.
fn conversation(messages: Vec<ChatMessage>) -> Result<Vec<amem_core::Message>> {
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        return Err(invalid("messages", format!("there must be from 1 to {MAX_MESSAGES} messages")));
    }
    let mut conversation = Conversation::default();
    for (index, message) in messages.into_iter().enumerate() {
        message.tell(&mut conversation, index)?;
    }
    Ok(conversation.into_messages())
}

impl ChatMessage {
    fn tell(self, conversation: &mut Conversation, index: usize) -> Result<()> {
        let at = |field: &str| format!("messages[{index}].{field}");
        if self.role == ChatRole::Function {
            return Err(unsupported(at("role"), "functions are called as tools: use the role tool"));
        }
        for (field, value) in [("function_call", &self.function_call), ("audio", &self.audio)] {
            if value.is_some() {
                return Err(unsupported(at(field), "this is not supported"));
            }
        }
        let calls = self.tool_calls.unwrap_or_default();
        if !calls.is_empty() && self.role != ChatRole::Assistant {
            return Err(invalid(at("tool_calls"), "only an assistant calls tools"));
        }
        let text = match self.content {
            Some(content) => Some(content.read(&at("content"))?),
            None => self.refusal,
        };
        let needed = || text.clone().ok_or_else(|| invalid(at("content"), "it is missing"));
        match self.role {
            ChatRole::System | ChatRole::Developer => conversation.system(needed()?),
            ChatRole::User | ChatRole::Function => conversation.user(needed()?),
            ChatRole::Assistant => {
                let calls = calls.into_iter().enumerate().map(|(number, call)| call.read(&at("tool_calls"), number));
                let calls: Vec<ToolCall> = calls.collect::<Result<_>>()?;
                let text = if calls.is_empty() { needed()? } else { text.unwrap_or_default() };
                conversation.assistant(&text, calls).map_err(|error| error.param(at("tool_calls")))?;
            }
            ChatRole::Tool => {
                let Some(call) = &self.tool_call_id else { return Err(invalid(at("tool_call_id"), "it is missing")) };
                conversation.tool_result(call, needed()?).map_err(|error| error.param(at("tool_call_id")))?;
            }
        }
        Ok(())
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
            let text = match part.r#type.as_str() {
                "text" => part.text,
                "refusal" => part.refusal,
                other => {
                    let message = format!("parts of the type {other:?} are not supported: only texts are");
                    return Err(unsupported(format!("{at}.type"), message));
                }
            };
            texts.push(text.ok_or_else(|| invalid(format!("{at}.{}", part.r#type), "it is missing"))?);
        }
        Ok(texts.join("\n"))
    }
}

impl Call {
    fn read(self, at: &str, number: usize) -> Result<ToolCall> {
        let at = format!("{at}[{number}]");
        let Call { id, r#type, function } = self;
        if r#type.as_deref().unwrap_or("function") != "function" {
            return Err(unsupported(format!("{at}.type"), "only functions are called"));
        }
        let Some(CalledFunction { name, arguments }) = function else {
            return Err(invalid(format!("{at}.function"), "it is missing"));
        };
        Ok(ToolCall::new(id, name, arguments))
    }
}
