//! A data directory: everything that amem keeps, in one place.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, FileDisk, SystemDisk, make_dirs, read_at_most};
use crate::segment::SegmentName;
use crate::{Error, Result, SegmentOptions, SegmentStore, SqliteLedger, Verification, ledger, whole_file};

/// The name of the note that says where KV is kept besides.
const SHARED_KV: &str = "shared-kv";
/// Bytes of it that are read at most.
const MAX_PLACE: u64 = 4096;

/// Both parts of a data directory.
///
/// ```text
/// <dir>/                 made for its owner only
///   ledger.sqlite        what was said (SqliteLedger), with the files that SQLite keeps beside it
///   kv/                  its KV (SegmentStore): a cache, which may be deleted while nothing runs; or a link to the
///                        directory that has it (keep_kv_in)
///   shared-kv            where KV is kept besides, on a server that machines share, if it is (note_shared_kv)
/// ```
///
/// Chunks of what was forgotten are named in the ledger until somebody confirms that they are deleted from every store. So
/// there is one place on the disk for the KV of a data directory, and who opens both parts deletes from it.
///
/// To back it up, call [`backup`] or [`SqliteLedger::backup`] (`amem backup`), and [`restore`] (`amem restore`) to get it
/// back. That is the only way: the newest memories are not in `ledger.sqlite` but beside it for a while, so a copy of
/// that file may lack them. The KV needs no backup.
#[derive(Clone, Debug)]
pub struct DataDir {
    /// The KV of what was said.
    pub kv: SegmentStore,
    /// What was said.
    pub ledger: SqliteLedger,
}

/// Bytes that the files of KV have at most in a data directory that is opened without options: 16 GiB.
pub const DEFAULT_KV_BYTES: u64 = 16 << 30;

/// Opens the data directory `dir`, which is made if it is not there. The files of its KV have at most [`DEFAULT_KV_BYTES`]
/// together: when these are reached, the oldest make room. [`open_with`] sets another limit.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// let amem_store::DataDir { kv, ledger } = amem_store::open(dir.path().join("amem"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the directory cannot be made, or one of its parts cannot be opened; [`Error::Missing`] when there is KV but no
/// ledger, for then the ledger was lost; [`Error::SharedKv`] when KV is kept on another server too, from which who has no
/// more than these two parts could not delete it: use [`open_ledger`] and [`open_kv`] then.
pub fn open(dir: impl AsRef<Path>) -> Result<DataDir> {
    open_with(dir, SegmentOptions::default().max_bytes(DEFAULT_KV_BYTES))
}

/// Opens the data directory `dir`, which is made if it is not there, with its KV kept as the options say. A
/// [`Tiered`](amem_core::Tiered) over the KV, whose policy knows what is worth keeping, wants a limit of somewhat more than
/// twice its budget: see [`SegmentOptions::max_bytes`].
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path().join("amem");
/// use amem_store::SegmentOptions;
///
/// let options = SegmentOptions::default().max_bytes(100 << 30);
/// let amem_store::DataDir { kv, ledger } = amem_store::open_with(dir, options)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`open`].
pub fn open_with(dir: impl AsRef<Path>, options: SegmentOptions) -> Result<DataDir> {
    let dir = dir.as_ref();
    check_shared_kv(dir, None)?;
    Ok(DataDir { ledger: open_ledger(dir)?, kv: open_kv(dir, options)? })
}

/// Opens the KV of the data directory `dir`, wherever on the disk it is kept.
///
/// # Errors
/// [`Error::NoKv`] when it is kept elsewhere ([`keep_kv_in`]) and is not there; as [`SegmentStore::open`].
pub fn open_kv(dir: impl AsRef<Path>, options: SegmentOptions) -> Result<SegmentStore> {
    let kv = dir.as_ref().join("kv");
    check_link(&kv)?;
    SegmentStore::open_with(kv, options)
}

/// Opens the ledger of the data directory `dir`, which is made if it is not there, and leaves its KV to whoever uses it.
///
/// # Errors
/// As [`open`].
pub fn open_ledger(dir: impl AsRef<Path>) -> Result<SqliteLedger> {
    let dir = dir.as_ref();
    make(dir)?;
    let (path, kv) = (ledger_of(dir), dir.join("kv"));
    if !ledger::exists(&path)? && has_segments(&kv)? {
        return Err(Error::Missing { path, left: kv });
    }
    let ledger = SqliteLedger::open(path)?;
    // So that it can be opened for reading only, too.
    make(&kv)?;
    Ok(ledger)
}

/// Opens the data directory `dir` though records in it may be damaged, so that these can be forgotten: see
/// [`SqliteLedger::open_damaged`]. Its KV has no limit, so that none makes room for a moment's work.
///
/// # Errors
/// As [`SqliteLedger::open_damaged`] and [`open_kv`]; [`Error::SharedKv`] as [`open`].
pub fn open_damaged(dir: impl AsRef<Path>) -> Result<DataDir> {
    let dir = dir.as_ref();
    check_shared_kv(dir, None)?;
    let ledger = SqliteLedger::open_damaged(ledger_of(dir))?;
    Ok(DataDir { ledger, kv: open_kv(dir, SegmentOptions::default())? })
}

