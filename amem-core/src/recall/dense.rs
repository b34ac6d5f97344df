//! Recall by meaning: the cosine between embeddings, over all records of the namespace. Exhaustive, and fast enough for
//! a hundred thousand records; the embeddings come from outside.
//!
//! Embeddings are held in f16, which moves a cosine by less than 0.001 and halves what is held and saved.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::saved::{Reader, Writer};
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

    /// As [`embed`](Self::embed), for questions that such texts are to be found for: some models want the two told apart.
    ///
    /// # Errors
    /// What the embedder met.
    async fn embed_queries(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        self.embed(texts).await
    }

    /// What computes the vectors: a model's name and version. Saved vectors are used again under the same name only, and
    /// without one none are saved.
    fn name(&self) -> Option<&str> {
        None
    }
}

#[async_trait]
impl<E: Embedder + ?Sized> Embedder for Arc<E> {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        (**self).embed(texts).await
    }

    async fn embed_queries(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        (**self).embed_queries(texts).await
    }

    fn name(&self) -> Option<&str> {
        (**self).name()
    }
}

/// Finds records whose embeddings point the way the question's does. A record at a right angle or beyond does not
/// fit.
pub struct Dense<E> {
    embedder: E,
    dimensions: usize,
    index: Mutex<Index>,
}

const MARK: &[u8; 8] = b"amemvec1";
/// Vectors that are converted to f32 at a time.
const BLOCK: usize = 64;

#[derive(Default)]
struct Index {
    vectors: HashMap<Namespace, Vectors>,
    /// The call of `index` that each record being embedded waits for. A record that is removed, or indexed again, in
    /// the meantime waits for it no longer.
    pending: HashMap<RecordId, (Namespace, u64)>,
    calls: u64,
}

/// The unit vectors of one namespace, one behind the other.
#[derive(Default)]
struct Vectors {
    ids: Vec<RecordId>,
    numbers: Vec<f16>,
    places: HashMap<RecordId, usize>,
}

impl Vectors {
    fn insert(&mut self, id: RecordId, vector: &[f32]) {
        let numbers = vector.iter().map(|x| f16::from_f32(*x));
        match self.places.get(&id) {
            Some(place) => {
                let start = place * vector.len();
                self.numbers[start..start + vector.len()].iter_mut().zip(numbers).for_each(|(old, new)| *old = new);
            }
            None => {
                self.places.insert(id, self.ids.len());
                self.ids.push(id);
                self.numbers.extend(numbers);
            }
        }
    }

    /// Takes a vector out; the last one takes its place.
    fn remove(&mut self, id: &RecordId) {
        let Some(place) = self.places.remove(id) else { return };
        let dimensions = self.numbers.len() / self.ids.len();
        let last = self.ids.len() - 1;
        self.ids.swap_remove(place);
        self.numbers.copy_within(last * dimensions.., place * dimensions);
        self.numbers.truncate(last * dimensions);
        if let Some(moved) = self.ids.get(place) {
            self.places.insert(*moved, place);
        }
    }

    /// The cosine of each vector with the question's.
    fn cosines(&self, question: &[f32], mut each: impl FnMut(RecordId, f32)) {
        let dimensions = question.len();
        let mut block = vec![0.0; BLOCK * dimensions];
        for (ids, numbers) in self.ids.chunks(BLOCK).zip(self.numbers.chunks(BLOCK * dimensions)) {
            let block = &mut block[..numbers.len()];
            numbers.convert_to_f32_slice(block);
            ids.iter().zip(block.chunks_exact(dimensions)).for_each(|(id, vector)| each(*id, dot(vector, question)));
        }
    }

    fn save(&self, dimensions: usize) -> Vec<u8> {
        let mut writer = Writer::new(MARK);
        writer.number(dimensions as u64);
        writer.number(self.ids.len() as u64);
        self.ids.iter().for_each(|id| writer.id(*id));
        let bytes: Vec<u8> = self.numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.bytes(&bytes);
        writer.done()
    }

    fn restore(saved: &[u8], dimensions: usize) -> Option<Self> {
        let mut reader = Reader::new(MARK, saved)?;
        if reader.number()? != dimensions as u64 {
            return None;
        }
        let ids = (0..reader.count(16)?).map(|_| reader.id()).collect::<Option<Vec<_>>>()?;
        let bytes = reader.bytes()?;
        reader.is_done()?;
        let (pairs, _) = bytes.as_chunks();
        let numbers: Vec<f16> = pairs.iter().map(|pair| f16::from_le_bytes(*pair)).collect();
        let places: HashMap<RecordId, usize> = ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        // A unit vector's numbers are at most 1, and so are those of one without direction. A loop that may end early would not
        // become vector instructions.
        let largest = numbers.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff));
        let sound =
            bytes.len() == 2 * dimensions * ids.len() && places.len() == ids.len() && largest <= f16::ONE.to_bits();
        sound.then_some(Self { ids, numbers, places })
    }
}

