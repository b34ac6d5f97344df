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
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
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
use crate::disk::{DiskFile, FileDisk, SystemDisk, make_dirs, read_at_most};
#[cfg(test)]
use crate::planted::{self, Planted};
use crate::{Error, Result, whole_file};

const MAGIC: &[u8; 8] = b"amemkey1";
/// What stands before the nonce, and before what is sealed.
const HEAD: usize = 24;
const SEALED: usize = HEAD + 24;
const LOCK: &str = "LOCK";
/// What the name of a file begins with that is being made or destroyed.
pub(super) const ASIDE: &str = "tmp-";
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
    pub(super) fn id(&self) -> [u8; 16] {
        *self.0.derive("amem 2026-11 id of a master key")
    }
}

/// [`Keys`] in a directory. Nothing of it is cached, so a key that any process destroys is gone for all. Cloning it gives
/// another handle to the same directory.
#[derive(Clone)]
pub struct KeyDir(Arc<Inner>);

pub(super) struct Inner {
    disk: Arc<dyn FileDisk>,
    dir: PathBuf,
    master: MasterKey,
    root: Key,
    /// Files whose names are known to be durable.
    durable: Mutex<HashSet<String>>,
    /// Held while the directory is in use.
    _lock: Box<dyn Send + Sync>,
}

impl KeyDir {
    /// Opens the directory of keys `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::WrongMasterKey`] when it was made with another master key, [`Error::KeysInUse`] while that is being
    /// changed; when something cannot be read or written, or is damaged.
    pub fn open(dir: impl AsRef<Path>, master: &MasterKey) -> Result<Self> {
        Ok(Self(Arc::new(Inner::open(Arc::new(SystemDisk), dir.as_ref(), master)?)))
    }

    /// Wraps all keys of the directory `dir` under another master key, and says how many there are. If it is
    /// interrupted, some are wrapped under the one and some under the other, and calling it again finishes the work.
    ///
    /// # Errors
    /// [`Error::KeysInUse`] while a process uses the directory, [`Error::WrongMasterKey`] when `old` is not its master key;
    /// when something cannot be read or written, or is damaged.
    pub fn rewrap(dir: impl AsRef<Path>, old: &MasterKey, new: &MasterKey) -> Result<usize> {
        rewrap(&SystemDisk, dir.as_ref(), old, new)
    }

