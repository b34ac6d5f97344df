//! What the ledger leaves on disk, and what it makes of files that are none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::path::Path;

use amem_core::{
    Amounts, ChunkId, Error, EventId, Filter, Ledger, Listing, Namespace, NewRecord, Outcome, Query, RamLedger,
    RecordId, Revision, SavedIndex, Timestamp, UsageEvent, UsageQuery,
};
use amem_store::{DataDir, SqliteLedger};
use common::files_contain;
use futures_lite::future::block_on;
use proptest::prelude::*;

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
    // And nothing at all of a deleted namespace: texts, keys, metadata.
    let metadata = [("source", "secret-source")].into_iter().collect();
    let keyed = NewRecord::new("x").key("secret-key").metadata(metadata);
    block_on(ledger.add(&ours(), &[keyed], Timestamp::now())).unwrap();
    let revision = block_on(ledger.changes(&ours(), Revision(0), Timestamp::now())).unwrap().revision;
    let index = SavedIndex { revision, bytes: b"secret-index".repeat(1000) };
    assert!(block_on(ledger.save_index(&ours(), "words", &index)).unwrap());
    let used = UsageEvent::new(ours(), Timestamp::now(), Amounts::default());
    block_on(ledger.record_usage(&[used])).unwrap();
    for secret in ["secret-key", "secret-source", "secret-index"] {
        assert!(files_contain(dir.path(), secret.as_bytes()));
    }
    block_on(ledger.delete_namespace(&ours())).unwrap();
    assert!(!files_contain(dir.path(), b"secret-"), "something of a deleted namespace is in a file");
    assert!(!files_contain(dir.path(), ours().as_str().as_bytes()), "its name is in a file");
}

fn assert_gone(dir: &Path, n: usize) {
    for n in [n, 1000 + n] {
        assert!(!files_contain(dir, format!("secret-{n:04}-").as_bytes()), "secret {n} is in a file");
    }
}

#[test]
fn nothing_of_a_forgotten_record_is_in_a_file_while_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
    let of = |who: &str| {
        let metadata = [("source".to_owned(), format!("{who}-value")), (format!("{who}-field"), "x".to_owned())];
        NewRecord::new(format!("{who}-text")).key(format!("{who}-key")).metadata(metadata.into_iter().collect())
    };
    let new = [of("first"), of("secret"), of("last")];
    let added = block_on(ledger.add(&ours(), &new, Timestamp::now())).unwrap();
    let (id, now) = (added[1].record.id, Timestamp::now());
    block_on(ledger.update(&ours(), id, "secret-second-text", now)).unwrap();
    block_on(ledger.link(&ours(), &[(id, ChunkId([7; 32]))], now)).unwrap();
    let revision = block_on(ledger.changes(&ours(), Revision(0), now)).unwrap().revision;
    let index = SavedIndex { revision, bytes: b"secret-word".to_vec() };
    assert!(block_on(ledger.save_index(&ours(), "words", &index)).unwrap());
    let said = ["secret-text", "secret-second-text", "secret-key", "secret-value", "secret-field", "secret-word"];
    assert!(said.iter().all(|said| files_contain(dir.path(), said.as_bytes())));
    block_on(ledger.forget(&ours(), id, now)).unwrap();
    assert!(!files_contain(dir.path(), b"secret"));
    for others in ["first-text", "first-key", "last-value", "last-field"] {
        assert!(files_contain(dir.path(), others.as_bytes()), "{others}");
    }
    drop(ledger);
    let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
    assert!(!files_contain(dir.path(), b"secret"), "nor when it was closed and opened again");
    assert_eq!(block_on(ledger.count(&ours(), now)).unwrap(), 2);
}

