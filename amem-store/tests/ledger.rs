//! What the ledger leaves on disk, and what it makes of files that are none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::path::Path;

use amem_core::{Error, Ledger, Namespace, NewRecord, Query, Revision, Timestamp};
use amem_store::{DataDir, SqliteLedger};
use common::files_contain;
use futures_lite::future::block_on;

fn ours() -> Namespace {
    Namespace::new("ours").unwrap()
}

fn add(ledger: &SqliteLedger, texts: &[String]) -> Vec<amem_core::Record> {
    let new: Vec<_> = texts.iter().map(|text| NewRecord::from(text.as_str())).collect();
    let added = block_on(ledger.add(&ours(), &new, Timestamp::now())).unwrap();
    added.into_iter().map(|added| added.record).collect()
}

#[test]
fn a_forgotten_text_is_in_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
    // Texts of many lengths, some over several pages, so that pages are split and joined around them.
    let secret = |n: usize| format!("secret-{n:04}-").repeat(1 + n * n % 97 * 11);
    let records = add(&ledger, &(0..300).map(secret).collect::<Vec<_>>());
    for (n, record) in records.iter().enumerate().step_by(3) {
        block_on(ledger.update(&ours(), record.id, &secret(1000 + n), Timestamp::now())).unwrap();
    }
    assert!(files_contain(dir.path(), b"secret-0003-") && files_contain(dir.path(), b"secret-1003-"));
    for (n, record) in records.iter().enumerate().filter(|(n, _)| n % 2 == 1) {
        block_on(ledger.forget(&ours(), record.id, Timestamp::now())).unwrap();
        if n % 50 == 1 {
            assert_gone(dir.path(), n);
        }
    }
    (0..300).filter(|n| n % 2 == 1).for_each(|n| assert_gone(dir.path(), n));
    assert!(files_contain(dir.path(), b"secret-0002-"), "the others are there");
    // The marks of pages being split and joined again.
    add(&ledger, &(2000..2300).map(secret).collect::<Vec<_>>());
    (0..300).filter(|n| n % 2 == 1).for_each(|n| assert_gone(dir.path(), n));
}

fn assert_gone(dir: &Path, n: usize) {
    for n in [n, 1000 + n] {
        assert!(!files_contain(dir, format!("secret-{n:04}-").as_bytes()), "secret {n} is in a file");
    }
}

#[test]
fn what_was_said_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let records = {
        let DataDir { ledger, .. } = amem_store::open(dir.path()).unwrap();
        add(&ledger, &["tea".into(), "milk".into()])
    };
    let DataDir { ledger, .. } = amem_store::open(dir.path()).unwrap();
    assert_eq!(block_on(ledger.list(&ours(), Query::All)).unwrap(), records);
}

#[test]
fn another_process_sees_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let (one, other) = (SqliteLedger::open(&path).unwrap(), SqliteLedger::open(&path).unwrap());
    add(&one, &["tea".into()]);
    let (changed, revision) = block_on(other.changes(&ours(), Revision(0), Timestamp::now())).unwrap();
    assert_eq!(changed.len(), 1);
    add(&one, &["milk".into()]);
    let (changed, _) = block_on(other.changes(&ours(), revision, Timestamp::now())).unwrap();
    assert_eq!(changed[0].text, "milk");
}

#[test]
fn a_clock_that_was_set_back_does_not_turn_the_history_around() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
    let id = block_on(ledger.add(&ours(), &["one".into()], Timestamp(5000))).unwrap()[0].record.id;
    let updated = block_on(ledger.update(&ours(), id, "two", Timestamp(4000))).unwrap();
    assert_eq!(updated.updated_at, Timestamp(5000));
    let history = block_on(ledger.history(&ours(), id)).unwrap();
    assert!(history.iter().all(|version| version.until.is_none_or(|until| until >= version.from)));
}

#[test]
fn a_later_schema_and_a_file_that_is_no_ledger_are_typed_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    drop(SqliteLedger::open(&path).unwrap());
    // The version that SQLite keeps for its users, at byte 60 of the file.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60..64].copy_from_slice(&9_u32.to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    let refused = SqliteLedger::open(&path).err().unwrap();
    assert!(matches!(refused, amem_store::Error::NewerFormat { found: 9, supported: 1, .. }), "{refused}");
    std::fs::write(&path, "this is a text and not a ledger ".repeat(300)).unwrap();
    let refused = SqliteLedger::open(&path).err().unwrap();
    assert!(matches!(refused, amem_store::Error::Sqlite { .. }), "{refused}");
    assert!(matches!(refused.into(), Error::Ledger(_)));
}
