//! stub
use std::collections::HashMap;
use std::sync::Mutex;
use crate::{ChunkId, KvChunk, KvStore, Result, StoreStats};
/// stub
#[derive(Default)]
pub struct RamStore { map: Mutex<HashMap<ChunkId, KvChunk>> }
#[async_trait::async_trait]
impl KvStore for RamStore {
    async fn get(&self, id: &ChunkId) -> Result<Option<KvChunk>> { Ok(self.map.lock().unwrap().get(id).cloned()) }
    async fn put(&self, chunks: &[KvChunk]) -> Result<()> { for c in chunks { self.map.lock().unwrap().insert(c.id(), c.clone()); } Ok(()) }
    async fn delete(&self, ids: &[ChunkId]) -> Result<()> { for c in ids { self.map.lock().unwrap().remove(c); } Ok(()) }
    async fn contains(&self, id: &ChunkId) -> bool { self.map.lock().unwrap().contains_key(id) }
    async fn stats(&self) -> StoreStats { StoreStats::default() }
}
