//! What is encrypted can be read with its key, and with nothing else.
#![cfg(feature = "encryption")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "common/counts_each.rs"]
mod counts_each;
#[path = "common/machine.rs"]
mod machine;

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amem_core::{
    BoxError, Changes, ChunkId, Encoding, Error, Filter, Fingerprint, KvChunk, KvStore, Ledger, Listing, MetaValue,
    Metadata, Namespace, NewRecord, OwnerId, PrefixId, Query, RamLedger, RamStore, Revision, SavedIndex, Tier, Tiered,
    Timestamp, UsageEvent,
};
use amem_store::encryption::{
    EncryptedLedger, EncryptedStore, EncryptionError, Holder, Key, KeyDir, Keys, MasterKey, refuse_encrypted,
};
use amem_store::{SegmentOptions, SegmentStore, SqliteLedger};
use async_trait::async_trait;
use common::{assert_same, chunk, files_contain, measured};
use counts_each::CountsEach;
use futures_lite::future::{block_on, poll_once};
use machine::{Disturbed, Machine, Subject, steps};
use proptest::prelude::*;

const T0: Timestamp = Timestamp(1_000_000_000_000);
const MASTER: [u8; 32] = [7; 32];

fn ours() -> Namespace {
    Namespace::new("ours").unwrap()
}

fn theirs() -> Namespace {
    Namespace::new("theirs").unwrap()
}

fn key_dir(dir: &Path) -> KeyDir {
    KeyDir::open(dir, &MasterKey::new(MASTER)).unwrap()
}

/// A new path below `dir` at each call.
fn paths(dir: &tempfile::TempDir) -> impl Fn() -> PathBuf {
    let made = Cell::new(0);
    move || {
        made.set(made.get() + 1);
        dir.path().join(made.get().to_string())
    }
}

fn encrypted<L: Ledger>(inner: L, keys: &KeyDir) -> EncryptedLedger<L> {
    block_on(EncryptedLedger::open(inner, Arc::new(keys.clone()))).unwrap()
}

fn texts(ledger: &impl Ledger, namespace: &Namespace) -> Vec<String> {
    block_on(ledger.list(namespace, Query::All)).unwrap().into_iter().map(|record| record.text).collect()
}

fn key_files(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "key")).collect()
}

fn is_damage<T>(result: Result<T, Error>) -> bool {
    let Err(Error::Ledger(error)) = result else { return false };
    matches!(error.downcast_ref::<EncryptionError>(), Some(EncryptionError::Damaged { .. }))
}

/// `source` and all that SQLite keeps beside it.
fn copy_ledger(source: &Path, to: &Path) {
    for end in ["", "-wal", "-shm"] {
        let [from, to] = [source, to].map(|path| PathBuf::from(format!("{}{end}", path.display())));
        if from.exists() {
            fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn an_encrypted_ledger_is_a_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let path = paths(&dir);
    amem_core::testing::ledger(|| encrypted(RamLedger::new(), &key_dir(&path())));
}

#[test]
fn an_encrypted_ledger_on_disk_is_a_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let path = paths(&dir);
    amem_core::testing::ledger(|| encrypted(SqliteLedger::open(path()).unwrap(), &key_dir(&path())));
}

#[test]
fn whoever_knew_a_namespace_learns_that_it_was_deleted_where_changes_are_counted_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = encrypted(CountsEach::default(), &key_dir(dir.path()));
    let changes = |since| {
        let Changes { deleted, records, revision } = block_on(ledger.changes(&ours(), since, T0)).unwrap();
        let texts: Vec<String> = records.into_iter().map(|record| record.text).collect();
        (deleted, texts, revision)
    };
    let index = |revision| SavedIndex { revision, bytes: vec![1] };
    let mut seen = Revision(0);
    // The first deletion, and one that others came before.
    for round in 0..3 {
        let new = ["a", "b", "c"].map(|text| NewRecord::new(format!("{text}{round}")));
        block_on(ledger.add(&ours(), &new, T0)).unwrap();
        let (deleted, texts, known) = changes(seen);
        assert_eq!((deleted, texts), (false, new.iter().map(|new| new.text.clone()).collect()), "round {round}");
        assert!(known > seen, "every change has a later revision");
        assert_eq!(changes(known), (false, vec![], known), "what was told is not told again");
        block_on(ledger.save_index(&ours(), "words", &index(known))).unwrap();

        assert_eq!(block_on(ledger.delete_namespace(&ours())).unwrap(), 3);
        let (deleted, texts, after) = changes(known);
        assert_eq!((deleted, texts), (true, vec![]), "round {round}");
        assert!(after > known, "a deletion is a change");
        assert_eq!(changes(after), (false, vec![], after), "it is told once");

        // Filled again before anybody asks, and by more than there was, so that its revision is a later one.
        let refilled = ["d", "e", "f", "g"].map(NewRecord::new);
        block_on(ledger.add(&ours(), &refilled, T0)).unwrap();
        let all: Vec<String> = refilled.iter().map(|new| new.text.clone()).collect();
        let (deleted, texts, _) = changes(known);
        assert_eq!((deleted, texts), (true, all.clone()), "what came after the deletion stands");
        let (deleted, texts, refilled) = changes(after);
        assert_eq!((deleted, texts), (false, all), "none of it is missing for who knew of the deletion");
        let late = block_on(ledger.save_index(&ours(), "words", &index(known))).unwrap();
        assert!(!late, "an index from before the deletion is refused");
        assert!(block_on(ledger.save_index(&ours(), "words", &index(refilled))).unwrap());
        let saved = block_on(ledger.saved_index(&ours(), "words")).unwrap();
        assert_eq!(saved, Some(index(refilled)), "what was saved comes back");
        block_on(ledger.delete_namespace(&ours())).unwrap();
        seen = changes(refilled).2;
    }
}

