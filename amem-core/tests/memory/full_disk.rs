//! The ledger's disk is full.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use amem_core::{
    Amounts, Error, Event, KvStore, Ledger, Memory, Namespace, RecordId, Result, SessionOptions, UsageQuery,
};
use futures_lite::StreamExt;

use super::hooked::{HookedLedger, HookedStore};
use super::{about_apples, block_on, builder, notes};

/// A disk with room for so many writes of the ledger. A chunk of KV that is given up makes room for some more.
#[derive(Default)]
struct Disk {
    writes_left: AtomicUsize,
    writes_per_chunk: AtomicUsize,
}

impl Disk {
    fn full() -> Error {
        Error::Full { what: "the ledger's disk".to_owned(), reason: "no space is left".to_owned() }
    }

    fn write(&self) -> Result<()> {
        let left = self.writes_left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| Self::full())
    }

    /// Keeps KV only where there is room.
    fn put(&self) -> Result<()> {
        if self.writes_left.load(Relaxed) == 0 { Err(Self::full()) } else { Ok(()) }
    }

    fn give_up(&self) -> Result<()> {
        match self.writes_per_chunk.load(Relaxed) {
            0 => Err(Error::Store("nothing can be given up".into())),
            writes => {
                self.writes_left.fetch_add(writes, Relaxed);
                Ok(())
            }
        }
    }
}

struct OnDisk {
    disk: Arc<Disk>,
    ledger: Arc<HookedLedger>,
    kv: Arc<HookedStore>,
    memory: Memory,
    ids: Vec<RecordId>,
}

/// A metered memory of ten notes with their KV on a disk that is full from now on.
async fn on_full_disk() -> OnDisk {
    let disk = Arc::new(Disk::default());
    disk.writes_left.store(usize::MAX, Relaxed);
    let of_ledger = Arc::clone(&disk);
    let ledger = HookedLedger::new(move |call| match call {
        "pending_deletions" => Ok(()),
        _ => of_ledger.write(),
    });
    let of_kv = Arc::clone(&disk);
    let kv = HookedStore::new(move |call| match call {
        "put" => of_kv.put(),
        "give_up" => of_kv.give_up(),
        _ => Ok(()),
    });
    let memory = builder(ledger.clone(), kv.clone()).meter_usage(true).build().unwrap();
    let added = memory.remember_all("me", notes(10)).await.unwrap();
    memory.prefill("me", |_, _| {}).await.unwrap();
    disk.writes_left.store(0, Relaxed);
    OnDisk { disk, ledger, kv, memory, ids: added.into_iter().map(|added| added.record.id).collect() }
}

impl OnDisk {
    /// What the ledger has counted.
    async fn used(&self) -> Amounts {
        let totals = self.ledger.usage(&UsageQuery::all()).await.unwrap();
        totals.into_iter().map(|total| total.amounts).sum()
    }
}

#[test]
fn on_a_full_disk_kv_makes_room_for_all_that_the_ledger_has_to_write() {
    let check = |what: &str, call: &dyn Fn(&OnDisk)| {
        let full = block_on(on_full_disk());
        full.disk.writes_per_chunk.store(2, Relaxed);
        let (chunks, used) = block_on(async { (full.kv.stats().await.chunks, full.used().await) });
        call(&full);
        let (left, now) = block_on(async { (full.kv.stats().await.chunks, full.used().await) });
        assert!(left < chunks, "{what}: KV made room");
        assert_ne!(now, used, "{what} is counted");
    };
    check("a question", &|full| drop(block_on(full.memory.ask("me", about_apples(3))).unwrap()));
    check("a question of a session", &|full| {
        let mut session = full.memory.session("me", SessionOptions::default()).unwrap();
        block_on(session.ask(about_apples(3))).unwrap();
    });
    check("opening a session", &|full| {
        let mut session = full.memory.session("me", SessionOptions::default()).unwrap();
        block_on(session.open("apple")).unwrap();
    });
    check("remembering", &|full| drop(block_on(full.memory.remember("me", "pear")).unwrap()));
    check("updating", &|full| {
        assert_eq!(block_on(full.memory.update("me", full.ids[0], "pear")).unwrap().text, "pear");
        assert_eq!(block_on(full.memory.get("me", full.ids[0])).unwrap().text, "pear");
    });
    check("forgetting", &|full| {
        block_on(full.memory.forget("me", full.ids[0])).unwrap();
        assert_eq!(block_on(full.memory.count("me")).unwrap(), 9);
    });
    check("forgetting many", &|full| {
        block_on(full.memory.forget_many("me", &full.ids[..4])).unwrap();
        assert_eq!(block_on(full.memory.count("me")).unwrap(), 6);
    });
}

