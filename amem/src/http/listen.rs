//! From a router to a server: what every request goes through, and how a server stops.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::trace::TraceLayer;

use super::{ApiError, origin, unread};

/// The header that names a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a server takes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a body at most.
    pub body_bytes: usize,
    /// The origins whose pages may call it from a browser and read its answers, beside the server's own; none unless said
    /// otherwise. What pages of this machine send is taken too, but their browser keeps the answers from them.
    pub origins: Vec<HeaderValue>,
    /// The names that it is called by, beside `localhost` and addresses; `None` for any. A page that some other name
    /// leads here (DNS rebinding) is refused.
    pub hosts: Option<Vec<String>>,
    /// How long requests that are being answered are waited for when the server stops.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes: 16 << 20, origins: Vec::new(), hosts: Some(Vec::new()), shutdown: Duration::from_secs(30) }
    }
}

/// A router with what every request goes through: a name, a line in the log, a look at the page that it comes from, the
/// bounds of its body, and an answer that arrives even if the body is not read or a handler panics.
pub fn layers(router: Router, limits: &Limits) -> Router {
    let origins = AllowOrigin::list(limits.origins.iter().cloned());
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, HeaderName::from_static("mcp-session-id")]);
    // The path as it is routed by: without users' names and, in its query, texts.
    let span = |request: &Request| {
        let id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok());
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        tracing::info_span!("request", id, method = %request.method(), path)
    };
    let answered = |response: &Response, latency: Duration, _: &tracing::Span| {
        tracing::info!(status = response.status().as_u16(), ms = latency.as_secs_f64() * 1e3, "answered");
    };
    let panicked = |_: Box<dyn std::any::Any + Send>| ApiError::internal(&"a handler panicked").into_response();
    router
        .fallback(|| async { ApiError::not_found("there is no such path") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(DefaultBodyLimit::max(limits.body_bytes))
        .layer(middleware::map_request_with_state(origin::Allowed::new(limits), origin::refuse_others))
        .layer(middleware::map_request_with_state(limits.body_bytes, unread::read_on))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors)
        .layer(TraceLayer::new_for_http().make_span_with(span).on_request(()).on_response(answered).on_failure(()))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
}

/// Listens on an address.
///
/// # Errors
/// When it is taken, or is not this machine's.
pub async fn bind(host: &str, port: u16) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((host, port)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Does some work, which a server waits for before it can begin, while these routes are answered on its listener.
///
/// # Errors
/// When the listener fails.
pub async fn meanwhile<T>(
    listener: TcpListener,
    router: Router,
    work: impl Future<Output = T>,
) -> std::io::Result<(TcpListener, T)> {
    let listener = listener.into_std()?;
    let other = TcpListener::from_std(listener.try_clone()?)?;
    let (done, ended) = tokio::sync::oneshot::channel::<()>();
    // It is dropped, rather than sent on.
    let server = axum::serve(other, router).with_graceful_shutdown(async move { drop(ended.await) });
    let mut server = tokio::spawn(server.into_future());
    let result = work.await;
    drop(done);
    if tokio::time::timeout(Duration::from_secs(1), &mut server).await.is_err() {
        server.abort();
    }
    Ok((TcpListener::from_std(listener)?, result))
}

/// Serves until `stop` resolves; then answers what is being answered, for as long as the limits allow.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let stop = async move {
        stop.await;
        // The server ended by itself if this fails.
        let _ = stopping.send(());
    };
    let server = axum::serve(listener, router).with_graceful_shutdown(stop).into_future();
    let grace = limits.shutdown;
    let cut_off = async move {
        match stopped.await {
            Ok(()) => tokio::time::sleep(grace).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        served = server => served,
        () = cut_off => {
            tracing::warn!("requests that were still being answered were cut off");
            Ok(())
        }
    }
}
