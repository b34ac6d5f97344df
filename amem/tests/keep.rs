//! The commands that keep what is remembered, and what memories do on a ledger that is held or only read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "../../amem-store/tests/common/small_disk.rs"]
mod small_disk;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amem_core::{
    Amounts, ChunkId, Dtype, Encoding, Error, Event, HostKv, KvChunk, KvShape, KvStore, Ledger, Namespace, NewRecord,
    OwnerId, PrefixId, RamStore, TextMemory, Timestamp, UsageQuery,
};
use amem_store::SqliteLedger;
use common::{block_on, builder};
use futures_lite::StreamExt;
use futures_lite::future::poll_once;
use small_disk::SmallDisk;

/// Runs the command on a data directory.
fn amem(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amem"));
    command.args(args).arg("--data-dir").arg(dir).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_backup_from_a_shell_is_restored_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, restored, file) = (dir.path().join("ours"), dir.path().join("restored"), dir.path().join("backup"));
    let ledger = amem_store::open(&ours).unwrap().ledger;
    let memory = builder().ledger(Arc::new(ledger)).build().unwrap();
    block_on(memory.remember_all("me", ["Alice lives in Denver.", "Maria lives in Paris."])).unwrap();
    // The memory is in use all the time.
    assert!(amem(&ours, &["backup", path(&file)]).status.success());
    let again = amem(&ours, &["backup", path(&file)]);
    assert!(!again.status.success() && String::from_utf8(again.stderr).unwrap().contains("exists"));
    assert!(!amem(&ours, &["restore", path(&file)]).status.success(), "a ledger is not overwritten");
    assert!(amem(&restored, &["restore", path(&file)]).status.success());
    let verified = amem(&restored, &["verify"]);
    assert!(verified.status.success());
    assert_eq!(stdout(&verified), "2 records, 2 texts, 0 links to KV\nno damage\n");
    let ledger = rusqlite::Connection::open(restored.join("ledger.sqlite")).unwrap();
    ledger.execute_batch("UPDATE version SET text = 'Alice lives in Dublin.' WHERE seq = 1").unwrap();
    drop(ledger);
    let damaged = amem(&restored, &["verify"]);
    assert!(!damaged.status.success());
    let id = block_on(memory.list("me", amem_core::Query::All)).unwrap()[0].id;
    assert!(stdout(&damaged).contains(&format!("record {id}")), "{}", stdout(&damaged));
}

#[test]
fn a_damaged_memory_is_forgotten_from_a_shell_as_verify_says() {
    let dir = tempfile::tempdir().unwrap();
    // A name that means something to a shell.
    let name = "it's $(me)";
    let memory = common::on_disk(dir.path());
    let chunks = |memory: &amem_core::Memory| {
        let held = block_on(memory.kv().owned(OwnerId::of(name))).unwrap();
        held.into_iter().map(|chunk| chunk.id).collect::<Vec<ChunkId>>()
    };
    block_on(memory.remember_all(name, ["Alice lives in Denver.", "Maria lives in Paris."])).unwrap();
    block_on(memory.prefill(name, |_, _| {})).unwrap();
    let before = chunks(&memory);
    drop(memory);
    let ledger = rusqlite::Connection::open(dir.path().join("ledger.sqlite")).unwrap();
    ledger.execute_batch("UPDATE version SET text = 'Alice lives in Dublin.' WHERE seq = 1").unwrap();
    drop(ledger);

    let verified = amem(dir.path(), &["verify"]);
    assert!(!verified.status.success());
    let said = stdout(&verified);
    let (_, command) = said.split_once("\namem ").expect("it says how to remove it");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("\"$0\" {command}"), env!("CARGO_BIN_EXE_amem")]);
    let forgotten = shell.output().unwrap();
    assert!(forgotten.status.success(), "{command}: {}", String::from_utf8_lossy(&forgotten.stderr));
    assert_eq!(stdout(&amem(dir.path(), &["verify"])), "2 records, 2 texts, 1 links to KV\nno damage\n");
    let memory = common::on_disk(dir.path());
    let after = chunks(&memory);
    assert!(before.len() == 2 && after.len() == 1 && before.contains(&after[0]), "{before:?} {after:?}");
    let told = block_on(memory.recall(name, "Where does Maria live?")).unwrap();
    assert_eq!(told.iter().map(|told| told.record.text.as_str()).collect::<Vec<_>>(), ["Maria lives in Paris."]);
}

