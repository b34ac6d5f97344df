//! A ledger that nothing outlives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Amounts, Change, Changes, EventId, Listing, Metadata, Page, UsageEvent, UsageQuery, UsageTotal};
use crate::{
    Added, ChunkId, Error, Ledger, Namespace, NewRecord, Outcome, PendingDeletion, Query, Record, RecordId, Result,
    Revision, State, Timestamp, Version,
};

/// A [`Ledger`] in RAM: for tests, and for agents whose memory ends with their process.
///
/// It looks through all its records on each call, which is quick for some thousands of them.
#[derive(Debug, Default)]
pub struct RamLedger(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    /// In the order in which they were added.
    entries: Vec<Entry>,
    /// Chunks to be deleted, and each deletion's number.
    pending: BTreeMap<ChunkId, i64>,
    /// The last number given.
    deletions: i64,
    /// When namespaces were deleted, by the hash of their names: the names themselves are forgotten.
    deleted: BTreeMap<[u8; 32], Revision>,
    /// The namespace is forgotten when it is deleted.
    usage: BTreeMap<EventId, (Option<Namespace>, Timestamp, Amounts)>,
    revision: Revision,
}

#[derive(Debug)]
struct Entry {
    /// Its state is never `Expired`: that depends on when one asks.
    record: Record,
    history: Vec<Version>,
    links: BTreeSet<ChunkId>,
    changed: Revision,
}

impl RamLedger {
    /// A ledger with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_active(&self, now: Timestamp) -> bool {
        self.record.state == State::Active && self.record.expires_at.is_none_or(|at| at > now)
    }

    fn is_forgotten(&self) -> bool {
        matches!(self.record.state, State::Forgotten { .. })
    }

    fn has_key(&self, namespace: &Namespace, key: Option<&str>) -> bool {
        self.record.namespace == *namespace && self.record.key.as_deref() == key
    }

    fn says(&self, namespace: &Namespace, key: Option<&str>, text: &str) -> bool {
        self.has_key(namespace, key) && self.record.text == text
    }

    /// The record as it is at `now`.
    fn at(&self, now: Timestamp) -> Record {
        let mut record = self.record.clone();
        if let (State::Active, Some(at)) = (record.state, record.expires_at.filter(|at| *at <= now)) {
            record.state = State::Expired { at };
        }
        record
    }

    /// The record as it counted at `moment`, with the text that it had then.
    fn as_of(&self, moment: Timestamp) -> Option<Record> {
        let ended = match self.record.state {
            State::Active => false,
            State::Superseded { at, .. } => at <= moment,
            _ => true,
        };
        let expired = self.record.expires_at.is_some_and(|at| at <= moment);
        let version = self.history.iter().rfind(|version| version.from <= moment)?;
        let (text, updated_at) = (version.text.clone(), version.from);
        let record = Record { text, updated_at, state: State::Active, ..self.record.clone() };
        (!ended && !expired).then_some(record)
    }

    /// A moment for a change: a clock that was set back must not turn the history around.
    fn not_before_last_change(&self, now: Timestamp) -> Timestamp {
        now.max(self.record.updated_at)
    }

    fn end(&mut self, state: State, at: Timestamp, revision: Revision) {
        self.record.state = state;
        self.changed = revision;
        if let Some(last) = self.history.last_mut() {
            last.until.get_or_insert(at);
        }
    }
}

