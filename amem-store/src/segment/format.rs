//! The bytes of a segment file, as `FORMAT.md` lays them down: pure functions, no files.
//!
//! Everything parsed here is untrusted. No length is believed before it was checked against the file's, and nothing is
//! allocated for one that was not.

use std::sync::Arc;

use amem_core::{ChunkId, Encoding, Fingerprint, KvChunk, KvShape, PrefixId, Token};

use crate::crc::crc32c;
#[cfg(test)]
use crate::planted::{self, Planted};

/// Segments and records start at multiples of this.
pub(crate) const PAGE: u64 = 4096;
/// The version of the format that is written, and the last that is read.
pub(crate) const VERSION: u32 = 3;
/// In version 1, each run of this many payload bytes had a checksum of its own.
const BLOCK: usize = 1 << 20;

const SEGMENT_MAGIC: &[u8; 8] = b"amem-kv\n";
const RECORD_MAGIC_1: &[u8; 8] = b"amemchnk";
const RECORD_MAGIC: &[u8; 8] = b"amemchk2";
const SEAL_MAGIC: &[u8; 8] = b"amemseal";
const INDEX_MAGIC: &[u8; 8] = b"amemindx";
/// Bytes of a record's header before its tokens.
pub(crate) const FIXED: usize = 160;
const FIXED_1: usize = 128;
/// Bytes of a seal's table per record.
const SEAL_ENTRY: usize = 56;
const SEAL_FIXED: usize = 56;
const INDEX_FIXED: usize = 60;
/// Flag: there is a sensitivity.
const MEASURED: u8 = 1;
/// Flag: the model is known.
const MODEL: u8 = 2;

/// The name of a segment: when it was begun among the store's segments, and a random number that no earlier segment
/// had, so that stale bytes of a deleted file never pass for records of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    pub(crate) generation: u64,
    pub(crate) salt: u64,
}

impl SegmentName {
    /// `seg-<generation>-<salt>.kv`, both as 16 hexadecimal digits.
    pub(crate) fn file_name(&self) -> String {
        format!("seg-{:016x}-{:016x}.kv", self.generation, self.salt)
    }

    /// The name of the file that lists the records of a segment without a seal: `seg-<generation>-<salt>.idx`.
    pub(crate) fn index_name(&self) -> String {
        format!("seg-{:016x}-{:016x}.idx", self.generation, self.salt)
    }

    /// The segment whose file has this name.
    pub(crate) fn parse(file_name: &str) -> Option<Self> {
        Self::of(file_name.strip_suffix(".kv")?).filter(|name| name.file_name() == file_name)
    }

    /// The segment whose index file has this name.
    pub(crate) fn parse_index(file_name: &str) -> Option<Self> {
        Self::of(file_name.strip_suffix(".idx")?).filter(|name| name.index_name() == file_name)
    }

    fn of(stem: &str) -> Option<Self> {
        let (generation, salt) = stem.strip_prefix("seg-")?.split_once('-')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some(Self { generation: number(generation)?, salt: number(salt)? })
    }
}

/// Where a chunk lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ChunkId,
    /// Of the record's header in the file; a multiple of [`PAGE`].
    pub(crate) offset: u64,
    /// Of header and payload, both padded to whole pages.
    pub(crate) bytes: u64,
    /// The chunk's tokens; 0 where a table of version 1 does not say.
    pub(crate) tokens: u32,
    /// Whether the record holds a sensitivity.
    pub(crate) measured: bool,
}

impl Entry {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

/// What a file's first page says about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FirstPage {
    /// A segment that was begun by this version.
    Version(u32),
    /// Nothing that can be trusted.
    Damaged,
}

/// The first page of a segment.
pub(crate) fn encode_first_page(name: SegmentName) -> Vec<u8> {
    let mut page = SEGMENT_MAGIC.to_vec();
    page.extend(VERSION.to_le_bytes());
    page.extend(0_u32.to_le_bytes());
    page.extend(name.generation.to_le_bytes());
    page.extend(name.salt.to_le_bytes());
    page.extend(crc32c(&page).to_le_bytes());
    page.resize(PAGE as usize, 0);
    page
}

/// Reads a segment's first page.
pub(crate) fn parse_first_page(page: &[u8]) -> FirstPage {
    let mut fields = Fields(page);
    let version = (|| {
        fields.expect(SEGMENT_MAGIC)?;
        let version = fields.u32()?;
        fields.take(20)?;
        (fields.u32()? == crc32c(page.get(..32)?)).then_some(version)
    })();
    version.map_or(FirstPage::Damaged, FirstPage::Version)
}

