//! Which KV belongs to which records, and which is to be deleted from which store.

use std::collections::{BTreeSet, HashSet};

use amem_core::{ChunkId, Namespace, PendingDeletion, RecordId, Timestamp};

use super::super::rows::{RecordRow, get};
use super::{Failure, Locked, Result, Tables, unknown};

impl Tables<'_> {
    pub(in crate::postgres) async fn link(
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

    pub(in crate::postgres) async fn pending_deletions(&self, now: Timestamp) -> Result<Vec<PendingDeletion>> {
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

    pub(in crate::postgres) async fn confirm_deleted(
        &self,
        deletions: &[PendingDeletion],
        now: Timestamp,
    ) -> Result<()> {
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

    pub(in crate::postgres) async fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> Result<Vec<bool>> {
        let linked = "SELECT DISTINCT l.chunk FROM link l JOIN record r ON r.namespace = l.namespace AND r.seq = l.record \
                      WHERE l.chunk = ANY($1) AND r.state = 0 AND (r.expires_at IS NULL OR r.expires_at > $2)";
        let ids: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.0.as_slice()).collect();
        let rows = self.rows(linked, &[&ids, &now.0]).await?;
        let found: HashSet<&[u8]> = rows.iter().map(|row| get(row, 0)).collect::<Result<_>>()?;
        Ok(ids.iter().map(|id| found.contains(id)).collect())
    }

    /// Takes records' links away; chunks that no other active record has are to be deleted.
    pub(super) async fn delete_chunks(&self, locked: &Locked<'_>, records: &[i64], now: Timestamp) -> Result<()> {
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

    /// Has records' links end when the records do.
    pub(super) async fn move_expiry(&self, locked: &Locked<'_>, records: &[&RecordRow]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let (seqs, ends): (Vec<i64>, Vec<Option<i64>>) = records.iter().map(|row| (row.seq, row.expires_at)).unzip();
        let change = "UPDATE link l SET expires_at = u.at FROM unnest($2::bigint[], $3::bigint[]) u(record, at) \
                      WHERE l.namespace = $1 AND l.record = u.record";
        self.execute(change, &[&locked.id, &seqs, &ends]).await?;
        Ok(())
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

    /// Has deletions named to this process's store from now on.
    async fn name_store(&self) -> Result<()> {
        let known = "INSERT INTO store (name) SELECT $1::bytea WHERE NOT EXISTS (SELECT 1 FROM store WHERE name = $1) \
                     ON CONFLICT DO NOTHING";
        self.execute(known, &[&self.settings.options.store.as_bytes()]).await?;
        Ok(())
    }

    /// As [`name_store`](Self::name_store), as a change of its own.
    pub(in crate::postgres) async fn add_store(&self) -> Result<()> {
        self.begin_change().await?;
        self.name_store().await
    }

    pub(in crate::postgres) async fn remove_store(&self, store: &str) -> Result<()> {
        self.begin_change().await?;
        self.execute("DELETE FROM store WHERE name = $1", &[&store.as_bytes()]).await?;
        Ok(())
    }
}
