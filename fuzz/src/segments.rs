//! Segment and index files of the KV store, written and read here as `FORMAT.md` says, by none of the code under test.
//!
//! What the fuzzer writes describes files. Checksums are computed over what it describes, however senseless, so that it
//! gets past them; then it changes bytes.

use std::collections::{BTreeMap, BTreeSet};

use amem_core::KvChunk;
use amem_store::fuzzing::{Found, crc32c};
use arbitrary::Arbitrary;

const PAGE: usize = 4096;
/// Most bytes of a record that is written whole. A larger one's header stands there, and nothing behind it.
const MOST: usize = 3 << 20;
/// Most bytes of a file.
const FILE: usize = 4 << 20;
/// In version 1, each run of this many bytes of the payload has a checksum of its own.
const BLOCK: usize = 1 << 20;
/// The store reads no fewer bytes at once where it looks for records.
const STRIDE: usize = 256 << 10;

/// A file's numbers, and what is in it.
#[derive(Arbitrary, Debug)]
pub struct Segment {
    generation: u8,
    salt: u8,
    version: u8,
    parts: Vec<Part>,
    seal: Option<Table>,
    index: Option<Table>,
    /// Once everything else is in order.
    changes: Changes,
    /// In the index file.
    index_changes: Changes,
}

/// What is added to which byte.
type Changes = Vec<(u32, u8)>;

#[derive(Arbitrary, Debug)]
enum Part {
    Record(Record),
    /// So many pages that are no record, which begin with this byte.
    Strays(u8, u8),
    /// A record of another place.
    Copied(u8),
}

#[derive(Arbitrary, Debug)]
struct Record {
    version_1: bool,
    id: u8,
    size: Size,
    encoding: u8,
    flags: u8,
    model: u8,
    /// What the payload and the tokens are made of.
    seed: u8,
    /// In the header, before its checksum is computed.
    lies: Changes,
    /// Whether the payload is another than the one of the checksums.
    torn: bool,
}

#[derive(Arbitrary, Debug)]
enum Size {
    Small {
        layers: u8,
        heads: u8,
        dim: u8,
        tokens: u8,
    },
    /// Of more than a store reads as a whole.
    Large {
        layers: u8,
        tokens: u8,
    },
    Any {
        layers: u32,
        heads: u32,
        dim: u32,
        tokens: u16,
    },
}

impl Size {
    /// Layers, heads, numbers of a head, tokens.
    fn numbers(&self) -> [u32; 4] {
        match *self {
            Size::Small { layers, heads, dim, tokens } => [layers % 5, heads % 4, dim % 70, tokens % 80].map(u32::from),
            Size::Large { layers, tokens } => [u32::from(layers % 3) + 1, 2, 1024, u32::from(tokens) + 1],
            Size::Any { layers, heads, dim, tokens } => [layers, heads, dim, tokens.into()],
        }
    }
}

/// The records that a seal or an index file lists.
#[derive(Arbitrary, Debug, Default)]
struct Table {
    /// In place of the number of records.
    entries: Option<u64>,
    /// In place of where they end.
    end: Option<u64>,
    strays: bool,
    /// Records that it leaves out.
    missing: Vec<u8>,
    /// In the table, before its checksum is computed.
    lies: Changes,
    /// In the page behind it, before its checksum is computed.
    page_lies: Changes,
    /// In place of the version of this format, that of the first: without the chunks' tokens.
    version_1: bool,
}

/// Files, and whether all that they say is so.
#[derive(Debug)]
pub struct Files {
    /// By name.
    pub files: BTreeMap<String, Vec<u8>>,
    honest: bool,
}

impl Files {
    /// The files of these segments. Of two that have the same name, the last.
    pub fn of(segments: &[Segment]) -> Self {
        let mut all = Self { files: BTreeMap::new(), honest: true };
        for segment in segments {
            let (generation, salt) = (u64::from(segment.generation), u64::from(segment.salt));
            let stem = format!("seg-{generation:016x}-{salt:016x}");
            all.honest &= !all.files.contains_key(&format!("{stem}.kv"));
            let (mut file, entries, honest) = segment.file();
            all.honest &= honest;
            if let Some(table) = &segment.index {
                let mut index = table.write(&entries, segment, file.len(), true);
                all.honest &= table.is_honest() && segment.index_changes.is_empty();
                change(&mut index, &segment.index_changes);
                all.files.insert(format!("{stem}.idx"), index);
            }
            if let Some(table) = &segment.seal {
                all.honest &= table.is_honest();
                let seal = table.write(&entries, segment, file.len(), false);
                file.extend(seal);
            }
            all.honest &= segment.changes.is_empty();
            change(&mut file, &segment.changes);
            all.files.insert(format!("{stem}.kv"), file);
        }
        all
    }

