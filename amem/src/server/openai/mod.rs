//! OpenAI's API.

use utoipa_axum::router::OpenApiRouter;

use super::Server;

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new()
}
