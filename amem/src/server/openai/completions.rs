//! `/v1/completions`: texts that go on, with no chat template and no memory around them.

use std::collections::{BTreeMap, BTreeSet};

use amem_core::{
    Chat, Choice, Completion, Delta, Finish, Generation, Namespace, Output, OutputStream, Piece, Request, Token,
    TokenLogprob,
};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{iter, select_all};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::prompt::{Prompt, prompts};
use super::request::StreamOptions;
use super::response::{Head, IMPOSSIBLE, Usage};
use super::sampling::{SamplingParams, refuse_others};
use super::{invalid, stream, unsupported, whole};
use crate::http::{ApiError, Body, Caller, Result};
use crate::server::{Server, turn};

/// Texts that are answered by one request at most: prompts, each as often as `n` says.
const MAX_CHOICES: usize = 128;
/// Tokens of a text, if a request does not say how many: as in OpenAI's API.
const MAX_TOKENS: i64 = 16;
/// The likeliest tokens that can come with each token.
const MAX_LOGPROBS: usize = 20;
/// What the APIs of vLLM and llama.cpp have, and this one does not: to ignore it would be to answer something else.
const UNSUPPORTED: [&str; 16] = [
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "grammar",
    "json_schema",
    "prompt_embeds",
    "prompt_logprobs",
    "use_beam_search",
    "ignore_eos",
    "stop_token_ids",
    "bad_words",
    "allowed_token_ids",
    "truncate_prompt_tokens",
];

/// A text to go on with.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CompletionRequest {
    /// Any name: the one model here answers, and the answer says which it is.
    #[expect(dead_code, reason = "clients must send it")]
    model: Option<String>,
    /// The text, or several texts, each of which is answered. Nothing is put before them: a model that wants a token at
    /// the start of a text is given its tokens.
    prompt: Prompt,
    /// Who asks. Their memory is not used: the text goes on as it is.
    user: Option<String>,
    /// Tokens at most; 16 unless said otherwise.
    #[schema(minimum = 0)]
    max_tokens: Option<i64>,
    /// How tokens are drawn.
    #[serde(flatten)]
    sampling: SamplingParams,
    /// Whether each token comes with its log probability, and with how many of the likeliest tokens.
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<i64>,
    /// Whether the answer begins with the prompt.
    echo: Option<bool>,
    /// What follows the text to be written: not supported.
    suffix: Option<String>,
    /// Whether the answer is sent as it is generated.
    stream: Option<bool>,
    /// How it is sent.
    stream_options: Option<StreamOptions>,
    /// What is not said here: it changes nothing, or is refused.
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// A request that makes sense.
struct Asked {
    /// The tokens of each prompt.
    prompts: Vec<Vec<Token>>,
    /// The text that each answer begins with.
    echoes: Vec<String>,
    generation: Generation,
    streams: bool,
    include_usage: bool,
}

impl CompletionRequest {
    fn read(self, server: &Server) -> Result<Asked> {
        let asks = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::String(text) => !text.is_empty(),
            _ => true,
        };
        if let Some(name) = UNSUPPORTED.into_iter().find(|name| self.rest.get(*name).is_some_and(asks)) {
            return Err(unsupported(name, "this is not supported"));
        }
        refuse_others(&self.rest)?;
        if self.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(unsupported("suffix", "texts are not written up to another one"));
        }
        let n = self.sampling.n()?;
        let streams = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !streams {
            return Err(invalid("stream_options", "it needs stream to be true"));
        }
        let include_usage = self.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        let (model, chat) = (server.memory().model(), server.memory().model().chat());
        let prompts = prompts("prompt", self.prompt, &**model, MAX_CHOICES / n)?;
        let echo = self.echo.unwrap_or(false);
        if echo && self.logprobs.is_some() {
            return Err(unsupported("echo", "not together with logprobs: how likely a prompt is is not told"));
        }
        let echoes = prompts.iter().map(|prompt| match (echo, &prompt.text) {
            (false, _) => Ok(String::new()),
            (true, Some(text)) => Ok(text.clone()),
            (true, None) => Ok(chat.decode(&prompt.tokens)?),
        });
        let echoes = echoes.collect::<Result<_>>()?;
        let mut generation = Generation::default()
            .max_tokens(whole("max_tokens", self.max_tokens.unwrap_or(MAX_TOKENS), 0, usize::MAX)?)
            .min_tokens(self.sampling.min_tokens()?)
            .sampling(self.sampling.sampling(&**model)?)
            .stop(self.sampling.stop()?)
            .n(n);
        generation.logprobs = self.logprobs.map(|top| whole("logprobs", top, 0, MAX_LOGPROBS)).transpose()?;
        let prompts = prompts.into_iter().map(|prompt| prompt.tokens).collect();
        Ok(Asked { prompts, echoes, generation, streams, include_usage })
    }
}

