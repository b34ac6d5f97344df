//! Stores stacked, fastest first: RAM over a disk over a remote server, each under a budget of bytes.
//!
//! What it promises:
//! - A tier's budget holds at every moment: victims leave before the chunks that need their room come. It counts the KV
//!   that a store holds; a store on disk may take up to about twice that, and a segment more, until it tidies up.
//! - A `get` is answered by the fastest tier that has the chunk, and copied up into the tiers above after it was
//!   answered. A tier that fails is passed over; its error is returned only if no chunk was found anywhere.
//! - A `put` goes to the slowest tier first, then up, in one call to each. Its error is that of the slowest tier, returned
//!   after the others have kept what they could: with a disk that is full or read-only, the RAM above it serves on.
//! - A deleted chunk is gone from every tier, even if a `get` or a `put` was about to bring it there. A [shared](Tier::shared)
//!   tier is deleted from on other machines, too: what is written there in the background is deleted again if
//!   [nobody wants it](KvStore::ask_of_late_writes) any more when it is there.
//! - A chunk larger than a tier's budget passes that tier by; [`Error::Full`] if it passes all of them by.
//! - A chunk that is [leased](KvStore::lease) makes no room for others, until the lease is dropped or its time is over, an
//!   hour at most. Budgets hold all the same: where everything is leased, what comes new is let go.
//!
//! Nothing is written down when it leaves a tier: the tiers below were offered it when it was put, and when it was used, if
//! they [want](crate::ResidencyPolicy::wants) it then. A chunk that none of them kept is rebuilt from its text. A policy
//! may let go at once what it has just been offered, if everything that is held is worth more. That is no error: a store
//! of KV may lose a chunk.
//!
//! **What a miss costs** ([`Access::cost`]), in tokens of prefill: the chunk's tokens where no slower tier has it;
//! otherwise that times the read cost of the fastest slower tier that has it: seconds to read a token there over seconds
//! to prefill one ([`KvStore::note_prefill`]), both measured. Layers that a store leaves in its files are measured when they
//! are read; [`Tier::read_cost`] says what that means. A tier that is slower than prefill is not read at all, but for a try
//! now and then.
//!
//! **Background work** runs on the `blocking` crate's threads, in order, one job at a time.

mod background;
mod clock;
mod deletions;
mod late;
mod leases;
mod reads;
mod tier;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
pub use tier::{Tier, WriteMode};

use self::background::{Background, Job};
use self::clock::Clock;
use self::deletions::{Deletions, Watch};
use self::late::LateWrites;
use self::leases::Leases;
use self::reads::Rate;
use self::tier::{Kept, Level};
use crate::{Access, ChunkId, Error, KvChunk, KvStore, Lease, Result, StoreStats, StoredChunk, TierStats, Wanted};

/// Relevances kept for chunks that may be used soon; beyond this many, they are forgotten.
const MAX_RELEVANCES: usize = 1 << 16;

/// Several stores as one, each under a budget of bytes that holds at every moment.
///
/// `get` is answered by the fastest tier that has the chunk, which is then copied up. `put` offers chunks to every tier,
/// the slowest first; it fails with the slowest tier's error after the faster ones have kept what they could, or with
/// [`Error::Full`] where a chunk is larger than every budget. `delete` removes from every tier. `sync` waits for what is
/// done in the background, too.
///
/// ```
/// # use std::sync::Arc;
/// # use amem_core::{KvStore, RamStore, Result, Tier, Tiered};
/// # async fn example(disk: Arc<dyn KvStore>) -> Result<()> {
/// let ram = Tier::new(Arc::new(RamStore::default()), 2 << 30);
/// let store = Tiered::open(vec![ram, Tier::new(disk, 100 << 30)]).await?;
/// # Ok(()) }
/// ```
pub struct Tiered {
    stack: Arc<Stack>,
    background: Arc<Background>,
}

/// The tiers and what is known about them all.
struct Stack {
    /// Fastest first.
    levels: Vec<Level>,
    clock: Arc<Clock>,
    leases: Arc<Leases>,
    /// How much chunks that may be used soon matter.
    relevance: Mutex<HashMap<ChunkId, f32>>,
    prefill: Mutex<Rate>,
    deletions: Arc<Deletions>,
    late: LateWrites,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What was found in the tiers.
struct Lookup {
    /// In the order of the ids, each with the tier's place.
    found: Vec<Option<(usize, KvChunk)>>,
    /// Chunks that tiers were asked for in vain though they were taken to hold them.
    stale: Vec<(usize, ChunkId)>,
}

impl Tiered {
    /// Stacks stores, fastest first. What they hold already is counted, and whatever is over a budget leaves.
    ///
    /// # Errors
    /// [`Error::BadValue`] for no tiers at all; [`Error::Store`] when a store cannot list or evict its chunks.
    pub async fn open(tiers: Vec<Tier>) -> Result<Self> {
        Self::open_with(tiers, Clock::default()).await
    }

