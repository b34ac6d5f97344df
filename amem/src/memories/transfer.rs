//! Memories as lines of JSON, out and in.

use std::io::{self, BufReader, BufWriter, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amem_core::Amounts;
use amem_store::{Became, Export, Imported, ImportedLine, TransferError};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRef, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::io::{StreamReader, SyncIoBridge};
use utoipa::{IntoParams, ToSchema};

use super::MemoryPaths;
use super::view::Counts;
use crate::http::{ApiError, Caller, Identity, Params, Result, Segments};

/// Bytes of an import at most.
const MAX_IMPORT_BYTES: u64 = 1 << 30;
/// Lines that an import's answer names at most, of those that were not imported.
const MAX_ERRORS: usize = 100;
/// Bytes of an export that are written at a time, and how many of these may wait for a slow reader.
const PART_BYTES: usize = 64 << 10;
const PARTS: usize = 4;
/// How long a client may take for that many bytes. It keeps a thread and one of few permits that long.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What is exported.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportParams {
    /// `active`, or `all` for memories that no longer count as well, with their states.
    #[param(inline)]
    state: Option<ExportedState>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ExportedState {
    #[default]
    Active,
    All,
}

/// What became of an import.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImportAnswer {
    user: String,
    /// Lines that were read, blank ones not among them.
    lines: u64,
    /// New memories, those that took another's place not among them.
    added: u64,
    /// New memories that took the place of those that had their keys.
    superseding: u64,
    /// Lines that were remembered already.
    duplicates: u64,
    /// Memories that stood already, and have another expiry or other metadata now.
    changed: u64,
    /// Lines that are no memories that count: superseded, expired or forgotten ones.
    left_out: u64,
    /// Lines that cannot be read or are beyond the bounds of a memory.
    refused: u64,
    /// Why lines were left out or refused: the first hundred of them.
    errors: Vec<LineError>,
    counts: Counts,
}

/// Why a line was not imported.
#[derive(Debug, Serialize, ToSchema)]
struct LineError {
    /// The line, counted from 1.
    line: u64,
    reason: String,
}

/// Writes a user's memories as lines of JSON, in the order in which they were added, while they are read.
#[utoipa::path(get, path = "/v1/memories/{user}/export", tag = "memories",
    params(("user" = String, Path, description = "whose memory it is"), ExportParams),
    responses(
        (status = 200, content_type = "application/x-ndjson", body = String),
        (status = 400, description = "no name of a user"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 422, description = "not of this shape"),
        (status = 429, description = "too many exports and imports are under way"),
    ))]
pub(super) async fn export(
    State(transfers): State<Transfers>,
    caller: Caller,
    Segments(user): Segments<String>,
    Params(params): Params<ExportParams>,
) -> Result<Response> {
    let what = Export::all().namespace(caller.namespace(Some(&user))?);
    let what = match params.state.unwrap_or_default() {
        ExportedState::Active => what,
        ExportedState::All => what.all_states(),
    };
    let permit = transfers.permit()?;
    let (sender, receiver) = mpsc::channel(PARTS);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let (_permit, _runtime) = (permit, runtime.enter());
        let sender = Sender { to: sender, patience: transfers.patience, failed: None };
        let mut out = BufWriter::with_capacity(PART_BYTES, sender);
        let exported = amem_store::export(&**transfers.paths.texts().ledger(), &what, &mut out, |_| {});
        match futures_lite::future::block_on(exported) {
            Ok(_) => out.get_mut().end(),
            // The client left, or takes too long.
            Err(TransferError::Write(_)) => {}
            Err(error) => tracing::error!(%error, "an export broke off"),
        }
    });
    let parts = stream::unfold(Some(receiver), |parts| async {
        let mut parts = parts?;
        match parts.recv().await {
            Some(Part::Bytes(bytes)) => Some((Ok(bytes), Some(parts))),
            Some(Part::End) => None,
            // The body must not end as if it were complete.
            None => Some((Err(io::Error::other("the export broke off")), None)),
        }
    });
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))];
    Ok((kind, Body::from_stream(parts)).into_response())
}

/// Remembers lines of JSON, as an export writes them; namespaces that they name do not count. Lines that are remembered
/// already are recognised, so whoever was cut off imports again.
///
/// A line that cannot be imported does not keep out the others: the answer names it.
#[utoipa::path(post, path = "/v1/memories/{user}/import", tag = "memories",
    params(("user" = String, Path, description = "whose memory it is")),
    request_body(content = String, content_type = "application/x-ndjson"),
    responses(
        (status = 200, body = ImportAnswer),
        (status = 400, description = "no name of a user, or the body broke off"),
        (status = 408, description = "too little of the body came for too long"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 413, description = "too large; what stands before the bound was imported"),
        (status = 429, description = "too many exports and imports are under way"),
        (status = 503, description = "the disk is full, or the memory is read-only; what was read before was imported"),
    ))]
