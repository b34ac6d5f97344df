//! Memory of the GPU and pinned memory of the host.
//!
//! What comes and goes, as activations do, is from pools. A pool hands out the free piece with the lowest address. So the
//! same requests in the same order get the same addresses, whatever the order in which pieces came back: a decode step
//! looks like the one before it, and its graph can be launched again. What stays, as weights do, lies in slabs
//! ([`slabs`](super::slabs)), in which it takes its exact size.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use cudarc::driver::{result, sys};

use super::Device;
use super::queue::Queue;
use super::slabs::{LARGEST, Slabs};
use crate::error::{CudaError, Result};

/// Memory of the GPU.
pub(crate) struct Buffer {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
    /// Whether it stays: it is not the pool's.
    lasting: bool,
}

impl Buffer {
    /// So many bytes of the pool, which hold anything: for what comes and goes.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] when the GPU has none, after what the pool kept for later was given back.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let address = device.take(size_class(bytes))?;
        Ok(Self { device: Arc::clone(device), address, bytes, lasting: false })
    }

    /// So many bytes, which hold anything, for what stays. Of a slab it takes no more than it has bytes, but for the last
    /// 512 of them. Dropped, it is another's to take when the host has next waited for the GPU.
    ///
    /// What the host writes to it is there when the call returns without an error, for all that is launched from then on.
    /// So it may be written until something reads it, and not afterwards: that might not have been launched yet.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(crate) fn lasting(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let address = device.take_lasting(lasting_size(bytes))?;
        Ok(Self { device: Arc::clone(device), address, bytes, lasting: true })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_lasting(&self) -> bool {
        self.lasting
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut pool = self.device.pool.lock().unwrap_or_else(PoisonError::into_inner);
        match self.lasting {
            true => pool.retired.push((self.address, lasting_size(self.bytes))),
            false => pool.put(self.address, size_class(self.bytes)),
        }
    }
}

/// Pinned memory of the host: copies between it and the GPU do not wait.
pub(crate) struct Pinned {
    at: *mut u8,
    class: usize,
}

// SAFETY: a `Pinned` owns the memory that it points to, as a `Box<[u8]>` does.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Its address, for copies.
    pub(super) fn address(&self) -> u64 {
        self.at as u64
    }

    /// Its bytes. No copy may be under way: pieces come from [`PinnedPool::take`], which gives out none that is in use.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the allocation has `class` bytes, was filled when it was made, lives as long as `self`, and is
        // borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.class) }
    }

    /// Frees it. No copy may use it any more, and the device's context must be current on this thread.
    pub(super) fn free(self) {
        // SAFETY: it came from `malloc_host` and is freed once. There is nobody to tell of a failure.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }

    /// Its bytes, which a copy that has ended may have written.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: as for `bytes_mut`.
        unsafe { std::slice::from_raw_parts(self.at, self.class) }
    }
}

/// Free pieces of the GPU's memory, by size, and slabs of what stays.
#[derive(Default)]
pub(super) struct Pool {
    free: BTreeMap<usize, BTreeSet<u64>>,
    slabs: Slabs,
    /// Addresses and bytes of lasting memory that was dropped. What was submitted before may still use it.
    retired: Vec<(u64, usize)>,
}

impl Pool {
    pub(super) fn take(&mut self, class: usize) -> Option<u64> {
        self.free.get_mut(&class)?.pop_first()
    }

    pub(super) fn put(&mut self, address: u64, class: usize) {
        self.free.entry(class).or_default().insert(address);
    }

    /// All pieces, and slabs in which nothing lies, which are then the caller's to free.
    pub(super) fn drain(&mut self) -> Vec<u64> {
        let pieces = std::mem::take(&mut self.free).into_values().flatten();
        pieces.chain(self.slabs.take_empty(0)).collect()
    }

    /// Lasting memory that was dropped, and that nothing uses any more, goes back to its slabs. What is the caller's to free
    /// then: what has no slab, and slabs in which nothing lies. One of these stays, for chunks that come and go would have
    /// it allocated and freed in turn.
    fn retire(&mut self) -> Vec<u64> {
        if self.retired.is_empty() {
            return Vec::new();
        }
        let retired = std::mem::take(&mut self.retired).into_iter();
        let mut free: Vec<u64> =
            retired.filter_map(|(address, bytes)| (!self.slabs.put(address, bytes)).then_some(address)).collect();
        free.extend(self.slabs.take_empty(1));
        free
    }
}

/// Free pieces of pinned memory, by size and address.
#[derive(Default)]
pub(super) struct PinnedPool {
    free: BTreeMap<(usize, u64), Pinned>,
}

impl PinnedPool {
    /// A piece of at least so many bytes that no copy uses. The device's context must be current on this thread.
    pub(super) fn take(&mut self, bytes: usize) -> Result<Pinned> {
        let class = size_class(bytes);
        let found = self.free.range((class, 0)..(class + 1, 0)).next().map(|(key, _)| *key);
        if let Some(pinned) = found.and_then(|key| self.free.remove(&key)) {
            return Ok(pinned);
        }
        // SAFETY: a context is current. The memory is filled below, before anything reads it.
        let at = unsafe { result::malloc_host(class, sys::CU_MEMHOSTALLOC_PORTABLE) }
            .map_err(CudaError::of("cuMemHostAlloc"))?
            .cast::<u8>();
        // SAFETY: `at` is the beginning of `class` bytes that nobody else knows of.
        unsafe { at.write_bytes(0, class) };
        Ok(Pinned { at, class })
    }

    /// Takes a piece back that no copy uses any more.
    pub(super) fn put(&mut self, pinned: Pinned) {
        self.free.insert((pinned.class, pinned.address()), pinned);
    }

