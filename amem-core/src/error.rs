//! What can go wrong, to what, and what to do about it.

use crate::{ChunkId, Namespace, RecordId};

/// An error of another crate, carried whole.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. A failed call leaves everything as it was, unless its documentation says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that must say something is empty or only white space.
    #[error("the {what} is empty: give it some text")]
    Empty {
        /// What was empty: "memory", "question", …
        what: &'static str,
    },
    /// A text has more tokens than the model can hold at once.
    #[error("the {what} needs {tokens} tokens and the model holds {limit}: shorten it")]
    TooLong {
        /// What was too long: "memory", "prompt", …
        what: &'static str,
        /// Tokens it needs.
        tokens: usize,
        /// Tokens there is room for.
        limit: usize,
    },
    /// A setting has a value that makes no sense.
    #[error("{what} is {value}: it must be {expected}")]
    BadValue {
        /// The setting's name.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// No record with this id stands in this namespace.
    #[error("namespace {namespace} has no record {id}: list its records to see their ids")]
    UnknownRecord {
        /// Where it was looked for.
        namespace: Namespace,
        /// What was looked for.
        id: RecordId,
    },
    /// The record exists, but its life is over.
    #[error("record {id} is {state}, so it cannot be changed: remember the text anew")]
    NotActive {
        /// The record.
        id: RecordId,
        /// How it ended: "superseded", "forgotten" or "expired".
        state: &'static str,
    },
    /// An update would make two active records of one namespace say the same.
    #[error("record {existing} already says that: forget one of the two instead")]
    SameText {
        /// The record that stands already.
        existing: RecordId,
    },
    /// A change would give two active records of one namespace the same key.
    #[error("record {existing} has this key: change its text, or forget one of the two")]
    KeyTaken {
        /// The record that has the key.
        existing: RecordId,
    },
    /// The record is not what the change was made for.
    #[error("record {id} has changed meanwhile: read it, and change it as it is now")]
    ChangedMeanwhile {
        /// The record.
        id: RecordId,
    },
    /// The model is of a kind that amem does not run.
    #[error("{what} is not supported: {supported}")]
    UnsupportedModel {
        /// The part that is not supported, with its value.
        what: String,
        /// What would be.
        supported: &'static str,
    },
    /// A file of the model is missing, damaged or contradicts another.
    #[error("model file {file}: {reason}")]
    BadModel {
        /// The file's name within the model's directory.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Cached KV does not fit the model or the place it was asked for.
    #[error("cached KV does not fit: {reason}; drop it and prefill the text again")]
    WrongKv {
        /// What does not fit.
        reason: String,
    },
    /// A chunk's KV cannot be read, or is not what was written.
    #[error("chunk {chunk} is damaged: {reason}; delete it and prefill its text again")]
    DamagedKv {
        /// The chunk.
        chunk: ChunkId,
        /// What was found.
        reason: String,
    },
    /// The store or ledger can be read, but not written.
    #[error("{what} is read-only: {reason}")]
    ReadOnly {
        /// What cannot be written.
        what: String,
        /// Why.
        reason: String,
    },
    /// There is no room left, on disk or in a budget.
    #[error("{what} is full: {reason}")]
    Full {
        /// What is full.
        what: String,
        /// The limit that was met.
        reason: String,
    },
    /// The KV cache has no room for a context.
    #[error("a context needs {needed} tokens of the KV cache, which has {available} of {total} for it: {}",
        if .needed > .total { "ask for less or give the model a larger KV cache" } else { "end other contexts or wait for their end" })]
    KvCacheFull {
        /// Tokens of the blocks that the context, and the forks that room was asked for, would hold, those included that it
        /// holds already: what it needs if all other contexts end. Where it is to write to a block that it shares, it is
        /// counted with a copy of that, for who shares it may stay.
        needed: usize,
        /// Tokens of the blocks that it holds and of those that nobody holds.
        available: usize,
        /// Tokens of all blocks.
        total: usize,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests wait already: try again later")]
    Overloaded {
        /// How many wait.
        waiting: usize,
    },
    /// The work was not finished: the caller gave it up, or the engine ended.
    #[error("cancelled")]
    Cancelled,
    /// A [`KvStore`](crate::KvStore) failed.
    #[error("KV store: {0}")]
    Store(#[source] BoxError),
    /// A [`Ledger`](crate::Ledger) failed.
    #[error("ledger: {0}")]
    Ledger(#[source] BoxError),
    /// A [`Recaller`](crate::Recaller) failed.
    #[error("recall: {0}")]
    Recall(#[source] BoxError),
    /// A [`Model`](crate::Model) or its backend failed.
    #[error("model: {0}")]
    Model(#[source] BoxError),
}

impl Error {
    /// Whether it is [`KvCacheFull`](Self::KvCacheFull) and there would be room if other contexts ended.
    pub fn lacks_room_for_now(&self) -> bool {
        matches!(self, Self::KvCacheFull { needed, total, .. } if needed <= total)
    }
}
