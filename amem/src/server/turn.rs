//! From a question to its answer, whatever API it came by.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use amem_core::{Answer, AnswerStream, Ask, Error, Event, Finish, Message, Namespace, Prompt, Repair, Usage};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use utoipa::ToSchema;

use super::choice::{Calls, Choice, Listener, Shown};
use super::sessions::{InUse, SessionName};
use super::{Mode, Server};
use crate::http::{ApiError, Result};

/// A question, and how it is to be answered.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// Whose memory it is asked of.
    pub(crate) namespace: Namespace,
    /// The session that it is asked in, if it names one.
    pub(crate) session: Option<String>,
    /// Tokens that the session may hold at most, if it is opened for this turn.
    pub(crate) budget_tokens: Option<usize>,
    /// Whether KV of memories is used that is not exact where it stands. Otherwise all such rows are computed again: what a
    /// memory of texts alone would cost.
    pub(crate) residency: bool,
    /// Whether an answer may call several of the tools that it was given.
    pub(crate) parallel_calls: bool,
    /// What is asked.
    pub(crate) ask: Ask,
}

impl Turn {
    /// A question by itself.
    pub(crate) fn new(namespace: Namespace, ask: Ask) -> Self {
        Self { namespace, session: None, budget_tokens: None, residency: true, parallel_calls: true, ask }
    }

    fn calls(&self) -> Calls {
        match (self.ask.tools.is_empty(), self.parallel_calls) {
            (true, _) => Calls::None,
            (false, false) => Calls::One,
            (false, true) => Calls::Any,
        }
    }

    /// One for each answer that is asked for.
    fn listeners(&self) -> Vec<Listener> {
        (0..self.ask.generation.n).map(|_| Listener::new(self.calls())).collect()
    }
}

/// What was recalled, reused and computed for an answer: the object `amem` of every chat format.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Report {
    /// Whose memory was asked.
    user: String,
    /// The session that it was asked in.
    session: Option<String>,
    /// The ids of the memories that were recalled for this question.
    recalled: Vec<String>,
    /// Tokens that stood in the context when the answer began: the system line, memories, what was said, the question.
    resident_tokens: usize,
    /// Memories that stood in it; in a session, those of earlier questions too.
    n_turns_resident: usize,
    /// Tokens whose KV was held and used as it was, without the system line.
    memory_tokens_reused: usize,
    /// Tokens of memories that had no KV and were computed.
    memory_tokens_prefilled_now: usize,
    /// Cached tokens that were computed again in their new context.
    repaired_tokens: usize,
    /// Tokens that had no KV and were computed: those of memories, of the question and of what stands around it.
    prefilled_tokens: usize,
    /// Whether any of these tokens were reused.
    kv_reused: bool,
    /// Seconds to the first token.
    ttft_s: f64,
    /// Seconds to the last.
    latency_s: f64,
}

/// Answers as they are generated. Dropping it ends the work.
pub(crate) struct Running {
    server: Server,
    turn: Turn,
    stream: AnswerStream,
    /// The session, which does not end before the answer does.
    _in_use: Option<InUse>,
    started: Instant,
    /// One for each answer.
    listeners: Vec<Listener>,
    /// What is to be told before the stream goes on.
    ready: VecDeque<Progress>,
    /// Whether nothing comes from the stream any more.
    is_over: bool,
}

/// Answers that are complete.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    /// The answers, in order.
    pub(crate) choices: Vec<Choice>,
    /// What was computed for all of them.
    pub(crate) usage: Usage,
    /// What it took.
    pub(crate) report: Report,
}

/// What [`Running`] answers yield.
#[derive(Debug)]
pub(crate) enum Progress {
    /// New text of one of the answers, without what is or may become the call of a tool.
    Text {
        /// Which of the answers, from 0.
        choice: usize,
        /// The text.
        shown: Shown,
    },
    /// A tool that one of the answers calls. All its calls come behind its text.
    Call {
        /// Which of the answers, from 0.
        choice: usize,
        /// Which of its calls, from 0.
        index: usize,
        /// The call. Its id is as in [`Choice::tool_calls`].
        call: amem_core::ToolCall,
    },
    /// All of it. Nothing comes after it.
    Done(Box<Answered>),
}

