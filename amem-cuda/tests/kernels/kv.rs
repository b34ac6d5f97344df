//! The kernels of `kv_<T>`. What chunks hold is encoded and decoded by amem-core.

use std::sync::Arc;

use amem_core::{ChunkId, Dtype, Encoding, Fingerprint, HostKv, KvChunk, KvShape, PrefixId, Token};
use amem_ptxsim::{Counts, Kernel, Schedule};

use super::check::{Case, TYPES, angles, at_floor, hold, near, rounded, turned};
use super::harness::{Argument, Buffer, Device, Random, SCHEDULES, Type, constant, kernel};

/// Slots of a block.
const BLOCK: usize = 64;
/// A slot that is none.
const NONE: u32 = u32::MAX;
const POSITIONS: usize = 50;

const ENCODINGS: [(&str, Encoding); 5] = [
    ("f32", Encoding::Plain(Dtype::F32)),
    ("f16", Encoding::Plain(Dtype::F16)),
    ("bf16", Encoding::Plain(Dtype::Bf16)),
    ("int8", Encoding::Int8),
    ("int4", Encoding::Int4),
];

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    head_dim: usize,
}

impl Shape {
    fn row(self) -> usize {
        self.heads * self.head_dim
    }

    fn arguments(self) -> [Argument; 2] {
        [(self.heads as u32).into(), (self.head_dim as u32).into()]
    }
}

/// A cache of keys or of values, and what should be in it: NaN, with which it is filled, where nothing is written.
struct Cache {
    shape: Shape,
    dtype: Type,
    at: Buffer,
    expected: Vec<(f64, f64)>,
}

impl Cache {
    fn new(device: &mut Device, shape: Shape, dtype: Type, blocks: usize) -> Self {
        let numbers = blocks * BLOCK * shape.row();
        let at = device.upload("cache", &vec![0xffu8; numbers * dtype.bytes()]);
        Self { shape, dtype, at, expected: vec![(f64::NAN, 0.0); numbers] }
    }

    fn expect(&mut self, slot: u32, head: usize, numbers: impl IntoIterator<Item = (f64, f64)>) {
        let (block, offset) = (slot as usize / BLOCK, slot as usize % BLOCK);
        let at = ((block * self.shape.heads + head) * BLOCK + offset) * self.shape.head_dim;
        self.expected[at..][..self.shape.head_dim].iter_mut().zip(numbers).for_each(|(to, from)| *to = from);
    }

    fn check(self, device: &mut Device, what: &str) -> Result<(), String> {
        near(what, &device.read_as(self.dtype, self.at)?, self.expected.into_iter())
    }
}

fn exactly(numbers: &[f32]) -> impl Iterator<Item = (f64, f64)> {
    numbers.iter().map(|&x| (x.into(), 0.0))
}

/// Numbers, some of which become too large for an f16 when they are rotated.
fn rows_of(random: &mut Random, dtype: Type, rows: usize, shape: Shape) -> Vec<f32> {
    let numbers = random.units(rows * shape.row());
    rounded(dtype, &numbers.into_iter().map(|x| if x.abs() > 0.8 { 65504.0 * x } else { x }).collect::<Vec<_>>())
}

/// Slots of three blocks for five rows. The position of the row that has none must not be read.
const SLOTS: [u32; 5] = [70, NONE, 3, 191, 64];
const AT: [u32; 5] = [7, u32::MAX, 0, 49, 12];

