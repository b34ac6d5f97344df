//! The header of a GGUF file, read within bounds: metadata, and where each tensor lies.
//!
//! Nothing is allocated by a count that a file states: each entry takes bytes of the file, and strings and lists are
//! borrowed from it.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

use super::TYPES_READ;
use crate::transformer::WeightType;
use crate::transformer::settings::bad_model;
use crate::{Error, Result};

/// More dimensions than any tensor of these files has.
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// The longest name of a tensor; llama.cpp's limit is 64.
const MAX_NAME: usize = 256;

/// What a GGUF file says before its tensors' numbers.
pub(super) struct Header<'a> {
    pub(super) metadata: Metadata<'a>,
    /// By name.
    pub(super) tensors: BTreeMap<&'a str, Entry>,
}

/// Where a tensor lies, and how.
pub(super) struct Entry {
    /// `None` for a type that weights cannot have here.
    pub(super) dtype: Option<WeightType>,
    /// The type's name.
    pub(super) type_name: &'static str,
    /// Outermost dimension first, as elsewhere here; the file has it the other way around.
    pub(super) shape: Vec<usize>,
    /// Bytes of the file.
    pub(super) place: Range<usize>,
}

/// The metadata of a file, by key.
pub(super) struct Metadata<'a> {
    pub(super) file: &'a str,
    values: BTreeMap<&'a str, Value<'a>>,
}

/// A value of the metadata.
#[derive(Clone, Copy)]
enum Value<'a> {
    Whole(u64),
    Negative,
    Real(f64),
    Flag(bool),
    Text(&'a [u8]),
    List(List<'a>),
}

/// A list of values of one type, as it lies in the file. Its bytes have been checked to hold as many.
#[derive(Clone, Copy)]
pub(super) struct List<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

/// The types of a GGUF file's values.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

/// The types of tensors that llama.cpp knows: number, name, numbers in a block, bytes of a block. All are listed, so
/// that one that is not read here is refused by its name, and only if it is needed.
const TYPES: [(u32, &str, usize, usize); 34] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

impl<'a> Header<'a> {
    /// Reads the header of this file.
    pub(super) fn read(file: &'a str, bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader { file, bytes, at: 0 };
        let magic = reader.take(4)?;
        if magic != b"GGUF" {
            return Err(bad_model(file, "it is no GGUF file: it does not begin with GGUF"));
        }
        match reader.u32()? {
            2 | 3 => {}
            1 => return Err(bad_model(file, "it is of version 1 of GGUF: convert the model anew")),
            version if version.swap_bytes() <= 3 => {
                return Err(bad_model(file, "it is big-endian: convert the model anew, little-endian"));
            }
            version => return Err(bad_model(file, format!("it is of version {version} of GGUF: 2 and 3 are read"))),
        }
        let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
        let mut values = BTreeMap::new();
        for _ in 0..value_count {
            let key = reader.name("a key")?;
            let kind = reader.u32()?;
            let value = reader.value(key, kind)?;
            if values.insert(key, value).is_some() {
                return Err(bad_model(file, format!("{key} stands in it twice")));
            }
        }
        let metadata = Metadata { file, values };
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, entry) = reader.tensor()?;
            if tensors.insert(name, entry).is_some() {
                return Err(bad_model(file, format!("tensor {name} stands in it twice")));
            }
        }
        let mut header = Self { metadata, tensors };
        header.place_tensors(reader.at, bytes.len())?;
        Ok(header)
    }

    /// Tensors are placed relative to the end of the header, aligned. They have to lie in the file, apart.
    fn place_tensors(&mut self, end: usize, len: usize) -> Result<()> {
        let file = self.metadata.file;
        let alignment = self.metadata.whole("general.alignment", 1..=MAX_ALIGNMENT as usize)?;
        let alignment = alignment.map_or(DEFAULT_ALIGNMENT, |alignment| alignment as u64);
        if !alignment.is_power_of_two() {
            return Err(bad_model(file, format!("general.alignment is {alignment}: it must be a power of two")));
        }
        let start = end.next_multiple_of(alignment as usize);
        let mut order: Vec<(&&str, &mut Entry)> = self.tensors.iter_mut().collect();
        for (name, entry) in &mut order {
            if !(entry.place.start as u64).is_multiple_of(alignment) {
                let offset = entry.place.start;
                let reason = format!("tensor {name} is at {offset}, which is no multiple of the alignment {alignment}");
                return Err(bad_model(file, reason));
            }
            let place = (start.checked_add(entry.place.start), start.checked_add(entry.place.end));
            match place {
                (Some(first), Some(last)) if last <= len => entry.place = first..last,
                _ => {
                    let reason =
                        format!("tensor {name} ends beyond the file's {len} bytes: the file is cut off, get it anew");
                    return Err(bad_model(file, reason));
                }
            }
        }
        order.sort_unstable_by_key(|(_, entry)| entry.place.start);
        for pair in order.windows(2) {
            if let [(name, one), (other, two)] = pair
                && one.place.end > two.place.start
            {
                return Err(bad_model(file, format!("tensors {name} and {other} lie over each other")));
            }
        }
        Ok(())
    }
}

