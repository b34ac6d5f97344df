//! The KV cache as a pass sees it: stored KV comes into a layer before the pass gets there.
//!
//! Where all chunks of a context lie in host memory, they are loaded at once. Otherwise they come a few layers at a time, and
//! the pass computes with these while the system reads ahead what the store was told to
//! [prefetch](crate::KvStore::prefetch). So a disk is waited for where computing takes less time than reading, and then only
//! for the difference.

use std::borrow::Cow;
use std::sync::Arc;

use super::backend::{Backend, Placement};
use super::loaded_model::LoadedModel;
use crate::{Encoding, Error, KvChunk, KvData, Result};

/// Parts in which the layers of chunks are loaded that have to be read. With more of them less is waited for before the first
/// layer; with fewer, more layers are read side by side.
const PARTS: usize = 8;

/// Stored KV that has its slots in a context, and is not in them yet.
#[derive(Default)]
pub(super) struct PendingKv {
    /// Chunks and their first slots. A slot stands for the position of the same number.
    pub(super) chunks: Vec<(KvChunk, u32)>,
    /// The blocks of the context's slots. None of those that the chunks come into is shared with another context.
    pub(super) table: Vec<u32>,
}

/// The KV cache during passes, and what comes into it on the way.
pub(super) struct PassCache<'p, B: Backend> {
    model: &'p LoadedModel<B>,
    cache: &'p mut B::Cache,
    /// One for each context.
    loads: Vec<Load>,
    /// A load has failed, and maybe work of the pass with it.
    has_failed: bool,
}

/// What comes into one context's slots.
struct Load {
    pending: PendingKv,
    /// So many layers, from the first on, are in the cache.
    loaded: usize,
    /// So many are loaded at a time.
    part: usize,
    failure: Option<Error>,
}

impl Load {
    fn new(pending: PendingKv, layers: usize) -> Self {
        let in_memory = pending.chunks.iter().all(|(chunk, _)| chunk.contiguous().is_some());
        let part = if in_memory { layers } else { layers.div_ceil(PARTS) };
        Self { pending, loaded: 0, part: part.max(1), failure: None }
    }