fn write_kv(kernel: &Kernel, schedule: Schedule, dtype: Type, shape: Shape) -> Result<Counts, String> {
    let mut random = Random::new(shape.row() as u64);
    let [keys, values] = [(); 2].map(|()| rows_of(&mut random, dtype, SLOTS.len(), shape));
    let table = angles(POSITIONS, shape.head_dim);
    let mut device = Device::new();
    let [mut k_cache, mut v_cache] = [(); 2].map(|()| Cache::new(&mut device, shape, dtype, 3));
    let tensors = [device.upload_as(dtype, "keys", &keys), device.upload_as(dtype, "values", &values)];
    let plan = [device.upload("angles", &table), device.upload("positions", &AT), device.upload("slots", &SLOTS)];
    let pointers = [&tensors[..], &plan, &[k_cache.at, v_cache.at]].concat();
    let arguments: Vec<Argument> = pointers.into_iter().map(Argument::from).chain(shape.arguments()).collect();
    let counts = device.launch(kernel, [SLOTS.len() as u32, 1, 1], 128, 0, &arguments, schedule)?;
    for (row, (&slot, &position)) in SLOTS.iter().zip(&AT).enumerate().filter(|(_, (slot, _))| **slot != NONE) {
        for head in 0..shape.heads {
            let at = row * shape.row() + head * shape.head_dim..row * shape.row() + (head + 1) * shape.head_dim;
            let angles = &table[position as usize * shape.head_dim..][..shape.head_dim];
            k_cache.expect(slot, head, turned(dtype, &keys[at.clone()], angles));
            v_cache.expect(slot, head, exactly(&values[at]));
        }
    }
    k_cache.check(&mut device, "keys")?;
    v_cache.check(&mut device, "values")?;
    Ok(counts)
}

fn key_distance(kernel: &Kernel, schedule: Schedule, dtype: Type, shape: Shape) -> Result<Counts, String> {
    let mut random = Random::new(shape.row() as u64 + 9);
    let (slots, positions) = ([70u32, 3, 191], [7u32, 0, 49]);
    let (first, last) = (random.units(shape.row()), random.units(shape.row()));
    let keys = [rounded(dtype, &first), rows_of(&mut random, dtype, 1, shape), rounded(dtype, &last)].concat();
    let table = angles(POSITIONS, shape.head_dim);
    let mut device = Device::new();
    // What stands in the cache: noise, and NaN where no row looks.
    let mut stored = vec![f32::NAN; 3 * BLOCK * shape.row()];
    let mut expected = Vec::new();
    for (row, (&slot, &position)) in slots.iter().zip(&positions).enumerate() {
        let mut sum = 0.0;
        for head in 0..shape.heads {
            let key = &keys[row * shape.row() + head * shape.head_dim..][..shape.head_dim];
            let angles = &table[position as usize * shape.head_dim..][..shape.head_dim];
            let turned: Vec<f32> = turned(dtype, key, angles).into_iter().map(|(x, _)| x as f32).collect();
            let others = rounded(dtype, &random.units(shape.head_dim));
            let pairs = rounded(dtype, &turned).into_iter().zip(&others);
            sum += pairs.map(|(x, y)| (f64::from(x) - f64::from(*y)).powi(2)).sum::<f64>();
            let (block, offset) = (slot as usize / BLOCK, slot as usize % BLOCK);
            let at = ((block * shape.heads + head) * BLOCK + offset) * shape.head_dim;
            stored[at..][..shape.head_dim].copy_from_slice(&others);
        }
        // Rounding may have gone the other way in single numbers.
        expected.push((sum, 1e-5 * sum));
    }
    let cache = device.upload_as(dtype, "cache", &stored);
    let keys_at = device.upload_as(dtype, "keys", &keys);
    let plan =
        [device.upload("angles", &table), device.upload("positions", &positions), device.upload("slots", &slots)];
    let out = device.allocate("out", 4 * slots.len());
    let pointers = [&[keys_at], &plan[..], &[cache, out]].concat();
    let arguments: Vec<Argument> = pointers.into_iter().map(Argument::from).chain(shape.arguments()).collect();
    let counts = device.launch(kernel, [slots.len() as u32, 1, 1], 128, 0, &arguments, schedule)?;
    near("distance", &device.read::<f32>(out)?, expected.into_iter())?;
    Ok(counts)
}

