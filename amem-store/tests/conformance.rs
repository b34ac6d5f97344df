//! Both parts keep the promises of their traits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::cell::Cell;
use std::path::PathBuf;

use amem_store::{SegmentOptions, SegmentStore, SqliteLedger};

/// A new path below `dir` at each call.
fn paths(dir: &tempfile::TempDir) -> impl Fn() -> PathBuf {
    let made = Cell::new(0);
    move || {
        made.set(made.get() + 1);
        dir.path().join(made.get().to_string())
    }
}

#[test]
fn the_segment_store_is_a_kv_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = paths(&dir);
    amem_core::testing::kv_store(|| SegmentStore::open(path()).unwrap());
}

#[test]
fn it_is_one_with_tiny_segments_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = paths(&dir);
    let mut options = SegmentOptions::default();
    options.segment_bytes = 16 << 10;
    amem_core::testing::kv_store(|| SegmentStore::open_with(path(), options).unwrap());
}

#[test]
fn the_sqlite_ledger_is_a_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let path = paths(&dir);
    amem_core::testing::ledger(|| SqliteLedger::open(path()).unwrap());
}
