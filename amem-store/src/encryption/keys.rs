//! Keys, and where they are kept.

use std::fmt;

use amem_core::{BoxError, Namespace, OwnerId};
use async_trait::async_trait;
use zeroize::Zeroizing;

/// A key of 256 bits. Wiped from memory when it is dropped, and never shown.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// The key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new key, from the system's source of randomness.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn random() -> Result<Self, BoxError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// The key's bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Bytes for one purpose, from which neither the key nor those for another purpose can be told.
    pub(super) fn derive<const N: usize>(&self, purpose: &'static str) -> Zeroizing<[u8; N]> {
        let mut derived = Zeroizing::new([0; N]);
        blake3::Hasher::new_derive_key(purpose).update(self.bytes()).finalize_xof().fill(&mut *derived);
        derived
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// What a key is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Holder {
    /// The records of a namespace.
    Namespace(Namespace),
    /// The chunks of an owner: of a namespace, or of nobody, as those of the system line are.
    Owner(OwnerId),
}

/// Keeps keys: a directory ([`KeyDir`](super::KeyDir)), or a service for them.
///
/// Whoever keeps copies of keys must ask before each use whether they still stand: after
/// [`destroy`](Self::destroy) no call, of any process, may give the key.
#[async_trait]
pub trait Keys: Send + Sync {
    /// The key, if there is one.
    ///
    /// # Errors
    /// When the keys cannot be read.
    async fn get(&self, holder: &Holder) -> Result<Option<Key>, BoxError>;

    /// The key, which is made if there is none, and is durable when this returns. Two calls at once get one key.
    ///
    /// # Errors
    /// When the keys cannot be read or written.
    async fn get_or_create(&self, holder: &Holder) -> Result<Key, BoxError>;

    /// Destroys the keys of a namespace: of its records, and of the chunks that it owns, both under
    /// [`OwnerId::of`] and under [`OwnerId::keyed`] with [`id_secret`](Self::id_secret). Durable when this returns. That
    /// there is none is no error.
    ///
    /// # Errors
    /// When the keys cannot be written.
    async fn destroy(&self, namespace: &Namespace) -> Result<(), BoxError>;

    /// All namespaces that have a key, with the keys of their records.
    ///
    /// # Errors
    /// When the keys cannot be read.
    async fn namespaces(&self) -> Result<Vec<(Namespace, Key)>, BoxError>;

    /// A name for a namespace, always the same, from which nobody without the keys can tell which one it is.
    fn pseudonym(&self, namespace: &Namespace) -> [u8; 32];

    /// A secret for [`MemoryBuilder::id_secret`](amem_core::MemoryBuilder::id_secret), always the same.
    fn id_secret(&self) -> [u8; 32];
}
