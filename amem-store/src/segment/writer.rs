//! Appending: the one process that holds the lock writes to one segment at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use amem_core::KvChunk;

use super::format::{self, Entry, Lengths, PAGE, SegmentIndex, SegmentName, seal_bytes};
use super::store::SegmentOptions;
use crate::crc::crc32c;
use crate::disk::{Disk, DiskFile};
#[cfg(test)]
use crate::planted::{self, Planted};
use crate::{Error, Result};

/// Where the files' bytes have a limit, a segment has at most this part of it.
const PARTS: u64 = 8;
/// Segments that are being sealed while the next one is written, at most.
const SEALING: usize = 4;

/// The right to write to a store's directory, and the segment being written.
pub(crate) struct Writer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    generation: u64,
    active: Option<Active>,
    /// Segments that are written no more, with records that were not synced.
    retired: Vec<Active>,
    /// Complete segments that are being synced and sealed in the background.
    sealing: VecDeque<Sealing>,
    /// Segments that earlier processes may not have synced.
    inherited: Vec<SegmentName>,
    /// Bytes that the directory's files may have.
    max_bytes: u64,
    /// Bytes of each segment's file, its index file's included.
    sizes: BTreeMap<SegmentName, u64>,
    /// Segments with an index file, and index files without their segment.
    indexes: BTreeSet<SegmentName>,
    /// Whether the disk had no room when something was last written, and nothing was removed since.
    disk_full: bool,
    /// Whether a file was made since the directory was last synced.
    made: bool,
    /// Whether a file was removed since then. At first that is unknown, for an earlier process may have removed one.
    removed: bool,
    /// The failure after which nothing more is written.
    poison: Option<String>,
    /// The lock goes when this is dropped, or the process ends.
    _lock: Box<dyn Send + Sync>,
}

struct Active {
    name: SegmentName,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    entries: Vec<Entry>,
    end: u64,
    /// Whether a record was written since the file was last synced.
    unsynced: bool,
}

/// A segment that is being sealed.
struct Sealing {
    name: SegmentName,
    /// Bytes of its seal.
    seal: u64,
    /// Whether the seal was written, once everything before it was synced.
    done: Receiver<io::Result<bool>>,
}

/// What a writer finds when it begins.
#[derive(Default)]
pub(crate) struct Found {
    /// The highest generation of the segments that are there.
    pub(crate) generation: u64,
    /// Segments that earlier processes may not have synced.
    pub(crate) unsealed: Vec<SegmentName>,
    /// Bytes of each segment's file.
    pub(crate) sizes: BTreeMap<SegmentName, u64>,
    /// Index files.
    pub(crate) indexes: BTreeSet<SegmentName>,
}

