//! Page-locked memory: what was allocated or registered as such.

use crate::ffi::host::{HostBuffer, HostRange};
use crate::status::{Result, Status, refuse};
use std::collections::BTreeMap;

/// What memory holds that nothing was written to, or whose content is not there yet.
pub(crate) const UNWRITTEN: u8 = 0xCD;

#[derive(Debug)]
struct Pinned {
    bytes: usize,
    /// Memory that the simulator allocated, or nothing for registered memory, which belongs to the program.
    buffer: Option<HostBuffer>,
}

/// All page-locked memory.
#[derive(Debug, Default)]
pub(crate) struct PinnedMemory {
    ranges: BTreeMap<u64, Pinned>,
}

/// Whether a copy's host memory is page-locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Pageable,
    Pinned,
}

impl PinnedMemory {
    /// Adds memory that the simulator allocated.
    pub(crate) fn add(&mut self, buffer: HostBuffer, bytes: usize) {
        self.ranges.insert(buffer.address(), Pinned { bytes, buffer: Some(buffer) });
    }

    /// Adds memory of the program.
    pub(crate) fn register(&mut self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 || address == 0 {
            return refuse(Status::INVALID_VALUE, "registers no memory");
        }
        if self.overlapping(address, bytes) {
            return refuse(Status::HOST_MEMORY_ALREADY_REGISTERED, format!("{address:#x} is page-locked already"));
        }
        self.ranges.insert(address, Pinned { bytes, buffer: None });
        Ok(())
    }

    /// The bytes that begin at `address`, which `cuMemHostAlloc` returned.
    pub(crate) fn allocated(&self, address: u64) -> Result<usize> {
        match self.ranges.get(&address) {
            Some(Pinned { bytes, buffer: Some(_) }) => Ok(*bytes),
            _ => refuse(Status::INVALID_VALUE, format!("{address:#x} was not returned by cuMemHostAlloc, or is freed")),
        }
    }

    /// The bytes that begin at `address`, which was registered.
    pub(crate) fn registered(&self, address: u64) -> Result<usize> {
        match self.ranges.get(&address) {
            Some(Pinned { bytes, buffer: None }) => Ok(*bytes),
            _ => refuse(Status::HOST_MEMORY_NOT_REGISTERED, format!("{address:#x} is not registered")),
        }
    }

    /// Frees memory, or forgets that it is registered.
    pub(crate) fn remove(&mut self, address: u64) {
        self.ranges.remove(&address);
    }

    /// What sort of memory a copy names. A range that is page-locked only in part is an error, as on a device.
    pub(crate) fn kind(&self, range: &HostRange) -> Result<Kind> {
        let end = range.address() + range.len() as u64;
        let before = self.ranges.range(..=range.address()).next_back();
        if before.is_some_and(|(start, pinned)| end <= start + pinned.bytes as u64) {
            return Ok(Kind::Pinned);
        }
        if self.overlapping(range.address(), range.len()) {
            let reason = format!("{} bytes at {:#x} are page-locked only in part", range.len(), range.address());
            return refuse(Status::INVALID_VALUE, reason);
        }
        Ok(Kind::Pageable)
    }

    fn overlapping(&self, address: u64, bytes: usize) -> bool {
        let end = address + bytes as u64;
        let before = self.ranges.range(..end).next_back();
        before.is_some_and(|(start, pinned)| start + pinned.bytes as u64 > address)
    }
}
