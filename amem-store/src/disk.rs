//! The file operations that segments and keys are made of, behind a trait: so that tests can put a simulated disk in the
//! place of the system's, and cut its power at any operation.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempPath;

use crate::readers::ReadLater;

/// A place for files. Nothing that is done here survives a power cut before it was synced: neither what is written to a
/// file before [`DiskFile::sync`], nor that a file or directory is made or removed before [`sync_dir`](Self::sync_dir) of
/// the directory that it is in. What was not synced may survive all the same, in parts and in any order.
pub(crate) trait Disk: Send + Sync {
    /// Makes a directory, for its owner only.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// The names of what is in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Whether there is a file or a directory of this path.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Locks a file, which is made if it is not there, until what is returned is dropped or the process ends.
    ///
    /// # Errors
    /// `WouldBlock` when another process has locked it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;

    /// Makes a file, for its owner only, that was not there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Removes a file. Who has it open can go on reading it.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes it last which files and directories are in this directory.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// A number that no earlier call gave, in no process.
    fn random(&self) -> u64;

    /// Does a job on a thread of its own, and does not wait for it.
    fn in_background(&self, job: Box<dyn FnOnce() + Send>);

    /// Has parts of files read ahead, in this order, and does not wait for it.
    fn read_ahead(&self, parts: Vec<Part>);
}

/// A [`Disk`] for files that are replaced as a whole.
#[cfg_attr(not(feature = "encryption"), allow(dead_code, reason = "some of it is for keys alone"))]
pub(crate) trait FileDisk: Disk {
    /// Locks a file as [`lock`](Disk::lock) does, with others that lock it like this.
    ///
    /// # Errors
    /// `WouldBlock` when another process has locked it alone.
    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;

    /// Opens a file for writing over what is in it.
    fn open_to_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// How many names a file has; `None` where there is something else.
    fn names(&self, path: &Path) -> io::Result<Option<u64>>;

    /// Gives a file another name in the same file system, in place of the file that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name in the same file system.
    fn link(&self, path: &Path, name: &Path) -> io::Result<()>;

    /// Gives a file another name in the same file system. For a moment, and after a crash, it may have both.
    ///
    /// # Errors
    /// `AlreadyExists` when there is a file of that name.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
}

/// A part of a file.
pub(crate) struct Part {
    pub(crate) file: ReadLater,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Something with bytes at offsets: a file, or a slice in tests and fuzzing.
pub(crate) trait ReadAt {
    /// How many bytes there are.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on and says how much of it; less than all only at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// So many bytes of `space`, which grows if it is too small, where those of a file from `offset` on are best read to: in a cache
/// line where they stand in it in the file. Memory for a buffer often begins 16 bytes behind a page's begin, and some
/// processors (AMD's Zen 3) copy a page's bytes to an address that lies up to 31 bytes behind theirs, counted within a page, five
/// times as slowly as to any other.
pub(crate) fn space_for(space: &mut Vec<u8>, len: usize, offset: u64) -> &mut [u8] {
    const LINE: usize = 64;
    if space.len() < len + LINE {
        space.resize(len + LINE, 0);
    }
    let start = (space.as_ptr().align_offset(LINE) % LINE + offset as usize % LINE) % LINE;
    &mut space[start..start + len]
}

/// A file of a [`Disk`].
pub(crate) trait DiskFile: ReadAt + Send + Sync {
    /// Writes all of these bytes. After an error, any part of them may have been written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file, or sets zeros behind its end.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the file's bytes and its length last. After an error nobody knows which of them do, and a later call that
    /// gives no error does not say that they do.
    fn sync(&self) -> io::Result<()>;

