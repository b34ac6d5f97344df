use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use futures_lite::future::{self, block_on};
use proptest::prelude::*;

use super::tier::RETRY;
use super::*;
use crate::residency::{FairShare, Lru, SecondUse};
use crate::{Dtype, Encoding, HostKv, KvData, KvShape, OwnerId, PrefixId, RamStore};

const SHAPE: KvShape = KvShape { layers: 1, kv_heads: 1, head_dim: 2 };
const F16: Encoding = Encoding::Plain(Dtype::F16);

/// A chunk of `tokens` tokens, eight bytes each.
fn chunk(name: u8, tokens: usize) -> KvChunk {
    let data = Arc::new(HostKv::new(F16, 1, vec![name; F16.bytes(&SHAPE, tokens)]));
    KvChunk::new(ChunkId([name; 32]), PrefixId::of(&[]), SHAPE, vec![0; tokens].into(), data).unwrap()
}

fn id(name: u8) -> ChunkId {
    ChunkId([name; 32])
}

/// A store in RAM that yields on every call, refuses to be written while `broken`, and is never over `budget`.
struct Slow {
    inner: RamStore,
    budget: u64,
    broken: AtomicBool,
    puts: AtomicU64,
    gets: AtomicU64,
    /// Milliseconds that finding a chunk takes, by this clock, and that reading a layer of it takes then. 0: it was read.
    takes: AtomicU64,
    layers_take: AtomicU64,
    clock: OnceLock<Arc<Clock>>,
}

/// KV that stays in a file, and in the page cache once it was read.
struct InFile {
    data: Arc<dyn KvData>,
    takes: Duration,
    clock: Arc<Clock>,
    is_cached: AtomicBool,
}

impl KvData for InFile {
    fn encoding(&self) -> Encoding {
        self.data.encoding()
    }

    fn size(&self) -> usize {
        self.data.size()
    }

    fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>> {
        if !self.is_cached.swap(true, Relaxed) {
            self.clock.skip(self.takes);
        }
        self.data.layer(layer)
    }
}

impl Slow {
    fn new(budget: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: RamStore::default(),
            budget,
            broken: AtomicBool::new(false),
            puts: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            takes: AtomicU64::new(0),
            layers_take: AtomicU64::new(0),
            clock: OnceLock::new(),
        })
    }

    /// A chunk as this store hands it out.
    fn handed_out(&self, chunk: KvChunk) -> KvChunk {
        match (self.clock.get().cloned(), Duration::from_millis(self.layers_take.load(Relaxed))) {
            (Some(clock), takes) if takes > Duration::ZERO => {
                let data = InFile { data: chunk.data().clone(), takes, clock, is_cached: AtomicBool::new(false) };
                chunk.with_data(Arc::new(data)).unwrap()
            }
            _ => chunk,
        }
    }

    fn tier(self: &Arc<Self>) -> Tier {
        Tier::new(self.clone(), self.budget).policy(Box::<Lru>::default())
    }

    async fn writable(&self) -> Result<()> {
        future::yield_now().await;
        match self.broken.load(Relaxed) {
            true => Err(Error::ReadOnly { what: "the disk".to_owned(), reason: "a test".to_owned() }),
            false => Ok(()),
        }
    }

    fn has(&self, name: u8) -> bool {
        block_on(self.inner.contains(&id(name)))
    }
}

#[async_trait]
impl KvStore for Slow {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        self.gets.fetch_add(1, Relaxed);
        let found = self.inner.get_many(ids).await?;
        future::yield_now().await;
        if let Some(clock) = self.clock.get() {
            clock.skip(Duration::from_millis(self.takes.load(Relaxed)) * found.iter().flatten().count() as u32);
        }
        Ok(found.into_iter().map(|chunk| chunk.map(|chunk| self.handed_out(chunk))).collect())
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        self.writable().await?;
        self.puts.fetch_add(1, Relaxed);
        self.inner.put(chunks).await?;
        let bytes = self.inner.stats().await.bytes;
        assert!(bytes <= self.budget, "{bytes} bytes are held under a budget of {}", self.budget);
        Ok(())
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        self.writable().await?;
        self.inner.delete(ids).await
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        self.inner.contains_many(ids).await
    }

    async fn stats(&self) -> StoreStats {
        self.inner.stats().await
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        self.inner.page(after, limit).await
    }
}

fn stack(ram: u64, disk: u64) -> (Arc<Slow>, Arc<Slow>, Tiered) {
    let (ram, disk) = (Slow::new(ram), Slow::new(disk));
    let tiered = block_on(Tiered::open(vec![ram.tier(), disk.tier()])).unwrap();
    (ram, disk, tiered)
}

/// Whether a chunk is found. What was found is copied up when this returns.
fn get(tiered: &Tiered, name: u8) -> bool {
    let found = block_on(tiered.get(&id(name))).unwrap().is_some();
    block_on(tiered.sync()).unwrap();
    found
}

