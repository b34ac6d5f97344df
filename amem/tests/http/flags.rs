//! What the servers' flags do.

use std::io::Read;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::front::Process;
use super::{client, get};

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
    let flags =
        ["--hot-budget", "1000", "--max-model-len", "512", "--recompute-ratio", "0.2", "--k", "8", "--max-turns", "4"];
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

#[test]
fn an_empty_key_is_no_key_and_opens_no_server() {
    let dir = tempfile::tempdir().unwrap();
    for server in [&["kv-serve"][..], &["proxy"], &["mcp", "--http"]] {
        for key in [&["--api-key", ""][..], &[]] {
            let mut command = Process::command(&[server, key].concat(), dir.path());
            let refused = command.env("AMEM_API_KEY", "").output().unwrap();
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains("--api-key or AMEM_API_KEY is empty"), "{said}");
        }
    }
}

#[test]
fn origins_are_given_as_browsers_write_them() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in ["*", "https://*.example", "app.example"] {
        let refused = Process::command(&["kv-serve", "--allow-origin", wrong], dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains("an origin is"), "{said}");
    }
    let flags = ["--allow-origin", "https://app.example/", "--allow-host", "amem.example"];
    let server = Process::start(&[&["kv-serve"], &flags[..]].concat(), dir.path());
    let status =
        |header: &str, value: &str| client().get(server.url("/v1/models")).header(header, value).send().unwrap();
    let status = |header, value| status(header, value).status().as_u16();
    assert_eq!([status("origin", "https://app.example"), status("origin", "https://other.example")], [200, 403]);
    assert_eq!([status("host", "amem.example"), status("host", "other.example")], [200, 403]);
}

#[test]
fn servers_that_say_nothing_of_whether_they_are_ready_cannot_drain() {
    let dir = tempfile::tempdir().unwrap();
    for server in [&["proxy"][..], &["mcp", "--http"]] {
        let refused = Process::command(&[server, &["--drain", "1"]].concat(), dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains("--drain"), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn a_server_that_is_told_to_stop_finishes_what_it_has_begun() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Process::start(&["kv-serve"], dir.path());
    let messages = json!([{ "role": "user", "content": "Tell me a story." }]);
    // So hot that an answer hardly ever ends by itself.
    let body = json!({ "messages": messages, "stream": true, "n": 16, "max_tokens": 100, "temperature": 2, "seed": 1 });
    let mut answer = client().post(server.url("/v1/chat/completions")).json(&body).send().unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let mut begun = [0; 64];
    answer.read_exact(&mut begun).unwrap();
    let id = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let mut rest = String::new();
    answer.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    assert!(server.child.wait().unwrap().success());
}
