//! Answers: what is asked for, and what comes back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_core::Stream;
use futures_lite::StreamExt;

use super::Memory;
use super::cost::Cost;
use crate::{
    Choice, Completion, Delta, Error, Filter, Finish, Generation, Message, Model, Output, OutputStream, Record, Repair,
    Result, Role, Timestamp, Tool, ToolCall, Usage,
};

/// What to recall.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Recall {
    /// What the records are to be about.
    pub query: String,
    /// Records at most; 8 unless said otherwise.
    pub k: usize,
    /// Only records that pass. It is asked before the best `k` are taken.
    pub filter: Option<Filter>,
    /// Only records with at least this score. What a score means depends on the [`Recaller`](crate::Recaller).
    pub min_score: Option<f32>,
    /// As of this moment: the records that counted then, with the text that they had then, found by their words. This
    /// reads all of them from the ledger.
    pub as_of: Option<Timestamp>,
}

impl Recall {
    /// The 8 records at most that fit a text best.
    pub fn new(query: impl Into<String>) -> Self {
        Self { query: query.into(), k: 8, filter: None, min_score: None, as_of: None }
    }

    /// So many records at most.
    #[must_use]
    pub fn k(self, k: usize) -> Self {
        Self { k, ..self }
    }

    /// Only records that pass.
    #[must_use]
    pub fn filter(self, filter: Filter) -> Self {
        Self { filter: Some(filter), ..self }
    }

    /// Only records with at least this score.
    #[must_use]
    pub fn min_score(self, score: f32) -> Self {
        Self { min_score: Some(score), ..self }
    }

    /// As of this moment.
    #[must_use]
    pub fn as_of(self, moment: Timestamp) -> Self {
        Self { as_of: Some(moment), ..self }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.query.trim().is_empty() && self.k > 0 {
            return Err(Error::Empty { what: "query" });
        }
        self.filter.as_ref().map_or(Ok(()), Filter::check)
    }

    pub(super) fn passes(&self, record: &Record) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.matches(record))
    }
}

impl<T: Into<String>> From<T> for Recall {
    fn from(query: T) -> Self {
        Self::new(query)
    }
}

/// What is to be answered.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Prompt {
    /// A question. In a session, it goes on from what was said before.
    Question(String),
    /// A whole conversation up to the question, as clients of chat APIs send it each time. A session recognises what
    /// stands in its context already. What a client sends is its own: it is told to the model as it is, even where it
    /// repeats a memory that was forgotten since.
    Messages(Vec<Message>),
}

/// A question and how it is to be answered.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Ask {
    /// The question, or a conversation that ends with one.
    pub prompt: Prompt,
    /// The tools that the model may call.
    pub tools: Vec<Tool>,
    /// What is recalled for it: by its own words, unless said otherwise.
    pub recall: Recall,
    /// How memories are repaired; `None` for the memory's own way.
    pub repair: Option<Repair>,
    /// How the answer is generated.
    pub generation: Generation,
}

impl Ask {
    /// A question, with 8 memories recalled at most.
    pub fn new(question: impl Into<String>) -> Self {
        let question = question.into();
        let recall = Recall::new(&*question);
        Self { recall, ..Self::of(Prompt::Question(question)) }
    }

    /// A whole conversation, with 8 memories recalled at most, by the words of its last question: of its last system message,
    /// if no user asks.
    pub fn messages(messages: Vec<Message>) -> Self {
        let last = |role| messages.iter().rfind(|message| message.role == role && !message.text.trim().is_empty());
        let question = last(Role::User).or_else(|| last(Role::System));
        let recall = Recall::new(question.map_or("", |message| &*message.text));
        Self { recall, ..Self::of(Prompt::Messages(messages)) }
    }

    fn of(prompt: Prompt) -> Self {
        let (tools, recall, generation) = (Vec::new(), Recall::new(""), Generation::default());
        Self { prompt, tools, recall, repair: None, generation }
    }

    /// Bytes of text that become tokens.
    pub(super) fn bytes(&self) -> usize {
        let said = match &self.prompt {
            Prompt::Question(question) => question.len(),
            Prompt::Messages(messages) => messages.iter().map(Message::bytes).sum(),
        };
        said + self.tools.iter().map(|tool| tool.description.len() + tool.parameters.len()).sum::<usize>()
    }

    /// With these tools.
    #[must_use]
    pub fn tools(self, tools: Vec<Tool>) -> Self {
        Self { tools, ..self }
    }

    /// With so many memories at most.
    #[must_use]
    pub fn k(self, k: usize) -> Self {
        Self { recall: self.recall.k(k), ..self }
    }

