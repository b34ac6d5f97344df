//! What is computed in.

use amem_core::Dtype;

/// The number type of weights, of activations between kernels, and of the KV cache. Sums, norms, softmax, the residual
/// stream and logits are f32 in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Bfloat16: for models that were trained in it, as most are.
    #[default]
    Bf16,
    /// Half precision: for models whose weights are stored in it. What is larger than its largest number, 65504, becomes that
    /// number.
    F16,
    /// Single precision without tensor cores: slow, and as close to other machines as can be.
    F32,
}

impl Precision {
    /// The number type. A model's KV cache has to have it too.
    pub const fn dtype(self) -> Dtype {
        match self {
            Precision::Bf16 => Dtype::Bf16,
            Precision::F16 => Dtype::F16,
            Precision::F32 => Dtype::F32,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
            Precision::F32 => "f32",
        }
    }

    pub(crate) const fn elementwise(self) -> &'static str {
        match self {
            Precision::Bf16 => "elementwise_bf16",
            Precision::F16 => "elementwise_f16",
            Precision::F32 => "elementwise_f32",
        }
    }

    pub(crate) const fn distance(self) -> &'static str {
        match self {
            Precision::Bf16 => "distance_bf16",
            Precision::F16 => "distance_f16",
            Precision::F32 => "distance_f32",
        }
    }

    pub(crate) const fn matvec(self) -> &'static str {
        match self {
            Precision::Bf16 => "matvec_bf16",
            Precision::F16 => "matvec_f16",
            Precision::F32 => "matvec_f32",
        }
    }

    /// The module with products of many rows with experts, if there is one.
    pub(crate) const fn experts(self) -> Option<&'static str> {
        match self {
            Precision::Bf16 => Some("experts_bf16"),
            Precision::F16 => Some("experts_f16"),
            Precision::F32 => None,
        }
    }

    pub(crate) const fn kv(self) -> &'static str {
        match self {
            Precision::Bf16 => "kv_bf16",
            Precision::F16 => "kv_f16",
            Precision::F32 => "kv_f32",
        }
    }

    /// The module with attention for heads of so many numbers, if there is one.
    pub(crate) const fn attention(self, head_dim: usize) -> Option<&'static str> {
        Some(match (self, head_dim) {
            (Precision::F32, 2..=256) if head_dim.is_multiple_of(2) => "attention_f32",
            (Precision::Bf16, 64) => "attention_bf16_d64",
            (Precision::Bf16, 80) => "attention_bf16_d80",
            (Precision::Bf16, 96) => "attention_bf16_d96",
            (Precision::Bf16, 128) => "attention_bf16_d128",
            (Precision::Bf16, 256) => "attention_bf16_d256",
            (Precision::F16, 64) => "attention_f16_d64",
            (Precision::F16, 80) => "attention_f16_d80",
            (Precision::F16, 96) => "attention_f16_d96",
            (Precision::F16, 128) => "attention_f16_d128",
            (Precision::F16, 256) => "attention_f16_d256",
            _ => return None,
        })
    }

    /// How far results may be apart that were computed beside other rows, relative to one plus their size.
    pub(crate) const fn tolerance(self) -> f32 {
        match self {
            Precision::Bf16 => 2e-2,
            Precision::F16 => 4e-3,
            Precision::F32 => 1e-4,
        }
    }
}