    /// Brings bytes into the system's memory, unless the first of them are there, and waits for it. A hint: what cannot be
    /// read ahead is read when it is needed. It ends early when `stop` holds, which it asks between pieces. `space` is
    /// scratch, to be used again for the next part.
    fn read_ahead(&self, offset: u64, len: u64, stop: &dyn Fn() -> bool, space: &mut Vec<u8>);
}

/// Makes a directory and those above it that are missing. It survives a power cut, and so do they.
pub(crate) fn make_dirs(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if !disk.exists(dir)? {
        make_dirs(disk, parent(dir))?;
        match disk.make_dir(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    // Also if it is there: it may have been made by a process that was killed before it synced, or by a call whose sync
    // failed.
    sync_entry(disk, dir)
}

/// Makes it last that there is this directory. The directory above it may be one that this user may not open, and so did
/// not make it in, or be on another file system, which is read-only or cannot sync directories: no error then.
fn sync_entry(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    use ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    match disk.sync_dir(parent(dir)) {
        Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | InvalidInput | Unsupported) => {
            Ok(())
        }
        synced => synced,
    }
}

/// The directory that a file or a directory is in.
pub(crate) fn parent(path: &Path) -> &Path {
    let parent = path.parent().unwrap_or(path);
    // Of a relative path's first part, and of an empty path.
    if parent.as_os_str().is_empty() { Path::new(".") } else { parent }
}

/// The bytes of a file; of one that has more than `limit`, only so many.
pub(crate) fn read_at_most(disk: &dyn Disk, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let mut bytes = vec![0; usize::try_from(file.len()?.min(limit)).unwrap_or(usize::MAX)];
    let filled = file.read_at(&mut bytes, 0)?;
    bytes.truncate(filled);
    Ok(bytes)
}

/// The system's files.
pub(crate) struct SystemDisk;

/// A file that is locked until this is dropped.
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the file would not be enough: a process that this one is just starting has it open too, until it runs
        // its own program, and would keep the lock until then.
        // If that fails, it is released when that process has begun.
        let _ = self.0.unlock();
    }
}

fn locked(path: &Path, lock: impl Fn(&File) -> Result<(), TryLockError>) -> io::Result<Box<dyn Send + Sync>> {
    /// More often nobody takes a lock away just then: there, a file is never the one that it was opened as.
    const TRIES: usize = 100;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    for _ in 0..TRIES {
        let file = options.open(path)?;
        match lock(&file) {
            // Whoever held the lock may have removed the file since it was opened here. Others lock the one in its
            // place.
            Ok(()) if !is_at(&file, path)? => {}
            Ok(()) => return Ok(Box::new(Locked(file))),
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other("its file system does not say which file is open, so that a lock protects nothing"))
}

/// Whether a file that is open is the one of this path.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Disk for SystemDisk {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(dir)?.map(|file| Ok(file?.file_name())).collect()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        locked(path, File::try_lock)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// The standard library seeds its hash maps from the system's randomness; time and process tell apart two calls that
    /// got one seed.
    fn random(&self) -> u64 {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.write_u128(std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
        hasher.finish()
    }

    /// Not on the `blocking` crate's threads: all of them may be waiting for what this does.
    fn in_background(&self, job: Box<dyn FnOnce() + Send>) {
        let job = Arc::new(Mutex::new(Some(job)));
        let run = |job: &Mutex<Option<Box<dyn FnOnce() + Send>>>| {
            let job = job.lock().unwrap_or_else(PoisonError::into_inner).take();
            job.into_iter().for_each(|job| job());
        };
        let shared = Arc::clone(&job);
        if std::thread::Builder::new().name("amem-store".to_owned()).spawn(move || run(&shared)).is_err() {
            run(&job);
        }
    }

    fn read_ahead(&self, parts: Vec<Part>) {
        let read = move || {
            let mut space = Vec::new();
            for Part { file, offset, len } in parts {
                if let Some(reading) = file.read() {
                    reading.file.read_ahead(offset, len, &|| file.is_removed(), &mut space);
                }
            }
        };
        blocking::unblock(read).detach();
    }
}

impl FileDisk for SystemDisk {
    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        locked(path, File::try_lock_shared)
    }

    fn open_to_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().write(true).open(path)?))
    }

    fn names(&self, path: &Path) -> io::Result<Option<u64>> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(metadata.is_file().then(|| metadata.nlink()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        std::fs::hard_link(path, name)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        TempPath::try_from_path(from)?.persist_noclobber(to).map_err(|failed| {
            // It is not for this to remove it. That it cannot be kept shows when it is used.
            let _ = failed.path.keep();
            failed.error
        })
    }
}

