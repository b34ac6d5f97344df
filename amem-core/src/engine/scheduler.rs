//! The thread that computes: what begins, what goes into the next step, and what has ended.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::{mpsc, oneshot};

use super::generate::Generator;
use super::queue::Queue;
use super::request::{Answering, Finally, Job, PrefillJob};
use super::{Choice, Completion, Delta, EngineOptions, Output};
use crate::{
    AppendOptions, Context, Error, Finish, Generation, KvChunk, Model, Namespace, Piece, Prefilling, Progress, Repair,
    Reservation, Result, Step, TokenLogprob, Usage,
};

/// Ends a context that nobody uses, if somebody has said how ([`Engine::make_room_with`](super::Engine::make_room_with)).
#[derive(Default)]
pub(super) struct MakeRoom(Mutex<Option<EndOne>>);

type EndOne = Arc<dyn Fn(usize) -> bool + Send + Sync>;

impl MakeRoom {
    pub(super) fn set(&self, end_one: EndOne) {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(end_one);
        // Without the lock, for nobody knows what it holds.
        drop(before);
    }

    /// Whether a context was ended for a request that found no room.
    fn end_one(&self, error: &Error) -> bool {
        let Error::KvCacheFull { needed, available, .. } = error else { return false };
        let missing = needed.saturating_sub(*available);
        let end_one = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        error.lacks_room_for_now() && end_one.is_some_and(|end| guarded(|| Ok(end(missing))).unwrap_or(false))
    }
}

/// Serves a queue until it is closed.
pub(super) fn run(model: &dyn Model, queue: &Queue, make_room: &MakeRoom, options: EngineOptions) {
    let _closes = CloseOnExit(queue);
    let (running, prefills) = (Vec::new(), VecDeque::new());
    let mut scheduler = Scheduler { model, queue, make_room, options, running, prefills, stalled: None };
    while scheduler.step() {}
    for running in scheduler.running {
        running.fail(Error::Cancelled);
    }
}

/// However the scheduler ends, nobody waits for it any more.
struct CloseOnExit<'q>(&'q Queue);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Scheduler<'m> {
    model: &'m dyn Model,
    queue: &'m Queue,
    make_room: &'m MakeRoom,
    options: EngineOptions,
    /// In the order in which prompts get their share of a step: who had one goes to the end.
    running: Vec<Running>,
    prefills: VecDeque<Prefill<'m>>,
    /// The output of the request for which the KV cache had no room. It is tried again when something has ended.
    stalled: Option<mpsc::UnboundedSender<Result<Output>>>,
}

/// Memories that are prefilled.
struct Prefill<'m> {
    job: PrefillJob,
    /// The next of its texts, if they have begun.
    texts: Option<Box<dyn Prefilling + 'm>>,
    /// How long these have taken.
    time: Duration,
}

/// Prefills that have long texts under way at most, for these hold KV caches of their own from step to step. Short texts are
/// complete in one step.
const MAX_PREFILLING: usize = 2;

/// A request that has begun.
struct Running {
    events: mpsc::UnboundedSender<Result<Output>>,
    finally: Option<Finally>,
    /// Told once the pieces' KV is loaded.
    loaded: Option<oneshot::Sender<()>>,
    generation: Generation,
    /// Whether answers are drawn once the prompt is computed.
    wants_answer: bool,
    limit: usize,
    started: Instant,
    usage: Usage,
    ttft: Duration,
    /// One for each answer, once the prompt is computed.
    branches: Vec<Branch>,
}

/// One answer on its way.
struct Branch {
    context: Box<dyn Context>,
    generator: Generator,
    /// Tokens of the prompt.
    prompt: usize,
    text: String,
    logprobs: Vec<TokenLogprob>,
    finish: Option<Finish>,
    /// Rows that it computes in this step.
    rows: usize,
}

