//! Files that earlier versions wrote stay readable.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use amem_core::{
    ChunkId, Dtype, Encoding, Fingerprint, KvChunk, KvStore, Ledger, Metadata, Namespace, NewRecord, Query, Timestamp,
    UsageQuery,
};
use amem_store::{SegmentStore, SqliteLedger};
use common::{assert_same, chunk, files_contain, measured};
use futures_lite::future::block_on;

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn copy_of(version: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixtures().join(version)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    dir
}

#[test]
fn a_store_of_version_1_is_read() {
    let dir = copy_of("v1");
    let store = SegmentStore::open(dir.path()).unwrap();
    assert_holds(&store, vec![chunk(1, 10), measured(&chunk(2, 3)), chunk(3, 1)]);
    // And written to: the records that stay are written anew, in this version.
    let first = block_on(store.list()).unwrap()[0].id;
    block_on(store.delete(&[first])).unwrap();
    block_on(store.put(&[chunk(5, 2)])).unwrap();
    drop(store);
    let store = SegmentStore::open(dir.path()).unwrap();
    assert_eq!(block_on(store.list()).unwrap().len(), 3);
    assert_same(&block_on(store.get(&chunk(5, 2).id())).unwrap().unwrap(), &chunk(5, 2));
}

/// Chunks were named by other formulas when the fixtures were written, so they are looked up by the names that they have.
fn assert_holds(store: &SegmentStore, mut left: Vec<KvChunk>) {
    assert_eq!(block_on(store.stats()).chunks, left.len());
    for held in block_on(store.list()).unwrap() {
        let found = block_on(store.get(&held.id)).unwrap().unwrap();
        let at = left.iter().position(|put| put.tokens() == found.tokens()).expect("it is one of those");
        let put = left.remove(at);
        assert_eq!((found.id(), held.tokens), (held.id, put.tokens().len()));
        assert_eq!((found.prefix(), found.shape()), (put.prefix(), put.shape()));
        assert_eq!((found.model(), found.encoding()), (put.model(), put.encoding()));
        assert_eq!(found.sensitivity(), put.sensitivity());
        if let Encoding::Plain(_) = put.encoding() {
            assert_eq!(found.to_bytes().unwrap(), put.to_bytes().unwrap());
        }
        // Numbers are put into fewer bits with other scales than then, where they are among the largest there are.
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= a.abs().max(b.abs()) / 100.0;
        assert!(numbers(&found).iter().zip(&numbers(&put)).all(close), "it reads as other numbers");
    }
    assert!(left.is_empty());
}

fn numbers(chunk: &KvChunk) -> Vec<f32> {
    let bytes = chunk.encoded_as(Encoding::Plain(Dtype::F32)).unwrap().to_bytes().unwrap();
    bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).filter(|number| !number.is_nan()).collect()
}

#[test]
fn a_store_of_version_2_is_read() {
    let dir = copy_of("v2");
    assert_holds(&SegmentStore::open(dir.path()).unwrap(), version_2().to_vec());
}

/// What the fixture of version 2 holds.
fn version_2() -> [KvChunk; 4] {
    let model = chunk(2, 3).with_model(Fingerprint([9; 32]));
    let small = chunk(4, 5).encoded_as(Encoding::Int8).unwrap();
    [chunk(1, 10), measured(&model), chunk(3, 1), small]
}

#[test]
fn a_store_of_version_3_is_read() {
    let dir = copy_of("v3");
    assert!(fs::read_dir(dir.path()).unwrap().any(|file| file.unwrap().path().extension().unwrap() == "idx"));
    assert_holds(&SegmentStore::open(dir.path()).unwrap(), version_3());
}

/// What the fixture of version 3 holds.
fn version_3() -> Vec<KvChunk> {
    let small = chunk(6, 70).encoded_as(Encoding::Int4).unwrap();
    version_2().into_iter().chain([chunk(5, 2), small]).collect()
}

/// The chunks that are to be deleted.
async fn pending(ledger: &SqliteLedger, now: Timestamp) -> Vec<ChunkId> {
    ledger.pending_deletions(now).await.unwrap().into_iter().map(|deletion| deletion.chunk).collect()
}

