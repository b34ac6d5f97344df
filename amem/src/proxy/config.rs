//! What the operator says about upstreams and models.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::upstream::Kind;
use super::usage::Tokens;

/// What the proxy knows without a configuration.
const DEFAULTS: &str = include_str!("defaults.toml");
/// Tokens from which on a prefix is marked for a model that the configuration does not know.
const MIN_CACHEABLE_TOKENS: u64 = 1024;

/// The proxy's configuration, as it stands in a file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Config {
    /// The upstream of a model that none claims by name. Without one, such a model is refused: what is remembered must not
    /// go to whom nobody named.
    pub default_upstream: Option<String>,
    /// The model that is asked if a request names none, or `amem`, as memory's own clients do.
    pub default_model: Option<String>,
    /// The upstreams by their names.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    /// Models by their names, which may be followed by a version in the name of what is asked: a date or `-latest`.
    pub models: BTreeMap<String, ModelConfig>,
}

/// An upstream.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct UpstreamConfig {
    /// What runs there.
    pub kind: Kind,
    /// Where its API is; without a path, under `/v1`.
    pub url: String,
    /// The environment variable that holds the server's own key for it. Where this is given, a key is needed.
    pub key_env: Option<String>,
    /// The beginnings of the names of its models.
    #[serde(default)]
    pub models: Vec<String>,
    /// Whether the caller's key goes upstream. Otherwise only the server's own does, for callers that it knows.
    #[serde(default = "yes")]
    pub forward_caller_key: bool,
    /// Headers of the caller that go upstream, beside those that every upstream is sent.
    #[serde(default)]
    pub forward_headers: Vec<String>,
}

fn yes() -> bool {
    true
}

impl UpstreamConfig {
    /// An upstream that needs no key of the server's.
    pub fn new(kind: Kind, url: impl Into<String>) -> Self {
        let (models, forward_headers) = (Vec::new(), Vec::new());
        Self { kind, url: url.into(), key_env: None, models, forward_caller_key: true, forward_headers }
    }
}

/// What a model costs, in US dollars for a million tokens, and what its prefix cache takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Tokens that a prefix must have to be cached.
    pub min_cacheable_tokens: Option<u64>,
    /// Input that is computed.
    pub input: Option<f64>,
    /// Input that the cache holds; as `input` if left out.
    pub cache_read: Option<f64>,
    /// Input that is written to the cache; as `input` if left out.
    pub cache_write: Option<f64>,
    /// Output.
    pub output: Option<f64>,
}

/// What an answer cost, in US dollars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    pub(super) spent: f64,
    /// What it would have cost more without a prefix cache.
    pub(super) saved: f64,
}

impl Config {
    /// The defaults, and what is said here instead of and beside them.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let mut config: Self = toml::from_str(DEFAULTS)?;
        let given: Self = toml::from_str(text)?;
        config.default_upstream = given.default_upstream;
        config.default_model = given.default_model.or(config.default_model);
        config.upstreams.extend(given.upstreams);
        config.models.extend(given.models);
        Ok(config)
    }

    /// With this upstream as the default, which all models are asked of. Others are asked if a request names them.
    #[must_use]
    pub fn only_upstream(mut self, name: &str, upstream: UpstreamConfig) -> Self {
        self.upstreams.values_mut().for_each(|other| other.models.clear());
        self.upstreams.insert(name.to_owned(), upstream);
        Self { default_upstream: Some(name.to_owned()), ..self }
    }

    /// What is known of a model, by its name or by that without its version. What else begins like a known model is another,
    /// at another price.
    fn model(&self, name: &str) -> Option<&ModelConfig> {
        let undated =
            || self.models.iter().find(|(known, _)| name.strip_prefix(known.as_str()).is_some_and(is_version));
        self.models.get(name).or_else(|| undated().map(|(_, model)| model))
    }

    /// Tokens that a prefix must have to be cached for a model.
    pub(super) fn min_cacheable_tokens(&self, model: &str) -> u64 {
        self.model(model).and_then(|model| model.min_cacheable_tokens).unwrap_or(MIN_CACHEABLE_TOKENS)
    }

    /// What an answer of a model cost, if its prices are known.
    pub(super) fn cost(&self, model: &str, tokens: &Tokens) -> Option<Cost> {
        let model = self.model(model)?;
        let (input, output) = (model.input?, model.output?);
        let of = |tokens: u64, price: f64| tokens as f64 * price / 1e6;
        let cached = of(tokens.cache_read, model.cache_read.unwrap_or(input))
            + of(tokens.cache_write, model.cache_write.unwrap_or(input));
        let uncached = of(tokens.cache_read + tokens.cache_write, input);
        let spent = cached + of(tokens.fresh(), input) + of(tokens.output, output);
        Some(Cost { spent, saved: uncached - cached })
    }
}

