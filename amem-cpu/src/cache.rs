//! The keys and values of one context.

use amem_core::{KvChunk, KvShape, KvType};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::Cpu;
use crate::rotation::{Angle, Angles};

/// Slots in a block of keys: what one vector of scores covers.
pub(crate) const BLOCK: usize = 16;

/// A context's rotated keys and its values, in f32 but rounded as [`KvShape::kind`] says. It grows as it is written.
pub struct Cache {
    pub(crate) shape: KvShape,
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
    pub(crate) fn new(shape: KvShape) -> Self {
        Self { shape, heads: vec![Head::default(); shape.layers * shape.kv_heads] }
    }

    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> &Head {
        &self.heads[layer * self.shape.kv_heads + kv_head]
    }

    /// Puts one row's keys (before rotation) and values: `[kv_heads][head_dim]` each.
    pub(crate) fn write(&mut self, layer: usize, slot: usize, angle: Angle<'_>, keys: &[f32], values: &[f32]) {
        let KvShape { kv_heads, head_dim, kind, .. } = self.shape;
        let (mut key, mut value) = (vec![0f32; head_dim], vec![0f32; head_dim]);
        for kv_head in 0..kv_heads {
            let at = kv_head * head_dim..(kv_head + 1) * head_dim;
            round(kind, &keys[at.clone()], &mut key);
            round(kind, &values[at], &mut value);
            angle.rotate(&mut key);
            self.heads[layer * kv_heads + kv_head].put(slot, &key, &value);
        }
    }

    /// The squared distance between these keys (before rotation) and those that stand in a slot.
    pub(crate) fn distance(&self, layer: usize, slot: usize, angle: Angle<'_>, keys: &[f32]) -> f32 {
        let KvShape { kv_heads, head_dim, kind, .. } = self.shape;
        let mut key = vec![0f32; head_dim];
        let mut distance = 0f32;
        for kv_head in 0..kv_heads {
            round(kind, &keys[kv_head * head_dim..(kv_head + 1) * head_dim], &mut key);
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
    pub(crate) fn place_chunk(&self, cache: &mut Cache, slot: usize, angles: &Angles, chunk: &KvChunk) {
        let kv_heads = cache.shape.kv_heads;
        let work = chunk.tokens().len() * chunk.shape().row() * chunk.shape().layers;
        let heads = cache.heads.iter_mut().enumerate().collect();
        self.each(heads, work, |(index, head)| {
            let place = Place { chunk, layer: index / kv_heads, kv_head: index % kv_heads, angles };
            self.arch.dispatch(|| place.put(head, slot));
        });
    }
}

/// One head's part of a chunk.
struct Place<'a> {
    chunk: &'a KvChunk,
    layer: usize,
    kv_head: usize,
    angles: &'a Angles,
}

impl Place<'_> {
    /// Goes block by block: keys are turned where they are read, and written across once a block's are together.
    #[inline(always)]
    fn put(&self, head: &mut Head, slot: usize) {
        let KvShape { kv_heads, head_dim, kind, .. } = *self.chunk.shape();
        let (tokens, size) = (self.chunk.tokens().len(), kind.size());
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
                let at = ((token + index) * kv_heads + self.kv_head) * head_dim * size;
                decode(kind, &self.chunk.keys(self.layer)[at..][..head_dim * size], key);
                decode(kind, &self.chunk.values(self.layer)[at..][..head_dim * size], value);
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

/// Rounds numbers to what a chunk can hold.
fn round(kind: KvType, from: &[f32], to: &mut [f32]) {
    match kind {
        KvType::F16 => from.iter().zip(to).for_each(|(&x, y)| *y = f16::from_f32(saturate(x)).to_f32()),
        KvType::Bf16 => from.iter().zip(to).for_each(|(&x, y)| *y = bf16::from_f32(x).to_f32()),
        _ => to.copy_from_slice(from),
    }
}

/// f16 has no room beyond ±65504; an infinity would spoil every sum it enters.
fn saturate(x: f32) -> f32 {
    x.clamp(-65504.0, 65504.0)
}

/// Reads little-endian numbers.
fn decode(kind: KvType, bytes: &[u8], to: &mut [f32]) {
    match kind {
        KvType::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(numbers) if cfg!(target_endian = "little") => numbers.convert_to_f32_slice(to),
            _ => bytes.as_chunks().0.iter().zip(to).for_each(|(&b, y)| *y = f16::from_le_bytes(b).to_f32()),
        },
        KvType::Bf16 => bytes.as_chunks().0.iter().zip(to).for_each(|(&b, y)| *y = bf16::from_le_bytes(b).to_f32()),
        _ => bytes.as_chunks().0.iter().zip(to).for_each(|(&b, y)| *y = f32::from_le_bytes(b)),
    }
}
