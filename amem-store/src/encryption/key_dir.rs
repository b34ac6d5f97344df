//! A directory of keys, each wrapped under the operator's master key.
//!
//! ```text
//! <dir>/                 made for its owner only
//!   LOCK                 locked, shared, by each process that uses the directory; alone by rewrap
//!   root                 a random secret from which the names below, pseudonyms and the id secret are derived
//!   <64 hex digits>.key  a key; the name is a keyed hash of what it is for
//!   tmp-…                a file that is being made or destroyed
//! ```
//!
//! A file is: `amemkey1`, 16 bytes that tell the master key, a nonce of 24 bytes, and what XChaCha20-Poly1305 made of the key
//! (32 bytes), one byte for the kind of its holder, and the holder's name. The file's name and what stands before the nonce
//! are its associated data, so no file can stand in for another. A file of zeros is one that was being destroyed.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amem_core::{BoxError, Namespace, OwnerId};
use async_trait::async_trait;
use blocking::unblock;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use zeroize::Zeroizing;

use super::{Holder, Key, Keys};
use crate::disk::{Disk, SystemDisk, make_dirs};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"amemkey1";
/// What stands before the nonce, and before what is sealed.
const HEAD: usize = 24;
const SEALED: usize = HEAD + 24;
/// The key, its holder's kind and name, and the tag.
const MAX_FILE: usize = SEALED + 32 + 1 + Namespace::MAX_BYTES + 16;

/// The operator's key, under which all others are wrapped. Wiped from memory when it is dropped, and never shown.
#[derive(Clone, Debug)]
pub struct MasterKey(Key);

impl MasterKey {
    /// The master key of these bytes, which must be random.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Key::new(bytes))
    }

    /// The master key in a file: 64 hexadecimal digits (`openssl rand -hex 32`), which nobody but the file's owner may read.
    ///
    /// # Errors
    /// [`Error::BadMasterKey`] when the file holds something else or others may read it; when it cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |reason: &str| Error::BadMasterKey { path: path.to_owned(), reason: reason.to_owned() };
        let file = File::open(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => bad("it is not there; for new keys, make one (openssl rand -hex 32, chmod 600)"),
            _ => Error::io("open the master key", path)(error),
        })?;
        let mode = file.metadata().map_err(Error::io("read", path))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(bad("others than its owner may use it (chmod 600)"));
        }
        // One more than there may be: two ends of line.
        let mut text = Zeroizing::new(Vec::with_capacity(67));
        file.take(67).read_to_end(&mut text).map_err(Error::io("read", path))?;
        let mut bytes = Zeroizing::new([0; 32]);
        let digits = text.trim_ascii_end();
        let (pairs, rest) = digits.as_chunks::<2>();
        let digit = |digit: u8| char::from(digit).to_digit(16);
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let value = digit(*high).zip(digit(*low)).map(|(high, low)| 16 * high + low);
            *byte = value.and_then(|value| u8::try_from(value).ok()).ok_or_else(|| bad("it must be hexadecimal"))?;
        }
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(bad("it must have 64 hexadecimal digits (openssl rand -hex 32)"));
        }
        Ok(Self::new(*bytes))
    }

    /// What tells one master key from another in a file.
    fn id(&self) -> [u8; 16] {
        *self.0.derive("amem 2026-11 id of a master key")
    }
}

/// [`Keys`] in a directory. Nothing of it is cached, so a key that any process destroys is gone for all. Cloning it gives
/// another handle to the same directory.
#[derive(Clone)]
pub struct KeyDir(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    master: MasterKey,
    root: Key,
    /// Files whose names are known to be durable.
    durable: Mutex<HashSet<String>>,
    /// Held while the directory is in use.
    _lock: File,
}

