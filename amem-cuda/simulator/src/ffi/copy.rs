//! Copies.

use super::host::HostPointer;
use super::pointer::In;
use super::{blocking_call, call};
use crate::host::Kind;
use crate::machine::Machine;
use crate::operation::{Copy, Side, Work, extent};
use crate::status::{Result, Status, refuse};
use std::sync::Arc;

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Copy2D {
    source_x: usize,
    source_y: usize,
    source_type: u32,
    source_host: HostPointer,
    source_device: u64,
    source_array: u64,
    source_pitch: usize,
    target_x: usize,
    target_y: usize,
    target_type: u32,
    target_host: HostPointer,
    target_device: u64,
    target_array: u64,
    target_pitch: usize,
    width: usize,
    height: usize,
}

/// `CUmemorytype`
const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// One end of a copy as it was passed, before what is known about host memory.
#[derive(Clone, Copy)]
enum End {
    Device { address: u64, pitch: usize },
    Host { pointer: HostPointer, offset: usize, pitch: usize },
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: HostPointer, bytes: usize, stream: u64) -> u32 {
    call("cuMemcpyHtoDAsync_v2", |machine| {
        copy(machine, stream, host(from, bytes), device(to, bytes), [bytes, 1], false)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: HostPointer, from: u64, bytes: usize, stream: u64) -> u32 {
    call("cuMemcpyDtoHAsync_v2", |machine| {
        copy(machine, stream, device(from, bytes), host(to, bytes), [bytes, 1], false)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> u32 {
    call("cuMemcpyDtoDAsync_v2", |machine| {
        copy(machine, stream, device(from, bytes), device(to, bytes), [bytes, 1], false)
    })
}

/// All devices share one memory, so a copy between two of them is a copy within it.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_context: u64,
    from: u64,
    _from_context: u64,
    bytes: usize,
    stream: u64,
) -> u32 {
    call("cuMemcpyPeerAsync", |machine| {
        copy(machine, stream, device(from, bytes), device(to, bytes), [bytes, 1], false)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: HostPointer, bytes: usize) -> u32 {
    blocking_call("cuMemcpyHtoD_v2", |machine| copy(machine, 0, host(from, bytes), device(to, bytes), [bytes, 1], true))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: HostPointer, from: u64, bytes: usize) -> u32 {
    blocking_call("cuMemcpyDtoH_v2", |machine| copy(machine, 0, device(from, bytes), host(to, bytes), [bytes, 1], true))
}

/// The host does not wait for a copy within the device, although the call is not called asynchronous.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    blocking_call("cuMemcpyDtoD_v2", |machine| {
        copy(machine, 0, device(from, bytes), device(to, bytes), [bytes, 1], true)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2DAsync_v2(copy: In<Copy2D>, stream: u64) -> u32 {
    call("cuMemcpy2DAsync_v2", |machine| copy_2d(machine, &copy.get()?, stream, false))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2D_v2(copy: In<Copy2D>) -> u32 {
    blocking_call("cuMemcpy2D_v2", |machine| copy_2d(machine, &copy.get()?, 0, true))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2DUnaligned_v2(copy: In<Copy2D>) -> u32 {
    blocking_call("cuMemcpy2DUnaligned_v2", |machine| copy_2d(machine, &copy.get()?, 0, true))
}

fn device(address: u64, pitch: usize) -> End {
    End::Device { address, pitch }
}

fn host(pointer: HostPointer, pitch: usize) -> End {
    End::Host { pointer, offset: 0, pitch }
}

fn copy_2d(machine: &mut Machine, copy_of: &Copy2D, stream: u64, blocking: bool) -> Result<()> {
    let Copy2D { width, height, .. } = *copy_of;
    let end = |kind: u32, pointer: HostPointer, address: u64, [x, y, pitch]: [usize; 3]| {
        // A pitch of 0 stands for rows without gaps when there is one row.
        let pitch = if pitch == 0 && height <= 1 { width } else { pitch };
        let Some(offset) = y.checked_mul(pitch).and_then(|rows| rows.checked_add(x)) else {
            return refuse(Status::INVALID_VALUE, "the offset is too large");
        };
        if x.checked_add(width).is_none_or(|end| end > pitch) && height > 1 {
            return refuse(Status::INVALID_VALUE, format!("{width} bytes at {x} do not fit into a pitch of {pitch}"));
        }
        match kind {
            HOST => Ok(End::Host { pointer, offset, pitch }),
            DEVICE => Ok(End::Device { address: address + offset as u64, pitch }),
            _ => refuse(Status::NOT_SUPPORTED, "the simulator copies between host and device memory only"),
        }
    };
    let c = copy_of;
    let from = end(c.source_type, c.source_host, c.source_device, [c.source_x, c.source_y, c.source_pitch])?;
    let to = end(c.target_type, c.target_host, c.target_device, [c.target_x, c.target_y, c.target_pitch])?;
    copy(machine, stream, from, to, [width, height], blocking)
}

/// Queues a copy. What it needs to wait for depends on the kind of the host's memory: a copy from pageable memory takes
/// the bytes at once, and a copy to pageable memory is waited for.
fn copy(
    machine: &mut Machine,
    stream: u64,
    from: End,
    to: End,
    [width, height]: [usize; 2],
    blocking: bool,
) -> Result<()> {
    let actor = machine.stream(stream)?;
    if width == 0 || height == 0 {
        return Ok(());
    }
    let mut wait = false;
    let mut side = |machine: &mut Machine, end: End, source: bool| match end {
        End::Device { address, pitch } => {
            let bytes = extent(pitch, width, height) as u64;
            machine.check_device_range(&(address..address.saturating_add(bytes)))?;
            Ok(Side::Device { address, pitch })
        }
        End::Host { pointer, offset, pitch } => {
            if pointer.address() == 0 {
                return refuse(Status::INVALID_VALUE, "the host's memory is null");
            }
            let range = pointer.range(offset, extent(pitch, width, height));
            let kind = machine.pinned.kind(&range)?;
            if kind == Kind::Pageable {
                machine.refuse_in_capture(actor, "a graph cannot copy from or to pageable memory")?;
            }
            wait |= !source || blocking && kind == Kind::Pinned;
            wait &= blocking || kind == Kind::Pageable;
            Ok(match (source, kind) {
                (true, Kind::Pageable) => {
                    let mut staged = vec![0; width * height];
                    for (row, bytes) in staged.chunks_exact_mut(width).enumerate() {
                        range.read(row * pitch, bytes);
                    }
                    Side::Staged(Arc::from(staged))
                }
                _ => Side::Host { range, pitch },
            })
        }
    };
    let from = side(machine, from, true)?;
    let to = side(machine, to, false)?;
    if machine.capture_of(actor).is_none() {
        machine.counts.copies += 1;
    }
    machine.submit(actor, Work::Copy(Copy { from, to, width, rows: height }))?;
    if wait { machine.synchronise_stream(actor) } else { Ok(()) }
}
