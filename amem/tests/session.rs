//! What a user of `Session` relies on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use amem_core::{
    Ask, Error, Filter, Finish, Generation, Memory, Message, Metadata, NewRecord, Query, Recall, Repair, Role,
    SessionOptions, Timestamp, Usage, UsageQuery,
};
use common::{block_on, in_ram, world};

fn standing_alone() -> SessionOptions {
    SessionOptions::default().conversation(false)
}

/// A memory of a small world, its questions and their answers.
async fn remembered(seed: u64, memories: usize) -> (Memory, Vec<(String, String)>) {
    let (notes, questions) = world(seed, memories);
    let memory = in_ram();
    memory.remember_all("me", notes).await.unwrap();
    memory.prefill("me", |_, _| {}).await.unwrap();
    (memory, questions)
}

#[test]
fn a_session_answers_as_fresh_contexts_do() {
    block_on(async {
        let (mut same, mut total) = (0, 0);
        for seed in 0..6 {
            let (memory, questions) = remembered(seed, 8).await;
            let mut session = memory.session("me", standing_alone()).unwrap();
            for (question, _) in &questions {
                let ours = session.ask(question.as_str()).await.unwrap();
                // The whole working set, repaired in full: what a cold prefill says.
                let k = memory.list("me", Query::At(Timestamp::now())).await.unwrap().len();
                let mut cold = memory.session("me", standing_alone().opening_repair(Repair::All)).unwrap();
                let theirs = cold.ask(Ask::new(question.as_str()).k(k)).await.unwrap();
                same += usize::from(ours.text == theirs.text);
                total += 1;
            }
            assert_eq!(session.epochs(), 1);
        }
        println!("{same} of {total} answers are those of a cold prefill");
        assert!(total > 60 && same * 100 >= total * 97, "{same} of {total} answers are the same");
    });
}

#[test]
fn a_question_in_a_stable_session_costs_its_own_tokens_and_a_few_rows() {
    block_on(async {
        let (memory, questions) = remembered(3, 10).await;
        let mut session = memory.session("me", standing_alone()).unwrap();
        session.ask(questions[0].0.as_str()).await.unwrap();
        for (question, _) in &questions[1..] {
            let usage = session.ask(question.as_str()).await.unwrap().usage;
            let asked = memory.model().chat().encode(question).unwrap().len() + 2;
            assert_eq!((usage.prefilled, usage.cached), (asked, 0));
            assert!(usage.resident > 50 && usage.repaired <= 8);
        }
    });
}

#[test]
fn a_conversation_remembers_what_was_said_in_it() {
    block_on(async {
        let (memory, questions) = remembered(5, 6).await;
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        let mut before = 0;
        for (question, _) in questions.iter().take(4) {
            let answer = session.ask(question.as_str()).await.unwrap();
            assert!(answer.usage.resident + answer.usage.cached > before, "the context grows with each turn");
            before = answer.usage.resident + answer.usage.cached;
        }
        assert_eq!(session.epochs(), 1);
    });
}

#[test]
fn a_memory_told_during_a_session_is_blended_in_without_a_new_epoch() {
    for conversation in [false, true] {
        block_on(async {
            let memory = in_ram();
            memory.remember("me", "Alice lives in Denver.").await.unwrap();
            let options = SessionOptions::default().conversation(conversation);
            let mut session = memory.session("me", options).unwrap();
            assert_eq!(session.ask("Where does Alice live?").await.unwrap().text, "Alice lives in Denver.");
            let bob = memory.remember("me", "Bob's locker code is 4817.").await.unwrap().record;
            let answer = session.ask("What is Bob's locker code?").await.unwrap();
            assert_eq!(answer.text, "Bob's locker code is 4817.");
            assert_eq!(session.epochs(), 1);
            assert!(session.resident().iter().any(|record| record.id == bob.id));
        });
    }
}

