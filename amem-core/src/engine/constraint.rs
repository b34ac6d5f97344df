//! What an answer may say: a grammar, a JSON schema, a list of choices, decided token by token by somebody else.

use std::fmt;
use std::sync::Arc;

use crate::{Result, Token};

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

/// A set of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
    tokens: usize,
}

impl TokenMask {
    /// An empty set over a vocabulary of so many tokens.
    pub fn new(vocabulary: usize) -> Self {
        Self { words: vec![0; vocabulary.div_ceil(64)], tokens: vocabulary }
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.tokens
    }

    /// Adds a token. One that is not in the vocabulary is ignored.
    pub fn insert(&mut self, token: Token) {
        if let Some(word) = self.words.get_mut(token as usize / 64).filter(|_| (token as usize) < self.tokens) {
            *word |= 1 << (token % 64);
        }
    }

    /// Whether a token is in it.
    pub fn contains(&self, token: Token) -> bool {
        self.words.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// Whether no token is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The set as words of 64 tokens each, the lowest token in the lowest bit, for engines that fill one at once.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }
}
