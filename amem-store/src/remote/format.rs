//! The bytes of a chunk's objects on a remote server, as `FORMAT.md` lays them down: pure functions, no network.
//!
//! Everything parsed here is untrusted. No length is believed before it was checked, and nothing is allocated for one
//! that was not.

use std::fmt;
use std::sync::Arc;

use amem_core::{ChunkId, HostKv, KvChunk};

use crate::crc::crc32c;
use crate::segment::SegmentName;
use crate::segment::format::{self as record, Lengths};
use crate::{Error, Result};

/// Bytes of a head before its body.
pub(crate) const FIXED: usize = 104;
/// Most bytes of a record that stand in the head itself.
pub(crate) const INLINE: usize = 8 << 20;
/// Most bytes of a head.
pub(crate) const HEAD: usize = FIXED + INLINE;
/// Most parts of a chunk. Their names are fixed by it, so that a deletion knows them all without reading anything.
pub(crate) const PARTS: usize = 64;
/// Most bytes of a part.
pub(crate) const PART: usize = 64 << 20;

const MAGIC: &[u8; 8] = b"amemobj1";
/// Flag: there is a sensitivity.
const MEASURED: u32 = 1;
const DIGEST: usize = 32;
/// Where the checksummed fields begin and end; the digest follows.
const FIELDS: std::ops::Range<usize> = 12..72;
/// Records of a remote chunk belong to no segment.
const NAME: SegmentName = SegmentName { generation: 0, salt: 0 };

/// A key under which heads are authenticated, so that who can write to the server but does not have it cannot forge one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What a head says about its chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    id: ChunkId,
    tokens: u32,
    measured: bool,
    /// Bytes of the record.
    record: usize,
    /// Bytes of each part but the last; 0 where the record stands in the head.
    part: usize,
    /// Of each part, the BLAKE3 hash.
    digests: Vec<[u8; DIGEST]>,
}

impl Head {
    /// The chunk's tokens.
    pub(crate) fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Whether there is a sensitivity.
    pub(crate) fn is_measured(&self) -> bool {
        self.measured
    }

    /// Bytes of all parts together.
    pub(crate) fn in_parts(&self) -> usize {
        if self.digests.is_empty() { 0 } else { self.record }
    }

    /// Bytes of each part.
    pub(crate) fn part_lengths(&self) -> impl Iterator<Item = usize> + use<> {
        let (record, part) = (self.record, self.part);
        (0..self.digests.len()).map(move |index| part.min(record - index * part))
    }

    /// Bytes of all of the chunk's objects.
    pub(crate) fn bytes(&self) -> u64 {
        let parts = self.record.checked_div(self.part).map_or(0, |_| self.record.div_ceil(self.part));
        (FIXED + self.record + DIGEST * parts) as u64
    }

    /// Whether these are the bytes of the part with this number.
    pub(crate) fn fits(&self, index: usize, part: &[u8]) -> bool {
        self.digests.get(index).is_some_and(|digest| blake3::hash(part) == *digest)
    }

    /// The chunk, out of all of its record's bytes.
    pub(crate) fn decode(&self, mut bytes: Vec<u8>) -> Option<KvChunk> {
        let (header, lengths) = record::parse_header(&bytes, NAME, 0)?;
        let whole = lengths.header.checked_add(lengths.payload)? == bytes.len();
        let sound = whole
            && header.id() == self.id
            && header.tokens() == self.tokens
            && header.is_measured() == self.measured
            && header.fits(bytes.get(lengths.header..)?);
        if !sound {
            return None;
        }
        bytes.drain(..lengths.header);
        let data = HostKv::new(header.encoding(), header.layers(), bytes);
        header.into_chunk(Arc::new(data)).ok()
    }
}

/// A chunk as it is written: the head, and what is left of its record, to be cut into parts.
pub(crate) struct Objects {
    pub(crate) head: Vec<u8>,
    /// Empty where the record stands in the head.
    pub(crate) record: Vec<u8>,
    /// Bytes of each part but the last.
    pub(crate) part: usize,
    /// Of all objects together.
    pub(crate) bytes: u64,
}

