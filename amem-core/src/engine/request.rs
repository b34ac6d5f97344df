//! What is asked of an engine, and what comes back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use futures_channel::{mpsc, oneshot};
use futures_core::Stream;
use futures_lite::StreamExt;

use crate::{
    Context, Error, Finish, Generation, KvChunk, Namespace, Piece, PrefillText, Repair, Result, Token, TokenLogprob,
    Usage,
};

/// A prompt to answer.
pub struct Request {
    /// Whose it is: namespaces share the engine fairly.
    pub(super) owner: Namespace,
    /// What the pieces are appended to; an empty one if `None`.
    pub(super) context: Option<Box<dyn Context>>,
    pub(super) pieces: Vec<Piece>,
    pub(super) repair: Repair,
    pub(super) generation: Generation,
    /// Whether an answer is drawn. Otherwise the pieces are computed, and that is all.
    pub(super) wants_answer: bool,
    /// Tokens that the context may hold in all.
    pub(super) limit: usize,
    pub(super) started: Instant,
    /// Called on the engine's thread before the stream ends, with the first answer's context.
    pub(super) finally: Option<Finally>,
    /// Told when the pieces' KV was loaded, by the first step; dropped if that failed, or the request did not begin.
    pub(super) loaded: Option<oneshot::Sender<()>>,
}

/// What takes a request's context back, and learns what came of it.
pub(crate) type Finally = Box<dyn FnOnce(Option<Box<dyn Context>>, Result<&Completion, &Error>) + Send>;

impl Request {
    /// Pieces to blend and answer, the last of them fresh, with [`Repair::default`] and [`Generation::default`].
    pub fn new(owner: Namespace, pieces: Vec<Piece>) -> Self {
        let (repair, generation) = (Repair::default(), Generation::default());
        let (context, limit, started) = (None, usize::MAX, Instant::now());
        Self {
            owner,
            context,
            pieces,
            repair,
            generation,
            wants_answer: true,
            limit,
            started,
            finally: None,
            loaded: None,
        }
    }

    /// Which rows of cached pieces are computed again.
    #[must_use]
    pub fn repair(self, repair: Repair) -> Self {
        Self { repair, ..self }
    }

    /// How the answer is generated.
    #[must_use]
    pub fn generation(self, generation: Generation) -> Self {
        Self { generation, ..self }
    }

    /// Appends to this context rather than to an empty one.
    #[must_use]
    pub fn context(self, context: Box<dyn Context>) -> Self {
        Self { context: Some(context), ..self }
    }

    /// Tokens that the context may hold in all, if fewer than the model can.
    #[must_use]
    pub fn limit(self, tokens: usize) -> Self {
        Self { limit: tokens, ..self }
    }

    /// From when on the time to the first token counts, if not from now.
    #[must_use]
    pub fn started(self, started: Instant) -> Self {
        Self { started, ..self }
    }

    /// With no answer: the pieces are computed, and that is all.
    #[must_use]
    pub(super) fn without_answer(self) -> Self {
        Self { wants_answer: false, ..self }
    }

    /// With a use for the context once the answer is complete, given up, or failed.
    #[must_use]
    pub(crate) fn finally(self, finally: Finally) -> Self {
        Self { finally: Some(finally), ..self }
    }
}

/// New text of one answer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Delta {
    /// Which of the answers that were asked for, from 0.
    pub choice: usize,
    /// The text. Empty where a token completes no character, or may belong to a stop text.
    pub text: String,
    /// How likely the token that it came with was, if that was asked for.
    pub logprob: Option<TokenLogprob>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// What the model said.
    pub text: String,
    /// What was drawn, the token that ended it not included.
    pub tokens: Vec<Token>,
    /// The last of them, which were drawn but not put into the context.
    pub unwritten: Vec<Token>,
    /// How likely each token was, if that was asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Why it ended.
    pub finish: Finish,
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// The answers, in order: [`Generation::n`] of them.
    pub choices: Vec<Choice>,
    /// What was computed and what was not.
    pub usage: Usage,
    /// From the start of the request to the first token.
    pub ttft: Duration,
}

/// What an [`OutputStream`] yields.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Output {
    /// The next piece of an answer.
    Delta(Delta),
    /// All of it. Nothing comes after it.
    Done(Completion),
}

/// A request's answers as they are generated. Dropping it ends the work within one step.
pub struct OutputStream {
    events: mpsc::UnboundedReceiver<Result<Output>>,
    /// Told when the request's KV was loaded, where that may fail.
    loading: Option<oneshot::Receiver<()>>,
    /// What was received already.
    received: Option<Result<Output>>,
}

