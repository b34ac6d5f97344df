//! How many texts can be remembered in a second, and how soon are they recalled?
//!
//! Remembering checks that a context can hold the text and writes the ledger; the KV of a text is computed when it is
//! first needed and is no part of this. The floor in RAM is counting tokens; on disk it is the commit, one for each call:
//! `a hundred` shows what is left when that is shared. Recalling brings the index up to date first, so
//! `remember, recall` is what an agent waits for that asks right after it was told.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::sync::Arc;

use amem_benches::{QUESTION, Race, note};
use amem_core::transformer::{Options, Transformer};
use amem_core::{Ledger, Memory, Model, RamLedger, Recall};
use amem_cpu::Cpu;
use amem_store::SqliteLedger;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::future::block_on;

const STANDING: usize = 10_000;
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

/// The demo model stands in for any other: only its tokenizer has work to do.
fn memory(ledger: Arc<dyn Ledger>) -> Memory {
    let backend = Cpu::with_threads(1).expect("a thread can be started");
    let model = Transformer::load(&amem_demo::files(), backend, Options::default()).expect("the demo model loads");
    let model: Arc<dyn Model> = Arc::new(model);
    Memory::builder(model).ledger(ledger).build().expect("the template has a system line")
}

fn found(memory: &Memory) -> usize {
    block_on(memory.recall("bench", Recall::new(QUESTION).k(RECALLED))).expect("the index works").len()
}

criterion_group!(benches, remember, recall);
criterion_main!(benches);
