//! A ledger that keeps nothing in clear.
//!
//! The records of a namespace stand in the ledger below under a name that is a keyed hash with the namespace's key, so records
//! under a new key never meet what was left of an old one. Names are `n` and 64 hexadecimal digits. Those that begin with
//! `d` belong to deletions: a namespace that is being deleted is noted there first, under its
//! [pseudonym](Keys::pseudonym), so that a deletion whose key is destroyed is finished later; and deleting that note tells
//! [`changes`](Ledger::changes) of it.
//!
//! A record's text is sealed as it is; its key becomes a keyed hash; key and metadata are sealed together into one entry of
//! the metadata.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use amem_core::{
    Added, Change, Changes, ChunkId, Error, Ledger, Listing, MetaValue, Metadata, Namespace, NewRecord, Page,
    PendingDeletion, Query, Record, RecordId, Result, Revision, SavedIndex, State, Timestamp, UsageEvent, UsageQuery,
    UsageTotal, Version,
};
use async_trait::async_trait;
use blocking::unblock;
use serde::{Deserialize, Serialize};

use super::seal::{Domain, Sealer};
use super::{EncryptionError, Holder, Key, Keys};

/// Records that a filter is asked of at once.
const BATCH: usize = 256;
/// Bytes that are sealed or opened on the caller's thread at most: about a fifth of a millisecond.
const AT_ONCE: usize = 64 << 10;
/// Bytes of a text that take as long as opening a record without one does, about.
const RECORD: usize = 1 << 10;

/// A [`Ledger`] that encrypts what another one keeps. See [`encryption`](super) for what that protects.
///
/// Filters are asked after decryption, so a page of few matches among many records costs as many decryptions.
pub struct EncryptedLedger<L> {
    inner: L,
    keys: Arc<dyn Keys>,
}

/// A namespace that has a key.
struct Open {
    /// Its name in the ledger below.
    name: Namespace,
    sealer: Sealer,
}

/// What is sealed into a record's metadata.
#[derive(Serialize, Deserialize)]
struct Details {
    key: Option<String>,
    metadata: Metadata,
}

/// What a revision of this ledger says: what its caller has seen of the namespace's deletions, and of its records under
/// the key that it has now. These are in two namespaces of the ledger below, which may count for each of its own.
struct Seen {
    deletions: Revision,
    records: Revision,
}

impl Seen {
    fn of(revision: Revision) -> Self {
        Self { deletions: Revision(revision.0 >> 32), records: Revision(revision.0 & u64::from(u32::MAX)) }
    }

    /// Deletions count for more, so that there is a later revision after each, though those of records begin anew.
    fn revision(&self) -> Result<Revision> {
        let too_many = "an encrypted ledger counts 4 billion changes at most: export it, and import it into a new one";
        let half = |of: Revision| u32::try_from(of.0).map_err(|_| Error::Ledger(too_many.into()));
        Ok(Revision(u64::from(half(self.deletions)?) << 32 | u64::from(half(self.records)?)))
    }

    /// Whether the records that were seen were deleted. `deletions` is what has changed since where deletions are
    /// noted.
    fn is_outdated(&self, deletions: &Changes, open: Option<&Open>) -> bool {
        if self.deletions == Revision(0) && self.records == Revision(0) {
            return false;
        }
        let Some(open) = open else { return deletions.deleted || self.records > Revision(0) };
        // The ledger below tells whoever has seen nothing of no deletion.
        let is_first =
            self.deletions == Revision(0) && deletions.revision > Revision(0) && deletions.records.is_empty();
        // The key was destroyed and another one made, and the deletion was not finished.
        let is_begun = deletions.records.iter().any(|note| note.text != open.name.as_str());
        deletions.deleted || is_first || is_begun
    }
}

impl Open {
    fn new(key: &Key) -> Result<Self> {
        let sealer = Sealer::new(key);
        Ok(Self { name: Namespace::new(format!("n{}", sealer.name("namespace", "")))?, sealer })
    }

