//! The ledger is not lost, not changed in silence, and forgets what it should: backups, damage, wipes, reading only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::OnceLock;

use amem_core::{
    Amounts, Change, ChunkId, Ledger, Metadata, Namespace, NewRecord, PendingDeletion, Query, RecordId, Revision,
    SavedIndex, Timestamp, UsageEvent, Version,
};
use amem_store::{DataDir, Error, SqliteLedger};
use common::{chunk, files_contain};
use futures_lite::future::{block_on, poll_once};
use proptest::prelude::*;
use rusqlite::Connection;

fn ours() -> Namespace {
    Namespace::new("ours").unwrap()
}

fn remember(ledger: &SqliteLedger, text: &str) -> RecordId {
    block_on(ledger.add(&ours(), &[text.into()], Timestamp::now())).unwrap().remove(0).record.id
}

fn texts(ledger: &impl Ledger) -> Vec<String> {
    let records = block_on(ledger.list(&ours(), Query::At(Timestamp::now()))).unwrap();
    records.into_iter().map(|record| record.text).collect()
}

/// The names of the files in a directory.
fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// ---- Backup and restore

#[test]
fn a_backup_of_a_ledger_in_use_is_one_file_and_has_everything() {
    let (dir, safe) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let DataDir { ledger, .. } = amem_store::open(dir.path().join("a")).unwrap();
    for n in 0..50 {
        remember(&ledger, &format!("memory {n}"));
    }
    let before = texts(&ledger);
    let backup = safe.path().join("backup");
    // While somebody reads and somebody writes.
    let other = Connection::open(dir.path().join("a/ledger.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE; UPDATE ledger SET last_change = last_change").unwrap();
    block_on(ledger.backup(&backup)).unwrap();
    other.execute_batch("ROLLBACK").unwrap();
    remember(&ledger, "later");
    assert_eq!(names_in(safe.path()), ["backup"], "it is complete in itself");
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600, "and private");
    amem_store::restore(&backup, dir.path().join("b")).unwrap();
    let restored = amem_store::open(dir.path().join("b")).unwrap().ledger;
    assert_eq!(texts(&restored), before);
    let all = |ledger: &SqliteLedger| block_on(ledger.changes(&ours(), Revision(0), Timestamp::now())).unwrap().records;
    assert_eq!(all(&restored), all(&ledger)[..50]);
    assert_eq!(block_on(restored.verify()).unwrap().problems, [""; 0]);
    remember(&restored, "later");
}

#[test]
fn no_file_is_ever_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let DataDir { ledger, .. } = amem_store::open(dir.path().join("a")).unwrap();
    remember(&ledger, "tea");
    block_on(ledger.backup(&backup)).unwrap();
    let first = fs::read(&backup).unwrap();
    remember(&ledger, "milk");
    let again = block_on(ledger.backup(&backup));
    assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");
    let over = amem_store::restore(&backup, dir.path().join("a"));
    assert!(matches!(over, Err(Error::Exists { .. })), "{over:?}");
    drop(ledger);
    // One that is damaged is not overwritten either: something may be rescued from it.
    fs::write(dir.path().join("a/ledger.sqlite"), "").unwrap();
    assert!(amem_store::restore(&backup, dir.path().join("a")).is_err());
    assert_eq!(fs::read(&backup).unwrap(), first);
    assert_eq!(fs::read(dir.path().join("a/ledger.sqlite")).unwrap(), b"");
}

