//! Which records a segment file holds.

use std::io;

use super::format::{self, Entry, FIXED, FirstPage, PAGE, SegmentIndex, SegmentName};
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
    /// Bytes of the file.
    pub(crate) len: u64,
    /// Whether there are bytes that belong to no record: a put that was cut short, or damage. What they say is unknown,
    /// so every [`delete`](amem_core::KvStore::delete) has to take them for what it was to remove.
    pub(crate) strays: bool,
    /// Whether there is a sound seal, before which all records were synced.
    pub(crate) sealed: bool,
    /// Whether there is a seal, and it is not sound or cannot be read.
    pub(crate) damaged_seal: bool,
    /// Whether its index file was used.
    pub(crate) indexed: bool,
    /// A version that is not known here, in a first page that is otherwise sound.
    pub(crate) newer: Option<u32>,
}

/// The records of a whole segment: from its seal, or from its index file if the bytes of one are given, or, where it has
/// neither, by walking its headers.
pub(crate) fn segment(
    source: &(impl ReadAt + ?Sized),
    name: SegmentName,
    index: impl FnOnce() -> Option<Vec<u8>>,
) -> io::Result<Scan> {
    let mut page = [0; PAGE as usize];
    // Records and seal do not depend on it, nor do records depend on the seal: one that the disk does not read is damaged.
    let first = source
        .read_at(&mut page, 0)
        .map_or(FirstPage::Damaged, |filled| format::parse_first_page(page.get(..filled).unwrap_or_default()));
    match first {
        FirstPage::Version(version) if version > format::VERSION => {
            return Ok(Scan { newer: Some(version), ..Scan::default() });
        }
        _ => {}
    }
    let mut scan = match sealed(source, name) {
        Ok(Some(scan)) => scan,
        unsealed => {
            let scan = match indexed(source, name, index)? {
                Some(scan) => scan,
                None => records(source, name, PAGE)?,
            };
            Scan { damaged_seal: unsealed.is_err() || has_seal(source).unwrap_or_default(), ..scan }
        }
    };
    scan.strays |= first == FirstPage::Damaged;
    Ok(scan)
}

/// The records of a segment from its index file, if that is sound and of this file.
fn indexed(
    source: &(impl ReadAt + ?Sized),
    name: SegmentName,
    index: impl FnOnce() -> Option<Vec<u8>>,
) -> io::Result<Option<Scan>> {
    let Some(bytes) = index() else { return Ok(None) };
    let len = source.len()?;
    let index = format::parse_index(&bytes, name, len);
    Ok(index.map(|SegmentIndex { end, len, strays, entries }| Scan {
        entries,
        end,
        len,
        strays,
        indexed: true,
        ..Scan::default()
    }))
}

/// The records that the seal of a segment names, if it has one that is sound.
pub(crate) fn sealed(source: &(impl ReadAt + ?Sized), name: SegmentName) -> io::Result<Option<Scan>> {
    let len = source.len()?;
    let Some(last) = len.checked_sub(PAGE) else { return Ok(None) };
    let mut page = [0; PAGE as usize];
    let filled = match source.read_at(&mut page, last) {
        Ok(filled) => filled,
        Err(error) => return listed(source, name, last)?.map_or(Err(error), |scan| Ok(Some(scan))),
    };
    let Some(seal) = format::parse_seal(&page[..filled], name, len) else { return Ok(None) };
    let mut table = vec![0; seal.table];
    let Ok(filled) = source.read_at(&mut table, seal.start) else {
        // Where the records end is known, and what they are is seen from their headers.
        let scan = records(&Cut { source, len: seal.start }, name, PAGE)?;
        return Ok(Some(Scan { end: seal.start, len, sealed: true, ..scan }));
    };
    let mut entries = seal.parse_table(&table[..filled]);
    // Tables of version 1 know no tokens.
    for entry in entries.iter_mut().flatten().filter(|entry| entry.tokens == 0) {
        let mut fixed = [0; FIXED];
        let filled = source.read_at(&mut fixed, entry.offset)?;
        entry.tokens = format::parse_tokens(&fixed[..filled], name, entry.offset).unwrap_or_default();
    }
    Ok(entries.map(|entries| Scan { entries, end: seal.start, len, sealed: true, ..Scan::default() }))
}

/// Whether the last page of a segment begins as that of a seal.
fn has_seal(source: &(impl ReadAt + ?Sized)) -> io::Result<bool> {
    let Some(last) = source.len()?.checked_sub(PAGE) else { return Ok(false) };
    let mut start = [0; 8];
    let filled = source.read_at(&mut start, last)?;
    Ok(format::begins_seal(&start[..filled]))
}

/// The records of a segment whose last page, at `last`, cannot be read, if all that lies between them and that page is a
/// table of just these records: then nothing but the rest of a seal stood there, before which they were synced.
fn listed(source: &(impl ReadAt + ?Sized), name: SegmentName, last: u64) -> io::Result<Option<Scan>> {
    let scan = records(&Cut { source, len: last }, name, PAGE)?;
    let expected = format::encode_table(&scan.entries);
    if scan.end + expected.len() as u64 != last {
        return Ok(None);
    }
    let mut table = vec![0; expected.len()];
    let filled = source.read_at(&mut table, scan.end)?;
    let same = !scan.entries.is_empty() && table[..filled] == expected;
    Ok(same.then_some(Scan { len: last + PAGE, strays: false, sealed: true, ..scan }))
}

