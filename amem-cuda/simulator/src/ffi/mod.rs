//! The exported functions of the simulated libraries. Everything that a C caller passes becomes a value of the types in
//! [`mod@pointer`] and [`host`] at once; only these two modules and [`client`] contain unsafe code.
#![allow(non_snake_case, reason = "the functions have the names that CUDA gives them")]

mod blas;
pub(crate) mod client;
mod context;
mod copy;
mod hooks;
pub(crate) mod host;
mod launch;
mod memory;
pub(crate) mod pointer;
mod stream;

use crate::machine::{Machine, machine};
use crate::status::{Error, Result, Status};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Set while the program's function runs that `cuLaunchHostFunc` queued.
    static IN_HOST_CALL: Cell<bool> = const { Cell::new(false) };
}

/// Calls a function of the program. It may not call CUDA, as the documentation says.
pub(crate) fn call_host(call: &host::HostCall) {
    IN_HOST_CALL.set(true);
    call.call();
    IN_HOST_CALL.set(false);
}

/// A call that needs a current context and a device that works.
fn call(function: &'static str, body: impl FnOnce(&mut Machine) -> Result<()>) -> u32 {
    query(function, |machine| {
        machine.check_context()?;
        machine.check_fault()?;
        body(machine)
    })
}

/// A call that may wait for the device, which captures forbid.
fn blocking_call(function: &'static str, body: impl FnOnce(&mut Machine) -> Result<()>) -> u32 {
    call(function, |machine| {
        machine.check_safe_in_capture(function)?;
        body(machine)
    })
}

/// A call that works without a context and after a fault.
fn query(function: &'static str, body: impl FnOnce(&mut Machine) -> Result<()>) -> u32 {
    let error = match guarded(|machine| {
        let failed = machine.count_call(function);
        if failed.is_err() && function == "cuStreamEndCapture" {
            // A driver that fails to make a graph has ended the capture all the same.
            let _ = body(machine);
            return failed;
        }
        failed?;
        body(machine)
    }) {
        Ok(()) => return Status::SUCCESS.0,
        Err(error) => error,
    };
    if !error.reason.is_empty() {
        let name = error.status.name().and_then(|name| name.to_str().ok()).unwrap_or("an unknown error");
        eprintln!("simulated CUDA: {function} returns {name}: {}", error.reason);
    }
    error.status.0
}

/// Locks the machine. A panic becomes a fault, because it must not reach a C caller.
fn guarded<T, E: From<Error>>(
    body: impl FnOnce(&mut Machine) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    if IN_HOST_CALL.get() {
        let reason = "a function that cuLaunchHostFunc calls must not call CUDA".to_string();
        return Err(Error { status: Status::NOT_PERMITTED, reason }.into());
    }
    let mut machine = machine();
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&mut machine)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let reason = format!("the simulator panicked: {text}");
        machine.fault(reason.clone());
        Err(Error { status: Status::UNKNOWN, reason }.into())
    })
}