impl Writer {
    /// A writer that begins its segments after those that it found. A segment that was open when its process ended is never
    /// appended to: what a power cut left behind its end is unknown.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        lock: Box<dyn Send + Sync>,
        options: &SegmentOptions,
        found: Found,
    ) -> Self {
        let mut writer = Self {
            disk,
            dir: dir.to_owned(),
            segment_bytes: options.segment_bytes.min(options.max_bytes / PARTS),
            generation: found.generation,
            active: None,
            retired: Vec::new(),
            sealing: VecDeque::new(),
            inherited: found.unsealed,
            max_bytes: options.max_bytes,
            sizes: found.sizes,
            indexes: found.indexes,
            disk_full: false,
            made: false,
            removed: true,
            poison: None,
            _lock: lock,
        };
        for name in writer.indexes.clone() {
            let bytes = writer.disk.open(&writer.dir.join(name.index_name())).and_then(|file| file.len());
            // One that cannot be looked at is removed below with those that are of no segment.
            match (bytes, writer.sizes.get_mut(&name)) {
                (Ok(bytes), Some(size)) => *size += bytes,
                _ => _ = writer.remove_index(name),
            }
        }
        writer
    }

    /// # Errors
    /// [`Error::Poisoned`] after a failure that leaves unknown what is on disk, in the background too.
    pub(crate) fn check(&mut self) -> Result<()> {
        while let Some(sealing) = self.sealing.front() {
            let sealed = match sealing.done.try_recv() {
                Ok(sealed) => sealed,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => Err(thread_ended()),
            };
            self.take_sealed(sealed);
        }
        match &self.poison {
            Some(reason) => Err(Error::Poisoned { path: self.dir.clone(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// The segment being written.
    pub(crate) fn active(&self) -> Option<SegmentName> {
        self.active.as_ref().map(|active| active.name)
    }

    /// Writes a record of `chunk`, which then survives the end of the process.
    ///
    /// # Errors
    /// [`Error::Full`] where the disk has no room for it, or the files would have more bytes than they may.
    pub(crate) fn append(&mut self, chunk: &KvChunk) -> Result<(SegmentName, Entry)> {
        self.check()?;
        let lengths = self.lengths(chunk)?;
        let fits = |active: &Active| active.end == PAGE || active.end + lengths.record <= self.segment_bytes;
        let begins = !self.active.as_ref().is_some_and(fits);
        let around = match self.active.as_ref().filter(|_| !begins) {
            Some(active) => seal_bytes(active.entries.len() + 1) - seal_bytes(active.entries.len()),
            None => PAGE + seal_bytes(1),
        };
        if lengths.record.saturating_add(around) > self.room() {
            return Err(self.over_limit());
        }
        if begins {
            self.seal_in_background()?;
            self.active = Some(self.begin()?);
        }
        let Some(active) = &mut self.active else { return Err(self.poisoned("no segment is open".into())) };
        let name = active.name;
        match active.append(chunk, &lengths) {
            Ok(entry) => {
                self.sizes.insert(name, entry.end());
                Ok((name, entry))
            }
            Err(error) => Err(self.abandon(error)),
        }
    }

    /// The lengths of a record of `chunk`.
    ///
    /// # Errors
    /// [`Error::Full`] where none could hold it.
    fn lengths(&self, chunk: &KvChunk) -> Result<Lengths> {
        Lengths::of_chunk(chunk).ok_or_else(|| {
            let source = io::Error::other("the chunk is larger than a record can be");
            Error::Full { path: self.dir.clone(), source }
        })
    }

    /// Whether a record of `chunk` would have room in a directory without any other.
    pub(crate) fn could_hold(&self, chunk: &KvChunk) -> bool {
        let alone = |lengths: Lengths| lengths.record.saturating_add(PAGE + seal_bytes(1) + self.segment_bytes);
        self.lengths(chunk).is_ok_and(|lengths| alone(lengths) <= self.max_bytes)
    }

    /// Whether a record of `chunk` may be written as a put, which leaves room for a segment to be written anew: else a
    /// deletion would have to take others with it.
    pub(crate) fn takes(&self, chunk: &KvChunk) -> bool {
        let room = self.room().saturating_sub(self.segment_bytes);
        self.max_bytes == u64::MAX
            || self.lengths(chunk).is_ok_and(|lengths| lengths.record + PAGE + seal_bytes(1) <= room)
    }

    /// Bytes of the directory's files, and of the seal that the active segment will get.
    pub(crate) fn used(&self) -> u64 {
        let seal = self.active.as_ref().map_or(0, |active| seal_bytes(active.entries.len()));
        self.sizes.values().sum::<u64>().saturating_add(seal)
    }

    /// Bytes that may still be written.
    pub(crate) fn room(&self) -> u64 {
        #[cfg(test)]
        if planted::is(Planted::NoLimit) {
            return u64::MAX;
        }
        self.max_bytes.saturating_sub(self.used())
    }

    /// Whether there are more bytes than there may be, because there may be fewer than before.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.used() > self.max_bytes
    }

    /// Whether the disk had no room when something was last written, and nothing was removed since.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk_full
    }

    pub(crate) fn over_limit(&self) -> Error {
        let reason = format!("its limit of {} bytes is reached", self.max_bytes);
        Error::Full { path: self.dir.clone(), source: io::Error::new(ErrorKind::QuotaExceeded, reason) }
    }

    /// Lists the records of a segment without a seal in an index file beside it, so that the next process need not walk
    /// it. If that fails, it is walked again.
    pub(crate) fn write_index(&mut self, name: SegmentName, index: &SegmentIndex) {
        let bytes = format::encode_index(name, index);
        if self.indexes.contains(&name) && self.remove_index(name).is_err() || self.room() < bytes.len() as u64 {
            return;
        }
        let path = self.dir.join(name.index_name());
        let Ok(file) = self.disk.create(&path) else { return };
        self.indexes.insert(name);
        *self.sizes.entry(name).or_default() += bytes.len() as u64;
        if file.write_all_at(&bytes, 0).is_err() {
            let _ = self.remove_index(name);
        }
    }

    fn remove_index(&mut self, name: SegmentName) -> Result<()> {
        let path = self.dir.join(name.index_name());
        let bytes = self.disk.open(&path).and_then(|file| file.len()).unwrap_or_default();
        match self.disk.remove(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
            _ => {
                self.removed = true;
                self.indexes.remove(&name);
                if let Some(size) = self.sizes.get_mut(&name) {
                    *size = size.saturating_sub(bytes);
                }
                Ok(())
            }
        }
    }

    /// Completes the segment being written: everything to the disk, then a seal that says so.
    fn seal(&mut self) -> Result<()> {
        self.seal_in_background()?;
        self.sync_records(None)
    }

    /// Has the segment being written completed while others are written, which keeps the disk at work.
    fn seal_in_background(&mut self) -> Result<()> {
        self.check()?;
        while self.sealing.len() >= SEALING {
            self.wait_for_seal()?;
        }
        let Some(active) = self.active.take() else { return Ok(()) };
        let (name, seal) = (active.name, seal_bytes(active.entries.len()));
        *self.sizes.entry(name).or_default() += seal;
        let dir = self.made.then(|| self.dir.clone());
        let (disk, (tell, done)) = (Arc::clone(&self.disk), channel());
        self.disk.in_background(Box::new(move || {
            let synced = if active.unsynced { active.file.sync() } else { Ok(()) };
            let synced = synced.and_then(|()| dir.map_or(Ok(()), |dir| disk.sync_dir(&dir)));
            // A segment without a seal is read by walking its headers, so a seal that is not written, or lost in a power
            // cut, costs nothing but that.
            let sealed = synced.map(|()| active.write_seal().is_ok());
            // A file that is removed while it is open keeps its room on the disk, and the writer may remove this one as
            // soon as it is told.
            drop(active);
            // A writer that is gone has waited, or was in a process that ends.
            let _ = tell.send(sealed);
        }));
        self.sealing.push_back(Sealing { name, seal, done });
        Ok(())
    }

    /// Waits until the segment that was completed first is sealed.
    fn wait_for_seal(&mut self) -> Result<()> {
        let Some(sealing) = self.sealing.front() else { return Ok(()) };
        let sealed = sealing.done.recv().unwrap_or_else(|_| Err(thread_ended()));
        self.take_sealed(sealed);
        self.check()
    }

    /// Takes note of how the segment that was completed first was sealed.
    fn take_sealed(&mut self, sealed: io::Result<bool>) {
        let Some(Sealing { name, seal, .. }) = self.sealing.pop_front() else { return };
        match sealed {
            Ok(true) => {}
            Ok(false) => _ = self.sizes.get_mut(&name).map(|size| *size = size.saturating_sub(seal)),
            Err(error) => self.poison = Some(error.to_string()),
        }
    }

    /// Writes nothing more to the active segment.
    pub(crate) fn retire(&mut self) {
        self.retired.extend(self.active.take().filter(|active| active.unsynced));
    }

    /// Makes everything that was written survive a power cut, and what was removed stay away.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.sync_records(None)?;
        while let Some(name) = self.inherited.last() {
            match self.disk.open(&self.dir.join(name.file_name())).and_then(|file| file.sync()) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.poisoned(error.to_string())),
                _ => _ = self.inherited.pop(),
            }
        }
        self.sync_dir()
    }

    /// Makes all records survive a power cut but those in the segment `except`, which is about to be removed.
    pub(crate) fn sync_records(&mut self, except: Option<SegmentName>) -> Result<()> {
        self.check()?;
        while !self.sealing.is_empty() {
            self.wait_for_seal()?;
        }
        let written = self.active.iter_mut().chain(&mut self.retired);
        for segment in written.filter(|segment| segment.unsynced && Some(segment.name) != except) {
            if let Err(error) = segment.file.sync() {
                return Err(self.poisoned(error.to_string()));
            }
            segment.unsynced = false;
        }
        self.retired.retain(|segment| segment.unsynced);
        if self.made { self.sync_dir() } else { Ok(()) }
    }

    /// Makes it last which files were made and removed.
    pub(crate) fn sync_dir(&mut self) -> Result<()> {
        self.check()?;
        if self.made || self.removed {
            self.disk.sync_dir(&self.dir).map_err(|error| self.poisoned(error.to_string()))?;
            (self.made, self.removed) = (false, false);
        }
        Ok(())
    }

    /// Removes a segment's file, which must not be the active one.
    pub(crate) fn unlink(&mut self, name: SegmentName) -> Result<()> {
        while self.sealing.iter().any(|sealing| sealing.name == name) {
            self.wait_for_seal()?;
        }
        if self.indexes.contains(&name) {
            self.remove_index(name)?;
        }
        let path = self.dir.join(name.file_name());
        self.removed = true;
        match self.disk.remove(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
            _ => {
                self.retired.retain(|segment| segment.name != name);
                self.sizes.remove(&name);
                self.disk_full = false;
                Ok(())
            }
        }
    }

    fn begin(&mut self) -> Result<Active> {
        self.generation = self.generation.saturating_add(1);
        let name = SegmentName { generation: self.generation, salt: self.disk.random() };
        let path = self.dir.join(name.file_name());
        let file = self.disk.create(&path).map_err(|error| {
            self.disk_full |= is_full(&error);
            Error::writing(&path)(error)
        })?;
        self.made = true;
        self.sizes.insert(name, PAGE);
        if let Err(error) = file.write_all_at(&format::encode_first_page(name), 0) {
            self.disk_full |= is_full(&error);
            if self.disk.remove(&path).is_ok() {
                self.sizes.remove(&name);
            }
            return Err(Error::writing(&path)(error));
        }
        Ok(Active { name, path, file, entries: Vec::new(), end: PAGE, unsynced: true })
    }

    /// Takes a segment that another process began for the one being written.
    #[cfg(test)]
    pub(crate) fn go_on(&mut self, name: SegmentName, entries: &[Entry], end: u64) {
        let path = self.dir.join(name.file_name());
        if let Ok(file) = self.disk.open(&path) {
            self.active = Some(Active { name, path, file, entries: entries.to_vec(), end, unsynced: true });
        }
    }

    /// Leaves a segment whose last write failed. A full disk is a state that passes, and a chunk that cannot be read is no
    /// fault of the disk; after anything else nobody knows what was written.
    fn abandon(&mut self, error: Error) -> Error {
        self.disk_full |= matches!(error, Error::Full { .. });
        if let Some(active) = self.active.take() {
            // What it holds already is out of `sync`'s sight from now on.
            let cut = active.file.set_len(active.end).and_then(|()| active.file.sync());
            if !matches!(error, Error::Full { .. } | Error::Chunk { .. }) || cut.is_err() {
                self.poison = Some(error.to_string());
            }
        }
        error
    }

    fn poisoned(&mut self, reason: String) -> Error {
        self.poison = Some(reason.clone());
        Error::Poisoned { path: self.dir.clone(), reason }
    }
}

