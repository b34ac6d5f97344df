//! Agent memory that lives in a model's KV cache.
//!
//! A memory is prefilled once and its keys and values are kept. Whatever set of memories is recalled, in whatever order,
//! is put together into one context; the few rows that this made wrong are computed again; what is left to prefill is
//! the question.
//!
//! Most users come in by [`Memory`] (remember, recall, ask, update, forget) and [`Session`] (many questions over one
//! working set). Both are made of parts that stand behind traits:
//!
//! | trait | what it does | here | elsewhere |
//! | --- | --- | --- | --- |
//! | [`Model`], [`Context`] | computes KV and answers | [`transformer::Transformer`] over a [`transformer::Backend`] | `amem-cpu` |
//! | [`KvStore`] | keeps KV | [`RamStore`], [`Tiered`] | `amem-store` |
//! | [`Ledger`] | keeps what was said | [`RamLedger`] | `amem-store` |
//! | [`Recaller`] | finds what a question is about | [`recall::Lexical`], [`recall::Dense`], [`recall::Hybrid`] | |
//! | [`ResidencyPolicy`] | says what stays close | [`residency::Value`], [`residency::Lru`] and others | |
//!
//! Each trait has a suite in `testing` (feature `testing`) that checks an implementation in one line.
//!
//! The crate does no I/O and has no unsafe code. Its futures need no particular runtime; computing happens on threads of
//! its own.
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