    async fn open_with(tiers: Vec<Tier>, clock: Clock) -> Result<Self> {
        if tiers.is_empty() {
            return Err(Error::BadValue { what: "tiers", value: "0".to_owned(), expected: "1 or more" });
        }
        let mut stack = Stack {
            levels: Vec::new(),
            clock: Arc::new(clock),
            leases: Arc::default(),
            relevance: Mutex::default(),
            prefill: Mutex::default(),
            deletions: Arc::default(),
            late: LateWrites::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        };
        // Slowest first: what a miss costs depends on the tiers below.
        for tier in tiers.into_iter().rev() {
            let (clock, leases) = (Arc::clone(&stack.clock), Arc::clone(&stack.leases));
            let level = Level::open(tier, clock, leases, |chunk| stack.access(0, chunk)).await?;
            stack.levels.insert(0, level);
        }
        Ok(Self { stack: Arc::new(stack), background: Arc::default() })
    }

    /// What each tier's policy has learned, fastest first: for [`Tier::residency`], after a restart. Nothing writes it down
    /// by itself; `amem_store::ResidencyFile` is a file for it, and `amem_store::ResidencySaver` keeps that up to date.
    pub fn save_residency(&self) -> Vec<Vec<u8>> {
        self.stack.levels.iter().map(Level::save).collect()
    }

    /// How often the policies were told something since this was opened, about: whoever saves now and then what they have
    /// learned sees by it whether that is worth it.
    pub fn residency_changes(&self) -> u64 {
        self.stack.levels.iter().map(Level::told).sum()
    }

    /// Offers chunks that were found in a tier to those slower ones that want them. The watch is older than the finding.
    fn offer_down(&self, found: &[Option<(usize, KvChunk)>], watch: &Watch) {
        for (at, level) in self.stack.levels.iter().enumerate().skip(1) {
            let wanted = found.iter().flatten().filter(|(found_at, chunk)| *found_at < at && level.wants(&chunk.id()));
            let chunks: Vec<KvChunk> = wanted.map(|(_, chunk)| chunk.clone()).collect();
            if !chunks.is_empty() {
                drop(self.later(Job::Write { at, chunks, watch: watch.clone() }));
            }
        }
    }

    /// Does a job later, or says that too much waits already.
    fn later(&self, job: Job) -> Result<(), Job> {
        self.background.push(&self.stack, job)
    }
}

impl Stack {
    /// A use of a chunk, as a tier with these slower ones below it sees it.
    fn access(&self, below: usize, chunk: StoredChunk) -> Access {
        let relevance = self.relevance.lock().unwrap_or_else(PoisonError::into_inner).get(&chunk.id).copied();
        let prefill = *self.prefill.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = self.levels.iter().skip(below).find(|level| level.holds(&chunk.id));
        Access {
            chunk: chunk.id,
            relevance: relevance.unwrap_or(1.0),
            bytes: chunk.bytes,
            cost: chunk.tokens as f32 * copy.map_or(1.0, |level| level.read_cost(&prefill).clamp(0.0, 1.0)),
            time: self.clock.now(),
        }
    }

    /// A use of a chunk, as the tier at this place sees it.
    fn access_at(&self, at: usize) -> impl Fn(StoredChunk) -> Access {
        move |chunk| self.access(at + 1, chunk)
    }

    /// Whether a tier is worth reading for these chunks.
    fn is_worth_reading(&self, level: &Level, ids: &[ChunkId]) -> bool {
        let prefill = *self.prefill.lock().unwrap_or_else(PoisonError::into_inner);
        level.is_worth_reading(&prefill, ids)
    }

