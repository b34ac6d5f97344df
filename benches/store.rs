//! How fast does KV come from disk into a context, and how fast is it kept?
//!
//! Chunks of 32 tokens in the shape of a Llama 3.2 1B: 1 MiB each, 1 GiB of them to get and 128 MiB to put.
//!
//! - `store/warm`: the files are in the page cache. `get and read` reads and checks every layer, one after another;
//!   `get and load` ends with rotated keys in the KV cache of the CPU backend, in f16, whose memory was taken before: as
//!   in a program that has run for a while. Both against copying as many bytes from memory to memory, and against reading
//!   the store's own files from end to end.
//! - `store/cold`: the files were dropped from the page cache, so the disk is on the way. Behind a hypervisor or on a
//!   file system in RAM it may not be. Against reading the store's own files from end to end.
//! - `store/first token`: a question behind 14 chunks of 512 tokens, of the random model or that of `AMEM_BENCH_MODEL`, from
//!   cold files to the logits: with all chunks read before the first layer is computed, and with each layer's KV read when
//!   the layer is reached, while what comes later is read ahead. `in memory` is the floor.
//! - `store/decode`: loading alone, from each encoding.
//! - `store/put`: until all of it would survive a power cut, against writing and syncing one file of as many bytes.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amem_benches::{Race, model, random_numbers};
use amem_core::transformer::{Backend, Placement, Rope};
use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, KvStore, Model, Piece, PrefixId, Repair, Token};
use amem_cpu::{Cache, Cpu};
use amem_store::SegmentStore;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::future::block_on;
use half::f16;
use rustix::fs::{Advice, fadvise};

const SHAPE: KvShape = KvShape { layers: 16, kv_heads: 8, head_dim: 64 };
const F16: Encoding = Encoding::Plain(Dtype::F16);
const GOTTEN: usize = 1024;
const PUT: usize = 128;
/// Chunks that are fetched and loaded while those behind them are read ahead.
const BATCH: usize = 32;
const TOKENS: usize = 32;

fn get(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let open = || SegmentStore::open(dir.path()).expect("the store can be opened");
    let (store, chunks) = (open(), chunks(GOTTEN));
    block_on(store.put(&chunks)).expect("chunks can be put");
    block_on(store.sync()).expect("they can be synced");
    // Its last segment is sealed when the store is closed, as it would be for the next process.
    drop(store);
    let files = segments(dir.path());
    let ids: Vec<ChunkId> = chunks.iter().map(KvChunk::id).collect();
    let from: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.to_bytes().expect("a chunk can be read")).collect();
    drop(chunks);
    let mut to = vec![1; from.len()];
    let backend = Cpu::new().expect("threads can be started");
    let mut cache = cache(&backend, GOTTEN);
    let bytes = Throughput::Bytes(from.len() as u64);

    let store = open();
    let mut race = Race::new(criterion, "store/warm");
    race.throughput(bytes.clone());
    race.lane("memcpy", || to.copy_from_slice(&from));
    race.lane("read", || read(&files));
    race.lane("get and read", || fetch_and_read(&store, &ids));
    race.lane("get and load", || fetch_and_load(&store, &ids, &backend, &mut cache));
    race.finish();
    drop((store, from, to));

    let evicted = || {
        files.iter().for_each(|file| evict(file));
        open()
    };
    let mut race = Race::new(criterion, "store/cold");
    race.throughput(bytes);
    race.lane_with("read", evicted, |_| read(&files));
    race.lane_with("get and read", evicted, |store| fetch_and_read(&store, &ids));
    race.lane_with("get and load", evicted, |store| fetch_and_load(&store, &ids, &backend, &mut cache));
    race.finish();
}

/// Reading KV before computing, and on the way.
fn first_token(criterion: &mut Criterion) {
    const MEMORIES: usize = 14;
    const LENGTH: usize = 512;
    let model = model();
    let vocabulary = model.info().vocabulary;
    let text = |number: usize| (0..LENGTH).map(|token| ((number * LENGTH + token * 7) % vocabulary) as Token).collect();
    let texts: Vec<Arc<[Token]>> = (0..MEMORIES).map(text).collect();
    let texts = model.info().prefill_texts("bench", &[], &texts);
    let (chunks, _) = model.prefill(&[], &texts, true).expect("the memories fit into a context");
    let ids: Vec<ChunkId> = chunks.iter().map(KvChunk::id).collect();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let open = || SegmentStore::open(dir.path()).expect("the store can be opened");
    let store = open();
    block_on(store.put(&chunks)).expect("chunks can be put");
    block_on(store.sync()).expect("they can be synced");
    drop(store);
    let files = segments(dir.path());
    let cold = || {
        files.iter().for_each(|file| evict(file));
        open()
    };
    let found = |store: SegmentStore| {
        store.prefetch(&ids);
        fetch(&store, &ids)
    };
    let blend = |chunks: &[KvChunk]| {
        let question = Piece::Fresh((0..16).collect());
        let pieces: Vec<Piece> = chunks.iter().cloned().map(Piece::Cached).chain([question]).collect();
        model.blend(&pieces, &Repair::None).expect("the prompt fits into a context").0.logits()[0]
    };
    let mut race = Race::new(criterion, "store/first token");
    race.throughput(Throughput::Bytes(chunks.iter().map(|chunk| chunk.size() as u64).sum()));
    race.lane_with("read before", cold, |store| {
        let read = |chunk: &KvChunk| chunk.encoded_as(chunk.encoding()).expect("a chunk can be read");
        blend(&found(store).iter().map(read).collect::<Vec<_>>())
    });
    race.lane_with("read on the way", cold, |store| blend(&found(store)));
    race.lane("in memory", || blend(&chunks));
    race.finish();
}

