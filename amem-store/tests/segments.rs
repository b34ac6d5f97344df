//! A segment store against a map: whatever happens to its files, it never gives wrong bytes and always opens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "common/machine.rs"]
mod machine;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use amem_core::{ChunkId, Dtype, Encoding, Error, HostKv, KvChunk, KvShape, KvStore, PrefixId};
use amem_store::{SegmentOptions, SegmentStore};
use common::{assert_same, chunk, files_contain, measured};
use futures_lite::future::block_on;
use machine::{Disturbed, Machine, Subject, steps};
use proptest::prelude::*;

fn tiny() -> SegmentOptions {
    let mut options = SegmentOptions::default();
    options.segment_bytes = 64 << 10;
    options
}

fn open(dir: &Path) -> SegmentStore {
    SegmentStore::open_with(dir, tiny()).expect("a store opens whatever its files hold")
}

fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|kind| kind == "kv")).collect();
    files.sort();
    files
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[test]
fn a_record_of_a_chunk_without_numbers_is_a_miss() {
    let encoding = Encoding::Plain(Dtype::F32);
    for [layers, kv_heads, head_dim] in [[0, 1, 4], [1, 0, 4], [1, 1, 0]] {
        let dir = tempfile::tempdir().unwrap();
        let shape = KvShape { layers, kv_heads, head_dim };
        let data = Arc::new(HostKv::new(encoding, layers, Vec::new()));
        let empty = KvChunk::new(ChunkId([1; 32]), PrefixId([0; 32]), shape, [1].into(), data).unwrap();
        let sound = chunk(2, 3);
        block_on(open(dir.path()).put(&[empty.clone(), sound.clone()])).unwrap();
        let found = block_on(open(dir.path()).get_many(&[empty.id(), sound.id()])).unwrap();
        assert!(found[0].is_none() && found[1].is_some(), "{shape:?}");
    }
}

#[test]
fn what_was_put_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..50).map(|seed| chunk(seed, 1 + seed as usize * 7)).collect();
    for part in chunks.chunks(10) {
        block_on(open(dir.path()).put(part)).unwrap();
    }
    let store = open(dir.path());
    for chunk in &chunks {
        assert_same(&block_on(store.get(&chunk.id())).unwrap().unwrap(), chunk);
    }
    assert_eq!(block_on(store.stats()).chunks, 50);
}

#[test]
fn a_flipped_byte_is_a_miss_and_the_chunk_can_be_put_again() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [chunk(1, 500), chunk(2, 500)];
    block_on(open(dir.path()).put(&[a.clone(), b.clone()])).unwrap();
    // In the first record's payload: behind the first page and the record's header.
    flip(&segments(dir.path())[0], 4096 + 4096 + 100);
    let store = open(dir.path());
    assert!(block_on(store.get(&a.id())).unwrap().is_none());
    assert_same(&block_on(store.get(&b.id())).unwrap().unwrap(), &b);
    let stats = block_on(store.stats());
    assert_eq!((stats.damaged, stats.misses, stats.hits, stats.chunks), (1, 1, 1, 1));
    block_on(store.put(std::slice::from_ref(&a))).unwrap();
    assert_same(&block_on(store.get(&a.id())).unwrap().unwrap(), &a);
    drop(store);
    assert_same(&block_on(open(dir.path()).get(&a.id())).unwrap().unwrap(), &a);
}