#[test]
fn a_fact_that_was_forgotten_updated_or_superseded_is_gone_from_the_next_answer_on() {
    block_on(async {
        let memory = in_ram();
        let alice = memory.remember("me", "Alice lives in Denver.").await.unwrap().record;
        let bob = memory.remember("me", "Bob's locker code is 4817.").await.unwrap().record;
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        assert_eq!(session.ask("What is Bob's locker code?").await.unwrap().text, "Bob's locker code is 4817.");
        memory.update("me", bob.id, "Bob's locker code is 2096.").await.unwrap();
        assert_eq!(session.ask("What is Bob's locker code?").await.unwrap().text, "Bob's locker code is 2096.");
        assert_eq!(session.epochs(), 2);
        session.ask("Where does Alice live?").await.unwrap();
        memory.forget("me", alice.id).await.unwrap();
        let answer = session.ask("Where does Alice live?").await.unwrap();
        assert!(!answer.text.contains("Denver"), "neither the note nor what was said of it is left: {}", answer.text);
        assert_eq!(session.epochs(), 3);
        assert_eq!(session.resident().len(), 1);
    });
}

#[test]
fn a_session_that_is_full_begins_a_new_epoch_and_goes_on() {
    block_on(async {
        let (memory, questions) = remembered(7, 6).await;
        let options = SessionOptions::default().budget_tokens(220);
        let mut session = memory.session("me", options).unwrap();
        for (turn, (question, _)) in questions.iter().cycle().take(25).enumerate() {
            let max_tokens = if turn % 2 == 0 { 16 } else { 5_000 };
            let ask = Ask::new(question.as_str()).generation(Generation::default().max_tokens(max_tokens));
            let Usage { resident, cached, missed, prefilled, generated, .. } = session.ask(ask).await.unwrap().usage;
            assert!(
                resident + cached + prefilled - missed + generated <= 220 + 1,
                "the last token is not in the context"
            );
        }
        assert!(session.epochs() > 1);
    });
}

#[test]
fn a_dropped_answer_costs_the_session_nothing_but_that_turn() {
    block_on(async {
        let memory = in_ram();
        memory.remember("me", "Alice lives in Denver.").await.unwrap();
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        drop(session.ask_stream("Where does Alice live?").await.unwrap());
        assert_eq!(session.ask("Where does Alice live?").await.unwrap().text, "Alice lives in Denver.");
    });
}

#[test]
fn what_was_said_of_a_forgotten_fact_is_gone_even_if_a_turn_was_given_up() {
    block_on(async {
        let memory = in_ram();
        let alice = memory.remember("me", "Alice lives in Denver.").await.unwrap().record;
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        assert_eq!(session.ask("Where does Alice live?").await.unwrap().text, "Alice lives in Denver.");
        drop(session.ask_stream("Where does Alice live?").await.unwrap());
        memory.forget("me", alice.id).await.unwrap();
        let answer = session.ask("Where does Alice live?").await.unwrap();
        assert!(!answer.text.contains("Denver"), "{}", answer.text);
    });
}

#[test]
fn what_was_said_of_a_forgotten_fact_is_gone_though_its_memory_had_left_the_working_set() {
    block_on(async {
        let memory = in_ram();
        let alice = memory.remember("me", "Alice lives in Denver.").await.unwrap().record;
        let options = SessionOptions::default().budget_tokens(150);
        let mut session = memory.session("me", options).unwrap();
        let short = || Generation::default().max_tokens(12);
        let ask = |question: &str| Ask::new(question).generation(short()).k(1);
        session.ask(ask("Where does Alice live?")).await.unwrap();
        memory.forget("me", alice.id).await.unwrap();
        for _ in 0..3 {
            let answer = session.ask(ask("Where does Alice live?")).await.unwrap();
            assert!(!answer.text.contains("Denver"), "{}", answer.text);
        }
        assert_eq!(session.epochs(), 2, "one new epoch is enough");
    });
}

