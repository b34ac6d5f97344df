//! `amem kv-serve` on two machines that share their records in PostgreSQL and KV in Redis or S3.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "common/front.rs"]
mod front;
#[allow(dead_code)]
#[path = "../../amem-store/tests/common/postgres_server.rs"]
mod postgres_server;
#[path = "../../amem-store/tests/common/servers.rs"]
mod servers;

use std::io::{Read, Write};
use std::net::TcpStream;

use reqwest::blocking::Client;
use serde_json::{Value, json};

use front::Process;

fn start(ledger: &str, kv: &str, name: &str, data: &std::path::Path) -> Process {
    let options = ["kv-serve", "--ledger", ledger, "--server-name", name, "--shared-kv", kv];
    let mut command = Process::command(&options, data);
    command.env("AWS_ACCESS_KEY_ID", "somebody").env("AWS_SECRET_ACCESS_KEY", "hunter2");
    Process::spawn(command)
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
    let Some(redis) = servers::redis(None) else { return };
    let chunks = || servers::ask_redis(&redis, "KEYS amem/v1/*").matches("amem/v1/").count();
    two_servers(&format!("redis://127.0.0.1:{}", redis.port), "over_redis", chunks);
}

#[test]
fn servers_share_kv_in_a_bucket_as_well() {
    let Some(s3) = servers::s3() else { return };
    let chunks = || {
        let mut client = TcpStream::connect(("127.0.0.1", s3.port)).unwrap();
        let host = format!("Host: 127.0.0.1:{}", s3.port);
        write!(client, "GET /agents-kv?list-type=2 HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut listed = String::new();
        client.read_to_string(&mut listed).unwrap();
        listed.matches("<Key>team/v1/").count()
    };
    let url = format!("s3://agents-kv/team?region=us-east-1&endpoint=http://127.0.0.1:{}", s3.port);
    two_servers(&url, "over_s3", chunks);
}

/// Waits until so many chunks are shared: they are written, and deleted, behind the answers.
fn wait_for(chunks: impl Fn() -> usize, expected: usize) {
    for _ in 0..600 {
        if chunks() == expected {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{} chunks are shared, not {expected}", chunks());
}

/// One server is told something, and killed; the other knows it, and forgets it.
fn two_servers(kv: &str, database: &str, chunks: impl Fn() -> usize) {
    let Some(postgres) = postgres_server::shared() else { return };
    postgres.sql(&format!("CREATE DATABASE {database}"));
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ledger = postgres.address().replace("dbname=postgres", &format!("dbname={database}"));
    let one = start(&ledger, kv, "one", dir.path());
    let other = start(&ledger, kv, "other", other_dir.path());

    let text = "Alice lives in Denver.";
    let added = post(&one, "/v1/memories", &json!({ "user": "alice", "texts": [text] }));
    let (answer, again) = (ask(&one), ask(&other));
    let said = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(said(&answer), text);
    assert_eq!(said(&again), text, "both answer from the same memory");
    // That of the system line, and that of the memory.
    wait_for(&chunks, 2);

    // The first one is gone from one moment to the next; what it acknowledged is not.
    let id = added["added"][0].as_str().unwrap();
    drop(one);
    assert_eq!(recalled(&other), [text]);
    let one = start(&ledger, kv, "one", dir.path());
    let forgotten = Client::new().delete(other.url(&format!("/v1/memories/alice/{id}"))).send().unwrap();
    assert!(forgotten.status().is_success());
    assert!(recalled(&one).is_empty() && recalled(&other).is_empty());
    wait_for(&chunks, 1);
    assert!(!dir.path().join("ledger.sqlite").exists(), "records are nowhere but in the database");
}

#[test]
fn what_is_forgotten_from_a_shell_is_deleted_from_the_shared_server_too_which_has_to_be_named() {
    let Some(redis) = servers::redis(Some("hunter2")) else { return };
    let (dir, other) = (tempfile::tempdir().unwrap(), "redis://127.0.0.1:1");
    let url = format!("redis://:hunter2@127.0.0.1:{}", redis.port);
    let server = Process::start(&["kv-serve", "--shared-kv", &url], dir.path());
    let added = post(&server, "/v1/memories", &json!({ "user": "alice", "texts": ["Alice lives in Denver."] }));
    ask(&server);
    server.stop();
    let note = std::fs::read_to_string(dir.path().join("shared-kv")).unwrap();
    assert_eq!(note, format!("redis 127.0.0.1:{}/0\n", redis.port), "without the password");
    let keys = || servers::ask_redis(&redis, "AUTH hunter2\r\nKEYS amem/v1/*").matches("amem/v1/").count();
    let before = keys();
    let forget = |options: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_amem"));
        let id = added["added"][0].as_str().unwrap();
        command.args(["forget", "alice", id, "--data-dir"]).arg(dir.path()).args(options).output().unwrap()
    };
    for options in [&[][..], &["--shared-kv", other]] {
        let refused = forget(options);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("their KV is not deleted yet: KV is kept on redis"),
            "{said}"
        );
    }
    assert_eq!(keys(), before);
    let forgotten = forget(&["--shared-kv", &url]);
    assert!(forgotten.status.success(), "{}", String::from_utf8_lossy(&forgotten.stderr));
    // Of her memory's KV and of the system line's, the latter stays.
    assert!(before > 0 && keys() == before / 2, "{} of {before}", keys());
}
