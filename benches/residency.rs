//! Which chunks should stay when memory is short?
//!
//! Replays uses of chunks in a tier under each residency policy of the crate, and prints what each had to prefill, in
//! thousands of tokens, and over what one had to who knows the future (Belady's rule, by cost, size and next use):
//! `/ clairvoyant` where that one may let a new chunk go at once, as the policies may, and `/ demand fill` where it keeps
//! what it has just computed. With ±, the figure is a mean over seeds, and its standard error.
//!
//! ```text
//! cargo bench --bench residency -- [--trace FILE] [--svg FILE]
//! ```
//!
//! `mixed` and `zipf` have 60 memories of 256 to 512 tokens, 200 questions and a budget of 10 × 256 tokens first. Their
//! first rows are the ten seeds that a test asserts the goals on; `again` has 200 others. `agents` is a synthetic week of
//! many users. The trace (or the environment variable `AMEM_TRACE`) is a file of requests as published with Mooncake.
//!
//! A time is that of a use, the replay's own bookkeeping included: hundreds of nanoseconds, next to a prefill of
//! milliseconds.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use amem_benches::residency::{Fill, MakePolicy, POLICIES, Pattern, Use, agents, clairvoyant, replay, small, trace};
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
        cases.push(Case::of(name, uses(0..few), &TOKENS));
        if !is_test {
            cases.push(Case::of(&format!("{name}, again"), uses(1000..1200), &TOKENS));
        }
    }
    cases.push(Case::by_share("agents", agents(1, if is_test { 200 } else { 20_000 })));
    if let Some(file) = file {
        cases.push(Case::by_share("trace", trace(&std::fs::read_to_string(file)?)?));
    }
    println!(
        "| {:<14} | {:>9} | {:<7} | {:>6} | {:>11} | {:>13} | {:>13} | {:>9} | {:>9} | {:>6} |",
        "uses",
        "budget",
        "policy",
        "hits",
        "prefill, kt",
        "/ clairvoyant",
        "/ demand fill",
        "in, kt",
        "out, kt",
        "ns/use"
    );
    println!("|{}|", ["---"; 10].join("|"));
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

    fn show(&self) -> String {
        if self.1 > 0.0 { format!("{:.3} ± {:.3}", self.0, self.1) } else { format!("{:.3}", self.0) }
    }
}

impl Case {
    fn of(name: &str, seeds: Vec<Vec<Use>>, budgets: &[u64]) -> Self {
        let footprint = seeds.iter().map(|uses| all_tokens(uses)).sum::<u64>() as f64 / seeds.len() as f64;
        let mut rows = Vec::new();
        for budget in budgets {
            let floors = |fill| seeds.iter().map(|uses| clairvoyant(uses, *budget, fill)).collect::<Vec<f64>>();
            let floors = [floors(Fill::IfWorthIt), floors(Fill::Always)];
            let row = |(policy, make)| Row::new((policy, make), *budget, *budget as f64 / footprint, &seeds, &floors);
            rows.extend(POLICIES.map(row));
        }
        Self { name: name.to_owned(), rows }
    }

    fn by_share(name: &str, uses: Vec<Use>) -> Self {
        let budgets = SHARES.map(|share| (share * all_tokens(&uses) as f64) as u64);
        Self::of(name, vec![uses], &budgets)
    }

    fn print(&self) {
        for row in &self.rows {
            println!(
                "| {:<14} | {:>9} | {:<7} | {:>4.1} % | {:>11.1} | {:>13} | {:>13} | {:>9.1} | {:>9.1} | {:>6.0} |",
                self.name,
                row.budget,
                row.policy,
                100.0 * row.hits,
                row.prefill / 1e3,
                row.clairvoyant.show(),
                row.demand_fill.show(),
                row.inserted / 1e3,
                row.evicted / 1e3,
                row.nanoseconds,
            );
        }
    }
}

impl Row {
    fn new(
        (policy, make): (&'static str, MakePolicy),
        budget: u64,
        share: f64,
        seeds: &[Vec<Use>],
        floors: &[Vec<f64>; 2],
    ) -> Self {
        let replays: Vec<_> = seeds.iter().map(|uses| replay(uses, budget, make())).collect();
        let over = |floors: &[f64]| {
            let ratios: Vec<f64> = replays.iter().zip(floors).map(|(replayed, floor)| replayed.work / floor).collect();
            Mean::of(&ratios)
        };
        let uses = replays.iter().map(|replayed| replayed.uses).sum::<usize>() as f64;
        Self {
            budget,
            share,
            policy,
            hits: replays.iter().map(|replayed| replayed.hits).sum::<usize>() as f64 / uses,
            prefill: replays.iter().map(|replayed| replayed.work).sum::<f64>() / seeds.len() as f64,
            clairvoyant: over(&floors[0]),
            demand_fill: over(&floors[1]),
            inserted: replays.iter().map(|replayed| replayed.inserted as f64).sum::<f64>() / seeds.len() as f64,
            evicted: replays.iter().map(|replayed| replayed.evicted as f64).sum::<f64>() / seeds.len() as f64,
            nanoseconds: replays.iter().map(|replayed| replayed.time.as_secs_f64()).sum::<f64>() * 1e9 / uses,
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