/// Opens the ledger of the data directory `dir` for reading, and leaves its KV alone.
///
/// # Errors
/// As [`SqliteLedger::open_read_only`].
pub fn open_ledger_read_only(dir: impl AsRef<Path>) -> Result<SqliteLedger> {
    SqliteLedger::open_read_only(ledger_of(dir.as_ref()))
}

/// Opens the data directory `dir` for reading: where it, or the file system that it is on, may not be written. What is
/// remembered can be recalled and asked about. Whatever would change it is [`ReadOnly`](amem_core::Error::ReadOnly).
///
/// # Errors
/// When one of its parts is not there or cannot be opened, or was written by another version of amem.
pub fn open_read_only(dir: impl AsRef<Path>) -> Result<DataDir> {
    let (dir, mut options) = (dir.as_ref(), SegmentOptions::default());
    options.read_only = true;
    let ledger = open_ledger_read_only(dir)?;
    Ok(DataDir { ledger, kv: open_kv(dir, options)? })
}

/// Has the KV of the data directory `dir`, which is made if it is not there, kept in the directory `kv` from now on: on a
/// larger or faster disk, say. `<dir>/kv` becomes a link to it, so whatever opens the data directory finds it. Nothing
/// changes where it is kept there already.
///
/// # Errors
/// [`Error::KvElsewhere`] when there is KV in another place: it is not moved, for it may be much, and not left behind, for
/// nobody would delete from there what is forgotten. [`Error::NoKv`] when it should be there and is not;
/// [`Error::ReadOnly`] when a process that has written no KV yet uses the data directory; when something cannot be made.
pub fn keep_kv_in(dir: impl AsRef<Path>, kv: impl AsRef<Path>) -> Result<()> {
    let (dir, kv) = (dir.as_ref(), kv.as_ref());
    let link = dir.join("kv");
    make(dir)?;
    make_dirs(&SystemDisk, kv).map_err(Error::io("make the directory", kv))?;
    let absolute = |path: &Path| path.canonicalize().map_err(Error::io("find", path));
    let kv = absolute(kv)?;
    let elsewhere = |kept: PathBuf| Error::KvElsewhere { link: link.clone(), kept, wanted: kv.clone() };
    match fs::symlink_metadata(&link) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", &link)(error)),
        Ok(_) => {
            check_link(&link)?;
            match absolute(&link)? {
                same if same == kv => return Ok(()),
                _ if link.is_symlink() => return Err(elsewhere(absolute(&link)?)),
                _ => remove_empty_kv(&link, elsewhere)?,
            }
        }
    }
    // By its lock it is told from the empty directory that is there when its disk is not.
    match SystemDisk.lock(&kv.join("LOCK")) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(Error::writing(&kv)(error)),
        _ => {}
    }
    let linked = SystemDisk.sync_dir(&kv).and_then(|()| symlink(&kv, &link)).and_then(|()| SystemDisk.sync_dir(dir));
    linked.map_err(Error::io("make the link", &link))
}

/// Removes a directory for KV in which there is nothing, and that no process writes to.
fn remove_empty_kv(kv: &Path, elsewhere: impl Fn(PathBuf) -> Error) -> Result<()> {
    let lock = kv.join("LOCK");
    let locked = SystemDisk.lock(&lock).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => {
            Error::ReadOnly { path: kv.to_owned(), reason: "another process writes to it".to_owned() }
        }
        _ => Error::writing(&lock)(error),
    })?;
    let names = SystemDisk.list(kv).map_err(Error::io("read", kv))?;
    if names.iter().any(|name| name != "LOCK") {
        return Err(elsewhere(kv.to_owned()));
    }
    let removed = fs::remove_file(&lock).and_then(|()| fs::remove_dir(kv));
    drop(locked);
    removed.map_err(Error::io("remove", kv))
}

/// That KV is where the link of this path says. A disk that is not mounted would look like a place without any: what is
/// deleted there would be on the disk all the same.
fn check_link(link: &Path) -> Result<()> {
    match fs::read_link(link) {
        Ok(kept) if !link.join("LOCK").try_exists().map_err(Error::io("read", link))? => {
            Err(Error::NoKv { link: link.to_owned(), kept })
        }
        _ => Ok(()),
    }
}

/// Notes in the data directory `dir`, which is made if it is not there, that KV of it is kept at `place` besides: on a
/// server that machines share. From then on [`open`] refuses, so that nobody confirms a deletion without deleting there too.
/// `place` is a name for people, and for comparing: no secret should be in it.
///
/// # Errors
/// [`Error::SharedKv`] when another place is noted; when the note cannot be written. One that says so already is not
/// written anew.
pub fn note_shared_kv(dir: impl AsRef<Path>, place: &str) -> Result<()> {
    note_shared_kv_on(&SystemDisk, dir.as_ref(), place)
}