    /// Has all layers before this one in the cache. Where a chunk is damaged, there are zeros for the rest of the pass: other
    /// contexts' rows are in it too, and what comes of these is dropped.
    fn load_before<B: Backend>(&mut self, layer: usize, model: &LoadedModel<B>, cache: &mut B::Cache) -> Result<()> {
        let Self { pending: PendingKv { chunks, table }, loaded, part, failure } = self;
        while *loaded < layer && !chunks.is_empty() {
            let layers = *loaded..(*loaded + *part).min(model.config.layers);
            let placements: Vec<Placement<'_>> =
                chunks.iter().map(|(chunk, slot)| Placement { chunk, table, slot: *slot, position: *slot }).collect();
            match model.load_kv(cache, layers.clone(), &placements) {
                Ok(()) => *loaded = layers.end,
                Err(error @ Error::DamagedKv { .. }) if failure.is_none() => {
                    *failure = Some(error);
                    chunks.iter_mut().for_each(|(chunk, _)| *chunk = zeros(chunk));
                }
                // It may be work of this pass that failed, and not this load.
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The chunk with zeros for its KV.
fn zeros(chunk: &KvChunk) -> KvChunk {
    let zeros = Zeros { encoding: chunk.encoding(), size: chunk.size(), layers: chunk.shape().layers };
    chunk.clone().with_data(Arc::new(zeros)).unwrap_or_else(|_| chunk.clone())
}

/// Bytes that are zero, which stand for zeros in all encodings.
struct Zeros {
    encoding: Encoding,
    size: usize,
    layers: usize,
}

impl KvData for Zeros {
    fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn size(&self) -> usize {
        self.size
    }

    fn layer(&self, _: usize) -> Result<Cow<'_, [u8]>> {
        Ok(vec![0; self.size / self.layers.max(1)].into())
    }
}

impl<'p, B: Backend> PassCache<'p, B> {
    /// A cache into which this comes, for each context.
    pub(super) fn new(
        model: &'p LoadedModel<B>,
        cache: &'p mut B::Cache,
        pending: impl IntoIterator<Item = PendingKv>,
    ) -> Self {
        let layers = model.config.layers;
        let loads = pending.into_iter().map(|pending| Load::new(pending, layers)).collect();
        Self { model, cache, loads, has_failed: false }
    }

    /// The cache, with all that is stored in this layer and those before it. Of a context with a damaged chunk there are
    /// zeros instead, and [`finish`](Self::finish) says so.
    ///
    /// # Errors
    /// When the backend fails: then the pass has.
    pub(super) fn layer(&mut self, layer: usize) -> Result<&mut B::Cache> {
        self.load_before(layer + 1)?;
        Ok(self.cache)
    }

    /// The cache, for copying blocks of which no slot is waited for.
    pub(super) fn blocks(&mut self) -> &mut B::Cache {
        self.cache
    }

    /// Loads what no pass has come to. Says for each context whether all of its KV was whole.
    ///
    /// # Errors
    /// When the backend fails: then the pass has.
    pub(super) fn finish(mut self) -> Result<Vec<Result<()>>> {
        self.load_before(self.model.config.layers)?;
        Ok(self.loads.into_iter().map(|load| load.failure.map_or(Ok(()), Err)).collect())
    }

    fn load_before(&mut self, layer: usize) -> Result<()> {
        // Also where whoever was told of the failure has gone on with other contexts.
        if self.has_failed {
            return Err(Error::Model("stored KV could not be loaded in this pass".into()));
        }
        let loaded = self.loads.iter_mut().try_for_each(|load| load.load_before(layer, self.model, self.cache));
        self.has_failed = loaded.is_err();
        loaded
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Transformer, fixtures};
    use super::*;
    use crate::testing::{Probe, Reference};
    use crate::{AppendOptions, Budget, Model, Piece, PrefillText, PrefixId, Repair, Step, Token};

    /// KV whose layers have to be read.
    struct Read(KvChunk);

    impl KvData for Read {
        fn encoding(&self) -> Encoding {
            self.0.encoding()
        }

        fn size(&self) -> usize {
            self.0.size()
        }

        fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>> {
            self.0.data().layer(layer)
        }
    }

    /// A model whose calls are watched, and a chunk of it.
    fn watched() -> (Probe<Reference>, Transformer<Probe<Reference>>, KvChunk) {
        let probe = Probe::new(Reference);
        let model = Transformer::load(&fixtures::demo(), probe.clone(), Options::default()).unwrap();
        let tokens: Arc<[Token]> = [5, 6, 7].into();
        let text = PrefillText { id: model.info().chunk_id("", &PrefixId::of(&[]), &tokens), tokens };
        let chunk = model.prefill(&[], &[text], false).unwrap().0.remove(0);
        (probe, model, chunk)
    }

    #[test]
    fn a_load_that_fails_while_one_context_is_computed_alone_fails_the_pass_of_all() {
        let (probe, model, chunk) = watched();
        let alone = AppendOptions::new(Repair::Attention { budget: Budget::Rows(1), layers: 2..3 });
        let pieces = [Piece::Fresh([8, 9].into()), Piece::Cached(chunk), Piece::Fresh([8].into())];
        let results = |fail_at: usize| {
            let [mut one, mut other] = [(); 2].map(|()| model.open(0).unwrap());
            one.append(&pieces, &alone).unwrap();
            other.append(&pieces, &AppendOptions::new(Repair::None)).unwrap();
            probe.take_calls();
            probe.fail_at(fail_at);
            let steps = &mut [&mut one, &mut other].map(|context| Step { context: &mut **context, max_rows: 100 });
            model.advance(steps)
        };
        let sound = results(0);
        assert!(sound.iter().all(Result::is_ok), "{sound:?}");
        let first_load = 1 + probe.take_calls().iter().position(|call| *call == "load_kv").unwrap();
        assert!(results(first_load).iter().all(Result::is_err), "nobody knows what failed with it");
    }

    #[test]
    fn kv_that_has_to_be_read_is_waited_for_layer_by_layer_and_kv_in_memory_comes_at_once() {
        let (probe, model, in_memory) = watched();
        let to_read = in_memory.clone().with_data(Arc::new(Read(in_memory.clone()))).unwrap();
        let calls_of = |pieces: &[Piece]| {
            let mut context = model.open(0).unwrap();
            probe.take_calls();
            context.append(pieces, &AppendOptions::new(Repair::None)).unwrap();
            let appended = probe.take_calls();
            model.advance(&mut [Step { context: &mut *context, max_rows: 100 }]).remove(0).unwrap();
            assert!(!appended.contains(&"load_kv"), "appending waits for nothing");
            let calls = probe.take_calls().into_iter();
            calls.filter(|call| ["load_kv", "attend"].contains(call)).collect::<Vec<_>>()
        };
        let (layers, question) = (model.info().shape.layers, Piece::Fresh([8, 9].into()));
        assert!((2..=PARTS).contains(&layers), "each layer is a part");
        let at_once = [vec!["load_kv"], vec!["attend"; layers]].concat();
        assert_eq!(calls_of(&[Piece::Cached(in_memory.clone()), question.clone()]), at_once);
        assert_eq!(calls_of(&[Piece::Cached(to_read.clone()), question]), ["load_kv", "attend"].repeat(layers));
        assert_eq!(
            calls_of(&[Piece::Cached(to_read)]),
            vec!["load_kv"; layers],
            "without rows to compute it comes too"
        );
    }
}
