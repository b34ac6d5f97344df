//! What a server relies on: records with metadata, pages, views of the past, and many callers at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use amem_core::recall::{Dense, Embedder, Hybrid, Language, Lexical};
use amem_core::{
    Ask, Error, Filter, Generation, Ledger, Listing, Memory, Metadata, Namespace, NewRecord, Query, RamStore, Recall,
    RecallQuery, Recalled, Recaller, Record, RecordId, Repair, Result, Tier, Tiered, Timestamp, UsageQuery,
};
use amem_store::SqliteLedger;
use async_trait::async_trait;
use common::{block_on, builder, in_ram, on_disk, world};
use futures_lite::future::poll_once;

fn from(source: &str) -> Metadata {
    Metadata::from_iter([("source", source)])
}

fn texts(found: &[amem_core::Recollection]) -> Vec<&str> {
    found.iter().map(|found| found.record.text.as_str()).collect()
}

#[test]
fn a_filter_is_asked_before_the_best_are_taken() {
    block_on(async {
        let memory = in_ram();
        // Twenty notes fit the question better than the one that passes the filter.
        let better = (0..20).map(|n| NewRecord::new(format!("Alice lives in town {n}.")).metadata(from("chat")));
        memory.remember_all("me", better).await.unwrap();
        let wanted = NewRecord::new("Alice lives in Denver, as an old letter of hers to a friend says.");
        memory.remember("me", wanted.metadata(from("mail"))).await.unwrap();
        let only_mail = || Recall::new("Where does Alice live?").k(1).filter(Filter::eq("source", "mail"));
        assert!(texts(&memory.recall("me", only_mail()).await.unwrap())[0].contains("Denver"));
        let answer = memory.ask("me", Ask::new("Where does Alice live?").recall(only_mail())).await.unwrap();
        assert_eq!(texts(&answer.recalled).len(), 1);
        assert!(answer.text.contains("Denver"), "{}", answer.text);
        let nothing = Recall::new("Where does Alice live?").filter(Filter::eq("source", "nowhere"));
        assert!(memory.recall("me", nothing).await.unwrap().is_empty());
    });
}

#[test]
fn weak_matches_can_be_left_out() {
    block_on(async {
        let memory = in_ram();
        for text in ["Alice lives in Denver.", "Bob lives near the sea.", "Carl has a cat."] {
            memory.remember("me", text).await.unwrap();
        }
        let all = memory.recall("me", "Where does Alice live?").await.unwrap();
        assert!(all.len() > 1 && all[0].score > all[1].score);
        let best = Recall::new("Where does Alice live?").min_score(all[0].score);
        assert_eq!(memory.recall("me", best).await.unwrap(), all[..1]);
    });
}

#[test]
fn the_past_is_asked_with_the_texts_of_then() {
    block_on(async {
        let memory = in_ram();
        let note = |text: &str| NewRecord::new(text).key("bob's code");
        let told = note("Bob's locker code is 4817.").created_at(Timestamp(1_000));
        memory.remember("me", told).await.unwrap();
        let before = Timestamp(2_000);
        memory.remember("me", note("Bob's locker code is 2096.")).await.unwrap();
        let question = "What is Bob's locker code?";
        assert!(memory.ask("me", question).await.unwrap().text.contains("2096"));
        let then = || Recall::new(question).as_of(before);
        assert_eq!(texts(&memory.recall("me", then()).await.unwrap()), ["Bob's locker code is 4817."]);
        assert!(memory.ask("me", Ask::new(question).recall(then())).await.unwrap().text.contains("4817"));
    });
}

#[test]
fn the_past_is_asked_in_the_language_of_the_recaller() {
    block_on(async {
        let words = Arc::new(Lexical::new(Language::German));
        let memory = builder().recaller(Arc::new(Hybrid::new(vec![words]))).build().unwrap();
        let note = NewRecord::new("Alices Katzen schlafen.").created_at(Timestamp(1_000));
        memory.remember("me", note).await.unwrap();
        let now = memory.recall("me", "Welche Katze?").await.unwrap();
        let then = memory.recall("me", Recall::new("Welche Katze?").as_of(Timestamp(2_000))).await.unwrap();
        assert_eq!((texts(&now), texts(&then)), (vec!["Alices Katzen schlafen."], vec!["Alices Katzen schlafen."]));
    });
}

