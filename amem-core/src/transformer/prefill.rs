//! Computing memories: many short texts in one pass, each behind the prefix alone, and how sensitive each of their
//! rows is to what else stands before it.

use std::sync::Arc;

use super::backend::{Backend, Row, Span};
use super::forward::{Graph, Pass};
use crate::{Encoding, KvChunk, KvShape, Result, Token};

/// Rows of one pass, unless a single text has more. Wide enough for full use of the weights, small enough to stay in
/// cache.
const ROWS: usize = 1024;

/// Cuts texts into runs that go through the model together.
pub(crate) fn batches(texts: &[Arc<[Token]>]) -> impl Iterator<Item = &[Arc<[Token]>]> {
    let mut rest = texts;
    std::iter::from_fn(move || {
        let mut rows = 0;
        let fits = |text: &&Arc<[Token]>| {
            rows += text.len();
            rows <= ROWS
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, others) = rest.split_at(count);
        rest = others;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Keys (before rotation) and values of some rows: for each layer `[rows][kv_heads * head_dim]`.
pub(crate) struct Computed {
    layers: Vec<[Vec<f32>; 2]>,
    width: usize,
}

/// Computes texts side by side: each sees the chunks of `behind` and itself.
pub(crate) fn compute<B: Backend>(graph: &Graph<B>, behind: &[&KvChunk], texts: &[Arc<[Token]>]) -> Result<Computed> {
    let mut cache = graph.backend.cache(&graph.shape, graph.dtype)?;
    let mut start = 0u32;
    for chunk in behind {
        let positions: Vec<u32> = (start..).take(chunk.tokens().len()).collect();
        graph.backend.place(&mut cache, start, &graph.angles(&positions)?, chunk)?;
        start += positions.len() as u32;
    }
    let mut rows = Vec::new();
    let mut first = start;
    for text in texts {
        for (index, &token) in text.iter().enumerate() {
            let (slot, position) = (first + index as u32, start + index as u32);
            // A row far into a text may not see the shared beginning any more, nor all of its own text.
            let horizon = graph.horizon(0, position);
            let body = first + horizon.saturating_sub(start)..slot + 1;
            rows.push(Row { token, context: 0, slot, position, sees: Span { head: horizon.min(start)..start, body } });
        }
        first += text.len() as u32;
    }
    let mut pass = Pass::start(graph, rows)?;
    let mut layers = Vec::new();
    for layer in 0..graph.shape.layers {
        let projection = pass.project()?;
        layers.push([graph.backend.read(&projection.keys)?, graph.backend.read(&projection.values)?]);
        if layer + 1 < graph.shape.layers {
            pass.write(&mut [&mut cache], &projection)?;
            pass.finish(&[&mut cache], projection)?;
        }
    }
    Ok(Computed { layers, width: graph.shape.row() })
}

impl Computed {
    fn rows(&self, layer: usize, half: usize, rows: std::ops::Range<usize>) -> &[f32] {
        &self.layers[layer][half][rows.start * self.width..rows.end * self.width]
    }

    /// The KV of some rows, as a chunk holds it.
    pub(crate) fn bytes(&self, encoding: Encoding, shape: &KvShape, rows: std::ops::Range<usize>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(encoding.bytes(shape, rows.len()));
        for layer in 0..self.layers.len() {
            let [keys, values] = [0, 1].map(|half| self.rows(layer, half, rows.clone()));
            encoding.encode_layer(shape, keys, values, &mut bytes);
        }
        bytes
    }

    /// The mean squared length of each layer's keys and values: what a distance is small or large against.
    pub(crate) fn scales(&self) -> Vec<[f32; 2]> {
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
    /// What moves in the second layer moves because of what stands before the chunk. What moves later may do so just
    /// because the rows around it did; computing it again mends little as long as those are wrong.
    pub(crate) fn distances(&self, other: &Computed, scales: &[[f32; 2]]) -> Vec<f32> {
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
