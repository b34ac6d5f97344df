//! A memory whose ledger or store has no room, loses KV or takes its time: questions are answered all the same. And what
//! changes, and what stays, when records do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod background;
mod changes;
mod damaged;
mod full_disk;
mod hooked;
#[path = "../suites/tiny.rs"]
mod tiny;

use std::sync::{Arc, LazyLock};

use amem_core::testing::Reference;
use amem_core::transformer::Transformer;
use amem_core::{Ask, Generation, KvStore, Ledger, Memory, MemoryBuilder};
pub(crate) use futures_lite::future::block_on;

static MODEL: LazyLock<Arc<Transformer<Reference>>> = LazyLock::new(|| Arc::new(tiny::model_with_context(512)));

/// A memory over a ledger and a store.
fn builder(ledger: Arc<impl Ledger + 'static>, kv: Arc<impl KvStore + 'static>) -> MemoryBuilder {
    Memory::builder(MODEL.clone()).ledger(ledger).kv(kv)
}

/// Memories that a question about apples recalls all of.
fn notes(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("apple {n}")).collect()
}

/// A question that so many memories are recalled for.
fn about_apples(k: usize) -> Ask {
    Ask::new("apple?").k(k).generation(Generation::default().max_tokens(3))
}