/// An executor's thread serves others while a text of megabytes becomes tokens.
#[test]
fn long_texts_become_tokens_on_another_thread() {
    block_on(async {
        let (memory, long) = (in_ram(), "Alice lives in Denver. ".repeat(4000));
        let id = memory.remember("me", "Alice lives in Oslo.").await.unwrap().record.id;
        assert!(poll_once(memory.remember("me", &*long)).await.is_none(), "it is waited for");
        assert!(matches!(memory.remember("me", &*long).await, Err(Error::TooLong { what: "memory", .. })));
        assert!(poll_once(memory.update("me", id, &long)).await.is_none());
        assert!(matches!(memory.update("me", id, &long).await, Err(Error::TooLong { what: "memory", .. })));
        assert!(poll_once(memory.ask("me", &*long)).await.is_none());
        assert!(matches!(memory.ask("me", &*long).await, Err(Error::TooLong { what: "question", .. })));
        assert_eq!(memory.count("me").await.unwrap(), 1);
    });
}

#[test]
fn records_come_in_pages_and_are_counted() {
    block_on(async {
        let memory = in_ram();
        let notes = (0..25).map(|n| NewRecord::new(format!("note {n}")).metadata(from(["chat", "mail"][n % 2])));
        memory.remember_all("me", notes).await.unwrap();
        assert_eq!(memory.count("me").await.unwrap(), 25);
        let listing = || Listing::new(Query::At(Timestamp::now())).limit(5).filter(Filter::eq("source", "chat"));
        let (mut seen, mut page) = (Vec::new(), memory.page("me", &listing()).await.unwrap());
        loop {
            seen.extend(page.records.iter().map(|record| record.text.clone()));
            let Some(next) = page.next else { break };
            page = memory.page("me", &listing().after(next)).await.unwrap();
        }
        assert_eq!(seen, (0..25).step_by(2).map(|n| format!("note {n}")).collect::<Vec<_>>());
    });
}

#[test]
fn a_deleted_namespace_leaves_no_text_and_no_kv() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let memory = on_disk(dir.path());
        for owner in ["me", "you"] {
            let added = memory.remember(owner, "Alice lives in Denver.").await.unwrap().record;
            memory.update(owner, added.id, "Alice lives in Oslo.").await.unwrap();
            memory.remember(owner, "Bob's locker code is 4817.").await.unwrap();
            memory.prefill(owner, |_, _| {}).await.unwrap();
        }
        let held = memory.kv().stats().await.chunks;
        assert_eq!(memory.delete_namespace("me").await.unwrap(), 2);
        assert_eq!(memory.kv().stats().await.chunks, held - 2, "the KV of what stood is gone");
        assert_eq!((memory.count("me").await.unwrap(), memory.count("you").await.unwrap()), (0, 2));
        assert!(memory.recall("me", "Alice").await.unwrap().is_empty());
        assert!(memory.ask("you", "Where does Alice live?").await.unwrap().text.contains("Oslo"));
        assert_eq!(memory.delete_namespace("me").await.unwrap(), 0, "there is nothing left");
        memory.remember("me", "Alice lives in Denver.").await.unwrap();
        assert!(memory.ask("me", "Where does Alice live?").await.unwrap().text.contains("Denver"));
    });
}

#[test]
fn many_are_forgotten_together_or_not_at_all() {
    block_on(async {
        let memory = in_ram();
        let added =
            memory.remember_all("me", ["Alice lives in Denver.", "Bob's locker code is 4817.", "Carl has a cat."]);
        let ids: Vec<_> = added.await.unwrap().iter().map(|added| added.record.id).collect();
        memory.prefill("me", |_, _| {}).await.unwrap();
        let held = memory.kv().stats().await.chunks;
        let unknown = amem_core::RecordId::new();
        assert!(matches!(
            memory.forget_many("me", &[ids[0], unknown]).await,
            Err(Error::UnknownRecord { id, .. }) if id == unknown
        ));
        assert_eq!((memory.count("me").await.unwrap(), memory.kv().stats().await.chunks), (3, held));
        memory.forget_many("me", &ids[..2]).await.unwrap();
        assert_eq!((memory.count("me").await.unwrap(), memory.kv().stats().await.chunks), (1, held - 2));
        assert_eq!(memory.get("me", ids[0]).await.unwrap().text, "");
    });
}

