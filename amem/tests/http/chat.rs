//! `/v1/chat/completions`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use amem::http::{Identity, KeyHeader};
use amem::server::{Mode, Options};
use amem_core::Memory;
use serde_json::{Value, json};

use super::common::{block_on, in_ram, world};
use super::front::Front;
use super::scripted::Scripted;
use super::{client, post};

const PATH: &str = "/v1/chat/completions";

/// A request with one message, and these fields.
fn request(question: &str, fields: Value) -> Value {
    let mut request = json!({ "model": "amem", "messages": [{ "role": "user", "content": question }] });
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

/// An answer to a request that is answered.
fn answer(front: &Front, request: &Value) -> Value {
    let (status, body) = post(front.url(PATH), request);
    assert_eq!(status, 200, "{body}");
    body
}

fn content(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().unwrap()
}

/// The data of all events of a stream.
fn events(front: &Front, request: &Value) -> Vec<String> {
    let mut request = request.clone();
    request["stream"] = true.into();
    let response = client().post(front.url(PATH)).json(&request).send().unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().unwrap();
    text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
}

/// The chunks of a stream that is answered.
fn chunks(front: &Front, request: &Value) -> Vec<Value> {
    let mut events = events(front, request);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// A memory of a small world, a question and its answer.
fn remembered(seed: u64) -> (Memory, String, String) {
    let (notes, questions) = world(seed, 8);
    let memory = in_ram();
    block_on(memory.remember_all("default", notes)).unwrap();
    let (question, answer) = questions.into_iter().next().unwrap();
    (memory, question, answer)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn an_answer_comes_from_memory_in_openais_shape() {
    let (memory, question, expected) = remembered(3);
    let front = Front::of(memory);
    let body = answer(&front, &request(&question, json!({})));
    assert!(content(&body).contains(&expected), "{body}");
    let shape = ["id", "object", "created", "model", "system_fingerprint", "choices", "usage", "amem"];
    assert_eq!(keys(&body), shape);
    assert_eq!(body["object"], "chat.completion");
    let (choice, usage) = (&body["choices"][0], &body["usage"]);
    assert_eq!(keys(choice), ["index", "message", "logprobs", "finish_reason"]);
    assert_eq!(keys(&choice["message"]), ["role", "content", "refusal"]);
    assert_eq!((&choice["finish_reason"], &choice["message"]["role"]), (&"stop".into(), &"assistant".into()));
    assert_eq!(keys(usage), ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"]);
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    let again = answer(&front, &request(&question, json!({})));
    assert_ne!(again["id"], body["id"]);
    assert_eq!(again["system_fingerprint"], body["system_fingerprint"]);
}

#[test]
fn what_is_reused_is_what_was_held() {
    let (memory, question, _) = remembered(4);
    let front = Front::of(memory.clone());
    let ask = |fields| answer(&front, &request(&question, fields));
    let first = ask(json!({}));
    let of = |body: &Value, name: &str| body["amem"][name].as_u64().unwrap();
    assert!(of(&first, "memory_tokens_prefilled_now") > 0);
    assert_eq!((of(&first, "memory_tokens_reused"), &first["amem"]["kv_reused"]), (0, &false.into()));
    let second = ask(json!({}));
    let repaired = of(&second, "repaired_tokens");
    let recalled = second["amem"]["recalled"].as_array().unwrap();
    let tokens = |id: &Value| {
        let id = id.as_str().unwrap().parse().unwrap();
        memory.tokens(&block_on(memory.get("default", id)).unwrap().text).unwrap().len() as u64
    };
    let memories: u64 = recalled.iter().map(tokens).sum();
    assert_eq!(of(&second, "memory_tokens_prefilled_now"), 0);
    assert_eq!(of(&second, "memory_tokens_reused"), memories - repaired);
    assert_eq!(of(&second, "n_turns_resident") as usize, recalled.len());
    let system = memory.layout().prefix.len() as u64;
    let usage = &second["usage"];
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"].as_u64(), Some(system + memories - repaired));
    assert_eq!(usage["prompt_tokens"].as_u64(), Some(of(&second, "resident_tokens")));
    assert_eq!(of(&second, "resident_tokens"), system + memories + of(&second, "prefilled_tokens"));
    let without = ask(json!({ "residency": false }));
    // The first memory stands where its KV was computed, right behind the system line, so it is exact.
    assert_eq!(of(&without, "memory_tokens_reused"), tokens(&recalled[0]));
    assert_eq!(of(&without, "repaired_tokens"), memories - tokens(&recalled[0]));
    assert_eq!(of(&without, "resident_tokens"), of(&second, "resident_tokens"));
    assert_eq!(of(&ask(json!({ "k": 1 })), "n_turns_resident"), 1);
}

#[test]
fn in_a_session_all_memories_that_stand_count() {
    let (memory, question, _) = remembered(5);
    let standing = block_on(memory.count("default")).unwrap();
    let mut options = Options::default();
    options.mode = Mode::Resident;
    let front = Front::with(memory, Identity::new(KeyHeader::Authorization), options);
    let body = answer(&front, &request(&question, json!({ "k": 1 })));
    assert_eq!(body["amem"]["n_turns_resident"].as_u64(), Some(standing as u64));
    assert_eq!(body["amem"]["recalled"].as_array().unwrap().len(), 1);
    assert_eq!(body["amem"]["session"], "user:default");
    let again = answer(&front, &request(&question, json!({ "k": 1 })));
    assert_eq!(again["amem"]["n_turns_resident"].as_u64(), Some(standing as u64));
    assert_eq!(again["amem"]["memory_tokens_prefilled_now"], 0);
    assert_eq!(again["amem"]["kv_reused"], true);
}

#[test]
fn a_user_is_answered_from_its_own_memory_alone() {
    let (memory, question, _) = remembered(6);
    let front = Front::of(memory);
    let recalled = |user: &str| {
        let body = answer(&front, &request(&question, json!({ "user": user })));
        assert_eq!(body["amem"]["user"], user);
        body["amem"]["recalled"].as_array().unwrap().len()
    };
    assert!(recalled("default") > 0);
    assert_eq!(recalled("somebody"), 0);
}

#[test]
fn a_stream_is_the_role_the_text_the_reason_and_done() {
    let (memory, question, _) = remembered(7);
    let front = Front::of(memory);
    let whole = answer(&front, &request(&question, json!({})));
    let chunks = chunks(&front, &request(&question, json!({})));
    let delta = |chunk: &Value| chunk["choices"][0]["delta"].clone();
    assert_eq!(delta(&chunks[0]), json!({ "role": "assistant", "content": "", "refusal": null }));
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!((delta(last), &last["choices"][0]["finish_reason"]), (json!({}), &"stop".into()));
    let text: String = before.iter().map(|chunk| delta(chunk)["content"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, content(&whole));
    assert!(before.len() > 2, "the text comes in parts");
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk.get("usage").is_none());
    }
    assert!(before.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null() && chunk.get("amem").is_none()));
    assert_eq!(last["amem"]["recalled"], whole["amem"]["recalled"]);
}

#[test]
fn tokens_are_counted_in_a_chunk_of_their_own_if_that_is_asked_for() {
    let (memory, question, _) = remembered(7);
    let front = Front::of(memory);
    let chunks = chunks(&front, &request(&question, json!({ "stream_options": { "include_usage": true } })));
    let (last, before) = chunks.split_last().unwrap();
    assert!(before.iter().all(|chunk| chunk.get("usage").is_some_and(Value::is_null)));
    assert_eq!(last["choices"], json!([]));
    let whole = answer(&front, &request(&question, json!({})));
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][name], whole["usage"][name]);
    }
    assert!(last["amem"].is_object());
}

