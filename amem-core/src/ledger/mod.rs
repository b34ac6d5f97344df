//! What was said: records, their lives, and the ledger that keeps them.

mod change;
mod metadata;
mod ram;
mod record;
mod usage;

use async_trait::async_trait;
pub use change::Change;
pub use metadata::{Comparison, Field, Filter, MetaValue, Metadata};
pub use ram::RamLedger;
pub use record::{Added, Namespace, NewRecord, Outcome, Record, RecordId, State, Timestamp, Version};
pub use usage::{Amounts, EventId, UsageEvent, UsageQuery, UsageTotal};

use crate::{ChunkId, Error, Result};

/// A place in a namespace's history. Every change to the namespace has a later one. Those of two namespaces say nothing of
/// each other: a ledger may count for all of them together or for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// A chunk that is to be deleted from every store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PendingDeletion {
    /// The chunk.
    pub chunk: ChunkId,
    /// Tells this deletion of it from any other. Its text may have been remembered and forgotten again, and its KV put again,
    /// since this one was named.
    pub number: i64,
}

/// Which records of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Query {
    /// Those that count at this moment (now or earlier: "as of"), with the text that they had then. Forgotten records
    /// appear in no such view, for their text is gone.
    At(Timestamp),
    /// All that ever were, as they are at the time of the call, forgotten ones without their text.
    All,
}

/// What a page of records is to hold.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Listing {
    /// Which records.
    pub query: Query,
    /// Only those that pass.
    pub filter: Option<Filter>,
    /// Only those that were added after this one: [`Page::next`] of the page before.
    pub after: Option<RecordId>,
    /// Records at most; more than [`MAX_LIMIT`](Self::MAX_LIMIT) count as so many.
    pub limit: usize,
}

impl Listing {
    /// Records of a page at most.
    pub const MAX_LIMIT: usize = 1000;

    /// The first page, of at most 100 records.
    pub fn new(query: Query) -> Self {
        Self { query, filter: None, after: None, limit: 100 }
    }

    /// Only records that pass.
    #[must_use]
    pub fn filter(self, filter: Filter) -> Self {
        Self { filter: Some(filter), ..self }
    }

    /// The page behind this record.
    #[must_use]
    pub fn after(self, id: RecordId) -> Self {
        Self { after: Some(id), ..self }
    }

    /// So many records at most.
    #[must_use]
    pub fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// The limit within its bounds.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a limit of zero or a filter beyond its bounds.
    pub fn check(&self) -> Result<usize> {
        if self.limit == 0 {
            return Err(Error::BadValue { what: "limit", value: "0".to_owned(), expected: "1 or more" });
        }
        self.filter.as_ref().map_or(Ok(()), Filter::check)?;
        Ok(self.limit.min(Self::MAX_LIMIT))
    }
}

/// Some records of a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// In the order in which they were added.
    pub records: Vec<Record>,
    /// The last id of this page, to be given as [`Listing::after`] for the next; `None` if this is the last page.
    pub next: Option<RecordId>,
}

/// What happened in a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// The namespace was deleted meanwhile: nothing that was known of it before stands.
    pub deleted: bool,
    /// Records that changed since, as they are now.
    pub records: Vec<Record>,
    /// Where to ask from next time.
    pub revision: Revision,
}

/// How many records a namespace has, and how much they say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordStats {
    /// Records that count.
    pub active: usize,
    /// Records whose place another one took.
    pub superseded: usize,
    /// Records whose time is over.
    pub expired: usize,
    /// Records that were forgotten.
    pub forgotten: usize,
    /// Bytes of the records' present texts, whatever their state.
    pub text_bytes: u64,
}

impl RecordStats {
    /// Counts a record.
    pub fn count(&mut self, record: &Record) {
        self.text_bytes += record.text.len() as u64;
        match record.state {
            State::Active => self.active += 1,
            State::Superseded { .. } => self.superseded += 1,
            State::Expired { .. } => self.expired += 1,
            State::Forgotten { .. } => self.forgotten += 1,
        }
    }
}

/// What an index of a namespace's records was at a revision, in the index's own format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedIndex {
    /// The changes up to this one are in it.
    pub revision: Revision,
    /// The index.
    pub bytes: Vec<u8>,
}

