//! Loads, stores and atomic operations.

use super::shared::{self, Shared, Use};
use super::warp::{LANES, Lanes, Warp, lanes};
use super::{Copies, Counts};
use crate::fault::{FaultKind, Violation};
use crate::memory::{AccessError, Memory, MemoryError};
use crate::program::{Access, Address, Atomic, AtomicOperands, Registers, Space, Type};

/// Bytes of a sector, the unit in which global memory is moved.
const SECTOR: u64 = 32;

/// Bytes that a lane loads or stores at most.
const WIDEST: usize = 16;

/// What the warps of a block share.
pub(super) struct Machine<'a> {
    pub(super) memory: &'a mut Memory,
    pub(super) shared: Shared,
    pub(super) counts: Counts,
    pub(super) parameters: &'a [u8],
    pub(super) copies: Copies,
}

/// A global access that failed, as a fault of the lane.
#[cold]
pub(super) fn violation(error: AccessError, lane: usize) -> Violation {
    let kind = match &error {
        AccessError::Race(_) => FaultKind::GlobalRace,
        AccessError::ReadOnly(_) => FaultKind::ReadOnly,
        AccessError::Memory(MemoryError::Uninitialised { .. }) => FaultKind::UninitialisedGlobal,
        AccessError::Memory(MemoryError::Freed { .. }) => FaultKind::Freed,
        AccessError::Memory(_) => FaultKind::GlobalOutOfBounds,
    };
    let detail = match error {
        AccessError::Race(detail) | AccessError::ReadOnly(detail) => detail,
        AccessError::Memory(error) => error.to_string(),
    };
    Violation::new(kind, lane, detail)
}

pub(super) fn addresses(warp: &Warp<'_>, at: Address, mask: u32) -> Result<Lanes, Violation> {
    let mut addresses = *warp.read(at.base, mask)?;
    for address in &mut addresses {
        *address = address.wrapping_add_signed(at.offset);
    }
    Ok(addresses)
}

pub(super) fn demand_alignment(address: u64, bytes: usize, lane: usize) -> Result<(), Violation> {
    if address.is_multiple_of(bytes as u64) {
        return Ok(());
    }
    let detail = format!("global address {address:#x} is not a multiple of {bytes}");
    Err(Violation::new(FaultKind::Misaligned, lane, detail))
}

/// Sectors that aligned accesses of up to 16 bytes touch.
pub(super) fn sectors(addresses: &Lanes, mask: u32) -> u64 {
    let mut sectors = [0; LANES];
    let mut count = 0;
    let mut sorted = true;
    for lane in lanes(mask) {
        let sector = addresses[lane] / SECTOR;
        if count > 0 && sectors[count - 1] == sector {
            continue;
        }
        sorted &= count == 0 || sectors[count - 1] < sector;
        sectors[count] = sector;
        count += 1;
    }
    if sorted {
        return count as u64;
    }
    let sectors = &mut sectors[..count];
    sectors.sort_unstable();
    (sectors.windows(2).filter(|pair| pair[0] != pair[1]).count() + 1) as u64
}

/// Widens a loaded value to its register.
fn extend(value: u64, ty: Type, to_bits: u32) -> u64 {
    let value = value & ty.mask();
    if !ty.is_signed() || ty.bits() >= to_bits {
        return value;
    }
    let shift = 64 - ty.bits();
    ((((value << shift) as i64) >> shift) as u64) & (u64::MAX >> (64 - to_bits))
}

