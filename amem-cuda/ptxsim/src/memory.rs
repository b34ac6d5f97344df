//! Global memory: allocations with gaps between them, which know which of their bytes were ever written.

use crate::contents::Contents;
use crate::touches::{Touch, Touches};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// The first address. Far from zero, so that no small number is an address by accident.
const FIRST_ADDRESS: u64 = 0x7f00_0000_0000;

/// Bytes at least between two allocations, so that an overrun does not land in the next one.
const GAP: u64 = 4096;

/// What an allocation's address is a multiple of, as with `cuMemAlloc`.
const ALIGNMENT: u64 = 512;

/// Freed allocations that are remembered, to tell a use after free from other wrong addresses.
const REMEMBERED: usize = 4096;

/// Why an access to memory from outside of a kernel failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryError {
    /// No allocation has this address, or none begins there.
    NotAllocated {
        /// The address.
        address: u64,
    },
    /// The allocation was freed.
    Freed {
        /// Its name.
        name: String,
    },
    /// The access runs past the allocation's end.
    OutOfBounds {
        /// The allocation's name.
        name: String,
        /// Where in it the access begins.
        offset: usize,
        /// Bytes accessed.
        bytes: usize,
        /// Bytes that it has.
        len: usize,
    },
    /// A byte was never written.
    Uninitialised {
        /// The allocation's name.
        name: String,
        /// The first such byte.
        offset: usize,
    },
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllocated { address } => write!(f, "{address:#x} is in no allocation"),
            Self::Freed { name } => write!(f, "`{name}` was freed"),
            Self::OutOfBounds { name, offset, bytes, len } => {
                write!(f, "{bytes} bytes at offset {offset} run past the end of `{name}`, which has {len}")
            }
            Self::Uninitialised { name, offset } => write!(f, "byte {offset} of `{name}` was never written"),
        }
    }
}

impl std::error::Error for MemoryError {}

/// Written by atomic instructions of several blocks, or read by several blocks.
const SEVERAL: u32 = (1 << 31) - 1;
/// Added to a writer all of whose writes were atomic.
const ATOMIC: u32 = 1 << 31;
/// Added to a reader some of whose reads were `.nc`.
const CONSTANT: u32 = 1 << 31;

struct Allocation {
    address: u64,
    name: String,
    contents: Contents,
    /// Empty unless the running launch touched this allocation.
    touches: Touches,
}

/// A range of global memory that a launch read or wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalAccess {
    /// The bytes. Those of one range lie in one allocation.
    pub range: Range<u64>,
    /// Written, and perhaps read as well. Otherwise only read.
    pub written: bool,
}

impl Allocation {
    fn offset_of(&self, address: u64, bytes: usize) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.address)?).ok()?;
        (offset.checked_add(bytes)? <= self.contents.len()).then_some(offset)
    }

    fn unwritten(&self, offset: usize) -> MemoryError {
        MemoryError::Uninitialised { name: self.name.clone(), offset }
    }
}

/// Why a kernel's access to global memory failed.
#[derive(Debug)]
pub(crate) enum AccessError {
    Memory(MemoryError),
    Race(String),
    ReadOnly(String),
}

/// The device's global memory.
#[derive(Default)]
pub struct Memory {
    /// In the order of their addresses.
    allocations: Vec<Allocation>,
    freed: BTreeMap<u64, (usize, String)>,
    next: u64,
    launch: LaunchState,
    accesses: Vec<GlobalAccess>,
}

/// What the running launch needs to find races between its blocks.
#[derive(Default)]
struct LaunchState {
    granule: usize,
    /// The running block's number plus one.
    block: u32,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.allocations.iter().map(|allocation| allocation.contents.len()).sum();
        f.debug_struct("Memory").field("allocations", &self.allocations.len()).field("bytes", &bytes).finish()
    }
}

impl Memory {
    /// Memory with nothing allocated.
    #[must_use]
    pub fn new() -> Self {
        Self { next: FIRST_ADDRESS, ..Self::default() }
    }

    /// Allocates memory and returns its address, which is a multiple of 512. No address is given out twice. Faults and
    /// errors call the allocation by its name.
    pub fn allocate(&mut self, name: &str, bytes: usize) -> u64 {
        let address = self.next.max(FIRST_ADDRESS);
        self.next = (address + bytes as u64 + GAP).next_multiple_of(ALIGNMENT);
        self.allocations.push(Allocation {
            address,
            name: name.to_owned(),
            contents: Contents::new(bytes),
            touches: Touches::default(),
        });
        address
    }

