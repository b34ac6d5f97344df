//! Putting stored chunks into the cache: keys are rotated and transposed on the way, values copied.
//!
//! What this costs beyond reading the chunks is mostly the memory that is written, for a context is larger than a core's cache.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use amem_core::transformer::{Placement, Rope};
use amem_core::{Dtype, Encoding, KvShape, LayerKv, Result};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};

use crate::Cpu;
use crate::cache::{BLOCK_TOKENS, Cache, Head, LANES, block_mut};
use crate::number::Element;
use crate::vectors::{AnySimd, Fence, Vectors, rotate_and_transpose};

/// From so many bytes on, what is loaded at once is written past the processor's caches: it would drive out all that is in them,
/// and itself in part, before it is read. The bound is estimated from the sizes of caches, not measured.
const STREAMED: usize = if cfg!(test) { 64 << 10 } else { 16 << 20 };

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
        let Cache { shape, dtype, heads, rotations } = cache;
        let (shape, dtype) = (*shape, *dtype);
        let rotations = Rotations::of(rotations, rope);
        rotations.prepare(self, placements.iter().flat_map(runs_of));
        let runs: Vec<Vec<RunWithAngles<'_>>> =
            placements.iter().map(|placement| rotations.with_angles(runs_of(placement))).collect();
        let heads = heads.chunks_exact_mut(shape.kv_heads.max(1)).enumerate();
        let layers: Vec<(usize, Mutex<&mut [Head]>)> = heads
            .filter(|(layer, _)| layers.contains(layer))
            .map(|(layer, heads)| (layer, Mutex::new(heads)))
            .collect();
        let units = placements.len() * layers.len();
        let tokens: usize = placements.iter().map(|p| p.chunk.tokens().len()).sum();
        let streams = tokens * layers.len() * 2 * shape.row() * dtype.size() >= STREAMED;
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let load = |placement: usize, layer: usize, space: &mut Space| {
            let Space { bytes, numbers } = space;
            let (runs, placement) = (&runs[placement], &placements[placement]);
            let (layer, heads) = &layers[layer];
            let kv = placement.chunk.layer_in(*layer, bytes)?;
            let mut heads = heads.lock().unwrap_or_else(PoisonError::into_inner);
            let load = Load { placement, runs, kv: &kv, shape, dtype, streams, heads: &mut heads, numbers };
            match dtype {
                #[cfg(target_arch = "x86_64")]
                Dtype::F16 if let Some(avx2) = self.isa.avx2 => avx2.load(load),
                Dtype::F16 => self.arch.dispatch(Put { load, dtype: PhantomData::<f16> }),
                Dtype::Bf16 => self.arch.dispatch(Put { load, dtype: PhantomData::<bf16> }),
                _ => self.arch.dispatch(Put { load, dtype: PhantomData::<f32> }),
            }
            Ok(())
        };
        let work = tokens * shape.token_numbers();
        // A layer is written by one thread at a time. Meanwhile others read.
        let threads = self.threads.count().min(2 * layers.len()).min(units);
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
    /// Keys of [`LANES`] tokens in one head, three times.
    numbers: Vec<f32>,
}

/// A run, and the cosines and sines by which its keys are rotated.
type RunWithAngles<'t> = (SlotRun, &'t [[f32; LANES]]);

/// Tokens of a chunk whose slots are side by side in a vector of [`LANES`].
struct SlotRun {
    /// The first of them, in the chunk.
    token: usize,
    count: usize,
    /// The slot of the first.
    slot: usize,
    /// The position that the slot of the first lane stands for, if there is one.
    base: i64,
}

fn runs_of(placement: &Placement<'_>) -> Vec<SlotRun> {
    let (tokens, mut token) = (placement.chunk.tokens().len(), 0);
    let mut runs = Vec::with_capacity(tokens / LANES + 2);
    while token < tokens {
        let slot = placement.slot as usize + token;
        let count = (LANES - slot % LANES).min(tokens - token);
        let base = i64::from(placement.position) + token as i64 - (slot % LANES) as i64;
        runs.push(SlotRun { token, count, slot, base });
        token += count;
    }
    runs
}

/// One layer of a chunk, to be put into its blocks.
pub(crate) struct Load<'a> {
    placement: &'a Placement<'a>,
    /// With their angles.
    runs: &'a [RunWithAngles<'a>],
    kv: &'a LayerKv<'a>,
    shape: KvShape,
    dtype: Dtype,
    /// Whether it is written past the caches.
    streams: bool,
    heads: &'a mut [Head],
    /// As [`Space`] has them.
    numbers: &'a mut [f32],
}

