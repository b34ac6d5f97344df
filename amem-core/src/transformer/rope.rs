//! Rotary position embedding: how fast each pair of a head's numbers turns from one position to the next.
//!
//! The formulas are those of Hugging Face transformers (`modeling_rope_utils.py`): plain RoPE, linear scaling, Llama
//! 3's, YaRN (with an `attn_factor`, as vLLM has it) and LongRoPE. They are evaluated in f64 and rounded once.

use std::f64::consts::PI;

use super::config::unsupported;
use super::settings::{Settings, bad_model, shown};
use crate::Result;

const FILE: &str = "config.json";
const MAX_POSITION: usize = 1 << 28;

/// How a head is rotated to a position: the numbers `i` and `i + head_dim/2` turn by `position *
/// inverse_frequencies[i]` radians, and both are multiplied by `attention_factor`. A pair of frequency 0 stays as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians from one position to the next, `[head_dim / 2]`.
    pub inverse_frequencies: Vec<f32>,
    /// What cosine and sine are multiplied by: 1, except for YaRN and LongRoPE.
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

    /// No rotation at all.
    pub(super) fn none(head_dim: usize) -> Self {
        Self { inverse_frequencies: vec![0.0; head_dim / 2], attention_factor: 1.0 }
    }

    /// The rope settings of `config.json`, in either spelling: `rope_theta` and `rope_scaling`, or `rope_parameters`. If
    /// layers differ, those of one of their kinds, by the name that `layer_types` has for it.
    pub(super) fn parse(file: &Settings<'_>, spec: &RopeSpec, kind: Option<&str>) -> Result<Self> {
        const THETA: std::ops::RangeInclusive<f64> = 1.1..=1e12;
        let parameters = match (file.object("rope_parameters")?, kind) {
            (Some(all), Some(kind)) if all.get(kind).is_some() => all.object(kind)?,
            (all, _) => all,
        };
        let local = kind == Some("sliding_attention");
        let (key, default) = if local { ("rope_local_base_freq", 10_000.0) } else { ("rope_theta", spec.theta) };
        let mut theta = file.real(key, THETA)?;
        if let Some(parameters) = &parameters {
            theta = parameters.real("rope_theta", THETA)?.or(theta);
        }
        let theta = theta.unwrap_or(default);
        let scaling = match parameters {
            None if !local => file.object("rope_scaling")?,
            parameters => parameters,
        };
        let Some(scaling) = scaling else { return Ok(spec.rope(&plain(theta, spec.rotated), 1.0)) };
        let kind = match scaling.text("rope_type")? {
            Some(kind) => Some(kind),
            None => scaling.text("type")?,
        };
        match kind {
            None | Some("default") => Ok(spec.rope(&plain(theta, spec.rotated), 1.0)),
            Some("linear") => linear(&scaling, theta, spec),
            Some("llama3") => llama3(&scaling, theta, spec),
            Some("factors") => divided(&scaling, theta, spec),
            Some("yarn") if scaling.get("long_factor").is_none() => yarn(&scaling, theta, spec),
            // It had other names before.
            Some("longrope" | "su" | "yarn") => longrope(file, &scaling, theta, spec),
            Some("dynamic") => unsupported(
                "dynamic rope scaling",
                "scalings whose frequencies do not change while a context grows are (default, linear, llama3, yarn, \
                 longrope), for cached keys must turn alike in every context",
            ),
            Some(other) => {
                unsupported(format!("rope scaling {}", shown(other)), "default, linear, llama3, yarn and longrope are")
            }
        }
    }
}

/// What a rope is made for.
pub(super) struct RopeSpec {
    /// Numbers in a head.
    pub(super) head_dim: usize,
    /// How many of them are rotated, from the first on.
    pub(super) rotated: usize,
    /// The base, where the file does not say it.
    pub(super) theta: f64,
    /// The file's `max_position_embeddings`.
    pub(super) positions: usize,
    /// Tokens that a context will have at most.
    pub(super) context: usize,
}

impl RopeSpec {
    /// With these frequencies for the pairs that are rotated. The other pairs of a head stay as they are.
    fn rope(&self, inverse_frequencies: &[f64], attention_factor: f64) -> Rope {
        let mut rope = Rope::of(inverse_frequencies, attention_factor);
        rope.inverse_frequencies.resize(self.head_dim / 2, 0.0);
        rope
    }
}

impl Rope {
    fn of(inverse_frequencies: &[f64], attention_factor: f64) -> Self {
        Self {
            inverse_frequencies: inverse_frequencies.iter().map(|f| *f as f32).collect(),
            attention_factor: attention_factor as f32,
        }
    }
}

fn plain(theta: f64, rotated: usize) -> Vec<f64> {
    (0..rotated / 2).map(|i| theta.powf(-2.0 * i as f64 / rotated as f64)).collect()
}