/// The first bytes of a file.
struct Cut<'a, S: ?Sized> {
    source: &'a S,
    len: u64,
}

impl<S: ReadAt + ?Sized> ReadAt for Cut<'_, S> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        self.source.read_at(&mut buffer[..wanted], offset)
    }
}

/// The records from `start` on of a segment to which nothing more will be appended.
pub(crate) fn rest(source: &(impl ReadAt + ?Sized), name: SegmentName, start: u64) -> io::Result<Scan> {
    match sealed(source, name) {
        Ok(Some(mut scan)) => {
            scan.entries.retain(|entry| entry.offset >= start);
            Ok(scan)
        }
        Ok(None) | Err(_) => records(source, name, start),
    }
}

/// The records from `start` on. Behind bytes that are no record, the next one is looked for page by page, but no further
/// than [`STRAYS`].
pub(crate) fn records(source: &(impl ReadAt + ?Sized), name: SegmentName, start: u64) -> io::Result<Scan> {
    let mut scan = tail(source, name, start)?;
    let mut window = Window::default();
    let mut offset = scan.end;
    while offset < scan.len {
        let Some(entry) = record(source, name, offset, scan.len, &mut window)? else {
            scan.strays = true;
            let limit = scan.len.min(scan.end.saturating_add(STRAYS));
            match next_magic(source, offset + PAGE, limit, &mut window)? {
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

/// The records from `start` on up to the first bytes that are none. In a segment that is being written those are at its
/// end, so that what is new costs no more than it is long.
pub(crate) fn tail(source: &(impl ReadAt + ?Sized), name: SegmentName, start: u64) -> io::Result<Scan> {
    let mut scan = Scan { end: start, len: source.len()?, ..Scan::default() };
    let mut window = Window::default();
    while let Some(entry) = record(source, name, scan.end, scan.len, &mut window)? {
        scan.end = entry.end();
        scan.entries.push(entry);
    }
    Ok(scan)
}

/// Bytes of a file that were read together.
#[derive(Default)]
struct Window {
    offset: u64,
    bytes: Vec<u8>,
    filled: usize,
    /// Whether what was asked for last lay close behind what was asked for before: then more is read at once.
    close: bool,
}

impl Window {
    /// As many of `len` bytes from `offset` on as there are.
    fn get(&mut self, source: &(impl ReadAt + ?Sized), offset: u64, len: usize) -> io::Result<&[u8]> {
        let inside = |window: &Self| {
            let start = usize::try_from(offset.checked_sub(window.offset)?).ok()?;
            Some(start..start.checked_add(len)?).filter(|range| range.end <= window.filled)
        };
        if let Some(range) = inside(self) {
            return Ok(&self.bytes[range]);
        }
        let ends = self.offset.saturating_add(self.filled as u64);
        self.close = offset >= self.offset && offset.saturating_sub(ends) < STRIDE as u64 / 4 && self.filled > 0;
        let wanted = if self.close { len.max(STRIDE) } else { len };
        self.bytes.resize(self.bytes.len().max(wanted), 0);
        self.filled = source.read_at(&mut self.bytes[..wanted], offset)?;
        self.offset = offset;
        Ok(&self.bytes[..self.filled.min(len)])
    }
}

/// The first page from `offset` to `limit` that begins as a record does.
fn next_magic(
    source: &(impl ReadAt + ?Sized),
    mut offset: u64,
    limit: u64,
    window: &mut Window,
) -> io::Result<Option<u64>> {
    while offset < limit {
        let bytes = window.get(source, offset, STRIDE)?;
        let mut pages = (offset..limit).step_by(PAGE as usize).zip(bytes.chunks(PAGE as usize));
        if let Some((found, _)) = pages.find(|(_, page)| format::begins_record(page)) {
            return Ok(Some(found));
        }
        offset += STRIDE as u64;
    }
    Ok(None)
}

/// The record at `offset`, if one with a sound header stands there that ends within `len` bytes.
fn record(
    source: &(impl ReadAt + ?Sized),
    name: SegmentName,
    offset: u64,
    len: u64,
    window: &mut Window,
) -> io::Result<Option<Entry>> {
    if offset >= len {
        return Ok(None);
    }
    let page = window.get(source, offset, PAGE as usize)?;
    let lengths = format::parse_lengths(&page[..page.len().min(FIXED)], name, offset);
    let Some(lengths) = lengths.filter(|lengths| lengths.record <= len - offset) else { return Ok(None) };
    let header = window.get(source, offset, lengths.header)?;
    Ok(format::parse_header(header, name, offset).map(|(header, lengths)| Entry {
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
            let scan = segment(&file, name, || None).unwrap();
            assert!(scan.entries.is_empty() && scan.strays);
            assert!(file.read.get() < STRAYS + 2 * STRIDE as u64, "{} bytes were read", file.read.get());
        }
    }
}
