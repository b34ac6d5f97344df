//! What a question does not wait for: the store deleting what others forgot, the ledger saving an index.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};

use amem_core::{
    ChunkId, ConstraintSource, Error, KvStore, Ledger, Namespace, NewRecord, RecordId, Timestamp, UsageQuery,
};

use super::hooked::{HookedLedger, HookedStore};
use super::{about_apples, block_on, builder, notes};

/// Calls that wait while the gate is closed, and how many there were.
#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Gate {
    fn pass(&self) {
        self.begun.fetch_add(1, Relaxed);
        drop(self.opened.wait_while(self.is_closed.lock().unwrap(), |is_closed| *is_closed).unwrap());
        self.ended.fetch_add(1, Relaxed);
    }

    /// It opens when what is returned is dropped, by a test that fails too.
    fn close(&self) -> Closed<'_> {
        *self.is_closed.lock().unwrap() = true;
        Closed(self)
    }

    /// Waits until a call waits at the gate.
    fn wait_for_a_call(&self) {
        while self.begun.load(Relaxed) == self.ended.load(Relaxed) {
            std::thread::yield_now();
        }
    }
}

struct Closed<'g>(&'g Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        *self.0.is_closed.lock().unwrap() = false;
        self.0.opened.notify_all();
    }
}

/// A ledger, and a store whose deletions pass a gate.
fn gated() -> (Arc<HookedLedger>, Arc<HookedStore>, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let of_store = Arc::clone(&gate);
    let kv = HookedStore::new(move |call| {
        if call == "delete" {
            of_store.pass();
        }
        Ok(())
    });
    (HookedLedger::new(|_| Ok(())), kv, gate)
}

async fn forget_elsewhere(ledger: &HookedLedger, id: RecordId) {
    ledger.forget(&Namespace::new("me").unwrap(), id, Timestamp::now()).await.unwrap();
}

#[test]
fn a_question_does_not_wait_for_the_deletion_of_what_another_process_forgot() {
    let (ledger, kv, gate) = gated();
    let memory = builder(ledger.clone(), kv.clone()).build().unwrap();
    block_on(async {
        let added = memory.remember_all("me", notes(4)).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        let held = kv.stats().await.chunks;
        forget_elsewhere(&ledger, added[0].record.id).await;
        let closed = gate.close();
        for _ in 0..10 {
            let answer = memory.ask("me", about_apples(4)).await.unwrap();
            assert_eq!(answer.recalled.len(), 3, "what was forgotten is in no answer");
        }
        gate.wait_for_a_call();
        assert_eq!((gate.begun.load(Relaxed), gate.ended.load(Relaxed)), (1, 0), "one call deletes at a time");
        drop(closed);
        memory.settle().await;
        assert_eq!(kv.stats().await.chunks, held - 1);
        assert!(ledger.pending_deletions(Timestamp::now()).await.unwrap().is_empty(), "and the ledger knows");
    });
}

#[test]
fn forgetting_returns_when_the_kv_is_deleted() {
    let (ledger, kv, gate) = gated();
    let memory = builder(ledger, kv.clone()).build().unwrap();
    let added = block_on(async {
        let added = memory.remember_all("me", notes(2)).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        added
    });
    let (before, is_done) = (block_on(kv.stats()).chunks, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let closed = gate.close();
        scope.spawn(|| {
            block_on(memory.forget("me", added[0].record.id)).unwrap();
            is_done.store(true, Relaxed);
            assert_eq!(block_on(kv.stats()).chunks, before - 1);
        });
        gate.wait_for_a_call();
        assert!(!is_done.load(Relaxed));
        drop(closed);
    });
    assert!(is_done.load(Relaxed));
}

#[test]
fn a_deletion_that_fails_in_the_background_is_tried_again_with_the_next_question() {
    let is_broken = Arc::new(AtomicBool::new(false));
    let broken = Arc::clone(&is_broken);
    let kv = HookedStore::new(move |call| match call {
        "delete" if broken.load(Relaxed) => Err(Error::Store("the server is gone".into())),
        _ => Ok(()),
    });
    let ledger = HookedLedger::new(|_| Ok(()));
    let memory = builder(ledger.clone(), kv.clone()).build().unwrap();
    block_on(async {
        let added = memory.remember_all("me", notes(3)).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        let held = kv.stats().await.chunks;
        is_broken.store(true, Relaxed);
        forget_elsewhere(&ledger, added[0].record.id).await;
        // The other process has deleted it from its own store, and says so.
        let now = Timestamp::now();
        let pending = ledger.pending_deletions(now).await.unwrap();
        ledger.confirm_deleted(&pending, now).await.unwrap();
        forget_elsewhere(&ledger, added[1].record.id).await;
        memory.ask("me", about_apples(1)).await.unwrap();
        memory.settle().await;
        assert_eq!(kv.stats().await.chunks, held);
        is_broken.store(false, Relaxed);
        memory.ask("me", about_apples(1)).await.unwrap();
        memory.settle().await;
        assert_eq!(kv.stats().await.chunks, held - 2);
    });
}

