//! Keys on a disk that fails, whose process is killed and whose power is cut, at every operation: a key that was given is
//! given again, until it is destroyed, and then never.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use amem_core::Namespace;

use super::key_dir::{ASIDE, Inner, rewrap};
use super::{Holder, MasterKey};
use crate::disk::{Disk, read_at_most};
use crate::planted::{self, Planted};
use crate::simulated_disk::{Call, Faults, Random, SimulatedDisk};

const DIR: &str = "/data/keys";
/// Less than so many things are done in each life of a process.
const STEPS: u64 = 9;
/// Processes, one after the other.
const LIVES: u64 = 3;
const NAMES: [&str; 3] = ["alice", "bob", "carol"];

type Bytes = [u8; 32];
type Outcome = Result<(), String>;

/// What is promised of a namespace's key.
#[derive(Default)]
struct Promise {
    /// The key, when this was last certain: acknowledged, or found after a power cut.
    certain: Option<Bytes>,
    /// Whether it may have been destroyed since, or another may have been made that nobody was given.
    maybe_destroyed: bool,
    maybe_made: bool,
    /// Those that were destroyed.
    destroyed: Vec<Bytes>,
}

impl Promise {
    fn check(&self, found: Option<Bytes>) -> Outcome {
        match found {
            Some(found) if self.destroyed.contains(&found) => Err("a destroyed key is back".into()),
            found if found == self.certain => Ok(()),
            None if self.maybe_destroyed => Ok(()),
            Some(_) if self.maybe_made => Ok(()),
            None => Err("a key is lost".into()),
            Some(_) => Err("there is another key".into()),
        }
    }

    fn settle(&mut self, found: Option<Bytes>) {
        if let Some(gone) = self.certain.filter(|certain| found != Some(*certain)) {
            self.destroyed.push(gone);
        }
        (self.certain, self.maybe_destroyed, self.maybe_made) = (found, false, false);
    }
}

/// When the disk fails.
#[derive(Clone, Copy, Default, Debug)]
struct Plan {
    crash_at: Option<u64>,
    faults: Option<Faults>,
}

struct Run {
    disk: SimulatedDisk,
    random: Random,
    promises: BTreeMap<&'static str, Promise>,
    id_secret: Option<Bytes>,
    /// The master key, and the one that is to replace it if that was begun.
    master: u8,
    next: Option<u8>,
    /// What files under the master key that is to be replaced held.
    replaced: Vec<Vec<u8>>,
    /// What files of keys held that must be nowhere any more.
    wiped: Vec<Vec<u8>>,
}

fn master(number: u8) -> MasterKey {
    MasterKey::new([number; 32])
}

fn holder(name: &str) -> Holder {
    Holder::Namespace(Namespace::new(name).unwrap())
}

impl Run {
    fn open(&mut self) -> crate::Result<Inner> {
        let opened = Inner::open(Arc::new(self.disk.clone()), Path::new(DIR), &master(self.master))?;
        self.id_secret.get_or_insert(opened.id_secret());
        Ok(opened)
    }

    /// What the file of a key holds.
    fn file(&self, keys: &Inner, name: &str) -> Option<Vec<u8>> {
        let path = Path::new(DIR).join(keys.file_name(&holder(name)));
        self.disk.undisturbed(|| read_at_most(&self.disk, &path, 4096)).ok()
    }

    /// Each key, checked, and that nothing is left of what was to be wiped.
    fn check(&mut self, keys: &Inner, after_power_cut: bool) -> Outcome {
        if self.id_secret != Some(keys.id_secret()) {
            return Err("the secret of chunk ids is another".into());
        }
        for (name, promise) in &mut self.promises {
            let found = self.disk.undisturbed(|| keys.get(&holder(name))).map_err(|error| error.to_string())?;
            let found = found.map(|key| *key.bytes());
            promise.check(found).map_err(|wrong| format!("{name}: {wrong}"))?;
            if after_power_cut {
                promise.settle(found);
            }
        }
        match self.wiped.iter().any(|gone| self.disk.holds_anywhere(gone)) {
            true => Err("what held a key was not wiped".into()),
            false => Ok(()),
        }
    }

    fn step(&mut self, keys: &Inner) -> Outcome {
        let name = NAMES[self.random.below(3) as usize];
        if self.random.one_in(3) {
            let before = self.file(keys, name);
            let destroyed = keys.destroy(&Namespace::new(name).unwrap()).is_ok();
            let promise = self.promises.get_mut(name).unwrap();
            if !destroyed {
                promise.maybe_destroyed = true;
            } else if !self.disk.is_down() {
                // Where it was tried before, the name may have gone without what had it.
                self.wiped.extend(before.filter(|_| !promise.maybe_destroyed && !promise.maybe_made));
                promise.settle(None);
            }
        } else {
            let made = keys.get_or_create(&holder(name));
            let promise = self.promises.get_mut(name).unwrap();
            match made {
                Ok(key) => {
                    // Where there may be none, it is a new one.
                    promise.maybe_made |= promise.certain.is_none() || promise.maybe_destroyed;
                    promise.check(Some(*key.bytes())).map_err(|wrong| format!("{name}: {wrong}"))?;
                    if !self.disk.is_down() {
                        promise.settle(Some(*key.bytes()));
                    }
                }
                Err(_) => promise.maybe_made |= promise.certain.is_none() || promise.maybe_destroyed,
            }
        }
        if self.disk.is_down() { Ok(()) } else { self.check(keys, false) }
    }