#[test]
fn sixty_four_questions_at_once_are_answered_as_each_is_alone() {
    let owners = 4;
    let memory = builder().repair(Repair::All).build().unwrap();
    let alone = builder().repair(Repair::All).build().unwrap();
    let mut questions = Vec::new();
    for owner in 0..owners {
        let (notes, asked) = world(owner, 8);
        for memory in [&memory, &alone] {
            block_on(memory.remember_all(format!("owner {owner}"), notes.clone())).unwrap();
        }
        questions.extend(asked.into_iter().cycle().take(16).map(|(question, _)| (format!("owner {owner}"), question)));
    }
    let ask = |question: &str| Ask::new(question).generation(Generation::default().max_tokens(24));
    let expected: Vec<_> =
        questions.iter().map(|(owner, question)| block_on(alone.ask(owner, ask(question))).unwrap()).collect();
    let before = memory.engine().stats();
    // No thread for each of them: their streams are begun together, and the engine computes them together.
    let streams: Vec<_> =
        questions.iter().map(|(owner, question)| block_on(memory.ask_stream(owner, ask(question))).unwrap()).collect();
    for ((expected, stream), (owner, question)) in expected.iter().zip(streams).zip(&questions) {
        let found = block_on(stream.answer()).unwrap();
        assert_eq!((&found.text, &found.finish), (&expected.text, &expected.finish), "{owner}: {question}");
    }
    let after = memory.engine().stats();
    let (steps, contexts) = (after.steps - before.steps, after.contexts - before.contexts);
    assert!(contexts > 4 * steps, "{contexts} contexts took {steps} steps");
}

#[test]
fn kv_moves_between_ram_and_disk_and_answers_stay() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (notes, questions) = world(11, 10);
        let tiered = || async {
            let amem_store::DataDir { kv, ledger } = amem_store::open(dir.path()).unwrap();
            // Room for some of the notes: about 12 tokens each, of the demo model's KV.
            let ram = Tier::new(Arc::new(RamStore::default()), 128 << 10);
            let stack = Tiered::open(vec![ram, Tier::new(Arc::new(kv), 64 << 20)]).await.unwrap();
            builder().kv(Arc::new(stack)).ledger(Arc::new(ledger)).build().unwrap()
        };
        let plain = in_ram();
        plain.remember_all("me", notes.clone()).await.unwrap();
        let memory = tiered().await;
        memory.remember_all("me", notes).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        for (question, _) in questions.iter().take(8) {
            let found = memory.ask("me", question.as_str()).await.unwrap();
            assert_eq!(found.text, plain.ask("me", question.as_str()).await.unwrap().text, "{question}");
            assert_eq!(found.usage.missed, 0, "what left the RAM is on the disk");
        }
        memory.kv().sync().await.unwrap();
        drop(memory);
        let again = tiered().await;
        let found = again.ask("me", questions[0].0.as_str()).await.unwrap();
        assert_eq!(found.usage.missed, 0, "the disk outlives the process");
    });
}

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

    fn index_name(&self) -> Option<String> {
        self.words.index_name()
    }

    async fn save(&self, namespace: &Namespace) -> Result<Option<Vec<u8>>> {
        self.words.save(namespace).await
    }

    async fn restore(&self, namespace: &Namespace, saved: &[u8]) -> Result<bool> {
        self.words.restore(namespace, saved).await
    }

    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
        self.words.recall(namespace, query).await
    }
}

#[test]
fn a_process_that_opens_a_large_namespace_indexes_what_changed_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let me = Namespace::new("me").unwrap();
    let open = || {
        let (ledger, recaller) =
            (Arc::new(SqliteLedger::open(dir.path().join("l")).unwrap()), Arc::<Counting>::default());
        (builder().ledger(ledger.clone()).recaller(recaller.clone()).build().unwrap(), ledger, recaller)
    };
    let recall = async |memory: &Memory, n: usize| {
        let found = memory.recall("me", Recall::new(format!("What of town {n}?")).k(1)).await.unwrap();
        texts(&found).join("")
    };
    block_on(async {
        let (memory, ..) = open();
        let brief = NewRecord::new("A train leaves for town 7777.")
            .expires_at(Timestamp::now().after(Duration::from_secs(3600)));
        memory.remember("me", brief).await.unwrap();
        let added = memory.remember_all("me", (0..1500).map(|n| format!("Carl saw town {n} once."))).await.unwrap();
        assert_eq!(recall(&memory, 1234).await, "Carl saw town 1234 once.");
        memory.settle().await;

        let (memory, ledger, recaller) = open();
        let name = recaller.index_name().unwrap();
        assert!(ledger.saved_index(&me, &name).await.unwrap().is_some());
        memory.remember("me", "Carl saw town 9999 twice.").await.unwrap();
        assert_eq!(recall(&memory, 1234).await, "Carl saw town 1234 once.");
        assert_eq!(recall(&memory, 9999).await, "Carl saw town 9999 twice.");
        assert_eq!(recall(&memory, 7777).await, "A train leaves for town 7777.");
        assert_eq!(recaller.indexed.load(Relaxed), 1, "the one that was added since");
        let filtered = Recall::new("town 1234").filter(Filter::Contains(amem_core::Field::Key, "k".into()));
        assert!(
            memory.recall("me", filtered).await.unwrap().is_empty(),
            "a filter reads the records that it is asked of"
        );
        let answer = memory.ask("me", Ask::new("What of town 1234?").k(2)).await.unwrap();
        assert_eq!(answer.recalled[0].record.text, "Carl saw town 1234 once.");

        // What is forgotten is gone from what is saved, and from what the next process finds.
        memory.forget("me", added[1234].record.id).await.unwrap();
        assert!(ledger.saved_index(&me, &name).await.unwrap().is_none());
        let (memory, ledger, recaller) = open();
        assert!(!recall(&memory, 1234).await.contains("1234"));
        assert_eq!(recaller.indexed.load(Relaxed), 1501, "there was nothing to begin from");
        memory.settle().await;

        // What makes no sense is as good as nothing.
        let mut index = ledger.saved_index(&me, &name).await.unwrap().unwrap();
        index.bytes.truncate(20_000);
        assert!(ledger.save_index(&me, &name, &index).await.unwrap());
        let (memory, _, recaller) = open();
        assert_eq!(recall(&memory, 9999).await, "Carl saw town 9999 twice.");
        assert_eq!(recaller.indexed.load(Relaxed), 1501);
    });
}