#[test]
fn a_namespace_whose_deletion_was_not_finished_counts_as_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let keys = key_dir(dir.path());
    let ledger = encrypted(CountsEach::default(), &keys);
    block_on(async {
        ledger.add(&ours(), &["old".into(), "older".into()], T0).await.unwrap();
        let known = ledger.changes(&ours(), Revision(0), T0).await.unwrap().revision;
        // What a process leaves that ends right after it destroyed the key.
        let rows = ledger.inner().namespaces().await.unwrap().remove(0);
        let digits = keys.pseudonym(&ours()).map(|byte| format!("{byte:02x}")).concat();
        let note = Namespace::new(format!("d{digits}")).unwrap();
        ledger.inner().add(&note, &[rows.as_str().into()], T0).await.unwrap();
        assert!(!ledger.changes(&ours(), known, T0).await.unwrap().deleted, "its key is there still");
        keys.destroy(&ours()).await.unwrap();
        assert!(ledger.changes(&ours(), known, T0).await.unwrap().deleted);
        ledger.add(&ours(), &["new".into()], T0).await.unwrap();
        let changes = ledger.changes(&ours(), known, T0).await.unwrap();
        let texts: Vec<&str> = changes.records.iter().map(|record| record.text.as_str()).collect();
        assert_eq!((changes.deleted, texts), (true, vec!["new"]), "what stands under a new key is all there is");
    });
}

#[test]
fn an_encrypted_store_is_a_kv_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = paths(&dir);
    amem_core::testing::kv_store(|| EncryptedStore::new(RamStore::default(), Arc::new(key_dir(&path()))));
}

#[test]
fn an_encrypted_store_on_disk_is_a_kv_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = paths(&dir);
    amem_core::testing::kv_store(|| {
        EncryptedStore::new(SegmentStore::open(path()).unwrap(), Arc::new(key_dir(&path())))
    });
}

#[test]
fn tiers_that_write_kv_in_fewer_bits_keep_an_encrypted_chunk_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let keys: Arc<dyn Keys> = Arc::new(key_dir(&dir.path().join("keys")));
    let kept = measured(&chunk(1, 40)).with_model(Fingerprint([9; 32]));
    block_on(async {
        for encoding in [Encoding::Int8, Encoding::Int4] {
            let disk: Arc<dyn KvStore> =
                Arc::new(SegmentStore::open(dir.path().join(format!("{encoding:?}"))).unwrap());
            let open = async || {
                let stores: [Arc<dyn KvStore>; 2] = [Arc::new(RamStore::default()), Arc::clone(&disk)];
                let tiers = stores.map(|store| Tier::new(store, 1 << 20).encoding(encoding));
                EncryptedStore::new(Tiered::open(tiers.into()).await.unwrap(), Arc::clone(&keys))
            };
            let store = open().await;
            store.put(std::slice::from_ref(&kept)).await.unwrap();
            assert_same(&store.get(&kept.id()).await.unwrap().expect("it decrypts"), &kept);
            // From the disk, and then from the RAM that it was copied to.
            let store = open().await;
            for _ in 0..2 {
                assert_same(&store.get(&kept.id()).await.unwrap().expect("it decrypts"), &kept);
                store.sync().await.unwrap();
            }
        }
    });
}