/// Puts one layer of a chunk into its blocks. A closure in its place would be compiled once, for no instruction set in
/// particular, for nothing makes the compiler inline it.
struct Put<'a, T> {
    load: Load<'a>,
    /// The type of the cache's numbers.
    dtype: PhantomData<T>,
}

impl<T: Element> WithSimd for Put<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.load.put::<T, _>(AnySimd(simd));
    }
}

impl<'a> Load<'a> {
    /// SlotRun by run, and head by head, so that what lies between two steps stays in the nearest cache.
    #[inline(always)]
    pub(crate) fn put<T: Element, V: Vectors<T>>(self, v: V) {
        let (KvShape { head_dim, .. }, width) = (self.shape, self.shape.row());
        let as_is = self.as_is::<T>();
        let (decoded, rest) = self.numbers.split_at_mut(LANES * head_dim);
        let (rows, rotated) = rest.split_at_mut(LANES * head_dim);
        // Of a narrower type there is room for more.
        let [rows, rotated] = [rows, rotated].map(|part| &mut bytemuck::cast_slice_mut(part)[..LANES * head_dim]);
        let fence = Fence::default();
        for (SlotRun { token, count, slot, .. }, angles) in self.runs {
            let (lane, in_block, streaming) = (slot % LANES, slot % BLOCK_TOKENS, fence.streaming());
            // A line that others write to as well is not streamed.
            let streaming = streaming.filter(|_| self.streams && *count == LANES);
            let Some(&id) = self.placement.table.get(slot / BLOCK_TOKENS) else { return };
            for (kv_head, head) in self.heads.iter_mut().enumerate() {
                let Some(blocks) = T::blocks(head) else { return };
                let (keys, values) = block_mut(blocks, id, head_dim).split_at_mut(BLOCK_TOKENS * head_dim);
                let first = token * width + kv_head * head_dim;
                let own_rows = &mut rows[lane * head_dim..(lane + count) * head_dim];
                let (from, stride) = match as_is {
                    Some((keys, _)) if *count == LANES => (&keys[first..], width),
                    Some((keys, _)) => {
                        let keys = keys[first..].chunks(width);
                        own_rows
                            .chunks_exact_mut(head_dim)
                            .zip(keys)
                            .for_each(|(row, key)| row.copy_from_slice(&key[..head_dim]));
                        (&*rows, head_dim)
                    }
                    None => {
                        let decoded = &mut decoded[..count * head_dim];
                        self.kv.keys_from(*token, kv_head, decoded);
                        v.narrow(decoded, own_rows);
                        (&*rows, head_dim)
                    }
                };
                let places = &mut keys[(in_block - lane) * head_dim..][..LANES * head_dim];
                if *count == LANES {
                    rotate_and_transpose(v, angles, (from, stride), places, streaming);
                } else {
                    rotate_and_transpose(v, angles, (from, stride), rotated, None);
                    put_lanes(rotated, places, lane..lane + count);
                }
                let places = values[in_block * head_dim..(in_block + count) * head_dim].chunks_exact_mut(head_dim);
                for (index, place) in places.enumerate() {
                    match as_is {
                        Some((_, values)) => v.put(&values[first + index * width..][..head_dim], place, streaming),
                        None => {
                            let value = &mut decoded[..head_dim];
                            self.kv.value(token + index, kv_head, value);
                            v.narrow(value, place);
                        }
                    }
                }
            }
        }
    }

    /// Keys and values as they are stored, `[tokens][kv_heads][head_dim]` each, if the cache's type can hold them.
    #[inline(always)]
    fn as_is<T: Element>(&self) -> Option<(&'a [T], &'a [T])> {
        let is_same = self.kv.encoding() == Encoding::Plain(self.dtype) && cfg!(target_endian = "little");
        let (kv, numbers) = (self.kv, self.placement.chunk.tokens().len() * self.shape.row());
        match [kv.keys(), kv.values()].map(bytemuck::try_cast_slice::<u8, T>) {
            [Ok(keys), Ok(values)] if is_same && keys.len() == numbers && values.len() == numbers => {
                Some((keys, values))
            }
            _ => None,
        }
    }
}

