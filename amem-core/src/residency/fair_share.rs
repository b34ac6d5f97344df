//! Shares of a tier: an owner who stores much pushes out chunks of its own, not those of a neighbour.
//!
//! The budget is shared out among the owners that have chunks in the tier: first the bytes that some were guaranteed, and
//! what is left among all others, equally. Victims come from the owner that is furthest over its share, and that owner's
//! own policy says which. So nobody who holds less than a share loses anything to a neighbour, and what one does not use
//! of a share, others may, until it is wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::saved::{Saved, Saving};
use super::{Access, MAX_BYTES, ResidencyPolicy, Room, Value};
use crate::{ChunkId, OwnerId};

/// Owners without a chunk in the tier whose policies are kept: what they have learned is of use when they come back.
const REMEMBERED: usize = 64;
const MARK: &[u8; 8] = b"amemshr1";

type MakePolicy = Box<dyn Fn() -> Box<dyn ResidencyPolicy> + Send>;

/// A policy for each owner ([`ChunkId::owner`]) of the chunks in a tier, none of which can push out another's share.
///
/// ```
/// use amem_core::residency::{FairShare, Value};
/// # use std::sync::Arc;
/// # use amem_core::{RamStore, Tier};
/// # let store = Arc::new(RamStore::default());
/// let tier = Tier::new(store, 2 << 30).policy(Box::new(FairShare::new(|| Box::<Value>::default())));
/// ```
pub struct FairShare {
    make: MakePolicy,
    guaranteed: HashMap<OwnerId, u64>,
    owners: HashMap<OwnerId, Owner>,
    /// The sizes of the chunks in the tier.
    sizes: HashMap<ChunkId, u64>,
    bytes: u64,
    /// Owners with chunks in the tier and a guarantee, by the bytes that they hold less those they were guaranteed.
    over_guarantee: BTreeSet<(i64, OwnerId)>,
    /// The sum of those owners' guarantees.
    all_guaranteed: u64,
    /// Owners with chunks in the tier and no guarantee, by the bytes that they hold.
    others: BTreeSet<(i64, OwnerId)>,
    /// Owners without a chunk, in the order in which they lost their last one or were first seen.
    absent: BTreeMap<u64, OwnerId>,
    /// The last number given in there.
    absences: u64,
}

struct Owner {
    policy: Box<dyn ResidencyPolicy>,
    chunks: usize,
    bytes: u64,
    /// Its place among the absent ones, if it is one of them.
    absent: u64,
}

impl Default for FairShare {
    /// With the [`Value`] policy for each owner.
    fn default() -> Self {
        Self::new(|| Box::<Value>::default())
    }
}

impl FairShare {
    /// Equal shares. `make` makes an owner's policy.
    pub fn new(make: impl Fn() -> Box<dyn ResidencyPolicy> + Send + 'static) -> Self {
        Self::empty(Box::new(make), HashMap::new())
    }

    /// With this many bytes for an owner, while it has chunks in the tier. It is that owner's share: all others divide what
    /// is left. To be called before the policy is used; together, guarantees should be less than the tier's budget.
    #[must_use]
    pub fn guarantee(mut self, owner: OwnerId, bytes: u64) -> Self {
        self.guaranteed.insert(owner, bytes.min(MAX_BYTES));
        self
    }

    fn empty(make: MakePolicy, guaranteed: HashMap<OwnerId, u64>) -> Self {
        let (owners, sizes, absent) = (HashMap::new(), HashMap::new(), BTreeMap::new());
        let (over_guarantee, others) = (BTreeSet::new(), BTreeSet::new());
        let (bytes, all_guaranteed, absences) = (0, 0, 0);
        Self { make, guaranteed, owners, sizes, bytes, over_guarantee, all_guaranteed, others, absent, absences }
    }

    /// The owner's entry, as one of those without a chunk if it is new.
    fn owner(&mut self, id: OwnerId) -> &mut Owner {
        if !self.owners.contains_key(&id) {
            self.add_absent(id);
        }
        let (make, absent) = (&self.make, self.absences);
        self.owners.entry(id).or_insert_with(|| Owner { policy: make(), chunks: 0, bytes: 0, absent })
    }

    /// Counts an owner among those without a chunk, and forgets the first of them if there are too many.
    fn add_absent(&mut self, id: OwnerId) {
        self.absences += 1;
        self.absent.insert(self.absences, id);
        if self.absent.len() > REMEMBERED
            && let Some((_, oldest)) = self.absent.pop_first()
        {
            self.owners.remove(&oldest);
        }
    }

