//! Allocating and freeing memory.

use crate::ffi::host::HostBuffer;
use crate::machine::Machine;
use crate::operation::Work;
use crate::order::{Actor, Clock, Conflict, Epoch};
use crate::status::{Result, Status, refuse};
use std::ops::Range;
use std::sync::Arc;

/// What a small allocation takes is a multiple of this. Several of them lie in one page.
const GRANULARITY: usize = 512;

/// What a large allocation takes is a multiple of this: it has pages of its own.
const PAGE: usize = 2 << 20;

/// From here on an allocation is large.
const LARGE: usize = (1 << 20) + 1;

/// Bytes that an allocation takes of a device. What is left of a page that small ones lie in is not counted: others of
/// them may come to lie there.
fn taken(bytes: usize) -> usize {
    bytes.next_multiple_of(if bytes < LARGE { GRANULARITY } else { PAGE })
}

/// An allocation of device memory.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) name: String,
    pub(crate) bytes: usize,
    /// A call freed it, although operations that were queued before may still use it.
    pub(crate) freed: bool,
}

impl Machine {
    /// Bytes that can still be allocated, and bytes in all.
    pub(crate) fn memory_info(&self) -> (usize, usize) {
        let used = self.counts.allocated_bytes as usize;
        (self.settings.memory.saturating_sub(used), self.settings.memory)
    }