pub(crate) fn note_shared_kv_on(disk: &dyn FileDisk, dir: &Path, place: &str) -> Result<()> {
    make_dirs(disk, dir).map_err(Error::io("make the data directory", dir))?;
    let path = dir.join(SHARED_KV);
    let written = match noted_place(disk, &path)? {
        // Nothing is written, for which a full disk may have no room. Whoever wrote it may have been killed before the
        // directory was synced.
        Some(noted) if noted == place => disk.sync_dir(dir),
        Some(noted) => return Err(Error::SharedKv { note: path, place: noted }),
        None => {
            let draft = whole_file::draft(disk, &path, SHARED_KV);
            whole_file::replace(disk, &path, &draft, format!("{place}\n").as_bytes())
        }
    };
    written.map_err(Error::writing(&path))
}

/// That KV of the data directory `dir` is kept on no shared server but this one: for who deletes from it, or, with `None`,
/// from none.
///
/// # Errors
/// [`Error::SharedKv`] when another was noted ([`note_shared_kv`]); when the note cannot be read.
pub fn check_shared_kv(dir: impl AsRef<Path>, place: Option<&str>) -> Result<()> {
    check_shared_kv_on(&SystemDisk, dir.as_ref(), place)
}

pub(crate) fn check_shared_kv_on(disk: &dyn FileDisk, dir: &Path, place: Option<&str>) -> Result<()> {
    let note = dir.join(SHARED_KV);
    match noted_place(disk, &note)? {
        Some(noted) if place != Some(noted.as_str()) => Err(Error::SharedKv { note, place: noted }),
        _ => Ok(()),
    }
}

/// What the note says, if there is one.
fn noted_place(disk: &dyn FileDisk, note: &Path) -> Result<Option<String>> {
    let read = read_at_most(disk, note, MAX_PLACE);
    match read.and_then(|noted| String::from_utf8(noted).map_err(|error| io::Error::new(ErrorKind::InvalidData, error)))
    {
        Ok(noted) => Ok(Some(noted.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", note)(error)),
    }
}

/// Writes a backup of the ledger in the data directory `dir` to the new file `to`, as [`SqliteLedger::backup`] does.
/// Other processes may use the directory meanwhile.
///
/// # Errors
/// As [`SqliteLedger::backup`], and when there is no ledger.
pub fn backup(dir: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    ledger::copy(&ledger_of(dir.as_ref()), to.as_ref())
}

/// Puts the ledger of a backup into the data directory `dir`, which is made if it is not there and must not have a
/// ledger. The backup is checked first, and is brought up to date if an earlier version of amem wrote it.
///
/// Texts that were forgotten after the backup are back. KV of texts that the backup does not have stays in `kv/`, where
/// nobody finds it, until it makes room for others: delete that folder to be rid of it.
///
/// # Errors
/// [`Error::Exists`] when the directory has a ledger, [`Error::Damaged`] or [`Error::NotALedger`] when the backup is none
/// that can be used; when something cannot be read or written.
pub fn restore(from: impl AsRef<Path>, dir: impl AsRef<Path>) -> Result<()> {
    let (dir, path) = (dir.as_ref(), ledger_of(dir.as_ref()));
    // One that is damaged is moved away by hand: that is not for a program to decide.
    if fs::symlink_metadata(&path).is_ok() || ledger::exists(&path)? {
        return Err(Error::Exists { path });
    }
    make(dir)?;
    ledger::copy(from.as_ref(), &path)?;
    // So that it can be opened for reading only, too.
    make(&dir.join("kv"))
}

/// Checks the ledger in the data directory `dir`, as [`SqliteLedger::verify`] does, even one that is too damaged to be
/// opened.
///
/// # Errors
/// When it cannot be read, or is no ledger.
pub fn verify(dir: impl AsRef<Path>) -> Result<Verification> {
    ledger::verify(&ledger_of(dir.as_ref()))
}

fn ledger_of(dir: &Path) -> PathBuf {
    dir.join("ledger.sqlite")
}

fn make(dir: &Path) -> Result<()> {
    make_dirs(&SystemDisk, dir).map_err(Error::io("make the data directory", dir))
}

/// Whether there is KV. A writer leaves its lock, and a file system may have files of its own there.
fn has_segments(kv: &Path) -> Result<bool> {
    let is_ours = |name: &str| SegmentName::parse(name).or_else(|| SegmentName::parse_index(name)).is_some();
    match SystemDisk.list(kv) {
        Ok(names) => Ok(names.iter().any(|name| name.to_str().is_some_and(is_ours))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", kv)(error)),
    }
}
