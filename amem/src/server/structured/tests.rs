//! Answers of the demo model, at temperatures at which it has no idea of what it says.

use std::sync::{Arc, LazyLock};

use amem_core::transformer::{Options, Transformer};
use amem_core::{Choice, Finish, Generation, Memory, Namespace, Output, Piece, Request, Sampling, TokenMask};
use amem_cpu::Cpu;
use futures_util::StreamExt;
use proptest::prelude::*;

use super::*;
use crate::http::{Identity, KeyHeader};

fn served(tokenizer_config: Option<String>) -> Server {
    let mut files = amem_demo::files();
    if let Some(config) = &tokenizer_config {
        files[2].1 = config.as_bytes();
    }
    let model = Transformer::load(&files, Cpu::with_threads(1).unwrap(), Options::default()).unwrap();
    let memory = Memory::builder(Arc::new(model)).build().unwrap();
    Server::new(memory, Identity::new(KeyHeader::Authorization), crate::server::Options::default())
}

static SERVER: LazyLock<Server> = LazyLock::new(|| served(None));
/// The demo model, as if it had been trained to call tools.
static CALLER: LazyLock<Server> = LazyLock::new(|| {
    let mut config: Value = serde_json::from_str(amem_demo::TOKENIZER_CONFIG).unwrap();
    let template = config["chat_template"].as_str().unwrap().replace(
        "<|assistant|>{{m.content}}",
        "<|assistant|>{{m.content}}{% for call in m.tool_calls or [] %}<tool_call>\n\
         {\"name\": \"{{call.function.name}}\", \"arguments\": {{call.function.arguments|tojson}}}\n\
         </tool_call>{% endfor %}",
    );
    config["chat_template"] = template.into();
    served(Some(config.to_string()))
});

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn answer(server: &Server, source: ConstraintSource, seed: u64, max_tokens: usize) -> Choice {
    let sampling = Sampling::default().temperature(3.0).seed(seed);
    let generation = Generation::default().sampling(sampling).max_tokens(max_tokens).constraint(source);
    let prompt = server.memory().model().chat().encode("The answer is").unwrap();
    let request = Request::new(Namespace::new("test").unwrap(), vec![Piece::Fresh(prompt.into())]);
    run(async {
        let mut output = server.memory().engine().submit(request.generation(generation)).unwrap();
        while let Some(next) = output.next().await {
            if let Output::Done(mut completion) = next.unwrap() {
                return completion.choices.remove(0);
            }
        }
        panic!("the answer has no end")
    })
}

fn of_schema(schema: Value) -> ConstraintSource {
    run(SERVER.form("response_format", &Format::JsonSchema { schema, strict: true })).unwrap().unwrap()
}

/// What a schema is refused for.
fn refused(schema: Value, strict: bool) -> Option<String> {
    let error = run(SERVER.form("response_format", &Format::JsonSchema { schema, strict })).err()?;
    assert_eq!(error.status().as_u16(), 400);
    assert_eq!(error.body()["error"]["param"], "response_format");
    Some(error.message().to_owned())
}

