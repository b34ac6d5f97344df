//! Who is asking, and for which namespace.

use std::sync::Arc;

use amem_core::Namespace;
use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::{ApiError, Result};
use crate::keys::{Grant, KeyFile};

/// The namespace of who names none, where there is only one user.
const DEFAULT: &str = "default";

/// Where a request carries its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyHeader {
    /// `Authorization: Bearer KEY`, or `x-api-key: KEY` as Anthropic's clients send it.
    Authorization,
    /// `X-Amem-Key: KEY`: a proxy's `Authorization` is for its upstream.
    AmemKey,
}

/// How a server tells who is asking.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    header: KeyHeader,
    /// May do everything, for every namespace.
    admin: Option<SecretString>,
    keys: KeyFile,
    /// The header in which a gateway, which has checked who asks, names the namespace.
    gateway: Option<HeaderName>,
    multi_tenant: bool,
}

impl Identity {
    /// Everybody may do everything, until a key is set.
    pub fn new(header: KeyHeader) -> Self {
        let inner = Inner { header, admin: None, keys: KeyFile::none(), gateway: None, multi_tenant: false };
        Self { inner: Arc::new(inner) }
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.inner));
        self
    }

    /// With a key that may do everything.
    #[must_use]
    pub fn admin(self, key: Option<SecretString>) -> Self {
        self.with(|inner| inner.admin = key)
    }

    /// With keys that are bound to namespaces.
    #[must_use]
    pub fn keys(self, keys: KeyFile) -> Self {
        self.with(|inner| inner.keys = keys)
    }

    /// Trusting this header to name the namespace: of a gateway that removes it from what it lets through.
    #[must_use]
    pub fn gateway(self, header: Option<HeaderName>) -> Self {
        self.with(|inner| inner.gateway = header)
    }

    /// Whether a request that says for whom it is in no way is refused, rather than being for `default`. So it is, too,
    /// wherever a gateway is trusted.
    #[must_use]
    pub fn multi_tenant(self, multi_tenant: bool) -> Self {
        self.with(|inner| inner.multi_tenant = multi_tenant)
    }

    /// Whether a key is needed.
    pub fn is_on(&self) -> bool {
        self.inner.admin.is_some() || self.inner.keys.is_used()
    }

    /// Who is asking.
    ///
    /// # Errors
    /// 401 without a key where one is needed, and for a wrong one; 403 when a key and a gateway name two namespaces; 500 when
    /// the file of keys cannot be read.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller> {
        let granted = if self.is_on() { Some(self.granted(headers)?) } else { None };
        let (named, trusts) = (self.named(headers)?, self.inner.gateway.is_some());
        let scope = match (granted, named) {
            (Some(Grant::Namespace(bound)), Some(named)) if bound != named => {
                return Err(ApiError::forbidden("the API key is for another user than the gateway's header names"));
            }
            (Some(Grant::Namespace(namespace)), _) | (_, Some(namespace)) => Scope::One(namespace),
            (None, None) if trusts => Scope::Nobody,
            (Some(Grant::Admin) | None, None) => Scope::All { shared: !trusts && !self.inner.multi_tenant },
        };
        Ok(Caller(scope))
    }

    /// Lets in whoever runs the server: by a key that may do everything, or anybody where no key is needed.
    ///
    /// # Errors
    /// 401 without a key where one is needed, and for a wrong one; 403 for a key that is bound to a namespace; 500 when the
    /// file of keys cannot be read.
    pub fn operator(&self, headers: &HeaderMap) -> Result<()> {
        match self.is_on().then(|| self.granted(headers)).transpose()? {
            Some(Grant::Namespace(_)) => Err(ApiError::forbidden("this is for keys that may do everything")),
            Some(Grant::Admin) | None => Ok(()),
        }
    }

    /// What the key of a request grants.
    fn granted(&self, headers: &HeaderMap) -> Result<Grant> {
        let key = self.key(headers).ok_or_else(ApiError::unauthorized)?;
        let admin = self.inner.admin.as_ref().map(ExposeSecret::expose_secret);
        if admin.is_some_and(|admin| bool::from(admin.as_bytes().ct_eq(key))) {
            return Ok(Grant::Admin);
        }
        let grant = self.inner.keys.grant(key).map_err(|error| ApiError::internal(&error))?;
        grant.ok_or_else(ApiError::unauthorized)
    }

    /// The namespace that a gateway names.
    fn named(&self, headers: &HeaderMap) -> Result<Option<Namespace>> {
        let Some(value) = self.inner.gateway.as_ref().and_then(|header| headers.get(header)) else { return Ok(None) };
        let name = std::str::from_utf8(value.as_bytes());
        let name = name.map_err(|_| ApiError::bad_request("the gateway's header is not UTF-8"))?;
        Ok(Some(Namespace::new(name)?))
    }

    fn key<'h>(&self, headers: &'h HeaderMap) -> Option<&'h [u8]> {
        let header = |name: HeaderName| headers.get(name).map(HeaderValue::as_bytes).filter(|value| !value.is_empty());
        match self.inner.header {
            KeyHeader::AmemKey => header(HeaderName::from_static("x-amem-key")),
            KeyHeader::Authorization => {
                let bearer = header(header::AUTHORIZATION).and_then(|value| {
                    let (scheme, key) = value.split_at_checked(b"Bearer ".len())?;
                    (scheme.eq_ignore_ascii_case(b"Bearer ") && !key.is_empty()).then_some(key)
                });
                bearer.or_else(|| header(HeaderName::from_static("x-api-key")))
            }
        }
    }
}

