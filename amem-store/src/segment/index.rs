//! Where every chunk lies: what a store knows in memory, and can always learn again from its segments.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use amem_core::ChunkId;

use super::format::{self, Entry, SegmentName};
#[cfg(test)]
use super::planted::{self, Planted};
use super::scan::{self, Scan};
use crate::disk::Disk;
use crate::map::Map;
use crate::{Error, Result};

/// The location of a chunk's newest record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: SegmentName,
    pub(crate) entry: Entry,
}

/// One segment file.
#[derive(Default)]
pub(crate) struct Segment {
    /// All its records, those included that no chunk's location points to any more: their bytes are still in the file.
    pub(crate) entries: Vec<Entry>,
    /// Where the last of them ends.
    pub(crate) end: u64,
    /// Bytes of the records that chunks' locations point to.
    pub(crate) live: u64,
    /// See [`Scan::strays`].
    pub(crate) strays: bool,
    /// Whether it was found without a seal. Its records may be torn by a power cut. They may even look whole and not be on
    /// the disk, if a sync of theirs failed: a later sync would not say so. So that one is here is no reason not to write
    /// a chunk, or to remove another record of it.
    pub(crate) unsealed: bool,
    /// Whether nothing more will be appended to it: a later segment was there when it was scanned.
    complete: bool,
    /// Made at the first read, and again when a record beyond it is read.
    map: Option<Arc<Map>>,
}

impl Segment {
    /// A mapping of the segment up to its end, or up to the file's where that comes first.
    pub(crate) fn map(&mut self, disk: &dyn Disk, path: &Path) -> io::Result<Arc<Map>> {
        match &self.map {
            Some(map) if map.bytes().len() as u64 >= self.end => Ok(map.clone()),
            _ => Ok(self.map.insert(Arc::new(disk.open(path)?.map(self.end)?)).clone()),
        }
    }
}

/// All chunks and segments of a store.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) chunks: BTreeMap<ChunkId, Location>,
    pub(crate) segments: BTreeMap<SegmentName, Segment>,
}

impl Index {
    /// Takes in what changed in the directory since the last time; the first time, that is everything.
    pub(crate) fn refresh(&mut self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let names = segment_names(disk, dir)?;
        let gone = self.segments.keys().filter(|name| !names.contains(name)).copied().collect::<Vec<_>>();
        gone.into_iter().for_each(|name| self.remove_segment(name));
        let last = names.last();
        // In order, so that the newest record of a chunk is the last to be seen.
        for name in &names {
            let known = self.segments.get(name);
            if known.is_some_and(|segment| segment.complete) {
                continue;
            }
            let path = dir.join(name.file_name());
            let scanned = disk.open(&path).and_then(|file| match known {
                Some(segment) => scan::records(&*file, *name, segment.end),
                None => scan::segment(&*file, *name),
            });
            match scanned {
                Ok(Scan { newer: Some(found), .. }) => {
                    return Err(Error::NewerFormat { path, found, supported: format::VERSION });
                }
                Ok(scan) => self.extend(*name, scan, Some(name) != last),
                // The writer removed it since the directory was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", &path)(error)),
            }
        }
        Ok(())
    }

    fn extend(&mut self, name: SegmentName, scan: Scan, complete: bool) {
        let segment = self.segments.entry(name).or_default();
        segment.strays |= scan.strays;
        segment.unsealed = !scan.sealed;
        segment.complete = complete;
        segment.end = segment.end.max(scan.end);
        for entry in scan.entries {
            self.insert(name, entry);
        }
    }

    /// Notes that the newest record of a chunk is this one. True if it replaced an older one.
    pub(crate) fn insert(&mut self, name: SegmentName, entry: Entry) -> bool {
        let segment = self.segments.entry(name).or_default();
        segment.entries.push(entry);
        segment.live += entry.bytes;
        segment.end = segment.end.max(entry.end());
        let older = self.chunks.insert(entry.id, Location { segment: name, entry });
        if let Some(older) = &older {
            self.discount(older);
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
        self.remove(&id);
        if let Some(older) = self.older(location) {
            self.chunks.insert(id, older);
            if let Some(segment) = self.segments.get_mut(&older.segment) {
                segment.live += older.entry.bytes;
            }
        }
        true
    }

    /// The newest record of a chunk that is older than the one at `location`.
    fn older(&self, location: &Location) -> Option<Location> {
        #[cfg(test)]
        if planted::is(Planted::NoOlderRecord) {
            return None;
        }
        let place = |location: &Location| (location.segment, location.entry.offset);
        let segments = self.segments.range(..=location.segment).rev();
        let entries = segments.flat_map(|(name, segment)| segment.entries.iter().rev().map(|entry| (*name, *entry)));
        let mut records = entries.filter(|(_, entry)| entry.id == location.entry.id);
        let older = records.find(|(segment, entry)| (*segment, entry.offset) < place(location));
        older.map(|(segment, entry)| Location { segment, entry })
    }

    /// Forgets a chunk. Its records stay in the files, and in [`Segment::entries`].
    pub(crate) fn remove(&mut self, id: &ChunkId) {
        if let Some(location) = self.chunks.remove(id) {
            self.discount(&location);
        }
    }

    /// Forgets a segment and the chunks in it.
    pub(crate) fn remove_segment(&mut self, name: SegmentName) {
        for entry in self.segments.remove(&name).into_iter().flat_map(|segment| segment.entries) {
            if self.chunks.get(&entry.id) == Some(&Location { segment: name, entry }) {
                self.chunks.remove(&entry.id);
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

/// The segments whose files are in a directory. Files of other names are none of ours.
fn segment_names(disk: &dyn Disk, dir: &Path) -> Result<BTreeSet<SegmentName>> {
    let files = disk.list(dir).map_err(Error::io("list", dir))?;
    Ok(files.iter().filter_map(|file| file.to_str().and_then(SegmentName::parse)).collect())
}
