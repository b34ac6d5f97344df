//! Computing memories: many short texts in one pass, each behind the prefix alone, and how sensitive each of their
//! rows is to what else stands before it.

use std::mem::take;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::Transformer;
use super::backend::{Backend, BlockTable, Placement, Row, Span};
use super::context::check_tokens;
use super::kv_cache::Scratch;
use super::loaded_model::LoadedModel;
use super::pass::{Pass, PassScope};
use super::pass_cache::PassCache;
use crate::model::STEP_ROWS;
use crate::{Dtype, Encoding, Error, HostKv, KvChunk, PrefillText, Prefilling, PrefixId, Result, Token, Usage};

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
    /// What [`Model::begin_prefill`](crate::Model::begin_prefill) is.
    pub(super) fn begin_prefill_behind(
        &self,
        prefix: &[Token],
        texts: Vec<PrefillText>,
        measure: bool,
    ) -> Result<Runs<'_, B>> {
        for PrefillText { tokens: text, .. } in &texts {
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
        let behind: Vec<KvChunk> = prefix.chunk.iter().cloned().collect();
        let id = PrefixId::of(&prefix.tokens);
        Ok(Runs::new(self, behind, id, texts, measure.then_some(prefix)))
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
        let compute = |behind: &[KvChunk], prefix: &[Token], texts: Vec<PrefillText>| {
            Runs::new(self, behind.to_vec(), PrefixId::of(prefix), texts, None).finish()
        };
        let chunk = match tokens {
            [] => None,
            _ => compute(&[], &[], vec![text(&[], tokens.into())])?.0.pop(),
        };
        let layout = self.chat.layout("")?;
        let notes = DISTRACTORS.iter().map(|text| Ok(layout.memory(&self.chat.encode(text)?)));
        let notes = notes.collect::<Result<Vec<_>>>()?;
        let behind: Vec<KvChunk> = chunk.iter().cloned().collect();
        let scales = self.model.backend.run(|| {
            let mut side = Side::open(&self.model, &behind, &notes)?;
            side.compute(0..side.rows.len())?.scales()
        })?;
        let named: Vec<PrefillText> = notes.iter().map(|note| text(tokens, Arc::clone(note))).collect();
        let (distractors, _) = compute(&behind, tokens, named)?;
        Ok(Prefix { tokens: tokens.to_vec(), chunk, distractors, scales })
    }
}

/// Texts whose KV is being computed, a run of rows at a time.
pub(super) struct Runs<'m, B: Backend> {
    transformer: &'m Transformer<B>,
    behind: Vec<KvChunk>,
    prefix: PrefixId,
    texts: Vec<PrefillText>,
    /// What their sensitivity is measured with, if it is.
    measured: Option<Arc<Prefix>>,
    /// The texts that are computed side by side now.
    batch: Option<Batch<'m, B>>,
    /// Of the first texts, those that are complete.
    chunks: Vec<KvChunk>,
}

/// Texts that go through the model side by side.
struct Batch<'m, B: Backend> {
    count: usize,
    /// Behind the prefix.
    plain: Side<'m, B>,
    /// Behind unrelated notes as well.
    moved: Option<Side<'m, B>>,
    /// Rows that are computed.
    done: usize,
    /// The keys and the values of each layer, of these rows, as chunks hold them.
    kv: Vec<Vec<u8>>,
    /// How sensitive each of these rows is, if that is measured.
    sensitivity: Vec<f32>,
}

impl<'m, B: Backend> Runs<'m, B> {
    fn new(
        transformer: &'m Transformer<B>,
        behind: Vec<KvChunk>,
        prefix: PrefixId,
        texts: Vec<PrefillText>,
        measured: Option<Arc<Prefix>>,
    ) -> Self {
        Self { transformer, behind, prefix, texts, measured, batch: None, chunks: Vec::new() }
    }

