//! The form that an answer is held to: `response_format`, and a `tool_choice` that demands a call.

use amem_core::{ConstraintSource, Tool};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{invalid, unsupported};
use crate::http::Result;
use crate::server::Server;

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

/// What an answer may say; `None` if that is anything.
///
/// # Errors
/// 400 for a form that is none, and for one that answers cannot be held to.
pub(super) async fn constraint(
    _server: &Server,
    format: Option<&ResponseFormat>,
    tools: &[Tool],
    choice: &ToolChoice,
) -> Result<Option<ConstraintSource>> {
    if matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return Err(unsupported("tool_choice", "a call cannot be demanded here: use auto or none"));
    }
    let param = "response_format";
    let Some(format) = format else { return Ok(None) };
    match format.r#type.as_str() {
        "text" => Ok(None),
        "json_object" | "json_schema" if !tools.is_empty() => {
            Err(unsupported(param, "not together with tools that may be called: give one of the two"))
        }
        "json_object" | "json_schema" => Err(unsupported(param, "answers are not held to a form here: use text")),
        other => Err(invalid(param, format!("there is no type {other:?}: it is text, json_object or json_schema"))),
    }
}
