//! Where a data directory keeps its KV, and that who deletes from it deletes everywhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use amem_core::KvStore;
use amem_store::{DataDir, Error, SegmentOptions};
use common::{chunk, files_contain};
use futures_lite::future::block_on;

/// Puts a chunk into the KV of a data directory.
fn put(data: &Path, seed: u32) {
    let kv = amem_store::open_kv(data, SegmentOptions::default()).unwrap();
    block_on(kv.put(&[chunk(seed, 4)])).unwrap();
}

#[test]
fn kv_that_is_kept_in_another_directory_is_found_from_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (data, disk, other) = (dir.path().join("data"), dir.path().join("disk"), dir.path().join("other"));
    // As a command that only remembers leaves it: with a directory for KV and none in it.
    drop(amem_store::open(&data).unwrap());
    amem_store::keep_kv_in(&data, &disk).unwrap();
    put(&data, 1);
    let DataDir { kv, .. } = amem_store::open(&data).unwrap();
    let id = chunk(1, 4).id();
    assert!(block_on(kv.contains(&id)) && files_contain(&disk, &id.0));
    block_on(kv.delete(&[id])).unwrap();
    assert!(!files_contain(&disk, &id.0));
    amem_store::keep_kv_in(&data, &disk).expect("it is there already, and in use");
    let refused = amem_store::keep_kv_in(&data, &other).unwrap_err();
    assert!(matches!(refused, Error::KvElsewhere { .. }), "{refused}");
    drop(kv);
    amem_store::keep_kv_in(&data, data.join("kv")).expect("the link names the same place");
}

#[test]
fn a_directory_for_kv_that_a_file_system_has_files_of_its_own_in_is_one_without_kv() {
    let dir = tempfile::tempdir().unwrap();
    let (data, lost) = (dir.path().join("data"), dir.path().join("data").join("kv").join("lost+found"));
    // As a new disk is that is mounted there.
    fs::create_dir_all(&lost).unwrap();
    drop(amem_store::open(&data).unwrap());
    fs::remove_file(data.join("ledger.sqlite")).unwrap();
    put(&data, 1);
    assert!(matches!(amem_store::open(&data), Err(Error::Missing { .. })), "now there is KV");
    assert!(lost.exists());
}

#[test]
fn files_of_kv_have_a_limit_that_no_option_need_set() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    assert_eq!(amem_store::open(&data).unwrap().kv.max_bytes(), 16 << 30);
    let most = 64 << 10;
    let DataDir { kv, .. } = amem_store::open_with(&data, SegmentOptions::default().max_bytes(most)).unwrap();
    let size =
        || fs::read_dir(data.join("kv")).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
    // Of 128 bytes for each token, and 32 tokens, behind a page each: 320 KiB.
    for seed in 0..40 {
        block_on(kv.put(&[chunk(seed, 32)])).unwrap();
        assert!(size() <= most, "{} after {seed}", size());
    }
    assert!(block_on(kv.contains(&chunk(39, 32).id())), "the newest is there");
}

#[test]
fn kv_in_the_data_directory_is_neither_moved_nor_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (data, disk) = (dir.path().join("data"), dir.path().join("disk"));
    let in_use = amem_store::open(&data).unwrap();
    let refused = amem_store::keep_kv_in(&data, &disk).unwrap_err();
    assert!(matches!(refused, Error::ReadOnly { .. }), "a process writes there: {refused}");
    drop(in_use);
    amem_store::keep_kv_in(&data, data.join("kv")).unwrap();
    put(&data, 1);
    let refused = amem_store::keep_kv_in(&data, &disk).unwrap_err();
    assert!(matches!(refused, Error::KvElsewhere { .. }), "{refused}");
    fs::remove_dir_all(data.join("kv")).unwrap();
    fs::create_dir_all(data.join("kv/lost+found")).unwrap();
    let refused = amem_store::keep_kv_in(&data, &disk).unwrap_err();
    assert!(matches!(refused, Error::KvElsewhere { .. }), "something else is there, a disk perhaps: {refused}");
    fs::remove_dir_all(data.join("kv")).unwrap();
    amem_store::keep_kv_in(&data, &disk).unwrap();
    put(&data, 1);
    assert!(files_contain(&disk, &chunk(1, 4).id().0));
}

#[test]
fn a_disk_that_is_not_there_is_not_taken_for_one_without_kv() {
    let dir = tempfile::tempdir().unwrap();
    let (data, disk, away) = (dir.path().join("data"), dir.path().join("disk"), dir.path().join("away"));
    drop(amem_store::open(&data).unwrap());
    amem_store::keep_kv_in(&data, &disk).unwrap();
    put(&data, 1);
    fs::rename(&disk, &away).unwrap();
    for what in ["nothing is there", "an empty directory to mount it on"] {
        let refused = [
            amem_store::open(&data).err(),
            amem_store::open_damaged(&data).err(),
            amem_store::open_read_only(&data).err(),
            amem_store::keep_kv_in(&data, &disk).err(),
        ];
        for refused in refused {
            assert!(matches!(refused, Some(Error::NoKv { .. })), "{what}: {refused:?}");
        }
        // What needs no KV goes on.
        drop(amem_store::open_ledger(&data).unwrap());
        let _ = fs::create_dir(&disk);
    }
    fs::remove_dir(&disk).unwrap();
    fs::rename(&away, &disk).unwrap();
    assert!(block_on(amem_store::open(&data).unwrap().kv.contains(&chunk(1, 4).id())));
}

#[test]
fn a_data_directory_with_kv_on_a_shared_server_is_opened_by_who_names_that_server() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    amem_store::check_shared_kv(&data, None).unwrap();
    drop(amem_store::open(&data).unwrap());
    amem_store::note_shared_kv(&data, "redis cache:6379/0").unwrap();
    let file = || fs::metadata(data.join("shared-kv")).unwrap().ino();
    let first = file();
    amem_store::note_shared_kv(&data, "redis cache:6379/0").expect("it is the same");
    assert_eq!(file(), first, "a note that says so is not written anew");
    amem_store::check_shared_kv(&data, Some("redis cache:6379/0")).unwrap();
    let refused = [
        amem_store::open(&data).err(),
        amem_store::open_damaged(&data).err(),
        amem_store::check_shared_kv(&data, None).err(),
        amem_store::check_shared_kv(&data, Some("redis other:6379/0")).err(),
        amem_store::note_shared_kv(&data, "redis other:6379/0").err(),
    ];
    for refused in refused {
        assert!(
            matches!(&refused, Some(Error::SharedKv { place, .. }) if place == "redis cache:6379/0"),
            "{refused:?}"
        );
    }
    drop(amem_store::open_read_only(&data).expect("who only reads deletes nothing"));
    fs::remove_file(data.join("shared-kv")).unwrap();
    drop(amem_store::open(&data).unwrap());
}
