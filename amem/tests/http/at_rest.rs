//! What a data directory keeps from one process to the next: encrypted, and with what was learned of its use.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use amem_core::{ChunkId, KvStore, Ledger, Namespace, OwnerId, Timestamp};
use amem_store::{SegmentOptions, SegmentStore, SqliteLedger};
use serde_json::{Value, json};

use super::common::block_on;
use super::front::Process;
use super::{client, get, post};

/// A name that no other bytes hold by chance.
const ALICE: &str = "alice-of-the-fourth-floor";
const BOB: &str = "bob-of-the-seventh-floor";
const HOME: &str = "Alice lives in Denver.";

/// A directory with a master key, and the options that name it and a directory of keys.
struct KeysAt {
    keys: PathBuf,
    master: PathBuf,
}

impl KeysAt {
    fn new(dir: &Path) -> Self {
        let keys = Self { keys: dir.join("keys"), master: dir.join("master.key") };
        fs::write(&keys.master, "5a".repeat(32)).unwrap();
        fs::set_permissions(&keys.master, fs::Permissions::from_mode(0o600)).unwrap();
        keys
    }

    fn flags(&self) -> [&str; 4] {
        let [keys, master] = [&self.keys, &self.master].map(|path| path.to_str().unwrap());
        ["--encrypt-keys", keys, "--master-key-file", master]
    }

    /// The files of keys that there are.
    fn files(&self) -> BTreeSet<PathBuf> {
        let paths = fs::read_dir(&self.keys).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "key")).collect()
    }
}

fn remember(server: &Process, user: &str, texts: &[String]) {
    let (status, said) = post(server.url("/v1/memories"), &json!({ "user": user, "texts": texts }));
    assert_eq!(status, 200, "{said}");
}

/// The answer, and how many of the memories' tokens had to be prefilled for it.
fn ask(server: &Process, user: &str, question: &str) -> (String, u64) {
    let messages = json!([{ "role": "user", "content": question }]);
    let body = json!({ "user": user, "messages": messages, "k": 1 });
    let (status, said) = post(server.url("/v1/chat/completions"), &body);
    assert_eq!(status, 200, "{said}");
    let text = said["choices"][0]["message"]["content"].as_str().unwrap().trim().to_owned();
    (text, said["amem"]["memory_tokens_prefilled_now"].as_u64().unwrap())
}

/// All bytes of all files below a directory.
fn bytes_below(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(bytes_below(&entry.path())),
            false => all.extend(fs::read(entry.path()).unwrap()),
        }
    }
    all
}

/// Runs the command to its end.
fn amem(arguments: &[&str], data: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_amem")).args(arguments).arg("--data-dir").arg(data).output().unwrap()
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_server_answers_after_a_restart_from_what_nobody_can_read_without_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (data, keys) = (dir.path().join("data"), KeysAt::new(dir.path()));
    let start = || Process::start(&[&["kv-serve"], &keys.flags()[..]].concat(), &data);
    let server = start();
    remember(&server, ALICE, &[HOME.to_owned()]);
    remember(&server, BOB, &["Bob lives in Oslo.".to_owned()]);
    assert_eq!(ask(&server, ALICE, "Where does Alice live?").0, HOME);
    assert_eq!(ask(&server, BOB, "Where does Bob live?").0, "Bob lives in Oslo.");
    server.stop();
    let on_disk = bytes_below(&data);
    for text in [ALICE, HOME, "Denver", BOB, "Oslo"] {
        assert!(!on_disk.windows(text.len()).any(|bytes| bytes == text.as_bytes()), "{text} is there to be read");
    }

    let server = start();
    assert_eq!(ask(&server, ALICE, "Where does Alice live?"), (HOME.to_owned(), 0), "its KV is there too");
    let before = keys.files();
    let deleted = client().delete(server.url(&format!("/v1/memories/{ALICE}"))).send().unwrap();
    assert_eq!(deleted.status().as_u16(), 200);
    let after = keys.files();
    assert!(after.is_subset(&before) && before.len() - after.len() == 2, "the keys of her records and of her KV");
    server.stop();
    let server = start();
    assert_eq!(ask(&server, BOB, "Where does Bob live?"), ("Bob lives in Oslo.".to_owned(), 0));
    let users: Value = serde_json::from_str(&get(&server.url("/v1/users"), None).1).unwrap();
    assert_eq!((users["users"].as_array().unwrap().len(), &users["users"][0]["user"]), (1, &BOB.into()), "{users}");
}

