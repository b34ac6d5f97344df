//! Memory's own paths, as the reference system's clients use them, and what they miss there.
//!
//! ```text
//! remember.rs   POST /v1/memories
//! list.rs       what is remembered: all of it, one memory, its history
//! change.rs     another text for a memory; forgetting one, many, all
//! recall.rs     what a text is about, for models that run elsewhere
//! extract.rs    the facts of a text, remembered one by one; facts.rs finds them in what a model said
//! transfer.rs   memories as lines of JSON, out and in
//! filter.rs     which memories count, as JSON
//! view.rs       a memory as clients read it
//! ```
//!
//! A path's segments are percent-decoded: the user `a/b` is `a%2Fb` there, and `a%b` is `a%25b`. Most clients cannot name a
//! user `.` or `..` there: they take these for directories, also where they are escaped, as the URL standard says.

mod change;
mod extract;
mod facts;
mod filter;
mod list;
mod recall;
mod remember;
mod transfer;
mod view;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Server;
pub(super) use filter::parse as parse_filter;

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new()
        .routes(routes!(remember::remember))
        .routes(routes!(list::list, change::forget_all))
        .routes(routes!(list::one, change::update, change::forget))
        .routes(routes!(list::history))
        .routes(routes!(change::forget_many))
        .routes(routes!(transfer::export))
        .routes(routes!(transfer::import))
        .routes(routes!(recall::recall))
        .routes(routes!(extract::extract))
}
