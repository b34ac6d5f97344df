//! Models in one file: GGUF, the format of llama.cpp.
//!
//! What a file says of its model is put in the words of a Hugging Face directory (`config.json`, `tokenizer.json`), so
//! that both are checked and computed by the same code. Tensors are read where they lie.

mod architecture;
mod encoder;
mod header;
mod rope_factors;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use self::architecture::Architecture;
use self::header::Header;
use super::settings::bad_model;
use super::{Config, EncoderConfig, ModelSource, WeightType};
use crate::{Error, Result};

/// The bytes of a GGUF file: read, mapped or embedded. They must not change while they are held.
pub type GgufBytes = Box<dyn AsRef<[u8]> + Send + Sync>;

const CONFIG: &str = "config.json";
/// What to say of a type that is not read.
pub(super) const TYPES_READ: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are: quantise the \
                                     model to one of these (llama-quantize, as Q8_0 or Q4_K_M)";
/// Files that a model may be split into.
const MAX_PARTS: usize = 1 << 10;

/// A model in GGUF, in one file or several: a [`ModelSource`] of its configuration, weights, tokenizer and chat template.
///
/// Weights are read in the types of [`WeightType`], of the architectures `llama` (Mistral and Mixtral too), `qwen2`,
/// `qwen3`, `qwen3moe`, `gemma2`, `gemma3`, `phi3`, `smollm3`, `olmo2` and `granite`; and, for an
/// [`Encoder`](super::Encoder), `bert` and `nomic-bert` with word pieces.
pub struct Gguf {
    parts: Vec<(String, GgufBytes)>,
    architecture: Architecture,
    /// `config.json`, and all others of an encoder, as a directory would have them.
    files: BTreeMap<&'static str, Vec<u8>>,
    tensors: BTreeMap<String, Placed>,
}

/// A tensor in its file.
struct Placed {
    part: usize,
    dtype: Option<WeightType>,
    type_name: &'static str,
    shape: Vec<usize>,
    place: Range<usize>,
    /// Rows are those of so many heads, each in the order of llama.cpp's RoPE.
    interleaved: Option<usize>,
    /// The bytes in the order of rows that is computed with, where that is another.
    reordered: OnceLock<Vec<u8>>,
}

/// A tensor as a file holds it.
pub(super) struct GgufTensor<'a> {
    pub(super) name: &'a str,
    pub(super) file: &'a str,
    pub(super) dtype: Option<WeightType>,
    pub(super) type_name: &'static str,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
}

impl Gguf {
    /// Opens a model in one file. Its name is for messages.
    ///
    /// # Errors
    /// [`Error::BadModel`] for a file that is damaged or contradicts itself, [`Error::UnsupportedModel`] for a model that
    /// cannot be run.
    pub fn open(name: impl Into<String>, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        Self::open_parts(vec![(name.into(), Box::new(bytes))])
    }

    /// Opens a model that was split into several files (`…-00001-of-00003.gguf`), given in their order.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_parts(parts: Vec<(String, GgufBytes)>) -> Result<Self> {
        let headers = parts.iter().map(|(name, bytes)| Header::read(name, (**bytes).as_ref()));
        let headers = headers.collect::<Result<Vec<_>>>()?;
        let Some(first) = headers.first() else { return Err(bad_model("model.gguf", "it has no files")) };
        check_split(&headers)?;
        let architecture = Architecture::of(&first.metadata)?;
        let files = architecture.files(&first.metadata, &headers, &parts)?;

