//! The paged KV cache: blocks of rotated keys and of values, in the number type that the cache was made for.

use amem_core::transformer::{Placement, Rope};
use amem_core::{Dtype, Encoding, Error, KvShape, LayerKv, Result, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use bytemuck::Pod;
use half::{bf16, f16};
use pulp::{Simd, WithSimd};

use crate::rotation::{Angle, Angles};
use crate::{Cpu, Plan, Tensor};

/// Keys that lie side by side: what one vector of scores covers.
pub(crate) const LANES: usize = 16;

/// Slots in a block: a multiple of [`LANES`].
pub(crate) const BLOCK_TOKENS: usize = 64;

/// The KV cache of a model. A block's memory is taken when it is first written.
pub struct Cache {
    pub(crate) shape: KvShape,
    dtype: Dtype,
    /// `[layers][kv_heads]`.
    heads: Vec<Head>,
}

/// One head of one layer: its blocks, each `[BLOCK_TOKENS / LANES][head_dim][LANES]` numbers of keys, so that a vector
/// holds the same number of sixteen keys, and then `[BLOCK_TOKENS][head_dim]` numbers of values. Empty until written.
pub(crate) enum Head {
    F32(Vec<Vec<f32>>),
    F16(Vec<Vec<f16>>),
    Bf16(Vec<Vec<bf16>>),
}

/// A number as it stands in a cache.
pub(crate) trait Element: Pod + Default + Send + Sync {
    /// Rounds numbers.
    fn narrow(from: &[f32], to: &mut [Self]);

    /// The numbers as f32: as they lie, or put into `space`.
    fn widen<'a>(from: &'a [Self], space: &'a mut [f32]) -> &'a [f32];
}

impl Element for f32 {
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn widen<'a>(from: &'a [Self], _: &'a mut [f32]) -> &'a [f32] {
        from
    }
}

impl Element for f16 {
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        from.iter().zip(to).for_each(|(&x, y)| *y = f16::from_bits(f32_to_f16(x)));
    }

    #[inline(always)]
    fn widen<'a>(from: &'a [Self], space: &'a mut [f32]) -> &'a [f32] {
        let space = &mut space[..from.len()];
        from.iter().zip(&mut *space).for_each(|(x, y)| *y = f16_to_f32(x.to_bits()));
        space
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        from.iter().zip(to).for_each(|(&x, y)| *y = bf16::from_bits(f32_to_bf16(x)));
    }

    #[inline(always)]
    fn widen<'a>(from: &'a [Self], space: &'a mut [f32]) -> &'a [f32] {
        let space = &mut space[..from.len()];
        from.iter().zip(&mut *space).for_each(|(x, y)| *y = bf16_to_f32(x.to_bits()));
        space
    }
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
        fn copy<T: Clone>(blocks: &mut Vec<Vec<T>>, from: u32, to: u32) {
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
fn entry<T>(blocks: &mut Vec<Vec<T>>, id: u32) -> &mut Vec<T> {
    if blocks.len() <= id as usize {
        blocks.resize_with(id as usize + 1, Vec::new);
    }
    &mut blocks[id as usize]
}

/// The block that is to be written, made if it is not there yet.
#[inline(always)]
fn block_mut<T: Element>(blocks: &mut Vec<Vec<T>>, id: u32, head_dim: usize) -> &mut [T] {
    let block = entry(blocks, id);
    if block.is_empty() {
        *block = vec![T::default(); 2 * BLOCK_TOKENS * head_dim];
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
        Ok(Self { shape, dtype, heads })
    }

    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> &Head {
        &self.heads[layer * self.shape.kv_heads + kv_head]
    }

    pub(crate) fn copy_block(&mut self, from: u32, to: u32) {
        self.heads.iter_mut().for_each(|head| head.copy(from, to));
    }

    /// A row's key (before rotation) in one head, as the cache stores it.
    #[inline(always)]
    fn stored_key(&self, key: &[f32], angle: Angle<'_>, to: &mut [f32]) {
        to.copy_from_slice(key);
        self.dtype.round(to);
        angle.rotate(to);
        self.dtype.round(to);
    }

    /// For each row, the squared distance between these keys (before rotation) and those that stand in its slot.
    pub(crate) fn distances(&self, layer: usize, plan: &Plan, keys: &Tensor) -> Vec<f32> {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        let mut key = vec![0f32; head_dim];
        let distance = |(index, row): (usize, &amem_core::transformer::Row)| {
            let slot = row.slot as usize;
            let block = plan.tables.get(row.context).and_then(|table| table.get(slot / BLOCK_TOKENS)).copied();
            let mut distance = 0f32;
            for kv_head in 0..kv_heads {
                let at = (index * kv_heads + kv_head) * head_dim;
                self.stored_key(&keys.data[at..at + head_dim], plan.angles.row(index), &mut key);
                let (head, slot) = (self.head(layer, kv_head), slot % BLOCK_TOKENS);
                distance += match head {
                    Head::F32(blocks) => squared_distance(blocks, block, slot, &key),
                    Head::F16(blocks) => squared_distance(blocks, block, slot, &key),
                    Head::Bf16(blocks) => squared_distance(blocks, block, slot, &key),
                };
            }
            distance
        };
        plan.rows.iter().enumerate().map(distance).collect()
    }
}

/// Puts the rows' keys (before rotation) and values, `[rows][kv_heads][head_dim]` each, into their slots.
pub(crate) struct Write<'a> {
    pub(crate) cache: &'a mut Cache,
    pub(crate) layer: usize,
    pub(crate) plan: &'a Plan,
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
}

impl WithSimd for Write<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { cache, layer, plan, keys, values } = self;
        let KvShape { kv_heads, head_dim, .. } = cache.shape;
        let mut key = vec![0f32; head_dim];
        for (index, row) in plan.rows.iter().enumerate() {
            let slot = row.slot as usize;
            let Some(&block) = plan.tables.get(row.context).and_then(|table| table.get(slot / BLOCK_TOKENS)) else {
                continue;
            };
            for kv_head in 0..kv_heads {
                let at = (index * kv_heads + kv_head) * head_dim;
                cache.stored_key(&keys.data[at..at + head_dim], plan.angles.row(index), &mut key);
                let (value, slot) = (&values.data[at..at + head_dim], slot % BLOCK_TOKENS);
                match &mut cache.heads[layer * kv_heads + kv_head] {
                    Head::F32(blocks) => put(block_mut(blocks, block, head_dim), slot, &key, value),
                    Head::F16(blocks) => put(block_mut(blocks, block, head_dim), slot, &key, value),
                    Head::Bf16(blocks) => put(block_mut(blocks, block, head_dim), slot, &key, value),
                }
            }
        }
    }
}