fn thread_ended() -> io::Error {
    io::Error::other("the thread that synced a segment ended")
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A failure is told to nobody: what was not synced was not promised to stay.
        let _ = self.check().and_then(|()| self.seal());
        // Nothing is written once the lock is gone.
        self.sealing.drain(..).for_each(|sealing| drop(sealing.done.recv()));
    }
}

impl Active {
    /// First the payload, layer by layer, then the header that vouches for it: a record cut short has no sound header.
    fn append(&mut self, chunk: &KvChunk, lengths: &Lengths) -> Result<Entry> {
        let damaged = |source| Error::Chunk { chunk: chunk.id(), source };
        let failed = |source| Error::writing(&self.path)(source);
        if !lengths.payload.is_multiple_of(PAGE as usize) {
            // Sets the padding behind the payload, so that files end on a page.
            self.file.set_len(self.end + lengths.record).map_err(failed)?;
        }
        let mut at = self.end + lengths.payload_start as u64;
        let layers = chunk.shape().layers;
        let mut checksums = Vec::with_capacity(layers);
        if let Some(payload) = chunk.contiguous() {
            checksums.extend(payload.chunks(payload.len().div_ceil(layers.max(1)).max(1)).map(crc32c));
            self.file.write_all_at(payload, at).map_err(failed)?;
        } else {
            for layer in 0..layers {
                let layer = chunk.layer(layer).map_err(damaged)?;
                checksums.push(crc32c(layer.bytes()));
                self.file.write_all_at(layer.bytes(), at).map_err(failed)?;
                at += layer.bytes().len() as u64;
            }
        }
        let header = format::encode_header(chunk, &checksums, lengths, self.name, self.end);
        self.file.write_all_at(&header, self.end).map_err(failed)?;
        let (tokens, measured) = (chunk.tokens().len() as u32, chunk.sensitivity().is_some());
        let entry = Entry { id: chunk.id(), offset: self.end, bytes: lengths.record, tokens, measured };
        self.entries.push(entry);
        self.end = entry.end();
        self.unsynced = true;
        Ok(entry)
    }

