//! Conformance suites that every implementation of a trait must pass.
//!
//! Each takes a closure that makes a fresh, empty implementation (`recaller` and `residency_policy` want it in a `Box`, `backend` a
//! profile of what it promises as well), and panics with the promise that was broken:
//!
//! ```
//! # use amem_core::RamLedger;
//! amem_core::testing::ledger(RamLedger::new);
//! ```
//!
//! They bring no runtime; an implementation that needs one enters it in its closure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken promise is told by a panic")]

#[cfg(feature = "transformer")]
mod backend;
#[cfg(feature = "transformer")]
mod gguf;
mod kv_store;
mod ledger;
mod model;
#[cfg(feature = "transformer")]
mod probe;
mod recaller;
#[cfg(feature = "transformer")]
mod reference;
mod residency;

#[cfg(feature = "transformer")]
pub use backend::{Profile, backend};
#[cfg(feature = "transformer")]
pub use gguf::{GgufWriter, gguf, quantised};
pub use kv_store::kv_store;
pub use ledger::ledger;
pub use model::model;
#[cfg(feature = "transformer")]
pub use probe::Probe;
pub use recaller::recaller;
#[cfg(feature = "transformer")]
pub use reference::Reference;
pub use residency::residency_policy;
