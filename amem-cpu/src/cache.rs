//! The paged KV cache: blocks of rotated keys and of values, in the number type that the cache was made for.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use amem_core::transformer::{Placement, Rope, Row};
use amem_core::{Dtype, Encoding, Error, KvShape, LayerKv, Result};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};

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
    made(entry(blocks, id), head_dim)
}

#[inline(always)]
fn made<T: Element>(block: &mut Vec<T>, head_dim: usize) -> &mut [T] {
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
        // Rounding twice, turning and finding places take about as long as ten multiplications.
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
    block: &'a mut Vec<T>,
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

/// A row's key (before rotation) in one head, as a cache stores it: rounded, turned and rounded again. `space` is twice as
/// long.
#[inline(always)]
fn stored_key<S: Simd, T: Element>(simd: S, key: &[f32], angle: Angle<'_>, to: &mut [T], space: &mut [f32]) {
    let (rounded, turned) = space.split_at_mut(key.len());
    T::narrow(simd, key, to);
    turned.copy_from_slice(T::widen(simd, to, rounded));
    angle.rotate(turned);
    T::narrow(simd, turned, to);
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
    fn add<S: Simd, T: Element>(&mut self, simd: S, blocks: &[Vec<T>], kv_head: usize) {
        let KvShape { kv_heads, head_dim, .. } = self.cache.shape;
        let (mut key, mut standing) = (vec![T::default(); head_dim], vec![T::default(); head_dim]);
        let mut space = vec![0f32; 2 * head_dim];
        let rows = self.plan.rows.iter().enumerate().skip(self.first);
        for (distance, (index, row)) in self.distances.iter_mut().zip(rows) {
            let (slot, at) = (row.slot as usize, (index * kv_heads + kv_head) * head_dim);
            let id = self.plan.tables.get(row.context).and_then(|table| table.get(slot / BLOCK_TOKENS));
            let block = id.and_then(|id| blocks.get(*id as usize)).map(Vec::as_slice).unwrap_or_default();
            let Some(places) = block.get(key_start(slot % BLOCK_TOKENS, head_dim)..) else { continue };
            stored_key(simd, &self.keys.data[at..at + head_dim], self.plan.angles.row(index), &mut key, &mut space);
            standing.iter_mut().zip(places.iter().step_by(LANES)).for_each(|(to, x)| *to = *x);
            let (fresh_space, standing_space) = space.split_at_mut(head_dim);
            let (fresh, standing) = (T::widen(simd, &key, fresh_space), T::widen(simd, &standing, standing_space));
            *distance += standing.iter().zip(fresh).map(|(a, b)| a - b).map(|d| d * d).sum::<f32>();
        }
    }
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
        // A layer is written by one thread at a time. Meanwhile others read.
        let threads = self.threads.count().min(2 * layers.len()).min(units);
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
