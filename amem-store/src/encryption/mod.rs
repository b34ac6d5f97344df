//! Encryption at rest (feature `encryption`), with a key for each namespace, so that destroying a key destroys what it was
//! for, in backups too.
//!
//! [`KeyDir`] keeps the keys, under a master key of the operator's; another place for them stands behind [`Keys`].
//! [`EncryptedLedger`] and [`EncryptedStore`] put any ledger and any store behind encryption:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use amem_store::{DataDir, EncryptedLedger, EncryptedStore, KeyDir, Keys, MasterKey};
//! # async fn open(model: Arc<dyn amem_core::Model>) -> Result<amem_core::Memory, Box<dyn std::error::Error>> {
//! let keys = Arc::new(KeyDir::open("agent-keys", &MasterKey::from_file("master.key")?)?);
//! let DataDir { kv, ledger } = amem_store::open("agent-data")?;
//! let memory = amem_core::Memory::builder(model)
//!     .id_secret(keys.id_secret())
//!     .kv(Arc::new(EncryptedStore::new(kv, keys.clone())))
//!     .ledger(Arc::new(EncryptedLedger::open(ledger, keys).await?))
//!     .build()?;
//! # Ok(memory)
//! # }
//! ```
//!
//! Back up the directory of keys apart from the data, and not for long: a backup of a key undoes its destruction.
//!
//! # What is protected
//!
//! Against somebody who has the files, or a backup of them, but neither the master key nor the keys: texts, keys, metadata,
//! names of namespaces, indexes, and of chunks the tokens and the KV. Whatever was changed does not decrypt, and is
//! reported as damage. After [`delete_namespace`](amem_core::Ledger::delete_namespace) nobody can read what was the
//! namespace's, whoever has which keys, unless a copy of its key is left.
//!
//! Not protected are: how many namespaces, records and chunks there are, how long texts are and how many tokens chunks
//! have, when records were added, changed and ended, which of them are of one namespace or have the same text or key
//! within it, and usage. Somebody who can write to the files can take records back to what they were, put one in the
//! place of another of the same namespace, or delete them. Keys and texts that are in use are in the process's memory.
//! A disk that writes elsewhere than where a file lay (flash, copy-on-write) may keep the wrapped key of a deleted
//! namespace for a while: it is of use only to who has the master key as well.

mod key_dir;
#[cfg(test)]
mod key_dir_tests;
mod keys;
mod ledger;
mod seal;
mod store;

use amem_core::{BoxError, RecordId};

pub use self::key_dir::{KeyDir, MasterKey};
pub use self::keys::{Holder, Key, Keys};
pub use self::ledger::{EncryptedLedger, refuse_encrypted};
pub use self::store::EncryptedStore;

/// What is wrong with an encrypted ledger. Carried by [`amem_core::Error::Ledger`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptionError {
    /// Something does not decrypt under the key of its namespace.
    #[error("the {what} of record {id} does not decrypt: it was changed, or is another namespace's; restore a backup")]
    Damaged {
        /// What it is: "text", "metadata", …
        what: &'static str,
        /// Of which record.
        id: RecordId,
    },
    /// No namespace of the ledger has a key here.
    #[error(
        "no namespace of the ledger has a key here: open it with the keys that it was made with, or begin a new one if they \
         were destroyed"
    )]
    OtherKeys,
    /// The ledger's records are encrypted, and it was opened without keys.
    #[error("the ledger is encrypted: open it with the directory of keys that it was made with (amem --encrypt-keys)")]
    Encrypted,
    /// The ledger has records that nobody encrypted.
    #[error("the ledger has records that are not encrypted: export them and import them into a new one")]
    NotEncrypted,
    /// The keys cannot be had.
    #[error("keys: {0}")]
    Keys(#[source] BoxError),
}