/// Counts the texts that it embeds.
#[derive(Default)]
struct CountingEmbedder(AtomicUsize);

#[async_trait]
impl Embedder for CountingEmbedder {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        self.0.fetch_add(texts.len(), Relaxed);
        Ok(texts.iter().map(|text| vec![1.0, text.len() as f32]).collect())
    }

    fn name(&self) -> Option<&str> {
        Some("lengths")
    }
}

#[test]
fn a_process_that_forgets_and_ends_leaves_nothing_to_be_embedded_again() {
    let dir = tempfile::tempdir().unwrap();
    let me = Namespace::new("me").unwrap();
    let open = || {
        let ledger = Arc::new(SqliteLedger::open(dir.path().join("l")).unwrap());
        let (words, embedder) = (Arc::<Lexical>::default(), Arc::<CountingEmbedder>::default());
        let recaller = Arc::new(Hybrid::new(vec![words, Arc::new(Dense::new(embedder.clone(), 2))]));
        let memory = builder().ledger(ledger.clone()).recaller(recaller.clone()).build().unwrap();
        (memory, ledger, recaller.index_name().unwrap(), embedder)
    };
    let has = |bytes: &[u8], word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
    block_on(async {
        let (memory, ledger, name, _) = open();
        let notes = (0..40).map(|n| format!("Carl saw town {n} once.")).chain(["A zebra bit Carl.".to_owned()]);
        let added = memory.remember_all("me", notes).await.unwrap();
        memory.recall("me", "Who saw town 3?").await.unwrap();
        memory.settle().await;
        let saved = ledger.saved_index(&me, &name).await.unwrap().unwrap().bytes;
        assert!(has(&saved, "carl") && has(&saved, "zebra"), "the index has the words");

        memory.forget("me", added[40].record.id).await.unwrap();
        assert!(ledger.saved_index(&me, &name).await.unwrap().is_none(), "at once");
        memory.remember("me", "Carl saw town 99 twice.").await.unwrap();
        drop(memory);
        let saved = ledger.saved_index(&me, &name).await.unwrap().unwrap().bytes;
        assert!(has(&saved, "carl") && !has(&saved, "zebra"), "what was forgotten is not in it");

        let (memory, _, _, embedder) = open();
        let found = memory.recall("me", Recall::new("Who saw town 99?").k(100)).await.unwrap();
        assert!(found.len() == 41 && texts(&found).contains(&"Carl saw town 99 twice."), "{found:?}");
        assert_eq!(embedder.0.load(Relaxed), 1, "the question");
    });
}

#[test]
fn a_session_over_a_namespace_that_was_read_from_a_saved_index_stands_on_the_latest_memories() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let ledger = Arc::new(SqliteLedger::open(dir.path().join("l")).unwrap());
        builder().ledger(ledger).build().unwrap()
    };
    block_on(async {
        let notes = (0..1200).map(|n| format!("Carl saw town {n} once."));
        open().remember_all("me", notes).await.unwrap();
        let resident = async |memory: Memory| {
            let mut session = memory.session("me", amem_core::SessionOptions::default()).unwrap();
            session.ask("What of town 3?").await.unwrap();
            session.resident().into_iter().map(|record| record.text).collect::<Vec<_>>()
        };
        let indexed = resident(open()).await;
        let restored = resident(open()).await;
        assert_eq!(restored, indexed);
        assert!(
            indexed.contains(&"Carl saw town 1199 once.".to_owned())
                && indexed.contains(&"Carl saw town 3 once.".to_owned())
        );
    });
}

