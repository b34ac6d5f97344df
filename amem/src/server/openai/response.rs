//! What a client of `/v1/chat/completions` reads.

use amem_core::{Chat, ModelInfo, Token, TokenLogprob};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::Result;
use crate::server::turn::{Answered, Report, Tokens};
use crate::server::{Server, choice, ids};

/// What is the same in an answer and in all of its chunks.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Head {
    /// Its name: no other answer has it.
    id: String,
    /// `chat.completion`, `chat.completion.chunk` or `text_completion`.
    object: &'static str,
    /// When it was begun: seconds since 1970.
    created: i64,
    /// The model that answers.
    model: String,
    /// The weights and settings of it.
    system_fingerprint: String,
}

impl Head {
    /// With an id that begins like this.
    pub(super) fn new(server: &Server, id: &str, object: &'static str) -> Result<Self> {
        let ModelInfo { name, fingerprint, .. } = server.memory().model().info();
        Ok(Self {
            id: format!("{id}-{}", ids::unique()?),
            object,
            created: amem_core::Timestamp::now().0 / 1000,
            model: name.clone(),
            system_fingerprint: format!("fp_{:.10}", fingerprint.to_string()),
        })
    }
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatCompletion {
    #[serde(flatten)]
    head: Head,
    /// The answers that were asked for.
    choices: Vec<ChatChoice>,
    /// Tokens.
    usage: Usage,
    /// What was recalled, reused and computed.
    amem: Report,
}

/// One of the answers.
#[derive(Debug, Serialize, ToSchema)]
struct ChatChoice {
    /// Which, from 0.
    index: usize,
    /// What the model says.
    message: AnswerMessage,
    /// How likely its tokens were.
    logprobs: Option<Logprobs>,
    /// `stop`, `length` or `tool_calls`.
    finish_reason: &'static str,
}

/// What a model says.
#[derive(Debug, Serialize, ToSchema)]
struct AnswerMessage {
    /// `assistant`.
    role: &'static str,
    /// The text; null if it only calls tools.
    content: Option<String>,
    /// Null: models here refuse in their own words.
    refusal: Option<String>,
    /// The tools that it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallObject>,
}

/// A call of a tool.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CallObject {
    /// Which, from 0; in chunks only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// What its result is to refer to.
    id: String,
    /// `function`.
    r#type: &'static str,
    /// What is called.
    function: CalledFunctionObject,
}

/// A function that is called.
#[derive(Debug, Serialize, ToSchema)]
struct CalledFunctionObject {
    /// Its name.
    name: String,
    /// A JSON object, written as a string.
    arguments: String,
}

impl CallObject {
    pub(super) fn new(index: Option<usize>, call: amem_core::ToolCall) -> Self {
        let function = CalledFunctionObject { name: call.name, arguments: call.arguments };
        Self { index, id: format!("call_{}", call.id), r#type: "function", function }
    }
}

/// Tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(super) struct Usage {
    /// Everything that was fed.
    prompt_tokens: usize,
    /// What was generated, in all answers.
    completion_tokens: usize,
    /// Both.
    total_tokens: usize,
    /// What was fed, more closely.
    prompt_tokens_details: PromptTokens,
}

/// What was fed.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct PromptTokens {
    /// Tokens whose KV was held and used as it was.
    cached_tokens: usize,
}

impl From<Tokens> for Usage {
    fn from(Tokens { prompt, cached, completion }: Tokens) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptTokens { cached_tokens: cached },
        }
    }
}

/// How likely the tokens of a text were.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Logprobs {
    /// Each of them.
    content: Vec<TokenObject>,
    /// Null.
    refusal: Option<Vec<TokenObject>>,
}

/// How likely a token was.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct TokenObject {
    #[serde(flatten)]
    token: LikelyToken,
    /// The likeliest tokens in its place.
    top_logprobs: Vec<LikelyToken>,
}

/// A token and its log probability.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct LikelyToken {
    /// Its text. What is part of a character reads as U+FFFD.
    token: String,
    /// The natural logarithm of its probability, before temperature, penalties and bias.
    logprob: f32,
    /// Its bytes; null for a token that is in no text.
    bytes: Option<Vec<u8>>,
}

/// What OpenAI's API says of what cannot happen.
pub(super) const IMPOSSIBLE: f32 = -9999.0;

impl LikelyToken {
    fn new(chat: &dyn Chat, token: Token, logprob: f32) -> Self {
        let bytes = chat.token_bytes(token);
        let text = bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        Self { token: text.unwrap_or_default(), logprob: logprob.max(IMPOSSIBLE), bytes }
    }
}