impl Scheduler<'_> {
    /// One step. Returns false when the queue is closed.
    fn step(&mut self) -> bool {
        self.drop_abandoned();
        self.note_running();
        self.admit();
        if self.queue.is_closed() {
            return false;
        }
        self.prefill_memories();
        self.advance();
        self.note_running();
        true
    }

    fn note_running(&self) {
        let running = self.running.iter().map(|running| running.branches.len()).sum();
        self.queue.note(|stats| stats.running = running);
    }

    /// Ends what nobody waits for any more.
    fn drop_abandoned(&mut self) {
        self.prefills.retain(|prefill| !prefill.job.is_abandoned());
        let gone = self.running.extract_if(.., |running| running.events.is_closed()).collect::<Vec<_>>();
        // One that nobody waits for does not keep others from beginning.
        if !gone.is_empty() || self.stalled.as_ref().is_some_and(|events| events.is_closed()) {
            self.stalled = None;
        }
        gone.into_iter().for_each(|running| running.end(Some(Finish::Cancelled)));
    }

    /// Lets waiting requests begin. Waits for one if there is nothing else to do.
    fn admit(&mut self) {
        loop {
            let idle = self.running.is_empty() && self.prefills.is_empty();
            let branches: usize = self.running.iter().map(Running::answers).sum();
            if branches + self.prefills.len() >= self.options.max_running || (self.stalled.is_some() && !idle) {
                return;
            }
            let next = if idle { self.queue.wait_pop() } else { self.queue.try_pop() };
            let Some((owner, job)) = next else { return };
            match job {
                Job::Prefill(job) if job.is_abandoned() => {}
                Job::Prefill(job) => self.prefills.push_back(Prefill { job, texts: None, time: Duration::ZERO }),
                Job::Answer(job) => self.begin(&owner, *job),
            }
        }
    }

    fn begin(&mut self, owner: &Namespace, mut job: Answering) {
        if job.events.is_closed() {
            return job.refuse(Error::Cancelled);
        }
        let mut opened = guarded(|| self.open(&mut job));
        while matches!(&opened, Err(error) if self.make_room.end_one(error)) {
            opened = guarded(|| self.open(&mut job));
        }
        if let (Err(_), Some(context)) = (&opened, &mut job.request.context) {
            context.release();
        }
        match opened {
            Ok(running) => self.running.push(running),
            // Those who run will give room back.
            Err(error) if error.lacks_room_for_now() && !self.running.is_empty() => {
                self.stalled = Some(job.events.clone());
                self.queue.put_back(owner, Job::Answer(Box::new(job)));
            }
            Err(error) => job.refuse(error),
        }
    }

    /// A context with room for all that the request may need, and its pieces in it.
    fn open(&self, job: &mut Answering) -> Result<Running> {
        let (model, request) = (self.model, &mut job.request);
        let sampling = request.generation.sampling.clone().unwrap_or_else(|| model.sampling());
        let generator = Generator::new(&request.generation, &sampling)?;
        let limit = request.limit.min(model.info().context);
        let before = request.context.as_ref().map_or(0, |context| context.tokens().len());
        let prompt = before + request.pieces.iter().map(|piece| piece.tokens().len()).sum::<usize>();
        if prompt > limit {
            return Err(Error::TooLong { what: "prompt", tokens: prompt, limit });
        }
        let most = if request.wants_answer { prompt.saturating_add(request.generation.max_tokens) } else { prompt };
        let most = limit.min(most);
        let forks = if request.wants_answer { request.generation.n - 1 } else { 0 };
        let options = AppendOptions::new(request.repair.clone()).logits(usize::from(request.wants_answer));
        let mut opened = None;
        let context = match &mut request.context {
            Some(context) => context,
            None => opened.insert(model.open(0)?),
        };
        context.reserve(Reservation { tokens: most, forks, forked_at: prompt })?;
        context.append(&request.pieces, &options)?;
        let Some(context) = opened.or_else(|| request.context.take()) else { return Err(Error::Cancelled) };
        Ok(Running {
            events: job.events.clone(),
            finally: request.finally.take(),
            loaded: request.loaded.take(),
            generation: request.generation.clone(),
            wants_answer: request.wants_answer,
            limit,
            started: request.started,
            usage: Usage::default(),
            ttft: Duration::ZERO,
            branches: vec![Branch::new(context, generator, prompt)],
        })
    }

    /// Computes a run of the memory prefill that waited longest.
    fn prefill_memories(&mut self) {
        let under_way = self.prefills.iter().filter(|prefill| prefill.texts.is_some()).count();
        let may_go_on = |prefill: &Prefill<'_>| {
            let is_short = prefill.job.next_tokens() <= self.options.step_tokens;
            prefill.texts.is_some() || is_short || under_way < MAX_PREFILLING
        };
        let next = self.prefills.iter().position(may_go_on);
        let Some(mut prefill) = next.and_then(|index| self.prefills.remove(index)) else { return };
        let began = Instant::now();
        let computed = guarded(|| prefill.advance(self.model, self.options.step_tokens));
        prefill.time += began.elapsed();
        match computed {
            Ok(None) => self.prefills.push_back(prefill),
            Ok(Some((chunks, usage))) => {
                let time = std::mem::take(&mut prefill.time);
                self.queue.note(|stats| {
                    stats.prefilled_tokens += usage.prefilled as u64;
                    stats.prefill_seconds += time.as_secs_f64();
                });
                prefill.job.add(chunks, usage, time);
                if prefill.job.is_done() { prefill.job.finish(Ok(())) } else { self.prefills.push_back(prefill) }
            }
            Err(error) => prefill.job.finish(Err(error)),
        }
    }

    /// Computes the next step of whoever runs, and draws the tokens that follow.
    fn advance(&mut self) {
        let served = self.share_rows();
        let results = self.compute();
        self.take_results(results, served);
    }

    /// Says how many rows each branch computes in this step. Returns the index of the last request whose prompt has some.
    fn share_rows(&mut self) -> Option<usize> {
        let mut left = self.options.step_tokens;
        // Who decodes comes first: one row each.
        for branch in self.running.iter_mut().flat_map(|running| &mut running.branches) {
            branch.rows = usize::from(branch.is_decoding());
            left = left.saturating_sub(branch.rows);
        }
        let mut served = None;
        for (index, running) in self.running.iter_mut().enumerate() {
            for branch in running.branches.iter_mut().filter(|branch| branch.is_prefilling()) {
                // Prompts get what is left, and the first of them something in any case.
                branch.rows = branch.context.pending().min(left.max(usize::from(served.is_none())));
                left = left.saturating_sub(branch.rows);
                if branch.rows > 0 {
                    served = Some(index);
                }
            }
        }
        served
    }

    /// One pass of the model. Returns a result for each branch that has rows, in their order.
    fn compute(&mut self) -> Vec<Result<Progress>> {
        let branches = self.running.iter_mut().flat_map(|running| &mut running.branches);
        let mut steps: Vec<Step<'_>> = branches
            .filter(|branch| branch.rows > 0)
            .map(|branch| Step { context: &mut *branch.context, max_rows: branch.rows })
            .collect();
        let contexts = steps.len();
        if contexts == 0 {
            return Vec::new();
        }
        let results = guarded(|| Ok(self.model.advance(&mut steps)));
        self.queue.note(|stats| {
            stats.steps += 1;
            stats.contexts += contexts as u64;
        });
        results.unwrap_or_else(|error| {
            // Each is told; the message is the same for all.
            let message = error.to_string();
            (0..contexts).map(|_| Err(Error::Model(message.clone().into()))).collect()
        })
    }

    /// Lets requests go on after a step, and ends those that are finished or failed.
    fn take_results(&mut self, results: Vec<Result<Progress>>, served: Option<usize>) {
        let mut results = results.into_iter();
        let mut still = Vec::with_capacity(self.running.len());
        let mut waiting = Vec::new();
        for (index, mut running) in self.running.drain(..).enumerate() {
            let mut failed = None;
            // A prompt that is done is forked here. The branches that come of it have had no rows yet.
            for at in 0..running.branches.len() {
                if running.branches[at].rows == 0 {
                    continue;
                }
                let result = results.next().unwrap_or_else(|| Err(Error::Model("a step came to nothing".into())));
                let after = |progress| guarded(|| running.after(self.model, at, progress));
                if let Err(error) = result.and_then(after) {
                    failed.get_or_insert(error);
                }
            }
            if let Some(error) = failed {
                self.stalled = None;
                running.fail(error);
            } else if running.branches.iter().all(|branch| branch.finish.is_some()) {
                self.stalled = None;
                running.end(None);
            } else if Some(index) == served {
                // The last prompt that had a share, of which more may be left, goes to the end of the line.
                waiting.push(running);
            } else {
                still.push(running);
            }
        }
        still.append(&mut waiting);
        self.running = still;
    }
}