#[test]
fn nothing_of_it_stands_in_the_files_of_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (data, keys) = (dir.path().join("data"), key_dir(&dir.path().join("keys")));
    let secret = keys.id_secret();
    block_on(async {
        let inner = amem_store::open(&data).unwrap();
        let kv = EncryptedStore::new(inner.kv, Arc::new(keys.clone()));
        let ledger = EncryptedLedger::open(inner.ledger, Arc::new(keys.clone())).await.unwrap();
        let namespace = Namespace::new("the namespace of Alice").unwrap();
        let metadata: Metadata = [("a name of metadata", "a value of metadata")].into_iter().collect();
        let new = NewRecord::new("Alice lives in Denver.").key("the key of a home").metadata(metadata);
        let id = ledger.add(&namespace, &[new], T0).await.unwrap()[0].record.id;
        ledger.update(&namespace, id, "Alice lives in Dublin.", T0).await.unwrap();
        ledger.record_usage(&[UsageEvent::new(namespace.clone(), T0, Default::default())]).await.unwrap();
        let revision = ledger.changes(&namespace, Revision(0), T0).await.unwrap().revision;
        let index = SavedIndex { revision, bytes: b"the words of an index".to_vec() };
        assert!(ledger.save_index(&namespace, "an index by name", &index).await.unwrap());
        let chunk = measured(&chunk(1, 40)).with_model(Fingerprint([9; 32]));
        kv.put(std::slice::from_ref(&chunk)).await.unwrap();
        ledger.link(&namespace, &[(id, chunk.id())], T0).await.unwrap();
        kv.sync().await.unwrap();

        let plain_id = ChunkId::of(&Fingerprint([9; 32]), &PrefixId::of(&[1, 2, 3]), "the namespace of Alice", &[1]);
        let mut secrets: Vec<Vec<u8>> = [
            "the namespace of Alice",
            "Alice lives in Denver.",
            "Alice lives in Dublin.",
            "the key of a home",
            "a name of metadata",
            "a value of metadata",
            "the words of an index",
            "an index by name",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec();
        secrets.push(chunk.tokens()[..4].iter().flat_map(|token| token.to_le_bytes()).collect());
        secrets.push(chunk.to_bytes().unwrap()[..32].to_vec());
        secrets.push(chunk.prefix().0.to_vec());
        secrets.push(vec![9; 32]);
        secrets.push(OwnerId::of("the namespace of Alice").0.to_vec());
        secrets.push(plain_id.0.to_vec());
        secrets.push(secret.to_vec());
        for (at, needle) in secrets.iter().enumerate() {
            for place in [&data, &data.join("kv"), &dir.path().join("keys")] {
                assert!(!files_contain(place, needle), "secret {at} stands in {}", place.display());
            }
        }
        // The search does find what stands there.
        assert!(files_contain(&data.join("kv"), &chunk.id().0));
        // And all of it can be read.
        assert_eq!(ledger.get(&namespace, id, T0).await.unwrap().text, "Alice lives in Dublin.");
        assert_eq!(ledger.saved_index(&namespace, "an index by name").await.unwrap(), Some(index));
        assert_same(&kv.get(&chunk.id()).await.unwrap().unwrap(), &chunk);
    });
}

#[test]
fn a_backup_of_a_deleted_namespace_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let (path, backup, keys) = (dir.path().join("ledger"), dir.path().join("backup"), dir.path().join("keys"));
    let dir_of_keys = key_dir(&keys);
    let ledger = encrypted(SqliteLedger::open(&path).unwrap(), &dir_of_keys);
    let store = EncryptedStore::new(RamStore::default(), Arc::new(dir_of_keys.clone()));
    let secret = dir_of_keys.id_secret();
    let ids = [
        ChunkId::of(&Fingerprint([1; 32]), &PrefixId([0; 32]), "ours", &[1]),
        ChunkId::keyed(&secret, &Fingerprint([1; 32]), &PrefixId([0; 32]), "ours", &[1]),
    ];
    let chunks = ids.map(|id| {
        let chunk = chunk(1, 3);
        KvChunk::new(id, chunk.prefix(), *chunk.shape(), chunk.tokens().clone(), chunk.data().clone()).unwrap()
    });
    block_on(async {
        ledger.add(&ours(), &["a secret".into()], T0).await.unwrap();
        ledger.add(&theirs(), &["not ours".into()], T0).await.unwrap();
        store.put(&chunks).await.unwrap();
        assert!(store.get_many(&ids).await.unwrap().iter().all(Option::is_some));
    });
    // For the records of both, and for the chunks of the two ways to name their owner.
    let before = key_files(&keys);
    assert_eq!(before.len(), 4);
    copy_ledger(&path, &backup);
    let copied = encrypted(SqliteLedger::open(&backup).unwrap(), &dir_of_keys);
    assert_eq!(texts(&copied, &ours()), ["a secret"], "the backup is one");
    drop(copied);

    assert_eq!(block_on(ledger.delete_namespace(&ours())).unwrap(), 1);
    let after = key_files(&keys);
    assert_eq!(after.len(), 1, "the key of the other namespace is left");
    assert!(fs::read_dir(&keys).unwrap().count() == 3, "and nothing else but the root and the lock");
    let restored = encrypted(SqliteLedger::open(&backup).unwrap(), &dir_of_keys);
    assert!(texts(&restored, &ours()).is_empty());
    assert_eq!(texts(&restored, &theirs()), ["not ours"]);
    assert!(block_on(store.get_many(&ids)).unwrap().iter().all(Option::is_none), "its KV cannot be read either");
    assert_eq!(block_on(store.stats()).damaged, 2);
    // A namespace of the same name has another key.
    block_on(restored.add(&ours(), &["new".into()], T0)).unwrap();
    assert_eq!(texts(&restored, &ours()), ["new"]);
    block_on(store.put(&chunks)).unwrap();
    assert!(block_on(store.get_many(&ids)).unwrap().iter().all(Option::is_some), "what did not decrypt is replaced");
}

