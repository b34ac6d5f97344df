//! [`PostgresLedger`]: the records in PostgreSQL, for many machines.
//!
//! [`options`] says where the server is; [`session`] is one connection to it, and [`pool`] gives them to calls, tries
//! again and sets limits; [`schema`] makes the tables; [`rows`] checks what is in them. [`tables`] is what can be done
//! within a transaction; this file makes calls of it.

mod error;
mod options;
mod pool;
#[macro_use]
mod rows;
mod schema;
mod session;
mod tables;

use std::fmt;
use std::sync::Arc;

use amem_core::{
    Added, Change, Changes, ChunkId, Ledger, Listing, Namespace, NewRecord, Page, PendingDeletion, Record, RecordId,
    RecordStats, Revision, SavedIndex, Timestamp, UsageEvent, UsageQuery, UsageTotal, Version,
};
use async_trait::async_trait;
use blocking::unblock;
pub use error::PostgresError;
pub use options::PostgresOptions;

use self::error::Failure;
use self::options::Settings;
use self::pool::{Pool, Work};
use self::session::Session;

/// A [`Ledger`] in a PostgreSQL database (13 or later), which any number of processes on any number of machines share.
///
/// # What it promises
/// - A call that changes something is one transaction, and durable when it returns. Whatever changes a namespace holds a
///   lock on it from its first statement to its commit. So of two servers that add the same text, or texts under the
///   same key, at the same time, one finds the other's record: a text stands once, and a key has one active record.
///   Changes of different namespaces do not wait for each other.
/// - A call that reads sees all that was committed before it began, on any server, as it was at one moment. It waits for
///   no change. [`changes`](Ledger::changes) misses none: revisions are given out under the namespace's lock, so one is
///   seen only when all before it are. If the database was set back, as by restoring a dump, it says that all must be
///   read anew.
/// - Records, their texts, usage and saved indexes have checksums, which are checked whenever they are read:
///   [`PostgresError::Damaged`]. The other tables (which KV is whose and is to be deleted, and what namespaces count)
///   have none: turn on the server's own (`initdb --data-checksums`).
/// - No call takes longer than [`PostgresOptions::call_timeout`], whatever has become of the server, but for
///   [`wipe`](Self::wipe).
///
/// Transactions run at READ COMMITTED behind the namespace's lock. One that a deadlock or a lost connection ended is run
/// again some times. If the connection is lost while a change is being committed, the server is asked what became of it.
/// Where it cannot be asked, the call fails with [`PostgresError::OutcomeUnknown`]. Then call again: a text that was
/// added is found as a duplicate, and whatever was updated, forgotten or linked is not changed twice. (A call that adds
/// several texts under one key ends with the last of them either way, but may leave some twice in the key's past.)
///
/// # What forgetting promises
/// When forgetting returns, no call that begins afterwards, on any server, gives any of it. Its texts, keys and metadata
/// are overwritten in their rows, and are kept from PostgreSQL's statistics. But PostgreSQL writes a new version of a
/// row beside the old one, so the bytes of the old one are still on its disk. The ledger has the tables vacuumed some
/// seconds later, which frees the old versions but does not erase their bytes until others are written there. Call
/// [`wipe`](Self::wipe) to have the tables' files written anew without them. Whoever copied the bytes still has them:
/// the write-ahead log until the server recycles it, replicas until they have followed, archived logs, base backups
/// and dumps for as long as you keep them. Set limits to how long that is, and keep the server's disk encrypted.
///
/// # KV stores
/// Chunks to be deleted are named to one [store](PostgresOptions::store) after the other, so machines that keep KV on
/// their own disks or in their own RAM must say so. A machine that never comes back has its store
/// [removed](Self::remove_store).
///
/// Servers that share records, and KV on a server for it, each with some of it in RAM:
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # async fn server(model: std::sync::Arc<dyn amem_core::Model>) -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
///
/// use amem_core::{Memory, RamStore, Tier, Tiered, WriteMode};
/// use amem_store::remote::{RemoteOptions, RemoteStore};
/// use amem_store::{PostgresLedger, PostgresOptions};
///
/// let mut options = PostgresOptions::default();
/// // Another name on each server, the same one at each of its starts.
/// options.store = "server-7".into();
/// let ledger = PostgresLedger::connect_with("postgresql://amem@db.internal/amem", options).await?;
/// let ram = Tier::new(Arc::new(RamStore::default()), 4 << 30);
/// let redis = RemoteStore::redis("redis://cache.internal:6379", RemoteOptions::default())?;
/// let kv = Tiered::open(vec![ram, Tier::shared(Arc::new(redis)).write(WriteMode::Back)]).await?;
/// let memory = Memory::builder(model).ledger(Arc::new(ledger)).kv(Arc::new(kv)).build()?;
/// # Ok(()) }
/// ```
///
/// # Backups
/// `pg_dump --schema=amem` while the ledger is in use gives a consistent copy; restore it with `pg_restore` or `psql`
/// into a database without this schema. What is forgotten later is still in the dump.
///
/// # Servers
/// The address is a URL or `key=value` pairs, as `psql` takes them. Several hosts may be named; the one that takes changes
/// is used, and a replica is refused, for it may still have what was forgotten. Without `sslmode=disable`, TLS is used where the server offers it, and with `sslmode=require` only so. The
/// server's certificate is always verified, with its host's name (what `psql` calls `verify-full`). A pooler between the
/// two must keep a connection for the whole session.
///
/// Cloning it gives another handle to the same connections.
#[derive(Clone)]
pub struct PostgresLedger(Arc<Pool>);

