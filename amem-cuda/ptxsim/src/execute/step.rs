//! One instruction of one warp.

use super::access::Machine;
use super::collective;
use super::warp::{LANES, Lanes, Warp, lanes};
use super::{arithmetic, copies, float};
use crate::fault::{FaultKind, Violation};
use crate::kernel::Kernel;
use crate::program::{Binary, Logic, Operation, Register, Type};

/// What a warp does next.
pub(super) enum Flow {
    Next,
    /// Some of its lanes have ended.
    Ended,
    Barrier {
        id: u64,
        threads: Option<u64>,
        wait: bool,
    },
}

/// Executes the next instruction of a warp.
#[inline]
pub(super) fn step(machine: &mut Machine<'_>, warp: &mut Warp<'_>, kernel: &Kernel) -> Result<Flow, Violation> {
    let Some(instruction) = kernel.code.get(warp.counter as usize) else {
        return end(warp, warp.active);
    };
    let mask = match instruction.guard {
        None => warp.active,
        Some(guard) => warp.condition(guard, warp.active)?,
    };
    if mask == 0 {
        warp.advance();
        return Ok(Flow::Next);
    }
    match instruction.operation {
        Operation::Branch { target, uniform } => {
            if uniform && mask != warp.active {
                let detail = format!("lanes {mask:#010x} of {:#010x} take a uniform branch", warp.active);
                return Err(Violation::new(FaultKind::Divergent, mask.trailing_zeros() as usize, detail));
            }
            warp.branch(target, mask);
            return Ok(Flow::Next);
        }
        Operation::Exit => return end(warp, mask),
        Operation::Barrier { id, threads, wait } => {
            warp.demand_all(mask, FaultKind::Barrier)?;
            let first = mask.trailing_zeros() as usize % LANES;
            let same = |values: &Lanes| lanes(mask).all(|lane| values[lane] == values[first]);
            let id = warp.read(id, mask)?;
            if !same(id) {
                return Err(Violation::new(FaultKind::Barrier, first, "the lanes of a warp name different barriers"));
            }
            let id = id[first];
            let threads = match threads {
                Some(register) => Some(warp.read(register, mask)?[first]),
                None => None,
            };
            warp.advance();
            return Ok(Flow::Barrier { id, threads, wait });
        }
        ref operation => execute(machine, warp, mask, operation)?,
    }
    warp.advance();
    Ok(Flow::Next)
}

fn end(warp: &mut Warp<'_>, mask: u32) -> Result<Flow, Violation> {
    copies::demand_none(warp, mask)?;
    warp.exit(mask);
    Ok(Flow::Ended)
}

