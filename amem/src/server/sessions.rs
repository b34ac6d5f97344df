//! Sessions by name: `/v1/sessions`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use amem_core::{Namespace, Session, SessionOptions};
use utoipa_axum::router::OpenApiRouter;

use super::Server;
use crate::http::{ApiError, Result};

/// What a session is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SessionName {
    /// The id that a client was given.
    Given(String),
    /// The one that a user has without asking for it.
    Of(Namespace),
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionName::Given(id) => f.write_str(id),
            SessionName::Of(namespace) => write!(f, "user:{namespace}"),
        }
    }
}

/// The sessions that are held.
pub(crate) struct Sessions {
    most: usize,
    idle: Duration,
    held: Mutex<HashMap<SessionName, Held>>,
}

struct Held {
    namespace: Namespace,
    session: Arc<tokio::sync::Mutex<Session>>,
    used: Instant,
}

impl Sessions {
    pub(crate) fn new(most: usize, idle: Duration) -> Self {
        Self { most, idle, held: Mutex::default() }
    }
}

impl Server {
    /// The session of this name, which is opened if it is the one that a user has without asking for it.
    ///
    /// # Errors
    /// 404 when it is not there, or is another user's.
    pub(crate) fn session(
        &self,
        name: &SessionName,
        namespace: &Namespace,
        budget_tokens: Option<usize>,
    ) -> Result<Arc<tokio::sync::Mutex<Session>>> {
        let sessions = self.sessions();
        let mut held = sessions.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, session| session.used.elapsed() < sessions.idle);
        if let Some(session) = held.get_mut(name).filter(|session| session.namespace == *namespace) {
            session.used = Instant::now();
            return Ok(Arc::clone(&session.session));
        }
        let SessionName::Of(_) = name else { return Err(ApiError::not_found(format!("there is no session {name}"))) };
        let mut options = SessionOptions::default();
        options.budget_tokens = budget_tokens.or(self.options().budget_tokens);
        let session = Arc::new(tokio::sync::Mutex::new(self.memory().session(namespace, options)?));
        if held.len() >= sessions.most {
            let oldest = held.iter().min_by_key(|(_, session)| session.used).map(|(name, _)| name.clone());
            oldest.map(|name| held.remove(&name));
        }
        let (namespace, used) = (namespace.clone(), Instant::now());
        held.insert(name.clone(), Held { namespace, session: Arc::clone(&session), used });
        Ok(session)
    }
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new()
}
