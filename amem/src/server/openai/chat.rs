//! `/v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::stream::iter;
use futures_util::{Stream, StreamExt};

use super::request::{Asked, ChatRequest, Streamed};
use super::response::{CallObject, ChatChunk, ChatCompletion, Head, Logprobs, finish_reason};
use super::stream;
use crate::http::{Body, Caller, Result};
use crate::server::Server;
use crate::server::choice::Shown;
use crate::server::turn::{Progress, Running};

/// Goes on with a conversation, with the memories that its last question is about.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest, responses(
    (status = 200, description = "The answer; with `stream`, chunks of it as server-sent events, then `[DONE]`",
        content((ChatCompletion = "application/json"), (ChatChunk = "text/event-stream"))),
    (status = 400, description = "It makes no sense, or asks for what is not supported: `error.param` says where"),
    (status = 401, description = "The API key is missing or wrong"),
    (status = 403, description = "It is about another user's memory"),
    (status = 404, description = "There is no such session"),
    (status = 413, description = "The body is too large"),
    (status = 422, description = "The body is not of this schema"),
    (status = 429, description = "Too many requests wait: try again later"),
    (status = 500, description = "Something failed"),
    (status = 503, description = "There is no room at present: try again later"),
))]
pub(super) async fn create(
    State(server): State<Server>,
    caller: Caller,
    Body(request): Body<ChatRequest>,
) -> Result<Response> {
    let namespace = caller.namespace(request.user.as_deref())?;
    let Asked { turn, logprobs, stream } = request.read(&server, namespace).await?;
    let answers = turn.ask.generation.n;
    let running = server.start(turn).await?;
    match stream {
        Some(Streamed { include_usage }) => {
            let head = Head::new(&server, "chatcmpl", "chat.completion.chunk")?;
            let chunks = Chunks { server, head, logprobs, include_usage };
            Ok(stream::events(chunks.of(running, answers)))
        }
        None => {
            let head = Head::new(&server, "chatcmpl", "chat.completion")?;
            let answered = running.answer().await?;
            let chat = server.memory().model().chat();
            Ok(Json(ChatCompletion::new(head, chat, logprobs, answered)).into_response())
        }
    }
}

/// Writes the chunks of an answer that is sent as it is generated: the roles first, then text and calls as they come, then
/// why each answer ended, and what was used if that was asked for.
struct Chunks {
    server: Server,
    head: Head,
    logprobs: bool,
    include_usage: bool,
}

impl Chunks {
    fn of(self, running: Running, answers: usize) -> impl Stream<Item = Result<ChatChunk>> + Send {
        let first = (0..answers).map(|index| Ok(ChatChunk::first(&self.head, self.include_usage, index)));
        let first: Vec<_> = first.collect();
        let chunks = running.into_stream().flat_map(move |progress| {
            let chunks: Vec<Result<ChatChunk>> = match progress {
                Ok(progress) => self.chunks(progress).into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            iter(chunks)
        });
        iter(first).chain(chunks)
    }

    fn chunks(&self, progress: Progress) -> Vec<ChatChunk> {
        let (head, usage) = (&self.head, self.include_usage);
        match progress {
            Progress::Text { choice, shown: Shown { text, logprobs } } => {
                let chat = self.server.memory().model().chat();
                let logprobs = self.logprobs.then(|| Logprobs::new(chat, &logprobs));
                vec![ChatChunk::text(head, usage, choice, text, logprobs)]
            }
            Progress::Call { choice, index, call } => {
                vec![ChatChunk::call(head, usage, choice, CallObject::new(Some(index), call))]
            }
            Progress::Done(answered) => {
                let last = |(index, choice)| {
                    ChatChunk::last(head, usage, index, finish_reason(choice), answered.report.clone())
                };
                let mut chunks: Vec<ChatChunk> = answered.choices.iter().enumerate().map(last).collect();
                if usage {
                    chunks.push(ChatChunk::usage(head, answered.tokens().into(), answered.report));
                }
                chunks
            }
        }
    }
}
