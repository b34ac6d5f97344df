//! `/v1/models`: what upstreams say about their models.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Proxy;
use super::answer::passed;
use super::forward::OWN_MODEL;
use super::layout::Format;
use super::upstream::Upstream;
use crate::http::{ApiError, Caller, Params, Result, Segments};

/// Which upstream. What else a query says goes there.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ModelsQuery {
    /// Its name. If left out, for a model the one that it would be asked at, and for all of them the default, or another one
    /// if the caller's key is meant for that.
    provider: Option<String>,
}

impl Proxy {
    /// What an upstream says at one of its paths.
    async fn ask_about_models(
        &self,
        upstream: &Upstream,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Response> {
        // Anthropic's clients send at least one of these.
        let is_anthropics = ["anthropic-version", "x-api-key"].iter().any(|name| headers.contains_key(*name));
        let format = if is_anthropics { Format::Anthropic } else { Format::OpenAi };
        let sent = upstream.headers(headers, format, self.inner.identity.is_on())?;
        let mut url = upstream.url(path);
        url.set_query(query.and_then(without_provider).as_deref());
        Ok(passed(self.inner.upstreams.send(upstream, Method::GET, url, sent, None).await?))
    }
}

/// A query without what it says to the proxy; `None` if nothing else is in it. Clients page through lists by the rest.
fn without_provider(query: &str) -> Option<String> {
    let is_theirs = |field: &&str| !field.is_empty() && field.split('=').next() != Some("provider");
    let theirs: Vec<&str> = query.split('&').filter(is_theirs).collect();
    (!theirs.is_empty()).then(|| theirs.join("&"))
}

/// Whether this can name a model. As a part of a path it then leads to that model, and to nothing else of the upstream, for
/// which the server may have a key.
fn is_name(model: &str) -> bool {
    !model.chars().any(char::is_control) && model.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The models of an upstream.
#[utoipa::path(get, path = "/v1/models", tag = "chat", params(ModelsQuery), responses(
    (status = 200, description = "The upstream's answer", body = serde_json::Value),
    (status = 400, description = "No such upstream, or none that is meant"), (status = 401, description = "A key is missing"),
    (status = "default", description = "What the upstream says")))]
async fn list(
    State(proxy): State<Proxy>,
    _caller: Caller,
    headers: HeaderMap,
    Params(query): Params<ModelsQuery>,
    RawQuery(raw): RawQuery,
) -> Result<Response> {
    let upstreams = &proxy.inner.upstreams;
    let upstream = match &query.provider {
        Some(name) => upstreams.choose(Some(name), "")?,
        None => upstreams.to_list(&headers)?,
    };
    proxy.ask_about_models(upstream, "/models", raw.as_deref(), &headers).await
}

/// One model of an upstream.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "chat",
    params(("model" = String, Path, description = "Its name"), ModelsQuery), responses(
    (status = 200, description = "The upstream's answer", body = serde_json::Value),
    (status = 400, description = "No such upstream"), (status = 401, description = "A key is missing"),
    (status = 404, description = "No upstream is known for the model"),
    (status = "default", description = "What the upstream says")))]
async fn get(
    State(proxy): State<Proxy>,
    _caller: Caller,
    headers: HeaderMap,
    Segments(model): Segments<String>,
    Params(query): Params<ModelsQuery>,
    RawQuery(raw): RawQuery,
) -> Result<Response> {
    let model = match &proxy.inner.config.default_model {
        Some(default) if model == OWN_MODEL => default.clone(),
        _ => model,
    };
    if !is_name(&model) {
        let error = ApiError::not_found(format!("there is no model {model:?}"));
        return Err(error.param("model").code("model_not_found"));
    }
    let upstream = proxy.inner.upstreams.choose(query.provider.as_deref(), &model)?;
    proxy.ask_about_models(upstream, &format!("/models/{model}"), raw.as_deref(), &headers).await
}

/// As [`get`], for a name with a slash.
async fn get_of_owner(
    proxy: State<Proxy>,
    caller: Caller,
    headers: HeaderMap,
    Segments((owner, model)): Segments<(String, String)>,
    query: Params<ModelsQuery>,
    raw: RawQuery,
) -> Result<Response> {
    get(proxy, caller, headers, Segments(format!("{owner}/{model}")), query, raw).await
}

/// The paths of this module.
pub(super) fn routes() -> OpenApiRouter<Proxy> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .route("/v1/models/{owner}/{model}", axum::routing::get(get_of_owner))
}
