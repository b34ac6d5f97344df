//! What was said: records, their lives, and the ledger that keeps them.

mod ram;
mod record;

use async_trait::async_trait;
pub use ram::RamLedger;
pub use record::{Added, Namespace, NewRecord, Outcome, Record, RecordId, State, Timestamp, Version};

use crate::{ChunkId, Result};

/// A place in the ledger's history. Every change to the ledger has a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// Which records of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Query {
    /// Those that count at this moment (now or earlier: "as of"), with the text that they had then. Forgotten records
    /// appear in no such view, for their text is gone.
    At(Timestamp),
    /// All that ever were, as they are at the time of the call, forgotten ones without their text.
    All,
}

/// Keeps the records: the one thing that must not be lost. Every write is durable when it returns, and several
/// processes may share one ledger.
///
/// Expiry needs no call: a record whose `expires_at` is not after the moment in question counts as expired. It is
/// checked by `testing::ledger` (feature `testing`).
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Adds texts, all or none of them, in order. Blanks at both ends of a text are not part of it. An implementation
    /// may pay for each call rather than for each text, so give it many at once where there are many.
    ///
    /// # Errors
    /// [`Error::Empty`] for a text with nothing in it; what the ledger met.
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> Result<Vec<Added>>;

    /// One record, whatever its state (as it is at `now`).
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; what the ledger met.
    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record>;

    /// The records of a namespace in the order in which they were added.
    ///
    /// # Errors
    /// What the ledger met.
    async fn list(&self, namespace: &Namespace, query: Query) -> Result<Vec<Record>>;

    /// Gives an active record another text; the old one stays in its history. The chunks linked to the old text become
    /// [`doomed`](Self::doomed), unless another active record links them too. The text it has already changes nothing.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`], [`Error::NotActive`], [`Error::Empty`], [`Error::SameText`] when another active
    /// record with the same key (or, like this one, without any) says it already; what the ledger met.
    async fn update(&self, namespace: &Namespace, id: RecordId, text: &str, now: Timestamp) -> Result<Record>;

    /// Forgets a record: all texts it ever had are wiped from the ledger's files, and all chunks linked to it become
    /// doomed, unless another active record links them too. Forgetting a forgotten record changes nothing.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; what the ledger met.
    async fn forget(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record>;

    /// All texts that a record had, oldest first.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; what the ledger met.
    async fn history(&self, namespace: &Namespace, id: RecordId) -> Result<Vec<Version>>;

    /// The namespaces that have records, in order of their names.
    ///
    /// # Errors
    /// What the ledger met.
    async fn namespaces(&self) -> Result<Vec<Namespace>>;

    /// The namespace's records that changed after `since`, by this process or another, as they are now, and the
    /// revision to ask from next time. `Revision(0)` asks for all. That a record's time is over is no change: whoever
    /// keeps records filters them by their `expires_at`.
    ///
    /// # Errors
    /// What the ledger met.
    async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> Result<(Vec<Record>, Revision)>;

    /// Notes, for all of `links` or none, that chunks hold the KV of a record's present text, so that forgetting the
    /// record finds them. A chunk that was doomed is so no more, unless the record was forgotten meanwhile: then the
    /// chunk is doomed at once.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; what the ledger met.
    async fn link(&self, namespace: &Namespace, links: &[(RecordId, ChunkId)]) -> Result<()>;

    /// Chunks that hold text nobody should find any more, to be deleted from every store. They are named here until
    /// [`buried`](Self::buried) says that it is done, so a crash in between forgets nothing.
    ///
    /// # Errors
    /// What the ledger met.
    async fn doomed(&self) -> Result<Vec<ChunkId>>;

    /// Notes that doomed chunks were deleted.
    ///
    /// # Errors
    /// What the ledger met.
    async fn buried(&self, chunks: &[ChunkId]) -> Result<()>;
}
