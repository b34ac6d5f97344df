//! What a ledger does, as statements on one connection.
//!
//! Whatever changes a namespace locks its row first and keeps it locked to the end of the transaction. So changes of one
//! namespace happen one after the other, and the numbers that its row gives out (revisions, and the order of adding) are
//! visible to others in this order, without gaps. The isolation level is READ COMMITTED: each statement behind the lock
//! sees all that was committed before it was given.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::OnceLock;

use amem_core::{
    Added, Amounts, Changes, ChunkId, Error, Listing, Namespace, NewRecord, Outcome, Page, PendingDeletion, Query,
    Record, RecordId, RecordStats, Revision, SavedIndex, State, Timestamp, UsageEvent, UsageQuery, UsageTotal, Version,
};
use futures_util::future;
use tokio_postgres::Row;

use super::error::Failure;
use super::options::Settings;
use super::rows::{
    ACTIVE, FORGOTTEN, Found, NameHash, RecordRow, SUPERSEDED, VersionRow, get, index_checksum, name_hash, record_id,
    text_hash, utf8,
};
use super::schema;
use super::session::{Param, Session};

type Result<T, E = Failure> = std::result::Result<T, E>;

/// Bytes of a text at most: PostgreSQL takes a statement of at most a gigabyte.
const MAX_TEXT_BYTES: usize = 256 << 20;
/// Bytes of texts and keys that are sent to the server in one statement, give or take a row.
const STATEMENT_BYTES: usize = 16 << 20;
/// Rows that are sent to the server in one statement.
const STATEMENT_ROWS: usize = 10_000;

/// The tables as one connection sees them.
pub(super) struct Tables<'a> {
    pub(super) session: &'a Session,
    pub(super) settings: &'a Settings,
    /// What began the transaction, if it is to be one: sent with the first statement.
    begin: Option<&'static str>,
    begun: OnceLock<()>,
    /// The number of the transaction that changes something, by which the server knows later what became of it.
    pub(super) transaction: OnceLock<String>,
}

/// A namespace whose row this transaction has locked.
struct Locked<'a> {
    namespace: &'a Namespace,
    hash: NameHash,
    id: i64,
    records: i64,
    changes: i64,
    deleted: i64,
    forgotten: i64,
}

impl Locked<'_> {
    fn next_revision(&mut self) -> i64 {
        self.changes += 1;
        self.changes
    }

    fn unknown(&self, id: RecordId) -> Failure {
        unknown(self.namespace, id)
    }
}

/// The records `r` of a namespace `n`, each with the version that it has now. One whose version is missing is found
/// without it, and so to be damaged.
macro_rules! of_namespace {
    ($rest:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM namespace n JOIN record r ON r.namespace = n.id LEFT JOIN version v \
             ON v.namespace = r.namespace AND v.record = r.seq AND v.number = r.version WHERE n.hash = $1 ",
            $rest
        )
    };
}

/// What the checksum of an event `u` of usage must be.
macro_rules! usage_checksum {
    () => {
        "substr(sha256(u.id || int8send(u.at) || int8send(u.requests) || int8send(u.memory_ops) || \
         int8send(u.reused_tokens) || int8send(u.repaired_tokens) || int8send(u.prefilled_tokens) || \
         int8send(u.generated_tokens) || int8send(u.chunks) || int8send(u.reused_chunks)), 1, 8)"
    };
}

impl<'a> Tables<'a> {
    /// As each statement by itself sees them.
    pub(super) fn now(session: &'a Session, settings: &'a Settings) -> Self {
        Self { session, settings, begin: None, begun: OnceLock::new(), transaction: OnceLock::new() }
    }

    /// As they are at one moment, for several statements.
    pub(super) fn snapshot(session: &'a Session, settings: &'a Settings) -> Self {
        Self { begin: Some("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"), ..Self::now(session, settings) }
    }

    /// In a transaction that changes something.
    pub(super) fn transaction(session: &'a Session, settings: &'a Settings) -> Self {
        Self { begin: Some("BEGIN"), ..Self::now(session, settings) }
    }

