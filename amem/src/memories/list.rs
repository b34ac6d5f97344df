//! Looking at what is remembered.

use amem_core::{BoxError, Error, Listing, Namespace, Page, Query, TextMemory, Timestamp};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::moment::{self, Moment, Said};
use super::view::{Counts, Memory, id};
use super::{MemoryPaths, filter, view};
use crate::http::{ApiError, Caller, Params, Result, Segments};

/// Which memories are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Memories of a page, 1 to 1,000. Without it, all are given, as they are read.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Only memories that pass this filter, as JSON.
    filter: Option<String>,
    /// `active`, or `all` for those that no longer count as well; forgotten ones have no text.
    #[param(inline)]
    state: Option<ListedState>,
    /// Those that counted at this moment, with the texts that they had then.
    #[param(value_type = Option<String>)]
    as_of: Option<Moment>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ListedState {
    #[default]
    Active,
    All,
}

/// A user's memories, in the order in which they were added.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Memories {
    user: String,
    counts: Counts,
    memories: Vec<Memory>,
    /// The `cursor` of the next page; `null` after the last.
    next: Option<String>,
}

/// A memory's texts, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct History {
    user: String,
    id: String,
    versions: Vec<Version>,
}

/// A text that a memory had.
#[derive(Debug, Serialize, ToSchema)]
struct Version {
    /// What it said. Empty once it was forgotten.
    text: String,
    /// From when on.
    from: Said,
    /// Until when; `null` while it stands.
    until: Option<Said>,
}

/// Bytes of a filter in a query string at most.
const MAX_FILTER_BYTES: usize = 16 << 10;

impl ListParams {
    fn read(&self, namespace: &Namespace) -> Result<Listing> {
        let as_of = moment::read(self.as_of.as_ref(), "as_of")?;
        let query = match (self.state.unwrap_or_default(), as_of) {
            (ListedState::All, Some(_)) => {
                return Err(ApiError::unsupported("as_of", "as_of names those that were active: leave out state=all"));
            }
            (ListedState::All, None) => Query::All,
            (ListedState::Active, at) => Query::At(at.unwrap_or_else(Timestamp::now)),
        };
        let mut listing = Listing::new(query).limit(Listing::MAX_LIMIT);
        if let Some(text) = self.filter.as_deref().filter(|text| !text.is_empty()) {
            if text.len() > MAX_FILTER_BYTES {
                return Err(ApiError::too_large("the filter is too long").param("filter"));
            }
            let json = serde_json::from_str(text);
            let json = json.map_err(|error| ApiError::bad_request(format!("filter: {error}")).param("filter"))?;
            listing = listing.filter(filter::parse(&json)?);
        }
        if let Some(cursor) = self.cursor.as_deref().filter(|cursor| !cursor.is_empty()) {
            listing = listing.after(view::id(cursor, namespace).map_err(|_| bad_cursor())?);
        }
        match self.limit {
            None => Ok(listing),
            Some(limit) if (1..=Listing::MAX_LIMIT).contains(&limit) => Ok(listing.limit(limit)),
            Some(_) => Err(ApiError::bad_request("limit must be from 1 to 1,000").param("limit")),
        }
    }
}

fn bad_cursor() -> ApiError {
    ApiError::bad_request("this is no cursor: give `next` of the page before").param("cursor")
}

/// Lists a user's memories.
///
/// Without `limit` all of them are in one answer, of whatever length: it is written while they are read, a thousand at a
/// time, so it costs the server no more than a page.
#[utoipa::path(get, path = "/v1/memories/{user}", tag = "memories",
    params(("user" = String, Path, description = "whose memory it is"), ListParams),
    responses(
        (status = 200, body = Memories),
        (status = 400, description = "a filter, cursor, limit or moment that makes no sense"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "no name of a user"),
        (status = 413, description = "the filter is too long"),
        (status = 422, description = "not of this shape"),
    ))]
