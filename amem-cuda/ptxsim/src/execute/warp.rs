//! A warp: 32 lanes, their registers, and which of them run.

use super::copies::PendingCopy;
use crate::fault::{FaultKind, Violation};
use crate::kernel::Kernel;
use crate::program::{Condition, Predicate, Preset, Register, Special};

/// Lanes of a warp.
pub(super) const LANES: usize = 32;

/// All lanes.
pub(super) const ALL: u32 = u32::MAX;

/// A value for each lane.
pub(super) type Lanes = [u64; LANES];

/// The lanes of a mask, lowest first.
pub(super) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}

pub(super) struct Warp<'a> {
    kernel: &'a Kernel,
    pub(super) number: usize,
    registers: Vec<Lanes>,
    /// For each register, the lanes that wrote it.
    written: Vec<u32>,
    predicates: Vec<u32>,
    predicates_written: Vec<u32>,
    /// Lanes that have not exited.
    pub(super) live: u32,
    /// Lanes that run. They all stand at `counter`.
    pub(super) active: u32,
    pub(super) counter: u32,
    /// Where the other live lanes stand, and the lowest of them.
    counters: [u32; LANES],
    lowest_other: u32,
    pub(super) copies: Vec<PendingCopy>,
    /// For each lane, the groups of copies that it committed.
    pub(super) groups: [u32; LANES],
}

/// What differs between the warps and blocks of a launch.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) threads: [u32; 3],
    pub(super) dynamic_shared: u32,
}

impl<'a> Warp<'a> {
    pub(super) fn new(kernel: &'a Kernel, number: usize) -> Self {
        let mut registers = vec![[0; LANES]; kernel.register_names.len()];
        for (register, preset) in kernel.presets.iter() {
            if let Preset::Constant(value) = preset {
                registers[usize::from(*register)] = [*value; LANES];
            }
        }
        Self {
            kernel,
            number,
            registers,
            written: vec![0; kernel.register_names.len()],
            predicates: vec![0; kernel.predicate_names.len()],
            predicates_written: vec![0; kernel.predicate_names.len()],
            live: 0,
            active: 0,
            counter: 0,
            counters: [0; LANES],
            lowest_other: u32::MAX,
            copies: Vec::new(),
            groups: [0; LANES],
        }
    }

    /// Makes it the warp of another block, at the kernel's first instruction.
    pub(super) fn reset(&mut self, place: &Place) {
        let [x, y, z] = place.threads;
        let threads = (x * y * z) as usize;
        let first = self.number * LANES;
        let count = (threads - first).min(LANES);
        self.live = ALL >> (LANES - count);
        self.active = self.live;
        self.counter = 0;
        self.lowest_other = u32::MAX;
        self.copies.clear();
        self.groups = [0; LANES];
        self.written.fill(0);
        self.predicates_written.fill(0);
        for (register, preset) in self.kernel.presets.iter() {
            let index = usize::from(*register);
            self.written[index] = ALL;
            if let Preset::Special(special) = preset {
                self.registers[index] = std::array::from_fn(|lane| u64::from(self.special(*special, place, lane)));
            }
        }
    }

    fn special(&self, special: Special, place: &Place, lane: usize) -> u32 {
        let [x, y, z] = place.threads;
        let thread = (self.number * LANES + lane) as u32;
        let bit = 1u32 << lane;
        match special {
            Special::Thread(0) => thread % x,
            Special::Thread(1) => thread / x % y,
            Special::Thread(_) => thread / (x * y),
            Special::Threads(axis) => place.threads[usize::from(axis)],
            Special::Block(axis) => place.block[usize::from(axis)],
            Special::Blocks(axis) => place.grid[usize::from(axis)],
            Special::Lane => lane as u32,
            Special::Warp => self.number as u32,
            Special::Warps => (x * y * z).div_ceil(LANES as u32),
            Special::LanesEqual => bit,
            Special::LanesBelow => bit - 1,
            Special::LanesUpTo => bit | (bit - 1),
            Special::LanesAbove => !(bit | (bit - 1)),
            Special::LanesFrom => !(bit - 1),
            Special::DynamicShared => place.dynamic_shared,
        }
    }

