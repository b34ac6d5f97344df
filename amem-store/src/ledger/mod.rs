//! [`SqliteLedger`]: the records in one SQLite file.
//!
//! [`schema`] says what the file's tables mean, and makes them; [`connection`] opens it; [`check`] looks for damage, by
//! [`checksum`]s and more; [`copy`] makes backups of it, which [`publish`] gives their names. [`tables`] is what can be
//! done within a transaction; this file makes transactions of it.

#[macro_use]
mod checksum;
mod check;
mod connection;
mod copy;
mod publish;
mod schema;
mod tables;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use amem_core::{
    Added, Change, Changes, ChunkId, Ledger, Listing, Namespace, NewRecord, Page, PendingDeletion, Record, RecordId,
    RecordStats, Revision, SavedIndex, Timestamp, UsageEvent, UsageQuery, UsageTotal, Version,
};
use async_trait::async_trait;
use blocking::unblock;
use check::Check;
pub use check::Verification;
use rusqlite::{Connection, TransactionBehavior};

use self::connection::Reader;
use self::tables::{Failure, Tables};
use crate::{Error, Result};

/// Connections that only read and are kept for the next call.
const READERS: usize = 8;
/// How long forgetting waits for reads that are under way, so that it can wipe what it forgot before it returns.
const MOMENT: Duration = Duration::from_millis(20);

/// A [`Ledger`] in a SQLite file.
///
/// A call that writes is one transaction and is on the disk when it returns, so add many texts in one call where there
/// are many. A call that reads waits for no write, of this process or another. Processes may share the file, if all of
/// them are on one machine.
///
/// Forgetting wipes a text from the file and its log, not only from view. While somebody reads the ledger as it was
/// before (a backup that is being written, say), or while the disk is full, the log cannot be wiped; then the first call
/// after that does it, of any process that uses the ledger. [`wipe`](Self::wipe) tells whether it is done.
///
/// Records, their texts, usage and saved indexes have checksums. What is read of them and is not what was written is
/// [`Error::Damaged`]. So is a file that is damaged elsewhere, when it is opened (in full up to 8 MiB, in its structure
/// up to 96 MiB, not counting [saved indexes](Ledger::save_index) then) or [verified](Self::verify).
///
/// That a record expired is no change to the ledger: [`changes`](Ledger::changes) does not name it when its time comes.
/// Whoever keeps records at hand has their [`expires_at`](Record::expires_at), and filters by the time it is.
///
/// Cloning it gives another handle to the same connections.
#[derive(Clone)]
pub struct SqliteLedger(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// `None` where it was opened for reading only.
    writer: Option<Mutex<Connection>>,
    /// Those that nobody uses at the moment.
    readers: Mutex<Vec<Connection>>,
    /// The last change known here that left something to be wiped from the log.
    forgotten: AtomicI64,
    /// The last such change after which the log was wiped.
    wiped: AtomicI64,
}

