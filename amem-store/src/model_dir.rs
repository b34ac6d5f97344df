//! A model's directory, read where it lies.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::Path;

use amem_core::transformer::ModelSource;

use crate::map::Map;
use crate::{Error, Result};

/// The largest text file that is read: tokenizers of large vocabularies have some tens of megabytes.
const TEXT_LIMIT: u64 = 256 << 20;

/// A model's directory as model hubs lay it out. Weights (`*.safetensors`) are mapped, so opening one costs next to
/// nothing and processes share the pages; configuration, tokenizer and chat template (`*.json`, `*.jinja`) are read.
///
/// Symbolic links are followed, for hub caches are made of them. While a directory is open its weight files must not be
/// written to; replacing them by others (a rename) is fine.
pub struct ModelDir {
    files: BTreeMap<String, Contents>,
}

enum Contents {
    Mapped(Map),
    Read(Vec<u8>),
}

impl ModelDir {
    /// Opens a directory. Files of other kinds, and subdirectories, are passed over.
    ///
    /// # Errors
    /// When the directory or one of its files cannot be read, or a text file is larger than any tokenizer's.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut files = BTreeMap::new();
        for file in fs::read_dir(path).map_err(Error::io("list the model directory", path))? {
            let file = file.map_err(Error::io("list the model directory", path))?;
            let (Ok(name), path) = (file.file_name().into_string(), file.path()) else { continue };
            let weights = name.ends_with(".safetensors");
            let text = name.ends_with(".json") || name.ends_with(".jinja");
            if !weights && !text {
                continue;
            }
            let metadata = fs::metadata(&path).map_err(Error::io("read", &path))?;
            if !metadata.is_file() {
                continue;
            }
            let contents = if weights {
                let mapped = File::open(&path).and_then(|file| Map::new(&file));
                Contents::Mapped(mapped.map_err(Error::io("map", &path))?)
            } else if metadata.len() <= TEXT_LIMIT {
                Contents::Read(fs::read(&path).map_err(Error::io("read", &path))?)
            } else {
                return Err(Error::TooLarge { path, found: metadata.len(), limit: TEXT_LIMIT });
            };
            files.insert(name, contents);
        }
        Ok(Self { files })
    }

    /// The names of the files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

impl fmt::Debug for ModelDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelDir").field(&self.files.keys()).finish()
    }
}

impl ModelSource for ModelDir {
    fn file(&self, name: &str) -> Option<&[u8]> {
        Some(match self.files.get(name)? {
            Contents::Mapped(map) => map.bytes(),
            Contents::Read(bytes) => bytes,
        })
    }
}
