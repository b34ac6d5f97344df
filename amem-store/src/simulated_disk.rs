//! A disk in memory whose power can be cut.
//!
//! It keeps two images. The live one is what programs see. The durable one is what a power cut is sure to leave; of all
//! that was done since the last sync, a power cut leaves any part, sector by sector and name by name, in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskFile, FileDisk, Part, ReadAt, parent};

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;
/// What a file system gives to a file at once.
const BLOCK: usize = 4096;

/// A pseudorandom sequence (xorshift), the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed ^ 0x5851_f42d_4c95_7f2d).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a directory's entry leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Node {
    Dir,
    /// A file's number.
    File(usize),
}

/// Who holds a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holders {
    One,
    Sharing(usize),
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Len(usize),
}

#[derive(Clone, Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// What was done to the live image since the durable one was the same.
    unsynced: Vec<Change>,
    /// Whether it was given blocks that hold what another file left in them.
    stale: bool,
}

/// Which calls of [`Disk`] an error may be injected into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    /// Only reads.
    Read,
    /// Changes files or directories.
    Change,
    SyncFile,
    SyncDir,
}

/// How a power cut treats what was not synced.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lost,
    Kept,
    /// One in this many sectors and names is lost.
    OneLostIn(u64),
    /// One in this many sectors and names is kept.
    OneKeptIn(u64),
    /// Names and the lengths of files are kept, and one in this many sectors: a file system that writes what it keeps
    /// of files before what is in them.
    Sizes(u64),
}

impl Fate {
    fn keeps_name(self, random: &mut Random) -> bool {
        matches!(self, Fate::Sizes(_)) || self.keeps_sector(random)
    }

    fn keeps_sector(self, random: &mut Random) -> bool {
        match self {
            Fate::Lost => false,
            Fate::Kept => true,
            Fate::OneLostIn(n) => !random.one_in(n),
            Fate::OneKeptIn(n) | Fate::Sizes(n) => random.one_in(n),
        }
    }
}

struct State {
    files: Vec<Contents>,
    live: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    /// Entries that were made or removed since their directory was synced.
    unsynced: Vec<(PathBuf, Option<Node>)>,
    /// By one who is alone, or by how many who share it.
    locked: BTreeMap<PathBuf, Holders>,
    random: Random,
    /// Calls that change something or sync, so far.
    changes: u64,
    /// All calls so far.
    calls: u64,
    crash_at: Option<u64>,
    /// Nothing works any more, until the power is back.
    down: bool,
    faults: Option<Faults>,
    /// Errors injected so far.
    injected: u64,
    /// Those of them that said that the disk is full.
    injected_full: u64,
    /// Those of them that were of reads of a file.
    injected_reads: u64,
    /// Whether directories cannot be listed.
    unlisted: bool,
    /// Bytes of files, by their numbers, that cannot be read.
    spoiled: Vec<(usize, Range<u64>)>,
    /// Files that cannot be opened (those of reads) or removed (those of changes).
    refused: Vec<(PathBuf, Call, rustix::io::Errno)>,
    /// Syncs that failed so far.
    failed_syncs: u64,
    /// Syncs of these kinds do nothing and say that they worked.
    pretended: Vec<Call>,
    /// All salts are the same.
    saltless: bool,
    /// What happens before a change that is so many changes away.
    interruption: Option<(u64, Box<dyn FnOnce() + Send>)>,
    /// What removed and lost files held: what blocks hold that a file was given and nothing was written to.
    stale: Vec<Vec<u8>>,
}

/// Errors to be injected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// The first call that fails.
    pub(crate) from: u64,
    /// How many calls fail, those alone counted that can fail this way.
    pub(crate) count: u64,
    /// [`ErrorKind::StorageFull`] comes from what needs room; anything else comes from every call.
    pub(crate) kind: ErrorKind,
}