/// Keeps the warnings of all tests here.
struct Warnings(Mutex<Vec<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Has the log kept from now on.
fn keep_warnings() {
    // Another test may have done so.
    let _ = log::set_logger(&WARNINGS);
    log::set_max_level(log::LevelFilter::Warn);
}

/// What was told in the log of what has this in its name.
fn warnings(of: &str) -> Vec<String> {
    WARNINGS.0.lock().unwrap().iter().filter(|line| line.contains(of)).cloned().collect()
}

#[test]
fn a_damaged_seal_and_files_of_others_are_told_in_the_log_once() {
    keep_warnings();
    let dir = tempfile::tempdir().unwrap();
    block_on(open(dir.path()).put(&[chunk(1, 1)])).unwrap();
    let path = &segments(dir.path())[0];
    flip(path, fs::metadata(path).unwrap().len() - 4096 + 20);
    ["one by others", "seg-1.kv"].into_iter().for_each(|other| fs::write(dir.path().join(other), "").unwrap());
    let store = open(dir.path());
    let reader = SegmentStore::open_with(dir.path(), tiny().read_only(true)).unwrap();
    for _ in 0..2 {
        for store in [&store, &reader] {
            assert!(block_on(store.get(&chunk(2, 1).id())).unwrap().is_none());
            assert!(block_on(store.get(&chunk(1, 1).id())).unwrap().is_some());
        }
    }
    let told = warnings(dir.path().to_str().unwrap());
    let count = |of: &str| told.iter().filter(|line| line.contains(of)).count();
    // By each of the two stores.
    assert_eq!((count("seal"), count("2 files"), told.len()), (2, 2, 4), "{told:?}");
}

#[test]
fn damage_is_told_in_the_log_with_its_file_and_place_and_not_each_time() {
    keep_warnings();
    let dir = tempfile::tempdir().unwrap();
    let put: Vec<_> = (0..5).map(|seed| chunk(seed, 1)).collect();
    block_on(open(dir.path()).put(&put)).unwrap();
    let path = &segments(dir.path())[0];
    // A record has a page of header and one of payload.
    (0..5).for_each(|at| flip(path, 4096 + at * 8192 + 4096));
    let store = open(dir.path());
    for chunk in &put {
        assert!(block_on(store.get(&chunk.id())).unwrap().is_none());
    }
    assert_eq!(block_on(store.stats()).damaged, 5);
    let name = path.file_name().unwrap().to_str().unwrap();
    let told = warnings(name);
    // The first, the second and the fourth.
    assert_eq!(told.len(), 3, "{told:?}");
    for (line, at) in told.iter().zip([0, 1, 3]) {
        assert!(line.contains(&format!("at byte {}", 4096 + at * 8192)), "{line}");
        assert!(line.contains("KV"), "{line}");
    }
}

#[test]
fn a_truncation_while_the_store_is_open_is_a_miss_and_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let [a, b] = [chunk(1, 150), chunk(2, 150)];
    block_on(store.put(&[a.clone(), b.clone()])).unwrap();
    assert!(block_on(store.get(&b.id())).unwrap().is_some(), "its file is open now");
    let file = OpenOptions::new().write(true).open(&segments(dir.path())[0]).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - 8192).unwrap();
    assert!(block_on(store.get(&b.id())).unwrap().is_none());
    assert_same(&block_on(store.get(&a.id())).unwrap().unwrap(), &a);
}

#[test]
fn a_sparse_segment_of_any_size_opens() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [chunk(1, 150), chunk(2, 150)];
    block_on(open(dir.path()).put(std::slice::from_ref(&a))).unwrap();
    let file = OpenOptions::new().write(true).open(&segments(dir.path())[0]).unwrap();
    file.set_len(64 << 30).unwrap();
    let store = open(dir.path());
    assert_same(&block_on(store.get(&a.id())).unwrap().unwrap(), &a);
    block_on(store.put(std::slice::from_ref(&b))).unwrap();
    block_on(store.delete(&[b.id()])).unwrap();
    let longest = segments(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).max();
    assert!(longest < Some(1 << 20), "a deletion removes what nobody knows the contents of");
    assert_same(&block_on(store.get(&a.id())).unwrap().unwrap(), &a);
}

#[test]
fn deleting_takes_the_bytes_out_of_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunks: Vec<_> = (0..40).map(|seed| chunk(seed, 100)).collect();
    block_on(store.put(&chunks)).unwrap();
    // A record that a newer one replaced has the chunk's tokens too.
    block_on(store.put(&[measured(&chunks[7])])).unwrap();
    let [gone, kept] = [&chunks[7], &chunks[8]];
    let tokens = |chunk: &KvChunk| chunk.tokens().iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<_>>();
    for needle in [&tokens(gone)[..], &gone.to_bytes().unwrap()[..64], &tokens(kept)[..]] {
        assert!(files_contain(dir.path(), needle));
    }
    block_on(store.delete(&[gone.id()])).unwrap();
    assert!(!files_contain(dir.path(), &tokens(gone)));
    assert!(!files_contain(dir.path(), &gone.to_bytes().unwrap()[..64]));
    for chunk in chunks.iter().filter(|chunk| chunk.id() != gone.id()) {
        assert_same(&block_on(store.get(&chunk.id())).unwrap().unwrap(), chunk);
    }
    drop(store);
    assert_eq!(block_on(open(dir.path()).stats()).chunks, 39);
}