    /// Computes all that is left.
    pub(super) fn finish(mut self) -> Result<(Vec<KvChunk>, Usage)> {
        loop {
            if let Some(done) = self.advance(STEP_ROWS)? {
                return Ok(done);
            }
        }
    }

    /// Computes a run of at most so many rows, and at least one.
    fn run(&mut self, max_rows: usize) -> Result<()> {
        let Self { transformer, behind, prefix, texts, measured, batch, chunks } = self;
        let model = &*transformer.model;
        let batch = match batch {
            Some(batch) => batch,
            None => {
                let left = &texts[chunks.len()..];
                let count = fitting(left.iter().map(|text| text.tokens.len())).min(left.len());
                if count == 0 {
                    return Ok(());
                }
                let tokens: Vec<Arc<[Token]>> = left[..count].iter().map(|text| Arc::clone(&text.tokens)).collect();
                let plain = Side::open(model, behind, &tokens)?;
                let further = |prefix: &Arc<Prefix>| [&behind[..], &prefix.distractors].concat();
                let moved = measured.as_ref().map(|prefix| Side::open(model, &further(prefix), &tokens)).transpose()?;
                let kv = vec![Vec::new(); 2 * model.config.layers];
                batch.insert(Batch { count, plain, moved, done: 0, kv, sensitivity: Vec::new() })
            }
        };
        let rows = batch.done..(batch.done + max_rows.max(1)).min(batch.plain.rows.len());
        let computed = batch.plain.compute(rows.clone())?;
        if let (Some(moved), Some(prefix)) = (&mut batch.moved, &*measured) {
            let moved = moved.compute(rows.clone())?;
            batch.sensitivity.extend(computed.distances(&moved, &prefix.scales)?);
        }
        computed.add_to(&mut batch.kv, model.kv.dtype)?;
        batch.done = rows.end;
        if batch.done < batch.plain.rows.len() {
            return Ok(());
        }
        let Some(Batch { count, plain, moved, kv, sensitivity, .. }) = self.batch.take() else { return Ok(()) };
        plain.keep();
        moved.into_iter().for_each(Side::keep);
        let row = model.kv.shape.row() * model.kv.dtype.size();
        let mut first = 0;
        for text in &texts[chunks.len()..chunks.len() + count] {
            let rows = first..first + text.tokens.len();
            first = rows.end;
            let halves = kv.iter().map(|half| half.get(rows.start * row..rows.end * row).unwrap_or_default());
            let data =
                HostKv::new(Encoding::Plain(model.kv.dtype), model.config.layers, halves.collect::<Vec<_>>().concat());
            let shape = transformer.info.shape;
            let chunk = KvChunk::new(text.id, *prefix, shape, Arc::clone(&text.tokens), Arc::new(data))?;
            let chunk = chunk.with_model(transformer.info.fingerprint);
            chunks.push(match measured {
                Some(_) => chunk.with_sensitivity(sensitivity[rows].into())?,
                None => chunk,
            });
        }
        Ok(())
    }
}

impl<B: Backend> Prefilling for Runs<'_, B> {
    fn advance(&mut self, max_rows: usize) -> Result<Option<(Vec<KvChunk>, Usage)>> {
        let backend = &self.transformer.model.backend;
        backend.run(|| self.run(max_rows))?;
        if self.batch.is_some() || self.chunks.len() < self.texts.len() {
            return Ok(None);
        }
        let tokens: usize = self.texts.iter().map(|text| text.tokens.len()).sum();
        let times = if self.measured.is_some() { 2 } else { 1 };
        let work = tokens * self.transformer.info.shape.layers * times;
        self.texts.clear();
        Ok(Some((
            take(&mut self.chunks),
            Usage { prefilled: tokens, work_prefilling: work as u64, ..Usage::default() },
        )))
    }
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

/// Texts side by side in a KV cache of their own: each sees the chunks that they stand behind, and itself.
struct Side<'m, B: Backend> {
    model: &'m LoadedModel<B>,
    /// Nothing of it outlives the prefill, so no context has to make room for it.
    scratch: Scratch<B>,
    table: Vec<u32>,
    /// The rows of the texts, in order.
    rows: Vec<Row>,
}

