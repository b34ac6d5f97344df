//! From a location in a segment to a chunk that was checked, or is when it is read.
//!
//! Records are read, not mapped: a read of a file that was truncated or lies on a bad disk is an error, where touching
//! a mapping of it would end the process with a signal. Small records are read and checked as a whole, and handed out as
//! they were read. Of larger ones the bytes stay in the file, which the chunk keeps open, and each layer is read and
//! checked when it is asked for: so a context is filled without the chunks' KV in memory beside it, and every byte is read
//! once, into memory that stays in the processor's cache.

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, Weak};

use amem_core::{Encoding, Error, HostKv, KvChunk, KvData, Result};

use super::format::{self, FIXED, Header, Lengths, PAGE};
use super::index::Location;
use super::store::Held;
use crate::crc::{Crc32c, crc32c};
use crate::disk::{DiskFile, space_for};

/// Records of at most so many bytes are read as a whole, and handed out as they are.
pub(crate) const SMALL: u64 = if cfg!(test) { 8 << 10 } else { 128 << 10 };
/// Bytes of a larger record that are checked at once.
const PIECE: usize = 256 << 10;

/// When a large record's payload is compared with its checksums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Before the chunk is handed out.
    Whole,
    /// Each layer when it is read.
    Layers,
}

/// The chunk at `location` of a segment, or what is wrong with it if it is damaged. `buffer` is scratch. With a lender, a large chunk's KV
/// stays in the file.
pub(crate) fn chunk(
    location: &Location,
    file: &Arc<dyn DiskFile>,
    check: Check,
    lender: Option<Weak<Held>>,
    buffer: &mut Vec<u8>,
) -> io::Result<std::result::Result<KvChunk, &'static str>> {
    let entry = &location.entry;
    let first = if entry.bytes <= SMALL { entry.bytes as usize } else { PAGE as usize };
    let mut start = fill(&**file, entry.offset, first, buffer)?;
    let fixed = start.get(..FIXED).unwrap_or(start);
    let lengths = format::parse_lengths(fixed, location.segment, entry.offset).filter(|l| l.record == entry.bytes);
    let Some(lengths) = lengths else { return Ok(Err("no header of a record of its length is there")) };
    if lengths.header > start.len() {
        start = fill(&**file, entry.offset, lengths.header, buffer)?;
    }
    let header = format::parse_header(start, location.segment, entry.offset);
    let Some((header, lengths)) = header else { return Ok(Err("its header does not fit its checksum")) };
    if header.id() != entry.id {
        return Ok(Err("another chunk's header is there"));
    }
    let data: Option<Arc<dyn KvData>> = if entry.bytes <= SMALL {
        let payload = start.get(lengths.payload_start..lengths.payload_start + lengths.payload);
        let sound = payload.filter(|payload| header.fits(payload));
        sound.map(|payload| host(&header, payload.to_vec()))
    } else if let Some(held) = lender.filter(|_| header.has_layers_of(lengths.layer)) {
        let sound = match check {
            Check::Whole => is_whole(&header, &lengths, location, &**file, buffer)?,
            Check::Layers => entry.offset + (lengths.payload_start + lengths.payload) as u64 <= file.len()?,
        };
        let lent = || SegmentKv::new(&header, &lengths, location, file.clone(), held);
        sound.then(|| Arc::new(lent()) as Arc<dyn KvData>)
    } else {
        let mut payload = vec![0; lengths.payload];
        let filled = file.read_at(&mut payload, entry.offset + lengths.payload_start as u64)?;
        (filled == payload.len() && header.fits(&payload)).then(|| host(&header, payload))
    };
    let Some(data) = data else { return Ok(Err("its KV is cut short or does not fit its checksums")) };
    Ok(header.into_chunk(data).map_err(|_| "its header describes no chunk"))
}

/// Reads the first `len` bytes from `offset` on, or as many as there are, into the buffer.
fn fill<'b>(file: &dyn DiskFile, offset: u64, len: usize, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    let space = space_for(buffer, len, offset);
    let filled = file.read_at(space, offset)?;
    Ok(&space[..filled])
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
        let (mut left, mut checksum) = (lengths.layer, Crc32c::new());
        while left > 0 {
            let piece = left.min(PIECE);
            let bytes = fill(file, at, piece, buffer)?;
            if bytes.len() < piece {
                return Ok(false);
            }
            checksum.update(bytes);
            (at, left) = (at + piece as u64, left - piece);
        }
        if !header.trusts(checksum.finish(), *expected) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// KV that stays in its segment. The file is kept open, so it can be read after it was removed.
struct SegmentKv {
    file: Arc<dyn DiskFile>,
    /// Of its record.
    location: Location,
    /// Where the record is lost if it is not what was written.
    held: Weak<Held>,
    encoding: Encoding,
    /// Of the payload in the file.
    offset: u64,
    layer_bytes: usize,
    checksums: Box<[u32]>,
}

impl SegmentKv {
    fn new(header: &Header, lengths: &Lengths, location: &Location, file: Arc<dyn DiskFile>, held: Weak<Held>) -> Self {
        Self {
            file,
            location: *location,
            held,
            encoding: header.encoding(),
            offset: location.entry.offset + lengths.payload_start as u64,
            layer_bytes: lengths.layer,
            checksums: header.checksums().into(),
        }
    }

    fn damaged(&self, reason: String) -> Error {
        Error::DamagedKv { chunk: self.location.entry.id, reason }
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
        let mut bytes = Vec::new();
        Ok(Cow::Owned(self.layer_in(layer, &mut bytes)?.to_vec()))
    }

    fn layer_in<'a>(&'a self, layer: usize, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let Some(checksum) = self.checksums.get(layer) else {
            let reason = format!("layer {layer} of a chunk with {} layers", self.checksums.len());
            return Err(Error::WrongKv { reason });
        };
        let at = self.offset + (layer * self.layer_bytes) as u64;
        match fill(&*self.file, at, self.layer_bytes, buffer) {
            Ok(bytes) if bytes.len() == self.layer_bytes && crc32c(bytes) == *checksum => Ok(bytes),
            Ok(_) => {
                if let Some(held) = self.held.upgrade() {
                    held.lose(&self.location, "a layer is not what was written");
                }
                Err(self.damaged(format!("layer {layer} in its file is not what was written")))
            }
            // A disk that cannot read it now may do so later: it is not lost.
            Err(error) => Err(self.damaged(error.to_string())),
        }
    }
}
