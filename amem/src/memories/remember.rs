//! Remembering.

use std::time::Duration;

use amem_core::{Metadata, NewRecord, Timestamp};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::MemoryPaths;
use super::moment::{self, Moment};
use super::view::{Counts, OutcomeView, plain};
use crate::http::{ApiError, Body, Caller, Result};

/// Texts to remember.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct RememberRequest {
    /// Whose memory it is.
    user: Option<String>,
    /// The texts.
    texts: OneOrMany<String>,
    /// What each text is about: a text takes the place of the memory that has its key. `null`, and as in the reference
    /// system an empty text, is no key.
    keys: Option<OneOrMany<Option<String>>>,
    /// What the application keeps with the texts: one object of names and plain values for all of them, or one for each.
    metadata: Option<OneOrMany<Option<Entries>>>,
    /// When the texts were first said, if not now.
    created_at: Option<Moment>,
    /// From when on the texts no longer count.
    expires_at: Option<Moment>,
    /// After how many seconds they no longer count, in place of `expires_at`.
    ttl_seconds: Option<f64>,
}

/// Names and plain values: texts, numbers, true, false, null.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub(super) struct Entries(Map<String, Value>);

/// One value, or one for each text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a value of the right type, or a list of them")]
enum OneOrMany<T> {
    /// One for each text.
    Many(Vec<T>),
    /// One.
    One(T),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::Many(all) => all,
            Self::One(one) => vec![one],
        }
    }
}

/// What became of the texts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Remembered {
    user: String,
    /// The id of each text's memory, in the order of the texts: that of the memory that stood already for one that was
    /// remembered before.
    added: Vec<String>,
    /// The same, under the name that the reference system's `serve` has for it.
    ids: Vec<String>,
    /// What became of each text, in the order of the texts.
    outcomes: Vec<OutcomeView>,
    /// Memories that count now.
    active: usize,
    counts: Counts,
}

impl RememberRequest {
    /// The records to add, in the order of the texts.
    fn read(self, most: usize) -> Result<Vec<NewRecord>> {
        let texts = self.texts.into_vec();
        if texts.is_empty() {
            return Err(ApiError::bad_request("texts is empty: give at least one text").param("texts"));
        }
        if texts.len() > most {
            let message = format!("{} texts are too many: give at most {most} at a time", texts.len());
            return Err(ApiError::too_large(message).param("texts"));
        }
        let keys = match self.keys.map(OneOrMany::into_vec) {
            None => vec![None; texts.len()],
            Some(keys) => same_length(keys, texts.len(), "keys")?,
        };
        let metadata = match self.metadata {
            None => vec![None; texts.len()],
            Some(OneOrMany::One(one)) => vec![one; texts.len()],
            Some(OneOrMany::Many(many)) => same_length(many, texts.len(), "metadata")?,
        };
        let created_at = moment::read(self.created_at.as_ref(), "created_at")?;
        let expires_at = expiry(self.expires_at.as_ref(), self.ttl_seconds)?;
        let new = texts.into_iter().zip(keys).zip(metadata).enumerate().map(|(index, ((text, key), metadata))| {
            let mut new = NewRecord::new(text);
            new.key = key.filter(|key| !key.is_empty());
            new.metadata = metadata.unwrap_or_default().read()?;
            (new.created_at, new.expires_at) = (created_at, expires_at);
            match new.check() {
                Ok(_) => Ok(new),
                Err(error) => Err(ApiError::bad_request(format!("texts[{index}]: {error}")).param("texts")),
            }
        });
        new.collect()
    }
}

fn same_length<T>(all: Vec<T>, length: usize, name: &str) -> Result<Vec<T>> {
    if all.len() == length {
        return Ok(all);
    }
    let message = format!("{name} has {} entries for {length} texts: give one for each", all.len());
    Err(ApiError::bad_request(message).param(name))
}

impl Entries {
    pub(super) fn read(&self) -> Result<Metadata> {
        let entry = |(name, value): (&String, &Value)| Ok((name.clone(), plain(value, &format!("metadata.{name}"))?));
        self.0.iter().map(entry).collect::<Result<Vec<_>>>().map(Metadata::from_iter)
    }
}

pub(super) fn expiry(expires_at: Option<&Moment>, ttl_seconds: Option<f64>) -> Result<Option<Timestamp>> {
    match (expires_at, ttl_seconds) {
        (Some(_), Some(_)) => {
            Err(ApiError::bad_request("give expires_at or ttl_seconds, not both").param("ttl_seconds"))
        }
        (expires_at, None) => moment::read(expires_at, "expires_at"),
        (None, Some(seconds)) => match Duration::try_from_secs_f64(seconds) {
            Ok(time) if !time.is_zero() => Ok(Some(Timestamp::now().after(time))),
            _ => Err(ApiError::bad_request("ttl_seconds must be more than 0").param("ttl_seconds")),
        },
    }
}

/// Remembers texts, all of them or none.
///
/// A text that a memory says already, exactly and under the same key, is not stored twice. That memory gets the expiry and
/// the metadata that are given here, if any are; what is not given stays. With a `created_at` that is not after the moment
/// when it got its text, it stays as it is.
#[utoipa::path(post, path = "/v1/memories", tag = "memories", request_body = RememberRequest,
    responses(
        (status = 200, body = Remembered),
        (status = 400, description = "no texts, blank ones, or something beyond its bounds"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 413, description = "too large, or too many texts"),
        (status = 422, description = "not of this shape"),
        (status = 503, description = "the disk is full, or the memory is read-only"),
    ))]
pub(super) async fn remember(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Body(request): Body<RememberRequest>,
) -> Result<Json<Remembered>> {
    let namespace = caller.namespace(request.user.as_deref())?;
    let new = request.read(paths.max_texts)?;
    let added = paths.memory.remember_all(&namespace, new).await?;
    let counts = Counts::from(paths.texts().stats(&namespace).await?);
    let outcomes: Vec<OutcomeView> = added.iter().map(OutcomeView::from).collect();
    let ids: Vec<String> = outcomes.iter().map(|outcome| outcome.id.clone()).collect();
    let (user, active) = (namespace.as_str().to_owned(), counts.active);
    Ok(Json(Remembered { user, added: ids.clone(), ids, outcomes, active, counts }))
}
