//! Entry points for fuzzing: parsers of bytes that nobody vouches for.

use amem_core::ChunkId;

use crate::remote::format;
use crate::segment::{SegmentName, scan};

/// Reads `bytes` as a segment file, as opening a store would, and says how many records it found.
///
/// Must neither panic nor allocate more than a small multiple of what it was given. The file's name, which records have
/// to agree with, is taken from where a segment's first page has it, so that a fuzzer can get past that check.
pub fn segment(bytes: &[u8]) -> usize {
    let number = |at: usize| {
        let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
        field.copied().map_or(0, u64::from_le_bytes)
    };
    let name = SegmentName { generation: number(16), salt: number(24) };
    scan::segment(bytes, name).map_or(0, |scan| scan.entries.len())
}

/// Reads `bytes` as the head of a chunk on a remote server, and what follows it there as its parts, and says how many bytes
/// of KV came out of it.
///
/// Must neither panic nor allocate more than a small multiple of what it was given. The chunk's id is taken from where a
/// head has it, and `secret` is the key that heads are authenticated with, if there is one.
pub fn remote_head(bytes: &[u8], secret: Option<[u8; 32]>) -> Option<usize> {
    let id = ChunkId(*bytes.get(32..)?.first_chunk()?);
    let secret = secret.map(format::Secret);
    let (head, inline) = format::parse_head(bytes, &id, secret)?;
    // Parts are only taken in as far as the server has them.
    let mut record = inline.to_vec();
    for (index, len) in head.part_lengths().enumerate() {
        let part = bytes.get(..len).filter(|part| head.fits(index, part))?;
        record.extend(part);
    }
    Some(head.decode(record)?.size())
}
