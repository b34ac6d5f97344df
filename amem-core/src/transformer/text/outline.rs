//! What `tokenizer.json` is checked for, and what has to be known of it that the tokenizers crate does not show.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// What is read of `tokenizer.json` here. The rest, which may be large, is checked: each text is UTF-8 without half
/// surrogates, each number is in range, and a normalizer's table is no larger than it is.
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
        while let Some(key) = entries.next_key::<Key>()? {
            match key {
                Key::Charsmap => {
                    entries.next_value::<Charsmap>()?;
                }
                Key::Other => {
                    entries.next_value::<Self>()?;
                }
            }
        }
        Ok(self)
    }
}

/// The name of a part.
enum Key {
    /// `precompiled_charsmap`.
    Charsmap,
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E>(self, name: &str) -> std::result::Result<Key, E> {
                Ok(if name == "precompiled_charsmap" { Key::Charsmap } else { Key::Other })
            }
        }

        from.deserialize_str(Name)
    }
}

/// What a normalizer replaces: in base64, the size of a table in bytes, the table, and texts. The tokenizers crate
/// makes room for as large a table as is stated.
struct Charsmap;

impl<'de> Deserialize<'de> for Charsmap {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_str(Self)
    }
}

impl Visitor<'_> for Charsmap {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a normalizer's table")
    }

    fn visit_str<E: serde::de::Error>(self, base64: &str) -> std::result::Result<Self, E> {
        let bits = |digit: u8| match digit {
            b'A'..=b'Z' => Some(digit - b'A'),
            b'a'..=b'z' => Some(digit - b'a' + 26),
            b'0'..=b'9' => Some(digit - b'0' + 52),
            b'+' => Some(62),
            b'/' => Some(63),
            _ => None,
        };
        // Six digits have 36 bits, of which the first 32 are the size, its lowest byte first.
        let first = base64.as_bytes().first_chunk::<6>();
        let first =
            first.and_then(|first| first.iter().try_fold(0, |all, digit| Some(all << 6 | u64::from(bits(*digit)?))));
        match first.map(|bits| ((bits >> 4) as u32).swap_bytes() as usize) {
            Some(size) if size > base64.len() / 4 * 3 => Err(E::custom("a normalizer's table ends beyond its text")),
            // What is no base64 at all is refused where it is read.
            _ => Ok(self),
        }
    }
}