/// Goes on with texts as they are. No memory is recalled for them, and what is used is not metered.
#[utoipa::path(post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest, responses(
    (status = 200, description = "The texts; with `stream`, chunks of them as server-sent events, then `[DONE]`",
        content((CompletionObject = "application/json"), (CompletionObject = "text/event-stream"))),
    (status = 400, description = "It makes no sense, or asks for what is not supported: `error.param` says where"),
    (status = 401, description = "The API key is missing or wrong"),
    (status = 403, description = "It is about another user"),
    (status = 413, description = "The body is too large"),
    (status = 422, description = "The body is not of this schema"),
    (status = 429, description = "Too many requests wait: try again later"),
    (status = 500, description = "Something failed"),
    (status = 503, description = "There is no room at present: try again later"),
))]
pub(super) async fn create(
    State(server): State<Server>,
    caller: Caller,
    Body(request): Body<CompletionRequest>,
) -> Result<Response> {
    let namespace = caller.namespace(request.user.as_deref())?;
    let Asked { prompts, echoes, generation, streams, include_usage } = request.read(&server)?;
    let (n, logprobs) = (generation.n, generation.logprobs);
    let outputs = submit(&server, &namespace, prompts, &generation)?;
    let head = Head::new(&server, "cmpl", "text_completion")?;
    let writer = Writer { server, head, echoes, n, logprobs };
    if streams {
        return Ok(stream::events(Teller::new(writer, include_usage, outputs.len()).chunks(outputs)));
    }
    let (mut choices, mut tokens) = (Vec::new(), turn::Tokens::default());
    for (prompt, mut output) in outputs.into_iter().enumerate() {
        let completion = done(&mut output).await?;
        tokens = add(tokens, &completion);
        for (choice, answer) in completion.choices.into_iter().enumerate() {
            choices.push(writer.whole(prompt, choice, answer)?);
        }
    }
    let usage = Some(Some(tokens.into()));
    Ok(Json(CompletionObject { head: writer.head, choices, usage }).into_response())
}

/// All prompts at once: they are computed together.
fn submit(
    server: &Server,
    namespace: &Namespace,
    prompts: Vec<Vec<Token>>,
    generation: &Generation,
) -> Result<Vec<OutputStream>> {
    let context = server.memory().model().info().context;
    let submit = |tokens: Vec<Token>| {
        let request = Request::new(namespace.clone(), vec![Piece::Fresh(tokens.into())]);
        let request = request.generation(generation.clone()).limit(context);
        Ok(server.memory().engine().submit(request)?)
    };
    prompts.into_iter().map(submit).collect()
}

async fn done(output: &mut OutputStream) -> Result<Completion> {
    while let Some(next) = output.next().await {
        if let Output::Done(completion) = next? {
            return Ok(completion);
        }
    }
    Err(turn::stopped())
}

/// With the tokens of one more prompt and its answers.
fn add(tokens: turn::Tokens, completion: &Completion) -> turn::Tokens {
    let more = turn::Tokens::of(&completion.usage);
    turn::Tokens {
        prompt: tokens.prompt + more.prompt,
        cached: tokens.cached + more.cached,
        completion: tokens.completion + more.completion,
    }
}

/// Writes answers as clients read them.
struct Writer {
    server: Server,
    head: Head,
    echoes: Vec<String>,
    n: usize,
    logprobs: Option<usize>,
}

impl Writer {
    fn chat(&self) -> &dyn Chat {
        self.server.memory().model().chat()
    }

    fn index(&self, prompt: usize, choice: usize) -> usize {
        prompt * self.n + choice
    }

