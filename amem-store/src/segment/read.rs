//! From a location in a segment to a chunk that was checked.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use amem_core::{HostKv, KvChunk, KvData};

use super::format::{self, Header};
use super::index::Location;
use crate::disk::Disk;
use crate::map::{Map, MappedRange};

/// The chunk at `location` of the segment that `map` maps and that lies at `path`; `None` if it is damaged. The KV is not
/// copied: it stays in the mapping, which the chunk keeps alive.
pub(crate) fn chunk(location: &Location, map: &Arc<Map>, disk: &dyn Disk, path: &Path) -> Option<KvChunk> {
    let start = usize::try_from(location.entry.offset).ok()?;
    let range = start..usize::try_from(location.entry.end()).ok()?;
    let record = map.bytes().get(range.clone())?;
    let (header, data): (Header, Arc<dyn KvData>) = match map.populate(&range) {
        Ok(()) => {
            let (header, payload) = checked(record, location)?;
            let range = start + payload.start..start + payload.end;
            let data = MappedRange::new(map.clone(), range, header.encoding(), header.layers())?;
            (header, Arc::new(data))
        }
        // Where pages cannot be brought in safely, the record is read instead: a copy, but never a signal.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let mut record = vec![0; record.len()];
            let filled = disk.open(path).and_then(|file| file.read_at(&mut record, location.entry.offset)).ok()?;
            record.truncate(filled);
            let (header, payload) = checked(&record, location)?;
            let data = HostKv::new(header.encoding(), header.layers(), record.get(payload)?.to_vec());
            (header, Arc::new(data))
        }
        Err(_) => return None,
    };
    header.into_chunk(data).ok()
}

/// Has the system read a record ahead, without waiting for it.
pub(crate) fn prefetch(location: &Location, map: &Map) {
    if let (Ok(start), Ok(end)) = (usize::try_from(location.entry.offset), usize::try_from(location.entry.end())) {
        map.prefetch(&(start..end));
    }
}

/// The header of a record and where its payload is, if both are what was written.
fn checked(record: &[u8], location: &Location) -> Option<(Header, Range<usize>)> {
    let (header, lengths) = format::parse_header(record, location.segment, location.entry.offset)?;
    let payload = lengths.payload_start..lengths.payload_start.checked_add(lengths.payload)?;
    let sound = header.id() == location.entry.id && header.fits(record.get(payload.clone())?);
    sound.then_some((header, payload))
}
