//! How indexes are written down: small numbers in few bytes, behind a mark that names the index. What is read is
//! untrusted.

use crate::RecordId;

/// Writes numbers, ids and bytes.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(mark: &[u8; 8]) -> Self {
        Self(mark.to_vec())
    }

    /// Seven bits a byte, the lowest first (LEB128).
    pub(crate) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    pub(crate) fn id(&mut self, id: RecordId) {
        self.0.extend_from_slice(&id.to_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Reads them again. Every method gives `None` where the bytes end or make no sense.
pub(crate) struct Reader<'s>(&'s [u8]);

impl<'s> Reader<'s> {
    pub(crate) fn new(mark: &[u8; 8], bytes: &'s [u8]) -> Option<Self> {
        bytes.strip_prefix(mark).map(Self)
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for (at, byte) in self.0.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if at == 9 && bits > 1 {
                return None;
            }
            number |= bits << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Some(number);
            }
        }
        None
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    /// How many items follow, each of which takes so many bytes at least: a number that lies allocates nothing.
    pub(crate) fn count(&mut self, least: usize) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        self.has_room(count, least).then_some(count)
    }

    /// Whether so many items may follow, each of which takes so many bytes at least.
    pub(crate) fn has_room(&self, count: usize, least: usize) -> bool {
        count <= self.0.len() / least.max(1)
    }

    pub(crate) fn id(&mut self) -> Option<RecordId> {
        let (id, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(RecordId::from_bytes(*id))
    }

    pub(crate) fn bytes(&mut self) -> Option<&'s [u8]> {
        let len = self.count(1)?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Whether all was read.
    pub(crate) fn is_done(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: &[u8; 8] = b"testing1";

    proptest! {
        #[test]
        fn what_is_written_is_read(numbers in prop::collection::vec(any::<u64>(), 0..20), bytes: Vec<u8>) {
            let mut writer = Writer::new(MARK);
            numbers.iter().for_each(|number| writer.number(*number));
            writer.bytes(&bytes);
            let id = RecordId::new();
            writer.id(id);
            let written = writer.done();
            let mut reader = Reader::new(MARK, &written).unwrap();
            for number in numbers {
                prop_assert_eq!(reader.number(), Some(number));
            }
            prop_assert_eq!(reader.bytes(), Some(&bytes[..]));
            prop_assert_eq!((reader.id(), reader.is_done()), (Some(id), Some(())));
        }
    }

    #[test]
    fn numbers_beyond_64_bits_and_lengths_that_lie_are_refused() {
        let reader = |bytes: &[u8]| Reader::new(MARK, &[MARK, bytes].concat()).map(|mut r| (r.number(), r.count(1)));
        assert_eq!(reader(&[0xff; 10]), Some((None, None)));
        assert_eq!(reader(&[0x80, 0x80]), Some((None, None)), "it ends in the middle");
        assert_eq!(reader(&[3, 9, 0]), Some((Some(3), None)), "nine items in one byte");
        assert!(Reader::new(MARK, b"another1").is_none());
    }
}
