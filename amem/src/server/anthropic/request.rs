//! What Anthropic's clients send.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, de};
use utoipa::ToSchema;

/// A JSON object.
pub(super) type Object = serde_json::Map<String, serde_json::Value>;

/// A conversation to go on with.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct MessagesRequest {
    /// Any name: the server has one model, and says in its answer which.
    #[allow(dead_code, reason = "it is asked for, and chooses nothing")]
    pub(super) model: String,
    /// Tokens to answer with at most.
    pub(super) max_tokens: usize,
    /// Instructions. They stand behind the memories.
    #[schema(inline)]
    pub(super) system: Option<Content<SystemBlock>>,
    /// What was said. The last message is a user's.
    pub(super) messages: Vec<InputMessage>,
    /// Texts that end the answer where they appear; at most 64, of 1,024 bytes each.
    pub(super) stop_sequences: Option<Vec<String>>,
    /// From 0 to 1.
    #[schema(minimum = 0, maximum = 1)]
    pub(super) temperature: Option<f32>,
    /// Above 0 and at most 1.
    #[schema(maximum = 1)]
    pub(super) top_p: Option<f32>,
    /// 0 for all tokens.
    pub(super) top_k: Option<usize>,
    /// Whether the answer comes as it is generated.
    pub(super) stream: Option<bool>,
    /// Who is served.
    pub(super) metadata: Option<RequestMetadata>,
    /// The tools that the model may call.
    pub(super) tools: Option<Vec<ToolParam>>,
    /// Whether it may.
    pub(super) tool_choice: Option<ToolChoice>,
    /// `disabled`, or `adaptive`: the model answers without thinking aloud.
    pub(super) thinking: Option<Thinking>,
    /// The form of the answer. `effort` is accepted and has no effect.
    pub(super) output_config: Option<OutputConfig>,
    /// The older name of `output_config.format`; not both.
    pub(super) output_format: Option<OutputFormat>,
    /// Only what clears thinking, of which there is none.
    pub(super) context_management: Option<ContextManagement>,
    /// Not supported.
    pub(super) mcp_servers: Option<Vec<serde_json::Value>>,
    /// Not supported.
    pub(super) container: Option<serde_json::Value>,
    /// Whose memory is asked. If left out, `metadata.user_id` says it, unless the key or a gateway does.
    pub(super) user: Option<String>,
    /// The session that it is asked in.
    pub(super) session: Option<String>,
    /// Whether KV that is held is used; true unless said otherwise.
    pub(super) residency: Option<bool>,
    /// Memories to recall at most.
    pub(super) k: Option<usize>,
    /// Tokens that the session may hold at most, if it is opened for this.
    pub(super) budget_tokens: Option<usize>,
}

/// A conversation whose tokens are counted.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CountTokensRequest {
    /// Any name: the server has one model.
    #[allow(dead_code, reason = "it is asked for, and chooses nothing")]
    pub(super) model: String,
    /// Instructions.
    #[schema(inline)]
    pub(super) system: Option<Content<SystemBlock>>,
    /// What was said. The last message is a user's.
    pub(super) messages: Vec<InputMessage>,
    /// The tools that the model may call.
    pub(super) tools: Option<Vec<ToolParam>>,
    /// Whether it may.
    pub(super) tool_choice: Option<ToolChoice>,
    /// `disabled`, or `adaptive`: the model answers without thinking aloud.
    pub(super) thinking: Option<Thinking>,
}

/// A message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct InputMessage {
    /// Who wrote it.
    pub(super) role: InputRole,
    /// What it says.
    #[schema(inline)]
    pub(super) content: Content<Block>,
}

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum InputRole {
    /// Who asks.
    User,
    /// The model.
    Assistant,
    /// Instructions in the midst of a conversation.
    System,
}

/// A text, or a list of blocks.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
pub(super) enum Content<B> {
    /// A text.
    Text(String),
    /// Blocks.
    Blocks(Vec<B>),
}

