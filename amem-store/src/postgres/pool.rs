//! Calls: each on a connection of its own, again if that is safe, and never for longer than allowed.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amem_core::RecordId;
use futures_util::future::BoxFuture;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};

use super::error::{Failure, PostgresError, is_lost, is_transient};
use super::options::Settings;
use super::session::Session;
use super::tables::Tables;

/// How often a transaction is run that others or the network get in the way of.
const TRIES: u32 = 5;
/// How long after something was forgotten its rows are vacuumed, so that what is forgotten meanwhile needs it once.
const VACUUM_AFTER: Duration = Duration::from_secs(5);

/// What a call does with the tables, given its arguments.
pub(super) type Work<A, T> = for<'a> fn(&'a Tables<'a>, &'a A) -> BoxFuture<'a, Result<T, Failure>>;

pub(super) struct Pool {
    pub(super) settings: Settings,
    /// Threads of its own, so that calls work on any executor. `None` only while it is dropped.
    runtime: Option<Runtime>,
    /// Those that no call uses at the moment.
    idle: Mutex<Vec<Session>>,
    permits: Semaphore,
    is_vacuum_due: AtomicBool,
}

/// A connection that one call has for itself. If the call does not give it back, it is closed.
struct Lease<'p> {
    session: Session,
    is_reused: bool,
    _permit: SemaphorePermit<'p>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits for nothing, which would not be allowed on a thread of another executor.
            runtime.shutdown_background();
        }
    }
}

/// What became of a transaction whose end was not seen.
enum Fate {
    Committed,
    Aborted,
    Unknown,
}

