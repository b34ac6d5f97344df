//! What the servers' flags do.

use std::process::Command;
use std::time::{Duration, Instant};

use super::front::Process;
use super::get;

#[cfg(unix)]
#[test]
fn a_server_that_is_told_to_stop_says_that_it_is_not_ready_before_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Process::start(&["kv-serve", "--drain", "60"], dir.path());
    let ready = server.url("/ready");
    assert_eq!(get(&ready, None).0, 200);
    let id = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let begun = Instant::now();
    while get(&ready, None).0 != 503 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it goes on as if nothing had been said");
    }
    assert_eq!(get(&server.url("/health"), None).0, 200, "it answers all the same");
    assert!(server.child.try_wait().unwrap().is_none());
}

#[test]
fn the_flags_of_the_reference_system_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let kv = dir.path().join("elsewhere");
    let flags = ["--hot-budget", "1000", "--max-model-len", "512", "--recompute-ratio", "0.2", "--max-turns", "4"];
    let server = Process::start(&[&["serve", "--disk-dir", kv.to_str().unwrap()], &flags[..]].concat(), dir.path());
    assert_eq!(get(&server.url("/ready"), None).0, 200);
    assert!(kv.is_dir());
    drop(server);
    for (flag, value) in
        [("--recompute-ratio", "1.5"), ("--max-model-len", "0"), ("--gpu-mem", "0.8"), ("--model", "nowhere")]
    {
        let refused = Command::new(env!("CARGO_BIN_EXE_amem")).args(["kv-serve", flag, value]).output();
        let refused = refused.unwrap();
        assert_eq!(refused.status.code(), Some(2), "{flag}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(flag), "{flag}");
    }
}