    fn seal(&self, new: &NewRecord, text: &str) -> Result<NewRecord> {
        new.metadata.check_unsealed()?;
        let mut sealed = new.clone();
        sealed.text = self.sealed(Domain::Text, text)?;
        sealed.key = new.key.as_deref().map(|key| self.key(key));
        sealed.metadata = self.details(&new.key, &new.metadata)?;
        sealed.keeps_metadata |= new.metadata.is_empty();
        Ok(sealed)
    }

    /// The metadata below of a record with this key and these metadata.
    fn details(&self, key: &Option<String>, metadata: &Metadata) -> Result<Metadata> {
        if key.is_none() && metadata.is_empty() {
            return Ok(Metadata::default());
        }
        let details = Details { key: key.clone(), metadata: metadata.clone() };
        let details = serde_json::to_string(&details).map_err(|error| Error::Ledger(error.into()))?;
        let details = self.sealed(Domain::Details, &details)?;
        Ok([(Metadata::SEALED, details)].into_iter().collect())
    }

    /// What stands for a key. Hashed, for it has to be the same for the same key, and a key may be long.
    fn key(&self, key: &str) -> String {
        self.sealer.name("key", key)
    }

    fn sealed(&self, domain: Domain, text: &str) -> Result<String> {
        self.sealer.seal_text(domain, text).ok_or_else(|| Error::Ledger("a text cannot be encrypted".into()))
    }

    fn text(&self, id: RecordId, sealed: &str) -> Result<String> {
        let text = self.sealer.open_text(Domain::Text, sealed);
        text.ok_or_else(|| damaged("text", id))
    }

    /// A record as it was before it was encrypted.
    fn record(&self, namespace: &Namespace, sealed: Record) -> Result<Record> {
        let mut record = sealed;
        record.namespace = namespace.clone();
        if matches!(record.state, State::Forgotten { .. }) {
            (record.key, record.metadata) = (None, Metadata::default());
            record.text.clear();
            return Ok(record);
        }
        let id = record.id;
        record.text = self.text(id, &record.text)?;
        let (hashed, sealed) = (record.key.take(), std::mem::take(&mut record.metadata));
        let details = match sealed.0.get(Metadata::SEALED) {
            Some(MetaValue::Text(sealed)) => {
                let details = self.sealer.open_text(Domain::Details, sealed);
                let details = details.and_then(|details| serde_json::from_str(&details).ok());
                details.ok_or_else(|| damaged("metadata", id))?
            }
            Some(_) => return Err(damaged("metadata", id)),
            None if sealed.is_empty() => Details { key: None, metadata: Metadata::default() },
            None => return Err(damaged("metadata", id)),
        };
        if details.key.as_deref().map(|key| self.key(key)) != hashed {
            return Err(damaged("key", id));
        }
        (record.key, record.metadata) = (details.key, details.metadata);
        Ok(record)
    }
}

fn damaged(what: &'static str, id: RecordId) -> Error {
    Error::Ledger(EncryptionError::Damaged { what, id }.into())
}

fn keys_failed(error: amem_core::BoxError) -> Error {
    Error::Ledger(EncryptionError::Keys(error).into())
}

/// Seals or opens so many bytes: if they are many, on another thread than the caller's, which may be an executor's.
async fn compute<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes <= AT_ONCE { work() } else { unblock(work).await }
}

/// The error with the namespace that the caller knows.
fn outer(error: Error, namespace: &Namespace) -> Error {
    match error {
        Error::UnknownRecord { id, .. } => unknown(namespace, id),
        other => other,
    }
}

fn unknown(namespace: &Namespace, id: RecordId) -> Error {
    Error::UnknownRecord { namespace: namespace.clone(), id }
}