#[test]
fn every_command_refuses_what_was_encrypted_with_other_keys_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (data, keys, lines) = (dir.path().join("data"), KeysAt::new(dir.path()), dir.path().join("lines"));
    let lines_of = |text: &str| fs::write(&lines, json!({ "text": text }).to_string()).unwrap();
    lines_of(HOME);
    let import = ["import", "--namespace", ALICE, lines.to_str().unwrap()];
    let imported = amem(&[&import, &keys.flags()[..]].concat(), &data);
    assert!(imported.status.success(), "{}", said(&imported.stderr));

    let [_, dir_of_keys, _, master] = keys.flags();
    let (others, missing) = (dir.path().join("others"), dir.path().join("missing.key"));
    let other_master = dir.path().join("other.key");
    fs::copy(&keys.master, &other_master).unwrap();
    fs::write(&other_master, "00".repeat(32)).unwrap();
    let [others, missing, other_master] = [&others, &missing, &other_master].map(|path| path.to_str().unwrap());
    let flags = |keys, master| vec!["--encrypt-keys", keys, "--master-key-file", master];
    let cases = [
        (vec![], "the ledger is encrypted: open it with the directory of keys that it was made with"),
        (flags(others, master), "open it with the keys that it was made with"),
        (flags(dir_of_keys, other_master), "was wrapped under another master key: give the one"),
        (flags(dir_of_keys, missing), "it is not there; for new keys, make one"),
        (vec!["--encrypt-keys", dir_of_keys], "--master-key-file"),
    ];
    let commands: [&[&str]; 6] =
        [&["export", "--all"], &import, &["ask", "Who?"], &["kv-serve", "--port=0"], &["proxy", "--port=0"], &["mcp"]];
    for (flags, expected) in cases {
        for command in commands {
            let refused = amem(&[command, &flags].concat(), &data);
            let said = said(&refused.stderr);
            assert!(!refused.status.success() && said.contains(expected), "{command:?} {flags:?}: {said}");
        }
    }
    let exported = amem(&[&["export", "--all"], &keys.flags()[..]].concat(), &data);
    assert!(said(&exported.stdout).contains(HOME), "nothing is lost by trying");

    let plain = dir.path().join("plain");
    assert!(amem(&import, &plain).status.success());
    let refused = amem(&[&["export", "--all"], &keys.flags()[..]].concat(), &plain);
    assert!(!refused.status.success());
    assert!(said(&refused.stderr).contains("export them and import them into a new one"), "{}", said(&refused.stderr));
}

#[test]
fn what_a_policy_learned_of_the_kvs_use_outlives_the_server() {
    /// Of at least 40 tokens each: more than a disk of 1 MiB has room for, which are 409 tokens, of 2,560 bytes each.
    const OTHERS: usize = 14;
    /// Tokens of Alice's memory that are prefilled when she asks after others have filled the disk.
    fn prefilled(flags: &[&str], forgets: bool) -> u64 {
        let data = tempfile::tempdir().unwrap();
        let start =
            || Process::start(&[&["kv-serve", "--disk-mib", "1", "--ram-mib", "0"], flags].concat(), data.path());
        let server = start();
        remember(&server, ALICE, &[HOME.to_owned()]);
        for _ in 0..3 {
            assert_eq!(ask(&server, ALICE, "Where does Alice live?").0, HOME);
        }
        server.stop();
        if forgets {
            fs::remove_file(data.path().join("residency")).unwrap();
        }
        let server = start();
        let locker = |n| format!("Bob's locker {n} has a code{}.", " and a key and a code".repeat(7));
        remember(&server, BOB, &(0..OTHERS).map(locker).collect::<Vec<_>>());
        for n in 0..OTHERS {
            assert!(ask(&server, BOB, &format!("What does locker {n} have?")).1 >= 40);
        }
        ask(&server, ALICE, "Where does Alice live?").1
    }
    assert_eq!(prefilled(&["--residency", "lfu"], false), 0, "it was used more often than any other");
    assert!(prefilled(&["--residency", "lfu"], true) > 0, "but nobody knew that any more");
    assert!(prefilled(&["--residency", "lru"], false) > 0, "and it was not used for longest");
    assert_eq!(prefilled(&["--residency", "lru", "--fair-share"], false), 0, "but it is all of its namespace's share");
}

