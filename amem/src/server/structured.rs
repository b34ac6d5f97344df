//! Answers of a form that a request fixes: JSON of a schema, or a call of a tool. Tokens that would leave the form are
//! never drawn, so that what is answered holds to it unless it is cut off.

mod grammar;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use amem_core::{CallForm, ConstraintSource, Model, Tool};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Server;
use crate::http::{ApiError, Result};
use grammar::Grammars;

/// Bytes of one request's schemas.
const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// Values in one request's schemas: objects, lists, texts and numbers.
const MAX_SCHEMA_VALUES: usize = 4_096;

/// The form that an answer is to have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Format {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema {
        /// The JSON Schema.
        schema: Value,
        /// Whether all of the schema must hold. Otherwise what cannot be followed in it is passed over, and `oneOf` is
        /// taken for `anyOf`.
        strict: bool,
    },
}

/// Which of a request's tools an answer may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// None.
    None,
    /// Any, or none.
    Auto,
    /// One, and nothing else is said.
    Required,
    /// This one, and nothing else is said.
    Named(String),
}

/// The tools of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// Those that the model is told about: none where it may not call any.
    pub(crate) told: Vec<Tool>,
    /// Whether all of the schema must hold, for each of them.
    strict: Vec<bool>,
    choice: ToolChoice,
}

impl Tools {
    /// Tools, each with whether all of its schema must hold. `strict` names the parameter that says so.
    ///
    /// # Errors
    /// 400 about that parameter where the model may but need not call the tool: what it calls by itself is held to no schema.
    pub(crate) fn new(
        tools: Vec<(Tool, bool)>,
        choice: ToolChoice,
        strict_at: impl Fn(usize) -> String,
    ) -> Result<Self> {
        let tools = if choice == ToolChoice::None { Vec::new() } else { tools };
        let (told, strict): (Vec<_>, Vec<_>) = tools.into_iter().unzip();
        match strict.iter().position(|is_strict| *is_strict) {
            Some(index) if choice == ToolChoice::Auto => {
                let at = strict_at(index);
                let message = format!(
                    "{at}: calls that the model makes by itself are not held to a schema: leave it out, or demand a \
                     call by tool_choice"
                );
                Err(ApiError::unsupported(at, message))
            }
            _ => Ok(Self { told, strict, choice }),
        }
    }
}

/// What turns schemas into constraints: the model's vocabulary as grammars need it. It is made when it is first asked
/// for.
pub(super) struct Structured {
    grammars: Mutex<Option<Arc<Grammars>>>,
    /// One schema is compiled at a time, so that no number of them takes the processor from the model.
    turn: Arc<Semaphore>,
}

