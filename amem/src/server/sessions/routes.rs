//! `/v1/sessions`.

use amem_core::Recall;
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Held, InUse, OWN, SessionName, no_session};
use crate::http::{ApiError, Body, Caller, Result, Segments};
use crate::memories::parse_filter;
use crate::server::Server;

/// Memories that are recalled in a session at most.
const MAX_TURNS: usize = 1000;

/// A session to open.
#[derive(Debug, Deserialize, ToSchema)]
struct SessionRequest {
    /// Whose memory it is about.
    user: Option<String>,
    /// What the first question will be about: then the working set is put in place at once, so that the question costs
    /// its own tokens only.
    seed_query: Option<String>,
    /// Tokens that the session holds at most. It never holds more than the model can.
    budget_tokens: Option<usize>,
    /// Memories that `seed_query`, and `/v1/recall` in this session, recall at most.
    max_turns: Option<usize>,
    /// Only memories that pass this filter stand in the session's context.
    #[schema(value_type = Option<Object>)]
    filter: Option<Value>,
}

/// A session.
#[derive(Debug, Serialize, ToSchema)]
struct SessionState {
    /// Its name.
    session: String,
    user: String,
    /// Tokens that it holds at most.
    budget_tokens: usize,
    /// Memories that stand in its context.
    resident_turns: usize,
    /// Tokens that stand in its context: the system line, memories, and what was said.
    resident_tokens: usize,
}

/// A session that ended.
#[derive(Debug, Serialize, ToSchema)]
struct Ended {
    session: String,
    /// Always true.
    ended: bool,
}

/// Opens a session: a conversation over a working set of memories that stays in place.
///
/// It ends when nobody has used it for some time, or when others need its room; never while it is in use.
#[utoipa::path(post, path = "/v1/sessions", tag = "sessions", request_body = SessionRequest,
    responses(
        (status = 200, body = SessionState),
        (status = 400, description = "a number or a filter that makes no sense"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 413, description = "too large"),
        (status = 422, description = "not of this shape"),
        (status = 429, description = "too many sessions are in use, or too many requests wait"),
        (status = 503, description = "no room in the KV cache"),
    ))]
async fn open(
    State(server): State<Server>,
    caller: Caller,
    Body(request): Body<SessionRequest>,
) -> Result<Json<SessionState>> {
    let namespace = caller.namespace(request.user.as_deref())?;
    if request.max_turns.is_some_and(|turns| !(1..=MAX_TURNS).contains(&turns)) {
        return Err(ApiError::bad_request(format!("max_turns must be from 1 to {MAX_TURNS}")).param("max_turns"));
    }
    let mut options = server.session_options(request.budget_tokens);
    options.filter = request.filter.as_ref().map(parse_filter).transpose()?;
    let session = server.memory().session(&namespace, options)?;
    let session = server.sessions().hold(SessionName::new()?, Held::new(session, namespace, request.max_turns))?;
    let mut opening = Opening { server: &server, session, is_told: false };
    if let Some(seed) = request.seed_query.filter(|seed| !seed.trim().is_empty()) {
        let k = request.max_turns.unwrap_or(server.options().k);
        opening.session.lock().await?.open(Recall::new(seed).k(k)).await?;
    }
    let state = SessionState::of(&opening.session).await?;
    opening.is_told = true;
    Ok(Json(state))
}

/// A session that its client does not know of yet. It ends if that stays so: when opening it fails, and when the client
/// leaves meanwhile.
struct Opening<'s> {
    server: &'s Server,
    session: InUse,
    is_told: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.is_told {
            self.server.sessions().end(self.session.name());
        }
    }
}

/// What stands in a session. Waits for the answer that is being given in it.
#[utoipa::path(get, path = "/v1/sessions/{session}", tag = "sessions",
    params(("session" = String, Path, description = "its name")),
    responses(
        (status = 200, body = SessionState),
        (status = 400, description = "nothing says who is asking"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 404, description = "no such session"),
        (status = 429, description = "too many requests wait for it"),
    ))]
async fn state(
    State(server): State<Server>,
    caller: Caller,
    Segments(name): Segments<String>,
) -> Result<Json<SessionState>> {
    let session = find(&server, &caller, name)?;
    Ok(Json(SessionState::of(&session).await?))
}

/// Ends a session. An answer that is being given in it goes on.
#[utoipa::path(delete, path = "/v1/sessions/{session}", tag = "sessions",
    params(("session" = String, Path, description = "its name")),
    responses(
        (status = 200, body = Ended),
        (status = 400, description = "nothing says who is asking"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 404, description = "no such session"),
    ))]
async fn end(State(server): State<Server>, caller: Caller, Segments(name): Segments<String>) -> Result<Json<Ended>> {
    let session = find(&server, &caller, name)?;
    server.sessions().end(session.name());
    Ok(Json(Ended { session: session.name().to_string(), ended: true }))
}

impl SessionState {
    async fn of(in_use: &InUse) -> Result<Self> {
        let mut session = in_use.lock().await?;
        session.settle().await;
        Ok(Self {
            session: in_use.name().to_string(),
            user: in_use.held.namespace.as_str().to_owned(),
            budget_tokens: session.budget_tokens(),
            resident_turns: session.resident().len(),
            resident_tokens: session.resident_tokens(),
        })
    }
}

/// A session that the caller may know of.
fn find(server: &Server, caller: &Caller, name: String) -> Result<InUse> {
    let only = caller.only()?;
    let name = match name.strip_prefix(OWN).map(|user| caller.namespace(Some(user))) {
        Some(user) => SessionName::Of(user.map_err(|_| no_session())?),
        None => SessionName::Given(name),
    };
    let session = server.sessions().get(&name).ok_or_else(no_session)?;
    match only {
        Some(own) if session.held.namespace != *own => Err(no_session()),
        _ => Ok(session),
    }
}

/// The paths of sessions.
pub(in crate::server) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new().routes(routes!(open)).routes(routes!(state, end))
}

#[cfg(test)]
mod tests {
    use amem_core::Memory;
    use amem_core::transformer::{Options as LoadOptions, Transformer};
    use amem_cpu::Cpu;
    use axum::http::HeaderMap;

    use super::*;
    use crate::http::{Identity, KeyHeader};
    use crate::server::Options;

    #[tokio::test]
    async fn a_session_whose_client_leaves_while_it_is_opened_ends() {
        let model = Transformer::load(&amem_demo::files(), Cpu::new().unwrap(), LoadOptions::default()).unwrap();
        let memory = Memory::builder(std::sync::Arc::new(model)).build().unwrap();
        memory.remember_all("default", ["Alice lives in Denver."]).await.unwrap();
        let identity = Identity::new(KeyHeader::Authorization);
        let caller = identity.caller(&HeaderMap::new()).unwrap();
        let server = Server::new(memory, identity, Options::default());
        let request = || serde_json::from_str(r#"{ "seed_query": "Where does Alice live?" }"#).unwrap();
        let mut opening = Box::pin(open(State(server.clone()), caller.clone(), Body(request())));
        assert!(futures_lite::future::poll_once(&mut opening).await.is_none() && server.sessions().count() == 1);
        drop(opening);
        assert_eq!(server.sessions().count(), 0);
        let opened = open(State(server.clone()), caller, Body(request())).await.unwrap();
        assert_eq!((opened.0.resident_turns, server.sessions().count()), (1, 1));
    }
}