/// A chunk of one layer whose channels have different sizes, as those of keys do.
fn chunk(random: &mut Random, encoding: Encoding, shape: Shape, tokens: usize) -> KvChunk {
    let shape = KvShape { layers: 1, kv_heads: shape.heads, head_dim: shape.head_dim };
    let mut numbers = || -> Vec<f32> {
        // Every third head is too large for an f16.
        let large = |i: usize| if i / shape.head_dim % 3 == 1 { 90_000.0 } else { 1.0 };
        let size = |i: usize| large(i) * [1.0, 20.0, 0.01, 1.0, 3.0, 1.0, 0.5][i % shape.row() % 7];
        random.units(tokens * shape.row()).into_iter().enumerate().map(|(i, x)| size(i) * x).collect()
    };
    let (keys, values, mut bytes) = (numbers(), numbers(), Vec::new());
    encoding.encode_layer(&shape, &keys, &values, &mut bytes);
    let data = Arc::new(HostKv::new(encoding, 1, bytes));
    let tokens: Arc<[Token]> = vec![0; tokens].into();
    let prefix = PrefixId::of(&[]);
    let id = ChunkId::of(&Fingerprint([0; 32]), &prefix, "test", &tokens);
    KvChunk::new(id, prefix, shape, tokens, data).unwrap()
}

/// Chunks of so many tokens each, and where in memory they begin, beyond a multiple of 256.
#[derive(Clone, Copy)]
struct Chunks {
    tokens: &'static [usize],
    beyond: usize,
}

/// Loads the chunks' tokens into slots that lie anywhere.
fn load_kv(
    kernel: &Kernel,
    schedule: Schedule,
    (dtype, encoding): (Type, Encoding),
    shape: Shape,
    chunks: Chunks,
) -> Result<Counts, String> {
    let mut random = Random::new((shape.row() + chunks.tokens.len()) as u64);
    let table = angles(POSITIONS, shape.head_dim);
    let mut device = Device::new();
    let rows: usize = chunks.tokens.iter().sum();
    let blocks = rows.div_ceil(BLOCK) + 1;
    let [mut k_cache, mut v_cache] = [(); 2].map(|()| Cache::new(&mut device, shape, dtype, blocks));
    // Slots in the order of a random key each.
    let mut slots: Vec<u32> = (0..(blocks * BLOCK) as u32).collect();
    slots.sort_by_cached_key(|_| random.next());
    slots.truncate(rows);
    let mut positions: Vec<u32> = (0..rows).map(|_| random.below(POSITIONS as u32)).collect();
    for row in (0..rows).filter(|row| row % 11 == 5) {
        (slots[row], positions[row]) = (NONE, NONE);
    }

    let (mut sources, mut chunk_of) = (vec![[0u8; 16]; chunks.tokens.len()], Vec::new());
    // The last chunk has the first rows.
    for (index, &tokens) in chunks.tokens.iter().enumerate().rev() {
        let chunk = chunk(&mut random, encoding, shape, tokens);
        let layer = chunk.layer(0).unwrap();
        let first = chunk_of.len();
        let padded = [vec![0xff; chunks.beyond], layer.bytes().to_vec()].concat();
        let address = device.upload("chunk", &padded).address + chunks.beyond as u64;
        sources[index][..8].copy_from_slice(&address.to_le_bytes());
        sources[index][8..12].copy_from_slice(&(tokens as u32).to_le_bytes());
        sources[index][12..].copy_from_slice(&(first as u32).to_le_bytes());
        for token in 0..tokens {
            let (slot, position) = (slots[first + token], positions[first + token]);
            chunk_of.push(if slot == NONE { NONE } else { index as u32 });
            for head in (0..shape.heads).filter(|_| slot != NONE) {
                let [mut key, mut value] = [(); 2].map(|()| vec![0.0; shape.head_dim]);
                layer.key(token, head, &mut key);
                layer.value(token, head, &mut value);
                let angles = &table[position as usize * shape.head_dim..][..shape.head_dim];
                k_cache.expect(slot, head, turned(dtype, &rounded(dtype, &key), angles));
                v_cache.expect(slot, head, exactly(&rounded(dtype, &value)));
            }
        }
    }
    let pointers = [
        device.upload("sources", sources.as_flattened()),
        device.upload("chunk_of", &chunk_of),
        device.upload("slots", &slots),
        device.upload("positions", &positions),
        device.upload("angles", &table),
        k_cache.at,
        v_cache.at,
    ];
    let numbers = shape.arguments().into_iter().chain([(rows as u32).into()]);
    let arguments: Vec<Argument> = pointers.into_iter().map(Argument::from).chain(numbers).collect();
    let (module, entry) = (format!("kv_{}", dtype.name()), kernel.name());
    let each = constant(&module, entry, "rows");
    let shared =
        constant(&module, entry, "shared") + constant(&module, entry, "shared_per_head_dim") * shape.head_dim as u32;
    let grid = [(rows as u32).div_ceil(each), 1, 1];
    let counts = device.launch(kernel, grid, 128, shared, &arguments, schedule)?;
    k_cache.check(&mut device, "keys")?;
    v_cache.check(&mut device, "values")?;
    Ok(counts)
}