    /// Frees an allocation, given its address.
    ///
    /// # Errors
    /// When no allocation begins there, for example because it was freed before.
    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let Ok(index) = self.allocations.binary_search_by_key(&address, |allocation| allocation.address) else {
            return Err(match self.freed.get(&address) {
                Some((_, name)) => MemoryError::Freed { name: name.clone() },
                None => MemoryError::NotAllocated { address },
            });
        };
        let allocation = self.allocations.remove(index);
        self.freed.insert(address, (allocation.contents.len(), allocation.name));
        if self.freed.len() > REMEMBERED {
            self.freed.pop_first();
        }
        Ok(())
    }

    /// Bytes that are allocated.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.allocations.iter().map(|allocation| allocation.contents.len()).sum()
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// When they do not lie in one allocation.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        let (index, offset) = self.find(address, data.len(), 0)?;
        self.allocations[index].contents.set(offset, data);
        Ok(())
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// When they do not lie in one allocation, or one of them was never written.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let (index, offset) = self.find(address, out.len(), 0)?;
        let allocation = &self.allocations[index];
        if let Some(at) = allocation.contents.first_unwritten(offset, out.len()) {
            return Err(allocation.unwritten(at));
        }
        allocation.contents.get(offset, out);
        Ok(())
    }

    /// Reads bytes. Those that were never written read as `0xCD`.
    ///
    /// # Errors
    /// When they do not lie in one allocation.
    pub fn read_raw(&self, address: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let (index, offset) = self.find(address, out.len(), 0)?;
        self.allocations[index].contents.get_raw(offset, out);
        Ok(())
    }

    /// Copies bytes. A byte that was never written is not written at its target either.
    ///
    /// # Errors
    /// When one of the two ranges does not lie in one allocation.
    pub fn copy(&mut self, from: u64, to: u64, len: usize) -> Result<(), MemoryError> {
        let (source, from) = self.find(from, len, 0)?;
        let (target, to) = self.find(to, len, source)?;
        let (bytes, written) = self.allocations[source].contents.get_with_state(from, len);
        self.allocations[target].contents.set_with_state(to, &bytes, &written);
        Ok(())
    }

    /// Sets bytes.
    ///
    /// # Errors
    /// When they do not lie in one allocation.
    pub fn fill(&mut self, address: u64, byte: u8, len: usize) -> Result<(), MemoryError> {
        let (index, offset) = self.find(address, len, 0)?;
        self.allocations[index].contents.fill(offset, byte, len);
        Ok(())
    }

    /// The allocation that a range lies in, and where. Looks at the one with the index `hint` first.
    fn find(&self, address: u64, len: usize, hint: usize) -> Result<(usize, usize), MemoryError> {
        if let Some(offset) = self.allocations.get(hint).and_then(|allocation| allocation.offset_of(address, len)) {
            return Ok((hint, offset));
        }
        let above = self.allocations.partition_point(|allocation| allocation.address <= address);
        let Some(allocation) = above.checked_sub(1).and_then(|index| self.allocations.get(index)) else {
            return Err(self.missing(address));
        };
        match allocation.offset_of(address, len) {
            Some(offset) => Ok((above - 1, offset)),
            // An address within the gap behind an allocation is an overrun of it.
            None if address - allocation.address < allocation.contents.len() as u64 + GAP => {
                Err(MemoryError::OutOfBounds {
                    name: allocation.name.clone(),
                    offset: (address - allocation.address) as usize,
                    bytes: len,
                    len: allocation.contents.len(),
                })
            }
            None => Err(self.missing(address)),
        }
    }

    #[cold]
    fn missing(&self, address: u64) -> MemoryError {
        match self.freed.range(..=address).next_back() {
            Some((start, (len, name))) if address - start < *len as u64 => MemoryError::Freed { name: name.clone() },
            _ => MemoryError::NotAllocated { address },
        }
    }

    /// A launch begins. `granule` is the size of its narrowest access.
    pub(crate) fn begin_launch(&mut self, granule: usize) {
        self.launch = LaunchState { granule: granule.max(1), block: 0 };
    }

    pub(crate) fn begin_block(&mut self, number: u32) {
        self.launch.block = number + 1;
    }

    pub(crate) fn end_launch(&mut self) {
        let granule = self.launch.granule;
        self.launch = LaunchState::default();
        self.accesses.clear();
        for allocation in &mut self.allocations {
            if !allocation.touches.is_empty() {
                allocation.collect_accesses(granule, &mut self.accesses);
                allocation.touches = Touches::default();
            }
        }
    }

    /// The global memory that the last launch accessed, in the order of the addresses, also when the launch ended with a
    /// fault. It is noted in units of the kernel's narrowest access.
    #[must_use]
    pub fn last_accesses(&self) -> &[GlobalAccess] {
        &self.accesses
    }

    /// A kernel's copy reads bytes of any number, at most 16, which may lie across two words of bits.
    pub(crate) fn load_run(&mut self, address: u64, out: &mut [u8]) -> Result<(), AccessError> {
        let (index, offset) = self.find(address, out.len(), 0).map_err(AccessError::Memory)?;
        let allocation = &mut self.allocations[index];
        if let Some(at) = allocation.contents.first_unwritten(offset, out.len()) {
            return Err(AccessError::Memory(allocation.unwritten(at)));
        }
        allocation.touch(offset, out.len(), &self.launch, Access::Read)?;
        allocation.contents.get(offset, out);
        Ok(())
    }

    /// A kernel reads bytes that are aligned to their number, at most 16.
    #[inline]
    pub(crate) fn load_bytes(
        &mut self,
        address: u64,
        out: &mut [u8],
        hint: &mut usize,
        read_only: bool,
    ) -> Result<(), AccessError> {
        let (index, offset) = self.find(address, out.len(), *hint).map_err(AccessError::Memory)?;
        *hint = index;
        let allocation = &mut self.allocations[index];
        if !allocation.contents.is_written(offset, out.len()) {
            let at = allocation.contents.first_unwritten(offset, out.len()).unwrap_or(offset);
            return Err(AccessError::Memory(allocation.unwritten(at)));
        }
        let access = if read_only { Access::ReadConstant } else { Access::Read };
        allocation.touch(offset, out.len(), &self.launch, access)?;
        allocation.contents.get(offset, out);
        Ok(())
    }

    /// A kernel writes bytes that are aligned to their number, at most 16.
    #[inline]
    pub(crate) fn store_bytes(&mut self, address: u64, data: &[u8], hint: &mut usize) -> Result<(), AccessError> {
        let (index, offset) = self.find(address, data.len(), *hint).map_err(AccessError::Memory)?;
        *hint = index;
        let allocation = &mut self.allocations[index];
        allocation.touch(offset, data.len(), &self.launch, Access::Write)?;
        allocation.contents.set(offset, data);
        Ok(())
    }

    /// A kernel changes an aligned value of 4 or 8 bytes atomically. Returns what it was before.
    pub(crate) fn atomic(
        &mut self,
        address: u64,
        size: usize,
        change: impl FnOnce(u64) -> u64,
    ) -> Result<u64, AccessError> {
        let (index, offset) = self.find(address, size, 0).map_err(AccessError::Memory)?;
        let allocation = &mut self.allocations[index];
        if let Some(at) = allocation.contents.first_unwritten(offset, size) {
            return Err(AccessError::Memory(allocation.unwritten(at)));
        }
        allocation.touch(offset, size, &self.launch, Access::Atomic)?;
        let mut bytes = [0; 8];
        allocation.contents.get(offset, &mut bytes[..size]);
        let old = u64::from_le_bytes(bytes);
        allocation.contents.set(offset, &change(old).to_le_bytes()[..size]);
        Ok(old)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    /// With `.nc`.
    ReadConstant,
    Write,
    Atomic,
}

