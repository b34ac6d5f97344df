//! What memory's paths need of a server's sessions.

use amem_core::{Namespace, Recall, Recollection, RecordId};
use futures_util::future::BoxFuture;

use crate::http::{ApiError, Result};

/// The sessions of a server.
pub(crate) trait Sessions: Send + Sync {
    /// Ends those of a user, all of whose memories were deleted.
    fn end_all_of(&self, namespace: &Namespace);

    /// The working set of a session. A server without a local model has none.
    ///
    /// # Errors
    /// 400 where sessions have no working set; 404 when there is no such session of this user; 429 when as many as may be
    /// are in use.
    fn working_set(
        &self,
        session: &str,
        namespace: &Namespace,
        budget_tokens: Option<usize>,
    ) -> Result<Box<dyn WorkingSet>> {
        let _ = (session, namespace, budget_tokens);
        Err(ApiError::unsupported(
            "session",
            "sessions hold a working set only where a local model does: leave out session, or ask amem serve",
        ))
    }
}

/// The working set of a session, which does not end while this is held.
pub(crate) trait WorkingSet: Send + Sync {
    /// The session's name.
    fn session(&self) -> String;

    /// Memories that are recalled in it at most, if that was said.
    fn max_turns(&self) -> Option<usize>;

    /// Recalls in it: what was found, and the tokens that it holds at most. Waits for the answer that is being given in it.
    fn recall(&self, recall: Recall) -> BoxFuture<'_, Result<(Vec<Recollection>, usize)>>;

    /// What was recalled in it for models that run elsewhere, in order.
    fn told(&self) -> Vec<RecordId>;

    /// Notes that memories were recalled for a model that runs elsewhere.
    fn tell(&self, ids: &[RecordId]);
}