#[test]
fn deleting_takes_out_what_damage_made_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = [chunk(1, 100), chunk(2, 100), chunk(3, 100)];
    block_on(open(dir.path()).put(&[a.clone(), b.clone(), c])).unwrap();
    let path = &segments(dir.path())[0];
    // The id in the first record's header, and the seal that names it too.
    flip(path, 4096 + 70);
    flip(path, fs::metadata(path).unwrap().len() - 4096);
    let store = open(dir.path());
    assert!(files_contain(dir.path(), &a.to_bytes().unwrap()[..64]));
    block_on(store.delete(&[a.id()])).unwrap();
    assert!(!files_contain(dir.path(), &a.to_bytes().unwrap()[..64]));
    assert_same(&block_on(store.get(&b.id())).unwrap().unwrap(), &b);
}

#[test]
fn space_of_replaced_records_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunks: Vec<_> = (0..100).map(|seed| chunk(seed, 100)).collect();
    block_on(store.put(&chunks)).unwrap();
    let once = block_on(store.stats()).bytes;
    block_on(store.put(&chunks.iter().map(measured).collect::<Vec<_>>())).unwrap();
    let stats = block_on(store.stats());
    assert_eq!(stats.chunks, 100);
    assert!(stats.bytes < once * 3 / 2, "{} bytes after {once}", stats.bytes);
    let on_disk: u64 = segments(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(on_disk < once * 7 / 4, "{on_disk} bytes on disk after {once}");
}

#[test]
fn the_segments_of_many_short_processes_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = SegmentOptions::default();
    options.segment_bytes = 1 << 20;
    let chunks: Vec<_> = (0..40).map(|seed| chunk(seed, 10)).collect();
    for chunk in &chunks {
        let store = SegmentStore::open_with(dir.path(), options).unwrap();
        block_on(store.put(std::slice::from_ref(chunk))).unwrap();
    }
    assert!(segments(dir.path()).len() <= 16, "{} segments", segments(dir.path()).len());
    let store = SegmentStore::open_with(dir.path(), options).unwrap();
    for chunk in &chunks {
        assert_same(&block_on(store.get(&chunk.id())).unwrap().unwrap(), chunk);
    }
}

#[test]
fn a_second_store_reads_what_the_first_writes_and_takes_over_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = [chunk(1, 10), chunk(2, 10), chunk(3, 10)];
    let (writer, reader) = (open(dir.path()), open(dir.path()));
    assert!(writer.is_writer() && !reader.is_writer());
    block_on(writer.put(&[a.clone(), b.clone()])).unwrap();
    assert_same(&block_on(reader.get(&a.id())).unwrap().unwrap(), &a);
    for refused in [block_on(reader.put(std::slice::from_ref(&c))), block_on(reader.delete(&[a.id()]))] {
        assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
    }
    block_on(writer.delete(&[a.id()])).unwrap();
    assert!(block_on(reader.get(&a.id())).unwrap().is_none(), "what the writer deleted is not read");
    assert_same(&block_on(reader.get(&b.id())).unwrap().unwrap(), &b);
    drop(writer);
    block_on(reader.put(std::slice::from_ref(&c))).expect("the lock is free");
    assert!(reader.is_writer());
    for chunk in [&b, &c] {
        assert_same(&block_on(reader.get(&chunk.id())).unwrap().unwrap(), chunk);
    }
}

#[test]
fn a_store_opened_read_only_does_not_write() {
    let dir = tempfile::tempdir().unwrap();
    let a = chunk(1, 10);
    block_on(open(dir.path()).put(std::slice::from_ref(&a))).unwrap();
    let mut options = tiny();
    options.read_only = true;
    let store = SegmentStore::open_with(dir.path(), options).unwrap();
    assert_same(&block_on(store.get(&a.id())).unwrap().unwrap(), &a);
    assert!(matches!(block_on(store.put(&[chunk(2, 1)])), Err(Error::ReadOnly { .. })));
    let nowhere = SegmentStore::open_with(dir.path().join("nowhere"), options);
    assert!(matches!(nowhere, Err(amem_store::Error::Io { .. })));
}

