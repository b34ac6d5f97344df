//! Files read through memory maps: the one place of this crate with `unsafe` in it.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use amem_core::{Encoding, KvData, Result};
use memmap2::{Mmap, MmapOptions};

/// The first bytes of a file, mapped. Stays readable after the file is unlinked.
pub(crate) struct Map(Bytes);

enum Bytes {
    Mapped(Mmap),
    /// Of a simulated disk's file.
    #[cfg(test)]
    Simulated(Vec<u8>),
}

impl Map {
    /// Maps the first `len` bytes of `file`, or as many as it has.
    pub(crate) fn new(file: &File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len().min(len)).map_err(io::Error::other)?;
        // SAFETY: a mapping is sound while nobody changes or truncates the mapped bytes. amem itself never does:
        // a segment's bytes are written once, before they are mapped, and after that the file is only unlinked, which
        // mappings outlive; model files are never written. Segments lie in a directory of mode 0700, so that only
        // programs of the same user could break this; one that does gets what it asked for, as with any process
        // that edits a database under its owner. Bytes have no invalid values, every byte of a segment is checked
        // against its checksum before use, and `populate` turns a truncation that already happened into an error.
        unsafe { MmapOptions::new().len(len).map(file) }.map(|map| Self(Bytes::Mapped(map)))
    }

    /// In the place of a mapping, on a simulated disk.
    #[cfg(test)]
    pub(crate) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self(Bytes::Simulated(bytes))
    }

    /// Brings a range into memory, or fails where touching it would raise a signal (a truncated file, a bad disk).
    ///
    /// # Errors
    /// `Unsupported` where the system cannot do that.
    pub(crate) fn populate(&self, range: &Range<usize>) -> io::Result<()> {
        let Some(map) = self.mapping() else { return Ok(()) };
        #[cfg(target_os = "linux")]
        return map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len()).map_err(|error| {
            // Linux before 5.14 does not know the advice.
            if error.kind() == io::ErrorKind::InvalidInput { io::ErrorKind::Unsupported.into() } else { error }
        });
        #[cfg(not(target_os = "linux"))]
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Has the system read a range ahead. A hint: what cannot be read ahead is read when it is needed.
    pub(crate) fn prefetch(&self, range: &Range<usize>) {
        if let Some(map) = self.mapping().filter(|map| map.get(range.clone()).is_some()) {
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
    }

    /// `None` where a simulated disk's bytes are in its place.
    fn mapping(&self) -> Option<&Mmap> {
        match &self.0 {
            Bytes::Mapped(map) => Some(map),
            #[cfg(test)]
            Bytes::Simulated(_) => None,
        }
    }

    /// All mapped bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
            #[cfg(test)]
            Bytes::Simulated(bytes) => bytes,
        }
    }
}

/// A chunk's KV in a mapping, which it keeps alive.
pub(crate) struct MappedRange {
    map: Arc<Map>,
    range: Range<usize>,
    encoding: Encoding,
    layers: usize,
}

impl MappedRange {
    /// The range, or `None` when the mapping does not reach that far.
    pub(crate) fn new(map: Arc<Map>, range: Range<usize>, encoding: Encoding, layers: usize) -> Option<Self> {
        map.bytes().get(range.clone()).is_some().then_some(Self { map, range, encoding, layers })
    }
}

impl KvData for MappedRange {
    fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn size(&self) -> usize {
        self.range.len()
    }

    fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>> {
        let len = self.range.len() / self.layers.max(1);
        let start = self.range.start + layer.min(self.layers) * len;
        let bytes = self.map.bytes().get(start..start + len).unwrap_or_default();
        Ok(Cow::Borrowed(bytes))
    }
}
