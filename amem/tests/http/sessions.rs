//! `/v1/sessions`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use amem::http::{Identity, KeyHeader};
use amem::keys::{Grant, KeyFile};
use amem::server::{Mode, Options};
use amem_core::transformer::{Options as LoadOptions, Transformer};
use amem_core::{Memory, Model, Namespace};
use amem_cpu::Cpu;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::common::{block_on, in_ram};
use super::front::Front;
use super::memories::{call, get};
use super::{client, post};

fn open(front: &Front, body: &Value) -> Value {
    let (status, answer) = post(front.url("/v1/sessions"), body);
    assert_eq!(status, 200, "{answer}");
    answer
}

fn state(front: &Front, session: &Value) -> (u16, Value) {
    call(Method::GET, front.url(&format!("/v1/sessions/{}", session["session"].as_str().unwrap())), None)
}

/// A server that holds sessions like this.
fn holding(most: usize, idle: Duration) -> Front {
    let mut options = Options::default();
    (options.max_sessions, options.session_idle) = (most, idle);
    Front::with(in_ram(), Identity::new(KeyHeader::Authorization), options)
}

#[test]
fn a_session_with_a_seed_has_its_working_set_in_place() {
    let memory = in_ram();
    block_on(memory.remember_all("a", ["Alice lives in Denver.", "Bob's locker code is 4817."])).unwrap();
    let front = Front::of(memory.clone());
    let bare = open(&front, &json!({ "user": "a" }));
    assert_eq!((&bare["resident_turns"], &bare["resident_tokens"]), (&json!(0), &json!(0)));
    assert_eq!(bare["budget_tokens"], memory.model().info().context);
    let seeded = open(&front, &json!({ "user": "a", "seed_query": "Where does Alice live?", "budget_tokens": 100 }));
    let tokens = |text| memory.tokens(text).unwrap().len();
    let standing =
        memory.layout().prefix.len() + tokens("Alice lives in Denver.") + tokens("Bob's locker code is 4817.");
    assert_eq!((&seeded["resident_turns"], &seeded["resident_tokens"]), (&json!(2), &json!(standing)));
    assert_eq!((&seeded["user"], &seeded["budget_tokens"]), (&json!("a"), &json!(100)));
    assert_eq!(state(&front, &seeded), (200, seeded.clone()));
    let url = front.url(&format!("/v1/sessions/{}", seeded["session"].as_str().unwrap()));
    let (status, ended) = call(Method::DELETE, url.clone(), None);
    assert_eq!((status, &ended["ended"]), (200, &json!(true)));
    assert_eq!(call(Method::DELETE, url, None).0, 404);
    assert_eq!(state(&front, &seeded).0, 404);
    assert_eq!(state(&front, &bare).0, 200);
}