#[test]
fn the_directory_is_its_owners_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = SegmentStore::open(dir.path().join("a/kv")).unwrap();
    block_on(store.put(&[chunk(1, 1)])).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("a/kv")), 0o700);
    assert_eq!(mode(&segments(&dir.path().join("a/kv"))[0]), 0o600);
}

#[test]
fn a_segment_of_a_later_format_is_an_error_and_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    block_on(open(dir.path()).put(&[chunk(1, 10)])).unwrap();
    let path = &segments(dir.path())[0];
    let mut bytes = fs::read(path).unwrap();
    bytes[8] = 4;
    let checksum = crc32c::crc32c(&bytes[..32]);
    bytes[32..36].copy_from_slice(&checksum.to_le_bytes());
    fs::write(path, &bytes).unwrap();
    let refused = SegmentStore::open(dir.path());
    assert!(matches!(refused, Err(amem_store::Error::NewerFormat { found: 4, supported: 3, .. })));
    assert_eq!(&fs::read(path).unwrap(), &bytes);
}

#[test]
fn arbitrary_bytes_are_parsed_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let put = [chunk(1, 10), measured(&chunk(2, 3))];
    block_on(open(dir.path()).put(&put)).unwrap();
    let path = &segments(dir.path())[0];
    let (sound, name) = (fs::read(path).unwrap(), path.file_name().unwrap().to_str().unwrap());
    // How many chunks a store gives that are those that were put; it must give no others.
    let given = |bytes: &[u8]| {
        let found = amem_store::fuzzing::segments([(name.to_owned(), bytes.to_vec())].into()).unwrap();
        let chunks: Vec<KvChunk> = found.chunks.iter().filter_map(|(_, chunk)| chunk.clone()).collect();
        for chunk in &chunks {
            assert_same(chunk, put.iter().find(|put| put.id() == chunk.id()).unwrap());
        }
        chunks.len()
    };
    assert_eq!((given(&[]), given(&sound)), (0, 2));
    for cut in 0..sound.len() {
        given(&sound[..cut]);
    }
    // Each field of the first record's header, at its largest.
    for at in 4096..4096 + 128 {
        let mut bytes = sound[..sound.len() - 8192].to_vec();
        bytes[at..at + 4].fill(0xff);
        assert_eq!(given(&bytes), 1);
    }
}

/// A segment, and an offset in it, that `at` stands for.
fn somewhere(dir: &Path, at: u32) -> Option<(std::path::PathBuf, u64)> {
    let segments = segments(dir);
    let path = segments.get(at as usize % segments.len().max(1))?;
    let len = fs::metadata(path).unwrap().len();
    Some((path.clone(), u64::from(at / 7) % len.max(1))).filter(|_| len > 0)
}

/// Segments in a directory, which damage makes forgetful.
struct Segments {
    dir: tempfile::TempDir,
    store: Option<SegmentStore>,
    reader: SegmentStore,
}

impl Subject for Segments {
    type Store = SegmentStore;
    const EVICTED_COMES_BACK: bool = true;
    const DAMAGE_LINGERS: bool = true;

    fn store(&self) -> &SegmentStore {
        self.store.as_ref().unwrap()
    }

    fn other(&self) -> &SegmentStore {
        &self.reader
    }

    fn reopen(&mut self) {
        drop(self.store.take());
        self.store = Some(open(self.dir.path()));
    }

    fn disturb(&mut self, at: u32) -> Disturbed {
        let Some((path, offset)) = somewhere(self.dir.path(), at / 2) else { return Disturbed::Nothing };
        if at.is_multiple_of(2) {
            flip(&path, offset);
        } else {
            // While it is open a writer goes on behind the cut; both ways have to be survived.
            OpenOptions::new().write(true).open(&path).unwrap().set_len(offset).unwrap();
        }
        Disturbed::Held
    }