#[test]
fn a_memory_that_is_dropped_has_deleted_what_it_was_to_delete() {
    let (ledger, kv, _) = gated();
    let memory = builder(ledger.clone(), kv.clone()).build().unwrap();
    block_on(async {
        let added = memory.remember_all("me", notes(2)).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        let held = kv.stats().await.chunks;
        forget_elsewhere(&ledger, added[0].record.id).await;
        memory.recall("me", "apple").await.unwrap();
        drop(memory);
        assert_eq!(kv.stats().await.chunks, held - 1);
    });
    assert_eq!(Arc::strong_count(&kv), 1, "and lets go of the store");
}

#[test]
fn a_process_that_may_not_write_to_the_store_does_not_try_to_delete_with_each_question() {
    let calls = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let (of_ledger, of_store) = (Arc::clone(&calls), Arc::clone(&calls));
    let ledger = HookedLedger::new(move |call| {
        of_ledger[0].fetch_add(usize::from(call == "pending_deletions"), Relaxed);
        Ok(())
    });
    let is_reader = Arc::new(AtomicBool::new(false));
    let reads = Arc::clone(&is_reader);
    let kv = HookedStore::new(move |call| {
        of_store[1].fetch_add(usize::from(call == "delete"), Relaxed);
        match call {
            "put" | "delete" if reads.load(Relaxed) => {
                Err(Error::ReadOnly { what: "the store".to_owned(), reason: "another process writes".to_owned() })
            }
            _ => Ok(()),
        }
    });
    let memory = builder(ledger.clone(), kv).build().unwrap();
    block_on(async {
        let added = memory.remember_all("me", notes(3)).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        memory.settle().await;
        is_reader.store(true, Relaxed);
        ledger.update(&Namespace::new("me").unwrap(), added[0].record.id, "pear", Timestamp::now()).await.unwrap();
        calls.iter().for_each(|calls| calls.store(0, Relaxed));
        for _ in 0..5 {
            memory.ask("me", about_apples(2)).await.unwrap();
            memory.settle().await;
        }
        assert_eq!(calls[1].load(Relaxed), 1, "the store is asked once");
        assert!(calls[0].load(Relaxed) <= 1, "and the ledger no more often");
    });
}

#[test]
fn a_question_does_not_wait_until_an_index_is_saved() {
    let gate = Arc::new(Gate::default());
    let of_ledger = Arc::clone(&gate);
    let ledger = HookedLedger::new(move |call| {
        if call == "save_index" {
            of_ledger.pass();
        }
        Ok(())
    });
    let (_, kv, _) = gated();
    let memory = builder(ledger, kv).build().unwrap();
    block_on(async {
        let texts = (0..1000).map(|n| NewRecord::new(format!("pear {n}")));
        memory.remember_all("me", texts.chain(["apple".into()])).await.unwrap();
        let closed = gate.close();
        for _ in 0..3 {
            let answer = memory.ask("me", about_apples(1)).await.unwrap();
            assert_eq!(answer.recalled[0].record.text, "apple");
        }
        gate.wait_for_a_call();
        memory.remember("me", "apple 2").await.unwrap();
        assert_eq!(memory.recall("me", "2 apple").await.unwrap()[0].record.text, "apple 2", "nor later ones");
        assert_eq!(gate.ended.load(Relaxed), 0);
        drop(closed);
        memory.settle().await;
        assert_eq!(gate.ended.load(Relaxed), 1, "it is saved once");
    });
}

#[test]
fn a_process_that_may_not_write_to_the_ledger_does_not_try_to_save_an_index_again_and_again() {
    let tries = Arc::new(AtomicUsize::new(0));
    let of_ledger = Arc::clone(&tries);
    let ledger = HookedLedger::new(move |call| match call {
        "save_index" => {
            of_ledger.fetch_add(1, Relaxed);
            Err(Error::ReadOnly { what: "the ledger".to_owned(), reason: "it was opened so".to_owned() })
        }
        _ => Ok(()),
    });
    let (_, kv, _) = gated();
    let memory = builder(ledger.clone(), kv).build().unwrap();
    block_on(async {
        for round in 0..3 {
            // Written by another process.
            let texts: Vec<NewRecord> = (0..1000).map(|n| NewRecord::new(format!("pear {round} {n}"))).collect();
            ledger.add(&Namespace::new("me").unwrap(), &texts, Timestamp::now()).await.unwrap();
            memory.recall("me", "pear").await.unwrap();
            memory.settle().await;
        }
        assert_eq!(tries.load(Relaxed), 1);
    });
}

