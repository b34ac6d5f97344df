//! Where a model's files come from. This crate does no I/O: a caller reads, maps or embeds them.

use std::collections::BTreeMap;

use super::Gguf;

/// The files of one model, by their names in its directory.
pub trait ModelSource: Send + Sync {
    /// The whole content of a file, or `None` if the model has no such file. Always the same bytes.
    ///
    /// Names may come from other files of the model; whoever opens paths refuses names that are no plain file names.
    fn file(&self, name: &str) -> Option<&[u8]>;

    /// Takes note that these bytes of a file have been read and are not needed soon: memory that holds a copy of the file's
    /// may be given back. They can be read again all the same.
    fn release(&self, _bytes: &[u8]) {}

    /// The model as a GGUF file, if it is one. Weights, tokenizer and chat template are taken from there then.
    fn gguf(&self) -> Option<&Gguf> {
        None
    }
}

impl<const N: usize> ModelSource for [(&str, &[u8]); N] {
    fn file(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
    }
}

impl ModelSource for BTreeMap<String, Vec<u8>> {
    fn file(&self, name: &str) -> Option<&[u8]> {
        self.get(name).map(Vec::as_slice)
    }
}