    fn is_left(&self, gone: &KvChunk) -> bool {
        files_contain(self.dir.path(), &gone.to_bytes().unwrap()[..40])
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_like_a_map_that_damage_makes_forgetful(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let store = Some(open(dir.path()));
        let reader = SegmentStore::open_with(dir.path(), tiny().read_only(true)).unwrap();
        Machine::new(Segments { dir, store, reader }).run(steps)?;
    }
}

#[test]
fn what_was_evicted_and_then_deleted_is_in_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..40).map(|seed| chunk(seed, 60)).collect();
    let store = open(dir.path());
    block_on(store.put(&chunks)).unwrap();
    let secret = chunks[7].id();
    block_on(store.evict(&[secret])).unwrap();
    assert!(block_on(store.get(&secret)).unwrap().is_none());
    block_on(store.delete(&[secret])).unwrap();
    assert!(!files_contain(dir.path(), &chunks[7].to_bytes().unwrap()));
    drop(store);
    assert!(block_on(open(dir.path()).get(&secret)).unwrap().is_none());
}

#[test]
fn the_room_of_evicted_chunks_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut most = 0;
    for seed in 0..400 {
        let next = chunk(seed, 60);
        block_on(store.put(std::slice::from_ref(&next))).unwrap();
        if let Some(old) = seed.checked_sub(20) {
            block_on(store.evict(&[chunk(old, 60).id()])).unwrap();
        }
        most = most.max(block_on(store.stats()).bytes);
    }
    let held: u64 = block_on(store.list()).unwrap().iter().map(|held| held.bytes).sum();
    assert!(most < 4 * held + 3 * (64 << 10), "{held} bytes held in at most {most}");
}

#[test]
fn what_was_purged_is_in_no_file_and_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..40).map(|seed| chunk(seed, 60)).collect();
    let store = open(dir.path());
    block_on(store.put(&chunks)).unwrap();
    let ids: Vec<ChunkId> = [3, 17, 39].map(|at: usize| chunks[at].id()).to_vec();
    block_on(store.evict(&ids)).unwrap();
    assert!(files_contain(dir.path(), &chunks[39].to_bytes().unwrap()), "an eviction alone leaves bytes");
    block_on(store.purge()).unwrap();
    drop(store);
    let store = open(dir.path());
    for chunk in &chunks {
        let held = block_on(store.get(&chunk.id())).unwrap();
        if ids.contains(&chunk.id()) {
            assert!(held.is_none() && !files_contain(dir.path(), &chunk.to_bytes().unwrap()));
        } else {
            assert_same(&held.unwrap(), chunk);
        }
    }
    block_on(store.purge()).expect("there may be nothing to purge");
}

