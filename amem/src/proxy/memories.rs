//! Memory's own paths: remember, recall, list, update, forget.

use amem_core::{Listing, NewRecord, Outcome, Query, Recall, Record, RecordId, RecordStats, Timestamp};
use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Proxy;
use super::forward::budget;
use super::layout::estimated_tokens;
use crate::http::{ApiError, Body, Caller, Params, Result};

/// Texts to remember.
#[derive(Debug, Deserialize, ToSchema)]
struct RememberRequest {
    /// Whose memory it is.
    user: Option<String>,
    texts: Vec<String>,
    /// What each text is about: a text takes the place of the memory that has its key.
    keys: Option<Vec<Option<String>>>,
}

/// What became of the texts.
#[derive(Debug, Serialize, ToSchema)]
struct Remembered {
    user: String,
    /// The id of each text's memory, in the order of the texts.
    added: Vec<String>,
    /// What became of each, in the same order.
    results: Vec<Became>,
    active: usize,
    counts: Counts,
}

/// What became of a text.
#[derive(Debug, Serialize, ToSchema)]
struct Became {
    id: String,
    /// `added`, `duplicate` or `superseded`.
    outcome: &'static str,
    /// The memory whose place it took.
    superseded: Option<String>,
}

/// Memories by their states.
#[derive(Debug, Serialize, ToSchema)]
struct Counts {
    active: usize,
    superseded: usize,
    expired: usize,
    forgotten: usize,
}

impl From<RecordStats> for Counts {
    fn from(stats: RecordStats) -> Self {
        let RecordStats { active, superseded, expired, forgotten, .. } = stats;
        Self { active, superseded, expired, forgotten }
    }
}

/// A memory.
#[derive(Debug, Serialize, ToSchema)]
struct Memory {
    id: String,
    text: String,
    key: Option<String>,
    /// How well it fits what was asked, where something was.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
}

impl Memory {
    fn of(record: Record, score: Option<f32>) -> Self {
        Self { id: record.id.to_string(), text: record.text, key: record.key, score }
    }
}

/// Remembers texts, all of them or none.
#[utoipa::path(post, path = "/v1/memories", tag = "memories", request_body = RememberRequest, responses(
    (status = 200, body = Remembered), (status = 400, description = "There is no text, or a key too many"),
    (status = 401, description = "A key is missing"), (status = 403, description = "This is another user's memory"),
    (status = 413, description = "There are too many texts"), (status = 422, description = "The body has another shape")))]
async fn remember(
    State(proxy): State<Proxy>,
    caller: Caller,
    Body(request): Body<RememberRequest>,
) -> Result<Json<Remembered>> {
    let RememberRequest { user, texts, keys } = request;
    let namespace = caller.namespace(user.as_deref())?;
    let most = proxy.inner.options.max_texts;
    if texts.is_empty() {
        return Err(ApiError::bad_request("texts is empty: give at least one text").param("texts"));
    }
    if texts.len() > most {
        return Err(
            ApiError::too_large(format!("texts has more than {most} texts: send fewer at a time")).param("texts")
        );
    }
    let keys = keys.unwrap_or_else(|| vec![None; texts.len()]);
    if keys.len() != texts.len() {
        return Err(ApiError::bad_request("keys must have one key, or null, for each text").param("keys"));
    }
    let new = texts.into_iter().zip(keys).map(|(text, key)| {
        let record = NewRecord::new(text);
        key.into_iter().fold(record, NewRecord::key)
    });
    let added = proxy.memory().remember_all(&namespace, new).await?;
    let results: Vec<Became> = added
        .iter()
        .map(|added| {
            let (outcome, superseded) = match added.outcome {
                Outcome::Duplicate => ("duplicate", None),
                Outcome::Superseded(id) => ("superseded", Some(id.to_string())),
                _ => ("added", None),
            };
            Became { id: added.record.id.to_string(), outcome, superseded }
        })
        .collect();
    let counts = Counts::from(proxy.memory().stats(&namespace).await?);
    let added = results.iter().map(|became| became.id.clone()).collect();
    Ok(Json(Remembered { user: namespace.as_str().to_owned(), added, results, active: counts.active, counts }))
}

