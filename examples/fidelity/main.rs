//! How faithful are answers from reused KV, and what do they cost?
//!
//! Draws small worlds of notes that the demo model has never seen, asks about them, and compares every way of repairing
//! a blended context with a cold prefill of the same tokens: whether the whole answer is the same, whether it is right,
//! how far the first token's distribution has moved (KL divergence, in nats), and how much was computed for it.
//!
//! Work is rows times layers computed to choose rows and to repair them, as a share of what a cold prefill computes for
//! the system line and the memories. The question itself is computed once by every method, the cold one too, so it is
//! on neither side; the columns with "+q" have it on both.
//!
//! Up to 60 memories fit into the demo model's 2,048 tokens, but it was trained mostly on up to twelve. With more, a cold
//! prefill is wrong more often too: compare "correct" with that of "all" there.
//!
//! ```text
//! cargo run --release --example fidelity -- --seed 7 --questions 1000 --memories 2..12 --chart fidelity.svg
//! cargo run --release --example fidelity -- --seed 3 --questions 3000 --memories 13..16
//! cargo run --release --example fidelity -- --questions 600 --check 98.6 9.6
//! cargo run --release --example fidelity -- --seed 3 --questions 3000 --sessions
//! cargo run --release --example fidelity -- --seed 3 --questions 3000 --encodings
//! ```
//!
//! `--sessions` asks the questions of a world one after another, in sessions whose memories stay in place. `--encodings` compares
//! not repairs but the [`Encoding`](amem_core::Encoding)s that KV can be stored in.

mod arithmetics;
mod chart;
mod check;
mod encodings;
mod report;
mod sessions;

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amem_core::transformer::{Options, Transformer};
use amem_core::{Budget, Context, KvChunk, Model, Piece, Repair, Token, Usage};
use amem_cpu::Cpu;
use amem_demo::world::{Kind, Split, World, WorldOptions};
use clap::Parser;

use crate::check::Claim;

/// Compares ways of repairing reused KV with a cold prefill, on worlds that the demo model has never seen.
#[derive(Parser)]
struct Args {
    /// Draws other worlds.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Questions to ask, at least.
    #[arg(long, default_value_t = 400)]
    questions: usize,
    /// Memories in a world, both ends included.
    #[arg(long, default_value = "2..12")]
    memories: Memories,
    /// Where to write the figures: an array of {repair, budget, kind, n, agreement, correct, kl, work}.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to draw agreement over work, as SVG.
    #[arg(long)]
    chart: Option<PathBuf>,
    /// Fail unless the default repair keeps to this claim: answers equal to cold prefill's and work, both in percent.
    /// Two standard errors are allowed for.
    #[arg(long, num_args = 2, value_names = ["AGREEMENT", "WORK"], value_parser = share)]
    check: Option<Vec<f64>>,
    /// Compare the encodings of stored KV with f32, in the place of repairs with a cold prefill.
    #[arg(long, conflicts_with_all = ["json", "chart", "check"])]
    encodings: bool,
    /// Compare fast arithmetic, and weights of 8 and 4 bits, with exact f32, in the place of repairs with a cold prefill.
    #[arg(long, conflicts_with_all = ["json", "chart", "check", "encodings"])]
    arithmetics: bool,
    /// Compare ways of repairing memories that stay in place over a session, in the place of single questions.
    #[arg(long, conflicts_with_all = ["json", "chart", "check", "encodings", "arithmetics"])]
    sessions: bool,
    /// Threads; each answers its own questions.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
}

#[derive(Clone, Copy)]
struct Memories {
    least: usize,
    most: usize,
}

impl FromStr for Memories {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once("..").ok_or("expected LO..HI")?;
        let number = |text: &str| text.trim_start_matches('=').parse::<usize>().map_err(|error| error.to_string());
        let (least, most) = (number(least)?, number(most)?);
        if least == 0 || least > most || most > 60 {
            return Err("expected 1 <= LO <= HI <= 60".to_owned());
        }
        Ok(Self { least, most })
    }
}

/// A share, from percent.
fn share(percent: &str) -> Result<f64, String> {
    let percent: f64 = percent.parse().map_err(|_| "expected a number")?;
    if (0.0..=100.0).contains(&percent) { Ok(percent / 100.0) } else { Err("expected 0 to 100".to_owned()) }
}

const KINDS: [Kind; 4] = [Kind::OneHop, Kind::TwoHop, Kind::Coreference, Kind::Unknown];
const QUESTIONS_PER_WORLD: usize = 6;
const LONGEST_ANSWER: usize = 24;

