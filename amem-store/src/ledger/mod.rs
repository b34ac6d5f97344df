//! [`SqliteLedger`]: the records in one SQLite file.
//!
//! [`schema`] opens the file and says what its tables mean; [`tables`] is what can be done within a transaction; this
//! file makes transactions of it.

mod schema;
mod tables;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use amem_core::{
    Added, Changes, ChunkId, Ledger, Listing, Namespace, NewRecord, Page, Record, RecordId, Revision, Timestamp,
    Version,
};
use async_trait::async_trait;
use blocking::unblock;
use rusqlite::{Connection, TransactionBehavior};

use self::tables::{Failure, Tables};
use crate::{Error, Result};

/// A [`Ledger`] in a SQLite file.
///
/// A call that writes is one transaction and is on the disk when it returns, so add many texts in one call where there
/// are many. Forgetting wipes a text from the file and its log, not only from view. Processes may share the file.
///
/// That a record expired is no change to the ledger: [`changes`](Ledger::changes) does not name it when its time comes.
/// Whoever keeps records at hand has their [`expires_at`](Record::expires_at), and filters by the time it is.
///
/// Cloning it gives another handle to the same connection.
#[derive(Clone)]
pub struct SqliteLedger(Arc<Inner>);

struct Inner {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl SqliteLedger {
    /// Opens the ledger at `path`, which is made if it is not there.
    ///
    /// # Errors
    /// When the file cannot be opened, is no ledger, or has a schema of a later version of amem.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let connection = Mutex::new(schema::open(&path)?);
        Ok(Self(Arc::new(Inner { path, connection })))
    }

    /// Runs `work` in a transaction, and keeps what it did if it succeeds.
    async fn within<T, F>(&self, behavior: TransactionBehavior, doing: &'static str, work: F) -> amem_core::Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tables<'_>) -> Result<T, Failure> + Send + 'static,
    {
        let inner = self.0.clone();
        let done = unblock(move || {
            let mut connection = inner.connection();
            let transaction = connection.transaction_with_behavior(behavior)?;
            let done = work(&Tables(&transaction))?;
            transaction.commit()?;
            Ok(done)
        });
        done.await.map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Sqlite(error) => Error::sqlite(doing)(error).into(),
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Tables<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> amem_core::Result<T> {
        self.within(TransactionBehavior::Deferred, doing, work).await
    }

    /// Leaves nothing of what was deleted in the write-ahead log.
    async fn wipe_log(&self) -> amem_core::Result<()> {
        let inner = self.0.clone();
        Ok(unblock(move || inner.wipe_log()).await?)
    }

    async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Tables<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> amem_core::Result<T> {
        self.within(TransactionBehavior::Immediate, doing, work).await
    }
}

impl fmt::Debug for SqliteLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteLedger({})", self.0.path.display())
    }
}

impl Inner {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in a transaction rolls it back, so the connection is as good as before.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves nothing of what was deleted in the write-ahead log.
    fn wipe_log(&self) -> Result<()> {
        let wiped = schema::wipe_log(&self.connection()).map_err(Error::sqlite("wipe a forgotten text"))?;
        if wiped { Ok(()) } else { Err(Error::NotWiped { path: self.path.clone() }) }
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> amem_core::Result<Vec<Added>> {
        let (namespace, new) = (namespace.clone(), new.to_vec());
        self.write("remember", move |tables| tables.add(&namespace, &new, now)).await
    }

    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> amem_core::Result<Record> {
        let namespace = namespace.clone();
        self.read("read a record", move |tables| Ok(tables.find(&namespace, id)?.record(now))).await
    }

    async fn page(&self, namespace: &Namespace, listing: &Listing) -> amem_core::Result<Page> {
        let (namespace, listing) = (namespace.clone(), listing.clone());
        self.read("list records", move |tables| tables.page(&namespace, &listing)).await
    }

    async fn count(&self, namespace: &Namespace, now: Timestamp) -> amem_core::Result<usize> {
        let namespace = namespace.clone();
        self.read("count records", move |tables| tables.count(&namespace, now)).await
    }

    async fn update(
        &self,
        namespace: &Namespace,
        id: RecordId,
        text: &str,
        now: Timestamp,
    ) -> amem_core::Result<Record> {
        let (namespace, text) = (namespace.clone(), text.to_owned());
        self.write("update a record", move |tables| tables.update(&namespace, id, &text, now)).await
    }

    async fn forget_many(
        &self,
        namespace: &Namespace,
        ids: &[RecordId],
        now: Timestamp,
    ) -> amem_core::Result<Vec<Record>> {
        let (namespace, ids) = (namespace.clone(), ids.to_vec());
        let forget = move |tables: &Tables<'_>| tables.forget_many(&namespace, &ids, now);
        let forgotten = self.write("forget records", forget).await?;
        self.wipe_log().await?;
        Ok(forgotten)
    }

    async fn delete_namespace(&self, namespace: &Namespace) -> amem_core::Result<usize> {
        let namespace = namespace.clone();
        let records = self.write("delete a namespace", move |tables| tables.delete_namespace(&namespace)).await?;
        self.wipe_log().await?;
        Ok(records)
    }

    async fn history(&self, namespace: &Namespace, id: RecordId) -> amem_core::Result<Vec<Version>> {
        let namespace = namespace.clone();
        self.read("read a record's history", move |tables| tables.history(&namespace, id)).await
    }

    async fn namespaces(&self) -> amem_core::Result<Vec<Namespace>> {
        self.read("list namespaces", |tables| tables.namespaces()).await
    }

    async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> amem_core::Result<Changes> {
        let namespace = namespace.clone();
        self.read("read changes", move |tables| tables.changes(&namespace, since, now)).await
    }

    async fn link(&self, namespace: &Namespace, links: &[(RecordId, ChunkId)]) -> amem_core::Result<()> {
        let (namespace, links) = (namespace.clone(), links.to_vec());
        self.write("link chunks", move |tables| tables.link(&namespace, &links)).await
    }

    async fn pending_deletions(&self) -> amem_core::Result<Vec<ChunkId>> {
        self.read("list chunks to be deleted", |tables| tables.pending_deletions()).await
    }

    async fn confirm_deleted(&self, chunks: &[ChunkId]) -> amem_core::Result<()> {
        let chunks = chunks.to_vec();
        self.write("note that chunks were deleted", move |tables| tables.confirm_deleted(&chunks)).await
    }
}
