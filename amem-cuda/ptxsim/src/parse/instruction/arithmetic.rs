//! Arithmetic, and operations on bits.

use super::{Decoder, Result};
use crate::parse::operands::Operand;
use crate::program::{Binary, Condition, Logic, Operation, Ternary, Type, Unary};

use Type::{B16, B32, B64, F32, Pred, S16, S32, S64, U16, U32, U64};

impl Decoder<'_, '_, '_, '_> {
    pub(super) fn binary(&mut self, base: &str) -> Result<Operation> {
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
    pub(super) fn float_modifiers(&mut self, base: &str) -> Result<bool> {
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

    pub(super) fn multiply_add(&mut self, base: &str) -> Result<Operation> {
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

    pub(super) fn bits(&mut self, base: &str) -> Result<Operation> {
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

    pub(super) fn insert_bits(&mut self) -> Result<Operation> {
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

    pub(super) fn unary(&mut self, base: &str) -> Result<Operation> {
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