#[test]
fn several_answers_are_told_apart_by_their_index() {
    let (memory, question, _) = remembered(8);
    let front = Front::of(memory);
    let request = request(&question, json!({ "n": 3, "temperature": 2, "seed": 7, "max_tokens": 12 }));
    let whole = answer(&front, &request);
    let texts: Vec<&str> =
        whole["choices"].as_array().unwrap().iter().map(|c| c["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 3);
    assert!(texts[0] != texts[1] || texts[1] != texts[2], "each has a seed of its own");
    let (mut told, mut ended) = (vec![String::new(); 3], 0);
    for chunk in chunks(&front, &request) {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        told[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        ended += usize::from(!choice["finish_reason"].is_null());
    }
    assert_eq!((told, ended), (texts.iter().map(|text| (*text).to_owned()).collect(), 3));
}

#[test]
fn a_seed_draws_the_same_again_and_without_one_draws_differ() {
    let (memory, question, _) = remembered(9);
    let front = Front::of(memory);
    let draw = |seed: Option<i64>| {
        let fields = json!({ "temperature": 2, "max_tokens": 24, "min_tokens": 24, "seed": seed });
        content(&answer(&front, &request(&question, fields))).to_owned()
    };
    assert_eq!(draw(Some(-5)), draw(Some(-5)));
    assert_ne!(draw(None), draw(None));
    let greedy = |fields| content(&answer(&front, &request(&question, fields))).to_owned();
    assert_eq!(greedy(json!({})), greedy(json!({ "temperature": 0 })), "the demo model's makers draw the likeliest");
    assert_eq!(greedy(json!({})), greedy(json!({ "temperature": 1, "top_p": 0 })));
    assert_eq!(greedy(json!({})), greedy(json!({ "temperature": 1, "top_k": 1, "min_p": 0.1 })));
}

#[test]
fn a_token_that_is_biased_away_is_not_drawn() {
    let (memory, question, _) = remembered(9);
    let front = Front::of(memory.clone());
    let fields = json!({ "logprobs": true, "max_tokens": 1 });
    let first = |fields| answer(&front, &request(&question, fields))["choices"][0]["logprobs"]["content"][0].clone();
    let likeliest = first(fields);
    let chat = memory.model().chat();
    let is_it = |token: &u32| chat.token_bytes(*token).map(Value::from) == Some(likeliest["bytes"].clone());
    let token = (0..memory.model().info().vocabulary as u32).find(is_it).unwrap();
    let other = first(json!({ "logprobs": true, "max_tokens": 1, "logit_bias": { token.to_string(): -100 } }));
    assert_ne!(other["token"], likeliest["token"]);
}

#[test]
fn log_probabilities_are_those_of_the_texts_tokens() {
    let (memory, question, _) = remembered(10);
    let front = Front::of(memory);
    let request = request(&question, json!({ "logprobs": true, "top_logprobs": 3 }));
    let body = answer(&front, &request);
    let logprobs = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(logprobs.len() as u64, body["usage"]["completion_tokens"].as_u64().unwrap());
    let bytes = logprobs.iter().flat_map(|token| token["bytes"].as_array().unwrap());
    let bytes = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8(bytes).unwrap().trim(), content(&body));
    for token in logprobs {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"], "the likeliest is drawn");
    }
    let told: Vec<Value> = chunks(&front, &request)
        .iter()
        .flat_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(told, *logprobs);
}

#[test]
fn an_answer_ends_where_a_stop_text_begins_or_its_tokens_end() {
    let (memory, _) = Scripted::new(&[("Count", "one two three #four five")]).memory();
    let front = Front::of(memory);
    let cases = [
        (json!({}), "one two three #four five", "stop"),
        (json!({ "stop": "three" }), "one two", "stop"),
        (json!({ "stop": ["five", "#"] }), "one two three", "stop"),
        (json!({ "stop": null }), "one two three #four five", "stop"),
        (json!({ "stop": [] }), "one two three #four five", "stop"),
    ];
    for (fields, text, reason) in cases {
        let body = answer(&front, &request("Count, please.", fields.clone()));
        let choice = &body["choices"][0];
        assert_eq!((content(&body), &choice["finish_reason"]), (text, &reason.into()), "{fields}");
    }
    for limit in ["max_tokens", "max_completion_tokens"] {
        let body = answer(&front, &request("Count, please.", json!({ limit: 3 })));
        assert_eq!(body["choices"][0]["finish_reason"], "length");
        assert_eq!(body["usage"]["completion_tokens"], 3);
    }
}

#[test]
fn a_number_sign_in_a_question_or_an_answer_cuts_nothing() {
    let script = [("issue", "See #12 and # 13.\n# Heading\nThe end.")];
    let (memory, model) = Scripted::new(&script).memory();
    let front = Front::of(memory);
    let question = "# What is issue #12 about? # 14";
    let body = answer(&front, &request(question, json!({})));
    assert_eq!(content(&body), script[0].1);
    assert!(model.prompts()[0].contains(question), "{:?}", model.prompts());
}

#[test]
fn the_whole_conversation_reaches_the_model() {
    let (memory, model) =
        Scripted::new(&[("Alice", "in Denver"), ("Bob", "in Austin"), ("Carol", "in Boston")]).memory();
    let front = Front::of(memory);
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "developer", "content": [{ "type": "text", "text": "Be kind." }] },
        { "role": "user", "content": "Where is Alice?", "name": "someone" },
        { "role": "assistant", "content": "She is in Denver." },
        { "role": "user", "content": [{ "type": "text", "text": "And where" }, { "type": "text", "text": "is Bob?" }] },
    ]);
    let body = answer(&front, &json!({ "messages": messages }));
    assert_eq!(content(&body), "in Austin");
    let prompt = model.prompts().pop().unwrap();
    let mut rest = prompt.as_str();
    for told in ["Be brief.", "Be kind.", "Where is Alice?", "She is in Denver.", "And where", "is Bob?"] {
        let at = rest.find(told).unwrap_or_else(|| panic!("{told} is not in its place in {prompt}"));
        rest = &rest[at + told.len()..];
    }
}