    /// Whether a transaction was begun, and so must be ended.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.get().is_some()
    }

    pub(super) async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> Result<Vec<Added>> {
        let texts = new.iter().map(|new| bounded(new.check()?)).collect::<amem_core::Result<Vec<&str>>>()?;
        let mut locked = self.lock_or_make(namespace).await?;
        let hashes: Vec<i64> =
            new.iter().zip(&texts).map(|(new, text)| text_hash(&locked.hash, new.key.as_deref(), text)).collect();
        let keys: BTreeSet<&[u8]> = new.iter().filter_map(|new| new.key.as_deref().map(str::as_bytes)).collect();
        let keys: Vec<&[u8]> = keys.into_iter().collect();
        let mut batch = Batch::of(self.standing(&locked, &hashes, &keys).await?);
        let mut added = Vec::with_capacity(new.len());
        for ((new, text), hash) in new.iter().zip(&texts).zip(hashes) {
            let key = new.key.as_deref().map(str::as_bytes);
            if let Some(same) = batch.saying(hash, key, text, now) {
                added.push(Added { record: same.record(namespace, now)?, outcome: Outcome::Duplicate });
                continue;
            }
            let (id, revision) = (RecordId::new(), locked.next_revision());
            let mut outcome = Outcome::New;
            for at in batch.under(key, now) {
                let Some(older) = batch.change(at) else { continue };
                end(older, SUPERSEDED, now, Some(id), revision);
                outcome = record_id(&older.record.id).map_or(outcome, Outcome::Superseded);
            }
            locked.records += 1;
            let created_at = new.created_at.unwrap_or(now).min(now).0;
            let metadata = (!new.metadata.is_empty()).then(|| serde_json::to_vec(&new.metadata)).transpose();
            let record = RecordRow {
                seq: locked.records,
                id: id.to_bytes().to_vec(),
                key: key.map(<[u8]>::to_vec),
                metadata: metadata.map_err(|error| Error::Ledger(error.into()))?,
                version: 1,
                created_at,
                expires_at: new.expires_at.map(|at| at.0),
                state: ACTIVE,
                ended_at: None,
                ended_by: None,
                revision,
            };
            let version = VersionRow {
                record: locked.records,
                number: 1,
                text: text.as_bytes().to_vec(),
                hash: Some(hash),
                from_at: created_at,
                until_at: None,
            };
            let found = Found { record, version };
            added.push(Added { record: found.record(namespace, now)?, outcome });
            batch.insert(found);
        }
        let (old, new) = batch.changed();
        if !new.is_empty() {
            let (old_records, old_versions): (Vec<_>, Vec<_>) = old.iter().map(|f| (&f.record, &f.version)).unzip();
            let (new_records, new_versions): (Vec<_>, Vec<_>) = new.iter().map(|f| (&f.record, &f.version)).unzip();
            future::try_join5(
                self.put_records(INSERT_RECORDS, &locked, &new_records),
                self.put_versions(INSERT_VERSIONS, &locked, &new_versions),
                self.put_records(UPDATE_RECORDS, &locked, &old_records),
                self.put_versions(UPDATE_VERSIONS, &locked, &old_versions),
                self.note_changes(&locked),
            )
            .await?;
            let superseded: Vec<i64> = old_records.iter().map(|record| record.seq).collect();
            self.delete_chunks(&locked, &superseded, now).await?;
        }
        Ok(added)
    }

    pub(super) async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record> {
        self.find(namespace, id).await?.record(namespace, now)
    }

    pub(super) async fn get_many(
        &self,
        namespace: &Namespace,
        ids: &[RecordId],
        now: Timestamp,
    ) -> Result<Vec<Option<Record>>> {
        let found = self.find_many(namespace, ids).await?;
        ids.iter().map(|id| found.get(id).map(|found| found.record(namespace, now)).transpose()).collect()
    }

    pub(super) async fn page(&self, namespace: &Namespace, listing: &Listing) -> Result<Page> {
        let limit = listing.check()?;
        let mut after = match listing.after {
            Some(id) => self.find(namespace, id).await?.record.seq,
            None => 0,
        };
        // Filters are asked here, batch by batch: one may pass few records of many.
        let batch = if listing.filter.is_some() { limit.max(256) } else { limit + 1 };
        let moment = match listing.query {
            Query::At(moment) => moment,
            _ => Timestamp::now(),
        };
        let mut records = Vec::new();
        loop {
            let found = self.batch(namespace, listing.query, after, batch).await?;
            let last = found.len() < batch;
            for found in found {
                after = found.record.seq;
                let record = found.record(namespace, moment)?;
                if listing.filter.as_ref().is_some_and(|filter| !filter.matches(&record)) {
                    continue;
                }
                if records.len() == limit {
                    let next = records.last().map(|record: &Record| record.id);
                    return Ok(Page { records, next });
                }
                records.push(record);
            }
            if last {
                return Ok(Page { records, next: None });
            }
        }
    }

    /// At most `limit` records behind a place, in order.
    async fn batch(&self, namespace: &Namespace, query: Query, after: i64, limit: usize) -> Result<Vec<Found>> {
        let (hash, limit) = (name_hash(namespace), i64::try_from(limit).unwrap_or(i64::MAX));
        let standing = concat!(
            "SELECT ",
            columns!(),
            " FROM namespace n JOIN record r ON r.namespace = n.id LEFT JOIN version v \
             ON v.namespace = r.namespace AND v.record = r.seq AND v.number = (SELECT max(o.number) FROM version o \
             WHERE o.namespace = r.namespace AND o.record = r.seq AND o.from_at <= $4) \
             WHERE n.hash = $1 AND r.seq > $2 AND r.state <> 2 AND r.created_at <= $4 \
             AND (r.state = 0 OR r.ended_at > $4) AND (r.expires_at IS NULL OR r.expires_at > $4) \
             ORDER BY r.seq LIMIT $3"
        );
        let all = of_namespace!("AND r.seq > $2 ORDER BY r.seq LIMIT $3");
        match query {
            Query::At(moment) => {
                let rows = self.rows(standing, &[&hash.as_slice(), &after, &limit, &moment.0]).await?;
                let mut found = all_found(&rows, &hash)?;
                // At that moment nothing had taken its place yet.
                found.iter_mut().for_each(|found| found.record.state = ACTIVE);
                Ok(found)
            }
            _ => all_found(&self.rows(all, &[&hash.as_slice(), &after, &limit]).await?, &hash),
        }
    }

    pub(super) async fn count(&self, namespace: &Namespace, now: Timestamp) -> Result<usize> {
        let count = "SELECT count(*) FROM namespace n JOIN record r ON r.namespace = n.id \
                     WHERE n.hash = $1 AND r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > $2)";
        let rows = self.rows(count, &[&name_hash(namespace).as_slice(), &now.0]).await?;
        let counted: i64 = rows.first().map_or(Ok(0), |row| get(row, 0))?;
        Ok(counted.unsigned_abs() as usize)
    }

    pub(super) async fn stats(&self, namespace: &Namespace, now: Timestamp) -> Result<RecordStats> {
        let count = "SELECT r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > $2), r.state, count(*), \
                     coalesce(sum(octet_length(v.text)), 0)::bigint FROM namespace n \
                     JOIN record r ON r.namespace = n.id JOIN version v ON v.namespace = r.namespace \
                     AND v.record = r.seq AND v.number = r.version WHERE n.hash = $1 GROUP BY 1, 2";
        let mut stats = RecordStats::default();
        for row in self.rows(count, &[&name_hash(namespace).as_slice(), &now.0]).await? {
            let records = get::<i64>(&row, 2)?.unsigned_abs() as usize;
            stats.text_bytes += get::<i64>(&row, 3)?.unsigned_abs();
            match (get(&row, 0)?, get(&row, 1)?) {
                (true, _) => stats.active += records,
                (false, ACTIVE) => stats.expired += records,
                (false, SUPERSEDED) => stats.superseded += records,
                (false, _) => stats.forgotten += records,
            }
        }
        Ok(stats)
    }

    pub(super) async fn update(
        &self,
        namespace: &Namespace,
        id: RecordId,
        text: &str,
        now: Timestamp,
    ) -> Result<Record> {
        let text = bounded(text.trim())?;
        if text.is_empty() {
            return Err(Error::Empty { what: "memory" }.into());
        }
        let Some(mut locked) = self.lock(namespace).await? else { return Err(unknown(namespace, id)) };
        let mut found = self.find(namespace, id).await?;
        let record = found.record(namespace, now)?;
        if record.state != State::Active {
            return Err(Error::NotActive { id, state: record.state.name() }.into());
        }
        if record.text == text {
            return Ok(record);
        }
        let hash = text_hash(&locked.hash, record.key.as_deref(), text);
        let batch = Batch::of(self.standing(&locked, &[hash], &[]).await?);
        if let Some(same) = batch.saying(hash, found.record.key.as_deref(), text, now) {
            let existing = record_id(&same.record.id).ok_or_else(|| Failure::Damaged("a record's id".to_owned()))?;
            return Err(Error::SameText { existing }.into());
        }
        // A clock that was set back must not turn the history around.
        let at = now.0.max(found.version.from_at);
        let mut old = found.version.clone();
        old.until_at = Some(at);
        let number = old.number + 1;
        let text = text.as_bytes().to_vec();
        found.version = VersionRow { record: old.record, number, text, hash: Some(hash), from_at: at, until_at: None };
        (found.record.version, found.record.revision) = (number, locked.next_revision());
        future::try_join4(
            self.put_versions(UPDATE_VERSIONS, &locked, &[&old]),
            self.put_versions(INSERT_VERSIONS, &locked, &[&found.version]),
            self.put_records(UPDATE_RECORDS, &locked, &[&found.record]),
            self.note_changes(&locked),
        )
        .await?;
        self.delete_chunks(&locked, &[found.record.seq], now).await?;
        found.record(namespace, now)
    }

    pub(super) async fn forget_many(
        &self,
        namespace: &Namespace,
        ids: &[RecordId],
        now: Timestamp,
    ) -> Result<Vec<Record>> {
        let Some(first) = ids.first() else { return Ok(Vec::new()) };
        let Some(mut locked) = self.lock(namespace).await? else { return Err(unknown(namespace, *first)) };
        let mut found = self.find_to_forget(namespace, &locked, ids).await?;
        let mut forgotten: HashMap<i64, VersionRow> = HashMap::new();
        // In the order of the ids, so that their changes are numbered in it.
        for id in ids {
            let Some(found) = found.get_mut(id) else { return Err(locked.unknown(*id)) };
            if found.is_forgotten() {
                continue;
            }
            end(found, FORGOTTEN, now, None, locked.next_revision());
            (found.record.key, found.record.metadata) = (None, None);
            (found.version.text, found.version.hash) = (Vec::new(), None);
            forgotten.insert(found.record.seq, found.version.clone());
        }
        if !forgotten.is_empty() {
            locked.forgotten = locked.changes;
            let seqs: Vec<i64> = forgotten.keys().copied().collect();
            let mut versions = self.versions(&locked, &seqs).await?;
            for version in &mut versions {
                let current = forgotten.get(&version.record).filter(|current| current.number == version.number);
                match current {
                    Some(current) => version.clone_from(current),
                    None => (version.text, version.hash) = (Vec::new(), None),
                }
            }
            let records: Vec<_> =
                found.values().filter(|found| forgotten.contains_key(&found.record.seq)).map(|f| &f.record).collect();
            future::try_join3(
                self.put_records(UPDATE_RECORDS, &locked, &records),
                self.put_versions(UPDATE_VERSIONS, &locked, &versions.iter().collect::<Vec<_>>()),
                self.note_changes(&locked),
            )
            .await?;
            self.delete_chunks(&locked, &seqs, now).await?;
            self.drop_indexes(&locked).await?;
        }
        ids.iter().map(|id| found.get(id).ok_or_else(|| locked.unknown(*id))?.record(namespace, now)).collect()
    }

    /// Records that are to be forgotten. Of those that are not what was written sound ones are made before, which say
    /// nothing.
    async fn find_to_forget(
        &self,
        namespace: &Namespace,
        locked: &Locked<'_>,
        ids: &[RecordId],
    ) -> Result<HashMap<RecordId, Found>> {
        match self.find_many(namespace, ids).await {
            Err(Failure::Damaged(_)) => {}
            found => return found,
        }
        let mut all = HashMap::new();
        for id in ids {
            match self.find_many(namespace, std::slice::from_ref(id)).await {
                Err(Failure::Damaged(_)) => all.extend(self.empty(locked, *id).await?.map(|found| (*id, found))),
                found => all.extend(found?),
            }
        }
        Ok(all)
    }

    /// Takes everything that a record says away. Nothing of it is relied on but its id and that it is in the namespace.
    async fn empty(&self, locked: &Locked<'_>, id: RecordId) -> Result<Option<Found>> {
        let by_id = concat!(
            "SELECT ",
            columns!(),
            " FROM record r LEFT JOIN version v ON false WHERE r.namespace = $1 AND r.id = $2"
        );
        let rows = self.rows(by_id, &[&locked.id, &id.to_bytes().as_slice()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let mut record = RecordRow::unchecked(row, 0)?;
        (record.key, record.metadata, record.version, record.state) = (None, None, 1, ACTIVE);
        let (text, hash, until_at) = (Vec::new(), None, None);
        let version = VersionRow { record: record.seq, number: 1, text, hash, from_at: record.created_at, until_at };
        let texts = "DELETE FROM version WHERE namespace = $1 AND record = $2";
        self.execute(texts, &[&locked.id, &record.seq]).await?;
        self.put_versions(INSERT_VERSIONS, locked, &[&version]).await?;
        self.put_records(UPDATE_RECORDS, locked, &[&record]).await?;
        Ok(Some(Found { record, version }))
    }

    pub(super) async fn delete_namespace(&self, namespace: &Namespace) -> Result<usize> {
        let locked = self.lock(namespace).await?;
        if locked.is_none() {
            // It has no records, but may have used something.
            self.begin_change().await?;
        }
        let name = namespace.as_str().as_bytes();
        self.execute("UPDATE usage_event SET namespace = NULL WHERE namespace = $1", &[&name]).await?;
        let Some(mut locked) = locked else { return Ok(0) };
        self.drop_indexes(&locked).await?;
        let now = Timestamp::now().0;
        let pend = "INSERT INTO pending_deletion (chunk, store) SELECT DISTINCT l.chunk, s.id FROM link l \
                    CROSS JOIN store s WHERE l.namespace = $1 AND NOT EXISTS (SELECT 1 FROM link o JOIN record r \
                    ON r.namespace = o.namespace AND r.seq = o.record WHERE o.chunk = l.chunk AND o.namespace <> $1 \
                    AND r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > $2)) \
                    ON CONFLICT (store, chunk) DO UPDATE SET number = EXCLUDED.number";
        self.execute(pend, &[&locked.id, &now]).await?;
        self.execute("DELETE FROM link WHERE namespace = $1", &[&locked.id]).await?;
        self.execute("DELETE FROM version WHERE namespace = $1", &[&locked.id]).await?;
        let records = self.execute("DELETE FROM record WHERE namespace = $1", &[&locked.id]).await?;
        if records > 0 {
            let note = "UPDATE namespace SET name = NULL, changes = $2, deleted = $2, forgotten = $2 WHERE id = $1";
            let revision = locked.next_revision();
            self.execute(note, &[&locked.id, &revision]).await?;
        }
        Ok(records as usize)
    }

    pub(super) async fn history(&self, namespace: &Namespace, id: RecordId) -> Result<Vec<Version>> {
        let hash = name_hash(namespace);
        let all = concat!(
            "SELECT ",
            columns!(),
            " FROM namespace n JOIN record r ON r.namespace = n.id LEFT JOIN version v \
             ON v.namespace = r.namespace AND v.record = r.seq WHERE n.hash = $1 AND r.id = $2 ORDER BY v.number"
        );
        let rows = self.rows(all, &[&hash.as_slice(), &id.to_bytes().as_slice()]).await?;
        let found = all_found(&rows, &hash)?;
        let Some(last) = found.last() else { return Err(unknown(namespace, id)) };
        let damaged = || Failure::Damaged(format!("the history of record {id} is not what was written"));
        if !(1..=last.record.version).eq(found.iter().map(|found| found.version.number)) {
            return Err(damaged());
        }
        let versions = found.iter().map(|Found { version, .. }| {
            let text = utf8(&version.text).ok_or_else(damaged)?;
            Ok(Version { text, from: Timestamp(version.from_at), until: version.until_at.map(Timestamp) })
        });
        versions.collect()
    }

    pub(super) async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let names = "SELECT name, hash FROM namespace WHERE name IS NOT NULL ORDER BY name";
        let rows = self.rows(names, &[]).await?;
        let namespaces = rows.iter().map(|row| {
            let namespace = utf8(get(row, 0)?).and_then(|name| Namespace::new(name).ok());
            let hash: &[u8] = get(row, 1)?;
            let named = namespace.filter(|namespace| name_hash(namespace) == hash);
            named.ok_or_else(|| Failure::Damaged("a namespace's name is not what was written".to_owned()))
        });
        namespaces.collect()
    }

    pub(super) async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> Result<Changes> {
        // PostgreSQL's integers end before a revision's do, and no ledger gets there.
        let since = i64::try_from(since.0).unwrap_or(i64::MAX);
        let changes = self.changes_since(namespace, since, now).await?;
        if since > i64::try_from(changes.revision.0).unwrap_or(i64::MAX) {
            // The ledger was set back, as by restoring a dump: what the caller knows of it may never have been.
            return Ok(Changes { deleted: true, ..self.changes_since(namespace, 0, now).await? });
        }
        Ok(changes)
    }

    async fn changes_since(&self, namespace: &Namespace, since: i64, now: Timestamp) -> Result<Changes> {
        // One statement sees one moment, so no change of the namespace is missing below the revision that it gives.
        let changed = concat!(
            "SELECT n.changes, n.deleted, ",
            columns!(),
            " FROM namespace n LEFT JOIN record r ON r.namespace = n.id AND r.revision > $2 LEFT JOIN version v \
             ON v.namespace = r.namespace AND v.record = r.seq AND v.number = r.version \
             WHERE n.hash = $1 ORDER BY r.revision, r.seq"
        );
        let hash = name_hash(namespace);
        let rows = self.rows(changed, &[&hash.as_slice(), &since]).await?;
        let Some(first) = rows.first() else { return Ok(Changes::default()) };
        let (changes, deleted): (i64, i64) = (get(first, 0)?, get(first, 1)?);
        let mut records = Vec::with_capacity(rows.len());
        for row in &rows {
            if get::<Option<i64>>(row, 2)?.is_some() {
                records.push(Found::from_row(row, 2, &hash)?.record(namespace, now)?);
            }
        }
        Ok(Changes { deleted: since > 0 && deleted > since, records, revision: Revision(changes.unsigned_abs()) })
    }

    pub(super) async fn link(
        &self,
        namespace: &Namespace,
        links: &[(RecordId, ChunkId)],
        now: Timestamp,
    ) -> Result<()> {
        let Some((first, _)) = links.first() else { return Ok(()) };
        let Some(locked) = self.lock(namespace).await? else { return Err(unknown(namespace, *first)) };
        let ids: Vec<RecordId> = links.iter().map(|(id, _)| *id).collect();
        let found = self.find_many(namespace, &ids).await?;
        let (mut chunks, mut records, mut ends, mut gone) = (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new());
        for (id, chunk) in links {
            let found = found.get(id).ok_or_else(|| locked.unknown(*id))?;
            if found.is_active(now) {
                chunks.push(chunk.0.as_slice());
                records.push(found.record.seq);
                ends.push(found.record.expires_at);
            } else {
                // It was forgotten, say, while its KV was being computed.
                gone.insert(chunk.0.as_slice());
            }
        }
        self.name_store().await?;
        let link = "INSERT INTO link (chunk, namespace, record, expires_at) SELECT u.chunk, $1::bigint, u.record, u.at \
                    FROM unnest($2::bytea[], $3::bigint[], $4::bigint[]) u(chunk, record, at) ON CONFLICT DO NOTHING";
        self.execute(link, &[&locked.id, &chunks, &records, &ends]).await?;
        self.execute("DELETE FROM pending_deletion WHERE chunk = ANY($1)", &[&chunks]).await?;
        if !gone.is_empty() {
            self.pend(&locked, &gone.into_iter().collect::<Vec<_>>(), &[], now).await?;
        }
        Ok(())
    }

    pub(super) async fn pending_deletions(&self, now: Timestamp) -> Result<Vec<PendingDeletion>> {
        // That a record expired is written nowhere, so its links are still there.
        let pending = "WITH own AS (SELECT p.chunk, p.number FROM pending_deletion p JOIN store s ON s.id = p.store \
                       WHERE s.name = $1) SELECT chunk, number FROM own UNION \
                       SELECT l.chunk, 0 FROM link l WHERE l.expires_at <= $2 \
                       AND NOT EXISTS (SELECT 1 FROM own WHERE own.chunk = l.chunk) AND NOT EXISTS (SELECT 1 FROM link o \
                       JOIN record r ON r.namespace = o.namespace AND r.seq = o.record WHERE o.chunk = l.chunk \
                       AND r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > $2)) ORDER BY chunk";
        let rows = self.rows(pending, &[&self.settings.options.store.as_bytes(), &now.0]).await?;
        let chunks = rows.iter().map(|row| {
            let chunk: &[u8] = get(row, 0)?;
            let chunk = chunk.try_into().map_err(|_| Failure::Damaged("a chunk's name has a wrong length".to_owned()));
            Ok(PendingDeletion { chunk: ChunkId(chunk?), number: get(row, 1)? })
        });
        chunks.collect()
    }

    pub(super) async fn confirm_deleted(&self, deletions: &[PendingDeletion], now: Timestamp) -> Result<()> {
        self.begin_change().await?;
        let chunks: Vec<&[u8]> = deletions.iter().map(|deletion| deletion.chunk.0.as_slice()).collect();
        let numbers: Vec<i64> = deletions.iter().map(|deletion| deletion.number).collect();
        let store = self.settings.options.store.as_bytes();
        // What expired is still to be deleted from the other stores.
        let expired = "WITH gone AS (DELETE FROM link WHERE chunk = ANY($1) AND expires_at <= $2 RETURNING chunk) \
                       INSERT INTO pending_deletion (chunk, store) SELECT DISTINCT g.chunk, s.id FROM gone g \
                       CROSS JOIN store s WHERE s.name <> $3 AND NOT EXISTS (SELECT 1 FROM link o JOIN record r \
                       ON r.namespace = o.namespace AND r.seq = o.record WHERE o.chunk = g.chunk AND r.state = 0 \
                       AND (r.expires_at IS NULL OR r.expires_at > $2)) ON CONFLICT DO NOTHING";
        self.execute(expired, &[&chunks, &now.0, &store]).await?;
        let confirm = "DELETE FROM pending_deletion p USING store s, unnest($2::bytea[], $3::bigint[]) d(chunk, number) \
                       WHERE p.store = s.id AND s.name = $1 AND p.chunk = d.chunk AND p.number = d.number";
        self.execute(confirm, &[&store, &chunks, &numbers]).await?;
        Ok(())
    }

    pub(super) async fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> Result<Vec<bool>> {
        let linked = "SELECT DISTINCT l.chunk FROM link l JOIN record r ON r.namespace = l.namespace AND r.seq = l.record \
                      WHERE l.chunk = ANY($1) AND r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > $2)";
        let ids: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.0.as_slice()).collect();
        let rows = self.rows(linked, &[&ids, &now.0]).await?;
        let found: HashSet<&[u8]> = rows.iter().map(|row| get(row, 0)).collect::<Result<_>>()?;
        Ok(ids.iter().map(|id| found.contains(id)).collect())
    }

    pub(super) async fn record_usage(&self, events: &[UsageEvent]) -> Result<()> {
        self.begin_change().await?;
        let insert = concat!(
            "INSERT INTO usage_event SELECT u.*, ",
            usage_checksum!(),
            " FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
             $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[]) u(id, namespace, at, requests, \
             memory_ops, reused_tokens, repaired_tokens, prefilled_tokens, generated_tokens, chunks, reused_chunks) \
             ON CONFLICT DO NOTHING"
        );
        for events in events.chunks(STATEMENT_ROWS) {
            let ids: Vec<Vec<u8>> = events.iter().map(|event| event.id.to_bytes().to_vec()).collect();
            let names: Vec<&[u8]> = events.iter().map(|event| event.namespace.as_str().as_bytes()).collect();
            let moments: Vec<i64> = events.iter().map(|event| event.at.0).collect();
            let all: Vec<[u64; 8]> = events.iter().map(|event| event.amounts.bounded().to_array()).collect();
            let amounts: [Vec<i64>; 8] = std::array::from_fn(|n| all.iter().map(|all| all[n] as i64).collect());
            let mut params: Vec<Param<'_>> = vec![&ids, &names, &moments];
            params.extend(amounts.iter().map(|amounts| amounts as Param<'_>));
            self.execute(insert, &params).await?;
        }
        Ok(())
    }

    pub(super) async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>> {
        // A sum that no number here can hold counts as the largest.
        macro_rules! sums {
            ($($amount:literal),*) => { concat!($("least(sum(", $amount, "), 9223372036854775807)::bigint, "),*) };
        }
        let select = concat!(
            "SELECT namespace, count(*), min(at), max(at), ",
            sums!(
                "requests",
                "memory_ops",
                "reused_tokens",
                "repaired_tokens",
                "prefilled_tokens",
                "generated_tokens",
                "chunks",
                "reused_chunks"
            ),
            "bool_and(u.checksum = ",
            usage_checksum!(),
            ") FROM usage_event u WHERE ($1::bytea IS NULL OR namespace = $1) AND at >= $2 AND at < $3 \
             GROUP BY namespace ORDER BY namespace NULLS FIRST"
        );
        let asked = query.namespace.as_ref().map(|namespace| namespace.as_str().as_bytes());
        let [since, until] = [query.since.map_or(i64::MIN, |at| at.0), query.until.map_or(i64::MAX, |at| at.0)];
        let rows = self.rows(select, &[&asked, &since, &until]).await?;
        let totals = rows.iter().map(|row| {
            if !get::<bool>(row, 12)? {
                return Err(Failure::Damaged("an event of usage is not what was written".to_owned()));
            }
            let damaged = || Failure::Damaged("a namespace's name is not what was written".to_owned());
            let name = get::<Option<&[u8]>>(row, 0)?.map(|name| utf8(name).ok_or_else(damaged)).transpose()?;
            let namespace = name.map(Namespace::new).transpose().map_err(|_| damaged())?;
            let mut amounts = [0; 8];
            for (index, amount) in amounts.iter_mut().enumerate() {
                *amount = get::<i64>(row, 4 + index)?.unsigned_abs();
            }
            let mut total = UsageTotal::new(namespace, Timestamp(get(row, 2)?));
            total.events = get::<i64>(row, 1)?.unsigned_abs();
            total.amounts = Amounts::from_array(amounts);
            total.last = Timestamp(get(row, 3)?);
            Ok(total)
        });
        totals.collect()
    }

    /// Keeps an index, unless something that may be in it was forgotten since.
    pub(super) async fn save_index(&self, namespace: &Namespace, name: &str, index: &SavedIndex) -> Result<bool> {
        let Some(locked) = self.lock(namespace).await? else { return Ok(false) };
        let revision = i64::try_from(index.revision.0).unwrap_or(i64::MAX);
        // One of a later revision than there is was made before the ledger was set back.
        let is_sound = (locked.forgotten..=locked.changes).contains(&revision) && locked.deleted <= revision;
        if !is_sound || index.bytes.len() > MAX_TEXT_BYTES {
            return Ok(false);
        }
        let save = "INSERT INTO saved_index (namespace, name, revision, bytes, checksum) VALUES ($1, $2, $3, $4, $5) \
                    ON CONFLICT (namespace, name) DO UPDATE SET revision = excluded.revision, bytes = excluded.bytes, \
                    checksum = excluded.checksum";
        let checksum = index_checksum(&locked.hash, name, revision, &index.bytes);
        self.execute(save, &[&locked.id, &name.as_bytes(), &revision, &index.bytes, &checksum]).await?;
        Ok(true)
    }

    /// The index that was kept last. A damaged one is none, for it can be built again.
    pub(super) async fn saved_index(&self, namespace: &Namespace, name: &str) -> Result<Option<SavedIndex>> {
        let select = "SELECT i.revision, i.bytes, i.checksum FROM namespace n JOIN saved_index i ON i.namespace = n.id \
                      WHERE n.hash = $1 AND i.name = $2 AND i.revision BETWEEN n.forgotten AND n.changes";
        let hash = name_hash(namespace);
        let rows = self.rows(select, &[&hash.as_slice(), &name.as_bytes()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (revision, bytes, checksum): (i64, &[u8], i64) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
        let is_sound = checksum == index_checksum(&hash, name, revision, bytes);
        Ok(is_sound.then(|| SavedIndex { revision: Revision(revision.unsigned_abs()), bytes: bytes.to_vec() }))
    }

    async fn drop_indexes(&self, locked: &Locked<'_>) -> Result<()> {
        self.execute("DELETE FROM saved_index WHERE namespace = $1", &[&locked.id]).await?;
        Ok(())
    }

    /// Has deletions named to this process's store from now on.
    async fn name_store(&self) -> Result<()> {
        let known = "INSERT INTO store (name) SELECT $1::bytea WHERE NOT EXISTS (SELECT 1 FROM store WHERE name = $1) \
                     ON CONFLICT DO NOTHING";
        self.execute(known, &[&self.settings.options.store.as_bytes()]).await?;
        Ok(())
    }

    /// As [`name_store`](Self::name_store), as a change of its own.
    pub(super) async fn add_store(&self) -> Result<()> {
        self.begin_change().await?;
        self.name_store().await
    }

    pub(super) async fn remove_store(&self, store: &str) -> Result<()> {
        self.begin_change().await?;
        self.execute("DELETE FROM store WHERE name = $1", &[&store.as_bytes()]).await?;
        Ok(())
    }

    /// Begins a change that no namespace's lock is needed for.
    async fn begin_change(&self) -> Result<()> {
        let rows = self.rows("SELECT pg_current_xact_id()::text", &[]).await?;
        rows.iter().for_each(|row| self.note_transaction(row, 0));
        Ok(())
    }

    fn note_transaction(&self, row: &Row, column: usize) {
        self.transaction.get_or_init(|| row.try_get(column).unwrap_or_default());
    }

    /// Locks a namespace's row until the transaction ends. `None` if it never had a record.
    async fn lock<'n>(&self, namespace: &'n Namespace) -> Result<Option<Locked<'n>>> {
        let lock = "SELECT id, records, changes, deleted, forgotten, (SELECT max(version) FROM amem_ledger), \
                    pg_current_xact_id()::text FROM namespace WHERE hash = $1 FOR UPDATE";
        let hash = name_hash(namespace);
        let rows = self.rows(lock, &[&hash.as_slice()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        // Another process may have brought the ledger up to date since this one connected to it.
        match get::<Option<i32>>(row, 5)? {
            Some(schema::VERSION) => {}
            Some(found) => return Err(schema::newer(self.settings, found).into()),
            None => return Err(Failure::Damaged("it does not say what it is".to_owned())),
        }
        self.note_transaction(row, 6);
        let (id, records, changes) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
        let (deleted, forgotten) = (get(row, 3)?, get(row, 4)?);
        Ok(Some(Locked { namespace, hash, id, records, changes, deleted, forgotten }))
    }

    /// As [`lock`](Self::lock), of a namespace that is to have records.
    async fn lock_or_make<'n>(&self, namespace: &'n Namespace) -> Result<Locked<'n>> {
        if let Some(locked) = self.lock(namespace).await? {
            return Ok(locked);
        }
        // Whoever makes it at the same time is waited for.
        let make = "INSERT INTO namespace (hash) VALUES ($1) ON CONFLICT DO NOTHING";
        self.execute(make, &[&name_hash(namespace).as_slice()]).await?;
        let locked = self.lock(namespace).await?;
        locked.ok_or_else(|| Failure::Damaged("a namespace cannot be found".to_owned()))
    }

    /// Writes what the namespace counts, and its name, which it has as long as it has records.
    async fn note_changes(&self, locked: &Locked<'_>) -> Result<()> {
        let note = "UPDATE namespace SET name = $2, records = $3, changes = $4, forgotten = $5 WHERE id = $1";
        let name = locked.namespace.as_str().as_bytes();
        self.execute(note, &[&locked.id, &name, &locked.records, &locked.changes, &locked.forgotten]).await?;
        Ok(())
    }

    /// The active records that have one of these hashes or keys, in the order of adding.
    async fn standing(&self, locked: &Locked<'_>, hashes: &[i64], keys: &[&[u8]]) -> Result<Vec<Found>> {
        let standing = concat!(
            "SELECT ",
            columns!(),
            " FROM record r LEFT JOIN version v \
             ON v.namespace = r.namespace AND v.record = r.seq AND v.number = r.version \
             WHERE r.namespace = $1 AND r.state = 0 AND r.seq IN (SELECT record FROM version \
             WHERE namespace = $1 AND hash = ANY($2) AND hash IS NOT NULL UNION SELECT seq FROM record \
             WHERE namespace = $1 AND key = ANY($3) AND key IS NOT NULL AND state = 0) ORDER BY r.seq"
        );
        all_found(&self.rows(standing, &[&locked.id, &hashes, &keys]).await?, &locked.hash)
    }

    async fn find(&self, namespace: &Namespace, id: RecordId) -> Result<Found> {
        let hash = name_hash(namespace);
        let rows = self.rows(of_namespace!("AND r.id = $2"), &[&hash.as_slice(), &id.to_bytes().as_slice()]).await?;
        all_found(&rows, &hash)?.pop().ok_or_else(|| unknown(namespace, id))
    }

    async fn find_many(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<HashMap<RecordId, Found>> {
        let bytes: Vec<Vec<u8>> = ids.iter().map(|id| id.to_bytes().to_vec()).collect();
        let by_ids = of_namespace!("AND r.id = ANY($2)");
        let hash = name_hash(namespace);
        let found = all_found(&self.rows(by_ids, &[&hash.as_slice(), &bytes]).await?, &hash)?;
        Ok(found.into_iter().filter_map(|found| Some((record_id(&found.record.id)?, found))).collect())
    }

    /// All texts that some records had.
    async fn versions(&self, locked: &Locked<'_>, records: &[i64]) -> Result<Vec<VersionRow>> {
        let all = concat!(
            "SELECT ",
            columns!(),
            " FROM record r LEFT JOIN version v ON v.namespace = r.namespace AND v.record = r.seq \
             WHERE r.namespace = $1 AND r.seq = ANY($2)"
        );
        let found = all_found(&self.rows(all, &[&locked.id, &records]).await?, &locked.hash)?;
        Ok(found.into_iter().map(|found| found.version).collect())
    }

    /// Takes records' links away; chunks that no other active record has are to be deleted.
    async fn delete_chunks(&self, locked: &Locked<'_>, records: &[i64], now: Timestamp) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let links = "DELETE FROM link WHERE namespace = $1 AND record = ANY($2) RETURNING chunk";
        let rows = self.rows(links, &[&locked.id, &records]).await?;
        let chunks: BTreeSet<&[u8]> = rows.iter().map(|row| get(row, 0)).collect::<Result<_>>()?;
        if chunks.is_empty() {
            return Ok(());
        }
        self.pend(locked, &chunks.into_iter().collect::<Vec<_>>(), records, now).await
    }

    /// Has chunks deleted from every store, unless an active record beside `records` has them.
    async fn pend(&self, locked: &Locked<'_>, chunks: &[&[u8]], records: &[i64], now: Timestamp) -> Result<()> {
        let pend = "INSERT INTO pending_deletion (chunk, store) SELECT c.chunk, s.id FROM unnest($1::bytea[]) c(chunk) \
                    CROSS JOIN store s WHERE NOT EXISTS (SELECT 1 FROM link o JOIN record r \
                    ON r.namespace = o.namespace AND r.seq = o.record WHERE o.chunk = c.chunk \
                    AND NOT (o.namespace = $2 AND o.record = ANY($3)) \
                    AND r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > $4)) \
                    ON CONFLICT (store, chunk) DO UPDATE SET number = EXCLUDED.number";
        self.execute(pend, &[&chunks, &locked.id, &records, &now.0]).await?;
        Ok(())
    }

    /// Writes rows of records, a bounded part of them with each statement.
    async fn put_records(&self, sql: &'static str, locked: &Locked<'_>, rows: &[&RecordRow]) -> Result<()> {
        let size = |row: &RecordRow| 128 + row.metadata.as_ref().map_or(0, Vec::len);
        for rows in parts(rows, size) {
            let column = |of: fn(&RecordRow) -> i64| rows.iter().map(|row| of(row)).collect::<Vec<_>>();
            let optional = |of: fn(&RecordRow) -> Option<i64>| rows.iter().map(|row| of(row)).collect::<Vec<_>>();
            let bytes =
                |of: fn(&RecordRow) -> Option<&[u8]>| rows.iter().map(|row| of(row)).collect::<Vec<Option<&[u8]>>>();
            let checksums: Vec<i64> = rows.iter().map(|row| row.checksum(&locked.hash)).collect();
            let params: [Param<'_>; 13] = [
                &locked.id,
                &column(|row| row.seq),
                &bytes(|row| Some(&row.id)),
                &bytes(|row| row.key.as_deref()),
                &bytes(|row| row.metadata.as_deref()),
                &rows.iter().map(|row| row.version).collect::<Vec<_>>(),
                &column(|row| row.created_at),
                &optional(|row| row.expires_at),
                &rows.iter().map(|row| row.state).collect::<Vec<_>>(),
                &optional(|row| row.ended_at),
                &bytes(|row| row.ended_by.as_deref()),
                &column(|row| row.revision),
                &checksums,
            ];
            self.put(sql, &params, rows.len()).await?;
        }
        Ok(())
    }

    /// As [`put_records`](Self::put_records), of their texts.
    async fn put_versions(&self, sql: &'static str, locked: &Locked<'_>, rows: &[&VersionRow]) -> Result<()> {
        for rows in parts(rows, |row| 64 + row.text.len()) {
            let checksums: Vec<i64> = rows.iter().map(|row| row.checksum(&locked.hash)).collect();
            let params: [Param<'_>; 8] = [
                &locked.id,
                &rows.iter().map(|row| row.record).collect::<Vec<_>>(),
                &rows.iter().map(|row| row.number).collect::<Vec<_>>(),
                &rows.iter().map(|row| row.text.as_slice()).collect::<Vec<_>>(),
                &rows.iter().map(|row| row.hash).collect::<Vec<_>>(),
                &rows.iter().map(|row| row.from_at).collect::<Vec<_>>(),
                &rows.iter().map(|row| row.until_at).collect::<Vec<_>>(),
                &checksums,
            ];
            self.put(sql, &params, rows.len()).await?;
        }
        Ok(())
    }

    async fn put(&self, sql: &'static str, params: &[Param<'_>], rows: usize) -> Result<()> {
        let written = self.execute(sql, params).await?;
        let all = usize::try_from(written).is_ok_and(|written| written == rows);
        if all { Ok(()) } else { Err(Failure::Damaged("a row that was read cannot be found again".to_owned())) }
    }

    async fn rows(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        match self.begin {
            Some(begin) if self.begun.set(()).is_ok() => self.session.begin_with_rows(begin, sql, params).await,
            _ => self.session.rows(sql, params).await,
        }
    }

    async fn execute(&self, sql: &'static str, params: &[Param<'_>]) -> Result<u64> {
        self.session.execute(sql, params).await
    }
}

