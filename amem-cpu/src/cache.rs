//! The paged KV cache: blocks of rotated keys and of values, in the number type that the cache was made for.

use std::ops::Range;

use amem_core::transformer::Row;
use amem_core::{Dtype, Error, KvShape, Result};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};

use crate::lines::Lines;
use crate::load_kv::Rotations;
use crate::number::Element;
use crate::rotation::Angle;
use crate::{Cpu, Plan, Tensor};

/// Keys that lie side by side: what one vector of scores covers.
pub(crate) const LANES: usize = 16;

/// Slots in a block: a multiple of [`LANES`].
pub(crate) const BLOCK_TOKENS: usize = 64;

/// The KV cache of a model. A block's memory is taken when it is first written.
pub struct Cache {
    pub(crate) shape: KvShape,
    pub(crate) dtype: Dtype,
    /// `[layers][kv_heads]`.
    pub(crate) heads: Vec<Head>,
    /// One for each rope that keys were rotated by.
    pub(crate) rotations: Vec<Rotations>,
}

/// One head of one layer: its blocks, each `[BLOCK_TOKENS / LANES][head_dim][LANES]` numbers of keys, so that a vector
/// holds the same number of sixteen keys, and then `[BLOCK_TOKENS][head_dim]` numbers of values. Empty until written.
pub(crate) enum Head {
    F32(Vec<Lines<f32>>),
    F16(Vec<Lines<f16>>),
    Bf16(Vec<Lines<bf16>>),
}

impl Head {
    fn new(dtype: Dtype) -> Result<Self> {
        Ok(match dtype {
            Dtype::F32 => Head::F32(Vec::new()),
            Dtype::F16 => Head::F16(Vec::new()),
            Dtype::Bf16 => Head::Bf16(Vec::new()),
            other => {
                let value = format!("{other:?}");
                return Err(Error::BadValue { what: "the KV cache's type", value, expected: "F32, F16 or BF16" });
            }
        })
    }

    fn copy(&mut self, from: u32, to: u32) {
        fn copy<T: Copy + Default>(blocks: &mut Vec<Lines<T>>, from: u32, to: u32) {
            let block = blocks.get(from as usize).cloned().unwrap_or_default();
            *entry(blocks, to) = block;
        }
        match self {
            Head::F32(blocks) => copy(blocks, from, to),
            Head::F16(blocks) => copy(blocks, from, to),
            Head::Bf16(blocks) => copy(blocks, from, to),
        }
    }
}

/// The place of a block.
#[inline(always)]
fn entry<T: Default>(blocks: &mut Vec<Lines<T>>, id: u32) -> &mut Lines<T> {
    if blocks.len() <= id as usize {
        blocks.resize_with(id as usize + 1, Lines::default);
    }
    &mut blocks[id as usize]
}

/// The block that is to be written, made if it is not there yet.
#[inline(always)]
pub(crate) fn block_mut<T: Element>(blocks: &mut Vec<Lines<T>>, id: u32, head_dim: usize) -> &mut [T] {
    made(entry(blocks, id), head_dim)
}

#[inline(always)]
fn made<T: Element>(block: &mut Lines<T>, head_dim: usize) -> &mut [T] {
    if block.is_empty() {
        *block = Lines::zeros(2 * BLOCK_TOKENS * head_dim);
    }
    block
}

/// Where the key of a block's slot begins; its numbers are [`LANES`] apart.
#[inline(always)]
fn key_start(slot: usize, head_dim: usize) -> usize {
    slot / LANES * LANES * head_dim + slot % LANES
}

impl Cache {
    pub(crate) fn new(shape: KvShape, dtype: Dtype) -> Result<Self> {
        let heads = (0..shape.layers * shape.kv_heads).map(|_| Head::new(dtype)).collect::<Result<_>>()?;
        Ok(Self { shape, dtype, heads, rotations: Vec::new() })
    }

    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> &Head {
        &self.heads[layer * self.shape.kv_heads + kv_head]
    }

