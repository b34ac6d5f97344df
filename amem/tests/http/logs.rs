//! What the servers write down of what they do.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client;
use super::front::Process;

#[test]
fn logs_tell_of_every_request_and_hold_no_texts_and_no_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut command = Process::command(&["kv-serve"], &dir.path().join("data"));
    command.env("AMEM_LOG", "debug").env("AMEM_LOG_FORMAT", "json").env("AMEM_API_KEY", "keyzebra");
    command.stderr(File::create(&path).unwrap());
    let server = Process::spawn(command);
    let ask = |method: &str, target: &str, key: &str, body: Value| {
        let request = client().request(method.parse().unwrap(), server.url(target)).bearer_auth(key);
        let response = request.header("x-request-id", "the-name-of-it").json(&body).send().unwrap();
        (response.status().as_u16(), response.text().unwrap())
    };
    let texts = json!({ "user": "userzebra", "texts": ["Alice keeps a textzebra."], "keys": ["slotzebra"] });
    assert_eq!(ask("POST", "/v1/memories", "keyzebra", texts.clone()).0, 200);
    assert_eq!(ask("POST", "/v1/memories", "wrongzebra", texts).0, 401);
    assert_eq!(ask("POST", "/v1/memories", "keyzebra", json!({ "texts": { "badzebra": 1 } })).0, 422);
    assert_eq!(ask("GET", "/v1/memories/userzebra?filter=queryzebra", "keyzebra", json!(null)).0, 400);
    for stream in [false, true] {
        let messages = json!([{ "role": "user", "content": "Where is the textzebra, askzebra?" }]);
        let body = json!({ "user": "userzebra", "messages": messages, "stream": stream, "max_tokens": 8 });
        assert_eq!(ask("POST", "/v1/chat/completions", "keyzebra", body).0, 200);
    }
    // The line of a request is written behind its answer.
    let begun = Instant::now();
    let log = loop {
        let log = fs::read_to_string(&path).unwrap();
        if log.matches("answered").count() >= 6 || begun.elapsed() > Duration::from_secs(20) {
            break log;
        }
    };
    assert!(log.matches("the-name-of-it").count() >= 6, "{log}");
    assert!(log.contains("/v1/chat/completions"), "{log}");
    // A path is written down as it is routed by, without the user's name.
    assert!(log.contains("/v1/memories/{user}"), "{log}");
    assert!(!log.contains("zebra"), "{log}");
    let entries: Vec<&str> = log.lines().filter(|line| line.starts_with('{')).collect();
    assert!(entries.len() >= 6 && entries.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
}
