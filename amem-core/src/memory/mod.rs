//! The door that most users come in by: remember, recall, ask, update, forget.
//!
//! A text goes to the ledger first and is safe from then on. Its KV is computed when it is first needed, or ahead of
//! time with [`Memory::prefill`], and kept in the store; that is a cache, and whatever it loses is computed again.

mod answer;
mod builder;
mod records;
mod session;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use answer::Cost;
pub use answer::{Answer, AnswerStream, Ask, Event, Recollection};
pub use builder::Builder;
pub use session::{Session, SessionOptions};

use crate::{
    Added, ChunkId, Engine, Error, KvChunk, KvStore, Layout, Ledger, Model, Namespace, NewRecord, Outcome, Piece,
    PrefillText, PrefixId, Query, Recaller, Record, RecordId, Repair, Request, Result, State, Timestamp, Token, Usage,
    Version,
};
use records::RecordCache;

/// An agent's memory. Cheap to clone; clones are the same memory.
#[derive(Clone)]
pub struct Memory {
    parts: Arc<Parts>,
}

struct Parts {
    model: Arc<dyn Model>,
    engine: Engine,
    kv: Arc<dyn KvStore>,
    ledger: Arc<dyn Ledger>,
    recaller: Arc<dyn Recaller>,
    layout: Layout,
    repair: Repair,
    records: RecordCache,
}

/// A memory's tokens and, once it is at hand, its KV.
pub(crate) struct Fetched {
    /// In the order of the records.
    pub(crate) chunks: Vec<KvChunk>,
    /// What it took to compute those that were not held.
    pub(crate) usage: Usage,
}

impl Memory {
    /// A memory for this model. With nothing else said, all of it lives in RAM.
    pub fn builder(model: Arc<dyn Model>) -> Builder {
        Builder::new(model)
    }

    /// Remembers a text: durable when this returns.
    ///
    /// # Errors
    /// As [`remember_all`](Self::remember_all).
    pub async fn remember(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        text: impl Into<NewRecord>,
    ) -> Result<Added> {
        let added = self.remember_all(namespace, [text]).await?.pop();
        added.ok_or_else(|| Error::Ledger("the ledger did not say what became of the text".into()))
    }

    /// Remembers texts, all or none of them. An exact duplicate is not stored twice, and the answer says so.
    ///
    /// # Errors
    /// [`Error::Empty`]; [`Error::TooLong`] for a text that no context of the model can hold; what the ledger met.
    pub async fn remember_all<T: Into<NewRecord>>(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Added>> {
        let namespace = namespace.try_into()?;
        let new: Vec<NewRecord> = texts.into_iter().map(Into::into).collect();
        for record in &new {
            self.check_text(&record.text)?;
        }
        self.parts.ledger.add(&namespace, &new, Timestamp::now()).await
    }

    /// The records that a question is about, at most `k`, best first.
    ///
    /// # Errors
    /// [`Error::Empty`]; what the ledger or the recaller met.
    pub async fn recall(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        query: &str,
        k: usize,
    ) -> Result<Vec<Recollection>> {
        let namespace = namespace.try_into()?;
        if query.trim().is_empty() {
            return Err(Error::Empty { what: "query" });
        }
        self.refresh(&namespace).await?;
        let found = self.parts.recaller.recall(&namespace, query, k).await?;
        let now = Timestamp::now();
        let with_record = found.into_iter().filter_map(|recalled| {
            let record = self.parts.records.record(&namespace, recalled.id, now)?;
            Some(Recollection { record, score: recalled.score })
        });
        Ok(with_record.collect())
    }

    /// Answers a question from the memories that it is about.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::TooLong`] for the question alone; what a part met. A store that fails costs time, not
    /// the answer.
    pub async fn ask(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        question: impl Into<Ask>,
    ) -> Result<Answer> {
        self.ask_stream(namespace, question).await?.answer().await
    }

    /// As [`ask`](Self::ask), with the text as it is generated. Dropping the stream stops the work.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn ask_stream(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        question: impl Into<Ask>,
    ) -> Result<AnswerStream> {
        let started = Instant::now();
        let (namespace, ask) = (namespace.try_into()?, question.into());
        let question = self.question(&self.parts.layout.to_question, &ask.question)?;
        let mut recalled = self.recall(&namespace, &ask.question, ask.k).await?;
        let room = self.room(question.len(), ask.generation.max_tokens)?;
        self.fit(&mut recalled, room)?;
        // In the order in which they were told: a later one may lean on an earlier one, or overrule it.
        recalled.sort_by_key(|recollection| recollection.record.id);
        let records: Vec<Record> = recalled.iter().map(|recollection| recollection.record.clone()).collect();
        let (head, mut usage) = self.head(&namespace).await?;
        let fetched = self.fetch(&namespace, &records).await?;
        usage += fetched.usage;
        self.note(&recalled, &fetched.chunks);
        let mut pieces: Vec<Piece> = head.into_iter().chain(fetched.chunks).map(Piece::Cached).collect();
        pieces.push(Piece::Fresh(question.into()));
        let repair = ask.repair.unwrap_or_else(|| self.parts.repair.clone());
        let limit = self.parts.model.info().context;
        let request = Request::new(namespace, pieces).repair(repair).generation(ask.generation).limit(limit);
        let output = self.parts.engine.submit(request.started(started))?;
        Ok(AnswerStream::new(output, recalled, Cost { usage, opened: true }))
    }

