//! The paged KV cache: blocks of rotated keys and of values, in the number type that the cache was made for.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use amem_core::transformer::{Placement, Rope};
use amem_core::{Dtype, Encoding, Error, KvShape, LayerKv, Result};
use half::{bf16, f16};
use pulp::{Scalar, Simd, WithSimd};

use crate::number::Element;
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
    /// One for each rope that keys were turned by.
    turns: Vec<Turns>,
}

/// One head of one layer: its blocks, each `[BLOCK_TOKENS / LANES][head_dim][LANES]` numbers of keys, so that a vector
/// holds the same number of sixteen keys, and then `[BLOCK_TOKENS][head_dim]` numbers of values. Empty until written.
pub(crate) enum Head {
    F32(Vec<Vec<f32>>),
    F16(Vec<Vec<f16>>),
    Bf16(Vec<Vec<bf16>>),
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
        Ok(Self { shape, dtype, heads, turns: Vec::new() })
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
    fn with_simd<S: Simd>(self, simd: S) {
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
                    Head::F32(blocks) => put(simd, block_mut(blocks, block, head_dim), slot, &key, value),
                    Head::F16(blocks) => put(simd, block_mut(blocks, block, head_dim), slot, &key, value),
                    Head::Bf16(blocks) => put(simd, block_mut(blocks, block, head_dim), slot, &key, value),
                }
            }
        }
    }
}

/// Puts a rotated key and a value into a block's slot.
#[inline(always)]
fn put<S: Simd, T: Element>(simd: S, block: &mut [T], slot: usize, key: &[f32], value: &[f32]) {
    let head_dim = key.len();
    let (keys, values) = block.split_at_mut(BLOCK_TOKENS * head_dim);
    let places = keys[key_start(slot, head_dim)..].iter_mut().step_by(LANES);
    places.zip(key).for_each(|(to, x)| T::narrow(simd, std::slice::from_ref(x), std::slice::from_mut(to)));
    T::narrow(simd, value, &mut values[slot * head_dim..(slot + 1) * head_dim]);
}

fn squared_distance<T: Element>(blocks: &[Vec<T>], block: Option<u32>, slot: usize, key: &[f32]) -> f32 {
    let block = block.and_then(|id| blocks.get(id as usize)).map(Vec::as_slice).unwrap_or_default();
    let standing = block.get(key_start(slot, key.len())..).unwrap_or_default().iter().step_by(LANES);
    let mut space = [0f32];
    let widen = |x: &T| T::widen(Scalar::new(), std::slice::from_ref(x), &mut space)[0];
    standing.map(widen).zip(key).map(|(a, b)| a - b).map(|d| d * d).sum()
}

