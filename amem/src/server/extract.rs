//! The facts of a text, remembered one by one.
//!
//! The model is asked for them. What it says counts if it is a list of sentences that are grounded in the text; others in
//! the list are left out. If that leaves nothing to use, the text's own sentences are its facts: a model may never have
//! been trained to follow an instruction, as the demo model was not. The answer says which of the two it was. The model is
//! not held to a list: one that gives none by itself does not follow the instruction, and its list would be made up.
//! `facts.rs` finds the facts in what it said.

mod facts;

use amem_core::{
    Amounts, Completion, Error, Generation, Message, Namespace, NewRecord, Output, Piece, Request, Role, Sampling,
    Token, Usage,
};
use axum::Json;
use axum::extract::State;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Server;
use super::turn::LONG_TEXT;
use crate::http::{ApiError, Body, Caller, Result};
use crate::memories::OutcomeView;
use facts::{is_grounded, list_in, sentences};

/// Bytes of a text at most.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// Tokens that the model may answer with for one passage.
const MAX_ANSWER_TOKENS: usize = 512;

const INSTRUCTION: &str = "List the facts in the text that are worth remembering, as a JSON list of short sentences. \
Each sentence states one fact and can be understood alone: it names who or what it is about. Keep names, numbers and \
dates as they are. Add nothing that the text does not say. Without such facts, the list is empty.";

/// A text to find facts in.
#[derive(Debug, Deserialize, ToSchema)]
struct ExtractRequest {
    /// Whose memory it is.
    user: Option<String>,
    /// The text: a note, a document, what was said.
    text: String,
}

/// The facts that were found, and remembered.
#[derive(Debug, Serialize, ToSchema)]
struct Extracted {
    user: String,
    facts: Vec<String>,
    /// The id of each fact's memory, in the order of the facts.
    added: Vec<String>,
    /// What became of each fact, in the order of the facts.
    outcomes: Vec<OutcomeView>,
    /// Memories that count now.
    active: usize,
    /// Who found the facts: `model`, or `sentences` where they are the text's own sentences.
    method: &'static str,
}

/// Finds the facts of a text and remembers each.
#[utoipa::path(post, path = "/v1/extract", tag = "memories", request_body = ExtractRequest,
    responses(
        (status = 200, body = Extracted),
        (status = 400, description = "an empty text, or a sentence that no context of the model can hold"),
        (status = 401, description = "no key, or a wrong one"),
        (status = 403, description = "another user's memory"),
        (status = 413, description = "too large, or too many facts"),
        (status = 422, description = "not of this shape"),
        (status = 429, description = "too many requests wait"),
        (status = 503, description = "no room in the KV cache or on disk, or the memory is read-only"),
    ))]
async fn extract(
    State(server): State<Server>,
    caller: Caller,
    Body(request): Body<ExtractRequest>,
) -> Result<Json<Extracted>> {
    let namespace = caller.namespace(request.user.as_deref())?;
    if request.text.len() > MAX_TEXT_BYTES {
        return Err(ApiError::too_large(format!("the text is longer than {MAX_TEXT_BYTES} bytes")).param("text"));
    }
    let sentences = sentences(&request.text);
    if sentences.is_empty() {
        return Err(ApiError::bad_request("the text is empty: give it some text").param("text"));
    }
    let too_many = |what: &str| ApiError::too_large(format!("the text has {what}: give it in parts")).param("text");
    if sentences.len() > server.options().max_texts {
        return Err(too_many(&format!("{} sentences", sentences.len())));
    }
    let (facts, method) = match facts_by_model(&server, &namespace, &sentences).await? {
        Some(facts) => (facts, "model"),
        None => (sentences, "sentences"),
    };
    if facts.len() > server.options().max_texts {
        return Err(too_many(&format!("{} facts", facts.len())));
    }
    let added = match facts.is_empty() {
        true => Vec::new(),
        false => {
            let new = facts.iter().map(|fact| NewRecord::new(&**fact)).collect();
            server.any_memory().remember_all(&namespace, new).await?
        }
    };
    let outcomes: Vec<OutcomeView> = added.iter().map(OutcomeView::from).collect();
    Ok(Json(Extracted {
        user: namespace.as_str().to_owned(),
        facts,
        added: outcomes.iter().map(|outcome| outcome.id.clone()).collect(),
        outcomes,
        active: server.memory().count(&namespace).await?,
        method,
    }))
}

/// What the model says that the facts of these sentences are; `None` if it said nothing to use.
async fn facts_by_model(server: &Server, namespace: &Namespace, sentences: &[String]) -> Result<Option<Vec<String>>> {
    let mut facts: Vec<String> = Vec::new();
    let (asked, told) = (server.clone(), sentences.to_vec());
    // Many sentences take a while to be put together.
    let is_long = sentences.iter().map(String::len).sum::<usize>() > LONG_TEXT / 4;
    let permit = if is_long { Some(server.permit(&server.inner.long_text).await?) } else { None };
    let work = move || {
        let _permit = permit;
        passages(&asked, &told)
    };
    let passages = tokio::task::spawn_blocking(work).await;
    let Some(passages) = passages.map_err(|error| ApiError::internal(&error))?? else { return Ok(None) };
    for Passage { text, prompt, room } in passages {
        let answer = generate(server, namespace, prompt, room).await?;
        let Some(listed) = list_in(&answer) else { return Ok(None) };
        let any = !listed.is_empty();
        let grounded: Vec<String> = listed.into_iter().filter(|fact| is_grounded(fact, &text)).collect();
        if any && grounded.is_empty() {
            return Ok(None);
        }
        facts.extend(grounded);
    }
    Ok(Some(facts))
}

