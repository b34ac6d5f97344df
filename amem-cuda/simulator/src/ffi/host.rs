//! The host's memory, as copies see it.

use std::alloc::Layout;
use std::ffi::c_void;

/// A range of the host's memory that a caller named in a copy.
///
/// Queued copies touch it when they run, as a device does: whoever passes memory to an asynchronous copy promises to
/// keep it until the copy has run. The simulator drops a queue that uses page-locked memory before it releases the
/// memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostRange {
    address: usize,
    bytes: usize,
}

impl HostRange {
    pub(crate) fn address(&self) -> u64 {
        self.address as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// What lies at an offset.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        let count = out.len().min(self.bytes.saturating_sub(offset));
        let from = (self.address + offset) as *const u8;
        // SAFETY: the range lies in the memory that the caller named, which stays until the copy has run, and `count`
        // does not run past its end. A correct program does not write to it at the same time; one that does is what
        // the simulator is there to find, and the bytes have no invalid values. `out` is the simulator's own.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), count) };
    }

    /// Changes what lies at an offset.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) {
        let count = data.len().min(self.bytes.saturating_sub(offset));
        let to = (self.address + offset) as *mut u8;
        // SAFETY: as in `read`; the caller named the memory as the target of a copy, so it may be written.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, count) };
    }
}

/// The host's side of a copy, as a caller passes it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct HostPointer(*mut c_void);

impl HostPointer {
    pub(crate) fn address(self) -> u64 {
        self.0 as u64
    }

    /// The memory that begins at the pointer, of which the caller says how much there is.
    pub(crate) fn range(self, offset: usize, bytes: usize) -> HostRange {
        HostRange { address: self.0 as usize + offset, bytes }
    }
}

/// Page-locked memory that the simulator allocated.
#[derive(Debug)]
pub(crate) struct HostBuffer {
    address: usize,
    layout: Layout,
}

impl HostBuffer {
    /// Memory that begins with a page, filled with bytes that no one should rely on.
    pub(crate) fn new(bytes: usize) -> Option<HostBuffer> {
        let layout = Layout::from_size_align(bytes.max(1), 4096).ok()?;
        // SAFETY: the layout's size is at least one.
        let pointer = unsafe { std::alloc::alloc(layout) };
        if pointer.is_null() {
            return None;
        }
        // SAFETY: the memory was allocated with this size.
        unsafe { pointer.write_bytes(crate::host::UNWRITTEN, layout.size()) };
        Some(HostBuffer { address: pointer as usize, layout })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address as u64
    }

    pub(crate) fn pointer(&self) -> *mut c_void {
        self.address as *mut c_void
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated with this layout, and nothing else frees it.
        unsafe { std::alloc::dealloc(self.address as *mut u8, self.layout) };
    }
}

/// A function of the program that a stream calls between its operations.
#[derive(Clone, Copy)]
pub(crate) struct HostCall {
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    argument: usize,
}

impl HostCall {
    pub(crate) fn new(function: Option<unsafe extern "C" fn(*mut c_void)>, argument: HostPointer) -> HostCall {
        HostCall { function, argument: argument.0 as usize }
    }

    pub(crate) fn call(&self) {
        if let Some(function) = self.function {
            // SAFETY: the caller of `cuLaunchHostFunc` passed the function together with the argument to call it with,
            // from any thread and any time later.
            unsafe { function(self.argument as *mut c_void) };
        }
    }
}