impl Machine<'_> {
    pub(super) fn load_parameter(&self, ty: Type, to_bits: u32, offset: u32) -> u64 {
        let mut bytes = [0; 8];
        let size = ty.size();
        // A launch is only run when it passes as many bytes as the kernel's parameters have.
        if let Some(source) = self.parameters.get(offset as usize..offset as usize + size) {
            bytes[..size].copy_from_slice(source);
        }
        extend(u64::from_le_bytes(bytes), ty, to_bits)
    }

    pub(super) fn load(
        &mut self,
        warp: &mut Warp<'_>,
        mask: u32,
        access: &Access,
        to: &Registers,
        to_bits: u32,
        read_only: bool,
    ) -> Result<(), Violation> {
        let Access { space, ty, at } = *access;
        let addresses = addresses(warp, at, mask)?;
        let size = ty.size();
        let bytes = size * to.as_slice().len();
        let mut values = [[0; LANES]; 4];
        let mut hint = 0;
        match space {
            Space::Shared => self.counts.bank_conflicts += shared::conflicts(&addresses, mask, bytes),
            Space::Global => {
                self.counts.global_sectors += sectors(&addresses, mask);
                self.counts.global_bytes += u64::from(mask.count_ones()) * bytes as u64;
            }
        }
        for lane in lanes(mask) {
            let address = addresses[lane];
            let mut data = [0; WIDEST];
            match space {
                Space::Shared => {
                    let offset = self.shared.access(warp.number, lane, address, bytes, Use::Read)?;
                    self.shared.load(offset, &mut data[..bytes]);
                }
                Space::Global => {
                    demand_alignment(address, bytes, lane)?;
                    let loaded = self.memory.load_bytes(address, &mut data[..bytes], &mut hint, read_only);
                    loaded.map_err(|error| violation(error, lane))?;
                }
            }
            let data = u128::from_le_bytes(data);
            for (index, values) in values.iter_mut().enumerate().take(to.as_slice().len()) {
                values[lane] = extend((data >> (index as u32 * ty.bits())) as u64, ty, to_bits);
            }
        }
        for (register, values) in to.as_slice().iter().zip(&values) {
            warp.write(*register, mask, values);
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        warp: &Warp<'_>,
        mask: u32,
        access: &Access,
        values: &Registers,
    ) -> Result<(), Violation> {
        let Access { space, ty, at } = *access;
        let addresses = addresses(warp, at, mask)?;
        let bytes = ty.size() * values.as_slice().len();
        let mut data = [0u128; LANES];
        for (index, register) in values.as_slice().iter().enumerate() {
            let value = warp.read(*register, mask)?;
            for lane in 0..LANES {
                data[lane] |= u128::from(value[lane] & ty.mask()) << (index as u32 * ty.bits());
            }
        }
        let mut hint = 0;
        match space {
            Space::Shared => self.counts.bank_conflicts += shared::conflicts(&addresses, mask, bytes),
            Space::Global => {
                self.counts.global_sectors += sectors(&addresses, mask);
                self.counts.global_bytes += u64::from(mask.count_ones()) * bytes as u64;
            }
        }
        for lane in lanes(mask) {
            let address = addresses[lane];
            let data = data[lane].to_le_bytes();
            match space {
                Space::Shared => {
                    let offset = self.shared.access(warp.number, lane, address, bytes, Use::Write)?;
                    self.shared.store(offset, &data[..bytes]);
                }
                Space::Global => {
                    demand_alignment(address, bytes, lane)?;
                    let stored = self.memory.store_bytes(address, &data[..bytes], &mut hint);
                    stored.map_err(|error| violation(error, lane))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn atomic(
        &mut self,
        warp: &mut Warp<'_>,
        mask: u32,
        operands: &AtomicOperands,
    ) -> Result<(), Violation> {
        let AtomicOperands { access: Access { space, ty, at }, operation, to, value, swap } = *operands;
        let addresses = addresses(warp, at, mask)?;
        let values = *warp.read(value, mask)?;
        let swaps = *warp.read(swap, mask)?;
        let size = ty.size();
        let mut old = [0; LANES];
        if space == Space::Global {
            self.counts.global_sectors += sectors(&addresses, mask);
            self.counts.global_bytes += u64::from(mask.count_ones()) * size as u64;
        }
        for lane in lanes(mask) {
            let change = |old: u64| change(operation, ty, old, values[lane], swaps[lane]);
            old[lane] = match space {
                Space::Shared => {
                    let offset = self.shared.access(warp.number, lane, addresses[lane], size, Use::Atomic)?;
                    let mut bytes = [0; 8];
                    self.shared.load(offset, &mut bytes[..size]);
                    let old = u64::from_le_bytes(bytes);
                    self.shared.store(offset, &change(old).to_le_bytes()[..size]);
                    old
                }
                Space::Global => {
                    demand_alignment(addresses[lane], size, lane)?;
                    let old = self.memory.atomic(addresses[lane], size, change);
                    old.map_err(|error| violation(error, lane))?
                }
            };
        }
        if let Some(to) = to {
            warp.write(to, mask, &old);
        }
        Ok(())
    }
}

fn change(operation: Atomic, ty: Type, old: u64, value: u64, swap: u64) -> u64 {
    let signed = |value: u64| if ty.size() == 4 { i64::from(value as i32) } else { value as i64 };
    let new = match operation {
        Atomic::Add if ty == Type::F32 => {
            u64::from((f32::from_bits(old as u32) + f32::from_bits(value as u32)).to_bits())
        }
        Atomic::Add => old.wrapping_add(value),
        Atomic::Min if ty.is_signed() => signed(old).min(signed(value)) as u64,
        Atomic::Max if ty.is_signed() => signed(old).max(signed(value)) as u64,
        Atomic::Min => old.min(value),
        Atomic::Max => old.max(value),
        Atomic::And => old & value,
        Atomic::Or => old | value,
        Atomic::Xor => old ^ value,
        Atomic::Exchange => value,
        Atomic::CompareAndSwap => {
            if old == value {
                swap
            } else {
                old
            }
        }
    };
    new & ty.mask()
}
