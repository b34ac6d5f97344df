//! Segments that the disk does not read: the others are opened and read all the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, PrefixId};

use rustix::io::Errno;

use super::format::PAGE;
use super::store::{Inner, SegmentOptions};
use crate::disk::Disk;
use crate::simulated_disk::{Call, SimulatedDisk};

const DIR: &str = "/data/kv";

fn chunk(at: u8) -> KvChunk {
    let (shape, encoding) = (KvShape { layers: 1, kv_heads: 1, head_dim: 4 }, Encoding::Plain(Dtype::F32));
    let data = HostKv::new(encoding, 1, vec![at; encoding.bytes(&shape, 1)]);
    KvChunk::new(ChunkId([at; 32]), PrefixId([0; 32]), shape, [u32::from(at)].into(), Arc::new(data)).unwrap()
}

fn open(disk: &SimulatedDisk, read_only: bool) -> crate::Result<Inner> {
    Inner::open(Arc::new(disk.clone()), Path::new(DIR), SegmentOptions::default().read_only(read_only))
}

/// Which of two chunks are found.
fn found(store: &Inner) -> [bool; 2] {
    let found = store.get_many(&[chunk(1).id(), chunk(2).id()]).unwrap();
    [found[0].is_some(), found[1].is_some()]
}

fn names(disk: &SimulatedDisk) -> Vec<PathBuf> {
    let names = disk.list(Path::new(DIR)).unwrap();
    let paths = names.into_iter().map(|name| Path::new(DIR).join(name));
    paths.filter(|path| path.extension().is_some_and(|kind| kind == "kv")).collect()
}

/// Two chunks, each in a segment of its own that is sealed.
fn disk() -> SimulatedDisk {
    let disk = SimulatedDisk::new(1);
    for at in [1, 2] {
        open(&disk, false).unwrap().put(&[chunk(at)]).unwrap();
    }
    assert_eq!(names(&disk).len(), 2);
    disk
}

#[test]
fn a_segment_that_cannot_be_read_is_a_miss_and_the_others_are_there() {
    for (read_only, first) in [(false, 0), (true, 0), (false, 1), (true, 1)] {
        let disk = disk();
        let path = &names(&disk)[first];
        disk.spoil(path, 0..u64::MAX);
        let store = open(&disk, read_only).expect("one bad file keeps nothing closed");
        let mut expected = [true; 2];
        expected[first] = false;
        assert_eq!(found(&store), expected);
        assert_eq!(found(&store), expected);
        assert_eq!(store.index().unreadable.len(), 1, "it is counted once");
        if !read_only {
            store.put(&[chunk(3)]).unwrap();
            store.sync().unwrap();
        }
        drop(store);
        assert!(names(&disk).contains(path), "opening does not remove what may be read later");
        disk.spoil(path, 0..0);
        assert_eq!(found(&open(&disk, true).unwrap()), [true; 2], "nothing that it holds was lost");
    }
}

#[test]
fn a_reader_finds_what_can_be_read_again() {
    let disk = disk();
    let path = &names(&disk)[0];
    disk.spoil(path, 0..u64::MAX);
    let store = open(&disk, true).unwrap();
    assert_eq!(found(&store), [false, true]);
    disk.spoil(path, 0..0);
    assert_eq!(found(&store), [true; 2]);
}

#[test]
fn a_bad_sector_under_the_first_page_or_the_seal_costs_no_chunk() {
    for sector in [0..PAGE, 3 * PAGE..4 * PAGE, 4 * PAGE..5 * PAGE] {
        let disk = disk();
        disk.spoil(&names(&disk)[0], sector.clone());
        assert_eq!(found(&open(&disk, true).unwrap()), [true; 2], "{sector:?}");
        assert_eq!(found(&open(&disk, false).unwrap()), [true; 2], "{sector:?}");
    }
}

#[test]
fn a_deletion_takes_out_what_cannot_be_read() {
    let disk = disk();
    let path = &names(&disk)[0];
    disk.spoil(path, 0..u64::MAX);
    let store = open(&disk, false).unwrap();
    store.delete(&[chunk(1).id()]).unwrap();
    assert!(!names(&disk).contains(path), "it may hold what was to be deleted");
    assert_eq!(found(&store), [false, true]);
}