const INSERT_RECORDS: &str = "INSERT INTO record (namespace, seq, id, key, metadata, version, created_at, expires_at, state, ended_at, ended_by, \
     revision, checksum) SELECT $1::bigint, u.* FROM unnest($2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[], \
     $6::integer[], $7::bigint[], $8::bigint[], $9::smallint[], $10::bigint[], $11::bytea[], $12::bigint[], \
     $13::bigint[]) u";

const UPDATE_RECORDS: &str = "UPDATE record r SET key = u.key, metadata = u.metadata, version = u.version, created_at = u.created_at, \
     expires_at = u.expires_at, state = u.state, ended_at = u.ended_at, ended_by = u.ended_by, revision = u.revision, \
     checksum = u.checksum FROM unnest($2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[], $6::integer[], \
     $7::bigint[], $8::bigint[], $9::smallint[], $10::bigint[], $11::bytea[], $12::bigint[], $13::bigint[]) \
     u(seq, id, key, metadata, version, created_at, expires_at, state, ended_at, ended_by, revision, checksum) \
     WHERE r.namespace = $1 AND r.seq = u.seq AND r.id = u.id";

const INSERT_VERSIONS: &str = "INSERT INTO version (namespace, record, number, text, hash, from_at, until_at, checksum) SELECT $1::bigint, u.* \
     FROM unnest($2::bigint[], $3::integer[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[]) u";