    pub(crate) fn copy_block(&mut self, from: u32, to: u32) {
        self.heads.iter_mut().for_each(|head| head.copy(from, to));
    }
}

/// Which rows of a pass go into which blocks.
pub(crate) struct Slots {
    /// The indexes of rows, block by block.
    rows: Vec<usize>,
    /// The blocks in ascending order, each with its rows' places among them.
    blocks: Vec<(u32, Range<usize>)>,
}

impl Slots {
    pub(crate) fn of(rows: &[Row], tables: &[Vec<u32>]) -> Self {
        let block = |row: &Row| Some(*tables.get(row.context)?.get(row.slot as usize / BLOCK_TOKENS)?);
        let placed = |(index, row)| Some((block(row)?, index));
        let mut placed: Vec<(u32, usize)> = rows.iter().enumerate().filter_map(placed).collect();
        placed.sort_by_key(|(block, _)| *block);
        let (mut blocks, mut start) = (Vec::new(), 0);
        for same in placed.chunk_by(|a, b| a.0 == b.0) {
            blocks.extend(same.first().map(|(block, _)| (*block, start..start + same.len())));
            start += same.len();
        }
        Self { rows: placed.into_iter().map(|(_, row)| row).collect(), blocks }
    }
}

impl Cpu {
    /// Puts the rows' keys (before rotation) and values, `[rows][kv_heads][head_dim]` each, into their slots.
    pub(crate) fn write(&self, cache: &mut Cache, layer: usize, plan: &Plan, keys: &Tensor, values: &Tensor) {
        let shape = cache.shape;
        let heads = cache.heads.iter_mut().skip(layer * shape.kv_heads).take(shape.kv_heads);
        match cache.dtype {
            Dtype::F16 => self.write_as::<f16>(heads, shape, plan, keys, values),
            Dtype::Bf16 => self.write_as::<bf16>(heads, shape, plan, keys, values),
            _ => self.write_as::<f32>(heads, shape, plan, keys, values),
        }
    }

    fn write_as<'c, T: Element>(
        &self,
        heads: impl Iterator<Item = &'c mut Head>,
        shape: KvShape,
        plan: &Plan,
        keys: &Tensor,
        values: &Tensor,
    ) {
        let Slots { rows, blocks } = &plan.slots;
        let mut parts = Vec::with_capacity(blocks.len() * shape.kv_heads);
        for (kv_head, head) in heads.enumerate() {
            let (Some(all), Some((last, _))) = (T::blocks(head), blocks.last()) else { return };
            entry(all, *last);
            let (mut rest, mut next) = (all.as_mut_slice(), 0);
            for (id, places) in blocks {
                let Some((block, others)) = rest.split_at_mut(*id as usize - next).1.split_first_mut() else { return };
                (rest, next) = (others, *id as usize + 1);
                parts.push(Write { block, rows: &rows[places.clone()], kv_head, shape, plan, keys, values });
            }
        }
        // Rounding twice, rotating and finding places take about as long as ten multiplications.
        self.each(parts, 10 * keys.data.len(), |part| self.arch.dispatch(part));
    }

    /// For each row, the squared distance between these keys (before rotation) and those that stand in its slot.
    pub(crate) fn distances(&self, cache: &Cache, layer: usize, plan: &Plan, keys: &Tensor) -> Tensor {
        const ROWS: usize = 16;
        let mut distances = self.tensor(plan.rows.len(), 1);
        let parts = distances.data.chunks_mut(ROWS).enumerate().map(|(part, to)| (part * ROWS, to)).collect();
        self.each(parts, 10 * keys.data.len(), |(first, distances)| {
            self.arch.dispatch(Distances { cache, layer, plan, keys, first, distances });
        });
        distances
    }
}

/// Puts some rows' keys and values of one head into their slots of one block.
struct Write<'a, T> {
    /// Made if it is not there yet.
    block: &'a mut Lines<T>,
    rows: &'a [usize],
    kv_head: usize,
    shape: KvShape,
    plan: &'a Plan,
    keys: &'a Tensor,
    values: &'a Tensor,
}

