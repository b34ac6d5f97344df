//! Chunks of KV in append-only, checksummed segment files.
//!
//! The bytes are laid down in `FORMAT.md` and read and written by [`format`]; [`scan`] finds the records of a file,
//! [`index`] knows where every chunk lies, [`writer`] appends, [`read`] hands out, [`reclaim`] removes, and [`store`]
//! puts these together. They reach files through [`Disk`](crate::disk::Disk), so that tests can run them on a disk whose
//! power is cut.

#[cfg(test)]
mod crash_tests;
pub(crate) mod format;
mod index;
mod read;
mod reclaim;
#[cfg(test)]
mod removal_tests;
pub(crate) mod scan;
pub(crate) mod store;
#[cfg(test)]
mod unreadable_tests;
mod writer;

pub(crate) use format::{SegmentName, index_entries};
pub use store::{SegmentOptions, SegmentStore};