#[test]
fn all_that_was_said_under_a_key_is_forgotten_from_a_shell() {
    let dir = tempfile::tempdir().unwrap();
    let memory = common::on_disk(dir.path());
    let home = |text: &str| amem_core::NewRecord::new(text).key("home");
    let notes = [home("Alice lives in Denver."), home("Alice lives in Oslo."), "Bob has a cat.".into()];
    block_on(memory.remember_all("me", notes)).unwrap();
    drop(memory);
    let forgotten = amem(dir.path(), &["forget", "me", "--key", "home"]);
    assert!(forgotten.status.success() && stdout(&forgotten).starts_with("2 memories are forgotten"), "{forgotten:?}");
    let again = amem(dir.path(), &["forget", "me", "--key", "home"]);
    assert!(!again.status.success(), "no memory has the key");
    let ledger = std::fs::read(dir.path().join("ledger.sqlite")).unwrap();
    let has = |word: &str| ledger.windows(word.len()).any(|part| part == word.as_bytes());
    assert!(has("Bob has a cat") && !has("Denver") && !has("Oslo"), "nothing of it is left in the file");
}

#[test]
fn a_memory_that_is_damaged_while_it_is_in_use_is_forgotten_with_its_kv() {
    let dir = tempfile::tempdir().unwrap();
    let (path, kv) = (dir.path().join("ledger.sqlite"), Arc::new(RamStore::default()));
    let memory = builder().kv(kv.clone()).ledger(Arc::new(SqliteLedger::open(&path).unwrap())).build().unwrap();
    block_on(async {
        let id = memory.remember("me", "Alice lives in Denver.").await.unwrap().record.id;
        memory.remember("me", "Maria lives in Paris.").await.unwrap();
        memory.ask("me", "Where does Alice live?").await.unwrap();
        let owned = async || kv.owned(OwnerId::of("me")).await.unwrap().len();
        assert_eq!(owned().await, 2);
        let damage = "UPDATE version SET text = 'Alice lives in Dublin.' WHERE seq = 1";
        rusqlite::Connection::open(&path).unwrap().execute_batch(damage).unwrap();
        memory.forget("me", id).await.unwrap();
        assert_eq!(owned().await, 1);
        assert_eq!(memory.recall("me", "Where does Alice live?").await.unwrap().len(), 1);
    });
}

#[test]
fn a_ledger_that_is_only_read_answers_questions() {
    let dir = tempfile::tempdir().unwrap();
    let memory = |ledger| builder().ledger(Arc::new(ledger)).build().unwrap();
    block_on(async {
        let writer = memory(amem_store::open(dir.path()).unwrap().ledger);
        writer.remember("me", "Alice lives in Denver.").await.unwrap();
        let reader = memory(amem_store::open_read_only(dir.path()).unwrap().ledger);
        let refused = reader.remember("me", "Maria lives in Paris.").await;
        assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
        let found = reader.ask("me", "Where does Alice live?").await.expect("its KV is computed, and not kept");
        assert_eq!(found.text, writer.ask("me", "Where does Alice live?").await.unwrap().text);
        assert!(found.usage.missed > 0);
    });
    let asked = amem(dir.path(), &["ask", "--user", "me", "--read-only", "Where does Alice live?"]);
    assert!(asked.status.success(), "{}", String::from_utf8(asked.stderr).unwrap());
    assert_eq!(stdout(&asked), "Alice lives in Denver.\n");
}

/// Another process's transaction, which holds the ledger's write lock until this is dropped.
fn hold(ledger: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(ledger).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

/// Waits until something holds, which it does soon, on however busy a machine.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_question_does_not_wait_for_a_ledger_that_is_held_and_what_it_noted_is_kept_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let memory = common::on_disk(dir.path());
    let owned = async || memory.kv().owned(OwnerId::of("me")).await.unwrap();
    let pending = async || memory.ledger().pending_deletions(Timestamp::now()).await.unwrap();
    block_on(async {
        let texts = ["Alice lives in Denver.", "Zoe owns a tandem."];
        let added = memory.remember_all("me", texts).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        memory.remember("me", "Bob's locker code is 4817.").await.unwrap();
        // By a process that has no KV at hand.
        let other = TextMemory::new(Arc::new(SqliteLedger::open(&path).unwrap()));
        other.forget("me", added[1].record.id).await.unwrap();
        assert_eq!((owned().await.len(), pending().await.len()), (2, 1));

        let held = hold(&path);
        let begun = Instant::now();
        let answer = memory.ask("me", "Where does Alice live?").await.unwrap();
        assert_eq!((&*answer.text, answer.usage.missed), ("Alice lives in Denver.", 0), "its KV is there");
        assert_eq!((owned().await.len(), pending().await.len()), (1, 1), "what was forgotten is deleted all the same");
        let answer = memory.ask("me", "What is Bob's locker code?").await.unwrap();
        assert_eq!(&*answer.text, "Bob's locker code is 4817.");
        assert!(answer.usage.missed > 0, "its KV is computed");
        // Whoever waits for the lock waits for 30 seconds.
        assert!(begun.elapsed() < Duration::from_secs(20), "the questions took {:?}", begun.elapsed());
        assert_eq!(owned().await.len(), 1, "no KV is kept before the ledger knows of it");

        drop(held);
        until("the KV is not kept", async || owned().await.len() == 2).await;
        until("the deletion is not confirmed", async || pending().await.is_empty()).await;
        let chunks: Vec<ChunkId> = owned().await.iter().map(|chunk| chunk.id).collect();
        assert_eq!(memory.ledger().are_linked(&chunks, Timestamp::now()).await.unwrap(), [true, true]);
        let again = memory.ask("me", "What is Bob's locker code?").await.unwrap();
        assert_eq!((&*again.text, again.usage.missed), ("Bob's locker code is 4817.", 0));
    });
}

