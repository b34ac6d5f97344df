//! Loading PTX, and what a launch of a kernel is made of.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError};

use cudarc::driver::{result, sys};

use super::{Buffer, Device};
use crate::error::{CudaError, Result};
use crate::ptx::{self, Entry};

/// Shared memory that a launch may ask for without more ado. A block has 48 KiB, of which kernels that ask for some have
/// less than 16 KiB by themselves.
const UNASKED_SHARED: u32 = 32 << 10;

/// A kernel that the driver has accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    pub(super) function: Function,
    pub(super) entry: &'static Entry,
}

impl Kernel {
    /// Threads of a block.
    pub(crate) fn threads(&self) -> usize {
        self.entry.threads as usize
    }

    /// Outputs of a block, where a block has some of them.
    pub(crate) fn outputs(&self) -> usize {
        self.entry.outputs as usize
    }

    /// Rows of a tile, where the kernel has tiles.
    pub(crate) fn rows(&self) -> usize {
        self.entry.rows as usize
    }
}

/// The driver's handle of a function. Modules are unloaded with their device, so it stays good as long as that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: a handle that the driver takes from any thread.
unsafe impl Send for Function {}
// SAFETY: as above; there is nothing to change in it.
unsafe impl Sync for Function {}

/// The functions that were loaded, by module and name.
#[derive(Default)]
pub(super) struct Modules {
    loaded: HashMap<(&'static str, &'static str), Kernel>,
    /// What they are functions of.
    modules: Vec<Module>,
}

/// A module that the driver has loaded. The device's context must be current where it is dropped.
struct Module(sys::CUmodule);

// SAFETY: a handle that the driver takes from any thread.
unsafe impl Send for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: it was loaded and is unloaded once, when nothing that was submitted runs any more. There is nobody to
        // tell of a failure.
        let _ = unsafe { result::module::unload(self.0) };
    }
}

impl Device {
    /// A kernel of a module, which is compiled by the driver when it is first asked for.
    ///
    /// # Errors
    /// [`CudaError::Refused`] with the log of the driver's compiler.
    pub(crate) fn kernel(&self, module: &'static str, name: &'static str) -> Result<Kernel> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = modules.loaded.get(&(module, name)) {
            return Ok(*kernel);
        }
        let missing = || CudaError::Refused {
            module: module.to_owned(),
            code: sys::CUresult::CUDA_ERROR_NOT_FOUND,
            log: format!("there is no kernel {name}"),
        };
        let text = ptx::text(module).ok_or_else(missing)?;
        self.bind()?;
        let loaded = load(module, text)?;
        let kernels: Vec<Kernel> =
            ptx::entries(module).iter().map(|entry| function(module, &loaded, entry)).collect::<Result<_>>()?;
        modules.loaded.extend(kernels.into_iter().map(|kernel| ((module, kernel.entry.name), kernel)));
        modules.modules.push(loaded);
        modules.loaded.get(&(module, name)).copied().ok_or_else(missing)
    }
}

/// Has the driver compile a module. What it says stays readable, as it would not with cudarc's `load_module`.
fn load(name: &str, text: &str) -> Result<Module> {
    const LOG: usize = 16 << 10;
    let source = CString::new(text).map_err(|_| CudaError::Refused {
        module: name.to_owned(),
        code: sys::CUresult::CUDA_ERROR_INVALID_PTX,
        log: "the text has a zero in it".to_owned(),
    })?;
    let mut log = vec![0u8; LOG];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes numbers in the place of pointers.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut::<c_void>(LOG)];
    let mut module = std::ptr::null_mut();
    // SAFETY: a context is current; the text ends with a zero; there are as many values as options, and the log has the
    // size that is stated for it. All of them outlive the call.
    let loaded = unsafe {
        sys::cuModuleLoadDataEx(
            &raw mut module,
            source.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    loaded.result().map_err(|error| CudaError::Refused {
        module: name.to_owned(),
        code: error.0,
        log: CStr::from_bytes_until_nul(&log).map(|log| log.to_string_lossy().trim().to_owned()).unwrap_or_default(),
    })?;
    Ok(Module(module))
}

fn function(module: &str, loaded: &Module, entry: &'static Entry) -> Result<Kernel> {
    let refused = |code, log: &str| CudaError::Refused { module: module.to_owned(), code, log: log.to_owned() };
    let name = CString::new(entry.name).map_err(|_| refused(sys::CUresult::CUDA_ERROR_INVALID_VALUE, "a bad name"))?;
    // SAFETY: the module is loaded into the current context.
    let function = unsafe { result::module::get_function(loaded.0, name) }
        .map_err(|error| refused(error.0, &format!("it has no kernel {}", entry.name)))?;
    if entry.shared > UNASKED_SHARED {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is the current context's.
        unsafe { result::function::set_function_attribute(function, attribute, entry.shared as i32) }.map_err(
            |error| refused(error.0, &format!("{} needs {} bytes of shared memory", entry.name, entry.shared)),
        )?;
    }
    Ok(Kernel { function: Function(function), entry })
}

/// A launch: a kernel, its grid, and its arguments in the order of its parameters.
///
/// Every buffer comes with the bytes that the kernel may touch of it, and is refused if it is smaller. It stays borrowed
/// until the launch is submitted: given back before that, its memory could be another's by then. Afterwards the order of
/// the stream protects it.
#[derive(Debug)]
pub(crate) struct Launch<'b> {
    call: Call,
    name: &'static str,
    buffers: PhantomData<&'b Buffer>,
}