/// A KV cache with room for so many chunks.
fn cache(backend: &Cpu, chunks: usize) -> Cache {
    let blocks = (chunks * TOKENS).div_ceil(backend.block_tokens());
    backend.cache(&SHAPE, Dtype::F16, blocks).expect("there is memory for a cache")
}

/// Decoding alone: chunks in memory, from each encoding into the cache.
fn decode(criterion: &mut Criterion) {
    let chunks = chunks(PUT);
    let backend = Cpu::new().expect("threads can be started");
    let mut cache = cache(&backend, PUT);
    let mut race = Race::new(criterion, "store/decode");
    race.throughput(Throughput::Elements((PUT * TOKENS) as u64));
    let plain = [("f16", Dtype::F16), ("f32", Dtype::F32), ("bf16", Dtype::Bf16)];
    let plain = plain.map(|(name, dtype)| (name, Encoding::Plain(dtype)));
    for (name, encoding) in plain.into_iter().chain([("int8", Encoding::Int8), ("int4", Encoding::Int4)]) {
        let encoded = |chunk: &KvChunk| chunk.encoded_as(encoding).expect("a chunk can be encoded");
        let chunks: Vec<KvChunk> = chunks.iter().map(encoded).collect();
        race.lane(name, || load(&backend, &mut cache, &chunks, 0));
    }
    race.finish();
}

fn put(criterion: &mut Criterion) {
    let chunks = chunks(PUT);
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
fn chunks(count: usize) -> Vec<KvChunk> {
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
    (0..count).map(chunk).collect()
}

fn fetch(store: &SegmentStore, ids: &[ChunkId]) -> Vec<KvChunk> {
    let found = block_on(store.get_many(ids)).expect("the store works");
    found.into_iter().map(|chunk| chunk.expect("the chunk is there")).collect()
}

/// Fetches chunks and reads all of their KV. Says how many bytes it has.
fn fetch_and_read(store: &SegmentStore, ids: &[ChunkId]) -> usize {
    let mut buffer = Vec::new();
    let mut bytes = 0;
    in_batches(store, ids, |_, chunks| {
        for (chunk, layer) in chunks.iter().flat_map(|chunk| (0..SHAPE.layers).map(move |layer| (chunk, layer))) {
            bytes += chunk.layer_in(layer, &mut buffer).expect("a layer can be read").bytes().len();
        }
    });
    bytes
}

/// Fetches chunks and puts them into a KV cache.
fn fetch_and_load(store: &SegmentStore, ids: &[ChunkId], backend: &Cpu, cache: &mut Cache) {
    in_batches(store, ids, |first, chunks| load(backend, cache, &chunks, first * TOKENS));
}

/// Fetches some chunks at a time, while those behind them are read ahead, and uses them.
fn in_batches(store: &SegmentStore, ids: &[ChunkId], mut use_them: impl FnMut(usize, Vec<KvChunk>)) {
    store.prefetch(&ids[..ids.len().min(2 * BATCH)]);
    for (number, batch) in ids.chunks(BATCH).enumerate() {
        let ahead = (number + 2) * BATCH;
        store.prefetch(&ids[ahead.min(ids.len())..(ahead + BATCH).min(ids.len())]);
        use_them(number * BATCH, fetch(store, batch));
    }
}

/// Puts the chunks into a KV cache, one behind the other.
fn load(backend: &Cpu, cache: &mut Cache, chunks: &[KvChunk], slot: usize) {
    let rope = Rope::plain(500_000.0, SHAPE.head_dim);
    let end = slot + chunks.len() * TOKENS;
    let table: Vec<u32> = (0..end.div_ceil(backend.block_tokens()) as u32).collect();
    let slots = (slot as u32..).step_by(TOKENS);
    let placement = |(chunk, slot)| Placement { chunk, table: &table, slot, position: slot };
    let placements: Vec<Placement<'_>> = chunks.iter().zip(slots).map(placement).collect();
    backend.load_kv(cache, &rope, &(0..SHAPE.layers).collect::<Vec<_>>(), &placements).expect("the chunks can be read");
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the directory can be read");
    let paths = entries.map(|entry| entry.expect("an entry can be read").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|kind| kind == "kv")).collect();
    paths.sort();
    paths
}

/// Reads files from end to end, and says how many bytes they have. The buffer is small, so that no time goes to taking
/// memory from the system, and begins with a cache line: to most other addresses behind a page's begin some processors copy at a
/// fifth of the rate.
fn read(files: &[PathBuf]) -> usize {
    const LINE: usize = 64;
    let mut space = vec![0; (1 << 20) + LINE];
    let start = space.as_ptr().align_offset(LINE).min(LINE);
    let buffer = &mut space[start..][..1 << 20];
    let mut all = 0;
    for file in files {
        let mut file = File::open(file).expect("a segment can be opened");
        loop {
            match file.read(buffer).expect("a segment can be read") {
                0 => break,
                bytes => all += bytes,
            }
        }
    }
    all
}

/// Takes a file out of the page cache. Nobody may have mapped it.
fn evict(path: &Path) {
    let file = File::open(path).expect("a segment can be opened");
    file.sync_all().expect("it can be synced");
    fadvise(&file, 0, None, Advice::DontNeed).expect("the system takes advice");
}

criterion_group!(benches, get, first_token, decode, put);
criterion_main!(benches);