impl Cpu {
    /// Puts chunks into their slots. Chunk by chunk, each layer by one thread, which reads it into memory that stays in its
    /// core's cache: so that one reads while another loads, and a file is read from front to back.
    pub(crate) fn load(
        &self,
        cache: &mut Cache,
        rope: &Rope,
        layers: &[usize],
        placements: &[Placement<'_>],
    ) -> Result<()> {
        let Cache { shape, dtype, heads, turns } = cache;
        let (shape, dtype) = (*shape, *dtype);
        let runs: Vec<Vec<Run>> = placements.iter().map(runs_of).collect();
        let turns = Turns::of(turns, rope);
        turns.prepare(self, runs.iter().flatten());
        let heads = heads.chunks_exact_mut(shape.kv_heads.max(1)).enumerate();
        let layers: Vec<(usize, Mutex<&mut [Head]>)> = heads
            .filter(|(layer, _)| layers.contains(layer))
            .map(|(layer, heads)| (layer, Mutex::new(heads)))
            .collect();
        let units = placements.len() * layers.len();
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let load = |placement: usize, layer: usize, space: &mut Space| {
            let Space { bytes, numbers } = space;
            let (runs, placement) = (&runs[placement], &placements[placement]);
            let (layer, heads) = &layers[layer];
            let kv = placement.chunk.layer_in(*layer, bytes)?;
            let mut heads = heads.lock().unwrap_or_else(PoisonError::into_inner);
            let load = Load { placement, runs, kv: &kv, shape, dtype, turns: &*turns };
            match dtype {
                Dtype::F16 => self.arch.dispatch(Put { load, heads: &mut heads, numbers, dtype: PhantomData::<f16> }),
                Dtype::Bf16 => self.arch.dispatch(Put { load, heads: &mut heads, numbers, dtype: PhantomData::<bf16> }),
                _ => self.arch.dispatch(Put { load, heads: &mut heads, numbers, dtype: PhantomData::<f32> }),
            }
            Ok(())
        };
        let work = placements.iter().map(|p| p.chunk.tokens().len()).sum::<usize>() * shape.token_numbers();
        let threads = self.threads.count().min(layers.len());
        self.each((0..threads).collect(), work, |_| {
            let mut space = Space { bytes: Vec::new(), numbers: vec![0.0; LANES * (3 * shape.row() + shape.head_dim)] };
            loop {
                let unit = next.fetch_add(1, Relaxed);
                if unit >= units {
                    return;
                }
                if let Err(error) = load(unit / layers.len(), unit % layers.len(), &mut space) {
                    next.store(units, Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// What a thread loads with.
struct Space {
    /// A layer of a chunk, as it is stored.
    bytes: Vec<u8>,
    /// Keys of [`LANES`] tokens: of all heads three times, and of one.
    numbers: Vec<f32>,
}

/// Tokens of a chunk whose slots are side by side in a vector of [`LANES`].
struct Run {
    /// The first of them, in the chunk.
    token: usize,
    count: usize,
    /// The slot of the first.
    slot: usize,
    /// The position that the slot of the first lane stands for, if there is one.
    base: i64,
}

fn runs_of(placement: &Placement<'_>) -> Vec<Run> {
    let (tokens, mut token) = (placement.chunk.tokens().len(), 0);
    let mut runs = Vec::with_capacity(tokens / LANES + 2);
    while token < tokens {
        let slot = placement.slot as usize + token;
        let count = (LANES - slot % LANES).min(tokens - token);
        let base = i64::from(placement.position) + token as i64 - (slot % LANES) as i64;
        runs.push(Run { token, count, slot, base });
        token += count;
    }
    runs
}

/// One layer of a chunk.
struct Load<'a> {
    placement: &'a Placement<'a>,
    runs: &'a [Run],
    kv: &'a LayerKv<'a>,
    shape: KvShape,
    dtype: Dtype,
    turns: &'a Turns,
}

/// Puts one layer of a chunk into its blocks. A closure in its place would be compiled once, for no instruction set in
/// particular, for nothing makes the compiler inline it.
struct Put<'a, T> {
    load: Load<'a>,
    heads: &'a mut [Head],
    numbers: &'a mut [f32],
    /// The type of the cache's numbers.
    dtype: PhantomData<T>,
}

impl<T: Element> WithSimd for Put<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.load.put::<S, T>(simd, self.heads, self.numbers);
    }
}

impl Load<'_> {
    /// Run by run, and all heads together: long loops cost less than many short ones. The keys are put side by side, and then
    /// turned, on the way to their places.
    #[inline(always)]
    fn put<S: Simd, T: Element>(&self, simd: S, heads: &mut [Head], space: &mut [f32]) {
        let (KvShape { head_dim, .. }, width) = (self.shape, self.shape.row());
        // What the cache's type can hold already stays as it is.
        let as_is = match self.kv.encoding() {
            Encoding::Plain(dtype) if dtype == self.dtype && cfg!(target_endian = "little") => {
                let halves = [self.kv.keys(), self.kv.values()].map(bytemuck::try_cast_slice::<u8, T>);
                let numbers = self.placement.chunk.tokens().len() * width;
                match halves {
                    [Ok(keys), Ok(values)] if keys.len() == numbers && values.len() == numbers => Some((keys, values)),
                    _ => None,
                }
            }
            _ => None,
        };
        let (decoded, rest) = space.split_at_mut(LANES * head_dim);
        let (rows, rest) = rest.split_at_mut(LANES * width);
        let (across, mixed) = rest.split_at_mut(LANES * width);
        // Of a narrower type there is room for more.
        let [rows, across, mixed] =
            [rows, across, mixed].map(|part| &mut bytemuck::cast_slice_mut::<f32, T>(part)[..LANES * width]);
        for run in self.runs {
            let Run { token, count, slot, base } = *run;
            let (lane, in_block) = (slot % LANES, slot % BLOCK_TOKENS);
            let Some(&id) = self.placement.table.get(slot / BLOCK_TOKENS) else { return };
            let Some(angles) = self.turns.angles.get(&base) else { return };
            let all = token * width..(token + count) * width;
            let keys = match as_is {
                Some((keys, _)) if count == LANES => &keys[all.clone()],
                Some((keys, _)) => {
                    rows[lane * width..(lane + count) * width].copy_from_slice(&keys[all.clone()]);
                    &*rows
                }
                None => {
                    for kv_head in 0..self.shape.kv_heads {
                        let decoded = &mut decoded[..count * head_dim];
                        self.kv.keys_from(token, kv_head, decoded);
                        for (lane, key) in (lane..).zip(decoded.chunks_exact(head_dim)) {
                            T::narrow(simd, key, &mut rows[lane * width + kv_head * head_dim..][..head_dim]);
                        }
                    }
                    &*rows
                }
            };
            // `[LANES][width]` becomes `[width][LANES]`: with each of four rounds, the upper half of the rows goes between the lower
            // half. The last one is done head by head, and what it gives is still close at hand when it is turned.
            const { assert!(LANES == 1 << 4) };
            T::shuffle(simd, keys.split_at(LANES / 2 * width), across);
            T::shuffle(simd, across.split_at(LANES / 2 * width), mixed);
            T::shuffle(simd, mixed.split_at(LANES / 2 * width), across);
            let (first, second) = across.split_at(LANES / 2 * width);
            for (kv_head, head) in heads.iter_mut().enumerate() {
                let Some(blocks) = T::blocks(head) else { return };
                let (keys, values) = block_mut(blocks, id, head_dim).split_at_mut(BLOCK_TOKENS * head_dim);
                let half = kv_head * LANES / 2 * head_dim..(kv_head + 1) * LANES / 2 * head_dim;
                let [mixed, turned] = [&mut *mixed, &mut *rows].map(|part| &mut part[..LANES * head_dim]);
                T::shuffle(simd, (&first[half.clone()], &second[half]), mixed);
                let places = &mut keys[(in_block - lane) * head_dim..][..LANES * head_dim];
                if count == LANES {
                    turn(simd, angles, mixed, places);
                } else {
                    turn(simd, angles, mixed, turned);
                    put_lanes(turned, places, lane..lane + count);
                }
                let places = values[in_block * head_dim..(in_block + count) * head_dim].chunks_exact_mut(head_dim);
                for (place, token) in places.zip(token..) {
                    match as_is {
                        Some((_, values)) => {
                            place.copy_from_slice(&values[token * width + kv_head * head_dim..][..head_dim]);
                        }
                        None => {
                            let value = &mut decoded[..head_dim];
                            self.kv.value(token, kv_head, value);
                            T::narrow(simd, value, place);
                        }
                    }
                }
            }
        }
    }
}

/// Turns keys, `[head_dim][LANES]`, to their positions.
#[inline(always)]
fn turn<S: Simd, T: Element>(simd: S, angles: &[[f32; LANES]], keys: &[T], to: &mut [T]) {
    let half = angles.len() / 2;
    let (keys, to) = (keys.as_chunks::<LANES>().0, to.as_chunks_mut::<LANES>().0);
    let ((low, rest), (to_low, to_rest)) = (keys.split_at(half), to.split_at_mut(half));
    let ((high, rest), (to_high, to_rest)) = (rest.split_at(half), to_rest.split_at_mut(half));
    let (from, to) = (low.iter().zip(high), to_low.iter_mut().zip(to_high));
    for (((low, high), (to_low, to_high)), [cos, sin]) in from.zip(to).zip(angles.as_chunks::<2>().0) {
        let [mut low_space, mut high_space, mut a, mut b] = [[0f32; LANES]; 4];
        let (low, high) = (T::widen(simd, low, &mut low_space), T::widen(simd, high, &mut high_space));
        for lane in 0..LANES {
            a[lane] = low[lane] * cos[lane] - high[lane] * sin[lane];
            b[lane] = high[lane] * cos[lane] + low[lane] * sin[lane];
        }
        T::narrow(simd, &a, to_low);
        T::narrow(simd, &b, to_high);
    }
    // The rest has no partner and is not turned.
    to_rest.copy_from_slice(rest);
}

/// The cosines and sines by which keys are turned that lie side by side. They are computed once for a position, which costs
/// about as much as loading a few layers of a key.
pub(crate) struct Turns {
    rope: Rope,
    /// By the position of the first lane: `[head_dim / 2]` times the cosines of [`LANES`] positions and their sines.
    angles: HashMap<i64, Vec<[f32; LANES]>>,
}

impl Turns {
    /// Numbers that are kept at most, as far as one call does not need more.
    const KEPT: usize = 16 << 20;

    /// Those of a rope. The layers of a model have two at most.
    fn of<'t>(all: &'t mut Vec<Self>, rope: &Rope) -> &'t mut Self {
        const ROPES: usize = 2;
        let known = all.iter().position(|turns| turns.rope == *rope).unwrap_or_else(|| {
            if all.len() == ROPES {
                all.remove(0);
            }
            all.push(Self { rope: rope.clone(), angles: HashMap::new() });
            all.len() - 1
        });
        &mut all[known]
    }

    /// Computes what these runs are turned by, as far as it is not there.
    fn prepare<'r>(&mut self, cpu: &Cpu, runs: impl Iterator<Item = &'r Run>) {
        let rope = &self.rope;
        let each = 2 * LANES * rope.inverse_frequencies.len();
        let needed: HashSet<i64> = runs.map(|run| run.base).collect();
        let missing = |turns: &Self| needed.iter().filter(|base| !turns.angles.contains_key(base)).count();
        if (self.angles.len() + missing(self)) * each > Self::KEPT {
            self.angles.clear();
        }
        let missing = needed.into_iter().filter(|base| !self.angles.contains_key(base));
        let mut missing: Vec<(i64, Vec<[f32; LANES]>)> = missing.map(|base| (base, Vec::new())).collect();
        // A sine costs about as much as forty multiplications.
        let work = 40 * missing.len() * each;
        cpu.each(missing.iter_mut().collect(), work, |(base, angles)| *angles = angles_from(rope, *base));
        self.angles.extend(missing);
    }
}

