//! Your own recall and your own residency policy, in a memory that is otherwise amem's.
//!
//! ```text
//! cargo run --release --example custom_parts
//! ```

use std::collections::VecDeque;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use amem_core::residency::Room;
use amem_core::transformer::{Options, Transformer};
use amem_core::{
    Access, ChunkId, Memory, Namespace, RamStore, RecallQuery, Recalled, Recaller, Record, RecordId, ResidencyPolicy,
    Result, State, Tier, Tiered,
};
use amem_cpu::Cpu;

/// Recalls what was remembered last, whatever the question.
#[derive(Default)]
struct Latest(Mutex<Vec<Record>>);

#[async_trait::async_trait]
impl Recaller for Latest {
    async fn index(&self, records: &[Record]) -> Result<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|old| records.iter().all(|new| new.id != old.id));
        // A record that was superseded or forgotten comes here too, to leave the index.
        held.extend(records.iter().filter(|record| record.state == State::Active).cloned());
        held.sort_by_key(|record| std::cmp::Reverse(record.id));
        Ok(())
    }

    async fn remove(&self, _: &Namespace, ids: &[RecordId]) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|record| !ids.contains(&record.id));
        Ok(())
    }

    async fn clear(&self, namespace: &Namespace) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|record| record.namespace != *namespace);
        Ok(())
    }

    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = held.iter().filter(|record| record.namespace == *namespace && query.may_find(record.id));
        let ranked = mine.take(query.k).enumerate();
        Ok(ranked.map(|(rank, record)| Recalled { id: record.id, score: -(rank as f32) }).collect())
    }
}

/// First in, first out. It looks through all chunks for one of them, which is quick enough for some thousands.
#[derive(Default)]
struct Fifo(VecDeque<ChunkId>);

impl ResidencyPolicy for Fifo {
    fn insert(&mut self, access: Access) {
        self.0.push_back(access.chunk);
    }

    fn touch(&mut self, _: Access) {}

    fn remove(&mut self, chunk: &ChunkId) {
        self.0.retain(|held| held != chunk);
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        self.0.iter().find(|chunk| room.may_leave(chunk)).copied()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let model = Transformer::load(&amem_demo::files(), Cpu::new()?, Options::default())?;
    futures_lite::future::block_on(async {
        let ram = Tier::new(Arc::new(RamStore::default()), 64 << 10).policy(Box::new(Fifo::default()));
        let kv = Arc::new(Tiered::open(vec![ram]).await?);
        let memory = Memory::builder(Arc::new(model)).recaller(Arc::new(Latest::default())).kv(kv).build()?;
        memory.remember_all("you", ["Alice lives in Denver.", "Bob is a nurse.", "Bob lives in Oslo."]).await?;
        let answer = memory.ask("you", "Where does Bob live?").await?;
        println!("{}\n{}", answer.text, answer.usage);
        Ok(())
    })
}
