//! The protocol's streamable HTTP, at `/mcp`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};

use super::sessions::Sessions;
use super::{Mcp, Session, Transport};
use crate::http::{ApiError, Identity};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// How much a server over HTTP takes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpOptions {
    /// Bytes of a request at most.
    pub body_bytes: usize,
    /// Sessions at most. Beyond that, the one that was used longest ago is ended.
    pub max_sessions: usize,
    /// How long a session is held that nobody uses.
    pub session_idle: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self { body_bytes: 16 << 20, max_sessions: 256, session_idle: Duration::from_secs(30 * 60) }
    }
}

/// The routes, and what ends the streams that clients hold open: to be called when the server stops.
///
/// The routes take requests of any page, and by any name of the server: [`layers`](crate::http::layers) refuses those of
/// others.
pub fn router(mcp: Mcp, identity: Identity, options: &HttpOptions) -> (Router, impl FnOnce() + Send + 'static) {
    let sessions = Arc::new(Sessions::new(options.max_sessions, options.session_idle));
    // rmcp's own lists of hosts and origins know no addresses but this machine's, and would refuse what the layers let in.
    let config = StreamableHttpServerConfig::default()
        .disable_allowed_hosts()
        .disable_allowed_origins()
        .with_max_request_body_bytes(options.body_bytes);
    let stop = config.cancellation_token.clone();
    let new = move || Ok(Session::new(mcp.clone(), Transport::Http));
    let service = StreamableHttpService::new(new, Arc::clone(&sessions), config);
    let door = Door { identity, sessions };
    let router = Router::new().route_service("/mcp", service).layer(middleware::from_fn_with_state(door, admit));
    (router, move || stop.cancel())
}

#[derive(Clone)]
struct Door {
    identity: Identity,
    sessions: Arc<Sessions>,
}

/// Lets nobody in without the key that is wanted, nor into another's session.
async fn admit(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let caller = match door.identity.caller(request.headers()) {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let of_another = |id: &HeaderValue| !id.to_str().is_ok_and(|id| door.sessions.is_of(id, &caller));
    if request.headers().get(SESSION_ID).is_some_and(of_another) {
        return ApiError::not_found("there is no such session: initialize a new one").into_response();
    }
    request.extensions_mut().insert(caller.clone());
    let response = next.run(request).await;
    if let Some(id) = response.headers().get(SESSION_ID).and_then(|id| id.to_str().ok()) {
        door.sessions.begun(id, caller);
    }
    response
}
