//! Modules, their kernels, and what a launch must obey.

use crate::device::{self, Limits};
use crate::machine::{Machine, new_handle};
use crate::operation::{Entry, Launch, Work};
use crate::order::Actor;
use crate::status::{Result, Status, refuse};
use amem_ptxsim::{Kernel, Module};
use std::sync::Arc;

/// A handle of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) entry: Entry,
    module: u64,
    /// Dynamic shared memory that a launch may have.
    dynamic_limit: usize,
}

impl Machine {
    /// Loads a module from PTX. The error's text is what the driver would write to its log.
    pub(crate) fn load_module(&mut self, text: &str) -> Result<u64> {
        if text.starts_with('\u{7f}') {
            return refuse(Status::INVALID_IMAGE, "the simulator loads PTX, not machine code");
        }
        check_version(text, self.settings.driver)?;
        check_target(text, self.settings.capability)?;
        match Module::parse(text) {
            Ok(module) => {
                let handle = new_handle();
                self.modules.insert(handle, Arc::new(module));
                self.counts.created += 1;
                self.counts.modules += 1;
                Ok(handle)
            }
            Err(error) => {
                let reason = format!("ptxas application ptx input, line {}; error   : {}", error.line, error.reason);
                refuse(Status::INVALID_PTX, reason)
            }
        }
    }

    /// Forgets a module and the handles of its kernels. What is queued still runs.
    pub(crate) fn unload_module(&mut self, handle: u64) -> Result<()> {
        if self.modules.remove(&handle).is_none() {
            return refuse(Status::INVALID_HANDLE, "there is no such module, or it is unloaded");
        }
        self.counts.modules -= 1;
        self.functions.retain(|_, function| function.module != handle);
        Ok(())
    }

    pub(crate) fn function(&mut self, module: u64, name: &str) -> Result<u64> {
        let Some(loaded) = self.modules.get(&module) else {
            return refuse(Status::INVALID_HANDLE, "there is no such module, or it is unloaded");
        };
        let Some(kernel) = loaded.kernel(name) else {
            return refuse(Status::NOT_FOUND, format!("the module has no kernel `{name}`"));
        };
        let dynamic_limit = device::SHARED_PER_BLOCK.saturating_sub(kernel.static_shared());
        let entry = Entry { module: Arc::clone(loaded), name: Arc::from(name) };
        // A kernel has one handle, and what is set for it is set for all who asked for it.
        let known = self.functions.iter().find(|(_, f)| f.module == module && *f.entry.name == *name);
        if let Some((&handle, _)) = known {
            return Ok(handle);
        }
        let handle = new_handle();
        self.functions.insert(handle, Function { entry, module, dynamic_limit });
        Ok(handle)
    }

    pub(crate) fn find_function(&self, handle: u64) -> Result<&Function> {
        match self.functions.get(&handle) {
            Some(function) => Ok(function),
            None => refuse(Status::INVALID_HANDLE, "there is no such kernel, or its module is unloaded"),
        }
    }

    /// A `CUfunction_attribute`.
    pub(crate) fn function_attribute(&self, handle: u64, attribute: u32) -> Result<i32> {
        let function = self.find_function(handle)?;
        let kernel = function.kernel()?;
        let threads = kernel.max_threads().map(|[x, y, z]| x * y * z);
        Ok(match attribute {
            0 => threads.unwrap_or(device::MAX_THREADS_PER_BLOCK) as i32,
            1 => kernel.static_shared() as i32,
            // Constants and local memory: the interpreter has none.
            2 | 3 | 7 => 0,
            // The interpreter does not assign registers.
            4 => 32,
            5 => 80,
            6 => self.settings.capability,
            8 => function.dynamic_limit as i32,
            9 => -1,
            _ => return refuse(Status::INVALID_VALUE, format!("a kernel has no attribute {attribute}")),
        })
    }