#[test]
fn a_shared_tier_is_not_listed_and_lets_go_of_nothing() {
    let (ram, server) = (Slow::new(80), Slow::new(u64::MAX));
    block_on(server.inner.put(&[chunk(1, 10)])).unwrap();
    let tiered = block_on(Tiered::open(vec![ram.tier(), Tier::shared(server.clone())])).unwrap();
    assert_eq!(block_on(tiered.stats()).chunks, 0, "nothing was listed");
    assert!(get(&tiered, 1) && ram.has(1), "what another machine put is found");
    (2..=40).for_each(|name| block_on(tiered.put(&[chunk(name, 10)])).unwrap());
    assert!((1..=40).all(|name| server.has(name)) && ram.has(40) && !ram.has(2));
    block_on(server.inner.delete(&[id(2)])).unwrap();
    assert!(!get(&tiered, 2), "what another machine deleted is gone");
    block_on(tiered.delete(&[id(1)])).unwrap();
    assert!(!server.has(1));
}

#[test]
fn a_chunk_goes_to_every_tier_and_comes_back_from_the_slowest() {
    let (ram, disk, tiered) = stack(80, 800);
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    assert!(!ram.has(1) && ram.has(2) && disk.has(1) && disk.has(2));
    assert!(get(&tiered, 1));
    assert!(ram.has(1) && !ram.has(2), "what was used comes up, and what must make room leaves");
    assert!(!get(&tiered, 3));
    let stats = block_on(tiered.stats());
    assert_eq!((stats.chunks, stats.bytes, stats.hits, stats.misses), (2, 240, 1, 1));
}

#[test]
fn each_tier_says_what_it_holds_within_which_budget() {
    let (_, _, tiered) = stack(80, 800);
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    let tier = |chunks, bytes, tokens, budget| TierStats { chunks, bytes, tokens: Some(tokens), budget: Some(budget) };
    assert_eq!(block_on(tiered.tiers()), [tier(1, 80, 10, 80), tier(2, 160, 20, 800)]);
    let shared = block_on(Tiered::open(vec![Tier::shared(Slow::new(u64::MAX))])).unwrap();
    assert_eq!(block_on(shared.tiers())[0].budget, None);
}

#[test]
fn a_sensitivity_that_was_measured_later_reaches_every_tier() {
    let (ram, disk, tiered) = stack(800, 800);
    block_on(tiered.put(&[chunk(1, 2)])).unwrap();
    block_on(tiered.put(&[chunk(1, 2).with_sensitivity(vec![0.5, 1.0].into()).unwrap()])).unwrap();
    block_on(tiered.put(&[chunk(1, 2)])).unwrap();
    for store in [ram, disk] {
        let found = block_on(store.get(&id(1))).unwrap().unwrap();
        assert_eq!(found.sensitivity().map(|s| s.to_vec()), Some(vec![0.5, 1.0]));
    }
}

#[test]
fn a_call_that_is_given_up_half_way_leaves_nothing_locked_or_over_budget() {
    let (_, _, tiered) = stack(80, 160);
    for steps in 0..12 {
        block_on(async {
            let chunks = [chunk(steps, 10)];
            let mut put = Box::pin(tiered.put(&chunks));
            for _ in 0..steps {
                if future::poll_once(&mut put).await.is_some() {
                    break;
                }
            }
            drop(put);
            tiered.put(&[chunk(100, 10)]).await.unwrap();
            tiered.get(&id(steps)).await.unwrap();
        });
    }
}

#[test]
fn with_a_broken_disk_the_ram_above_it_serves_on_and_the_error_is_told() {
    let (ram, disk, tiered) = stack(800, 800);
    disk.broken.store(true, Relaxed);
    assert!(matches!(block_on(tiered.put(&[chunk(1, 10)])), Err(Error::ReadOnly { .. })));
    assert!(ram.has(1) && !disk.has(1) && get(&tiered, 1));
}

#[test]
fn with_a_broken_upper_tier_the_disk_answers() {
    let (ram, disk, tiered) = stack(800, 800);
    ram.broken.store(true, Relaxed);
    block_on(tiered.put(&[chunk(1, 10)])).unwrap();
    assert!(!ram.has(1) && disk.has(1) && get(&tiered, 1));
}

#[test]
fn a_chunk_larger_than_a_budget_passes_that_tier_by() {
    let (ram, disk, tiered) = stack(79, 800);
    block_on(tiered.put(&[chunk(1, 10)])).unwrap();
    assert!(!ram.has(1) && disk.has(1) && get(&tiered, 1) && !ram.has(1));
    assert!(matches!(block_on(tiered.put(&[chunk(2, 101)])), Err(Error::Full { .. })));
}

#[test]
fn what_a_store_holds_already_counts_when_it_is_opened() {
    let disk = Slow::new(800);
    block_on(disk.put(&[chunk(1, 40), chunk(2, 40)])).unwrap();
    let tier = Tier::new(disk.clone(), 400);
    let tiered = block_on(Tiered::open(vec![tier])).unwrap();
    assert_eq!(block_on(tiered.stats()).bytes, 320, "one of the two had to leave");
}

