//! Where requests go: the upstreams that the operator named, and no other address.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::config::{Config, UpstreamConfig};
use super::layout::Format;
use crate::http::{ApiError, Result};

/// The version of Anthropic's API, if a client does not say which it speaks.
const ANTHROPIC_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What runs at an upstream, which says how its prefix cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// OpenAI, or what speaks its API and takes all of its parameters: `prompt_cache_key`.
    Openai,
    /// What speaks OpenAI's API and may refuse parameters that it does not know: its cache is told nothing.
    OpenaiCompatible,
    /// Anthropic: breakpoints.
    Anthropic,
    /// vLLM: `cache_salt`.
    Vllm,
    /// SGLang: `cache_salt`.
    Sglang,
    /// Ollama, whose cache takes no instructions.
    Ollama,
    /// llama.cpp's server, whose cache takes no instructions.
    LlamaCpp,
}

impl Kind {
    /// Whether it is asked in this format. Open servers speak both.
    pub(super) fn speaks(self, format: Format) -> bool {
        match self {
            Kind::Openai | Kind::OpenaiCompatible => format == Format::OpenAi,
            Kind::Anthropic => format == Format::Anthropic,
            _ => true,
        }
    }

    /// Whether its prefix cache keeps apart what has another salt.
    pub(super) fn takes_salt(self) -> bool {
        matches!(self, Kind::Vllm | Kind::Sglang)
    }
}

impl FromStr for Kind {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(match name {
            "openai" => Kind::Openai,
            "openai-compatible" => Kind::OpenaiCompatible,
            "anthropic" => Kind::Anthropic,
            "vllm" => Kind::Vllm,
            "sglang" => Kind::Sglang,
            "ollama" => Kind::Ollama,
            "llama-cpp" => Kind::LlamaCpp,
            _ => return Err("it must be openai, openai-compatible, anthropic, vllm, sglang, ollama or llama-cpp"),
        })
    }
}

/// An upstream.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) name: String,
    pub(super) kind: Kind,
    base: Url,
    /// The server's own key for it.
    key: Option<SecretString>,
    needs_key: bool,
    forward_caller_key: bool,
    forward_headers: Vec<HeaderName>,
    models: Vec<String>,
}

/// What is wrong with the configuration of an upstream.
#[derive(Debug, thiserror::Error)]
#[error("upstream {name}: {reason}")]
pub struct UpstreamError {
    name: String,
    reason: String,
}

impl Upstream {
    fn new(name: &str, config: &UpstreamConfig, key: Option<SecretString>) -> Result<Self, UpstreamError> {
        let wrong = |reason: String| UpstreamError { name: name.to_owned(), reason };
        let mut base = Url::parse(&config.url).map_err(|error| wrong(format!("{}: {error}", config.url)))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(wrong(format!("{} is no http or https address", config.url)));
        }
        if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
            return Err(wrong(
                "its address must hold neither a password nor a query: name its key with key_env".into(),
            ));
        }
        let path = base.path().trim_end_matches('/').to_owned();
        base.set_path(if path.is_empty() { "/v1" } else { &path });
        let headers = config.forward_headers.iter().map(|name| HeaderName::from_str(name));
        let forward_headers = headers.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
        Ok(Self {
            name: name.to_owned(),
            kind: config.kind,
            base,
            key,
            needs_key: config.key_env.is_some(),
            forward_caller_key: config.forward_caller_key,
            forward_headers,
            models: config.models.clone(),
        })
    }

    /// The key that goes upstream: the caller's, or else the server's own, for callers that it knows. What a caller has
    /// for this server never goes upstream.
    ///
    /// # Errors
    /// 401 when there is none, and one is needed.
    fn credentials(
        &self,
        caller: &HeaderMap,
        format: Format,
        is_known: bool,
    ) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let own = |key: &SecretString| -> Result<Vec<(HeaderName, HeaderValue)>> {
            let key = key.expose_secret();
            let (name, value) = match self.kind {
                Kind::Anthropic => (X_API_KEY, key.to_owned()),
                _ => (header::AUTHORIZATION, format!("Bearer {key}")),
            };
            let value =
                HeaderValue::from_str(&value).map_err(|_| ApiError::internal(&"an upstream's key is no text"))?;
            Ok(vec![(name, value)])
        };
        let names = [header::AUTHORIZATION, X_API_KEY].into_iter().filter(|_| self.forward_caller_key);
        let mut theirs: Vec<_> = names.filter_map(|name| Some((name.clone(), caller.get(name)?.clone()))).collect();
        if self.kind == Kind::Anthropic && format == Format::OpenAi {
            theirs.iter_mut().for_each(as_api_key);
        }
        let mut keys = match &self.key {
            _ if !theirs.is_empty() => theirs,
            Some(key) if is_known => own(key)?,
            _ if self.needs_key => {
                let message = format!(
                    "no key for the upstream {}: send your own in Authorization or x-api-key, or one of this server in \
                     X-Amem-Key, if it has a key for that upstream",
                    self.name
                );
                return Err(ApiError::unauthenticated(message));
            }
            _ => Vec::new(),
        };
        keys.iter_mut().for_each(|(_, value)| value.set_sensitive(true));
        Ok(keys)
    }

    /// The headers that a request goes upstream with. Only those that are known to be meant for it do: others may say what
    /// is between the caller, its gateway and this server.
    ///
    /// # Errors
    /// 401 without a key, where one is needed.
    pub(super) fn headers(&self, caller: &HeaderMap, format: Format, is_known: bool) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in caller.iter().filter(|(name, _)| self.is_forwarded(name)) {
            headers.append(name.clone(), value.clone());
        }
        headers.extend(self.credentials(caller, format, is_known)?);
        if self.kind == Kind::Anthropic {
            headers.entry("anthropic-version").or_insert(ANTHROPIC_VERSION);
        }
        Ok(headers)
    }

    fn is_forwarded(&self, name: &HeaderName) -> bool {
        const NAMES: [&str; 8] = [
            "accept",
            "user-agent",
            "idempotency-key",
            "traceparent",
            "tracestate",
            "x-request-id",
            "x-client-request-id",
            "x-app",
        ];
        const BEGINNINGS: [&str; 3] = ["anthropic-", "openai-", "x-stainless-"];
        let text = name.as_str();
        if text.starts_with("x-amem-") || matches!(text, "authorization" | "x-api-key") {
            return false;
        }
        NAMES.contains(&text)
            || BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
            || self.forward_headers.contains(name)
    }

    /// Where one of its paths is. The path is no URL yet: what has a meaning there is escaped.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        // Only addresses without a host have no path that can be added to.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path.split('/').filter(|segment| !segment.is_empty()));
        }
        url
    }
}

