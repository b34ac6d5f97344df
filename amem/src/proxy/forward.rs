//! A request on its way to the upstream: whose it is, what is remembered, and with whose key.

use std::sync::Arc;
use std::time::Instant;

use amem_core::Namespace;
use axum::extract::State;
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use axum::routing::any;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Proxy;
use super::answer::Exchange;
use super::conversations::{Budget, Conversation, Key, Owner, Plan};
use super::layout::{self, Format};
use super::raw::RawObject;
use super::translate;
use super::upstream::Upstream;
use crate::http::{ApiError, Body, Caller, Result};

/// The model that memory's own clients ask for.
pub(super) const OWN_MODEL: &str = "amem";
/// The most that a request may ask for.
const MOST: Budget = Budget { k: 100, memories: 500, tokens: 1_000_000 };
/// Bytes of a session's name at most.
const SESSION_BYTES: usize = 256;

/// A path of an upstream.
#[derive(Clone, Copy)]
struct Endpoint {
    format: Format,
    path: &'static str,
    /// Whether a model answers, which is counted.
    is_answered: bool,
}

const CHAT_COMPLETIONS: Endpoint = Endpoint { format: Format::OpenAi, path: "/chat/completions", is_answered: true };
const MESSAGES: Endpoint = Endpoint { format: Format::Anthropic, path: "/messages", is_answered: true };
const COUNT_TOKENS: Endpoint =
    Endpoint { format: Format::Anthropic, path: "/messages/count_tokens", is_answered: false };

/// What a request says to the proxy, and not to the upstream.
#[derive(Default)]
struct Ours {
    user: Option<String>,
    /// What Anthropic's clients call the user where they talk to Anthropic. It goes upstream, too.
    user_id: Option<String>,
    session: Option<String>,
    provider: Option<String>,
    k: Option<usize>,
    max_turns: Option<usize>,
    budget_tokens: Option<usize>,
    /// Whether there is a snapshot that stays. Otherwise what is recalled stands with the question alone.
    residency: bool,
}

/// Who is served, in Anthropic's format.
#[derive(Deserialize)]
struct RequestMetadata {
    user_id: Option<String>,
}

impl Ours {
    /// Takes it out of a request, for upstreams refuse what they do not know, and need not know whose it is. Clients that
    /// cannot add fields say it in headers.
    fn take(body: &mut RawObject, headers: &HeaderMap, format: Format) -> Result<Self> {
        let header = |name: &str| match headers.get(name).map(|value| std::str::from_utf8(value.as_bytes())) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value.to_owned())),
            Some(Err(_)) => Err(ApiError::bad_request(format!("the header {name} is not UTF-8"))),
        };
        // Other proxies have objects under this name.
        let names_provider = body.raw("provider").is_some_and(|raw| raw.get().starts_with('"'));
        let metadata: Option<RequestMetadata> = match format {
            Format::Anthropic => body.get("metadata")?,
            // OpenAI's clients file answers under it: it says nothing of who asks.
            Format::OpenAi => None,
        };
        Ok(Self {
            user_id: metadata.and_then(|metadata| metadata.user_id),
            user: body.take("user")?.map_or_else(|| header("x-amem-user"), |user| Ok(Some(user)))?,
            session: session(body.take("session")?.map_or_else(|| header("x-amem-session"), |name| Ok(Some(name)))?)?,
            provider: if names_provider { body.take("provider")? } else { None },
            k: body.take("k")?,
            max_turns: body.take("max_turns")?,
            budget_tokens: body.take("budget_tokens")?,
            residency: body.take("residency")?.unwrap_or(true),
        })
    }
}

/// A session's name within its bounds.
fn session(name: Option<String>) -> Result<Option<String>> {
    match name {
        Some(name) if name.is_empty() || name.len() > SESSION_BYTES => {
            Err(ApiError::bad_request(format!("session must have 1 to {SESSION_BYTES} bytes")).param("session"))
        }
        name => Ok(name),
    }
}