/// Bytes of all files in a directory.
fn bytes_in(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[derive(Clone, Debug)]
enum Limited {
    Put(Vec<u32>),
    Delete(Vec<u32>),
    Evict(Vec<u32>),
    Purge,
    Sync,
    Reopen,
    /// Its process is killed: no seal is written.
    Kill,
}

fn limited() -> impl Strategy<Value = Vec<Limited>> {
    let seeds = || proptest::collection::vec(0..30_u32, 1..5);
    let step = prop_oneof![
        8 => seeds().prop_map(Limited::Put),
        2 => seeds().prop_map(Limited::Delete),
        2 => seeds().prop_map(Limited::Evict),
        1 => Just(Limited::Purge),
        1 => Just(Limited::Sync),
        1 => Just(Limited::Reopen),
        1 => Just(Limited::Kill),
    ];
    proptest::collection::vec(step, 1..50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_the_files_have_no_more_bytes_than_they_may(
        steps in limited(), max in 115_000..600_000_u64, segment in 10_000..200_000_u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = SegmentOptions::default().segment_bytes(segment).max_bytes(max);
        let open = || SegmentStore::open_with(dir.path(), options).unwrap();
        let of = |seed: u32| chunk(seed, 1 + seed as usize * 20);
        let mut store = open();
        for step in steps {
            match &step {
                Limited::Put(seeds) => {
                    for seed in seeds {
                        let new = of(*seed);
                        block_on(store.put(std::slice::from_ref(&new))).unwrap();
                        assert_same(&block_on(store.get(&new.id())).unwrap().expect("the last put is held"), &new);
                        prop_assert!(bytes_in(dir.path()) <= max, "{} bytes of {max}", bytes_in(dir.path()));
                    }
                }
                Limited::Delete(seeds) => {
                    block_on(store.delete(&seeds.iter().map(|seed| of(*seed).id()).collect::<Vec<_>>())).unwrap();
                    let there = seeds.iter().any(|seed| files_contain(dir.path(), &of(*seed).to_bytes().unwrap()));
                    prop_assert!(!there, "deleted bytes are in the files");
                }
                Limited::Evict(seeds) => {
                    block_on(store.evict(&seeds.iter().map(|seed| of(*seed).id()).collect::<Vec<_>>())).unwrap();
                }
                Limited::Purge => block_on(store.purge()).unwrap(),
                Limited::Sync => block_on(store.sync()).unwrap(),
                Limited::Reopen => {
                    drop(store);
                    store = open();
                }
                Limited::Kill => {
                    drop(store);
                    if let Some(last) = segments(dir.path()).last() {
                        let len = fs::metadata(last).unwrap().len();
                        OpenOptions::new().write(true).open(last).unwrap().set_len(len - 4096).unwrap();
                    }
                    store = open();
                }
            }
            prop_assert!(bytes_in(dir.path()) <= max, "{} bytes of {max} after {step:?}", bytes_in(dir.path()));
        }
        for seed in 0..30 {
            if let Some(found) = block_on(store.get(&of(seed).id())).unwrap() {
                assert_same(&found, &of(seed));
            }
        }
    }
}

#[test]
fn a_limit_is_kept_to_by_dropping_what_was_written_first() {
    let dir = tempfile::tempdir().unwrap();
    let options = SegmentOptions::default().max_bytes(1 << 20);
    let store = SegmentStore::open_with(dir.path(), options).unwrap();
    let chunks: Vec<_> = (0..100).map(|seed| chunk(seed, 300)).collect();
    for chunk in &chunks {
        block_on(store.put(std::slice::from_ref(chunk))).unwrap();
    }
    let held = block_on(store.contains_many(&chunks.iter().map(KvChunk::id).collect::<Vec<_>>()));
    let first = held.iter().position(|held| *held).unwrap();
    assert!(held[first..].iter().all(|held| *held), "the newest are held");
    // A record of 300 tokens has a page of header and ten of KV; some room is kept free, and a segment goes at once.
    let expected = (1 << 20) / (11 * 4096);
    assert!((expected / 2..=expected).contains(&(100 - first)), "{} are held", 100 - first);
    // A limit that is lower than before.
    drop(store);
    let store = SegmentStore::open_with(dir.path(), options.max_bytes(300_000)).unwrap();
    assert!(bytes_in(dir.path()) <= 300_000 && block_on(store.stats()).chunks > 0);
    let large = chunk(1000, 5000);
    let refused = block_on(store.put(std::slice::from_ref(&large)));
    assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
    assert!(block_on(store.stats()).chunks > 0, "nothing goes for what could never be held");
}

#[test]
fn a_chunk_whose_file_is_cut_while_it_is_held_is_an_error_and_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // Large enough for its KV to stay in the file.
    let large = chunk(1, 5000);
    block_on(store.put(std::slice::from_ref(&large))).unwrap();
    let held = block_on(store.get(&large.id())).unwrap().unwrap();
    assert_same(&held, &large);
    let file = OpenOptions::new().write(true).open(&segments(dir.path())[0]).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - 8192).unwrap();
    assert!(held.layer(0).is_ok(), "the first layer is there");
    assert!(matches!(held.layer(1), Err(Error::DamagedKv { .. })));
    assert!(held.layer(2).is_err(), "there are two");
    assert!(block_on(store.get(&large.id())).unwrap().is_none(), "it is a miss from now on");
}

