//! One instruction: what its opcode means, and whether its operands fit.

mod arithmetic;
mod memory;
mod values;
mod warp;

use super::modifiers::Modifiers;
use super::operands::{Names, Operand};
use super::{ParseError, Parser};
use crate::program::{Address, Condition, Operation, Predicate, Register, Registers, Space, Type};

use Type::B32;

/// What an instruction's operands are taken from.
struct Decoder<'p, 'n, 'o, 'a> {
    parser: &'p Parser<'a>,
    names: &'n mut Names<'a>,
    operands: &'o [Operand],
    modifiers: Modifiers<'a>,
}

type Result<T> = std::result::Result<T, ParseError>;

pub(crate) fn decode<'a>(
    parser: &Parser<'a>,
    names: &mut Names<'a>,
    opcode: &'a str,
    line: u32,
    operands: &[Operand],
) -> Result<Operation> {
    let (base, modifiers) = Modifiers::split(opcode, line);
    let mut decoder = Decoder { parser, names, operands, modifiers };
    let operation = decoder.operation(base)?;
    decoder.modifiers.finish()?;
    Ok(operation)
}

impl<'a> Decoder<'_, '_, '_, 'a> {
    fn error(&self, reason: impl AsRef<str>) -> ParseError {
        self.modifiers.error(reason)
    }

    fn count(&self, allowed: std::ops::RangeInclusive<usize>) -> Result<()> {
        if allowed.contains(&self.operands.len()) {
            Ok(())
        } else {
            Err(self.error(format!("{} operands are not what it takes", self.operands.len())))
        }
    }

    fn operand(&self, index: usize) -> Result<&Operand> {
        self.operands.get(index).ok_or_else(|| self.error("an operand is missing"))
    }

    fn value(&mut self, index: usize, ty: Type) -> Result<Register> {
        let operand = self.operands.get(index).ok_or_else(|| self.modifiers.error("an operand is missing"))?;
        self.names.value(operand, ty.bits(), ty.is_float(), self.parser)
    }

    /// A register that is written.
    fn target(&self, index: usize, ty: Type) -> Result<Register> {
        match self.operand(index)? {
            Operand::Register { index, ty: declared } if declared.bits() == ty.bits() => Ok(*index),
            Operand::Register { ty: declared, .. } => {
                Err(self.error(format!("its target has {} bits, not {}", declared.bits(), ty.bits())))
            }
            _ => Err(self.error("its target is not a register")),
        }
    }

    /// A register that is written, and may be wider than the type. Returns its width too.
    fn wide_target(&self, index: usize, ty: Type) -> Result<(Register, u32)> {
        match self.operand(index)? {
            Operand::Register { index, ty: declared } if declared.bits() >= ty.bits() => Ok((*index, declared.bits())),
            _ => Err(self.error("its target is not a register that is wide enough")),
        }
    }

    /// A register that is read, and may be wider than the type.
    fn wide_value(&mut self, index: usize, ty: Type) -> Result<Register> {
        match self.operand(index)? {
            Operand::Register { index, ty: declared } if declared.bits() >= ty.bits() => Ok(*index),
            _ => self.value(index, ty),
        }
    }

    fn predicate(&self, index: usize) -> Result<Predicate> {
        match self.operand(index)? {
            Operand::Predicate(Condition { predicate, negated: false }) => Ok(*predicate),
            _ => Err(self.error("a predicate is needed")),
        }
    }

    fn condition(&self, index: usize) -> Result<Condition> {
        match self.operand(index)? {
            Operand::Predicate(condition) => Ok(*condition),
            _ => Err(self.error("a predicate is needed")),
        }
    }

    fn address(&mut self, index: usize, space: Space) -> Result<Address> {
        let operand = self.operands.get(index).ok_or_else(|| self.modifiers.error("an address is missing"))?;
        let bits: &[u32] = match space {
            Space::Global => &[64],
            Space::Shared => &[32, 64],
        };
        self.names.address(operand, bits, self.parser)
    }

    /// Registers that are written: as many as `count`, in braces unless it is one.
    fn targets(&mut self, index: usize, count: usize, ty: Type) -> Result<Registers> {
        let operand = self.operands.get(index).ok_or_else(|| self.modifiers.error("an operand is missing"))?;
        let list = match operand {
            Operand::List(list) => list.as_slice(),
            other => std::slice::from_ref(other),
        };
        let mut registers = Vec::new();
        for operand in list {
            match operand {
                Operand::Register { index, ty: declared } if declared.bits() == ty.bits() => registers.push(*index),
                Operand::Sink => registers.push(self.names.unnamed(self.parser)?),
                _ => return Err(self.error(format!("operand {index} must be registers of {} bits", ty.bits()))),
            }
        }
        Registers::new(&registers)
            .filter(|registers| registers.as_slice().len() == count)
            .ok_or_else(|| self.error(format!("operand {index} must be {count} registers")))
    }

    /// Values that are read: as many as `count`.
    fn values(&mut self, index: usize, count: usize, ty: Type) -> Result<Registers> {
        let operand = self.operands.get(index).ok_or_else(|| self.modifiers.error("an operand is missing"))?;
        let registers = self.names.values(operand, ty.bits(), ty.is_float(), self.parser)?;
        if registers.as_slice().len() == count {
            Ok(registers)
        } else {
            Err(self.error(format!("operand {index} must be {count} values")))
        }
    }

    fn operation(&mut self, base: &str) -> Result<Operation> {
        match base {
            "ld" | "ldu" => self.load(),
            "st" => self.store(),
            "atom" => self.atomic(true),
            "red" => self.atomic(false),
            "mov" => self.mov(),
            "cvta" => self.cvta(),
            "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" | "shl" | "shr" => {
                self.binary(base)
            }
            "mad" | "fma" => self.multiply_add(base),
            "bfe" | "prmt" | "shf" | "lop3" => self.bits(base),
            "bfi" => self.insert_bits(),
            "neg" | "abs" | "not" | "popc" | "clz" | "brev" | "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" => {
                self.unary(base)
            }
            "cvt" => self.convert(),
            "setp" => self.compare(),
            "selp" => self.select(),
            "shfl" => self.shuffle(),
            "vote" => self.vote(),
            "redux" => self.reduce(),
            "activemask" => {
                self.count(1..=1)?;
                self.modifiers.require("b32")?;
                Ok(Operation::ActiveMask { to: self.target(0, B32)? })
            }
            "bar" | "barrier" => self.barrier(base == "barrier"),
            "membar" | "fence" => {
                self.count(0..=0)?;
                self.modifiers.ignore(&["gl", "cta", "sys", "gpu", "cluster", "acq_rel", "sc"]);
                Ok(Operation::Nothing)
            }
            "ret" | "exit" => {
                self.count(0..=0)?;
                self.modifiers.ignore(&["uni"]);
                Ok(Operation::Exit)
            }
            "trap" => {
                self.count(0..=0)?;
                Ok(Operation::Trap)
            }
            "cp" => self.copy_async(),
            "ldmatrix" => self.load_matrix(),
            "mma" => self.matrix_product(),
            _ => Err(self.error("this instruction cannot be run")),
        }
    }

    fn constant(&self, index: usize) -> Result<u64> {
        match self.operand(index)? {
            Operand::Integer(value) => Ok(*value),
            _ => Err(self.error("a number is needed")),
        }
    }
}