impl<E: Embedder> Dense<E> {
    /// An empty index of vectors of this many dimensions.
    pub fn new(embedder: E, dimensions: usize) -> Self {
        Self { embedder, dimensions, index: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the embeddings of so many texts and makes them one long. A vector without direction stays zero, and fits
    /// nothing.
    fn unit_vectors(&self, mut vectors: Vec<Vec<f32>>, texts: usize) -> Result<Vec<Vec<f32>>> {
        if vectors.len() != texts {
            let reason = format!("the embedder gave {} vectors for {texts} texts", vectors.len());
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
        let texts: Vec<&str> = active.iter().map(|record| record.text.as_str()).collect();
        let vectors = self.embedder.embed(&texts).await.and_then(|vectors| self.unit_vectors(vectors, texts.len()));
        let mut index = self.lock();
        let waiting = |record: &&Record| index.pending.get(&record.id).is_some_and(|(_, waits_for)| *waits_for == call);
        let waiting: Vec<bool> = active.iter().map(waiting).collect();
        index.pending.retain(|_, (_, waits_for)| *waits_for != call);
        for ((record, vector), waiting) in active.into_iter().zip(vectors?).zip(waiting) {
            if waiting {
                index.vectors.entry(record.namespace.clone()).or_default().insert(record.id, &vector);
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

    fn index_name(&self) -> Option<String> {
        let name = self.embedder.name()?;
        Some(format!("{} {} {name}", MARK.escape_ascii(), self.dimensions))
    }

    /// Few: an encoder takes milliseconds for each text.
    fn worth_saving(&self) -> usize {
        16
    }

    /// Records that are being embedded at the moment are not in what is saved.
    async fn save(&self, namespace: &Namespace) -> Result<Option<Vec<u8>>> {
        if self.embedder.name().is_none() {
            return Ok(None);
        }
        let index = self.lock();
        Ok(Some(index.vectors.get(namespace).unwrap_or(&Vectors::default()).save(self.dimensions)))
    }

    async fn restore(&self, namespace: &Namespace, saved: &[u8]) -> Result<bool> {
        let restored = Vectors::restore(saved, self.dimensions);
        let sound = restored.is_some();
        self.clear(namespace).await?;
        if let Some(vectors) = restored.filter(|vectors| !vectors.ids.is_empty()) {
            self.lock().vectors.insert(namespace.clone(), vectors);
        }
        Ok(sound)
    }

    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
        if query.text.trim().is_empty() || !self.lock().vectors.contains_key(namespace) {
            return Ok(Vec::new());
        }
        let question = self.unit_vectors(self.embedder.embed_queries(&[query.text]).await?, 1)?;
        let question = question.into_iter().next().unwrap_or_default();
        let (index, mut found) = (self.lock(), Vec::new());
        if let Some(vectors) = index.vectors.get(namespace) {
            vectors.cosines(&question, |id, score| {
                if score > 0.0 && query.may_find(id) {
                    found.push(Recalled { id, score });
                }
            });
        }
        Ok(best(found, query.k))
    }
}

impl Index {
    fn remove(&mut self, namespace: &Namespace, id: &RecordId) {
        self.pending.remove(id);
        if let Some(vectors) = self.vectors.get_mut(namespace) {
            vectors.remove(id);
            if vectors.ids.is_empty() {
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

        fn name(&self) -> Option<&str> {
            Some("letters")
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

    /// Finds texts by their first letter, and questions by their last.
    struct Ends;

    #[async_trait]
    impl Embedder for Ends {
        async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
            Letters { dimensions: 128 }.embed(&texts.iter().map(|text| &text[..1]).collect::<Vec<_>>()).await
        }

        async fn embed_queries(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
            self.embed(&texts.iter().map(|text| &text[text.len() - 1..]).collect::<Vec<_>>()).await
        }
    }

    #[test]
    fn questions_are_embedded_as_questions() {
        let dense = Dense::new(Arc::new(Ends), 128);
        let records = [record("ax"), record("bx")];
        block_on(dense.index(&records)).unwrap();
        let found = block_on(dense.recall(&home(), &RecallQuery::new("ab", 2))).unwrap();
        assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), [records[1].id]);
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
