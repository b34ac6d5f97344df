//! A good store with one fault at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amem_core::{
    ChunkId, Encoding, Error, KvChunk, KvData, KvStore, OwnerId, PrefixId, RamStore, Result, StoreStats, StoredChunk,
    testing,
};
use async_trait::async_trait;

use super::each_is_caught;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    AnswersInOrderOfIds,
    LeavesOutMisses,
    FailsWhereThereIsNone,
    ChangesAByte,
    LosesThePrefix,
    LosesTheModel,
    LosesTheSensitivity,
    KeepsNothing,
    KeepsTheFirstOfMany,
    OverwritesWhatIsHeld,
    TakesInNoSensitivity,
    ReplacesASensitivity,
    CountsPuts,
    DeletesNothing,
    DeletesTheFirstOfMany,
    DeletesAll,
    FailsToDeleteWhatIsNotThere,
    RefusesWhatWasDeleted,
    RemembersADeletedSensitivity,
    RevokesWhatWasHandedOut,
    EvictsNothing,
    ContainsEverything,
    ContainsInOrderOfIds,
    CountsContainsAsGet,
    CountsPrefetchAsGet,
    PrefetchesOutOfSight,
    CountsNoMisses,
    NeverShrinks,
    OccupiesNothing,
    PagesIgnoreTheirLimit,
    PagesIgnoreWhereTheyBegin,
    PagesBeginWithTheirId,
    PagesBeginAtHeldIdsOnly,
    PagesRunBackwards,
    CountsPagesAsGet,
    OwnersHaveAll,
    OwnersLackOne,
    LosesWhatIsNoted,
    LosesWhatWasSlowToPrefill,
    FailsToSync,
}

const FAULTS: [(Fault, &str); 40] = [
    (Fault::AnswersInOrderOfIds, "get_many answers in the order of the ids"),
    (Fault::LeavesOutMisses, "get_many answers in the order of the ids"),
    (Fault::FailsWhereThereIsNone, ""),
    (Fault::ChangesAByte, "byte for byte"),
    (Fault::LosesThePrefix, "with its prefix"),
    (Fault::LosesTheModel, "the model that computed it"),
    (Fault::LosesTheSensitivity, "with its sensitivity"),
    (Fault::KeepsNothing, "a chunk that was put"),
    (Fault::KeepsTheFirstOfMany, "a chunk that was put"),
    (Fault::OverwritesWhatIsHeld, "a held chunk is left as it is"),
    (Fault::TakesInNoSensitivity, "brings a sensitivity that the held one lacks"),
    (Fault::ReplacesASensitivity, "with its sensitivity"),
    (Fault::CountsPuts, "is one chunk"),
    (Fault::DeletesNothing, "a deleted chunk is not found"),
    (Fault::DeletesTheFirstOfMany, "a deleted chunk is not found"),
    (Fault::DeletesAll, "a chunk that was put"),
    (Fault::FailsToDeleteWhatIsNotThere, "that is not there is no error"),
    (Fault::RefusesWhatWasDeleted, "a chunk that was put"),
    (Fault::RemembersADeletedSensitivity, "with its sensitivity"),
    (Fault::RevokesWhatWasHandedOut, ""),
    (Fault::EvictsNothing, "an evicted chunk is a miss"),
    (Fault::ContainsEverything, "is not contained"),
    (Fault::ContainsInOrderOfIds, "contains_many answers in the order of the ids"),
    (Fault::CountsContainsAsGet, "only a get is a hit or a miss"),
    (Fault::CountsPrefetchAsGet, "only a get is a hit or a miss"),
    (Fault::PrefetchesOutOfSight, "get_many answers in the order of the ids"),
    (Fault::CountsNoMisses, "a get is a hit or a miss"),
    (Fault::NeverShrinks, "deleting gives space back"),
    (Fault::OccupiesNothing, "at least the bytes of its KV"),
    (Fault::PagesIgnoreTheirLimit, "a page has no more than was asked for"),
    (Fault::PagesIgnoreWhereTheyBegin, "pages end"),
    (Fault::PagesBeginWithTheirId, "pages end"),
    (Fault::PagesBeginAtHeldIdsOnly, "a page begins behind its id"),
    (Fault::PagesRunBackwards, "in the order of their ids"),
    (Fault::CountsPagesAsGet, "only a get is a hit or a miss"),
    (Fault::OwnersHaveAll, "and no other's"),
    (Fault::OwnersLackOne, "owned names each chunk of the owner"),
    (Fault::LosesWhatIsNoted, "a chunk that was put"),
    (Fault::LosesWhatWasSlowToPrefill, "a chunk that was put"),
    (Fault::FailsToSync, "sync"),
];

#[test]
fn each_fault_of_a_kv_store_is_caught() {
    testing::kv_store(|| Faulty::new(None));
    each_is_caught(&FAULTS, |fault| testing::kv_store(|| Faulty::new(Some(fault))));
}

