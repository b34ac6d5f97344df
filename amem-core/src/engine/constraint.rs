//! What an answer may say: a grammar, a JSON schema, a list of choices, decided token by token by somebody else.

use std::fmt;
use std::sync::Arc;

use crate::{Result, Token, TokenMask};

/// Says which tokens may come next. A grammar engine implements it over the model's vocabulary
/// ([`Chat::token_bytes`](crate::Chat::token_bytes)).
pub trait Constraint: Send {
    /// Marks the tokens that may come next. `mask` allows none when this is called. Tokens that end an answer need no
    /// mark: they may come wherever [`is_complete`](Self::is_complete).
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the constraint cannot go on; the answer fails with it.
    fn allow(&mut self, mask: &mut TokenMask) -> Result<()>;

    /// Takes note of the token that was drawn.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the token is none that was allowed.
    fn accept(&mut self, token: Token) -> Result<()>;

    /// Whether what was drawn so far is a whole answer.
    fn is_complete(&self) -> bool;
}

/// Makes a [`Constraint`] for each answer: every one begins anew.
#[derive(Clone)]
pub struct ConstraintSource(Arc<dyn Fn() -> Result<Box<dyn Constraint>> + Send + Sync>);

impl ConstraintSource {
    /// A source that calls `make` for each answer.
    pub fn new(make: impl Fn() -> Result<Box<dyn Constraint>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    /// A constraint at the start of an answer.
    ///
    /// # Errors
    /// What making one came to.
    pub fn start(&self) -> Result<Box<dyn Constraint>> {
        (self.0)()
    }
}

impl fmt::Debug for ConstraintSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConstraintSource(..)")
    }
}

impl PartialEq for ConstraintSource {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