#[test]
fn a_conversation_may_begin_with_a_greeting_or_be_a_system_message_alone() {
    let memory = in_ram();
    block_on(memory.remember("default", "Alice lives in Denver.")).unwrap();
    let front = Front::of(memory);
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let (system, greeting) = (message("system", "Be brief."), message("assistant", "Hello! What is it?"));
    let question = message("user", "Where does Alice live?");
    for messages in [
        json!([greeting, question]),
        json!([system, greeting, question]),
        json!([message("system", "Where does Alice live?")]),
    ] {
        let (status, body) = post(front.url(PATH), &json!({ "messages": messages }));
        assert_eq!(status, 200, "{messages}: {body}");
        assert_eq!(body["amem"]["recalled"].as_array().map(Vec::len), Some(1), "{messages}: {body}");
    }
}

#[test]
fn messages_that_are_no_question_are_400() {
    let front = Front::of(in_ram());
    let (user, assistant) =
        (json!({ "role": "user", "content": "Where?" }), json!({ "role": "assistant", "content": "There." }));
    let result = json!({ "role": "tool", "content": "warm", "tool_call_id": "a" });
    for messages in [
        json!([]),
        json!([user, assistant]),
        json!([assistant]),
        json!([{ "role": "user", "content": "  " }]),
        json!([{ "role": "user", "content": [] }]),
    ] {
        let (status, body) = post(front.url(PATH), &json!({ "messages": messages }));
        assert_eq!((status, &body["error"]["type"]), (400, &"invalid_request_error".into()), "{messages}");
    }
    for (message, param) in [
        (json!({ "role": "user" }), "messages[1].content"),
        (json!({ "role": "user", "content": null }), "messages[1].content"),
        (json!({ "role": "assistant", "content": null }), "messages[1].content"),
        (result, "messages[1].tool_call_id"),
        (json!({ "role": "tool", "content": "warm" }), "messages[1].tool_call_id"),
        (json!({ "role": "function", "name": "f", "content": "x" }), "messages[1].role"),
        (json!({ "role": "user", "content": "x", "tool_calls": [{ "id": "a" }] }), "messages[1].tool_calls"),
        (json!({ "role": "assistant", "tool_calls": [{ "id": "a" }] }), "messages[1].tool_calls[0].function"),
        (
            json!({ "role": "assistant", "tool_calls": [{ "id": "a", "type": "custom" }] }),
            "messages[1].tool_calls[0].type",
        ),
        (
            json!({ "role": "assistant", "tool_calls": [{ "id": "a", "function": { "name": "f", "arguments": "[" } }] }),
            "messages[1].tool_calls",
        ),
        (json!({ "role": "assistant", "function_call": { "name": "f" } }), "messages[1].function_call"),
        (
            json!({ "role": "user", "content": [{ "type": "text", "text": "x" }, { "type": "image_url" }] }),
            "messages[1].content[1].type",
        ),
        (json!({ "role": "user", "content": [{ "type": "input_audio" }] }), "messages[1].content[0].type"),
        (json!({ "role": "user", "content": [{ "type": "file" }] }), "messages[1].content[0].type"),
        (json!({ "role": "user", "content": [{ "type": "text" }] }), "messages[1].content[0].text"),
    ] {
        let (status, body) = post(front.url(PATH), &json!({ "messages": [user, message] }));
        assert_eq!((status, &body["error"]["param"]), (400, &param.into()), "{message}: {body}");
        let said = body["error"]["message"].as_str().unwrap();
        assert!(said.contains(param.split(['[', '.']).next_back().unwrap()) || said.contains("call"), "{said}");
    }
}