impl KeyDir {
    /// Opens the directory of keys `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::WrongMasterKey`] when it was made with another master key, [`Error::KeysInUse`] while that is being
    /// changed; when something cannot be read or written, or is damaged.
    pub fn open(dir: impl AsRef<Path>, master: &MasterKey) -> Result<Self> {
        let dir = dir.as_ref();
        make_dirs(&SystemDisk, dir).map_err(Error::io("make the directory of keys", dir))?;
        let lock = lock_file(dir)?;
        // Whoever is alone here clears what was left by processes that ended.
        if lock.try_lock().is_ok() {
            clear_left_over(dir)?;
            lock.unlock().map_err(Error::io("unlock", dir))?;
        }
        lock_shared(&lock, dir)?;
        let root = match read(dir, "root", master)? {
            Some((root, _)) => root,
            None => {
                // A new root would find none of them.
                if !key_files(dir)?.is_empty() && read(dir, "root", master)?.is_none() {
                    return Err(damaged(&dir.join("root"), "it is gone, and there are keys"));
                }
                let new = Key::random().map_err(random_failed(dir))?;
                create(dir, "root", &wrap("root", &new, &Contents::Root, master, dir)?)?;
                let (root, _) = read(dir, "root", master)?.ok_or_else(|| damaged(&dir.join("root"), "it is gone"))?;
                root
            }
        };
        let inner = Inner { dir: dir.to_owned(), master: master.clone(), root, durable: Mutex::default(), _lock: lock };
        Ok(Self(Arc::new(inner)))
    }

    /// Wraps all keys of the directory `dir` under another master key, and says how many there are. If it is
    /// interrupted, some are wrapped under the one and some under the other, and calling it again finishes the work.
    ///
    /// # Errors
    /// [`Error::KeysInUse`] while a process uses the directory, [`Error::WrongMasterKey`] when `old` is not its master key;
    /// when something cannot be read or written, or is damaged.
    pub fn rewrap(dir: impl AsRef<Path>, old: &MasterKey, new: &MasterKey) -> Result<usize> {
        let dir = dir.as_ref();
        let lock = lock_file(dir)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::KeysInUse { path: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", dir)(error)),
        }
        clear_left_over(dir)?;
        let mut names = key_files(dir)?;
        let count = names.len();
        // Last, so that the directory opens under the old key until all is done.
        names.push("root".to_owned());
        for name in names {
            let (key, contents) = match read(dir, &name, old) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                // From an earlier call, that was interrupted.
                Err(Error::WrongMasterKey { .. }) if read(dir, &name, new)?.is_some() => continue,
                Err(error) => return Err(error),
            };
            let path = dir.join(&name);
            let wrapped = wrap(&name, &key, &contents, new, dir)?;
            let file = write_aside(dir, &wrapped)?;
            // The old wrapping is overwritten: who learns the old master key later must not find it.
            let before = OpenOptions::new().write(true).open(&path).map_err(Error::io("open", &path))?;
            file.persist(&path).map_err(|error| Error::writing(&path)(error.error))?;
            sync_dir(dir)?;
            overwrite(before).map_err(Error::writing(&path))?;
        }
        Ok(count)
    }

    /// [`Keys::id_secret`].
    pub fn id_secret(&self) -> [u8; 32] {
        *self.0.root.derive("amem 2026-11 secret of chunk ids")
    }
}

impl fmt::Debug for KeyDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyDir({})", self.0.dir.display())
    }
}

/// What a file says beside its key.
enum Contents {
    Root,
    Holder(Holder),
}

impl Contents {
    fn write(&self) -> (u8, &[u8]) {
        match self {
            Self::Root => (0, &[]),
            Self::Holder(Holder::Namespace(namespace)) => (1, namespace.as_str().as_bytes()),
            Self::Holder(Holder::Owner(owner)) => (2, &owner.0),
        }
    }

    fn read(kind: u8, name: &[u8]) -> Option<Self> {
        match kind {
            0 => name.is_empty().then_some(Self::Root),
            1 => {
                let name = std::str::from_utf8(name).ok()?;
                Some(Self::Holder(Holder::Namespace(Namespace::new(name).ok()?)))
            }
            2 => Some(Self::Holder(Holder::Owner(OwnerId(name.try_into().ok()?)))),
            _ => None,
        }
    }
}

impl Inner {
    fn file_name(&self, holder: &Holder) -> String {
        let mut hash = blake3::Hasher::new_keyed(&self.root.derive("amem 2026-11 names of key files"));
        let contents = Contents::Holder(holder.clone());
        let (kind, name) = contents.write();
        hash.update(&[kind]);
        hash.update(name);
        format!("{}.key", hash.finalize().to_hex())
    }

    fn get(&self, holder: &Holder) -> Result<Option<Key>> {
        let name = self.file_name(holder);
        match self.read(&name)? {
            Some((key, Contents::Holder(found))) if found == *holder => Ok(Some(key)),
            Some(_) => Err(damaged(&self.dir.join(&name), "it is the key of something else")),
            None => Ok(None),
        }
    }

