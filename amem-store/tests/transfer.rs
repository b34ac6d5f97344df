//! Records leave a ledger as lines and come back from them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "common/counts_each.rs"]
mod counts_each;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use amem_core::{
    Change, Ledger, MetaValue, Metadata, Namespace, NewRecord, Outcome, Query, RamLedger, Record, State, Timestamp,
};
use amem_store::{
    Became, Export, Imported, ImportedLine, MAX_LINE_BYTES, ReferenceFile, SqliteLedger, TransferError, export, import,
    import_checked, import_reference, import_reference_log,
};
use counts_each::CountsEach;
use futures_lite::future::block_on;
use proptest::prelude::*;

const T0: Timestamp = Timestamp(1_000_000_000_000);

fn ours() -> Namespace {
    Namespace::new("ours").unwrap()
}

fn exported(ledger: &dyn Ledger, what: &Export) -> String {
    let mut out = Vec::new();
    let written = block_on(export(ledger, what, &mut out, |_| {})).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert_eq!(out.lines().count() as u64, written);
    out
}

/// Imports lines and says what became of them, in the order of the lines.
fn imported(ledger: &dyn Ledger, namespace: Option<&Namespace>, input: &[u8]) -> (Imported, Vec<ImportedLine>) {
    let mut told = Vec::new();
    let imported = block_on(import(ledger, namespace, input, |line| told.push(line.clone()))).unwrap();
    told.sort_by_key(|line| line.line);
    (imported, told)
}

#[test]
fn a_line_is_refused_that_the_caller_has_a_reason_against() {
    let ledger = RamLedger::default();
    let lines = b"{\"text\":\"short\"}\n{\"text\":\"too long\"}\n{\"text\":\"brief\"}\n";
    let check = |new: &NewRecord| if new.text.len() > 5 { Err(format!("{} bytes", new.text.len())) } else { Ok(()) };
    let mut refused = Vec::new();
    let told = |line: &ImportedLine| {
        if let Became::Refused { reason } = &line.became {
            refused.push((line.line, reason.clone()));
        }
    };
    let imported = block_on(import_checked(&ledger, Some(&ours()), &lines[..], check, told)).unwrap();
    assert_eq!((imported.added, imported.refused), (2, 1));
    assert_eq!(refused, [(2, "8 bytes".to_owned())]);
}

#[test]
fn lines_of_namespaces_in_turn_have_each_of_them_listed_once() {
    let ledger = CountsEach::default();
    let line = |n: usize| {
        let (namespace, text) = (n % 3, n / 6);
        format!(
            "{{\"namespace\":\"n{namespace}\",\"text\":\"{text}\",\"key\":\"k\",\"created_at\":{}}}\n",
            1_000_000_000 + text
        )
    };
    // Each line is there twice, in turn with those of other namespaces, and one again when others have taken its place.
    let lines: String = (0..60).chain([0]).map(line).collect();
    let pages = || {
        let before = ledger.pages.load(Relaxed);
        let (imported, _) = imported(&ledger, None, lines.as_bytes());
        (imported.added + imported.superseding, ledger.pages.load(Relaxed) - before)
    };
    assert_eq!(pages(), (30, 3));
    assert_eq!(pages(), (0, 3), "all of them are recognised");
}

fn active(ledger: &dyn Ledger, namespace: &Namespace) -> Vec<Record> {
    block_on(ledger.list(namespace, Query::At(Timestamp::now()))).unwrap()
}

fn texts(ledger: &dyn Ledger, namespace: &Namespace) -> Vec<String> {
    active(ledger, namespace).into_iter().map(|record| record.text).collect()
}

/// All of a record but its id, which does not travel.
fn content(record: Record) -> (Namespace, String, Option<String>, Metadata, [Timestamp; 2], Option<Timestamp>) {
    let Record { namespace, text, key, metadata, created_at, updated_at, expires_at, .. } = record;
    (namespace, text, key, metadata, [created_at, updated_at], expires_at)
}

fn meta_value() -> impl Strategy<Value = MetaValue> {
    let number =
        prop_oneof![any::<f64>().prop_filter("finite", |n| n.is_finite()), (-1000..1000i32).prop_map(f64::from)];
    prop_oneof![
        Just(MetaValue::Null),
        any::<bool>().prop_map(MetaValue::Bool),
        number.prop_map(MetaValue::Number),
        any::<String>().prop_map(MetaValue::Text),
    ]
}

