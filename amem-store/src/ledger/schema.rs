//! What a ledger's file is: how one is made, told from other files, and brought up to date.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::check::Check;
use super::{check, connection, publish};
use crate::disk::parent;
use crate::{Error, Result};

/// The schema that this code reads and writes. A later one adds its migration to [`migrate`].
pub(super) const VERSION: u32 = 5;
/// What SQLite's header says of a file that amem made, from version 3 on: "amem".
const APPLICATION: u32 = u32::from_be_bytes(*b"amem");

/// A connection that writes to the ledger at `path`. A new ledger is made if there is none.
pub(super) fn open(path: &Path, check: Check) -> Result<Connection> {
    publish::remove_drafts(parent(path));
    if !exists(path)? {
        create(path)?;
    }
    let mut connection = connection::to_write(path)?;
    identify(&connection, path)?;
    connection::configure(&connection).map_err(Error::ledger("configure the ledger", path))?;
    check::at_open(&connection, path, check)?;
    if migrate(&mut connection, path)? {
        check::at_open(&connection, path, check)?;
    }
    Ok(connection)
}

/// Whether there is a ledger at `path`. It has its name only since it was complete, so one without a byte is damaged.
pub(super) fn exists(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(file) if file.len() == 0 => Err(Error::Damaged { path: path.to_owned(), reason: "it is empty".to_owned() }),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let log = connection::beside(path, "-wal");
            if connection::has_bytes(&log) {
                Err(Error::Missing { path: path.to_owned(), left: log })
            } else {
                Ok(false)
            }
        }
        Err(error) => Err(Error::io("open the ledger", path)(error)),
    }
}

/// Makes an empty ledger. If another process makes it at the same time, there is one of the two.
fn create(path: &Path) -> Result<()> {
    let draft = publish::Draft::beside(path)?;
    let mut connection = connection::to_write(draft.path())?;
    let failed = "make the ledger";
    connection::make_durable(&connection).map_err(Error::ledger(failed, path))?;
    let make = connection.transaction().map_err(Error::ledger(failed, path))?;
    make.execute_batch(include_str!("schema.sql")).map_err(Error::ledger(failed, path))?;
    make.pragma_update(None, "application_id", APPLICATION).map_err(Error::ledger(failed, path))?;
    make.pragma_update(None, "user_version", VERSION).map_err(Error::ledger(failed, path))?;
    make.commit().map_err(Error::ledger(failed, path))?;
    connection.close().map_err(|(_, error)| Error::ledger(failed, path)(error))?;
    match draft.publish(path) {
        Err(Error::Exists { .. }) => Ok(()),
        published => published,
    }
}

/// The version of a ledger's schema, if the file is a ledger that this code can read or bring up to date.
pub(super) fn identify(connection: &Connection, path: &Path) -> Result<u32> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, u32>(0));
    let read = Error::ledger("read the ledger's header", path);
    let found = number("application_id").and_then(|application| Ok((application, number("user_version")?)));
    let (application, version) = found.map_err(read)?;
    match (application, version) {
        (APPLICATION, 1..=VERSION) => Ok(version),
        (APPLICATION, found) => Err(Error::NewerFormat { path: path.to_owned(), found, supported: VERSION }),
        // Before version 3 the tables alone said it.
        (0, 1..3) => {
            let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('record', 'version')";
            let tables = connection.query_row(tables, [], |row| row.get::<_, u32>(0));
            match tables.map_err(Error::ledger("read the ledger's schema", path))? {
                2 => Ok(version),
                _ => Err(Error::NotALedger { path: path.to_owned() }),
            }
        }
        _ => Err(Error::NotALedger { path: path.to_owned() }),
    }
}

/// As [`identify`], for whoever cannot bring it up to date.
pub(super) fn is_current(connection: &Connection, path: &Path) -> Result<()> {
    match identify(connection, path)? {
        VERSION => Ok(()),
        found => Err(Error::OlderFormat { path: path.to_owned(), found, supported: VERSION }),
    }
}

/// Brings a ledger up to date. Says whether that changed it.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<bool> {
    // Opening a ledger that is up to date waits for no process that writes to it.
    if identify(connection, path)? == VERSION {
        return Ok(false);
    }
    let failed = || Error::ledger("bring the ledger's schema up to date", path);
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed())?;
    let found = identify(&change, path)?;
    if found == VERSION {
        return Ok(false);
    }
    if found < 3 {
        // From here on a checksum vouches for each text, so each must be as it was written.
        check::texts(&change, path)?;
        if found < 2 {
            change.execute_batch(include_str!("schema_1_to_2.sql")).map_err(failed())?;
        }
        change.execute_batch(include_str!("schema_2_to_3.sql")).map_err(failed())?;
        let checksums = [
            concat!("UPDATE record AS r SET checksum = ", record_checksum!()),
            concat!("UPDATE version AS v SET checksum = ", version_checksum!()),
        ];
        checksums.iter().try_for_each(|update| change.execute(update, []).map(drop)).map_err(failed())?;
    }
    if found < 4 {
        change.execute_batch(include_str!("schema_3_to_4.sql")).map_err(failed())?;
    }
    change.execute_batch(include_str!("schema_4_to_5.sql")).map_err(failed())?;
    change.pragma_update(None, "application_id", APPLICATION).map_err(failed())?;
    change.pragma_update(None, "user_version", VERSION).map_err(failed())?;
    change.commit().map_err(failed())?;
    Ok(true)
}
