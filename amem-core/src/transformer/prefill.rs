//! Computing memories: many short texts in one pass, each behind the prefix alone, and how sensitive each of their
//! rows is to what else stands before it.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::Transformer;
use super::backend::{Backend, BlockTable, Placement, Row, Span};
use super::context::check_tokens;
use super::loaded_model::LoadedModel;
use super::pass::{Pass, PassScope};
use super::pass_cache::PassCache;
use crate::model::STEP_ROWS;
use crate::{ChunkId, Dtype, Encoding, Error, HostKv, KvChunk, PrefillText, PrefixId, Result, Token, Usage};

/// What memories are computed behind.
pub(super) struct Prefix {
    tokens: Vec<Token>,
    /// `None` for no tokens at all.
    chunk: Option<KvChunk>,
    /// Unrelated notes, computed behind the prefix: what else could stand before a memory.
    distractors: Vec<KvChunk>,
    /// What is far and what is near in each layer's keys and values.
    scales: Vec<[f32; 2]>,
}

/// Unrelated notes that are put before a memory to measure its sensitivity, in place of all that could stand there: people
/// who do this and that, one of them spoken of by a pronoun, so that words which lean on what came before find something
/// else to lean on.
const DISTRACTORS: [&str; 2] = ["Anna has a dog named Rex.", "Peter enjoys chess. His friend is Carl."];

impl<B: Backend> Transformer<B> {
    /// What [`Model::prefill`](crate::Model::prefill) is.
    pub(super) fn prefill_behind(
        &self,
        prefix: &[Token],
        texts: &[PrefillText],
        measure: bool,
    ) -> Result<(Vec<KvChunk>, Usage)> {
        for PrefillText { tokens: text, .. } in texts {
            check_tokens(text, &self.info)?;
            let (tokens, limit) = (prefix.len() + text.len(), self.info.context);
            if text.is_empty() {
                return Err(Error::Empty { what: "memory" });
            }
            if tokens > limit {
                return Err(Error::TooLong { what: "memory", tokens, limit });
            }
        }
        check_tokens(prefix, &self.info)?;
        let prefix = self.prefix(prefix)?;
        let behind: Vec<&KvChunk> = prefix.chunk.iter().collect();
        let compute = || self.prefill_chunks(&behind, PrefixId::of(&prefix.tokens), texts, measure.then_some(&*prefix));
        let chunks = self.model.backend.run(compute)?;
        let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
        let work = tokens * self.info.shape.layers * if measure { 2 } else { 1 };
        Ok((chunks, Usage { prefilled: tokens, work_prefilling: work as u64, ..Usage::default() }))
    }

