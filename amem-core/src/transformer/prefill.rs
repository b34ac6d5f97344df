//! Computing memories: many short texts in one pass, each behind the prefix alone, and how sensitive each of their
//! rows is to what else stands before it.

use std::sync::Arc;

use super::backend::{Backend, BlockTable, Placement, Row, Span};
use super::graph::Graph;
use super::pass::Pass;
use crate::model::STEP_ROWS;
use crate::{Encoding, KvChunk, KvShape, Result, Token};

/// Cuts texts into runs that go through the model together: [`STEP_ROWS`] rows, unless a single text has more.
pub(super) fn batches(texts: &[Arc<[Token]>]) -> impl Iterator<Item = &[Arc<[Token]>]> {
    let mut rest = texts;
    std::iter::from_fn(move || {
        let mut rows = 0;
        let fits = |text: &&Arc<[Token]>| {
            rows += text.len();
            rows <= STEP_ROWS
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, others) = rest.split_at(count);
        rest = others;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Keys (before rotation) and values of some rows: for each layer `[rows][kv_heads * head_dim]`.
pub(super) struct Computed {
    layers: Vec<[Vec<f32>; 2]>,
    width: usize,
}

/// Computes texts side by side: each sees the chunks of `behind` and itself. A text that is longer than a run is computed
/// in several passes, so that activations stay small; the device is waited for once in each.
pub(super) fn compute<B: Backend>(graph: &Graph<B>, behind: &[&KvChunk], texts: &[Arc<[Token]>]) -> Result<Computed> {
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
    let mut computed = Computed { layers: vec![Default::default(); graph.layers.len()], width: graph.shape.row() };
    {
        let _scope = graph.begin_pass()?;
        graph.backend.load_kv(cache, &graph.rope, 0..graph.shape.layers, &placements)?;
    }
    for run in rows(graph, start as u32, texts).chunks(STEP_ROWS) {
        let _scope = graph.begin_pass()?;
        let mut layers = Vec::new();
        let mut pass = Pass::start(graph, run.to_vec(), &tables)?;
        while pass.layer() + 1 < graph.layers.len() {
            let (written, kv) = pass.project()?.write_and_keep(cache)?;
            layers.push(kv);
            pass = written.finish(cache)?;
        }
        layers.push(pass.project()?.into_kv());
        // Everything is queued by now, so the device is waited for once.
        for (whole, kv) in computed.layers.iter_mut().zip(layers) {
            for (whole, half) in whole.iter_mut().zip(kv) {
                whole.extend(graph.backend.read(&half)?);
            }
        }
    }
    scratch.keep();
    Ok(computed)
}

/// The rows of texts that stand side by side behind a beginning of `start` tokens.
fn rows<B: Backend>(graph: &Graph<B>, start: u32, texts: &[Arc<[Token]>]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut first = start;
    for text in texts {
        for (index, &token) in text.iter().enumerate() {
            let (slot, position) = (first + index as u32, start + index as u32);
            // A row far into a text may not see the shared beginning any more, nor all of its own text.
            let seen = graph.first_seen(0, position);
            let own = first + seen.saturating_sub(start)..slot + 1;
            rows.push(Row { token, context: 0, slot, position, sees: Span { shared: seen.min(start)..start, own } });
        }
        first += text.len() as u32;
    }
    rows
}

impl Computed {
    fn rows(&self, layer: usize, half: usize, rows: std::ops::Range<usize>) -> &[f32] {
        &self.layers[layer][half][rows.start * self.width..rows.end * self.width]
    }

    /// The KV of some rows, as a chunk holds it.
    pub(super) fn bytes(&self, encoding: Encoding, shape: &KvShape, rows: std::ops::Range<usize>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(encoding.bytes(shape, rows.len()));
        for layer in 0..self.layers.len() {
            let [keys, values] = [0, 1].map(|half| self.rows(layer, half, rows.clone()));
            encoding.encode_layer(shape, keys, values, &mut bytes);
        }
        bytes
    }

    /// The mean squared length of each layer's keys and values: what a distance is small or large against.
    pub(super) fn scales(&self) -> Vec<[f32; 2]> {
        let mean = |numbers: &Vec<f32>| {
            let squares: f32 = numbers.iter().map(|x| x * x).sum();
            (squares * self.width as f32 / numbers.len().max(1) as f32).max(f32::MIN_POSITIVE)
        };
        self.layers.iter().map(|halves| halves.each_ref().map(mean)).collect()
    }

    /// For each row, how far its keys and values are from those of another computation: squared distances, in units of
    /// the layer's [scale](Self::scales), summed over the layers from the second on (the first depends on the token
    /// alone) with weights 1, [`FADING`], FADING², …
    ///
    /// A change in the second layer comes from what stands before the chunk. Changes in later layers are mostly inherited
    /// from the rows around, and computing a row again helps little as long as those are wrong.
    pub(super) fn distances(&self, other: &Computed, scales: &[[f32; 2]]) -> Vec<f32> {
        let rows = self.layers.first().map_or(0, |[keys, _]| keys.len() / self.width);
        let mut distances = vec![0f32; rows];
        let mut weight = 1.0;
        for (layer, scales) in scales.iter().enumerate().skip(1) {
            for (half, scale) in scales.iter().enumerate() {
                for (row, distance) in distances.iter_mut().enumerate() {
                    let (ours, theirs) = (self.rows(layer, half, row..row + 1), other.rows(layer, half, row..row + 1));
                    let square: f32 = ours.iter().zip(theirs).map(|(a, b)| (a - b) * (a - b)).sum();
                    *distance += weight * square / scale;
                }
            }
            weight *= FADING;
        }
        distances.iter_mut().filter(|distance| !distance.is_finite()).for_each(|distance| *distance = f32::MAX);
        distances
    }
}

/// How much less each further layer says about where a row's error comes from.
const FADING: f32 = 0.3;

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of one number each in every layer: keys, then values.
    fn computed(layers: &[[[f32; 2]; 2]]) -> Computed {
        Computed { layers: layers.iter().map(|halves| halves.map(|half| half.to_vec())).collect(), width: 1 }
    }

    #[test]
    fn a_scale_is_the_mean_squared_length_of_the_rows() {
        // Rows of two numbers: (3, 4) is 5 long and (0, 1) is 1 long, (2, 0) is 2 long and (0, 0) has no length.
        let layers = vec![[vec![3.0, 4.0, 0.0, 1.0], vec![2.0, 0.0, 0.0, 0.0]], [vec![0.0; 4], vec![1.0; 4]]];
        let scales = Computed { layers, width: 2 }.scales();
        assert_eq!(scales, [[(25.0 + 1.0) / 2.0, (4.0 + 0.0) / 2.0], [f32::MIN_POSITIVE, 2.0]]);
    }

    #[test]
    fn distances_are_squared_in_units_of_the_scale_and_fade_from_the_second_layer_on() {
        let ours = computed(&[[[9.0, 9.0]; 2], [[1.0, 1.0], [0.0, 5.0]], [[5.0, 7.0], [0.0, 1.0]], [[2.0, 0.0]; 2]]);
        let theirs = computed(&[[[0.0, 0.0]; 2], [[3.0, 1.0], [2.0, 5.0]], [[4.0, 7.0], [10.0, 1.0]], [[0.0, 0.0]; 2]]);
        let scales = [[1.0, 1.0], [2.0, 4.0], [1.0, 10.0], [0.5, 1.0]];
        let distances = ours.distances(&theirs, &scales);
        // Nothing of the first layer; 4/2 and 4/4 of the second; of the third 1/1 and 100/10, each three tenths; of the
        // fourth 4/0.5 and 4/1, each nine hundredths.
        let expected = (2.0 + 1.0) + 0.3 * (1.0 + 10.0) + 0.09 * (8.0 + 4.0);
        assert!((distances[0] - expected).abs() < 1e-5, "{} instead of {expected}", distances[0]);
        assert_eq!(distances[1], 0.0, "a row that does not move is at no distance");
    }

    #[test]
    fn a_distance_that_no_number_holds_is_the_largest_there_is() {
        let still = [[0.0, 0.0]; 2];
        let ours = computed(&[still, [[1e30, f32::NAN], [0.0, 0.0]]]);
        let theirs = computed(&[still, [[-1e30, 0.0], [0.0, 0.0]]]);
        assert_eq!(ours.distances(&theirs, &[[1.0; 2]; 2]), [f32::MAX; 2]);
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
