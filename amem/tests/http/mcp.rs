//! `amem mcp` over HTTP: who may come in, and what becomes of the KV of what is forgotten there.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use amem::http::{Identity, KeyHeader, Limits};
use amem::keys::{Grant, KeyFile};
use amem::mcp::{HttpOptions, Mcp, router};
use amem_core::{Namespace, RamLedger, TextMemory};
use reqwest::blocking::Response;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::client;
use super::common::{block_on, on_disk};
use super::front::{Front, Process};

/// A server of a memory that nobody else has.
fn serve(identity: Identity) -> Front {
    serve_with(identity, &HttpOptions::default(), Limits::default())
}

fn serve_with(identity: Identity, options: &HttpOptions, limits: Limits) -> Front {
    let mcp = Mcp::new(TextMemory::new(Arc::new(RamLedger::new())), None, false);
    Front::start(router(mcp, identity, options).0, limits)
}

fn open() -> Identity {
    Identity::new(KeyHeader::Authorization)
}

/// Sends a message with these headers.
fn send(url: &str, headers: &[(&str, &str)], message: &Value) -> Response {
    let request = client().post(url).header("accept", "application/json, text/event-stream").json(message);
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().unwrap()
}

/// The message in an answer, which is one event of a stream.
fn message(response: Response) -> Value {
    assert_eq!(response.status(), 200);
    let text = response.text().unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data:")).find(|data| !data.trim().is_empty());
    serde_json::from_str(data.unwrap_or_else(|| panic!("no message in {text:?}"))).unwrap()
}

fn initialize(url: &str, headers: &[(&str, &str)]) -> Response {
    let parameters = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } });
    send(url, headers, &json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": parameters }))
}

/// A session, by its id.
fn begin(url: &str, headers: &[(&str, &str)]) -> String {
    let response = initialize(url, headers);
    let id = response.headers()["mcp-session-id"].to_str().unwrap().to_owned();
    assert_eq!(message(response)["result"]["serverInfo"]["name"], "amem");
    let headers = [headers, &[("mcp-session-id", &*id)]].concat();
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert_eq!(send(url, &headers, &initialized).status(), 202);
    id
}

/// What a tool answers, in a session of its own.
fn call(url: &str, headers: &[(&str, &str)], tool: &str, arguments: &Value) -> Value {
    let session = begin(url, headers);
    let headers = [headers, &[("mcp-session-id", &*session)]].concat();
    let parameters = json!({ "name": tool, "arguments": arguments });
    let request = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": parameters });
    message(send(url, &headers, &request))["result"].take()
}

fn ping(url: &str, headers: &[(&str, &str)], session: &str) -> u16 {
    let headers = [headers, &[("mcp-session-id", session)]].concat();
    send(url, &headers, &json!({ "jsonrpc": "2.0", "id": 3, "method": "ping" })).status().as_u16()
}

/// A file of keys, and what two users send by theirs.
fn two_users(dir: &Path) -> (KeyFile, String, String) {
    let keys = KeyFile::at(dir.join("keys.json"));
    let bearer = |name: &str| {
        let (_, secret) = keys.create(Grant::Namespace(Namespace::new(name).unwrap())).unwrap();
        format!("Bearer {}", secret.expose_secret())
    };
    let (alice, bob) = (bearer("alice"), bearer("bob"));
    (keys, alice, bob)
}

