//! The clients that people have, unmodified, against our servers. They are installed by `.ci/clients`; the environment
//! variable `AMEM_CLIENTS` says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/front.rs"]
mod front;
#[path = "../common/scripted.rs"]
mod scripted;

mod anthropic;
mod mcp;
mod openai;
mod proxy;
mod reference;
mod schemathesis;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the clients.
fn installed() -> PathBuf {
    let path = std::env::var_os("AMEM_CLIENTS").expect("AMEM_CLIENTS says where `.ci/clients` put the clients");
    PathBuf::from(path)
}

/// Runs a Python script of this folder; its arguments are texts, the first one mostly a server's address.
fn python(script: &str, arguments: &[&str]) {
    run(Command::new(installed().join("python/bin/python")).arg(here(script)).args(arguments));
}

/// Runs tests of this folder with pytest; this environment variable is a server's address.
fn pytest(script: &str, url: &str) {
    let mut command = Command::new(installed().join("python/bin/python"));
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]);
    // Clients keep connections from one test to the next.
    command.args(["-o", "asyncio_default_test_loop_scope=session", "-o", "asyncio_default_fixture_loop_scope=session"]);
    command.arg(here(script));
    run(command.env("AMEM_URL", url).env("PYTHONDONTWRITEBYTECODE", "1"));
}

/// Runs a script of this folder with Node. Its packages are found where they are installed.
fn node(script: &str, arguments: &[&str]) {
    let copy = installed().join("node").join(script);
    std::fs::copy(here(script), &copy).unwrap();
    run(Command::new("node").arg(copy).args(arguments));
}

fn here(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
}

#[test]
fn the_clients_are_installed() {
    python("installed.py", &[]);
    node("installed.mjs", &[]);
}
