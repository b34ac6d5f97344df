//! What a ledger does, as statements on one connection.
//!
//! Whatever changes a namespace locks its row first and keeps it locked to the end of the transaction. So changes of one
//! namespace happen one after the other, and the numbers that its row gives out (revisions, and the order of adding) are
//! visible to others in this order, without gaps. The isolation level is READ COMMITTED: each statement behind the lock
//! sees all that was committed before it was given.
//!
//! [`read`] asks for records; [`change`] adds, changes and forgets them, and [`write`] writes their rows; [`chunks`] says
//! which KV they have, and which is to be deleted.

mod batch;
mod change;
mod chunks;
mod indexes;
mod read;
mod usage;
mod write;

use std::sync::OnceLock;

use amem_core::{Error, Namespace, RecordId};
use tokio_postgres::Row;

use super::error::Failure;
use super::options::Settings;
use super::rows::{NameHash, get, name_hash};
use super::schema;
use super::session::{Param, Session};

type Result<T, E = Failure> = std::result::Result<T, E>;

/// Bytes of a text at most: PostgreSQL takes a statement of at most a gigabyte.
const MAX_TEXT_BYTES: usize = 256 << 20;
/// Rows that are sent to the server in one statement.
const STATEMENT_ROWS: usize = 10_000;

/// The tables as one connection sees them.
pub(in crate::postgres) struct Tables<'a> {
    pub(in crate::postgres) session: &'a Session,
    pub(in crate::postgres) settings: &'a Settings,
    /// What began the transaction, if it is to be one: sent with the first statement.
    begin: Option<&'a str>,
    begun: OnceLock<()>,
    /// The number of the transaction that changes something, by which the server knows later what became of it.
    pub(in crate::postgres) transaction: OnceLock<String>,
}

/// A namespace whose row this transaction has locked.
struct Locked<'a> {
    namespace: &'a Namespace,
    hash: NameHash,
    id: i64,
    records: i64,
    changes: i64,
    deleted: i64,
    forgotten: i64,
}

impl Locked<'_> {
    fn next_revision(&mut self) -> i64 {
        self.changes += 1;
        self.changes
    }

    fn unknown(&self, id: RecordId) -> Failure {
        unknown(self.namespace, id)
    }
}

impl<'a> Tables<'a> {
    /// As each statement by itself sees them.
    pub(in crate::postgres) fn now(session: &'a Session, settings: &'a Settings) -> Self {
        Self { session, settings, begin: None, begun: OnceLock::new(), transaction: OnceLock::new() }
    }

    /// As they are at one moment, for several statements.
    pub(in crate::postgres) fn snapshot(session: &'a Session, settings: &'a Settings) -> Self {
        Self { begin: Some("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"), ..Self::now(session, settings) }
    }

    /// In a transaction that changes something.
    pub(in crate::postgres) fn transaction(session: &'a Session, settings: &'a Settings) -> Self {
        Self { begin: Some(&settings.begin_change), ..Self::now(session, settings) }
    }

    /// Whether a transaction was begun, and so must be ended.
    pub(in crate::postgres) fn has_begun(&self) -> bool {
        self.begun.get().is_some()
    }

    /// Begins a change that no namespace's lock is needed for.
    async fn begin_change(&self) -> Result<()> {
        let begin = "SELECT (SELECT max(version) FROM amem_ledger), pg_current_xact_id()::text";
        let rows = self.rows(begin, &[]).await?;
        let row = rows.first().ok_or_else(|| Failure::Damaged("it does not begin a change".to_owned()))?;
        self.check_version(get(row, 0)?)?;
        self.note_transaction(row, 1);
        Ok(())
    }

    /// Another process may have brought the ledger up to date since this one connected to it.
    fn check_version(&self, found: Option<i32>) -> Result<()> {
        match found {
            Some(schema::VERSION) => Ok(()),
            Some(found) => Err(schema::newer(self.settings, found).into()),
            None => Err(Failure::Damaged("it does not say what it is".to_owned())),
        }
    }

    fn note_transaction(&self, row: &Row, column: usize) {
        self.transaction.get_or_init(|| row.try_get(column).unwrap_or_default());
    }

    /// Locks a namespace's row until the transaction ends. `None` if it never had a record.
    async fn lock<'n>(&self, namespace: &'n Namespace) -> Result<Option<Locked<'n>>> {
        let lock = "SELECT id, records, changes, deleted, forgotten, (SELECT max(version) FROM amem_ledger), \
                    pg_current_xact_id()::text FROM namespace WHERE hash = $1 FOR UPDATE";
        let hash = name_hash(namespace);
        let rows = self.rows(lock, &[&hash.as_slice()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        self.check_version(get(row, 5)?)?;
        self.note_transaction(row, 6);
        let (id, records, changes) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
        let (deleted, forgotten) = (get(row, 3)?, get(row, 4)?);
        Ok(Some(Locked { namespace, hash, id, records, changes, deleted, forgotten }))
    }

    /// As [`lock`](Self::lock), of a namespace that is to have records.
    async fn lock_or_make<'n>(&self, namespace: &'n Namespace) -> Result<Locked<'n>> {
        if let Some(locked) = self.lock(namespace).await? {
            return Ok(locked);
        }
        // Whoever makes it at the same time is waited for.
        let make = "INSERT INTO namespace (hash) VALUES ($1) ON CONFLICT DO NOTHING";
        self.execute(make, &[&name_hash(namespace).as_slice()]).await?;
        let locked = self.lock(namespace).await?;
        locked.ok_or_else(|| Failure::Damaged("a namespace cannot be found".to_owned()))
    }

    /// Writes what the namespace counts, and its name, which it has as long as it has records.
    async fn note_changes(&self, locked: &Locked<'_>) -> Result<()> {
        let note = "UPDATE namespace SET name = $2, records = $3, changes = $4, forgotten = $5 WHERE id = $1";
        let name = locked.namespace.as_str().as_bytes();
        self.execute(note, &[&locked.id, &name, &locked.records, &locked.changes, &locked.forgotten]).await?;
        Ok(())
    }

    async fn rows(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        match self.begin {
            Some(begin) if self.begun.set(()).is_ok() => self.session.begin_with_rows(begin, sql, params).await,
            _ => self.session.rows(sql, params).await,
        }
    }

    async fn execute(&self, sql: &'static str, params: &[Param<'_>]) -> Result<u64> {
        self.session.execute(sql, params).await
    }
}

fn unknown(namespace: &Namespace, id: RecordId) -> Failure {
    Error::UnknownRecord { namespace: namespace.clone(), id }.into()
}
