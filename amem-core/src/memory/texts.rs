//! A memory of texts alone: the records, found by what they are about. No model, and no KV.

use std::sync::Arc;
use std::time::Duration;

use super::answer::{Recall, Recollection};
use super::background::Background;
use super::backoff::Backoff;
use super::disk_space::DiskSpace;
use super::meter::Meter;
use super::outdated::Outdated;
use super::records::{Entry, RecordCache, Records, Refreshed};
use crate::recall::Lexical;
use crate::{
    Added, Amounts, Change, Error, Ledger, Listing, Metadata, Namespace, NewRecord, Page, Query, RecallQuery, Recalled,
    Recaller, Record, RecordId, RecordStats, Result, Timestamp, UsageQuery, UsageTotal, Version,
};

/// The parts of a [`TextMemory`] beside its ledger.
#[derive(Clone)]
#[non_exhaustive]
pub struct TextMemoryOptions {
    /// What finds the records that a text is about; by their words unless said otherwise. It is used in the background too,
    /// on threads that belong to no asynchronous runtime.
    pub recaller: Arc<dyn Recaller>,
    /// Records that are held in RAM and in the recaller's index, about (100,000 unless said otherwise). Beyond that, the
    /// namespaces that were asked about longest ago leave, and are read from the ledger when they are asked about again.
    pub cached_records: usize,
    /// Whether what is done is counted in the ledger, by namespace ([`TextMemory::usage`]); it is not unless said
    /// otherwise.
    pub meter_usage: bool,
}

impl Default for TextMemoryOptions {
    fn default() -> Self {
        Self { recaller: Arc::new(Lexical::default()), cached_records: 100_000, meter_usage: false }
    }
}

/// A memory of texts, for models that run elsewhere: remember, recall, update, forget. [`Memory`](crate::Memory) is one,
/// with the texts' KV. Both may use one ledger at the same time: KV of a text that is forgotten or changed here is deleted
/// by whoever keeps it.
///
/// Cheap to clone; clones are the same memory.
#[derive(Clone)]
pub struct TextMemory {
    parts: Arc<Parts>,
}

struct Parts {
    /// Saving of indexes. The first to be dropped, so that what it uses is still there.
    background: Background<Namespace>,
    /// The ledger refused to save an index, for it is read-only here.
    refused: Arc<Backoff>,
    ledger: Arc<dyn Ledger>,
    recaller: Arc<dyn Recaller>,
    records: Arc<RecordCache>,
    meter: Arc<Meter>,
    disk_space: Arc<DiskSpace>,
}

/// A record that was found, and how well it fits.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) entry: Arc<Entry>,
    pub(crate) score: f32,
}

impl Found {
    pub(crate) fn recollection(&self) -> Recollection {
        Recollection { record: self.entry.record.clone(), score: self.score }
    }
}

impl TextMemory {
    /// A memory of what is in a ledger, found by its words.
    pub fn new(ledger: Arc<dyn Ledger>) -> Self {
        Self::with_options(ledger, TextMemoryOptions::default())
    }

    /// A memory of what is in a ledger.
    pub fn with_options(ledger: Arc<dyn Ledger>, options: TextMemoryOptions) -> Self {
        Self::beside_kv(ledger, options, Arc::default(), None)
    }

    /// A memory of what is in a ledger that KV makes way for on a full disk, where somebody who keeps the texts' KV is told
    /// which are outdated.
    pub(super) fn beside_kv(
        ledger: Arc<dyn Ledger>,
        options: TextMemoryOptions,
        disk_space: Arc<DiskSpace>,
        outdated: Option<Arc<Outdated>>,
    ) -> Self {
        let TextMemoryOptions { recaller, cached_records, meter_usage } = options;
        let meter = Arc::new(Meter::new(meter_usage.then(|| Arc::clone(&ledger)), Arc::clone(&disk_space)));
        let (background, refused) = (Background::default(), Arc::default());
        let records = Arc::new(RecordCache::new(cached_records, outdated));
        Self { parts: Arc::new(Parts { background, refused, ledger, recaller, records, meter, disk_space }) }
    }

