//! Who a browser asks for: pages of others are refused.
//!
//! A page can have a browser send requests to this machine, although the browser keeps the answers from it. And the name
//! of a page can be led here (DNS rebinding): then the browser takes this server for the page's own. The first is told by
//! the header `Origin`, the second by `Host`. Clients that are no browsers send no `Origin`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, header};

use super::{ApiError, Limits, Result};

/// Whose pages may call a server, and by what names.
#[derive(Clone)]
pub(super) struct Allowed {
    origins: Arc<[HeaderValue]>,
    hosts: Option<Arc<[String]>>,
}

impl Allowed {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { origins: limits.origins.as_slice().into(), hosts: limits.hosts.as_deref().map(Into::into) }
    }

    fn has_origin(&self, origin: &HeaderValue, host: Option<&Authority>) -> bool {
        if self.origins.contains(origin) {
            return true;
        }
        let Some((_, authority)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else {
            return false;
        };
        let Ok(page) = authority.parse::<Authority>() else { return false };
        // Where the server's own names are not known, a name may be anybody's that leads here.
        let is_own = |host: &Authority| page == *host && (self.hosts.is_some() || address(host).is_some());
        is_loopback(&page) || host.is_some_and(is_own)
    }

    fn has_host(&self, host: &Authority) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        let is_called =
            |name: &String| name.eq_ignore_ascii_case(host.host()) || name.eq_ignore_ascii_case(host.as_str());
        // An address is nobody's name.
        is_loopback(host) || address(host).is_some() || hosts.iter().any(is_called)
    }
}

/// Refuses a request that a page of somebody else's has a browser send, or that calls the server by another's name (403).
pub(super) async fn refuse_others(State(allowed): State<Allowed>, request: Request) -> Result<Request> {
    let headers = request.headers();
    let host = match headers.get(header::HOST) {
        Some(host) => {
            let host = Authority::try_from(host.as_bytes());
            Some(host.map_err(|_| ApiError::bad_request("the header Host names no host"))?)
        }
        None => request.uri().authority().cloned(),
    };
    // Whoever balances load asks for these, by whatever name, and they tell nobody anything.
    let is_open = matches!(request.uri().path(), "/health" | "/ready");
    if let Some(host) = host.as_ref().filter(|host| !is_open && !allowed.has_host(host)) {
        let message =
            format!("this server is not called {host}: if it is, start it with `--allow-host {}`", host.host());
        return Err(ApiError::forbidden(message));
    }
    if headers.get(header::ORIGIN).is_some_and(|origin| !allowed.has_origin(origin, host.as_ref())) {
        let message = "pages of this origin may not call this server: if they are to, start it with `--allow-origin`, \
            or with `--allow-host` if the name is its own";
        return Err(ApiError::forbidden(message));
    }
    Ok(request)
}

fn address(host: &Authority) -> Option<IpAddr> {
    host.host().trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn is_loopback(host: &Authority) -> bool {
    host.host().eq_ignore_ascii_case("localhost") || address(host).is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said to a request with these headers.
    async fn status(limits: &Limits, all: &[(&str, &str)]) -> Option<u16> {
        let request = Request::builder().uri("/v1/memories");
        let request = all.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let refused =
            refuse_others(State(Allowed::new(limits)), request.body(axum::body::Body::empty()).unwrap()).await;
        refused.err().map(|error| error.status().as_u16())
    }

    #[tokio::test]
    async fn pages_of_others_are_refused_and_names_of_others_are_where_the_own_ones_are_known() {
        let mut limits = Limits::default();
        limits.origins.push(HeaderValue::from_static("https://app.example"));
        let mut named = limits.clone();
        named.hosts = Some(vec!["amem.example".to_owned()]);
        let mut anywhere = limits.clone();
        anywhere.hosts = None;
        for (headers, [own, by_name, by_any]) in [
            (&[][..], [None; 3]),
            (&[("host", "127.0.0.1:8000")], [None; 3]),
            (&[("host", "LOCALHOST:8000")], [None; 3]),
            (&[("host", "[::1]:8000")], [None; 3]),
            (&[("host", "192.168.1.5:8000")], [None; 3]),
            (&[("host", "amem.example:8000")], [Some(403), None, None]),
            (&[("host", "evil.example:8000")], [Some(403), Some(403), None]),
            (&[("host", "localhost.evil.example")], [Some(403), Some(403), None]),
            (&[("host", "/")], [Some(400); 3]),
            (&[("origin", "http://localhost:3000")], [None; 3]),
            (&[("origin", "https://app.example")], [None; 3]),
            (&[("origin", "https://app.example:8443")], [Some(403); 3]),
            (&[("origin", "https://evil.example"), ("host", "127.0.0.1")], [Some(403); 3]),
            (&[("origin", "http://localhost.evil.example"), ("host", "127.0.0.1")], [Some(403); 3]),
            (&[("origin", "http://amem.example:8000"), ("host", "amem.example:8000")], [Some(403), None, Some(403)]),
            (&[("origin", "http://10.0.0.5:8000"), ("host", "10.0.0.5:8000")], [None; 3]),
            (&[("origin", "http://amem.example:9000"), ("host", "amem.example:8000")], [Some(403); 3]),
            (&[("origin", "null"), ("host", "127.0.0.1")], [Some(403); 3]),
        ] {
            assert_eq!(status(&limits, headers).await, own, "{headers:?}");
            assert_eq!(status(&named, headers).await, by_name, "{headers:?} by name");
            assert_eq!(status(&anywhere, headers).await, by_any, "{headers:?} by any name");
        }
    }
}
