//! The store has chunks that turn out to be damaged when they are read.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use amem_core::{
    ChunkId, Encoding, Error, KvChunk, KvData, KvStore, Memory, RamLedger, RamStore, Result, SessionOptions,
    StoreStats, StoredChunk,
};
use async_trait::async_trait;

use super::{about_apples, block_on, builder, notes};

/// KV on a bad region of a disk.
struct Unreadable {
    chunk: ChunkId,
    encoding: Encoding,
    size: usize,
}

impl KvData for Unreadable {
    fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn size(&self) -> usize {
        self.size
    }

    fn layer(&self, _: usize) -> Result<Cow<'_, [u8]>> {
        Err(Error::DamagedKv { chunk: self.chunk, reason: "the disk cannot read it".to_owned() })
    }
}

/// A store some of whose chunks cannot be read until they are deleted and put again.
#[derive(Default)]
struct BadDisk {
    inner: RamStore,
    bad: Mutex<HashSet<ChunkId>>,
}

impl BadDisk {
    /// Damages all that it holds. Says how many chunks these are.
    async fn damage(&self) -> usize {
        let held = self.inner.list().await.unwrap();
        self.bad.lock().unwrap().extend(held.iter().map(|held| held.id));
        held.len()
    }
}

#[async_trait]
impl KvStore for BadDisk {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let mut found = self.inner.get_many(ids).await?;
        for chunk in found.iter_mut().flatten() {
            if self.bad.lock().unwrap().contains(&chunk.id()) {
                let data = Unreadable { chunk: chunk.id(), encoding: chunk.encoding(), size: chunk.size() };
                *chunk = chunk.clone().with_data(Arc::new(data))?;
            }
        }
        Ok(found)
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        self.inner.put(chunks).await
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        self.inner.delete(ids).await?;
        self.bad.lock().unwrap().retain(|bad| !ids.contains(bad));
        Ok(())
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        self.inner.contains_many(ids).await
    }

    async fn stats(&self) -> StoreStats {
        self.inner.stats().await
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        self.inner.page(after, limit).await
    }
}

/// A memory of twenty notes whose KV is damaged, and one of the same notes whose KV is not.
async fn damaged_and_sound() -> [Memory; 2] {
    let (disk, ram) = (Arc::new(BadDisk::default()), Arc::new(RamStore::default()));
    let damaged = builder(Arc::new(RamLedger::new()), disk.clone()).build().unwrap();
    let sound = builder(Arc::new(RamLedger::new()), ram).build().unwrap();
    for memory in [&damaged, &sound] {
        memory.remember_all("me", notes(20)).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
    }
    assert_eq!(disk.damage().await, 21, "all the notes and the system line");
    [damaged, sound]
}

#[test]
fn a_question_about_twenty_damaged_memories_is_answered() {
    block_on(async {
        let [damaged, sound] = damaged_and_sound().await;
        let expected = sound.ask("me", about_apples(20)).await.unwrap();
        assert_eq!(expected.recalled.len(), 20, "all of them are recalled");
        for _ in 0..3 {
            let answer = damaged.ask("me", about_apples(20)).await.expect("damaged KV costs time, not the answer");
            assert_eq!(answer.text, expected.text);
        }
        assert_eq!(damaged.ask("me", about_apples(20)).await.unwrap().usage.missed, 0, "in time all is sound again");
    });
}

#[test]
fn a_session_over_twenty_damaged_memories_opens_and_answers() {
    block_on(async {
        let [damaged, sound] = damaged_and_sound().await;
        let mut expected = sound.session("me", SessionOptions::default()).unwrap();
        let expected_answer = expected.ask(about_apples(20)).await.unwrap();
        assert_eq!(expected.resident().len(), 20);
        let mut session = damaged.session("me", SessionOptions::default()).unwrap();
        let answer = session.ask(about_apples(20)).await.expect("damaged KV costs time, not the answer");
        assert_eq!(answer.text, expected_answer.text);

        let [damaged, _] = damaged_and_sound().await;
        let mut session = damaged.session("me", SessionOptions::default()).unwrap();
        session.open("apple").await.expect("damaged KV costs time, not the session");
        assert_eq!(session.resident().len(), 20);
    });
}