impl Logprobs {
    pub(super) fn new(chat: &dyn Chat, tokens: &[TokenLogprob]) -> Self {
        let likely = |token: &TokenLogprob| TokenObject {
            token: LikelyToken::new(chat, token.token, token.logprob),
            top_logprobs: token.top.iter().map(|&(token, logprob)| LikelyToken::new(chat, token, logprob)).collect(),
        };
        Self { content: tokens.iter().map(likely).collect(), refusal: None }
    }

    /// Each token.
    pub(super) fn into_content(self) -> Vec<TokenObject> {
        self.content
    }
}

/// Why an answer ended, in the words of OpenAI's API.
pub(super) fn finish_reason(choice: &choice::Choice) -> &'static str {
    if choice.tool_calls.is_empty() { choice.finish.name() } else { "tool_calls" }
}

impl ChatCompletion {
    pub(super) fn new(head: Head, chat: &dyn Chat, logprobs: bool, answered: Answered) -> Self {
        let usage = answered.tokens().into();
        let Answered { choices, report, .. } = answered;
        let choice = |(index, choice): (usize, choice::Choice)| {
            let finish_reason = finish_reason(&choice);
            let says_nothing = choice.text.is_empty() && !choice.tool_calls.is_empty();
            let tool_calls = choice.tool_calls.into_iter().map(|call| CallObject::new(None, call)).collect();
            let content = (!says_nothing).then_some(choice.text);
            ChatChoice {
                index,
                message: AnswerMessage { role: "assistant", content, refusal: None, tool_calls },
                logprobs: logprobs.then(|| Logprobs::new(chat, &choice.logprobs)),
                finish_reason,
            }
        };
        let choices = choices.into_iter().enumerate().map(choice).collect();
        Self { head, choices, usage, amem: report }
    }
}

/// A part of an answer that is sent as it is generated.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatChunk {
    #[serde(flatten)]
    head: Head,
    /// What is new; empty in the chunk that counts the tokens.
    choices: Vec<ChunkChoice>,
    /// Tokens, in the last chunk: null before it, and only there if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    /// What was recalled, reused and computed; in the chunks with which the answers end.
    #[serde(skip_serializing_if = "Option::is_none")]
    amem: Option<Report>,
}

/// What is new in one of the answers.
#[derive(Debug, Serialize, ToSchema)]
struct ChunkChoice {
    /// Which, from 0.
    index: usize,
    /// What is new.
    delta: Delta,
    /// How likely its tokens were.
    logprobs: Option<Logprobs>,
    /// Null but in the answer's last chunk.
    finish_reason: Option<&'static str>,
}

/// What is new in an answer.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// New text.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// Null, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Option<String>>,
    /// Tools that it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallObject>,
}

impl ChatChunk {
    fn new(head: &Head, usage: bool, choice: ChunkChoice) -> Self {
        Self { head: head.clone(), choices: vec![choice], usage: usage.then_some(None), amem: None }
    }

    fn of(head: &Head, usage: bool, index: usize, delta: Delta) -> Self {
        Self::new(head, usage, ChunkChoice { index, delta, logprobs: None, finish_reason: None })
    }

    /// The first one of an answer.
    pub(super) fn first(head: &Head, usage: bool, index: usize) -> Self {
        let (role, content) = (Some("assistant"), Some(String::new()));
        Self::of(head, usage, index, Delta { role, content, refusal: Some(None), tool_calls: Vec::new() })
    }

    /// New text.
    pub(super) fn text(head: &Head, usage: bool, index: usize, text: String, logprobs: Option<Logprobs>) -> Self {
        let delta = Delta { content: Some(text), ..Delta::default() };
        Self::new(head, usage, ChunkChoice { index, delta, logprobs, finish_reason: None })
    }

    /// A tool that is called.
    pub(super) fn call(head: &Head, usage: bool, index: usize, call: CallObject) -> Self {
        Self::of(head, usage, index, Delta { tool_calls: vec![call], ..Delta::default() })
    }

    /// The last one of an answer.
    pub(super) fn last(head: &Head, usage: bool, index: usize, reason: &'static str, report: Report) -> Self {
        let choice = ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason: Some(reason) };
        Self { amem: Some(report), ..Self::new(head, usage, choice) }
    }

    /// The one that counts the tokens.
    pub(super) fn usage(head: &Head, usage: Usage, report: Report) -> Self {
        Self { head: head.clone(), choices: Vec::new(), usage: Some(Some(usage)), amem: Some(report) }
    }
}
