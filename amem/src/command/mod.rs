//! The commands, one file each.

pub(crate) mod ask;
pub(crate) mod bench;
mod device;
mod embedder;
pub(crate) mod encryption;
pub(crate) mod export;
pub(crate) mod hub;
pub(crate) mod import;
pub(crate) mod keep;
pub(crate) mod key;
pub(crate) mod mcp;
pub(crate) mod open;
pub(crate) mod proxy;
pub(crate) mod residency;
pub(crate) mod serve;
pub(crate) mod shared;
