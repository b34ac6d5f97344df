//! What several processes, a killed one, and one without room or rights do to a data directory.
//!
//! The other processes are this test's own binary, started again with the name of one of the ignored tests below.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "common/small_disk.rs"]
mod small_disk;

use std::fs::{self, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use amem_core::residency::{Room, Value};
use amem_core::{
    Amounts, Error, EventId, KvChunk, KvStore, Ledger, Namespace, NewRecord, Query, ResidencyPolicy, Tier, Tiered,
    Timestamp, UsageEvent, UsageQuery,
};
use amem_store::{DataDir, ResidencyFile, ResidencySaver, SaveTimes, SegmentOptions, SegmentStore, SqliteLedger};
use common::{assert_same, chunk, files_contain};
use futures_lite::future::block_on;
use small_disk::SmallDisk;

const DIR: &str = "AMEM_TEST_DIR";
const FIRST: &str = "AMEM_TEST_FIRST";

fn start(test: &str, dir: &Path, first: u32) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(DIR, dir).env(FIRST, first.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn given() -> (PathBuf, u32) {
    let of = |name| std::env::var(name).expect("started by another test");
    (of(DIR).into(), of(FIRST).parse().unwrap())
}

/// The numbers that a child says it is done with.
fn done(child: &mut Child) -> impl Iterator<Item = u32> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("done ").and_then(|n| n.parse().ok()))
}

fn say_done(n: u32) {
    println!("done {n}");
}

fn ours() -> Namespace {
    Namespace::new("ours").unwrap()
}

#[test]
#[ignore = "a child of other tests"]
fn child_remembers_until_killed() {
    let (dir, first) = given();
    let DataDir { kv, ledger } = amem_store::open(dir).unwrap();
    for n in first.. {
        block_on(ledger.add(&ours(), &[NewRecord::from(n.to_string())], Timestamp::now())).unwrap();
        block_on(kv.put(&[chunk(n, 1 + n as usize % 300)])).unwrap();
        say_done(n);
    }
}

#[test]
fn what_was_remembered_before_a_kill_is_there_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 1..=6 {
        let mut child = start("child_remembers_until_killed", dir.path(), last + 1).spawn().unwrap();
        let mut numbers = done(&mut child);
        let stop = last + 5 * round;
        assert!(numbers.by_ref().any(|n| n >= stop), "the child writes until it is killed");
        child.kill().unwrap();
        child.wait().unwrap();
        last = numbers.last().unwrap_or(stop);

        let DataDir { kv, ledger } = amem_store::open(dir.path()).unwrap();
        for n in 1..=last {
            let put = chunk(n, 1 + n as usize % 300);
            assert_same(&block_on(kv.get(&put.id())).unwrap().expect("its put had returned"), &put);
        }
        let texts = block_on(ledger.list(&ours(), Query::All)).unwrap();
        assert!(texts.len() >= last as usize, "{} texts after {last}", texts.len());
        assert_eq!(block_on(kv.stats()).damaged, 0);
        // The next child may begin where this one was interrupted.
        last = last.max(texts.len() as u32);
        block_on(kv.put(&(1..=last).map(|n| chunk(n, 1 + n as usize % 300)).collect::<Vec<_>>())).unwrap();
    }
}

/// What the child of the next test works on: a data directory, and a store that has not enough room for all of it.
fn data_and_capped(dir: &Path) -> (DataDir, SegmentStore) {
    let options = SegmentOptions::default().segment_bytes(CAP / 8).max_bytes(CAP);
    (amem_store::open(dir).unwrap(), SegmentStore::open_with(dir.join("capped"), options).unwrap())
}

const CAP: u64 = 1 << 20;

fn numbered(n: u32) -> KvChunk {
    chunk(n, 20 + n as usize % 300)
}

fn text(n: u32) -> String {
    format!("text-{n:06}-")
}

