//! A GPU: its context, its streams, its memory and what was submitted to it.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, sys};
use cudarc::{cublaslt, driver};

use super::kernels::Modules;
use super::matmul::Products;
use super::memory::{Buffer, PinnedPool, Pool};
use super::queue::Queue;
use crate::error::{CudaError, Result};

/// The oldest driver: it loads PTX 8.0.
const OLDEST_DRIVER: i32 = 12_000;

/// The oldest cuBLASLt, as it counts its versions.
const OLDEST_CUBLAS: usize = 120_000;

/// Major compute capability that the kernels are written for.
const OLDEST_MAJOR: i32 = 8;

/// A GPU, opened.
pub(crate) struct Device {
    // What needs the context to be let go of comes before the context.
    pub(super) queue: Mutex<Queue>,
    pub(super) modules: Mutex<Modules>,
    pub(super) pool: Mutex<Pool>,
    pub(super) pinned: Mutex<PinnedPool>,
    pub(super) context: Arc<CudaContext>,
    /// All kernels run on this.
    pub(super) compute: Arc<CudaStream>,
    /// Cached KV comes in on this.
    pub(super) copies: Arc<CudaStream>,
    /// Its multiprocessors.
    multiprocessors: usize,
    /// Whether no two lasting buffers lie in one piece of the driver's memory.
    pub(super) has_separate_buffers: bool,
    counters: Mutex<Counters>,
}

/// How often a backend has called its driver, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Kernels, products and copies that were submitted, those of graphs among them.
    pub submitted: u64,
    /// Launches of a graph, each of them many submissions at the price of one.
    pub graphs: u64,
    /// Times that the host waited for the GPU.
    pub waits: u64,
    /// Pieces of memory that were asked of the driver, and not found in the pool or in a slab.
    pub allocations: u64,
}

impl Device {
    /// Opens a GPU by its number, from 0. It may have no two lasting buffers in one piece of the driver's memory.
    ///
    /// # Errors
    /// All that is missing: see [`CudaError`].
    pub(crate) fn open(ordinal: usize, has_separate_buffers: bool) -> Result<Arc<Self>> {
        // SAFETY: these load a shared library of the system, as any call of it would, and look at nothing else.
        let (driver, cublas) = unsafe { (driver::sys::is_culib_present(), cublaslt::sys::is_culib_present()) };
        if !driver {
            return Err(CudaError::NoDriver);
        }
        let found = match CudaContext::device_count() {
            Ok(found) => usize::try_from(found).unwrap_or(0),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => 0,
            Err(error) => return Err(CudaError::of("cuDeviceGetCount")(error)),
        };
        if ordinal >= found {
            return Err(CudaError::NoDevice { ordinal, found });
        }
        let version = driver_version()?;
        if version < OLDEST_DRIVER {
            return Err(CudaError::OldDriver { version });
        }
        if !cublas {
            return Err(CudaError::NoCublas);
        }
        // SAFETY: the library is present, and the call takes nothing.
        let version = unsafe { cublaslt::sys::cublasLtGetVersion() };
        if version < OLDEST_CUBLAS {
            return Err(CudaError::OldCublas { version });
        }
        let context = CudaContext::new(ordinal).map_err(CudaError::of("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: cudarc's tracking orders work on slices that it allocated. There are none: memory is allocated in
        // `memory.rs`, and ordered by the rule that `driver/mod.rs` states.
        unsafe { context.disable_event_tracking() };
        let (major, minor) = context.compute_capability().map_err(CudaError::of("cuDeviceGetAttribute"))?;
        if major < OLDEST_MAJOR {
            let name = context.name().unwrap_or_else(|_| "the GPU".to_owned());
            return Err(CudaError::OldDevice { name, major, minor });
        }
        let multiprocessors = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(CudaError::of("cuDeviceGetAttribute"))?;
        let stream = || context.new_stream().map_err(CudaError::of("cuStreamCreate"));
        let (compute, copies) = (stream()?, stream()?);
        Ok(Arc::new(Self {
            queue: Mutex::new(Queue::new(Products::new()?)),
            modules: Mutex::default(),
            pool: Mutex::default(),
            pinned: Mutex::default(),
            context,
            compute,
            copies,
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(1).max(1),
            has_separate_buffers,
            counters: Mutex::default(),
        }))
    }

    /// How many blocks of threads can run at the same time, at least.
    pub(crate) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// What was asked of the driver so far.
    pub(crate) fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.counters.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Makes the context current on this thread, as every call of the driver needs it.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))
    }

    /// A buffer of the pool that holds these bytes once the compute stream gets there.
    pub(crate) fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<Buffer> {
        let buffer = Buffer::new(self, bytes.len())?;
        self.write(&buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// The same in a buffer that stays.
    pub(crate) fn upload_lasting(self: &Arc<Self>, bytes: &[u8]) -> Result<Buffer> {
        let buffer = Buffer::lasting(self, bytes.len())?;
        self.write(&buffer, 0, bytes)?;
        Ok(buffer)
    }
}

fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the library is present, and writes one i32 to where it is told.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(CudaError::of("cuDriverGetVersion"))?;
    Ok(version)
}

impl Drop for Device {
    fn drop(&mut self) {
        self.free_all_that_is_left();
        // What is dropped behind this needs the context to be current.
        let _ = self.bind();
    }
}
