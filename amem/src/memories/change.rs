//! Changing and forgetting what is remembered.

use amem_core::{Change, Error, Metadata, Record, State as RecordState};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::MemoryPaths;
use super::moment::{Moment, Said};
use super::remember::{Entries, expiry};
use super::view::{Counts, id, metadata};
use crate::http::{ApiError, Body, Caller, Result, Segments};

/// What is to change of a memory. What is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct UpdateRequest {
    /// What it is to say.
    text: Option<String>,
    /// What it is to be about. `null`, or an empty text, takes its key away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    key: Option<Option<String>>,
    /// What the application is to keep with it, in place of all that it keeps now.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Option<Entries>>,
    /// From when on it no longer counts. `null` takes its end away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Moment>)]
    expires_at: Option<Option<Moment>>,
    /// After how many seconds it no longer counts, in place of `expires_at`.
    ttl_seconds: Option<f64>,
}

/// What is given, be it `null`: something else than nothing.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl UpdateRequest {
    fn read(self) -> Result<Change> {
        let Self { text, key, metadata, expires_at, ttl_seconds } = self;
        let mut change = Change::new();
        change.text = text;
        change.key = key.map(|key| key.filter(|key| !key.is_empty()));
        change.metadata =
            metadata.map(|entries| entries.map_or(Ok(Metadata::default()), |entries| entries.read())).transpose()?;
        change.expires_at = match (expires_at, ttl_seconds) {
            (None, None) => None,
            (at, ttl) => Some(expiry(at.flatten().as_ref(), ttl)?),
        };
        if change == Change::new() {
            return Err(ApiError::unprocessable(
                "give what is to change: text, key, metadata, expires_at or ttl_seconds",
            ));
        }
        Ok(change)
    }
}

/// A memory that was changed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Updated {
    user: String,
    id: String,
    /// Always true.
    updated: bool,
    /// What it says now.
    text: String,
    /// What it is about now, if anything.
    key: Option<String>,
    /// What the application keeps with it now.
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    /// When its text last changed.
    updated_at: Said,
    /// From when on it no longer counts.
    expires_at: Option<Said>,
}

/// A memory that was forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Forgotten {
    user: String,
    id: String,
    /// Always true.
    forgotten: bool,
    counts: Counts,
}

/// Memories to forget: by their ids, or by their key.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ForgetRequest {
    /// Their ids.
    ids: Option<Vec<String>>,
    /// Their key: all memories that have it are forgotten, those that others superseded included.
    key: Option<String>,
}

/// Memories that were forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ForgottenMany {
    user: String,
    /// Their ids, in the order of the request; those of a key in the order in which they were remembered.
    forgotten: Vec<String>,
    counts: Counts,
}

/// A user all of whose memories were deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Deleted {
    user: String,
    /// How many memories there were, in whatever state.
    deleted: usize,
}

/// Changes a memory: its text, the old one of which stays in its history, its key, its metadata, or when it ends.
///
/// Without another text, nothing has to be computed anew for it. A key that another memory has is refused (409).
///
/// What was forgotten is not there any more (404). What another memory superseded, or whose time is over, is there and
/// cannot be changed (409): remember the text anew. The reference system's SDK raises its `AmemError` for both.
#[utoipa::path(patch, path = "/v1/memories/{user}/{id}", tag = "memories", request_body = UpdateRequest,
    params(("user" = String, Path, description = "whose memory it is"), ("id" = String, Path, description = "its id")),
    responses(
        (status = 200, body = Updated),
        (status = 400, description = "a text that says nothing or that no context of the model can hold, or something beyond \
                                      its bounds"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "no such memory, or it was forgotten"),
        (status = 409, description = "it no longer counts, or another memory says this already or has this key"),
        (status = 413, description = "too large"),
        (status = 422, description = "not of this shape"),
        (status = 503, description = "the disk is full, or the memory is read-only"),
    ))]
pub(super) async fn update(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Segments((user, memory)): Segments<(String, String)>,
    Body(request): Body<UpdateRequest>,
) -> Result<Json<Updated>> {
    let namespace = caller.namespace(Some(&user))?;
    let id = id(&memory, &namespace)?;
    let record = match paths.memory.change(&namespace, id, request.read()?).await {
        Err(Error::NotActive { state: "forgotten", id }) => return Err(Error::UnknownRecord { namespace, id }.into()),
        record => record?,
    };
    let Record { text, key, metadata, updated_at, expires_at, .. } = record;
    Ok(Json(Updated {
        user: namespace.as_str().to_owned(),
        id: id.to_string(),
        updated: true,
        text,
        key,
        metadata: self::metadata(metadata),
        updated_at: updated_at.into(),
        expires_at: expires_at.map(Said::from),
    }))
}

