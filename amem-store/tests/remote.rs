//! A remote store against real services and servers, damaged objects, and servers that are dead in every way.
#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "common/faults.rs"]
mod faults;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/servers.rs"]
mod servers;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use amem_core::{ChunkId, Error, HostKv, KvChunk, KvStore, RamStore, Tier, Tiered};
use amem_store::remote::opendal::{Operator, services};
use amem_store::remote::{RemoteError, RemoteOptions, RemoteStore};
use common::{assert_same, chunk, measured};
use faults::{Fault, Faults, Plan};
use futures_lite::future::block_on;
use machine::{Disturbed, Machine, Subject, steps};
use proptest::prelude::*;

/// So small that most chunks have parts.
const SMALL: usize = 1 << 10;

fn memory() -> Operator {
    Operator::new(services::Memory::default()).unwrap()
}

fn store(operator: &Operator) -> RemoteStore {
    RemoteStore::new(operator.clone(), RemoteOptions::default().part_bytes(SMALL)).unwrap()
}

/// All that a service of this process holds.
fn objects(operator: &Operator) -> BTreeMap<String, Vec<u8>> {
    block_on(async {
        let listed = operator.list_with("amem/v1/").recursive(true).await.unwrap();
        let mut objects = BTreeMap::new();
        for entry in listed.iter().filter(|entry| entry.metadata().is_file()) {
            objects.insert(entry.path().to_owned(), operator.read(entry.path()).await.unwrap().to_vec());
        }
        objects
    })
}

fn path(id: &ChunkId, object: &str) -> String {
    format!("amem/v1/{id}.{object}")
}

/// What the store said of why it failed.
fn remote_error<T>(result: Result<T, Error>) -> RemoteError {
    match result.err().expect("it fails") {
        Error::Store(error) => *error.downcast::<RemoteError>().expect("it says why"),
        other => panic!("{other}"),
    }
}

#[test]
fn in_memory_it_is_a_kv_store() {
    amem_core::testing::kv_store(|| RemoteStore::new(memory(), RemoteOptions::default()).unwrap());
}

#[test]
fn with_chunks_in_parts_it_is_one_too() {
    let options = || RemoteOptions::default().part_bytes(SMALL).concurrency(2).secret([3; 32]);
    amem_core::testing::kv_store(|| RemoteStore::new(memory(), options()).unwrap());
}

#[test]
fn in_files_it_is_a_kv_store() {
    let (dir, made) = (tempfile::tempdir().unwrap(), Cell::new(0));
    amem_core::testing::kv_store(|| {
        made.set(made.get() + 1);
        let root = dir.path().join(made.get().to_string());
        let operator = Operator::new(services::Fs::default().root(root.to_str().unwrap())).unwrap();
        store(&operator)
    });
}