    /// Remembers texts, all or none of them: durable when this returns. An exact duplicate is not stored twice, and the
    /// answer says so; it can give the record that stands another expiry and other metadata, as [`Ledger::add`] says.
    ///
    /// # Errors
    /// [`Error::Empty`]; [`Error::BadValue`] for a key or metadata beyond their bounds; [`Error::Ledger`] and
    /// [`Error::Full`] when the ledger cannot be written.
    pub async fn remember_all<T: Into<NewRecord>>(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Added>> {
        let namespace = namespace.try_into()?;
        let new: Vec<NewRecord> = texts.into_iter().map(Into::into).collect();
        self.meter().check().await?;
        let added = self.add(&namespace, &new).await?;
        self.count_operations(&namespace, new_among(&added)).await?;
        Ok(added)
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
        let (namespace, recall) = (namespace.try_into()?, recall.into());
        recall.check()?;
        let records = self.refresh(&namespace).await?;
        let found = self.find(&namespace, &records, &recall).await?;
        Ok(found.iter().map(Found::recollection).collect())
    }

    /// The records that were remembered last, oldest first.
    ///
    /// # Errors
    /// [`Error::Ledger`] and [`Error::Recall`] when the ledger or the index fails.
    pub async fn latest(&self, namespace: impl TryInto<Namespace, Error = Error>, count: usize) -> Result<Vec<Record>> {
        let namespace = namespace.try_into()?;
        let records = self.refresh(&namespace).await?;
        let mut ids: Vec<RecordId> = records.active(Timestamp::now()).into_iter().map(|(id, _)| id).collect();
        let ids = ids.split_off(ids.len().saturating_sub(count));
        let entries = self.load(&namespace, &records, &ids).await?;
        Ok(entries.iter().map(|entry| entry.record.clone()).collect())
    }

    /// One record, whatever its state.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; [`Error::Ledger`] when the ledger cannot be read.
    pub async fn get(&self, namespace: impl TryInto<Namespace, Error = Error>, id: RecordId) -> Result<Record> {
        self.ledger().get(&namespace.try_into()?, id, Timestamp::now()).await
    }

    /// Records, whatever their states, in the order of the ids; `None` for one that is not there.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    pub async fn get_many(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        ids: &[RecordId],
    ) -> Result<Vec<Option<Record>>> {
        self.ledger().get_many(&namespace.try_into()?, ids, Timestamp::now()).await
    }

