//! Bringing cached KV to the GPU: while one layer is copied, the host reads the next.

use std::sync::{Arc, PoisonError};

use cudarc::driver::{CudaEvent, sys};

use super::kernels::Call;
use super::memory::{Pinned, size_class};
use super::queue::{Command, execute};
use super::{Buffer, Device};
use crate::error::{CudaError, Result};

/// Two places to copy through, in turn.
pub(crate) struct Staging {
    device: Arc<Device>,
    places: [Option<Place>; 2],
    next: usize,
}

struct Place {
    /// What the host fills. `None` only while it is.
    pinned: Option<Pinned>,
    /// Where the copy goes.
    buffer: Buffer,
    /// The copy has ended: the host may fill `pinned` again.
    copied: CudaEvent,
    /// The kernels that read `buffer` have ended: it may be overwritten.
    used: CudaEvent,
}

impl Staging {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        Self { device: Arc::clone(device), places: [None, None], next: 0 }
    }

    /// Has the host fill so many bytes, which the GPU will find at the address that is named, copies them to the GPU, and
    /// launches what reads them there. Returns when they are filled: the rest runs by itself, and what is submitted to the
    /// compute stream afterwards waits for it. Buffers that are read beside them must not be given back before that.
    ///
    /// # Errors
    /// Those of `fill`; nothing was copied then.
    pub(crate) fn load<E: From<CudaError>>(
        &mut self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8], u64) -> Result<(), E>,
        read: impl FnOnce(&Buffer) -> Result<Call>,
    ) -> Result<(), E> {
        let device = Arc::clone(&self.device);
        device.bind()?;
        let index = self.next;
        self.next = (index + 1) % self.places.len();
        if self.places[index].as_ref().is_none_or(|place| place.buffer.bytes() < bytes) {
            // What the old place holds may still be copied or read.
            device.copies.synchronize().map_err(CudaError::of("cuStreamSynchronize"))?;
            device.wait()?;
            // It would be kept for nobody: a context that grows asks for more each time.
            if let Some(pinned) = self.places[index].take().and_then(|place| place.pinned) {
                pinned.free();
            }
            // With all the room that the pools give it, so that a little more needs no other place.
            self.places[index] = Some(Place::new(&device, size_class(bytes))?);
        }
        let Some(place) = &mut self.places[index] else { return Ok(()) };
        place.copied.synchronize().map_err(CudaError::of("cuEventSynchronize"))?;
        let mut pinned = match place.pinned.take() {
            Some(pinned) => pinned,
            None => device.pinned.lock().unwrap_or_else(PoisonError::into_inner).take(place.buffer.bytes())?,
        };
        let filled = fill(&mut pinned.bytes_mut()[..bytes], place.buffer.address());
        let from = pinned.address();
        place.pinned = Some(pinned);
        filled?;
        place.copy(&device, from, bytes)?;
        let call = read(&place.buffer)?;
        device.launch_behind(&place.copied, call, &place.used)?;
        Ok(())
    }

    /// Lets go of a place that no copy uses any more. Its pinned memory goes back to the pool.
    fn give_back(&mut self, index: usize) {
        if let Some(pinned) = self.places[index].take().and_then(|place| place.pinned) {
            self.device.pinned.lock().unwrap_or_else(PoisonError::into_inner).put(pinned);
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Copies may still read the pinned memory. Whom would a failure be told?
        let _ = self.device.copies.synchronize();
        (0..self.places.len()).for_each(|index| self.give_back(index));
    }
}

impl Place {
    fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let event = || device.context.new_event(None).map_err(CudaError::of("cuEventCreate"));
        let (copied, used) = (event()?, event()?);
        let buffer = Buffer::new(device, bytes)?;
        // Whoever had this memory before is done when the compute stream gets here.
        device.record_behind(&used)?;
        copied.record(&device.copies).map_err(CudaError::of("cuEventRecord"))?;
        Ok(Self { pinned: None, buffer, copied, used })
    }

    /// Copies what the host has filled, once the place is free on the GPU.
    fn copy(&self, device: &Device, from: u64, bytes: usize) -> Result<()> {
        device.copies.wait(&self.used).map_err(CudaError::of("cuStreamWaitEvent"))?;
        let (to, stream) = (self.buffer.address(), device.copies.cu_stream());
        // SAFETY: `from` is pinned memory of at least so many bytes, which stays unchanged until `copied` has happened;
        // the buffer has at least so many bytes, and what used it before is ordered by `used`.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, std::ptr::with_exposed_provenance(from as usize), bytes, stream) }
            .result()
            .map_err(CudaError::of("cuMemcpyHtoDAsync"))?;
        self.copied.record(&device.copies).map_err(CudaError::of("cuEventRecord"))
    }
}

impl Device {
    /// Records an event behind all that was submitted to the compute stream.
    fn record_behind(&self, event: &CudaEvent) -> Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.flush(self)?;
        event.record(&self.compute).map_err(CudaError::of("cuEventRecord"))
    }

    /// Launches a kernel on the compute stream behind all that was submitted and behind an event of the copy stream, and
    /// records another event behind it.
    fn launch_behind(&self, event: &CudaEvent, call: Call, then: &CudaEvent) -> Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.flush(self)?;
        self.compute.wait(event).map_err(CudaError::of("cuStreamWaitEvent"))?;
        self.count(|counters| counters.submitted += 1);
        execute(self, &mut queue.products, &Command::Launch(call))?;
        then.record(&self.compute).map_err(CudaError::of("cuEventRecord"))
    }
}