/// Bytes of what is said and of tools, from which on the tokens take so long to make that other requests would wait.
pub(super) const LONG_TEXT: usize = 64 << 10;

/// Whether what is asked is long.
fn is_long(ask: &Ask) -> bool {
    let said = match &ask.prompt {
        Prompt::Messages(messages) => messages.iter().map(message_bytes).sum(),
        Prompt::Question(question) => question.len(),
        _ => 0,
    };
    let tools: usize = ask.tools.iter().map(|tool| tool.description.len() + tool.parameters.len()).sum();
    said + tools > LONG_TEXT
}

fn message_bytes(message: &Message) -> usize {
    message.text.len() + message.tool_calls.iter().map(|call| call.arguments.len()).sum::<usize>()
}

impl Server {
    /// Tokens that the model is told what is asked in, if no memory is recalled for it. Those of long texts are counted one
    /// at a time, on a thread on which nobody waits for anything else.
    ///
    /// # Errors
    /// What [`amem_core::Memory::prompt_tokens`] says; 429 when too many requests wait.
    pub(crate) async fn prompt_tokens(&self, ask: &Ask) -> Result<usize> {
        if !is_long(ask) {
            return Ok(self.memory().prompt_tokens(ask)?);
        }
        let permit = self.permit(&self.inner.long_text).await?;
        let (memory, ask) = (self.memory().clone(), ask.clone());
        let count = move || {
            let _permit = permit;
            memory.prompt_tokens(&ask)
        };
        Ok(tokio::task::spawn_blocking(count).await.map_err(|error| ApiError::internal(&error))??)
    }

    /// [`prompt_tokens`](Self::prompt_tokens), if the model's context has room for them and an answer.
    ///
    /// # Errors
    /// As [`prompt_tokens`](Self::prompt_tokens); 400 when they are more than the model holds.
    pub(crate) async fn fitting_tokens(&self, ask: &Ask) -> Result<usize> {
        let (tokens, limit) = (self.prompt_tokens(ask).await?, self.memory().model().info().context);
        // One is the answer's.
        if tokens < limit { Ok(tokens) } else { Err(Error::TooLong { what: "question", tokens, limit }.into()) }
    }

    /// Begins to answer.
    ///
    /// # Errors
    /// What [`amem_core::Memory::ask_stream`] says; 404 for a session that is not there, or is another user's; 429 when too
    /// many requests wait for it.
    pub(crate) async fn start(&self, turn: Turn) -> Result<Running> {
        // What is too long is refused before it holds up others.
        if is_long(&turn.ask) {
            self.fitting_tokens(&turn.ask).await?;
        }
        self.start_fitting(turn).await
    }

    /// As [`start`](Self::start), for what is known to be [fitting](Self::fitting_tokens).
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) async fn start_fitting(&self, mut turn: Turn) -> Result<Running> {
        let started = Instant::now();
        if !turn.residency {
            turn.ask = turn.ask.repair(Repair::All);
        }
        let (stream, in_use) = self.ask(&turn).await?;
        let (listeners, ready) = (turn.listeners(), VecDeque::new());
        let (server, is_over) = (self.clone(), false);
        Ok(Running { server, turn, stream, _in_use: in_use, started, listeners, ready, is_over })
    }

    async fn ask(&self, turn: &Turn) -> Result<(AnswerStream, Option<InUse>)> {
        let name = self.session_of(turn);
        let session = name.map(|name| self.session(&name, &turn.namespace, turn.budget_tokens)).transpose()?;
        let stream = match &session {
            Some(session) => session.lock().await?.ask_stream(turn.ask.clone()).await?,
            None => self.memory().ask_stream(&turn.namespace, turn.ask.clone()).await?,
        };
        Ok((stream, session))
    }

    /// The session that a turn is answered in.
    fn session_of(&self, turn: &Turn) -> Option<SessionName> {
        match (&turn.session, self.options().mode) {
            (Some(id), _) => Some(SessionName::Given(id.clone())),
            // What memory of texts costs is asked outside of the session that holds KV.
            (None, Mode::Resident) if turn.residency => Some(SessionName::Of(turn.namespace.clone())),
            (None, _) => None,
        }
    }
}

