//! Sessions of clients over HTTP, of protocol versions before 2026-07-28: so many at most, and each its owner's alone.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::Stream;
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::session::{ServerSseMessage, SessionId, SessionManager};

use crate::http::Caller;

/// The SDK's sessions, of which the one that was used longest ago ends when there are too many.
pub(super) struct Sessions {
    local: LocalSessionManager,
    most: usize,
    held: Mutex<HashMap<SessionId, Held>>,
}

struct Held {
    used: Instant,
    /// Who began it; not known until it has been answered for the first time, and before that nobody knows its id.
    owner: Option<Caller>,
}

type LocalError = <LocalSessionManager as SessionManager>::Error;

impl Sessions {
    pub(super) fn new(most: usize, idle: Duration) -> Self {
        let mut local = LocalSessionManager::default();
        local.session_config.keep_alive = Some(idle);
        Self { local, most: most.max(1), held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<SessionId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes who began a session.
    pub(super) fn begun(&self, id: &str, by: Caller) {
        if let Some(held) = self.held().get_mut(id) {
            held.owner.get_or_insert(by);
        }
    }

    /// Whether there is a session of this name that this caller began. If so, it is in use.
    pub(super) fn is_of(&self, id: &str, caller: &Caller) -> bool {
        let mut held = self.held();
        let Some(held) = held.get_mut(id).filter(|held| held.owner.as_ref() == Some(caller)) else { return false };
        held.used = Instant::now();
        true
    }
}

impl SessionManager for Sessions {
    type Error = LocalError;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), LocalError> {
        let (id, transport) = self.local.create_session().await?;
        let mut ended = Vec::new();
        {
            let mut held = self.held();
            while held.len() >= self.most {
                let oldest = held.iter().min_by_key(|(_, held)| held.used).map(|(id, _)| SessionId::clone(id));
                let Some(oldest) = oldest else { break };
                held.remove(&oldest);
                ended.push(oldest);
            }
            held.insert(SessionId::clone(&id), Held { used: Instant::now(), owner: None });
        }
        for id in ended {
            self.local.close_session(&id).await?;
        }
        Ok((id, transport))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, LocalError> {
        self.local.initialize_session(id, message).await
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, LocalError> {
        self.local.has_session(id).await
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), LocalError> {
        self.held().remove(id);
        self.local.close_session(id).await
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, LocalError> {
        self.local.create_stream(id, message).await
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), LocalError> {
        self.local.accept_message(id, message).await
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, LocalError> {
        self.local.create_standalone_stream(id).await
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, LocalError> {
        self.local.resume(id, last_event_id).await
    }
}
