//! Giving space back, and making sure that what was deleted is gone.
//!
//! A segment is never changed in place, for chunks that were handed out are read from it. So bytes go with their file:
//! what still counts is written anew to the active segment, made durable, and then the file is unlinked. There is no
//! tombstone to be lost: a delete has happened when the files that held the chunk are gone, and that is synced.

use std::collections::HashSet;

use amem_core::{ChunkId, KvChunk};

use super::SegmentName;
use super::format::Entry;
use super::index::{Location, Segment, is_of_process};
use super::read::Check;
use super::store::Inner;
use super::writer::Writer;
#[cfg(test)]
use crate::planted::{self, Planted};
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
    /// They go with their segment, as do those that cannot be read: they are a cache, and a deletion is a promise.
    Drop,
}

/// Whether a record could not be had for a reason that lies in its file.
fn is_unreadable(error: &Error) -> bool {
    matches!(error, Error::Io { action: "open" | "read", source, .. } if !is_of_process(source))
}

impl Inner {
    /// Removes chunks and the files that held them.
    pub(crate) fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let mut role = self.role();
        let writer = self.writer(&mut role)?;
        let ids = ids.iter().copied().collect::<HashSet<_>>();
        let affected =
            |segment: &Segment| segment.strays || segment.entries.iter().any(|entry| ids.contains(&entry.id));
        // Whoever reads meanwhile and finds a file gone must not bring back what an older record says.
        ids.iter().for_each(|id| self.index().delete(id));
        self.rewrite_all(writer, affected)
    }

    /// Removes the bytes of everything that does not count any more: of evicted chunks, of records that newer ones replaced,
    /// and of those that were cut short.
    pub(crate) fn purge(&self) -> Result<()> {
        let mut role = self.role();
        let writer = self.writer(&mut role)?;
        #[cfg(test)]
        if planted::is(Planted::NothingPurged) {
            return Ok(());
        }
        self.rewrite_all(writer, Segment::has_dead)
    }

    /// Writes the live records of these segments anew, each once, and removes their files for good.
    fn rewrite_all(&self, writer: &mut Writer, affected: impl Fn(&Segment) -> bool) -> Result<()> {
        let affected: Vec<SegmentName> =
            self.index().segments.iter().filter(|(_, segment)| affected(segment)).map(|(name, _)| *name).collect();
        // What is written anew must not land in a segment that is written anew in its turn.
        if writer.active().is_some_and(|active| affected.contains(&active)) {
            writer.retire();
        }
        // A segment that cannot be removed keeps no other: what is in those is gone, though the call has failed.
        let mut failure = None;
        for name in &affected {
            failure = failure.or(self.rewrite(writer, *name, WhenFull::Drop).err());
        }
        // Also where nothing had to be removed: an eviction may have removed the file, in this process or in an earlier
        // one, and it must not come back.
        let synced = writer.sync_dir();
        failure.map_or(synced, Err)
    }

    /// Forgets chunks. Their space comes back once half of a segment is dead; until then their bytes stay where they
    /// are, and a store that is opened anew finds them again.
    pub(crate) fn evict(&self, ids: &[ChunkId]) -> Result<()> {
        let mut role = self.role();
        let writer = self.writer(&mut role)?;
        ids.iter().for_each(|id| self.index().remove(id));
        self.reclaim(writer)?;
        if writer.is_disk_full() {
            // There was no room to write anything anew, so nothing was removed.
            self.force_room(writer)?;
        }
        Ok(())
    }

    /// Removes a segment that has something dead in it, and with it those of its chunks that there is no room for elsewhere.
    /// False if there is none.
    fn force_room(&self, writer: &mut Writer) -> Result<bool> {
        let active = writer.active();
        let least = {
            let index = self.index();
            let dead = index.segments.iter().filter(|(name, segment)| Some(**name) != active && segment.has_dead());
            dead.min_by_key(|(name, segment)| (segment.live, **name)).map(|(name, _)| *name)
        };
        let Some(least) = least else { return Ok(false) };
        self.rewrite(writer, least, WhenFull::Drop).map(|()| true)
    }

    /// Writes a chunk. Where the files would have more bytes than they may, the oldest go until it fits.
    pub(crate) fn append(&self, writer: &mut Writer, chunk: &KvChunk) -> Result<(SegmentName, Entry)> {
        let could = writer.could_hold(chunk);
        loop {
            let appended = if could && writer.takes(chunk) { writer.append(chunk) } else { Err(writer.over_limit()) };
            match appended {
                Err(Error::Full { .. }) if could && self.make_room(writer)? => {}
                result => return result,
            }
        }
    }

    /// Lets as much go as has to for the files to have no more bytes than they may.
    pub(crate) fn keep_limit(&self, writer: &mut Writer) -> Result<()> {
        while writer.is_over_limit() && self.make_room(writer)? {}
        Ok(())
    }

    /// Removes a file. On a full disk that is one with something dead in it; where the limit was reached, one that can be
    /// written anew in less, or else the oldest. False if there is none.
    fn make_room(&self, writer: &mut Writer) -> Result<bool> {
        if writer.is_disk_full() {
            return self.force_room(writer);
        }
        let (active, room) = (writer.active(), writer.room());
        let (worn, oldest) = {
            let index = self.index();
            let done = || index.segments.iter().filter(|(name, _)| Some(**name) != active);
            let least =
                done().filter(|(_, segment)| !segment.unreadable).min_by_key(|(name, segment)| (segment.live, **name));
            let fits =
                |segment: &Segment| segment.live * 2 < segment.end && (segment.live == 0 || segment.live * 2 < room);
            let worn = least.filter(|(_, segment)| fits(segment)).map(|(name, _)| *name);
            (worn, done().next().map(|(name, _)| *name))
        };
        if let Some(worn) = worn {
            match self.rewrite(writer, worn, WhenFull::Keep) {
                Err(error) if matches!(error, Error::Full { .. }) || is_unreadable(&error) => {}
                result => return result.map(|()| true),
            }
        }
        let Some(oldest) = oldest.or(active) else { return Ok(false) };
        if active == Some(oldest) {
            writer.retire();
        }
        self.unlink(writer, oldest)?;
        Ok(true)
    }

    /// Removes files, those with the least in them first and then the oldest, until so many bytes are free or none is left.
    /// Says how many bytes that was.
    pub(crate) fn give_up(&self, bytes: u64) -> Result<u64> {
        let mut role = self.role();
        let writer = self.writer(&mut role)?;
        let mut freed = 0;
        while freed < bytes {
            let active = writer.active();
            let least = {
                let index = self.index();
                let worth = |(name, segment): (&SegmentName, &Segment)| {
                    let is_worn = segment.live * 2 < segment.end;
                    let bytes = if segment.unreadable { segment.len } else { segment.end };
                    (!is_worn, if is_worn { segment.live } else { 0 }, *name, bytes)
                };
                index.segments.iter().map(worth).min()
            };
            let Some((_, _, least, bytes)) = least else { break };
            if active == Some(least) {
                writer.retire();
            }
            self.unlink(writer, least)?;
            freed += bytes;
        }
        Ok(freed)
    }

    /// Gives back the space of records that newer ones replaced, and merges what many short-lived processes left.
    pub(crate) fn reclaim(&self, writer: &mut Writer) -> Result<()> {
        let (worn, little): (Vec<_>, Vec<_>) = {
            let index = self.index();
            // What cannot be read now may be later, and counts then.
            let readable = index.segments.iter().filter(|(_, segment)| !segment.unreadable);
            let done = readable.filter(|(name, _)| writer.active() != Some(**name));
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
                // It stays. What cannot be read now may be read later.
                Err(error) if matches!(error, Error::Full { .. }) || is_unreadable(&error) => {}
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
        #[cfg(test)]
        if planted::is(Planted::RemovedFirst) {
            writer.unlink(name)?;
        }
        let mut unreadable: Option<(u64, Error)> = None;
        for id in &chunks {
            match self.secure(writer, id, name) {
                Err(Error::Full { .. }) if when_full == WhenFull::Drop => break,
                // It cannot be read, and a bad disk must not keep what was deleted.
                Err(error) if when_full == WhenFull::Drop && is_unreadable(&error) => {
                    unreadable = Some((unreadable.map_or(1, |(count, _)| count + 1), error));
                }
                secured => secured?,
            }
        }
        if let Some((count, error)) = unreadable {
            self.count_dropped(count);
            log::warn!(
                "{}: {count} chunks that cannot be read are dropped, for others in this file are deleted: {error}",
                name.file_name()
            );
        }
        if !chunks.is_empty() {
            writer.sync_records(Some(name))?;
        }
        self.unlink(writer, name)
    }

    /// Removes a segment's file, which must not be the active one, and waits until its room is free, as far as that is up
    /// to this store.
    fn unlink(&self, writer: &mut Writer, name: SegmentName) -> Result<()> {
        writer.unlink(name)?;
        let readers = self.index().remove_segment(name);
        readers.wait();
        Ok(())
    }

    /// Sees to it that the next sync makes a chunk survive a power cut, without its records in the segment `without`.
    fn secure(&self, writer: &mut Writer, id: &ChunkId, without: SegmentName) -> Result<()> {
        loop {
            let location = self.index().chunks.get(id).copied();
            let copied = |at: &Location| at.segment == without || self.index().is_unsealed(at.segment);
            let Some(location) = location.filter(copied) else { return Ok(()) };
            // Where a record is damaged, an older one may be whole. Without one a cache may lose the chunk.
            let Some(chunk) = self.read(&location, Check::Whole, &mut Vec::new())? else { continue };
            let (segment, entry) = writer.append(&chunk)?;
            self.index().insert(segment, entry);
            return Ok(());
        }
    }
}
