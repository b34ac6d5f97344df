//! Encryption of what a data directory keeps, with a key for each namespace.

use std::path::PathBuf;
use std::sync::Arc;

use amem_core::{KvStore, Ledger};
use amem_store::{EncryptedLedger, EncryptedStore, KeyDir, Keys, MasterKey, encryption};
use clap::Args;

/// Whether what is kept is encrypted, and with which keys.
#[derive(Args, Default)]
pub(crate) struct Encryption {
    /// Encrypts what is kept with the keys in this directory, which is made if it is not there: one key for each namespace,
    /// destroyed when the namespace is deleted. Needs `--master-key-file`.
    #[arg(long, value_name = "DIR", env = "AMEM_ENCRYPT_KEYS", requires = "master_key_file")]
    encrypt_keys: Option<PathBuf>,
    /// The file with the key under which those in the directory are encrypted themselves: 64 hexadecimal digits, as
    /// `openssl rand -hex 32` makes them. Nobody but its owner may be able to read it.
    #[arg(long, value_name = "FILE", env = "AMEM_MASTER_KEY_FILE", requires = "encrypt_keys")]
    master_key_file: Option<PathBuf>,
}

impl Encryption {
    /// Opens the directory of keys, if there is to be one.
    pub(crate) fn open(&self) -> Result<Protection, amem_store::Error> {
        let (Some(dir), Some(master)) = (&self.encrypt_keys, &self.master_key_file) else {
            return Ok(Protection(None));
        };
        Ok(Protection(Some(Arc::new(KeyDir::open(dir, &MasterKey::from_file(master)?)?))))
    }
}

/// What ledgers and stores are put behind: encryption, or nothing.
pub(crate) struct Protection(Option<Arc<dyn Keys>>);

impl Protection {
    /// The ledger, behind encryption if that was asked for.
    ///
    /// An encrypted ledger is not opened without keys: what would be added to it then would stand there in clear.
    pub(crate) async fn ledger(&self, ledger: impl Ledger + 'static) -> amem_core::Result<Arc<dyn Ledger>> {
        let Some(keys) = &self.0 else {
            encryption::refuse_encrypted(&ledger).await?;
            return Ok(Arc::new(ledger));
        };
        Ok(Arc::new(EncryptedLedger::open(ledger, Arc::clone(keys)).await?))
    }

    /// The store, behind encryption if that was asked for.
    pub(crate) fn store(&self, store: impl KvStore + 'static) -> Arc<dyn KvStore> {
        match &self.0 {
            Some(keys) => Arc::new(EncryptedStore::new(store, Arc::clone(keys))),
            None => Arc::new(store),
        }
    }

    /// What the ids of chunks are hashed with, so that they do not tell whose they are.
    pub(crate) fn id_secret(&self) -> Option<[u8; 32]> {
        self.0.as_ref().map(|keys| keys.id_secret())
    }
}
