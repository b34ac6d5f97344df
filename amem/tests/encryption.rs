//! A memory over encrypted parts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use amem_core::{KvStore, Memory, Model, NewRecord, OwnerId};
use amem_store::{DataDir, EncryptedLedger, EncryptedStore, KeyDir, Keys, MasterKey, SegmentStore};
use common::{MODEL, block_on, builder};

fn opened(data: &Path, keys: &KeyDir) -> (Memory, Arc<EncryptedStore<SegmentStore>>) {
    let keys: Arc<dyn Keys> = Arc::new(keys.clone());
    let DataDir { kv, ledger } = amem_store::open(data).unwrap();
    let kv = Arc::new(EncryptedStore::new(kv, Arc::clone(&keys)));
    let ledger = block_on(EncryptedLedger::open(ledger, Arc::clone(&keys))).unwrap();
    let parts = builder().id_secret(keys.id_secret()).kv(kv.clone()).ledger(Arc::new(ledger));
    (parts.build().unwrap(), kv)
}

/// All bytes of all files below a directory.
fn bytes_below(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        if entry.file_type().unwrap().is_dir() {
            all.extend(bytes_below(&entry.path()));
        } else {
            all.extend(fs::read(entry.path()).unwrap());
        }
    }
    all
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_memory_answers_from_what_nobody_can_read_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (data, keys) =
        (dir.path().join("data"), KeyDir::open(dir.path().join("keys"), &MasterKey::new([3; 32])).unwrap());
    let (namespace, text) = ("the namespace of Alice", "Alice lives in Denver.");
    let tokens: Vec<u8> = MODEL.chat().encode(text).unwrap().iter().flat_map(|token| token.to_le_bytes()).collect();
    let plain_owner = OwnerId::of(namespace);
    let (memory, kv) = opened(&data, &keys);
    block_on(async {
        let new =
            NewRecord::new(text).key("home of Alice").metadata([("source", "a letter of May")].into_iter().collect());
        memory.remember(namespace, new).await.unwrap();
        memory.remember("another", "Bob lives in Oslo.").await.unwrap();
        memory.prefill(namespace, |_, _| {}).await.unwrap();
        let answer = memory.ask(namespace, "Where does Alice live?").await.unwrap();
        assert_eq!((answer.text.as_str(), answer.usage.missed), (text, 0));
        let owner = OwnerId::keyed(&keys.id_secret(), namespace);
        assert_eq!((kv.owned(owner).await.unwrap().len(), kv.owned(plain_owner).await.unwrap().len()), (1, 0));
        let chunk = kv.owned(owner).await.unwrap()[0].id;
        let held = kv.get(&chunk).await.unwrap().unwrap();
        assert_eq!(held.model(), Some(MODEL.info().fingerprint), "a chunk says which model computed it all the same");
        kv.sync().await.unwrap();
        let on_disk = bytes_below(&data);
        let words = [namespace, text, "Denver", "home of Alice", "a letter of May", "source"];
        let secrets = words.map(|word| word.as_bytes().to_vec());
        for (at, secret) in secrets.iter().chain([&tokens, &plain_owner.0.to_vec()]).enumerate() {
            assert!(!contains(&on_disk, secret), "secret {at} stands on the disk");
        }
        assert!(contains(&on_disk, &chunk.0), "the search does find what stands there");
    });
    drop((memory, kv));

    // All of it is found again.
    let (memory, kv) = opened(&data, &keys);
    let answer = block_on(memory.ask(namespace, "Where does Alice live?")).unwrap();
    assert_eq!((answer.text.as_str(), answer.usage.missed), (text, 0));
    block_on(async {
        assert_eq!(memory.delete_namespace(namespace).await.unwrap(), 1);
        assert!(kv.owned(OwnerId::keyed(&keys.id_secret(), namespace)).await.unwrap().is_empty());
        assert_eq!(kv.stats().await.damaged, 0);
        let left = keys.namespaces().await.unwrap();
        assert_eq!(left.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), ["another"]);
        assert!(memory.recall(namespace, "Where does Alice live?").await.unwrap().is_empty());
        assert_eq!(memory.recall("another", "Where does Bob live?").await.unwrap().len(), 1);
    });
}
