//! How fast it is here: `cargo test --release -p amem-store --test figures -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use amem_core::{KvStore, Ledger, Namespace, NewRecord, Timestamp};
use amem_store::{SegmentOptions, SegmentStore, SqliteLedger};
use common::chunk;
use futures_lite::future::block_on;

fn rate(what: &str, amount: f64, unit: &str, time: Duration) {
    println!("{what}: {:.0} {unit}/s ({time:.1?})", amount / time.as_secs_f64());
}

#[test]
#[ignore = "prints figures"]
fn figures_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = SegmentStore::open(dir.path().join("large")).unwrap();
    let chunks: Vec<_> = (0..128).map(|seed| chunk(seed, 32 << 10)).collect();
    let megabytes = chunks.iter().map(|chunk| chunk.size()).sum::<usize>() as f64 / 1e6;
    let begun = Instant::now();
    block_on(store.put(&chunks)).unwrap();
    rate("put, chunks of 4 MiB", megabytes, "MB", begun.elapsed());
    let begun = Instant::now();
    block_on(store.sync()).unwrap();
    println!("sync: {:.1?}", begun.elapsed());
    for round in ["first", "second"] {
        let begun = Instant::now();
        for chunk in &chunks {
            assert!(block_on(store.get(&chunk.id())).unwrap().is_some());
        }
        rate(&format!("get, warm, {round} time"), megabytes, "MB", begun.elapsed());
    }

    let small: Vec<_> = (0..100_000).map(|seed| chunk(seed, 8)).collect();
    let path = dir.path().join("small");
    let store = SegmentStore::open(&path).unwrap();
    let begun = Instant::now();
    small.chunks(1000).for_each(|part| block_on(store.put(part)).unwrap());
    rate("put, chunks of 1 KiB", small.len() as f64, "chunks", begun.elapsed());
    drop(store);
    let begun = Instant::now();
    let store = SegmentStore::open(&path).unwrap();
    println!("open with {} chunks, sealed: {:.1?}", block_on(store.stats()).chunks, begun.elapsed());
    let begun = Instant::now();
    small.iter().for_each(|chunk| assert!(block_on(store.get(&chunk.id())).unwrap().is_some()));
    rate("get, chunks of 1 KiB", small.len() as f64, "chunks", begun.elapsed());
    let begun = Instant::now();
    block_on(store.delete(&[small[0].id()])).unwrap();
    println!("delete one of them: {:.1?}", begun.elapsed());
    drop(store);
    // As after so many kills: without the seals' last pages.
    let segments = |kind: &str| {
        let files = std::fs::read_dir(&path).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|of| of == kind)).collect();
        files.sort();
        files
    };
    let unseal = |file: &std::path::Path| {
        let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(4096)).unwrap();
    };
    // Nothing is in the page cache, so every read is one of the disk.
    let evict = || {
        for file in segments("kv").into_iter().chain(segments("idx")) {
            let file = std::fs::File::open(file).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    };
    let open = |what: &str| {
        evict();
        let begun = Instant::now();
        let store = SegmentStore::open(&path).unwrap();
        let time = begun.elapsed();
        println!("open with {} chunks, {what}: {time:.1?}", block_on(store.stats()).chunks);
    };
    open("cold, sealed");
    unseal(segments("kv").last().unwrap());
    open("cold, one segment without a seal");
    segments("kv").iter().for_each(|file| unseal(file));
    segments("idx").iter().for_each(|file| std::fs::remove_file(file).unwrap());
    open("cold, no seals");
    open("cold, no seals, for the second time");
}

#[test]
#[ignore = "prints figures"]
fn figures_of_deleting() {
    // What this process has written so far.
    let written = || {
        let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        line.and_then(|bytes| bytes.parse::<f64>().ok()).unwrap_or_default()
    };
    let chunks: Vec<_> = (0..1000).map(|seed| chunk(seed, 800)).collect();
    for megabytes in [4, 8, 16, 32, 64] {
        let dir = tempfile::tempdir().unwrap();
        let options = SegmentOptions::default().segment_bytes(megabytes << 20);
        let store = SegmentStore::open_with(dir.path(), options).unwrap();
        let (before, begun) = (written(), Instant::now());
        block_on(store.put(&chunks)).unwrap();
        block_on(store.sync()).unwrap();
        let put = (written() - before) / 1e6;
        println!("segments of {megabytes} MiB: put {put:.0} MB: {:.1?}", begun.elapsed());
        let (before, begun) = (written(), Instant::now());
        for chunk in chunks.iter().step_by(10) {
            block_on(store.delete(&[chunk.id()])).unwrap();
        }
        let one_by_one = begun.elapsed();
        println!("  100 deleted one by one: {:.0} MB written, {one_by_one:.1?}", (written() - before) / 1e6);
        let (before, begun) = (written(), Instant::now());
        let ids: Vec<_> = chunks.iter().skip(1).step_by(10).map(|chunk| chunk.id()).collect();
        block_on(store.delete(&ids)).unwrap();
        println!("  100 deleted at once: {:.0} MB written, {:.1?}", (written() - before) / 1e6, begun.elapsed());
    }
}

