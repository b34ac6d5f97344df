//! Adding, changing and forgetting records.

use std::collections::{BTreeSet, HashMap};

use amem_core::{Added, Change, Error, Metadata, Namespace, NewRecord, Outcome, Record, RecordId, State, Timestamp};
use futures_util::future;

use super::super::rows::{ACTIVE, FORGOTTEN, Found, RecordRow, SUPERSEDED, VersionRow, get, record_id, text_hash};
use super::batch::Batch;
use super::write::{INSERT_RECORDS, INSERT_VERSIONS, UPDATE_RECORDS, UPDATE_VERSIONS};
use super::{Failure, Locked, MAX_TEXT_BYTES, Result, Tables, unknown};

impl Tables<'_> {
    pub(in crate::postgres) async fn add(
        &self,
        namespace: &Namespace,
        new: &[NewRecord],
        now: Timestamp,
    ) -> Result<Vec<Added>> {
        let texts = new.iter().map(|new| bounded(new.check()?)).collect::<amem_core::Result<Vec<&str>>>()?;
        let mut locked = self.lock_or_make(namespace).await?;
        let hashes: Vec<i64> =
            new.iter().zip(&texts).map(|(new, text)| text_hash(&locked.hash, new.key.as_deref(), text)).collect();
        let keys: BTreeSet<&[u8]> = new.iter().filter_map(|new| new.key.as_deref().map(str::as_bytes)).collect();
        let keys: Vec<&[u8]> = keys.into_iter().collect();
        let mut batch = Batch::of(self.standing(&locked, &hashes, &keys).await?);
        let mut added = Vec::with_capacity(new.len());
        for ((new, text), hash) in new.iter().zip(&texts).zip(hashes) {
            let (key, is_over) = (new.key.as_deref().map(str::as_bytes), new.is_over(now));
            if let Some(at) = batch.saying(hash, key, text, now).filter(|_| !is_over)
                && let Some(same) = batch.get(at)
            {
                let record = same.record(namespace, now)?;
                let changed = new.restates(&record, now).of(&record)?;
                let outcome = if changed == record { Outcome::Duplicate } else { Outcome::Changed };
                if outcome == Outcome::Changed
                    && let Some(same) = batch.change(at)
                {
                    same.record.revision = locked.next_revision();
                    same.record.metadata = json(&changed.metadata)?;
                    same.record.expires_at = changed.expires_at.map(|at| at.0);
                }
                added.push(Added { record: changed, outcome });
                continue;
            }
            let (id, revision) = (RecordId::new(), locked.next_revision());
            let (created_at, updated_at) = new.moments(now);
            let standing = batch.under(key.filter(|_| !is_over), now);
            let newer = newest(batch.all(&standing), namespace, new, now)?;
            let mut outcome = Outcome::New;
            for at in standing.iter().filter(|_| newer.is_none()) {
                let Some(older) = batch.change(*at) else { continue };
                end(older, SUPERSEDED, updated_at, Some(id), revision);
                outcome = record_id(&older.record.id).map_or(outcome, Outcome::Superseded);
            }
            locked.records += 1;
            let ended = newer.map(|newer| (newer.id, updated_at.max(newer.created_at).0));
            let record = RecordRow {
                seq: locked.records,
                id: id.to_bytes().to_vec(),
                key: key.map(<[u8]>::to_vec),
                metadata: json(&new.metadata)?,
                version: 1,
                created_at: created_at.0,
                expires_at: new.expires_at.map(|at| at.0),
                state: if ended.is_some() { SUPERSEDED } else { ACTIVE },
                ended_at: ended.map(|(_, at)| at),
                ended_by: ended.map(|(by, _)| by.to_bytes().to_vec()),
                revision,
            };
            let version = VersionRow {
                record: locked.records,
                number: 1,
                text: text.as_bytes().to_vec(),
                hash: Some(hash),
                from_at: updated_at.0,
                until_at: ended.map(|(_, at)| at),
            };
            let found = Found { record, version };
            added.push(Added { record: found.record(namespace, now)?, outcome });
            batch.insert(found);
        }
        let (old, new) = batch.changed();
        if !old.is_empty() || !new.is_empty() {
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
            let (standing, superseded): (Vec<&RecordRow>, Vec<&RecordRow>) =
                old_records.into_iter().partition(|record| record.state == ACTIVE);
            let superseded: Vec<i64> = superseded.iter().map(|record| record.seq).collect();
            self.delete_chunks(&locked, &superseded, now).await?;
            self.move_expiry(&locked, &standing).await?;
        }
        Ok(added)
    }

    pub(in crate::postgres) async fn change(
        &self,
        namespace: &Namespace,
        id: RecordId,
        change: &Change,
        now: Timestamp,
    ) -> Result<Record> {
        change.check()?;
        change.text.as_deref().map(|text| bounded(text.trim())).transpose()?;
        let Some(mut locked) = self.lock(namespace).await? else { return Err(unknown(namespace, id)) };
        let mut found = self.find(namespace, id).await?;
        let record = found.record(namespace, now)?;
        if record.state != State::Active {
            return Err(Error::NotActive { id, state: record.state.name() }.into());
        }
        let changed = change.of(&record)?;
        if changed == record {
            return Ok(record);
        }
        let (has_other_key, says_other) = (changed.key != record.key, changed.text != record.text);
        let hash = text_hash(&locked.hash, changed.key.as_deref(), &changed.text);
        let key = changed.key.as_deref().map(str::as_bytes);
        if has_other_key || says_other {
            let keys: Vec<&[u8]> = key.filter(|_| has_other_key).into_iter().collect();
            let mut batch = Batch::of(self.standing(&locked, &[hash], &keys).await?);
            let taken = if has_other_key { batch.under(key, now) } else { Vec::new() };
            if let Some(other) = batch.all(&taken).next() {
                return Err(Error::KeyTaken { existing: id_of(other)? }.into());
            }
            if let Some(same) = batch.saying(hash, key, &changed.text, now).and_then(|at| batch.get(at)) {
                return Err(Error::SameText { existing: id_of(same)? }.into());
            }
        }
        let mut old = found.version.clone();
        if says_other {
            // A clock that was set back must not turn the history around.
            let at = now.0.max(old.from_at);
            old.until_at = Some(at);
            let (number, text) = (old.number + 1, changed.text.into_bytes());
            found.version =
                VersionRow { record: old.record, number, text, hash: Some(hash), from_at: at, until_at: None };
        } else {
            old.hash = Some(hash);
            found.version.hash = old.hash;
        }
        let row = &mut found.record;
        (row.version, row.revision) = (found.version.number, locked.next_revision());
        row.key = changed.key.map(String::into_bytes);
        (row.metadata, row.expires_at) = (json(&changed.metadata)?, changed.expires_at.map(|at| at.0));
        let new: &[&VersionRow] = if says_other { &[&found.version] } else { &[] };
        future::try_join4(
            self.put_versions(UPDATE_VERSIONS, &locked, &[&old]),
            self.put_versions(INSERT_VERSIONS, &locked, new),
            self.put_records(UPDATE_RECORDS, &locked, &[&found.record]),
            self.note_changes(&locked),
        )
        .await?;
        if says_other {
            self.delete_chunks(&locked, &[found.record.seq], now).await?;
        } else {
            self.move_expiry(&locked, &[&found.record]).await?;
        }
        found.record(namespace, now)
    }

    pub(in crate::postgres) async fn forget_many(
        &self,
        namespace: &Namespace,
        ids: &[RecordId],
        now: Timestamp,
    ) -> Result<Vec<Record>> {
        let Some(first) = ids.first() else { return Ok(Vec::new()) };
        let Some(mut locked) = self.lock(namespace).await? else { return Err(unknown(namespace, *first)) };
        let (mut found, mut versions) = self.find_to_forget(namespace, &locked, ids).await?;
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
            versions.retain(|version| forgotten.contains_key(&version.record));
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

    pub(in crate::postgres) async fn forget_key(
        &self,
        namespace: &Namespace,
        key: &str,
        now: Timestamp,
    ) -> Result<Vec<Record>> {
        let Some(locked) = self.lock(namespace).await? else { return Ok(Vec::new()) };
        let ids = "SELECT id FROM record WHERE namespace = $1 AND key = $2 ORDER BY seq";
        let rows = self.rows(ids, &[&locked.id, &key.as_bytes()]).await?;
        let ids = rows.iter().map(|row| {
            let id = record_id(get(row, 0)?);
            id.ok_or_else(|| Failure::Damaged("a record's id is not what was written".to_owned()))
        });
        self.forget_many(namespace, &ids.collect::<Result<Vec<_>>>()?, now).await
    }

    /// Records that are to be forgotten, and all texts that they had. Of those that are not what was written sound ones
    /// are made before, which say nothing.
    async fn find_to_forget(
        &self,
        namespace: &Namespace,
        locked: &Locked<'_>,
        ids: &[RecordId],
    ) -> Result<(HashMap<RecordId, Found>, Vec<VersionRow>)> {
        match self.find_whole(namespace, locked, ids).await {
            Err(Failure::Damaged(_)) => {}
            found => return found,
        }
        let (mut all, mut versions) = (HashMap::new(), Vec::new());
        for id in ids {
            if all.contains_key(id) {
                continue;
            }
            match self.find_whole(namespace, locked, std::slice::from_ref(id)).await {
                Err(Failure::Damaged(_)) => {
                    let Some(found) = self.empty(locked, *id).await? else { continue };
                    versions.push(found.version.clone());
                    all.insert(*id, found);
                }
                found => {
                    let (found, texts) = found?;
                    all.extend(found);
                    versions.extend(texts);
                }
            }
        }
        Ok((all, versions))
    }

    /// Records, and all texts that they had.
    async fn find_whole(
        &self,
        namespace: &Namespace,
        locked: &Locked<'_>,
        ids: &[RecordId],
    ) -> Result<(HashMap<RecordId, Found>, Vec<VersionRow>)> {
        let found = self.find_many(namespace, ids).await?;
        let seqs: Vec<i64> = found.values().map(|found| found.record.seq).collect();
        let versions = self.versions(locked, &seqs).await?;
        Ok((found, versions))
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

    pub(in crate::postgres) async fn delete_namespace(&self, namespace: &Namespace) -> Result<usize> {
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
}

/// Of the active records of a key the newest one, if the text is older than that.
fn newest<'f>(
    standing: impl Iterator<Item = &'f Found>,
    namespace: &Namespace,
    new: &NewRecord,
    now: Timestamp,
) -> Result<Option<Record>> {
    let mut newest: Option<Record> = None;
    for found in standing {
        let record = found.record(namespace, now)?;
        let is_newest = newest.as_ref().is_none_or(|newest| newest.updated_at <= record.updated_at);
        if is_newest && new.is_older_than(&record, now) {
            newest = Some(record);
        }
    }
    Ok(newest)
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

fn id_of(found: &Found) -> Result<RecordId> {
    record_id(&found.record.id).ok_or_else(|| Failure::Damaged("a record's id".to_owned()))
}

/// Metadata as they stand in a row.
fn json(metadata: &Metadata) -> Result<Option<Vec<u8>>> {
    let json = (!metadata.is_empty()).then(|| serde_json::to_vec(metadata)).transpose();
    Ok(json.map_err(|error| Error::Ledger(error.into()))?)
}

fn bounded(text: &str) -> amem_core::Result<&str> {
    if text.len() <= MAX_TEXT_BYTES {
        return Ok(text);
    }
    Err(Error::BadValue { what: "memory", value: format!("{} bytes", text.len()), expected: "at most 256 MiB" })
}