#[test]
fn what_cannot_be_restored_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
    (0..100).for_each(|n| _ = remember(&ledger, &format!("memory {n}")));
    block_on(ledger.backup(&backup)).unwrap();
    let mut bytes = fs::read(&backup).unwrap();
    let at = bytes.windows(9).position(|window| window == b"memory 42").unwrap();
    bytes[at] = b'M';
    fs::write(&backup, bytes).unwrap();
    fs::write(dir.path().join("text"), "not a ledger ".repeat(500)).unwrap();
    fs::write(dir.path().join("empty"), "").unwrap();
    for (from, expected) in [("backup", "damaged"), ("text", "no ledger"), ("empty", "empty"), ("none", "cannot open")]
    {
        let refused = amem_store::restore(dir.path().join(from), dir.path().join("to")).unwrap_err().to_string();
        assert!(refused.contains(expected), "{from}: {refused}");
        assert!(!dir.path().join("to").exists() || names_in(&dir.path().join("to")).is_empty(), "{from}");
    }
}

#[test]
fn a_damaged_ledger_is_not_backed_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = SqliteLedger::open(&path).unwrap();
    remember(&ledger, "tea");
    Connection::open(&path).unwrap().execute_batch("UPDATE version SET text = 'Tea'").unwrap();
    let refused = block_on(ledger.backup(dir.path().join("backup")));
    assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
    assert!(!dir.path().join("backup").exists());
}

// ---- Damage

#[test]
fn a_text_that_is_not_what_was_written_is_an_error_that_names_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = SqliteLedger::open(&path).unwrap();
    let id = remember(&ledger, "Alice lives in Denver.");
    block_on(ledger.update(&ours(), id, "Alice lives in Boston.", Timestamp::now())).unwrap();
    let sound = remember(&ledger, "tea");
    // Each on its own, with the ledger open all the time.
    let now = Timestamp::now();
    for (damage, repair) in [
        (
            "UPDATE version SET text = 'Alice lives in Austin.' WHERE seq = 2",
            "UPDATE version SET text = 'Alice lives in Boston.' WHERE seq = 2",
        ),
        ("UPDATE record SET version = 1 WHERE seq = 1", "UPDATE record SET version = 2 WHERE seq = 1"),
        ("UPDATE record SET version = 3 WHERE seq = 1", "UPDATE record SET version = 2 WHERE seq = 1"),
        ("UPDATE record SET metadata = '{}' WHERE seq = 1", "UPDATE record SET metadata = NULL WHERE seq = 1"),
        (
            "UPDATE record SET expires_at = 9000000000000 WHERE seq = 1",
            "UPDATE record SET expires_at = NULL WHERE seq = 1",
        ),
    ] {
        let other = Connection::open(&path).unwrap();
        other.execute_batch(damage).unwrap();
        let reads = [
            block_on(ledger.get(&ours(), id, now)).map(drop),
            block_on(ledger.list(&ours(), Query::All)).map(drop),
            block_on(ledger.changes(&ours(), Revision(0), now)).map(drop),
            block_on(ledger.update(&ours(), id, "Alice moved.", now)).map(drop),
        ];
        for read in reads {
            let amem_core::Error::Ledger(error) = read.expect_err(damage) else { panic!("{damage}") };
            let error = error.downcast::<Error>().unwrap();
            assert!(matches!(*error, Error::Damaged { .. }), "{damage}: {error}");
            let said = error.to_string();
            assert!(said.contains(&id.to_string()) && said.contains("restore"), "{damage}: {said}");
        }
        assert_eq!(block_on(ledger.get(&ours(), sound, now)).unwrap().text, "tea", "the others are read");
        let found = block_on(ledger.verify()).unwrap().problems;
        assert!(found.iter().any(|problem| problem.contains(&id.to_string())), "{damage}: {found:?}");
        let refused = SqliteLedger::open(&path).unwrap_err();
        assert!(matches!(refused, Error::Damaged { .. }), "{damage}: {refused}");
        other.execute_batch(repair).unwrap();
        assert_eq!(block_on(ledger.get(&ours(), id, now)).unwrap().text, "Alice lives in Boston.");
    }
    Connection::open(&path).unwrap().execute_batch("UPDATE version SET text = 'Alice lies.' WHERE seq = 1").unwrap();
    let said = block_on(ledger.history(&ours(), id)).unwrap_err().to_string();
    assert!(said.contains(&id.to_string()) && said.contains("damaged"), "an earlier text is checked too: {said}");
}

