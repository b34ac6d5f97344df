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
    /// is given up, and each time for longer, or such a disk would cost the whole cache. Not for good: others may have
    /// filled the room that was made.
    in_vain: Backoff,
    /// Held while KV is given up: the room may do for all who wait for it, and if it does not, they need not find that out
    /// again.
    making_room: async_lock::Mutex<()>,
}

impl DiskSpace {
    /// Space on a disk that this store may be on too.
    pub(super) fn shared_with(kv: Arc<dyn KvStore>) -> Self {
        Self { kv: Some(kv), ..Self::default() }
    }

    /// Writes to the ledger. As long as its disk is too full for that, some KV is given up and it is written again.
    /// `doing` says what for in the log, as "forget records".
    pub(super) async fn write<T, F>(&self, doing: &str, write: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let Some(kv) = &self.kv else { return write().await };
        let mut written = write().await;
        if !is_full(&written) || self.in_vain.is_on() {
            return written;
        }
        let _making_room = match self.making_room.try_lock() {
            Some(alone) => alone,
            None => {
                let turn = self.making_room.lock().await;
                written = write().await;
                turn
            }
        };
        for _ in 0..TIMES {
            let full = match &written {
                Err(full @ Error::Full { .. }) if !self.in_vain.is_on() => full.to_string(),
                _ => return written,
            };
            match kv.give_up(BYTES).await {
                Ok(0) => return written,
                Ok(bytes) => log::warn!("{bytes} bytes of KV were given up to {doing}: {full}"),
                Err(error) => {
                    log::warn!("no KV could be given up on a full disk: {error}");
                    return written;
                }
            }
            written = write().await;
            if written.is_ok() {
                self.in_vain.end();
            }
        }
        if is_full(&written) {
            self.in_vain.begin_longer();
        }
        written
    }
}

fn is_full<T>(written: &Result<T>) -> bool {
    matches!(written, Err(Error::Full { .. }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use async_trait::async_trait;
    use futures_lite::future::{block_on, yield_now, zip};

    use super::*;
    use crate::{ChunkId, KvChunk, StoreStats, StoredChunk};

    /// A store that gives up as much as it is asked to, on a disk of which that makes room for some writes of a ledger.
    #[derive(Default)]
    struct Disk {
        given_up: AtomicUsize,
        writes_left: AtomicUsize,
        writes_each_time: usize,
    }

    #[async_trait]
    impl KvStore for Disk {
        async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
            Ok(vec![None; ids.len()])
        }

        async fn put(&self, _: &[KvChunk]) -> Result<()> {
            Ok(())
        }

        async fn delete(&self, _: &[ChunkId]) -> Result<()> {
            Ok(())
        }

        async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
            vec![false; ids.len()]
        }

        async fn stats(&self) -> StoreStats {
            StoreStats::default()
        }

        async fn page(&self, _: Option<ChunkId>, _: usize) -> Result<Vec<StoredChunk>> {
            Ok(Vec::new())
        }

        async fn give_up(&self, bytes: u64) -> Result<u64> {
            yield_now().await;
            self.given_up.fetch_add(1, Relaxed);
            self.writes_left.fetch_add(self.writes_each_time, Relaxed);
            Ok(bytes)
        }
    }

    impl Disk {
        /// A write of a ledger on this disk.
        async fn write(&self) -> Result<()> {
            yield_now().await;
            let left = self.writes_left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
            let full = || Error::Full { what: "the ledger's disk".to_owned(), reason: "no space is left".to_owned() };
            left.map(drop).map_err(|_| full())
        }
    }

    /// Two writes at once on a full disk. Says which succeeded, and how often KV was given up.
    fn two_at_once(space: &DiskSpace, disk: &Disk) -> ([bool; 2], usize) {
        let before = disk.given_up.load(Relaxed);
        let one = space.write("remember", || disk.write());
        let other = space.write("remember", || disk.write());
        let (one, other) = block_on(zip(one, other));
        ([one.is_ok(), other.is_ok()], disk.given_up.load(Relaxed) - before)
    }

    #[test]
    fn the_room_that_one_makes_does_for_those_that_wait() {
        let disk = Arc::new(Disk { writes_each_time: 2, ..Disk::default() });
        let space = DiskSpace::shared_with(disk.clone());
        assert_eq!(two_at_once(&space, &disk), ([true, true], 1));
    }

    #[test]
    fn where_it_makes_no_room_kv_is_given_up_by_one_and_not_again() {
        let disk = Arc::new(Disk::default());
        let space = DiskSpace::shared_with(disk.clone());
        assert_eq!(two_at_once(&space, &disk), ([false, false], TIMES));
        // That the ledger could write in between does not say that KV made the room.
        disk.writes_left.store(2, Relaxed);
        assert_eq!(two_at_once(&space, &disk), ([true, true], 0));
        assert_eq!(two_at_once(&space, &disk), ([false, false], 0));
    }
}
