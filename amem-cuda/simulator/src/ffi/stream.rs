//! Streams, events, captures and graphs.

use super::host::{HostCall, HostPointer};
use super::pointer::Out;
use super::{blocking_call, call};
use crate::operation::Work;
use crate::status::{Status, refuse};
use std::ffi::{c_uint, c_ulonglong, c_void};

/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`
const DISABLE_TIMING: c_uint = 2;

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: Out<u64>, flags: c_uint) -> u32 {
    call("cuStreamCreate", |machine| stream.put(machine.create_stream(flags & NON_BLOCKING == 0, 0)))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(stream: Out<u64>, flags: c_uint, priority: i32) -> u32 {
    call("cuStreamCreateWithPriority", |machine| {
        stream.put(machine.create_stream(flags & NON_BLOCKING == 0, priority.clamp(-5, 0)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetPriority(stream: u64, priority: Out<i32>) -> u32 {
    call("cuStreamGetPriority", |machine| {
        let actor = machine.stream(stream)?;
        priority.put(machine.streams.get(actor).map_or(0, |stream| stream.priority))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: u64) -> u32 {
    call("cuStreamDestroy_v2", |machine| machine.destroy_stream(stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: u64) -> u32 {
    call("cuStreamSynchronize", |machine| {
        let actor = machine.stream(stream)?;
        machine.synchronise_stream(actor)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: u64) -> u32 {
    call("cuStreamQuery", |machine| {
        let actor = machine.stream(stream)?;
        machine.query_stream(actor)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) -> u32 {
    call("cuStreamWaitEvent", |machine| {
        let actor = machine.stream(stream)?;
        machine.wait_event(actor, event)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(
    stream: u64,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    argument: HostPointer,
) -> u32 {
    call("cuLaunchHostFunc", |machine| {
        if function.is_none() {
            return refuse(Status::INVALID_VALUE, "the function is null");
        }
        let actor = machine.stream(stream)?;
        machine.submit(actor, Work::Call(HostCall::new(function, argument)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: u64, mode: c_uint) -> u32 {
    call("cuStreamBeginCapture_v2", |machine| {
        let actor = machine.stream(stream)?;
        machine.begin_capture(actor, mode)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamEndCapture(stream: u64, graph: Out<u64>) -> u32 {
    call("cuStreamEndCapture", |machine| {
        let actor = machine.stream(stream)?;
        match machine.end_capture(actor) {
            Ok(ended) => graph.put(ended),
            Err(error) => {
                graph.put_if_present(0);
                Err(error)
            }
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: u64, status: Out<c_uint>) -> u32 {
    call("cuStreamIsCapturing", |machine| {
        let actor = machine.stream(stream)?;
        status.put(machine.capture_status(actor))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithFlags(executable: Out<u64>, graph: u64, _flags: c_ulonglong) -> u32 {
    call("cuGraphInstantiateWithFlags", |machine| executable.put(machine.instantiate(graph)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: u64) -> u32 {
    call("cuGraphDestroy", |machine| machine.destroy_graph(graph))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(executable: u64) -> u32 {
    call("cuGraphExecDestroy", |machine| machine.destroy_executable(executable))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(executable: u64, stream: u64) -> u32 {
    call("cuGraphUpload", |machine| {
        machine.stream(stream)?;
        machine.check_executable(executable)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(executable: u64, stream: u64) -> u32 {
    call("cuGraphLaunch", |machine| {
        let actor = machine.stream(stream)?;
        machine.launch_graph(executable, actor)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: Out<u64>, flags: c_uint) -> u32 {
    call("cuEventCreate", |machine| event.put(machine.create_event(flags & DISABLE_TIMING == 0)))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: u64) -> u32 {
    call("cuEventDestroy_v2", |machine| machine.destroy_event(event))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: u64, stream: u64) -> u32 {
    call("cuEventRecord", |machine| {
        let actor = machine.stream(stream)?;
        machine.record_event(event, actor)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: u64) -> u32 {
    call("cuEventSynchronize", |machine| machine.synchronise_event(event))
}

/// Captures of the usual modes forbid to ask for an event.
#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: u64) -> u32 {
    blocking_call("cuEventQuery", |machine| machine.query_event(event))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(milliseconds: Out<f32>, start: u64, end: u64) -> u32 {
    call("cuEventElapsedTime", |machine| milliseconds.put(machine.elapsed(start, end)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: u64, end: u64) -> u32 {
    call("cuEventElapsedTime_v2", |machine| milliseconds.put(machine.elapsed(start, end)?))
}
