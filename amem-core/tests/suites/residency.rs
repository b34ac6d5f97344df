//! A good residency policy with one fault at a time.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use amem_core::residency::{Room, S3Fifo};
use amem_core::{Access, ChunkId, ResidencyPolicy, testing};

use super::each_is_caught;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    NamesWhatIsNotThere,
    NamesNobody,
    NamesAgainWhatHasLeft,
    NamesFewerThanThereAre,
    NamesWhatIsLeased,
    NamesNobodyWhileSomeAreLeased,
    RemovesNothing,
    RemovesAnotherForTheUnknown,
    CountsSecondInserts,
    PanicsOnOddNumbers,
    DependsOnAHashMap,
    AdmitsByChance,
    WantsByChance,
    RestoresAnotherOrder,
    RestoresMore,
    RestoresFewer,
    RestoresWithoutSayingSo,
    ForgetsHowOftenAfterRestoring,
    AdmitsOtherwiseAfterRestoring,
    WantsOtherwiseAfterRestoring,
    RestoresTornBytes,
    PanicsOnTornBytes,
    SavesTornBytesOnceThousandsHaveLeft,
}

const FAULTS: [(Fault, &str); 23] = [
    (Fault::NamesWhatIsNotThere, "leaves a second time"),
    (Fault::NamesNobody, "the one chunk of the tier is not the victim"),
    (Fault::NamesAgainWhatHasLeft, "a policy names a victim after the last chunk has left"),
    (Fault::NamesFewerThanThereAre, "chunks that left"),
    (Fault::NamesWhatIsLeased, "is leased and named as a victim"),
    (Fault::NamesNobodyWhileSomeAreLeased, "chunks that left while others were leased"),
    (Fault::RemovesNothing, "after the last chunk has left"),
    (Fault::RemovesAnotherForTheUnknown, "the one chunk of the tier is not the victim"),
    (Fault::CountsSecondInserts, "a chunk that was inserted twice is there after it was removed"),
    (Fault::PanicsOnOddNumbers, "what a number"),
    (Fault::DependsOnAHashMap, "with the same history name different victims"),
    (Fault::AdmitsByChance, "with the same history let in or want different chunks"),
    (Fault::WantsByChance, "with the same history let in or want different chunks"),
    (Fault::RestoresAnotherOrder, "a restored policy names another victim"),
    (Fault::RestoresMore, "a restored policy holds chunks that the saved one did not"),
    (Fault::RestoresFewer, "a restored policy names another victim"),
    (Fault::RestoresWithoutSayingSo, "restore names the chunks that were in the tier"),
    (Fault::ForgetsHowOftenAfterRestoring, "a restored policy"),
    (Fault::AdmitsOtherwiseAfterRestoring, "a restored policy lets in other chunks"),
    (Fault::WantsOtherwiseAfterRestoring, "a restored policy wants other chunks"),
    (Fault::RestoresTornBytes, ""),
    (Fault::PanicsOnTornBytes, "what bytes"),
    (Fault::SavesTornBytesOnceThousandsHaveLeft, "of 5000 chunks that came and went"),
];

#[test]
fn each_fault_of_a_residency_policy_is_caught() {
    testing::residency_policy(|| Box::new(Faulty::new(None)));
    each_is_caught(&FAULTS, |fault| testing::residency_policy(|| Box::new(Faulty::new(Some(fault)))));
}

/// A good policy, but for one fault.
struct Faulty {
    inner: S3Fifo,
    fault: Option<Fault>,
    held: BTreeMap<ChunkId, usize>,
    left: Option<ChunkId>,
    all_that_left: usize,
    restored: bool,
    by_chance: RandomState,
}

