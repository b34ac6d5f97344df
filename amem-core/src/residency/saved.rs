//! How policies write down what they have learned: plain numbers, one after the other, behind a mark that names the
//! policy. What is read is untrusted.

use crate::ChunkId;

/// Writes numbers and ids.
pub(super) struct Saving(Vec<u8>);

impl Saving {
    pub(super) fn new(policy: &[u8; 8]) -> Self {
        Self(policy.to_vec())
    }

    pub(super) fn id(&mut self, id: &ChunkId) {
        self.0.extend_from_slice(&id.0);
    }

    pub(super) fn int(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub(super) fn float(&mut self, number: f64) {
        self.int(number.to_bits());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.int(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn list<T>(&mut self, items: impl ExactSizeIterator<Item = T>, mut write: impl FnMut(&mut Self, T)) {
        self.int(items.len() as u64);
        items.for_each(|item| write(self, item));
    }

    pub(super) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Reads them again. Every method gives `None` where the bytes end or make no sense.
pub(super) struct Saved<'s>(&'s [u8]);

impl<'s> Saved<'s> {
    pub(super) fn new(policy: &[u8; 8], bytes: &'s [u8]) -> Option<Self> {
        bytes.strip_prefix(policy).map(Self)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn id(&mut self) -> Option<ChunkId> {
        self.array().map(ChunkId)
    }

    pub(super) fn int(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number that is not infinite.
    pub(super) fn float(&mut self) -> Option<f64> {
        self.int().map(f64::from_bits).filter(|number| number.is_finite())
    }

    pub(super) fn bytes(&mut self) -> Option<&'s [u8]> {
        let len = usize::try_from(self.int()?).ok()?;
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let len = usize::try_from(self.int()?).ok()?;
        // Each item takes a byte at least: a length that lies allocates nothing.
        (len <= self.0.len()).then(|| (0..len).map(|_| read(self)).collect())?
    }

    /// What was not read.
    pub(super) fn rest(&self) -> &'s [u8] {
        self.0
    }

    /// Whether all was read.
    pub(super) fn is_done(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