#[test]
fn a_deleted_chunk_is_gone_from_every_tier_even_if_it_was_on_its_way_up() {
    for rounds in 0..12 {
        let (ram, disk, tiered) = stack(800, 800);
        block_on(disk.put(&[chunk(1, 10)])).unwrap();
        block_on(async {
            let mut get = Box::pin(tiered.get(&ChunkId([1; 32])));
            for _ in 0..rounds {
                if future::poll_once(&mut get).await.is_some() {
                    get = Box::pin(tiered.get(&ChunkId([1; 32])));
                }
            }
            let (deleted, _) = future::zip(tiered.delete(&[id(1)]), get).await;
            deleted.unwrap();
            tiered.sync().await.unwrap();
        });
        assert!(!ram.has(1) && !disk.has(1), "deleted after {rounds} steps of a get");
    }
}

#[test]
fn many_may_ask_for_one_chunk_at_once() {
    let (ram, disk, tiered) = stack(80, 800);
    block_on(disk.put(&[chunk(1, 10)])).unwrap();
    let (one, (two, three)) =
        block_on(future::zip(tiered.get(&id(1)), future::zip(tiered.get(&id(1)), tiered.get(&id(1)))));
    assert!([one, two, three].into_iter().all(|found| found.unwrap().is_some()));
    block_on(tiered.sync()).unwrap();
    assert!(ram.has(1));
}

#[test]
fn what_was_said_to_matter_stays() {
    let ram = Slow::new(160);
    let tiered = block_on(Tiered::open(vec![Tier::new(ram.clone(), 160)])).unwrap();
    tiered.note_relevance(&[(id(1), 0.9), (id(2), 0.2), (id(3), 0.9)]);
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10), chunk(3, 10)])).unwrap();
    assert!(ram.has(1) && !ram.has(2) && ram.has(3));
}

#[test]
fn a_get_is_answered_before_anything_is_copied_up() {
    let (ram, disk, tiered) = stack(800, 800);
    block_on(disk.put(&[chunk(1, 10)])).unwrap();
    // Whoever changes the upper tier waits; the answer does not.
    let changing = block_on(tiered.stack.levels[0].lock());
    assert!(block_on(tiered.get(&id(1))).unwrap().is_some());
    assert!(!ram.has(1));
    drop(changing);
    block_on(tiered.sync()).unwrap();
    assert!(ram.has(1));
}

#[test]
fn a_tier_that_is_written_back_has_it_after_a_sync_unless_it_was_deleted() {
    let (ram, disk) = (Slow::new(800), Slow::new(800));
    let tiered = block_on(Tiered::open(vec![ram.tier(), disk.tier().write(WriteMode::Back)])).unwrap();
    let changing = block_on(tiered.stack.levels[1].lock());
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    assert!(ram.has(1) && !disk.has(1), "the put did not wait for the disk");
    tiered.stack.deletions.note(&[id(2)]);
    drop(changing);
    block_on(tiered.sync()).unwrap();
    assert!(disk.has(1) && !disk.has(2), "what was deleted meanwhile is not written");
}

/// Says which chunks are wanted, unless it cannot.
#[derive(Default)]
struct Wishes {
    wanted: Mutex<HashSet<ChunkId>>,
    broken: AtomicBool,
}

impl Wishes {
    fn of(names: &[u8]) -> Arc<Self> {
        Arc::new(Self {
            wanted: Mutex::new(names.iter().map(|name| id(*name)).collect()),
            broken: AtomicBool::new(false),
        })
    }
}

#[async_trait]
impl Wanted for Wishes {
    async fn are_wanted(&self, chunks: &[ChunkId]) -> Result<Vec<bool>> {
        match self.broken.load(Relaxed) {
            true => Err(Error::Ledger("a test".into())),
            false => Ok(chunks.iter().map(|chunk| self.wanted.lock().unwrap().contains(chunk)).collect()),
        }
    }
}

/// Two machines over one server, written back by the second. The server, both, and what is wanted.
fn machines(wanted: &[u8]) -> (Arc<Slow>, Tiered, Tiered, Arc<Wishes>) {
    let server = Slow::new(u64::MAX);
    let shared = || Tier::shared(server.clone());
    let one = block_on(Tiered::open(vec![Slow::new(800).tier(), shared()])).unwrap();
    let other = block_on(Tiered::open(vec![Slow::new(800).tier(), shared().write(WriteMode::Back)])).unwrap();
    let wishes = Wishes::of(wanted);
    other.ask_of_late_writes(wishes.clone());
    (server, one, other, wishes)
}