const UPDATE_VERSIONS: &str = "UPDATE version v SET text = u.text, hash = u.hash, from_at = u.from_at, until_at = u.until_at, \
     checksum = u.checksum FROM unnest($2::bigint[], $3::integer[], $4::bytea[], $5::bigint[], $6::bigint[], \
     $7::bigint[], $8::bigint[]) u(record, number, text, hash, from_at, until_at, checksum) \
     WHERE v.namespace = $1 AND v.record = u.record AND v.number = u.number";

/// The records that a call to add looks at, and those that it makes.
struct Batch {
    all: Vec<Candidate>,
    by_hash: HashMap<i64, Vec<usize>>,
    by_key: HashMap<Vec<u8>, Vec<usize>>,
}

struct Candidate {
    found: Found,
    is_new: bool,
    is_changed: bool,
}

impl Batch {
    fn of(standing: Vec<Found>) -> Self {
        let mut batch = Self { all: Vec::new(), by_hash: HashMap::new(), by_key: HashMap::new() };
        standing.into_iter().for_each(|found| batch.put(found, false));
        batch
    }

    fn insert(&mut self, found: Found) {
        self.put(found, true);
    }

    fn put(&mut self, found: Found, is_new: bool) {
        let at = self.all.len();
        if let Some(hash) = found.version.hash {
            self.by_hash.entry(hash).or_default().push(at);
        }
        if let Some(key) = &found.record.key {
            self.by_key.entry(key.clone()).or_default().push(at);
        }
        self.all.push(Candidate { found, is_new, is_changed: is_new });
    }