impl PostgresLedger {
    /// Connects to the ledger in the schema `amem` of a database, which is made if it is not there:
    /// `postgresql://user:password@host/database`.
    ///
    /// # Errors
    /// As [`connect_with`](Self::connect_with).
    pub async fn connect(address: &str) -> Result<Self, PostgresError> {
        Self::connect_with(address, PostgresOptions::default()).await
    }

    /// As [`connect`](Self::connect), with other options.
    ///
    /// # Errors
    /// [`PostgresError::BadAddress`] and [`PostgresError::BadOption`] for what cannot be understood,
    /// [`PostgresError::Unreachable`] when there is no connection, [`PostgresError::NewerSchema`] for a ledger of a later
    /// version of amem, [`PostgresError::NotALedger`] for a schema that holds something else.
    pub async fn connect_with(address: &str, options: PostgresOptions) -> Result<Self, PostgresError> {
        let address = address.to_owned();
        // Certificates are read from files.
        let pool = Arc::new(unblock(move || Pool::new(Settings::new(&address, options)?)).await?);
        let action = "open the ledger";
        let ledger = Self(pool.clone());
        ledger.0.run(action, async move { open(&pool, action).await }).await??;
        Ok(ledger)
    }

    /// Has the files of the ledger's tables written anew without what was forgotten, and the old ones deleted. Other calls
    /// wait meanwhile, on all servers: some seconds for each gigabyte. There is no limit to how long it takes, but one to
    /// how long they wait: a change fails after [`PostgresOptions::lock_timeout`], and a call that reads after
    /// [`PostgresOptions::statement_timeout`]. Where the largest table takes longer than that, wipe when nobody needs the
    /// ledger, or have all servers wait for longer.
    ///
    /// Rows that a transaction which began before can still see are kept, so call it again where there are long ones (a
    /// dump, say). See [above](Self#what-forgetting-promises) for what is not in these files.
    ///
    /// # Errors
    /// [`PostgresError::Timeout`] when others use the tables for longer than [`PostgresOptions::lock_timeout`].
    pub async fn wipe(&self) -> Result<(), PostgresError> {
        let (pool, action) = (self.0.clone(), "wipe what was forgotten");
        let work = async move {
            let full = "VACUUM (FULL) record, version, saved_index, usage_event, link, namespace, pending_deletion";
            pool.vacuum(full).await.map_err(|failure| plain(&pool, action, failure))
        };
        self.0.run(action, work).await?
    }

    /// Has a [store](PostgresOptions::store) that is gone for good forgotten: no deletion waits for it any more.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn remove_store(&self, store: &str) -> amem_core::Result<()> {
        self.write("remove a store", store.to_owned(), |tables, store| Box::pin(tables.remove_store(store))).await
    }

    /// Runs `work`, which changes nothing: by single statements, or by several at one moment.
    async fn read<A: Send + Sync + 'static, T: Send + 'static>(
        &self,
        action: &'static str,
        is_snapshot: bool,
        args: A,
        work: Work<A, T>,
    ) -> amem_core::Result<T> {
        let pool = self.0.clone();
        let work = async move {
            let done = pool.read(action, is_snapshot, &args, work).await;
            done.map_err(|failure| failure.into_error(action, &pool.settings.ledger))
        };
        self.0.run(action, work).await?
    }

    /// Runs `work` in a transaction, and keeps what it did if it succeeds.
    async fn write<A: Send + Sync + 'static, T: Send + 'static>(
        &self,
        action: &'static str,
        args: A,
        work: Work<A, T>,
    ) -> amem_core::Result<T> {
        let pool = self.0.clone();
        let work = async move {
            let done = pool.write(action, &args, work).await;
            done.map_err(|failure| failure.into_error(action, &pool.settings.ledger))
        };
        self.0.run(action, work).await?
    }
}