/// A segment with chunks 1 and 2, and one with chunk 3.
fn disk_of_three() -> (SimulatedDisk, Vec<PathBuf>) {
    let disk = SimulatedDisk::new(1);
    open(&disk, false).unwrap().put(&[chunk(1), chunk(2)]).unwrap();
    open(&disk, false).unwrap().put(&[chunk(3)]).unwrap();
    let segments = names(&disk);
    assert_eq!(segments.len(), 2);
    (disk, segments)
}

#[test]
fn a_deletion_takes_out_a_segment_that_cannot_be_opened_and_counts_what_else_is_dropped() {
    let (disk, segments) = disk_of_three();
    let store = open(&disk, false).unwrap();
    disk.refuse(Some((&segments[0], Call::Read, Errno::IO)));
    store.delete(&[chunk(1).id(), chunk(3).id()]).unwrap();
    let left = names(&disk);
    assert!(segments.iter().all(|gone| !left.contains(gone)), "what was deleted is in neither file");
    assert_eq!((found(&store), store.damaged()), ([false; 2], 1));
}

#[test]
fn a_deletion_fails_and_loses_nothing_where_the_process_may_open_no_more_files() {
    let (disk, segments) = disk_of_three();
    let store = open(&disk, false).unwrap();
    disk.refuse(Some((&segments[0], Call::Read, Errno::MFILE)));
    store.delete(&[chunk(1).id()]).unwrap_err();
    disk.refuse(None);
    assert_eq!(found(&store), [false, true]);
    store.delete(&[chunk(1).id()]).unwrap();
    assert!(!names(&disk).contains(&segments[0]));
    assert_eq!((found(&store), store.damaged()), ([false, true], 0));
}

#[test]
fn a_segment_that_cannot_be_removed_keeps_no_other_and_the_deletion_is_not_confirmed() {
    let (disk, segments) = disk_of_three();
    let store = open(&disk, false).unwrap();
    disk.refuse(Some((&segments[0], Call::Change, Errno::IO)));
    store.delete(&[chunk(1).id(), chunk(3).id()]).unwrap_err();
    let left = names(&disk);
    assert_eq!(segments.iter().map(|segment| left.contains(segment)).collect::<Vec<_>>(), [true, false]);
    assert_eq!(found(&store), [false, true]);
    disk.refuse(None);
    store.delete(&[chunk(1).id(), chunk(3).id()]).unwrap();
    assert!(!names(&disk).contains(&segments[0]));
    assert_eq!(found(&open(&disk, true).unwrap()), [false, true]);
}

#[test]
fn an_eviction_works_though_a_worn_segment_cannot_be_opened() {
    let (disk, segments) = disk_of_three();
    let store = open(&disk, false).unwrap();
    disk.refuse(Some((&segments[0], Call::Read, Errno::IO)));
    store.evict(&[chunk(1).id()]).unwrap();
    disk.refuse(None);
    assert_eq!(found(&store), [false, true], "nothing is lost for the sake of room");
}

#[test]
fn a_reader_keeps_the_hits_that_it_has_when_it_cannot_look_for_more() {
    let disk = disk();
    let store = open(&disk, true).unwrap();
    // The directory cannot be listed: everything fails but what is open already and is looked up first.
    assert_eq!(found(&store), [true; 2]);
    disk.break_lists(true);
    let ids = [chunk(1).id(), ChunkId([9; 32])];
    let found = store.get_many(&ids).expect("what is there is given");
    assert!(found[0].is_some() && found[1].is_none());
    assert!(store.get_many(&ids[1..]).is_err(), "and where there is nothing, the error is told");
}

#[test]
fn opening_reads_nothing_of_the_records_in_sealed_segments() {
    const CHUNKS: u8 = 200;
    let disk = SimulatedDisk::new(1);
    let chunks: Vec<KvChunk> = (0..CHUNKS).map(chunk).collect();
    open(&disk, false).unwrap().put(&chunks).unwrap();
    // Behind the first page, each record has one for its header and one for its KV.
    let records = PAGE..PAGE * (1 + 2 * u64::from(CHUNKS));
    disk.spoil(&names(&disk)[0], records);
    for read_only in [false, true] {
        let store = open(&disk, read_only).unwrap();
        let index = store.index();
        assert_eq!((index.chunks.len(), index.unreadable.len()), (usize::from(CHUNKS), 0));
    }
}