    /// Sets the size of a chunk, or that it is not in the tier.
    fn set_size(&mut self, chunk: ChunkId, size: Option<u64>) {
        let old = match size {
            Some(size) => self.sizes.insert(chunk, size),
            None => self.sizes.remove(&chunk),
        };
        let id = chunk.owner();
        let guaranteed = self.guaranteed.get(&id).copied();
        let order = if guaranteed.is_some() { &mut self.over_guarantee } else { &mut self.others };
        let Some(owner) = self.owners.get_mut(&id) else { return };
        let guaranteed = guaranteed.unwrap_or_default();
        if owner.chunks > 0 {
            order.remove(&(over(owner.bytes, guaranteed), id));
            self.all_guaranteed -= guaranteed;
        } else {
            self.absent.remove(&owner.absent);
        }
        owner.chunks = owner.chunks + usize::from(size.is_some()) - usize::from(old.is_some());
        owner.bytes = owner.bytes + size.unwrap_or_default() - old.unwrap_or_default();
        self.bytes = self.bytes + size.unwrap_or_default() - old.unwrap_or_default();
        if owner.chunks > 0 {
            order.insert((over(owner.bytes, guaranteed), id));
            self.all_guaranteed += guaranteed;
            return;
        }
        owner.absent = self.absences + 1;
        self.add_absent(id);
    }

    /// The owners with chunks in the tier, the one that is furthest over its share first, with how far that is.
    fn furthest_first(&self, budget: u64) -> impl Iterator<Item = (i64, OwnerId)> {
        let share = budget.saturating_sub(self.all_guaranteed) / self.others.len().max(1) as u64;
        let others = self.others.iter().rev().map(move |(bytes, id)| (bytes - over(share, 0), *id));
        let mut guaranteed = self.over_guarantee.iter().rev().copied().peekable();
        let mut others = others.peekable();
        std::iter::from_fn(move || match (guaranteed.peek(), others.peek()) {
            (Some(one), Some(other)) if one > other => guaranteed.next(),
            (Some(_), None) => guaranteed.next(),
            _ => others.next(),
        })
    }
}

/// How much more `bytes` are than `share`. Neither is beyond what a disk can hold.
fn over(bytes: u64, share: u64) -> i64 {
    bytes.min(i64::MAX as u64) as i64 - share.min(i64::MAX as u64) as i64
}

impl ResidencyPolicy for FairShare {
    fn admits(&mut self, access: &Access) -> bool {
        self.owner(access.chunk.owner()).policy.admits(access)
    }

    fn wants(&self, chunk: &ChunkId) -> bool {
        self.owners.get(&chunk.owner()).is_some_and(|owner| owner.policy.wants(chunk))
    }

    fn insert(&mut self, access: Access) {
        self.owner(access.chunk.owner()).policy.insert(access);
        self.set_size(access.chunk, Some(access.bytes.min(MAX_BYTES)));
    }

    fn touch(&mut self, access: Access) {
        if self.sizes.contains_key(&access.chunk) {
            self.owner(access.chunk.owner()).policy.touch(access);
        }
    }

    fn remove(&mut self, chunk: &ChunkId) {
        if self.sizes.contains_key(chunk) {
            self.owner(chunk.owner()).policy.remove(chunk);
            self.set_size(*chunk, None);
        }
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        let budget = self.bytes.saturating_sub(room.bytes);
        // The first has a chunk that may leave, unless all of its chunks are leased.
        let mut passed_over = 0;
        loop {
            let (over, id) = self.furthest_first(budget).nth(passed_over)?;
            // An owner is asked for no more than it holds beyond its share.
            let bytes = room.bytes.min(u64::try_from(over).unwrap_or_default().max(1));
            let victim = self.owners.get_mut(&id)?.policy.victim(&Room { bytes, ..*room });
            if victim.is_some() {
                return victim;
            }
            passed_over += 1;
        }
    }

