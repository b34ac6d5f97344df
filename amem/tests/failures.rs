//! A model that fails, callers who leave and callers who come at once: whoever asks next is answered right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amem_core::testing::Probe;
use amem_core::transformer::{Options, Transformer};
use amem_core::{
    AnswerStream, Ask, ChunkId, Encoding, Error, Event, KvChunk, KvData, KvStore, Ledger, Memory, OwnerId, RamLedger,
    RamStore, Repair, Result, SessionOptions, StoreStats, StoredChunk, Tier, Tiered, Timestamp, WriteMode,
};
use amem_cpu::Cpu;
use async_trait::async_trait;
use common::{block_on, builder, in_ram};
use futures_lite::StreamExt;

const NOTES: [&str; 3] =
    ["Alice lives in Denver. She works at Boeing.", "Bob's locker code is 4817.", "Maria lives in Paris."];

const QUESTIONS: [(&str, &str); 3] = [
    ("Where does Alice live?", "Alice lives in Denver."),
    ("What is Bob's locker code?", "Bob's locker code is 4817."),
    ("Where does Maria live?", "Maria lives in Paris."),
];

/// The demo model on a backend that fails when it is told to. One test at a time uses it.
struct Failing {
    probe: Probe<Cpu>,
    model: Arc<Transformer<Probe<Cpu>>>,
}

fn failing() -> MutexGuard<'static, Failing> {
    static FAILING: std::sync::LazyLock<Mutex<Failing>> = std::sync::LazyLock::new(|| {
        let probe = Probe::new(Cpu::with_threads(1).unwrap());
        let model = Transformer::load(&amem_demo::files(), probe.clone(), Options::default()).unwrap();
        Mutex::new(Failing { probe, model: Arc::new(model) })
    });
    FAILING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Failing {
    /// A memory of the notes, none of which is computed so far.
    async fn memory(&self) -> Memory {
        let memory = Memory::builder(Arc::clone(&self.model) as Arc<dyn amem_core::Model>).build().unwrap();
        memory.remember_all("me", NOTES).await.unwrap();
        memory
    }

    /// Calls of the backend that come one by one as far as `last`, spread over all that happens in between.
    fn points(&self, last: usize, count: usize) -> impl Iterator<Item = usize> {
        (1..=last).step_by(last.div_ceil(count).max(1))
    }

    /// How many calls of the backend something takes.
    fn calls(&self) -> usize {
        self.probe.take_calls().len()
    }
}

async fn answers(memory: &Memory, (question, answer): (&str, &str), case: &str) {
    assert_eq!(memory.ask("me", question).await.unwrap().text, answer, "{case}");
}

#[test]
fn a_question_after_one_that_the_model_failed_at_is_answered() {
    let failing = failing();
    block_on(async {
        // What a model computes once is computed by now.
        answers(&failing.memory().await, QUESTIONS[0], "nothing fails").await;
        let memory = failing.memory().await;
        failing.calls();
        answers(&memory, QUESTIONS[0], "nothing fails").await;
        let calls = failing.calls();
        for nth in failing.points(calls, 30) {
            let memory = failing.memory().await;
            failing.probe.fail_at(nth);
            let failed = memory.ask("me", QUESTIONS[0].0).await;
            failing.probe.fail_at(0);
            let case = format!("call {nth} of {calls} failed");
            assert!(matches!(failed, Err(Error::Model(_))), "{case}: {failed:?}");
            answers(&memory, QUESTIONS[0], &case).await;
            answers(&memory, QUESTIONS[1], &case).await;
        }
    });
}

