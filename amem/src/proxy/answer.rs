//! What comes back from an upstream: byte for byte, and counted as it passes.

use std::time::Instant;

use amem_core::{BoxError, Namespace};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Proxy;
use super::conversations::Plan;
use super::translate::{StreamTranslation, Translation};
use super::upstream::{Upstream, failed, shown};
use super::usage::{Observer, Tokens, Usage};
use crate::http::{ApiError, Result};

/// Bytes of an answer at most that is not a stream.
const ANSWER_BYTES: usize = 64 << 20;

/// A request that was sent upstream, for what is said of its answer.
pub(super) struct Exchange {
    pub(super) namespace: Namespace,
    pub(super) session: Option<String>,
    pub(super) upstream: String,
    pub(super) model: String,
    pub(super) plan: Plan,
    /// How it is told to a client of another format.
    pub(super) translation: Option<Translation>,
    /// Whether a model answers, which is counted.
    pub(super) is_answered: bool,
    pub(super) started: Instant,
}

/// What the model was told, and what its upstream says of it: the object `amem` of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Report {
    user: String,
    session: Option<String>,
    mode: &'static str,
    upstream: String,
    model: String,
    /// The ids of the memories that were recalled for this question and stand in the request.
    recalled: Vec<String>,
    /// Snapshots of this conversation so far, this one included.
    epoch: usize,
    /// Memories that stand in the request.
    n_turns_resident: usize,
    /// Their tokens, as their bytes let guess.
    resident_tokens: u64,
    /// Those of them that the upstream's prefix cache held, if all that it held was memory.
    memory_tokens_reused: u64,
    /// The others.
    memory_tokens_prefilled_now: u64,
    /// Whether the prefix cache held anything.
    kv_reused: bool,
    /// Tokens of the prompt that the prefix cache held; absent if the upstream does not say.
    cache_read_tokens: Option<u64>,
    /// Tokens that were written to it.
    cache_write_tokens: Option<u64>,
    /// What the answer cost, in US dollars, if the model's prices are known.
    cost_usd: Option<f64>,
    /// What the prefix cache saved of it.
    saved_usd: Option<f64>,
    /// Seconds to the end of the answer.
    latency_s: f64,
}

/// An answer that passes, which is counted at its end, and where its client leaves.
struct Passing {
    bytes: BoxStream<'static, reqwest::Result<Bytes>>,
    observer: Observer,
    translation: Option<StreamTranslation>,
    /// `None` once it is counted.
    account: Option<(Proxy, Exchange)>,
}

impl Passing {
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        loop {
            let bytes = match self.bytes.next().await {
                Some(Ok(bytes)) => bytes,
                end => {
                    // Before the client is told that this is the end.
                    self.count().await;
                    return end.map(|end| end.map_err(Into::into));
                }
            };
            self.observer.observe(&bytes);
            match &mut self.translation {
                None => return Some(Ok(bytes)),
                Some(translation) => match translation.read(&bytes) {
                    Ok(told) if told.is_empty() => {}
                    told => return Some(told.map(Bytes::from).map_err(Into::into)),
                },
            }
        }
    }

    async fn count(&mut self) {
        if let Some((proxy, exchange)) = self.account.take() {
            proxy.count_answer(&exchange, self.observer.tokens()).await;
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let (Some((proxy, exchange)), Ok(runtime)) = (self.account.take(), tokio::runtime::Handle::try_current()) {
            let tokens = self.observer.tokens();
            runtime.spawn(async move { proxy.count_answer(&exchange, tokens).await });
        }
    }
}

impl Proxy {
    async fn count_answer(&self, exchange: &Exchange, tokens: Option<Tokens>) {
        let cost = tokens.and_then(|tokens| self.inner.config.cost(&exchange.model, &tokens));
        self.count(&exchange.namespace, tokens, cost).await;
    }