    /// An answer that is complete.
    fn whole(&self, prompt: usize, choice: usize, answer: Choice) -> Result<CompletionChoice> {
        let Choice { text, logprobs, finish, .. } = answer;
        let finish_reason = Some(reason(&finish)?);
        let echo = self.echoes.get(prompt).map(String::as_str).unwrap_or_default();
        let logprobs = self.logprobs.map(|top| {
            let mut all = Logprobs::new(top);
            let mut offset = Offset::default();
            logprobs.iter().for_each(|logprob| all.push(self.chat(), &mut offset, logprob));
            // The tokens of a stop text are no part of the answer.
            all.truncate(text.chars().count(), matches!(finish, Finish::StopText(_)));
            all
        });
        Ok(CompletionChoice {
            index: self.index(prompt, choice),
            text: format!("{echo}{text}"),
            logprobs,
            finish_reason,
        })
    }

    fn part(&self, prompt: usize, choice: usize, text: String) -> CompletionChoice {
        CompletionChoice { index: self.index(prompt, choice), text, logprobs: None, finish_reason: None }
    }
}

/// Tells answers in chunks, as they are generated.
struct Teller {
    writer: Writer,
    include_usage: bool,
    /// The prompts whose answers are not complete.
    left: BTreeSet<usize>,
    /// Those of complete answers.
    tokens: turn::Tokens,
    /// How far each answer has come.
    offsets: BTreeMap<usize, Offset>,
}

impl Teller {
    fn new(writer: Writer, include_usage: bool, prompts: usize) -> Self {
        let (left, tokens) = ((0..prompts).collect(), turn::Tokens::default());
        Self { writer, include_usage, left, tokens, offsets: BTreeMap::new() }
    }

    /// What the answers begin with, text as it comes, why each ended, and what was used if that was asked for.
    fn chunks(mut self, outputs: Vec<OutputStream>) -> impl Stream<Item = Result<CompletionObject>> + Send {
        let echoes = self.writer.echoes.iter().enumerate().filter(|(_, echo)| !echo.is_empty());
        let choices = echoes.flat_map(|(prompt, echo)| (0..self.writer.n).map(move |choice| (prompt, choice, echo)));
        let echoed =
            choices.map(|(prompt, choice, echo)| Ok(self.chunk(vec![self.writer.part(prompt, choice, echo.clone())])));
        let echoed: Vec<_> = echoed.collect();
        let told = outputs.into_iter().enumerate().map(|(prompt, output)| {
            let output = output.map(Some).chain(iter([None]));
            output.map(move |output| (prompt, output)).boxed()
        });
        let chunks = select_all(told).flat_map(move |(prompt, output)| {
            let chunks = match output {
                Some(output) => output.map_err(ApiError::from).and_then(|output| self.tell(prompt, output)),
                None if self.left.contains(&prompt) => Err(turn::stopped()),
                None => Ok(Vec::new()),
            };
            iter(chunks.map_or_else(|error| vec![Err(error)], |chunks| chunks.into_iter().map(Ok).collect()))
        });
        iter(echoed).chain(chunks)
    }

    fn tell(&mut self, prompt: usize, output: Output) -> Result<Vec<CompletionObject>> {
        match output {
            Output::Delta(delta) => Ok(self.delta(prompt, delta).into_iter().collect()),
            Output::Done(completion) => self.done(prompt, &completion),
            _ => Err(ApiError::internal(&"an output of an unknown kind")),
        }
    }

    fn delta(&mut self, prompt: usize, delta: Delta) -> Option<CompletionObject> {
        let offset = self.offsets.entry(self.writer.index(prompt, delta.choice)).or_default();
        let logprobs = self.writer.logprobs.zip(delta.logprob).map(|(top, logprob)| {
            let mut one = Logprobs::new(top);
            one.push(self.writer.chat(), offset, &logprob);
            one
        });
        if delta.text.is_empty() && logprobs.is_none() {
            return None;
        }
        let part = self.writer.part(prompt, delta.choice, delta.text);
        Some(self.chunk(vec![CompletionChoice { logprobs, ..part }]))
    }

    fn done(&mut self, prompt: usize, completion: &Completion) -> Result<Vec<CompletionObject>> {
        self.left.remove(&prompt);
        self.tokens = add(self.tokens, completion);
        let last = |(choice, answer): (usize, &Choice)| {
            let finish_reason = Some(reason(&answer.finish)?);
            let part = self.writer.part(prompt, choice, String::new());
            Ok(self.chunk(vec![CompletionChoice { finish_reason, ..part }]))
        };
        let mut chunks: Vec<_> = completion.choices.iter().enumerate().map(last).collect::<Result<_>>()?;
        if self.left.is_empty() && self.include_usage {
            chunks.push(CompletionObject { usage: Some(Some(self.tokens.into())), ..self.chunk(Vec::new()) });
        }
        Ok(chunks)
    }