#[test]
fn on_a_full_disk_kv_makes_room_for_deleting_a_namespace() {
    block_on(async {
        let full = on_full_disk().await;
        full.disk.writes_per_chunk.store(1, Relaxed);
        assert_eq!(full.memory.delete_namespace("me").await.unwrap(), 10);
        assert_eq!(full.memory.count("me").await.unwrap(), 0);
    });
}

#[test]
fn an_answer_comes_though_there_is_no_room_for_its_usage_which_is_counted_later() {
    block_on(async {
        let full = on_full_disk().await;
        let before = full.used().await;
        let expected = full.memory.ask("me", about_apples(3)).await.expect("the answer comes");
        let mut stream = full.memory.ask_stream("me", about_apples(3)).await.unwrap();
        let answer = loop {
            if let Event::Done(answer) = stream.next().await.unwrap().unwrap() {
                break answer;
            }
        };
        assert_eq!(answer.text, expected.text);
        let mut session = full.memory.session("me", SessionOptions::default()).unwrap();
        session.open("apple").await.expect("a session opens");
        session.ask(about_apples(3)).await.expect("its answers come, too");
        assert_eq!(full.used().await, before, "nothing could be written");

        full.disk.writes_left.store(usize::MAX, Relaxed);
        full.memory.ask("me", about_apples(3)).await.unwrap();
        let used = full.used().await;
        assert_eq!(used.requests, before.requests + 4, "each is counted once");
    });
}

#[test]
fn without_any_room_a_change_fails_and_changes_nothing() {
    block_on(async {
        let full = on_full_disk().await;
        let is_full = |result: Result<()>| matches!(result, Err(Error::Full { .. }));
        assert!(is_full(full.memory.remember("me", "pear").await.map(drop)));
        assert!(is_full(full.memory.update("me", full.ids[0], "pear").await.map(drop)));
        assert!(is_full(full.memory.forget("me", full.ids[0]).await.map(drop)));
        assert!(is_full(full.memory.delete_namespace("me").await.map(drop)));
        assert_eq!(full.memory.count("me").await.unwrap(), 10);
        assert_eq!(full.memory.get("me", full.ids[0]).await.unwrap().text, "apple 0");
        assert_eq!(full.kv.stats().await.chunks, 11, "KV that makes no room stays");
    });
}

#[test]
fn questions_are_refused_once_too_much_usage_waits_and_none_of_it_is_lost() {
    block_on(async {
        let full = on_full_disk().await;
        let me = Namespace::new("me").unwrap();
        let before = full.used().await;
        let mut noted = Amounts::default();
        noted.generated_tokens = 7;
        let mut count = 0;
        while full.memory.ask("me", about_apples(3)).await.is_ok() {
            for _ in 0..500 {
                full.memory.record_usage(&me, noted).await.expect("it waits");
                count += 1;
            }
            assert!(count < 10_000, "what waits has a bound");
        }
        assert!(count > 0);
        full.disk.writes_left.store(usize::MAX, Relaxed);
        full.memory.ask("me", about_apples(3)).await.expect("there is room again");
        assert!(full.used().await.generated_tokens >= before.generated_tokens + 7 * count);
    });
}

#[test]
fn kv_is_not_given_up_again_and_again_where_that_makes_no_room() {
    block_on(async {
        let full = on_full_disk().await;
        // What it frees is on another disk than the ledger's.
        let kv = HookedStore::new(|_| Ok(()));
        let memory = builder(full.ledger.clone(), kv.clone()).meter_usage(true).build().unwrap();
        full.disk.writes_left.store(usize::MAX, Relaxed);
        memory.prefill("me", |_, _| {}).await.unwrap();
        full.disk.writes_left.store(0, Relaxed);
        memory.ask("me", about_apples(1)).await.unwrap();
        let left = kv.stats().await.chunks;
        for _ in 0..3 {
            memory.ask("me", about_apples(1)).await.unwrap();
        }
        assert_eq!(kv.stats().await.chunks, left);
        assert!(left > 0);
    });
}