#[test]
fn changing_a_key_makes_no_damaged_text_of_the_record_look_sound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = SqliteLedger::open(&path).unwrap();
    let id = remember(&ledger, "Alice lives in Denver.");
    block_on(ledger.update(&ours(), id, "Alice lives in Boston.", Timestamp::now())).unwrap();
    Connection::open(&path).unwrap().execute_batch("UPDATE version SET text = 'Alice lies.' WHERE seq = 1").unwrap();
    let change = Change::new().key("home");
    let said = block_on(ledger.change(&ours(), id, &change, Timestamp::now())).unwrap_err().to_string();
    assert!(said.contains(&id.to_string()) && said.contains("damaged"), "{said}");
    assert!(block_on(ledger.history(&ours(), id)).is_err(), "it is damaged still");
    assert_eq!(block_on(ledger.get(&ours(), id, Timestamp::now())).unwrap().key, None, "and nothing was changed");
}

#[test]
fn verify_tells_what_does_not_fit_together() {
    let dir = tempfile::tempdir().unwrap();
    let DataDir { ledger, .. } = amem_store::open(dir.path()).unwrap();
    let id = remember(&ledger, "tea");
    block_on(ledger.link(&ours(), &[(id, ChunkId([1; 32]))], Timestamp::now())).unwrap();
    let gone = remember(&ledger, "milk");
    block_on(ledger.forget(&ours(), gone, Timestamp::now())).unwrap();
    let sound = amem_store::verify(dir.path()).unwrap();
    assert_eq!((sound.records, sound.texts, sound.links, &sound.problems[..]), (2, 2, 1, &[][..]));
    let damages = [
        ("INSERT INTO kv_link VALUES (x'02', 77, NULL)", "KV is linked"),
        ("DELETE FROM kv_link WHERE record = 77; UPDATE ledger SET last_change = 1", "last change"),
        ("UPDATE ledger SET last_change = 9; DELETE FROM version WHERE seq = 1", "text is missing"),
        (
            "DELETE FROM record WHERE seq = 1; DELETE FROM kv_link; UPDATE version SET text = 'm'",
            "something of it is left",
        ),
    ];
    for (damage, expected) in damages {
        Connection::open(dir.path().join("ledger.sqlite")).unwrap().execute_batch(damage).unwrap();
        let found = amem_store::verify(dir.path()).unwrap().problems;
        assert!(found.iter().any(|problem| problem.contains(expected)), "{damage}: {found:?}");
    }
}