fn is_name(name: &Namespace, kind: char) -> bool {
    let digits = name.as_str().strip_prefix(kind);
    digits.is_some_and(|digits| digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Refuses a ledger that is to be opened without keys, and that is encrypted: what would be added to it would stand there in
/// clear, and whoever has the keys could not open it any more.
///
/// # Errors
/// [`Error::Ledger`] with [`EncryptionError::Encrypted`] when all that it has is encrypted, or when it fails.
pub async fn refuse_encrypted(ledger: &dyn Ledger) -> Result<()> {
    let names = ledger.namespaces().await?;
    // All of them: whoever asks a server may choose the name of one.
    match !names.is_empty() && names.iter().all(|name| is_name(name, 'n') || is_name(name, 'd')) {
        true => Err(Error::Ledger(EncryptionError::Encrypted.into())),
        false => Ok(()),
    }
}

impl<L: Ledger> EncryptedLedger<L> {
    /// Encrypts what `inner` keeps, with these keys, and finishes deletions that a process which ended had begun.
    ///
    /// # Errors
    /// [`Error::Ledger`] with [`EncryptionError::NotEncrypted`] when `inner` has records in clear, with
    /// [`EncryptionError::OtherKeys`] when none of its namespaces has a key here, or when it fails.
    pub async fn open(inner: L, keys: Arc<dyn Keys>) -> Result<Self> {
        let ledger = Self { inner, keys };
        let names = ledger.inner.namespaces().await?;
        if names.iter().any(|name| !is_name(name, 'n') && !is_name(name, 'd')) {
            return Err(Error::Ledger(EncryptionError::NotEncrypted.into()));
        }
        let known = ledger.known().await?;
        for deletion in names.iter().filter(|name| is_name(name, 'd')) {
            match ledger.finish_deletion(deletion, &known).await {
                // Whoever opens it for writing does that. Without the key nobody reads what is left.
                Ok(_) | Err(Error::ReadOnly { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if !names.iter().any(|name| known.contains_key(name)) {
            // Those whose deletion was finished just now are gone.
            let left = ledger.inner.namespaces().await?;
            if left.iter().any(|name| is_name(name, 'n')) {
                return Err(Error::Ledger(EncryptionError::OtherKeys.into()));
            }
        }
        Ok(ledger)
    }

    /// The ledger below.
    pub fn inner(&self) -> &L {
        &self.inner
    }

    /// The namespace, if it has a key: without one there is nothing of it.
    async fn find(&self, namespace: &Namespace) -> Result<Option<Open>> {
        let key = self.keys.get(&Holder::Namespace(namespace.clone())).await.map_err(keys_failed)?;
        key.as_ref().map(Open::new).transpose()
    }

    /// The namespace that a record is in.
    async fn of(&self, namespace: &Namespace, id: RecordId) -> Result<Open> {
        self.find(namespace).await?.ok_or_else(|| unknown(namespace, id))
    }

    async fn find_or_create(&self, namespace: &Namespace) -> Result<Open> {
        let key = self.keys.get_or_create(&Holder::Namespace(namespace.clone())).await.map_err(keys_failed)?;
        Open::new(&key)
    }

    /// All namespaces that have a key, by their names in the ledger below.
    async fn known(&self) -> Result<HashMap<Namespace, Namespace>> {
        let all = self.keys.namespaces().await.map_err(keys_failed)?;
        all.into_iter().map(|(namespace, key)| Ok((Open::new(&key)?.name, namespace))).collect()
    }

    /// Where a deletion of the namespace is noted.
    fn deletion(&self, namespace: &Namespace) -> Result<Namespace> {
        Namespace::new(format!("d{}", blake3::Hash::from(self.keys.pseudonym(namespace)).to_hex()))
    }

    /// Deletes the records of namespaces whose deletion is noted here and whose keys are destroyed, and the note. If the
    /// key is still there, the deletion was not done, and the caller of it was not told that it was.
    async fn finish_deletion(&self, deletion: &Namespace, known: &HashMap<Namespace, Namespace>) -> Result<usize> {
        let mut deleted = 0;
        for note in self.inner.list(deletion, Query::All).await? {
            let name = Namespace::new(note.text)?;
            if is_name(&name, 'n') && !known.contains_key(&name) {
                deleted += self.inner.delete_namespace(&name).await?;
            }
        }
        self.inner.delete_namespace(deletion).await?;
        Ok(deleted)
    }
}

#[async_trait]
impl<L: Ledger> Ledger for EncryptedLedger<L> {
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> Result<Vec<Added>> {
        let texts = new.iter().map(NewRecord::check).collect::<Result<Vec<_>>>()?;
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let open = self.find_or_create(namespace).await?;
        let sealed = new.iter().zip(texts).map(|(new, text)| open.seal(new, text)).collect::<Result<Vec<_>>>()?;
        let added = self.inner.add(&open.name, &sealed, now).await?;
        // If the namespace was deleted meanwhile, these records came before, and nobody can read them: they go too.
        let now = self.find(namespace).await?;
        if now.is_none_or(|now| now.name != open.name) {
            self.inner.delete_namespace(&open.name).await?;
        }
        let opened = |added: Added| Ok(Added { record: open.record(namespace, added.record)?, ..added });
        added.into_iter().map(opened).collect()
    }

    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record> {
        let open = self.of(namespace, id).await?;
        let found = self.inner.get(&open.name, id, now).await.map_err(|error| outer(error, namespace))?;
        open.record(namespace, found)
    }

    async fn get_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Result<Vec<Option<Record>>> {
        let Some(open) = self.find(namespace).await? else { return Ok(vec![None; ids.len()]) };
        let found = self.inner.get_many(&open.name, ids, now).await?;
        found.into_iter().map(|found| found.map(|found| open.record(namespace, found)).transpose()).collect()
    }

    async fn page(&self, namespace: &Namespace, listing: &Listing) -> Result<Page> {
        let limit = listing.check()?;
        let Some(open) = self.find(namespace).await? else {
            return listing.after.map_or(Ok(Page::default()), |id| Err(unknown(namespace, id)));
        };
        let batch = if listing.filter.is_some() { limit.max(BATCH) } else { limit };
        let mut below = listing.clone().limit(batch);
        below.filter = None;
        let mut records: Vec<Record> = Vec::new();
        loop {
            let page = self.inner.page(&open.name, &below).await.map_err(|error| outer(error, namespace))?;
            for sealed in page.records {
                let record = open.record(namespace, sealed)?;
                if listing.filter.as_ref().is_some_and(|filter| !filter.matches(&record)) {
                    continue;
                }
                if records.len() == limit {
                    let next = records.last().map(|record| record.id);
                    return Ok(Page { records, next });
                }
                records.push(record);
            }
            match page.next {
                Some(next) if listing.filter.is_none() => return Ok(Page { records, next: Some(next) }),
                Some(next) => below = below.after(next),
                None => return Ok(Page { records, next: None }),
            }
        }
    }

    async fn count(&self, namespace: &Namespace, now: Timestamp) -> Result<usize> {
        match self.find(namespace).await? {
            Some(open) => self.inner.count(&open.name, now).await,
            None => Ok(0),
        }
    }

    async fn change(&self, namespace: &Namespace, id: RecordId, change: &Change, now: Timestamp) -> Result<Record> {
        /// Key and metadata are sealed together, so each is read to change the other. Somebody else may change it meanwhile.
        const TRIES: usize = 16;
        change.check()?;
        change.metadata.as_ref().map_or(Ok(()), Metadata::check_unsealed)?;
        let open = self.of(namespace, id).await?;
        for _ in 0..TRIES {
            let mut sealed = Change::new();
            sealed.text = change.text.as_ref().map(|text| open.sealed(Domain::Text, text.trim())).transpose()?;
            sealed.expires_at = change.expires_at;
            if change.key.is_some() || change.metadata.is_some() || change.if_metadata.is_some() {
                let below = self.inner.get(&open.name, id, now).await.map_err(|error| outer(error, namespace))?;
                sealed.if_metadata = Some(below.metadata.clone());
                let record = open.record(namespace, below)?;
                if record.state == State::Active {
                    let changed = change.of(&record)?;
                    sealed.key = change.key.as_ref().map(|key| key.as_deref().map(|key| open.key(key)));
                    sealed.metadata = Some(open.details(&changed.key, &changed.metadata)?);
                }
            }
            match self.inner.change(&open.name, id, &sealed, now).await {
                Err(Error::ChangedMeanwhile { .. }) => {}
                changed => return open.record(namespace, changed.map_err(|error| outer(error, namespace))?),
            }
        }
        Err(Error::ChangedMeanwhile { id })
    }

    async fn forget_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Result<Vec<Record>> {
        let Some(&first) = ids.first() else { return Ok(Vec::new()) };
        let open = self.of(namespace, first).await?;
        let forgotten = self.inner.forget_many(&open.name, ids, now).await.map_err(|error| outer(error, namespace))?;
        forgotten.into_iter().map(|record| open.record(namespace, record)).collect()
    }

    async fn forget_key(&self, namespace: &Namespace, key: &str, now: Timestamp) -> Result<Vec<Record>> {
        let Some(open) = self.find(namespace).await? else { return Ok(Vec::new()) };
        let forgotten = self.inner.forget_key(&open.name, &open.key(key), now).await?;
        forgotten.into_iter().map(|record| open.record(namespace, record)).collect()
    }

    async fn delete_namespace(&self, namespace: &Namespace) -> Result<usize> {
        let deletion = self.deletion(namespace)?;
        let Some(open) = self.find(namespace).await? else {
            // An earlier call may have destroyed the key and then failed.
            return self.finish_deletion(&deletion, &self.known().await?).await;
        };
        let note = [NewRecord::new(open.name.as_str())];
        self.inner.add(&deletion, &note, Timestamp::now()).await?;
        // From here on nobody can read it, whatever happens to the rest.
        self.keys.destroy(namespace).await.map_err(keys_failed)?;
        let deleted = self.inner.delete_namespace(&open.name).await?;
        if self.inner.delete_namespace(&deletion).await? == 0 {
            // Somebody who opened the ledger meanwhile took the note away. It has to go after the key, so that `changes` tells
            // of the deletion.
            self.inner.add(&deletion, &note, Timestamp::now()).await?;
            self.inner.delete_namespace(&deletion).await?;
        }
        Ok(deleted)
    }

    async fn history(&self, namespace: &Namespace, id: RecordId) -> Result<Vec<Version>> {
        let open = self.of(namespace, id).await?;
        let history = self.inner.history(&open.name, id).await.map_err(|error| outer(error, namespace))?;
        let opened = |version: Version| {
            let text = if version.text.is_empty() { String::new() } else { open.text(id, &version.text)? };
            Ok(Version { text, ..version })
        };
        history.into_iter().map(opened).collect()
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let (names, mut known) = (self.inner.namespaces().await?, self.known().await?);
        let mut found: Vec<Namespace> = names.iter().filter_map(|name| known.remove(name)).collect();
        found.sort_unstable();
        Ok(found)
    }

    async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> Result<Changes> {
        let mut seen = Seen::of(since);
        // Deletions first and then the key, so that a deletion that comes in between is told next time.
        let deletions = self.inner.changes(&self.deletion(namespace)?, seen.deletions, now).await?;
        let open = self.find(namespace).await?;
        let mut deleted = seen.is_outdated(&deletions, open.as_ref());
        if deleted {
            seen.records = Revision(0);
        }
        // A deletion that is noted still, and may be under way, has to be asked about again.
        if deletions.records.is_empty() {
            seen.deletions = deletions.revision;
        }
        let mut records = Vec::new();
        if let Some(open) = open {
            let changes = self.inner.changes(&open.name, seen.records, now).await?;
            deleted |= changes.deleted;
            seen.records = changes.revision;
            let (namespace, sealed) = (namespace.clone(), changes.records);
            let bytes: usize = sealed.iter().map(|record| record.text.len() + RECORD).sum();
            let opened =
                move || sealed.into_iter().map(|record| open.record(&namespace, record)).collect::<Result<Vec<_>>>();
            records = compute(bytes, opened).await?;
        }
        Ok(Changes { deleted, records, revision: seen.revision()? })
    }

    async fn link(&self, namespace: &Namespace, links: &[(RecordId, ChunkId)], now: Timestamp) -> Result<()> {
        let Some((first, _)) = links.first() else { return Ok(()) };
        let open = self.of(namespace, *first).await?;
        self.inner.link(&open.name, links, now).await.map_err(|error| outer(error, namespace))
    }

    async fn pending_deletions(&self, now: Timestamp) -> Result<Vec<PendingDeletion>> {
        self.inner.pending_deletions(now).await
    }

    async fn confirm_deleted(&self, deletions: &[PendingDeletion], now: Timestamp) -> Result<()> {
        self.inner.confirm_deleted(deletions, now).await
    }

    async fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> Result<Vec<bool>> {
        self.inner.are_linked(chunks, now).await
    }

    async fn wipe(&self) -> Result<bool> {
        self.inner.wipe().await
    }

    async fn record_usage(&self, events: &[UsageEvent]) -> Result<()> {
        let mut names: HashMap<&Namespace, Namespace> = HashMap::new();
        for UsageEvent { namespace, .. } in events {
            if let Entry::Vacant(entry) = names.entry(namespace) {
                entry.insert(self.find_or_create(namespace).await?.name);
            }
        }
        let renamed = events.iter().map(|event| {
            let namespace = names.get(&event.namespace).unwrap_or(&event.namespace);
            UsageEvent { namespace: namespace.clone(), ..event.clone() }
        });
        self.inner.record_usage(&renamed.collect::<Vec<_>>()).await
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>> {
        let (known, mut below) = (self.known().await?, query.clone());
        if let Some(namespace) = &query.namespace {
            let Some(open) = self.find(namespace).await? else { return Ok(Vec::new()) };
            below.namespace = Some(open.name);
        }
        let mut totals: BTreeMap<Option<Namespace>, UsageTotal> = BTreeMap::new();
        for mut total in self.inner.usage(&below).await? {
            // Of a namespace whose key is destroyed nobody knows the name.
            total.namespace = total.namespace.and_then(|name| known.get(&name).cloned());
            match totals.get_mut(&total.namespace) {
                None => drop(totals.insert(total.namespace.clone(), total)),
                Some(sum) => {
                    sum.events += total.events;
                    sum.amounts += total.amounts;
                    (sum.first, sum.last) = (sum.first.min(total.first), sum.last.max(total.last));
                }
            }
        }
        Ok(totals.into_values().collect())
    }

    async fn save_index(&self, namespace: &Namespace, name: &str, index: &SavedIndex) -> Result<bool> {
        let Some(open) = self.find(namespace).await? else { return Ok(false) };
        let seen = Seen::of(index.revision);
        let deletions = self.inner.changes(&self.deletion(namespace)?, seen.deletions, Timestamp::now()).await?;
        if seen.is_outdated(&deletions, Some(&open)) {
            return Ok(false);
        }
        let (named, place) = (open.sealer.name("index", name), index_place(name, index.revision));
        let plain = index.bytes.clone();
        let seal = move || open.sealer.seal(Domain::Index, &place, &plain);
        let Some(sealed) = compute(index.bytes.len(), seal).await else { return Ok(false) };
        let bytes = [&seen.deletions.0.to_le_bytes(), sealed.as_slice()].concat();
        let index = SavedIndex { revision: seen.records, bytes };
        self.inner.save_index(&open.name, &named, &index).await
    }

    /// An index that does not decrypt is none: it can be built again from the records.
    async fn saved_index(&self, namespace: &Namespace, name: &str) -> Result<Option<SavedIndex>> {
        let Some(open) = self.find(namespace).await? else { return Ok(None) };
        let Some(index) = self.inner.saved_index(&open.name, &open.sealer.name("index", name)).await? else {
            return Ok(None);
        };
        let Some(deletions) = index.bytes.first_chunk() else { return Ok(None) };
        let seen = Seen { deletions: Revision(u64::from_le_bytes(*deletions)), records: index.revision };
        // One of an earlier version, which has no number before it, is none either.
        let Ok(revision) = seen.revision() else { return Ok(None) };
        let (place, bytes) = (index_place(name, revision), index.bytes);
        let opened = compute(bytes.len(), move || {
            let (_, sealed) = bytes.split_first_chunk::<8>()?;
            open.sealer.open(Domain::Index, &place, sealed)
        });
        Ok(opened.await.map(|bytes| SavedIndex { revision, bytes }))
    }
}

/// What a saved index belongs to.
fn index_place(name: &str, revision: Revision) -> Vec<u8> {
    [&revision.0.to_le_bytes(), name.as_bytes()].concat()
}
