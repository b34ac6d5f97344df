//! Stores on a disk that fails, whose process is killed and whose power is cut, at every operation on the disk. After each,
//! the store opens and holds what it promised to hold, nothing that it promised to remove, and no bytes that were not put.
//!
//! `AMEM_CRASH_STATES` is how many ends of a process are tried (20,000 without it). All follow from seeds, and a failure
//! names its own.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};

use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvData, KvShape, PrefixId};

use super::store::{Inner, SegmentOptions};
use crate::planted::{self, Planted};
use crate::simulated_disk::{Call, Faults, Random, SimulatedDisk};

const DIR: &str = "/data/kv";
const CHUNKS: u64 = 9;
/// Calls of the store in each life of a process.
const STEPS: u64 = 24;
/// Records that a chunk has at most.
const MOST_RECORDS: usize = 1000;

/// What is promised of one chunk.
#[derive(Clone, Default)]
struct Promise {
    /// What was put since the chunk was last deleted.
    put: Vec<KvChunk>,
    /// What has to be found as long as the power stays on: this, or, if it has no sensitivity, something that has.
    until_power_cut: Option<KvChunk>,
    /// What has to be found whatever happens.
    always: Option<KvChunk>,
    /// Whether this process put it, or found it put.
    ours: bool,
}

/// How the next process begins and how it ends.
#[derive(Clone, Copy, Default, Debug)]
struct Plan {
    /// It ends at this change or sync of its disk; otherwise after its last call.
    crash_at: Option<u64>,
    faults: Option<Faults>,
}

struct Run {
    disk: SimulatedDisk,
    random: Random,
    options: SegmentOptions,
    /// Processes, one after the other.
    lives: u64,
    promises: BTreeMap<u64, Promise>,
    /// Whether a sync failed since the power was last cut: the disk may lack what programs see.
    sync_failed: bool,
    /// What other processes found wrong.
    wrong: Arc<Mutex<Vec<String>>>,
    /// Another process that has the store open.
    reader: Option<Arc<Inner>>,
    /// Errors injected before this process began.
    injected: u64,
    /// Syncs that do nothing, by the call of the store that makes them.
    pretended: Vec<(Act, Call)>,
    states: u64,
    /// Whether this process could not read some segment when it opened the store. What is in it, or which of a chunk's
    /// records is the newest, is then not known, and a deletion drops it.
    unread: bool,
}

/// What is done to a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Open,
    Put,
    Delete,
    Evict,
    Purge,
    Sync,
    Get,
    Close,
}

fn number(at: u64, version: u64) -> u64 {
    Random::new(at << 8 | version).next()
}

