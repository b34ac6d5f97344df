//! What outlives amem's process: KV in segment files, records in SQLite, models read where they lie.
//!
//! Start at [`open`], which gives both halves of a data directory. [`SegmentStore`] and [`SqliteLedger`] also stand
//! alone, and [`ModelDir`] reads a model without copying it.

// So that the example in there compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod crc;
mod data_dir;
mod disk;
#[cfg(feature = "encryption")]
pub mod encryption;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod ledger;
mod map;
mod model_dir;
#[cfg(test)]
mod planted;
#[cfg(feature = "postgres")]
mod postgres;
mod readers;
#[cfg(feature = "remote")]
pub mod remote;
#[cfg(not(feature = "remote"))]
mod remote;
mod residency_file;
mod residency_saver;
mod segment;
#[cfg(test)]
mod simulated_disk;
#[cfg(test)]
#[path = "../tests/common/small_disk.rs"]
mod small_disk;
pub mod transfer;
mod whole_file;
#[cfg(test)]
mod whole_file_tests;

pub use data_dir::{
    DEFAULT_KV_BYTES, DataDir, backup, check_shared_kv, keep_kv_in, note_shared_kv, open, open_damaged, open_kv,
    open_ledger, open_ledger_read_only, open_read_only, open_with, restore, verify,
};
#[cfg(feature = "encryption")]
pub use encryption::{EncryptedLedger, EncryptedStore, EncryptionError, Holder, Key, KeyDir, Keys, MasterKey};
pub use error::{Error, Result};
pub use ledger::{SqliteLedger, Verification};
pub use model_dir::ModelDir;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresError, PostgresLedger, PostgresOptions};
pub use residency_file::ResidencyFile;
pub use residency_saver::{ResidencySaver, SaveTimes};
pub use segment::{SegmentOptions, SegmentStore};
pub use transfer::{
    Became, Export, Imported, ImportedLine, MAX_LINE_BYTES, ReferenceFile, TransferError, export, import,
    import_checked, import_reference, import_reference_log,
};
pub use whole_file::{create_file, make_dir, replace_file};
