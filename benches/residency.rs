//! Which chunks should stay when memory is short?
//!
//! Replays uses of chunks in a tier under each residency policy of the crate, and prints what each had to prefill, in
//! thousands of tokens, and over what one had to who knows the future (Belady's rule, by cost, size and next use):
//! `/ clairvoyant` where that one may let a new chunk go at once, as the policies may, and `/ demand fill` where it keeps
//! what it has just computed. Under `/ A0`, it is over what one had to who knows how likely each memory is asked for but
//! not which is next: on the average nobody without foresight can have less. At a `=`, that is at most 1 percent less:
//! there is nothing left to win. `/ Value` is over what the default policy had. With ±, the figure is a mean over seeds,
//! and its standard error.
//!
//! ```text
//! cargo bench --bench residency -- [--trace FILE] [--svg FILE]
//! ```
//!
//! `mixed` and `zipf` have 60 memories of 256 to 512 tokens, 200 questions and a budget of 10 × 256 tokens first. Their
//! first rows are the ten seeds that a test asserts the goals on; `again` has 1,000 others. `agents` is a synthetic week of
//! many users. The trace (or the environment variable `AMEM_TRACE`) is a file of requests as published with Mooncake.
//!
//! A time is that of a use, the replay's own bookkeeping included: hundreds of nanoseconds, next to a prefill of
//! milliseconds.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use amem_benches::residency::{
    Fill, MakePolicy, POLICIES, Pattern, Replayed, Use, agents, by_odds, clairvoyant, replay, small, trace,
};
use plotters::prelude::*;

/// Budgets in tokens for a few memories, and as shares of what all chunks occupy for many.
const TOKENS: [u64; 3] = [10 * 256, 20 * 256, 40 * 256];
const SHARES: [f64; 4] = [0.01, 0.05, 0.1, 0.2];

fn main() -> Result<(), Box<dyn Error>> {
    let Options { trace: file, svg, is_test } = options()?;
    let few = if is_test { 2 } else { 10 };
    let mut cases = Vec::new();
    for (name, pattern, questions) in Pattern::ALL {
        let uses = |seeds: std::ops::Range<u64>| seeds.map(|seed| small(pattern, questions, seed)).collect();
        let odds = pattern.odds();
        cases.push(Case::of(name, uses(0..few), odds.as_deref(), &TOKENS));
        if !is_test {
            cases.push(Case::of(&format!("{name}, again"), uses(1000..2000), odds.as_deref(), &TOKENS));
        }
    }
    cases.push(Case::by_share("agents", agents(1, if is_test { 200 } else { 20_000 })));
    if let Some(file) = file {
        cases.push(Case::by_share("trace", trace(&std::fs::read_to_string(file)?)?));
    }
    println!(
        "| {:<14} | {:>9} | {:<7} | {:>6} | {:>11} | {:>13} | {:>13} | {:>15} | {:>13} | {:>9} | {:>9} | {:>6} |",
        "uses",
        "budget",
        "policy",
        "hits",
        "prefill, kt",
        "/ clairvoyant",
        "/ demand fill",
        "/ A0",
        "/ Value",
        "in, kt",
        "out, kt",
        "ns/use"
    );
    println!("|{}|", ["---"; 12].join("|"));
    cases.iter().for_each(Case::print);
    if let Some(svg) = svg {
        draw(&svg, &cases)?;
    }
    Ok(())
}

struct Options {
    trace: Option<PathBuf>,
    svg: Option<PathBuf>,
    /// Whether only to see that it works.
    is_test: bool,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let trace = std::env::var_os("AMEM_TRACE").map(PathBuf::from);
    // As criterion's benches: cargo says `--bench` when times are wanted.
    let is_test = !std::env::args().any(|argument| argument == "--bench") || std::env::args().any(|a| a == "--test");
    let mut options = Options { trace, svg: None, is_test };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut file = || arguments.next().map(PathBuf::from).ok_or(format!("{argument} wants a file"));
        match argument.as_str() {
            "--trace" => options.trace = Some(file()?),
            "--svg" => options.svg = Some(file()?),
            // Cargo's own, and criterion's filters.
            _ => {}
        }
    }
    Ok(options)
}