#[test]
fn a_damaged_record_is_forgotten_by_itself_with_its_kv_and_what_indexes_say_of_it() {
    // Of the record in question: seq 1, whose texts are versions 1 and 2. Version 3 is another record's.
    let damages = [
        "UPDATE version SET text = 'Alice lives in Austin.' WHERE seq = 2",
        "UPDATE version SET text = 'Alice lies.' WHERE seq = 1",
        "UPDATE version SET record = 77 WHERE seq = 2",
        "UPDATE version SET record = 2 WHERE seq = 2",
        "UPDATE version SET hash = 5 WHERE seq = 2",
        "UPDATE record SET version = 1 WHERE seq = 1",
        "UPDATE record SET version = 3 WHERE seq = 1",
        "UPDATE record SET version = 99 WHERE seq = 1",
        "UPDATE record SET state = 2 WHERE seq = 1",
        "UPDATE record SET state = 9 WHERE seq = 1",
        "UPDATE record SET metadata = '{' WHERE seq = 1",
        "UPDATE record SET checksum = 5 WHERE seq = 1",
        "UPDATE record SET ended_by = x'00', key = 'secret' WHERE seq = 1",
        "DELETE FROM version WHERE record = 1",
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        let DataDir { ledger, .. } = amem_store::open(dir.path()).unwrap();
        let path = dir.path().join("ledger.sqlite");
        let now = Timestamp::now();
        let id = remember(&ledger, "Alice lives in Denver.");
        block_on(ledger.update(&ours(), id, "Alice lives in Boston.", now)).unwrap();
        let sound = remember(&ledger, "tea");
        let chunks = [(id, ChunkId([1; 32])), (sound, ChunkId([2; 32]))];
        block_on(ledger.link(&ours(), &chunks, now)).unwrap();
        let index = SavedIndex { revision: Revision(9), bytes: b"Alice, Boston".to_vec() };
        assert!(block_on(ledger.save_index(&ours(), "words", &index)).unwrap());
        drop(ledger);
        Connection::open(&path).unwrap().execute_batch(damage).unwrap();

        let found = amem_store::verify(dir.path()).unwrap();
        assert!(found.damaged.contains(&(ours(), id)), "{damage}: {found:?}");
        assert!(amem_store::open(dir.path()).is_err(), "{damage}");
        let DataDir { ledger, .. } = amem_store::open_damaged(dir.path()).unwrap();
        let forgotten = block_on(ledger.forget(&ours(), id, now)).unwrap();
        assert!(matches!(forgotten.state, amem_core::State::Forgotten { .. }) && forgotten.text.is_empty(), "{damage}");
        let pending = block_on(ledger.pending_deletions(now)).unwrap();
        assert_eq!(pending.iter().map(|pending| pending.chunk).collect::<Vec<_>>(), [ChunkId([1; 32])], "{damage}");
        assert_eq!(block_on(ledger.saved_index(&ours(), "words")).unwrap(), None, "{damage}");
        let changes = block_on(ledger.changes(&ours(), Revision(0), now)).unwrap().records;
        assert_eq!(changes.len(), 2, "{damage}");
        assert!(
            block_on(ledger.history(&ours(), id)).unwrap().iter().all(|version| version.text.is_empty()),
            "{damage}"
        );
        assert_eq!(block_on(ledger.forget(&ours(), id, now)).unwrap(), forgotten, "{damage}");
        drop(ledger);

        let found = amem_store::verify(dir.path()).unwrap();
        assert_eq!((found.problems, found.damaged), (Vec::new(), Vec::new()), "{damage}");
        let DataDir { ledger, .. } = amem_store::open(dir.path()).unwrap();
        assert_eq!(texts(&ledger), ["tea"], "{damage}");
        assert!(block_on(ledger.wipe()).unwrap());
        drop(ledger);
        assert!(!files_contain(dir.path(), b"Boston") && !files_contain(dir.path(), b"Denver"), "{damage}");
    }
}

#[test]
fn only_its_own_namespace_forgets_a_damaged_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = SqliteLedger::open(&path).unwrap();
    let id = remember(&ledger, "tea");
    Connection::open(&path).unwrap().execute_batch("UPDATE version SET text = 'Tea'").unwrap();
    let theirs = Namespace::new("theirs").unwrap();
    let refused = block_on(ledger.forget(&theirs, id, Timestamp::now()));
    assert!(matches!(refused, Err(amem_core::Error::UnknownRecord { .. })), "{refused:?}");
    assert!(SqliteLedger::open_damaged(dir.path().join("none")).is_err(), "no ledger is made");
    block_on(ledger.forget(&ours(), id, Timestamp::now())).unwrap();
    assert_eq!(texts(&ledger), [""; 0]);
}