impl Default for Structured {
    fn default() -> Self {
        Self { grammars: Mutex::default(), turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Server {
    /// What an answer may say that is of this form, which the parameter `about` says, or calls the tool that is demanded;
    /// `None` if that is anything.
    ///
    /// # Errors
    /// 400 for a form together with tools that may be called; as `form` and `call`.
    pub(crate) async fn constraint(
        &self,
        about: &'static str,
        format: &Format,
        tools: &Tools,
    ) -> Result<Option<ConstraintSource>> {
        let Tools { told, strict, choice } = tools;
        if *format != Format::Text && !told.is_empty() {
            let message = format!(
                "{about}: not together with tools that may be called: give one of the two, or the tool_choice none"
            );
            return Err(ApiError::unsupported(about, message));
        }
        let name = match choice {
            ToolChoice::None | ToolChoice::Auto => return self.form(about, format).await,
            ToolChoice::Required => None,
            ToolChoice::Named(name) => Some(&**name),
        };
        let is_called = |tool: &Tool| name.is_none_or(|name| tool.name == name);
        let is_strict = told.iter().zip(strict).any(|(tool, is_strict)| *is_strict && is_called(tool));
        self.call(told, name, is_strict).await.map(Some)
    }

    /// What an answer of this form may say; `None` if that is anything.
    ///
    /// # Errors
    /// 400 about that parameter for a schema that is none, is too large, or asks for what cannot be followed.
    async fn form(&self, about: &'static str, format: &Format) -> Result<Option<ConstraintSource>> {
        let (schema, strict) = match format {
            Format::Text => return Ok(None),
            Format::JsonObject => (Map::from_iter([("type".to_owned(), json!("object"))]), true),
            Format::JsonSchema { schema: Value::Object(schema), strict } => (schema.clone(), *strict),
            Format::JsonSchema { .. } => {
                return Err(ApiError::bad_request(format!("{about}: the schema is no JSON object")).param(about));
            }
        };
        self.compile(about, vec![Part::Schema(schema, strict)]).await.map(Some)
    }

    /// The call of one of these tools, or of the one that is named, and nothing else. With `strict`, all of the tools'
    /// schemas must hold, rather than what can be followed in them.
    ///
    /// # Errors
    /// 400 about `tool_choice` when no tool is called so, or the model's chat template writes no calls of tools; about
    /// `tools` for parameters that are no schema, are too large, or ask for what cannot be followed.
    async fn call(&self, tools: &[Tool], name: Option<&str>, strict: bool) -> Result<ConstraintSource> {
        let about = "tool_choice";
        let Some(form) = self.memory().model().chat().call_form() else {
            let message = "tool_choice: this model's chat template has no form for calls of tools";
            return Err(ApiError::unsupported(about, message));
        };
        let called: Vec<&Tool> = tools.iter().filter(|tool| name.is_none_or(|name| tool.name == name)).collect();
        if called.is_empty() {
            let message = match name {
                Some(name) => format!("tool_choice: there is no tool {name:?} in tools"),
                None => "tool_choice: there are no tools to choose from".to_owned(),
            };
            return Err(ApiError::bad_request(message).param(about));
        }
        let CallForm { open, arguments, close } = form;
        let call = call_schema(&called, arguments)?;
        let parts = vec![Part::Text(open.clone()), Part::Schema(call, strict), Part::Text(close.clone())];
        self.compile("tools", parts).await
    }

    async fn compile(&self, about: &'static str, parts: Vec<Part>) -> Result<ConstraintSource> {
        check_size(about, &parts)?;
        let structured = &self.inner.structured;
        let turn = self.permit(&structured.turn).await?;
        let held = structured.grammars.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let model = Arc::clone(self.memory().model());
        let compile = move || -> Result<(Arc<Grammars>, ConstraintSource)> {
            let grammars = match held {
                Some(grammars) => grammars,
                None => Arc::new(Grammars::of(&*model as &dyn Model).map_err(|error| ApiError::internal(&error))?),
            };
            let source = grammars.source(&parts).map_err(|reason| {
                ApiError::bad_request(format!("{about}: this schema cannot be followed: {reason}")).param(about)
            })?;
            Ok((grammars, source))
        };
        let (grammars, source) = on_deep_stack(turn, compile).await??;
        *structured.grammars.lock().unwrap_or_else(PoisonError::into_inner) = Some(grammars);
        Ok(source)
    }
}

/// A part of what an answer is made of.
enum Part {
    /// This text.
    Text(String),
    /// JSON of this schema, all of which must hold, or as much as can be followed.
    Schema(Map<String, Value>, bool),
}

/// A call as JSON: one object for each tool, of its name and its arguments.
fn call_schema(tools: &[&Tool], arguments: &str) -> Result<Map<String, Value>> {
    let mut definitions = Map::new();
    let mut calls = Vec::new();
    for (i, tool) in tools.iter().enumerate() {
        let parameters: Value = serde_json::from_str(&tool.parameters).unwrap_or_default();
        let Value::Object(mut parameters) = parameters else {
            let message = format!("tools: the parameters of {:?} are no JSON object", tool.name);
            return Err(ApiError::bad_request(message).param("tools"));
        };
        // A call is only read if its arguments are an object.
        parameters.entry("type").or_insert_with(|| json!("object"));
        let place = format!("tool{i}");
        let mut parameters = Value::Object(parameters);
        move_references(&mut parameters, &format!("#/$defs/{place}"));
        calls.push(json!({
            "type": "object",
            "properties": { "name": { "const": tool.name }, arguments: { "$ref": format!("#/$defs/{place}") } },
            "required": ["name", arguments],
            "additionalProperties": false,
        }));
        definitions.insert(place, parameters);
    }
    Ok(Map::from_iter([("anyOf".to_owned(), Value::Array(calls)), ("$defs".to_owned(), Value::Object(definitions))]))
}

/// References within a schema, after it has become a part of a larger one.
fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(reference) if key == "$ref" => {
                        if let Some(rest) = reference.strip_prefix('#') {
                            *reference = format!("{place}{}", rest.trim_end_matches('/'));
                        }
                    }
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| move_references(value, place)),
        _ => {}
    }
}

fn check_size(about: &'static str, parts: &[Part]) -> Result<()> {
    let schemas = || parts.iter().filter_map(|part| if let Part::Schema(map, _) = part { Some(map) } else { None });
    let bytes: usize = schemas().map(|map| serde_json::to_vec(map).map_or(usize::MAX, |json| json.len())).sum();
    let values: usize = schemas().flat_map(Map::values).map(count).sum();
    if bytes > MAX_SCHEMA_BYTES || values > MAX_SCHEMA_VALUES {
        let message = format!(
            "{about}: the schema has {bytes} bytes and {values} values: at most {MAX_SCHEMA_BYTES} and \
             {MAX_SCHEMA_VALUES} are followed"
        );
        return Err(ApiError::bad_request(message).param(about));
    }
    Ok(())
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(entries) => entries.values().map(count).sum(),
        Value::Array(values) => values.iter().map(count).sum(),
        _ => 0,
    }
}

/// Does what may recurse as deep as a schema has values. Its turn ends with the work, which goes on when nobody waits for
/// it any more.
async fn on_deep_stack<T: Send + 'static>(
    turn: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    const STACK: usize = 256 << 20;
    let (done, result) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("amem-schema".to_owned()).stack_size(STACK);
    // Nobody waits for the result any more if sending it fails.
    let spawned = thread.spawn(move || {
        let result = work();
        drop(turn);
        drop(done.send(result));
    });
    spawned.map_err(|error| ApiError::internal(&error))?;
    result.await.map_err(|error| ApiError::internal(&error))
}