/// What is asked for, within the bounds of what may be.
pub(super) fn budget(
    given: Budget,
    k: Option<usize>,
    max_turns: Option<usize>,
    budget_tokens: Option<usize>,
) -> Result<Budget> {
    let within = |name: &'static str, asked: Option<usize>, given: usize, most: usize| match asked {
        Some(asked) if asked > most => Err(ApiError::bad_request(format!("{name} must be at most {most}")).param(name)),
        asked => Ok(asked.unwrap_or(given)),
    };
    Ok(Budget {
        k: within("k", k, given.k, MOST.k)?,
        memories: within("max_turns", max_turns, given.memories, MOST.memories)?,
        tokens: within("budget_tokens", budget_tokens, given.tokens, MOST.tokens)?,
    })
}

impl Proxy {
    /// What a session's conversation is known by.
    pub(super) fn session_key(&self, namespace: &Namespace, session: &str) -> Key {
        self.inner.secret.conversation(namespace, &[b"session", session.as_bytes()])
    }

    /// The model that is asked.
    fn model(&self, body: &mut RawObject) -> Result<String> {
        let named: Option<String> = body.get("model")?;
        match (&self.inner.config.default_model, named) {
            (Some(model), None) => {
                body.set("model", model)?;
                Ok(model.clone())
            }
            (Some(model), Some(named)) if named == OWN_MODEL => {
                body.set("model", model)?;
                Ok(model.clone())
            }
            (_, named) => Ok(named.unwrap_or_default()),
        }
    }

    /// What is remembered, for a request.
    async fn plan(
        &self,
        namespace: &Namespace,
        key: Key,
        ours: &Ours,
        conversation: &layout::Conversation,
    ) -> Result<Plan> {
        let owner = Owner { namespace: namespace.clone(), session: ours.session.clone() };
        let state = match ours.residency {
            true => self.inner.conversations.get(key, &owner),
            false => Arc::default(),
        };
        let mut state: tokio::sync::MutexGuard<'_, Conversation> = state.lock().await;
        let given = state.budget.unwrap_or_else(|| self.budget());
        let mut budget = budget(given, ours.k, ours.max_turns, ours.budget_tokens)?;
        if !ours.residency {
            budget.memories = 0;
        }
        let (turns, question) = (conversation.turns(), conversation.question());
        let plan = state.plan(self.memory(), namespace, &turns, question.as_ref(), budget).await?;
        if ours.residency {
            self.inner.conversations.measure(&key, &state);
        }
        Ok(plan)
    }

    /// Tells an upstream's prefix cache what belongs together, and what must be kept apart.
    fn mark(&self, body: &mut RawObject, namespace: &Namespace, key: &Key, upstream: &Upstream) -> Result<()> {
        if upstream.kind == super::Kind::Openai && body.get::<String>("prompt_cache_key")?.is_none() {
            body.set("prompt_cache_key", &self.inner.secret.cache_key(key))?;
        }
        if upstream.kind.takes_salt() {
            let own: Option<String> = body.get("cache_salt")?;
            body.set("cache_salt", &self.inner.secret.salt(namespace, own.as_deref()))?;
        }
        Ok(())
    }

