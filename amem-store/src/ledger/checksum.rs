//! Checksums of rows: what is read is what was written, or it is an error.
//!
//! A row's checksum covers all its other columns. SQLite computes it with a function of ours, so that one expression
//! serves to write it, to check it and to bring older ledgers up to date.

use rusqlite::Connection;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;

/// What the checksum of a record `r` must be.
macro_rules! record_checksum {
    () => {
        "amem_checksum(r.seq, r.id, r.namespace, r.key, r.metadata, r.version, r.created_at, r.expires_at, r.state, \
         r.ended_at, r.ended_by, r.revision)"
    };
}

/// What the checksum of a version `v` must be.
macro_rules! version_checksum {
    () => {
        "amem_checksum(v.record, v.text, v.hash, v.from_at, v.until_at)"
    };
}

/// What the checksum of a usage event `u` must be. Its namespace may go.
macro_rules! usage_checksum {
    () => {
        "amem_checksum(u.id, u.at, u.requests, u.memory_ops, u.reused_tokens, u.repaired_tokens, u.prefilled_tokens, \
         u.generated_tokens, u.chunks, u.reused_chunks)"
    };
}

/// What the checksum of a saved index `i` must be.
macro_rules! saved_index_checksum {
    () => {
        "amem_checksum(i.namespace, i.name, i.revision, i.bytes)"
    };
}

/// Lets a connection compute checksums.
pub(super) fn register(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("amem_checksum", -1, flags, |values| Ok(checksum(values)))
}

fn checksum(values: &Context<'_>) -> i64 {
    checksum_of((0..values.len()).map(|index| values.get_raw(index)))
}

/// What `amem_checksum` gives for these values: for what is too large to be handed through SQLite twice.
pub(super) fn checksum_of<'v>(values: impl IntoIterator<Item = ValueRef<'v>>) -> i64 {
    let mut hash = blake3::Hasher::new();
    let mut add = |kind: u8, bytes: &[u8]| {
        hash.update(&[kind]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    for value in values {
        match value {
            ValueRef::Null => add(0, &[]),
            ValueRef::Integer(value) => add(1, &value.to_le_bytes()),
            ValueRef::Real(value) => add(2, &value.to_le_bytes()),
            ValueRef::Text(text) => add(3, text),
            ValueRef::Blob(bytes) => add(4, bytes),
        }
    }
    first_bits(&hash)
}

/// 64 bits of a hash, as SQLite's integers have them.
pub(super) fn first_bits(hash: &blake3::Hasher) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash.finalize().as_bytes();
    i64::from_le_bytes([a, b, c, d, e, f, g, h])
}
