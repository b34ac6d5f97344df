//! `amem bench`: what questions on one memory cost when its KV is kept, and when its text is prefilled each time.
//!
//! The same questions are asked in two ways, and each way is compared with a prompt of the same memories' texts that is
//! prefilled whole, as a memory of texts does:
//!
//! - **session**: a working set stays in place; a question brings memories that it needs and that do not stand yet. They stand
//!   behind those that came before them, where the prompt of texts has all of them oldest first: so an answer may differ for
//!   the order of the memories as well as for their KV.
//! - **blend**: each question by itself, with `k` memories, whose kept KV is put together and repaired. The prompt of texts has
//!   them in the same order, so what differs is due to KV that was not repaired.
//!
//! What is counted is tokens that were computed before the first one of the answer, and the time to that. The likeliest token is
//! taken each time, whatever the model's makers recommend, so that two answers differ only where probabilities do.

mod chart;
mod report;

use std::error::Error;
use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amem_core::{
    Ask, Budget, Event, Generation, Memory, Model, Namespace, Output, Piece, Recollection, Record, Repair, Request,
    Sampling, SessionOptions, Token, TokenLogprob,
};
use amem_demo::world::{Kind, World, WorldOptions};
use futures_lite::{Stream, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};

use super::device::Compute;
use super::open::{self, ModelName, Recalled};
use report::{Asked, Pair, Report};

/// Whose memory it is.
const USER: &str = "bench";
/// Tokens that the demo model answers well from.
const DEMO_BUDGET_TOKENS: usize = 256;
/// Questions about the small world, unless it is said how many.
const DEMO_QUESTIONS: usize = 100;
/// The likeliest first tokens that are compared, as many as the engine tells.
const TOP_TOKENS: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A Hugging Face model directory, or a model's name on the Hub; the embedded demo model if left out.
    #[arg(long, value_parser = open::model_name)]
    model: Option<ModelName>,
    #[command(flatten)]
    compute: Compute,
    /// The memories, one a line; notes of a small world if left out.
    #[arg(long, requires = "queries_file")]
    memory_file: Option<PathBuf>,
    /// The questions, one a line.
    #[arg(long, requires = "memory_file")]
    queries_file: Option<PathBuf>,
    /// Memories of the small world.
    #[arg(long, default_value_t = 40, conflicts_with = "memory_file")]
    items: usize,
    /// Questions at most; all of the file's, or 100 about the small world, if left out.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    queries: Option<u32>,
    /// Tokens of a session at most. If left out, 256 for the demo model, which was trained on short contexts, and as many
    /// as it can hold for any other.
    #[arg(long)]
    budget_tokens: Option<usize>,
    #[command(flatten)]
    recalled: Recalled,
    /// The share of cached tokens that are computed again in their new context, 0 to 1; 0.1 if left out. In the session, of
    /// those that it begins with.
    #[arg(long, value_name = "SHARE", value_parser = open::share)]
    recompute_ratio: Option<f32>,
    /// Tokens to answer with at most.
    #[arg(long, default_value_t = 24)]
    max_tokens: usize,
    /// Writes all numbers to this file, as JSON.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Draws the costs as they add up into this file, as SVG.
    #[arg(long)]
    chart: Option<PathBuf>,
}

impl Args {
    pub(crate) async fn run(self) -> Result<(), Box<dyn Error>> {
        let (model, _) = open::model(self.model.as_ref(), &self.compute).await?;
        let corpus = self.corpus()?;
        let session = self.session(&model, &corpus).await?;
        let blend = self.blend(&model, &corpus).await?;
        let report = Report::new(model.info().name.clone(), &corpus, &[("session", session), ("blend", blend)]);
        print!("{report}");
        if let Some(path) = &self.out {
            fs::write(path, serde_json::to_vec_pretty(&report)?)?;
            println!("numbers: {}", path.display());
        }
        if let Some(path) = &self.chart {
            chart::draw(path, &report)?;
            println!("chart: {}", path.display());
        }
        Ok(())
    }

    fn corpus(&self) -> Result<Corpus, Box<dyn Error>> {
        let most = self.queries.map(|queries| queries as usize);
        let mut corpus = match (&self.memory_file, &self.queries_file) {
            (Some(memories), Some(questions)) => {
                Corpus { memories: lines(memories)?, questions: lines(questions)?, right: None }
            }
            _ => {
                let world = World::draw(1, &WorldOptions { memories: self.items, ..WorldOptions::default() });
                let questions = world.questions(most.unwrap_or(DEMO_QUESTIONS), &[Kind::OneHop, Kind::TwoHop]);
                let (questions, right) = questions.into_iter().map(|question| (question.text, question.answer)).unzip();
                Corpus { memories: world.memories.clone(), questions, right: Some(right) }
            }
        };
        corpus.questions.truncate(most.unwrap_or(usize::MAX));
        if corpus.memories.is_empty() || corpus.questions.is_empty() {
            return Err("there is nothing to ask: give at least one memory and one question".into());
        }
        Ok(corpus)
    }

