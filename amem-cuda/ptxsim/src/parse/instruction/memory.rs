//! Loads, stores, atomic operations and copies.

use super::{Decoder, Result};
use crate::parse::operands::Operand;
use crate::program::{Access, Atomic, AtomicOperands, Operation, Registers, Space, Type};

use Type::{B32, B64, F32, Pred, S32, S64, U32, U64};

impl Decoder<'_, '_, '_, '_> {
    /// Hints to the caches, and memory orders, which change nothing where every access is in order.
    pub(super) fn ignore_hints(&mut self) {
        self.modifiers.ignore(&[
            "ca",
            "cg",
            "cs",
            "cv",
            "lu",
            "wb",
            "wt",
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

    pub(super) fn vector(&mut self) -> usize {
        self.modifiers.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1)
    }

    pub(super) fn space(&mut self) -> Result<Space> {
        self.modifiers.require_one_of(&[
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("shared::cta", Space::Shared),
        ])
    }

    pub(super) fn load(&mut self) -> Result<Operation> {
        self.count(2..=2)?;
        let parameter = self.modifiers.take("param");
        let space = if parameter { None } else { Some(self.space()?) };
        let read_only = space == Some(Space::Global) && self.modifiers.take("nc");
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
        Ok(Operation::Load { access: Access { space, ty, at: self.address(1, space)? }, to, to_bits, read_only })
    }

    pub(super) fn load_parameter(&mut self, ty: Type) -> Result<Operation> {
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

    pub(super) fn store(&mut self) -> Result<Operation> {
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

    pub(super) fn atomic(&mut self, returns: bool) -> Result<Operation> {
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

    pub(super) fn copy_async(&mut self) -> Result<Operation> {
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

    pub(super) fn load_matrix(&mut self) -> Result<Operation> {
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
}