#[test]
fn a_deletion_that_was_interrupted_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let keys = key_dir(&dir.path().join("keys"));
    block_on(async {
        let path = dir.path().join("ledger");
        let sqlite = SqliteLedger::open(&path).unwrap();
        let ledger = encrypted(sqlite.clone(), &keys);
        // What is left when a process ends right after it destroyed the key.
        let interrupted = async |namespace: &Namespace| {
            let others = sqlite.namespaces().await.unwrap();
            ledger.add(namespace, &["text".into()], T0).await.unwrap();
            let rows = sqlite.namespaces().await.unwrap().into_iter().find(|name| !others.contains(name)).unwrap();
            let revision = ledger.changes(namespace, Revision(0), T0).await.unwrap().revision;
            let digits = keys.pseudonym(namespace).map(|byte| format!("{byte:02x}")).concat();
            let note = Namespace::new(format!("d{digits}")).unwrap();
            sqlite.add(&note, &[rows.as_str().into()], T0).await.unwrap();
            keys.destroy(namespace).await.unwrap();
            revision
        };
        let kept = Namespace::new("kept").unwrap();
        ledger.add(&kept, &["kept".into()], T0).await.unwrap();
        let before = interrupted(&ours()).await;
        assert!(texts(&ledger, &ours()).is_empty(), "without its key it is empty");
        let reader = encrypted(SqliteLedger::open_read_only(&path).unwrap(), &keys);
        assert_eq!(texts(&reader, &kept), ["kept"], "who cannot finish a deletion reads what is left");
        assert_eq!(ledger.namespaces().await.unwrap(), std::slice::from_ref(&kept));
        assert_eq!(sqlite.namespaces().await.unwrap().len(), 3);
        let opened = encrypted(sqlite.clone(), &keys);
        assert_eq!(sqlite.namespaces().await.unwrap().len(), 1, "its rows are removed when the ledger is opened");
        assert!(opened.changes(&ours(), before, T0).await.unwrap().deleted, "and whoever knew it is told");
        interrupted(&theirs()).await;
        assert_eq!(ledger.delete_namespace(&theirs()).await.unwrap(), 1, "or when it is deleted again");
        assert_eq!(sqlite.namespaces().await.unwrap().len(), 1);
        // A deletion that was noted, and whose key is still there, was not done.
        let rows = sqlite.namespaces().await.unwrap().remove(0);
        let note = Namespace::new(format!("d{}", "0".repeat(64))).unwrap();
        sqlite.add(&note, &[rows.as_str().into()], T0).await.unwrap();
        assert_eq!(texts(&encrypted(sqlite.clone(), &keys), &kept), ["kept"]);
        assert_eq!(sqlite.namespaces().await.unwrap(), [rows]);
    });
}

#[test]
fn what_was_changed_or_moved_is_damage_and_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let keys = key_dir(&dir.path().join("keys"));
    let path = dir.path().join("ledger");
    let metadata: Metadata = [("source", "mail")].into_iter().collect();
    let new = NewRecord::new("Vienna").key("home").metadata(metadata);
    // Names of the two namespaces in the ledger below.
    let sqlite = SqliteLedger::open(&path).unwrap();
    let ledger = encrypted(sqlite.clone(), &keys);
    let mine = block_on(ledger.add(&ours(), std::slice::from_ref(&new), T0)).unwrap().remove(0).record;
    assert_eq!((mine.text.as_str(), mine.key.as_deref()), ("Vienna", Some("home")));
    let [inner] = block_on(sqlite.namespaces()).unwrap().try_into().unwrap();
    let sealed = block_on(sqlite.get(&inner, mine.id, T0)).unwrap();
    block_on(ledger.add(&theirs(), std::slice::from_ref(&new), T0)).unwrap();
    let other = block_on(sqlite.namespaces()).unwrap().into_iter().find(|name| *name != inner).unwrap();
    let foreign = block_on(sqlite.list(&other, Query::All)).unwrap().remove(0);
    assert_ne!(foreign.text, sealed.text, "equal texts of two namespaces are not seen to be equal");
    assert_ne!(foreign.key, sealed.key);

    let details = |record: &amem_core::Record| record.metadata.0[Metadata::SEALED].clone();
    let MetaValue::Text(blob) = details(&sealed) else { panic!("{sealed:?}") };
    let flipped = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[3] = if bytes[3] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    };
    let with = |text: &str, key: Option<String>, metadata: Option<MetaValue>| {
        let mut new = NewRecord::new(text);
        new.key = key;
        new.metadata = metadata.into_iter().map(|value| (Metadata::SEALED, value)).collect();
        new
    };
    let key = sealed.key.clone();
    let cases = [
        with("Vienna", None, None),
        with(&flipped(&sealed.text), key.clone(), Some(details(&sealed))),
        with(&foreign.text, key.clone(), Some(details(&sealed))),
        with(&blob, key.clone(), Some(details(&sealed))),
        with(&sealed.text, key.clone(), Some(flipped(&blob).into())),
        with(&sealed.text, key.clone(), Some(details(&foreign))),
        with(&sealed.text, key.clone(), Some(sealed.text.as_str().into())),
        with(&sealed.text, key.clone(), Some(true.into())),
        with(&sealed.text, key, None),
        with(&sealed.text, None, Some(details(&sealed))),
        with(&sealed.text, foreign.key.clone(), Some(details(&sealed))),
    ];
    for (at, case) in cases.into_iter().enumerate() {
        // Straight into the ledger below, as somebody would who can write to its file.
        let ram = RamLedger::new();
        let ledger = encrypted(ram, &keys);
        let id = block_on(ledger.inner().add(&inner, &[case], T0)).unwrap().remove(0).record.id;
        assert!(is_damage(block_on(ledger.get(&ours(), id, T0))), "case {at}");
        assert!(is_damage(block_on(ledger.list(&ours(), Query::All))), "case {at}");
        assert!(is_damage(block_on(ledger.changes(&ours(), Revision(0), T0))), "case {at}");
        assert_eq!(block_on(ledger.forget(&ours(), id, T0)).unwrap().text, "", "it can be forgotten all the same");
    }
}