impl<'m, B: Backend> Side<'m, B> {
    /// Loads what the texts stand behind.
    fn open(model: &'m LoadedModel<B>, behind: &[KvChunk], texts: &[Arc<[Token]>]) -> Result<Self> {
        let start: usize = behind.iter().map(|chunk| chunk.tokens().len()).sum();
        let slots = start + texts.iter().map(|text| text.len()).sum::<usize>();
        let blocks = slots.div_ceil(model.kv.block_tokens);
        let mut scratch = model.kv.scratch(&model.backend, blocks)?;
        let table: Vec<u32> = (0..blocks as u32).collect();
        let mut placements = Vec::new();
        let mut slot = 0;
        for chunk in behind {
            placements.push(Placement { chunk, table: &table, slot, position: slot });
            slot += chunk.tokens().len() as u32;
        }
        let scope = PassScope::begin(&model.backend)?;
        model.load_kv(&mut scratch.cache, 0..model.config.layers, &placements)?;
        scope.end()?;
        drop(placements);
        Ok(Self { model, scratch, table, rows: rows(start as u32, texts) })
    }

    /// Computes these rows. Those before them have been computed.
    fn compute(&mut self, which: Range<usize>) -> Result<Computed<'m, B>> {
        let model = self.model;
        let tables: [BlockTable<'_>; 1] = [&self.table];
        let cache = &mut PassCache::new(model, &mut self.scratch.cache, []);
        let scope = PassScope::begin(&model.backend)?;
        let mut layers = Vec::new();
        let mut pass = Pass::start(model, self.rows[which.clone()].to_vec(), &tables)?;
        while pass.layer() + 1 < model.config.layers {
            let (written, kv) = pass.project()?.write_and_keep(cache)?;
            layers.push(kv);
            pass = written.finish(cache)?;
        }
        layers.push(pass.project()?.into_kv());
        scope.end()?;
        Ok(Computed { backend: &model.backend, layers, rows: which.len(), width: model.kv.shape.row() })
    }

    /// Keeps its cache for the next texts.
    fn keep(self) {
        self.model.kv.keep(self.scratch);
    }
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
    /// Adds the rows to those before them, as chunks hold them in this type: the keys of each layer, and its values.
    fn add_to(&self, kv: &mut [Vec<u8>], dtype: Dtype) -> Result<()> {
        for (all, half) in kv.iter_mut().zip(self.layers.iter().flatten()) {
            all.extend(self.backend.read_as(half, dtype)?);
        }
        Ok(())
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
    fn rows_are_added_to_those_before_them_layer_by_layer() {
        let mut kv = vec![Vec::new(); 4];
        for rows in [[[&[1.0, 2.0][..], &[3.0, 4.0]], [&[5.0, 6.0], &[7.0, 8.0]]], [[&[9.0], &[8.0]], [&[7.0], &[6.0]]]]
        {
            computed(1, &rows).add_to(&mut kv, Dtype::F32).unwrap();
        }
        let numbers =
            |bytes: &Vec<u8>| bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect::<Vec<_>>();
        let expected = [[1.0, 2.0, 9.0], [3.0, 4.0, 8.0], [5.0, 6.0, 7.0], [7.0, 8.0, 6.0]];
        assert_eq!(kv.iter().map(numbers).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn texts_go_together_as_long_as_they_fit_one_pass() {
        for (lengths, expected) in [
            (&[STEP_ROWS - 1, 1, 1][..], 2),
            (&[1, STEP_ROWS], 1),
            (&[STEP_ROWS + 5, 1], 1),
            (&[STEP_ROWS, 2], 1),
            (&[2, 3], 2),
        ] {
            assert_eq!(fitting(lengths.iter().copied()), expected, "{lengths:?}");
        }
    }
}
