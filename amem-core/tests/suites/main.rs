//! The conformance suites, run on implementations that each break one promise: a suite that lets one of them pass
//! does not check that promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod backend;
mod kv_store;
mod ledger;
mod model;
mod recaller;
mod residency;
mod tiny;

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a suite once for each fault. It has to panic each time, with a message that contains the words next to the
/// fault. All faults for which it does not are listed.
fn each_is_caught<F: Copy + Debug>(faults: &[(F, &str)], suite: impl Fn(F)) {
    let mut missed = Vec::new();
    for &(fault, words) in faults {
        match catch_unwind(AssertUnwindSafe(|| suite(fault))) {
            Ok(()) => missed.push(format!("{fault:?} passes")),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                if !text.contains(words) {
                    missed.push(format!("{fault:?} is not told by {words:?}, but: {text}"));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{} of {} faults:\n{}", missed.len(), faults.len(), missed.join("\n"));
}