#[test]
fn a_refused_question_leaves_the_working_set_in_place() {
    block_on(async {
        let memory = in_ram();
        memory.remember("me", "Alice lives in Denver.").await.unwrap();
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        session.ask("Where does Alice live?").await.unwrap();
        let bad = Repair::FirstRows(1);
        let nonsense = Repair::Attention { budget: amem_core::Budget::Ratio(-1.0), layers: 1..2 };
        for repair in [nonsense, bad] {
            let refused = session.ask(Ask::new("Where does Alice live?").repair(repair.clone())).await;
            assert_eq!(refused.is_err(), repair != Repair::FirstRows(1));
        }
        let nothing = Generation::default().n(0);
        assert!(session.ask(Ask::new("Where does Alice live?").generation(nothing)).await.is_err());
        assert_eq!(session.ask("Where does Alice live?").await.unwrap().text, "Alice lives in Denver.");
        assert_eq!(session.epochs(), 1);
    });
}

#[test]
fn senseless_settings_and_questions_are_refused() {
    block_on(async {
        let memory = in_ram();
        for budget in [0, 5, 1_000_000] {
            let options = SessionOptions::default().budget_tokens(budget);
            assert!(matches!(memory.session("me", options), Err(Error::BadValue { .. })));
        }
        let options = SessionOptions::default().memory_share(f32::NAN);
        assert!(memory.session("me", options).is_err());
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        assert!(matches!(session.ask(" ").await, Err(Error::Empty { .. })));
        let long = "pizza ".repeat(3000);
        assert!(matches!(session.ask(long.as_str()).await, Err(Error::TooLong { .. })));
        assert!(session.ask("Where does Alice live?").await.is_ok());
    });
}

#[test]
fn thirty_questions_cost_a_hundredth_of_prefilling_again() {
    // About 6,000 tokens of memories and questions of about 20, on the demo model with its context stretched: what is
    // counted does not depend on what the model makes of it.
    let (memory, questions, prefill) = stretched();
    block_on(async {
        let mut session = memory.session("me", standing_alone()).unwrap();
        let (mut ours, mut again) = (0, 0);
        let mut resident = 0;
        for question in &questions {
            let ask = Ask::new(question.as_str()).generation(Generation::default().max_tokens(1));
            let Usage { resident: stood, cached, prefilled, .. } = {
                let usage = session.ask(ask).await.unwrap().usage;
                ours += usage.work();
                usage
            };
            resident = stood + cached;
            again += ((resident + prefilled) * memory.model().info().shape.layers) as u64;
        }
        let ratio = again as f64 / ours as f64;
        let asked: usize = questions.iter().map(|q| memory.model().chat().encode(q).unwrap().len()).sum();
        let mean = asked / questions.len();
        let with_prefill = again as f64 / (ours + prefill.work()) as f64;
        println!("{resident} resident tokens, 30 questions of {mean}: {ratio:.0} times less prefill work");
        println!("{with_prefill:.1} times, with what it took to prefill the memories");
        assert!((18..=24).contains(&mean));
        assert!(resident > 5_500 && session.epochs() == 1);
        assert!(ratio >= 115.5, "{ratio}: README says 116");
        assert!(with_prefill >= 13.0, "{with_prefill}: README says 13");
    });
}

/// A memory of about 6,000 tokens, prefilled, thirty questions of about 20, and what it took to prefill it.
fn stretched() -> (Memory, Vec<String>, Usage) {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use amem_core::transformer::{Options, Transformer};
    use amem_cpu::Cpu;

    let mut files: BTreeMap<String, Vec<u8>> =
        amem_demo::files().into_iter().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
    let config = amem_demo::CONFIG.replace("\"max_position_embeddings\": 2048", "\"max_position_embeddings\": 8192");
    files.insert("config.json".to_owned(), config.into_bytes());
    let model = Transformer::load(&files, Cpu::with_threads(2).unwrap(), Options::default()).unwrap();
    let memory = Memory::builder(Arc::new(model)).build().unwrap();
    let mut notes = Vec::new();
    let mut tokens = 0;
    for seed in 0.. {
        let (more, _) = world(seed, 12);
        for note in more {
            let count = memory.tokens(&note).unwrap().len();
            if tokens + count <= 6_000 && !notes.contains(&note) {
                tokens += count;
                notes.push(note);
            }
        }
        if tokens > 5_950 {
            break;
        }
    }
    let question = |i: usize| {
        let (_, questions) = world(i as u64, 12);
        format!("{} What do the notes say? Where was it said?", questions[0].0)
    };
    let usage = block_on(async {
        memory.remember_all("me", notes).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap()
    });
    (memory, (0..30).map(question).collect(), usage)
}