    /// The fastest tiers' copies of chunks.
    async fn find(&self, ids: &[ChunkId]) -> Result<Lookup> {
        let mut found: Vec<Option<(usize, KvChunk)>> = vec![None; ids.len()];
        let (mut stale, mut failure) = (Vec::new(), None);
        for (at, level) in self.levels.iter().enumerate() {
            let wanted: Vec<usize> = (0..ids.len()).filter(|i| found[*i].is_none()).collect();
            if wanted.is_empty() {
                break;
            }
            let asked: Vec<ChunkId> = wanted.iter().map(|i| ids[*i]).collect();
            if !self.is_worth_reading(level, &asked) {
                continue;
            }
            match level.get_many(&asked).await {
                Ok(chunks) => {
                    for (i, chunk) in wanted.into_iter().zip(chunks) {
                        match chunk {
                            Some(chunk) => found[i] = Some((at, chunk)),
                            None if level.holds(&ids[i]) => stale.push((at, ids[i])),
                            None => {}
                        }
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if found.iter().all(Option::is_none) => Err(error),
            _ => Ok(Lookup { found, stale }),
        }
    }

    /// Copies chunks into the tiers above those in which they were found. What goes wrong there changes nothing about
    /// the chunks having been found.
    async fn copy_up(&self, found: &[(usize, KvChunk)], watch: &Watch) {
        for (at, level) in self.levels.iter().enumerate().rev() {
            let above = found.iter().filter(|(found_at, chunk)| at < *found_at && !level.holds(&chunk.id()));
            let mut chunks = Vec::new();
            for (_, chunk) in above {
                match level.encode(chunk).await {
                    Ok(chunk) => chunks.push(chunk),
                    Err(error) => log::warn!("chunk {} was not copied into a faster tier: {error}", chunk.id()),
                }
            }
            if !chunks.is_empty() {
                if let Err(error) = level.keep(&chunks, self.access_at(at), |id| watch.is_current(id)).await {
                    log::debug!("{} chunks were not copied into a faster tier: {error}", chunks.len());
                }
                self.written_late(at, &chunks);
            }
            for (_, chunk) in found.iter().filter(|(found_at, chunk)| at == *found_at && !level.holds(&chunk.id())) {
                let stored = StoredChunk::of(chunk);
                if let Err(error) = level.adopt(stored, self.access_at(at)(stored)).await {
                    log::warn!("a tier has chunk {} and could not make room for it: {error}", chunk.id());
                }
            }
        }
    }

    /// Reads chunks from the tiers in which they were seen, and copies them into those above.
    async fn read_up(&self, ids: &[(usize, ChunkId)], watch: &Watch) {
        let mut found = Vec::new();
        for (at, level) in self.levels.iter().enumerate() {
            // Some may have come up meanwhile, because they were used.
            let is_above = |id: &ChunkId| self.levels[..at].iter().any(|level| level.holds(id));
            let wanted = ids.iter().filter(|(seen_at, id)| *seen_at == at && !is_above(id));
            let wanted: Vec<ChunkId> = wanted.map(|(_, id)| *id).collect();
            if wanted.is_empty() {
                continue;
            }
            match level.get_many(&wanted).await {
                Ok(chunks) => found.extend(chunks.into_iter().flatten().map(|chunk| (at, chunk))),
                Err(error) => log::debug!("{} chunks were not read ahead: {error}", wanted.len()),
            }
        }
        self.copy_up(&found, watch).await;
    }

    /// Keeps chunks in one tier. Says which of them it took or was right not to take.
    async fn keep(&self, at: usize, chunks: &[KvChunk], watch: &Watch) -> Result<Vec<bool>> {
        let level = &self.levels[at];
        let mut encoded = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            encoded.push(level.encode(chunk).await?);
        }
        let kept = level.keep(&encoded, self.access_at(at), |id| watch.is_current(id)).await?;
        Ok(kept.into_iter().map(|kept| kept != Kept::TooLarge).collect())
    }

    /// Notes what was written in the background, even in vain: some of it may be there.
    fn written_late(&self, at: usize, chunks: &[KvChunk]) {
        if self.levels[at].shared {
            self.late.note(at, chunks.iter().map(KvChunk::id));
        }
    }

    /// Deletes what was written late to shared tiers and is not wanted any more. What nobody could be asked about, or could
    /// not be deleted, is tried again the next time.
    async fn check_late_writes(&self) {
        for (at, chunks) in self.late.take() {
            let unwanted = match self.late.unwanted(&chunks).await {
                Ok(unwanted) if unwanted.is_empty() => continue,
                Ok(unwanted) => unwanted,
                Err(error) => {
                    log::warn!("whether {} chunks are still wanted is asked again: {error}", chunks.len());
                    self.late.note(at, chunks);
                    continue;
                }
            };
            log::debug!("{} chunks were forgotten before they were written to a shared tier", unwanted.len());
            if let Err(error) = self.levels[at].delete(&unwanted).await {
                log::warn!("{} chunks of forgotten texts are deleted again later: {error}", unwanted.len());
                self.late.note(at, unwanted);
            }
        }
    }

    async fn run(&self, job: Job) {
        self.do_job(job).await;
        self.check_late_writes().await;
    }

    async fn do_job(&self, job: Job) {
        match job {
            Job::CopyUp { found, watch } => self.copy_up(&found, &watch).await,
            Job::Write { at, chunks, watch } => {
                if let Err(error) = self.keep(at, &chunks, &watch).await {
                    log::warn!("{} chunks could not be written to a slower tier: {error}", chunks.len());
                }
                self.written_late(at, &chunks);
            }
            Job::ReadUp { ids, watch, .. } => self.read_up(&ids, &watch).await,
            Job::Signal(done) => {
                // What could not be asked about or deleted before.
                self.check_late_writes().await;
                // Whoever waited may be gone.
                let _ = done.send(());
            }
            Job::Check { stale } => {
                for (at, level) in self.levels.iter().enumerate() {
                    let ids: Vec<ChunkId> = stale.iter().filter(|stale| stale.0 == at).map(|stale| stale.1).collect();
                    if !ids.is_empty() {
                        level.check(&ids).await;
                    }
                }
            }
        }
    }
}

#[async_trait]
impl KvStore for Tiered {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let watch = Deletions::watch(&self.stack.deletions);
        let found = self.stack.find(ids).await;
        let hits = found.as_ref().map_or(0, |lookup| lookup.found.iter().flatten().count()) as u64;
        self.stack.hits.fetch_add(hits, Relaxed);
        self.stack.misses.fetch_add(ids.len() as u64 - hits, Relaxed);
        let Lookup { found, stale } = found?;
        let mut lower = Vec::new();
        for (found_at, chunk) in found.iter().flatten() {
            let stored = StoredChunk::of(chunk);
            let mut known = true;
            for (at, level) in self.stack.levels.iter().enumerate() {
                let touched = level.touch(self.stack.access_at(at)(stored));
                known &= touched || at > *found_at || !level.fits(chunk);
            }
            if !known {
                lower.push((*found_at, chunk.clone()));
            }
        }
        self.offer_down(&found, &watch);
        // What does not fit into the background is not done: the chunks were found all the same.
        if !lower.is_empty() {
            drop(self.later(Job::CopyUp { found: lower, watch }));
        }
        if !stale.is_empty() {
            drop(self.later(Job::Check { stale }));
        }
        Ok(found.into_iter().map(|found| found.map(|(_, chunk)| chunk)).collect())
    }

    /// Each chunk's fastest tier begins to read it, and in the background it is copied up from there: unless that tier is
    /// slower than prefill, or too much waits already.
    fn prefetch(&self, ids: &[ChunkId]) {
        let mut left: Vec<ChunkId> = ids.to_vec();
        let mut below = Vec::new();
        let mut bytes = 0;
        for (at, level) in self.stack.levels.iter().enumerate() {
            let (here, elsewhere): (Vec<_>, Vec<_>) = left.into_iter().partition(|id| level.holds(id));
            left = elsewhere;
            if here.is_empty() {
                continue;
            }
            level.store().prefetch(&here);
            if at > 0 && self.stack.is_worth_reading(level, &here) {
                bytes += level.bytes_of(&here);
                below.extend(here.into_iter().map(|id| (at, id)));
            }
        }
        if !below.is_empty() {
            let watch = Deletions::watch(&self.stack.deletions);
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            drop(self.later(Job::ReadUp { ids: below, bytes, watch }));
        }
    }

    async fn give_up(&self, bytes: u64) -> Result<u64> {
        let (mut freed, mut failure) = (0, None);
        for level in self.stack.levels.iter().rev() {
            match level.give_up(bytes.saturating_sub(freed)).await {
                Ok(more) => freed += more,
                Err(error) => failure = Some(error),
            }
            if freed >= bytes {
                break;
            }
        }
        match failure {
            Some(error) if freed == 0 => Err(error),
            _ => Ok(freed),
        }
    }

    fn lease(&self, ids: &[ChunkId], time: Duration) -> Lease {
        match Leases::begin(&self.stack.leases, ids, self.stack.clock.elapsed(), time) {
            Some(end) => {
                self.stack.levels.iter().fold(Lease::new(end), |all, level| all.and(level.store().lease(ids, time)))
            }
            None => {
                log::debug!("{} chunks were not leased: too many are already", ids.len());
                Lease::default()
            }
        }
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        let watch = Deletions::watch(&self.stack.deletions);
        let mut result = Ok(());
        let mut fits = vec![false; chunks.len()];
        for (at, level) in self.stack.levels.iter().enumerate().rev() {
            let slowest = at + 1 == self.stack.levels.len();
            if level.write == WriteMode::Back {
                let job = Job::Write { at, chunks: chunks.to_vec(), watch: watch.clone() };
                if self.later(job).is_ok() {
                    fits.iter_mut().zip(chunks).for_each(|(fits, chunk)| *fits |= level.fits(chunk));
                    continue;
                }
            }
            match self.stack.keep(at, chunks, &watch).await {
                Ok(kept) => fits.iter_mut().zip(kept).for_each(|(fits, kept)| *fits |= kept),
                Err(error) if slowest => result = Err(error),
                Err(error) => log::warn!("a tier could not keep {} chunks: {error}", chunks.len()),
            }
        }
        match chunks.iter().zip(fits).find(|(_, fits)| !fits) {
            Some((chunk, _)) if result.is_ok() => {
                let reason = format!("{} bytes are more than any tier's budget, or no tier took them", chunk.size());
                Err(Error::Full { what: "every tier".to_owned(), reason })
            }
            _ => result,
        }
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let mut result = Ok(());
        // Noted before each tier's turn: what was about to bring a chunk there either has done so before, and it is
        // deleted now, or sees the note and does not.
        for level in self.stack.levels.iter().rev() {
            self.stack.deletions.note(ids);
            result = result.and(level.delete(ids).await);
        }
        result
    }

    async fn evict(&self, ids: &[ChunkId]) -> Result<()> {
        self.delete(ids).await
    }

    async fn purge(&self) -> Result<()> {
        let mut result = Ok(());
        for level in &self.stack.levels {
            result = result.and(level.purge().await);
        }
        result
    }

    fn ask_of_late_writes(&self, wanted: Arc<dyn Wanted>) {
        self.stack.levels.iter().for_each(|level| level.store().ask_of_late_writes(Arc::clone(&wanted)));
        self.stack.late.ask(wanted);
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        let mut contained = vec![false; ids.len()];
        for level in &self.stack.levels {
            let left: Vec<usize> = (0..ids.len()).filter(|i| !contained[*i]).collect();
            let asked: Vec<ChunkId> = left.iter().map(|i| ids[*i]).collect();
            if !asked.is_empty() {
                let found = level.store().contains_many(&asked).await;
                left.into_iter().zip(found).for_each(|(i, found)| contained[i] = found);
            }
        }
        contained
    }

    /// Chunks count once, however many tiers have them; bytes and damage add up over the tiers.
    async fn stats(&self) -> StoreStats {
        let (hits, misses) = (self.stack.hits.load(Relaxed), self.stack.misses.load(Relaxed));
        let mut sum = StoreStats { hits, misses, ..StoreStats::default() };
        for level in &self.stack.levels {
            let stats = level.store().stats().await;
            sum.bytes += stats.bytes;
            sum.damaged += stats.damaged;
        }
        let distinct: HashSet<ChunkId> = self.stack.levels.iter().flat_map(Level::held).collect();
        sum.chunks = distinct.len();
        sum
    }

    async fn tiers(&self) -> Vec<TierStats> {
        self.stack.levels.iter().map(Level::stats).collect()
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        let mut merged = BTreeMap::new();
        for level in &self.stack.levels {
            merged.extend(level.store().page(after, limit).await?.into_iter().map(|chunk| (chunk.id, chunk)));
        }
        Ok(merged.into_values().take(limit).collect())
    }

    async fn sync(&self) -> Result<()> {
        self.background.finish(&self.stack).await;
        let mut result = Ok(());
        for level in &self.stack.levels {
            result = result.and(level.store().sync().await);
        }
        result
    }

    fn note_prefill(&self, tokens: usize, time: Duration) {
        self.stack.prefill.lock().unwrap_or_else(PoisonError::into_inner).note(tokens, time);
        self.stack.levels.iter().for_each(|level| level.store().note_prefill(tokens, time));
    }

    /// Counts from the next use of each chunk on, in every tier.
    fn note_relevance(&self, relevance: &[(ChunkId, f32)]) {
        let mut known = self.stack.relevance.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() + relevance.len() > MAX_RELEVANCES {
            known.clear();
        }
        known.extend(relevance.iter().take(MAX_RELEVANCES).copied());
        self.stack.levels.iter().for_each(|level| level.store().note_relevance(relevance));
    }
}

#[cfg(test)]
mod tests;
