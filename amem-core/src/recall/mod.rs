//! Which memories a question is about.

mod lexical;

use async_trait::async_trait;

pub use lexical::Lexical;

use crate::{Namespace, Record, RecordId, Result};

/// A record that a question is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recalled {
    /// The record.
    pub id: RecordId,
    /// How well it fits. Comparable within one answer only; higher is better.
    pub score: f32,
}

/// Finds the records that a question is about. It holds an index of the active records' texts and nothing that cannot
/// be rebuilt from the [`Ledger`](crate::Ledger).
///
/// It is checked by [`testing::recaller`](crate::testing).
#[async_trait]
pub trait Recaller: Send + Sync {
    /// Indexes records; one whose id is known is replaced. Records that are not active are ignored.
    ///
    /// # Errors
    /// What the index met.
    async fn index(&self, records: &[Record]) -> Result<()>;

    /// Takes records out of the index; unknown ones are ignored.
    ///
    /// # Errors
    /// What the index met.
    async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()>;

    /// At most `k` records of the namespace that fit `query`, best first, ties by id. Records that do not fit at all
    /// are left out, so the answer may be empty.
    ///
    /// # Errors
    /// What the index met.
    async fn recall(&self, namespace: &Namespace, query: &str, k: usize) -> Result<Vec<Recalled>>;
}