#[test]
fn files_of_kv_have_at_most_two_and_a_quarter_times_what_the_option_says_and_no_more_than_is_held_once_purged() {
    /// Of at least 8 tokens each, of 2,560 bytes each: 2.34 MiB, for a disk of 1 MiB, in segments of 128 KiB.
    const MEMORIES: usize = 120;
    let dir = tempfile::tempdir().unwrap();
    let (data, keys) = (dir.path().join("data"), KeysAt::new(dir.path()));
    let kv = data.join("kv");
    let server = Process::start(&[&["kv-serve", "--disk-mib", "1"], &keys.flags()[..]].concat(), &data);
    let locker = |n| format!("Bob's locker {n} has a code.");
    remember(&server, BOB, &(0..MEMORIES).map(locker).collect::<Vec<_>>());
    let mut most = 0;
    for n in 0..MEMORIES {
        assert!(ask(&server, BOB, &format!("What does locker {n} have?")).1 >= 8);
        most = most.max(bytes_below(&kv).len());
    }
    assert!(most > 1 << 19 && most <= (9 << 20) / 4, "{most}");

    // What made room is found by nobody, and its bytes stay. On the disk, the second tier:
    let held = || {
        let stats: Value = serde_json::from_str(&get(&server.url("/v1/stats"), None).1).unwrap();
        stats["policy"]["tiers"][1]["chunks"].as_u64().unwrap() as usize
    };
    // Every record begins so.
    let records = || bytes_below(&kv).windows(8).filter(|bytes| bytes == b"amemchk2").count();
    let mut again = 0..MEMORIES;
    while records() == held() {
        let n = again.next().expect("what makes room leaves something behind");
        ask(&server, BOB, &format!("What does locker {n} have?"));
    }
    let purged = client().post(server.url("/v1/admin/purge")).send().unwrap();
    assert_eq!(purged.status().as_u16(), 200);
    assert!(held() >= 5 && records() == held(), "{} records of {} chunks", records(), held());
}

#[test]
fn kv_that_is_kept_in_fewer_bits_takes_less_room() {
    let size = |options: &[&str]| {
        let data = tempfile::tempdir().unwrap();
        let asked = amem(&[&["ask", "--remember", HOME, "Where does Alice live?"], options].concat(), data.path());
        assert_eq!(said(&asked.stdout), format!("{HOME}\n"), "{}", said(&asked.stderr));
        let kv = SegmentStore::open_with(data.path().join("kv"), SegmentOptions::default().read_only(true)).unwrap();
        block_on(kv.owned(OwnerId::of("default"))).unwrap()[0].bytes
    };
    let [plain, f16, int8] = [size(&[]), size(&["--disk-kv", "f16"]), size(&["--disk-kv", "int8", "--ram-kv", "int8"])];
    // The model's own numbers have 16 bits already. What is kept beside them has the same size in all of these.
    assert!(f16 == plain && int8 < plain * 3 / 4, "{plain} {f16} {int8}");
}