/// Of each five steps three put and remember, the fourth deletes and forgets what the third put, and the fifth evicts what
/// the second put.
#[test]
#[ignore = "a child of other tests"]
fn child_deletes_and_forgets_until_killed() {
    let (dir, first) = given();
    let (DataDir { kv, ledger }, capped) = data_and_capped(&dir);
    for n in first.. {
        match n % 5 {
            3 => {
                let ids = [numbered(n - 1).id()];
                block_on(kv.delete(&ids)).unwrap();
                block_on(capped.delete(&ids)).unwrap();
                for record in block_on(ledger.list(&ours(), Query::All)).unwrap() {
                    if record.text == text(n - 1) {
                        block_on(ledger.forget(&ours(), record.id, Timestamp::now())).unwrap();
                    }
                }
            }
            4 => {
                let ids = [numbered(n - 3).id()];
                block_on(kv.evict(&ids)).unwrap();
                block_on(capped.evict(&ids)).unwrap();
                assert!(block_on(ledger.wipe()).unwrap());
            }
            _ => {
                block_on(ledger.add(&ours(), &[NewRecord::from(text(n))], Timestamp::now())).unwrap();
                block_on(kv.put(&[numbered(n)])).unwrap();
                block_on(capped.put(&[numbered(n)])).unwrap();
            }
        }
        say_done(n);
    }
}

#[test]
fn a_kill_brings_back_nothing_that_was_deleted_or_forgotten_and_loses_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 1..=5 {
        let mut child = start("child_deletes_and_forgets_until_killed", dir.path(), last + 1).spawn().unwrap();
        let mut numbers = done(&mut child);
        let stop = last + 9 * round;
        assert!(numbers.by_ref().any(|n| n >= stop), "the child goes on until it is killed");
        // At any moment of what it does next.
        std::thread::sleep(Duration::from_micros(RandomState::new().hash_one(round) % 8000));
        child.kill().unwrap();
        child.wait().unwrap();
        last = numbers.last().unwrap_or(stop);

        let (DataDir { kv, ledger }, capped) = data_and_capped(dir.path());
        let sizes =
            fs::read_dir(dir.path().join("capped")).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
        assert!(sizes.sum::<u64>() <= CAP);
        let texts: Vec<String> =
            block_on(ledger.list(&ours(), Query::All)).unwrap().into_iter().map(|record| record.text).collect();
        for n in (1..=last).filter(|n| n % 5 < 3) {
            let put = numbered(n);
            let [held, limited] = [block_on(kv.get(&put.id())).unwrap(), block_on(capped.get(&put.id())).unwrap()];
            held.iter().chain(&limited).for_each(|found| assert_same(found, &put));
            // The step behind the last that was done may be done, in part, or not at all.
            let (deleted, deleting) = (n % 5 == 2 && n < last, n % 5 == 2 && n == last);
            let evicted = n % 5 == 1 && n + 3 <= last + 1;
            if deleted {
                assert!(held.is_none() && limited.is_none(), "chunk {n} of {last} was deleted");
                assert!(!texts.contains(&text(n)), "text {n} of {last} was forgotten");
                assert!(!files_contain(dir.path(), text(n).as_bytes()), "text {n} of {last} is in a file");
            } else if !deleting {
                assert!(held.is_some() || evicted, "chunk {n} of {last} was put");
                assert!(texts.contains(&text(n)), "text {n} of {last} was remembered");
            }
        }
        assert_eq!(block_on(kv.stats()).damaged, 0);
    }
}

/// A tier on disk with room for three chunks of 3,000 tokens, and not for four.
fn tiers(dir: &Path) -> (Arc<Tiered>, ResidencyFile) {
    let (store, file) = (SegmentStore::open(dir.join("kv")).unwrap(), ResidencyFile::new(dir.join("residency")));
    let saved = file.load().into_iter().next().unwrap_or_default();
    let budget = 3 * chunk(0, 3000).size() as u64 + chunk(0, 3000).size() as u64 / 2;
    let tier = Tier::new(Arc::new(store), budget).residency(saved);
    (Arc::new(block_on(Tiered::open(vec![tier])).unwrap()), file)
}

#[test]
#[ignore = "a child of other tests"]
fn child_learns_what_is_used() {
    let (dir, _) = given();
    let (tiers, file) = tiers(&dir);
    let mut times = SaveTimes::default();
    (times.changes, times.pause) = (1, Duration::ZERO);
    let _saver = ResidencySaver::start(file.clone(), tiers.clone(), times).unwrap();
    block_on(tiers.put(&[1, 2, 3].map(|n| chunk(n, 3000)))).unwrap();
    for n in 1.. {
        block_on(tiers.get_many(&[chunk(1, 3000).id(), chunk(3, 3000).id()])).unwrap();
        // Whoever hears of it knows that a save has begun after these uses, and is done.
        let learned = tiers.save_residency();
        while n == 5 && file.load() != learned {
            std::thread::yield_now();
        }
        if n >= 5 {
            say_done(n);
        }
    }
}

