//! Saving what residency policies learn while the process runs, so that one that is killed loses little of it.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use amem_core::Tiered;

use crate::{Error, ResidencyFile, Result};

/// Bytes that are written for each change at most, but for a save whose time has come.
const BYTES_A_CHANGE: u64 = 1 << 10;
/// Bytes that are written each second at most, on average, by saves whose time has come.
const BYTES_A_SECOND: u64 = 1 << 20;

/// When a [`ResidencySaver`] saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveTimes {
    /// What has changed is saved after this time, or later where the file has more than a mebibyte for each second of it.
    pub every: Duration,
    /// Changes after which it is saved earlier: uses of chunks, and chunks that came or left. More for a large file, so
    /// that no more than a kibibyte is written for each of them.
    pub changes: u64,
    /// Time between two saves at least.
    pub pause: Duration,
}

impl Default for SaveTimes {
    /// Once a minute, or after 4,096 changes and 5 seconds.
    fn default() -> Self {
        Self { every: Duration::from_secs(60), changes: 4096, pause: Duration::from_secs(5) }
    }
}

/// Keeps a [`ResidencyFile`] up to date with what the policies of a stack of tiers learn, on a thread of its own: no call to
/// the tiers waits for the disk. A process that is killed, or a machine without power, loses what was learned since the
/// last save. Dropping it ends the thread and saves nothing; [`close`](Self::close) does.
///
/// Only one process at a time should save to a file: what others have learned is not in it.
pub struct ResidencySaver {
    file: ResidencyFile,
    tiers: Arc<Tiered>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    is_due: Mutex<bool>,
    wake: Condvar,
}

impl Stop {
    fn is_due(&self) -> MutexGuard<'_, bool> {
        self.is_due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for so long; true when the thread is to stop.
    fn wait(&self, time: Duration) -> bool {
        let waited = self.wake.wait_timeout_while(self.is_due(), time, |is_due| !*is_due);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl ResidencySaver {
    /// Begins to save to `file` what the policies of `tiers` learn.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(file: ResidencyFile, tiers: Arc<Tiered>, times: SaveTimes) -> Result<Self> {
        file.remove_drafts();
        let stop = Arc::new(Stop::default());
        let work = {
            let (file, tiers, stop) = (file.clone(), Arc::clone(&tiers), Arc::clone(&stop));
            move || save_now_and_then(&file, &tiers, &stop, times)
        };
        let thread = std::thread::Builder::new().name("amem-residency".to_owned()).spawn(work);
        let thread = Some(thread.map_err(Error::io("start the thread that saves to", file.path()))?);
        Ok(Self { file, tiers, stop, thread })
    }

    /// Saves for the last time.
    ///
    /// # Errors
    /// As [`ResidencyFile::save`].
    pub fn close(mut self) -> Result<()> {
        self.end();
        self.file.save(&self.tiers.save_residency())
    }

    fn end(&mut self) {
        *self.stop.is_due() = true;
        self.stop.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for ResidencySaver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResidencySaver").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Drop for ResidencySaver {
    fn drop(&mut self) {
        self.end();
    }
}

fn save_now_and_then(file: &ResidencyFile, tiers: &Tiered, stop: &Stop, times: SaveTimes) {
    // What has changed before this began is to be saved too.
    let (mut at, mut seen, mut bytes, mut fails) = (Instant::now(), 0, 0, false);
    while !stop.wait(times.pause) {
        let changes = tiers.residency_changes();
        let new = changes.wrapping_sub(seen);
        let is_many = new >= times.changes.max(bytes / BYTES_A_CHANGE);
        let is_time = at.elapsed() >= times.every.max(Duration::from_secs(bytes / BYTES_A_SECOND));
        // After a failure it waits for the time to come.
        if new == 0 || !is_time && (fails || !is_many) {
            continue;
        }
        match file.save_sized(&tiers.save_residency()) {
            Ok(size) => (seen, bytes, fails) = (changes, size, false),
            Err(error) => {
                // The policies learn it again. What fails again is told less loudly.
                let level = if fails { log::Level::Debug } else { log::Level::Warn };
                log::log!(level, "what was learned of the KV's use could not be saved: {error}");
                fails = true;
            }
        }
        at = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, KvStore, PrefixId, RamStore, Tier};
    use futures_lite::future::block_on;

    use super::*;

    fn chunk(name: u8) -> KvChunk {
        let (shape, encoding) = (KvShape { layers: 1, kv_heads: 1, head_dim: 2 }, Encoding::Plain(Dtype::F16));
        let data = Arc::new(HostKv::new(encoding, 1, vec![name; encoding.bytes(&shape, 1)]));
        KvChunk::new(ChunkId([name; 32]), PrefixId([0; 32]), shape, vec![0].into(), data).unwrap()
    }

    fn tiers() -> Arc<Tiered> {
        Arc::new(block_on(Tiered::open(vec![Tier::new(Arc::new(RamStore::default()), 1 << 20)])).unwrap())
    }

    /// Whether something holds before a minute is over, on however busy a machine.
    fn soon(mut holds: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + Duration::from_secs(60);
        while !holds() {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    #[test]
    fn it_saves_after_many_changes_and_after_a_time() {
        const NEVER: Duration = Duration::from_secs(1 << 30);
        let times = |every, changes| SaveTimes { every, changes, pause: Duration::from_millis(1) };
        for times in [times(NEVER, 5), times(Duration::from_millis(2), u64::MAX)] {
            let dir = tempfile::tempdir().unwrap();
            let (file, tiers) = (ResidencyFile::new(dir.path().join("residency")), tiers());
            let _saver = ResidencySaver::start(file.clone(), tiers.clone(), times).unwrap();
            for name in 0..20 {
                block_on(tiers.put(&[chunk(name)])).unwrap();
            }
            assert!(soon(|| !file.load().is_empty()), "{times:?}");
        }
    }

    #[test]
    fn it_saves_no_more_often_than_it_is_told_and_nothing_that_is_saved_already() {
        let dir = tempfile::tempdir().unwrap();
        let (path, tiers) = (dir.path().join("residency"), tiers());
        let file = ResidencyFile::new(&path);
        let times = SaveTimes { every: Duration::from_secs(1 << 30), changes: 3, pause: Duration::from_millis(1) };
        let saver = ResidencySaver::start(file.clone(), tiers.clone(), times).unwrap();
        block_on(tiers.put(&[chunk(1), chunk(2)])).unwrap();
        // Long enough for many a save, if two changes were enough.
        std::thread::sleep(Duration::from_millis(20));
        assert!(file.load().is_empty());
        block_on(tiers.put(&[chunk(3)])).unwrap();
        assert!(soon(|| file.load() == tiers.save_residency()));
        std::fs::remove_file(&path).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(file.load().is_empty(), "nothing has changed since");
        saver.close().unwrap();
        assert_eq!(file.load(), tiers.save_residency(), "at its end it saves in any case");
    }

    #[test]
    fn after_a_save_that_failed_it_tries_again_and_ends_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (sub, tiers) = (dir.path().join("not yet"), tiers());
        let file = ResidencyFile::new(sub.join("residency"));
        let times = SaveTimes { every: Duration::from_millis(2), changes: 1, pause: Duration::from_millis(1) };
        let saver = ResidencySaver::start(file.clone(), tiers.clone(), times).unwrap();
        block_on(tiers.put(&[chunk(1)])).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::create_dir(&sub).unwrap();
        assert!(soon(|| file.load() == tiers.save_residency()));
        drop(saver);
        assert_eq!(Arc::strong_count(&tiers), 1, "its thread has ended");
    }
}