/// Positions are squeezed together by `factor`.
fn linear(scaling: &Settings<'_>, theta: f64, spec: &RopeSpec) -> Result<Rope> {
    let factor = required(scaling, "factor", 1e-3..=1e6)?;
    let slowed: Vec<f64> = plain(theta, spec.rotated).iter().map(|f| f / factor).collect();
    Ok(spec.rope(&slowed, 1.0))
}

/// Each pair is slowed by a factor of its own: how GGUF files say what `llama3` computes.
fn divided(scaling: &Settings<'_>, theta: f64, spec: &RopeSpec) -> Result<Rope> {
    let factors = scaling.list("factors")?;
    if factors.len() != spec.rotated / 2 {
        let reason = format!("there are {} RoPE factors for {} numbers: one for each two", factors.len(), spec.rotated);
        return Err(bad_model(FILE, reason));
    }
    let slowed = plain(theta, spec.rotated).into_iter().zip(factors).map(|(frequency, factor)| {
        let factor = factor.as_f64().filter(|factor| (1e-3..=1e6).contains(factor));
        factor.map(|factor| frequency / factor).ok_or_else(|| bad_model(FILE, "a RoPE factor is not from 0.001 to 1e6"))
    });
    Ok(spec.rope(&slowed.collect::<Result<Vec<_>>>()?, 1.0))
}

/// Slow pairs are squeezed by `factor`, fast ones are left alone, those between are blended by how many turns they make
/// within the original context.
fn llama3(scaling: &Settings<'_>, theta: f64, spec: &RopeSpec) -> Result<Rope> {
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
    Ok(spec.rope(&plain(theta, spec.rotated).iter().map(scaled).collect::<Vec<_>>(), 1.0))
}

/// LongRoPE: each pair is slowed by a factor of its own, which was found for long contexts or for such as the model was
/// trained with at first. Which of the two, a context's limit decides and not what stands in it, so that keys turn alike
/// in every context.
fn longrope(file: &Settings<'_>, scaling: &Settings<'_>, theta: f64, spec: &RopeSpec) -> Result<Rope> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let original = match scaling.whole(ORIGINAL, 1..=MAX_POSITION)? {
        Some(original) => original,
        None => file.whole(ORIGINAL, 1..=MAX_POSITION)?.unwrap_or(spec.positions),
    };
    let factor = scaling.real("factor", 1e-3..=1e6)?.unwrap_or(spec.positions as f64 / original as f64);
    let attention_factor = match scaling.real("attention_factor", 1e-3..=1e3)? {
        Some(given) => given,
        None if factor <= 1.0 || original <= 1 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    let key = if spec.context > original { "long_factor" } else { "short_factor" };
    let factors = scaling.list(key)?;
    if factors.len() != spec.rotated / 2 {
        let reason = format!("{key} has {} numbers for {} pairs that are rotated", factors.len(), spec.rotated / 2);
        return Err(bad_model(FILE, reason));
    }
    let slowed = |(frequency, factor): (f64, &serde_json::Value)| match factor.as_f64() {
        Some(number @ 1e-3..=1e6) => Ok(frequency / number),
        _ => Err(scaling.wrong(key, factor, "numbers from 0.001 to 1000000")),
    };
    let slowed = plain(theta, spec.rotated).into_iter().zip(factors).map(slowed).collect::<Result<Vec<_>>>()?;
    Ok(spec.rope(&slowed, attention_factor))
}

/// YaRN: like Llama 3's, but blended linearly over the index of the pair, and attention is sharpened.
fn yarn(scaling: &Settings<'_>, theta: f64, spec: &RopeSpec) -> Result<Rope> {
    let context = spec.positions;
    let original = scaling.whole("original_max_position_embeddings", 1..=MAX_POSITION)?.unwrap_or(context) as f64;
    let factor = scaling.real("factor", 1e-3..=1e6)?.unwrap_or(context as f64 / original);
    let fast = scaling.real("beta_fast", 0.0..=1e6)?.filter(|beta| *beta > 0.0).unwrap_or(32.0);
    let slow = scaling.real("beta_slow", 0.0..=1e6)?.filter(|beta| *beta > 0.0).unwrap_or(1.0);
    let truncate = scaling.get("truncate").is_none() || scaling.flag("truncate")?;

    // The index of the pair that makes so many turns within the original context.
    let dim = spec.rotated as f64;
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
    let frequencies: Vec<f64> = plain(theta, spec.rotated).iter().enumerate().map(blended).collect();
    Ok(spec.rope(&frequencies, yarn_attention_factor(scaling, factor)?))
}

