//! What the reference system does wrong, and its users would bring to light here: each is held by a test.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use amem::http::{Identity, KeyHeader};
use amem::server::{Mode, Options};
use amem_core::{Memory, Model, RamStore, Tier, Tiered};
use reqwest::Method;
use serde_json::{Value, json};

use super::common::{block_on, in_ram, on_disk};
use super::front::{Front, Process};
use super::scripted::Scripted;
use super::{client, post};

/// A model that has one answer to every question, and shows what it was asked.
fn listener() -> Scripted {
    Scripted::new(&[("", "So it is.")])
}

/// What a server says to a request, with these in its path.
fn call(method: Method, front: &Front, path: &[&str], body: Option<&Value>) -> (u16, Value) {
    let mut url = reqwest::Url::parse(&front.url("/v1/memories")).unwrap();
    url.path_segments_mut().unwrap().extend(path);
    let request = client().request(method, url);
    let response = body.into_iter().fold(request, |request, body| request.json(body)).send().unwrap();
    (response.status().as_u16(), response.json().unwrap())
}

/// Remembers texts; their ids.
fn remember(front: &Front, user: &str, fields: Value) -> Vec<String> {
    let mut body = json!({ "user": user });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let (status, answer) = post(front.url("/v1/memories"), &body);
    assert_eq!(status, 200, "{answer}");
    answer["added"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// The texts of the memories in an answer.
fn texts(answer: &Value) -> Vec<&str> {
    answer["memories"].as_array().unwrap().iter().map(|memory| memory["text"].as_str().unwrap()).collect()
}

/// An answer in OpenAI's format.
fn ask(front: &Front, user: &str, question: &str) -> Value {
    let question = json!([{ "role": "user", "content": question }]);
    let body = json!({ "model": "any", "user": user, "messages": question, "max_tokens": 64 });
    let (status, answer) = post(front.url("/v1/chat/completions"), &body);
    assert_eq!(status, 200, "{answer}");
    answer
}

fn said(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn a_users_name_is_never_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("a/data");
    let longest = "x".repeat(256);
    let users = ["../x", "../../x", "/x", "a/b", "..", "naïve 名前", "a%2Fb", longest.as_str()];
    {
        let front = Front::of(on_disk(&data));
        for user in users {
            remember(&front, user, json!({ "texts": [format!("This is about {user}.")] }));
        }
        for user in ["a\0b", "", &"x".repeat(300)] {
            let (status, answer) = post(front.url("/v1/memories"), &json!({ "user": user, "texts": ["So."] }));
            assert_eq!(status, 400, "{user:?}: {answer}");
        }
    }
    let outside =
        |dir: &Path| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!((outside(dir.path()), outside(&dir.path().join("a"))), (vec!["a".into()], vec!["data".into()]));
    let memory = on_disk(&data);
    for user in users {
        let records = block_on(memory.list(user, amem_core::Query::All)).unwrap();
        let texts: Vec<&str> = records.iter().map(|record| record.text.as_str()).collect();
        assert_eq!(texts, [format!("This is about {user}.")]);
    }
}

#[test]
fn a_line_that_is_torn_or_cannot_be_read_is_named() {
    let front = Front::of(in_ram());
    let lines = [
        r#"{"op":"add","id":"1","text":"Tea is hot.","key":null,"created_at":1700000000.5}"#,
        r#"{"op":"add","id":"2""#,
        r#"{"text": "Ice is cold."}"#,
        "\u{fffd}",
        r#"{"op":"update","id":"1","text":"Tea is warm."}"#,
        r#"{"op":"add","id":"3","text":"Rain is"#,
    ];
    let response = client().post(front.url("/v1/memories/me/import")).body(lines.join("\n")).send().unwrap();
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().unwrap();
    let named: Vec<u64> = answer["errors"].as_array().unwrap().iter().map(|e| e["line"].as_u64().unwrap()).collect();
    for line in [2, 4, 6] {
        assert!(named.contains(&line), "line {line}: {answer}");
    }
    assert!(!named.contains(&1) && !named.contains(&3), "{answer}");
}

#[test]
fn two_processes_on_one_data_directory_see_each_others_memories() {
    let dir = tempfile::tempdir().unwrap();
    let servers = [Process::start(&["kv-serve"], dir.path()), Process::start(&["serve"], dir.path())];
    for (server, text) in servers.iter().zip(["The tea is hot.", "The ice is cold."]) {
        let (status, answer) = post(server.url("/v1/memories"), &json!({ "user": "me", "texts": [text] }));
        assert_eq!(status, 200, "{answer}");
    }
    for server in &servers {
        for (query, text) in [("tea", "The tea is hot."), ("ice", "The ice is cold.")] {
            let (status, found) = post(server.url("/v1/recall"), &json!({ "user": "me", "query": query, "k": 1 }));
            assert_eq!((status, texts(&found)), (200, vec![text]));
        }
    }
}

#[test]
fn what_was_acknowledged_outlives_a_killed_server() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Process::start(&["kv-serve"], dir.path());
    let (status, _) = post(server.url("/v1/memories"), &json!({ "user": "me", "texts": ["The tea is hot."] }));
    assert_eq!(status, 200);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let server = Process::start(&["kv-serve"], dir.path());
    let list: Value = client().get(server.url("/v1/memories/me")).send().unwrap().json().unwrap();
    assert_eq!(texts(&list), ["The tea is hot."]);
}

#[test]
fn a_number_sign_cuts_no_answer() {
    let answer = "It is room #7, behind door #2.\n# Done";
    let (memory, model) = Scripted::new(&[("Which room?", answer)]).memory();
    let front = Front::of(memory);
    remember(&front, "me", json!({ "texts": ["The key of room #7 hangs at door #2."] }));
    let told = ask(&front, "me", "# Rooms\nWhich room? # or door");
    assert_eq!(said(&told), answer);
    assert_eq!(told["choices"][0]["finish_reason"], "stop");
    let prompt = model.prompts().pop().unwrap();
    for text in ["room #7 hangs at door #2.", "# Rooms\nWhich room? # or door"] {
        assert!(prompt.contains(text), "{text} is not in {prompt}");
    }
    let question = json!([{ "role": "user", "content": "Which room?" }]);
    let body = json!({ "model": "any", "messages": question, "stop": "#2" });
    assert_eq!(said(&post(front.url("/v1/chat/completions"), &body).1), "It is room #7, behind door");
}

#[test]
fn nothing_comes_from_a_text_that_was_changed_or_forgotten() {
    for mode in [Mode::Blend, Mode::Resident] {
        let (memory, model) = listener().memory();
        let mut options = Options::default();
        options.mode = mode;
        let front = Front::with(memory, Identity::new(KeyHeader::Authorization), options);
        let ids = remember(&front, "me", json!({ "texts": ["The code is 1234.", "The door is green."] }));
        let stood = |question: &str| {
            ask(&front, "me", question);
            let prompt = model.prompts().pop().unwrap();
            ["1234", "9876", "green"].map(|word| prompt.contains(word))
        };
        assert_eq!(stood("What is the code of the door?"), [true, false, true], "{mode:?}");
        let changed = json!({ "text": "The code is 9876." });
        assert_eq!(call(Method::PATCH, &front, &["me", &ids[0]], Some(&changed)).0, 200);
        assert_eq!(stood("What is the code of the door now?"), [false, true, true], "{mode:?}");
        let (_, found) = post(front.url("/v1/recall"), &json!({ "user": "me", "query": "code", "k": 1 }));
        assert_eq!(texts(&found), ["The code is 9876."]);
        assert_eq!(call(Method::DELETE, &front, &["me", &ids[1]], None).0, 200);
        assert_eq!(stood("And what of the code and the door?"), [false, true, false], "{mode:?}");
    }
}

#[test]
fn a_recalled_memory_is_in_the_context_however_little_kv_is_held() {
    let model = Arc::new(listener());
    // Not one chunk fits.
    let tiers = block_on(Tiered::open(vec![Tier::new(Arc::new(RamStore::default()), 1)])).unwrap();
    let memory = Memory::builder(Arc::clone(&model) as Arc<dyn Model>).kv(Arc::new(tiers)).build().unwrap();
    let front = Front::of(memory);
    let notes: Vec<String> = (0..8).map(|n| format!("Box {n} holds the tea of day {n}.")).collect();
    let ids = remember(&front, "me", json!({ "texts": notes }));
    for _ in 0..2 {
        let answer = ask(&front, "me", "Which box holds the tea?");
        let mut recalled: Vec<&str> =
            answer["amem"]["recalled"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
        recalled.sort_unstable();
        let mut expected: Vec<&str> = ids.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(recalled, expected);
        let prompt = model.prompts().pop().unwrap();
        assert!(notes.iter().all(|note| prompt.contains(note)), "{prompt}");
    }
}

#[test]
fn a_short_memory_costs_its_own_tokens_and_no_more() {
    let memory = in_ram();
    let front = Front::of(memory.clone());
    let note = "The tea is hot.";
    // The line that memories stand under is computed for the first question that anybody has.
    ask(&front, "somebody", "Why?");
    remember(&front, "me", json!({ "texts": [note] }));
    let first = ask(&front, "me", "Is the tea hot?");
    assert_eq!(first["amem"]["memory_tokens_prefilled_now"], memory.tokens(note).unwrap().len());
    let second = ask(&front, "me", "Is the tea hot?");
    assert_eq!(second["amem"]["memory_tokens_prefilled_now"], 0);
    assert_eq!(second["usage"]["prompt_tokens"], first["usage"]["prompt_tokens"]);
}

#[test]
fn texts_that_differ_in_a_number_or_a_name_are_all_kept_and_each_has_an_id() {
    let front = Front::of(in_ram());
    let numbers = (0..20).map(|n| format!("Invoice {n} of the harbour office was paid on the third of May."));
    let names = ["Anna", "Anne", "Hanna"].map(|name| format!("{name} lives in the white house behind the harbour."));
    let mut notes: Vec<String> = numbers.chain(names).collect();
    let ids = remember(&front, "me", json!({ "texts": notes }));
    let mut different = ids.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!((ids.len(), different.len()), (notes.len(), notes.len()));
    let (_, list) = call(Method::GET, &front, &["me"], None);
    assert_eq!(texts(&list), notes);
    // The same text again has the id that it had.
    notes.reverse();
    let again = remember(&front, "me", json!({ "texts": notes }));
    assert!(again.iter().eq(ids.iter().rev()));
}

#[test]
fn a_memory_that_no_longer_counts_cannot_be_changed_and_stays_out_of_sight() {
    let front = Front::of(in_ram());
    let old = remember(&front, "me", json!({ "texts": ["The tea is hot."], "keys": ["tea"] })).remove(0);
    let new = remember(&front, "me", json!({ "texts": ["The tea is cold."], "keys": ["tea"] })).remove(0);
    let past = json!({ "texts": ["The tea was green."], "keys": ["green"], "expires_at": 1_000_000_000 });
    let expired = remember(&front, "me", past).remove(0);
    let change = |id: &str| call(Method::PATCH, &front, &["me", id], Some(&json!({ "text": "The tea is gone." }))).0;
    assert_eq!((change(&old), change(&expired)), (409, 409));
    assert_eq!(call(Method::DELETE, &front, &["me", &new], None).0, 200);
    assert_eq!(change(&new), 404);
    assert_eq!(call(Method::DELETE, &front, &["me", &new], None).0, 404);
    let (_, list) = call(Method::GET, &front, &["me"], None);
    let (_, found) = post(front.url("/v1/recall"), &json!({ "user": "me", "query": "tea" }));
    assert_eq!((texts(&list), texts(&found)), (vec![], vec![]));
    // An expired memory's key is free: nothing is superseded by whoever takes it.
    let (_, answer) = post(front.url("/v1/memories"), &json!({ "user": "me", "texts": ["So."], "keys": ["green"] }));
    assert_eq!(answer["outcomes"][0]["outcome"], "added", "{answer}");
}

#[test]
fn a_slow_answer_keeps_nobody_else_waiting() {
    let long = "on and ".repeat(300);
    let (memory, _) = Scripted::new(&[("Go on", &long)]).pause(Duration::from_millis(20)).memory();
    let front = Front::of(memory.clone());
    remember(&front, "you", json!({ "texts": ["The tea is hot."] }));
    let question = json!([{ "role": "user", "content": "Go on" }]);
    let body = json!({ "model": "any", "user": "me", "messages": question, "stream": true, "max_tokens": 1000 });
    let slow = client().post(front.url("/v1/chat/completions")).json(&body).send().unwrap();
    while memory.engine().stats().running == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (_, found) = post(front.url("/v1/recall"), &json!({ "user": "you", "query": "tea" }));
    assert_eq!(texts(&found), ["The tea is hot."]);
    remember(&front, "you", json!({ "texts": ["The ice is cold."] }));
    assert_eq!(call(Method::GET, &front, &["you"], None).1["memories"].as_array().unwrap().len(), 2);
    assert_eq!(memory.engine().stats().running, 1, "it goes on all the while");
    drop(slow);
}

#[test]
fn kv_that_is_let_go_is_freed() {
    let ram: Arc<dyn amem_core::KvStore> = Arc::new(RamStore::default());
    // Room for about seven of them.
    let budget = 256 << 10;
    let tiers = block_on(Tiered::open(vec![Tier::new(Arc::clone(&ram), budget)])).unwrap();
    let memory = Memory::builder(super::common::MODEL.clone()).kv(Arc::new(tiers)).build().unwrap();
    let front = Front::of(memory);
    let all: Vec<String> = (0..24).map(|n| format!("Person{n} lives in Denver and works at Lego.")).collect();
    remember(&front, "alice", json!({ "texts": all }));
    for n in 0..24 {
        ask(&front, "alice", &format!("Where does Person{n} live?"));
    }
    let (held, told) = (block_on(ram.stats()), client().get(front.url("/v1/stats")).send().unwrap());
    assert!(held.bytes > 0 && held.bytes <= budget, "{} bytes are held", held.bytes);
    let told: Value = told.json().unwrap();
    assert_eq!(told["policy"]["tiers"][0]["bytes"], held.bytes, "and the server says so");
}