    /// Allocates device memory that every stream may use at once.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<u64> {
        if bytes == 0 {
            return refuse(Status::INVALID_VALUE, "allocates no bytes");
        }
        let (free, total) = self.memory_info();
        // Beyond all memory, rounding could overflow.
        if bytes > free || taken(bytes) > free {
            let reason = format!("{bytes} bytes do not fit into the {free} that are left of {total}");
            return refuse(Status::OUT_OF_MEMORY, reason);
        }
        self.counts.allocations += 1;
        self.counts.allocated_bytes += taken(bytes) as u64;
        self.counts.most_allocated_bytes = self.counts.most_allocated_bytes.max(self.counts.allocated_bytes);
        let name = format!("allocation {} of {bytes} bytes", self.counts.allocations);
        let address = self.memory.allocate(&name, bytes);
        self.allocations.insert(address, Allocation { name, bytes, freed: false });
        Ok(address)
    }

    /// Allocates device memory that a stream may use, and others once they waited for it.
    pub(crate) fn allocate_async(&mut self, stream: Actor, bytes: usize) -> Result<u64> {
        self.refuse_in_capture(stream, "memory cannot be allocated in a graph")?;
        let address = self.allocate(bytes)?;
        self.submit(stream, Work::Allocate { address, bytes })?;
        Ok(address)
    }

    /// Frees device memory at once. Nothing may use it any more.
    pub(crate) fn free(&mut self, address: u64) -> Result<()> {
        if address == 0 {
            return Ok(());
        }
        let range = self.release(address)?;
        if let Some(user) = self.queued_user(|work| work.touches_device(&range)) {
            return Err(self.fault(format!("cuMemFree of {address:#x} while a queued operation uses it: {user}")));
        }
        if let Err(conflict) = self.device_history.check(range.clone(), true, &self.host_clock) {
            let message = format!(
                "cuMemFree of {address:#x}, which the host did not wait for to be unused: {} {} it",
                conflict.earlier.label,
                if conflict.earlier_wrote { "wrote" } else { "read" },
            );
            return Err(self.fault(message));
        }
        self.remove_allocation(range)
    }

    /// Frees device memory once a stream has come there.
    pub(crate) fn free_async(&mut self, stream: Actor, address: u64) -> Result<()> {
        if address == 0 {
            return Ok(());
        }
        self.refuse_in_capture(stream, "memory cannot be freed in a graph")?;
        let range = self.release(address)?;
        self.submit(stream, Work::Free { address, bytes: (range.end - range.start) as usize })
    }

    /// Marks an allocation as freed, so that later calls cannot name it.
    fn release(&mut self, address: u64) -> Result<Range<u64>> {
        match self.allocations.get_mut(&address) {
            Some(allocation) if !allocation.freed => {
                allocation.freed = true;
                self.counts.frees += 1;
                self.counts.allocated_bytes -= taken(allocation.bytes) as u64;
                Ok(address..address + allocation.bytes as u64)
            }
            Some(_) => refuse(Status::INVALID_VALUE, format!("{address:#x} is freed twice")),
            None => refuse(Status::INVALID_VALUE, format!("{address:#x} is not the address of an allocation")),
        }
    }

    /// Takes an allocation's memory away.
    pub(crate) fn remove_allocation(&mut self, range: Range<u64>) -> Result<()> {
        self.allocations.remove(&range.start);
        self.device_history.forget(range.clone());
        match self.memory.free(range.start) {
            Ok(()) => Ok(()),
            Err(error) => refuse(Status::UNKNOWN, error.to_string()),
        }
    }

    /// Fails when a call names memory that is not within one allocation.
    pub(crate) fn check_device_range(&self, range: &Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let bytes = range.end - range.start;
        let reason = match self.allocation_at(range.start) {
            Some((_, allocation)) if allocation.freed => format!("{} is freed", allocation.name),
            Some((start, allocation)) if range.end > start + allocation.bytes as u64 => {
                format!("{bytes} bytes at offset {} run past the end of {}", range.start - start, allocation.name)
            }
            Some(_) => return Ok(()),
            None => format!("{:#x} is not device memory", range.start),
        };
        refuse(Status::INVALID_VALUE, reason)
    }

    fn allocation_at(&self, address: u64) -> Option<(u64, &Allocation)> {
        let (&start, allocation) = self.allocations.range(..=address).next_back()?;
        (address < start + allocation.bytes as u64).then_some((start, allocation))
    }

    /// Where an address lies, for messages.
    pub(crate) fn describe_device(&self, range: &Range<u64>) -> String {
        match self.allocation_at(range.start) {
            Some((start, allocation)) => {
                format!("bytes {}..{} of {}", range.start - start, range.end - start, allocation.name)
            }
            None => format!("device memory {:#x}..{:#x}", range.start, range.end),
        }
    }

    /// Page-locked memory.
    pub(crate) fn allocate_host(&mut self, bytes: usize) -> Result<*mut std::ffi::c_void> {
        if bytes == 0 {
            return refuse(Status::INVALID_VALUE, "allocates no bytes");
        }
        let Some(buffer) = HostBuffer::new(bytes) else {
            return refuse(Status::OUT_OF_MEMORY, format!("the host has no {bytes} bytes"));
        };
        let pointer = buffer.pointer();
        self.counts.host_allocations += 1;
        self.counts.host_bytes += bytes as u64;
        self.pinned.add(buffer, bytes);
        Ok(pointer)
    }

    pub(crate) fn free_host(&mut self, address: u64) -> Result<()> {
        let bytes = self.pinned.allocated(address)?;
        self.release_host("cuMemFreeHost", address, bytes)?;
        self.counts.host_bytes -= bytes as u64;
        Ok(())
    }

    pub(crate) fn register_host(&mut self, address: u64, bytes: usize) -> Result<()> {
        self.pinned.register(address, bytes)?;
        self.counts.host_allocations += 1;
        Ok(())
    }

    pub(crate) fn unregister_host(&mut self, address: u64) -> Result<()> {
        let bytes = self.pinned.registered(address)?;
        self.release_host("cuMemHostUnregister", address, bytes)
    }

    /// Takes page-locked memory away, which nothing may use any more.
    fn release_host(&mut self, function: &str, address: u64, bytes: usize) -> Result<()> {
        let range = address..address + bytes as u64;
        if let Some(user) = self.queued_user(|work| work.touches_host(&range)) {
            return Err(self.fault(format!("{function} of {address:#x} while a queued operation uses it: {user}")));
        }
        if let Err(conflict) = self.host_history.check(range.clone(), true, &self.host_clock) {
            let label = conflict.earlier.label;
            return Err(self.fault(format!("{function} of {address:#x}, and the host did not wait for: {label}")));
        }
        self.host_history.forget(range);
        self.pinned.remove(address);
        Ok(())
    }

    /// The first queued operation that the host did not wait for and that uses some memory.
    fn queued_user(&self, uses: impl Fn(&Work) -> bool) -> Option<String> {
        let mut queued = self.streams.iter().flat_map(|stream| stream.queue.iter().map(move |op| (stream, op)));
        let (stream, operation) = queued.find(|(_, operation)| uses(&operation.work))?;
        Some(format!("{} in {}", operation.label, stream.name))
    }

    /// Notes an access, which must be ordered after those before.
    pub(crate) fn note_device(
        &mut self,
        range: Range<u64>,
        write: bool,
        by: &Epoch,
        clock: &Clock,
    ) -> std::result::Result<(), String> {
        let Err(conflict) = self.device_history.access(range, write, by, clock) else {
            return Ok(());
        };
        let place = self.describe_device(&conflict.range);
        Err(self.unordered(&place, write, &conflict))
    }

    /// Notes an access to page-locked memory.
    pub(crate) fn note_host(
        &mut self,
        range: Range<u64>,
        write: bool,
        by: &Epoch,
        clock: &Clock,
    ) -> std::result::Result<(), String> {
        let Err(conflict) = self.host_history.access(range, write, by, clock) else {
            return Ok(());
        };
        let place = format!("page-locked memory {:#x}..{:#x}", conflict.range.start, conflict.range.end);
        Err(self.unordered(&place, write, &conflict))
    }

    fn unordered(&self, place: &str, write: bool, conflict: &Conflict) -> String {
        let earlier = &conflict.earlier;
        format!(
            "wrong order: it {} {place}, and {} in {} {} them, with no event or wait between the two",
            if write { "writes" } else { "reads" },
            earlier.label,
            self.streams.get(earlier.actor).map_or("a stream", |stream| stream.name.as_str()),
            if conflict.earlier_wrote { "writes" } else { "reads" },
        )
    }

    /// Gives everything back that belonged to the last context.
    pub(crate) fn release_everything(&mut self) {
        let addresses: Vec<(u64, usize)> = self.allocations.iter().map(|(&start, a)| (start, a.bytes)).collect();
        for (start, bytes) in addresses {
            // The error would be that it is gone already.
            let _ = self.remove_allocation(start..start + bytes as u64);
        }
        self.counts.allocated_bytes = 0;
        self.counts.modules = 0;
        for stream in &mut self.streams {
            stream.capture = None;
        }
        self.stream_handles.clear();
        self.thread_streams.clear();
        self.events.clear();
        self.captures.clear();
        self.graphs.clear();
        self.executables.clear();
        self.modules.clear();
        self.functions.clear();
    }
}

/// The label of an operation, shared by everything that mentions it.
pub(crate) fn shared_label(label: String) -> Arc<str> {
    Arc::from(label)
}