fn execute(machine: &mut Machine<'_>, warp: &mut Warp<'_>, mask: u32, operation: &Operation) -> Result<(), Violation> {
    match operation {
        Operation::Nothing | Operation::Branch { .. } | Operation::Exit | Operation::Barrier { .. } => {}
        Operation::LoadParameter { ty, to, to_bits, offset } => {
            let value = machine.load_parameter(*ty, *to_bits, *offset);
            warp.write(*to, mask, &[value; LANES]);
        }
        Operation::Load { access, to, to_bits, read_only } => {
            machine.load(warp, mask, access, to, *to_bits, *read_only)?;
        }
        Operation::Store { access, values } => machine.store(warp, mask, access, values)?,
        Operation::Atomic(operands) => machine.atomic(warp, mask, operands)?,
        Operation::Move { to, from } => {
            let values = *warp.read(*from, mask)?;
            warp.write(*to, mask, &values);
        }
        Operation::Pack { to, parts, bits } => {
            let mut values = [0; LANES];
            for (index, part) in parts.as_slice().iter().enumerate() {
                let part = warp.read(*part, mask)?;
                for lane in 0..LANES {
                    values[lane] |= part[lane] << (index as u32 * bits);
                }
            }
            warp.write(*to, mask, &values);
        }
        Operation::Unpack { parts, from, bits } => {
            let values = *warp.read(*from, mask)?;
            for (index, part) in parts.as_slice().iter().enumerate() {
                let shift = index as u32 * bits;
                let part_values = values.map(|value| value >> shift & (u64::MAX >> (64 - bits)));
                warp.write(*part, mask, &part_values);
            }
        }
        Operation::Unary { operation, ty, to, a, flush } => {
            let a = warp.read(*a, mask)?;
            let out = if *flush {
                arithmetic::flush(&arithmetic::unary(*operation, *ty, &arithmetic::flush(a)))
            } else {
                arithmetic::unary(*operation, *ty, a)
            };
            warp.write(*to, mask, &out);
        }
        Operation::Binary { operation, ty, to, a, b, flush } => {
            let (a, b) = (warp.read(*a, mask)?, warp.read(*b, mask)?);
            if matches!(operation, Binary::Div | Binary::Rem) && *ty != Type::F32 {
                demand_divisor(b, *ty, mask)?;
            }
            let out = if *flush {
                arithmetic::flush(&arithmetic::binary(*operation, *ty, &arithmetic::flush(a), &arithmetic::flush(b)))
            } else {
                arithmetic::binary(*operation, *ty, a, b)
            };
            warp.write(*to, mask, &out);
        }
        Operation::Ternary { operation, ty, to, a, b, c, flush } => {
            let (a, b, c) = (warp.read(*a, mask)?, warp.read(*b, mask)?, warp.read(*c, mask)?);
            let out = if *flush {
                let [a, b, c] = [a, b, c].map(arithmetic::flush);
                arithmetic::flush(&arithmetic::ternary(*operation, *ty, &a, &b, &c))
            } else {
                arithmetic::ternary(*operation, *ty, a, b, c)
            };
            warp.write(*to, mask, &out);
        }
        Operation::InsertBits { ty, to, from, into, position, length } => {
            let (from, into) = (warp.read(*from, mask)?, warp.read(*into, mask)?);
            let (position, length) = (warp.read(*position, mask)?, warp.read(*length, mask)?);
            let out = arithmetic::insert_bits(*ty, from, into, position, length);
            warp.write(*to, mask, &out);
        }
        Operation::Convert { to_type, from_type, rounding, saturate, to, to_bits, from, flush } => {
            let mut values = *warp.read(*from, mask)?;
            if *flush && *from_type == Type::F32 {
                values = arithmetic::flush(&values);
            }
            for value in &mut values {
                *value = float::convert(*value, *from_type, *to_type, *rounding, *saturate, *to_bits);
            }
            if *flush && *to_type == Type::F32 {
                values = arithmetic::flush(&values);
            }
            warp.write(*to, mask, &values);
        }
        Operation::ConvertPair { half, to, high, low } => {
            let (high, low) = (warp.read(*high, mask)?, warp.read(*low, mask)?);
            let round = |bits: u64| u64::from(float::f32_to_half(*half, f32::from_bits(bits as u32)));
            let out = std::array::from_fn(|lane| round(high[lane]) << 16 | round(low[lane]));
            warp.write(*to, mask, &out);
        }
        Operation::Compare { test, ty, to, opposite, a, b, with } => {
            let holds = arithmetic::compare(*test, *ty, warp.read(*a, mask)?, warp.read(*b, mask)?);
            let (mut value, mut other) = (holds, !holds);
            if let Some((logic, condition)) = with {
                let with = warp.condition(*condition, mask)?;
                (value, other) = (combine(*logic, value, with), combine(*logic, other, with));
            }
            warp.write_predicate(*to, mask, value);
            if let Some(opposite) = opposite {
                warp.write_predicate(*opposite, mask, other);
            }
        }
        Operation::Select { to, a, b, condition } => {
            let holds = warp.condition(crate::program::Condition { predicate: *condition, negated: false }, mask)?;
            let out = select(warp, *a, *b, holds, mask)?;
            warp.write(*to, mask, &out);
        }
        Operation::PredicateMove { to, from } => {
            let value = warp.condition(*from, mask)?;
            warp.write_predicate(*to, mask, value);
        }
        Operation::PredicateLogic { logic, to, a, b } => {
            let value = combine(*logic, warp.condition(*a, mask)?, warp.condition(*b, mask)?);
            warp.write_predicate(*to, mask, value);
        }
        Operation::PredicateConstant { to, value } => {
            warp.write_predicate(*to, mask, if *value { u32::MAX } else { 0 });
        }
        Operation::Shuffle(operands) => collective::shuffle(warp, mask, operands)?,
        Operation::Vote { vote, to, condition, members } => {
            collective::members(warp, *members, mask)?;
            let holds = warp.condition(*condition, mask)?;
            let value = collective::vote(*vote, holds, mask);
            warp.write_predicate(*to, mask, if value { u32::MAX } else { 0 });
        }
        Operation::Ballot { to, condition, members } => {
            collective::members(warp, *members, mask)?;
            let holds = warp.condition(*condition, mask)?;
            warp.write(*to, mask, &[u64::from(holds); LANES]);
        }
        Operation::Reduce { reduction, ty, to, value, members } => {
            collective::members(warp, *members, mask)?;
            let value = collective::reduce(*reduction, *ty, warp.read(*value, mask)?, mask);
            warp.write(*to, mask, &[value; LANES]);
        }
        Operation::ActiveMask { to } => warp.write(*to, mask, &[u64::from(mask); LANES]),
        Operation::WarpBarrier { members } => {
            collective::members(warp, *members, mask)?;
            machine.shared.synchronise_lanes(warp.number);
        }
        Operation::Trap => {
            let lane = mask.trailing_zeros() as usize;
            return Err(Violation::new(FaultKind::Trap, lane, "the kernel gave up"));
        }
        Operation::CopyAsync { to, from, bytes, source_bytes } => {
            machine.copy_async(warp, mask, *to, *from, *bytes, *source_bytes)?;
        }
        Operation::CommitCopies => {
            for lane in lanes(mask) {
                warp.groups[lane] += 1;
            }
        }
        Operation::WaitCopies { keep } => machine.wait_copies(warp, mask, Some(*keep))?,
        Operation::WaitAllCopies => machine.wait_copies(warp, mask, None)?,
        Operation::LoadMatrix { transpose, to, at } => machine.load_matrix(warp, mask, *transpose, to, *at)?,
        Operation::MatrixProduct(operands) => machine.matrix_product(warp, mask, operands)?,
    }
    Ok(())
}

fn combine(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

/// Only the register that a lane takes must have been written.
fn select(warp: &Warp<'_>, a: Register, b: Register, holds: u32, mask: u32) -> Result<Lanes, Violation> {
    let (a, b) = (warp.read(a, mask & holds)?, warp.read(b, mask & !holds)?);
    Ok(std::array::from_fn(|lane| if holds >> lane & 1 == 1 { a[lane] } else { b[lane] }))
}

fn demand_divisor(divisors: &Lanes, ty: Type, mask: u32) -> Result<(), Violation> {
    match lanes(mask).find(|lane| divisors[*lane] & ty.mask() == 0) {
        None => Ok(()),
        Some(lane) => Err(Violation::new(FaultKind::DivisionByZero, lane, "the divisor is zero")),
    }
}