    /// The active record that says this under this key.
    fn saying(&self, hash: i64, key: Option<&[u8]>, text: &str, now: Timestamp) -> Option<&Found> {
        let candidates = self.by_hash.get(&hash)?.iter().map(|at| &self.all[*at].found);
        let says = |found: &&Found| found.record.key.as_deref() == key && found.version.text == text.as_bytes();
        candidates.filter(says).find(|found| found.is_active(now))
    }

    /// The active records with this key: one, or none. (Two, if a clock was set back over an expiry.)
    fn under(&mut self, key: Option<&[u8]>, now: Timestamp) -> Vec<usize> {
        let Some(places) = key.and_then(|key| self.by_key.get_mut(key)) else { return Vec::new() };
        let all = &self.all;
        // The others will not be active again.
        places.retain(|at| all.get(*at).is_some_and(|candidate| candidate.found.is_active(now)));
        places.clone()
    }

    /// A record that is to be changed.
    fn change(&mut self, at: usize) -> Option<&mut Found> {
        let candidate = self.all.get_mut(at)?;
        candidate.is_changed = true;
        Some(&mut candidate.found)
    }

    /// Those that stood before and were changed, and those that are new.
    fn changed(&self) -> (Vec<&Found>, Vec<&Found>) {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for Candidate { found, is_new, .. } in self.all.iter().filter(|candidate| candidate.is_changed) {
            if *is_new { &mut new } else { &mut old }.push(found);
        }
        (old, new)
    }
}

