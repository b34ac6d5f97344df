-- Version 3. Times are milliseconds since 1970-01-01 UTC; ids and chunks are raw bytes. A checksum is of a row's other
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
    revision   INTEGER NOT NULL,              -- ledger.changes at its last change
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
CREATE TABLE link (
    chunk      BLOB NOT NULL,
    record     INTEGER NOT NULL,              -- record.seq
    PRIMARY KEY (chunk, record)
) STRICT, WITHOUT ROWID;
CREATE INDEX link_by_record ON link (record);

-- Chunks to be deleted from every store.
CREATE TABLE pending_deletion (
    chunk      BLOB PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Namespaces that were deleted, by the BLAKE3 hash of their names, and when: ledger.changes at that moment.
CREATE TABLE deleted_namespace (
    hash       BLOB PRIMARY KEY,
    revision   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row: how many changes there were, and how many there had been when something was last forgotten.
CREATE TABLE ledger (
    changes    INTEGER NOT NULL,
    forgotten  INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO ledger (changes) VALUES (0);
