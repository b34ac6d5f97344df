//! Which records a segment file holds.

use std::io;

use super::format::{self, Entry, FIXED, FirstPage, PAGE, SegmentName};
use crate::disk::ReadAt;

/// Bytes behind a record after which no further record is looked for. A file may be sparse, and so of any size, and what a
/// power cut leaves torn is no longer than what was written since the last sync.
const STRAYS: u64 = 256 << 20;
/// Bytes that are read at once where the next record is looked for.
const STRIDE: usize = 256 << 10;

/// What was found in a segment.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Its records, in the order in which they were written.
    pub(crate) entries: Vec<Entry>,
    /// Where the last of them ends.
    pub(crate) end: u64,
    /// Whether there are bytes that belong to no record: a put that was cut short, or damage. What they say is unknown,
    /// so every [`delete`](amem_core::KvStore::delete) has to take them for what it was to remove.
    pub(crate) strays: bool,
    /// Whether there is a sound seal, before which all records were synced.
    pub(crate) sealed: bool,
    /// A version that is not known here, in a first page that is otherwise sound.
    pub(crate) newer: Option<u32>,
}

/// The records of a whole segment: from its seal, or, where it has none, by walking its headers.
pub(crate) fn segment(source: &(impl ReadAt + ?Sized), name: SegmentName) -> io::Result<Scan> {
    let mut page = [0; PAGE as usize];
    let filled = source.read_at(&mut page, 0)?;
    let first = format::parse_first_page(&page[..filled]);
    match first {
        FirstPage::Version(version) if version > format::VERSION => {
            return Ok(Scan { newer: Some(version), ..Scan::default() });
        }
        _ => {}
    }
    let mut scan = match sealed(source, name)? {
        Some(scan) => scan,
        None => records(source, name, PAGE)?,
    };
    scan.strays |= first == FirstPage::Damaged;
    Ok(scan)
}

/// The records that the seal of a segment names, if it has one that is sound.
fn sealed(source: &(impl ReadAt + ?Sized), name: SegmentName) -> io::Result<Option<Scan>> {
    let len = source.len()?;
    let Some(last) = len.checked_sub(PAGE) else { return Ok(None) };
    let mut page = [0; PAGE as usize];
    let filled = source.read_at(&mut page, last)?;
    let Some(seal) = format::parse_seal(&page[..filled], name, len) else { return Ok(None) };
    let mut table = vec![0; seal.table];
    let filled = source.read_at(&mut table, seal.start)?;
    let mut entries = seal.parse_table(&table[..filled]);
    // Tables of version 1 know no tokens.
    for entry in entries.iter_mut().flatten().filter(|entry| entry.tokens == 0) {
        let mut fixed = [0; FIXED];
        let filled = source.read_at(&mut fixed, entry.offset)?;
        entry.tokens = format::parse_tokens(&fixed[..filled], name, entry.offset).unwrap_or_default();
    }
    Ok(entries.map(|entries| Scan { entries, end: seal.start, sealed: true, ..Scan::default() }))
}

/// The records from `start` on. Behind bytes that are no record, the next one is looked for page by page, but no further
/// than [`STRAYS`].
pub(crate) fn records(source: &(impl ReadAt + ?Sized), name: SegmentName, start: u64) -> io::Result<Scan> {
    let len = source.len()?;
    let mut scan = Scan { end: start, ..Scan::default() };
    let mut offset = start;
    let mut buffer = vec![0; PAGE as usize];
    while offset < len {
        let Some(entry) = record(source, name, offset, len, &mut buffer)? else {
            scan.strays = true;
            let limit = len.min(scan.end.saturating_add(STRAYS));
            match next_magic(source, offset + PAGE, limit, &mut buffer)? {
                Some(next) => offset = next,
                None => break,
            }
            continue;
        };
        offset = entry.end();
        scan.end = offset;
        scan.entries.push(entry);
    }
    Ok(scan)
}

/// The first page from `offset` to `limit` that begins as a record does. `buffer` is scratch.
fn next_magic(
    source: &(impl ReadAt + ?Sized),
    mut offset: u64,
    limit: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<u64>> {
    buffer.resize(buffer.len().max(STRIDE), 0);
    while offset < limit {
        let filled = source.read_at(&mut buffer[..STRIDE], offset)?;
        let mut pages = (offset..limit).step_by(PAGE as usize).zip(buffer[..filled].chunks(PAGE as usize));
        if let Some((found, _)) = pages.find(|(_, page)| format::begins_record(page)) {
            return Ok(Some(found));
        }
        offset += STRIDE as u64;
    }
    Ok(None)
}

/// The record at `offset`, if one with a sound header stands there that ends within `len` bytes. `buffer` is scratch.
fn record(
    source: &(impl ReadAt + ?Sized),
    name: SegmentName,
    offset: u64,
    len: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<Entry>> {
    let mut filled = source.read_at(&mut buffer[..PAGE as usize], offset)?;
    let fixed = &buffer[..filled.min(FIXED)];
    let lengths = format::parse_lengths(fixed, name, offset).filter(|l| l.record <= len - offset);
    let Some(lengths) = lengths else { return Ok(None) };
    if lengths.header > filled {
        buffer.resize(buffer.len().max(lengths.header), 0);
        filled = source.read_at(&mut buffer[..lengths.header], offset)?;
    }
    Ok(format::parse_header(&buffer[..filled], name, offset).map(|(header, lengths)| Entry {
        id: header.id(),
        offset,
        bytes: lengths.record,
        tokens: header.tokens(),
        measured: header.is_measured(),
    }))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A file that is mostly a hole, and how many bytes of it were read.
    struct Sparse {
        len: u64,
        bytes: Vec<u8>,
        read: Cell<u64>,
    }

    impl ReadAt for Sparse {
        fn len(&self) -> io::Result<u64> {
            Ok(self.len)
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let filled = buffer.len().min((self.len - offset.min(self.len)) as usize);
            self.read.set(self.read.get() + filled as u64);
            let written = self.bytes[..].read_at(buffer, offset)?;
            buffer[written..filled].fill(0);
            Ok(filled)
        }
    }

    #[test]
    fn of_a_sparse_file_no_more_is_read_than_a_power_cut_could_have_torn() {
        let name = SegmentName { generation: 1, salt: 2 };
        for len in [64 << 30, u64::MAX / 2] {
            let file = Sparse { len, bytes: format::encode_first_page(name), read: Cell::new(0) };
            let scan = segment(&file, name).unwrap();
            assert!(scan.entries.is_empty() && scan.strays);
            assert!(file.read.get() < STRAYS + 2 * STRIDE as u64, "{} bytes were read", file.read.get());
        }
    }
}
