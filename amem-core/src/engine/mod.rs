//! The engine: many requests on one model, computed together.
//!
//! One thread owns all contexts that are being computed. It goes in steps: whoever decodes gets a row, what is left of a
//! step's tokens goes to prompts that are being prefilled, in runs, namespace by namespace; all of it is one pass of the
//! model ([`Model::advance`]). Requests join and leave between steps (continuous batching), so a short question does not
//! wait for a long answer, and a caller who is gone is noticed within one step. What a request yields does not depend
//! on what else is computed, as far as the model's [`Exactness`](crate::Exactness) goes.

mod constraint;
mod detokenize;
#[cfg(test)]
mod fixtures;
mod generate;
mod queue;
mod request;
mod scheduler;

use std::sync::Arc;
use std::thread::JoinHandle;

use futures_channel::{mpsc, oneshot};
use futures_lite::StreamExt;

pub use constraint::{Constraint, ConstraintSource};
pub use detokenize::Detokenizer;
pub use generate::{Finish, Generation};
pub use request::{Choice, Completion, Delta, Output, OutputStream, Prefilled, Request};

use self::queue::Queue;
use self::request::{Job, PrefillJob};
use self::scheduler::MakeRoom;
use crate::{Context, Error, Model, Namespace, Piece, PrefillText, Repair, Result, Token, Usage};

/// How an engine goes about its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Rows that one step computes, about (vLLM's `max_num_batched_tokens`): more are used better by the machine, fewer let
    /// each token come sooner. 512 unless said otherwise.
    pub step_tokens: usize,
    /// Answers that are computed together at most. 64 unless said otherwise.
    pub max_running: usize,
    /// Requests that wait at most; one more is refused with [`Error::Overloaded`]. 1,024 unless said otherwise.
    pub max_waiting: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { step_tokens: 512, max_running: 64, max_waiting: 1024 }
    }
}

impl EngineOptions {
    /// With about so many rows a step.
    #[must_use]
    pub fn step_tokens(self, rows: usize) -> Self {
        Self { step_tokens: rows, ..self }
    }

    /// With so many answers computed together at most.
    #[must_use]
    pub fn max_running(self, answers: usize) -> Self {
        Self { max_running: answers, ..self }
    }

    /// With so many requests waiting at most.
    #[must_use]
    pub fn max_waiting(self, requests: usize) -> Self {
        Self { max_waiting: requests, ..self }
    }
}

/// What an engine is doing and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Requests that wait to begin.
    pub waiting: usize,
    /// Answers that are being computed.
    pub running: usize,
    /// Passes of the model so far.
    pub steps: u64,
    /// Contexts advanced in all of these.
    pub contexts: u64,
    /// Tokens of memories that were prefilled.
    pub prefilled_tokens: u64,
    /// Seconds that prefilling them took. Their quotient is the rate that loading stored KV competes with.
    pub prefill_seconds: f64,
}