/// The header of a record: all there is to know of a chunk but its KV.
#[derive(Debug)]
pub(crate) struct Header {
    id: ChunkId,
    prefix: PrefixId,
    model: Option<Fingerprint>,
    shape: KvShape,
    encoding: Encoding,
    tokens: Arc<[Token]>,
    sensitivity: Option<Arc<[f32]>>,
    /// Bytes of the payload that each checksum is of; the last may be of fewer.
    part: usize,
    checksums: Vec<u32>,
}

impl Header {
    /// The name of the chunk.
    pub(crate) fn id(&self) -> ChunkId {
        self.id
    }

    /// How the payload is to be read.
    pub(crate) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Layers in the payload.
    pub(crate) fn layers(&self) -> usize {
        self.shape.layers
    }

    /// The chunk's tokens.
    pub(crate) fn tokens(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Whether there is a sensitivity.
    pub(crate) fn is_measured(&self) -> bool {
        self.sensitivity.is_some()
    }

    /// Those of the parts of the payload.
    pub(crate) fn checksums(&self) -> &[u32] {
        &self.checksums
    }

    /// Whether each layer, which has so many bytes, has a checksum of its own.
    pub(crate) fn has_layers_of(&self, bytes: usize) -> bool {
        self.part == bytes && self.checksums.len() == self.shape.layers
    }

    /// Whether a part of the payload that has this checksum is what was written.
    pub(crate) fn trusts(&self, checksum: u32, expected: u32) -> bool {
        #[cfg(test)]
        if planted::is(Planted::NoPayloadChecksum) {
            return true;
        }
        checksum == expected
    }

    /// Whether `payload` is what was written.
    pub(crate) fn fits(&self, payload: &[u8]) -> bool {
        let checksums = payload.chunks(self.part.max(1)).map(crc32c);
        checksums.len() == self.checksums.len()
            && checksums.zip(&self.checksums).all(|(found, expected)| self.trusts(found, *expected))
    }

    /// The chunk with `data` as its KV.
    pub(crate) fn into_chunk(self, data: Arc<dyn amem_core::KvData>) -> amem_core::Result<KvChunk> {
        let chunk = KvChunk::new(self.id, self.prefix, self.shape, self.tokens, data)?;
        let chunk = self.model.into_iter().fold(chunk, KvChunk::with_model);
        match self.sensitivity {
            Some(sensitivity) => chunk.with_sensitivity(sensitivity),
            None => Ok(chunk),
        }
    }
}

/// Which version's rules a record follows. A segment begun by one version holds no records of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    V1,
    V2,
}

impl Rules {
    fn fixed(self) -> usize {
        if self == Rules::V1 { FIXED_1 } else { FIXED }
    }

    /// Bytes of the payload that each checksum is of.
    fn part(self, layer: usize) -> usize {
        if self == Rules::V1 { BLOCK } else { layer }
    }
}

/// How long the parts of a record are, by its fixed fields alone. All sums were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// Of the header without its padding.
    pub(crate) header: usize,
    /// From the record's start to its payload: the header, padded.
    pub(crate) payload_start: usize,
    /// Of the payload without its padding.
    pub(crate) payload: usize,
    /// Of one layer of it.
    pub(crate) layer: usize,
    /// Of the whole record, padded.
    pub(crate) record: u64,
}

impl Lengths {
    fn of(rules: Rules, shape: &KvShape, encoding: Encoding, tokens: usize, measured: bool) -> Option<Self> {
        let layer = encoding.checked_layer_bytes(shape, tokens)?;
        let payload = layer.checked_mul(shape.layers)?;
        let per_token = if measured { 8 } else { 4 };
        let checksums = payload.div_ceil(rules.part(layer).max(1)).checked_mul(4)?;
        let header = tokens.checked_mul(per_token)?.checked_add(rules.fixed())?.checked_add(checksums)?;
        let payload_start = header.checked_next_multiple_of(PAGE as usize)?;
        let record = payload_start.checked_add(payload.checked_next_multiple_of(PAGE as usize)?)?;
        Some(Self { header, payload_start, payload, layer, record: record as u64 })
    }

    /// The lengths of a record of `chunk`; `None` for one that no file could hold.
    pub(crate) fn of_chunk(chunk: &KvChunk) -> Option<Self> {
        let (shape, tokens) = (chunk.shape(), chunk.tokens().len());
        let fits = [shape.layers, shape.kv_heads, shape.head_dim, tokens].iter().all(|n| u32::try_from(*n).is_ok());
        fits.then(|| Self::of(Rules::V2, shape, chunk.encoding(), tokens, chunk.sensitivity().is_some()))?
            .filter(|l| u32::try_from(l.header).is_ok())
    }
}

