//! What a case draws, and the kernels that it runs.

use amem_ptxsim::Kernel;

use crate::harness::{Type, constant, kernel};

/// What rows see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sight {
    /// The last rows of a context, each up to itself.
    Prefill,
    /// Rows anywhere in a context, each up to itself.
    Scattered,
    /// All of a context.
    Whole,
    /// A beginning that all share, and then a text of their own that begins at some slot behind it.
    Packed,
    /// A part that all share, nothing for some blocks, and then texts that begin and end near each other.
    Apart,
    /// A few slots at the beginning, and a window that ends with the row itself.
    Window,
    /// Now and then nothing at all.
    Blind,
}

/// What stands in the slots that no row sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unseen {
    Nan,
    Infinite,
    Large,
}

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) dtype: Type,
    pub(super) head_dim: u32,
    pub(super) kv_heads: u32,
    pub(super) group: u32,
    /// `attend_rows` or `attend_short`.
    pub(super) entry: &'static str,
    /// Slots of each context, and how many rows it has.
    pub(super) contexts: Vec<(u32, u32)>,
    pub(super) sight: Sight,
    pub(super) splits: u32,
    /// How large scores are, after scaling.
    pub(super) score: f32,
    /// What they are capped at.
    pub(super) cap: Option<f32>,
    pub(super) unseen: Unseen,
    pub(super) with_lse: bool,
    pub(super) seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            dtype: Type::Bf16,
            head_dim: 64,
            kv_heads: 2,
            group: 2,
            entry: "attend_rows",
            contexts: vec![(150, 33)],
            sight: Sight::Scattered,
            splits: 1,
            score: 4.0,
            cap: None,
            unseen: Unseen::Nan,
            with_lse: true,
            seed: 1,
        }
    }
}

/// The kernels that a case runs.
#[derive(Clone, Copy)]
pub(super) struct Kernels<'a> {
    pub(super) attend: &'a Kernel,
    pub(super) combine: Option<&'a Kernel>,
}

impl Case {
    pub(super) fn module(&self) -> String {
        match self.dtype {
            Type::F32 => "attention_f32".into(),
            dtype => format!("attention_{}_d{}", dtype.name(), self.head_dim),
        }
    }

    /// Query rows that fit an item.
    pub(super) fn capacity(&self) -> usize {
        (constant(&self.module(), self.entry, "rows") / self.group).max(1) as usize
    }

    /// `scale_log2`, and `squash` if scores are capped: what makes a score of a product p is p times the scale, or of it
    /// the cap times the tangent of (that by the cap), and the cap once more.
    pub(super) fn scales(&self) -> (f32, Option<f32>) {
        let log2 = |x: f64| (std::f64::consts::LOG2_E * x) as f32;
        let scale = 1.0 / f64::from(self.head_dim).sqrt();
        match self.cap.map(f64::from) {
            None => (log2(scale), None),
            Some(cap) => (log2(2.0 * cap), Some(log2(-2.0 * scale / cap))),
        }
    }

    /// The kernels that tell what is attended to.
    pub(super) fn mass_kernels(&self) -> [&'static Kernel; 2] {
        let mass = if self.cap.is_some() { "attention_mass_capped" } else { "attention_mass" };
        [mass, "mass_sum"].map(|entry| kernel(&self.module(), entry))
    }

    pub(super) fn kernels(&self) -> Kernels<'static> {
        let module = self.module();
        Kernels { attend: kernel(&module, self.entry), combine: (self.splits > 1).then(|| kernel(&module, "combine")) }
    }
}