/// Connects, and makes the ledger if it is not there.
async fn open(pool: &Pool, action: &'static str) -> Result<(), PostgresError> {
    let session = Session::connect(&pool.settings).await?;
    let limit = pool.settings.options.call_timeout;
    let prepared = tokio::time::timeout(limit, schema::prepare(&session, &pool.settings)).await;
    match prepared {
        Ok(Ok(())) => pool.keep(session),
        Ok(Err(failure)) => return Err(plain(pool, action, failure)),
        Err(_) => {
            let (ledger, reason) = (pool.settings.ledger.clone(), format!("{limit:?} for a call"));
            return Err(PostgresError::Timeout { action, ledger, reason });
        }
    }
    if pool.settings.options.store.is_empty() {
        return Ok(());
    }
    // A server may have KV that others computed and linked.
    let add: Work<(), ()> = |tables, ()| Box::pin(tables.add_store());
    pool.write(action, &(), add).await.map_err(|failure| plain(pool, action, failure))
}

/// The failure of what has no rules that could forbid it.
fn plain(pool: &Pool, action: &'static str, failure: Failure) -> PostgresError {
    let ledger = pool.settings.ledger.clone();
    match failure {
        Failure::Ledger(error) => error,
        Failure::Postgres(error) => PostgresError::of(action, &ledger, &error),
        Failure::Damaged(reason) => PostgresError::Damaged { ledger, reason },
        Failure::Refused(error) => PostgresError::Damaged { ledger, reason: error.to_string() },
    }
}

impl fmt::Debug for PostgresLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresLedger({})", self.0.settings.ledger)
    }
}

#[async_trait]
impl Ledger for PostgresLedger {
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> amem_core::Result<Vec<Added>> {
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let args = (namespace.clone(), new.to_vec(), now);
        self.write("remember", args, |tables, (namespace, new, now)| Box::pin(tables.add(namespace, new, *now))).await
    }

    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> amem_core::Result<Record> {
        let args = (namespace.clone(), id, now);
        let get: Work<_, _> = |tables, (namespace, id, now)| Box::pin(tables.get(namespace, *id, *now));
        self.read("read a record", false, args, get).await
    }

    async fn get_many(
        &self,
        namespace: &Namespace,
        ids: &[RecordId],
        now: Timestamp,
    ) -> amem_core::Result<Vec<Option<Record>>> {
        let args = (namespace.clone(), ids.to_vec(), now);
        let get: Work<(_, Vec<_>, _), _> =
            |tables, (namespace, ids, now)| Box::pin(tables.get_many(namespace, ids, *now));
        self.read("read records", false, args, get).await
    }

    async fn page(&self, namespace: &Namespace, listing: &Listing) -> amem_core::Result<Page> {
        let is_snapshot = listing.filter.is_some() || listing.after.is_some();
        let args = (namespace.clone(), listing.clone());
        let page: Work<_, _> = |tables, (namespace, listing)| Box::pin(tables.page(namespace, listing));
        self.read("list records", is_snapshot, args, page).await
    }

    async fn count(&self, namespace: &Namespace, now: Timestamp) -> amem_core::Result<usize> {
        let args = (namespace.clone(), now);
        self.read("count records", false, args, |tables, (namespace, now)| Box::pin(tables.count(namespace, *now)))
            .await
    }

    async fn stats(&self, namespace: &Namespace, now: Timestamp) -> amem_core::Result<RecordStats> {
        let args = (namespace.clone(), now);
        self.read("count records", false, args, |tables, (namespace, now)| Box::pin(tables.stats(namespace, *now)))
            .await
    }

    async fn change(
        &self,
        namespace: &Namespace,
        id: RecordId,
        change: &Change,
        now: Timestamp,
    ) -> amem_core::Result<Record> {
        let args = (namespace.clone(), id, change.clone(), now);
        let work: Work<_, _> =
            |tables, (namespace, id, change, now)| Box::pin(tables.change(namespace, *id, change, *now));
        self.write("change a record", args, work).await
    }

    async fn forget_many(
        &self,
        namespace: &Namespace,
        ids: &[RecordId],
        now: Timestamp,
    ) -> amem_core::Result<Vec<Record>> {
        let args = (namespace.clone(), ids.to_vec(), now);
        let forget: Work<(_, Vec<RecordId>, _), _> =
            |tables, (namespace, ids, now)| Box::pin(tables.forget_many(namespace, ids, *now));
        let forgotten = self.write("forget records", args, forget).await?;
        self.0.vacuum_later();
        Ok(forgotten)
    }

