//! Moves, conversions and comparisons.

use super::{Decoder, Result};
use crate::parse::operands::Operand;
use crate::program::{Compare, Condition, Half, Logic, Operation, Rounding, Test, Type};

use Type::{B16, B32, B64, Bf16, Bf16x2, F16, F16x2, F32, Pred, S16, S32, S64, U16, U32, U64};

impl Decoder<'_, '_, '_, '_> {
    pub(super) fn mov(&mut self) -> Result<Operation> {
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
    pub(super) fn cvta(&mut self) -> Result<Operation> {
        self.count(2..=2)?;
        self.modifiers.ignore(&["to"]);
        self.modifiers.require("global")?;
        let ty = self.modifiers.type_of(&[U64])?;
        Ok(Operation::Move { to: self.target(0, ty)?, from: self.value(1, ty)? })
    }

    pub(super) fn convert(&mut self) -> Result<Operation> {
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

    pub(super) fn compare(&mut self) -> Result<Operation> {
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

    pub(super) fn select(&mut self) -> Result<Operation> {
        self.count(4..=4)?;
        let ty = self.modifiers.type_of(&[B16, U16, S16, B32, U32, S32, F32, B64, U64, S64])?;
        Ok(Operation::Select {
            to: self.target(0, ty)?,
            a: self.value(1, ty)?,
            b: self.value(2, ty)?,
            condition: self.predicate(3)?,
        })
    }
}
