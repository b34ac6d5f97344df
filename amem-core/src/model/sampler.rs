//! Choosing the next token from a model's scores.
//!
//! What changes scores stands in this order: repetition penalty (from the model's own score, so that a token
//! seen twice is penalised once), logit bias, frequency and presence penalties, then tokens that are not allowed. The filters
//! follow, each working on what the one before it left: temperature, top-k, top-p, min-p.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result, Sampling, Token, TokenMask};

/// Draws one token after another.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// How often each token was drawn.
    drawn: HashMap<Token, u32>,
    scores: Vec<f32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: Token,
    /// Its probability, as a multiple of the likeliest token's.
    weight: f32,
}

impl Sampler {
    /// A sampler at the start of its seed.
    ///
    /// # Errors
    /// As [`Sampling::check`].
    pub fn new(sampling: &Sampling) -> Result<Self> {
        sampling.check()?;
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self {
            sampling: sampling.clone(),
            random,
            drawn: HashMap::new(),
            scores: Vec::new(),
            candidates: Vec::new(),
        })
    }

    /// The next token after `seen`, given the score of every token. A score that is NaN counts as impossible; of equal
    /// scores the lowest id stands first.
    ///
    /// # Errors
    /// [`Error::BadValue`] when no token is possible: there are no scores, or all are NaN or minus infinity.
    pub fn pick(&mut self, logits: &[f32], seen: &[Token]) -> Result<Token> {
        self.pick_among(logits, seen, None)
    }

    /// As [`pick`](Self::pick), among the tokens that are allowed: all of them if `None`.
    ///
    /// # Errors
    /// As [`pick`](Self::pick).
    pub fn pick_among(&mut self, logits: &[f32], seen: &[Token], allowed: Option<&TokenMask>) -> Result<Token> {
        let token = self.choose(logits, seen, allowed)?;
        self.note(token);
        Ok(token)
    }

    /// How tokens are drawn.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Takes note of a token that was drawn elsewhere, for penalties.
    pub fn note(&mut self, token: Token) {
        *self.drawn.entry(token).or_default() += 1;
    }

    fn choose(&mut self, logits: &[f32], seen: &[Token], allowed: Option<&TokenMask>) -> Result<Token> {
        self.scores.clear();
        self.scores.extend(logits.iter().map(|score| if score.is_nan() { f32::NEG_INFINITY } else { *score }));
        self.penalise(logits, seen);
        if let Some(allowed) = allowed {
            let forbidden = self.scores.iter_mut().zip(0..).filter(|(_, token)| !allowed.contains(*token));
            forbidden.for_each(|(score, _)| *score = f32::NEG_INFINITY);
        }
        let Some(likeliest) = argmax(&self.scores) else {
            let value = format!("{} scores without a possible token", logits.len());
            return Err(Error::BadValue { what: "logits", value, expected: "a finite score for one token at least" });
        };
        // An infinite score leaves no room for others, and no softmax can be made of it.
        if self.sampling.temperature == 0.0 || self.scores[likeliest] == f32::INFINITY {
            return Ok(likeliest as Token);
        }
        self.weigh(self.scores[likeliest]);
        self.keep_top_k();
        self.keep_top_p();
        self.keep_min_p();
        Ok(self.draw())
    }

    fn penalise(&mut self, logits: &[f32], seen: &[Token]) {
        let Self { sampling, drawn, scores, .. } = self;
        let penalty = sampling.repetition_penalty;
        if penalty != 1.0 {
            for token in seen.iter().map(|token| *token as usize) {
                let Some(score) = logits.get(token).filter(|score| !score.is_nan()) else { continue };
                scores[token] = if *score > 0.0 { score / penalty } else { score * penalty };
            }
        }
        for (token, bias) in &sampling.logit_bias {
            if let Some(score) = scores.get_mut(*token as usize) {
                *score += bias;
            }
        }
        for (token, count) in drawn.iter() {
            if let Some(score) = scores.get_mut(*token as usize) {
                *score -= sampling.frequency_penalty * *count as f32 + sampling.presence_penalty;
            }
        }
    }

    fn weigh(&mut self, highest: f32) {
        let temperature = self.sampling.temperature;
        let weights = self.scores.iter().map(|score| ((score - highest) / temperature).exp());
        let weighed = weights.zip(0..).map(|(weight, token)| Candidate { token, weight });
        self.candidates.clear();
        self.candidates.extend(weighed.filter(|candidate| candidate.weight > 0.0));
    }

    fn keep_top_k(&mut self) {
        let k = self.sampling.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k, likelier);
            self.candidates.truncate(k);
        }
        self.candidates.sort_unstable_by(likelier);
    }

    fn keep_top_p(&mut self) {
        if self.sampling.top_p == 1.0 {
            return;
        }
        let wanted = f64::from(self.sampling.top_p) * self.total();
        let mut sum = 0.0;
        let mut below = |candidate: &Candidate| {
            sum += f64::from(candidate.weight);
            sum < wanted
        };
        let kept = 1 + self.candidates.iter().take_while(|candidate| below(candidate)).count();
        self.candidates.truncate(kept);
    }

    fn keep_min_p(&mut self) {
        // The likeliest has weight 1.
        let least = self.sampling.min_p;
        self.candidates.truncate(self.candidates.partition_point(|candidate| candidate.weight >= least));
    }

    fn draw(&mut self) -> Token {
        let mut rest = self.random.random::<f64>() * self.total();
        let drawn = self.candidates.iter().find(|candidate| {
            rest -= f64::from(candidate.weight);
            rest < 0.0
        });
        // Rounding can leave a last crumb of `rest`.
        drawn.or(self.candidates.last()).map_or(0, |candidate| candidate.token)
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
    }
}