/// Uses, under several budgets.
struct Case {
    name: String,
    rows: Vec<Row>,
}

/// One policy under one budget.
struct Row {
    budget: u64,
    /// The budget as a share of all tokens.
    share: f64,
    policy: &'static str,
    hits: f64,
    /// Tokens to prefill.
    prefill: f64,
    clairvoyant: Mean,
    demand_fill: Mean,
    by_odds: Option<Mean>,
    value: Mean,
    inserted: f64,
    evicted: f64,
    nanoseconds: f64,
}

/// A mean and its standard error.
struct Mean(f64, f64);

impl Mean {
    fn of(numbers: &[f64]) -> Self {
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        Self(mean, (variance / count).sqrt())
    }

    /// A sum over another one, and the error of that.
    fn ratio(numbers: &[f64], others: &[f64]) -> Self {
        let ratio = numbers.iter().sum::<f64>() / others.iter().sum::<f64>();
        let residuals: Vec<f64> = numbers.iter().zip(others).map(|(number, other)| number - ratio * other).collect();
        Self(ratio, Self::of(&residuals).1 / Self::of(others).0)
    }

    fn show(&self) -> String {
        if self.1 > 0.0 { format!("{:.3} ± {:.3}", self.0, self.1) } else { format!("{:.3}", self.0) }
    }
}

