//! How many texts can be remembered in a second, and how soon are they recalled?
//!
//! Remembering checks that a context can hold the text and writes the ledger; the KV of a text is computed when it is
//! first needed and is no part of this. The floor in RAM is counting tokens; on disk it is the commit, one for each call:
//! `a hundred` shows what is left when that is shared. Recalling brings the index up to date first, so
//! `remember, recall` is what an agent waits for that asks right after it was told.
//!
//! `open` is what the first question of a process waits for: opening the ledger, and recalling from 100,000 memories. Its
//! floor is reading the saved index, about 8 MB for words and 85 MB for vectors of 384 numbers.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::sync::Arc;

use amem_benches::{QUESTION, Race, note};
use amem_core::recall::{Dense, Embedder, Hybrid, Lexical};
use amem_core::transformer::{Options, Transformer};
use amem_core::{
    Ledger, Memory, Model, Namespace, RamLedger, Recall, RecallQuery, Recalled, Recaller, Record, RecordId, Result,
};
use amem_cpu::Cpu;
use amem_store::SqliteLedger;
use async_trait::async_trait;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::future::block_on;

const STANDING: usize = 10_000;
const MANY: usize = 100_000;
const DIMENSIONS: usize = 384;
const RECALLED: usize = 8;

fn remember(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let sqlite = SqliteLedger::open(dir.path().join("ledger.sqlite")).expect("the ledger can be opened");
    let stores = [("RAM", memory(Arc::new(RamLedger::default()))), ("SQLite", memory(Arc::new(sqlite)))];
    let mut numbers = STANDING..;
    let mut next = || note(numbers.next().expect("numbers do not end"));

    let mut race = Race::new(criterion, "remember/one");
    race.throughput(Throughput::Elements(1));
    let (_, some) = &stores[0];
    race.lane_with("count tokens", &mut next, |text| some.tokens(&text).expect("a note can be encoded"));
    for (name, memory) in &stores {
        race.lane_with(name, &mut next, |text| block_on(memory.remember("bench", text)).expect("a note is remembered"));
    }
    race.finish();

    let mut race = Race::new(criterion, "remember/a hundred");
    race.throughput(Throughput::Elements(100));
    for (name, memory) in &stores {
        let mut hundred = || (0..100).map(|_| next()).collect::<Vec<_>>();
        race.lane_with(name, &mut hundred, |texts| {
            block_on(memory.remember_all("bench", texts)).expect("notes are remembered")
        });
    }
    race.finish();
}

fn recall(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let sqlite = SqliteLedger::open(dir.path().join("ledger.sqlite")).expect("the ledger can be opened");
    let stores = [("RAM", memory(Arc::new(RamLedger::default()))), ("SQLite", memory(Arc::new(sqlite)))];
    for (_, memory) in &stores {
        block_on(memory.remember_all("bench", (0..STANDING).map(note))).expect("notes are remembered");
        assert_eq!(found(memory), RECALLED);
    }

    let mut race = Race::new(criterion, "recall/10000");
    for (name, memory) in &stores {
        race.lane(name, || found(memory));
    }
    race.finish();

    let mut numbers = STANDING..;
    let mut next = || note(numbers.next().expect("numbers do not end"));
    let mut race = Race::new(criterion, "remember, recall/10000");
    for (name, memory) in &stores {
        race.lane_with(name, &mut next, |text| {
            block_on(memory.remember("bench", text)).expect("a note is remembered");
            found(memory)
        });
    }
    race.finish();
}

fn open(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (path, model) = (dir.path().join("ledger.sqlite"), model());
    let open = |recaller: Arc<dyn Recaller>| {
        let ledger = SqliteLedger::open(&path).expect("the ledger can be opened");
        let memory = Memory::builder(Arc::clone(&model)).ledger(Arc::new(ledger)).recaller(recaller);
        memory.build().expect("the template has a system line")
    };
    let dense = || Arc::new(Dense::new(Noise, DIMENSIONS));
    let hybrid = || Arc::new(Hybrid::new(vec![Arc::new(Lexical::default()), dense()]));
    let memory = open(Arc::new(Lexical::default()));
    block_on(memory.remember_all("bench", (0..MANY).map(note))).expect("notes are remembered");
    // Each is indexed once, and saved.
    assert_eq!(found(&memory), RECALLED);
    drop(memory);
    found(&open(dense()));
    found(&open(hybrid()));

    let mut race = Race::new(criterion, "open/100000");
    race.lane("from the records", || found(&open(Arc::new(Unsaved(Lexical::default())))));
    race.lane("words", || found(&open(Arc::new(Lexical::default()))));
    race.lane("vectors", || found(&open(dense())));
    race.lane("words and vectors", || found(&open(hybrid())));
    race.finish();

    let mut race = Race::new(criterion, "recall/100000");
    for (name, memory) in [("words", open(Arc::new(Lexical::default()))), ("vectors", open(dense()))] {
        race.lane(name, || found(&memory));
    }
    race.finish();
}

/// Vectors without meaning, at no cost.
struct Noise;

#[async_trait]
impl Embedder for Noise {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let vector = |text: &&str| {
            let mut state = text
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            let next = |_| {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (state >> 40) as f32 / (1 << 24) as f32 - 0.25
            };
            (0..DIMENSIONS).map(next).collect()
        };
        Ok(texts.iter().map(vector).collect())
    }

    fn name(&self) -> Option<&str> {
        Some("noise")
    }
}

/// An index that is never saved.
struct Unsaved(Lexical);

#[async_trait]
impl Recaller for Unsaved {
    async fn index(&self, records: &[Record]) -> Result<()> {
        self.0.index(records).await
    }

    async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
        self.0.remove(namespace, ids).await
    }

    async fn clear(&self, namespace: &Namespace) -> Result<()> {
        self.0.clear(namespace).await
    }

    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
        self.0.recall(namespace, query).await
    }
}

/// The demo model stands in for any other: only its tokenizer has work to do.
fn model() -> Arc<dyn Model> {
    let backend = Cpu::with_threads(1).expect("a thread can be started");
    Arc::new(Transformer::load(&amem_demo::files(), backend, Options::default()).expect("the demo model loads"))
}

fn memory(ledger: Arc<dyn Ledger>) -> Memory {
    Memory::builder(model()).ledger(ledger).build().expect("the template has a system line")
}

fn found(memory: &Memory) -> usize {
    block_on(memory.recall("bench", Recall::new(QUESTION).k(RECALLED))).expect("the index works").len()
}

criterion_group!(benches, remember, recall, open);
criterion_main!(benches);