#[test]
fn a_ledger_that_was_emptied_replaced_or_lost_is_not_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    {
        let DataDir { ledger, kv } = amem_store::open(dir.path()).unwrap();
        remember(&ledger, "tea");
        block_on(amem_core::KvStore::put(&kv, &[chunk(1, 4)])).unwrap();
    }
    let sound = fs::read(&path).unwrap();
    let refused = |case: &str| {
        let refused = [amem_store::open(dir.path()).err(), amem_store::open_read_only(dir.path()).err()];
        refused.map(|error| error.unwrap_or_else(|| panic!("{case} is opened")))
    };
    fs::write(&path, b"").unwrap();
    assert!(refused("an empty file").iter().all(|error| matches!(error, Error::Damaged { .. })));
    fs::write(&path, &sound[..sound.len() / 2]).unwrap();
    assert!(refused("half a file").iter().all(|error| matches!(error, Error::Damaged { .. })));
    fs::remove_file(&path).unwrap();
    let foreign = Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE record (id); PRAGMA user_version = 3").unwrap();
    drop(foreign);
    let before = fs::read(&path).unwrap();
    assert!(refused("another program's database").iter().all(|error| matches!(error, Error::NotALedger { .. })));
    assert_eq!(fs::read(&path).unwrap(), before, "it is not touched");
    fs::remove_file(&path).unwrap();
    let [missing, _] = refused("a directory with KV and no ledger");
    assert!(matches!(missing, Error::Missing { .. }), "{missing}");
    assert!(!path.exists());
    fs::write(&path, sound).unwrap();
    assert_eq!(texts(&amem_store::open(dir.path()).unwrap().ledger), ["tea"]);
}

#[test]
fn a_log_without_its_ledger_is_not_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = SqliteLedger::open(&path).unwrap();
    remember(&ledger, "tea");
    fs::remove_file(&path).unwrap();
    let refused = SqliteLedger::open(&path).unwrap_err();
    assert!(matches!(refused, Error::Missing { .. }), "{refused}");
    assert!(!path.exists());
}

/// All that a ledger says.
type Said = (Vec<Namespace>, Vec<(amem_core::Record, Vec<Version>)>);

fn said(ledger: &SqliteLedger) -> amem_core::Result<Said> {
    block_on(async {
        let (names, mut all) = (ledger.namespaces().await?, Vec::new());
        for name in ["ours", "theirs"].map(|name| Namespace::new(name).unwrap()) {
            for record in ledger.list(&name, Query::All).await? {
                let history = ledger.history(&name, record.id).await?;
                all.push((record, history));
            }
        }
        Ok((names, all))
    })
}

/// A ledger of some pages, and what it says.
fn sample() -> &'static (Vec<u8>, Said) {
    static SAMPLE: OnceLock<(Vec<u8>, Said)> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        let ledger = SqliteLedger::open(&path).unwrap();
        let metadata: Metadata = [("source", "mail")].into_iter().collect();
        let long = |n: usize| format!("memory {n}: {}", "some words ".repeat(n % 7 * n % 90));
        let new: Vec<NewRecord> = (0..60)
            .map(|n| NewRecord::new(long(n)).key(format!("key {}", n % 50)).metadata(metadata.clone()))
            .collect();
        let added = block_on(ledger.add(&ours(), &new, Timestamp(5000))).unwrap();
        for (n, added) in added[10..].iter().enumerate() {
            let id = added.record.id;
            match n % 3 {
                0 => drop(block_on(ledger.update(&ours(), id, &format!("new {n}"), Timestamp(6000))).unwrap()),
                1 => block_on(ledger.link(&ours(), &[(id, ChunkId([n as u8; 32]))], Timestamp::now())).unwrap(),
                _ => drop(block_on(ledger.forget(&ours(), id, Timestamp(7000))).unwrap()),
            }
        }
        let theirs = Namespace::new("theirs").unwrap();
        block_on(ledger.add(&theirs, &["theirs".into()], Timestamp(8000))).unwrap();
        let said = said(&ledger).unwrap();
        assert!(block_on(ledger.wipe()).unwrap(), "all of it is in the one file");
        (fs::read(&path).unwrap(), said)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bits that flip anywhere in the file are an error, or change nothing of what it says.
    #[test]
    fn flipped_bits_never_change_what_a_ledger_says_in_silence(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..4), read_only in any::<bool>()
    ) {
        let (bytes, expected) = sample();
        let mut bytes = bytes.clone();
        for (at, bit) in &flips {
            bytes[at.index(sample().0.len())] ^= 1 << bit;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        fs::write(&path, bytes).unwrap();
        let opened = if read_only { SqliteLedger::open_read_only(&path) } else { SqliteLedger::open(&path) };
        if let Ok(found) = opened.map_err(Into::into).and_then(|ledger| said(&ledger)) {
            // Not their whole text.
            prop_assert!(found == *expected, "something else is said after a flip");
        }
    }
}