impl Allocation {
    /// Adds what the launch that ends did to this allocation.
    fn collect_accesses(&self, granule: usize, accesses: &mut Vec<GlobalAccess>) {
        let address = |run: usize| self.address + (run * granule).min(self.contents.len()) as u64;
        let runs = self.touches.collect().into_iter();
        accesses.extend(
            runs.map(|(runs, written)| GlobalAccess { range: address(runs.start)..address(runs.end), written }),
        );
    }

    /// Notes which block touches a range, and finds what another block did to it.
    fn touch(&mut self, offset: usize, len: usize, launch: &LaunchState, access: Access) -> Result<(), AccessError> {
        let me = launch.block;
        let runs = offset / launch.granule..(offset + len - 1) / launch.granule + 1;
        let count = self.contents.len().div_ceil(launch.granule);
        let name = &self.name;
        self.touches.visit(runs, count, |touch| {
            let foreign_write = touch.writer != 0 && touch.writer & !ATOMIC != me;
            let foreign_read = touch.reader != 0 && touch.reader & !CONSTANT != me;
            let constant = match access {
                Access::Read => false,
                Access::ReadConstant => touch.writer != 0,
                Access::Write | Access::Atomic => touch.reader & CONSTANT != 0,
            };
            if constant {
                return Err(written_constant(name, offset));
            }
            let race = match access {
                Access::Read | Access::ReadConstant => foreign_write,
                Access::Write => foreign_write || foreign_read,
                Access::Atomic => (foreign_write && touch.writer & ATOMIC == 0) || foreign_read,
            };
            if race {
                return Err(race_between(name, offset, *touch, access));
            }
            match access {
                Access::Read | Access::ReadConstant => {
                    let constant = touch.reader & CONSTANT | if access == Access::Read { 0 } else { CONSTANT };
                    touch.reader = constant | if foreign_read { SEVERAL } else { me };
                }
                Access::Write => touch.writer = me,
                Access::Atomic if foreign_write => touch.writer = SEVERAL | ATOMIC,
                Access::Atomic if touch.writer == 0 => touch.writer = me | ATOMIC,
                Access::Atomic => {}
            }
            Ok(())
        })
    }
}

#[cold]
fn written_constant(name: &str, offset: usize) -> AccessError {
    AccessError::ReadOnly(format!("byte {offset} of `{name}` is read with `.nc` and written in the same launch"))
}

#[cold]
fn race_between(name: &str, offset: usize, touch: Touch, access: Access) -> AccessError {
    let block = |number: u32| match number & !ATOMIC {
        SEVERAL => "several blocks".to_owned(),
        number => format!("block number {}", number - 1),
    };
    let this = match access {
        Access::Read | Access::ReadConstant => "read",
        Access::Write => "written",
        Access::Atomic => "changed atomically",
    };
    let other = if touch.writer == 0 {
        format!("read by {}", block(touch.reader))
    } else {
        format!("written by {}", block(touch.writer))
    };
    AccessError::Race(format!("byte {offset} of `{name}` is {this} here and {other} in the same launch"))
}
