//! What one allocation holds, and which of its bytes were ever written.
//!
//! Programs allocate far more than they use, and fill it with zeros. So memory of the host is taken only for what is
//! written with something else.

use std::ops::Range;

/// What never-written memory reads as.
const UNWRITTEN: u8 = 0xCD;

/// Zeros that are noted as a range and not stored, from so many bytes on.
const LONG: usize = 1 << 20;

/// The bytes of an allocation.
pub(crate) struct Contents {
    /// Zero where nothing was written.
    bytes: Vec<u8>,
    /// A bit for each byte: was it written?
    written: Vec<u64>,
    /// Bytes that were written whatever `written` says.
    covered: Range<usize>,
    /// Bytes outside of it are zero.
    changed: Range<usize>,
}

impl Contents {
    pub(crate) fn new(len: usize) -> Self {
        Self { bytes: vec![0; len], written: vec![0; len.div_ceil(64)], covered: 0..0, changed: 0..0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The first byte of a range that was never written.
    pub(crate) fn first_unwritten(&self, offset: usize, len: usize) -> Option<usize> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            if self.covered.contains(&at) {
                at = self.covered.end;
                continue;
            }
            let bits = (64 - at % 64).min(end - at);
            let missing = !(self.written[at / 64] >> (at % 64)) & low_bits(bits);
            if missing == 0 {
                at += bits;
                continue;
            }
            // The word may reach into what is covered.
            at += missing.trailing_zeros() as usize;
            if !self.covered.contains(&at) {
                return Some(at);
            }
        }
        None
    }

    /// Whether all of a few aligned bytes, which lie in one word of bits, were written.
    #[inline]
    pub(crate) fn is_written(&self, offset: usize, len: usize) -> bool {
        let bits = low_bits(len);
        self.written[offset / 64] >> (offset % 64) & bits == bits || self.first_unwritten(offset, len).is_none()
    }

    /// Bytes, those that were never written as zero.
    #[inline]
    pub(crate) fn get(&self, offset: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes[offset..offset + out.len()]);
    }

    /// Bytes, those that were never written as `0xCD`.
    pub(crate) fn get_raw(&self, offset: usize, out: &mut [u8]) {
        self.get(offset, out);
        let mut at = offset;
        let end = offset + out.len();
        while let Some(unwritten) = self.first_unwritten(at, end - at) {
            out[unwritten - offset] = UNWRITTEN;
            at = unwritten + 1;
        }
    }

    #[inline]
    pub(crate) fn set(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.mark(offset, data.len());
        self.change(offset..offset + data.len());
    }

    pub(crate) fn fill(&mut self, offset: usize, byte: u8, len: usize) {
        let range = offset..offset + len;
        if byte != 0 || len < LONG {
            self.bytes[range.clone()].fill(byte);
            self.mark(offset, len);
            self.change(range);
            return;
        }
        let stale = range.start.max(self.changed.start)..range.end.min(self.changed.end);
        if stale.start < stale.end {
            self.bytes[stale].fill(0);
        }
        if self.covered.start <= range.end && range.start <= self.covered.end {
            self.covered = self.covered.start.min(range.start)..self.covered.end.max(range.end);
        } else if self.covered.len() < len {
            let before = std::mem::replace(&mut self.covered, range);
            self.mark(before.start, before.len());
        } else {
            self.mark(offset, len);
        }
    }

    /// Bytes, and a bit for each, whether it was written.
    pub(crate) fn get_with_state(&self, offset: usize, len: usize) -> (Vec<u8>, Vec<u64>) {
        let mut written = read_bits(&self.written, offset, len);
        // What lies behind the range does not count.
        if let Some(last) = written.last_mut() {
            *last &= low_bits(len - (len - 1) / 64 * 64);
        }
        let covered = self.covered.start.max(offset)..self.covered.end.min(offset + len);
        if covered.start < covered.end {
            set_bits(&mut written, covered.start - offset, covered.len());
        }
        (self.bytes[offset..offset + len].to_vec(), written)
    }

    /// Takes bytes over from other memory. Those that were never written there are not written here either.
    pub(crate) fn set_with_state(&mut self, offset: usize, bytes: &[u8], written: &[u64]) {
        self.set(offset, bytes);
        let bits: usize = written.iter().map(|word| word.count_ones() as usize).sum();
        if bits < bytes.len() {
            let covered = std::mem::replace(&mut self.covered, 0..0);
            self.mark(covered.start, covered.len());
            write_bits(&mut self.written, offset, bytes.len(), written);
        }
    }

    #[inline]
    fn mark(&mut self, offset: usize, len: usize) {
        set_bits(&mut self.written, offset, len);
    }

    #[inline]
    fn change(&mut self, range: Range<usize>) {
        self.changed = match self.changed.is_empty() {
            true => range,
            false => self.changed.start.min(range.start)..self.changed.end.max(range.end),
        };
    }
}

fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

#[inline]
fn set_bits(words: &mut [u64], start: usize, len: usize) {
    let end = start + len;
    let mut at = start;
    while at < end {
        let bits = (64 - at % 64).min(end - at);
        words[at / 64] |= low_bits(bits) << (at % 64);
        at += bits;
    }
}

/// A run of bits, from the lowest bit of the first word on.
fn read_bits(words: &[u64], start: usize, len: usize) -> Vec<u64> {
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    let (first, shift) = (start / 64, start % 64);
    (0..len.div_ceil(64))
        .map(|index| match shift {
            0 => word(first + index),
            _ => word(first + index) >> shift | word(first + index + 1) << (64 - shift),
        })
        .collect()
}

fn write_bits(words: &mut [u64], start: usize, len: usize, bits: &[u64]) {
    let mut done = 0;
    while done < len {
        let at = start + done;
        // As many as lie in one word of both.
        let count = (64 - at % 64).min(64 - done % 64).min(len - done);
        let mask = low_bits(count) << (at % 64);
        let value = (bits[done / 64] >> (done % 64)) << (at % 64);
        words[at / 64] = words[at / 64] & !mask | value & mask;
        done += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that were written hold a value, and others hold nothing.
    type Plain = Vec<Option<u8>>;

    fn compare(contents: &Contents, plain: &Plain) {
        let mut raw = vec![0; plain.len()];
        contents.get_raw(0, &mut raw);
        let expected: Vec<u8> = plain.iter().map(|byte| byte.unwrap_or(UNWRITTEN)).collect();
        assert!(raw == expected);
        for start in [0, 1, 63, LONG - 1, LONG, LONG + 70, 2 * LONG] {
            let expected = plain[start..].iter().position(Option::is_none).map(|at| start + at);
            assert_eq!(contents.first_unwritten(start, plain.len() - start), expected, "from {start}");
        }
    }

    #[test]
    fn long_runs_of_zeros_are_like_stored_ones() {
        let mut contents = Contents::new(3 * LONG);
        let mut plain: Plain = vec![None; 3 * LONG];
        let fill = |contents: &mut Contents, plain: &mut Plain, range: Range<usize>, byte| {
            contents.fill(range.start, byte, range.len());
            plain[range].fill(Some(byte));
            compare(contents, plain);
        };
        fill(&mut contents, &mut plain, 10..20, 7);
        // Over something else, beside it, apart from it, and with less.
        fill(&mut contents, &mut plain, 5..LONG + 5, 0);
        fill(&mut contents, &mut plain, LONG + 70..2 * LONG + 90, 0);
        fill(&mut contents, &mut plain, 100..200, 9);
        fill(&mut contents, &mut plain, 50..LONG + 60, 0);
        contents.set_with_state(LONG, &[1, 2, 3, 4], &[0b0101]);
        plain[LONG..LONG + 4].copy_from_slice(&[Some(1), None, Some(3), None]);
        compare(&contents, &plain);
        assert_eq!(contents.get_with_state(LONG - 1, 6).1, [0b10_1011]);
    }

    #[test]
    fn unused_memory_takes_no_memory_of_the_host() {
        // More than tests have. It is there as long as nothing is written to it.
        let mut contents = Contents::new(1 << 32);
        contents.fill(0, 0, (1 << 32) - 5);
        assert_eq!(contents.first_unwritten(0, 1 << 32), Some((1 << 32) - 5));
    }
}