/// Puts a rotated key and a value into a block's slot.
#[inline(always)]
fn put<T: Element>(block: &mut [T], slot: usize, key: &[f32], value: &[f32]) {
    let head_dim = key.len();
    let (keys, values) = block.split_at_mut(BLOCK_TOKENS * head_dim);
    let places = keys[key_start(slot, head_dim)..].iter_mut().step_by(LANES);
    places.zip(key).for_each(|(to, x)| T::narrow(std::slice::from_ref(x), std::slice::from_mut(to)));
    T::narrow(value, &mut values[slot * head_dim..(slot + 1) * head_dim]);
}

fn squared_distance<T: Element>(blocks: &[Vec<T>], block: Option<u32>, slot: usize, key: &[f32]) -> f32 {
    let block = block.and_then(|id| blocks.get(id as usize)).map(Vec::as_slice).unwrap_or_default();
    let standing = block.get(key_start(slot, key.len())..).unwrap_or_default().iter().step_by(LANES);
    let mut space = [0f32];
    standing.zip(key).map(|(a, b)| T::widen(std::slice::from_ref(a), &mut space)[0] - b).map(|d| d * d).sum()
}

impl Cpu {
    /// Puts chunks into their slots, layer by layer.
    pub(crate) fn load(
        &self,
        cache: &mut Cache,
        rope: &Rope,
        layers: std::ops::Range<usize>,
        placements: &[Placement<'_>],
    ) -> Result<()> {
        let (shape, dtype) = (cache.shape, cache.dtype);
        let positions = |p: &Placement<'_>| (p.position..).take(p.chunk.tokens().len()).collect::<Vec<u32>>();
        let angles: Vec<Angles> = placements.iter().map(|p| Angles::new(rope, &positions(p))).collect();
        let heads = cache.heads.chunks_exact_mut(shape.kv_heads.max(1)).enumerate();
        let mut layers: Vec<(usize, &mut [Head], Result<()>)> =
            heads.filter(|(layer, _)| layers.contains(layer)).map(|(layer, heads)| (layer, heads, Ok(()))).collect();
        let work = placements.iter().map(|p| p.chunk.tokens().len()).sum::<usize>() * shape.token_numbers();
        self.each(layers.iter_mut().collect(), work, |(layer, heads, result)| {
            let mut space = vec![0f32; (2 * LANES + 1) * shape.head_dim];
            *result = placements.iter().zip(&angles).try_for_each(|(placement, angles)| {
                let kv = placement.chunk.layer(*layer)?;
                for (kv_head, head) in heads.iter_mut().enumerate() {
                    let load = Load { placement, kv: &kv, shape, dtype, kv_head, angles };
                    match head {
                        Head::F32(blocks) => self.arch.dispatch(Put { load, blocks, space: &mut space }),
                        Head::F16(blocks) => self.arch.dispatch(Put { load, blocks, space: &mut space }),
                        Head::Bf16(blocks) => self.arch.dispatch(Put { load, blocks, space: &mut space }),
                    }
                }
                Ok(())
            });
        });
        layers.into_iter().try_for_each(|(_, _, result)| result)
    }
}

/// One head's part of a chunk.
struct Load<'a> {
    placement: &'a Placement<'a>,
    kv: &'a LayerKv<'a>,
    shape: KvShape,
    dtype: Dtype,
    kv_head: usize,
    angles: &'a Angles,
}