#[test]
fn the_key_says_whose_memory_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, alice, bob) = two_users(dir.path());
    let front = serve(open().keys(keys));
    let url = front.url("/mcp");
    for wrong in [&[][..], &[("authorization", "Bearer amem_0")], &[("authorization", "Bearer ")]] {
        let refused = initialize(&url, wrong);
        assert_eq!(
            (refused.status().as_u16(), refused.headers()["www-authenticate"].to_str().unwrap()),
            (401, "Bearer")
        );
    }
    let (alice, bob) = ([("authorization", &*alice)], [("authorization", &*bob)]);
    let told = call(&url, &alice, "remember", &json!({ "texts": ["The code is 4711."] }));
    assert_eq!(told["structuredContent"]["user"], "alice");
    let recall = json!({ "query": "code" });
    assert_eq!(call(&url, &bob, "recall", &recall)["structuredContent"]["memories"], json!([]));
    assert_eq!(call(&url, &bob, "recall", &json!({ "query": "code", "user": "alice" }))["isError"], true);
    let found = call(&url, &alice, "recall", &recall);
    assert_eq!(found["structuredContent"]["memories"][0]["text"], "The code is 4711.");
}

#[test]
fn a_session_is_open_to_who_began_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, alice, bob) = two_users(dir.path());
    let front = serve(open().keys(keys));
    let url = front.url("/mcp");
    let (alice, bob) = ([("authorization", &*alice)], [("authorization", &*bob)]);
    let session = begin(&url, &alice);
    assert_eq!(ping(&url, &alice, &session), 200);
    assert_eq!(ping(&url, &bob, &session), 404);
    assert_eq!(ping(&url, &[], &session), 401);
    assert_eq!(ping(&url, &bob, "unknown"), 404);
    let stream = client().get(&url).header("accept", "text/event-stream").header("mcp-session-id", &session);
    assert_eq!(stream.header(bob[0].0, bob[0].1).send().unwrap().status(), 404);
    let end =
        |by: (&str, &str)| client().delete(&url).header("mcp-session-id", &session).header(by.0, by.1).send().unwrap();
    assert_eq!(end(bob[0]).status(), 404);
    assert!(end(alice[0]).status().is_success());
    assert_eq!(ping(&url, &alice, &session), 404);
}

#[test]
fn pages_and_names_of_others_are_refused() {
    let mut limits = Limits::default();
    limits.origins.push("https://app.example".parse().unwrap());
    limits.hosts = Some(vec!["amem.example".to_owned()]);
    let front = serve_with(open(), &HttpOptions::default(), limits);
    let url = front.url("/mcp");
    for (header, value, status) in [
        ("origin", "http://localhost:3000", 200),
        ("origin", "http://127.0.0.1:8200", 200),
        ("origin", "https://app.example", 200),
        ("origin", "https://app.example:8443", 403),
        ("origin", "http://app.example", 403),
        ("origin", "http://evil.example", 403),
        ("origin", "http://localhost.evil.example", 403),
        ("origin", "null", 403),
        ("host", "localhost:1", 200),
        ("host", "192.168.1.5:8200", 200),
        ("host", "amem.example:8200", 200),
        ("host", "evil.example", 403),
    ] {
        assert_eq!(initialize(&url, &[(header, value)]).status().as_u16(), status, "{header}: {value}");
    }
    let own_page = [("host", "192.168.1.5:8200"), ("origin", "http://192.168.1.5:8200")];
    assert_eq!(initialize(&url, &own_page).status(), 200, "it is a page of the server's own");
}

#[test]
fn a_page_of_an_origin_that_is_let_in_may_send_what_mcp_needs_and_read_its_session() {
    let mut limits = Limits::default();
    let origin = "https://app.example";
    limits.origins.push(origin.parse().unwrap());
    let front = serve_with(open(), &HttpOptions::default(), limits);
    let asks = client().request(reqwest::Method::OPTIONS, front.url("/mcp")).header("origin", origin);
    let asks = asks.header("access-control-request-method", "POST");
    let told = asks.header("access-control-request-headers", "mcp-session-id").send().unwrap();
    let header = |name: &str| told.headers()[name].to_str().unwrap().to_lowercase();
    assert_eq!(header("access-control-allow-origin"), origin);
    assert!(header("access-control-allow-headers").contains("mcp-session-id"));
    let begun = initialize(&front.url("/mcp"), &[("origin", origin)]);
    let exposed = begun.headers()["access-control-expose-headers"].to_str().unwrap().to_lowercase();
    assert!(exposed.contains("mcp-session-id"), "{exposed}");
}

