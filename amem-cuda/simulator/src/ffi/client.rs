//! Calls the functions of the loaded simulator that only tests use.
//!
//! A test has the simulator twice: as this crate, which the test links, and as the shared library, which the program
//! under test loads and which holds the state. So the calls go through the loaded library.

use crate::counts::{Counts, FIELDS};
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

/// The loaded simulator, or nothing when the driver's library is something else.
fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        // SAFETY: the simulator's library runs nothing when it is loaded, and neither does NVIDIA's that needs more than
        // what any program has that uses it.
        let library = unsafe { Library::new("libcuda.so").or_else(|_| Library::new("libcuda.so.1")) }.ok()?;
        // SAFETY: the symbol is only looked for.
        let found = unsafe { library.get::<extern "C" fn()>(b"amem_sim_reset_counts\0") }.is_ok();
        found.then_some(library)
    });
    library.as_ref()
}

/// A function of the simulator.
fn symbol<F>(name: &CStr) -> Option<Symbol<'static, F>> {
    // SAFETY: the callers below give each function the type that `hooks.rs` declares it with.
    unsafe { library()?.get(name.to_bytes_with_nul()) }.ok()
}

type MessageFunction = extern "C" fn(*mut u8, usize) -> usize;

fn message(name: &CStr) -> Option<String> {
    let function = symbol::<MessageFunction>(name)?;
    let mut buffer = vec![0; 1 << 16];
    let bytes = function(buffer.as_mut_ptr(), buffer.len()).min(buffer.len() - 1);
    buffer.truncate(bytes);
    (bytes > 0).then(|| String::from_utf8_lossy(&buffer).into_owned())
}

pub(crate) fn last_fault() -> Option<String> {
    message(c"amem_sim_last_fault")
}

pub(crate) fn finish() -> Option<String> {
    message(c"amem_sim_finish")
}

pub(crate) fn counts() -> Option<Counts> {
    let function = symbol::<extern "C" fn(*mut u64, usize) -> u32>(c"amem_sim_counts")?;
    let mut values = [0; FIELDS];
    (function(values.as_mut_ptr(), FIELDS) == 0).then(|| Counts::from_array(values))
}

pub(crate) fn reset_counts() {
    if let Some(function) = symbol::<extern "C" fn()>(c"amem_sim_reset_counts") {
        function();
    }
}

pub(crate) fn fail(name: &str, calls: u64, status: u32) -> bool {
    let function = symbol::<extern "C" fn(*const c_char, u64, u32) -> u32>(c"amem_sim_fail");
    let (Some(function), Ok(name)) = (function, CString::new(name)) else {
        return false;
    };
    function(name.as_ptr(), calls, status) == 0
}

pub(crate) fn pending_failures() -> usize {
    symbol::<extern "C" fn() -> usize>(c"amem_sim_pending_failures").map_or(0, |function| function())
}

pub(crate) fn reset(seed: u64) {
    if let Some(function) = symbol::<extern "C" fn(u64)>(c"amem_sim_reset") {
        function(seed);
    }
}