#[test]
fn what_policies_have_learned_outlives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=4 {
        let mut child = start("child_learns_what_is_used", dir.path(), 0).spawn().unwrap();
        let mut numbers = done(&mut child);
        assert!(numbers.by_ref().any(|n| n >= 5 * round), "the child goes on until it is killed");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!ResidencyFile::new(dir.path().join("residency")).load().is_empty(), "no kill tears the file");
    }
    let saved = ResidencyFile::new(dir.path().join("residency")).load();
    let (mut learned, mut ids) = (Value::default(), [1, 2, 3].map(|n| chunk(n, 3000).id()));
    let mut held = learned.restore(&saved[0]);
    held.sort_unstable();
    ids.sort_unstable();
    assert_eq!(held, ids);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let victim = learned.victim(&Room::new(1, now));
    assert_eq!(victim, Some(chunk(2, 3000).id()), "what was not used makes room");
}

#[test]
#[ignore = "a child of other tests"]
fn child_adds_texts() {
    let (dir, first) = given();
    let DataDir { ledger, .. } = amem_store::open(dir).unwrap();
    for n in first..first + 25 {
        let texts = [NewRecord::from(n.to_string()), NewRecord::from("everybody's")];
        block_on(ledger.add(&ours(), &texts, Timestamp::now())).unwrap();
    }
}

#[test]
#[ignore = "a child of other tests"]
fn child_uses_until_killed() {
    let (dir, first) = given();
    let ledger = SqliteLedger::open(dir.join("ledger.sqlite")).unwrap();
    for n in first.. {
        // The one before again, as by somebody who does not know whether it was recorded.
        block_on(ledger.record_usage(&[used(n.saturating_sub(1)), used(n)])).unwrap();
        say_done(n);
    }
}

fn used(n: u32) -> UsageEvent {
    let amounts = Amounts::from_array([0, 0, 0, 0, 0, u64::from(n), 0, 0]);
    let mut used = UsageEvent::new(ours(), Timestamp(1_000_000_000_000 + i64::from(n)), amounts);
    used.id = EventId::from_bytes(u128::from(n).to_be_bytes());
    used
}

#[test]
fn usage_that_was_recorded_before_a_kill_is_counted_once_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut next = 0;
    for round in 1..=6 {
        let mut child = start("child_uses_until_killed", dir.path(), next).spawn().unwrap();
        let mut numbers = done(&mut child);
        let stop = next + 5 * round;
        assert!(numbers.by_ref().any(|n| n >= stop), "the child goes on until it is killed");
        child.kill().unwrap();
        child.wait().unwrap();
        let last = numbers.last().unwrap_or(stop);

        let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
        let total = block_on(ledger.usage(&UsageQuery::all())).unwrap().remove(0);
        // All from 0 on, each once: those that the child was done with, and perhaps the one at which it was killed.
        assert!([last + 1, last + 2].map(u64::from).contains(&total.events), "{} after {last}", total.events);
        assert_eq!(total.amounts.generated_tokens, total.events * (total.events - 1) / 2);
        // The next child may begin where this one was interrupted.
        next = last + 1;
    }
}

#[test]
#[ignore = "a child of other tests"]
fn child_backs_up_until_killed() {
    let (dir, first) = given();
    let ledger = SqliteLedger::open(dir.join("ledger.sqlite")).unwrap();
    for n in first.. {
        block_on(ledger.backup(dir.join(format!("backup-{n}")))).unwrap();
    }
}