/// Whether a value is one of a schema, as far as schemas are used here.
fn holds(root: &Value, schema: &Value, value: &Value) -> bool {
    let all = |key: &str, check: &dyn Fn(&Value) -> bool| schema.get(key).is_none_or(check);
    let schemas = |key: &str| schema[key].as_array().unwrap().iter();
    let at_least = |size: usize| move |least: &Value| size >= least.as_u64().unwrap() as usize;
    let at_most = |size: usize| move |most: &Value| size <= most.as_u64().unwrap() as usize;
    let items = value.as_array().map_or(0, Vec::len);
    let length = value.as_str().map_or(0, |text| text.chars().count());
    let number = value.as_f64().unwrap_or_default();
    let entries = value.as_object().cloned().unwrap_or_default();
    let is = |kind: &Value| match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => value.is_number(),
    };
    let closed = schema.get("additionalProperties") == Some(&json!(false));
    all("$ref", &|place| {
        let name = place.as_str().unwrap().strip_prefix('#').unwrap();
        holds(root, root.pointer(name).unwrap(), value)
    }) && all("type", &|kind| kind.as_array().map_or_else(|| is(kind), |kinds| kinds.iter().any(is)))
        && all("enum", &|values| values.as_array().unwrap().contains(value))
        && all("const", &|constant| constant == value)
        && all("anyOf", &|_| schemas("anyOf").any(|schema| holds(root, schema, value)))
        && all("minItems", &at_least(items))
        && all("maxItems", &at_most(items))
        && all("minLength", &at_least(length))
        && all("maxLength", &at_most(length))
        && all("minimum", &|least| number >= least.as_f64().unwrap())
        && all("maximum", &|most| number <= most.as_f64().unwrap())
        && all("items", &|schema| value.as_array().unwrap().iter().all(|item| holds(root, schema, item)))
        && all("required", &|names| {
            names.as_array().unwrap().iter().all(|name| entries.contains_key(name.as_str().unwrap()))
        })
        && entries.iter().all(|(name, entry)| match schema["properties"].get(name) {
            Some(schema) => holds(root, schema, entry),
            None => !closed,
        })
}

fn check(schema: &Value, seed: u64) {
    let choice = answer(&SERVER, of_schema(schema.clone()), seed, 600);
    // A number may have any number of digits.
    if choice.finish == Finish::Length && schema.to_string().contains("\"number\"") {
        return;
    }
    assert_eq!(choice.finish.name(), "stop", "{schema} {:?}", choice.text);
    let value: Value = serde_json::from_str(&choice.text).unwrap();
    assert!(holds(schema, schema, &value), "{schema} {value}");
}

#[test]
fn an_answer_is_of_its_schema_however_it_is_drawn() {
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "role": { "enum": ["cook", "pilot", 7, null] },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "home": {
                "type": "object",
                "properties": {
                    "city": { "type": "string", "minLength": 1, "maxLength": 8 },
                    "warm": { "type": "boolean" },
                },
                "required": ["city", "warm"],
                "additionalProperties": false,
            },
            "scores": { "type": "array", "items": { "type": "number", "minimum": -1, "maximum": 1 }, "maxItems": 3 },
            "friend": { "anyOf": [{ "$ref": "#/$defs/friend" }, { "type": "null" }] },
        },
        "required": ["name", "role", "age", "home", "scores", "friend"],
        "additionalProperties": false,
        "$defs": { "friend": { "type": "object", "properties": { "id": { "const": "x" } }, "required": ["id"],
            "additionalProperties": false } },
    });
    for seed in 0..3 {
        check(&person, seed);
    }
}

#[test]
fn the_checks_of_these_tests_find_what_is_of_no_schema() {
    for (schema, value) in [
        (json!({ "type": "object" }), json!([])),
        (json!({ "type": ["string", "null"] }), json!(1)),
        (json!({ "type": "integer" }), json!(1.5)),
        (json!({ "enum": ["a", 1] }), json!("b")),
        (json!({ "const": "a" }), json!("b")),
        (json!({ "properties": { "a": { "type": "null" } } }), json!({ "a": 1 })),
        (json!({ "required": ["a"] }), json!({ "b": 1 })),
        (json!({ "properties": {}, "additionalProperties": false }), json!({ "b": 1 })),
        (json!({ "items": { "maximum": 1 } }), json!([1, 2])),
        (json!({ "minItems": 1 }), json!([])),
        (json!({ "maxLength": 1 }), json!("äb")),
        (json!({ "anyOf": [{ "type": "null" }, { "minimum": 2 }] }), json!(1)),
        (json!({ "$ref": "#/$defs/a", "$defs": { "a": { "type": "null" } } }), json!(1)),
    ] {
        assert!(!holds(&schema, &schema, &value), "{schema} {value}");
    }
}

