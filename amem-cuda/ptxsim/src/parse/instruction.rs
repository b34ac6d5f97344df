//! One instruction: what its opcode means, and whether its operands fit.

use super::modifiers::Modifiers;
use super::operands::{Names, Operand};
use super::{ParseError, Parser};
use crate::program::{
    Access, Address, Atomic, AtomicOperands, Binary, Compare, Condition, Half, Logic, MatrixOperands, Operation,
    Predicate, Reduction, Register, Registers, Rounding, Shuffle, ShuffleOperands, Space, Ternary, Test, Type, Unary,
    Vote,
};

use Type::{B16, B32, B64, Bf16, Bf16x2, F16, F16x2, F32, Pred, S16, S32, S64, U16, U32, U64};

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

    /// Hints to the caches, and memory orders, which change nothing where every access is in order.
    fn ignore_hints(&mut self) {
        self.modifiers.ignore(&[
            "ca",
            "cg",
            "cs",
            "cv",
            "lu",
            "wb",
            "wt",
            "nc",
            "weak",
            "relaxed",
            "acquire",
            "release",
            "acq_rel",
            "gpu",
            "cta",
            "sys",
            "volatile",
            "L1::no_allocate",
            "L1::evict_normal",
            "L1::evict_unchanged",
            "L1::evict_first",
            "L1::evict_last",
            "L2::64B",
            "L2::128B",
            "L2::256B",
        ]);
    }

    fn vector(&mut self) -> usize {
        self.modifiers.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1)
    }

    fn space(&mut self) -> Result<Space> {
        self.modifiers.require_one_of(&[
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("shared::cta", Space::Shared),
        ])
    }

    fn load(&mut self) -> Result<Operation> {
        self.count(2..=2)?;
        let parameter = self.modifiers.take("param");
        let space = if parameter { None } else { Some(self.space()?) };
        self.ignore_hints();
        let count = self.vector();
        let ty = self.modifiers.next_type()?;
        if ty == Pred || ty.size() * count > 16 {
            return Err(self.error("a lane loads 16 bytes at most, and no predicates"));
        }
        let Some(space) = space else {
            if count != 1 {
                return Err(self.error("parameters are loaded one by one"));
            }
            return self.load_parameter(ty);
        };
        let list = match self.operand(0)? {
            Operand::List(list) => list.as_slice(),
            other => std::slice::from_ref(other),
        };
        let mut registers = Vec::new();
        let mut to_bits = 64;
        for operand in list {
            match operand {
                Operand::Register { index, ty: declared } if declared.bits() >= ty.bits() => {
                    registers.push(*index);
                    to_bits = to_bits.min(declared.bits());
                }
                _ => return Err(self.error("its target is not a register that is wide enough")),
            }
        }
        let to = Registers::new(&registers).filter(|to| to.as_slice().len() == count);
        let to = to.ok_or_else(|| self.error(format!("its target must be {count} registers")))?;
        Ok(Operation::Load { access: Access { space, ty, at: self.address(1, space)? }, to, to_bits })
    }

    fn load_parameter(&mut self, ty: Type) -> Result<Operation> {
        let (to, to_bits) = self.wide_target(0, ty)?;
        let (base, extra) = match self.operand(1)? {
            Operand::Address { base, offset } => (base.as_ref(), *offset),
            _ => return Err(self.error("an address, in brackets, is needed")),
        };
        let Operand::Parameter(index) = base else { return Err(self.error("there is no such parameter")) };
        let parameter = self.names.parameter(*index).ok_or_else(|| self.error("there is no such parameter"))?;
        let inside = usize::try_from(extra).ok().filter(|extra| extra + ty.size() <= parameter.size);
        let offset = inside.map(|extra| parameter.offset + extra).filter(|offset| offset % ty.size() == 0);
        let offset = offset.ok_or_else(|| self.error("outside of the parameter, or misaligned"))?;
        Ok(Operation::LoadParameter { ty, to, to_bits, offset: offset as u32 })
    }

    fn store(&mut self) -> Result<Operation> {
        self.count(2..=2)?;
        let space = self.space()?;
        self.ignore_hints();
        let count = self.vector();
        let ty = self.modifiers.next_type()?;
        if ty == Pred || ty.size() * count > 16 {
            return Err(self.error("a lane stores 16 bytes at most, and no predicates"));
        }
        let values = if count == 1 {
            let value = match self.operand(1)? {
                Operand::List(list) if list.len() == 1 => return Err(self.error("one value stands without braces")),
                _ => self.wide_value(1, ty)?,
            };
            Registers::new(&[value]).ok_or_else(|| self.error("a value is missing"))?
        } else {
            self.values(1, count, ty)?
        };
        Ok(Operation::Store { access: Access { space, ty, at: self.address(0, space)? }, values })
    }

    fn atomic(&mut self, returns: bool) -> Result<Operation> {
        let space = self.space()?;
        self.ignore_hints();
        let operation = self.modifiers.require_one_of(&[
            ("add", Atomic::Add),
            ("min", Atomic::Min),
            ("max", Atomic::Max),
            ("and", Atomic::And),
            ("or", Atomic::Or),
            ("xor", Atomic::Xor),
            ("exch", Atomic::Exchange),
            ("cas", Atomic::CompareAndSwap),
        ])?;
        let ty = match operation {
            Atomic::Add => self.modifiers.type_of(&[U32, S32, U64, F32])?,
            Atomic::Min | Atomic::Max => self.modifiers.type_of(&[U32, S32, U64, S64])?,
            _ => self.modifiers.type_of(&[B32, B64])?,
        };
        let swaps = operation == Atomic::CompareAndSwap;
        let first = usize::from(returns);
        let wanted = first + 2 + usize::from(swaps);
        self.count(wanted..=wanted)?;
        let to = match (returns, self.operand(0)?) {
            (true, Operand::Sink) | (false, _) => None,
            (true, _) => Some(self.target(0, ty)?),
        };
        let at = self.address(first, space)?;
        let value = self.value(first + 1, ty)?;
        let swap = if swaps { self.value(first + 2, ty)? } else { value };
        let access = Access { space, ty, at };
        Ok(Operation::Atomic(AtomicOperands { access, operation, to, value, swap }))
    }

    fn mov(&mut self) -> Result<Operation> {
        self.count(2..=2)?;
        let ty = self.modifiers.next_type()?;
        if ty == Pred {
            let to = self.predicate(0)?;
            return match self.operand(1)? {
                Operand::Integer(value @ (0 | 1)) => Ok(Operation::PredicateConstant { to, value: *value == 1 }),
                _ => Ok(Operation::PredicateMove { to, from: self.condition(1)? }),
            };
        }
        let part = |count: usize| match ty.bits() / count as u32 {
            16 => Some(B16),
            32 => Some(B32),
            8 => Some(Type::B8),
            _ => None,
        };
        match (self.operand(0)?, self.operand(1)?) {
            (_, Operand::List(list)) => {
                let count = list.len();
                let part = part(count).ok_or_else(|| self.error("parts of this size cannot be run"))?;
                let parts = self.values(1, count, part)?;
                Ok(Operation::Pack { to: self.target(0, ty)?, parts, bits: part.bits() })
            }
            (Operand::List(list), _) => {
                let count = list.len();
                let part = part(count).ok_or_else(|| self.error("parts of this size cannot be run"))?;
                let parts = self.targets(0, count, part)?;
                Ok(Operation::Unpack { parts, from: self.value(1, ty)?, bits: part.bits() })
            }
            _ => Ok(Operation::Move { to: self.target(0, ty)?, from: self.value(1, ty)? }),
        }
    }

    /// A generic address of global memory is the address itself. Other generic addresses cannot be run.
    fn cvta(&mut self) -> Result<Operation> {
        self.count(2..=2)?;
        self.modifiers.ignore(&["to"]);
        self.modifiers.require("global")?;
        let ty = self.modifiers.type_of(&[U64])?;
        Ok(Operation::Move { to: self.target(0, ty)?, from: self.value(1, ty)? })
    }

    fn binary(&mut self, base: &str) -> Result<Operation> {
        self.count(3..=3)?;
        let kind = if base == "mul" {
            self.modifiers.one_of(&[("lo", Binary::Mul), ("hi", Binary::MulHi), ("wide", Binary::MulWide)])
        } else {
            None
        };
        let ty = self.modifiers.next_type()?;
        let (operation, allowed): (Binary, &[Type]) = match base {
            "add" => (Binary::Add, &[U16, S16, U32, S32, U64, S64, F32]),
            "sub" => (Binary::Sub, &[U16, S16, U32, S32, U64, S64, F32]),
            "mul" => match kind {
                None => (Binary::Mul, &[F32]),
                Some(Binary::MulWide) => (Binary::MulWide, &[U16, S16, U32, S32]),
                Some(kind) => (kind, &[U16, S16, U32, S32, U64, S64]),
            },
            "div" => (Binary::Div, &[U16, S16, U32, S32, U64, S64, F32]),
            "rem" => (Binary::Rem, &[U16, S16, U32, S32, U64, S64]),
            "min" => (Binary::Min, &[U16, S16, U32, S32, U64, S64, F32]),
            "max" => (Binary::Max, &[U16, S16, U32, S32, U64, S64, F32]),
            "shl" => (Binary::Shl, &[B16, B32, B64]),
            "shr" => (Binary::Shr, &[B16, B32, B64, U16, S16, U32, S32, U64, S64]),
            _ => {
                let logic = match base {
                    "and" => Logic::And,
                    "or" => Logic::Or,
                    _ => Logic::Xor,
                };
                if ty == Pred {
                    let (a, b) = (self.condition(1)?, self.condition(2)?);
                    return Ok(Operation::PredicateLogic { logic, to: self.predicate(0)?, a, b });
                }
                let operation = match logic {
                    Logic::And => Binary::And,
                    Logic::Or => Binary::Or,
                    Logic::Xor => Binary::Xor,
                };
                (operation, &[B16, B32, B64])
            }
        };
        if !allowed.contains(&ty) {
            return Err(self.error("not with this type"));
        }
        let flush = if ty == F32 { self.float_modifiers(base)? } else { false };
        let wide = operation == Binary::MulWide;
        let to = self.target(0, if wide { double(ty) } else { ty })?;
        let a = self.value(1, ty)?;
        let b = self.value(2, if matches!(operation, Binary::Shl | Binary::Shr) { U32 } else { ty })?;
        Ok(Operation::Binary { operation, ty, to, a, b, flush })
    }

    /// Rounding of f32 arithmetic, of which only the nearest can be run. Returns whether subnormals become zero.
    fn float_modifiers(&mut self, base: &str) -> Result<bool> {
        let rounded = self.modifiers.take("rn");
        let approximate = self.modifiers.take("approx") || (base == "div" && self.modifiers.take("full"));
        let needed = matches!(base, "div" | "fma" | "rcp" | "sqrt");
        if needed && !rounded && !approximate {
            return Err(self.error("`.rn` or `.approx` is missing"));
        }
        if approximate && matches!(base, "add" | "sub" | "mul" | "fma" | "min" | "max") {
            return Err(self.error("`.approx` cannot be run here"));
        }
        Ok(self.modifiers.take("ftz"))
    }

    fn multiply_add(&mut self, base: &str) -> Result<Operation> {
        self.count(4..=4)?;
        let kind = self.modifiers.one_of(&[("lo", Ternary::MadLo), ("hi", Ternary::MadHi), ("wide", Ternary::MadWide)]);
        let ty = self.modifiers.next_type()?;
        let (operation, allowed): (_, &[Type]) = match (base, kind) {
            ("fma", None) => (Ternary::Fma, &[F32]),
            ("mad", None) => (Ternary::Fma, &[F32]),
            ("mad", Some(Ternary::MadWide)) => (Ternary::MadWide, &[U16, S16, U32, S32]),
            ("mad", Some(kind)) => (kind, &[U16, S16, U32, S32, U64, S64]),
            _ => return Err(self.error("not a product that can be run")),
        };
        if !allowed.contains(&ty) {
            return Err(self.error("not with this type"));
        }
        let flush = if ty == F32 { self.float_modifiers("fma")? } else { false };
        let sum = if operation == Ternary::MadWide { double(ty) } else { ty };
        let to = self.target(0, sum)?;
        let (a, b, c) = (self.value(1, ty)?, self.value(2, ty)?, self.value(3, sum)?);
        Ok(Operation::Ternary { operation, ty, to, a, b, c, flush })
    }

    fn bits(&mut self, base: &str) -> Result<Operation> {
        let (operation, ty) = match base {
            "bfe" => {
                let ty = self.modifiers.type_of(&[U32, S32, U64, S64])?;
                self.count(4..=4)?;
                let to = self.target(0, ty)?;
                let (a, b, c) = (self.value(1, ty)?, self.value(2, U32)?, self.value(3, U32)?);
                return Ok(Operation::Ternary { operation: Ternary::Bfe, ty, to, a, b, c, flush: false });
            }
            "prmt" => (Ternary::Prmt, self.modifiers.type_of(&[B32])?),
            "shf" => {
                let left = self.modifiers.require_one_of(&[("l", true), ("r", false)])?;
                let wrap = self.modifiers.require_one_of(&[("wrap", true), ("clamp", false)])?;
                let operation = match (left, wrap) {
                    (true, true) => Ternary::ShfLeftWrap,
                    (true, false) => Ternary::ShfLeftClamp,
                    (false, true) => Ternary::ShfRightWrap,
                    (false, false) => Ternary::ShfRightClamp,
                };
                (operation, self.modifiers.type_of(&[B32])?)
            }
            _ => {
                let ty = self.modifiers.type_of(&[B32])?;
                self.count(5..=5)?;
                match self.operand(4)? {
                    Operand::Integer(table @ 0..=255) => (Ternary::Lop3(*table as u8), ty),
                    _ => return Err(self.error("its table is a number from 0 to 255")),
                }
            }
        };
        if !matches!(operation, Ternary::Lop3(_)) {
            self.count(4..=4)?;
        }
        let to = self.target(0, ty)?;
        let (a, b, c) = (self.value(1, ty)?, self.value(2, ty)?, self.value(3, ty)?);
        Ok(Operation::Ternary { operation, ty, to, a, b, c, flush: false })
    }

    fn insert_bits(&mut self) -> Result<Operation> {
        self.count(5..=5)?;
        let ty = self.modifiers.type_of(&[B32, B64])?;
        Ok(Operation::InsertBits {
            ty,
            to: self.target(0, ty)?,
            from: self.value(1, ty)?,
            into: self.value(2, ty)?,
            position: self.value(3, U32)?,
            length: self.value(4, U32)?,
        })
    }

    fn unary(&mut self, base: &str) -> Result<Operation> {
        self.count(2..=2)?;
        let ty = self.modifiers.next_type()?;
        if base == "not" && ty == Pred {
            let from = self.condition(1)?;
            let from = Condition { negated: !from.negated, ..from };
            return Ok(Operation::PredicateMove { to: self.predicate(0)?, from });
        }
        let (operation, allowed): (_, &[Type]) = match base {
            "neg" => (Unary::Neg, &[S16, S32, S64, F32]),
            "abs" => (Unary::Abs, &[S16, S32, S64, F32]),
            "not" => (Unary::Not, &[B16, B32, B64]),
            "popc" => (Unary::Popc, &[B32, B64]),
            "clz" => (Unary::Clz, &[B32, B64]),
            "brev" => (Unary::Brev, &[B32, B64]),
            "ex2" => (Unary::Ex2, &[F32]),
            "lg2" => (Unary::Lg2, &[F32]),
            "rcp" => (Unary::Rcp, &[F32]),
            "rsqrt" => (Unary::Rsqrt, &[F32]),
            _ => (Unary::Sqrt, &[F32]),
        };
        if !allowed.contains(&ty) {
            return Err(self.error("not with this type"));
        }
        let flush = match base {
            _ if ty != F32 => false,
            "neg" | "abs" => self.modifiers.take("ftz"),
            "ex2" | "lg2" | "rsqrt" => {
                self.modifiers.require("approx")?;
                self.modifiers.take("ftz")
            }
            _ => self.float_modifiers(base)?,
        };
        let counts = matches!(operation, Unary::Popc | Unary::Clz);
        let to = self.target(0, if counts { U32 } else { ty })?;
        Ok(Operation::Unary { operation, ty, to, a: self.value(1, ty)?, flush })
    }

    fn convert(&mut self) -> Result<Operation> {
        let rounding = self.modifiers.one_of(&[
            ("rn", Rounding::Nearest),
            ("rz", Rounding::Zero),
            ("rni", Rounding::IntegerNearest),
            ("rzi", Rounding::IntegerZero),
            ("rmi", Rounding::IntegerDown),
            ("rpi", Rounding::IntegerUp),
        ]);
        let saturate = self.modifiers.take("sat");
        let flush = self.modifiers.take("ftz");
        let to_type = self.modifiers.next_type()?;
        let from_type = self.modifiers.next_type()?;
        if let F16x2 | Bf16x2 = to_type {
            self.count(3..=3)?;
            if rounding != Some(Rounding::Nearest) || from_type != F32 || saturate || flush {
                return Err(self.error("only `.rn` from f32 can be run"));
            }
            let half = if to_type == F16x2 { Half::F16 } else { Half::Bf16 };
            let (high, low) = (self.value(1, F32)?, self.value(2, F32)?);
            return Ok(Operation::ConvertPair { half, to: self.target(0, B32)?, high, low });
        }
        self.count(2..=2)?;
        let no_numbers = [Pred, F16x2, Bf16x2, Type::B8, B16, B32, B64];
        if no_numbers.contains(&to_type) || no_numbers.contains(&from_type) {
            return Err(self.error("only numbers are converted"));
        }
        let to_integer = matches!(
            rounding,
            Some(Rounding::IntegerNearest | Rounding::IntegerZero | Rounding::IntegerDown | Rounding::IntegerUp)
        );
        let widens = matches!((from_type, to_type), (F16 | Bf16, F32)) || from_type == to_type;
        let fits = match (from_type.is_float(), to_type.is_float()) {
            (false, false) => rounding.is_none(),
            (false, true) => rounding.is_some() && !to_integer,
            (true, false) => to_integer,
            (true, true) if widens => rounding.is_none() || (to_integer && from_type == to_type),
            (true, true) => rounding.is_some() && !to_integer,
        };
        if !fits {
            return Err(self.error("its rounding is missing or wrong"));
        }
        if saturate && to_type.is_float() && from_type.is_float() && to_type != F32 {
            return Err(self.error("`.sat` cannot be run here"));
        }
        let (to, to_bits) = self.wide_target(0, to_type)?;
        Ok(Operation::Convert {
            to_type,
            from_type,
            rounding: rounding.unwrap_or(Rounding::Nearest),
            saturate,
            to,
            to_bits,
            from: self.wide_value(1, from_type)?,
            flush,
        })
    }

    fn compare(&mut self) -> Result<Operation> {
        use Compare::{Eq, Ge, Gt, Le, Lt, Ne};
        let test = self.modifiers.require_one_of(&[
            ("eq", Test::Ordered(Eq)),
            ("ne", Test::Ordered(Ne)),
            ("lt", Test::Ordered(Lt)),
            ("le", Test::Ordered(Le)),
            ("gt", Test::Ordered(Gt)),
            ("ge", Test::Ordered(Ge)),
            ("lo", Test::Ordered(Lt)),
            ("ls", Test::Ordered(Le)),
            ("hi", Test::Ordered(Gt)),
            ("hs", Test::Ordered(Ge)),
            ("equ", Test::Unordered(Eq)),
            ("neu", Test::Unordered(Ne)),
            ("ltu", Test::Unordered(Lt)),
            ("leu", Test::Unordered(Le)),
            ("gtu", Test::Unordered(Gt)),
            ("geu", Test::Unordered(Ge)),
            ("num", Test::Numbers),
            ("nan", Test::Nan),
        ])?;
        let logic = self.modifiers.one_of(&[("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)]);
        self.modifiers.ignore(&["ftz"]);
        let ty = self.modifiers.type_of(&[B16, U16, S16, B32, U32, S32, B64, U64, S64, F32])?;
        if ty != F32 && !matches!(test, Test::Ordered(_)) {
            return Err(self.error("only floats are compared like this"));
        }
        if matches!(ty, B16 | B32 | B64) && !matches!(test, Test::Ordered(Eq | Ne)) {
            return Err(self.error("bits are equal or not"));
        }
        let wanted = if logic.is_some() { 4 } else { 3 };
        self.count(wanted..=wanted)?;
        let (to, opposite) = match self.operand(0)? {
            Operand::Pair(first, second) => match (first.as_ref(), second.as_ref()) {
                (
                    Operand::Predicate(Condition { predicate: first, negated: false }),
                    Operand::Predicate(Condition { predicate: second, negated: false }),
                ) => (*first, Some(*second)),
                _ => return Err(self.error("two predicates are needed")),
            },
            _ => (self.predicate(0)?, None),
        };
        let with = match logic {
            Some(logic) => Some((logic, self.condition(3)?)),
            None => None,
        };
        Ok(Operation::Compare { test, ty, to, opposite, a: self.value(1, ty)?, b: self.value(2, ty)?, with })
    }

    fn select(&mut self) -> Result<Operation> {
        self.count(4..=4)?;
        let ty = self.modifiers.type_of(&[B16, U16, S16, B32, U32, S32, F32, B64, U64, S64])?;
        Ok(Operation::Select {
            to: self.target(0, ty)?,
            a: self.value(1, ty)?,
            b: self.value(2, ty)?,
            condition: self.predicate(3)?,
        })
    }

    fn shuffle(&mut self) -> Result<Operation> {
        self.count(5..=5)?;
        self.modifiers.require("sync")?;
        let mode = self.modifiers.require_one_of(&[
            ("up", Shuffle::Up),
            ("down", Shuffle::Down),
            ("bfly", Shuffle::Butterfly),
            ("idx", Shuffle::Index),
        ])?;
        self.modifiers.require("b32")?;
        let (to, in_range) = match self.operand(0)? {
            Operand::Pair(first, second) => match (first.as_ref(), second.as_ref()) {
                (Operand::Register { index, ty }, Operand::Predicate(Condition { predicate, negated: false }))
                    if ty.bits() == 32 =>
                {
                    (*index, Some(*predicate))
                }
                _ => return Err(self.error("its targets are a register of 32 bits and a predicate")),
            },
            _ => (self.target(0, B32)?, None),
        };
        Ok(Operation::Shuffle(ShuffleOperands {
            mode,
            to,
            in_range,
            value: self.value(1, B32)?,
            lane: self.value(2, U32)?,
            clamp: self.value(3, U32)?,
            members: self.value(4, U32)?,
        }))
    }

    fn vote(&mut self) -> Result<Operation> {
        self.count(3..=3)?;
        self.modifiers.require("sync")?;
        let vote = self.modifiers.require_one_of(&[
            ("all", Some(Vote::All)),
            ("any", Some(Vote::Any)),
            ("uni", Some(Vote::Uniform)),
            ("ballot", None),
        ])?;
        let condition = self.condition(1)?;
        let members = self.value(2, U32)?;
        match vote {
            Some(vote) => {
                self.modifiers.require("pred")?;
                Ok(Operation::Vote { vote, to: self.predicate(0)?, condition, members })
            }
            None => {
                self.modifiers.require("b32")?;
                Ok(Operation::Ballot { to: self.target(0, B32)?, condition, members })
            }
        }
    }

    fn reduce(&mut self) -> Result<Operation> {
        self.count(3..=3)?;
        self.modifiers.require("sync")?;
        let reduction = self.modifiers.require_one_of(&[
            ("add", Reduction::Add),
            ("min", Reduction::Min),
            ("max", Reduction::Max),
            ("and", Reduction::And),
            ("or", Reduction::Or),
            ("xor", Reduction::Xor),
        ])?;
        let ty = match reduction {
            Reduction::Add | Reduction::Min | Reduction::Max => self.modifiers.type_of(&[U32, S32])?,
            Reduction::And | Reduction::Or | Reduction::Xor => self.modifiers.type_of(&[B32])?,
        };
        let (value, members) = (self.value(1, ty)?, self.value(2, U32)?);
        Ok(Operation::Reduce { reduction, ty, to: self.target(0, ty)?, value, members })
    }

    /// `bar` is `barrier` with `.aligned`. Without it, the lanes of a warp may come at different times.
    fn barrier(&mut self, long: bool) -> Result<Operation> {
        self.modifiers.ignore(&["cta"]);
        if self.modifiers.take("warp") {
            self.count(1..=1)?;
            self.modifiers.require("sync")?;
            return Ok(Operation::WarpBarrier { members: self.value(0, U32)? });
        }
        let wait = self.modifiers.require_one_of(&[("sync", true), ("arrive", false)])?;
        if long {
            self.modifiers.require("aligned")?;
        }
        self.count(if wait { 1..=2 } else { 2..=2 })?;
        let id = self.value(0, U32)?;
        let threads = if self.operands.len() > 1 { Some(self.value(1, U32)?) } else { None };
        Ok(Operation::Barrier { id, threads, wait })
    }

    fn constant(&self, index: usize) -> Result<u64> {
        match self.operand(index)? {
            Operand::Integer(value) => Ok(*value),
            _ => Err(self.error("a number is needed")),
        }
    }

    fn copy_async(&mut self) -> Result<Operation> {
        self.modifiers.require("async")?;
        if self.modifiers.take("commit_group") {
            self.count(0..=0)?;
            return Ok(Operation::CommitCopies);
        }
        if self.modifiers.take("wait_all") {
            self.count(0..=0)?;
            return Ok(Operation::WaitAllCopies);
        }
        if self.modifiers.take("wait_group") {
            self.count(1..=1)?;
            let keep = u32::try_from(self.constant(0)?).map_err(|_| self.error("its number is too large"))?;
            return Ok(Operation::WaitCopies { keep });
        }
        let past_l1 = self.modifiers.require_one_of(&[("ca", false), ("cg", true)])?;
        self.modifiers.require_one_of(&[("shared", ()), ("shared::cta", ())])?;
        self.modifiers.require("global")?;
        self.modifiers.ignore(&["L2::64B", "L2::128B", "L2::256B"]);
        self.count(3..=4)?;
        let bytes = match (self.constant(2)?, past_l1) {
            (bytes @ (4 | 8), false) => bytes as u8,
            (16, _) => 16,
            _ => return Err(self.error("it copies 4, 8 or 16 bytes, with `.cg` 16")),
        };
        let source_bytes = if self.operands.len() == 4 { Some(self.value(3, U32)?) } else { None };
        Ok(Operation::CopyAsync {
            to: self.address(0, Space::Shared)?,
            from: self.address(1, Space::Global)?,
            bytes,
            source_bytes,
        })
    }

    fn load_matrix(&mut self) -> Result<Operation> {
        self.count(2..=2)?;
        self.modifiers.require("sync")?;
        self.modifiers.require("aligned")?;
        self.modifiers.require("m8n8")?;
        let count = self.modifiers.require_one_of(&[("x1", 1), ("x2", 2), ("x4", 4)])?;
        let transpose = self.modifiers.take("trans");
        self.modifiers.require_one_of(&[("shared", ()), ("shared::cta", ())])?;
        self.modifiers.require("b16")?;
        Ok(Operation::LoadMatrix { transpose, to: self.targets(0, count, B32)?, at: self.address(1, Space::Shared)? })
    }

    fn matrix_product(&mut self) -> Result<Operation> {
        self.count(4..=4)?;
        self.modifiers.require("sync")?;
        self.modifiers.require("aligned")?;
        let (a, b) = self.modifiers.require_one_of(&[("m16n8k16", (4, 2)), ("m16n8k8", (2, 1))])?;
        self.modifiers.require("row")?;
        self.modifiers.require("col")?;
        let d = self.modifiers.next_type()?;
        let half = match self.modifiers.type_of(&[F16, Bf16])? {
            F16 => Half::F16,
            _ => Half::Bf16,
        };
        let second = self.modifiers.type_of(&[F16, Bf16])?;
        let c = self.modifiers.next_type()?;
        if d != F32 || c != F32 || (second == F16) != (half == Half::F16) {
            return Err(self.error("only products of equal types that are summed in f32 can be run"));
        }
        Ok(Operation::MatrixProduct(MatrixOperands {
            half,
            d: self.targets(0, 4, B32)?,
            a: self.values(1, a, B32)?,
            b: self.values(2, b, B32)?,
            c: self.values(3, 4, F32)?,
        }))
    }
}

/// The type of a wide product's result.
fn double(ty: Type) -> Type {
    match ty {
        U16 => U32,
        S16 => S32,
        S32 => S64,
        _ => U64,
    }
}