#[test]
fn a_value_that_makes_no_sense_or_is_not_supported_is_400_and_named() {
    let front = Front::of(in_ram());
    let function = |fields: Value| json!([{ "type": "function", "function": fields }]);
    for (fields, param) in [
        (json!({ "temperature": -0.1 }), "temperature"),
        (json!({ "temperature": 2.1 }), "temperature"),
        (json!({ "top_p": 1.1 }), "top_p"),
        (json!({ "top_k": -2 }), "top_k"),
        (json!({ "min_p": 2 }), "min_p"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty"),
        (json!({ "frequency_penalty": 2.5 }), "frequency_penalty"),
        (json!({ "presence_penalty": -2.5 }), "presence_penalty"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "4000000000": 1 } }), "logit_bias"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 129 }), "n"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "max_completion_tokens": 0 }), "max_completion_tokens"),
        (json!({ "max_tokens": 1, "max_completion_tokens": 2 }), "max_tokens"),
        (json!({ "min_tokens": -1 }), "min_tokens"),
        (json!({ "k": -1 }), "k"),
        (json!({ "budget_tokens": 0 }), "budget_tokens"),
        (json!({ "stop": "x".repeat(1025) }), "stop"),
        (json!({ "stop": vec!["x"; 65] }), "stop"),
        (json!({ "stop": "" }), "stop"),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (json!({ "stream_options": { "include_usage": true } }), "stream_options"),
        (json!({ "tools": [{ "type": "custom" }] }), "tools[0].type"),
        (json!({ "tools": [{ "type": "function" }] }), "tools[0].function"),
        (json!({ "tools": function(json!({ "name": "a b" })) }), "tools[0].function.name"),
        (json!({ "tools": function(json!({ "name": "f", "strict": true })) }), "tools[0].function.strict"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "tool_choice": "sometimes" }), "tool_choice"),
        (json!({ "tool_choice": { "type": "allowed_tools" } }), "tool_choice"),
        (
            json!({ "tools": function(json!({ "name": "f" })), "tool_choice":
            { "type": "function", "function": { "name": "g" } } }),
            "tool_choice",
        ),
        (json!({ "response_format": { "type": "yaml" } }), "response_format"),
        (json!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema"),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a b" } } }),
            "response_format.json_schema.name",
        ),
        (
            json!({ "response_format": { "type": "json_object" }, "tools": function(json!({ "name": "f" })) }),
            "response_format",
        ),
        (json!({ "functions": [{ "name": "f" }] }), "functions"),
        (json!({ "modalities": ["text", "audio"] }), "modalities"),
        (json!({ "audio": { "voice": "alloy" } }), "audio"),
        (json!({ "reasoning_effort": "high" }), "reasoning_effort"),
        (json!({ "guided_json": {} }), "guided_json"),
        (json!({ "grammar": "root ::= \"yes\"" }), "grammar"),
        (json!({ "json_schema": { "type": "object" } }), "json_schema"),
        (json!({ "allowed_token_ids": [1] }), "allowed_token_ids"),
        (json!({ "ignore_eos": true }), "ignore_eos"),
        (json!({ "add_generation_prompt": false }), "add_generation_prompt"),
        (json!({ "continue_final_message": true }), "continue_final_message"),
        (json!({ "echo": true }), "echo"),
        (json!({ "best_of": 3 }), "best_of"),
        (json!({ "use_beam_search": true }), "use_beam_search"),
        (json!({ "include_stop_str_in_output": true }), "include_stop_str_in_output"),
        (json!({ "skip_special_tokens": false }), "skip_special_tokens"),
        (json!({ "length_penalty": 1.2 }), "length_penalty"),
        (json!({ "repeat_penalty": 1.1 }), "repeat_penalty"),
        (json!({ "typical_p": 0.9 }), "typical_p"),
        (json!({ "mirostat": 2 }), "mirostat"),
        (json!({ "xtc_probability": 0.5 }), "xtc_probability"),
        (json!({ "chat_template_kwargs": { "enable_thinking": true } }), "chat_template_kwargs"),
        (json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 } }), "thinking"),
    ] {
        let (status, body) = post(front.url(PATH), &request("Where is Alice?", fields.clone()));
        assert_eq!((status, &body["error"]["param"]), (400, &param.into()), "{fields}: {body}");
        assert!(body["error"]["message"].as_str().unwrap().starts_with(param), "{body}");
    }
    // The demo model's chat has no words for tools.
    let tools = json!({ "tools": function(json!({ "name": "f" })) });
    let (status, body) = post(front.url(PATH), &request("Where is Alice?", tools));
    assert_eq!((status, &body["error"]["param"]), (400, &"messages".into()), "{body}");
    assert_eq!(post(front.url(PATH), &request("Where?", json!({ "session": "nobody's" }))).0, 404);
    assert_eq!(post(front.url(PATH), &json!({ "messages": "Where is Alice?" })).0, 422);
    assert_eq!(post(front.url(PATH), &json!({ "messages": [{ "role": "king", "content": "x" }] })).0, 422);
    let long = request(&"Where is Alice? ".repeat(1000), json!({}));
    let (status, body) = post(front.url(PATH), &long);
    assert_eq!((status, &body["error"]["code"]), (400, &"context_length_exceeded".into()));
}

