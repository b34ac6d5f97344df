-- From version 3: KV of superseded and expired records goes, usage is metered, indexes are kept.
-- A process of version 3 that still runs would do none of this. By the old names, all its changes fail.
ALTER TABLE ledger RENAME COLUMN changes TO last_change;
ALTER TABLE link RENAME TO kv_link;
DROP INDEX link_by_record;
CREATE INDEX kv_link_by_record ON kv_link (record);
ALTER TABLE kv_link ADD COLUMN expires_at INTEGER;
UPDATE kv_link SET expires_at = (SELECT expires_at FROM record WHERE seq = kv_link.record);
CREATE INDEX kv_link_by_expiry ON kv_link (expires_at) WHERE expires_at IS NOT NULL;
INSERT OR IGNORE INTO pending_deletion SELECT l.chunk FROM kv_link l JOIN record r ON r.seq = l.record
    WHERE r.state <> 0 AND NOT EXISTS (
        SELECT 1 FROM kv_link o JOIN record s ON s.seq = o.record WHERE o.chunk = l.chunk AND s.state = 0);
DELETE FROM kv_link WHERE record IN (SELECT seq FROM record WHERE state <> 0);

CREATE TABLE usage (
    id               BLOB PRIMARY KEY,
    namespace        TEXT,
    at               INTEGER NOT NULL,
    requests         INTEGER NOT NULL,
    memory_ops       INTEGER NOT NULL,
    reused_tokens    INTEGER NOT NULL,
    repaired_tokens  INTEGER NOT NULL,
    prefilled_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    chunks           INTEGER NOT NULL,
    reused_chunks    INTEGER NOT NULL,
    checksum         INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_by_namespace ON usage (namespace, at);

CREATE TABLE saved_index (
    seq        INTEGER PRIMARY KEY,
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    revision   INTEGER NOT NULL,
    bytes      BLOB NOT NULL,
    checksum   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX saved_index_by_name ON saved_index (namespace, name);
