//! Modules and launches.

use super::pointer::{Bytes, In, OptionValue, Out, Parameters, Text};
use super::{blocking_call, call, query};
use crate::machine::Machine;
use crate::status::{Result, Status, refuse};
use std::ffi::c_uint;

/// `CUjit_option`
const ERROR_LOG: c_uint = 5;
const ERROR_LOG_BYTES: c_uint = 6;

/// `CUlaunchConfig`
#[repr(C)]
#[derive(Clone, Copy)]
struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: u64,
    attributes: u64,
    attribute_count: c_uint,
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: Out<u64>, image: Bytes) -> u32 {
    blocking_call("cuModuleLoadData", |machine| module.put(machine.load_module(&image.text()?)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    module: Out<u64>,
    image: Bytes,
    count: c_uint,
    options: In<c_uint>,
    values: In<OptionValue>,
) -> u32 {
    blocking_call("cuModuleLoadDataEx", |machine| {
        let (options, values) = (options.array(count as usize)?, values.array(count as usize)?);
        let value = |option| options.iter().position(|&o| o == option).and_then(|index| values.get(index).copied());
        let error = match machine.load_module(&image.text()?) {
            Ok(handle) => return module.put(handle),
            Err(error) => error,
        };
        if let (Some(log), Some(room)) = (value(ERROR_LOG), value(ERROR_LOG_BYTES)) {
            log.buffer().put_text(&error.reason, room.number());
        }
        Err(error)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoad(module: Out<u64>, path: Text) -> u32 {
    blocking_call("cuModuleLoad", |machine| {
        let path = path.get()?;
        match std::fs::read_to_string(&path) {
            Ok(text) => module.put(machine.load_module(&text)?),
            Err(error) => refuse(Status::FILE_NOT_FOUND, format!("{path}: {error}")),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: u64) -> u32 {
    blocking_call("cuModuleUnload", |machine| machine.unload_module(module))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(function: Out<u64>, module: u64, name: Text) -> u32 {
    call("cuModuleGetFunction", |machine| function.put(machine.function(module, &name.get()?)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetGlobal_v2(_address: Out<u64>, _bytes: Out<usize>, _module: u64, _name: Text) -> u32 {
    call("cuModuleGetGlobal_v2", |_| refuse(Status::NOT_FOUND, "the simulator knows no global variables of modules"))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(value: Out<i32>, attribute: c_uint, function: u64) -> u32 {
    call("cuFuncGetAttribute", |machine| value.put(machine.function_attribute(function, attribute)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: u64, attribute: c_uint, value: i32) -> u32 {
    call("cuFuncSetAttribute", |machine| machine.set_function_attribute(function, attribute, value))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(function: u64, _config: c_uint) -> u32 {
    call("cuFuncSetCacheConfig", |machine| machine.find_function(function).map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: Out<i32>,
    function: u64,
    threads: i32,
    dynamic_shared: usize,
) -> u32 {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", |machine| {
        blocks.put(machine.occupancy(function, u32::try_from(threads).unwrap_or(0), dynamic_shared)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: Out<i32>,
    function: u64,
    threads: i32,
    dynamic_shared: usize,
    _flags: c_uint,
) -> u32 {
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, dynamic_shared)
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: Out<usize>,
    function: u64,
    blocks: i32,
    threads: i32,
) -> u32 {
    call("cuOccupancyAvailableDynamicSMemPerBlock", |machine| {
        let (blocks, threads) = (u32::try_from(blocks).unwrap_or(0), u32::try_from(threads).unwrap_or(0));
        bytes.put(machine.dynamic_shared_for(function, blocks, threads)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: u64,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: u64,
    parameters: Parameters,
    extra: u64,
) -> u32 {
    call("cuLaunchKernel", |machine| {
        let shape = [[grid_x, grid_y, grid_z], [block_x, block_y, block_z]];
        launch(machine, function, shape, shared, stream, &parameters, extra)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(config: In<LaunchConfig>, function: u64, parameters: Parameters, extra: u64) -> u32 {
    call("cuLaunchKernelEx", |machine| {
        let config = config.get()?;
        if config.attribute_count > 0 {
            return refuse(Status::NOT_SUPPORTED, "the simulator knows no launch attributes");
        }
        let shape = [config.grid, config.block];
        launch(machine, function, shape, config.shared, config.stream, &parameters, extra)
    })
}

fn launch(
    machine: &mut Machine,
    function: u64,
    shape: [[u32; 3]; 2],
    shared: c_uint,
    stream: u64,
    parameters: &Parameters,
    extra: u64,
) -> Result<()> {
    if extra != 0 {
        return refuse(Status::NOT_SUPPORTED, "the simulator takes parameters by pointers only");
    }
    let (layout, bytes) = machine.parameter_layout(function)?;
    if parameters.is_null() && !layout.is_empty() {
        return refuse(Status::INVALID_VALUE, "the kernel has parameters, and none were passed");
    }
    let values = parameters.gather(&layout, bytes)?;
    let actor = machine.stream(stream)?;
    machine.launch(function, shape, shared as usize, actor, values)
}

/// The pointer to a function of the driver. The simulator's functions are found by their names alone.
#[unsafe(no_mangle)]
extern "C" fn cuGetProcAddress_v2(
    _name: Text,
    function: Out<u64>,
    _version: i32,
    _flags: u64,
    _status: Out<c_uint>,
) -> u32 {
    query("cuGetProcAddress_v2", |_| {
        function.put_if_present(0);
        refuse(Status::NOT_FOUND, "look functions up with dlsym")
    })
}

/// Blocks run one after another, so that a kernel whose blocks wait for each other cannot run.
#[unsafe(no_mangle)]
extern "C" fn cuLaunchCooperativeKernel(
    _function: u64,
    _grid_x: c_uint,
    _grid_y: c_uint,
    _grid_z: c_uint,
    _block_x: c_uint,
    _block_y: c_uint,
    _block_z: c_uint,
    _shared: c_uint,
    _stream: u64,
    _parameters: Parameters,
) -> u32 {
    call("cuLaunchCooperativeKernel", |_| refuse(Status::NOT_SUPPORTED, "the simulator runs no cooperative kernels"))
}
