//! Whose memory a request is about. The operator says it, or the key of the request; the model only if it is let.

use amem_core::Namespace;

use crate::http::{ApiError, Caller, Result};

/// The namespace of who names none.
const DEFAULT: &str = "default";

/// Who may choose whose memory is used.
#[derive(Clone, Debug)]
pub(super) struct Users {
    /// Whose memory it is, if the operator said so.
    operator: Option<Namespace>,
    /// Whether the model may name another.
    model_chooses: bool,
}

impl Users {
    pub(super) fn new(operator: Option<Namespace>, model_chooses: bool) -> Self {
        Self { operator, model_chooses }
    }

    /// Whose memory a request is about that names nobody.
    ///
    /// # Errors
    /// 400 when nothing says it.
    pub(super) fn own(&self, caller: Option<&Caller>) -> Result<Namespace> {
        let Some(caller) = caller else {
            return self.operator.clone().map_or_else(|| Ok(Namespace::new(DEFAULT)?), Ok);
        };
        match caller.only()? {
            Some(bound) => Ok(bound.clone()),
            None => caller.namespace(self.operator.as_ref().map(Namespace::as_str)),
        }
    }

    /// Whose memory a tool's call is about, whose argument `user` may name somebody: the same one, or another if the model
    /// may choose. A blank name names nobody.
    ///
    /// # Errors
    /// 403 for another one if it may not; 400 when nothing says whose it is.
    pub(super) fn named(&self, caller: Option<&Caller>, named: Option<&str>) -> Result<Namespace> {
        let named = named.map(str::trim).filter(|named| !named.is_empty());
        match named {
            Some(named) if self.may_choose(caller)? => Ok(Namespace::new(named)?),
            named => {
                let own = self.own(caller)?;
                if named.is_none_or(|named| own.as_str() == named) {
                    return Ok(own);
                }
                let why = "this server is for one user, whom its operator has chosen: leave `user` out";
                Err(ApiError::forbidden(why).param("user"))
            }
        }
    }

    fn may_choose(&self, caller: Option<&Caller>) -> Result<bool> {
        let is_bound = caller.map_or(Ok(None), Caller::only)?.is_some();
        Ok(self.model_chooses && !is_bound)
    }

    /// Whether tools have an argument `user`: then with the user that it is if left out, if there is one.
    pub(super) fn choice(&self, caller: Option<&Caller>) -> Option<Option<Namespace>> {
        self.may_choose(caller).is_ok_and(|may| may).then(|| self.own(caller).ok())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;
    use crate::http::{Identity, KeyHeader};

    fn users(operator: Option<&str>, model_chooses: bool) -> Users {
        Users::new(operator.map(|name| Namespace::new(name).unwrap()), model_chooses)
    }

    fn whose(users: &Users, caller: Option<&Caller>, named: Option<&str>) -> Result<String, u16> {
        let named = users.named(caller, named);
        named.map(|namespace| namespace.as_str().to_owned()).map_err(|error| error.status().as_u16())
    }

    fn bound(to: &'static str) -> Caller {
        let name = HeaderName::from_static("x-user");
        let identity = Identity::new(KeyHeader::Authorization).gateway(Some(name.clone()));
        identity.caller(&HeaderMap::from_iter([(name, HeaderValue::from_static(to))])).unwrap()
    }

    #[test]
    fn the_model_does_not_choose_unless_the_operator_lets_it() {
        for (operator, own) in [(None, "default"), (Some("alice"), "alice")] {
            let held = users(operator, false);
            for nobody in [None, Some(""), Some("  "), Some(own)] {
                assert_eq!(whose(&held, None, nobody), Ok(own.to_owned()), "{nobody:?}");
            }
            assert_eq!(whose(&held, None, Some("bob")), Err(403));
            assert_eq!(held.choice(None), None);
            let free = users(operator, true);
            assert_eq!(whose(&free, None, None), Ok(own.to_owned()));
            assert_eq!(whose(&free, None, Some(" bob ")), Ok("bob".to_owned()));
            assert_eq!(free.choice(None).flatten().unwrap().as_str(), own);
        }
    }

    #[test]
    fn a_bound_key_decides_whatever_operator_and_model_say() {
        let alice = bound("alice");
        for model_chooses in [false, true] {
            let users = users(Some("operator"), model_chooses);
            assert_eq!(whose(&users, Some(&alice), None), Ok("alice".to_owned()));
            assert_eq!(whose(&users, Some(&alice), Some("alice")), Ok("alice".to_owned()));
            assert_eq!(whose(&users, Some(&alice), Some("operator")), Err(403));
            assert_eq!(users.choice(Some(&alice)), None);
        }
    }

    #[test]
    fn where_there_are_many_users_one_who_is_named_by_nothing_is_refused() {
        let identity = Identity::new(KeyHeader::Authorization).multi_tenant(true);
        let anybody = identity.caller(&HeaderMap::new()).unwrap();
        assert_eq!(whose(&users(None, false), Some(&anybody), None), Err(400));
        assert_eq!(whose(&users(None, true), Some(&anybody), Some("bob")), Ok("bob".to_owned()));
        assert_eq!(whose(&users(Some("alice"), false), Some(&anybody), None), Ok("alice".to_owned()));
    }
}