/// What the driver is told of a launch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(super) function: Function,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared: u32,
    /// Each in the low bytes of a number, as the machines that CUDA runs on keep them.
    pub(super) arguments: Vec<u64>,
}

impl<'b> Launch<'b> {
    pub(crate) fn new(kernel: &Kernel, grid: [usize; 3]) -> Self {
        let Kernel { function, entry } = *kernel;
        let grid = grid.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let call = Call { function, grid, threads: entry.threads, shared: entry.shared, arguments: Vec::new() };
        Self { call, name: entry.name, buffers: PhantomData }
    }

    /// With the shared memory that the kernel needs for heads of so many numbers.
    pub(crate) fn of_heads(mut self, kernel: &Kernel, head_dim: usize) -> Self {
        let more = u32::try_from(head_dim).unwrap_or(u32::MAX).saturating_mul(kernel.entry.shared_per_head_dim);
        self.call.shared = self.call.shared.saturating_add(more);
        self
    }

    /// The next argument: a buffer, of which the kernel touches so many bytes.
    pub(crate) fn buffer(self, buffer: &'b Buffer, bytes: usize) -> Result<Self> {
        self.part(buffer, 0, bytes)
    }

    /// The next argument: so many bytes of a buffer, from an offset on.
    pub(crate) fn part(mut self, buffer: &'b Buffer, offset: usize, bytes: usize) -> Result<Self> {
        let needed = offset.saturating_add(bytes);
        if needed > buffer.bytes() {
            return Err(CudaError::Shape { kernel: self.name, needed, found: buffer.bytes() });
        }
        self.call.arguments.push(buffer.address() + offset as u64);
        Ok(self)
    }

    /// The next argument: no buffer.
    pub(crate) fn none(self) -> Self {
        self.number(0)
    }

    /// The next argument: a count.
    pub(crate) fn count(self, count: usize) -> Self {
        self.number(count as u64)
    }

    /// The next argument: a real number.
    pub(crate) fn real(self, number: f32) -> Self {
        self.number(u64::from(number.to_bits()))
    }

    fn number(mut self, number: u64) -> Self {
        self.call.arguments.push(number);
        self
    }

    /// Submits it to the compute stream. A grid without blocks is no launch.
    pub(crate) fn submit(self, device: &Arc<Device>) -> Result<()> {
        if self.call.grid.contains(&0) {
            return Ok(());
        }
        device.submit(super::queue::Command::Launch(self.call))
    }

    /// What the driver is told, for [`Staging::load`](super::Staging::load), within which the buffers have to live on.
    pub(crate) fn into_call(self) -> Call {
        self.call
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_that_grows_with_heads_need_not_be_asked_for() {
        // The widest heads that attention has kernels for.
        const WIDEST: u32 = 256;
        let entries = ["kv_bf16", "kv_f16", "kv_f32"].into_iter().flat_map(ptx::entries);
        let most = entries.map(|entry| entry.shared + WIDEST * entry.shared_per_head_dim).max();
        assert!(most.is_some_and(|most| most <= UNASKED_SHARED), "{most:?}");
    }
}