    fn write_seal(&self) -> io::Result<()> {
        let written = self.file.write_all_at(&format::encode_seal(self.name, self.end, &self.entries), self.end);
        if written.is_err() {
            self.file.set_len(self.end)?;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvData, KvShape, PrefixId};

    use super::*;
    use crate::disk::SystemDisk;
    use crate::simulated_disk::{Faults, SimulatedDisk};

    fn chunk(n: u8) -> KvChunk {
        let (shape, encoding) = (KvShape { layers: 1, kv_heads: 1, head_dim: 8 }, Encoding::Plain(Dtype::F16));
        let data = HostKv::new(encoding, 1, vec![n; encoding.bytes(&shape, 3)]);
        let (id, prefix) = (ChunkId([n; 32]), PrefixId([0; 32]));
        KvChunk::new(id, prefix, shape, Arc::new([1, 2, 3]), Arc::new(data)).unwrap()
    }

    fn writer(dir: &tempfile::TempDir) -> Writer {
        let options = SegmentOptions::default().segment_bytes(1 << 20);
        Writer::new(Arc::new(SystemDisk), dir.path(), Box::new(()), &options, Found::default())
    }

    #[test]
    fn a_failed_write_poisons_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(&dir);
        writer.append(&chunk(1)).unwrap();
        // A handle that cannot be written to stands in for a disk that fails.
        let active = writer.active.as_mut().unwrap();
        active.file = SystemDisk.open(&active.path).unwrap();
        assert!(matches!(writer.append(&chunk(2)), Err(Error::Io { .. })));
        for refused in [writer.append(&chunk(3)).map(|_| ()), writer.sync()] {
            assert!(matches!(refused, Err(Error::Poisoned { .. })), "{refused:?}");
        }
    }

