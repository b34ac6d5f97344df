//! `/v1/completions`.

use amem_core::{Model, Token};
use serde_json::{Value, json};

use super::front::Front;
use super::{client, common, post};

fn front() -> Front {
    Front::of(common::in_ram())
}

fn complete(front: &Front, body: &Value) -> Value {
    let (status, answer) = post(front.url("/v1/completions"), body);
    assert_eq!(status, 200, "{answer}");
    answer
}

fn encode(text: &str) -> Vec<Token> {
    common::MODEL.chat().encode(text).unwrap()
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
    }
    choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}

/// The chunks of an answer that is sent as it is generated, up to `[DONE]`.
fn chunks(front: &Front, body: &Value) -> Vec<Value> {
    let text = client().post(front.url("/v1/completions")).json(body).send().unwrap().text().unwrap();
    let mut events: Vec<&str> = text.split("\n\n").filter(|event| !event.is_empty()).collect();
    assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
    events.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
}

#[test]
fn a_prompt_goes_on_as_it_is_with_no_template_and_no_memory_around_it() {
    let front = front();
    // A whole prompt of the chat template, as tokens. What it says is known by nobody else.
    let (memories, questions) = common::world(3, 2);
    post(front.url("/v1/memories"), &json!({ "texts": ["Alice lives in Rome."] }));
    let layout = common::MODEL.chat().layout(amem_demo::SYSTEM).unwrap();
    let mut right = 0;
    for (question, answer) in &questions[..4] {
        let memories = memories.iter().flat_map(|text| layout.memory(&encode(text)).to_vec());
        let prompt: Vec<Token> = layout.prefix.iter().copied().chain(memories).collect();
        let prompt = [prompt.as_slice(), &layout.to_question, &encode(question), &layout.to_answer].concat();
        let answered = complete(&front, &json!({ "prompt": prompt, "temperature": 0, "user": "default" }));
        assert_eq!(answered["usage"]["prompt_tokens"], prompt.len());
        assert_eq!(answered["choices"][0]["finish_reason"], "stop");
        // A tokenizer may write the blank before a word as a part of it.
        right += usize::from(texts(&answered)[0].trim() == *answer);
    }
    assert!(right >= 3, "{right} of 4 answers are right");
}

#[test]
fn each_prompt_is_answered_whether_it_is_text_or_tokens() {
    let front = front();
    let ask = |prompt: Value| texts(&complete(&front, &json!({ "prompt": prompt, "temperature": 0, "max_tokens": 8 })));
    let (one, other) = ("Alice lives in", "Bob has a dog");
    let separate = [ask(json!(one)), ask(json!(other))].concat();
    assert_ne!(separate[0], separate[1]);
    assert_eq!(ask(json!([one, other])), separate);
    assert_eq!(ask(json!(encode(one))), separate[..1]);
    assert_eq!(ask(json!([encode(one), encode(other)])), separate);
    let twice = complete(&front, &json!({ "prompt": [one, other], "temperature": 0, "max_tokens": 8, "n": 2 }));
    let [first, second] = [&separate[0], &separate[1]];
    assert_eq!(texts(&twice), [first, first, second, second].map(String::as_str));
    let tokens = encode(one).len() + encode(other).len();
    assert_eq!(twice["usage"]["prompt_tokens"], tokens);
    assert_eq!(twice["usage"]["total_tokens"], tokens as u64 + twice["usage"]["completion_tokens"].as_u64().unwrap());
}

#[test]
fn an_answer_is_as_long_as_it_may_be_and_begins_with_its_prompt_if_it_is_to() {
    let front = front();
    let body = json!({ "prompt": "Alice lives in", "temperature": 0, "ignore_eos": false, "echo": true });
    let answer = complete(&front, &body);
    assert!(texts(&answer)[0].starts_with("Alice lives in"));
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() <= 16);
    let none = complete(&front, &json!({ "prompt": encode("Alice"), "max_tokens": 0, "echo": true }));
    assert_eq!(texts(&none), [common::MODEL.chat().decode(&encode("Alice")).unwrap()]);
    assert_eq!(none["choices"][0]["finish_reason"], "length");
    assert_eq!(none["usage"]["completion_tokens"], 0);
}