#[test]
fn what_is_written_after_another_machine_deleted_it_is_deleted_again() {
    let (server, one, other, wishes) = machines(&[1, 2]);
    let waits = block_on(other.stack.levels[1].lock());
    block_on(other.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    wishes.wanted.lock().unwrap().remove(&id(1));
    block_on(one.delete(&[id(1)])).unwrap();
    drop(waits);
    block_on(other.sync()).unwrap();
    assert!(!server.has(1) && server.has(2));
}

#[test]
fn what_was_written_late_stays_if_anybody_wants_it_and_is_asked_about_again_if_nobody_can_say() {
    let (server, one, other, wishes) = machines(&[]);
    other.ask_of_late_writes(Wishes::of(&[2]));
    wishes.broken.store(true, Relaxed);
    block_on(other.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    block_on(other.sync()).unwrap();
    assert!(server.has(1) && server.has(2), "what nobody could be asked about stays for now");
    wishes.broken.store(false, Relaxed);
    server.broken.store(true, Relaxed);
    block_on(other.sync()).unwrap();
    server.broken.store(false, Relaxed);
    assert!(server.has(1), "it could not be deleted");
    block_on(other.sync()).unwrap();
    assert!(!server.has(1) && server.has(2));
    // What is written before the call returns is the caller's to check.
    block_on(one.put(&[chunk(1, 10)])).unwrap();
    block_on(other.sync()).unwrap();
    assert!(server.has(1));
}

#[test]
fn a_tier_of_its_own_asks_nobody() {
    let (ram, disk) = (Slow::new(800), Slow::new(800));
    let tiered = block_on(Tiered::open(vec![ram.tier(), disk.tier().write(WriteMode::Back)])).unwrap();
    tiered.ask_of_late_writes(Wishes::of(&[]));
    block_on(tiered.put(&[chunk(1, 10)])).unwrap();
    block_on(tiered.sync()).unwrap();
    assert!(disk.has(1));
}

#[test]
fn a_tier_writes_in_its_encoding_and_the_name_stays() {
    let (ram, disk) = (Slow::new(800), Slow::new(800));
    let exact = chunk(1, 10).encoded_as(Encoding::Plain(Dtype::F32)).unwrap();
    let tiered = block_on(Tiered::open(vec![ram.tier(), disk.tier().encoding(F16)])).unwrap();
    block_on(tiered.put(std::slice::from_ref(&exact))).unwrap();
    let [above, below] = [ram, disk].map(|store| block_on(store.get(&id(1))).unwrap().unwrap());
    assert_eq!((above.encoding(), below.encoding()), (exact.encoding(), F16));
    assert_eq!((below.id(), below.tokens()), (exact.id(), exact.tokens()));
    assert_eq!(block_on(tiered.page(None, 9)).unwrap()[0].bytes, below.size() as u64);
}

#[test]
fn bytes_that_are_no_numbers_are_written_as_they_are() {
    let disk = Slow::new(800);
    let numbers = chunk(1, 10).encoded_as(Encoding::Plain(Dtype::F32)).unwrap();
    let data = Arc::clone(numbers.data());
    let sealed = KvChunk::new(id(1), PrefixId::SEALED, SHAPE, Arc::clone(numbers.tokens()), data).unwrap();
    let tiered = block_on(Tiered::open(vec![disk.tier().encoding(F16)])).unwrap();
    block_on(tiered.put(std::slice::from_ref(&sealed))).unwrap();
    let held = block_on(disk.get(&id(1))).unwrap().unwrap();
    assert_eq!((held.encoding(), held.to_bytes().unwrap()), (sealed.encoding(), sealed.to_bytes().unwrap()));
    let small = || Tier::new(Arc::new(RamStore::default()), 100).encoding(F16);
    let put = |chunk: &KvChunk| {
        let tiered = block_on(Tiered::open(vec![small()])).unwrap();
        block_on(tiered.put(std::slice::from_ref(chunk)))
    };
    put(&numbers).expect("it has eighty bytes there");
    let refused = put(&sealed);
    assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
}

#[test]
fn a_batch_is_one_put_to_each_tier() {
    let (ram, disk, tiered) = stack(800, 800);
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10), chunk(3, 10)])).unwrap();
    assert_eq!((ram.puts.load(Relaxed), disk.puts.load(Relaxed)), (1, 1));
}

#[test]
fn a_tier_that_is_slower_than_prefill_is_passed_by_but_for_a_try_now_and_then() {
    let disk = Slow::new(8000);
    let tiered = block_on(Tiered::open(vec![disk.tier().read_cost(0.5)])).unwrap();
    block_on(tiered.put(&[chunk(1, 10)])).unwrap();
    assert!(get(&tiered, 1), "0.5 of prefill is worth it");
    for _ in 0..20 {
        // A prefill that takes next to nothing: no read can be faster.
        tiered.note_prefill(1_000_000, Duration::from_nanos(1));
        get(&tiered, 1);
    }
    let found = (0..2 * RETRY).filter(|_| get(&tiered, 1)).count();
    assert_eq!(found, 2, "once in {RETRY} times");
}