    /// Passes an answer on. One that is no stream gets what is said about it, unless the caller does not want that.
    pub(super) async fn answer(
        &self,
        exchange: Exchange,
        upstream: &Upstream,
        response: reqwest::Response,
        caller: &HeaderMap,
    ) -> Result<Response> {
        let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let content_type = content_type.unwrap_or_default().trim_start().to_ascii_lowercase();
        if !response.status().is_success() || !exchange.is_answered {
            return Ok(passed(response));
        }
        if !content_type.starts_with("application/json") {
            let (status, headers) = (response.status(), shown(response.headers()));
            let translation = exchange.translation.clone().map(Translation::stream);
            let (bytes, observer) = (response.bytes_stream().boxed(), Observer::default());
            let passing = Passing { bytes, observer, translation, account: Some((self.clone(), exchange)) };
            let bytes = stream::unfold(passing, |mut passing| async { Some((passing.next().await?, passing)) });
            return Ok(with(Body::from_stream(bytes), status, headers));
        }
        let (status, headers) = (response.status(), shown(response.headers()));
        let mut body = whole(upstream, response).await?;
        let answer: Option<Value> = serde_json::from_slice(&body).ok();
        if let (Some(translation), Some(answer)) = (&exchange.translation, &answer) {
            body = translation.answer(answer).to_string().into();
        }
        let mut usage = Usage::default();
        answer.iter().for_each(|answer| usage.read(answer));
        self.count_answer(&exchange, usage.tokens()).await;
        let is_wanted = caller.get("x-amem-report").is_none_or(|wanted| wanted != "false");
        let body = match answer {
            Some(Value::Object(answer)) if is_wanted && !answer.is_empty() && !answer.contains_key("amem") => {
                with_report(&body, &self.report(exchange, usage.tokens()))?
            }
            _ => body,
        };
        Ok(with(Body::from(body), status, headers))
    }

    fn report(&self, exchange: Exchange, tokens: Option<Tokens>) -> Report {
        let Exchange { namespace, session, upstream, model, plan, started, .. } = exchange;
        let cost = tokens.and_then(|tokens| self.inner.config.cost(&model, &tokens));
        let (resident, read) = (plan.tokens(), tokens.map_or(0, |tokens| tokens.cache_read));
        let reused = resident.min(read);
        Report {
            user: namespace.as_str().to_owned(),
            session,
            mode: "proxy",
            upstream,
            model,
            recalled: plan.recalled.iter().map(ToString::to_string).collect(),
            epoch: plan.epoch,
            n_turns_resident: plan.memories,
            resident_tokens: resident,
            memory_tokens_reused: reused,
            memory_tokens_prefilled_now: resident - reused,
            kv_reused: read > 0,
            cache_read_tokens: tokens.map(|tokens| tokens.cache_read),
            cache_write_tokens: tokens.map(|tokens| tokens.cache_write),
            cost_usd: cost.map(|cost| cost.spent),
            saved_usd: cost.map(|cost| cost.saved),
            latency_s: started.elapsed().as_secs_f64(),
        }
    }
}

/// An upstream's answer as it is.
pub(super) fn passed(response: reqwest::Response) -> Response {
    let (status, headers) = (response.status(), shown(response.headers()));
    with(Body::from_stream(response.bytes_stream()), status, headers)
}

fn with(body: Body, status: axum::http::StatusCode, headers: HeaderMap) -> Response {
    let mut response = Response::new(body);
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    response
}

async fn whole(upstream: &Upstream, mut response: reqwest::Response) -> Result<Bytes> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(|error| failed(upstream, error))? {
        if body.len() + bytes.len() > ANSWER_BYTES {
            return Err(ApiError::bad_gateway(format!("the upstream {}'s answer does not end", upstream.name)));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body.into())
}

/// An object with what is said about it as its last field. The other bytes stay as they are.
fn with_report(object: &Bytes, report: &Report) -> Result<Bytes> {
    let report = serde_json::to_string(report).map_err(|error| ApiError::internal(&error))?;
    let end = object.trim_ascii_end();
    let Some(fields) = end.strip_suffix(b"}") else { return Ok(object.clone()) };
    let mut body = fields.to_vec();
    body.extend_from_slice(b",\"amem\":");
    body.extend_from_slice(report.as_bytes());
    body.push(b'}');
    body.extend_from_slice(&object[end.len()..]);
    Ok(body.into())
}