/// Which memories.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListParams {
    /// Memories at most; all of them if left out.
    limit: Option<usize>,
    /// Only those behind this one: `next` of the page before.
    after: Option<String>,
}

/// Memories in the order in which they were added.
#[derive(Debug, Serialize, ToSchema)]
struct Listed {
    user: String,
    memories: Vec<Memory>,
    counts: Counts,
    /// Where the next page begins.
    next: Option<String>,
}

/// The memories of a user that count.
#[utoipa::path(get, path = "/v1/memories/{user}", tag = "memories", params(("user" = String, Path), ListParams), responses(
    (status = 200, body = Listed), (status = 400, description = "A value is out of bounds"),
    (status = 401, description = "A key is missing"), (status = 403, description = "This is another user's memory"),
    (status = 404, description = "There is no memory of the id in after")))]
async fn list(
    State(proxy): State<Proxy>,
    caller: Caller,
    Path(user): Path<String>,
    Params(params): Params<ListParams>,
) -> Result<Json<Listed>> {
    let namespace = caller.namespace(Some(&user))?;
    let mut left = params.limit;
    let mut listing = Listing::new(Query::At(Timestamp::now())).limit(Listing::MAX_LIMIT);
    listing.after = params.after.as_deref().map(str::parse).transpose()?;
    let mut memories = Vec::new();
    let next = loop {
        if let Some(left) = left {
            listing.limit = left.min(Listing::MAX_LIMIT);
        }
        let page = proxy.memory().page(&namespace, &listing).await?;
        left = left.map(|left| left.saturating_sub(page.records.len()));
        memories.extend(page.records.into_iter().map(|record| Memory::of(record, None)));
        listing.after = page.next;
        if page.next.is_none() || left == Some(0) {
            break page.next;
        }
    };
    let counts = proxy.memory().stats(&namespace).await?.into();
    Ok(Json(Listed { user, memories, counts, next: next.map(|id| id.to_string()) }))
}

/// A memory's new text.
#[derive(Debug, Deserialize, ToSchema)]
struct UpdateRequest {
    text: String,
}

/// A memory that was changed.
#[derive(Debug, Serialize, ToSchema)]
struct Updated {
    user: String,
    id: String,
    updated: bool,
    text: String,
}

/// Gives a memory another text.
#[utoipa::path(patch, path = "/v1/memories/{user}/{id}", tag = "memories", request_body = UpdateRequest,
    params(("user" = String, Path), ("id" = String, Path)), responses(
    (status = 200, body = Updated), (status = 400, description = "The text is empty, or this is no id"),
    (status = 401, description = "A key is missing"), (status = 403, description = "This is another user's memory"),
    (status = 404, description = "There is no such memory"), (status = 409, description = "It counts no more"),
    (status = 422, description = "The body has another shape")))]
async fn update(
    State(proxy): State<Proxy>,
    caller: Caller,
    Path((user, id)): Path<(String, String)>,
    Body(request): Body<UpdateRequest>,
) -> Result<Json<Updated>> {
    let namespace = caller.namespace(Some(&user))?;
    let record = proxy.memory().update(&namespace, id.parse::<RecordId>()?, &request.text).await?;
    Ok(Json(Updated { user, id, updated: true, text: record.text }))
}

/// A memory that was forgotten.
#[derive(Debug, Serialize, ToSchema)]
struct Forgotten {
    user: String,
    id: String,
    forgotten: bool,
    counts: Counts,
}

/// Forgets a memory: no request that begins after this tells it.
#[utoipa::path(delete, path = "/v1/memories/{user}/{id}", tag = "memories",
    params(("user" = String, Path), ("id" = String, Path)), responses(
    (status = 200, body = Forgotten), (status = 400, description = "This is no id"),
    (status = 401, description = "A key is missing"), (status = 403, description = "This is another user's memory"),
    (status = 404, description = "There is no such memory")))]
