//! The door that most users come in by: remember, recall, ask, update, forget.
//!
//! A text goes to the ledger first and is safe from then on. Its KV is computed when it is first needed, or ahead of
//! time with [`Memory::prefill`], and kept in the store; that is a cache, and whatever it loses is computed again.

mod answer;
mod attempts;
mod background;
mod backoff;
mod builder;
mod chunks;
mod cost;
mod disk_space;
mod late_links;
mod linked_store;
mod meter;
mod outdated;
mod records;
mod session;
mod texts;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

pub use answer::{Answer, AnswerStream, Ask, Event, Prompt, Recall, Recollection};
use attempts::Attempts;
use background::Background;
pub use builder::MemoryBuilder;
use chunks::{Chunks, Fetched, Keep, Source};
use cost::{Bill, Cost, amounts_of};
use meter::Meter;
use records::{Entry, Records};
pub use session::{Session, SessionOptions};
use texts::{Found, new_among};
pub use texts::{TextMemory, TextMemoryOptions};

use crate::ledger::ids_under;
use crate::{
    Added, Amounts, Change, ChunkId, Conversation, Engine, Error, Exchange, KvChunk, KvStore, Layout, Ledger, Listing,
    Message, Model, Namespace, NewRecord, Outcome, Page, Piece, Query, Record, RecordId, RecordStats, Repair, Request,
    Result, Role, Timestamp, Token, Tool, Usage, UsageQuery, UsageTotal, Version,
};

/// An agent's memory. Cheap to clone; clones are the same memory.
#[derive(Clone)]
pub struct Memory {
    parts: Arc<Parts>,
}

struct Parts {
    /// Deletions. The first to be dropped, so that what they use is still there.
    background: Background<()>,
    texts: TextMemory,
    chunks: Arc<Chunks>,
    repair: Repair,
}

/// What a namespace has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamespaceStats {
    /// Its records, by their states.
    pub records: RecordStats,
    /// Chunks of KV that the store holds for it.
    pub chunks: usize,
    /// Bytes that they occupy.
    pub kv_bytes: u64,
}