#[test]
fn a_large_chunk_whose_bytes_were_changed_is_found_out_when_they_are_read_and_is_a_miss_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let [large, other] = [1, 2].map(|seed| chunk(seed, 5000));
    block_on(open(dir.path()).put(&[large.clone(), other.clone()])).unwrap();
    let store = open(dir.path());
    // In the first record's second layer: before it are a page of the segment, its header and its first layer.
    let header = (160 + 4 * 5000 + 2 * 4_usize).next_multiple_of(4096);
    flip(&segments(dir.path())[0], (4096 + header + large.size() / 2 + 1) as u64);
    let held = block_on(store.get(&large.id())).unwrap().expect("its header is sound");
    assert_eq!(held.layer(0).unwrap().bytes(), large.layer(0).unwrap().bytes());
    for _ in 0..2 {
        assert!(matches!(held.layer(1), Err(Error::DamagedKv { chunk, .. }) if chunk == large.id()));
        assert_eq!(block_on(store.stats()).damaged, 1, "it is counted once");
    }
    assert!(!block_on(store.contains(&large.id())));
    assert!(block_on(store.get(&large.id())).unwrap().is_none(), "it is a miss from now on");
    assert_same(&block_on(store.get(&other.id())).unwrap().unwrap(), &other);
    block_on(store.put(std::slice::from_ref(&large))).unwrap();
    assert_same(&block_on(store.get(&large.id())).unwrap().unwrap(), &large);
    assert!(matches!(held.layer(1), Err(Error::DamagedKv { .. })));
    assert_same(&block_on(store.get(&large.id())).unwrap().unwrap(), &large);
}

#[test]
fn what_a_killed_process_left_is_checked_as_a_whole_before_it_is_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let large = chunk(1, 5000);
    block_on(open(dir.path()).put(std::slice::from_ref(&large))).unwrap();
    let path = segments(dir.path())[0].clone();
    let len = fs::metadata(&path).unwrap().len();
    // Without its seal's last page, and with a byte changed of its second layer's end.
    OpenOptions::new().write(true).open(&path).unwrap().set_len(len - 4096).unwrap();
    let header = (160 + 4 * 5000 + 2 * 4_usize).next_multiple_of(4096);
    flip(&path, (4096 + header + large.size() - 1) as u64);
    let store = open(dir.path());
    assert!(block_on(store.get(&large.id())).unwrap().is_none());
    assert_eq!(block_on(store.stats()).damaged, 1);
}

#[test]
fn a_large_chunk_can_be_read_after_it_was_deleted_and_its_store_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let large = chunk(1, 5000);
    let held = {
        let store = open(dir.path());
        block_on(store.put(std::slice::from_ref(&large))).unwrap();
        let held = block_on(store.get(&large.id())).unwrap().unwrap();
        block_on(store.delete(&[large.id()])).unwrap();
        assert!(segments(dir.path()).is_empty());
        held
    };
    assert_same(&held, &large);
}

#[test]
fn more_segments_than_files_can_be_open_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = SegmentStore::open_with(dir.path(), SegmentOptions::default().segment_bytes(1)).unwrap();
    // Each has a segment of its own, and stays in it.
    let chunks: Vec<_> = (0..140).map(|seed| chunk(seed, 1100)).collect();
    block_on(store.put(&chunks)).unwrap();
    let found = block_on(store.get_many(&chunks.iter().map(KvChunk::id).collect::<Vec<_>>())).unwrap();
    for (found, put) in found.iter().zip(&chunks) {
        assert_same(found.as_ref().unwrap(), put);
    }
}

#[test]
fn what_a_killed_process_left_is_listed_beside_it_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..8).map(|seed| chunk(seed, 40)).collect();
    block_on(open(dir.path()).put(&chunks)).unwrap();
    // Without its seal's last page, as after a kill.
    let path = segments(dir.path())[0].clone();
    let len = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(len - 4096).unwrap();
    let index = path.with_extension("idx");
    let check = || {
        let store = open(dir.path());
        for chunk in &chunks {
            assert_same(&block_on(store.get(&chunk.id())).unwrap().unwrap(), chunk);
        }
    };
    check();
    assert!(index.exists());
    check();
    // One that is damaged, or says something else, is not believed.
    flip(&index, 40);
    check();
    assert!(index.exists(), "it is written anew");
    let other = dir.path().join("seg-00000000000000ff-0000000000000001.idx");
    fs::copy(&index, &other).unwrap();
    check();
    assert!(!other.exists(), "one without its segment goes");
    let store = open(dir.path());
    block_on(store.delete(&[chunks[0].id()])).unwrap();
    assert!(!path.exists() && !index.exists(), "it goes with its segment");
}
