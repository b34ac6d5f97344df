//! The ledger on PostgreSQL: what its trait promises, and what many machines make of it. These tests start a server of
//! their own, and are skipped where PostgreSQL is not installed unless `AMEM_REQUIRE_SERVERS=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "common/postgres_server.rs"]
mod postgres_server;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use amem_core::{
    Amounts, ChunkId, Error, EventId, Filter, Ledger, Listing, MetaValue, Metadata, Namespace, NewRecord, Outcome,
    PendingDeletion, Query, RamLedger, Record, RecordId, Revision, SavedIndex, State, Timestamp, UsageEvent,
    UsageQuery,
};
use amem_store::{PostgresError, PostgresLedger, PostgresOptions, SqliteLedger};
use common::files_contain;
use futures_lite::future::block_on;
use postgres_server::{Server, USER_WITH_PASSWORD};
use proptest::prelude::*;

const T0: Timestamp = Timestamp(1_000_000_000_000);

fn ours() -> Namespace {
    Namespace::new("ours").unwrap()
}

fn in_schema(schema: &str) -> PostgresOptions {
    let mut options = PostgresOptions::default();
    options.schema = schema.to_owned();
    options
}

fn connect(server: &Server, schema: &str) -> PostgresLedger {
    block_on(PostgresLedger::connect_with(&server.address(), in_schema(schema))).unwrap()
}

/// Two servers of amem with one ledger.
fn two(server: &Server) -> (PostgresLedger, PostgresLedger, String) {
    let schema = server.new_schema();
    (connect(server, &schema), connect(server, &schema), schema)
}

fn add(ledger: &impl Ledger, new: impl Into<NewRecord>) -> Record {
    block_on(ledger.add(&ours(), &[new.into()], T0)).unwrap().remove(0).record
}

fn texts(ledger: &impl Ledger) -> Vec<String> {
    let listed = block_on(ledger.list(&ours(), Query::At(T0))).unwrap();
    listed.into_iter().map(|record| record.text).collect()
}

