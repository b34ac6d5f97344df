//! [`RemoteStore`]: the parts put together, on threads of their own.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amem_core::{ChunkId, KvChunk, KvStore, StoreStats, StoredChunk};
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use opendal::{Buffer, Operator};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use super::breaker::{Breaker, Gate, Outcome};
use super::error::RemoteError;
use super::format::{self, FIXED, HEAD, Head, PARTS};
use super::objects::{Read, Requests};
use super::options::RemoteOptions;

/// Threads that talk to the server.
const WORKERS: usize = 2;
/// Threads that compute checksums, and that wait for files where the service is a file system.
const BLOCKING: usize = 16;
/// Locks, each for its share of the chunks.
const LOCKS: usize = 64;
/// The grain in which bytes on their way are counted.
const GRAIN: usize = 64 << 10;
/// Chunks that are remembered: beyond this many, [`KvStore::stats`] counts too few.
const KNOWN: usize = 1 << 20;
/// Bytes of a token, where nothing is known that would tell.
const TOKEN: u64 = 128 << 10;
/// Bytes of a part on Redis. Its client gives every request half a second, which cannot be changed through OpenDAL.
const REDIS_PART: usize = 1 << 20;
/// Requests under way at most on Redis, for the same reason: together they share the way to the server.
const REDIS_REQUESTS: usize = 8;
/// Chunks that are deleted in one go, within one deadline.
const DELETED: usize = 256;
/// The same where each object takes a request of its own: 65 a chunk.
const DELETED_SINGLY: usize = 4;

/// A [`KvStore`] on a server that many machines share.
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # async fn shared() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
///
/// use amem_core::{RamStore, Tier, Tiered, WriteMode};
/// use amem_store::remote::{RemoteOptions, RemoteStore};
///
/// let ram = Tier::new(Arc::new(RamStore::default()), 4 << 30);
/// let remote = RemoteStore::redis("redis://cache.internal:6379", RemoteOptions::default())?;
/// let kv = Tiered::open(vec![ram, Tier::shared(Arc::new(remote)).write(WriteMode::Back)]).await?;
/// # Ok(()) }
/// ```
///
/// - A chunk is one object, or a head and up to 64 parts. All that comes back is checked, its lengths before anything is
///   allocated for it. What is damaged, torn or another chunk's is a miss, counted in [`StoreStats::damaged`], and is
///   written anew when the chunk is put again by this process. [`RemoteOptions::secret`] keeps out what others forge.
/// - A call has one deadline; one that deletes has it for each few chunks, so that it can delete any number. What was
///   read by then is returned, the rest are misses; where nothing was read, it is an error, which callers of
///   [`KvStore::get_many`] treat as a miss.
/// - A server that fails some times in a row, or does not answer at all, is left alone for a while: calls then fail at
///   once. After the pause it is asked in the background, so that no call waits for a dead server twice.
/// - A [`delete`](KvStore::delete) that could not reach the server is an error, and has to be tried again. It removes every
///   object that any version of the chunk can have left. What another machine is about to put may come after it: nobody
///   may put a chunk's text any more when it is deleted. A versioned bucket keeps what was deleted: use one without.
/// - Other machines put and delete meanwhile. A `get` always asks the server, so it finds what they put.
///
/// A shared server needs no budget: bound it by [`RemoteOptions::ttl`], by the server's own eviction, or by a lifecycle of
/// the bucket, and put it into a [`Tiered`](amem_core::Tiered) by [`Tier::shared`](amem_core::Tier::shared), which neither
/// lists nor evicts what is there. [`stats`](KvStore::stats) counts the chunks that this process has put or found. `page` and
/// `list` do too where the service cannot list ([`can_list`](Self::can_list)), as Redis; elsewhere they ask the server, and
/// guess how many tokens a chunk has that this process has not seen.
///
/// [`prefetch`](KvStore::prefetch) does nothing, for the `get` comes right behind it. [`sync`](KvStore::sync) does nothing: what
/// a server does with what it has acknowledged is its own affair.
///
/// The futures need no particular runtime: the store has two threads of its own. They end when the last clone is dropped.
/// A `get` that nobody waits for any more stops; a `put` or `delete` goes on until its deadline.
#[derive(Clone)]
pub struct RemoteStore {
    inner: Arc<Inner>,
    workers: Arc<Workers>,
}