pub(super) async fn import(
    State(transfers): State<Transfers>,
    caller: Caller,
    Segments(user): Segments<String>,
    request: Request,
) -> Result<Json<ImportAnswer>> {
    let namespace = caller.namespace(Some(&user))?;
    let (permit, paths) = (transfers.permit()?, &transfers.paths);
    let mut left = MAX_IMPORT_BYTES;
    let body = request.into_body().into_data_stream().map_err(io::Error::other);
    let body = in_time(body, transfers.patience).and_then(move |part: Bytes| {
        let rest = left.checked_sub(part.len() as u64);
        left = rest.unwrap_or(0);
        std::future::ready(rest.map(|_| part).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge)))
    });
    let (runtime, memory, to) = (Handle::current(), paths.memory.clone(), namespace.clone());
    let work = move || {
        let (_permit, _runtime) = (permit, runtime.enter());
        let input = BufReader::new(SyncIoBridge::new(StreamReader::new(Box::pin(body))));
        let check = |new: &_| memory.check(new).map_err(|error| error.to_string());
        let mut errors = Vec::new();
        let told = |line: &ImportedLine| {
            if let Became::Refused { reason } | Became::LeftOut { reason } = &line.became
                && errors.len() < MAX_ERRORS
            {
                errors.push(LineError { line: line.line, reason: reason.clone() });
            }
        };
        let imported = amem_store::import_checked(&**memory.texts().ledger(), Some(&to), input, check, told);
        futures_lite::future::block_on(imported).map(|imported| (imported, errors))
    };
    let imported = tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))?;
    // Whatever was imported may have superseded something, also if the import broke off.
    paths.memory.written(&namespace).await;
    let (imported, errors) = imported.map_err(|error| broken_off(&error))?;
    let Imported { added, superseding, duplicates, changed, left_out, refused, .. } = imported;
    let mut amounts = Amounts::default();
    amounts.memory_ops = added + superseding + changed;
    paths.texts().record_usage(&namespace, amounts).await?;
    let counts = paths.texts().stats(&namespace).await?.into();
    let (user, lines) = (namespace.as_str().to_owned(), imported.lines());
    Ok(Json(ImportAnswer { user, lines, added, superseding, duplicates, changed, left_out, refused, errors, counts }))
}

/// What exports and imports work on. Each keeps a thread busy, for as long as the client takes.
#[derive(Clone)]
pub(super) struct Transfers {
    pub(super) paths: MemoryPaths,
    /// Exports and imports that may begin beside those that are under way.
    pub(super) permits: Arc<Semaphore>,
    /// How long a client may take for each [`PART_BYTES`].
    pub(super) patience: Duration,
}

impl Transfers {
    fn permit(&self) -> Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        permit.map_err(|_| ApiError::overloaded("too many exports and imports are under way: try again later"))
    }
}

impl FromRef<Transfers> for Identity {
    fn from_ref(transfers: &Transfers) -> Self {
        transfers.paths.identity.clone()
    }
}

fn broken_off(error: &TransferError) -> ApiError {
    let message = error.to_string();
    match error {
        TransferError::Read { line, source } if source.kind() == io::ErrorKind::FileTooLarge => {
            let message = format!("an import has at most {MAX_IMPORT_BYTES} bytes: send the rest from line {line} on");
            ApiError::too_large(message)
        }
        TransferError::Read { source, .. } if source.kind() == io::ErrorKind::TimedOut => ApiError::timeout(message),
        TransferError::Read { .. } => ApiError::bad_request(message),
        TransferError::Add { source: amem_core::Error::Full { .. } | amem_core::Error::ReadOnly { .. }, .. } => {
            ApiError::unavailable(message)
        }
        error => ApiError::internal(error),
    }
}

/// What an export is sent as.
enum Part {
    Bytes(Bytes),
    /// Nothing is missing.
    End,
}

/// Writes into a body that is read elsewhere.
struct Sender {
    to: mpsc::Sender<Part>,
    patience: Duration,
    /// Why nothing more is sent.
    failed: Option<io::ErrorKind>,
}

