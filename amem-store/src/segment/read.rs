//! From a location in a segment to a chunk that was checked.
//!
//! Records are read, not mapped: a read of a file that was truncated or lies on a bad disk is an error, where touching
//! a mapping of it would end the process with a signal. What is read to be checked goes through a buffer that stays in
//! the processor's cache. Small records are handed out as they were read. Of larger ones the bytes stay in the
//! file, which the chunk keeps open, and each layer is read when it is asked for: so a context is filled without the
//! chunks' KV in memory beside it.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use amem_core::{ChunkId, Encoding, Error, HostKv, KvChunk, KvData, Result};

use super::format::{self, FIXED, Header, Lengths, PAGE};
use super::index::Location;
use crate::disk::DiskFile;

/// Records of at most so many bytes are read as a whole, and handed out as they are.
const SMALL: u64 = if cfg!(test) { 8 << 10 } else { 128 << 10 };
/// Bytes of a larger record that are checked at once.
const PIECE: usize = 256 << 10;

/// The chunk at `location` of a segment, whole and checked; `None` if it is damaged. `buffer` is scratch. With `lend`,
/// a large chunk's KV stays in the file.
pub(crate) fn chunk(
    location: &Location,
    file: &Arc<dyn DiskFile>,
    lend: bool,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<KvChunk>> {
    let entry = &location.entry;
    let first = if entry.bytes <= SMALL { entry.bytes as usize } else { PAGE as usize };
    let mut filled = fill(&**file, entry.offset, first, buffer)?;
    let fixed = buffer.get(..filled.min(FIXED)).unwrap_or_default();
    let lengths = format::parse_lengths(fixed, location.segment, entry.offset).filter(|l| l.record == entry.bytes);
    let Some(lengths) = lengths else { return Ok(None) };
    if lengths.header > filled {
        filled = fill(&**file, entry.offset, lengths.header, buffer)?;
    }
    let header = format::parse_header(&buffer[..filled], location.segment, entry.offset);
    let Some((header, lengths)) = header.filter(|(header, _)| header.id() == entry.id) else { return Ok(None) };
    let data: Option<Arc<dyn KvData>> = if entry.bytes <= SMALL {
        let payload = buffer[..filled].get(lengths.payload_start..lengths.payload_start + lengths.payload);
        let sound = payload.filter(|payload| header.fits(payload));
        sound.map(|payload| host(&header, payload.to_vec()))
    } else if !lend || !header.has_layers_of(lengths.layer) {
        let mut payload = vec![0; lengths.payload];
        let filled = file.read_at(&mut payload, entry.offset + lengths.payload_start as u64)?;
        (filled == payload.len() && header.fits(&payload)).then(|| host(&header, payload))
    } else {
        let sound = is_whole(&header, &lengths, location, &**file, buffer)?;
        sound.then(|| Arc::new(SegmentKv::new(&header, &lengths, location, file.clone())) as Arc<dyn KvData>)
    };
    Ok(data.and_then(|data| header.into_chunk(data).ok()))
}

/// Reads the first `len` bytes from `offset` on, or as many as there are, into the buffer.
fn fill(file: &dyn DiskFile, offset: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.resize(buffer.len().max(len), 0);
    file.read_at(&mut buffer[..len], offset)
}

fn host(header: &Header, payload: Vec<u8>) -> Arc<dyn KvData> {
    Arc::new(HostKv::new(header.encoding(), header.layers(), payload))
}

/// Whether all layers in the file are what was written.
fn is_whole(
    header: &Header,
    lengths: &Lengths,
    location: &Location,
    file: &dyn DiskFile,
    buffer: &mut Vec<u8>,
) -> io::Result<bool> {
    let mut at = location.entry.offset + lengths.payload_start as u64;
    for expected in header.checksums() {
        let (mut left, mut checksum) = (lengths.layer, 0);
        while left > 0 {
            let piece = left.min(PIECE);
            if fill(file, at, piece, buffer)? != piece {
                return Ok(false);
            }
            checksum = crc32c::crc32c_append(checksum, &buffer[..piece]);
            (at, left) = (at + piece as u64, left - piece);
        }
        if !header.trusts(checksum, *expected) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// KV that stays in its segment. The file is kept open, so it can be read after it was removed.
struct SegmentKv {
    file: Arc<dyn DiskFile>,
    id: ChunkId,
    encoding: Encoding,
    /// Of the payload in the file.
    offset: u64,
    layer_bytes: usize,
    checksums: Box<[u32]>,
}

impl SegmentKv {
    fn new(header: &Header, lengths: &Lengths, location: &Location, file: Arc<dyn DiskFile>) -> Self {
        Self {
            file,
            id: header.id(),
            encoding: header.encoding(),
            offset: location.entry.offset + lengths.payload_start as u64,
            layer_bytes: lengths.layer,
            checksums: header.checksums().into(),
        }
    }

    fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::DamagedKv { chunk: self.id, reason: reason.into() }
    }
}

impl KvData for SegmentKv {
    fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn size(&self) -> usize {
        self.layer_bytes * self.checksums.len()
    }

    fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>> {
        let Some(checksum) = self.checksums.get(layer) else {
            let reason = format!("layer {layer} of a chunk with {} layers", self.checksums.len());
            return Err(Error::WrongKv { reason });
        };
        let mut bytes = vec![0; self.layer_bytes];
        let at = self.offset + (layer * self.layer_bytes) as u64;
        let filled = self.file.read_at(&mut bytes, at).map_err(|error| self.damaged(error.to_string()))?;
        // It was sound when it was handed out; the disk may have lost it since, or somebody cut the file.
        if filled < bytes.len() || crc32c::crc32c(&bytes) != *checksum {
            return Err(self.damaged(format!("layer {layer} is not in its file any more")));
        }
        Ok(Cow::Owned(bytes))
    }
}
