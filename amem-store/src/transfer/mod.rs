//! What is remembered, as lines of JSON: [`export`] writes them, [`import`] reads them, and [`import_reference`] reads the
//! data directory of the reference system, which keeps logs of operations.
//!
//! A line is one record:
//!
//! ```json
//! {"namespace":"alice","id":"0193…","text":"Alice lives in Denver.","key":"alice.home","metadata":{"source":"mail"},
//!  "created_at":"2026-11-25T16:38:38.000Z","updated_at":"2026-11-25T16:38:38.000Z","state":"active"}
//! ```
//!
//! (in one line). Moments are read as RFC 3339 or as seconds since 1970. Of what is read, only `text` must be there, and
//! fields that are not known here are passed over. Ids are written for the reader's sake: a ledger gives its records ids of
//! its own.

mod export;
mod import;
mod lines;
mod moment;
mod reference;

use std::io;
use std::path::PathBuf;

use amem_core::{Outcome, RecordId};

pub use self::export::{Export, export};
pub use self::import::{import, import_checked};
pub use self::reference::{ReferenceFile, import_reference, import_reference_log};

/// Bytes of a line at most, without its end.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// What stopped an export or an import.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The lines could not be written.
    #[error("cannot write the export: {0}")]
    Write(#[source] io::Error),
    /// The lines could not be read.
    #[error("cannot read line {line}: {source}")]
    Read {
        /// The line, counted from 1.
        line: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file or directory could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] amem_core::Error),
    /// The ledger took no more.
    #[error("the ledger refused line {line} and those behind it: {source}; import again to go on from there")]
    Add {
        /// The first line that is not in the ledger.
        line: u64,
        /// What the ledger said.
        source: amem_core::Error,
    },
}

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedLine {
    /// The line, counted from 1.
    pub line: u64,
    /// What became of it.
    pub became: Became,
}

/// See [`ImportedLine::became`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Became {
    /// The ledger holds it.
    Held {
        /// As this record.
        id: RecordId,
        /// Whether it was new, stood already, or took another's place.
        outcome: Outcome,
    },
    /// It changed or ended what an earlier line of the same log had added.
    Applied,
    /// It is no memory that counts, for this reason.
    LeftOut {
        /// Why.
        reason: String,
    },
    /// It cannot be read or is beyond a ledger's bounds, for this reason.
    Refused {
        /// Why.
        reason: String,
    },
}

/// How many lines became what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// New records, those that took another's place not among them. Records that were superseded from the start are, for
    /// the key's active record is newer.
    pub added: u64,
    /// New records that took another's place.
    pub superseding: u64,
    /// Records that stood already.
    pub duplicates: u64,
    /// Records that stood already, and have another expiry or other metadata now.
    pub changed: u64,
    /// Lines that changed or ended what an earlier line had added.
    pub applied: u64,
    /// Lines that are no memories that count.
    pub left_out: u64,
    /// Lines that cannot be read or are beyond a ledger's bounds.
    pub refused: u64,
}

impl Imported {
    fn count(&mut self, became: &Became) {
        let count = match became {
            Became::Held { outcome: Outcome::Duplicate, .. } => &mut self.duplicates,
            Became::Held { outcome: Outcome::Changed, .. } => &mut self.changed,
            Became::Held { outcome: Outcome::Superseded(_), .. } => &mut self.superseding,
            Became::Held { .. } => &mut self.added,
            Became::Applied => &mut self.applied,
            Became::LeftOut { .. } => &mut self.left_out,
            Became::Refused { .. } => &mut self.refused,
        };
        *count += 1;
    }

    /// All lines that were read.
    pub fn lines(&self) -> u64 {
        let held = self.added + self.superseding + self.duplicates + self.changed;
        held + self.applied + self.left_out + self.refused
    }
}
