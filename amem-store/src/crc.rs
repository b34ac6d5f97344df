//! The checksum of everything in segments and remote objects.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C (Castagnoli), as RFC 3720 defines it.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC-32C of bytes that come piece by piece.
pub(crate) struct Crc32c(Digest);

impl Crc32c {
    pub(crate) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(&self) -> u32 {
        // It is no longer than the checksum.
        self.0.finalize() as u32
    }
}