fn new_record() -> impl Strategy<Value = NewRecord> {
    let metadata = prop::collection::btree_map("\\PC{1,8}", meta_value(), 0..4);
    // From 1938 to the moment, and from 2065 on.
    let created = prop::option::of(-1_000_000_000_000..1_000_000_000_000i64);
    let updated = prop::option::of(-1_000_000_000_000..1_000_000_000_000i64);
    let expires = prop::option::of(3_000_000_000_000..100_000_000_000_000i64);
    let text = any::<String>().prop_filter("says something", |text| !text.trim().is_empty());
    (text, prop::option::of(prop_oneof!["[ab]", any::<String>()]), metadata, created, updated, expires).prop_map(
        |(text, key, metadata, created, updated, expires)| {
            let mut new = NewRecord::new(text).metadata(metadata.into_iter().collect());
            (new.key, new.created_at, new.expires_at) = (key, created.map(Timestamp), expires.map(Timestamp));
            new.updated_at = updated.map(Timestamp);
            new
        },
    )
}

/// Fills a ledger, and checks that an export of it makes another one that holds the same, and that doing it twice changes
/// nothing.
fn travels(from: &dyn Ledger, to: &dyn Ledger, records: &[(bool, NewRecord)]) -> Result<(), TestCaseError> {
    let [ours, theirs] = ["ours", "their\" own"].map(|name| Namespace::new(name).unwrap());
    for (is_ours, new) in records {
        let namespace = if *is_ours { &ours } else { &theirs };
        block_on(from.add(namespace, std::slice::from_ref(new), Timestamp::now())).unwrap();
    }
    let lines = exported(from, &Export::all());
    for round in 0..2 {
        let (imported, told) = imported(to, None, lines.as_bytes());
        let known = if round == 0 { 0 } else { imported.lines() };
        prop_assert_eq!((imported.duplicates, imported.refused, imported.left_out), (known, 0, 0), "{:?}", told);
        for namespace in [&ours, &theirs] {
            let [before, after] = [from, to].map(|ledger| active(ledger, namespace).into_iter().map(content));
            prop_assert_eq!(before.collect::<Vec<_>>(), after.collect::<Vec<_>>());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_counts_comes_back_from_an_export(records in prop::collection::vec((any::<bool>(), new_record()), 0..12)) {
        travels(&RamLedger::new(), &RamLedger::new(), &records)?;
    }

    #[test]
    fn any_bytes_are_lines_that_are_told_once(
        input in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            prop::collection::vec(prop::sample::select(&b"{}[]\",:\\0123456789.eE+-truefalsnl\n textkyid"[..]), 0..200),
        ],
    ) {
        let ledger = RamLedger::new();
        let (imported, told) = imported(&ledger, Some(&ours()), &input);
        let mut told: Vec<u64> = told.iter().map(|line| line.line).collect();
        let lines = input.split(|byte| *byte == b'\n').enumerate();
        let blank = |line: &[u8]| line.trim_ascii().is_empty();
        let expected: Vec<u64> = lines.filter(|(_, line)| !blank(line)).map(|(at, _)| at as u64 + 1).collect();
        told.sort_unstable();
        prop_assert_eq!(told, expected);
        prop_assert_eq!(active(&ledger, &ours()).len() as u64, imported.added);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn what_counts_comes_back_from_an_export_of_a_ledger_on_disk(
        records in prop::collection::vec((any::<bool>(), new_record()), 0..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| SqliteLedger::open(dir.path().join(name)).unwrap());
        travels(&from, &to, &records)?;
    }
}

#[test]
fn an_export_goes_on_behind_its_first_page() {
    let ledger = RamLedger::new();
    let all: Vec<NewRecord> = (0..600).map(|n| NewRecord::new(format!("note {n}"))).collect();
    block_on(ledger.add(&ours(), &all, T0)).unwrap();
    let (mut out, mut progress) = (Vec::new(), Vec::new());
    let written = block_on(export(&ledger, &Export::all().namespace(ours()), &mut out, |n| progress.push(n))).unwrap();
    assert_eq!((written, progress.last()), (600, Some(&600)));
    assert!(progress.is_sorted() && progress.len() > 1);
    let other = RamLedger::new();
    imported(&other, Some(&ours()), &out);
    assert_eq!(texts(&other, &ours()), all.into_iter().map(|new| new.text).collect::<Vec<_>>());
}

#[test]
fn an_export_of_all_states_says_how_records_ended_and_adds_only_those_that_count() {
    let ledger = RamLedger::new();
    let keyed = |text: &str| NewRecord::new(text).key("home");
    let brief = NewRecord::new("brief").expires_at(T0.after(Duration::from_secs(1)));
    let added = block_on(ledger.add(&ours(), &[keyed("Vienna"), keyed("Lima"), brief, "a secret".into()], T0)).unwrap();
    block_on(ledger.forget(&ours(), added[3].record.id, T0)).unwrap();
    let lines = exported(&ledger, &Export::all().all_states());
    let read: Vec<BTreeMap<String, serde_json::Value>> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<_> = read.iter().map(|line| line["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["superseded", "active", "expired", "forgotten"]);
    assert_eq!(read[0]["superseded_by"], added[1].record.id.to_string());
    assert_eq!(read[2]["ended_at"], "2001-09-09T01:46:41.000Z");
    assert_eq!(read[3]["text"], "");
    let other = RamLedger::new();
    let (counts, _) = imported(&other, Some(&ours()), lines.as_bytes());
    assert_eq!((counts.added, counts.left_out), (1, 3));
    assert_eq!(texts(&other, &ours()), ["Lima"]);
}

#[test]
fn each_line_is_told_with_what_became_of_it() {
    let ledger = RamLedger::new();
    let lines = br#"{"text":"tea"}
{"text":" tea ","unknown":{"deep":[[[]]]},"id":7}

{"text":"Vienna","key":"home"}
{"text":"Lima","key":"home","state":"active","metadata":null,"expires_at":null}
{"text":"  "}
{"key":"home"}
["tea"]
{"text":"x","metadata":{"a":[1]}}
{"text":"x","created_at":1e400}
{"text":"x","created_at":"soon"}
{"text":"x","state":"asleep"}
{"text":"x","text":"y"}
{"text":"\ud800"}
{"text":"old","expires_at":1000}
{"text":"torn"#;
    let lines = [&lines[..], b"\xff\"}"].concat();
    let (counts, told) = imported(&ledger, Some(&ours()), &lines);
    let became: Vec<(u64, &str)> = told
        .iter()
        .map(|line| {
            let became = match &line.became {
                Became::Held { outcome: Outcome::New, .. } => "added",
                Became::Held { outcome: Outcome::Duplicate, .. } => "duplicate",
                Became::Held { .. } => "superseding",
                Became::LeftOut { .. } => "left out",
                Became::Refused { .. } => "refused",
                _ => "other",
            };
            (line.line, became)
        })
        .collect();
    let mut expected = vec![(1, "added"), (2, "duplicate"), (4, "added"), (5, "superseding")];
    expected.extend((6..15).map(|line| (line, "refused")));
    expected.extend([(15, "left out"), (16, "refused")]);
    assert_eq!(became, expected);
    assert_eq!((counts.added, counts.duplicates, counts.superseding, counts.refused), (2, 1, 1, 10));
    assert_eq!(texts(&ledger, &ours()), ["tea", "Lima"]);
}

#[test]
fn a_torn_last_line_is_said_to_be_torn() {
    let whole = r#"{"text":"tea"}"#;
    for cut in 1..whole.len() {
        let ledger = RamLedger::new();
        let (_, told) = imported(&ledger, Some(&ours()), format!("{whole}\n{}", &whole[..cut]).as_bytes());
        let Became::Refused { reason } = &told[1].became else { panic!("{told:?}") };
        assert!(reason.contains("torn"), "{cut}: {reason}");
    }
    let (counts, _) = imported(&RamLedger::new(), Some(&ours()), whole.as_bytes());
    assert_eq!(counts.added, 1, "a whole line needs no end");
}

#[test]
fn a_line_beyond_the_bound_is_refused_and_the_next_is_read() {
    let long = format!("{{\"text\":\"{}\"}}\n{{\"text\":\"tea\"}}\n", "x".repeat(MAX_LINE_BYTES));
    let ledger = RamLedger::new();
    let (counts, told) = imported(&ledger, Some(&ours()), long.as_bytes());
    assert!(matches!(&told[0].became, Became::Refused { reason } if reason.contains("longer")), "{:?}", told[0]);
    assert_eq!((counts.refused, texts(&ledger, &ours())), (1, vec!["tea".to_owned()]));
}

#[test]
fn a_line_goes_where_it_says_unless_it_is_told_where() {
    let lines = br#"{"namespace":"a","text":"one"}
{"namespace":"b","text":"two"}
{"namespace":"","text":"three"}
{"text":"four"}
"#;
    let ledger = RamLedger::new();
    let (counts, told) = imported(&ledger, None, lines);
    assert_eq!((counts.added, counts.refused), (2, 2), "{told:?}");
    assert_eq!(texts(&ledger, &Namespace::new("a").unwrap()), ["one"]);
    assert_eq!(texts(&ledger, &Namespace::new("b").unwrap()), ["two"]);
    let (counts, _) = imported(&ledger, Some(&ours()), lines);
    assert_eq!((counts.added, texts(&ledger, &ours()).len()), (4, 4));
}

#[test]
fn importing_again_adds_nothing_where_later_lines_superseded_earlier_ones() {
    let line = |text: &str, second: u32| format!("{{\"text\":\"{text}\",\"key\":\"home\",\"created_at\":{second}}}\n");
    let lines = [line("Vienna", 1), line("Lima", 2), line("Vienna", 3)].concat();
    let ledger = RamLedger::new();
    let (first, _) = imported(&ledger, Some(&ours()), lines.as_bytes());
    assert_eq!((first.added, first.superseding), (1, 2));
    let before = block_on(ledger.list(&ours(), Query::All)).unwrap();
    let (again, _) = imported(&ledger, Some(&ours()), lines.as_bytes());
    assert_eq!((again.duplicates, again.lines()), (3, 3));
    assert_eq!(block_on(ledger.list(&ours(), Query::All)).unwrap(), before);
    let (newer, _) = imported(&ledger, Some(&ours()), line("Oslo", 4).as_bytes());
    assert_eq!((newer.superseding, texts(&ledger, &ours())), (1, vec!["Oslo".to_owned()]));
}

#[test]
fn importing_again_undoes_no_change_and_a_later_line_makes_one() {
    let ledger = RamLedger::new();
    let line = |source: &str, second: u32| {
        format!("{{\"text\":\"tea\",\"metadata\":{{\"source\":\"{source}\"}},\"created_at\":{second}}}\n")
    };
    let from = |source: &str| Metadata::from_iter([("source", source)]);
    imported(&ledger, Some(&ours()), line("mail", 1000).as_bytes());
    let id = block_on(ledger.list(&ours(), Query::All)).unwrap()[0].id;
    let change = Change::new().metadata(from("chat"));
    let changed = block_on(ledger.change(&ours(), id, &change, Timestamp::now())).unwrap();
    let (again, _) = imported(&ledger, Some(&ours()), line("mail", 1000).as_bytes());
    assert_eq!((again.duplicates, again.changed), (1, 0));
    assert_eq!(block_on(ledger.get(&ours(), id, Timestamp::now())).unwrap(), changed);
    let (later, _) = imported(&ledger, Some(&ours()), line("web", 2000).as_bytes());
    assert_eq!((later.changed, later.lines()), (1, 1));
    assert_eq!(block_on(ledger.get(&ours(), id, Timestamp::now())).unwrap().metadata, from("web"));
}

#[test]
fn an_older_line_of_a_key_does_not_take_a_newer_records_place() {
    let line = |text: &str, second: u32| format!("{{\"text\":\"{text}\",\"key\":\"home\",\"created_at\":{second}}}\n");
    let ledger = RamLedger::new();
    block_on(ledger.add(&ours(), &[NewRecord::new("Lima").key("home")], Timestamp::now())).unwrap();
    let lines = [line("Denver", 2000), line("Vienna", 1000)].concat();
    for round in 0..2 {
        let (counts, told) = imported(&ledger, Some(&ours()), lines.as_bytes());
        let expected = if round == 0 { (2, 0, 0) } else { (0, 0, 2) };
        assert_eq!((counts.added, counts.superseding, counts.duplicates), expected, "{told:?}");
        assert_eq!(texts(&ledger, &ours()), ["Lima"]);
    }
    let all = block_on(ledger.list(&ours(), Query::All)).unwrap();
    assert!(all[1..].iter().all(|record| matches!(record.state, State::Superseded { by, .. } if by == all[0].id)));
}

#[test]
fn a_line_that_was_updated_is_as_new_as_its_update() {
    let [from, to] = [RamLedger::new(), RamLedger::new()];
    let said =
        |text: &str, seconds| NewRecord::new(text).key("home").created_at(T0.after(Duration::from_secs(seconds)));
    let vienna = block_on(from.add(&ours(), &[said("Vienna", 1)], T0.after(Duration::from_secs(9)))).unwrap();
    block_on(from.update(&ours(), vienna[0].record.id, "Oslo", T0.after(Duration::from_secs(7)))).unwrap();
    block_on(to.add(&ours(), &[said("Lima", 5)], Timestamp::now())).unwrap();
    let (counts, told) = imported(&to, None, exported(&from, &Export::all()).as_bytes());
    assert_eq!((counts.superseding, texts(&to, &ours())), (1, vec!["Oslo".to_owned()]), "{told:?}");
}

#[test]
fn what_was_read_before_an_error_is_imported() {
    struct Broken<'a>(&'a [u8]);
    impl std::io::Read for Broken<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() { Err(std::io::Error::other("unplugged")) } else { self.0.read(buffer) }
        }
    }
    let ledger = RamLedger::new();
    let input = std::io::BufReader::new(Broken(b"{\"text\":\"tea\"}\n{\"text\":\"milk\"}\n{\"te"));
    let failed = block_on(import(&ledger, Some(&ours()), input, |_| {}));
    assert!(matches!(failed, Err(TransferError::Read { line: 3, .. })), "{failed:?}");
    assert_eq!(texts(&ledger, &ours()), ["tea", "milk"]);
}

const LOG: &str = r#"{"op":"add","id":"m1","text":"Alice lives in Vienna.","key":"home","created_at":1000000000.5}
{"op":"add","id":"m2","text":"Alice likes tea.","key":null,"created_at":1000000001}
{"text":"An old line."}
{"op":"add","id":"m3","text":"Alice lives in Lima.","key":"home","created_at":1000000002}
{"op":"update","id":"m2","text":"Alice likes mate."}
{"op":"add","id":"m4","text":"A secret.","created_at":1000000003}
{"op":"forget","id":"m4"}
{"op":"update","id":"m4","text":"Still a secret."}
{"op":"update","id":"m1","text":"Alice lives in Graz."}
{"op":"forget","id":"nobody"}
{"op":"dance","id":"m2"}
{"op":"add","id":"m2","text":"The same id."}
{"op":"add","id":"m5","text":"Alice to"#;

fn became(told: &[ImportedLine], line: u64) -> &Became {
    &told.iter().find(|told| told.line == line).unwrap().became
}

#[test]
fn a_log_of_the_reference_system_is_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(dir.path().join("ledger")).unwrap();
    for round in 0..2 {
        let mut told = Vec::new();
        let namespace = ours();
        let run = import_reference_log(&ledger, &namespace, LOG.as_bytes(), |line| told.push(line.clone()));
        let counts = block_on(run).unwrap();
        assert_eq!((counts.lines(), counts.applied, counts.left_out, counts.refused), (13, 2, 1, 6), "{told:?}");
        assert_eq!(counts.duplicates, if round == 0 { 0 } else { 4 }, "{told:?}");
        for line in [8, 9, 10, 11, 12, 13] {
            assert!(matches!(became(&told, line), Became::Refused { .. }), "{told:?}");
        }
        assert!(matches!(became(&told, 13), Became::Refused { reason } if reason.contains("torn")));
        assert_eq!(texts(&ledger, &ours()), ["Alice likes mate.", "An old line.", "Alice lives in Lima."]);
    }
    let all = block_on(ledger.list(&ours(), Query::All)).unwrap();
    assert!(all.iter().all(|record| !record.text.contains("secret")), "what was forgotten is not imported");
    let vienna = all.iter().find(|record| record.text == "Alice lives in Vienna.").unwrap();
    assert!(matches!(vienna.state, State::Superseded { .. }));
    assert_eq!(vienna.created_at, Timestamp(1_000_000_000_500));
    let tea = all.iter().find(|record| record.text == "Alice likes mate.").unwrap();
    assert_eq!(tea.created_at, Timestamp(1_000_000_001_000));
}

#[test]
fn the_order_of_a_log_counts_more_than_its_clock() {
    let lima = r#"{"op":"add","id":"b","text":"Lima","key":"home","created_at":1000}"#;
    for vienna in [r#","created_at":2000"#, ""] {
        let vienna = format!(r#"{{"op":"add","id":"a","text":"Vienna","key":"home"{vienna}}}"#);
        let log = format!("{vienna}\n{lima}\n");
        let ledger = RamLedger::new();
        block_on(import_reference_log(&ledger, &ours(), log.as_bytes(), |_| {})).unwrap();
        assert_eq!(texts(&ledger, &ours()), ["Lima"]);
        assert_eq!(active(&ledger, &ours())[0].created_at, Timestamp(1_000_000));
    }
}

#[test]
fn what_was_superseded_by_a_forgotten_text_does_not_come_back() {
    let log = r#"{"op":"add","id":"a","text":"Vienna","key":"home"}
{"op":"add","id":"b","text":"Lima","key":"home"}
{"op":"forget","id":"b"}
"#;
    let ledger = RamLedger::new();
    let counts = block_on(import_reference_log(&ledger, &ours(), log.as_bytes(), |_| {})).unwrap();
    assert_eq!((counts.left_out, counts.applied, texts(&ledger, &ours()).len()), (2, 1, 0));
}

#[test]
fn the_reference_systems_users_become_namespaces() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("bob.jsonl", "{\"text\":\"Bob's.\"}\n");
    // RFC 1321: MD5 of "abc" is 900150983cd24fb0d6963f7d28e17f72, and of "a" 0cc175b9c0f1b6a831c399e269772661.
    write("user_900150983cd24fb0.jsonl", "{\"text\":\"abc's.\"}\n");
    write("user_0cc175b9c0f1b6a8.jsonl", "{\"text\":\"Whose?\"}\n");
    write("_usage.jsonl", "{}\n");
    write("bob.vec", "\0\0\0\0");
    write("..jsonl", "{\"text\":\"Dots.\"}\n");
    write("bad\u{7}.jsonl", "{\"text\":\"A bell.\"}\n");
    write("notes.txt", "not a log");
    std::fs::create_dir(dir.path().join("folder.jsonl")).unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(outside.path(), "{\"text\":\"Not of this directory.\"}\n").unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("link.jsonl")).unwrap();
    let ledger = RamLedger::new();
    let users = ["carol", "abc"].map(|name| Namespace::new(name).unwrap());
    let files = block_on(import_reference(&ledger, dir.path(), &users, |_, _| {})).unwrap();
    let read = files.iter().filter_map(|file| match file {
        ReferenceFile::Read { file, namespace, named, imported } => {
            assert_eq!(imported.added, 1);
            Some((file.as_str(), namespace.as_str(), *named))
        }
        _ => None,
    });
    let expected = [
        ("..jsonl", ".", false),
        ("bob.jsonl", "bob", false),
        ("user_0cc175b9c0f1b6a8.jsonl", "user_0cc175b9c0f1b6a8", false),
        ("user_900150983cd24fb0.jsonl", "abc", true),
    ];
    assert_eq!(read.collect::<Vec<_>>(), expected);
    let passed_over = files.iter().filter_map(|file| match file {
        ReferenceFile::PassedOver { file, .. } => Some(file.as_str()),
        _ => None,
    });
    let expected = ["_usage.jsonl", "bad\u{7}.jsonl", "folder.jsonl", "link.jsonl", "notes.txt"];
    assert_eq!(passed_over.collect::<Vec<_>>(), expected);
    assert_eq!(block_on(ledger.namespaces()).unwrap().len(), 4);
    let missing = block_on(import_reference(&ledger, Path::new("/nowhere/at/all"), &users, |_, _| {}));
    assert!(matches!(missing, Err(TransferError::Open { .. })), "{missing:?}");
}
