//! Rotary position embedding: how fast each pair of a head's numbers turns from one position to the next.
//!
//! The formulas are those of Hugging Face transformers (`modeling_rope_utils.py`): plain RoPE, linear scaling, Llama
//! 3's and YaRN. They are evaluated in f64 and rounded once.

use std::f64::consts::PI;

use super::config::unsupported;
use super::settings::{Settings, bad_model};
use crate::Result;

const FILE: &str = "config.json";
const MAX_POSITION: usize = 1 << 28;

/// How a head is rotated to a position: the numbers `i` and `i + head_dim/2` turn by `position *
/// inverse_frequencies[i]` radians, and both are multiplied by `attention_factor`. A pair of frequency 0 stays as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians from one position to the next, `[head_dim / 2]`.
    pub inverse_frequencies: Vec<f32>,
    /// What cosine and sine are multiplied by: 1, except for YaRN.
    pub attention_factor: f32,
}

impl Rope {
    /// Plain RoPE: `theta ^ (-2i / head_dim)`.
    pub fn plain(theta: f64, head_dim: usize) -> Self {
        Self::of(&plain(theta, head_dim), 1.0)
    }

    /// The cosine and the sine by which a pair of this frequency turns to a position, both times the attention factor.
    pub fn cos_sin(&self, position: u32, inverse_frequency: f32) -> (f32, f32) {
        if inverse_frequency == 0.0 {
            return (1.0, 0.0);
        }
        // The product in f32, as the models were trained; its sine in f64, so that all machines agree on it.
        let (sin, cos) = f64::from(position as f32 * inverse_frequency).sin_cos();
        (cos as f32 * self.attention_factor, sin as f32 * self.attention_factor)
    }

    /// The rope settings of `config.json`, in either spelling: `rope_theta` and `rope_scaling`, or `rope_parameters`.
    pub(super) fn parse(file: &Settings<'_>, head_dim: usize, context: usize) -> Result<Self> {
        let parameters = file.object("rope_parameters")?;
        let theta = match &parameters {
            Some(parameters) if parameters.get("rope_theta").is_some() => parameters.real("rope_theta", 1.1..=1e12)?,
            _ => file.real("rope_theta", 1.1..=1e12)?,
        };
        let theta = theta.unwrap_or(10_000.0);
        let Some(scaling) = parameters.map_or_else(|| file.object("rope_scaling"), |found| Ok(Some(found)))? else {
            return Ok(Self::plain(theta, head_dim));
        };
        if scaling.real("partial_rotary_factor", 0.0..=1.0)?.is_some_and(|share| share != 1.0) {
            return unsupported("partial_rotary_factor", "rotation of whole heads is");
        }
        let kind = match scaling.text("rope_type")? {
            Some(kind) => Some(kind),
            None => scaling.text("type")?,
        };
        match kind {
            None | Some("default") => Ok(Self::plain(theta, head_dim)),
            Some("linear") => linear(&scaling, theta, head_dim),
            Some("llama3") => llama3(&scaling, theta, head_dim),
            Some("factors") => divided(&scaling, theta, head_dim),
            Some("yarn") => yarn(&scaling, theta, head_dim, context),
            Some(kind @ ("dynamic" | "longrope")) => unsupported(
                format!("{kind} rope scaling"),
                "scalings whose frequencies do not change with the length of the context are (default, linear, \
                 llama3, yarn), for cached keys must turn alike in every context",
            ),
            Some(other) => unsupported(
                format!("rope scaling {}", other.chars().take(60).collect::<String>()),
                "default, linear, llama3 and yarn are",
            ),
        }
    }

    fn of(inverse_frequencies: &[f64], attention_factor: f64) -> Self {
        Self {
            inverse_frequencies: inverse_frequencies.iter().map(|f| *f as f32).collect(),
            attention_factor: attention_factor as f32,
        }
    }
}