/// Heads and their size: some have more units than a block has threads, and some are not on the fast path.
const SHAPES: [(usize, usize); 10] =
    [(3, 2), (1, 16), (13, 20), (2, 24), (8, 64), (3, 80), (1, 96), (17, 128), (2, 256), (1, 300)];

/// Chunks whose last group of tokens is short, long and of every size between, and such that begin off the alignment of
/// wide loads.
const CHUNKS: [((usize, usize), Chunks); 12] = [
    ((3, 2), Chunks { tokens: &[5, 70], beyond: 16 }),
    ((1, 16), Chunks { tokens: &[1, 31, 1], beyond: 16 }),
    ((13, 20), Chunks { tokens: &[2], beyond: 0 }),
    ((3, 24), Chunks { tokens: &[3, 2], beyond: 16 }),
    ((2, 64), Chunks { tokens: &[33, 64, 97], beyond: 0 }),
    ((1, 64), Chunks { tokens: &[67], beyond: 4 }),
    ((2, 70), Chunks { tokens: &[3], beyond: 16 }),
    ((3, 80), Chunks { tokens: &[7], beyond: 8 }),
    ((1, 96), Chunks { tokens: &[63, 2], beyond: 16 }),
    ((5, 96), Chunks { tokens: &[17], beyond: 12 }),
    ((17, 128), Chunks { tokens: &[2, 1], beyond: 0 }),
    ((1, 256), Chunks { tokens: &[20], beyond: 4 }),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for t in TYPES {
        for (heads, head_dim) in SHAPES {
            let shape = Shape { heads, head_dim };
            all.push(Case::of("kv", t, "write_kv", move |k, s| write_kv(k, s, t, shape).map(drop)));
            all.push(Case::of("kv", t, "key_distance", move |k, s| key_distance(k, s, t, shape).map(drop)));
        }
        for (name, encoding) in ENCODINGS {
            for ((heads, head_dim), mut chunks) in CHUNKS {
                // Plain numbers have to begin on a multiple of 16.
                if matches!(encoding, Encoding::Plain(_)) {
                    chunks.beyond = chunks.beyond.next_multiple_of(16);
                }
                let shape = Shape { heads, head_dim };
                all.push(Case::of("kv", t, &format!("load_kv_{name}"), move |k, s| {
                    load_kv(k, s, (t, encoding), shape, chunks).map(drop)
                }));
            }
        }
    }
    all
}

#[test]
fn fresh_keys_are_rotated_into_their_slots_and_values_copied() {
    hold(cases(), "write_kv");
}

#[test]
fn the_distance_of_keys_is_that_of_rotated_and_rounded_ones() {
    hold(cases(), "key_distance");
}