/// Questions and answers as a client keeps them.
fn exchange(question: &str, answer: &str) -> [Message; 2] {
    [Message::new(Role::User, question), Message::new(Role::Assistant, answer)]
}

fn asked(mut before: Vec<Message>, question: &str) -> Ask {
    before.push(Message::new(Role::User, question));
    Ask::messages(before)
}

#[test]
fn a_conversation_that_is_sent_again_costs_what_is_new_in_it() {
    block_on(async {
        let (memory, questions) = remembered(5, 6).await;
        let mut ours = memory.session("me", SessionOptions::default()).unwrap();
        let mut theirs = memory.session("me", SessionOptions::default()).unwrap();
        let mut sent = Vec::new();
        for (question, _) in questions.iter().take(5) {
            let kept = ours.ask(question.as_str()).await.unwrap();
            let again = theirs.ask(asked(sent.clone(), question)).await.unwrap();
            assert_eq!((&kept.text, kept.usage), (&again.text, again.usage), "{question}");
            sent.extend(exchange(question, &again.text));
        }
        assert_eq!(theirs.epochs(), 1);
    });
}

#[test]
fn a_text_that_ended_an_answer_does_not_stay_in_the_conversation() {
    block_on(async {
        let memory = in_ram();
        memory.remember("me", "Alice lives in Denver. She works at Boeing.").await.unwrap();
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        let generation = Generation::default().stop(["Denver"]);
        let question = "Where does Alice live?";
        let answer = session.ask(Ask::new(question).generation(generation)).await.unwrap();
        assert_eq!((&*answer.text, answer.finish), ("Alice lives in", Finish::StopText("Denver".to_owned())));
        let ask = || asked(exchange(question, "Alice lives in").to_vec(), "Where does Alice work?");
        let told = session.ask(ask()).await.unwrap();
        let mut other = memory.session("me", SessionOptions::default()).unwrap();
        let anew = other.ask(ask()).await.unwrap();
        assert_eq!(told.text, anew.text);
        assert_eq!(session.resident_tokens(), other.resident_tokens(), "the same was said in both");
        assert!(told.usage.resident > told.usage.prefilled, "what stands is known again");
    });
}

#[test]
fn memories_that_have_no_room_in_the_working_set_come_with_their_question() {
    block_on(async {
        let memory = in_ram();
        let tokens = |text: &str| memory.tokens(text).unwrap().len();
        let long = |name: &str, sentence: &str, most: usize| {
            let mut text = name.to_owned();
            while tokens(&text) < most {
                text = format!("{text} {sentence}");
            }
            text
        };
        let first = long("Zelda's house.", "It has a red door and a green roof.", 140);
        let second = long("Zelda's garden.", "It has a pond and a tall tree.", 150);
        let others: Vec<String> = (0..60).map(|n| format!("Bob's code {n} is {}.", 4000 + n)).collect();
        memory.remember_all("me", [first.clone(), second.clone()]).await.unwrap();
        memory.remember_all("me", others).await.unwrap();
        let options = SessionOptions::default().budget_tokens(480).memory_share(0.6);
        let mut session = memory.session("me", options).unwrap();
        let ask = |question: &str| Ask::new(question).generation(Generation::default().max_tokens(8));
        for question in ["What is Zelda's?", "Where is Zelda's?"] {
            let answer = session.ask(ask(question)).await.unwrap();
            let texts: Vec<&str> = answer.recalled.iter().map(|found| &*found.record.text).collect();
            assert_eq!(texts, [&*first, &*second], "both were told with the question");
            assert_eq!(answer.resident, 2, "nothing else takes their room");
        }
        assert_eq!(session.epochs(), 1, "the second question finds both in place");
        // One that can never have room is no reason to begin again.
        memory.remember("me", long("Yves's boat.", "It is blue and has two masts.", 470)).await.unwrap();
        for question in ["What is Yves's?", "Where is Yves's?"] {
            assert!(session.ask(ask(question)).await.unwrap().recalled.is_empty());
        }
        assert_eq!(session.epochs(), 1);
    });
}