/// A good store, but for one fault.
struct Faulty {
    inner: RamStore,
    fault: Option<Fault>,
    /// What some faults remember: chunks, how often something was done, and the most bytes that were held.
    aside: Mutex<BTreeMap<ChunkId, KvChunk>>,
    deleted: Mutex<BTreeSet<ChunkId>>,
    puts: AtomicU64,
    most: AtomicU64,
    revoked: Arc<AtomicBool>,
}

impl Faulty {
    fn new(fault: Option<Fault>) -> Self {
        let (inner, aside, deleted) = (RamStore::default(), Mutex::default(), Mutex::default());
        Self { inner, fault, aside, deleted, puts: AtomicU64::new(0), most: AtomicU64::new(0), revoked: Arc::default() }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// A chunk as it is handed out.
    fn handed_out(&self, chunk: KvChunk) -> KvChunk {
        match self.fault {
            Some(Fault::ChangesAByte) => {
                let mut bytes = chunk.to_bytes().unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                let data = amem_core::HostKv::new(chunk.encoding(), chunk.shape().layers, bytes);
                chunk.with_data(Arc::new(data)).unwrap()
            }
            Some(Fault::LosesThePrefix) => without(&chunk, true, false, false),
            Some(Fault::LosesTheModel) => without(&chunk, false, true, false),
            Some(Fault::LosesTheSensitivity) => without(&chunk, false, false, true),
            Some(Fault::RemembersADeletedSensitivity) => {
                self.aside.lock().unwrap().get(&chunk.id()).cloned().unwrap_or(chunk)
            }
            Some(Fault::RevokesWhatWasHandedOut) => {
                let data = Revocable { inner: Arc::clone(chunk.data()), revoked: Arc::clone(&self.revoked) };
                chunk.with_data(Arc::new(data)).unwrap()
            }
            _ => chunk,
        }
    }
}

/// The same chunk without its prefix, its model or its sensitivity.
fn without(chunk: &KvChunk, prefix: bool, model: bool, sensitivity: bool) -> KvChunk {
    let of = if prefix { PrefixId::of(&[]) } else { chunk.prefix() };
    let (shape, tokens) = (*chunk.shape(), Arc::clone(chunk.tokens()));
    let mut bare = KvChunk::new(chunk.id(), of, shape, tokens, Arc::clone(chunk.data())).unwrap();
    if let Some(found) = chunk.model().filter(|_| !model) {
        bare = bare.with_model(found);
    }
    match chunk.sensitivity().filter(|_| !sensitivity) {
        Some(found) => bare.with_sensitivity(Arc::clone(found)).unwrap(),
        None => bare,
    }
}

/// KV that cannot be read any more once something was deleted.
struct Revocable {
    inner: Arc<dyn KvData>,
    revoked: Arc<AtomicBool>,
}

impl KvData for Revocable {
    fn encoding(&self) -> Encoding {
        self.inner.encoding()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>> {
        if self.revoked.load(Relaxed) {
            return Err(Error::DamagedKv { chunk: ChunkId([0; 32]), reason: "it was deleted".to_owned() });
        }
        self.inner.layer(layer)
    }
}

fn sorted(ids: &[ChunkId]) -> Vec<ChunkId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

#[async_trait]
impl KvStore for Faulty {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let ids = if self.has(Fault::AnswersInOrderOfIds) { sorted(ids) } else { ids.to_vec() };
        let mut found = self.inner.get_many(&ids).await?;
        match self.fault {
            Some(Fault::LeavesOutMisses) => found.retain(Option::is_some),
            Some(Fault::FailsWhereThereIsNone) if found.iter().any(Option::is_none) => {
                return Err(Error::Empty { what: "chunk" });
            }
            _ => {}
        }
        Ok(found.into_iter().map(|chunk| chunk.map(|chunk| self.handed_out(chunk))).collect())
    }

    fn prefetch(&self, ids: &[ChunkId]) {
        match self.fault {
            Some(Fault::CountsPrefetchAsGet) => {
                futures_lite::future::block_on(self.inner.get_many(ids)).unwrap();
            }
            Some(Fault::PrefetchesOutOfSight) => {
                futures_lite::future::block_on(self.inner.delete(ids)).unwrap();
            }
            _ => {}
        }
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        self.puts.fetch_add(chunks.len() as u64, Relaxed);
        for (index, chunk) in chunks.iter().enumerate() {
            let held = self.inner.contains(&chunk.id()).await;
            let skipped = match self.fault {
                Some(Fault::KeepsNothing) => true,
                Some(Fault::KeepsTheFirstOfMany) => index > 0,
                Some(Fault::TakesInNoSensitivity) => held,
                Some(Fault::RefusesWhatWasDeleted) => self.deleted.lock().unwrap().contains(&chunk.id()),
                _ => false,
            };
            let replaced = match self.fault {
                // It keeps what it knows of the sensitivity.
                Some(Fault::OverwritesWhatIsHeld) => held && chunk.sensitivity().is_none(),
                Some(Fault::ReplacesASensitivity) => held && chunk.sensitivity().is_some(),
                _ => false,
            };
            let mut chunk = chunk.clone();
            if replaced {
                let before = self.inner.get(&chunk.id()).await?.unwrap();
                if let (None, Some(known)) = (chunk.sensitivity(), before.sensitivity()) {
                    chunk = chunk.with_sensitivity(Arc::clone(known))?;
                }
                self.inner.delete(&[chunk.id()]).await?;
            }
            if !skipped {
                self.inner.put(std::slice::from_ref(&chunk)).await?;
            }
            if chunk.sensitivity().is_some() {
                self.aside.lock().unwrap().insert(chunk.id(), chunk);
            }
        }
        self.most.fetch_max(self.inner.stats().await.bytes, Relaxed);
        Ok(())
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        self.deleted.lock().unwrap().extend(ids);
        self.revoked.store(!ids.is_empty(), Relaxed);
        match self.fault {
            Some(Fault::DeletesNothing) => Ok(()),
            Some(Fault::DeletesTheFirstOfMany) => self.inner.delete(&ids[..ids.len().min(1)]).await,
            Some(Fault::DeletesAll) => {
                let all: Vec<ChunkId> = self.inner.list().await?.iter().map(|held| held.id).collect();
                self.inner.delete(&all).await
            }
            Some(Fault::FailsToDeleteWhatIsNotThere) if self.inner.contains_many(ids).await.contains(&false) => {
                Err(Error::Empty { what: "chunk" })
            }
            _ => self.inner.delete(ids).await,
        }
    }

