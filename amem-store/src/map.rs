//! Model files read through memory maps: the one place of this crate with `unsafe` in it.

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions};

/// A file, mapped. Stays readable after the file is unlinked.
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps `file`.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: a mapping is sound while nobody changes or truncates the mapped bytes. amem never writes model files,
        // and says so to whoever opens one (`ModelDir`): a program that edits one under it breaks this, as with any
        // process that maps its weights. Bytes have no invalid values.
        unsafe { MmapOptions::new().len(len).map(file) }.map(Self)
    }

    /// All mapped bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}