    /// The prefix's KV, computed once.
    fn prefix(&self, tokens: &[Token]) -> Result<Arc<Prefix>> {
        const KEPT: usize = 4;
        let mut kept = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prefix) = kept.iter().find(|prefix| prefix.tokens == tokens) {
            return Ok(Arc::clone(prefix));
        }
        let prefix = Arc::new(self.compute_prefix(tokens)?);
        kept.push_front(Arc::clone(&prefix));
        kept.truncate(KEPT);
        Ok(prefix)
    }

    fn compute_prefix(&self, tokens: &[Token]) -> Result<Prefix> {
        // Nothing of this leaves the model, so it is nobody's.
        let text = |prefix: &[Token], tokens: Arc<[Token]>| PrefillText {
            id: self.info.chunk_id("", &PrefixId::of(prefix), &tokens),
            tokens,
        };
        let chunk = match tokens {
            [] => None,
            _ => self.prefill_chunks(&[], PrefixId::of(&[]), &[text(&[], tokens.into())], None)?.pop(),
        };
        let layout = self.chat.layout("")?;
        let notes = DISTRACTORS.iter().map(|text| Ok(layout.memory(&self.chat.encode(text)?)));
        let notes = notes.collect::<Result<Vec<_>>>()?;
        let behind: Vec<&KvChunk> = chunk.iter().collect();
        let scales = forward(&self.model, &behind, &notes)?.scales()?;
        let named: Vec<PrefillText> = notes.iter().map(|note| text(tokens, Arc::clone(note))).collect();
        let distractors = self.prefill_chunks(&behind, PrefixId::of(tokens), &named, None)?;
        Ok(Prefix { tokens: tokens.to_vec(), chunk, distractors, scales })
    }

    /// The chunks of texts behind others; with their sensitivity, if there is a prefix to measure it with.
    fn prefill_chunks(
        &self,
        behind: &[&KvChunk],
        prefix: PrefixId,
        texts: &[PrefillText],
        measured: Option<&Prefix>,
    ) -> Result<Vec<KvChunk>> {
        let mut chunks = Vec::with_capacity(texts.len());
        let tokens: Vec<Arc<[Token]>> = texts.iter().map(|text| Arc::clone(&text.tokens)).collect();
        let mut ids = texts.iter().map(|text| text.id);
        for texts in batches(&tokens) {
            let computed = forward(&self.model, behind, texts)?;
            let sensitivity = match measured {
                None => None,
                Some(prefix) => {
                    let further: Vec<&KvChunk> = behind.iter().copied().chain(&prefix.distractors).collect();
                    let moved = forward(&self.model, &further, texts)?;
                    Some(computed.distances(&moved, &prefix.scales)?)
                }
            };
            let mut first = 0;
            let runs: Vec<Range<usize>> = texts
                .iter()
                .map(|text| {
                    let rows = first..first + text.len();
                    first = rows.end;
                    rows
                })
                .collect();
            let all_kv = computed.chunks(self.model.kv.dtype, &runs)?;
            for (((text, id), rows), kv) in texts.iter().zip(&mut ids).zip(runs).zip(all_kv) {
                let chunk = self.chunk(id, prefix, text, kv)?;
                chunks.push(match &sensitivity {
                    Some(all) => chunk.with_sensitivity(all[rows].into())?,
                    None => chunk,
                });
            }
        }
        Ok(chunks)
    }

    fn chunk(&self, id: ChunkId, prefix: PrefixId, tokens: &Arc<[Token]>, kv: Vec<u8>) -> Result<KvChunk> {
        let data = HostKv::new(Encoding::Plain(self.model.kv.dtype), self.info.shape.layers, kv);
        let chunk = KvChunk::new(id, prefix, self.info.shape, Arc::clone(tokens), Arc::new(data))?;
        Ok(chunk.with_model(self.info.fingerprint))
    }
}

/// Cuts texts into runs that go through the model together: [`STEP_ROWS`] rows, unless a single text has more.
fn batches(texts: &[Arc<[Token]>]) -> impl Iterator<Item = &[Arc<[Token]>]> {
    let mut rest = texts;
    std::iter::from_fn(move || {
        let count = fitting(rest.iter().map(|text| text.len())).min(rest.len());
        let (batch, others) = rest.split_at(count);
        rest = others;
        (!batch.is_empty()).then_some(batch)
    })
}

/// How many of the first texts, of so many tokens each, go through together: [`STEP_ROWS`] rows, unless the first has more.
pub(super) fn fitting(tokens: impl Iterator<Item = usize>) -> usize {
    let mut rows = 0;
    let fits = |tokens: &usize| {
        rows += tokens;
        rows <= STEP_ROWS
    };
    tokens.take_while(fits).count().max(1)
}

/// Keys (before rotation) and values of some rows, where they were computed: for each layer `[rows][kv_heads * head_dim]`.
struct Computed<'g, B: Backend> {
    backend: &'g B,
    layers: Vec<[B::Tensor; 2]>,
    rows: usize,
    width: usize,
}