impl Faulty {
    fn new(fault: Option<Fault>) -> Self {
        let (held, by_chance) = (BTreeMap::new(), RandomState::new());
        Self { inner: S3Fifo::default(), fault, held, left: None, all_that_left: 0, restored: false, by_chance }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

impl ResidencyPolicy for Faulty {
    fn admits(&mut self, access: &Access) -> bool {
        match self.fault {
            Some(Fault::AdmitsByChance) => self.by_chance.hash_one(access.chunk).is_multiple_of(2),
            Some(Fault::AdmitsOtherwiseAfterRestoring) => !self.restored || access.chunk.0[8].is_multiple_of(2),
            _ => self.inner.admits(access),
        }
    }

    fn wants(&self, chunk: &ChunkId) -> bool {
        match self.fault {
            Some(Fault::WantsByChance) => self.by_chance.hash_one(chunk).is_multiple_of(2),
            Some(Fault::WantsOtherwiseAfterRestoring) => self.restored,
            _ => self.inner.wants(chunk),
        }
    }

    fn insert(&mut self, access: Access) {
        assert!(!self.has(Fault::PanicsOnOddNumbers) || access.relevance.is_finite(), "what a number");
        *self.held.entry(access.chunk).or_default() += 1;
        self.inner.insert(access);
    }

    fn touch(&mut self, access: Access) {
        if !self.has(Fault::ForgetsHowOftenAfterRestoring) || !self.restored {
            self.inner.touch(access);
        }
    }

    fn remove(&mut self, chunk: &ChunkId) {
        let known = self.held.contains_key(chunk);
        let count = self.held.get_mut(chunk).map_or(0, |count| {
            *count -= 1;
            *count
        });
        match self.fault {
            Some(Fault::RemovesNothing) => {}
            Some(Fault::CountsSecondInserts) if count > 0 => {}
            Some(Fault::RemovesAnotherForTheUnknown) if !known => {
                if let Some((chunk, _)) = self.held.pop_first() {
                    self.inner.remove(&chunk);
                }
            }
            _ => {
                self.held.remove(chunk);
                self.inner.remove(chunk);
                self.left = Some(*chunk);
                self.all_that_left += 1;
            }
        }
    }

    fn victim(&mut self, room: &Room<'_>) -> Option<ChunkId> {
        match self.fault {
            Some(Fault::NamesWhatIsNotThere) if self.held.len() > 20 && self.left.is_some() => self.left,
            Some(Fault::NamesNobody) => None,
            Some(Fault::NamesAgainWhatHasLeft) if self.held.is_empty() => self.left,
            Some(Fault::NamesFewerThanThereAre) if self.held.len() <= 2 && self.left.is_some_and(|l| l.0[8] > 2) => {
                None
            }
            Some(Fault::DependsOnAHashMap) => {
                let free = self.held.keys().filter(|chunk| room.may_leave(chunk));
                free.min_by_key(|chunk| self.by_chance.hash_one(chunk)).copied()
            }
            Some(Fault::RestoresAnotherOrder) if self.restored => self.held.keys().next_back().copied(),
            Some(Fault::NamesWhatIsLeased) => self.inner.victim(&Room::new(room.bytes, room.time)),
            Some(Fault::NamesNobodyWhileSomeAreLeased) if !self.held.keys().all(|chunk| room.may_leave(chunk)) => None,
            _ => self.inner.victim(room),
        }
    }

    fn save(&self) -> Vec<u8> {
        let mut saved = self.inner.save();
        if self.has(Fault::SavesTornBytesOnceThousandsHaveLeft) && self.all_that_left > 1600 {
            saved.pop();
        }
        saved
    }

    fn restore(&mut self, saved: &[u8]) -> Vec<ChunkId> {
        let mut restored = self.inner.restore(saved);
        self.restored = true;
        self.held = restored.iter().map(|chunk| (*chunk, 1)).collect();
        let torn = restored.is_empty() && saved.len() > 8;
        let stray = Access { chunk: ChunkId([7; 32]), relevance: 1.0, bytes: 1, cost: 1.0, time: 0.0 };
        match self.fault {
            Some(Fault::PanicsOnTornBytes) => assert!(!torn, "what bytes"),
            Some(Fault::RestoresTornBytes) if torn => self.insert(stray),
            Some(Fault::RestoresMore) if !torn => self.insert(stray),
            Some(Fault::RestoresFewer) => {
                if let Some(chunk) = restored.pop() {
                    self.remove(&chunk);
                }
            }
            Some(Fault::RestoresWithoutSayingSo) => restored.clear(),
            _ => {}
        }
        restored
    }
}