#[test]
fn what_a_policy_learned_outlives_a_restart() {
    let ram = Slow::new(240);
    let tiered = block_on(Tiered::open(vec![Tier::new(ram.clone(), 240)])).unwrap();
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10), chunk(3, 10)])).unwrap();
    for _ in 0..5 {
        assert!(get(&tiered, 3) && get(&tiered, 1));
    }
    let saved = tiered.save_residency().remove(0);
    drop(tiered);
    // Meanwhile one of them was lost.
    block_on(ram.delete(&[id(1)])).unwrap();
    let tiered = block_on(Tiered::open(vec![Tier::new(ram.clone(), 240).residency(saved)])).unwrap();
    block_on(tiered.put(&[chunk(4, 10), chunk(5, 10)])).unwrap();
    assert!(ram.has(3) && !ram.has(2), "the one that was used often stays");
}

#[test]
fn a_tier_is_read_again_when_it_has_become_faster_than_prefill() {
    let disk = Slow::new(8000);
    let tiered = block_on(Tiered::open(vec![disk.tier()])).unwrap();
    disk.clock.set(Arc::clone(&tiered.stack.clock)).unwrap_or_else(|_| panic!("set once"));
    block_on(tiered.put(&[chunk(1, 10)])).unwrap();
    // Ten tokens take a second to prefill, and two to read.
    disk.takes.store(2000, Relaxed);
    for _ in 0..8 {
        tiered.note_prefill(10, Duration::from_secs(1));
        assert!(get(&tiered, 1), "nothing is believed before it was measured some times");
    }
    assert_eq!((0..RETRY).filter(|_| get(&tiered, 1)).count(), 1, "one try");
    disk.takes.store(10, Relaxed);
    let tries = (0..100 * RETRY).filter(|_| get(&tiered, 1)).count();
    assert!(tries as u64 > 50 * RETRY, "read {tries} times");
}

/// Whether a chunk is found. It is read when this returns.
fn read(tiered: &Tiered, name: u8) -> bool {
    let found = block_on(tiered.get(&id(name))).unwrap();
    found.is_some_and(|chunk| chunk.to_bytes().unwrap().len() == chunk.size())
}

#[test]
fn a_tier_that_finds_at_once_and_reads_more_slowly_than_prefill_is_passed_by_until_it_has_become_faster() {
    let disk = Slow::new(8000);
    let tiered = block_on(Tiered::open(vec![disk.tier()])).unwrap();
    disk.clock.set(Arc::clone(&tiered.stack.clock)).unwrap_or_else(|_| panic!("set once"));
    block_on(tiered.put(&[chunk(1, 10)])).unwrap();
    // Ten tokens take a second to prefill, and two to read once they were found.
    disk.layers_take.store(2000, Relaxed);
    for _ in 0..8 {
        tiered.note_prefill(10, Duration::from_secs(1));
        assert!(read(&tiered, 1), "nothing is believed before it was measured some times");
    }
    assert_eq!((0..2 * RETRY).filter(|_| read(&tiered, 1)).count(), 2, "two tries");
    disk.layers_take.store(10, Relaxed);
    let tries = (0..100 * RETRY).filter(|_| read(&tiered, 1)).count();
    assert!(tries as u64 > 50 * RETRY, "read {tries} times");
}

#[test]
fn each_of_two_tiers_that_are_slower_than_prefill_is_tried_now_and_then() {
    let (disk, server) = (Slow::new(8000), Slow::new(8000));
    let tiers = [&disk, &server].map(|store| store.tier().read_cost(2.0));
    let tiered = block_on(Tiered::open(tiers.into())).unwrap();
    block_on(tiered.put(&[chunk(1, 10)])).unwrap();
    (0..2 * RETRY).for_each(|_| _ = get(&tiered, 1));
    assert_eq!([disk, server].map(|store| store.gets.load(Relaxed)), [2, 2], "once in {RETRY} times each");
}

#[test]
fn a_slow_tier_is_tried_for_what_it_has() {
    let disk = Slow::new(8000);
    let tiered = block_on(Tiered::open(vec![disk.tier().read_cost(2.0)])).unwrap();
    block_on(tiered.put(&[chunk(1, 10)])).unwrap();
    let found = (0..2 * RETRY).filter(|_| get(&tiered, 2) | get(&tiered, 1)).count();
    assert_eq!((found, disk.gets.load(Relaxed)), (2, 2), "once in {RETRY} times that it may have a chunk");
}

#[test]
fn what_a_miss_costs_includes_the_reading_of_layers() {
    let (ram, disk) = (Slow::new(80), Slow::new(8000));
    let tiered = block_on(Tiered::open(vec![ram.tier(), disk.tier()])).unwrap();
    disk.clock.set(Arc::clone(&tiered.stack.clock)).unwrap_or_else(|_| panic!("set once"));
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    // Ten tokens take a second to prefill, and half a second to be found and read.
    disk.takes.store(100, Relaxed);
    disk.layers_take.store(400, Relaxed);
    for name in [1, 2].repeat(20) {
        tiered.note_prefill(10, Duration::from_secs(1));
        assert!(read(&tiered, name));
        block_on(tiered.sync()).unwrap();
    }
    let cost = tiered.stack.access_at(0)(StoredChunk::of(&chunk(1, 10))).cost;
    assert!((cost - 5.0).abs() < 0.1, "{cost} tokens");
}