/// Bytes of a chunk's record; `None` for one that is too large to be kept.
pub(crate) fn record_bytes(chunk: &KvChunk) -> Option<usize> {
    let lengths = Lengths::of_chunk(chunk)?;
    lengths.header.checked_add(lengths.payload).filter(|bytes| *bytes <= PARTS * PART)
}

/// Writes a chunk down in parts of at least `part` bytes, or in the head alone where it is not longer than that.
///
/// # Errors
/// [`Error::Chunk`] when its KV cannot be read or is too large.
pub(crate) fn encode(chunk: &KvChunk, part: usize, secret: Option<Secret>) -> Result<Objects> {
    let failed = |source| Error::Chunk { chunk: chunk.id(), source };
    let too_large = || amem_core::Error::WrongKv { reason: format!("{} bytes are too many", chunk.size()) };
    let lengths = Lengths::of_chunk(chunk).ok_or_else(too_large).map_err(failed)?;
    let whole = record_bytes(chunk).ok_or_else(too_large).map_err(failed)?;
    let mut record = Vec::with_capacity(whole);
    record.resize(lengths.header, 0);
    let mut checksums = Vec::with_capacity(chunk.shape().layers);
    for layer in 0..chunk.shape().layers {
        let layer = chunk.layer(layer).map_err(failed)?;
        checksums.push(crc32c(layer.bytes()));
        record.extend_from_slice(layer.bytes());
    }
    let header = record::encode_header(chunk, &checksums, &lengths, NAME, 0);
    record.iter_mut().zip(&header[..lengths.header]).for_each(|(byte, header)| *byte = *header);

    let part = part.clamp(1, PART);
    let inline = record.len() <= part.min(INLINE);
    let part = if inline { 0 } else { part.max(record.len().div_ceil(PARTS)) };
    let digests: Vec<[u8; DIGEST]> = match inline {
        true => Vec::new(),
        false => record.chunks(part).map(|part| *blake3::hash(part).as_bytes()).collect(),
    };
    let mut head = Vec::with_capacity(FIXED + DIGEST * digests.len() + if inline { record.len() } else { 0 });
    head.extend(MAGIC);
    head.extend([0; 4]); // checksum: below
    head.extend((digests.len() as u32).to_le_bytes());
    head.extend((record.len() as u64).to_le_bytes());
    head.extend((part as u64).to_le_bytes());
    head.extend(chunk.id().0);
    head.extend((chunk.tokens().len() as u32).to_le_bytes());
    head.extend(if chunk.sensitivity().is_some() { MEASURED } else { 0 }.to_le_bytes());
    head.extend([0; DIGEST]); // digest: below
    match inline {
        true => head.append(&mut record),
        false => digests.iter().for_each(|digest| head.extend(digest)),
    }
    seal(&mut head, secret);
    let bytes = (head.len() + record.len()) as u64;
    Ok(Objects { head, record, part, bytes })
}

/// Puts checksum and digest into a head of [`FIXED`] bytes or more.
pub(crate) fn seal(head: &mut [u8], secret: Option<Secret>) {
    let checksum = crc32c(&head[FIELDS]);
    head[8..12].copy_from_slice(&checksum.to_le_bytes());
    let digest = digest(head, secret);
    head[FIELDS.end..FIXED].copy_from_slice(digest.as_bytes());
}

/// The digest that belongs into a head of these bytes.
fn digest(head: &[u8], secret: Option<Secret>) -> blake3::Hash {
    let mut hasher = secret.map_or_else(blake3::Hasher::new, |secret| blake3::Hasher::new_keyed(&secret.0));
    hasher.update(&head[FIELDS]);
    hasher.update(&head[FIXED..]);
    hasher.finalize()
}