impl ReadAt for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl ReadAt for [u8] {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|start| self.get(start..)).unwrap_or_default();
        let filled = rest.len().min(buffer.len());
        buffer[..filled].copy_from_slice(&rest[..filled]);
        Ok(filled)
    }
}

impl DiskFile for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn read_ahead(&self, offset: u64, len: u64, stop: &dyn Fn() -> bool, space: &mut Vec<u8>) {
        #[cfg(target_os = "linux")]
        read_ahead(self, offset, len, stop, space);
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, len, stop, space);
    }
}

/// Reads bytes and drops them. `posix_fadvise` would not copy them, but has Linux keep them in single pages: reading those
/// takes longer each time, and asking for them took longer, too, than reading in order as the system reads ahead by
/// itself.
#[cfg(target_os = "linux")]
fn read_ahead(file: &File, mut offset: u64, len: u64, stop: &dyn Fn() -> bool, space: &mut Vec<u8>) {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    /// Bytes by which is seen whether something is in the system's memory.
    const PROBE: usize = 64 << 10;
    const PIECE: usize = 1 << 20;
    let end = offset.saturating_add(len);
    let probe = space_for(space, PROBE.min(usize::try_from(len).unwrap_or(PROBE)), offset);
    let wanted = probe.len();
    match preadv2(file, &mut [io::IoSliceMut::new(probe)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) if read < wanted => offset += read as u64,
        Err(Errno::AGAIN) => {}
        // It is there, or the file system cannot tell.
        _ => return,
    }
    while offset < end && !stop() {
        let piece = PIECE.min(usize::try_from(end - offset).unwrap_or(PIECE));
        match ReadAt::read_at(file, space_for(space, piece, offset), offset) {
            Ok(read) if read == piece => offset += read as u64,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_path_is_the_current_directory() {
        make_dirs(&SystemDisk, Path::new("")).unwrap();
    }

    #[test]
    fn a_lock_is_of_the_file_that_others_find() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        // Removed by its last owner after it was opened and before it is locked.
        let removed = std::cell::Cell::new(false);
        let late = |file: &File| {
            if !removed.replace(true) {
                std::fs::remove_file(&path).unwrap();
            }
            file.try_lock()
        };
        let held = locked(&path, late).unwrap();
        assert!(path.exists());
        assert_eq!(SystemDisk.lock(&path).err().map(|error| error.kind()), Some(ErrorKind::WouldBlock));
        drop(held);
        SystemDisk.lock(&path).unwrap();
    }

    #[test]
    fn bytes_are_read_to_where_they_stand_in_their_cache_line() {
        let mut space = Vec::new();
        for (len, offset) in [(100, 0), (4096, 64), (70, 4097), (5000, 8191), (0, 3)] {
            let place = space_for(&mut space, len, offset);
            assert_eq!((place.len(), place.as_ptr() as usize % 64), (len, offset as usize % 64));
        }
    }

    #[test]
    fn a_lock_ends_with_its_holder_whoever_else_has_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let file = File::create(&path).unwrap();
        // As a process that is just being started has it.
        let inherited = file.try_clone().unwrap();
        file.try_lock().unwrap();
        let locked = Locked(file);
        assert!(SystemDisk.lock(&path).is_err());
        drop(locked);
        SystemDisk.lock(&path).map(drop).expect("it can be locked again");
        drop(inherited);
    }
}
