//! Which memories a question is about.

mod dense;
mod hybrid;
mod kv;
mod lexical;
pub(crate) mod saved;
mod tokenise;

use async_trait::async_trait;
pub use dense::{Dense, Embedder};
pub use hybrid::Hybrid;
pub use kv::KvEmbedder;
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

/// What is to be found.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct RecallQuery<'a> {
    /// What the records are to be about.
    pub text: &'a str,
    /// Records at most.
    pub k: usize,
    /// Which records may be found at all; all of them if `None`. To be asked *before* the best `k` are taken, or good
    /// records are lost behind better ones that do not count.
    pub counts: Option<&'a (dyn Fn(RecordId) -> bool + Sync)>,
}

impl<'a> RecallQuery<'a> {
    /// At most `k` records about a text.
    pub fn new(text: &'a str, k: usize) -> Self {
        Self { text, k, counts: None }
    }

    /// Only records for which this holds.
    #[must_use]
    pub fn only(self, counts: &'a (dyn Fn(RecordId) -> bool + Sync)) -> Self {
        Self { counts: Some(counts), ..self }
    }

    /// Whether a record may be found.
    pub fn may_find(&self, id: RecordId) -> bool {
        self.counts.is_none_or(|counts| counts(id))
    }
}

/// Finds the records that a question is about. It holds an index of the active records' texts and nothing that cannot
/// be rebuilt from the [`Ledger`](crate::Ledger).
///
/// It is checked by `testing::recaller` (feature `testing`).
#[async_trait]
pub trait Recaller: Send + Sync {
    /// Indexes records; one whose id is known is replaced. One that is not active is not indexed, and leaves the index
    /// if it was there. A record whose key, metadata or expiry changed and whose text did not need not come again.
    ///
    /// # Errors
    /// [`Error::Recall`](crate::Error::Recall) when the index fails.
    async fn index(&self, records: &[Record]) -> Result<()>;

    /// Takes records out of the index; unknown ones are ignored.
    ///
    /// # Errors
    /// [`Error::Recall`](crate::Error::Recall) when the index fails.
    async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()>;

    /// Takes all records of a namespace out of the index.
    ///
    /// # Errors
    /// [`Error::Recall`](crate::Error::Recall) when the index fails.
    async fn clear(&self, namespace: &Namespace) -> Result<()>;

    /// The language in which it cuts texts into words, if it does: questions about the past are answered by words in it,
    /// and in English otherwise.
    fn language(&self) -> Option<Language> {
        None
    }

    /// What [`save`](Self::save) writes, in a word: an index that is restored was saved under the same name. `None` where
    /// nothing is saved.
    fn index_name(&self) -> Option<String> {
        None
    }

    /// Records of a namespace from which on what is known of it is worth [saving](Self::save): fewer are indexed anew in some
    /// milliseconds.
    fn worth_saving(&self) -> usize {
        1000
    }

    /// What is known of a namespace, for [`restore`](Self::restore), so that a process to come need not index its records
    /// again. `None` where nothing is saved.
    ///
    /// # Errors
    /// [`Error::Recall`](crate::Error::Recall) when the index fails.
    async fn save(&self, namespace: &Namespace) -> Result<Option<Vec<u8>>> {
        let _ = namespace;
        Ok(None)
    }

    /// Knows of a namespace what was known when it was [saved](Self::save), and nothing else. `false` for bytes that make
    /// no sense: then nothing is known of the namespace.
    ///
    /// # Errors
    /// [`Error::Recall`](crate::Error::Recall) when the index fails.
    async fn restore(&self, namespace: &Namespace, saved: &[u8]) -> Result<bool> {
        let _ = saved;
        self.clear(namespace).await?;
        Ok(false)
    }

    /// At most `k` records of the namespace that fit the query and count for it, best first, ties by id. Records that do
    /// not fit at all are left out, so the answer may be empty.
    ///
    /// # Errors
    /// [`Error::Recall`](crate::Error::Recall) when the index fails.
    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>>;
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
