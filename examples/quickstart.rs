//! amem in one sitting: remember, ask, see what was reused, change a fact, and ask again from disk.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use amem_core::transformer::{Options, Transformer};
use amem_core::{Answer, Memory};
use amem_cpu::Cpu;
use amem_store::DataDir;

const NOTES: [&str; 5] = [
    "Alice lives in Denver. She works at Boeing.",
    "Alice's sister is Maria.",
    "Maria lives in Paris. Her hobby is chess.",
    "Bob is a nurse. His locker code is 4817.",
    "The meeting went well. Bob's favorite food is sushi.",
];

fn main() -> Result<(), Box<dyn Error>> {
    futures_lite::future::block_on(run())
}

/// A memory over the demo model, with everything that must last in `dir`.
fn open(dir: &Path) -> Result<Memory, Box<dyn Error>> {
    let model = Transformer::load(&amem_demo::files(), Cpu::new()?, Options::default())?;
    let DataDir { kv, ledger } = amem_store::open(dir)?;
    Ok(Memory::builder(Arc::new(model)).kv(Arc::new(kv)).ledger(Arc::new(ledger)).build()?)
}

async fn run() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let memory = open(dir.path())?;

    println!("Remember {} notes, and compute their KV once:", NOTES.len());
    let added = memory.remember_all("you", NOTES).await?;
    let usage = memory.prefill("you", |_, _| {}).await?;
    println!("    {usage}\n");

    println!("Ask. What was computed is the question, and a few rows of the notes:");
    ask(&memory, "Where does Alice live?").await?;
    ask(&memory, "Where does Alice's sister live?").await?;
    ask(&memory, "What is Bob's locker code?").await?;

    println!("Change a fact. Only its note is computed anew:");
    let bob = &added[3].record;
    memory.update("you", bob.id, "Bob is a nurse. His locker code is 2096.").await?;
    ask(&memory, "What is Bob's locker code?").await?;

    println!("Close everything, open it again, and ask. Nothing but the question is prefilled:");
    drop(memory);
    let memory = open(dir.path())?;
    let answer = ask(&memory, "What is Bob's locker code?").await?;
    let stats = memory.kv().stats().await;
    println!("{} chunks of KV on disk, {} KiB; {} read for this answer.", stats.chunks, stats.bytes / 1024, stats.hits);
    println!("Of {} cached tokens, {} were reused as they were.", answer.usage.cached, answer.usage.reused());
    Ok(())
}

async fn ask(memory: &Memory, question: &str) -> Result<Answer, Box<dyn Error>> {
    let answer = memory.ask("you", question).await?;
    println!("  {question}\n  → {}", answer.text);
    println!("    {}, first token after {:.1} ms\n", answer.usage, 1e3 * answer.ttft.as_secs_f64());
    Ok(answer)
}