    pub(crate) fn set_function_attribute(&mut self, handle: u64, attribute: u32, value: i32) -> Result<()> {
        let statically = self.find_function(handle)?.kernel()?.static_shared();
        match attribute {
            8 => {
                let limit = self.limits().shared_per_block_opt_in();
                if !usize::try_from(value).is_ok_and(|value| value + statically <= limit) {
                    let reason = format!(
                        "{value} bytes of dynamic and {statically} of static shared memory: a block has at most {limit}"
                    );
                    return refuse(Status::INVALID_VALUE, reason);
                }
                self.functions.entry(handle).and_modify(|function| function.dynamic_limit = value as usize);
                Ok(())
            }
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => refuse(Status::INVALID_VALUE, format!("attribute {attribute} cannot be set to {value}")),
        }
    }

    /// How many blocks run on a multiprocessor at once.
    pub(crate) fn occupancy(&self, handle: u64, threads: u32, dynamic_shared: usize) -> Result<i32> {
        let kernel = self.find_function(handle)?.kernel()?;
        if threads == 0 || threads > device::MAX_THREADS_PER_BLOCK {
            return refuse(Status::INVALID_VALUE, format!("a block cannot have {threads} threads"));
        }
        let limits = self.limits();
        let by_threads = (limits.threads_per_multiprocessor / threads) as usize;
        let shared = kernel.static_shared() + dynamic_shared + device::SHARED_RESERVED;
        let by_shared = limits.shared_per_multiprocessor / shared;
        Ok(by_threads.min(by_shared).min(limits.blocks_per_multiprocessor) as i32)
    }

    fn limits(&self) -> Limits {
        Limits::of(self.settings.capability)
    }

    /// Dynamic shared memory that each of some blocks can have when they run on one multiprocessor together.
    pub(crate) fn dynamic_shared_for(&self, handle: u64, blocks: u32, threads: u32) -> Result<usize> {
        let kernel = self.find_function(handle)?.kernel()?;
        if blocks == 0 || self.occupancy(handle, threads, 0)? < blocks as i32 {
            return refuse(Status::INVALID_VALUE, format!("{blocks} blocks of {threads} threads do not fit"));
        }
        let limits = self.limits();
        let each = limits.shared_per_multiprocessor / blocks as usize;
        let taken = kernel.static_shared() + device::SHARED_RESERVED;
        Ok(each.saturating_sub(taken).min(limits.shared_per_block_opt_in() - kernel.static_shared()))
    }

    /// Where a launch's parameters lie in the bytes that are passed, and how many bytes that are.
    pub(crate) fn parameter_layout(&self, handle: u64) -> Result<(Vec<(usize, usize)>, usize)> {
        let kernel = self.find_function(handle)?.kernel()?;
        let layout = kernel.parameters().iter().map(|parameter| (parameter.offset, parameter.size)).collect();
        Ok((layout, kernel.parameter_bytes()))
    }

    /// Launches a kernel.
    pub(crate) fn launch(
        &mut self,
        handle: u64,
        [grid, block]: [[u32; 3]; 2],
        dynamic_shared: usize,
        actor: Actor,
        parameters: Vec<u8>,
    ) -> Result<()> {
        let function = self.find_function(handle)?;
        function.check_launch([grid, block], dynamic_shared)?;
        let entry = function.entry.clone();
        if self.capture_of(actor).is_none() {
            self.counts.launches += 1;
        }
        self.submit(actor, Work::Launch(Launch { entry, grid, block, dynamic_shared, parameters }))
    }
}

impl Function {
    fn kernel(&self) -> Result<&Kernel> {
        match self.entry.kernel() {
            Some(kernel) => Ok(kernel),
            None => refuse(Status::UNKNOWN, "the kernel is gone"),
        }
    }

