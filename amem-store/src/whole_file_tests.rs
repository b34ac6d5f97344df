//! Files that are written as a whole, on a disk that fails, whose process is killed and whose power is cut, at every
//! operation: there is the earlier file or the new one, whole, and what was acknowledged stays.

use std::io::ErrorKind;
use std::path::Path;

use crate::data_dir::{check_shared_kv_on, note_shared_kv_on};
use crate::disk::{Disk, make_dirs, read_at_most};
use crate::planted::{self, Planted};
use crate::simulated_disk::{Call, Faults, Random, SimulatedDisk};
use crate::{Error, ResidencyFile, whole_file};

const DIR: &str = "/data/amem";
/// Times that a file is written in each life of a process.
const SAVES: u64 = 4;
/// Processes, one after the other.
const LIVES: u64 = 3;

/// A way to write a file.
struct Kind {
    what: &'static str,
    /// Writes a version. False if it failed.
    save: fn(&SimulatedDisk, u64) -> bool,
    /// The version that is there, or what is wrong.
    load: fn(&SimulatedDisk) -> Result<Option<u64>, String>,
    /// Whether the first version stays.
    once: bool,
}

/// The bytes of a version: from a few to some sectors.
fn bytes(version: u64) -> Vec<u8> {
    let mut random = Random::new(version);
    let len = 8 + random.below(4) * 700;
    let filling = (0..len).map(|_| random.next().to_le_bytes()[0]);
    version.to_le_bytes().into_iter().chain(filling).collect()
}

fn version(found: &[u8]) -> Result<u64, String> {
    let version = found.first_chunk().map(|version| u64::from_le_bytes(*version));
    version.filter(|version| bytes(*version) == found).ok_or_else(|| "what is in the file was never written".into())
}