/// A chunk, by its number. Its versions have the same tokens, and other KV. The header of the last has many sectors, so that
/// some may be lost in the middle, and of the others all but the one with the payload's checksums may not.
fn chunk(at: u64, version: u64) -> KvChunk {
    let last = at + 1 == CHUNKS;
    let shape = KvShape { layers: 2, kv_heads: 1, head_dim: if last { 1 } else { 4 } };
    let encoding = Encoding::Plain(Dtype::F32);
    let tokens: Arc<[u32]> = (0..if last { 400 } else { 1 + at * 9 }).map(|i| number(at, i) as u32).collect();
    let mut random = Random::new(at << 16 | version);
    let data = (0..encoding.bytes(&shape, tokens.len()) / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let data = HostKv::new(encoding, 2, data);
    let data: Arc<dyn KvData> =
        if (at + version).is_multiple_of(4) { Arc::new(data) } else { Arc::new(InLayers(data)) };
    KvChunk::new(id(at), PrefixId([0; 32]), shape, tokens, data).unwrap()
}

/// KV that does not lie in one piece, and so is written layer by layer.
struct InLayers(HostKv);

impl KvData for InLayers {
    fn encoding(&self) -> Encoding {
        self.0.encoding()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn layer(&self, layer: usize) -> amem_core::Result<Cow<'_, [u8]>> {
        self.0.layer(layer)
    }
}

fn id(at: u64) -> ChunkId {
    ChunkId([at as u8 + 1; 32])
}

fn measured(chunk: KvChunk) -> KvChunk {
    let sensitivity = (0..chunk.tokens().len()).map(|i| i as f32).collect();
    chunk.with_sensitivity(sensitivity).unwrap()
}

/// The chunks of these ids with their KV in memory: that of a store's stays in a file, which may be lost with the power.
/// What turns out to be damaged when it is read is as good as a miss, and asked for again: an older record may be whole.
fn owned(store: &Inner, ids: &[ChunkId]) -> crate::Result<Vec<Option<KvChunk>>> {
    let in_memory = |(found, id): (Option<KvChunk>, &ChunkId)| {
        let mut found = found;
        for _ in 0..MOST_RECORDS {
            match found.as_ref().map(|chunk| chunk.encoded_as(chunk.encoding())) {
                None => return Ok(None),
                Some(Ok(owned)) => return Ok(Some(owned)),
                Some(Err(amem_core::Error::DamagedKv { .. })) => {}
                Some(Err(error)) => panic!("a chunk that was handed out cannot be read: {error}"),
            }
            found = store.get_many(&[*id])?.pop().flatten();
        }
        panic!("a chunk that was damaged when it was read is handed out again and again");
    };
    store.get_many(ids)?.into_iter().zip(ids).map(in_memory).collect()
}

fn same(a: &KvChunk, b: &KvChunk) -> bool {
    (a.id(), a.tokens(), a.sensitivity()) == (b.id(), b.tokens(), b.sensitivity())
        && a.to_bytes().unwrap() == b.to_bytes().unwrap()
}

impl Promise {
    /// Whether what was found is what may be found, and is there if it has to be.
    fn check(&self, found: Option<&KvChunk>) -> Result<(), &'static str> {
        let needed = [&self.always, &self.until_power_cut];
        let Some(found) = found else {
            return match needed {
                [Some(_), _] => Err("what was synced is lost"),
                [_, Some(_)] => Err("what was put is lost without a power cut"),
                _ => Ok(()),
            };
        };
        if self.put.is_empty() {
            return Err("what was deleted or lost is back");
        }
        if !self.put.iter().any(|put| same(put, found)) {
            return Err("other bytes than were put");
        }
        for needed in needed.into_iter().flatten() {
            let better = needed.sensitivity().is_none() && found.sensitivity().is_some();
            if !better && !same(needed, found) {
                return Err("another version than the one that was held");
            }
        }
        Ok(())
    }

    /// Whether what another process found, maybe while this one was at work, is what may be found. It may be the record
    /// that a newer one has just replaced. What is held has to be found, unless `forgetful`.
    fn check_other(&self, found: Option<&KvChunk>, forgetful: bool) -> Result<(), &'static str> {
        match found {
            None if self.until_power_cut.is_some() && !forgetful => Err("another process does not find what is held"),
            Some(_) if self.put.is_empty() => Err("another process finds what was deleted"),
            Some(found) if !self.put.iter().any(|put| same(put, found)) => Err("another process finds other bytes"),
            _ => Ok(()),
        }
    }

    fn let_go(&mut self) {
        (self.until_power_cut, self.always) = (None, None);
    }
}

type Outcome<T> = Result<T, String>;

impl Run {
    fn new(pretended: &[(Act, Call)]) -> Self {
        Self {
            disk: SimulatedDisk::new(0),
            random: Random::new(0),
            options: SegmentOptions::default(),
            lives: 0,
            promises: (0..CHUNKS).map(|at| (at, Promise::default())).collect(),
            sync_failed: false,
            wrong: Arc::default(),
            reader: None,
            injected: 0,
            pretended: pretended.to_vec(),
            states: 0,
            unread: false,
        }
    }

    /// Does something to the store, with those syncs pretended that are to be.
    fn act<T>(&mut self, act: Act, what: impl FnOnce() -> T) -> T {
        let pretended: Vec<Call> =
            self.pretended.iter().filter(|(during, _)| *during == act).map(|(_, call)| *call).collect();
        self.disk.pretend(&pretended);
        let (failed, injected) = (self.disk.failed_syncs(), self.disk.injected());
        let alone = matches!(act, Act::Open | Act::Close | Act::Get) || !self.random.one_in(3);
        if !alone {
            self.read_meanwhile();
        }
        let result = what();
        self.disk.let_be();
        self.disk.pretend(&[]);
        self.sync_failed |= self.disk.failed_syncs() > failed;
        if self.disk.injected() > injected {
            // A disk that fails may take what was not synced.
            self.promises.values_mut().for_each(|promise| promise.until_power_cut.clone_from(&promise.always));
        }
        result
    }

