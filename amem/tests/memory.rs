//! What a user of `Memory` relies on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use amem_core::{
    Ask, Error, Event, Finish, Generation, Ledger, NewRecord, Outcome, Query, RamLedger, RecordId, Repair, Sampling,
    State, Timestamp, Usage,
};
use common::{block_on, builder, in_ram, on_disk};
use futures_lite::StreamExt;

const NOTES: [&str; 3] =
    ["Alice lives in Denver. She works at Boeing.", "Bob's locker code is 4817.", "Maria lives in Paris."];

#[test]
fn a_remembered_fact_answers_a_question_and_its_kv_is_computed_once() {
    block_on(async {
        let memory = in_ram();
        memory.remember_all("me", NOTES).await.unwrap();
        let first = memory.ask("me", "Where does Alice live?").await.unwrap();
        assert_eq!(first.text, "Alice lives in Denver.");
        assert!(matches!(first.finish, Finish::EndToken(_)));
        let second = memory.ask("me", "Where does Alice live?").await.unwrap();
        assert_eq!(second.text, first.text);
        let question = memory.model().chat().encode("Where does Alice live?").unwrap().len() + 2;
        assert_eq!(second.usage.prefilled, question, "only the question and the marks around it are computed");
        assert!(first.usage.prefilled > second.usage.prefilled);
        assert_eq!(
            (first.usage.reused(), second.usage.missed),
            (0, 0),
            "what is computed in a call is not reused in it"
        );
        let in_place = |usage: Usage| usage.cached + usage.resident;
        assert_eq!(in_place(first.usage), in_place(second.usage), "the system line stands in every context");
        assert_eq!(second.recalled.len(), memory.recall("me", "Where does Alice live?").await.unwrap().len());
    });
}

#[test]
fn prefilling_ahead_leaves_nothing_but_the_question_and_reports_its_progress() {
    block_on(async {
        let memory = in_ram();
        memory.remember_all("me", NOTES).await.unwrap();
        let mut heard = Vec::new();
        let usage = memory.prefill("me", |done, of| heard.push((done, of))).await.unwrap();
        let tokens: usize = NOTES.iter().map(|note| memory.tokens(note).unwrap().len()).sum();
        assert_eq!(usage.prefilled, tokens + memory.layout().prefix.len());
        assert_eq!(heard.last(), Some(&(3, 3)));
        assert_eq!(memory.prefill("me", |_, _| {}).await.unwrap().prefilled, 0);
        let answer = memory.ask("me", "What is Bob's locker code?").await.unwrap();
        assert_eq!(answer.text, "Bob's locker code is 4817.");
        assert_eq!(answer.usage.work_prefilling as usize, answer.usage.prefilled * 5);
    });
}

#[test]
fn an_updated_fact_answers_anew_and_the_old_text_stays_in_its_history_only() {
    block_on(async {
        let memory = in_ram();
        let bob = memory.remember("me", NOTES[1]).await.unwrap().record;
        memory.ask("me", "What is Bob's locker code?").await.unwrap();
        memory.update("me", bob.id, "Bob's locker code is 2096.").await.unwrap();
        let answer = memory.ask("me", "What is Bob's locker code?").await.unwrap();
        assert_eq!(answer.text, "Bob's locker code is 2096.");
        let texts: Vec<String> = memory.history("me", bob.id).await.unwrap().into_iter().map(|v| v.text).collect();
        assert_eq!(texts, [NOTES[1], "Bob's locker code is 2096."]);
    });
}

#[test]
fn a_key_supersedes_and_the_past_can_be_asked_for() {
    block_on(async {
        let memory = in_ram();
        let keyed = |text: &str| NewRecord::new(text).key("home");
        let old = memory.remember("me", keyed("Alice lives in Denver.")).await.unwrap().record;
        let then = Timestamp::now();
        std::thread::sleep(Duration::from_millis(5));
        let new = memory.remember("me", keyed("Alice lives in Oslo.")).await.unwrap();
        assert_eq!(new.outcome, Outcome::Superseded(old.id));
        assert_eq!(memory.ask("me", "Where does Alice live?").await.unwrap().text, "Alice lives in Oslo.");
        let past = memory.list("me", Query::At(then)).await.unwrap();
        assert_eq!(past.iter().map(|record| record.text.as_str()).collect::<Vec<_>>(), ["Alice lives in Denver."]);
    });
}

