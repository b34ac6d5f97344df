//! What a record carries beside its text, and filters over it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Record, Result, Timestamp};

/// What an application keeps with a record: names and plain values. At most [`MAX_ENTRIES`](Self::MAX_ENTRIES) of
/// them; forgotten with the record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Metadata(pub BTreeMap<String, MetaValue>);

/// A value in [`Metadata`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum MetaValue {
    /// Nothing.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number. One that is not finite is refused.
    Number(f64),
    /// A text.
    Text(String),
}

impl Metadata {
    /// Entries at most.
    pub const MAX_ENTRIES: usize = 64;
    /// Bytes of a name at most.
    pub const MAX_NAME_BYTES: usize = 128;
    /// Bytes of a text at most.
    pub const MAX_TEXT_BYTES: usize = 4096;
    /// The name of an entry that holds a record's whole metadata and its key, encrypted: for ledgers that encrypt what
    /// another one keeps.
    pub const SEALED: &str = "amem.sealed";
    /// Bytes of that entry's text at most. As JSON, which writes a byte as six at most, and then in base64, metadata and a
    /// key that are within their bounds have less than 2.3 MB.
    pub const MAX_SEALED_BYTES: usize = 3 << 20;

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has no entry that only a ledger may give it ([`SEALED`](Self::SEALED)), as what a user states must not.
    ///
    /// # Errors
    /// [`Error::BadValue`] if it has one.
    pub fn check_unsealed(&self) -> Result<()> {
        if !self.0.contains_key(Self::SEALED) {
            return Ok(());
        }
        let (value, expected) = (Self::SEALED.to_owned(), "another name than the one that encryption uses");
        Err(Error::BadValue { what: "metadata", value, expected })
    }

    /// Whether it is within its bounds.
    ///
    /// # Errors
    /// [`Error::BadValue`] for the first bound that it exceeds.
    pub fn check(&self) -> Result<()> {
        let bad = |value: String, expected| Err(Error::BadValue { what: "metadata", value, expected });
        if self.0.len() > Self::MAX_ENTRIES {
            return bad(format!("{} entries", self.0.len()), "at most 64 entries");
        }
        for (name, value) in &self.0 {
            if name.is_empty() || name.len() > Self::MAX_NAME_BYTES {
                return bad(format!("a name of {} bytes", name.len()), "names of 1 to 128 bytes");
            }
            match value {
                MetaValue::Text(text) if name == Self::SEALED && text.len() <= Self::MAX_SEALED_BYTES => {}
                MetaValue::Text(text) if text.len() > Self::MAX_TEXT_BYTES => {
                    return bad(format!("a text of {} bytes", text.len()), "texts of at most 4,096 bytes");
                }
                MetaValue::Number(number) if !number.is_finite() => return bad(number.to_string(), "finite numbers"),
                _ => {}
            }
        }
        Ok(())
    }
}

impl<K: Into<String>, V: Into<MetaValue>> FromIterator<(K, V)> for Metadata {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        Self(entries.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl From<&str> for MetaValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for MetaValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for MetaValue {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for MetaValue {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

/// Which records count, by what they carry. A comparison with a field that a record does not have is false; only
/// [`Not`](Self::Not) turns that around. Values of different kinds are not equal, and neither is before the other.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Filter {
    /// All of these hold; true for none.
    And(Vec<Filter>),
    /// At least one of these holds; false for none.
    Or(Vec<Filter>),
    /// This does not hold.
    Not(Box<Filter>),
    /// A field compares like this with a value.
    Compare(Field, Comparison, MetaValue),
    /// A field is one of these values.
    In(Field, Vec<MetaValue>),
    /// A field is a text that contains this one.
    Contains(Field, String),
}

/// What a filter looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Field {
    /// An entry of the metadata.
    Metadata(String),
    /// The record's key.
    Key,
    /// When it was first remembered: milliseconds since 1970, a number.
    CreatedAt,
    /// When its text last changed: milliseconds since 1970, a number.
    UpdatedAt,
}

/// How a field compares with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Comparison {
    /// Equal.
    Eq,
    /// There, and not equal.
    Ne,
    /// Greater; texts by their bytes.
    Gt,
    /// Greater or equal.
    Gte,
    /// Less.
    Lt,
    /// Less or equal.
    Lte,
}

impl Filter {
    /// Parts of a filter at most, and how deep they may be nested.
    pub const MAX_PARTS: usize = 256;
    const MAX_DEPTH: usize = 16;

