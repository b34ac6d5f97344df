//! What the simulated device says about itself: it is like an H100.

use crate::settings::Settings;

/// The device's name. No one should take it for a real one.
pub(crate) const NAME: &str = "Simulated CUDA device";

pub(crate) const MAX_THREADS_PER_BLOCK: u32 = 1024;
/// Shared memory that a block may have without asking for more.
pub(crate) const SHARED_PER_BLOCK: usize = 48 << 10;
/// Shared memory that a block may ask for.
pub(crate) const SHARED_PER_BLOCK_OPT_IN: usize = 227 << 10;
pub(crate) const SHARED_PER_MULTIPROCESSOR: usize = 228 << 10;
/// Shared memory that the system takes of each block's.
pub(crate) const SHARED_RESERVED: usize = 1 << 10;
pub(crate) const THREADS_PER_MULTIPROCESSOR: u32 = 2048;
pub(crate) const BLOCKS_PER_MULTIPROCESSOR: usize = 32;
pub(crate) const MULTIPROCESSORS: i32 = 132;
/// The largest grid, in x, y and z.
pub(crate) const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// The largest block, in x, y and z.
pub(crate) const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];

/// The value of a `CUdevice_attribute`. Those that a backend has no use for are 0.
pub(crate) fn attribute(attribute: u32, settings: &Settings) -> i32 {
    match attribute {
        1 => MAX_THREADS_PER_BLOCK as i32,
        2..=4 => MAX_BLOCK[attribute as usize - 2] as i32,
        5..=7 => MAX_GRID[attribute as usize - 5] as i32,
        8 => SHARED_PER_BLOCK as i32,
        9 => 64 << 10,
        10 => 32,
        11 => i32::MAX,
        12 | 82 => 64 << 10,
        13 => 1_980_000,
        14 => 512,
        15 | 31 | 41 | 78 | 79 | 80 => 1,
        16 => MULTIPROCESSORS,
        19 | 90 | 95 | 99 | 102 | 113 => 1,
        36 => 2_619_000,
        37 => 5120,
        38 => 50 << 20,
        39 => THREADS_PER_MULTIPROCESSOR as i32,
        40 => 3,
        75 => settings.capability / 10,
        76 => settings.capability % 10,
        81 => SHARED_PER_MULTIPROCESSOR as i32,
        97 => SHARED_PER_BLOCK_OPT_IN as i32,
        106 => BLOCKS_PER_MULTIPROCESSOR as i32,
        108 => 32 << 20,
        111 => SHARED_RESERVED as i32,
        115 => i32::from(settings.pools),
        _ => 0,
    }
}
