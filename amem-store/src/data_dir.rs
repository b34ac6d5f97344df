//! A data directory: everything that amem keeps, in one place.

use std::path::Path;

use crate::disk::{SystemDisk, make_dirs};
use crate::{Error, Result, SegmentStore, SqliteLedger};

/// Both parts of a data directory.
///
/// ```text
/// <dir>/                 made for its owner only
///   ledger.sqlite        what was said (SqliteLedger): the one thing to back up
///   kv/                  its KV (SegmentStore): a cache, which may be deleted while nothing runs
/// ```
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
/// When the directory cannot be made, or one of its parts cannot be opened.
pub fn open(dir: impl AsRef<Path>) -> Result<DataDir> {
    let dir = dir.as_ref();
    make_dirs(&SystemDisk, dir).map_err(Error::io("make the data directory", dir))?;
    Ok(DataDir { kv: SegmentStore::open(dir.join("kv"))?, ledger: SqliteLedger::open(dir.join("ledger.sqlite"))? })
}
