//! Copies of a ledger: backups, and ledgers that are restored from them.

use std::path::Path;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::{check, connection, publish, schema};
use crate::{Error, Result};

/// Copies a ledger as it is at one moment into a new file, which is complete in itself and of the present schema. Others
/// may read and write the ledger meanwhile.
///
/// The copy is checked in full before it gets its name.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    if !schema::exists(from)? {
        return Err(Error::io("open the ledger", from)(std::io::ErrorKind::NotFound.into()));
    }
    let source = connection::to_read(from)?.connection;
    schema::identify(&source, from)?;
    if to.exists() {
        return Err(Error::Exists { path: to.to_owned() });
    }
    let draft = publish::Draft::beside(to)?;
    let mut target = connection::to_write(draft.path())?;
    let failed = || Error::ledger("copy the ledger", to);
    connection::make_durable(&target).map_err(failed())?;
    copy_pages(&source, &mut target).map_err(Error::ledger("copy the ledger", from))?;
    // The ledger has a log beside it; its copy has none.
    target.pragma_update(None, "journal_mode", "DELETE").map_err(failed())?;
    let problems = check::verify(&target, from)?.problems;
    if let Some(reason) = problems.into_iter().next() {
        return Err(Error::Damaged { path: from.to_owned(), reason });
    }
    schema::migrate(&mut target, from)?;
    target.close().map_err(|(_, error)| failed()(error))?;
    draft.publish(to)
}

fn copy_pages(source: &Connection, target: &mut Connection) -> rusqlite::Result<()> {
    let backup = Backup::new(source, target)?;
    loop {
        // In one step, for a change between two would begin it again. No writer waits for it.
        match backup.step(-1)? {
            StepResult::Done => return Ok(()),
            _ => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}
