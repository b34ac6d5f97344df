//! What is to change of a record.

use super::{Metadata, NewRecord, Record, Timestamp};
use crate::{Error, Result};

/// What is to change of a record. What is not named stays as it is.
///
/// Only texts have a history: a view of the past has a record with the key, the metadata and the expiry that it has now.
///
/// ```
/// use amem_core::{Change, Timestamp};
///
/// let change = Change::new().key("home").expires_at(Timestamp(2_000_000_000_000));
/// assert_eq!((change.text, change.key), (None, Some(Some("home".to_owned()))));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Change {
    /// What it is to say.
    pub text: Option<String>,
    /// What it is to be about; `Some(None)` takes its key away.
    pub key: Option<Option<String>>,
    /// What the application is to keep with it, in place of all that it keeps now.
    pub metadata: Option<Metadata>,
    /// From when on it is to count no longer, which may have been before now; `Some(None)` takes its end away.
    pub expires_at: Option<Option<Timestamp>>,
    /// Nothing is to change unless this is its metadata: for whoever makes new metadata from those that were there.
    pub if_metadata: Option<Metadata>,
}

impl Change {
    /// A change of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives it another text.
    #[must_use]
    pub fn text(self, text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..self }
    }

    /// Gives it another key.
    #[must_use]
    pub fn key(self, key: impl Into<String>) -> Self {
        Self { key: Some(Some(key.into())), ..self }
    }

    /// Takes its key away.
    #[must_use]
    pub fn no_key(self) -> Self {
        Self { key: Some(None), ..self }
    }

    /// Gives it other metadata, in place of all that it has.
    #[must_use]
    pub fn metadata(self, metadata: Metadata) -> Self {
        Self { metadata: Some(metadata), ..self }
    }

    /// Has it count until this moment.
    #[must_use]
    pub fn expires_at(self, at: Timestamp) -> Self {
        Self { expires_at: Some(Some(at)), ..self }
    }

    /// Has it count for ever.
    #[must_use]
    pub fn no_expiry(self) -> Self {
        Self { expires_at: Some(None), ..self }
    }

    /// Only if this is its metadata.
    #[must_use]
    pub fn if_metadata(self, metadata: Metadata) -> Self {
        Self { if_metadata: Some(metadata), ..self }
    }

    /// Whether it is one that a ledger makes.
    ///
    /// # Errors
    /// [`Error::Empty`] for a text with nothing in it, [`Error::BadValue`] for a key or metadata beyond their bounds.
    pub fn check(&self) -> Result<()> {
        if self.text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            return Err(Error::Empty { what: "memory" });
        }
        if let Some(Some(key)) = &self.key {
            NewRecord::check_key(key)?;
        }
        self.metadata.as_ref().map_or(Ok(()), Metadata::check)
    }

    /// What it makes of a record. When the text changed is for the ledger to say.
    ///
    /// # Errors
    /// [`Error::ChangedMeanwhile`] when it is [for other metadata](Self::if_metadata).
    pub fn of(&self, record: &Record) -> Result<Record> {
        if self.if_metadata.as_ref().is_some_and(|metadata| *metadata != record.metadata) {
            return Err(Error::ChangedMeanwhile { id: record.id });
        }
        let mut changed = record.clone();
        if let Some(text) = &self.text {
            text.trim().clone_into(&mut changed.text);
        }
        if let Some(key) = &self.key {
            changed.key.clone_from(key);
        }
        if let Some(metadata) = &self.metadata {
            changed.metadata.clone_from(metadata);
        }
        changed.expires_at = self.expires_at.unwrap_or(record.expires_at);
        Ok(changed)
    }
}