/// Whether the end of a model's name says which version it is: `-20250929`, `@20250929`, `-2025-08-07` or `-latest`.
fn is_version(end: &str) -> bool {
    let form: String = end.chars().map(|char| if char.is_ascii_digit() { '0' } else { char }).collect();
    matches!(form.as_str(), "-00000000" | "@00000000" | "-0000-00-00" | "-latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_by_its_name_with_a_date_or_without_and_what_only_begins_like_it_is_another() {
        let text = "[models]\nown = { min_cacheable_tokens = 7, input = 1.0, output = 2.0 }\n\
                    own-2025-08-07 = { min_cacheable_tokens = 8 }";
        let config = Config::parse(text).unwrap();
        for (model, least) in [
            ("own", 7),
            ("own-20250929", 7),
            ("own-2025-08-08", 7),
            ("own@20250929", 7),
            ("own-latest", 7),
            ("own-2025-08-07", 8),
        ] {
            assert_eq!(config.min_cacheable_tokens(model), least, "{model}");
        }
        for other in ["own-nano", "own-4", "own2", "own-2025", "own-20250929-x", "own-nano-20250929", "ow", ""] {
            assert_eq!(config.min_cacheable_tokens(other), MIN_CACHEABLE_TOKENS, "{other}");
            assert_eq!(config.cost(other, &Tokens::default()), None, "{other}");
        }
        assert!(Config::parse("upstream = \"typo\"").is_err());
    }

    #[test]
    fn small_models_do_not_cost_as_the_large_ones_of_their_family() {
        let config = Config::parse("").unwrap();
        let input = |model: &str| {
            let tokens = Tokens { input: 1_000_000, ..Tokens::default() };
            config.cost(model, &tokens).map(|cost| cost.spent)
        };
        assert_eq!(input("gpt-5-2025-08-07"), Some(1.25));
        assert_eq!((input("gpt-5-nano"), input("gpt-4.1-nano-2025-04-14")), (Some(0.05), Some(0.1)));
        assert_eq!((input("claude-opus-4-20250514"), input("claude-sonnet-4-5-20250929")), (Some(15.0), Some(3.0)));
        assert_eq!((input("claude-opus-4-7"), input("gpt-5-pro"), input("gpt-4o-realtime")), (None, None, None));
    }

    #[test]
    fn an_answer_costs_what_the_table_says_and_the_first_writing_of_a_cache_costs_more() {
        let text = "[models]\nm = { input = 10.0, cache_read = 1.0, cache_write = 12.0, output = 100.0 }";
        let config = Config::parse(text).unwrap();
        let cost = |cache_read, cache_write| {
            config.cost("m", &Tokens { input: 1_000_000, cache_read, cache_write, output: 10_000 }).unwrap()
        };
        assert_eq!(cost(0, 0), Cost { spent: 11.0, saved: 0.0 });
        assert_eq!(cost(500_000, 0), Cost { spent: 6.5, saved: 4.5 });
        assert_eq!(cost(0, 500_000), Cost { spent: 12.0, saved: -1.0 });
        assert_eq!(config.cost("unpriced", &Tokens::default()), None);
    }
}