/// The threads. Dropping them waits for nothing, so that it can be done on another runtime's thread.
struct Workers(Option<Runtime>);

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Work that ends when nobody waits for it.
struct Abandoned<T>(JoinHandle<T>);

impl<T> Drop for Abandoned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Inner {
    operator: Operator,
    options: RemoteOptions,
    root: String,
    requests: Semaphore,
    /// Bytes that may be on their way, in grains.
    room: Semaphore,
    breaker: Breaker,
    known: Mutex<Known>,
    /// Held by whoever writes or deletes a chunk of its share, so that a deletion of this process is not undone by a put of
    /// this process that began before it.
    locks: Vec<tokio::sync::Mutex<()>>,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
}

/// What this process has seen of the server.
#[derive(Default)]
struct Known {
    chunks: BTreeMap<ChunkId, StoredChunk>,
    bytes: u64,
    tokens: u64,
    /// Chunks whose objects turned out damaged: they are written anew whatever their heads claim.
    damaged: HashSet<ChunkId>,
}

impl Known {
    fn insert(&mut self, chunk: StoredChunk) {
        self.remove(&chunk.id);
        if self.chunks.len() < KNOWN {
            self.bytes += chunk.bytes;
            self.tokens += chunk.tokens as u64;
            self.chunks.insert(chunk.id, chunk);
        }
    }

    fn remove(&mut self, id: &ChunkId) {
        if let Some(chunk) = self.chunks.remove(id) {
            self.bytes -= chunk.bytes;
            self.tokens -= chunk.tokens as u64;
        }
        self.damaged.remove(id);
    }

    fn note_damage(&mut self, id: &ChunkId) {
        self.remove(id);
        if self.damaged.len() < KNOWN {
            self.damaged.insert(*id);
        }
    }

    /// A chunk of which the server says that it has so many bytes.
    fn stored(&self, id: ChunkId, bytes: u64) -> StoredChunk {
        let guess = || bytes / self.bytes.checked_div(self.tokens).unwrap_or(TOKEN).max(1);
        let tokens = self.chunks.get(&id).map_or_else(guess, |chunk| chunk.tokens as u64);
        StoredChunk { id, tokens: usize::try_from(tokens).unwrap_or(usize::MAX).max(1), bytes }
    }
}

/// What came of looking for a chunk.
enum Fetched {
    Chunk(KvChunk),
    Missing,
    Damaged(&'static str),
}

/// What a head held.
enum Parsed {
    Whole(KvChunk),
    Parts(Arc<Head>),
    Damaged,
}

impl RemoteStore {
    /// A store on whatever the operator reaches. Give the operator no layers that repeat or time out requests: the store
    /// has deadlines of its own, and repeating multiplies them.
    ///
    /// # Errors
    /// [`RemoteError::Setting`] for options that make no sense, or a service that cannot read, write and delete.
    pub fn new(operator: Operator, options: RemoteOptions) -> Result<Self, RemoteError> {
        if let Some(ttl) = options.ttl {
            let expected = "left out: only Redis keeps objects for a time; set up a lifecycle in the service";
            return Err(RemoteError::Setting { what: "ttl", value: format!("{ttl:?}"), expected });
        }
        Self::build(operator, options)
    }