#[test]
fn a_changed_chunk_is_a_miss_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let keys: Arc<dyn Keys> = Arc::new(key_dir(&dir.path().join("keys")));
    let ours = chunk(1, 5);
    block_on(async {
        let store = EncryptedStore::new(RamStore::default(), Arc::clone(&keys));
        store.put(std::slice::from_ref(&ours)).await.unwrap();
        let sealed = store.inner().get(&ours.id()).await.unwrap().unwrap();
        let bytes = sealed.to_bytes().unwrap();
        let other = chunk(2, 5);
        store.put(std::slice::from_ref(&other)).await.unwrap();
        let swapped = store.inner().get(&other.id()).await.unwrap().unwrap().to_bytes().unwrap();
        assert_eq!(swapped.len(), bytes.len());
        let flips = [0, bytes.len() / 2, bytes.len() - 48, bytes.len() - 40, bytes.len() - 24, bytes.len() - 1];
        let changed = flips.map(|at| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            bytes
        });
        for bytes in changed.into_iter().chain([swapped, vec![0; bytes.len()]]) {
            let inner = RamStore::default();
            let encoding = sealed.encoding();
            let data = Arc::new(amem_core::HostKv::new(encoding, 1, bytes));
            inner.put(&[sealed.clone().with_data(data).unwrap()]).await.unwrap();
            let store = EncryptedStore::new(inner, Arc::clone(&keys));
            assert!(store.get(&ours.id()).await.unwrap().is_none());
            let stats = store.stats().await;
            assert_eq!((stats.hits, stats.misses, stats.damaged), (0, 1, 1));
            assert!(!store.contains(&ours.id()).await);
            store.put(std::slice::from_ref(&ours)).await.unwrap();
            assert_same(&store.get(&ours.id()).await.unwrap().unwrap(), &ours);
        }
        // One that nobody encrypted is none either.
        let plain = RamStore::default();
        plain.put(std::slice::from_ref(&ours)).await.unwrap();
        assert!(EncryptedStore::new(plain, keys).get(&ours.id()).await.unwrap().is_none());
    });
}

/// One key for everybody, which is at hand.
struct OneKey;

impl OneKey {
    fn key() -> Key {
        Key::new([1; 32])
    }
}

#[async_trait]
impl Keys for OneKey {
    async fn get(&self, _: &Holder) -> Result<Option<Key>, BoxError> {
        Ok(Some(Self::key()))
    }

    async fn get_or_create(&self, _: &Holder) -> Result<Key, BoxError> {
        Ok(Self::key())
    }

    async fn destroy(&self, _: &Namespace) -> Result<(), BoxError> {
        Ok(())
    }

    async fn namespaces(&self) -> Result<Vec<(Namespace, Key)>, BoxError> {
        Ok(vec![(ours(), Self::key())])
    }

    fn pseudonym(&self, _: &Namespace) -> [u8; 32] {
        [2; 32]
    }

    fn id_secret(&self) -> [u8; 32] {
        [3; 32]
    }
}

