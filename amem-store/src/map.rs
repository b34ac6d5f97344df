//! Model files read through memory maps: the one place of this crate with `unsafe` in it.

use std::fs::File;
use std::io;
use std::sync::Arc;

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

impl Map {
    /// Gives memory back that holds these bytes, if they are of this file. They are read from it again when they are touched.
    pub(crate) fn release(&self, bytes: &[u8]) -> bool {
        let offset = bytes.as_ptr().addr().checked_sub(self.bytes().as_ptr().addr());
        let Some(offset) = offset.filter(|offset| offset.saturating_add(bytes.len()) <= self.bytes().len()) else {
            return false;
        };
        // SAFETY: the mapping is of a file and is not written to. What is dropped here comes back from the file with the same
        // bytes, as long as nobody changes it, which mapping it relies on already.
        #[cfg(unix)]
        let _ = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len()) };
        true
    }
}

/// A map that its owner shares with a reader of its bytes.
pub(crate) struct Shared(pub(crate) Arc<Map>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}