#[test]
fn usage_is_counted_where_it_is_told_and_for_answers_that_are_given_up() {
    block_on(async {
        let memory = builder().meter_usage(true).build().unwrap();
        let used = async |namespace: &str| {
            let query = UsageQuery::all().namespace(Namespace::new(namespace).unwrap());
            memory.usage(&query).await.unwrap().pop().map(|total| total.amounts)
        };
        memory
            .remember_all("me", ["Alice lives in Denver.", "Bob lives in Oslo.", "Bob lives in Oslo."])
            .await
            .unwrap();
        assert_eq!(used("me").await.unwrap().memory_ops, 2, "a duplicate is no operation");
        let first = memory.ask("me", Ask::new("Where does Alice live?")).await.unwrap();
        let second = memory.ask("me", Ask::new("Where does Bob live?")).await.unwrap();
        let told = first.usage + second.usage;
        let amounts = used("me").await.unwrap();
        assert_eq!((amounts.requests, amounts.memory_ops), (2, 2));
        assert_eq!(amounts.reused_tokens, (first.usage.reused() + second.usage.reused()) as u64);
        assert_eq!(amounts.prefilled_tokens, told.prefilled as u64);
        assert_eq!((amounts.repaired_tokens, amounts.generated_tokens), (told.repaired as u64, told.generated as u64));
        let recalled = (first.recalled.len() + second.recalled.len()) as u64;
        assert!((1..recalled).contains(&amounts.reused_chunks) && amounts.chunks == recalled, "{amounts:?}");

        memory.remember("you", "Alice lives in Denver.").await.unwrap();
        let mut session = memory.session("you", amem_core::SessionOptions::default()).unwrap();
        let answer = session.ask("Where does Alice live?").await.unwrap();
        let amounts = used("you").await.unwrap();
        assert_eq!((amounts.requests, amounts.generated_tokens), (1, answer.usage.generated as u64));
        assert_eq!((amounts.prefilled_tokens, amounts.chunks), (answer.usage.prefilled as u64, 1));
        assert_eq!(amounts.reused_tokens, answer.usage.reused() as u64);

        memory.remember("they", "Alice lives in Denver.").await.unwrap();
        let stream = memory.ask_stream("they", Ask::new("Where does Alice live?")).await.unwrap();
        drop(stream);
        // It ends with the engine's next step, and is written after that.
        for _ in 0..1000 {
            if used("they").await.is_some_and(|amounts| amounts.requests == 1) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(used("they").await.unwrap().requests, 1);
        let silent = in_ram();
        silent.remember("me", "Alice lives in Denver.").await.unwrap();
        silent.ask("me", Ask::new("Where does Alice live?")).await.unwrap();
        assert!(
            silent.usage(&UsageQuery::all()).await.unwrap().is_empty(),
            "nothing is counted unless it is asked for"
        );
    });
}

#[test]
fn kv_goes_with_the_texts_that_no_longer_count() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let memory = on_disk(dir.path());
        let place = |place: &str| NewRecord::new(format!("Alice lives in {place}.")).key("home");
        for city in ["Denver", "Oslo", "Paris"] {
            memory.remember("me", place(city)).await.unwrap();
            memory.prefill("me", |_, _| {}).await.unwrap();
        }
        assert_eq!(memory.stats("me").await.unwrap().chunks, 1);
        memory.remember("me", place("Lima")).await.unwrap();
        assert_eq!(memory.stats("me").await.unwrap().chunks, 0, "it goes with the call, not with the next question");
        let soon = Timestamp::now().after(Duration::from_millis(300));
        memory.remember("me", NewRecord::new("Bob lives in Rome.").expires_at(soon)).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        let stats = memory.stats("me").await.unwrap();
        assert_eq!((stats.records.active, stats.records.superseded), (2, 3));
        assert!(
            stats.chunks <= 2 && stats.kv_bytes > 0,
            "of the places that were told only the last has KV: {stats:?}"
        );
        while Timestamp::now() <= soon {
            std::thread::sleep(Duration::from_millis(10));
        }
        memory.recall("me", "Where does Alice live?").await.unwrap();
        memory.settle().await;
        let stats = memory.stats("me").await.unwrap();
        assert_eq!((stats.records.active, stats.records.expired, stats.chunks), (1, 1, 1));
        memory.delete_namespace("me").await.unwrap();
        assert_eq!(memory.stats("me").await.unwrap(), amem_core::NamespaceStats::default());
    });
}
