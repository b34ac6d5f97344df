//! Any store against a map, whatever is done to it and whatever fails.

use std::collections::BTreeMap;

use amem_core::{Error, HostKv, KvChunk, KvStore};
use futures_lite::future::block_on;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::common::{chunk, measured};

type Outcome = Result<(), TestCaseError>;

/// Chunks that there are.
const CHUNKS: u32 = 12;

/// A chunk, by its seed, in one of its versions: of the same tokens, and other KV.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    seed: u32,
    version: u8,
    measured: bool,
}

impl Version {
    fn chunk(self) -> KvChunk {
        let bare = of(self.seed);
        let bytes = bare.to_bytes().unwrap().into_iter().map(|byte| byte ^ self.version).collect();
        let data = HostKv::new(bare.encoding(), bare.shape().layers, bytes);
        let bare = bare.with_data(std::sync::Arc::new(data)).unwrap();
        if self.measured { measured(&bare) } else { bare }
    }
}

fn of(seed: u32) -> KvChunk {
    chunk(seed, 1 + seed as usize * 40)
}

/// What is done.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Put(Vec<Version>),
    Get(Vec<u32>),
    /// By another process.
    Look(Vec<u32>),
    Delete(Vec<u32>),
    Evict(Vec<u32>),
    Purge,
    Sync,
    List,
    Reopen,
    Disturb(u32),
    Calm,
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let seeds = || prop::collection::vec(0..CHUNKS, 1..4);
    let version = (0..CHUNKS, 0..3_u8, any::<bool>());
    let version = version.prop_map(|(seed, version, measured)| Version { seed, version, measured });
    let step = prop_oneof![
        6 => prop::collection::vec(version, 1..3).prop_map(Step::Put),
        4 => seeds().prop_map(Step::Get),
        2 => seeds().prop_map(Step::Look),
        2 => seeds().prop_map(Step::Delete),
        1 => seeds().prop_map(Step::Evict),
        1 => Just(Step::Purge),
        1 => Just(Step::Sync),
        1 => Just(Step::List),
        2 => Just(Step::Reopen),
        3 => any::<u32>().prop_map(Step::Disturb),
        2 => Just(Step::Calm),
    ];
    prop::collection::vec(step, 1..60)
}

/// What a disturbance does.
#[allow(dead_code, reason = "not every store can be disturbed in all ways")]
pub(crate) enum Disturbed {
    Nothing,
    /// Calls may fail until it is calm again.
    Calls,
    /// What is held may be lost, and what was put before may stand in for it.
    Held,
    /// Nothing that is held can be read any more.
    All,
}

/// A store, and what can happen to it.
pub(crate) trait Subject {
    type Store: KvStore;

    /// Whether what was evicted may be found again until it is purged.
    const EVICTED_COMES_BACK: bool;

    /// Whether damage may cost a chunk later than it is done, when the store is opened anew.
    const DAMAGE_LINGERS: bool;

    fn store(&self) -> &Self::Store;

    /// The same store in another process, which only reads.
    fn other(&self) -> &Self::Store;

    /// Opens the store anew.
    fn reopen(&mut self);

    fn disturb(&mut self, at: u32) -> Disturbed;

    /// Has calls work again.
    fn calm(&mut self) {}

    /// Whether the KV of a chunk that was deleted can still be found in some place.
    fn is_left(&self, gone: &KvChunk) -> bool;
}

/// What may and what must be found of a chunk.
#[derive(Default)]
struct Known {
    must: Option<KvChunk>,
    may: Vec<KvChunk>,
    /// Whether it may be listed, though nobody may be able to read it.
    may_be_listed: bool,
}

/// The chunk with its KV in memory. What is damaged when it is read is as good as a miss, and asked for again: an older
/// record may be whole.
fn owned(store: &impl KvStore, seed: u32) -> Result<Option<KvChunk>, Error> {
    for _ in 0..1000 {
        let Some(found) = block_on(store.get(&of(seed).id()))? else { return Ok(None) };
        match found.encoded_as(found.encoding()) {
            Err(Error::DamagedKv { .. }) => {}
            read => return read.map(Some),
        }
    }
    panic!("a chunk that is damaged is handed out again and again");
}

fn same(a: &KvChunk, b: &KvChunk) -> bool {
    (a.id(), a.tokens(), a.sensitivity(), a.model(), a.prefix())
        == (b.id(), b.tokens(), b.sensitivity(), b.model(), b.prefix())
        && a.to_bytes().unwrap() == b.to_bytes().unwrap()
}

