//! A server that answers from a local model: OpenAI's and Anthropic's APIs, and memory's own (`crate::memories`).
//!
//! ```text
//! chat formats    openai/  anthropic/      what clients send, as a Turn; what came of it, as they read it
//! conversation.rs Conversation             messages of all formats, as the model is told them
//! turn.rs         Turn → Running           one way from a question to its answer, for all formats
//! choice.rs       Choice                   an answer as it comes: its text apart from the tools that it calls
//! structured.rs   Format → constraint      answers of a form that the request fixes
//! sessions/       Sessions                 working sets that stay, by name
//! prefill.rs      POST /v1/memories/{user}/prefill
//! extract.rs      POST /v1/extract         the facts of a text, remembered one by one
//! stats.rs        GET /v1/stats            what is held, and what was done
//! operations.rs   health, ready, metrics, POST /v1/admin/purge
//! ```

mod anthropic;
mod choice;
mod conversation;
mod extract;
mod ids;
mod openai;
mod operations;
mod prefill;
mod sessions;
mod stats;
mod structured;
mod turn;
mod until_error;

use std::sync::Arc;
use std::time::Duration;

use amem_core::transformer::Encoder;
use amem_core::{Memory, Timestamp};
use axum::Router;
use axum::extract::FromRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::http::{ApiError, Identity, Result};
use crate::memories::{self, AnyMemory, MemoryPaths, PrefillAhead};
use operations::Operations;
use sessions::Sessions;

/// Prefills of whole memories that are computed at a time at most, for clients that wait for them.
const PREFILLS: usize = 4;

/// How questions are answered that name no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each by itself: the memories that it is about are blended for it (`kv-serve`).
    Blend,
    /// In one session for each user, whose working set stays in place (`serve`).
    Resident,
}

impl Mode {
    /// The command's name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Blend => "kv-serve",
            Mode::Resident => "serve",
        }
    }
}

/// An encoder that is served, by its name.
#[derive(Clone, Debug)]
pub struct EmbeddingModel {
    /// What clients are told that it is.
    pub name: String,
    /// The encoder.
    pub encoder: Encoder,
}

/// How a server goes about its work.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How questions are answered that name no session.
    pub mode: Mode,
    /// Memories that are recalled for a question, if it does not say how many.
    pub k: usize,
    /// Tokens that are answered with at most, if a request does not say how many.
    pub max_tokens: usize,
    /// Tokens that a session holds at most, if it does not say how many; `None` for as many as the model can.
    pub budget_tokens: Option<usize>,
    /// The share, 0 to 1, of the cached tokens a session begins with that are computed again; `None` for what
    /// [`SessionOptions`](amem_core::SessionOptions) has.
    pub recompute_ratio: Option<f32>,
    /// Sessions that are held at most. Beyond that, and when the KV cache is full, the user who has most loses the one that
    /// was used longest ago.
    pub max_sessions: usize,
    /// How long a session is held that nobody uses.
    pub session_idle: Duration,
    /// Requests at most that wait before they come to the engine, which has a bound of its own: for their sessions, for
    /// schemas and long texts to be read, for the encoder.
    pub max_waiting: usize,
    /// Texts of one request at most.
    pub max_texts: usize,
    /// Whether the KV of a user's memories that is not held is computed in the background whenever something is remembered
    /// for them, rather than with the first question that recalls it.
    pub prefill_ahead: bool,
    /// Whether nothing that is kept may be changed, so that KV which is computed now would be lost again.
    pub read_only: bool,
    /// What a million tokens of input cost elsewhere, in US dollars: for estimates of what was saved.
    pub usd_per_mtok: f64,
    /// Whether `/metrics` needs no key. Otherwise it needs one that may do everything, if keys are needed at all.
    pub open_metrics: bool,
    /// What `/v1/embeddings` answers with; without one it answers with the KV of the model that answers questions.
    pub embedding_model: Option<EmbeddingModel>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Blend,
            k: 8,
            max_tokens: 256,
            budget_tokens: None,
            recompute_ratio: None,
            max_sessions: 256,
            session_idle: Duration::from_secs(30 * 60),
            max_waiting: 1024,
            max_texts: 1000,
            prefill_ahead: false,
            read_only: false,
            usd_per_mtok: 0.20,
            open_metrics: false,
            embedding_model: None,
        }
    }
}