fn load(disk: &SimulatedDisk, path: &str) -> Result<Option<u64>, String> {
    match read_at_most(disk, Path::new(path), u64::MAX) {
        Ok(found) => version(&found).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// The note of a version, in a name for people.
fn note(version: u64) -> String {
    format!("redis://host-{version}/{}", "x".repeat(version as usize * 700))
}

const KINDS: [Kind; 6] = [
    Kind {
        what: "what policies have learned",
        save: |disk, version| {
            let made = make_dirs(disk, Path::new(DIR));
            let file = ResidencyFile::new(Path::new(DIR).join("residency"));
            made.is_ok() && file.save_on(disk, &[bytes(version), Vec::new()]).is_ok()
        },
        load: |disk| {
            let found = ResidencyFile::new(Path::new(DIR).join("residency")).load_on(disk);
            found.first().map(|found| version(found)).transpose()
        },
        once: false,
    },
    Kind {
        what: "the note of where KV is shared",
        save: |disk, version| note_shared_kv_on(disk, Path::new(DIR), &note(version)).is_ok(),
        load: |disk| match check_shared_kv_on(disk, Path::new(DIR), None) {
            Ok(()) => Ok(None),
            Err(Error::SharedKv { place, .. }) => {
                let version = (1..=VERSIONS).find(|version| note(*version) == place);
                version.map(Some).ok_or_else(|| format!("the note has {} bytes that were never written", place.len()))
            }
            Err(error) => Err(error.to_string()),
        },
        once: true,
    },
    Kind {
        what: "a file that is replaced",
        save: |disk, version| {
            whole_file::replace_alone(disk, &Path::new(DIR).join("keys.json"), &bytes(version)).is_ok()
        },
        load: |disk| load(disk, "/data/amem/keys.json"),
        once: false,
    },
    Kind {
        what: "a file that is replaced, and has the name of a draft",
        save: |disk, version| whole_file::replace_alone(disk, &Path::new(DIR).join("x.new"), &bytes(version)).is_ok(),
        load: |disk| load(disk, "/data/amem/x.new"),
        once: false,
    },
    Kind {
        what: "a file that is made",
        save: |disk, version| whole_file::create_in(disk, &Path::new(DIR).join("secret"), &bytes(version)).is_ok(),
        load: |disk| load(disk, "/data/amem/secret"),
        once: true,
    },
    Kind {
        what: "a ledger's draft",
        save: |disk, version| {
            // SQLite writes it; what it leaves in the system's memory is for this to sync.
            let target = Path::new(DIR).join("ledger.sqlite");
            let draft = whole_file::draft(disk, &target, "draft-");
            let write = || {
                make_dirs(disk, Path::new(DIR))?;
                disk.create(&draft)?.write_all_at(&bytes(version), 0)?;
                whole_file::name(disk, &draft, &target)?;
                disk.sync_dir(Path::new(DIR))
            };
            write().is_ok()
        },
        load: |disk| load(disk, "/data/amem/ledger.sqlite"),
        once: true,
    },
];
/// Versions that there are.
const VERSIONS: u64 = 5;

/// What a file may be.
#[derive(Default)]
struct Promise {
    /// What it was when this was last certain: acknowledged, or found after a power cut.
    certain: Option<u64>,
    /// What was written since, without being acknowledged.
    possible: Vec<u64>,
}

impl Promise {
    fn check(&self, found: Option<u64>) -> Result<(), String> {
        let is_possible = found.is_some_and(|found| self.possible.contains(&found));
        if found == self.certain || is_possible {
            return Ok(());
        }
        Err(format!("found {found:?}, where {:?} was and {:?} may be", self.certain, self.possible))
    }
}

/// When the disk fails.
#[derive(Clone, Copy, Default, Debug)]
struct Plan {
    crash_at: Option<u64>,
    faults: Option<Faults>,
}

/// Some processes that write the file, one after the other, the first of which goes by the plan.
fn run(kind: &Kind, seed: u64, again: u64, first: Plan, pretended: &[Call]) -> (SimulatedDisk, Result<(), String>) {
    let disk = SimulatedDisk::new(seed << 20 | again);
    disk.pretend(pretended);
    let mut random = Random::new(seed);
    let mut promise = Promise::default();
    let mut live = |plan: Plan| {
        plan.crash_at.into_iter().for_each(|at| disk.crash_at(at));
        plan.faults.into_iter().for_each(|faults| disk.inject(faults));
        for _ in 0..SAVES {
            let version = 1 + random.below(VERSIONS);
            let is_there = disk.undisturbed(|| (kind.load)(&disk)).is_ok_and(|found| found.is_some());
            let saved = (kind.save)(&disk, version);
            if !kind.once || !is_there {
                promise.possible.push(version);
            }
            if disk.is_down() {
                break;
            }
            let found = disk.undisturbed(|| (kind.load)(&disk))?;
            promise.check(found)?;
            if saved {
                if !kind.once && found != Some(version) {
                    return Err(format!("{version} was written, and {found:?} is there"));
                }
                promise = Promise { certain: found, possible: Vec::new() };
            }
        }
        let power_cut = !random.one_in(4);
        for _ in 0..2 {
            if power_cut {
                disk.cut_power();
            } else {
                disk.stop();
                disk.end_process();
            }
            let found = (kind.load)(&disk)?;
            promise.check(found)?;
            if power_cut {
                promise = Promise { certain: found, possible: Vec::new() };
            }
        }
        Ok(())
    };
    let mut outcome = live(first);
    for _ in 1..LIVES {
        let mut random = Random::new(seed << 8 | again);
        let crash_at = random.one_in(2).then(|| 1 + random.below(20));
        outcome = outcome.and_then(|()| live(Plan { crash_at, faults: None }));
    }
    (disk, outcome.map_err(|wrong| format!("{}: seed {seed}, again {again}, {first:?}: {wrong}", kind.what)))
}

/// All runs of some seeds: with a crash at every change, and with errors of both kinds at every call.
fn runs(kind: &Kind, pretended: &[Call]) -> Result<u64, String> {
    let mut count = 0;
    for seed in 1..=2 {
        let (whole, outcome) = run(kind, seed, 0, Plan::default(), pretended);
        outcome?;
        let crashes = (1..=whole.changes()).map(|at| Plan { crash_at: Some(at), faults: None });
        let faults = (1..=whole.calls()).flat_map(|from| {
            [(1, ErrorKind::Other), (1, ErrorKind::StorageFull), (40, ErrorKind::Other), (40, ErrorKind::StorageFull)]
                .map(|(count, kind)| Plan { crash_at: None, faults: Some(Faults { from, count, kind }) })
        });
        for plan in crashes.chain(faults) {
            for again in 0..2 {
                run(kind, seed, again, plan, pretended).1?;
                count += 1;
            }
        }
    }
    Ok(count)
}

#[test]
fn after_a_crash_there_is_the_earlier_file_or_the_new_one() {
    for kind in KINDS {
        println!("{}: {} runs", kind.what, runs(&kind, &[]).unwrap());
    }
}

#[test]
fn it_is_noticed_where_a_file_or_its_directory_is_not_synced() {
    for kind in KINDS {
        for skipped in [Call::SyncFile, Call::SyncDir] {
            let noticed = runs(&kind, &[skipped]).expect_err(kind.what);
            println!("{skipped:?} left out: {noticed}");
        }
    }
}

#[test]
fn it_is_noticed_where_a_file_is_written_over() {
    planted::plant(Some(Planted::WrittenOver));
    let noticed = KINDS.iter().filter(|kind| !kind.once).map(|kind| runs(kind, &[]));
    let noticed: Vec<_> = noticed.collect();
    planted::plant(None);
    assert!(noticed.iter().all(Result::is_err), "{noticed:?}");
}

#[test]
fn a_file_that_is_replaced_leaves_those_beside_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let others = ["keys.new", "keys.toml", "keys.toml.new"];
    others.iter().for_each(|name| std::fs::write(dir.path().join(name), name).unwrap());
    whole_file::replace_file(dir.path().join("keys.json"), b"new").unwrap();
    assert_eq!(std::fs::read(dir.path().join("keys.json")).unwrap(), b"new");
    others.iter().for_each(|name| assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), name.as_bytes()));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "nothing else is left behind");
}
