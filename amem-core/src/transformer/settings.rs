//! A JSON object from a model's files, read within bounds: what comes out of it is sane, whatever it holds.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ModelSource;
use crate::{Error, Result};

/// The settings of one file. A setting that is `null` counts as absent, as it does for those who write these files.
pub(super) struct Settings<'a> {
    file: &'a str,
    map: Map<String, Value>,
}

impl<'a> Settings<'a> {
    /// The settings in this file, if the model has it.
    pub(super) fn read(source: &dyn ModelSource, file: &'a str) -> Result<Option<Self>> {
        let Some(bytes) = source.file(file) else { return Ok(None) };
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Some(Self { file, map })),
            Ok(_) => Err(bad_model(file, "it is not a JSON object")),
            Err(error) => Err(bad_model(file, format!("it is not valid JSON: {error}"))),
        }
    }

    /// A setting, unless it is absent or `null`.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether a setting is there, be it `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A whole number.
    pub(super) fn whole(&self, key: &str, bounds: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| bounds.contains(n));
        let wanted = || format!("a whole number from {} to {}", bounds.start(), bounds.end());
        number.map(Some).ok_or_else(|| self.wrong(key, value, wanted()))
    }

    /// A whole number that must be there.
    pub(super) fn count(&self, key: &str, bounds: RangeInclusive<usize>) -> Result<usize> {
        self.whole(key, bounds)?.ok_or_else(|| bad_model(self.file, format!("{key} is missing")))
    }

    /// A number.
    pub(super) fn real(&self, key: &str, bounds: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|n| bounds.contains(n));
        let wanted = || format!("a number from {} to {}", bounds.start(), bounds.end());
        number.map(Some).ok_or_else(|| self.wrong(key, value, wanted()))
    }

    /// Yes or no; absent is no.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    /// A list; absent is empty.
    pub(super) fn list(&self, key: &str) -> Result<&[Value]> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(self.wrong(key, other, "a list")),
        }
    }

    /// Settings within settings.
    pub(super) fn object(&self, key: &str) -> Result<Option<Settings<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Settings { file: self.file, map: map.clone() })),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// One token id or a list of them; absent is none.
    pub(super) fn tokens(&self, key: &str) -> Result<Vec<crate::Token>> {
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let token = |value: &Value| value.as_u64().and_then(|id| crate::Token::try_from(id).ok());
        values.iter().map(|value| token(value).ok_or_else(|| self.wrong(key, value, "a token id"))).collect()
    }

    /// The error for a setting that is none of what is wanted.
    pub(super) fn wrong(&self, key: &str, value: &Value, wanted: impl Display) -> Error {
        bad_model(self.file, format!("{key} is {}: it must be {wanted}", shown(&value.to_string())))
    }
}

/// As much of a text as may stand in an error: a hostile file could fill the log with one value.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

/// [`Error::BadModel`] about this file.
pub(super) fn bad_model(file: &str, reason: impl Into<String>) -> Error {
    Error::BadModel { file: file.to_owned(), reason: reason.into() }
}
