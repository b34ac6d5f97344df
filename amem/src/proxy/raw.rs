//! JSON whose parts stay as their bytes: what is not looked at passes through as it came.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::http::{ApiError, Result};

/// An object, its fields in order.
#[derive(Clone, Debug, Default)]
pub(super) struct RawObject(Vec<(String, Box<RawValue>)>);

impl RawObject {
    /// The bytes of a field.
    pub(super) fn raw(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().rfind(|(field, _)| field == name).map(|(_, value)| &**value)
    }

    /// A field as a type; `None` if it is left out or null.
    ///
    /// # Errors
    /// 422 for one of another type.
    pub(super) fn get<'s, T: Deserialize<'s>>(&'s self, name: &str) -> Result<Option<T>> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let wrong = |error| ApiError::unprocessable(format!("{name}: {error}")).param(name);
        serde_json::from_str(raw.get()).map_err(wrong)
    }

    /// A field as a type, which it does not keep.
    ///
    /// # Errors
    /// 422 for one of another type.
    pub(super) fn take<T: for<'a> Deserialize<'a>>(&mut self, name: &str) -> Result<Option<T>> {
        let value = self.get(name)?;
        self.0.retain(|(field, _)| field != name);
        Ok(value)
    }

    /// Sets a field, in the place where it is.
    ///
    /// # Errors
    /// 500 for what is no JSON.
    pub(super) fn set(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let value = to_raw_value(value).map_err(|error| ApiError::internal(&error))?;
        // A client that names a field twice means the last of them.
        let place = self.0.iter().rposition(|(field, _)| field == name);
        match place.and_then(|place| self.0.get_mut(place)) {
            Some((_, field)) => *field = value,
            None => self.0.push((name.to_owned(), value)),
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for RawObject {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = RawObject;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawObject, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(RawObject(fields))
            }
        }

        from.deserialize_map(Fields)
    }
}

impl Serialize for RawObject {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// A value whose bytes stay as they came until it is changed.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    raw: Box<RawValue>,
    value: Value,
}

impl Kept {
    /// What it is.
    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    /// Changes it.
    ///
    /// # Errors
    /// 500 for what is no JSON.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        change(&mut self.value);
        self.raw = to_raw_value(&self.value).map_err(|error| ApiError::internal(&error))?;
        Ok(())
    }

    /// A value of our own.
    ///
    /// # Errors
    /// 500 for what is no JSON.
    pub(super) fn new(value: Value) -> Result<Self> {
        let raw = to_raw_value(&value).map_err(|error| ApiError::internal(&error))?;
        Ok(Self { raw, value })
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(from)?;
        let value = serde_json::from_str(raw.get()).map_err(serde::de::Error::custom)?;
        Ok(Self { raw, value })
    }
}

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.raw.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_keeps_its_bytes() {
        let body = r#"{"b":1.50e1,"a":{"x" : "\u00e9"},"big":123456789012345678901234567890,"a2":null}"#;
        let mut object: RawObject = serde_json::from_str(body).unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), body);
        assert_eq!(object.get::<f64>("b").unwrap(), Some(15.0));
        assert_eq!(object.take::<String>("a2").unwrap(), None);
        object.set("b", &2).unwrap();
        object.set("c", &3).unwrap();
        let changed = r#"{"b":2,"a":{"x" : "\u00e9"},"big":123456789012345678901234567890,"c":3}"#;
        assert_eq!(serde_json::to_string(&object).unwrap(), changed);
        assert_eq!(object.get::<u8>("a").unwrap_err().status().as_u16(), 422);
    }
}