    /// [`Keys::id_secret`].
    pub fn id_secret(&self) -> [u8; 32] {
        self.0.id_secret()
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
    pub(super) fn open(disk: Arc<dyn FileDisk>, dir: &Path, master: &MasterKey) -> Result<Self> {
        make_dirs(&*disk, dir).map_err(Error::io("make the directory of keys", dir))?;
        // Whoever is alone here clears what was left by processes that ended.
        if let Ok(alone) = disk.lock(&dir.join(LOCK)) {
            clear_left_over(&*disk, dir)?;
            drop(alone);
        }
        let lock = lock_shared(&*disk, dir)?;
        let root = match read(&*disk, dir, "root", master)? {
            Some((root, _)) => {
                // Whoever made it may have been killed before its name was durable, and what is derived from it will be.
                sync_dir(&*disk, dir)?;
                root
            }
            None => {
                // A new root would find none of them.
                if !key_files(&*disk, dir)?.is_empty() && read(&*disk, dir, "root", master)?.is_none() {
                    return Err(damaged(&dir.join("root"), "it is gone, and there are keys"));
                }
                let new = Key::random().map_err(random_failed(dir))?;
                create(&*disk, dir, "root", &wrap("root", &new, &Contents::Root, master, dir)?)?;
                let root = read(&*disk, dir, "root", master)?;
                root.ok_or_else(|| damaged(&dir.join("root"), "it is gone"))?.0
            }
        };
        Ok(Self { disk, dir: dir.to_owned(), master: master.clone(), root, durable: Mutex::default(), _lock: lock })
    }

    pub(super) fn id_secret(&self) -> [u8; 32] {
        *self.root.derive("amem 2026-11 secret of chunk ids")
    }

    pub(super) fn file_name(&self, holder: &Holder) -> String {
        let mut hash = blake3::Hasher::new_keyed(&self.root.derive("amem 2026-11 names of key files"));
        let contents = Contents::Holder(holder.clone());
        let (kind, name) = contents.write();
        hash.update(&[kind]);
        hash.update(name);
        format!("{}.key", hash.finalize().to_hex())
    }

    pub(super) fn get(&self, holder: &Holder) -> Result<Option<Key>> {
        let name = self.file_name(holder);
        match self.read(&name)? {
            Some((key, Contents::Holder(found))) if found == *holder => Ok(Some(key)),
            Some(_) => Err(damaged(&self.dir.join(&name), "it is the key of something else")),
            None => Ok(None),
        }
    }

    fn read(&self, name: &str) -> Result<Option<(Key, Contents)>> {
        let look = || read(&*self.disk, &self.dir, name, &self.master);
        match look() {
            // It may be just being destroyed: then it is gone, or all zeros, at the next look.
            Err(Error::DamagedKey { .. } | Error::WrongMasterKey { .. }) => look(),
            found => found,
        }
    }

    pub(super) fn get_or_create(&self, holder: &Holder) -> Result<Key> {
        let name = self.file_name(holder);
        // Others may make and destroy it meanwhile, but not for ever.
        for _ in 0..100 {
            if let Some(key) = self.get(holder)? {
                // Whoever made it may have been killed before its name was durable, and what is encrypted with it will be.
                if !self.durable().contains(&name) {
                    sync_dir(&*self.disk, &self.dir)?;
                    self.durable().insert(name);
                }
                return Ok(key);
            }
            let key = Key::random().map_err(random_failed(&self.dir))?;
            let wrapped = wrap(&name, &key, &Contents::Holder(holder.clone()), &self.master, &self.dir)?;
            create(&*self.disk, &self.dir, &name, &wrapped)?;
        }
        Err(damaged(&self.dir.join(&name), "it is there and has nothing in it"))
    }

    fn durable(&self) -> MutexGuard<'_, HashSet<String>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn destroy(&self, namespace: &Namespace) -> Result<()> {
        let secret = self.id_secret();
        let name = namespace.as_str();
        let holders = [
            Holder::Namespace(namespace.clone()),
            Holder::Owner(OwnerId::keyed(&secret, name)),
            Holder::Owner(OwnerId::of(name)),
        ];
        let mut aside = Vec::new();
        for holder in holders {
            let name = self.file_name(&holder);
            let path = self.dir.join(&name);
            let gone = whole_file::draft(&*self.disk, &path, ASIDE);
            // Without its name it is gone, even if this is interrupted. Whoever opens the directory then wipes it.
            match self.disk.rename(&path, &gone) {
                Ok(()) => aside.push(gone),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::writing(&path)(error)),
            }
            self.durable().remove(&name);
        }
        // Also where there is none: whoever took its name may have been killed. And before anything is wiped: else a power
        // cut could leave the name, and half of what had it.
        sync_dir(&*self.disk, &self.dir)?;
        aside.iter().try_for_each(|gone| wipe(&*self.disk, gone))
    }

    fn namespaces(&self) -> Result<Vec<(Namespace, Key)>> {
        let mut found = Vec::new();
        for name in key_files(&*self.disk, &self.dir)? {
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
fn read(disk: &dyn FileDisk, dir: &Path, name: &str, master: &MasterKey) -> Result<Option<(Key, Contents)>> {
    let path = dir.join(name);
    let bytes = match read_at_most(disk, &path, MAX_FILE as u64 + 1) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path)(error)),
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

/// Wraps all keys of a directory under another master key: see [`KeyDir::rewrap`].
pub(super) fn rewrap(disk: &dyn FileDisk, dir: &Path, old: &MasterKey, new: &MasterKey) -> Result<usize> {
    let _alone = disk.lock(&dir.join(LOCK)).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => Error::KeysInUse { path: dir.to_owned() },
        _ => Error::io("lock", dir)(error),
    })?;
    clear_left_over(disk, dir)?;
    let mut names = key_files(disk, dir)?;
    let count = names.len();
    // Last, so that the directory opens under the old key until all is done.
    names.push("root".to_owned());
    for name in names {
        let (key, contents) = match read(disk, dir, &name, old) {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            // From an earlier call, that was interrupted.
            Err(Error::WrongMasterKey { .. }) if read(disk, dir, &name, new)?.is_some() => continue,
            Err(error) => return Err(error),
        };
        let path = dir.join(&name);
        let wrapped = wrap(&name, &key, &contents, new, dir)?;
        // The old wrapping is overwritten: who learns the old master key later must not find it. Until then it has a name
        // aside, so that it is wiped later if this is interrupted.
        let before = disk.open_to_write(&path).map_err(Error::io("open", &path))?;
        let aside = whole_file::draft(disk, &path, ASIDE);
        let named = match disk.link(&path, &aside) {
            Ok(()) => true,
            // A file system without second names.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => false,
            Err(error) => return Err(Error::writing(&aside)(error)),
        };
        sync_dir(disk, dir)?;
        let draft = whole_file::draft(disk, &path, ASIDE);
        whole_file::replace(disk, &path, &draft, &wrapped).map_err(Error::writing(&path))?;
        overwrite(&*before).map_err(Error::writing(&path))?;
        if named {
            disk.remove(&aside).map_err(Error::writing(&aside))?;
        }
    }
    // Also what an earlier call did, that was interrupted.
    sync_dir(disk, dir)?;
    Ok(count)
}