#[test]
fn an_exact_duplicate_is_one_record_and_says_so() {
    block_on(async {
        let memory = in_ram();
        let first = memory.remember("me", NOTES[0]).await.unwrap();
        let again = memory.remember("me", NOTES[0]).await.unwrap();
        assert!(!first.is_duplicate() && again.is_duplicate());
        assert_eq!(first.record.id, again.record.id);
    });
}

#[test]
fn a_forgotten_fact_is_in_no_answer_and_its_kv_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let memory = on_disk(dir.path());
        let bob = memory.remember("me", "Bob's locker code is 4817.").await.unwrap().record;
        memory.remember("me", NOTES[0]).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        let held = memory.kv().stats().await.chunks;
        let forgotten = memory.forget("me", bob.id).await.unwrap();
        assert!(matches!(forgotten.state, State::Forgotten { .. }) && forgotten.text.is_empty());
        assert_eq!(memory.kv().stats().await.chunks, held - 1);
        let answer = memory.ask("me", "What is Bob's locker code?").await.unwrap();
        assert!(answer.recalled.iter().all(|recollection| recollection.record.id != bob.id));
        assert!(!answer.text.contains("4817"), "{}", answer.text);
        let found: Vec<_> = files(dir.path()).into_iter().filter(|bytes| contains(bytes, b"4817")).collect();
        assert!(found.is_empty(), "the text is still in a file");
    });
}

fn files(dir: &std::path::Path) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(std::fs::read(path).unwrap()) }
    }
    all
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

#[test]
fn kv_that_is_older_than_the_ledger_is_deleted_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let open = || {
            let kv = Arc::new(amem_store::open(dir.path()).unwrap().kv);
            builder().kv(kv).build().unwrap()
        };
        let memory = open();
        memory.remember("me", NOTES[1]).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        drop(memory);
        let memory = open();
        let bob = memory.remember("me", NOTES[1]).await.unwrap().record;
        assert_eq!(memory.ask("me", "What is Bob's locker code?").await.unwrap().usage.missed, 0);
        let held = memory.kv().stats().await.chunks;
        memory.forget("me", bob.id).await.unwrap();
        assert_eq!(memory.kv().stats().await.chunks, held - 1);
    });
}

#[test]
fn kv_on_disk_answers_after_a_restart_without_prefill() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let memory = on_disk(dir.path());
        memory.remember_all("me", NOTES).await.unwrap();
        let before = memory.ask("me", "Where does Alice live?").await.unwrap();
        drop(memory);
        let after = on_disk(dir.path()).ask("me", "Where does Alice live?").await.unwrap();
        assert_eq!(after.text, before.text);
        assert_eq!(after.usage.cached, before.usage.cached);
        assert_eq!(after.usage.work_prefilling as usize, 5 * after.usage.prefilled);
        assert!(after.usage.prefilled < before.usage.prefilled);
    });
}

#[test]
fn damaged_kv_is_rebuilt_and_the_answer_stays_right() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let memory = on_disk(dir.path());
        memory.remember_all("me", NOTES).await.unwrap();
        let before = memory.ask("me", "Where does Alice live?").await.unwrap();
        drop(memory);
        for entry in std::fs::read_dir(dir.path().join("kv")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            for at in (0..bytes.len()).step_by(997) {
                bytes[at] ^= 0x55;
            }
            std::fs::write(&path, bytes).unwrap();
        }
        let memory = on_disk(dir.path());
        let after = memory.ask("me", "Where does Alice live?").await.unwrap();
        assert_eq!(after.text, before.text);
        assert_eq!(after.usage.prefilled, before.usage.prefilled, "all of it is computed again");
    });
}