#[test]
fn what_is_read_twice_to_be_copied_up_does_not_make_a_tier_look_faster() {
    for copied_first in [false, true] {
        let (ram, disk) = (Slow::new(80), Slow::new(8000));
        let tiered = block_on(Tiered::open(vec![ram.tier(), disk.tier()])).unwrap();
        disk.clock.set(Arc::clone(&tiered.stack.clock)).unwrap_or_else(|_| panic!("set once"));
        block_on(tiered.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
        // Ten tokens take a second to prefill, and one and a half to read: no time when they are read again.
        disk.layers_take.store(1500, Relaxed);
        for name in [1, 2].repeat(4) {
            tiered.note_prefill(10, Duration::from_secs(1));
            let copying = (!copied_first).then(|| block_on(tiered.stack.levels[0].lock()));
            let found = block_on(tiered.get(&id(name))).unwrap().unwrap();
            if copied_first {
                block_on(tiered.sync()).unwrap();
            }
            assert_eq!(found.to_bytes().unwrap().len(), found.size());
            drop(copying);
            block_on(tiered.sync()).unwrap();
            assert!(ram.has(name));
        }
        let cost = tiered.stack.levels[1].read_cost(&tiered.stack.prefill.lock().unwrap());
        assert!((cost - 1.5).abs() < 0.05, "{cost}, copied first: {copied_first}");
    }
}

#[test]
fn a_leased_chunk_makes_no_room_until_its_lease_ends() {
    let (ram, _, tiered) = stack(160, 800);
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    let lease = tiered.lease(&[id(1)], Duration::from_secs(60));
    block_on(tiered.put(&[chunk(3, 10)])).unwrap();
    assert!(ram.has(1) && !ram.has(2) && ram.has(3), "the one used longest ago is leased");
    drop(lease);
    block_on(tiered.put(&[chunk(4, 10)])).unwrap();
    assert!(!ram.has(1) && ram.has(3) && ram.has(4));
    // One that nobody drops ends by itself.
    std::mem::forget(tiered.lease(&[id(3)], Duration::from_secs(60)));
    block_on(tiered.put(&[chunk(5, 10)])).unwrap();
    assert!(ram.has(3) && !ram.has(4));
    tiered.stack.clock.skip(Duration::from_secs(60));
    block_on(tiered.put(&[chunk(6, 10)])).unwrap();
    assert!(!ram.has(3) && ram.has(5) && ram.has(6));
}

#[test]
fn where_everything_is_leased_what_comes_new_is_let_go() {
    let (ram, disk, tiered) = stack(160, 800);
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    let _lease = tiered.lease(&[id(1), id(2), id(3)], Duration::from_secs(60));
    block_on(tiered.put(&[chunk(3, 10)])).unwrap();
    assert!(ram.has(1) && ram.has(2) && !ram.has(3), "leased or not, what is new has no room");
    assert!(disk.has(3) && get(&tiered, 3) && !ram.has(3));
}

#[test]
fn what_is_prefetched_from_a_slow_tier_comes_up_in_the_background() {
    let (ram, disk, tiered) = stack(800, 800);
    block_on(disk.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    let tiered_again = block_on(Tiered::open(vec![ram.tier(), disk.tier()])).unwrap();
    drop(tiered);
    tiered_again.prefetch(&[id(1), id(2), id(3)]);
    block_on(tiered_again.sync()).unwrap();
    assert!(ram.has(1) && ram.has(2));
    let gets = disk.gets.load(Relaxed);
    assert!(get(&tiered_again, 1) && get(&tiered_again, 2));
    assert_eq!((gets, disk.gets.load(Relaxed)), (1, 1), "one read for both, and none when they are asked for");
    let stats = block_on(tiered_again.stats());
    assert_eq!((stats.hits, stats.misses), (2, 0), "reading ahead is no hit");
}

#[test]
fn what_is_prefetched_and_deleted_does_not_come_up() {
    let (ram, disk) = (Slow::new(800), Slow::new(800));
    block_on(disk.put(&[chunk(1, 10)])).unwrap();
    let tiered = block_on(Tiered::open(vec![ram.tier(), disk.tier()])).unwrap();
    let changing = block_on(tiered.stack.levels[0].lock());
    tiered.prefetch(&[id(1)]);
    tiered.stack.deletions.note(&[id(1)]);
    drop(changing);
    block_on(tiered.sync()).unwrap();
    assert!(!ram.has(1));
}

#[test]
fn what_waits_to_be_written_back_is_bounded() {
    let (ram, disk) = (Slow::new(1 << 20), Slow::new(1 << 20));
    let tiered = block_on(Tiered::open(vec![ram.tier(), disk.tier().write(WriteMode::Back)])).unwrap();
    let changing = block_on(tiered.stack.levels[1].lock());
    // The disk does not write. Puts return all the same until too many wait; the next one waits for the disk itself.
    let chunks = [chunk(1, 1)];
    let mut waiting = Vec::new();
    let mut returned = 0;
    for _ in 0..background::MAX_JOBS + 2 {
        let mut put = tiered.put(&chunks);
        let done = block_on(async {
            // Each poll of the put goes on until the disk, and `Slow` yields a few times on the way.
            for _ in 0..10 {
                if let Some(done) = future::poll_once(&mut put).await {
                    return Some(done);
                }
            }
            None
        });
        match done {
            Some(done) => returned += usize::from(done.is_ok()),
            None => waiting.push(put),
        }
    }
    // The job that waits for the disk may have been taken from the queue or not.
    assert!((1..=2).contains(&waiting.len()) && returned + waiting.len() == background::MAX_JOBS + 2);
    drop(changing);
    block_on(async {
        for put in waiting {
            put.await.unwrap();
        }
        tiered.sync().await.unwrap();
    });
    assert!(disk.has(1));
}

#[test]
fn a_disk_that_admits_on_second_use_is_not_written_for_what_comes_once() {
    let (ram, disk) = (Slow::new(80), Slow::new(800));
    let tier = Tier::new(disk.clone(), 800).policy(Box::new(SecondUse::new(Lru::default())));
    let tiered = block_on(Tiered::open(vec![ram.tier(), tier])).unwrap();
    block_on(tiered.put(&[chunk(1, 10), chunk(2, 10)])).unwrap();
    assert!(!disk.has(1) && !disk.has(2) && disk.puts.load(Relaxed) == 0);
    assert!(!get(&tiered, 1), "it has left the RAM, and was computed again");
    block_on(tiered.put(&[chunk(1, 10)])).unwrap();
    assert!(disk.has(1) && !disk.has(2));
    block_on(tiered.put(&[chunk(3, 10)])).unwrap();
    assert!(!disk.has(3) && get(&tiered, 3) && disk.has(3), "a use in the RAM is the second one");
    assert!(get(&tiered, 3) && disk.puts.load(Relaxed) == 2, "and the last that is written");
}

/// A chunk of an owner.
fn owned(owner: u8, number: u16) -> KvChunk {
    let mut id = [0; 32];
    (id[7], id[8], id[9]) = (owner, number.to_le_bytes()[0], number.to_le_bytes()[1]);
    let data = Arc::new(HostKv::new(F16, 1, vec![owner; F16.bytes(&SHAPE, 1)]));
    KvChunk::new(ChunkId(id), PrefixId([0; 32]), SHAPE, vec![0].into(), data).unwrap()
}

#[test]
fn a_neighbour_who_stores_much_takes_nothing_of_anothers_share() {
    let ram = Slow::new(800);
    let tier = Tier::new(ram.clone(), 800).policy(Box::<FairShare>::default());
    let tiered = block_on(Tiered::open(vec![tier])).unwrap();
    // Room for a hundred chunks, of which this owner uses forty.
    let mine: Vec<KvChunk> = (0..40).map(|number| owned(1, number)).collect();
    block_on(tiered.put(&mine)).unwrap();
    for number in 0..3000 {
        block_on(tiered.put(&[owned(2, number)])).unwrap();
    }
    let ids: Vec<ChunkId> = mine.iter().map(KvChunk::id).collect();
    assert!(block_on(ram.contains_many(&ids)).into_iter().all(|there| there));
    let held = |owner: u8| block_on(tiered.owned(OwnerId([0, 0, 0, 0, 0, 0, 0, owner]))).unwrap().len();
    assert_eq!([held(0), held(1), held(3)], [0, 40, 0]);
    assert_eq!(held(2), 60, "what one does not use, another may");
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Get(u8),
    Delete(u8),
    Break(bool),
    Prefetch(u8),
    Lease(u8),
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..12_u8).prop_map(Step::Put),
        (0..12_u8).prop_map(Step::Get),
        (0..12_u8).prop_map(Step::Delete),
        any::<bool>().prop_map(Step::Break),
        (0..12_u8).prop_map(Step::Prefetch),
        (0..12_u8).prop_map(Step::Lease),
        Just(Step::Release),
    ]
}

