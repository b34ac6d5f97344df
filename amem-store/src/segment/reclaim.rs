//! Giving space back, and making sure that what was deleted is gone.
//!
//! A segment is never changed in place, for chunks that were handed out lie in its mapping. So bytes go with their file:
//! what still counts is written anew to the active segment, made durable, and then the file is unlinked. There is no
//! tombstone to be lost: a delete has happened when the files that held the chunk are gone, and that is synced.

use std::collections::HashSet;

use amem_core::ChunkId;

use super::SegmentName;
use super::index::{Location, Segment};
use super::store::Inner;
use super::writer::Writer;
use crate::{Error, Result};

/// This many segments that hold little are worth being merged.
const MANY: usize = 16;
/// A segment holds little when its live records take less than this part of a whole one.
const LITTLE: u64 = 16;

/// What happens to live records that there is no room to write anew.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    /// They stay where they are, and so does their segment.
    Keep,
    /// They go with their segment: they are a cache, and a deletion is a promise.
    Drop,
}

impl Inner {
    /// Removes chunks and the files that held them.
    pub(crate) fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let mut role = self.role();
        let writer = self.writer(&mut role)?;
        let ids = ids.iter().copied().collect::<HashSet<_>>();
        let affected = {
            let mut index = self.index();
            ids.iter().for_each(|id| index.remove(id));
            let affected = index
                .segments
                .iter()
                .filter(|(_, segment)| segment.strays || segment.entries.iter().any(|entry| ids.contains(&entry.id)));
            affected.map(|(name, _)| *name).collect::<Vec<_>>()
        };
        for name in &affected {
            self.rewrite(writer, *name, WhenFull::Drop)?;
        }
        // Also where nothing had to be removed: an eviction may have removed the file, in this process or in an earlier
        // one, and it must not come back.
        writer.sync_dir()
    }

    /// Forgets chunks. Their space comes back once half of a segment is dead; until then their bytes stay where they
    /// are, and a store that is opened anew finds them again.
    pub(crate) fn evict(&self, ids: &[ChunkId]) -> Result<()> {
        let mut role = self.role();
        let writer = self.writer(&mut role)?;
        ids.iter().for_each(|id| self.index().remove(id));
        self.reclaim(writer)
    }

    /// Gives back the space of records that newer ones replaced, and merges what many short-lived processes left.
    pub(crate) fn reclaim(&self, writer: &mut Writer) -> Result<()> {
        let (worn, little): (Vec<_>, Vec<_>) = {
            let index = self.index();
            let done = index.segments.iter().filter(|(name, _)| writer.active() != Some(**name));
            let worn = done.clone().filter(|(_, segment)| segment.live * 2 < segment.end);
            let little = done.filter(|(_, segment)| segment.live < self.options.segment_bytes / LITTLE);
            let named = |(name, segment): (&SegmentName, &Segment)| (segment.live, *name);
            (worn.map(named).collect(), little.map(named).collect())
        };
        let mut spent: Vec<(u64, SegmentName)> = if little.len() < MANY { worn } else { little };
        // Those that hold least first: on a full disk, what holds nothing makes room for the others.
        spent.sort_unstable();
        for (_, name) in spent {
            match self.rewrite(writer, name, WhenFull::Keep) {
                Err(Error::Full { .. }) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Writes a segment's live records anew and removes it.
    fn rewrite(&self, writer: &mut Writer, name: SegmentName, when_full: WhenFull) -> Result<()> {
        if writer.active() == Some(name) {
            writer.retire();
        }
        let chunks = self.index().chunks_in(name);
        for id in &chunks {
            match self.secure(writer, id, name) {
                Err(Error::Full { .. }) if when_full == WhenFull::Drop => break,
                secured => secured?,
            }
        }
        if !chunks.is_empty() {
            writer.sync_records(Some(name))?;
        }
        writer.unlink(name)?;
        self.index().remove_segment(name);
        Ok(())
    }

    /// Sees to it that the next sync makes a chunk survive a power cut, without its records in the segment `without`.
    fn secure(&self, writer: &mut Writer, id: &ChunkId, without: SegmentName) -> Result<()> {
        loop {
            let location = self.index().chunks.get(id).copied();
            let copied = |at: &Location| at.segment == without || self.index().is_unsealed(at.segment);
            let Some(location) = location.filter(copied) else { return Ok(()) };
            // Where a record is damaged, an older one may be whole. Without one a cache may lose the chunk.
            let Some(chunk) = self.read(&location)? else { continue };
            let (segment, entry) = writer.append(&chunk)?;
            self.index().insert(segment, entry);
            return Ok(());
        }
    }
}