/// Ends a record's life. Its last text stood until then.
fn end(found: &mut Found, state: i16, now: Timestamp, by: Option<RecordId>, revision: i64) {
    // A clock that was set back must not turn the history around.
    let at = now.0.max(found.version.from_at);
    let record = &mut found.record;
    (record.state, record.ended_at, record.revision) = (state, Some(at), revision);
    record.ended_by = by.map(|by| by.to_bytes().to_vec());
    found.version.until_at.get_or_insert(at);
}

fn all_found(rows: &[Row], namespace: &NameHash) -> Result<Vec<Found>> {
    rows.iter().map(|row| Found::from_row(row, 0, namespace)).collect()
}

fn bounded(text: &str) -> amem_core::Result<&str> {
    if text.len() <= MAX_TEXT_BYTES {
        return Ok(text);
    }
    Err(Error::BadValue { what: "memory", value: format!("{} bytes", text.len()), expected: "at most 256 MiB" })
}

fn unknown(namespace: &Namespace, id: RecordId) -> Failure {
    Error::UnknownRecord { namespace: namespace.clone(), id }.into()
}

/// Cuts rows into parts that are not too large for one statement.
fn parts<'r, T>(mut rows: &'r [&'r T], size: impl Fn(&T) -> usize) -> Vec<&'r [&'r T]> {
    let mut parts = Vec::new();
    while !rows.is_empty() {
        let mut bytes = 0;
        let fits = |row: &&&T| {
            bytes += size(row);
            bytes <= STATEMENT_BYTES
        };
        let count = rows.iter().take(STATEMENT_ROWS).take_while(fits).count().max(1);
        let (part, rest) = rows.split_at(count);
        parts.push(part);
        rows = rest;
    }
    parts
}
