//! What the questions cost, as numbers.

use std::fmt;
use std::time::Duration;

use amem_core::Usage;
use serde::Serialize;

use super::Corpus;

/// A question that was answered.
pub(super) struct Asked {
    pub(super) text: String,
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
        right_answers: corpus.right.as_ref().map(|right| share(asked, right.iter())),
    }
}

/// The share of answers with these texts.
fn share<'a>(asked: &[&Asked], texts: impl Iterator<Item = &'a String>) -> f64 {
    let same = asked.iter().zip(texts).filter(|(asked, text)| asked.text == **text).count();
    same as f64 / asked.len().max(1) as f64
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, memories, questions, costs } = self;
        writeln!(f, "{questions} questions on {memories} memories, model {model}\n")?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, cells: [&str; 6]| {
            let [computed, reused, less, ttft, same, right] = cells;
            writeln!(f, "{name:<18} {computed:>9} {reused:>9} {less:>11} {ttft:>12} {same:>12} {right:>7}")
        };
        line(f, "tokens:", ["computed", "reused", "times less", "TTFT, median", "same answer", "right"])?;
        for pair in costs.chunks(2) {
            let prefilled = pair.last().map_or(0, Costs::computed);
            for cost in pair {
                let less = format!("{:.1}", prefilled as f64 / cost.computed().max(1) as f64);
                let ttft = format!("{:.1} ms", cost.median_ttft_ms());
                let percent = |share: f64| format!("{:.0} %", 100.0 * share);
                let (same, right) = (percent(cost.same_answers), cost.right_answers.map_or("–".to_owned(), percent));
                let (computed, reused) = (cost.computed().to_string(), cost.reused_tokens.to_string());
                line(f, &cost.way, [&computed, &reused, &less, &ttft, &same, &right])?;
            }
        }
        writeln!(f)
    }
}
