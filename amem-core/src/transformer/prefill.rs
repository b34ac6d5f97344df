//! Computing memories: many short texts in one pass, each behind the prefix alone, and how sensitive each of their
//! rows is to what else stands before it.

use std::ops::Range;
use std::sync::Arc;

use super::backend::{Backend, BlockTable, Placement, Row, Span};
use super::graph::Graph;
use super::pass::Pass;
use super::pass_cache::PassCache;
use crate::model::STEP_ROWS;
use crate::{Dtype, KvChunk, Result, Token};

/// Cuts texts into runs that go through the model together: [`STEP_ROWS`] rows, unless a single text has more.
pub(super) fn batches(texts: &[Arc<[Token]>]) -> impl Iterator<Item = &[Arc<[Token]>]> {
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
pub(super) struct Computed<'g, B: Backend> {
    backend: &'g B,
    layers: Vec<[B::Tensor; 2]>,
    rows: usize,
    width: usize,
}

/// Computes texts side by side: each sees the chunks of `behind` and itself. A text that is longer than a run is computed
/// in several passes, so that activations stay small.
pub(super) fn compute<'g, B: Backend>(
    graph: &'g Graph<B>,
    behind: &[&KvChunk],
    texts: &[Arc<[Token]>],
) -> Result<Computed<'g, B>> {
    let start: usize = behind.iter().map(|chunk| chunk.tokens().len()).sum();
    let slots = start + texts.iter().map(|text| text.len()).sum::<usize>();
    // A cache of its own: nothing of it outlives this call, so no context has to make room for it.
    let blocks = slots.div_ceil(graph.backend.block_tokens().max(1));
    let mut scratch = graph.scratch(blocks)?;
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
        let scope = graph.begin_pass()?;
        graph.load_kv(cache, 0..graph.layers.len(), &placements)?;
        scope.end()?;
    }
    let cache = &mut PassCache::new(graph, cache, []);
    for run in rows(start as u32, texts).chunks(STEP_ROWS) {
        let scope = graph.begin_pass()?;
        let mut layers = Vec::new();
        let mut pass = Pass::start(graph, run.to_vec(), &tables)?;
        while pass.layer() + 1 < graph.layers.len() {
            let (written, kv) = pass.project()?.write_and_keep(cache)?;
            layers.push(kv);
            pass = written.finish(cache)?;
        }
        layers.push(pass.project()?.into_kv());
        if computed.is_empty() {
            computed = layers;
        } else {
            for (whole, kv) in computed.iter_mut().flatten().zip(layers.into_iter().flatten()) {
                graph.backend.concat(whole, &kv)?;
            }
        }
        scope.end()?;
    }
    scratch.keep();
    Ok(Computed { backend: &graph.backend, layers: computed, rows: slots - start, width: graph.shape.row() })
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
    pub(super) fn chunks(&self, dtype: Dtype, runs: &[Range<usize>]) -> Result<Vec<Vec<u8>>> {
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
    pub(super) fn scales(&self) -> Result<Vec<[f32; 2]>> {
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
    pub(super) fn distances(&self, other: &Self, scales: &[[f32; 2]]) -> Result<Vec<f32>> {
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
