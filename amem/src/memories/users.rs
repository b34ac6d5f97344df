//! `/v1/users`: who has memories.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::MemoryPaths;
use crate::http::{ApiError, Caller, Params, Result};

/// Which users are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UserParams {
    /// Users at most; all of them without it.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// Who has memories, in order of their names.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Users {
    users: Vec<User>,
    /// How many users there are in all.
    count: usize,
    /// The `cursor` of the next page; `null` after the last.
    next: Option<String>,
}

/// A user.
#[derive(Debug, Serialize, ToSchema)]
struct User {
    user: String,
    /// Memories that count now. None are left of a user all of whose memories were forgotten one by one.
    active_memories: usize,
    /// Whether they are held in RAM, because they were asked about lately.
    loaded: bool,
}

/// Lists the users who have memories, in whatever state: for whoever may act for all of them.
#[utoipa::path(get, path = "/v1/users", tag = "operations", params(UserParams),
    responses(
        (status = 200, body = Users),
        (status = 400, description = "a limit of 0, or nothing says who is asking"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "who asks may act for one user only"),
        (status = 422, description = "not of this shape"),
    ))]
pub(super) async fn users(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Params(params): Params<UserParams>,
) -> Result<Json<Users>> {
    if caller.only()?.is_some() {
        return Err(ApiError::forbidden("this is for whoever may act for all users"));
    }
    if params.limit == Some(0) {
        return Err(ApiError::bad_request("limit must be at least 1").param("limit"));
    }
    let names = paths.texts().namespaces().await?;
    let count = names.len();
    let first = params.cursor.map_or(0, |cursor| names.partition_point(|name| name.as_str() <= cursor.as_str()));
    let last = first.saturating_add(params.limit.unwrap_or(count)).min(count);
    let mut users = Vec::with_capacity(last - first);
    for name in &names[first..last] {
        let (active_memories, loaded) = (paths.texts().count(name).await?, paths.texts().is_loaded(name));
        users.push(User { user: name.as_str().to_owned(), active_memories, loaded });
    }
    let next = users.last().filter(|_| last < count).map(|user| user.user.clone());
    Ok(Json(Users { users, count, next }))
}
