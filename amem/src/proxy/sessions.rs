//! Conversations that their clients name: `/v1/sessions`.

use std::sync::Arc;

use amem_core::Namespace;
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Proxy;
use super::conversations::{Budget, Conversation, Owner};
use super::forward::budget;
use crate::http::{ApiError, Body, Caller, Params, Result, Segments};
use crate::memories::{Sessions, whose};

/// A session to open.
#[derive(Debug, Deserialize, ToSchema)]
struct SessionRequest {
    /// Whose memory it tells.
    user: Option<String>,
    /// What its snapshot is about, before anything is asked.
    seed_query: Option<String>,
    /// Tokens that the snapshot holds at most, about.
    budget_tokens: Option<usize>,
    /// Memories that it holds at most.
    max_turns: Option<usize>,
}

/// A session.
#[derive(Debug, Serialize, ToSchema)]
struct SessionState {
    session: String,
    user: String,
    budget_tokens: usize,
    /// Memories in its snapshot.
    resident_turns: usize,
    /// Their tokens, about.
    resident_tokens: u64,
}

/// A session that was ended.
#[derive(Debug, Serialize, ToSchema)]
struct SessionEnded {
    session: String,
    ended: bool,
}

/// Opens a session.
#[utoipa::path(post, path = "/v1/sessions", tag = "sessions", request_body = SessionRequest, responses(
    (status = 200, body = SessionState), (status = 400, description = "A value is out of bounds"),
    (status = 401, description = "A key is missing"), (status = 403, description = "This is another user's memory"),
    (status = 422, description = "The body has another shape")))]
async fn open(
    State(proxy): State<Proxy>,
    caller: Caller,
    Body(request): Body<SessionRequest>,
) -> Result<Json<SessionState>> {
    let SessionRequest { user, seed_query, budget_tokens, max_turns } = request;
    let namespace = caller.namespace(user.as_deref())?;
    let budget = budget(proxy.budget(), None, max_turns, budget_tokens)?;
    let session = format!("sess-{}", uuid::Uuid::now_v7().simple());
    let owner = Owner { namespace: namespace.clone(), session: Some(session.clone()) };
    let key = proxy.session_key(&namespace, &session);
    let state = proxy.inner.conversations.get(key, &owner);
    let mut state = state.lock().await;
    state.seed(proxy.memory(), &namespace, seed_query.as_deref(), budget).await?;
    proxy.inner.conversations.measure(&key, &state);
    Ok(Json(told(session, &namespace, budget, state.resident())))
}

fn told(session: String, namespace: &Namespace, budget: Budget, (turns, tokens): (usize, u64)) -> SessionState {
    let user = namespace.as_str().to_owned();
    SessionState { session, user, budget_tokens: budget.tokens, resident_turns: turns, resident_tokens: tokens }
}

/// Whose session of a name.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct SessionQuery {
    /// Whose it is. It may be left out where one user alone has a session of this name.
    user: Option<String>,
}

/// The one session of a name that a caller may mean. Clients choose names, and several users may choose the same.
fn find(
    proxy: &Proxy,
    caller: &Caller,
    session: &str,
    user: Option<&str>,
) -> Result<(Namespace, Arc<tokio::sync::Mutex<Conversation>>)> {
    let whose = whose(caller, user)?;
    let mut named = proxy.inner.conversations.of_session(session);
    named.retain(|(namespace, _)| whose.as_ref().is_none_or(|whose| whose == namespace));
    match (named.pop(), named.is_empty()) {
        (Some(found), true) => Ok(found),
        (Some(_), false) => {
            let message = format!("several users have a session {session}: say in `user` whose is meant");
            Err(ApiError::bad_request(message).param("user"))
        }
        (None, _) => Err(ApiError::not_found(format!("there is no session {session}"))),
    }
}

/// A session.
#[utoipa::path(get, path = "/v1/sessions/{session}", tag = "sessions",
    params(("session" = String, Path), SessionQuery), responses(
    (status = 200, body = SessionState), (status = 400, description = "Several users have one of this name"),
    (status = 401, description = "A key is missing"), (status = 403, description = "This is another user's"),
    (status = 404, description = "There is no such session")))]
async fn get(
    State(proxy): State<Proxy>,
    caller: Caller,
    Segments(session): Segments<String>,
    Params(query): Params<SessionQuery>,
) -> Result<Json<SessionState>> {
    let (namespace, state) = find(&proxy, &caller, &session, query.user.as_deref())?;
    let state = state.lock().await;
    let budget = state.budget.unwrap_or_else(|| proxy.budget());
    Ok(Json(told(session, &namespace, budget, state.resident())))
}

/// Ends a session.
#[utoipa::path(delete, path = "/v1/sessions/{session}", tag = "sessions",
    params(("session" = String, Path), SessionQuery), responses(
    (status = 200, body = SessionEnded), (status = 400, description = "Several users have one of this name"),
    (status = 401, description = "A key is missing"), (status = 403, description = "This is another user's"),
    (status = 404, description = "There is no such session")))]
async fn end(
    State(proxy): State<Proxy>,
    caller: Caller,
    Segments(session): Segments<String>,
    Params(query): Params<SessionQuery>,
) -> Result<Json<SessionEnded>> {
    let (namespace, _) = find(&proxy, &caller, &session, query.user.as_deref())?;
    proxy.inner.conversations.end(&Owner { namespace, session: Some(session.clone()) });
    Ok(Json(SessionEnded { session, ended: true }))
}

impl Sessions for Proxy {
    fn end_all_of(&self, namespace: &Namespace) {
        self.inner.conversations.end_all_of(namespace);
    }
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Proxy> {
    OpenApiRouter::new().routes(routes!(open)).routes(routes!(get, end))
}
