//! Where every chunk lies: what a store knows in memory, and can always learn again from its segments.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;

use amem_core::ChunkId;

use super::format::{self, Entry, SegmentName};
use super::scan::{self, Scan};
use super::store::LOCK;
use crate::disk::{Disk, DiskFile};
#[cfg(test)]
use crate::planted::{self, Planted};
use crate::readers::{Readers, Reading};
use crate::{Error, Result};

/// The location of a chunk's newest record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: SegmentName,
    pub(crate) entry: Entry,
}

/// Files that are kept open for reading. Each is a descriptor, of which a process may have a thousand or so.
const OPEN: usize = 128;

/// One segment file.
#[derive(Default)]
pub(crate) struct Segment {
    /// All its records, those included that no chunk's location points to any more: their bytes are still in the file.
    pub(crate) entries: Vec<Entry>,
    /// Where the last of them ends.
    pub(crate) end: u64,
    /// Bytes of the file when it was last looked at.
    pub(crate) len: u64,
    /// Bytes of the records that chunks' locations point to.
    pub(crate) live: u64,
    /// See [`Scan::strays`].
    pub(crate) strays: bool,
    /// Whether it was found without a seal. Its records may be torn by a power cut. They may even look whole and not be on
    /// the disk, if a sync of theirs failed: a later sync would not say so. So that one is here is no reason not to write
    /// a chunk, or to remove another record of it.
    pub(crate) unsealed: bool,
    /// Whether its records were read from its index file.
    pub(crate) indexed: bool,
    /// Whether its records are not known, for the disk did not read them. They may be anything, as [`strays`](Self::strays)
    /// may, and may be read later: it is removed where something is deleted, and kept where room is only tidied up.
    pub(crate) unreadable: bool,
    /// Whether nothing more will be appended to it: a later segment was there when it was scanned.
    complete: bool,
    /// Records found damaged.
    lost: u64,
    /// Those who read from it at this moment.
    readers: Arc<Readers>,
}

impl Segment {
    /// Whether there are records in the file that no chunk's location points to, or bytes that nobody knows.
    pub(crate) fn has_dead(&self) -> bool {
        self.strays || self.live < self.entries.iter().map(|entry| entry.bytes).sum()
    }
}

/// All chunks and segments of a store.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) chunks: BTreeMap<ChunkId, Location>,
    pub(crate) segments: BTreeMap<SegmentName, Segment>,
    /// The records of chunks that newer ones replaced or that were forgotten, in no order: what is left where a newer record
    /// turns out to be damaged.
    older: HashMap<ChunkId, Vec<Location>>,
    /// Index files, and the segments that they say they are of.
    pub(crate) indexes: BTreeSet<SegmentName>,
    /// Segments that could not be read at some time, each of which is counted as damage once.
    pub(crate) unreadable: BTreeSet<SegmentName>,
    /// Whether the directory was read before.
    pub(crate) was_read: bool,
    /// Oldest first.
    open: VecDeque<(SegmentName, Arc<dyn DiskFile>)>,
}

/// A segment's file, open for reading.
pub(crate) struct OpenFile {
    pub(crate) reading: Reading,
    /// Whether chunks may keep it open. Not if they do so with too many others already.
    pub(crate) lend: bool,
}

impl Index {
    /// Takes in what changed in the directory since the last time; the first time, that is everything. Of a segment that
    /// was read before, only what was appended is read. One that cannot be read is taken for damaged, and is read when this is
    /// called again: all it holds is a cache.
    pub(crate) fn refresh(&mut self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let files = disk.list(dir).map_err(Error::io("list", dir))?;
        let named = |parse: fn(&str) -> Option<SegmentName>| -> BTreeSet<SegmentName> {
            files.iter().filter_map(|file| file.to_str().and_then(parse)).collect()
        };
        let names = named(SegmentName::parse);
        self.indexes = named(SegmentName::parse_index);
        if !std::mem::replace(&mut self.was_read, true) {
            let is_ours = |file: &str| {
                file == LOCK || SegmentName::parse(file).is_some() || SegmentName::parse_index(file).is_some()
            };
            let mut others = files.iter().filter(|file| !file.to_str().is_some_and(is_ours));
            if let Some(first) = others.next() {
                let count = 1 + others.count();
                log::warn!(
                    "{}: {count} files there are no store's, and left alone: {}",
                    dir.display(),
                    first.display()
                );
            }
        }
        let gone = self.segments.keys().filter(|name| !names.contains(name)).copied().collect::<Vec<_>>();
        self.lose_segments(&gone);
        let last = names.last();
        // In order, so that the newest record of a chunk is the last to be seen.
        for name in &names {
            let complete = Some(name) != last;
            let known = self.segments.get(name).filter(|segment| !segment.unreadable);
            if known.is_some_and(|segment| segment.complete) {
                continue;
            }
            let path = dir.join(name.file_name());
            let has_index = self.indexes.contains(name);
            let index = || read_all(disk, &dir.join(name.index_name())).filter(|_| has_index);
            let scanned = disk.open(&path).and_then(|file| match known {
                Some(segment) if complete => scan::rest(&*file, *name, segment.end),
                // If bytes behind the last record are none, they may yet become one, and are not searched.
                Some(segment) => scan::tail(&*file, *name, segment.end),
                None => scan::segment(&*file, *name, index),
            });
            match scanned {
                Ok(Scan { newer: Some(found), .. }) => {
                    return Err(Error::NewerFormat { path, found, supported: format::VERSION });
                }
                Ok(scan) => {
                    if scan.damaged_seal {
                        log::warn!("{}: its seal is damaged: its records are found by their headers", path.display());
                    }
                    self.extend(*name, scan, complete);
                }
                // The writer removed it since the directory was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if is_of_process(&error) => return Err(Error::io("read", &path)(error)),
                Err(error) => self.miss(*name, disk, &path, &error),
            }
        }
        Ok(())
    }

