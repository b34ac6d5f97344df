//! Agent memory that lives in a model's KV cache.
#![forbid(unsafe_code)]

mod chat;
mod error;
mod kv;
mod model;
mod ram_ledger;
pub mod recall;
mod record;
pub mod residency;
mod store;

pub use chat::{Chat, Layout};
pub use error::{BoxError, Error, Result};
pub use kv::{ChunkId, Fingerprint, KvChunk, KvData, KvShape, KvType, PrefixId, Token};
pub use model::{Budget, Context, Model, ModelInfo, Piece, Repair, Scoring, Usage};
pub use ram_ledger::RamLedger;
pub use recall::{Recalled, Recaller};
pub use record::{
    Added, Ledger, Namespace, NewRecord, Outcome, Query, Record, RecordId, Revision, State, Timestamp, Version,
};
pub use residency::{Access, ResidencyPolicy};
pub use store::{KvStore, StoreStats};
#[cfg(feature = "testing")]
pub mod testing;