/// The cosines and sines by which keys are rotated that lie side by side. They are computed once for a position, which costs
/// about as much as loading a few layers of a key.
pub(crate) struct Rotations {
    rope: Rope,
    /// By the position of the first lane: `[head_dim / 2]` times the cosines of [`LANES`] positions and their sines.
    angles: HashMap<i64, Vec<[f32; LANES]>>,
}

impl Rotations {
    /// Numbers that are kept at most, as far as one call does not need more.
    const KEPT: usize = 16 << 20;

    /// Those of a rope. The layers of a model have two at most.
    fn of<'t>(all: &'t mut Vec<Self>, rope: &Rope) -> &'t mut Self {
        const ROPES: usize = 2;
        let known = all.iter().position(|rotations| rotations.rope == *rope).unwrap_or_else(|| {
            if all.len() == ROPES {
                all.remove(0);
            }
            all.push(Self { rope: rope.clone(), angles: HashMap::new() });
            all.len() - 1
        });
        &mut all[known]
    }

    /// Computes what these runs are rotated by, as far as it is not there.
    fn prepare(&mut self, cpu: &Cpu, runs: impl Iterator<Item = SlotRun>) {
        let rope = &self.rope;
        let each = 2 * LANES * rope.inverse_frequencies.len();
        let needed: HashSet<i64> = runs.map(|run| run.base).collect();
        let missing = |rotations: &Self| needed.iter().filter(|base| !rotations.angles.contains_key(base)).count();
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

    /// The runs, each with what it is rotated by.
    fn with_angles(&self, runs: Vec<SlotRun>) -> Vec<RunWithAngles<'_>> {
        runs.into_iter()
            .map(|run| {
                let angles = self.angles.get(&run.base).map(Vec::as_slice).unwrap_or_default();
                (run, angles)
            })
            .collect()
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
    let of_frequency = |&frequency: &f32| {
        let both = positions.map(|position| rope.cos_sin(position, frequency));
        [both.map(|(cos, _)| cos), both.map(|(_, sin)| sin)]
    };
    rope.inverse_frequencies.iter().flat_map(of_frequency).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use amem_core::transformer::Backend;
    use amem_core::{ChunkId, HostKv, KvChunk, PrefixId};

    use super::*;
    use crate::{CpuOptions, Instructions};

    const LAYERS: usize = 2;
    const KV_HEADS: usize = 3;
    const SLOT: u32 = 5;
    const POSITION: u32 = 1009;
    const TABLE: [u32; 3] = [3, 0, 2];

    /// A chunk of numbers of all sizes, the largest of f16 and what is no number among them.
    fn chunk(shape: KvShape, tokens: usize, encoding: Encoding) -> KvChunk {
        let mut bytes = Vec::new();
        let number = |at: usize| match (at % 997, (at.wrapping_mul(0x9e37_79b9) >> 7) % 4001) {
            (0, _) => 65504.0,
            (1, _) => f32::NAN,
            (2, _) => -f32::INFINITY,
            (3, _) => 1e-7,
            (_, noise) => noise as f32 / 500.0 - 4.0,
        };
        for layer in 0..shape.layers {
            let numbers =
                |half: usize| (0..tokens * shape.row()).map(|at| number(at + 31 * half + 7 * layer)).collect();
            let [keys, values]: [Vec<f32>; 2] = [0, 1].map(numbers);
            encoding.encode_layer(&shape, &keys, &values, &mut bytes);
        }
        let (data, tokens) = (HostKv::new(encoding, shape.layers, bytes), vec![7; tokens]);
        KvChunk::new(ChunkId([1; 32]), PrefixId([2; 32]), shape, tokens.into(), Arc::new(data)).unwrap()
    }

    fn rounded(dtype: Dtype, x: f32) -> f32 {
        let (mut bytes, mut rounded) = (Vec::new(), [0.0]);
        dtype.encode(&[x], &mut bytes);
        dtype.decode(&bytes, &mut rounded);
        rounded[0]
    }

    /// Bits of the key and of the value of a token in one head, as the law of backends says.
    fn expected(chunk: &KvChunk, dtype: Dtype, rope: &Rope, layer: usize, token: usize, head: usize) -> [Vec<u32>; 2] {
        let (layer, head_dim) = (chunk.layer(layer).unwrap(), chunk.shape().head_dim);
        let (mut key, mut value) = (vec![0.0; head_dim], vec![0.0; head_dim]);
        layer.key(token, head, &mut key);
        layer.value(token, head, &mut value);
        key.iter_mut().chain(&mut value).for_each(|x| *x = rounded(dtype, *x));
        let half = rope.inverse_frequencies.len();
        for (index, frequency) in rope.inverse_frequencies.iter().enumerate() {
            let (cos, sin) = rope.cos_sin(POSITION + token as u32, *frequency);
            let (low, high) = (key[index], key[index + half]);
            (key[index], key[index + half]) = (low * cos - high * sin, high * cos + low * sin);
        }
        key.iter_mut().for_each(|x| *x = rounded(dtype, *x));
        [key, value].map(|numbers| numbers.into_iter().map(bits).collect())
    }

    /// What is not a number has no bits that count.
    fn bits(x: f32) -> u32 {
        if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
    }

    /// Bits of all numbers of a block, zeros if it was never written.
    fn block(head: &Head, id: usize, head_dim: usize) -> Vec<u32> {
        let numbers: Vec<f32> = match head {
            Head::F32(blocks) => blocks.get(id).map(|block| block.to_vec()).unwrap_or_default(),
            Head::F16(blocks) => {
                blocks.get(id).map(|block| block.iter().map(|x| x.to_f32()).collect()).unwrap_or_default()
            }
            Head::Bf16(blocks) => {
                blocks.get(id).map(|block| block.iter().map(|x| x.to_f32()).collect()).unwrap_or_default()
            }
        };
        let numbers = if numbers.is_empty() { vec![0.0; 2 * BLOCK_TOKENS * head_dim] } else { numbers };
        numbers.into_iter().map(bits).collect()
    }

    /// Whether a chunk stands in a cache as it should, and nothing beside it.
    fn check(instructions: Instructions, head_dim: usize, dtype: Dtype, encoding: Encoding, tokens: usize) {
        let cpu = Cpu::open(CpuOptions::default().threads(2).instructions(instructions)).unwrap();
        let shape = KvShape { layers: LAYERS, kv_heads: KV_HEADS, head_dim };
        let (chunk, rope) = (chunk(shape, tokens, encoding), Rope::plain(10_000.0, head_dim));
        let mut cache = cpu.cache(&shape, dtype, TABLE.len()).unwrap();
        let placement = Placement { chunk: &chunk, table: &TABLE, slot: SLOT, position: POSITION };
        cpu.load_kv(&mut cache, &rope, &[0, 1], &[placement]).unwrap();
        let case = format!("{instructions:?}, {head_dim} of {dtype:?} from {encoding:?}, {tokens} tokens");
        for (layer, head) in (0..LAYERS).flat_map(|layer| (0..KV_HEADS).map(move |head| (layer, head))) {
            let mut blocks = vec![vec![0; 2 * BLOCK_TOKENS * head_dim]; 4];
            for token in 0..tokens {
                let slot = SLOT as usize + token;
                let (block, slot) = (&mut blocks[TABLE[slot / BLOCK_TOKENS] as usize], slot % BLOCK_TOKENS);
                let [key, value] = expected(&chunk, dtype, &rope, layer, token, head);
                for (index, (key, value)) in key.into_iter().zip(value).enumerate() {
                    block[(slot / LANES * head_dim + index) * LANES + slot % LANES] = key;
                    block[(BLOCK_TOKENS + slot) * head_dim + index] = value;
                }
            }
            for (id, expected) in blocks.iter().enumerate() {
                let found = block(cache.head(layer, head), id, head_dim);
                let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{case}: layer {layer}, head {head}, block {id}");
            }
        }
    }

    #[test]
    fn a_chunk_stands_in_the_cache_as_its_law_says() {
        let of = |dtype| (dtype, Encoding::Plain(dtype));
        let from = |encoding| (Dtype::F16, encoding);
        let kinds = [of(Dtype::F16), of(Dtype::Bf16), of(Dtype::F32), from(Encoding::Plain(Dtype::F32))];
        let kinds = kinds.into_iter().chain([Encoding::Int8, Encoding::Int4].map(from));
        let kinds: Vec<_> = kinds.collect();
        for instructions in Instructions::ALL.into_iter().filter(|set| set.is_available()) {
            for &(dtype, encoding) in &kinds {
                for head_dim in [2, 12, 64, 80, 96, 128, 256] {
                    // A chunk that begins and ends amid vectors, and of these one that lies in a single one.
                    for tokens in [3, 70] {
                        check(instructions, head_dim, dtype, encoding, tokens);
                    }
                }
            }
        }
    }
}
