//! What can go wrong between a ledger and its PostgreSQL server, and what to do about it.

use std::error::Error as _;

use tokio_postgres::error::SqlState;

/// What went wrong with a [`PostgresLedger`](super::PostgresLedger). No password is in any of it, and no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// The address cannot be understood.
    #[error(
        "this is no address of a PostgreSQL database ({reason}): expected postgresql://user:password@host/database"
    )]
    BadAddress {
        /// What is wrong with it.
        reason: String,
    },
    /// An option has a value that makes no sense.
    #[error("the option {option} is {value}: it must be {expected}")]
    BadOption {
        /// Which one.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// No connection could be made.
    #[error("cannot connect to {ledger}: {reason}")]
    Unreachable {
        /// The server and the ledger there.
        ledger: String,
        /// What the server, TLS or the operating system said.
        reason: String,
    },
    /// The connection broke. Nothing was changed.
    #[error("cannot {action}: the connection to {ledger} was lost ({reason}); nothing was changed, so call again")]
    Lost {
        /// What was tried.
        action: &'static str,
        /// The server and the ledger there.
        ledger: String,
        /// What was seen of it.
        reason: String,
    },
    /// The connection broke at the end of a change, and the server could not be asked afterwards what became of it.
    #[error(
        "{ledger} was lost while it was asked to {action}: whether it did is unknown; call again, which does nothing twice"
    )]
    OutcomeUnknown {
        /// What was tried.
        action: &'static str,
        /// The server and the ledger there.
        ledger: String,
    },
    /// It took longer than allowed. Nothing was changed.
    #[error("cannot {action}: {ledger} took too long ({reason}); nothing was changed, so call again later")]
    Timeout {
        /// What was tried.
        action: &'static str,
        /// The server and the ledger there.
        ledger: String,
        /// Which limit was met.
        reason: String,
    },
    /// What is in the ledger is not what was written there.
    #[error("{ledger} is damaged: {reason}; restore it from a dump")]
    Damaged {
        /// The server and the ledger there.
        ledger: String,
        /// What was found, with the record where it is known.
        reason: String,
    },
    /// The ledger was brought up to date by a later version of amem.
    #[error("{ledger} has schema {found}, and this amem reads up to {supported}: use a newer amem")]
    NewerSchema {
        /// The server and the ledger there.
        ledger: String,
        /// Its schema's version.
        found: i32,
        /// The last version known here.
        supported: i32,
    },
    /// The schema holds something else.
    #[error("{ledger} is no ledger of amem: name another schema, or restore a dump of the ledger into an empty one")]
    NotALedger {
        /// The server and the ledger there.
        ledger: String,
    },
    /// The server takes no changes: it is a replica, or was made read-only.
    #[error("{ledger} is read-only: {reason}")]
    ReadOnly {
        /// The server and the ledger there.
        ledger: String,
        /// What the server said.
        reason: String,
    },
    /// The server has no room left.
    #[error("no room to write {ledger}: {reason}")]
    Full {
        /// The server and the ledger there.
        ledger: String,
        /// What the server said.
        reason: String,
    },
    /// The server refused something.
    #[error("cannot {action}: {ledger} says {reason} (SQLSTATE {code})")]
    Server {
        /// What was tried.
        action: &'static str,
        /// The server and the ledger there.
        ledger: String,
        /// The server's code for it.
        code: String,
        /// What the server said.
        reason: String,
    },
    /// The ledger's own threads ended: the program is about to end, or there is a bug in amem.
    #[error("cannot {action}: the ledger's threads have ended")]
    Ended {
        /// What was tried.
        action: &'static str,
    },
}

impl PostgresError {
    /// The server's answer, or the lack of one, as an error of doing `action`.
    pub(super) fn of(action: &'static str, ledger: &str, error: &tokio_postgres::Error) -> Self {
        let (ledger, reason) = (ledger.to_owned(), told(error));
        let Some(code) = error.code() else { return Self::Lost { action, ledger, reason } };
        match code.code() {
            // Read-only transactions, in which a replica runs everything.
            "25006" => Self::ReadOnly { ledger, reason },
            // No disk space, and file-size limits.
            "53100" | "53400" => Self::Full { ledger, reason },
            // The data or an index cannot be read.
            "XX001" | "XX002" => Self::Damaged { ledger, reason },
            _ if is_late(code) => Self::Timeout { action, ledger, reason },
            _ if is_lost(error) => Self::Lost { action, ledger, reason },
            code => Self::Server { action, ledger, code: code.to_owned(), reason },
        }
    }
}

/// Whether a time limit of the server was met.
fn is_late(code: &SqlState) -> bool {
    [SqlState::QUERY_CANCELED, SqlState::LOCK_NOT_AVAILABLE].contains(code)
}

/// Whether the connection is of no more use.
pub(super) fn is_lost(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        None => true,
        Some(told) => {
            matches!(told.severity(), "FATAL" | "PANIC")
                || [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW]
                    .contains(told.code())
        }
    }
}

/// Whether the same transaction may succeed when it is run again.
pub(super) fn is_transient(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|code| [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
}

/// What an error says, with its causes. A server's details are left out, for they may quote what is in a row.
pub(super) fn told(error: &tokio_postgres::Error) -> String {
    if let Some(told) = error.as_db_error() {
        return told.message().to_owned();
    }
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl From<PostgresError> for amem_core::Error {
    fn from(error: PostgresError) -> Self {
        match error {
            PostgresError::ReadOnly { ledger, reason } => Self::ReadOnly { what: ledger, reason },
            PostgresError::Full { ledger, reason } => Self::Full { what: ledger, reason },
            other => Self::Ledger(Box::new(other)),
        }
    }
}

/// Why a call did not succeed, as its statements see it.
pub(super) enum Failure {
    /// The ledger's rules forbid it.
    Refused(amem_core::Error),
    /// What is in a row is not what was written.
    Damaged(String),
    /// PostgreSQL could not.
    Postgres(tokio_postgres::Error),
    /// The ledger cannot be used.
    Ledger(PostgresError),
}

impl From<amem_core::Error> for Failure {
    fn from(error: amem_core::Error) -> Self {
        Self::Refused(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<PostgresError> for Failure {
    fn from(error: PostgresError) -> Self {
        Self::Ledger(error)
    }
}

impl Failure {
    /// The error that the caller sees.
    pub(super) fn into_error(self, action: &'static str, ledger: &str) -> amem_core::Error {
        match self {
            Self::Refused(error) => error,
            Self::Damaged(reason) => PostgresError::Damaged { ledger: ledger.to_owned(), reason }.into(),
            Self::Postgres(error) => PostgresError::of(action, ledger, &error).into(),
            Self::Ledger(error) => error.into(),
        }
    }
}