/// What cosine and sine are multiplied by. `attention_factor` stands in the place of all that is computed here.
/// `attn_factor` is multiplied with it, as vLLM does it and as the makers of DeepSeek-R1-0528-Qwen3-8B mean it, whose
/// files take the sharpening back with it; transformers leaves it out.
fn yarn_attention_factor(scaling: &Settings<'_>, factor: f64) -> Result<f64> {
    if let Some(given) = scaling.real("attention_factor", 1e-3..=1e3)? {
        return Ok(given);
    }
    let sharpness = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let weight = |key| Ok(scaling.real(key, 0.0..=1e3)?.filter(|weight| *weight > 0.0));
    let sharpness = match (weight("mscale")?, weight("mscale_all_dim")?) {
        (Some(one), Some(all)) => sharpness(one) / sharpness(all),
        _ => sharpness(1.0),
    };
    Ok(sharpness * scaling.real("attn_factor", 1e-3..=1e3)?.unwrap_or(1.0))
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
        Ok(Config::parse(&demo_with(settings))?.kinds.remove(0).rope)
    }

    /// The numbers were computed apart from this code, from the formulas of the papers (RoFormer, position
    /// interpolation, YaRN) and, for llama3, from wavelengths as its authors published it.
    #[test]
    fn frequencies_are_those_of_the_published_formulas() {
        let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192 });
        let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 });
        // 1 / (0.1 · ln 4 + 1), as DeepSeek-R1-0528-Qwen3-8B has it.
        let mut flat = yarn.clone();
        flat["attn_factor"] = json!(0.878_248_856_286_941_9);
        let sharp = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096,
                            "beta_fast": 16, "beta_slow": 2, "truncate": false, "mscale": 1.5, "mscale_all_dim": 0.8 });
        let yarns =
            [1.0, 1.778279410e-1, 3.162277660e-2, 4.217559939e-3, 5e-4, 4.445698525e-5, 7.905694150e-6, 1.405853313e-6];
        let cases: [(&str, Value, [f64; 8], f64); 6] = [
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
            ("yarn", json!({ "rope_theta": 1e6, "rope_scaling": yarn }), yarns, 1.138_629_4),
            ("yarn that takes its sharpening back", json!({ "rope_theta": 1e6, "rope_scaling": flat }), yarns, 1.0),
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

    /// As above: the numbers were computed from the paper's formula (LongRoPE), apart from this code.
    #[test]
    fn long_and_short_factors_slow_the_pairs_that_are_rotated() {
        let scaling = json!({ "type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.4, 1.7, 2.0],
                              "long_factor": [1.0, 1.5, 2.5, 4.0, 7.0, 11.0] });
        let settings = json!({
            "model_type": "phi3", "head_dim": 16, "partial_rotary_factor": 0.75, "rope_theta": 10000.0,
            "original_max_position_embeddings": 4096, "max_position_embeddings": 131_072, "rope_scaling": scaling
        });
        let short = [1.0, 1.958576991e-1, 3.570452949e-2, 7.142857143e-3, 1.267314524e-3, 2.320794417e-4, 0.0, 0.0];
        let long = [1.0, 1.436289793e-1, 1.856635533e-2, 2.5e-3, 3.077763843e-4, 4.219626212e-5, 0.0, 0.0];
        for (context, expected) in [(None, long), (Some(4097), long), (Some(4096), short), (Some(1), short)] {
            let config = Config::parse_for(&demo_with(settings.clone()), context).unwrap();
            let rope = config.rope(0).unwrap();
            assert_eq!(rope.inverse_frequencies.len(), 8);
            for (found, expected) in rope.inverse_frequencies.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected, "{context:?}: {rope:?}");
            }
            assert!((f64::from(rope.attention_factor) - 1.190_238_07).abs() < 1e-6, "{rope:?}");
        }
    }

    #[test]
    fn a_pair_that_is_not_rotated_stays_as_it_is() {
        let rope = Rope { inverse_frequencies: vec![0.5, 0.0], attention_factor: 2.0 };
        assert_eq!(rope.cos_sin(7, 0.0), (1.0, 0.0));
        let (cos, sin) = rope.cos_sin(1, 0.5);
        assert!((cos - 2.0 * 0.5f32.cos()).abs() < 1e-6 && (sin - 2.0 * 0.5f32.sin()).abs() < 1e-6);
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
        for kind in ["dynamic", "a new one"] {
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
            json!({ "rope_scaling": { "type": "longrope", "long_factor": [1.0], "short_factor": [1.0] } }),
            json!({ "rope_scaling": { "type": "longrope", "long_factor": vec![0.0; 8], "short_factor": vec![0.0; 8] } }),
        ];
        for case in cases {
            let error = rope(case.clone()).expect_err(&case.to_string());
            assert!(matches!(error, crate::Error::BadModel { .. }), "{error}");
        }
    }
}
