//! Keys that are bound to namespaces.
//!
//! A key is 32 random bytes, so a plain hash of it keeps it secret; the file holds nothing else of it. It is read again
//! when it has changed, so that a key counts, or no longer does, without a restart.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use amem_core::{Namespace, Timestamp};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// What every key begins with, so that one that lies somewhere is known for what it is.
const PREFIX: &str = "amem_";
/// Bytes of a file of keys at most: some hundred thousand keys.
const MAX_BYTES: u64 = 64 << 20;

/// What a key lets its owner do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// Everything, for every namespace.
    Admin,
    /// Everything that concerns this namespace alone.
    #[serde(with = "namespace")]
    Namespace(Namespace),
}

/// A key as it is kept: everything but the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its name, by which it is revoked.
    pub id: String,
    /// BLAKE3 of it, in hexadecimal digits.
    hash: String,
    /// What it grants.
    pub grant: Grant,
    /// When it was made: milliseconds since 1970.
    pub created_at: i64,
}

/// What can go wrong with a file of keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It cannot be read or written.
    #[error("the file of keys {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not one.
    #[error("the file of keys {path} is damaged: {reason}; put a backup in its place, or make new keys")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It has no such key.
    #[error("there is no key {id}: `amem key list` names those that there are")]
    Unknown {
        /// The name.
        id: String,
    },
    /// The system gave no random bytes.
    #[error("no random bytes for a key: {0}")]
    Random(getrandom::Error),
}

/// The file in which keys are kept. Cheap to clone.
#[derive(Clone)]
pub struct KeyFile {
    path: Option<PathBuf>,
    /// Whether it was ever there.
    seen: Arc<AtomicBool>,
    read: Arc<Mutex<Read>>,
}

/// The keys, and what the file was like when they were read.
#[derive(Default)]
struct Read {
    of: Option<(SystemTime, u64)>,
    keys: Arc<[Key]>,
}

#[derive(Default, Serialize, Deserialize)]
struct Contents {
    keys: Vec<Key>,
}

impl KeyFile {
    /// No file: there are no keys.
    pub fn none() -> Self {
        Self { path: None, seen: Arc::default(), read: Arc::default() }
    }

