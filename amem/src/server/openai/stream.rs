//! Server-sent events as OpenAI's clients read them.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::{Stream, StreamExt};
use serde::Serialize;

use crate::http::{ApiError, Result};
use crate::server::until_error::until_error;

/// Chunks, each an event, then `[DONE]`; or what went wrong, and nothing after it. Comments keep the connection open while
/// nothing comes. When the client goes away, the chunks are dropped.
pub(super) fn events<T: Serialize>(chunks: impl Stream<Item = Result<T>> + Send + 'static) -> Response {
    let events = chunks.map(|chunk| {
        let event = chunk.and_then(|chunk| {
            let json = serde_json::to_string(&chunk).map_err(|error| ApiError::internal(&error))?;
            Ok(Event::default().data(json))
        });
        event.map_err(|error| Event::default().data(error.body().to_string()))
    });
    let done = futures_util::stream::once(async { Ok(Event::default().data("[DONE]")) });
    let told = until_error(events.chain(done)).map(|event| Ok::<_, Infallible>(event.unwrap_or_else(|error| error)));
    Sse::new(told).keep_alive(KeepAlive::default()).into_response()
}
