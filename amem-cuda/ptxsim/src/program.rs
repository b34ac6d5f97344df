//! The decoded form of a kernel: the parser makes it, the executor runs it.
//!
//! Every value that an instruction reads lies in a register, immediates and special registers too: a warp fills theirs
//! before it starts. So an operand is an index, and needs no decoding at run time.

/// Index of a register: 32 lanes of up to 64 bits.
pub(crate) type Register = u16;

/// Index of a predicate register: one bit for each lane.
pub(crate) type Predicate = u16;

/// A PTX type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Pred,
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    F16,
    Bf16,
    B32,
    U32,
    S32,
    F32,
    F16x2,
    Bf16x2,
    B64,
    U64,
    S64,
}

impl Type {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "u8" => Self::U8,
            "s8" => Self::S8,
            "b16" => Self::B16,
            "u16" => Self::U16,
            "s16" => Self::S16,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "b32" => Self::B32,
            "u32" => Self::U32,
            "s32" => Self::S32,
            "f32" => Self::F32,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::Bf16x2,
            "b64" => Self::B64,
            "u64" => Self::U64,
            "s64" => Self::S64,
            _ => return None,
        })
    }

    /// Size in bytes.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Pred | Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 2,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 | Self::F16x2 | Self::Bf16x2 => 4,
            Self::B64 | Self::U64 | Self::S64 => 8,
        }
    }

    pub(crate) fn bits(self) -> u32 {
        self.size() as u32 * 8
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32)
    }

    /// The bits that a value of this type has.
    pub(crate) fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
}

/// What a register holds before a warp's first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preset {
    Constant(u64),
    Special(Special),
}

/// A special register. The number is the axis: x, y or z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
    Lane,
    Warp,
    Warps,
    LanesEqual,
    LanesBelow,
    LanesUpTo,
    LanesAbove,
    LanesFrom,
    DynamicShared,
}

/// Up to four registers: a vector operand, or a matrix fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    count: u8,
    items: [Register; 4],
}

impl Registers {
    /// None when there are none, or more than four.
    pub(crate) fn new(registers: &[Register]) -> Option<Self> {
        let mut items = [0; 4];
        if registers.is_empty() {
            return None;
        }
        items.get_mut(..registers.len())?.copy_from_slice(registers);
        Some(Self { count: registers.len() as u8, items })
    }

