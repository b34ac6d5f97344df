//! The paged KV cache: blocks of rotated keys and of values, in the number type that the cache was made for.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

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
    turns: Turns,
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

    /// Puts the numbers of the second half between those of the first. Written as arithmetic on pairs, for compilers
    /// make vector instructions of that, and none of copying numbers to every second place.
    fn shuffle(from: &[Self], to: &mut [Self]);
}

/// [`Element::shuffle`] of numbers of 16 bits.
#[inline(always)]
fn shuffle_halves<T: Pod>(from: &[T], to: &mut [T]) {
    let (first, second) = bytemuck::cast_slice::<T, u16>(from).split_at(from.len() / 2);
    let pairs = bytemuck::cast_slice_mut::<T, u8>(to).as_chunks_mut::<4>().0;
    for ((pair, &a), &b) in pairs.iter_mut().zip(first).zip(second) {
        let (a, b) = if cfg!(target_endian = "little") { (a, b) } else { (b, a) };
        *pair = (u32::from(a) | u32::from(b) << 16).to_ne_bytes();
    }
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

    #[inline(always)]
    fn shuffle(from: &[Self], to: &mut [Self]) {
        let (first, second) = bytemuck::cast_slice::<f32, u32>(from).split_at(from.len() / 2);
        let pairs = bytemuck::cast_slice_mut::<f32, u8>(to).as_chunks_mut::<8>().0;
        for ((pair, &a), &b) in pairs.iter_mut().zip(first).zip(second) {
            let (a, b) = if cfg!(target_endian = "little") { (a, b) } else { (b, a) };
            *pair = (u64::from(a) | u64::from(b) << 32).to_ne_bytes();
        }
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

    #[inline(always)]
    fn shuffle(from: &[Self], to: &mut [Self]) {
        shuffle_halves(from, to);
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

    #[inline(always)]
    fn shuffle(from: &[Self], to: &mut [Self]) {
        shuffle_halves(from, to);
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
        Ok(Self { shape, dtype, heads, turns: Turns::new() })
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
    /// Puts chunks into their slots. Chunk by chunk, each layer by one thread, which reads it into memory that stays in its
    /// core's cache: so that one reads while another loads, and a file is read from front to back.
    pub(crate) fn load(
        &self,
        cache: &mut Cache,
        rope: &Rope,
        layers: Range<usize>,
        placements: &[Placement<'_>],
    ) -> Result<()> {
        let Cache { shape, dtype, heads, turns } = cache;
        let (shape, dtype) = (*shape, *dtype);
        let runs: Vec<Vec<Run>> = placements.iter().map(runs_of).collect();
        turns.prepare(self, rope, runs.iter().flatten());
        let heads = heads.chunks_exact_mut(shape.kv_heads.max(1)).enumerate();
        let layers: Vec<(usize, Mutex<&mut [Head]>)> = heads
            .filter(|(layer, _)| layers.contains(layer))
            .map(|(layer, heads)| (layer, Mutex::new(heads)))
            .collect();
        let units = placements.len() * layers.len();
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let load = |placement: usize, layer: usize, space: &mut Space| {
            let (runs, placement) = (&runs[placement], &placements[placement]);
            let (layer, heads) = &layers[layer];
            let kv = placement.chunk.layer_in(*layer, &mut space.bytes)?;
            let mut heads = heads.lock().unwrap_or_else(PoisonError::into_inner);
            for (kv_head, head) in heads.iter_mut().enumerate() {
                let load = Load { placement, runs, kv: &kv, shape, dtype, kv_head, turns };
                let space = &mut space.numbers;
                match head {
                    Head::F32(blocks) => self.arch.dispatch(Put { load, blocks, space }),
                    Head::F16(blocks) => self.arch.dispatch(Put { load, blocks, space }),
                    Head::Bf16(blocks) => self.arch.dispatch(Put { load, blocks, space }),
                }
            }
            Ok(())
        };
        let work = placements.iter().map(|p| p.chunk.tokens().len()).sum::<usize>() * shape.token_numbers();
        let threads = self.pool.current_num_threads().min(layers.len());
        self.each((0..threads).collect(), work, |_| {
            let mut space = Space { bytes: Vec::new(), numbers: vec![0.0; 3 * LANES * shape.head_dim] };
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
    /// Keys of [`LANES`] tokens, three times.
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

/// One head's part of a chunk.
struct Load<'a> {
    placement: &'a Placement<'a>,
    runs: &'a [Run],
    kv: &'a LayerKv<'a>,
    shape: KvShape,
    dtype: Dtype,
    kv_head: usize,
    turns: &'a Turns,
}

/// Puts one head's part of a chunk into its blocks. A closure in its place would be compiled once, for no instruction set
/// in particular, for nothing makes the compiler inline it.
struct Put<'a, T> {
    load: Load<'a>,
    blocks: &'a mut Vec<Vec<T>>,
    /// Room for 3 · [`LANES`] heads.
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
    /// Run by run: the keys are put side by side, and then all of a run are turned together.
    #[inline(always)]
    fn put<T: Element>(&self, blocks: &mut Vec<Vec<T>>, space: &mut [f32]) {
        let head_dim = self.shape.head_dim;
        // What the cache's type can hold already stays as it is.
        let as_is = matches!(self.kv.encoding(), Encoding::Plain(dtype) if dtype == self.dtype)
            && cfg!(target_endian = "little");
        let (space, rest) = space.split_at_mut(LANES * head_dim);
        let (rows, across) = rest.split_at_mut(LANES * head_dim);
        // Of a narrower type there is room for more.
        let [rows, across] = [rows, across].map(|part| &mut bytemuck::cast_slice_mut(part)[..LANES * head_dim]);
        for run in self.runs {
            let Run { token, count, slot, base } = *run;
            let (lane, in_block) = (slot % LANES, slot % BLOCK_TOKENS);
            let Some(&id) = self.placement.table.get(slot / BLOCK_TOKENS) else { return };
            let (keys, values) = block_mut(blocks, id, head_dim).split_at_mut(BLOCK_TOKENS * head_dim);
            let values = values[in_block * head_dim..(in_block + count) * head_dim].chunks_exact_mut(head_dim);
            let wanted = rows[lane * head_dim..(lane + count) * head_dim].chunks_exact_mut(head_dim);
            if as_is {
                for (index, (row, place)) in wanted.zip(values).enumerate() {
                    self.copy(self.kv.keys(), token + index, row);
                    self.copy(self.kv.values(), token + index, place);
                }
            } else {
                self.kv.keys_from(token, self.kv_head, &mut space[..count * head_dim]);
                space.chunks_exact(head_dim).zip(wanted).for_each(|(key, row)| T::narrow(key, row));
                for (index, place) in values.enumerate() {
                    let value = &mut space[..head_dim];
                    self.kv.value(token + index, self.kv_head, value);
                    T::narrow(value, place);
                }
            }
            lay_across(rows, across);
            let places = &mut keys[(in_block - lane) * head_dim..][..LANES * head_dim];
            self.turns.turn(base, rows);
            put_lanes(rows, places, lane..lane + count);
        }
    }

    /// Copies a token's keys or values, which the chunk holds as the cache does.
    #[inline(always)]
    fn copy<T: Element>(&self, half: &[u8], token: usize, place: &mut [T]) {
        let place: &mut [u8] = bytemuck::cast_slice_mut(place);
        let first = (token * self.shape.kv_heads + self.kv_head) * place.len();
        if let Some(bytes) = half.get(first..first + place.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// Turns `[LANES][n]` into `[n][LANES]`: with each round, the upper half of the rows goes between the lower half.
#[inline(always)]
fn lay_across<T: Element>(rows: &mut [T], space: &mut [T]) {
    const ROUNDS: u32 = LANES.ilog2();
    const { assert!(LANES.is_power_of_two() && ROUNDS.is_multiple_of(2)) };
    for _ in 0..ROUNDS / 2 {
        T::shuffle(rows, space);
        T::shuffle(space, rows);
    }
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

    fn new() -> Self {
        Self { rope: Rope { inverse_frequencies: Vec::new(), attention_factor: 1.0 }, angles: HashMap::new() }
    }

    /// Computes what these runs are turned by, as far as it is not there.
    fn prepare<'r>(&mut self, cpu: &Cpu, rope: &Rope, runs: impl Iterator<Item = &'r Run>) {
        let each = 2 * LANES * rope.inverse_frequencies.len();
        if self.rope != *rope {
            *self = Self { rope: rope.clone(), angles: HashMap::new() };
        }
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

    /// Turns keys, `[head_dim][LANES]`.
    #[inline(always)]
    fn turn<T: Element>(&self, base: i64, keys: &mut [T]) {
        let Some(angles) = self.angles.get(&base) else { return };
        // The rest has no partner and is not turned.
        let (low, high) = keys.as_chunks_mut::<LANES>().0.split_at_mut(angles.len() / 2);
        for ((low, high), [cos, sin]) in low.iter_mut().zip(high).zip(angles.as_chunks::<2>().0) {
            let [mut low_space, mut high_space, mut a, mut b] = [[0f32; LANES]; 4];
            let (wide_low, wide_high) = (T::widen(low, &mut low_space), T::widen(high, &mut high_space));
            for lane in 0..LANES {
                a[lane] = wide_low[lane] * cos[lane] - wide_high[lane] * sin[lane];
                b[lane] = wide_high[lane] * cos[lane] + wide_low[lane] * sin[lane];
            }
            T::narrow(&a, low);
            T::narrow(&b, high);
        }
    }
}

/// Puts some lanes of `[n][LANES]` numbers into their places.
#[inline(always)]
fn put_lanes<T: Element>(numbers: &[T], places: &mut [T], lanes: Range<usize>) {
    if lanes.len() == LANES {
        return places.copy_from_slice(numbers);
    }
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
