//! What the demo model's own KV recalls as embeddings, against words alone and against both together; and what an encoder
//! does.
//!
//! ```text
//! cargo run --release --example recall -- [MEMORIES] [SEED]...
//! AMEM_EMBEDDER=all-MiniLM-L6-v2 cargo run --release --example recall
//! ```
//!
//! With `AMEM_EMBEDDER`, the directory of an encoder, that is measured too.
//! Of the memories that the answers to a world's questions need, it prints the share that is among the eight that are
//! recalled first.

use std::error::Error;
use std::sync::Arc;

use amem_core::recall::{Dense, Hybrid, KvEmbedder, Lexical};
use amem_core::transformer::{Encoder, EncoderOptions, Options, Transformer};
use amem_core::{Engine, EngineOptions, Namespace, RecallQuery, Recaller, Record, RecordId, Timestamp};
use amem_cpu::Cpu;
use amem_demo::world::{Kind, Question, World, WorldOptions};
use amem_store::ModelDir;
use futures_lite::future::block_on;

const K: usize = 8;
const QUESTIONS: usize = 200;
const KINDS: [Kind; 3] = [Kind::OneHop, Kind::Coreference, Kind::TwoHop];

/// The id of a world's memory.
fn id(memory: usize) -> RecordId {
    RecordId::from_bytes((memory as u128).to_be_bytes())
}

/// How many memories these questions need, and how many of them are recalled.
async fn recalled(recaller: &dyn Recaller, home: &Namespace, questions: &[Question]) -> amem_core::Result<(u32, u32)> {
    let (mut needed, mut found) = (0, 0);
    for question in questions {
        let best = recaller.recall(home, &RecallQuery::new(&question.text, K)).await?;
        for memory in &question.evidence {
            needed += 1;
            found += u32::from(best.iter().any(|recalled| recalled.id == id(*memory)));
        }
    }
    Ok((needed, found))
}

fn main() -> Result<(), Box<dyn Error>> {
    let numbers = std::env::args().skip(1).map(|number| number.parse()).collect::<Result<Vec<u64>, _>>()?;
    let (memories, seeds) = match numbers.split_first() {
        Some((memories, [])) => (*memories as usize, [1, 2, 3, 4].as_slice()),
        Some((memories, seeds)) => (*memories as usize, seeds),
        None => (100, [1, 2, 3, 4].as_slice()),
    };
    let model = Transformer::load(&amem_demo::files(), Cpu::new()?, Options::default())?;
    let engine = Engine::start(Arc::new(model), EngineOptions::default())?;
    let home = Namespace::new("home")?;
    let kv = || {
        let embedder = KvEmbedder::new(engine.clone(), home.clone());
        let dimensions = embedder.dimensions();
        Arc::new(Dense::new(embedder, dimensions))
    };
    let words = || -> Arc<dyn Recaller> { Arc::new(Lexical::default()) };
    let mut ways: Vec<(&str, Arc<dyn Recaller>)> =
        vec![("words (BM25)", words()), ("KV", kv()), ("words and KV", Arc::new(Hybrid::new(vec![words(), kv()])))];
    if let Some(dir) = std::env::var_os("AMEM_EMBEDDER") {
        let encoder = Encoder::load(&ModelDir::open(dir)?, Cpu::new()?, EncoderOptions::default())?;
        let dense = || Arc::new(Dense::new(encoder.clone(), encoder.dimensions()));
        ways.push(("encoder", dense()));
        ways.push(("words and enc.", Arc::new(Hybrid::new(vec![words(), dense()]))));
    }
    println!("{memories} memories, {QUESTIONS} questions, seeds {seeds:?}: percent of what is needed in the first {K}");
    println!("{:<15}{:>10}{:>14}{:>10}", "", "one-hop", "coreference", "two-hop");
    for (name, recaller) in ways {
        let mut shares = [(0, 0); KINDS.len()];
        for seed in seeds {
            let world = World::draw(*seed, &WorldOptions { memories, ..WorldOptions::default() });
            let told = world.memories.iter().enumerate();
            let records: Vec<Record> =
                told.map(|(i, text)| Record::new(id(i), home.clone(), text, Timestamp(0))).collect();
            block_on(recaller.clear(&home))?;
            block_on(recaller.index(&records))?;
            for ((needed, found), kind) in shares.iter_mut().zip(KINDS) {
                let more = block_on(recalled(&*recaller, &home, &world.questions(QUESTIONS, &[kind])))?;
                (*needed, *found) = (*needed + more.0, *found + more.1);
            }
        }
        let [one, two, three] = shares.map(|(needed, found)| 100.0 * f64::from(found) / f64::from(needed.max(1)));
        println!("{name:<15}{one:>10.1}{two:>14.1}{three:>10.1}");
    }
    Ok(())
}