#[test]
fn fields_that_change_nothing_are_accepted() {
    let front = Front::of(in_ram());
    let fields = json!({
        "service_tier": "auto", "store": true, "metadata": { "a": "b" }, "safety_identifier": "x",
        "prompt_cache_key": "y", "prediction": null, "logit_bias": null, "logprobs": null, "top_logprobs": null,
        "max_tokens": null, "n": null, "stream": null, "stream_options": null, "temperature": null, "tools": null,
        "tool_choice": null, "response_format": null, "user": null, "session": null, "residency": null, "k": null,
        "modalities": ["text"], "reasoning_effort": "none", "verbosity": "medium", "functions": [],
        "parallel_tool_calls": true, "nobody_knows_this": 1, "chat_template_kwargs": { "enable_thinking": false },
        "thinking": { "type": "disabled" }, "add_generation_prompt": true, "continue_final_message": false, "echo": false,
        "best_of": 1, "use_beam_search": false, "include_stop_str_in_output": false, "skip_special_tokens": true,
        "length_penalty": 1, "repeat_penalty": 1.0, "typical_p": null, "mirostat": 0, "xtc_probability": 0.0,
    });
    answer(&front, &request("Where is Alice?", fields));
    answer(
        &front,
        &request("Where is Alice?", json!({ "response_format": { "type": "text" }, "tool_choice": "none" })),
    );
}