#[test]
fn keys_are_at_no_distance_from_themselves() {
    let (shape, slots, positions) = (Shape { heads: 2, head_dim: 64 }, [5u32, 100], [49u32, 3]);
    for dtype in TYPES {
        let keys = rounded(dtype, &Random::new(1).units(2 * shape.row()));
        let module = format!("kv_{}", dtype.name());
        let mut device = Device::new();
        let [k_cache, v_cache] = [(); 2].map(|()| Cache::new(&mut device, shape, dtype, 2));
        let keys = device.upload_as(dtype, "keys", &keys);
        let plan = [
            device.upload("angles", &angles(POSITIONS, shape.head_dim)),
            device.upload("positions", &positions),
            device.upload("slots", &slots),
        ];
        let mut launch = |entry, pointers: Vec<Buffer>| {
            let arguments: Vec<Argument> = pointers.into_iter().map(Argument::from).chain(shape.arguments()).collect();
            device.launch(kernel(&module, entry), [2, 1, 1], 128, 0, &arguments, SCHEDULES[0]).unwrap();
        };
        launch("write_kv", [&[keys, keys], &plan[..], &[k_cache.at, v_cache.at]].concat());
        let out = device.allocate("out", 8);
        let mut launch = |entry, pointers: Vec<Buffer>| {
            let arguments: Vec<Argument> = pointers.into_iter().map(Argument::from).chain(shape.arguments()).collect();
            device.launch(kernel(&module, entry), [2, 1, 1], 128, 0, &arguments, SCHEDULES[0]).unwrap();
        };
        launch("key_distance", [&[keys], &plan[..], &[k_cache.at, out]].concat());
        assert_eq!(device.read::<f32>(out).unwrap(), [0.0; 2], "{module}");
    }
}

#[test]
fn plain_chunks_are_loaded_as_the_core_reads_them() {
    for (name, _) in &ENCODINGS[..3] {
        hold(cases(), &format!("load_kv_{name}"));
    }
}

#[test]
fn chunks_of_eight_bits_are_loaded_as_the_core_reads_them() {
    hold(cases(), "load_kv_int8");
}

#[test]
fn chunks_of_four_bits_are_loaded_as_the_core_reads_them() {
    hold(cases(), "load_kv_int4");
}

#[test]
fn no_kernel_moves_more_than_it_must() {
    let (s, shape) = (SCHEDULES[0], Shape { heads: 8, head_dim: 128 });
    for t in TYPES {
        let (size, module) = (t.bytes(), format!("kv_{}", t.name()));
        let angles = 4 * shape.head_dim;
        let check = |what: &str, counts: Result<Counts, String>, floor: usize, excess: f64| {
            let result = counts.and_then(|counts| at_floor(&counts, floor, excess));
            assert_eq!(result, Ok(()), "{what} of {module}");
        };
        // One of the rows has no slot.
        let floor = 4 * (4 * shape.row() * size + angles);
        check("write_kv", write_kv(kernel(&module, "write_kv"), s, t, shape), floor, 0.08);
        let floor = 3 * (2 * shape.row() * size + angles);
        check("key_distance", key_distance(kernel(&module, "key_distance"), s, t, shape), floor, 0.08);
        for (name, encoding) in ENCODINGS {
            let entry = format!("load_kv_{name}");
            let layer = encoding.layer_bytes(&KvShape { layers: 1, kv_heads: 8, head_dim: 128 }, 64);
            // One row of eleven has no slot.
            let floor = 58 * (layer / 64 + 2 * shape.row() * size + angles);
            let excess = if encoding == Encoding::Int4 { 0.2 } else { 0.05 };
            let chunks = Chunks { tokens: &[64], beyond: 0 };
            check(&entry, load_kv(kernel(&module, &entry), s, (t, encoding), shape, chunks), floor, excess);
        }
    }
}