    /// Opens a session: a conversation over a working set of memories that stays in place.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a token budget that the model cannot hold.
    pub fn session(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        options: SessionOptions,
    ) -> Result<Session> {
        Session::new(self.clone(), namespace.try_into()?, options)
    }

    /// Gives a record another text.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`], [`Error::NotActive`], [`Error::Empty`], [`Error::TooLong`], [`Error::SameText`]; what
    /// the ledger met.
    pub async fn update(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        id: RecordId,
        text: &str,
    ) -> Result<Record> {
        let namespace = namespace.try_into()?;
        self.check_text(text)?;
        let record = self.parts.ledger.update(&namespace, id, text, Timestamp::now()).await?;
        self.bury().await?;
        Ok(record)
    }

    /// Forgets a record: its texts are wiped and its KV is deleted, by the process that writes to the store if that is
    /// another one. It is in no answer that begins after this returns.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; what the ledger or the store met. If the store fails, the text is gone all the same
    /// and deleting the KV is tried again with the next call.
    pub async fn forget(&self, namespace: impl TryInto<Namespace, Error = Error>, id: RecordId) -> Result<Record> {
        let namespace = namespace.try_into()?;
        // The ledger knows the chunks that were computed for its texts. A store may hold more, from before the ledger.
        let texts = self.parts.ledger.history(&namespace, id).await?;
        let chunks = texts.iter().filter(|version| !version.text.is_empty());
        let chunks = chunks.map(|version| Ok(self.chunk_id(&namespace, &self.tokens(&version.text)?)));
        let chunks = chunks.collect::<Result<Vec<_>>>()?;
        let record = self.parts.ledger.forget(&namespace, id, Timestamp::now()).await?;
        self.erase(&chunks).await?;
        self.bury().await?;
        Ok(record)
    }

    /// The records of a namespace, in the order in which they were added.
    ///
    /// # Errors
    /// What the ledger met.
    pub async fn list(&self, namespace: impl TryInto<Namespace, Error = Error>, query: Query) -> Result<Vec<Record>> {
        self.parts.ledger.list(&namespace.try_into()?, query).await
    }

    /// All texts that a record had, oldest first.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; what the ledger met.
    pub async fn history(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        id: RecordId,
    ) -> Result<Vec<Version>> {
        self.parts.ledger.history(&namespace.try_into()?, id).await
    }

