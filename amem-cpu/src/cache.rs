//! The keys and values of one context.

use amem_core::{Dtype, KvChunk, KvShape, LayerKv, Result};

use crate::Cpu;
use crate::rotation::{Angle, Angles};

/// Slots in a block of keys: what one vector of scores covers.
pub(crate) const BLOCK: usize = 16;

/// A context's rotated keys and its values, in f32 but rounded to a number type. It grows as it is written.
pub struct Cache {
    pub(crate) shape: KvShape,
    dtype: Dtype,
    /// `[layers][kv_heads]`.
    pub(crate) heads: Vec<Head>,
}

/// One head of one layer.
#[derive(Clone, Default)]
pub(crate) struct Head {
    /// `[blocks of slots][head_dim][BLOCK]`, so that a vector holds the same number of sixteen keys.
    pub(crate) keys: Vec<f32>,
    /// `[slots][head_dim]`.
    pub(crate) values: Vec<f32>,
}

impl Head {
    fn reserve(&mut self, slots: usize, head_dim: usize) {
        let blocks = slots.div_ceil(BLOCK);
        if self.values.len() < slots * head_dim {
            self.keys.resize(blocks * BLOCK * head_dim, 0.0);
            self.values.resize(blocks * BLOCK * head_dim, 0.0);
        }
    }

    fn key(&mut self, slot: usize, head_dim: usize) -> impl Iterator<Item = &mut f32> {
        let start = slot / BLOCK * BLOCK * head_dim + slot % BLOCK;
        self.keys[start..].iter_mut().step_by(BLOCK).take(head_dim)
    }

    /// Puts a rotated key and a value, both rounded already.
    fn put(&mut self, slot: usize, key: &[f32], value: &[f32]) {
        self.reserve(slot + 1, key.len());
        self.key(slot, key.len()).zip(key).for_each(|(to, &x)| *to = x);
        self.values[slot * value.len()..][..value.len()].copy_from_slice(value);
    }
}

impl Cache {
    pub(crate) fn new(shape: KvShape, dtype: Dtype) -> Self {
        Self { shape, dtype, heads: vec![Head::default(); shape.layers * shape.kv_heads] }
    }

    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> &Head {
        &self.heads[layer * self.shape.kv_heads + kv_head]
    }

    /// Puts one row's keys (before rotation) and values: `[kv_heads][head_dim]` each.
    pub(crate) fn write(&mut self, layer: usize, slot: usize, angle: Angle<'_>, keys: &[f32], values: &[f32]) {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        let (mut key, mut value) = (vec![0f32; head_dim], vec![0f32; head_dim]);
        for kv_head in 0..kv_heads {
            let at = kv_head * head_dim..(kv_head + 1) * head_dim;
            key.copy_from_slice(&keys[at.clone()]);
            value.copy_from_slice(&values[at]);
            self.dtype.round(&mut key);
            self.dtype.round(&mut value);
            angle.rotate(&mut key);
            self.heads[layer * kv_heads + kv_head].put(slot, &key, &value);
        }
    }

    /// The squared distance between these keys (before rotation) and those that stand in a slot.
    pub(crate) fn distance(&self, layer: usize, slot: usize, angle: Angle<'_>, keys: &[f32]) -> f32 {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        let mut key = vec![0f32; head_dim];
        let mut distance = 0f32;
        for kv_head in 0..kv_heads {
            key.copy_from_slice(&keys[kv_head * head_dim..(kv_head + 1) * head_dim]);
            self.dtype.round(&mut key);
            angle.rotate(&mut key);
            let start = slot / BLOCK * BLOCK * head_dim + slot % BLOCK;
            let standing = self.head(layer, kv_head).keys.get(start..).unwrap_or_default().iter().step_by(BLOCK);
            distance += standing.zip(&key).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        }
        distance
    }
}

impl Cpu {
    /// Puts a chunk into the slots from `slot` on, a head at a time.
    pub(crate) fn place_chunk(&self, cache: &mut Cache, slot: usize, angles: &Angles, chunk: &KvChunk) -> Result<()> {
        let (kv_heads, dtype) = (cache.shape.kv_heads, cache.dtype);
        let layers: Vec<LayerKv<'_>> =
            (0..cache.shape.layers).map(|layer| chunk.layer(layer)).collect::<Result<_>>()?;
        let work = chunk.tokens().len() * chunk.shape().row() * chunk.shape().layers;
        let heads = cache.heads.iter_mut().enumerate().collect();
        self.each(heads, work, |(index, head)| {
            let layer = &layers[index / kv_heads];
            let place = Place { chunk, layer, dtype, kv_head: index % kv_heads, angles };
            self.arch.dispatch(|| place.put(head, slot));
        });
        Ok(())
    }
}

/// One head's part of a chunk.
struct Place<'a> {
    chunk: &'a KvChunk,
    layer: &'a LayerKv<'a>,
    dtype: Dtype,
    kv_head: usize,
    angles: &'a Angles,
}

impl Place<'_> {
    /// Goes block by block: keys are turned where they are read, and written across once a block's are together.
    #[inline(always)]
    fn put(&self, head: &mut Head, slot: usize) {
        let (head_dim, tokens) = (self.chunk.shape().head_dim, self.chunk.tokens().len());
        head.reserve(slot + tokens, head_dim);
        let mut turned = vec![0f32; BLOCK * head_dim];
        let mut token = 0;
        while token < tokens {
            let first = slot + token;
            let lane = first % BLOCK;
            let count = (BLOCK - lane).min(tokens - token);
            let values = &mut head.values[first * head_dim..(first + count) * head_dim];
            let both = turned.chunks_exact_mut(head_dim).zip(values.chunks_exact_mut(head_dim));
            for (index, (key, value)) in both.enumerate() {
                self.layer.key(token + index, self.kv_head, key);
                self.layer.value(token + index, self.kv_head, value);
                self.dtype.round(key);
                self.dtype.round(value);
                self.angles.row(token + index).rotate(key);
            }
            let block = &mut head.keys[(first - lane) * head_dim..][..BLOCK * head_dim];
            for (number, across) in block.chunks_exact_mut(BLOCK).enumerate() {
                let keys = turned[number..].iter().step_by(head_dim);
                across[lane..lane + count].iter_mut().zip(keys).for_each(|(to, &x)| *to = x);
            }
            token += count;
        }
    }
}
