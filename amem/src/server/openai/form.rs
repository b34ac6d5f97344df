//! The form that an answer is held to: `response_format`, and a `tool_choice` that demands a call.

use amem_core::Tool;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{check_name, invalid, unsupported};
use crate::http::Result;
use crate::server::structured::{Format, ToolChoice};

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

/// Which of these tools an answer may call.
///
/// # Errors
/// 400 for what is no choice, and for a tool that is not there.
pub(super) fn tool_choice(choice: Option<&Value>, tools: &[(Tool, bool)]) -> Result<ToolChoice> {
    let param = "tool_choice";
    let choice = match choice {
        None | Some(Value::Null) => ToolChoice::Auto,
        Some(Value::String(mode)) => match mode.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            other => return Err(invalid(param, format!("there is no {other:?}: it is none, auto or required"))),
        },
        Some(named) => match (named["type"].as_str(), named["function"]["name"].as_str()) {
            (Some("function"), Some(name)) => ToolChoice::Named(name.to_owned()),
            (Some("function"), None) => return Err(invalid(param, "it does not name a function")),
            _ => return Err(unsupported(param, "only functions can be chosen")),
        },
    };
    match &choice {
        ToolChoice::Required | ToolChoice::Named(_) if tools.is_empty() => {
            Err(invalid(param, "there are no tools to choose from"))
        }
        ToolChoice::Named(name) if !tools.iter().any(|(tool, _)| tool.name == *name) => {
            Err(invalid(param, format!("there is no tool {name:?}")))
        }
        _ => Ok(choice),
    }
}

impl ResponseFormat {
    /// The form.
    ///
    /// # Errors
    /// 400 for a form that is none.
    pub(super) fn read(&self) -> Result<Format> {
        let param = "response_format";
        match (self.r#type.as_str(), &self.json_schema) {
            ("text", _) => Ok(Format::Text),
            ("json_object", _) => Ok(Format::JsonObject),
            ("json_schema", Some(JsonSchema { name, schema, strict })) => {
                check_name(format!("{param}.json_schema.name"), name)?;
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