impl Tables {
    fn find(&mut self, namespace: &Namespace, id: RecordId) -> Result<&mut Entry> {
        let found = self.entries.iter_mut().find(|e| e.record.id == id && e.record.namespace == *namespace);
        found.ok_or_else(|| Error::UnknownRecord { namespace: namespace.clone(), id })
    }

    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    fn add(&mut self, namespace: &Namespace, text: &str, new: &NewRecord, now: Timestamp) -> Result<Added> {
        let (key, is_over) = (new.key.as_deref(), new.is_over(now));
        let same = self.entries.iter().find(|e| !is_over && e.is_active(now) && e.says(namespace, key, text));
        if let Some(record) = same.map(|same| same.at(now)) {
            let changed = new.restates(&record, now).of(&record)?;
            if changed == record {
                return Ok(Added { record, outcome: Outcome::Duplicate });
            }
            return Ok(Added { record: self.replace(namespace, changed, now)?, outcome: Outcome::Changed });
        }
        let (id, revision) = (RecordId::new(), self.next_revision());
        let (created_at, updated_at) = new.moments(now);
        let (mut outcome, mut outdated) = (Outcome::New, BTreeSet::new());
        let of_key = |e: &Entry| !is_over && key.is_some() && e.has_key(namespace, key);
        let standing = self.entries.iter().filter(|e| e.is_active(now) && of_key(e)).map(|e| &e.record);
        let newer = standing.filter(|record| new.is_older_than(record, now)).max_by_key(|record| record.updated_at);
        let state = newer
            .map_or(State::Active, |newer| State::Superseded { by: newer.id, at: updated_at.max(newer.created_at) });
        if state == State::Active {
            for older in self.entries.iter_mut().filter(|e| e.is_active(now) && of_key(e)) {
                outcome = Outcome::Superseded(older.record.id);
                let at = older.not_before_last_change(updated_at);
                older.end(State::Superseded { by: id, at }, at, revision);
                outdated.append(&mut older.links);
            }
        }
        self.queue(outdated, now);
        let record = Record {
            id,
            namespace: namespace.clone(),
            text: text.to_owned(),
            key: new.key.clone(),
            metadata: new.metadata.clone(),
            created_at,
            updated_at,
            expires_at: new.expires_at,
            state,
        };
        let until = if let State::Superseded { at, .. } = state { Some(at) } else { None };
        let history = vec![Version { text: text.to_owned(), from: updated_at, until }];
        let entry = Entry { record, history, links: BTreeSet::new(), changed: revision };
        let record = entry.at(now);
        self.entries.push(entry);
        Ok(Added { record, outcome })
    }

    /// Makes an active record what it is to be from now on.
    fn replace(&mut self, namespace: &Namespace, changed: Record, now: Timestamp) -> Result<Record> {
        let revision = self.next_revision();
        let entry = self.find(namespace, changed.id)?;
        entry.changed = revision;
        let (mut outdated, mut updated_at) = (BTreeSet::new(), entry.record.updated_at);
        if changed.text != entry.record.text {
            updated_at = entry.not_before_last_change(now);
            entry.end(State::Active, updated_at, revision);
            entry.history.push(Version { text: changed.text.clone(), from: updated_at, until: None });
            outdated = std::mem::take(&mut entry.links);
        }
        entry.record = Record { updated_at, ..changed };
        let record = entry.at(now);
        self.queue(outdated, now);
        Ok(record)
    }

    /// Queues for deletion those of `chunks` that no active record has.
    fn queue(&mut self, chunks: BTreeSet<ChunkId>, now: Timestamp) {
        for chunk in chunks {
            if !self.entries.iter().any(|e| e.is_active(now) && e.links.contains(&chunk)) {
                self.deletions += 1;
                self.pending.insert(chunk, self.deletions);
            }
        }
    }

    /// Queues for deletion the chunks of records whose time is over.
    fn queue_expired(&mut self, now: Timestamp) {
        let expired = self.entries.iter_mut().filter(|e| !e.is_active(now));
        let outdated: BTreeSet<ChunkId> = expired.flat_map(|entry| std::mem::take(&mut entry.links)).collect();
        self.queue(outdated, now);
    }
}

fn hash(namespace: &Namespace) -> [u8; 32] {
    blake3::hash(namespace.as_str().as_bytes()).into()
}

