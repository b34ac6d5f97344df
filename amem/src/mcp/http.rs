//! The protocol's streamable HTTP, at `/mcp`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};

use super::sessions::Sessions;
use super::{Mcp, Session, Transport};
use crate::http::{ApiError, Identity};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Who may come in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Access {
    /// The origins whose pages may call from a browser, beside this machine's own. A page that a name of somebody else's
    /// leads here (DNS rebinding) has that name in its origin, and is refused.
    pub origins: Vec<HeaderValue>,
    /// The names that the server is called by, beside this machine's own; `None` for any.
    pub hosts: Option<Vec<String>>,
    /// Bytes of a request at most.
    pub body_bytes: usize,
    /// Sessions at most. Beyond that, the one that was used longest ago is ended.
    pub max_sessions: usize,
    /// How long a session is held that nobody uses.
    pub session_idle: Duration,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            origins: Vec::new(),
            hosts: Some(Vec::new()),
            body_bytes: 16 << 20,
            max_sessions: 256,
            session_idle: Duration::from_secs(30 * 60),
        }
    }
}

/// The routes, and what ends the streams that clients hold open: to be called when the server stops.
pub fn router(mcp: Mcp, identity: Identity, access: &Access) -> (Router, impl FnOnce() + Send + 'static) {
    let sessions = Arc::new(Sessions::new(access.max_sessions, access.session_idle));
    let own = LOOPBACK.iter().flat_map(|host| [format!("http://{host}:*"), format!("https://{host}:*")]);
    let config = StreamableHttpServerConfig::default()
        .with_allowed_origins(own.chain(access.origins.iter().filter_map(exact)))
        .enforce_origin_validation()
        .with_max_request_body_bytes(access.body_bytes);
    let config = match &access.hosts {
        None => config.disable_allowed_hosts(),
        Some(hosts) => {
            let own = LOOPBACK.iter().map(|host| (*host).to_owned());
            config.with_allowed_hosts(own.chain(hosts.iter().cloned()))
        }
    };
    let stop = config.cancellation_token.clone();
    let new = move || Ok(Session::new(mcp.clone(), Transport::Http));
    let service = StreamableHttpService::new(new, Arc::clone(&sessions), config);
    let door = Door { identity, sessions };
    let router = Router::new().route_service("/mcp", service).layer(middleware::from_fn_with_state(door, admit));
    (router, move || stop.cancel())
}

/// An origin with its port; without one it would stand for all of them.
fn exact(origin: &HeaderValue) -> Option<String> {
    let origin = origin.to_str().ok()?;
    let uri = Uri::try_from(origin).ok()?;
    Some(match (uri.port_u16(), uri.scheme_str()) {
        (None, Some("http")) => format!("{}:80", origin.trim_end_matches('/')),
        (None, Some("https")) => format!("{}:443", origin.trim_end_matches('/')),
        _ => origin.to_owned(),
    })
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
