//! The KV of memories: taken from the store, or computed and put there, and deleted with what was forgotten.
//!
//! The store is a cache. Whatever it loses, refuses or gives back wrong is computed again, and said in the log; it never
//! fails a question.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::linked_store::{LinkedStore, NewKv};
use super::outdated::Outdated;
use super::records::{Content, Entry};
use crate::{
    ChunkId, Context, Engine, Error, KvChunk, KvStore, Layout, Lease, Ledger, Model, Namespace, OwnerId, Piece,
    PrefillText, Prefilled, PrefixId, Repair, Result, StoredChunk, Timestamp, Token, Usage, Version, Wanted,
};

/// The name under which the system prefix stands in the engine's queue. It belongs to no namespace.
const OPERATOR: &str = "(system prefix)";

/// How long a question's chunks stay close at hand at most while it waits for them.
const LEASE: Duration = Duration::from_secs(60);

/// Fetches, keeps and deletes chunks, and holds the context that every other one begins with.
pub(super) struct Chunks {
    model: Arc<dyn Model>,
    engine: Engine,
    store: Arc<LinkedStore>,
    layout: Layout,
    prefix: PrefixId,
    /// What ids are hashed with, so that nobody else can check a guess of a text.
    id_secret: Option<[u8; 32]>,
    /// The system prefix, computed. Contexts are forked from it, so that its KV is in the KV cache once.
    base: async_lock::Mutex<Option<Box<dyn Context>>>,
    /// Records whose KV is to be deleted from this process's stores.
    outdated: Arc<Outdated>,
}

/// What becomes of KV that was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is used once.
    No,
    /// It is put into the store, if it can be, before the call returns.
    Now,
    /// As `Now`, but whoever asks does not wait for a ledger that others hold: then it is put there later.
    Soon,
}

/// What a store is told that asks whether chunks are still wanted.
struct Linked {
    ledger: Arc<dyn Ledger>,
    /// The chunk of the system prefix, which belongs to no record.
    base: ChunkId,
}

#[async_trait]
impl Wanted for Linked {
    async fn are_wanted(&self, chunks: &[ChunkId]) -> Result<Vec<bool>> {
        // A chunk is linked before it is put, and no longer when its text was forgotten.
        let linked = self.ledger.are_linked(chunks, Timestamp::now()).await?;
        Ok(chunks.iter().zip(linked).map(|(chunk, linked)| linked || *chunk == self.base).collect())
    }
}

/// Where KV may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// From the store, as far as it has it. The rest is computed.
    Store,
    /// All of it is computed, so that none of it can turn out to be lost.
    Model,
}

/// The KV of some records.
pub(crate) struct Fetched {
    /// In the order of the records.
    pub(crate) chunks: Vec<KvChunk>,
    /// What it took to compute those that were not held.
    pub(crate) usage: Usage,
    /// How many were not held.
    pub(crate) computed: usize,
}

/// A context that holds the system prefix and nothing else.
pub(crate) struct Base {
    /// `None` where the system prefix has no tokens.
    pub(crate) context: Option<Box<dyn Context>>,
    /// What it took to make the first one.
    pub(crate) usage: Usage,
    /// This is the first one: its tokens are in `usage`.
    pub(crate) is_new: bool,
}

impl Chunks {
    pub(super) fn new(
        model: Arc<dyn Model>,
        engine: Engine,
        store: LinkedStore,
        outdated: Arc<Outdated>,
        layout: Layout,
        id_secret: Option<[u8; 32]>,
    ) -> Self {
        let (prefix, base) = (PrefixId::of(&layout.prefix), async_lock::Mutex::new(None));
        let (ledger, store) = (Arc::clone(store.ledger()), Arc::new(store));
        let chunks = Self { model, engine, store, layout, prefix, id_secret, base, outdated };
        let base = chunks.base_id();
        chunks.kv().ask_of_late_writes(Arc::new(Linked { ledger, base }));
        chunks
    }

    /// The name of the system prefix's chunk.
    fn base_id(&self) -> ChunkId {
        self.chunk_id("", &PrefixId::of(&[]), &self.layout.prefix)
    }

    fn chunk_id(&self, owner: &str, prefix: &PrefixId, tokens: &[Token]) -> ChunkId {
        let info = self.model.info();
        match &self.id_secret {
            Some(secret) => ChunkId::keyed(secret, &info.fingerprint, prefix, owner, tokens),
            None => info.chunk_id(owner, prefix, tokens),
        }
    }

    /// The owner in the ids of a namespace's chunks.
    fn owner(&self, namespace: &Namespace) -> OwnerId {
        match &self.id_secret {
            Some(secret) => OwnerId::keyed(secret, namespace.as_str()),
            None => OwnerId::of(namespace.as_str()),
        }
    }

