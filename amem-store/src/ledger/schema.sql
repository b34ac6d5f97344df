-- Version 5. Times are milliseconds since 1970-01-01 UTC; ids and chunks are raw bytes. A checksum is of a row's other
-- columns.

-- One remembered text and its life. Rows go with their namespace only. Forgetting empties key and metadata.
CREATE TABLE record (
    seq        INTEGER PRIMARY KEY,           -- the order of adding
    id         BLOB NOT NULL UNIQUE,
    namespace  TEXT NOT NULL,
    key        TEXT,
    metadata   TEXT,                          -- a JSON object; NULL for none
    version    INTEGER NOT NULL,              -- the text it has now: version.seq
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    state      INTEGER NOT NULL,              -- 0 active, 1 superseded, 2 forgotten
    ended_at   INTEGER,                       -- when it was superseded or forgotten
    ended_by   BLOB,                          -- the id of the record that superseded it
    revision   INTEGER NOT NULL,              -- ledger.last_change at its last change
    checksum   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX record_by_namespace ON record (namespace);
CREATE INDEX record_by_revision ON record (namespace, revision);
CREATE INDEX record_by_key ON record (namespace, key) WHERE state = 0 AND key IS NOT NULL;

-- All texts that records had. Forgetting empties text and hash.
CREATE TABLE version (
    seq        INTEGER PRIMARY KEY,
    record     INTEGER NOT NULL,              -- record.seq
    text       TEXT NOT NULL,
    hash       INTEGER,                       -- of namespace, key and text: finds duplicates, which are then compared
    from_at    INTEGER NOT NULL,
    until_at   INTEGER,
    checksum   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX version_by_record ON version (record);
CREATE INDEX version_by_hash ON version (hash) WHERE hash IS NOT NULL;

-- Chunks that hold the KV of records' present texts.
CREATE TABLE kv_link (
    chunk      BLOB NOT NULL,
    record     INTEGER NOT NULL,              -- record.seq
    expires_at INTEGER,                       -- the record's
    PRIMARY KEY (chunk, record)
) STRICT, WITHOUT ROWID;
CREATE INDEX kv_link_by_record ON kv_link (record);
CREATE INDEX kv_link_by_expiry ON kv_link (expires_at) WHERE expires_at IS NOT NULL;

-- Chunks to be deleted from every store.
CREATE TABLE pending_deletion (
    chunk      BLOB PRIMARY KEY,
    number     INTEGER NOT NULL DEFAULT 0     -- random: tells a deletion from a later one of the same chunk
) STRICT, WITHOUT ROWID;

-- Namespaces that were deleted, by the BLAKE3 hash of their names, and when: ledger.last_change at that moment.
CREATE TABLE deleted_namespace (
    hash       BLOB PRIMARY KEY,
    revision   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What was done for whom. Rows are never changed, but for the names of deleted namespaces, which go.
CREATE TABLE usage (
    id               BLOB PRIMARY KEY,
    namespace        TEXT,                    -- NULL once it was deleted
    at               INTEGER NOT NULL,
    requests         INTEGER NOT NULL,
    memory_ops       INTEGER NOT NULL,
    reused_tokens    INTEGER NOT NULL,
    repaired_tokens  INTEGER NOT NULL,
    prefilled_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    chunks           INTEGER NOT NULL,
    reused_chunks    INTEGER NOT NULL,
    checksum         INTEGER NOT NULL DEFAULT 0 -- of the row without its namespace
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_by_namespace ON usage (namespace, at);

-- What recall knows of a namespace, so that the next process need not read all its records. Forgetting removes it.
CREATE TABLE saved_index (
    seq        INTEGER PRIMARY KEY,
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    revision   INTEGER NOT NULL,              -- the changes up to this one are in it
    bytes      BLOB NOT NULL,
    checksum   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX saved_index_by_name ON saved_index (namespace, name);

-- One row: how many changes there were, and how many there had been when something was last forgotten.
CREATE TABLE ledger (
    last_change INTEGER NOT NULL,
    forgotten   INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO ledger (last_change) VALUES (0);