/// One thing that may be done to a ledger. Records are named by the order in which they were added.
#[derive(Clone, Debug)]
enum Op {
    Add { namespace: u8, text: u8, key: Option<u8>, lives: Option<i64>, ago: Option<i64>, kind: Option<u8> },
    Update { record: usize, text: u8 },
    Forget { records: Vec<usize> },
    Delete { namespace: u8 },
    Link { record: usize, chunk: u8 },
    Confirm { chunk: u8 },
    Use { namespace: u8, event: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    let record = || 0..12_usize;
    prop_oneof![
        6 => (0..2_u8, 0..4_u8, prop::option::of(0..2_u8), prop::option::of(1..20_i64),
            prop::option::of(-1..9_i64), prop::option::of(0..2_u8))
            .prop_map(|(namespace, text, key, lives, ago, kind)| Op::Add { namespace, text, key, lives, ago, kind }),
        3 => (record(), 0..4_u8).prop_map(|(record, text)| Op::Update { record, text }),
        2 => prop::collection::vec(record(), 1..3).prop_map(|records| Op::Forget { records }),
        1 => (0..2_u8).prop_map(|namespace| Op::Delete { namespace }),
        4 => (record(), 0..4_u8).prop_map(|(record, chunk)| Op::Link { record, chunk }),
        1 => (0..4_u8).prop_map(|chunk| Op::Confirm { chunk }),
        1 => (0..2_u8, 0..3_u8).prop_map(|(namespace, event)| Op::Use { namespace, event }),
    ]
}

/// What a ledger says after some operations, its ids replaced by the order in which records were added.
fn played(ledger: &impl Ledger, ops: &[Op]) -> Vec<String> {
    let mut ids: Vec<(Namespace, RecordId)> = Vec::new();
    let mut told = Vec::new();
    let name = |n: u8| Namespace::new(format!("namespace {n}")).unwrap();
    let mut tell = |ids: &[(Namespace, RecordId)], what: String| {
        let named = |text: String, (at, (_, id)): (usize, &(Namespace, RecordId))| {
            text.replace(&format!("{id:?}"), &format!("#{at}")).replace(&id.to_string(), &format!("#{at}"))
        };
        told.push(ids.iter().enumerate().fold(what, named));
    };
    let mut seen = [Revision(0); 2];
    for (at, op) in (0..).zip(ops) {
        let now = Timestamp(1_000_000_000_000 + 1000 * at);
        let of = |record: &usize| (!ids.is_empty()).then(|| ids[record % ids.len()].clone());
        let result = match op {
            Op::Add { namespace, text, key, lives, ago, kind } => {
                let mut new = NewRecord::new(format!("text {text}"));
                (new.key, new.expires_at) = (key.map(|k| k.to_string()), lives.map(|s| Timestamp(now.0 + 1000 * s)));
                new.created_at = ago.map(|s| Timestamp(now.0 - 1000 * s));
                new.updated_at = ago.filter(|s| s % 2 == 0).map(|s| Timestamp(now.0 - 500 * s));
                new.metadata = kind.iter().map(|kind| ("kind", f64::from(*kind))).collect();
                let added = block_on(ledger.add(&name(*namespace), &[new], now)).unwrap().remove(0);
                if added.outcome != Outcome::Duplicate {
                    ids.push((name(*namespace), added.record.id));
                }
                format!("{added:?}")
            }
            Op::Update { record, text } => match of(record) {
                Some((owner, id)) => format!("{:?}", block_on(ledger.update(&owner, id, &format!("text {text}"), now))),
                None => continue,
            },
            Op::Forget { records } => {
                let all: Vec<_> = records.iter().filter_map(of).collect();
                let Some((owner, _)) = all.first() else { continue };
                let all: Vec<RecordId> = all.iter().map(|(_, id)| *id).collect();
                format!("{:?}", block_on(ledger.forget_many(owner, &all, now)))
            }
            Op::Use { namespace, event } => {
                let amounts = Amounts::from_array([1, 2, 3, 4, 5, 6, 7, u64::from(*event)]);
                let mut used = UsageEvent::new(name(*namespace), now, amounts);
                used.id = EventId::from_bytes([*event; 16]);
                format!("{:?}", block_on(ledger.record_usage(&[used])))
            }
            Op::Delete { namespace } => format!("{:?}", block_on(ledger.delete_namespace(&name(*namespace)))),
            Op::Link { record, chunk } => match of(record) {
                Some((owner, id)) => {
                    format!("{:?}", block_on(ledger.link(&owner, &[(id, ChunkId([*chunk; 32]))], now)))
                }
                None => continue,
            },
            Op::Confirm { chunk } => format!("{:?}", block_on(confirm(ledger, *chunk, now))),
        };
        tell(&ids, result);
        for (n, seen) in (0..).zip(&mut seen) {
            let changes = block_on(ledger.changes(&name(n), *seen, now)).unwrap();
            let mut changed: Vec<String> = changes.records.iter().map(|record| format!("{record:?}")).collect();
            changed.sort();
            *seen = changes.revision;
            tell(&ids, format!("{} {changed:?}", changes.deleted));
            let filter = Filter::eq("kind", 1.0);
            for listing in [Listing::new(Query::All).limit(3), Listing::new(Query::At(now)).filter(filter)] {
                let page = block_on(ledger.page(&name(n), &listing)).unwrap();
                // Records are told as they are now, which is after all that they might expire at.
                tell(&ids, format!("{page:?}"));
            }
            for back in [0, 2, 5] {
                let then = block_on(ledger.list(&name(n), Query::At(Timestamp(now.0 - 1000 * back)))).unwrap();
                tell(&ids, format!("{then:?}"));
            }
            tell(&ids, format!("{:?}", block_on(ledger.count(&name(n), now))));
            tell(&ids, format!("{:?}", block_on(ledger.stats(&name(n), now))));
        }
        tell(&ids, format!("{:?}", block_on(ledger.usage(&UsageQuery::all()))));
        let pending = block_on(ledger.pending_deletions(now)).unwrap();
        let mut pending: Vec<ChunkId> = pending.into_iter().map(|deletion| deletion.chunk).collect();
        pending.sort_unstable();
        tell(&ids, format!("{pending:?} {:?}", block_on(ledger.namespaces())));
        for (owner, id) in &ids {
            tell(&ids, format!("{:?}", block_on(ledger.history(owner, *id))));
        }
    }
    told
}

/// Confirms the deletion of a chunk, if one is pending.
async fn confirm(ledger: &impl Ledger, chunk: u8, now: Timestamp) -> amem_core::Result<()> {
    let mut pending = ledger.pending_deletions(now).await?;
    pending.retain(|deletion| deletion.chunk == ChunkId([chunk; 32]));
    ledger.confirm_deleted(&pending, now).await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// The ledger in RAM is the plain model of what a ledger is; the one in SQLite says the same, whatever is done.
    #[test]
    fn it_says_what_the_ledger_in_ram_says(ops in prop::collection::vec(op(), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        let sqlite = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
        let (ours, theirs) = (played(&sqlite, &ops), played(&RamLedger::new(), &ops));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            prop_assert_eq!(ours, theirs);
        }
        prop_assert_eq!(ours.len(), theirs.len());
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
    let changes = block_on(other.changes(&ours(), Revision(0), Timestamp::now())).unwrap();
    assert_eq!(changes.records.len(), 1);
    add(&one, &["milk".into()]);
    let changes = block_on(other.changes(&ours(), changes.revision, Timestamp::now())).unwrap();
    assert_eq!(changes.records[0].text, "milk");
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
    assert!(matches!(refused, amem_store::Error::NewerFormat { found: 9, supported: 5, .. }), "{refused}");
    std::fs::write(&path, "this is a text and not a ledger ".repeat(300)).unwrap();
    let refused = SqliteLedger::open(&path).err().unwrap();
    assert!(matches!(refused, amem_store::Error::NotALedger { .. }), "{refused}");
    assert!(matches!(refused.into(), Error::Ledger(_)));
}