impl Case {
    fn of(name: &str, seeds: Vec<Vec<Use>>, odds: Option<&[f64]>, budgets: &[u64]) -> Self {
        let footprint = seeds.iter().map(|uses| all_tokens(uses)).sum::<u64>() as f64 / seeds.len() as f64;
        let mut rows = Vec::new();
        for budget in budgets {
            let floor = |floor: &dyn Fn(&[Use]) -> f64| seeds.iter().map(|uses| floor(uses)).collect::<Vec<f64>>();
            let replays: [Vec<Replayed>; POLICIES.len()] =
                POLICIES.map(|(_, make)| seeds.iter().map(|uses| replay(uses, *budget, make())).collect());
            let floors = Floors {
                clairvoyant: floor(&|uses| clairvoyant(uses, *budget, Fill::IfWorthIt)),
                demand_fill: floor(&|uses| clairvoyant(uses, *budget, Fill::Always)),
                by_odds: odds.map(|odds| floor(&|uses| by_odds(uses, odds, *budget))),
                value: works(&replays[POLICIES.len() - 1]),
            };
            let share = *budget as f64 / footprint;
            let row = |((policy, _), replays): (&(&'static str, MakePolicy), &Vec<Replayed>)| {
                Row::new(policy, *budget, share, replays, &floors)
            };
            rows.extend(POLICIES.iter().zip(&replays).map(row));
        }
        Self { name: name.to_owned(), rows }
    }

    fn by_share(name: &str, uses: Vec<Use>) -> Self {
        let budgets = SHARES.map(|share| (share * all_tokens(&uses) as f64) as u64);
        Self::of(name, vec![uses], None, &budgets)
    }

    fn print(&self) {
        for row in &self.rows {
            println!(
                "| {:<14} | {:>9} | {:<7} | {:>4.1} % | {:>11.1} | {:>13} | {:>13} | {:>15} | {:>13} | {:>9.1} | {:>9.1} | {:>6.0} |",
                self.name,
                row.budget,
                row.policy,
                100.0 * row.hits,
                row.prefill / 1e3,
                row.clairvoyant.show(),
                row.demand_fill.show(),
                row.by_odds
                    .as_ref()
                    .map(|mean| mean.show() + if mean.0 <= 1.01 { " =" } else { "  " })
                    .unwrap_or_default(),
                row.value.show(),
                row.inserted / 1e3,
                row.evicted / 1e3,
                row.nanoseconds,
            );
        }
    }
}

/// What to compare with, for each seed.
struct Floors {
    clairvoyant: Vec<f64>,
    demand_fill: Vec<f64>,
    by_odds: Option<Vec<f64>>,
    value: Vec<f64>,
}

/// What each replay had to prefill.
fn works(replays: &[Replayed]) -> Vec<f64> {
    replays.iter().map(|replayed| replayed.work).collect()
}

impl Row {
    fn new(policy: &'static str, budget: u64, share: f64, replays: &[Replayed], floors: &Floors) -> Self {
        let works = works(replays);
        let over = |floors: &[f64]| {
            let ratios: Vec<f64> = works.iter().zip(floors).map(|(work, floor)| work / floor).collect();
            Mean::of(&ratios)
        };
        let mean = |number: fn(&Replayed) -> f64| replays.iter().map(number).sum::<f64>() / replays.len() as f64;
        let uses = mean(|replayed| replayed.uses as f64);
        Self {
            budget,
            share,
            policy,
            hits: mean(|replayed| replayed.hits as f64) / uses,
            prefill: mean(|replayed| replayed.work),
            clairvoyant: over(&floors.clairvoyant),
            demand_fill: over(&floors.demand_fill),
            by_odds: floors.by_odds.as_ref().map(|floors| Mean::ratio(&works, floors)),
            value: Mean::ratio(&works, &floors.value),
            inserted: mean(|replayed| replayed.inserted as f64),
            evicted: mean(|replayed| replayed.evicted as f64),
            nanoseconds: mean(|replayed| replayed.time.as_secs_f64()) * 1e9 / uses,
        }
    }
}

/// Tokens of all chunks together.
fn all_tokens(uses: &[Use]) -> u64 {
    uses.iter().map(|u| (u.chunk, u64::from(u.tokens))).collect::<HashMap<_, _>>().values().sum()
}

/// Draws a chart for each kind of uses: prefill over the clairvoyant's, by budget. Of two sets of seeds, the larger one.
fn draw(path: &Path, cases: &[Case]) -> Result<(), Box<dyn Error>> {
    let is_repeated = |case: &Case| cases.iter().any(|other| other.name == format!("{}, again", case.name));
    let shown: Vec<&Case> = cases.iter().filter(|case| !is_repeated(case)).collect();
    let columns = 4;
    let size = (1040, 40 + 270 * shown.len().div_ceil(columns) as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled("Tokens to prefill, over what a clairvoyant prefills, by budget", ("sans-serif", 18))?;
    for (case, area) in shown.iter().zip(root.split_evenly((shown.len().div_ceil(columns), columns))) {
        let percent = |row: &Row| 100.0 * row.share;
        let low = case.rows.iter().map(percent).fold(f64::INFINITY, f64::min);
        let high = case.rows.iter().map(percent).fold(0.0, f64::max);
        let most = case.rows.iter().map(|row| row.clairvoyant.0).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(36)
            .caption(case.name.trim_end_matches(", again"), ("sans-serif", 15))
            .build_cartesian_2d((low..high).log_scale(), 1.0..most * 1.04)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("budget, % of all chunks")
            .x_labels(4)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()?;
        for (index, (name, _)) in POLICIES.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let width = if *name == "Value" { 3 } else { 1 };
            let points =
                case.rows.iter().filter(|row| row.policy == *name).map(|row| (percent(row), row.clairvoyant.0));
            let line = LineSeries::new(points, color.stroke_width(width)).point_size(3);
            let legend = move |(x, y)| PathElement::new([(x, y), (x + 12, y)], color.stroke_width(width));
            chart.draw_series(line)?.label(*name).legend(legend);
        }
        if case.name.starts_with("mixed") {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerLeft)
                .background_style(WHITE.mix(0.9))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }
    }
    root.present()?;
    Ok(())
}