/// Computes texts side by side: each sees the chunks of `behind` and itself. A text that is longer than a run is computed
/// in several passes, so that activations stay small.
fn forward<'g, B: Backend>(
    model: &'g LoadedModel<B>,
    behind: &[&KvChunk],
    texts: &[Arc<[Token]>],
) -> Result<Computed<'g, B>> {
    let start: usize = behind.iter().map(|chunk| chunk.tokens().len()).sum();
    let slots = start + texts.iter().map(|text| text.len()).sum::<usize>();
    // A cache of its own: nothing of it outlives this call, so no context has to make room for it.
    let blocks = slots.div_ceil(model.kv.block_tokens);
    let mut scratch = model.kv.scratch(&model.backend, blocks)?;
    let cache = &mut scratch.cache;
    let table: Vec<u32> = (0..blocks as u32).collect();
    let mut placements = Vec::new();
    let mut slot = 0;
    for &chunk in behind {
        placements.push(Placement { chunk, table: &table, slot, position: slot });
        slot += chunk.tokens().len() as u32;
    }
    let tables: [BlockTable<'_>; 1] = [&table];
    let mut computed: Vec<[B::Tensor; 2]> = Vec::new();
    {
        let scope = PassScope::begin(&model.backend)?;
        model.load_kv(cache, 0..model.config.layers, &placements)?;
        scope.end()?;
    }
    let cache = &mut PassCache::new(model, cache, []);
    for run in rows(start as u32, texts).chunks(STEP_ROWS) {
        let scope = PassScope::begin(&model.backend)?;
        let mut layers = Vec::new();
        let mut pass = Pass::start(model, run.to_vec(), &tables)?;
        while pass.layer() + 1 < model.config.layers {
            let (written, kv) = pass.project()?.write_and_keep(cache)?;
            layers.push(kv);
            pass = written.finish(cache)?;
        }
        layers.push(pass.project()?.into_kv());
        if computed.is_empty() {
            computed = layers;
        } else {
            for (whole, kv) in computed.iter_mut().flatten().zip(layers.into_iter().flatten()) {
                model.backend.concat(whole, &kv)?;
            }
        }
        scope.end()?;
    }
    model.kv.keep(scratch);
    Ok(Computed { backend: &model.backend, layers: computed, rows: slots - start, width: model.kv.shape.row() })
}

/// The rows of texts that stand side by side behind a beginning of `start` tokens.
fn rows(start: u32, texts: &[Arc<[Token]>]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut first = start;
    for text in texts {
        for (index, &token) in text.iter().enumerate() {
            let (slot, position) = (first + index as u32, start + index as u32);
            rows.push(Row { token, context: 0, slot, position, sees: Span { shared: 0..start, own: first..slot + 1 } });
        }
        first += text.len() as u32;
    }
    rows
}

impl<B: Backend> Computed<'_, B> {
    /// The KV of runs of rows, as chunks hold it in this type.
    fn chunks(&self, dtype: Dtype, runs: &[Range<usize>]) -> Result<Vec<Vec<u8>>> {
        let row = self.width * dtype.size();
        let mut chunks: Vec<Vec<u8>> =
            runs.iter().map(|run| Vec::with_capacity(2 * self.layers.len() * run.len() * row)).collect();
        for half in self.layers.iter().flatten() {
            let bytes = self.backend.read_as(half, dtype)?;
            for (chunk, run) in chunks.iter_mut().zip(runs) {
                chunk.extend_from_slice(bytes.get(run.start * row..run.end * row).unwrap_or_default());
            }
        }
        Ok(chunks)
    }

    /// The mean squared length of each layer's keys and values: what a distance is small or large against.
    fn scales(&self) -> Result<Vec<[f32; 2]>> {
        let mean = |half: &B::Tensor| -> Result<f32> {
            let numbers = self.backend.read(half)?;
            let squares: f32 = numbers.iter().map(|x| x * x).sum();
            Ok((squares * self.width as f32 / numbers.len().max(1) as f32).max(f32::MIN_POSITIVE))
        };
        self.layers.iter().map(|[keys, values]| Ok([mean(keys)?, mean(values)?])).collect()
    }

    /// For each row, how far its keys and values are from those of another computation: squared distances, in units of
    /// the layer's [scale](Self::scales), summed over the layers from the second on (the first depends on the token
    /// alone) with weights 1, [`FADING`], FADING², …
    ///
    /// A change in the second layer comes from what stands before the chunk. Changes in later layers are mostly inherited
    /// from the rows around, and computing a row again helps little as long as those are wrong.
    fn distances(&self, other: &Self, scales: &[[f32; 2]]) -> Result<Vec<f32>> {
        let mut sums = self.backend.upload(1, &vec![0.0; self.rows])?;
        let mut weight = 1.0;
        for ((ours, theirs), scales) in self.layers.iter().zip(&other.layers).zip(scales).skip(1) {
            for ((ours, theirs), scale) in ours.iter().zip(theirs).zip(scales) {
                self.backend.add_row_distance(ours, theirs, weight / scale, &mut sums)?;
            }
            weight *= FADING;
        }
        let mut distances = self.backend.read(&sums)?;
        distances.iter_mut().filter(|distance| !distance.is_finite()).for_each(|distance| *distance = f32::MAX);
        Ok(distances)
    }
}

