//! [`SegmentStore`]: the parts put together, and who may write.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use amem_core::{ChunkId, KvChunk, KvStore, StoreStats, StoredChunk};
use async_trait::async_trait;
use blocking::unblock;

use super::format::{Entry, SegmentIndex};
use super::index::{Index, Location, OpenFile, Segment};
use super::read::{self, Check, SMALL};
use super::writer::{Found, Writer};
use crate::disk::{Disk, Part, SystemDisk, make_dirs};
#[cfg(test)]
use crate::planted::{self, Planted};
use crate::{Error, Result};

/// The name of the file that the process which writes has locked.
pub(crate) const LOCK: &str = "LOCK";

/// How a [`SegmentStore`] keeps its files.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SegmentOptions {
    /// Bytes after which a segment is complete and the next one begun, 16 MiB unless said otherwise. A chunk that is larger has
    /// one to itself.
    /// A deletion writes the rest of a segment anew, so larger segments make fewer files and dearer deletions.
    pub segment_bytes: u64,
    /// Bytes that all files in the directory together have at most, whatever is in them: seals, records that were replaced
    /// and chunks that were evicted included. It holds after every call of the one that writes, and while it runs, too. No
    /// limit unless said otherwise.
    ///
    /// Where a put needs room, what nobody reads any more goes first, and then the segments that were written longest ago,
    /// whole: their chunks are misses from then on. A [`Tiered`](amem_core::Tiered) above, whose policy knows what is worth
    /// keeping, should have a budget that is so much smaller that this limit is never reached: by half, say.
    ///
    /// Segments have at most an eighth of it, and puts leave room for one, which a deletion writes anew. A chunk that is
    /// larger than what is left is [`Full`](Error::Full).
    pub max_bytes: u64,
    /// Never write, even if nobody else does.
    pub read_only: bool,
}

impl Default for SegmentOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, max_bytes: u64::MAX, read_only: false }
    }
}

impl SegmentOptions {
    /// With segments of about so many bytes.
    #[must_use]
    pub fn segment_bytes(self, bytes: u64) -> Self {
        Self { segment_bytes: bytes, ..self }
    }

    /// With files of at most so many bytes together.
    #[must_use]
    pub fn max_bytes(self, bytes: u64) -> Self {
        Self { max_bytes: bytes, ..self }
    }

    /// Without writing, even if nobody else does.
    #[must_use]
    pub fn read_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }
}

/// A [`KvStore`] in a directory of append-only segment files.
///
/// - A chunk that was put survives the process being killed; [`sync`](KvStore::sync) makes it survive a power cut.
/// - Nothing is given that does not fit its checksum. Small chunks are checked as a whole when they are handed out, and so
///   are those that a process left behind which was killed. Of other large ones the header is checked then, and the
///   system reads ahead; the KV stays in the file, and each layer is read and checked when it is asked for. Deleting the
///   chunk does not change that.
/// - What is damaged is a miss, counted in [`StoreStats::damaged`], and can be put again. A layer that does not fit its
///   checksum is [`DamagedKv`](amem_core::Error::DamagedKv), and its chunk is a miss from then on. One that the disk cannot
///   read is the same error, and may be read later.
/// - One process writes. Others that open the directory read, see what the writer puts, and take over when it ends. While
///   a store is open, no other program may write to its segments.
/// - A deletion removes the files that held the chunk and writes what else was in them anew, so delete many at once.
/// - On a full disk, puts fail and deletions work. Evicting then makes room, if need be at the price of other chunks. It
///   waits for whoever reads from a removed file at that moment, so the room is there for the next put; unless chunks that
///   were handed out, or another process, have the file open: then it comes when they are done.
///
/// Cloning it gives another handle to the same store.
#[derive(Clone)]
pub struct SegmentStore(Arc<Inner>);

pub(crate) struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    pub(crate) options: SegmentOptions,
    /// Locked before `index` where both are.
    role: Mutex<Role>,
    held: Arc<Held>,
    writes: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What a store holds. Chunks that were handed out know of it, to tell what turns out to be damaged.
#[derive(Default)]
pub(crate) struct Held {
    index: Mutex<Index>,
    damaged: AtomicU64,
}