async fn forget(
    State(proxy): State<Proxy>,
    caller: Caller,
    Path((user, id)): Path<(String, String)>,
) -> Result<Json<Forgotten>> {
    let namespace = caller.namespace(Some(&user))?;
    proxy.memory().forget(&namespace, id.parse::<RecordId>()?).await?;
    let counts = proxy.memory().stats(&namespace).await?.into();
    Ok(Json(Forgotten { user, id, forgotten: true, counts }))
}

/// What is to be recalled.
#[derive(Debug, Deserialize, ToSchema)]
struct RecallRequest {
    user: Option<String>,
    query: String,
    /// Memories at most.
    k: Option<usize>,
    /// Tokens that they may have together, about.
    budget_tokens: Option<usize>,
}

/// What is remembered about a query.
#[derive(Debug, Serialize, ToSchema)]
struct Recalled {
    user: String,
    query: String,
    /// Best first.
    memories: Vec<Memory>,
    /// Their texts, one a line, as a model may be told them.
    working_set: String,
    /// Their tokens, about.
    tokens: u64,
    /// Their ids.
    sources: Vec<String>,
}

/// The memories that a query is about, found by its words.
#[utoipa::path(post, path = "/v1/recall", tag = "memories", request_body = RecallRequest, responses(
    (status = 200, body = Recalled), (status = 400, description = "The query is empty, or a value is out of bounds"),
    (status = 401, description = "A key is missing"), (status = 403, description = "This is another user's memory"),
    (status = 422, description = "The body has another shape")))]
async fn recall(
    State(proxy): State<Proxy>,
    caller: Caller,
    Body(request): Body<RecallRequest>,
) -> Result<Json<Recalled>> {
    let RecallRequest { user, query, k, budget_tokens } = request;
    let namespace = caller.namespace(user.as_deref())?;
    let budget = budget(proxy.budget(), k, None, budget_tokens)?;
    let found = proxy.memory().recall(&namespace, Recall::new(&*query).k(budget.k)).await?;
    let (mut memories, mut tokens) = (Vec::new(), 0);
    for found in found {
        let with = tokens + estimated_tokens(found.record.text.len());
        if with <= budget.tokens as u64 {
            tokens = with;
            memories.push(Memory::of(found.record, Some(found.score)));
        }
    }
    let working_set = memories.iter().map(|memory| memory.text.as_str()).collect::<Vec<_>>().join("\n");
    let sources = memories.iter().map(|memory| memory.id.clone()).collect();
    Ok(Json(Recalled { user: namespace.as_str().to_owned(), query, memories, working_set, tokens, sources }))
}

/// Users and how many memories each has.
#[derive(Debug, Serialize, ToSchema)]
struct Users {
    users: Vec<User>,
    count: usize,
}

/// A user.
#[derive(Debug, Serialize, ToSchema)]
struct User {
    user: String,
    active_memories: usize,
    /// Whether its KV is at hand: a proxy has none.
    loaded: bool,
}

/// The users that the caller may ask about.
#[utoipa::path(get, path = "/v1/users", tag = "memories", responses(
    (status = 200, body = Users), (status = 401, description = "A key is missing")))]
async fn users(State(proxy): State<Proxy>, caller: Caller) -> Result<Json<Users>> {
    let namespaces = match caller.only()? {
        Some(own) => vec![own.clone()],
        None => proxy.memory().namespaces().await?,
    };
    let mut users = Vec::with_capacity(namespaces.len());
    for namespace in namespaces {
        let active_memories = proxy.memory().count(&namespace).await?;
        users.push(User { user: namespace.as_str().to_owned(), active_memories, loaded: false });
    }
    Ok(Json(Users { count: users.len(), users }))
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Proxy> {
    OpenApiRouter::new()
        .routes(routes!(remember))
        .routes(routes!(list))
        .routes(routes!(update, forget))
        .routes(routes!(recall))
        .routes(routes!(users))
}
