//! Instructions in which the lanes of a warp exchange values.

use super::warp::{LANES, Lanes, Warp, lanes};
use crate::fault::{FaultKind, Violation};
use crate::program::{Reduction, Register, Shuffle, ShuffleOperands, Type, Vote};

/// The lanes that a `.sync` instruction names. All lanes that execute it must be among them, and name the same, and
/// all live ones that are named must execute it.
pub(super) fn members(warp: &Warp<'_>, members: Register, mask: u32) -> Result<u32, Violation> {
    let all = *warp.read(members, mask)?;
    let first = all[mask.trailing_zeros() as usize % LANES] as u32;
    for lane in lanes(mask) {
        let named = all[lane] as u32;
        if named != first || named >> lane & 1 == 0 {
            let detail = format!("lane {lane} names the lanes {named:#010x}, others {first:#010x}");
            return Err(Violation::new(FaultKind::InactiveLane, lane, detail));
        }
    }
    let missing = first & warp.live & !mask;
    if missing != 0 {
        let lane = missing.trailing_zeros() as usize;
        let detail = format!("lanes {first:#010x} are named, but only {mask:#010x} execute it");
        return Err(Violation::new(FaultKind::InactiveLane, lane, detail));
    }
    Ok(first)
}

pub(super) fn shuffle(warp: &mut Warp<'_>, mask: u32, operands: &ShuffleOperands) -> Result<(), Violation> {
    members(warp, operands.members, mask)?;
    let values = warp.read(operands.value, mask)?;
    let offsets = warp.read(operands.lane, mask)?;
    let clamps = warp.read(operands.clamp, mask)?;
    let mut out: Lanes = [0; LANES];
    let mut in_range = 0u32;
    for lane in lanes(mask) {
        let offset = (offsets[lane] & 31) as i32;
        let clamp = (clamps[lane] & 31) as i32;
        // Lanes that share these bits of their number form a segment.
        let segment = (clamps[lane] >> 8 & 31) as i32;
        let me = lane as i32;
        let last = (me & segment) | (clamp & !segment);
        let first = me & segment;
        let (source, inside) = match operands.mode {
            Shuffle::Up => (me - offset, me - offset >= last),
            Shuffle::Down => (me + offset, me + offset <= last),
            Shuffle::Butterfly => (me ^ offset, me ^ offset <= last),
            Shuffle::Index => {
                let source = first | (offset & !segment);
                (source, source <= last)
            }
        };
        let source = if inside { source as usize % LANES } else { lane };
        if mask >> source & 1 == 0 {
            let detail = format!("lane {lane} reads lane {source}, which does not execute it");
            return Err(Violation::new(FaultKind::InactiveLane, lane, detail));
        }
        out[lane] = values[source];
        in_range |= u32::from(inside) << lane;
    }
    warp.write(operands.to, mask, &out);
    if let Some(predicate) = operands.in_range {
        warp.write_predicate(predicate, mask, in_range);
    }
    Ok(())
}

pub(super) fn vote(vote: Vote, holds: u32, mask: u32) -> bool {
    match vote {
        Vote::All => holds == mask,
        Vote::Any => holds != 0,
        Vote::Uniform => holds == mask || holds == 0,
    }
}

pub(super) fn reduce(reduction: Reduction, ty: Type, values: &Lanes, mask: u32) -> u64 {
    let values = lanes(mask).map(|lane| values[lane] as u32);
    let signed = ty.is_signed();
    let result = values.reduce(|a, b| match reduction {
        Reduction::Add => a.wrapping_add(b),
        Reduction::Min if signed => (a as i32).min(b as i32) as u32,
        Reduction::Max if signed => (a as i32).max(b as i32) as u32,
        Reduction::Min => a.min(b),
        Reduction::Max => a.max(b),
        Reduction::And => a & b,
        Reduction::Or => a | b,
        Reduction::Xor => a ^ b,
    });
    u64::from(result.unwrap_or(0))
}