    /// Asks all questions in one session, and each again with the text of all that stands in it.
    async fn session(&self, model: &Arc<dyn Model>, corpus: &Corpus) -> Result<Vec<Pair>, Box<dyn Error>> {
        let memory = corpus.memory(model, self.recompute_ratio).await?;
        let mut options = SessionOptions::default().conversation(false);
        if let Some(ratio) = self.recompute_ratio {
            options = options.opening_repair(Repair::Weighted { budget: Budget::Ratio(ratio), layers: 0..0 });
        }
        options.budget_tokens = self.budget_tokens.or(self.model.is_none().then_some(DEMO_BUDGET_TOKENS));
        let mut session = memory.session(USER, options)?;
        let (bar, mut pairs) = (bar(corpus.questions.len(), "session")?, Vec::new());
        for question in &corpus.questions {
            let (kept, _) = answer(session.ask_stream(self.question(question)).await?).await?;
            session.settle().await;
            let prefilled = self.prefill(&memory, &session.resident(), question).await?;
            pairs.push(Pair { kept, prefilled });
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(pairs)
    }

    /// Asks each question by itself, and again with the text of the memories that were recalled for it.
    async fn blend(&self, model: &Arc<dyn Model>, corpus: &Corpus) -> Result<Vec<Pair>, Box<dyn Error>> {
        let memory = corpus.memory(model, self.recompute_ratio).await?;
        let (bar, mut pairs) = (bar(corpus.questions.len(), "blend")?, Vec::new());
        for question in &corpus.questions {
            let (kept, recalled) = answer(memory.ask_stream(USER, self.question(question)).await?).await?;
            let recalled: Vec<Record> = recalled.into_iter().map(|found| found.record).collect();
            let prefilled = self.prefill(&memory, &recalled, question).await?;
            pairs.push(Pair { kept, prefilled });
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(pairs)
    }

    fn question(&self, question: &str) -> Ask {
        Ask::new(question).k(self.recalled.k()).generation(self.generation())
    }

    fn generation(&self) -> Generation {
        Generation::default().max_tokens(self.max_tokens).sampling(Sampling::default()).logprobs(TOP_TOKENS)
    }

    /// Answers from a prompt with these memories' texts, all of which is computed.
    async fn prefill(&self, memory: &Memory, records: &[Record], question: &str) -> Result<Asked, Box<dyn Error>> {
        let (layout, chat) = (memory.layout(), memory.model().chat());
        let mut prompt: Vec<Token> = layout.prefix.to_vec();
        for record in records {
            prompt.extend_from_slice(&memory.tokens(&record.text)?);
        }
        prompt.extend_from_slice(&layout.to_question);
        prompt.extend(chat.encode(question)?);
        prompt.extend_from_slice(&layout.to_answer);
        let request = Request::new(Namespace::new(USER)?, vec![Piece::Fresh(prompt.into())]);
        let (mut output, mut first) = (memory.engine().submit(request.generation(self.generation()))?, None);
        while let Some(output) = output.next().await {
            match output? {
                Output::Delta(delta) => first = first.or(delta.logprob),
                Output::Done(completion) => {
                    let text = completion.choices.first().map_or("", |choice| choice.text.trim()).to_owned();
                    return Ok(Asked { text, first, usage: completion.usage, ttft: completion.ttft });
                }
                _ => {}
            }
        }
        Err("the engine ended".into())
    }
}

/// Waits for an answer. With it come the memories that were recalled for it.
async fn answer(
    mut stream: impl Stream<Item = amem_core::Result<Event>> + Unpin,
) -> Result<(Asked, Vec<Recollection>), Box<dyn Error>> {
    let mut first: Option<TokenLogprob> = None;
    while let Some(event) = stream.next().await {
        match event? {
            Event::Delta(delta) => first = first.or(delta.logprob),
            Event::Done(answer) => {
                let asked = Asked { text: answer.text, first, usage: answer.usage, ttft: answer.ttft };
                return Ok((asked, answer.recalled));
            }
            _ => {}
        }
    }
    Err("the engine ended".into())
}

/// What is asked of what.
struct Corpus {
    memories: Vec<String>,
    questions: Vec<String>,
    /// The answers that are right, where they are known.
    right: Option<Vec<String>>,
}

impl Corpus {
    /// A memory of it, none of which is computed yet.
    async fn memory(&self, model: &Arc<dyn Model>, ratio: Option<f32>) -> Result<Memory, Box<dyn Error>> {
        let mut memory = Memory::builder(Arc::clone(model));
        if let Some(ratio) = ratio {
            memory = memory.repair(open::repair(ratio));
        }
        let memory = memory.build()?;
        memory.remember_all(USER, self.memories.iter().map(String::as_str)).await?;
        Ok(memory)
    }
}

/// The lines of a file that say something.
fn lines(path: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn bar(questions: usize, way: &'static str) -> Result<ProgressBar, Box<dyn Error>> {
    let bar = if stderr().is_terminal() { ProgressBar::new(questions as u64) } else { ProgressBar::hidden() };
    bar.set_message(way);
    Ok(bar.with_style(ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len} questions, {eta} left")?))
}
