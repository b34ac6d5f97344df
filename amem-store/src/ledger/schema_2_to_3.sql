-- From version 2: checksums, which are computed after this, and when something was last forgotten.
ALTER TABLE record ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE version ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;
UPDATE ledger SET forgotten = revision;
-- A process of version 2 that still runs would write no checksums. By the old name, all its changes fail.
ALTER TABLE ledger RENAME COLUMN revision TO changes;