/// The disk. Cloning it gives another handle to the same.
#[derive(Clone)]
pub(crate) struct SimulatedDisk(Arc<Mutex<State>>);

impl SimulatedDisk {
    pub(crate) fn new(seed: u64) -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Node::Dir)]);
        Self(Arc::new(Mutex::new(State {
            files: Vec::new(),
            live: root.clone(),
            durable: root,
            unsynced: Vec::new(),
            locked: BTreeMap::new(),
            random: Random::new(seed),
            changes: 0,
            calls: 0,
            crash_at: None,
            down: false,
            faults: None,
            injected: 0,
            injected_full: 0,
            injected_reads: 0,
            unlisted: false,
            spoiled: Vec::new(),
            refused: Vec::new(),
            failed_syncs: 0,
            pretended: Vec::new(),
            saltless: false,
            interruption: None,
            stale: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets everything fail from the `changes`th change or sync on, which is done in part.
    pub(crate) fn crash_at(&self, changes: u64) {
        let mut state = self.state();
        state.crash_at = Some(state.changes + changes);
    }

    /// Lets calls fail, counted from now on.
    pub(crate) fn inject(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = Some(Faults { from: state.calls + faults.from, ..faults });
    }

    /// Has something happen before the `changes`th change from now on: what another process does meanwhile.
    pub(crate) fn interrupt(&self, changes: u64, what: impl FnOnce() + Send + 'static) {
        self.state().interruption = Some((changes, Box::new(what)));
    }

    /// Forgets what was to happen, if it did not.
    pub(crate) fn let_be(&self) {
        self.state().interruption = None;
    }

    /// Called before each change.
    fn interrupted(&self) {
        let due = {
            let mut state = self.state();
            match &mut state.interruption {
                Some((0, _)) => state.interruption.take(),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some((_, what)) = due {
            what();
        }
    }

    /// Bytes of all files in a directory.
    pub(crate) fn bytes_in(&self, dir: &Path) -> u64 {
        let state = self.state();
        let files =
            state.live.iter().filter(|(path, _)| path.parent() == Some(dir)).filter_map(|(_, node)| node.file());
        files.map(|number| state.files[number].live.len() as u64).sum()
    }

    pub(crate) fn pretend(&self, syncs: &[Call]) {
        self.state().pretended = syncs.to_vec();
    }

    pub(crate) fn take_salts(&self) {
        self.state().saltless = true;
    }

    /// Changes and syncs so far.
    pub(crate) fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Errors injected so far.
    pub(crate) fn injected(&self) -> u64 {
        self.state().injected
    }

    /// Those of them that said that the disk is full.
    pub(crate) fn injected_full(&self) -> u64 {
        self.state().injected_full
    }

    /// Those of them that were not of reads of a file.
    pub(crate) fn injected_elsewhere(&self) -> u64 {
        let state = self.state();
        state.injected - state.injected_reads
    }

    /// Lets directories be such as cannot be listed, or can be again.
    pub(crate) fn break_lists(&self, broken: bool) {
        self.state().unlisted = broken;
    }

    /// Lets these bytes of a file be such as cannot be read, or, where there are none, all be read again.
    pub(crate) fn spoil(&self, path: &Path, bytes: Range<u64>) {
        let mut state = self.state();
        let number = state.live[path].file().unwrap();
        state.spoiled.retain(|(spoiled, _)| *spoiled != number);
        state.spoiled.extend(Some((number, bytes)).filter(|(_, bytes)| !bytes.is_empty()));
    }

    /// Lets a file be such as cannot be opened, for [`Call::Read`], or removed, for [`Call::Change`]; or any be again.
    pub(crate) fn refuse(&self, refused: Option<(&Path, Call, rustix::io::Errno)>) {
        self.state().refused = refused.map(|(path, call, error)| (path.to_owned(), call, error)).into_iter().collect();
    }

    /// Syncs that failed so far.
    pub(crate) fn failed_syncs(&self) -> u64 {
        self.state().failed_syncs
    }

    /// Changes what will be lost and kept from now on.
    pub(crate) fn reseed(&self, seed: u64) {
        self.state().random = Random::new(seed);
    }

    /// Does something that only reads, in which no error is injected.
    pub(crate) fn undisturbed<T>(&self, what: impl FnOnce() -> T) -> T {
        let faults = self.state().faults.take();
        let result = what();
        self.state().faults = faults;
        result
    }

    /// Lets everything fail from now on.
    pub(crate) fn stop(&self) {
        self.state().down = true;
    }

    pub(crate) fn is_down(&self) -> bool {
        self.state().down
    }

    /// The end of the process that used the disk: the live image stays as it is, and everything works again.
    pub(crate) fn end_process(&self) {
        let mut state = self.state();
        (state.down, state.crash_at, state.faults) = (false, None, None);
        state.locked.clear();
    }

    /// Cuts the power, and turns it on again.
    pub(crate) fn cut_power(&self) {
        let mut state = self.state();
        let State { files, durable, unsynced, random, stale, .. } = &mut *state;
        let fate = match random.below(8) {
            0 => Fate::Lost,
            1 => Fate::Kept,
            2 => Fate::OneLostIn(8),
            3 => Fate::OneKeptIn(8),
            4 => Fate::Sizes(2),
            5 => Fate::Sizes(32),
            _ => Fate::OneKeptIn(2),
        };
        let mut entries = std::mem::take(durable);
        for (path, node) in unsynced.drain(..) {
            if fate.keeps_name(random) {
                match node {
                    Some(node) => _ = entries.insert(path, node),
                    None => _ = entries.remove(&path),
                }
            }
        }
        // What lies in a directory that was lost is lost with it.
        let is_there = |path: &Path| path.ancestors().skip(1).all(|dir| entries.get(dir) == Some(&Node::Dir));
        let reachable: BTreeMap<_, _> =
            entries.iter().filter(|(path, _)| is_there(path)).map(|(path, node)| (path.clone(), *node)).collect();
        let used: BTreeSet<usize> = reachable.values().filter_map(|node| node.file()).collect();
        for (number, file) in files.iter_mut().enumerate() {
            if used.contains(&number) {
                file.settle(fate, random, stale);
            } else if !file.live.is_empty() {
                stale.push(std::mem::take(&mut file.live));
            }
        }
        (state.live, state.durable) = (reachable.clone(), reachable);
        drop(state);
        self.end_process();
    }

    /// Whether the bytes are anywhere on the disk, in removed files too.
    #[cfg(feature = "encryption")]
    pub(crate) fn holds_anywhere(&self, needle: &[u8]) -> bool {
        let state = self.state();
        let files = state.files.iter().flat_map(|file| [&file.live, &file.durable]).chain(&state.stale);
        files.into_iter().any(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    }

    /// Whether the bytes are in any file that has a name, those left out that hold what another file left in its blocks.
    pub(crate) fn contains(&self, needle: &[u8]) -> bool {
        let state = self.state();
        let files = state.live.values().filter_map(|node| node.file()).map(|number| &state.files[number]);
        let mut files = files.filter(|file| !file.stale);
        files.any(|file| file.live.windows(needle.len()).any(|window| window == needle))
    }
}

impl Node {
    fn file(self) -> Option<usize> {
        match self {
            Node::Dir => None,
            Node::File(number) => Some(number),
        }
    }
}

impl Contents {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.unsynced.push(change);
    }

    /// What was not synced is lost or kept, sector by sector.
    fn settle(&mut self, fate: Fate, random: &mut Random, stale: &[Vec<u8>]) {
        let mut image = std::mem::take(&mut self.durable);
        let written = std::mem::take(&mut self.live);
        let blocks = Blocks { removed: stale, written: &written };
        if matches!(fate, Fate::Sizes(_)) {
            self.stale |= blocks.resize(&mut image, written.len(), random);
        }
        for change in self.unsynced.drain(..) {
            match change {
                Change::Len(len) if fate.keeps_name(random) => self.stale |= blocks.resize(&mut image, len, random),
                Change::Len(_) => {}
                Change::Write { offset, bytes } => {
                    let mut done = 0;
                    while done < bytes.len() {
                        let at = offset + done;
                        let sector = (SECTOR - at % SECTOR).min(bytes.len() - done);
                        if fate.keeps_sector(random) {
                            if image.len() < at + sector {
                                self.stale |= blocks.resize(&mut image, at + sector, random);
                            }
                            image[at..at + sector].copy_from_slice(&bytes[done..done + sector]);
                        }
                        done += sector;
                    }
                }
            }
        }
        self.durable = image.clone();
        self.live = image;
    }
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Change::Len(len) => image.resize(*len, 0),
            Change::Write { offset, bytes } => {
                image.resize(image.len().max(offset + bytes.len()), 0);
                image[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

/// What blocks may hold that a file was given and nothing was written to.
struct Blocks<'a> {
    /// What files held that were removed or lost, the latest last.
    removed: &'a [Vec<u8>],
    /// What was written to this file: file systems move blocks, and leave them as they were where they lay before.
    written: &'a [u8],
}

impl Blocks<'_> {
    /// Sets zeros behind the end, or what such blocks hold: then it is true.
    fn resize(&self, image: &mut Vec<u8>, len: usize, random: &mut Random) -> bool {
        let end = image.len();
        image.resize(len, 0);
        if len <= end || random.one_in(2) {
            return false;
        }
        let (at, left) = if random.one_in(2) {
            // In the same place, which is where a record of it would pass for one of this file, and of a file that went
            // lately, which may have had the same number. Index files, which are many and short, are passed over.
            let behind =
                self.removed.iter().rev().filter_map(|left| left.get(end..)).filter(|left| left.len() > 2 * BLOCK);
            let behind: Vec<&[u8]> = behind.take(2).collect();
            (end, behind.get(random.below(behind.len() as u64) as usize).copied())
        } else {
            let place = BLOCK * random.below((self.written.len() / BLOCK) as u64) as usize;
            (end.next_multiple_of(BLOCK), self.written.get(place..))
        };
        let (Some(left), Some(room)) = (left, image.get_mut(at..)) else { return false };
        let filled = left.len().min(room.len());
        room[..filled].copy_from_slice(&left[..filled]);
        filled > 0
    }
}

fn error(kind: ErrorKind) -> io::Error {
    io::Error::new(kind, "simulated")
}

impl State {
    /// Counts a call, and says whether it fails. At a crash, `true` is for what is still done in part.
    fn call(&mut self, call: Call, needs_room: bool) -> Result<(), Failure> {
        if self.down {
            return Err(Failure::Down);
        }
        self.calls += 1;
        if call != Call::Read {
            self.changes += 1;
            if self.crash_at.is_some_and(|at| self.changes >= at) {
                self.down = true;
                return Err(Failure::Crash);
            }
        }
        match &mut self.faults {
            Some(faults)
                if self.calls >= faults.from
                    && faults.count > 0
                    && (needs_room || faults.kind != ErrorKind::StorageFull) =>
            {
                faults.count -= 1;
                self.injected += 1;
                self.injected_full += u64::from(faults.kind == ErrorKind::StorageFull);
                self.failed_syncs += u64::from(matches!(call, Call::SyncFile | Call::SyncDir));
                Err(Failure::Fault(faults.kind))
            }
            _ => Ok(()),
        }
    }

    /// Counts a read of a file.
    fn read_call(&mut self) -> Result<(), Failure> {
        let called = self.call(Call::Read, false);
        self.injected_reads += u64::from(matches!(called, Err(Failure::Fault(_))));
        called
    }

    fn check_refused(&self, path: &Path, call: Call) -> io::Result<()> {
        let refused = self.refused.iter().find(|(refused, during, _)| (&**refused, *during) == (path, call));
        refused.map_or(Ok(()), |(_, _, error)| Err((*error).into()))
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        self.live.get(path).copied().ok_or_else(|| error(ErrorKind::NotFound))
    }

    /// Both names change at once for programs, and after a power cut each has or has not.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let called = self.call(Call::Change, true);
        // A process that is killed in a call does not learn whether it was done.
        if called.is_ok() || matches!(called, Err(Failure::Crash)) && self.random.one_in(2) {
            let node = self.node(from)?;
            self.node(parent(to))?;
            self.set_entry(to, Some(node));
            self.set_entry(from, None);
        }
        Ok(called?)
    }

    fn set_entry(&mut self, path: &Path, node: Option<Node>) {
        match node {
            Some(node) => _ = self.live.insert(path.to_owned(), node),
            None => _ = self.live.remove(path),
        }
        self.unsynced.push((path.to_owned(), node));
    }
}

/// Why a call fails.
enum Failure {
    /// Right now the machine stops.
    Crash,
    /// It has stopped before.
    Down,
    Fault(ErrorKind),
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Crash | Failure::Down => error(ErrorKind::Other),
            Failure::Fault(kind) => error(kind),
        }
    }
}

struct Lock {
    disk: SimulatedDisk,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        match state.locked.get_mut(&self.path) {
            Some(Holders::Sharing(count)) if *count > 1 => *count -= 1,
            _ => _ = state.locked.remove(&self.path),
        }
    }
}

impl Disk for SimulatedDisk {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.call(Call::Change, true)?;
        if state.live.contains_key(dir) {
            return Err(error(ErrorKind::AlreadyExists));
        }
        state.node(dir.parent().unwrap())?;
        state.set_entry(dir, Some(Node::Dir));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut state = self.state();
        state.call(Call::Read, false)?;
        if state.unlisted {
            return Err(rustix::io::Errno::IO.into());
        }
        state.node(dir)?;
        let inside = state.live.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()).map(OsString::from).collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state();
        state.call(Call::Read, false)?;
        Ok(state.live.contains_key(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.state();
        state.call(Call::Read, false)?;
        if state.locked.contains_key(path) {
            return Err(error(ErrorKind::WouldBlock));
        }
        state.locked.insert(path.to_owned(), Holders::One);
        Ok(Box::new(Lock { disk: self.clone(), path: path.to_owned() }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.interrupted();
        let mut state = self.state();
        state.call(Call::Change, true)?;
        if state.live.contains_key(path) {
            return Err(error(ErrorKind::AlreadyExists));
        }
        state.node(path.parent().unwrap())?;
        state.files.push(Contents::default());
        let number = state.files.len() - 1;
        state.set_entry(path, Some(Node::File(number)));
        Ok(Box::new(SimulatedFile { disk: self.clone(), number }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.read_call()?;
        state.check_refused(path, Call::Read)?;
        let number = state.node(path)?.file().ok_or_else(|| error(ErrorKind::IsADirectory))?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), number }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.interrupted();
        let mut state = self.state();
        state.call(Call::Change, false)?;
        state.check_refused(path, Call::Change)?;
        state.node(path)?;
        state.set_entry(path, None);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.interrupted();
        let mut state = self.state();
        state.call(Call::SyncDir, false)?;
        state.node(dir)?;
        if !state.pretended.contains(&Call::SyncDir) {
            let State { durable, unsynced, .. } = &mut *state;
            for (path, node) in unsynced.extract_if(.., |(path, _)| path.parent() == Some(dir)) {
                match node {
                    Some(node) => _ = durable.insert(path, node),
                    None => _ = durable.remove(&path),
                }
            }
        }
        Ok(())
    }

    fn random(&self) -> u64 {
        let mut state = self.state();
        let number = state.random.next();
        if state.saltless { 0 } else { number }
    }

    /// At once, so that a seed says all that happens.
    fn in_background(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }

    fn read_ahead(&self, _: Vec<Part>) {}
}

impl FileDisk for SimulatedDisk {
    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.state();
        state.call(Call::Read, false)?;
        match state.locked.entry(path.to_owned()).or_insert(Holders::Sharing(0)) {
            Holders::One => return Err(error(ErrorKind::WouldBlock)),
            Holders::Sharing(count) => *count += 1,
        }
        Ok(Box::new(Lock { disk: self.clone(), path: path.to_owned() }))
    }

    fn open_to_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path)
    }

    fn names(&self, path: &Path) -> io::Result<Option<u64>> {
        let mut state = self.state();
        state.call(Call::Read, false)?;
        let node = state.node(path)?;
        Ok(node.file().map(|_| state.live.values().filter(|other| **other == node).count() as u64))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.interrupted();
        let mut state = self.state();
        state.rename(from, to)
    }

    fn link(&self, path: &Path, name: &Path) -> io::Result<()> {
        self.interrupted();
        let mut state = self.state();
        state.call(Call::Change, true)?;
        if state.live.contains_key(name) {
            return Err(error(ErrorKind::AlreadyExists));
        }
        let node = state.node(path)?;
        state.set_entry(name, Some(node));
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.interrupted();
        let mut state = self.state();
        if state.live.contains_key(to) {
            state.call(Call::Change, true)?;
            return Err(error(ErrorKind::AlreadyExists));
        }
        state.rename(from, to)
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    number: usize,
}

impl ReadAt for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.read_call()?;
        Ok(state.files[self.number].live.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.read_call()?;
        let end = offset + buffer.len() as u64;
        if state.spoiled.iter().any(|(file, bytes)| *file == self.number && bytes.start < end && offset < bytes.end) {
            return Err(rustix::io::Errno::IO.into());
        }
        state.files[self.number].live[..].read_at(buffer, offset)
    }
}

impl DiskFile for SimulatedFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.interrupted();
        let mut state = self.disk.state();
        let called = state.call(Call::Change, true);
        let written = match called {
            Ok(()) => bytes.len(),
            Err(Failure::Down) => 0,
            // As much as there was room for, or time.
            Err(_) => state.random.below(bytes.len() as u64 + 1) as usize,
        };
        if written > 0 {
            let change = Change::Write { offset: offset as usize, bytes: bytes[..written].to_vec() };
            state.files[self.number].change(change);
        }
        Ok(called?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.interrupted();
        let mut state = self.disk.state();
        // Files are sparse: a longer one needs no room yet.
        state.call(Call::Change, false)?;
        state.files[self.number].change(Change::Len(len as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.interrupted();
        let mut state = self.disk.state();
        let called = state.call(Call::SyncFile, true);
        let pretended = state.pretended.contains(&Call::SyncFile);
        let State { files, random, .. } = &mut *state;
        let file = &mut files[self.number];
        match called {
            Ok(()) if pretended => {}
            Ok(()) => {
                let Contents { durable, unsynced, .. } = file;
                unsynced.drain(..).for_each(|change| change.apply(durable));
            }
            // What could not be written is not tried again, and the next sync reports nothing. Programs see it until the
            // system needs the memory, and what is on the disk from then on.
            Err(Failure::Fault(_)) => {
                let live = file.live.clone();
                file.settle(Fate::OneKeptIn(2), random, &[]);
                if random.one_in(2) {
                    file.live = live;
                } else {
                    file.live.resize(live.len(), 0);
                }
            }
            Err(_) => {}
        }
        Ok(called?)
    }

    fn read_ahead(&self, _: u64, _: u64, _: &dyn Fn() -> bool, _: &mut Vec<u8>) {}
}
