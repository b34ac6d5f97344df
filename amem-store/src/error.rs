//! What can go wrong on disk, with which file, and what to do about it.

use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use rusqlite::ffi::{SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_WRITE};

use crate::disk::parent;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Damage within a store's files is not among it: a damaged chunk is a miss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "read", …
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The disk, a quota or a limit on file sizes left no room. Of a ledger in SQLite, a limit on file sizes is not told
    /// from other failures to write: that is [`Sqlite`](Self::Sqlite).
    #[error("no room to write {}: {source}", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
        /// What the operating system said, or SQLite.
        source: io::Error,
    },
    /// The store can be read, but not written.
    #[error("{} is read-only: {reason}", path.display())]
    ReadOnly {
        /// The store's directory.
        path: PathBuf,
        /// Why it cannot be written.
        reason: String,
    },
    /// An earlier write failed in a way that leaves unknown what is on disk. Reads go on.
    #[error("{} takes no more writes since one failed ({reason}): open it anew", path.display())]
    Poisoned {
        /// The store's directory.
        path: PathBuf,
        /// The failure that did it.
        reason: String,
    },
    /// A chunk that was to be written could not be read.
    #[error("cannot store chunk {chunk}: {source}")]
    Chunk {
        /// The chunk.
        chunk: amem_core::ChunkId,
        /// Why it cannot be read.
        source: amem_core::Error,
    },
    /// A file was written by a later version of amem.
    #[error("{} has format {found}, and this amem reads up to {supported}: use a newer amem", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format's version.
        found: u32,
        /// The last version known here.
        supported: u32,
    },
    /// SQLite failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// With which ledger's file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// What is in a ledger's file is not what was written there.
    #[error(
        "{} is damaged: {reason}; restore it from a backup (amem restore), or forget what is damaged (amem verify says how)",
        path.display()
    )]
    Damaged {
        /// The ledger's file.
        path: PathBuf,
        /// What was found, with the record where it is known.
        reason: String,
    },
    /// A file that should be a ledger is something else.
    #[error("{} is no ledger of amem: move it away, or restore a ledger from a backup", path.display())]
    NotALedger {
        /// The file.
        path: PathBuf,
    },
    /// There was a ledger here, and its file is gone.
    #[error(
        "the ledger {} is gone, but {} is still there: move that away, then restore the ledger from a backup or begin anew",
        path.display(), left.display()
    )]
    Missing {
        /// Where the ledger should be.
        path: PathBuf,
        /// What was left of it.
        left: PathBuf,
    },
    /// The KV of a data directory is in another place than it is to be kept in.
    #[error(
        "KV is kept in {}, not in {}: go on with that place; or, while nothing runs, move its files to the new place or \
         delete them, and remove {}",
        kept.display(), wanted.display(), link.display()
    )]
    KvElsewhere {
        /// The directory for KV in the data directory, or the link there.
        link: PathBuf,
        /// Where KV is kept.
        kept: PathBuf,
        /// Where it was to be kept.
        wanted: PathBuf,
    },
    /// The directory that a data directory keeps its KV in is not there, or nothing is in it.
    #[error(
        "there is no KV in {}, where it is kept: mount its disk; if it was deleted, remove the link {}",
        kept.display(), link.display()
    )]
    NoKv {
        /// The link in the data directory.
        link: PathBuf,
        /// Where it leads.
        kept: PathBuf,
    },
    /// KV of a data directory is kept on a server that machines share, too, and would not be deleted from there.
    #[error(
        "KV is kept on {place} too, and what is forgotten must be deleted there as well: name it (--shared-kv); if no KV is \
         left there, remove {}",
        note.display()
    )]
    SharedKv {
        /// The note that says so.
        note: PathBuf,
        /// The server.
        place: String,
    },
    /// A backup or a ledger was to be written where a file is already.
    #[error("{} exists and is not overwritten: move it away first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A ledger was written by an earlier version of amem, and cannot be brought up to date where it is only read.
    #[error(
        "{} has format {found}, and this amem reads {supported}: open it once for writing, which brings it up to date",
        path.display()
    )]
    OlderFormat {
        /// The file.
        path: PathBuf,
        /// Its format's version.
        found: u32,
        /// The version that is read here.
        supported: u32,
    },
    /// A file of a model's directory is larger than this crate is willing to read into memory.
    #[error("{} has {found} bytes, more than the {limit} allowed: is it what its name says?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// A GGUF file is damaged, or holds a model that cannot be run.
    #[error("cannot open the model {}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: amem_core::Error,
    },
    /// A directory has more than one GGUF model in it.
    #[error("{} has several models in it: name one of {}", path.display(), names.join(", "))]
    SeveralModels {
        /// The directory.
        path: PathBuf,
        /// The files, of models in several parts the first ones.
        names: Vec<String>,
    },
    /// A file of keys was wrapped under another master key.
    #[cfg(feature = "encryption")]
    #[error(
        "{} was wrapped under another master key: give the one that its directory was made with, or finish changing it \
         (KeyDir::rewrap)",
        path.display()
    )]
    WrongMasterKey {
        /// The file.
        path: PathBuf,
    },
    /// A file that should hold a master key does not.
    #[cfg(feature = "encryption")]
    #[error("{} cannot be used as a master key: {reason}", path.display())]
    BadMasterKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of keys is not what was written there.
    #[cfg(feature = "encryption")]
    #[error("{} is damaged: {reason}; restore it from a backup of the keys", path.display())]
    DamagedKey {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A directory of keys is used by somebody else in a way that does not go together with this.
    #[cfg(feature = "encryption")]
    #[error("the keys in {} are in use: try again when no other process uses them", path.display())]
    KeysInUse {
        /// The directory.
        path: PathBuf,
    },
}

