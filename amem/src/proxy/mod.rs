//! Memory in front of a model that runs elsewhere: OpenAI's and Anthropic's APIs, passed on to an upstream with what is
//! remembered in them; and memory's own (`crate::memories`).
//!
//! ```text
//! forward.rs         a request, from the caller to the upstream and back
//! layout.rs          where memories stand in a request, for the upstream's prefix cache   (raw.rs: the rest as it came)
//! conversations.rs   what each conversation was told: snapshots and turns
//! upstream.rs        where requests go, with whose key and which headers                  (config.rs, defaults.toml)
//! answer.rs          what comes back: byte for byte, and counted                          (usage.rs)
//! models.rs          what upstreams say about their models
//! translate.rs       OpenAI's format for an upstream that speaks Anthropic's
//! secret.rs          names for upstreams that tell nobody whose they are
//! sessions.rs        conversations that their clients name
//! operations.rs      health and stats
//! ```

mod answer;
mod config;
mod conversations;
mod forward;
mod layout;
mod models;
mod operations;
mod raw;
mod secret;
mod sessions;
mod translate;
mod upstream;
mod usage;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amem_core::{Amounts, Namespace, TextMemory};
use axum::Router;
use axum::extract::FromRef;
use config::Cost;
pub use config::{Config, ModelConfig, UpstreamConfig};
use conversations::{Budget, Conversations};
pub use secret::Secret;
use upstream::Upstreams;
pub use upstream::{Kind, UpstreamError};
use usage::Tokens;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::http::Identity;
use crate::memories::{self, AnyMemory, MemoryPaths};

/// How a proxy goes about its work.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Memories that are recalled for a question, if a request does not say how many.
    pub k: usize,
    /// Memories that a conversation's snapshot holds at most.
    pub max_turns: usize,
    /// Tokens that it holds at most, about; and those that are recalled beside it before it is made anew.
    pub budget_tokens: usize,
    /// Conversations whose snapshots are held at most. Beyond that, whoever has most loses those that were used longest ago.
    pub max_conversations: usize,
    /// Bytes that these snapshots, and what was told with questions, take at most, about. Beyond that, conversations leave as beyond
    /// `max_conversations`.
    pub conversation_bytes: usize,
    /// How long an upstream may say nothing.
    pub timeout: Duration,
    /// Texts of one request at most.
    pub max_texts: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            k: 8,
            max_turns: 40,
            budget_tokens: 6000,
            max_conversations: 2048,
            conversation_bytes: 256 << 20,
            timeout: Duration::from_secs(600),
            max_texts: 1000,
        }
    }
}

/// A memory in front of upstreams. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    memory: TextMemory,
    identity: Identity,
    config: Config,
    options: Options,
    secret: Secret,
    upstreams: Upstreams,
    conversations: Conversations,
    spent: Mutex<Spent>,
}

/// What was done since the start, for all callers.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    /// Answers whose upstream did not say what they used.
    unmetered: u64,
    usd: f64,
    saved_usd: f64,
}

impl Proxy {
    /// A proxy. The keys for its upstreams are looked up by the names that the configuration has for them.
    ///
    /// # Errors
    /// When an upstream is not configured as it must be.
    pub fn new(
        memory: TextMemory,
        identity: Identity,
        config: Config,
        secret: Secret,
        options: Options,
        key: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, UpstreamError> {
        let upstreams = Upstreams::new(&config, key, options.timeout)?;
        let conversations = Conversations::new(options.max_conversations.max(1), options.conversation_bytes);
        let spent = Mutex::default();
        let inner = Inner { memory, identity, config, options, secret, upstreams, conversations, spent };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The paths that it answers.
    pub fn router(self) -> Router {
        #[derive(OpenApi)]
        #[openapi(info(title = "amem proxy", description = "Agent memory in front of a model that runs elsewhere"))]
        struct Document;
        let routes = OpenApiRouter::with_openapi(Document::openapi())
            .merge(forward::routes())
            .merge(models::routes())
            .merge(sessions::routes())
            .merge(operations::routes());
        let routes = routes.with_state(self.clone()).merge(memories::routes(self.memory_paths()));
        let (router, document) = routes.split_for_parts();
        router.merge(utoipa_swagger_ui::SwaggerUi::new("/docs").url("/openapi.json", document))
    }

    fn memory(&self) -> &TextMemory {
        &self.inner.memory
    }

    fn memory_paths(&self) -> MemoryPaths {
        let Options { max_texts, k, budget_tokens, .. } = self.inner.options;
        MemoryPaths {
            memory: AnyMemory::Texts(self.memory().clone()),
            identity: self.inner.identity.clone(),
            sessions: Arc::new(self.clone()),
            max_texts,
            k,
            budget_tokens: Some(budget_tokens),
            usd_per_mtok: None,
        }
    }

    fn budget(&self) -> Budget {
        let Options { k, max_turns, budget_tokens, .. } = self.inner.options;
        Budget { k, memories: max_turns, tokens: budget_tokens }
    }

    fn spent(&self) -> Spent {
        *self.inner.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer. If that cannot be written now, it is written with what is counted next: the answer is paid for, and
    /// is not held back for it.
    async fn count(&self, namespace: &Namespace, tokens: Option<Tokens>, cost: Option<Cost>) {
        {
            let mut spent = self.inner.spent.lock().unwrap_or_else(PoisonError::into_inner);
            spent.unmetered += u64::from(tokens.is_none());
            spent.usd += cost.map_or(0.0, |cost| cost.spent);
            spent.saved_usd += cost.map_or(0.0, |cost| cost.saved);
        }
        let Tokens { input, cache_read, output, .. } = tokens.unwrap_or_default();
        let mut amounts = Amounts::default();
        (amounts.requests, amounts.reused_tokens) = (1, cache_read);
        (amounts.prefilled_tokens, amounts.generated_tokens) = (input - cache_read, output);
        if let Err(error) = self.memory().record_usage(namespace, amounts).await {
            tracing::warn!(%error, "usage could not be written, and waits");
        }
    }
}

impl FromRef<Proxy> for Identity {
    fn from_ref(proxy: &Proxy) -> Self {
        proxy.inner.identity.clone()
    }
}