impl Running {
    /// Waits for all of it.
    ///
    /// # Errors
    /// As what is computed fails.
    pub(crate) async fn answer(mut self) -> Result<Answered> {
        while let Some(progress) = self.next().await {
            if let Progress::Done(answered) = progress? {
                return Ok(*answered);
            }
        }
        Err(stopped())
    }

    /// What comes next; `None` after the end or an error. The end comes behind [`Progress::Done`]: that the answer breaks off
    /// before it is an error.
    pub(crate) async fn next(&mut self) -> Option<Result<Progress>> {
        loop {
            if let Some(progress) = self.ready.pop_front() {
                return Some(Ok(progress));
            }
            if self.is_over {
                return None;
            }
            let Some(event) = self.stream.next().await else {
                self.is_over = true;
                return Some(Err(stopped()));
            };
            let heard = match event {
                Ok(Event::Delta(delta)) => {
                    self.hear(delta);
                    Ok(())
                }
                Ok(Event::Done(answer)) => {
                    self.is_over = true;
                    self.done(answer)
                }
                Ok(_) => Err(ApiError::internal(&"an event of an unknown kind")),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = heard {
                self.is_over = true;
                self.ready.clear();
                return Some(Err(error));
            }
        }
    }

    /// As a stream.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Progress>> + Send {
        futures_util::stream::unfold(self, |mut running| async move {
            let progress = running.next().await?;
            Some((progress, running))
        })
    }

    fn hear(&mut self, delta: amem_core::Delta) {
        let amem_core::Delta { choice, text, logprob, .. } = delta;
        let Some(listener) = self.listeners.get_mut(choice) else { return };
        let shown = listener.push(self.server.memory().model().chat(), &text, logprob);
        if !shown.is_empty() {
            self.ready.push_back(Progress::Text { choice, shown });
        }
    }

    fn done(&mut self, answer: Answer) -> Result<()> {
        self.server.operations().answered(&answer);
        let report = self.report(&answer);
        let Answer { finish, others, usage, .. } = answer;
        let finishes = std::iter::once(finish).chain(others.into_iter().map(|choice| choice.finish));
        let mut choices = Vec::new();
        for (choice, (listener, finish)) in std::mem::take(&mut self.listeners).into_iter().zip(finishes).enumerate() {
            if finish == Finish::Cancelled {
                return Err(stopped());
            }
            let (shown, complete) = listener.finish(self.server.memory().model().chat(), finish)?;
            if !shown.is_empty() {
                self.ready.push_back(Progress::Text { choice, shown });
            }
            for (index, call) in complete.tool_calls.iter().cloned().enumerate() {
                self.ready.push_back(Progress::Call { choice, index, call });
            }
            choices.push(complete);
        }
        self.ready.push_back(Progress::Done(Box::new(Answered { choices, usage, report })));
        Ok(())
    }

    fn report(&self, answer: &Answer) -> Report {
        let usage = answer.usage;
        // The system line is no memory. It stands in every context, and its KV is always held.
        let system = self.server.memory().layout().prefix.len().min(usage.resident);
        let reused = usage.reused().saturating_sub(system);
        let seconds = |time: Duration| time.as_secs_f64();
        Report {
            user: self.turn.namespace.as_str().to_owned(),
            session: self.server.session_of(&self.turn).map(|name| name.to_string()),
            recalled: answer.recalled.iter().map(|found| found.record.id.to_string()).collect(),
            resident_tokens: fed(&usage),
            n_turns_resident: answer.resident,
            memory_tokens_reused: reused,
            memory_tokens_prefilled_now: usage.missed,
            repaired_tokens: usage.repaired,
            prefilled_tokens: usage.prefilled,
            kv_reused: reused > 0,
            ttft_s: seconds(answer.ttft),
            latency_s: seconds(self.started.elapsed()),
        }
    }
}

/// What is told when the server stops before all is said.
pub(crate) fn stopped() -> ApiError {
    ApiError::unavailable("the server is stopping")
}