    /// Fails for what a device refuses at once.
    fn check_launch(&self, [grid, block]: [[u32; 3]; 2], dynamic_shared: usize) -> Result<()> {
        let kernel = self.kernel()?;
        let name = kernel.name();
        let wrong = |size: &[u32; 3], most: &[u32; 3]| size.iter().zip(most).any(|(s, most)| *s == 0 || s > most);
        if wrong(&grid, &device::MAX_GRID) {
            return refuse(Status::INVALID_VALUE, format!("kernel `{name}` cannot have a grid of {grid:?}"));
        }
        let threads = block.iter().product::<u32>();
        if wrong(&block, &device::MAX_BLOCK) || threads > device::MAX_THREADS_PER_BLOCK {
            return refuse(Status::INVALID_VALUE, format!("kernel `{name}` cannot have blocks of {block:?}"));
        }
        if let Some(required) = kernel.required_threads()
            && block != required
        {
            let reason = format!("kernel `{name}` demands blocks of {required:?}, not {block:?}");
            return refuse(Status::INVALID_VALUE, reason);
        }
        if let Some(most) = kernel.max_threads()
            && threads > most.iter().product()
        {
            let reason = format!("kernel `{name}` allows blocks of {most:?}, not {block:?}");
            return refuse(Status::INVALID_VALUE, reason);
        }
        if dynamic_shared > self.dynamic_limit {
            let reason = format!(
                "kernel `{name}` is launched with {dynamic_shared} bytes of dynamic shared memory and may have {}: set \
                 CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES",
                self.dynamic_limit
            );
            return refuse(Status::INVALID_VALUE, reason);
        }
        Ok(())
    }
}

/// The PTX version, times ten, that a driver of a CUDA version understands.
fn ptx_version(driver: i32) -> i32 {
    let (major, minor) = (driver / 1000, driver % 1000 / 10);
    match major {
        // Minor versions of CUDA 12 and PTX 8 part ways after 12.5.
        12 => 80 + [0, 1, 2, 3, 4, 5, 5, 5, 7, 8].get(minor as usize).unwrap_or(&8),
        major => (major - 4) * 10 + minor.min(9),
    }
}

fn directive<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().map(str::trim).find(|line| line.starts_with(name))?;
    line.strip_prefix(name)?.split_whitespace().next()
}

fn check_version(text: &str, driver: i32) -> Result<()> {
    let version = directive(text, ".version").and_then(|version| {
        let (major, minor) = version.split_once('.')?;
        Some(major.parse::<i32>().ok()? * 10 + minor.parse::<i32>().ok()?)
    });
    let known = ptx_version(driver);
    match version {
        Some(version) if version > known => refuse(
            Status::UNSUPPORTED_PTX_VERSION,
            format!(
                "the PTX has version {}.{}, and a driver for CUDA {}.{} knows {}.{}",
                version / 10,
                version % 10,
                driver / 1000,
                driver % 1000 / 10,
                known / 10,
                known % 10
            ),
        ),
        _ => Ok(()),
    }
}

fn check_target(text: &str, capability: i32) -> Result<()> {
    let target = directive(text, ".target").and_then(|target| {
        let digits: String = target.strip_prefix("sm_")?.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<i32>().ok()
    });
    match target {
        Some(target) if target > capability => {
            refuse(Status::INVALID_PTX, format!("the PTX is for sm_{target}, and the device is sm_{capability}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_knows_the_ptx_version_of_its_cuda_version() {
        let versions = [11040, 11080, 12000, 12040, 12060, 12080, 12090, 13000, 13010].map(ptx_version);
        assert_eq!(versions, [74, 78, 80, 84, 85, 87, 88, 90, 91]);
    }

    #[test]
    fn ptx_of_a_newer_version_or_for_a_newer_device_is_refused() {
        let text = ".version 8.7\n.target sm_90a\n.address_size 64\n";
        assert!(check_version(text, 12080).is_ok());
        assert_eq!(check_version(text, 12040).unwrap_err().status, Status::UNSUPPORTED_PTX_VERSION);
        assert!(check_target(text, 90).is_ok());
        assert_eq!(check_target(text, 80).unwrap_err().status, Status::INVALID_PTX);
    }
}
