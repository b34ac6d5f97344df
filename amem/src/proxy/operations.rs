//! What whoever runs the proxy looks at: health and stats.

use amem_core::{Amounts, UsageQuery};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Proxy, Spent};
use crate::http::{Caller, Result};
use crate::memories::whose;

/// How the proxy is.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    status: &'static str,
    mode: &'static str,
    /// The default upstream, or the names of all where none is the default.
    engine: String,
    auth: &'static str,
    local_model: bool,
}

/// Whether the proxy is alive. It says nothing of its upstreams.
#[utoipa::path(get, path = "/health", tag = "operations", responses((status = 200, body = Health)))]
async fn health(State(proxy): State<Proxy>) -> Json<Health> {
    let auth = if proxy.inner.identity.is_on() { "on (header: X-Amem-Key)" } else { "off" };
    let upstreams = &proxy.inner.upstreams;
    let engine = upstreams.default().map_or_else(|| upstreams.names(), |upstream| upstream.name.clone());
    Json(Health { status: "ok", mode: "proxy", engine, auth, local_model: false })
}

/// What was done, for those whom the caller may ask about.
#[derive(Debug, Serialize, ToSchema)]
struct Stats {
    requests: u64,
    memory_ops: u64,
    /// Tokens of prompts that prefix caches held.
    provider_cache_read_tokens: u64,
    /// Those that they did not.
    provider_input_tokens: u64,
    provider_output_tokens: u64,
    /// The part of the prompts that prefix caches held.
    reuse_rate: f64,
    users: usize,
    #[serde(flatten)]
    server: Option<ServerStats>,
}

/// What concerns all users: for who may ask about all.
#[derive(Debug, Serialize, ToSchema)]
struct ServerStats {
    conversations: usize,
    /// Answers since the start whose upstream did not say what they used.
    unmetered: u64,
    /// What answers cost since the start, as far as prices are known.
    est_usd_spent: f64,
    /// What prefix caches saved of it.
    est_usd_saved: f64,
}

/// What was done.
#[utoipa::path(get, path = "/v1/stats", tag = "operations", responses(
    (status = 200, body = Stats), (status = 401, description = "A key is missing")))]
async fn stats(State(proxy): State<Proxy>, caller: Caller) -> Result<Json<Stats>> {
    let only = whose(&caller, None)?;
    let mut query = UsageQuery::all();
    query.namespace.clone_from(&only);
    let usage = proxy.memory().usage(&query).await?;
    let Amounts { requests, memory_ops, reused_tokens, prefilled_tokens, generated_tokens, .. } =
        usage.iter().map(|total| total.amounts).sum();
    let users = match &only {
        Some(_) => 1,
        None => proxy.memory().namespaces().await?.len(),
    };
    let Spent { unmetered, usd, saved_usd } = proxy.spent();
    let conversations = proxy.inner.conversations.len();
    let server = only.is_none().then_some(ServerStats {
        conversations,
        unmetered,
        est_usd_spent: usd,
        est_usd_saved: saved_usd,
    });
    Ok(Json(Stats {
        requests,
        memory_ops,
        provider_cache_read_tokens: reused_tokens,
        provider_input_tokens: prefilled_tokens,
        provider_output_tokens: generated_tokens,
        reuse_rate: reused_tokens as f64 / (reused_tokens + prefilled_tokens).max(1) as f64,
        users,
        server,
    }))
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Proxy> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(stats))
}
