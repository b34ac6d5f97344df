use amem_core::{Namespace, Record, RecordId, Timestamp};
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A record with this metadata and key, created and updated at these seconds.
fn record(metadata: &Value, key: Option<&str>, created_at: i64, updated_at: i64) -> Record {
    let namespace = Namespace::new("me").unwrap();
    let mut record = Record::new(RecordId::new(), namespace, "a text", Timestamp(created_at * 1000));
    let entries = metadata.as_object().unwrap().iter();
    record.metadata = entries.map(|(name, value)| (name, plain(value, name).unwrap())).collect();
    record.key = key.map(str::to_owned);
    record.updated_at = Timestamp(updated_at * 1000);
    record
}

fn passes(filter: &Value) -> bool {
    // 1,000,000,000 seconds were over on 2001-09-09 at 01:46:40 UTC.
    let metadata = json!({ "topic": "work", "priority": 3, "done": false, "gap": null });
    parse(filter).unwrap().matches(&record(&metadata, Some("alice.home"), 1_000_000_000, 1_000_000_500))
}

#[test]
fn filters_say_what_they_mean() {
    let cases = [
        (json!({}), true),
        (json!({ "topic": "work" }), true),
        (json!({ "topic": "play" }), false),
        (json!({ "topic": "work", "priority": { "gte": 3, "lt": 4 } }), true),
        (json!({ "topic": "work", "priority": { "gte": 3, "lt": 3 } }), false),
        (json!({ "metadata.topic": { "in": ["play", "work"] } }), true),
        (json!({ "topic": { "in": [] } }), false),
        (json!({ "topic": { "contains": "or" } }), true),
        (json!({ "gap": null }), true),
        (json!({ "missing": null }), false),
        (json!({ "missing": { "ne": 1 } }), false),
        (json!({ "not": { "missing": { "eq": 1 } } }), true),
        (json!({ "done": false }), true),
        (json!({ "key": "alice.home" }), true),
        (json!({ "key": { "contains": "bob" } }), false),
        (json!({ "field": "metadata.priority", "op": "ne", "value": 4 }), true),
        (json!({ "field": "priority", "op": "gt", "value": "2" }), false),
        (json!({ "created_at": { "gte": "2001-09-09T01:46:40Z", "lt": "2001-09-10" } }), true),
        (json!({ "created_at": 1_000_000_000 }), true),
        (json!({ "field": "updated_at", "op": "lte", "value": 1_000_000_499 }), false),
        (json!({ "updated_at": { "in": ["2001-09-09", 1_000_000_500.0] } }), true),
        (json!({ "and": [] }), true),
        (json!({ "or": [] }), false),
        (json!({ "or": [{ "topic": "play" }, { "and": [{ "topic": "work" }, { "not": { "priority": 4 } }] }] }), true),
    ];
    for (filter, expected) in cases {
        assert_eq!(passes(&filter), expected, "{filter}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let cases = [
        (json!([]), "must be an object"),
        (json!("topic"), "must be an object"),
        (json!({ "and": {} }), "list of filters"),
        (json!({ "or": [1] }), "must be an object"),
        (json!({ "not": [] }), "must be an object"),
        (json!({ "and": [], "topic": 1 }), "stand alone"),
        (json!({ "field": "topic", "value": 1 }), "\"op\" is missing"),
        (json!({ "field": "topic", "op": "eq" }), "\"value\" is missing"),
        (json!({ "field": 1, "op": "eq", "value": 1 }), "\"field\" must be a text"),
        (json!({ "field": "topic", "op": "eq", "value": 1, "valeu": 2 }), "\"valeu\" is unknown"),
        (json!({ "field": "topic", "op": "like", "value": 1 }), "\"like\" is no operator"),
        (json!({ "topic": { "$gt": 1 } }), "\"$gt\" is no operator"),
        (json!({ "topic": {} }), "no operator"),
        (json!({ "topic": ["a"] }), "is a list"),
        (json!({ "topic": { "in": "a" } }), "list of values"),
        (json!({ "topic": { "in": [["a"]] } }), "must be a text, a number"),
        (json!({ "topic": { "gt": { "a": 1 } } }), "must be a text, a number"),
        (json!({ "topic": { "contains": 1 } }), "wants a text"),
        (json!({ "created_at": { "gt": "soon" } }), "is no moment"),
        (json!({ "created_at": { "gt": true } }), "compared with a moment"),
        (json!({ "created_at": { "contains": "1" } }), "contains nothing"),
        (json!({ "topic": { "in": (0..300).collect::<Vec<_>>() } }), "at most 256 parts"),
        ((0..20).fold(json!({}), |inner, _| json!({ "not": inner })), "nested at most 16 deep"),
        ((0..100).fold(json!({}), |inner, _| json!({ "and": [inner] })), "nested at most 16 deep"),
    ];
    for (filter, reason) in cases {
        let error = parse(&filter).unwrap_err();
        assert_eq!(error.status().as_u16(), 400, "{filter}");
        assert!(error.message().contains(reason), "{filter}: {error}");
    }
}

/// Whether a record, as JSON, passes a filter, as JSON: the same again, and as plain as can be.
fn naive(filter: &Value, record: &Value) -> bool {
    let parts = |inner: &Value| inner.as_array().unwrap().clone();
    let entries = filter.as_object().unwrap();
    if let Some(inner) = entries.get("and") {
        return parts(inner).iter().all(|part| naive(part, record));
    }
    if let Some(inner) = entries.get("or") {
        return parts(inner).iter().any(|part| naive(part, record));
    }
    if let Some(inner) = entries.get("not") {
        return !naive(inner, record);
    }
    if let Some(name) = entries.get("field") {
        let found = field(record, name.as_str().unwrap());
        return holds(found, entries["op"].as_str().unwrap(), &entries["value"]);
    }
    entries.iter().all(|(name, value)| match value {
        Value::Object(operators) => operators.iter().all(|(op, value)| holds(field(record, name), op, value)),
        value => holds(field(record, name), "eq", value),
    })
}

fn field<'r>(record: &'r Value, name: &str) -> Option<&'r Value> {
    match name {
        "key" | "created_at" | "updated_at" => record.get(name),
        name => record["metadata"].get(name.strip_prefix("metadata.").unwrap_or(name)),
    }
}

