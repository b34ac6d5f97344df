//! A model's directory, read where it lies.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use amem_core::transformer::{Gguf, GgufBytes, ModelSource};

use crate::map::{Map, Shared};
use crate::{Error, Result};

/// The largest text file that is read: tokenizers of large vocabularies have some tens of megabytes.
const TEXT_LIMIT: u64 = 256 << 20;

/// A model's directory as model hubs lay it out, or a GGUF file. Weights (`*.safetensors`, `*.gguf`) are mapped, so opening
/// one costs next to nothing and processes share the pages; configuration, tokenizer and chat template (`*.json`,
/// `*.jinja`) are read, and so is the `config.json` of an encoder's modules, in folders like `1_Pooling`.
///
/// Symbolic links are followed, for hub caches are made of them. While a directory is open its weight files must not be
/// written to; replacing them by others (a rename) is fine.
pub struct ModelDir {
    files: BTreeMap<String, Contents>,
    gguf: Option<GgufFiles>,
}

/// A model in GGUF, and its files in their order.
struct GgufFiles {
    names: Vec<String>,
    maps: Vec<Arc<Map>>,
    gguf: Gguf,
}

enum Contents {
    Mapped(Map),
    Read(Vec<u8>),
}

impl ModelDir {
    /// Opens a directory or a GGUF file. Of a directory, files of other kinds and other subdirectories are passed over; if it has
    /// no `config.json`, the GGUF file in it is opened. A model in several parts (`…-00001-of-00003.gguf`) is named by any of
    /// them.
    ///
    /// # Errors
    /// When the directory or one of its files cannot be read, a text file is larger than any tokenizer's, a GGUF file is
    /// damaged or holds a model that cannot be run, or there are several of them.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
            return Self::open_gguf(path);
        }
        let (mut files, mut models) = (BTreeMap::new(), Vec::new());
        for file in fs::read_dir(path).map_err(Error::io("list the model directory", path))? {
            let file = file.map_err(Error::io("list the model directory", path))?;
            let (Ok(name), path) = (file.file_name().into_string(), file.path()) else { continue };
            if is_module(&name) {
                let path = path.join("config.json");
                if path.is_file() {
                    files.insert(format!("{name}/config.json"), Contents::Read(read_text(&path)?));
                }
                continue;
            }
            let weights = name.ends_with(".safetensors");
            let text = name.ends_with(".json") || name.ends_with(".jinja");
            let model = name.ends_with(".gguf");
            if !weights && !text && !model {
                continue;
            }
            let metadata = fs::metadata(&path).map_err(Error::io("read", &path))?;
            if !metadata.is_file() {
                continue;
            }
            if model {
                models.push(name);
                continue;
            }
            let contents = if weights {
                let mapped = File::open(&path).and_then(|file| Map::new(&file));
                Contents::Mapped(mapped.map_err(Error::io("map", &path))?)
            } else {
                Contents::Read(read_text(&path)?)
            };
            files.insert(name, contents);
        }
        // Hubs keep both formats in one directory.
        if files.contains_key("config.json") || models.is_empty() {
            return Ok(Self { files, gguf: None });
        }
        models.retain(|name| part(name).is_none_or(|part| part.number == 1));
        models.sort_unstable();
        match models.as_slice() {
            [model] => Self::open_gguf(&path.join(model)),
            _ => Err(Error::SeveralModels { path: path.to_owned(), names: models }),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let names: Vec<String> = Self::parts(&name).collect();
        let maps = names.iter().map(|name| {
            let path = path.with_file_name(name);
            let mapped = File::open(&path).and_then(|file| Map::new(&file)).map_err(Error::io("map", &path))?;
            Ok(Arc::new(mapped))
        });
        let maps = maps.collect::<Result<Vec<_>>>()?;
        let bytes = maps.iter().map(|map| Box::new(Shared(Arc::clone(map))) as GgufBytes);
        let gguf = Gguf::open_parts(names.iter().cloned().zip(bytes).collect());
        let gguf = gguf.map_err(|source| Error::Model { path: path.to_owned(), source })?;
        Ok(Self { files: BTreeMap::new(), gguf: Some(GgufFiles { names, maps, gguf }) })
    }

    /// The names of all files of the model that a GGUF file of this name belongs to, in their order: those of its parts
    /// (`…-00001-of-00003.gguf`), or its own.
    pub fn parts(name: &str) -> impl ExactSizeIterator<Item = String> {
        let part = part(name);
        (0..part.as_ref().map_or(1, |part| part.count)).map(move |index| match &part {
            Some(Part { stem, count, .. }) => format!("{stem}-{:05}-of-{count:05}.gguf", index + 1),
            None => name.to_owned(),
        })
    }

    /// The names of the files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let parts = self.gguf.iter().flat_map(|gguf| &gguf.names);
        self.files.keys().chain(parts).map(String::as_str)
    }
}

/// Whether a name is that of a folder which sentence-transformers makes for a module: `1_Pooling`.
fn is_module(name: &str) -> bool {
    let parts = name.split_once('_');
    parts.is_some_and(|(number, kind)| {
        let is_number = (1..=2).contains(&number.len()) && number.bytes().all(|digit| digit.is_ascii_digit());
        is_number && !kind.is_empty() && kind.bytes().all(|letter| letter.is_ascii_alphanumeric())
    })
}

/// A text file that is not too large.
fn read_text(path: &Path) -> Result<Vec<u8>> {
    let found = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if found > TEXT_LIMIT {
        return Err(Error::TooLarge { path: path.to_owned(), found, limit: TEXT_LIMIT });
    }
    fs::read(path).map_err(Error::io("read", path))
}

/// A file of a model in several parts, by its name.
struct Part<'a> {
    stem: &'a str,
    number: usize,
    count: usize,
}

/// llama.cpp's names for parts: `stem-00001-of-00003.gguf`.
fn part(name: &str) -> Option<Part<'_>> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let whole = |digits: &str| {
        let plain = digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    let (number, count) = (whole(number)?, whole(count)?);
    (1..=count).contains(&number).then_some(Part { stem, number, count })
}

impl fmt::Debug for ModelDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelDir").field(&self.names().collect::<Vec<_>>()).finish()
    }
}

impl ModelSource for ModelDir {
    fn file(&self, name: &str) -> Option<&[u8]> {
        if let Some(GgufFiles { gguf, .. }) = &self.gguf {
            return gguf.file(name);
        }
        Some(match self.files.get(name)? {
            Contents::Mapped(map) => map.bytes(),
            Contents::Read(bytes) => bytes,
        })
    }

    fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref().map(|files| &files.gguf)
    }

    fn release(&self, bytes: &[u8]) {
        let parts = self.gguf.iter().flat_map(|gguf| &gguf.maps).map(|map| &**map);
        let files = self.files.values().filter_map(|contents| match contents {
            Contents::Mapped(map) => Some(map),
            Contents::Read(_) => None,
        });
        // They are of one file.
        let _ = parts.chain(files).any(|map| map.release(bytes));
    }
}