/// The error of the ledger in an error of its trait.
fn cause<T: Debug>(result: Result<T, Error>) -> PostgresError {
    match result {
        Err(Error::Ledger(error)) => *error.downcast::<PostgresError>().expect("it is an error of this ledger"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_postgres_ledger_is_a_ledger() {
    let Some(server) = postgres_server::shared() else { return };
    amem_core::testing::ledger(|| connect(server, &server.new_schema()));
}

#[cfg(feature = "encryption")]
#[test]
fn an_encrypted_postgres_ledger_is_a_ledger() {
    use amem_store::{EncryptedLedger, KeyDir, MasterKey};
    let Some(server) = postgres_server::shared() else { return };
    let keys = tempfile::tempdir().unwrap();
    amem_core::testing::ledger(|| {
        let schema = server.new_schema();
        let keys = KeyDir::open(keys.path().join(&schema), &MasterKey::new([7; 32])).unwrap();
        block_on(EncryptedLedger::open(connect(server, &schema), Arc::new(keys))).unwrap()
    });
}

/// A text, its key, after how many seconds it expires, and how many seconds ago it was said.
type NewText = (usize, Option<usize>, Option<i64>, Option<i64>);

/// One thing that may be done to a ledger. Records are named by the order in which they were added; texts, keys and
/// namespaces by their place among some strings. A text may live for some seconds, and have been said some seconds ago.
#[derive(Clone, Debug)]
enum Op {
    Add(Vec<NewText>),
    Update(usize, usize),
    Forget(Vec<usize>),
    Delete,
    Link(usize, u8),
    Confirm(u8),
    Use(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let new = (0..4_usize, prop::option::of(0..3_usize), prop::option::of(1..10_i64), prop::option::of(-1..9_i64));
    prop_oneof![
        6 => prop::collection::vec(new, 1..5).prop_map(Op::Add),
        3 => (0..9_usize, 0..4_usize).prop_map(|(record, text)| Op::Update(record, text)),
        2 => prop::collection::vec(0..9_usize, 1..3).prop_map(Op::Forget),
        1 => Just(Op::Delete),
        4 => (0..9_usize, 0..3_u8).prop_map(|(record, chunk)| Op::Link(record, chunk)),
        1 => (0..3_u8).prop_map(Op::Confirm),
        1 => (0..3_u8).prop_map(Op::Use),
    ]
}

/// Any text: with what ends strings in SQL, and with the NUL that PostgreSQL's own text cannot hold.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => "[^ \t]{1,20}",
        2 => "\\PC{1,12}",
        1 => "[a'\"\\\\;$%\u{0}-]{1,12}",
        1 => Just("'); DROP TABLE record; --\u{0}\u{7f}\u{fffd}\u{10ffff}".to_owned()),
    ]
}

/// What a ledger says after each of some operations, its ids replaced by the order in which records were added.
fn played(ledger: &impl Ledger, namespace: &Namespace, strings: &[String], ops: &[Op]) -> Vec<String> {
    let (mut ids, mut told): (Vec<RecordId>, Vec<String>) = (Vec::new(), Vec::new());
    let (mut seen, string) = (Revision(0), |at: usize| strings[at % strings.len()].as_str());
    for (second, op) in (0..).zip(ops) {
        let now = Timestamp(T0.0 + 1000 * second);
        let of = |at: &usize| (!ids.is_empty()).then(|| ids[at % ids.len()]);
        let mut said = vec![match op {
            Op::Add(new) => {
                let new = new.iter().map(|(text, key, lives, ago)| {
                    let metadata: Metadata = [("a", MetaValue::from(string(text + 1)))].into_iter().collect();
                    let mut new = NewRecord::new(string(*text)).metadata(metadata);
                    new.key = key.map(|key| string(key).to_owned());
                    new.expires_at = lives.map(|lives| Timestamp(now.0 + 1000 * lives));
                    new.created_at = ago.map(|ago| Timestamp(now.0 - 1000 * ago));
                    new.updated_at = ago.filter(|ago| ago % 2 == 0).map(|ago| Timestamp(now.0 - 500 * ago));
                    new
                });
                let added = block_on(ledger.add(namespace, &new.collect::<Vec<_>>(), now));
                let new = added.iter().flatten().filter(|added| added.outcome != Outcome::Duplicate);
                ids.extend(new.map(|added| added.record.id));
                format!("{added:?}")
            }
            Op::Update(record, text) => {
                let Some(id) = of(record) else { continue };
                format!("{:?}", block_on(ledger.update(namespace, id, string(*text), now)))
            }
            Op::Forget(records) => {
                let records: Vec<RecordId> = records.iter().filter_map(of).collect();
                format!("{:?}", block_on(ledger.forget_many(namespace, &records, now)))
            }
            Op::Delete => format!("{:?}", block_on(ledger.delete_namespace(namespace))),
            Op::Link(record, chunk) => {
                let Some(id) = of(record) else { continue };
                format!("{:?}", block_on(ledger.link(namespace, &[(id, ChunkId([*chunk; 32]))], now)))
            }
            Op::Confirm(chunk) => format!("{:?}", block_on(confirm(ledger, &[ChunkId([*chunk; 32])], now))),
            Op::Use(event) => {
                let amounts = Amounts::from_array([1, 2, 3, 4, 5, 6, 7, u64::MAX]);
                let mut used = UsageEvent::new(namespace.clone(), now, amounts);
                used.id = EventId::from_bytes([*event; 16]);
                format!("{:?}", block_on(ledger.record_usage(&[used])))
            }
        }];
        let changes = block_on(ledger.changes(namespace, seen, now)).unwrap();
        seen = changes.revision;
        let changed: BTreeMap<RecordId, Record> = changes.records.into_iter().map(|r| (r.id, r)).collect();
        said.push(format!("{} {changed:?}", changes.deleted));
        for back in [0, 3] {
            said.push(format!("{:?}", block_on(ledger.list(namespace, Query::At(Timestamp(now.0 - 1000 * back))))));
        }
        let filtered = Listing::new(Query::All).filter(Filter::eq("a", string(1))).limit(2);
        said.push(format!("{:?}", block_on(ledger.page(namespace, &filtered))));
        let pending = block_on(ledger.pending_deletions(now)).unwrap();
        let pending: BTreeSet<ChunkId> = pending.into_iter().map(|deletion| deletion.chunk).collect();
        said.push(format!("{pending:?} {:?}", block_on(ledger.namespaces())));
        said.push(format!("{:?} {:?}", block_on(ledger.count(namespace, now)), block_on(ledger.stats(namespace, now))));
        said.push(format!("{:?}", block_on(ledger.usage(&UsageQuery::all()))));
        said.extend(ids.iter().map(|id| format!("{:?}", block_on(ledger.history(namespace, *id)))));
        let named = |text: String, (at, id): (usize, &RecordId)| {
            text.replace(&format!("{id:?}"), &format!("#{at}")).replace(&id.to_string(), &format!("#{at}"))
        };
        told.extend(said.into_iter().map(|text| ids.iter().enumerate().fold(text, named)));
    }
    told
}

/// The chunks that are to be deleted.
async fn pending(ledger: &impl Ledger, now: Timestamp) -> Vec<ChunkId> {
    ledger.pending_deletions(now).await.unwrap().into_iter().map(|deletion| deletion.chunk).collect()
}

/// Confirms deletions of these chunks, as far as any are pending.
async fn confirm(ledger: &impl Ledger, chunks: &[ChunkId], now: Timestamp) -> amem_core::Result<()> {
    let mut pending = ledger.pending_deletions(now).await?;
    pending.retain(|deletion| chunks.contains(&deletion.chunk));
    ledger.confirm_deleted(&pending, now).await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// The ledger in RAM is the plain model of what a ledger is. Whatever texts, keys and names are, they are data.
    #[test]
    fn it_says_what_the_ledger_in_ram_says(
        name in "[^\\pC]{1,20}",
        strings in prop::collection::vec(text(), 1..5),
        ops in prop::collection::vec(op(), 1..20),
    ) {
        let Some(server) = postgres_server::shared() else { return Ok(()) };
        let name = Namespace::new(name).unwrap();
        let ours = played(&connect(server, &server.new_schema()), &name, &strings, &ops);
        let theirs = played(&RamLedger::new(), &name, &strings, &ops);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            prop_assert_eq!(ours, theirs);
        }
        prop_assert_eq!(ours.len(), theirs.len());
    }
}

#[test]
fn what_one_server_forgets_no_call_of_another_gives() {
    let Some(server) = postgres_server::shared() else { return };
    let (one, other, _) = two(server);
    let record = add(&one, NewRecord::new("Vienna").key("home"));
    assert_eq!(block_on(other.get(&ours(), record.id, T0)).unwrap(), record);
    let updated = block_on(other.update(&ours(), record.id, "Lima", T0)).unwrap();
    assert_eq!(texts(&one), ["Lima"]);
    let seen = block_on(one.changes(&ours(), Revision(0), T0)).unwrap();
    assert_eq!(seen.records, [updated]);
    block_on(one.link(&ours(), &[(record.id, ChunkId([1; 32]))], T0)).unwrap();
    block_on(other.forget(&ours(), record.id, T0)).unwrap();
    assert!(texts(&one).is_empty());
    let told = block_on(one.changes(&ours(), seen.revision, T0)).unwrap().records;
    assert!(matches!(told.as_slice(), [gone] if gone.text.is_empty() && gone.key.is_none()));
    assert!(block_on(one.history(&ours(), record.id)).unwrap().iter().all(|version| version.text.is_empty()));
    assert_eq!(block_on(pending(&one, T0)), [ChunkId([1; 32])]);
    block_on(one.delete_namespace(&ours())).unwrap();
    assert!(block_on(other.changes(&ours(), seen.revision, T0)).unwrap().deleted);
}

#[test]
fn a_key_and_a_text_that_eight_threads_add_at_once_stand_once() {
    let Some(server) = postgres_server::shared() else { return };
    let (one, other, _) = two(server);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let ledger = if thread % 2 == 0 { &one } else { &other };
                scope.spawn(move || {
                    let keyed = |round| NewRecord::new(format!("{thread} {round}")).key("home");
                    let new = |round| [keyed(round), NewRecord::new(format!("everybody's {round}"))];
                    let added = |round| block_on(ledger.add(&ours(), &new(round), T0)).unwrap();
                    (0..5).flat_map(|round| added(round).into_iter().map(|added| added.outcome)).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count();
    // Of 40 texts under the key the first is new and each other supersedes one; of 40 others, 5 are new.
    assert_eq!(count(|outcome| matches!(outcome, Outcome::Superseded(_))), 39);
    assert_eq!(count(|outcome| *outcome == Outcome::New), 6);
    let all = block_on(one.list(&ours(), Query::All)).unwrap();
    let keyed = all.iter().filter(|record| record.key.is_some());
    assert_eq!(keyed.filter(|record| record.state == State::Active).count(), 1);
    // Each was superseded by another, so they form one line.
    let by: BTreeSet<RecordId> = outcomes
        .iter()
        .filter_map(|outcome| if let Outcome::Superseded(id) = outcome { Some(*id) } else { None })
        .collect();
    assert_eq!(by.len(), 39);
}

#[test]
fn a_reader_of_changes_misses_none() {
    let Some(server) = postgres_server::shared() else { return };
    let (one, other, _) = two(server);
    let writing = AtomicBool::new(true);
    let (mut seen, mut told) = (Revision(0), BTreeMap::new());
    thread::scope(|scope| {
        let writers: Vec<_> = (0..6)
            .map(|thread| {
                let ledger = if thread % 2 == 0 { &one } else { &other };
                scope.spawn(move || {
                    for round in 0..20 {
                        let id = add(ledger, format!("{thread} {round}")).id;
                        match round % 4 {
                            1 => drop(block_on(ledger.update(&ours(), id, &format!("{thread} {round} again"), T0))),
                            2 => drop(block_on(ledger.forget(&ours(), id, T0))),
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            // Until after the last writer has ended, so that only what was missed before is missing.
            let mut last = false;
            while !last {
                last = !writing.load(Ordering::SeqCst);
                let changes = block_on(other.changes(&ours(), seen, T0)).unwrap();
                assert!(changes.revision >= seen && !changes.deleted);
                seen = changes.revision;
                told.extend(changes.records.into_iter().map(|record| (record.id, record)));
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        writing.store(false, Ordering::SeqCst);
        reader.join().unwrap();
    });
    let all = block_on(one.list(&ours(), Query::All)).unwrap();
    assert_eq!(all.len(), 120);
    assert_eq!(told, all.into_iter().map(|record| (record.id, record)).collect());
}

#[test]
fn a_row_that_was_changed_by_hand_is_damaged() {
    let Some(server) = postgres_server::shared() else { return };
    let changes = [
        "UPDATE version SET text = 'Lima'",
        "UPDATE version SET from_at = from_at + 1",
        "UPDATE version SET checksum = checksum + 1",
        "UPDATE version SET number = 2; UPDATE record SET version = 2",
        "DELETE FROM version",
        "UPDATE record SET key = 'work'",
        "UPDATE record SET state = 1",
        "UPDATE record SET state = 7",
        "UPDATE record SET created_at = created_at - 1, expires_at = NULL",
        "UPDATE record SET expires_at = NULL",
        "UPDATE record SET metadata = NULL",
        "UPDATE record SET metadata = '{}'",
        "UPDATE namespace SET hash = sha256('ours'), name = 'ours'; UPDATE namespace SET hash = '\\x{ours}'",
    ];
    let theirs: String =
        blake3::hash(ours().as_str().as_bytes()).as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    for change in changes {
        let schema = server.new_schema();
        let ledger = connect(server, &schema);
        let metadata = [("source", "mail")].into_iter().collect();
        let new = NewRecord::new("Vienna").key("home").metadata(metadata).expires_at(Timestamp(T0.0 + 1000));
        // The last change moves a record from another namespace into this one.
        let from = Namespace::new(if change.contains("{ours}") { "theirs" } else { "ours" }).unwrap();
        let record = block_on(ledger.add(&from, &[new], T0)).unwrap().remove(0).record;
        server.sql(&format!("SET search_path TO {schema}; {}", change.replace("{ours}", &theirs)));
        for read in [
            block_on(ledger.get(&ours(), record.id, T0)).map(drop),
            block_on(ledger.list(&ours(), Query::All)).map(drop),
            block_on(ledger.changes(&ours(), Revision(0), T0)).map(drop),
            block_on(ledger.history(&ours(), record.id)).map(drop),
        ] {
            assert!(matches!(cause(read), PostgresError::Damaged { .. }), "{change}");
        }
        // It can be forgotten by itself, and is sound then.
        let kept = add(&ledger, "tea");
        let chunks = [ChunkId([1; 32]), ChunkId([2; 32])];
        server.sql(&format!(
            "SET search_path TO {schema}; INSERT INTO link (chunk, namespace, record) SELECT decode(repeat('01', 32), 'hex'), \
             namespace, seq FROM record WHERE id <> '\\x{}'",
            kept.id.to_bytes().map(|byte| format!("{byte:02x}")).concat()
        ));
        block_on(ledger.link(&ours(), &[(kept.id, chunks[1])], T0)).unwrap();
        let forgotten = block_on(ledger.forget(&ours(), record.id, T0)).expect(change);
        assert!(matches!(forgotten.state, State::Forgotten { .. }) && forgotten.text.is_empty(), "{change}");
        assert_eq!((forgotten.key, forgotten.metadata), (None, Metadata::default()), "{change}");
        assert_eq!(block_on(pending(&ledger, T0)), chunks[..1], "{change}");
        assert_eq!(block_on(ledger.changes(&ours(), Revision(0), T0)).unwrap().records.len(), 2, "{change}");
        let texts = block_on(ledger.history(&ours(), record.id)).unwrap();
        assert!(texts.iter().all(|version| version.text.is_empty()), "{change}");
        assert_eq!(block_on(ledger.get(&ours(), kept.id, T0)).unwrap(), kept, "{change}");
    }
}

#[test]
fn a_record_whose_earlier_text_is_damaged_can_be_forgotten_with_others() {
    let Some(server) = postgres_server::shared() else { return };
    let damages = [
        "UPDATE version SET text = 'Lima' WHERE number = 1 AND text = 'Vienna'",
        "UPDATE version SET until_at = NULL WHERE number = 1 AND text = 'Vienna'",
    ];
    for damage in damages {
        let schema = server.new_schema();
        let ledger = connect(server, &schema);
        let [record, other] = ["Vienna", "tea"].map(|text| add(&ledger, text));
        let kept = add(&ledger, "milk");
        block_on(ledger.update(&ours(), record.id, "Oslo", T0)).unwrap();
        server.sql(&format!("SET search_path TO {schema}; {damage}"));
        assert!(matches!(cause(block_on(ledger.history(&ours(), record.id))), PostgresError::Damaged { .. }));
        // Twice the same, as a caller may name it.
        let ids = [other.id, record.id, record.id];
        let forgotten = block_on(ledger.forget_many(&ours(), &ids, T0)).expect(damage);
        assert!(forgotten.iter().all(|record| matches!(record.state, State::Forgotten { .. })), "{damage}");
        for id in ids {
            let texts = block_on(ledger.history(&ours(), id)).unwrap();
            assert!(texts.iter().all(|version| version.text.is_empty()), "{damage}");
        }
        let left = server.sql(&format!("SELECT text FROM {schema}.version WHERE text <> ''"));
        assert_eq!(left, format!("\\x{}", "milk".bytes().map(|byte| format!("{byte:02x}")).collect::<String>()));
        assert_eq!(block_on(ledger.get(&ours(), kept.id, T0)).unwrap(), kept, "{damage}");
    }
}

#[test]
fn a_ledger_of_version_1_is_brought_up_to_date() {
    let Some(server) = postgres_server::shared() else { return };
    let schema = server.new_schema();
    let record = {
        let ledger = connect(server, &schema);
        let [gone, record] = ["Lima", "Vienna"].map(|text| add(&ledger, text));
        block_on(ledger.link(&ours(), &[(gone.id, ChunkId([1; 32])), (record.id, ChunkId([2; 32]))], T0)).unwrap();
        block_on(ledger.forget(&ours(), gone.id, T0)).unwrap();
        record
    };
    // As version 1 was: its deletions had no numbers.
    let back = "ALTER TABLE pending_deletion DROP COLUMN number; UPDATE amem_ledger SET version = 1";
    server.sql(&format!("SET search_path TO {schema}; {back}"));
    let ledger = connect(server, &schema);
    assert_eq!(block_on(pending(&ledger, T0)), [ChunkId([1; 32])]);
    block_on(ledger.forget(&ours(), record.id, T0)).unwrap();
    block_on(confirm(&ledger, &[ChunkId([1; 32])], T0)).unwrap();
    assert_eq!(block_on(pending(&ledger, T0)), [ChunkId([2; 32])]);
}

#[test]
fn a_later_schema_and_a_schema_of_something_else_are_refused() {
    let Some(server) = postgres_server::shared() else { return };
    let refused = |schema: &str| {
        block_on(PostgresLedger::connect_with(&server.address(), in_schema(schema))).expect_err("it is refused")
    };
    let schema = server.new_schema();
    let ledger = connect(server, &schema);
    add(&ledger, "Vienna");
    server.sql(&format!("UPDATE {schema}.amem_ledger SET version = 9"));
    assert!(matches!(refused(&schema), PostgresError::NewerSchema { found: 9, supported: 2, .. }));
    let write = block_on(ledger.add(&ours(), &["Lima".into()], T0));
    let error = cause(write);
    assert!(matches!(error, PostgresError::NewerSchema { found: 9, .. }), "one that was connected before: {error}");
    // Neither do those that change no namespace's records.
    let used = UsageEvent::new(ours(), T0, Amounts::default());
    let nobody = Namespace::new("nobody").unwrap();
    let changes = [
        ("confirm", block_on(ledger.confirm_deleted(&[PendingDeletion { chunk: ChunkId([1; 32]), number: 1 }], T0))),
        ("record usage", block_on(ledger.record_usage(&[used]))),
        ("remove a store", block_on(ledger.remove_store("gone"))),
        ("delete", block_on(ledger.delete_namespace(&nobody)).map(drop)),
    ];
    for (change, changed) in changes {
        let error = cause(changed);
        assert!(matches!(error, PostgresError::NewerSchema { found: 9, .. }), "{change}: {error}");
    }
    server.sql(&format!("UPDATE {schema}.amem_ledger SET version = 1, application = 'other'"));
    assert!(matches!(refused(&schema), PostgresError::NotALedger { .. }));
    let schema = server.new_schema();
    server.sql(&format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.record (seq bigint)"));
    assert!(matches!(refused(&schema), PostgresError::NotALedger { .. }));
    for bad in ["", "Amem", "1st", "a\"b", "pg_mine", "a b"] {
        assert!(matches!(refused(bad), PostgresError::BadOption { option: "schema", .. }), "{bad}");
    }
}

#[test]
fn servers_that_start_at_once_make_one_ledger() {
    let Some(server) = postgres_server::shared() else { return };
    let schema = server.new_schema();
    let ledgers: Vec<PostgresLedger> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| connect(server, &schema))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    add(&ledgers[0], "Vienna");
    assert!(ledgers.iter().all(|ledger| texts(ledger) == ["Vienna"]));
}

#[test]
fn each_store_is_told_of_deletions_until_it_has_confirmed_them() {
    let Some(server) = postgres_server::shared() else { return };
    let schema = server.new_schema();
    let [one, other, reader] = ["one", "other", ""].map(|store| {
        let mut options = in_schema(&schema);
        options.store = store.to_owned();
        block_on(PostgresLedger::connect_with(&server.address(), options)).unwrap()
    });
    let (record, chunks) = (add(&one, "Vienna"), [ChunkId([1; 32]), ChunkId([2; 32])]);
    // The other one may have found their KV where all look for it.
    block_on(one.link(&ours(), &chunks.map(|chunk| (record.id, chunk)), T0)).unwrap();
    block_on(one.forget(&ours(), record.id, T0)).unwrap();
    let pending = |ledger: &PostgresLedger| block_on(pending(ledger, T0));
    assert_eq!((pending(&one), pending(&other)), (chunks.to_vec(), chunks.to_vec()));
    assert!(pending(&reader).is_empty(), "who has no name and linked nothing keeps nothing");
    block_on(confirm(&one, &chunks, T0)).unwrap();
    assert_eq!((pending(&one), pending(&other)), (Vec::new(), chunks.to_vec()));
    // What expires is pending without a call, in each store.
    let brief = add(&one, NewRecord::new("tired").expires_at(Timestamp(T0.0 + 1000)));
    block_on(one.link(&ours(), &[(brief.id, ChunkId([3; 32]))], T0)).unwrap();
    block_on(confirm(&other, &chunks, T0)).unwrap();
    let later = Timestamp(T0.0 + 1000);
    for (ledger, expected) in [(&one, vec![ChunkId([3; 32])]), (&other, vec![ChunkId([3; 32])]), (&other, vec![])] {
        assert_eq!(block_on(self::pending(ledger, later)), expected);
        block_on(confirm(ledger, &expected, later)).unwrap();
    }
    block_on(one.link(&ours(), &[(record.id, chunks[0])], T0)).unwrap();
    assert_eq!(pending(&other), [chunks[0]]);
    block_on(one.remove_store("other")).unwrap();
    assert!(pending(&other).is_empty());
}

#[test]
fn a_ledger_that_was_set_back_is_read_anew() {
    let Some(server) = postgres_server::shared() else { return };
    let (ledger, _, schema) = two(server);
    let first = add(&ledger, "Vienna");
    add(&ledger, "Lima");
    let seen = block_on(ledger.changes(&ours(), Revision(0), T0)).unwrap();
    assert_eq!(seen.records.len(), 2);
    // As it was before the second text.
    let back = "DELETE FROM record WHERE seq = 2; DELETE FROM version WHERE record = 2; \
                UPDATE namespace SET records = 1, changes = 1";
    server.sql(&format!("SET search_path TO {schema}; {back}"));
    let changes = block_on(ledger.changes(&ours(), seen.revision, T0)).unwrap();
    assert!(changes.deleted && changes.records == [first] && changes.revision < seen.revision);
    assert!(!block_on(ledger.changes(&ours(), changes.revision, T0)).unwrap().deleted);
}

#[test]
fn what_was_forgotten_is_in_no_file_of_the_tables_once_wiped() {
    // Its own: what another test's transaction may still see is not wiped.
    let Some(server) = postgres_server::start("-c fsync=off -c full_page_writes=off") else { return };
    let schema = server.new_schema();
    let ledger = connect(&server, &schema);
    let secret = |n: usize| format!("{schema}-secret-{n:03}");
    let keyed = |n| NewRecord::new(secret(n)).key(format!("{}-key", secret(n)));
    let records = block_on(ledger.add(&ours(), &(0..40).map(keyed).collect::<Vec<_>>(), T0)).unwrap();
    let second = records[1].record.id;
    block_on(ledger.update(&ours(), second, &secret(100), T0)).unwrap();
    let revision = block_on(ledger.changes(&ours(), Revision(0), T0)).unwrap().revision;
    let index = SavedIndex { revision, bytes: format!("{}-index", secret(1)).into_bytes() };
    assert!(block_on(ledger.save_index(&ours(), "words", &index)).unwrap());
    // Statistics and files as they are in use.
    server.sql("ANALYZE; CHECKPOINT");
    assert!(files_contain(&server.tables(), secret(1).as_bytes()));
    let odd: Vec<RecordId> = records.iter().skip(1).step_by(2).map(|added| added.record.id).collect();
    block_on(ledger.forget_many(&ours(), &odd, T0)).unwrap();
    block_on(ledger.wipe()).unwrap();
    server.sql("CHECKPOINT");
    for n in (1..40).step_by(2).chain([100]) {
        assert!(!files_contain(&server.tables(), secret(n).as_bytes()), "secret {n} is in a file");
    }
    assert!(files_contain(&server.tables(), secret(2).as_bytes()), "the others are there");
    let statistics =
        format!("SELECT count(*) FROM pg_stats WHERE schemaname = '{schema}' AND attname IN ('text', 'key', 'bytes')");
    assert_eq!(server.sql(&statistics), "0");
}

#[test]
fn a_server_that_was_killed_is_an_error_and_then_used_again() {
    let Some(server) = postgres_server::start("") else { return };
    let schema = server.new_schema();
    let (ledger, other) = (connect(&server, &schema), connect(&server, &schema));
    add(&ledger, "Vienna");
    add(&other, "Lima");
    server.kill();
    let down = cause(block_on(ledger.add(&ours(), &["Oslo".into()], T0)));
    assert!(matches!(down, PostgresError::Unreachable { .. } | PostgresError::Lost { .. }), "{down}");
    server.start_again("");
    assert_eq!(texts(&ledger), ["Vienna", "Lima"], "what was remembered is there");
    assert_eq!(block_on(other.add(&ours(), &["Oslo".into()], T0)).unwrap()[0].outcome, Outcome::New);
    assert_eq!(texts(&ledger), ["Vienna", "Lima", "Oslo"]);
}

const PASS: u8 = 0;
/// The connection ends instead of the next commit.
const CUT_BEFORE_COMMIT: u8 = 1;
/// The connection ends instead of the next commit's answer.
const CUT_AFTER_COMMIT: u8 = 2;

/// A port behind which the server is, until the next commit.
fn proxy(server: &Server) -> (u16, Arc<AtomicU8>) {
    let (listener, port) = (TcpListener::bind("127.0.0.1:0").unwrap(), server.port);
    let (own_port, mode) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU8::new(PASS)));
    let modes = mode.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", port)).unwrap());
            let (mut answers, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let (mode, cut) = (modes.clone(), Arc::new(AtomicBool::new(false)));
            let is_cut = cut.clone();
            thread::spawn(move || {
                let mut buffer = [0; 1 << 16];
                while let Ok(count @ 1..) = answers.read(&mut buffer) {
                    if is_cut.load(Ordering::SeqCst) || to_client.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = to_client.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                let mut buffer = [0; 1 << 16];
                while let Ok(count @ 1..) = client.read(&mut buffer) {
                    let is_commit = buffer[..count].windows(7).any(|part| part == b"COMMIT\0");
                    let mode = if is_commit { mode.swap(PASS, Ordering::SeqCst) } else { PASS };
                    cut.store(mode == CUT_AFTER_COMMIT, Ordering::SeqCst);
                    if mode == CUT_BEFORE_COMMIT || server.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = server.shutdown(Shutdown::Both);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    (own_port, mode)
}

#[test]
fn a_commit_whose_answer_is_lost_is_found_out() {
    let Some(server) = postgres_server::shared() else { return };
    let (port, mode) = proxy(server);
    let schema = server.new_schema();
    let address = format!("postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let ledger = block_on(PostgresLedger::connect_with(&address, in_schema(&schema))).unwrap();
    add(&ledger, "first");
    for (cut, text) in [(CUT_BEFORE_COMMIT, "not committed at first"), (CUT_AFTER_COMMIT, "committed at once")] {
        mode.store(cut, Ordering::SeqCst);
        let added = block_on(ledger.add(&ours(), &[text.into()], T0)).unwrap().remove(0);
        assert_eq!(mode.load(Ordering::SeqCst), PASS, "the connection was cut");
        assert_eq!(added.outcome, Outcome::New);
        assert_eq!(block_on(ledger.get(&ours(), added.record.id, T0)).unwrap(), added.record);
    }
    assert_eq!(texts(&ledger), ["first", "not committed at first", "committed at once"]);
}

#[test]
fn a_server_that_does_not_answer_is_an_error() {
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("postgresql://amem@127.0.0.1:{}/amem", silent.local_addr().unwrap().port());
    let mut options = PostgresOptions::default();
    options.connect_timeout = Duration::from_millis(100);
    let error = block_on(PostgresLedger::connect_with(&address, options)).expect_err("nobody answers");
    assert!(matches!(error, PostgresError::Unreachable { .. }), "{error}");
}

/// Somebody's transaction that holds locks in a schema.
struct Holder<'s> {
    server: &'s Server,
    schema: &'s str,
    psql: Child,
}

impl<'s> Holder<'s> {
    /// Begins one with a statement that names the schema.
    fn of(server: &'s Server, schema: &'s str, statement: &str) -> Self {
        let hold = format!("BEGIN; {statement}; SELECT pg_sleep(600)");
        let psql = server.psql(&hold).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let asleep =
            format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%{schema}.%'");
        while server.sql(&asleep) != "1" {
            thread::sleep(Duration::from_millis(20));
        }
        Self { server, schema, psql }
    }

    fn end(mut self) {
        self.psql.kill().unwrap();
        self.psql.wait().unwrap();
        let end = format!(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE query LIKE '%{}.%' AND pid <> pg_backend_pid()",
            self.schema
        );
        self.server.sql(&end);
    }
}

#[test]
fn a_change_waits_for_others_no_longer_than_allowed() {
    let Some(server) = postgres_server::shared() else { return };
    let schema = server.new_schema();
    let mut options = in_schema(&schema);
    options.lock_timeout = Duration::from_millis(100);
    let ledger = block_on(PostgresLedger::connect_with(&server.address(), options)).unwrap();
    add(&ledger, "Vienna");
    let holder = Holder::of(server, &schema, &format!("SELECT id FROM {schema}.namespace FOR UPDATE"));
    let late = cause(block_on(ledger.add(&ours(), &["Lima".into()], T0)));
    assert!(matches!(late, PostgresError::Timeout { .. }), "{late}");
    assert_eq!(texts(&ledger), ["Vienna"], "who reads waits for nobody");
    let other = Namespace::new("another").unwrap();
    block_on(ledger.add(&other, &["Oslo".into()], T0)).expect("another namespace is not locked");
    holder.end();
    add(&ledger, "Lima");
}

#[test]
fn while_a_table_is_written_anew_a_change_waits_as_long_as_for_others_and_a_read_for_longer() {
    let Some(server) = postgres_server::shared() else { return };
    let schema = server.new_schema();
    let mut options = in_schema(&schema);
    options.lock_timeout = Duration::from_millis(100);
    let ledger = block_on(PostgresLedger::connect_with(&server.address(), options)).unwrap();
    add(&ledger, "Vienna");
    // As VACUUM FULL does.
    let lock = format!("LOCK TABLE {schema}.version IN ACCESS EXCLUSIVE MODE");
    let holder = Holder::of(server, &schema, &lock);
    thread::scope(|scope| {
        let read = scope.spawn(|| texts(&ledger));
        let late = cause(block_on(ledger.add(&ours(), &["Lima".into()], T0)));
        assert!(matches!(late, PostgresError::Timeout { .. }), "{late}");
        let late = block_on(ledger.wipe()).expect_err("somebody uses a table");
        assert!(matches!(late, PostgresError::Timeout { .. }), "{late}");
        holder.end();
        assert_eq!(read.join().unwrap(), ["Vienna"]);
    });
}

#[test]
fn no_password_is_in_what_is_printed() {
    let Some(server) = postgres_server::shared() else { return };
    let ((user, password), port) = (USER_WITH_PASSWORD, server.port);
    let encoded = password.replace('/', "%2F").replace('@', "%40");
    let schema = server.new_schema();
    let connect = |address: &str| block_on(PostgresLedger::connect_with(address, in_schema(&schema)));
    let sound = format!("postgresql://{user}:{encoded}@127.0.0.1:{port}/postgres?sslmode=disable");
    let ledger = connect(&sound).expect("the password is right");
    let mut printed = vec![format!("{ledger:?}")];
    let wrong = [
        sound.replace("sesame", "sesame!"),
        sound.replace("/postgres", "/none"),
        sound.replace(&port.to_string(), "1"),
        sound.replace(&port.to_string(), "sesame"),
        sound.replace(&encoded, password),
        sound.replace("sslmode=disable", "sslmode=sesame"),
        format!("host=127.0.0.1 user={user} password={password} sesame=1 port=1"),
        "password = 'sesame".to_owned(),
        "postgresql://guarded:sesame@open/now@127.0.0.1/postgres".to_owned(),
        "sesame".to_owned(),
    ];
    for address in wrong {
        let error = connect(&address).expect_err(&address);
        printed.extend([error.to_string(), format!("{error:?}"), Error::from(error).to_string()]);
    }
    for text in printed {
        assert!(!["sesame", "open", "now"].iter().any(|part| text.replace("unknown", "").contains(part)), "{text}");
    }
}

#[test]
fn a_server_is_trusted_by_its_certificate() {
    let Some(server) = postgres_server::shared() else { return };
    let schema = server.new_schema();
    let address = |mode: &str| {
        let name = format!("{schema}_{mode}");
        format!("postgresql://postgres@127.0.0.1:{}/postgres?{mode}&application_name={name}", server.port)
    };
    for mode in ["sslmode=require", "sslmode=prefer"] {
        let refused = block_on(PostgresLedger::connect_with(&address(mode), in_schema(&schema)));
        let error = refused.expect_err("nobody vouches for it").to_string();
        assert!(error.contains("certificate"), "{error}");
    }
    let mut options = in_schema(&schema);
    options.root_certificates = Some(server.certificate());
    let ledger = block_on(PostgresLedger::connect_with(&address("sslmode=require"), options.clone())).unwrap();
    add(&ledger, "Vienna");
    let encrypted = format!(
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE '{schema}%'"
    );
    assert_eq!(server.sql(&encrypted), "t");
    options.root_certificates = Some(server.tables().join("none.pem"));
    let missing = block_on(PostgresLedger::connect_with(&address("sslmode=require"), options));
    assert!(matches!(missing, Err(PostgresError::BadOption { option: "root_certificates", .. })));
}

#[test]
fn it_works_on_the_executor_of_tokio_too() {
    let Some(server) = postgres_server::shared() else { return };
    let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio.block_on(async {
        let options = in_schema(&server.new_schema());
        let ledger = PostgresLedger::connect_with(&server.address(), options).await.unwrap();
        ledger.add(&ours(), &["Vienna".into()], T0).await.unwrap();
        // Its own threads end without a word of protest from this executor.
        drop(ledger);
    });
}

#[test]
#[ignore = "prints figures"]
fn figures_of_the_ledger() {
    let Some(server) = postgres_server::start("") else { return };
    let dir = tempfile::tempdir().unwrap();
    let sqlite = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
    println!("SQLite");
    print_figures(&sqlite);
    println!("PostgreSQL by its socket");
    print_figures(&connect(&server, "by_socket"));
    let address = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", server.port);
    println!("PostgreSQL by TCP");
    print_figures(&block_on(PostgresLedger::connect_with(&address, in_schema("by_tcp"))).unwrap());
}

fn print_figures(ledger: &impl Ledger) {
    let text = |n: usize| NewRecord::from(format!("memory {n}: {}", "some words of it ".repeat(12)));
    let median = |what: &str, mut work: Box<dyn FnMut(usize) + '_>| {
        let mut times: Vec<Duration> = (0..101)
            .map(|n| {
                let begun = Instant::now();
                work(n);
                begun.elapsed()
            })
            .collect();
        times.sort();
        println!("  {what}: median {:.2?}, 90 % below {:.2?}", times[50], times[90]);
    };
    let write = |texts: &[NewRecord]| drop(block_on(ledger.add(&ours(), texts, T0)).unwrap());
    write(&(0..10_000).map(text).collect::<Vec<_>>());
    median("remember one text", Box::new(|n| write(&[text(20_000 + n)])));
    median(
        "remember 100 texts",
        Box::new(|n| write(&(0..100).map(|m| text(100_000 + 100 * n + m)).collect::<Vec<_>>())),
    );
    let revision = block_on(ledger.changes(&ours(), Revision(0), T0)).unwrap().revision;
    median("see that nothing changed", Box::new(|_| drop(block_on(ledger.changes(&ours(), revision, T0)).unwrap())));
    let before = Revision(revision.0 - 100);
    median("read 100 changes", Box::new(|_| drop(block_on(ledger.changes(&ours(), before, T0)).unwrap())));
    let listed = block_on(ledger.page(&ours(), &Listing::new(Query::All).limit(200))).unwrap().records;
    median("get one", Box::new(|n| drop(block_on(ledger.get(&ours(), listed[n].id, T0)).unwrap())));
    median("forget one", Box::new(|n| drop(block_on(ledger.forget(&ours(), listed[n].id, T0)).unwrap())));
}
