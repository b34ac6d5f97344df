//! What whoever runs the server looks at: health, users, stats, usage, metrics.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Server;

/// How the server is.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    status: &'static str,
    mode: &'static str,
    engine: String,
    auth: &'static str,
}

/// Whether the server is alive.
#[utoipa::path(get, path = "/health", tag = "operations", responses((status = 200, body = Health)))]
async fn health(State(server): State<Server>) -> Json<Health> {
    let mode = server.options().mode.name();
    let auth = if server.inner.identity.is_on() { "on" } else { "off" };
    Json(Health { status: "ok", mode, engine: server.memory().model().info().name.clone(), auth })
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new().routes(routes!(health))
}
