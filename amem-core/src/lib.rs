//! Agent memory that lives in a model's KV cache.
//!
//! A memory is prefilled once and its keys and values are kept. Whatever set of memories is recalled, in whatever order,
//! is put together into one context; the few rows that this made wrong are computed again; what is left to prefill is
//! the question.
//!
//! Most users come in by [`Memory`] (remember, recall, ask, update, forget) and [`Session`] (many questions over one
//! working set). For models that run elsewhere there is [`TextMemory`]: the same memories without KV. They are made of
//! parts that stand behind traits:
//!
//! | trait | what it does | here | elsewhere |
//! | --- | --- | --- | --- |
//! | [`Model`], [`Context`] | computes KV and answers | [`transformer::Transformer`] over a [`transformer::Backend`] | `Backend`s: `amem-cpu`, `amem-cuda` |
//! | [`KvStore`] | keeps KV | [`RamStore`], [`Tiered`] | `amem-store` |
//! | [`Ledger`] | keeps what was said | [`RamLedger`] | `amem-store` |
//! | [`Recaller`] | finds what a question is about | [`recall::Lexical`], [`recall::Dense`], [`recall::Hybrid`] | |
//! | [`ResidencyPolicy`] | says what stays close | [`residency::Value`], [`residency::Lru`] and others | |
//!
//! Each trait has a suite in `testing` (feature `testing`) that checks an implementation in one line. That of [`Recaller`]
//! asks for the words of the text that it expects.
//!
//! The crate does no I/O and has no unsafe code. Its futures need no particular runtime. A model is computed on a thread of
//! the [`Engine`]; searching for records, and copying KV in RAM, happen where a future is polled. Who calls a [`Model`]
//! directly waits for it.
#![forbid(unsafe_code)]

mod engine;
mod error;
mod kv;
mod ledger;
mod memory;
mod model;
pub mod recall;
pub mod residency;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tiered;
#[cfg(feature = "transformer")]
pub mod transformer;

pub use engine::{
    Choice, Completion, Constraint, ConstraintSource, Delta, Detokenizer, Engine, EngineOptions, EngineStats, Finish,
    Generation, Output, OutputStream, Prefilled, Request,
};
pub use error::{BoxError, Error, Result};
pub use kv::{
    ChunkId, Dtype, Encoding, Fingerprint, HostKv, KvChunk, KvData, KvShape, KvStore, LayerKv, Lease, OwnerId,
    PrefixId, RamStore, StoreStats, StoredChunk, TierStats, Token, Wanted, bf16_to_f32, f16_to_f32, f32_to_bf16,
    f32_to_f16,
};
pub use ledger::{
    Added, Amounts, Change, Changes, Comparison, EventId, Field, Filter, Ledger, Listing, MetaValue, Metadata,
    Namespace, NewRecord, Outcome, Page, PendingDeletion, Query, RamLedger, Record, RecordId, RecordStats, Revision,
    SavedIndex, State, Timestamp, UsageEvent, UsageQuery, UsageTotal, Version,
};
pub use memory::{
    Answer, AnswerStream, Ask, Event, Memory, MemoryBuilder, NamespaceStats, Prompt, Recall, Recollection, Session,
    SessionOptions, TextMemory, TextMemoryOptions,
};
pub use model::{
    AppendOptions, Budget, CallForm, Chat, Context, Conversation, Exactness, Exchange, Layout, Message, Model,
    ModelInfo, Piece, PrefillText, Prefilling, Progress, Repair, Reply, Reservation, Role, Sampler, Sampling, Step,
    TokenLogprob, TokenMask, Tool, ToolCall, Usage,
};
pub use recall::{RecallQuery, Recalled, Recaller};
pub use residency::{Access, ResidencyPolicy};
pub use tiered::{Tier, Tiered, WriteMode};