    fn read(&self, name: &str) -> Result<Option<(Key, Contents)>> {
        match read(&self.dir, name, &self.master) {
            // It may be just being destroyed: then it is gone, or all zeros, at the next look.
            Err(Error::DamagedKey { .. } | Error::WrongMasterKey { .. }) => read(&self.dir, name, &self.master),
            found => found,
        }
    }

    fn get_or_create(&self, holder: &Holder) -> Result<Key> {
        let name = self.file_name(holder);
        // Others may make and destroy it meanwhile, but not for ever.
        for _ in 0..100 {
            if let Some(key) = self.get(holder)? {
                // Whoever made it may have been killed before its name was durable, and what is encrypted with it will be.
                if !self.durable().contains(&name) {
                    sync_dir(&self.dir)?;
                    self.durable().insert(name);
                }
                return Ok(key);
            }
            let key = Key::random().map_err(random_failed(&self.dir))?;
            let wrapped = wrap(&name, &key, &Contents::Holder(holder.clone()), &self.master, &self.dir)?;
            create(&self.dir, &name, &wrapped)?;
        }
        Err(damaged(&self.dir.join(&name), "it is there and has nothing in it"))
    }

    fn durable(&self) -> MutexGuard<'_, HashSet<String>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn destroy(&self, namespace: &Namespace) -> Result<()> {
        let secret = self.root.derive("amem 2026-11 secret of chunk ids");
        let name = namespace.as_str();
        let holders = [
            Holder::Namespace(namespace.clone()),
            Holder::Owner(OwnerId::keyed(&secret, name)),
            Holder::Owner(OwnerId::of(name)),
        ];
        for holder in holders {
            let name = self.file_name(&holder);
            let (path, aside) = (self.dir.join(&name), self.dir.join(format!("tmp-{:016x}", SystemDisk.random())));
            // Without its name it is gone, even if this is interrupted. Whoever opens the directory then wipes it.
            match fs::rename(&path, &aside) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::writing(&path)(error)),
            }
            self.durable().remove(&name);
            wipe(&aside)?;
        }
        sync_dir(&self.dir)
    }

    fn namespaces(&self) -> Result<Vec<(Namespace, Key)>> {
        let mut found = Vec::new();
        for name in key_files(&self.dir)? {
            if let Some((key, Contents::Holder(Holder::Namespace(namespace)))) = self.read(&name)? {
                found.push((namespace, key));
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl Keys for KeyDir {
    async fn get(&self, holder: &Holder) -> Result<Option<Key>, BoxError> {
        let (inner, holder) = (self.0.clone(), holder.clone());
        Ok(unblock(move || inner.get(&holder)).await?)
    }

    async fn get_or_create(&self, holder: &Holder) -> Result<Key, BoxError> {
        let (inner, holder) = (self.0.clone(), holder.clone());
        Ok(unblock(move || inner.get_or_create(&holder)).await?)
    }

    async fn destroy(&self, namespace: &Namespace) -> Result<(), BoxError> {
        let (inner, namespace) = (self.0.clone(), namespace.clone());
        Ok(unblock(move || inner.destroy(&namespace)).await?)
    }

    async fn namespaces(&self) -> Result<Vec<(Namespace, Key)>, BoxError> {
        let inner = self.0.clone();
        Ok(unblock(move || inner.namespaces()).await?)
    }

    fn pseudonym(&self, namespace: &Namespace) -> [u8; 32] {
        let key = self.0.root.derive("amem 2026-11 pseudonyms");
        *blake3::keyed_hash(&key, namespace.as_str().as_bytes()).as_bytes()
    }

    fn id_secret(&self) -> [u8; 32] {
        Self::id_secret(self)
    }
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::DamagedKey { path: path.to_owned(), reason: reason.to_owned() }
}

fn random_failed(dir: &Path) -> impl FnOnce(BoxError) -> Error {
    move |error| Error::io("get randomness for", dir)(io::Error::other(error))
}

/// The bytes of a file that holds a key.
fn wrap(name: &str, key: &Key, contents: &Contents, master: &MasterKey, dir: &Path) -> Result<Vec<u8>> {
    let mut nonce = [0; 24];
    getrandom::fill(&mut nonce).map_err(|error| random_failed(dir)(error.into()))?;
    let (kind, holder) = contents.write();
    let mut plain = Zeroizing::new(Vec::with_capacity(MAX_FILE));
    plain.extend(key.bytes());
    plain.push(kind);
    plain.extend(holder);
    let mut file = Vec::with_capacity(MAX_FILE);
    file.extend(MAGIC);
    file.extend(master.id());
    let aad = [&file, name.as_bytes()].concat();
    let payload = Payload { msg: &plain, aad: &aad };
    let sealed = XChaCha20Poly1305::new(master.0.bytes().into()).encrypt(&nonce.into(), payload);
    file.extend(nonce);
    file.extend(sealed.map_err(|_| damaged(&dir.join(name), "it cannot be encrypted"))?);
    Ok(file)
}

/// The key in a file; `None` where there is none, or it was being destroyed.
fn read(dir: &Path, name: &str, master: &MasterKey) -> Result<Option<(Key, Contents)>> {
    let path = dir.join(name);
    let mut bytes = Vec::with_capacity(MAX_FILE + 1);
    match File::open(&path) {
        Ok(file) => file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).map_err(Error::io("read", &path))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", &path)(error)),
    };
    // It was opened just before it was destroyed.
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let sound = bytes.len() <= MAX_FILE && bytes.len() > SEALED && bytes.starts_with(MAGIC);
    let (Some((head, _)), true) = (bytes.split_at_checked(HEAD), sound) else {
        return Err(damaged(&path, "it is no wrapped key"));
    };
    if head[MAGIC.len()..] != master.id() {
        return Err(Error::WrongMasterKey { path });
    }
    let aad = [head, name.as_bytes()].concat();
    let nonce: [u8; 24] = bytes[HEAD..SEALED].try_into().unwrap_or_default();
    let payload = Payload { msg: &bytes[SEALED..], aad: &aad };
    let plain = XChaCha20Poly1305::new(master.0.bytes().into()).decrypt(&nonce.into(), payload);
    let plain = Zeroizing::new(plain.map_err(|_| damaged(&path, "it does not decrypt"))?);
    let read = plain.split_first_chunk::<32>().and_then(|(key, rest)| {
        let (kind, name) = rest.split_first()?;
        Some((Key::new(*key), Contents::read(*kind, name)?))
    });
    read.map(Some).ok_or_else(|| damaged(&path, "what it decrypts to is no key"))
}

/// Makes a file that is whole and durable when it has its name, unless there is one of that name.
fn create(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    match write_aside(dir, bytes)?.persist_noclobber(&path) {
        Ok(_) => sync_dir(dir),
        // Another process was faster.
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => sync_dir(dir),
        Err(error) => Err(Error::writing(&path)(error.error)),
    }
}

/// A durable file that has no lasting name yet.
fn write_aside(dir: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
    // For its owner only.
    let mut file = tempfile::Builder::new().prefix("tmp-").tempfile_in(dir).map_err(Error::writing(dir))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::writing(dir))?;
    Ok(file)
}

/// Overwrites a file with zeros, durably, and removes it.
fn wipe(path: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
    overwrite(file).and_then(|()| fs::remove_file(path)).map_err(Error::writing(path))
}

fn overwrite(mut file: File) -> io::Result<()> {
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(MAX_FILE);
    file.write_all(&[0; MAX_FILE][..len.min(MAX_FILE)])?;
    file.sync_all()
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::writing(dir))
}

/// Waits for a process that only clears the directory, and not for one that changes the master key.
fn lock_shared(lock: &File, dir: &Path) -> Result<()> {
    for _ in 0..100 {
        match lock.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", dir)(error)),
        }
    }
    Err(Error::KeysInUse { path: dir.to_owned() })
}

fn lock_file(dir: &Path) -> Result<File> {
    let path = dir.join("LOCK");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(&path).map_err(Error::io("open", &path))
}

/// The names of the files that hold keys.
fn key_files(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("read", dir))?.file_name();
        names.extend(name.into_string().ok().filter(|name| name.ends_with(".key")));
    }
    names.sort_unstable();
    Ok(names)
}

/// Wipes files that were being made or destroyed when a process ended.
fn clear_left_over(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b"tmp-") {
            continue;
        }
        let path = entry.path();
        let metadata = entry.metadata().map_err(Error::io("read", &path))?;
        if metadata.is_file() && metadata.nlink() == 1 {
            wipe(&path)?;
        } else if metadata.is_file() {
            // It was just being given its name, and is a key that may be in use.
            fs::remove_file(&path).map_err(Error::writing(&path))?;
        }
    }
    Ok(())
}