    fn open(&mut self) -> crate::Result<Inner> {
        let (disk, options) = (Arc::new(self.disk.clone()), self.options);
        let opened = self.act(Act::Open, || Inner::open(disk, Path::new(DIR), options));
        self.promises.values_mut().for_each(|promise| promise.ours = false);
        self.unread = opened.as_ref().is_ok_and(|store| !store.index().unreadable.is_empty());
        self.let_go_of_what_is_unread(self.options.max_bytes != u64::MAX);
        if let Some(store) = opened.as_ref().ok().filter(|_| self.options.max_bytes != u64::MAX) {
            // Files that were removed may have come back, and others go in their place.
            self.let_go_of_what_is_lost(store);
        }
        opened
    }

    fn close(&mut self, store: Inner) {
        self.act(Act::Close, || drop(store));
    }

    /// Each chunk that the store gives, checked.
    fn found(&mut self, store: &Inner) -> Outcome<Vec<Option<KvChunk>>> {
        let ids: Vec<ChunkId> = (0..CHUNKS).map(id).collect();
        let found = self.act(Act::Get, || owned(store, &ids)).map_err(|error| format!("reading failed: {error}"))?;
        for (at, found) in found.iter().enumerate() {
            self.check(at as u64, found.as_ref())?;
        }
        Ok(found)
    }

    fn check(&self, at: u64, found: Option<&KvChunk>) -> Outcome<()> {
        let promise = &self.promises[&at];
        let checked = if self.unread { promise.check_other(found, true) } else { promise.check(found) };
        checked.map_err(|wrong| format!("chunk {at}: {wrong}"))
    }

    /// Takes back all promises, where files may have gone that could not be read.
    fn let_go_of_what_is_unread(&mut self, files_went: bool) {
        if self.unread && files_went {
            self.promises.values_mut().for_each(Promise::let_go);
        }
    }

    fn promise(&mut self, at: u64) -> &mut Promise {
        self.promises.get_mut(&at).unwrap()
    }

    fn some_chunks(&mut self) -> Vec<u64> {
        let count = 1 + self.random.below(3);
        (0..count).map(|_| self.random.below(CHUNKS)).collect()
    }

    /// Has another process read everything in the middle of the next call of the store.
    fn read_meanwhile(&mut self) {
        let reader = self.reader.clone();
        let (disk, options) = (self.disk.clone(), self.options.read_only(true));
        let (promises, injected, limited) = (self.promises.clone(), self.injected, options.max_bytes != u64::MAX);
        let wrong = self.wrong.clone();
        self.disk.interrupt(self.random.below(12), move || {
            let found = disk.clone().undisturbed(|| {
                let reader = match reader {
                    Some(reader) => reader,
                    None => Arc::new(Inner::open(Arc::new(disk.clone()), Path::new(DIR), options)?),
                };
                owned(&reader, &(0..CHUNKS).map(id).collect::<Vec<_>>())
            });
            // Where there is a limit or was an error, chunks may be lost that were not let go of.
            let forgetful = limited || disk.injected() > injected;
            let mut wrong = wrong.lock().unwrap();
            match found {
                Ok(found) => {
                    for (at, found) in found.into_iter().enumerate() {
                        let checked = promises[&(at as u64)].check_other(found.as_ref(), forgetful);
                        wrong.extend(checked.err().map(|wrong| format!("chunk {at}: {wrong}")));
                    }
                }
                Err(_) if disk.is_down() => {}
                Err(error) => wrong.push(format!("another process cannot read: {error}")),
            }
        });
    }

    /// One call of the store, which may fail, and what it promises.
    fn step(&mut self, store: &Inner) -> Outcome<()> {
        self.call(store)?;
        if let Some(wrong) = self.wrong.lock().unwrap().pop().filter(|_| !self.disk.is_down()) {
            return Err(wrong);
        }
        self.check_limit()
    }

    /// Whether the files have no more bytes than they may, where nothing failed.
    fn check_limit(&self) -> Outcome<()> {
        let bytes = self.disk.bytes_in(Path::new(DIR));
        if bytes > self.options.max_bytes && !self.disk.is_down() && self.disk.injected() == self.injected {
            return Err(format!("the files have {bytes} bytes of {}", self.options.max_bytes));
        }
        Ok(())
    }