impl Sender {
    fn send(&mut self, part: Part) -> io::Result<()> {
        if self.failed.is_none() {
            let sent = Handle::current().block_on(tokio::time::timeout(self.patience, self.to.send(part)));
            self.failed = match sent {
                Ok(Ok(())) => None,
                Ok(Err(_)) => Some(io::ErrorKind::BrokenPipe),
                Err(_) => Some(io::ErrorKind::TimedOut),
            };
        }
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Says that nothing is missing.
    fn end(&mut self) {
        // Without it the body ends with an error, if anybody reads it.
        let _ = self.send(Part::End);
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(Part::Bytes(Bytes::copy_from_slice(bytes)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A body of which every [`PART_BYTES`] come in time. What is done between its parts does not count.
fn in_time(
    body: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
    patience: Duration,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold((body, patience, 0), move |(mut body, left, came)| async move {
        let begun = Instant::now();
        let part = tokio::time::timeout(left, body.try_next()).await;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "nothing, or too little, came for too long");
        let Some(part) = part.map_err(late)?? else { return Ok::<_, io::Error>(None) };
        let came = came + part.len();
        let (left, came) = match came < PART_BYTES {
            true => (left.saturating_sub(begun.elapsed()), came),
            false => (patience, 0),
        };
        Ok(Some((part, (body, left, came))))
    })
}

#[cfg(test)]
mod tests {
    use amem_core::{Namespace, NewRecord, RamLedger, TextMemory};
    use axum::http::HeaderMap;
    use futures_util::StreamExt;

    use super::*;
    use crate::http::KeyHeader;
    use crate::memories::{AnyMemory, Sessions};

    struct NoSessions;

    impl Sessions for NoSessions {
        fn end_all_of(&self, _: &Namespace) {}
    }

    /// One transfer at a time, of clients that are given hardly any time.
    fn transfers() -> (Transfers, Caller) {
        let identity = Identity::new(KeyHeader::Authorization);
        let caller = identity.caller(&HeaderMap::new()).unwrap();
        let paths = MemoryPaths {
            memory: AnyMemory::Texts(TextMemory::new(Arc::new(RamLedger::new()))),
            identity,
            sessions: Arc::new(NoSessions),
            max_texts: 1000,
            k: 8,
            budget_tokens: None,
            usd_per_mtok: None,
        };
        (Transfers { paths, permits: Arc::new(Semaphore::new(1)), patience: Duration::from_millis(10) }, caller)
    }

    #[tokio::test]
    async fn an_export_that_nobody_reads_makes_room_and_does_not_end_as_if_it_were_complete() {
        let (mut transfers, caller) = transfers();
        let texts = (0..600).map(|n| NewRecord::new(format!("{n} {}", "x".repeat(1000)))).collect();
        transfers.paths.memory.remember_all(&Namespace::new("alice").unwrap(), texts).await.unwrap();
        let begin = |transfers: &Transfers| {
            let params = Params(ExportParams { state: None });
            export(State(transfers.clone()), caller.clone(), Segments("alice".to_owned()), params)
        };
        let stalled = begin(&transfers).await.unwrap();
        drop(Arc::clone(&transfers.permits).acquire_owned().await.unwrap());
        let parts: Vec<_> = stalled.into_body().into_data_stream().collect().await;
        assert!(parts.len() > 1 && parts.last().unwrap().is_err() && parts[0].is_ok());
        transfers.patience = Duration::from_secs(60);
        let read = begin(&transfers).await.unwrap();
        let bytes = axum::body::to_bytes(read.into_body(), usize::MAX).await.unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 600);
    }

    #[tokio::test]
    async fn an_import_that_comes_too_slowly_makes_room_and_what_came_stays() {
        let (transfers, caller) = transfers();
        let line = Bytes::from_static(b"{\"text\": \"Alice lives in Denver.\"}\n");
        let trickled = stream::iter([Ok::<_, io::Error>(line)]).chain(stream::pending());
        let request = Request::new(Body::from_stream(trickled));
        let refused = import(State(transfers.clone()), caller, Segments("alice".to_owned()), request).await;
        assert_eq!(refused.err().unwrap().status().as_u16(), 408);
        assert_eq!(transfers.permits.available_permits(), 1);
        let stats = transfers.paths.texts().stats(&Namespace::new("alice").unwrap()).await.unwrap();
        assert_eq!(Counts::from(stats).active, 1);
    }

    #[tokio::test]
    async fn a_body_of_which_single_bytes_come_runs_out_of_time() {
        // Each takes less time than all of them may.
        let trickled = stream::repeat(Bytes::from_static(b" ")).then(|byte| async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(byte)
        });
        let read: Vec<_> = in_time(Box::pin(trickled), Duration::from_millis(100)).collect().await;
        assert_eq!(read.last().unwrap().as_ref().err().unwrap().kind(), io::ErrorKind::TimedOut);
    }
}