/// Keeps the records: the one thing that must not be lost. Every write is durable when it returns, and several
/// processes may share one ledger.
///
/// Expiry needs no call: a record whose `expires_at` is not after the moment in question counts as expired. It is
/// checked by `testing::ledger` (feature `testing`).
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Adds texts, all or none of them, in order. Blanks at both ends of a text are not part of it. An implementation may
    /// pay for each call rather than for each text, so give it many at once where there are many.
    ///
    /// A text with a key takes the place of the key's active record, from the moment on when it was said. If it
    /// [was said before](NewRecord::is_older_than) that record's text, the record stays active and the text is superseded
    /// at once: it counted until the record was first said. Of two of one moment the one that is added later takes the
    /// other's place. The chunks linked to a record whose place a new one takes become
    /// [pending deletions](Self::pending_deletions), unless another active record links them too.
    ///
    /// A text that an active record says already, under the same key, is no new record. It can give that one another
    /// expiry and other metadata, as [`NewRecord::restates`] says, and changes nothing else of it. What has expired before
    /// it is added ([`NewRecord::is_over`]) is a record of its own in any case, and takes no other's place.
    ///
    /// # Errors
    /// As [`NewRecord::check`]; [`Error::Ledger`] when the ledger cannot be written.
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> Result<Vec<Added>>;

    /// One record, whatever its state (as it is at `now`).
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; [`Error::Ledger`] when the ledger fails.
    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record>;

    /// Records, whatever their state (as they are at `now`), in the order of the ids; `None` for one that is not there.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger fails.
    async fn get_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Result<Vec<Option<Record>>> {
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            records.push(match self.get(namespace, *id, now).await {
                Ok(record) => Some(record),
                Err(Error::UnknownRecord { .. }) => None,
                Err(error) => return Err(error),
            });
        }
        Ok(records)
    }

    /// Some of a namespace's records, in the order in which they were added.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a filter beyond its bounds or a limit of zero, [`Error::UnknownRecord`] for an `after`
    /// that is not in the namespace, [`Error::Ledger`] when the ledger cannot be read.
    async fn page(&self, namespace: &Namespace, listing: &Listing) -> Result<Page>;

    /// All records of a namespace in the order in which they were added, page by page.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    async fn list(&self, namespace: &Namespace, query: Query) -> Result<Vec<Record>> {
        let (mut records, mut listing) = (Vec::new(), Listing::new(query).limit(Listing::MAX_LIMIT));
        loop {
            let page = self.page(namespace, &listing).await?;
            records.extend(page.records);
            match page.next {
                Some(next) => listing.after = Some(next),
                None => return Ok(records),
            }
        }
    }

    /// How many records of a namespace count at this moment.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    async fn count(&self, namespace: &Namespace, now: Timestamp) -> Result<usize>;

    /// How many records of a namespace there are at this moment, by their states.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    async fn stats(&self, namespace: &Namespace, now: Timestamp) -> Result<RecordStats> {
        let (mut stats, mut listing) = (RecordStats::default(), Listing::new(Query::All).limit(Listing::MAX_LIMIT));
        loop {
            let page = self.page(namespace, &listing).await?;
            let ids: Vec<RecordId> = page.records.iter().map(|record| record.id).collect();
            self.get_many(namespace, &ids, now).await?.iter().flatten().for_each(|record| stats.count(record));
            match page.next {
                Some(next) => listing.after = Some(next),
                None => return Ok(stats),
            }
        }
    }

    /// Gives an active record another text: [`change`](Self::change) of that alone.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    async fn update(&self, namespace: &Namespace, id: RecordId, text: &str, now: Timestamp) -> Result<Record> {
        self.change(namespace, id, &Change::new().text(text), now).await
    }

    /// Changes an active record, in all that the change names or in nothing. A change that leaves the record as it is
    /// writes nothing.
    ///
    /// Where it names another text, the old one stays in the record's history, and the chunks linked to it become
    /// [pending deletions](Self::pending_deletions), unless another active record links them too. Where it does not, the
    /// chunks stay linked, and [`updated_at`](Record::updated_at) stays what it was.
    ///
    /// # Errors
    /// As [`Change::check`]; [`Error::UnknownRecord`], [`Error::NotActive`]; [`Error::ChangedMeanwhile`] for one that is
    /// for [other metadata](Change::if_metadata); [`Error::KeyTaken`] when another active record has the key that it
    /// names; [`Error::SameText`] when another active record with the same key (or, like this one, without any) says the
    /// same already; [`Error::Ledger`] when the ledger fails.
    async fn change(&self, namespace: &Namespace, id: RecordId, change: &Change, now: Timestamp) -> Result<Record>;

    /// Forgets a record: [`forget_many`](Self::forget_many) of one.
    ///
    /// # Errors
    /// As [`forget_many`](Self::forget_many).
    async fn forget(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record> {
        let forgotten = self.forget_many(namespace, &[id], now).await?.pop();
        forgotten.ok_or_else(|| Error::Ledger("the ledger did not say what became of the record".into()))
    }

    /// Forgets records, all of them or none: all texts that they ever had, their keys and their metadata are gone, and all
    /// chunks linked to them become pending deletions, unless another active record links them too. Forgetting a
    /// forgotten record changes nothing. The records come back in the order of their ids here. One that turned out
    /// damaged, so that it cannot be read, can be forgotten as well.
    ///
    /// When this returns, no call that begins afterwards, of any process, gives any of it, and that is durable. It is
    /// also wiped from the ledger's files, unless somebody still reads the ledger as it was before: this waits for no
    /// reader. Then it is wiped by the first call after the last such reader, of any process that uses the ledger, or when
    /// the ledger is next opened.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; [`Error::Ledger`] when the ledger cannot be written.
    async fn forget_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Result<Vec<Record>>;

    /// Forgets all records that have this key, those that were superseded or have expired included, as
    /// [`forget_many`](Self::forget_many) does; none if no record has it. They come back in the order in which they were
    /// added.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be written.
    async fn forget_key(&self, namespace: &Namespace, key: &str, now: Timestamp) -> Result<Vec<Record>> {
        let ids = ids_under(self, namespace, key).await?;
        if ids.is_empty() { Ok(Vec::new()) } else { self.forget_many(namespace, &ids, now).await }
    }

    /// Deletes a namespace: every record of it, with its history, and its name. What it [used](Self::usage) still counts,
    /// under no name. All chunks linked to its records become
    /// pending deletions. Its bytes are wiped from the ledger's files as [`forget_many`](Self::forget_many) says. Returns
    /// how many records there were.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be written.
    async fn delete_namespace(&self, namespace: &Namespace) -> Result<usize>;

    /// All texts that a record had, oldest first.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; [`Error::Ledger`] when the ledger fails.
    async fn history(&self, namespace: &Namespace, id: RecordId) -> Result<Vec<Version>>;

    /// The namespaces that have records, in order of their names.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger fails.
    async fn namespaces(&self) -> Result<Vec<Namespace>>;

    /// The namespace's records that changed after `since`, by this process or another, as they are now, and the
    /// revision to ask from next time. `Revision(0)` asks for all. Expiry is not reported as a change: check
    /// `expires_at`.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> Result<Changes>;

    /// Notes, for all of `links` or none, that chunks hold the KV of a record's present text, so that forgetting the
    /// record finds them. Cancels a pending deletion of such a chunk. If the record no longer counts at `now`, the chunk
    /// becomes a pending deletion instead, unless another active record links it.
    ///
    /// # Errors
    /// [`Error::UnknownRecord`]; [`Error::Ledger`] when the ledger fails.
    async fn link(&self, namespace: &Namespace, links: &[(RecordId, ChunkId)], now: Timestamp) -> Result<()>;

    /// Chunks of texts that no longer count at `now`: forgotten, changed, superseded or expired, with no active record
    /// that links them too. They are to be deleted from every store, and are named here until
    /// [`confirm_deleted`](Self::confirm_deleted) says that it is done, so a crash in between forgets nothing.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    async fn pending_deletions(&self, now: Timestamp) -> Result<Vec<PendingDeletion>>;

    /// Notes that these deletions, which were pending at `now`, have been done in every store. A chunk that is to be deleted
    /// again since then stays pending: what was deleted may have been put again before.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be written.
    async fn confirm_deleted(&self, deletions: &[PendingDeletion], now: Timestamp) -> Result<()>;

    /// Whether an active record links each of these chunks at `now`, in their order: whoever puts a chunk later than it was
    /// linked learns whether its text was forgotten meanwhile, on another machine too.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    async fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> Result<Vec<bool>>;

    /// Wipes what was forgotten from the ledger's files, as far as that is still to be done; see
    /// [`forget_many`](Self::forget_many). `false` while somebody reads the ledger as it was before. A ledger that keeps
    /// nothing of what was forgotten does nothing.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be written.
    async fn wipe(&self) -> Result<bool> {
        Ok(true)
    }

    /// Counts usage. An event whose id is known is not counted again, so whoever does not know whether it was recorded
    /// records it again. Amounts beyond [`Amounts::MAX`] count as so much.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be written: then none of the events was counted.
    async fn record_usage(&self, events: &[UsageEvent]) -> Result<()>;

    /// Usage by namespace, in order of their names, that of deleted namespaces first. Namespaces without any are left
    /// out.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>>;

    /// Keeps what an index of this name knows of a namespace, in place of what was kept before, so that the next process
    /// need not build it from the records. It is gone as soon as something of the namespace is forgotten, for it holds
    /// the words. `false` if it was not kept: because something was forgotten after its revision, or because the ledger
    /// keeps none.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be written.
    async fn save_index(&self, namespace: &Namespace, name: &str, index: &SavedIndex) -> Result<bool> {
        let _ = (namespace, name, index);
        Ok(false)
    }

    /// What [`save_index`](Self::save_index) kept last, if it still may be used.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the ledger cannot be read.
    async fn saved_index(&self, namespace: &Namespace, name: &str) -> Result<Option<SavedIndex>> {
        let _ = (namespace, name);
        Ok(None)
    }
}

/// The records that have a key, whatever their states, in the order in which they were added.
pub(crate) async fn ids_under<L: Ledger + ?Sized>(
    ledger: &L,
    namespace: &Namespace,
    key: &str,
) -> Result<Vec<RecordId>> {
    let has_key = Filter::Compare(Field::Key, Comparison::Eq, key.into());
    let (mut ids, mut listing) = (Vec::new(), Listing::new(Query::All).filter(has_key).limit(Listing::MAX_LIMIT));
    loop {
        let page = ledger.page(namespace, &listing).await?;
        ids.extend(page.records.iter().map(|record| record.id));
        match page.next {
            Some(next) => listing.after = Some(next),
            None => return Ok(ids),
        }
    }
}
