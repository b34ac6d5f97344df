//! What the simulated device says about itself.

use crate::settings::Settings;

/// The device's name. No one should take it for a real one.
pub(crate) const NAME: &str = "Simulated CUDA device";

pub(crate) const MAX_THREADS_PER_BLOCK: u32 = 1024;
/// Shared memory that a block may have without asking for more.
pub(crate) const SHARED_PER_BLOCK: usize = 48 << 10;
/// Shared memory that the system takes of each block's.
pub(crate) const SHARED_RESERVED: usize = 1 << 10;
/// The largest grid, in x, y and z.
pub(crate) const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// The largest block, in x, y and z.
pub(crate) const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];

/// What devices of one compute capability have, as the CUDA programming guide lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) multiprocessors: i32,
    pub(crate) threads_per_multiprocessor: u32,
    pub(crate) blocks_per_multiprocessor: usize,
    pub(crate) shared_per_multiprocessor: usize,
}

impl Limits {
    /// The limits of the capability, or those of the greatest one below it that is known.
    pub(crate) fn of(capability: i32) -> Limits {
        let limits =
            |multiprocessors, threads_per_multiprocessor, blocks_per_multiprocessor, kibibytes: usize| Limits {
                multiprocessors,
                threads_per_multiprocessor,
                blocks_per_multiprocessor,
                shared_per_multiprocessor: kibibytes << 10,
            };
        match capability {
            ..86 => limits(108, 2048, 32, 164),
            86 => limits(84, 1536, 16, 100),
            87 => limits(16, 1536, 16, 164),
            88..90 => limits(128, 1536, 24, 100),
            90..100 => limits(132, 2048, 32, 228),
            100..120 => limits(148, 2048, 32, 228),
            120.. => limits(170, 1536, 24, 100),
        }
    }

    /// Shared memory that a block may ask for.
    pub(crate) fn shared_per_block_opt_in(&self) -> usize {
        self.shared_per_multiprocessor - SHARED_RESERVED
    }
}

/// The value of a `CUdevice_attribute`. Those that a backend has no use for are 0.
pub(crate) fn attribute(attribute: u32, settings: &Settings) -> i32 {
    let limits = Limits::of(settings.capability);
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
        16 => limits.multiprocessors,
        19 | 90 | 95 | 99 | 102 | 113 => 1,
        36 => 2_619_000,
        37 => 5120,
        38 => 50 << 20,
        39 => limits.threads_per_multiprocessor as i32,
        40 => 3,
        75 => settings.capability / 10,
        76 => settings.capability % 10,
        81 => limits.shared_per_multiprocessor as i32,
        97 => limits.shared_per_block_opt_in() as i32,
        106 => limits.blocks_per_multiprocessor as i32,
        108 => 32 << 20,
        111 => SHARED_RESERVED as i32,
        115 => i32::from(settings.pools),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_may_ask_for_as_much_shared_memory_as_the_programming_guide_says() {
        let kibibytes =
            [80, 86, 89, 90, 100, 120].map(|capability| Limits::of(capability).shared_per_block_opt_in() >> 10);
        assert_eq!(kibibytes, [163, 99, 99, 227, 227, 99]);
    }
}