    /// A store on a Redis or Valkey server: `redis://user:password@host:6379/0`, `rediss://` for TLS, or
    /// `redis+unix:///path?db=0&user=user&pass=password` for a socket.
    ///
    /// On Redis, parts have at most 1 MiB, and at most 8 requests are under way, whatever the options say: the client
    /// gives each request half a second. And it takes in an answer as a whole: what is too long is not asked for, but a
    /// server that lies about a length, or sends more than it was asked for, can make this process hold what it sends.
    /// Use one that you trust that far.
    ///
    /// # Errors
    /// [`RemoteError::Setting`] for a URL or options that make no sense. The server is not asked yet.
    #[cfg(feature = "redis")]
    pub fn redis(url: &str, options: RemoteOptions) -> Result<Self, RemoteError> {
        let mut builder = super::redis::builder(url)?.connection_pool_max_size(REDIS_REQUESTS);
        if let Some(ttl) = options.ttl {
            if ttl.as_secs() == 0 {
                return Err(RemoteError::Setting {
                    what: "ttl",
                    value: format!("{ttl:?}"),
                    expected: "a second or more",
                });
            }
            builder = builder.default_ttl(ttl);
        }
        Self::build(Operator::new(builder).map_err(|error| RemoteError::service("set up Redis", &error))?, options)
    }

    /// A store in a bucket of S3 or of what speaks its protocol. Credentials that the builder was not given are taken from
    /// the environment, as AWS's tools do. They need the right to list the bucket, or the server calls what is missing
    /// forbidden.
    ///
    /// ```no_run
    /// # fn bucket() -> Result<(), amem_store::remote::RemoteError> {
    /// use amem_store::remote::opendal::services::S3;
    /// use amem_store::remote::{RemoteOptions, RemoteStore};
    ///
    /// let bucket = S3::default().bucket("agents-kv").region("eu-central-1");
    /// let store = RemoteStore::s3(bucket, RemoteOptions::default())?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`RemoteError`] for a builder or options that make no sense. The server is not asked yet.
    #[cfg(feature = "s3")]
    pub fn s3(bucket: opendal::services::S3, options: RemoteOptions) -> Result<Self, RemoteError> {
        Self::new(Operator::new(bucket).map_err(|error| RemoteError::service("set up S3", &error))?, options)
    }

    fn build(operator: Operator, mut options: RemoteOptions) -> Result<Self, RemoteError> {
        options.check()?;
        if operator.info().scheme() == "redis" {
            options.part_bytes = options.part_bytes.min(REDIS_PART);
            options.concurrency = options.concurrency.min(REDIS_REQUESTS);
        }
        let can = operator.info().capability();
        if !(can.read && can.write && can.delete && can.stat) {
            let (value, expected) = (operator.info().scheme().to_owned(), "one that can read, write and delete");
            return Err(RemoteError::Setting { what: "the service", value, expected });
        }
        // Without it, services that speak HTTP have nothing to speak it with.
        opendal::install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING)
            .thread_name("amem-remote")
            .enable_all()
            .build()
            .map_err(RemoteError::Threads)?;
        let grains = (options.bytes_in_flight / GRAIN).min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        let inner = Inner {
            operator,
            root: options.root(),
            requests: Semaphore::new(options.concurrency),
            room: Semaphore::new(grains),
            breaker: Breaker::new(options.failures, (options.pause.min(options.max_pause), options.max_pause)),
            known: Mutex::default(),
            locks: (0..LOCKS).map(|_| tokio::sync::Mutex::default()).collect(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            options,
        };
        Ok(Self { inner: Arc::new(inner), workers: Arc::new(Workers(Some(runtime))) })
    }

    /// Whether `page` and `list` tell what the server holds, and not only what this process has put or found.
    pub fn can_list(&self) -> bool {
        self.inner.operator.info().capability().list
    }

    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = amem_core::Result<T>> + Send + 'static,
    ) -> Result<JoinHandle<amem_core::Result<T>>, RemoteError> {
        Ok(self.workers.0.as_ref().ok_or(RemoteError::Closed)?.spawn(work))
    }

    /// Work that ends when nobody waits for it.
    async fn read<T: Send + 'static>(
        &self,
        work: impl Future<Output = amem_core::Result<T>> + Send + 'static,
    ) -> amem_core::Result<T> {
        let mut task = Abandoned(self.spawn(work)?);
        (&mut task.0).await.unwrap_or_else(|_| Err(RemoteError::Closed.into()))
    }

    /// Work that goes on when nobody waits for it.
    async fn write<T: Send + 'static>(
        &self,
        work: impl Future<Output = amem_core::Result<T>> + Send + 'static,
    ) -> amem_core::Result<T> {
        self.spawn(work)?.await.unwrap_or_else(|_| Err(RemoteError::Closed.into()))
    }
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteStore({}, {})", self.inner.operator.info().scheme(), self.inner.root)
    }
}

