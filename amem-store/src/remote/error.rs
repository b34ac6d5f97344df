//! What can go wrong with a server.

use std::time::Duration;

/// What went wrong with a remote store. What is damaged there is not among it: a damaged chunk is a miss. No message holds
/// a password or a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The server failed lately, and is not asked again yet.
    #[error("the remote store did not answer lately: it is asked again in {} ms", retry_in.as_millis())]
    Unavailable {
        /// When it will be asked again.
        retry_in: Duration,
    },
    /// The server did not do it in time.
    #[error("cannot {action} in {} ms: check the remote store, or give it a longer deadline", within.as_millis())]
    Deadline {
        /// What was tried: "read", "write", …
        action: &'static str,
        /// The time that it was given.
        within: Duration,
    },
    /// The server, or the way to it, failed.
    #[error("cannot {action}: {reason}")]
    Service {
        /// What was tried: "read", "write", …
        action: &'static str,
        /// What OpenDAL said.
        reason: String,
    },
    /// The store is being closed.
    #[error("the remote store is closed")]
    Closed,
    /// A setting makes no sense.
    #[error("{what} is {value}: it must be {expected}")]
    Setting {
        /// Which one.
        what: &'static str,
        /// What it was.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// The threads that talk to the server could not be started.
    #[error("cannot start the remote store's threads: {0}")]
    Threads(#[source] std::io::Error),
}

/// Characters of what a server says that are repeated.
const REASON: usize = 400;

impl RemoteError {
    /// An error of OpenDAL. What a server says is cut short, and kept on one line.
    pub(super) fn service(action: &'static str, error: &opendal::Error) -> Self {
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        Self::Service { action, reason: error.to_string().chars().map(printable).take(REASON).collect() }
    }
}

impl From<RemoteError> for amem_core::Error {
    fn from(error: RemoteError) -> Self {
        Self::Store(Box::new(error))
    }
}
