//! A block's shared memory, and the accesses of its warps that no barrier orders.
//!
//! Accesses are aligned to their size, so bytes are watched in granules as large as the kernel's narrowest access.
//! A clock ticks at barriers. An access of warp `r` at a time before `ordered[w][r]` happens before what warp `w` does
//! now; any other access of `r` may happen at the same time.

use super::warp::{LANES, Lanes, lanes};
use crate::SHARED_BASE;
use crate::fault::{FaultKind, Violation};

/// Banks of shared memory, 4 bytes wide.
const BANKS: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    /// A read whose data go to other lanes too.
    ReadForAll,
    Write,
    Atomic,
}

impl Use {
    fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadForAll)
    }
}

/// What is known of a granule. Time 0 is never.
#[derive(Clone, Copy, Default)]
struct Granule {
    written_at: u32,
    /// How often the writer's warp had synchronised its lanes.
    lanes_synchronised: u32,
    writer: u8,
    writer_lane: u8,
    atomic: bool,
    initialised: bool,
    /// The target of a copy that is in flight.
    pending: bool,
}

pub(super) struct Shared {
    bytes: Vec<u8>,
    granule: usize,
    granules: Vec<Granule>,
    /// For each granule and warp, when it was read last.
    reads: Vec<u32>,
    warps: usize,
    clock: u32,
    ordered: Vec<[u32; LANES]>,
    /// For each warp, how often it synchronised its lanes.
    lanes_synchronised: Vec<u32>,
}

impl Shared {
    pub(super) fn new(bytes: usize, granule: usize, warps: usize) -> Self {
        let granules = bytes.div_ceil(granule);
        Self {
            bytes: vec![0; bytes],
            granule,
            granules: vec![Granule::default(); granules],
            reads: vec![0; granules * warps],
            warps,
            clock: 1,
            ordered: vec![[1; LANES]; warps],
            lanes_synchronised: vec![0; warps],
        }
    }

    /// Forgets everything, for the next block. Its clock goes on, so that what was before is before everything.
    pub(super) fn reset(&mut self) {
        self.granules.fill(Granule::default());
        self.lanes_synchronised.fill(0);
        // A block's instructions are far too few to turn it over.
        if self.clock > u32::MAX / 2 {
            self.clock = 0;
            self.reads.fill(0);
        }
        self.clock += 1;
        for (warp, ordered) in self.ordered.iter_mut().enumerate() {
            *ordered = [self.clock; LANES];
            // What a warp does itself is always in order.
            ordered[warp] = u32::MAX;
        }
    }

    /// A warp's lanes see from now on what the others of them wrote.
    pub(super) fn synchronise_lanes(&mut self, warp: usize) {
        self.lanes_synchronised[warp] += 1;
    }

    /// A warp arrives at a barrier. Returns the time: all that it did before has an earlier one.
    pub(super) fn tick(&mut self) -> u32 {
        self.clock += 1;
        self.clock
    }

    /// A barrier opens: what `arrived` did before they arrived happens before what `waiting` do next.
    pub(super) fn order(&mut self, arrived: u32, waiting: u32, stamps: &[u32; LANES]) {
        let mut known = [0; LANES];
        for warp in lanes(arrived) {
            for (known, ordered) in known.iter_mut().zip(&self.ordered[warp]) {
                // The entry for itself is no time.
                if *ordered != u32::MAX {
                    *known = (*known).max(*ordered);
                }
            }
        }
        for warp in lanes(arrived) {
            known[warp] = known[warp].max(stamps[warp]);
        }
        for warp in lanes(waiting) {
            let ordered = &mut self.ordered[warp];
            for (ordered, known) in ordered.iter_mut().zip(&known) {
                *ordered = (*ordered).max(*known);
            }
            self.lanes_synchronised[warp] += 1;
        }
        self.clock += 1;
    }

    /// Where an access of a lane lies, if the warp may make it now.
    #[inline]
    pub(super) fn access(
        &mut self,
        warp: usize,
        lane: usize,
        address: u64,
        len: usize,
        usage: Use,
    ) -> Result<usize, Violation> {
        let offset = self.place(lane, address, len)?;
        let first = offset / self.granule;
        let last = (offset + len - 1) / self.granule;
        let ordered = &self.ordered[warp];
        let synchronised = self.lanes_synchronised[warp];
        for index in first..=last {
            let granule = &mut self.granules[index];
            let reads = &mut self.reads[index * self.warps..][..self.warps];
            let written_before = granule.written_at < ordered[usize::from(granule.writer) % LANES]
                || (usage == Use::Atomic && granule.atomic);
            let read_before = usage.reads() || reads.iter().zip(ordered).all(|(read, time)| read < time);
            let readable = usage == Use::Write || granule.initialised;
            let lanes_ordered = granule.writer as usize != warp
                || (granule.writer_lane as usize == lane && usage != Use::ReadForAll)
                || granule.lanes_synchronised != synchronised
                || granule.written_at == 0
                || (usage == Use::Atomic && granule.atomic);
            if granule.pending || !written_before || !read_before || !readable || !lanes_ordered {
                return Err(self.explain(warp, lane, index, usage));
            }
            if usage.reads() {
                reads[warp] = self.clock;
            } else {
                granule.written_at = self.clock;
                granule.writer = warp as u8;
                granule.writer_lane = lane as u8;
                granule.lanes_synchronised = synchronised;
                granule.atomic = usage == Use::Atomic;
                granule.initialised = true;
            }
        }
        Ok(offset)
    }

