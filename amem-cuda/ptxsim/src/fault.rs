//! What can be wrong with a kernel.

use std::fmt;

/// What a kernel did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch does not fit the kernel: its block, its parameters, or its shared memory.
    Launch,
    /// Two warps touch the same shared memory with no barrier between, and one of them writes.
    SharedRace,
    /// Two lanes of a warp touch the same shared memory with no `bar.warp.sync` between, the first to write it.
    WarpRace,
    /// Two blocks of one launch touch the same global memory, and one of them writes.
    GlobalRace,
    /// Global memory that `ld.global.nc` reads is written in the same launch. The load may find what was there before.
    ReadOnly,
    /// A register is read before it is written.
    UninitialisedRegister,
    /// Shared memory is read before it is written.
    UninitialisedShared,
    /// Global memory is read before it is written.
    UninitialisedGlobal,
    /// An access to shared memory outside of what the block has.
    SharedOutOfBounds,
    /// An access to global memory outside of every allocation.
    GlobalOutOfBounds,
    /// An access to global memory that was freed.
    Freed,
    /// An address is not a multiple of the access's size.
    Misaligned,
    /// The target of a `cp.async` is touched before the copy was waited for.
    CopyPending,
    /// A thread exits while a `cp.async` of its own is in flight.
    CopyAtExit,
    /// An `.aligned` instruction that not all live lanes of a warp execute together.
    Divergent,
    /// A barrier that not all live lanes of a warp reach together, or with a wrong number of threads.
    Barrier,
    /// A `.sync` instruction whose member lanes do not all execute it, or that reads a lane that does not.
    InactiveLane,
    /// An integer is divided by zero.
    DivisionByZero,
    /// All warps wait at barriers that cannot open.
    Deadlock,
    /// A block executed too many instructions.
    Hang,
    /// The kernel executed `trap`.
    Trap,
}

impl FaultKind {
    fn describe(self) -> &'static str {
        match self {
            Self::Launch => "the launch does not fit the kernel",
            Self::SharedRace => "race in shared memory",
            Self::WarpRace => "race within a warp in shared memory",
            Self::GlobalRace => "race between blocks in global memory",
            Self::ReadOnly => "global memory that is read as constant and written",
            Self::UninitialisedRegister => "register read before it is written",
            Self::UninitialisedShared => "shared memory read before it is written",
            Self::UninitialisedGlobal => "global memory read before it is written",
            Self::SharedOutOfBounds => "shared access out of bounds",
            Self::GlobalOutOfBounds => "global access out of bounds",
            Self::Freed => "access to freed memory",
            Self::Misaligned => "misaligned access",
            Self::CopyPending => "access to the target of a copy that was not waited for",
            Self::CopyAtExit => "exit with a copy in flight",
            Self::Divergent => "divergent .aligned instruction",
            Self::Barrier => "wrong use of a barrier",
            Self::InactiveLane => "lane does not take part",
            Self::DivisionByZero => "integer division by zero",
            Self::Deadlock => "deadlock",
            Self::Hang => "too many instructions",
            Self::Trap => "trap",
        }
    }
}

/// A mistake that a kernel made, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it is.
    pub kind: FaultKind,
    /// Line of the instruction in the module's text, or 0 when no instruction is at fault.
    pub line: u32,
    /// The instruction's text.
    pub instruction: String,
    /// The block, x, y and z.
    pub block: [u32; 3],
    /// The warp within the block.
    pub warp: u32,
    /// The lane within the warp.
    pub lane: u32,
    /// Addresses, names and numbers.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{}: {}", self.kind.describe(), self.detail)?;
        if self.line > 0 {
            write!(f, "; line {}: {}", self.line, self.instruction)?;
        }
        write!(f, " (block {x},{y},{z}, warp {}, lane {})", self.warp, self.lane)
    }
}

impl std::error::Error for Fault {}

/// A fault where only the lane is known. Whoever runs the instruction adds the rest.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) kind: FaultKind,
    pub(crate) lane: usize,
    pub(crate) detail: String,
}

impl Violation {
    /// Built on a path that is almost never taken, and so kept out of line.
    #[cold]
    pub(crate) fn new(kind: FaultKind, lane: usize, detail: impl Into<String>) -> Self {
        Self { kind, lane, detail: detail.into() }
    }
}
