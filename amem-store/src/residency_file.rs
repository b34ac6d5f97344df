//! What the residency policies of a stack of tiers have learned, in a file, so that it outlives the process.
//!
//! The file is replaced as a whole: a power cut leaves the earlier one or the new one. It is a hint; whatever is wrong
//! with it, nothing is loaded, and the policies learn anew.
//!
//! ```text
//! magic       8 bytes   "amemres1"
//! tiers       u32       little-endian, as all numbers
//! tier, each  u64       bytes of what its policy saved, and these bytes
//! checksum   32 bytes   BLAKE3 of all bytes before
//! ```

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::{FileDisk, SystemDisk, parent, read_at_most};
use crate::{Error, Result, whole_file};

const MAGIC: &[u8; 8] = b"amemres1";
/// Bytes of a file at most. A chunk takes less than 200 bytes of it.
const MAX_BYTES: u64 = 256 << 20;
const MAX_TIERS: u32 = 64;
/// What the name of a file begins with that is to become the file.
const DRAFT: &str = "residency-";
/// No process takes longer to write one.
const DRAFT_AGE: Duration = Duration::from_secs(600);

/// A file for what [`Tiered::save_residency`](amem_core::Tiered::save_residency) gives.
///
/// ```
/// # use amem_core::{RamStore, Tier, Tiered};
/// # use std::sync::Arc;
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// let file = amem_store::ResidencyFile::new(dir.path().join("residency"));
/// let mut learned = file.load().into_iter();
/// let ram = Tier::new(Arc::new(RamStore::default()), 2 << 30).residency(learned.next().unwrap_or_default());
/// let tiers = Tiered::open(vec![ram]).await?;
/// // … and now and then, which a `ResidencySaver` does, and before the process ends:
/// file.save(&tiers.save_residency())?;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct ResidencyFile {
    path: PathBuf,
}

impl ResidencyFile {
    /// The file of this path, in a directory that exists. It need not be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Replaces the file: fastest tier first. When this returns, the new one survives a power cut.
    ///
    /// # Errors
    /// When it cannot be written, or is more than [`load`](Self::load) would read. The earlier file is still there then.
    pub fn save(&self, tiers: &[Vec<u8>]) -> Result<()> {
        self.save_on(&SystemDisk, tiers)
    }

    pub(crate) fn save_on(&self, disk: &dyn FileDisk, tiers: &[Vec<u8>]) -> Result<()> {
        let bytes = encode(tiers).ok_or(ErrorKind::FileTooLarge.into()).map_err(Error::writing(&self.path))?;
        let draft = whole_file::draft(disk, &self.path, DRAFT);
        whole_file::replace(disk, &self.path, &draft, &bytes).map_err(Error::writing(&self.path))
    }