/// A memory that is served. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    memory: Memory,
    identity: Identity,
    options: Options,
    sessions: Sessions,
    structured: structured::Structured,
    /// Requests that may wait beside those that do.
    waiting: Arc<Semaphore>,
    /// Long texts are cut into tokens one at a time, on a thread of their own.
    long_text: Arc<Semaphore>,
    /// Prefills of whole memories that clients wait for.
    prefills: Arc<Semaphore>,
    prefill_ahead: Option<PrefillAhead>,
    started: Timestamp,
    operations: Operations,
}

impl Server {
    /// A server of this memory.
    pub fn new(memory: Memory, identity: Identity, options: Options) -> Self {
        let waiting = Arc::new(Semaphore::new(options.max_waiting.min(Semaphore::MAX_PERMITS)));
        let sessions = Sessions::new(options.max_sessions, options.session_idle, Arc::clone(&waiting));
        let (info, make_room) = (memory.model().info(), sessions.room_maker());
        let token_bytes = (info.shape.token_numbers() * info.dtype.size()) as u64;
        memory.engine().make_room_with(move |tokens| make_room(token_bytes * tokens as u64));
        let (long_text, prefills) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(PREFILLS)));
        let prefill_ahead = options.prefill_ahead.then(|| PrefillAhead::new(memory.clone()));
        let (structured, started) = (structured::Structured::default(), Timestamp::now());
        let operations = Operations::new();
        let inner = Inner {
            memory,
            identity,
            options,
            sessions,
            structured,
            waiting,
            long_text,
            prefills,
            prefill_ahead,
            started,
            operations,
        };
        Self { inner: Arc::new(inner) }
    }

    /// What is answered in its place while the model is loaded.
    pub fn starting(mode: Mode) -> Router {
        operations::starting(mode)
    }

    /// The paths that it answers.
    pub fn router(self) -> Router {
        #[derive(OpenApi)]
        #[openapi(info(title = "amem", description = "Agent memory that lives in a model's KV cache"))]
        struct Document;
        let routes = OpenApiRouter::with_openapi(Document::openapi())
            .merge(openai::routes())
            .merge(anthropic::routes())
            .merge(extract::routes())
            .merge(prefill::routes())
            .merge(sessions::routes())
            .merge(stats::routes())
            .merge(operations::routes());
        let routes = routes.with_state(self.clone()).merge(memories::routes(self.memory_paths()));
        let (router, document) = routes.split_for_parts();
        let router = router.merge(utoipa_swagger_ui::SwaggerUi::new("/docs").url("/openapi.json", document));
        self.operations().count(router)
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.inner.memory
    }

    /// When it was made.
    pub(crate) fn started(&self) -> Timestamp {
        self.inner.started
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    /// A place among those who wait.
    ///
    /// # Errors
    /// 429 when too many do.
    pub(crate) fn waiting_permit(&self) -> Result<SemaphorePermit<'_>> {
        place(&self.inner.waiting)
    }

    /// A permit for what is done for few at a time. To be held by the work itself, which may outlast whoever wants it.
    ///
    /// # Errors
    /// 429 when too many wait.
    async fn permit(&self, permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = self.waiting_permit()?;
        Arc::clone(permits).acquire_owned().await.map_err(|error| ApiError::internal(&error))
    }

    /// The memory as the paths of both servers know it.
    fn any_memory(&self) -> AnyMemory {
        AnyMemory::Kv(self.memory().clone(), self.inner.prefill_ahead.clone())
    }

    fn memory_paths(&self) -> MemoryPaths {
        let Options { max_texts, k, usd_per_mtok, .. } = *self.options();
        MemoryPaths {
            memory: self.any_memory(),
            identity: self.inner.identity.clone(),
            sessions: Arc::new(self.clone()),
            max_texts,
            k,
            budget_tokens: None,
            usd_per_mtok: Some(usd_per_mtok),
        }
    }
}

/// A place among so many who may wait.
fn place(waiting: &Semaphore) -> Result<SemaphorePermit<'_>> {
    waiting.try_acquire().map_err(|_| ApiError::overloaded("too many requests wait: try again later"))
}

impl FromRef<Server> for Identity {
    fn from_ref(server: &Server) -> Self {
        server.inner.identity.clone()
    }
}
