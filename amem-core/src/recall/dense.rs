//! Recall by meaning: the cosine between embeddings, over all records of the namespace. Exact, and fast enough for
//! tens of thousands of records; the embeddings come from outside.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{RecallQuery, Recalled, Recaller, best};
use crate::{Error, Namespace, Record, RecordId, Result, State};

/// Turns texts into vectors such that texts of like meaning point the same way.
#[async_trait]
pub trait Embedder: Send + Sync {
    /// One vector for each text, in order, all of one length. Their lengths (norms) do not matter.
    ///
    /// # Errors
    /// What the embedder met.
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>>;
}

/// Finds records whose embeddings point the way the question's does. A record at a right angle or beyond does not
/// fit.
pub struct Dense<E> {
    embedder: E,
    dimensions: usize,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    /// Unit vectors.
    vectors: HashMap<Namespace, HashMap<RecordId, Vec<f32>>>,
    /// The call of `index` that each record being embedded waits for. A record that is removed, or indexed again, in
    /// the meantime waits for it no longer.
    pending: HashMap<RecordId, (Namespace, u64)>,
    calls: u64,
}

impl<E: Embedder> Dense<E> {
    /// An empty index of vectors of this many dimensions.
    pub fn new(embedder: E, dimensions: usize) -> Self {
        Self { embedder, dimensions, index: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Embeds texts and checks what came back. A vector without direction stays zero, and fits nothing.
    async fn unit_vectors(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = self.embedder.embed(texts).await?;
        if vectors.len() != texts.len() {
            let reason = format!("the embedder gave {} vectors for {} texts", vectors.len(), texts.len());
            return Err(Error::Recall(reason.into()));
        }
        for vector in &mut vectors {
            if vector.len() != self.dimensions || vector.iter().any(|x| !x.is_finite()) {
                let reason = format!("the embedder gave {} numbers, not {} finite ones", vector.len(), self.dimensions);
                return Err(Error::Recall(reason.into()));
            }
            let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            if norm > 0.0 {
                vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
            }
        }
        Ok(vectors)
    }
}

#[async_trait]
impl<E: Embedder> Recaller for Dense<E> {
    async fn index(&self, records: &[Record]) -> Result<()> {
        let (active, gone): (Vec<&Record>, Vec<&Record>) = records.iter().partition(|r| r.state == State::Active);
        let call = {
            let mut index = self.lock();
            gone.iter().for_each(|record| index.remove(&record.namespace, &record.id));
            index.calls += 1;
            let call = index.calls;
            index.pending.extend(active.iter().map(|record| (record.id, (record.namespace.clone(), call))));
            call
        };
        if active.is_empty() {
            return Ok(());
        }
        let vectors = self.unit_vectors(&active.iter().map(|record| record.text.as_str()).collect::<Vec<_>>()).await;
        let mut index = self.lock();
        let waiting = |record: &&Record| index.pending.get(&record.id).is_some_and(|(_, waits_for)| *waits_for == call);
        let waiting: Vec<bool> = active.iter().map(waiting).collect();
        index.pending.retain(|_, (_, waits_for)| *waits_for != call);
        for ((record, vector), waiting) in active.into_iter().zip(vectors?).zip(waiting) {
            if waiting {
                index.vectors.entry(record.namespace.clone()).or_default().insert(record.id, vector);
            }
        }
        Ok(())
    }

    async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
        let mut index = self.lock();
        ids.iter().for_each(|id| index.remove(namespace, id));
        Ok(())
    }

    async fn clear(&self, namespace: &Namespace) -> Result<()> {
        let mut index = self.lock();
        index.vectors.remove(namespace);
        index.pending.retain(|_, (owner, _)| owner != namespace);
        Ok(())
    }

    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
        if query.text.trim().is_empty() || !self.lock().vectors.contains_key(namespace) {
            return Ok(Vec::new());
        }
        let question = self.unit_vectors(&[query.text]).await?.into_iter().next().unwrap_or_default();
        let index = self.lock();
        let records = index.vectors.get(namespace).into_iter().flatten().filter(|(id, _)| query.may_find(**id));
        let scored = records.map(|(id, vector)| Recalled { id: *id, score: dot(vector, &question) });
        Ok(best(scored.filter(|found| found.score > 0.0).collect(), query.k))
    }
}