/// Runs what may panic in somebody's implementation of a model or a constraint, and turns that into an error.
fn guarded<T>(compute: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Error::Model(format!("the model or a constraint panicked: {text}").into()))
    })
}

impl<'m> Prefill<'m> {
    /// Computes the next run of about so many rows. Returns the chunks of some texts, once they are complete.
    fn advance(&mut self, model: &'m dyn Model, max_rows: usize) -> Result<Option<(Vec<KvChunk>, Usage)>> {
        let texts = match &mut self.texts {
            Some(texts) => texts,
            None => {
                let texts = self.job.take(max_rows);
                self.texts.insert(model.begin_prefill(&self.job.prefix, texts, self.job.measure)?)
            }
        };
        let done = texts.advance(max_rows)?;
        if done.is_some() {
            self.texts = None;
        }
        Ok(done)
    }
}

impl Branch {
    fn new(context: Box<dyn Context>, generator: Generator, prompt: usize) -> Self {
        Self { context, generator, prompt, text: String::new(), logprobs: Vec::new(), finish: None, rows: 0 }
    }

    /// Whether its prompt is still to be computed.
    fn is_prefilling(&self) -> bool {
        self.finish.is_none() && self.context.pending() > 0 && self.context.tokens().len() == self.prompt
    }

    /// Whether its last token is.
    fn is_decoding(&self) -> bool {
        self.finish.is_none() && self.context.pending() > 0 && self.context.tokens().len() > self.prompt
    }