/// Many requests on one model, computed together. Cheap to clone; the engine ends with its last clone, and what is not
/// finished then is cancelled.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    model: Arc<dyn Model>,
    queue: Arc<Queue>,
    make_room: Arc<MakeRoom>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// An engine for this model, on a thread of its own.
    ///
    /// # Errors
    /// [`Error::BadValue`] for options that are zero; [`Error::Model`] when no thread can be started.
    pub fn start(model: Arc<dyn Model>, options: EngineOptions) -> Result<Self> {
        for (what, value) in [
            ("step tokens", options.step_tokens),
            ("running requests", options.max_running),
            ("waiting requests", options.max_waiting),
        ] {
            if value == 0 {
                return Err(Error::BadValue { what, value: "0".to_owned(), expected: "1 or more" });
            }
        }
        let queue = Arc::new(Queue::new(options.max_waiting));
        let make_room: Arc<MakeRoom> = Arc::default();
        let (scheduled, served, asked) = (Arc::clone(&queue), Arc::clone(&model), Arc::clone(&make_room));
        let thread = std::thread::Builder::new()
            .name("amem-engine".to_owned())
            .spawn(move || scheduler::run(&*served, &scheduled, &asked, options))
            .map_err(|error| Error::Model(error.into()))?;
        Ok(Self(Arc::new(Inner { model, queue, make_room, thread: Some(thread) })))
    }

    /// Has this called whenever a request that is to begin finds the KV cache full, and would have room if other contexts ended
    /// ([`Error::lacks_room_for_now`]). It gets the tokens that room is missing for, ends a context that nobody uses, as
    /// a server ends an idle session, and says whether it did: then the request is tried again. Otherwise the request waits until
    /// others end, or fails if none runs. Where all that it could end would not suffice, it had better end nothing.
    ///
    /// It is called on the engine's thread, where everybody waits for it, and takes the place of one that was given before.
    /// The engine keeps it, so it should hold no clone of the engine.
    pub fn make_room_with(&self, end_one: impl Fn(usize) -> bool + Send + Sync + 'static) {
        self.0.make_room.set(Arc::new(end_one));
    }

    /// The model.
    pub fn model(&self) -> &Arc<dyn Model> {
        &self.0.model
    }

    /// Answers a request, as soon as there is room for it. Dropping the stream ends the work within one step.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when too many requests wait already; [`Error::BadValue`] for settings that make no sense.
    /// What goes wrong later comes with the stream.
    pub fn submit(&self, mut request: Request) -> Result<OutputStream> {
        request.generation.check()?;
        let (sender, receiver) = mpsc::unbounded();
        // What lies in memory cannot turn out to be damaged.
        let in_memory = |piece: &Piece| !matches!(piece, Piece::Cached(chunk) if chunk.contiguous().is_none());
        let mut loading = None;
        if !request.pieces.iter().all(in_memory) {
            let (loaded, receiver) = oneshot::channel();
            (request.loaded, loading) = (Some(loaded), Some(receiver));
        }
        let owner = request.owner.clone();
        self.0.queue.push(&owner, Job::Answer(Box::new(request::Answering { request, events: sender })))?;
        Ok(OutputStream::new(receiver, loading))
    }

    /// Computes texts' KV ([`Model::begin_prefill`]) between the steps of other requests. Dropping the future ends the work
    /// within one step.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when too many requests wait already; as [`Model::prefill`].
    pub async fn prefill(
        &self,
        owner: &Namespace,
        prefix: Arc<[Token]>,
        texts: Vec<PrefillText>,
        measure: bool,
    ) -> Result<Prefilled> {
        let (sender, receiver) = oneshot::channel();
        self.0.queue.push(owner, Job::Prefill(PrefillJob::new(prefix, texts, measure, sender)))?;
        receiver.await.unwrap_or(Err(Error::Cancelled))
    }

    /// Appends pieces to a context, or to an empty one, and computes them between the steps of other requests.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when too many requests wait already; [`Error::KvCacheFull`] when the KV cache has no room; as
    /// [`Context::append`] and [`Model::advance`].
    pub async fn blend(
        &self,
        owner: &Namespace,
        context: Option<Box<dyn Context>>,
        pieces: Vec<Piece>,
        repair: Repair,
    ) -> Result<(Box<dyn Context>, Usage)> {
        let (give_back, returned) = oneshot::channel();
        let request = Request::new(owner.clone(), pieces).repair(repair).without_answer();
        let request = match context {
            Some(context) => request.context(context),
            None => request,
        };
        let request = request.finally(Box::new(move |context, _| drop(give_back.send(context))));
        let mut output = self.submit(request)?;
        let usage = loop {
            match output.next().await {
                Some(Ok(Output::Done(completion))) => break completion.usage,
                Some(Ok(Output::Delta(_))) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Cancelled),
            }
        };
        let context = returned.await.ok().flatten().ok_or(Error::Cancelled)?;
        Ok((context, usage))
    }

    /// What it is doing and has done.
    pub fn stats(&self) -> EngineStats {
        self.0.queue.stats()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A scheduler that panicked has closed the queue, and its callers' streams have ended.
            let _ = thread.join();
        }
    }
}