#[test]
fn a_metered_answer_is_told_while_the_ledger_is_held_and_complete_once_it_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = Arc::new(SqliteLedger::open(&path).unwrap());
    let memory = builder().ledger(ledger).meter_usage(true).build().unwrap();
    block_on(async {
        memory.remember("me", "Alice lives in Denver.").await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        let used = async || memory.usage(&UsageQuery::all()).await.unwrap()[0].amounts;
        let before = used().await;

        let held = hold(&path);
        let mut stream = memory.ask_stream("me", "Where does Alice live?").await.unwrap();
        let mut told = String::new();
        while told.trim() != "Alice lives in Denver." {
            let Event::Delta(delta) = stream.next().await.unwrap().unwrap() else { panic!("it is not counted yet") };
            told += &delta.text;
        }
        // Nobody is there to hear the end of this one.
        drop(memory.ask_stream("me", "Where does Alice live?").await.unwrap());
        while let Some(event) = poll_once(stream.next()).await {
            assert!(matches!(event, Some(Ok(Event::Delta(_)))), "{event:?}");
        }

        drop(held);
        let answer = loop {
            if let Event::Done(answer) = stream.next().await.unwrap().unwrap() {
                break answer;
            }
        };
        assert_eq!(answer.text, "Alice lives in Denver.");
        until("a question is not counted", async || used().await.requests == before.requests + 2).await;
        let Amounts { memory_ops, chunks, reused_chunks, .. } = used().await;
        assert_eq!((memory_ops, chunks, reused_chunks), (1, 2, 2), "each is counted once");
    });
}

#[test]
fn the_command_answers_from_a_data_directory_that_may_not_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let memory = common::on_disk(dir.path());
    block_on(memory.remember("me", "Alice lives in Denver.")).unwrap();
    block_on(memory.prefill("me", |_, _| {})).unwrap();
    drop(memory);
    let folders = [dir.path().join("kv"), dir.path().to_owned()];
    let mode = |files: u32, dirs: u32| {
        for folder in &folders {
            for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|at| at.is_file())
            {
                std::fs::set_permissions(file, Permissions::from_mode(files)).unwrap();
            }
        }
        for folder in &folders {
            std::fs::set_permissions(folder, Permissions::from_mode(dirs)).unwrap();
        }
    };
    mode(0o444, 0o555);
    let names = || {
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    let before = names();
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amem"));
        command.args(["ask", "--user", "me"]).args(arguments).arg("Where does Alice live?");
        command.arg("--data-dir").arg(dir.path());
        if std::fs::metadata(dir.path()).unwrap().uid() == 0 {
            // To the superuser nothing is read-only.
            command.uid(65534);
        }
        command.output()
    };
    let (asked, refused) = match (ask(&["--read-only"]), ask(&[])) {
        (Ok(asked), Ok(refused)) => (asked, refused),
        (asked, _) => {
            mode(0o600, 0o700);
            return eprintln!("SKIPPED: the command cannot be run by another user here: {asked:?}");
        }
    };
    let after = names();
    mode(0o600, 0o700);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    assert_eq!(stdout(&asked), "Alice lives in Denver.\n");
    assert!(!refused.status.success() && stdout(&refused).is_empty(), "without being told, it would write");
    assert_eq!(before, after);
}