impl<T: Element> WithSimd for Write<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { block, rows, kv_head, shape: KvShape { kv_heads, head_dim, .. }, plan, keys, values } = self;
        let block = made(block, head_dim);
        let (mut key, mut space) = (vec![T::default(); head_dim], vec![0f32; 2 * head_dim]);
        for &index in rows {
            let (Some(row), at) = (plan.rows.get(index), (index * kv_heads + kv_head) * head_dim) else { continue };
            stored_key(simd, &keys.data[at..at + head_dim], plan.angles.row(index), &mut key, &mut space);
            let slot = row.slot as usize % BLOCK_TOKENS;
            let (keys, own_values) = block.split_at_mut(BLOCK_TOKENS * head_dim);
            let places = keys[key_start(slot, head_dim)..].iter_mut().step_by(LANES);
            places.zip(&key).for_each(|(to, x)| *to = *x);
            T::narrow(simd, &values.data[at..at + head_dim], &mut own_values[slot * head_dim..(slot + 1) * head_dim]);
        }
    }
}

/// A row's key (before rotation) in one head, as a cache stores it: rounded, rotated and rounded again. `space` is twice as
/// long.
#[inline(always)]
fn stored_key<S: Simd, T: Element>(simd: S, key: &[f32], angle: Angle<'_>, to: &mut [T], space: &mut [f32]) {
    let (rounded, rotated) = space.split_at_mut(key.len());
    T::narrow(simd, key, to);
    rotated.copy_from_slice(T::widen(simd, to, rounded));
    angle.rotate(rotated);
    T::narrow(simd, rotated, to);
}

/// The distances of some rows' keys from those that stand in their slots.
struct Distances<'a> {
    cache: &'a Cache,
    layer: usize,
    plan: &'a Plan,
    keys: &'a Tensor,
    /// The first row.
    first: usize,
    distances: &'a mut [f32],
}

impl WithSimd for Distances<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        self.distances.fill(0.0);
        for kv_head in 0..self.cache.shape.kv_heads {
            match self.cache.head(self.layer, kv_head) {
                Head::F32(blocks) => self.add(simd, blocks, kv_head),
                Head::F16(blocks) => self.add(simd, blocks, kv_head),
                Head::Bf16(blocks) => self.add(simd, blocks, kv_head),
            }
        }
    }
}

impl Distances<'_> {
    /// Adds the distances in one head.
    #[inline(always)]
    fn add<S: Simd, T: Element>(&mut self, simd: S, blocks: &[Lines<T>], kv_head: usize) {
        let KvShape { kv_heads, head_dim, .. } = self.cache.shape;
        let (mut key, mut standing) = (vec![T::default(); head_dim], vec![T::default(); head_dim]);
        let mut space = vec![0f32; 2 * head_dim];
        let rows = self.plan.rows.iter().enumerate().skip(self.first);
        for (distance, (index, row)) in self.distances.iter_mut().zip(rows) {
            let (slot, at) = (row.slot as usize, (index * kv_heads + kv_head) * head_dim);
            let id = self.plan.tables.get(row.context).and_then(|table| table.get(slot / BLOCK_TOKENS));
            // One that nothing was written to is empty.
            let block = id.and_then(|id| blocks.get(*id as usize)).filter(|block| !block.is_empty());
            let Some(places) = block.and_then(|block| block.get(key_start(slot % BLOCK_TOKENS, head_dim)..)) else {
                continue;
            };
            stored_key(simd, &self.keys.data[at..at + head_dim], self.plan.angles.row(index), &mut key, &mut space);
            standing.iter_mut().zip(places.iter().step_by(LANES)).for_each(|(to, x)| *to = *x);
            let (fresh_space, standing_space) = space.split_at_mut(head_dim);
            let (fresh, standing) = (T::widen(simd, &key, fresh_space), T::widen(simd, &standing, standing_space));
            *distance += standing.iter().zip(fresh).map(|(a, b)| a - b).map(|d| d * d).sum::<f32>();
        }
    }
}
