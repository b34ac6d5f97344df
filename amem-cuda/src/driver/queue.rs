//! What is submitted to the compute stream, and when.
//!
//! Within a short pass, a decode step above all, work is first written down. Where the host has to wait, all of it is
//! launched at once; if the same work was launched before, as one graph ([`Graphs`]). So a decode step costs the host one
//! launch, and the code above it knows nothing of graphs. Everything else is launched as it is submitted.
//!
//! Threads share the list. While any of them is in a short pass, work of all of them is written down, and is launched
//! where any of them has to wait. So a second thread may split a pass in two, or make a step that no graph is known for:
//! that costs time and changes no result. When a launch fails, what was written down behind it is lost. Each thread that
//! wrote any of it is told so: the one that launched it at once, others at their next call.
//!
//! What the host writes to lasting memory is never written down: weights, tables and stored KV are kept by whoever asked
//! for them, and must not be lost with somebody's pass.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, PoisonError};
use std::thread::{self, ThreadId};

use cudarc::driver::{result, sys};

use super::graphs::Graphs;
use super::kernels::Call;
use super::matmul::{Product, Products};
use super::memory::Pinned;
use super::{Buffer, Device};
use crate::error::{CudaError, Result};

/// Pinned memory that copies may use at a time before the host waits for them.
const IN_FLIGHT: usize = 64 << 20;