#[test]
fn forgetting_deletes_kv_while_somebody_reads_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    block_on(async {
        let kv = Arc::new(RamStore::default());
        let ledger = SqliteLedger::open(&path).unwrap();
        let memory = builder().kv(kv.clone()).ledger(Arc::new(ledger.clone())).build().unwrap();
        let id = memory.remember("me", "Alice lives in Denver.").await.unwrap().record.id;
        memory.prefill("me", |_, _| {}).await.unwrap();
        let chunks = async || kv.list().await.unwrap().into_iter().map(|held| held.id).collect::<Vec<ChunkId>>();
        let before = chunks().await;
        let reader = rusqlite::Connection::open(&path).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM record").unwrap();
        memory.forget("me", id).await.expect("forgetting waits for no reader");
        assert!(!ledger.wipe().await.unwrap(), "the reader still reads");
        // The system line's KV stays.
        assert_eq!(chunks().await.len(), before.len() - 1);
        drop(reader);
        assert!(ledger.wipe().await.unwrap());
    });
}

#[test]
fn kv_that_is_used_once_is_not_written_to_the_disk_if_that_is_asked_for() {
    let segments = |options: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let ask = ["ask", "--remember", "Alice lives in Denver.", "Where does Alice live?"];
        let asked = amem(dir.path(), &[&ask, options].concat());
        assert_eq!(stdout(&asked), "Alice lives in Denver.\n", "{}", String::from_utf8_lossy(&asked.stderr));
        let files = std::fs::read_dir(dir.path().join("kv")).unwrap().map(|file| file.unwrap().path());
        files.filter(|file| file.extension().is_some_and(|of| of == "kv")).count()
    };
    assert_eq!([segments(&[]), segments(&["--second-use"]), segments(&["--second-use", "--fair-share"])], [1, 0, 0]);
}

#[test]
fn on_a_full_disk_kv_makes_room_for_what_is_remembered() {
    let Some(disk) = SmallDisk::mount() else { return };
    let memory = common::on_disk(&disk.path().join("data"));
    let (shape, encoding) = (KvShape { layers: 1, kv_heads: 1, head_dim: 16 }, Encoding::Plain(Dtype::F32));
    let chunk = |n: u8| {
        let data = Arc::new(HostKv::new(encoding, 1, vec![n; encoding.bytes(&shape, 512)]));
        KvChunk::new(ChunkId([n; 32]), PrefixId([0; 32]), shape, vec![0; 512].into(), data).unwrap()
    };
    let texts: Vec<NewRecord> = (0..1500).map(|n| NewRecord::new(format!("Alice has {n} books."))).collect();
    block_on(async {
        let full = memory.kv().put(&(0..100).map(chunk).collect::<Vec<_>>()).await;
        assert!(matches!(full, Err(Error::Full { .. })), "{full:?}");
        let before = memory.kv().stats().await.chunks;
        let refused = memory.ledger().add(&Namespace::new("me").unwrap(), &texts, Timestamp::now()).await;
        assert!(matches!(refused, Err(Error::Full { .. })), "there is no room without that: {refused:?}");
        memory.remember_all("me", texts).await.expect("KV makes room");
        assert_eq!(memory.count("me").await.unwrap(), 1500);
        let after = memory.kv().stats().await.chunks;
        assert!(after < before, "{after} of {before} chunks are left");
    });
}

/// The bytes of the files of KV.
fn kv_bytes(dir: &Path) -> u64 {
    std::fs::read_dir(dir.join("kv")).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn what_no_longer_counts_is_purged_from_a_shell() {
    let dir = tempfile::tempdir().unwrap();
    let memory = common::on_disk(dir.path());
    block_on(async {
        let place = |place: &str| NewRecord::new(format!("Alice lives in {place}.")).key("home");
        memory.remember_all("me", [place("Denver"), NewRecord::new("Bob lives in Oslo.")]).await.unwrap();
        memory.prefill("me", |_, _| {}).await.unwrap();
        let held = memory.kv().list().await.unwrap();
        memory.kv().evict(&[held[0].id]).await.unwrap();
    });
    let purge = || amem(dir.path(), &["purge"]);
    let refused = purge();
    assert!(!refused.status.success(), "another process writes to the KV");
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.contains("read-only") && refused.contains("POST /v1/admin/purge"), "{refused}");
    drop(memory);
    // Superseded by a process that has no KV at hand.
    let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
    let lima = NewRecord::new("Alice lives in Lima.").key("home");
    block_on(ledger.add(&Namespace::new("me").unwrap(), &[lima], Timestamp::now())).unwrap();
    drop(ledger);
    let before = kv_bytes(dir.path());
    let purged = purge();
    assert!(purged.status.success(), "{}", String::from_utf8_lossy(&purged.stderr));
    assert!(stdout(&purged).starts_with("1 chunks"), "{}", stdout(&purged));
    assert!(kv_bytes(dir.path()) < before);
    assert!(stdout(&purge()).starts_with("0 chunks"));
}
