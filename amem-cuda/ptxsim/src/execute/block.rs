//! A block: its warps, in which order they run, and the barriers that they wait at.

use super::access::Machine;
use super::shared::Shared;
use super::step::{self, Flow};
use super::warp::{LANES, Place, Warp};
use super::{Counts, Launch};
use crate::fault::{Fault, FaultKind, Violation};
use crate::kernel::Kernel;
use crate::memory::Memory;

/// Barriers of a block.
const BARRIERS: usize = 16;

/// The longest run of instructions that a warp executes before another one may get its turn.
const LONGEST_TURN: u64 = 400;

/// A barrier that warps have come to.
#[derive(Clone, Copy, Default)]
struct Barrier {
    arrived: u32,
    waiting: u32,
    /// Threads that it waits for, or all of the block.
    threads: Option<u32>,
    /// For each warp that has arrived, when.
    stamps: [u32; LANES],
}

pub(super) struct Executor<'a> {
    kernel: &'a Kernel,
    place: Place,
    machine: Machine<'a>,
    warps: Vec<Warp<'a>>,
    barriers: [Barrier; BARRIERS],
    /// Warps that can go on, a bit for each.
    ready: u32,
    steps: u64,
    random: u64,
    blocks: u32,
}

impl<'a> Executor<'a> {
    pub(super) fn new(launch: &Launch<'a>, memory: &'a mut Memory) -> Self {
        let kernel = launch.kernel;
        let [x, y, z] = launch.block;
        let warps = ((x * y * z) as usize).div_ceil(LANES);
        let bytes = (kernel.dynamic_offset + launch.dynamic_shared).max(kernel.static_shared);
        Self {
            kernel,
            place: Place {
                grid: launch.grid,
                block: [0; 3],
                threads: launch.block,
                dynamic_shared: launch.dynamic_shared as u32,
            },
            machine: Machine {
                memory,
                shared: Shared::new(bytes, kernel.shared_granule, warps),
                counts: Counts::default(),
                parameters: launch.parameters,
                copies: launch.schedule.copies,
            },
            warps: (0..warps).map(|number| Warp::new(kernel, number)).collect(),
            barriers: [Barrier::default(); BARRIERS],
            ready: 0,
            steps: 0,
            random: launch.schedule.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            blocks: 0,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.machine.counts
    }

    pub(super) fn run_block(&mut self, block: [u32; 3]) -> Result<(), Fault> {
        self.place.block = block;
        self.machine.memory.begin_block(self.blocks);
        self.blocks += 1;
        self.machine.shared.reset();
        for warp in &mut self.warps {
            warp.reset(&self.place);
        }
        self.barriers = [Barrier::default(); BARRIERS];
        self.ready = u32::MAX >> (LANES - self.warps.len());
        self.steps = 0;
        while self.warps.iter().any(|warp| warp.live != 0) {
            if self.ready == 0 {
                return Err(self.deadlock());
            }
            let number = self.next_warp();
            self.turn(number)?;
        }
        self.machine.counts.warp_instructions += self.steps;
        Ok(())
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 16
    }

    /// Any of the warps that can go on.
    fn next_warp(&mut self) -> usize {
        let skip = self.random() % u64::from(self.ready.count_ones());
        super::warp::lanes(self.ready).nth(skip as usize).unwrap_or(0)
    }

    /// Lets a warp run for a while, or until it waits or ends.
    fn turn(&mut self, number: usize) -> Result<(), Fault> {
        let length = 1 + self.random() % LONGEST_TURN;
        for _ in 0..length {
            let warp = &mut self.warps[number];
            let counter = warp.counter;
            self.steps += 1;
            let flow = step::step(&mut self.machine, warp, self.kernel);
            let flow = match flow {
                _ if self.steps > self.kernel.step_limit => {
                    let detail = format!("more than {} instructions", self.kernel.step_limit);
                    return Err(self.fault(number, counter, Violation::new(FaultKind::Hang, 0, detail)));
                }
                Ok(flow) => flow,
                Err(violation) => return Err(self.fault(number, counter, violation)),
            };
            match flow {
                Flow::Next => {}
                Flow::Ended if self.warps[number].live != 0 => {}
                Flow::Ended => {
                    self.ready &= !(1 << number);
                    // Those that wait for all warps of the block wait for one less.
                    for id in 0..BARRIERS {
                        self.open_if_full(id);
                    }
                    return Ok(());
                }
                Flow::Barrier { id, threads, wait } => {
                    if let Err(violation) = self.arrive(number, id, threads, wait) {
                        return Err(self.fault(number, counter, violation));
                    }
                    if wait {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn arrive(&mut self, number: usize, id: u64, threads: Option<u64>, wait: bool) -> Result<(), Violation> {
        let wrong = |detail: String| Violation::new(FaultKind::Barrier, 0, detail);
        let index = usize::try_from(id).ok().filter(|index| *index < BARRIERS);
        let index = index.ok_or_else(|| wrong(format!("barrier {id}: a block has {BARRIERS}")))?;
        let threads = match threads {
            None => None,
            Some(threads) => {
                let most = (self.warps.len() * LANES) as u64;
                if threads == 0 || threads % LANES as u64 != 0 || threads > most {
                    return Err(wrong(format!("a barrier for {threads} threads in a block of {most}")));
                }
                Some(threads as u32)
            }
        };
        let stamp = self.machine.shared.tick();
        let barrier = &mut self.barriers[index];
        if barrier.arrived != 0 && barrier.threads != threads {
            return Err(wrong(format!("barrier {id} is used with different numbers of threads at once")));
        }
        if barrier.arrived >> number & 1 == 1 {
            return Err(wrong(format!("a warp arrives at barrier {id} twice")));
        }
        barrier.threads = threads;
        barrier.arrived |= 1 << number;
        barrier.stamps[number] = stamp;
        if wait {
            barrier.waiting |= 1 << number;
            self.ready &= !(1 << number);
        }
        self.open_if_full(index);
        Ok(())
    }

    fn open_if_full(&mut self, id: usize) {
        let barrier = self.barriers[id];
        if barrier.arrived == 0 {
            return;
        }
        let full = match barrier.threads {
            Some(threads) => barrier.arrived.count_ones() * LANES as u32 >= threads,
            None => {
                let live = self.warps.iter().filter(|warp| warp.live != 0);
                live.fold(0, |mask, warp| mask | 1u32 << warp.number) & !barrier.arrived == 0
            }
        };
        if full {
            self.machine.shared.order(barrier.arrived, barrier.waiting, &barrier.stamps);
            self.machine.counts.barriers += 1;
            self.ready |= barrier.waiting;
            self.barriers[id] = Barrier::default();
        }
    }

    fn deadlock(&self) -> Fault {
        let waiting: Vec<usize> = self.warps.iter().filter(|warp| warp.live != 0).map(|warp| warp.number).collect();
        let first = waiting.first().copied().unwrap_or(0);
        let counter = self.warps[first].counter.saturating_sub(1);
        let detail = format!("warps {waiting:?} wait at barriers that the others never reach");
        self.fault(first, counter, Violation::new(FaultKind::Deadlock, 0, detail))
    }

    #[cold]
    fn fault(&self, warp: usize, counter: u32, violation: Violation) -> Fault {
        Fault {
            kind: violation.kind,
            line: self.kernel.instruction_line(counter as usize),
            instruction: self.kernel.instruction_text(counter as usize).to_owned(),
            block: self.place.block,
            warp: warp as u32,
            lane: violation.lane as u32,
            detail: violation.detail,
        }
    }
}