/// A schema whose values are short.
fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (0u8..5).prop_map(|most| json!({ "type": "string", "maxLength": most })),
        prop::collection::vec("[a-z\"\\\\é{]{0,4}", 1..4).prop_map(|texts| json!({ "enum": texts })),
        (-50i32..50, 0i32..50)
            .prop_map(|(least, more)| { json!({ "type": "integer", "minimum": least, "maximum": least + more }) }),
        (-9i32..9, 1i32..9)
            .prop_map(|(least, more)| { json!({ "type": "number", "minimum": least, "maximum": least + more }) }),
        Just(json!({ "type": "boolean" })),
        Just(json!({ "type": ["null", "boolean"] })),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        let named = prop::collection::btree_map("[a-z\"é ]{1,3}", (inner.clone(), any::<bool>()), 0..4);
        let object = named.prop_map(|named| {
            let required: Vec<&String> =
                named.iter().filter(|(_, (_, needed))| *needed).map(|(name, _)| name).collect();
            let properties: Map<String, Value> =
                named.iter().map(|(name, (schema, _))| (name.clone(), schema.clone())).collect();
            json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
        });
        let array = (inner.clone(), 0u8..2, 0u8..2).prop_map(|(items, least, more)| {
            json!({ "type": "array", "items": items, "minItems": least, "maxItems": least + more })
        });
        let any = prop::collection::vec(inner, 1..3).prop_map(|schemas| json!({ "anyOf": schemas }));
        prop_oneof![3 => object, 1 => array, 1 => any]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn an_answer_is_of_any_schema_that_it_is_asked_for(schema in schemas(), seed: u64) {
        check(&schema, seed);
    }
}

#[test]
fn an_object_is_an_object_whatever_is_in_it() {
    let mut whole = 0;
    for seed in 0..6 {
        let source = run(SERVER.form("response_format", &Format::JsonObject)).unwrap().unwrap();
        let choice = answer(&SERVER, source, seed, 150);
        assert!(choice.text.starts_with('{'), "{}", choice.text);
        // An object may be without end. One that is complete is one.
        if choice.finish != Finish::Length {
            let object: Map<String, Value> = serde_json::from_str(&choice.text).unwrap();
            drop(object);
            whole += 1;
        }
    }
    assert!(whole > 0);
}

#[test]
fn text_is_free() {
    assert_eq!(run(SERVER.form("response_format", &Format::Text)).unwrap(), None);
}

