//! Exporting and importing from a shell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use amem_core::{Ledger, Namespace, NewRecord, Query, Timestamp};
use futures_lite::future::block_on;

fn amem(dir: &Path, args: &[&str], input: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amem"));
    command.args(args).arg("--data-dir").arg(dir).stdin(input).output().unwrap()
}

fn texts(dir: &Path, namespace: &str) -> Vec<String> {
    let ledger = amem_store::open_ledger_read_only(dir).unwrap();
    let listed = block_on(ledger.list(&Namespace::new(namespace).unwrap(), Query::At(Timestamp::now()))).unwrap();
    listed.into_iter().map(|record| record.text).collect()
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn what_a_shell_exports_another_data_directory_imports() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to, one] = ["from", "to", "one"].map(|name| dir.path().join(name));
    let ledger = amem_store::open_ledger(&from).unwrap();
    for (namespace, text) in [("alice", "Alice lives in Denver."), ("bob", "Bob lives in Oslo.")] {
        let new = [NewRecord::new(text).key("home")];
        block_on(ledger.add(&Namespace::new(namespace).unwrap(), &new, Timestamp::now())).unwrap();
    }
    let file = dir.path().join("export.jsonl");
    let exported = amem(&from, &["export", "--all"], Stdio::null());
    assert!(exported.status.success(), "{}", said(&exported.stderr));
    std::fs::write(&file, &exported.stdout).unwrap();
    let imported = amem(&to, &["import", file.to_str().unwrap()], Stdio::null());
    assert!(imported.status.success(), "{}", said(&imported.stderr));
    assert_eq!(said(&imported.stdout), "2 added, 0 superseding others, 0 known\n");
    assert_eq!(texts(&to, "alice"), ["Alice lives in Denver."]);
    assert_eq!(texts(&to, "bob"), ["Bob lives in Oslo."]);
    let exported = amem(&from, &["export", "bob"], Stdio::null());
    assert_eq!(said(&exported.stdout).lines().count(), 1);
    // As `amem import --namespace carol - < export.jsonl`.
    let input = Stdio::from(std::fs::File::open(&file).unwrap());
    let imported = amem(&one, &["import", "--namespace", "carol", "-"], input);
    assert_eq!(said(&imported.stdout), "1 added, 1 superseding others, 0 known\n", "one key, two texts");
    assert_eq!(texts(&one, "carol"), ["Bob lives in Oslo."]);
    // It can be opened for reading like any other data directory.
    amem_store::open_read_only(&one).unwrap();
}

#[test]
fn a_shell_says_which_lines_it_could_not_import() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("lines.jsonl"));
    std::fs::write(&file, "{\"text\":\"tea\"}\n{\"text\":\"mi").unwrap();
    let imported = amem(&data, &["import", "--namespace", "me", file.to_str().unwrap()], Stdio::null());
    assert!(!imported.status.success());
    assert!(said(&imported.stderr).contains("line 2: it is torn"), "{}", said(&imported.stderr));
    assert_eq!(texts(&data, "me"), ["tea"]);
    let missing = amem(&data, &["import", "--namespace", "me", "/no/such/file"], Stdio::null());
    assert!(!missing.status.success() && said(&missing.stderr).contains("/no/such/file"));
}

#[test]
fn a_shell_imports_the_reference_systems_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (data, reference) = (dir.path().join("data"), dir.path().join("amem_data"));
    std::fs::create_dir(&reference).unwrap();
    let log = "{\"op\":\"add\",\"id\":\"1\",\"text\":\"tea\"}\n{\"op\":\"update\",\"id\":\"1\",\"text\":\"mate\"}\n";
    // RFC 1321: MD5 of "abc" is 900150983cd24fb0d6963f7d28e17f72.
    std::fs::write(reference.join("user_900150983cd24fb0.jsonl"), log).unwrap();
    let args = ["import", "--reference", reference.to_str().unwrap(), "--user", "abc"];
    let imported = amem(&data, &args, Stdio::null());
    assert!(imported.status.success(), "{}", said(&imported.stderr));
    let expected = "user_900150983cd24fb0.jsonl into abc: 1 added, 0 superseding others, 0 known, 1 changes\n";
    assert_eq!(said(&imported.stdout), expected);
    assert_eq!(texts(&data, "abc"), ["mate"]);
}
