-- Version 1. Times are milliseconds since 1970-01-01 UTC. Ids and chunks are raw bytes, and so are names, keys and texts
-- (UTF-8), for PostgreSQL's text cannot hold every text. A checksum is of a row's other columns and its namespace's hash.

-- One row that says what these tables are.
CREATE TABLE amem_ledger (
    application text    NOT NULL,
    version     integer NOT NULL
);
INSERT INTO amem_ledger (application, version) VALUES ('amem', 0);

-- Every namespace that ever had a record. Whoever changes something in it locks its row first.
CREATE TABLE namespace (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    hash      bytea  NOT NULL UNIQUE,          -- BLAKE3 of its name
    name      bytea,                           -- NULL while it has no records: it was deleted
    records   bigint NOT NULL DEFAULT 0,       -- record.seq of the last one added
    changes   bigint NOT NULL DEFAULT 0,       -- how many changes there were
    deleted   bigint NOT NULL DEFAULT 0,       -- changes when it was last deleted
    forgotten bigint NOT NULL DEFAULT 0        -- changes when something of it was last forgotten
);

-- One remembered text and its life. Rows go with their namespace only. Forgetting empties key and metadata.
CREATE TABLE record (
    namespace  bigint   NOT NULL,              -- namespace.id
    seq        bigint   NOT NULL,              -- the order of adding
    id         bytea    NOT NULL UNIQUE,
    key        bytea,
    metadata   bytea,                          -- a JSON object; NULL for none
    version    integer  NOT NULL,              -- the text it has now: version.number
    created_at bigint   NOT NULL,
    expires_at bigint,
    state      smallint NOT NULL,              -- 0 active, 1 superseded, 2 forgotten
    ended_at   bigint,                         -- when it was superseded or forgotten
    ended_by   bytea,                          -- the id of the record that superseded it
    revision   bigint   NOT NULL,              -- namespace.changes at its last change
    checksum   bigint   NOT NULL,
    PRIMARY KEY (namespace, seq)
);
CREATE INDEX record_by_revision ON record (namespace, revision);
CREATE INDEX record_by_key ON record (namespace, key) WHERE state = 0 AND key IS NOT NULL;

-- All texts that records had, numbered from 1 for each record. Forgetting empties text and hash.
CREATE TABLE version (
    namespace bigint  NOT NULL,
    record    bigint  NOT NULL,                -- record.seq
    number    integer NOT NULL,
    text      bytea   NOT NULL,
    hash      bigint,                          -- of namespace, key and text: finds duplicates, which are then compared
    from_at   bigint  NOT NULL,
    until_at  bigint,
    checksum  bigint  NOT NULL,
    PRIMARY KEY (namespace, record, number)
);
CREATE INDEX version_by_hash ON version (namespace, hash) WHERE hash IS NOT NULL;

-- Chunks that hold the KV of records' present texts.
CREATE TABLE link (
    chunk      bytea  NOT NULL,
    namespace  bigint NOT NULL,
    record     bigint NOT NULL,                -- record.seq
    expires_at bigint,                         -- the record's
    PRIMARY KEY (chunk, namespace, record)
);
CREATE INDEX link_by_record ON link (namespace, record);
CREATE INDEX link_by_expiry ON link (expires_at) WHERE expires_at IS NOT NULL;

-- KV stores that chunks were linked from.
CREATE TABLE store (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name bytea  NOT NULL UNIQUE
);

-- Chunks to be deleted, and from which store.
CREATE TABLE pending_deletion (
    chunk bytea  NOT NULL,
    store bigint NOT NULL REFERENCES store ON DELETE CASCADE,
    PRIMARY KEY (store, chunk)
);

-- What was done for whom. A deleted namespace's name is NULL here, so the checksum does not cover it.
CREATE TABLE usage_event (
    id               bytea  PRIMARY KEY,
    namespace        bytea,
    at               bigint NOT NULL,
    requests         bigint NOT NULL,
    memory_ops       bigint NOT NULL,
    reused_tokens    bigint NOT NULL,
    repaired_tokens  bigint NOT NULL,
    prefilled_tokens bigint NOT NULL,
    generated_tokens bigint NOT NULL,
    chunks           bigint NOT NULL,
    reused_chunks    bigint NOT NULL,
    checksum         bytea  NOT NULL           -- the server computes and checks it, so that sums need not leave it
);
CREATE INDEX usage_by_namespace ON usage_event (namespace, at);

-- Indexes of namespaces' records, in their own formats. They go when something of the namespace is forgotten.
CREATE TABLE saved_index (
    namespace bigint NOT NULL,
    name      bytea  NOT NULL,
    revision  bigint NOT NULL,
    bytes     bytea  NOT NULL,
    checksum  bigint NOT NULL,
    PRIMARY KEY (namespace, name)
);

-- PostgreSQL keeps samples of a column's values for its planner, which would outlive what is forgotten.
ALTER TABLE namespace ALTER COLUMN name SET STATISTICS 0;
ALTER TABLE record ALTER COLUMN key SET STATISTICS 0, ALTER COLUMN metadata SET STATISTICS 0;
ALTER TABLE version ALTER COLUMN text SET STATISTICS 0;
ALTER TABLE usage_event ALTER COLUMN namespace SET STATISTICS 0;
ALTER TABLE saved_index ALTER COLUMN bytes SET STATISTICS 0;