/// Everything that stood before an answer.
fn fed(usage: &Usage) -> usize {
    // Memories that had to be computed count as cached and as prefilled.
    (usage.resident + usage.cached + usage.prefilled).saturating_sub(usage.missed)
}

/// Tokens as the usage objects of all APIs count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// Everything that was fed.
    pub(crate) prompt: usize,
    /// Those of them whose KV was held and used as it was.
    pub(crate) cached: usize,
    /// What was generated, in all answers.
    pub(crate) completion: usize,
}

impl Tokens {
    /// Those of one prompt and its answers.
    pub(crate) fn of(usage: &Usage) -> Self {
        Self { prompt: fed(usage), cached: usage.reused(), completion: usage.generated }
    }
}

impl Answered {
    /// The tokens of the prompt and of the answers.
    pub(crate) fn tokens(&self) -> Tokens {
        Tokens::of(&self.usage)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use amem_core::transformer::{Options as LoadOptions, Transformer};
    use amem_core::{Generation, Memory, Role};
    use amem_cpu::Cpu;

    use super::*;
    use crate::http::{Identity, KeyHeader};
    use crate::server::Options;

    #[tokio::test]
    async fn long_conversations_are_made_tokens_of_one_at_a_time() {
        let model = Transformer::load(&amem_demo::files(), Cpu::new().unwrap(), LoadOptions::default()).unwrap();
        let memory = Memory::builder(Arc::new(model)).build().unwrap();
        let options = Options { max_waiting: 0, ..Options::default() };
        let server = Server::new(memory, Identity::new(KeyHeader::Authorization), options);
        let ask = |text: String| Ask::messages(vec![Message::new(Role::User, text)]);
        let (short, long) = (ask("Where does Alice live?".to_owned()), ask("Where? ".repeat(LONG_TEXT / 4)));
        let turn = |ask: &Ask| Turn::new(Namespace::new("alice").unwrap(), ask.clone());
        let status = |error: ApiError| error.status().as_u16();
        assert_eq!(server.start(turn(&long)).await.err().map(status), Some(400), "no context holds it");
        assert!(server.prompt_tokens(&long).await.unwrap() > LONG_TEXT / 4);
        let held = server.permit(&server.inner.long_text).await.unwrap();
        assert_eq!(server.start(turn(&long)).await.err().map(status), Some(429), "nobody may wait");
        assert_eq!(server.prompt_tokens(&long).await.err().map(status), Some(429));
        assert!(server.start(turn(&short)).await.is_ok(), "a short one waits for none");
        drop(held);
        assert!(server.prompt_tokens(&long).await.is_ok());
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error_and_a_whole_one_ends_with_its_last_word() {
        let model = Transformer::load(&amem_demo::files(), Cpu::new().unwrap(), LoadOptions::default()).unwrap();
        let memory = Memory::builder(Arc::new(model)).build().unwrap();
        let server = Server::new(memory, Identity::new(KeyHeader::Authorization), Options::default());
        let begin = async || {
            let ask = Ask::messages(vec![Message::new(Role::User, "Where does Alice live?")]);
            let ask = ask.generation(Generation::default().max_tokens(4));
            server.start(Turn::new(Namespace::new("alice").unwrap(), ask)).await.unwrap()
        };
        let mut whole = begin().await;
        let mut told = Vec::new();
        while let Some(progress) = whole.next().await {
            told.push(progress.unwrap());
        }
        assert!(matches!(told.last(), Some(Progress::Done(_))), "{told:?}");
        assert!(whole.next().await.is_none());
        let broken_off = async || {
            let mut running = begin().await;
            // As if the engine had ended: nothing comes any more.
            while running.stream.next().await.is_some() {}
            running
        };
        let refused = broken_off().await.answer().await.err().map(|error| error.body());
        assert!(refused.is_some());
        let mut running = broken_off().await;
        let told = running.next().await.and_then(|progress| progress.err()).map(|error| error.body());
        assert_eq!(told, refused, "a stream says what an answer at once says");
        assert!(running.next().await.is_none());
    }
}