/// Computes something that takes long, beside the threads that talk to the server.
async fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RemoteError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RemoteError::Closed)
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path of a chunk's head or part.
    fn path(&self, id: &ChunkId, object: &str) -> String {
        format!("{}{id}.{object}", self.root)
    }

    fn requests(&self) -> Requests<'_> {
        Requests::new(&self.operator, &self.requests)
    }

    /// Room for so many bytes on their way; all of it for what is larger.
    async fn room(&self, bytes: usize) -> Result<SemaphorePermit<'_>, RemoteError> {
        let all = (self.options.bytes_in_flight / GRAIN).min(u32::MAX as usize);
        self.room.acquire_many(bytes.div_ceil(GRAIN).min(all) as u32).await.map_err(|_| RemoteError::Closed)
    }

    /// Does what may be done within a time, unless the server is left alone. What it was asked tells how it is.
    async fn timed<T, E: From<RemoteError>>(
        self: &Arc<Self>,
        action: &'static str,
        within: Duration,
        requests: &Requests<'_>,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        match self.breaker.gate(Instant::now()) {
            Gate::Closed => {}
            Gate::Open(retry_in) => return Err(RemoteError::Unavailable { retry_in }.into()),
            Gate::Probe(retry_in) => {
                tokio::spawn(Arc::clone(self).probe());
                return Err(RemoteError::Unavailable { retry_in }.into());
            }
        }
        let result = tokio::time::timeout(within, work).await;
        let outcome = requests.outcome(result.is_err().then_some(within));
        if outcome.is_some_and(|outcome| self.breaker.ended(outcome, Instant::now())) {
            log::warn!("the remote store does not answer: it is left alone for {:?}", self.options.pause);
        }
        result.unwrap_or_else(|_| Err(RemoteError::Deadline { action, within }.into()))
    }

    /// Finds out whether the server is back.
    async fn probe(self: Arc<Self>) {
        // Others' requests, which the server may never answer, do not keep this one from being sent.
        let turn = Semaphore::new(1);
        let requests = Requests::new(&self.operator, &turn);
        let path = format!("{}probe", self.root);
        let asked = tokio::time::timeout(self.options.deadline, requests.exists(&path)).await;
        let outcome = if matches!(asked, Ok(Ok(_))) { Outcome::Answered } else { Outcome::Failed };
        if outcome == Outcome::Answered {
            log::info!("the remote store answers again");
        }
        self.breaker.probed(outcome, Instant::now());
    }

    async fn get_many(self: Arc<Self>, ids: Vec<ChunkId>) -> amem_core::Result<Vec<Option<KvChunk>>> {
        let requests = self.requests();
        let mut found: Vec<Option<KvChunk>> = vec![None; ids.len()];
        let mut failure = None;
        let work = async {
            let (this, requests) = (&self, &requests);
            let fetch = |(at, id)| async move { (at, this.fetch(requests, id).await) };
            let mut fetched =
                stream::iter(ids.iter().copied().enumerate()).map(fetch).buffer_unordered(self.options.concurrency);
            while let Some((at, fetched)) = fetched.next().await {
                match fetched {
                    Ok(chunk) => found[at] = self.note(&ids[at], chunk),
                    Err(error) => failure = Some(error),
                }
            }
            Ok(())
        };
        if let Err(error) = self.timed("read", self.options.deadline, &requests, work).await {
            failure = Some(error);
        }
        let hits = found.iter().flatten().count();
        self.hits.fetch_add(hits as u64, Relaxed);
        self.misses.fetch_add((ids.len() - hits) as u64, Relaxed);
        match failure {
            Some(error) if hits == 0 => Err(error.into()),
            Some(error) => {
                log::warn!("{} of {} chunks came from the remote store: {error}", hits, ids.len());
                Ok(found)
            }
            None => Ok(found),
        }
    }

    /// Remembers what came of looking for a chunk.
    fn note(&self, id: &ChunkId, fetched: Fetched) -> Option<KvChunk> {
        match fetched {
            Fetched::Chunk(chunk) => {
                self.known().insert(StoredChunk::of(&chunk));
                Some(chunk)
            }
            Fetched::Missing => {
                self.known().remove(id);
                None
            }
            Fetched::Damaged(reason) => {
                log::warn!("chunk {id} is damaged in the remote store: {reason}");
                self.damaged.fetch_add(1, Relaxed);
                self.known().note_damage(id);
                None
            }
        }
    }

    async fn fetch(&self, requests: &Requests<'_>, id: ChunkId) -> Result<Fetched, RemoteError> {
        let head = {
            let _room = self.room(HEAD).await?;
            let bytes = match requests.read(&self.path(&id, "head"), HEAD).await? {
                Read::Found(bytes) => bytes,
                Read::Missing => return Ok(Fetched::Missing),
                Read::TooLong => return Ok(Fetched::Damaged("its head is too long")),
            };
            let secret = self.options.shared_secret();
            match compute(move || parse(bytes, &id, secret)).await? {
                Parsed::Whole(chunk) => return Ok(Fetched::Chunk(chunk)),
                Parsed::Damaged => return Ok(Fetched::Damaged("its head is not what was written")),
                Parsed::Parts(head) => head,
            }
        };
        let _room = self.room(head.in_parts()).await?;
        let part = |(index, len): (usize, usize)| {
            let (path, head) = (self.path(&id, &index.to_string()), Arc::clone(&head));
            async move {
                let Read::Found(bytes) = requests.read(&path, len).await? else { return Ok(None) };
                compute(move || (bytes.len() == len && head.fits(index, &bytes)).then_some(bytes)).await
            }
        };
        let mut parts = stream::iter(head.part_lengths().enumerate()).map(part).buffered(self.options.concurrency);
        let mut record = Vec::new();
        while let Some(part) = parts.try_next().await? {
            match part {
                Some(part) => record.extend(part),
                None => return Ok(Fetched::Damaged("a part is missing, or not what was written")),
            }
        }
        drop(parts);
        let decoded = compute(move || head.decode(record)).await?;
        Ok(decoded.map_or(Fetched::Damaged("its record is not what was written"), Fetched::Chunk))
    }

    fn lock(&self, id: &ChunkId) -> usize {
        usize::from(id.0[31]) % self.locks.len()
    }

    async fn put(self: Arc<Self>, chunks: Vec<KvChunk>) -> amem_core::Result<()> {
        let bytes: usize = chunks.iter().map(KvChunk::size).sum();
        let within = self.options.write_deadline.saturating_add(Duration::from_secs((bytes >> 24) as u64));
        let requests = self.requests();
        let work = async {
            let (this, requests) = (&self, &requests);
            let keep = |chunk| async move { this.keep(requests, chunk).await };
            // In order: when one fails, all before it are there.
            let mut kept = stream::iter(chunks).map(keep).buffered(self.options.concurrency);
            while kept.try_next().await?.is_some() {}
            Ok(())
        };
        self.timed("write", within, &requests, work).await
    }

    /// Writes a chunk, unless it is there already. Its parts come before the head that vouches for them.
    async fn keep(&self, requests: &Requests<'_>, chunk: KvChunk) -> amem_core::Result<()> {
        let (id, tokens, measured) = (chunk.id(), chunk.tokens().len(), chunk.sensitivity().is_some());
        let Some(bytes) = format::record_bytes(&chunk) else {
            let reason = format!("{} bytes are more than a chunk may have there", chunk.size());
            return Err(amem_core::Error::Full { what: "the remote store".to_owned(), reason });
        };
        let _lock = self.locks[self.lock(&id)].lock().await;
        let head_path = self.path(&id, "head");
        let is_damaged = self.known().damaged.contains(&id);
        if !is_damaged {
            let start = requests.read_start(&head_path, FIXED).await?;
            let held = start.and_then(|start| format::claims(&start, &id));
            if let Some(held) = held.filter(|held| held.is_measured() || !measured) {
                self.known().insert(StoredChunk { id, tokens: held.tokens() as usize, bytes: held.bytes() });
                return Ok(());
            }
        }
        let _room = self.room(bytes).await?;
        let (part, secret) = (self.options.part_bytes, self.options.shared_secret());
        let objects = compute(move || format::encode(&chunk, part, secret)).await??;
        let (record, part) = (Buffer::from(objects.record), objects.part);
        let write = |index: usize| {
            let bytes = record.slice(index * part..record.len().min((index + 1) * part));
            let path = self.path(&id, &index.to_string());
            async move { requests.write(&path, bytes).await }
        };
        let parts = if part == 0 { 0 } else { record.len().div_ceil(part) };
        let mut written = stream::iter(0..parts).map(write).buffer_unordered(self.options.concurrency);
        while written.try_next().await?.is_some() {}
        drop(written);
        requests.write(&head_path, Buffer::from(objects.head)).await?;
        self.known().insert(StoredChunk { id, tokens, bytes: objects.bytes });
        Ok(())
    }

    async fn delete(self: Arc<Self>, ids: Vec<ChunkId>) -> amem_core::Result<()> {
        let ids: BTreeSet<ChunkId> = ids.into_iter().collect();
        let ids: Vec<ChunkId> = ids.into_iter().collect();
        let few = if self.removed_at_once() == 1 { DELETED_SINGLY } else { DELETED };
        for ids in ids.chunks(few) {
            let requests = self.requests();
            let work = self.delete_few(&requests, ids);
            self.timed("delete", self.options.write_deadline, &requests, work).await?;
        }
        Ok(())
    }

    async fn delete_few(&self, requests: &Requests<'_>, ids: &[ChunkId]) -> amem_core::Result<()> {
        // In the order of the locks, so that two deletions do not wait for each other.
        let shares: BTreeSet<usize> = ids.iter().map(|id| self.lock(id)).collect();
        let mut locks = Vec::new();
        for share in shares {
            locks.push(self.locks[share].lock().await);
        }
        // Without its head, nobody looks at a part.
        self.remove(requests, ids.iter().map(|id| self.path(id, "head")).collect()).await?;
        let parts = |id| (0..PARTS).map(move |part| self.path(id, &part.to_string()));
        self.remove(requests, ids.iter().flat_map(parts).collect()).await?;
        let mut known = self.known();
        ids.iter().for_each(|id| known.remove(id));
        Ok(())
    }

    /// Objects that the service removes with one request.
    fn removed_at_once(&self) -> usize {
        self.operator.info().capability().delete_max_size.unwrap_or(1).clamp(1, 1000)
    }

    /// Removes objects, as many at once as the service takes.
    async fn remove(&self, requests: &Requests<'_>, paths: Vec<String>) -> Result<(), RemoteError> {
        let batches: Vec<Vec<String>> = paths.chunks(self.removed_at_once()).map(<[String]>::to_vec).collect();
        let remove = |paths| requests.delete(paths);
        let mut removed = stream::iter(batches).map(remove).buffer_unordered(self.options.concurrency);
        while removed.try_next().await?.is_some() {}
        Ok(())
    }

    async fn contains_many(self: Arc<Self>, ids: Vec<ChunkId>) -> amem_core::Result<Vec<bool>> {
        let requests = self.requests();
        let mut contained = vec![false; ids.len()];
        let work = async {
            let (this, requests) = (&self, &requests);
            let look = |(at, id)| async move { (at, requests.exists(&this.path(&id, "head")).await) };
            let mut looked =
                stream::iter(ids.iter().copied().enumerate()).map(look).buffer_unordered(self.options.concurrency);
            while let Some((at, there)) = looked.next().await {
                contained[at] = there.unwrap_or(false) && !self.known().damaged.contains(&ids[at]);
            }
            Ok::<(), RemoteError>(())
        };
        if let Err(error) = self.timed("look for", self.options.deadline, &requests, work).await {
            log::debug!("the remote store was not asked what it contains: {error}");
        }
        Ok(contained)
    }

    /// Whether the service lists in the order of names, and from any of them on.
    fn lists_in_order(&self) -> bool {
        self.operator.info().capability().list_with_start_after
    }

    async fn page(self: Arc<Self>, after: Option<ChunkId>, limit: usize) -> amem_core::Result<Vec<StoredChunk>> {
        let requests = self.requests();
        let in_order = self.lists_in_order();
        // Of each chunk: bytes, and whether there is a head. `head` comes last among the names of a chunk's objects.
        let mut held: BTreeMap<ChunkId, (u64, bool)> = BTreeMap::new();
        let mut heads = 0;
        let begin = after.map(|after| format!("{after}.head"));
        let work = requests.list(&self.root, begin.as_deref(), |listed| {
            let object = listed.name.split_once('.').and_then(|(id, object)| Some((parse_id(id)?, object)));
            if let Some((id, object)) = object.filter(|(id, _)| after.is_none_or(|after| *id > after)) {
                let chunk = held.entry(id).or_default();
                chunk.0 = chunk.0.saturating_add(listed.bytes);
                chunk.1 |= object == "head";
                heads += usize::from(object == "head");
            }
            !in_order || heads < limit
        });
        self.timed("list", self.options.write_deadline, &requests, work).await?;
        let known = self.known();
        let held = held.into_iter().filter(|(_, (_, has_head))| *has_head);
        Ok(held.take(limit).map(|(id, (bytes, _))| known.stored(id, bytes)).collect())
    }
}

