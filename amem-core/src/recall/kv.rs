//! Embeddings from the KV that a model computes anyway, for whoever has no model of embeddings.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;

use super::Embedder;
use crate::{Engine, Error, KvChunk, Namespace, Result, Token};

/// Tokens that are prefilled at a time, about: their KV is held until it has been read.
const BATCH: usize = 4096;
/// The power of a value's norm that it counts with.
const SHARPNESS: i32 = 4;

/// Embeds a text by the values that the model's first layer holds for its tokens: their mean, in which a value counts
/// with the fourth power of its norm, as a unit vector of [`KvShape::row`](crate::KvShape::row) numbers.
///
/// **It recalls less than [`Lexical`](super::Lexical) does, and adds little to it.** The first layer's values depend on
/// the tokens alone, so texts are close that share tokens, and those that only mean the same are not. On the demo model
/// they were better than the values and keys of every other layer, behind no text as well as behind the chat template's
/// head, and than plain, centred and largest values. Of the memories that questions to the demo model's worlds need, in
/// percent, these are among the eight that are recalled first:
///
/// | of memories | by | one-hop | coreference | two-hop |
/// | ---- | -------------------------- | ---- | ---- | ---- |
/// | 100  | [`Lexical`](super::Lexical) | 99.1 | 64.3 | 57.7 |
/// |      | [`Dense`](super::Dense) over this | 93.6 | 51.1 | 45.6 |
/// |      | [`Hybrid`](super::Hybrid) of both | 99.6 | 59.1 | 55.4 |
/// |      | [`Dense`](super::Dense) over all-MiniLM-L6-v2 | 100.0 | 73.6 | 55.7 |
/// |      | [`Hybrid`](super::Hybrid) of words and that | 100.0 | 68.7 | 60.2 |
/// | 1000 | [`Lexical`](super::Lexical) | 92.0 | 48.5 | 48.8 |
/// |      | [`Dense`](super::Dense) over this | 68.5 | 32.0 | 30.5 |
/// |      | [`Hybrid`](super::Hybrid) of both | 91.5 | 45.2 | 47.4 |
/// |      | [`Dense`](super::Dense) over all-MiniLM-L6-v2 | 93.5 | 32.8 | 37.5 |
/// |      | [`Hybrid`](super::Hybrid) of words and that | 94.0 | 42.5 | 46.1 |
///
/// The last two of each are those of an encoder (`transformer::Encoder`). It finds what is said in other words; among a
/// thousand notes that are alike but for a name or two, words find more.
///
/// `examples/recall.rs` measures it: four worlds of 100 memories (seeds 1 to 4) and one of 1,000 (seed 5). Layer and
/// power were chosen on other worlds of 100 (seeds 11 and 12). No other language model was measured.
///
/// A text is prefilled by the engine, between the steps of other requests, as one of its owner's. Nothing of its KV is
/// kept.
pub struct KvEmbedder {
    engine: Engine,
    owner: Namespace,
    name: String,
}

impl KvEmbedder {
    /// Embeddings by the values of the first layer, computed for this namespace.
    pub fn new(engine: Engine, owner: Namespace) -> Self {
        let info = engine.model().info();
        let name = format!("{} {} values of layer 0, norm^{SHARPNESS}", info.name, info.fingerprint);
        Self { engine, owner, name }
    }

    /// Numbers in an embedding.
    pub fn dimensions(&self) -> usize {
        self.engine.model().info().shape.row()
    }

    /// Embeddings of texts that are tokens. A text without tokens has a zero vector.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub async fn embed_tokens(&self, texts: &[Arc<[Token]>]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = vec![vec![0.0; self.dimensions()]; texts.len()];
        for batch in batches(texts) {
            let places: Vec<usize> = batch.filter(|place| !texts[*place].is_empty()).collect();
            let info = self.engine.model().info();
            let named = info.prefill_texts(self.owner.as_str(), &[], places.iter().map(|place| &texts[*place]));
            if named.is_empty() {
                continue;
            }
            let prefilled = self.engine.prefill(&self.owner, Arc::default(), named, false).await?;
            if prefilled.chunks.len() != places.len() {
                return Err(Error::Model("the model gave another number of chunks than of texts".into()));
            }
            for (place, chunk) in places.into_iter().zip(&prefilled.chunks) {
                vectors[place] = self.read(chunk)?;
            }
        }
        Ok(vectors)
    }

    /// The embedding of a text whose KV this is.
    fn read(&self, chunk: &KvChunk) -> Result<Vec<f32>> {
        let shape = self.engine.model().info().shape;
        let layer = chunk.layer(0)?;
        let mut sum = vec![0.0; shape.row()];
        let mut row = vec![0.0; shape.row()];
        for token in 0..chunk.tokens().len() {
            row.chunks_exact_mut(shape.head_dim).enumerate().for_each(|(head, part)| layer.value(token, head, part));
            let weight = norm(row.iter().map(|x| f64::from(*x))).powi(SHARPNESS);
            sum.iter_mut().zip(&row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        let norm = norm(sum.iter().copied());
        let scale = if norm > 0.0 { norm.recip() } else { 0.0 };
        Ok(sum.into_iter().map(|x| (x * scale) as f32).collect())
    }
}

/// Texts in order, some at a time.
fn batches(texts: &[Arc<[Token]>]) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (place, text) in texts.iter().enumerate() {
        tokens += text.len();
        match batches.last_mut().filter(|_| tokens <= BATCH) {
            Some(batch) => batch.end = place + 1,
            None => {
                tokens = text.len();
                batches.push(place..place + 1);
            }
        }
    }
    batches
}

fn norm(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|x| x * x).sum::<f64>().sqrt()
}

#[async_trait]
impl Embedder for KvEmbedder {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let chat = self.engine.model().chat();
        let tokens = texts.iter().map(|text| Ok(chat.encode(text)?.into())).collect::<Result<Vec<Arc<[Token]>>>>()?;
        self.embed_tokens(&tokens).await
    }

    fn name(&self) -> Option<&str> {
        Some(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn batches_are_all_texts_in_order_and_no_longer_than_they_must_be(
            lengths in prop::collection::vec(prop_oneof![0usize..9, BATCH / 3..2 * BATCH], 0..12),
        ) {
            let texts: Vec<Arc<[Token]>> = lengths.iter().map(|length| vec![0; *length].into()).collect();
            let batches = batches(&texts);
            let all: Vec<usize> = batches.iter().flat_map(Clone::clone).collect();
            prop_assert_eq!(all, (0..texts.len()).collect::<Vec<_>>());
            for batch in batches {
                prop_assert!(batch.len() == 1 || lengths[batch].iter().sum::<usize>() <= BATCH);
            }
        }
    }
}
