//! The arithmetic of a [`Backend`](crate::transformer::Backend) in plain loops over f64: slow, and short enough to be
//! believed.

use std::collections::BTreeMap;

use crate::transformer::{Rope, Row};
use crate::{Dtype, KvShape};

/// Numbers in rows.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) columns: usize,
    pub(super) data: Vec<f32>,
}

impl Table {
    /// Noise between -1 and 1 that is different for each `seed`.
    pub(super) fn noise(seed: u64, rows: usize, columns: usize) -> Self {
        let number = |index: u64| {
            // SplitMix64, Sebastiano Vigna's mixer of a counter.
            let mut z = (seed << 32 | index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        Self { columns, data: (0..(rows * columns) as u64).map(number).collect() }
    }

    pub(super) fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.columns)
    }

    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.columns..(index + 1) * self.columns]
    }

    /// These rows, in this order.
    pub(super) fn take(&self, rows: &[usize]) -> Self {
        Self { columns: self.columns, data: rows.iter().flat_map(|&row| self.row(row)).copied().collect() }
    }

    /// Every number rounded to what this type can hold.
    pub(super) fn rounded(mut self, dtype: Dtype) -> Self {
        dtype.round(&mut self.data);
        self
    }
}

pub(super) fn exact(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

pub(super) fn norm(x: &Table, weight: &[f32], eps: f32) -> Vec<f64> {
    let normed = |run: &[f32]| {
        let square: f64 = exact(run).iter().map(|x| x * x).sum();
        let scale = 1.0 / (square / run.len() as f64 + f64::from(eps)).sqrt();
        exact(run).iter().zip(exact(weight)).map(|(x, w)| x * scale * w).collect::<Vec<_>>()
    };
    x.data.chunks_exact(weight.len()).flat_map(normed).collect()
}

pub(super) fn linear(x: &Table, w: &Table, bias: Option<&[f32]>) -> Vec<f64> {
    let mut y = Vec::new();
    for row in x.rows() {
        for (output, weights) in w.rows().enumerate() {
            y.push(dot(&exact(row), &exact(weights)) + bias.map_or(0.0, |bias| f64::from(bias[output])));
        }
    }
    y
}

pub(super) fn gate(gate: &Table, up: &Table) -> Vec<f64> {
    let gated = |(x, up): (f64, f64)| x / (1.0 + (-x).exp()) * up;
    exact(&gate.data).into_iter().zip(exact(&up.data)).map(gated).collect()
}

/// All heads of one row, rotated.
pub(super) fn rotate(row: &[f32], rope: &Rope, position: u32) -> Vec<f64> {
    let half = rope.inverse_frequencies.len();
    let mut rotated = exact(row);
    for head in rotated.chunks_exact_mut(2 * half) {
        for (pair, &frequency) in rope.inverse_frequencies.iter().enumerate() {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            let (a, b) = (head[pair], head[pair + half]);
            head[pair] = (a * cos - b * sin) * f64::from(rope.attention_factor);
            head[pair + half] = (b * cos + a * sin) * f64::from(rope.attention_factor);
        }
    }
    rotated
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn rounded(dtype: Dtype, numbers: &[f32]) -> Vec<f32> {
    let mut numbers = numbers.to_vec();
    dtype.round(&mut numbers);
    numbers
}

/// One context's rotated keys and its values.
pub(super) struct Cache {
    shape: KvShape,
    dtype: Dtype,
    /// By layer and slot, `[kv_heads * head_dim]` each.
    standing: BTreeMap<(usize, u32), [Vec<f64>; 2]>,
}

impl Cache {
    pub(super) fn new(shape: KvShape, dtype: Dtype) -> Self {
        Self { shape, dtype, standing: BTreeMap::new() }
    }

    pub(super) fn put(&mut self, layer: usize, slot: u32, rope: &Rope, position: u32, keys: &[f32], values: &[f32]) {
        let round = |numbers: &[f32]| rounded(self.dtype, numbers);
        let row = [rotate(&round(keys), rope, position), exact(&round(values))];
        self.standing.insert((layer, slot), row);
    }

    fn head(&self, layer: usize, slot: u32, half: usize, kv_head: usize) -> &[f64] {
        &self.standing[&(layer, slot)][half][kv_head * self.shape.head_dim..][..self.shape.head_dim]
    }

    /// For each query head of a row, the slots that it sees and their weights.
    pub(super) fn weights(&self, layer: usize, row: &Row, queries: &[f32]) -> Vec<Vec<(u32, f64)>> {
        let group = queries.len() / self.shape.row();
        let weights = |(head, query): (usize, &[f32])| {
            let seen = row.sees.head.clone().chain(row.sees.body.clone());
            let scale = 1.0 / (self.shape.head_dim as f64).sqrt();
            let score = |slot| (slot, (dot(&exact(query), self.head(layer, slot, 0, head / group)) * scale).exp());
            let scores: Vec<_> = seen.map(score).collect();
            let total: f64 = scores.iter().map(|(_, score)| score).sum();
            scores.into_iter().map(|(slot, score)| (slot, score / total)).collect()
        };
        queries.chunks_exact(self.shape.head_dim).enumerate().map(weights).collect()
    }

    pub(super) fn attend(&self, layer: usize, row: &Row, queries: &[f32]) -> Vec<f64> {
        let group = queries.len() / self.shape.row();
        let mut attended = Vec::new();
        for (head, weights) in self.weights(layer, row, queries).iter().enumerate() {
            let mut sum = vec![0.0; self.shape.head_dim];
            for &(slot, weight) in weights {
                let values = self.head(layer, slot, 1, head / group);
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
            }
            attended.extend(sum);
        }
        attended
    }

    /// The squared distance between a row's keys (before rotation) and those in its slot.
    pub(super) fn distance(&self, layer: usize, row: &Row, rope: &Rope, keys: &[f32]) -> f64 {
        let keys = rounded(self.dtype, keys);
        let standing = &self.standing[&(layer, row.slot)][0];
        rotate(&keys, rope, row.position).iter().zip(standing).map(|(a, b)| (a - b) * (a - b)).sum()
    }
}
