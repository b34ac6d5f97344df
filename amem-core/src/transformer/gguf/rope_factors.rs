//! Factors that frequencies of RoPE are divided by, which GGUF has as tensors and `config.json` as settings.

use super::GgufBytes;
use super::header::Header;
use crate::Result;
use crate::transformer::WeightType;
use crate::transformer::config::unsupported;
use crate::transformer::settings::bad_model;

/// Llama 3's frequencies are those of plain RoPE divided by these.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Phi's, for long and for short contexts.
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// Factors of all contexts, or of long and short ones.
#[derive(Default)]
pub(super) struct RopeFactors {
    pub(super) all: Option<Vec<f32>>,
    pub(super) long: Option<Vec<f32>>,
    pub(super) short: Option<Vec<f32>>,
}

impl RopeFactors {
    /// Whether a tensor holds such factors, and so no weights.
    pub(super) fn are_in(tensor: &str) -> bool {
        [ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS].contains(&tensor)
    }

    /// Those of a model in these parts.
    pub(super) fn read(headers: &[Header<'_>], parts: &[(String, GgufBytes)]) -> Result<Self> {
        let read = |name: &str| -> Result<Option<Vec<f32>>> {
            for (header, (file, bytes)) in headers.iter().zip(parts) {
                let Some(entry) = header.tensors.get(name) else { continue };
                if entry.dtype != Some(WeightType::F32) {
                    return unsupported(format!("tensor {name} of {file} in {}", entry.type_name), "F32 is");
                }
                let bytes = (**bytes).as_ref().get(entry.place.clone()).unwrap_or_default();
                let factors: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                // JSON, in which they go on, has no other numbers.
                if factors.iter().any(|factor| !factor.is_finite()) {
                    return Err(bad_model(file, format!("tensor {name} has numbers that are none")));
                }
                return Ok(Some(factors));
            }
            Ok(None)
        };
        Ok(Self { all: read(ROPE_FACTORS)?, long: read(LONG_FACTORS)?, short: read(SHORT_FACTORS)? })
    }
}
