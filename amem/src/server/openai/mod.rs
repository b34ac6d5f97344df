//! OpenAI's API.
//!
//! ```text
//! chat.rs         /v1/chat/completions      request.rs → Turn,  response.rs ← Answered
//! responses/      /v1/responses             request.rs → Turn,  object.rs, events.rs ← Answered
//! completions.rs  /v1/completions           texts that go on as they are
//! embeddings.rs   /v1/embeddings            prompt.rs  texts, as text or as tokens
//! models.rs       /v1/models
//! form.rs         what an answer's form is held to
//! sampling.rs     how tokens are drawn      stream.rs  server-sent events
//! ```

mod chat;
mod completions;
mod embeddings;
mod form;
mod models;
mod prompt;
mod request;
mod response;
mod responses;
mod sampling;
mod stream;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Server;
use crate::http::{ApiError, Result};

/// Tools of a request at most.
const MAX_TOOLS: usize = 128;

/// A parameter that has a value which makes no sense (400).
fn invalid(param: impl Into<String>, message: impl std::fmt::Display) -> ApiError {
    let param = param.into();
    ApiError::bad_request(format!("{param}: {message}")).param(param).code("invalid_value")
}

/// A parameter that asks for what is not done here (400).
fn unsupported(param: impl Into<String>, message: impl std::fmt::Display) -> ApiError {
    let param = param.into();
    ApiError::unsupported(param.clone(), format!("{param}: {message}"))
}

/// Checks the name of a tool or of a schema (400 if it cannot be one).
fn check_name(param: impl Into<String>, name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match (1..=64).contains(&name.len()) && name.chars().all(is_plain) {
        true => Ok(()),
        false => Err(invalid(param, "it must be 1 to 64 letters, digits, underscores and hyphens")),
    }
}

/// A whole number within its bounds (400 otherwise).
fn whole(param: &'static str, value: i64, least: i64, most: usize) -> Result<usize> {
    let checked = usize::try_from(value).ok().filter(|number| value >= least && *number <= most);
    checked.ok_or_else(|| {
        let expected = if most == usize::MAX { format!("{least} or more") } else { format!("from {least} to {most}") };
        invalid(param, format!("it must be {expected}, and is {value}"))
    })
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new()
        .routes(routes!(chat::create))
        .routes(routes!(completions::create))
        .routes(routes!(embeddings::create))
        .routes(routes!(responses::create))
        .routes(routes!(models::list))
        .routes(routes!(models::get))
        // Models of the Hub have names with a slash in them.
        .route("/v1/models/{owner}/{model}", axum::routing::get(models::get_of_owner))
}