    pub(super) fn model(&self) -> &Arc<dyn Model> {
        &self.model
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn kv(&self) -> &Arc<dyn KvStore> {
        self.store.kv()
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The tokens of a memory, the template's marks included.
    pub(super) fn tokens(&self, text: &str) -> Result<Arc<[Token]>> {
        Ok(self.layout.memory(&self.model.chat().encode(text)?))
    }

    /// The tokens of a memory and the name of its chunk. They are computed once for each entry.
    pub(super) fn content<'e>(&self, entry: &'e Entry) -> Result<&'e Content> {
        entry.content(|record| self.content_of(&record.namespace, &record.text))
    }

    fn content_of(&self, namespace: &Namespace, text: &str) -> Result<Content> {
        let tokens = self.tokens(text)?;
        let chunk = self.chunk_id(namespace.as_str(), &self.prefix, &tokens);
        Ok(Content { tokens, chunk })
    }

    /// A context that begins with the system prefix.
    pub(super) async fn base(&self) -> Result<Base> {
        if self.layout.prefix.is_empty() {
            return Ok(Base { context: None, usage: Usage::default(), is_new: false });
        }
        let mut base = self.base.lock().await;
        let (usage, is_new) = match &*base {
            Some(_) => (Usage::default(), false),
            None => {
                let (context, usage) = self.open_base().await?;
                *base = Some(context);
                (usage, true)
            }
        };
        let context = base.as_mut().map(|base| base.fork()).transpose()?;
        Ok(Base { context, usage, is_new })
    }

    async fn open_base(&self) -> Result<(Box<dyn Context>, Usage)> {
        let tokens = Arc::clone(&self.layout.prefix);
        let id = self.base_id();
        let owner = Namespace::new(OPERATOR)?;
        let text = PrefillText { id, tokens };
        let blend = async |chunk| self.engine.blend(&owner, None, vec![Piece::Cached(chunk)], Repair::None).await;
        if let Some(held) = self.held(std::slice::from_ref(&text), &PrefixId::of(&[])).await.pop().flatten() {
            match blend(held).await {
                Err(Error::DamagedKv { chunk, reason }) => self.drop_damaged(chunk, &reason).await,
                blended => return blended,
            }
        }
        let Prefilled { chunks, usage: cost, .. } = self.engine.prefill(&owner, [].into(), vec![text], false).await?;
        self.store.keep(&chunks).await;
        let usage = Usage { missed: cost.prefilled, ..cost };
        let chunk = chunks.into_iter().next();
        let (context, cost) =
            blend(chunk.ok_or_else(|| Error::Model("a text came back without its KV".into()))?).await?;
        Ok((context, usage + cost))
    }

    /// Deletes a chunk whose KV was lost between being found and being used, so that it is computed again.
    pub(super) async fn drop_damaged(&self, chunk: ChunkId, reason: &str) {
        self.store.drop_damaged(chunk, reason).await;
    }

    /// The KV of records: from the store, or computed.
    pub(super) async fn fetch(
        &self,
        namespace: &Namespace,
        entries: &[Arc<Entry>],
        source: Source,
        keep: Keep,
    ) -> Result<Fetched> {
        let contents = entries.iter().map(|entry| self.content(entry)).collect::<Result<Vec<_>>>()?;
        // Two records may say the same under different keys: they have one chunk.
        let mut seen = HashSet::new();
        let (mut texts, mut owners) = (Vec::new(), Vec::new());
        for (entry, content) in entries.iter().zip(&contents) {
            if seen.insert(content.chunk) {
                texts.push(PrefillText { id: content.chunk, tokens: Arc::clone(&content.tokens) });
                owners.push(entry);
            }
        }
        let held = match source {
            Source::Store => self.held(&texts, &self.prefix).await,
            Source::Model => vec![None; texts.len()],
        };
        let mut found: HashMap<ChunkId, KvChunk> = HashMap::new();
        let (mut missing, mut links) = (Vec::new(), Vec::new());
        for ((text, entry), chunk) in texts.into_iter().zip(owners).zip(held) {
            match chunk {
                Some(chunk) => drop(found.insert(text.id, chunk)),
                None => {
                    links.push((Arc::clone(entry), text.id));
                    missing.push(text);
                }
            }
        }
        let (mut usage, computed) = (Usage::default(), missing.len());
        if !missing.is_empty() {
            let prefix = Arc::clone(&self.layout.prefix);
            let Prefilled { chunks, usage: cost, time } = self.engine.prefill(namespace, prefix, missing, true).await?;
            self.kv().note_prefill(cost.prefilled, time);
            let new = || NewKv { namespace: namespace.clone(), chunks: chunks.clone(), links };
            match keep {
                Keep::No => {}
                Keep::Now => self.store.keep_linked(new()).await,
                Keep::Soon => self.store.keep_linked_soon(new()).await,
            }
            found.extend(chunks.into_iter().map(|chunk| (chunk.id(), chunk)));
            usage = Usage { missed: cost.prefilled, ..cost };
        }
        let chunk = |content: &&Content| {
            let missing = || Error::Model(format!("the model did not name a chunk {}", content.chunk).into());
            found.get(&content.chunk).cloned().ok_or_else(missing)
        };
        let chunks = contents.iter().map(chunk).collect::<Result<Vec<_>>>()?;
        Ok(Fetched { chunks, usage, computed })
    }

