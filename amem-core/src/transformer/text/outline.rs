//! What `tokenizer.json` is checked for, and what has to be known of it that the tokenizers crate does not show.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// What is read of `tokenizer.json` here. The rest, which may be large, is checked: each text is UTF-8 without half
/// surrogates, and each number is in range.
#[derive(Default)]
pub(super) struct Outline {
    pub(super) decoder: serde_json::Value,
    pub(super) model: ModelOutline,
}

/// The kind of the model in `tokenizer.json`.
#[derive(Default)]
pub(super) struct ModelOutline {
    /// `BPE` or another, if it is said.
    pub(super) kind: Option<String>,
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Parts;

        impl<'de> Visitor<'de> for Parts {
            type Value = Outline;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut parts: A) -> std::result::Result<Outline, A::Error> {
                let mut outline = Outline::default();
                while let Some(name) = parts.next_key::<String>()? {
                    match name.as_str() {
                        "decoder" => outline.decoder = parts.next_value()?,
                        "model" => outline.model = parts.next_value()?,
                        _ => {
                            parts.next_value::<Checked>()?;
                        }
                    }
                }
                Ok(outline)
            }
        }

        from.deserialize_map(Parts)
    }
}

impl<'de> Deserialize<'de> for ModelOutline {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Parts;

        impl<'de> Visitor<'de> for Parts {
            type Value = ModelOutline;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut parts: A) -> std::result::Result<ModelOutline, A::Error> {
                let mut outline = ModelOutline::default();
                while let Some(name) = parts.next_key::<String>()? {
                    match name.as_str() {
                        "type" => outline.kind = parts.next_value()?,
                        _ => {
                            parts.next_value::<Checked>()?;
                        }
                    }
                }
                Ok(outline)
            }
        }

        from.deserialize_map(Parts)
    }
}

/// Any JSON. It is read and dropped: unlike what serde ignores, which is only skipped.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}