impl<'a> Metadata<'a> {
    /// A whole number. A list of equal ones counts as one: some files state for each layer what holds for all.
    pub(super) fn whole(&self, key: &str, bounds: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let one = match value {
            Value::List(list) => {
                let mut numbers = list.wholes();
                let first = numbers.next();
                // With the first of them, as many as there are values.
                let same =
                    |first: &u64| numbers.by_ref().take_while(|number| number == first).count() + 1 == list.count;
                first.filter(same).map(Value::Whole)
            }
            value => Some(*value),
        };
        let number = match one {
            Some(Value::Whole(number)) => usize::try_from(number).ok().filter(|number| bounds.contains(number)),
            _ => None,
        };
        let wanted = || format!("a whole number from {} to {}", bounds.start(), bounds.end());
        number.map(Some).ok_or_else(|| self.wrong(key, wanted()))
    }

    /// A number.
    pub(super) fn real(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Real(number)) if number.is_finite() => Ok(Some(*number)),
            Some(Value::Whole(number)) => Ok(Some(*number as f64)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// Yes or no.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(bytes)) => std::str::from_utf8(bytes).map(Some).map_err(|_| self.wrong(key, "UTF-8")),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// A string that must be there.
    pub(super) fn word(&self, key: &str) -> Result<&'a str> {
        self.text(key)?.ok_or_else(|| self.missing(key))
    }

    /// A list of strings.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.list(key, "a list of strings in UTF-8", |list| list.texts()?.into_iter().collect())
    }

    /// A list of numbers.
    pub(super) fn reals(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.list(key, "a list of 32-bit numbers", |list| {
            let numbers = list.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            (list.kind == kind::F32).then(|| numbers.collect())
        })
    }

    /// A list of small whole numbers.
    pub(super) fn small_wholes(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.list(key, "a list of whole numbers up to 255", |list| {
            let numbers: Vec<u8> = list.wholes().filter_map(|number| u8::try_from(number).ok()).collect();
            (numbers.len() == list.count).then_some(numbers)
        })
    }

    fn list<T>(&self, key: &str, wanted: &str, read: impl Fn(&List<'a>) -> Option<T>) -> Result<Option<T>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::List(list)) => read(list).map(Some).ok_or_else(|| self.wrong(key, wanted)),
            Some(_) => Err(self.wrong(key, wanted)),
        }
    }

    /// The error for a key that is not there.
    pub(super) fn missing(&self, key: &str) -> Error {
        bad_model(self.file, format!("{key} is missing: convert the model anew"))
    }

    /// The error for a value that is none of what is wanted.
    pub(super) fn wrong(&self, key: &str, wanted: impl std::fmt::Display) -> Error {
        let shown = match self.values.get(key) {
            Some(Value::Whole(number)) => number.to_string(),
            Some(Value::Real(number)) => number.to_string(),
            Some(Value::Flag(flag)) => flag.to_string(),
            Some(Value::Negative) => "negative".to_owned(),
            // A hostile file could fill the log with one value.
            Some(Value::Text(text)) => format!("{:?}", String::from_utf8_lossy(&text[..text.len().min(60)])),
            Some(Value::List(list)) => format!("a list of {} values", list.count),
            None => "missing".to_owned(),
        };
        bad_model(self.file, format!("{key} is {shown}: it must be {wanted}"))
    }
}

impl<'a> List<'a> {
    fn texts(&self) -> Option<Vec<Option<&'a str>>> {
        if self.kind != kind::STRING {
            return None;
        }
        let mut rest = self.bytes;
        let mut texts = Vec::new();
        while let Some((len, after)) = rest.split_first_chunk::<8>() {
            let (text, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
            texts.push(std::str::from_utf8(text).ok());
            rest = after;
        }
        Some(texts)
    }

    /// Its whole numbers; fewer than there are values if some are none.
    fn wholes(&self) -> impl Iterator<Item = u64> {
        let size = size_of_kind(self.kind).unwrap_or(1);
        self.bytes.chunks_exact(size).filter_map(|bytes| match scalar(self.kind, bytes) {
            Some(Value::Whole(number)) => Some(number),
            _ => None,
        })
    }
}

