//! Memories over the demo model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs, dead_code, unreachable_pub, unused_imports)]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use amem_core::transformer::{Options, Transformer};
use amem_core::{Memory, MemoryBuilder};
use amem_cpu::Cpu;
use amem_demo::world::{Kind, World, WorldOptions};
use amem_store::DataDir;

pub use futures_lite::future::block_on;

/// The demo model, loaded once.
pub static MODEL: LazyLock<Arc<Transformer<Cpu>>> = LazyLock::new(|| {
    Arc::new(Transformer::load(&amem_demo::files(), Cpu::with_threads(2).unwrap(), Options::default()).unwrap())
});

/// The parts of a memory in RAM.
pub fn builder() -> MemoryBuilder {
    let model = Arc::clone(&MODEL);
    Memory::builder(model)
}

/// A memory in RAM.
pub fn in_ram() -> Memory {
    builder().build().unwrap()
}

/// A memory on disk.
pub fn on_disk(dir: &Path) -> Memory {
    let DataDir { kv, ledger } = amem_store::open(dir).unwrap();
    builder().kv(Arc::new(kv)).ledger(Arc::new(ledger)).build().unwrap()
}

/// A small world that the model has never seen, and questions that it answers well.
pub fn world(seed: u64, memories: usize) -> (Vec<String>, Vec<(String, String)>) {
    let world = World::draw(seed, &WorldOptions { memories, ..WorldOptions::default() });
    let questions = world.questions(30, &[Kind::OneHop, Kind::Coreference]);
    (world.memories.clone(), questions.into_iter().map(|question| (question.text, question.answer)).collect())
}
