//! Carrying out one operation.
//!
//! Every access to memory is noted in its history before or after it is made: before for copies, whose memory is known,
//! and after for kernels, whose memory is known once they ran. Either way an access that nothing orders is a fault.

use crate::machine::Machine;
use crate::operation::{Copy, Fill, Launch, Operation, Side, Work, rows};
use crate::order::Actor;
use amem_ptxsim::{Copies, Schedule};
use std::ops::Range;

/// What went wrong, without the operation's name.
type Outcome = Result<(), String>;

impl Machine {
    pub(crate) fn execute(&mut self, actor: Actor, operation: &Operation) -> Outcome {
        match &operation.work {
            Work::Launch(launch) => self.run_kernel(actor, operation, launch),
            Work::Copy(copy) => self.run_copy(actor, operation, copy),
            Work::Fill(fill) => self.run_fill(actor, operation, fill),
            Work::Product(product) => {
                for range in product.reads() {
                    self.note_access(actor, operation, range, false)?;
                }
                for range in product.writes() {
                    self.note_access(actor, operation, range, true)?;
                }
                product.compute(&mut self.memory)
            }
            Work::Allocate { address, bytes } => {
                self.note_access(actor, operation, *address..address + *bytes as u64, true)
            }
            Work::Free { address, bytes } => {
                let range = *address..address + *bytes as u64;
                self.note_access(actor, operation, range.clone(), true)?;
                self.remove_allocation(range).map_err(|error| error.reason)
            }
            Work::Record { event } => {
                self.event_reached(*event, actor, operation.tick);
                Ok(())
            }
            Work::Call(call) => {
                crate::ffi::call_host(call);
                Ok(())
            }
        }
    }

    fn note_access(&mut self, actor: Actor, operation: &Operation, range: Range<u64>, write: bool) -> Outcome {
        self.note_device(range, write, &operation.epoch(actor), &operation.clock)
    }

    fn run_kernel(&mut self, actor: Actor, operation: &Operation, launch: &Launch) -> Outcome {
        let Some(kernel) = launch.entry.kernel() else {
            return Err("the kernel is gone".to_string());
        };
        let copies = if self.random.chance(1, 2) { Copies::Late } else { Copies::Early };
        let launch = amem_ptxsim::Launch {
            kernel,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.dynamic_shared,
            parameters: &launch.parameters,
            schedule: Schedule { seed: self.random.next(), copies },
        };
        let outcome = amem_ptxsim::run(&launch, &mut self.memory);
        // Order comes first: memory that was never written is often memory that was not waited for.
        for access in self.memory.last_accesses().to_vec() {
            self.note_access(actor, operation, access.range, access.written)?;
        }
        match outcome {
            Ok(counts) => {
                self.time += counts.warp_instructions;
                Ok(())
            }
            Err(fault) => Err(format!("{fault}{}", self.unordered_hint(actor, operation))),
        }
    }

    fn run_copy(&mut self, actor: Actor, operation: &Operation, copy: &Copy) -> Outcome {
        let Copy { from, to, width, rows: count } = copy;
        if let (Side::Host { range, pitch }, Some(source)) = (from, &operation.source) {
            let mut now = vec![0; range.len()];
            range.read(0, &mut now);
            let changed = (0..*count).find_map(|row| {
                let at = row * pitch..row * pitch + width;
                let (old, new) = (source.get(at.clone())?, now.get(at.clone())?);
                old.iter().zip(new).position(|(old, new)| old != new).map(|column| at.start + column)
            });
            if let Some(offset) = changed {
                return Err(format!("the program changed byte {offset} of the page-locked source before the copy ran"));
            }
        }
        for (side, write) in [(from, false), (to, true)] {
            match side {
                Side::Device { address, pitch } => {
                    for range in rows(*address, *pitch, *width, *count) {
                        self.note_access(actor, operation, range, write)?;
                    }
                }
                Side::Host { range, pitch } => {
                    for range in rows(range.address(), *pitch, *width, *count) {
                        self.note_host(range, write, &operation.epoch(actor), &operation.clock)?;
                    }
                }
                Side::Staged(_) => {}
            }
        }
        for row in 0..*count {
            self.copy_row(copy, row).map_err(|error| format!("{error}{}", self.unordered_hint(actor, operation)))?;
        }
        let bytes = (width * count) as u64;
        match (from, to) {
            (Side::Device { .. }, Side::Host { .. }) => self.counts.bytes_to_host += bytes,
            (Side::Host { .. } | Side::Staged(_), Side::Device { .. }) => self.counts.bytes_to_device += bytes,
            _ => {}
        }
        Ok(())
    }

    fn copy_row(&mut self, copy: &Copy, row: usize) -> Outcome {
        let at = |address: u64, pitch: usize| address + (row * pitch) as u64;
        let mut bytes = vec![0; copy.width];
        match (&copy.from, &copy.to) {
            (Side::Device { address: from, pitch: gap }, Side::Device { address: to, pitch }) => {
                let copied = self.memory.copy(at(*from, *gap), at(*to, *pitch), copy.width);
                return copied.map_err(|error| error.to_string());
            }
            (Side::Device { address, pitch }, _) => {
                self.memory.read(at(*address, *pitch), &mut bytes).map_err(|error| error.to_string())?;
            }
            (Side::Host { range, pitch }, _) => range.read(row * pitch, &mut bytes),
            (Side::Staged(staged), _) => match staged.get(row * copy.width..(row + 1) * copy.width) {
                Some(staged) => bytes.copy_from_slice(staged),
                None => return Err("the copy is longer than its source".to_string()),
            },
        }
        match &copy.to {
            Side::Device { address, pitch } => {
                self.memory.write(at(*address, *pitch), &bytes).map_err(|error| error.to_string())
            }
            Side::Host { range, pitch } => {
                range.write(row * pitch, &bytes);
                Ok(())
            }
            Side::Staged(_) => Err("a copy cannot write to a staged source".to_string()),
        }
    }

    fn run_fill(&mut self, actor: Actor, operation: &Operation, fill: &Fill) -> Outcome {
        for range in rows(fill.address, fill.pitch, fill.width, fill.rows) {
            self.note_access(actor, operation, range.clone(), true)?;
            let bytes = (range.end - range.start) as usize;
            let filled = match fill.pattern.as_slice() {
                [byte] => self.memory.fill(range.start, *byte, bytes),
                pattern => self.memory.write(range.start, &pattern.repeat(bytes / pattern.len().max(1))),
            };
            filled.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Which queued operations of other streams could have been meant to come first.
    fn unordered_hint(&self, actor: Actor, operation: &Operation) -> String {
        let others = self.streams.iter().enumerate().filter(|&(other, _)| other != actor);
        let queued = others.flat_map(|(other, stream)| stream.queue.iter().map(move |op| (other, stream, op)));
        let unordered = queued.filter(|(other, _, op)| op.tick > operation.clock.get(*other));
        let names: Vec<String> = unordered
            .filter(|(_, _, op)| !matches!(op.work, Work::Record { .. }))
            .take(3)
            .map(|(_, stream, op)| format!("{} in {}", op.label, stream.name))
            .collect();
        match names.is_empty() {
            true => String::new(),
            false => format!(" (it does not wait for what is still queued: {})", names.join(", ")),
        }
    }
}