    /// Checks bounds and alignment.
    #[inline]
    fn place(&self, lane: usize, address: u64, len: usize) -> Result<usize, Violation> {
        let offset = address.wrapping_sub(SHARED_BASE);
        if address < SHARED_BASE || offset > self.bytes.len() as u64 || offset as usize + len > self.bytes.len() {
            let detail = format!(
                "{len} bytes at {address:#x}, where the block has {} bytes from {SHARED_BASE:#x} on",
                self.bytes.len()
            );
            return Err(Violation::new(FaultKind::SharedOutOfBounds, lane, detail));
        }
        if !address.is_multiple_of(len as u64) {
            let detail = format!("shared address {address:#x} is not a multiple of {len}");
            return Err(Violation::new(FaultKind::Misaligned, lane, detail));
        }
        Ok(offset as usize)
    }

    #[cold]
    fn explain(&self, warp: usize, lane: usize, index: usize, usage: Use) -> Violation {
        let granule = self.granules[index];
        let ordered = &self.ordered[warp];
        let what = match usage {
            Use::Read | Use::ReadForAll => "read",
            Use::Write => "written",
            Use::Atomic => "changed atomically",
        };
        let bytes = format!("shared byte {:#x} is {what} by warp {warp}", SHARED_BASE as usize + index * self.granule);
        if granule.pending {
            let detail = format!("{bytes}, but is the target of a copy that was not waited for");
            return Violation::new(FaultKind::CopyPending, lane, detail);
        }
        if granule.written_at >= ordered[usize::from(granule.writer) % LANES] {
            let detail = format!("{bytes} and was written by warp {} with no barrier between", granule.writer);
            return Violation::new(FaultKind::SharedRace, lane, detail);
        }
        let reads = &self.reads[index * self.warps..][..self.warps];
        if !usage.reads()
            && let Some(reader) = reads.iter().zip(ordered).position(|(read, time)| read >= time)
        {
            let detail = format!("{bytes} and was read by warp {reader} with no barrier between");
            return Violation::new(FaultKind::SharedRace, lane, detail);
        }
        if granule.initialised {
            let detail =
                format!("{bytes} and was written by its lane {} with no bar.warp.sync between", granule.writer_lane);
            return Violation::new(FaultKind::WarpRace, lane, detail);
        }
        Violation::new(FaultKind::UninitialisedShared, lane, format!("{bytes}, but was never written"))
    }

    /// Bytes at an offset that [`access`](Self::access) returned.
    #[inline]
    pub(super) fn load(&self, offset: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes[offset..offset + out.len()]);
    }

    #[inline]
    pub(super) fn store(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Marks the target of a copy that begins, or has been waited for. Waiting makes the data visible to the lane that
    /// copied it, to others only a barrier behind that.
    pub(super) fn set_pending(&mut self, warp: usize, lane: usize, offset: usize, len: usize, pending: bool) {
        let clock = self.clock;
        let synchronised = self.lanes_synchronised[warp];
        for granule in &mut self.granules[offset / self.granule..=(offset + len - 1) / self.granule] {
            granule.pending = pending;
            granule.written_at = clock;
            granule.writer = warp as u8;
            granule.writer_lane = lane as u8;
            granule.lanes_synchronised = synchronised;
            granule.atomic = false;
        }
    }
}

/// Cycles that an access of a warp takes beyond one for each 128 bytes: lanes need different words of one bank.
pub(super) fn conflicts(addresses: &Lanes, mask: u32, bytes: usize) -> u64 {
    let lanes_at_once = (128 / bytes.max(4)).min(LANES);
    let words = bytes.div_ceil(4);
    (0..LANES).step_by(lanes_at_once).map(|first| group_conflicts(addresses, mask, words, first, lanes_at_once)).sum()
}

/// The same of lanes that need at most 32 words together.
fn group_conflicts(addresses: &Lanes, mask: u32, words: usize, first: usize, count: usize) -> u64 {
    let group = || (first..first + count).filter(|lane| mask >> lane & 1 == 1);
    let needed = |lane: usize| (addresses[lane] / 4..).take(words);
    // Mostly every bank is asked for one word alone. Several lanes may read that one.
    let mut held = [u64::MAX; BANKS];
    let free = group().flat_map(needed).all(|word| {
        let held = &mut held[word as usize % BANKS];
        let fits = *held == word || *held == u64::MAX;
        *held = word;
        fits
    });
    if free {
        return 0;
    }
    let mut all = [u64::MAX; BANKS];
    let mut distinct = 0;
    let mut count = [0; BANKS];
    for word in group().flat_map(needed) {
        if !all[..distinct].contains(&word) {
            all[distinct] = word;
            distinct += 1;
            count[word as usize % BANKS] += 1;
        }
    }
    count.iter().max().map_or(0, |most| most - 1)
}