    /// Whether an entry of the metadata equals a value.
    pub fn eq(name: impl Into<String>, value: impl Into<MetaValue>) -> Self {
        Self::Compare(Field::Metadata(name.into()), Comparison::Eq, value.into())
    }

    /// Whether it is within its bounds: filters come from users.
    ///
    /// # Errors
    /// [`Error::BadValue`] for one that is too large or nested too deep.
    pub fn check(&self) -> Result<()> {
        let parts = self.parts(Self::MAX_DEPTH);
        let small = parts.is_some_and(|parts| parts <= Self::MAX_PARTS);
        let expected = "at most 256 parts, nested at most 16 deep";
        let value = || parts.map_or("too deep".to_owned(), |parts| format!("{parts} parts"));
        if small { Ok(()) } else { Err(Error::BadValue { what: "filter", value: value(), expected }) }
    }

    fn parts(&self, depth: usize) -> Option<usize> {
        let depth = depth.checked_sub(1)?;
        match self {
            Filter::And(parts) | Filter::Or(parts) => {
                parts.iter().try_fold(1, |sum: usize, part| Some(sum + part.parts(depth)?))
            }
            Filter::Not(part) => Some(1 + part.parts(depth)?),
            Filter::In(_, values) => Some(1 + values.len()),
            Filter::Compare(..) | Filter::Contains(..) => Some(1),
        }
    }

