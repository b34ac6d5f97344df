//! Trying again where KV from the store turns out to be damaged.

use super::chunks::{Chunks, Source};
use crate::{Error, Result};

/// Attempts with KV from the store. Each damaged chunk ends one; after that all KV is computed.
const STORE_ATTEMPTS: usize = 8;

/// Attempts that damaged chunks have ended.
#[derive(Default)]
pub(super) struct Attempts(usize);

impl Attempts {
    /// Where the next attempt takes KV from.
    pub(super) fn source(&self) -> Source {
        if self.0 < STORE_ATTEMPTS { Source::Store } else { Source::Model }
    }

    /// Makes ready for another attempt after one that failed: the damaged chunk that ended it is deleted, so that it is
    /// computed anew.
    ///
    /// # Errors
    /// The error itself, if it is any other one, or if none of the KV came from the store.
    pub(super) async fn retry_after(&mut self, error: Error, chunks: &Chunks) -> Result<()> {
        match error {
            Error::DamagedKv { chunk, reason } if self.source() == Source::Store => {
                self.0 += 1;
                chunks.drop_damaged(chunk, &reason).await;
                Ok(())
            }
            error => Err(error),
        }
    }
}