fn parse(mut bytes: Vec<u8>, id: &ChunkId, secret: Option<format::Secret>) -> Parsed {
    let Some((head, _)) = format::parse_head(&bytes, id, secret) else { return Parsed::Damaged };
    if head.in_parts() > 0 {
        return Parsed::Parts(Arc::new(head));
    }
    bytes.drain(..FIXED);
    head.decode(bytes).map_or(Parsed::Damaged, Parsed::Whole)
}

/// The id whose hexadecimal digits these are, in lower case.
fn parse_id(digits: &str) -> Option<ChunkId> {
    let mut id = [0; 32];
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    (ChunkId(id).to_string() == digits).then_some(ChunkId(id))
}

#[async_trait]
impl KvStore for RemoteStore {
    async fn get_many(&self, ids: &[ChunkId]) -> amem_core::Result<Vec<Option<KvChunk>>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.read(Arc::clone(&self.inner).get_many(ids.to_vec())).await
    }

    async fn put(&self, chunks: &[KvChunk]) -> amem_core::Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        self.write(Arc::clone(&self.inner).put(chunks.to_vec())).await
    }

    async fn delete(&self, ids: &[ChunkId]) -> amem_core::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        self.write(Arc::clone(&self.inner).delete(ids.to_vec())).await
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        let contained = self.read(Arc::clone(&self.inner).contains_many(ids.to_vec())).await;
        contained.unwrap_or_else(|_| vec![false; ids.len()])
    }

    async fn stats(&self) -> StoreStats {
        let [hits, misses, damaged] =
            [&self.inner.hits, &self.inner.misses, &self.inner.damaged].map(|count| count.load(Relaxed));
        let known = self.inner.known();
        StoreStats { chunks: known.chunks.len(), bytes: known.bytes, hits, misses, damaged }
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> amem_core::Result<Vec<StoredChunk>> {
        if self.can_list() {
            return self.read(Arc::clone(&self.inner).page(after, limit)).await;
        }
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        Ok(self.inner.known().chunks.range(behind).take(limit).map(|(_, chunk)| *chunk).collect())
    }

    async fn list(&self) -> amem_core::Result<Vec<StoredChunk>> {
        const PAGE: usize = 1 << 16;
        // Where the service lists in no order, every page reads the whole list.
        let page = if self.inner.lists_in_order() { PAGE } else { usize::MAX };
        let mut all: Vec<StoredChunk> = Vec::new();
        loop {
            let next = self.page(all.last().map(|held| held.id), page).await?;
            let last = next.len() < page;
            all.extend(next);
            if last {
                return Ok(all);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};
    use opendal::services::Memory;

    use super::*;

    fn store() -> RemoteStore {
        RemoteStore::new(Operator::new(Memory::default()).unwrap(), RemoteOptions::default()).unwrap()
    }

    #[test]
    fn it_can_be_used_and_dropped_on_another_runtimes_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = store();
            assert!(store.get(&ChunkId([1; 32])).await.unwrap().is_none());
            drop(store);
        });
    }

    #[test]
    fn a_get_that_nobody_waits_for_takes_up_no_place() {
        let store = store();
        // All places are taken, so that the get has to wait.
        let taken = block_on(store.inner.requests.acquire_many(16)).unwrap();
        block_on(async {
            let id = ChunkId([1; 32]);
            assert!(poll_once(store.get(&id)).await.is_none());
        });
        drop(taken);
        let all = block_on(store.inner.requests.acquire_many(16));
        assert!(all.is_ok());
    }

    /// A store that gives up soon, and leaves the server alone for a moment after one failure.
    fn impatient() -> RemoteStore {
        let (deadline, pause) = (Duration::from_millis(50), Duration::from_millis(1));
        let options = RemoteOptions::default().deadline(deadline).pauses(1, pause, pause);
        RemoteStore::new(Operator::new(Memory::default()).unwrap(), options).unwrap()
    }

    #[test]
    fn a_call_that_waits_for_others_of_this_process_says_nothing_of_the_server() {
        let (store, id) = (impatient(), ChunkId([1; 32]));
        for queue in [&store.inner.requests, &store.inner.room] {
            let taken = block_on(queue.acquire_many(queue.available_permits() as u32)).unwrap();
            assert!(block_on(store.get(&id)).is_err(), "its time is over");
            assert_eq!(store.inner.breaker.gate(Instant::now()), Gate::Closed, "the server was not asked");
            drop(taken);
        }
    }

    #[test]
    fn whether_the_server_is_back_is_found_out_though_all_requests_hang() {
        let (store, id) = (impatient(), ChunkId([1; 32]));
        let _hang = block_on(store.inner.requests.acquire_many(16)).unwrap();
        assert!(store.inner.breaker.ended(Outcome::Silent, Instant::now()));
        let is_asked_again = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            let Err(amem_core::Error::Store(error)) = block_on(store.get(&id)) else { return false };
            // It waits for its turn again, and is not refused at once.
            matches!(error.downcast_ref(), Some(RemoteError::Deadline { .. }))
        });
        assert!(is_asked_again);
    }

    #[test]
    fn only_names_that_are_written_are_read_as_ids() {
        let id = ChunkId([0xab; 32]);
        assert_eq!(parse_id(&id.to_string()), Some(id));
        for other in ["", "ab", &"AB".repeat(32), &"ab".repeat(33), &"+b".repeat(32), &"é".repeat(32)] {
            assert_eq!(parse_id(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_known_adds_up() {
        let chunk = |n: u8, tokens, bytes| StoredChunk { id: ChunkId([n; 32]), tokens, bytes };
        let mut known = Known::default();
        assert_eq!(known.stored(ChunkId([9; 32]), 3 * TOKEN).tokens, 3);
        known.insert(chunk(1, 10, 1000));
        known.insert(chunk(1, 10, 2000));
        known.insert(chunk(2, 10, 1000));
        assert_eq!((known.bytes, known.tokens), (3000, 20));
        assert_eq!(known.stored(ChunkId([1; 32]), 2100), chunk(1, 10, 2100));
        assert_eq!(known.stored(ChunkId([9; 32]), 600), chunk(9, 4, 600));
        known.note_damage(&ChunkId([1; 32]));
        known.remove(&ChunkId([2; 32]));
        assert_eq!((known.bytes, known.tokens, known.chunks.len(), known.damaged.len()), (0, 0, 0, 1));
    }
}
