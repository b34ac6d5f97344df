//! `/v1/responses`.

use amem_core::Memory;
use serde_json::{Value, json};

use super::common::{block_on, in_ram, world};
use super::front::Front;
use super::scripted::Scripted;
use super::{client, post};

const PATH: &str = "/v1/responses";

/// An answer to a request that is answered.
fn answer(front: &Front, request: &Value) -> Value {
    let (status, body) = post(front.url(PATH), request);
    assert_eq!(status, 200, "{body}");
    body
}

/// All text of a response.
fn text(body: &Value) -> String {
    let messages = body["output"].as_array().unwrap().iter().filter(|item| item["type"] == "message");
    messages.map(|item| item["content"][0]["text"].as_str().unwrap()).collect()
}

/// The events of a stream: each is named by its type, and they are counted.
fn events(front: &Front, request: &Value) -> Vec<Value> {
    let mut request = request.clone();
    request["stream"] = true.into();
    let response = client().post(front.url(PATH)).json(&request).send().unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let told = response.text().unwrap();
    let event = |(number, event): (usize, &str)| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name.strip_prefix("event: ").unwrap());
        assert_eq!(data["sequence_number"], number);
        data
    };
    told.split_terminator("\n\n").enumerate().map(event).collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    let mut types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    types.dedup();
    types
}

/// A memory of a small world, a question and its answer.
fn remembered(seed: u64) -> (Memory, String, String) {
    let (notes, questions) = world(seed, 8);
    let memory = in_ram();
    block_on(memory.remember_all("default", notes)).unwrap();
    let (question, answer) = questions.into_iter().next().unwrap();
    (memory, question, answer)
}