    /// Computes the KV of all active records that the store does not hold, many at a time. `progress` hears how many
    /// of how many are done.
    ///
    /// # Errors
    /// What the model, the ledger or the store met; what was done until then is kept.
    pub async fn prefill(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Usage> {
        const AT_A_TIME: usize = 256;
        let namespace = namespace.try_into()?;
        self.refresh(&namespace).await?;
        let (_, mut usage) = self.head(&namespace).await?;
        let records = self.parts.records.active(&namespace, Timestamp::now());
        let mut wanting = Vec::new();
        for record in records {
            let id = self.chunk_id(&namespace, &self.tokens(&record.text)?);
            if !self.parts.kv.contains(&id).await {
                wanting.push(record);
            }
        }
        for (index, records) in wanting.chunks(AT_A_TIME).enumerate() {
            progress(index * AT_A_TIME, wanting.len());
            usage += self.fetch(&namespace, records).await?.usage;
        }
        progress(wanting.len(), wanting.len());
        self.parts.kv.sync().await?;
        Ok(usage)
    }

    /// The engine, for requests beside those of memory: they are computed together.
    pub fn engine(&self) -> &Engine {
        &self.parts.engine
    }

    /// The model.
    pub fn model(&self) -> &Arc<dyn Model> {
        &self.parts.model
    }

    /// The store.
    pub fn kv(&self) -> &Arc<dyn KvStore> {
        &self.parts.kv
    }

    /// The tokens around a conversation's texts.
    pub fn layout(&self) -> &Layout {
        &self.parts.layout
    }

    /// The tokens of a memory, the template's marks included.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it.
    pub fn tokens(&self, text: &str) -> Result<Arc<[Token]>> {
        Ok(self.parts.layout.memory(&self.parts.model.chat().encode(text)?))
    }

    /// The tokens from the memories to the answer: `before`, the question, the start of the answer.
    pub(crate) fn question(&self, before: &[Token], question: &str) -> Result<Vec<Token>> {
        if question.trim().is_empty() {
            return Err(Error::Empty { what: "question" });
        }
        Ok([before, &self.parts.model.chat().encode(question)?, &self.parts.layout.to_answer].concat())
    }

    /// Tokens that a context has left for memories, beside the prefix, this many for the question and, as far as half
    /// of the rest allows, this many for the answer.
    fn room(&self, question: usize, answer: usize) -> Result<usize> {
        let (limit, taken) = (self.parts.model.info().context, self.parts.layout.prefix.len() + question + 1);
        let left = limit.checked_sub(taken).ok_or(Error::TooLong { what: "question", tokens: taken, limit })?;
        Ok(left - answer.min(left / 2))
    }

    /// Leaves out memories, given best first, that have no room beside better ones.
    pub(crate) fn fit(&self, recalled: &mut Vec<Recollection>, mut room: usize) -> Result<()> {
        let mut error = None;
        recalled.retain(|recollection| match self.tokens(&recollection.record.text) {
            Ok(tokens) if tokens.len() <= room => {
                room -= tokens.len();
                true
            }
            Ok(_) => false,
            Err(e) => {
                error = Some(e);
                false
            }
        });
        error.map_or(Ok(()), Err)
    }

    fn check_text(&self, text: &str) -> Result<()> {
        if text.trim().is_empty() {
            return Err(Error::Empty { what: "memory" });
        }
        let tokens = self.parts.layout.prefix.len() + self.tokens(text.trim())?.len();
        let limit = self.parts.model.info().context;
        if tokens > limit {
            return Err(Error::TooLong { what: "memory", tokens, limit });
        }
        Ok(())
    }

    fn chunk_id(&self, namespace: &Namespace, tokens: &[Token]) -> ChunkId {
        let prefix = PrefixId::of(&self.parts.layout.prefix);
        self.parts.model.info().chunk_id(namespace.as_str(), &prefix, tokens)
    }

    /// The KV of the prefix that every context begins with.
    pub(crate) async fn head(&self, namespace: &Namespace) -> Result<(Option<KvChunk>, Usage)> {
        let tokens = Arc::clone(&self.parts.layout.prefix);
        if tokens.is_empty() {
            return Ok((None, Usage::default()));
        }
        let id = self.parts.model.info().chunk_id(namespace.as_str(), &PrefixId::of(&[]), &tokens);
        if let Some(chunk) = self.held(&id).await {
            return Ok((Some(chunk), Usage::default()));
        }
        let texts = vec![PrefillText { id, tokens }];
        let (mut chunks, usage) = self.parts.engine.prefill(namespace, [].into(), texts, false).await?;
        self.keep(&chunks).await;
        Ok((chunks.pop(), Usage { missed: usage.prefilled, ..usage }))
    }

    /// The KV of records: from the store, or computed and put there.
    pub(crate) async fn fetch(&self, namespace: &Namespace, records: &[Record]) -> Result<Fetched> {
        let mut found: HashMap<ChunkId, KvChunk> = HashMap::new();
        let (mut ids, mut missing, mut links) = (Vec::new(), Vec::new(), Vec::new());
        for record in records {
            let tokens = self.tokens(&record.text)?;
            let id = self.chunk_id(namespace, &tokens);
            ids.push(id);
            if found.contains_key(&id) || missing.iter().any(|text: &PrefillText| text.id == id) {
                continue;
            }
            match self.held(&id).await {
                Some(chunk) => {
                    found.insert(id, chunk);
                }
                None => {
                    missing.push(PrefillText { id, tokens });
                    links.push((record.id, id));
                }
            }
        }
        let mut usage = Usage::default();
        if !missing.is_empty() {
            let prefix = Arc::clone(&self.parts.layout.prefix);
            let (chunks, cost) = self.parts.engine.prefill(namespace, prefix, missing, true).await?;
            // Linked before they are kept: whoever forgets a record in between must find its KV.
            self.parts.ledger.link(namespace, &links).await?;
            self.keep(&chunks).await;
            self.drop_outdated(namespace, records, &links).await?;
            found.extend(chunks.into_iter().map(|chunk| (chunk.id(), chunk)));
            usage = Usage { missed: cost.prefilled, ..cost };
        }
        let chunks = ids.iter().filter_map(|id| found.get(id).cloned()).collect();
        Ok(Fetched { chunks, usage })
    }

    /// Deletes the KV that was kept just now of texts that were forgotten or changed in the meantime. If that fails, the
    /// ledger still names what was forgotten.
    async fn drop_outdated(
        &self,
        namespace: &Namespace,
        records: &[Record],
        links: &[(RecordId, ChunkId)],
    ) -> Result<()> {
        let mut outdated = Vec::new();
        for &(id, chunk) in links {
            let now = self.parts.ledger.get(namespace, id, Timestamp::now()).await?;
            if records.iter().any(|record| record.id == id && record.text != now.text) {
                outdated.push(chunk);
            }
        }
        if let Err(error) = self.erase(&outdated).await {
            log::warn!("KV of texts that have changed could not be deleted: {error}");
        }
        Ok(())
    }

    /// A chunk that the store holds and that fits. Whatever else the store answers is a miss.
    async fn held(&self, id: &ChunkId) -> Option<KvChunk> {
        match self.parts.kv.get(id).await {
            Ok(Some(chunk)) if chunk.shape() == &self.parts.model.info().shape => Some(chunk),
            Ok(Some(chunk)) => {
                log::warn!("chunk {id} has the shape {:?}: it is computed anew", chunk.shape());
                None
            }
            Ok(None) => None,
            Err(error) => {
                log::warn!("chunk {id} could not be read and is computed anew: {error}");
                None
            }
        }
    }

    /// Puts chunks into the store. If it cannot keep them, they are computed again next time.
    async fn keep(&self, chunks: &[KvChunk]) {
        if let Err(error) = self.parts.kv.put(chunks).await {
            log::warn!("{} chunks could not be kept: {error}", chunks.len());
        }
    }

    /// Tells the store how much each chunk matters to what is being asked: its score against the best one's.
    pub(crate) fn note(&self, recalled: &[Recollection], chunks: &[KvChunk]) {
        let best = recalled.iter().map(|recollection| recollection.score).fold(f32::MIN_POSITIVE, f32::max);
        let scores = recalled.iter().map(|recollection| recollection.score / best);
        let relevance: Vec<(ChunkId, f32)> = chunks.iter().map(KvChunk::id).zip(scores).collect();
        self.parts.kv.note(&relevance);
    }

    /// Deletes the KV of what was forgotten, by this process or another.
    async fn bury(&self) -> Result<()> {
        let doomed = self.parts.ledger.doomed().await?;
        if self.erase(&doomed).await? { self.parts.ledger.buried(&doomed).await } else { Ok(()) }
    }

    /// Deletes chunks and says whether all is done. Where only another process may write to the store, it is left to that
    /// one, which does it when it is next asked for anything; nobody finds them until then, for a chunk's name is a hash
    /// of its text.
    async fn erase(&self, chunks: &[ChunkId]) -> Result<bool> {
        if chunks.is_empty() {
            return Ok(false);
        }
        match self.parts.kv.delete(chunks).await {
            Ok(()) => Ok(true),
            Err(Error::ReadOnly { what, reason }) => {
                log::info!("{} chunks of forgotten texts wait in {what}: {reason}", chunks.len());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Brings the index up to what this or any other process has written to the ledger.
    pub(crate) async fn refresh(&self, namespace: &Namespace) -> Result<()> {
        let Parts { ledger, recaller, records, .. } = &*self.parts;
        let forgotten = records.refresh(&**ledger, &**recaller, namespace).await?;
        let chunks = forgotten.iter().map(|record| Ok(self.chunk_id(namespace, &self.tokens(&record.text)?)));
        let chunks = chunks.collect::<Result<Vec<_>>>()?;
        // Another process may have forgotten them, and deleted from its own stores only.
        let erased = self.erase(&chunks).await.map(drop);
        if let Err(error) = erased.and(self.bury().await) {
            log::warn!("KV of forgotten texts could not be deleted yet: {error}");
        }
        Ok(())
    }

    /// The record as it is now, if it counts.
    pub(crate) fn record(&self, namespace: &Namespace, id: RecordId) -> Option<Record> {
        self.parts.records.record(namespace, id, Timestamp::now())
    }

    /// Whether a record was forgotten, rather than changed or outlived.
    pub(crate) async fn is_forgotten(&self, namespace: &Namespace, id: RecordId) -> Result<bool> {
        let record = self.parts.ledger.get(namespace, id, Timestamp::now()).await?;
        Ok(matches!(record.state, State::Forgotten { .. }))
    }

    /// All records that count now, oldest first.
    pub(crate) fn active(&self, namespace: &Namespace) -> Vec<Record> {
        self.parts.records.active(namespace, Timestamp::now())
    }
}

impl Added {
    /// Whether nothing was written because an active record says exactly this.
    pub fn is_duplicate(&self) -> bool {
        self.outcome == Outcome::Duplicate
    }
}
