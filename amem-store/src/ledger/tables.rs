//! What a ledger does, each within one transaction.

use amem_core::{
    Added, Amounts, Change, Changes, ChunkId, Error, Listing, Metadata, Namespace, NewRecord, Outcome, Page,
    PendingDeletion, Query, Record, RecordId, RecordStats, Revision, SavedIndex, State, Timestamp, UsageEvent,
    UsageQuery, UsageTotal, Version,
};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Params, Row, params};

use super::checksum::{checksum_of, first_bits};

/// Why something was not done.
pub(super) enum Failure {
    /// The ledger's rules forbid it.
    Refused(Error),
    /// What is in the file is not what was written.
    Damaged(String),
    /// SQLite could not.
    Sqlite(rusqlite::Error),
    /// The ledger could not be opened, or not for writing.
    Store(crate::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

type Result<T, E = Failure> = std::result::Result<T, E>;

/// The tables as one transaction sees them.
pub(super) struct Tables<'a>(pub(super) &'a Connection);

/// A record with the text it has now, and where it stands in the tables.
pub(super) struct Found {
    seq: i64,
    version: i64,
    stored: Record,
}

const ACTIVE: i64 = 0;
const SUPERSEDED: i64 = 1;
const FORGOTTEN: i64 = 2;

/// The columns that [`Found::from_row`] reads, of records `r` and versions `v`.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT r.seq, v.seq, r.id, r.namespace, v.text, r.key, r.created_at, v.from_at, r.expires_at, r.state, \
             r.ended_at, r.ended_by, r.metadata, v.record = r.seq AND r.checksum = ",
            record_checksum!(),
            " AND v.checksum = ",
            version_checksum!(),
            " FROM record r JOIN version v ON v.seq = ",
            $rest
        )
    };
}

impl Found {
    fn from_row(row: &Row<'_>) -> Result<Self> {
        if row.get::<_, Option<bool>>(13)? != Some(true) {
            return Err(Failure::Damaged(format!("{} is not what was written", record_name(row, 2))));
        }
        let at = Timestamp(row.get::<_, Option<i64>>(10)?.unwrap_or_default());
        let state = match row.get(9)? {
            ACTIVE => State::Active,
            SUPERSEDED => State::Superseded { by: RecordId::from_bytes(row.get(11)?), at },
            FORGOTTEN => State::Forgotten { at },
            other => return Err(rusqlite::Error::IntegralValueOutOfRange(9, other).into()),
        };
        let (id, created_at) = (RecordId::from_bytes(row.get(2)?), Timestamp(row.get(6)?));
        let mut stored = Record::new(id, namespace(row, 3)?, row.get::<_, String>(4)?, created_at);
        stored.key = row.get(5)?;
        stored.metadata = metadata(row, 12)?;
        stored.updated_at = Timestamp(row.get(7)?);
        stored.expires_at = row.get::<_, Option<i64>>(8)?.map(Timestamp);
        stored.state = state;
        Ok(Self { seq: row.get(0)?, version: row.get(1)?, stored })
    }

    /// The record as it is at `now`.
    pub(super) fn record(self, now: Timestamp) -> Record {
        let mut record = self.stored;
        if let (State::Active, Some(at)) = (record.state, record.expires_at.filter(|at| *at <= now)) {
            record.state = State::Expired { at };
        }
        record
    }
}

