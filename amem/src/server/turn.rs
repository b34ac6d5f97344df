//! From a question to its answer, whatever API it came by.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use amem_core::{Answer, AnswerStream, Ask, Event, Namespace, Repair, Usage};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use utoipa::ToSchema;

use super::sessions::SessionName;
use super::{Mode, Server};
use crate::http::{ApiError, Result};

/// A question, and how it is to be answered.
pub(crate) struct Turn {
    /// Whose memory it is asked of.
    pub(crate) namespace: Namespace,
    /// The session that it is asked in, if it names one.
    pub(crate) session: Option<String>,
    /// Tokens that the session may hold at most, if it is opened for this turn.
    pub(crate) budget_tokens: Option<usize>,
    /// Whether KV that is held is used. Otherwise memories are prefilled as if there were none: what a memory of texts
    /// alone would cost.
    pub(crate) residency: bool,
    /// What is asked.
    pub(crate) ask: Ask,
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
    /// Tokens that stand in the context: memories and what was said.
    resident_tokens: usize,
    /// Memories that stand in it.
    n_turns_resident: usize,
    /// Tokens whose KV was used as it was.
    memory_tokens_reused: usize,
    /// Tokens of memories that had no KV and were computed.
    memory_tokens_prefilled_now: usize,
    /// Cached tokens that were computed again in their new context.
    repaired_tokens: usize,
    /// Tokens that had no KV and were computed: those of memories, of the question and of what stands around it.
    prefilled_tokens: usize,
    /// Whether any KV was reused.
    kv_reused: bool,
    /// Seconds to the first token.
    ttft_s: f64,
    /// Seconds to the last.
    latency_s: f64,
}

/// An answer as it is generated. Dropping it ends the work.
pub(crate) struct Running {
    stream: AnswerStream,
    namespace: Namespace,
    session: Option<String>,
    residency: bool,
    started: Instant,
}

/// An answer that is complete.
pub(crate) struct Answered {
    /// The answer.
    pub(crate) answer: Answer,
    /// What it took.
    pub(crate) report: Report,
}

/// What a [`Running`] answer yields.
pub(crate) enum Progress {
    /// New text of one of the answers.
    Delta(amem_core::Delta),
    /// All of it. Nothing comes after it.
    Done(Box<Answered>),
}

impl Server {
    /// Begins to answer.
    ///
    /// # Errors
    /// What [`amem_core::Memory::ask_stream`] says; 404 for a session that is not there, or is another user's.
    pub(crate) async fn start(&self, turn: Turn) -> Result<Running> {
        let started = Instant::now();
        let Turn { namespace, session, budget_tokens, residency, mut ask } = turn;
        if !residency {
            ask = ask.repair(Repair::All);
        }
        let name = match (session, self.options().mode) {
            (Some(id), _) => Some(SessionName::Given(id)),
            // What memory of texts costs is asked outside of the session that holds KV.
            (None, Mode::Resident) if residency => Some(SessionName::Of(namespace.clone())),
            (None, _) => None,
        };
        let (stream, session) = match name {
            Some(name) => {
                let session = self.session(&name, &namespace, budget_tokens)?;
                let stream = session.lock().await.ask_stream(ask).await?;
                (stream, Some(name.to_string()))
            }
            None => (self.memory().ask_stream(&namespace, ask).await?, None),
        };
        Ok(Running { stream, namespace, session, residency, started })
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
        Err(ApiError::unavailable("the server is stopping"))
    }

    fn report(&self, answer: &Answer) -> Report {
        let Usage { resident, cached, missed, repaired, prefilled, .. } = answer.usage;
        let reused = if self.residency { answer.usage.reused() } else { 0 };
        let seconds = |time: Duration| time.as_secs_f64();
        Report {
            user: self.namespace.as_str().to_owned(),
            session: self.session.clone(),
            recalled: answer.recalled.iter().map(|found| found.record.id.to_string()).collect(),
            resident_tokens: resident + cached,
            n_turns_resident: answer.recalled.len(),
            memory_tokens_reused: reused,
            memory_tokens_prefilled_now: missed,
            repaired_tokens: repaired,
            prefilled_tokens: prefilled,
            kv_reused: reused > 0,
            ttft_s: seconds(answer.ttft),
            latency_s: seconds(self.started.elapsed()),
        }
    }
}

impl Stream for Running {
    type Item = Result<Progress>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = match std::task::ready!(Pin::new(&mut self.stream).poll_next(task)) {
            Some(Ok(event)) => event,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let progress = match event {
            Event::Delta(delta) => Progress::Delta(delta),
            Event::Done(answer) => {
                let report = self.report(&answer);
                Progress::Done(Box::new(Answered { answer, report }))
            }
            _ => return Poll::Ready(Some(Err(ApiError::internal(&"an event of an unknown kind")))),
        };
        Poll::Ready(Some(Ok(progress)))
    }
}

/// Tokens as the usage objects of all APIs count them.
pub(crate) struct Tokens {
    /// Everything that was fed.
    pub(crate) prompt: usize,
    /// Those of them whose KV was reused.
    pub(crate) cached: usize,
    /// What was generated, in all answers.
    pub(crate) completion: usize,
}

impl Answered {
    /// The tokens of the prompt and of the answers.
    pub(crate) fn tokens(&self) -> Tokens {
        let Usage { resident, cached, missed, prefilled, generated, .. } = self.answer.usage;
        // Memories that had to be computed count as cached and as prefilled.
        let prompt = (resident + cached + prefilled).saturating_sub(missed);
        Tokens { prompt, cached: self.report.memory_tokens_reused, completion: generated }
    }
}