    async fn evict(&self, ids: &[ChunkId]) -> Result<()> {
        if self.has(Fault::EvictsNothing) { Ok(()) } else { self.inner.evict(ids).await }
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        match self.fault {
            Some(Fault::ContainsEverything) => vec![true; ids.len()],
            Some(Fault::ContainsInOrderOfIds) => self.inner.contains_many(&sorted(ids)).await,
            Some(Fault::CountsContainsAsGet) => {
                self.inner.get_many(ids).await.unwrap().iter().map(Option::is_some).collect()
            }
            _ => self.inner.contains_many(ids).await,
        }
    }

    async fn stats(&self) -> StoreStats {
        let stats = self.inner.stats().await;
        match self.fault {
            Some(Fault::CountsPuts) => StoreStats { chunks: self.puts.load(Relaxed) as usize, ..stats },
            Some(Fault::CountsNoMisses) => StoreStats { misses: 0, ..stats },
            Some(Fault::NeverShrinks) => StoreStats { bytes: self.most.load(Relaxed), ..stats },
            _ => stats,
        }
    }

    async fn owned(&self, owner: OwnerId) -> Result<Vec<StoredChunk>> {
        let mut owned = match self.fault {
            Some(Fault::OwnersHaveAll) => self.inner.list().await?,
            _ => self.inner.owned(owner).await?,
        };
        if self.fault == Some(Fault::OwnersLackOne) {
            owned.pop();
        }
        Ok(owned)
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        let mut page = match self.fault {
            Some(Fault::PagesIgnoreTheirLimit) => self.inner.page(after, usize::MAX).await?,
            Some(Fault::PagesIgnoreWhereTheyBegin) => self.inner.page(None, limit).await?,
            Some(Fault::PagesBeginWithTheirId) => match after {
                Some(mut id) => {
                    // The id before it. No two ids of a test are neighbours.
                    *id.0.last_mut().unwrap() = id.0.last().unwrap().wrapping_sub(1);
                    self.inner.page(Some(id), limit).await?
                }
                None => self.inner.page(None, limit).await?,
            },
            Some(Fault::PagesBeginAtHeldIdsOnly) => match after {
                Some(id) if !self.inner.contains(&id).await => Vec::new(),
                _ => self.inner.page(after, limit).await?,
            },
            _ => self.inner.page(after, limit).await?,
        };
        match self.fault {
            Some(Fault::PagesRunBackwards) => page.reverse(),
            Some(Fault::OccupiesNothing) => page.iter_mut().for_each(|held| held.bytes = 0),
            Some(Fault::CountsPagesAsGet) => {
                self.inner.get_many(&page.iter().map(|held| held.id).collect::<Vec<_>>()).await?;
            }
            _ => {}
        }
        Ok(page)
    }

    async fn sync(&self) -> Result<()> {
        if self.has(Fault::FailsToSync) { Err(Error::Empty { what: "chunk" }) } else { self.inner.sync().await }
    }

    fn note_prefill(&self, tokens: usize, time: Duration) {
        if self.has(Fault::LosesWhatWasSlowToPrefill) && time > Duration::from_secs(1) && tokens > 0 {
            futures_lite::future::block_on(async {
                let all: Vec<ChunkId> = self.inner.list().await.unwrap().iter().map(|held| held.id).collect();
                self.inner.delete(&all).await.unwrap();
            });
        }
    }

    fn note_relevance(&self, relevance: &[(ChunkId, f32)]) {
        if self.has(Fault::LosesWhatIsNoted) {
            let ids: Vec<ChunkId> = relevance.iter().map(|(id, _)| *id).collect();
            futures_lite::future::block_on(self.inner.delete(&ids)).unwrap();
        }
    }
}
