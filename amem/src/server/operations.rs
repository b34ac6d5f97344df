//! For whoever runs the server: whether it is alive, whether it is ready, numbers for Prometheus, and removing what is gone
//! from the files at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amem_core::{Answer, Namespace, StoreStats};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use axum::routing::{any, get};
use axum::{Json, Router};
use metrics::{Counter, Histogram};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Mode, Server};
use crate::http::{ApiError, Metrics, Result};

/// How long the ledger may take to answer a server that is ready.
const LEDGER: Duration = Duration::from_secs(5);
/// The content type of what Prometheus reads.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a server counts, and whether it is about to stop.
pub(crate) struct Operations {
    metrics: Metrics,
    stopping: AtomicBool,
    ttft: Histogram,
    reused: Counter,
    repaired: Counter,
    prefilled: Counter,
    generated: Counter,
    resident: Counter,
    missed: Counter,
}

impl Operations {
    pub(super) fn new() -> Self {
        let metrics = Metrics::new();
        let tokens =
            |kind| metrics.counter("amem_tokens_total", &[("kind", kind)], "Tokens, by what was done for them.");
        Self {
            ttft: metrics.seconds("amem_time_to_first_token_seconds", "Seconds from a question to its first token."),
            reused: tokens("reused"),
            repaired: tokens("repaired"),
            prefilled: tokens("prefilled"),
            generated: tokens("generated"),
            resident: tokens("resident"),
            missed: tokens("missed"),
            stopping: AtomicBool::new(false),
            metrics,
        }
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, answer: &Answer) {
        let usage = &answer.usage;
        self.ttft.record(answer.ttft.as_secs_f64());
        self.reused.increment(usage.reused() as u64);
        self.repaired.increment(usage.repaired as u64);
        self.prefilled.increment(usage.prefilled as u64);
        self.generated.increment(usage.generated as u64);
        self.resident.increment(usage.resident as u64);
        self.missed.increment(usage.missed as u64);
    }

    /// Counts the requests of a router.
    pub(super) fn count(&self, router: Router) -> Router {
        self.metrics.count(router)
    }
}

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

/// That the server is ready.
#[derive(Debug, Serialize, ToSchema)]
struct Ready {
    status: &'static str,
}

/// Whether the server can answer: the model is loaded, the ledger answers, and it is not about to stop.
#[utoipa::path(get, path = "/ready", tag = "operations",
    responses((status = 200, body = Ready), (status = 503, description = "not now")))]
async fn ready(State(server): State<Server>) -> Result<Json<Ready>> {
    if server.operations().stopping.load(Ordering::Relaxed) {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    let anybody = Namespace::new("default")?;
    let failed = |reason: &str| {
        tracing::warn!(reason, "the server is not ready");
        ApiError::unavailable("the ledger does not answer")
    };
    match tokio::time::timeout(LEDGER, server.memory().count(&anybody)).await {
        Ok(Ok(_)) => Ok(Json(Ready { status: "ready" })),
        Ok(Err(error)) => Err(failed(&error.to_string())),
        Err(_) => Err(failed("the ledger takes too long")),
    }
}

/// Numbers for Prometheus: requests by path and status, how long they took, time to the first token, tokens, what the
/// engine does, the KV of each tier and how often it was there, sessions. It holds no user's name and no text.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "a key that is bound to a namespace"),
    ))]
async fn metrics(State(server): State<Server>, headers: HeaderMap) -> Result<impl IntoResponse> {
    if !server.options().open_metrics {
        server.inner.identity.operator(&headers)?;
    }
    let metrics = &server.operations().metrics;
    let set = |name, text, value: f64| metrics.gauge(name, &[], text).set(value);
    let count = |name, labels: &[_], text, value: u64| metrics.counter(name, labels, text).absolute(value);
    let (engine, kv) = (server.memory().engine().stats(), server.memory().kv());
    set("amem_engine_waiting", "Requests that wait to begin.", engine.waiting as f64);
    set("amem_engine_running", "Answers that are being computed.", engine.running as f64);
    count("amem_engine_steps_total", &[], "Passes of the model.", engine.steps);
    set("amem_sessions", "Sessions that are held.", server.sessions().count() as f64);
    for (index, tier) in kv.tiers().await.iter().enumerate() {
        let set = |name, text, value: f64| metrics.gauge(name, &[("tier", index.to_string())], text).set(value);
        set("amem_kv_bytes", "Bytes of KV in a tier, 0 for the fastest.", tier.bytes as f64);
        set("amem_kv_chunks", "Chunks of KV in a tier, each of one memory.", tier.chunks as f64);
        if let Some(budget) = tier.budget {
            set("amem_kv_budget_bytes", "Bytes of KV that a tier may hold.", budget as f64);
        }
    }
    let StoreStats { hits, misses, damaged, .. } = kv.stats().await;
    for (found, chunks) in [("hit", hits), ("miss", misses)] {
        count("amem_kv_reads_total", &[("found", found)], "Chunks of KV that were asked for.", chunks);
    }
    count("amem_kv_damaged_total", &[], "Chunks of KV that were found damaged.", damaged);
    Ok(([(header::CONTENT_TYPE, PROMETHEUS)], metrics.render()))
}

/// That everything is removed.
#[derive(Debug, Serialize, ToSchema)]
struct Purged {
    status: &'static str,
}

/// Removes the bytes of what was forgotten, changed, superseded or let go from the files, now rather than in time.
///
/// It does what `amem purge` does where no server runs, and is for keys that may do everything; users of a gateway may not
/// do it without one. What is deleted meanwhile waits for it: it writes anew what is left in files of KV.
#[utoipa::path(post, path = "/v1/admin/purge", tag = "operations",
    responses(
        (status = 200, body = Purged, description = "nothing of what is gone is left"),
        (status = 400, description = "nothing says who is asking"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "a key that is bound to a namespace, or a gateway's user"),
        (status = 503, description = "not now: the ledger is read as it was before, or another process writes to the KV"),
    ))]
async fn purge(State(server): State<Server>, headers: HeaderMap) -> Result<Json<Purged>> {
    let identity = &server.inner.identity;
    identity.operator(&headers)?;
    if !identity.is_on() && identity.caller(&headers)?.only()?.is_some() {
        return Err(ApiError::forbidden("this is for keys that may do everything"));
    }
    if server.memory().purge().await? {
        Ok(Json(Purged { status: "purged" }))
    } else {
        Err(ApiError::unavailable(
            "somebody reads the ledger as it was before, a backup perhaps: ask again when that ends",
        ))
    }
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    let routes = OpenApiRouter::new().routes(routes!(health)).routes(routes!(ready)).routes(routes!(metrics));
    routes.routes(routes!(purge))
}

/// What is answered while a model is loaded: that the process is alive, and not ready.
pub(super) fn starting(mode: Mode) -> Router {
    let health = move || async move { Json(serde_json::json!({ "status": "starting", "mode": mode.name() })) };
    let not_yet = || async { ApiError::unavailable("the model is being loaded") };
    Router::new().route("/health", get(health)).route("/", any(not_yet)).route("/{*path}", any(not_yet))
}

impl Server {
    pub(crate) fn operations(&self) -> &Operations {
        &self.inner.operations
    }

    /// Says that the server is about to stop: from now on it is not ready.
    pub fn stopping(&self) {
        self.operations().stopping.store(true, Ordering::Relaxed);
    }
}
