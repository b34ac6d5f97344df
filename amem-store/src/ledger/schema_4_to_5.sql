-- From version 4: deletions of one chunk are told apart, so that confirming one does not confirm a later one.
ALTER TABLE pending_deletion ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