/// A record is in the table and in several indexes, by each of which it is looked up.
#[test]
fn a_name_that_is_damaged_anywhere_in_the_file_is_an_error() {
    let (bytes, _) = sample();
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"theirs")).collect();
    assert!(places.len() >= 4, "the name, the text and two indexes: {places:?}");
    for at in places {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        fs::write(&path, bytes).unwrap();
        let refused = SqliteLedger::open(&path);
        assert!(matches!(refused, Err(Error::Damaged { .. })), "byte {at}: {refused:?}");
    }
}

// ---- Wipes

#[test]
fn forgetting_does_not_wait_for_a_reader_and_is_wiped_after_it() {
    for process in ["the one that forgot", "another one"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        let (ledger, other) = (SqliteLedger::open(&path).unwrap(), SqliteLedger::open(&path).unwrap());
        let id = remember(&ledger, "a secret text");
        let reader = Connection::open(&path).unwrap();
        let read = || reader.query_row("SELECT text FROM version", [], |row| row.get::<_, String>(0)).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(read(), "a secret text");
        let forgotten = block_on(ledger.forget(&ours(), id, Timestamp::now())).expect("forgetting waits for no reader");
        assert_eq!(forgotten.text, "");
        assert_eq!(read(), "a secret text", "the reader reads on");
        assert!(!block_on(ledger.wipe()).unwrap(), "so it cannot be wiped yet, which is told");
        assert_eq!(texts(&ledger), [""; 0], "but nobody else finds it");
        remember(&other, "somebody else's");
        assert!(files_contain(dir.path(), b"a secret text"));
        reader.execute_batch("COMMIT").unwrap();
        if process == "another one" {
            drop(ledger);
            texts(&other);
        } else {
            texts(&ledger);
        }
        assert!(!files_contain(dir.path(), b"a secret text"), "{process} wipes it with its next call");
        assert!(block_on(other.wipe()).unwrap());
    }
}

#[test]
fn a_deleted_namespace_is_wiped_after_a_reader_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = SqliteLedger::open(&path).unwrap();
    remember(&ledger, "a secret text");
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM record").unwrap();
    assert_eq!(block_on(ledger.delete_namespace(&ours())).unwrap(), 1);
    assert!(files_contain(dir.path(), b"a secret text"));
    drop(reader);
    block_on(ledger.namespaces()).unwrap();
    assert!(!files_contain(dir.path(), b"a secret text"));
}

#[test]
fn the_name_of_a_deleted_namespace_without_records_is_wiped_after_a_reader_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = SqliteLedger::open(&path).unwrap();
    let theirs = Namespace::new("somebody by name").unwrap();
    // Something was forgotten and wiped before, so that nothing is due.
    let id = remember(&ledger, "tea");
    block_on(ledger.forget(&ours(), id, Timestamp::now())).unwrap();
    let used = UsageEvent::new(theirs.clone(), Timestamp::now(), Amounts::default());
    block_on(ledger.record_usage(&[used])).unwrap();
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM record").unwrap();
    assert_eq!(block_on(ledger.delete_namespace(&theirs)).unwrap(), 0);
    assert!(files_contain(dir.path(), b"somebody by name"));
    drop(reader);
    block_on(ledger.namespaces()).unwrap();
    assert!(!files_contain(dir.path(), b"somebody by name"));
    let changes = block_on(ledger.changes(&theirs, Revision(1), Timestamp::now())).unwrap();
    assert!(!changes.deleted && changes.records.is_empty(), "there was nothing that anybody could know");
}