/// A ledger of version 1 is brought up to date, and what was forgotten then loses its key too.
#[test]
fn a_ledger_of_version_1_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    fs::copy(fixtures().join("ledger-v1.sqlite"), &path).unwrap();
    assert!(files_contain(dir.path(), b"private"), "version 1 kept the keys of forgotten records");
    let (ours, theirs) = (Namespace::new("ours").unwrap(), Namespace::new("theirs").unwrap());
    let at = |seconds: i64| Timestamp(1_000_000_000_000 + 1000 * seconds);
    block_on(async {
        let ledger = SqliteLedger::open(&path).unwrap();
        let texts = async |query| -> Vec<String> {
            ledger.list(&ours, query).await.unwrap().into_iter().map(|record| record.text).collect()
        };
        assert_eq!(texts(Query::All).await, ["green tea", "Vienna", "", "brief", "", "Lima"]);
        assert_eq!(texts(Query::At(at(200))).await, ["green tea", "Lima"]);
        assert_eq!(texts(Query::At(at(0))).await, ["tea", "Vienna", "brief"]);
        assert_eq!(ledger.namespaces().await.unwrap(), [ours.clone(), theirs.clone()]);
        assert_eq!(pending(&ledger, Timestamp::now()).await, [ChunkId([2; 32])], "that of the forgotten text");
        let all = ledger.list(&ours, Query::All).await.unwrap();
        assert!(all.iter().all(|record| record.metadata.is_empty()));
        assert_eq!(all[4].key, None);
        let metadata: Metadata = [("source", "mail")].into_iter().collect();
        let added = ledger.add(&ours, &[NewRecord::new("new").metadata(metadata.clone())], at(300)).await.unwrap();
        assert_eq!(ledger.get(&ours, added[0].record.id, at(300)).await.unwrap().metadata, metadata);
        ledger.forget(&ours, all[5].id, at(301)).await.unwrap();
        assert_eq!(ledger.pending_deletions(Timestamp::now()).await.unwrap().len(), 2, "links are as they were");
        assert_eq!(ledger.delete_namespace(&theirs).await.unwrap(), 1);
    });
    assert!(!files_contain(dir.path(), b"private"), "the key is in no file");
    SqliteLedger::open(&path).unwrap();
}

/// A ledger of version 2 is brought up to date: its rows get checksums.
#[test]
fn a_ledger_of_version_2_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    fs::copy(fixtures().join("ledger-v2.sqlite"), &path).unwrap();
    let refused = SqliteLedger::open_read_only(&path).unwrap_err();
    assert!(matches!(refused, amem_store::Error::OlderFormat { found: 2, supported: 5, .. }), "{refused}");
    let ours = Namespace::new("ours").unwrap();
    let at = |seconds: i64| Timestamp(1_000_000_000_000 + 1000 * seconds);
    let says = async |ledger: &SqliteLedger| {
        let all = ledger.list(&ours, Query::All).await.unwrap();
        let texts: Vec<&str> = all.iter().map(|record| record.text.as_str()).collect();
        assert_eq!(texts, ["green tea", "Vienna", "", "brief", "Lima"]);
        assert_eq!(all[0].metadata, [("source", "mail")].into_iter().collect());
        assert_eq!(all[0].key.as_deref(), Some("drink"));
        let history = ledger.history(&ours, all[0].id).await.unwrap();
        let history: Vec<_> = history.iter().map(|v| (v.text.as_str(), v.from, v.until)).collect();
        assert_eq!(history, [("tea", at(0), Some(at(10))), ("green tea", at(10), None)]);
        assert_eq!(ledger.list(&ours, Query::At(at(5))).await.unwrap().len(), 3);
        assert_eq!(pending(ledger, Timestamp::now()).await, [ChunkId([2; 32])]);
        assert_eq!(ledger.verify().await.unwrap().problems, [""; 0]);
    };
    block_on(async {
        // A backup that was made before the change is restored as it is after it.
        amem_store::restore(&path, dir.path().join("restored")).unwrap();
        says(&amem_store::open(dir.path().join("restored")).unwrap().ledger).await;
        let ledger = SqliteLedger::open(&path).unwrap();
        says(&ledger).await;
        // What version 2 does first in each of its changes: it must not write rows without checksums.
        let old = rusqlite::Connection::open(&path).unwrap();
        assert!(old.execute("UPDATE ledger SET revision = revision + 1", []).is_err());
        let lima = ledger.list(&ours, Query::All).await.unwrap()[4].id;
        ledger.update(&ours, lima, "Oslo", at(50)).await.unwrap();
        ledger.forget(&ours, lima, at(60)).await.unwrap();
        assert_eq!(ledger.delete_namespace(&Namespace::new("theirs").unwrap()).await.unwrap(), 1);
        assert_eq!(ledger.verify().await.unwrap().problems, [""; 0]);
    });
}

