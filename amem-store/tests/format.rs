//! Files that earlier versions wrote stay readable.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use amem_core::KvStore;
use amem_store::SegmentStore;
use common::{assert_same, chunk, measured};
use futures_lite::future::block_on;

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[test]
fn a_store_of_version_1_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixtures().join("v1")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let store = SegmentStore::open(dir.path()).unwrap();
    assert_eq!(block_on(store.stats()).chunks, 3);
    for put in [chunk(1, 10), measured(&chunk(2, 3)), chunk(3, 1)] {
        assert_same(&block_on(store.get(&put.id())).unwrap().unwrap(), &put);
    }
}

#[test]
#[ignore = "writes the fixture of a new version"]
fn write_the_fixture() {
    let dir = fixtures().join("v1");
    assert!(!dir.exists(), "a fixture is never changed");
    // One segment that was sealed.
    let store = SegmentStore::open(&dir).unwrap();
    block_on(store.put(&[chunk(1, 10), measured(&chunk(2, 3))])).unwrap();
    drop(store);
    // And one that was not, for its process was killed.
    let store = SegmentStore::open(&dir).unwrap();
    block_on(store.put(&[chunk(3, 1)])).unwrap();
    std::mem::forget(store);
    fs::remove_file(dir.join("LOCK")).unwrap();
}