#[test]
fn whatever_is_damaged_is_a_miss_that_is_counted_and_heals() {
    let (victim, other) = (chunk(1, 60), chunk(2, 60));
    let older = victim.clone().with_data(Arc::new(HostKv::new(victim.encoding(), 2, vec![5; victim.size()]))).unwrap();
    let before = |chunk: &KvChunk| {
        let operator = memory();
        block_on(store(&operator).put(std::slice::from_ref(chunk))).unwrap();
        objects(&operator)
    };
    let (sound, others, olds) = (before(&victim), before(&other), before(&older));
    let name = |object: &str| path(&victim.id(), object);
    let parts = sound.len() - 1;
    assert!(parts > 2, "the chunk has parts");
    let last = (parts - 1).to_string();
    type Damage<'d> = Box<dyn Fn(&mut BTreeMap<String, Vec<u8>>) + 'd>;
    let change = |object: &str, change: fn(&mut Vec<u8>)| -> Damage<'_> {
        let name = name(object);
        Box::new(move |held| change(held.get_mut(&name).unwrap()))
    };
    let replace = |object: &str, from: &BTreeMap<String, Vec<u8>>, by: String| -> Damage<'_> {
        let (name, by) = (name(object), from[&by].clone());
        Box::new(move |held| drop(held.insert(name.clone(), by.clone())))
    };
    let damages: Vec<(&str, Damage<'_>)> = vec![
        ("a flipped bit in the head", change("head", |bytes| bytes[20] ^= 1)),
        ("a flipped bit in the head's digests", change("head", |bytes| bytes[120] ^= 1)),
        ("a cut head", change("head", |bytes| bytes.truncate(150))),
        ("an empty head", change("head", Vec::clear)),
        ("a head that goes on", change("head", |bytes| bytes.push(0))),
        ("a head beyond all bounds", change("head", |bytes| bytes.resize(9 << 20, 0))),
        ("a flipped bit in a part", change("1", |bytes| bytes[70] ^= 128)),
        ("a cut part", change("0", |bytes| _ = bytes.pop())),
        ("a part that goes on", change("0", |bytes| bytes.push(0))),
        ("a missing last part", Box::new(|held| drop(held.remove(&name(&last))))),
        ("another chunk's part", replace("1", &others, path(&other.id(), "1"))),
        ("another chunk's head", replace("head", &others, path(&other.id(), "head"))),
        ("an older version's head", replace("head", &olds, name("head"))),
        ("an older version's part", replace("1", &olds, name("1"))),
        ("a part twice", replace("1", &sound, name("0"))),
        ("a part in place of the head", replace("head", &sound, name("0"))),
    ];
    for (what, damage) in &damages {
        let mut held = sound.clone();
        damage(&mut held);
        assert!(held != sound, "{what}");
        let operator = memory();
        held.into_iter().for_each(|(path, bytes)| drop(block_on(operator.write(&path, bytes)).unwrap()));
        let store = store(&operator);
        assert!(block_on(store.get(&victim.id())).unwrap().is_none(), "{what} is a miss");
        let stats = block_on(store.stats());
        assert_eq!((stats.damaged, stats.misses, stats.hits), (1, 1, 0), "{what} is counted");
        assert!(!block_on(store.contains(&victim.id())), "{what} is not contained");
        block_on(store.put(std::slice::from_ref(&victim))).unwrap();
        assert_same(&block_on(store.get(&victim.id())).unwrap().expect(what), &victim);
        assert_eq!(objects(&operator), sound, "{what} is written anew");
    }
}

#[test]
fn a_torn_upload_is_a_miss_and_no_damage() {
    let operator = memory();
    let (store, torn) = (store(&operator), chunk(1, 60));
    block_on(store.put(std::slice::from_ref(&torn))).unwrap();
    block_on(operator.delete(&path(&torn.id(), "head"))).unwrap();
    assert!(block_on(store.get(&torn.id())).unwrap().is_none());
    assert_eq!(block_on(store.stats()).damaged, 0);
    assert!(block_on(store.list()).unwrap().is_empty(), "what has no head is not held");
    block_on(store.put(std::slice::from_ref(&torn))).unwrap();
    assert_same(&block_on(store.get(&torn.id())).unwrap().unwrap(), &torn);
}

#[test]
fn a_cut_head_is_written_anew_without_being_read_before() {
    let (held, at) = (chunk(1, 60), path(&chunk(1, 60).id(), "head"));
    for len in [0, 50, 104] {
        let operator = memory();
        block_on(operator.write(&at, vec![1; len])).unwrap();
        let store = store(&operator);
        block_on(store.put(std::slice::from_ref(&held))).unwrap();
        assert_same(&block_on(store.get(&held.id())).unwrap().unwrap(), &held);
    }
}

#[test]
fn one_damaged_chunk_costs_no_other() {
    let operator = memory();
    let (store, chunks) = (store(&operator), [chunk(1, 60), chunk(2, 60), chunk(3, 1)]);
    block_on(store.put(&chunks)).unwrap();
    block_on(operator.delete(&path(&chunks[1].id(), "0"))).unwrap();
    let found = block_on(store.get_many(&chunks.each_ref().map(KvChunk::id))).unwrap();
    assert_same(found[0].as_ref().unwrap(), &chunks[0]);
    assert!(found[1].is_none());
    assert_same(found[2].as_ref().unwrap(), &chunks[2]);
}

