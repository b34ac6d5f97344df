//! Records: what was said, for whom, and where it is in its life.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::{Change, Metadata};
use crate::{Error, Result};

/// Whose memory it is. Namespaces share no record, no KV of a memory and no statistics. They share the KV of the system line, the
/// budgets of tiers, and the engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(String);

impl Namespace {
    /// Longest name in bytes.
    pub const MAX_BYTES: usize = 256;

    /// A namespace of this name.
    ///
    /// # Errors
    /// [`Error::BadValue`] when the name is empty, longer than [`MAX_BYTES`](Self::MAX_BYTES), or holds control
    /// characters.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        if name.is_empty() || name.len() > Self::MAX_BYTES || name.chars().any(char::is_control) {
            let expected = "1 to 256 bytes of text without control characters";
            return Err(Error::BadValue { what: "namespace", value: format!("{name:?}"), expected });
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<&str> for Namespace {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl TryFrom<String> for Namespace {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl TryFrom<&String> for Namespace {
    type Error = Error;

    fn try_from(name: &String) -> Result<Self> {
        Self::new(name)
    }
}

impl TryFrom<&Namespace> for Namespace {
    type Error = Error;

    fn try_from(namespace: &Namespace) -> Result<Self> {
        Ok(namespace.clone())
    }
}

/// The name of a record, unique across namespaces and time. Ids sort by the time they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(Uuid);

impl RecordId {
    /// A new id (a version 7 UUID).
    #[allow(clippy::new_without_default, reason = "a default that differs on each call would surprise")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id as bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// The id of these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for RecordId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let id = Uuid::try_parse(text).map_err(|_| Error::BadValue {
            what: "record id",
            value: format!("{text:?}"),
            expected: "32 hexadecimal digits, as remember returned it",
        })?;
        Ok(Self(id))
    }
}

/// A moment: milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This moment.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// The moment this much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// A text to remember.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct NewRecord {
    /// What to remember.
    pub text: String,
    /// What the text is about, for facts that replace one another: remembering a text under a key supersedes the
    /// active record of that key, unless that one [is newer](Self::is_older_than) or the text [is over](Self::is_over)
    /// already. At most [`MAX_KEY_BYTES`](Self::MAX_KEY_BYTES).
    pub key: Option<String>,
    /// What the application keeps with it.
    pub metadata: Metadata,
    /// When it was first said, if that was not now: for records that come from elsewhere. A moment yet to come counts as
    /// now. Under a key, a text from before the active record's does not take its place.
    pub created_at: Option<Timestamp>,
    /// When it got the text that it has, if that was later. What it said before is not known then, so it is in no view of
    /// the time before.
    pub updated_at: Option<Timestamp>,
    /// From when on it no longer counts.
    pub expires_at: Option<Timestamp>,
    /// If an active record says the same already, that record keeps its metadata, whatever stands here: for ledgers that
    /// encrypt, below which something always does.
    pub keeps_metadata: bool,
}

impl NewRecord {
    /// Bytes of a key at most.
    pub const MAX_KEY_BYTES: usize = 512;