impl Memory {
    /// A memory for this model. With nothing else said, all of it lives in RAM.
    pub fn builder(model: Arc<dyn Model>) -> MemoryBuilder {
        MemoryBuilder::new(model)
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

    /// Remembers texts, all or none of them. An exact duplicate is not stored twice, and the answer says so; it can give
    /// the record that stands another expiry and other metadata, as [`Ledger::add`] says. On a full disk KV, which can be
    /// computed again, makes room for them ([`KvStore::give_up`]), as for whatever else the ledger has to write. The KV of
    /// texts that are superseded is deleted.
    ///
    /// # Errors
    /// [`Error::Empty`]; [`Error::TooLong`] for a text that no context of the model can hold; [`Error::BadValue`] for a
    /// key or metadata beyond their bounds; [`Error::Full`] when KV makes no room on a full disk, and [`Error::Ledger`]
    /// when the ledger cannot be written.
    pub async fn remember_all<T: Into<NewRecord>>(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Added>> {
        let namespace = namespace.try_into()?;
        let new: Vec<NewRecord> = texts.into_iter().map(Into::into).collect();
        let bytes = new.iter().map(|record| record.text.len()).sum();
        let check = |memory: &Self| {
            new.iter().try_for_each(|record| memory.check_text(&record.text))?;
            Ok(new)
        };
        let new: Vec<NewRecord> = self.tokenise(bytes, check).await?;
        self.meter().check().await?;
        let added = self.texts().add(&namespace, &new).await?;
        if added.iter().any(|added| matches!(added.outcome, Outcome::Superseded(_))) {
            self.delete_outdated().await;
        }
        self.texts().count_operations(&namespace, new_among(&added)).await?;
        Ok(added)
    }

    /// Deletes the KV of texts that no longer count. What cannot be deleted now is deleted after a later call. Whatever
    /// changes records by a call of this type needs no call of this.
    pub async fn delete_outdated(&self) {
        if let Err(error) = self.chunks().delete_pending().await {
            log::warn!("KV of texts that no longer count could not be deleted yet: {error}");
        }
    }

    /// Waits until the work is done that calls before this one left to the background: deleting KV of texts that other
    /// processes changed or forgot or whose time is over, and saving indexes in the ledger. No question waits for it. The
    /// last clone of a memory does when it is dropped.
    ///
    /// An index that the ledger dropped because something was forgotten is saved again a while after it was saved last, and
    /// by this call in any case.
    pub async fn settle(&self) {
        self.parts.background.finish().await;
        self.texts().settle().await;
    }

    /// Deletes the KV of texts that no longer count, whoever forgot, changed or superseded them, and removes the bytes of
    /// all that is gone from the files of the store and the ledger, now rather than in time. `false` while somebody reads
    /// the ledger as it was before, as a backup does: call it again then.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] when another process writes to the store, which is the one to purge it; [`Error::Store`],
    /// [`Error::Ledger`] and others when the store or the ledger fails. Calling again finishes the work.
    pub async fn purge(&self) -> Result<bool> {
        self.chunks().delete_pending().await?;
        self.kv().purge().await?;
        self.ledger().wipe().await
    }

    /// The records that a text is about, best first.
    ///
    /// # Errors
    /// [`Error::Empty`] for a query that says nothing (unless `k` is 0), [`Error::BadValue`] for a filter beyond its bounds;
    /// [`Error::Ledger`] and [`Error::Recall`] when the ledger or the index fails.
    pub async fn recall(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        recall: impl Into<Recall>,
    ) -> Result<Vec<Recollection>> {
        let (_, found) = self.find(&namespace.try_into()?, &recall.into()).await?;
        Ok(found.iter().map(Found::recollection).collect())
    }

    /// Answers a question from the memories that it is about.
    ///
    /// A full disk does not keep answers back. Where [usage is metered](MemoryBuilder::meter_usage), KV makes room for what
    /// the ledger counts of the question. Where it cannot, the answer comes all the same: what is to be counted waits in
    /// RAM and is written with what is counted next. It is lost if the process ends before that. Once 1,024 of these wait,
    /// questions and changes fail with [`Error::Full`], before anything is done, until they can be written.
    ///
    /// # Errors
    /// As [`recall`](Self::recall); [`Error::TooLong`] for the question alone; [`Error::KvCacheFull`] when the KV cache has
    /// no room; [`Error::Full`] when too much usage waits for room on the disk; [`Error::Overloaded`] when too many
    /// requests wait; [`Error::Model`] when the model fails; [`Error::Ledger`] when usage cannot be written for want of
    /// anything but room. A store that fails costs time, not the answer; nor does a ledger that others write to, unless
    /// usage is metered.
    pub async fn ask(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        question: impl Into<Ask>,
    ) -> Result<Answer> {
        self.ask_stream(namespace, question).await?.answer().await
    }

    /// As [`ask`](Self::ask), with the text as it is generated. Dropping the stream stops the work.
    ///
    /// Where KV comes from a disk or a server, it returns once that stands in the context, which is after the first step of
    /// computing: what turns out to be lost is computed again.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn ask_stream(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        question: impl Into<Ask>,
    ) -> Result<AnswerStream> {
        let (started, namespace, ask) = (Instant::now(), namespace.try_into()?, question.into());
        let mut attempts = Attempts::default();
        loop {
            match self.try_ask(&namespace, ask.clone(), started, attempts.source()).await {
                Err(error) => attempts.retry_after(error, self.chunks()).await?,
                answer => return answer,
            }
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`Error::DamagedKv`] when KV from the store is lost before anything is generated.
    async fn try_ask(&self, namespace: &Namespace, ask: Ask, started: Instant, source: Source) -> Result<AnswerStream> {
        ask.generation.check()?;
        self.meter().check().await?;
        let asked = self.pieces(self.conversation(&ask).await?);
        let tokens = asked.iter().map(|piece| piece.tokens().len()).sum();
        let (_records, mut found) = self.find(namespace, &ask.recall).await?;
        let room = self.room(tokens, ask.generation.max_tokens)?;
        self.fit(&mut found, room)?;
        // In the order in which they were told: a later one may lean on an earlier one, or overrule it.
        found.sort_by_key(|found| found.entry.record.id);
        let entries: Vec<Arc<Entry>> = found.iter().map(|found| Arc::clone(&found.entry)).collect();
        let lease = self.chunks().prefetch(&entries, source);
        let base = self.chunks().base().await?;
        let keep = if ask.recall.as_of.is_none() { Keep::Soon } else { Keep::No };
        let fetched = self.chunks().fetch(namespace, &entries, source, keep).await?;
        drop(lease);
        self.note(&found, &fetched.chunks);
        let usage = base.usage + fetched.usage;
        let (opened, computed) = (base.is_new, fetched.computed);
        let cost = Cost { usage, opened, resident: entries.len(), chunks: entries.len(), computed };
        let bill = self.bill(namespace, cost);
        let mut pieces: Vec<Piece> = fetched.chunks.into_iter().map(Piece::Cached).collect();
        pieces.extend(asked);
        let repair = ask.repair.unwrap_or_else(|| self.parts.repair.clone());
        let limit = self.model().info().context;
        let request = Request::new(namespace.clone(), pieces).repair(repair).generation(ask.generation).limit(limit);
        let request = base.context.into_iter().fold(request, Request::context);
        let request = match bill {
            Some(bill) => request.finally(Box::new(move |_, completion| bill.record(completion))),
            None => request,
        };
        let mut output = self.engine().submit(request.started(started))?;
        output.loaded().await?;
        let recalled = found.iter().map(Found::recollection).collect();
        Ok(AnswerStream::new(self, output, recalled, cost, &ask.tools))
    }

    /// Opens a session: a conversation over a working set of memories that stays in place.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a token budget that the model cannot hold.
    #[doc(alias = "start_session")]
    pub fn session(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        options: SessionOptions,
    ) -> Result<Session> {
        Session::new(self.clone(), namespace.try_into()?, options)
    }

    /// Gives a record another text: [`change`](Self::change) of that alone.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub async fn update(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        id: RecordId,
        text: &str,
    ) -> Result<Record> {
        self.change(namespace, id, Change::new().text(text)).await
    }

    /// Changes a record's text, key, metadata or expiry, as [`Ledger::change`] says. If its text changes, or its time is
    /// over, its KV is deleted; otherwise the KV stays.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`], [`Error::NotActive`], [`Error::ChangedMeanwhile`], [`Error::KeyTaken`],
    /// [`Error::SameText`]; [`Error::Empty`], [`Error::TooLong`], and [`Error::BadValue`] for a key or metadata beyond
    /// their bounds; [`Error::Full`] and [`Error::Ledger`] when the ledger cannot be written.
    pub async fn change(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        id: RecordId,
        change: Change,
    ) -> Result<Record> {
        let namespace = namespace.try_into()?;
        if let Some(text) = change.text.clone() {
            self.tokenise(text.len(), move |memory| memory.check_text(&text)).await?;
        }
        self.meter().check().await?;
        let record = self.texts().write_change(&namespace, id, &change).await?;
        let may_end = change.text.is_some() || change.expires_at.is_some();
        let deleted = if may_end { self.chunks().delete_pending().await } else { Ok(()) };
        self.texts().count_operations(&namespace, 1).await?;
        deleted.map(|()| record)
    }

    /// Forgets a record: [`forget_many`](Self::forget_many) of one.
    ///
    /// # Errors
    /// As [`forget_many`](Self::forget_many).
    pub async fn forget(&self, namespace: impl TryInto<Namespace, Error = Error>, id: RecordId) -> Result<Record> {
        let forgotten = self.forget_many(namespace, &[id]).await?.pop();
        forgotten.ok_or_else(|| Error::Ledger("the ledger did not say what became of the record".into()))
    }

    /// Forgets records, all or none of them: their texts, keys and metadata are wiped, as [`Ledger::forget_many`] says, and
    /// their KV is deleted, by the process that writes to the store if that is another one. They are in no answer that
    /// begins after this returns.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; [`Error::Full`] and [`Error::Ledger`] when the ledger cannot be written;
    /// [`Error::Store`] and others when the store cannot delete: then the texts are gone all the same, and deleting the KV
    /// is tried again with the next call.
    pub async fn forget_many(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        ids: &[RecordId],
    ) -> Result<Vec<Record>> {
        let namespace = namespace.try_into()?;
        let chunks = self.chunks_of(&namespace, ids).await?;
        self.erased(&namespace, &chunks, self.texts().erase(&namespace, ids)).await
    }

    /// Forgets all records that have this key, those that were superseded or have expired included, as
    /// [`Ledger::forget_key`] says; none if no record has it. Their KV is deleted as that of
    /// [others](Self::forget_many).
    ///
    /// # Errors
    /// [`Error::Full`] and [`Error::Ledger`] when the ledger cannot be written; when the store cannot delete, as
    /// [`forget_many`](Self::forget_many).
    pub async fn forget_key(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        key: &str,
    ) -> Result<Vec<Record>> {
        let namespace = namespace.try_into()?;
        let ids = match ids_under(&**self.ledger(), &namespace, key).await {
            // As with a record that is damaged.
            Err(Error::Ledger(error)) => {
                log::warn!("the records of a key that is forgotten are unknown: {error}");
                Vec::new()
            }
            ids => ids?,
        };
        let chunks = self.chunks_of(&namespace, &ids).await?;
        self.erased(&namespace, &chunks, self.texts().erase_key(&namespace, key)).await
    }

    /// The chunks of all texts that records had. The ledger knows those that were computed for its texts; a store may hold
    /// more, from before the ledger.
    async fn chunks_of(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<Vec<ChunkId>> {
        let mut chunks = Vec::new();
        for id in ids {
            match self.ledger().history(namespace, *id).await {
                Ok(texts) => chunks.extend(self.chunks().ids_of(namespace, &texts)?),
                // A record that is damaged can be forgotten all the same: the ledger knows its chunks without its texts.
                Err(Error::Ledger(error)) => {
                    log::warn!("the texts of record {id}, which is forgotten, are unknown: {error}")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(chunks)
    }

    /// Has records wiped from the ledger, and then deletes these chunks and those that the ledger names.
    async fn erased(
        &self,
        namespace: &Namespace,
        chunks: &[ChunkId],
        erase: impl Future<Output = Result<Vec<Record>>>,
    ) -> Result<Vec<Record>> {
        let records = erase.await?;
        let erased = self.chunks().erase(chunks).await;
        let deleted = self.chunks().delete_pending().await;
        self.texts().count_operations(namespace, records.len()).await?;
        erased.and(deleted).map(|()| records)
    }

    /// Deletes a namespace: all its records with their histories, and their KV. Returns how many records there were.
    ///
    /// # Errors
    /// [`Error::Full`] and [`Error::Ledger`] when the ledger cannot be written; when the store cannot delete, as
    /// [`forget_many`](Self::forget_many).
    pub async fn delete_namespace(&self, namespace: impl TryInto<Namespace, Error = Error>) -> Result<usize> {
        let namespace = namespace.try_into()?;
        let records = self.texts().delete_namespace(&namespace).await?;
        self.chunks().erase_all_of(&namespace).await?;
        self.chunks().delete_pending().await?;
        Ok(records)
    }

    /// The memory of texts that this one is built on: for reading. Change records through this type, which deletes their KV
    /// too.
    pub fn texts(&self) -> &TextMemory {
        &self.parts.texts
    }

    /// The KV of its texts.
    fn chunks(&self) -> &Arc<Chunks> {
        &self.parts.chunks
    }

    /// What counts usage.
    fn meter(&self) -> &Arc<Meter> {
        self.texts().meter()
    }

    /// One record, whatever its state.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; [`Error::Ledger`] when the ledger cannot be read.
    pub async fn get(&self, namespace: impl TryInto<Namespace, Error = Error>, id: RecordId) -> Result<Record> {
        self.texts().get(namespace, id).await
    }

    /// The records of a namespace, in the order in which they were added.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    pub async fn list(&self, namespace: impl TryInto<Namespace, Error = Error>, query: Query) -> Result<Vec<Record>> {
        self.texts().list(namespace, query).await
    }

    /// Some of a namespace's records.
    ///
    /// # Errors
    /// As [`Ledger::page`].
    pub async fn page(&self, namespace: impl TryInto<Namespace, Error = Error>, listing: &Listing) -> Result<Page> {
        self.texts().page(namespace, listing).await
    }

    /// How many records of a namespace count now.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    pub async fn count(&self, namespace: impl TryInto<Namespace, Error = Error>) -> Result<usize> {
        self.texts().count(namespace).await
    }

    /// All texts that a record had, oldest first.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; [`Error::Ledger`] when the ledger cannot be read.
    pub async fn history(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        id: RecordId,
    ) -> Result<Vec<Version>> {
        self.texts().history(namespace, id).await
    }

    /// Computes the KV of all active records that the store does not hold, many at a time. `progress` hears how many
    /// of how many are done.
    ///
    /// # Errors
    /// [`Error::Ledger`], [`Error::Recall`] and [`Error::Model`] when one of these fails; the store's error when it
    /// cannot sync. What was done until then is kept.
    pub async fn prefill(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Usage> {
        const AT_A_TIME: usize = 256;
        let (namespace, chunks) = (namespace.try_into()?, self.chunks());
        let records = self.refresh(&namespace).await?;
        // What is to be deleted would be taken for held.
        self.parts.background.finish().await;
        let mut usage = chunks.base().await?.usage;
        let mut missing = Vec::new();
        let active: Vec<RecordId> = records.active(Timestamp::now()).into_iter().map(|(id, _)| id).collect();
        for ids in active.chunks(AT_A_TIME) {
            let entries = self.texts().load(&namespace, &records, ids).await?;
            let contained = chunks.contained(&entries).await?;
            missing.extend(entries.into_iter().zip(contained).filter(|(_, held)| !held).map(|(entry, _)| entry));
        }
        for (index, entries) in missing.chunks(AT_A_TIME).enumerate() {
            progress(index * AT_A_TIME, missing.len());
            usage += chunks.fetch(&namespace, entries, Source::Store, Keep::Now).await?.usage;
        }
        progress(missing.len(), missing.len());
        self.kv().sync().await?;
        // What was computed was not asked for: nothing was reused.
        usage.cached = 0;
        self.texts().record_usage(&namespace, amounts_of(&usage)).await?;
        Ok(usage)
    }

    /// What was used, by namespace, if [usage is metered](MemoryBuilder::meter_usage).
    ///
    /// # Errors
    /// As [`Ledger::usage`].
    pub async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>> {
        self.texts().usage(query).await
    }

    /// What a namespace has: its records by their states, and the KV of its memories.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read, [`Error::Store`] when the store cannot list its chunks.
    pub async fn stats(&self, namespace: impl TryInto<Namespace, Error = Error>) -> Result<NamespaceStats> {
        let namespace = namespace.try_into()?;
        let records = self.texts().stats(&namespace).await?;
        let owned = self.chunks().owned(&namespace).await?;
        let kv_bytes = owned.iter().map(|chunk| chunk.bytes).sum();
        Ok(NamespaceStats { records, chunks: owned.len(), kv_bytes })
    }

    /// The ledger, for whatever reads or writes records by itself, as an export or an import does. After records were
    /// written, call [`delete_outdated`](Self::delete_outdated).
    pub fn ledger(&self) -> &Arc<dyn Ledger> {
        self.texts().ledger()
    }

    /// Counts what was done for a namespace beside the calls of this type, if [usage is
    /// metered](MemoryBuilder::meter_usage). On a disk that is full it waits, as [`ask`](Self::ask) says.
    ///
    /// # Errors
    /// [`Error::Ledger`] when it cannot be written; it is written with the next.
    pub async fn record_usage(&self, namespace: &Namespace, amounts: Amounts) -> Result<()> {
        self.texts().record_usage(namespace, amounts).await
    }

    /// Whether a text is one that can be remembered.
    ///
    /// # Errors
    /// [`Error::Empty`]; [`Error::TooLong`] for a text that no context of the model can hold; [`Error::BadValue`] for a
    /// key or metadata beyond their bounds.
    pub fn check(&self, new: &NewRecord) -> Result<()> {
        self.check_text(new.check()?)
    }

    /// The engine, for requests beside those of memory: they are computed together.
    pub fn engine(&self) -> &Engine {
        self.chunks().engine()
    }

    /// The model.
    pub fn model(&self) -> &Arc<dyn Model> {
        self.chunks().model()
    }

    /// The store.
    pub fn kv(&self) -> &Arc<dyn KvStore> {
        self.chunks().kv()
    }

    /// The tokens around a conversation's texts.
    pub fn layout(&self) -> &Layout {
        self.chunks().layout()
    }

    /// The tokens of a memory, the template's marks included.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it.
    pub fn tokens(&self, text: &str) -> Result<Arc<[Token]>> {
        self.chunks().tokens(text)
    }

    /// Tokens that the model is told a question or a conversation in when no memories are recalled for it. Nothing is
    /// computed.
    ///
    /// # Errors
    /// As [`Chat::conversation`](crate::Chat::conversation); [`Error::Empty`] for a question that says nothing.
    pub fn prompt_tokens(&self, ask: &Ask) -> Result<usize> {
        let asked = self.pieces(self.conversation_of(&ask.prompt, &ask.tools)?);
        Ok(self.layout().prefix.len() + asked.iter().map(|piece| piece.tokens().len()).sum::<usize>())
    }

    /// What is asked, in tokens, from the memories on.
    pub(crate) async fn conversation(&self, ask: &Ask) -> Result<Conversation> {
        let (prompt, tools) = (ask.prompt.clone(), ask.tools.clone());
        self.tokenise(ask.bytes(), move |memory| memory.conversation_of(&prompt, &tools)).await
    }

    fn conversation_of(&self, prompt: &Prompt, tools: &[Tool]) -> Result<Conversation> {
        let (chat, layout) = (self.model().chat(), self.layout());
        match prompt {
            Prompt::Question(question) if question.trim().is_empty() => Err(Error::Empty { what: "question" }),
            Prompt::Question(question) => chat.conversation(layout, &[Message::new(Role::User, &**question)], tools),
            Prompt::Messages(messages) => chat.conversation(layout, messages, tools),
        }
    }

    /// Makes tokens of so many bytes of text: on a thread of its own where there are many, so that nothing else waits that the
    /// caller's thread serves.
    async fn tokenise<T: Send + 'static>(&self, bytes: usize, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        /// A tokenizer takes about as many microseconds as there are bytes, or less.
        const LONG: usize = 4096;
        if bytes < LONG {
            return work(self);
        }
        let memory = self.clone();
        blocking::unblock(move || work(&memory)).await
    }

    /// A conversation as pieces: what was said before, and the last prompt, whose attention chooses what is repaired.
    fn pieces(&self, conversation: Conversation) -> Vec<Piece> {
        let Conversation { opening, exchanges } = conversation;
        let (mut pieces, mut fresh) = (Vec::new(), opening);
        for (index, Exchange { is_question, prompt, reply }) in exchanges.into_iter().enumerate() {
            if reply.is_none() && index > 0 {
                pieces.push(Piece::Fresh(std::mem::take(&mut fresh).into()));
            }
            if is_question && index > 0 {
                fresh.extend_from_slice(&self.layout().next_question);
            }
            fresh.extend(prompt);
            fresh.extend(reply.into_iter().flat_map(|reply| reply.tokens));
        }
        pieces.push(Piece::Fresh(fresh.into()));
        pieces
    }

    /// Tokens that a context has left for memories, beside the prefix, this many for the question and, as far as half
    /// of the rest allows, this many for the answer.
    fn room(&self, question: usize, answer: usize) -> Result<usize> {
        let (limit, taken) = (self.model().info().context, self.layout().prefix.len() + question + 1);
        let left = limit.checked_sub(taken).ok_or(Error::TooLong { what: "question", tokens: taken, limit })?;
        Ok(left - answer.min(left / 2))
    }

    /// Leaves out memories, given best first, that have no room beside better ones.
    pub(crate) fn fit(&self, found: &mut Vec<Found>, mut room: usize) -> Result<()> {
        let mut error = None;
        found.retain(|found| match self.chunks().content(&found.entry) {
            Ok(content) if content.tokens.len() <= room => {
                room -= content.tokens.len();
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
        let tokens = self.layout().prefix.len() + self.tokens(text.trim())?.len();
        let limit = self.model().info().context;
        if tokens > limit {
            return Err(Error::TooLong { what: "memory", tokens, limit });
        }
        Ok(())
    }

    /// The records that a text is about, and the namespace's records, which stay in the cache for as long as they are
    /// held.
    pub(crate) async fn find(&self, namespace: &Namespace, recall: &Recall) -> Result<(Arc<Records>, Vec<Found>)> {
        recall.check()?;
        let records = self.refresh(namespace).await?;
        let found = self.texts().find(namespace, &records, recall).await?;
        Ok((records, found))
    }

    /// Tells the store how much each chunk matters to what is being asked: its score against the best one's.
    pub(crate) fn note(&self, found: &[Found], chunks: &[KvChunk]) {
        let best = found.iter().map(|found| found.score).fold(f32::MIN_POSITIVE, f32::max);
        let scores = found.iter().map(|found| found.score / best);
        let relevance: Vec<_> = chunks.iter().map(KvChunk::id).zip(scores).collect();
        self.kv().note_relevance(&relevance);
    }

    /// A namespace's records and its index, brought up to what this or any other process has written to the ledger. KV of
    /// what no longer counts is deleted in the background: nobody finds it, for a chunk's name is a hash of its text.
    pub(crate) async fn refresh(&self, namespace: &Namespace) -> Result<Arc<Records>> {
        let records = self.texts().refresh(namespace).await?;
        let chunks = Arc::clone(self.chunks());
        self.parts.background.push((), async move { chunks.delete_outdated().await });
        Ok(records)
    }

    /// What a question has used so far, if that is to be counted.
    pub(crate) fn bill(&self, namespace: &Namespace, cost: Cost) -> Option<Bill> {
        let (meter, namespace) = (Arc::clone(self.meter()), namespace.clone());
        meter.is_on().then(|| Bill::new(meter, namespace, cost))
    }

    pub(crate) async fn fetch(&self, namespace: &Namespace, entries: &[Arc<Entry>], source: Source) -> Result<Fetched> {
        let _lease = self.chunks().prefetch(entries, source);
        self.chunks().fetch(namespace, entries, source, Keep::Soon).await
    }
}

impl Added {
    /// Whether nothing was written because an active record says exactly this, and has all that was stated.
    pub fn is_duplicate(&self) -> bool {
        self.outcome == Outcome::Duplicate
    }
}
