//! Ledger files that appear under their names when they are complete, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::{Builder, TempDir, TempPath};

use crate::{Error, Result};

/// A file that is being written. It is deleted, with all that SQLite keeps beside it, unless it is published.
pub(super) struct Draft {
    /// Its own folder, for its owner only.
    folder: TempDir,
    path: PathBuf,
}

impl Draft {
    /// An empty file that can be moved to `target`.
    pub(super) fn beside(target: &Path) -> Result<Self> {
        let folder = Builder::new().prefix(".amem-").tempdir_in(parent(target));
        let folder = folder.map_err(Error::writing(target))?;
        let path = folder.path().join("ledger.sqlite");
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        made.map_err(Error::writing(&path))?;
        Ok(Self { folder, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, durably. Nobody may have it open.
    ///
    /// # Errors
    /// [`Error::Exists`] when there is a file of this name.
    pub(super) fn publish(self, target: &Path) -> Result<()> {
        let Self { folder, path } = self;
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::writing(&path))?;
        let path = TempPath::try_from_path(&path).map_err(Error::writing(&path))?;
        path.persist_noclobber(target).map_err(|failed| match failed.error.kind() {
            ErrorKind::AlreadyExists => Error::Exists { path: target.to_owned() },
            _ => Error::writing(target)(failed.error),
        })?;
        folder.close().map_err(Error::io("clear up beside", target))?;
        sync(parent(target))
    }
}

/// The folder that a file is in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes what was created or renamed in a folder durable.
pub(super) fn sync(folder: &Path) -> Result<()> {
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
}