    fn call(&mut self, store: &Inner) -> Outcome<()> {
        match self.random.below(21) {
            0..9 => {
                for at in self.some_chunks() {
                    let new = chunk(at, self.random.below(3));
                    let new = if self.random.one_in(3) { measured(new) } else { new };
                    self.promise(at).put.push(new.clone());
                    if self.unread {
                        self.promise(at).let_go();
                    }
                    let failed = self.disk.failed_syncs();
                    let put = self.act(Act::Put, || store.put(std::slice::from_ref(&new)));
                    if self.options.max_bytes != u64::MAX || self.disk.injected_full() > 0 {
                        // To make room, others may have gone.
                        self.let_go_of_what_is_lost(store);
                        self.let_go_of_what_is_unread(true);
                    }
                    // A sync that fails may take the record out of the system's memory too.
                    if put.is_ok() && !self.disk.is_down() && self.disk.failed_syncs() == failed {
                        self.promise(at).ours = !self.unread;
                        // The new one, or what was held.
                        let found = self.look(store, at)?;
                        if found.as_ref().is_none_or(|held| held.sensitivity().is_none() && new.sensitivity().is_some())
                        {
                            return Err(format!("chunk {at}: what was put is not held"));
                        }
                        self.promise(at).until_power_cut = found.filter(|_| !self.unread);
                    }
                }
            }
            9..11 => {
                let chosen = self.some_chunks();
                let ids: Vec<ChunkId> = chosen.iter().map(|at| id(*at)).collect();
                chosen.iter().for_each(|at| self.promise(*at).let_go());
                let injected = self.disk.injected();
                let deleted = self.act(Act::Delete, || store.delete(&ids));
                self.let_go_of_what_is_unread(true);
                if self.disk.injected() > injected {
                    // What cannot be read, or on a full disk not be written anew, goes with what was deleted.
                    self.promises.values_mut().for_each(Promise::let_go);
                }
                if deleted.is_ok() {
                    for at in chosen {
                        // The one token of chunk 0 may be found anywhere.
                        let tokens: Vec<u8> = chunk(at, 0).tokens().iter().flat_map(|t| t.to_le_bytes()).collect();
                        if at > 0 && !self.promise(at).put.is_empty() && self.disk.contains(&tokens) {
                            return Err(format!("chunk {at}: what was deleted is in a file"));
                        }
                        self.promise(at).put.clear();
                    }
                }
                if self.options.max_bytes != u64::MAX {
                    self.let_go_of_what_is_lost(store);
                }
            }
            11..14 => {
                let chosen = self.some_chunks();
                let ids: Vec<ChunkId> = chosen.iter().map(|at| id(*at)).collect();
                chosen.iter().for_each(|at| self.promise(*at).let_go());
                let _ = self.act(Act::Evict, || store.evict(&ids));
                // Where one of them was put anew, an older record may be all that can be found later.
                self.let_go_of_what_is_unread(true);
                if self.disk.injected_full() > 0 {
                    // On a full disk, an eviction makes room at any price.
                    self.let_go_of_what_is_lost(store);
                }
            }
            14 => {
                let mut dead = Vec::new();
                for at in 0..CHUNKS {
                    dead.extend(self.look(store, at)?.is_none().then_some(at));
                }
                let injected = self.disk.injected();
                let purged = self.act(Act::Purge, || store.purge());
                self.let_go_of_what_is_unread(true);
                if self.disk.injected() > injected || self.options.max_bytes != u64::MAX {
                    self.let_go_of_what_is_lost(store);
                }
                if purged.is_ok() && !self.disk.is_down() {
                    for at in dead {
                        if self.look(store, at)?.is_none() {
                            let tokens: Vec<u8> = chunk(at, 0).tokens().iter().flat_map(|t| t.to_le_bytes()).collect();
                            if at > 0 && !self.promise(at).put.is_empty() && self.disk.contains(&tokens) {
                                return Err(format!("chunk {at}: what was purged is in a file"));
                            }
                            self.promise(at).put.clear();
                        }
                    }
                }
            }
            15..19 => {
                if self.act(Act::Sync, || store.sync()).is_ok() && !self.disk.is_down() {
                    for at in 0..CHUNKS {
                        // After a sync that failed, nobody knows of what earlier processes put.
                        if self.promise(at).ours || !self.sync_failed && !self.unread {
                            let found = self.look(store, at)?;
                            let promise = self.promise(at);
                            (promise.until_power_cut, promise.always) = (found.clone(), found);
                        }
                    }
                }
            }
            _ => {
                let at = self.random.below(CHUNKS);
                if let Ok(found) = self.act(Act::Get, || owned(store, &[id(at)]))
                    && !self.disk.is_down()
                {
                    self.check(at, found[0].as_ref())?;
                }
            }
        }
        Ok(())
    }

