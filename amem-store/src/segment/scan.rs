//! Which records a segment file holds.

use std::io;

use super::format::{self, Entry, FIXED, FirstPage, PAGE, SegmentName};
use crate::disk::ReadAt;

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

/// The records from `start` on. Behind bytes that are no record, the next one is looked for page by page.
pub(crate) fn records(source: &(impl ReadAt + ?Sized), name: SegmentName, start: u64) -> io::Result<Scan> {
    let len = source.len()?;
    let mut scan = Scan { end: start, ..Scan::default() };
    let mut offset = start;
    let mut buffer = vec![0; PAGE as usize];
    while offset < len {
        let Some(entry) = record(source, name, offset, len, &mut buffer)? else {
            scan.strays = true;
            offset += PAGE;
            continue;
        };
        offset = entry.end();
        scan.end = offset;
        scan.entries.push(entry);
    }
    Ok(scan)
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