#[async_trait]
impl Ledger for RamLedger {
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> Result<Vec<Added>> {
        let texts = new.iter().map(NewRecord::check).collect::<Result<Vec<_>>>()?;
        let mut tables = self.tables();
        texts.into_iter().zip(new).map(|(text, new)| tables.add(namespace, text, new, now)).collect()
    }

    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record> {
        Ok(self.tables().find(namespace, id)?.at(now))
    }

    async fn page(&self, namespace: &Namespace, listing: &Listing) -> Result<Page> {
        let limit = listing.check()?;
        let (mut tables, now) = (self.tables(), Timestamp::now());
        if let Some(after) = listing.after {
            tables.find(namespace, after)?;
        }
        let entries = tables.entries.iter().filter(|e| e.record.namespace == *namespace);
        let entries = entries.skip_while(|e| listing.after.is_some_and(|after| e.record.id != after));
        let seen = |entry: &Entry| match listing.query {
            Query::At(moment) => entry.as_of(moment),
            Query::All => Some(entry.at(now)),
        };
        let records = entries.skip(usize::from(listing.after.is_some())).filter_map(seen);
        let passes = |record: &Record| listing.filter.as_ref().is_none_or(|filter| filter.matches(record));
        let mut records: Vec<Record> = records.filter(passes).take(limit + 1).collect();
        let more = records.len() > limit;
        records.truncate(limit);
        let next = records.last().filter(|_| more).map(|record| record.id);
        Ok(Page { records, next })
    }

    async fn count(&self, namespace: &Namespace, now: Timestamp) -> Result<usize> {
        let tables = self.tables();
        Ok(tables.entries.iter().filter(|e| e.record.namespace == *namespace && e.is_active(now)).count())
    }

    async fn change(&self, namespace: &Namespace, id: RecordId, change: &Change, now: Timestamp) -> Result<Record> {
        change.check()?;
        let mut tables = self.tables();
        let record = tables.find(namespace, id)?.at(now);
        if record.state != State::Active {
            return Err(Error::NotActive { id, state: record.state.name() });
        }
        let changed = change.of(&record)?;
        if changed == record {
            return Ok(record);
        }
        let (key, has_other_key) = (changed.key.as_deref(), changed.key != record.key);
        let mut others = tables.entries.iter().filter(|e| e.is_active(now) && e.record.id != id);
        if let Some(other) = others.clone().find(|e| has_other_key && key.is_some() && e.has_key(namespace, key)) {
            return Err(Error::KeyTaken { existing: other.record.id });
        }
        let says_other = has_other_key || changed.text != record.text;
        if let Some(same) = others.find(|e| says_other && e.says(namespace, key, &changed.text)) {
            return Err(Error::SameText { existing: same.record.id });
        }
        tables.replace(namespace, changed, now)
    }

    async fn forget_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Result<Vec<Record>> {
        let mut tables = self.tables();
        ids.iter().try_for_each(|id| tables.find(namespace, *id).map(|_| ()))?;
        for &id in ids {
            if !tables.find(namespace, id)?.is_forgotten() {
                let revision = tables.next_revision();
                let entry = tables.find(namespace, id)?;
                let at = entry.not_before_last_change(now);
                entry.end(State::Forgotten { at }, at, revision);
                entry.record.text.clear();
                (entry.record.key, entry.record.metadata) = (None, Metadata::default());
                entry.history.iter_mut().for_each(|version| version.text.clear());
                let links = std::mem::take(&mut entry.links);
                tables.queue(links, now);
            }
        }
        ids.iter().map(|id| Ok(tables.find(namespace, *id)?.at(now))).collect()
    }

    async fn delete_namespace(&self, namespace: &Namespace) -> Result<usize> {
        let mut tables = self.tables();
        let used = tables.usage.values_mut().filter(|(owner, ..)| owner.as_ref() == Some(namespace));
        used.for_each(|(owner, ..)| *owner = None);
        let own = |entry: &mut Entry| entry.record.namespace == *namespace;
        let gone: Vec<Entry> = tables.entries.extract_if(.., own).collect();
        if !gone.is_empty() {
            let revision = tables.next_revision();
            tables.deleted.insert(hash(namespace), revision);
            for entry in &gone {
                tables.queue(entry.links.clone(), Timestamp::now());
            }
        }
        Ok(gone.len())
    }