/// Who is asking: as a handler's argument, it lets nobody in without the key that the server wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(Scope);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    /// One namespace, whatever the request names.
    One(Namespace),
    /// Any namespace that the request names. If it names none, `default` where there is only one user.
    All { shared: bool },
    /// None: a gateway is trusted to say for whom it is, and did not.
    Nobody,
}

impl Caller {
    /// The namespace that a request is for, which its body or path may name.
    ///
    /// # Errors
    /// 400 when nothing says for whom it is, or what it names is no namespace; 403 when it names one that is not the
    /// caller's.
    pub fn namespace(&self, named: Option<&str>) -> Result<Namespace> {
        match (&self.0, named) {
            (Scope::One(own), Some(named)) if own.as_str() != named => {
                Err(ApiError::forbidden("this is another user's memory").param("user"))
            }
            (Scope::One(own), _) => Ok(own.clone()),
            (Scope::All { .. }, Some(named)) => Ok(Namespace::new(named)?),
            (Scope::All { shared: true }, None) => Ok(Namespace::new(DEFAULT)?),
            (Scope::All { shared: false }, None) => {
                Err(ApiError::bad_request("say in `user` whose memory this is about").param("user"))
            }
            (Scope::Nobody, _) => Err(ApiError::bad_request("the gateway did not say who is asking")),
        }
    }

    /// As [`namespace`](Self::namespace), where a client has one more name for a user. That one is for whoever runs the
    /// model, to tell users apart: it counts where nothing else says for whom the request is, and never speaks against a
    /// key.
    ///
    /// # Errors
    /// As [`namespace`](Self::namespace).
    pub fn namespace_or(&self, named: Option<&str>, other: Option<&str>) -> Result<Namespace> {
        let other = if self.only()?.is_some() { None } else { other.and_then(user_in) };
        self.namespace(named.or(other.as_deref()))
    }

    /// The one namespace that this caller may use; `None` for all of them.
    ///
    /// # Errors
    /// 400 when nothing says for whom the request is.
    pub fn only(&self) -> Result<Option<&Namespace>> {
        match &self.0 {
            Scope::One(own) => Ok(Some(own)),
            Scope::All { .. } => Ok(None),
            Scope::Nobody => Err(ApiError::bad_request("the gateway did not say who is asking")),
        }
    }
}

