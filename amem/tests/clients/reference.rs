//! The reference system's own clients: its SDK, and its store for LangGraph.

use std::process::Command;

use amem::http::{Identity, KeyHeader};
use amem::server::{Mode, Options};
use amem_core::Memory;

use super::common::builder;
use super::front::Front;
use super::{installed, python, run};

/// A memory whose usage is counted, as the command's is.
fn metered() -> Memory {
    builder().meter_usage(true).build().unwrap()
}

/// A server that wants this key.
fn with_key(key: &str, mode: Mode) -> Front {
    let mut options = Options::default();
    options.mode = mode;
    Front::with(metered(), Identity::new(KeyHeader::Authorization).admin(Some(key.into())), options)
}

#[test]
fn the_sdk_remembers_recalls_and_counts() {
    python("sdk.py", &[&Front::of(metered()).url("")]);
    python("sdk.py", &[&with_key("a key", Mode::Resident).url(""), "a key"]);
}

#[test]
fn the_sdk_asks_in_and_outside_of_sessions() {
    python("sdk_ask.py", &[&Front::of(metered()).url("")]);
    python("sdk_ask.py", &[&with_key("a key", Mode::Resident).url(""), "a key"]);
}

#[test]
fn the_sdks_own_demo_runs() {
    let front = Front::of(metered());
    run(Command::new(installed().join("python/bin/python")).args(["-m", "amem.client", &front.url("")]));
}

#[test]
fn the_langgraph_store_does_what_langgraphs_own_does() {
    python("langgraph_store.py", &[&Front::of(metered()).url(""), "12"]);
}
