//! Changes of what stands beside a text: no KV is computed again for them, and nothing is indexed again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use amem_core::recall::Lexical;
use amem_core::{
    Change, Filter, KvStore, MemoryBuilder, Metadata, Namespace, NewRecord, Outcome, Recall, RecallQuery, Recalled,
    Recaller, Record, RecordId, Result, SessionOptions, State, Timestamp, UsageQuery,
};
use async_trait::async_trait;

use super::hooked::{HookedLedger, HookedStore};
use super::{about_apples, block_on, builder};

/// An index by words that counts the records it is given.
#[derive(Default)]
struct Counting {
    words: Lexical,
    indexed: AtomicUsize,
}

#[async_trait]
impl Recaller for Counting {
    async fn index(&self, records: &[Record]) -> Result<()> {
        self.indexed.fetch_add(records.len(), Relaxed);
        self.words.index(records).await
    }

    async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
        self.words.remove(namespace, ids).await
    }

    async fn clear(&self, namespace: &Namespace) -> Result<()> {
        self.words.clear(namespace).await
    }

    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
        self.words.recall(namespace, query).await
    }
}

fn parts() -> (MemoryBuilder, Arc<HookedStore>, Arc<Counting>) {
    let (kv, recaller) = (HookedStore::new(|_| Ok(())), Arc::<Counting>::default());
    let memory = builder(HookedLedger::new(|_| Ok(())), kv.clone()).recaller(recaller.clone());
    (memory, kv, recaller)
}

fn from(source: &str) -> Metadata {
    Metadata::from_iter([("source", source)])
}

fn in_a_while() -> Timestamp {
    Timestamp::now().after(std::time::Duration::from_secs(3600))
}

#[test]
fn what_changes_beside_a_text_has_nothing_computed_or_indexed_again() {
    let (memory, kv, recaller) = parts();
    let memory = memory.build().unwrap();
    block_on(async {
        let added = memory.remember_all("me", ["apple 1", "apple 2"]).await.unwrap();
        memory.ask("me", about_apples(2)).await.unwrap();
        let held = kv.stats().await.chunks;
        let change = Change::new().key("fruit").metadata(from("mail")).expires_at(in_a_while());
        let changed = memory.change("me", added[0].record.id, change).await.unwrap();
        let told = NewRecord::new("apple 2").metadata(from("mail")).expires_at(in_a_while());
        assert_eq!(memory.remember("me", told).await.unwrap().outcome, Outcome::Changed);
        let by_mail = Recall::new("apple").filter(Filter::eq("source", "mail"));
        let found = memory.recall("me", by_mail).await.unwrap();
        assert_eq!(found.len(), 2, "they are found by what they have now");
        assert!(found.iter().any(|found| found.record == changed));
        let answer = memory.ask("me", about_apples(2)).await.unwrap();
        assert_eq!((answer.recalled.len(), answer.usage.missed), (2, 0), "their KV is reused");
        memory.settle().await;
        assert_eq!((kv.stats().await.chunks, recaller.indexed.load(Relaxed)), (held, 2));

        // The end is one of the KV too.
        let over = memory.change("me", added[0].record.id, Change::new().expires_at(Timestamp::now())).await.unwrap();
        assert!(matches!(over.state, State::Expired { .. }));
        assert_eq!(kv.stats().await.chunks, held - 1);
        assert_eq!(memory.recall("me", "apple").await.unwrap().len(), 1);
    });
}

#[test]
fn a_session_leaves_out_what_no_longer_passes_its_filter() {
    let (memory, ..) = parts();
    let memory = memory.build().unwrap();
    block_on(async {
        let notes = ["apple 1", "apple 2"].map(|text| NewRecord::new(text).metadata(from("mail")));
        let added = memory.remember_all("me", notes).await.unwrap();
        let mut options = SessionOptions::default();
        options.filter = Some(Filter::eq("source", "mail"));
        let mut session = memory.session("me", options).unwrap();
        session.ask(about_apples(2)).await.unwrap();
        memory.change("me", added[0].record.id, Change::new().metadata(from("chat"))).await.unwrap();
        let kept = memory.change("me", added[1].record.id, Change::new().key("fruit")).await.unwrap();
        session.ask(about_apples(2)).await.unwrap();
        session.settle().await;
        assert_eq!(session.resident(), [kept]);
    });
}

#[test]
fn forgetting_a_key_deletes_the_kv_of_all_that_was_said_under_it() {
    let (memory, kv, _) = parts();
    let memory = memory.meter_usage(true).build().unwrap();
    block_on(async {
        memory.remember("me", "apple 0").await.unwrap();
        memory.ask("me", about_apples(1)).await.unwrap();
        let held = kv.stats().await.chunks;
        for text in ["apple 1", "apple 2"] {
            memory.remember("me", NewRecord::new(text).key("fruit")).await.unwrap();
            memory.ask("me", about_apples(2)).await.unwrap();
        }
        assert_eq!(kv.stats().await.chunks, held + 1);
        let forgotten = memory.forget_key("me", "fruit").await.unwrap();
        assert_eq!(forgotten.len(), 2, "what was superseded too");
        assert_eq!(kv.stats().await.chunks, held);
        assert_eq!(memory.recall("me", "apple").await.unwrap().len(), 1);
        assert!(memory.forget_key("me", "fruit").await.unwrap().is_empty());
        let told = NewRecord::new("apple 0").metadata(from("mail"));
        let id = memory.remember("me", told).await.unwrap().record.id;
        memory.remember("me", "apple 0").await.unwrap();
        memory.change("me", id, Change::new().key("fruit")).await.unwrap();
        let used = memory.usage(&UsageQuery::all()).await.unwrap();
        assert_eq!(used[0].amounts.memory_ops, 3 + 2 + 1 + 1, "remembered, forgotten, told again, changed");
    });
}