#[test]
fn a_filter_keeps_memories_out_of_a_session() {
    let front = Front::of(in_ram());
    let body = json!({ "user": "a", "texts": ["Alice lives in Denver.", "Alice likes tea."],
        "metadata": [{ "topic": "home" }, { "topic": "food" }] });
    post(front.url("/v1/memories"), &body);
    let session = open(&front, &json!({ "user": "a", "seed_query": "Alice", "filter": { "topic": "food" } }));
    assert_eq!(session["resident_turns"], 1);
    let recall = |more: Value| {
        let mut body = json!({ "user": "a", "query": "Alice", "session": session["session"] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(front.url("/v1/recall"), &body)
    };
    assert_eq!(recall(json!({})).1["sources"], json!(["Alice likes tea."]));
    assert_eq!(recall(json!({ "filter": {} })).0, 400, "the session has its own");
    assert_eq!(recall(json!({ "as_of": "2020-01-01" })).0, 400);
}

#[test]
fn what_makes_no_sense_opens_no_session() {
    let front = Front::of(in_ram());
    for bad in [
        json!({ "budget_tokens": 1 }),
        json!({ "max_turns": 0 }),
        json!({ "max_turns": 1001 }),
        json!({ "filter": [] }),
        json!({ "user": "" }),
    ] {
        assert_eq!(post(front.url("/v1/sessions"), &bad).0, 400, "{bad}");
    }
    assert_eq!(post(front.url("/v1/sessions"), &json!({ "budget_tokens": -1 })).0, 422);
    assert_eq!(get(front.url("/v1/stats"))["sessions"], 0);
    let large = open(&front, &json!({ "budget_tokens": 1_000_000 }));
    assert!(large["budget_tokens"].as_u64().unwrap() < 1_000_000, "the model holds no more than it can");
}

#[test]
fn in_a_session_the_working_set_of_recalls_only_grows_until_something_is_forgotten() {
    let front = Front::of(in_ram());
    let texts = json!(["Alice lives in Denver.", "Bob has a dog named Rex.", "Carol likes tea."]);
    let ids = post(front.url("/v1/memories"), &json!({ "user": "a", "texts": texts })).1["added"].clone();
    let session = open(&front, &json!({ "user": "a", "max_turns": 1 }));
    let recall = |query: &str, more: Value| {
        let mut body = json!({ "user": "a", "query": query, "session": session["session"] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(front.url("/v1/recall"), &body).1
    };
    let bob = recall("Bob", json!({}));
    assert_eq!((&bob["working_set"], &bob["session"]), (&json!("Bob has a dog named Rex."), &session["session"]));
    let alice = recall("Alice", json!({}));
    assert_eq!(alice["working_set"], "Bob has a dog named Rex.\nAlice lives in Denver.");
    assert_eq!((alice["memories"].as_array().unwrap().len(), &alice["n_turns"]), (1, &json!(2)));
    assert_eq!(recall("Bob", json!({}))["working_set"], alice["working_set"]);
    let small = recall("Carol", json!({ "budget_tokens": alice["tokens"] }));
    assert_eq!((&small["working_set"], &small["memories"]), (&alice["working_set"], &json!([])), "there is no room");
    call(Method::DELETE, front.url(&format!("/v1/memories/a/{}", ids[1].as_str().unwrap())), None);
    assert_eq!(recall("Carol", json!({}))["working_set"], "Alice lives in Denver.\nCarol likes tea.");
}

#[test]
fn nobody_can_guess_a_session_or_use_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyFile::at(dir.path().join("keys.json"));
    let key = |user: &str| keys.create(Grant::Namespace(Namespace::new(user).unwrap())).unwrap().1;
    let (alice, bob) = (key("alice"), key("bob"));
    let front = Front::with(in_ram(), Identity::new(KeyHeader::Authorization).keys(keys.clone()), Options::default());
    let call = |key: &secrecy::SecretString, method: Method, path: &str, body: Value| {
        let request = client().request(method, front.url(path)).bearer_auth(key.expose_secret()).json(&body);
        let response = request.send().unwrap();
        (response.status().as_u16(), response.json::<Value>().unwrap())
    };
    let opened: Vec<Value> = (0..20).map(|_| call(&alice, Method::POST, "/v1/sessions", json!({})).1).collect();
    let names: HashSet<&str> = opened.iter().map(|session| session["session"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 20);
    for name in &names {
        let digits = name.strip_prefix("sess-").unwrap();
        assert!(digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{name}");
    }
    let path = format!("/v1/sessions/{}", opened[0]["session"].as_str().unwrap());
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(call(&bob, method, &path, Value::Null).0, 404);
    }
    let theirs = json!({ "query": "x", "session": opened[0]["session"] });
    assert_eq!(call(&bob, Method::POST, "/v1/recall", theirs).0, 404);
    // A user's own session has a name that everybody knows.
    let own = json!({ "query": "x", "session": "user:alice" });
    assert_eq!(call(&alice, Method::POST, "/v1/recall", own.clone()).0, 200);
    assert_eq!(call(&bob, Method::POST, "/v1/recall", own).0, 404);
    assert_eq!(call(&bob, Method::GET, "/v1/sessions/user:alice", Value::Null).0, 404);
    let (status, own) = call(&alice, Method::GET, "/v1/sessions/user:alice", Value::Null);
    assert_eq!((status, &own["user"], &own["session"]), (200, &json!("alice"), &json!("user:alice")));
    assert_eq!(call(&alice, Method::GET, &path, Value::Null).0, 200);
}

#[test]
fn the_session_that_was_used_longest_ago_makes_room() {
    let front = holding(2, Duration::from_secs(3600));
    let (first, second) = (open(&front, &json!({})), open(&front, &json!({})));
    assert_eq!(state(&front, &first).0, 200);
    let third = open(&front, &json!({}));
    assert_eq!([&first, &second, &third].map(|session| state(&front, session).0), [200, 404, 200]);
    assert_eq!(get(front.url("/v1/stats"))["sessions"], 2);
}

/// Each user's session holds KV, and the cache has no room for all of them.
#[test]
fn sessions_that_nobody_uses_make_room_in_the_kv_cache() {
    let load = |options| Transformer::load(&amem_demo::files(), Cpu::with_threads(2).unwrap(), options).unwrap();
    let model = load(LoadOptions::default());
    let token_bytes = (model.info().shape.token_numbers() * model.info().dtype.size()) as u64;
    drop(model);
    let model = load(LoadOptions::default().kv_cache_bytes(token_bytes));
    // One context always fits.
    let room = model.info().context;
    let memory = Memory::builder(Arc::new(model)).build().unwrap();
    let texts = (0..12).map(|n| format!("Alice has {n} apples and {n} pears and {n} plums in box {n}."));
    let texts: Vec<String> = texts.collect();
    let mut options = Options::default();
    options.mode = Mode::Resident;
    let front = Front::with(memory.clone(), Identity::new(KeyHeader::Authorization), options);
    let each: usize = texts.iter().map(|text| memory.tokens(text).unwrap().len()).sum();
    let users: Vec<String> = (0..room / each + 3).map(|n| format!("user-{n}")).collect();
    for user in &users {
        assert_eq!(post(front.url("/v1/memories"), &json!({ "user": user, "texts": texts })).0, 200);
        let messages = json!([{ "role": "user", "content": "How many apples has Alice?" }]);
        let body = json!({ "user": user, "messages": messages, "max_tokens": 8, "k": 12 });
        let (status, answer) = post(front.url("/v1/chat/completions"), &body);
        assert_eq!(status, 200, "{user}: {answer}");
    }
    let held = get(front.url("/v1/stats"))["sessions"].as_u64().unwrap();
    assert!((1..users.len() as u64).contains(&held), "{held} sessions of {} are held", users.len());
    // So does one that is opened with a seed.
    let names: Vec<Value> =
        users.iter().map(|user| open(&front, &json!({ "user": user, "seed_query": "apples" }))).collect();
    assert_eq!(state(&front, &names[0]).0, 404);
    assert_eq!(state(&front, names.last().unwrap()).0, 200);
    // What can never have room ends none of them.
    let held = get(front.url("/v1/stats"))["sessions"].clone();
    let ask = |n: u64| {
        let messages = json!([{ "role": "user", "content": "How many apples has Alice?" }]);
        let body = json!({ "user": "nobody", "messages": messages, "residency": false, "max_tokens": room, "n": n,
            "stop": ["e", "a", "i", "o", "1"] });
        post(front.url("/v1/chat/completions"), &body)
    };
    let (status, refused) = ask(4);
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("context_length_exceeded")), "{refused}");
    assert_eq!(get(front.url("/v1/stats"))["sessions"], held);
    // What needs all the room, outside of sessions, ends all of them.
    let (status, answer) = ask(1);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(get(front.url("/v1/stats"))["sessions"], 0);
}

#[test]
fn a_session_begins_with_as_many_rows_repaired_as_the_server_was_told() {
    let repaired = |ratio: Option<f32>| {
        let mut options = Options::default();
        options.recompute_ratio = ratio;
        let front = Front::with(in_ram(), Identity::new(KeyHeader::Authorization), options);
        let texts: Vec<String> = (0..8).map(|n| format!("Alice has {n} apples in box {n}.")).collect();
        post(front.url("/v1/memories"), &json!({ "user": "a", "texts": texts }));
        let session = open(&front, &json!({ "user": "a" }));
        let messages = json!([{ "role": "user", "content": "How many apples has Alice?" }]);
        let body = json!({ "user": "a", "session": session["session"], "messages": messages, "max_tokens": 4 });
        let (status, answer) = post(front.url("/v1/chat/completions"), &body);
        assert_eq!(status, 200, "{answer}");
        answer["amem"]["repaired_tokens"].as_u64().unwrap()
    };
    let (none, default, all) = (repaired(Some(0.0)), repaired(None), repaired(Some(1.0)));
    // Questions have rows repaired, too.
    assert!(none < default && 4 * (default - none) < all - none, "{none}, {default}, {all}");
}

#[test]
fn a_session_that_nobody_uses_ends() {
    let front = holding(10, Duration::ZERO);
    let session = open(&front, &json!({}));
    assert_eq!(state(&front, &session).0, 404);
}

#[test]
fn the_sessions_of_a_user_end_with_the_users_memories() {
    let front = Front::of(in_ram());
    post(front.url("/v1/memories"), &json!({ "user": "a", "texts": ["Alice lives in Denver."] }));
    let (ours, theirs) =
        (open(&front, &json!({ "user": "a", "seed_query": "Alice" })), open(&front, &json!({ "user": "b" })));
    call(Method::DELETE, front.url("/v1/memories/a"), None);
    assert_eq!((state(&front, &ours).0, state(&front, &theirs).0), (404, 200));
}