    fn chunk(&self, choices: Vec<CompletionChoice>) -> CompletionObject {
        CompletionObject { head: self.writer.head.clone(), choices, usage: self.include_usage.then_some(None) }
    }
}

fn reason(finish: &Finish) -> Result<&'static str> {
    if *finish == Finish::Cancelled { Err(turn::stopped()) } else { Ok(finish.name()) }
}

/// Texts that went on, or a chunk of them.
#[derive(Debug, Serialize, ToSchema)]
struct CompletionObject {
    #[serde(flatten)]
    head: Head,
    /// The texts, or what is new of them.
    choices: Vec<CompletionChoice>,
    /// Tokens. Of chunks it is in the last one only, null before it, and only there if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// One text, or what is new of it.
#[derive(Debug, Serialize, ToSchema)]
struct CompletionChoice {
    /// Which, from 0: the answers to the first prompt come first.
    index: usize,
    /// The text.
    text: String,
    /// How likely its tokens were.
    logprobs: Option<Logprobs>,
    /// `stop` or `length`; null in a chunk that is not the text's last.
    finish_reason: Option<&'static str>,
}

/// How likely the tokens of a text were.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CompletionLogprobs)]
struct Logprobs {
    /// The tokens, as text. One that is part of a character is `bytes:` and its bytes.
    tokens: Vec<String>,
    /// The natural logarithm of each one's probability, before temperature, penalties and bias.
    token_logprobs: Vec<f32>,
    /// The likeliest tokens in the place of each, and the token itself; null if none were asked for.
    top_logprobs: Option<Vec<BTreeMap<String, f32>>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

impl Logprobs {
    fn new(top: usize) -> Self {
        let top_logprobs = (top > 0).then(Vec::new);
        Self { tokens: Vec::new(), token_logprobs: Vec::new(), top_logprobs, text_offset: Vec::new() }
    }

    fn push(&mut self, chat: &dyn Chat, offset: &mut Offset, logprob: &TokenLogprob) {
        let named = |token, logprob: f32| (name(chat, token), logprob.max(IMPOSSIBLE));
        let (token, value) = named(logprob.token, logprob.logprob);
        if let Some(top_logprobs) = &mut self.top_logprobs {
            let drawn = std::iter::once((token.clone(), value));
            top_logprobs.push(logprob.top.iter().map(|&(token, logprob)| named(token, logprob)).chain(drawn).collect());
        }
        self.tokens.push(token);
        self.token_logprobs.push(value);
        self.text_offset.push(offset.characters);
        offset.push(&chat.token_bytes(logprob.token).unwrap_or_default());
    }

    /// Without tokens that begin behind the text, if there are any.
    fn truncate(&mut self, characters: usize, is_cut: bool) {
        let within = self.text_offset.iter().take_while(|offset| !is_cut || **offset < characters).count();
        self.tokens.truncate(within);
        self.token_logprobs.truncate(within);
        self.top_logprobs.iter_mut().for_each(|top| top.truncate(within));
        self.text_offset.truncate(within);
    }
}

/// A token as text: what is no text by itself as OpenAI's API writes it.
fn name(chat: &dyn Chat, token: Token) -> String {
    let bytes = chat.token_bytes(token).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_else(|error| {
        let hex = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", hex.collect::<String>())
    })
}

/// How far a text has come.
#[derive(Debug, Default)]
struct Offset {
    characters: usize,
    /// The beginning of a character.
    begun: Vec<u8>,
}

impl Offset {
    fn push(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        let whole = std::str::from_utf8(&self.begun).map_or_else(|error| error.valid_up_to(), str::len);
        let text = std::str::from_utf8(&self.begun[..whole]).unwrap_or_default();
        self.characters += text.chars().count();
        self.begun.drain(..whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_begin_where_the_characters_before_them_end() {
        let mut offset = Offset::default();
        let mut begins = Vec::new();
        for bytes in [b"a".as_slice(), &[0xc3], &[0xa9], "éb".as_bytes(), b"c"] {
            begins.push(offset.characters);
            offset.push(bytes);
        }
        assert_eq!(begins, [0, 1, 1, 2, 4]);
    }
}
