//! What whoever runs the proxy looks at: health, stats, usage.

use std::collections::BTreeMap;

use amem_core::{Amounts, Timestamp, UsageQuery, UsageTotal};
use axum::Json;
use axum::extract::State;
use jiff::Timestamp as Moment;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Proxy, Spent};
use crate::http::{ApiError, Caller, Params, Result};

/// How the proxy is.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    status: &'static str,
    mode: &'static str,
    /// The default upstream.
    engine: String,
    auth: &'static str,
    local_model: bool,
}

/// Whether the proxy is alive. It says nothing of its upstreams.
#[utoipa::path(get, path = "/health", tag = "operations", responses((status = 200, body = Health)))]
async fn health(State(proxy): State<Proxy>) -> Result<Json<Health>> {
    let auth = if proxy.inner.identity.is_on() { "on (header: X-Amem-Key)" } else { "off" };
    let engine = proxy.inner.upstreams.default()?.name.clone();
    Ok(Json(Health { status: "ok", mode: "proxy", engine, auth, local_model: false }))
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
    let only = caller.only()?.cloned();
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

/// Which usage.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct UsageParams {
    /// Whose.
    user: Option<String>,
    /// From this moment on: seconds since 1970, or ISO 8601.
    since: Option<String>,
    /// Before this moment.
    until: Option<String>,
}

/// What was used.
#[derive(Debug, Serialize, ToSchema)]
struct Usage {
    per_user: BTreeMap<String, Used>,
    totals: Used,
    window: Window,
}

/// The window that was asked about, in seconds since 1970.
#[derive(Debug, Serialize, ToSchema)]
struct Window {
    since: Option<f64>,
    until: Option<f64>,
}

/// What a user used.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Used {
    requests: u64,
    memory_ops: u64,
    /// Tokens of prompts that prefix caches held.
    prefill_tokens_saved: u64,
    /// All tokens of prompts.
    tokens_in: u64,
    tokens_out: u64,
    first_ts: Option<f64>,
    last_ts: Option<f64>,
}

impl Used {
    fn add(&mut self, total: &UsageTotal) {
        let Amounts { requests, memory_ops, reused_tokens, prefilled_tokens, generated_tokens, .. } = total.amounts;
        self.requests += requests;
        self.memory_ops += memory_ops;
        self.prefill_tokens_saved += reused_tokens;
        self.tokens_in += reused_tokens + prefilled_tokens;
        self.tokens_out += generated_tokens;
        let (first, last) = (seconds(total.first), seconds(total.last));
        self.first_ts = Some(self.first_ts.map_or(first, |known| known.min(first)));
        self.last_ts = Some(self.last_ts.map_or(last, |known| known.max(last)));
    }
}

fn seconds(moment: Timestamp) -> f64 {
    moment.0 as f64 / 1e3
}

/// A moment as clients write it.
fn moment(name: &'static str, text: Option<&str>) -> Result<Option<Timestamp>> {
    let Some(text) = text else { return Ok(None) };
    let seconds = text.parse::<f64>().ok().filter(|seconds| seconds.abs() < 1e12);
    let milliseconds = match seconds {
        Some(seconds) => Some((seconds * 1e3) as i64),
        None => text.parse::<Moment>().ok().map(Moment::as_millisecond),
    };
    let wrong =
        || ApiError::bad_request(format!("{name} must be seconds since 1970 or ISO 8601 with a zone")).param(name);
    milliseconds.map(|ms| Some(Timestamp(ms))).ok_or_else(wrong)
}

/// What was used, by user. It is durable.
#[utoipa::path(get, path = "/v1/usage", tag = "operations", params(UsageParams), responses(
    (status = 200, body = Usage), (status = 400, description = "No moment, or no user"),
    (status = 401, description = "A key is missing"), (status = 403, description = "This is another user's")))]
async fn usage(State(proxy): State<Proxy>, caller: Caller, Params(params): Params<UsageParams>) -> Result<Json<Usage>> {
    let mut query = UsageQuery::all();
    query.namespace = match &params.user {
        Some(user) => Some(caller.namespace(Some(user))?),
        None => caller.only()?.cloned(),
    };
    query.since = moment("since", params.since.as_deref())?;
    query.until = moment("until", params.until.as_deref())?;
    let (mut per_user, mut totals) = (BTreeMap::<String, Used>::new(), Used::default());
    for total in proxy.memory().usage(&query).await? {
        // What deleted users used counts, under no name.
        let name = total.namespace.as_ref().map_or("", |namespace| namespace.as_str());
        per_user.entry(name.to_owned()).or_default().add(&total);
        totals.add(&total);
    }
    let window = Window { since: query.since.map(seconds), until: query.until.map(seconds) };
    Ok(Json(Usage { per_user, totals, window }))
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Proxy> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(stats)).routes(routes!(usage))
}
