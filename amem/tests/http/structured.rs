//! Answers of a schema, as clients of the chat completions ask for them.

use serde_json::{Value, json};

use super::front::Front;
use super::{common, post};

fn ask(front: &Front, schema: Value, strict: bool, fields: Value) -> (u16, Value) {
    let format = json!({ "type": "json_schema", "json_schema": { "name": "it", "schema": schema, "strict": strict } });
    let mut request = json!({ "messages": [{ "role": "user", "content": "Who?" }], "response_format": format });
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    post(front.url("/v1/chat/completions"), &request)
}

#[test]
fn each_of_several_answers_is_of_the_schema() {
    let front = Front::of(common::in_ram());
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 6 },
            "ages": { "type": "array", "items": { "type": "integer", "minimum": 1, "maximum": 9 }, "maxItems": 3 },
        },
        "required": ["name", "ages"],
        "additionalProperties": false,
    });
    let (status, body) = ask(&front, schema, true, json!({ "n": 3, "temperature": 2, "max_tokens": 200, "seed": 1 }));
    assert_eq!(status, 200, "{body}");
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for choice in choices {
        assert_eq!(choice["finish_reason"], "stop");
        let value: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert_eq!(value.as_object().unwrap().len(), 2);
        assert!(value["name"].as_str().unwrap().chars().count() <= 6, "{value}");
        let ages = value["ages"].as_array().unwrap();
        assert!(ages.len() <= 3 && ages.iter().all(|age| (1..=9).contains(&age.as_i64().unwrap())), "{value}");
    }
}

#[test]
fn an_answer_of_a_schema_that_is_cut_off_ends_with_its_length() {
    let front = Front::of(common::in_ram());
    let (status, body) = ask(&front, json!({ "type": "string", "minLength": 40 }), true, json!({ "max_tokens": 3 }));
    assert_eq!((status, &body["choices"][0]["finish_reason"]), (200, &json!("length")), "{body}");
    assert_eq!(body["usage"]["completion_tokens"], 3);
}

#[test]
fn a_schema_that_cannot_be_followed_is_refused_unless_it_need_not_hold() {
    let front = Front::of(common::in_ram());
    let schema = json!({ "type": "array", "items": { "type": "boolean" }, "maxItems": 2, "uniqueItems": true });
    let (status, body) = ask(&front, schema.clone(), true, json!({}));
    assert_eq!((status, &body["error"]["param"]), (400, &json!("response_format")));
    assert!(body["error"]["message"].as_str().unwrap().contains("uniqueItems"), "{body}");
    assert_eq!(ask(&front, schema, false, json!({})).0, 200);
    assert_eq!(ask(&front, json!({ "enum": ["x".repeat(100_000)] }), true, json!({})).0, 400);
}
