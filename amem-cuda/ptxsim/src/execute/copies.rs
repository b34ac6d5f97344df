//! Asynchronous copies from global to shared memory.

use super::Copies;
use super::access::{Machine, addresses, demand_alignment, sectors, violation};
use super::shared::Use;
use super::warp::{Warp, lanes};
use crate::fault::{FaultKind, Violation};
use crate::program::{Address, Register};

/// A copy that its lane has not waited for.
#[derive(Clone, Copy)]
pub(super) struct PendingCopy {
    lane: u8,
    bytes: u8,
    source_bytes: u8,
    /// The group of its lane that it belongs to.
    group: u32,
    /// Where in shared memory.
    target: u32,
    source: u64,
}

impl Machine<'_> {
    /// `cp.async`. Its target is written from now on, and nobody may touch it before the copy was waited for.
    pub(super) fn copy_async(
        &mut self,
        warp: &mut Warp<'_>,
        mask: u32,
        to: Address,
        from: Address,
        bytes: u8,
        source_bytes: Option<Register>,
    ) -> Result<(), Violation> {
        let targets = addresses(warp, to, mask)?;
        let sources = addresses(warp, from, mask)?;
        let sizes = match source_bytes {
            Some(register) => Some(*warp.read(register, mask)?),
            None => None,
        };
        let len = usize::from(bytes);
        let mut reading = mask;
        for lane in lanes(mask) {
            let size = sizes.as_ref().map_or(u64::from(bytes), |sizes| sizes[lane]);
            if size > u64::from(bytes) {
                let detail = format!("a copy of {bytes} bytes reads {size}");
                return Err(Violation::new(FaultKind::GlobalOutOfBounds, lane, detail));
            }
            demand_alignment(sources[lane], len, lane)?;
            let offset = self.shared.access(warp.number, lane, targets[lane], len, Use::Write)?;
            self.shared.set_pending(warp.number, lane, offset, len, true);
            if size == 0 {
                reading &= !(1 << lane);
            }
            self.counts.global_bytes += size;
            let copy = PendingCopy {
                lane: lane as u8,
                bytes,
                source_bytes: size as u8,
                group: warp.groups[lane],
                target: offset as u32,
                source: sources[lane],
            };
            if self.copies == Copies::Early {
                self.land(&copy)?;
            }
            warp.copies.push(copy);
        }
        if reading != 0 {
            self.counts.global_sectors += sectors(&sources, reading);
        }
        Ok(())
    }

    fn land(&mut self, copy: &PendingCopy) -> Result<(), Violation> {
        let mut data = [0; 16];
        let source = &mut data[..usize::from(copy.source_bytes)];
        if !source.is_empty() {
            let loaded = self.memory.load_run(copy.source, source);
            loaded.map_err(|error| violation(error, usize::from(copy.lane)))?;
        }
        self.shared.store(copy.target as usize, &data[..usize::from(copy.bytes)]);
        Ok(())
    }

    /// Waits for the lanes' copies, but for those of their newest `keep` groups.
    pub(super) fn wait_copies(&mut self, warp: &mut Warp<'_>, mask: u32, keep: Option<u32>) -> Result<(), Violation> {
        let mut copies = std::mem::take(&mut warp.copies);
        let mut result = Ok(());
        copies.retain(|copy| {
            let lane = usize::from(copy.lane);
            let done = match keep {
                // All of them, those too that belong to no group yet.
                None => true,
                Some(keep) => u64::from(copy.group) + u64::from(keep) < u64::from(warp.groups[lane]),
            };
            if mask >> lane & 1 == 0 || !done || result.is_err() {
                return true;
            }
            self.shared.set_pending(warp.number, lane, copy.target as usize, usize::from(copy.bytes), false);
            if self.copies == Copies::Late {
                result = self.land(copy);
            }
            false
        });
        warp.copies = copies;
        result
    }
}

/// A thread must wait for its copies before it exits.
pub(super) fn demand_none(warp: &Warp<'_>, mask: u32) -> Result<(), Violation> {
    match warp.copies.iter().find(|copy| mask >> copy.lane & 1 == 1) {
        None => Ok(()),
        Some(copy) => {
            let detail = format!("a copy to offset {:#x} of shared memory was not waited for", copy.target);
            Err(Violation::new(FaultKind::CopyAtExit, usize::from(copy.lane), detail))
        }
    }
}
