//! The instruction sets that kernels are compiled for, and which of them this machine has.

use pulp::{Arch, Simd, WithSimd};

/// A set of instructions. Those of a machine are detected when a [`Cpu`](crate::Cpu) is made; a smaller set can be asked for
/// with [`CpuOptions::instructions`](crate::CpuOptions::instructions), to test it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Instructions {
    /// What a compiler makes of plain loops for any machine of the architecture.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// The same with AVX-VNNI: dot products of bytes.
    AvxVnni,
    /// AVX-512 F, BW, CD, DQ and VL.
    Avx512,
    /// These with VNNI: dot products of bytes.
    Avx512Vnni,
    /// These with VNNI and BF16: dot products of bytes and of bf16.
    Avx512Bf16,
    /// NEON, which every aarch64 machine has.
    Neon,
    /// NEON and dot products of bytes.
    NeonDot,
    /// These and I8MM: products of small matrices of bytes.
    NeonI8mm,
    /// These and BF16: products of small matrices of bf16.
    NeonBf16,
}

impl Instructions {
    /// All sets, those of an architecture one after the other and the smallest first.
    pub const ALL: [Self; 10] = [
        Self::Portable,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
        Self::Neon,
        Self::NeonDot,
        Self::NeonI8mm,
        Self::NeonBf16,
    ];

    /// The largest set that this machine has.
    pub fn detected() -> Self {
        Self::ALL.into_iter().rev().find(|set| set.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this machine has them.
    pub fn is_available(self) -> bool {
        Isa::of(self).is_some()
    }
}

/// A proof that the machine has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2F16c(pulp::x86::V3);

#[cfg(target_arch = "x86_64")]
impl Avx2F16c {
    /// The same but F16C, for what `pulp` knows.
    #[inline(always)]
    pub(crate) fn simd(self) -> pulp::x86::V3 {
        self.0
    }

    /// Where kernels of one source are compiled for AVX2, and the machine has F16C.
    #[inline(always)]
    pub(crate) fn of<S: pulp::Simd>(simd: S) -> Option<Self> {
        let avx2: Option<pulp::x86::V3> = (&simd as &dyn std::any::Any).downcast_ref().copied();
        avx2.filter(|_| is_x86_feature_detected!("f16c")).map(Self)
    }
}

#[cfg(target_arch = "x86_64")]
pulp::simd_type! {
    /// A proof that the machine has AVX-512 with BF16.
    #[allow(unsafe_code, reason = "that is how `pulp` makes one where it has looked for them")]
    pub(crate) struct Avx512Bf16 {
        avx512f: "avx512f",
        avx512bw: "avx512bw",
        avx512cd: "avx512cd",
        avx512dq: "avx512dq",
        avx512vl: "avx512vl",
        avx512bf16: "avx512bf16",
    }
}

/// A proof that the machine has NEON with BF16.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeonBf16(());

/// What multiplies bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) type Bf16 = Avx512Bf16;
#[cfg(target_arch = "aarch64")]
pub(crate) type Bf16 = NeonBf16;

/// The kernels for products of bytes. Only [`Isa::of`] makes one, where the machine has what they are compiled for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(ByteKind);

impl Bytes {
    pub(crate) fn kind(self) -> ByteKind {
        self.0
    }
}

/// Which kernels these are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ByteKind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
}

/// The instructions that kernels may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Isa {
    pub(crate) instructions: Instructions,
    /// For kernels of one source.
    pub(crate) arch: Arch,
    /// What multiplies bytes.
    pub(crate) bytes: Bytes,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) bf16: Option<Bf16>,
    /// AVX2 with F16C, where kernels are compiled for AVX2: conversions of f16, and all of fast attention.
    #[cfg(target_arch = "x86_64")]
    pub(crate) avx2: Option<Avx2F16c>,
}

#[cfg(target_arch = "x86_64")]
impl Isa {
    /// `None` where the machine lacks them.
    pub(crate) fn of(instructions: Instructions) -> Option<Self> {
        use pulp::x86::{V3, V4};
        let proof_of_avx2 = V3::try_new().filter(|_| is_x86_feature_detected!("f16c")).map(Avx2F16c);
        let avx2 = || proof_of_avx2.map(|avx2| Arch::V3(avx2.simd()));
        let avx512 = || V4::try_new().map(Arch::V4);
        let has_vnni = || is_x86_feature_detected!("avx512vnni");
        let (arch, bytes, bf16) = match instructions {
            Instructions::Portable => (Arch::Scalar, ByteKind::Portable, None),
            Instructions::Avx2 => (avx2()?, ByteKind::Avx2, None),
            Instructions::AvxVnni if is_x86_feature_detected!("avxvnni") => (avx2()?, ByteKind::AvxVnni, None),
            Instructions::Avx512 => {
                let bytes = if proof_of_avx2.is_some() { ByteKind::Avx2 } else { ByteKind::Portable };
                (avx512()?, bytes, None)
            }
            Instructions::Avx512Vnni if has_vnni() => (avx512()?, ByteKind::Avx512Vnni, None),
            Instructions::Avx512Bf16 if has_vnni() => (avx512()?, ByteKind::Avx512Vnni, Some(Avx512Bf16::try_new()?)),
            _ => return None,
        };
        let avx2 = proof_of_avx2.filter(|_| matches!(arch, Arch::V3(_)));
        Some(Self { instructions, arch, bytes: Bytes(bytes), bf16, avx2 })
    }
}

#[cfg(target_arch = "aarch64")]
impl Isa {
    /// `None` where the machine lacks them.
    pub(crate) fn of(instructions: Instructions) -> Option<Self> {
        use std::arch::is_aarch64_feature_detected as has;
        // Kernels take numbers out of vectors by their places, which in the other order of bytes are others.
        let neon = || pulp::aarch64::Neon::try_new().filter(|_| cfg!(target_endian = "little")).map(Arch::Neon);
        let (has_dot, has_i8mm) = (|| has!("dotprod"), || has!("dotprod") && has!("i8mm"));
        let bf16 = || has!("bf16").then_some(NeonBf16(()));
        let (arch, bytes, bf16) = match instructions {
            Instructions::Portable => (Arch::Scalar, ByteKind::Portable, None),
            Instructions::Neon => (neon()?, ByteKind::Neon, None),
            Instructions::NeonDot if has_dot() => (neon()?, ByteKind::NeonDot, None),
            Instructions::NeonI8mm if has_i8mm() => (neon()?, ByteKind::NeonI8mm, None),
            Instructions::NeonBf16 if has_i8mm() => (neon()?, ByteKind::NeonI8mm, Some(bf16()?)),
            _ => return None,
        };
        Some(Self { instructions, arch, bytes: Bytes(bytes), bf16 })
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl Isa {
    /// `None` where the machine lacks them.
    pub(crate) fn of(instructions: Instructions) -> Option<Self> {
        (instructions == Instructions::Portable).then(|| Self {
            instructions,
            arch: Arch::new(),
            bytes: Bytes(ByteKind::Portable),
        })
    }
}

impl Isa {
    /// How many vectors a core has registers for.
    pub(crate) fn vector_registers(&self) -> usize {
        struct Registers;
        impl WithSimd for Registers {
            type Output = usize;

            fn with_simd<S: Simd>(self, _: S) -> usize {
                S::REGISTER_COUNT
            }
        }
        self.arch.dispatch(Registers)
    }

    /// Whether bf16 is multiplied as it is.
    pub(crate) fn has_bf16(&self) -> bool {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        return self.bf16.is_some();
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        false
    }
}
