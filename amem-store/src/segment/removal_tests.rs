//! What happens while a file is removed: it is closed when that is done, so that its room is free, whoever was reading
//! from it; and who looks for what was in it meanwhile brings nothing back.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, PrefixId};

use super::read::Check;
use super::store::{Inner, SegmentOptions};
use crate::disk::{Disk, DiskFile, Part, ReadAt, SystemDisk};

/// The system's disk, which knows which files are open. What is to be read ahead waits until a test does it.
#[derive(Default)]
struct Watched {
    open: Arc<Mutex<BTreeMap<PathBuf, usize>>>,
    ahead: Mutex<Vec<Part>>,
    /// Done right after a file was removed.
    removed: Mutex<Option<Box<dyn Fn() + Send>>>,
}

struct WatchedFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    open: Arc<Mutex<BTreeMap<PathBuf, usize>>>,
}

impl Watched {
    fn watch(&self, path: &Path, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        *self.open.lock().unwrap().entry(path.to_owned()).or_default() += 1;
        Box::new(WatchedFile { file, path: path.to_owned(), open: self.open.clone() })
    }

    /// Files that are open and were removed.
    fn still_open(&self) -> Vec<PathBuf> {
        self.open.lock().unwrap().keys().filter(|path| !path.exists()).cloned().collect()
    }
}

impl Drop for WatchedFile {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap();
        let count = open.get_mut(&self.path).unwrap();
        *count -= 1;
        if *count == 0 {
            open.remove(&self.path);
        }
    }
}

impl Disk for Watched {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        SystemDisk.make_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        SystemDisk.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        SystemDisk.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        SystemDisk.lock(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.watch(path, SystemDisk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.watch(path, SystemDisk.open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)?;
        if let Some(removed) = &*self.removed.lock().unwrap() {
            removed();
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        SystemDisk.sync_dir(dir)
    }

    fn random(&self) -> u64 {
        SystemDisk.random()
    }

    fn in_background(&self, job: Box<dyn FnOnce() + Send>) {
        SystemDisk.in_background(job);
    }

    fn read_ahead(&self, parts: Vec<Part>) {
        self.ahead.lock().unwrap().extend(parts);
    }
}

impl ReadAt for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}

impl DiskFile for WatchedFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn read_ahead(&self, offset: u64, len: u64, stop: &dyn Fn() -> bool, space: &mut Vec<u8>) {
        self.file.read_ahead(offset, len, stop, space);
    }
}

/// A chunk of 32 KiB: one that stays in its file when it is handed out.
fn chunk(n: u8) -> KvChunk {
    chunk_of(n, 1024)
}

fn chunk_of(n: u8, tokens: usize) -> KvChunk {
    let (shape, encoding) = (KvShape { layers: 1, kv_heads: 1, head_dim: 8 }, Encoding::Plain(Dtype::F16));
    let data = HostKv::new(encoding, 1, vec![n; encoding.bytes(&shape, tokens)]);
    KvChunk::new(ChunkId([n; 32]), PrefixId([0; 32]), shape, vec![0; tokens].into(), Arc::new(data)).unwrap()
}

/// A store with four segments of one chunk each, and the disk that it is on.
fn store(dir: &tempfile::TempDir) -> (Inner, Arc<Watched>, Vec<ChunkId>) {
    let disk = Arc::new(Watched::default());
    let options = SegmentOptions::default().segment_bytes(32 << 10);
    let store = Inner::open(disk.clone(), dir.path(), options).unwrap();
    let chunks: Vec<_> = (0..4).map(chunk).collect();
    store.put(&chunks).unwrap();
    (store, disk, chunks.iter().map(KvChunk::id).collect())
}

#[test]
fn what_waits_to_be_read_ahead_keeps_no_removed_file_open() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk, ids) = store(&dir);
    store.prefetch(&ids);
    assert_eq!(disk.ahead.lock().unwrap().len(), 4);
    store.evict(&ids[..2]).unwrap();
    assert_eq!(disk.still_open(), Vec::<PathBuf>::new());
    let read = |part: &Part| part.file.read().is_some();
    let read: Vec<_> = disk.ahead.lock().unwrap().iter().map(read).collect();
    assert_eq!(read, [false, false, true, true], "what stays is read ahead");
}

#[test]
fn a_removal_waits_for_those_who_read_from_the_file() {
    type Remove = fn(&Inner, &[ChunkId]);
    let removals: [Remove; 3] = [
        |store, ids| store.evict(ids).unwrap(),
        |store, ids| store.delete(ids).unwrap(),
        |store, _| assert!(store.give_up(u64::MAX).unwrap() > 0),
    ];
    for remove in removals {
        let dir = tempfile::tempdir().unwrap();
        let (store, disk, ids) = store(&dir);
        store.prefetch(&ids[..1]);
        let part = disk.ahead.lock().unwrap().pop().unwrap();
        let (begun, is_begun) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let reading = part.file.read().unwrap();
            begun.send(()).unwrap();
            // Those who read ahead ask this between pieces.
            let until = Instant::now() + Duration::from_secs(60);
            while !part.file.is_removed() {
                assert!(Instant::now() < until, "it is told that it is waited for");
                std::thread::yield_now();
            }
            drop(reading);
        });
        is_begun.recv().unwrap();
        remove(&store, &ids[..1]);
        assert_eq!(disk.still_open(), Vec::<PathBuf>::new());
        reader.join().unwrap();
    }
}

#[test]
fn a_chunk_that_was_handed_out_is_read_on_from_a_removed_file_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk, ids) = store(&dir);
    let held = store.get_many(&ids[..1]).unwrap().remove(0).unwrap();
    store.delete(&ids[..1]).unwrap();
    assert_eq!(disk.still_open().len(), 1);
    assert_eq!(held.layer(0).unwrap().bytes(), chunk(0).layer(0).unwrap().bytes());
    drop(held);
    assert_eq!(disk.still_open(), Vec::<PathBuf>::new());
}

#[test]
fn a_read_during_a_deletion_brings_no_older_record_of_a_deleted_chunk_back() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(Watched::default()));
    let options = SegmentOptions::default().segment_bytes(200 << 10);
    let store = Arc::new(Inner::open(disk.clone(), dir.path(), options).unwrap());
    // More than half of the first segment still counts when the chunk's second record is written to the next one.
    let (twice, neighbour) = (chunk(7), chunk_of(8, 4096));
    store.put(&[twice.clone(), neighbour.clone()]).unwrap();
    let measured = twice.clone().with_sensitivity(vec![1.0; 1024].into()).unwrap();
    store.put(&[measured]).unwrap();
    let of = |id| store.index().chunks[&id];
    let location = of(neighbour.id());
    assert_ne!(location.segment, of(twice.id()).segment);
    assert_eq!(store.index().segments[&location.segment].entries.len(), 2, "both have a record in one segment");

    let reader = store.clone();
    let read = move || assert!(reader.read(&location, Check::Layers, &mut Vec::new()).unwrap().is_none());
    *disk.removed.lock().unwrap() = Some(Box::new(read));
    store.delete(&[twice.id(), neighbour.id()]).unwrap();
    *disk.removed.lock().unwrap() = None;

    assert!(store.get_many(&[twice.id()]).unwrap()[0].is_none());
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(32).any(|bytes| bytes == twice.id().0), "its bytes are in no file");
    }
}
