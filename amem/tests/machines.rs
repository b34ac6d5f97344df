//! `amem kv-serve` on two machines that share their records in PostgreSQL and KV in Redis.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "common/front.rs"]
mod front;
#[allow(dead_code)]
#[path = "../../amem-store/tests/common/postgres_server.rs"]
mod postgres_server;
#[path = "../../amem-store/tests/common/servers.rs"]
mod servers;

use reqwest::blocking::Client;
use serde_json::{Value, json};

use front::Process;

fn start(ledger: &str, redis: u16, name: &str, data: &std::path::Path) -> Process {
    let kv = format!("redis://127.0.0.1:{redis}");
    Process::start(&["kv-serve", "--ledger", ledger, "--server-name", name, "--shared-kv", &kv], data)
}

fn post(server: &Process, path: &str, body: &Value) -> Value {
    let response = Client::new().post(server.url(path)).json(body).send().unwrap();
    let status = response.status();
    let body: Value = response.json().unwrap();
    assert!(status.is_success(), "{body}");
    body
}

fn recalled(server: &Process) -> Vec<String> {
    let body = post(server, "/v1/recall", &json!({ "user": "alice", "query": "Where does Alice live?" }));
    body["memories"].as_array().unwrap().iter().map(|memory| memory["text"].as_str().unwrap().to_owned()).collect()
}

fn ask(server: &Process) -> Value {
    let messages = json!([{ "role": "user", "content": "Where does Alice live?" }]);
    post(server, "/v1/chat/completions", &json!({ "user": "alice", "messages": messages, "temperature": 0 }))
}

#[test]
fn what_one_server_was_told_another_knows_and_what_one_forgot_is_forgotten_by_the_other() {
    let (Some(postgres), Some(redis)) = (postgres_server::shared(), servers::redis(None)) else { return };
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ledger = postgres.address();
    let one = start(&ledger, redis.port, "one", dir.path());
    let other = start(&ledger, redis.port, "other", other_dir.path());

    let text = "Alice lives in Denver.";
    let added = post(&one, "/v1/memories", &json!({ "user": "alice", "texts": [text] }));
    let (answer, again) = (ask(&one), ask(&other));
    let said = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(said(&answer), text);
    assert_eq!(said(&again), text, "both answer from the same memory");

    // The first one is gone from one moment to the next; what it acknowledged is not.
    let id = added["added"][0].as_str().unwrap();
    drop(one);
    assert_eq!(recalled(&other), [text]);
    let one = start(&ledger, redis.port, "one", dir.path());
    let forgotten = Client::new().delete(other.url(&format!("/v1/memories/alice/{id}"))).send().unwrap();
    assert!(forgotten.status().is_success());
    assert!(recalled(&one).is_empty() && recalled(&other).is_empty());
    assert!(!dir.path().join("ledger.sqlite").exists(), "records are nowhere but in the database");
}