#[test]
fn a_deletion_leaves_nothing_of_any_version() {
    let operator = memory();
    let large = RemoteStore::new(operator.clone(), RemoteOptions::default()).unwrap();
    let (store, versions) = (store(&operator), [chunk(1, 200), measured(&chunk(1, 200))]);
    let (id, other) = (versions[0].id(), chunk(2, 60));
    block_on(store.put(&[versions[0].clone(), other.clone()])).unwrap();
    let names = |of: &ChunkId| objects(&operator).into_keys().filter(|name| name.contains(&of.to_string())).count();
    let parts = names(&id);
    // The second version is one object, and the first one's parts are left; then an upload was torn.
    block_on(large.put(&versions[1..])).unwrap();
    assert_eq!(names(&id), parts);
    block_on(operator.write(&path(&id, "63"), vec![1])).unwrap();
    block_on(operator.delete(&path(&id, "head"))).unwrap();
    block_on(store.delete(&[id])).unwrap();
    assert_eq!(names(&id), 0);
    assert_same(&block_on(store.get(&other.id())).unwrap().unwrap(), &other);
}

#[test]
fn any_number_of_chunks_is_deleted_though_each_object_takes_a_request() {
    let (operator, faults) = (memory(), Faults::default());
    let chunks: Vec<KvChunk> = (0..40).map(|seed| chunk(seed, 4)).collect();
    let ids: Vec<ChunkId> = chunks.iter().map(KvChunk::id).collect();
    block_on(store(&operator).put(&chunks)).unwrap();
    assert!(!objects(&operator).is_empty());
    // 2600 requests, one after the other, take longer than the deadline, with a second more for each 100 chunks too.
    let (deadline, count) = (Duration::from_millis(1500), u32::MAX);
    faults.plan(Some(Plan { after: 0, count, fault: Fault::Late }));
    let options = RemoteOptions::default().write_deadline(deadline).concurrency(1);
    let slow = RemoteStore::new(operator.clone().layer(faults), options).unwrap();
    block_on(slow.delete(&ids)).unwrap();
    assert!(objects(&operator).is_empty());
}

#[test]
fn machines_see_what_others_put_and_delete() {
    let operator = memory();
    let [here, there] = [(); 2].map(|()| Arc::new(store(&operator)));
    let (first, second) = (chunk(1, 60), chunk(2, 60));
    block_on(async {
        let ram = Arc::new(RamStore::default());
        here.put(std::slice::from_ref(&first)).await.unwrap();
        let tiers = vec![Tier::new(ram.clone(), 1 << 20), Tier::shared(there.clone())];
        let tiered = Tiered::open(tiers).await.unwrap();
        here.put(std::slice::from_ref(&second)).await.unwrap();
        for chunk in [&first, &second] {
            assert_same(&tiered.get(&chunk.id()).await.unwrap().unwrap(), chunk);
        }
        tiered.sync().await.unwrap();
        assert!(ram.contains(&first.id()).await, "what was found is copied up");
        tiered.delete(&[first.id()]).await.unwrap();
        assert!(here.get(&first.id()).await.unwrap().is_none());
        here.delete(&[second.id()]).await.unwrap();
        assert!(there.get(&second.id()).await.unwrap().is_none());
        assert!(objects(&operator).is_empty());
    });
}

#[test]
fn opening_a_shared_tier_neither_lists_nor_evicts() {
    let operator = memory();
    let chunks: Vec<KvChunk> = (0..5).map(|seed| chunk(seed, 60)).collect();
    block_on(async {
        store(&operator).put(&chunks).await.unwrap();
        let tiered = Tiered::open(vec![Tier::shared(Arc::new(store(&operator)))]).await.unwrap();
        assert_eq!(tiered.stats().await.chunks, 0);
        assert_same(&tiered.get(&chunks[3].id()).await.unwrap().unwrap(), &chunks[3]);
        assert_eq!(store(&operator).list().await.unwrap().len(), 5);
    });
}