/// A way of repairing, and the name and budget that the table gives it.
struct Method {
    name: &'static str,
    budget: f64,
    repair: Repair,
}

/// What is compared, grouped by method.
fn methods() -> Vec<Method> {
    let mut methods = vec![Method { name: "none", budget: 0.0, repair: Repair::None }];
    for rows in [1, 2, 3] {
        methods.push(Method { name: "heads (EPIC)", budget: rows as f64, repair: Repair::FirstRows(rows) });
    }
    for ratio in [0.0, 0.05, 0.15] {
        let repair = Repair::Deviation { ratio: ratio as f32, check_layer: 1 };
        methods.push(Method { name: "deviation (CacheBlend)", budget: ratio, repair });
    }
    for ratio in [0.05, 0.1, 0.2] {
        let repair = Repair::Attention { budget: Budget::Ratio(ratio as f32), layers: 1..2 };
        methods.push(Method { name: "attention, layer 1", budget: ratio, repair });
    }
    for ratio in [0.05, 0.1, 0.2] {
        let repair = Repair::Attention { budget: Budget::Ratio(ratio as f32), layers: 3..5 };
        methods.push(Method { name: "attention (InfoFlow)", budget: ratio, repair });
    }
    for ratio in [0.05, 0.1, 0.15, 0.2] {
        let repair = Repair::Weighted { budget: Budget::Ratio(ratio as f32), layers: 0..0 };
        methods.push(Method { name: "sensitivity", budget: ratio, repair });
    }
    for ratio in [0.025, 0.05, 0.075, 0.1, 0.15, 0.2] {
        let repair = Repair::Weighted { budget: Budget::Ratio(ratio as f32), layers: 1..2 };
        methods.push(Method { name: "weighted (default)", budget: ratio, repair });
    }
    methods.push(Method { name: "all", budget: 1.0, repair: Repair::All });
    methods
}

/// What one method did with one question.
#[derive(Clone, Copy)]
struct Trial {
    method: usize,
    kind: Kind,
    agrees: bool,
    correct: bool,
    kl: f64,
    work: f64,
    work_with_question: f64,
}

#[derive(Clone)]
struct Reply {
    tokens: Vec<Token>,
    first: Vec<f32>,
    usage: Usage,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args = Args::parse();
    let worlds = draw(&args);
    let total: usize = worlds.iter().map(|(_, questions)| questions.len()).sum();
    let Memories { least, most } = args.memories;
    if args.encodings {
        println!("{total} questions, worlds of {least} to {most} memories, seed {}\n", args.seed);
        encodings::compare(&worlds, args.threads)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.arithmetics {
        println!("{total} questions, worlds of {least} to {most} memories, seed {}\n", args.seed);
        arithmetics::compare(&worlds, args.threads)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.sessions {
        println!("{total} questions, worlds of {least} to {most} memories, seed {}\n", args.seed);
        sessions::compare(&worlds, args.threads)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = Options::default();
    options.name = "demo".to_owned();
    let model = Transformer::load(&amem_demo::files(), Cpu::with_threads(1)?, options)?;
    let methods = methods();
    let watched = std::io::stderr().is_terminal();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || -> Result<Vec<Trial>, amem_core::Error> {
        let mut trials = Vec::new();
        while let Some((world, questions)) = worlds.get(next.fetch_add(1, Ordering::Relaxed)) {
            trials.extend(judge(&model, &methods, world, questions)?);
            let done = done.fetch_add(questions.len(), Ordering::Relaxed) + questions.len();
            if watched {
                eprint!("\r{done} of {total} questions");
                let _ = std::io::stderr().flush();
            }
        }
        Ok(trials)
    };
    let mut trials = Vec::new();
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let threads: Vec<_> = (0..args.threads.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            trials.extend(thread.join().map_err(|_| "a thread panicked")??);
        }
        Ok(())
    })?;
    if watched {
        eprintln!();
    }
    println!("{total} questions, worlds of {least} to {most} memories, seed {}\n", args.seed);
    report::print_table(&methods, &trials);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report::json(&methods, &trials))?)?;
        println!("figures by kind of question: {}", path.display());
    }
    if let Some(path) = &args.chart {
        chart::draw(path, &methods, &trials)?;
        println!("agreement over work: {}", path.display());
    }
    if let Some(&[agreement, work]) = args.check.as_deref() {
        let broken = check::broken(Claim { agreement, work }, &methods, &trials);
        broken.iter().for_each(|claim| eprintln!("does not hold: {claim}"));
        if !broken.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
        println!("the claim holds");
    }
    Ok(ExitCode::SUCCESS)
}