impl Tables<'_> {
    pub(super) fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> Result<Vec<Added>> {
        new.iter().map(|new| self.add_one(namespace, new, now)).collect()
    }

    fn add_one(&self, namespace: &Namespace, new: &NewRecord, now: Timestamp) -> Result<Added> {
        let (text, key, is_over) = (new.check()?, new.key.as_deref(), new.is_over(now));
        if !is_over && let Some(same) = self.saying(namespace, key, text, now)? {
            let changed = new.restates(&same.stored, now).of(&same.stored)?;
            if changed == same.stored {
                return Ok(Added { record: changed, outcome: Outcome::Duplicate });
            }
            return Ok(Added { record: self.replace(same, changed, now)?.stored, outcome: Outcome::Changed });
        }
        let (id, revision) = (RecordId::new(), self.next_revision()?);
        let (created_at, updated_at) = new.moments(now);
        let standing = self.under(namespace, key.filter(|_| !is_over), now)?;
        let newer = standing.iter().map(|found| &found.stored).filter(|record| new.is_older_than(record, now));
        let newer = newer.max_by_key(|record| record.updated_at);
        let ended = newer.map(|newer| (newer.id, updated_at.max(newer.created_at)));
        let mut outcome = Outcome::New;
        for older in standing.iter().filter(|_| ended.is_none()) {
            let at = updated_at.max(older.stored.updated_at);
            self.end(older, SUPERSEDED, at, Some(id), revision)?;
            self.delete_chunks(older.seq, now)?;
            outcome = Outcome::Superseded(older.stored.id);
        }
        let mut record = Record::new(id, namespace.clone(), text, created_at);
        record.key.clone_from(&new.key);
        record.metadata.clone_from(&new.metadata);
        record.expires_at = new.expires_at;
        record.updated_at = updated_at;
        let json = json(&new.metadata)?;
        let expires_at = new.expires_at.map(|at| at.0);
        let insert = "INSERT INTO record (id, namespace, key, metadata, version, created_at, expires_at, state, revision) \
                      VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, 0, ?7)";
        let values = params![id.to_bytes(), namespace.as_str(), key, json, created_at.0, expires_at, revision];
        self.execute(insert, values)?;
        let seq = self.0.last_insert_rowid();
        let version = self.begin_version(seq, text, Some(hash(namespace, key, text)), updated_at)?;
        self.execute("UPDATE record SET version = ?2 WHERE seq = ?1", params![seq, version])?;
        self.seal(seq)?;
        let mut found = Found { seq, version, stored: record };
        if let Some((by, at)) = ended {
            self.end(&found, SUPERSEDED, at, Some(by), revision)?;
            found.stored.state = State::Superseded { by, at };
        }
        Ok(Added { record: found.record(now), outcome })
    }

    pub(super) fn find(&self, namespace: &Namespace, id: RecordId) -> Result<Found> {
        self.get(namespace, id)?.ok_or_else(|| Error::UnknownRecord { namespace: namespace.clone(), id }.into())
    }

    /// A record, if it is there.
    pub(super) fn get(&self, namespace: &Namespace, id: RecordId) -> Result<Option<Found>> {
        let by_id = select!("r.version WHERE r.id = ?1 AND r.namespace = ?2");
        Ok(self.all(by_id, params![id.to_bytes(), namespace.as_str()])?.pop())
    }

    pub(super) fn page(&self, namespace: &Namespace, listing: &Listing) -> Result<Page> {
        let limit = listing.check()?;
        let mut after = match listing.after {
            Some(id) => self.find(namespace, id)?.seq,
            None => 0,
        };
        // Filters are asked here, batch by batch: one may pass few records of many.
        let batch = if listing.filter.is_some() { limit.max(256) } else { limit + 1 };
        let mut records = Vec::new();
        loop {
            let found = self.batch(namespace, listing.query, after, batch)?;
            let last = found.len() < batch;
            for found in found {
                after = found.seq;
                let record = match listing.query {
                    Query::At(moment) => found.record(moment),
                    _ => found.record(Timestamp::now()),
                };
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
    fn batch(&self, namespace: &Namespace, query: Query, after: i64, limit: usize) -> Result<Vec<Found>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        match query {
            Query::At(moment) => {
                let standing = select!(
                    "(SELECT max(seq) FROM version WHERE record = r.seq AND from_at <= ?2) \
                     WHERE r.namespace = ?1 AND r.seq > ?3 AND r.state <> 2 AND (r.state = 0 OR r.ended_at > ?2) \
                     AND (r.expires_at IS NULL OR r.expires_at > ?2) ORDER BY r.seq LIMIT ?4"
                );
                let mut found = self.all(standing, params![namespace.as_str(), moment.0, after, limit])?;
                // At that moment nothing had taken its place yet.
                found.iter_mut().for_each(|found| found.stored.state = State::Active);
                Ok(found)
            }
            _ => {
                let all = select!("r.version WHERE r.namespace = ?1 AND r.seq > ?2 ORDER BY r.seq LIMIT ?3");
                self.all(all, params![namespace.as_str(), after, limit])
            }
        }
    }

    pub(super) fn count(&self, namespace: &Namespace, now: Timestamp) -> Result<usize> {
        let count = "SELECT count(*) FROM record WHERE namespace = ?1 AND state = 0 \
                     AND (expires_at IS NULL OR expires_at > ?2)";
        let counted = self.rows(count, params![namespace.as_str(), now.0], |row| Ok(row.get::<_, i64>(0)?))?;
        Ok(counted.first().map_or(0, |count| count.unsigned_abs() as usize))
    }

    pub(super) fn change(
        &self,
        namespace: &Namespace,
        id: RecordId,
        change: &Change,
        now: Timestamp,
    ) -> Result<Record> {
        change.check()?;
        let found = self.find(namespace, id)?;
        let (seq, version) = (found.seq, found.version);
        let record = found.record(now);
        if record.state != State::Active {
            return Err(Error::NotActive { id, state: record.state.name() }.into());
        }
        let changed = change.of(&record)?;
        if changed == record {
            return Ok(record);
        }
        let (key, has_other_key) = (changed.key.as_deref(), changed.key != record.key);
        if has_other_key && let Some(other) = self.under(namespace, key, now)?.first() {
            return Err(Error::KeyTaken { existing: other.stored.id }.into());
        }
        if (has_other_key || changed.text != record.text)
            && let Some(same) = self.saying(namespace, key, &changed.text, now)?
        {
            return Err(Error::SameText { existing: same.stored.id }.into());
        }
        let stored = self.replace(Found { seq, version, stored: record }, changed, now)?;
        Ok(stored.record(now))
    }

    /// Makes an active record what it is to be from now on.
    fn replace(&self, found: Found, changed: Record, now: Timestamp) -> Result<Found> {
        let Found { seq, mut version, stored: before } = found;
        let mut record = changed;
        record.updated_at = before.updated_at;
        if record.key != before.key {
            self.rehash(seq, &record)?;
        }
        let says_other = record.text != before.text;
        if says_other {
            // A clock that was set back must not turn the history around.
            record.updated_at = now.max(before.updated_at);
            self.execute("UPDATE version SET until_at = ?2 WHERE seq = ?1", params![version, record.updated_at.0])?;
            self.seal_version(version)?;
            let hash = hash(&record.namespace, record.key.as_deref(), &record.text);
            version = self.begin_version(seq, &record.text, Some(hash), record.updated_at)?;
        }
        let expires_at = record.expires_at.map(|at| at.0);
        let change =
            "UPDATE record SET key = ?2, metadata = ?3, version = ?4, expires_at = ?5, revision = ?6 WHERE seq = ?1";
        let (json, revision) = (json(&record.metadata)?, self.next_revision()?);
        self.execute(change, params![seq, record.key, json, version, expires_at, revision])?;
        self.seal(seq)?;
        if says_other {
            self.delete_chunks(seq, now)?;
        } else {
            self.execute("UPDATE kv_link SET expires_at = ?2 WHERE record = ?1", params![seq, expires_at])?;
        }
        Ok(Found { seq, version, stored: record })
    }

    /// Writes the hashes of a record's texts anew, for its key is another one.
    fn rehash(&self, seq: i64, record: &Record) -> Result<()> {
        let texts =
            concat!("SELECT v.seq, v.text, v.checksum IS ", version_checksum!(), " FROM version v WHERE v.record = ?1");
        let texts = self.rows(texts, [seq], |row| {
            // A text that is not what was written must not get a checksum that says so.
            if !row.get::<_, bool>(2)? {
                return Err(Failure::Damaged(format!("the history of record {} is not what was written", record.id)));
            }
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        for (version, text) in texts {
            let hash = hash(&record.namespace, record.key.as_deref(), &text);
            self.execute("UPDATE version SET hash = ?2 WHERE seq = ?1", params![version, hash])?;
            self.seal_version(version)?;
        }
        Ok(())
    }

    pub(super) fn forget_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Result<Vec<Record>> {
        for id in ids {
            let found = match self.find(namespace, *id) {
                Err(failure @ (Failure::Damaged(_) | Failure::Refused(Error::UnknownRecord { .. }))) => {
                    // Without a text it is not found.
                    let record = self.place(namespace, *id)?.ok_or(failure)?;
                    self.forget_damaged(record, now)?;
                    continue;
                }
                found => found?,
            };
            if matches!(found.stored.state, State::Forgotten { .. }) {
                continue;
            }
            let at = now.max(found.stored.updated_at);
            self.end(&found, FORGOTTEN, at, None, self.next_revision()?)?;
            self.execute("UPDATE record SET key = NULL, metadata = NULL WHERE seq = ?1", [found.seq])?;
            self.execute("UPDATE version SET text = '', hash = NULL WHERE record = ?1", [found.seq])?;
            self.seal(found.seq)?;
            let seal = concat!("UPDATE version AS v SET checksum = ", version_checksum!(), " WHERE v.record = ?1");
            self.execute(seal, [found.seq])?;
            self.delete_chunks(found.seq, now)?;
            // It holds the words of what was forgotten.
            self.execute("DELETE FROM saved_index WHERE namespace = ?1", [namespace.as_str()])?;
            self.note_forgotten()?;
        }
        ids.iter().map(|id| Ok(self.find(namespace, *id)?.record(now))).collect()
    }

    pub(super) fn forget_key(&self, namespace: &Namespace, key: &str, now: Timestamp) -> Result<Vec<Record>> {
        let ids = "SELECT id FROM record WHERE namespace = ?1 AND key = ?2 ORDER BY seq";
        let ids = self
            .rows(ids, params![namespace.as_str(), key], |row| Ok(RecordId::from_bytes(row.get::<_, [u8; 16]>(0)?)))?;
        self.forget_many(namespace, &ids, now)
    }

    /// Where a record stands, even one that is not what was written.
    fn place(&self, namespace: &Namespace, id: RecordId) -> Result<Option<i64>> {
        let by_id = "SELECT seq FROM record WHERE id = ?1 AND namespace = ?2";
        Ok(self.rows(by_id, params![id.to_bytes(), namespace.as_str()], |row| Ok(row.get(0)?))?.pop())
    }

    /// Forgets a record that is not what was written, and makes a sound one of it that says nothing. No column of it is
    /// relied on but its id and its namespace.
    fn forget_damaged(&self, record: i64, now: Timestamp) -> Result<()> {
        // Its texts, and the one that it says is its own, unless that is soundly, or also by its own account, another's.
        let texts = concat!(
            "UPDATE version AS v SET text = '', hash = NULL, record = ?1, \
             from_at = CASE typeof(from_at) WHEN 'integer' THEN from_at ELSE ?2 END, \
             until_at = CASE typeof(until_at) WHEN 'integer' THEN until_at ELSE ?2 END \
             WHERE v.record = ?1 OR v.seq = (SELECT version FROM record WHERE seq = ?1) AND v.checksum IS NOT ",
            version_checksum!(),
            " AND NOT EXISTS (SELECT 1 FROM record other WHERE other.version = v.seq AND other.seq <> ?1)"
        );
        self.execute(texts, params![record, now.0])?;
        let last = "SELECT seq FROM version WHERE record = ?1 ORDER BY seq DESC LIMIT 1";
        let version = match self.rows(last, [record], |row| Ok(row.get(0)?))?.pop() {
            Some(version) => version,
            None => self.begin_version(record, "", None, now)?,
        };
        let change = "UPDATE record SET state = ?2, ended_at = ?3, ended_by = NULL, key = NULL, metadata = NULL, \
                      version = ?4, revision = ?5, \
                      created_at = CASE typeof(created_at) WHEN 'integer' THEN created_at ELSE ?3 END, \
                      expires_at = CASE typeof(expires_at) WHEN 'integer' THEN expires_at END WHERE seq = ?1";
        self.execute(change, params![record, FORGOTTEN, now.0, version, self.next_revision()?])?;
        self.seal(record)?;
        let seal = concat!("UPDATE version AS v SET checksum = ", version_checksum!(), " WHERE v.record = ?1");
        self.execute(seal, [record])?;
        self.delete_chunks(record, now)?;
        // Which index has its words is as uncertain as the rest. All can be built again.
        self.execute("DELETE FROM saved_index", [])?;
        self.note_forgotten()
    }

    pub(super) fn delete_namespace(&self, namespace: &Namespace) -> Result<usize> {
        let name = [namespace.as_str()];
        self.execute("UPDATE usage SET namespace = NULL WHERE namespace = ?1", name)?;
        let used = self.0.changes() > 0;
        self.execute("DELETE FROM saved_index WHERE namespace = ?1", name)?;
        let was_indexed = self.0.changes() > 0;
        let records =
            self.rows("SELECT seq FROM record WHERE namespace = ?1", name, |row| Ok(row.get::<_, i64>(0)?))?;
        if records.is_empty() {
            if used || was_indexed {
                // Its name was there. By a new number, so that the log is wiped though no record has changed.
                self.next_revision()?;
                self.note_forgotten()?;
            }
            return Ok(0);
        }
        let now = Timestamp::now();
        for record in &records {
            self.delete_chunks(*record, now)?;
            self.execute("DELETE FROM version WHERE record = ?1", [record])?;
        }
        self.execute("DELETE FROM record WHERE namespace = ?1", name)?;
        let note = "INSERT OR REPLACE INTO deleted_namespace (hash, revision) VALUES (?1, ?2)";
        self.execute(note, params![name_hash(namespace), self.next_revision()?])?;
        self.note_forgotten()?;
        Ok(records.len())
    }

    pub(super) fn history(&self, namespace: &Namespace, id: RecordId) -> Result<Vec<Version>> {
        let found = self.find(namespace, id)?;
        let select = concat!(
            "SELECT v.text, v.from_at, v.until_at, v.checksum = ",
            version_checksum!(),
            " FROM version v WHERE v.record = ?1 ORDER BY v.seq"
        );
        self.rows(select, [found.seq], |row| {
            if row.get::<_, Option<bool>>(3)? != Some(true) {
                return Err(Failure::Damaged(format!("the history of record {id} is not what was written")));
            }
            let until = row.get::<_, Option<i64>>(2)?.map(Timestamp);
            Ok(Version { text: row.get(0)?, from: Timestamp(row.get(1)?), until })
        })
    }

    pub(super) fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.rows("SELECT DISTINCT namespace FROM record ORDER BY namespace", [], |row| Ok(namespace(row, 0)?))
    }

    pub(super) fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> Result<Changes> {
        let changed = select!("r.version WHERE r.namespace = ?1 AND r.revision > ?2 ORDER BY r.revision, r.seq");
        // SQLite's integers end before a revision's do, and no ledger gets there.
        let since = i64::try_from(since.0).unwrap_or(i64::MAX);
        let found = self.all(changed, params![namespace.as_str(), since])?;
        let revision: i64 = self.0.query_row("SELECT last_change FROM ledger", [], |row| row.get(0))?;
        let deletion = "SELECT 1 FROM deleted_namespace WHERE hash = ?1 AND revision > ?2";
        let deleted = since > 0 && !self.rows(deletion, params![name_hash(namespace), since], |_| Ok(()))?.is_empty();
        let records = found.into_iter().map(|found| found.record(now)).collect();
        Ok(Changes { deleted, records, revision: Revision(revision.unsigned_abs()) })
    }

    pub(super) fn link(&self, namespace: &Namespace, links: &[(RecordId, ChunkId)], now: Timestamp) -> Result<()> {
        for (id, chunk) in links {
            let found = self.find(namespace, *id)?;
            let (seq, expires_at) = (found.seq, found.stored.expires_at.map(|at| at.0));
            if found.record(now).state == State::Active {
                let insert = "INSERT OR IGNORE INTO kv_link (chunk, record, expires_at) VALUES (?1, ?2, ?3)";
                self.execute(insert, params![chunk.0, seq, expires_at])?;
                self.execute("DELETE FROM pending_deletion WHERE chunk = ?1", [chunk.0])?;
            } else {
                // It was forgotten, say, while its KV was being computed.
                self.delete_chunk(chunk, now)?;
            }
        }
        Ok(())
    }

    pub(super) fn pending_deletions(&self, now: Timestamp) -> Result<Vec<PendingDeletion>> {
        // That a record expired is written nowhere, so its links are still there.
        let pending = "SELECT chunk, number FROM pending_deletion UNION \
                       SELECT chunk, 0 FROM kv_link expired WHERE expires_at <= ?1 \
                       AND chunk NOT IN (SELECT chunk FROM pending_deletion) AND NOT EXISTS ( \
                       SELECT 1 FROM kv_link other JOIN record r ON r.seq = other.record \
                       WHERE other.chunk = expired.chunk AND r.state = 0 \
                       AND (r.expires_at IS NULL OR r.expires_at > ?1)) ORDER BY chunk";
        self.rows(pending, [now.0], |row| Ok(PendingDeletion { chunk: ChunkId(row.get(0)?), number: row.get(1)? }))
    }

    pub(super) fn confirm_deleted(&self, deletions: &[PendingDeletion], now: Timestamp) -> Result<()> {
        for PendingDeletion { chunk, number } in deletions {
            let confirm = "DELETE FROM pending_deletion WHERE chunk = ?1 AND number = ?2";
            self.execute(confirm, params![chunk.0, number])?;
            self.execute("DELETE FROM kv_link WHERE chunk = ?1 AND expires_at <= ?2", params![chunk.0, now.0])?;
        }
        Ok(())
    }

    pub(super) fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> Result<Vec<bool>> {
        let linked = "SELECT 1 FROM kv_link JOIN record r ON r.seq = kv_link.record WHERE kv_link.chunk = ?1 \
                      AND r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > ?2) LIMIT 1";
        let is_linked = |chunk: &ChunkId| Ok(!self.rows(linked, params![chunk.0, now.0], |_| Ok(()))?.is_empty());
        chunks.iter().map(is_linked).collect()
    }

    pub(super) fn stats(&self, namespace: &Namespace, now: Timestamp) -> Result<RecordStats> {
        let count = "SELECT r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > ?2), r.state, count(*), \
                     coalesce(sum(octet_length(v.text)), 0) FROM record r JOIN version v ON v.seq = r.version \
                     WHERE r.namespace = ?1 GROUP BY 1, 2";
        let mut stats = RecordStats::default();
        self.rows(count, params![namespace.as_str(), now.0], |row| {
            let records = row.get::<_, i64>(2)?.unsigned_abs() as usize;
            stats.text_bytes += row.get::<_, i64>(3)?.unsigned_abs();
            match (row.get(0)?, row.get(1)?) {
                (true, _) => stats.active += records,
                (false, ACTIVE) => stats.expired += records,
                (false, SUPERSEDED) => stats.superseded += records,
                (false, _) => stats.forgotten += records,
            }
            Ok(())
        })?;
        Ok(stats)
    }

    pub(super) fn record_usage(&self, events: &[UsageEvent]) -> Result<()> {
        let insert = "INSERT OR IGNORE INTO usage (id, namespace, at, requests, memory_ops, reused_tokens, repaired_tokens, \
                      prefilled_tokens, generated_tokens, chunks, reused_chunks) \
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
        for event in events {
            let [a, b, c, d, e, f, g, h] = event.amounts.bounded().to_array().map(|amount| amount as i64);
            let (id, namespace) = (event.id.to_bytes(), event.namespace.as_str());
            if self.0.prepare_cached(insert)?.execute(params![id, namespace, event.at.0, a, b, c, d, e, f, g, h])? > 0 {
                let seal = concat!("UPDATE usage AS u SET checksum = ", usage_checksum!(), " WHERE u.id = ?1");
                self.execute(seal, [id])?;
            }
        }
        Ok(())
    }

    pub(super) fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>> {
        let select = concat!(
            "SELECT namespace, count(*), min(at), max(at), sum(requests), sum(memory_ops), sum(reused_tokens), \
             sum(repaired_tokens), sum(prefilled_tokens), sum(generated_tokens), sum(chunks), sum(reused_chunks), \
             min(u.checksum = ",
            usage_checksum!(),
            ") FROM usage u WHERE (?1 IS NULL OR namespace = ?1) AND at >= ?2 AND at < ?3 \
             GROUP BY namespace ORDER BY namespace"
        );
        let asked = query.namespace.as_ref().map(Namespace::as_str);
        let [since, until] = [query.since.map_or(i64::MIN, |at| at.0), query.until.map_or(i64::MAX, |at| at.0)];
        self.rows(select, params![asked, since, until], |row| {
            if row.get::<_, Option<bool>>(12)? != Some(true) {
                return Err(Failure::Damaged("an event of usage is not what was written".to_owned()));
            }
            let name: Option<String> = row.get(0)?;
            let owner = name.map(|_| namespace(row, 0)).transpose()?;
            let mut amounts = [0; 8];
            for (index, amount) in amounts.iter_mut().enumerate() {
                *amount = row.get::<_, i64>(4 + index)?.unsigned_abs();
            }
            let mut total = UsageTotal::new(owner, Timestamp(row.get(2)?));
            total.events = row.get::<_, i64>(1)?.unsigned_abs();
            total.amounts = Amounts::from_array(amounts);
            total.last = Timestamp(row.get(3)?);
            Ok(total)
        })
    }

    /// Keeps an index, unless something that may be in it was forgotten since.
    pub(super) fn save_index(&self, namespace: &Namespace, name: &str, index: &SavedIndex) -> Result<bool> {
        let revision = i64::try_from(index.revision.0).unwrap_or(i64::MAX);
        let forgotten = "SELECT 1 FROM record WHERE namespace = ?1 AND revision > ?2 AND state = 2 UNION ALL \
                         SELECT 1 FROM deleted_namespace WHERE hash = ?3 AND revision > ?2 LIMIT 1";
        let since = params![namespace.as_str(), revision, name_hash(namespace)];
        if !self.rows(forgotten, since, |_| Ok(()))?.is_empty() {
            return Ok(false);
        }
        self.execute("DELETE FROM saved_index WHERE namespace = ?1 AND name = ?2", [namespace.as_str(), name])?;
        let insert = "INSERT INTO saved_index (namespace, name, revision, bytes) VALUES (?1, ?2, ?3, ?4)";
        self.execute(insert, params![namespace.as_str(), name, revision, index.bytes])?;
        let seal = concat!("UPDATE saved_index AS i SET checksum = ", saved_index_checksum!(), " WHERE i.seq = ?1");
        self.execute(seal, [self.0.last_insert_rowid()])?;
        Ok(true)
    }

    /// The index that was kept last. A damaged one is none, for it can be built again.
    pub(super) fn saved_index(&self, namespace: &Namespace, name: &str) -> Result<Option<SavedIndex>> {
        let select = "SELECT seq, revision, checksum FROM saved_index WHERE namespace = ?1 AND name = ?2";
        let found = self.rows(select, [namespace.as_str(), name], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })?;
        let Some(&(seq, revision, checksum)) = found.first() else { return Ok(None) };
        // Read straight into its place: SQLite would give all of it, which may be large, in memory of its own.
        let blob = self.0.blob_open("main", "saved_index", "bytes", seq, true)?;
        let mut bytes = vec![0; blob.len()];
        blob.read_at_exact(&mut bytes, 0)?;
        let [namespace, name] = [namespace.as_str(), name].map(|text| ValueRef::Text(text.as_bytes()));
        let sound = checksum == checksum_of([namespace, name, ValueRef::Integer(revision), ValueRef::Blob(&bytes)]);
        Ok(sound.then(|| SavedIndex { revision: Revision(revision.unsigned_abs()), bytes }))
    }

    /// The active record of the namespace that says this under this key.
    fn saying(&self, namespace: &Namespace, key: Option<&str>, text: &str, now: Timestamp) -> Result<Option<Found>> {
        // By the hash to the version, and from there to its record. The plus signs keep SQLite from any other way, for
        // the other indexes lead through a namespace's every record.
        let same = select!(
            "r.version WHERE v.hash = ?1 AND v.text = ?2 AND r.seq = v.record AND +r.namespace = ?3 \
             AND +r.key IS ?4 AND +r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > ?5) ORDER BY +r.seq LIMIT 1"
        );
        let hash = hash(namespace, key, text);
        Ok(self.all(same, params![hash, text, namespace.as_str(), key, now.0])?.pop())
    }

    /// The active records with this key: one, or none. (Two, if a clock was set back over an expiry.)
    fn under(&self, namespace: &Namespace, key: Option<&str>, now: Timestamp) -> Result<Vec<Found>> {
        let Some(key) = key else { return Ok(Vec::new()) };
        let active = select!(
            "r.version WHERE r.namespace = ?1 AND r.key = ?2 AND r.key IS NOT NULL AND r.state = 0 \
             AND (r.expires_at IS NULL OR r.expires_at > ?3) ORDER BY r.seq"
        );
        self.all(active, params![namespace.as_str(), key, now.0])
    }

    fn end(&self, found: &Found, state: i64, at: Timestamp, by: Option<RecordId>, revision: i64) -> Result<()> {
        let change = "UPDATE record SET state = ?2, ended_at = ?3, ended_by = ?4, revision = ?5 WHERE seq = ?1";
        self.execute(change, params![found.seq, state, at.0, by.map(RecordId::to_bytes), revision])?;
        let close = "UPDATE version SET until_at = ?2 WHERE seq = ?1 AND until_at IS NULL";
        self.execute(close, params![found.version, at.0])?;
        self.seal(found.seq)?;
        self.seal_version(found.version)
    }

    /// Gives a record another text, and says which version that is.
    fn begin_version(&self, record: i64, text: &str, hash: Option<i64>, from: Timestamp) -> Result<i64> {
        let insert = "INSERT INTO version (record, text, hash, from_at) VALUES (?1, ?2, ?3, ?4)";
        self.execute(insert, params![record, text, hash, from.0])?;
        let version = self.0.last_insert_rowid();
        self.seal_version(version)?;
        Ok(version)
    }

    /// Takes a record's links away; chunks that no other active record has are to be deleted.
    fn delete_chunks(&self, record: i64, now: Timestamp) -> Result<()> {
        let delete = "INSERT OR REPLACE INTO pending_deletion (chunk, number) \
                    SELECT chunk, random() FROM kv_link mine WHERE record = ?1 AND NOT EXISTS ( \
                    SELECT 1 FROM kv_link other JOIN record r ON r.seq = other.record \
                    WHERE other.chunk = mine.chunk AND other.record <> ?1 AND r.state = 0 \
                    AND (r.expires_at IS NULL OR r.expires_at > ?2))";
        self.execute(delete, params![record, now.0])?;
        self.execute("DELETE FROM kv_link WHERE record = ?1", [record])
    }

    /// Has a chunk deleted unless an active record has it.
    fn delete_chunk(&self, chunk: &ChunkId, now: Timestamp) -> Result<()> {
        let delete = "INSERT OR REPLACE INTO pending_deletion (chunk, number) SELECT ?1, random() WHERE NOT EXISTS ( \
                    SELECT 1 FROM kv_link JOIN record r ON r.seq = kv_link.record \
                    WHERE kv_link.chunk = ?1 AND r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > ?2))";
        self.execute(delete, params![chunk.0, now.0])
    }

    fn next_revision(&self) -> Result<i64> {
        let next = "UPDATE ledger SET last_change = last_change + 1 RETURNING last_change";
        Ok(self.0.prepare_cached(next)?.query_row([], |row| row.get(0))?)
    }

    /// Notes that the last change has left something to be wiped.
    fn note_forgotten(&self) -> Result<()> {
        self.execute("UPDATE ledger SET forgotten = last_change", [])
    }

    /// The last change that left something to be wiped; 0 for none.
    pub(super) fn last_forgotten(&self) -> Result<i64> {
        Ok(self.0.prepare_cached("SELECT forgotten FROM ledger")?.query_row([], |row| row.get(0))?)
    }

    /// Writes the checksum of a record that was found sound before it was changed.
    fn seal(&self, record: i64) -> Result<()> {
        self.execute(concat!("UPDATE record AS r SET checksum = ", record_checksum!(), " WHERE r.seq = ?1"), [record])
    }

    /// Writes the checksum of a version that was found sound before it was changed.
    fn seal_version(&self, version: i64) -> Result<()> {
        let seal = concat!("UPDATE version AS v SET checksum = ", version_checksum!(), " WHERE v.seq = ?1");
        self.execute(seal, [version])
    }

    fn execute(&self, sql: &str, params: impl Params) -> Result<()> {
        self.0.prepare_cached(sql)?.execute(params)?;
        Ok(())
    }

    fn all(&self, sql: &str, params: impl Params) -> Result<Vec<Found>> {
        self.rows(sql, params, Found::from_row)
    }

    fn rows<T>(&self, sql: &str, params: impl Params, mut read: impl FnMut(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
        let mut statement = self.0.prepare_cached(sql)?;
        let (mut rows, mut all) = (statement.query(params)?, Vec::new());
        while let Some(row) = rows.next()? {
            all.push(read(row)?);
        }
        Ok(all)
    }
}

/// Metadata as they stand in a row.
fn json(metadata: &Metadata) -> Result<Option<String>> {
    let json = (!metadata.is_empty()).then(|| serde_json::to_string(metadata)).transpose();
    Ok(json.map_err(|error| Error::Ledger(error.into()))?)
}

/// What equal texts under equal keys of one namespace have in common. Others may have it too, by chance.
fn hash(namespace: &Namespace, key: Option<&str>, text: &str) -> i64 {
    text_hash(namespace.as_str().as_bytes(), key.unwrap_or_default().as_bytes(), text.as_bytes())
}

/// As [`hash`], of what is in the file.
pub(super) fn text_hash(namespace: &[u8], key: &[u8], text: &[u8]) -> i64 {
    let mut hash = blake3::Hasher::new();
    for part in [namespace, key] {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hash.update(text);
    first_bits(&hash)
}

/// What to call the record of a row, whose id may be damaged too.
pub(super) fn record_name(row: &Row<'_>, id: usize) -> String {
    row.get(id).map_or_else(|_| "a record".to_owned(), |id| format!("record {}", RecordId::from_bytes(id)))
}

/// What a deleted namespace is known by: its name is forgotten with it.
fn name_hash(namespace: &Namespace) -> [u8; 32] {
    blake3::hash(namespace.as_str().as_bytes()).into()
}

fn metadata(row: &Row<'_>, column: usize) -> rusqlite::Result<Metadata> {
    let json: Option<String> = row.get(column)?;
    let parsed = json.map(|json| serde_json::from_str(&json)).transpose();
    parsed.map(Option::unwrap_or_default).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

fn namespace(row: &Row<'_>, column: usize) -> rusqlite::Result<Namespace> {
    let name: String = row.get(column)?;
    Namespace::new(name).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}