#[test]
fn who_asks_for_much_does_not_decrypt_it_on_its_own_thread() {
    let ledger = block_on(EncryptedLedger::open(RamLedger::new(), Arc::new(OneKey))).unwrap();
    let long = |n: usize| NewRecord::new(format!("{n} {}", "long ".repeat(1 << 18)));
    block_on(ledger.add(&ours(), &[long(1), long(2)], T0)).unwrap();
    // Neither the keys nor the ledger below wait for anything.
    let name = ours();
    let mut changes = ledger.changes(&name, Revision(0), T0);
    assert!(block_on(poll_once(&mut changes)).is_none());
    let changes = block_on(changes).unwrap();
    assert!(changes.records.len() == 2 && changes.records[1].text == long(2).text.trim());
    let index = SavedIndex { revision: changes.revision, bytes: vec![7; 1 << 21] };
    let mut saving = ledger.save_index(&name, "words", &index);
    assert!(block_on(poll_once(&mut saving)).is_none());
    assert!(!block_on(saving).unwrap(), "a ledger in RAM keeps no index");
}

#[test]
fn what_a_ledger_takes_an_encrypted_one_takes() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = encrypted(SqliteLedger::open(dir.path().join("ledger")).unwrap(), &key_dir(&dir.path().join("keys")));
    // As large as can be, and of what JSON writes longest.
    let name = |n: usize| format!("{n:0>128}").replace('0', "\u{1}");
    let metadata: Metadata =
        (0..Metadata::MAX_ENTRIES).map(|n| (name(n), "\u{1}".repeat(Metadata::MAX_TEXT_BYTES))).collect();
    let key = "\u{1}".repeat(NewRecord::MAX_KEY_BYTES);
    let new = NewRecord::new("text").key(key.clone()).metadata(metadata.clone());
    let record = block_on(ledger.add(&ours(), std::slice::from_ref(&new), T0)).unwrap().remove(0).record;
    assert!(record.key == Some(key) && record.metadata == metadata);
    let again = block_on(ledger.add(&ours(), &[new], T0)).unwrap().remove(0);
    assert_eq!(again.outcome, amem_core::Outcome::Duplicate);
    let long = NewRecord::new("text").key("k".repeat(NewRecord::MAX_KEY_BYTES + 1));
    let reserved = NewRecord::new("text").metadata([(Metadata::SEALED, "x")].into_iter().collect());
    for refused in [long, reserved] {
        assert!(matches!(block_on(ledger.add(&ours(), &[refused], T0)), Err(Error::BadValue { .. })));
    }
    let found = Listing::new(Query::All).filter(Filter::Contains(amem_core::Field::Key, "\u{1}".into()));
    assert_eq!(block_on(ledger.page(&ours(), &found)).unwrap().records.len(), 1);
}

#[test]
fn a_ledger_opens_with_its_own_keys_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let sqlite = SqliteLedger::open(&path).unwrap();
    let (keys, others) = (key_dir(&dir.path().join("keys")), key_dir(&dir.path().join("others")));
    block_on(encrypted(sqlite.clone(), &keys).add(&ours(), &["text".into()], T0)).unwrap();
    let opened = block_on(EncryptedLedger::open(sqlite.clone(), Arc::new(others.clone())));
    let Err(Error::Ledger(error)) = opened.map(drop) else { panic!("it opens with other keys") };
    assert!(matches!(error.downcast_ref(), Some(EncryptionError::OtherKeys)), "{error}");
    assert_eq!(texts(&encrypted(sqlite.clone(), &keys), &ours()), ["text"], "and nothing is lost by trying");
    let Err(Error::Ledger(error)) = block_on(refuse_encrypted(&sqlite)) else { panic!("it opens without keys") };
    assert!(matches!(error.downcast_ref(), Some(EncryptionError::Encrypted)), "{error}");
    let plain = RamLedger::new();
    block_on(refuse_encrypted(&plain)).unwrap();
    block_on(plain.add(&ours(), &["text".into()], T0)).unwrap();
    // Whoever asks a server may call a namespace what it wants.
    block_on(plain.add(&Namespace::new(format!("n{}", "0".repeat(64))).unwrap(), &["text".into()], T0)).unwrap();
    block_on(refuse_encrypted(&plain)).unwrap();
    let Err(Error::Ledger(error)) = block_on(EncryptedLedger::open(plain, Arc::new(others))).map(drop) else {
        panic!("it opens a ledger that is not encrypted")
    };
    assert!(matches!(error.downcast_ref(), Some(EncryptionError::NotEncrypted)), "{error}");
}

fn holder(name: &str) -> Holder {
    Holder::Namespace(Namespace::new(name).unwrap())
}

fn bytes(key: Option<Key>) -> Option<[u8; 32]> {
    key.map(|key| *key.bytes())
}