#[test]
fn what_is_forgotten_from_a_shell_is_deleted_from_where_a_server_kept_its_kv() {
    let dir = tempfile::tempdir().unwrap();
    let (data, disk, away) = (dir.path().join("data"), dir.path().join("disk"), dir.path().join("away"));
    let disk_dir = ["kv-serve", "--disk-dir", disk.to_str().unwrap()];
    let server = Process::start(&disk_dir, &data);
    let texts = [HOME, "Alice has a dog called Rex."];
    let (status, added) = post(server.url("/v1/memories"), &json!({ "user": ALICE, "texts": texts }));
    assert_eq!(status, 200, "{added}");
    let id = added["added"][0].as_str().unwrap().to_owned();
    assert_eq!(ask(&server, ALICE, "Where does Alice live?").0, HOME);
    ask(&server, ALICE, "What is Alice's dog called?");
    server.stop();
    let held = || {
        let kv = SegmentStore::open_with(&disk, SegmentOptions::default().read_only(true)).unwrap();
        block_on(kv.owned(OwnerId::of(ALICE))).unwrap().into_iter().map(|chunk| chunk.id).collect::<Vec<ChunkId>>()
    };
    let on_disk = |id: &ChunkId| bytes_below(&disk).windows(32).any(|bytes| bytes == id.0);
    let before = held();
    assert!(before.len() == 2 && before.iter().all(on_disk), "{before:?}");

    // Where its disk is not mounted, the text is forgotten, and the KV waits.
    fs::rename(&disk, &away).unwrap();
    let forgotten = amem(&["forget", ALICE, &id], &data);
    let complaint = said(&forgotten.stderr);
    assert!(!forgotten.status.success() && complaint.contains("not deleted yet"), "{complaint}");
    assert!(!amem(&["purge"], &data).status.success());
    fs::rename(&away, &disk).unwrap();
    let forgotten = amem(&["forget", ALICE, &id], &data);
    assert!(forgotten.status.success(), "{}", said(&forgotten.stderr));
    let after = held();
    let gone: Vec<&ChunkId> = before.iter().filter(|id| !after.contains(id)).collect();
    assert!(gone.len() == 1 && !on_disk(gone[0]), "{before:?} {after:?}");

    let ledger = SqliteLedger::open(data.join("ledger.sqlite")).unwrap();
    let (alice, now) = (Namespace::new(ALICE).unwrap(), Timestamp::now());
    let left = block_on(ledger.list(&alice, amem_core::Query::At(now))).unwrap();
    block_on(ledger.update(&alice, left[0].id, "Alice has a cat called Tom.", now)).unwrap();
    drop(ledger);
    let purged = amem(&["purge"], &data);
    assert!(said(&purged.stdout).starts_with("1 chunks"), "{}", said(&purged.stdout));
    assert!(held().is_empty() && !before.iter().any(on_disk));
    let asked = amem(&["ask", "--user", ALICE, "What is Alice's cat called?"], &data);
    assert!(asked.status.success(), "{}", said(&asked.stderr));
    assert_eq!(held().len(), 1, "a command without the option keeps KV there too");
    let elsewhere = amem(&["kv-serve", "--port=0", "--disk-dir", away.to_str().unwrap()], &data);
    assert!(said(&elsewhere.stderr).contains("KV is kept in"), "{}", said(&elsewhere.stderr));
}

#[test]
fn deletions_wait_while_the_server_that_shares_the_kv_is_not_named() {
    let dir = tempfile::tempdir().unwrap();
    let asked = amem(&["ask", "--remember", HOME, "Where does Alice live?"], dir.path());
    assert!(asked.status.success(), "{}", said(&asked.stderr));
    amem_store::note_shared_kv(dir.path(), "redis cache.internal:6379/0").unwrap();
    let ledger = SqliteLedger::open(dir.path().join("ledger.sqlite")).unwrap();
    let (default, now) = (Namespace::new("default").unwrap(), Timestamp::now());
    let id = block_on(ledger.list(&default, amem_core::Query::All)).unwrap()[0].id.to_string();
    let forgotten = amem(&["forget", "default", &id], dir.path());
    for refused in [
        &forgotten,
        &amem(&["purge"], dir.path()),
        &amem(&["ask", "Where?"], dir.path()),
        &amem(&["kv-serve"], dir.path()),
    ] {
        let said = said(&refused.stderr);
        assert!(!refused.status.success() && said.contains("redis cache.internal:6379/0"), "{said}");
    }
    assert!(said(&forgotten.stderr).contains("1 memories are forgotten, but their KV is not deleted yet"));
    assert_eq!(block_on(ledger.list(&default, amem_core::Query::At(now))).unwrap(), []);
    assert_eq!(block_on(ledger.pending_deletions(now)).unwrap().len(), 1);
}
