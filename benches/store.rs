//! How fast does KV come from disk into a context, and how fast is it kept?
//!
//! 128 chunks of 32 tokens in the shape of a Llama 3.2 1B: 1 MiB each. A read of the store's own files, from end to end
//! into one buffer, is the floor of getting them; a write of as many bytes to one file is that of putting them.
//!
//! - `store/warm`: the files are in the page cache. `get` checks checksums over the mapped bytes; `get and load` ends
//!   with rotated keys in the KV cache of the CPU backend, in f16, whose memory was taken before: as in a program that
//!   has run for a while.
//! - `store/cold`: the files were dropped from the page cache, so the disk is on the way. Behind a hypervisor or on a
//!   file system in RAM it may not be.
//! - `store/put`: until all of it would survive a power cut.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amem_benches::{Race, random_numbers};
use amem_core::transformer::{Backend, Placement, Rope};
use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, KvStore, PrefixId};
use amem_cpu::{Cache, Cpu};
use amem_store::SegmentStore;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::future::block_on;
use half::f16;
use rustix::fs::{Advice, fadvise};

const SHAPE: KvShape = KvShape { layers: 16, kv_heads: 8, head_dim: 64 };
const F16: Encoding = Encoding::Plain(Dtype::F16);
const CHUNKS: usize = 128;
const TOKENS: usize = 32;

fn get(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let open = || SegmentStore::open(dir.path()).expect("the store can be opened");
    let (store, chunks) = (open(), chunks());
    block_on(store.put(&chunks)).expect("chunks can be put");
    block_on(store.sync()).expect("they can be synced");
    // Its last segment is sealed when the store is closed, as it would be for the next process.
    drop(store);
    let files = segments(dir.path());
    let ids: Vec<ChunkId> = chunks.iter().map(KvChunk::id).collect();
    let backend = Cpu::new().expect("threads can be started");
    let blocks = (CHUNKS * TOKENS).div_ceil(backend.block_tokens());
    let mut cache = backend.cache(&SHAPE, Dtype::F16, blocks).expect("there is memory for a cache");
    let bytes = Throughput::Bytes((CHUNKS * F16.bytes(&SHAPE, TOKENS)) as u64);

    let store = open();
    let mut race = Race::new(criterion, "store/warm");
    race.throughput(bytes.clone());
    race.lane("read", || read(&files));
    race.lane("get", || fetch(&store, &ids));
    race.lane("get and load", || load(&backend, &mut cache, &fetch(&store, &ids)));
    race.finish();
    drop(store);

    let evicted = || {
        files.iter().for_each(|file| evict(file));
        open()
    };
    let mut race = Race::new(criterion, "store/cold");
    race.throughput(bytes);
    race.lane_with("read", evicted, |_| read(&files));
    race.lane_with("get", evicted, |store| fetch(&store, &ids));
    race.lane_with("get and load", evicted, |store| load(&backend, &mut cache, &fetch(&store, &ids)));
    race.finish();
}

/// Decoding alone: chunks in memory, from each encoding into the cache.
fn decode(criterion: &mut Criterion) {
    let chunks = chunks();
    let backend = Cpu::new().expect("threads can be started");
    let blocks = (CHUNKS * TOKENS).div_ceil(backend.block_tokens());
    let mut cache = backend.cache(&SHAPE, Dtype::F16, blocks).expect("there is memory for a cache");
    let mut race = Race::new(criterion, "store/decode");
    race.throughput(Throughput::Elements((CHUNKS * TOKENS) as u64));
    let plain = [("f16", Dtype::F16), ("f32", Dtype::F32), ("bf16", Dtype::Bf16)];
    let plain = plain.map(|(name, dtype)| (name, Encoding::Plain(dtype)));
    for (name, encoding) in plain.into_iter().chain([("int8", Encoding::Int8), ("int4", Encoding::Int4)]) {
        let encoded = |chunk: &KvChunk| chunk.encoded_as(encoding).expect("a chunk can be encoded");
        let chunks: Vec<KvChunk> = chunks.iter().map(encoded).collect();
        race.lane(name, || load(&backend, &mut cache, &chunks));
    }
    race.finish();
}

fn put(criterion: &mut Criterion) {
    let chunks = chunks();
    let buffer: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.to_bytes().expect("a chunk can be read")).collect();
    let empty = || tempfile::tempdir().expect("a temporary directory can be made");
    let mut race = Race::new(criterion, "store/put");
    race.throughput(Throughput::Bytes(buffer.len() as u64));
    race.lane_with("write", empty, |dir| {
        let mut file = File::create(dir.path().join("file")).expect("a file can be made");
        file.write_all(&buffer).and_then(|()| file.sync_all()).expect("it can be written");
        dir
    });
    race.lane_with("put", empty, |dir| {
        let store = SegmentStore::open(dir.path()).expect("the store can be opened");
        block_on(store.put(&chunks)).expect("chunks can be put");
        block_on(store.sync()).expect("they can be synced");
        (store, dir)
    });
    race.finish();
}

/// Chunks of made-up KV, all different.
fn chunks() -> Vec<KvChunk> {
    let prefix = PrefixId::of(&[]);
    let numbers = random_numbers(F16.bytes(&SHAPE, TOKENS) / 2, 1);
    let data: Vec<u8> = numbers.into_iter().flat_map(|number| f16::from_f32(number).to_le_bytes()).collect();
    let chunk = |number: usize| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_le_bytes());
        let mut data = data.clone();
        data.rotate_left(2 * number);
        let tokens = (0..TOKENS).map(|token| (number * TOKENS + token) as u32).collect();
        let data = HostKv::new(F16, SHAPE.layers, data);
        KvChunk::new(ChunkId(id), prefix, SHAPE, tokens, Arc::new(data)).expect("the bytes fit the shape")
    };
    (0..CHUNKS).map(chunk).collect()
}

fn fetch(store: &SegmentStore, ids: &[ChunkId]) -> Vec<KvChunk> {
    let get = |id| block_on(store.get(id)).expect("the store works").expect("the chunk is there");
    ids.iter().map(get).collect()
}

/// Puts the chunks into a KV cache, one behind the other.
fn load(backend: &Cpu, cache: &mut Cache, chunks: &[KvChunk]) {
    let rope = Rope::plain(500_000.0, SHAPE.head_dim);
    let table: Vec<u32> = (0..(CHUNKS * TOKENS).div_ceil(backend.block_tokens()) as u32).collect();
    let slots = (0u32..).step_by(TOKENS);
    let placement = |(chunk, slot)| Placement { chunk, table: &table, slot, position: slot };
    let placements: Vec<Placement<'_>> = chunks.iter().zip(slots).map(placement).collect();
    backend.load_kv(cache, &rope, 0..SHAPE.layers, &placements).expect("the chunks can be read");
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the directory can be read");
    let paths = entries.map(|entry| entry.expect("an entry can be read").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "kv")).collect()
}

fn read(files: &[PathBuf]) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(CHUNKS * F16.bytes(&SHAPE, TOKENS) * 5 / 4);
    for file in files {
        File::open(file).and_then(|mut file| file.read_to_end(&mut buffer)).expect("a segment can be read");
    }
    buffer
}

/// Takes a file out of the page cache. Nobody may have mapped it.
fn evict(path: &Path) {
    let file = File::open(path).expect("a segment can be opened");
    file.sync_all().expect("it can be synced");
    fadvise(&file, 0, None, Advice::DontNeed).expect("the system takes advice");
}

criterion_group!(benches, get, decode, put);
criterion_main!(benches);
