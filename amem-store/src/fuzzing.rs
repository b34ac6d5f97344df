//! Entry points for fuzzing: parsers of bytes that nobody vouches for.

use amem_core::{ChunkId, KvChunk};

use crate::remote::format;
use crate::residency_file;
use crate::segment::{SegmentName, index_entries, scan};

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
    scan::segment(bytes, name, || None).map_or(0, |scan| scan.entries.len())
}

/// Reads `bytes` as the index file of a segment, as opening a store would, and says how many records it lists. What it has
/// to agree with is taken from where it stands in the file.
pub fn index(bytes: &[u8]) -> usize {
    let page = bytes.len().saturating_sub(4096);
    let number = |at: usize| {
        let field = bytes.get(page + at..).and_then(|rest| rest.first_chunk::<8>());
        field.copied().map_or(0, u64::from_le_bytes)
    };
    index_entries(bytes, SegmentName { generation: number(8), salt: number(16) }, number(40))
}

/// Reads bytes as what a remote server holds of a chunk: its head, and its parts one behind the other. Says how many bytes
/// of KV came out of it.
///
/// Must neither panic nor allocate more than a small multiple of what it was given. The chunk's id is taken from where a
/// head has it, and the head's checksum and digest are put right first, so that a fuzzer can get past these checks.
pub fn remote(head: &[u8], parts: &[u8]) -> Option<usize> {
    let mut head = head.to_vec();
    if head.len() >= format::FIXED {
        format::seal(&mut head, None);
    }
    let id = ChunkId(*head.get(32..)?.first_chunk()?);
    let (head, inline) = format::parse_head(&head, &id, None)?;
    let (mut record, mut rest) = (inline.to_vec(), parts);
    for (index, len) in head.part_lengths().enumerate() {
        let (part, behind) = rest.split_at_checked(len).filter(|(part, _)| head.fits(index, part))?;
        record.extend(part);
        rest = behind;
    }
    Some(head.decode(record)?.size())
}

/// What a remote server holds of `chunk` in parts of so many bytes: its head, and its parts one behind the other.
///
/// # Errors
/// [`Error::Chunk`](crate::Error::Chunk) when its KV cannot be read.
pub fn remote_objects(chunk: &KvChunk, part: usize) -> crate::Result<(Vec<u8>, Vec<u8>)> {
    format::encode(chunk, part, None).map(|objects| (objects.head, objects.record))
}

/// Reads `bytes` as the file of what residency policies have learned, without its checksum, and gives each tier's part.
pub fn residency(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    residency_file::decode(&[bytes, blake3::hash(bytes).as_bytes()].concat())
}

/// The file of what the policies of these tiers have learned, without its checksum.
pub fn residency_file(tiers: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut file = residency_file::encode(tiers)?;
    file.truncate(file.len() - 32);
    Some(file)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use amem_core::{Dtype, Encoding, HostKv, KvShape, PrefixId};

    use super::*;

    #[test]
    fn what_was_written_is_read_in_one_piece_and_in_parts() {
        let (shape, encoding) = (KvShape { layers: 2, kv_heads: 1, head_dim: 4 }, Encoding::Plain(Dtype::F32));
        let data = HostKv::new(encoding, 2, vec![1; encoding.bytes(&shape, 3)]);
        let chunk = KvChunk::new(ChunkId([1; 32]), PrefixId([2; 32]), shape, [1, 2, 3].into(), Arc::new(data)).unwrap();
        for (part, in_parts) in [(1 << 20, false), (100, true)] {
            let (mut head, parts) = remote_objects(&chunk, part).unwrap();
            assert_eq!((remote(&head, &parts), parts.is_empty()), (Some(chunk.size()), !in_parts));
            // Checksum and digest are put right, and what they cover is not.
            head[80] ^= 1;
            assert_eq!(remote(&head, &parts), Some(chunk.size()));
            head[12] ^= 2;
            assert_eq!(remote(&head, &parts), None);
        }
    }

    #[test]
    fn what_policies_have_learned_is_read_without_its_checksum() {
        let tiers = [vec![1, 2, 3], vec![]];
        let file = residency_file(&tiers).unwrap();
        assert_eq!(residency(&file), Some(tiers.to_vec()));
        assert_eq!(residency(&file[1..]), None);
    }
}