#[test]
fn memories_that_the_model_failed_to_compute_are_computed_by_the_next_call() {
    let failing = failing();
    block_on(async {
        failing.memory().await.prefill("me", |_, _| {}).await.unwrap();
        failing.calls();
        let expected = failing.memory().await.prefill("me", |_, _| {}).await.unwrap();
        let calls = failing.calls();
        for nth in failing.points(calls, 12) {
            let memory = failing.memory().await;
            failing.probe.fail_at(nth);
            let failed = memory.prefill("me", |_, _| {}).await;
            failing.probe.fail_at(0);
            assert!(matches!(failed, Err(Error::Model(_))), "call {nth} of {calls} failed: {failed:?}");
            let again = memory.prefill("me", |_, _| {}).await.unwrap();
            assert!(again.prefilled > 0, "call {nth}: what failed is not held");
            assert!(again.prefilled <= expected.prefilled, "call {nth}");
            assert_eq!(memory.prefill("me", |_, _| {}).await.unwrap().prefilled, 0, "call {nth}: all is held now");
            answers(&memory, QUESTIONS[1], &format!("after call {nth} failed")).await;
        }
    });
}

#[test]
fn a_session_goes_on_after_a_turn_that_the_model_failed_at() {
    let failing = failing();
    for conversation in [false, true] {
        block_on(async {
            let memory = failing.memory().await;
            memory.prefill("me", |_, _| {}).await.unwrap();
            let options = || SessionOptions::default().conversation(conversation);
            let mut session = memory.session("me", options()).unwrap();
            session.ask(QUESTIONS[0].0).await.unwrap();
            failing.calls();
            session.ask(QUESTIONS[1].0).await.unwrap();
            let calls = failing.calls();
            for nth in failing.points(calls, 12) {
                let mut session = memory.session("me", options()).unwrap();
                session.ask(QUESTIONS[0].0).await.unwrap();
                failing.probe.fail_at(nth);
                let failed = session.ask(QUESTIONS[1].0).await;
                failing.probe.fail_at(0);
                let case = format!("conversation {conversation}, call {nth} of {calls} failed");
                assert!(matches!(failed, Err(Error::Model(_))), "{case}: {failed:?}");
                assert_eq!(session.ask(QUESTIONS[2].0).await.unwrap().text, QUESTIONS[2].1, "{case}");
                assert_eq!(session.ask(QUESTIONS[0].0).await.unwrap().text, QUESTIONS[0].1, "{case}");
            }
        });
    }
}