#[test]
fn a_killed_backup_leaves_no_copy_behind_the_next_open_or_backup() {
    let drafts = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().unwrap().as_encoded_bytes().starts_with(b".amem-")).collect::<Vec<_>>()
    };
    for is_opened in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
        let texts: Vec<NewRecord> = (0..500).map(|n| NewRecord::new(format!("a secret text {n}"))).collect();
        block_on(ledger.add(&ours(), &texts, Timestamp::now())).unwrap();
        // It may be killed between two backups: then another one is.
        let left = (0..1000).find_map(|round| {
            let mut child = start("child_backs_up_until_killed", dir.path(), 1_000_000 * round).spawn().unwrap();
            while drafts(dir.path()).is_empty() && child.try_wait().unwrap().is_none() {}
            child.kill().unwrap();
            child.wait().unwrap();
            drafts(dir.path()).pop()
        });
        let left = left.expect("a backup was killed");
        assert_eq!(fs::metadata(&left).unwrap().mode() & 0o777, 0o700, "nobody else can read what it leaves");
        if is_opened {
            SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
        } else {
            block_on(ledger.backup(dir.path().join("whole"))).unwrap();
        }
        assert!(drafts(dir.path()).is_empty());
    }
}

#[test]
fn processes_that_add_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let children = [0, 100, 200].map(|first| start("child_adds_texts", dir.path(), first).spawn().unwrap());
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let DataDir { ledger, .. } = amem_store::open(dir.path()).unwrap();
    assert_eq!(block_on(ledger.list(&ours(), Query::All)).unwrap().len(), 76);
}

#[test]
fn a_reader_sees_what_another_process_puts_and_takes_over_after_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start("child_remembers_until_killed", dir.path(), 1).spawn().unwrap();
    let mut numbers = done(&mut child);
    assert_eq!(numbers.next(), Some(1));
    let store = SegmentStore::open(dir.path().join("kv")).unwrap();
    assert!(!store.is_writer());
    for n in numbers.take(20) {
        let put = chunk(n, 1 + n as usize % 300);
        assert_same(&block_on(store.get(&put.id())).unwrap().expect("it was put"), &put);
    }
    let mine = chunk(1_000_000, 10);
    assert!(matches!(block_on(store.put(std::slice::from_ref(&mine))), Err(Error::ReadOnly { .. })));
    child.kill().unwrap();
    child.wait().unwrap();
    block_on(store.put(std::slice::from_ref(&mine))).expect("the lock went with its process");
    assert_same(&block_on(store.get(&mine.id())).unwrap().unwrap(), &mine);
}

#[test]
#[ignore = "a child of other tests"]
fn child_reads_only() {
    let (dir, first) = given();
    let store = SegmentStore::open(dir).unwrap();
    let put = chunk(first, 10);
    assert_same(&block_on(store.get(&put.id())).unwrap().unwrap(), &put);
    for refused in [block_on(store.put(&[chunk(9, 1)])), block_on(store.delete(&[put.id()]))] {
        assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
    }
    say_done(first);
}

#[test]
fn a_directory_that_may_not_be_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    block_on(SegmentStore::open(dir.path()).unwrap().put(&[chunk(1, 10)])).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for file in fs::read_dir(dir.path()).unwrap() {
        mode(&file.unwrap().path(), 0o444);
    }
    mode(dir.path(), 0o555);
    let mut command = start("child_reads_only", dir.path(), 1);
    if fs::metadata(dir.path()).unwrap().uid() == 0 {
        // To the superuser nothing is read-only.
        command.uid(65534);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return eprintln!("SKIPPED: this test's binary cannot be run by another user here: {error}"),
    };
    let read: Vec<_> = done(&mut child).collect();
    assert!(child.wait().unwrap().success());
    assert_eq!(read, [1]);
    mode(dir.path(), 0o755);
}

#[test]
#[ignore = "a child of other tests"]
fn child_reads_a_data_directory_only() {
    let (dir, first) = given();
    let DataDir { kv, ledger } = amem_store::open_read_only(&dir).unwrap();
    let put = chunk(first, 10);
    assert_same(&block_on(kv.get(&put.id())).unwrap().unwrap(), &put);
    let refused = block_on(ledger.add(&ours(), &[NewRecord::from("more")], Timestamp::now()));
    assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
    for text in block_on(ledger.list(&ours(), Query::All)).unwrap() {
        say_done(text.text.parse().unwrap());
    }
    assert_eq!(block_on(ledger.verify()).unwrap().problems, [""; 0]);
    assert!(amem_store::open(&dir).is_err());
}