impl Index {
    fn remove(&mut self, namespace: &Namespace, id: &RecordId) {
        self.pending.remove(id);
        if let Some(vectors) = self.vectors.get_mut(namespace) {
            vectors.remove(id);
            if vectors.is_empty() {
                self.vectors.remove(namespace);
            }
        }
    }
}

/// Eight sums side by side, which the compiler keeps in one register.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    let mut sums = [0.0; 8];
    for (a, b) in a.zip(b) {
        (0..8).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{self, block_on};

    use super::*;
    use crate::{Metadata, Timestamp};

    /// Counts letters: crude, but equal texts point the same way.
    struct Letters {
        dimensions: usize,
    }

    #[async_trait]
    impl Embedder for Letters {
        async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
            future::yield_now().await;
            let embed = |text: &&str| {
                let mut vector = vec![0.0; self.dimensions];
                text.bytes().filter(u8::is_ascii_alphanumeric).for_each(|b| vector[usize::from(b) % 128] += 1.0);
                vector
            };
            Ok(texts.iter().map(embed).collect())
        }
    }

    fn dense() -> Dense<Letters> {
        Dense::new(Letters { dimensions: 128 }, 128)
    }

    fn home() -> Namespace {
        Namespace::new("home").unwrap()
    }

    fn record(text: &str) -> Record {
        let at = Timestamp(0);
        let (id, namespace, text) = (RecordId::new(), home(), text.to_owned());
        Record {
            id,
            namespace,
            text,
            key: None,
            metadata: Metadata::default(),
            created_at: at,
            updated_at: at,
            expires_at: None,
            state: State::Active,
        }
    }

    #[test]
    fn vectors_of_the_wrong_length_are_refused_and_change_nothing() {
        let dense = Dense::new(Letters { dimensions: 128 }, 127);
        assert!(matches!(block_on(dense.index(&[record("a")])), Err(Error::Recall(_))));
        assert_eq!(block_on(dense.recall(&home(), &RecallQuery::new("a", 1))).unwrap(), []);
        assert!(dense.lock().pending.is_empty());
    }

    #[test]
    fn a_record_that_is_removed_while_it_is_embedded_stays_removed() {
        let (dense, record) = (dense(), record("abc"));
        let records = [record.clone()];
        block_on(async {
            let mut indexing = Box::pin(dense.index(&records));
            assert!(future::poll_once(&mut indexing).await.is_none());
            dense.remove(&home(), &[record.id]).await.unwrap();
            indexing.await.unwrap();
            assert_eq!(dense.recall(&home(), &RecallQuery::new("abc", 1)).await.unwrap(), []);
        });
    }

    #[test]
    fn a_record_whose_namespace_is_cleared_while_it_is_embedded_stays_out() {
        let (dense, records) = (dense(), [record("abc")]);
        block_on(async {
            let mut indexing = Box::pin(dense.index(&records));
            assert!(future::poll_once(&mut indexing).await.is_none());
            dense.clear(&home()).await.unwrap();
            indexing.await.unwrap();
            assert_eq!(dense.recall(&home(), &RecallQuery::new("abc", 1)).await.unwrap(), []);
        });
    }

    #[test]
    fn a_dot_product_takes_in_every_dimension() {
        let numbers: Vec<f32> = (1..=11_u8).map(f32::from).collect();
        assert_eq!(dot(&numbers, &numbers), 506.0);
    }

    #[cfg(feature = "testing")]
    #[test]
    fn dense_keeps_the_traits_promises() {
        crate::testing::recaller(|| Box::new(dense()));
    }
}