impl Known {
    fn check(&self, seed: u32, found: Option<&KvChunk>, misses: bool) -> Outcome {
        match (found, &self.must) {
            (None, must) => prop_assert!(must.is_none() || misses, "chunk {seed} is lost"),
            (Some(found), Some(must)) => prop_assert!(same(found, must), "chunk {seed} is not the one that is held"),
            (Some(_), None) if self.may.is_empty() => prop_assert!(false, "chunk {seed} was deleted and is found"),
            (Some(found), None) => {
                prop_assert!(self.may.iter().any(|put| same(found, put)), "chunk {seed} was never put like this");
            }
        }
        Ok(())
    }

    /// What another process finds: it may not know yet that it was replaced.
    fn check_other(&self, seed: u32, found: Option<&KvChunk>, misses: bool) -> Outcome {
        let found_or_may_miss = found.is_some() || self.must.is_none() || misses;
        prop_assert!(found_or_may_miss, "chunk {seed} is lost for another process");
        let is_known = found.is_none_or(|found| self.may.iter().any(|put| same(found, put)));
        prop_assert!(is_known, "chunk {seed} was deleted or never put like this, and another process finds it");
        Ok(())
    }

    fn put(&mut self, new: &KvChunk) {
        self.may_be_listed = true;
        // The sensitivity may be taken in by one that is held.
        let taken_in = |held: &KvChunk| held.clone().with_sensitivity(new.sensitivity()?.clone()).ok();
        let taken_in: Vec<_> =
            self.may.iter().filter(|held| held.sensitivity().is_none()).filter_map(taken_in).collect();
        self.may.extend(taken_in);
        self.may.push(new.clone());
    }
}

/// A store against a map.
pub(crate) struct Machine<S> {
    subject: S,
    known: BTreeMap<u32, Known>,
    /// Whether calls may fail.
    failing: bool,
    /// Whether anything was ever disturbed: then a put may believe in something that turns out damaged when it is read.
    disturbed: bool,
    /// Whether what is held now may be lost later.
    lingers: bool,
}

impl<S: Subject> Machine<S> {
    pub(crate) fn new(subject: S) -> Self {
        let known = (0..CHUNKS).map(|seed| (seed, Known::default())).collect();
        Self { subject, known, failing: false, disturbed: false, lingers: false }
    }

    pub(crate) fn run(mut self, steps: Vec<Step>) -> Outcome {
        for step in steps {
            self.step(&step).map_err(|error| TestCaseError::fail(format!("{step:?}: {error}")))?;
        }
        self.subject.calm();
        self.failing = false;
        self.step(&Step::Get((0..CHUNKS).collect()))
    }

    fn known(&mut self, seed: u32) -> &mut Known {
        self.known.get_mut(&seed).unwrap()
    }