    async fn history(&self, namespace: &Namespace, id: RecordId) -> Result<Vec<Version>> {
        Ok(self.tables().find(namespace, id)?.history.clone())
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let names = self.tables().entries.iter().map(|e| e.record.namespace.clone()).collect::<BTreeSet<_>>();
        Ok(names.into_iter().collect())
    }

    async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> Result<Changes> {
        let tables = self.tables();
        let changed = tables.entries.iter().filter(|e| e.record.namespace == *namespace && e.changed > since);
        let deleted = since > Revision(0) && tables.deleted.get(&hash(namespace)).is_some_and(|at| *at > since);
        Ok(Changes { deleted, records: changed.map(|e| e.at(now)).collect(), revision: tables.revision })
    }

    async fn link(&self, namespace: &Namespace, links: &[(RecordId, ChunkId)], now: Timestamp) -> Result<()> {
        let mut tables = self.tables();
        links.iter().try_for_each(|(id, _)| tables.find(namespace, *id).map(|_| ()))?;
        for (id, chunk) in links {
            let entry = tables.find(namespace, *id)?;
            if entry.is_active(now) {
                entry.links.insert(*chunk);
                tables.pending.remove(chunk);
            } else {
                // It was forgotten, say, while its KV was being computed.
                tables.queue(BTreeSet::from([*chunk]), now);
            }
        }
        Ok(())
    }

    async fn pending_deletions(&self, now: Timestamp) -> Result<Vec<PendingDeletion>> {
        let mut tables = self.tables();
        tables.queue_expired(now);
        Ok(tables.pending.iter().map(|(&chunk, &number)| PendingDeletion { chunk, number }).collect())
    }

    async fn confirm_deleted(&self, deletions: &[PendingDeletion], _: Timestamp) -> Result<()> {
        let mut tables = self.tables();
        for PendingDeletion { chunk, number } in deletions {
            if tables.pending.get(chunk) == Some(number) {
                tables.pending.remove(chunk);
            }
        }
        Ok(())
    }

    async fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> Result<Vec<bool>> {
        let (tables, asked) = (self.tables(), chunks.iter().collect::<BTreeSet<_>>());
        let active = tables.entries.iter().filter(|entry| entry.is_active(now));
        let links = active.flat_map(|entry| &entry.links);
        let linked: BTreeSet<&ChunkId> = links.filter(|chunk| asked.contains(chunk)).collect();
        Ok(chunks.iter().map(|chunk| linked.contains(chunk)).collect())
    }

    async fn record_usage(&self, events: &[UsageEvent]) -> Result<()> {
        let mut tables = self.tables();
        for event in events {
            let counted = || (Some(event.namespace.clone()), event.at, event.amounts.bounded());
            tables.usage.entry(event.id).or_insert_with(counted);
        }
        Ok(())
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>> {
        let tables = self.tables();
        let mut totals: BTreeMap<Option<&Namespace>, UsageTotal> = BTreeMap::new();
        let asked = |owner: &Option<Namespace>| query.namespace.is_none() || *owner == query.namespace;
        for (owner, at, amounts) in tables.usage.values().filter(|(owner, at, _)| asked(owner) && query.covers(*at)) {
            let total = totals.entry(owner.as_ref()).or_insert_with(|| UsageTotal::new(owner.clone(), *at));
            total.count(*at, *amounts);
        }
        Ok(totals.into_values().collect())
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::RamLedger;

    #[test]
    fn it_keeps_the_promises_of_a_ledger() {
        crate::testing::ledger(RamLedger::new);
    }
}