    /// A text to remember.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Under a key.
    #[must_use]
    pub fn key(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// With metadata.
    #[must_use]
    pub fn metadata(self, metadata: Metadata) -> Self {
        Self { metadata, ..self }
    }

    /// First said at this moment.
    #[must_use]
    pub fn created_at(self, at: Timestamp) -> Self {
        Self { created_at: Some(at), ..self }
    }

    /// With the text that it has since this moment.
    #[must_use]
    pub fn updated_at(self, at: Timestamp) -> Self {
        Self { updated_at: Some(at), ..self }
    }

    /// Until this moment.
    #[must_use]
    pub fn expires_at(self, at: Timestamp) -> Self {
        Self { expires_at: Some(at), ..self }
    }

    /// Whether it was said before an active record of its key got the text that it has. If it is added at `now`, such a
    /// text is superseded from the start, and the record stays active. What is said now, and so has no moment of its
    /// own, is older than nothing, also if a clock was set back or another machine's is fast.
    pub fn is_older_than(&self, active: &Record, now: Timestamp) -> bool {
        let (_, updated_at) = self.moments(now);
        updated_at < now && updated_at < active.updated_at
    }

    /// Whether its time is over at `now`. If it is added then, it is a record that never counts, and changes no other one.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// What telling it at `now` changes of an active record that has its text and its key already: the record gets the
    /// expiry and the metadata that are stated here. What is not stated (no expiry, no metadata) stays.
    ///
    /// The later statement counts, so one with a moment of its own that is not after the moment when the record got its
    /// text changes nothing: importing a file again must not undo what was changed since.
    pub fn restates(&self, active: &Record, now: Timestamp) -> Change {
        let ((_, updated_at), mut change) = (self.moments(now), Change::new());
        if updated_at >= now || updated_at > active.updated_at {
            change.expires_at = self.expires_at.map(Some);
            change.metadata = Some(&self.metadata).filter(|new| !new.is_empty() && !self.keeps_metadata).cloned();
        }
        change
    }

    /// When it was first said and when it got its text, for a ledger that takes it at `now`: neither is yet to come, and
    /// the second is not before the first.
    pub fn moments(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let created_at = self.created_at.or(self.updated_at).unwrap_or(now).min(now);
        (created_at, self.updated_at.unwrap_or(created_at).min(now).max(created_at))
    }

    /// The text without the blanks around it, if the record is one that a ledger takes.
    ///
    /// # Errors
    /// [`Error::Empty`] for a text with nothing in it, [`Error::BadValue`] for a key or metadata beyond their bounds.
    pub fn check(&self) -> Result<&str> {
        self.key.as_deref().map_or(Ok(()), Self::check_key)?;
        self.metadata.check()?;
        match self.text.trim() {
            "" => Err(Error::Empty { what: "memory" }),
            text => Ok(text),
        }
    }

    pub(super) fn check_key(key: &str) -> Result<()> {
        if key.len() <= Self::MAX_KEY_BYTES {
            return Ok(());
        }
        let value = format!("{} bytes", key.len());
        Err(Error::BadValue { what: "key", value, expected: "at most 512 bytes" })
    }
}

impl From<&str> for NewRecord {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for NewRecord {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

/// Where a record is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It counts.
    Active,
    /// Another record of its key took its place.
    Superseded {
        /// The record that did.
        by: RecordId,
        /// When.
        at: Timestamp,
    },
    /// It was forgotten: its text is gone.
    Forgotten {
        /// When.
        at: Timestamp,
    },
    /// Its time was over.
    Expired {
        /// Since when.
        at: Timestamp,
    },
}

impl State {
    /// The state in one word.
    pub fn name(&self) -> &'static str {
        match self {
            State::Active => "active",
            State::Superseded { .. } => "superseded",
            State::Forgotten { .. } => "forgotten",
            State::Expired { .. } => "expired",
        }
    }
}

/// One remembered text and its life.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// Its name.
    pub id: RecordId,
    /// Whose it is.
    pub namespace: Namespace,
    /// What it says now (or said last). Empty once it was forgotten.
    pub text: String,
    /// What it is about, if that was said. Gone once it was forgotten.
    pub key: Option<String>,
    /// What the application keeps with it. Gone once it was forgotten.
    pub metadata: Metadata,
    /// When it was first remembered.
    pub created_at: Timestamp,
    /// When its text last changed.
    pub updated_at: Timestamp,
    /// From when on it no longer counts.
    pub expires_at: Option<Timestamp>,
    /// Where it is in its life.
    pub state: State,
}

impl Record {
    /// An active record that was remembered at a moment, without a key, metadata or an end. Whoever implements
    /// [`Ledger`](crate::Ledger) fills in the rest.
    pub fn new(id: RecordId, namespace: Namespace, text: impl Into<String>, created_at: Timestamp) -> Self {
        Self {
            id,
            namespace,
            text: text.into(),
            key: None,
            metadata: Metadata::default(),
            created_at,
            updated_at: created_at,
            expires_at: None,
            state: State::Active,
        }
    }
}

/// What became of a text that was to be remembered.
#[derive(Clone, Debug, PartialEq)]
pub struct Added {
    /// The record that holds the text.
    pub record: Record,
    /// Whether it is new, stood already, or took another's place.
    pub outcome: Outcome,
}

/// See [`Added::outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// A new record. It may have expired before it was added, or have been superseded by the active record of its key,
    /// which is newer: its state says so.
    New,
    /// An active record of the namespace says exactly this, under the same key, and has the expiry and the metadata that
    /// were stated: that record is returned, and nothing was written.
    Duplicate,
    /// An active record of the namespace says exactly this, under the same key: that record is returned, with the other
    /// expiry or the other metadata that it has got now.
    Changed,
    /// A new record that took the place of this one, which had the same key.
    Superseded(RecordId),
}

/// A text that a record had, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// What it said. Empty once the record was forgotten.
    pub text: String,
    /// From when on.
    pub from: Timestamp,
    /// Until when; `None` while it stands.
    pub until: Option<Timestamp>,
}