impl OutputStream {
    pub(super) fn new(events: mpsc::UnboundedReceiver<Result<Output>>, loading: Option<oneshot::Receiver<()>>) -> Self {
        Self { events, loading, received: None }
    }

    /// Waits until the KV of the request's pieces was loaded, by the request's first step. It may take as long as requests
    /// before it need, but for KV that lies in memory, which is not waited for.
    ///
    /// # Errors
    /// [`Error::DamagedKv`] if some of it was lost; then nothing was generated. Any other error is left to the stream.
    pub(crate) async fn loaded(&mut self) -> Result<()> {
        let Some(loading) = self.loading.take() else { return Ok(()) };
        if loading.await.is_ok() {
            return Ok(());
        }
        // What went wrong was told before.
        match self.next().await {
            Some(Err(error @ Error::DamagedKv { .. })) => Err(error),
            received => {
                self.received = received;
                Ok(())
            }
        }
    }
}

impl Stream for OutputStream {
    type Item = Result<Output>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if let Some(received) = self.received.take() {
            return Poll::Ready(Some(received));
        }
        Pin::new(&mut self.events).poll_next(task)
    }
}

/// Texts whose KV was computed.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Prefilled {
    /// A chunk for each text, in order.
    pub chunks: Vec<KvChunk>,
    /// What was computed.
    pub usage: Usage,
    /// How long that took, without the time that it waited for others.
    pub time: Duration,
}

/// What a scheduler does.
pub(super) enum Job {
    Answer(Box<Answering>),
    Prefill(PrefillJob),
}

/// A request and where its output goes.
pub(super) struct Answering {
    pub(super) request: Request,
    pub(super) events: mpsc::UnboundedSender<Result<Output>>,
}

/// Texts to compute, a run at a time.
pub(super) struct PrefillJob {
    pub(super) prefix: Arc<[Token]>,
    /// Those that have not begun, last one first.
    texts: Vec<PrefillText>,
    pub(super) measure: bool,
    done: Prefilled,
    result: oneshot::Sender<Result<Prefilled>>,
}

impl Job {
    /// Whether nobody waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Job::Answer(job) => job.events.is_closed(),
            Job::Prefill(job) => job.is_abandoned(),
        }
    }

    /// Ends a job that did not begin.
    pub(super) fn refuse(self, error: Error) {
        match self {
            Job::Answer(job) => job.refuse(error),
            Job::Prefill(job) => job.finish(Err(error)),
        }
    }
}

impl Answering {
    /// Gives the context of a request that did not begin back, without the room that was reserved for it.
    fn give_back(&mut self, error: &Error) {
        if let Some(finally) = self.request.finally.take() {
            let context = self.request.context.take().map(|mut context| {
                context.release();
                context
            });
            finally(context, Err(error));
        }
    }

    /// Ends a request before it began.
    pub(super) fn refuse(mut self, error: Error) {
        self.give_back(&error);
        // Nobody listens any more if this fails, so there is nobody to tell.
        let _ = self.events.unbounded_send(Err(error));
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.give_back(&Error::Cancelled);
    }
}

impl PrefillJob {
    pub(super) fn new(
        prefix: Arc<[Token]>,
        mut texts: Vec<PrefillText>,
        measure: bool,
        result: oneshot::Sender<Result<Prefilled>>,
    ) -> Self {
        texts.reverse();
        Self { prefix, texts, measure, done: Prefilled::default(), result }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.result.is_canceled()
    }

    /// Tokens of the next text.
    pub(super) fn next_tokens(&self) -> usize {
        self.texts.last().map_or(0, |text| text.tokens.len())
    }

    /// The next texts, of about so many tokens in all and at least one.
    pub(super) fn take(&mut self, tokens: usize) -> Vec<PrefillText> {
        let mut left = tokens;
        let mut taken = Vec::new();
        while let Some(text) = self.texts.pop_if(|text| taken.is_empty() || text.tokens.len() <= left) {
            left = left.saturating_sub(text.tokens.len());
            taken.push(text);
        }
        taken
    }

    pub(super) fn add(&mut self, chunks: Vec<KvChunk>, usage: Usage, time: Duration) {
        self.done.chunks.extend(chunks);
        self.done.usage += usage;
        self.done.time += time;
    }

    pub(super) fn is_done(&self) -> bool {
        self.texts.is_empty()
    }

    pub(super) fn finish(self, result: Result<()>) {
        let result = result.map(|()| self.done);
        // Nobody waits any more if this fails.
        let _ = self.result.send(result);
    }
}
