//! How a remote store behaves.

use std::fmt;
use std::time::Duration;

use super::error::RemoteError;
use super::format::{PART, Secret};

/// How a [`RemoteStore`](super::RemoteStore) behaves.
#[derive(Clone)]
#[non_exhaustive]
pub struct RemoteOptions {
    /// What the names of all objects begin with: `amem` unless said otherwise.
    pub prefix: String,
    /// The time that a call which reads has altogether: 5 s unless said otherwise. What did not come by then is a miss.
    pub deadline: Duration,
    /// The time that a call which writes has altogether, and one that deletes has for each few chunks: 30 s unless said
    /// otherwise, and a second more for each 16 MiB that are written.
    pub write_deadline: Duration,
    /// Bytes of a part of a chunk: 8 MiB unless said otherwise. A chunk that is not longer is one object.
    pub part_bytes: usize,
    /// Requests under way at most, over all calls: 16 unless said otherwise.
    pub concurrency: usize,
    /// Bytes of KV on their way at most, over all calls: 256 MiB unless said otherwise. A chunk that is larger goes alone.
    pub bytes_in_flight: usize,
    /// Calls in a row that may fail before the server is left alone for a while: 3 unless said otherwise. One that gets no
    /// answer at all by its deadline is enough; one that waited for others of this process, and so asked the server late
    /// or not at all, says nothing of it.
    pub failures: u32,
    /// For how long the server is left alone at first: 1 s unless said otherwise. Doubles while it does not come back.
    pub pause: Duration,
    /// For how long it is left alone at most: 30 s unless said otherwise.
    pub max_pause: Duration,
    /// How long the server keeps what was put, counted from the put: for ever unless said otherwise. Only
    /// `RemoteStore::redis` can do that; elsewhere it is set up in the service, as a bucket's lifecycle.
    pub ttl: Option<Duration>,
    secret: Option<Secret>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            prefix: "amem".to_owned(),
            deadline: Duration::from_secs(5),
            write_deadline: Duration::from_secs(30),
            part_bytes: 8 << 20,
            concurrency: 16,
            bytes_in_flight: 256 << 20,
            failures: 3,
            pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(30),
            ttl: None,
            secret: None,
        }
    }
}

impl fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteOptions")
            .field("prefix", &self.prefix)
            .field("deadline", &self.deadline)
            .field("write_deadline", &self.write_deadline)
            .field("part_bytes", &self.part_bytes)
            .field("concurrency", &self.concurrency)
            .field("bytes_in_flight", &self.bytes_in_flight)
            .field("failures", &self.failures)
            .field("pause", &self.pause)
            .field("max_pause", &self.max_pause)
            .field("ttl", &self.ttl)
            .field("secret", &self.secret)
            .finish()
    }
}

impl RemoteOptions {
    /// With names that begin with this: letters, digits, `-`, `_`, `.` and, between them, `/`.
    #[must_use]
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// With this much time for a call that reads.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// With this much time for a call that writes, or for each few chunks of one that deletes.
    #[must_use]
    pub fn write_deadline(self, write_deadline: Duration) -> Self {
        Self { write_deadline, ..self }
    }

    /// With parts of so many bytes.
    #[must_use]
    pub fn part_bytes(self, part_bytes: usize) -> Self {
        Self { part_bytes, ..self }
    }

    /// With at most so many requests under way.
    #[must_use]
    pub fn concurrency(self, concurrency: usize) -> Self {
        Self { concurrency, ..self }
    }

    /// With at most so many bytes on their way.
    #[must_use]
    pub fn bytes_in_flight(self, bytes_in_flight: usize) -> Self {
        Self { bytes_in_flight, ..self }
    }

    /// With a pause after so many failures in a row, this long at first and this long at most.
    #[must_use]
    pub fn pauses(self, failures: u32, pause: Duration, max_pause: Duration) -> Self {
        Self { failures, pause, max_pause, ..self }
    }

    /// With a server that keeps what was put for this long; whole seconds. See [`ttl`](Self::ttl).
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    /// With heads authenticated under a key that all who share the store have, and others who can write to the server do
    /// not: what those put there is a miss. It hides nothing: the KV is not encrypted.
    #[must_use]
    pub fn secret(self, secret: [u8; 32]) -> Self {
        Self { secret: Some(Secret(secret)), ..self }
    }

    pub(super) fn shared_secret(&self) -> Option<Secret> {
        self.secret
    }

    /// The folder of all objects, its layout's version included.
    pub(super) fn root(&self) -> String {
        format!("{}/v1/", self.prefix)
    }

    pub(super) fn check(&self) -> Result<(), RemoteError> {
        let sound = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part.chars().all(plain) && part.chars().any(|c| c != '.')
        };
        let demand = |holds: bool, what, value: String, expected| match holds {
            true => Ok(()),
            false => Err(RemoteError::Setting { what, value, expected }),
        };
        let prefix = self.prefix.len() <= 200 && self.prefix.split('/').all(sound);
        demand(prefix, "prefix", format!("{:?}", self.prefix), "letters, digits, -, _ and ., in folders parted by /")?;
        let parts = (1 << 10..=PART).contains(&self.part_bytes);
        demand(parts, "part_bytes", self.part_bytes.to_string(), "from 1 KiB to 64 MiB")?;
        let requests = (1..=1024).contains(&self.concurrency);
        demand(requests, "concurrency", self.concurrency.to_string(), "from 1 to 1024")?;
        let bytes = self.bytes_in_flight >= 1 << 20;
        demand(bytes, "bytes_in_flight", self.bytes_in_flight.to_string(), "1 MiB or more")?;
        let times =
            [("deadline", self.deadline), ("write_deadline", self.write_deadline), ("max_pause", self.max_pause)];
        times.into_iter().try_for_each(|(what, time)| {
            let fits = time > Duration::ZERO && time <= Duration::from_secs(24 * 3600);
            demand(fits, what, format!("{time:?}"), "more than nothing, and a day at most")
        })
    }
}