/// Makes a file that is whole and durable when it has its name, unless there is one of that name.
fn create(disk: &dyn FileDisk, dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    match whole_file::create(disk, &path, &whole_file::draft(disk, &path, ASIDE), bytes) {
        // Another process was faster.
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Error::writing(&path)(error)),
        _ => Ok(()),
    }
}

/// Overwrites a file with zeros, durably, and removes it.
fn wipe(disk: &dyn FileDisk, path: &Path) -> Result<()> {
    let file = disk.open_to_write(path).map_err(Error::io("open", path))?;
    overwrite(&*file).and_then(|()| disk.remove(path)).map_err(Error::writing(path))
}

fn overwrite(file: &dyn DiskFile) -> io::Result<()> {
    #[cfg(test)]
    if planted::is(Planted::KeyNotWiped) {
        return Ok(());
    }
    let len = usize::try_from(file.len()?).unwrap_or(MAX_FILE);
    file.write_all_at(&[0; MAX_FILE][..len.min(MAX_FILE)], 0)?;
    file.sync()
}

fn sync_dir(disk: &dyn FileDisk, dir: &Path) -> Result<()> {
    disk.sync_dir(dir).map_err(Error::writing(dir))
}

/// Waits for a process that only clears the directory, and not for one that changes the master key.
fn lock_shared(disk: &dyn FileDisk, dir: &Path) -> Result<Box<dyn Send + Sync>> {
    for _ in 0..100 {
        match disk.lock_shared(&dir.join(LOCK)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(10)),
            locked => return locked.map_err(Error::io("lock", dir)),
        }
    }
    Err(Error::KeysInUse { path: dir.to_owned() })
}

/// The names of the files that hold keys.
fn key_files(disk: &dyn FileDisk, dir: &Path) -> Result<Vec<String>> {
    let files = disk.list(dir).map_err(Error::io("read", dir))?;
    let names = files.into_iter().filter_map(|name| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".key")).collect();
    names.sort_unstable();
    Ok(names)
}

/// Wipes files that were being made or destroyed when a process ended.
fn clear_left_over(disk: &dyn FileDisk, dir: &Path) -> Result<()> {
    let mut left = disk.list(dir).map_err(Error::io("read", dir))?;
    left.retain(|name| name.as_encoded_bytes().starts_with(ASIDE.as_bytes()));
    if !left.is_empty() {
        // What has one name now must not have two after a power cut: it may be what a key was wrapped in before.
        sync_dir(disk, dir)?;
    }
    for name in left {
        let path = dir.join(name);
        match disk.names(&path).map_err(Error::io("read", &path))? {
            Some(1) => wipe(disk, &path)?,
            // It was just being given its name, and is a key that may be in use.
            Some(_) => disk.remove(&path).map_err(Error::writing(&path))?,
            None => {}
        }
    }
    Ok(())
}