/// Asks all questions of a memory at once, some of them more than once.
fn ask_at_once(memory: &Memory) -> Vec<(&'static str, Result<String, Error>)> {
    let ask = |index: usize| {
        let (question, answer) = QUESTIONS[index % QUESTIONS.len()];
        let repair = if index.is_multiple_of(2) { Repair::default() } else { Repair::All };
        (answer, block_on(memory.ask("me", Ask::new(question).repair(repair))).map(|answer| answer.text))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|index| scope.spawn(move || ask(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn questions_that_come_at_once_are_answered_as_if_alone() {
    let memory = in_ram();
    block_on(memory.remember_all("me", NOTES)).unwrap();
    // With nothing computed at first, and with all of it.
    for _ in 0..3 {
        for (expected, found) in ask_at_once(&memory) {
            assert_eq!(found.unwrap(), expected);
        }
    }
}

#[test]
fn questions_that_come_at_once_fail_or_are_answered_right_when_the_model_fails() {
    let failing = failing();
    for nth in [1, 20, 90, 200, 500, 900, 1500] {
        let memory = block_on(failing.memory());
        failing.probe.fail_at(nth);
        let found = ask_at_once(&memory);
        failing.probe.fail_at(0);
        for (expected, found) in found {
            match found {
                Ok(found) => assert_eq!(found, expected, "call {nth} failed"),
                Err(error) => assert!(matches!(error, Error::Model(_)), "call {nth} failed: {error}"),
            }
        }
        for (expected, found) in ask_at_once(&memory) {
            assert_eq!(found.unwrap(), expected, "after call {nth} failed");
        }
    }
}

#[test]
fn a_dropped_answer_stops_the_work_and_the_next_one_is_right() {
    block_on(async {
        let memory = in_ram();
        memory.remember_all("me", NOTES).await.unwrap();
        for heard in 0..6 {
            let mut stream = memory.ask_stream("me", QUESTIONS[0].0).await.unwrap();
            for _ in 0..heard {
                assert!(matches!(stream.next().await.unwrap().unwrap(), Event::Delta(_) | Event::Done(_)));
            }
            // One that is asked meanwhile is not disturbed.
            let other = memory.ask_stream("me", QUESTIONS[1].0).await.unwrap();
            drop(stream);
            assert_eq!(other.answer().await.unwrap().text, QUESTIONS[1].1, "{heard} events were heard");
            answers(&memory, QUESTIONS[0], "the same question again").await;
            let deadline = Instant::now() + Duration::from_secs(20);
            while memory.engine().stats().running > 0 {
                assert!(Instant::now() < deadline, "the dropped answer goes on");
                std::thread::yield_now();
            }
        }
    });
}

/// A store whose chunks were lost when they are used, for the first few that it gives.
#[derive(Default)]
struct Fading {
    inner: RamStore,
    lost: AtomicUsize,
    is_read_only: AtomicBool,
}

impl Fading {
    fn check(&self) -> Result<()> {
        let refused = || Error::ReadOnly { what: "the store".to_owned(), reason: "another process writes".to_owned() };
        if self.is_read_only.load(Relaxed) { Err(refused()) } else { Ok(()) }
    }
}

/// KV that is not there any more.
struct Lost(Encoding, usize, ChunkId);

impl KvData for Lost {
    fn encoding(&self) -> Encoding {
        self.0
    }

    fn size(&self) -> usize {
        self.1
    }

    fn layer(&self, _: usize) -> Result<Cow<'_, [u8]>> {
        Err(Error::DamagedKv { chunk: self.2, reason: "somebody cut the file".to_owned() })
    }
}

#[async_trait]
impl KvStore for Fading {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let mut found = self.inner.get_many(ids).await?;
        for chunk in found.iter_mut().flatten() {
            if self.lost.fetch_update(Relaxed, Relaxed, |lost| lost.checked_sub(1)).is_ok() {
                let data = Lost(chunk.encoding(), chunk.size(), chunk.id());
                *chunk = chunk.clone().with_data(Arc::new(data))?;
            }
        }
        Ok(found)
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        self.check()?;
        self.inner.put(chunks).await
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        self.check()?;
        self.inner.delete(ids).await
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        self.inner.contains_many(ids).await
    }

    async fn stats(&self) -> StoreStats {
        self.inner.stats().await
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        self.inner.page(after, limit).await
    }
}

/// A store whose puts wait while somebody holds them back.
#[derive(Default)]
struct HeldBack {
    inner: RamStore,
    puts: Mutex<()>,
}

#[async_trait]
impl KvStore for HeldBack {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        self.inner.get_many(ids).await
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        drop(self.puts.lock().unwrap());
        self.inner.put(chunks).await
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        self.inner.delete(ids).await
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        self.inner.contains_many(ids).await
    }

    async fn stats(&self) -> StoreStats {
        self.inner.stats().await
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        self.inner.page(after, limit).await
    }
}

#[test]
fn kv_that_is_written_back_after_another_server_forgot_its_text_does_not_stay() {
    let (server, ledger) = (Arc::new(HeldBack::default()), Arc::new(RamLedger::new()));
    let open = || {
        let ram = Tier::new(Arc::new(RamStore::default()), 64 << 20);
        let tiers = vec![ram, Tier::shared(server.clone()).write(WriteMode::Back)];
        let kv = Arc::new(block_on(Tiered::open(tiers)).unwrap());
        builder().kv(kv).ledger(ledger.clone()).build().unwrap()
    };
    let (one, other) = (open(), open());
    let held_back = server.puts.lock().unwrap();
    block_on(async {
        let id = other.remember("me", NOTES[0]).await.unwrap().record.id;
        other.remember("me", NOTES[1]).await.unwrap();
        other.ask("me", QUESTIONS[0].0).await.unwrap();
        other.ask("me", QUESTIONS[1].0).await.unwrap();
        assert_eq!(server.inner.stats().await.chunks, 0, "its KV is still to be written");
        one.forget("me", id).await.unwrap();
        let now = Timestamp::now();
        assert!(ledger.pending_deletions(now).await.unwrap().is_empty(), "the deletion is done and confirmed");
    });
    drop(held_back);
    block_on(async {
        other.kv().sync().await.unwrap();
        let owned = server.inner.owned(OwnerId::of("me")).await.unwrap();
        assert_eq!(owned.len(), 1, "of what was forgotten nothing is left, and the rest is there");
        assert_eq!(server.inner.stats().await.chunks, 2, "and so is the system line's");
    });
}

#[test]
fn kv_that_is_lost_between_being_found_and_being_used_is_computed_again() {
    let store = Arc::new(Fading::default());
    let memory = builder().kv(Arc::clone(&store) as Arc<dyn KvStore>).build().unwrap();
    block_on(async {
        memory.remember_all("me", NOTES).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        for (question, expected) in QUESTIONS {
            store.lost.store(1, Relaxed);
            let answer = memory.ask("me", question).await.unwrap();
            assert_eq!(answer.text, expected);
            assert!(store.lost.load(Relaxed) == 0 && answer.usage.missed > 0, "it was given, lost and computed again");
        }
        let streamed = async |mut stream: AnswerStream| {
            let mut text = String::new();
            loop {
                match stream.next().await.unwrap().unwrap() {
                    Event::Delta(delta) => text += &delta.text,
                    Event::Done(answer) => return (text, answer),
                    other => panic!("{other:?}"),
                }
            }
        };
        for (question, expected) in QUESTIONS {
            store.lost.store(1, Relaxed);
            let (text, answer) = streamed(memory.ask_stream("me", question).await.unwrap()).await;
            assert_eq!((text.trim(), &*answer.text), (expected, expected));
            assert!(store.lost.load(Relaxed) == 0 && answer.usage.missed > 0, "it was given, lost and computed again");
        }
        for conversation in [false, true] {
            let options = SessionOptions::default().conversation(conversation);
            let mut session = memory.session("me", options).unwrap();
            store.lost.store(2, Relaxed);
            assert_eq!(session.ask(QUESTIONS[1].0).await.unwrap().text, QUESTIONS[1].1);
            assert_eq!(store.lost.load(Relaxed), 0);
            let mut session = memory.session("me", SessionOptions::default()).unwrap();
            store.lost.store(2, Relaxed);
            let (text, _) = streamed(session.ask_stream(QUESTIONS[0].0).await.unwrap()).await;
            assert_eq!((text.trim(), store.lost.load(Relaxed)), (QUESTIONS[0].1, 0));
            assert_eq!(session.ask(QUESTIONS[2].0).await.unwrap().text, QUESTIONS[2].1, "the session goes on");
        }
    });
}

#[test]
fn kv_that_a_store_loses_and_cannot_delete_is_computed_for_each_question() {
    let store = Arc::new(Fading::default());
    let memory = builder().kv(Arc::clone(&store) as Arc<dyn KvStore>).build().unwrap();
    block_on(async {
        memory.remember_all("me", NOTES).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        store.is_read_only.store(true, Relaxed);
        store.lost.store(usize::MAX, Relaxed);
        for (question, expected) in QUESTIONS {
            assert_eq!(memory.ask("me", question).await.unwrap().text, expected);
        }
    });
}

#[test]
fn kv_that_is_lost_each_time_is_not_taken_from_the_store_in_the_end() {
    let store = Arc::new(Fading::default());
    let memory = builder().kv(Arc::clone(&store) as Arc<dyn KvStore>).build().unwrap();
    block_on(async {
        memory.remember_all("me", NOTES).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        store.lost.store(usize::MAX, Relaxed);
        assert_eq!(memory.ask("me", QUESTIONS[0].0).await.unwrap().text, QUESTIONS[0].1);
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        assert_eq!(session.ask(QUESTIONS[0].0).await.unwrap().text, QUESTIONS[0].1);
        store.lost.store(0, Relaxed);
        assert_eq!(memory.ask("me", QUESTIONS[0].0).await.unwrap().text, QUESTIONS[0].1);
        assert_eq!(session.ask(QUESTIONS[0].0).await.unwrap().text, QUESTIONS[0].1);
    });
}
