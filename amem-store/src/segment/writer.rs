//! Appending: the one process that holds the lock writes to one segment at a time.

use std::collections::hash_map::RandomState;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use amem_core::KvChunk;

use super::format::{self, Entry, Lengths, PAGE, SegmentName};
use crate::{Error, Result};

/// The right to write to a store's directory, and the segment being written.
pub(crate) struct Writer {
    dir: PathBuf,
    segment_bytes: u64,
    generation: u64,
    active: Option<Active>,
    /// Whether a file was made or removed since the directory was last synced.
    dir_changed: bool,
    /// The failure after which nothing more is written.
    poison: Option<String>,
    /// Locked; the lock goes when the file is closed, however the process ends.
    _lock: File,
}

struct Active {
    name: SegmentName,
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
    end: u64,
}

impl Writer {
    /// A writer that begins its segments after `generation`. A segment that was open when its process ended is never
    /// appended to: what a power cut left behind its end is unknown.
    pub(crate) fn new(dir: &Path, lock: File, segment_bytes: u64, generation: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            segment_bytes,
            generation,
            active: None,
            dir_changed: false,
            poison: None,
            _lock: lock,
        }
    }

    /// # Errors
    /// [`Error::Poisoned`] after a failure that leaves unknown what is on disk.
    pub(crate) fn check(&self) -> Result<()> {
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
    pub(crate) fn append(&mut self, chunk: &KvChunk) -> Result<(SegmentName, Entry)> {
        self.check()?;
        let Some(lengths) = Lengths::of_chunk(chunk) else {
            let source = std::io::Error::other("the chunk is larger than a record can be");
            return Err(Error::Full { path: self.dir.clone(), source });
        };
        let fits = |active: &Active| active.end == PAGE || active.end + lengths.record <= self.segment_bytes;
        if !self.active.as_ref().is_some_and(fits) {
            self.seal()?;
            self.active = Some(self.begin()?);
        }
        let Some(active) = &mut self.active else { return Err(self.poisoned("no segment is open".into())) };
        match active.append(chunk, &lengths) {
            Ok(entry) => Ok((active.name, entry)),
            Err(error) => Err(self.abandon(error)),
        }
    }

    /// Completes the segment being written: its table of records, then everything to the disk.
    pub(crate) fn seal(&mut self) -> Result<()> {
        let Some(active) = self.active.take() else { return Ok(()) };
        // A segment without a seal is read by walking its headers, so a failure to write one costs nothing but that.
        let _ = active.write_seal();
        active.file.sync_data().map_err(|error| self.poisoned(error.to_string()))
    }

    /// Writes nothing more to the active segment, which is about to be removed.
    pub(crate) fn retire(&mut self) {
        self.active = None;
    }

    /// Makes everything that was written survive a power cut.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.check()?;
        if let Some(active) = &self.active {
            active.file.sync_data().map_err(|error| self.poisoned(error.to_string()))?;
        }
        if self.dir_changed {
            let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
            synced.map_err(|error| self.poisoned(error.to_string()))?;
            self.dir_changed = false;
        }
        Ok(())
    }

    /// Removes a segment's file, which must not be the active one.
    pub(crate) fn unlink(&mut self, name: SegmentName) -> Result<()> {
        let path = self.dir.join(name.file_name());
        self.dir_changed = true;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    fn begin(&mut self) -> Result<Active> {
        self.generation = self.generation.saturating_add(1);
        let name = SegmentName { generation: self.generation, salt: random() };
        let path = self.dir.join(name.file_name());
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path).map_err(Error::writing(&path))?;
        self.dir_changed = true;
        if let Err(error) = file.write_all_at(&format::encode_first_page(name), 0) {
            let _ = std::fs::remove_file(&path);
            return Err(Error::writing(&path)(error));
        }
        Ok(Active { name, path, file, entries: Vec::new(), end: PAGE })
    }

    /// Leaves a segment whose last write failed. A full disk is a state that passes; after anything else nobody knows
    /// what was written.
    fn abandon(&mut self, error: Error) -> Error {
        if let Some(active) = self.active.take() {
            // What it holds already is out of `sync`'s sight from now on.
            let cut = active.file.set_len(active.end).and_then(|()| active.file.sync_data());
            if !matches!(error, Error::Full { .. }) || cut.is_err() {
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

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(active) = self.active.take().filter(|_| self.poison.is_none()) {
            let _ = active.write_seal();
        }
    }
}

impl Active {
    /// First the payload, layer by layer, then the header that vouches for it: a record cut short has no sound header.
    fn append(&mut self, chunk: &KvChunk, lengths: &Lengths) -> Result<Entry> {
        let damaged = |source| Error::Chunk { chunk: chunk.id(), source };
        let failed = |source| Error::writing(&self.path)(source);
        // Sets the padding behind the payload, so that files end on a page.
        self.file.set_len(self.end + lengths.record).map_err(failed)?;
        let mut at = self.end + lengths.payload_start as u64;
        let mut checksums = Vec::with_capacity(chunk.shape().layers);
        for layer in 0..chunk.shape().layers {
            let layer = chunk.layer(layer).map_err(damaged)?;
            checksums.push(crc32c::crc32c(layer.bytes()));
            self.file.write_all_at(layer.bytes(), at).map_err(failed)?;
            at += layer.bytes().len() as u64;
        }
        let header = format::encode_header(chunk, &checksums, lengths, self.name, self.end);
        self.file.write_all_at(&header, self.end).map_err(failed)?;
        let (tokens, measured) = (chunk.tokens().len() as u32, chunk.sensitivity().is_some());
        let entry = Entry { id: chunk.id(), offset: self.end, bytes: lengths.record, tokens, measured };
        self.entries.push(entry);
        self.end = entry.end();
        Ok(entry)
    }

    fn write_seal(&self) -> std::io::Result<()> {
        let written = self.file.write_all_at(&format::encode_seal(self.name, self.end, &self.entries), self.end);
        if written.is_err() {
            self.file.set_len(self.end)?;
        }
        written
    }
}

/// A number that no earlier call in any process gave. The standard library seeds its hash maps from the system's
/// randomness; time and process tell apart two calls that got one seed.
fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u128(std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvShape, PrefixId};

    use super::*;

    fn chunk(n: u8) -> KvChunk {
        let (shape, encoding) = (KvShape { layers: 1, kv_heads: 1, head_dim: 8 }, Encoding::Plain(Dtype::F16));
        let data = HostKv::new(encoding, 1, vec![n; encoding.bytes(&shape, 3)]);
        let (id, prefix) = (ChunkId([n; 32]), PrefixId([0; 32]));
        KvChunk::new(id, prefix, shape, Arc::new([1, 2, 3]), Arc::new(data)).unwrap()
    }

    fn writer(dir: &tempfile::TempDir) -> Writer {
        let lock = File::create(dir.path().join("LOCK")).unwrap();
        Writer::new(dir.path(), lock, 1 << 20, 0)
    }

    #[test]
    fn a_failed_write_poisons_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(&dir);
        writer.append(&chunk(1)).unwrap();
        // A handle that cannot be written to stands in for a disk that fails.
        let active = writer.active.as_mut().unwrap();
        active.file = File::open(&active.path).unwrap();
        assert!(matches!(writer.append(&chunk(2)), Err(Error::Io { .. })));
        for refused in [writer.append(&chunk(3)).map(|_| ()), writer.sync()] {
            assert!(matches!(refused, Err(Error::Poisoned { .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_process_never_appends_to_a_segment_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = writer(&dir).append(&chunk(1)).unwrap();
        let (second, _) = writer(&dir).append(&chunk(1)).unwrap();
        assert_ne!(first, second, "even where two take the same generation, their salts differ");
    }
}
