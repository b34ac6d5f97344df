//! The instruction sets that kernels are compiled for, and which of them this machine has.

use pulp::Arch;

/// A set of instructions. Those of a machine are detected when a [`Cpu`](crate::Cpu) is made; a smaller set can be asked for
/// with [`CpuOptions::instructions`](crate::CpuOptions::instructions), to test it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Instructions {
    /// What every machine of the architecture has; NEON on aarch64.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, CD, DQ and VL.
    Avx512,
    /// The same with VNNI: dot products of bytes.
    Avx512Vnni,
    /// The same with VNNI and BF16: dot products of bytes and of bf16.
    Avx512Bf16,
}

impl Instructions {
    /// All sets, the smallest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16];

    /// The largest set that this machine has.
    pub fn detected() -> Self {
        Self::ALL.into_iter().rev().find(|set| set.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this machine has them.
    pub fn is_available(self) -> bool {
        match Isa::of(self) {
            Some(isa) => isa.instructions == self,
            None => false,
        }
    }
}

/// A proof that the machine has AVX-512 with VNNI.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni(());

/// A proof that the machine has AVX-512 with BF16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512Bf16(());

/// The instructions that kernels may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Isa {
    pub(crate) instructions: Instructions,
    /// For kernels of one source.
    pub(crate) arch: Arch,
    #[cfg(target_arch = "x86_64")]
    pub(crate) vnni: Option<Avx512Vnni>,
    #[cfg(target_arch = "x86_64")]
    pub(crate) bf16: Option<Avx512Bf16>,
}

#[cfg(target_arch = "x86_64")]
impl Isa {
    /// `None` where the machine lacks them.
    pub(crate) fn of(instructions: Instructions) -> Option<Self> {
        use pulp::x86::{V3, V4};
        let vnni = || is_x86_feature_detected!("avx512vnni").then_some(Avx512Vnni(()));
        let bf16 = || is_x86_feature_detected!("avx512bf16").then_some(Avx512Bf16(()));
        let avx512 = || V4::try_new().map(Arch::V4);
        let (arch, vnni, bf16) = match instructions {
            Instructions::Portable => (Arch::Scalar, None, None),
            Instructions::Avx2 => (Arch::V3(V3::try_new()?), None, None),
            Instructions::Avx512 => (avx512()?, None, None),
            Instructions::Avx512Vnni => (avx512()?, Some(vnni()?), None),
            Instructions::Avx512Bf16 => (avx512()?, Some(vnni()?), Some(bf16()?)),
        };
        Some(Self { instructions, arch, vnni, bf16 })
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Isa {
    /// `None` where the machine lacks them.
    pub(crate) fn of(instructions: Instructions) -> Option<Self> {
        (instructions == Instructions::Portable).then(|| Self { instructions, arch: Arch::new() })
    }
}

impl Isa {
    /// Whether bf16 is multiplied as it is.
    pub(crate) fn has_bf16(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.bf16.is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}