#[test]
fn a_conversation_that_was_changed_is_computed_from_the_change_on() {
    block_on(async {
        let (memory, questions) = remembered(5, 6).await;
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        let mut sent = Vec::new();
        for (question, _) in questions.iter().take(3) {
            let answer = session.ask(asked(sent.clone(), question)).await.unwrap();
            sent.extend(exchange(question, &answer.text));
        }
        sent[3].text = "I do not know that.".to_owned();
        let changed = session.ask(asked(sent.clone(), &questions[3].0)).await.unwrap();
        let mut fresh = memory.session("me", SessionOptions::default()).unwrap();
        let told = fresh.ask(asked(sent.clone(), &questions[3].0)).await.unwrap();
        assert_eq!(changed.text, told.text);
        let stands = |usage: Usage| usage.resident + usage.cached + usage.prefilled - usage.missed;
        assert_eq!(stands(changed.usage), stands(told.usage), "what was changed is gone from the context");
        assert_eq!((session.epochs(), changed.usage.cached, changed.usage.missed), (1, 0, 0));
        let tokens = |text: &str| memory.model().chat().encode(text).unwrap().len();
        let texts: usize =
            sent[2..].iter().map(|message| tokens(&message.text)).sum::<usize>() + tokens(&questions[3].0);
        let prefilled = changed.usage.prefilled;
        assert!(
            (texts..=texts + 12).contains(&prefilled),
            "{prefilled} of {texts}: what stands before is not computed"
        );
        // Another conversation altogether: the memories stay.
        let other = session.ask(asked(Vec::new(), &questions[0].0)).await.unwrap();
        assert_eq!((session.epochs(), other.usage.cached), (1, 0));
        assert!(other.usage.prefilled <= tokens(&questions[0].0) + 4);
    });
}

#[test]
fn a_clients_system_message_costs_its_own_tokens_and_no_memory() {
    block_on(async {
        let (memory, questions) = remembered(3, 8).await;
        let question = questions[0].0.as_str();
        let with = |system: &str| asked(vec![Message::new(Role::System, system)], question);
        let tokens = |text: &str| memory.model().chat().encode(text).unwrap().len();
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        let plain = session.ask(question).await.unwrap().usage;
        for system in ["Be brief.", "Answer in one line, please."] {
            let Usage { prefilled, cached, missed, .. } = session.ask(with(system)).await.unwrap().usage;
            assert_eq!((prefilled, cached, missed), (tokens(system) + 1 + tokens(question) + 2, 0, 0));
        }
        assert_eq!(session.epochs(), 1);
        // Without a session as well, its tokens are all that is added.
        let stateless = memory.ask("me", question).await.unwrap().usage;
        let under = memory.ask("me", with("Be brief.")).await.unwrap().usage;
        assert_eq!(under.prefilled - stateless.prefilled, tokens("Be brief.") + 1);
        assert_eq!((under.cached, under.missed), (stateless.cached, 0));
        assert!(plain.missed == 0 && plain.cached > 0);
    });
}

#[test]
fn an_answer_can_come_from_what_was_said_before() {
    block_on(async {
        let memory = in_ram();
        memory.remember("me", "Alice lives in Denver.").await.unwrap();
        let question = "What is Bob's locker code?";
        let said = exchange(question, "Bob's locker code is 4817.").to_vec();
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        let told = session.ask(asked(said.clone(), question)).await.unwrap();
        assert!(told.text.contains("4817"), "{}", told.text);
        let stateless = memory.ask("me", asked(said, question)).await.unwrap();
        assert!(stateless.text.contains("4817"), "{}", stateless.text);
        let nobody = memory.ask("me", question).await.unwrap();
        assert!(!nobody.text.contains("4817"), "{}", nobody.text);
    });
}