/// Bytes of a value of a type; `None` for those that have no fixed size.
fn size_of_kind(kind: u32) -> Option<usize> {
    match kind {
        kind::U8 | kind::I8 | kind::BOOL => Some(1),
        kind::U16 | kind::I16 => Some(2),
        kind::U32 | kind::I32 | kind::F32 => Some(4),
        kind::U64 | kind::I64 | kind::F64 => Some(8),
        _ => None,
    }
}

/// A value of fixed size from its bytes.
fn scalar<'a>(kind: u32, bytes: &[u8]) -> Option<Value<'a>> {
    let signed = |number: i64| u64::try_from(number).map_or(Value::Negative, Value::Whole);
    let wide = |bytes: &[u8]| {
        let mut wide = [0; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(wide))
    };
    let number = wide(bytes)?;
    Some(match kind {
        kind::U8 | kind::U16 | kind::U32 | kind::U64 => Value::Whole(number),
        kind::I8 => signed((number as i8).into()),
        kind::I16 => signed((number as i16).into()),
        kind::I32 => signed((number as i32).into()),
        kind::I64 => signed(number as i64),
        kind::F32 => Value::Real(f32::from_bits(number as u32).into()),
        kind::F64 => Value::Real(f64::from_bits(number)),
        kind::BOOL => Value::Flag(number != 0),
        _ => return None,
    })
}

/// A place in a file.
struct Reader<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len));
        let cut = || bad_model(self.file, "its header ends beyond the file: the file is cut off, get it anew");
        let taken = taken.ok_or_else(cut)?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<&'a [u8]> {
        let len = self.u64()?;
        // A length beyond what can be addressed is beyond the file as well.
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn name(&mut self, what: &str) -> Result<&'a str> {
        let bytes = self.string()?;
        let name = std::str::from_utf8(bytes).ok().filter(|name| name.len() <= MAX_NAME && !name.is_empty());
        name.ok_or_else(|| bad_model(self.file, format!("{what} is no name of up to {MAX_NAME} bytes of UTF-8")))
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value<'a>> {
        let unknown = |kind| bad_model(self.file, format!("{key} is of an unknown type ({kind})"));
        match kind {
            kind::STRING => Ok(Value::Text(self.string()?)),
            kind::ARRAY => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let start = self.at;
                if kind == kind::STRING {
                    for _ in 0..count {
                        self.string()?;
                    }
                } else {
                    // Lists of lists are in no model's file.
                    let size = size_of_kind(kind)
                        .ok_or_else(|| bad_model(self.file, format!("{key} is a list of an unknown type ({kind})")))?;
                    let len = usize::try_from(count).ok().and_then(|count| count.checked_mul(size));
                    self.take(len.unwrap_or(usize::MAX))?;
                }
                // As many values as were just walked over.
                let bytes = self.bytes.get(start..self.at).unwrap_or_default();
                Ok(Value::List(List { kind, count: count as usize, bytes }))
            }
            _ => {
                let size = size_of_kind(kind).ok_or_else(|| unknown(kind))?;
                let bytes = self.take(size)?;
                scalar(kind, bytes).ok_or_else(|| bad_model(self.file, format!("{key} cannot be read")))
            }
        }
    }

    /// A tensor, placed relative to the end of the header.
    fn tensor(&mut self) -> Result<(&'a str, Entry)> {
        let file = self.file;
        let name = self.name("a tensor's name")?;
        let dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(bad_model(file, format!("tensor {name} has {dimensions} dimensions: 1 to 4 are read")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.insert(0, usize::try_from(self.u64()?).unwrap_or(usize::MAX));
        }
        let (code, offset) = (self.u32()?, self.u64()?);
        let known = TYPES.iter().find(|(known, ..)| *known == code);
        let Some(&(_, type_name, block, block_bytes)) = known else {
            return Err(Error::UnsupportedModel {
                what: format!("tensor {name} of {file}, whose type {code} is unknown,"),
                supported: TYPES_READ,
            });
        };
        let dtype = WeightType::ALL.into_iter().find(|dtype| dtype.to_string() == type_name);
        let bytes = match shape.as_slice() {
            [rows @ .., columns] if columns.is_multiple_of(block) && !shape.contains(&0) => rows
                .iter()
                .try_fold(columns / block, |blocks, rows| blocks.checked_mul(*rows))
                .and_then(|blocks| blocks.checked_mul(block_bytes)),
            _ => None,
        };
        let place = usize::try_from(offset).ok().and_then(|offset| Some(offset..offset.checked_add(bytes?)?));
        let wrong = || bad_model(file, format!("tensor {name} has shape {shape:?}, in which {type_name} cannot be"));
        Ok((name, Entry { dtype, type_name, place: place.ok_or_else(wrong)?, shape }))
    }
}
