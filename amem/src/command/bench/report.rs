//! What the questions cost, as numbers.

use std::fmt;
use std::time::Duration;

use amem_core::{TokenLogprob, Usage};
use serde::Serialize;

use super::Corpus;

/// A question that was answered.
pub(super) struct Asked {
    pub(super) text: String,
    /// How likely its first token was, and the likeliest ones.
    pub(super) first: Option<TokenLogprob>,
    pub(super) usage: Usage,
    pub(super) ttft: Duration,
}

/// A question that was answered twice, from the same memories.
pub(super) struct Pair {
    /// From kept KV.
    pub(super) kept: Asked,
    /// From their texts.
    pub(super) prefilled: Asked,
}

/// What the questions cost in one way.
#[derive(Debug, Serialize)]
pub(crate) struct Costs {
    pub(super) way: String,
    /// Tokens computed before the first one of the answer, for this question and all before it.
    pub(super) computed_tokens: Vec<usize>,
    /// Tokens whose KV was used as it was, over all questions.
    reused_tokens: usize,
    /// Milliseconds to the first token, for each question.
    ttft_ms: Vec<f64>,
    /// The share of answers that are the same as from the memories' texts.
    same_answers: f64,
    /// How far the probabilities of the first token are from those after the memories' texts: the Kullback-Leibler
    /// divergence in nats, on the mean. Tokens that are among the likeliest of both are told apart, all others are one:
    /// so it is no more than the divergence over all tokens. None if no answer has a first token both ways: of one that
    /// ends at once nothing is known.
    first_token_kl: Option<f64>,
    /// The share of answers that are right, where that is known.
    right_answers: Option<f64>,
}

/// All of it: each way, followed by what the same took from texts.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    model: String,
    memories: usize,
    pub(super) questions: usize,
    pub(super) costs: Vec<Costs>,
}

impl Report {
    /// What it took to answer, way by way.
    pub(super) fn new(model: String, corpus: &Corpus, ways: &[(&str, Vec<Pair>)]) -> Self {
        let costs = ways.iter().flat_map(|(way, pairs)| {
            let kept: Vec<&Asked> = pairs.iter().map(|pair| &pair.kept).collect();
            let prefilled: Vec<&Asked> = pairs.iter().map(|pair| &pair.prefilled).collect();
            let name = format!("{way}, prefilled");
            [costs((*way).to_owned(), &kept, &prefilled, corpus), costs(name, &prefilled, &prefilled, corpus)]
        });
        let costs = costs.collect();
        Self { model, memories: corpus.memories.len(), questions: corpus.questions.len(), costs }
    }
}

fn costs(way: String, asked: &[&Asked], prefilled: &[&Asked], corpus: &Corpus) -> Costs {
    let mut sum = 0;
    let computed_tokens = asked.iter().map(|asked| {
        sum += asked.usage.prefilled + asked.usage.repaired;
        sum
    });
    Costs {
        way,
        computed_tokens: computed_tokens.collect(),
        reused_tokens: asked.iter().map(|asked| asked.usage.reused()).sum(),
        ttft_ms: asked.iter().map(|asked| 1e3 * asked.ttft.as_secs_f64()).collect(),
        same_answers: share(asked, prefilled.iter().map(|asked| &asked.text)),
        first_token_kl: {
            let pairs = prefilled.iter().zip(asked);
            let compared: Vec<f64> =
                pairs.filter_map(|(p, q)| Some(divergence(p.first.as_ref()?, q.first.as_ref()?))).collect();
            (!compared.is_empty()).then(|| compared.iter().sum::<f64>() / compared.len() as f64)
        },
        right_answers: corpus.right.as_ref().map(|right| share(asked, right.iter())),
    }
}

/// The share of answers with these texts.
fn share<'a>(asked: &[&Asked], texts: impl Iterator<Item = &'a String>) -> f64 {
    let same = asked.iter().zip(texts).filter(|(asked, text)| asked.text == **text).count();
    same as f64 / asked.len().max(1) as f64
}

/// The divergence of `q` from `p`, over the tokens that are among the likeliest of both, and all others as one.
fn divergence(p: &TokenLogprob, q: &TokenLogprob) -> f64 {
    let (mut sum, mut rest_p, mut rest_q) = (0.0, 1.0, 1.0);
    for &(token, of_p) in &p.top {
        let Some(&(_, of_q)) = q.top.iter().find(|(other, _)| *other == token) else { continue };
        let (of_p, of_q) = (f64::from(of_p), f64::from(of_q));
        sum += of_p.exp() * (of_p - of_q);
        rest_p -= of_p.exp();
        rest_q -= of_q.exp();
    }
    // What rounding leaves of a rest that is nothing.
    const LEAST: f64 = 1e-6;
    if rest_p > LEAST {
        sum += rest_p * (rest_p / rest_q.max(LEAST)).ln();
    }
    sum.max(0.0)
}

