//! `/v1/responses`: conversations in items. Nothing of them is stored: a client sends all of it each time.

mod events;
mod object;
mod request;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use self::events::ResponseEvent;
use self::object::{ResponseObject, output};
use self::request::{Asked, ResponsesRequest};
use crate::http::{Body, Caller, Result};
use crate::server::Server;

/// Goes on with a conversation, with the memories that its last question is about. Nothing is stored, whatever `store`
/// says.
#[utoipa::path(post, path = "/v1/responses", tag = "openai", request_body = ResponsesRequest, responses(
    (status = 200, description = "The answer; with `stream`, what becomes of it as server-sent events",
        content((ResponseObject = "application/json"), (ResponseEvent = "text/event-stream"))),
    (status = 400, description = "It makes no sense, or asks for what is not supported: `error.param` says where"),
    (status = 401, description = "The API key is missing or wrong"),
    (status = 403, description = "It is about another user's memory"),
    (status = 404, description = "There is no such session"),
    (status = 413, description = "The body is too large"),
    (status = 422, description = "The body is not of this schema"),
    (status = 429, description = "Too many requests wait: try again later"),
    (status = 500, description = "Something failed"),
    (status = 503, description = "There is no room at present: try again later"),
))]
pub(in crate::server::openai) async fn create(
    State(server): State<Server>,
    caller: Caller,
    Body(request): Body<ResponsesRequest>,
) -> Result<Response> {
    let namespace = caller.namespace(request.user.as_deref())?;
    let Asked { turn, echo, logprobs, streams } = request.read(&server, namespace).await?;
    let running = server.start(turn).await?;
    let begun = ResponseObject::begun(&server, echo)?;
    if streams {
        return Ok(events::stream(server, begun, logprobs, running));
    }
    let mut answered = running.answer().await?;
    let choice = answered.choices.drain(..).next().ok_or_else(crate::server::turn::stopped)?;
    let (finish, chat) = (choice.finish.clone(), server.memory().model().chat());
    let items = output(chat, logprobs, choice)?;
    Ok(Json(begun.ended(items, &finish, answered)).into_response())
}
