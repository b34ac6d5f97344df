//! Numbers for Prometheus. No label holds a user's name or a text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::Response;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

/// Bounds of histograms of seconds: from a cached list to an answer of many tokens.
const SECONDS: [f64; 15] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const REQUESTS: &str = "amem_http_requests_total";
const DURATION: &str = "amem_http_request_duration_seconds";
const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// The numbers of one server. Cheap to clone; clones are the same numbers. They belong to the server, not to the process.
#[derive(Clone, Debug)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new();
        // Buckets that are there are taken.
        let builder = builder.set_buckets(&SECONDS).unwrap_or_default();
        let metrics = Self { recorder: Arc::new(builder.build_recorder()) };
        let seconds = Some(Unit::Seconds);
        metrics.recorder.describe_counter(REQUESTS.into(), None, "Requests that were answered.".into());
        let text = "Seconds until a request's answer began: all of it, unless it is streamed.";
        metrics.recorder.describe_histogram(DURATION.into(), seconds, text.into());
        metrics
    }

    /// A number that grows, described by a text.
    pub fn counter(&self, name: &'static str, labels: &[(&'static str, &'static str)], text: &'static str) -> Counter {
        self.recorder.describe_counter(name.into(), None, text.into());
        self.recorder.register_counter(&key(name, labels), &METADATA)
    }

    /// A number that is set, described by a text.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, String)], text: &'static str) -> Gauge {
        self.recorder.describe_gauge(name.into(), None, text.into());
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// How often something took how long, described by a text.
    pub fn seconds(&self, name: &'static str, text: &'static str) -> Histogram {
        self.recorder.describe_histogram(name.into(), Some(Unit::Seconds), text.into());
        self.recorder.register_histogram(&key::<&str>(name, &[]), &METADATA)
    }

    /// All of them, in the format that Prometheus reads.
    pub fn render(&self) -> String {
        let handle = self.recorder.handle();
        handle.run_upkeep();
        handle.render()
    }

    /// Counts the requests that a router has a path for, by the patterns of these paths.
    pub fn count(&self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self.clone(), observe))
    }

    fn answered(&self, method: &Method, path: SharedString, status: u16, after: Duration) {
        let labels = vec![Label::new("method", method_name(method)), Label::new("path", path)];
        let duration = Key::from_parts(DURATION, labels.clone());
        self.recorder.register_histogram(&duration, &METADATA).record(after.as_secs_f64());
        let requests = Key::from_parts(REQUESTS, [labels, vec![Label::new("status", status.to_string())]].concat());
        self.recorder.register_counter(&requests, &METADATA).increment(1);
    }
}

fn key<T: Clone + Into<SharedString>>(name: &'static str, labels: &[(&'static str, T)]) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, value.clone())).collect();
    Key::from_parts(name, labels)
}

/// A method by its name, if it is one that a client of ours can mean: what others make up would be labels without end.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

async fn observe(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let (began, method) = (Instant::now(), request.method().clone());
    // The path as it is routed by. One that is none of the server's is not named: clients make them up without end.
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path = path.map_or(SharedString::const_str("none"), SharedString::from_owned);
    let response = next.run(request).await;
    metrics.answered(&method, path, response.status().as_u16(), began.elapsed());
    response
}