/// A part of a text, and how the model is asked about it.
struct Passage {
    text: String,
    prompt: Vec<Token>,
    /// Tokens for the answer.
    room: usize,
}

/// The sentences in passages, each of which leaves half of the context to the answer. `None` if a sentence has no room.
fn passages(server: &Server, sentences: &[String]) -> Result<Option<Vec<Passage>>> {
    let (chat, context) = (server.memory().model().chat(), server.memory().model().info().context);
    let layout = chat.layout(INSTRUCTION)?;
    packed(sentences, |sentences| {
        let text = sentences.join(" ");
        let mut conversation = chat.conversation(&layout, &[Message::new(Role::User, &*text)], &[])?;
        let Some(exchange) = conversation.exchanges.pop() else { return Ok(None) };
        let prompt = [&layout.prefix[..], &conversation.opening, &exchange.prompt].concat();
        let room = context.saturating_sub(prompt.len()).min(MAX_ANSWER_TOKENS);
        let fits = prompt.len() <= context / 2 + layout.prefix.len() && room > 0;
        Ok(fits.then_some(Passage { text, prompt, room }))
    })
}

/// Sentences in passages, each of as many as fit. `None` if a single one does not.
///
/// `passage` reads all that it is given. So a passage is first doubled, and then its end is looked for by halves, rather
/// than sentence by sentence.
fn packed<T>(mut sentences: &[String], passage: impl Fn(&[String]) -> Result<Option<T>>) -> Result<Option<Vec<T>>> {
    let mut passages = Vec::new();
    while !sentences.is_empty() {
        let Some(mut longest) = passage(&sentences[..1])? else { return Ok(None) };
        let (mut fit, mut too_many) = (1, sentences.len() + 1);
        while fit + 1 < too_many {
            let next = (2 * fit).min(fit.midpoint(too_many));
            match passage(&sentences[..next])? {
                Some(longer) => (longest, fit) = (longer, next),
                None => too_many = next,
            }
        }
        passages.push(longest);
        sentences = &sentences[fit..];
    }
    Ok(Some(passages))
}

/// What the model says to a prompt.
async fn generate(server: &Server, namespace: &Namespace, prompt: Vec<Token>, room: usize) -> Result<String> {
    let generation = Generation::default().max_tokens(room).sampling(Sampling::default());
    let limit = server.memory().model().info().context;
    let request = Request::new(namespace.clone(), vec![Piece::Fresh(prompt.into())]);
    let mut output = server.memory().engine().submit(request.generation(generation).limit(limit))?;
    while let Some(event) = output.next().await {
        if let Output::Done(Completion { choices, usage, .. }) = event? {
            server.memory().record_usage(namespace, amounts(&usage)).await?;
            return Ok(choices.into_iter().next().map(|choice| choice.text).unwrap_or_default());
        }
    }
    Err(Error::Cancelled.into())
}

fn amounts(usage: &Usage) -> Amounts {
    let mut amounts = Amounts::default();
    (amounts.prefilled_tokens, amounts.generated_tokens) = (usage.prefilled as u64, usage.generated as u64);
    amounts
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::new().routes(routes!(extract))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn passages_hold_as_many_sentences_as_fit_and_none_is_read_often() {
        for (room, lengths) in [
            (10, vec![3, 3, 3, 3, 10, 1, 9, 1, 1]),
            (1000, vec![1; 1000]),
            (999, vec![1; 1000]),
            (64, vec![1; 1000]),
            (7, (0..500).map(|n| 1 + n % 7).collect()),
            (5, Vec::new()),
        ] {
            let sentences: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
            let mut expected: Vec<usize> = Vec::new();
            for length in &lengths {
                match expected.last_mut().filter(|last| **last + length <= room) {
                    Some(last) => *last += length,
                    None => expected.push(*length),
                }
            }
            let read = Cell::new(0);
            let passage = |sentences: &[String]| {
                let length: usize = sentences.iter().map(String::len).sum();
                read.set(read.get() + length);
                Ok((length <= room).then_some(length))
            };
            assert_eq!(packed(&sentences, passage).unwrap(), Some(expected));
            let (all, halves) = (lengths.iter().sum::<usize>(), lengths.len().max(2).ilog2() as usize);
            assert!(read.get() <= (4 + 2 * halves) * all, "{room}: {} of {all}", read.get());
        }
        let passage = |sentences: &[String]| Ok(sentences.iter().all(|one| one.len() < 3).then_some(()));
        assert_eq!(packed(&["x".to_owned(), "xxx".to_owned()], passage).unwrap(), None);
    }
}
