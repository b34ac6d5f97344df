//! Encryption of short texts within a namespace.
//!
//! It is deterministic: the ledger below has to see that two texts or keys are the same, or it could neither tell
//! duplicates nor supersede. AES-SIV (RFC 5297) is made for that and proven to give away nothing but equality. A nonce
//! made by a keyed hash, with a stream cipher behind it, would do the same at about twice the speed, but as a construction
//! of our own without test vectors; and at 300 MB/s and more it is not what a write of the ledger waits for.

use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

use super::Key;

/// What something sealed is. It does not open as anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Domain {
    /// A record's text.
    Text,
    /// A record's key and metadata.
    Details,
    /// An index.
    Index,
}

impl Domain {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Text => b"text",
            Self::Details => b"details",
            Self::Index => b"index",
        }
    }
}

/// Seals and opens what is one namespace's.
pub(super) struct Sealer {
    siv: Zeroizing<[u8; 64]>,
    names: Zeroizing<[u8; 32]>,
}

impl Sealer {
    pub(super) fn new(key: &Key) -> Self {
        Self { siv: key.derive("amem 2026-11 sealed records"), names: key.derive("amem 2026-11 names in records") }
    }

    /// Seals bytes. `place` is a further thing that they belong to, or empty.
    pub(super) fn seal(&self, domain: Domain, place: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        // It fails for more headers than there are here only.
        Aes256Siv::new((&*self.siv).into()).encrypt([domain.name(), place], plain).ok()
    }

    /// Opens what was sealed for the same domain and place.
    pub(super) fn open(&self, domain: Domain, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        Aes256Siv::new((&*self.siv).into()).decrypt([domain.name(), place], sealed).ok()
    }

    /// Seals a text, as a text without blanks.
    pub(super) fn seal_text(&self, domain: Domain, plain: &str) -> Option<String> {
        self.seal(domain, &[], plain.as_bytes()).map(|sealed| STANDARD_NO_PAD.encode(sealed))
    }

    /// Opens a text.
    pub(super) fn open_text(&self, domain: Domain, sealed: &str) -> Option<String> {
        let sealed = STANDARD_NO_PAD.decode(sealed).ok()?;
        String::from_utf8(self.open(domain, &[], &sealed)?).ok()
    }

    /// A name from which nobody without the key can tell the text, and which is the same for the same text.
    pub(super) fn name(&self, of: &str, text: &str) -> String {
        let mut hash = blake3::Hasher::new_keyed(&self.names);
        hash.update(&(of.len() as u64).to_le_bytes());
        hash.update(of.as_bytes());
        hash.update(text.as_bytes());
        hash.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(seed: u8) -> Sealer {
        Sealer::new(&Key::new([seed; 32]))
    }

    #[test]
    fn what_was_sealed_opens_under_its_key_and_as_what_it_was_only() {
        let ours = sealer(1);
        for plain in ["", "tea", "mañana 🦀 \0", &"long ".repeat(10_000)] {
            let sealed = ours.seal_text(Domain::Text, plain).unwrap();
            assert_eq!(ours.seal_text(Domain::Text, plain).as_ref(), Some(&sealed), "equal texts are sealed equally");
            assert_eq!(ours.open_text(Domain::Text, &sealed).as_deref(), Some(plain));
            assert_eq!(ours.open_text(Domain::Details, &sealed), None);
            assert_eq!(sealer(2).open_text(Domain::Text, &sealed), None);
            assert_ne!(sealer(2).seal_text(Domain::Text, plain), Some(sealed));
        }
        let index = ours.seal(Domain::Index, b"words", b"bytes").unwrap();
        assert_eq!(ours.open(Domain::Index, b"words", &index).as_deref(), Some(&b"bytes"[..]));
        assert_eq!(ours.open(Domain::Index, b"meaning", &index), None);
    }

    #[test]
    fn what_was_changed_does_not_open() {
        let sealer = sealer(1);
        let sealed = sealer.seal(Domain::Text, &[], b"tea").unwrap();
        for bit in 0..8 * sealed.len() {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealer.open(Domain::Text, &[], &changed), None);
        }
        for len in 0..sealed.len() {
            assert_eq!(sealer.open(Domain::Text, &[], &sealed[..len]), None);
        }
    }

    #[test]
    fn names_tell_apart_what_they_are_of() {
        let sealer = self::sealer(1);
        assert_eq!(sealer.name("key", "home"), sealer.name("key", "home"));
        assert_ne!(sealer.name("key", "home"), sealer.name("index", "home"));
        assert_ne!(sealer.name("ke", "yhome"), sealer.name("key", "home"));
        assert_ne!(sealer.name("key", "home"), self::sealer(2).name("key", "home"));
    }
}