impl SqliteLedger {
    /// Opens the ledger at `path`, which is made if it is not there.
    ///
    /// # Errors
    /// When the file cannot be opened, is damaged or empty, is no ledger, or has a schema of a later version of amem.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_checked(path.as_ref(), Check::All)
    }

    /// Opens the ledger at `path` though records in it may be damaged, so that these can be
    /// [forgotten](Ledger::forget): [`Verification::damaged`] names them. Reading them is [`Error::Damaged`] as before, and
    /// so is whatever reads a namespace as a whole.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for damaged records; when there is no ledger.
    pub fn open_damaged(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !schema::exists(path)? {
            return Err(Error::io("open the ledger", path)(std::io::ErrorKind::NotFound.into()));
        }
        Self::open_checked(path, Check::Structure)
    }

    fn open_checked(path: &Path, check: Check) -> Result<Self> {
        let writer = schema::open(path, check)?;
        let ledger = Self::with(path, Some(Mutex::new(writer)));
        ledger.0.note_forgotten_at_open()?;
        // A process that ended right after it forgot something may have left the text in the log.
        match ledger.0.wipe_log(Duration::ZERO) {
            // A later call does it, once there is room. Whoever can make room has to open the ledger first.
            Err(Error::Full { .. }) => {}
            wiped => _ = wiped?,
        }
        Ok(ledger)
    }

    /// Opens the ledger at `path` for reading: where the file, its directory or its file system may not be written, or
    /// should not be. Whatever would change it is [`ReadOnly`](amem_core::Error::ReadOnly).
    ///
    /// Where the directory cannot be written and no process has the ledger open, it is read without locks: a process
    /// that begins to write to it meanwhile can make a read fail.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when there is no ledger or it is of an earlier version of amem.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !schema::exists(path)? {
            return Err(Error::io("open the ledger", path)(std::io::ErrorKind::NotFound.into()));
        }
        let Reader { connection, .. } = connection::to_read(path)?;
        schema::is_current(&connection, path)?;
        check::at_open(&connection, path, Check::All)?;
        Ok(Self::with(path, None))
    }

    fn with(path: &Path, writer: Option<Mutex<Connection>>) -> Self {
        let (path, readers) = (path.to_owned(), Mutex::default());
        Self(Arc::new(Inner { path, writer, readers, forgotten: AtomicI64::new(0), wiped: AtomicI64::new(0) }))
    }

    /// Writes a backup to `to`: one file, complete in itself, that holds the ledger as it is at one moment, and can be
    /// [restored](crate::restore). The ledger stays in use meanwhile. What is forgotten later is still in the backup.
    ///
    /// Until it is complete it is in a folder beside `to`, `.amem-draft-…`, that its owner alone can read. If the process is
    /// killed meanwhile, the next backup to that directory removes the folder, or whoever next opens a ledger there.
    ///
    /// # Errors
    /// [`Error::Exists`] when there is such a file, [`Error::Damaged`] when the ledger is damaged; when the file cannot be
    /// written.
    pub async fn backup(&self, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (self.0.path.clone(), to.as_ref().to_owned());
        unblock(move || copy::copy(&from, &to)).await
    }

    /// Checks the whole ledger: the file's structure, every checksum, and what records, texts and links say of one another.
    /// Damage is told in the answer and is no error.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn verify(&self) -> Result<Verification> {
        let path = self.0.path.clone();
        unblock(move || verify(&path)).await
    }

    /// Wipes what was forgotten from the write-ahead log, if that is still to be done. `false` while somebody reads the
    /// ledger as it was before: then the next call tries again.
    ///
    /// # Errors
    /// When the log cannot be moved into the ledger's file, as on a full disk.
    pub async fn wipe(&self) -> Result<bool> {
        let inner = self.0.clone();
        unblock(move || inner.wipe_log(MOMENT)).await
    }

    /// Runs `work` on a connection that only reads, in one transaction.
    async fn read<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Tables<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> amem_core::Result<T> {
        let inner = self.0.clone();
        unblock(move || {
            let done = inner.read(work).map_err(|failure| inner.error(doing, failure));
            inner.wipe_if_due();
            done
        })
        .await
    }

    /// Runs `work` in a transaction, and keeps what it did if it succeeds.
    async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Tables<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> amem_core::Result<T> {
        let inner = self.0.clone();
        unblock(move || {
            let done = inner.write(work).map_err(|failure| inner.error(doing, failure));
            inner.wipe_if_due();
            done
        })
        .await
    }

    /// As [`write`](Self::write), for what leaves something to be wiped.
    async fn write_and_wipe<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Tables<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> amem_core::Result<T> {
        let inner = self.0.clone();
        unblock(move || {
            let done = inner.write(work).map_err(|failure| inner.error(doing, failure))?;
            // It is forgotten, whether the log can be wiped now or not. Later calls try again.
            let _ = inner.wipe_log(MOMENT);
            Ok(done)
        })
        .await
    }
}

/// Checks the whole ledger at `path`, which may be too damaged to be opened.
pub(crate) fn verify(path: &Path) -> Result<Verification> {
    if !schema::exists(path)? {
        return Err(Error::io("open the ledger", path)(std::io::ErrorKind::NotFound.into()));
    }
    check::verify(&connection::to_read(path)?.connection, path)
}

/// Copies the ledger at `from` into the new file `to`.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    copy::copy(from, to)
}

/// Whether there is a ledger at `path`.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    schema::exists(path)
}

impl fmt::Debug for SqliteLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteLedger({})", self.0.path.display())
    }
}