    /// Whether a call worked. It may have failed only where calls fail.
    fn worked<T>(&self, result: Result<T, Error>) -> Result<Option<T>, TestCaseError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                prop_assert!(self.failing, "{error}");
                Ok(None)
            }
        }
    }

    fn step(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Put(versions) => {
                let chunks: Vec<KvChunk> = versions.iter().map(|version| version.chunk()).collect();
                let put = self.worked(block_on(self.subject.store().put(&chunks)))?;
                for (version, new) in versions.iter().zip(&chunks) {
                    self.known(version.seed).put(new);
                    if put.is_none() || self.failing {
                        // Nobody knows which of them is there.
                        self.known(version.seed).must = None;
                    }
                }
                if put.is_some() && !self.failing {
                    let mut put: BTreeMap<u32, &KvChunk> = BTreeMap::new();
                    for (version, new) in versions.iter().zip(&chunks) {
                        // One that has a sensitivity, if there is one.
                        let kept = put.entry(version.seed).or_insert(new);
                        if version.measured {
                            *kept = new;
                        }
                    }
                    put.into_iter().try_for_each(|(seed, new)| self.look_after_put(seed, new))?;
                }
            }
            Step::Get(seeds) => {
                for seed in seeds {
                    if let Some(found) = self.worked(owned(self.subject.store(), *seed))? {
                        self.known[seed].check(*seed, found.as_ref(), self.failing)?;
                    }
                }
                // All at once, too: what a chunk's KV is was just seen.
                let ids: Vec<_> = seeds.iter().map(|seed| of(*seed).id()).collect();
                if let Some(found) = self.worked(block_on(self.subject.store().get_many(&ids)))? {
                    for ((seed, id), found) in seeds.iter().zip(&ids).zip(found) {
                        prop_assert!(found.as_ref().is_none_or(|found| found.id() == *id));
                        let lost = found.is_none() && self.known[seed].must.is_some();
                        prop_assert!(!lost || self.failing, "chunk {seed} is lost among many");
                    }
                }
            }
            Step::Look(seeds) => {
                for seed in seeds {
                    if let Some(found) = self.worked(owned(self.subject.other(), *seed))? {
                        self.known[seed].check_other(*seed, found.as_ref(), self.failing || self.disturbed)?;
                    }
                }
            }
            Step::Delete(seeds) => {
                let ids: Vec<_> = seeds.iter().map(|seed| of(*seed).id()).collect();
                let deleted = self.worked(block_on(self.subject.store().delete(&ids)))?;
                for seed in seeds {
                    let known = self.known(*seed);
                    known.must = None;
                    if deleted.is_some() {
                        known.may_be_listed = false;
                        let gone = std::mem::take(&mut known.may);
                        let left = gone.iter().any(|gone| self.subject.is_left(gone));
                        prop_assert!(!left, "the KV of chunk {seed}, which was deleted, is left");
                    }
                }
            }
            Step::Evict(seeds) => {
                let ids: Vec<_> = seeds.iter().map(|seed| of(*seed).id()).collect();
                let evicted = self.worked(block_on(self.subject.store().evict(&ids)))?;
                for seed in seeds {
                    self.known(*seed).must = None;
                    if evicted.is_some() {
                        let found = self.worked(owned(self.subject.store(), *seed))?.flatten();
                        prop_assert!(found.is_none(), "chunk {seed}, which was evicted, is found");
                        if !S::EVICTED_COMES_BACK {
                            *self.known(*seed) = Known::default();
                        }
                    }
                }
            }
            Step::Purge => {
                // What is damaged is known to be, and so does not count any more, once it was read.
                for seed in 0..CHUNKS {
                    self.worked(owned(self.subject.store(), seed))?;
                }
                if self.worked(block_on(self.subject.store().purge()))?.is_some() && S::EVICTED_COMES_BACK {
                    for seed in 0..CHUNKS {
                        let found = self.worked(owned(self.subject.store(), seed))?.flatten();
                        self.known[&seed].check(seed, found.as_ref(), false)?;
                        if found.is_none() {
                            let gone = std::mem::take(&mut self.known(seed).may);
                            let left = gone.iter().any(|gone| self.subject.is_left(gone));
                            prop_assert!(!left, "the KV of chunk {seed}, which is not held, is left by a purge");
                        }
                    }
                }
            }
            Step::Sync => _ = self.worked(block_on(self.subject.store().sync()))?,
            Step::List => {
                let ids: Vec<_> = self.known.keys().map(|seed| of(*seed).id()).collect();
                let listed = self.worked(block_on(self.subject.store().list()))?;
                let contained = block_on(self.subject.store().contains_many(&ids));
                for (((seed, known), id), contained) in self.known.iter().zip(&ids).zip(contained) {
                    let is_listed = listed.as_ref().map(|listed| listed.iter().any(|held| held.id == *id));
                    let must = known.must.is_some() && !self.failing;
                    prop_assert!(!must || contained && is_listed == Some(true), "chunk {seed} is held and not listed");
                    let may = known.may_be_listed;
                    prop_assert!(may || !contained && is_listed != Some(true), "chunk {seed} is not held and listed");
                }
            }
            Step::Reopen => self.subject.reopen(),
            Step::Disturb(at) => {
                let disturbed = self.subject.disturb(*at);
                self.disturbed |= !matches!(disturbed, Disturbed::Nothing);
                match disturbed {
                    Disturbed::Nothing => {}
                    Disturbed::Calls => self.failing = true,
                    Disturbed::Held => {
                        self.lingers = S::DAMAGE_LINGERS;
                        self.known.values_mut().for_each(|known| known.must = None);
                    }
                    Disturbed::All => self.known.values_mut().for_each(|known| {
                        (known.must, known.may) = (None, Vec::new());
                    }),
                }
            }
            Step::Calm => {
                self.subject.calm();
                self.failing = false;
            }
        }
        Ok(())
    }

    /// What was put is held, or what was held before.
    fn look_after_put(&mut self, seed: u32, new: &KvChunk) -> Outcome {
        let mut found = self.worked(owned(self.subject.store(), seed))?.flatten();
        if found.is_none() && self.disturbed {
            // What the store took for it turned out damaged, and it knows that now.
            self.worked(block_on(self.subject.store().put(std::slice::from_ref(new))))?;
            found = self.worked(owned(self.subject.store(), seed))?.flatten();
        }
        let Some(found) = found else {
            return Err(TestCaseError::fail(format!("chunk {seed} was put and is not held")));
        };
        let (disturbed, lingers) = (self.disturbed, self.lingers);
        let known = self.known(seed);
        let replaces = |held: &KvChunk| held.sensitivity().is_none() && new.sensitivity().is_some();
        if let Some(held) = known.must.take().filter(|held| !replaces(held)) {
            prop_assert!(same(&held, &found), "chunk {seed} was held and is another now");
        }
        prop_assert!(known.may.iter().any(|put| same(put, &found)), "chunk {seed} was never put like this");
        prop_assert!(disturbed || !replaces(&found), "the sensitivity of chunk {seed} was put and is not held");
        known.must = Some(found).filter(|_| !lingers);
        Ok(())
    }
}