/// Something to do for the compute stream. Two of them are equal if they do the same with the same memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Command {
    Launch(Call),
    Multiply(Product),
    /// From the host's pinned memory to the GPU.
    Upload {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// From the GPU to the host's pinned memory.
    Download {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// From the GPU to itself.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// Zeros.
    Zero {
        to: u64,
        bytes: usize,
    },
}

/// What was submitted and has not been launched, and what launches need.
pub(super) struct Queue {
    // Graphs hold kernels of the products' library, and are let go of first.
    graphs: Graphs,
    pub(super) products: Products,
    /// Passes that have begun and not ended.
    passes: usize,
    /// Whether commands are written down.
    recording: bool,
    commands: Vec<Command>,
    /// The threads that wrote them down.
    writers: Vec<ThreadId>,
    /// Threads whose commands another thread failed to launch, until they are told.
    losers: HashMap<ThreadId, CudaError>,
    /// Pinned memory that copies read, until the host has waited for them.
    in_flight: Vec<Pinned>,
    in_flight_bytes: usize,
}

impl Queue {
    pub(super) fn new(products: Products) -> Self {
        Self {
            graphs: Graphs::default(),
            products,
            passes: 0,
            recording: false,
            commands: Vec::new(),
            writers: Vec::new(),
            losers: HashMap::new(),
            in_flight: Vec::new(),
            in_flight_bytes: 0,
        }
    }

    /// Launches what was written down.
    ///
    /// # Errors
    /// When something is lost that this thread wrote down, now or since its last call.
    pub(super) fn flush(&mut self, device: &Device) -> Result<()> {
        let (commands, writers) = (std::mem::take(&mut self.commands), std::mem::take(&mut self.writers));
        if !commands.is_empty()
            && let Err(error) = self.graphs.launch(device, &mut self.products, commands)
        {
            self.losers.extend(writers.into_iter().map(|writer| (writer, error.clone())));
        }
        self.check_lost()
    }

    /// Tells this thread, once, if something is lost that it wrote down.
    fn check_lost(&mut self) -> Result<()> {
        self.losers.remove(&thread::current().id()).map_or(Ok(()), Err)
    }

    fn put(&mut self, device: &Device, command: Command) -> Result<()> {
        self.check_lost()?;
        if !self.recording {
            return self.put_at_once(device, &command);
        }
        device.count(|counters| counters.submitted += 1);
        self.commands.push(command);
        let writer = thread::current().id();
        if !self.writers.contains(&writer) {
            self.writers.push(writer);
        }
        Ok(())
    }

    /// Has the stream do something before what is written down.
    fn put_at_once(&mut self, device: &Device, command: &Command) -> Result<()> {
        device.count(|counters| counters.submitted += 1);
        device.bind()?;
        execute(device, &mut self.products, command)
    }

    /// Has the stream write what is in a buffer. Lasting memory is written when it is new: nothing that is written down
    /// can use it yet.
    fn put_into(&mut self, device: &Device, buffer: &Buffer, command: Command) -> Result<()> {
        if buffer.is_lasting() { self.put_at_once(device, &command) } else { self.put(device, command) }
    }

    /// Lets go of all graphs, none of which runs any more.
    pub(super) fn forget_graphs(&mut self) {
        self.graphs = Graphs::default();
    }

    /// Waits until the stream has done all.
    pub(super) fn wait(&mut self, device: &Device) -> Result<()> {
        let flushed = self.flush(device);
        device.count(|counters| counters.waits += 1);
        device.compute.synchronize().map_err(CudaError::of("cuStreamSynchronize"))?;
        let mut pool = device.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        self.in_flight.drain(..).for_each(|pinned| pool.put(pinned));
        self.in_flight_bytes = 0;
        drop(pool);
        flushed.and(device.free_retired())
    }
}

impl Device {
    pub(super) fn submit(self: &Arc<Self>, command: Command) -> Result<()> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).put(self, command)
    }

    /// Submits a product.
    pub(crate) fn multiply(self: &Arc<Self>, product: Product) -> Result<()> {
        if product.is_empty() { Ok(()) } else { self.submit(Command::Multiply(product)) }
    }

    /// A pass begins: what is submitted is written down until the host waits, unless [`launch_at_once`] says otherwise.
    ///
    /// [`launch_at_once`]: Self::launch_at_once
    pub(crate) fn begin_pass(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.passes += 1;
        queue.recording = true;
    }

    /// The pass is a long one: the GPU had better begin while the host submits the rest.
    pub(crate) fn launch_at_once(&self) -> Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.recording = false;
        queue.flush(self)
    }

    /// A pass ends.
    pub(crate) fn end_pass(&self) -> Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.passes = queue.passes.saturating_sub(1);
        queue.recording &= queue.passes > 0;
        queue.flush(self)
    }

    /// Waits until all that was submitted to the compute stream is done.
    pub(crate) fn wait(&self) -> Result<()> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).wait(self)
    }

    /// Writes bytes of the host into a buffer, from an offset on. A lasting one must be new: see [`Buffer::lasting`].
    pub(crate) fn write(self: &Arc<Self>, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        const PIECE: usize = 16 << 20;
        check("cuMemcpyHtoD", buffer, offset, bytes.len())?;
        for (index, piece) in bytes.chunks(PIECE).enumerate() {
            self.bind()?;
            let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).take(piece.len())?;
            pinned.bytes_mut()[..piece.len()].copy_from_slice(piece);
            let to = buffer.address() + (offset + index * PIECE) as u64;
            let command = Command::Upload { to, from: pinned.address(), bytes: piece.len() };
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.in_flight.push(pinned);
            queue.in_flight_bytes += piece.len();
            queue.put_into(self, buffer, command)?;
            if queue.in_flight_bytes > IN_FLIGHT {
                queue.wait(self)?;
            }
        }
        Ok(())
    }

    /// Reads bytes of a buffer, from an offset on. Waits for the GPU.
    pub(crate) fn read(self: &Arc<Self>, buffer: &Buffer, offset: usize, bytes: usize) -> Result<Vec<u8>> {
        check("cuMemcpyDtoH", buffer, offset, bytes)?;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        self.bind()?;
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).take(bytes)?;
        let command = Command::Download { to: pinned.address(), from: buffer.address() + offset as u64, bytes };
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // It is not the caller's before the stream has been waited for, whatever fails.
        let done = queue.put(self, command).and_then(|()| queue.wait(self));
        let read = done.map(|()| pinned.bytes()[..bytes].to_vec());
        match read {
            Ok(_) => self.pinned.lock().unwrap_or_else(PoisonError::into_inner).put(pinned),
            Err(_) => queue.in_flight.push(pinned),
        }
        read
    }

    /// Copies bytes of one buffer into another, or the same one, where they do not overlap.
    pub(crate) fn copy(
        self: &Arc<Self>,
        (to, at): (&Buffer, usize),
        (from, start): (&Buffer, usize),
        bytes: usize,
    ) -> Result<()> {
        check("cuMemcpyDtoD", to, at, bytes)?;
        check("cuMemcpyDtoD", from, start, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.submit(Command::Copy { to: to.address() + at as u64, from: from.address() + start as u64, bytes })
    }

    /// Fills a buffer with zeros. A lasting one must be new: see [`Buffer::lasting`].
    pub(crate) fn zero(self: &Arc<Self>, buffer: &Buffer) -> Result<()> {
        if buffer.bytes() == 0 {
            return Ok(());
        }
        let command = Command::Zero { to: buffer.address(), bytes: buffer.bytes() };
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).put_into(self, buffer, command)
    }
}