#[test]
fn a_ledger_of_version_3_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    fs::copy(fixtures().join("ledger-v3.sqlite"), &path).unwrap();
    let (ours, last) = (Namespace::new("ours").unwrap(), Timestamp(1_700_000_000_007));
    block_on(async {
        let ledger = SqliteLedger::open(&path).unwrap();
        let texts: Vec<String> =
            ledger.list(&ours, Query::At(last)).await.unwrap().into_iter().map(|record| record.text).collect();
        assert_eq!(texts, ["Lima", "tired", "green tea", "same", "other"]);
        // The chunks of a superseded and of a forgotten text. One that an active record links too stays.
        let pending = |now: i64| pending(&ledger, Timestamp(1_700_000_000_000 + now));
        assert_eq!(pending(7).await, [ChunkId([1; 32]), ChunkId([4; 32])]);
        assert_eq!(pending(10).await, [1, 3, 4].map(|n| ChunkId([n; 32])), "and of one that expired then");
        assert!(ledger.usage(&UsageQuery::all()).await.unwrap().is_empty());
        assert_eq!(ledger.verify().await.unwrap().problems, Vec::<String>::new());
    });
}

#[test]
fn a_ledger_of_version_4_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ours, now) = (dir.path().join("ledger.sqlite"), Namespace::new("ours").unwrap(), Timestamp::now());
    block_on(async {
        let ledger = SqliteLedger::open(&path).unwrap();
        let added = ledger.add(&ours, &["Lima".into(), "Vienna".into()], now).await.unwrap();
        let [gone, stays] = [0, 1].map(|at: usize| added[at].record.id);
        ledger.link(&ours, &[(gone, ChunkId([1; 32])), (stays, ChunkId([2; 32]))], now).await.unwrap();
        ledger.forget(&ours, gone, now).await.unwrap();
        drop(ledger);
        // As version 4 was: its deletions had no numbers.
        let old = rusqlite::Connection::open(&path).unwrap();
        old.execute_batch("ALTER TABLE pending_deletion DROP COLUMN number; PRAGMA user_version = 4").unwrap();
        drop(old);
        let refused = SqliteLedger::open_read_only(&path).unwrap_err();
        assert!(matches!(refused, amem_store::Error::OlderFormat { found: 4, supported: 5, .. }), "{refused}");
        let ledger = SqliteLedger::open(&path).unwrap();
        let first = ledger.pending_deletions(now).await.unwrap();
        assert_eq!(pending(&ledger, now).await, [ChunkId([1; 32])]);
        ledger.forget(&ours, stays, now).await.unwrap();
        ledger.confirm_deleted(&first, now).await.unwrap();
        assert_eq!(pending(&ledger, now).await, [ChunkId([2; 32])]);
    });
}

#[test]
fn a_damaged_ledger_of_version_2_is_not_given_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let mut bytes = fs::read(fixtures().join("ledger-v2.sqlite")).unwrap();
    let at = bytes.windows(9).position(|window| window == b"green tea").unwrap();
    bytes[at] = b'G';
    fs::write(&path, &bytes).unwrap();
    let refused = SqliteLedger::open(&path).unwrap_err();
    assert!(matches!(refused, amem_store::Error::Damaged { .. }), "{refused}");
    assert_eq!(amem_store::restore(&path, dir.path().join("restored")).unwrap_err().to_string(), refused.to_string());
}

#[test]
#[ignore = "writes the fixture of a new version"]
fn write_the_fixture() {
    let dir = fixtures().join("v3");
    assert!(!dir.exists(), "a fixture is never changed");
    let chunks = version_3();
    // One segment that was sealed.
    let store = SegmentStore::open(&dir).unwrap();
    block_on(store.put(&chunks[..2])).unwrap();
    drop(store);
    // One that was not, for its process was killed, and that the next process listed.
    let store = SegmentStore::open(&dir).unwrap();
    block_on(store.put(&chunks[2..])).unwrap();
    std::mem::forget(store);
    fs::remove_file(dir.join("LOCK")).unwrap();
    drop(SegmentStore::open(&dir).unwrap());
    fs::remove_file(dir.join("LOCK")).unwrap();
}