fn plain(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// Positions are squeezed together by `factor`.
fn linear(scaling: &Settings<'_>, theta: f64, head_dim: usize) -> Result<Rope> {
    let factor = required(scaling, "factor", 1e-3..=1e6)?;
    let slowed: Vec<f64> = plain(theta, head_dim).iter().map(|f| f / factor).collect();
    Ok(Rope::of(&slowed, 1.0))
}

/// Each pair is slowed by a factor of its own: how GGUF files say what `llama3` computes.
fn divided(scaling: &Settings<'_>, theta: f64, head_dim: usize) -> Result<Rope> {
    let factors = scaling.list("factors")?;
    if factors.len() != head_dim / 2 {
        let reason =
            format!("there are {} RoPE factors for heads of {head_dim} numbers: one for each two", factors.len());
        return Err(bad_model(FILE, reason));
    }
    let slowed = plain(theta, head_dim).into_iter().zip(factors).map(|(frequency, factor)| {
        let factor = factor.as_f64().filter(|factor| (1e-3..=1e6).contains(factor));
        factor.map(|factor| frequency / factor).ok_or_else(|| bad_model(FILE, "a RoPE factor is not from 0.001 to 1e6"))
    });
    Ok(Rope::of(&slowed.collect::<Result<Vec<_>>>()?, 1.0))
}

/// Slow pairs are squeezed by `factor`, fast ones are left alone, those between are blended by how many turns they make
/// within the original context.
fn llama3(scaling: &Settings<'_>, theta: f64, head_dim: usize) -> Result<Rope> {
    let factor = required(scaling, "factor", 1e-3..=1e6)?;
    let low = required(scaling, "low_freq_factor", 1e-3..=1e6)?;
    let high = required(scaling, "high_freq_factor", 1e-3..=1e6)?;
    let original = scaling.count("original_max_position_embeddings", 1..=MAX_POSITION)? as f64;
    if high <= low {
        return Err(bad_model(FILE, format!("high_freq_factor {high} must be more than low_freq_factor {low}")));
    }
    let scaled = |frequency: &f64| {
        let turns = original * frequency / (2.0 * PI);
        // 0 for pairs that make fewer than `low` turns, 1 for those that make more than `high`.
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - kept) * frequency / factor + kept * frequency
    };
    Ok(Rope::of(&plain(theta, head_dim).iter().map(scaled).collect::<Vec<_>>(), 1.0))
}

/// YaRN: like Llama 3's, but blended linearly over the index of the pair, and attention is sharpened.
fn yarn(scaling: &Settings<'_>, theta: f64, head_dim: usize, context: usize) -> Result<Rope> {
    let original = scaling.whole("original_max_position_embeddings", 1..=MAX_POSITION)?.unwrap_or(context) as f64;
    let factor = scaling.real("factor", 1e-3..=1e6)?.unwrap_or(context as f64 / original);
    let fast = scaling.real("beta_fast", 0.0..=1e6)?.filter(|beta| *beta > 0.0).unwrap_or(32.0);
    let slow = scaling.real("beta_slow", 0.0..=1e6)?.filter(|beta| *beta > 0.0).unwrap_or(1.0);
    let truncate = scaling.get("truncate").is_none() || scaling.flag("truncate")?;

    // The index of the pair that makes so many turns within the original context.
    let dim = head_dim as f64;
    let pair = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut first, mut last) = (pair(fast), pair(slow));
    if truncate {
        (first, last) = (first.floor(), last.ceil());
    }
    (first, last) = (first.max(0.0), last.min(dim - 1.0));
    if first == last {
        last += 0.001;
    }
    let blended = |(i, frequency): (usize, &f64)| {
        let squeezed = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
        frequency / factor * squeezed + frequency * (1.0 - squeezed)
    };
    let frequencies: Vec<f64> = plain(theta, head_dim).iter().enumerate().map(blended).collect();
    Ok(Rope::of(&frequencies, yarn_attention_factor(scaling, factor)?))
}

fn yarn_attention_factor(scaling: &Settings<'_>, factor: f64) -> Result<f64> {
    if let Some(given) = scaling.real("attention_factor", 1e-3..=1e3)? {
        return Ok(given);
    }
    let sharpness = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let weight = |key| Ok(scaling.real(key, 0.0..=1e3)?.filter(|weight| *weight > 0.0));
    match (weight("mscale")?, weight("mscale_all_dim")?) {
        (Some(one), Some(all)) => Ok(sharpness(one) / sharpness(all)),
        _ => Ok(sharpness(1.0)),
    }
}