        let mut tensors = BTreeMap::new();
        for (part, header) in headers.into_iter().enumerate() {
            for (name, entry) in header.tensors {
                if !architecture.is_weight(name) {
                    continue;
                }
                let placed = Placed {
                    part,
                    dtype: entry.dtype,
                    type_name: entry.type_name,
                    shape: entry.shape,
                    place: entry.place,
                    interleaved: None,
                    reordered: OnceLock::new(),
                };
                if tensors.insert(name.to_owned(), placed).is_some() {
                    let file = parts.get(part).map_or("", |(file, _)| file);
                    return Err(bad_model(file, format!("tensor {name} is in another part too")));
                }
            }
        }
        let mut gguf = Self { parts, architecture, files, tensors };
        match architecture {
            Architecture::Decoder(decoder) => {
                let config = Config::parse(&gguf)?;
                for (name, tensor) in &mut gguf.tensors {
                    tensor.interleaved = decoder.interleaved_heads(name, &config);
                }
            }
            Architecture::Encoder(_) => {
                EncoderConfig::parse(&gguf).map_err(|error| gguf.blame(error))?;
            }
        }
        Ok(gguf)
    }

    /// The architecture's name, as `general.architecture` has it.
    pub fn architecture(&self) -> &'static str {
        self.architecture.name()
    }

    /// Whether it is for an [`Encoder`](super::Encoder), and no language model.
    pub fn is_encoder(&self) -> bool {
        matches!(self.architecture, Architecture::Encoder(_))
    }

    /// The name of the file, the first one's if there are several.
    pub(super) fn file_name(&self) -> &str {
        self.parts.first().map_or("model.gguf", |(name, _)| name)
    }

    fn bytes(&self, part: usize) -> &[u8] {
        self.parts.get(part).map_or(&[], |(_, bytes)| (**bytes).as_ref())
    }

    /// What `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` would say.
    pub(super) fn chat_files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let header = Header::read(self.file_name(), self.bytes(0))?;
        let rows = self.tensors.get("token_embd.weight").and_then(|tensor| tensor.shape.first());
        tokenizer::check_count(&header.metadata, rows.copied().unwrap_or(0))?;
        tokenizer::files(&header.metadata, self.architecture.strips_behind_control())
    }

    /// Names what is wrong with a file of a Hugging Face directory in the words of this file.
    pub(super) fn blame(&self, error: Error) -> Error {
        match error {
            Error::BadModel { file, reason } if file == CONFIG => {
                Error::BadModel { file: self.file_name().to_owned(), reason: self.architecture.reword(reason) }
            }
            Error::BadModel { file, reason } if !self.parts.iter().any(|(part, _)| *part == file) => {
                let what = file.split('.').next().unwrap_or_default();
                Error::BadModel { file: self.file_name().to_owned(), reason: format!("{what}: {reason}") }
            }
            Error::UnsupportedModel { what, supported } if !what.contains(self.file_name()) => {
                Error::UnsupportedModel { what: format!("{}: {what}", self.file_name()), supported }
            }
            other => other,
        }
    }

    /// Every tensor of the model, by the file's own names.
    pub(super) fn tensors(&self) -> impl Iterator<Item = GgufTensor<'_>> {
        self.tensors.iter().map(|(name, tensor)| GgufTensor {
            name,
            file: self.parts.get(tensor.part).map_or("", |(file, _)| file),
            dtype: tensor.dtype,
            type_name: tensor.type_name,
            shape: &tensor.shape,
            bytes: self.bytes(tensor.part).get(tensor.place.clone()).unwrap_or_default(),
        })
    }

    /// This file's name for a tensor of a Hugging Face model, and which of the matrices in it, if there are several.
    pub(super) fn name_of(&self, name: &str) -> (String, Option<usize>) {
        self.architecture.tensor_name(name)
    }

    /// The bytes of a tensor, its rows in the order that is computed with.
    pub(super) fn rows<'a>(&'a self, name: &str, bytes: &'a [u8]) -> &'a [u8] {
        let Some(tensor) = self.tensors.get(name) else { return bytes };
        match tensor.interleaved {
            Some(heads) => tensor.reordered.get_or_init(|| halves(&tensor.shape, heads, bytes)),
            None => bytes,
        }
    }
}

impl ModelSource for Gguf {
    fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    fn gguf(&self) -> Option<&Gguf> {
        Some(self)
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf").field("file", &self.file_name()).field("tensors", &self.tensors.len()).finish()
    }
}

/// Checks that these are the parts of one model, all of them and in their order.
fn check_split(headers: &[Header<'_>]) -> Result<()> {
    for (index, Header { metadata, .. }) in headers.iter().enumerate() {
        let count = metadata.whole("split.count", 0..=MAX_PARTS)?.unwrap_or(0).max(1);
        let number = metadata.whole("split.no", 0..=MAX_PARTS)?.unwrap_or(0);
        if count != headers.len() || number != index {
            let reason = format!(
                "it is part {} of {count}, and was opened as part {} of {}: keep all parts in one directory, under \
                 the names that they were made with",
                number + 1,
                index + 1,
                headers.len()
            );
            return Err(bad_model(metadata.file, reason));
        }
    }
    let Some(first) = headers.first() else { return Ok(()) };
    let found: usize = headers.iter().map(|header| header.tensors.len()).sum();
    match first.metadata.whole("split.tensors.count", 0..=usize::MAX)? {
        Some(stated) if headers.len() > 1 && stated != found => {
            Err(bad_model(first.metadata.file, format!("its parts have {found} tensors, and it states {stated}")))
        }
        _ => Ok(()),
    }
}

/// Rows of heads from llama.cpp's order, in which the two numbers that RoPE turns together stand side by side, to that of
/// Hugging Face's models, in which they stand half a head apart.
fn halves(shape: &[usize], heads: usize, bytes: &[u8]) -> Vec<u8> {
    let rows = shape.first().copied().unwrap_or(1).max(1);
    let (size, half) = (bytes.len() / rows, rows / heads.max(1) / 2);
    let mut reordered = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for part in 0..2 {
            for pair in 0..half {
                let row = (head * half + pair) * 2 + part;
                reordered.extend_from_slice(bytes.get(row * size..(row + 1) * size).unwrap_or_default());
            }
        }
    }
    reordered
}