/// Forgets a memory: all texts that it ever had, its key and its metadata are gone, and the KV of them.
///
/// What was forgotten before is not there any more (404).
#[utoipa::path(delete, path = "/v1/memories/{user}/{id}", tag = "memories",
    params(("user" = String, Path, description = "whose memory it is"), ("id" = String, Path, description = "its id")),
    responses(
        (status = 200, body = Forgotten),
        (status = 400, description = "no name of a user"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "no such memory, or it was forgotten before"),
        (status = 503, description = "the disk is full, or the memory is read-only"),
    ))]
pub(super) async fn forget(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Segments((user, memory)): Segments<(String, String)>,
) -> Result<Json<Forgotten>> {
    let namespace = caller.namespace(Some(&user))?;
    let id = id(&memory, &namespace)?;
    match paths.texts().get(&namespace, id).await {
        // Whether its KV is gone as well is not known. It is deleted with the next call if it is not.
        Ok(record) if matches!(record.state, RecordState::Forgotten { .. }) => {
            return Err(Error::UnknownRecord { namespace, id }.into());
        }
        // One that is damaged cannot be read, and can be forgotten.
        Ok(_) | Err(Error::Ledger(_)) => {}
        Err(error) => return Err(error.into()),
    }
    paths.memory.forget_many(&namespace, &[id]).await?;
    let counts = paths.texts().stats(&namespace).await?.into();
    let (user, id) = (namespace.as_str().to_owned(), id.to_string());
    Ok(Json(Forgotten { user, id, forgotten: true, counts }))
}

/// Forgets memories, all of them or none: those of some ids, or all that have a key, whatever became of them. Forgetting
/// one again, or a key that no memory has, changes nothing.
#[utoipa::path(post, path = "/v1/memories/{user}/forget", tag = "memories", request_body = ForgetRequest,
    params(("user" = String, Path, description = "whose memory it is")),
    responses(
        (status = 200, body = ForgottenMany),
        (status = 400, description = "no ids, or ids and a key"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "one of them is no memory of this user"),
        (status = 413, description = "too large, or too many ids"),
        (status = 422, description = "not of this shape"),
        (status = 503, description = "the disk is full, or the memory is read-only"),
    ))]
pub(super) async fn forget_many(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Segments(user): Segments<String>,
    Body(request): Body<ForgetRequest>,
) -> Result<Json<ForgottenMany>> {
    let namespace = caller.namespace(Some(&user))?;
    let ids = match (request.ids, request.key) {
        (Some(ids), None) => ids,
        (None, Some(key)) => {
            let forgotten = paths.memory.forget_key(&namespace, &key).await?;
            let counts = paths.texts().stats(&namespace).await?.into();
            let forgotten = forgotten.iter().map(|record| record.id.to_string()).collect();
            return Ok(Json(ForgottenMany { user: namespace.as_str().to_owned(), forgotten, counts }));
        }
        (Some(_), Some(_)) => return Err(ApiError::bad_request("give ids or a key, not both").param("key")),
        (None, None) => return Err(ApiError::unprocessable("give the ids of what to forget, or its key")),
    };
    let most = paths.max_texts;
    match ids.len() {
        0 => return Err(ApiError::bad_request("ids is empty: give at least one id").param("ids")),
        count if count > most => {
            return Err(
                ApiError::too_large(format!("{count} ids are too many: give at most {most} at a time")).param("ids")
            );
        }
        _ => {}
    }
    let ids = ids.iter().map(|memory| id(memory, &namespace)).collect::<Result<Vec<_>>>()?;
    paths.memory.forget_many(&namespace, &ids).await?;
    let counts = paths.texts().stats(&namespace).await?.into();
    let forgotten = ids.iter().map(ToString::to_string).collect();
    Ok(Json(ForgottenMany { user: namespace.as_str().to_owned(), forgotten, counts }))
}

/// Deletes all memories of a user, with their histories, their KV and the user's sessions.
#[utoipa::path(delete, path = "/v1/memories/{user}", tag = "memories",
    params(("user" = String, Path, description = "whose memory it is")),
    responses(
        (status = 200, body = Deleted),
        (status = 400, description = "no name of a user"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 503, description = "the disk is full, or the memory is read-only"),
    ))]
pub(super) async fn forget_all(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Segments(user): Segments<String>,
) -> Result<Json<Deleted>> {
    let namespace = caller.namespace(Some(&user))?;
    let deleted = paths.memory.delete_namespace(&namespace).await?;
    paths.sessions.end_all_of(&namespace);
    Ok(Json(Deleted { user: namespace.as_str().to_owned(), deleted }))
}