#[test]
fn a_filter_holds_for_all_that_stands_in_a_session() {
    block_on(async {
        let memory = in_ram();
        let note = |text: &str, open: bool| NewRecord::new(text).metadata(Metadata::from_iter([("open", open)]));
        memory.remember("me", note("Bob's locker code is 4817.", false)).await.unwrap();
        memory.remember("me", note("Alice lives in Denver.", true)).await.unwrap();
        let options = SessionOptions::default().filter(Filter::eq("open", true));
        let mut session = memory.session("me", options).unwrap();
        assert_eq!(session.ask("Where does Alice live?").await.unwrap().text, "Alice lives in Denver.");
        let answer = session.ask("What is Bob's locker code?").await.unwrap();
        assert!(!answer.text.contains("4817"), "{}", answer.text);
        assert_eq!(
            session.resident().iter().map(|record| record.text.as_str()).collect::<Vec<_>>(),
            ["Alice lives in Denver."]
        );
        let filtered = Recall::new("Alice").filter(Filter::eq("open", true));
        let refused = session.ask(Ask::new("Where does Alice live?").recall(filtered)).await;
        assert!(
            matches!(refused, Err(Error::BadValue { what: "the filter", .. })),
            "what stands would not be filtered"
        );
    });
}

#[test]
fn a_conversation_longer_than_a_session_keeps_its_end() {
    block_on(async {
        let (memory, questions) = remembered(7, 6).await;
        let mut session = memory.session("me", SessionOptions::default().budget_tokens(220)).unwrap();
        let mut sent = Vec::new();
        for (question, _) in questions.iter().cycle().take(20) {
            let ask = asked(sent.clone(), question).generation(Generation::default().max_tokens(16));
            let answer = session.ask(ask).await.unwrap();
            let Usage { resident, cached, missed, prefilled, generated, .. } = answer.usage;
            assert!(resident + cached + prefilled - missed + generated <= 220 + 1);
            sent.extend(exchange(question, &answer.text));
        }
        assert!(session.epochs() > 1);
        assert!(matches!(
            session.ask(Ask::messages(sent)).await,
            Err(Error::BadValue { what: "the conversation", .. })
        ));
    });
}

#[test]
fn a_turn_can_go_on_on_another_thread() {
    let mut session = in_ram().session("me", SessionOptions::default()).unwrap();
    let asked: Box<dyn Future<Output = _> + Send> = Box::new(session.ask("Where does Alice live?"));
    std::thread::scope(|scope| scope.spawn(|| block_on(Box::into_pin(asked)).unwrap()).join().unwrap());
}

#[test]
fn the_kv_cache_that_a_session_holds_is_known_when_its_answer_has_ended() {
    block_on(async {
        let memory = in_ram();
        memory.remember("me", "Alice lives in Denver.").await.unwrap();
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        assert_eq!(session.kv_cache_bytes(), 0);
        let stream = session.ask_stream("Where does Alice live?").await.unwrap();
        assert_eq!(stream.answer().await.unwrap().text, "Alice lives in Denver.");
        let info = memory.model().info();
        let token_bytes = (info.shape.token_numbers() * info.dtype.size()) as u64;
        let held = session.kv_cache_bytes();
        session.settle().await;
        assert!(session.resident_tokens() > 0 && session.kv_cache_bytes() == held);
        assert!(held >= token_bytes * session.resident_tokens() as u64, "{held} bytes");
    });
}

#[test]
fn an_answer_says_how_much_stood_in_its_context() {
    block_on(async {
        let memory = in_ram();
        let question = "Where does Alice live?";
        let stands = |usage: Usage| usage.resident + usage.cached + usage.prefilled - usage.missed;
        // The first question pays for the system line.
        memory.ask("me", question).await.unwrap();
        let alone = memory.ask("me", question).await.unwrap();
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        let first = session.ask(question).await.unwrap();
        assert_eq!((stands(first.usage), first.resident), (stands(alone.usage), 0));
        memory.remember_all("me", ["Alice lives in Denver.", "Bob lives in Austin."]).await.unwrap();
        for _ in 0..2 {
            let answer = session.ask(question).await.unwrap();
            assert_eq!(answer.resident, session.resident().len());
            assert!(answer.resident > 0);
        }
        assert_eq!(memory.ask("me", Ask::new(question).k(1)).await.unwrap().resident, 1);
    });
}

