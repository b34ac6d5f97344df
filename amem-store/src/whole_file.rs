//! Files that are written as a whole: after a crash there is the file as it was before, or as it was to be.
//!
//! The bytes go to a draft beside the file. The draft is synced, then it gets the file's name, then the directory is synced.

use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{FileDisk, SystemDisk, make_dirs, parent};
#[cfg(test)]
use crate::planted::{self, Planted};

/// Makes a directory and those above it that are missing, for their owner only. When this returns, they survive a power cut.
///
/// # Errors
/// When one cannot be made.
pub fn make_dir(dir: impl AsRef<Path>) -> io::Result<()> {
    make_dirs(&SystemDisk, dir.as_ref())
}

/// Replaces a file, or makes it and the directories that it is in, for their owner only. When this returns, what was written
/// survives a power cut. Until then, and after an error, there is the earlier file or the new one, whole.
///
/// Nobody else may replace it at the same time: who shares it with other processes holds a lock. The draft is the file's
/// path with `.new` behind it: a file of that name is replaced too.
///
/// # Errors
/// When something cannot be written.
pub fn replace_file(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    replace_alone(&SystemDisk, path.as_ref(), bytes)
}

/// Makes a file, and the directories that it is in, for their owner only. When this returns, it survives a power cut. Until
/// then, and after an error, there is no such file, or the whole.
///
/// # Errors
/// `AlreadyExists` when there is a file of this name, which then survives a power cut; when something cannot be written.
pub fn create_file(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    create_in(&SystemDisk, path.as_ref(), bytes)
}

/// See [`create_file`].
pub(crate) fn create_in(disk: &dyn FileDisk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    make_dirs(disk, parent(path))?;
    create(disk, path, &draft(disk, path, "tmp-"), bytes)
}

/// See [`replace_file`].
pub(crate) fn replace_alone(disk: &dyn FileDisk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    make_dirs(disk, parent(path))?;
    // With all of the file's name, for others beside it may differ in their extensions.
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match disk.remove(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // A process that was killed has left it, if it was there.
        _ => replace(disk, path, &draft, bytes),
    }
}

/// The path of a draft beside a file, which nobody else uses.
pub(crate) fn draft(disk: &dyn FileDisk, path: &Path, prefix: &str) -> PathBuf {
    parent(path).join(format!("{prefix}{:016x}", disk.random()))
}

/// Replaces a file, or makes it.
pub(crate) fn replace(disk: &dyn FileDisk, path: &Path, draft: &Path, bytes: &[u8]) -> io::Result<()> {
    #[cfg(test)]
    if planted::is(Planted::WrittenOver) {
        let file = disk.open_to_write(path).or_else(|_| disk.create(path))?;
        file.set_len(bytes.len() as u64)?;
        file.write_all_at(bytes, 0).and_then(|()| file.sync())?;
        return disk.sync_dir(parent(path));
    }
    write_draft(disk, draft, bytes)?;
    disk.rename(draft, path).inspect_err(|_| discard(disk, draft))?;
    disk.sync_dir(parent(path))
}

/// Makes a file.
///
/// # Errors
/// `AlreadyExists` when there is a file of this name. That one survives a power cut, if whoever made it had it written.
pub(crate) fn create(disk: &dyn FileDisk, path: &Path, draft: &Path, bytes: &[u8]) -> io::Result<()> {
    write_draft(disk, draft, bytes)?;
    let named = disk.rename_new(draft, path).inspect_err(|_| discard(disk, draft));
    match named {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        named => disk.sync_dir(parent(path)).and(named),
    }
}

/// Gives a draft that is written its name. It lasts once the directory is synced.
pub(crate) fn name(disk: &dyn FileDisk, draft: &Path, path: &Path) -> io::Result<()> {
    disk.open(draft)?.sync()?;
    disk.rename_new(draft, path)
}

/// A file whose bytes last, and its name not yet.
pub(crate) fn write_draft(disk: &dyn FileDisk, draft: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = disk.create(draft)?;
    file.write_all_at(bytes, 0).and_then(|()| file.sync()).inspect_err(|_| discard(disk, draft))
}

/// Removes a draft that does not come to be the file. One that cannot be removed takes some room, and nothing else.
fn discard(disk: &dyn FileDisk, draft: &Path) {
    let _ = disk.remove(draft);
}