impl Inner {
    fn read<T>(&self, work: impl FnOnce(&Tables<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        let kept = self.readers().pop();
        let Reader { mut connection, is_immutable } = match kept {
            Some(connection) => Reader { connection, is_immutable: false },
            None => connection::to_read(&self.path).map_err(Failure::Store)?,
        };
        let transaction = connection.transaction()?;
        let done = work(&Tables(&transaction))?;
        self.forgotten.fetch_max(Tables(&transaction).last_forgotten()?, Relaxed);
        transaction.finish()?;
        let mut readers = self.readers();
        if !is_immutable && readers.len() < READERS {
            readers.push(connection);
        }
        Ok(done)
    }

    fn write<T>(&self, work: impl FnOnce(&Tables<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut connection = self.writer().map_err(Failure::Store)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&Tables(&transaction))?;
        let forgotten = Tables(&transaction).last_forgotten()?;
        transaction.commit()?;
        self.forgotten.fetch_max(forgotten, Relaxed);
        Ok(done)
    }

    fn readers(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> Result<MutexGuard<'_, Connection>> {
        let reason = "it was opened so".to_owned();
        let writer = self.writer.as_ref().ok_or_else(|| Error::ReadOnly { path: self.path.clone(), reason })?;
        // A panic in a transaction rolls it back, so the connection is as good as before.
        Ok(writer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn error(&self, doing: &'static str, failure: Failure) -> amem_core::Error {
        match failure {
            Failure::Refused(error) => error,
            Failure::Damaged(reason) => Error::Damaged { path: self.path.clone(), reason }.into(),
            Failure::Sqlite(error) => Error::ledger(doing, &self.path)(error).into(),
            Failure::Store(error) => error.into(),
        }
    }

    /// Learns whether another process may have left something to be wiped.
    fn note_forgotten_at_open(&self) -> Result<()> {
        let last = Tables(&*self.writer()?).last_forgotten();
        let last = last.map_err(|failure| match failure {
            Failure::Sqlite(error) => Error::ledger("read the ledger", &self.path)(error),
            Failure::Store(error) => error,
            _ => Error::Damaged { path: self.path.clone(), reason: "it does not say what was forgotten".to_owned() },
        })?;
        self.forgotten.store(last, Relaxed);
        Ok(())
    }

    /// Leaves nothing of what was forgotten in the write-ahead log. `false` if somebody reads it for longer than
    /// `patience`.
    fn wipe_log(&self, patience: Duration) -> Result<bool> {
        self.wipe_log_of(&*self.writer()?, patience)
    }

    fn wipe_log_of(&self, writer: &Connection, patience: Duration) -> Result<bool> {
        let forgotten = self.forgotten.load(Relaxed);
        let wiped = connection::wipe_log(writer, patience);
        let wiped = wiped.map_err(Error::ledger("wipe what was forgotten", &self.path))?;
        if wiped {
            self.wiped.fetch_max(forgotten, Relaxed);
        }
        Ok(wiped)
    }

    /// Tries to wipe what could not be wiped when it was forgotten, or was forgotten by a process that could not. Waits
    /// for nobody.
    fn wipe_if_due(&self) {
        let Some(writer) = &self.writer else { return };
        if self.forgotten.load(Relaxed) <= self.wiped.load(Relaxed) {
            return;
        }
        let writer = match writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Whoever has it does this after its write.
            Err(TryLockError::WouldBlock) => return,
        };
        // What cannot be done now is tried again by the next call.
        let _ = self.wipe_log_of(&writer, Duration::ZERO);
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> amem_core::Result<Vec<Added>> {
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let (namespace, new) = (namespace.clone(), new.to_vec());
        self.write("remember", move |tables| tables.add(&namespace, &new, now)).await
    }

    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> amem_core::Result<Record> {
        let namespace = namespace.clone();
        self.read("read a record", move |tables| Ok(tables.find(&namespace, id)?.record(now))).await
    }

    async fn get_many(
        &self,
        namespace: &Namespace,
        ids: &[RecordId],
        now: Timestamp,
    ) -> amem_core::Result<Vec<Option<Record>>> {
        let (namespace, ids) = (namespace.clone(), ids.to_vec());
        self.read("read records", move |tables| {
            let found = ids.iter().map(|id| Ok(tables.get(&namespace, *id)?.map(|found| found.record(now))));
            found.collect()
        })
        .await
    }

    async fn page(&self, namespace: &Namespace, listing: &Listing) -> amem_core::Result<Page> {
        let (namespace, listing) = (namespace.clone(), listing.clone());
        self.read("list records", move |tables| tables.page(&namespace, &listing)).await
    }

    async fn count(&self, namespace: &Namespace, now: Timestamp) -> amem_core::Result<usize> {
        let namespace = namespace.clone();
        self.read("count records", move |tables| tables.count(&namespace, now)).await
    }

    async fn change(
        &self,
        namespace: &Namespace,
        id: RecordId,
        change: &Change,
        now: Timestamp,
    ) -> amem_core::Result<Record> {
        let (namespace, change) = (namespace.clone(), change.clone());
        self.write("change a record", move |tables| tables.change(&namespace, id, &change, now)).await
    }

    async fn forget_many(
        &self,
        namespace: &Namespace,
        ids: &[RecordId],
        now: Timestamp,
    ) -> amem_core::Result<Vec<Record>> {
        let (namespace, ids) = (namespace.clone(), ids.to_vec());
        self.write_and_wipe("forget records", move |tables| tables.forget_many(&namespace, &ids, now)).await
    }

    async fn forget_key(&self, namespace: &Namespace, key: &str, now: Timestamp) -> amem_core::Result<Vec<Record>> {
        let (namespace, key) = (namespace.clone(), key.to_owned());
        self.write_and_wipe("forget a key", move |tables| tables.forget_key(&namespace, &key, now)).await
    }

    async fn delete_namespace(&self, namespace: &Namespace) -> amem_core::Result<usize> {
        let namespace = namespace.clone();
        self.write_and_wipe("delete a namespace", move |tables| tables.delete_namespace(&namespace)).await
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

    async fn link(
        &self,
        namespace: &Namespace,
        links: &[(RecordId, ChunkId)],
        now: Timestamp,
    ) -> amem_core::Result<()> {
        if links.is_empty() {
            return Ok(());
        }
        let (namespace, links) = (namespace.clone(), links.to_vec());
        self.write("link chunks", move |tables| tables.link(&namespace, &links, now)).await
    }

    async fn pending_deletions(&self, now: Timestamp) -> amem_core::Result<Vec<PendingDeletion>> {
        self.read("list chunks to be deleted", move |tables| tables.pending_deletions(now)).await
    }

    async fn confirm_deleted(&self, deletions: &[PendingDeletion], now: Timestamp) -> amem_core::Result<()> {
        if deletions.is_empty() {
            return Ok(());
        }
        let deletions = deletions.to_vec();
        self.write("note that chunks were deleted", move |tables| tables.confirm_deleted(&deletions, now)).await
    }

    async fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> amem_core::Result<Vec<bool>> {
        let chunks = chunks.to_vec();
        self.read("look for links", move |tables| tables.are_linked(&chunks, now)).await
    }

    async fn stats(&self, namespace: &Namespace, now: Timestamp) -> amem_core::Result<RecordStats> {
        let namespace = namespace.clone();
        self.read("count records", move |tables| tables.stats(&namespace, now)).await
    }

    async fn wipe(&self) -> amem_core::Result<bool> {
        Ok(SqliteLedger::wipe(self).await?)
    }

    async fn record_usage(&self, events: &[UsageEvent]) -> amem_core::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let events = events.to_vec();
        self.write("record usage", move |tables| tables.record_usage(&events)).await
    }

    async fn usage(&self, query: &UsageQuery) -> amem_core::Result<Vec<UsageTotal>> {
        let query = query.clone();
        self.read("sum up usage", move |tables| tables.usage(&query)).await
    }

    async fn save_index(&self, namespace: &Namespace, name: &str, index: &SavedIndex) -> amem_core::Result<bool> {
        let (namespace, name, index) = (namespace.clone(), name.to_owned(), index.clone());
        self.write("save an index", move |tables| tables.save_index(&namespace, &name, &index)).await
    }

    async fn saved_index(&self, namespace: &Namespace, name: &str) -> amem_core::Result<Option<SavedIndex>> {
        let (namespace, name) = (namespace.clone(), name.to_owned());
        self.read("read an index", move |tables| tables.saved_index(&namespace, &name)).await
    }
}