#[test]
fn keys_outlive_the_process_and_end_when_they_are_destroyed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    block_on(async {
        let keys = key_dir(&path);
        assert_eq!(bytes(keys.get(&holder("a")).await.unwrap()), None);
        let [a, b] = [keys.get_or_create(&holder("a")).await.unwrap(), keys.get_or_create(&holder("b")).await.unwrap()];
        let owner = Holder::Owner(OwnerId([5; 8]));
        let c = keys.get_or_create(&owner).await.unwrap();
        assert!(a.bytes() != b.bytes() && a.bytes() != c.bytes() && b.bytes() != c.bytes());
        assert!(!format!("{a:?} {keys:?} {:?}", MasterKey::new(MASTER)).contains("7, 7"));
        let again = key_dir(&path);
        for (holder, key) in [(holder("a"), &a), (holder("b"), &b), (owner.clone(), &c)] {
            assert_eq!(bytes(again.get(&holder).await.unwrap()), Some(*key.bytes()));
        }
        assert_eq!((again.id_secret(), again.pseudonym(&ours())), (keys.id_secret(), keys.pseudonym(&ours())));
        assert_eq!(again.namespaces().await.unwrap().len(), 2);
        for file in fs::read_dir(&path).unwrap().map(|file| file.unwrap()) {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{file:?}");
        }
        keys.destroy(&Namespace::new("a").unwrap()).await.unwrap();
        keys.destroy(&Namespace::new("nobody").unwrap()).await.unwrap();
        assert_eq!(bytes(again.get(&holder("a")).await.unwrap()), None, "for every handle");
        assert_eq!(again.namespaces().await.unwrap().len(), 1);
        assert_ne!(again.get_or_create(&holder("a")).await.unwrap().bytes(), a.bytes());
    });
}

#[test]
fn two_who_make_a_key_at_once_end_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let all: Vec<KeyDir> = std::thread::scope(|scope| {
        let opened: Vec<_> = (0..4).map(|_| scope.spawn(|| key_dir(dir.path()))).collect();
        opened.into_iter().map(|opened| opened.join().unwrap()).collect()
    });
    for name in ["a", "b", "c", "d"] {
        let keys: Vec<[u8; 32]> = std::thread::scope(|scope| {
            let made =
                all.iter().map(|keys| scope.spawn(|| *block_on(keys.get_or_create(&holder(name))).unwrap().bytes()));
            made.collect::<Vec<_>>().into_iter().map(|made| made.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }
}

#[test]
fn another_master_key_is_said_to_be_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let keys = key_dir(dir.path());
    block_on(keys.get_or_create(&holder("a"))).unwrap();
    let wrong = KeyDir::open(dir.path(), &MasterKey::new([8; 32]));
    assert!(matches!(wrong, Err(amem_store::Error::WrongMasterKey { .. })), "{wrong:?}");
}

#[test]
fn a_directory_that_lost_its_root_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let keys = key_dir(dir.path());
    block_on(keys.get_or_create(&holder("a"))).unwrap();
    drop(keys);
    fs::remove_file(dir.path().join("root")).unwrap();
    let opened = KeyDir::open(dir.path(), &MasterKey::new(MASTER));
    assert!(matches!(opened, Err(amem_store::Error::DamagedKey { .. })), "{opened:?}");
    assert!(!dir.path().join("root").exists());
}

#[test]
fn a_master_key_can_be_changed_and_the_change_can_be_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = [MASTER, [8; 32]].map(MasterKey::new);
    let keys = key_dir(dir.path());
    let [a, b] = ["a", "b"].map(|name| *block_on(keys.get_or_create(&holder(name))).unwrap().bytes());
    let secret = keys.id_secret();
    let busy = KeyDir::rewrap(dir.path(), &old, &new);
    assert!(matches!(busy, Err(amem_store::Error::KeysInUse { .. })), "{busy:?}");
    drop(keys);
    let wrong = KeyDir::rewrap(dir.path(), &MasterKey::new([9; 32]), &new);
    assert!(matches!(wrong, Err(amem_store::Error::WrongMasterKey { .. })), "{wrong:?}");
    // As if it had been interrupted after the first file.
    let first = key_files(dir.path()).into_iter().min().unwrap();
    let before = fs::read(dir.path().join("root")).unwrap();
    let others: Vec<(PathBuf, Vec<u8>)> = key_files(dir.path())
        .into_iter()
        .filter(|path| *path != first)
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    assert_eq!(KeyDir::rewrap(dir.path(), &old, &new).unwrap(), 2);
    fs::write(dir.path().join("root"), before).unwrap();
    others.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    assert_eq!(KeyDir::rewrap(dir.path(), &old, &new).unwrap(), 2);
    assert!(KeyDir::open(dir.path(), &old).is_err());
    let keys = KeyDir::open(dir.path(), &new).unwrap();
    assert_eq!(keys.id_secret(), secret);
    assert_eq!(bytes(block_on(keys.get(&holder("a"))).unwrap()), Some(a));
    assert_eq!(bytes(block_on(keys.get(&holder("b"))).unwrap()), Some(b));
}