#[test]
fn of_too_many_sessions_the_one_that_was_used_longest_ago_ends() {
    let mut options = HttpOptions::default();
    options.max_sessions = 2;
    let front = serve_with(open(), &options, Limits::default());
    let url = front.url("/mcp");
    let (first, second) = (begin(&url, &[]), begin(&url, &[]));
    assert_eq!(ping(&url, &[], &first), 200);
    let third = begin(&url, &[]);
    assert_eq!([&first, &second, &third].map(|session| ping(&url, &[], session)), [200, 404, 200]);
}

#[test]
fn what_is_said_of_http_is_refused_where_it_is_not_spoken_and_not_what_the_environment_says() {
    let dir = tempfile::tempdir().unwrap();
    let run = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amem"));
        command.arg("mcp").args(flags).arg("--data-dir").arg(dir.path()).env("AMEM_API_KEY", "secret");
        command.stdin(Stdio::null()).output().unwrap()
    };
    for flags in [
        &["--host", "0.0.0.0"][..],
        &["--api-key", "secret"],
        &["--trusted-header", "x-user"],
        &["--multi-tenant"],
        &["--allow-origin", "https://app.example"],
        &["--max-body-mib", "1"],
        &["--port", "0"],
    ] {
        let refused = run(flags);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains("--http") && (flags[0] == "--port" || said.contains(flags[0])), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
    let stdio = run(&[]);
    assert!(stdio.status.success() && stdio.stdout.is_empty(), "{}", String::from_utf8_lossy(&stdio.stderr));
}

#[test]
fn the_kv_of_what_is_forgotten_in_another_process_is_gone_with_the_next_question() {
    let dir = tempfile::tempdir().unwrap();
    let memory = on_disk(dir.path());
    let mcp = Process::start(&["mcp", "--http"], dir.path());
    let told = call(&mcp.url, &[], "remember", &json!({ "texts": ["Alice lives in Denver.", "Bob lives in Oslo."] }));
    let alice = told["structuredContent"]["memories"][0]["id"].as_str().unwrap().to_owned();
    block_on(async {
        let answer = memory.ask("default", "Where does Alice live?").await.unwrap();
        assert!(answer.text.contains("Denver"), "{}", answer.text);
        let chunk = memory.stats("default").await.unwrap().chunks;
        assert_eq!(chunk, 2);
        assert_eq!(call(&mcp.url, &[], "forget", &json!({ "memory_id": alice }))["isError"], false);
        memory.ask("default", "Where does Bob live?").await.unwrap();
        assert_eq!(memory.stats("default").await.unwrap().chunks, 1);
        let moved = told["structuredContent"]["memories"][1]["id"].as_str().unwrap();
        let update = json!({ "memory_id": moved, "text": "Bob lives in Kyiv." });
        assert_eq!(call(&mcp.url, &[], "update", &update)["isError"], false);
        let answer = memory.ask("default", "Where does Bob live?").await.unwrap();
        assert!(answer.text.contains("Kyiv"), "{}", answer.text);
        assert_eq!(memory.stats("default").await.unwrap().chunks, 1, "that of Oslo is gone, that of Kyiv is new");
        for (texts, keys) in [("Carl lives in Rome.", "carl"), ("Carl lives in Bonn.", "carl")] {
            let told = call(&mcp.url, &[], "remember", &json!({ "texts": [texts], "keys": [keys] }));
            assert_eq!(told["isError"], false);
        }
        let forgotten = call(&mcp.url, &[], "forget", &json!({ "key": "carl" }));
        assert_eq!(forgotten["structuredContent"]["ids"].as_array().unwrap().len(), 2, "the earlier one too");
        for bad in [json!({}), json!({ "key": "carl", "memory_id": moved })] {
            assert_eq!(call(&mcp.url, &[], "forget", &bad)["isError"], true, "{bad}");
        }
    });
}