    /// Asserts that no index file is taken to list more records than it has room for.
    pub fn check_indexes(&self) {
        for (file, [generation, salt]) in self.segments() {
            if let Some(index) = self.files.get(&format!("seg-{generation:016x}-{salt:016x}.idx")) {
                let listed = amem_store::fuzzing::index(index, generation, salt, file.len() as u64);
                assert!(listed <= index.len() / 56, "{listed} records in {} bytes", index.len());
            }
        }
    }

    /// Asserts that what was found in these files is what they say, and that no more memory was used than they are large.
    pub fn check(&self, found: &Found) {
        let bytes: usize = self.files.values().map(Vec::len).sum();
        assert!(found.largest_read <= bytes.max(STRIDE), "{} bytes of {bytes}", found.largest_read);
        let pages: Vec<(&[u8], [u64; 2], usize)> = self
            .segments()
            .flat_map(|(file, name)| (PAGE..file.len()).step_by(PAGE).map(move |at| (file, name, at)))
            .collect();
        let records: Vec<Read> = pages.iter().filter_map(|(file, name, at)| Read::at(file, *name, *at)).collect();
        let given: BTreeSet<_> = found.chunks.iter().filter(|(_, chunk)| chunk.is_some()).map(|(id, _)| id.0).collect();
        for (id, chunk) in &found.chunks {
            let Some(chunk) = chunk else { continue };
            assert_eq!(chunk.id(), *id);
            assert!(records.iter().any(|record| record.is(chunk)), "no record is that of {chunk:?}");
        }
        if self.honest {
            for record in records.iter().filter(|record| record.is_whole()) {
                assert!(given.contains(record.id), "{record:?} was not found");
            }
        }
    }

    /// The segments, and their names.
    fn segments(&self) -> impl Iterator<Item = (&[u8], [u64; 2])> {
        self.files.iter().filter_map(|(name, file)| {
            let (generation, salt) = name.strip_prefix("seg-")?.strip_suffix(".kv")?.split_once('-')?;
            let number = |digits| u64::from_str_radix(digits, 16).ok();
            Some((&file[..], [number(generation)?, number(salt)?]))
        })
    }
}

impl Segment {
    /// The same segment with an index file and without a seal, so that the index file counts.
    pub fn with_index(self) -> Self {
        Self { index: Some(self.index.unwrap_or_default()), seal: None, ..self }
    }

    /// The file without its seal, what a table says of each record, and whether all of it is a record.
    fn file(&self) -> (Vec<u8>, Vec<[u8; 56]>, bool) {
        let mut file = b"amem-kv\n".to_vec();
        file.extend(u32::from(self.version % 5).to_le_bytes());
        file.extend([0; 4]);
        file.extend(self.name());
        file.extend(crc32c(&file).to_le_bytes());
        pad(&mut file);
        let (mut entries, mut honest) = (Vec::new(), true);
        for part in &self.parts {
            let at = file.len();
            match part {
                _ if at >= FILE => break,
                Part::Record(record) => {
                    honest &= record.write(&self.name(), &mut file);
                    entries.push(record.entry(at, file.len() - at));
                }
                Part::Strays(pages, byte) => {
                    file.push(*byte);
                    file.resize(at + PAGE * usize::from(*pages % 80), 0);
                }
                Part::Copied(page) => {
                    let from = PAGE * usize::from(*page);
                    let copy = file.get(from..(from + 2 * PAGE).min(at)).unwrap_or_default().to_vec();
                    file.extend(copy);
                }
            }
            pad(&mut file);
            honest &= matches!(part, Part::Record(_));
        }
        (file, entries, honest)
    }

    fn name(&self) -> [u8; 16] {
        (u128::from(self.generation) | u128::from(self.salt) << 64).to_le_bytes()
    }
}

impl Record {
    fn layers(&self) -> u32 {
        self.size.numbers()[0]
    }

