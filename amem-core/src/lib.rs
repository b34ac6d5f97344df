//! Agent memory that lives in a model's KV cache.
#![forbid(unsafe_code)]

mod chat;
mod error;
mod kv;
mod model;
pub mod recall;
mod record;
pub mod residency;
mod store;
mod tiered;

pub use chat::{Chat, Layout};
pub use error::{BoxError, Error, Result};
pub use kv::{ChunkId, Fingerprint, KvChunk, KvData, KvShape, KvType, PrefixId, Token};
pub use model::{Budget, Context, Model, ModelInfo, Piece, Repair, Scoring, Usage};
pub use recall::{Recalled, Recaller};
pub use record::{
    Added, Ledger, Namespace, NewRecord, Outcome, Query, Record, RecordId, Revision, State, Timestamp, Version,
};
pub use residency::{Access, ResidencyPolicy};
pub use store::{Held, KvStore, StoreStats};
pub use tiered::{RamStore, Tier, Tiered};
#[cfg(feature = "testing")]
pub mod testing;