impl Pool {
    pub(super) fn new(settings: Settings) -> Result<Self, PostgresError> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("amem-postgres").enable_all().build();
        let runtime = runtime.map_err(|error| PostgresError::Unreachable {
            ledger: settings.ledger.clone(),
            reason: format!("no threads: {error}"),
        })?;
        let permits = Semaphore::new(settings.options.connections);
        let (idle, is_vacuum_due) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { settings, runtime: Some(runtime), idle, permits, is_vacuum_due })
    }

    /// Runs something on the pool's own threads. It goes on to its end if the caller gives up.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, PostgresError> {
        let ended = || PostgresError::Ended { action };
        self.runtime.as_ref().ok_or_else(ended)?.spawn(work).await.map_err(|_| ended())
    }

    /// Reads: by single statements, or by several at one moment.
    pub(super) async fn read<A: Sync, T>(
        &self,
        action: &'static str,
        is_snapshot: bool,
        args: &A,
        work: Work<A, T>,
    ) -> Result<T, Failure> {
        let limit = self.settings.options.call_timeout;
        let done = timeout(limit, self.try_read(is_snapshot, args, work)).await;
        done.unwrap_or_else(|_| Err(self.late(action).into()))
    }

    async fn try_read<A: Sync, T>(&self, is_snapshot: bool, args: &A, work: Work<A, T>) -> Result<T, Failure> {
        let mut tries = 1;
        loop {
            let lease = self.lease().await?;
            let session = &lease.session;
            let tables = if is_snapshot { Tables::snapshot } else { Tables::now }(session, &self.settings);
            let done = work(&tables, args).await;
            let has_begun = tables.has_begun();
            match done {
                Err(Failure::Postgres(error)) if is_lost(&error) => self.try_again(lease, &mut tries, error).await?,
                done => {
                    if !has_begun || lease.session.batch("ROLLBACK").await.is_ok() {
                        self.give_back(lease);
                    }
                    return done;
                }
            }
        }
    }

    /// Runs a transaction, and keeps what it did if it succeeds.
    pub(super) async fn write<A: Sync, T>(
        &self,
        action: &'static str,
        args: &A,
        work: Work<A, T>,
    ) -> Result<T, Failure> {
        let is_committing = AtomicBool::new(false);
        let limit = self.settings.options.call_timeout;
        match timeout(limit, self.try_write(action, args, work, &is_committing)).await {
            Ok(done) => done,
            Err(_) if is_committing.load(Relaxed) => Err(self.unknown_outcome(action).into()),
            Err(_) => Err(self.late(action).into()),
        }
    }

    async fn try_write<A: Sync, T>(
        &self,
        action: &'static str,
        args: &A,
        work: Work<A, T>,
        is_committing: &AtomicBool,
    ) -> Result<T, Failure> {
        let mut tries = 1;
        loop {
            let lease = self.lease().await?;
            let tables = Tables::transaction(&lease.session, &self.settings);
            let done = work(&tables, args).await;
            let (has_begun, transaction) = (tables.has_begun(), tables.transaction.into_inner());
            let error = match done {
                Ok(done) if !has_begun => {
                    self.give_back(lease);
                    return Ok(done);
                }
                Ok(done) => {
                    is_committing.store(true, Relaxed);
                    let Err(error) = lease.session.batch("COMMIT").await else {
                        self.give_back(lease);
                        return Ok(done);
                    };
                    if is_lost(&error) {
                        match self.fate(transaction.as_deref()).await {
                            Fate::Committed => return Ok(done),
                            Fate::Aborted => {}
                            Fate::Unknown => return Err(self.unknown_outcome(action).into()),
                        }
                    }
                    // It was not committed, and nothing of it is left.
                    is_committing.store(false, Relaxed);
                    Failure::Postgres(error)
                }
                Err(error) => error,
            };
            match error {
                Failure::Postgres(error) if is_lost(&error) || is_transient(&error) => {
                    self.try_again(lease, &mut tries, error).await?;
                }
                error => {
                    if !has_begun || lease.session.batch("ROLLBACK").await.is_ok() {
                        self.give_back(lease);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Gives up a connection whose transaction is not to be kept, and waits a little before the next try.
    async fn try_again(&self, lease: Lease<'_>, tries: &mut u32, error: tokio_postgres::Error) -> Result<(), Failure> {
        let is_stale = lease.is_reused && is_lost(&error);
        drop(lease);
        if is_stale {
            // The server was restarted since, and the others are as old.
            self.idle().clear();
            return Ok(());
        }
        if *tries == TRIES {
            return Err(error.into());
        }
        self.pause(*tries).await;
        *tries += 1;
        Ok(())
    }

    /// Not all at the same time again.
    async fn pause(&self, tries: u32) {
        let [.., random] = RecordId::new().to_bytes();
        sleep(Duration::from_millis((10 << tries) + u64::from(random) / 8)).await;
    }

    /// Asks the server what became of a transaction, for as long as it may take to connect twice. One without a number
    /// has changed nothing.
    async fn fate(&self, transaction: Option<&str>) -> Fate {
        let Some(transaction) = transaction else { return Fate::Committed };
        let until = Instant::now() + 2 * self.settings.options.connect_timeout;
        self.idle().clear();
        let mut tries = 0;
        while Instant::now() < until {
            if let Ok(session) = Session::connect(&self.settings).await {
                let status = "SELECT pg_xact_status($1::text::xid8)";
                let rows = session.rows(status, &[&transaction]).await.unwrap_or_default();
                match rows.first().and_then(|row| row.try_get::<_, Option<&str>>(0).ok()).flatten() {
                    Some("committed") => return Fate::Committed,
                    Some("aborted") => return Fate::Aborted,
                    // The server has not noticed yet that nobody waits for it.
                    Some("in progress") => {}
                    _ => return Fate::Unknown,
                }
            }
            self.pause(tries).await;
            tries = (tries + 1).min(5);
        }
        Fate::Unknown
    }

    async fn lease(&self) -> Result<Lease<'_>, Failure> {
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|_| PostgresError::Ended { action: "wait for a connection" })?;
        // The one that was used last, so that others are left alone where few are needed.
        while let Some(session) = self.take_idle() {
            if !session.is_closed() {
                return Ok(Lease { session, is_reused: true, _permit: permit });
            }
        }
        let session = Session::connect(&self.settings).await?;
        Ok(Lease { session, is_reused: false, _permit: permit })
    }

    pub(super) fn take_idle(&self) -> Option<Session> {
        self.idle().pop()
    }

    fn give_back(&self, lease: Lease<'_>) {
        self.keep(lease.session);
    }

    /// Keeps a connection for later calls.
    pub(super) fn keep(&self, session: Session) {
        self.idle().push(session);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self, action: &'static str) -> PostgresError {
        let reason = format!("{:?} for a call", self.settings.options.call_timeout);
        PostgresError::Timeout { action, ledger: self.settings.ledger.clone(), reason }
    }

    fn unknown_outcome(&self, action: &'static str) -> PostgresError {
        PostgresError::OutcomeUnknown { action, ledger: self.settings.ledger.clone() }
    }

    /// Has the rows of what was forgotten vacuumed soon.
    pub(super) fn vacuum_later(self: &Arc<Self>) {
        if self.is_vacuum_due.swap(true, Relaxed) {
            return;
        }
        let (Some(runtime), pool) = (&self.runtime, Arc::downgrade(self)) else { return };
        runtime.spawn(async move {
            sleep(VACUUM_AFTER).await;
            let Some(pool) = pool.upgrade() else { return };
            pool.is_vacuum_due.store(false, Relaxed);
            // The server's autovacuum does what cannot be done now.
            let tables = "record, version, saved_index, usage_event, link, namespace, pending_deletion";
            let _ = pool.vacuum(&format!("VACUUM (SKIP_LOCKED) {tables}")).await;
        });
    }

    /// Vacuums, for as long as that takes, on a connection of its own.
    pub(super) async fn vacuum(&self, sql: &str) -> Result<(), Failure> {
        let session = Session::connect(&self.settings).await?;
        let locks = self.settings.options.lock_timeout.as_millis();
        session.batch(&format!("SET statement_timeout TO 0; SET lock_timeout TO {locks}")).await?;
        Ok(session.batch(sql).await?)
    }
}
