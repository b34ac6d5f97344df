//! Answers: what is asked for, what comes back, and the thread that generates it.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_core::Stream;

use crate::engine::{Generated, generate};
use crate::{Context, Error, Finish, Generation, Model, Piece, Record, Repair, Result, Token, Usage};

/// A question and how it is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The question.
    pub question: String,
    /// Memories to recall at most.
    pub k: usize,
    /// How they are repaired; `None` for the memory's own way.
    pub repair: Option<Repair>,
    /// How the answer is generated.
    pub generation: Generation,
}

impl<T: Into<String>> From<T> for Ask {
    fn from(question: T) -> Self {
        Self { question: question.into(), k: 8, repair: None, generation: Generation::default() }
    }
}

/// A record that was recalled for a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Recollection {
    /// The record.
    pub record: Record,
    /// How well it fits. Comparable within one answer only; higher is better.
    pub score: f32,
}

/// An answer and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What the model said.
    pub text: String,
    /// The memories that were recalled for this question and stood in its context, oldest first.
    pub recalled: Vec<Recollection>,
    /// What was computed and what was not.
    pub usage: Usage,
    /// From the call to the first token.
    pub ttft: Duration,
    /// Why it ended.
    pub finish: Finish,
}

/// What an [`AnswerStream`] yields.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The next piece of text.
    Text(String),
    /// The whole answer. Nothing comes after it.
    Done(Answer),
}

/// An answer as it is generated. Dropping it stops the work after the token in progress.
pub struct AnswerStream {
    events: UnboundedReceiver<Result<Event>>,
}

impl AnswerStream {
    /// Generates on a thread of its own.
    pub(crate) fn start(work: impl FnOnce(&Events) -> Result<Answer> + Send + 'static) -> Self {
        let (sender, events) = unbounded();
        blocking::unblock(move || {
            let events = Events(sender);
            let last = work(&events).map(Event::Done);
            // Nobody listens any more if this fails, so there is nobody to tell.
            let _ = events.0.unbounded_send(last);
        })
        .detach();
        Self { events }
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// What the model met.
    pub async fn answer(mut self) -> Result<Answer> {
        loop {
            match std::future::poll_fn(|task| Pin::new(&mut self).poll_next(task)).await {
                Some(Ok(Event::Done(answer))) => return Ok(answer),
                Some(Ok(Event::Text(_))) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Cancelled),
            }
        }
    }
}

impl Stream for AnswerStream {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.events).poll_next(task)
    }
}

/// Where a generating thread sends what it has.
pub(crate) struct Events(UnboundedSender<Result<Event>>);

impl Events {
    /// Sends text, if there is some; returns whether anybody still listens.
    fn text(&self, text: &str) -> bool {
        if text.is_empty() {
            return !self.closed();
        }
        self.0.unbounded_send(Ok(Event::Text(text.to_owned()))).is_ok()
    }

    fn closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// All that is needed to answer in a context.
pub(crate) struct Job {
    /// What goes into the context; the last one is the question.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) repair: Repair,
    pub(crate) generation: Generation,
    /// Tokens that the context may hold.
    pub(crate) limit: usize,
    pub(crate) recalled: Vec<Recollection>,
    pub(crate) cost: Cost,
}

/// What it took to get as far as the context.
pub(crate) struct Cost {
    pub(crate) usage: Usage,
    /// What stands in the context was put there for this question, and is in `usage` already.
    pub(crate) opened: bool,
    pub(crate) started: Instant,
}

/// An answer and its tokens.
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    /// Without the token that ended it.
    pub(crate) tokens: Vec<Token>,
    /// The last of them, which were drawn but not put into the context.
    pub(crate) unwritten: Vec<Token>,
}

/// Extends a context by a job's pieces and generates the answer.
pub(crate) fn answer(model: &dyn Model, context: &mut dyn Context, job: Job, events: &Events) -> Result<Answered> {
    let Job { pieces, repair, generation, limit, recalled, cost: Cost { mut usage, opened, started } } = job;
    if events.closed() {
        return Err(Error::Cancelled);
    }
    let sampling = generation.sampling.clone().unwrap_or_else(|| model.sampling());
    sampling.check()?;
    let mut blended = model.extend(context, &pieces, &repair)?;
    if opened {
        blended.resident = 0;
    }
    usage += blended;
    let ttft = started.elapsed();
    let before = context.tokens().len();
    let Generated { text, tokens, finish } =
        generate(model, context, limit, &generation, &sampling, |text| events.text(text))?;
    usage.generated = tokens.len();
    let unwritten = tokens[(context.tokens().len() - before).min(tokens.len())..].to_vec();
    let answer = Answer { text: text.trim().to_owned(), recalled, usage, ttft, finish };
    Ok(Answered { answer, tokens, unwritten })
}