impl Costs {
    /// Tokens that were computed in all.
    fn computed(&self) -> usize {
        self.computed_tokens.last().copied().unwrap_or(0)
    }

    fn median_ttft_ms(&self) -> f64 {
        let mut sorted = self.ttft_ms.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    }
}

/// A share of so many answers in percent, with its standard error if that is not nothing.
fn with_error(share: f64, answers: usize) -> String {
    let error = (share * (1.0 - share) / answers.max(1) as f64).sqrt();
    let percent = format!("{:.1}", 100.0 * share);
    if error > 0.0 { format!("{percent} ± {:.1} %", 100.0 * error) } else { format!("{percent} %") }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, memories, questions, costs } = self;
        writeln!(f, "{questions} questions on {memories} memories, model {model}\n")?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, cells: [&str; 7]| {
            let [computed, reused, less, ttft, same, kl, right] = cells;
            writeln!(f, "{name:<18} {computed:>9} {reused:>9} {less:>11} {ttft:>12} {same:>14} {kl:>7} {right:>7}")
        };
        line(f, "tokens:", ["computed", "reused", "times less", "TTFT, median", "same answer", "KL", "right"])?;
        for pair in costs.chunks(2) {
            let prefilled = pair.last().map_or(0, Costs::computed);
            for cost in pair {
                let less = format!("{:.1}", prefilled as f64 / cost.computed().max(1) as f64);
                let ttft = format!("{:.1} ms", cost.median_ttft_ms());
                let right = cost.right_answers.map_or("–".to_owned(), |share| format!("{:.0} %", 100.0 * share));
                let same = with_error(cost.same_answers, *questions);
                let kl = cost.first_token_kl.map_or("–".to_owned(), |kl| format!("{kl:.4}"));
                let (computed, reused) = (cost.computed().to_string(), cost.reused_tokens.to_string());
                line(f, &cost.way, [&computed, &reused, &less, &ttft, &same, &kl, &right])?;
            }
        }
        writeln!(f, "\nSame answer: as from the memories' texts, ± the standard error. KL: how far the first token's")?;
        writeln!(f, "probabilities are from those after the texts, in nats, on the mean.\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The likeliest tokens of a vocabulary of 100, whose others share the rest.
    fn first(likeliest: &[(u32, f64)]) -> TokenLogprob {
        let rest = 1.0 - likeliest.iter().map(|(_, p)| p).sum::<f64>();
        let mut logits = vec![(rest / (100 - likeliest.len()) as f64).ln() as f32; 100];
        likeliest.iter().for_each(|&(token, p)| logits[token as usize] = p.ln() as f32);
        TokenLogprob::of(&logits, likeliest[0].0, likeliest.len())
    }

    #[test]
    fn a_divergence_is_that_of_the_likeliest_tokens_and_the_rest() {
        let p = first(&[(1, 0.7), (2, 0.2)]);
        assert!(divergence(&p, &p) < 1e-9);
        // Both know both tokens: 0.7 ln(0.7/0.5) + 0.2 ln(0.2/0.3) + 0.1 ln(0.1/0.2).
        let q = first(&[(1, 0.5), (2, 0.3)]);
        let expected = 0.7 * (0.7f64 / 0.5).ln() + 0.2 * (0.2f64 / 0.3).ln() + 0.1 * (0.1f64 / 0.2).ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-5);
        // A token that only one of them names is part of the rest: 0.7 ln(0.7/0.5) + 0.3 ln(0.3/0.5).
        let q = first(&[(1, 0.5), (3, 0.4)]);
        let expected = 0.7 * (0.7f64 / 0.5).ln() + 0.3 * (0.3f64 / 0.5).ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-5);
        // Nothing in common: all of it is the rest.
        assert!(divergence(&p, &first(&[(4, 0.9)])).abs() < 1e-9);
    }

    #[test]
    fn a_share_comes_with_its_standard_error() {
        assert_eq!(with_error(0.9, 100), "90.0 ± 3.0 %");
        assert_eq!(with_error(1.0, 100), "100.0 %");
    }
}
