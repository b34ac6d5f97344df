//! What a text is about, for models that run elsewhere.

use std::collections::HashSet;

use amem_core::{Recall, Record, RecordId, State as RecordState};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{filter, view};
use crate::http::{ApiError, Body, Caller, Result};
use crate::server::Server;
use crate::server::moment::{self, Moment, Said};
use crate::server::sessions::{InUse, SessionName};

/// Memories of one recall at most.
const MAX_K: usize = 1000;

/// What to recall.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct RecallRequest {
    /// Whose memory it is.
    user: Option<String>,
    /// What the memories are to be about.
    query: String,
    /// Memories at most, 1 to 1,000.
    k: Option<usize>,
    /// The same, under the reference system's name for it; `k` goes before it.
    max_turns: Option<usize>,
    /// The session that it is recalled in.
    session: Option<String>,
    /// Tokens of the working set at most.
    budget_tokens: Option<usize>,
    /// Only memories that pass this filter.
    #[schema(value_type = Option<Object>)]
    filter: Option<Value>,
    /// Only memories with at least this score.
    min_score: Option<f32>,
    /// The memories that counted at this moment, with the texts that they had then.
    as_of: Option<Moment>,
}

/// What was recalled.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RecallAnswer {
    user: String,
    query: String,
    session: Option<String>,
    /// What the query is about, best first, as far as the budget holds it.
    memories: Vec<Recalled>,
    /// The texts to put before a model, a line each. Without a session, those of `memories`. In a session, all that were
    /// recalled in it so far and still count, in the order in which they first were: a text that only grows, so that a
    /// cache of prefixes holds it.
    working_set: String,
    /// Its tokens, as the server's own model counts them.
    tokens: usize,
    /// Its texts.
    sources: Vec<String>,
    /// How many texts it has.
    n_turns: usize,
    /// Memories of the user that count.
    memory_active_turns: usize,
}

/// A memory that was recalled.
#[derive(Debug, Serialize, ToSchema)]
struct Recalled {
    id: String,
    text: String,
    /// How well it fits; comparable within one answer.
    score: f32,
    key: Option<String>,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    created_at: Said,
}

/// Finds the memories that a text is about.
///
/// In a session, they count as recalled in it: its next working set in the model's context holds them before others, and
/// they join the working set that this answers with. What stands in the model's context already stays as it is.
#[utoipa::path(post, path = "/v1/recall", tag = "memories", request_body = RecallRequest,
    responses(
        (status = 200, body = RecallAnswer),
        (status = 400, description = "an empty query, or a filter, number or moment that makes no sense"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "no such session"),
        (status = 413, description = "too large"),
        (status = 422, description = "not of this shape"),
        (status = 429, description = "too many sessions are in use"),
    ))]
pub(super) async fn recall(
    State(server): State<Server>,
    caller: Caller,
    Body(request): Body<RecallRequest>,
) -> Result<Json<RecallAnswer>> {
    let namespace = caller.namespace(request.user.as_deref())?;
    let memory = server.memory();
    let named = request.session.clone().map(SessionName::Given);
    let session = named.map(|name| server.session(&name, &namespace, request.budget_tokens)).transpose()?;
    let default = session.as_ref().and_then(InUse::max_turns).unwrap_or(server.options().k);
    let recall = request.read(default)?;
    let budget = request.budget_tokens.unwrap_or(usize::MAX);
    let found = match &session {
        Some(session) => session.lock().await.recall(recall).await?,
        None => memory.recall(&namespace, recall).await?,
    };
    let scores: Vec<(RecordId, f32)> = found.iter().map(|found| (found.record.id, found.score)).collect();
    let mut found: Vec<Record> = found.into_iter().map(|found| found.record).collect();
    let mut counter = Counter { server: &server, left: budget };
    let (mut fitting, mut sources) = (HashSet::new(), Vec::new());
    match &session {
        None => {
            for record in &found {
                if counter.fits(&record.text)? {
                    fitting.insert(record.id);
                    sources.push(record.text.clone());
                }
            }
        }
        Some(session) => {
            counter.left = budget.min(session.lock().await.budget_tokens());
            // Those that were recalled before come first. What does not fit joins when there is room.
            let told = session.told();
            let before = memory.get_many(&namespace, &told).await?.into_iter().flatten();
            let before = before.filter(|record| record.state == RecordState::Active);
            let mut standing: Vec<Record> = before.collect();
            standing.extend(found.iter().filter(|record| !told.contains(&record.id)).cloned());
            for record in standing {
                if counter.fits(&record.text)? {
                    fitting.insert(record.id);
                    session.tell(record.id);
                    sources.push(record.text);
                }
            }
        }
    }
    found.retain(|record| fitting.contains(&record.id));
    let mut working_set = sources.join("\n");
    let mut tokens = counter.tokens(&working_set)?;
    // Texts have about as many tokens together as each by itself, and sometimes more.
    while tokens > budget && sources.pop().is_some() {
        working_set = sources.join("\n");
        tokens = counter.tokens(&working_set)?;
    }
    let recalled = |record: Record| {
        let score = scores.iter().find(|(id, _)| *id == record.id).map_or(0.0, |(_, score)| *score);
        let (id, created_at) = (record.id.to_string(), record.created_at.into());
        let metadata = view::metadata(record.metadata);
        Recalled { id, text: record.text, score, key: record.key, metadata, created_at }
    };
    Ok(Json(RecallAnswer {
        user: namespace.as_str().to_owned(),
        query: request.query,
        session: session.as_ref().map(|session| session.name().to_string()),
        memories: found.into_iter().map(recalled).collect(),
        working_set,
        tokens,
        n_turns: sources.len(),
        sources,
        memory_active_turns: memory.count(&namespace).await?,
    }))
}

impl RecallRequest {
    fn read(&self, default: usize) -> Result<Recall> {
        let k = self.k.or(self.max_turns).unwrap_or(default);
        if !(1..=MAX_K).contains(&k) {
            return Err(ApiError::bad_request(format!("k must be from 1 to {MAX_K}")).param("k"));
        }
        let mut recall = Recall::new(&*self.query).k(k);
        recall.filter = self.filter.as_ref().map(filter::parse).transpose()?;
        recall.min_score = self.min_score;
        recall.as_of = moment::read(self.as_of.as_ref(), "as_of")?;
        Ok(recall)
    }
}

/// Counts tokens as the model does, and what is left of a budget.
struct Counter<'s> {
    server: &'s Server,
    left: usize,
}

impl Counter<'_> {
    fn tokens(&self, text: &str) -> Result<usize> {
        if text.is_empty() { Ok(0) } else { Ok(self.server.memory().model().chat().encode(text)?.len()) }
    }

    /// Takes a line from the budget, if it has room.
    fn fits(&mut self, text: &str) -> Result<bool> {
        let tokens = self.tokens(text)? + 1;
        let left = self.left.checked_sub(tokens);
        self.left = left.unwrap_or(self.left);
        Ok(left.is_some())
    }
}
