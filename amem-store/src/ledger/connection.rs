//! Connections to a ledger's file: one that writes, and others that only read.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::checksum;
use crate::{Error, Result};

/// How long a process waits for another one's transaction.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that reads and writes the file at `path`, which must be there. Nothing in the file was looked at yet.
pub(super) fn to_write(path: &Path) -> Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
    connection.map_err(Error::ledger("open the ledger", path))
}

/// How [`configure`] leaves a connection: every commit is on the disk before it returns, and what is deleted or
/// overwritten is overwritten with zeros.
pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    patiently(|| connection.pragma_update(None, "journal_mode", "WAL"))?;
    make_durable(connection)
}

/// As [`configure`], for a file that nobody else knows of yet and that has to be complete without a log.
pub(super) fn make_durable(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "secure_delete", "ON")
}

/// A connection that reads.
pub(super) struct Reader {
    pub(super) connection: Connection,
    /// It takes no locks, and so must not be kept: it would not see what is written later.
    pub(super) is_immutable: bool,
}

/// A connection that reads the file at `path`, and never waits for one that writes.
pub(super) fn to_read(path: &Path) -> Result<Reader> {
    let shared = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).and_then(|connection| {
        // SQLite opens a file when it is first read.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(connection)
    });
    match shared {
        Ok(connection) => Ok(Reader { connection, is_immutable: false }),
        // Where the files that readers and writers share cannot be made, nobody writes here. Without a log, the file is
        // all there is.
        Err(error) if is_unshared(&error) && !has_bytes(&beside(path, "-wal")) => {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            let connection = connect(&immutable_uri(path), flags).map_err(Error::ledger("open the ledger", path))?;
            Ok(Reader { connection, is_immutable: true })
        }
        Err(error) => Err(Error::ledger("open the ledger", path)(error)),
    }
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.pragma_update(None, "cell_size_check", "ON")?;
    checksum::register(&connection)?;
    Ok(connection)
}

fn is_unshared(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}

/// The name by which SQLite opens a file that does not change.
fn immutable_uri(path: &Path) -> PathBuf {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    (uri + "?immutable=1").into()
}

/// The path of a file that SQLite keeps beside the ledger's.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.into();
    name.push(suffix);
    name.into()
}

/// Whether there is a file with something in it.
pub(super) fn has_bytes(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.len() > 0)
}

/// Moves the write-ahead log into the database and cuts it to nothing, so that no old page is left in it. `false` when
/// somebody reads or writes the ledger for longer than `patience`.
pub(super) fn wipe_log(connection: &Connection, patience: Duration) -> rusqlite::Result<bool> {
    connection.busy_timeout(patience)?;
    let wiped = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok(row.get::<_, i64>(0)? == 0));
    connection.busy_timeout(PATIENCE)?;
    match wiped {
        Err(error) if is_busy(&error) => Ok(false),
        wiped => wiped,
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// SQLite does not wait in some of the cases in which two processes open a new file at once.
fn patiently<T>(mut attempt: impl FnMut() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_busy(&error) && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}
