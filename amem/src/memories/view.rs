//! Memories as clients read them.

use amem_core::{Added, MetaValue, Metadata, Namespace, Outcome, Record, RecordId, RecordStats, State};
use serde::Serialize;
use serde_json::{Map, Number, Value};
use utoipa::ToSchema;

use super::moment::Said;
use crate::http::{ApiError, Result};

/// A memory.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Memory {
    /// Its name.
    pub(super) id: String,
    /// What it says. Empty once it was forgotten.
    pub(super) text: String,
    /// What it is about, if that was said.
    pub(super) key: Option<String>,
    /// What the application keeps with it: names and plain values.
    #[schema(value_type = Object)]
    pub(super) metadata: Map<String, Value>,
    /// When it was first remembered.
    pub(super) created_at: Said,
    /// When its text last changed.
    updated_at: Said,
    /// From when on it no longer counts.
    expires_at: Option<Said>,
    /// `active`, `superseded`, `expired` or `forgotten`.
    state: &'static str,
    /// The memory that took its place.
    superseded_by: Option<String>,
}

impl From<Record> for Memory {
    fn from(record: Record) -> Self {
        let superseded_by = match record.state {
            State::Superseded { by, .. } => Some(by.to_string()),
            _ => None,
        };
        Self {
            id: record.id.to_string(),
            text: record.text,
            key: record.key,
            metadata: metadata(record.metadata),
            created_at: record.created_at.into(),
            updated_at: record.updated_at.into(),
            expires_at: record.expires_at.map(Said::from),
            state: record.state.name(),
            superseded_by,
        }
    }
}

/// Metadata as JSON. Whole numbers are written as such.
pub(super) fn metadata(metadata: Metadata) -> Map<String, Value> {
    let value = |value| match value {
        MetaValue::Bool(flag) => Value::Bool(flag),
        MetaValue::Number(number) => self::number(number),
        MetaValue::Text(text) => Value::String(text),
        _ => Value::Null,
    };
    metadata.0.into_iter().map(|(name, entry)| (name, value(entry))).collect()
}

fn number(number: f64) -> Value {
    let is_whole =
        number.fract() == 0.0 && number.abs() <= WHOLE as f64 && !(number == 0.0 && number.is_sign_negative());
    if is_whole { Value::from(number as i64) } else { Number::from_f64(number).map_or(Value::Null, Value::Number) }
}

/// Up to here every whole number is a float of its own.
const WHOLE: u64 = 1 << 53;

fn is_exact(whole: &Number) -> bool {
    whole.as_i64().is_some_and(|whole| whole.unsigned_abs() <= WHOLE)
}

/// A plain value that a client sent. `name` is what the request calls it.
///
/// # Errors
/// 400 for a list or an object, and for a whole number that a float cannot hold exactly.
pub(super) fn plain(value: &Value, name: &str) -> Result<MetaValue> {
    let bad = |expected: &str| Err(ApiError::bad_request(format!("{name} must be {expected}")).param(name));
    match value {
        Value::Null => Ok(MetaValue::Null),
        Value::Bool(flag) => Ok(MetaValue::Bool(*flag)),
        Value::String(text) => Ok(MetaValue::Text(text.clone())),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() || is_exact(number) => Ok(MetaValue::Number(float)),
            _ => bad("a text: as a number, its last digits would be lost"),
        },
        Value::Array(_) | Value::Object(_) => bad("a text, a number, true, false or null"),
    }
}

/// How many memories a user has, by their states.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Counts {
    pub(super) active: usize,
    superseded: usize,
    expired: usize,
    forgotten: usize,
    /// Those that were forgotten, under the reference system's name for them.
    deleted: usize,
    total: usize,
}

impl From<RecordStats> for Counts {
    fn from(stats: RecordStats) -> Self {
        let RecordStats { active, superseded, expired, forgotten, .. } = stats;
        let total = active + superseded + expired + forgotten;
        Self { active, superseded, expired, forgotten, deleted: forgotten, total }
    }
}

/// What became of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OutcomeView {
    /// The memory that holds it.
    pub(crate) id: String,
    /// `added`; `duplicate` if this memory said it already, under the same key; `changed` if it did and has another expiry or
    /// other metadata now; `superseded` if it took the place of the memory that had its key.
    outcome: &'static str,
    /// The memory whose place it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    supersedes: Option<String>,
}

impl From<&Added> for OutcomeView {
    fn from(added: &Added) -> Self {
        let (outcome, supersedes) = match added.outcome {
            Outcome::Duplicate => ("duplicate", None),
            Outcome::Changed => ("changed", None),
            Outcome::Superseded(id) => ("superseded", Some(id.to_string())),
            _ => ("added", None),
        };
        Self { id: added.record.id.to_string(), outcome, supersedes }
    }
}

/// The memory's id that a client names.
///
/// # Errors
/// 404 for what is no id: nothing is called that.
pub(super) fn id(text: &str, namespace: &Namespace) -> Result<RecordId> {
    text.parse().map_err(|_| ApiError::not_found(format!("{namespace} has no memory of this id")).param("id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_comes_back_as_it_was_sent() {
        let sent = serde_json::json!({ "a": 2, "b": -0.0, "c": 2.5, "d": "x", "e": null, "f": true, "g": -9_007_199_254_740_992i64 });
        let kept: Metadata = sent.as_object().unwrap().iter().map(|(k, v)| (k, plain(v, k).unwrap())).collect();
        let text = serde_json::to_string(&metadata(kept)).unwrap();
        assert_eq!(text, serde_json::to_string(&sent).unwrap());
    }

    #[test]
    fn a_number_that_would_come_back_as_another_is_refused() {
        for bad in ["9007199254740993", "-9007199254740993", "18446744073709551615", "[1]", "{}"] {
            let value: Value = serde_json::from_str(bad).unwrap();
            assert_eq!(plain(&value, "metadata.n").unwrap_err().status().as_u16(), 400, "{bad}");
        }
        assert_eq!(plain(&Value::from(1e300), "n").unwrap(), MetaValue::Number(1e300));
    }
}