#[test]
#[ignore = "prints figures"]
fn figures_of_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
    let namespace = Namespace::new("figures").unwrap();
    let text = |n: usize| NewRecord::from(format!("memory {n}: {}", "some words of it ".repeat(12)));
    let begun = Instant::now();
    let one_by_one = 2000;
    for n in 0..one_by_one {
        block_on(ledger.add(&namespace, &[text(n)], Timestamp::now())).unwrap();
    }
    rate("add, one by one", one_by_one as f64, "texts", begun.elapsed());
    for (batch, count) in [(100, 10_000), (10_000, 10_000)] {
        let texts: Vec<_> = (0..count).map(|n| text(100_000 * batch + n)).collect();
        let begun = Instant::now();
        texts.chunks(batch).for_each(|part| _ = block_on(ledger.add(&namespace, part, Timestamp::now())).unwrap());
        rate(&format!("add, {batch} at a time"), count as f64, "texts", begun.elapsed());
    }
    let records = block_on(ledger.list(&namespace, amem_core::Query::At(Timestamp::now()))).unwrap();
    let begun = Instant::now();
    for record in &records[..200] {
        block_on(ledger.forget(&namespace, record.id, Timestamp::now())).unwrap();
    }
    rate("forget", 200.0, "records", begun.elapsed());
    let begun = Instant::now();
    for record in &records[200..2200] {
        block_on(ledger.get(&namespace, record.id, Timestamp::now())).unwrap();
    }
    rate("get", 2000.0, "records", begun.elapsed());
    let begun = Instant::now();
    let listed = block_on(ledger.list(&namespace, amem_core::Query::All)).unwrap().len();
    rate("list", listed as f64, "records", begun.elapsed());
}

#[test]
#[ignore = "prints figures"]
fn figures_of_opening_a_ledger() {
    for count in [10_000, 15_000, 60_000, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        let namespace = Namespace::new("figures").unwrap();
        let ledger = SqliteLedger::open(&path).unwrap();
        let text = |n: usize| NewRecord::from(format!("memory {n}: {}", "some words of it ".repeat(12)));
        for part in (0..count).collect::<Vec<_>>().chunks(10_000) {
            let texts: Vec<_> = part.iter().map(|n| text(*n)).collect();
            block_on(ledger.add(&namespace, &texts, Timestamp::now())).unwrap();
        }
        block_on(ledger.wipe()).unwrap();
        let bytes = std::fs::metadata(&path).unwrap().len();
        let begun = Instant::now();
        drop(SqliteLedger::open(&path).unwrap());
        println!("open with {count} records, {:.1} MiB: {:.1?}", bytes as f64 / (1 << 20) as f64, begun.elapsed());
        let begun = Instant::now();
        assert!(block_on(ledger.verify()).unwrap().problems.is_empty());
        println!("verify: {:.1?}", begun.elapsed());
        let begun = Instant::now();
        block_on(ledger.backup(dir.path().join("backup"))).unwrap();
        println!("backup: {:.1?}", begun.elapsed());
        let begun = Instant::now();
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.query_row("PRAGMA quick_check", [], |_| Ok(())).unwrap();
        println!("quick_check alone: {:.1?}", begun.elapsed());
    }
}

#[cfg(feature = "encryption")]
#[test]
#[ignore = "prints figures"]
fn figures_of_encryption() {
    use std::sync::Arc;

    use amem_store::encryption::{EncryptedLedger, EncryptedStore, KeyDir, MasterKey};

    let dir = tempfile::tempdir().unwrap();
    let keys = Arc::new(KeyDir::open(dir.path().join("keys"), &MasterKey::new([1; 32])).unwrap());
    let chunks: Vec<_> = (0..64).map(|seed| chunk(seed, 8 << 10)).collect();
    let mebibytes = chunks.iter().map(|chunk| chunk.size()).sum::<usize>() as f64 / f64::from(1 << 20);
    let plain = SegmentStore::open(dir.path().join("plain")).unwrap();
    let sealed = EncryptedStore::new(SegmentStore::open(dir.path().join("sealed")).unwrap(), keys.clone());
    let stores: [(&str, &dyn KvStore); 2] = [("in clear", &plain), ("encrypted", &sealed)];
    for (what, store) in stores {
        let begun = Instant::now();
        block_on(store.put(&chunks)).unwrap();
        rate(&format!("put {mebibytes} MiB {what}"), mebibytes, "MiB", begun.elapsed());
        for round in ["first", "second"] {
            let begun = Instant::now();
            for chunk in &chunks {
                assert!(block_on(store.get(&chunk.id())).unwrap().unwrap().to_bytes().is_ok());
            }
            rate(&format!("get {what}, {round} time"), mebibytes, "MiB", begun.elapsed());
        }
    }
    let plain = SqliteLedger::open(dir.path().join("plain.sqlite")).unwrap();
    let sealed = SqliteLedger::open(dir.path().join("sealed.sqlite")).unwrap();
    let sealed = block_on(EncryptedLedger::open(sealed, keys)).unwrap();
    let ledgers: [(&str, &dyn Ledger); 2] = [("in clear", &plain), ("encrypted", &sealed)];
    let namespace = Namespace::new("ours").unwrap();
    let new: Vec<_> =
        (0..10_000).map(|n| NewRecord::new(format!("note {n} of many")).key(format!("key {n}"))).collect();
    for (what, ledger) in ledgers {
        let begun = Instant::now();
        new.chunks(500).for_each(|part| drop(block_on(ledger.add(&namespace, part, Timestamp::now())).unwrap()));
        rate(&format!("add {what}"), new.len() as f64, "records", begun.elapsed());
        let begun = Instant::now();
        let all = block_on(ledger.list(&namespace, amem_core::Query::All)).unwrap();
        rate(&format!("list {what}"), all.len() as f64, "records", begun.elapsed());
    }
}