    /// A register, which every lane of the mask must have written.
    #[inline]
    pub(super) fn read(&self, register: Register, mask: u32) -> Result<&Lanes, Violation> {
        let index = usize::from(register);
        if self.written[index] & mask == mask {
            Ok(&self.registers[index])
        } else {
            Err(self.unwritten(&self.kernel.register_names[index], mask & !self.written[index]))
        }
    }

    #[cold]
    fn unwritten(&self, name: &str, lanes: u32) -> Violation {
        let lane = lanes.trailing_zeros() as usize;
        Violation::new(FaultKind::UninitialisedRegister, lane, format!("`{name}` was never written"))
    }

    #[inline]
    pub(super) fn write(&mut self, register: Register, mask: u32, values: &Lanes) {
        let index = usize::from(register);
        self.written[index] |= mask;
        let target = &mut self.registers[index];
        if mask == ALL {
            *target = *values;
        } else {
            for lane in 0..LANES {
                if mask >> lane & 1 == 1 {
                    target[lane] = values[lane];
                }
            }
        }
    }

    /// The lanes of the mask for which a predicate holds.
    #[inline]
    pub(super) fn condition(&self, condition: Condition, mask: u32) -> Result<u32, Violation> {
        let index = usize::from(condition.predicate);
        if self.predicates_written[index] & mask != mask {
            let missing = mask & !self.predicates_written[index];
            return Err(self.unwritten(&self.kernel.predicate_names[index], missing));
        }
        let value = self.predicates[index];
        Ok(if condition.negated { !value } else { value } & mask)
    }

    #[inline]
    pub(super) fn write_predicate(&mut self, predicate: Predicate, mask: u32, value: u32) {
        let index = usize::from(predicate);
        self.predicates_written[index] |= mask;
        let target = &mut self.predicates[index];
        *target = (*target & !mask) | (value & mask);
    }

    /// Goes on to the next instruction.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.counter += 1;
        if self.counter >= self.lowest_other {
            self.regroup();
        }
    }

    /// Some of the active lanes go elsewhere, the others to the next instruction.
    pub(super) fn branch(&mut self, target: u32, taken: u32) {
        if taken == 0 {
            self.advance();
        } else if taken == self.active {
            self.counter = target;
            if self.active != self.live {
                self.regroup();
            }
        } else {
            self.counter += 1;
            self.park();
            for lane in lanes(taken) {
                self.counters[lane] = target;
            }
            self.choose();
        }
    }

    /// Some of the active lanes end.
    pub(super) fn exit(&mut self, mask: u32) {
        self.counter += 1;
        self.park();
        self.live &= !mask;
        self.choose();
    }

    fn regroup(&mut self) {
        self.park();
        self.choose();
    }

    fn park(&mut self) {
        for lane in lanes(self.active) {
            self.counters[lane] = self.counter;
        }
    }

    /// Lanes with the lowest program counter run, so that those that are behind catch up.
    fn choose(&mut self) {
        let lowest = lanes(self.live).map(|lane| self.counters[lane]).min().unwrap_or(0);
        self.counter = lowest;
        self.active = 0;
        self.lowest_other = u32::MAX;
        for lane in lanes(self.live) {
            let counter = self.counters[lane];
            if counter == lowest {
                self.active |= 1 << lane;
            } else {
                self.lowest_other = self.lowest_other.min(counter);
            }
        }
    }

    /// An `.aligned` instruction: all live lanes must execute it together.
    pub(super) fn demand_all(&self, mask: u32, kind: FaultKind) -> Result<(), Violation> {
        if mask == self.live {
            return Ok(());
        }
        let lane = (self.live & !mask).trailing_zeros() as usize;
        let detail = format!("lanes {mask:#010x} execute it, but {:#010x} are live", self.live);
        Err(Violation::new(kind, lane, detail))
    }
}
