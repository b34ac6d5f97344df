//! Anthropic's API.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use amem::http::{Identity, KeyHeader};
use amem::keys::{Grant, KeyFile};
use amem::server::Options;
use amem_core::Namespace;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::common::{block_on, in_ram, world};
use super::front::Front;
use super::scripted::Scripted;
use super::{client, post};

/// A request with one question.
fn asked(question: &str) -> Value {
    json!({ "model": "claude", "max_tokens": 24, "temperature": 0, "messages": [{ "role": "user", "content": question }] })
}

/// A request with these fields in addition, or in place of others.
fn with(mut request: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("{fields}") };
    request.as_object_mut().unwrap().extend(fields);
    request
}

/// All tokens of the input.
fn input(usage: &Value) -> u64 {
    let kinds = ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
    kinds.iter().map(|kind| usage[kind].as_u64().unwrap()).sum()
}

/// The names and data of a stream's events.
fn events(front: &Front, request: &Value) -> Vec<(String, Value)> {
    let response = client().post(front.url("/v1/messages")).json(request).send().unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (body, mut events) = (response.text().unwrap(), Vec::new());
    for event in body.trim_end().split("\n\n") {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        events.push((name.strip_prefix("event: ").unwrap().to_owned(), data));
    }
    events
}

#[test]
fn an_answer_is_given_from_memories_and_its_input_is_counted_in_three_parts_that_add_up() {
    let memory = in_ram();
    let (notes, questions) = world(41, 12);
    let (question, answer) = &questions[0];
    block_on(memory.remember_all("me", notes)).unwrap();
    let front = Front::of(memory.clone());
    let request = with(asked(question), json!({ "user": "me" }));
    let (status, first) = post(front.url("/v1/messages"), &request);
    assert_eq!(status, 200, "{first}");
    let fields: Vec<&str> = first.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage", "amem"];
    assert_eq!(fields, expected);
    assert!(first["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!((&first["type"], &first["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(first["content"], json!([{ "type": "text", "text": answer }]));
    assert_eq!((&first["stop_reason"], &first["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    let (_, second) = post(front.url("/v1/messages"), &request);
    assert_eq!(first["content"], second["content"]);

    // The memories, and the line that they stand under, were computed for the first answer and were there for the second.
    let recalled: Vec<&str> = second["amem"]["recalled"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let memories: usize = block_on(memory.list("me", amem_core::Query::All))
        .unwrap()
        .iter()
        .filter(|record| recalled.contains(&record.id.to_string().as_str()))
        .map(|record| memory.tokens(&record.text).unwrap().len())
        .sum();
    assert_eq!(recalled.len(), 8);
    let system_line = memory.layout().prefix.len();
    assert_eq!(first["usage"]["cache_creation_input_tokens"], memories + system_line);
    assert_eq!(second["usage"]["cache_creation_input_tokens"], 0);
    assert!(second["usage"]["cache_read_input_tokens"].as_u64().unwrap() > 0);
    let (_, counted) = post(front.url("/v1/messages/count_tokens"), &request);
    for answer in [&first, &second] {
        assert_eq!(input(&answer["usage"]), memories as u64 + counted["input_tokens"].as_u64().unwrap(), "{answer}");
    }
}

#[test]
fn counted_tokens_are_those_that_are_fed_when_nothing_is_remembered() {
    let front = Front::of(in_ram());
    let conversation = json!([
        { "role": "user", "content": [{ "type": "text", "text": "Who is Alice?", "cache_control": { "type": "ephemeral" } }] },
        { "role": "assistant", "content": [
            { "type": "thinking", "thinking": "Hm.", "signature": "x" }, { "type": "text", "text": "A painter." }
        ] },
        { "role": "user", "content": "Where does she live?" }
    ]);
    let system = json!([{ "type": "text", "text": "Be brief." }, { "type": "text", "text": "Be kind." }]);
    let requests = [
        asked("Where does Alice live?"),
        with(asked(""), json!({ "messages": conversation })),
        with(asked(""), json!({ "messages": conversation, "system": system })),
    ];
    let mut last = 0;
    for request in requests {
        let (status, counted) = post(front.url("/v1/messages/count_tokens"), &request);
        assert_eq!(status, 200, "{counted}");
        assert_eq!(counted.as_object().unwrap().len(), 1);
        let (_, answer) = post(front.url("/v1/messages"), &request);
        assert_eq!(counted["input_tokens"], input(&answer["usage"]), "{answer}");
        assert!(input(&answer["usage"]) > last, "what is said more is counted more");
        last = input(&answer["usage"]);
    }
}

#[test]
fn a_stream_says_the_same_as_the_answer_in_the_order_that_clients_expect() {
    let memory = in_ram();
    let (notes, questions) = world(42, 8);
    block_on(memory.remember_all("me", notes)).unwrap();
    let front = Front::of(memory);
    let request = with(asked(&questions[0].0), json!({ "user": "me" }));
    let (_, whole) = post(front.url("/v1/messages"), &request);
    let (_, counted) = post(front.url("/v1/messages/count_tokens"), &request);
    let events = events(&front, &with(request, json!({ "stream": true })));
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert!(events.iter().all(|(name, data)| data["type"] == *name));
    names.dedup();
    let order = ["message_start", "ping", "content_block_start", "content_block_delta", "content_block_stop"];
    assert_eq!(names, [&order[..], &["message_delta", "message_stop"]].concat());

    let start = &events[0].1["message"];
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
    assert_eq!(start["usage"]["input_tokens"], counted["input_tokens"]);
    let blocks: Vec<&Value> = events.iter().map(|(_, data)| data).filter(|data| !data["index"].is_null()).collect();
    assert_eq!(blocks[0]["content_block"], json!({ "type": "text", "text": "" }));
    assert!(blocks.iter().all(|block| block["index"] == 0));
    let text: String = blocks.iter().filter_map(|block| block["delta"]["text"].as_str()).collect();
    assert_eq!(text, whole["content"][0]["text"].as_str().unwrap());
    let end = &events[events.len() - 2].1;
    assert_eq!(end["delta"], json!({ "stop_reason": "end_turn", "stop_sequence": null }));
    assert_eq!(input(&end["usage"]), input(&whole["usage"]));
    assert_eq!(end["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    assert_eq!(end["amem"]["recalled"], whole["amem"]["recalled"]);
}

#[test]
fn why_an_answer_ended_is_said_in_anthropics_words() {
    let memory = in_ram();
    let (notes, questions) = world(41, 12);
    block_on(memory.remember_all("default", notes)).unwrap();
    let front = Front::of(memory);
    let (question, answer) = &questions[0];
    let stopped = |fields: Value| {
        let (status, answer) = post(front.url("/v1/messages"), &with(asked(question), fields));
        assert_eq!(status, 200, "{answer}");
        let text = answer["content"][0]["text"].as_str().unwrap_or_default().to_owned();
        (text, answer["stop_reason"].clone(), answer["stop_sequence"].clone())
    };
    assert_eq!(stopped(json!({})), (answer.clone(), json!("end_turn"), Value::Null));
    let (start, rest) = answer.split_at(1);
    let (stop, _) = rest.split_at(1);
    let expected = (start.to_owned(), json!("stop_sequence"), json!(stop));
    assert_eq!(stopped(json!({ "stop_sequences": ["#", stop] })), expected);
    assert_eq!(stopped(json!({ "max_tokens": 1 })).1, "max_tokens");
}

#[test]
fn messages_of_one_role_that_follow_each_other_are_one_message() {
    let front = Front::of(in_ram());
    let apart = json!([
        { "role": "user", "content": "Who is Alice?" },
        { "role": "user", "content": [{ "type": "text", "text": "Where is she?" }] },
        { "role": "assistant", "content": "A painter." },
        { "role": "assistant", "content": [{ "type": "text", "text": "In Rome." }] },
        { "role": "user", "content": "Since when?" }
    ]);
    let together = json!([
        { "role": "user", "content": "Who is Alice?\n\nWhere is she?" },
        { "role": "assistant", "content": "A painter.\n\nIn Rome." },
        { "role": "user", "content": "Since when?" }
    ]);
    let count = |messages: &Value| {
        let request = with(asked(""), json!({ "messages": messages }));
        post(front.url("/v1/messages/count_tokens"), &request).1["input_tokens"].as_u64().unwrap()
    };
    assert_eq!(count(&apart), count(&together));
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    let front = Front::of(in_ram());
    let block = |block: Value| json!({ "messages": [{ "role": "user", "content": [block] }] });
    let tool = |tool: Value| json!({ "tools": [tool] });
    let plain = json!({ "name": "look", "input_schema": { "type": "object" } });
    let cases = [
        (block(json!({ "type": "image", "source": {} })), "messages.0.content.0", "image"),
        (block(json!({ "type": "document", "source": {} })), "messages.0.content.0", "document"),
        (
            json!({ "messages": [
            { "role": "user", "content": "Hi" }, { "role": "assistant", "content": "The" }
        ] }),
            "messages",
            "ends with an assistant message",
        ),
        (json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 } }), "thinking", "enabled"),
        (json!({ "mcp_servers": [{ "name": "x" }] }), "mcp_servers", "mcp_servers"),
        (json!({ "container": "x" }), "container", "container"),
        (
            json!({ "tools": [plain], "output_config": { "format": { "type": "json_schema", "schema": {} } } }),
            "output_config.format",
            "tools",
        ),
        (
            json!({ "tools": [plain], "output_format": { "type": "json_schema", "schema": {} } }),
            "output_format",
            "tools",
        ),
        (
            json!({ "context_management": { "edits": [{ "type": "clear_tool_uses_20250919" }] } }),
            "context_management",
            "clear_tool_uses_20250919",
        ),
        (tool(json!({ "type": "web_search_20250305", "name": "web_search" })), "tools.0.type", "web_search_20250305"),
        (tool(with(plain.clone(), json!({ "strict": true }))), "tools.0.strict", "strict"),
    ];
    for (fields, param, named) in cases {
        let (status, body) = post(front.url("/v1/messages"), &with(asked("Why?"), fields));
        assert_eq!((status, body["error"]["param"].as_str()), (400, Some(param)), "{body}");
        assert_eq!(body["error"]["code"], "unsupported_parameter", "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(named), "{named}: {body}");
    }
}

#[test]
fn a_body_that_is_not_what_is_expected_is_a_bad_request() {
    let front = Front::of(in_ram());
    let block = |block: Value| json!({ "messages": [{ "role": "user", "content": [block] }] });
    let cases = [
        (json!({ "max_tokens": null }), "max_tokens"),
        (json!({ "messages": [] }), "question"),
        (json!({ "messages": vec![json!({ "role": "user", "content": "x" }); 2049] }), "2048"),
        (json!({ "messages": [{ "role": "user", "content": 1 }] }), "messages[0].content"),
        (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "messages[0].role"),
        (block(json!({ "type": "audio" })), "audio"),
        (block(json!({ "type": "tool_use", "id": "1", "name": "look", "input": {} })), "tool_use"),
        (block(json!({ "type": "tool_result", "tool_use_id": "toolu_1" })), "messages.0.content.0"),
        (json!({ "temperature": 1.5 }), "temperature"),
        (json!({ "top_p": 0 }), "top_p"),
        (json!({ "tools": [{ "name": "look" }] }), "input_schema"),
        (json!({ "tool_choice": { "type": "any" } }), "tool_choice"),
        (json!({ "output_config": { "format": { "type": "json_schema" } } }), "schema"),
        (
            json!({ "output_config": { "format": { "type": "json_schema", "schema": { "type": "?" } } } }),
            "output_config.format",
        ),
        (json!({ "output_format": { "type": "json_schema", "schema": { "type": "?" } } }), "output_format"),
        (
            json!({
                "output_format": { "type": "json_schema", "schema": {} },
                "output_config": { "format": { "type": "json_schema", "schema": {} } },
            }),
            "give one of the two",
        ),
        (json!({ "k": 1_000_000 }), "k must be"),
        (json!({ "user": "" }), "namespace"),
        (json!({ "metadata": { "user_id": "x".repeat(300) } }), "namespace"),
    ];
    for (fields, named) in cases {
        let (status, body) = post(front.url("/v1/messages"), &with(asked("Why?"), fields));
        assert_eq!((status, &body["error"]["type"]), (400, &json!("invalid_request_error")), "{named}: {body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(named), "{named}: {body}");
    }
}

#[test]
fn what_has_no_effect_here_is_accepted() {
    let front = Front::of(in_ram());
    let request = with(
        asked("Why?"),
        json!({
            "system": [{ "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral", "ttl": "1h" } }],
            "thinking": { "type": "disabled" }, "service_tier": "auto", "tool_choice": { "type": "auto" }, "tools": [],
            "output_config": { "effort": "low" }, "output_format": null, "inference_geo": "eu", "container": null,
            "top_k": null,
            "context_management": { "edits": [{ "type": "clear_thinking_20251015", "keep": "all" }] },
        }),
    );
    let response = client()
        .post(front.url("/v1/messages?beta=true"))
        .header("anthropic-version", "2023-06-01")
        .header("anthropic-beta", "prompt-caching-2024-07-31")
        .json(&request)
        .send()
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["request-id"], response.headers()["x-request-id"]);
}

#[test]
fn the_key_says_whose_memory_is_asked_and_the_user_id_only_where_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyFile::at(dir.path().join("keys.json"));
    let (_, alices) = keys.create(Grant::Namespace(Namespace::new("alice").unwrap())).unwrap();
    let admin = SecretString::from("root");
    let identity = Identity::new(KeyHeader::Authorization).admin(Some(admin.clone())).keys(keys);
    let front = Front::with(in_ram(), identity, Options::default());
    let ask = |key: Option<&SecretString>, fields: Value| {
        let request = client().post(front.url("/v1/messages")).json(&with(asked("Why?"), fields));
        let request = key.into_iter().fold(request, |request, key| request.header("x-api-key", key.expose_secret()));
        let response = request.send().unwrap();
        let status = response.status().as_u16();
        let body: Value = response.json().unwrap();
        (status, body["amem"]["user"].as_str().map(str::to_owned), body["error"]["type"].as_str().map(str::to_owned))
    };
    let served = |name: &str| (200, Some(name.to_owned()), None);
    let refused = |status, kind: &str| (status, None, Some(kind.to_owned()));
    let user_id = json!({ "metadata": { "user_id": "bob" } });
    assert_eq!(ask(None, json!({})), refused(401, "authentication_error"));
    assert_eq!(ask(Some(&alices), user_id.clone()), served("alice"));
    assert_eq!(ask(Some(&alices), json!({ "user": "bob" })), refused(403, "permission_error"));
    assert_eq!(ask(Some(&admin), user_id.clone()), served("bob"));
    assert_eq!(ask(Some(&admin), with(user_id, json!({ "user": "carol" }))), served("carol"));
    assert_eq!(ask(Some(&admin), json!({})), served("default"));
    assert_eq!(ask(Some(&alices), json!({ "session": "none" })), refused(404, "not_found_error"));
    let (status, _) = post(front.url("/v1/messages/count_tokens"), &asked("Why?"));
    assert_eq!(status, 401);
}

/// A request with a tool, and the answer that calls it twice.
fn weather() -> (Value, Scripted) {
    let tool = json!({
        "name": "weather",
        "description": "The weather of a place",
        "input_schema": { "type": "object", "properties": { "place": { "type": "string" } } },
    });
    let call = |place| format!(r#"<call>{{"name": "weather", "arguments": {{"place": "{place}"}}}}</call>"#);
    let called = format!("Let me see. {}{}", call("Rome"), call("Oslo"));
    let script = [("Where is it warmer?", &*called), ("Error: no such place", "In Rome.")];
    (with(asked("Where is it warmer?"), json!({ "tools": [tool], "max_tokens": 200 })), Scripted::new(&script))
}

#[test]
fn tools_that_the_model_calls_are_blocks_and_their_results_reach_it() {
    let (request, model) = weather();
    let (memory, model) = model.memory();
    let front = Front::of(memory);
    let (status, called) = post(front.url("/v1/messages"), &request);
    assert_eq!((status, &called["stop_reason"]), (200, &json!("tool_use")), "{called}");
    let content = called["content"].as_array().unwrap();
    assert_eq!(content[0], json!({ "type": "text", "text": "Let me see." }));
    for (block, place) in content[1..].iter().zip(["Rome", "Oslo"]) {
        let expected = json!({ "type": "tool_use", "id": block["id"], "name": "weather", "input": { "place": place } });
        assert_eq!(*block, expected);
        assert!(block["id"].as_str().unwrap().starts_with("toolu_"));
    }
    assert_eq!(content.len(), 3);
    assert_ne!(content[1]["id"], content[2]["id"]);
    assert!(model.prompts()[0].contains("The weather of a place"));

    let result = |block: &Value, content: Value, is_error: bool| {
        json!({
            "type": "tool_result", "tool_use_id": block["id"], "content": content, "is_error": is_error,
        })
    };
    let results = json!([
        result(&content[1], json!("20 degrees"), false),
        result(&content[2], json!([{ "type": "text", "text": "no such place" }]), true),
    ]);
    let messages = json!([request["messages"][0],
        { "role": "assistant", "content": content }, { "role": "user", "content": results }]);
    let told = with(request, json!({ "messages": messages }));
    let (status, answer) = post(front.url("/v1/messages"), &told);
    assert_eq!((status, &answer["content"]), (200, &json!([{ "type": "text", "text": "In Rome." }])), "{answer}");
    assert_eq!(answer["stop_reason"], "end_turn");
    let prompt = &model.prompts()[1];
    let place = |text: &str| prompt.find(text).unwrap_or_else(|| panic!("{text} is not in {prompt}"));
    assert!(place("Let me see.") < place("Oslo") && place("Oslo") < place("20 degrees"));
    assert!(place("20 degrees") < place("Error: no such place"));
    let (_, counted) = post(front.url("/v1/messages/count_tokens"), &told);
    assert_eq!(counted["input_tokens"], input(&answer["usage"]));
}

#[test]
fn calls_of_tools_are_streamed_as_blocks_of_their_own_and_not_as_text() {
    let (request, model) = weather();
    let front = Front::of(model.memory().0);
    let events = events(&front, &with(request, json!({ "stream": true })));
    let mut blocks: Vec<(Value, String)> = Vec::new();
    for (_, data) in &events {
        match data["type"].as_str().unwrap() {
            "content_block_start" => {
                assert_eq!(data["index"], blocks.len());
                blocks.push((data["content_block"].clone(), String::new()));
            }
            "content_block_delta" => {
                assert_eq!(data["index"], blocks.len() - 1);
                let (block, said) = blocks.last_mut().unwrap();
                let (kind, key) =
                    if block["type"] == "text" { ("text_delta", "text") } else { ("input_json_delta", "partial_json") };
                assert_eq!(data["delta"]["type"], kind);
                said.push_str(data["delta"][key].as_str().unwrap());
            }
            "content_block_stop" => assert_eq!(data["index"], blocks.len() - 1),
            _ => {}
        }
    }
    let stops = events.iter().filter(|(name, _)| name == "content_block_stop").count();
    assert_eq!((blocks.len(), stops), (3, 3));
    assert_eq!(blocks[0], (json!({ "type": "text", "text": "" }), "Let me see.".to_owned()));
    for ((block, input), place) in blocks[1..].iter().zip(["Rome", "Oslo"]) {
        assert_eq!((&block["name"], &block["input"]), (&json!("weather"), &json!({})));
        assert_eq!(serde_json::from_str::<Value>(input).unwrap(), json!({ "place": place }));
    }
    assert_eq!(events[events.len() - 2].1["delta"]["stop_reason"], "tool_use");
}

#[test]
fn a_tool_choice_is_kept() {
    let (request, model) = weather();
    let (memory, model) = model.memory();
    let front = Front::of(memory);
    let chosen = |choice: Value| {
        let (status, answer) =
            post(front.url("/v1/messages"), &with(request.clone(), json!({ "tool_choice": choice })));
        assert_eq!(status, 200, "{answer}");
        let blocks: Vec<String> =
            answer["content"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap().to_owned()).collect();
        (blocks.join(" "), model.prompts().pop().unwrap().contains("The weather of a place"))
    };
    assert_eq!(chosen(json!({ "type": "auto" })), ("text tool_use tool_use".to_owned(), true));
    let one = json!({ "type": "auto", "disable_parallel_tool_use": true });
    assert_eq!(chosen(one), ("text tool_use".to_owned(), true));
    assert_eq!(chosen(json!({ "type": "none" })), ("text".to_owned(), false), "and the model is told of no tool");
}

#[test]
fn a_model_that_must_call_a_tool_calls_it() {
    let call = |name: &str| format!(r#"<call>{{"name": "{name}", "arguments": {{}}}}</call>"#);
    let (look, weather) = (call("look"), call("weather"));
    let script = [("Why?", "I do not know."), ("Why?", &*look), ("Why?", &*weather)];
    let front = Front::of(Scripted::new(&script).memory().0);
    let called = |choice: Value| {
        // The model can be held to a schema where it has to call.
        let strict = choice["type"] != "auto";
        let tools = ["look", "weather"].map(|name| json!({ "name": name, "input_schema": {}, "strict": strict }));
        let request = with(asked("Why?"), json!({ "tools": tools, "tool_choice": choice, "max_tokens": 100 }));
        let (status, answer) = post(front.url("/v1/messages"), &request);
        assert_eq!(status, 200, "{answer}");
        let names = answer["content"].as_array().unwrap().iter().map(|block| block["name"].as_str().unwrap_or("text"));
        (names.collect::<Vec<_>>().join(" "), answer["stop_reason"].as_str().unwrap().to_owned())
    };
    let expected = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
    assert_eq!(called(json!({ "type": "auto" })), expected("text", "end_turn"));
    assert_eq!(called(json!({ "type": "any" })), expected("look", "tool_use"));
    assert_eq!(called(json!({ "type": "tool", "name": "weather" })), expected("weather", "tool_use"));
}

#[test]
fn an_answer_is_held_to_a_json_schema() {
    let front = Front::of(in_ram());
    let schema = json!({
        "type": "object", "required": ["answer"], "additionalProperties": false,
        "properties": { "answer": { "enum": ["yes", "no"] } },
    });
    let format = json!({ "type": "json_schema", "schema": schema });
    for fields in [json!({ "output_config": { "format": format } }), json!({ "output_format": format })] {
        let request = with(with(asked("Why?"), fields), json!({ "max_tokens": 100 }));
        let (status, answer) = post(front.url("/v1/messages"), &request);
        assert_eq!(status, 200, "{answer}");
        let said: Value = serde_json::from_str(answer["content"][0]["text"].as_str().unwrap()).unwrap();
        assert!(said == json!({ "answer": "yes" }) || said == json!({ "answer": "no" }), "{said}");
    }
}

#[test]
fn an_error_after_the_start_is_the_last_event() {
    // A model that finds no answer in its script fails.
    let front = Front::of(Scripted::new(&[]).memory().0);
    let events = events(&front, &with(asked("Why?"), json!({ "stream": true })));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["message_start", "ping", "error"]);
    assert_eq!((&events[2].1["type"], &events[2].1["error"]["type"]), (&json!("error"), &json!("api_error")));
}

#[test]
fn an_answer_ends_when_its_reader_leaves() {
    let long = "on and ".repeat(300);
    let (memory, _) = Scripted::new(&[("Why?", &long)]).pause(Duration::from_millis(10)).memory();
    let front = Front::of(memory.clone());
    let request = with(asked("Why?"), json!({ "max_tokens": 1000, "stream": true }));
    let response = client().post(front.url("/v1/messages")).json(&request).send().unwrap();
    let lines = BufReader::new(response).lines().map(Result::unwrap);
    let read = lines.filter(|line| line == "event: content_block_delta").take(3).count();
    assert_eq!(read, 3);
    while memory.engine().stats().running > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let steps = memory.engine().stats().steps;
    assert!(steps < 600, "the answer went on for {steps} steps");
}