proptest! {
    /// Two calls at a time, in any order: no tier is ever over its budget (`Slow::put` asserts it), nothing is ever
    /// another chunk's data, and what is found at the end is what the entries say.
    #[test]
    fn budgets_hold_whatever_is_done(steps in prop::collection::vec((step(), step()), 0..40)) {
        let (ram, disk, tiered) = stack(160, 320);
        let leases = RefCell::new(Vec::new());
        let run = async |step: Step| match step {
            Step::Put(name) => drop(tiered.put(&[chunk(name, usize::from(name) * 3 + 1)]).await),
            Step::Get(name) => {
                let found = tiered.get(&id(name)).await.unwrap();
                assert!(found.is_none_or(|found| found.to_bytes().unwrap().iter().all(|byte| *byte == name)));
            }
            Step::Delete(name) => drop(tiered.delete(&[id(name)]).await),
            Step::Break(broken) => disk.broken.store(broken, Relaxed),
            Step::Prefetch(name) => tiered.prefetch(&[id(name)]),
            Step::Lease(name) => leases.borrow_mut().push(tiered.lease(&[id(name)], Duration::from_secs(60))),
            Step::Release => leases.borrow_mut().clear(),
        };
        for (one, two) in steps {
            block_on(future::zip(run(one), run(two)));
            block_on(tiered.sync()).unwrap();
            for (store, level) in [&ram, &disk].into_iter().zip(&tiered.stack.levels) {
                let held: HashSet<ChunkId> = level.held().into_iter().collect();
                let there: HashSet<ChunkId> = block_on(store.list()).unwrap().iter().map(|held| held.id).collect();
                prop_assert_eq!(held, there);
            }
        }
    }
}