    /// Which of these records' chunks the store probably has.
    pub(super) async fn contained(&self, entries: &[Arc<Entry>]) -> Result<Vec<bool>> {
        let ids = entries.iter().map(|entry| Ok(self.content(entry)?.chunk)).collect::<Result<Vec<_>>>()?;
        Ok(self.kv().contains_many(&ids).await)
    }

    /// Has the store begin to read these records' chunks, if they come from there, and keep those that are close at hand
    /// until what is returned is dropped.
    pub(super) fn prefetch(&self, entries: &[Arc<Entry>], source: Source) -> Lease {
        if source == Source::Model {
            return Lease::default();
        }
        let ids: Vec<ChunkId> = entries.iter().filter_map(|entry| Some(self.content(entry).ok()?.chunk)).collect();
        let lease = self.kv().lease(&ids, LEASE);
        self.kv().prefetch(&ids);
        lease
    }

    /// The chunks of these texts that the store holds and that are what they should be. Whatever else it answers is a
    /// miss.
    async fn held(&self, texts: &[PrefillText], prefix: &PrefixId) -> Vec<Option<KvChunk>> {
        let ids: Vec<ChunkId> = texts.iter().map(|text| text.id).collect();
        let mut found = match self.kv().get_many(&ids).await {
            Ok(found) => found,
            Err(error) => {
                log::warn!("{} chunks could not be read and are computed anew: {error}", ids.len());
                Vec::new()
            }
        };
        found.resize(ids.len(), None);
        self.store.leave_out_damaged(&mut found);
        for (text, found) in texts.iter().zip(&mut found) {
            if let Some(reason) = found.as_ref().and_then(|chunk| self.mismatch(chunk, text, prefix)) {
                log::warn!("what the store has as chunk {} is computed anew: {reason}", text.id);
                *found = None;
            }
        }
        found
    }

    /// Why a chunk is not that of this text.
    fn mismatch(&self, chunk: &KvChunk, text: &PrefillText, prefix: &PrefixId) -> Option<&'static str> {
        let info = self.model.info();
        if chunk.id() != text.id {
            Some("it has another id")
        } else if chunk.tokens() != &text.tokens {
            Some("it has other tokens")
        } else if chunk.prefix() != *prefix {
            Some("it stood behind another prefix")
        } else if chunk.shape() != &info.shape {
            Some("its KV has another shape")
        } else if chunk.model().is_some_and(|model| model != info.fingerprint) {
            Some("another model computed it")
        } else {
            None
        }
    }

    /// The names of the chunks that a record's texts have or had.
    pub(super) fn ids_of(&self, namespace: &Namespace, versions: &[Version]) -> Result<Vec<ChunkId>> {
        let texts = versions.iter().filter(|version| !version.text.is_empty());
        texts.map(|version| Ok(self.content_of(namespace, &version.text)?.chunk)).collect()
    }

    /// Deletes the KV of records that were found outdated, and whatever else the ledger names. What cannot be deleted is
    /// tried again by the next call.
    pub(super) async fn delete_outdated(&self) {
        let outdated = self.outdated.take();
        if let Err(error) = self.erase_unlinked(&outdated).await {
            log::warn!("KV of {} outdated texts could not be deleted yet: {error}", outdated.len());
            self.outdated.add(outdated);
        }
        // Where another process deletes them, it would be in vain each time.
        if self.store.has_refused() {
            return;
        }
        if let Err(error) = self.delete_pending().await {
            log::warn!("KV of texts that no longer count could not be deleted yet: {error}");
        }
    }

    /// Deletes the KV of those of these texts that no record says any more.
    async fn erase_unlinked(&self, entries: &[Arc<Entry>]) -> Result<()> {
        let ids = entries.iter().map(|entry| Ok(self.content(entry)?.chunk)).collect::<Result<Vec<_>>>()?;
        self.store.erase_unlinked(&ids).await
    }

    /// Deletes the KV of texts that no longer count, whoever changed or forgot them.
    pub(super) async fn delete_pending(&self) -> Result<()> {
        self.store.delete_pending().await
    }

    /// Deletes chunks, as [`LinkedStore::erase`].
    pub(super) async fn erase(&self, chunks: &[ChunkId]) -> Result<bool> {
        self.store.erase(chunks).await
    }

    /// The chunks that the store holds for a namespace.
    pub(super) async fn owned(&self, namespace: &Namespace) -> Result<Vec<StoredChunk>> {
        self.kv().owned(self.owner(namespace)).await
    }

    /// Deletes all chunks of a namespace that the store can name. Those that it cannot are named by the ledger.
    pub(super) async fn erase_all_of(&self, namespace: &Namespace) -> Result<()> {
        match self.owned(namespace).await {
            Ok(owned) => {
                let ids: Vec<ChunkId> = owned.iter().map(|held| held.id).collect();
                self.erase(&ids).await.map(drop)
            }
            Err(error) => {
                log::warn!("the store cannot list the chunks of a namespace: {error}");
                Ok(())
            }
        }
    }
}