    /// Takes back what was promised of chunks that are not there any more, for good reasons.
    fn let_go_of_what_is_lost(&mut self, store: &Inner) {
        for at in 0..CHUNKS {
            let found = self.disk.undisturbed(|| owned(store, &[id(at)]));
            if self.disk.is_down() || found.is_ok_and(|found| found[0].is_none()) {
                self.promise(at).let_go();
            }
        }
    }

    /// What the store holds, read from a disk that does not fail for the moment.
    fn look(&self, store: &Inner, at: u64) -> Outcome<Option<KvChunk>> {
        let found = self.disk.undisturbed(|| owned(store, &[id(at)]));
        let found = found.map_err(|error| format!("reading failed: {error}"))?.pop().flatten();
        self.check(at, found.as_ref())?;
        Ok(found)
    }

    /// The life of one process, and what the next one finds.
    fn live(&mut self, plan: Plan) -> Outcome<()> {
        if let Some(at) = plan.crash_at {
            self.disk.crash_at(at);
        }
        if let Some(faults) = plan.faults {
            self.disk.inject(faults);
        }
        self.injected = self.disk.injected();
        let elsewhere = self.disk.injected_elsewhere();
        match self.open() {
            Ok(store) => {
                self.check_limit()?;
                if self.random.one_in(2) {
                    let (disk, options) = (Arc::new(self.disk.clone()), self.options.read_only(true));
                    self.reader =
                        self.disk.undisturbed(|| Inner::open(disk, Path::new(DIR), options)).ok().map(Arc::new);
                }
                for _ in 0..STEPS {
                    if self.disk.is_down() {
                        break;
                    }
                    self.step(&store)?;
                }
                // Closed in good order, or killed.
                if self.random.one_in(2) {
                    self.disk.stop();
                }
                self.close(store);
                self.reader = None;
            }
            // That a segment cannot be read is no reason not to open the others.
            Err(_) if self.disk.is_down() || self.disk.injected_elsewhere() > elsewhere => {}
            Err(error) => return Err(format!("opening failed: {error}")),
        }
        let power_cut = !self.random.one_in(4);
        self.end(power_cut);
        // The power may be cut again while the store is opened.
        if self.random.one_in(3) {
            self.disk.crash_at(1 + self.random.below(9));
            if let Ok(store) = self.open() {
                self.disk.stop();
                self.close(store);
            }
            self.end(power_cut);
        }
        let first = self.reopen(power_cut)?;
        let second = self.reopen(power_cut)?;
        // With a limit, files that come back after they were removed may cost others their room, each time anew.
        let limited = self.options.max_bytes != u64::MAX;
        let agree = first.iter().zip(&second).all(|(a, b)| match (a, b) {
            (Some(a), Some(b)) => limited || same(a, b),
            (a, b) => limited || a.is_none() && b.is_none(),
        });
        if !agree {
            return Err("two recoveries disagree".into());
        }
        for (at, found) in second.into_iter().enumerate() {
            let promise = self.promise(at as u64);
            match found {
                // What did not survive is gone for good.
                None if power_cut && !limited => promise.put.clear(),
                // What survived a power cut is on the disk.
                found if power_cut => promise.always = found.clone(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens the store on a disk that works, reads everything, and ends without closing it.
    fn reopen(&mut self, power_cut: bool) -> Outcome<Vec<Option<KvChunk>>> {
        let store = self.open().map_err(|error| format!("opening failed: {error}"))?;
        let found = self.found(&store)?;
        self.disk.stop();
        self.close(store);
        self.end(power_cut);
        Ok(found)
    }

    fn end(&mut self, power_cut: bool) {
        self.states += 1;
        if power_cut {
            self.disk.cut_power();
            self.sync_failed = false;
            self.promises.values_mut().for_each(|promise| promise.until_power_cut.clone_from(&promise.always));
        } else {
            self.disk.end_process();
        }
    }

    fn random_plan(&mut self, length: Length) -> Plan {
        let crash_at = (!self.random.one_in(4)).then(|| 1 + self.random.below(length.changes));
        let faults = self.random.one_in(2).then(|| Faults {
            from: 1 + self.random.below(length.calls),
            count: if self.random.one_in(2) { 1 } else { 1 + self.random.below(40) },
            kind: if self.random.one_in(2) { ErrorKind::StorageFull } else { ErrorKind::Other },
        });
        Plan { crash_at, faults }
    }
}

/// How long the first life of a run is, if nothing goes wrong.
#[derive(Clone, Copy, Default)]
struct Length {
    changes: u64,
    calls: u64,
}

/// A run, which can be done again.
#[derive(Clone, Copy)]
struct Case {
    seed: u64,
    again: u64,
    /// What happens in the first life.
    first: Plan,
    /// `None` where there is no other life.
    length: Option<Length>,
}

impl Case {
    /// The run as it ended, and what was wrong.
    fn run(self, prepare: &dyn Fn() -> Run) -> (Run, Outcome<()>) {
        let Self { seed, again, first, length } = self;
        let mut run = prepare_with(seed, again, prepare);
        let lives = if length.is_some() { run.lives } else { 1 };
        for life in 0..lives {
            let plan = if life == 0 { first } else { run.random_plan(length.unwrap_or_default()) };
            if let Err(wrong) = run.live(plan) {
                return (run, Err(format!("seed {seed}, again {again}, {plan:?}, life {life}: {wrong}")));
            }
        }
        (run, Ok(()))
    }
}

/// What was seen, and the first run in which a promise was broken.
struct Seen {
    states: u64,
    broken: Option<(Case, String)>,
}

/// Runs of one seed: with a crash at every change of the first life, and with errors injected into every third call.
/// Stops after `limit` states, or at the first promise that is broken.
fn runs_of(seed: u64, limit: u64, prepare: &dyn Fn() -> Run) -> Seen {
    let whole = Case { seed, again: 0, first: Plan::default(), length: None };
    let (first, outcome) = whole.run(prepare);
    if let Err(wrong) = outcome {
        return Seen { states: first.states, broken: Some((whole, wrong)) };
    }
    let length = Length { changes: first.disk.changes(), calls: first.disk.calls() };
    let crashes = (1..=length.changes).map(|at| Plan { crash_at: Some(at), faults: None });
    let faults = (1..=length.calls).step_by(3).map(|at| {
        let kind = if at % 2 == 0 { ErrorKind::StorageFull } else { ErrorKind::Other };
        Plan { crash_at: None, faults: Some(Faults { from: at, count: 1 + at % 3 * 4, kind }) }
    });
    let mut states = 0;
    for (again, first) in (0..).zip(crashes.chain(faults)) {
        let case = Case { seed, again, first, length: Some(length) };
        let (run, outcome) = case.run(prepare);
        states += run.states;
        if let Err(wrong) = outcome {
            return Seen { states, broken: Some((case, wrong)) };
        }
        if states >= limit {
            break;
        }
    }
    Seen { states, broken: None }
}

/// A run of the same calls in its first life for each `again`, on a disk that loses other things.
fn prepare_with(seed: u64, again: u64, prepare: &dyn Fn() -> Run) -> Run {
    let mut run = prepare();
    run.random = Random::new(seed);
    run.disk.reseed(seed << 20 | again);
    // Segments of a few chunks, or so large that many small ones are merged.
    (run.options.segment_bytes, run.lives) = if seed.is_multiple_of(4) { (1 << 20, 6) } else { (48 << 10, 3) };
    // Every fifth store has less room than its chunks need.
    run.options.max_bytes = if seed % 5 == 2 { 96 << 10 } else { u64::MAX };
    run
}

/// Runs of one seed after the other, until so many states were seen.
fn simulate(limit: u64, prepare: &dyn Fn() -> Run) -> Seen {
    let mut states = 0;
    for seed in 1.. {
        let seen = runs_of(seed, limit - states, prepare);
        states += seen.states;
        if seen.broken.is_some() || states >= limit {
            return Seen { states, ..seen };
        }
    }
    Seen { states, broken: None }
}

#[test]
fn a_store_keeps_its_promises_wherever_it_is_interrupted() {
    let states = std::env::var("AMEM_CRASH_STATES").ok().map_or(20_000, |states| states.parse().unwrap());
    let Seen { states, broken } = simulate(states, &|| Run::new(&[]));
    println!("{states} states");
    if let Some((_, wrong)) = broken {
        panic!("{wrong}");
    }
}

/// What is planted, and whether it is in the store or in what the disk does.
enum Mistake {
    Store(Planted),
    /// In the store, on a disk that gives every segment the same salt.
    StoreWithoutSalts(Planted),
    /// These syncs are not made, in these calls of the store.
    Skipped(Vec<(Act, Call)>),
    /// Every segment has the same salt.
    Saltless,
}

#[test]
fn the_simulation_notices_what_it_is_for() {
    use Mistake::{Saltless, Skipped, Store, StoreWithoutSalts};
    const ALL: [Act; 8] = [Act::Open, Act::Put, Act::Delete, Act::Evict, Act::Purge, Act::Sync, Act::Get, Act::Close];
    let mistakes = [
        ("a payload is not checked", Store(Planted::NoPayloadChecksum)),
        ("a header is not checked", Store(Planted::NoHeaderChecksum)),
        ("a record is believed wherever it stands", Store(Planted::AnyPlace)),
        ("a record is believed in a segment of another generation", StoreWithoutSalts(Planted::AnyGeneration)),
        ("a record is believed elsewhere in its segment", Store(Planted::AnyOffset)),
        ("a segment without a seal is appended to", Store(Planted::TailReused)),
        ("a damaged record hides an older one", Store(Planted::NoOlderRecord)),
        ("a segment without a seal is trusted", Store(Planted::UnsealedTrusted)),
        ("salts are all the same", Saltless),
        ("no file is synced", Skipped(ALL.map(|act| (act, Call::SyncFile)).to_vec())),
        ("no directory is synced", Skipped(ALL.map(|act| (act, Call::SyncDir)).to_vec())),
        ("sync leaves out the file", Skipped(vec![(Act::Sync, Call::SyncFile)])),
        ("sync leaves out the directory", Skipped(vec![(Act::Sync, Call::SyncDir)])),
        (
            "a directory that was made is not synced",
            Skipped(vec![(Act::Open, Call::SyncDir), (Act::Sync, Call::SyncDir)]),
        ),
        ("a segment is sealed and not synced by put", Skipped(vec![(Act::Put, Call::SyncFile)])),
        ("a segment is sealed and not synced when closed", Skipped(vec![(Act::Close, Call::SyncFile)])),
        ("a deletion removes files before their copies are synced", Skipped(vec![(Act::Delete, Call::SyncFile)])),
        ("a deletion does not sync the directory", Skipped(vec![(Act::Delete, Call::SyncDir)])),
        ("a purge does not sync the directory", Skipped(vec![(Act::Purge, Call::SyncDir)])),
        ("a purge leaves what was evicted", Store(Planted::NothingPurged)),
        ("a put goes over the limit", Store(Planted::NoLimit)),
        ("files go before what was in them is written anew", Store(Planted::RemovedFirst)),
        ("an eviction removes files before their copies are synced", Skipped(vec![(Act::Evict, Call::SyncFile)])),
    ];
    let mut unnoticed = Vec::new();
    for (what, mistake) in mistakes {
        let skipped = if let Skipped(skipped) = &mistake { skipped.as_slice() } else { &[] };
        let disk = |saltless: bool, skipped: &[(Act, Call)]| {
            let run = Run::new(skipped);
            if saltless {
                run.disk.take_salts();
            }
            run
        };
        let prepare = || disk(matches!(mistake, Saltless | StoreWithoutSalts(_)), skipped);
        let without = || disk(matches!(mistake, StoreWithoutSalts(_)), &[]);
        planted::plant(if let Store(mistake) | StoreWithoutSalts(mistake) = mistake { Some(mistake) } else { None });
        let Seen { states, broken } = simulate(100_000, &prepare);
        planted::plant(None);
        let Some((case, noticed)) = broken else {
            unnoticed.push(what);
            continue;
        };
        println!("{what}: noticed after {states} states: {noticed}");
        // It was the mistake that was noticed, if all is well without it.
        case.run(&without).1.unwrap();
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:?}");
}
