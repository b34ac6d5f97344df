//! What the lanes of a warp do together.

use super::{Decoder, Result};
use crate::parse::operands::Operand;
use crate::program::{Condition, Half, MatrixOperands, Operation, Reduction, Shuffle, ShuffleOperands, Type, Vote};

use Type::{B32, Bf16, F16, F32, S32, U32};

impl Decoder<'_, '_, '_, '_> {
    pub(super) fn shuffle(&mut self) -> Result<Operation> {
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

    pub(super) fn vote(&mut self) -> Result<Operation> {
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

    pub(super) fn reduce(&mut self) -> Result<Operation> {
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
    pub(super) fn barrier(&mut self, long: bool) -> Result<Operation> {
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

    pub(super) fn matrix_product(&mut self) -> Result<Operation> {
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
