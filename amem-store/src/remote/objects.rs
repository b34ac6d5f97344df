//! Requests to the server: each bounded, counted, and one of not too many.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use futures_util::TryStreamExt;
use opendal::{Buffer, ErrorKind, Operator};
use tokio::sync::Semaphore;

use super::breaker::Outcome;
use super::error::RemoteError;

/// What an object turned out to be.
#[derive(Debug)]
pub(super) enum Read {
    Found(Vec<u8>),
    Missing,
    /// There is more of it than there can be.
    TooLong,
}

/// A listed object.
pub(super) struct Listed {
    /// Its path below what was listed.
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// The requests of one call.
pub(super) struct Requests<'s> {
    pub(super) operator: &'s Operator,
    pub(super) permits: &'s Semaphore,
    answered: AtomicU32,
    failed: AtomicU32,
}

impl<'s> Requests<'s> {
    pub(super) fn new(operator: &'s Operator, permits: &'s Semaphore) -> Self {
        Self { operator, permits, answered: AtomicU32::new(0), failed: AtomicU32::new(0) }
    }

    /// What all of this says about the server, `None` if it was not asked. One that answered something is there, and slow
    /// at most.
    pub(super) fn outcome(&self, timed_out: bool) -> Option<Outcome> {
        match (self.answered.load(Relaxed), self.failed.load(Relaxed)) {
            (0, _) if timed_out => Some(Outcome::Silent),
            (0, 0) => None,
            (0, _) => Some(Outcome::Failed),
            _ => Some(Outcome::Answered),
        }
    }

    /// One request: waits for its turn, and counts how it went. That there is no such object is an answer.
    async fn request<T>(
        &self,
        action: &'static str,
        request: impl Future<Output = opendal::Result<T>>,
    ) -> Result<Option<T>, RemoteError> {
        let _permit = self.permits.acquire().await.map_err(|_| RemoteError::Closed)?;
        let result = match request.await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RemoteError::service(action, &error)),
        };
        let count = if result.is_ok() { &self.answered } else { &self.failed };
        count.fetch_add(1, Relaxed);
        result
    }

    /// An object of at most `limit` bytes. What is sent beyond that is not taken in.
    pub(super) async fn read(&self, path: &str, limit: usize) -> Result<Read, RemoteError> {
        let reading = async {
            // Redis sends a value in one piece, whatever its length. (Asking for a range would bound no more than this:
            // the client takes in whatever the server sends.)
            if self.operator.info().scheme() == "redis"
                && self.operator.stat(path).await?.content_length() > limit as u64
            {
                return Ok(Read::TooLong);
            }
            let mut stream = self.operator.reader(path).await?.into_stream(..).await?;
            let mut bytes = Vec::new();
            while let Some(buffer) = stream.try_next().await? {
                if buffer.len() > limit - bytes.len() {
                    return Ok(Read::TooLong);
                }
                buffer.for_each(|piece| bytes.extend_from_slice(&piece));
            }
            Ok(Read::Found(bytes))
        };
        Ok(self.request("read", reading).await?.unwrap_or(Read::Missing))
    }

    /// The first bytes of an object, if it has that many.
    pub(super) async fn read_start(&self, path: &str, len: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let reading = async {
            let mut bytes = Vec::with_capacity(len);
            let mut stream = self.operator.reader(path).await?.into_stream(0..len as u64).await?;
            while let Some(buffer) = stream.try_next().await? {
                buffer.for_each(|piece| bytes.extend_from_slice(&piece[..piece.len().min(len - bytes.len())]));
            }
            Ok(bytes)
        };
        let reading = async {
            match reading.await {
                // A range that the object does not have is an error of another kind with each service.
                Err(error) => match self.operator.stat(path).await?.content_length() < len as u64 {
                    true => Ok(Vec::new()),
                    false => Err(error),
                },
                read => read,
            }
        };
        Ok(self.request("read", reading).await?.filter(|bytes| bytes.len() == len))
    }

    pub(super) async fn write(&self, path: &str, bytes: Buffer) -> Result<(), RemoteError> {
        self.request("write", self.operator.write(path, bytes)).await.map(drop)
    }

    pub(super) async fn exists(&self, path: &str) -> Result<bool, RemoteError> {
        Ok(self.request("look for", self.operator.stat(path)).await?.is_some())
    }

    /// Removes objects, those that are not there included.
    pub(super) async fn delete(&self, paths: Vec<String>) -> Result<(), RemoteError> {
        let deleting = async {
            let mut deleter = self.operator.deleter().await?;
            deleter.delete_iter(paths).await?;
            deleter.close().await
        };
        self.request("delete", deleting).await.map(drop)
    }

    /// Calls `each` for every object in the folder `root` behind the name `after`, or for all of them where the service
    /// cannot skip any, until it says that it is enough. In the order of the names only where the service skips.
    pub(super) async fn list(
        &self,
        root: &str,
        after: Option<&str>,
        mut each: impl FnMut(Listed) -> bool,
    ) -> Result<(), RemoteError> {
        let listing = async {
            let mut lister = self.operator.lister_with(root).recursive(true);
            if let Some(after) = after.filter(|_| self.operator.info().capability().list_with_start_after) {
                lister = lister.start_after(&format!("{root}{after}"));
            }
            let mut lister = lister.await?;
            while let Some(entry) = lister.try_next().await? {
                let Some(name) = entry.path().strip_prefix(root).filter(|_| entry.metadata().is_file()) else {
                    continue;
                };
                let bytes = match entry.metadata().content_length() {
                    // Some services tell no lengths in a list.
                    0 => self.operator.stat(entry.path()).await.map_or(0, |metadata| metadata.content_length()),
                    bytes => bytes,
                };
                if !each(Listed { name: name.to_owned(), bytes }) {
                    break;
                }
            }
            Ok(())
        };
        self.request("list", listing).await.map(drop)
    }
}