    /// Puts another master key in the place of the present one.
    fn rewrap(&mut self) -> Outcome {
        let next = *self.next.get_or_insert(self.master + 1);
        let files = self.disk.undisturbed(|| self.disk.list(Path::new(DIR))).unwrap_or_default();
        let read = |name| self.disk.undisturbed(|| read_at_most(&self.disk, &Path::new(DIR).join(name), 4096));
        let before: Vec<Vec<u8>> = files.into_iter().filter_map(|name| read(name).ok()).collect();
        let old = before.into_iter().filter(|file| file.get(8..24) == Some(&master(self.master).id()[..]));
        self.replaced.extend(old);
        if rewrap(&self.disk, Path::new(DIR), &master(self.master), &master(next)).is_ok() && !self.disk.is_down() {
            self.wiped.append(&mut self.replaced);
            (self.master, self.next) = (next, None);
        }
        Ok(())
    }

    fn live(&mut self, plan: Plan) -> Outcome {
        plan.crash_at.into_iter().for_each(|at| self.disk.crash_at(at));
        plan.faults.into_iter().for_each(|faults| self.disk.inject(faults));
        if self.id_secret.is_some() && self.random.one_in(2) {
            self.rewrap()?;
        }
        if self.next.is_none() && !self.disk.is_down() {
            // With a disk that fails it may not open.
            if let Ok(keys) = self.open() {
                for _ in 0..self.random.below(STEPS) {
                    if !self.disk.is_down() {
                        self.step(&keys)?;
                    }
                }
            }
        }
        let power_cut = !self.random.one_in(4);
        for _ in 0..2 {
            self.end(power_cut);
            // Opening clears up, and may be interrupted too.
            if self.random.one_in(4) {
                self.disk.crash_at(1 + self.random.below(4));
                if self.next.is_some() {
                    self.rewrap()?
                } else {
                    drop(self.open())
                }
                self.end(power_cut);
            }
            while self.next.is_some() {
                self.rewrap()?;
                if self.random.one_in(2) {
                    self.disk.cut_power();
                }
            }
            let keys = self.open().map_err(|error| format!("opening failed: {error}"))?;
            self.check(&keys, power_cut)?;
            let left = self.disk.list(Path::new(DIR)).unwrap();
            if left.iter().any(|name| name.as_encoded_bytes().starts_with(ASIDE.as_bytes())) {
                return Err("something was left over".into());
            }
        }
        self.end(power_cut);
        Ok(())
    }

    fn end(&self, power_cut: bool) {
        if power_cut {
            self.disk.cut_power();
        } else {
            self.disk.stop();
            self.disk.end_process();
        }
    }
}

/// How many changes of its disk, and calls, the process made that the plan is for.
struct Length {
    changes: u64,
    calls: u64,
}

fn run(seed: u64, plan: Plan, pretended: &[Call]) -> Result<Length, String> {
    let disk = SimulatedDisk::new(seed << 20 | plan.crash_at.unwrap_or_default());
    disk.pretend(pretended);
    let mut run = Run {
        disk: disk.clone(),
        random: Random::new(seed),
        promises: NAMES.into_iter().map(|name| (name, Promise::default())).collect(),
        id_secret: None,
        master: 1,
        next: None,
        replaced: Vec::new(),
        wiped: Vec::new(),
    };
    let failed = |wrong: String| format!("seed {seed}, {plan:?}: {wrong}");
    // In every second run there are keys when it begins.
    if seed.is_multiple_of(2) {
        run.live(Plan::default()).map_err(failed)?;
    }
    let before = (disk.changes(), disk.calls());
    run.live(plan).map_err(failed)?;
    let length = Length { changes: disk.changes() - before.0, calls: disk.calls() - before.1 };
    for _ in 1..LIVES {
        let crash_at = run.random.one_in(2).then(|| 1 + run.random.below(30));
        run.live(Plan { crash_at, faults: None }).map_err(failed)?;
    }
    Ok(length)
}

/// All runs of some seeds: with a crash at every change, and with errors of both kinds at every call.
fn runs(seeds: u64, pretended: &[Call]) -> Result<u64, String> {
    let mut count = 0;
    for seed in 1..=seeds {
        let Length { changes, calls } = run(seed, Plan::default(), pretended)?;
        let crashes = (1..=changes).map(|at| Plan { crash_at: Some(at), faults: None });
        let faults = (1..=calls).map(|from| {
            let kind = if from % 2 == 0 { ErrorKind::StorageFull } else { ErrorKind::Other };
            Plan { crash_at: None, faults: Some(Faults { from, count: 1 + from % 3 * 9, kind }) }
        });
        for plan in crashes.chain(faults) {
            run(seed, plan, pretended)?;
            count += 1;
        }
    }
    Ok(count)
}

#[test]
fn a_key_that_was_given_is_given_until_it_is_destroyed_wherever_it_is_interrupted() {
    println!("{} runs", runs(40, &[]).unwrap());
}

#[test]
fn it_is_noticed_where_keys_are_not_synced_or_not_wiped() {
    for skipped in [Call::SyncFile, Call::SyncDir] {
        println!("{skipped:?} left out: {}", runs(8, &[skipped]).expect_err("it is noticed"));
    }
    planted::plant(Some(Planted::KeyNotWiped));
    let noticed = runs(8, &[]);
    planted::plant(None);
    println!("not wiped: {}", noticed.expect_err("it is noticed"));
}