    /// Frees all pieces. The device's context must be current on this thread.
    pub(super) fn clear(&mut self) {
        std::mem::take(&mut self.free).into_values().for_each(Pinned::free);
    }
}

/// The least that is asked of the driver.
const LEAST: usize = 512;

/// Bytes of a lasting buffer, rounded up.
fn lasting_size(bytes: usize) -> usize {
    bytes.max(1).checked_next_multiple_of(LEAST).unwrap_or(bytes)
}

/// What a request of the pool is rounded up to, so that requests of about the same size use the same memory: four sizes
/// to each power of two, at least 512 bytes.
pub(super) fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(LEAST);
    let step = (1usize << bytes.ilog2()) / 4;
    bytes.next_multiple_of(step.max(LEAST))
}

impl Device {
    /// A piece of the pool, or a new one.
    fn take(&self, class: usize) -> Result<u64> {
        let found = self.pool.lock().unwrap_or_else(PoisonError::into_inner).take(class);
        found.map_or_else(|| self.allocate(class), Ok)
    }

    /// A piece of a slab, or of a new one. What is larger than slabs is asked of the driver by itself.
    fn take_lasting(&self, bytes: usize) -> Result<u64> {
        if self.has_separate_buffers || bytes > LARGEST {
            return self.allocate(bytes);
        }
        let take = || self.pool.lock().unwrap_or_else(PoisonError::into_inner).slabs.take(bytes);
        let slab = || take().map_or_else(|| self.add_slab(bytes), Ok);
        match slab() {
            Err(CudaError::OutOfMemory { .. }) => {
                self.trim()?;
                slab()
            }
            taken => taken,
        }
    }

    /// Asks the driver for a slab. Returns its first bytes, which are the caller's.
    fn add_slab(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(CudaError::of("cuMemGetInfo"))?;
        let size = self.pool.lock().unwrap_or_else(PoisonError::into_inner).slabs.next_size(bytes, free);
        self.count(|counters| counters.allocations += 1);
        let start = allocate(size).map_err(|error| match error {
            CudaError::OutOfMemory { .. } => CudaError::OutOfMemory { bytes, free, total },
            other => other,
        })?;
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(pool.slabs.add(start..start + size as u64, bytes))
    }

    /// Asks the driver for memory, and once more after a [`trim`](Self::trim) if there is none.
    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        self.count(|counters| counters.allocations += 1);
        match allocate(bytes) {
            Err(CudaError::OutOfMemory { .. }) => {
                self.trim()?;
                allocate(bytes)
            }
            allocated => allocated,
        }
    }

    /// Gives what the pools keep back to the driver, once nothing uses it.
    pub(crate) fn trim(&self) -> Result<()> {
        // Nothing may be written down from the wait until all is freed: it might be for a buffer that has come back to
        // the pool by then.
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.wait(self)?;
        self.free_unused(&mut queue)
    }

    /// As [`trim`](Self::trim), of a device that nobody uses any more: whatever the wait comes to.
    pub(super) fn free_all_that_is_left(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody is there to be told of a failure, and the driver frees all when the process ends.
        let _ = queue.wait(self);
        let _ = self.free_unused(&mut queue);
    }

    /// The host has waited for all that was submitted.
    fn free_unused(&self, queue: &mut Queue) -> Result<()> {
        // Graphs use memory by its address, and hold some of the driver's.
        queue.forget_graphs();
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let free = self.pool.lock().unwrap_or_else(PoisonError::into_inner).drain();
        free_all(free)
    }

    /// Takes lasting memory back that was dropped. The host has waited for all that was submitted, and holds the queue's
    /// lock.
    pub(super) fn free_retired(&self) -> Result<()> {
        let free = self.pool.lock().unwrap_or_else(PoisonError::into_inner).retire();
        free_all(free)
    }
}

/// Asks the driver for memory. The device's context must be current on this thread.
pub(super) fn allocate(bytes: usize) -> Result<u64> {
    // SAFETY: the context is current.
    unsafe { result::malloc_sync(bytes) }.map_err(|error| match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            let (free, total) = result::mem_get_info().unwrap_or_default();
            CudaError::OutOfMemory { bytes, free, total }
        }
        _ => CudaError::of("cuMemAlloc")(error),
    })
}

/// Frees memory that nothing uses and nobody else knows of any more. The device's context must be current on this thread.
pub(super) fn free_all(addresses: impl IntoIterator<Item = u64>) -> Result<()> {
    // SAFETY: as the caller says.
    let free = |address| unsafe { result::free_sync(address) }.map_err(CudaError::of("cuMemFree"));
    addresses.into_iter().map(free).fold(Ok(()), Result::and)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_size_class_has_room_and_wastes_at_most_a_quarter(bytes in 1usize..1 << 40) {
            let class = size_class(bytes);
            prop_assert!(class >= bytes && class.is_multiple_of(512));
            prop_assert!(class <= 512 || class - bytes <= bytes.max(2048) / 4, "{class} for {bytes}");
            prop_assert_eq!(size_class(class), class);
        }

        #[test]
        fn the_same_requests_get_the_same_addresses_in_whatever_order_pieces_came_back(
            addresses in prop::collection::btree_set(1u64..1000, 1..20),
            seed: u64,
        ) {
            let mut shuffled: Vec<u64> = addresses.iter().copied().collect();
            shuffled.sort_by_key(|address| (address ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut pool = Pool::default();
            shuffled.iter().for_each(|address| pool.put(*address, 512));
            let taken: Vec<u64> = std::iter::from_fn(|| pool.take(512)).collect();
            prop_assert_eq!(taken, addresses.into_iter().collect::<Vec<_>>());
        }
    }
}