    /// With these memories, rather than those that the question's own words find.
    #[must_use]
    pub fn recall(self, recall: Recall) -> Self {
        Self { recall, ..self }
    }

    /// With memories repaired like this.
    #[must_use]
    pub fn repair(self, repair: Repair) -> Self {
        Self { repair: Some(repair), ..self }
    }

    /// Answered like this.
    #[must_use]
    pub fn generation(self, generation: Generation) -> Self {
        Self { generation, ..self }
    }
}

impl<T: Into<String>> From<T> for Ask {
    fn from(question: T) -> Self {
        Self::new(question)
    }
}

/// A record that was recalled for a question.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Recollection {
    /// The record.
    pub record: Record,
    /// How well it fits. Comparable within one answer only; higher is better.
    pub score: f32,
}

/// An answer and what it cost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// What the model said, without calls of tools.
    pub text: String,
    /// The tools that the model called, if it was given any.
    pub tool_calls: Vec<ToolCall>,
    /// The memories that were recalled for this question and stood in its context, oldest first.
    pub recalled: Vec<Recollection>,
    /// Memories that stood in its context, those of earlier questions of a session included.
    pub resident: usize,
    /// What was computed and what was not.
    pub usage: Usage,
    /// From the call to the first token.
    pub ttft: Duration,
    /// Why it ended.
    pub finish: Finish,
    /// The other answers, where several were asked for ([`Generation::n`]).
    pub others: Vec<Choice>,
}

/// What an [`AnswerStream`] yields.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// New text of one of the answers.
    Delta(Delta),
    /// The whole answer. Nothing comes after it.
    Done(Answer),
}

/// An answer as it is generated. Dropping it ends the work within one step of the engine.
pub struct AnswerStream {
    output: OutputStream,
    recalled: Vec<Recollection>,
    cost: Cost,
    /// Whose calls of tools are looked for in the answer.
    calls_of: Option<Arc<dyn Model>>,
    memory: Memory,
    /// The whole answer, while its usage is being written.
    ending: Option<(Answer, Writing)>,
}

/// Usage that is being written.
type Writing = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

impl AnswerStream {
    /// What the engine puts out for a question, with the calls of these tools told apart from the text.
    pub(super) fn new(
        memory: &Memory,
        output: OutputStream,
        recalled: Vec<Recollection>,
        cost: Cost,
        tools: &[Tool],
    ) -> Self {
        let calls_of = (!tools.is_empty()).then(|| Arc::clone(memory.model()));
        Self { output, recalled, cost, calls_of, memory: memory.clone(), ending: None }
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the engine ended, [`Error::KvCacheFull`] when the KV cache has no room for the question,
    /// [`Error::Model`] when the model failed.
    pub async fn answer(mut self) -> Result<Answer> {
        loop {
            match self.next().await {
                Some(Ok(Event::Done(answer))) => return Ok(answer),
                Some(Ok(Event::Delta(_))) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Cancelled),
            }
        }
    }

    fn done(&mut self, completion: Completion) -> Answer {
        let Completion { mut choices, usage, ttft, .. } = completion;
        choices.iter_mut().for_each(|choice| choice.text = choice.text.trim().to_owned());
        let others = choices.split_off(choices.len().min(1));
        let (text, finish) =
            choices.pop().map_or((String::new(), Finish::Cancelled), |choice| (choice.text, choice.finish));
        let (text, tool_calls) = match &self.calls_of {
            Some(model) => model.chat().tool_calls(&text),
            None => (text, Vec::new()),
        };
        let recalled = std::mem::take(&mut self.recalled);
        let (resident, usage) = (self.cost.resident, self.cost.total(usage));
        Answer { text, tool_calls, recalled, resident, usage, ttft, finish, others }
    }
}

impl Stream for AnswerStream {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if self.ending.is_none() {
            let completion = match std::task::ready!(Pin::new(&mut self.output).poll_next(task)) {
                Some(Ok(Output::Done(completion))) => completion,
                Some(Ok(Output::Delta(delta))) => return Poll::Ready(Some(Ok(Event::Delta(delta)))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            let (answer, memory) = (self.done(completion), self.memory.clone());
            self.ending = Some((answer, Box::pin(async move { memory.meter().write_or_wait().await })));
        }
        let Some((answer, mut written)) = self.ending.take() else { return Poll::Ready(None) };
        match written.as_mut().poll(task) {
            Poll::Ready(Ok(())) => Poll::Ready(Some(Ok(Event::Done(answer)))),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Pending => {
                self.ending = Some((answer, written));
                Poll::Pending
            }
        }
    }
}
