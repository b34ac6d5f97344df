//! How tokens are drawn: the parameters that OpenAI's APIs have in common, and vLLM's.

use std::collections::BTreeMap;

use amem_core::{Model, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{invalid, unsupported, whole};
use crate::http::Result;
use crate::server::ids;

/// Stop texts at most, and bytes of each.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;
/// Tokens with a bias at most.
const MAX_BIASES: usize = 1024;

/// How tokens are drawn. What is not given is as the model's makers recommend it: where they recommend nothing, the
/// likeliest token is drawn.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct SamplingParams {
    /// From 0, which draws the likeliest token, to 2. Not 1 by default as in OpenAI's API, but what the model's makers
    /// recommend.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// Only the likeliest tokens that have this share of the probability.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Only so many of the likeliest tokens; 0 or -1 for all of them.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// Only tokens at least this share as likely as the likeliest.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    /// What the scores of tokens that stand already are divided by.
    repetition_penalty: Option<f64>,
    /// What is taken off the score of a token for each time that it was drawn.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// What is taken off the score of a token that was drawn.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// What is added to the scores of tokens, by their ids.
    logit_bias: Option<BTreeMap<String, f64>>,
    /// The same seed draws the same tokens. Without one, each request draws its own.
    seed: Option<i64>,
    /// Texts that end the answer where they appear in it. They are no part of it.
    stop: Option<Stop>,
    /// How many answers are drawn.
    #[schema(minimum = 1, maximum = 128)]
    n: Option<i64>,
    /// As many as `n`: nothing is drawn that is not answered.
    best_of: Option<i64>,
    /// Tokens before an answer may end by itself.
    #[schema(minimum = 0)]
    min_tokens: Option<i64>,
}

/// One text, or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// Refuses what vLLM and llama.cpp draw and write answers by beside [`SamplingParams`], unless it has the value that changes
/// nothing: to ignore it would be to answer something else.
///
/// # Errors
/// 400 about the parameter.
pub(super) fn refuse_others(rest: &Map<String, Value>) -> Result<()> {
    let changes_nothing = |name: &str, value: &Value| match name {
        "include_stop_str_in_output" => *value == false,
        "skip_special_tokens" => *value == true,
        "length_penalty" | "repeat_penalty" | "typical_p" => value.as_f64() == Some(1.0),
        "dry_multiplier" | "dynatemp_range" | "mirostat" | "xtc_probability" => value.as_f64() == Some(0.0),
        _ => true,
    };
    match rest.iter().find(|(name, value)| !value.is_null() && !changes_nothing(name, value)) {
        Some((name, _)) => Err(unsupported(name, "this is not supported")),
        None => Ok(()),
    }
}

impl SamplingParams {
    /// How tokens are drawn from this model.
    pub(super) fn sampling(&self, model: &dyn Model) -> Result<Sampling> {
        let mut sampling = model.sampling();
        sampling.seed = match self.seed {
            Some(seed) => seed.cast_unsigned(),
            None => ids::seed()?,
        };
        let set = |to: &mut f32, param, value: Option<f64>, least: f64, most: f64| match value {
            Some(value) if (least..=most).contains(&value) => {
                *to = value as f32;
                Ok(())
            }
            Some(value) => Err(invalid(param, format!("it must be from {least} to {most}, and is {value}"))),
            None => Ok(()),
        };
        set(&mut sampling.temperature, "temperature", self.temperature, 0.0, 2.0)?;
        set(&mut sampling.top_p, "top_p", self.top_p, 0.0, 1.0)?;
        // No share at all is that of the likeliest token.
        sampling.top_p = sampling.top_p.max(f32::MIN_POSITIVE);
        set(&mut sampling.min_p, "min_p", self.min_p, 0.0, 1.0)?;
        set(&mut sampling.repetition_penalty, "repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        set(&mut sampling.frequency_penalty, "frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        set(&mut sampling.presence_penalty, "presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        match self.top_k {
            Some(-1) => sampling.top_k = 0,
            Some(tokens) => sampling.top_k = whole("top_k", tokens, 0, usize::MAX)?,
            None => {}
        }
        let biases = self.logit_bias.as_ref();
        if biases.is_some_and(|biases| biases.len() > MAX_BIASES) {
            return Err(invalid("logit_bias", format!("it can be given for {MAX_BIASES} tokens at most")));
        }
        for (token, bias) in biases.into_iter().flatten() {
            let id = token.parse().ok().filter(|id: &u32| (*id as usize) < model.info().vocabulary);
            let id = id.ok_or_else(|| invalid("logit_bias", format!("{token:?} is the id of no token")))?;
            if !(-100.0..=100.0).contains(bias) {
                return Err(invalid(
                    "logit_bias",
                    format!("a bias must be from -100 to 100, and that of {id} is {bias}"),
                ));
            }
            sampling.logit_bias.insert(id, *bias as f32);
        }
        Ok(sampling)
    }

    /// The texts that end an answer.
    pub(super) fn stop(&self) -> Result<Vec<String>> {
        let stops = match &self.stop {
            Some(Stop::One(text)) => std::slice::from_ref(text),
            Some(Stop::Many(texts)) => texts,
            None => &[],
        };
        if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            let message = format!("there can be {MAX_STOPS} texts at most, of {MAX_STOP_BYTES} bytes at most");
            return Err(invalid("stop", message));
        }
        if stops.iter().any(String::is_empty) {
            return Err(invalid("stop", "a text that ends an answer cannot be empty"));
        }
        Ok(stops.to_vec())
    }

    /// How many answers are drawn.
    pub(super) fn n(&self) -> Result<usize> {
        let n = whole("n", self.n.unwrap_or(1), 1, 128)?;
        if self.best_of.is_some_and(|drawn| usize::try_from(drawn) != Ok(n)) {
            return Err(unsupported("best_of", "it must be as many as n: all that is drawn is answered"));
        }
        Ok(n)
    }

    /// Tokens before an answer may end by itself.
    pub(super) fn min_tokens(&self) -> Result<usize> {
        whole("min_tokens", self.min_tokens.unwrap_or(0), 0, usize::MAX)
    }
}
