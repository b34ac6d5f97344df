//! Anthropic's API: `/v1/messages` and `/v1/messages/count_tokens`.
//!
//! ```text
//! request.rs    what clients send
//! prompt.rs     its conversation, as messages and tools
//! response.rs   what clients read
//! stream.rs     the same, as it is generated
//! ```
//!
//! Headers `anthropic-version` and `anthropic-beta` are accepted, whatever they say. So are `cache_control`,
//! `service_tier`, `output_config.effort` and all that is unknown here; they change nothing.

mod prompt;
mod request;
mod response;
mod stream;

use amem_core::{Ask, Generation};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Server;
use super::ids;
use super::structured::Format;
use super::turn::Turn;
use crate::http::{ApiError, Body, Caller, Result};
use request::{CountTokensRequest, MessagesRequest, OutputConfig, OutputFormat, Thinking, ToolChoice};
use response::{MessageResponse, MessageUsage, TokenCount};

/// The header by which the server names a request, and the one in which Anthropic's clients look for its name.
const REQUEST_ID: [HeaderName; 2] = [HeaderName::from_static("x-request-id"), HeaderName::from_static("request-id")];

/// Goes on with a conversation, from the memories that its last question is about.
///
/// With `stream`, the answer comes as server-sent events. Its `message_start` counts the tokens of the conversation
/// alone; its `message_delta` counts all, and has the object `amem`.
#[utoipa::path(post, path = "/v1/messages", tag = "chat", request_body = MessagesRequest,
    responses(
        (status = 200, content((MessageResponse = "application/json"), (String = "text/event-stream"))),
        (status = 400, description = "not what is expected, or not supported"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "no such session"),
        (status = 413, description = "too large"),
        (status = 429, description = "too many requests wait"),
        (status = 503, description = "not at present"),
    ))]
async fn create(State(server): State<Server>, caller: Caller, body: Result<Body<MessagesRequest>>) -> Result<Response> {
    let Body(request) = body.map_err(invalid)?;
    let streams = request.stream.unwrap_or(false);
    let turn = turn(&server, &caller, request).await?;
    let model = server.memory().model().info().name.clone();
    if !streams {
        let answered = server.start(turn).await?.answer().await?;
        return Ok(Json(MessageResponse::whole(model, answered)?).into_response());
    }
    let usage = MessageUsage::begun(server.fitting_tokens(&turn.ask).await?);
    let running = server.start_fitting(turn).await?;
    Ok(stream::events(running, MessageResponse::begun(model, usage)?).into_response())
}

/// Counts the tokens of a conversation: exactly those that the model would be fed if no memory were recalled for it.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "chat", request_body = CountTokensRequest,
    responses(
        (status = 200, body = TokenCount),
        (status = 400, description = "not what is expected, or not supported"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 413, description = "too large"),
        (status = 429, description = "too many requests wait"),
    ))]
async fn count_tokens(
    State(server): State<Server>,
    _caller: Caller,
    body: Result<Body<CountTokensRequest>>,
) -> Result<Json<TokenCount>> {
    let Body(request) = body.map_err(invalid)?;
    let CountTokensRequest { model: _, system, messages, tools, tool_choice, thinking } = request;
    check_thinking(thinking.as_ref())?;
    let tools = prompt::tools(tools.unwrap_or_default(), tool_choice.as_ref())?;
    let ask = Ask::messages(prompt::messages(system, messages)?).tools(tools.told);
    Ok(Json(TokenCount { input_tokens: server.prompt_tokens(&ask).await? }))
}