/// Whose format a caller's key belongs to; `None` for a caller without one. Anthropic's is known by its header or by how it
/// begins.
fn format_of_key(caller: &HeaderMap) -> Option<Format> {
    match caller.get(header::AUTHORIZATION) {
        _ if caller.contains_key(X_API_KEY) => Some(Format::Anthropic),
        Some(key) if key.as_bytes().starts_with(b"Bearer sk-ant-") => Some(Format::Anthropic),
        Some(_) if caller.contains_key("anthropic-version") => Some(Format::Anthropic),
        Some(_) => Some(Format::OpenAi),
        None => None,
    }
}

/// A key as OpenAI's clients send it becomes one as Anthropic's API wants it.
fn as_api_key((name, value): &mut (HeaderName, HeaderValue)) {
    let key = value.as_bytes().strip_prefix(b"Bearer ").and_then(|key| HeaderValue::from_bytes(key).ok());
    if let Some(key) = key.filter(|_| *name == header::AUTHORIZATION) {
        (*name, *value) = (X_API_KEY, key);
    }
}

/// The upstreams that there are.
pub(super) struct Upstreams {
    by_name: BTreeMap<String, Upstream>,
    default: Option<String>,
    client: reqwest::Client,
}

impl Upstreams {
    /// Those of a configuration; the keys are looked up by the names of environment variables.
    pub(super) fn new(
        config: &Config,
        key: impl Fn(&str) -> Option<String>,
        timeout: Duration,
    ) -> Result<Self, UpstreamError> {
        let mut by_name = BTreeMap::new();
        for (name, upstream) in &config.upstreams {
            let key = upstream.key_env.as_deref().and_then(&key).filter(|key| !key.is_empty());
            by_name.insert(name.clone(), Upstream::new(name, upstream, key.map(SecretString::from))?);
        }
        let default = config.default_upstream.clone();
        let wrong = |reason: String| UpstreamError { name: default.clone().unwrap_or_default(), reason };
        if default.as_ref().is_some_and(|default| !by_name.contains_key(default)) {
            return Err(wrong("it is the default, and is not configured".to_owned()));
        }
        // Whoever answers with another address must not be able to choose who is asked, and is sent keys.
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10).min(timeout))
            .read_timeout(timeout)
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Self { by_name, default, client })
    }

    /// The upstream that a request names, or whose model it names.
    ///
    /// # Errors
    /// 400 for a name that none has; 404 for a model that none claims, if there is no default.
    pub(super) fn choose(&self, name: Option<&str>, model: &str) -> Result<&Upstream> {
        let claims = |upstream: &&Upstream| {
            upstream.models.iter().filter(|beginning| model.starts_with(beginning.as_str())).map(String::len).max()
        };
        let of_model = || {
            let claimed = self.by_name.values().filter_map(|upstream| Some((claims(&upstream)?, upstream)));
            claimed.max_by_key(|(length, _)| *length).map(|(_, upstream)| upstream)
        };
        let Some(name) = name else {
            let unknown = || {
                let message = format!(
                    "no upstream is known for the model {model:?}: name one of {} in `provider`, or have the proxy know one \
                     (--upstream, --default-provider, or `models` of an upstream in its configuration)",
                    self.names()
                );
                ApiError::not_found(message).param("model").code("model_not_found")
            };
            return of_model().or_else(|| self.default()).ok_or_else(unknown);
        };
        let wrong = || ApiError::bad_request(format!("provider must be one of {}", self.names())).param("provider");
        self.by_name.get(name).ok_or_else(wrong)
    }

    /// The upstream whose models a client lists: the default, unless there is none or the client brings a key that is one for
    /// upstreams of another format. Then it is the only one of these that is asked for models by their names, if there is
    /// any.
    ///
    /// # Errors
    /// 400 when it is not one.
    pub(super) fn to_list(&self, caller: &HeaderMap) -> Result<&Upstream> {
        let (default, format) = (self.default(), format_of_key(caller));
        if let Some(default) = default
            && format.is_none_or(|format| default.kind.speaks(format))
        {
            return Ok(default);
        }
        let speaks = |upstream: &&Upstream| {
            !upstream.models.is_empty() && format.is_none_or(|format| upstream.kind.speaks(format))
        };
        let mut others = self.by_name.values().filter(speaks);
        match (others.next(), others.next(), default) {
            (None, _, Some(default)) => Ok(default),
            (Some(only), None, _) => Ok(only),
            _ => {
                let message = format!("say whose models are meant in `provider`, which is one of {}", self.names());
                Err(ApiError::bad_request(message).param("provider"))
            }
        }
    }

    /// The names of all, separated by commas.
    pub(super) fn names(&self) -> String {
        self.by_name.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// The default, if there is one.
    pub(super) fn default(&self) -> Option<&Upstream> {
        self.by_name.get(self.default.as_ref()?)
    }

    /// Sends a request to one of an upstream's [URLs](Upstream::url).
    ///
    /// # Errors
    /// 502 when the upstream cannot be reached, 504 when it does not answer in time.
    pub(super) async fn send(
        &self,
        upstream: &Upstream,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Vec<u8>>,
    ) -> Result<reqwest::Response> {
        let mut request = self.client.request(method, url).headers(headers);
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        }
        request.send().await.map_err(|error| failed(upstream, error))
    }
}