#[test]
fn a_working_set_that_was_opened_ahead_leaves_the_first_question_only_its_own_tokens() {
    block_on(async {
        let (memory, questions) = remembered(3, 10).await;
        let mut session = memory.session("me", standing_alone()).unwrap();
        assert_eq!((session.resident().len(), session.resident_tokens()), (0, 0));
        let question = questions[0].0.as_str();
        let recalled = session.open(question).await.unwrap();
        assert!(!recalled.is_empty() && recalled.len() <= 8);
        let tokens = memory.list("me", Query::All).await.unwrap();
        let tokens: usize = tokens.iter().map(|record| memory.tokens(&record.text).unwrap().len()).sum();
        assert_eq!(session.resident().len(), 10, "there is room for all of them");
        assert_eq!(session.resident_tokens(), memory.layout().prefix.len() + tokens);
        session.open("something else").await.unwrap();
        let answer = session.ask(question).await.unwrap();
        let asked = memory.model().chat().encode(question).unwrap().len() + 2;
        assert_eq!((answer.usage.prefilled, answer.usage.cached, session.epochs()), (asked, 0, 1));
        assert!(answer.usage.resident >= tokens);
        let mut other = memory.session("me", standing_alone()).unwrap();
        assert_eq!(other.ask(question).await.unwrap().text, answer.text, "as if the question had opened it");
    });
}

#[test]
fn a_working_set_is_opened_anew_when_a_memory_in_it_has_changed() {
    block_on(async {
        let memory = in_ram();
        let id = memory.remember("me", "Alice lives in Denver.").await.unwrap().record.id;
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        session.open("Alice").await.unwrap();
        memory.update("me", id, "Alice lives in Paris.").await.unwrap();
        session.open("Alice").await.unwrap();
        assert_eq!(session.resident()[0].text, "Alice lives in Paris.");
        assert_eq!(session.epochs(), 2);
        assert_eq!(session.ask("Where does Alice live?").await.unwrap().text, "Alice lives in Paris.");
        assert_eq!(session.epochs(), 2);
    });
}

#[test]
fn what_was_recalled_in_a_session_comes_before_what_is_newer_when_its_working_set_is_chosen() {
    block_on(async {
        let memory = in_ram();
        memory.remember("me", "Alice lives in Denver.").await.unwrap();
        memory.remember_all("me", (0..30).map(|n| format!("Bob's locker code is {n}."))).await.unwrap();
        let room = memory.layout().prefix.len() + 80;
        let mut session = memory.session("me", SessionOptions::default().budget_tokens(room)).unwrap();
        let recalled = session.recall("Where does Alice live?").await.unwrap();
        assert_eq!(recalled[0].record.text, "Alice lives in Denver.");
        assert!(session.resident().is_empty(), "a recall puts nothing in place");
        assert!(session.open("Zed").await.unwrap().is_empty(), "nothing is about Zed");
        let resident = session.resident();
        assert!(resident.len() < 31, "there is no room for all of them");
        assert!(resident.iter().any(|record| record.text == "Alice lives in Denver."));
        let past = session.recall(Recall::new("Alice").as_of(Timestamp(0))).await;
        assert!(matches!(past, Err(Error::BadValue { what: "as_of", .. })));
    });
}

#[test]
fn opening_a_working_set_is_counted_as_work_and_not_as_a_question() {
    block_on(async {
        let memory = common::builder().meter_usage(true).build().unwrap();
        memory.remember("me", "Alice lives in Denver.").await.unwrap();
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        session.open("Alice").await.unwrap();
        let used = memory.usage(&UsageQuery::all()).await.unwrap()[0].amounts;
        assert_eq!((used.requests, used.chunks, used.reused_chunks), (0, 1, 0));
        assert_eq!(used.prefilled_tokens as usize, session.resident_tokens());
        session.ask("Where does Alice live?").await.unwrap();
        assert_eq!(memory.usage(&UsageQuery::all()).await.unwrap()[0].amounts.requests, 1);
    });
}
