//! A server of memory for the Model Context Protocol: tools and resources, over standard input and output or HTTP.
//!
//! ```text
//! tools.rs       remember, recall, list_memories, forget, update
//! resources.rs   amem://memories and amem://memories/{id}
//! users.rs       whose memory a request is about
//! watchers.rs    who is told that something changed
//! http.rs        streamable HTTP: who is asking, sessions
//! ```
//!
//! No model is loaded: memories are found by their words. The ledger is shared with whatever server has the same data
//! directory; that one deletes the KV of what is forgotten here.

mod http;
mod resources;
mod sessions;
mod tools;
mod users;
mod watchers;

use std::borrow::Cow;
use std::sync::Arc;

use amem_core::{Namespace, TextMemory};
pub use http::{HttpOptions, router};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, Implementation, ListResourceTemplatesResult, ListResourcesResult,
    ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse, ServerCapabilities,
    ServerConfig, SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequestParams,
};
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt};
use users::Users;
use watchers::{WatcherId, Watchers};

use crate::http::ApiError;

/// What a client tells its model about this server.
const INSTRUCTIONS: &str = "Long-term memory of the user. Call `recall` before you answer anything that may depend on \
     what was said in earlier conversations, and `remember` when the user says something worth knowing in later ones: who \
     they are, what they prefer, what they decided, what they work on. Give a fact that changes over time a key, so that \
     a newer one takes its place. Call `forget` when the user asks for something to be forgotten.";

/// Memory as an MCP server. Cheap to clone; clones are the same server.
#[derive(Clone)]
pub struct Mcp {
    inner: Arc<Inner>,
}

struct Inner {
    memory: TextMemory,
    users: Users,
    watchers: Watchers,
}

impl Mcp {
    /// A server of this memory. It is `user`'s, or, where requests carry keys, their namespace's. With `model_chooses`,
    /// tools take an argument `user` that names any other, unless a key is bound to one.
    pub fn new(memory: TextMemory, user: Option<Namespace>, model_chooses: bool) -> Self {
        let inner = Inner { memory, users: Users::new(user, model_chooses), watchers: Watchers::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Serves one client on standard input and output, until it leaves.
    ///
    /// # Errors
    /// When the client does not speak the protocol, or its pipes break.
    pub async fn stdio(self) -> Result<(), Box<dyn std::error::Error>> {
        let session = Session::new(self, Transport::Stdio);
        let running = match session.serve(rmcp::transport::io::stdio_pipes()).await {
            Ok(running) => running,
            // It left before it said anything.
            Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        running.waiting().await?;
        Ok(())
    }
}

/// How a client speaks to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    /// By pipes of this process: whoever started it is the user.
    Stdio,
    /// By requests, each of which says who is asking.
    Http,
}

/// What one client is answered by.
struct Session {
    mcp: Mcp,
    transport: Transport,
    watcher: WatcherId,
}

impl Session {
    fn new(mcp: Mcp, transport: Transport) -> Self {
        let watcher = mcp.inner.watchers.new_id();
        Self { mcp, transport, watcher }
    }

    fn memory(&self) -> &TextMemory {
        &self.mcp.inner.memory
    }

    fn watchers(&self) -> &Watchers {
        &self.mcp.inner.watchers
    }

    fn users(&self) -> &Users {
        &self.mcp.inner.users
    }

    /// Whose memory a request is about that names nobody.
    fn own(&self, extensions: &rmcp::model::Extensions) -> Result<Namespace, ApiError> {
        self.users().own(self.caller(extensions)?)
    }

    /// Who is asking; `None` where everybody is who started this process.
    fn caller<'e>(&self, extensions: &'e rmcp::model::Extensions) -> Result<Option<&'e crate::http::Caller>, ApiError> {
        match self.transport {
            Transport::Stdio => Ok(None),
            Transport::Http => {
                let parts = extensions.get::<::http::request::Parts>();
                let caller = parts.and_then(|parts| parts.extensions.get::<crate::http::Caller>());
                caller.map(Some).ok_or_else(|| ApiError::internal(&"a request without a caller"))
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.watchers().remove(self.watcher);
    }
}

/// What clients are told where a tool's result is not the place for it.
fn protocol_error(error: &ApiError) -> ErrorData {
    let message = error.message().to_owned();
    match error.status().as_u16() {
        404 => ErrorData::resource_not_found(message, None),
        500.. => ErrorData::internal_error(message, None),
        _ => ErrorData::invalid_params(message, None),
    }
}

#[allow(deprecated, reason = "clients of protocol versions before 2026-07-28 subscribe by resources/subscribe")]
impl ServerHandler for Session {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_resources()
            .enable_resources_list_changed()
            .enable_resources_subscribe()
            .build();
        let implementation =
            Implementation::new("amem", env!("CARGO_PKG_VERSION")).with_title("amem: long-term memory");
        ServerConfig::new(capabilities).with_server_info(implementation).with_instructions(INSTRUCTIONS)
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        if let Ok(own) = self.own(&context.extensions) {
            self.watchers().watch_session(self.watcher, own, context.peer);
        }
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let caller = self.caller(&context.extensions).map_err(|error| protocol_error(&error))?;
        Ok(ListToolsResult::with_all_items(tools::all(self.users().choice(caller).as_ref())))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let CallToolRequestParams { name, arguments, .. } = request;
        if !tools::NAMES.contains(&&*name) {
            let message: Cow<'static, str> = format!("there is no tool {name:?}").into();
            return Err(ErrorData::invalid_params(message, None));
        }
        let called = match self.caller(&context.extensions) {
            Ok(caller) => self.call(&name, arguments.unwrap_or_default(), caller).await,
            Err(error) => Err(error),
        };
        Ok(called.unwrap_or_else(|error| tools::failed(&error)).into())
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let cursor = request.and_then(|request| request.cursor);
        let listed = async { resources::list(self.memory(), &self.own(&context.extensions)?, cursor.as_deref()).await };
        listed.await.map_err(|error| protocol_error(&error))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(resources::templates()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let read = async { resources::read(self.memory(), &self.own(&context.extensions)?, &request.uri).await };
        read.await.map(Into::into).map_err(|error| protocol_error(&error))
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let subscribed = self.own(&context.extensions).and_then(|own| {
            resources::check(&request.uri)?;
            self.watchers().subscribe(self.watcher, own, context.peer, request.uri)
        });
        subscribed.map_err(|error| protocol_error(&error))
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.watchers().unsubscribe(self.watcher, &request.uri);
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        let uris = requested.resource_subscriptions.iter().flatten();
        let known = uris.filter(|uri| resources::check(uri).is_ok()).take(watchers::MAX_URIS);
        Some(SubscriptionFilter::builder().resources_list_changed().resource_subscriptions(known).build())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let own = self.own(&context.request_context().extensions).map_err(|error| protocol_error(&error))?;
        let _watching = self.watchers().listen(own, context.sink().clone(), context.accepted());
        context.cancelled().await;
        Ok(())
    }
}