    /// As [`save`](Self::save). Says how many bytes the file has.
    pub(crate) fn save_sized(&self, tiers: &[Vec<u8>]) -> Result<u64> {
        self.save(tiers).map(|()| tiers.iter().map(|tier| tier.len() as u64).sum())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes drafts that a process which was killed has left. Another may write one at this moment, so the young stay.
    pub(crate) fn remove_drafts(&self) {
        let drafts = fs::read_dir(parent(&self.path)).into_iter().flatten().flatten();
        for draft in drafts.filter(|draft| draft.file_name().to_str().is_some_and(is_draft)) {
            let age = draft.metadata().and_then(|file| file.modified()).map(|at| at.elapsed().unwrap_or_default());
            if age.is_ok_and(|age| age > DRAFT_AGE) {
                // One that cannot be removed takes some room, and nothing else.
                let _ = fs::remove_file(draft.path());
            }
        }
    }

    /// What was saved last, fastest tier first. Empty when there is no such file, and when it is damaged or cannot be read.
    pub fn load(&self) -> Vec<Vec<u8>> {
        self.load_on(&SystemDisk)
    }

    pub(crate) fn load_on(&self, disk: &dyn FileDisk) -> Vec<Vec<u8>> {
        // One byte more than allowed is enough to see that it is too large.
        let read = read_at_most(disk, &self.path, MAX_BYTES + 1);
        read.ok().and_then(|bytes| decode(&bytes)).unwrap_or_default()
    }
}

/// Whether a file of this name is one that [`ResidencyFile::save`] writes on its way.
fn is_draft(name: &str) -> bool {
    let digits = name.strip_prefix(DRAFT);
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

pub(crate) fn encode(tiers: &[Vec<u8>]) -> Option<Vec<u8>> {
    let count = u32::try_from(tiers.len()).ok().filter(|count| *count <= MAX_TIERS)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(count.to_le_bytes());
    for tier in tiers {
        bytes.extend((tier.len() as u64).to_le_bytes());
        bytes.extend(tier);
    }
    let checksum = blake3::hash(&bytes);
    bytes.extend(checksum.as_bytes());
    (bytes.len() as u64 <= MAX_BYTES).then_some(bytes)
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (bytes, checksum) = bytes.split_last_chunk::<32>()?;
    if bytes.len() as u64 + 32 > MAX_BYTES || blake3::hash(bytes).as_bytes() != checksum {
        return None;
    }
    let (count, mut rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    let count = Some(u32::from_le_bytes(*count)).filter(|count| *count <= MAX_TIERS)?;
    let mut tiers = Vec::new();
    for _ in 0..count {
        let (len, after) = rest.split_first_chunk()?;
        let (tier, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        tiers.push(tier.to_vec());
        rest = after;
    }
    rest.is_empty().then_some(tiers)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, KvStore, PrefixId, RamStore, Tier, Tiered};
    use futures_lite::future::block_on;

    use super::*;

    fn file() -> (tempfile::TempDir, ResidencyFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = ResidencyFile::new(dir.path().join("residency"));
        (dir, file)
    }

    #[test]
    fn what_was_saved_last_is_loaded() {
        let (dir, file) = file();
        assert_eq!(file.load(), Vec::<Vec<u8>>::new());
        for tiers in [vec![vec![1, 2, 3], vec![]], vec![vec![4; 10_000]], vec![]] {
            file.save(&tiers).unwrap();
            assert_eq!(file.load(), tiers);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn a_file_that_was_cut_or_changed_loads_nothing() {
        let (_dir, file) = file();
        file.save(&[vec![1; 40], vec![2; 40]]).unwrap();
        let whole = fs::read(&file.path).unwrap();
        for at in 0..whole.len() {
            fs::write(&file.path, &whole[..at]).unwrap();
            assert!(file.load().is_empty(), "cut to {at} bytes");
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&file.path, changed).unwrap();
            assert!(file.load().is_empty(), "byte {at} changed");
        }
        // A checksum that is right makes no length right.
        let mut lies = MAGIC.to_vec();
        lies.extend(1_u32.to_le_bytes());
        lies.extend(u64::MAX.to_le_bytes());
        lies.extend_from_slice(blake3::hash(&lies).as_bytes());
        fs::write(&file.path, lies).unwrap();
        assert!(file.load().is_empty());
    }

    #[test]
    fn a_save_that_fails_leaves_the_earlier_file() {
        let (dir, file) = file();
        file.save(&[vec![1]]).unwrap();
        assert!(matches!(file.save(&vec![Vec::new(); MAX_TIERS as usize + 1]), Err(Error::Full { .. })));
        assert_eq!(file.load(), [[1]]);
        let nowhere = ResidencyFile::new(dir.path().join("no such directory").join("residency"));
        assert!(nowhere.save(&[vec![1]]).is_err() && nowhere.load().is_empty());
    }

    #[test]
    fn drafts_of_killed_processes_are_removed() {
        let (dir, file) = file();
        file.save(&[vec![1]]).unwrap();
        let path = |name: &str| dir.path().join(name);
        let old = SystemTime::now() - 2 * DRAFT_AGE;
        let draft = |n: u64| format!("{DRAFT}{n:016x}");
        let names = [draft(1), draft(2), "residency-backup".to_owned(), format!("{}0", draft(3)), "other".to_owned()];
        for name in &names {
            fs::write(path(name), "half").unwrap();
            let aged = fs::File::options().write(true).open(path(name)).unwrap();
            aged.set_modified(if *name == draft(2) { SystemTime::now() } else { old }).unwrap();
        }
        file.remove_drafts();
        let left = names.map(|name| path(&name).exists());
        assert_eq!(left, [false, true, true, true, true], "no young draft, and no file of others, is removed");
        assert_eq!(file.load(), [[1]]);
    }

    const SHAPE: KvShape = KvShape { layers: 1, kv_heads: 1, head_dim: 2 };
    const F16: Encoding = Encoding::Plain(Dtype::F16);

    fn chunk(number: u16) -> KvChunk {
        let mut id = [0; 32];
        id[8..10].copy_from_slice(&number.to_be_bytes());
        let data = Arc::new(HostKv::new(F16, 1, vec![0; F16.bytes(&SHAPE, 1)]));
        KvChunk::new(ChunkId(id), PrefixId([0; 32]), SHAPE, vec![0].into(), data).unwrap()
    }

    /// A tier over `disk` with room for three chunks, with what the file says.
    fn open(disk: &Arc<RamStore>, file: &ResidencyFile) -> Tiered {
        let saved = file.load().into_iter().next().unwrap_or_default();
        let budget = 3 * F16.bytes(&SHAPE, 1) as u64;
        block_on(Tiered::open(vec![Tier::new(disk.clone(), budget).residency(saved)])).unwrap()
    }

    #[test]
    fn tiers_that_are_opened_again_keep_what_was_used_most() {
        let (_dir, file) = file();
        let disk = Arc::new(RamStore::default());
        let tiers = open(&disk, &file);
        block_on(tiers.put(&[chunk(1), chunk(2), chunk(3)])).unwrap();
        for _ in 0..5 {
            block_on(tiers.get_many(&[chunk(1).id(), chunk(3).id()])).unwrap();
        }
        file.save(&tiers.save_residency()).unwrap();
        drop(tiers);
        let tiers = open(&disk, &file);
        block_on(tiers.put(&[chunk(4)])).unwrap();
        let there = block_on(disk.contains_many(&[1, 2, 3].map(|number| chunk(number).id())));
        assert_eq!(there, [true, false, true]);
    }

    #[test]
    fn thousands_of_chunks_that_have_left_do_not_make_tiers_forget_what_was_used_most() {
        let (_dir, file) = file();
        let disk = Arc::new(RamStore::default());
        let tiers = open(&disk, &file);
        block_on(tiers.put(&[chunk(1), chunk(2)])).unwrap();
        for number in 3..2000 {
            block_on(tiers.put(&[chunk(number)])).unwrap();
            block_on(tiers.get_many(&[chunk(1).id(), chunk(2).id()])).unwrap();
        }
        file.save(&tiers.save_residency()).unwrap();
        drop(tiers);
        let tiers = open(&disk, &file);
        // Without what was learned, the chunk that is entered first when the tier is opened would leave first.
        block_on(tiers.put(&[chunk(2000)])).unwrap();
        let there = block_on(disk.contains_many(&[1, 2, 1999, 2000].map(|number| chunk(number).id())));
        assert_eq!(there, [true, true, false, true]);
    }
}