    fn into_choice(self) -> (Box<dyn Context>, Choice) {
        let Self { context, generator, prompt, text, logprobs, finish, .. } = self;
        let tokens = generator.into_tokens();
        let written = context.tokens().len().saturating_sub(prompt).min(tokens.len());
        let unwritten = tokens[written..].to_vec();
        let finish = finish.unwrap_or(Finish::Cancelled);
        (context, Choice { text, tokens, unwritten, logprobs, finish })
    }
}

impl Running {
    /// Answers that are being computed, or will be once the prompt is.
    fn answers(&self) -> usize {
        self.branches.len().max(if self.wants_answer { self.generation.n } else { 1 })
    }

    /// Goes on after a branch's rows were computed.
    fn after(&mut self, model: &dyn Model, at: usize, progress: Progress) -> Result<()> {
        // The first step has loaded all there was to load. Whoever waited for it may be gone.
        self.loaded.take().into_iter().for_each(|loaded| _ = loaded.send(()));
        let Progress::Done(usage) = progress else { return Ok(()) };
        if self.branches[at].context.tokens().len() == self.branches[at].prompt {
            self.usage = usage;
            self.ttft = self.started.elapsed();
            if !self.wants_answer {
                self.branches[at].finish = Some(Finish::Length);
                return Ok(());
            }
            self.fork(model)?;
            // The prompt's logits are those of every answer's first token.
            (0..self.branches.len()).try_for_each(|at| self.draw(model, at))
        } else {
            self.draw(model, at)
        }
    }

