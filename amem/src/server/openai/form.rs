//! The form that an answer is held to: `response_format`, and a `tool_choice` that demands a call.

use amem_core::{ConstraintSource, Tool};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{invalid, unsupported};
use crate::http::Result;
use crate::server::Server;
use crate::server::structured::Format;

/// The form of an answer.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    r#type: String,
    /// The schema, for `json_schema`.
    json_schema: Option<JsonSchema>,
}

/// A named JSON Schema.
#[derive(Debug, Deserialize, ToSchema)]
struct JsonSchema {
    /// Its name.
    name: String,
    /// The schema.
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
    /// Whether all of it must hold.
    strict: Option<bool>,
}

/// Which tools an answer may call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ToolChoice {
    /// None.
    None,
    /// Any, or none.
    Auto,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

impl ToolChoice {
    /// The choice that a request makes.
    pub(super) fn read(choice: Option<&Value>, tools: &[Tool]) -> Result<Self> {
        let param = "tool_choice";
        let choice = match choice {
            None | Some(Value::Null) => Self::Auto,
            Some(Value::String(mode)) => match mode.as_str() {
                "none" => Self::None,
                "auto" => Self::Auto,
                "required" => Self::Required,
                other => return Err(invalid(param, format!("there is no {other:?}: it is none, auto or required"))),
            },
            Some(named) => match (named["type"].as_str(), named["function"]["name"].as_str()) {
                (Some("function"), Some(name)) => Self::Named(name.to_owned()),
                (Some("function"), None) => return Err(invalid(param, "it does not name a function")),
                _ => return Err(unsupported(param, "only functions can be chosen")),
            },
        };
        match &choice {
            Self::Required | Self::Named(_) if tools.is_empty() => {
                Err(invalid(param, "there are no tools to choose from"))
            }
            Self::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
                Err(invalid(param, format!("there is no tool {name:?}")))
            }
            _ => Ok(choice),
        }
    }
}

impl ResponseFormat {
    fn read(&self) -> Result<Format> {
        let param = "response_format";
        match (self.r#type.as_str(), &self.json_schema) {
            ("text", _) => Ok(Format::Text),
            ("json_object", _) => Ok(Format::JsonObject),
            ("json_schema", Some(JsonSchema { name, schema, strict })) => {
                let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                if !(1..=64).contains(&name.len()) || !name.chars().all(is_plain) {
                    let message = "it must be 1 to 64 letters, digits, underscores and hyphens";
                    return Err(invalid(format!("{param}.json_schema.name"), message));
                }
                let schema = schema.clone().unwrap_or_else(|| json!({}));
                Ok(Format::JsonSchema { schema, strict: strict.unwrap_or(false) })
            }
            ("json_schema", None) => Err(invalid(format!("{param}.json_schema"), "it is missing")),
            (other, _) => {
                Err(invalid(param, format!("there is no type {other:?}: it is text, json_object or json_schema")))
            }
        }
    }
}

/// What an answer may say; `None` if that is anything.
///
/// # Errors
/// 400 for a form that is none, and for one that answers cannot be held to.
pub(super) async fn constraint(
    server: &Server,
    format: Option<&ResponseFormat>,
    tools: &[Tool],
    choice: &ToolChoice,
) -> Result<Option<ConstraintSource>> {
    let format = format.map_or(Ok(Format::Text), ResponseFormat::read)?;
    if format != Format::Text && !tools.is_empty() {
        let message = "not together with tools that may be called: give one of the two, or the tool_choice none";
        return Err(unsupported("response_format", message));
    }
    match choice {
        ToolChoice::Required => server.tool_constraint(tools, None).await.map(Some),
        ToolChoice::Named(name) => server.tool_constraint(tools, Some(name)).await.map(Some),
        ToolChoice::None | ToolChoice::Auto => server.constraint(&format).await,
    }
}
