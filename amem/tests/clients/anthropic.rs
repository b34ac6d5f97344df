//! Anthropic's SDK for Python.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amem::http::{ApiError, Identity, KeyHeader, Limits};
use amem::keys::{Grant, KeyFile};
use amem::server::{Options, Server};
use amem_core::Namespace;
use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;

use super::common::{block_on, in_ram, world};
use super::front::Front;
use super::python;
use super::scripted::Scripted;

#[test]
fn anthropics_sdk_reads_answers_streams_and_counts() {
    let memory = in_ram();
    let (notes, questions) = world(41, 12);
    block_on(memory.remember_all("me", notes)).unwrap();
    let front = Front::of(memory);
    let (question, answer) = &questions[0];
    python("anthropic_messages.py", &[&front.url(""), question, answer]);
}

#[test]
fn anthropics_sdk_calls_the_tools_that_the_model_asks_for() {
    let call = r#"Let me see. <call>{"name": "weather", "arguments": {"place": "Rome"}}</call>"#;
    let script = [("How warm is it in Rome?", call), ("It has 20 degrees.", "Quite warm.")];
    let (memory, _) = Scripted::new(&script).memory();
    python("anthropic_tools.py", &[&Front::of(memory).url("")]);
}

/// These paths for who comes after so many others, who are told that too many wait.
fn busy(routes: Router, before: usize) -> Router {
    let came = Arc::new(AtomicUsize::new(0));
    let refuse = move |request: Request, next: Next| {
        let place = came.fetch_add(1, Ordering::Relaxed);
        async move {
            let wait: Response = ApiError::overloaded("too many wait").into_response();
            if place < before { wait } else { next.run(request).await }
        }
    };
    routes.layer(middleware::from_fn(refuse))
}

#[test]
fn anthropics_sdk_raises_the_exception_that_each_error_has() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyFile::at(dir.path().join("keys.json"));
    let (_, key) = keys.create(Grant::Namespace(Namespace::new("me").unwrap())).unwrap();
    let identity = Identity::new(KeyHeader::Authorization).keys(keys);
    let memory = in_ram();
    let routes = || Server::new(memory.clone(), identity.clone(), Options::default()).router();
    let front = Front::start(routes(), Limits::default());
    let mut limits = Limits::default();
    limits.body_bytes = 1024;
    let narrow = Front::start(routes(), limits);
    let crowd = Router::new().nest("/always", busy(routes(), usize::MAX)).nest("/once", busy(routes(), 1));
    let crowded = Front::start(crowd, Limits::default());
    python("anthropic_errors.py", &[&front.url(""), &crowded.url(""), &narrow.url(""), key.expose_secret()]);
}