/// What is asked, and of whose memory.
async fn turn(server: &Server, caller: &Caller, request: MessagesRequest) -> Result<Turn> {
    check_supported(&request)?;
    let user_id = request.metadata.and_then(|metadata| metadata.user_id);
    let namespace = caller.namespace_or(request.user.as_deref(), user_id.as_deref())?;
    if !request.temperature.is_none_or(|temperature| (0.0..=1.0).contains(&temperature)) {
        return Err(ApiError::bad_request("temperature must be from 0 to 1").param("temperature"));
    }
    let mut sampling = server.memory().model().sampling();
    sampling.seed = ids::seed()?;
    sampling.temperature = request.temperature.unwrap_or(sampling.temperature);
    sampling.top_p = request.top_p.unwrap_or(sampling.top_p);
    sampling.top_k = request.top_k.unwrap_or(sampling.top_k);
    let tools = prompt::tools(request.tools.unwrap_or_default(), request.tool_choice.as_ref())?;
    let (format_param, format) = format(request.output_config, request.output_format)?;
    let mut generation = Generation::default()
        .max_tokens(request.max_tokens)
        .stop(request.stop_sequences.unwrap_or_default())
        .sampling(sampling);
    generation.constraint = server.constraint(format_param, &format, &tools).await?;
    let messages = prompt::messages(request.system, request.messages)?;
    let (k, most) = (request.k.unwrap_or(server.options().k), server.options().max_texts);
    if k > most {
        return Err(ApiError::bad_request(format!("k must be at most {most}")).param("k"));
    }
    let one_call = request.tool_choice.as_ref().is_some_and(ToolChoice::is_one_call);
    let ask = Ask::messages(messages).tools(tools.told).k(k).generation(generation);
    Ok(Turn {
        session: request.session,
        budget_tokens: request.budget_tokens,
        residency: request.residency.unwrap_or(true),
        parallel_calls: !one_call,
        ..Turn::new(namespace, ask)
    })
}

/// The form of the answer, and the parameter that says it. Clients send it under its older name, too.
///
/// # Errors
/// 400 where it is given under both names.
fn format(config: Option<OutputConfig>, older: Option<OutputFormat>) -> Result<(&'static str, Format)> {
    let (param, format) = match (config.and_then(|config| config.format), older) {
        (Some(_), Some(_)) => {
            let message = "output_format is the older name of output_config.format: give one of the two";
            return Err(ApiError::bad_request(message).param("output_format"));
        }
        (None, Some(format)) => ("output_format", Some(format)),
        (format, None) => ("output_config.format", format),
    };
    let format = format.map_or(Format::Text, |OutputFormat::JsonSchema { schema }| Format::JsonSchema {
        schema: schema.into(),
        strict: true,
    });
    Ok((param, format))
}

/// Refuses what would change the answer and is not done here.
fn check_supported(request: &MessagesRequest) -> Result<()> {
    let refused = |param: &str, what: &str| Err(ApiError::unsupported(param, format!("{what} not supported")));
    check_thinking(request.thinking.as_ref())?;
    if request.mcp_servers.as_ref().is_some_and(|servers| !servers.is_empty()) {
        return refused("mcp_servers", "mcp_servers are");
    }
    if request.container.is_some() {
        return refused("container", "container is");
    }
    let mut edits = request.context_management.iter().flat_map(|management| &management.edits).flatten();
    match edits.find(|edit| !edit.kind.starts_with("clear_thinking_")) {
        Some(edit) => refused("context_management", &format!("context_management: {} is", edit.kind)),
        None => Ok(()),
    }
}

fn check_thinking(thinking: Option<&Thinking>) -> Result<()> {
    match thinking {
        Some(Thinking { kind }) if kind != "disabled" && kind != "adaptive" => {
            let message = format!("thinking: {kind} is not supported: the model answers without thinking aloud");
            Err(ApiError::unsupported("thinking", message))
        }
        _ => Ok(()),
    }
}

/// Anthropic's API answers with 400 to all bodies that are not what it expects.
fn invalid(error: ApiError) -> ApiError {
    if error.status() == StatusCode::UNPROCESSABLE_ENTITY { ApiError::bad_request(error.message()) } else { error }
}

/// Names the request where Anthropic's clients look for it.
async fn with_request_id(request: Request, next: Next) -> Response {
    let [ours, theirs] = REQUEST_ID;
    let id = request.headers().get(ours).cloned();
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert(theirs, id);
    }
    response
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(count_tokens))
        .layer(middleware::from_fn(with_request_id))
}