    /// Takes note that a segment, or what was appended to it, could not be read.
    fn miss(&mut self, name: SegmentName, disk: &dyn Disk, path: &Path, error: &io::Error) {
        if self.unreadable.insert(name) {
            log::warn!("{}: its records cannot be read, and are misses until they can: {error}", path.display());
        }
        let len = disk.open(path).and_then(|file| file.len()).unwrap_or_default();
        let segment = self.segments.entry(name).or_default();
        segment.unreadable = segment.entries.is_empty();
        segment.strays = true;
        segment.len = segment.len.max(len);
    }

    fn extend(&mut self, name: SegmentName, scan: Scan, complete: bool) {
        let segment = self.segments.entry(name).or_default();
        segment.strays = scan.strays || segment.strays && !segment.unreadable;
        segment.unreadable = false;
        segment.unsealed = !scan.sealed;
        segment.indexed |= scan.indexed;
        segment.complete = complete;
        segment.end = segment.end.max(scan.end);
        segment.len = segment.len.max(scan.len);
        for entry in scan.entries {
            self.insert(name, entry);
        }
    }

    /// A segment's file, opened if it is not open.
    ///
    /// # Errors
    /// `NotFound` too for a segment that is not known (any more).
    pub(crate) fn open(&mut self, name: SegmentName, disk: &dyn Disk, path: &Path) -> io::Result<OpenFile> {
        let readers = &self.segments.get(&name).ok_or(io::ErrorKind::NotFound)?.readers;
        let opened = |file, lend| OpenFile { reading: Readers::read(readers, file), lend };
        if let Some((_, file)) = self.open.iter().rev().find(|(open, _)| *open == name) {
            return Ok(opened(file.clone(), true));
        }
        let file: Arc<dyn DiskFile> = Arc::from(disk.open(path)?);
        if self.open.len() >= OPEN {
            // One that no chunk keeps open anyway.
            match self.open.iter().position(|(_, file)| Arc::strong_count(file) == 1) {
                Some(unused) => drop(self.open.remove(unused)),
                None => return Ok(opened(file, false)),
            }
        }
        self.open.push_back((name, file.clone()));
        Ok(opened(file, true))
    }

    /// Notes that the newest record of a chunk is this one. True if it replaced an older one.
    pub(crate) fn insert(&mut self, name: SegmentName, entry: Entry) -> bool {
        let segment = self.segments.entry(name).or_default();
        segment.entries.push(entry);
        segment.live += entry.bytes;
        segment.end = segment.end.max(entry.end());
        let older = self.chunks.insert(entry.id, Location { segment: name, entry });
        if let Some(older) = older {
            self.discount(&older);
            self.older.entry(entry.id).or_default().push(older);
        }
        older.is_some()
    }

    /// Goes back to the record before the one at `location`, which is damaged: the power may have been cut while a chunk
    /// was written anew. False if the chunk's location is by now another.
    pub(crate) fn fall_back(&mut self, location: &Location) -> bool {
        let id = location.entry.id;
        if self.chunks.get(&id) != Some(location) {
            return false;
        }
        self.chunks.remove(&id);
        self.discount(location);
        #[cfg(test)]
        if planted::is(Planted::NoOlderRecord) {
            return true;
        }
        self.revive(id, Some(location));
        true
    }