/// What the first [`FIXED`] bytes of a head claim about the chunk of this id, if they are in themselves what was written.
/// Says how many parts there are beside; their digests are not known yet.
fn parse_fixed(bytes: &[u8], id: &ChunkId) -> Option<(Head, usize)> {
    let fixed = bytes.first_chunk::<FIXED>()?;
    let u32_at = |at: usize| Some(u32::from_le_bytes(*fixed.get(at..)?.first_chunk()?));
    let size_at = |at: usize| usize::try_from(u64::from_le_bytes(*fixed.get(at..)?.first_chunk()?)).ok();
    let sound = fixed.starts_with(MAGIC) && u32_at(8)? == crc32c(&fixed[FIELDS]) && fixed[32..64] == id.0;
    let (parts, record, part) = (u32_at(12)? as usize, size_at(16)?, size_at(24)?);
    let (tokens, flags) = (u32_at(64)?, u32_at(68)?);
    let lengths = match parts {
        0 => part == 0 && record <= INLINE,
        _ => (1..=PART).contains(&part) && parts <= PARTS && record.div_ceil(part) == parts,
    };
    let head = Head { id: *id, tokens, measured: flags == MEASURED, record, part, digests: Vec::new() };
    (sound && lengths && flags & !MEASURED == 0 && tokens > 0).then_some((head, parts))
}

/// Whether the first [`FIXED`] bytes of a head claim that the chunk is held, and with a sensitivity. A claim: nothing
/// else of it was checked.
pub(crate) fn claims(bytes: &[u8], id: &ChunkId) -> Option<Head> {
    parse_fixed(bytes, id).map(|(head, _)| head)
}

/// The head of the chunk of this id, and the record if it stands there, as far as both are what was written.
pub(crate) fn parse_head<'b>(bytes: &'b [u8], id: &ChunkId, secret: Option<Secret>) -> Option<(Head, &'b [u8])> {
    let (head, parts) = parse_fixed(bytes, id)?;
    let (fixed, body) = bytes.split_at_checked(FIXED)?;
    let expected = if parts == 0 { head.record } else { DIGEST * parts };
    // Compared as hashes, in constant time.
    if body.len() != expected || digest(bytes, secret) != *fixed.get(FIELDS.end..)?.first_chunk::<DIGEST>()? {
        return None;
    }
    match parts {
        0 => Some((head, body)),
        _ => Some((Head { digests: body.as_chunks::<DIGEST>().0.to_vec(), ..head }, &[])),
    }
}

#[cfg(test)]
mod tests {
    use amem_core::{Dtype, Encoding, Fingerprint, KvShape, PrefixId};
    use proptest::prelude::*;

    use super::*;

    /// What a server holds of a chunk.
    #[derive(Clone)]
    struct Held {
        head: Vec<u8>,
        parts: Vec<Vec<u8>>,
    }

    fn write(chunk: &KvChunk, part: usize, secret: Option<Secret>) -> Held {
        let Objects { head, record, part, bytes } = encode(chunk, part, secret).unwrap();
        let parts: Vec<Vec<u8>> = record.chunks(part.max(1)).map(<[u8]>::to_vec).collect();
        assert_eq!(bytes as usize, head.len() + parts.iter().map(Vec::len).sum::<usize>());
        Held { head, parts }
    }

    fn read(held: &Held, id: &ChunkId, secret: Option<Secret>) -> Option<KvChunk> {
        let (head, inline) = parse_head(&held.head, id, secret)?;
        let mut record = inline.to_vec();
        for (index, len) in head.part_lengths().enumerate() {
            let part = held.parts.get(index).filter(|part| part.len() == len && head.fits(index, part))?;
            record.extend(part);
        }
        head.decode(record)
    }

