//! `/v1/stats`: what the server is doing and has.

use amem_core::{Amounts, EngineStats, ModelInfo, TierStats, UsageQuery};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Server;
use crate::http::{Caller, Result};
use crate::memories::whose;

/// What was done, and what is held.
#[derive(Debug, Serialize, ToSchema)]
struct Stats {
    /// Questions that were answered, since usage is counted.
    turns: u64,
    /// Memories that were put into a context for them.
    chunks_blended: u64,
    /// Those among them whose KV was held.
    chunks_reused: u64,
    /// The share of these, 0 to 1.
    reuse_rate: f64,
    /// Tokens whose KV was used as it was.
    prefill_saved_tokens: u64,
    /// What these would have cost elsewhere, in US dollars.
    est_usd_saved: f64,
    /// Users who have memories.
    users: usize,
    /// Sessions that are held.
    sessions: usize,
    /// Whether usage is counted. If not, everything above that counts it stays as it was.
    metered: bool,
    policy: Policy,
    engine: EngineView,
}

/// The KV that is held, and where.
#[derive(Debug, Serialize, ToSchema)]
struct Policy {
    /// Chunks of KV that are held: those of memories, and the system line's.
    chunks: usize,
    /// Tokens whose KV is in the fastest tier, where it can tell.
    hot_tokens: Option<u64>,
    /// Tokens that the fastest tier has room for, in the model's own numbers; `null` where it has no budget.
    hot_budget: Option<u64>,
    /// Each tier, fastest first.
    tiers: Vec<TierView>,
}

/// A tier.
#[derive(Debug, Serialize, ToSchema)]
struct TierView {
    chunks: usize,
    tokens: Option<u64>,
    bytes: u64,
    budget_bytes: Option<u64>,
}

/// The engine.
#[derive(Debug, Serialize, ToSchema)]
struct EngineView {
    /// Requests that wait to begin.
    waiting: usize,
    /// Answers that are being computed.
    running: usize,
    /// Passes of the model since the server started.
    steps: u64,
    /// Tokens of memories, and of the system line, that were prefilled since then.
    prefilled_tokens: u64,
    /// Seconds that this took.
    prefill_seconds: f64,
}

/// What the server is doing and has.
///
/// What was done is counted in the ledger: it outlives the server, and includes what other servers of the same ledger did.
/// Who may act for one user only sees what that user did; what is held is that of all.
#[utoipa::path(get, path = "/v1/stats", tag = "operations",
    responses(
        (status = 200, body = Stats),
        (status = 400, description = "nothing says who is asking"),
        (status = 401, description = "no key, or a wrong one"),
    ))]
async fn stats(State(server): State<Server>, caller: Caller) -> Result<Json<Stats>> {
    let memory = server.memory();
    let mut query = UsageQuery::all();
    query.namespace = whose(&caller, None)?;
    let users = match &query.namespace {
        Some(_) => 1,
        None => memory.texts().namespaces().await?.len(),
    };
    let amounts: Amounts = memory.usage(&query).await?.iter().map(|total| total.amounts).sum();
    let rate = amounts.reused_chunks as f64 / amounts.chunks.max(1) as f64;
    let held = memory.kv().stats().await.chunks;
    let EngineStats { waiting, running, steps, prefilled_tokens, prefill_seconds, .. } = memory.engine().stats();
    Ok(Json(Stats {
        turns: amounts.requests,
        chunks_blended: amounts.chunks,
        chunks_reused: amounts.reused_chunks,
        reuse_rate: (rate * 1000.0).round() / 1000.0,
        prefill_saved_tokens: amounts.reused_tokens,
        est_usd_saved: amounts.reused_tokens as f64 / 1e6 * server.options().usd_per_mtok,
        users,
        sessions: server.sessions().count(),
        metered: memory.texts().is_metered(),
        policy: Policy::of(held, &memory.kv().tiers().await, memory.model().info()),
        engine: EngineView { waiting, running, steps, prefilled_tokens, prefill_seconds },
    }))
}

impl Policy {
    fn of(chunks: usize, tiers: &[TierStats], model: &ModelInfo) -> Self {
        let hot = tiers.first();
        let token_bytes = (model.shape.token_numbers() * model.dtype.size()).max(1) as u64;
        let view = |tier: &TierStats| {
            let TierStats { chunks, bytes, tokens, budget } = *tier;
            TierView { chunks, tokens, bytes, budget_bytes: budget }
        };
        Self {
            chunks,
            hot_tokens: hot.and_then(|tier| tier.tokens),
            hot_budget: hot.and_then(|tier| tier.budget).map(|bytes| bytes / token_bytes),
            tiers: tiers.iter().map(view).collect(),
        }
    }
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new().routes(routes!(stats))
}