/// The user that Anthropic's `metadata.user_id` names; `None` if it names nobody.
///
/// Claude Code tells of the session there too: up to version 2.1.77 as `user_DEVICE_account_ACCOUNT_session_SESSION`, and since
/// then in JSON. What is remembered is the account's, or else the device's, in all sessions.
fn user_in(user_id: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Told {
        account_uuid: Option<String>,
        device_id: Option<String>,
        #[serde(rename = "session_id")]
        _session: String,
    }
    let named = |name: &str| (!name.trim().is_empty()).then(|| name.to_owned());
    if let Ok(Told { account_uuid, device_id, .. }) = serde_json::from_str(user_id) {
        return [account_uuid, device_id].into_iter().flatten().find_map(|name| named(&name));
    }
    let parts = user_id.strip_prefix("user_").and_then(|rest| rest.split_once("_account_"));
    match parts.and_then(|(device, rest)| Some((device, rest.split_once("_session_")?.0))) {
        Some((device, account)) => named(account).or_else(|| named(device)),
        None => named(user_id),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller
where
    Identity: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        Identity::from_ref(state).caller(&parts.headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn status<T>(result: Result<T>) -> Option<u16> {
        result.err().map(|error| error.status().as_u16())
    }

    fn whose(identity: &Identity, all: &[(&'static str, &'static str)], named: Option<&str>) -> Result<String> {
        Ok(identity.caller(&headers(all))?.namespace(named)?.as_str().to_owned())
    }

    #[test]
    fn without_keys_everybody_may_name_anybody_and_is_default_otherwise() {
        let open = Identity::new(KeyHeader::Authorization);
        assert_eq!(whose(&open, &[], None).unwrap(), "default");
        assert_eq!(whose(&open, &[], Some("../x")).unwrap(), "../x");
        assert_eq!(status(whose(&open, &[], Some(""))), Some(400));
    }

    #[test]
    fn a_user_is_the_same_in_all_sessions_that_a_user_id_tells_of() {
        let json = |account: &str| {
            let told = serde_json::json!({ "device_id": "d1", "account_uuid": account, "session_id": "s1" });
            user_in(&told.to_string())
        };
        assert_eq!(json("a1").as_deref(), Some("a1"));
        assert_eq!(json("").as_deref(), Some("d1"));
        for (user_id, expected) in [
            ("user_8f3_account_a1_session_s1", Some("a1")),
            ("user_8f3_account__session_s1", Some("8f3")),
            ("{\"device_id\":\"d1\",\"account_uuid\":null,\"session_id\":\"s1\"}", Some("d1")),
            ("alice", Some("alice")),
            ("user_8f3_session_s1", Some("user_8f3_session_s1")),
            ("{\"device_id\":\"d1\"}", Some("{\"device_id\":\"d1\"}")),
            ("{\"session_id\":\"s1\"}", None),
            (" ", None),
            ("", None),
        ] {
            assert_eq!(user_in(user_id).as_deref(), expected, "{user_id}");
        }
    }

    #[test]
    fn an_admin_key_is_wanted_as_bearer_or_as_anthropics_clients_send_it() {
        let identity = Identity::new(KeyHeader::Authorization).admin(Some("secret".into()));
        for wrong in [&[][..], &[("authorization", "Bearer other")], &[("authorization", "Bearer ")]] {
            assert_eq!(status(identity.caller(&headers(wrong))), Some(401), "{wrong:?}");
        }
        for wrong in [("authorization", "secret"), ("authorization", "Basic secret"), ("x-amem-key", "secret")] {
            assert_eq!(status(identity.caller(&headers(&[wrong]))), Some(401), "{wrong:?}");
        }
        for right in [("authorization", "Bearer secret"), ("authorization", "bearer secret"), ("x-api-key", "secret")] {
            assert_eq!(whose(&identity, &[right], None).unwrap(), "default", "{right:?}");
        }
    }

    #[test]
    fn an_empty_key_is_none() {
        for (header, sent) in [
            (KeyHeader::Authorization, ("authorization", "Bearer ")),
            (KeyHeader::Authorization, ("x-api-key", "")),
            (KeyHeader::AmemKey, ("x-amem-key", "")),
        ] {
            let identity = Identity::new(header).admin(Some("".into()));
            assert_eq!(status(identity.caller(&headers(&[sent]))), Some(401), "{sent:?}");
        }
        let identity = Identity::new(KeyHeader::Authorization).admin(Some("secret".into()));
        let sent = [("authorization", "Bearer "), ("x-api-key", "secret")];
        assert_eq!(whose(&identity, &sent, None).unwrap(), "default");
    }

    #[test]
    fn a_proxys_key_is_not_its_upstreams() {
        let identity = Identity::new(KeyHeader::AmemKey).admin(Some("secret".into()));
        assert_eq!(status(identity.caller(&headers(&[("authorization", "Bearer secret")]))), Some(401));
        assert_eq!(whose(&identity, &[("x-amem-key", "secret")], Some("a")).unwrap(), "a");
    }

    #[test]
    fn where_there_are_many_users_nobody_is_default() {
        let many = Identity::new(KeyHeader::Authorization).multi_tenant(true);
        assert_eq!(status(whose(&many, &[], None)), Some(400));
        assert_eq!(whose(&many, &[], Some("a")).unwrap(), "a");
    }

    #[test]
    fn a_gateway_alone_says_who_is_asking() {
        let name = HeaderName::from_static("x-user");
        let trusted = Identity::new(KeyHeader::Authorization).gateway(Some(name.clone()));
        assert_eq!(whose(&trusted, &[("x-user", "alice")], None).unwrap(), "alice");
        assert_eq!(status(whose(&trusted, &[("x-user", "alice")], Some("bob"))), Some(403));
        assert_eq!(status(whose(&trusted, &[], None)), Some(400));
        assert_eq!(status(whose(&trusted, &[], Some("alice"))), Some(400), "a body is no identity");
        let with_key = trusted.admin(Some("secret".into()));
        assert_eq!(status(whose(&with_key, &[("x-user", "alice")], None)), Some(401));
        assert_eq!(whose(&with_key, &[("x-user", "alice"), ("x-api-key", "secret")], None).unwrap(), "alice");
    }
}