#[test]
fn an_answer_that_is_cut_off_says_so() {
    let schema = json!({ "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] });
    let choice = answer(&SERVER, of_schema(schema), 0, 2);
    assert_eq!(choice.finish, Finish::Length);
    assert_eq!(choice.tokens.len(), 2);
}

#[test]
fn several_answers_of_one_schema_do_not_know_of_each_other() {
    let source = of_schema(json!({ "type": "array", "items": { "type": "boolean" }, "maxItems": 2 }));
    for seed in 0..8 {
        let choice = answer(&SERVER, source.clone(), seed, 200);
        let values: Vec<bool> = serde_json::from_str(&choice.text).unwrap();
        assert!(values.len() <= 2);
    }
}

#[test]
fn what_cannot_be_followed_is_named() {
    for (schema, named) in [
        (json!("text"), "no JSON object"),
        (json!({ "type": "array", "uniqueItems": true }), "uniqueItems"),
        (json!({ "type": "string", "format": "horoscope" }), "horoscope"),
        (json!({ "type": "person" }), "person"),
        (json!({ "$ref": "#/$defs/none" }), "none"),
        (json!({ "$ref": "#" }), "nothing can be of it"),
        (json!({ "$ref": "https://example.com/schema" }), "example.com"),
        (json!({ "type": "integer", "minimum": 2, "maximum": 1 }), "minimum"),
        (json!({ "oneOf": [{ "type": "integer" }, { "type": "integer", "minimum": 3 }] }), "oneOf"),
    ] {
        let reason = refused(schema.clone(), true).unwrap_or_else(|| panic!("{schema} is followed"));
        assert!(reason.contains(named), "{schema}: {reason}");
    }
}

#[test]
fn a_schema_that_need_not_hold_in_all_is_followed_as_far_as_it_can_be() {
    assert_eq!(refused(json!({ "type": "array", "uniqueItems": true }), false), None);
    assert_eq!(refused(json!({ "type": "string", "format": "horoscope" }), false), None);
    assert!(refused(json!({ "type": "person" }), false).is_some());
}

#[test]
fn a_request_says_nothing_about_how_its_schema_is_compiled() {
    let schema = json!({ "type": "array", "uniqueItems": true, "x-guidance": { "lenient": true } });
    assert!(refused(schema, true).unwrap().contains("uniqueItems"));
}

#[test]
fn schemas_that_mean_harm_end_in_a_constraint_or_an_error() {
    let chain: Map<String, Value> = (0..1000)
        .map(|i| (format!("d{i}"), json!({ "allOf": [{ "$ref": format!("#/$defs/d{}", i + 1) }] })))
        .chain([("d1000".to_owned(), json!({ "type": "null" }))])
        .collect();
    let nested = (0..100).fold(json!({ "type": "null" }), |inner, _| json!({ "anyOf": [inner, { "type": "array" }] }));
    let wide: Map<String, Value> = (0..500).map(|i| (format!("p{i}"), json!({}))).collect();
    let product: Vec<Value> =
        (0..10).map(|_| json!({ "anyOf": (0..10).map(|i| json!({ "minLength": i })).collect::<Vec<_>>() })).collect();
    for schema in [
        json!({ "$ref": "#/$defs/d0", "$defs": chain }),
        json!({ "allOf": [{ "$ref": "#" }] }),
        nested,
        json!({ "type": "object", "properties": wide }),
        json!({ "allOf": product }),
        json!({ "type": "string", "pattern": "(((a{1,500}){1,500}){1,500})" }),
        json!({ "type": "string", "pattern": "(a|b)*a(a|b){200}" }),
        json!({ "type": "string", "pattern": format!("é{}", "(".repeat(300)) }),
        json!({ "type": "string", "minLength": u64::MAX }),
        json!({ "type": "array", "minItems": 4_000_000_000_u64, "items": { "type": "array", "minItems": 1_000_000 } }),
        json!({ "$ref": { "é".repeat(60): 1 } }),
        json!({ "multipleOf": 1e-300, "type": "number" }),
        json!({ "type": "object", "patternProperties": { ".*": false }, "minProperties": 9 }),
    ] {
        let Ok(source) = run(SERVER.form("response_format", &Format::JsonSchema { schema, strict: true })) else {
            continue;
        };
        let mut form = source.unwrap().start().unwrap();
        let mut mask = TokenMask::new(SERVER.memory().model().info().vocabulary);
        form.allow(&mut mask).unwrap();
        assert!(!mask.is_empty());
    }
    let large = json!({ "enum": ["x".repeat(MAX_SCHEMA_BYTES)] });
    assert!(refused(large, true).unwrap().contains("at most"));
    let many = json!({ "enum": vec![0; MAX_SCHEMA_VALUES] });
    assert!(refused(many, true).unwrap().contains("at most"));
}

fn tools() -> Vec<Tool> {
    let place = json!({
        "type": "object",
        "properties": { "place": { "$ref": "#/$defs/place" } },
        "required": ["place"],
        "additionalProperties": false,
        "$defs": { "place": { "type": "string", "maxLength": 6 } },
    });
    let days = json!({
        "properties": { "days": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["days"],
        "additionalProperties": false,
    });
    vec![Tool::new("weather", "", place.to_string()), Tool::new("wait \"é\"", "", days.to_string())]
}

#[test]
fn a_call_that_is_demanded_is_made() {
    let tools = tools();
    let mut called = std::collections::BTreeSet::new();
    for seed in 0..8 {
        let source = run(CALLER.call(&tools, None, false)).unwrap();
        let choice = answer(&CALLER, source, seed, 300);
        let (text, calls) = CALLER.memory().model().chat().tool_calls(&choice.text);
        assert_eq!((text.as_str(), calls.len()), ("", 1), "{}", choice.text);
        let tool = tools.iter().find(|tool| tool.name == calls[0].name).unwrap();
        let schema: Value = serde_json::from_str(&tool.parameters).unwrap();
        let arguments: Value = serde_json::from_str(&calls[0].arguments).unwrap();
        assert!(holds(&schema, &schema, &arguments), "{}", choice.text);
        called.insert(calls[0].name.clone());
        let source = run(CALLER.call(&tools, Some("weather"), false)).unwrap();
        let choice = answer(&CALLER, source, seed, 300);
        assert_eq!(CALLER.memory().model().chat().tool_calls(&choice.text).1[0].name, "weather");
    }
    assert_eq!(called.len(), 2, "both tools are called");
}

#[test]
fn all_of_a_strict_tools_schema_holds_where_a_call_is_demanded() {
    let odd: Value = json!({ "type": "object", "properties": { "place": { "type": "array", "uniqueItems": true } } });
    let [lenient, strict] = [false, true].map(|strict| (Tool::new("odd", "", odd.to_string()), strict));
    let plain = (tools().remove(0), true);
    let of = |tools: &[&(Tool, bool)], choice: ToolChoice| {
        let tools = tools.iter().map(|tool| (*tool).clone()).collect();
        let tools = Tools::new(tools, choice, |index| format!("tools[{index}]"))?;
        run(CALLER.constraint("response_format", &Format::Text, &tools))
    };
    let named = |name: &str| ToolChoice::Named(name.to_owned());
    let param = |result: Result<Option<ConstraintSource>>| {
        result.err().map(|error| error.body()["error"]["param"].as_str().unwrap().to_owned())
    };
    assert_eq!(param(of(&[&lenient], ToolChoice::Required)), None);
    assert_eq!(
        param(of(&[&strict], ToolChoice::Required)).as_deref(),
        Some("tools"),
        "it asks for what is not followed"
    );
    assert_eq!(param(of(&[&lenient, &strict], named("odd"))).as_deref(), Some("tools"));
    assert_eq!(param(of(&[&strict, &plain], named(&plain.0.name))), None, "the other one is not called");
    assert_eq!(param(of(&[&plain], ToolChoice::Required)), None);
    assert_eq!(param(of(&[&lenient, &plain], ToolChoice::Auto)).as_deref(), Some("tools[1]"));
    assert!(of(&[&strict], ToolChoice::None).unwrap().is_none());
    for seed in 0..5 {
        let source = of(&[&plain], ToolChoice::Required).unwrap().unwrap();
        let choice = answer(&CALLER, source, seed, 300);
        let (text, calls) = CALLER.memory().model().chat().tool_calls(&choice.text);
        assert_eq!((text.as_str(), calls.len()), ("", 1), "{}", choice.text);
    }
}

#[test]
fn a_schema_has_its_turn_until_it_is_compiled_even_if_its_client_left() {
    run(async {
        let turns = Arc::new(Semaphore::new(1));
        let turn = || Arc::clone(&turns).acquire_owned();
        let (go_on, told) = std::sync::mpsc::channel();
        let mut compiling = Box::pin(on_deep_stack(turn().await.unwrap(), move || told.recv().unwrap()));
        assert!(futures_lite::future::poll_once(&mut compiling).await.is_none());
        drop(compiling);
        assert_eq!(turns.available_permits(), 0);
        go_on.send(()).unwrap();
        on_deep_stack(turn().await.unwrap(), || ()).await.unwrap();
    });
}

#[test]
fn a_call_that_cannot_be_demanded_is_refused() {
    let param = |result: Result<ConstraintSource>| {
        let error = result.unwrap_err();
        assert_eq!(error.status().as_u16(), 400);
        error.body()["error"]["param"].as_str().unwrap().to_owned()
    };
    assert_eq!(param(run(SERVER.call(&tools(), None, false))), "tool_choice");
    assert_eq!(param(run(CALLER.call(&tools(), Some("other"), false))), "tool_choice");
    assert_eq!(param(run(CALLER.call(&[], None, false))), "tool_choice");
    for parameters in ["[]", "{", r#"{"type":"person"}"#] {
        assert_eq!(param(run(CALLER.call(&[Tool::new("f", "", parameters)], None, false))), "tools");
    }
}
