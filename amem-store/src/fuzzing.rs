//! Entry points for fuzzing: parsers of bytes that nobody vouches for.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use amem_core::{ChunkId, KvChunk};

use crate::crc;
use crate::disk::{Disk, DiskFile, Part, ReadAt};
use crate::remote::format;
use crate::residency_file;
use crate::segment::{SegmentName, SegmentOptions, index_entries, store::Inner};

/// The checksum of everything in segments.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc::crc32c(bytes)
}

/// What a store finds in a directory.
pub struct Found {
    /// Each chunk that it knows of, and what it gives when that is asked for: nothing where it turns out to be damaged.
    /// Large ones read their layers from the files when these are asked for.
    pub chunks: Vec<(ChunkId, Option<KvChunk>)>,
    /// The most bytes that it read at once.
    pub largest_read: usize,
    /// What the chunks are read from.
    _store: Inner,
}

/// Opens a directory that has these files, by name, as a store that only reads would, and asks it for all that it knows of.
///
/// # Errors
/// [`Error::NewerFormat`](crate::Error::NewerFormat), as no file fails to be read.
pub fn segments(files: BTreeMap<String, Vec<u8>>) -> crate::Result<Found> {
    let files = files.into_iter().map(|(name, bytes)| (OsString::from(name), Arc::from(bytes))).collect();
    let disk = Arc::new(MemoryDisk { files, largest_read: Arc::default() });
    let store = Inner::open(disk.clone(), Path::new(""), SegmentOptions::default().read_only(true))?;
    let ids: Vec<ChunkId> = store.index().chunks.keys().copied().collect();
    let found = store.get_many(&ids)?;
    let largest_read = disk.largest_read.load(Relaxed);
    Ok(Found { chunks: ids.into_iter().zip(found).collect(), largest_read, _store: store })
}

/// Files in memory that cannot be changed.
struct MemoryDisk {
    files: BTreeMap<OsString, Arc<[u8]>>,
    largest_read: Arc<AtomicUsize>,
}

struct MemoryFile {
    bytes: Arc<[u8]>,
    largest_read: Arc<AtomicUsize>,
}

fn read_only<T>() -> io::Result<T> {
    Err(ErrorKind::ReadOnlyFilesystem.into())
}

impl MemoryDisk {
    fn file(&self, path: &Path) -> Option<&Arc<[u8]>> {
        self.files.get(path.file_name()?)
    }
}

impl Disk for MemoryDisk {
    fn make_dir(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn list(&self, _: &Path) -> io::Result<Vec<OsString>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.file(path).is_some())
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn Send + Sync>> {
        read_only()
    }

    fn create(&self, _: &Path) -> io::Result<Box<dyn DiskFile>> {
        read_only()
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let bytes = self.file(path).ok_or(ErrorKind::NotFound)?.clone();
        Ok(Box::new(MemoryFile { bytes, largest_read: self.largest_read.clone() }))
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn random(&self) -> u64 {
        0
    }

    fn in_background(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }

    fn read_ahead(&self, _: Vec<Part>) {}
}

impl ReadAt for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.largest_read.fetch_max(buffer.len(), Relaxed);
        self.bytes[..].read_at(buffer, offset)
    }
}

impl DiskFile for MemoryFile {
    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        read_only()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        read_only()
    }

    fn sync(&self) -> io::Result<()> {
        read_only()
    }

    fn read_ahead(&self, _: u64, _: u64, _: &dyn Fn() -> bool, _: &mut Vec<u8>) {}
}

/// Reads `bytes` as the index file of a segment of these numbers whose file has `len` bytes, as opening a store would, and
/// says how many records it lists; none if it is not believed.
pub fn index(bytes: &[u8], generation: u64, salt: u64, len: u64) -> usize {
    index_entries(bytes, SegmentName { generation, salt }, len)
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
