//! [`SegmentStore`]: the parts put together, and who may write.

use std::fmt;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use amem_core::{ChunkId, KvChunk, KvStore, StoreStats, StoredChunk};
use async_trait::async_trait;
use blocking::unblock;

use super::index::{Index, Location};
use super::read;
use super::writer::Writer;
use crate::disk::{Disk, SystemDisk, make_dirs};
use crate::{Error, Result};

/// How a [`SegmentStore`] keeps its files.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SegmentOptions {
    /// Bytes after which a segment is complete and the next one begun. A chunk that is larger has one to itself.
    /// A deletion writes the rest of a segment anew, so larger segments make fewer files and dearer deletions.
    pub segment_bytes: u64,
    /// Never write, even if nobody else does.
    pub read_only: bool,
}

impl Default for SegmentOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, read_only: false }
    }
}

impl SegmentOptions {
    /// With segments of about so many bytes.
    #[must_use]
    pub fn segment_bytes(self, bytes: u64) -> Self {
        Self { segment_bytes: bytes, ..self }
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
/// - A read copies nothing: a chunk's KV is the mapped file, checked against its checksums each time it is handed out.
/// - What is damaged is a miss, counted in [`StoreStats::damaged`], and can be put again.
/// - One process writes. Others that open the directory read, see what the writer puts, and take over when it ends.
/// - While a store is open, no other program may write to its segments or truncate them. A chunk that was handed out is a
///   mapped file: where the system has dropped a page of it and cannot read it again, since the file was truncated or the
///   disk fails, touching it ends the process with the signal `SIGBUS`, and nothing here can prevent that. What was
///   truncated before it is asked for is a miss.
/// - A deletion removes the files that held the chunk and writes what else was in them anew, so delete many at once.
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
    index: Mutex<Index>,
    writes: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
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
    /// When the directory cannot be made or read, or holds segments of a later format. Damaged files are no error.
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

    /// Whether this process is the one that writes to the directory.
    pub fn is_writer(&self) -> bool {
        self.0.writes.load(Relaxed)
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
            index: Mutex::default(),
            writes: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
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
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
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
            index.refresh(&*self.disk, &self.dir)?;
            let last = index.segments.last_key_value().map_or(0, |(name, _)| name.generation);
            let unsealed = index.segments.iter().filter(|(_, segment)| segment.unsealed);
            let inherited = unsealed.map(|(name, _)| *name).collect();
            *self.index() = index;
            let mut writer =
                Writer::new(self.disk.clone(), &self.dir, lock, self.options.segment_bytes, last, inherited);
            // A chance to tidy up. What fails here will fail, and be told, where it matters.
            let _ = self.reclaim(&mut writer);
            *role = Role::Writer(Box::new(writer));
            self.writes.store(true, Relaxed);
        }
        match role {
            Role::Writer(writer) => writer.check().map(|()| &mut **writer),
            Role::Reader => Err(self.read_only("it is open for reading")),
        }
    }

    fn lock(&self) -> Result<Box<dyn Send>> {
        if self.options.read_only {
            return Err(self.read_only("it was opened so"));
        }
        let path = self.dir.join("LOCK");
        self.disk.lock(&path).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => self.read_only("another process writes to it"),
            _ => Error::writing(&path)(error),
        })
    }

    fn read_only(&self, reason: &str) -> Error {
        Error::ReadOnly { path: self.dir.clone(), reason: reason.to_owned() }
    }

    pub(crate) fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let mut failure = None;
        let mut look_up = |id: &ChunkId| {
            self.look_up(id).unwrap_or_else(|error| {
                failure = Some(error);
                None
            })
        };
        let mut found: Vec<Option<KvChunk>> = ids.iter().map(&mut look_up).collect();
        if found.iter().any(Option::is_none) && !self.writes.load(Relaxed) {
            // The writer may have put them, or moved them, since this reader last looked.
            self.index().refresh(&*self.disk, &self.dir)?;
            for (id, found) in ids.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
                *found = look_up(id);
            }
        }
        let hits = found.iter().flatten().count();
        self.hits.fetch_add(hits as u64, Relaxed);
        self.misses.fetch_add((ids.len() - hits) as u64, Relaxed);
        match failure {
            Some(error) if hits == 0 => Err(error),
            _ => Ok(found),
        }
    }

    /// Has the system read ahead what these chunks occupy. Whatever fails here is told by who reads them.
    fn prefetch(&self, ids: &[ChunkId]) {
        for id in ids {
            let Some(location) = self.index().chunks.get(id).copied() else { continue };
            let path = self.dir.join(location.segment.file_name());
            let map = self.index().segments.get_mut(&location.segment).map(|segment| segment.map(&*self.disk, &path));
            if let Some(Ok(map)) = map {
                read::prefetch(&location, &map);
            }
        }
    }

    fn look_up(&self, id: &ChunkId) -> Result<Option<KvChunk>> {
        // More than once only if the record is damaged, or if a deletion of its neighbours moved the chunk meanwhile: a
        // location that was read in vain is in the index no more.
        loop {
            let location = self.index().chunks.get(id).copied();
            let Some(location) = location else { return Ok(None) };
            if let Some(chunk) = self.read(&location)? {
                return Ok(Some(chunk));
            }
        }
    }

    /// The chunk at a location. One that is not there as it should be gives way to an older record of the chunk, or, if
    /// there is none, is forgotten, so that it can be put again.
    pub(crate) fn read(&self, location: &Location) -> Result<Option<KvChunk>> {
        let path = self.dir.join(location.segment.file_name());
        // A mapping outlives its file, but what the writer deleted is not to be found here either.
        let gone = !self.writes.load(Relaxed) && matches!(self.disk.exists(&path), Ok(false));
        let map = match self.index().segments.get_mut(&location.segment) {
            Some(segment) if !gone => segment.map(&*self.disk, &path),
            _ => Err(ErrorKind::NotFound.into()),
        };
        match map {
            Ok(map) => {
                let chunk = read::chunk(location, &map, &*self.disk, &path);
                if chunk.is_none() && self.index().fall_back(location) {
                    self.damaged.fetch_add(1, Relaxed);
                }
                Ok(chunk)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.index().remove_segment(location.segment);
                Ok(None)
            }
            Err(error) => Err(Error::io("map", &path)(error)),
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
                Some(held) if self.index().is_unsealed(held.segment) => self.look_up(&chunk.id())?,
                Some(held) if suffices(held.entry.measured) => continue,
                _ => None,
            };
            let copy = copy.filter(|held| suffices(held.sensitivity().is_some()));
            let (segment, entry) = writer.append(copy.as_ref().unwrap_or(chunk))?;
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

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        let index = self.0.index();
        ids.iter().map(|id| index.chunks.contains_key(id)).collect()
    }

    async fn stats(&self) -> StoreStats {
        let (chunks, bytes) = {
            let index = self.0.index();
            (index.chunks.len(), index.bytes())
        };
        let [hits, misses, damaged] = [&self.0.hits, &self.0.misses, &self.0.damaged].map(|count| count.load(Relaxed));
        StoreStats { chunks, bytes, hits, misses, damaged }
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> amem_core::Result<Vec<StoredChunk>> {
        let index = self.0.index();
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let stored = |(id, location): (&ChunkId, &Location)| StoredChunk {
            id: *id,
            tokens: location.entry.tokens as usize,
            bytes: location.entry.bytes,
        };
        Ok(index.chunks.range(behind).take(limit).map(stored).collect())
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
