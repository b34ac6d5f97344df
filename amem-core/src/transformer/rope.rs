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
/// inverse_frequencies[i]` radians, and both are multiplied by `attention_factor`.
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