#[test]
fn a_data_directory_that_may_not_be_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let all = |dir: &Path, files: u32, dirs: u32| {
        for folder in [dir, &dir.join("kv")] {
            mode(folder, 0o700);
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
            {
                mode(&entry, files);
            }
        }
        [&dir.join("kv"), dir].iter().for_each(|folder| mode(folder, dirs));
    };
    let read = |case: &str| {
        all(dir.path(), 0o444, 0o555);
        let mut command = start("child_reads_a_data_directory_only", dir.path(), 1);
        if fs::metadata(dir.path()).unwrap().uid() == 0 {
            // To the superuser nothing is read-only.
            command.uid(65534);
        }
        let read: Vec<_> = match command.spawn() {
            Ok(mut child) => {
                let read = done(&mut child).collect();
                assert!(child.wait().unwrap().success(), "{case}");
                read
            }
            Err(error) => {
                eprintln!("SKIPPED: this test's binary cannot be run by another user here: {error}");
                vec![1, 2]
            }
        };
        all(dir.path(), 0o600, 0o700);
        assert_eq!(read, [1, 2], "{case}");
    };
    let DataDir { kv, ledger } = amem_store::open(dir.path()).unwrap();
    block_on(ledger.add(&ours(), &["1".into(), "2".into()], Timestamp::now())).unwrap();
    block_on(kv.put(&[chunk(1, 10)])).unwrap();
    // The log has what the file has not yet.
    read("while it is in use");
    assert!(block_on(ledger.wipe()).unwrap());
    drop((kv, ledger));
    for file in ["-wal", "-shm"] {
        let _ = fs::remove_file(dir.path().join(format!("ledger.sqlite{file}")));
    }
    read("after it was closed");
}

