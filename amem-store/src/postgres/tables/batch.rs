//! What one call to add changes, before it is written.

use std::collections::HashMap;

use amem_core::Timestamp;

use super::super::rows::Found;

/// The records that a call to add looks at, and those that it makes.
pub(super) struct Batch {
    all: Vec<Candidate>,
    by_hash: HashMap<i64, Vec<usize>>,
    by_key: HashMap<Vec<u8>, Vec<usize>>,
}

struct Candidate {
    found: Found,
    is_new: bool,
    is_changed: bool,
}

impl Batch {
    pub(super) fn of(standing: Vec<Found>) -> Self {
        let mut batch = Self { all: Vec::new(), by_hash: HashMap::new(), by_key: HashMap::new() };
        standing.into_iter().for_each(|found| batch.put(found, false));
        batch
    }

    pub(super) fn insert(&mut self, found: Found) {
        self.put(found, true);
    }

    fn put(&mut self, found: Found, is_new: bool) {
        let at = self.all.len();
        if let Some(hash) = found.version.hash {
            self.by_hash.entry(hash).or_default().push(at);
        }
        if let Some(key) = &found.record.key {
            self.by_key.entry(key.clone()).or_default().push(at);
        }
        self.all.push(Candidate { found, is_new, is_changed: is_new });
    }

    /// The place of the active record that says this under this key.
    pub(super) fn saying(&self, hash: i64, key: Option<&[u8]>, text: &str, now: Timestamp) -> Option<usize> {
        let says = |found: &Found| found.record.key.as_deref() == key && found.version.text == text.as_bytes();
        let mut candidates = self.by_hash.get(&hash)?.iter().copied();
        candidates.find(|at| self.get(*at).is_some_and(|found| says(found) && found.is_active(now)))
    }

    /// The record in this place.
    pub(super) fn get(&self, at: usize) -> Option<&Found> {
        self.all.get(at).map(|candidate| &candidate.found)
    }

    /// The active records with this key: one, or none. (Two, if a clock was set back over an expiry.)
    pub(super) fn under(&mut self, key: Option<&[u8]>, now: Timestamp) -> Vec<usize> {
        let Some(places) = key.and_then(|key| self.by_key.get_mut(key)) else { return Vec::new() };
        let all = &self.all;
        // The others will not be active again.
        places.retain(|at| all.get(*at).is_some_and(|candidate| candidate.found.is_active(now)));
        places.clone()
    }

    /// The records in these places.
    pub(super) fn all<'b>(&'b self, places: &'b [usize]) -> impl Iterator<Item = &'b Found> {
        places.iter().filter_map(|at| self.get(*at))
    }

    /// A record that is to be changed.
    pub(super) fn change(&mut self, at: usize) -> Option<&mut Found> {
        let candidate = self.all.get_mut(at)?;
        candidate.is_changed = true;
        Some(&mut candidate.found)
    }

    /// Those that stood before and were changed, and those that are new.
    pub(super) fn changed(&self) -> (Vec<&Found>, Vec<&Found>) {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for Candidate { found, is_new, .. } in self.all.iter().filter(|candidate| candidate.is_changed) {
            if *is_new { &mut new } else { &mut old }.push(found);
        }
        (old, new)
    }
}
