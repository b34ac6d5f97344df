//! `amem kv-serve` and `amem serve` as processes.

use serde_json::{Value, json};

use super::front::{Front, Process};
use super::{client, common, post};

#[test]
fn a_server_says_where_it_listens_and_that_it_is_alive() {
    let dir = tempfile::tempdir().unwrap();
    for mode in ["kv-serve", "serve"] {
        let server = Process::start(&[mode], dir.path());
        let health: Value = client().get(server.url("/health")).send().unwrap().json().unwrap();
        assert_eq!(health["status"], "ok");
        assert_eq!(health["mode"], mode);
        assert_eq!(health["auth"], "off");
    }
}

#[test]
fn errors_are_json_with_what_every_client_looks_for() {
    let front = Front::of(common::in_ram());
    let (status, body) = post(front.url("/v1/memories"), &json!({ "texts": [] }));
    assert_eq!(status, 400);
    for message in [&body["detail"], &body["error"]["message"]] {
        assert!(message.as_str().unwrap().contains("texts is empty"), "{body}");
    }
    assert_eq!(body["type"], "error");
    assert_eq!(post(front.url("/v1/memories"), &json!({ "texts": 1 })).0, 422);
    assert_eq!(post(front.url("/nowhere"), &json!({})).0, 404);
    assert_eq!(post(front.url("/health"), &json!({})).0, 405);
    let response = client().post(front.url("/v1/memories")).body("{").send().unwrap();
    assert_eq!(response.status().as_u16(), 400);
    assert!(response.headers().contains_key("x-request-id"));
}
