-- From version 1: metadata, deleted namespaces, and keys that are forgotten with their records.
ALTER TABLE record ADD COLUMN metadata TEXT;
UPDATE record SET key = NULL WHERE state = 2;
ALTER TABLE doomed RENAME TO pending_deletion;
CREATE TABLE deleted_namespace (
    hash       BLOB PRIMARY KEY,
    revision   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