#[test]
fn a_read_does_not_wait_for_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = SqliteLedger::open(&path).unwrap();
    remember(&ledger, "tea");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (name, milk) = (ours(), ["milk".into()]);
    let mut write = ledger.add(&name, &milk, Timestamp::now());
    assert!(block_on(poll_once(&mut write)).is_none(), "the write waits for another process's");
    assert_eq!(texts(&ledger), ["tea"]);
    assert!(block_on(poll_once(&mut write)).is_none(), "and still does");
    other.execute_batch("ROLLBACK").unwrap();
    block_on(write).unwrap();
    assert_eq!(texts(&ledger), ["tea", "milk"]);
}

#[test]
fn opening_a_ledger_waits_for_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    remember(&SqliteLedger::open(&path).unwrap(), "tea");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ledger = SqliteLedger::open(&path).expect("it is up to date, so there is nothing to write");
    assert_eq!(texts(&ledger), ["tea"]);
    other.execute_batch("ROLLBACK").unwrap();
    remember(&ledger, "milk");
}

// ---- Reading only

#[test]
fn a_ledger_that_is_only_read_refuses_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    assert!(SqliteLedger::open_read_only(&path).is_err() && !path.exists(), "none is made");
    let writer = SqliteLedger::open(&path).unwrap();
    let id = remember(&writer, "tea");
    let ledger = SqliteLedger::open_read_only(&path).unwrap();
    let now = Timestamp::now();
    for refused in [
        block_on(ledger.add(&ours(), &["milk".into()], now)).map(drop),
        block_on(ledger.update(&ours(), id, "milk", now)).map(drop),
        block_on(ledger.forget(&ours(), id, now)).map(drop),
        block_on(ledger.delete_namespace(&ours())).map(drop),
        block_on(ledger.link(&ours(), &[(id, ChunkId([1; 32]))], Timestamp::now())),
        block_on(ledger.confirm_deleted(&[PendingDeletion { chunk: ChunkId([1; 32]), number: 1 }], Timestamp::now())),
    ] {
        assert!(matches!(refused, Err(amem_core::Error::ReadOnly { .. })), "{refused:?}");
    }
    assert!(matches!(block_on(ledger.wipe()), Err(Error::ReadOnly { .. })));
    block_on(ledger.add(&ours(), &[], now)).expect("adding nothing changes nothing");
    block_on(ledger.link(&ours(), &[], Timestamp::now())).expect("nor does linking nothing");
    remember(&writer, "milk");
    assert_eq!(texts(&ledger), ["tea", "milk"], "it sees what others write");
    assert_eq!(block_on(ledger.verify()).unwrap().records, 2);
    block_on(ledger.backup(dir.path().join("backup"))).expect("it can be backed up");
}

#[test]
fn a_damaged_index_is_none_and_verify_tells() {
    let dir = tempfile::tempdir().unwrap();
    let DataDir { ledger, .. } = amem_store::open(dir.path()).unwrap();
    remember(&ledger, "tea");
    let index = SavedIndex { revision: Revision(1), bytes: vec![7; 9000] };
    assert!(block_on(ledger.save_index(&ours(), "words", &index)).unwrap());
    assert_eq!(block_on(ledger.saved_index(&ours(), "words")).unwrap(), Some(index));
    let damage = |sql: &str| {
        Connection::open(dir.path().join("ledger.sqlite")).unwrap().execute_batch(sql).unwrap();
        assert_eq!(block_on(ledger.saved_index(&ours(), "words")).unwrap(), None, "{sql}");
        let problems = amem_store::verify(dir.path()).unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains("index")), "{sql}: {problems:?}");
    };
    damage("UPDATE saved_index SET revision = 2");
    damage("UPDATE saved_index SET revision = 1, bytes = zeroblob(9000)");
}