    /// Whether a record passes.
    pub fn matches(&self, record: &Record) -> bool {
        match self {
            Filter::And(parts) => parts.iter().all(|part| part.matches(record)),
            Filter::Or(parts) => parts.iter().any(|part| part.matches(record)),
            Filter::Not(part) => !part.matches(record),
            Filter::Compare(field, comparison, value) => {
                field.of(record).is_some_and(|found| comparison.holds(&found, value))
            }
            Filter::In(field, values) => {
                field.of(record).is_some_and(|found| values.iter().any(|value| Comparison::Eq.holds(&found, value)))
            }
            Filter::Contains(field, part) => {
                matches!(field.of(record), Some(MetaValue::Text(text)) if text.contains(part.as_str()))
            }
        }
    }
}

impl Field {
    fn of(&self, record: &Record) -> Option<MetaValue> {
        let moment = |at: Timestamp| Some(MetaValue::Number(at.0 as f64));
        match self {
            Field::Metadata(name) => record.metadata.0.get(name).cloned(),
            Field::Key => record.key.clone().map(MetaValue::Text),
            Field::CreatedAt => moment(record.created_at),
            Field::UpdatedAt => moment(record.updated_at),
        }
    }
}

impl Comparison {
    fn holds(self, found: &MetaValue, value: &MetaValue) -> bool {
        let order = match (found, value) {
            (MetaValue::Number(a), MetaValue::Number(b)) => a.partial_cmp(b),
            (MetaValue::Text(a), MetaValue::Text(b)) => Some(a.cmp(b)),
            (MetaValue::Bool(a), MetaValue::Bool(b)) => Some(a.cmp(b)),
            (MetaValue::Null, MetaValue::Null) => Some(Ordering::Equal),
            _ => None,
        };
        match self {
            Comparison::Ne => order != Some(Ordering::Equal),
            Comparison::Eq => order == Some(Ordering::Equal),
            Comparison::Gt => order == Some(Ordering::Greater),
            Comparison::Gte => order.is_some_and(Ordering::is_ge),
            Comparison::Lt => order == Some(Ordering::Less),
            Comparison::Lte => order.is_some_and(Ordering::is_le),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Namespace, RecordId, State};

    fn record() -> Record {
        Record {
            id: RecordId::new(),
            namespace: Namespace::new("me").unwrap(),
            text: "Alice lives in Denver.".into(),
            key: Some("alice.home".into()),
            metadata: [
                ("source", MetaValue::from("mail")),
                ("weight", 2.0.into()),
                ("seen", true.into()),
                ("gap", MetaValue::Null),
            ]
            .into_iter()
            .collect(),
            created_at: Timestamp(1000),
            updated_at: Timestamp(2000),
            expires_at: None,
            state: State::Active,
        }
    }

    fn compare(name: &str, comparison: Comparison, value: impl Into<MetaValue>) -> Filter {
        Filter::Compare(Field::Metadata(name.into()), comparison, value.into())
    }

    #[test]
    fn fields_compare_with_values_of_their_kind() {
        use Comparison::{Eq, Gt, Gte, Lt, Lte, Ne};
        let cases = [
            (compare("weight", Eq, 2.0), true),
            (compare("weight", Gt, 2.0), false),
            (compare("weight", Gte, 2.0), true),
            (compare("weight", Lt, 2.5), true),
            (compare("weight", Lte, 1.0), false),
            (compare("weight", Ne, 3.0), true),
            (compare("weight", Eq, "2"), false),
            (compare("weight", Ne, "2"), true),
            (compare("weight", Gt, "1"), false),
            (compare("source", Gt, "letter"), true),
            (compare("seen", Eq, true), true),
            (compare("gap", Eq, MetaValue::Null), true),
            (compare("missing", Eq, MetaValue::Null), false),
            (compare("missing", Ne, 1.0), false),
            (Filter::Not(Box::new(compare("missing", Eq, 1.0))), true),
            (Filter::eq("source", "mail"), true),
            (Filter::In(Field::Metadata("source".into()), vec!["web".into(), "mail".into()]), true),
            (Filter::In(Field::Metadata("source".into()), vec![]), false),
            (Filter::Contains(Field::Key, "alice".into()), true),
            (Filter::Contains(Field::Metadata("weight".into()), "2".into()), false),
            (Filter::Compare(Field::CreatedAt, Lt, 1500.0.into()), true),
            (Filter::Compare(Field::UpdatedAt, Lt, 1500.0.into()), false),
            (Filter::And(vec![]), true),
            (Filter::Or(vec![]), false),
            (Filter::And(vec![Filter::eq("source", "mail"), Filter::eq("source", "web")]), false),
            (Filter::Or(vec![Filter::eq("source", "mail"), Filter::eq("source", "web")]), true),
        ];
        for (filter, expected) in cases {
            assert_eq!(filter.matches(&record()), expected, "{filter:?}");
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let deep = (0..20).fold(Filter::And(vec![]), |inner, _| Filter::Not(Box::new(inner)));
        let wide = Filter::Or((0..300).map(|n| Filter::eq("n", f64::from(n))).collect());
        for filter in [deep, wide] {
            assert!(matches!(filter.check(), Err(Error::BadValue { what: "filter", .. })));
        }
        assert!(Filter::eq("a", "b").check().is_ok());
        let many: Metadata = (0..65).map(|n| (n.to_string(), true)).collect();
        let long: Metadata = [("a", "x".repeat(4097))].into_iter().collect();
        let name: Metadata = [("x".repeat(129), true)].into_iter().collect();
        let nan: Metadata = [("a", f64::NAN)].into_iter().collect();
        for metadata in [many, long, name, nan] {
            assert!(matches!(metadata.check(), Err(Error::BadValue { what: "metadata", .. })), "{metadata:?}");
        }
    }

    #[test]
    fn only_what_was_sealed_may_be_longer_than_a_text() {
        let entry = |name: &str, bytes| [(name, "x".repeat(bytes))].into_iter().collect::<Metadata>();
        assert!(entry(Metadata::SEALED, Metadata::MAX_SEALED_BYTES).check().is_ok());
        assert!(entry(Metadata::SEALED, Metadata::MAX_SEALED_BYTES + 1).check().is_err());
        assert!(entry("amem.other", Metadata::MAX_TEXT_BYTES + 1).check().is_err());
    }

    #[test]
    fn metadata_is_json_of_plain_values() {
        let json = r#"{"gap":null,"seen":true,"source":"mail","weight":2.0}"#;
        assert_eq!(serde_json::to_string(&record().metadata).unwrap(), json);
        assert_eq!(serde_json::from_str::<Metadata>(json).unwrap(), record().metadata);
        assert!(serde_json::from_str::<Metadata>(r#"{"a":[1]}"#).is_err());
    }
}
