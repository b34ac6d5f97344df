//! Agent memory that lives in a model's KV cache.
#![forbid(unsafe_code)]

mod chat;
mod detokenize;
mod error;
mod generate;
mod kv;
mod memory;
mod model;
mod ram_ledger;
pub mod recall;
mod record;
pub mod residency;
mod sample;
mod session;
mod store;
mod tiered;

pub use chat::{Chat, Layout};
pub use detokenize::Detokenizer;
pub use error::{BoxError, Error, Result};
pub use generate::{Finish, Generation};
pub use kv::{ChunkId, Fingerprint, KvChunk, KvData, KvShape, KvType, PrefixId, Token};
pub use memory::{Answer, AnswerStream, Ask, Builder, Event, Memory, Recollection};
pub use model::{Budget, Context, Model, ModelInfo, Piece, Repair, Usage};
pub use ram_ledger::RamLedger;
pub use recall::{Recalled, Recaller};
pub use record::{
    Added, Ledger, Namespace, NewRecord, Outcome, Query, Record, RecordId, Revision, State, Timestamp, Version,
};
pub use residency::{Access, ResidencyPolicy};
pub use sample::{Sampler, Sampling};
pub use session::{Session, SessionOptions};
pub use store::{Held, KvStore, StoreStats};
pub use tiered::{RamStore, Tier, Tiered};
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "transformer")]
pub mod transformer;
