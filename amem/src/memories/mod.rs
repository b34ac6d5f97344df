//! Memory's own paths, as the reference system's clients use them, and what they miss there. Both servers answer them: the
//! one of a local model and the proxy.
//!
//! ```text
//! remember.rs   POST /v1/memories
//! list.rs       what is remembered: all of it, one memory, its history
//! change.rs     another text for a memory; forgetting one, many, all
//! recall.rs     what a text is about, for models that run elsewhere
//! transfer.rs   memories as lines of JSON, out and in
//! users.rs      who has memories
//! usage.rs      what each user used
//!
//! any.rs        a memory with KV, or of texts alone
//! ahead.rs      KV that is computed before anybody asks
//! sessions.rs   what these paths need of a server's sessions
//! filter.rs     which memories count, as JSON
//! moment.rs     moments as clients write and read them
//! view.rs       a memory as clients read it
//! ```
//!
//! A path's segments are percent-decoded: the user `a/b` is `a%2Fb` there, and `a%b` is `a%25b`. Most clients cannot name a
//! user `.` or `..` there: they take these for directories, also where they are escaped, as the URL standard says.

mod ahead;
mod any;
mod change;
mod filter;
mod list;
mod moment;
mod recall;
mod remember;
mod sessions;
mod transfer;
mod usage;
mod users;
mod view;

use std::sync::Arc;

use amem_core::TextMemory;
use axum::extract::FromRef;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::Identity;
pub(crate) use ahead::PrefillAhead;
pub(crate) use any::{AnyMemory, estimated_tokens};
pub(crate) use filter::parse as parse_filter;
pub(crate) use sessions::{Sessions, WorkingSet};
pub(crate) use usage::whose;
pub(crate) use view::OutcomeView;

/// Exports and imports that are under way at a time at most.
const TRANSFERS: usize = 8;

/// What the paths of this module work on.
#[derive(Clone)]
pub(crate) struct MemoryPaths {
    pub(crate) memory: AnyMemory,
    pub(crate) identity: Identity,
    /// The sessions of the server that answers.
    pub(crate) sessions: Arc<dyn Sessions>,
    /// Texts of one request at most.
    pub(crate) max_texts: usize,
    /// Memories that are recalled, if a request does not say how many.
    pub(crate) k: usize,
    /// Tokens of a recall outside a session at most, if a request does not say how many; `None` for any number.
    pub(crate) budget_tokens: Option<usize>,
    /// What a million tokens of input cost elsewhere, in US dollars; `None` where no one price holds.
    pub(crate) usd_per_mtok: Option<f64>,
}

impl MemoryPaths {
    fn texts(&self) -> &TextMemory {
        self.memory.texts()
    }
}

impl FromRef<MemoryPaths> for Identity {
    fn from_ref(paths: &MemoryPaths) -> Self {
        paths.identity.clone()
    }
}

/// The paths of this module.
pub(crate) fn routes(paths: MemoryPaths) -> OpenApiRouter {
    let permits = Arc::new(Semaphore::new(TRANSFERS));
    let transfers = transfer::Transfers { paths: paths.clone(), permits, patience: transfer::PATIENCE };
    let transfers =
        OpenApiRouter::new().routes(routes!(transfer::export)).routes(routes!(transfer::import)).with_state(transfers);
    OpenApiRouter::new()
        .routes(routes!(remember::remember))
        .routes(routes!(list::list, change::forget_all))
        .routes(routes!(list::one, change::update, change::forget))
        .routes(routes!(list::history))
        .routes(routes!(change::forget_many))
        .routes(routes!(recall::recall))
        .routes(routes!(users::users))
        .routes(routes!(usage::usage))
        .with_state(paths)
        .merge(transfers)
}