    /// The file at this path, which need not be there: then there are no keys yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let file = Self { path: Some(path.into()), seen: Arc::default(), read: Arc::default() };
        file.is_used();
        file
    }

    /// Whether a key is needed because of this file: it is there, or was since this or what it was cloned from was made,
    /// even if it holds none any more. A file that cannot be looked for counts as there.
    pub fn is_used(&self) -> bool {
        let Some(path) = &self.path else { return false };
        if self.seen.load(Ordering::Relaxed) {
            return true;
        }
        let is_there =
            fs::symlink_metadata(path).map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |_| true);
        self.seen.fetch_or(is_there, Ordering::Relaxed);
        is_there
    }

    /// What a key grants; `None` if it is none of these.
    ///
    /// # Errors
    /// [`KeyError`] when the file cannot be read.
    pub fn grant(&self, key: &[u8]) -> Result<Option<Grant>, KeyError> {
        let hash = hash(key);
        let mut grant = None;
        // All of them are compared, so that how long it takes tells nothing.
        for known in &*self.keys()? {
            if bool::from(known.hash.as_bytes().ct_eq(hash.as_bytes())) {
                grant = Some(known.grant.clone());
            }
        }
        Ok(grant)
    }

    /// The keys, oldest first.
    ///
    /// # Errors
    /// [`KeyError`] when the file cannot be read.
    pub fn keys(&self) -> Result<Arc<[Key]>, KeyError> {
        let Some(path) = &self.path else { return Ok(Arc::default()) };
        let of = match fs::metadata(path) {
            Ok(metadata) => Some((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(KeyError::Io { path: path.clone(), source }),
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.of != of {
            *read = Read { of, keys: load(path)?.keys.into() };
        }
        Ok(Arc::clone(&read.keys))
    }

    /// Makes a key. It is told here and nowhere else.
    ///
    /// # Errors
    /// [`KeyError`] when the file cannot be read or written.
    pub fn create(&self, grant: Grant) -> Result<(Key, SecretString), KeyError> {
        let mut bytes = [0; 36];
        getrandom::fill(&mut bytes).map_err(KeyError::Random)?;
        let (id, secret) = bytes.split_at(4);
        let secret = format!("{PREFIX}{}", hex(secret));
        let key = Key { id: hex(id), hash: hash(secret.as_bytes()), grant, created_at: Timestamp::now().0 };
        self.change(|keys| {
            keys.push(key.clone());
            Ok(())
        })?;
        Ok((key, secret.into()))
    }

    /// Revokes a key.
    ///
    /// # Errors
    /// [`KeyError`] when there is none of this name, and when the file cannot be read or written.
    pub fn revoke(&self, id: &str) -> Result<(), KeyError> {
        self.change(|keys| {
            let before = keys.len();
            keys.retain(|key| key.id != id);
            if keys.len() < before { Ok(()) } else { Err(KeyError::Unknown { id: id.to_owned() }) }
        })
    }

    /// Writes the file anew, whole or not at all. Two processes that change it at once are kept apart by a lock.
    fn change(&self, change: impl FnOnce(&mut Vec<Key>) -> Result<(), KeyError>) -> Result<(), KeyError> {
        let Some(path) = &self.path else { return Ok(()) };
        let io = |source| KeyError::Io { path: path.clone(), source };
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        amem_store::make_dir(dir).map_err(io)?;
        let lock = fs::File::create(path.with_extension("lock")).map_err(io)?;
        lock.lock().map_err(io)?;
        let mut contents = load(path)?;
        change(&mut contents.keys)?;
        let bytes = serde_json::to_vec_pretty(&contents).map_err(|error| io(error.into()))?;
        amem_store::replace_file(path, &bytes).map_err(io)
    }
}

fn load(path: &Path) -> Result<Contents, KeyError> {
    let damaged = |reason: String| KeyError::Damaged { path: path.to_owned(), reason };
    let bytes = match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => return Err(damaged(format!("{} bytes", metadata.len()))),
        Ok(_) => fs::read(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::default()),
        Err(error) => Err(error),
    };
    let bytes = bytes.map_err(|source| KeyError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
}

fn hash(key: &[u8]) -> String {
    blake3::hash(key).to_hex().to_string()
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A namespace as its name.
mod namespace {
    use amem_core::Namespace;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(namespace: &Namespace, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(namespace.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Namespace, D::Error> {
        Namespace::new(String::deserialize(from)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_key_grants_its_namespace_until_it_is_revoked_and_stands_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/keys.json");
        let (file, other) = (KeyFile::at(&path), KeyFile::at(&path));
        assert!(!file.is_used() && file.grant(b"any").unwrap().is_none());
        let alice = Grant::Namespace(Namespace::new("../alice").unwrap());
        let (key, secret) = file.create(alice.clone()).unwrap();
        let (_, admin) = other.create(Grant::Admin).unwrap();
        for file in [&file, &other] {
            assert_eq!(file.grant(secret.expose_secret().as_bytes()).unwrap(), Some(alice.clone()));
            assert_eq!(file.grant(admin.expose_secret().as_bytes()).unwrap(), Some(Grant::Admin));
            assert_eq!(file.grant(key.hash.as_bytes()).unwrap(), None, "a hash is no key");
        }
        assert!(!fs::read_to_string(&path).unwrap().contains(secret.expose_secret()));
        assert!(matches!(other.revoke("nobody"), Err(KeyError::Unknown { .. })));
        other.revoke(&key.id).unwrap();
        assert_eq!(file.grant(secret.expose_secret().as_bytes()).unwrap(), None);
        assert!(file.is_used());
    }

    #[test]
    fn a_file_that_was_there_demands_keys_when_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        let (before, secret) = (KeyFile::at(&path), KeyFile::at(&path).create(Grant::Admin).unwrap().1);
        let (clone, after) = (before.clone(), KeyFile::at(&path));
        assert!(before.is_used());
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        for file in [&before, &clone, &after] {
            assert!(file.is_used());
            assert_eq!(file.grant(secret.expose_secret().as_bytes()).unwrap(), None);
        }
        assert!(!KeyFile::at(&path).is_used(), "it was not there");
        fs::rename(dir.path().join("elsewhere"), &path).unwrap();
        assert_eq!(before.grant(secret.expose_secret().as_bytes()).unwrap(), Some(Grant::Admin));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_cannot_be_looked_for_is_no_open_door() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let file = KeyFile::at(dir.path().join("file/keys.json"));
        assert!(file.is_used());
        assert!(matches!(file.grant(b"any"), Err(KeyError::Io { .. })));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_no_open_door() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        fs::write(&path, "{\"keys\": [{}]}").unwrap();
        let file = KeyFile::at(&path);
        assert!(file.is_used());
        assert!(matches!(file.grant(b"any"), Err(KeyError::Damaged { .. })));
        assert!(matches!(file.create(Grant::Admin), Err(KeyError::Damaged { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"keys\": [{}]}");
    }
}
