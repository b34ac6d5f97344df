//! `/v1/usage`: what each user used, as the ledger counts it.

use std::collections::BTreeMap;

use amem_core::{Amounts, Namespace, UsageQuery, UsageTotal};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::MemoryPaths;
use super::moment::{self, Moment, seconds};
use crate::http::{ApiError, Caller, Params, Result};

/// Which usage is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageParams {
    /// Of this user only.
    user: Option<String>,
    /// From this moment on: RFC 3339, a date, or seconds since 1970; in UTC unless it says otherwise.
    #[param(value_type = Option<String>)]
    since: Option<Moment>,
    /// Before this moment.
    #[param(value_type = Option<String>)]
    until: Option<Moment>,
    /// `json` or `csv`.
    #[param(inline)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Json,
    Csv,
}

/// What was used.
#[derive(Debug, Serialize, ToSchema)]
struct UsageAnswer {
    per_user: BTreeMap<String, Row>,
    /// What users used whose memories were all deleted since, together: their names are forgotten, what they used is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_users: Option<Row>,
    /// All of it.
    totals: Used,
    instance: Instance,
    window: Window,
    /// US dollars that a million tokens of input cost elsewhere; `null` where no one price holds, because each model has
    /// its own.
    usd_per_mtok: Option<f64>,
    /// Whether usage is counted at present.
    metered: bool,
}

/// What a user used.
#[derive(Debug, Serialize, ToSchema)]
struct Row {
    #[serde(flatten)]
    used: Used,
    /// When the first of it was: seconds since 1970.
    first_ts: f64,
    /// When the last of it was.
    last_ts: f64,
}

/// Amounts, under the names that the reference system has for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
struct Used {
    /// Questions that were answered, or given up by who asked.
    requests: u64,
    /// Memories that were added, changed or forgotten.
    memory_ops: u64,
    /// Tokens whose KV was used as it was, so that they were not prefilled.
    prefill_tokens_saved: u64,
    /// Tokens that stood before the answers: those that were saved, repaired, and prefilled.
    tokens_in: u64,
    /// Tokens that were generated.
    tokens_out: u64,
    /// Memories that were put into a context.
    chunks_blended: u64,
    /// Those among them whose KV was held.
    chunks_reused: u64,
    /// What the tokens that were saved would have cost elsewhere, in US dollars; `null` where no one price holds.
    est_usd_saved: Option<f64>,
}

impl Used {
    fn of(amounts: &Amounts, usd_per_mtok: Option<f64>) -> Self {
        Self {
            requests: amounts.requests,
            memory_ops: amounts.memory_ops,
            prefill_tokens_saved: amounts.reused_tokens,
            tokens_in: amounts.reused_tokens + amounts.repaired_tokens + amounts.prefilled_tokens,
            tokens_out: amounts.generated_tokens,
            chunks_blended: amounts.chunks,
            chunks_reused: amounts.reused_chunks,
            est_usd_saved: usd_per_mtok.map(|price| amounts.reused_tokens as f64 / 1e6 * price),
        }
    }
}

/// What the server as a whole used.
#[derive(Debug, Serialize, ToSchema)]
struct Instance {
    /// Always `null`: how many tokens of KV are held from moment to moment is not recorded, so that their sum over time
    /// would be a guess. `/v1/stats` says how many there are now.
    kv_token_hours: Option<f64>,
}

/// The time that was asked about, in seconds since 1970.
#[derive(Debug, Serialize, ToSchema)]
struct Window {
    since: Option<f64>,
    until: Option<f64>,
}

/// What was used, by user. It is durable, and a key that is bound to a user sees that user's only.
#[utoipa::path(get, path = "/v1/usage", tag = "operations", params(UsageParams),
    responses(
        (status = 200, content((UsageAnswer = "application/json"), (String = "text/csv"))),
        (status = 400, description = "a moment that is none, or nothing says who is asking"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's usage"),
        (status = 422, description = "not of this shape"),
    ))]
pub(super) async fn usage(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Params(params): Params<UsageParams>,
) -> Result<Response> {
    let namespace = whose(&caller, params.user.as_deref())?;
    let since = moment::read(params.since.as_ref(), "since")?;
    let until = moment::read(params.until.as_ref(), "until")?;
    let mut query = UsageQuery::all();
    (query.namespace, query.since, query.until) = (namespace, since, until);
    let totals = paths.texts().usage(&query).await?;
    let price = paths.usd_per_mtok;
    let row = |total: &UsageTotal| Row {
        used: Used::of(&total.amounts, price),
        first_ts: seconds(total.first),
        last_ts: seconds(total.last),
    };
    let named = |total: &UsageTotal| Some((total.namespace.as_ref()?.as_str().to_owned(), row(total)));
    let answer = UsageAnswer {
        per_user: totals.iter().filter_map(named).collect(),
        deleted_users: totals.iter().find(|total| total.namespace.is_none()).map(row),
        totals: Used::of(&totals.iter().map(|total| total.amounts).sum(), price),
        instance: Instance { kv_token_hours: None },
        window: Window { since: since.map(seconds), until: until.map(seconds) },
        usd_per_mtok: price,
        metered: paths.texts().is_metered(),
    };
    match params.format.unwrap_or_default() {
        Format::Json => Ok(Json(answer).into_response()),
        Format::Csv => csv(&answer),
    }
}

/// Whom a caller asks about; `None` for all users.
pub(crate) fn whose(caller: &Caller, named: Option<&str>) -> Result<Option<Namespace>> {
    match named {
        Some(user) => caller.namespace(Some(user)).map(Some),
        None => caller.only().map(|own| own.cloned()),
    }
}

/// One line for each user; the user of what deleted users used is empty, which is nobody's name.
fn csv(answer: &UsageAnswer) -> Result<Response> {
    const NAMES: [&str; 11] = [
        "user",
        "requests",
        "memory_ops",
        "prefill_tokens_saved",
        "tokens_in",
        "tokens_out",
        "chunks_blended",
        "chunks_reused",
        "est_usd_saved",
        "first_ts",
        "last_ts",
    ];
    let mut lines = csv::Writer::from_writer(Vec::new());
    let wrong = |error: &dyn std::fmt::Display| ApiError::internal(error);
    lines.write_record(NAMES).map_err(|error| wrong(&error))?;
    let deleted = answer.deleted_users.iter().map(|row| ("", row));
    for (user, row) in deleted.chain(answer.per_user.iter().map(|(user, row)| (user.as_str(), row))) {
        let used = &row.used;
        let counts = [
            used.requests,
            used.memory_ops,
            used.prefill_tokens_saved,
            used.tokens_in,
            used.tokens_out,
            used.chunks_blended,
            used.chunks_reused,
        ];
        let saved = used.est_usd_saved.map_or_else(String::new, |dollars| dollars.to_string());
        let rest = [saved, row.first_ts.to_string(), row.last_ts.to_string()];
        let counts = counts.iter().map(ToString::to_string);
        lines.write_record([user.to_owned()].into_iter().chain(counts).chain(rest)).map_err(|error| wrong(&error))?;
    }
    let bytes = lines.into_inner().map_err(|error| wrong(&error))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8")),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=amem_usage.csv")),
    ];
    Ok((headers, bytes).into_response())
}
