//! Records as they are, and as they were.

use std::collections::HashMap;

use amem_core::{
    Changes, Listing, Namespace, Page, Query, Record, RecordId, RecordStats, Revision, Timestamp, Version,
};
use tokio_postgres::Row;

use super::super::rows::{ACTIVE, Found, NameHash, SUPERSEDED, VersionRow, get, name_hash, record_id, utf8};
use super::{Failure, Locked, Result, Tables, unknown};

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

impl Tables<'_> {
    pub(in crate::postgres) async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record> {
        self.find(namespace, id).await?.record(namespace, now)
    }

    pub(in crate::postgres) async fn get_many(
        &self,
        namespace: &Namespace,
        ids: &[RecordId],
        now: Timestamp,
    ) -> Result<Vec<Option<Record>>> {
        let found = self.find_many(namespace, ids).await?;
        ids.iter().map(|id| found.get(id).map(|found| found.record(namespace, now)).transpose()).collect()
    }

    pub(in crate::postgres) async fn page(&self, namespace: &Namespace, listing: &Listing) -> Result<Page> {
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
                if matches!(listing.query, Query::At(moment) if found.version.from_at > moment.0) {
                    continue;
                }
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
             ON v.namespace = r.namespace AND v.record = r.seq AND v.number = coalesce((SELECT max(o.number) \
             FROM version o WHERE o.namespace = r.namespace AND o.record = r.seq AND o.from_at <= $4), 1) \
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

    pub(in crate::postgres) async fn count(&self, namespace: &Namespace, now: Timestamp) -> Result<usize> {
        let count = "SELECT count(*) FROM namespace n JOIN record r ON r.namespace = n.id \
                     WHERE n.hash = $1 AND r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > $2)";
        let rows = self.rows(count, &[&name_hash(namespace).as_slice(), &now.0]).await?;
        let counted: i64 = rows.first().map_or(Ok(0), |row| get(row, 0))?;
        Ok(counted.unsigned_abs() as usize)
    }

    pub(in crate::postgres) async fn stats(&self, namespace: &Namespace, now: Timestamp) -> Result<RecordStats> {
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

    pub(in crate::postgres) async fn history(&self, namespace: &Namespace, id: RecordId) -> Result<Vec<Version>> {
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

    pub(in crate::postgres) async fn namespaces(&self) -> Result<Vec<Namespace>> {
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

    pub(in crate::postgres) async fn changes(
        &self,
        namespace: &Namespace,
        since: Revision,
        now: Timestamp,
    ) -> Result<Changes> {
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

    pub(super) async fn find(&self, namespace: &Namespace, id: RecordId) -> Result<Found> {
        let hash = name_hash(namespace);
        let rows = self.rows(of_namespace!("AND r.id = $2"), &[&hash.as_slice(), &id.to_bytes().as_slice()]).await?;
        all_found(&rows, &hash)?.pop().ok_or_else(|| unknown(namespace, id))
    }

    pub(super) async fn find_many(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<HashMap<RecordId, Found>> {
        let bytes: Vec<Vec<u8>> = ids.iter().map(|id| id.to_bytes().to_vec()).collect();
        let by_ids = of_namespace!("AND r.id = ANY($2)");
        let hash = name_hash(namespace);
        let found = all_found(&self.rows(by_ids, &[&hash.as_slice(), &bytes]).await?, &hash)?;
        Ok(found.into_iter().filter_map(|found| Some((record_id(&found.record.id)?, found))).collect())
    }

    /// The active records that have one of these hashes or keys, in the order of adding.
    pub(super) async fn standing(&self, locked: &Locked<'_>, hashes: &[i64], keys: &[&[u8]]) -> Result<Vec<Found>> {
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

    /// All texts that some records had.
    pub(super) async fn versions(&self, locked: &Locked<'_>, records: &[i64]) -> Result<Vec<VersionRow>> {
        let all = concat!(
            "SELECT ",
            columns!(),
            " FROM record r LEFT JOIN version v ON v.namespace = r.namespace AND v.record = r.seq \
             WHERE r.namespace = $1 AND r.seq = ANY($2)"
        );
        let found = all_found(&self.rows(all, &[&locked.id, &records]).await?, &locked.hash)?;
        Ok(found.into_iter().map(|found| found.version).collect())
    }
}

fn all_found(rows: &[Row], namespace: &NameHash) -> Result<Vec<Found>> {
    rows.iter().map(|row| Found::from_row(row, 0, namespace)).collect()
}
