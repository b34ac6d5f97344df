//! Runs kernels.

mod access;
mod arithmetic;
mod block;
mod collective;
mod copies;
mod float;
mod matrix;
mod shared;
mod step;
mod warp;

use crate::fault::{Fault, FaultKind};
use crate::kernel::Kernel;
use crate::memory::Memory;
use crate::parse::SHARED_LIMIT;
use block::Executor;

/// Threads that a block may have.
const MAX_THREADS: u32 = 1024;

/// A kernel, and what it is run on.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// The parameters' bytes, laid out as [`Kernel::parameters`] says.
    pub parameters: &'a [u8],
    /// The order in which things happen that may happen in any order.
    pub schedule: Schedule,
}

/// The order in which things happen that may happen in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// How warps are interleaved.
    pub seed: u64,
    /// When asynchronous copies happen.
    pub copies: Copies,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { seed: 0, copies: Copies::Late }
    }
}

/// When a `cp.async` copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// When it is waited for.
    Late,
    /// At once.
    Early,
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Instructions, each counted once for all lanes of a warp that execute it together.
    pub warp_instructions: u64,
    /// `mma` instructions.
    pub matrix_products: u64,
    /// `ldmatrix` instructions.
    pub matrix_loads: u64,
    /// Cycles that accesses to shared memory wait for each other, because lanes need different words of one bank.
    pub bank_conflicts: u64,
    /// Sectors of 32 bytes that accesses to global memory touch.
    pub global_sectors: u64,
    /// Bytes that lanes load from global memory and store there.
    pub global_bytes: u64,
    /// Barriers of a block that opened.
    pub barriers: u64,
}

/// Runs a kernel.
///
/// # Errors
/// The first fault. What the kernel wrote before it stays written.
pub fn run(launch: &Launch<'_>, memory: &mut Memory) -> Result<Counts, Fault> {
    check(launch).map_err(|detail| Fault {
        kind: FaultKind::Launch,
        line: 0,
        instruction: String::new(),
        block: [0; 3],
        warp: 0,
        lane: 0,
        detail,
    })?;
    let [columns, rows, layers] = launch.grid;
    memory.begin_launch(launch.kernel.global_granule);
    let mut executor = Executor::new(launch, memory);
    let mut result = Ok(());
    'grid: for z in 0..layers {
        for y in 0..rows {
            for x in 0..columns {
                result = executor.run_block([x, y, z]);
                if result.is_err() {
                    break 'grid;
                }
            }
        }
    }
    let counts = executor.counts();
    memory.end_launch();
    result.map(|()| counts)
}

/// What a driver would refuse.
fn check(launch: &Launch<'_>) -> Result<(), String> {
    let kernel = launch.kernel;
    let [x, y, z] = launch.grid;
    if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
        return Err(format!("a grid of {x} x {y} x {z} blocks"));
    }
    if u64::from(x) * u64::from(y) * u64::from(z) >= 1 << 30 {
        return Err(format!("a grid of {x} x {y} x {z} blocks takes too long to run here"));
    }
    let threads = |[x, y, z]: [u32; 3]| u64::from(x) * u64::from(y) * u64::from(z);
    let [x, y, z] = launch.block;
    if threads(launch.block) == 0 || threads(launch.block) > u64::from(MAX_THREADS) {
        return Err(format!("a block of {x} x {y} x {z} threads"));
    }
    if let Some(required) = kernel.required_threads
        && required != launch.block
    {
        return Err(format!("a block of {x} x {y} x {z} threads where the kernel requires {required:?}"));
    }
    if let Some(most) = kernel.max_threads
        && threads(launch.block) > threads(most)
    {
        return Err(format!("a block of {x} x {y} x {z} threads where the kernel allows {most:?}"));
    }
    if launch.parameters.len() != kernel.parameter_bytes {
        let (given, needed) = (launch.parameters.len(), kernel.parameter_bytes);
        return Err(format!("{given} bytes of parameters where `{}` has {needed}", kernel.name));
    }
    let shared = kernel.dynamic_offset.saturating_add(launch.dynamic_shared);
    if shared > SHARED_LIMIT {
        return Err(format!("{shared} bytes of shared memory: {SHARED_LIMIT} at most"));
    }
    Ok(())
}