/// How much less each further layer says about where a row's error comes from.
const FADING: f32 = 0.3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Reference;

    /// Rows of numbers in every layer: keys, then values.
    fn computed(width: usize, layers: &[[&[f32]; 2]]) -> Computed<'static, Reference> {
        let tensor = |numbers: &[f32]| Reference.upload(width, numbers).unwrap();
        let layers = layers.iter().map(|halves| halves.map(tensor)).collect();
        Computed { backend: &Reference, layers, rows: 2, width }
    }

    #[test]
    fn a_scale_is_the_mean_squared_length_of_the_rows() {
        // Rows of two numbers: (3, 4) is 5 long and (0, 1) is 1 long, (2, 0) is 2 long and (0, 0) has no length.
        let layers = computed(2, &[[&[3.0, 4.0, 0.0, 1.0], &[2.0, 0.0, 0.0, 0.0]], [&[0.0; 4], &[1.0; 4]]]);
        let expected = [[(25.0 + 1.0) / 2.0, (4.0 + 0.0) / 2.0], [f32::MIN_POSITIVE, 2.0]];
        assert_eq!(layers.scales().unwrap(), expected);
    }

    #[test]
    fn distances_are_squared_in_units_of_the_scale_and_fade_from_the_second_layer_on() {
        let [nines, zeros] = [[9.0, 9.0], [0.0, 0.0]];
        let ours = [[&nines, &nines], [&[1.0, 1.0], &[0.0, 5.0]], [&[5.0, 7.0], &[0.0, 1.0]], [&[2.0, 0.0]; 2]];
        let theirs = [[&zeros, &zeros], [&[3.0, 1.0], &[2.0, 5.0]], [&[4.0, 7.0], &[10.0, 1.0]], [&zeros; 2]];
        let [ours, theirs] =
            [ours, theirs].map(|layers| computed(1, &layers.map(|halves| halves.map(|half| &half[..]))));
        let scales = [[1.0, 1.0], [2.0, 4.0], [1.0, 10.0], [0.5, 1.0]];
        let distances = ours.distances(&theirs, &scales).unwrap();
        // Nothing of the first layer; 4/2 and 4/4 of the second; of the third 1/1 and 100/10, each three tenths; of the
        // fourth 4/0.5 and 4/1, each nine hundredths.
        let expected = (2.0 + 1.0) + 0.3 * (1.0 + 10.0) + 0.09 * (8.0 + 4.0);
        assert!((distances[0] - expected).abs() < 1e-5, "{} instead of {expected}", distances[0]);
        assert_eq!(distances[1], 0.0, "a row that does not move is at no distance");
    }

    #[test]
    fn a_distance_that_no_number_holds_is_the_largest_there_is() {
        let still: [&[f32]; 2] = [&[0.0, 0.0]; 2];
        let ours = computed(1, &[still, [&[1e30, f32::NAN], &[0.0, 0.0]]]);
        let theirs = computed(1, &[still, [&[-1e30, 0.0], &[0.0, 0.0]]]);
        assert_eq!(ours.distances(&theirs, &[[1.0; 2]; 2]).unwrap(), [f32::MAX; 2]);
    }

    #[test]
    fn the_kv_of_each_run_of_rows_is_that_of_its_rows_layer_by_layer() {
        let layers = computed(1, &[[&[1.0, 2.0], &[3.0, 4.0]], [&[5.0, 6.0], &[7.0, 8.0]]]);
        let chunks = layers.chunks(Dtype::F32, &[1..2, 0..2]).unwrap();
        let numbers =
            |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect::<Vec<_>>();
        assert_eq!(numbers(&chunks[0]), [2.0, 4.0, 6.0, 8.0]);
        assert_eq!(numbers(&chunks[1]), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    }

    #[test]
    fn texts_go_together_as_long_as_they_fit_one_pass() {
        let text = |tokens: usize| -> Arc<[Token]> { vec![1; tokens].into() };
        let lengths = [STEP_ROWS - 1, 1, 1, STEP_ROWS + 5, STEP_ROWS, 2, 3];
        let texts = lengths.map(text);
        let batches: Vec<Vec<usize>> =
            batches(&texts).map(|batch| batch.iter().map(|text| text.len()).collect()).collect();
        let expected = [vec![STEP_ROWS - 1, 1], vec![1], vec![STEP_ROWS + 5], vec![STEP_ROWS], vec![2, 3]];
        assert_eq!(batches, expected);
        assert_eq!(super::batches(&[]).count(), 0, "no texts make no batch");
    }
}