const CALL: &str = r#"<call>{"name": "weather", "arguments": {"place": "Denver"}}</call>"#;
const OTHER: &str = r#"<call>{"name": "time", "arguments": {}}</call>"#;

fn tools() -> Value {
    let tool = |name: &str| {
        let parameters = json!({ "type": "object", "properties": { "place": { "type": "string" } } });
        json!({ "type": "function", "function": { "name": name, "description": "Tells it", "parameters": parameters } })
    };
    json!([tool("weather"), tool("time")])
}

#[test]
fn tools_are_called_apart_from_the_text_and_answers_go_on_with_their_results() {
    let both = format!("Let me see.\n{CALL}{OTHER}");
    let script = [("How warm", both.as_str()), ("It is warm", "Warm & noon <in> Denver."), ("Say it", CALL)];
    let (memory, model) = Scripted::new(&script).memory();
    let front = Front::of(memory);
    let ask = request("How warm is it?", json!({ "tools": tools() }));
    let body = answer(&front, &ask);
    let choice = &body["choices"][0];
    assert_eq!((content(&body), &choice["finish_reason"]), ("Let me see.", &"tool_calls".into()));
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!((calls.len(), &calls[0]["type"]), (2, &"function".into()));
    assert_eq!(calls[0]["function"], json!({ "name": "weather", "arguments": "{\"place\":\"Denver\"}" }));
    assert_eq!(calls[1]["function"]["name"], "time");
    for call in calls {
        let id = call["id"].as_str().unwrap().strip_prefix("call_").unwrap();
        assert_eq!(id.len(), 24);
        assert_eq!(call.get("index"), None);
    }
    assert_ne!(calls[0]["id"], calls[1]["id"]);

    let chunks = chunks(&front, &ask);
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(text, "Let me see.");
    let told: Vec<&Value> = deltas.iter().filter_map(|delta| delta["tool_calls"].as_array()).flatten().collect();
    assert_eq!(told.iter().map(|call| &call["index"]).collect::<Vec<_>>(), [0, 1]);
    assert!(told.iter().zip(calls).all(|(told, call)| told["function"] == call["function"]));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

    let result = |call: &Value, text: &str| json!({ "role": "tool", "tool_call_id": call["id"], "content": text });
    let messages = json!([
        { "role": "user", "content": "How warm is it?" },
        choice["message"],
        result(&calls[1], "It is noon."),
        result(&calls[0], "It is warm."),
    ]);
    let body = answer(&front, &json!({ "messages": messages, "tools": tools() }));
    assert_eq!((content(&body), &body["choices"][0]["finish_reason"]), (script[1].1, &"stop".into()));
    let prompt = model.prompts().pop().unwrap();
    for told in ["How warm is it?", "Let me see.", "weather", "It is noon.", "It is warm."] {
        assert!(prompt.contains(told), "{told} is not in {prompt}");
    }

    let body = answer(&front, &request("Say it", json!({ "tools": tools() })));
    assert_eq!(body["choices"][0]["message"]["content"], Value::Null);
    let body = answer(&front, &request("Say it", json!({ "tools": tools(), "tool_choice": "none" })));
    assert_eq!((content(&body), body["choices"][0]["message"].get("tool_calls")), (CALL, None));
    let body = answer(&front, &request("How warm", json!({ "tools": tools(), "parallel_tool_calls": false })));
    assert_eq!(body["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1);
}

#[test]
fn a_call_can_be_demanded_of_any_tool_or_of_one() {
    let script = [("How warm", "Let me see."), ("How warm", CALL), ("How warm", OTHER)];
    let front = Front::of(Scripted::new(&script).memory().0);
    let time = json!({ "type": "function", "function": { "name": "time" } });
    for (choice, name) in [(json!("auto"), None), (json!("required"), Some("weather")), (time, Some("time"))] {
        let mut tools = tools();
        // The model can be held to a schema where it has to call.
        tools.as_array_mut().unwrap().iter_mut().for_each(|tool| tool["function"]["strict"] = name.is_some().into());
        let fields = json!({ "tools": tools, "tool_choice": choice });
        let body = answer(&front, &request("How warm is it?", fields.clone()));
        let calls = body["choices"][0]["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        assert_eq!(
            calls.iter().map(|call| call["function"]["name"].as_str()).collect::<Vec<_>>(),
            Vec::from_iter(name.map(Some))
        );
        let chunks = chunks(&front, &request("How warm is it?", fields));
        let told: Vec<&Value> =
            chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array()).flatten().collect();
        assert_eq!(told.len(), calls.len());
    }
}

#[test]
fn an_answer_has_the_form_that_is_asked_for() {
    let (memory, question, _) = remembered(11);
    let front = Front::of(memory);
    let color = json!({ "enum": ["red", "blue"] });
    let schema = json!({ "type": "object", "properties": { "color": color }, "required": ["color"],
        "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "color", "schema": schema, "strict": true } });
    let body = answer(&front, &request(&question, json!({ "response_format": format })));
    let color: Value = serde_json::from_str(content(&body)).unwrap();
    assert!(color == json!({ "color": "red" }) || color == json!({ "color": "blue" }), "{color}");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let any = json!({ "response_format": { "type": "json_object" }, "max_tokens": 1 });
    assert!(content(&answer(&front, &request(&question, any))).starts_with('{'));
}

#[test]
fn an_error_after_the_start_is_one_event_and_the_end() {
    let (memory, _) = Scripted::new(&[]).memory();
    let front = Front::of(memory);
    let events = events(&front, &request("Where is Alice?", json!({})));
    let (last, before) = events.split_last().unwrap();
    assert_eq!(before.len(), 1, "the role was told: {events:?}");
    let error: Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["type"], "api_error");
    assert!(!last.contains("no answer to"), "what failed is in the log");
    assert_eq!(post(front.url(PATH), &request("Where is Alice?", json!({}))).0, 500);
}

/// A model that would talk for some seconds, and how many tokens that is at most.
fn talker() -> (Memory, String, Value) {
    let long = "so ".repeat(2000);
    let (memory, _) = Scripted::new(&[("Talk", long.as_str())]).pause(Duration::from_millis(5)).memory();
    (memory, "Talk".to_owned(), json!({ "max_tokens": 2000 }))
}

/// Waits until nothing is computed any more. Without a cancellation that would take some thousand steps.
fn ends_early(memory: &Memory) {
    while memory.engine().stats().running > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let steps = memory.engine().stats().steps;
    assert!(steps < 1500, "the answer went on for {steps} steps");
}

#[test]
fn an_answer_ends_when_the_client_of_its_stream_goes_away() {
    let (memory, question, fields) = talker();
    let front = Front::of(memory.clone());
    let mut request = request(&question, fields);
    request["stream"] = true.into();
    let response = client().post(front.url(PATH)).json(&request).send().unwrap();
    let mut lines = BufReader::new(response).lines();
    assert!(lines.any(|line| line.unwrap().contains("so")), "it talks");
    drop(lines);
    ends_early(&memory);
}

#[test]
fn an_answer_ends_when_a_client_that_waits_for_it_goes_away() {
    let (memory, question, fields) = talker();
    let front = Front::of(memory.clone());
    let body = request(&question, fields).to_string();
    let address = front.url("").strip_prefix("http://").unwrap().to_owned();
    let mut connection = TcpStream::connect(&address).unwrap();
    write!(connection, "POST {PATH} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    while memory.engine().stats().running == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(connection);
    ends_early(&memory);
}