    /// Writes the record at the file's end. Whether it is one that is to be read.
    fn write(&self, name: &[u8; 16], file: &mut Vec<u8>) -> bool {
        let at = file.len();
        let numbers = self.size.numbers();
        let layer = layer_bytes(self.encoding, numbers);
        let payload = layer.and_then(|layer| layer.checked_mul(self.layers() as usize)).filter(|len| *len <= MOST);
        let payload: Option<Vec<u8>> =
            payload.map(|len| (0..len).map(|at| self.seed.wrapping_add((at ^ at >> 8 ^ at >> 16) as u8)).collect());
        let tokens = numbers[3] as usize;
        file.extend(if self.version_1 { b"amemchnk" } else { b"amemchk2" });
        file.extend([0; 8]);
        file.extend(name);
        file.extend((at as u64).to_le_bytes());
        numbers.iter().for_each(|number| file.extend(number.to_le_bytes()));
        let known = if self.version_1 { 1 } else { 3 };
        file.extend([self.encoding, self.flags, 0, 0, 0, 0, 0, 0]);
        file.extend([self.id; 32]);
        file.extend([self.id ^ self.seed; 32]);
        if !self.version_1 {
            file.extend([self.model; 32]);
        }
        (0..tokens).for_each(|token| file.extend((token as u32 ^ u32::from(self.seed)).to_le_bytes()));
        if self.flags & 1 != 0 {
            (0..tokens).for_each(|token| file.extend((token as f32 / 8.0).to_le_bytes()));
        }
        let part = if self.version_1 { BLOCK } else { layer.unwrap_or_default() };
        payload.iter().flat_map(|payload| payload.chunks(part.max(1))).for_each(|part| {
            file.extend(crc32c(part).to_le_bytes());
        });
        let header = (file.len() - at) as u32;
        file[at + 12..at + 16].copy_from_slice(&header.to_le_bytes());
        change(&mut file[at..], &self.lies);
        let checksum = crc32c(&file[at + 12..]);
        file[at + 8..at + 12].copy_from_slice(&checksum.to_le_bytes());
        pad(file);
        let sound = payload.is_some() && self.lies.is_empty() && !self.torn && tokens > 0 && self.flags & !known == 0;
        if let Some(mut payload) = payload {
            if let Some(first) = payload.first_mut().filter(|_| self.torn) {
                *first ^= 1;
            }
            file.extend(payload);
            pad(file);
        }
        sound
    }

    fn entry(&self, at: usize, bytes: usize) -> [u8; 56] {
        let mut entry = [self.id; 56];
        entry[32..40].copy_from_slice(&(at as u64).to_le_bytes());
        entry[40..48].copy_from_slice(&(bytes as u64).to_le_bytes());
        entry[48..52].copy_from_slice(&u32::from(self.flags & 1).to_le_bytes());
        entry[52..].copy_from_slice(&self.size.numbers()[3].to_le_bytes());
        entry
    }
}

impl Table {
    fn is_honest(&self) -> bool {
        let same = self.entries.is_none() && self.end.is_none() && self.missing.is_empty();
        same && self.lies.is_empty() && self.page_lies.is_empty()
    }

    /// The bytes of an index file or, to be appended to the segment, of a seal. The segment's file has `len` bytes before
    /// it has a seal.
    fn write(&self, entries: &[[u8; 56]], segment: &Segment, len: usize, is_index: bool) -> Vec<u8> {
        let listed = entries.iter().enumerate().filter(|(at, _)| !self.missing.contains(&(*at as u8)));
        let mut bytes: Vec<u8> = listed
            .flat_map(|(_, entry)| match self.version_1 {
                true => [&entry[..52], &[0; 4]].concat(),
                false => entry.to_vec(),
            })
            .collect();
        let listed = bytes.len() / 56;
        change(&mut bytes, &self.lies);
        pad(&mut bytes);
        let checksum = crc32c(&bytes).to_le_bytes();
        let mut page = if is_index { b"amemindx".to_vec() } else { b"amemseal".to_vec() };
        page.extend(segment.name());
        page.extend(self.end.unwrap_or(len as u64).to_le_bytes());
        page.extend(self.entries.unwrap_or(listed as u64).to_le_bytes());
        if is_index {
            page.extend((len as u64).to_le_bytes());
            page.extend(u32::from(self.strays).to_le_bytes());
        } else {
            page.extend([0; 8]);
        }
        page.extend(checksum);
        change(&mut page, &self.page_lies);
        page.extend(crc32c(&page).to_le_bytes());
        pad(&mut page);
        bytes.extend(page);
        bytes
    }
}

/// A record whose header is sound.
#[derive(Debug)]
struct Read<'a> {
    id: &'a [u8],
    prefix: &'a [u8],
    model: Option<&'a [u8]>,
    tokens: &'a [u8],
    sensitivity: Option<&'a [u8]>,
    numbers: [u32; 4],
    /// In the order in which they stand there; `None` where a checksum is not that of its bytes.
    parts: Vec<Option<&'a [u8]>>,
    /// Whether each of them is a layer.
    by_layer: bool,
}