#[test]
fn things_that_are_forgotten_one_by_one_have_the_index_saved_once_more() {
    let saved = Arc::new(AtomicUsize::new(0));
    let of_ledger = Arc::clone(&saved);
    let ledger = HookedLedger::new(move |call| {
        if call == "save_index" {
            of_ledger.fetch_add(1, Relaxed);
        }
        Ok(())
    });
    let (_, kv, _) = gated();
    let memory = builder(ledger, kv).build().unwrap();
    block_on(async {
        let added = memory.remember_all("me", (0..1100).map(|n| format!("pear {n}"))).await.unwrap();
        memory.forget("me", added[0].record.id).await.unwrap();
        memory.settle().await;
        assert_eq!(saved.load(Relaxed), 0, "what is not in RAM is not read to be saved");
        memory.recall("me", "pear").await.unwrap();
        memory.settle().await;
        assert_eq!(saved.load(Relaxed), 1);
        for added in &added[1..30] {
            memory.forget("me", added.record.id).await.unwrap();
        }
        assert_eq!(saved.load(Relaxed), 1, "it waits, for more may be forgotten");
        memory.settle().await;
        assert_eq!(saved.load(Relaxed), 2);
        memory.settle().await;
        assert_eq!(saved.load(Relaxed), 2, "nothing was forgotten since");
        memory.forget("me", added[30].record.id).await.unwrap();
        drop(memory);
        assert_eq!(saved.load(Relaxed), 3, "whoever drops the memory waits for it");
    });
}

/// Another process gives a key's record another text, and has deleted the KV of the one before from its own stores.
async fn supersede_elsewhere(ledger: &HookedLedger, key: &str, text: &str) {
    let (me, now) = (Namespace::new("me").unwrap(), Timestamp::now());
    ledger.inner.add(&me, &[NewRecord::new(text).key(key)], now).await.unwrap();
    let pending = ledger.inner.pending_deletions(now).await.unwrap();
    ledger.inner.confirm_deleted(&pending, now).await.unwrap();
}

async fn held(kv: &HookedStore) -> Vec<ChunkId> {
    kv.inner.page(None, 100).await.unwrap().into_iter().map(|held| held.id).collect()
}

#[test]
fn kv_of_a_text_that_another_process_superseded_while_it_was_put_does_not_stay() {
    let ledger = HookedLedger::new(|_| Ok(()));
    let (of_store, is_superseded) = (Arc::clone(&ledger), Arc::new(AtomicBool::new(true)));
    let once = Arc::clone(&is_superseded);
    let kv = HookedStore::new(move |call| {
        if call == "put" && !once.swap(true, Relaxed) {
            block_on(supersede_elsewhere(&of_store, "apple", "an apple is green"));
        }
        Ok(())
    });
    let memory = builder(ledger, kv.clone()).build().unwrap();
    block_on(async {
        memory.ask("me", about_apples(1)).await.unwrap();
        let before = held(&kv).await;
        memory.remember("me", NewRecord::new("an apple is red").key("apple")).await.unwrap();
        is_superseded.store(false, Relaxed);
        memory.ask("me", about_apples(1)).await.unwrap();
        assert!(is_superseded.load(Relaxed));
        assert_eq!(held(&kv).await, before);
    });
}

#[test]
fn kv_of_what_another_process_superseded_is_deleted_here_too_whoever_notices_it() {
    let (ledger, kv, _) = gated();
    let memory = builder(ledger.clone(), kv.clone()).build().unwrap();
    block_on(async {
        let texts = ["red", "sour"].map(|text| NewRecord::new(format!("an apple is {text}")).key(text));
        memory.remember_all("me", texts).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        memory.ask("me", about_apples(2)).await.unwrap();
        let before = held(&kv).await;
        supersede_elsewhere(&ledger, "red", "a pear is red").await;
        // Texts alone are asked for: the KV is deleted with the next question all the same.
        memory.texts().recall("me", "apple").await.unwrap();
        memory.ask("me", about_apples(1)).await.unwrap();
        memory.settle().await;
        let after = held(&kv).await;
        assert_eq!(before.iter().filter(|id| !after.contains(id)).count(), 1);
    });
}

#[test]
fn a_question_that_is_refused_is_not_counted_as_answered() {
    let (ledger, kv, _) = gated();
    let memory = builder(ledger, kv).meter_usage(true).build().unwrap();
    block_on(async {
        let requests = async || {
            let used = memory.usage(&UsageQuery::all()).await.unwrap();
            used.iter().map(|used| used.amounts.requests).sum::<u64>()
        };
        memory.ask("me", about_apples(1)).await.unwrap();
        assert_eq!(requests().await, 1);
        let mut impossible = about_apples(1);
        let failing = || Err(Error::Model("no such constraint".into()));
        impossible.generation.constraint = Some(ConstraintSource::new(failing));
        memory.ask("me", impossible).await.unwrap_err();
        memory.ask("me", about_apples(1)).await.unwrap();
        assert_eq!(requests().await, 2);
    });
}
