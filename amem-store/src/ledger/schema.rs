//! Opening the ledger's file: its settings, and its schema and version.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::{Error, Result};

/// The schema that this code reads and writes. A later one adds its migration to [`migrate`].
const VERSION: u32 = 2;
/// How long a process waits for another one's transaction.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the ledger at `path`, which is made if it is not there.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let private = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    private.map_err(Error::io("open the ledger", path))?;
    let mut connection = Connection::open(path).map_err(Error::sqlite("open the ledger"))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.busy_timeout(PATIENCE).map_err(Error::sqlite("open the ledger"))?;
    patiently(|| configure(&connection)).map_err(Error::sqlite("configure the ledger"))?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Every commit is on the disk before it returns.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What is deleted or overwritten is overwritten with zeros.
    connection.pragma_update(None, "secure_delete", "ON")?;
    // A process that ended right after it forgot something may have left the text in the log.
    wipe_log(connection).map(|_| ())
}

/// Moves the write-ahead log into the database and cuts it to nothing, so that no old page is left in it. `false` when
/// another process was reading from it all the time.
pub(super) fn wipe_log(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok(row.get::<_, i64>(0)? == 0))
}

/// SQLite does not wait in some of the cases in which two processes open a new file at once.
fn patiently<T>(mut attempt: impl FnMut() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let failed = "bring the ledger's schema up to date";
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    let change = change.map_err(Error::sqlite(failed))?;
    let found: u32 =
        change.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(Error::sqlite(failed))?;
    let script = match found {
        VERSION => return Ok(()),
        0 => include_str!("schema.sql"),
        1 => include_str!("schema_1_to_2.sql"),
        _ => return Err(Error::NewerFormat { path: path.to_owned(), found, supported: VERSION }),
    };
    change.execute_batch(script).map_err(Error::sqlite(failed))?;
    change.pragma_update(None, "user_version", VERSION).map_err(Error::sqlite(failed))?;
    change.commit().map_err(Error::sqlite(failed))?;
    // What the change wiped is not left in the log.
    wipe_log(connection).map(drop).map_err(Error::sqlite(failed))
}