    prop_compose! {
        fn chunks()(
            (layers, kv_heads, head_dim, tokens) in (1..4usize, 1..3usize, 1..5usize, 1..20usize),
            code in prop::sample::select(vec![0u8, 1, 2, 16]),
            (id, prefix, model) in any::<([u8; 32], [u8; 32], Option<[u8; 32]>)>(),
            measured in any::<bool>(),
            seed in any::<u8>(),
        ) -> KvChunk {
            let (shape, encoding) = (KvShape { layers, kv_heads, head_dim }, Encoding::from_code(code).unwrap());
            let bytes = (0..encoding.bytes(&shape, tokens)).map(|i| seed.wrapping_add(i as u8)).collect();
            let (ids, data) = ((0..tokens as u32).collect(), HostKv::new(encoding, layers, bytes));
            let chunk = KvChunk::new(ChunkId(id), PrefixId(prefix), shape, ids, Arc::new(data)).unwrap();
            let chunk = model.into_iter().fold(chunk, |chunk, model| chunk.with_model(Fingerprint(model)));
            if measured { chunk.with_sensitivity(vec![0.5; tokens].into()).unwrap() } else { chunk }
        }
    }

    proptest! {
        #[test]
        fn a_chunk_comes_back_from_its_objects(
            chunk in chunks(),
            part in 1..600usize,
            secret in any::<Option<[u8; 32]>>(),
        ) {
            let secret = secret.map(Secret);
            let held = write(&chunk, part, secret);
            prop_assert!(held.parts.len() <= PARTS && held.head.len() <= HEAD);
            let (head, _) = parse_head(&held.head, &chunk.id(), secret).unwrap();
            prop_assert_eq!((head.tokens() as usize, head.is_measured()), (chunk.tokens().len(), chunk.sensitivity().is_some()));
            prop_assert_eq!(head.in_parts(), held.parts.iter().map(Vec::len).sum::<usize>());
            prop_assert_eq!(head.bytes() as usize, held.head.len() + head.in_parts());
            let back = read(&held, &chunk.id(), secret).unwrap();
            prop_assert_eq!((back.id(), back.prefix(), back.model()), (chunk.id(), chunk.prefix(), chunk.model()));
            prop_assert_eq!((back.shape(), back.encoding()), (chunk.shape(), chunk.encoding()));
            prop_assert_eq!((back.tokens(), back.sensitivity()), (chunk.tokens(), chunk.sensitivity()));
            prop_assert_eq!(back.to_bytes().unwrap(), chunk.to_bytes().unwrap());
        }

        #[test]
        fn a_change_of_any_byte_is_a_miss(
            chunk in chunks(),
            part in 1..600usize,
            object in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(),
            bits in 1..=255u8,
        ) {
            let mut held = write(&chunk, part, None);
            let object = object.index(held.parts.len() + 1);
            let bytes = if object == 0 { &mut held.head } else { &mut held.parts[object - 1] };
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            prop_assert!(read(&held, &chunk.id(), None).is_none());
        }

        #[test]
        fn an_object_of_another_length_is_a_miss(
            chunk in chunks(),
            part in 1..600usize,
            object in any::<prop::sample::Index>(),
            len in any::<prop::sample::Index>(),
        ) {
            let mut held = write(&chunk, part, None);
            let object = object.index(held.parts.len() + 1);
            let bytes = if object == 0 { &mut held.head } else { &mut held.parts[object - 1] };
            let old = bytes.len();
            let len = len.index(2 * old);
            bytes.resize(if len < old { len } else { len + 1 }, 0);
            prop_assert!(read(&held, &chunk.id(), None).is_none());
        }

        #[test]
        fn whatever_else_a_server_holds_is_a_miss(bytes in prop::collection::vec(any::<u8>(), 0..300), id in any::<[u8; 32]>()) {
            prop_assert!(parse_head(&bytes, &ChunkId(id), None).is_none());
        }
    }

    fn chunk(id: u8, tokens: usize) -> KvChunk {
        let (shape, encoding) = (KvShape { layers: 2, kv_heads: 1, head_dim: 4 }, Encoding::Plain(Dtype::F32));
        let data = HostKv::new(encoding, 2, vec![id; encoding.bytes(&shape, tokens)]);
        let tokens = (0..tokens as u32).collect();
        KvChunk::new(ChunkId([id; 32]), PrefixId([0; 32]), shape, tokens, Arc::new(data)).unwrap()
    }

