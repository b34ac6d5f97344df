//! `POST /v1/memories/{user}/prefill`: the KV of a user's memories, before a question needs it.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Server;
use crate::http::{ApiError, Caller, Result, Segments};

/// What was computed.
#[derive(Debug, Serialize, ToSchema)]
struct Prefilled {
    user: String,
    /// Memories whose KV was computed. That of all others was held already.
    memories: usize,
    /// Tokens that were prefilled for them, and for the system line if that was not held.
    prefilled_tokens: usize,
    latency_s: f64,
}

/// Computes the KV of a user's memories that is not held, so that no question waits for it.
///
/// It is computed between the answers of other requests, and answered when all of it is done. Whoever goes away ends it; what was
/// computed until then is kept, and another request goes on from there.
#[utoipa::path(post, path = "/v1/memories/{user}/prefill", tag = "memories",
    params(("user" = String, Path, description = "whose memory it is")),
    responses(
        (status = 200, body = Prefilled),
        (status = 400, description = "no name of a user"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 429, description = "too many requests wait"),
        (status = 503, description = "no room in the KV cache, or the memory is read-only"),
    ))]
async fn prefill(
    State(server): State<Server>,
    caller: Caller,
    Segments(user): Segments<String>,
) -> Result<Json<Prefilled>> {
    let (namespace, started) = (caller.namespace(Some(&user))?, Instant::now());
    if server.options().read_only {
        return Err(ApiError::unavailable("the memory is read-only: KV that is computed now would not be kept"));
    }
    let _permit = server.permit(&server.inner.prefills).await?;
    let mut memories = 0;
    let usage = server.memory().prefill(&namespace, |_, all| memories = all).await?;
    Ok(Json(Prefilled {
        user: namespace.as_str().to_owned(),
        memories,
        prefilled_tokens: usage.prefilled,
        latency_s: started.elapsed().as_secs_f64(),
    }))
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new().routes(routes!(prefill))
}