#[test]
fn another_processs_writes_are_seen_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (one, two) = (on_disk(dir.path()), on_disk(dir.path()));
        let alice = one.remember("me", NOTES[0]).await.unwrap().record;
        assert_eq!(two.ask("me", "Where does Alice live?").await.unwrap().text, "Alice lives in Denver.");
        two.update("me", alice.id, "Alice lives in Oslo.").await.unwrap();
        assert_eq!(one.ask("me", "Where does Alice live?").await.unwrap().text, "Alice lives in Oslo.");
        two.forget("me", alice.id).await.unwrap();
        assert!(one.recall("me", "Where does Alice live?").await.unwrap().is_empty());
        one.settle().await;
        let prefix_alone = one.kv().stats().await.chunks;
        assert_eq!(prefix_alone, 1, "the process that writes to the store deletes what the other forgot");
        two.remember("me", NOTES[1]).await.unwrap();
        assert_eq!(one.list("me", Query::At(Timestamp::now())).await.unwrap().len(), 1);
    });
}

#[test]
fn namespaces_know_nothing_of_each_other() {
    block_on(async {
        let memory = in_ram();
        memory.remember("me", NOTES[1]).await.unwrap();
        memory.ask("me", "What is Bob's locker code?").await.unwrap();
        let answer = memory.ask("you", "What is Bob's locker code?").await.unwrap();
        assert!(answer.recalled.is_empty() && !answer.text.contains("4817"));
        let added = memory.remember("you", NOTES[1]).await.unwrap();
        assert!(!added.is_duplicate());
        let answer = memory.ask("you", "What is Bob's locker code?").await.unwrap();
        let tokens = memory.tokens(NOTES[1]).unwrap().len();
        assert!(answer.usage.prefilled > tokens, "the KV of one namespace is not used in another");
    });
}

#[test]
fn an_expired_record_is_in_no_answer() {
    block_on(async {
        let ledger = Arc::new(RamLedger::default());
        let memory = builder().ledger(Arc::clone(&ledger) as Arc<dyn Ledger>).build().unwrap();
        let soon = Timestamp::now().after(Duration::from_millis(300));
        let new = NewRecord::new(NOTES[1]).expires_at(soon);
        memory.remember("me", new).await.unwrap();
        assert_eq!(memory.recall("me", "Bob's locker code").await.unwrap().len(), 1);
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(memory.recall("me", "Bob's locker code").await.unwrap().len(), 0);
    });
}

#[test]
fn a_record_that_had_expired_when_it_was_remembered_is_in_no_answer() {
    block_on(async {
        let memory = in_ram();
        let over = NewRecord::new("Bob's locker code is 1111.").expires_at(Timestamp::now());
        memory.remember_all("me", [over, NewRecord::new(NOTES[1])]).await.unwrap();
        let answer = memory.ask("me", "What is Bob's locker code?").await.unwrap();
        assert_eq!(answer.text, "Bob's locker code is 4817.");
        assert_eq!(answer.recalled.iter().map(|told| &*told.record.text).collect::<Vec<_>>(), [NOTES[1]]);
        memory.prefill("me", |_, _| {}).await.unwrap();
        assert_eq!(memory.stats("me").await.unwrap().chunks, 1, "nor is its KV computed");
    });
}

#[test]
fn a_stream_brings_the_same_answer_in_pieces() {
    block_on(async {
        let memory = in_ram();
        memory.remember_all("me", NOTES).await.unwrap();
        let whole = memory.ask("me", "Where does Alice live?").await.unwrap();
        let mut stream = memory.ask_stream("me", "Where does Alice live?").await.unwrap();
        let (mut text, mut pieces, mut done) = (String::new(), 0, None);
        while let Some(event) = stream.next().await {
            match event.unwrap() {
                Event::Delta(delta) => {
                    text += &delta.text;
                    pieces += 1;
                }
                Event::Done(answer) => done = Some(answer),
                _ => {}
            }
        }
        assert!(pieces > 2);
        assert_eq!(text.trim(), whole.text);
        assert_eq!(done.unwrap().text, whole.text);
    });
}