    /// The records of a namespace, in the order in which they were added.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    pub async fn list(&self, namespace: impl TryInto<Namespace, Error = Error>, query: Query) -> Result<Vec<Record>> {
        self.ledger().list(&namespace.try_into()?, query).await
    }

    /// Some of a namespace's records.
    ///
    /// # Errors
    /// As [`Ledger::page`].
    pub async fn page(&self, namespace: impl TryInto<Namespace, Error = Error>, listing: &Listing) -> Result<Page> {
        self.ledger().page(&namespace.try_into()?, listing).await
    }

    /// How many records of a namespace count now.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    pub async fn count(&self, namespace: impl TryInto<Namespace, Error = Error>) -> Result<usize> {
        self.ledger().count(&namespace.try_into()?, Timestamp::now()).await
    }

    /// The records of a namespace, by their states.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    pub async fn stats(&self, namespace: impl TryInto<Namespace, Error = Error>) -> Result<RecordStats> {
        self.ledger().stats(&namespace.try_into()?, Timestamp::now()).await
    }

    /// The namespaces that have records, in order of their names.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    pub async fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.ledger().namespaces().await
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
        self.ledger().history(&namespace.try_into()?, id).await
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

    /// Changes a record's text, key, metadata or expiry, as [`Ledger::change`] says.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`], [`Error::NotActive`], [`Error::ChangedMeanwhile`], [`Error::KeyTaken`],
    /// [`Error::SameText`]; [`Error::Empty`], and [`Error::BadValue`] for a key or metadata beyond their bounds;
    /// [`Error::Ledger`] when the ledger cannot be written.
    pub async fn change(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        id: RecordId,
        change: Change,
    ) -> Result<Record> {
        let namespace = namespace.try_into()?;
        self.meter().check().await?;
        let record = self.write_change(&namespace, id, &change).await?;
        self.count_operations(&namespace, 1).await?;
        Ok(record)
    }

    /// Forgets a record: [`forget_many`](Self::forget_many) of one.
    ///
    /// # Errors
    /// As [`forget_many`](Self::forget_many).
    pub async fn forget(&self, namespace: impl TryInto<Namespace, Error = Error>, id: RecordId) -> Result<Record> {
        let forgotten = self.forget_many(namespace, &[id]).await?.pop();
        forgotten.ok_or_else(|| Error::Ledger("the ledger did not say what became of the record".into()))
    }

    /// Forgets records, all or none of them: their texts, keys and metadata are wiped, as [`Ledger::forget_many`] says. If
    /// their KV is kept somewhere, whoever keeps it deletes it with its next call.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; [`Error::Ledger`] when the ledger cannot be written.
    pub async fn forget_many(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        ids: &[RecordId],
    ) -> Result<Vec<Record>> {
        let namespace = namespace.try_into()?;
        let records = self.erase(&namespace, ids).await?;
        self.count_operations(&namespace, records.len()).await?;
        Ok(records)
    }

    /// Forgets all records that have this key, those that were superseded or have expired included, as
    /// [`Ledger::forget_key`] says; none if no record has it.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be written.
    pub async fn forget_key(
        &self,
        namespace: impl TryInto<Namespace, Error = Error>,
        key: &str,
    ) -> Result<Vec<Record>> {
        let namespace = namespace.try_into()?;
        let records = self.erase_key(&namespace, key).await?;
        self.count_operations(&namespace, records.len()).await?;
        Ok(records)
    }

    /// Deletes a namespace: all its records with their histories. Returns how many records there were.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be written.
    pub async fn delete_namespace(&self, namespace: impl TryInto<Namespace, Error = Error>) -> Result<usize> {
        let (namespace, ledger) = (namespace.try_into()?, self.ledger());
        self.parts.disk_space.write("delete a namespace", || ledger.delete_namespace(&namespace)).await
    }

    /// Counts what a model elsewhere did for a namespace, if [usage is metered](TextMemoryOptions::meter_usage). If it
    /// cannot be written, it is written with what is counted next; that is no error where the disk is full.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be written.
    pub async fn record_usage(&self, namespace: &Namespace, amounts: Amounts) -> Result<()> {
        self.meter().note(namespace, amounts);
        self.meter().write_or_wait().await
    }

    /// What was used, by namespace, if [usage is metered](TextMemoryOptions::meter_usage).
    ///
    /// # Errors
    /// As [`Ledger::usage`].
    pub async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>> {
        self.meter().write().await?;
        self.ledger().usage(query).await
    }

    /// Whether what is done is counted ([`TextMemoryOptions::meter_usage`]).
    pub fn is_metered(&self) -> bool {
        self.meter().is_on()
    }

    /// Whether records of a namespace are held in RAM, because it was asked about lately.
    pub fn is_loaded(&self, namespace: &Namespace) -> bool {
        self.parts.records.holds(namespace)
    }

    /// The ledger.
    pub fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.parts.ledger
    }

    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.parts.meter
    }

    /// Adds texts to the ledger.
    pub(super) async fn add(&self, namespace: &Namespace, new: &[NewRecord]) -> Result<Vec<Added>> {
        new.iter().try_for_each(|record| record.metadata.check_unsealed())?;
        let (ledger, doing) = (self.ledger(), format!("remember {} texts", new.len()));
        self.parts.disk_space.write(&doing, || ledger.add(namespace, new, Timestamp::now())).await
    }

    /// Changes a record in the ledger.
    pub(super) async fn write_change(&self, namespace: &Namespace, id: RecordId, change: &Change) -> Result<Record> {
        change.metadata.as_ref().map_or(Ok(()), Metadata::check_unsealed)?;
        let ledger = self.ledger();
        self.parts.disk_space.write("change a record", || ledger.change(namespace, id, change, Timestamp::now())).await
    }

    /// Wipes records from the ledger.
    pub(super) async fn erase(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<Vec<Record>> {
        let ledger = self.ledger();
        let forget = || ledger.forget_many(namespace, ids, Timestamp::now());
        let forgotten = self.parts.disk_space.write("forget records", forget).await?;
        self.save_index_again(namespace);
        Ok(forgotten)
    }

    /// Wipes all records of a key from the ledger.
    pub(super) async fn erase_key(&self, namespace: &Namespace, key: &str) -> Result<Vec<Record>> {
        let ledger = self.ledger();
        let forget = || ledger.forget_key(namespace, key, Timestamp::now());
        let forgotten = self.parts.disk_space.write("forget records", forget).await?;
        if !forgotten.is_empty() {
            self.save_index_again(namespace);
        }
        Ok(forgotten)
    }

    /// Counts memories that were added, changed or forgotten.
    pub(super) async fn count_operations(&self, namespace: &Namespace, operations: usize) -> Result<()> {
        let amounts = Amounts { memory_ops: operations as u64, ..Amounts::default() };
        self.record_usage(namespace, amounts).await
    }

    /// A namespace's records and its index, brought up to what this or any other process has written to the ledger. The
    /// namespace stays in the cache for as long as the records are held.
    pub(super) async fn refresh(&self, namespace: &Namespace) -> Result<Arc<Records>> {
        let Parts { ledger, recaller, records, .. } = &*self.parts;
        let Refreshed { records, save_delay } = records.refresh(&**ledger, &**recaller, namespace).await?;
        if let Some(delay) = save_delay {
            self.save_index(namespace, delay);
        }
        Ok(records)
    }

    /// Has the index of a namespace of which something was forgotten saved again, for the ledger has dropped it: else a
    /// process to come would have to build it anew, whoever asks it. Only where it is in RAM.
    fn save_index_again(&self, namespace: &Namespace) {
        let pause = self.parts.recaller.index_name().and_then(|_| self.parts.records.pause(namespace));
        if let Some(pause) = pause {
            self.save_index(namespace, pause);
        }
    }

    /// Has a namespace's index saved in the background, after this time. Whatever fails there costs the next process time,
    /// and nothing else.
    fn save_index(&self, namespace: &Namespace, delay: Duration) {
        if self.parts.refused.is_on() {
            return;
        }
        let Parts { ledger, recaller, refused, records, .. } = &*self.parts;
        let (ledger, recaller, refused) = (Arc::clone(ledger), Arc::clone(recaller), Arc::clone(refused));
        // They leave the cache all the same when others need their room.
        let (records, name) = (Arc::clone(records), namespace.clone());
        let save = async move {
            match records.save(&*ledger, &*recaller, &name).await {
                Ok(()) => {}
                // Another process writes to the ledger, and saves what it knows.
                Err(Error::ReadOnly { .. }) => refused.begin(),
                Err(error) => log::warn!("the index of namespace {name} could not be saved: {error}"),
            }
        };
        match delay {
            Duration::ZERO => self.parts.background.push(namespace.clone(), save),
            delay => self.parts.background.push_later(namespace.clone(), delay, save),
        }
    }

    /// Waits until the indexes are saved that calls before this one found worth saving, which is done in the background. An
    /// index that the ledger dropped because something was forgotten is saved again a while after it was saved last, and by
    /// this call in any case; so it is by whoever drops the last clone of a memory.
    pub async fn settle(&self) {
        self.parts.background.finish().await;
    }

    /// Those of these records that count now, read from the ledger where they were not yet.
    pub(super) async fn load(
        &self,
        namespace: &Namespace,
        records: &Records,
        ids: &[RecordId],
    ) -> Result<Vec<Arc<Entry>>> {
        records.load(&**self.ledger(), namespace, ids).await?;
        let now = Timestamp::now();
        Ok(ids.iter().filter_map(|id| records.get(*id, now)).collect())
    }

    /// The records that a text is about, among a namespace's records as they were last refreshed.
    pub(super) async fn find(&self, namespace: &Namespace, records: &Records, recall: &Recall) -> Result<Vec<Found>> {
        if recall.k == 0 {
            return Ok(Vec::new());
        }
        let mut found = match recall.as_of {
            Some(moment) => self.find_as_of(namespace, recall, moment).await?,
            None => {
                let now = Timestamp::now();
                if recall.filter.is_some() {
                    let all: Vec<RecordId> = records.active(now).into_iter().map(|(id, _)| id).collect();
                    self.load(namespace, records, &all).await?;
                }
                let passes = |id: RecordId| records.get(id, now).is_some_and(|entry| recall.passes(&entry.record));
                let query = RecallQuery::new(&recall.query, recall.k);
                let query = if recall.filter.is_some() { query.only(&passes) } else { query };
                let found = self.parts.recaller.recall(namespace, &query).await?;
                let ids: Vec<RecordId> = found.iter().map(|found| found.id).collect();
                self.load(namespace, records, &ids).await?;
                let with_entry =
                    |found: Recalled| Some(Found { entry: records.get(found.id, now)?, score: found.score });
                found.into_iter().filter_map(with_entry).collect()
            }
        };
        found.retain(|found: &Found| recall.min_score.is_none_or(|least| found.score >= least));
        Ok(found)
    }

    /// The records that a text is about, of those that counted at a moment. The index holds what counts now, so these
    /// are indexed by their words for this question alone.
    async fn find_as_of(&self, namespace: &Namespace, recall: &Recall, moment: Timestamp) -> Result<Vec<Found>> {
        let mut records = self.ledger().list(namespace, Query::At(moment)).await?;
        records.retain(|record| recall.passes(record));
        let index = self.parts.recaller.language().map(Lexical::new).unwrap_or_default();
        index.index(&records).await?;
        let found = index.recall(namespace, &RecallQuery::new(&recall.query, recall.k)).await?;
        let with_entry = |found: Recalled| {
            let record = records.iter().find(|record| record.id == found.id)?;
            Some(Found { entry: Arc::new(Entry::new(record.clone())), score: found.score })
        };
        Ok(found.into_iter().filter_map(with_entry).collect())
    }
}

