//! Rows of records and of their texts, many with one statement.

use super::super::rows::{RecordRow, VersionRow};
use super::super::session::Param;
use super::{Failure, Locked, Result, STATEMENT_ROWS, Tables};

/// Bytes of texts and keys that are sent to the server in one statement, give or take a row.
const STATEMENT_BYTES: usize = 16 << 20;

pub(super) const INSERT_RECORDS: &str = "INSERT INTO record (namespace, seq, id, key, metadata, version, created_at, expires_at, state, ended_at, ended_by, \
     revision, checksum) SELECT $1::bigint, u.* FROM unnest($2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[], \
     $6::integer[], $7::bigint[], $8::bigint[], $9::smallint[], $10::bigint[], $11::bytea[], $12::bigint[], \
     $13::bigint[]) u";

pub(super) const UPDATE_RECORDS: &str = "UPDATE record r SET key = u.key, metadata = u.metadata, version = u.version, created_at = u.created_at, \
     expires_at = u.expires_at, state = u.state, ended_at = u.ended_at, ended_by = u.ended_by, revision = u.revision, \
     checksum = u.checksum FROM unnest($2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[], $6::integer[], \
     $7::bigint[], $8::bigint[], $9::smallint[], $10::bigint[], $11::bytea[], $12::bigint[], $13::bigint[]) \
     u(seq, id, key, metadata, version, created_at, expires_at, state, ended_at, ended_by, revision, checksum) \
     WHERE r.namespace = $1 AND r.seq = u.seq AND r.id = u.id";

pub(super) const INSERT_VERSIONS: &str = "INSERT INTO version (namespace, record, number, text, hash, from_at, until_at, checksum) SELECT $1::bigint, u.* \
     FROM unnest($2::bigint[], $3::integer[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[]) u";

pub(super) const UPDATE_VERSIONS: &str = "UPDATE version v SET text = u.text, hash = u.hash, from_at = u.from_at, until_at = u.until_at, \
     checksum = u.checksum FROM unnest($2::bigint[], $3::integer[], $4::bytea[], $5::bigint[], $6::bigint[], \
     $7::bigint[], $8::bigint[]) u(record, number, text, hash, from_at, until_at, checksum) \
     WHERE v.namespace = $1 AND v.record = u.record AND v.number = u.number";

impl Tables<'_> {
    /// Writes rows of records, a bounded part of them with each statement.
    pub(super) async fn put_records(&self, sql: &'static str, locked: &Locked<'_>, rows: &[&RecordRow]) -> Result<()> {
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
    pub(super) async fn put_versions(
        &self,
        sql: &'static str,
        locked: &Locked<'_>,
        rows: &[&VersionRow],
    ) -> Result<()> {
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