fn required(scaling: &Settings<'_>, key: &str, bounds: std::ops::RangeInclusive<f64>) -> Result<f64> {
    scaling.real(key, bounds)?.ok_or_else(|| bad_model(FILE, format!("the rope scaling has no {key}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::transformer::fixtures::demo_with;
    use crate::transformer::{Config, Rope};

    /// A rope of heads of 16 numbers.
    fn rope(mut settings: Value) -> crate::Result<Rope> {
        settings["head_dim"] = json!(16);
        Ok(Config::parse(&demo_with(settings))?.rope)
    }

    /// The numbers were computed apart from this code, from the formulas of the papers (RoFormer, position
    /// interpolation, YaRN) and, for llama3, from wavelengths as its authors published it.
    #[test]
    fn frequencies_are_those_of_the_published_formulas() {
        let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192 });
        let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 });
        let sharp = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096,
                            "beta_fast": 16, "beta_slow": 2, "truncate": false, "mscale": 1.5, "mscale_all_dim": 0.8 });
        let cases: [(&str, Value, [f64; 8], f64); 5] = [
            (
                "plain",
                json!({}),
                [1.0, 3.162277660e-1, 0.1, 3.162277660e-2, 0.01, 3.162277660e-3, 1e-3, 3.162277660e-4],
                1.0,
            ),
            (
                "linear",
                json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }),
                [0.25, 7.905694150e-2, 0.025, 7.905694150e-3, 2.5e-3, 7.905694150e-4, 2.5e-4, 7.905694150e-5],
                1.0,
            ),
            (
                "llama3",
                json!({ "rope_theta": 500_000.0, "rope_scaling": llama3 }),
                [
                    1.0,
                    1.939227447e-1,
                    3.760603093e-2,
                    7.292664737e-3,
                    5.248461610e-4,
                    3.428102196e-5,
                    6.647869871e-6,
                    1.289173172e-6,
                ],
                1.0,
            ),
            (
                "yarn",
                json!({ "rope_theta": 1e6, "rope_scaling": yarn }),
                [
                    1.0,
                    1.778279410e-1,
                    3.162277660e-2,
                    4.217559939e-3,
                    5e-4,
                    4.445698525e-5,
                    7.905694150e-6,
                    1.405853313e-6,
                ],
                1.138_629_4,
            ),
            (
                "yarn, not truncated, with mscale",
                json!({ "rope_scaling": sharp }),
                [1.0, 3.162277660e-1, 0.1, 3.162277660e-2, 6.221889069e-3, 4.355754760e-4, 1.25e-4, 3.952847075e-5],
                1.124_799_8,
            ),
        ];
        for (name, settings, frequencies, factor) in cases {
            let rope = rope(settings).unwrap();
            for (found, expected) in rope.inverse_frequencies.iter().zip(frequencies) {
                assert!((f64::from(*found) / expected - 1.0).abs() < 1e-6, "{name}: {:?}", rope.inverse_frequencies);
            }
            assert_eq!(rope.inverse_frequencies.len(), 8, "{name}");
            assert!((f64::from(rope.attention_factor) - factor).abs() < 1e-6, "{name}: {}", rope.attention_factor);
        }
    }

    #[test]
    fn both_spellings_say_the_same() {
        let scaling = json!({ "rope_type": "linear", "factor": 2.0 });
        let old = rope(json!({ "rope_theta": 1e6, "rope_scaling": scaling })).unwrap();
        let parameters = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 1e6 });
        assert_eq!(old, rope(json!({ "rope_theta": null, "rope_parameters": parameters })).unwrap());
    }

    #[test]
    fn scalings_that_move_with_the_length_are_refused() {
        for kind in ["dynamic", "longrope", "a new one"] {
            let error = rope(json!({ "rope_scaling": { "rope_type": kind, "factor": 2.0 } })).unwrap_err();
            assert!(matches!(error, crate::Error::UnsupportedModel { .. }), "{error}");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        let llama3 = |low: f64, high: f64, original: Value| {
            json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": low, "high_freq_factor": high,
                    "original_max_position_embeddings": original })
        };
        let cases = [
            json!({ "rope_theta": 1.0 }),
            json!({ "rope_theta": -5 }),
            json!({ "rope_theta": "many" }),
            json!({ "rope_scaling": { "type": "linear", "factor": 0 } }),
            json!({ "rope_scaling": { "type": "linear" } }),
            json!({ "rope_scaling": { "type": 3 } }),
            json!({ "rope_scaling": [] }),
            json!({ "rope_scaling": llama3(4.0, 4.0, json!(8192)) }),
            json!({ "rope_scaling": llama3(1.0, 4.0, json!(0)) }),
            json!({ "rope_scaling": llama3(1.0, 4.0, json!(1e300)) }),
        ];
        for case in cases {
            let error = rope(case.clone()).expect_err(&case.to_string());
            assert!(matches!(error, crate::Error::BadModel { .. }), "{error}");
        }
    }
}