/// How many of the texts that were added are new.
pub(super) fn new_among(added: &[Added]) -> usize {
    added.iter().filter(|added| !added.is_duplicate()).count()
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::{Outcome, RamLedger, State};

    fn texts<'r>(records: impl IntoIterator<Item = &'r Record>) -> Vec<&'r str> {
        records.into_iter().map(|record| record.text.as_str()).collect()
    }

    fn metered() -> TextMemory {
        let options = TextMemoryOptions { meter_usage: true, ..TextMemoryOptions::default() };
        TextMemory::with_options(Arc::new(RamLedger::new()), options)
    }

    #[test]
    fn texts_are_found_by_what_they_are_about_until_they_are_changed_or_forgotten() {
        block_on(async {
            let memory = TextMemory::new(Arc::new(RamLedger::new()));
            let home = NewRecord::new("Alice lives in Denver.").key("home");
            let added = memory.remember_all("a", [home, NewRecord::new("Bob has a cat.")]).await.unwrap();
            memory.remember_all("b", ["Alice lives in Rome."]).await.unwrap();
            let found = async |query: &str| {
                let found = memory.recall("a", query).await.unwrap();
                found.into_iter().map(|found| found.record.text).collect::<Vec<_>>()
            };
            assert_eq!(found("Where does Alice live?").await, ["Alice lives in Denver."]);
            let moved = memory.remember_all("a", [NewRecord::new("Alice lives in Oslo.").key("home")]).await.unwrap();
            assert_eq!(moved[0].outcome, Outcome::Superseded(added[0].record.id));
            assert_eq!(found("Where does Alice live?").await, ["Alice lives in Oslo."]);
            memory.update("a", moved[0].record.id, "Alice lives in Kyiv.").await.unwrap();
            assert_eq!(found("Where does Alice live?").await, ["Alice lives in Kyiv."]);
            memory.forget("a", moved[0].record.id).await.unwrap();
            assert_eq!(found("Where does Alice live?").await, [""; 0]);
            let forgotten = memory.get_many("a", &[moved[0].record.id, RecordId::new()]).await.unwrap();
            assert!(matches!(forgotten[0].as_ref().unwrap().state, State::Forgotten { .. }) && forgotten[1].is_none());
            assert_eq!(texts(&memory.latest("a", 9).await.unwrap()), ["Bob has a cat."]);
            assert_eq!(memory.delete_namespace("b").await.unwrap(), 1);
            assert_eq!(memory.count("b").await.unwrap(), 0);
        });
    }

    #[test]
    fn what_expired_before_it_was_remembered_is_never_found() {
        block_on(async {
            let memory = TextMemory::new(Arc::new(RamLedger::new()));
            let over = NewRecord::new("Alice lives in Denver.").expires_at(Timestamp::now());
            let added = memory.remember_all("a", [over, NewRecord::new("Alice lives in Oslo.")]).await.unwrap();
            assert!(matches!(added[0].record.state, State::Expired { .. }));
            let found = memory.recall("a", "Where does Alice live?").await.unwrap();
            assert_eq!(texts(found.iter().map(|found| &found.record)), ["Alice lives in Oslo."]);
            assert_eq!(texts(&memory.latest("a", 9).await.unwrap()), ["Alice lives in Oslo."]);
            assert_eq!(texts(&memory.list("a", Query::At(Timestamp::now())).await.unwrap()), ["Alice lives in Oslo."]);
            assert_eq!(memory.count("a").await.unwrap(), 1);
        });
    }

    #[test]
    fn what_only_a_ledger_may_add_to_metadata_is_refused() {
        block_on(async {
            let memory = TextMemory::new(Arc::new(RamLedger::new()));
            let sealed: Metadata = [(Metadata::SEALED, "x")].into_iter().collect();
            let new = NewRecord::new("one").metadata(sealed.clone());
            assert!(matches!(memory.remember_all("a", [new]).await, Err(Error::BadValue { .. })));
            let added = memory.remember_all("a", ["one"]).await.unwrap();
            let change = memory.change("a", added[0].record.id, Change::new().metadata(sealed)).await;
            assert!(matches!(change, Err(Error::BadValue { .. })));
        });
    }

    #[test]
    fn the_latest_are_the_last_that_count_oldest_first() {
        block_on(async {
            let memory = TextMemory::new(Arc::new(RamLedger::new()));
            let added = memory.remember_all("a", ["one", "two", "three", "four"]).await.unwrap();
            memory.forget("a", added[3].record.id).await.unwrap();
            assert_eq!(texts(&memory.latest("a", 2).await.unwrap()), ["two", "three"]);
            assert_eq!(memory.latest("a", 0).await.unwrap(), []);
        });
    }

    #[test]
    fn changes_and_what_a_model_elsewhere_did_are_counted() {
        block_on(async {
            let memory = metered();
            let added = memory.remember_all("a", ["one", "two", "one"]).await.unwrap();
            memory.update("a", added[0].record.id, "first").await.unwrap();
            memory.forget_many("a", &[added[0].record.id, added[1].record.id]).await.unwrap();
            let used = Amounts { requests: 1, reused_tokens: 30, prefilled_tokens: 12, ..Amounts::default() };
            memory.record_usage(&Namespace::new("a").unwrap(), used).await.unwrap();
            let usage = memory.usage(&UsageQuery::all()).await.unwrap();
            assert_eq!(usage[0].amounts, Amounts { memory_ops: 5, ..used });
        });
    }
}