fn holds(found: Option<&Value>, operator: &str, value: &Value) -> bool {
    let Some(found) = found else { return false };
    let order = match (found, value) {
        (Value::String(a), Value::String(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Value::Number(a), Value::Number(b)) => a.as_f64().unwrap().partial_cmp(&b.as_f64().unwrap()),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Null, Value::Null) => Some(std::cmp::Ordering::Equal),
        _ => None,
    };
    match operator {
        "eq" => order.is_some_and(std::cmp::Ordering::is_eq),
        "ne" => !order.is_some_and(std::cmp::Ordering::is_eq),
        "gt" => order.is_some_and(std::cmp::Ordering::is_gt),
        "gte" => order.is_some_and(std::cmp::Ordering::is_ge),
        "lt" => order.is_some_and(std::cmp::Ordering::is_lt),
        "lte" => order.is_some_and(std::cmp::Ordering::is_le),
        "in" => value.as_array().unwrap().iter().any(|one| holds(Some(found), "eq", one)),
        "contains" => found.as_str().is_some_and(|found| found.contains(value.as_str().unwrap())),
        _ => unreachable!("{operator}"),
    }
}

/// Few values, so that they often meet.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2..3i64).prop_map(Value::from),
        Just(Value::from(0.5)),
        "[ab]{0,2}".prop_map(Value::from),
    ]
}

fn comparison() -> impl Strategy<Value = Value> {
    let order = prop::sample::select(vec!["eq", "ne", "gt", "gte", "lt", "lte"]);
    let name = prop::sample::select(vec!["x", "y", "metadata.x", "metadata.z", "key"]);
    let moments = prop::sample::select(vec!["created_at", "updated_at"]);
    let explicit = |name: &str, op: &str, value: Value| json!({ "field": name, "op": op, "value": value });
    prop_oneof![
        (name.clone(), order.clone(), value()).prop_map(move |(name, op, value)| explicit(name, op, value)),
        (name.clone(), order.clone(), value()).prop_map(|(name, op, value)| json!({ name: { op: value } })),
        (name.clone(), value()).prop_map(|(name, value)| json!({ name: value })),
        (name.clone(), prop::collection::vec(value(), 0..3)).prop_map(|(name, all)| json!({ name: { "in": all } })),
        (name, "[ab]{0,1}").prop_map(|(name, text)| json!({ name: { "contains": text } })),
        (moments, order, 0..4i64).prop_map(move |(name, op, at)| explicit(name, op, Value::from(at))),
    ]
}

fn filter() -> impl Strategy<Value = Value> {
    comparison().prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|all| json!({ "and": all })),
            prop::collection::vec(inner.clone(), 0..3).prop_map(|all| json!({ "or": all })),
            inner.prop_map(|one| json!({ "not": one })),
        ]
    })
}

proptest! {
    #[test]
    fn a_filter_agrees_with_the_plain_meaning_of_its_json(
        filter in filter(),
        metadata in prop::collection::btree_map("[xyz]", value(), 0..4),
        key in prop::option::of("[ab]{0,2}"),
        created_at in 0..4i64,
        updated_at in 0..4i64,
    ) {
        let metadata = json!(metadata);
        let mut as_json = json!({ "metadata": metadata, "created_at": created_at, "updated_at": updated_at });
        if let Some(key) = &key {
            as_json["key"] = json!(key);
        }
        let record = record(&metadata, key.as_deref(), created_at, updated_at);
        prop_assert_eq!(parse(&filter).unwrap().matches(&record), naive(&filter, &as_json), "{}", filter);
    }

    #[test]
    fn no_json_makes_it_panic(text in r#"[\[\]{}":,andorit1 ]{0,60}"#) {
        if let Ok(json) = serde_json::from_str(&text) {
            // Only that it returns counts.
            let _ = parse(&json);
        }
    }
}