/// A token and how likely the model found it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token that was drawn.
    pub token: Token,
    /// The natural logarithm of its probability, by the model's own scores: before penalties, bias and temperature.
    pub logprob: f32,
    /// The likeliest tokens and theirs, best first.
    pub top: Vec<(Token, f32)>,
}

impl TokenLogprob {
    /// How likely `token` was, and the `top` likeliest tokens. A score that is NaN counts as impossible.
    pub fn of(logits: &[f32], token: Token, top: usize) -> Self {
        let scores = || logits.iter().map(|score| if score.is_nan() { f64::NEG_INFINITY } else { f64::from(*score) });
        let highest = scores().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = if highest.is_finite() { scores().map(|x| (x - highest).exp()).sum::<f64>().ln() } else { 0.0 };
        let logprob =
            |score: f64| if score == highest && !highest.is_finite() { 0.0 } else { score - highest - log_sum };
        let mut ranked: Vec<(Token, f32)> = if top == 0 {
            Vec::new()
        } else {
            (0..).zip(scores()).map(|(token, score)| (token, logprob(score) as f32)).collect()
        };
        let order = |a: &(Token, f32), b: &(Token, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if (1..ranked.len()).contains(&top) {
            ranked.select_nth_unstable_by(top - 1, order);
        }
        ranked.truncate(top);
        ranked.sort_unstable_by(order);
        let drawn = scores().nth(token as usize).map_or(f64::NEG_INFINITY, logprob);
        Self { token, logprob: drawn as f32, top: ranked }
    }
}

fn likelier(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// The first of the highest scores, unless all are impossible.
fn argmax(scores: &[f32]) -> Option<usize> {
    let mut best = None;
    let mut highest = f32::NEG_INFINITY;
    for (token, score) in scores.iter().enumerate() {
        if *score > highest {
            (best, highest) = (Some(token), *score);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::TokenMask;

    fn pick(sampling: &Sampling, logits: &[f32], seen: &[Token]) -> Token {
        Sampler::new(sampling).unwrap().pick(logits, seen).unwrap()
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_the_highest_scores() {
        assert_eq!(pick(&Sampling::default(), &[0.0, 3.0, f32::NAN, 3.0], &[]), 1);
    }

    #[test]
    fn a_seen_token_is_penalised_once_whatever_the_sign_of_its_score() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(pick(&sampling, &[3.0, 2.0], &[0, 0]), 1);
        assert_eq!(pick(&sampling, &[3.0, 1.0], &[0, 0]), 0);
        assert_eq!(pick(&sampling, &[-3.0, -5.0], &[0]), 1);
        assert_eq!(pick(&sampling, &[3.0, 2.0], &[u32::MAX]), 0);
    }

    fn draws(sampling: &Sampling, logits: &[f32], count: usize) -> Vec<Token> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..count).map(|_| sampler.pick(logits, &[]).unwrap()).collect()
    }

    #[test]
    fn what_was_drawn_is_penalised_by_how_often_or_by_whether_it_was() {
        let logits = [1.0, 0.5, 0.0];
        let frequency = Sampling { frequency_penalty: 0.3, ..Sampling::default() };
        // 1.0, 0.7, then 0.4 against 0.5; 0.4 against 0.2; 0.1 against 0.2.
        assert_eq!(draws(&frequency, &logits, 5), [0, 0, 1, 0, 1]);
        let presence = Sampling { presence_penalty: 0.6, ..Sampling::default() };
        // 1.0, then 0.4 against 0.5, then 0.4 against -0.1 and 0.0, for ever.
        assert_eq!(draws(&presence, &logits, 5), [0, 1, 0, 0, 0]);
        let reward = Sampling { presence_penalty: -1.0, ..Sampling::default() };
        assert_eq!(draws(&reward, &logits, 3), [0, 0, 0]);
    }

    #[test]
    fn a_bias_makes_tokens_likelier_or_impossible() {
        let bias =
            |pairs: &[(Token, f32)]| Sampling { logit_bias: pairs.iter().copied().collect(), ..Sampling::default() };
        assert_eq!(pick(&bias(&[(2, 5.0)]), &[1.0, 2.0, 0.0], &[]), 2);
        assert_eq!(pick(&bias(&[(1, -100.0), (9, 50.0)]), &[1.0, 2.0, 0.0], &[]), 0);
    }

    #[test]
    fn only_what_is_allowed_is_drawn() {
        let mut mask = TokenMask::new(3);
        assert!(mask.is_empty());
        mask.insert(0);
        mask.insert(7);
        let mut sampler = Sampler::new(&Sampling::default()).unwrap();
        assert_eq!(sampler.pick_among(&[1.0, 5.0, 3.0], &[], Some(&mask)).unwrap(), 0);
        assert!(sampler.pick_among(&[1.0], &[], Some(&TokenMask::new(1))).is_err());
    }

    #[test]
    fn logprobs_are_those_of_a_softmax_over_the_models_own_scores() {
        let logits = [1.0f32, 3.0, f32::NAN, 2.0];
        let sum: f64 = [1.0f64, 3.0, 2.0].iter().map(|x| x.exp()).sum();
        let found = TokenLogprob::of(&logits, 0, 2);
        assert!((f64::from(found.logprob) - (1.0 - sum.ln())).abs() < 1e-6, "{found:?}");
        let expected = [(1, 3.0 - sum.ln()), (3, 2.0 - sum.ln())];
        for ((token, logprob), (expected, value)) in found.top.iter().zip(expected) {
            assert!(*token == expected && (f64::from(*logprob) - value).abs() < 1e-6, "{found:?}");
        }
        assert_eq!(found.top.len(), 2);
        assert_eq!(TokenLogprob::of(&[f32::INFINITY, 1.0], 0, 0).logprob, 0.0);
        assert_eq!(TokenLogprob::of(&[0.0], 9, 0).logprob, f32::NEG_INFINITY);
    }

    #[test]
    fn without_a_possible_token_there_is_an_error() {
        for logits in [&[][..], &[f32::NAN], &[f32::NEG_INFINITY, f32::NAN]] {
            for temperature in [0.0, 1.0] {
                let sampling = Sampling { temperature, ..Sampling::default() };
                assert!(Sampler::new(&sampling).unwrap().pick(logits, &[]).is_err());
            }
        }
    }

    #[test]
    fn an_infinite_score_wins_at_any_temperature() {
        let sampling = Sampling { temperature: 5.0, ..Sampling::default() };
        assert_eq!(pick(&sampling, &[1.0, f32::INFINITY, 9.0], &[]), 1);
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_by_name() {
        let fine = Sampling::default();
        let cases = [
            ("temperature", Sampling { temperature: -1.0, ..fine.clone() }),
            ("temperature", Sampling { temperature: f32::NAN, ..fine.clone() }),
            ("top_p", Sampling { top_p: 0.0, ..fine.clone() }),
            ("top_p", Sampling { top_p: f32::NAN, ..fine.clone() }),
            ("min_p", Sampling { min_p: 1.5, ..fine.clone() }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..fine.clone() }),
            ("frequency_penalty", Sampling { frequency_penalty: 2.5, ..fine.clone() }),
            ("presence_penalty", Sampling { presence_penalty: f32::NAN, ..fine.clone() }),
            ("logit_bias", Sampling { logit_bias: [(1, 101.0)].into(), ..fine.clone() }),
            ("logit_bias", Sampling { logit_bias: (0..1025).map(|token| (token, 0.0)).collect(), ..fine.clone() }),
        ];
        for (name, sampling) in cases {
            let error = sampling.check().unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let mut sampler = Sampler::new(&Sampling { temperature: 1.0, ..Sampling::default() }).unwrap();
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            counts[sampler.pick(&logits, &[]).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([6000, 3000, 1000]) {
            assert!(i32::abs(count - expected) < 200, "{counts:?}");
        }
    }

    fn scores() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(prop_oneof![9 => -20.0f32..20.0, 1 => Just(f32::NAN)], 1..60)
            .prop_filter("one possible token", |scores| scores.iter().any(|score| score.is_finite()))
    }

    proptest! {
        #[test]
        fn top_k_of_one_is_greedy(logits in scores(), temperature in 0.01f32..5.0, seed: u64) {
            let sampling = Sampling { temperature, top_k: 1, seed, ..Sampling::default() };
            prop_assert_eq!(pick(&sampling, &logits, &[]), pick(&Sampling::default(), &logits, &[]));
        }

        #[test]
        fn the_same_seed_draws_the_same_tokens(logits in scores(), temperature in 0.1f32..5.0, seed: u64) {
            let sampling = Sampling { temperature, seed, ..Sampling::default() };
            let (mut one, mut other) = (Sampler::new(&sampling).unwrap(), Sampler::new(&sampling).unwrap());
            for _ in 0..20 {
                prop_assert_eq!(one.pick(&logits, &[]).unwrap(), other.pick(&logits, &[]).unwrap());
            }
        }

        #[test]
        fn a_drawn_token_passes_every_filter(
            logits in scores(), temperature in 0.1f32..5.0, top_k in 0usize..70, top_p in 0.05f32..1.0,
            min_p in 0.0f32..1.0, seed: u64,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() };
            let token = pick(&sampling, &logits, &[]) as usize;
            let score = logits[token];
            prop_assert!(score.is_finite());

            let weight = |score: f32| f64::from(score / temperature).exp();
            let mut likelier: Vec<f32> = logits.iter().copied().filter(|other| *other > score).collect();
            likelier.sort_by(|a, b| b.total_cmp(a));
            prop_assert!(top_k == 0 || likelier.len() < top_k);
            // What stands before the token has less than `top_p` of all that top-k left.
            let mut left: Vec<f32> = logits.iter().copied().filter(|other| !other.is_nan()).collect();
            left.sort_by(|a, b| b.total_cmp(a));
            left.truncate(if top_k == 0 { left.len() } else { top_k });
            let total: f64 = left.iter().map(|score| weight(*score)).sum();
            let before: f64 = likelier.iter().map(|score| weight(*score)).sum();
            prop_assert!(before <= f64::from(top_p) * total * 1.0001);
            prop_assert!(weight(score) >= f64::from(min_p) * weight(left[0]) * 0.9999);
        }
    }
}