impl Held {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` while somebody else has it.
    fn try_index(&self) -> Option<MutexGuard<'_, Index>> {
        match self.index.try_lock() {
            Ok(index) => Some(index),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Takes note that the record at a location is not what was written. An older record of the chunk counts then, or, if
    /// there is none, the chunk can be put again.
    ///
    /// The first of a segment is told in the log, and then each time that there are twice as many.
    pub(crate) fn lose(&self, location: &Location, reason: &str) {
        let lost = {
            let mut index = self.index();
            index.fall_back(location).then(|| index.count_lost(location.segment))
        };
        let Some(lost) = lost else { return };
        self.damaged.fetch_add(1, Relaxed);
        if lost.is_power_of_two() {
            let (file, Entry { id, offset, .. }) = (location.segment.file_name(), location.entry);
            log::warn!("{file}: chunk {id} at byte {offset} is damaged, one of {lost} found in this file: {reason}");
        }
    }
}

/// What this process may do to the directory.
pub(crate) enum Role {
    Reader,
    Writer(Box<Writer>),
}

impl SegmentStore {
    /// Opens the store in `dir`, which is made (for its owner only) if it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or holds segments of a later format. Damaged files are no error, nor are
    /// those that the disk does not read.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, SegmentOptions::default())
    }

    /// Opens the store in `dir` with these options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(dir: impl AsRef<Path>, options: SegmentOptions) -> Result<Self> {
        Ok(Self(Arc::new(Inner::open(Arc::new(SystemDisk), dir.as_ref(), options)?)))
    }

    /// Removes the bytes of everything that does not count any more: of chunks that were evicted, of records that newer
    /// ones replaced. They cannot be read from the files once this returns, and are not found again after the store is
    /// reopened. Without it they stay until their room is needed.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] when another process writes to the directory; when something cannot be written or removed.
    /// Purging again finishes the work.
    pub async fn purge(&self) -> Result<()> {
        let inner = self.0.clone();
        unblock(move || inner.purge()).await
    }

    /// Bytes that the files have at most: [`SegmentOptions::max_bytes`].
    pub fn max_bytes(&self) -> u64 {
        self.0.options.max_bytes
    }

    /// Whether this process is the one that writes to the directory.
    pub fn is_writer(&self) -> bool {
        self.0.writes.load(Relaxed)
    }

    /// Looks into the index. Whoever else has it may be reading a whole directory, and is waited for on another thread than
    /// the caller's, which may be an executor's.
    async fn look<T: Send + 'static>(&self, look: impl FnOnce(&Index) -> T + Send + 'static) -> T {
        if let Some(index) = self.0.held.try_index() {
            return look(&index);
        }
        let inner = self.0.clone();
        unblock(move || look(&inner.index())).await
    }
}

impl fmt::Debug for SegmentStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentStore({})", self.0.dir.display())
    }
}

impl Inner {
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, options: SegmentOptions) -> Result<Self> {
        if !options.read_only {
            make_dirs(&*disk, dir).map_err(Error::io("make the directory", dir))?;
        }
        let inner = Inner {
            disk,
            dir: dir.to_owned(),
            options,
            role: Mutex::new(Role::Reader),
            held: Arc::default(),
            writes: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        };
        match inner.writer(&mut inner.role()) {
            // Whoever may not write yet can read, and tries again at the next write.
            Err(Error::ReadOnly { .. }) => inner.index().refresh(&*inner.disk, &inner.dir)?,
            // Tidying up failed. What is there can be read.
            Err(Error::Poisoned { .. }) => {}
            opened => _ = opened?,
        }
        Ok(inner)
    }

    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        self.held.index()
    }

    /// Chunks found damaged, and those given up because they could not be read.
    pub(crate) fn damaged(&self) -> u64 {
        self.held.damaged.load(Relaxed)
    }

    /// Counts chunks that were given up because they could not be read.
    pub(crate) fn count_dropped(&self, chunks: u64) {
        self.held.damaged.fetch_add(chunks, Relaxed);
    }

    pub(crate) fn role(&self) -> MutexGuard<'_, Role> {
        self.role.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to write, taken now if it is free.
    pub(crate) fn writer<'a>(&self, role: &'a mut Role) -> Result<&'a mut Writer> {
        if let Role::Reader = role {
            let lock = self.lock()?;
            // The last writer may have left a record cut short, which only now is known to stay so.
            let mut index = Index::default();
            index.unreadable.clone_from(&self.index().unreadable);
            index.was_read = self.index().was_read;
            index.refresh(&*self.disk, &self.dir)?;
            let generation = index.segments.last_key_value().map_or(0, |(name, _)| name.generation);
            let of_all = |found: fn(&Segment) -> bool| {
                let found = index.segments.iter().filter(move |(_, segment)| found(segment));
                found.map(|(name, segment)| (*name, segment.len)).collect::<BTreeMap<_, _>>()
            };
            let unsealed = of_all(|segment| segment.unsealed).into_keys().collect();
            let found = Found { generation, unsealed, sizes: of_all(|_| true), indexes: index.indexes.clone() };
            *self.index() = index;
            let mut writer = Writer::new(self.disk.clone(), &self.dir, lock, &self.options, found);
            // A chance to tidy up. What fails here will fail, and be told, where it matters.
            let _ = self.reclaim(&mut writer);
            let _ = self.keep_limit(&mut writer);
            self.write_indexes(&mut writer);
            #[cfg(test)]
            if planted::is(Planted::TailReused) {
                let index = self.index();
                let tail = index.segments.last_key_value().filter(|(_, segment)| segment.unsealed);
                tail.into_iter().for_each(|(name, tail)| writer.go_on(*name, &tail.entries, tail.end));
            }
            *role = Role::Writer(Box::new(writer));
            self.writes.store(true, Relaxed);
        }
        match role {
            Role::Writer(writer) => writer.check().map(|()| &mut **writer),
            Role::Reader => Err(self.read_only("it is open for reading")),
        }
    }

    fn lock(&self) -> Result<Box<dyn Send + Sync>> {
        if self.options.read_only {
            return Err(self.read_only("it was opened so"));
        }
        let path = self.dir.join(LOCK);
        self.disk.lock(&path).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => self.read_only("another process writes to it"),
            _ => Error::writing(&path)(error),
        })
    }

    fn read_only(&self, reason: &str) -> Error {
        Error::ReadOnly { path: self.dir.clone(), reason: reason.to_owned() }
    }

    /// Lists the records of segments without a seal in index files, where there are none yet.
    fn write_indexes(&self, writer: &mut Writer) {
        let index = self.index();
        let walked = index.segments.iter().filter(|(_, segment)| segment.unsealed && !segment.indexed);
        for (name, Segment { entries, end, len, strays, .. }) in walked {
            let listed = SegmentIndex { end: *end, len: *len, strays: *strays, entries: entries.clone() };
            writer.write_index(*name, &listed);
        }
    }

    pub(crate) fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let mut found = vec![None; ids.len()];
        let mut failure = self.look_up(ids, &mut found).err();
        if found.iter().any(Option::is_none) && !self.writes.load(Relaxed) {
            // The writer may have put them, or moved them, since this reader last looked.
            let refreshed = self.refresh();
            failure = self.look_up(ids, &mut found).err().or(refreshed.err()).or(failure);
        }
        let hits = found.iter().flatten().count();
        self.hits.fetch_add(hits as u64, Relaxed);
        self.misses.fetch_add((ids.len() - hits) as u64, Relaxed);
        match failure {
            Some(error) if hits == 0 => Err(error),
            _ => Ok(found),
        }
    }

    /// Takes in what the writer changed, unless this process is the writer by now: it knows more than its files tell.
    fn refresh(&self) -> Result<()> {
        let mut index = self.index();
        if self.writes.load(Relaxed) { Ok(()) } else { index.refresh(&*self.disk, &self.dir) }
    }

    /// Has the system read ahead what these chunks occupy. Whatever fails here is told by who reads them.
    pub(super) fn prefetch(&self, ids: &[ChunkId]) {
        let locations: Vec<Location> = {
            let index = self.index();
            ids.iter().filter_map(|id| index.chunks.get(id).copied()).collect()
        };
        self.read_ahead(locations.iter());
    }

    fn read_ahead<'l>(&self, locations: impl Iterator<Item = &'l Location>) {
        let part = |location: &Location| {
            let path = self.dir.join(location.segment.file_name());
            let open = self.index().open(location.segment, &*self.disk, &path).ok()?;
            Some(Part { file: open.reading.later(), offset: location.entry.offset, len: location.entry.bytes })
        };
        let parts: Vec<Part> = locations.filter_map(part).collect();
        if !parts.is_empty() {
            self.disk.read_ahead(parts);
        }
    }

    /// The chunks of these ids that are not found yet. They are read in the order in which they lie on the disk, and those
    /// that keep their KV in the file are read ahead. An error is that of the last that could not be read; the others are
    /// there.
    fn look_up(&self, ids: &[ChunkId], found: &mut [Option<KvChunk>]) -> Result<()> {
        let mut wanted: Vec<(Location, usize)> = {
            let index = self.index();
            let missing = ids.iter().enumerate().filter(|(at, _)| found[*at].is_none());
            missing.filter_map(|(at, id)| Some((*index.chunks.get(id)?, at))).collect()
        };
        wanted.sort_unstable_by_key(|(location, _)| (location.segment, location.entry.offset));
        self.read_ahead(wanted.iter().map(|(location, _)| location).filter(|location| location.entry.bytes > SMALL));
        let mut buffer = Vec::new();
        let mut result = Ok(());
        for (location, place) in &wanted {
            match self.look_up_one(location, Check::Layers, &mut buffer) {
                Ok(chunk) => found[*place] = chunk,
                Err(error) => result = Err(error),
            }
        }
        result
    }

    fn look_up_one(&self, first: &Location, check: Check, buffer: &mut Vec<u8>) -> Result<Option<KvChunk>> {
        // More than once only if the record is damaged, or if a deletion of its neighbours moved the chunk meanwhile: a
        // location that was read in vain is in the index no more.
        let mut location = *first;
        loop {
            if let Some(chunk) = self.read(&location, check, buffer)? {
                return Ok(Some(chunk));
            }
            let Some(moved) = self.index().chunks.get(&first.entry.id).copied() else { return Ok(None) };
            location = moved;
        }
    }

    /// The chunk at a location. One that is not there as it should be gives way to an older record of the chunk, or, if
    /// there is none, is forgotten, so that it can be put again.
    pub(crate) fn read(&self, location: &Location, check: Check, buffer: &mut Vec<u8>) -> Result<Option<KvChunk>> {
        let path = self.dir.join(location.segment.file_name());
        // An open file outlives its name, but what the writer deleted is not to be found here either.
        let gone = !self.writes.load(Relaxed) && matches!(self.disk.exists(&path), Ok(false));
        let (open, check) = {
            let mut index = self.index();
            // A power cut may have torn it, and left an older record whole.
            let check = if index.is_unsealed(location.segment) { Check::Whole } else { check };
            match gone {
                false => (index.open(location.segment, &*self.disk, &path), check),
                true => (Err(ErrorKind::NotFound.into()), check),
            }
        };
        match open {
            Ok(OpenFile { reading, lend }) => {
                let lender = lend.then(|| Arc::downgrade(&self.held));
                let chunk = read::chunk(location, &reading.file, check, lender, buffer);
                drop(reading);
                // A disk that cannot read it now may do so later: it is not forgotten.
                let chunk = chunk.map_err(Error::io("read", &path))?;
                Ok(chunk.map_err(|reason| self.held.lose(location, reason)).ok())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.index().lose_segments(&[location.segment]);
                Ok(None)
            }
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }

    pub(crate) fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        let mut role = self.role();
        let writer = self.writer(&mut role)?;
        let mut replaced = false;
        for chunk in chunks {
            let suffices = |measured: bool| measured || chunk.sensitivity().is_none();
            let held = self.index().chunks.get(&chunk.id()).copied();
            let copy = match held {
                Some(held) if self.index().is_unsealed(held.segment) => {
                    self.look_up_one(&held, Check::Whole, &mut Vec::new())?
                }
                Some(held) if suffices(held.entry.measured) => continue,
                _ => None,
            };
            let copy = copy.filter(|held| suffices(held.sensitivity().is_some()));
            let (segment, entry) = self.append(writer, copy.as_ref().unwrap_or(chunk))?;
            replaced |= self.index().insert(segment, entry);
        }
        if replaced {
            // The chunks are kept whether or not tidying up works, and a failure of the disk shows at the next write.
            let _ = self.reclaim(writer);
        }
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<()> {
        match &mut *self.role() {
            Role::Writer(writer) => writer.sync(),
            Role::Reader => Ok(()),
        }
    }
}

#[async_trait]
impl KvStore for SegmentStore {
    async fn get_many(&self, ids: &[ChunkId]) -> amem_core::Result<Vec<Option<KvChunk>>> {
        let (inner, ids) = (self.0.clone(), ids.to_vec());
        Ok(unblock(move || inner.get_many(&ids)).await?)
    }

    async fn put(&self, chunks: &[KvChunk]) -> amem_core::Result<()> {
        let (inner, chunks) = (self.0.clone(), chunks.to_vec());
        Ok(unblock(move || inner.put(&chunks)).await?)
    }

    async fn delete(&self, ids: &[ChunkId]) -> amem_core::Result<()> {
        let (inner, ids) = (self.0.clone(), ids.to_vec());
        Ok(unblock(move || inner.delete(&ids)).await?)
    }

    async fn evict(&self, ids: &[ChunkId]) -> amem_core::Result<()> {
        let (inner, ids) = (self.0.clone(), ids.to_vec());
        Ok(unblock(move || inner.evict(&ids)).await?)
    }

    async fn give_up(&self, bytes: u64) -> amem_core::Result<u64> {
        let inner = self.0.clone();
        Ok(unblock(move || inner.give_up(bytes)).await?)
    }

    async fn purge(&self) -> amem_core::Result<()> {
        Ok(SegmentStore::purge(self).await?)
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        let ids = ids.to_vec();
        self.look(move |index| ids.iter().map(|id| index.chunks.contains_key(id)).collect()).await
    }

    async fn stats(&self) -> StoreStats {
        let count = |index: &Index| (index.chunks.len(), index.bytes(), index.unreadable.len() as u64);
        let (chunks, bytes, unreadable) = self.look(count).await;
        let [hits, misses] = [&self.0.hits, &self.0.misses].map(|count| count.load(Relaxed));
        StoreStats { chunks, bytes, hits, misses, damaged: self.0.damaged() + unreadable }
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> amem_core::Result<Vec<StoredChunk>> {
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let stored = |(id, location): (&ChunkId, &Location)| StoredChunk {
            id: *id,
            tokens: location.entry.tokens as usize,
            bytes: location.entry.bytes,
        };
        let page = move |index: &Index| index.chunks.range(behind).take(limit).map(stored).collect::<Vec<_>>();
        Ok(self.look(page).await)
    }

    fn prefetch(&self, ids: &[ChunkId]) {
        let (inner, ids) = (self.0.clone(), ids.to_vec());
        unblock(move || inner.prefetch(&ids)).detach();
    }

    async fn sync(&self) -> amem_core::Result<()> {
        let inner = self.0.clone();
        Ok(unblock(move || inner.sync()).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn who_asks_what_is_held_while_the_directory_is_read_is_not_kept_from_other_work() {
        let dir = tempfile::tempdir().unwrap();
        let store = SegmentStore::open(dir.path()).unwrap();
        let (asking, (tell, told)) = (store.clone(), mpsc::channel());
        // As a reader has it that takes in what the writer has changed.
        let index = store.0.index();
        thread::scope(|scope| {
            let asked = scope.spawn(move || {
                let id = [ChunkId([1; 32])];
                let (mut contains, mut page, mut stats) =
                    (asking.contains_many(&id), asking.page(None, 9), asking.stats());
                let waits = [
                    block_on(poll_once(&mut contains)).is_none(),
                    block_on(poll_once(&mut page)).is_none(),
                    block_on(poll_once(&mut stats)).is_none(),
                ];
                tell.send(waits).unwrap();
                (block_on(contains), block_on(page).unwrap(), block_on(stats).chunks)
            });
            let waits = told.recv_timeout(Duration::from_secs(10));
            drop(index);
            assert_eq!(asked.join().unwrap(), (vec![false], Vec::new(), 0));
            assert_eq!(waits, Ok([true; 3]), "each is told that it has to wait");
        });
    }
}