    pub(crate) fn as_slice(&self) -> &[Register] {
        &self.items[..usize::from(self.count)]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) base: Register,
    pub(crate) offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Neg,
    Abs,
    Not,
    Popc,
    Clz,
    Brev,
    Ex2,
    Lg2,
    Rcp,
    Rsqrt,
    Sqrt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    /// The low half of a product of integers, or a product of floats.
    Mul,
    MulHi,
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ternary {
    MadLo,
    MadHi,
    MadWide,
    Fma,
    Bfe,
    Prmt,
    ShfLeftWrap,
    ShfLeftClamp,
    ShfRightWrap,
    ShfRightClamp,
    /// Any function of three bits: its table.
    Lop3(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A comparison of `setp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// False for floats one of which is NaN.
    Ordered(Compare),
    /// True for floats one of which is NaN.
    Unordered(Compare),
    /// Neither is NaN.
    Numbers,
    /// One of the two is NaN.
    Nan,
}

/// An operation on bits, of predicates and of `redux`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

/// A predicate operand, perhaps negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) predicate: Predicate,
    pub(crate) negated: bool,
}

/// How a conversion rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To the nearest value of the target, ties to even: `.rn`, and what needs no rounding.
    Nearest,
    /// Toward zero: `.rz`.
    Zero,
    /// To an integer: the nearest, ties to even.
    IntegerNearest,
    /// To an integer, toward zero.
    IntegerZero,
    /// To an integer, down.
    IntegerDown,
    /// To an integer, up.
    IntegerUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduction {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

/// The 16-bit floats that a matrix product multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    F16,
    Bf16,
}

/// What a load, a store or an atomic operation touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) space: Space,
    pub(crate) ty: Type,
    pub(crate) at: Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtomicOperands {
    pub(crate) access: Access,
    pub(crate) operation: Atomic,
    pub(crate) to: Option<Register>,
    pub(crate) value: Register,
    /// What `cas` writes where it finds `value`.
    pub(crate) swap: Register,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShuffleOperands {
    pub(crate) mode: Shuffle,
    pub(crate) to: Register,
    pub(crate) in_range: Option<Predicate>,
    pub(crate) value: Register,
    pub(crate) lane: Register,
    pub(crate) clamp: Register,
    pub(crate) members: Register,
}

/// `d = a * b + c`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixOperands {
    pub(crate) half: Half,
    pub(crate) d: Registers,
    pub(crate) a: Registers,
    pub(crate) b: Registers,
    pub(crate) c: Registers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Does nothing: a fence, or an instruction that a test took out.
    Nothing,
    LoadParameter {
        ty: Type,
        to: Register,
        to_bits: u32,
        offset: u32,
    },
    Load {
        access: Access,
        to: Registers,
        to_bits: u32,
        /// `.nc`: nobody writes there while the kernel runs.
        read_only: bool,
    },
    Store {
        access: Access,
        values: Registers,
    },
    Atomic(AtomicOperands),
    Move {
        to: Register,
        from: Register,
    },
    /// Joins equal parts, the first one lowest.
    Pack {
        to: Register,
        parts: Registers,
        bits: u32,
    },
    /// Takes equal parts apart.
    Unpack {
        parts: Registers,
        from: Register,
        bits: u32,
    },
    Unary {
        operation: Unary,
        ty: Type,
        to: Register,
        a: Register,
        flush: bool,
    },
    Binary {
        operation: Binary,
        ty: Type,
        to: Register,
        a: Register,
        b: Register,
        flush: bool,
    },
    Ternary {
        operation: Ternary,
        ty: Type,
        to: Register,
        a: Register,
        b: Register,
        c: Register,
        flush: bool,
    },
    InsertBits {
        ty: Type,
        to: Register,
        from: Register,
        into: Register,
        position: Register,
        length: Register,
    },
    Convert {
        to_type: Type,
        from_type: Type,
        rounding: Rounding,
        saturate: bool,
        to: Register,
        to_bits: u32,
        from: Register,
        flush: bool,
    },
    /// Rounds two f32 to 16 bits and packs them.
    ConvertPair {
        half: Half,
        to: Register,
        high: Register,
        low: Register,
    },
    Compare {
        test: Test,
        ty: Type,
        to: Predicate,
        /// Takes the opposite of the comparison.
        opposite: Option<Predicate>,
        a: Register,
        b: Register,
        with: Option<(Logic, Condition)>,
    },
    Select {
        to: Register,
        a: Register,
        b: Register,
        condition: Predicate,
    },
    PredicateMove {
        to: Predicate,
        from: Condition,
    },
    PredicateLogic {
        logic: Logic,
        to: Predicate,
        a: Condition,
        b: Condition,
    },
    PredicateConstant {
        to: Predicate,
        value: bool,
    },
    Shuffle(ShuffleOperands),
    Vote {
        vote: Vote,
        to: Predicate,
        condition: Condition,
        members: Register,
    },
    Ballot {
        to: Register,
        condition: Condition,
        members: Register,
    },
    Reduce {
        reduction: Reduction,
        ty: Type,
        to: Register,
        value: Register,
        members: Register,
    },
    ActiveMask {
        to: Register,
    },
    /// `bar.sync`, or `bar.arrive`, which does not wait.
    Barrier {
        id: Register,
        threads: Option<Register>,
        wait: bool,
    },
    WarpBarrier {
        members: Register,
    },
    Branch {
        target: u32,
        uniform: bool,
    },
    Exit,
    Trap,
    CopyAsync {
        to: Address,
        from: Address,
        bytes: u8,
        /// Bytes that are read. The rest of the target becomes zero.
        source_bytes: Option<Register>,
    },
    CommitCopies,
    WaitCopies {
        /// Groups that may stay in flight.
        keep: u32,
    },
    WaitAllCopies,
    LoadMatrix {
        transpose: bool,
        to: Registers,
        at: Address,
    },
    MatrixProduct(MatrixOperands),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) guard: Option<Condition>,
    pub(crate) operation: Operation,
    pub(crate) line: u32,
}
