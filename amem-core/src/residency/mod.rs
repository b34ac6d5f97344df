//! Which chunks stay in a tier when it is full.
//!
//! [`Value`] is the default. [`Lru`], [`Lfu`], [`Gdsf`] and [`S3Fifo`] are the baselines; `cargo bench --bench
//! residency` lets them compete. [`FairShare`] and [`SecondUse`] are made of other policies.

mod fair_share;
mod gdsf;
mod half_life;
mod lfu;
mod lru;
mod ranking;
mod s3fifo;
mod saved;
mod second_use;
mod value;

pub use fair_share::FairShare;
pub use gdsf::Gdsf;
pub use lfu::Lfu;
pub use lru::Lru;
pub use s3fifo::S3Fifo;
pub use second_use::SecondUse;
pub use value::Value;

use std::fmt;

use crate::ChunkId;

/// A policy takes a chunk for this large at most, so that no sum of sizes overflows.
const MAX_BYTES: u64 = 1 << 40;

/// One look at a chunk, as a tier sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    /// The chunk.
    pub chunk: ChunkId,
    /// How much it matters to what is being asked, from 0 to 1; 1 where nobody said.
    pub relevance: f32,
    /// Bytes it occupies in this tier.
    pub bytes: u64,
    /// What a miss would cost: tokens to prefill, or their equivalent where a slower tier has a copy.
    pub cost: f32,
    /// Seconds since 1970. Never decreases while a tier is open.
    pub time: f64,
}

impl Access {
    /// What a miss would cost per byte held. Above zero and finite, whatever the access says.
    fn density(&self) -> f64 {
        within(f64::from(self.cost) / self.bytes.max(1) as f64, 1e-12, 1e12)
    }
}

/// `x` within these bounds; the lower one where `x` is not a number.
fn within(x: f64, low: f64, high: f64) -> f64 {
    if x.is_nan() { low } else { x.clamp(low, high) }
}

/// What a full tier asks a policy for.
#[derive(Clone, Copy)]
pub struct Room<'a> {
    /// Bytes that must become free.
    pub bytes: u64,
    /// Seconds since 1970, as in [`Access::time`].
    pub time: f64,
    is_leased: Option<&'a dyn Fn(&ChunkId) -> bool>,
}

impl<'a> Room<'a> {
    /// Room for this many bytes, at this time. Any chunk may leave for it.
    pub fn new(bytes: u64, time: f64) -> Self {
        Self { bytes, time, is_leased: None }
    }

    /// The same, but these chunks may not leave for it: they are in use.
    #[must_use]
    pub fn except(self, is_leased: &'a dyn Fn(&ChunkId) -> bool) -> Self {
        Self { is_leased: Some(is_leased), ..self }
    }

    /// Whether a chunk may be the victim.
    pub fn may_leave(&self, chunk: &ChunkId) -> bool {
        self.is_leased.is_none_or(|is_leased| !is_leased(chunk))
    }
}

impl fmt::Debug for Room<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("bytes", &self.bytes).field("time", &self.time).finish_non_exhaustive()
    }
}

/// Ranks the chunks of one tier. The tier calls it under a lock, so it is plain, sequential code.
///
/// It is checked by `testing::residency_policy` (feature `testing`).
#[doc(alias = "eviction")]
pub trait ResidencyPolicy: Send {
    /// Whether a chunk that is not in the tier is to be let in. It is asked once for each time that the chunk is offered,
    /// and what is let in is [inserted](Self::insert) next.
    fn admits(&mut self, access: &Access) -> bool {
        let _ = access;
        true
    }

    /// Whether a chunk that is not in the tier should be offered to it when it is used in a faster one, as if it were put
    /// again.
    fn wants(&self, chunk: &ChunkId) -> bool {
        let _ = chunk;
        false
    }

    /// A chunk is in the tier from now on.
    fn insert(&mut self, access: Access);

    /// A chunk of the tier was used.
    fn touch(&mut self, access: Access);

    /// A chunk has left the tier, or was deleted.
    fn remove(&mut self, chunk: &ChunkId);

    /// A chunk that is to leave the tier, so that in the end there is this much room; `None` when no chunk of the tier
    /// [may leave](Room::may_leave). It is in the tier until it is [removed](Self::remove), and the tier asks again while
    /// it needs more. It may be the newest chunk, if every other is worth more. Takes O(log n), and longer by those that
    /// may not leave.
    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId>;

    /// What the policy has learned, for [`restore`](Self::restore). Empty where it learns nothing.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Loads into a new policy what an earlier one [saved](Self::save): it decides as that one would have. Returns the
    /// chunks that were in the tier then; they count as inserted. Bytes that make no sense load nothing.
    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let _ = saved;
        Vec::new()
    }
}

/// So that policies can be put together that are chosen while the program runs.
impl ResidencyPolicy for Box<dyn ResidencyPolicy> {
    fn admits(&mut self, access: &Access) -> bool {
        (**self).admits(access)
    }

    fn wants(&self, chunk: &ChunkId) -> bool {
        (**self).wants(chunk)
    }

    fn insert(&mut self, access: Access) {
        (**self).insert(access);
    }

    fn touch(&mut self, access: Access) {
        (**self).touch(access);
    }

    fn remove(&mut self, chunk: &ChunkId) {
        (**self).remove(chunk);
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        (**self).victim(room)
    }

    fn save(&self) -> Vec<u8> {
        (**self).save()
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        (**self).restore(saved)
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::residency_policy;

    #[test]
    fn every_policy_keeps_the_traits_promises() {
        residency_policy(|| Box::<Lru>::default());
        residency_policy(|| Box::<Lfu>::default());
        residency_policy(|| Box::<Gdsf>::default());
        residency_policy(|| Box::<S3Fifo>::default());
        residency_policy(|| Box::<Value>::default());
        residency_policy(|| Box::new(SecondUse::new(Lru::default())));
        residency_policy(|| Box::new(SecondUse::new(Box::<Value>::default() as Box<dyn ResidencyPolicy>)));
        residency_policy(|| Box::<FairShare>::default());
        residency_policy(|| Box::new(FairShare::new(|| Box::new(SecondUse::new(S3Fifo::default())))));
    }
}