    async fn forget_key(&self, namespace: &Namespace, key: &str, now: Timestamp) -> amem_core::Result<Vec<Record>> {
        let args = (namespace.clone(), key.to_owned(), now);
        let forget: Work<(_, String, _), _> =
            |tables, (namespace, key, now)| Box::pin(tables.forget_key(namespace, key, *now));
        let forgotten = self.write("forget a key", args, forget).await?;
        self.0.vacuum_later();
        Ok(forgotten)
    }

    async fn delete_namespace(&self, namespace: &Namespace) -> amem_core::Result<usize> {
        let delete: Work<_, _> = |tables, namespace| Box::pin(tables.delete_namespace(namespace));
        let deleted = self.write("delete a namespace", namespace.clone(), delete).await?;
        self.0.vacuum_later();
        Ok(deleted)
    }

    async fn history(&self, namespace: &Namespace, id: RecordId) -> amem_core::Result<Vec<Version>> {
        let args = (namespace.clone(), id);
        let history: Work<_, _> = |tables, (namespace, id)| Box::pin(tables.history(namespace, *id));
        self.read("read a record's history", false, args, history).await
    }

    async fn namespaces(&self) -> amem_core::Result<Vec<Namespace>> {
        self.read("list namespaces", false, (), |tables, ()| Box::pin(tables.namespaces())).await
    }

    async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> amem_core::Result<Changes> {
        let args = (namespace.clone(), since, now);
        let changes: Work<_, _> = |tables, (namespace, since, now)| Box::pin(tables.changes(namespace, *since, *now));
        self.read("read changes", false, args, changes).await
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
        let args = (namespace.clone(), links.to_vec(), now);
        let link: Work<(_, Vec<_>, _), _> =
            |tables, (namespace, links, now)| Box::pin(tables.link(namespace, links, *now));
        self.write("link chunks", args, link).await
    }

    async fn pending_deletions(&self, now: Timestamp) -> amem_core::Result<Vec<PendingDeletion>> {
        let pending: Work<_, _> = |tables, now| Box::pin(tables.pending_deletions(*now));
        self.read("list chunks to be deleted", false, now, pending).await
    }

    async fn confirm_deleted(&self, deletions: &[PendingDeletion], now: Timestamp) -> amem_core::Result<()> {
        if deletions.is_empty() {
            return Ok(());
        }
        let args = (deletions.to_vec(), now);
        let confirm: Work<(Vec<_>, _), _> =
            |tables, (deletions, now)| Box::pin(tables.confirm_deleted(deletions, *now));
        self.write("note that chunks were deleted", args, confirm).await
    }

    async fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> amem_core::Result<Vec<bool>> {
        let linked: Work<(Vec<_>, _), _> = |tables, (chunks, now)| Box::pin(tables.are_linked(chunks, *now));
        self.read("look for links", false, (chunks.to_vec(), now), linked).await
    }

    /// What transactions of others can still see is not known, so it is said to be done. Other calls wait meanwhile, and may
    /// fail: see [`PostgresLedger::wipe`].
    async fn wipe(&self) -> amem_core::Result<bool> {
        PostgresLedger::wipe(self).await?;
        Ok(true)
    }

    async fn record_usage(&self, events: &[UsageEvent]) -> amem_core::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let record: Work<Vec<_>, _> = |tables, events| Box::pin(tables.record_usage(events));
        self.write("record usage", events.to_vec(), record).await
    }

    async fn usage(&self, query: &UsageQuery) -> amem_core::Result<Vec<UsageTotal>> {
        self.read("sum up usage", false, query.clone(), |tables, query| Box::pin(tables.usage(query))).await
    }

    async fn save_index(&self, namespace: &Namespace, name: &str, index: &SavedIndex) -> amem_core::Result<bool> {
        let args = (namespace.clone(), name.to_owned(), index.clone());
        let save: Work<(_, String, _), _> =
            |tables, (namespace, name, index)| Box::pin(tables.save_index(namespace, name, index));
        self.write("save an index", args, save).await
    }

    async fn saved_index(&self, namespace: &Namespace, name: &str) -> amem_core::Result<Option<SavedIndex>> {
        let args = (namespace.clone(), name.to_owned());
        let saved: Work<(_, String), _> = |tables, (namespace, name)| Box::pin(tables.saved_index(namespace, name));
        self.read("read an index", false, args, saved).await
    }
}
