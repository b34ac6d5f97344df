//! Which memories count, as JSON.
//!
//! ```json
//! {"and": [
//!   {"field": "metadata.topic", "op": "eq", "value": "work"},
//!   {"or": [{"field": "created_at", "op": "gte", "value": "2026-01-01"}, {"not": {"priority": {"lt": 3}}}]}
//! ]}
//! ```
//!
//! In short, `{"topic": "work", "priority": {"gte": 3, "lt": 9}}` says that all of these hold. A field is `key`,
//! `created_at`, `updated_at`, or an entry of the metadata, `metadata.NAME`; a name that is none of these is that of an
//! entry too. Operators are eq, ne, gt, gte, lt, lte, in (any of a list) and contains (a part of a text). A memory that
//! does not have the field passes none of them, `ne` included; only `not` turns that around. Moments are RFC 3339, dates,
//! or seconds since 1970.

use amem_core::{Comparison, Error, Field, Filter, MetaValue};
use serde_json::{Map, Value};

use super::moment::Moment;
use super::view::plain;
use crate::http::{ApiError, Result};

/// How deep a filter may be nested here; amem-core has a bound of its own, which is lower.
const MAX_DEPTH: usize = 32;

/// The filter that a client sent.
///
/// # Errors
/// 400 that says what is wrong with it.
pub(crate) fn parse(json: &Value) -> Result<Filter> {
    let filter = part(json, MAX_DEPTH)?;
    filter.check()?;
    Ok(filter)
}

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::bad_request(format!("filter: {}", message.into())).param("filter")
}

fn part(json: &Value, depth: usize) -> Result<Filter> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(
            Error::BadValue { what: "filter", value: "too deep".into(), expected: "nested at most 16 deep" }.into()
        );
    };
    let Value::Object(entries) = json else { return Err(bad("each part of it must be an object")) };
    for name in ["and", "or", "not"] {
        if let Some(inner) = entries.get(name) {
            if entries.len() > 1 {
                return Err(bad(format!("{name:?} must stand alone: put it and what is beside it into \"and\"")));
            }
            return match (name, inner) {
                ("not", inner) => Ok(Filter::Not(Box::new(part(inner, depth)?))),
                (_, Value::Array(parts)) => {
                    let parts = parts.iter().map(|inner| part(inner, depth)).collect::<Result<Vec<_>>>()?;
                    Ok(if name == "and" { Filter::And(parts) } else { Filter::Or(parts) })
                }
                _ => Err(bad(format!("{name:?} must be a list of filters"))),
            };
        }
    }
    if entries.contains_key("field") { explicit(entries) } else { short(entries) }
}

/// `{"field": …, "op": …, "value": …}`
fn explicit(entries: &Map<String, Value>) -> Result<Filter> {
    if let Some(other) = entries.keys().find(|name| !matches!(name.as_str(), "field" | "op" | "value")) {
        return Err(bad(format!("{other:?} is unknown beside \"field\", \"op\" and \"value\"")));
    }
    let text = |name: &str| {
        let value = entries.get(name).ok_or_else(|| bad(format!("{name:?} is missing beside \"field\"")))?;
        value.as_str().ok_or_else(|| bad(format!("{name:?} must be a text")))
    };
    let (name, operator) = (text("field")?, text("op")?);
    let value = entries.get("value").ok_or_else(|| bad("\"value\" is missing beside \"field\""))?;
    compare(name, operator, value)
}

/// `{NAME: VALUE, NAME: {OPERATOR: VALUE, …}, …}`
fn short(entries: &Map<String, Value>) -> Result<Filter> {
    let mut parts = Vec::new();
    for (name, value) in entries {
        match value {
            Value::Object(operators) if operators.is_empty() => {
                return Err(bad(format!("{name:?} names no operator")));
            }
            Value::Object(operators) => {
                for (operator, value) in operators {
                    parts.push(compare(name, operator, value)?);
                }
            }
            Value::Array(_) => {
                return Err(bad(format!("{name:?} is a list: say {{\"in\": […]}} for any of its values")));
            }
            value => parts.push(compare(name, "eq", value)?),
        }
    }
    Ok(if parts.len() == 1 { parts.remove(0) } else { Filter::And(parts) })
}

fn compare(name: &str, operator: &str, value: &Value) -> Result<Filter> {
    let field = match name {
        "key" => Field::Key,
        "created_at" => Field::CreatedAt,
        "updated_at" => Field::UpdatedAt,
        name => Field::Metadata(name.strip_prefix("metadata.").unwrap_or(name).to_owned()),
    };
    let comparison = match operator {
        "eq" => Comparison::Eq,
        "ne" => Comparison::Ne,
        "gt" => Comparison::Gt,
        "gte" => Comparison::Gte,
        "lt" => Comparison::Lt,
        "lte" => Comparison::Lte,
        "in" => {
            let Value::Array(values) = value else { return Err(bad(format!("{name}: \"in\" wants a list of values"))) };
            let values = values.iter().map(|value| operand(&field, name, value)).collect::<Result<Vec<_>>>()?;
            return Ok(Filter::In(field, values));
        }
        "contains" => {
            return match (value, &field) {
                (_, Field::CreatedAt | Field::UpdatedAt) => {
                    Err(bad(format!("{name} is a moment and contains nothing")))
                }
                (Value::String(part), _) => Ok(Filter::Contains(field, part.clone())),
                _ => Err(bad(format!("{name}: \"contains\" wants a text"))),
            };
        }
        other => {
            let known = "eq, ne, gt, gte, lt, lte, in, contains";
            return Err(bad(format!("{name}: {other:?} is no operator; there are {known}")));
        }
    };
    let value = operand(&field, name, value)?;
    Ok(Filter::Compare(field, comparison, value))
}

/// What a field is compared with: of moments, their milliseconds.
fn operand(field: &Field, name: &str, value: &Value) -> Result<MetaValue> {
    if !matches!(field, Field::CreatedAt | Field::UpdatedAt) {
        return plain(value, &format!("filter: {name}")).map_err(|error| error.param("filter"));
    }
    let moment = match value {
        Value::String(text) => Moment::Text(text.clone()),
        Value::Number(seconds) => Moment::Seconds(seconds.as_f64().unwrap_or(f64::NAN)),
        _ => return Err(bad(format!("{name} is compared with a moment"))),
    };
    let at = moment.read(&format!("filter: {name}")).map_err(|error| error.param("filter"))?;
    Ok(MetaValue::Number(at.0 as f64))
}

#[cfg(test)]
mod tests;
