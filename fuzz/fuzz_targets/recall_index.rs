//! Any bytes pass for a saved index as far as they are sound, and an index that loaded them finds what one finds that loads
//! what it saves.
#![no_main]

use amem_core::{Namespace, RecallQuery, Recalled, Recaller, Record, RecordId, Timestamp};
use amem_fuzz::recaller;
use futures_lite::future::block_on;
use libfuzzer_sys::fuzz_target;

// Which index, in one byte; what is to be loaded.
fuzz_target!(|bytes: &[u8]| {
    let Some((kind, saved)) = bytes.split_first() else { return };
    let (Ok(home), words) = (Namespace::new("home"), String::from_utf8_lossy(&saved[..saved.len().min(100)])) else {
        return;
    };
    let queries = ["the red car", &*words];
    block_on(check(&home, *kind, saved, &queries));
});

async fn check(home: &Namespace, kind: u8, saved: &[u8], queries: &[&str]) {
    let (one, other) = (recaller(kind), recaller(kind));
    let is_sound = one.restore(home, saved).await.expect("an index in RAM does not fail");
    let again = one.save(home).await.expect("as above").expect("this index is saved");
    assert!(other.restore(home, &again).await.expect("as above"), "what was saved can be loaded");
    assert_eq!(other.save(home).await.expect("as above").as_ref(), Some(&again));
    let both = async || {
        let mut all: Vec<Recalled> = Vec::new();
        for query in queries {
            let found = find(&*one, home, query).await;
            assert_eq!(found, find(&*other, home, query).await);
            all.extend(found);
        }
        all
    };
    let found = both().await;
    assert!(found.is_empty() || is_sound);
    assert!(16 * found.len() <= queries.len() * saved.len());
    let new = Record::new(RecordId::from_bytes([7; 16]), home.clone(), "the red car", Timestamp(0));
    for index in [&one, &other] {
        index.index(std::slice::from_ref(&new)).await.expect("as above");
    }
    assert!(both().await.iter().any(|found| found.id == new.id), "a new record is found");
    let gone: Vec<RecordId> = found.iter().map(|found| found.id).collect();
    for index in [&one, &other] {
        index.remove(home, &gone).await.expect("as above");
    }
    assert!(both().await.iter().all(|found| !gone.contains(&found.id)), "what was removed is not found");
}

async fn find(index: &dyn Recaller, home: &Namespace, query: &str) -> Vec<Recalled> {
    index.recall(home, &RecallQuery::new(query, usize::MAX)).await.expect("an index in RAM does not fail")
}