impl<'a> Read<'a> {
    fn at(file: &'a [u8], name: [u64; 2], at: usize) -> Option<Self> {
        let record = file.get(at..)?;
        let word = |at: usize| Some(u32::from_le_bytes(*record.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_le_bytes(*record.get(at..)?.first_chunk()?));
        let version_1 = match record.get(..8)? {
            b"amemchnk" => true,
            b"amemchk2" => false,
            _ => return None,
        };
        let header = record.get(..word(12)? as usize)?;
        let placed = [long(16)?, long(24)?, long(32)?] == [name[0], name[1], at as u64];
        if !placed || crc32c(header.get(12..)?) != word(8)? {
            return None;
        }
        let numbers = [word(40)?, word(44)?, word(48)?, word(52)?];
        if numbers.contains(&0) {
            return None;
        }
        let (encoding, flags) = (record[56], record[57]);
        let layer = layer_bytes(encoding, numbers)?;
        let (tokens, rest) =
            header.get(if version_1 { 128 } else { 160 }..)?.split_at_checked(4 * numbers[3] as usize)?;
        let (sensitivity, checksums) = rest.split_at_checked(if flags & 1 != 0 { tokens.len() } else { 0 })?;
        let payload = record.get(header.len().next_multiple_of(PAGE)..)?;
        let payload = payload.get(..layer.checked_mul(numbers[0] as usize)?)?;
        let part = if version_1 { BLOCK } else { layer };
        let parts = payload.chunks(part.max(1));
        if parts.len() * 4 != checksums.len() {
            return None;
        }
        let sums = checksums.as_chunks().0.iter().map(|sum| u32::from_le_bytes(*sum));
        Some(Self {
            id: &record[64..96],
            prefix: &record[96..128],
            model: (flags & 2 != 0 && !version_1).then(|| &record[128..160]),
            tokens,
            sensitivity: (flags & 1 != 0).then_some(sensitivity),
            numbers,
            by_layer: part == layer && parts.len() == numbers[0] as usize,
            parts: parts.zip(sums).map(|(part, sum)| Some(part).filter(|part| crc32c(part) == sum)).collect(),
        })
    }

    fn is_whole(&self) -> bool {
        self.parts.iter().all(Option::is_some)
    }

    /// Whether this record is the chunk's. Layers of the chunk that it refuses are those whose checksums are wrong.
    fn is(&self, chunk: &KvChunk) -> bool {
        let shape = chunk.shape();
        let numbers = [shape.layers, shape.kv_heads, shape.head_dim, chunk.tokens().len()];
        let tokens: Vec<u8> = chunk.tokens().iter().flat_map(|token| token.to_le_bytes()).collect();
        let sensitivity: Option<Vec<u8>> =
            chunk.sensitivity().map(|all| all.iter().flat_map(|number| number.to_le_bytes()).collect());
        let same = self.id == chunk.id().0
            && self.prefix == chunk.prefix().0
            && self.model == chunk.model().as_ref().map(|model| &model.0[..])
            && self.tokens == tokens
            && self.sensitivity == sensitivity.as_deref()
            && self.numbers.map(|number| number as usize) == numbers;
        if !same || self.parts.is_empty() {
            return same;
        }
        let layer = |at| chunk.layer(at).ok().map(|layer| layer.bytes().to_vec());
        if !self.by_layer {
            let layers: Option<Vec<Vec<u8>>> = (0..shape.layers).map(layer).collect();
            let parts: Option<Vec<&[u8]>> = self.parts.iter().copied().collect();
            return layers.is_some_and(|layers| parts.is_some_and(|parts| layers.concat() == parts.concat()));
        }
        (0..shape.layers).zip(&self.parts).all(|(at, part)| layer(at).as_deref() == *part)
    }
}

/// Bytes of a layer of so many layers, heads, numbers of a head and tokens; `None` for an encoding that there is not, or
/// for more than can be counted.
fn layer_bytes(encoding: u8, [_, heads, dim, tokens]: [u32; 4]) -> Option<usize> {
    let [heads, dim, tokens] = [heads, dim, tokens].map(u128::from);
    let groups = |count: u128| (count / 32).max(1);
    let bytes = match encoding {
        0 => 8 * tokens * heads * dim,
        1 | 2 => 4 * tokens * heads * dim,
        16 if dim == 0 => 0,
        16 => 2 * tokens * heads * (dim + 4),
        17 => {
            let (keys, values) = (groups(tokens) * heads * dim, tokens * heads * groups(dim));
            4 * (keys + values) + 2 * tokens * heads * dim.div_ceil(2)
        }
        _ => return None,
    };
    usize::try_from(bytes).ok()
}

fn change(bytes: &mut [u8], changes: &Changes) {
    let len = bytes.len();
    for (at, by) in changes.iter().filter(|_| len > 0) {
        let byte = &mut bytes[*at as usize % len];
        *byte = byte.wrapping_add(*by);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
}