/// Tries again for a while if the disk is full. Other tests of this process start programs at the same time: between a fork
/// and the program's begin the child has all files of this process open, and a file that is removed meanwhile keeps its room.
fn once_there_is_room<T>(attempt: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..200 {
        match attempt() {
            Err(Error::Full { .. }) => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    attempt()
}

#[test]
fn a_full_disk_refuses_puts_and_gives_room_after_deletes() {
    let Some(disk) = SmallDisk::mount() else { return };
    let dir = disk.path().join("kv");
    let store = SegmentStore::open(&dir).unwrap();
    let chunks: Vec<_> = (0..40).map(|n| chunk(n, 600)).collect();
    let full = block_on(store.put(&chunks));
    assert!(matches!(full, Err(Error::Full { .. })), "{full:?}");
    let held = block_on(store.stats()).chunks;
    assert!((10..40).contains(&held), "{held} chunks are held");
    let check = |store: &SegmentStore, from: usize| {
        for chunk in &chunks[from..held] {
            assert_same(&block_on(store.get(&chunk.id())).unwrap().expect("reads go on"), chunk);
        }
    };
    check(&store, 0);
    let more = block_on(store.put(&chunks[held..]));
    assert!(matches!(more, Err(Error::Full { .. })), "{more:?}");
    check(&store, 0);
    drop(store);
    let store = SegmentStore::open(&dir).unwrap();
    check(&store, 0);
    let ids: Vec<_> = chunks[..held].iter().map(|chunk| chunk.id()).collect();
    block_on(store.delete(&ids)).expect("a delete works on a full disk");
    once_there_is_room(|| block_on(store.put(&chunks[..held - 1]))).expect("there is room again");
    block_on(store.delete(&[ids[0]])).expect("a delete works on a full disk");
    assert!(block_on(store.get(&ids[0])).unwrap().is_none());
}

#[test]
fn evicting_makes_room_on_a_full_disk() {
    let Some(disk) = SmallDisk::mount() else { return };
    let store = SegmentStore::open(disk.path().join("kv")).unwrap();
    let chunks: Vec<_> = (0..200).map(|n| chunk(n, 600)).collect();
    let mut held = Vec::new();
    for new in &chunks {
        let mut put = block_on(store.put(std::slice::from_ref(new)));
        if matches!(put, Err(Error::Full { .. })) {
            // One here and one there, so that no segment is without anything that is held.
            let gone: Vec<_> = held.iter().step_by(4).copied().collect();
            block_on(store.evict(&gone)).expect("evicting works on a full disk");
            held.retain(|id| !gone.contains(id));
            put = once_there_is_room(|| block_on(store.put(std::slice::from_ref(new))));
        }
        put.expect("there is room again");
        assert_same(&block_on(store.get(&new.id())).unwrap().expect("it was put"), new);
        held.push(new.id());
    }
    assert!(block_on(store.stats()).chunks >= 10, "not everything went for it");
}

#[test]
fn kv_makes_room_for_memories_on_a_full_disk() {
    let Some(disk) = SmallDisk::mount() else { return };
    let DataDir { kv, ledger } = amem_store::open(disk.path().join("data")).unwrap();
    let long = |n: usize| NewRecord::new(format!("{n} {}", "long ".repeat(8000)));
    block_on(ledger.add(&ours(), &[long(0)], Timestamp::now())).unwrap();
    let chunks: Vec<_> = (0..60).map(|n| chunk(n, 600)).collect();
    assert!(matches!(block_on(kv.put(&chunks)), Err(Error::Full { .. })));
    let mut remembered = 1;
    let mut given_up = 0;
    for n in 1..12 {
        let mut added = block_on(ledger.add(&ours(), &[long(n)], Timestamp::now()));
        if matches!(added, Err(Error::Full { .. })) {
            let freed = block_on(kv.give_up(400 << 10)).expect("KV can be given up on a full disk");
            assert!(freed > 0, "there is KV left");
            given_up += freed;
            added = once_there_is_room(|| block_on(ledger.add(&ours(), &[long(n)], Timestamp::now())));
        }
        added.expect("there is room again");
        remembered += 1;
    }
    assert!(given_up > 0, "the disk was full");
    assert_eq!(block_on(ledger.count(&ours(), Timestamp::now())).unwrap(), remembered);
    assert_eq!(ledger_problems(disk.path()), Vec::<String>::new());
    while block_on(kv.give_up(1)).unwrap() > 0 {}
    assert_eq!(block_on(kv.stats()).chunks, 0, "all of it can be given up");
    once_there_is_room(|| block_on(kv.put(&chunks[..1]))).expect("and then it is used again");
    assert_same(&block_on(kv.get(&chunks[0].id())).unwrap().unwrap(), &chunks[0]);
}

#[test]
fn a_full_disk_keeps_no_ledger_closed_and_what_was_forgotten_is_wiped_once_kv_has_made_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (data, path) = (disk.path().join("data"), disk.path().join("data/ledger.sqlite"));
    let DataDir { kv, ledger: other } = amem_store::open(&data).unwrap();
    let long = |n: usize| NewRecord::new(format!("{n} {}", "long ".repeat(8000)));
    let secret = block_on(other.add(&ours(), &["a secret text".into()], Timestamp::now())).unwrap().remove(0).record;
    // While somebody reads, all that is written stays in the log, what was forgotten included.
    let reader = rusqlite::Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM record").unwrap();
    block_on(other.forget(&ours(), secret.id, Timestamp::now())).unwrap();
    for n in 0..6 {
        block_on(other.add(&ours(), &[long(n)], Timestamp::now())).unwrap();
    }
    let chunks: Vec<_> = (0..60).map(|n| chunk(n, 600)).collect();
    assert!(matches!(block_on(kv.put(&chunks)), Err(Error::Full { .. })));
    drop((reader, kv));

    // The log is not removed by now, for another process has the ledger open. It is larger than what room is left.
    let DataDir { kv, ledger } = amem_store::open(&data).expect("a full disk does not keep it closed");
    assert_eq!(block_on(ledger.count(&ours(), Timestamp::now())).unwrap(), 6);
    assert!(files_contain(&data, b"a secret text"), "the log could not be wiped");
    assert!(block_on(kv.give_up(u64::MAX)).expect("KV can be given up on a full disk") > 0);
    // Perhaps not at once: see `once_there_is_room`.
    let is_wiped = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        block_on(ledger.count(&ours(), Timestamp::now())).unwrap();
        !files_contain(&data, b"a secret text")
    });
    assert!(is_wiped, "a later call wipes it");
    block_on(ledger.add(&ours(), &[long(6)], Timestamp::now())).expect("there is room again");
}

fn ledger_problems(disk: &Path) -> Vec<String> {
    amem_store::verify(disk.join("data")).unwrap().problems
}