/// Worlds and questions about them, until there are enough.
fn draw(args: &Args) -> Vec<(World, Vec<amem_demo::world::Question>)> {
    let Memories { least, most } = args.memories;
    let mut worlds = Vec::new();
    let mut count = 0;
    for index in 0.. {
        if count >= args.questions || index > 100 * args.questions {
            break;
        }
        let memories = least + index % (most - least + 1);
        let options = WorldOptions { memories, split: Split::Evaluation, ..WorldOptions::default() };
        let world = World::draw(args.seed.wrapping_mul(1_000_003).wrapping_add(index as u64), &options);
        let questions = world.questions(QUESTIONS_PER_WORLD, &KINDS);
        count += questions.len();
        worlds.push((world, questions));
    }
    worlds
}

/// Puts every question to every method.
fn judge(
    model: &Transformer<Cpu>,
    methods: &[Method],
    world: &World,
    questions: &[amem_demo::world::Question],
) -> amem_core::Result<Vec<Trial>> {
    let layout = model.chat().layout(amem_demo::SYSTEM)?;
    let texts = world.memories.iter().map(|text| Ok(layout.memory(&model.chat().encode(text)?)));
    let texts: Vec<Arc<[Token]>> = texts.collect::<amem_core::Result<_>>()?;
    let named = |prefix: &[Token], texts: &[Arc<[Token]>]| model.info().prefill_texts("fidelity", prefix, texts);
    let (prefix, _) = model.prefill(&[], &named(&[], &[Arc::clone(&layout.prefix)]), false)?;
    let (memories, _) = model.prefill(&layout.prefix, &named(&layout.prefix, &texts), true)?;
    let chunks: Vec<KvChunk> = prefix.into_iter().chain(memories).collect();
    let tokens: Vec<Token> = chunks.iter().flat_map(|chunk| chunk.tokens().iter().copied()).collect();
    let mut trials = Vec::new();
    for question in questions {
        let asked = [&layout.to_question, model.chat().encode(&question.text)?.as_slice(), &layout.to_answer].concat();
        let asked = Piece::Fresh(asked.into());
        let cold = reply(model, &[Piece::Fresh(tokens.as_slice().into()), asked.clone()], &Repair::None)?;
        let cold_work = (tokens.len() * model.info().shape.layers) as f64;
        let question_work = (asked.tokens().len() * model.info().shape.layers) as f64;
        for (index, method) in methods.iter().enumerate() {
            let pieces: Vec<Piece> = chunks.iter().cloned().map(Piece::Cached).chain([asked.clone()]).collect();
            let reply = reply(model, &pieces, &method.repair)?;
            let work = (reply.usage.work_choosing + reply.usage.work_repairing) as f64;
            trials.push(Trial {
                method: index,
                kind: question.kind,
                agrees: reply.tokens == cold.tokens,
                correct: model.chat().decode(&reply.tokens)?.trim() == question.answer,
                kl: divergence(&cold.first, &reply.first),
                work: work / cold_work,
                work_with_question: (work + question_work) / (cold_work + question_work),
            });
        }
    }
    Ok(trials)
}

/// The most likely answer, token by token.
fn reply(model: &impl Model, pieces: &[Piece], repair: &Repair) -> amem_core::Result<Reply> {
    let (mut context, usage) = model.blend(pieces, repair)?;
    let first = context.logits().to_vec();
    let mut tokens = Vec::new();
    while tokens.len() < LONGEST_ANSWER {
        let token = likeliest(&*context);
        if model.chat().stops().contains(&token) {
            break;
        }
        tokens.push(token);
        model.extend(&mut *context, &[Piece::Fresh([token].into())], &Repair::None)?;
    }
    Ok(Reply { tokens, first, usage })
}

fn likeliest(context: &dyn Context) -> Token {
    let best = context.logits().iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(token, _)| token as Token)
}

/// KL(cold ‖ blended), in nats.
fn divergence(cold: &[f32], blended: &[f32]) -> f64 {
    let log_probabilities = |logits: &[f32]| -> Vec<f64> {
        let top = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from(x - top).exp()).sum();
        logits.iter().map(|x| f64::from(x - top) - sum.ln()).collect()
    };
    let (p, q) = (log_probabilities(cold), log_probabilities(blended));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}