#[test]
fn a_list_tells_bytes_and_about_how_many_tokens() {
    let operator = memory();
    let chunks = [chunk(1, 60), chunk(2, 1)];
    block_on(store(&operator).put(&chunks)).unwrap();
    // Another process, which has seen none of them.
    let listed = block_on(store(&operator).list()).unwrap();
    for held in listed {
        let names = objects(&operator).into_iter().filter(|(name, _)| name.contains(&held.id.to_string()));
        assert_eq!(held.bytes, names.map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
        assert!(held.tokens >= 1);
    }
}

#[test]
fn what_others_wrote_without_the_secret_is_a_miss() {
    let operator = memory();
    let sealed = RemoteStore::new(operator.clone(), RemoteOptions::default().secret([1; 32])).unwrap();
    let forged = chunk(1, 60);
    block_on(store(&operator).put(std::slice::from_ref(&forged))).unwrap();
    assert!(block_on(sealed.get(&forged.id())).unwrap().is_none());
    block_on(sealed.put(std::slice::from_ref(&forged))).unwrap();
    assert_same(&block_on(sealed.get(&forged.id())).unwrap().unwrap(), &forged);
    assert!(block_on(store(&operator).get(&forged.id())).unwrap().is_none());
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let wrong = [
        RemoteOptions::default().prefix(""),
        RemoteOptions::default().prefix("a//b"),
        RemoteOptions::default().prefix("/a"),
        RemoteOptions::default().prefix("a/../b"),
        RemoteOptions::default().prefix("ä"),
        RemoteOptions::default().part_bytes(0),
        RemoteOptions::default().part_bytes(1 << 30),
        RemoteOptions::default().concurrency(0),
        RemoteOptions::default().bytes_in_flight(0),
        RemoteOptions::default().deadline(Duration::ZERO),
        RemoteOptions::default().write_deadline(Duration::MAX),
        RemoteOptions::default().ttl(Duration::from_secs(60)),
    ];
    for options in wrong {
        let error = RemoteStore::new(memory(), options.clone()).expect_err(&format!("{options:?}"));
        assert!(matches!(error, RemoteError::Setting { .. }), "{error}");
    }
    assert!(RemoteStore::new(memory(), RemoteOptions::default().prefix("team-1/kv_2.x")).is_ok());
    assert!(!format!("{:?}", RemoteOptions::default().secret([201; 32])).contains("201"));
}

/// A store on a server that fails and loses things.
struct Server {
    /// As the server has it, without failures.
    held: Operator,
    operator: Operator,
    faults: Faults,
    store: RemoteStore,
    other: RemoteStore,
    /// One that gives up soon: it is asked while the server hangs, so that no test depends on how fast a machine is.
    hasty: RemoteStore,
    hangs: bool,
}

impl Server {
    fn new() -> Self {
        let (held, faults) = (memory(), Faults::default());
        let operator = held.clone().layer(faults.clone());
        let within = |deadline| within(&operator, deadline);
        let [store, other] = [PATIENT; 2].map(within);
        let hasty = within(Duration::from_millis(10));
        Self { held, operator, faults, store, other, hasty, hangs: false }
    }
}

const PATIENT: Duration = Duration::from_secs(600);

/// A store that gives up after this time, and does not leave the server alone for failures.
fn within(operator: &Operator, deadline: Duration) -> RemoteStore {
    let options = RemoteOptions::default().part_bytes(SMALL).deadline(deadline).write_deadline(deadline);
    let pause = Duration::from_millis(1);
    RemoteStore::new(operator.clone(), options.pauses(1000, pause, pause)).unwrap()
}

impl Subject for Server {
    type Store = RemoteStore;
    const EVICTED_COMES_BACK: bool = false;
    const DAMAGE_LINGERS: bool = false;

    fn store(&self) -> &RemoteStore {
        if self.hangs { &self.hasty } else { &self.store }
    }

    fn other(&self) -> &RemoteStore {
        if self.hangs { &self.hasty } else { &self.other }
    }

    fn reopen(&mut self) {
        self.store = within(&self.operator, PATIENT);
    }

    fn disturb(&mut self, at: u32) -> Disturbed {
        let (kind, at) = (at % 8, at / 8);
        if kind < 4 {
            let fault = match kind {
                0 => Fault::Hangs,
                1 => Fault::Unanswered,
                _ => Fault::Refused,
            };
            self.hangs = fault == Fault::Hangs;
            self.faults.plan(Some(Plan { after: at % 20, count: 1 + at / 20 % 7, fault }));
            return Disturbed::Calls;
        }
        let objects = objects(&self.held);
        let Some((path, bytes)) = objects.into_iter().nth(at as usize % 40) else { return Disturbed::Nothing };
        let mut changed = bytes;
        match kind {
            4 => changed.truncate(at as usize / 40 % changed.len().max(1)),
            5 => changed.push(0),
            6 => changed.iter_mut().skip(at as usize / 40 % 1200).take(1).for_each(|byte| *byte ^= 0x10),
            _ => {
                block_on(self.held.delete(&path)).unwrap();
                return Disturbed::Held;
            }
        }
        block_on(self.held.write(&path, changed)).unwrap();
        Disturbed::Held
    }

    fn calm(&mut self) {
        self.faults.plan(None);
        self.hangs = false;
    }

    fn is_left(&self, gone: &KvChunk) -> bool {
        objects(&self.held).into_keys().any(|name| name.contains(&gone.id().to_string()))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_like_a_map_that_failures_make_forgetful(steps in steps()) {
        Machine::new(Server::new()).run(steps)?;
    }
}

#[cfg(unix)]
#[test]
fn what_came_by_the_deadline_is_returned() {
    let dir = tempfile::tempdir().unwrap();
    let operator = Operator::new(services::Fs::default().root(dir.path().to_str().unwrap())).unwrap();
    let options = RemoteOptions::default().part_bytes(SMALL).deadline(Duration::from_secs(1));
    let (store, [comes, hangs]) = (RemoteStore::new(operator, options).unwrap(), [chunk(1, 60), chunk(2, 60)]);
    block_on(store.put(&[comes.clone(), hangs.clone()])).unwrap();
    // Who opens a pipe that nobody writes to waits.
    let pipe = dir.path().join(path(&hangs.id(), "head"));
    std::fs::remove_file(&pipe).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let found = block_on(store.get_many(&[hangs.id(), comes.id()])).unwrap();
    assert!(found[0].is_none());
    assert_same(found[1].as_ref().unwrap(), &comes);
    let alone = remote_error(block_on(store.get(&hangs.id())));
    assert!(matches!(alone, RemoteError::Deadline { .. }), "{alone}");
    // Lets the waiting threads go.
    drop(std::fs::OpenOptions::new().read(true).write(true).open(&pipe));
}

#[cfg(any(feature = "redis", feature = "s3"))]
mod dead {
    use super::*;

    /// Short deadlines, and a first pause that outlasts what is asked meanwhile.
    pub(crate) fn impatient() -> RemoteOptions {
        RemoteOptions::default()
            .part_bytes(SMALL)
            .deadline(Duration::from_millis(1500))
            .write_deadline(Duration::from_millis(1500))
            .pauses(2, Duration::from_secs(1), Duration::from_secs(1))
    }

    /// A store whose server does not answer is an error to every call, soon at once; in a stack it costs nothing but
    /// misses, and never loses a deletion.
    pub(crate) fn check(store: &RemoteStore) {
        let (one, two) = (chunk(1, 60), chunk(2, 60));
        block_on(async {
            let mut failures = 0;
            loop {
                match remote_error(store.get(&one.id()).await) {
                    RemoteError::Unavailable { .. } => break,
                    RemoteError::Deadline { .. } | RemoteError::Service { .. } => failures += 1,
                    other => panic!("{other}"),
                }
            }
            assert!((1..=2).contains(&failures), "{failures} calls waited for the server");
            let at_once = |error| assert!(matches!(error, RemoteError::Unavailable { .. }), "{error}");
            at_once(remote_error(store.put(std::slice::from_ref(&one)).await));
            at_once(remote_error(store.delete(&[one.id()]).await));
            assert!(!store.contains(&one.id()).await);
            let tiers = vec![Tier::new(Arc::new(RamStore::default()), 1 << 20), Tier::shared(Arc::new(store.clone()))];
            let tiered = Tiered::open(tiers).await.unwrap();
            tiered.put(std::slice::from_ref(&two)).await.expect_err("the slowest tier did not take it");
            assert_same(&tiered.get(&two.id()).await.unwrap().unwrap(), &two);
            tiered.delete(&[two.id()]).await.expect_err("a deletion that did not reach the server is not done");
        });
    }

    /// Asks until the server is asked again.
    pub(crate) fn wait(store: &RemoteStore) {
        let answered = (0..600).any(|_| {
            let answered = block_on(store.get(&chunk(9, 1).id())).is_ok();
            if !answered {
                std::thread::sleep(Duration::from_millis(50));
            }
            answered
        });
        assert!(answered, "the server is never asked again");
    }
}

#[cfg(feature = "redis")]
mod redis {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::dead::{check, impatient, wait};
    use super::*;

    fn url(server: &servers::Server) -> String {
        format!("redis://127.0.0.1:{}", server.port)
    }

    #[test]
    fn on_redis_it_is_a_kv_store() {
        let (Some(server), made) = (servers::redis(None), Cell::new(0)) else { return };
        for part in [SMALL, 8 << 20] {
            amem_core::testing::kv_store(|| {
                made.set(made.get() + 1);
                let options = RemoteOptions::default().part_bytes(part).prefix(format!("test/{}", made.get()));
                RemoteStore::redis(&url(&server), options).unwrap()
            });
        }
    }

    #[test]
    fn what_one_machine_put_another_finds_and_deletes_whole() {
        let Some(server) = servers::redis(None) else { return };
        let options = || RemoteOptions::default().part_bytes(SMALL);
        let [here, there] = [(); 2].map(|()| RemoteStore::redis(&url(&server), options()).unwrap());
        let shared = chunk(1, 600);
        block_on(here.put(std::slice::from_ref(&shared))).unwrap();
        assert!(!there.can_list() && block_on(there.list()).unwrap().is_empty());
        assert_same(&block_on(there.get(&shared.id())).unwrap().unwrap(), &shared);
        assert!(!servers::ask_redis(&server, "DBSIZE").starts_with(":0"));
        block_on(there.delete(&[shared.id()])).unwrap();
        assert!(servers::ask_redis(&server, "DBSIZE").starts_with(":0"));
        assert!(block_on(here.get(&shared.id())).unwrap().is_none());
    }

    #[test]
    fn objects_of_other_lengths_are_misses_and_written_anew() {
        let Some(server) = servers::redis(None) else { return };
        let (store, held) = (RemoteStore::redis(&url(&server), RemoteOptions::default()).unwrap(), chunk(1, 60));
        let other = RemoteStore::redis(&url(&server), RemoteOptions::default()).unwrap();
        let sizes: [(&str, usize); 4] = [("0", 0), ("50", 50), ("104", 104), ("too many", 9 << 20)];
        for (count, (what, len)) in sizes.into_iter().enumerate() {
            let value = vec![1; len];
            put_raw(&server, &path(&held.id(), "head"), &value);
            // A process that has not looked before, and one that has.
            if len <= 104 {
                block_on(other.put(std::slice::from_ref(&held))).unwrap();
                assert_same(&block_on(store.get(&held.id())).unwrap().expect(what), &held);
                put_raw(&server, &path(&held.id(), "head"), &value);
            }
            assert!(block_on(store.get(&held.id())).unwrap().is_none(), "{what}");
            assert_eq!(block_on(store.stats()).damaged, count as u64 + 1, "{what}");
            block_on(store.put(std::slice::from_ref(&held))).unwrap();
            assert_same(&block_on(store.get(&held.id())).unwrap().expect(what), &held);
        }
    }

    /// Sets a key of the server to any bytes.
    fn put_raw(server: &servers::Server, key: &str, value: &[u8]) {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        let mut command = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len()).into_bytes();
        command.extend(value);
        command.extend(b"\r\n");
        stream.write_all(&command).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }

    #[test]
    fn what_was_put_goes_after_its_time() {
        let Some(server) = servers::redis(None) else { return };
        let options = RemoteOptions::default().part_bytes(SMALL).ttl(Duration::from_secs(1000));
        let (store, kept) = (RemoteStore::redis(&url(&server), options).unwrap(), chunk(1, 60));
        block_on(store.put(std::slice::from_ref(&kept))).unwrap();
        for object in ["head", "0"] {
            let answer = servers::ask_redis(&server, &format!("TTL {}", path(&kept.id(), object)));
            let left: i64 = answer.lines().next().unwrap().trim_start_matches(':').parse().unwrap();
            assert!((900..=1000).contains(&left), "{object}: {left}");
        }
        let options = RemoteOptions::default().ttl(Duration::from_millis(1));
        assert!(matches!(RemoteStore::redis(&url(&server), options), Err(RemoteError::Setting { .. })));
    }

    #[test]
    fn a_password_opens_the_server_and_is_never_told() {
        let Some(server) = servers::redis(Some("hunt/er@2")) else { return };
        let store = |password: &str| {
            RemoteStore::redis(&format!("redis://:{password}@127.0.0.1:{}/1", server.port), impatient()).unwrap()
        };
        let (right, wrong, kept) = (store("hunt%2Fer%402"), store("gath%2Ferer"), chunk(1, 60));
        block_on(right.put(std::slice::from_ref(&kept))).unwrap();
        assert_same(&block_on(right.get(&kept.id())).unwrap().unwrap(), &kept);
        let errors = (0..3).map(|_| format!("{:?}", remote_error(block_on(wrong.get(&kept.id())))));
        for told in errors.chain([&right, &wrong].map(|store| format!("{store:?}"))) {
            assert!(!told.contains("hunt") && !told.contains("gath"), "{told}");
        }
    }

    #[test]
    fn a_killed_server_costs_misses_until_it_is_back() {
        let Some(mut server) = servers::redis(None) else { return };
        let (store, kept) = (RemoteStore::redis(&url(&server), impatient()).unwrap(), chunk(1, 60));
        block_on(store.put(std::slice::from_ref(&kept))).unwrap();
        server.kill();
        check(&store);
        server.restart();
        wait(&store);
        block_on(store.put(std::slice::from_ref(&kept))).unwrap();
        assert_same(&block_on(store.get(&kept.id())).unwrap().unwrap(), &kept);
        block_on(store.delete(&[kept.id()])).unwrap();
    }

    #[test]
    fn a_server_that_hangs_costs_misses_until_it_goes_on() {
        let Some(server) = servers::redis(None) else { return };
        let (store, kept) = (RemoteStore::redis(&url(&server), impatient()).unwrap(), chunk(3, 60));
        block_on(store.put(std::slice::from_ref(&kept))).unwrap();
        server.signal("STOP");
        check(&store);
        server.signal("CONT");
        wait(&store);
        assert_same(&block_on(store.get(&kept.id())).unwrap().unwrap(), &kept);
        block_on(store.delete(&[kept.id()])).unwrap();
        assert!(block_on(store.get(&kept.id())).unwrap().is_none());
    }

    #[test]
    fn an_address_that_accepts_and_says_nothing_costs_misses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        check(&RemoteStore::redis(&url, impatient()).unwrap());
    }

    #[test]
    fn an_address_that_leads_nowhere_costs_misses() {
        // Set aside for documentation: no machine has it.
        check(&RemoteStore::redis("redis://192.0.2.1:6379", impatient()).unwrap());
    }
}

