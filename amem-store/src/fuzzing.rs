//! Entry points for fuzzing: parsers of bytes that nobody vouches for.

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