    #[test]
    fn what_belongs_to_another_chunk_is_a_miss() {
        let held = write(&chunk(1, 40), 500, None);
        assert!(held.parts.len() > 1 && read(&held, &ChunkId([1; 32]), None).is_some());
        assert!(read(&held, &ChunkId([2; 32]), None).is_none());
    }

    #[test]
    fn a_head_is_only_believed_with_the_secret_that_it_was_written_with() {
        let (chunk, secret) = (chunk(1, 40), Some(Secret([7; 32])));
        for part in [500, 1 << 20] {
            let (open, sealed) = (write(&chunk, part, None), write(&chunk, part, secret));
            assert!(read(&sealed, &chunk.id(), secret).is_some() && read(&open, &chunk.id(), None).is_some());
            assert!(read(&sealed, &chunk.id(), Some(Secret([8; 32]))).is_none());
            assert!(read(&sealed, &chunk.id(), None).is_none() && read(&open, &chunk.id(), secret).is_none());
        }
        assert_eq!(format!("{:?}", Secret([7; 32])), "Secret(..)");
    }

    #[test]
    fn lengths_that_no_writer_writes_are_refused() {
        let chunk = chunk(1, 40);
        let held = write(&chunk, 500, None);
        assert!(claims(&held.head, &chunk.id()).is_some());
        // Sound checksums over a claim of this many parts, bytes in all and bytes in each.
        for (parts, record, part) in [
            (0, u64::MAX, 0),
            (0, INLINE as u64 + 1, 0),
            (0, 10, 10),
            (1, 10, 0),
            (1, u64::MAX, u64::MAX),
            (65, 65, 1),
            (u32::MAX, u64::from(u32::MAX), 1),
            (2, 1 << 30, 1 << 29),
            (3, 10, 5),
        ] {
            let mut head = held.head.clone();
            head[12..16].copy_from_slice(&parts.to_le_bytes());
            head[16..24].copy_from_slice(&record.to_le_bytes());
            head[24..32].copy_from_slice(&part.to_le_bytes());
            seal(&mut head, None);
            assert!(claims(&head, &chunk.id()).is_none(), "{parts} parts, {record} bytes, {part} in each");
            assert!(parse_head(&head, &chunk.id(), None).is_none());
        }
    }

    #[test]
    fn the_objects_are_laid_out_as_the_format_says() {
        let chunk = chunk(9, 40);
        let held = write(&chunk, 500, None);
        let record = held.parts.concat();
        let number =
            |at: usize, len: usize| held.head[at..at + len].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        assert_eq!(&held.head[..8], b"amemobj1");
        assert_eq!(number(8, 4), u64::from(crc32c(&held.head[12..72])));
        assert_eq!((number(12, 4), number(16, 8), number(24, 8)), (held.parts.len() as u64, record.len() as u64, 500));
        assert_eq!((&held.head[32..64], number(64, 4), number(68, 4)), (&[9; 32][..], 40, 0));
        let mut digested = held.head[12..72].to_vec();
        digested.extend(&held.head[104..]);
        assert_eq!(held.head[72..104], *blake3::hash(&digested).as_bytes());
        for (index, part) in held.parts.iter().enumerate() {
            assert_eq!(held.head[104 + 32 * index..][..32], *blake3::hash(part).as_bytes());
        }
        // 160 fixed bytes, 40 tokens and 2 checksums of 4 bytes each; then two layers of 40 × 2 × 4 numbers.
        assert_eq!((record.len(), &record[..8]), (160 + 4 * 40 + 4 * 2 + 2 * 40 * 2 * 4 * 4, &b"amemchk2"[..]));
        let inline = write(&chunk, 1 << 20, None);
        assert_eq!((inline.head[104..] == record, inline.parts.len()), (true, 0));
    }
}
