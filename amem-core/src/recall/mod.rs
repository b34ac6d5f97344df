//! Which memories a question is about.

mod dense;
mod hybrid;
mod lexical;
mod tokenise;

use async_trait::async_trait;
pub use dense::{Dense, Embedder};
pub use hybrid::Hybrid;
pub use lexical::{Language, Lexical};

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
/// It is checked by `testing::recaller` (feature `testing`).
#[async_trait]
pub trait Recaller: Send + Sync {
    /// Indexes records; one whose id is known is replaced. One that is not active is not indexed, and leaves the index
    /// if it was there.
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

/// The `k` best of these, best first, ties by id.
fn best(mut found: Vec<Recalled>, k: usize) -> Vec<Recalled> {
    let order = |a: &Recalled, b: &Recalled| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id));
    if (1..found.len()).contains(&k) {
        found.select_nth_unstable_by(k - 1, order);
    }
    found.truncate(k);
    found.sort_unstable_by(order);
    found
}
