//! Changing and forgetting what is remembered.

use amem_core::{Error, State as RecordState};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::MemoryPaths;
use super::moment::Said;
use super::view::{Counts, id};
use crate::http::{ApiError, Body, Caller, Result, Segments};

/// What a memory is to say.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct UpdateRequest {
    /// Its new text.
    text: String,
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
    updated_at: Said,
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

/// Memories to forget.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ForgetRequest {
    /// Their ids.
    ids: Vec<String>,
}

/// Memories that were forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ForgottenMany {
    user: String,
    /// Their ids, in the order of the request.
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

/// Gives a memory another text; the old one stays in its history.
///
/// What was forgotten is not there any more (404). What another memory superseded, or whose time is over, is there and
/// cannot be changed (409): remember the text anew. The reference system's SDK raises its `AmemError` for both.
#[utoipa::path(patch, path = "/v1/memories/{user}/{id}", tag = "memories", request_body = UpdateRequest,
    params(("user" = String, Path, description = "whose memory it is"), ("id" = String, Path, description = "its id")),
    responses(
        (status = 200, body = Updated),
        (status = 400, description = "a text that says nothing, or that no context of the model can hold"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "no such memory, or it was forgotten"),
        (status = 409, description = "it no longer counts, or another memory says this already"),
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
    let record = match paths.memory.update(&namespace, id, &request.text).await {
        Err(Error::NotActive { state: "forgotten", id }) => return Err(Error::UnknownRecord { namespace, id }.into()),
        record => record?,
    };
    let (user, id) = (namespace.as_str().to_owned(), id.to_string());
    Ok(Json(Updated { user, id, updated: true, text: record.text, updated_at: record.updated_at.into() }))
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

/// Forgets memories, all of them or none. Forgetting one again changes nothing.
#[utoipa::path(post, path = "/v1/memories/{user}/forget", tag = "memories", request_body = ForgetRequest,
    params(("user" = String, Path, description = "whose memory it is")),
    responses(
        (status = 200, body = ForgottenMany),
        (status = 400, description = "no ids"),
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
    let most = paths.max_texts;
    match request.ids.len() {
        0 => return Err(ApiError::bad_request("ids is empty: give at least one id").param("ids")),
        count if count > most => {
            return Err(
                ApiError::too_large(format!("{count} ids are too many: give at most {most} at a time")).param("ids")
            );
        }
        _ => {}
    }
    let ids = request.ids.iter().map(|memory| id(memory, &namespace)).collect::<Result<Vec<_>>>()?;
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