impl Error {
    /// For `map_err`: an error of doing `action` to `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// For `map_err`: an error of writing to `path`, told apart by what the caller can do about it.
    pub(crate) fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match source.kind() {
                _ if is_full(&source) => Self::Full { path, source },
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                    Self::ReadOnly { path, reason: source.to_string() }
                }
                _ => Self::Io { action: "write", path, source },
            }
        }
    }

    /// For `map_err`: an error of SQLite while doing `action` to the ledger at `path`, damage and a full disk told apart.
    pub(crate) fn ledger(action: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
        move |source| {
            let damage = matches!(
                source,
                FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..)
            );
            let could_not_write =
                matches!(source.sqlite_extended_error_code(), Some(SQLITE_IOERR_WRITE | SQLITE_IOERR_SHMSIZE));
            if could_not_write && let Some(full) = no_room_beside(path) {
                return Self::Full { path: path.to_owned(), source: full };
            }
            match source.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => {
                    Self::Full { path: path.to_owned(), source: io::Error::new(ErrorKind::StorageFull, source) }
                }
                Some(ErrorCode::ReadOnly) => Self::ReadOnly { path: path.to_owned(), reason: source.to_string() },
                Some(ErrorCode::NotADatabase) => Self::NotALedger { path: path.to_owned() },
                Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path: path.to_owned(), reason: source.to_string() },
                _ if damage => Self::Damaged { path: path.to_owned(), reason: source.to_string() },
                _ => Self::Sqlite { action, path: path.to_owned(), source },
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// What the operating system says if there is no room for a little more beside the file at `path`. SQLite tells a full
/// disk from other failures to write, but not a quota that is used up.
fn no_room_beside(path: &Path) -> Option<io::Error> {
    /// More than the page that SQLite could not write.
    const BYTES: usize = 64 << 10;
    let write = || {
        // It has no name, so nothing is left of it even if the process is killed.
        let mut probe = tempfile::tempfile_in(parent(path))?;
        probe.write_all(&[0; BYTES])?;
        probe.sync_all()
    };
    write().err().filter(is_full)
}

impl From<Error> for amem_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Full { path, source } => Self::Full { what: path.display().to_string(), reason: source.to_string() },
            Error::ReadOnly { path, reason } => Self::ReadOnly { what: path.display().to_string(), reason },
            Error::Sqlite { .. }
            | Error::Damaged { .. }
            | Error::NotALedger { .. }
            | Error::Missing { .. }
            | Error::OlderFormat { .. } => Self::Ledger(Box::new(error)),
            other => Self::Store(Box::new(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_disk::SmallDisk;

    fn code(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
    }

    #[test]
    fn every_error_of_sqlite_names_the_file() {
        let path = Path::new("/data/ledger.sqlite");
        use rusqlite::ffi::{SQLITE_BUSY, SQLITE_CORRUPT, SQLITE_FULL, SQLITE_NOTADB, SQLITE_READONLY};
        for source in [SQLITE_BUSY, SQLITE_CORRUPT, SQLITE_FULL, SQLITE_NOTADB, SQLITE_READONLY].map(code) {
            let error = Error::ledger("read the ledger", path)(source);
            assert!(error.to_string().contains("/data/ledger.sqlite"), "{error}");
            let error = amem_core::Error::from(error);
            assert!(error.to_string().contains("/data/ledger.sqlite"), "{error}");
        }
    }

    #[test]
    fn a_failure_to_write_is_a_full_disk_only_where_there_is_no_room() {
        let failed = |path: &Path| Error::ledger("remember", path)(code(SQLITE_IOERR_WRITE));
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("ledger.sqlite"), dir.path().join("none/ledger.sqlite")] {
            let other = failed(&path);
            assert!(matches!(other, Error::Sqlite { .. }), "{other}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        // A full disk stands in for a quota that is used up.
        let Some(disk) = SmallDisk::mount() else { return };
        std::fs::write(disk.path().join("filling"), vec![0; 4 << 20]).expect_err("it is more than the disk");
        let full = amem_core::Error::from(failed(&disk.path().join("ledger.sqlite")));
        assert!(matches!(full, amem_core::Error::Full { .. }), "{full}");
    }
}