#[cfg(feature = "testing")]
mod conformance {
    use super::*;

    #[test]
    fn a_store_in_ram_conforms() {
        crate::testing::kv_store(RamStore::default);
    }

    #[test]
    fn a_stack_of_stores_conforms() {
        crate::testing::kv_store(|| {
            let tier = |budget| Tier::new(Arc::new(RamStore::default()), budget);
            block_on(Tiered::open(vec![tier(1 << 20), tier(1 << 30)])).unwrap()
        });
    }

    #[test]
    fn a_stack_conforms_whatever_its_fast_tiers_have_no_room_for() {
        for budgets in [&[1, 1 << 30][..], &[2000, 1 << 30], &[1000, 10_000, 1 << 30], &[1 << 30]] {
            crate::testing::kv_store(|| {
                let tier = |budget: &u64| Tier::new(Arc::new(RamStore::default()), *budget);
                block_on(Tiered::open(budgets.iter().map(tier).collect())).unwrap()
            });
        }
    }

    #[test]
    fn a_stack_conforms_though_its_slow_tier_is_written_later() {
        crate::testing::kv_store(|| {
            let tier = |budget| Tier::new(Arc::new(RamStore::default()), budget);
            block_on(Tiered::open(vec![tier(1 << 20), tier(1 << 30).write(WriteMode::Back)])).unwrap()
        });
    }
}

/// A store on a full disk: it gives up one chunk after the other.
struct OnDisk(RamStore);

#[async_trait::async_trait]
impl KvStore for OnDisk {
    async fn get_many(&self, ids: &[ChunkId]) -> crate::Result<Vec<Option<KvChunk>>> {
        self.0.get_many(ids).await
    }

    async fn put(&self, chunks: &[KvChunk]) -> crate::Result<()> {
        self.0.put(chunks).await
    }

    async fn delete(&self, ids: &[ChunkId]) -> crate::Result<()> {
        self.0.delete(ids).await
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        self.0.contains_many(ids).await
    }

    async fn stats(&self) -> crate::StoreStats {
        self.0.stats().await
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> crate::Result<Vec<crate::StoredChunk>> {
        self.0.page(after, limit).await
    }

    async fn give_up(&self, bytes: u64) -> crate::Result<u64> {
        let mut freed = 0;
        for chunk in self.0.list().await? {
            if freed < bytes {
                self.0.delete(&[chunk.id]).await?;
                freed += chunk.bytes;
            }
        }
        Ok(freed)
    }
}

#[test]
fn what_a_tier_gives_up_for_a_full_disk_is_not_counted_any_more() {
    let disk = Tier::new(Arc::new(OnDisk(RamStore::default())), 80);
    let tiered = block_on(Tiered::open(vec![disk])).unwrap();
    let chunks: Vec<KvChunk> = (0..10).map(|number| owned(1, number)).collect();
    block_on(tiered.put(&chunks)).unwrap();
    assert_eq!(block_on(tiered.give_up(20)).unwrap(), 24, "three chunks of eight bytes");
    assert_eq!(block_on(tiered.list()).unwrap().len(), 7);
    // Their room is there for others: nothing has to leave.
    let others: Vec<KvChunk> = (10..13).map(|number| owned(1, number)).collect();
    block_on(tiered.put(&others)).unwrap();
    assert_eq!(block_on(tiered.list()).unwrap().len(), 10);
    let ram = block_on(Tiered::open(vec![Tier::new(Arc::new(RamStore::default()), 80)])).unwrap();
    block_on(ram.put(&chunks)).unwrap();
    assert_eq!(block_on(ram.give_up(20)).unwrap(), 0, "RAM is on no disk");
}