#[test]
fn a_response_comes_from_memory_and_is_not_stored() {
    let (memory, question, expected) = remembered(3);
    let front = Front::of(memory);
    let request =
        json!({ "model": "any", "input": question, "temperature": 0, "metadata": { "a": "b" }, "store": true });
    let body = answer(&front, &request);
    assert!(text(&body).contains(&expected), "{body}");
    assert_eq!(
        (&body["object"], &body["status"], &body["store"]),
        (&json!("response"), &json!("completed"), &json!(false))
    );
    assert_eq!((&body["metadata"], &body["temperature"]), (&json!({ "a": "b" }), &json!(0.0)));
    assert_eq!(
        (&body["error"], &body["incomplete_details"], &body["previous_response_id"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let item = &body["output"][0];
    assert_eq!((&item["role"], &item["status"]), (&json!("assistant"), &json!("completed")));
    assert_eq!((&item["content"][0]["type"], &item["content"][0]["annotations"]), (&json!("output_text"), &json!([])));
    let usage = &body["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("input_tokens") + count("output_tokens"));
    assert_eq!(usage["input_tokens_details"]["cache_write_tokens"], body["amem"]["memory_tokens_prefilled_now"]);
    let again = answer(&front, &request);
    assert_ne!(again["id"], body["id"]);
    assert!(again["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
    assert_eq!(again["usage"]["input_tokens_details"]["cache_write_tokens"], 0);
    assert_eq!(again["usage"]["input_tokens"], usage["input_tokens"]);
}

#[test]
fn a_response_that_is_cut_off_says_so() {
    let (memory, question, _) = remembered(3);
    let front = Front::of(memory);
    let request = json!({ "input": question, "max_output_tokens": 1 });
    let body = answer(&front, &request);
    assert_eq!(
        (&body["status"], &body["incomplete_details"]),
        (&json!("incomplete"), &json!({ "reason": "max_output_tokens" }))
    );
    assert_eq!((&body["output"][0]["status"], &body["usage"]["output_tokens"]), (&json!("incomplete"), &json!(1)));
    let events = events(&front, &request);
    assert_eq!(events.last().unwrap()["type"], "response.incomplete");
}

#[test]
fn a_stream_tells_all_that_becomes_of_a_response() {
    let (memory, question, _) = remembered(4);
    let front = Front::of(memory);
    let request = json!({
        "input": question, "temperature": 0, "include": ["message.output_text.logprobs"], "top_logprobs": 1,
    });
    let whole = answer(&front, &request);
    let events = events(&front, &request);
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(types(&events), expected);
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let deltas = of("response.output_text.delta");
    let said: String = deltas.iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(said, text(&whole));
    let done = &of("response.completed")[0]["response"];
    let part = |body: &Value| body["output"][0]["content"].clone();
    assert_eq!(part(done), part(&whole));
    assert_eq!(part(done), json!([of("response.content_part.done")[0]["part"]]));
    let likely = deltas.iter().flat_map(|event| event["logprobs"].as_array().unwrap().clone()).collect::<Vec<_>>();
    assert_eq!(json!(likely), part(&whole)[0]["logprobs"]);
    assert!(!likely.is_empty() && likely.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 1));
    let id = &done["output"][0]["id"];
    assert!(deltas.iter().all(|event| event["item_id"] == *id && event["output_index"] == 0));
    let begun = &events[0]["response"];
    assert_eq!((&begun["id"], &begun["status"], &begun["usage"]), (&done["id"], &json!("in_progress"), &Value::Null));
    assert_eq!(begun["output"], json!([]));
    assert_eq!(done["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
}

fn tools() -> Value {
    json!([{
        "type": "function",
        "name": "weather",
        "description": "The weather of a place",
        "parameters": { "type": "object", "properties": { "place": { "type": "string" } }, "required": ["place"] },
    }])
}

#[test]
fn functions_are_called_and_answers_go_on_with_their_results() {
    let call = r#"<call>{"name": "weather", "arguments": {"place": "Rome"}}</call>"#;
    let script = [("hot there?", format!("Let me see.\n{call}")), ("so hot", "It is hot.".to_owned())];
    let script: Vec<(&str, &str)> = script.iter().map(|(asked, said)| (*asked, said.as_str())).collect();
    let (memory, model) = Scripted::new(&script).memory();
    let front = Front::of(memory);
    let question = json!({ "role": "user", "content": [{ "type": "input_text", "text": "Rome: hot there?" }] });
    let request = json!({ "input": [question], "tools": tools(), "instructions": "Be kind." });
    let body = answer(&front, &request);
    assert_eq!(text(&body), "Let me see.");
    let called = &body["output"][1];
    assert_eq!(
        (&called["type"], &called["name"], &called["status"]),
        (&json!("function_call"), &json!("weather"), &json!("completed"))
    );
    let arguments: Value = serde_json::from_str(called["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({ "place": "Rome" }));
    assert_eq!(body["tools"], tools());

    let events = events(&front, &request);
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let (added, done) = (of("response.output_item.added"), of("response.output_item.done"));
    assert_eq!((added.len(), done.len()), (2, 2));
    assert_eq!((&added[1]["item"]["arguments"], &added[1]["output_index"]), (&json!(""), &json!(1)));
    assert_eq!(of("response.function_call_arguments.done")[0]["arguments"], called["arguments"]);
    assert_eq!(of("response.function_call_arguments.delta")[0]["item_id"], done[1]["item"]["id"]);
    let output = &of("response.completed")[0]["response"]["output"];
    assert_eq!(*output, json!([done[0]["item"], done[1]["item"]]));
    assert!(!events.iter().any(|event| event["delta"].as_str().is_some_and(|delta| delta.contains("<call"))));

    let thought =
        json!({ "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text" }] });
    let result = json!({ "type": "function_call_output", "call_id": called["call_id"], "output": "so hot" });
    let items = json!([question, thought, body["output"][0], called, result]);
    let next = answer(&front, &json!({ "input": items, "tools": tools(), "instructions": "Be kind." }));
    assert_eq!(text(&next), "It is hot.");
    let prompt = model.prompts().pop().unwrap();
    for said in ["Be kind.", "Rome: hot there?", "Let me see.", "<call>", "so hot"] {
        assert!(prompt.contains(said), "{said} is not in {prompt}");
    }
}

#[test]
fn a_call_can_be_demanded() {
    let call = r#"<call>{"name": "weather", "arguments": {"place": "Rome"}}</call>"#;
    let (memory, _) = Scripted::new(&[("hot there?", "Hello."), ("hot there?", call)]).memory();
    let front = Front::of(memory);
    for choice in [json!("required"), json!({ "type": "function", "name": "weather" })] {
        let mut tools = tools();
        tools[0]["strict"] = true.into();
        let request = json!({ "input": "hot there?", "tools": tools, "tool_choice": choice });
        let body = answer(&front, &request);
        assert_eq!((body["output"].as_array().unwrap().len(), &body["output"][0]["name"]), (1, &json!("weather")));
        assert_eq!(body["tool_choice"], choice);
    }
    for choice in [json!("auto"), json!("none")] {
        let body = answer(&front, &json!({ "input": "hot there?", "tools": tools(), "tool_choice": choice }));
        assert_eq!(text(&body), "Hello.");
    }
}

#[test]
fn a_text_is_of_the_schema_that_it_is_to_have() {
    let front = Front::of(in_ram());
    let schema = json!({
        "type": "object",
        "properties": { "city": { "enum": ["Rome", "Oslo"] }, "warm": { "type": "boolean" } },
        "required": ["city", "warm"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "name": "place", "schema": schema, "strict": true });
    for seed in 0..3 {
        let request = json!({ "input": "Where?", "text": { "format": format }, "temperature": 2, "seed": seed });
        let body = answer(&front, &request);
        let value: Value = serde_json::from_str(&text(&body)).unwrap();
        assert!(value["city"] == "Rome" || value["city"] == "Oslo", "{value}");
        assert!(value["warm"].is_boolean() && value.as_object().unwrap().len() == 2, "{value}");
        assert_eq!(body["text"]["format"]["schema"], schema);
    }
}

#[test]
fn what_is_not_done_is_refused_by_its_name() {
    let front = Front::of(in_ram());
    let message = |content: Value| json!([{ "role": "user", "content": content }]);
    for (param, fields) in [
        ("previous_response_id", json!({ "previous_response_id": "resp_1" })),
        ("conversation", json!({ "conversation": "conv_1" })),
        ("background", json!({ "background": true })),
        ("reasoning", json!({ "reasoning": { "effort": "high" } })),
        ("truncation", json!({ "truncation": "auto" })),
        ("n", json!({ "n": 2 })),
        ("repeat_penalty", json!({ "repeat_penalty": 1.1 })),
        ("include", json!({ "include": ["file_search_call.results"] })),
        ("top_logprobs", json!({ "top_logprobs": 2 })),
        ("max_output_tokens", json!({ "max_output_tokens": 0 })),
        ("temperature", json!({ "temperature": 3 })),
        ("tools[0].type", json!({ "tools": [{ "type": "web_search" }] })),
        ("tools[0].name", json!({ "tools": [{ "type": "function", "name": "a b" }] })),
        ("tools[0].strict", json!({ "tools": [{ "type": "function", "name": "a", "strict": true }] })),
        ("tool_choice", json!({ "tool_choice": "required" })),
        ("tool_choice", json!({ "tools": tools(), "tool_choice": { "type": "function", "name": "other" } })),
        ("tool_choice", json!({ "tools": tools(), "tool_choice": { "type": "allowed_tools" } })),
        ("tool_choice", json!({ "tools": tools(), "tool_choice": "required" })),
        ("text.format", json!({ "text": { "format": { "type": "json_object" } }, "tools": tools() })),
        ("text.format.type", json!({ "text": { "format": { "type": "xml" } } })),
        ("text.format.schema", json!({ "text": { "format": { "type": "json_schema", "name": "a" } } })),
        (
            "text.format",
            json!({ "text": { "format": {
            "type": "json_schema", "name": "a", "schema": { "uniqueItems": true }, "strict": true } } }),
        ),
        ("text.verbosity", json!({ "text": { "verbosity": "high" } })),
        ("input", json!({ "input": [] })),
        ("input[0].role", json!({ "input": [{ "role": "tool", "content": "a" }] })),
        ("input[0].type", json!({ "input": [{ "type": "item_reference", "id": "a" }] })),
        ("input[0].content", json!({ "input": [{ "role": "user" }] })),
        ("input[0].content[0].type", json!({ "input": message(json!([{ "type": "input_image", "image_url": "a" }])) })),
        ("input[0].call_id", json!({ "input": [{ "type": "function_call_output", "call_id": "a", "output": "b" }] })),
        (
            "input[0].arguments",
            json!({ "input": [
            { "type": "function_call", "call_id": "a", "name": "b", "arguments": "[]" }] }),
        ),
    ] {
        let mut request = json!({ "input": "Where?" });
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (status, body) = post(front.url(PATH), &request);
        assert_eq!((status, &body["error"]["param"]), (400, &json!(param)), "{request} {body}");
    }
    for request in [json!({}), json!({ "input": 1 }), json!({ "input": [1] })] {
        assert_eq!(post(front.url(PATH), &request).0, 422, "{request}");
    }
    answer(
        &front,
        &json!({
            "input": "Where?", "store": false, "truncation": "disabled", "reasoning": { "effort": null }, "tools": [],
            "background": false, "include": ["reasoning.encrypted_content"], "previous_response_id": null,
            "text": { "format": { "type": "text" }, "verbosity": "medium" }, "max_output_tokens": 4,
            "service_tier": "auto",
        }),
    );
}
