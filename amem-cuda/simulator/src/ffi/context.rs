//! `cuInit`, devices, contexts, and the names of errors.

use super::pointer::Out;
use super::{call, query};
use crate::device;
use crate::status::{Status, refuse};
use std::ffi::{c_char, c_uint};

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> u32 {
    query("cuInit", |machine| {
        if flags != 0 {
            return refuse(Status::INVALID_VALUE, "the flags must be 0");
        }
        if machine.settings.devices < 1 {
            return Err(Status::NO_DEVICE.into());
        }
        machine.initialised = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: Out<i32>) -> u32 {
    query("cuDriverGetVersion", |machine| version.put(machine.settings.driver))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(error: u32, name: Out<*const c_char>) -> u32 {
    let known = Status(error).name();
    let put = name.put_if_present(known.map_or(std::ptr::null(), |name| name.as_ptr()));
    if put && known.is_some() { Status::SUCCESS.0 } else { Status::INVALID_VALUE.0 }
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(error: u32, text: Out<*const c_char>) -> u32 {
    let known = Status(error).text();
    let put = text.put_if_present(known.map_or(std::ptr::null(), |text| text.as_ptr()));
    if put && known.is_some() { Status::SUCCESS.0 } else { Status::INVALID_VALUE.0 }
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: Out<i32>) -> u32 {
    query("cuDeviceGetCount", |machine| {
        machine.check_initialised()?;
        count.put(machine.settings.devices)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: Out<i32>, ordinal: i32) -> u32 {
    query("cuDeviceGet", |machine| {
        machine.check_device(ordinal)?;
        device.put(ordinal)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: Out<u8>, room: i32, device: i32) -> u32 {
    query("cuDeviceGetName", |machine| {
        machine.check_device(device)?;
        match name.put_text(device::NAME, usize::try_from(room).unwrap_or(0)) {
            true => Ok(()),
            false => refuse(Status::INVALID_VALUE, "there is no room for the name"),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: i32) -> u32 {
    query("cuDeviceGetUuid", |machine| {
        machine.check_device(device)?;
        let mut bytes = *b"amem-simulator-0";
        bytes[15] += device as u8;
        uuid.put(bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) -> u32 {
    cuDeviceGetUuid(uuid, device)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: Out<i32>, attribute: c_uint, device: i32) -> u32 {
    query("cuDeviceGetAttribute", |machine| {
        machine.check_device(device)?;
        value.put(device::attribute(attribute, &machine.settings))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) -> u32 {
    query("cuDeviceTotalMem_v2", |machine| {
        machine.check_device(device)?;
        bytes.put(machine.settings.memory)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: Out<u64>, device: i32) -> u32 {
    query("cuDevicePrimaryCtxRetain", |machine| {
        machine.check_fault()?;
        context.put(machine.retain_primary(device)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: i32) -> u32 {
    query("cuDevicePrimaryCtxRelease_v2", |machine| machine.release_primary(device))
}

/// The older versions of this call take other parameters, which change nothing here.
#[unsafe(no_mangle)]
extern "C" fn cuCtxCreate_v2(context: Out<u64>, _flags: c_uint, device: i32) -> u32 {
    query("cuCtxCreate_v2", |machine| context.put(machine.create_context(device)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxCreate_v3(context: Out<u64>, _affinity: u64, _count: i32, _flags: c_uint, device: i32) -> u32 {
    query("cuCtxCreate_v3", |machine| context.put(machine.create_context(device)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxCreate_v4(context: Out<u64>, _parameters: u64, _flags: c_uint, device: i32) -> u32 {
    query("cuCtxCreate_v4", |machine| context.put(machine.create_context(device)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(context: u64) -> u32 {
    query("cuCtxDestroy_v2", |machine| machine.destroy_context(context))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: Out<u64>) -> u32 {
    query("cuCtxGetCurrent", |machine| {
        machine.check_initialised()?;
        context.put(machine.current_context())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: u64) -> u32 {
    query("cuCtxSetCurrent", |machine| machine.set_current_context(context))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: u64) -> u32 {
    query("cuCtxPushCurrent_v2", |machine| machine.push_context(context))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPopCurrent_v2(context: Out<u64>) -> u32 {
    query("cuCtxPopCurrent_v2", |machine| {
        let popped = machine.pop_context()?;
        context.put_if_present(popped);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: Out<i32>) -> u32 {
    query("cuCtxGetDevice", |machine| device.put(machine.current_device()?))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> u32 {
    call("cuCtxSynchronize", |machine| machine.synchronise_context())
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(_flags: c_uint) -> u32 {
    call("cuCtxSetFlags", |_| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetFlags(flags: Out<c_uint>) -> u32 {
    call("cuCtxGetFlags", |_| flags.put(0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetLimit(value: Out<usize>, _limit: c_uint) -> u32 {
    call("cuCtxGetLimit", |_| value.put(0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(_limit: c_uint, _value: usize) -> u32 {
    call("cuCtxSetLimit", |_| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCacheConfig(config: Out<c_uint>) -> u32 {
    call("cuCtxGetCacheConfig", |_| config.put(0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCacheConfig(_config: c_uint) -> u32 {
    call("cuCtxSetCacheConfig", |_| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) -> u32 {
    call("cuCtxGetStreamPriorityRange", |_| {
        least.put_if_present(0);
        greatest.put_if_present(-5);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStart() -> u32 {
    call("cuProfilerStart", |_| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStop() -> u32 {
    call("cuProfilerStop", |_| Ok(()))
}
