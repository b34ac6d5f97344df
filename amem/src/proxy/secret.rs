//! What tells upstreams one namespace's requests from another's, and tells nobody whose they are.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use amem_core::Namespace;

/// A secret that names are hashed with. Proxies that share it send the same names upstream.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// The secret of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret in a file, which is made for its owner only if it is not there.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is no secret.
    pub fn in_file(path: &Path) -> io::Result<Self> {
        match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        match amem_store::create_file(path, &bytes) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path),
            made => made.map(|()| Self(bytes)),
        }
    }

    fn hash(&self, what: &str, parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in [what.as_bytes()].iter().chain(parts) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }

    /// What a conversation is known by here and, hashed once more, upstream.
    pub(super) fn conversation(&self, namespace: &Namespace, begins: &[&[u8]]) -> [u8; 32] {
        let parts: Vec<&[u8]> = std::iter::once(namespace.as_str().as_bytes()).chain(begins.iter().copied()).collect();
        *self.hash("conversation", &parts).as_bytes()
    }

    /// The name by which an upstream keeps a conversation's requests together.
    pub(super) fn cache_key(&self, conversation: &[u8; 32]) -> String {
        self.hash("cache key", &[conversation]).to_hex()[..32].to_owned()
    }

    /// What an upstream's prefix cache keeps a namespace apart by, within what the client keeps apart itself.
    pub(super) fn salt(&self, namespace: &Namespace, own: Option<&str>) -> String {
        let own = own.unwrap_or_default().as_bytes();
        self.hash("salt", &[namespace.as_str().as_bytes(), own]).to_hex()[..32].to_owned()
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(33).read_to_end(&mut bytes)?;
    let no_secret = |_| io::Error::new(io::ErrorKind::InvalidData, "it is no secret: delete it, and a new one is made");
    <[u8; 32]>::try_from(bytes).map(Secret).map_err(no_secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_stays_and_gives_every_namespace_names_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let (first, second) = (Secret::in_file(&path).unwrap(), Secret::in_file(&path).unwrap());
        let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
        assert_eq!(first.salt(&a, None), second.salt(&a, None));
        assert_ne!(first.salt(&a, None), first.salt(&b, None));
        assert_ne!(first.salt(&a, None), first.salt(&a, Some("own")));
        assert_ne!(first.salt(&a, None), Secret::new([7; 32]).salt(&a, None));
        assert_ne!(first.conversation(&a, &[b"x", b"y"]), first.conversation(&a, &[b"xy", b""]));
        fs::write(&path, "short").unwrap();
        assert!(Secret::in_file(&path).is_err());
    }
}
