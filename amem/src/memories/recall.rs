//! What a text is about, for models that run elsewhere.

use std::collections::HashSet;

use amem_core::{Recall, Recollection, Record, RecordId, State as RecordState};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::moment::{self, Moment, Said};
use super::{AnyMemory, MemoryPaths, filter, view};
use crate::http::{ApiError, Body, Caller, Result};

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
    /// The session that it is recalled in, where a local model answers.
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
    /// Its tokens, as the server's own model counts them; an estimate where it has none.
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
        (status = 400, description = "an empty query, a filter, number or moment that makes no sense, or a session where \
            there is no local model"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "no such session"),
        (status = 413, description = "too large"),
        (status = 422, description = "not of this shape"),
        (status = 429, description = "too many sessions are in use"),
    ))]
pub(super) async fn recall(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Body(request): Body<RecallRequest>,
) -> Result<Json<RecallAnswer>> {
    let namespace = caller.namespace(request.user.as_deref())?;
    let session = match &request.session {
        None => None,
        Some(name) => Some(paths.sessions.working_set(name, &namespace, request.budget_tokens)?),
    };
    let recall = request.read(session.as_ref().and_then(|session| session.max_turns()).unwrap_or(paths.k))?;
    let (found, before, budget) = match &session {
        None => {
            let budget = request.budget_tokens.or(paths.budget_tokens).unwrap_or(usize::MAX);
            (paths.memory.recall(&namespace, recall).await?, Vec::new(), budget)
        }
        Some(session) => {
            let (found, most) = session.recall(recall).await?;
            let before = paths.texts().get_many(&namespace, &session.told()).await?;
            (found, before, request.budget_tokens.unwrap_or(most).min(most))
        }
    };
    let before: Vec<Record> =
        before.into_iter().flatten().filter(|record| record.state == RecordState::Active).collect();
    let known: HashSet<RecordId> = before.iter().map(|record| record.id).collect();
    let new = found.iter().map(|found| &found.record).filter(|record| !known.contains(&record.id));
    let candidates: Vec<Record> = before.iter().chain(new).cloned().collect();
    let memory = paths.memory.clone();
    // Making tokens of all of them takes a while, which others do not wait for.
    let within = tokio::task::spawn_blocking(move || Texts::within(&memory, candidates, budget)).await;
    let working_set = within.map_err(|error| ApiError::internal(&error))??;
    let standing: HashSet<RecordId> = working_set.records.iter().map(|record| record.id).collect();
    if let Some(session) = &session {
        session.tell(&working_set.records.iter().map(|record| record.id).collect::<Vec<_>>());
    }
    let sources: Vec<String> = working_set.records.into_iter().map(|record| record.text).collect();
    let (working_set, tokens) = (working_set.text, working_set.tokens);
    Ok(Json(RecallAnswer {
        user: namespace.as_str().to_owned(),
        query: request.query,
        session: session.as_ref().map(|session| session.session()),
        memories: found.into_iter().filter(|found| standing.contains(&found.record.id)).map(Recalled::from).collect(),
        working_set,
        tokens,
        n_turns: sources.len(),
        sources,
        memory_active_turns: paths.texts().count(&namespace).await?,
    }))
}

impl From<Recollection> for Recalled {
    fn from(found: Recollection) -> Self {
        let Recollection { record, score, .. } = found;
        let (id, created_at) = (record.id.to_string(), record.created_at.into());
        let metadata = view::metadata(record.metadata);
        Self { id, text: record.text, score, key: record.key, metadata, created_at }
    }
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

/// Texts to put before a model, a line each.
struct Texts {
    records: Vec<Record>,
    text: String,
    tokens: usize,
}

impl Texts {
    /// The records that have room within a number of tokens. What has no room is passed over for what is smaller.
    fn within(memory: &AnyMemory, candidates: Vec<Record>, budget: usize) -> Result<Self> {
        let (mut records, mut left) = (Vec::<Record>::new(), budget);
        for record in candidates {
            let line_break = usize::from(!records.is_empty());
            if let Some(less) = left.checked_sub(memory.tokens(&record.text)? + line_break) {
                left = less;
                records.push(record);
            }
        }
        loop {
            let text = records.iter().map(|record| &*record.text).collect::<Vec<_>>().join("\n");
            let tokens = memory.tokens(&text)?;
            // Texts have about as many tokens together as each by itself, but nothing promises that.
            if tokens <= budget || records.pop().is_none() {
                return Ok(Self { records, text, tokens });
            }
        }
    }
}