/// Puts one head's part of a chunk into its blocks. A closure in its place would be compiled once, for no instruction set
/// in particular, for nothing makes the compiler inline it.
struct Put<'a, T> {
    load: Load<'a>,
    blocks: &'a mut Vec<Vec<T>>,
    /// Room for 2 · [`LANES`] + 1 heads.
    space: &'a mut [f32],
}

impl<T: Element> WithSimd for Put<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.load.put(self.blocks, self.space);
    }
}

impl Load<'_> {
    /// Goes by runs of [`LANES`] slots: keys are turned where they are read, and written across once a run's are
    /// together.
    #[inline(always)]
    fn put<T: Element>(&self, blocks: &mut Vec<Vec<T>>, space: &mut [f32]) {
        let (head_dim, tokens) = (self.shape.head_dim, self.placement.chunk.tokens().len());
        // What the cache's type can hold already stays as it is.
        let as_is = matches!(self.kv.encoding(), Encoding::Plain(dtype) if dtype == self.dtype)
            && cfg!(target_endian = "little");
        let (turned, space) = space.split_at_mut(LANES * head_dim);
        let (across, value) = space.split_at_mut(LANES * head_dim);
        let mut token = 0;
        while token < tokens {
            let slot = self.placement.slot as usize + token;
            let (lane, in_block) = (slot % LANES, slot % BLOCK_TOKENS);
            let count = (LANES - lane).min(tokens - token);
            let Some(&id) = self.placement.table.get(slot / BLOCK_TOKENS) else { return };
            let (keys, values) = block_mut(blocks, id, head_dim).split_at_mut(BLOCK_TOKENS * head_dim);
            let values = values[in_block * head_dim..(in_block + count) * head_dim].chunks_exact_mut(head_dim);
            self.kv.keys_from(token, self.kv_head, &mut turned[..count * head_dim]);
            for (index, (key, place)) in turned.chunks_exact_mut(head_dim).zip(values).enumerate() {
                if as_is {
                    self.copy_value(token + index, place);
                } else {
                    self.kv.value(token + index, self.kv_head, value);
                    self.dtype.round(key);
                    T::narrow(value, place);
                }
                self.angles.row(token + index).rotate(key);
            }
            let run = &mut keys[(in_block - lane) * head_dim..][..LANES * head_dim];
            if count == LANES {
                for (number, across) in across.chunks_exact_mut(LANES).enumerate() {
                    across.iter_mut().zip(turned[number..].iter().step_by(head_dim)).for_each(|(to, &x)| *to = x);
                }
                T::narrow(across, run);
            } else {
                for (number, run) in run.chunks_exact_mut(LANES).enumerate() {
                    let keys = turned[number..].iter().step_by(head_dim);
                    let places = run[lane..lane + count].iter_mut().zip(keys);
                    places.for_each(|(to, x)| T::narrow(std::slice::from_ref(x), std::slice::from_mut(to)));
                }
            }
            token += count;
        }
    }

    /// Copies a token's values, which the chunk holds as the cache does.
    #[inline(always)]
    fn copy_value<T: Element>(&self, token: usize, place: &mut [T]) {
        let place: &mut [u8] = bytemuck::cast_slice_mut(place);
        let first = (token * self.shape.kv_heads + self.kv_head) * place.len();
        if let Some(bytes) = self.kv.values().get(first..first + place.len()) {
            place.copy_from_slice(bytes);
        }
    }
}