    async fn forward(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        mut body: RawObject,
        endpoint: Endpoint,
    ) -> Result<Response> {
        let started = Instant::now();
        let Endpoint { format, path, is_answered } = endpoint;
        let ours = Ours::take(&mut body, headers, format)?;
        let namespace = caller.namespace_or(ours.user.as_deref(), ours.user_id.as_deref())?;
        let model = self.model(&mut body)?;
        let upstream = self.inner.upstreams.choose(ours.provider.as_deref(), &model)?;
        let sent = upstream.headers(headers, format, self.inner.identity.is_on())?;
        let (body, format, path, translation) = match (upstream.kind.speaks(format), format) {
            (true, _) => (body, format, path, None),
            (false, Format::OpenAi) => {
                let (body, translation) = translate::request(&body)?;
                (body, Format::Anthropic, "/messages", Some(translation))
            }
            (false, Format::Anthropic) => {
                let message =
                    format!("the upstream {} is asked at /v1/chat/completions, in OpenAI's format", upstream.name);
                return Err(ApiError::unsupported("model", message));
            }
        };
        let mut conversation = layout::Conversation::read(format, body)?;
        let key = match &ours.session {
            Some(session) => self.session_key(&namespace, session),
            None => self.inner.secret.conversation(&namespace, &[b"begins", &conversation.beginning()]),
        };
        let plan = self.plan(&namespace, key, &ours, &conversation).await?;
        for (index, memories) in &plan.blocks {
            conversation.put_before(*index, memories)?;
        }
        if !plan.snapshot.is_empty() {
            let least = self.inner.config.min_cacheable_tokens(&model);
            conversation.put_snapshot(&plan.snapshot, upstream.kind, least)?;
        }
        self.mark(conversation.body(), &namespace, &key, upstream)?;
        let body = conversation.into_bytes()?;
        let url = upstream.url(path);
        let response = self.inner.upstreams.send(upstream, Method::POST, url, sent, Some(body)).await?;
        let (session, name) = (ours.session, upstream.name.clone());
        let exchange = Exchange { namespace, session, upstream: name, model, plan, translation, is_answered, started };
        self.answer(exchange, upstream, response, headers).await
    }
}

/// Asks in OpenAI's format.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "chat", request_body = serde_json::Value, responses(
    (status = 200, description = "The upstream's answer, with `amem` if it is not a stream", body = serde_json::Value),
    (status = 400, description = "Nothing was sent upstream"), (status = 401, description = "A key is missing"),
    (status = 403, description = "Another user's memory"), (status = 404, description = "No upstream is known for the model"),
    (status = 502, description = "The upstream cannot be reached"), (status = 504, description = "It is too slow"),
    (status = "default", description = "What the upstream says")))]
async fn chat_completions(
    State(proxy): State<Proxy>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<RawObject>,
) -> Result<Response> {
    proxy.forward(&caller, &headers, body, CHAT_COMPLETIONS).await
}

/// Asks in Anthropic's format.
#[utoipa::path(post, path = "/v1/messages", tag = "chat", request_body = serde_json::Value, responses(
    (status = 200, description = "The upstream's answer, with `amem` if it is not a stream", body = serde_json::Value),
    (status = 400, description = "Nothing was sent upstream"), (status = 401, description = "A key is missing"),
    (status = 403, description = "Another user's memory"), (status = 404, description = "No upstream is known for the model"),
    (status = 502, description = "The upstream cannot be reached"), (status = 504, description = "It is too slow"),
    (status = "default", description = "What the upstream says")))]
async fn messages(
    State(proxy): State<Proxy>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<RawObject>,
) -> Result<Response> {
    proxy.forward(&caller, &headers, body, MESSAGES).await
}

/// Counts the tokens of a request in Anthropic's format, with what is remembered in it.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "chat", request_body = serde_json::Value, responses(
    (status = 200, description = "The upstream's answer", body = serde_json::Value),
    (status = 400, description = "Nothing was sent upstream"), (status = 401, description = "A key is missing"),
    (status = 403, description = "Another user's memory"), (status = 404, description = "No upstream is known for the model"),
    (status = 502, description = "The upstream cannot be reached"), (status = 504, description = "It is too slow"),
    (status = "default", description = "What the upstream says")))]
async fn count_tokens(
    State(proxy): State<Proxy>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<RawObject>,
) -> Result<Response> {
    proxy.forward(&caller, &headers, body, COUNT_TOKENS).await
}

/// The paths of chat APIs that it does not have. Clients that try one of them learn where to ask instead.
async fn not_served(_caller: Caller) -> ApiError {
    let message = "the proxy serves /v1/chat/completions and /v1/messages, and not this path: ask there";
    ApiError::not_found(message).code("unsupported_path")
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Proxy> {
    OpenApiRouter::new()
        .routes(routes!(chat_completions))
        .routes(routes!(messages))
        .routes(routes!(count_tokens))
        .route("/v1/completions", any(not_served))
        .route("/v1/embeddings", any(not_served))
        .route("/v1/responses", any(not_served))
}