#[test]
fn generation_stops_where_it_is_told_to() {
    block_on(async {
        let memory = in_ram();
        memory.remember_all("me", NOTES).await.unwrap();
        let ask = |generation| Ask::new("Where does Alice live?").generation(generation);
        let short = Generation::default().max_tokens(2);
        let answer = memory.ask("me", ask(short)).await.unwrap();
        assert_eq!((answer.finish, answer.usage.generated), (Finish::Length, 2));
        let stop = Generation::default().stop([" Denver"]);
        let answer = memory.ask("me", ask(stop)).await.unwrap();
        assert_eq!((answer.text.as_str(), answer.finish), ("Alice lives in", Finish::StopText(" Denver".into())));
    });
}

#[test]
fn sampling_is_reproducible_by_its_seed() {
    block_on(async {
        let memory = in_ram();
        memory.remember_all("me", NOTES).await.unwrap();
        let ask = |seed| {
            let mut sampling = Sampling::default();
            (sampling.temperature, sampling.seed) = (6.0, seed);
            Ask::new("Who are you?").generation(Generation::default().sampling(sampling))
        };
        let mut texts = Vec::new();
        for seed in [1, 1, 2, 3, 4] {
            texts.push(memory.ask("me", ask(seed)).await.unwrap().text);
        }
        assert_eq!(texts[0], texts[1]);
        assert!(texts.iter().any(|text| *text != texts[0]));
    });
}

#[test]
fn every_repair_answers_and_says_what_it_cost() {
    block_on(async {
        let memory = in_ram();
        memory.remember_all("me", NOTES).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        for repair in [Repair::None, Repair::default(), Repair::FirstRows(2), Repair::All] {
            let ask = Ask::new("Where does Alice live?").repair(repair.clone());
            let answer = memory.ask("me", ask).await.unwrap();
            assert_eq!(answer.text, "Alice lives in Denver.", "{repair:?}");
            assert_eq!(answer.usage.work_repairing as usize, 5 * answer.usage.repaired);
        }
    });
}

#[test]
fn bad_input_is_a_typed_error_and_changes_nothing() {
    block_on(async {
        let memory = in_ram();
        let long = "pizza ".repeat(3000);
        assert!(matches!(memory.remember("me", "  \n").await, Err(Error::Empty { .. })));
        assert!(matches!(memory.remember("me", long.as_str()).await, Err(Error::TooLong { .. })));
        assert!(matches!(memory.remember_all("me", [NOTES[0], ""]).await, Err(Error::Empty { .. })));
        assert!(matches!(memory.remember("", "x").await, Err(Error::BadValue { .. })));
        assert!(matches!(memory.ask("me", " ").await, Err(Error::Empty { .. })));
        assert!(matches!(memory.ask("me", long.as_str()).await, Err(Error::TooLong { .. })));
        assert!(matches!(memory.forget("me", RecordId::new()).await, Err(Error::UnknownRecord { .. })));
        assert!(memory.list("me", Query::All).await.unwrap().is_empty());
        let alice = memory.remember("me", NOTES[0]).await.unwrap().record;
        let bob = memory.remember("me", NOTES[1]).await.unwrap().record;
        assert!(matches!(memory.update("me", alice.id, "").await, Err(Error::Empty { .. })));
        assert!(matches!(memory.update("me", alice.id, NOTES[1]).await, Err(Error::SameText { .. })));
        memory.forget("me", bob.id).await.unwrap();
        assert!(matches!(memory.update("me", bob.id, "x").await, Err(Error::NotActive { .. })));
        let mut bad = Sampling::default();
        bad.temperature = -1.0;
        let ask = Ask::new("Why?").generation(Generation::default().sampling(bad));
        assert!(memory.ask("me", ask).await.is_err());
    });
}

#[test]
fn more_memories_than_a_context_holds_still_give_an_answer() {
    block_on(async {
        let memory = in_ram();
        let many: Vec<String> =
            (0..120).map(|i| format!("Alice likes dish {i}. {}", "It was fine. ".repeat(8))).collect();
        memory.remember_all("me", many).await.unwrap();
        let answer = memory.ask("me", Ask::new("Which dish does Alice like?").k(500)).await.unwrap();
        assert!(answer.usage.cached + answer.usage.prefilled > 0);
        assert!(matches!(answer.finish, Finish::EndToken(_)), "there is room for the answer too");
        assert!(answer.recalled.len() > 10 && answer.recalled.len() < 120, "{}", answer.recalled.len());
    });
}