/// Puts some lanes of `[n][LANES]` numbers into their places.
#[inline(always)]
fn put_lanes<T: Element>(numbers: &[T], places: &mut [T], lanes: Range<usize>) {
    let mut mask = [T::default(); LANES];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut mask);
    bytes[lanes.start * size_of::<T>()..lanes.end * size_of::<T>()].fill(u8::MAX);
    let (mask, numbers): (&[u8], &[u8]) = (bytemuck::cast_slice(&mask), bytemuck::cast_slice(numbers));
    let places: &mut [u8] = bytemuck::cast_slice_mut(places);
    for (numbers, places) in numbers.chunks_exact(mask.len()).zip(places.chunks_exact_mut(mask.len())) {
        let both = numbers.iter().zip(places).zip(mask);
        both.for_each(|((&number, place), &mask)| *place = (number & mask) | (*place & !mask));
    }
}

/// Cosines and sines, in turn, of the positions from one on. Those below zero stand for nothing.
fn angles_from(rope: &Rope, base: i64) -> Vec<[f32; LANES]> {
    let positions: [u32; LANES] = std::array::from_fn(|lane| u32::try_from(base + lane as i64).unwrap_or_default());
    let angles = Angles::new(rope, &positions);
    let at = |frequency: usize| {
        let both = std::array::from_fn::<_, LANES, _>(|lane| angles.row(lane).of(frequency));
        [both.map(|(cos, _)| cos), both.map(|(_, sin)| sin)]
    };
    (0..rope.inverse_frequencies.len()).flat_map(at).collect()
}