/// The header of a record that holds `chunk`, whose layers have these checksums, at `offset` of the segment `name`, padded
/// to whole pages.
pub(crate) fn encode_header(
    chunk: &KvChunk,
    checksums: &[u32],
    lengths: &Lengths,
    name: SegmentName,
    offset: u64,
) -> Vec<u8> {
    let shape = chunk.shape();
    let mut bytes = Vec::with_capacity(lengths.payload_start);
    bytes.extend(RECORD_MAGIC);
    bytes.extend([0; 8]); // checksum and header length: below
    bytes.extend(name.generation.to_le_bytes());
    bytes.extend(name.salt.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    for n in [shape.layers, shape.kv_heads, shape.head_dim, chunk.tokens().len()] {
        bytes.extend((n as u32).to_le_bytes());
    }
    let measured = if chunk.sensitivity().is_some() { MEASURED } else { 0 };
    let known = if chunk.model().is_some() { MODEL } else { 0 };
    bytes.extend([chunk.encoding().code(), measured | known, 0, 0, 0, 0, 0, 0]);
    bytes.extend(chunk.id().0);
    bytes.extend(chunk.prefix().0);
    bytes.extend(chunk.model().map_or([0; 32], |model| model.0));
    chunk.tokens().iter().for_each(|token| bytes.extend(token.to_le_bytes()));
    chunk.sensitivity().into_iter().flat_map(|s| s.iter()).for_each(|s| bytes.extend(s.to_le_bytes()));
    checksums.iter().for_each(|checksum| bytes.extend(checksum.to_le_bytes()));
    bytes[12..16].copy_from_slice(&(lengths.header as u32).to_le_bytes());
    let checksum = crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    bytes.resize(lengths.payload_start, 0);
    bytes
}

/// Whether a page begins as a record does.
pub(crate) fn begins_record(page: &[u8]) -> bool {
    page.starts_with(RECORD_MAGIC) || page.starts_with(RECORD_MAGIC_1)
}

/// Whether a page begins as the last one of a sealed segment does.
pub(crate) fn begins_seal(page: &[u8]) -> bool {
    page.starts_with(SEAL_MAGIC)
}

/// The lengths that a record's first [`FIXED`] bytes claim, if they can be those of a record at `offset` of `name`.
pub(crate) fn parse_lengths(fixed: &[u8], name: SegmentName, offset: u64) -> Option<Lengths> {
    parse_fixed(fixed, name, offset).map(|fixed| fixed.lengths)
}

/// The tokens of the record whose first [`FIXED`] bytes these are, if they can be those of one at `offset` of `name`.
pub(crate) fn parse_tokens(fixed: &[u8], name: SegmentName, offset: u64) -> Option<u32> {
    parse_fixed(fixed, name, offset).and_then(|fixed| u32::try_from(fixed.tokens).ok())
}

struct FixedPart {
    rules: Rules,
    checksum: u32,
    lengths: Lengths,
    shape: KvShape,
    encoding: Encoding,
    tokens: usize,
    measured: bool,
    id: ChunkId,
    prefix: PrefixId,
    model: Option<Fingerprint>,
}

/// Whether a record that says it was written to a place of a segment may stand at `offset` of `name`.
fn belongs(segment: SegmentName, place: u64, name: SegmentName, offset: u64) -> bool {
    #[cfg(test)]
    if planted::is(Planted::AnyPlace) {
        return true;
    } else if planted::is(Planted::AnyGeneration) {
        return (segment.salt, place) == (name.salt, offset);
    } else if planted::is(Planted::AnyOffset) {
        return segment == name;
    }
    (segment, place) == (name, offset)
}

fn parse_fixed(bytes: &[u8], name: SegmentName, offset: u64) -> Option<FixedPart> {
    let mut fields = Fields(bytes);
    let rules = match &fields.array::<8>()? {
        RECORD_MAGIC_1 => Rules::V1,
        RECORD_MAGIC => Rules::V2,
        _ => return None,
    };
    let checksum = fields.u32()?;
    let header = fields.u32()?;
    let written_as = SegmentName { generation: fields.u64()?, salt: fields.u64()? };
    if !belongs(written_as, fields.u64()?, name, offset) {
        return None;
    }
    let [layers, kv_heads, head_dim, tokens] = [fields.size()?, fields.size()?, fields.size()?, fields.size()?];
    let (encoding, flags) = (Encoding::from_code(fields.u8()?)?, fields.u8()?);
    fields.expect(&[0; 6])?;
    let (id, prefix) = (ChunkId(fields.array()?), PrefixId(fields.array()?));
    let known_flags = if rules == Rules::V1 { MEASURED } else { MEASURED | MODEL };
    if flags & !known_flags != 0 {
        return None;
    }
    let measured = flags & MEASURED != 0;
    let model = match rules {
        Rules::V1 => None,
        Rules::V2 => Some(Fingerprint(fields.array()?)).filter(|_| flags & MODEL != 0),
    };
    let shape = KvShape { layers, kv_heads, head_dim };
    let lengths = Lengths::of(rules, &shape, encoding, tokens, measured)?;
    let is_empty = [layers, kv_heads, head_dim, tokens].contains(&0);
    let sound = lengths.header as u64 == u64::from(header) && !is_empty;
    sound.then_some(FixedPart { rules, checksum, lengths, shape, encoding, tokens, measured, id, prefix, model })
}

/// The header at the start of `bytes`, if it stands there whole and unharmed.
pub(crate) fn parse_header(bytes: &[u8], name: SegmentName, offset: u64) -> Option<(Header, Lengths)> {
    let fixed = parse_fixed(bytes.get(..bytes.len().min(FIXED))?, name, offset)?;
    let bytes = bytes.get(..fixed.lengths.header)?;
    let sound = crc32c(bytes.get(12..)?) == fixed.checksum;
    #[cfg(test)]
    let sound = sound || planted::is(Planted::NoHeaderChecksum);
    if !sound {
        return None;
    }
    let FixedPart { rules, id, prefix, model, shape, encoding, lengths, .. } = fixed;
    let mut fields = Fields(bytes.get(rules.fixed()..)?);
    let tokens = fields.words(fixed.tokens)?.map(Token::from_le_bytes).collect();
    let sensitivity = match fixed.measured {
        true => Some(fields.words(fixed.tokens)?.map(f32::from_le_bytes).collect()),
        false => None,
    };
    let part = rules.part(lengths.layer);
    let checksums = fields.words(lengths.payload.div_ceil(part.max(1)))?.map(u32::from_le_bytes).collect();
    Some((Header { id, prefix, model, shape, encoding, tokens, sensitivity, part, checksums }, lengths))
}

/// What is appended to a segment when it is complete: a table of its records, then a page that vouches for it.
pub(crate) fn encode_seal(name: SegmentName, start: u64, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = encode_table(entries);
    let table_checksum = crc32c(&bytes);
    let page = bytes.len();
    bytes.extend(SEAL_MAGIC);
    bytes.extend(name.generation.to_le_bytes());
    bytes.extend(name.salt.to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(table_checksum.to_le_bytes());
    bytes.extend(crc32c(&bytes[page..]).to_le_bytes());
    bytes.resize(page + PAGE as usize, 0);
    bytes
}

/// The table of a segment's records, in whole pages.
pub(crate) fn encode_table(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(seal_bytes(entries.len()) as usize);
    for entry in entries {
        bytes.extend(entry.id.0);
        bytes.extend(entry.offset.to_le_bytes());
        bytes.extend(entry.bytes.to_le_bytes());
        bytes.extend(u32::from(entry.measured).to_le_bytes());
        bytes.extend(entry.tokens.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
    bytes
}

/// The entries of a table whose records end at `end`.
fn parse_table(table: &[u8], entries: usize, end: u64) -> Option<Vec<Entry>> {
    let mut fields = Fields(table);
    let mut entry = || {
        let id = ChunkId(fields.array()?);
        let (offset, bytes, measured, tokens) = (fields.u64()?, fields.u64()?, fields.u32()? != 0, fields.u32()?);
        let fits = offset >= PAGE && offset % PAGE == 0 && offset.checked_add(bytes)? <= end;
        fits.then_some(Entry { id, offset, bytes, tokens, measured })
    };
    (0..entries).map(|_| entry()).collect()
}

/// What walking the headers of a segment found that has no seal, for an index file: so that it is walked once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SegmentIndex {
    /// Where the last record ends.
    pub(crate) end: u64,
    /// Bytes of the segment's file.
    pub(crate) len: u64,
    /// Whether there are bytes that belong to no record.
    pub(crate) strays: bool,
    pub(crate) entries: Vec<Entry>,
}

/// The bytes of an index file.
pub(crate) fn encode_index(name: SegmentName, index: &SegmentIndex) -> Vec<u8> {
    let mut bytes = encode_table(&index.entries);
    let table_checksum = crc32c(&bytes);
    let page = bytes.len();
    bytes.extend(INDEX_MAGIC);
    bytes.extend(name.generation.to_le_bytes());
    bytes.extend(name.salt.to_le_bytes());
    bytes.extend(index.end.to_le_bytes());
    bytes.extend((index.entries.len() as u64).to_le_bytes());
    bytes.extend(index.len.to_le_bytes());
    bytes.extend(u32::from(index.strays).to_le_bytes());
    bytes.extend(table_checksum.to_le_bytes());
    bytes.extend(crc32c(&bytes[page..]).to_le_bytes());
    bytes.resize(page + PAGE as usize, 0);
    bytes
}

/// What an index file says of the segment `name`, whose file has `len` bytes; `None` if it is damaged or of another file.
pub(crate) fn parse_index(bytes: &[u8], name: SegmentName, len: u64) -> Option<SegmentIndex> {
    let (table, page) = bytes.split_at_checked(bytes.len().checked_sub(PAGE as usize)?)?;
    let mut fields = Fields(page);
    fields.expect(INDEX_MAGIC)?;
    let same = (fields.u64()?, fields.u64()?) == (name.generation, name.salt);
    let (end, entries, of_len, strays) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u32()? != 0);
    let (checksum, own) = (fields.u32()?, fields.u32()?);
    let entries = usize::try_from(entries).ok()?;
    let sound = same
        && own == crc32c(page.get(..INDEX_FIXED - 4)?)
        && (of_len, seal_bytes(entries)) == (len, bytes.len() as u64)
        && end <= len
        && checksum == crc32c(table);
    if !sound {
        return None;
    }
    Some(SegmentIndex { end, len, strays, entries: parse_table(table, entries, end)? })
}

/// How many records an index file lists of the segment `name`, whose file has `len` bytes; none if it is damaged.
pub(crate) fn index_entries(bytes: &[u8], name: SegmentName, len: u64) -> usize {
    parse_index(bytes, name, len).map_or(0, |index| index.entries.len())
}

/// Bytes of a seal over this many records, and of an index file that lists as many.
pub(crate) fn seal_bytes(entries: usize) -> u64 {
    let table = (entries as u64).saturating_mul(SEAL_ENTRY as u64);
    table.checked_next_multiple_of(PAGE).map_or(u64::MAX, |table| table.saturating_add(PAGE))
}

/// What the last page of a sealed segment says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal {
    /// Where the records end and the table begins.
    pub(crate) start: u64,
    /// Bytes of the padded table.
    pub(crate) table: usize,
    entries: usize,
    checksum: u32,
}

/// Reads the last page of a segment of `len` bytes; `None` if it was not sealed.
pub(crate) fn parse_seal(page: &[u8], name: SegmentName, len: u64) -> Option<Seal> {
    let mut fields = Fields(page);
    fields.expect(SEAL_MAGIC)?;
    if (fields.u64()?, fields.u64()?) != (name.generation, name.salt) {
        return None;
    }
    let (start, entries) = (fields.u64()?, usize::try_from(fields.u64()?).ok()?);
    fields.take(8)?;
    let (checksum, own) = (fields.u32()?, fields.u32()?);
    let seal = seal_bytes(entries);
    let sound = own == crc32c(page.get(..SEAL_FIXED - 4)?)
        && start % PAGE == 0
        && start.checked_add(seal) == Some(len)
        // A record has a page at least, so a table cannot outgrow what it describes.
        && entries as u64 <= start / PAGE;
    sound.then_some(Seal { start, table: usize::try_from(seal - PAGE).ok()?, entries, checksum })
}

impl Seal {
    /// The records that the table names; `None` if it was damaged.
    pub(crate) fn parse_table(&self, table: &[u8]) -> Option<Vec<Entry>> {
        if table.len() != self.table || crc32c(table) != self.checksum {
            return None;
        }
        parse_table(table, self.entries, self.start)
    }
}

/// Little-endian fields, taken one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn expect(&mut self, bytes: &[u8]) -> Option<()> {
        (self.take(bytes.len())? == bytes).then_some(())
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Option<usize> {
        usize::try_from(self.u32()?).ok()
    }

    fn words(&mut self, count: usize) -> Option<impl Iterator<Item = [u8; 4]> + use<'a>> {
        let (words, _) = self.take(count.checked_mul(4)?)?.as_chunks::<4>();
        Some(words.iter().copied())
    }
}