/// What a client is told of an upstream that failed.
pub(super) fn failed(upstream: &Upstream, error: reqwest::Error) -> ApiError {
    let (timed_out, error) = (error.is_timeout(), error.without_url());
    tracing::warn!(upstream = upstream.name, %error, "an upstream failed");
    let name = &upstream.name;
    match timed_out {
        true => ApiError::gateway_timeout(format!("the upstream {name} did not answer in time: try again")),
        false => ApiError::bad_gateway(format!("the upstream {name} cannot be reached, or broke off: try again")),
    }
}

/// The headers of an upstream's answer that its client is shown: not those of the connection to it, and not what only
/// concerns whoever speaks to it itself.
pub(super) fn shown(headers: &HeaderMap) -> HeaderMap {
    const DROPPED: [&str; 12] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "set-cookie",
        "strict-transport-security",
        "alt-svc",
    ];
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let mut shown = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        let is_dropped = DROPPED.contains(&text) || named.iter().any(|named| named == text);
        if !is_dropped && !text.starts_with("access-control-") {
            shown.append(name.clone(), value.clone());
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn upstream(kind: Kind, change: impl FnOnce(&mut UpstreamConfig)) -> Upstream {
        let mut config = UpstreamConfig::new(kind, "http://localhost:1/");
        change(&mut config);
        let key = config.key_env.as_ref().map(|_| SecretString::from("own"));
        Upstream::new("u", &config, key).unwrap()
    }

    fn sent(upstream: &Upstream, caller: &[(&'static str, &'static str)], is_known: bool) -> Option<Vec<String>> {
        let sent = upstream.headers(&headers(caller), Format::OpenAi, is_known).ok()?;
        let keys = [header::AUTHORIZATION, X_API_KEY].into_iter().filter_map(|name| sent.get(name));
        Some(keys.map(|value| value.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn the_servers_key_goes_upstream_only_for_callers_that_it_knows_and_that_have_none() {
        let openai = upstream(Kind::Openai, |config| config.key_env = Some("K".into()));
        let own = [("x-api-key", "theirs")];
        assert_eq!(sent(&openai, &[], true), Some(vec!["Bearer own".into()]));
        assert_eq!(sent(&openai, &own, true), Some(vec!["theirs".into()]));
        assert_eq!(sent(&openai, &own, false), Some(vec!["theirs".into()]));
        assert_eq!(sent(&openai, &[("x-amem-key", "secret")], false), None);
        assert_eq!(
            sent(&upstream(Kind::Anthropic, |c| c.key_env = Some("K".into())), &[], true),
            Some(vec!["own".into()])
        );
        let closed = upstream(Kind::Openai, |config| {
            config.key_env = Some("K".into());
            config.forward_caller_key = false;
        });
        assert_eq!(sent(&closed, &own, true), Some(vec!["Bearer own".into()]));
        assert_eq!(sent(&closed, &own, false), None);
        assert_eq!(sent(&upstream(Kind::Vllm, |_| ()), &[], false), Some(vec![]), "a local server needs none");
    }

    #[test]
    fn only_headers_that_are_meant_for_an_upstream_go_there() {
        let caller = headers(&[
            ("x-amem-key", "k"),
            ("x-amem-user", "u"),
            ("cookie", "c"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-user", "alice"),
            ("host", "here"),
            ("connection", "close"),
            ("accept-encoding", "gzip"),
            ("anthropic-beta", "b"),
            ("x-title", "t"),
        ]);
        let upstream = upstream(Kind::Anthropic, |config| config.forward_headers = vec!["X-Title".into()]);
        let sent = upstream.headers(&caller, Format::Anthropic, false).unwrap();
        let mut names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["anthropic-beta", "anthropic-version", "x-title"]);
    }

    #[test]
    fn what_concerns_the_connection_to_an_upstream_is_not_shown() {
        let answer = headers(&[
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("set-cookie", "c"),
            ("access-control-allow-origin", "*"),
            ("retry-after", "7"),
            ("request-id", "r"),
        ]);
        let shown = shown(&answer);
        let names: Vec<&str> = shown.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["retry-after", "request-id"]);
    }

    #[test]
    fn an_upstream_is_an_address_without_secrets() {
        for wrong in ["ftp://host", "file:///etc/passwd", "http://me:secret@host", "http://host?key=1", "nothing"] {
            assert!(Upstream::new("u", &UpstreamConfig::new(Kind::Openai, wrong), None).is_err(), "{wrong}");
        }
        let url = |base: &str, path: &str| {
            let upstream = Upstream::new("u", &UpstreamConfig::new(Kind::Openai, base), None).unwrap();
            upstream.url(path).to_string()
        };
        assert_eq!(url("http://host:1", "/models"), "http://host:1/v1/models");
        assert_eq!(url("http://host:1/v1/", "/models"), "http://host:1/v1/models");
        assert_eq!(url("https://host/api/openai/", "/models"), "https://host/api/openai/models");
        assert_eq!(url("http://host:1", "/models/a/b?c#d%2Fe f"), "http://host:1/v1/models/a/b%3Fc%23d%252Fe%20f");
    }

    #[test]
    fn a_model_goes_to_the_upstream_that_claims_it_by_the_longest_name() {
        let text = "default_upstream = \"local\"\n[upstreams.local]\nkind = \"vllm\"\nurl = \"http://localhost:1\"\n\
                    [upstreams.own]\nkind = \"openai\"\nurl = \"http://localhost:2\"\nmodels = [\"gpt-oss\"]";
        let upstreams = Upstreams::new(&Config::parse(text).unwrap(), |_| None, Duration::from_secs(1)).unwrap();
        let chosen = |name, model| upstreams.choose(name, model).map(|upstream| upstream.name.as_str());
        assert_eq!(chosen(None, "claude-sonnet-4-6").unwrap(), "anthropic");
        assert_eq!(chosen(None, "gpt-4o").unwrap(), "openai");
        assert_eq!(chosen(None, "gpt-oss-20b").unwrap(), "own");
        assert_eq!(chosen(None, "Qwen/Qwen3-8B").unwrap(), "local");
        assert_eq!(chosen(Some("openai"), "claude").unwrap(), "openai");
        assert!(chosen(Some("http://169.254.169.254"), "claude").is_err());
        // What is built in has no default: nobody said who is to know what is remembered.
        let upstreams = Upstreams::new(&Config::parse("").unwrap(), |_| None, Duration::from_secs(1)).unwrap();
        assert_eq!(upstreams.choose(None, "claude-sonnet-4-6").unwrap().name, "anthropic");
        assert_eq!(upstreams.choose(Some("openai"), "llama3").unwrap().name, "openai");
        for unknown in ["llama3", "amem", ""] {
            assert!(upstreams.choose(None, unknown).is_err(), "{unknown}");
        }
        let listed = |caller: &[(&'static str, &'static str)]| {
            upstreams.to_list(&headers(caller)).map(|upstream| upstream.name.clone())
        };
        assert_eq!(listed(&[("x-api-key", "k")]).unwrap(), "anthropic");
        assert_eq!(listed(&[("authorization", "Bearer k")]).unwrap(), "openai");
        assert!(listed(&[]).is_err());
    }
}
