//! S3-FIFO (Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023): newcomers pass a small queue,
//! and only those used again on the way reach the main one. A ghost queue remembers what the small one let go, and
//! lets it into the main queue when it comes back.

use std::collections::{HashMap, VecDeque};

use super::saved::{Saved, Saving};
use super::{Access, MAX_BYTES, ResidencyPolicy, Room};
use crate::ChunkId;

/// The small queue's share of the bytes held.
const SMALL: f64 = 0.1;
/// Uses are counted up to this.
const MOST_USES: u8 = 3;
const MARK: &[u8; 8] = b"amems3f1";

/// Three first-in, first-out queues.
#[derive(Default)]
pub struct S3Fifo {
    held: HashMap<ChunkId, Entry>,
    small: Queue,
    main: Queue,
    /// Ids that the small queue let go, with their stamps: as many as the main queue holds chunks.
    ghosts: VecDeque<(ChunkId, u64)>,
    ghost_stamps: HashMap<ChunkId, u64>,
    /// The last victim that was named, until it leaves.
    named: Option<ChunkId>,
    stamp: u64,
}

struct Entry {
    bytes: u64,
    uses: u8,
    in_main: bool,
    /// Tells an entry's present place in a queue from places that it has left.
    stamp: u64,
}

#[derive(Default)]
struct Queue {
    places: VecDeque<(ChunkId, u64)>,
    chunks: usize,
    bytes: u64,
}

impl S3Fifo {
    fn enqueue(&mut self, chunk: ChunkId, bytes: u64, uses: u8, in_main: bool) {
        self.stamp += 1;
        let queue = if in_main { &mut self.main } else { &mut self.small };
        self.held.insert(chunk, Entry { bytes, uses, in_main, stamp: self.stamp });
        queue.places.push_back((chunk, self.stamp));
        queue.chunks += 1;
        queue.bytes += bytes;
        if queue.places.len() > 2 * queue.chunks + 16 {
            queue.places.retain(|(chunk, stamp)| self.held.get(chunk).is_some_and(|entry| entry.stamp == *stamp));
        }
    }

    /// Takes a chunk out. Its place in the queue stays behind and is passed over later.
    fn take(&mut self, chunk: &ChunkId) -> Option<Entry> {
        let entry = self.held.remove(chunk)?;
        let queue = if entry.in_main { &mut self.main } else { &mut self.small };
        queue.chunks -= 1;
        queue.bytes -= entry.bytes;
        Some(entry)
    }

    /// The chunk at the head of a queue that is not empty.
    fn head(&mut self, of_main: bool) -> Option<ChunkId> {
        let queue = if of_main { &mut self.main } else { &mut self.small };
        while let Some((chunk, stamp)) = queue.places.front() {
            if self.held.get(chunk).is_some_and(|entry| entry.stamp == *stamp) {
                return Some(*chunk);
            }
            queue.places.pop_front();
        }
        None
    }

    fn remember(&mut self, chunk: ChunkId) {
        self.stamp += 1;
        self.ghosts.push_back((chunk, self.stamp));
        self.ghost_stamps.insert(chunk, self.stamp);
        // Places of ghosts that have come back count for nothing: a restored policy does not have them.
        while self.ghost_stamps.len() > self.main.chunks.max(1) {
            let Some((old, stamp)) = self.ghosts.pop_front() else { break };
            if self.ghost_stamps.get(&old) == Some(&stamp) {
                self.ghost_stamps.remove(&old);
            }
        }
        if self.ghosts.len() > 2 * self.ghost_stamps.len() + 16 {
            self.ghosts.retain(|(chunk, stamp)| self.ghost_stamps.get(chunk) == Some(stamp));
        }
    }
}

impl ResidencyPolicy for S3Fifo {
    fn insert(&mut self, access: Access) {
        self.take(&access.chunk);
        let in_main = self.ghost_stamps.remove(&access.chunk).is_some();
        self.enqueue(access.chunk, access.bytes.min(MAX_BYTES), 0, in_main);
    }

    fn touch(&mut self, access: Access) {
        if let Some(entry) = self.held.get_mut(&access.chunk) {
            entry.uses = (entry.uses + 1).min(MOST_USES);
        }
    }

    fn remove(&mut self, chunk: &ChunkId) {
        let evicted = self.named.take_if(|named| *named == *chunk).is_some();
        if self.take(chunk).is_some_and(|entry| evicted && !entry.in_main) {
            self.remember(*chunk);
        }
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        // Each turn of this loop spends a use that a touch has added, takes a chunk out of the small queue for good, or
        // passes over one that may not leave. Once all of them were passed over in a row, none may.
        let mut passed_over = 0;
        while passed_over < self.held.len() {
            let small_is_full = self.small.bytes as f64 >= SMALL * (self.small.bytes + self.main.bytes) as f64;
            let main_may_give = self.main.chunks > passed_over && !small_is_full;
            let from_main = self.small.chunks == 0 || main_may_give;
            let chunk = self.head(from_main)?;
            let uses = self.held.get(&chunk).map_or(0, |entry| entry.uses);
            let stays = if from_main { uses > 0 } else { uses > 1 };
            let may_leave = room.may_leave(&chunk);
            if !stays && may_leave {
                self.named = Some(chunk);
                return Some(chunk);
            }
            passed_over = if may_leave { 0 } else { passed_over + 1 };
            let entry = self.take(&chunk)?;
            let uses = if from_main { uses.saturating_sub(u8::from(may_leave)) } else { 0 };
            self.enqueue(chunk, entry.bytes, uses, true);
        }
        None
    }

    fn save(&self) -> Vec<u8> {
        let mut saving = Saving::new(MARK);
        for queue in [&self.small, &self.main] {
            let standing = |(chunk, stamp): &(ChunkId, u64)| {
                self.held.get(chunk).filter(|entry| entry.stamp == *stamp).map(|entry| (*chunk, entry))
            };
            let standing: Vec<(ChunkId, &Entry)> = queue.places.iter().filter_map(standing).collect();
            saving.list(standing.into_iter(), |saving, (chunk, entry)| {
                saving.id(&chunk);
                saving.int(entry.bytes);
                saving.int(u64::from(entry.uses));
            });
        }
        let is_known = |(chunk, stamp): &&(ChunkId, u64)| self.ghost_stamps.get(chunk) == Some(stamp);
        let ghosts: Vec<ChunkId> = self.ghosts.iter().filter(is_known).map(|(chunk, _)| *chunk).collect();
        saving.list(ghosts.iter(), |saving, chunk| saving.id(chunk));
        saving.done()
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let read = || {
            let mut saved = Saved::new(MARK, saved)?;
            let mut queue = || saved.list(|saved| Some((saved.id()?, saved.int()?, saved.int()?)));
            let queues = [queue()?, queue()?];
            let ghosts = saved.list(Saved::id)?;
            saved.is_done()?;
            Some((queues, ghosts))
        };
        *self = Self::default();
        let Some((queues, ghosts)) = read() else { return Vec::new() };
        for (queue, in_main) in queues.into_iter().zip([false, true]) {
            for (chunk, bytes, uses) in queue {
                self.take(&chunk);
                self.enqueue(chunk, bytes.min(MAX_BYTES), uses.min(u64::from(MOST_USES)) as u8, in_main);
            }
        }
        // More of them than the main queue has chunks stay until the next one is remembered, as they would have.
        for chunk in ghosts {
            self.stamp += 1;
            self.ghosts.push_back((chunk, self.stamp));
            self.ghost_stamps.insert(chunk, self.stamp);
        }
        self.held.keys().copied().collect()
    }
}