fn check(kernel: &'static str, buffer: &Buffer, offset: usize, bytes: usize) -> Result<()> {
    let (needed, found) = (offset.saturating_add(bytes), buffer.bytes());
    if needed <= found { Ok(()) } else { Err(CudaError::Shape { kernel, needed, found }) }
}

/// Launches one command. The device's context must be current on this thread.
pub(super) fn execute(device: &Device, products: &mut Products, command: &Command) -> Result<()> {
    let stream = device.compute.cu_stream();
    match command {
        Command::Launch(launch) => {
            let mut arguments: Vec<*mut c_void> =
                launch.arguments.iter().map(|argument| std::ptr::from_ref(argument).cast_mut().cast()).collect();
            let [x, y, z] = launch.grid;
            let (block, shared) = ((launch.threads, 1, 1), launch.shared);
            // SAFETY: the function is the current context's, and `ptx.rs` has its number of threads and its shared
            // memory. The arguments are as many as it has parameters, each at least as wide. Those that are addresses were
            // checked against the kernel's needs by `Launch`, and are memory that the pool keeps allocated.
            unsafe { result::launch_kernel(launch.function.0, (x, y, z), block, shared, stream, &mut arguments) }
                .map_err(CudaError::of("cuLaunchKernel"))
        }
        Command::Multiply(product) => products.execute(device, product),
        Command::Upload { to, from, bytes } => {
            // SAFETY: `from` is pinned memory of at least so many bytes, which the queue keeps, unchanged, until the
            // stream has been waited for; `to` was checked when the command was made.
            unsafe { sys::cuMemcpyHtoDAsync_v2(*to, std::ptr::with_exposed_provenance(*from as usize), *bytes, stream) }
                .result()
                .map_err(CudaError::of("cuMemcpyHtoDAsync"))
        }
        Command::Download { to, from, bytes } => {
            let to = std::ptr::with_exposed_provenance_mut(*to as usize);
            // SAFETY: `to` is pinned memory of at least so many bytes, which nobody reads or frees until the stream has
            // been waited for; `from` was checked when the command was made.
            unsafe { sys::cuMemcpyDtoHAsync_v2(to, *from, *bytes, stream) }
                .result()
                .map_err(CudaError::of("cuMemcpyDtoHAsync"))
        }
        Command::Copy { to, from, bytes } => {
            // SAFETY: both were checked when the command was made, and stay allocated.
            unsafe { result::memcpy_dtod_async(*to, *from, *bytes, stream) }.map_err(CudaError::of("cuMemcpyDtoDAsync"))
        }
        Command::Zero { to, bytes } => {
            // SAFETY: as above.
            unsafe { result::memset_d8_async(*to, 0, *bytes, stream) }.map_err(CudaError::of("cuMemsetD8Async"))
        }
    }
}
