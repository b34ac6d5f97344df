//! Clients through the proxy, to an upstream that answers as OpenAI's and Anthropic's do.

use std::sync::Arc;

use amem::http::{Identity, KeyHeader, Limits};
use amem::proxy::{Config, Kind, Options, Proxy, Secret, UpstreamConfig};
use amem_core::{RamLedger, TextMemory, TextMemoryOptions};
use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::front::Front;
use super::python;

/// What an upstream answers with: the last message that it was sent, so that a client sees what it was told.
fn heard(body: &Value) -> String {
    let message = &body["messages"].as_array().unwrap().last().unwrap()["content"];
    let system = body.get("system").unwrap_or(&body["messages"][0]["content"]);
    format!("{system} {message}")
}

fn events(events: &[(&str, Value)]) -> Response {
    let mut text = String::new();
    for (name, data) in events {
        if !name.is_empty() {
            text += &format!("event: {name}\n");
        }
        text += &format!("data: {data}\n\n");
    }
    let mut response = Response::new(Body::from(text.replace("data: \"[DONE]\"", "data: [DONE]")));
    response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
    response
}

fn refused() -> Response {
    let error = json!({ "type": "error", "error": { "type": "rate_limit_error", "message": "too many" } });
    (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7"), ("request-id", "req_1")], axum::Json(error)).into_response()
}

async fn chat_completions(axum::Json(body): axum::Json<Value>) -> Response {
    if body["model"] == "busy" {
        return refused();
    }
    let usage = json!({ "prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107,
        "prompt_tokens_details": { "cached_tokens": 60 } });
    let common = |object: &str| json!({ "id": "chatcmpl-1", "object": object, "created": 1, "model": body["model"] });
    if body["stream"] == true {
        let chunk = |delta: Value, finish: Value| {
            let mut chunk = common("chat.completion.chunk");
            chunk["choices"] = json!([{ "index": 0, "delta": delta, "finish_reason": finish }]);
            chunk
        };
        let mut last = common("chat.completion.chunk");
        (last["choices"], last["usage"]) = (json!([]), usage);
        let first = chunk(json!({ "role": "assistant", "content": "" }), Value::Null);
        let text = chunk(json!({ "content": heard(&body) }), Value::Null);
        let end = chunk(json!({}), json!("stop"));
        return events(&[("", first), ("", text), ("", end), ("", last), ("", json!("[DONE]"))]);
    }
    let mut answer = common("chat.completion");
    let message = json!({ "role": "assistant", "content": heard(&body) });
    answer["choices"] = json!([{ "index": 0, "message": message, "finish_reason": "stop" }]);
    answer["usage"] = usage;
    axum::Json(answer).into_response()
}

async fn messages(axum::Json(body): axum::Json<Value>) -> Response {
    if body["model"] == "busy" {
        return refused();
    }
    let mut usage = json!({ "input_tokens": 30, "output_tokens": 7, "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 10 });
    let mut answer = json!({ "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"],
        "content": [{ "type": "text", "text": heard(&body) }], "stop_reason": "end_turn", "stop_sequence": null });
    if body["stream"] == true {
        usage["output_tokens"] = json!(1);
        (answer["content"], answer["stop_reason"], answer["usage"]) = (json!([]), Value::Null, usage);
        let block = json!({ "type": "text", "text": "" });
        let delta = json!({ "type": "text_delta", "text": heard(&body) });
        let stop = json!({ "stop_reason": "end_turn", "stop_sequence": null });
        return events(&[
            ("message_start", json!({ "type": "message_start", "message": answer })),
            ("content_block_start", json!({ "type": "content_block_start", "index": 0, "content_block": block })),
            ("content_block_delta", json!({ "type": "content_block_delta", "index": 0, "delta": delta })),
            ("content_block_stop", json!({ "type": "content_block_stop", "index": 0 })),
            ("message_delta", json!({ "type": "message_delta", "delta": stop, "usage": { "output_tokens": 7 } })),
            ("message_stop", json!({ "type": "message_stop" })),
        ]);
    }
    answer["usage"] = usage;
    axum::Json(answer).into_response()
}

fn upstream() -> Front {
    let models = || async {
        axum::Json(
            json!({ "object": "list", "data": [{ "id": "m", "object": "model", "created": 1, "owned_by": "o" }] }),
        )
    };
    let router = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/messages", post(messages))
        .route("/v1/models", get(models));
    Front::start(router, Limits::default())
}

/// A proxy that callers need a key for, in front of an upstream that speaks both formats.
fn proxy(upstream: &Front) -> Front {
    let mut texts = TextMemoryOptions::default();
    texts.meter_usage = true;
    let memory = TextMemory::with_options(Arc::new(RamLedger::new()), texts);
    let config = Config::parse("default_model = \"m\"").unwrap();
    let config = config.only_upstream("fake", UpstreamConfig::new(Kind::Vllm, upstream.url("")));
    let identity = Identity::new(KeyHeader::AmemKey).admin(Some("door".into()));
    let proxy = Proxy::new(memory, identity, config, Secret::new([7; 32]), Options::default(), |_| None);
    Front::start(proxy.unwrap().router(), Limits::default())
}

#[test]
fn the_reference_sdk_for_proxies_does_all_that_it_can() {
    let upstream = upstream();
    python("proxy_sdk.py", &[&proxy(&upstream).url("")]);
}

#[test]
fn openais_and_anthropics_clients_are_told_what_is_remembered() {
    let upstream = upstream();
    python("proxy_clients.py", &[&proxy(&upstream).url("")]);
}
