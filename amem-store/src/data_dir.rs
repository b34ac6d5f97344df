//! A data directory: everything that amem keeps, in one place.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::disk::{SystemDisk, make_dirs};
use crate::{Error, Result, SegmentOptions, SegmentStore, SqliteLedger, Verification, ledger};

/// Both parts of a data directory.
///
/// ```text
/// <dir>/                 made for its owner only
///   ledger.sqlite        what was said (SqliteLedger), with the files that SQLite keeps beside it
///   kv/                  its KV (SegmentStore): a cache, which may be deleted while nothing runs
/// ```
///
/// To back it up, call [`backup`] or [`SqliteLedger::backup`] (`amem backup`), and [`restore`] (`amem restore`) to get it
/// back. That is the only way: the newest memories are not in `ledger.sqlite` but beside it for a while, so a copy of
/// that file may lack them. The KV needs no backup.
#[derive(Clone, Debug)]
pub struct DataDir {
    /// The KV of what was said.
    pub kv: SegmentStore,
    /// What was said.
    pub ledger: SqliteLedger,
}

/// Opens the data directory `dir`, which is made if it is not there.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let amem_store::DataDir { kv, ledger } = amem_store::open(dir.path().join("amem"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the directory cannot be made, or one of its parts cannot be opened; [`Error::Missing`] when there is KV but no
/// ledger, for then the ledger was lost.
pub fn open(dir: impl AsRef<Path>) -> Result<DataDir> {
    let dir = dir.as_ref();
    Ok(DataDir { ledger: open_ledger(dir)?, kv: SegmentStore::open(dir.join("kv"))? })
}

/// Opens the ledger of the data directory `dir`, which is made if it is not there, and leaves its KV to whoever uses it.
///
/// # Errors
/// As [`open`].
pub fn open_ledger(dir: impl AsRef<Path>) -> Result<SqliteLedger> {
    let dir = dir.as_ref();
    make(dir)?;
    let (path, kv) = (ledger_of(dir), dir.join("kv"));
    if !ledger::exists(&path)? && has_segments(&kv)? {
        return Err(Error::Missing { path, left: kv });
    }
    let ledger = SqliteLedger::open(path)?;
    // So that it can be opened for reading only, too.
    make(&kv)?;
    Ok(ledger)
}

/// Opens the data directory `dir` though records in it may be damaged, so that these can be forgotten: see
/// [`SqliteLedger::open_damaged`].
///
/// # Errors
/// As [`SqliteLedger::open_damaged`] and [`SegmentStore::open`].
pub fn open_damaged(dir: impl AsRef<Path>) -> Result<DataDir> {
    let dir = dir.as_ref();
    let ledger = SqliteLedger::open_damaged(ledger_of(dir))?;
    Ok(DataDir { ledger, kv: SegmentStore::open(dir.join("kv"))? })
}

/// Opens the ledger of the data directory `dir` for reading, and leaves its KV alone.
///
/// # Errors
/// As [`SqliteLedger::open_read_only`].
pub fn open_ledger_read_only(dir: impl AsRef<Path>) -> Result<SqliteLedger> {
    SqliteLedger::open_read_only(ledger_of(dir.as_ref()))
}

/// Opens the data directory `dir` for reading: where it, or the file system that it is on, may not be written. What is
/// remembered can be recalled and asked about. Whatever would change it is [`ReadOnly`](amem_core::Error::ReadOnly).
///
/// # Errors
/// When one of its parts is not there or cannot be opened, or was written by another version of amem.
pub fn open_read_only(dir: impl AsRef<Path>) -> Result<DataDir> {
    let (dir, mut options) = (dir.as_ref(), SegmentOptions::default());
    options.read_only = true;
    let ledger = open_ledger_read_only(dir)?;
    Ok(DataDir { ledger, kv: SegmentStore::open_with(dir.join("kv"), options)? })
}

/// Writes a backup of the ledger in the data directory `dir` to the new file `to`, as [`SqliteLedger::backup`] does.
/// Other processes may use the directory meanwhile.
///
/// # Errors
/// As [`SqliteLedger::backup`], and when there is no ledger.
pub fn backup(dir: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    ledger::copy(&ledger_of(dir.as_ref()), to.as_ref())
}

/// Puts the ledger of a backup into the data directory `dir`, which is made if it is not there and must not have a
/// ledger. The backup is checked first, and is brought up to date if an earlier version of amem wrote it.
///
/// Texts that were forgotten after the backup are back. KV of texts that the backup does not have stays in `kv/`, where
/// nobody finds it, until it makes room for others: delete that folder to be rid of it.
///
/// # Errors
/// [`Error::Exists`] when the directory has a ledger, [`Error::Damaged`] or [`Error::NotALedger`] when the backup is none
/// that can be used; when something cannot be read or written.
pub fn restore(from: impl AsRef<Path>, dir: impl AsRef<Path>) -> Result<()> {
    let (dir, path) = (dir.as_ref(), ledger_of(dir.as_ref()));
    // One that is damaged is moved away by hand: that is not for a program to decide.
    if fs::symlink_metadata(&path).is_ok() || ledger::exists(&path)? {
        return Err(Error::Exists { path });
    }
    make(dir)?;
    ledger::copy(from.as_ref(), &path)?;
    // So that it can be opened for reading only, too.
    make(&dir.join("kv"))
}

/// Checks the ledger in the data directory `dir`, as [`SqliteLedger::verify`] does, even one that is too damaged to be
/// opened.
///
/// # Errors
/// When it cannot be read, or is no ledger.
pub fn verify(dir: impl AsRef<Path>) -> Result<Verification> {
    ledger::verify(&ledger_of(dir.as_ref()))
}

fn ledger_of(dir: &Path) -> PathBuf {
    dir.join("ledger.sqlite")
}

fn make(dir: &Path) -> Result<()> {
    make_dirs(&SystemDisk, dir).map_err(Error::io("make the data directory", dir))
}

/// Whether there is KV. A writer leaves its lock.
fn has_segments(kv: &Path) -> Result<bool> {
    match fs::read_dir(kv) {
        Ok(mut entries) => Ok(entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "LOCK"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", kv)(error)),
    }
}
