//! `amem ask`: the main job from a shell.

use std::error::Error;
use std::io::Write;

use amem_core::{Ask, Event, Generation};
use futures_lite::StreamExt;

use super::open::{self, Opened, Place, Tuning};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The question.
    question: String,
    /// A text to remember before the question is asked; may be given several times.
    #[arg(long)]
    remember: Vec<String>,
    /// Whose memory it is.
    #[arg(long, default_value = "default")]
    user: String,
    /// Memories to recall at most.
    #[arg(long, default_value_t = 8)]
    k: usize,
    /// Tokens to answer with at most.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    #[command(flatten)]
    place: Place,
}

/// Answers on standard output, as the text comes; what was reused goes to standard error.
pub(crate) async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let Opened { memory, tiers, .. } = open::memory(&args.place, &Tuning::default()).await?;
    for added in memory.remember_all(args.user.as_str(), args.remember).await? {
        if added.is_duplicate() {
            eprintln!("known already: {}", added.record.text);
        }
    }
    let generation = Generation::default().max_tokens(args.max_tokens);
    let ask = Ask::new(args.question).k(args.k).generation(generation);
    let mut answer = memory.ask_stream(args.user.as_str(), ask).await?;
    let mut out = std::io::stdout().lock();
    let mut begun = false;
    while let Some(event) = answer.next().await {
        match event? {
            Event::Delta(delta) => {
                let text = if begun { delta.text.as_str() } else { delta.text.trim_start() };
                begun |= !text.is_empty();
                write!(out, "{text}")?;
                out.flush()?;
            }
            Event::Done(answer) => {
                writeln!(out)?;
                let ttft = 1e3 * answer.ttft.as_secs_f64();
                eprintln!(
                    "{} memories recalled; {}; first token after {ttft:.1} ms",
                    answer.recalled.len(),
                    answer.usage
                );
            }
            _ => {}
        }
    }
    Ok(tiers.close().await?)
}
