//! Your own place for KV: a directory with a file for each chunk. It has no bound of its own, so that a `Tier` has to bound
//! it.
//!
//! ```text
//! cargo run --release --example custom_store
//! ```

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use amem_core::transformer::{Options, Transformer};
use amem_core::{
    ChunkId, Encoding, Error, Fingerprint, HostKv, KvChunk, KvShape, KvStore, Memory, PrefixId, Result, StoreStats,
    StoredChunk, Token,
};
use amem_cpu::Cpu;
use serde::{Deserialize, Serialize};

/// What a file says of its chunk, in a line of JSON: all that a store has to keep beside the KV itself.
#[derive(Serialize, Deserialize)]
struct Header {
    model: Option<[u8; 32]>,
    prefix: [u8; 32],
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    encoding: u8,
    tokens: Vec<Token>,
    sensitivity: Option<Vec<f32>>,
}

/// A file is a BLAKE3 hash of the chunk's id and of what follows, the header's line, and the KV. Its name is the id.
///
/// One process writes to the directory, by one `FileStore`: another one would delete what it is about to finish.
struct FileStore {
    files: Arc<Files>,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
}

struct Files {
    dir: PathBuf,
    /// Held by who writes: what a `put` looked at must not change before it has written.
    writing: Mutex<()>,
}

/// How names of files begin that are still written. What a killed process left is deleted by the next one.
const UNFINISHED: &str = "unfinished-";

impl FileStore {
    fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                remove(&entry.path())?;
            }
        }
        let files = Arc::new(Files { dir, writing: Mutex::new(()) });
        Ok(Self { files, hits: AtomicU64::new(0), misses: AtomicU64::new(0), damaged: AtomicU64::new(0) })
    }

    /// Does something with the files on a thread where waiting for a disk hurts nobody.
    async fn with_files<T: Send + 'static>(&self, work: impl FnOnce(&Files) -> T + Send + 'static) -> T {
        let files = Arc::clone(&self.files);
        blocking::unblock(move || work(&files)).await
    }
}

fn path_of(dir: &Path, id: &ChunkId) -> PathBuf {
    dir.join(name_of(id))
}

fn name_of(id: &ChunkId) -> String {
    id.0.map(|byte| format!("{byte:02x}")).concat()
}

/// The chunk whose file this is; `None` for other files.
fn id_of(path: &Path) -> Option<ChunkId> {
    let name = path.file_name()?.to_str()?;
    let mut id = [0; 32];
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(name.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(ChunkId(id)).filter(|id| name == name_of(id))
}

fn hash(id: &ChunkId, bytes: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(&id.0).update(bytes).finalize().as_bytes()
}

/// Puts the chunk into a file in one step: whoever reads it, and a process that is killed, finds all of it or none.
fn write(dir: &Path, chunk: &KvChunk) -> Result<()> {
    let KvShape { layers, kv_heads, head_dim } = *chunk.shape();
    let header = Header {
        model: chunk.model().map(|model| model.0),
        prefix: chunk.prefix().0,
        layers,
        kv_heads,
        head_dim,
        encoding: chunk.encoding().code(),
        tokens: chunk.tokens().to_vec(),
        sensitivity: chunk.sensitivity().map(|sensitivity| sensitivity.to_vec()),
    };
    let mut bytes = serde_json::to_vec(&header).map_err(|error| Error::Store(error.into()))?;
    bytes.push(b'\n');
    bytes.extend(chunk.to_bytes()?);
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir).map_err(failed)?;
    file.write_all(&hash(&chunk.id(), &bytes)).and_then(|()| file.write_all(&bytes)).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path_of(dir, &chunk.id())).map_err(|error| failed(error.error))?;
    Ok(())
}

/// The chunk, if there is one. An error for a file that is not what was written.
fn read(dir: &Path, id: &ChunkId) -> Result<Option<KvChunk>> {
    let file = match fs::read(path_of(dir, id)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    chunk_of(id, &file).map(Some).ok_or_else(|| Error::DamagedKv { chunk: *id, reason: "its file is damaged".into() })
}

fn chunk_of(id: &ChunkId, file: &[u8]) -> Option<KvChunk> {
    let (expected, bytes) = file.split_first_chunk::<32>()?;
    if hash(id, bytes) != *expected {
        return None;
    }
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&bytes[..end]).ok()?;
    let shape = KvShape { layers: header.layers, kv_heads: header.kv_heads, head_dim: header.head_dim };
    let kv = HostKv::new(Encoding::from_code(header.encoding)?, shape.layers, bytes[end + 1..].to_vec());
    let mut chunk = KvChunk::new(*id, PrefixId(header.prefix), shape, header.tokens.into(), Arc::new(kv)).ok()?;
    if let Some(model) = header.model {
        chunk = chunk.with_model(Fingerprint(model));
    }
    match header.sensitivity {
        Some(sensitivity) => chunk.with_sensitivity(sensitivity.into()).ok(),
        None => Some(chunk),
    }
}

