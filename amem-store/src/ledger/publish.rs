//! Ledger files that appear under their names when they are complete, or not at all.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use tempfile::{Builder, TempDir};

use crate::disk::{Disk, SystemDisk, parent};
use crate::{Error, Result, whole_file};

/// What the name of a draft's folder begins with.
const DRAFT: &str = ".amem-draft-";
/// In a draft's folder, the file that its process holds a lock on.
const LOCK: &str = "LOCK";
/// In a draft's folder, the file that is being written.
const LEDGER: &str = "ledger.sqlite";
/// All that a draft's folder may hold. The lock goes last, after what it is there for.
const FILES: [&str; 5] = [LEDGER, "ledger.sqlite-journal", "ledger.sqlite-wal", "ledger.sqlite-shm", LOCK];

/// A file that is being written. It is deleted, with all that SQLite keeps beside it, unless it is published.
pub(super) struct Draft {
    /// Its own folder, for its owner only.
    folder: TempDir,
    path: PathBuf,
    /// Held as long as this is used, so that [`remove_drafts`] leaves it alone.
    lock: File,
}

impl Draft {
    /// An empty file that can be moved to `target`. Drafts beside it that a killed process has left are removed.
    pub(super) fn beside(target: &Path) -> Result<Self> {
        remove_drafts(parent(target));
        let (folder, lock) = locked_folder(parent(target)).map_err(Error::writing(target))?;
        let path = folder.path().join(LEDGER);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        made.map_err(Error::writing(&path))?;
        Ok(Self { folder, path, lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, durably. Nobody may have it open.
    ///
    /// # Errors
    /// [`Error::Exists`] when there is a file of this name.
    pub(super) fn publish(self, target: &Path) -> Result<()> {
        let Self { folder, path, lock } = self;
        whole_file::name(&SystemDisk, &path, target).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Error::Exists { path: target.to_owned() },
            _ => Error::writing(target)(error),
        })?;
        folder.close().map_err(Error::io("clear up beside", target))?;
        drop(lock);
        let folder = parent(target);
        SystemDisk.sync_dir(folder).map_err(Error::io("sync", folder))
    }
}

/// A new folder in `dir`, for its owner only, and the lock on it.
fn locked_folder(dir: &Path) -> io::Result<(TempDir, File)> {
    loop {
        let folder = Builder::new().prefix(DRAFT).permissions(Permissions::from_mode(0o700)).tempdir_in(dir)?;
        let path = folder.path().join(LOCK);
        let locked = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|lock| {
            lock.try_lock()?;
            Ok(lock)
        });
        match locked {
            Ok(lock) if path.exists() => return Ok((folder, lock)),
            // Another process that removes drafts took it for an abandoned one before it was locked.
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes the drafts in `dir` that killed processes have left: they hold texts that may have been forgotten since. Those
/// of processes that run are locked, and stay.
pub(super) fn remove_drafts(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(DRAFT.as_bytes())) {
        match remove_draft(&entry.path()) {
            Ok(()) => {}
            // Another process removes it, or has published it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                let path = entry.path();
                log::warn!("{} is what a killed process has left, and cannot be removed: {error}", path.display());
            }
        }
    }
}

/// Removes a draft, unless a process writes it or it is something else.
fn remove_draft(path: &Path) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // Others may write to the folder that it is in: whatever they put in its place meanwhile, this one is looked into.
    let folder = match rustix::fs::open(path, OFlags::DIRECTORY | flags, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Ok(()),
        folder => folder?,
    };
    for entry in fs::read_dir(path)? {
        if !FILES.iter().any(|file| entry.as_ref().is_ok_and(|entry| entry.file_name() == *file)) {
            return Ok(());
        }
    }
    // Made if it is not there, so that a process that has just made the folder cannot lock it and go on.
    let lock = match rustix::fs::openat(&folder, LOCK, OFlags::WRONLY | OFlags::CREATE | flags, Mode::RUSR | Mode::WUSR)
    {
        Err(Errno::ACCESS) => return Ok(()),
        lock => File::from(lock?),
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    for file in FILES {
        match rustix::fs::unlinkat(&folder, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the drafts in a folder.
    fn drafts(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.filter(|name| name.starts_with(DRAFT)).collect();
        names.sort();
        names
    }

    #[test]
    fn a_draft_is_for_its_owner_only_and_stays_while_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("backup");
        let draft = Draft::beside(&target).unwrap();
        assert_eq!(fs::metadata(draft.folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
        let other = Draft::beside(&target).unwrap();
        assert!(draft.path().exists() && other.path().exists());
        draft.publish(&target).unwrap();
        drop(other);
        assert_eq!(drafts(dir.path()), [""; 0]);
        assert!(target.exists());
    }

    #[test]
    fn drafts_that_nobody_writes_are_removed_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[&str]| {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            files.iter().for_each(|file| fs::write(folder.join(file), "a secret").unwrap());
            folder
        };
        make(".amem-draft-copied", &[LEDGER, "ledger.sqlite-journal", LOCK]);
        make(".amem-draft-begun", &[]);
        make(".amem-draft-half-removed", &[LEDGER]);
        make(".amem-draft-others", &[LEDGER, LOCK, "notes"]);
        fs::write(dir.path().join(".amem-draft-file"), "not a draft").unwrap();
        let elsewhere = make("elsewhere", &[LEDGER, LOCK]);
        std::os::unix::fs::symlink(&elsewhere, dir.path().join(".amem-draft-link")).unwrap();
        remove_drafts(dir.path());
        assert_eq!(drafts(dir.path()), [".amem-draft-file", ".amem-draft-link", ".amem-draft-others"]);
        for kept in [".amem-draft-others/ledger.sqlite", ".amem-draft-others/notes", "elsewhere/ledger.sqlite"] {
            assert!(dir.path().join(kept).exists(), "{kept}");
        }
    }
}