    /// Counts a record of a segment that was found damaged, and says how many there are now.
    pub(crate) fn count_lost(&mut self, name: SegmentName) -> u64 {
        self.segments.get_mut(&name).map_or(1, |segment| {
            segment.lost += 1;
            segment.lost
        })
    }

    /// Has the newest record of a chunk that none of counts now count: of those before the one at `before`, or of all.
    fn revive(&mut self, id: ChunkId, before: Option<&Location>) {
        let place = |location: &Location| (location.segment, location.entry.offset);
        let Some(records) = self.older.get_mut(&id) else { return };
        let left = records.iter().enumerate().filter(|(_, record)| before.is_none_or(|at| place(record) < place(at)));
        let Some(at) = left.max_by_key(|(_, record)| place(record)).map(|(at, _)| at) else { return };
        let newest = records.swap_remove(at);
        if records.is_empty() {
            self.older.remove(&id);
        }
        if let Some(segment) = self.segments.get_mut(&newest.segment) {
            segment.live += newest.entry.bytes;
        }
        self.chunks.insert(id, newest);
    }

    /// Forgets a chunk. Its records stay in the files, and in [`Segment::entries`].
    pub(crate) fn remove(&mut self, id: &ChunkId) {
        if let Some(location) = self.chunks.remove(id) {
            self.discount(&location);
            self.older.entry(*id).or_default().push(location);
        }
    }

    /// As [`remove`](Self::remove), of a chunk that is deleted: none of its records comes to count any more.
    pub(crate) fn delete(&mut self, id: &ChunkId) {
        self.remove(id);
        self.older.remove(id);
    }

    /// Forgets a segment and the chunks in it. Says who still reads from its file.
    pub(crate) fn remove_segment(&mut self, name: SegmentName) -> Arc<Readers> {
        self.open.retain(|(open, _)| *open != name);
        let Segment { entries, readers, .. } = self.segments.remove(&name).unwrap_or_default();
        for entry in entries {
            if self.chunks.get(&entry.id) == Some(&Location { segment: name, entry }) {
                self.chunks.remove(&entry.id);
            }
            if let Some(records) = self.older.get_mut(&entry.id) {
                records.retain(|record| record.segment != name);
                if records.is_empty() {
                    self.older.remove(&entry.id);
                }
            }
        }
        readers
    }

    /// Forgets segments that another process removed. Of a chunk whose newest record was in one of them, an older one
    /// counts that is here still: the other process knew the newest one to be damaged.
    pub(crate) fn lose_segments(&mut self, gone: &[SegmentName]) {
        let entries = gone.iter().filter_map(|name| self.segments.get(name)).flat_map(|segment| &segment.entries);
        let chunks: HashSet<ChunkId> = entries.map(|entry| entry.id).collect();
        gone.iter().for_each(|name| _ = self.remove_segment(*name));
        for id in chunks {
            if !self.chunks.contains_key(&id) {
                self.revive(id, None);
            }
        }
    }

    /// The chunks that a segment has records of and that were not forgotten, whichever of their records counts.
    pub(crate) fn chunks_in(&self, name: SegmentName) -> Vec<ChunkId> {
        let entries = self.segments.get(&name).into_iter().flat_map(|segment| &segment.entries);
        entries.map(|entry| entry.id).filter(|id| self.chunks.contains_key(id)).collect()
    }

    /// See [`Segment::unsealed`].
    pub(crate) fn is_unsealed(&self, name: SegmentName) -> bool {
        #[cfg(test)]
        if planted::is(Planted::UnsealedTrusted) {
            return false;
        }
        self.segments.get(&name).is_some_and(|segment| segment.unsealed)
    }

    /// Bytes of all segments up to their last records.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.end).sum()
    }

    fn discount(&mut self, location: &Location) {
        if let Some(segment) = self.segments.get_mut(&location.segment) {
            segment.live -= location.entry.bytes;
        }
    }
}

/// Whether a file could not be read for a reason that lies in this process, and says nothing about the file: it has too
/// many open, no memory, or not the rights.
pub(crate) fn is_of_process(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let number = Errno::from_io_error(error);
    number.is_some_and(|number| {
        matches!(number, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::ACCESS | Errno::PERM)
    })
}

/// The bytes of a small file that is a hint: `None` if it cannot be read.
fn read_all(disk: &dyn Disk, path: &Path) -> Option<Vec<u8>> {
    let file = disk.open(path).ok()?;
    // Of a segment whose records take a page at least, and which has some hundred megabytes.
    let len = usize::try_from(file.len().ok()?).ok().filter(|len| *len <= 64 << 20)?;
    let mut bytes = vec![0; len];
    (file.read_at(&mut bytes, 0).ok()? == len).then_some(bytes)
}
