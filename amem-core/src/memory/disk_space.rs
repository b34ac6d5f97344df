//! Space on a full disk for what cannot be computed again: KV, which can, makes way for it.

use std::future::Future;
use std::sync::Arc;

use super::backoff::Backoff;
use crate::{Error, KvStore, Result};

/// Bytes of KV that are given up at a time.
const BYTES: u64 = 64 << 20;
/// How often KV is given up before the ledger's error is told.
const TIMES: usize = 4;

/// Writes to the ledger, on a disk that a store of KV may share.
#[derive(Default)]
pub(super) struct DiskSpace {
    /// Gives up KV. `None` where there is no store.
    kv: Option<Arc<dyn KvStore>>,
    /// KV was given up, and the disk was full all the same: the ledger is probably on another one. For a while nothing more
    /// is given up.
    in_vain: Backoff,
}

impl DiskSpace {
    /// Space on a disk that this store may be on too.
    pub(super) fn shared_with(kv: Arc<dyn KvStore>) -> Self {
        Self { kv: Some(kv), in_vain: Backoff::default() }
    }

    /// Writes to the ledger. As long as its disk is too full for that, some KV is given up and it is written again.
    /// `doing` says what for in the log, as "forget records".
    pub(super) async fn write<T, F>(&self, doing: &str, write: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let Some(kv) = &self.kv else { return write().await };
        for _ in 0..TIMES {
            let full = match write().await {
                Err(full @ Error::Full { .. }) => full,
                written => return written,
            };
            if self.in_vain.is_on() {
                return Err(full);
            }
            match kv.give_up(BYTES).await {
                Ok(0) => return Err(full),
                Ok(bytes) => log::warn!("{bytes} bytes of KV were given up to {doing}: {full}"),
                Err(error) => {
                    log::warn!("no KV could be given up on a full disk: {error}");
                    return Err(full);
                }
            }
        }
        let written = write().await;
        if matches!(written, Err(Error::Full { .. })) {
            self.in_vain.begin();
        }
        written
    }
}