#[test]
fn a_changed_key_file_is_damage_and_left_over_files_are_wiped() {
    let dir = tempfile::tempdir().unwrap();
    let keys = key_dir(dir.path());
    block_on(keys.get_or_create(&holder("a"))).unwrap();
    let path = key_files(dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    for at in [0, 30, 60, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        let error = block_on(keys.get(&holder("a"))).expect_err("it does not decrypt");
        assert!(matches!(error.downcast_ref(), Some(amem_store::Error::DamagedKey { .. })), "{error}");
    }
    for bytes in [&whole[..20], &[&whole[..], &[0; 400]].concat(), &[1; 100]] {
        fs::write(&path, bytes).unwrap();
        assert!(block_on(keys.get(&holder("a"))).is_err());
    }
    // The key of one thing under the name of another's.
    block_on(keys.get_or_create(&holder("b"))).unwrap();
    let other = key_files(dir.path()).into_iter().find(|other| *other != path).unwrap();
    fs::write(&other, &whole).unwrap();
    assert!(block_on(keys.get(&holder("b"))).is_err());
    fs::write(&path, &whole).unwrap();
    drop(keys);
    let left = dir.path().join("tmp-left");
    let linked = dir.path().join("tmp-linked");
    fs::write(&left, &whole).unwrap();
    fs::hard_link(&path, &linked).unwrap();
    let keys = key_dir(dir.path());
    assert!(!left.exists() && !linked.exists());
    assert!(block_on(keys.get(&holder("a"))).unwrap().is_some(), "a key that has a name is not wiped");
}

#[test]
fn a_master_key_is_read_from_a_file_that_nobody_else_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    let write = |text: &str, mode: u32| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let digits = "07".repeat(32);
    for text in [digits.clone(), format!("{digits}\n"), format!("{digits}\r\n")] {
        write(&text, 0o600);
        let keys = KeyDir::open(dir.path().join("keys"), &MasterKey::from_file(&path).unwrap()).unwrap();
        drop(keys);
        key_dir(&dir.path().join("keys"));
    }
    write(&digits, 0o640);
    let refused = MasterKey::from_file(&path);
    assert!(matches!(&refused, Err(amem_store::Error::BadMasterKey { .. })), "{refused:?}");
    for bad in ["", "07", &digits[1..], &format!("{digits}0"), &format!("{digits}07"), &"xy".repeat(32)] {
        write(bad, 0o600);
        let refused = MasterKey::from_file(&path);
        assert!(matches!(&refused, Err(amem_store::Error::BadMasterKey { .. })), "{bad:?}: {refused:?}");
    }
    let missing = MasterKey::from_file(dir.path().join("none"));
    assert!(matches!(missing, Err(amem_store::Error::BadMasterKey { .. })), "{missing:?}");
}

/// A store on disk behind encryption, whose files are damaged and whose keys are destroyed.
struct Encrypted {
    dir: tempfile::TempDir,
    keys: KeyDir,
    /// `None` for a moment.
    store: Option<EncryptedStore<SegmentStore>>,
    other: EncryptedStore<SegmentStore>,
}

impl Encrypted {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = key_dir(&dir.path().join("keys"));
        let open = |options| EncryptedStore::new(segments(&dir, options), Arc::new(keys.clone()));
        let (store, other) = (open(tiny()), open(tiny().read_only(true)));
        Self { store: Some(store), other, keys, dir }
    }
}

fn tiny() -> SegmentOptions {
    SegmentOptions::default().segment_bytes(64 << 10)
}

fn segments(dir: &tempfile::TempDir, options: SegmentOptions) -> SegmentStore {
    SegmentStore::open_with(dir.path().join("kv"), options).unwrap()
}

impl Subject for Encrypted {
    type Store = EncryptedStore<SegmentStore>;
    const EVICTED_COMES_BACK: bool = true;
    const DAMAGE_LINGERS: bool = true;

    fn store(&self) -> &Self::Store {
        self.store.as_ref().unwrap()
    }

    fn other(&self) -> &Self::Store {
        &self.other
    }

    fn reopen(&mut self) {
        drop(self.store.take());
        self.store = Some(EncryptedStore::new(segments(&self.dir, tiny()), Arc::new(self.keys.clone())));
    }

    fn disturb(&mut self, at: u32) -> Disturbed {
        let (kind, at) = (at % 4, at as usize / 4);
        if kind == 0 {
            // Whose chunks they are.
            block_on(self.keys.destroy(&Namespace::new("test").unwrap())).unwrap();
            return Disturbed::All;
        }
        let files = fs::read_dir(self.dir.path().join("kv")).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|kind| kind == "kv")).collect();
        files.sort();
        let Some(path) = files.get(at % files.len().max(1)) else { return Disturbed::Nothing };
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (len, mut byte) = (file.metadata().unwrap().len(), [0]);
        let offset = (at / 7) as u64 % len.max(1);
        if file.read_exact_at(&mut byte, offset).is_ok() {
            file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
        }
        Disturbed::Held
    }

    /// At no time does KV lie there in clear.
    fn is_left(&self, gone: &KvChunk) -> bool {
        files_contain(&self.dir.path().join("kv"), &gone.to_bytes().unwrap()[..40])
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_encrypted_store_behaves_like_a_map_that_damage_and_lost_keys_make_forgetful(steps in steps()) {
        Machine::new(Encrypted::new()).run(steps)?;
    }
}