impl<'de, B: Deserialize<'de>> Deserialize<'de> for Content<B> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either<B>(PhantomData<B>);

        impl<'de, B: Deserialize<'de>> Visitor<'de> for Either<B> {
            type Value = Content<B>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content blocks")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, blocks: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(blocks)).map(Content::Blocks)
            }
        }

        // An untagged enum would not say what is wrong with which block.
        from.deserialize_any(Either(PhantomData))
    }
}

impl<B> Content<B> {
    /// As blocks; a text is one.
    pub(super) fn blocks(self, text: impl FnOnce(String) -> B) -> Vec<B> {
        match self {
            Content::Text(content) => vec![text(content)],
            Content::Blocks(blocks) => blocks,
        }
    }
}

/// A part of the instructions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum SystemBlock {
    /// A text. Its `cache_control` has no effect: what is cached here are memories.
    Text { text: String },
}

/// A part of a message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block {
    /// A text.
    Text { text: String },
    /// A call of a tool by the model.
    ToolUse { id: String, name: String, input: Object },
    /// What came of a call.
    ToolResult {
        tool_use_id: String,
        #[schema(inline)]
        content: Option<Content<ResultBlock>>,
        is_error: Option<bool>,
    },
    /// What a model thought aloud. It is left out: it was another model's, and is no part of what was said.
    Thinking {},
    /// The same, encrypted.
    RedactedThinking {},
    /// Not supported.
    Image {},
    /// Not supported.
    Document {},
    /// Not supported.
    SearchResult {},
}

/// A part of a tool's result.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ResultBlock {
    /// A text.
    Text { text: String },
    /// Not supported.
    Image {},
    /// Not supported.
    Document {},
    /// Not supported.
    SearchResult {},
    /// Not supported.
    ToolReference {},
}

/// Who is served.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct RequestMetadata {
    /// Whose memory is asked, if `user` does not say it.
    pub(super) user_id: Option<String>,
}

/// A tool that the model may call, and the client runs.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ToolParam {
    /// `custom`, or left out: tools that Anthropic runs or knows are not supported.
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) name: String,
    pub(super) description: Option<String>,
    /// A JSON Schema of an object.
    pub(super) input_schema: Option<Object>,
    /// Whether the model is held to all of the schema: only where `tool_choice` demands a call.
    pub(super) strict: Option<bool>,
}

/// Whether the model may call tools. With `disable_parallel_tool_use`, what it calls beyond one tool is left out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToolChoice {
    /// As it sees fit.
    Auto { disable_parallel_tool_use: Option<bool> },
    /// It may not.
    None {},
    /// It calls one, and says nothing else.
    Any { disable_parallel_tool_use: Option<bool> },
    /// It calls this one, and says nothing else.
    Tool { name: String, disable_parallel_tool_use: Option<bool> },
}

impl ToolChoice {
    /// Whether the model may call one tool at most.
    pub(super) fn is_one_call(&self) -> bool {
        let (ToolChoice::Auto { disable_parallel_tool_use }
        | ToolChoice::Any { disable_parallel_tool_use }
        | ToolChoice::Tool { disable_parallel_tool_use, .. }) = self
        else {
            return false;
        };
        disable_parallel_tool_use.unwrap_or(false)
    }
}

/// Whether the model thinks aloud.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Thinking {
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// How the model answers.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct OutputConfig {
    /// The form of the answer. Not together with tools.
    pub(super) format: Option<OutputFormat>,
}

/// The form of an answer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum OutputFormat {
    /// JSON.
    JsonSchema {
        /// The JSON Schema that it is held to.
        schema: Object,
    },
}

/// What is taken out of a conversation that grows too long.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ContextManagement {
    pub(super) edits: Option<Vec<ContextEdit>>,
}

/// One way of taking something out.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ContextEdit {
    #[serde(rename = "type")]
    pub(super) kind: String,
}
