//! Requests to the server: each bounded, counted, and one of not too many.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

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
    /// When the first request had its turn.
    asked: OnceLock<Instant>,
    answered: AtomicU32,
    failed: AtomicU32,
}

impl<'s> Requests<'s> {
    pub(super) fn new(operator: &'s Operator, permits: &'s Semaphore) -> Self {
        let [answered, failed] = [(); 2].map(|()| AtomicU32::new(0));
        Self { operator, permits, asked: OnceLock::new(), answered, failed }
    }

    /// What all of this says about the server, `None` if it was not asked: all of the time went in this process's own
    /// queues. One that answered something is there, and slow at most. `late` is the time that the call had, if it took
    /// longer: the server is silent if it had half of that to answer in.
    pub(super) fn outcome(&self, late: Option<Duration>) -> Option<Outcome> {
        let asked = self.asked.get()?.elapsed();
        match (self.answered.load(Relaxed), self.failed.load(Relaxed)) {
            (0, _) if late.is_some_and(|within| asked >= within / 2) => Some(Outcome::Silent),
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
        self.asked.get_or_init(Instant::now);
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

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_lite::future::{block_on, poll_once};
    use opendal::services::Memory;

    use super::*;

    #[test]
    fn a_server_is_silent_if_it_was_asked_and_had_time_to_answer() {
        let (operator, permits) = (Operator::new(Memory::default()).unwrap(), Semaphore::new(1));
        let requests = Requests::new(&operator, &permits);
        let ask = || block_on(poll_once(requests.request("wait for", pending::<opendal::Result<()>>()))).is_none();
        {
            let _others = permits.try_acquire().unwrap();
            assert!(ask(), "it waits for its turn");
            assert_eq!(requests.outcome(Some(Duration::ZERO)), None, "nobody was asked");
        }
        assert!(ask(), "the server does not answer");
        assert_eq!(requests.outcome(Some(Duration::from_secs(3600))), None, "it had hardly any time to");
        assert_eq!(requests.outcome(Some(Duration::ZERO)), Some(Outcome::Silent));
        block_on(requests.exists("nothing")).unwrap();
        assert_eq!(requests.outcome(Some(Duration::ZERO)), Some(Outcome::Answered));
    }
}