    /// One context for each answer.
    fn fork(&mut self, model: &dyn Model) -> Result<()> {
        let Some(first) = self.branches.first_mut() else { return Ok(()) };
        let prompt = first.prompt;
        let sampling = self.generation.sampling.clone().unwrap_or_else(|| model.sampling());
        let mut others = Vec::new();
        for choice in 1..self.generation.n {
            let context = first.context.fork()?;
            let mut sampling = sampling.clone();
            // Equal seeds would draw equal answers.
            sampling.seed = sampling.seed.wrapping_add(choice as u64);
            let generator = Generator::new(&self.generation, &sampling)?;
            others.push(Branch::new(context, generator, prompt));
        }
        self.branches.extend(others);
        Ok(())
    }

    /// Draws the next token of an answer.
    fn draw(&mut self, model: &dyn Model, at: usize) -> Result<()> {
        let branch = &mut self.branches[at];
        let drawn = branch.generator.next(model, &*branch.context)?;
        branch.text.push_str(&drawn.text);
        branch.logprobs.extend(drawn.logprob.clone());
        branch.finish = drawn.finish;
        if branch.finish.is_none() && branch.context.tokens().len() >= self.limit {
            let (rest, stopped) = branch.generator.flush(model.chat())?;
            branch.text.push_str(&rest);
            branch.finish = Some(stopped.map_or(Finish::Length, Finish::StopText));
            self.tell(at, drawn.text + &rest, drawn.logprob);
            return Ok(());
        }
        self.tell(at, drawn.text, drawn.logprob);
        let branch = &mut self.branches[at];
        match (&branch.finish, drawn.token) {
            (None, Some(token)) => {
                branch.context.append(&[Piece::Fresh([token].into())], &AppendOptions::new(Repair::None))
            }
            _ => Ok(()),
        }
    }

    fn tell(&self, choice: usize, text: String, logprob: Option<TokenLogprob>) {
        if !text.is_empty() || logprob.is_some() {
            // Who has gone is noticed before the next step.
            let _ = self.events.unbounded_send(Ok(Output::Delta(Delta { choice, text, logprob })));
        }
    }

    /// Gives the contexts back and tells how it ended.
    fn end(self, finish: Option<Finish>) {
        let Self { events, finally, mut usage, ttft, mut branches, .. } = self;
        if let Some(finish) = finish {
            for branch in &mut branches {
                // What was appended and not computed does not count as written.
                let len = branch.context.tokens().len();
                branch.context.truncate(len);
                branch.finish.get_or_insert(finish.clone());
            }
        }
        let mut contexts = Vec::new();
        let mut choices = Vec::new();
        for branch in branches {
            let (mut context, choice) = branch.into_choice();
            context.release();
            usage.generated += choice.tokens.len();
            contexts.push(context);
            choices.push(choice);
        }
        let completion = Completion { choices, usage, ttft };
        if let Some(finally) = finally {
            finally((!contexts.is_empty()).then(|| contexts.swap_remove(0)), Ok(&completion));
        }
        // Whoever hears of the end finds their room free.
        drop(contexts);
        let _ = events.unbounded_send(Ok(Output::Done(completion)));
    }

    /// Gives the context back and tells what went wrong.
    fn fail(self, error: Error) {
        let Self { events, finally, branches, .. } = self;
        if let Some(finally) = finally {
            let context = branches.into_iter().next().map(|branch| {
                let mut context = branch.context;
                context.release();
                context
            });
            finally(context, Err(&error));
        } else {
            drop(branches);
        }
        let _ = events.unbounded_send(Err(error));
    }
}
