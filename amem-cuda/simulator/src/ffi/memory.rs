//! Allocating, freeing and filling memory.

use super::host::HostPointer;
use super::pointer::Out;
use super::{blocking_call, call, query};
use crate::machine::Machine;
use crate::operation::{Fill, Work, extent};
use crate::status::{Result, Status, refuse};
use crate::stream::LEGACY;
use std::ffi::{c_uint, c_void};

/// The handle of the one memory pool.
const POOL: u64 = 0x900;

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> u32 {
    call("cuMemGetInfo_v2", |machine| {
        let (left, all) = machine.memory_info();
        free.put_if_present(left);
        total.put_if_present(all);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) -> u32 {
    blocking_call("cuMemAlloc_v2", |machine| address.put(machine.allocate(bytes)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    blocking_call("cuMemFree_v2", |machine| machine.free(address))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: u64) -> u32 {
    call("cuMemAllocAsync", |machine| {
        let stream = machine.stream(stream)?;
        address.put(machine.allocate_async(stream, bytes)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: u64, stream: u64) -> u32 {
    call("cuMemAllocFromPoolAsync", |machine| {
        check_pool(pool)?;
        let stream = machine.stream(stream)?;
        address.put(machine.allocate_async(stream, bytes)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: u64) -> u32 {
    call("cuMemFreeAsync", |machine| {
        let stream = machine.stream(stream)?;
        machine.free_async(stream, address)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocManaged(_address: Out<u64>, _bytes: usize, _flags: c_uint) -> u32 {
    call("cuMemAllocManaged", |_| refuse(Status::NOT_SUPPORTED, "the simulator has no managed memory"))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(address: Out<*mut c_void>, bytes: usize, _flags: c_uint) -> u32 {
    blocking_call("cuMemHostAlloc", |machine| address.put(machine.allocate_host(bytes)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocHost_v2(address: Out<*mut c_void>, bytes: usize) -> u32 {
    blocking_call("cuMemAllocHost_v2", |machine| address.put(machine.allocate_host(bytes)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: HostPointer) -> u32 {
    blocking_call("cuMemFreeHost", |machine| machine.free_host(address.address()))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(address: HostPointer, bytes: usize, _flags: c_uint) -> u32 {
    blocking_call("cuMemHostRegister_v2", |machine| machine.register_host(address.address(), bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(address: HostPointer) -> u32 {
    blocking_call("cuMemHostUnregister", |machine| machine.unregister_host(address.address()))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetDefaultMemPool(pool: Out<u64>, device: i32) -> u32 {
    query("cuDeviceGetDefaultMemPool", |machine| {
        machine.check_device(device)?;
        pool.put(POOL)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetMemPool(pool: Out<u64>, device: i32) -> u32 {
    query("cuDeviceGetMemPool", |machine| {
        machine.check_device(device)?;
        pool.put(POOL)
    })
}

/// Attributes of the pool say when memory goes back to the system, which makes no difference here.
#[unsafe(no_mangle)]
extern "C" fn cuMemPoolSetAttribute(pool: u64, _attribute: c_uint, _value: u64) -> u32 {
    query("cuMemPoolSetAttribute", |_| check_pool(pool))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(pool: u64, _keep: usize) -> u32 {
    query("cuMemPoolTrimTo", |_| check_pool(pool))
}

fn check_pool(pool: u64) -> Result<()> {
    if pool == POOL { Ok(()) } else { refuse(Status::INVALID_VALUE, "there is no such memory pool") }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(address: u64, value: u8, count: usize) -> u32 {
    blocking_call("cuMemsetD8_v2", |machine| fill(machine, 0, address, &[value], count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16_v2(address: u64, value: u16, count: usize) -> u32 {
    blocking_call("cuMemsetD16_v2", |machine| fill(machine, 0, address, &value.to_le_bytes(), count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(address: u64, value: u32, count: usize) -> u32 {
    blocking_call("cuMemsetD32_v2", |machine| fill(machine, 0, address, &value.to_le_bytes(), count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(address: u64, value: u8, count: usize, stream: u64) -> u32 {
    call("cuMemsetD8Async", |machine| fill(machine, stream, address, &[value], count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(address: u64, value: u16, count: usize, stream: u64) -> u32 {
    call("cuMemsetD16Async", |machine| fill(machine, stream, address, &value.to_le_bytes(), count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(address: u64, value: u32, count: usize, stream: u64) -> u32 {
    call("cuMemsetD32Async", |machine| fill(machine, stream, address, &value.to_le_bytes(), count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD2D8Async(address: u64, pitch: usize, value: u8, width: usize, rows: usize, stream: u64) -> u32 {
    call("cuMemsetD2D8Async", |machine| {
        if pitch < width {
            return refuse(Status::INVALID_VALUE, "the rows overlap");
        }
        submit_fill(machine, stream, Fill { address, pitch, pattern: vec![value], width, rows })
    })
}

fn fill(machine: &mut Machine, stream: u64, address: u64, pattern: &[u8], count: usize) -> Result<()> {
    if !address.is_multiple_of(pattern.len() as u64) {
        return refuse(Status::INVALID_VALUE, format!("{address:#x} is not a multiple of {}", pattern.len()));
    }
    let Some(width) = count.checked_mul(pattern.len()) else {
        return refuse(Status::INVALID_VALUE, format!("{count} elements are too many"));
    };
    submit_fill(machine, stream, Fill { address, pitch: width, pattern: pattern.to_vec(), width, rows: 1 })
}

fn submit_fill(machine: &mut Machine, stream: u64, fill: Fill) -> Result<()> {
    let stream = if stream == 0 { LEGACY } else { machine.stream(stream)? };
    let bytes = extent(fill.pitch, fill.width, fill.rows) as u64;
    machine.check_device_range(&(fill.address..fill.address.saturating_add(bytes)))?;
    if bytes == 0 {
        return Ok(());
    }
    if machine.capture_of(stream).is_none() {
        machine.counts.fills += 1;
    }
    machine.submit(stream, Work::Fill(fill))
}