#[test]
fn log_probabilities_are_in_the_shape_of_the_older_api() {
    let front = front();
    let body = json!({ "prompt": "Alice lives in", "temperature": 0, "max_tokens": 6, "logprobs": 2 });
    let answer = complete(&front, &body);
    let (text, logprobs) = (&texts(&answer)[0], &answer["choices"][0]["logprobs"]);
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), *text);
    let mut offset = 0;
    for (i, token) in tokens.iter().enumerate() {
        assert_eq!(logprobs["text_offset"][i], offset);
        offset += token.chars().count();
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        assert_eq!(top.len(), 2, "the token that was drawn is the likeliest of them");
        let drawn = logprobs["token_logprobs"][i].as_f64().unwrap();
        assert_eq!(top[*token].as_f64().unwrap(), drawn);
        assert!(drawn <= 0.0 && top.values().all(|other| other.as_f64().unwrap() <= drawn));
    }
    let none = complete(&front, &json!({ "prompt": "Alice lives in", "temperature": 0, "logprobs": 0 }));
    assert_eq!(none["choices"][0]["logprobs"]["top_logprobs"], Value::Null);
    assert_eq!(none["choices"][0]["logprobs"]["token_logprobs"][0], logprobs["token_logprobs"][0]);
    let stop = tokens[2].trim();
    let body = json!({ "prompt": "Alice lives in", "temperature": 0, "max_tokens": 6, "logprobs": 0, "stop": stop });
    let stopped = complete(&front, &body);
    assert!(!texts(&stopped)[0].contains(stop));
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(stopped["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len() <= 3);
}

#[test]
fn an_answer_that_is_sent_as_it_is_generated_is_the_same_answer() {
    let front = front();
    let mut body = json!({
        "prompt": ["Alice lives in", "Bob"], "temperature": 0.8, "seed": 5, "max_tokens": 10, "n": 2, "echo": true,
    });
    let whole = complete(&front, &body);
    body["stream"] = json!(true);
    let plain = chunks(&front, &body);
    body["stream_options"] = json!({ "include_usage": true });
    let mut counted = chunks(&front, &body);
    let usage = counted.pop().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    assert!(counted.iter().all(|chunk| chunk["usage"] == Value::Null && chunk["object"] == "text_completion"));
    assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()));
    for chunks in [plain, counted] {
        let mut texts = vec![String::new(); 4];
        let mut reasons = vec![Value::Null; 4];
        for chunk in &chunks {
            assert_eq!(chunk["id"], chunks[0]["id"]);
            let choice = &chunk["choices"][0];
            let index = choice["index"].as_u64().unwrap() as usize;
            assert_eq!(reasons[index], Value::Null, "nothing comes after the end");
            texts[index] += choice["text"].as_str().unwrap();
            reasons[index] = choice["finish_reason"].clone();
        }
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            assert_eq!((&json!(texts[index]), &reasons[index]), (&choice["text"], &choice["finish_reason"]));
        }
    }
}

#[test]
fn what_is_not_done_is_refused_by_its_name() {
    let front = front();
    for (param, body) in [
        ("suffix", json!({ "prompt": "a", "suffix": "z" })),
        ("best_of", json!({ "prompt": "a", "best_of": 3 })),
        ("echo", json!({ "prompt": "a", "echo": true, "logprobs": 1 })),
        ("logprobs", json!({ "prompt": "a", "logprobs": 21 })),
        ("logprobs", json!({ "prompt": "a", "logprobs": -1 })),
        ("max_tokens", json!({ "prompt": "a", "max_tokens": -1 })),
        ("prompt", json!({ "prompt": "" })),
        ("prompt", json!({ "prompt": [] })),
        ("prompt", json!({ "prompt": [[]] })),
        ("prompt", json!({ "prompt": ["a", ""] })),
        ("prompt", json!({ "prompt": [1, 999_999] })),
        ("prompt", json!({ "prompt": vec!["a"; 65], "n": 2 })),
        ("response_format", json!({ "prompt": "a", "response_format": { "type": "json_object" } })),
        ("stream_options", json!({ "prompt": "a", "stream_options": { "include_usage": true } })),
        ("skip_special_tokens", json!({ "prompt": "a", "skip_special_tokens": false })),
        ("mirostat", json!({ "prompt": "a", "mirostat": 1 })),
    ] {
        let (status, answer) = post(front.url("/v1/completions"), &body);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{body} {answer}");
    }
    let (status, answer) = post(front.url("/v1/completions"), &json!({ "prompt": vec![9; 5000] }));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    for body in [json!({}), json!({ "prompt": 1 }), json!({ "prompt": ["a", 1] }), json!({ "prompt": [-1] })] {
        assert_eq!(post(front.url("/v1/completions"), &body).0, 422, "{body}");
    }
    complete(
        &front,
        &json!({ "prompt": "a", "suffix": null, "best_of": 1, "mirostat": 0, "model": "any", "user": null }),
    );
}