/// The files of all chunks, in the order of their ids.
fn all_files(dir: &Path) -> Result<Vec<(ChunkId, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        files.extend(id_of(&path).map(|id| (id, path)));
    }
    files.sort();
    Ok(files)
}

/// What a file says of its chunk; `None` if it is gone or damaged.
fn header(path: &Path) -> Option<Header> {
    let (mut file, mut line) = (BufReader::new(File::open(path).ok()?), Vec::new());
    file.read_exact(&mut [0; 32]).ok()?;
    file.read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

/// The entry of a file. A damaged one is listed too, without tokens, so that whoever deletes an owner's chunks finds it.
fn stored(id: ChunkId, path: &Path) -> Option<StoredChunk> {
    let bytes = fs::metadata(path).ok()?.len();
    Some(StoredChunk { id, tokens: header(path).map_or(0, |header| header.tokens.len()), bytes })
}

/// Deletes a file, if there is one.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn failed(error: io::Error) -> Error {
    let (what, reason) = ("the store's disk".to_owned(), error.to_string());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Full { what, reason },
        ErrorKind::ReadOnlyFilesystem => Error::ReadOnly { what, reason },
        _ => Error::Store(error.into()),
    }
}

#[async_trait::async_trait]
impl KvStore for FileStore {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let ids = ids.to_vec();
        let read = move |files: &Files| ids.iter().map(|id| read(&files.dir, id)).collect();
        let read: Vec<Result<Option<KvChunk>>> = self.with_files(read).await;
        // A chunk that cannot be read is missed, and computed again, as long as others can be.
        let all_failed = read.iter().all(|chunk| matches!(chunk, Err(Error::Store(_))));
        let mut found = Vec::new();
        for chunk in read {
            let (count, chunk) = match chunk {
                Ok(Some(chunk)) => (&self.hits, Some(chunk)),
                Ok(None) => (&self.misses, None),
                Err(Error::DamagedKv { .. }) => (&self.damaged, None),
                Err(error) if all_failed => return Err(error),
                Err(_) => (&self.misses, None),
            };
            count.fetch_add(1, Relaxed);
            found.push(chunk);
        }
        Ok(found)
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        let chunks = chunks.to_vec();
        let put = move |Files { dir, writing }: &Files| {
            for chunk in &chunks {
                let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
                // What is held stays, unless it lacks a sensitivity that this one has. What is damaged is written anew.
                let is_news = match read(dir, &chunk.id()) {
                    Ok(Some(held)) => held.sensitivity().is_none() && chunk.sensitivity().is_some(),
                    _ => true,
                };
                if is_news {
                    write(dir, chunk)?;
                }
            }
            Ok(())
        };
        self.with_files(put).await
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let ids = ids.to_vec();
        let delete = move |Files { dir, writing }: &Files| {
            let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
            for id in &ids {
                remove(&path_of(dir, id)).map_err(failed)?;
            }
            sync_dir(dir)
        };
        self.with_files(delete).await
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        let ids = ids.to_vec();
        self.with_files(move |files| ids.iter().map(|id| path_of(&files.dir, id).exists()).collect()).await
    }

    async fn stats(&self) -> StoreStats {
        let sizes = |files: &Files| -> Vec<u64> {
            let all = all_files(&files.dir).unwrap_or_default();
            all.iter().filter_map(|(_, path)| Some(fs::metadata(path).ok()?.len())).collect()
        };
        let sizes = self.with_files(sizes).await;
        StoreStats {
            chunks: sizes.len(),
            bytes: sizes.iter().sum(),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            damaged: self.damaged.load(Relaxed),
        }
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        let page = move |files: &Files| {
            let all = all_files(&files.dir)?;
            let behind = all.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
            Ok(behind.filter_map(|(id, path)| stored(*id, path)).take(limit).collect())
        };
        self.with_files(page).await
    }

    async fn sync(&self) -> Result<()> {
        self.with_files(|files| sync_dir(&files.dir)).await
    }
}

/// Has the names of files survive a power cut. What is in them does since they were written.
fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) { File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed) } else { Ok(()) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Arc::new(Transformer::load(&amem_demo::files(), Cpu::new()?, Options::default())?);
    let dir = tempfile::tempdir()?;
    futures_lite::future::block_on(async {
        // The second memory finds the KV that the first one computed.
        for _ in 0..2 {
            let memory = Memory::builder(model.clone()).kv(Arc::new(FileStore::open(dir.path())?)).build()?;
            memory.remember_all("you", ["Alice lives in Denver.", "Bob is a nurse.", "Bob lives in Oslo."]).await?;
            let answer = memory.ask("you", "Where does Bob live?").await?;
            println!("{}\n{}", answer.text, answer.usage);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_store() {
        let (dir, count) = (tempfile::tempdir().unwrap(), AtomicU64::new(0));
        let fresh = || FileStore::open(dir.path().join(count.fetch_add(1, Relaxed).to_string())).unwrap();
        amem_core::testing::kv_store(fresh);
    }
}