pub(super) async fn list(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Segments(user): Segments<String>,
    Params(params): Params<ListParams>,
) -> Result<Response> {
    let namespace = caller.namespace(Some(&user))?;
    let listing = params.read(&namespace)?;
    let page = match paths.texts().page(&namespace, &listing).await {
        Err(Error::UnknownRecord { .. }) => return Err(bad_cursor()),
        page => page?,
    };
    let counts = Counts::from(paths.texts().stats(&namespace).await?);
    if params.limit.is_none() && page.next.is_some() {
        return whole(paths.texts().clone(), namespace, listing, page, &counts);
    }
    let next = page.next.map(|id| id.to_string());
    let memories = page.records.into_iter().map(Memory::from).collect();
    Ok(Json(Memories { user: namespace.as_str().to_owned(), counts, memories, next }).into_response())
}

/// A long list, as it is written.
struct Writing {
    memory: TextMemory,
    namespace: Namespace,
    listing: Listing,
    /// What is written next; `None` at the end.
    page: Option<Page>,
    /// What stands before the next memory.
    lead: Vec<u8>,
}

impl Writing {
    /// The next part of the body. It breaks off if the ledger fails meanwhile.
    async fn part(mut self) -> Result<Option<(Vec<u8>, Self)>, BoxError> {
        let Some(page) = self.page.take() else { return Ok(None) };
        let mut bytes = Vec::new();
        for record in page.records {
            bytes.append(&mut self.lead);
            serde_json::to_writer(&mut bytes, &Memory::from(record))?;
            self.lead = b",".to_vec();
        }
        match page.next {
            None => bytes.extend_from_slice(br#"],"next":null}"#),
            Some(after) => {
                self.listing.after = Some(after);
                self.page = Some(match self.memory.page(&self.namespace, &self.listing).await {
                    // All of it was deleted meanwhile.
                    Err(Error::UnknownRecord { .. }) => Page::default(),
                    page => page.inspect_err(|error| tracing::error!(%error, "a list of memories broke off"))?,
                });
            }
        }
        Ok(Some((bytes, self)))
    }
}

/// All memories in one answer.
fn whole(memory: TextMemory, namespace: Namespace, listing: Listing, first: Page, counts: &Counts) -> Result<Response> {
    let json = |error: serde_json::Error| ApiError::internal(&error);
    let user = serde_json::to_string(namespace.as_str()).map_err(json)?;
    let counts = serde_json::to_string(counts).map_err(json)?;
    let lead = format!(r#"{{"user":{user},"counts":{counts},"memories":["#).into_bytes();
    let writing = Writing { memory, namespace, listing, page: Some(first), lead };
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((kind, Body::from_stream(stream::try_unfold(writing, Writing::part))).into_response())
}

/// One memory, whatever its state.
#[utoipa::path(get, path = "/v1/memories/{user}/{id}", tag = "memories",
    params(("user" = String, Path, description = "whose memory it is"), ("id" = String, Path, description = "its id")),
    responses(
        (status = 200, body = Memory),
        (status = 400, description = "no name of a user"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "no such memory"),
    ))]
pub(super) async fn one(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Segments((user, memory)): Segments<(String, String)>,
) -> Result<Json<Memory>> {
    let namespace = caller.namespace(Some(&user))?;
    let id = id(&memory, &namespace)?;
    Ok(Json(paths.texts().get(&namespace, id).await?.into()))
}

/// All texts that a memory had.
#[utoipa::path(get, path = "/v1/memories/{user}/{id}/history", tag = "memories",
    params(("user" = String, Path, description = "whose memory it is"), ("id" = String, Path, description = "its id")),
    responses(
        (status = 200, body = History),
        (status = 400, description = "no name of a user"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 404, description = "no such memory"),
    ))]
pub(super) async fn history(
    State(paths): State<MemoryPaths>,
    caller: Caller,
    Segments((user, memory)): Segments<(String, String)>,
) -> Result<Json<History>> {
    let namespace = caller.namespace(Some(&user))?;
    let id = id(&memory, &namespace)?;
    let versions = paths.texts().history(&namespace, id).await?.into_iter();
    let version = |version: amem_core::Version| Version {
        text: version.text,
        from: version.from.into(),
        until: version.until.map(Said::from),
    };
    let (user, id) = (namespace.as_str().to_owned(), id.to_string());
    Ok(Json(History { user, id, versions: versions.map(version).collect() }))
}