#[cfg(feature = "s3")]
mod s3 {
    use super::dead::{check, impatient};
    use super::*;

    fn bucket(server: &servers::Server) -> services::S3 {
        let bucket = services::S3::default().bucket("agents-kv").region("us-east-1");
        let bucket = bucket.access_key_id("somebody").secret_access_key("hunter2");
        bucket.endpoint(&format!("http://127.0.0.1:{}", server.port)).disable_config_load().disable_ec2_metadata()
    }

    #[test]
    fn on_s3_it_is_a_kv_store() {
        let (Some(server), made) = (servers::s3(), Cell::new(0)) else { return };
        // A server in Python on a busy machine is slow.
        let options = RemoteOptions::default().deadline(Duration::from_secs(60));
        for part in [SMALL, 8 << 20] {
            amem_core::testing::kv_store(|| {
                made.set(made.get() + 1);
                let options = options.clone().part_bytes(part).prefix(format!("test/{}", made.get()));
                RemoteStore::s3(bucket(&server), options).unwrap()
            });
        }
    }

    #[test]
    fn a_killed_server_costs_misses() {
        let Some(mut server) = servers::s3() else { return };
        let options = impatient().deadline(Duration::from_secs(60)).write_deadline(Duration::from_secs(60));
        let (store, kept) = (RemoteStore::s3(bucket(&server), options).unwrap(), chunk(3, 60));
        block_on(store.put(std::slice::from_ref(&kept))).unwrap();
        assert_same(&block_on(store.get(&kept.id())).unwrap().unwrap(), &kept);
        let listed = block_on(RemoteStore::s3(bucket(&server), RemoteOptions::default()).unwrap().list()).unwrap();
        assert_eq!(listed.iter().map(|held| held.id).collect::<Vec<_>>(), [kept.id()]);
        server.kill();
        check(&store);
        assert!(!format!("{store:?} {:?}", remote_error(block_on(store.get(&kept.id())))).contains("hunter2"));
    }
}