    fn save(&self) -> Vec<u8> {
        let mut present: Vec<OwnerId> = self.owners.keys().filter(|id| self.owners[id].chunks > 0).copied().collect();
        present.sort_unstable();
        let mut chunks: Vec<(&ChunkId, &u64)> = self.sizes.iter().collect();
        chunks.sort_unstable();
        let mut saving = Saving::new(MARK);
        // The absent ones in their order, so that they are forgotten in that order.
        saving.list(present.iter().chain(self.absent.values()).collect::<Vec<_>>().into_iter(), |saving, id| {
            saving.int(u64::from_le_bytes(id.0));
            saving.bytes(&self.owners.get(id).map(|owner| owner.policy.save()).unwrap_or_default());
        });
        saving.list(chunks.into_iter(), |saving, (chunk, bytes)| {
            saving.id(chunk);
            saving.int(*bytes);
        });
        saving.done()
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let read = |this: &mut Self| {
            let mut saved = Saved::new(MARK, saved)?;
            let owners = saved.list(|saved| Some((OwnerId(saved.int()?.to_le_bytes()), saved.bytes()?)))?;
            let sizes = saved.list(|saved| Some((saved.id()?, saved.int().filter(|bytes| *bytes <= MAX_BYTES)?)))?;
            saved.is_done()?;
            let sizes: HashMap<ChunkId, u64> = sizes.into_iter().collect();
            for (id, policy) in owners {
                // Made here, not by `owner`, which would forget one if many are still without a chunk.
                let mut owner = Owner { policy: (this.make)(), chunks: 0, bytes: 0, absent: 0 };
                let held = owner.policy.restore(policy);
                this.owners.insert(id, owner).is_none().then_some(())?;
                if held.is_empty() {
                    // An owner takes far more than the bytes that name it: no more are made than would have been saved.
                    (this.absent.len() < REMEMBERED).then_some(())?;
                    this.absences += 1;
                    this.owners.get_mut(&id)?.absent = this.absences;
                    this.absent.insert(this.absences, id);
                }
                for chunk in held {
                    (chunk.owner() == id).then_some(())?;
                    this.set_size(chunk, Some(*sizes.get(&chunk)?));
                }
            }
            Some(())
        };
        // What was guaranteed was said to this policy, not to the one that was saved.
        let make = std::mem::replace(&mut self.make, Box::new(|| Box::<Value>::default()));
        *self = Self::empty(make, std::mem::take(&mut self.guaranteed));
        if read(self).is_none() {
            let make = std::mem::replace(&mut self.make, Box::new(|| Box::<Value>::default()));
            *self = Self::empty(make, std::mem::take(&mut self.guaranteed));
        }
        self.sizes.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::residency::Lru;

    fn access(owner: u8, chunk: u16, bytes: u64) -> Access {
        let mut id = [0; 32];
        (id[0], id[8], id[9]) = (owner, chunk.to_le_bytes()[0], chunk.to_le_bytes()[1]);
        Access { chunk: ChunkId(id), relevance: 1.0, bytes, cost: bytes as f32, time: 0.0 }
    }

    fn owner(name: u8) -> OwnerId {
        access(name, 0, 0).chunk.owner()
    }

    #[test]
    fn policies_of_owners_without_chunks_are_kept_for_a_while_only() {
        let mut shares = FairShare::default();
        for name in 0..=u8::MAX {
            shares.insert(access(name, 0, 1));
            shares.admits(&access(name, 1, 1));
        }
        assert_eq!(shares.owners.len(), 256);
        (0..=u8::MAX).for_each(|name| shares.remove(&access(name, 0, 1).chunk));
        assert_eq!((shares.owners.len(), shares.absent.len(), shares.bytes), (REMEMBERED, REMEMBERED, 0));
        assert!(shares.owners.contains_key(&owner(255)) && !shares.owners.contains_key(&owner(0)));
    }

    #[test]
    fn no_more_owners_are_restored_than_would_have_been_saved() {
        let restored = |owners: usize| {
            let mut saving = Saving::new(MARK);
            saving.list(0..owners, |saving, id| {
                saving.int(id as u64);
                saving.bytes(&[]);
            });
            saving.list(std::iter::empty::<ChunkId>(), |saving, chunk| saving.id(&chunk));
            let mut shares = FairShare::default();
            shares.restore(&saving.done());
            shares.owners.len()
        };
        assert_eq!([restored(REMEMBERED), restored(REMEMBERED + 1)], [REMEMBERED, 0]);
    }

    #[test]
    fn what_was_guaranteed_is_a_share_and_the_rest_is_divided() {
        // Of 100 bytes, one owner has 60, so that the two others have 20 each.
        let mut shares = FairShare::new(|| Box::<Lru>::default()).guarantee(owner(1), 60);
        (0..60).for_each(|chunk| shares.insert(access(1, chunk, 1)));
        (0..18).for_each(|chunk| shares.insert(access(2, chunk, 1)));
        (0..30).for_each(|chunk| shares.insert(access(3, chunk, 1)));
        for _ in 0..8 {
            let victim = shares.victim(&Room::new(shares.bytes - 100, 0.0)).unwrap();
            assert_eq!(victim.owner(), owner(3));
            shares.remove(&victim);
        }
        assert_eq!(shares.bytes, 100);
    }

    proptest! {
        /// Whatever is put, by whomever: whoever loses a chunk held more than an equal share of the budget.
        #[test]
        fn nobody_loses_a_chunk_of_less_than_a_share(
            budget in 50_u64..200,
            puts in prop::collection::vec((0_u8..5, 0_u16..40, 1_u64..30), 1..200),
        ) {
            let mut shares = FairShare::default();
            let mut held: BTreeMap<ChunkId, u64> = BTreeMap::new();
            for (name, chunk, bytes) in puts {
                let access = access(name, chunk, bytes);
                if held.contains_key(&access.chunk) {
                    shares.touch(access);
                    continue;
                }
                shares.insert(access);
                held.insert(access.chunk, bytes);
                while held.values().sum::<u64>() > budget {
                    let all: u64 = held.values().sum();
                    let victim = shares.victim(&Room::new(all - budget, 0.0)).unwrap();
                    let owners: BTreeSet<OwnerId> = held.keys().map(ChunkId::owner).collect();
                    let of_owner = held.iter().filter(|(chunk, _)| chunk.owner() == victim.owner());
                    let bytes: u64 = of_owner.map(|(_, bytes)| bytes).sum();
                    prop_assert!(bytes * owners.len() as u64 > budget, "{} of {} bytes", bytes, budget);
                    shares.remove(&victim);
                    prop_assert!(held.remove(&victim).is_some());
                }
            }
        }
    }
}
