//! What the library exports for tests and no driver has. [`client`](super::client) calls it.

use super::pointer::{Out, OutArray, Text};
use super::query;
use crate::counts::FIELDS;
use crate::settings::Failure;
use crate::status::{Status, refuse};

/// Copies the first fault's message, cut to the buffer, and returns how many bytes it has: 0 without a fault.
#[unsafe(no_mangle)]
extern "C" fn amem_sim_last_fault(buffer: Out<u8>, room: usize) -> usize {
    let mut bytes = 0;
    query("amem_sim_last_fault", |machine| {
        let message = machine.last_fault().unwrap_or_default();
        bytes = message.len();
        buffer.put_text(message, room);
        Ok(())
    });
    bytes
}

/// Runs what is queued, and copies the message of a fault that this function has not returned before.
#[unsafe(no_mangle)]
extern "C" fn amem_sim_finish(buffer: Out<u8>, room: usize) -> usize {
    let mut bytes = 0;
    query("amem_sim_finish", |machine| {
        // A fault in what is left is found below.
        let _ = machine.run_everything();
        let message = machine.take_fault().unwrap_or_default();
        bytes = message.len();
        buffer.put_text(&message, room);
        Ok(())
    });
    bytes
}

/// The numbers of [`Counts`](crate::Counts), in the order of its fields.
#[unsafe(no_mangle)]
extern "C" fn amem_sim_counts(values: OutArray<u64>, room: usize) -> u32 {
    query("amem_sim_counts", |machine| {
        let counts: [u64; FIELDS] = machine.counts.to_array();
        match values.put(&counts, room) {
            true => Ok(()),
            false => refuse(Status::INVALID_VALUE, format!("there are {FIELDS} counts")),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn amem_sim_reset_counts() {
    query("amem_sim_reset_counts", |machine| {
        machine.reset_counts();
        Ok(())
    });
}

/// Makes the `calls`-th next call of a function return a status.
#[unsafe(no_mangle)]
extern "C" fn amem_sim_fail(function: Text, calls: u64, status: u32) -> u32 {
    query("amem_sim_fail", |machine| {
        machine.fail_call(Failure { function: function.get()?, calls, status });
        Ok(())
    })
}

/// How many failures that tests asked for have not happened yet.
#[unsafe(no_mangle)]
extern "C" fn amem_sim_pending_failures() -> usize {
    let mut pending = 0;
    query("amem_sim_pending_failures", |machine| {
        pending = machine.pending_failures();
        Ok(())
    });
    pending
}

/// Begins anew with a seed, as a new process does.
#[unsafe(no_mangle)]
extern "C" fn amem_sim_reset(seed: u64) {
    query("amem_sim_reset", |machine| {
        machine.reset(seed);
        Ok(())
    });
}