    #[test]
    fn after_a_sync_that_failed_in_the_background_nothing_more_is_written() {
        let disk = SimulatedDisk::new(1);
        disk.make_dir(Path::new("/kv")).unwrap();
        let options = SegmentOptions::default();
        let mut writer =
            Writer::new(Arc::new(disk.clone()), Path::new("/kv"), Box::new(()), &options, Found::default());
        writer.append(&chunk(1)).unwrap();
        disk.inject(Faults { from: 1, count: 1, kind: ErrorKind::Other });
        writer.seal_in_background().unwrap();
        assert_eq!(disk.failed_syncs(), 1);
        let changes = disk.changes();
        assert!(matches!(writer.append(&chunk(2)), Err(Error::Poisoned { .. })));
        assert_eq!(disk.changes(), changes);
    }

    struct Unreadable;

    impl KvData for Unreadable {
        fn encoding(&self) -> Encoding {
            Encoding::Plain(Dtype::F16)
        }

        fn size(&self) -> usize {
            self.encoding().bytes(&KvShape { layers: 1, kv_heads: 1, head_dim: 8 }, 3)
        }

        fn layer(&self, _: usize) -> amem_core::Result<Cow<'_, [u8]>> {
            Err(amem_core::Error::Store("unreadable".into()))
        }
    }

    #[test]
    fn a_chunk_that_cannot_be_read_leaves_the_writer_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(&dir);
        let (model, data) = (chunk(1), Arc::new(Unreadable));
        let unreadable = KvChunk::new(model.id(), model.prefix(), *model.shape(), Arc::new([1, 2, 3]), data).unwrap();
        assert!(matches!(writer.append(&unreadable), Err(Error::Chunk { .. })));
        writer.append(&chunk(2)).unwrap();
        writer.sync().unwrap();
    }

    #[test]
    fn a_process_never_appends_to_a_segment_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = writer(&dir).append(&chunk(1)).unwrap();
        let (second, _) = writer(&dir).append(&chunk(1)).unwrap();
        assert_ne!(first, second, "even where two take the same generation, their salts differ");
    }
}
